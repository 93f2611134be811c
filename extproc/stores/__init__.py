"""Where state is kept: the only awaits besides gRPC."""
