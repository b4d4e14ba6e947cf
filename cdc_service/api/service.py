"""What the HTTP API asks of the service behind it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import pyarrow as pa


class Service(Protocol):
    """What the API needs of the service. Every call comes from a thread of the API's own."""

    def snapshot(self) -> dict[str, Any]:
        """The status document, from memory: never waits for a server."""
        ...

    def act(self, action: str, table: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Does ``action`` (pause, resume, resync, adopt) to a table: {table, state, message?}. Its wait is bounded. Raises CdcError."""
        ...

    def resume_all(self) -> dict[str, Any]:
        """Lets every table go on that stands still."""
        ...

    def quarantine(self, action: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """list, show, replay or discard parked records: {table?, key?, code?, id?, ...}. Its wait is bounded. Raises CdcError."""
        ...

    def query(self, sql: str, rows_max: int) -> pa.Table:
        """At most ``rows_max`` rows of one statement that only reads. Raises CdcError."""
        ...

    def reconcile(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Begins to compare tables with their source: {tables: [...], and options}; the run's state. Raises CdcError."""
        ...

    def reconciled(self, run_id: str) -> dict[str, Any]:
        """The run's state and, once it is done, its document. Raises CdcError."""
        ...

    def repair(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Repairs what a comparison found: {table, run?, dry_run?}; what was done to which key. Raises CdcError."""
        ...

    def explain(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The life of one key: {table, key: [values]}. Raises CdcError."""
        ...

    def cancel(self, run_id: str) -> dict[str, Any]:
        """Ends a run; what was compared by then is kept."""
        ...

    def health(self) -> tuple[bool, str]:
        """Whether the loop turned recently, and a sentence."""
        ...

    def ready(self) -> tuple[bool, str]:
        """Whether it reads and merges, and a sentence: the reason while a server is away."""
        ...
