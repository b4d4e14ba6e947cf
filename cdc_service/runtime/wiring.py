"""The one module that wires everything: what each command does, and the running service out of its parts.

Every function opens what it needs and closes it again; errors are core.errors with their cures.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from cdc_service import transforms
from cdc_service.config import Config, TableConfig, resolve
from cdc_service.config.patterns import parse_pattern
from cdc_service.config.problems import InvalidConfig, Problem, dotted
from cdc_service.config.resolve import excluded_keys, resolution
from cdc_service.core.clock import RealClock
from cdc_service.core.errors import AlreadyRunning, CdcError, ConfigError, Unavailable
from cdc_service.core.identity import Identities
from cdc_service.core.names import Names
from cdc_service.core.types import Mode, TableId, TableSchema, Target
from cdc_service.kafka.admin import Admin
from cdc_service.kafka.consumer import GroupConsumer
from cdc_service.kafka.reader import TopicReader, TopicTail
from cdc_service.pipeline import quarantine as parked
from cdc_service.pipeline.commands import Commands
from cdc_service.pipeline.context import Context
from cdc_service.pipeline.merge_worker import beside
from cdc_service.pipeline.poll_loop import PollLoop
from cdc_service.pipeline.table_task import Part, TableTask
from cdc_service.pipeline.watermarks import Watermarks, signal_id
from cdc_service.ports.capture import Facts
from cdc_service.ports.destination import Destination, RightsLacking, Writer
from cdc_service.ports.events import Decoder, EventModel
from cdc_service.ports.feed import Assignment
from cdc_service.ports.source import Finding, Identity, Source, SourceTable, without_columns
from cdc_service.runtime.comparing.change_log import Sources
from cdc_service.runtime.comparing.reconciler import Outside, Reconciler
from cdc_service.runtime.monitor import Monitor, meaning
from cdc_service.runtime.schedule import Schedule
from cdc_service.runtime.service import Service, Works, alone, find_table, tables_of
from cdc_service.runtime.status import document, waiting_for
from cdc_service.transforms import transformed_schema
from connectors.debezium import check as preflight
from connectors.debezium import refusals
from connectors.debezium.check import selectable
from connectors.debezium.connect import KafkaConnect
from connectors.debezium.register import (
    Registered,
    RegistrationPlan,
    Step,
    apply_registration,
    names_of,
    plan_registration,
    request_snapshots,
)
from connectors.debezium.register import plan_removal as removal
from connectors.debezium.register import unregister as take_back
from connectors.debezium.schema_registry import SchemaRegistry
from connectors.debezium.wires import is_avro, writes_defaults_for_null
from connectors.formats.avro import DebeziumAvroDecoder, InJson, Schemas
from connectors.formats.debezium_json import DebeziumJsonDecoder
from connectors.formats.layout import schema_length
from connectors.formats.schemaless import SchemalessJsonDecoder
from connectors.sources import open_source
from mergers.destinations import open_destination

CONNECT_RETRY_SECONDS = 3.0
"""How long the running service repeats one question to Connect; its loop asks again by itself."""
CONNECTOR_FILE = "connector.json"
MEMBER_FILE = "member"


@dataclass(frozen=True, slots=True)
class Parts:
    """The outside world of one pipeline, opened lazily: nothing is connected before it is asked."""

    config: Config
    names: Names
    source: Source
    connect: KafkaConnect
    kafka: Admin
    registry: SchemaRegistry | None

    def tables(self, fold: Callable[[str], str]) -> list[TableConfig]:
        """The tables to replicate, by the source's catalog."""
        return self.resolved(self.source.tables(), fold)

    @property
    def options(self) -> dict[str, str]:
        """What the configuration itself says of the connector."""
        return self.config.connect.options.reveal()

    def identities(self, tables: Sequence[TableId]) -> Identities:
        """What the source says of the tables now, and of how the connector gets their changes; of that nothing where Connect is away."""
        connector = None
        with contextlib.suppress(Unavailable):
            connector = self.connect.config(self.names.connector)
        return self.source.identities(tables, self.names, connector, self.options)

    def resolved(self, catalog: Sequence[SourceTable], fold: Callable[[str], str], known: Collection[TableId] = ()) -> list[TableConfig]:
        """``known`` are tables that the destination has. One of them that the source has no more, and that the configuration names, stays:
        it stops by itself, and keeps no other from going on."""
        exact = {TableId(*p.exact) for p in map(parse_pattern, self.config.tables) if p.exact is not None}
        gone = exact & set(known) - {t.table for t in catalog}
        keyless = {t.table for t in catalog if not t.key}
        tables = resolve(self.config, [*selectable(self.config, catalog), *gone], fold, keyless, self.source.events.ordering)
        if problems := excluded_keys(self.config, tables, {t.table: t.key for t in catalog}):
            raise InvalidConfig(self.config.file, problems, hint="leave the key's columns in")
        return tables


@contextmanager
def _parts(config: Config, *, retry_seconds: float | None = None) -> Iterator[Parts]:
    with ExitStack() as stack:
        source = open_source(config.source.url.reveal())
        stack.callback(source.close)
        url = config.connect.url.reveal()
        patience = {} if retry_seconds is None else {"retry_seconds": retry_seconds}
        connect = KafkaConnect(url, source.failures, **patience)
        stack.callback(connect.close)
        registry = None
        if config.schema_registry.url is not None:
            registry = SchemaRegistry(config.schema_registry.url.reveal(), config.schema_registry.options.reveal())
            stack.callback(registry.close)
        yield Parts(config, names_of(config), source, connect, _admin(config), registry)


def _admin(config: Config) -> Admin:
    return Admin(config.kafka.bootstrap_servers, config.kafka.options.reveal())


def _destination(config: Config) -> Destination:
    d = config.destination
    opened = open_destination(d.url.reveal(), pipeline=config.pipeline, meta_schema=d.meta_schema, options=d.options.reveal())
    can, default = opened.capabilities, (("defaults", "mode"), config.defaults.mode)
    wanted = dict(default if t.mode is None else (("tables", key, "mode"), t.mode) for key, t in config.tables.items())
    if lacking := {where: mode for where, mode in wanted.items() if mode not in can.modes}:
        message = f"the destination keeps no table so; it has: {', '.join(sorted(can.modes))}"
        problems = [Problem(config.line(*where), dotted(where), f"{mode}: {message}") for where, mode in lacking.items()]
        raise InvalidConfig(config.file, problems, hint=can.gaps.get("modes", ""))
    return opened


# Before anything runs


def check(config: Config) -> list[Finding]:
    """All pre-flight findings. Changes nothing."""

    warehouse = _destination(config)

    def destination(targets: Sequence[Target]) -> Sequence[Finding]:
        opened = _destination(config)
        try:
            return [_lack(error) for error in opened.lacking(targets)] or [Finding("destination", True, opened.probe())]
        except Unavailable:
            if opened.capabilities.reads_while_writing:
                raise
            with contextlib.suppress(AlreadyRunning), alone(config.state_dir, config.pipeline):
                raise
            return [Finding("destination", True, "the running service has it open")]
        finally:
            opened.close()

    return preflight.check(config, lambda: _admin(config), destination, fold=warehouse.fold, fits=warehouse.misfit)


def _lack(error: CdcError) -> Finding:
    """The statement alone is the cure, so that it can be pasted."""
    if not isinstance(error, RightsLacking):
        return Finding("destination", False, error.message, error.hint)
    return Finding("destination", False, f"{error.message}; an administrator of the warehouse must run this", error.statement)


def plan(config: Config) -> RegistrationPlan:
    """What registration would do. Tables that cannot be replicated are named in it, and left out of its steps."""
    warehouse = _destination(config)
    with _parts(config) as p:
        catalog = p.source.tables()
        keyless = {t.table for t in catalog if not t.key}
        resolved, problems = resolution(config, selectable(config, catalog), warehouse.fold, keyless)
        problems += refusals.excluded(config, resolved, catalog)
        targets = {t.source: t.target for t in resolved}

        def refuse(tables: Sequence[SourceTable]) -> Iterator[Finding]:
            yield from refusals.of_configuration(config, problems)
            yield from refusals.of_destination(tables, targets, p.source, warehouse.misfit)

        return plan_registration(config, [*targets], p.source, p.connect, p.kafka, refuse=refuse)


def register(config: Config, plan: RegistrationPlan, say: Callable[[str], None]) -> Registered:
    with _parts(config) as p:
        return apply_registration(plan, p.source, p.connect, p.kafka, say)


def plan_removal(config: Config) -> tuple[Step, ...]:
    with _parts(config) as p:
        return removal(config, p.source, p.connect)


def unregister(config: Config, say: Callable[[str], None]) -> None:
    with _parts(config) as p:
        take_back(config, p.source, p.connect, say)


# Without a running service


def query(config: Config, sql: str, *, rows_max: int) -> pa.Table:
    """Reads the warehouse itself; for when no service runs."""
    destination = _destination(config)
    try:
        return destination.query(sql, rows_max=rows_max)
    finally:
        destination.close()


def status(config: Config) -> dict[str, Any]:
    """The status document out of destination, Kafka and Connect; what does not answer is left out."""
    clock = RealClock()
    with _parts(config, retry_seconds=0.0) as p, _opened(config) as destination:
        tables = _tables(p, destination, None)
        facts = _facts_now(p, [t.config.topic for t in tables], clock.wall_us())
        for table in tables:
            _fill(table, destination, facts)
        service: dict[str, Any] = {"running": False, "pid": None, "api": None}
        if facts.trouble is not None:
            service["waiting_for"] = waiting_for(facts.trouble)
        return document(config, service, facts, tables, clock.wall_us())


def act(config: Config, action: str, table: str, **body: Any) -> dict[str, Any]:
    """A person's deed on one table while no service runs; the next run goes on from there."""
    with _control(config) as (control, tables):
        return control.act(action, find_table(tables, table), body)


def resume_all(config: Config) -> dict[str, Any]:
    """Lets every table go on that stands still, while no service runs."""
    with _control(config) as (control, _):
        return control.resume_all()


@contextmanager
def _control(config: Config) -> Iterator[tuple[Commands, list[TableTask]]]:
    with alone(config.state_dir, config.pipeline), _parts(config) as p, _opened(config) as destination:
        tables = _tables(p, destination, None)
        snapshots = _Snapshots(p)

        def begun(table: TableTask) -> None:
            snapshots.ask(table.source, signal_id(table))

        yield Commands(tables, tables[0].context, _Horizon(p), begun, lambda: p.kafka.group_offsets(p.names.group)), tables


def quarantine(config: Config, action: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """Lists, shows, replays or discards parked records while no service runs (pipeline.quarantine)."""
    with alone(config.state_dir, config.pipeline), _parts(config) as p, _opened(config) as destination:
        # To read a record one has to know how the connector wrote it.
        tables = _tables(p, destination, None if action == "list" else _connector(p))
        return parked.do(action, tables_of(tables, action, body), body)


@contextmanager
def _opened(config: Config) -> Iterator[Destination]:
    destination = _destination(config)
    try:
        destination.prepare()
        yield destination
    finally:
        destination.close()


def _facts_now(p: Parts, topics: Sequence[str], at_us: int) -> Facts:
    found: dict[str, Any] = {}
    for name, ask in (
        ("connector", lambda: p.connect.status(p.names.connector)),
        ("hold", lambda: p.source.hold(p.names)),
        ("topics", lambda: p.kafka.describe(topics)),
    ):
        try:
            found[name] = ask()
        except CdcError as error:
            found["trouble"] = error
    return Facts(at_us, connector_missing="connector" in found and found["connector"] is None, **found)


def _fill(table: TableTask, destination: Destination, facts: Facts) -> None:
    """What a table shows without being opened."""
    table.state.now = destination.load_state(table.target)
    topic = facts.topics.get(table.config.topic)
    for c in destination.checkpoints(table.target):
        if topic is None or c.log == topic.log:
            table.parts[c.partition] = Part(c.next_offset, c.epoch, c.next_offset)
    table.ends = {} if topic is None else {p: high for p, (_, high) in topic.ends.items()}
    table.recall()
    table.tally.rows = destination.table_rows(table.target)


# The running service


@contextmanager
def open_service(config: Config) -> Iterator[Service]:
    """The service with its API; ``run`` makes it work. Raises AlreadyRunning where the pipeline runs already."""
    from cdc_service.api.server import Api

    if "jemalloc" in pa.supported_memory_backends():
        # Arrow's default (mimalloc) keeps more of what a batch leaves: 615 MB against 533 at the peak of a million events.
        pa.set_memory_pool(pa.jemalloc_memory_pool())
    # What stands now stays. Each record is an object that Python's collector counts: by its defaults it would look for cycles among
    # thousands of them again and again.
    gc.freeze()
    gc.set_threshold(100_000, 20, 20)
    with alone(config.state_dir, config.pipeline):
        service = Service(config, lambda: _works(config), RealClock())
        with Api(service, config.api.listen, config.state_dir, config.api.token_file) as api:
            service.url = api.url
            yield service


def _works(config: Config) -> Works:
    """Everything connected, or nothing. Raises Unavailable while a server that is needed is away."""
    clock = RealClock()
    with ExitStack() as stack:
        p = stack.enter_context(_parts(config, retry_seconds=CONNECT_RETRY_SECONDS))
        destination = _destination(config)
        stack.callback(destination.close)
        destination.prepare()
        p.kafka.cluster_id()
        _refuse_company(p, destination)
        settings = _connector(p)
        tables = _tables(p, destination, settings)
        context = tables[0].context
        options = config.kafka.options.reveal()

        def join(assignment: Assignment) -> GroupConsumer:
            topics = [t.config.topic for t in tables]
            member = _member(config, topics)
            return GroupConsumer(config.kafka.bootstrap_servers, p.names.group, member, topics, options, assignment, schema_length)

        tail = TopicTail(config.kafka.bootstrap_servers, p.names.notification_topic, options)
        stack.callback(tail.close)
        notices = tail if p.registry is None else InJson(tail, Schemas(p.registry, clock.monotonic))
        watch = Monitor(
            p.names, {t.config.topic: t.source for t in tables}, p.connect, p.source, p.kafka, notices, clock, settings, p.options
        )
        line = PollLoop(
            tables, context, p.kafka, watch.identities, join, memory=config.limits.memory, clock=clock, submit=beside, ask=beside
        )
        stack.callback(line.close)
        progress = Watermarks(line, lambda: watch.facts, destination, _Snapshots(p), p.source, clock)
        control = Commands(tables, context, _Horizon(p), progress.begun, lambda: p.kafka.group_offsets(p.names.group))
        comparing = _comparing(p, destination, settings, stack)
        stack.callback(comparing.close)
        comparing.follow({t.source: t for t in tables}, line.ask, watch.hurry)
        schedule = Schedule([t.config for t in tables], comparing)
        stack.callback(schedule.stop)
        schedule.start()
        close = stack.pop_all().close
        return Works(
            line,
            progress,
            control,
            watch,
            p.source.parse_position,
            lambda sql, rows_max: destination.query(sql, rows_max=rows_max),
            comparing,
            close,
        )


def _comparing(p: Parts, destination: Destination, connector: Mapping[str, str], stack: ExitStack) -> Reconciler:
    """What compares tables with their source, on the destination of the line or on one that nothing else uses."""
    config = p.config
    reads = p.source
    if config.source.replica_url is not None:
        reads = open_source(config.source.replica_url.reveal())
        stack.callback(reads.close)
    placeholder = connector.get("unavailable.value.placeholder", "__debezium_unavailable_value")
    options = config.kafka.options.reveal()
    return Reconciler(
        config.pipeline,
        destination,
        lambda: _resolved(p, destination, connector),
        lambda: TopicReader(config.kafka.bootstrap_servers, options),
        Outside(Sources(p.source, reads), p.connect, p.names, p.kafka, placeholder, config.connect.options.reveal()),
    )


@contextmanager
def comparing(config: Config) -> Iterator[Reconciler]:
    """What compares, explains and repairs tables while no service runs."""
    with alone(config.state_dir, config.pipeline), _parts(config) as p, _opened(config) as destination, ExitStack() as stack:
        made = _comparing(p, destination, _connector(p), stack)
        stack.callback(made.close)
        yield made


def _refuse_company(p: Parts, destination: Destination) -> None:
    """An embedded warehouse has one writer: another process of the pipeline (from another state_dir) would get a part of the changes."""
    if destination.capabilities.reads_while_writing:
        return
    own = _member(p.config, ()).rsplit("-", 1)[0]
    others = {name: host for name, host in p.kafka.members(p.names.group).items() if not name.startswith(own)}
    if others:
        raise AlreadyRunning(
            f"another process reads the changes of pipeline {p.config.pipeline}: {', '.join(sorted(set(others.values())))}",
            hint="it has another state_dir than this one: stop it, or give one of them another pipeline name. One that was killed is gone"
            " after 10 s",
        )


def _connector(p: Parts) -> Mapping[str, str]:
    """The settings of the connector that decide what its events mean; remembered, so that the service starts while Connect is away."""
    path = p.config.state_dir / CONNECTOR_FILE
    try:
        found = p.connect.config(p.names.connector)
    except Unavailable:
        if path.exists():
            return dict(json.loads(path.read_text(encoding="utf-8")))
        raise
    if found is None:
        raise Unavailable(f"connector {p.names.connector} does not exist", hint="cdc register", code="not_registered")
    kept = meaning(found, p.source.events)
    _write(path, json.dumps(kept, indent=1))
    return kept


def _member(config: Config, topics: Sequence[str]) -> str:
    """This process's name in the consumer group: one for each state_dir, of which one process at a time holds the lock. With other topics
    it is another member: the broker gives one that comes back its old partitions, whatever it subscribes to."""
    path = config.state_dir / MEMBER_FILE
    if not path.exists():
        _write(path, f"{config.pipeline}-{uuid.uuid4().hex[:12]}")
    subscription = hashlib.sha256("\n".join(sorted(topics)).encode()).hexdigest()[:8]
    return f"{path.read_text(encoding='utf-8').strip()}-{subscription}"


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    new = path.with_suffix(".new")
    new.write_text(text, encoding="utf-8")
    new.replace(path)


def _tables(p: Parts, destination: Destination, connector: Mapping[str, str] | None) -> list[TableTask]:
    """The pipeline's tables."""
    configs, decoder = _resolved(p, destination, connector)
    by_source = {c.source: c for c in configs}

    def told(table: TableId) -> TableSchema | None:
        return _told(p, connector or {}, [table]).get(table)

    def columns(table: TableId) -> Sequence[str]:
        schema = told(table)
        if schema is not None:
            return schema.names
        # Whatever form events give them: those that they leave out may be among these.
        return [c.name for one in _as_sent(p, connector or {}, only=table) for c in one.columns if not c.generated]

    def kept(table: TableId) -> TableSchema | None:
        schema = told(table)
        return None if schema is None else transformed_schema(transforms.of(by_source[table]), schema)

    def kept_columns(table: TableId) -> Sequence[str]:
        apart = by_source[table].exclude
        return [name for name in columns(table) if name not in apart]

    context = Context(destination, p.kafka, decoder(), p.source, kept, kept_columns, p.identities, RealClock(), p.config.limits)
    return [TableTask(c, context) for c in configs]


def _resolved(p: Parts, destination: Destination, connector: Mapping[str, str] | None) -> tuple[list[TableConfig], Callable[[], Decoder]]:
    """The tables to replicate, and what makes a decoder of their events. Where the source is away, those that the destination knows already
    stand in for its catalog."""
    known = [TableId(*parse_pattern(text).exact) for text, _ in destination.states()]  # type: ignore[misc]
    whole: set[TableId] = set()
    try:
        catalog = p.source.tables()
        there = {t.table for t in catalog}
        found = p.resolved(catalog, destination.fold, known)
        configs = [c if c.source in there else _as_kept(c, destination) for c in found]
        whole = {t.table for t in catalog if t.identity is Identity.FULL}
    except Unavailable:
        if not known:
            raise
        ordering = p.source.events.ordering
        configs = [_as_kept(c, destination) for c in resolve(p.config, known, destination.fold, ordering=ordering)]
        whole = {c.source for c in configs if not c.keyed and c.target.mode is Mode.APPEND}  # No other is taken.

    def told(tables: Collection[TableId]) -> Mapping[TableId, TableSchema]:
        return _told(p, connector or {}, tables)

    schemas = None if p.registry is None else Schemas(p.registry, RealClock().monotonic)
    logs = {c.topic for c in configs if c.source in whole}
    return configs, lambda: _decoder(p.source.events, connector or {}, configs, destination, logs, told, schemas)


def _as_kept(config: TableConfig, destination: Writer) -> TableConfig:
    """The table as the destination knows it, where the source cannot say whether it has a key."""
    known = destination.schemas(config.target)
    return config.without_key() if known and not known[-1].key else config


def _told(p: Parts, connector: Mapping[str, str], tables: Collection[TableId]) -> Mapping[TableId, TableSchema]:
    """The schemas of tables that had no event yet, as the source's catalog tells them; those that it does not tell for certain are left
    out."""
    options = _options(p, connector)
    options.pop("unavailable.value.placeholder", None)
    catalog = _as_sent(p, connector, only=next(iter(tables)) if len(tables) == 1 else None)
    return {t.table: schema for t in catalog if t.table in tables and (schema := p.source.schema(t, options)) is not None}


def _as_sent(p: Parts, connector: Mapping[str, str], *, only: TableId | None) -> Sequence[SourceTable]:
    """The source's tables, without the columns that the connector leaves out."""
    return without_columns(p.source.tables(only), _options(p, connector).get("column.exclude.list", ""))


def _options(p: Parts, connector: Mapping[str, str]) -> dict[str, str]:
    return {**p.options, **connector}


def _decoder(
    model: EventModel,
    connector: Mapping[str, str],
    configs: Sequence[TableConfig],
    destination: Writer,
    whole: Collection[str],
    told: Callable[[Collection[TableId]], Mapping[TableId, TableSchema]],
    schemas: Schemas | None,
) -> Decoder:
    known = {c.topic: found[-1] for c in configs if (found := destination.schemas(c.target))}
    logs = {c.topic for c in configs if c.target.mode is Mode.APPEND}
    left_out = {c.topic: unread for c in configs if (unread := transforms.unread(transforms.of(c)))}
    new = {c.source: c.topic for c in configs if c.topic not in known}
    by_catalog: dict[TableId, TableSchema] = {}
    with contextlib.suppress(Unavailable):
        # A topic may begin with a TRUNCATE, which has no key to tell the table's by.
        by_catalog = dict(told(new)) if new else {}
    known |= {new[table]: schema for table, schema in by_catalog.items()}
    unavailable = connector.get("unavailable.value.placeholder", "__debezium_unavailable_value")
    with_schemas = connector.get("value.converter.schemas.enable", "true") != "false"
    if is_avro(connector) or (with_schemas and schemas is not None):
        if schemas is None:
            raise ConfigError("the connector writes Avro", hint="add at the top:  schema_registry: {url: http://localhost:8081}")
        doubtful = writes_defaults_for_null(connector)
        return DebeziumAvroDecoder(
            *(model, schemas),
            unavailable=unavailable,
            known=known,
            whole=whole,
            logs=logs,
            left_out=left_out,
            defaults_for_null=doubtful,
        )
    if with_schemas:
        return DebeziumJsonDecoder(model, unavailable=unavailable, known=known, whole=whole, logs=logs, left_out=left_out)
    # A record without schemas is read by all columns that it has, those that are left out too.
    new |= {c.source: c.topic for c in configs if c.topic in left_out}
    by_catalog = {table: schema for table, schema in by_catalog.items() if table in new}
    if new and not by_catalog:
        by_catalog = dict(told(new))
    missing = [str(table) for table in new if table not in by_catalog]
    if missing:
        raise ConfigError(
            f"the connector writes JSON without schemas, and the catalog does not tell how it writes the columns of {', '.join(missing)}",
            hint="set value.converter.schemas.enable=true in connect.options, at least until each table was loaded once",
        )
    known |= {new[table]: schema for table, schema in by_catalog.items()}
    return SchemalessJsonDecoder(model, known, connector, whole, logs, left_out)


@dataclass(frozen=True, slots=True)
class _Snapshots:
    """pipeline.watermarks.Snapshots over the connector."""

    parts: Parts

    def ask(self, table: TableId, signal_id: str, *, afresh: bool = False) -> None:
        p = self.parts
        request_snapshots(p.names, [table], p.source, p.connect, p.kafka, ids={table: signal_id}, afresh=afresh)

    def names(self, text: str, table: TableId) -> bool:
        return self.parts.source.names_collection(text, table)


@dataclass(frozen=True, slots=True)
class _Horizon:
    """pipeline.commands.Horizon: the oldest log position that is still held lies below all open transactions."""

    parts: Parts

    def horizon(self, table: TableId) -> int:
        if (refused := self.parts.source.snapshot_refusal(table)) is not None:
            raise CdcError(f"{refused.name} {refused.message}", hint=refused.cure, code="table_refused")
        hold = self.parts.source.hold(self.parts.names)
        if hold is None or hold.status == "lost":
            raise CdcError("nothing holds the source's log for this pipeline", hint="cdc register", code="not_registered")
        return max(0, self.parts.source.position() - (hold.retained_bytes or 0))

    def settled(self, table: TableId) -> int:
        return self.parts.source.settled(table)
