"""Leaves columns out: neither the target nor anything beside it ever holds their values.

Example: ``Exclude(frozenset({"secret"}))`` on a table (id, secret, name) gives (id, name).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import pyarrow as pa

from cdc_service.core.types import ChangeBatch, TableSchema


@dataclass(frozen=True, slots=True)
class Exclude:
    """ports.transform.Transform without ``columns``; the configuration refuses those of a key. A name that a table has not is left out of
    nothing: a column may be excluded before it is added."""

    columns: frozenset[str]

    @property
    def unread(self) -> frozenset[str]:
        return self.columns

    def schema(self, schema: TableSchema) -> TableSchema:
        if self.columns.isdisjoint(schema.names):
            return schema
        return replace(schema, columns=tuple(c for c in schema.columns if c.name not in self.columns))

    def apply(self, batch: ChangeBatch) -> ChangeBatch:
        if self.columns.isdisjoint(batch.schema.names):
            return batch
        return replace(batch, schema=self.schema(batch.schema), data=self._without(batch.data), unsent=self._unsent(batch.unsent))

    def _without(self, rows: pa.Table) -> pa.Table:
        return rows.select([name for name in rows.column_names if name not in self.columns])

    def _unsent(self, masks: pa.Table | None) -> pa.Table | None:
        left = None if masks is None else self._without(masks)
        return left if left is not None and left.column_names else None
