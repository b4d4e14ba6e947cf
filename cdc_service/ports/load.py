"""The contract of a loaded source: a database whose tables are read by queries, because no log of theirs is captured.

A ``Loadable`` says what its tables are, and opens a ``Snapshot`` of one. All that one Snapshot tells belongs to one state of the table: the
rows, the highest cursor among them, and up to where nothing can come late. Rows come in pages in the order of (cursor, key), so that a
reading goes on behind the last row of a page, whatever ended it, and nothing that is kept grows with the rows that share a cursor.

Places in that order are text that the database itself wrote and reads back into the same value: no driver cuts or rounds them on the way.

It is no log: a change that does not move the cursor is not seen, nor is a row that is gone (docs/loading.md says what that means, and what
the engines add).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Protocol

import pyarrow as pa

from cdc_service.core.logical import Kind, LogicalType
from cdc_service.core.types import Column, TableId

TIMES = frozenset({Kind.DATE, Kind.TIMESTAMP, Kind.TIMESTAMPTZ})
"""Kinds of cursors that a lookback of seconds means something for."""
ORDERED = TIMES | {
    *(Kind.INT16, Kind.INT32, Kind.INT64, Kind.FLOAT32, Kind.FLOAT64, Kind.DECIMAL, Kind.NUMERIC),
    *(Kind.STRING, Kind.BYTES, Kind.TIME, Kind.UUID),
}
"""Kinds that a cursor and a key may have."""


@dataclass(frozen=True, slots=True)
class LoadedColumn:
    """A column as the catalog has it; ``type`` is None where its values cannot be read exactly, and ``reason`` says why."""

    name: str
    type: LogicalType | None
    nullable: bool
    source_type: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class LoadedTable:
    """A table as the catalog has it. ``key`` is its primary key (empty: none), ``unique`` are all sets of columns that name one row each,
    without NULL; ``indexed`` are the columns that an index begins with."""

    table: TableId
    columns: tuple[LoadedColumn, ...]
    key: tuple[str, ...]
    unique: tuple[tuple[str, ...], ...] = ()
    indexed: tuple[str, ...] = ()

    def column(self, name: str) -> LoadedColumn | None:
        return next((c for c in self.columns if c.name == name), None)


@dataclass(frozen=True, slots=True)
class Reading:
    """What is read of a table: its columns, by its key and, where it has one, its cursor."""

    table: TableId
    columns: tuple[Column, ...]
    key: tuple[str, ...]
    cursor: str | None = None

    def column(self, name: str) -> Column:
        return next(c for c in self.columns if c.name == name)

    @property
    def key_columns(self) -> tuple[Column, ...]:
        return tuple(self.column(name) for name in self.key)

    @property
    def order(self) -> tuple[str, ...]:
        """The columns that rows are read in the order of; their values are a place."""
        return self.key if self.cursor is None else (self.cursor, *self.key)

    def by_key(self) -> Reading:
        return replace(self, cursor=None)


Place = tuple[str, ...]
"""Texts of the values of ``Reading.order``, as the database writes them."""


@dataclass(frozen=True, slots=True)
class Part:
    """Which rows are read: those with a cursor from ``low`` (less ``lookback`` seconds) on and below ``until``, behind the place ``after``;
    with ``nulls`` those without a cursor, by their key."""

    low: str | None = None
    lookback: float = 0.0
    until: str | None = None
    after: Place | None = None
    nulls: bool = False


@dataclass(frozen=True, slots=True)
class Fault:
    """A row of a page with a value that has no exact form in its column's type."""

    row: int
    column: str
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Page:
    """Rows that follow one another in the order of the reading, typed as its columns, NULL where a ``fault`` is. ``last`` is the place of
    the last one; ``raw(row)`` writes a row as the quarantine keeps it."""

    rows: pa.Table
    last: Place
    faults: Sequence[Fault]
    raw: Callable[[int], bytes]


class Snapshot(Protocol):
    """One state of a table; it ends with the context. Raises Unavailable when the server is gone: what was read until then counts."""

    at_us: int
    """The source's clock when it was taken (microseconds since 1970)."""

    def __enter__(self) -> Snapshot: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...

    def high(self) -> str | None:
        """The highest cursor; None where no row has one."""
        ...

    def settled(self) -> tuple[str | None, str]:
        """Up to where every row that will ever be committed is in this state, as far as the engine can tell, and why that is below
        ``high`` where it is. None: not at all known, so that the next reading begins where this one did."""
        ...

    def null_cursors(self) -> int:
        """How many rows have no cursor."""
        ...

    def twins(self) -> bool:
        """Whether some key names several rows, or holds NULL."""
        ...

    def count(self, part: Part) -> int: ...

    def pages(self, part: Part, rows: int) -> Iterator[Page]:
        """The rows of ``part``, at most so many a page."""
        ...

    def written(self, cursor: str) -> str:
        """A cursor that a person wrote, as the database writes it. Raises ConfigError for what is none."""
        ...


class Loadable(Protocol):
    """A database that tables are loaded from. Raises Unavailable when it does not answer, ConfigError when it refuses who we are."""

    name: str
    place: str
    """Which database it is, without the login: another one is read from the beginning."""

    def tables(self) -> Sequence[TableId]: ...

    def table(self, table: TableId) -> LoadedTable | None: ...

    def snapshot(self, reading: Reading) -> Snapshot: ...

    def close(self) -> None: ...
