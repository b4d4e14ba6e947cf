"""What is known of a connector at work: where it stands, what holds the log for it, what it told of snapshots, what is wrong with it.

Plain facts. The monitor gathers them, a source and its connector tell them, the pipeline decides by them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from cdc_service.core.errors import CdcError
from cdc_service.core.identity import Identities
from cdc_service.ports.feed import TopicFacts

OTHER_CURE = (
    "the worker's log has the whole cause; mend it, then: cdc register. Where the connector fails so again:"
    " cdc register --delete, then cdc register, then cdc resync of each table that asks for it"
)


@dataclass(frozen=True, slots=True)
class LogHold:
    """What holds the source's log for this pipeline (a replication slot). Positions are as ``Source.position`` gives them.

    ``status`` is the source's own word (PostgreSQL: reserved, extended, unreserved, lost); ``retained_bytes`` is what the source keeps
    for it, ``left_bytes`` what may still be written before it is lost (None: no limit).
    """

    name: str
    active: bool
    status: str
    retained_bytes: int | None
    left_bytes: int | None


@dataclass(frozen=True, slots=True)
class ConnectorProgress:
    """Where the connector stands, out of the offsets that Connect holds for it. ``snapshot`` is true until the initial snapshot ended;
    ``incremental`` while an incremental one is under way."""

    position: int | None
    snapshot: bool
    incremental: bool


@dataclass(frozen=True, slots=True)
class Failure:
    """``skips``: the connector cannot pass what its log holds, whatever is mended at the source; registration lets it go on behind."""

    message: str
    cure: str = OTHER_CURE
    skips: bool = False


class Failures(Protocol):
    """What only a source knows of its connector's failures. Traces may quote cell values (a value that cannot be converted, a statement
    that the source refused): nothing that is told of them holds any."""

    def diagnose(self, thrown: str) -> Failure | None:
        """What one exception of a trace (its class and text, on one line) means, and what heals it; None where it is not known."""
        ...

    def quotable(self, thrown: str) -> str:
        """What may be told of an exception that is not known: all of it where its text holds no value, its class where that is one of the
        source's driver; empty for others."""
        ...

    def refuses_login(self, message: str) -> bool:
        """Whether this is how the source says that the connector may not log in, in words of its own."""
        ...


@dataclass(frozen=True, slots=True)
class TaskStatus:
    id: int
    state: str
    worker: str


@dataclass(frozen=True, slots=True)
class ConnectorStatus:
    """``failures`` are the connector's own and those of its tasks, ``problem`` is the first of them in words."""

    name: str
    state: str
    worker: str
    problem: str
    tasks: tuple[TaskStatus, ...]
    failures: tuple[Failure, ...] = ()

    @property
    def overall(self) -> str:
        """The worst of the connector and its tasks: FAILED, PAUSED, STOPPED, UNASSIGNED, RESTARTING, RUNNING."""
        states = {self.state, *(task.state for task in self.tasks)}
        return next((s for s in ("FAILED", "STOPPED", "PAUSED", "UNASSIGNED", "RESTARTING") if s in states), self.state)

    @property
    def running(self) -> bool:
        return self.state == "RUNNING" and bool(self.tasks) and all(task.state == "RUNNING" for task in self.tasks)

    @property
    def problems(self) -> tuple[str, ...]:
        return tuple(f.message for f in self.failures)

    @property
    def cure(self) -> str:
        """What heals a connector that does not run."""
        return "; ".join(dict.fromkeys(f.cure for f in self.failures)) or "cdc register"


@dataclass(frozen=True, slots=True)
class Scans:
    """What the notifications told of snapshots, in the connector's own spelling of tables.

    ``initial`` holds the tables of the last initial snapshot that came to its end, ``attempts`` how many were begun, ``repeated`` whether
    one began after another had ended, so after changes had been sent, ``empty`` of which tables the last one read no row, and when (ms);
    ``incremental`` those that an incremental one has read to their end,
    ``asked`` the same by the signal's id, for scans that began after the signal. ``lost`` are the ids of signals that were heard before the
    connector began anew: what it read for them is of no use.
    ``failed`` are the scans that did not read their table, in their order: the signals' ids that each may have been for, its table, and
    its status. ``returned`` is when (ms since 1970) a table came back to the connector that had not captured it for a while, ``skipped``
    the position before which nothing is sent any more, ``identities`` what the source said of tables (core.identity) when they were
    registered last, before the connector began to read their rows.
    """

    initial: frozenset[str] = frozenset()
    attempts: int = 0
    repeated: bool = False
    empty: Mapping[str, int] = field(default_factory=dict)
    incremental: frozenset[str] = frozenset()
    asked: Mapping[str, frozenset[str]] = field(default_factory=dict)
    lost: frozenset[str] = frozenset()
    returned: Mapping[str, int] = field(default_factory=dict)
    identities: Mapping[str, str] = field(default_factory=dict)
    failed: tuple[tuple[frozenset[str], str, str], ...] = ()
    skipped: int = 0


@dataclass(frozen=True, slots=True)
class Facts:
    """``position`` is how far the connector is; ``reached_us`` when (microseconds since 1970) the source itself was last seen at or before
    it, None where it never was. ``identities`` were read after it, and after the notifications; None where they were not asked for."""

    at_us: int
    at: float = float("inf")
    """When the asking began (seconds of the clock)."""
    connector: ConnectorStatus | None = None
    hold: LogHold | None = None
    position: int | None = None
    reached_us: int | None = None
    snapshot: bool = False
    incremental: bool = False
    topics: Mapping[str, TopicFacts] = field(default_factory=dict)
    """Only their ids and high offsets are told."""
    scans: Scans = field(default_factory=Scans)
    identities: Identities | None = None
    trouble: CdcError | None = None
    connector_missing: bool = False
    connector_differs: bool = False
    """Events may mean something else from now on (another placeholder for unsent values): all has to be opened anew."""
