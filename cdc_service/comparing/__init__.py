"""Reconciliation joined with the outside: sources, the log, the warehouse, and the running service."""
