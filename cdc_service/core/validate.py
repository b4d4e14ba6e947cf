"""Screening: what a destination cannot hold exactly, and what follows a parked record of its key, leaves the batch before it is buffered.

It happens while the raw bytes are still at hand, so that the quarantine keeps each record whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cdc_service.core.keys import key_text
from cdc_service.core.logical import INFINITY, Kind, LogicalType
from cdc_service.core.types import ChangeBatch, RawBatch, Rejected

_TEMPORAL = (Kind.DATE, Kind.TIME, Kind.TIMESTAMP, Kind.TIMESTAMPTZ)
_TEXT = (Kind.STRING, Kind.JSON)


class Bounds(Protocol):
    """The part of a destination's capabilities that says which values fit (ports.destination.Capabilities)."""

    @property
    def ranges(self) -> Mapping[Kind, tuple[int, int]]: ...
    @property
    def infinity(self) -> frozenset[Kind]: ...
    @property
    def nul_in_text(self) -> bool: ...


def screen(
    raw: RawBatch,
    batch: ChangeBatch,
    bounds: Bounds,
    parked: pa.Array,
    refused: Mapping[tuple[int, int], tuple[str, str]] | None = None,
) -> tuple[ChangeBatch, pa.Array]:
    """``batch`` without what cannot be held or must wait, and the canonical keys parked from now on (``parked`` and new ones).

    ``parked`` holds the keys that have undecided records. A record behind a rejected one of the same key is rejected too (stage order).
    ``refused`` names single records, by partition and offset, that a merge could not complete, each with the code and the reason.
    """
    misfits: dict[int, tuple[str, str]] = {}
    if refused:
        where = zip(batch.meta["partition"].to_pylist(), batch.meta["offset"].to_pylist(), strict=True)
        misfits = {row: refused[place] for row, place in enumerate(where) if place in refused}
    for column in batch.schema.columns:
        for row in np.flatnonzero(outside(batch.data.column(column.name), column.type, bounds)).tolist():
            misfits.setdefault(row, ("out_of_range", f"column {column.name} holds a value outside of what the destination can hold"))
    new = [r.key_text for r in batch.rejected if r.key_text is not None]
    if not misfits and not new and not len(parked):
        return batch, parked
    text = key_text(batch.data.select(batch.schema.key))
    offsets = batch.meta["offset"].to_numpy()
    keep = np.ones(batch.num_rows, np.bool_)
    keep[list(misfits)] = False
    rejected = [_reject(raw, batch, row, text, "range", *why) for row, why in misfits.items()]
    first: dict[str, int] = {}
    for record in (*batch.rejected, *rejected):
        if record.key_text is not None:
            first[record.key_text] = min(record.offset, first.get(record.key_text, record.offset))
    behind = np.asarray(pc.is_in(text, pc.cast(parked, pa.string())).to_numpy(zero_copy_only=False), np.bool_)
    if first:
        place = pc.index_in(text, pa.array(list(first), pa.string()))
        since = np.array([*first.values(), np.iinfo(np.int64).max], np.int64)
        behind |= offsets > since[place.fill_null(len(first)).to_numpy(zero_copy_only=False)]
    followers = np.flatnonzero(behind & keep).tolist()
    rejected += [_reject(raw, batch, row, text, "order", "behind_parked", "an earlier record of this key is parked") for row in followers]
    keep &= ~behind
    keys = pa.concat_arrays([pc.cast(parked, pa.string()), pa.array(list(first), pa.string())]).unique()
    return batch.filter(pa.array(keep), rejected), keys


def _reject(raw: RawBatch, batch: ChangeBatch, row: int, text: pa.Array, stage: str, code: str, message: str) -> Rejected:
    index = batch.meta["index"][row].as_py()
    return Rejected(
        partition=batch.meta["partition"][row].as_py(),
        offset=batch.meta["offset"][row].as_py(),
        key=raw.keys[index].as_py(),
        value=raw.value(index),
        headers=raw.headers(index),
        key_text=text[row].as_py(),
        stage=stage,
        code=code,
        message=message,
    )


def outside(column: pa.ChunkedArray, kind: LogicalType, bounds: Bounds) -> npt.NDArray[np.bool_]:
    """A mask of the rows of ``column`` that do not fit; all false, at the cost of a min and a max, in the usual case."""
    nothing = np.zeros(len(column), np.bool_)
    if kind.element is not None:
        if kind.element.kind not in (*_TEMPORAL, *_TEXT):
            return nothing
        flat = pa.chunked_array([c.flatten() for c in column.chunks], type=kind.element.arrow)
        inner = outside(flat, kind.element, bounds)
        if inner.any():
            whole = column.combine_chunks()
            nothing[np.unique(pc.list_parent_indices(whole).to_numpy(zero_copy_only=False)[inner])] = True
        return nothing
    if kind.kind in _TEXT:
        if bounds.nul_in_text:
            return nothing
        return _mask(pc.match_substring(column, "\x00"))
    if kind.kind not in _TEMPORAL or kind.kind not in bounds.ranges:
        return nothing
    low, high = bounds.ranges[kind.kind]
    width = pa.int32() if kind.kind is Kind.DATE else pa.int64()
    numbers = pa.chunked_array([c.view(width) for c in column.chunks], type=width)
    ends = pc.min_max(numbers)
    if not ends["min"].is_valid or (low <= ends["min"].as_py() and ends["max"].as_py() <= high):
        return nothing
    out = _mask(pc.less(numbers, low)) | _mask(pc.greater(numbers, high))
    if kind.kind in bounds.infinity:
        infinity = INFINITY[kind.kind]
        out &= ~(_mask(pc.equal(numbers, infinity)) | _mask(pc.equal(numbers, -infinity)))
    return out


def _mask(values: pa.ChunkedArray) -> npt.NDArray[np.bool_]:
    return np.asarray(pc.fill_null(values, False).to_numpy(), np.bool_)


def nothing_parked() -> pa.Array:
    return pa.array([], pa.string())
