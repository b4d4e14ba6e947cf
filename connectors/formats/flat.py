"""Flattened events: what Debezium's transform ExtractNewRecordState makes of an envelope, the row alone with the event's metadata beside.

A flattened event is read where its metadata say what is needed to put it in order: the operation, the table, the position in the log, and
whether it is of a snapshot. It is then taken for the envelope that it was made from. What the transform drops is not to be had back: the
row before a change, and truncates (docs/wires.md).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cdc_service.ports.events import EventModel, Unsupported
from connectors.formats.blocks import Block
from connectors.formats.connect_schema import struct_field

DELETED = "__deleted"


def settings(model: EventModel) -> dict[str, str]:
    """What the transform has to be told; other settings of it stay as they are."""
    told = ",".join(f"source.{name}" for name in (*model.table, *model.fields.names, "ts_us"))
    return {"add.fields": f"op,{told}", "delete.tombstone.handling.mode": "rewrite", "replace.null.with.default": "false"}


def needed(model: EventModel) -> tuple[str, ...]:
    """What a flattened event has to say beside its row, by the envelope's names."""
    return ("op", *model.table, *model.needed)


@dataclass(frozen=True, slots=True)
class Flat:
    """Where a flattened event holds what the envelope did: by the envelope's name, ``op`` and those of its source."""

    fields: tuple[tuple[str, str], ...]


def row_of(schema: Mapping[str, Any], model: EventModel) -> tuple[Mapping[str, Any], Flat | None]:
    """(the schema of the row, where a flattened event holds the rest, None for an envelope). Raises Unsupported."""
    after = struct_field(schema, "after")
    if after is not None and struct_field(schema, "op") is not None and isinstance(after.get("fields"), list):
        return after, None
    names = [str(field["field"]) for field in schema.get("fields") or []]
    if DELETED not in names and not any(name.startswith("__") for name in names):
        raise Unsupported("this is not a Debezium change event (no op and after), nor one that ExtractNewRecordState made with metadata")
    wanted = dict.fromkeys((*needed(model), *model.fields.names, "ts_us"))
    found = {what: name for what in wanted for name in (f"__source_{what}", f"__{what}") if name in names}
    lacking = [what for what in needed(model) if what not in found]
    if DELETED not in names:
        raise Unsupported(f"the flattened event does not say whether its row was deleted: {_cure(model)}")
    if lacking:
        raise Unsupported(f"the flattened event does not say its {', '.join(lacking)}: {_cure(model)}")
    # The row's own columns come first; the transform puts what it adds behind them.
    own = names[: min(names.index(name) for name in (DELETED, *found.values()))]
    row = {**schema, "fields": [field for field in schema["fields"] if field["field"] in own]}
    return row, Flat(tuple(found.items()))


def _cure(model: EventModel) -> str:
    return "the transform ExtractNewRecordState needs " + ", ".join(f"{name}={value}" for name, value in settings(model).items())


def as_envelope(flat: Flat, read: Callable[[pa.Schema], Block], schema: pa.Schema) -> Block:
    """What ``read`` takes from flattened events, as ``schema`` wants it of the envelopes that they were made from."""
    source, row = schema.field("source").type, schema.field("after").type
    kinds = {field.name: field.type for field in source} | {"op": pa.string()}
    told = {what: name for what, name in flat.fields if what in kinds}
    wanted = pa.schema([*row, pa.field(DELETED, pa.string()), *(pa.field(name, kinds[what]) for what, name in told.items())])
    block = read(wanted)
    found = {name: _one(block.rows.column(name)) for name in wanted.names}
    op = found[told["op"]]
    # A deleted row holds what is left of it; the envelope has none. "true" with another op contradicts itself, and gets no row.
    gone = np.asarray(pc.or_kleene(pc.equal(op, "d"), pc.equal(found[DELETED], "true")).fill_null(False).to_numpy(zero_copy_only=False))
    after = pa.StructArray.from_arrays([found[field.name] for field in row], fields=list(row), mask=pa.array(gone))
    count = block.rows.num_rows
    inner = [found[told[field.name]] if field.name in told else pa.nulls(count, field.type) for field in source]
    columns = {"after": after, "source": pa.StructArray.from_arrays(inner, fields=list(source)), "op": op}
    made = [columns[field.name] if field.name in columns else pa.nulls(count, field.type) for field in schema]
    return Block(pa.Table.from_arrays(made, schema=schema), block.problems)


def _one(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
