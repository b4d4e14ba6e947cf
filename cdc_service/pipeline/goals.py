"""Positions of the source that a table is on its way to: each with the offsets that have to be merged until it is reached.

Promises: the oldest goal that is not reached stays, however many newer ones come, so that a source that never rests is reached too.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Goal:
    """All that the source committed up to ``position`` lies below these offsets of the table's partitions."""

    position: int
    ends: Mapping[int, int]
    at_us: int | None
    """When the source stood at ``position`` (microseconds since 1970); None where nobody saw it there."""


def passed(checkpoints: Mapping[int, int], ends: Mapping[int, int]) -> bool:
    """Whether all below these ends is merged."""
    return all(checkpoints.get(p, -1) >= end for p, end in ends.items())


class Goals:
    def __init__(self) -> None:
        self._goals: deque[Goal] = deque()

    def aim(self, goal: Goal) -> None:
        """Takes a new goal in the place of the newest but one."""
        if len(self._goals) > 1:
            self._goals.pop()
        self._goals.append(goal)

    def reached(self, checkpoints: Mapping[int, int]) -> Goal | None:
        """The latest goal that the checkpoints have passed since the last call."""
        found = None
        while self._goals and passed(checkpoints, self._goals[0].ends):
            found = self._goals.popleft()
        return found

    def clear(self) -> None:
        """Their offsets are another log's."""
        self._goals.clear()
