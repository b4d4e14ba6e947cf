"""Debezium in Kafka Connect: its registration, its state, what it writes beside changes."""
