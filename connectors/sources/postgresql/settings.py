"""The connector's settings: what every connector for PostgreSQL gets, and what of it nobody may change."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping

from cdc_service.core.errors import ConfigError
from cdc_service.databases.postgresql import SPELLING
from cdc_service.ports.source import MESSAGE_BYTES_MAX, ConnectorRequest

HEARTBEAT_SECONDS = 1.0


def session_options(given: str, *more: str) -> str:
    """libpq's options: what source.url asks for, then what values hang on. A query that row level security would narrow has to fail: what
    it does not show would count as not there."""
    settings = [*(f"{name}={value}" for name, value in SPELLING.items()), "row_security=off", *more]
    return " ".join([given, *(f"-c {one}" for one in settings)]).strip()


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
    # Reading a table beside the stream compares its key with texts; unless PostgreSQL may choose their type, a time or a bit string has no
    # operator for them, and the reading ends after the first chunk.
    "driver.stringtype": "unspecified",
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
    # Else the role's or the database's own settings spell values for the connector, which reads intervals wrong then, without a word.
    "driver.options": "-c IntervalStyle=postgres -c bytea_output=hex -c lc_monetary=C -c extra_float_digits=1 -c quote_all_identifiers=off",
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
    "driver.stringtype",
    "unavailable.value.placeholder",
    "driver.options",
    "key.converter.replace.null.with.default",
    "value.converter.replace.null.with.default",
}
"""Settings that options may not change: values or events would be lost without a trace, or the pipeline take another's place."""

SEAL = "cdc.seal"
"""Written by registration into the connector's configuration, which Debezium ignores: a digest of its settings that DECIDE."""

DECIDE = re.compile(
    r"connector\.class|plugin\.name|topic\.prefix|slot\.name|publication\..*|publish\..*|database\.(dbname|initial\.statements)"
    r"|skipped\.operations|errors\.tolerance|event\..*|message\..*|converters|transforms(\..*)?|predicates(\..*)?"
    r"|(schema|table)\.(include|exclude)\.list|column\.(include\.list|mask\..*|truncate\..*|propagate\..*)|provide\..*"
    r"|snapshot\.(mode|select|include)\b.*|include\..*|.*\.handling\.mode|time\.precision\.mode|unavailable\.value\.placeholder"
)
"""Settings that decide which changes and values are sent. Not table.include.list and column.exclude.list, which are judged by the table."""
JUDGED_BY_TABLE = {"table.include.list", "column.exclude.list"}


def sealed(config: Mapping[str, str]) -> dict[str, str]:
    return {**config, SEAL: _seal(config)}


def is_sealed(config: Mapping[str, str]) -> bool | None:
    """Whether what decides is as it was registered; None where no seal tells (registered before there was one)."""
    return None if SEAL not in config else config[SEAL] == _seal(config)


def _seal(config: Mapping[str, str]) -> str:
    deciding = {key: value for key, value in config.items() if DECIDE.fullmatch(key) and key not in JUDGED_BY_TABLE}
    return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()[:16]


def keyless_settings(request: ConnectorRequest) -> dict[str, str]:
    """For tables without a key: one partition a topic, so that the log keeps its order, also where Connect itself makes the topic; and the
    running numbers within transactions, by which rows that came again are told from rows that are alike."""
    topics = [request.names.topic(t.table) for t in request.tables if not t.key]
    if not topics:
        return {}
    if request.options.get("provide.transaction.metadata", "true") != "true":
        raise ConfigError(
            "connect.options set provide.transaction.metadata=false, without which rows of a table without a key could be applied twice",
            hint="remove it from connect.options, or leave the tables without a key out",
        )
    if "io.debezium.transforms.ExtractNewRecordState" in request.options.values():
        raise ConfigError(
            "connect.options flatten the events: without the row before and the numbers in the transaction, changes of a table without"
            " a key cannot be told apart",
            hint="remove the transform ExtractNewRecordState, or leave the tables without a key out",
        )
    return {
        "provide.transaction.metadata": "true",
        "topic.creation.groups": "keyless",
        "topic.creation.keyless.include": ",".join(sorted(re.escape(topic) for topic in topics)),
        "topic.creation.keyless.partitions": "1",
        "topic.creation.keyless.replication.factor": "-1",
        "topic.creation.keyless.cleanup.policy": "delete",
        "topic.creation.keyless.max.message.bytes": str(MESSAGE_BYTES_MAX),
    }


def signal_settings(request: ConnectorRequest) -> dict[str, str]:
    """A table for signals where there is one: the connector's own marks in it keep the rows of a snapshot in order with the stream.
    Without it the watermarks are transaction ids: nothing is written at the source, but under load such a snapshot may fail and be lost."""
    if request.signals is not None:
        place = f"{request.signals.schema}.{request.signals.name}"
        return {"signal.enabled.channels": "source", "signal.data.collection": place, "read.only": "false"}
    return {
        "signal.enabled.channels": "kafka",
        "read.only": "true",
        "signal.kafka.topic": request.names.signal_topic,
        "signal.kafka.bootstrap.servers": request.bootstrap_servers,
        "signal.kafka.groupId": f"{request.names.group}_signal",
        "signal.kafka.poll.timeout.ms": "100",
    }
