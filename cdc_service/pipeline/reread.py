"""Completes a delta by reading rows again at the source: those whose unsent values stand nowhere in the warehouse, and those with a value
of which the event does not tell what it is.

The whole row is read, not the unsent columns alone, and takes the version ``record = position`` of the reading: values of two moments
never mix, all changes of the key up to it are superseded, and what comes after it still arrives. A row that is gone becomes a delete.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cdc_service.core.errors import CdcError, Disposition
from cdc_service.core.keys import key_text
from cdc_service.core.logical import Kind
from cdc_service.core.order import INCREMENTAL, LAST_MINOR, Seen
from cdc_service.core.types import Delta, Mode, Op, TableId
from cdc_service.pipeline.prepare import Prepare
from cdc_service.ports.destination import UnsentUnknown
from cdc_service.ports.events import InexactText
from cdc_service.ports.source import Reread

KEYS_MAX = 10_000


Why = tuple[str, str]
"""The code and the message under which a record is parked."""


class Unreadable(CdcError):
    """Rows that cannot be completed: ``records`` are, by (partition, offset), their events, to be parked, and why."""

    code = "unsent_unreadable"
    disposition = Disposition.POISON

    def __init__(self, records: Mapping[tuple[int, int], Why]) -> None:
        super().__init__(next((message for _, message in records.values()), "rows cannot be read again"))
        self.records = dict(records)


class Rereads(Protocol):
    """The part of a source that reads rows again (ports.source)."""

    def reread(self, table: TableId, keys: pa.Table, columns: Sequence[str]) -> Reread: ...
    def misread(self, table: TableId, key: Sequence[str], rows: pa.Table) -> pa.Int8Array | None: ...


def doubted(delta: Delta, source: Rereads) -> pa.Table | None:
    """The keys of the rows that have to be read again before they are merged: an event does not tell what a value is, or a snapshot's row
    is not as the source has it now. Raises Unreadable where reading again does not help, and Unavailable while the source does not answer.

    Of a row that has changed since the snapshot another event comes, but until then the target would hold what was never so."""
    meta, schema, log = delta.meta, delta.schema, delta.target.mode is Mode.APPEND
    op, rows = meta["op"].to_numpy(), np.arange(meta.num_rows)
    wanted = np.zeros(len(op), np.bool_) if delta.doubtful is None else np.array(delta.doubtful)
    read = rows[(op == Op.READ) & (meta["record"].to_numpy() <= INCREMENTAL)]
    if len(read) and schema.key and any(column.type.kind is Kind.DATE for column in schema.columns):
        found = source.misread(schema.table, schema.key, delta.data.take(pa.array(read)))
        seen = np.zeros(len(read), np.int8) if found is None else np.array(found)
        _refuse(meta, read[seen == Seen.KEY], _snapshot_value(_CHANGED_KEY, schema.table))
        if log:
            _refuse(meta, read[seen == Seen.CHANGED], _snapshot_value(_CHANGED, schema.table))
        else:
            wanted[read[seen != Seen.SAME]] = True
    wanted &= op < Op.DELETE
    return delta.data.select(schema.key).filter(pa.array(wanted)) if wanted.any() else None


_MADE = "before Christ, or of 1582-10-05..14, which the connector's snapshots turn into another; UPDATE that row, then: "
_CHANGED = f"a snapshot's row of a log, where the source has a date {_MADE}"
_CHANGED_KEY = f"a snapshot's row that may be another's, since the source has one whose key holds a date {_MADE}"


def _snapshot_value(message: str, table: TableId) -> Why:
    return "snapshot_value", f"{message}cdc quarantine discard {table} --code snapshot_value --and-replay-rest"


_UNREADABLE = (
    "a value was not sent and stands nowhere in the warehouse, or the event does not tell what it is, and what the source holds now of "
    "{columns} cannot be read in the form of an event"
)
_MISSHAPEN = "{columns}: an array of more than one dimension, or that does not begin with element 1, is no list; events lose its form"


def _refuse(meta: pa.Table, rows: npt.NDArray[np.int64], why: Why) -> None:
    places = meta.take(pa.array(rows))
    if places.num_rows:
        raise Unreadable(dict.fromkeys(zip(places["partition"].to_pylist(), places["offset"].to_pylist(), strict=True), why))


def completed(delta: Delta, unknown: UnsentUnknown, source: Rereads, prepare: Prepare) -> Delta:
    """``delta`` with the rows of ``unknown`` as they are now at the source. Raises Unreadable where a value is there that text cannot give
    back, and Unavailable while the source does not answer."""
    schema = delta.schema
    texts = key_text(unknown.keys)
    for start in range(0, unknown.keys.num_rows, KEYS_MAX):
        keys = unknown.keys.slice(start, KEYS_MAX)
        again = source.reread(schema.table, keys, schema.names)
        place = pc.index_in(delta.meta["key"], texts.slice(start, KEYS_MAX))
        for column in sorted(again.unreadable, key=lambda name: name not in again.misshapen):
            lost = _rows(again.where[column].take(place) if column in again.where else pc.is_valid(place))
            shaped = column in again.misshapen
            code, message = ("array_dimensions", _MISSHAPEN) if shaped else (Unreadable.code, _UNREADABLE)
            _refuse(delta.meta, lost, (code, message.format(columns=column)))
        try:
            rows = prepare.from_text(again.rows, schema)
        except InexactText as inexact:
            bad = _rows(pa.array(inexact.rows, pa.bool_()).take(place))
            _refuse(delta.meta, bad, ("inexact_value", inexact.message))
            raise
        delta = _replaced(delta, place, rows, again)
    return delta


def _replaced(delta: Delta, place: pa.Array, rows: pa.Table, again: Reread) -> Delta:
    """Row i of the delta becomes row ``place[i]`` of ``rows``; NULL leaves it as it is."""
    mine = pc.is_valid(place)
    gone = pc.fill_null(pc.invert(again.found.take(place)), False)
    data = []
    for name in delta.schema.names:
        old = delta.data.column(name)
        new = old if name in delta.schema.key else rows.column(name).take(place)
        data.append(pc.if_else(mine, new, old))
    meta = {name: delta.meta.column(name) for name in delta.meta.column_names}
    meta["op"] = pc.if_else(gone, pa.scalar(int(Op.DELETE), pa.int8()), meta["op"])
    meta["record"] = pc.if_else(mine, pa.scalar(again.position, pa.int64()), meta["record"])
    if delta.target.ordering.minor:
        meta["minor"] = pc.if_else(mine, pa.scalar(LAST_MINOR, pa.int64()), meta["minor"])
    meta["moved"] = pc.if_else(mine, False, meta["moved"])
    data, doubtful = pa.table(data, schema=delta.data.schema), None if delta.doubtful is None else pc.and_not(delta.doubtful, mine)
    delta = replace(delta, data=data, meta=pa.table(meta, schema=delta.meta.schema), doubtful=doubtful)
    if delta.unsent is None:
        return delta
    assert delta.base is not None
    masks = {name: pc.and_(delta.unsent.column(name), pc.invert(mine)) for name in delta.unsent.column_names}
    still = {name: mask for name, mask in masks.items() if pc.any(mask).as_py()}
    return replace(
        delta,
        unsent=pa.table(still) if still else None,
        base=delta.base.cleared(mine) if still else None,
    )


def _rows(where: pa.Array | pa.ChunkedArray) -> npt.NDArray[np.int64]:
    return np.flatnonzero(pc.fill_null(where, False).to_numpy(**({} if isinstance(where, pa.ChunkedArray) else {"zero_copy_only": False})))
