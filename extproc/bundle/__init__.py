"""The Envoy bundle: everything Envoy is told, rendered from the written configuration."""
