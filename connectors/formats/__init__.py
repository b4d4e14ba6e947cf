"""From the bytes of Debezium's events to batches of changes."""
