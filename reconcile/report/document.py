"""The report of a reconciliation: one run over some tables, what was compared up to where, and every difference that was found.

Promises: ``document`` is the contract's JSON; positions are decimal strings, times RFC 3339 in UTC, values as text or null. A difference
has a position at which it was true; what could not be judged is counted as in flight, never as a match.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

VERSION = 1


class Status(StrEnum):
    """What a table's comparison came to. IN_FLIGHT: no confirmed difference, but some keys changed too fast to be judged, or the pipeline
    is not as far as the source was; PARTIAL: it ended at a limit before all was compared."""

    MATCH = "match"
    MISMATCH = "mismatch"
    IN_FLIGHT = "in_flight"
    PARTIAL = "partial"
    ERROR = "error"
    SKIPPED = "skipped"


class Kind(StrEnum):
    """MISSING: the source has the row; EXTRA: only the warehouse has it; DIFFERENT: some values differ; REPRESENTATION: the texts differ
    and the values by their type do not."""

    MISSING = "missing"
    EXTRA = "extra"
    DIFFERENT = "different"
    REPRESENTATION = "representation"


@dataclass(frozen=True, slots=True)
class Event:
    """The last event of a key that reached the warehouse. ``position`` is the source's log position, ``position_text`` the same as the
    source writes it, ``op`` one of c, u, d, r, t, ``batch_id`` the batch that merged it, where the ledger reaches so far back."""

    topic: str
    partition: int
    offset: int
    position: int | None = None
    op: str | None = None
    batch_id: str | None = None
    position_text: str | None = None


@dataclass(frozen=True, slots=True)
class Difference:
    """One confirmed difference. ``key`` holds the key's columns by name as text, ``source`` and ``destination`` the whole rows by column as
    text (None: no row), ``columns`` those that differ, ``position`` the source position at which it was confirmed."""

    key: Mapping[str, str | None]
    kind: Kind
    columns: tuple[str, ...]
    source: Mapping[str, str | None] | None
    destination: Mapping[str, str | None] | None
    position: int
    event: Event | None = None
    cause: str = ""
    count: int = 1
    """How many rows too many the warehouse has of an extra key."""


@dataclass(frozen=True, slots=True)
class Total:
    """What rows of one side came to: their number and the sum of their hashes."""

    rows: int
    digest: str

    @classmethod
    def of(cls, rows: int, hashes: int) -> Total:
        return cls(rows, f"{hashes % 2**64:016x}")


@dataclass(frozen=True, slots=True)
class Buckets:
    """The rows fall into ``total`` buckets by ``by`` ("key" ranges or "hash" of the key); ``dirty`` holds by number those whose digests
    differed, with what the source's rows and the warehouse's came to, ``localized`` how many of them one sum led straight to the row."""

    total: int = 0
    dirty: Mapping[int, tuple[Total, Total]] = field(default_factory=dict)
    localized: int = 0
    by: str = "hash"


@dataclass(frozen=True, slots=True)
class TableReport:
    """``position`` is the source's log position of the comparison, ``batch_id`` the warehouse's last batch in it. ``differences`` holds at
    most as many as were asked for (``truncated`` says so); ``counts`` counts all. ``columns`` counts differing values by column."""

    source: str
    target: str
    mode: str
    status: Status
    reason: str = ""
    method: str | None = None
    fence: str | None = None
    position: int | None = None
    position_text: str | None = None
    batch_id: str | None = None
    rows: tuple[int | None, int | None] = (None, None)
    digest: tuple[str | None, str | None] = (None, None)
    buckets: Buckets = field(default_factory=Buckets)
    counts: Mapping[str, int] = field(default_factory=dict)
    columns: Mapping[str, int] = field(default_factory=dict)
    compared: tuple[str, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)
    lacking: tuple[str, ...] = ()
    """Those of ``left_out`` that the warehouse should have: a mismatch, whatever the rows are."""
    by_value: Mapping[str, str] = field(default_factory=dict)
    """Columns whose texts say nothing about their values, with the reason."""
    where: str | None = None
    differences: Sequence[Difference] = ()
    truncated: bool = False
    started_us: int = 0
    seconds: float = 0.0
    bytes: int = 0
    history: Sequence[Mapping[str, Any]] = ()
    """The last runs of the table, newest first: {run_id, at, status, counts}."""

    @property
    def found(self) -> int:
        """How many differences count against the table."""
        return sum(self.counts.get(kind, 0) for kind in (Kind.MISSING, Kind.EXTRA, Kind.DIFFERENT))


COUNTS = ("missing", "extra", "different", "representation", "late", "parked", "in_flight")
_WORST = (Status.ERROR, Status.MISMATCH, Status.PARTIAL, Status.IN_FLIGHT, Status.SKIPPED)


def status_of(tables: Sequence[TableReport]) -> Status:
    """The run's status: the worst of its tables. Tables that were skipped count only where there is nothing else."""
    found = {t.status for t in tables}
    if found - {Status.SKIPPED}:
        found -= {Status.SKIPPED}
    return next((s for s in _WORST if s in found), Status.MATCH)


def document(pipeline: str, run_id: str, tables: Sequence[TableReport]) -> dict[str, Any]:
    return {
        "version": VERSION,
        "pipeline": pipeline,
        "run_id": run_id,
        "status": str(status_of(tables)),
        "at": _time(min((t.started_us for t in tables if t.started_us), default=None)),
        "tables": [_table(t) for t in tables],
    }


def _table(t: TableReport) -> dict[str, Any]:
    return {
        "source": t.source,
        "target": t.target,
        "mode": t.mode,
        "status": str(t.status),
        "reason": t.reason or None,
        "method": t.method,
        "fence": t.fence,
        "as_of": {"source": _position(t.position), "source_text": t.position_text, "batch_id": t.batch_id},
        "rows": {"source": t.rows[0], "destination": t.rows[1]},
        "digest": {"source": t.digest[0], "destination": t.digest[1]},
        "buckets": {
            "total": t.buckets.total,
            "dirty": len(t.buckets.dirty),
            "localized": t.buckets.localized,
            "by": t.buckets.by,
            "dirty_numbers": list(t.buckets.dirty),
        },
        "counts": {name: t.counts.get(name, 0) for name in COUNTS},
        "columns": dict(t.columns),
        "coverage": {
            "columns": list(t.compared),
            "left_out": [{"column": c, "reason": why} for c, why in t.left_out.items()],
            "lacking": list(t.lacking),
            "by_value": [{"column": c, "reason": why} for c, why in t.by_value.items()],
            "where": t.where,
        },
        "differences": [_difference(d) for d in t.differences],
        "truncated": t.truncated,
        "started_at": _time(t.started_us),
        "seconds": round(t.seconds, 3),
        "bytes": t.bytes,
        "history": [dict(h) for h in t.history],
        "repair": f"cdc repair {shlex.quote(t.source)} --dry-run" if t.found else None,
    }


def _difference(d: Difference) -> dict[str, Any]:
    e = d.event
    return {
        "key": dict(d.key),
        "kind": str(d.kind),
        "columns": list(d.columns),
        "source": None if d.source is None else dict(d.source),
        "destination": None if d.destination is None else dict(d.destination),
        "position": _position(d.position),
        "count": d.count,
        "event": None
        if e is None
        else {
            "topic": e.topic,
            "partition": e.partition,
            "offset": e.offset,
            "position": _position(e.position),
            "position_text": e.position_text,
            "op": e.op,
            "batch_id": e.batch_id,
        },
        "cause": d.cause or None,
    }


def _position(position: int | None) -> str | None:
    return None if position is None else str(position)


def _time(us: int | None) -> str | None:
    return None if us is None else datetime.fromtimestamp(us / 1e6, UTC).isoformat().replace("+00:00", "Z")
