"""The order of changes: which of two versions of one row is the later one. Wall-clock time never decides.

A version is ``(generation, record, minor, offset)``, compared in this order:

- ``generation`` grows only with a full resync that this service started and recorded: positions of another source or timeline do not
  compare with these.
- ``record`` is the major part of the source's position of the change within its key, a signed 64-bit integer. Rows of an
  initial snapshot come before every change of the stream, whatever their position (a transaction in flight during the snapshot has a
  *smaller* log position than the snapshot and must win): ``snapshot_record`` maps them to negative numbers, so that the phase is the sign.
- ``minor`` orders changes that share a record (the rows of one statement); 0 where the source needs none. A truncation
  has a record of its own, and so has the beginning of a generation: only changes of rows have a minor part.
- ``offset`` in Kafka is the last tie-break and never beats a position.

What two changes of a key at one position are, the source says (``Ties``). But a key that changes its spelling alone (a numeric 1.50 becomes
1.5) is deleted and created at one position, in two partitions of Kafka and under one key here: offsets of two partitions do not compare,
and a create is later than a delete.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, StrEnum

import numpy as np
import numpy.typing as npt

_FIRST = -(2**63)
NO_POSITION = 2**63 - 1
"""Stands for a record without a position; it is rejected, never ordered."""
INCREMENTAL = 0
"""The record order of a row of an incremental snapshot, which has no log position: after every initial-snapshot row, before every change of
the stream. A transaction that was open while the row was read writes its change at an *earlier* log position than the connector had
reached, and must win; a change that the row already shows has come through the stream too."""


LAST_MINOR = 2**63 - 1
"""The minor part of what was read at a position itself: it shows every change there."""


class Ties(StrEnum):
    """What a change is that has the position of another one of its key. ``SAME_CHANGE``: that one again, redelivered. ``OFFSET``: another
    one, and of two in one partition of Kafka the one with the higher offset is the later; when such a change is redelivered behind
    others at its position, it is applied again, until these come again too. A change of spelling shares its position with no other one."""

    SAME_CHANGE = "same_change"
    OFFSET = "offset"


@dataclass(frozen=True, slots=True)
class Ordering:
    """How the positions of a source order its changes within a key: ``minor`` says whether they have a second part."""

    minor: bool = False
    ties: Ties = Ties.SAME_CHANGE

    def __post_init__(self) -> None:
        if self.ties is Ties.OFFSET and not self.minor:
            raise ValueError("ties by offset need a minor part: what is read at a position stands behind all changes there by LAST_MINOR")


BY_RECORD = Ordering()
"""A source whose record names one change."""


class Seen(IntEnum):
    """What the source says of a row that a snapshot brought: it is so; it is another now, or gone; the connector changed it on the way; its
    key, too, may be one that the connector changed."""

    SAME = 0
    OTHER = 1
    CHANGED = 2
    KEY = 3


def snapshot_record(position: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The record order of initial-snapshot rows read at ``position`` (>= 0): below every stream record, ordered among themselves."""
    return position + np.int64(_FIRST)


def is_snapshot(record: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    return record < 0


def generations(
    partition: npt.NDArray[np.int32],
    offset: npt.NDArray[np.int64],
    record: npt.NDArray[np.int64],
    current: int,
    opened_at: dict[int, int],
    opened_record: int,
) -> npt.NDArray[np.int32]:
    """The generation of each change. ``current`` was opened when partition p stood at offset ``opened_at[p]`` and the source's log at
    ``opened_record``; a change belongs to it when it lies behind both (a redelivered tail has late offsets but early positions). Rows of
    incremental snapshots have no position: their offset decides."""
    if current == 0:
        return np.zeros(len(offset), np.int32)
    starts = np.zeros(max([*opened_at, int(partition.max(initial=0))]) + 1, np.int64)
    for number, start in opened_at.items():
        starts[number] = start
    inside = (offset >= starts[partition]) & ((record >= opened_record) | (record == INCREMENTAL))
    return np.where(inside, current, current - 1).astype(np.int32)
