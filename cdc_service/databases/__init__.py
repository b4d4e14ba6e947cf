"""What the source and the destination of one database share: how it spells values, a module for each database. Pure functions."""
