"""The decisions, as pure functions: clock and randomness are arguments."""
