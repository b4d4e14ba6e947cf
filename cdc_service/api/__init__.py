"""The HTTP API of the running service."""
