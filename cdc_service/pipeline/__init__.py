"""The line from a change topic to the rows of a target, and what keeps it right."""
