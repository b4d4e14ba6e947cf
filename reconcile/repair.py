"""Repairs rows: what is still different is read again at the source, at a position, and goes through the destination's ordered merge.

Each row gets the version of that position: it wins over every event before, and every event behind it wins over the row. So a repair may
run beside the merging, may run twice, and can undo nothing that is newer. It changes no checkpoint, since no record of the log is in it.

Promises: a row is repaired only if it differs now; what cannot be repaired exactly is named with its reason; the result is looked at again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cdc_service.core.keys import key_text
from cdc_service.core.order import LAST_MINOR
from cdc_service.core.types import BASE, META, Base, Column, Delta, Op, TableSchema, Target
from cdc_service.ports.reader import Scan
from reconcile.compare.engine import key_table, typed_table
from reconcile.judge import KEYS_AT_ONCE, Case, Found, Judge, judge
from reconcile.report.document import Kind
from reconcile.run import Subject

PLACE = -1
"""Partition and offset of a row that no record brought."""


@dataclass(frozen=True, slots=True)
class Deed:
    """What is done to one key: insert, update, delete, or nothing (``why`` says so)."""

    key: Mapping[str, str | None]
    action: str
    why: str = ""

    def as_json(self) -> dict[str, Any]:
        return {"key": dict(self.key), "action": self.action, "why": self.why or None}


@dataclass(frozen=True, slots=True)
class Repaired:
    """``equal`` keys had become equal by themselves, ``in_flight`` changed too fast; ``done`` are the keys that were repaired, ``left`` as
    many still differ."""

    deeds: Sequence[Deed]
    equal: int
    in_flight: int
    done: Sequence[Mapping[str, str | None]]
    left: int
    why: str = ""


ACTIONS = {Kind.MISSING: "insert", Kind.EXTRA: "delete", Kind.DIFFERENT: "update", Kind.REPRESENTATION: "update"}


def keys_of(schema: TableSchema, texts: Sequence[str]) -> pa.Table:
    """The keys out of recorded differences (JSON objects of texts), typed, each once."""
    rows = [json.loads(text) for text in dict.fromkeys(texts)]
    return key_table(schema.key_columns, {c.name: [row[c.name] for row in rows] for c in schema.key_columns})


def repair(
    subject: Subject, keys: pa.Table, generation: int, merge: Callable[[Delta, TableSchema], None], *, dry_run: bool, batch_id: str
) -> Repaired:
    """``merge`` applies a delta on the line's thread. The table is none that is kept as a log. Raises CdcError where a server does not
    answer."""
    with subject.source.scan(subject.target.source) as scan:
        left_out = set(scan.unreadable(subject.schema.columns)) | {c.name for c in subject.schema.columns if c.dropped}
    columns = [c for c in subject.schema.columns if c.name not in left_out]
    table = Judge(subject.target.source, subject.schema.key_columns, columns, subject.view, subject.log)
    judge([case := Case(table, [keys])], subject.source)
    found, verdicts = case.differences(), case.verdicts
    deeds = [_deed(f, left_out) for f in found]
    wanted = {f.key_text for f, deed in zip(found, deeds, strict=True) if deed.action != "none"}
    if dry_run or not wanted:
        return Repaired(deeds, verdicts.late, verdicts.in_flight, (), 0, verdicts.why)
    chosen = keys.filter(pc.is_in(key_text(keys), pa.array(sorted(wanted), pa.string())))
    for first in range(0, chosen.num_rows, KEYS_AT_ONCE):
        some = chosen.slice(first, KEYS_AT_ONCE)
        with subject.source.settled([table.table]) as settled, settled.scan(table.table) as scan:
            delta = _delta(subject.target, subject.schema, columns, scan, some, (generation, settled.low), batch_id)
        merge(delta, subject.schema)
    judge([after := Case(table, [chosen])], subject.source)
    left = {f.key_text for f in after.differences()}
    done = [f.key for f in found if f.key_text in wanted - left]
    return Repaired(deeds, verdicts.late, verdicts.in_flight + after.verdicts.in_flight, done, len(left), verdicts.why)


def _deed(f: Found, left_out: set[str]) -> Deed:
    if f.kind is Kind.MISSING and left_out:
        return Deed(f.key, "none", f"{', '.join(sorted(left_out))} cannot be read again exactly: cdc resync loads the table anew")
    doubled = f.kind is Kind.EXTRA and f.source is not None
    return Deed(f.key, "update" if doubled else ACTIONS[f.kind])


def _delta(
    target: Target, schema: TableSchema, columns: Sequence[Column], scan: Scan, keys: pa.Table, version: tuple[int, int], batch_id: str
) -> Delta:
    """The rows of ``keys`` as the source has them now, and deletes for those that it has not, all of one version."""
    key = [c.name for c in schema.key_columns]
    here = typed_table(columns, scan.fetch(schema.key_columns, columns, keys))
    gone = keys.filter(pc.invert(pc.is_in(key_text(keys), key_text(here.select(key)))))
    rows, deletes = here.num_rows, gone.num_rows
    n, sent = rows + deletes, {c.name for c in columns}
    data = {}
    for c in schema.columns:
        known = here[c.name] if c.name in sent else pa.nulls(rows, c.type.arrow)
        data[c.name] = pa.chunked_array([*_chunks(known), *_chunks(gone[c.name] if c.name in key else pa.nulls(deletes, c.type.arrow))])
    table = pa.table(data)
    texts = key_text(table.select(key))
    meta = pa.table(
        {
            "op": pa.array([int(Op.UPDATE)] * rows + [int(Op.DELETE)] * deletes, META.field("op").type),
            "partition": pa.array(np.full(n, PLACE), pa.int32()),
            "offset": pa.array(np.full(n, PLACE), pa.int64()),
            "commit": pa.nulls(n, pa.int64()),
            "record": pa.array(np.full(n, version[1]), pa.int64()),
            "minor": pa.array(np.full(n, LAST_MINOR if target.ordering.minor else 0), pa.int64()),
            "source_us": pa.nulls(n, pa.int64()),
            "index": pa.array(np.arange(n), pa.int64()),
            "gen": pa.array(np.full(n, version[0]), pa.int32()),
            "key": texts,
            "moved": pa.array(np.zeros(n, np.bool_)),
        }
    )
    unsent = {c.name: pa.array([True] * rows + [False] * deletes) for c in schema.columns if c.name not in sent and not c.dropped}
    if not unsent:
        return Delta(batch_id, target, schema, table, meta, (), {})
    about = [texts, *(pa.nulls(n, field.type) for field in list(BASE)[1:])]
    return Delta(
        batch_id, target, schema, table, meta, (), {}, unsent=pa.table(unsent), base=Base(table.select(key), pa.table(about, schema=BASE))
    )


def _chunks(values: pa.Array | pa.ChunkedArray) -> list[pa.Array]:
    return values.chunks if isinstance(values, pa.ChunkedArray) else [values]
