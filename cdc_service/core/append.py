"""Append: many changes of one table become the rows of its log of changes, each change once, with everything accounted for.

A change is the same as another where the source's log position is, and beside it the key, the operation and the commit's time (positions of
two timelines may meet, times do not). Where several changes have one position (in a table without a key; or where the offset decides,
core.order), its place among the changes of one log record says so too (``Tail``, ``_places``). A change that comes again in a later
generation belongs to that one from then on: with the rows that were read for it, it tells what the table came to. Rows of an initial
snapshot are the same within one generation only. Rows of an incremental snapshot are readings: each is a row of its own.

Columns in, columns out: index arithmetic, no row visited.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cdc_service.core.fold import Bools, Generations, Ints, concat_masks, join_spans
from cdc_service.core.keys import key_text
from cdc_service.core.order import INCREMENTAL, Ties, is_snapshot
from cdc_service.core.rowtext import name_lists
from cdc_service.core.types import ChangeBatch, Delta, Tail, Target


def gather(
    batches: Sequence[ChangeBatch], *, batch_id: str, target: Target, generations: Generations, tails: Mapping[int, Tail] | None = None
) -> Delta:
    """One Delta of ``batches`` that holds every change of them: one or more, of one schema version, each partition's spans in order.

    ``tails`` are the last changes of each partition before these, where places count; the Delta's own are those after them.
    """
    schema = batches[0].schema
    data = pa.concat_tables([b.data for b in batches]).combine_chunks()
    meta = pa.concat_tables([b.meta for b in batches]).combine_chunks()
    unsent = concat_masks([b.unsent for b in batches], [b.num_rows for b in batches])
    before = pa.concat_arrays([_or_null(b.before, pa.string(), b.num_rows) for b in batches])
    partition, offset, record = (meta[name].to_numpy() for name in ("partition", "offset", "record"))
    gen = generations(partition, offset, record)
    seq, after = np.zeros(len(record), np.int64), dict[int, Tail]()
    if not schema.key or target.ordering.ties is Ties.OFFSET:
        order = pa.concat_arrays([_or_null(b.order, pa.int64(), b.num_rows) for b in batches])
        seq, after = _places(partition, offset, record, order, tails or {})
    text = key_text(data.select(schema.key))
    kept, again = _first_of_each(meta, text, gen, seq)
    counts: dict[int, dict[str, int]] = {}
    for number, count in zip(*np.unique(partition[again], return_counts=True), strict=True):
        counts[int(number)] = {"applied": 0, "folded": 0, "duplicate": int(count)}
    flags = {} if unsent is None else {name: unsent[name].to_numpy() for name in unsent.column_names}
    whole = (
        meta.append_column("gen", pa.array(gen))
        .append_column("key", text)
        .append_column("moved", pa.array(np.zeros(len(record), np.bool_)))
        .append_column("seq", pa.array(seq))
        .append_column("before", before)
        .append_column("missing", name_lists({name: flags[name] for name in schema.names if name in flags}, len(record)))
    )
    return Delta(
        batch_id=batch_id,
        target=target,
        schema=schema,
        data=data.take(kept),
        meta=whole.take(kept),
        spans=join_spans([b.spans for b in batches]),
        counts=counts,
        rejected=tuple(r for b in batches for r in b.rejected),
        snapshot_record=int(record[read].max()) if (read := is_snapshot(record)).any() else None,
        tails=after,
    )


def _first_of_each(meta: pa.Table, text: pa.Array, gen: npt.NDArray[np.int32], seq: Ints) -> tuple[Ints, Ints]:
    """The rows of distinct changes, in the order of the batch, and those that repeat one of them."""
    record = meta["record"].to_numpy()
    code = pc.dictionary_encode(text).combine_chunks() if isinstance(text, pa.ChunkedArray) else pc.dictionary_encode(text)
    parts: list[npt.NDArray[np.generic]] = [
        record,
        np.asarray(meta["minor"].to_numpy()),
        code.indices.fill_null(-1).to_numpy(zero_copy_only=False),
        meta["op"].to_numpy(),
        seq,
        np.asarray(meta["source_us"].fill_null(np.iinfo(np.int64).min).to_numpy()),
        np.where(is_snapshot(record), gen, 0),
    ]
    order = np.lexsort((meta["offset"].to_numpy(), -gen, *parts[::-1]))
    same = np.ones(max(len(order) - 1, 0), np.bool_)
    for part in parts:
        same &= part[order][1:] == part[order][:-1]
    same &= record[order][1:] != INCREMENTAL
    again = np.concatenate([np.zeros(min(len(order), 1), np.bool_), same])
    return np.sort(order[~again]), np.sort(order[again])


def _places(
    partition: npt.NDArray[np.int32], offset: Ints, record: Ints, order: pa.Array, tails: Mapping[int, Tail]
) -> tuple[Ints, dict[int, Tail]]:
    """Of each change its place among the changes of one log record, from 0, and the last change of each partition.

    The changes of one record follow one another in the log, numbered upwards within their transaction. A connector that begins anew
    repeats whole records, and its numbers fall (or stay): where a number does not rise, the record begins again.
    """
    n = len(record)
    rows = np.lexsort((offset, partition))
    part, rec = partition[rows], record[rows]
    known: Bools = np.asarray(order.is_valid().to_numpy(zero_copy_only=False), np.bool_)[rows]
    number: Ints = np.asarray(order.fill_null(0).to_numpy(zero_copy_only=False), np.int64)[rows]
    step, first = np.ones(n, np.int64), np.ones(n, np.bool_)
    rise = np.where(known[1:] & known[:-1], number[1:] - number[:-1], 1)
    first[1:] = (part[1:] != part[:-1]) | (rec[1:] != rec[:-1]) | (rise <= 0)
    step[1:] = rise
    begin = np.flatnonzero(np.concatenate([[True], part[1:] != part[:-1]])) if n else np.zeros(0, np.int64)
    base = np.zeros(n, np.int64)
    for at in begin.tolist():
        tail = tails.get(int(part[at]))
        if tail is not None and tail.record == rec[at]:
            rise_here = int(number[at]) - tail.order if known[at] and tail.order is not None else 1
            base[at] = tail.seq + rise_here if rise_here > 0 else 0
    heads = np.flatnonzero(first)
    run = np.cumsum(first) - 1
    steps = np.cumsum(np.where(first, 0, step))
    places = steps - steps[heads][run] + base[heads][run] if n else steps
    last = np.concatenate([begin[1:], [n]]) - 1 if n else begin
    after = {int(part[at]): Tail(int(rec[at]), int(number[at]) if known[at] else None, int(places[at])) for at in last.tolist()}
    result = np.empty(n, np.int64)
    result[rows] = places
    return result, after


def _or_null(values: pa.Array | pa.ChunkedArray | None, type_: pa.DataType, rows: int) -> pa.Array:
    if values is None:
        return pa.nulls(rows, type_)
    return values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
