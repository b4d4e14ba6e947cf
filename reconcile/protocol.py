"""What reconciliation asks of a source, a destination and the log between them; connectors and mergers give it, the application joins them.

Promises wanted: a ``Scan`` and a ``View`` each show one state of their side, whole; a View names the offsets up to which the log is in it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from cdc_service.core.errors import Unavailable
from cdc_service.core.types import LogId, TableId
from cdc_service.ports.reader import Scan, Snapshot


@dataclass(frozen=True, slots=True)
class Settled:
    """A snapshot that shows every change of its tables which any reader of the log can have seen before it was asked for. ``low`` is the
    log position up to which it shows every change that was ever committed; changes behind it may be in it or not, and
    ``snapshot.position`` bounds these. Of the tables in ``busy`` nothing of this holds: a transaction with uncommitted changes of them
    stays open."""

    snapshot: Snapshot
    low: int
    busy: Mapping[TableId, Unavailable]

    def scan(self, table: TableId) -> Scan:
        """Raises Unavailable (source_busy) for one in ``busy``."""
        if table in self.busy:
            raise self.busy[table]
        return self.snapshot.scan(table)


class Source(Protocol):
    def scan(self, table: TableId) -> AbstractContextManager[Scan]: ...

    def snapshot(self, tables: Sequence[TableId]) -> AbstractContextManager[Snapshot]: ...

    def settled(self, tables: Sequence[TableId]) -> AbstractContextManager[Settled]: ...

    def format_position(self, position: int) -> str: ...


@dataclass(frozen=True, slots=True)
class LogEvent:
    """One event of a key. ``position`` is its place in the source's log (None: a row of a snapshot), ``op`` one of c, u, d, r, t, ``moved``
    says that the key itself changed. ``values`` are the row's columns as text; what the source did not send is left out."""

    partition: int
    offset: int
    position: int | None
    op: str
    moved: bool
    values: Mapping[str, str | None]
    source_us: int | None = None


class Log(Protocol):
    """The table's change topic."""

    id: LogId
    placeholder: str
    """What the connector writes in the place of a value that it does not send."""

    def ends_after(self, position: int, seconds: float) -> Mapping[int, int] | None:
        """Offsets below which all lies that the source committed up to ``position``; None where the connector has not come there within
        ``seconds``, for any of its tables."""
        ...

    def between(self, keys: Collection[str], start: Mapping[int, int], stop: Mapping[int, int]) -> Mapping[str, Sequence[LogEvent]]:
        """The events of these keys (canonical texts) in a range of the log, in its order; a truncation is an event of each. Raises CdcError
        where the log no longer has them, Unavailable where they are too many to be read."""
        ...

    def history(self, keys: Collection[str]) -> tuple[Mapping[str, Sequence[LogEvent]], bool]:
        """The same over the whole log, and whether it still reaches back to its begin."""
        ...

    def newest(self, keys: Collection[str], seconds: float) -> tuple[Mapping[str, Sequence[LogEvent]], int | None]:
        """The last events of each key, at least the newest, from the end of the log backwards for about so long; and how many records were
        read, None where a key without an event has none in the whole log."""
        ...
