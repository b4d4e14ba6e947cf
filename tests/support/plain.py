"""Arrow columns as plain Python values that compare exactly: floats by their bits, times as the integers behind them."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pyarrow as pa

from cdc_service.core.types import ChangeBatch


def plain(column: pa.Array | pa.ChunkedArray) -> list[Any]:
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    kind = column.type
    if pa.types.is_list(kind):
        flat = iter(plain(column.flatten()))
        lengths = [
            None if not valid else int(length) for valid, length in zip(column.is_valid().to_pylist(), _lengths(column), strict=True)
        ]
        return [None if length is None else [next(flat) for _ in range(length)] for length in lengths]
    if pa.types.is_float32(kind) or pa.types.is_date32(kind):
        column = column.view(pa.int32())
    elif pa.types.is_float64(kind) or pa.types.is_temporal(kind):
        column = column.view(pa.int64())
    values: list[Any] = column.to_pylist()
    return values


def _lengths(column: pa.ListArray) -> list[int]:
    offsets = column.offsets.to_pylist()
    return [stop - start for start, stop in pairwise(offsets)]


def rows(table: pa.Table | None) -> dict[str, list[Any]] | None:
    return None if table is None else {name: plain(table.column(name)) for name in table.column_names}


def told(batch: ChangeBatch) -> dict[str, Any]:
    """Everything a batch says, comparable."""
    return {
        "schema": batch.schema,
        "data": rows(batch.data),
        "meta": rows(batch.meta),
        "spans": batch.spans,
        "unsent": rows(batch.unsent),
        "old_key": rows(batch.old_key),
        "moved": None if batch.moved is None else batch.moved.to_pylist(),
        "rejected": batch.rejected,
    }


def account(batch: ChangeBatch) -> tuple[int, int]:
    """(records of the spans, rows + rejected + filtered): equal in a batch that closes."""
    return sum(s.records for s in batch.spans), batch.num_rows + len(batch.rejected) + sum(s.filtered for s in batch.spans)
