"""Fold: many changes of one table become at most one per key, the latest, with everything accounted for.

Promises: rows of the result have distinct keys; which change wins is decided by core.order alone; a value that the source did not send
is taken from the latest earlier image of the row within the batch (across changes of key too) or named for the merge to look up; every
record is counted as winner, folded or duplicate. Columns in, columns out: index arithmetic, no row visited.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cdc_service.core.keys import key_text
from cdc_service.core.order import INCREMENTAL, Ties, is_snapshot
from cdc_service.core.types import BASE, Base, ChangeBatch, Delta, Op, Span, Target, Truncation

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
NOWHERE = -1
"""The partition of an image that is not to be had."""
Generations = Callable[[npt.NDArray[np.int32], Ints, Ints], npt.NDArray[np.int32]]


@dataclass(frozen=True, slots=True)
class _Sorted:
    """The batch's row changes sorted by (key, core.order). ``order`` are row numbers, ``code`` numbers the keys, ``place`` the positions
    (record, minor) in their order."""

    order: Ints
    code: Ints
    gen: npt.NDArray[np.int32]
    place: Ints
    record: Ints
    minor: Ints
    op: npt.NDArray[np.int8]
    partition: npt.NDArray[np.int32]
    offset: Ints


def fold(batches: Sequence[ChangeBatch], *, batch_id: str, target: Target, generations: Generations, loading: bool = False) -> Delta:
    """One Delta of ``batches``: one or more, of one schema version, each partition's spans in order.

    ``generations(partition, offset, record)`` says to which generation each change belongs (core.order.generations).
    ``loading``: the table's initial snapshot is not complete. A connector that began it anew reads its rows later than at the position that
    they bear, so an image of before a change may hold what came after it. The changes in between, which are still to come, put that right
    under its own key; what a change of key takes to another stays there, so it counts as unknown, to be read again at the source.
    """
    schema = batches[0].schema
    data = pa.concat_tables([b.data for b in batches])  # Not in one piece: it may be large.
    meta = pa.concat_tables([b.meta for b in batches]).combine_chunks()
    op = _numpy(meta["op"])
    partition = _numpy(meta["partition"])
    offset, record, minor = _numpy(meta["offset"]), _numpy(meta["record"]), _numpy(meta["minor"])
    by_offset = target.ordering.ties is Ties.OFFSET
    place = _places(record, minor) if target.ordering.minor else record
    gen = generations(partition, offset, record)
    truncation = _truncation(op, gen, record, partition)
    alive = op != Op.TRUNCATE
    if truncation is not None:
        alive &= (gen > truncation.generation) | ((gen == truncation.generation) & (record >= truncation.record))
    text = key_text(data.select(schema.key).combine_chunks())
    codes = pc.dictionary_encode(text)
    rows = np.flatnonzero(alive)
    code = _numpy(codes.indices.fill_null(-1)).astype(np.int64)
    if not (np.diff(code[rows]) > 0).all():  # Codes rise with the first row of each key: where each has one, they are in order.
        created = op[rows] != Op.DELETE
        if by_offset:
            created &= _meets_another_partition(partition[rows], (place[rows], gen[rows], code[rows]))
        rows = rows[np.lexsort((offset[rows], created, place[rows], gen[rows], code[rows]))]
    s = _Sorted(rows, code[rows], gen[rows], place[rows], record[rows], minor[rows], op[rows], partition[rows], offset[rows])

    same_key = _same_as_next(s.code)
    winners = np.flatnonzero(~same_key)
    winners = winners[np.argsort(rows[winners])]
    twice = same_key & _same_as_next(s.gen) & _same_as_next(s.place) if not by_offset else np.zeros(len(rows), np.bool_)
    counts = _counts(s, same_key & ~twice, twice, partition[~alive], op[~alive] == Op.TRUNCATE, truncation)

    picked = rows[winners]
    unsent = concat_masks([b.unsent for b in batches], [b.num_rows for b in batches])
    doubtful = None
    if any(b.doubtful is not None for b in batches):
        doubtful = _numpy(pa.concat_arrays([_or_false(b.doubtful, b.num_rows) for b in batches]))
    moved = pa.concat_arrays([_or_false(b.moved, b.num_rows) for b in batches]).take(pa.array(picked))
    # The merge keeps the image of a moved row as it stands in the target: only where nothing of its key was folded beneath the delete.
    moved = pc.and_(moved, pa.array(~_same_as_previous(s.code)[winners]))
    folded_meta = (
        _taken(meta, picked)
        .append_column("gen", pa.array(s.gen[winners]))
        .append_column("key", text.take(pa.array(picked)))
        .append_column("moved", moved)
    )
    delta = Delta(
        batch_id=batch_id,
        target=target,
        schema=schema,
        data=_taken(data, picked),
        meta=folded_meta,
        spans=join_spans([b.spans for b in batches]),
        counts=counts,
        truncation=truncation,
        rejected=tuple(r for b in batches for r in b.rejected),
        snapshot_record=int(record[read].max()) if (read := is_snapshot(record)).any() else None,
        doubtful=None if doubtful is None or not doubtful[picked].any() else pa.array(doubtful[picked]),
    )
    if unsent is None:
        return delta
    old_key = _concat_keys([b.old_key for b in batches], [b.num_rows for b in batches], schema.arrow, schema.key)
    return _fill(delta, s, winners, data, text, unsent, old_key, doubtful, loading=loading, by_offset=by_offset)


def _places(record: Ints, minor: Ints) -> Ints:
    """The positions (record, minor) numbered in their order; equal ones have one number."""
    rows = np.lexsort((minor, record))
    differs = np.ones(len(rows), np.int64)
    differs[1:] = (record[rows][1:] != record[rows][:-1]) | (minor[rows][1:] != minor[rows][:-1])
    places = np.empty(len(rows), np.int64)
    places[rows] = np.cumsum(differs)
    return places


def _meets_another_partition(partition: npt.NDArray[np.int32], version: Sequence[npt.NDArray[Any]]) -> Bools:
    """Of each change whether one of the same version, and key, came by another partition, so that their offsets do not compare."""
    rows = np.lexsort((partition, *version))
    same = np.ones(max(len(rows) - 1, 0), np.bool_)
    for part in version:
        same &= part[rows][1:] == part[rows][:-1]
    group = np.cumsum(np.concatenate([[0], ~same])) if len(rows) else rows
    result = np.zeros(len(rows), np.bool_)
    result[rows] = np.isin(group, group[1:][same & (partition[rows][1:] != partition[rows][:-1])])
    return result


def join_spans(groups: Sequence[Sequence[Span]]) -> tuple[Span, ...]:
    """One span a partition from those of consecutive batches. Raises ValueError where they do not meet."""
    joined: dict[int, Span] = {}
    for span in (span for group in groups for span in group):
        joined[span.partition] = joined[span.partition].then(span) if span.partition in joined else span
    return tuple(joined.values())


def _truncation(op: npt.NDArray[np.int8], gen: npt.NDArray[np.int32], record: Ints, partition: npt.NDArray[np.int32]) -> Truncation | None:
    rows = np.flatnonzero(op == Op.TRUNCATE)
    if not len(rows):
        return None
    last = rows[np.lexsort((record[rows], gen[rows]))[-1]]
    return Truncation(int(gen[last]), int(record[last]), int(partition[last]))


def _counts(
    s: _Sorted, folded: Bools, twice: Bools, gone: npt.NDArray[np.int32], gone_truncates: Bools, truncation: Truncation | None
) -> Mapping[int, Mapping[str, int]]:
    """Per partition: folded and duplicate rows; the truncate that decides counts as applied, what it sweeps away as folded."""
    counts: dict[int, dict[str, int]] = {}

    def add(partitions: npt.NDArray[np.int32], name: str) -> None:
        for number, count in zip(*np.unique(partitions, return_counts=True), strict=True):
            entry = counts.setdefault(int(number), {"applied": 0, "folded": 0, "duplicate": 0})
            entry[name] += int(count)

    add(s.partition[folded], "folded")
    add(s.partition[twice], "duplicate")
    add(gone, "folded")
    if truncation is not None and gone_truncates.any():
        counts[truncation.partition]["folded"] -= 1
        counts[truncation.partition]["applied"] += 1
    return counts


def _fill(
    delta: Delta,
    s: _Sorted,
    winners: Ints,
    data: pa.Table,
    text: pa.Array,
    unsent: pa.Table,
    old_key: pa.Table | None,
    doubtful: Bools | None,
    *,
    loading: bool,
    by_offset: bool,
) -> Delta:
    """Follows each unsent value back to the image that holds it; what the batch does not hold is named by ``base``."""
    n = len(s.order)
    here = np.arange(n)
    old_text = key_text(old_key).take(pa.array(s.order)) if old_key is not None else pa.nulls(n, pa.string())
    is_move = _numpy(pc.is_valid(old_text))
    parent, by_move, base_partition = _parents(s, text, old_text, is_move, loading=loading, by_offset=by_offset)
    columns = list(data.columns)
    masks = {}
    root = _ends(np.where(parent >= 0, parent, here))
    for name in unsent.column_names:
        missing = _numpy(unsent[name])[s.order]
        hop = _ends(np.where(missing & (parent >= 0), parent, here))
        place = delta.schema.names.index(name)
        source = hop[winners]
        columns[place] = data.column(place).take(pa.array(s.order[source]))
        masks[name] = missing[source]
        if doubtful is not None:
            unsure = doubtful[s.order[source]]
            delta = replace(delta, doubtful=pc.or_(_or_false(delta.doubtful, len(winners)), pa.array(unsure))) if unsure.any() else delta
    for place, name in enumerate(delta.schema.names):
        if name not in masks:
            columns[place] = delta.data.column(place)
    still = {name: mask for name, mask in masks.items() if mask.any()}
    filled = pa.table(columns, schema=delta.data.schema)
    if not still:
        return replace(delta, data=filled)
    need = np.logical_or.reduce(list(still.values()))
    ends = np.where(need, root[winners], -1)
    index = pa.array(np.where(ends >= 0, s.order[ends], 0), mask=ends < 0)
    key = data.select(delta.schema.key).take(index)
    key_of_end = text.take(index)
    if old_key is not None:
        moved_end = pa.array(is_move[ends] & (ends >= 0))
        earlier = old_key.take(index)
        key = pa.table([pc.if_else(moved_end, o, k) for o, k in zip(earlier.columns, key.columns, strict=True)], schema=key.schema)
        key_of_end = pc.if_else(moved_end, old_text.take(pa.array(np.where(ends >= 0, ends, 0), mask=ends < 0)), key_of_end)
    none = ends < 0
    no_move = none | ~by_move[ends] | (s.record[ends] < 0)
    # Behind a change of key, what stands under the old key is the image only if it is older than the change that left it.
    left = _last_on_the_way(np.where(parent >= 0, parent, here), is_move)[winners]
    below = np.where(left >= 0, left, winners)
    about = [
        key_of_end,
        pa.array(s.record[ends], mask=no_move),
        pa.array(s.record[below], mask=none),
        pa.array(base_partition[ends], mask=none),
        pa.array(s.minor[ends], mask=no_move),
        pa.array(s.minor[below], mask=none),
        pa.array(s.offset[below], mask=none),
    ]
    return replace(
        delta,
        data=filled,
        unsent=pa.table({name: pa.array(mask) for name, mask in still.items()}),
        base=Base(key, pa.table(about, schema=BASE)),
    )


def _parents(
    s: _Sorted, text: pa.Array, old_text: pa.Array, is_move: Bools, *, loading: bool, by_offset: bool
) -> tuple[Ints, Bools, npt.NDArray[np.int32]]:
    """For each sorted row the row that holds its earlier image (-1: outside of the batch); whether that is the other half of a move outside
    of the batch (or an image that cannot be known), made at the row's own position; and the partition that an image outside came by."""
    n = len(s.order)
    previous = np.arange(n) - 1
    # What was known before a resync may have been wrong: images are followed within one generation only.
    previous[~(_same_as_previous(s.code) & _same_as_previous(s.gen))] = -1
    # A row of an incremental snapshot stands before the stream's changes in the order, and may be of a later moment than they.
    previous[(previous >= 0) & (s.record[previous] == INCREMENTAL)] = -1
    # Of a key that went to another partition, later changes on the old one may not be read yet.
    previous[(previous >= 0) & (s.partition[previous] != s.partition)] = -1
    # A change that came again behind a later one: what came between the two may be applied already, and not be in the batch.
    again = _same_as_previous(s.code) & _same_as_previous(s.gen) & _same_as_previous(s.place) & _same_as_previous(s.op)
    if by_offset:
        again[:] = False
    first = s.offset[np.maximum.accumulate(np.where(again, 0, np.arange(n)))]
    late = (previous >= 0) & (first[previous] > s.offset)
    previous[late] = -1
    deleted_before = (previous >= 0) & (s.op[previous] == Op.DELETE)
    parent = np.where(deleted_before, -1, previous)
    by_move = deleted_before & ~is_move
    moves = np.flatnonzero(is_move)
    base_partition = s.partition.copy()
    if by_offset:  # Nobody can tell whether it came again, or for the first time.
        base_partition[late] = NOWHERE
    if loading or by_offset:  # By the offset: the key may have been left several times at the position of the move.
        parent[moves], base_partition[moves] = -1, NOWHERE
    if loading or by_offset or not len(moves):
        return parent, by_move, base_partition
    # The old key's delete carries the same position as the create: find it among the batch's deletes.
    deletes = np.flatnonzero(s.op == Op.DELETE)
    texts = pa.concat_arrays([text.take(pa.array(s.order[deletes])), old_text.take(pa.array(moves))])
    codes = _numpy(pc.dictionary_encode(texts).indices).astype(np.int64)
    places, rank = np.unique(np.concatenate([s.place[deletes], s.place[moves]]), return_inverse=True)
    pair = codes * len(places) + rank
    by_pair = np.argsort(pair[: len(deletes)], kind="stable")
    wanted = pair[len(deletes) :]
    at = np.minimum(np.searchsorted(pair[by_pair], wanted), max(len(deletes) - 1, 0))
    found = np.zeros(len(moves), np.bool_) if not len(deletes) else pair[by_pair[at]] == wanted
    before = np.where(found, previous[deletes[by_pair[at]]], -1) if len(deletes) else np.full(len(moves), -1)
    usable = (before >= 0) & (s.op[before] != Op.DELETE) & (s.gen[before] == s.gen[moves])
    parent[moves] = np.where(usable, before, -1)
    by_move[moves] = ~(usable | (found & (before < 0)))
    base_partition[moves[found]] = s.partition[deletes[by_pair[at[found]]]]
    return parent, by_move, base_partition


def _ends(pointers: Ints) -> Ints:
    """Where each chain of pointers ends (a row that points to itself), by doubling: log2(longest chain) rounds."""
    while not np.array_equal(further := pointers[pointers], pointers):
        pointers = further
    return pointers


def _last_on_the_way(pointers: Ints, marked: Bools) -> Ints:
    """The last marked row on each chain of pointers from a row to its end, both counted (-1: none), by doubling as ``_ends``."""
    last = np.where(marked, np.arange(len(pointers)), -1)
    while True:
        last = np.where(last[pointers] >= 0, last[pointers], last)
        further = pointers[pointers]
        if np.array_equal(further, pointers):
            return last
        pointers = further


def _taken(table: pa.Table, rows: Ints) -> pa.Table:
    """These rows, which ascend. Each piece of the table is copied for itself, and none where all of its rows are taken: a batch may be
    large."""
    if len(rows) == len(table):
        return table
    chosen = np.zeros(len(table), np.bool_)
    chosen[rows] = True
    return table.filter(pa.array(chosen))


def _numpy(column: pa.Array | pa.ChunkedArray) -> npt.NDArray[Any]:
    values: npt.NDArray[Any] = column.to_numpy() if isinstance(column, pa.ChunkedArray) else column.to_numpy(zero_copy_only=False)
    return values


def _same_as_next(values: npt.NDArray[np.generic]) -> Bools:
    same = np.zeros(len(values), np.bool_)
    same[:-1] = values[:-1] == values[1:]
    return same


def _same_as_previous(values: npt.NDArray[np.generic]) -> Bools:
    same = np.zeros(len(values), np.bool_)
    same[1:] = values[1:] == values[:-1]
    return same


def _or_false(mask: pa.Array | None, rows: int) -> pa.Array:
    return pa.array(np.zeros(rows, np.bool_)) if mask is None else mask.combine_chunks() if isinstance(mask, pa.ChunkedArray) else mask


def concat_masks(masks: Sequence[pa.Table | None], rows: Sequence[int]) -> pa.Table | None:
    names = sorted({name for mask in masks if mask is not None for name in mask.column_names})
    if not names:
        return None
    false = {name: [np.zeros(n, np.bool_) for n in rows] for name in names}
    for at, mask in enumerate(masks):
        if mask is not None:
            for name in mask.column_names:
                false[name][at] = _numpy(mask[name])
    return pa.table({name: np.concatenate(parts) for name, parts in false.items()})


def _concat_keys(keys: Sequence[pa.Table | None], rows: Sequence[int], schema: pa.Schema, names: Sequence[str]) -> pa.Table | None:
    if all(key is None for key in keys):
        return None
    fields = pa.schema([schema.field(name) for name in names])
    none = [pa.table([pa.nulls(n, field.type) for field in fields], schema=fields) for n in rows]
    return pa.concat_tables([empty if key is None else key for key, empty in zip(keys, none, strict=True)]).combine_chunks()
