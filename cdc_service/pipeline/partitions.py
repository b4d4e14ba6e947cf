"""How far a table is in each partition of its log, whoever reads it, and which positions of the source that comes to.

Promises: what ``checkpoints`` says is merged is merged, by this process or by others; a goal is reached only when every partition is past
its end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cdc_service.core.types import Checkpoint, LogId, Tail
from cdc_service.pipeline.goals import Goal, Goals, passed


@dataclass(slots=True)
class Part:
    """A partition that this process owns: the destination's checkpoint and epoch, and the next offset that the line reads; of a table
    without a key also the last change before the checkpoint."""

    checkpoint: int
    epoch: int
    read: int
    tail: Tail | None = None


class Partitions:
    """``own`` are those of this process, ``others`` the checkpoints of those that other processes own, as last seen; ``ends`` are the ends
    of the log ``log`` (None: not opened yet), as last seen."""

    def __init__(self) -> None:
        self.log: LogId | None = None
        self.own: dict[int, Part] = {}
        self.others: Mapping[int, int] = {}
        self.ends: Mapping[int, int] = {}
        self._goals = Goals()

    @property
    def leads(self) -> bool:
        """Of the processes that share a table one watches over its state: the one that has its first partition."""
        return 0 in self.own

    def add(self, partition: int) -> None:
        """It came to this process, which has to claim it at the destination before it reads."""
        self.own.setdefault(partition, Part(0, 0, -1))

    def begin(self, log: LogId, ends: Mapping[int, int]) -> None:
        """The log that is read from now on."""
        if self.log != log:
            self._goals.clear()  # Their ends are another log's.
        self.log, self.ends = log, ends

    def claimed(self, taken: Sequence[Checkpoint], tails: Mapping[int, Tail]) -> None:
        """They are this process's, each from its checkpoint on."""
        self.own = {c.partition: Part(c.next_offset, c.epoch, c.next_offset, tails.get(c.partition)) for c in taken}

    def see_others(self, found: Mapping[int, int]) -> bool:
        """Takes the destination's checkpoints of the log. False where it lacks one of this process: somebody removed it."""
        self.others = {p: offset for p, offset in found.items() if p not in self.own}
        return set(self.own) <= set(found)

    # Progress

    def aim(self, goal: Goal) -> None:
        self._goals.aim(goal)

    def reached(self) -> Goal | None:
        """The latest goal that the checkpoints have passed since the last call."""
        return self._goals.reached(self.checkpoints)

    def passed(self, ends: Mapping[int, int]) -> bool:
        """Whether all below these ends is merged."""
        return passed(self.checkpoints, ends)

    @property
    def checkpoints(self) -> Mapping[int, int]:
        """How far each partition is merged, whoever reads it."""
        return {**self.others, **{p: part.checkpoint for p, part in self.own.items()}}

    @property
    def lag(self) -> int:
        """Records between the checkpoints and the ends of the log, as last seen."""
        return self._between(self.checkpoints)

    @property
    def own_lag(self) -> int:
        """Of ``lag`` what lies in this process's partitions."""
        return self._between({p: part.checkpoint for p, part in self.own.items()})

    def _between(self, checkpoints: Mapping[int, int]) -> int:
        return sum(max(0, end - checkpoints[p]) for p, end in self.ends.items() if p in checkpoints)
