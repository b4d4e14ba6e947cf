"""Two states of a table compared."""
