"""Types of the line from Kafka record to merged row: identities, schemas, batches and what a merge gives back.

Offsets travel with the data and always mean "next to read". Rows are Arrow columns from decode to merge; nothing here holds a Python
object per row, except the rejected records, which are few and leave the line.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum, StrEnum
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from cdc_service.core.logical import LogicalType
from cdc_service.core.order import BY_RECORD, Ordering


def spell(*parts: str) -> str:
    """A dotted name as people write it: a part that holds a dot, a quote or a character of patterns stands in double quotes, each quote
    in it doubled. Different names have different spellings; config.patterns reads them back."""
    return ".".join(f'"{part.replace(chr(34), chr(34) * 2)}"' if re.search(r'[."*?\[]', part) else part for part in parts)


@dataclass(frozen=True, slots=True, order=True)
class TableId:
    """A source table in the source's own spelling; case is folded only in a destination's spelling."""

    schema: str
    name: str

    def __str__(self) -> str:
        """The key of the configuration's ``tables`` that means exactly this table."""
        return spell(self.schema, self.name)


class Mode(StrEnum):
    """How changes reach the target: ``upsert`` deletes rows, ``soft_delete`` marks them (``_cdc_deleted``), ``append`` keeps every change
    as a row."""

    UPSERT = "upsert"
    SOFT_DELETE = "soft_delete"
    APPEND = "append"


class Op(IntEnum):
    """What a change event does, as ``META['op']`` holds it. READ is a row of a snapshot."""

    READ = 0
    CREATE = 1
    UPDATE = 2
    DELETE = 3
    TRUNCATE = 4


UNTOLD = -1


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a source table. ``default`` is the constant that rows older than the column hold (None: NULL), as an Arrow-convertible
    Python value. ``dropped`` is true in a target's own schema for a column that the source no longer has, and ``unread`` is the generation
    of the rows of which nobody could tell what they hold in the column: until a later generation has read them anew, they may lack it
    (UNTOLD: there were none then, but late ones may come). ``former`` are the names that the column had at the source, each with the
    position at which it had it last for certain: changes up to there that know the name mean this column."""

    name: str
    type: LogicalType
    nullable: bool = True
    default: Any = None
    source_type: str = ""
    dropped: bool = False
    unread: int | None = None
    former: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class TableSchema:
    """A table's columns in order and its key, as one version of the source's schema; immutable.

    ``key`` names the key columns in key order; empty for a table without a key. ``version`` is the number of a target's own schema in its
    history at the destination (0: none there yet); it says who read what, and is no part of what the schema is.
    """

    table: TableId
    columns: tuple[Column, ...]
    key: tuple[str, ...]
    version: int = field(default=0, compare=False)

    def __post_init__(self) -> None:
        names = {c.name for c in self.columns}
        if len(names) != len(self.columns) or not set(self.key) <= names:
            raise ValueError(f"{self.table}: duplicate column names, or a key column that is not a column")

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(c.name for c in self.columns)

    def column(self, name: str) -> Column:
        return next(c for c in self.columns if c.name == name)

    @property
    def key_columns(self) -> tuple[Column, ...]:
        return tuple(self.column(name) for name in self.key)

    @property
    def arrow(self) -> pa.Schema:
        return pa.schema([pa.field(c.name, c.type.arrow) for c in self.columns])

    @property
    def fingerprint(self) -> str:
        """16 hex digits over names, types, order and key: equal for equal versions, whoever computes it."""
        text = repr(([(c.name, str(c.type)) for c in self.columns], self.key))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Span:
    """Half-open range ``[start, stop)`` of consumer positions of one partition.

    ``records`` were read in it (fewer than ``stop - start`` where the log holds transaction markers or was compacted), and of these
    ``filtered`` change no state by their nature (tombstones).
    """

    partition: int
    start: int
    stop: int
    records: int
    filtered: int = 0

    def then(self, later: Span) -> Span:
        """This span and the one that follows it. Raises ValueError where they do not meet."""
        if (self.partition, self.stop) != (later.partition, later.start):
            raise ValueError(f"span {later} does not follow {self}")
        return Span(self.partition, self.start, later.stop, self.records + later.records, self.filtered + later.filtered)


Headers = Sequence[tuple[str, bytes | None]]


@dataclass(frozen=True, slots=True)
class RawBatch:
    """Records of one topic as they came from Kafka, grouped by partition, ascending by offset within each.

    ``keys`` and ``values`` are nullable Arrow binary arrays, ``partitions`` int32 and ``offsets`` int64 arrays, all of n records;
    ``headers(i)`` reads the headers of record i when somebody asks (most never do). ``spans`` covers the records and the positions
    behind them. Each value begins with ``head``, which ``values`` leaves out; ``value(i)`` has it.
    """

    topic: str
    keys: pa.Array
    values: pa.Array
    partitions: pa.Array
    offsets: pa.Array
    spans: tuple[Span, ...]
    headers: Callable[[int], Headers]
    head: bytes = b""

    @property
    def num_rows(self) -> int:
        return len(self.values)

    @property
    def nbytes(self) -> int:
        """What it holds in memory."""
        return int(self.keys.nbytes + self.values.nbytes)

    @property
    def wire_bytes(self) -> int:
        """The same with a head for each value, as Kafka holds them."""
        return self.nbytes + len(self.head) * (len(self.values) - int(self.values.null_count))

    def value(self, place: int) -> bytes | None:
        rest = self.values[place].as_py()
        return None if rest is None else self.head + rest

    def whole(self) -> RawBatch:
        """The same with the head in each value."""
        if not self.head:
            return self
        return replace(self, values=pc.binary_join_element_wise(pa.scalar(self.head), self.values, pa.scalar(b"")), head=b"")


META = pa.schema(
    [
        pa.field("op", pa.int8(), nullable=False),
        pa.field("partition", pa.int32(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("commit", pa.int64()),
        pa.field("record", pa.int64(), nullable=False),
        pa.field("minor", pa.int64(), nullable=False),
        pa.field("source_us", pa.int64()),
        pa.field("index", pa.int64(), nullable=False),
    ]
)
"""Columns beside the row: what orders a change (core.order says how) and where it came from.

``commit``, ``record`` and ``minor`` are the source's position as it encodes it, ``source_us`` the source's clock in microseconds since 1970
(shown, never an order), ``index`` the record's place in the RawBatch it was decoded from."""


@dataclass(frozen=True, slots=True)
class Rejected:
    """A record that cannot be applied exactly, whole, as the quarantine keeps it.

    ``key_text`` is the canonical key (core.keys) where the key could be read: later records of that key are parked behind this one.
    ``stage`` is one of decode, range, order. ``message`` holds no cell values.
    """

    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: Headers
    key_text: str | None
    stage: str
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Decision:
    """What ``by`` decided about parked records, by their ids in the quarantine, and why.

    ``replayed`` are applied by the delta that the decision comes with, ``discarded`` never will be; ``refused`` cannot be applied yet and
    stay parked, each with the reason that it has now.
    """

    by: str
    reason: str
    replayed: tuple[str, ...] = ()
    discarded: tuple[str, ...] = ()
    refused: Mapping[str, Rejected] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ChangeBatch:
    """Changes of one table under one schema version, in the order of the log within each partition.

    ``data`` has the schema's columns (a delete has its key and NULL elsewhere; a truncate NULL everywhere), ``meta`` the META columns.
    ``unsent`` has a boolean column for each column of which some row holds a value that the source did not send (TOAST): true there,
    and NULL in ``data``. ``old_key`` is present when a row was created by a key change (its header names the old key) and holds that
    key's columns, NULL elsewhere; ``moved`` is true for a delete that is the first half of a key change. ``doubtful`` is true for a row
    with a value of which its event does not tell what it is at the source: it has to be read again there.
    ``spans`` account for every record: rows here + rejected + filtered.

    For a table that is kept as a log of changes (Mode.APPEND), a delete has its image before as far as the source sent it, with
    ``unsent`` true for the other columns; ``before`` (string) is each change's image before, as core.rowtext writes it, NULL where the
    source sent none; and where places count (core.append) ``order`` (int64) is the connector's running number of the change in its
    transaction, NULL where it gives none.
    """

    schema: TableSchema
    data: pa.Table
    meta: pa.Table
    spans: tuple[Span, ...]
    unsent: pa.Table | None = None
    old_key: pa.Table | None = None
    moved: pa.Array | None = None
    rejected: tuple[Rejected, ...] = ()
    before: pa.Array | None = None
    order: pa.Array | None = None
    doubtful: pa.Array | None = None

    @property
    def num_rows(self) -> int:
        return int(self.meta.num_rows)

    @property
    def nbytes(self) -> int:
        return int(self.data.nbytes + self.meta.nbytes) + sum(len(r.value or b"") + len(r.key or b"") for r in self.rejected)

    def renamed(self, names: Mapping[str, str]) -> ChangeBatch:
        """The same with other names of columns (old -> new)."""

        def table(one: pa.Table | None) -> pa.Table | None:
            return None if one is None else one.rename_columns([names.get(name, name) for name in one.column_names])

        columns = tuple(replace(c, name=names.get(c.name, c.name)) for c in self.schema.columns)
        schema = replace(self.schema, columns=columns, key=tuple(names.get(name, name) for name in self.schema.key))
        return replace(self, schema=schema, data=table(self.data), unsent=table(self.unsent), old_key=table(self.old_key))

    def filter(self, keep: pa.Array, rejected: Sequence[Rejected]) -> ChangeBatch:
        """The rows where ``keep`` is true; the others leave as ``rejected``, so that the account still closes."""
        return replace(
            self,
            data=self.data.filter(keep),
            meta=self.meta.filter(keep),
            unsent=None if self.unsent is None else self.unsent.filter(keep),
            old_key=None if self.old_key is None else self.old_key.filter(keep),
            moved=None if self.moved is None else self.moved.filter(keep),
            rejected=(*self.rejected, *rejected),
            before=None if self.before is None else self.before.filter(keep),
            order=None if self.order is None else self.order.filter(keep),
            doubtful=None if self.doubtful is None else self.doubtful.filter(keep),
        )


@dataclass(frozen=True, slots=True)
class Target:
    """Where and how one source table is kept: ``namespace`` and ``name`` are the destination's schema and table, already folded;
    ``ordering`` is the source's."""

    source: TableId
    namespace: str
    name: str
    mode: Mode = Mode.UPSERT
    full_metadata: bool = True
    ordering: Ordering = BY_RECORD

    def __str__(self) -> str:
        return spell(self.namespace, self.name)


@dataclass(frozen=True, slots=True)
class Truncation:
    """The source table was emptied at ``(generation, record)``: versions below it are gone wherever they stand."""

    generation: int
    record: int
    partition: int


@dataclass(frozen=True, slots=True)
class Tail:
    """The last change of a partition where places count (core.append): the position of its record in the source's log, its running
    number in the transaction (``ChangeBatch.order``) and its place among the changes of that log record."""

    record: int
    order: int | None
    seq: int


BASE = pa.schema(
    [
        pa.field("text", pa.string()),
        pa.field("move", pa.int64()),
        pa.field("record", pa.int64()),
        pa.field("partition", pa.int32()),
        pa.field("move_minor", pa.int64()),
        pa.field("minor", pa.int64()),
        pa.field("offset", pa.int64()),
    ]
)
"""Where the earlier image of a row stands, and what it must be to be that image; all NULL where nothing of the row is unsent.

``text`` is its key as canonical text, ``move`` and ``move_minor`` the position of the move where a change of key brought the row here whose
other half is *not* in the delta (it was applied before, or is yet to come). ``record``, ``minor`` and ``offset`` are the version below
which the row under the key is that image: under an old key another row may stand by now. ``partition`` is the one that the image must have
come by (NULL: any; -1: none, it is not to be had): where partitions were added, the changes of a key are on two, and later ones of the
first may not be read yet."""


@dataclass(frozen=True, slots=True)
class Base:
    """For each row of a delta the image that its unsent values are taken from: ``key`` is its key (columns of the schema's key, NULL where
    nothing is unsent), ``about`` has the columns of BASE."""

    key: pa.Table
    about: pa.Table

    def cleared(self, rows: pa.Array) -> Base:
        """The same with NULL where ``rows`` is true."""

        def table(one: pa.Table) -> pa.Table:
            columns = [pc.if_else(rows, pa.scalar(None, column.type), column) for column in one.columns]
            return pa.table(columns, schema=one.schema)

        return Base(table(self.key), table(self.about))


@dataclass(frozen=True, slots=True)
class LoadRange:
    """A part of a table that is read at the source itself, for one generation: ``low`` and ``high`` bound it in the source's own words, as
    long as the table is stored as ``storage`` says. ``rows`` of it came so far, as of ``position``; ``done`` when these are all."""

    generation: int
    number: int
    low: str
    high: str
    storage: str
    rows: int | None = None
    position: int | None = None
    done: bool = False


@dataclass(frozen=True, slots=True)
class LoadedPart:
    """What a merge brings of a range: with it ``rows`` of the range are there, as the source had them at ``position``; all of them where
    ``done``. ``fresh``: the target was empty when the load began, all comes from one snapshot and nothing else was written since, so that
    nobody has to look for rows of the same keys."""

    generation: int
    number: int
    rows: int
    position: int
    done: bool
    fresh: bool = False


@dataclass(frozen=True, slots=True)
class Delta:
    """What one transaction does to one target: at most one row a key, the latest version within the batch; with Mode.APPEND every change.

    ``data``, ``meta`` and ``unsent`` are as in ChangeBatch, plus ``meta['gen']`` (int32), ``meta['key']`` (canonical key text, string)
    and ``meta['moved']`` (bool). ``schema`` is the version that the rows were written under. ``base`` is present when something is unsent.
    ``doubtful`` is as in ChangeBatch, true also for a row that took a value from a doubtful one.
    ``counts`` per partition hold what is known before the merge: folded and duplicate within the batch. ``snapshot_record`` is the highest
    record of the batch's initial-snapshot rows, those that were folded away too (None: it had none).

    With Mode.APPEND (core.append makes it) ``meta`` has three more columns: ``seq`` (int64), ``before`` and ``missing`` (strings), as the
    target's ``_cdc_seq``, ``_cdc_before`` and ``_cdc_unsent`` hold them. Nothing is ``unsent`` then and there is no truncation: it is a
    row. ``tails`` are, by partition, the last changes where places count.

    A delta of parked records has a ``decision`` and no spans: their offsets were passed when they were parked. Nor has one of rows that
    were read at the source itself: ``loaded`` says of which range.
    ``mark`` says where the reading of a table that is loaded by queries stands behind these rows (None: where it stood).
    """

    batch_id: str
    target: Target
    schema: TableSchema
    data: pa.Table
    meta: pa.Table
    spans: tuple[Span, ...]
    counts: Mapping[int, Mapping[str, int]]
    unsent: pa.Table | None = None
    base: Base | None = None
    truncation: Truncation | None = None
    rejected: tuple[Rejected, ...] = ()
    snapshot_record: int | None = None
    tails: Mapping[int, Tail] = field(default_factory=dict)
    decision: Decision | None = None
    doubtful: pa.Array | None = None
    loaded: LoadedPart | None = None
    mark: str | None = None


@dataclass(frozen=True, slots=True)
class LogId:
    """The identity of a log: a topic that was deleted and made again has another ``topic_id``, a rebuilt cluster another ``cluster_id``."""

    cluster_id: str
    topic: str
    topic_id: str


NO_LOG = LogId("", "", "")
"""Of rows that no record brought."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The destination's word on progress in one partition. ``epoch`` belongs to the writer that took the partition last; ``mark`` is that
    of the last delta that had one."""

    log: LogId
    partition: int
    next_offset: int
    epoch: int
    mark: str | None = None


@dataclass(frozen=True, slots=True)
class PartitionCounts:
    """One row of the ledger. For each partition: records = applied + folded + duplicate + parked + filtered."""

    partition: int
    start: int
    stop: int
    applied: int = 0
    folded: int = 0
    duplicate: int = 0
    parked: int = 0
    filtered: int = 0


@dataclass(frozen=True, slots=True)
class Receipt:
    """A merge that is durable. The only thing that moves a checkpoint."""

    batch_id: str
    target: Target
    partitions: tuple[PartitionCounts, ...]
    high_commit: int | None = None
    high_record: int | None = None
