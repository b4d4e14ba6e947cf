"""A batch in the warehouse before it is merged: a staged table of its changes, with names of its own making, so that no column of the
source, whatever it is called, meets ours.

``c<i>`` is column i of the target's own schema, ``unsent`` says by a 1 for which of the columns that have unsent values this one is, and
``b<j>`` is key column j of the base row.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cdc_service.core.logical import Kind, LogicalType
from cdc_service.core.types import Delta, TableSchema

STAGE = "_cdc_stage"
FILLED = "_cdc_filled"
PARKED = "_cdc_parked"

STAGED_META = ("n", "op", "part", "pos", "com", "rec", "src", "gen", "key", "moved")

_LONG, _INT, _TIME = LogicalType(Kind.INT64), LogicalType(Kind.INT32), LogicalType(Kind.TIMESTAMPTZ)

Metadata = tuple[str, LogicalType, str, bool]
"""A column of a target that is the service's own: its name, its type, what a merge writes, and whether ``metadata: minimal`` leaves it
out."""
METADATA: tuple[Metadata, ...] = (
    ("_cdc_synced_at", _TIME, "now()", True),
    ("_cdc_source_ts", _TIME, "s.src", True),
    ("_cdc_partition", _INT, "s.part", False),
    ("_cdc_offset", _LONG, "s.pos", True),
    ("_cdc_gen", _INT, "s.gen", False),
    ("_cdc_commit", _LONG, "s.com", True),
    ("_cdc_record", _LONG, "s.rec", False),
)
"""Those of every target."""
MINOR: Metadata = ("_cdc_minor", _LONG, "s.minor", False)
"""One more where the source's positions have a second part."""

Staged = tuple[str, LogicalType, pa.Array | pa.ChunkedArray]
"""A column of the staged table: its name, its type, its values."""


def stage_table(
    delta: Delta, table: TableSchema, more: Sequence[Staged] = (), *, defaults: bool = True
) -> tuple[pa.Table, list[LogicalType]]:
    """The delta as one Arrow table with the staged names, and the logical types its columns are staged as. ``more`` are columns that a mode
    has beside the others; columns that the delta does not know have their ``defaults``, or NULL."""
    rows, meta, string, flag = delta.meta.num_rows, delta.meta, LogicalType(Kind.STRING), LogicalType(Kind.BOOL)
    unsent = {} if delta.unsent is None else {name: delta.unsent[name] for name in delta.unsent.column_names}
    columns: list[Staged] = [
        ("n", _LONG, pa.array(np.arange(rows))),
        ("op", LogicalType(Kind.INT16), meta["op"]),
        ("part", _INT, meta["partition"]),
        ("pos", _LONG, meta["offset"]),
        ("com", _LONG, meta["commit"]),
        ("rec", _LONG, meta["record"]),
        ("src", _TIME, _instants(meta["source_us"])),
        ("gen", _INT, meta["gen"]),
        ("key", string, meta["key"]),
        ("moved", flag, meta["moved"]),
    ]
    if delta.target.ordering.minor:
        columns.append(("minor", _LONG, meta["minor"]))
    columns += more
    if delta.base is not None:
        columns += [
            ("needs", flag, _any(list(unsent.values()), rows)),
            ("unsent", string, _marks([unsent[name] for name in table.names if name in unsent])),
            ("base_text", string, delta.base.about["text"]),
            ("base_move", _LONG, delta.base.about["move"]),
            ("base_rec", _LONG, delta.base.about["record"]),
            ("base_part", _INT, delta.base.about["partition"]),
        ]
        if delta.target.ordering.minor:
            names = {"base_move_minor": "move_minor", "base_minor": "minor", "base_pos": "offset"}
            columns += [(staged, _LONG, delta.base.about[name]) for staged, name in names.items()]
    sent = set(delta.schema.names)
    for i, column in enumerate(table.columns):
        if column.name in sent:
            values = delta.data[column.name]
        else:
            constant = pa.scalar(column.default if defaults and not column.dropped else None, column.type.arrow)
            values = pa.repeat(constant, rows)
        columns.append((f"c{i}", column.type, values))
    if delta.base is not None:
        columns += [(f"b{j}", table.column(name).type, delta.base.key[name]) for j, name in enumerate(table.key)]
    arrow = pa.table([values for _, _, values in columns], names=[name for name, _, _ in columns])
    return arrow, [type_ for _, type_, _ in columns]


def _instants(numbers: pa.ChunkedArray) -> pa.ChunkedArray:
    type_ = pa.timestamp("us", tz="UTC")
    return pa.chunked_array([chunk.view(type_) for chunk in numbers.chunks], type=type_)


def _marks(masks: Sequence[pa.ChunkedArray]) -> pa.ChunkedArray:
    """One text a row, with a digit for each mask. A column for each would be more than a table may have where many are unsent."""
    digits = [pc.if_else(mask, "1", "0") for mask in masks]
    return digits[0] if len(digits) == 1 else pc.binary_join_element_wise(*digits, "")


def _any(masks: Sequence[pa.ChunkedArray], rows: int) -> pa.Array:
    result = np.zeros(rows, np.bool_)
    for mask in masks:
        result |= mask.to_numpy()
    return pa.array(result)
