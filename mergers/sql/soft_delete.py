"""A target that holds the rows of its source and those that it had (Mode.SOFT_DELETE): a deleted row stays as it was last, marked.

The row itself keeps the version of its delete; DELETED_KEYS has only the images that key changes leave.
"""

from __future__ import annotations

from cdc_service.core.logical import Kind, LogicalType
from cdc_service.core.types import Op
from mergers.sql.spelling import Statement
from mergers.sql.staging import Metadata
from mergers.sql.upsert import Upsert

DELETED: Metadata = ("_cdc_deleted", LogicalType(Kind.BOOL), f"s.op = {int(Op.DELETE)}", False)


class SoftDelete(Upsert):
    __slots__ = ()

    keeps_deleted = True
    becomes_row = "TRUE"
    leaves_key = f"{Upsert.leaves_key} AND s.moved"

    @property
    def metadata(self) -> tuple[Metadata, ...]:
        return (*super().metadata, DELETED)

    def live(self, alias: str) -> str:
        return f"NOT {self._deleted(alias)}"

    def _deleted(self, alias: str) -> str:
        return f"{alias}.{self.spelling.quote(DELETED[0])}"

    def _stays(self, revives: str) -> str:
        return f"NOT ({self._deleted('t')} AND {revives})"

    def sweep(self, generation: int, record: int) -> Statement:
        """Marks the rows."""
        q = self.spelling.quote
        below, params = self._below(generation, record)
        sets = [f"{q(DELETED[0])} = TRUE"]
        if self.target.full_metadata:
            sets.append(f"{q('_cdc_synced_at')} = now()")
        return Statement(f"UPDATE {self.place} AS t SET {', '.join(sets)} WHERE {self.live('t')} AND {below}", params)
