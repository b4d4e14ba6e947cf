"""What the pipeline asks of the source's log and of its connector, in the pipeline's words."""

from __future__ import annotations

from dataclasses import dataclass

from cdc_service.core.errors import CdcError
from cdc_service.core.types import TableId
from cdc_service.runtime.wiring.parts import Parts
from connectors.debezium.register import request_snapshots


@dataclass(frozen=True, slots=True)
class Snapshots:
    """pipeline.watermarks.Snapshots over the connector."""

    parts: Parts

    def ask(self, table: TableId, signal_id: str, *, afresh: bool = False) -> None:
        p = self.parts
        request_snapshots(p.names, [table], p.source, p.connect, p.kafka, ids={table: signal_id}, afresh=afresh)

    def names(self, text: str, table: TableId) -> bool:
        return self.parts.source.names_collection(text, table)


@dataclass(frozen=True, slots=True)
class Horizon:
    """pipeline.commands.Horizon: the oldest log position that is still held lies below all open transactions."""

    parts: Parts

    def horizon(self, table: TableId) -> int:
        if (refused := self.parts.source.snapshot_refusal(table)) is not None:
            raise CdcError(f"{refused.name} {refused.message}", hint=refused.cure, code="table_refused")
        hold = self.parts.source.hold(self.parts.names)
        if hold is None or hold.status == "lost":
            raise CdcError("nothing holds the source's log for this pipeline", hint="cdc register", code="not_registered")
        return max(0, self.parts.source.position() - (hold.retained_bytes or 0))

    def settled(self, table: TableId) -> int:
        return self.parts.source.settled(table)
