"""What the tables of the line work with, and what they ask of the outside world."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from cdc_service.config.models import Limits
from cdc_service.core.clock import Clock
from cdc_service.core.identity import Identities, Judgement
from cdc_service.core.types import TableId, TableSchema
from cdc_service.pipeline.loading import Beside, Fetch, Item
from cdc_service.pipeline.reread import Rereads
from cdc_service.ports.destination import Destination
from cdc_service.ports.events import Decoder
from cdc_service.ports.feed import Topics
from cdc_service.ports.reader import Load
from cdc_service.ports.source import Fill


class RereadSource(Rereads, Protocol):
    """What a table asks of its source (ports.source)."""

    def load(self, table: TableId) -> Load: ...
    def fill_of_added_column(self, table: TableId, column: str) -> Fill: ...
    def judge(self, table: TableId, before: str | None, after: str | None) -> Judgement: ...


@dataclass(frozen=True, slots=True)
class Context:
    """What all tables work with. ``schema_of`` tells the schema of a table that had no event yet, None where that is not certain.
    ``columns_of`` names the columns that the source's catalog has now and that events may carry, ``identities`` gives what it says of
    tables now (core.identity); both raise Unavailable."""

    destination: Destination
    topics: Topics
    decoder: Decoder
    source: RereadSource
    schema_of: Callable[[TableId], TableSchema | None]
    columns_of: Callable[[TableId], Sequence[str]]
    identities: Callable[[Sequence[TableId]], Identities]
    clock: Clock
    limits: Limits
    fetch: Callable[[Iterator[Item]], Fetch] = Beside
    """How rows of a load are read: beside the merges."""
