"""One side of a comparison: a table at a source or a destination as it stood at one moment, read by expressions of its engine.

Promises wanted: all that one ``Reader`` reads belongs to one state of the table, however long it stays open.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import datetime
from types import TracebackType
from typing import Protocol

import pyarrow as pa

from cdc_service.core.canonical import Canonical
from cdc_service.core.types import Column, LogId, TableId


class Reader(Protocol):
    """``where`` is a condition in the engine's SQL."""

    canonical: Canonical

    def forms(self, columns: Sequence[Column]) -> Mapping[str, str]:
        """By name the expression by which a column is read: in the Arrow type of its logical type, or as text from which DuckDB's cast
        makes exactly that value (a list is JSON), or as Arrow's UUIDs."""
        ...

    def texts(self, columns: Sequence[Column]) -> Mapping[str, str]:
        """By name the expression of a column's canonical text; without the columns that have none."""
        ...

    def matching(self, key: Sequence[Column], keys: pa.Table) -> str:
        """A condition on the rows: their key is one of ``keys``, which are typed as the key columns. Keys that the engine takes for equal
        are met too (a collation may call 'a' and 'A' equal)."""
        ...

    def count(self, where: str | None = None) -> int: ...

    def select(self, expressions: Mapping[str, str], where: str | None = None) -> Iterator[pa.RecordBatch]:
        """Expressions by the name that they get."""
        ...

    def digests(self, bucket: str, place: str, hash_: str, where: str | None = None, most: int | None = None) -> Iterator[pa.RecordBatch]:
        """The sums of core.canonical.digests, of ``most`` rows or of all; where a bucket comes several times, its sums are to be added."""
        ...


class Scan(Reader, Protocol):
    """A table of the source in a read-only transaction, which ends with the context. ``position`` is a log position at or after every
    commit that it shows."""

    position: int

    def __enter__(self) -> Scan: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...

    def unreadable(self, columns: Sequence[Column]) -> Mapping[str, str]:
        """Those of ``columns`` (of the target's schema) that cannot be read exactly, with the reason."""
        ...

    def types(self, columns: Sequence[Column]) -> Mapping[str, str]:
        """The columns' types as the source spells them."""
        ...

    def rows(
        self, columns: Sequence[Column], where: str | None = None, sample: float | None = None, most: int | None = None
    ) -> Iterator[pa.RecordBatch]:
        """The columns by their forms, of all rows; ``sample`` reads only so many percent of the table, chosen by chance, ``most`` no more
        than so many rows."""
        ...

    def fetch(self, key: Sequence[Column], columns: Sequence[Column], keys: pa.Table) -> pa.Table:
        """The rows with these keys, typed as the key columns; those that are not there are left out. Raises CdcError (source_value) for a
        key that the source's type cannot read."""
        ...


class Load(Protocol):
    """A table of the source in a read-only transaction, which ends with the context, read in ranges to load it. ``position`` is a log
    position at or after every commit that it shows. ``storage`` names where the rows lie: ranges of before it changed hold others."""

    position: int
    storage: str

    def __enter__(self) -> Load: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...

    def ranges(self, size: int) -> Sequence[tuple[str, str]]:
        """Bounds (low, high), each from the last high on, that hold all rows, each once; about ``size`` bytes each. One range where the
        table cannot be read in parts."""
        ...

    def as_text(self, columns: Sequence[Column]) -> frozenset[str]:
        """Those of ``columns`` that ``batches`` gives in the text of the connector's events; the others are in their Arrow types."""
        ...

    def batches(self, columns: Sequence[Column], low: str, high: str) -> Iterator[pa.RecordBatch]:
        """The rows of a range, in these columns. Raises CdcError (unloadable) where a value has no exact form."""
        ...


class Snapshot(Protocol):
    """Several tables of the source at one moment, read one after another in a read-only transaction, which ends with the context.
    ``position`` is as a Scan's."""

    position: int

    def __enter__(self) -> Snapshot: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...

    def scan(self, table: TableId) -> Scan:
        """One of the tables, until the scan's context ends; what fails in it fails in no other's. Raises CdcError (no_table)."""
        ...


class View(Reader, Protocol):
    """One state of the target at the destination, beside a service that goes on writing, until the context ends. Live rows only:
    soft-deleted ones do not count.

    ``native`` is true where ``select`` takes DuckDB's expressions, so that rows are hashed where they lie."""

    def __enter__(self) -> View: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...

    @property
    def native(self) -> bool: ...

    @property
    def batch_id(self) -> str | None:
        """The last batch that is in it."""
        ...

    def checkpoints(self, log: LogId) -> Mapping[int, int]:
        """The next offset of each partition: what lies below it is in this state, and nothing above."""
        ...

    def fetch(self, key: Sequence[Column], columns: Sequence[str], keys: pa.Table) -> pa.Table:
        """``columns`` (metadata columns too) of the rows with these keys, which are typed as the key columns."""
        ...

    def parked(self, keys: Sequence[str]) -> Mapping[str, tuple[int, int, str]]:
        """Of canonical key texts those with a record in quarantine that nobody decided on: partition, offset, message."""
        ...

    def batches(self, places: Collection[tuple[int, int]]) -> Mapping[tuple[int, int], tuple[str, datetime]]:
        """The batch in which the record at each (partition, offset) was merged, and when; as far back as the ledger reaches."""
        ...

    def deleted(self, keys: Sequence[str]) -> Mapping[str, tuple[int, int]]:
        """Of canonical key texts those whose delete is remembered: its partition and offset."""
        ...
