"""What a reconciliation found, for people and programs."""
