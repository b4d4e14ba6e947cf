"""The contract of a source: what it says of its tables (``Catalog``), how their rows are read (``RowReader``), and how its log comes to
Kafka (``Capture``). Who needs one of the three names that one.

A source is a folder in connectors/sources, or a part of another package (core.plugins), found by the scheme of its URL and imported only
when it is used. Nothing else in the service knows which database it reads from.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Protocol

import pyarrow as pa

from cdc_service.core.errors import ConfigError, Unavailable
from cdc_service.core.identity import Identities, Judgement
from cdc_service.core.names import Names as Names
from cdc_service.core.types import TableId, TableSchema
from cdc_service.ports.capture import ConnectorProgress, Failures, LogHold
from cdc_service.ports.events import EventModel
from cdc_service.ports.reader import Load, Scan, Snapshot

MESSAGE_BYTES_MAX = 16 * 2**20
"""Largest event that the connector may write and the topics take. Kafka's default of 1 MiB stops a connector at its first large row."""

Offsets = Sequence[tuple[Mapping[str, object], Mapping[str, object] | None]]
"""What Connect keeps of how far a connector is: (partition, offset) pairs."""


class Identity(StrEnum):
    """What an UPDATE or DELETE in the log says about the old row: its key, all of it, another index's columns, or nothing."""

    KEY = "key"
    FULL = "full"
    INDEX = "index"
    NOTHING = "nothing"


@dataclass(frozen=True, slots=True)
class Hazard:
    """What the connector cannot carry exactly of a column. ``blocking``: one such value would stop or falsify the stream, so a table that
    has the column is refused; else the values concerned are lost in a way that the message tells, or quarantined."""

    message: str
    cure: str
    blocking: bool


@dataclass(frozen=True, slots=True)
class SourceColumn:
    """A column as the source's catalog has it; ``type`` is the source's own spelling with its modifiers, e.g. ``numeric(10,2)``, and
    ``json`` is true where its values arrive as JSON, whatever the source calls them. ``carried`` is false where the connector's events
    have no such column. ``base`` is the type beneath domains by its bare name, with ``[]`` where it is an array of it."""

    name: str
    type: str
    nullable: bool
    generated: bool
    hazard: Hazard | None = None
    carried: bool = True
    json: bool = False
    base: str = ""


@dataclass(frozen=True, slots=True)
class SilentPart:
    """A table whose rows a query of its ``parent`` shows too, and whose changes never come with the parent's; ``kind`` says why, ``cure``
    is the statement that parts the two."""

    table: TableId
    kind: str
    cure: str


@dataclass(frozen=True, slots=True)
class SourceTable:
    """A table as the source's catalog has it.

    ``key`` names the primary key's columns in key order (empty: none). ``identity_columns`` are the columns by which the log names the
    old row. ``root`` is the partitioned table that a partition belongs to: its changes arrive under the root's name. ``rows`` is the
    planner's estimate. ``logged`` is false for a table whose changes never reach the log. ``row_security`` is true where policies decide
    which rows the role sees. ``log`` is true where the configuration takes the table without a key, as a log of its changes. ``alike``
    are the columns whose names differ by case only, whether the connector leaves them out or not.
    """

    table: TableId
    columns: tuple[SourceColumn, ...]
    key: tuple[str, ...]
    key_name: str
    key_deferrable: bool
    identity: Identity
    identity_columns: tuple[str, ...]
    partitioned: bool
    root: TableId | None
    logged: bool
    rows: int
    readable: bool
    owned: bool
    row_security: bool = False
    silent: tuple[SilentPart, ...] = ()
    log: bool = False
    alike: tuple[str, ...] = ()

    @property
    def generated(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.columns if column.generated)

    def without(self, names: Collection[str]) -> SourceTable:
        """The same as if it had no columns of these names."""
        return replace(self, columns=tuple(c for c in self.columns if c.name not in names)) if names else self


def without_columns(tables: Iterable[SourceTable], exclude: str) -> tuple[SourceTable, ...]:
    """``tables`` without the columns that the option ``column.exclude.list`` (comma-separated regular expressions on schema.table.column)
    leaves out, key columns kept. Raises ConfigError where an expression cannot be read."""
    try:
        patterns = [re.compile(p.strip(), re.IGNORECASE) for p in re.split(r"(?<!\\),", exclude) if p.strip()]
    except re.error as error:
        raise ConfigError("connect.options: column.exclude.list is not a list of regular expressions", hint=str(error)) from error

    def kept(table: SourceTable, column: SourceColumn) -> bool:
        name = f"{table.table.schema}.{table.table.name}.{column.name}"
        return column.name in table.key or not any(p.fullmatch(name) for p in patterns)

    return tuple(replace(table, columns=tuple(c for c in table.columns if kept(table, c))) for table in tables)


class Level(StrEnum):
    ERROR = "error"
    WARNING = "warning"
    INFO = "info"


@dataclass(frozen=True, slots=True)
class Finding:
    """One pre-flight check. ``ok`` is false when something is to be done, ``level`` says how bad that is, ``cure`` is what to do or the
    text to paste (DDL, a worker setting). ``names`` are all that are meant where the message names ``some`` of them only."""

    name: str
    ok: bool
    message: str
    cure: str = ""
    level: Level = Level.ERROR
    names: tuple[str, ...] = ()

    @property
    def failed(self) -> bool:
        return not self.ok and self.level is Level.ERROR


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement that the source needs. ``subject`` is what it makes or drops (slot, publication); ``allowed`` is false where the role
    may not run it: then ``by_whom`` says who may."""

    subject: str
    sql: str
    why: str
    allowed: bool
    by_whom: str = ""


@dataclass(frozen=True, slots=True)
class Preparation:
    """What the source lacks before a connector may stream. ``signals`` is the table through which the connector is asked for snapshots,
    once the statements ran; None where the role may not write to the source: then a Kafka topic takes its place."""

    statements: tuple[Statement, ...]
    signals: TableId | None


@dataclass(frozen=True, slots=True)
class SignalRecord:
    """A record of the signal topic."""

    topic: str
    key: str
    value: bytes


@dataclass(frozen=True, slots=True)
class Fill:
    """What rows that existed before a column was added hold in it. Unknown: only reading the rows tells. ``text`` is in the form that
    ``reread`` gives (None: NULL)."""

    known: bool
    text: str | None = None


UNKNOWN_FILL = Fill(known=False)


@dataclass(frozen=True, slots=True)
class Reread:
    """Rows read again from the source, one for each key asked for and in that order.

    ``rows`` has string columns, in the textual form of the connector's events; ``found`` is false where the row is gone (then its delete
    is on its way). ``rows`` show every change of these rows up to ``position`` that was ever committed, and maybe later ones; any change
    after ``position`` will still arrive as an event, one up to it may arrive again.
    ``unreadable`` are the columns of which some row holds a value that text cannot give (NULL in ``rows``), and ``where`` the rows, by
    these columns; without an entry it is every row. ``misshapen`` are those of them that hold arrays of another form than a list.
    """

    rows: pa.Table
    found: pa.BooleanArray
    position: int
    unreadable: tuple[str, ...] = ()
    where: Mapping[str, pa.BooleanArray] = field(default_factory=dict)
    misshapen: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class ConnectorRequest:
    """What a connector configuration is made of, apart from what the source knows itself.

    ``siblings`` are all tables of the source, registered or not; ``signals`` is as in Preparation. ``password`` is text or a reference
    that Connect resolves (``${env:..}``, ``${file:..}``); it is never printed. ``host`` and ``port`` are the source as Connect sees it
    (None: as we do). ``existing`` is the configuration of the running connector: what must not change under it (the placeholder of unsent
    values) is taken from there. ``options`` win, except where exactness hangs on a setting. Without ``snapshot`` the connector sends
    changes only: a new one begins where the pipeline's hold stands.
    """

    names: Names
    tables: Sequence[SourceTable]
    siblings: Sequence[TableId]
    bootstrap_servers: str
    signals: TableId | None = None
    password: str | None = field(default=None, repr=False)
    host: str | None = None
    port: int | None = None
    existing: Mapping[str, str] | None = field(default=None, repr=False)
    options: Mapping[str, str] = field(default_factory=dict, repr=False)
    snapshot: bool = True


class Catalog(Protocol):
    """What the source says of its tables and of its log. Nothing here is called once per row or per batch."""

    name: str

    def tables(self, only: TableId | None = None) -> tuple[SourceTable, ...]:
        """Every table outside the system's schemas (or ``only`` this one), partitions included, ordered by id; whether it can be replicated
        or not."""
        ...

    def schema(self, table: SourceTable, options: Mapping[str, str]) -> TableSchema | None:
        """The schema that a decoder will learn from the table's events, under a connector with these ``options``: for a table that has had
        none yet. None where the form of some column in events is not certain."""
        ...

    def identities(
        self, tables: Sequence[TableId], names: Names, connector: Mapping[str, str] | None, options: Mapping[str, str]
    ) -> Identities:
        """The identity of each table as the pipeline's connector (its configuration; None: not known) gets its changes. ``options`` are
        those that the pipeline's configuration gives the connector: what they leave out is left out on purpose. One question for all."""
        ...

    def judge(self, table: TableId, before: str | None, after: str | None) -> Judgement:
        """What the identity ``after`` (None: the table is gone) means for rows that were read under ``before`` (None: there are none yet).
        Asks nobody."""
        ...

    def refusal(self, table: SourceTable) -> Finding | None:
        """Why ``table`` cannot be replicated exactly, or None. A refused table must never be added to what the source publishes: the
        source's own updates could fail."""
        ...

    def fill_of_added_column(self, table: TableId, column: str) -> Fill:
        """What rows older than ``column`` got when it was added, where the catalog tells it exactly."""
        ...

    def position(self) -> int:
        """The end of the log now, as an integer that compares with the positions of events. All that committed before the call lies
        at or before it."""
        ...

    def parse_position(self, text: str) -> int:
        """The source's own spelling (PostgreSQL: ``16/B374D848``), or a decimal number. Raises ConfigError on anything else."""
        ...

    def format_position(self, position: int) -> str: ...


class RowReader(Protocol):
    """The source's rows as they are now, read beside the stream: by comparisons, and where an event does not tell a value."""

    def scan(self, table: TableId) -> Scan:
        """Opens a snapshot of the table as it is now."""
        ...

    def load(self, table: TableId) -> Load:
        """Opens a snapshot of the table as it is now, to load it from."""
        ...

    def snapshot(self, tables: Sequence[TableId]) -> Snapshot:
        """Opens one snapshot of all these tables as they are now, for few rows of each."""
        ...

    def settled(self, table: TableId) -> int:
        """A position; a scan opened after the call shows every change of the table up to it that was ever committed. Raises Unavailable
        (source_busy) while a transaction with uncommitted changes of the table stays open."""
        ...

    def settle(self, tables: Sequence[TableId]) -> tuple[int, Mapping[TableId, Unavailable]]:
        """One such position for several tables, and of which of them it does not hold, each with what ``settled`` would raise."""
        ...

    def reread(self, table: TableId, keys: pa.Table, columns: Sequence[str]) -> Reread:
        """Reads ``columns`` of the rows with these keys (columns named as the key's); one that the source has dropped is NULL, as its
        readers will see it. Meant for few rows: at most 10,000 keys a call.
        Raises Unavailable (source_busy) while a transaction with uncommitted changes of the table stays open."""
        ...

    def misread(self, table: TableId, key: Sequence[str], rows: pa.Table) -> pa.Int8Array | None:
        """Compares ``rows``, which the connector's snapshot brought, with what the source holds now, in those columns whose values such a
        snapshot may change: for each row a core.order.Seen. None for a table without such columns."""
        ...


class Capture(Protocol):
    """How the source's log comes to Kafka: what its connector needs, how it is configured, where it stands and what its failures mean."""

    connector_class: str
    events: EventModel
    failures: Failures

    def check(self, tables: Sequence[SourceTable], names: Names) -> list[Finding]:
        """Pre-flight facts about the server, the role and ``tables``, each failure with its cure. Changes nothing; reads tables of up to a
        million rows where only their values tell."""
        ...

    def obstacles(self) -> list[Finding]:
        """What at the source ends the connector at its start, whichever tables it captures; each with its cure."""
        ...

    def avoid(self, table: SourceTable, column: str) -> str:
        """What rids the target of a column of this name: another name at the source or, where it is not in the key, the line of the
        configuration that has the connector leave it out."""
        ...

    def snapshot_refusal(self, table: TableId) -> Finding | None:
        """Why the connector may not be asked for an incremental snapshot of ``table``, or None; its initial snapshot may hold it still."""
        ...

    def preparation(self, tables: Sequence[SourceTable], names: Names) -> Preparation:
        """The statements that are missing before a connector may stream ``tables``, in order; none when nothing is."""
        ...

    def release(self, names: Names) -> list[Statement]:
        """The statements that take back what a pipeline holds at the source; empty when it holds nothing. The connector must be gone."""
        ...

    def execute(self, statement: Statement) -> None:
        """Runs one statement of ``preparation`` or ``release``. Raises ConfigError, with the statement to paste, where it is refused."""
        ...

    def hold(self, names: Names) -> LogHold | None:
        """What holds the log for the pipeline, or None where nothing does (never registered, or lost)."""
        ...

    def gap(self, names: Names) -> str | None:
        """Why the log cannot be read on from where the pipeline's hold stands (it is gone, lost, or older than what publishes), or None."""
        ...

    def skip(self, names: Names, offsets: Offsets) -> tuple[int, Offsets]:
        """Lets the hold begin at the end of the log, made anew where there is none; that position, and a stopped connector's ``offsets``
        as they have to be then. What was committed before it is never sent. Raises Unavailable (source_busy), naming the transaction,
        while one that is open stands in the way."""
        ...

    def awaited(self, names: Names) -> Unavailable | None:
        """What the making of the pipeline's hold waits for, where it is not made yet: an open transaction, with what ends it."""
        ...

    def connector_config(self, request: ConnectorRequest) -> dict[str, str]:
        """The whole configuration of the connector, by Debezium's own names. The same request and ``existing`` give the same result.
        Raises ConfigError for options that would lose values or events."""
        ...

    def registered(self, config: Mapping[str, str]) -> frozenset[TableId]:
        """The tables that a connector configuration made by ``connector_config`` captures."""
        ...

    def collection(self, table: TableId) -> str:
        """The table as the connector's notifications name it. Tables that share a name share a topic, and are not registered together."""
        ...

    def names_collection(self, text: str, table: TableId) -> bool:
        """Whether ``text``, out of a notification, means the table."""
        ...

    def ask_snapshot(self, config: Mapping[str, str], tables: Sequence[TableId], signal_id: str) -> SignalRecord | None:
        """Asks the connector of ``config`` for an incremental snapshot of ``tables``; its notifications carry ``signal_id``. Returns None
        when the signal was written at the source, else the record that the caller has to write. May be called while the connector is
        stopped: it sees the signal when it starts."""
        ...

    def progress(self, offsets: Offsets) -> ConnectorProgress:
        """Reads Connect's offsets (partition, offset) of this source's connector."""
        ...

    def set_back(self, offsets: Offsets) -> Offsets:
        """Those of a stopped connector's offsets that have to be set back, as they have to be, so that it loses nothing when it goes on:
        a connector that was stopped among the rows of one log record would skip the rest of them. Events that come again do no harm."""
        ...


class Source(Catalog, RowReader, Capture, Protocol):
    """One source database, which has all three: one object, because they share its connections and what was read of its catalog.

    Every call opens what it needs and leaves no transaction behind; each raises ``Unavailable`` when the server cannot be reached,
    ``ConfigError`` when it refuses who we are."""

    def close(self) -> None: ...
