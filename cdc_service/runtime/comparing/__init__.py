"""Reconciliation beside a running service."""
