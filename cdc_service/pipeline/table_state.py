"""What a table is in, as the destination keeps it: streaming, stopped and why, of which generation, complete through which position.

Promises: when ``keep`` or ``save`` returns it is durable; a state that another process changed meanwhile is not overwritten (Fenced).

Example: ``table.state.keep(state="paused")`` is what a person's pause comes to.
"""

from __future__ import annotations

from dataclasses import replace

from cdc_service.core.clock import Clock
from cdc_service.core.errors import CdcError, TableStopped
from cdc_service.core.identity import HINDRANCES
from cdc_service.core.types import Target
from cdc_service.ports.destination import Destination, RightsLacking, TableState

HELD = frozenset({"paused", "quarantine_stopped", "needs_resync"})
"""States that outlive a restart: a person put the table there, or has to take it out. So do those of core.identity.HINDRANCES."""
STOPPED = HELD | {"schema_stopped", "drift", "needs_decision", "error"}


class State:
    """``now`` is the state as the destination has it, or shall have it at the next ``save``; ``known`` whether the destination said it."""

    def __init__(self, destination: Destination, target: Target, clock: Clock) -> None:
        self.now = TableState()
        self.known = False
        self._destination = destination
        self._target = target
        self._clock = clock

    @property
    def name(self) -> str:
        return self.now.state

    @property
    def stopped(self) -> bool:
        """Whether it stands still until somebody acts."""
        return self.now.state in STOPPED

    @property
    def lacks_right(self) -> bool:
        """Whether it stopped for a right that the destination's role lacks."""
        return self.now.state == "error" and self.now.error_code == RightsLacking.code

    def load(self) -> None:
        self.now = self._destination.load_state(self._target)

    def begin(self, kept: TableState) -> None:
        """Takes the state that the destination has over for a table that is opened. What only a restart clears is cleared."""
        lasts = kept.state not in STOPPED or kept.state in HELD or kept.error_code in HINDRANCES
        self.now, self.known = (kept if lasts else going_on(kept)), True

    def change(self, **changes: object) -> None:
        """Without saving it."""
        self.now = replace(self.now, **changes)  # type: ignore[arg-type]

    def keep(self, **changes: object) -> None:
        """Changes and saves it."""
        self.change(**changes)
        self.save()

    def save(self) -> None:
        """Raises Fenced where another process changed the state meanwhile."""
        self.now = self._destination.save_state(self._target, self.now)

    def go_on(self) -> None:
        """Out of a stop, into what the table is where nothing stops it; saved."""
        self.now = going_on(self.now)
        self.save()

    def stop(self, error: CdcError) -> None:
        """Without saving it: the destination may be what is gone."""
        self.change(
            state=error.state if isinstance(error, TableStopped) else "error",
            error_code=error.code,
            error_message=error.message,
            error_hint=error.hint,
            error_at=self._clock.wall_us(),
        )


def flowing(kept: TableState) -> str:
    """The state of a table that nothing stops."""
    return "streaming" if kept.complete_through is not None and not kept.resync else "snapshotting"


def going_on(kept: TableState) -> TableState:
    return replace(kept, state=flowing(kept), error_code="", error_message="", error_hint="", error_at=None)
