"""Pre-flight: whether source, Kafka, Connect and destination are as a pipeline needs them. Changes nothing.

Each part is asked even when another one fails, so that one run names everything that has to be done, with its cure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from cdc_service.config.models import Config
from cdc_service.config.patterns import parse_pattern
from cdc_service.config.resolve import resolution
from cdc_service.core.errors import CdcError
from cdc_service.core.types import TableId, Target
from cdc_service.core.wording import some
from cdc_service.ports.source import MESSAGE_BYTES_MAX, Finding, Level, Source, SourceTable
from connectors.debezium import refusals, wires
from connectors.debezium.connect import KafkaConnect
from connectors.debezium.refusals import Fits
from connectors.debezium.register import KafkaAdmin, Topic, chosen, connector_request, secret_options, topics_of
from connectors.debezium.schema_registry import SchemaRegistry
from connectors.sources import open_source

CHECK_RETRY_SECONDS = 3.0
_DAY_MS = 24 * 3600 * 1000
_ENV_PROVIDER = (
    "config.providers=env,file\n"
    "config.providers.env.class=org.apache.kafka.common.config.provider.EnvVarConfigProvider\n"
    "config.providers.file.class=org.apache.kafka.common.config.provider.FileConfigProvider"
)
_WORKER = "offset.flush.interval.ms=1000\nconnector.client.config.override.policy=All"


def selectable(config: Config, catalog: Sequence[SourceTable]) -> list[TableId]:
    """The tables that patterns of the configuration may match: the pipeline's own table for signals is left out,
    and partitions are, unless a key names one exactly (it is then refused by name)."""
    exact = {TableId(*p.exact) for p in map(parse_pattern, config.tables) if p.exact is not None}
    own = config.names.signal_table
    return [t.table for t in catalog if (t.root is None and t.table.name != own) or t.table in exact]


def check(
    config: Config,
    kafka: Callable[[], KafkaAdmin],
    destination: Callable[[Sequence[Target]], Sequence[Finding]],
    *,
    fold: Callable[[str], str] = str,
    fits: Fits = lambda target, schema: None,
) -> list[Finding]:
    """All findings, in the order source, Kafka, Connect, destination. ``destination`` tells its own for the targets; ``fold`` is its
    folding of names, ``fits`` its ``misfit``."""
    findings: list[Finding] = []
    try:
        source = open_source(config.source.url.reveal())
    except CdcError as error:
        return [_failed("source", error)]
    connect = KafkaConnect(config.connect.url.reveal(), source.failures, retry_seconds=CHECK_RETRY_SECONDS)
    try:
        asked = _Source(config, source, fold, fits)
        findings += _guarded("source", asked.findings)
        told = asked if asked.catalog else None
        findings += _guarded("kafka", lambda: _kafka(config, kafka(), source, told))
        findings += _guarded("connect", lambda: _connect(config, connect, source, told))
    finally:
        connect.close()
        source.close()
    findings += _guarded("destination", lambda: iter(destination([*asked.targets.values()])))
    return [replace(f, cure="") if f.ok else f for f in findings]


class _Source:
    """What the source told, for the parts that need it: the catalog and the tables of the configuration."""

    def __init__(self, config: Config, source: Source, fold: Callable[[str], str], fits: Fits) -> None:
        self._config, self._source, self._fold, self._fits = config, source, fold, fits
        self.catalog: tuple[SourceTable, ...] = ()
        self.tables: tuple[SourceTable, ...] = ()
        self.targets: dict[TableId, Target] = {}

    def findings(self) -> Iterator[Finding]:
        config = self._config
        self.catalog = self._source.tables()
        yield Finding("source", True, f"{config.source.url} answers and has {len(self.catalog)} tables")
        keyless = {t.table for t in self.catalog if not t.key}
        resolved, problems = resolution(config, selectable(config, self.catalog), self._fold, keyless)
        problems += refusals.excluded(config, resolved, self.catalog)
        self.targets = {t.source: t.target for t in resolved}
        self.tables = chosen(config, [*self.targets], self.catalog)
        yield from refusals.of_configuration(config, problems)
        if not problems:
            yield Finding("tables", True, f"the configuration names {len(self.tables)} of them, each with a target of its own")
        yield from refusals.of_destination(self.tables, self.targets, self._source, self._fits)
        yield from self._source.check(self.tables, config.names)


def _kafka(config: Config, kafka: KafkaAdmin, source: Source, told: _Source | None) -> Iterator[Finding]:
    there = kafka.topics()
    yield Finding("kafka", True, f"{config.kafka.bootstrap_servers} answers (cluster {kafka.cluster_id()})")
    tables = told.tables if told is not None else ()
    signals = source.preparation(tables, config.names).signals if tables else None
    needed = topics_of(config, tables, signals)
    missing = [t.name for t in needed if t.name not in there]
    if missing:
        message = f"{len(missing)} to be created: {some(missing)}"
        yield Finding("topics", False, message, "cdc register creates them", Level.INFO, tuple(missing))
    for topic in needed:
        if topic.name in there:
            yield from _topic(topic, there[topic.name], kafka.topic_config(topic.name))


def _topic(topic: Topic, partitions: int, settings: Mapping[str, str]) -> Iterator[Finding]:
    place = f"topic {topic.name}"
    if topic.partitions == 1 and partitions != 1:
        message = f"has {partitions} partitions; {topic.what} need exactly one"
        yield Finding(place, False, message, f"kafka-topics.sh --delete --topic {topic.name}  # then: cdc register")
    if "compact" in settings.get("cleanup.policy", ""):
        message = "is compacted: events vanish from it, so neither a replay nor a late reader gets them all"
        yield Finding(place, False, message, _alter(topic.name, "cleanup.policy=delete"))
    if "max.message.bytes" in topic.config and int(settings.get("max.message.bytes") or MESSAGE_BYTES_MAX) < MESSAGE_BYTES_MAX:
        message = f"takes events of up to {settings['max.message.bytes']} bytes: a larger row stops the connector"
        yield Finding(place, False, message, _alter(topic.name, f"max.message.bytes={MESSAGE_BYTES_MAX}"), Level.WARNING)
    retention = int(settings.get("retention.ms") or -1)
    if "retention.ms" not in topic.config and 0 <= retention < _DAY_MS:
        message = f"keeps events for {retention / 1000:.0f} s: a service that stands still for longer needs a resync"
        yield Finding(place, False, message, _alter(topic.name, f"retention.ms={7 * _DAY_MS}"), Level.WARNING)


def _alter(topic: str, setting: str) -> str:
    return f"kafka-configs.sh --alter --entity-type topics --entity-name {topic} --add-config {setting}"


def _connect(config: Config, connect: KafkaConnect, source: Source, told: _Source | None) -> Iterator[Finding]:
    worker = connect.worker()
    yield Finding("connect", True, f"{config.connect.url} answers (Kafka Connect {worker.version}, cluster {worker.cluster_id})")
    plugin = connect.require_plugin(source.connector_class)
    yield Finding("plugin", True, f"{plugin.class_name} {plugin.version} is there")
    if config.connect.secrets == "env":
        reads = connect.reads_environment(source.connector_class)
        does = "resolves ${env:..}" if reads else "does not resolve ${env:..}: passwords cannot reach the connector"
        yield Finding("secrets", reads, f"the worker {does}", f"add to the worker's configuration and restart it:\n{_ENV_PROVIDER}")
    elif config.connect.secrets == "inline":
        message = "connect.secrets is inline: Connect keeps the source's password as text in its configuration topic"
        yield Finding("secrets", False, message, "connect.secrets: env", Level.WARNING)
    yield from _signal_security(config)
    message = "its REST API does not show the worker's own settings; after a crash of it, what it sent since its last flush comes again"
    yield Finding("worker settings", False, message, f"recommended:\n{_WORKER}", Level.INFO)
    if told is not None and told.tables:
        yield from _connector(config, connect, source, told)


def _connector(config: Config, connect: KafkaConnect, source: Source, told: _Source) -> Iterator[Finding]:
    name = config.names.connector
    existing = connect.config(name)
    signals = source.preparation(told.tables, config.names).signals
    wanted = source.connector_config(connector_request(config, told.tables, told.catalog, signals, existing))
    yield from _wire(config, connect, source, wanted)
    problems = connect.validate(wanted)
    for problem in problems:
        yield Finding("connector configuration", False, f"{problem.key}: {problem.message}", connect.cure([problem]))
    if not problems:
        yield Finding("connector configuration", True, "Connect accepts it, and reaches the source with it")
    plan = connect.plan(wanted, secret_options(config))
    if plan.kind == "create":
        yield Finding("connector", False, f"{name} does not exist yet", "cdc register", Level.INFO)
        return
    if plan.kind == "update":
        keys = ", ".join(c.key for c in plan.changes)
        yield Finding("connector drift", False, f"{name} differs from the configuration in {keys}", "cdc register", Level.WARNING)
    status = connect.status(name)
    if status is not None:
        causes = f": {'; '.join(status.problems)}" if status.problems else ""
        yield Finding("connector", status.running, f"{name} is {status.overall.lower()}{causes}", status.cure)


def _wire(config: Config, connect: KafkaConnect, source: Source, wanted: Mapping[str, str]) -> Iterator[Finding]:
    """What the connector writes, and whether the service can read it."""
    wires.require_readable(config, wanted, source.events)
    wires.require_converter(connect, wanted)
    if config.schema_registry.url is not None:
        registry = SchemaRegistry(config.schema_registry.url.reveal(), config.schema_registry.options.reveal())
        try:
            registry.probe()
            yield Finding("schema registry", True, f"{registry.shown} answers")
        finally:
            registry.close()
    if wires.is_avro(wanted) and wires.writes_defaults_for_null(wanted):
        message = "this Avro converter writes a column's DEFAULT where the value is NULL: events with such a value go to quarantine"
        cure = f"value.converter: {wires.CONFLUENT} with value.converter.ignore.default.for.nullables: true; or JSON"
        yield Finding("wire", False, message, cure, Level.WARNING)
    if wires.flattens(wanted):
        message = "flattened events never tell of a TRUNCATE: rows that one removes stay in the warehouse"
        yield Finding("wire", False, message, "let the connector write whole events (without ExtractNewRecordState)", Level.WARNING)


def _signal_security(config: Config) -> Iterator[Finding]:
    """The connector reads signals with a consumer of its own, which inherits nothing from the worker."""
    protocol = config.kafka.options.get("security.protocol")
    if protocol is not None and "signal.consumer.security.protocol" not in config.connect.options:
        yield Finding(
            "signals",
            False,
            f"kafka.options ask for {protocol}, but the connector's own consumer of signals is not told how to log in",
            "add to connect.options: signal.consumer.security.protocol, signal.consumer.sasl.mechanism and"
            " signal.consumer.sasl.jaas.config (Java's names; ${env:..} for secrets)",
            Level.WARNING,
        )


def _guarded(part: str, ask: Callable[[], Iterator[Finding]]) -> list[Finding]:
    """What ``ask`` yields up to its first error, and that error as a finding."""
    found: list[Finding] = []
    try:
        for finding in ask():
            found.append(finding)  # noqa: PERF402  (what was found before an error counts)
    except CdcError as error:
        found.append(_failed(part, error))
    return found


def _failed(part: str, error: CdcError) -> Finding:
    return Finding(part, False, error.message, error.hint)
