"""One side of a comparison: a table at a source or a destination as it stood at one moment, read by expressions of its engine.

Promises wanted: all that one ``Side`` reads belongs to one state of the table, however long it stays open.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Protocol

import pyarrow as pa

from cdc_service.core.canonical import Canonical
from cdc_service.core.types import Column


class Side(Protocol):
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


class Scan(Side, Protocol):
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
