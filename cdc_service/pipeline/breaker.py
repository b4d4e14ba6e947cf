"""The breaker between a table and its quarantine: it stops the table before more of its records are parked than the limits allow.

Promises: a table is stopped before the batch is merged that would go over ``quarantine_share`` of its last records, or over
``quarantine_rows`` that wait for a decision; after somebody looked at them (``allow_more``) as many again may wait.
"""

from __future__ import annotations

from collections import deque

from cdc_service.config.models import Limits
from cdc_service.core.errors import TableStopped
from cdc_service.core.types import Delta, TableId

SHARE_WINDOW = 10_000
"""Records over which the share that goes to quarantine is judged, and the fewest that it is judged over are a tenth of it."""


class Breaker:
    def __init__(self, table: TableId, limits: Limits) -> None:
        self._table = table
        self._limits = limits
        self._recent: deque[tuple[int, int]] = deque()
        """Of each of the last batches: its records, and how many of them were parked."""
        self._allowed = limits.quarantine_rows

    def check(self, delta: Delta, waiting: int) -> None:
        """``waiting`` parked records wait for a decision already. Raises TableStopped (quarantine_stopped)."""
        parked = len(delta.rejected)
        self._recent.append((sum(s.records for s in delta.spans), parked))
        while len(self._recent) > 1 and sum(n for n, _ in self._recent) - self._recent[0][0] >= SHARE_WINDOW:
            self._recent.popleft()
        if not parked:
            return
        records, share = sum(n for n, _ in self._recent), sum(p for _, p in self._recent)
        flood = records >= SHARE_WINDOW // 10 and share > self._limits.quarantine_share * records
        if flood or waiting + parked > self._allowed:
            self._recent.clear()
            message = f"{share} of its last {records} events" if flood else f"{waiting + parked} of its events"
            raise TableStopped(
                f"{self._table}: {message} cannot be applied exactly; the last: {delta.rejected[-1].message}",
                state="quarantine_stopped",
                hint=f"cdc quarantine list {self._table} shows them; mend the cause, then: cdc resume {self._table} (limits: quarantine_*)",
            )

    def allow_more(self, waiting: int) -> None:
        """A person has looked at the ``waiting`` ones: as many again may be parked."""
        self._recent.clear()
        self._allowed = waiting + self._limits.quarantine_rows
