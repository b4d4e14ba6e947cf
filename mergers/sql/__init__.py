"""The engine that destinations with SQL transactions share."""
