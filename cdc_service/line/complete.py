"""Completes a delta whose unsent values stand nowhere in the warehouse, by reading the rows again at the source.

The whole row is read, not the unsent columns alone, and takes the version ``record = position`` of the reading: values of two moments
never mix, all changes of the key up to it are superseded, and what comes after it still arrives. A row that is gone becomes a delete.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import pyarrow as pa
import pyarrow.compute as pc

from cdc_service.core.decode import Decoder
from cdc_service.core.errors import CdcError, Disposition
from cdc_service.core.keys import key_text
from cdc_service.core.types import Delta, Op, TableId
from mergers.protocol import UnsentUnknown

KEYS_MAX = 10_000


class Reread(Protocol):
    """What a source dialect gives back (connectors.protocol.Reread)."""

    @property
    def rows(self) -> pa.Table: ...
    @property
    def found(self) -> pa.BooleanArray: ...
    @property
    def position(self) -> int: ...
    @property
    def unreadable(self) -> tuple[str, ...]: ...


class Unreadable(CdcError):
    """Rows of which an unsent value stands nowhere: ``records`` are the (partition, offset) of their events, to be parked."""

    code = "unsent_unreadable"
    disposition = Disposition.POISON

    def __init__(self, records: frozenset[tuple[int, int]], columns: Sequence[str]) -> None:
        super().__init__(
            "a value was not sent and stands nowhere in the warehouse, and what the source holds now of "
            f"{', '.join(columns)} cannot be read in the form of an event; REPLICA IDENTITY FULL keeps it from happening"
        )
        self.records = records


class Rereads(Protocol):
    """The part of a source dialect that reads rows again (connectors.protocol.SourceDialect)."""

    def reread(self, table: TableId, keys: pa.Table, columns: Sequence[str]) -> Reread: ...


def completed(delta: Delta, unknown: UnsentUnknown, source: Rereads, decoder: Decoder, topic: str) -> Delta:
    """``delta`` with the rows of ``unknown`` as they are now at the source. Raises Unreadable where a column has a type that text
    cannot give back, and Unavailable while the source does not answer."""
    schema = delta.schema
    texts = key_text(unknown.keys)
    for start in range(0, unknown.keys.num_rows, KEYS_MAX):
        keys = unknown.keys.slice(start, KEYS_MAX)
        again = source.reread(schema.table, keys, schema.names)
        place = pc.index_in(delta.meta["key"], texts.slice(start, KEYS_MAX))
        if again.unreadable:
            rows = delta.meta.filter(pc.is_valid(place))
            where = zip(rows["partition"].to_pylist(), rows["offset"].to_pylist(), strict=True)
            raise Unreadable(frozenset(where), again.unreadable)
        delta = _replaced(delta, place, decoder.from_text(topic, again.rows, schema), again)
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
    meta["moved"] = pc.if_else(mine, False, meta["moved"])
    delta = replace(delta, data=pa.table(data, schema=delta.data.schema), meta=pa.table(meta, schema=delta.meta.schema))
    if delta.unsent is None:
        return delta
    assert delta.base_key is not None
    masks = {name: pc.and_(delta.unsent.column(name), pc.invert(mine)) for name in delta.unsent.column_names}
    still = {name: mask for name, mask in masks.items() if pc.any(mask).as_py()}
    return replace(
        delta,
        unsent=pa.table(still) if still else None,
        base_key=pa.table({n: _nulled(mine, delta.base_key.column(n)) for n in delta.base_key.column_names}) if still else None,
        base_text=_nulled(mine, delta.base_text) if still and delta.base_text is not None else None,
        base_move=_nulled(mine, delta.base_move) if still and delta.base_move is not None else None,
        base_record=_nulled(mine, delta.base_record) if still and delta.base_record is not None else None,
        base_partition=_nulled(mine, delta.base_partition) if still and delta.base_partition is not None else None,
    )


def _nulled(where: pa.Array, values: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    return pc.if_else(where, pa.scalar(None, values.type), values)
