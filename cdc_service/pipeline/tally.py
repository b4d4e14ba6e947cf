"""What was done for a table, as its status shows it: records by what became of them, rows, times. Nothing is decided by it but the breaker.

Promises: after ``recount`` it is what the destination's ledger tells; between two recounts it goes on with each merge.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import pyarrow.compute as pc

from cdc_service.core.clock import Clock
from cdc_service.core.types import ChangeBatch, Delta, Receipt, Target
from cdc_service.ports.destination import Destination, Totals

OUTCOMES = ("applied", "folded", "duplicate", "parked", "filtered")


class Tally:
    """``waiting`` are the parked records that nobody has decided on, by code, ``decided`` the others, by their state.

    ``high_commit`` is the highest commit that was applied, ``source_us`` the source's clock at the last change, ``synced_us`` when the last
    merge was, ``verified`` when and at which source position the target was last found equal to its source. Times are microseconds since
    1970.
    """

    def __init__(self, destination: Destination, target: Target, clock: Clock) -> None:
        self.counts: dict[str, int] = dict.fromkeys(OUTCOMES, 0)
        self.waiting: Counter[str] = Counter()
        self.decided: Mapping[str, int] = {}
        self.rows: int | None = None
        self.high_commit: int | None = None
        self.source_us: int | None = None
        self.synced_us: int | None = None
        self.verified: tuple[int | None, int | None] = (None, None)
        self.merges = 0
        self._counted = False
        self._destination = destination
        self._target = target
        self._clock = clock

    def recount(self) -> Totals:
        """Reads it anew."""
        totals = self._destination.totals(self._target)
        self.counts, self.waiting, self.decided = dict(totals.counts), Counter(totals.waiting), dict(totals.decided)
        self.high_commit, self.synced_us = totals.high_commit, totals.synced_us
        self.verified = totals.verified_us, totals.verified_position
        self._counted = False
        return totals

    def refresh(self) -> None:
        """Counts the target's rows, where anything was merged or swept since."""
        if not self._counted:
            self.rows, self._counted = self._destination.table_rows(self._target), True

    def swept(self) -> None:
        self._counted = False

    def merged(self, run: Sequence[ChangeBatch], delta: Delta, receipt: Receipt) -> None:
        self.merges += 1
        self._counted = False
        self.synced_us = self._clock.wall_us()
        self.waiting = self.waiting + Counter(r.code for batch in run for r in batch.rejected)
        if receipt.high_commit is not None:
            self.high_commit = max(self.high_commit or 0, receipt.high_commit)
        if delta.meta.num_rows:
            self.source_us = max(self.source_us or 0, pc.max(delta.meta["source_us"]).as_py() or 0) or None
        for counts in receipt.partitions:
            for name in OUTCOMES:
                self.counts[name] += getattr(counts, name)
