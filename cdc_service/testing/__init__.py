"""In-memory stand-ins of the seams, shipped: for tests and for the simulator, never for production."""
