"""Callers and providers wire formats, one file each."""
