"""From bytes to the changes that a table's target can hold, once for every way by which they come: decode, transform, validate, park.

Stream, first load, replay of parked records, rows that are read again and the log that a comparison reads all pass here, so that a policy
has one door. Promises: every record of a RawBatch comes out once, as a row, as a rejected record or as a filtered one; nothing behind this
module sees a value that a transform took away.

Example: ``Prepare(topic, decoder, transforms, capabilities).fitting(raw, nothing_parked())``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from cdc_service.core.errors import CdcError
from cdc_service.core.types import META, ChangeBatch, RawBatch, TableSchema
from cdc_service.core.validate import Bounds, outside, screen
from cdc_service.ports.events import Decoder
from cdc_service.ports.transform import Transform
from cdc_service.transforms import transformed


@dataclass(frozen=True, slots=True)
class Prepare:
    """The way into one table. ``bounds`` are the destination's."""

    topic: str
    decoder: Decoder
    transforms: Sequence[Transform]
    bounds: Bounds

    def changes(self, raw: RawBatch) -> Iterator[ChangeBatch]:
        """What the records tell, transformed; values that the destination cannot hold are among it. Raises what ``Decoder.decode`` does."""
        for batch in self.decoder.decode(raw):
            yield transformed(self.transforms, batch)

    def fitting(
        self, raw: RawBatch, parked: pa.Array, refused: Mapping[tuple[int, int], tuple[str, str]] | None = None
    ) -> tuple[list[ChangeBatch], pa.Array]:
        """``changes`` without what cannot be held or has to wait, and the keys that are parked from now on (core.validate.screen)."""
        found = []
        for batch in self.changes(raw):
            fits, parked = screen(raw, batch, self.bounds, parked, refused)
            found.append(fits)
        return found, parked

    def loaded(self, batch: ChangeBatch) -> ChangeBatch:
        """Rows that were read at the source itself, transformed. Raises CdcError (unloadable) where one cannot be held: there are no raw
        bytes of it that could be parked."""
        batch = transformed(self.transforms, batch)
        for column in batch.schema.columns:
            if outside(batch.data.column(column.name), column.type, self.bounds).any():
                raise CdcError(f"column {column.name}: a value in it is outside of what the destination can hold", code="unloadable")
        return batch

    def from_text(self, rows: pa.Table, schema: TableSchema) -> pa.Table:
        """Columns that were read again at the source, as text, as ``changes`` would have them. Raises as ``Decoder.from_text`` does."""
        read = self.decoder.from_text(self.topic, rows, schema)
        if not self.transforms:
            return read
        own = TableSchema(schema.table, tuple(schema.column(name) for name in read.column_names), ())
        return transformed(self.transforms, ChangeBatch(own, read, META.empty_table(), ())).data
