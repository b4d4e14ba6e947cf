"""Finds the keys at which two sets of rows differ: both land in a scratch database as (key, hash), and digests by bucket say where to look.

Promises: keys of any type, compound or doubled; memory stays under a limit whatever the number of rows; two rows are taken for equal
only if their 64-bit hashes are. A hash only nominates: what differs here is judged by its values (``unequal``). Sums, never XOR: two equal
faults must not cancel each other.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from types import TracebackType
from typing import Self

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cdc_service.core.errors import CdcError
from cdc_service.core.logical import Kind, LogicalType
from cdc_service.core.types import Column
from reconcile.report.document import Buckets, Total

MEMORY_MB = 48
COLUMNS_PER_MB = 8
"""Of a wide table the vectors of all columns, of 2,048 values each, have to fit into the memory at once."""
PART_BYTES = 2**20
BUCKETS = 1024
PLACE = ("_cdc_partition", "_cdc_offset")
"""The columns of a target that name a row's last event."""
JOIN_ROWS = 500_000
"""Rows of both sides that are compared one by one at a time; more would not fit into the memory."""


def quote(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def engine_type(type_: LogicalType) -> str:
    """The type of DuckDB in which values are hashed and compared. What the warehouse holds as text is compared as text."""
    if type_.kind is Kind.DECIMAL:
        return f"DECIMAL({type_.precision},{type_.scale})"
    if type_.element is not None:
        return f"{engine_type(type_.element)}[]"
    return _TYPES.get(type_.kind, "VARCHAR")


_TYPES = {
    Kind.BOOL: "BOOLEAN",
    Kind.INT16: "SMALLINT",
    Kind.INT32: "INTEGER",
    Kind.INT64: "BIGINT",
    Kind.FLOAT32: "FLOAT",
    Kind.FLOAT64: "DOUBLE",
    Kind.BYTES: "BLOB",
    Kind.DATE: "DATE",
    Kind.TIME: "TIME",
    Kind.TIMESTAMP: "TIMESTAMP",
    Kind.TIMESTAMPTZ: "TIMESTAMP WITH TIME ZONE",
    Kind.UUID: "UUID",
}


def value(column: Column, *, text: bool = False, name: str | None = None) -> str:
    """The expression by which the column is hashed and compared. ``text``: it comes as text (ports.reader); ``name``: under another name
    than its own."""
    name = quote(column.name) if name is None else name
    if column.type.element is not None:
        name = f"CAST({name} AS JSON)" if text else name
    return f"TRY_CAST({name} AS {engine_type(column.type)})"


_NORMAL = {
    # Without the zeros that end a fraction; without blanks between the parts.
    Kind.NUMERIC: "regexp_replace(regexp_replace({0}, '(\\.[0-9]*?)0+$', '\\1'), '\\.$', '')",
    Kind.JSON: "CASE WHEN json_valid({0}) THEN CAST(json({0}) AS VARCHAR) ELSE {0} END",
}
"""Of the types whose equal values can stand as different texts in the warehouse: the text that equal values share."""


def normal(column: Column, text: str) -> str:
    """The expression of a text that two values share if they are equal by their type, out of the value's own."""
    return _NORMAL[column.type.kind].format(text) if column.type.kind in _NORMAL else text


def in_ranges(key: Sequence[Column]) -> bool:
    """Whether buckets are ranges of the key, so that a picture shows where the differences lie; else they are made by the key's hash."""
    return len(key) == 1 and key[0].type.kind in (Kind.INT16, Kind.INT32, Kind.INT64)


@dataclass(frozen=True, slots=True)
class Ranges:
    """An integer key from ``low`` to ``high``, cut into at most ``most`` buckets of ``width`` keys."""

    low: int
    high: int
    most: int = BUCKETS

    @property
    def width(self) -> int:
        return (self.high - self.low) // self.most + 1

    @property
    def total(self) -> int:
        return (self.high - self.low) // self.width + 1


class Database:
    """A scratch database in a temporary folder, which is gone when it is left. To make one takes longer than to compare a few rows in it:
    tables that are compared one after another share it."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="cdc-reconcile-")
        settings = {"memory_limit": f"{MEMORY_MB}MB", "preserve_insertion_order": "false"}
        self.session = duckdb.connect(f"{self._folder.name}/scratch.duckdb", config=settings)
        self.session.execute(f"SET temp_directory = '{self._folder.name}/tmp'; SET TimeZone = 'UTC'")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.session.close()
        self._folder.cleanup()


class Scratch:
    """What is staged of one table in a database that uses at most ``memory_mb``, or more for a wide table; the table before it is gone. Of
    what arrives parts of ``part_bytes`` are worked on at a time."""

    def __init__(self, database: Database, columns: int, memory_mb: int = MEMORY_MB, part_bytes: int = PART_BYTES) -> None:
        self._part_bytes = part_bytes
        self._db = database.session
        self._db.execute(f"SET memory_limit = '{max(memory_mb, columns // COLUMNS_PER_MB)}MB'")

    def _arriving(self, batch: pa.RecordBatch) -> Iterator[None]:
        """The batch is the table ``arriving``, one part after another: what is made of its texts has to fit into the memory."""
        rows = max(1, batch.num_rows * self._part_bytes // max(1, batch.nbytes))
        for first in range(0, batch.num_rows, rows):
            self._db.register("arriving", pa.Table.from_batches([batch.slice(first, rows)]))
            yield
            self._db.unregister("arriving")


class Comparison(Scratch):
    """Two sides, ``s`` and ``d``, are staged; then ``differing`` gives the keys. Columns in ``by_value`` are brought into a normal form
    first, which takes longer and leaves no difference of representation to be found."""

    def __init__(self, database: Database, key: Sequence[Column], columns: Sequence[Column], by_value: Collection[str] = ()) -> None:
        super().__init__(database, len(columns))
        self.key = tuple(key)
        self.columns = tuple(columns)
        self._by_value = frozenset(by_value)
        names = [f"k{i} {engine_type(c.type)}" for i, c in enumerate(self.key)]
        for side in "sd":
            self._db.execute(f"CREATE OR REPLACE TEMP TABLE {side} ({', '.join([*names, 'h UBIGINT'])})")
        self._ranges: Ranges | None = None

    def expressions(self, *, text: Sequence[str] = ()) -> dict[str, str]:
        """What is staged of a row, as DuckDB's expressions over its columns, of which those in ``text`` come as text."""

        def of(columns: Sequence[Column]) -> list[str]:
            return [value(c, text=c.name in text) for c in columns]

        keys = {f"k{i}": expression for i, expression in enumerate(of(self.key))}
        # DuckDB hashes a list that is NULL, an empty one and one that holds a NULL alike; their texts differ.
        lists = {c.name for c in self.columns if c.type.element is not None}
        hashed = [f"CAST({e} AS VARCHAR)" if c.name in lists else e for c, e in zip(self.columns, of(self.columns), strict=True)]
        hashed = [normal(c, e) if c.name in self._by_value else e for c, e in zip(self.columns, hashed, strict=True)]
        h = f"hash({', '.join(hashed)})"
        return {**keys, "h": h}

    def stage_hashed(self, side: str, batches: Iterator[pa.RecordBatch]) -> Iterator[tuple[int, int]]:
        """Takes k0, ... and h of each row (both sides by the same hash); yields rows and bytes of each step."""
        keys = [f"CAST(k{i} AS {engine_type(c.type)})" for i, c in enumerate(self.key)]
        for batch in batches:
            self._insert(side, batch, f"SELECT {', '.join([*keys, 'h'])} FROM arriving")
            yield batch.num_rows, batch.nbytes

    def stage(self, side: str, batches: Iterator[pa.RecordBatch]) -> Iterator[tuple[int, int]]:
        """Takes whole rows and hashes them here; yields rows and bytes of each step."""
        select = None
        for batch in batches:
            if select is None:
                types = {c.name: c.type.arrow for c in (*self.key, *self.columns)}
                text = [f.name for f in batch.schema if pa.types.is_string(f.type) and types[f.name] != f.type]
                select = f"SELECT {', '.join(self.expressions(text=text).values())} FROM arriving"
            self._insert(side, batch, select)
            yield batch.num_rows, batch.nbytes

    def _insert(self, side: str, batch: pa.RecordBatch, select: str) -> None:
        for _ in self._arriving(batch):
            self._db.execute(f"INSERT INTO {side} {select}")

    def only_sampled(self) -> None:
        """Leaves of the destination's rows those whose keys the source's sample has."""
        self._db.execute(f"DELETE FROM d WHERE {self._key_hash()} NOT IN (SELECT {self._key_hash()} FROM s)")

    def total(self, side: str) -> Total:
        rows, total = self._db.execute(f"SELECT count(*), COALESCE(sum(h::HUGEINT), 0) FROM {side}").fetchall()[0]
        return Total.of(rows, total)

    def buckets(self) -> Buckets:
        """The buckets whose digests differ: ranges of a single integer key, so that a picture shows where, else by the key's hash."""
        self._ranges = self._key_ranges()
        bucket = self._bucket()

        def digests(side: str) -> str:
            return f"SELECT {bucket} AS b, count(*) AS n, sum(h::HUGEINT) AS t FROM {side} GROUP BY b"

        rows = self._db.execute(f"""SELECT COALESCE(x.b, y.b), COALESCE(x.n, 0), COALESCE(x.t, 0), COALESCE(y.n, 0), COALESCE(y.t, 0)
FROM ({digests("s")}) AS x FULL JOIN ({digests("d")}) AS y ON x.b = y.b
WHERE x.n IS DISTINCT FROM y.n OR x.t IS DISTINCT FROM y.t ORDER BY 1""").fetchall()
        dirty = {int(b): (Total.of(n, t), Total.of(m, u)) for b, n, t, m, u in rows}
        return Buckets(self._ranges.total, dirty, by="key") if self._ranges else Buckets(BUCKETS, dirty, by="hash")

    def _key_ranges(self) -> Ranges | None:
        if not in_ranges(self.key):
            return None
        low, high = self._db.execute("SELECT min(k0), max(k0) FROM (SELECT k0 FROM s UNION ALL SELECT k0 FROM d)").fetchall()[0]
        return None if low is None else Ranges(low, high)

    def _bucket(self) -> str:
        if self._ranges is None:
            return f"CAST({self._key_hash()} % {BUCKETS} AS INTEGER)"
        return f"CAST((k0::HUGEINT - {self._ranges.low}) // {self._ranges.width} AS INTEGER)"

    def _key_hash(self) -> str:
        return f"hash({', '.join(f'k{i}' for i in range(len(self.key)))})"

    def differing(self, buckets: Buckets) -> Iterator[pa.Table]:
        """Keys (the key columns, by name) at which the sides differ, in several tables."""
        bucket = self._bucket()
        for group in self._groups(buckets):
            listed = ", ".join(map(str, group))
            rows = " UNION ALL ".join(f"SELECT *, {n} AS n FROM {side} WHERE {bucket} IN ({listed})" for side, n in (("s", 1), ("d", -1)))
            names = ", ".join(f"k{i}" for i in range(len(self.key)))
            select = ", ".join(f"k{i} AS {quote(c.name)}" for i, c in enumerate(self.key))
            yield self._db.sql(f"""SELECT {select} FROM
(SELECT {names}, h FROM ({rows}) GROUP BY {names}, h HAVING sum(n) <> 0) GROUP BY {names}""").to_arrow_table()

    def _groups(self, buckets: Buckets) -> Iterator[Sequence[int]]:
        """The dirty buckets, as many at a time as hold JOIN_ROWS rows."""
        if not buckets.dirty:
            return
        total = sum(self._db.execute(f"SELECT count(*) FROM {side}").fetchall()[0][0] for side in "sd")
        size = max(1, JOIN_ROWS * buckets.total // max(1, total))
        numbers = list(buckets.dirty)
        for first in range(0, len(numbers), size):
            yield numbers[first : first + size]


@dataclass(frozen=True, slots=True)
class Pairs:
    """Rows of both sides, joined by key, in the order of their keys: which row of each side it is (None: it has none), and how often the
    key stands at the destination."""

    keys: pa.Table
    s: pa.Array
    d: pa.Array
    copies: pa.Array

    def taken(self, some: pa.Array) -> Pairs:
        return Pairs(self.keys.take(some), self.s.take(some), self.d.take(some), self.copies.take(some))


def pairs_of(key: Sequence[Column], here: pa.Table, there: pa.Table) -> Pairs:
    """Of a key that stands several times at the destination any one row."""
    using = ", ".join(f"k{i}" for i in range(len(key)))
    with _engine() as db:
        for name, table in (("s", here), ("d", there)):
            numbered = table.select([c.name for c in key]).append_column("n", pa.array(range(table.num_rows), pa.int64()))
            db.register(f"{name}_arrow", numbered.rename_columns([*(f"c{i}" for i in range(len(key))), "n"]))
            made = [f"{_typed(c, table.schema.field(c.name).type, f'c{i}')} AS k{i}" for i, c in enumerate(key)]
            db.execute(f"CREATE TEMP TABLE {name} AS SELECT {', '.join(made)}, n FROM {name}_arrow")
        one = "SELECT *, count(*) OVER same AS copies FROM d WINDOW same AS (PARTITION BY {0}) QUALIFY row_number() OVER same = 1"
        found = db.sql(f"""SELECT {using}, s.n AS s, d.n AS d, d.copies AS copies
FROM s FULL JOIN ({one.format(using)}) AS d USING ({using}) ORDER BY {using}""").to_arrow_table()
    keys = pa.table({c.name: found[f"k{i}"].cast(c.type.arrow) for i, c in enumerate(key)})
    return Pairs(keys, *(found[name].combine_chunks() for name in ("s", "d", "copies")))


Flags = Mapping[str, npt.NDArray[np.bool_]]
"""By column a flag for each row."""


def unequal(columns: Sequence[Column], here: pa.Table, there: pa.Table) -> tuple[Flags, Flags]:
    """Of rows that stand side by side, whether the values differ by their type, and whether what the comparison hashes does. Columns that
    came alike need no look; those of one type are looked at as one, so that a statement is no longer for a wide table than for a narrow
    one."""
    alike: dict[tuple[LogicalType, pa.DataType, pa.DataType], list[Column]] = {}
    rows = here.num_rows
    real, text = ({c.name: np.zeros(rows, np.bool_) for c in columns} for _ in range(2))
    for c in columns:
        if not here[c.name].equals(there[c.name]):
            alike.setdefault((c.type, here.schema.field(c.name).type, there.schema.field(c.name).type), []).append(c)
    with _engine() as db:
        for (_, came_s, came_d), group in alike.items():
            came = ((here, came_s), (there, came_d))
            values = [pa.chunked_array([chunk for c in group for chunk in side[c.name].chunks], type_) for side, type_ in came]
            db.register("pairs", pa.table([*values, pa.array(range(len(values[0])), pa.int64())], names=["rs", "rd", "n"]))
            found = db.sql(f"""SELECT n, {_DISTINCT.get(group[0].type.kind, _PLAIN)} AS real, {_distinct_texts(group[0])} AS text
FROM (SELECT *, {_typed(group[0], came_s, "rs")} AS s, {_typed(group[0], came_d, "rd")} AS d FROM pairs) AS typed
WHERE real OR text""").to_arrow_table()
            for flags, name in ((real, "real"), (text, "text")):
                marks = np.zeros(len(group) * rows, np.bool_)
                marks[found["n"].to_numpy()[found[name].to_numpy()]] = True
                flags |= {c.name: marks[i * rows : (i + 1) * rows] for i, c in enumerate(group)}
    return real, text


# Text that the type does not hold (NaN in a decimal) is no NULL.
_PLAIN = "(s IS DISTINCT FROM d OR (s IS NULL AND rs IS NOT NULL) <> (d IS NULL AND rd IS NOT NULL))"
_DISTINCT = {kind: f"(s IS DISTINCT FROM d AND {form.format('s')} IS DISTINCT FROM {form.format('d')})" for kind, form in _NORMAL.items()}


def _distinct_texts(column: Column) -> str:
    return "(s IS DISTINCT FROM d)" if column.type.kind in _NORMAL else "false"


def typed_values(columns: Sequence[Column], rows: pa.Table) -> pa.Table:
    """``rows`` as values of their types; NULL for a text that its type does not hold."""
    with _engine() as db:
        db.register("came", rows)
        typed = ", ".join(f"{_typed(c, rows.schema.field(c.name).type)} AS {quote(c.name)}" for c in columns)
        return db.sql(f"SELECT {typed} FROM came").to_arrow_table()


@cache
def _database() -> duckdb.DuckDBPyConnection:
    """Opened once: that alone takes longer than to compare a few rows."""
    return duckdb.connect(":memory:", config={"memory_limit": "256MB"})


@contextmanager
def _engine() -> Iterator[duckdb.DuckDBPyConnection]:
    """A session of its own; its temporary tables and what it registered go with it."""
    with _database().cursor() as db:
        db.execute("SET TimeZone = 'UTC'")
        yield db


def _typed(column: Column, came: pa.DataType, name: str | None = None) -> str:
    return value(column, text=pa.types.is_string(came), name=name)


def typed_table(columns: Sequence[Column], rows: pa.Table) -> pa.Table:
    """``rows`` in the Arrow types of the columns. Raises CdcError for a text that its type does not hold."""
    found = typed_values(columns, rows)
    for c in columns:
        if found[c.name].null_count != rows[c.name].null_count:
            raise CdcError(f"column {c.name}: what was read at the source is no exact {c.type}", code="inexact_text")
    return pa.table({c.name: found[c.name].cast(c.type.arrow) for c in columns})


def key_table(key: Sequence[Column], texts: Mapping[str, Sequence[str | None]]) -> pa.Table:
    """Keys out of the texts that reports show (core.rowtext.value_text)."""
    hexed = {c.name: c.type.kind is Kind.BYTES for c in key}
    came = {n: pa.array([bytes.fromhex(v or "") for v in values] if hexed[n] else values) for n, values in texts.items()}
    return typed_table(key, pa.table(came))
