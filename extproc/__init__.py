"""LLM Edge Agent: an LLM gateway as an Envoy external-processing sidecar."""

__version__ = "0.1.0"
