"""Simulated providers: truthful on the wire, misbehaving on demand, with a log to check against."""
