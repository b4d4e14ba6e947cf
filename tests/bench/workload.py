"""What a benchmark replicates: tables, a seeded sequence of changes to them, and the rows that have to be there at the end.

Promises: the same seed makes the same changes; a row is a function of its key and of the number of the change that wrote it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Ints = npt.NDArray[np.int64]
INSERT, UPDATE, DELETE = 0, 1, 2


@dataclass(frozen=True, slots=True)
class Col:
    """A column: its type at the source and in DuckDB, and its values as Debezium sends them (integer, boolean or text)."""

    name: str
    sql: str
    duckdb: str
    values: Callable[[Ints, Ints], pa.Array]


@dataclass(frozen=True, slots=True)
class Shape:
    """A table with the key ``id``."""

    columns: tuple[Col, ...]

    def rows(self, ids: Ints, changes: Ints) -> pa.Table:
        return pa.table({c.name: c.values(ids, changes) for c in self.columns})

    def create(self, name: str) -> str:
        columns = ", ".join(f"{c.name} {c.sql}" + (" PRIMARY KEY" if c.name == "id" else "") for c in self.columns)
        return f"CREATE TABLE {name} ({columns})"


def _join(*parts: Any) -> pa.Array:
    return pc.binary_join_element_wise(*parts, "")


def _padded(numbers: Ints, width: int) -> pa.Array:
    return pc.utf8_lpad(pa.array(numbers).cast(pa.string()), width, "0")


def _moment(ids: Ints) -> pa.Array:
    """A time in May 2024 whose microseconds never end with a zero, since Java leaves trailing ones out."""
    day, rest = 1 + ids % 28, (_padded(ids % 60, 2), _padded(ids // 60 % 60, 2), _padded(ids % 99_999 * 10 + 1, 6))
    return _join("2024-05-", _padded(day, 2), "T", _padded(ids % 24, 2), ":", rest[0], ":", rest[1], ".", rest[2], "Z")


def _cents(ids: Ints, changes: Ints) -> pa.Array:
    value = (ids * 7919 + changes * 104_729) % 1_000_000
    return _join(pa.array(value // 100).cast(pa.string()), ".", _padded(value % 100, 2))


def _note(ids: Ints, changes: Ints) -> pa.Array:
    return _join("some text of note number ", pa.array(ids).cast(pa.string()), " after ", pa.array(changes).cast(pa.string()))


def _choice(words: Sequence[str]) -> Callable[[Ints, Ints], pa.Array]:
    return lambda ids, changes: pa.array(list(words)).take(pa.array((ids + changes) % len(words)))


def _id(ids: Ints, _: Ints) -> pa.Array:
    return pa.array(ids)


ORDERS = Shape(
    (
        Col("id", "bigint", "BIGINT", _id),
        Col("customer_id", "bigint", "BIGINT", lambda i, _: pa.array(i % 1000)),
        Col("total", "numeric(12,2)", "DECIMAL(12,2)", _cents),
        Col("note", "text", "VARCHAR", _note),
        Col("created_at", "timestamptz", "TIMESTAMPTZ", lambda i, _: _moment(i)),
        Col("quantity", "int", "INTEGER", lambda i, n: pa.array(((i + n) % 7).astype(np.int32))),
        Col("paid", "bool", "BOOLEAN", lambda i, n: pa.array((i + n) % 2 == 0)),
        Col("doc", "jsonb", "VARCHAR", lambda i, n: _join('{"a": [1, 2], "b": ', pa.array(n % 1000).cast(pa.string()), "}")),
        Col("token", "uuid", "UUID", lambda i, _: _join("6f1e2d3c-0000-4000-8000-", _padded(i, 12))),
        Col("status", "varchar(20)", "VARCHAR", _choice(("new", "paid", "sent"))),
    )
)


def _wide() -> Shape:
    """200 columns: one in four a text, one in four a decimal, the rest integers."""

    def column(place: int) -> Col:
        if place % 4 == 0:
            return Col(f"c{place:03}", "text", "VARCHAR", lambda i, n: _join(f"column {place} of ", pa.array(i + n).cast(pa.string())))
        if place % 4 == 1:
            return Col(f"c{place:03}", "numeric(12,2)", "DECIMAL(12,2)", lambda i, n: _cents(i + place, n))
        return Col(f"c{place:03}", "bigint", "BIGINT", lambda i, n: pa.array(i * place + n))

    return Shape((ORDERS.columns[0], *(column(place) for place in range(1, 200))))


def _large() -> Shape:
    """64 KB of text a row, that does not compress to nothing."""
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz     "))
    pool = "".join(np.random.default_rng(7).choice(letters, 65_536 * 2))

    def text(ids: Ints, changes: Ints) -> pa.Array:
        starts = (ids * 31 + changes * 17) % 65_536
        return pa.array([pool[start : start + 65_536] for start in starts.tolist()])

    return Shape((ORDERS.columns[0], Col("body", "text", "VARCHAR", text), ORDERS.columns[3]))


WIDE, LARGE = _wide(), _large()


@dataclass(frozen=True, slots=True)
class Changes:
    """Changes in their order: which table each is of, what it does (INSERT, UPDATE, DELETE) and to which key."""

    table: Ints
    op: Ints
    id: Ints

    def __len__(self) -> int:
        return len(self.id)


@dataclass(frozen=True, slots=True)
class Workload:
    """``make(changes, tables, random)`` is the sequence; the number of a change is its place."""

    name: str
    shape: Shape
    tables: int
    make: Callable[[int, int, random.Random], Changes]

    def names(self) -> list[str]:
        return ["orders"] if self.tables == 1 else [f"orders_{n:03}" for n in range(self.tables)]

    def changes(self, count: int, seed: int = 1) -> Changes:
        return self.make(count, self.tables, random.Random(seed))

    def final(self, changes: Changes, table: int) -> pa.Table:
        """The rows of one table after all changes."""
        mine = np.flatnonzero(changes.table == table)
        ids, ops = changes.id[mine], changes.op[mine]
        _, last = np.unique(ids[::-1], return_index=True)
        keep = len(ids) - 1 - last
        keep = keep[ops[keep] != DELETE]
        return self.shape.rows(ids[keep], mine[keep])


def inserts(count: int, tables: int, _: random.Random) -> Changes:
    numbers = np.arange(count, dtype=np.int64)
    return Changes(numbers % tables, np.full(count, INSERT), 1 + numbers // tables)


def mixed(count: int, tables: int, chance: random.Random) -> Changes:
    """A tenth inserts rows; from then on 20% inserts, 60% updates, 20% deletes, of random rows."""
    alive: list[list[int]] = [[] for _ in range(tables)]
    highest = [0] * tables
    table, op, key = (np.empty(count, np.int64) for _ in range(3))
    number = chance.random
    for place in range(count):
        t = int(number() * tables)
        rows, kind = alive[t], number()
        if kind < 0.2 or not rows or place < count // 10:
            highest[t] += 1
            rows.append(highest[t])
            table[place], op[place], key[place] = t, INSERT, highest[t]
            continue
        chosen = int(number() * len(rows))
        table[place], key[place] = t, rows[chosen]
        op[place] = UPDATE if kind < 0.8 else DELETE
        if kind >= 0.8:
            rows[chosen] = rows[-1]
            rows.pop()
    return Changes(table, op, key)


def hot(count: int, tables: int, chance: random.Random) -> Changes:
    """A tenth inserts keys; then 90% of the changes are updates of 1% of these."""
    keys = max(100, count // 10)
    numbers = np.random.default_rng(chance.randrange(2**32))
    later = numbers.integers(1, keys + 1, count - keys)
    often = numbers.random(count - keys) < 0.9
    later[often] = numbers.integers(1, max(2, keys // 100 + 1), int(often.sum()))
    ids = np.concatenate([np.arange(1, keys + 1), later])
    return Changes(np.zeros(count, np.int64), np.where(np.arange(count) < keys, INSERT, UPDATE), ids)


def updates_of(rows: int) -> Callable[[int, int, random.Random], Changes]:
    """Updates of random keys of a table that has ``rows`` rows already."""

    def make(count: int, tables: int, chance: random.Random) -> Changes:
        numbers = np.random.default_rng(chance.randrange(2**32))
        return Changes(np.zeros(count, np.int64), np.full(count, UPDATE), numbers.integers(1, rows + 1, count))

    return make


WORKLOADS = {
    w.name: w
    for w in (
        Workload("insert", ORDERS, 1, inserts),
        Workload("mixed1", ORDERS, 1, mixed),
        Workload("mixed", ORDERS, 10, mixed),
        Workload("hot", ORDERS, 1, hot),
        Workload("wide", WIDE, 1, mixed),
        Workload("large", LARGE, 1, mixed),
        Workload("tables200", ORDERS, 200, mixed),
    )
}
