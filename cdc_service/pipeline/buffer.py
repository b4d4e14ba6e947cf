"""What of a table was read and decoded and is not merged yet, in the order of its log.

Promises: a batch leaves only when ``merged`` says so, or with all others (``clear``); what is merged beside the reading is set aside, so
that what comes meanwhile waits behind it.

Example: ``add(batches, 10); set_aside(); merged(2); put_back()`` leaves what the merge did not take at the head again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pyarrow.compute as pc

from cdc_service.config.models import Flush
from cdc_service.core.clock import Clock
from cdc_service.core.types import ChangeBatch


class Buffer:
    """``aside`` are the batches that are being merged."""

    def __init__(self, clock: Clock) -> None:
        self.aside: list[ChangeBatch] = []
        self._clock = clock
        self._batches: list[ChangeBatch] = []
        self._records = self._bytes = self._bytes_aside = 0
        self._since = 0.0

    def __bool__(self) -> bool:
        return bool(self._batches or self.aside)

    @property
    def nbytes(self) -> int:
        return self._bytes + self._bytes_aside

    def add(self, batches: Sequence[ChangeBatch], records: int) -> None:
        """``records`` is how many records of the log the batches account for; not each is a row."""
        if not self._batches:
            self._since = self._clock.monotonic()
        self._batches += batches
        self._records += records
        self._bytes += sum(batch.nbytes for batch in batches)

    def full(self, flush: Flush) -> bool:
        """Whether it holds a whole batch."""
        return self._records >= flush.rows or self._bytes >= flush.bytes

    def due_in(self, flush: Flush) -> float:
        """The seconds until what waits has waited for long enough; infinity where nothing waits."""
        return max(0.0, self._since + flush.seconds - self._clock.monotonic()) if self._batches else float("inf")

    def set_aside(self) -> None:
        """What waits is to be merged; what is added from now on is not. ``put_back`` ends it."""
        self.aside, self._batches = self._batches, []
        self._bytes_aside, self._records, self._bytes = self._bytes, 0, 0

    def merged(self, count: int) -> None:
        """The first ``count`` batches that were set aside are merged."""
        del self.aside[:count]

    def put_back(self) -> None:
        """What was set aside and not merged (nothing, where all went well) stands first again."""
        if self.aside:
            self._batches[:0] = self.aside
            self._records += sum(span.records for batch in self.aside for span in batch.spans)
            self._bytes += sum(batch.nbytes for batch in self.aside)
        self.aside, self._bytes_aside = [], 0

    def clear(self) -> None:
        self._batches.clear()
        self.aside.clear()
        self._records = self._bytes = self._bytes_aside = 0


def stream_records(run: Iterable[ChangeBatch]) -> tuple[int, int] | None:
    """The lowest and the highest position of the changes of the stream (rows of snapshots stand outside of its order)."""
    ends = [pc.min_max(batch.meta["record"].filter(pc.greater(batch.meta["record"], 0))) for batch in run if batch.num_rows]
    known = [(e["min"].as_py(), e["max"].as_py()) for e in ends if e["min"].is_valid]
    return (min(low for low, _ in known), max(high for _, high in known)) if known else None


def one_version(batches: Sequence[ChangeBatch]) -> tuple[int, list[ChangeBatch]]:
    """How many batches at the head share a schema version, and these, all under it. A batch without rows goes with any."""
    schema = next((b.schema for b in batches if b.num_rows), batches[0].schema)
    run: list[ChangeBatch] = []
    for batch in batches:
        if not batch.num_rows:
            batch = ChangeBatch(schema, schema.arrow.empty_table(), batch.meta, batch.spans, rejected=batch.rejected)
        elif batch.schema.fingerprint != schema.fingerprint:
            break
        run.append(batch)
    return len(run), run
