"""Finds the keys at which two sets of rows differ: both land in a scratch database as (key, hash), and digests by bucket say where to look.

Promises: keys of any type, compound or doubled; memory stays under ``MEMORY`` whatever the number of rows; two rows are taken for equal
only if their 64-bit hashes are. A hash only nominates: what differs here is judged by its values (``pairs_of``). Sums, never XOR: two equal
faults must not cancel each other.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import duckdb
import pyarrow as pa

from cdc_service.core.errors import CdcError
from cdc_service.core.logical import Kind, LogicalType
from cdc_service.core.types import Column
from reconcile.document import Buckets, Total

MEMORY = "48MB"
PART_BYTES = 2**20
BUCKETS = 1024
PLACE = ("_cdc_partition", "_cdc_offset")
"""The columns of a target that name a row's last event."""
JOIN_ROWS = 500_000
"""Rows of both sides that are compared one by one at a time; more would not fit into MEMORY."""


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


def value(column: Column, *, text: bool = False) -> str:
    """The expression by which the column is hashed and compared. ``text``: it comes as text (see core.side)."""
    name = quote(column.name)
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


class Scratch:
    """A database in a temporary folder, which uses at most ``memory`` and is gone when it is left. Of what arrives parts of ``part_bytes``
    are worked on at a time."""

    def __init__(self, memory: str = MEMORY, part_bytes: int = PART_BYTES) -> None:
        self._part_bytes = part_bytes
        self._folder = tempfile.TemporaryDirectory(prefix="cdc-reconcile-")
        settings = {"memory_limit": memory, "preserve_insertion_order": "false"}
        self._db = duckdb.connect(f"{self._folder.name}/scratch.duckdb", config=settings)
        self._db.execute(f"SET temp_directory = '{self._folder.name}/tmp'; SET TimeZone = 'UTC'")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._db.close()
        self._folder.cleanup()

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

    def __init__(self, key: Sequence[Column], columns: Sequence[Column], by_value: Collection[str] = ()) -> None:
        super().__init__()
        self.key = tuple(key)
        self.columns = tuple(columns)
        self._by_value = frozenset(by_value)
        names = [f"k{i} {engine_type(c.type)}" for i, c in enumerate(self.key)]
        for side in "sd":
            self._db.execute(f"CREATE TABLE {side} ({', '.join([*names, 'h UBIGINT'])})")
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


def pairs_of(key: Sequence[Column], columns: Sequence[Column], here: pa.Table, there: pa.Table) -> pa.Table:
    """Rows of both sides that differ, joined by key: key_I, in_s, in_d, copies (at the destination), p and o (its place), real_I and text_I
    by column, s_I and d_I the values."""
    with sides(key, columns, here, there, (), PLACE) as db:
        using = ", ".join(f"k{i}" for i in range(len(key)))
        selects = [f"k{i} AS key_{i}" for i in range(len(key))]
        differs = []
        for i, column in enumerate(columns):
            real, text = distinct(column, i), distinct_texts(column, i)
            selects += [f"({real}) AS real_{i}", f"({text}) AS text_{i}", f"s.v{i} AS s_{i}", f"d.v{i} AS d_{i}"]
            differs += [f"({real})", f"({text})"]
        one = f"""SELECT *, true AS there, count(*) OVER same AS copies FROM d
WINDOW same AS (PARTITION BY {using}) QUALIFY row_number() OVER same = 1"""
        p, o = map(quote, PLACE)
        sql = f"""SELECT s.there IS NOT NULL AS in_s, d.there IS NOT NULL AS in_d, d.copies AS copies, d.{p} AS p, d.{o} AS o,
{", ".join(selects)}
FROM (SELECT *, true AS there FROM s) AS s FULL JOIN ({one}) AS d USING ({using})
WHERE s.there IS NULL OR d.there IS NULL OR d.copies > 1 OR {" OR ".join(differs)}
ORDER BY {using}"""
        return db.sql(sql).to_arrow_table()


@contextmanager
def sides(
    key: Sequence[Column], columns: Sequence[Column], here: pa.Table, there: pa.Table, of_s: Sequence[str], of_d: Sequence[str]
) -> Iterator[duckdb.DuckDBPyConnection]:
    """A scratch database of rows of both sides as tables ``s`` and ``d``: key columns kI, of each column the value vI and what came, rI,
    and the columns that are named for the side."""
    with duckdb.connect(":memory:", config={"memory_limit": "256MB"}) as db:
        db.execute("SET TimeZone = 'UTC'")
        for name, table, also in (("s", here, of_s), ("d", there, of_d)):
            db.register(f"{name}_arrow", table)
            made = [f"{_typed(c, table.schema.field(c.name).type)} AS k{i}" for i, c in enumerate(key)]
            for i, c in enumerate(columns):
                made += [f"{_typed(c, table.schema.field(c.name).type)} AS v{i}", f"{quote(c.name)} AS r{i}"]
            db.execute(f"CREATE TABLE {name} AS SELECT {', '.join([*made, *map(quote, also)])} FROM {name}_arrow")
        yield db


def _typed(column: Column, came: pa.DataType) -> str:
    return value(column, text=pa.types.is_string(came))


def distinct(column: Column, i: int) -> str:
    """Whether the values differ by their type. Text that the type does not hold (NaN in a decimal) is no NULL."""
    if column.type.kind in _NORMAL:
        return f"s.v{i} IS DISTINCT FROM d.v{i} AND {normal(column, f's.v{i}')} IS DISTINCT FROM {normal(column, f'd.v{i}')}"
    lost = f"(s.v{i} IS NULL AND s.r{i} IS NOT NULL) <> (d.v{i} IS NULL AND d.r{i} IS NOT NULL)"
    return f"s.v{i} IS DISTINCT FROM d.v{i} OR {lost}"


def distinct_texts(column: Column, i: int) -> str:
    """Whether what the comparison hashes differs."""
    return f"s.v{i} IS DISTINCT FROM d.v{i}" if column.type.kind in _NORMAL else "false"


def typed_table(columns: Sequence[Column], rows: pa.Table) -> pa.Table:
    """``rows`` in the Arrow types of the columns. Raises CdcError for a text that its type does not hold."""
    with duckdb.connect(":memory:", config={"memory_limit": "256MB"}) as db:
        db.execute("SET TimeZone = 'UTC'")
        db.register("came", rows)
        typed = ", ".join(f"{_typed(c, rows.schema.field(c.name).type)} AS {quote(c.name)}" for c in columns)
        found = db.sql(f"SELECT {typed} FROM came").to_arrow_table()
    for c in columns:
        if found[c.name].null_count != rows[c.name].null_count:
            raise CdcError(f"column {c.name}: what was read at the source is no exact {c.type}", code="inexact_text")
    return pa.table({c.name: found[c.name].cast(c.type.arrow) for c in columns})


def key_table(key: Sequence[Column], texts: Mapping[str, Sequence[str | None]]) -> pa.Table:
    """Keys out of the texts that reports show (core.rowtext.value_text)."""
    hexed = {c.name: c.type.kind is Kind.BYTES for c in key}
    came = {n: pa.array([bytes.fromhex(v or "") for v in values] if hexed[n] else values) for n, values in texts.items()}
    return typed_table(key, pa.table(came))
