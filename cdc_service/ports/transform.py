"""The contract of a transform: what becomes of a table's changes between decoding and anything that keeps them.

Promises wanted: pure, so that the same change becomes the same row however often and by whichever way it comes (stream, load, reading
again, replay, comparison); the schema of what ``apply`` gives is what ``schema`` says.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

from cdc_service.core.types import ChangeBatch, TableSchema


class Transform(Protocol):
    @property
    def unread(self) -> Collection[str]:
        """The source's columns that it needs for nothing. Who reads events or rows may leave them out: a value that cannot be told exactly
        holds nothing up where nobody wants it."""
        ...

    def schema(self, schema: TableSchema) -> TableSchema:
        """What a table of ``schema`` looks like behind it. The key's values stay what they are: they decide the order of changes."""
        ...

    def apply(self, batch: ChangeBatch) -> ChangeBatch:
        """The batch with the same rows, in the same order, under ``schema(batch.schema)``."""
        ...
