"""Decoded groups of one schema version each -> batches in an order that keeps every partition's log order, with spans that close."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cdc_service.core.types import META, ChangeBatch, RawBatch, Rejected, Span, TableSchema

Places = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Decoded:
    """All rows of one schema version in a RawBatch: ``places`` (ascending) are their places in it."""

    schema: TableSchema
    places: Places
    data: pa.Table
    meta: pa.Table
    unsent: pa.Table | None
    old_key: pa.Table | None
    moved: pa.Array | None
    before: pa.Array | None = None
    order: pa.Array | None = None
    doubtful: pa.Array | None = None

    def filter(self, keep: npt.NDArray[np.bool_]) -> Decoded:
        """The rows where ``keep``; what holds nothing any more becomes None."""
        flags = pa.array(keep)
        old_key = None if self.old_key is None else self.old_key.filter(flags)
        moved = None if self.moved is None else self.moved.filter(flags)
        return Decoded(
            self.schema,
            self.places[keep],
            self.data.filter(flags),
            self.meta.filter(flags),
            None if self.unsent is None else _some(self.unsent.filter(flags)),
            old_key if old_key is not None and old_key.column(0).null_count < len(old_key) else None,
            moved if moved is not None and pc.any(moved).as_py() else None,
            None if self.before is None else self.before.filter(flags),
            None if self.order is None else self.order.filter(flags),
            None if self.doubtful is None else self.doubtful.filter(flags),
        )


@dataclass(frozen=True, slots=True)
class _Run:
    """Records ``[low, high)`` of one partition that belong to one version (-1: none of them is a row) and the span they account for."""

    version: int
    low: int
    high: int
    span: Span


def batches(
    raw: RawBatch, decoded: Sequence[Decoded], tombstones: npt.NDArray[np.bool_], rejected: dict[int, Rejected], empty: TableSchema
) -> list[ChangeBatch]:
    """Every record of ``raw`` once. ``rejected`` is by place; ``empty`` is the schema of a batch without rows."""
    version = np.full(raw.num_rows, -1, np.int64)
    for number, group in enumerate(decoded):
        version[group.places] = number
    queues = [_runs(raw, span, version, tombstones) for span in raw.spans]
    result = []
    while any(queues):
        heads = [queue[0].version for queue in queues if queue]
        number = next((head for head in heads if head >= 0), -1)
        taken = [queue.pop(0) for queue in queues if queue and queue[0].version in (number, -1)]
        spans = tuple(run.span for run in taken)
        parked = tuple(rejected[place] for place in sorted(rejected) if any(run.low <= place < run.high for run in taken))
        if number < 0:
            result.append(_without_rows(empty, spans, parked))
        else:
            result.append(_batch(decoded[number], taken, spans, parked))
    return result


def _runs(raw: RawBatch, span: Span, version: Places, tombstones: npt.NDArray[np.bool_]) -> list[_Run]:
    """The runs of one partition, in the order of its log. Records that are no rows go with the version before them, else after them."""
    places = np.flatnonzero(np.array(raw.partitions) == span.partition)
    if not len(places):
        return [_Run(-1, 0, 0, Span(span.partition, span.start, span.stop, 0))]
    low, high = int(places[0]), int(places[-1]) + 1
    own = version[low:high]
    rows = np.flatnonzero(own >= 0)
    if not len(rows):
        cuts, versions = np.array([0, high - low]), np.array([-1])
    else:
        changes = rows[1:][own[rows[1:]] != own[rows[:-1]]]
        cuts = np.concatenate([[0], changes, [high - low]])
        versions = own[np.concatenate([rows[:1], changes])]
    offsets = np.array(raw.offsets)[low:high]
    starts = [span.start, *offsets[cuts[1:-1]].tolist()]
    stops = [*starts[1:], span.stop]
    return [
        _Run(
            int(number),
            low + int(first),
            low + int(last),
            Span(span.partition, start, stop, int(last - first), int(tombstones[low + first : low + last].sum())),
        )
        for number, first, last, start, stop in zip(versions, cuts[:-1], cuts[1:], starts, stops, strict=True)
    ]


def _without_rows(schema: TableSchema, spans: tuple[Span, ...], rejected: tuple[Rejected, ...]) -> ChangeBatch:
    return ChangeBatch(schema, schema.arrow.empty_table(), META.empty_table(), spans, rejected=rejected)


def _batch(group: Decoded, runs: Sequence[_Run], spans: tuple[Span, ...], rejected: tuple[Rejected, ...]) -> ChangeBatch:
    inside = np.zeros(len(group.places), np.bool_)
    for run in runs:
        first, last = np.searchsorted(group.places, [run.low, run.high])
        inside[first:last] = True
    own = group if inside.all() else group.filter(inside)
    beside = own.unsent, own.old_key, own.moved, rejected, own.before, own.order, own.doubtful
    return ChangeBatch(own.schema, own.data, own.meta, spans, *beside)


def _some(unsent: pa.Table | None) -> pa.Table | None:
    """The columns of which some row is unsent; None when there is none."""
    if unsent is None:
        return None
    names = [name for name in unsent.column_names if pc.any(unsent.column(name)).as_py()]
    return unsent.select(names) if names else None
