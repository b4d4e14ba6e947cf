"""CDC replication: ordered, exactly-once-in-effect application of Debezium change events to warehouse tables."""

__version__ = "0.1.0"
