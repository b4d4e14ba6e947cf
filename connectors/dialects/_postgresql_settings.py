"""The connector's settings: what every connector for PostgreSQL gets, and what of it nobody may change."""

from __future__ import annotations

from connectors.protocol import MESSAGE_BYTES_MAX

HEARTBEAT_SECONDS = 1.0

SETTINGS = {
    "connector.class": "io.debezium.connector.postgresql.PostgresConnector",
    "tasks.max": "1",
    "plugin.name": "pgoutput",
    "publication.autocreate.mode": "disabled",
    "publish.via.partition.root": "true",
    "snapshot.mode": "initial",
    "decimal.handling.mode": "string",
    "time.precision.mode": "microseconds",
    "interval.handling.mode": "string",
    "hstore.handling.mode": "json",
    "binary.handling.mode": "bytes",
    "include.unknown.datatypes": "true",
    "skipped.operations": "none",
    "column.propagate.source.type": ".*",
    "extended.headers.enabled": "false",
    "heartbeat.interval.ms": str(round(HEARTBEAT_SECONDS * 1000)),
    "heartbeat.action.query": "SELECT pg_logical_emit_message(true, 'cdc.heartbeat', '')",
    "message.prefix.include.list": r"cdc\.heartbeat",
    "poll.interval.ms": "50",
    # A value that cannot be converted stops the connector; the default sends NULL in its place.
    "event.converting.failure.handling.mode": "fail",
    "producer.override.max.request.size": str(MESSAGE_BYTES_MAX),
    "producer.override.compression.type": "lz4",
    "signal.poll.interval.ms": "250",
    # After an error that heals by itself (the server restarted) the task begins again; the default waits ten seconds.
    "retriable.restart.connector.wait.ms": "1000",
    "notification.enabled.channels": "sink",
    "topic.creation.default.partitions": "3",
    "topic.creation.default.replication.factor": "-1",
    "topic.creation.default.cleanup.policy": "delete",
    "topic.creation.default.max.message.bytes": str(MESSAGE_BYTES_MAX),
    "key.converter": "org.apache.kafka.connect.json.JsonConverter",
    "key.converter.schemas.enable": "true",
    "value.converter": "org.apache.kafka.connect.json.JsonConverter",
    "value.converter.schemas.enable": "true",
    # Connect's default header converter writes a newline in a key as it is, which is no JSON.
    "header.converter": "org.apache.kafka.connect.json.JsonConverter",
    "header.converter.schemas.enable": "false",
    # The converter's default turns a NULL into the column's DEFAULT, without a trace.
    "key.converter.replace.null.with.default": "false",
    "value.converter.replace.null.with.default": "false",
}
"""What every connector gets, so that values stay exact. ``connect.options`` may change any but PINNED."""

PINNED = {
    "name",
    "connector.class",
    "topic.prefix",
    "slot.name",
    "publication.name",
    "table.include.list",
    "skipped.operations",
    "tasks.max",
    "signal.data.collection",
    "signal.enabled.channels",
    "read.only",
    "time.precision.mode",
    "event.converting.failure.handling.mode",
    "unavailable.value.placeholder",
    "key.converter.replace.null.with.default",
    "value.converter.replace.null.with.default",
}
"""Settings that options may not change: values or events would be lost without a trace, or the pipeline take another's place."""
