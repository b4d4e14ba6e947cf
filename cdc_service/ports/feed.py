"""Where changes come from: a consumer of change topics, and what is asked of the topics themselves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from cdc_service.core.types import LogId, RawBatch

Where = tuple[str, int]
"""Topic and partition."""


@dataclass(frozen=True, slots=True)
class TopicFacts:
    """A topic as the cluster describes it now; ``ends`` maps a partition to (first offset kept, end offset)."""

    log: LogId
    ends: Mapping[int, tuple[int, int]]


@dataclass(slots=True)
class Assignment:
    """What the group gave this member, told through callbacks (called from ``Feed.poll``'s thread).

    ``assigned`` returns for each new (topic, partition) the offset to read from, or None to hold it paused until ``Feed.seek``;
    ``revoked`` is called while the partitions are still owned, ``lost`` when they are not any more.
    """

    assigned: Callable[[Sequence[tuple[str, int]]], Mapping[tuple[str, int], int | None]]
    revoked: Callable[[Sequence[tuple[str, int]]], None]
    lost: Callable[[Sequence[tuple[str, int]]], None]


@dataclass(frozen=True, slots=True)
class PartitionError:
    """A partition that cannot be read on: ``code`` is offset_out_of_range, topic_gone or Kafka's own name."""

    topic: str
    partition: int
    code: str
    message: str


@dataclass(slots=True)
class Polled:
    batches: list[RawBatch] = field(default_factory=list)
    errors: list[PartitionError] = field(default_factory=list)


class Feed(Protocol):
    """A consumer of the group. It reads from where the caller says (``Assignment.assigned``, ``seek``), never from where the group was."""

    def poll(self, records_max: int, seconds: float) -> Polled: ...
    def seek(self, topic: str, partition: int, offset: int) -> None: ...
    def pause(self, where: Sequence[Where]) -> None: ...
    def resume(self, where: Sequence[Where]) -> None: ...
    def commit_offsets(self, offsets: Mapping[Where, int]) -> None: ...
    def rejoin_group(self) -> None: ...
    def close(self) -> None: ...


class Topics(Protocol):
    """What is asked of Kafka beside its records. Raises Unavailable where it does not answer."""

    def describe(self, names: Sequence[str], *, lows: bool = True) -> Mapping[str, TopicFacts]:
        """Those of the topics that exist; without ``lows`` their first offsets are told as 0."""
        ...

    def topic_ids(self, names: Sequence[str]) -> Mapping[str, str]:
        """A topic that was made again has another id."""
        ...
