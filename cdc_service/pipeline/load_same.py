"""Which rows that were read are in the target already, and which of the target are gone at the source.

Promises: a row counts as the same only where every value that it brings is; keys are compared as canonical text (core.keys), like
everywhere in the line. What is held in memory does not grow with the table: keys of a whole table go into a file of their own.
"""

from __future__ import annotations

import json
import sqlite3
import uuid
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cdc_service.core.keys import key_text
from cdc_service.core.logical import Kind, LogicalType
from cdc_service.core.types import Column, Mode, TableSchema, Target
from cdc_service.ports.reader import View

KEYS_AT_ONCE = 20_000
Bools = npt.NDArray[np.bool_]


def same(view: View, target: Target, own: TableSchema, rows: pa.Table) -> tuple[Bools, Bools]:
    """Of each of ``rows`` (columns of the target's ``own`` schema) whether the target has a live row of its key, and whether that is the
    same in all columns. In a log of changes the last change of a key is its row."""
    here, alike = np.zeros(rows.num_rows, np.bool_), np.zeros(rows.num_rows, np.bool_)
    key = [own.column(name) for name in own.key]
    log = ["_cdc_record", "_cdc_op"] if target.mode is Mode.APPEND else []
    for first in range(0, rows.num_rows, KEYS_AT_ONCE):
        some = rows.slice(first, KEYS_AT_ONCE).combine_chunks()
        found = _fetched(view, key, rows.column_names, log, some)
        if found is None:
            continue
        columns, texts = found
        at = pc.index_in(key_text(some.select(own.key)), texts)
        there = np.asarray(at.is_valid())
        matched = columns.take(at.fill_null(0))
        equal = np.logical_and.reduce([_equal(some[name], matched[name], own.column(name).type) for name in rows.column_names])
        here[first : first + some.num_rows] = there
        alike[first : first + some.num_rows] = there & equal
    return here, alike


def _fetched(
    view: View, key: Sequence[Column], names: Sequence[str], log: Sequence[str], some: pa.Table
) -> tuple[pa.Table, pa.Array] | None:
    """The target's rows of these keys, each key once, and the keys' texts."""
    found = view.fetch(key, [*names, *log], some.select([c.name for c in key]))
    if not found.num_rows:
        return None
    typed = pa.table({c.name: plain(found[c.name], c.type) for c in key})
    texts = key_text(typed)
    if log:
        keep = _last(texts, found["_cdc_record"])
        keep = keep[np.asarray(pc.not_equal(found["_cdc_op"].take(pa.array(keep)), "d"))]
        found, texts = found.take(pa.array(keep)), texts.take(pa.array(keep))
    return (found, texts) if found.num_rows else None


def _last(texts: pa.Array, record: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    """The place of the last change of each key."""
    order = np.argsort(-record.to_numpy(), kind="stable")
    codes = pc.dictionary_encode(texts.take(pa.array(order))).indices.to_numpy(zero_copy_only=False)
    _, first = np.unique(codes, return_index=True)
    return np.asarray(order[first], np.int64)


def plain(values: pa.Array | pa.ChunkedArray, type_: LogicalType) -> pa.Array:
    """What a reader gave in the Arrow type of the column, from text where it gave that."""
    array = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    if isinstance(array, pa.ExtensionArray):
        return pa.array([None if v is None else str(uuid.UUID(bytes=v)) for v in array.storage.to_pylist()], pa.string())
    if array.type == type_.arrow or type_.kind is Kind.ARRAY:
        return array
    if pa.types.is_temporal(array.type):
        return (
            array.cast(pa.timestamp("us", array.type.tz)).view(type_.arrow)
            if pa.types.is_timestamp(array.type)
            else array.view(type_.arrow)
        )
    return array.cast(type_.arrow)


def _equal(mine: pa.ChunkedArray, its: pa.ChunkedArray, type_: LogicalType) -> Bools:
    a, b = plain(mine, type_), plain(its, type_)
    nulls = np.asarray(a.is_null()) & np.asarray(b.is_null())
    valid = np.asarray(a.is_valid()) & np.asarray(b.is_valid())
    if type_.kind is Kind.ARRAY:
        equal = np.array([_listed(x) == _listed(y) for x, y in zip(a.to_pylist(), b.to_pylist(), strict=True)], np.bool_)
    elif pa.types.is_floating(a.type):
        x, y = (v.fill_null(0).to_numpy(zero_copy_only=False) for v in (a, b))
        equal = ((x == y) & (np.signbit(x) == np.signbit(y))) | (np.isnan(x) & np.isnan(y))
    else:
        width = pa.int32() if pa.types.is_date32(a.type) else pa.int64() if pa.types.is_temporal(a.type) else None
        x, y = (v if width is None else v.view(width) for v in (a, b))
        equal = np.asarray(pc.equal(x, y).fill_null(False))
    return np.asarray(nulls | (valid & equal), np.bool_)


def _listed(value: Any) -> Any:
    """A list of a driver, or its JSON."""
    return json.dumps(json.loads(value) if isinstance(value, str) else value, default=str)


def gone(kept: Iterable[pa.Table], there: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The keys of the target (``kept``, in parts) that are not among those of the source (``there``), which are all read first."""
    store = sqlite3.connect("")  # A file that is gone with the connection; what fits stays in memory.
    try:
        store.execute("CREATE TABLE source (k TEXT PRIMARY KEY) WITHOUT ROWID")
        for part in there:
            store.executemany("INSERT OR IGNORE INTO source VALUES (?)", ((text,) for text in key_text(part).to_pylist()))
        for part in kept:
            texts = key_text(part).to_pylist()
            store.execute("CREATE TEMP TABLE IF NOT EXISTS target (n INTEGER, k TEXT)")
            store.execute("DELETE FROM target")
            store.executemany("INSERT INTO target VALUES (?, ?)", enumerate(texts))
            missing = "SELECT n FROM target WHERE k NOT IN (SELECT k FROM source) ORDER BY n"
            if found := [n for (n,) in store.execute(missing)]:
                yield part.take(pa.array(found))
    finally:
        store.close()


def kept_keys(view: View, target: Target, key: Sequence[Column]) -> Iterator[pa.Table]:
    """The keys of the target's live rows, in parts."""
    forms = dict(view.forms(key))
    if target.mode is not Mode.APPEND:
        for batch in view.select(forms):
            yield pa.table({c.name: plain(batch.column(i), c.type) for i, c in enumerate(key)})
        return
    # Of a log of changes the last one of each key says whether it lives: all of its keys at once.
    forms |= {name: f'"{name}"' for name in ("_cdc_record", "_cdc_op")}
    batches = list(view.select(forms))
    if not batches:
        return
    whole = pa.Table.from_batches(batches)
    typed = pa.table({c.name: plain(whole[c.name], c.type) for c in key})
    last = _last(key_text(typed), whole["_cdc_record"])
    last = last[np.asarray(pc.not_equal(whole["_cdc_op"].take(pa.array(last)), "d"))]
    yield typed.take(pa.array(np.sort(last)))
