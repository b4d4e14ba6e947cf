"""Registration: from the configuration's tables to a connector that streams them. First the plan, as data; then the plan, carried out.

A second registration of the same tables does nothing. A crash between any two steps is healed by registering again: a table's snapshot
is asked for before the connector knows the table, and a connector that is created or changed stands still until all is in place.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

from cdc_service.config.models import Config
from cdc_service.config.resolve import settings_of, taken_as_log
from cdc_service.config.secret import SECRET_NAME, Secret
from cdc_service.core.errors import CdcError, ConfigError, Unavailable
from cdc_service.core.names import Names
from cdc_service.core.types import TableId
from cdc_service.ports.capture import ConnectorStatus
from cdc_service.ports.source import (
    MESSAGE_BYTES_MAX,
    Capture,
    ConnectorRequest,
    Finding,
    Offsets,
    Source,
    SourceTable,
    Statement,
    without_columns,
)
from connectors.debezium import wires
from connectors.debezium.connect import CONNECTOR_START_SECONDS, ConnectorPlan, KafkaConnect
from connectors.debezium.notifications import identity, returning, skipped

TABLE_PARTITIONS = 3
SNAPSHOT_PATIENCE_SECONDS = 30.0
"""How long a change of the connector waits for the end of its initial snapshot."""
WATCH_SECONDS = 3.0
"""So long a connector that had stopped has to read its slot without a break: one that meets the cause again fails within a second."""
_READ_ANEW = "what was committed since is not sent, so the running service reads every table anew"
_LEFT_OUT = "\nor leave the table out of the configuration"
_INITIAL = "\nor, since an initial snapshot takes it: cdc register --delete; cdc register; then cdc resync of each table that asks for it"
_DAY_MS = 24 * 3600 * 1000


class Ends(Protocol):
    """A topic's partitions, each with its first kept and its end offset."""

    @property
    def ends(self) -> Mapping[int, tuple[int, int]]: ...


class KafkaAdmin(Protocol):
    """What registration and the checks ask of Kafka; one module of the service implements it. Every call has a time limit and raises
    Unavailable where the cluster does not answer."""

    def cluster_id(self) -> str: ...

    def topics(self) -> Mapping[str, int]:
        """Names of all topics with their number of partitions."""
        ...

    def describe(self, names: Sequence[str]) -> Mapping[str, Ends]:
        """The topics that exist; the others are left out."""
        ...

    def topic_config(self, name: str) -> Mapping[str, str]: ...

    def create_topics(self, names: Sequence[str], *, partitions: int, config: Mapping[str, str]) -> Sequence[str]:
        """Creates those that do not exist; returns their names."""
        ...

    def send(self, topic: str, records: Iterable[tuple[str, bytes]]) -> None:
        """Writes records, each a key and a value, and waits until the cluster has them."""
        ...


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic that the pipeline needs, with what it is for."""

    name: str
    partitions: int
    config: Mapping[str, str]
    what: str


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a plan, as it is shown: what will happen, why, and details (DDL, changed settings). ``by_hand`` names who has to do it
    where the service's role may not (empty: register does it)."""

    kind: Literal["source", "topic", "connector", "snapshot"]
    what: str
    why: str
    detail: tuple[str, ...] = ()
    by_hand: str = ""


@dataclass(frozen=True, slots=True)
class RegistrationPlan:
    """Everything that registration would do; empty ``steps`` when all is in place.

    ``snapshots`` are the tables that get an incremental snapshot, since the connector runs already; of these, ``returning`` have events
    of an earlier registration in their topic: deletes in between were not captured, so their target needs a resync, and the notification
    topic is told so (notifications.py). ``initial`` is true when the connector is new and takes its own snapshot of all tables.
    ``skip`` says why the log can only be gone on with at its end (empty: it can be read on); the notification topic is told of that too,
    since the running service has to read every table anew then.
    ``direct``: the service reads the rows of tables that are kept as rows itself, or asks for those of the others; a new connector only
    streams.
    ``refused`` says which tables cannot be replicated: the steps are those for the others, and none is done while there is one.
    """

    names: Names
    steps: tuple[Step, ...]
    statements: tuple[Statement, ...]
    topics: tuple[Topic, ...]
    connector: ConnectorPlan
    wake: bool
    initial: bool
    snapshots: tuple[TableId, ...] = ()
    returning: tuple[TableId, ...] = ()
    options: Mapping[str, str] = field(default_factory=dict, repr=False)
    """What the configuration itself says of the connector (connect.options)."""
    skip: str = ""
    direct: bool = False
    refused: tuple[Finding, ...] = ()

    @property
    def pending(self) -> bool:
        return bool(self.steps or self.refused)

    @property
    def by_hand(self) -> tuple[Statement, ...]:
        return tuple(s for s in self.statements if not s.allowed)


@dataclass(frozen=True, slots=True)
class Registered:
    """What registration did. ``snapshotting`` tables have a snapshot under way and are complete when Debezium's notification says so
    (``signal_ids``: the id that the notification of each incremental snapshot carries). ``initial``: the connector begins anew with a
    snapshot of all tables, so a target that holds rows of an earlier one needs a resync."""

    status: ConnectorStatus
    initial: bool
    snapshotting: tuple[TableId, ...]
    signal_ids: Mapping[TableId, str] = field(default_factory=dict)


def names_of(config: Config) -> Names:
    return config.names


def connect_password(config: Config) -> str | None:
    """The source's password as Connect shall get it: a reference for ``connect.secrets: env``, text for inline. For file, a reference
    must stand in connect.options. Raises ConfigError where there is no variable to refer to."""
    options = config.connect.options.reveal()
    password = config.source.url.password
    if "database.password" in options or password is None:
        return None
    if config.connect.secrets == "inline":
        return password.reveal()
    if config.connect.secrets == "file":
        raise ConfigError(
            "connect.secrets is file, and connect.options does not say which file",
            hint="add to connect.options:  database.password: ${file:/run/secrets/source.properties:password}",
        )
    if password.variable is None:
        raise ConfigError(
            "connect.secrets is env, but the password of source.url does not come from a variable that Connect could read too",
            hint=f"write source.url as {config.source.url.scheme}://user:${{SHOP_PASSWORD}}@host/database and set SHOP_PASSWORD for"
            " Connect's worker as well, or use connect.secrets: inline",
        )
    return f"${{env:{password.variable}}}"


def connect_options(config: Config) -> dict[str, str]:
    """connect.options as Connect shall get them: what is secret by its name goes as a reference, as text only with ``secrets: inline``.
    Raises ConfigError where there is none to refer to."""
    made = config.connect.options.reveal()
    if config.connect.secrets == "inline":
        return made
    for name, value in config.connect.options.items():
        if isinstance(value, Secret) and SECRET_NAME.search(name):
            if config.connect.secrets == "file" or value.variable is None:
                raise ConfigError(
                    f"connect.options.{name} would stand as text in Connect's configuration topic",
                    hint=f"write a reference that the worker resolves, {name}: ${{env:NAME}} or ${{file:/path:key}};"
                    " or use connect.secrets: inline",
                )
            made[name] = f"${{env:{value.variable}}}"
    return made


def secret_options(config: Config) -> frozenset[str]:
    """The keys of connect.options whose values came from variables."""
    return frozenset(key for key, value in config.connect.options.items() if isinstance(value, Secret))


def chosen(config: Config, tables: Collection[TableId], catalog: Sequence[SourceTable]) -> tuple[SourceTable, ...]:
    """``tables`` as the source's catalog has them, without the columns that the configuration leaves out, ordered by id. Raises ConfigError
    where the source lacks one."""
    wanted = set(tables)
    found = tuple(
        replace(t, log=taken_as_log(config, t.table)).without(settings_of(config, t.table).columns.exclude)
        for t in catalog
        if t.table in wanted
    )
    lacking = sorted(str(t) for t in wanted - {t.table for t in found})
    if lacking:
        raise ConfigError(f"the source has no table {', '.join(lacking)}", hint="correct the keys of tables")
    return without_columns(found, _text(config.connect.options.get("column.exclude.list", "")))


def connector_request(
    config: Config,
    tables: Sequence[SourceTable],
    catalog: Sequence[SourceTable],
    signals: TableId | None,
    existing: Mapping[str, str] | None,
) -> ConnectorRequest:
    """What the connector's configuration for ``tables`` is made of; ``catalog`` holds all tables of the source,
    ``signals`` is as in Preparation."""
    return ConnectorRequest(
        names=config.names,
        tables=tables,
        siblings=[t.table for t in catalog],
        bootstrap_servers=config.kafka.bootstrap_servers,
        signals=signals,
        password=connect_password(config),
        host=config.source.connect_host,
        port=config.source.connect_port,
        existing=existing,
        options={**wires.added(config), **connect_options(config)},
        snapshot=config.defaults.snapshot != "direct",
    )


def topics_of(config: Config, tables: Sequence[SourceTable], signals: TableId | None) -> tuple[Topic, ...]:
    """The topics of a pipeline; one for signals only where no table takes them. Nothing may ever be compacted away: a replay would then
    give another result."""
    names = config.names
    keep = {"cleanup.policy": "delete", "max.message.bytes": str(MESSAGE_BYTES_MAX)}
    short = {"cleanup.policy": "delete", "retention.ms": str(_DAY_MS)}
    made = [
        Topic(names.topic(t.table), TABLE_PARTITIONS, keep, f"events of {t.table}")
        if t.key
        else Topic(names.topic(t.table), 1, keep, f"events of {t.table}, which has no key,")
        for t in tables
    ]
    if any(not t.key for t in tables):
        made.append(Topic(names.transaction_topic, 1, short, "the connector's marks of transactions"))
    # Debezium reads signals from partition 0 alone, and notifications are in order within one partition only.
    if signals is None:
        made.append(Topic(names.signal_topic, 1, {"cleanup.policy": "delete"}, "signals to the connector"))
    else:
        made.append(Topic(names.topic(signals), 1, short, "the connector's marks in the table of signals"))
    made.append(Topic(names.notification_topic, 1, {"cleanup.policy": "delete"}, "notifications of the connector"))
    made.append(Topic(names.heartbeat_topic, 1, short, "heartbeats"))
    made.append(Topic(names.message_topic, 1, short, "heartbeats as they stand in the source's log"))
    return tuple(made)


def plan_registration(
    config: Config,
    tables: Collection[TableId],
    source: Source,
    connect: KafkaConnect,
    kafka: KafkaAdmin,
    *,
    snapshot: Collection[TableId] = (),
    refuse: Callable[[Sequence[SourceTable]], Iterable[Finding]] = lambda _: (),
) -> RegistrationPlan:
    """What has to be done so that exactly ``tables`` are streamed. ``snapshot`` names tables that shall be snapshotted though the
    connector captures them already; ``refuse`` has reasons against tables beside the source's own. Changes nothing.
    """
    names = config.names
    catalog = source.tables()
    wanted_tables = chosen(config, tables, catalog)
    refused = [*source.obstacles(), *(f for t in wanted_tables if (f := source.refusal(t)) is not None), *refuse(wanted_tables)]
    facts = tuple(t for t in wanted_tables if f"table {t.table}" not in {f.name for f in refused})
    if refused and not facts:
        return RegistrationPlan(names, (), (), (), ConnectorPlan(names.connector, "nothing", (), {}), False, False, refused=tuple(refused))
    existing = connect.config(names.connector)
    status = connect.status(names.connector) if existing is not None else None
    offsets = connect.offsets(names.connector)
    # Stopped without offsets: an earlier registration was interrupted before the connector ever ran.
    initial = existing is None or (status is not None and status.state == "STOPPED" and not offsets)
    skip = "" if initial else _skip(names, status, offsets, source)
    preparation = source.preparation(facts, names)
    statements, signals = preparation.statements, preparation.signals
    there = kafka.topics()
    topics = tuple(t for t in topics_of(config, facts, signals) if t.name not in there)
    wanted_config = source.connector_config(connector_request(config, facts, catalog, signals, existing))
    wires.require_readable(config, wanted_config, source.events)
    wires.require_converter(connect, wanted_config)
    connector = connect.plan(wanted_config, secret_options(config))
    direct = config.defaults.snapshot == "direct"
    added = [] if existing is None or initial else sorted({t.table for t in facts} - source.registered(existing))
    loaded = {t.table for t in facts if direct and not taken_as_log(config, t.table)}
    wanted = [] if initial else sorted({*added, *snapshot} - loaded)
    refused += [replace(f, cure=f.cure + _INITIAL) for t in wanted if (f := source.snapshot_refusal(t)) is not None]
    described = kafka.describe([n for t in added if (n := names.topic(t)) in there]) if added else {}
    returning = [t for t in added if _holds_events(described.get(names.topic(t)))]
    wake = status is not None and status.overall in {"FAILED", "STOPPED", "PAUSED"}
    steps = [
        *_source_steps(statements),
        *(Step("topic", f"create topic {t.name} ({t.partitions} partition{'s' * (t.partitions > 1)})", t.what) for t in topics),
        *_connector_steps(connector, status, facts, f"{skip}; {_READ_ANEW}" if skip else "", direct=direct),
        *(_snapshot_step(t, _snapshot_reason(t, added, returning), keyed={f.table for f in facts if f.key}) for t in wanted),
    ]
    return RegistrationPlan(
        *(names, tuple(steps), statements, topics, connector, wake, initial, tuple(wanted), tuple(returning)),
        options=connect_options(config),
        skip=skip,
        direct=direct,
        refused=tuple(refused),
    )


def _skip(names: Names, status: ConnectorStatus | None, offsets: Offsets, source: Capture) -> str:
    """Why the connector can only go on at the end of the log; empty where it can read on. A new one has no slot yet."""
    streams = _streams(offsets, source)
    if (gap := source.gap(names)) is not None and (streams or source.hold(names) is not None):
        return gap
    return next((f.message for f in (status.failures if status else ()) if f.skips), "") if streams else ""


def _streams(offsets: Offsets, source: Capture) -> bool:
    """Whether a connector is beyond its initial snapshot. What runs may have stored less than that yet, what was stopped has stored all."""
    return bool(offsets) and not source.progress(offsets).snapshot


def apply_registration(
    plan: RegistrationPlan,
    source: Source,
    connect: KafkaConnect,
    kafka: KafkaAdmin,
    say: Callable[[str], None] = lambda _: None,
) -> Registered:
    """Carries the plan out and returns when the connector runs; safe to call again after any failure.

    Raises ConfigError (table_refused), with every reason, before it changes anything where a table cannot be replicated, CdcError
    (needs_ddl) before it changes anything where a person has to run DDL first, CdcError (snapshotting) before it changes
    the connector where that is in its initial snapshot, and what the parts raise.
    """
    _refuse(plan.refused)
    if plan.by_hand:
        ddl = "\n".join(f"{s.sql};" for s in plan.by_hand)
        raise CdcError(f"the source's role may not do what is missing; {plan.by_hand[0].by_whom} runs:", hint=ddl, code="needs_ddl")
    for statement in plan.statements:
        say(statement.sql)
        source.execute(statement)
    for topic in plan.topics:
        say(f"create topic {topic.name}")
        kafka.create_topics([topic.name], partitions=topic.partitions, config=topic.config)
    if plan.connector.kind != "nothing":
        connect.require_valid(plan.connector.config)
    if plan.connector.kind == "update" and not plan.wake:
        _await_initial_snapshot(plan.names.connector, source, connect)
    name, ids = plan.names.connector, dict.fromkeys(plan.snapshots, f"added-{uuid.uuid4()}")
    if plan.connector.kind == "update" or ((plan.wake or plan.skip) and plan.connector.kind == "nothing"):
        say(f"stop connector {name}")
        connect.stop(name)
        offsets = connect.offsets(name)
        if plan.skip and _streams(offsets, source):  # Within its initial snapshot it begins anew, and its log with it.
            _skip_log(plan.names, source, connect, kafka, say)
        elif back := source.set_back(offsets):
            connect.change_offsets(name, back)
    # Before the connector reads a row of them: what its rows are then is told by these.
    reads, now_ms = source.registered(plan.connector.config) if plan.initial else plan.snapshots, round(time.time() * 1000)
    known = source.identities(sorted(reads), plan.names, plan.connector.config, plan.options).tables.items() if reads else ()
    notes = [identity(f"identity-{uuid.uuid4()}", source.collection(table), text, now_ms) for table, text in known]
    notes += [returning(f"returning-{uuid.uuid4()}", source.collection(table), now_ms) for table in plan.returning]
    if notes:
        kafka.send(plan.names.notification_topic, notes)
    for table in ids:
        say(f"ask for a snapshot of {table}")
    _ask_snapshots(plan.connector.config, ids, source, kafka)
    if plan.connector.kind != "nothing":
        say(f"{plan.connector.kind} connector {name}")
        connect.apply(plan.connector)
    initial = _settle_new(plan, source, connect, kafka, say) if plan.initial else False
    if initial and plan.direct:
        _skip_log(plan.names, source, connect, kafka, say)  # Of which the service is told: it has every table read.
        initial = False
    if plan.initial or plan.wake or plan.skip or plan.connector.kind == "update":
        say(f"start connector {name}")
        connect.resume(name)
    status = _await_start(plan.names, source, connect, initial=initial, seconds=WATCH_SECONDS if plan.wake or plan.skip else 0.0)
    captured = tuple(sorted(source.registered(plan.connector.config)))
    return Registered(status, initial, captured if initial else plan.snapshots, ids)


def request_snapshots(
    names: Names,
    tables: Collection[TableId],
    source: Source,
    connect: KafkaConnect,
    kafka: KafkaAdmin,
    ids: Mapping[TableId, str] | None = None,
    *,
    afresh: bool = False,
) -> Mapping[TableId, str]:
    """Asks the connector for an incremental snapshot of each table; returns the ids of the signals, which its notifications carry unless
    another signal comes meanwhile (notifications.py says more). ``ids`` gives them; tables with one id are asked for in one signal.
    A snapshot of which no notification comes, since the connector failed meanwhile, has to be asked for again. ``afresh`` lets the
    connector begin anew where the log goes on, after one that failed: it knows a table's columns as the log told of them last, by which
    it may find neither them nor the key, and reads the catalog when it begins. Raises ConfigError (table_refused), and asks for none,
    where one of them would end the connector."""
    config = connect.config(names.connector)
    if config is None:
        raise CdcError(f"connector {names.connector} does not exist", hint="cdc register", code="not_registered")
    _refuse(source.snapshot_refusal(t) for t in tables)
    fresh = str(uuid.uuid4())
    asked = {t: fresh if ids is None else ids[t] for t in sorted(tables)}
    if afresh and not source.progress(connect.offsets(names.connector)).snapshot:
        connect.stop(names.connector)
        try:
            if back := source.set_back(connect.offsets(names.connector)):
                connect.change_offsets(names.connector, back)
            _ask_snapshots(config, asked, source, kafka)
        finally:
            connect.resume(names.connector)
        return asked
    _ask_snapshots(config, asked, source, kafka)
    return asked


def _ask_snapshots(config: Mapping[str, str], ids: Mapping[TableId, str], source: Capture, kafka: KafkaAdmin) -> None:
    for signal_id in dict.fromkeys(ids.values()):
        record = source.ask_snapshot(config, [t for t, id_ in ids.items() if id_ == signal_id], signal_id)
        if record is not None:
            kafka.send(record.topic, [(record.key, record.value)])


def plan_removal(config: Config, source: Capture, connect: KafkaConnect) -> tuple[Step, ...]:
    """What ``unregister`` would take away: connector, its offsets, and what the source holds for it. Topics and targets stay."""
    names = config.names
    steps = []
    if connect.config(names.connector) is not None:
        steps.append(Step("connector", f"delete connector {names.connector} and its offsets", "nothing is captured any more"))
    return (*steps, *_source_steps(source.release(names)))


def unregister(config: Config, source: Capture, connect: KafkaConnect, say: Callable[[str], None] = lambda _: None) -> None:
    """Deletes the connector with its offsets, then slot and publication; whatever is gone already is no error.

    Offsets go too: a connector made again under this name would otherwise go on behind a slot that is no more, and skip what lies between.
    Raises CdcError (needs_ddl) at the end where the role may not drop what is left.
    """
    names = config.names
    if connect.config(names.connector) is not None:
        say(f"delete connector {names.connector}")
        connect.stop(names.connector)
        connect.forget_offsets(names.connector)
        connect.delete(names.connector)
    left = []
    for statement in source.release(names):
        if not statement.allowed:
            left.append(statement)
            continue
        say(statement.sql)
        source.execute(statement)
    if left:
        ddl = "\n".join(f"{s.sql};" for s in left)
        whom = ", ".join(dict.fromkeys(s.by_whom for s in left))
        raise CdcError(f"the source's role may not drop what is left; {whom} runs:", hint=ddl, code="needs_ddl")


def _skip_log(names: Names, source: Source, connect: KafkaConnect, kafka: KafkaAdmin, say: Callable[[str], None]) -> None:
    """Lets a stopped connector go on at the end of the log. The service is told before the connector can come there."""
    say(f"let connector {names.connector} go on at the end of the log")
    before = connect.offsets(names.connector)
    if source.position() < (source.progress(before).position or 0):
        raise CdcError(
            "the source's log ends before what the connector has sent already: the source was restored, or failed over to one that lagged",
            hint="cdc register --delete, then cdc register, then cdc resync of each table that asks for it",
            code="source_went_back",
        )
    position, offsets = source.skip(names, before)
    kafka.send(names.notification_topic, [skipped(f"skipped-{uuid.uuid4()}", position, round(time.time() * 1000))])
    if offsets:
        connect.change_offsets(names.connector, offsets)


def _settle_new(plan: RegistrationPlan, source: Source, connect: KafkaConnect, kafka: KafkaAdmin, say: Callable[[str], None]) -> bool:
    """Before a new connector starts: what an earlier one of this name left. Returns whether it will take an initial snapshot."""
    hold = source.hold(plan.names)
    lost = hold is None or hold.status == "lost"
    if connect.offsets(plan.names.connector):
        if not lost:
            if source.gap(plan.names) is not None:
                _skip_log(plan.names, source, connect, kafka, say)
            return False
        say("forget the offsets of an earlier connector: its slot is gone, so it must begin with a snapshot")
        connect.forget_offsets(plan.names.connector)
    if hold is not None:
        say("drop the slot of an earlier connector: the new one begins with a snapshot, and its own slot")
        for statement in source.release(plan.names):
            if statement.subject == "slot":
                source.execute(statement)
    return True


def _await_start(names: Names, source: Capture, connect: KafkaConnect, *, initial: bool, seconds: float) -> ConnectorStatus:
    """Waits until the connector reads the source, and has for ``seconds``. Connect says RUNNING before a task has tried anything, so the
    source is asked too: in an initial snapshot the slot is there, behind it somebody reads it."""
    deadline = time.monotonic() + CONNECTOR_START_SECONDS
    since = None
    while True:
        try:
            status = connect.await_running(names.connector, CONNECTOR_START_SECONDS)
        except Unavailable as error:
            raise source.awaited(names) or error from None
        hold = source.hold(names)
        now = time.monotonic()
        if hold is not None and (hold.active or initial or source.progress(connect.offsets(names.connector)).snapshot):
            since = now if since is None else since
            if now - since >= seconds:
                return status
        else:
            since = None
        if now > deadline:
            raise source.awaited(names) or Unavailable(
                f"connector {names.connector} runs, but does not read its slot within {CONNECTOR_START_SECONDS:.0f} s",
                hint="cdc check says whether the slot can be read, and what waits; see the worker's log too",
                code="connector_slow",
            )
        time.sleep(0.1)


def _await_initial_snapshot(name: str, source: Capture, connect: KafkaConnect) -> None:
    """A connector that is stopped in its initial snapshot begins it anew, and rows deleted in between stay behind as ghosts."""
    deadline = time.monotonic() + SNAPSHOT_PATIENCE_SECONDS
    while source.progress(connect.offsets(name)).snapshot:
        if time.monotonic() > deadline:
            raise CdcError(
                f"connector {name} is in its initial snapshot and must not be changed before that ends",
                hint="cdc register again when cdc status shows its tables streaming",
                code="snapshotting",
            )
        time.sleep(0.2)


def _refuse(findings: Iterable[Finding | None], otherwise: str = _LEFT_OUT) -> None:
    if refused := [f for f in findings if f is not None]:
        raise ConfigError(
            "\n".join(f"{f.name}{': ' if f.name == 'tables' else ' '}{f.message}" for f in refused),
            hint="\n".join(dict.fromkeys(f.cure for f in refused)) + otherwise,
            code="table_refused",
        )


def _source_steps(statements: Sequence[Statement]) -> list[Step]:
    return [
        Step("source", s.sql.split(" FOR TABLE ")[0].split(" ADD TABLE ")[0], s.why, (s.sql + ";",), "" if s.allowed else s.by_whom)
        for s in statements
    ]


def _connector_steps(
    plan: ConnectorPlan, status: ConnectorStatus | None, tables: Sequence[SourceTable], skip: str, *, direct: bool
) -> list[Step]:
    detail = tuple(f"{c.key}: {_shown(c.before)} -> {_shown(c.after)}" for c in plan.changes)
    if plan.kind == "create":
        begins = f"it takes a snapshot of {len(tables)} tables, then streams"
        why = f"it does not exist; {'it streams, and the service reads the first rows itself' if direct else begins}"
        return [Step("connector", f"create connector {plan.name}", why, detail)]
    where = " and let it go on at the end of the log" if skip else ""
    if plan.kind == "update":
        why = f"its configuration differs in {', '.join(c.key for c in plan.changes)}"
        return [Step("connector", f"change connector {plan.name}{where}", "; ".join(filter(None, (why, skip))), detail)]
    stands = f"it is {status.overall.lower()}" if status is not None and status.overall in {"FAILED", "STOPPED", "PAUSED"} else ""
    if stands or skip:
        problems = status.problems if status is not None else ()
        return [Step("connector", f"start connector {plan.name}{where}", "; ".join(filter(None, (stands, skip))), problems)]
    return []


def _shown(value: str | None) -> str:
    return "(not set)" if value is None else value


def _snapshot_step(table: TableId, why: str, keyed: Collection[TableId]) -> Step:
    if table in keyed:
        return Step("snapshot", f"snapshot {table} while the stream goes on", why)
    return Step("snapshot", f"begin the log of {table} with its next change", f"{why}; rows of a table without a key cannot be read then")


def _snapshot_reason(table: TableId, added: Sequence[TableId], returning: Sequence[TableId]) -> str:
    if table in returning:
        return "it comes back: its topic holds events of an earlier registration, so its target needs a resync"
    return "it is new to a connector that runs" if table in added else "asked for"


def _holds_events(topic: Ends | None) -> bool:
    return topic is not None and any(end > 0 for _, end in topic.ends.values())


def _text(value: str | Secret) -> str:
    return value.reveal() if isinstance(value, Secret) else value
