"""Records as the client hands them over -> RawBatches: each value is copied once, without the head that all values of its topic share.

Promises: every record that is added comes out once, in its order, unless its partition is forgotten; a head and what stands behind it are
the value, byte by byte.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cdc_service.core.types import Headers, RawBatch, Span

Texts = list[bytes | None]
HeadLength = Callable[[bytes], int]
"""How many bytes a value begins with that tell its schema alone; 0 where it has no such part."""


class Message(Protocol):
    """What confluent_kafka.Message tells of a record."""

    def key(self) -> bytes | None: ...
    def value(self) -> bytes | None: ...
    def offset(self) -> int: ...
    def headers(self) -> Headers | None: ...


class Heads:
    """The head of each topic's values, as it was last."""

    def __init__(self, length: HeadLength) -> None:
        self._length = length
        self._known: dict[str, bytes] = {}

    def cut(self, topic: str, values: Texts) -> tuple[bytes | None, Texts]:
        """(head, what stands behind it in each value): an empty one where they do not all share one, None where there is no value."""
        first = next((value for value in values if value is not None), None)
        if first is None:
            return None, values
        head = self._known.get(topic, b"")
        if not head or not first.startswith(head):
            head = self._known[topic] = first[: self._length(first)]
        if not head:
            return b"", values
        present = [value for value in values if value is not None]
        rests = [value.removeprefix(head) for value in present]
        if sum(map(len, present)) - sum(map(len, rests)) != len(head) * len(present):
            return b"", values
        if len(present) == len(values):
            return head, list(rests)
        behind = iter(rests)
        return head, [None if value is None else next(behind) for value in values]


@dataclass(slots=True)
class Part:
    """What was taken of one partition, from ``start`` to ``stop``."""

    start: int
    stop: int
    keys: Texts = field(default_factory=list)
    values: Texts = field(default_factory=list)
    headers: list[Headers | None] = field(default_factory=list)
    offsets: list[npt.NDArray[np.int64]] = field(default_factory=list)

    def add(self, messages: Sequence[Message], values: Texts) -> None:
        self.keys += [m.key() for m in messages]
        self.values += values
        self.headers += [m.headers() for m in messages]
        self.offsets.append(_offsets(messages))


@dataclass(slots=True)
class _Topic:
    """Records of one topic whose values share a head (None: it has no values yet)."""

    name: str
    head: bytes | None = None
    parts: dict[int, Part] = field(default_factory=dict)


class Taken:
    """What one poll has taken so far, in the order in which it came."""

    def __init__(self, heads: Heads) -> None:
        self._heads = heads
        self._topics: list[_Topic] = []
        self._last: dict[str, _Topic] = {}

    def add(self, topic: str, partition: int, start: int, stop: int, messages: Sequence[Message]) -> None:
        """Records of a partition, and the positions ``start`` to ``stop`` that they stand for; they follow those that were added before."""
        head, values = self._heads.cut(topic, [m.value() for m in messages])
        last = self._last.get(topic)
        if last is None or (None not in (head, last.head) and head != last.head):
            last = self._last[topic] = _Topic(topic)
            self._topics.append(last)
        part = last.parts.setdefault(partition, Part(start, start))
        part.stop = stop
        if messages:
            last.head = last.head if head is None else head
            part.add(messages, values)

    def forget(self, topic: str, partition: int) -> None:
        """The partition is read from elsewhere now: what was taken of it is void."""
        for one in self._topics:
            if one.name == topic:
                one.parts.pop(partition, None)

    def batches(self) -> list[RawBatch]:
        return [batch(one.name, one.parts, one.head or b"") for one in self._topics if one.parts]


def part_of(messages: Sequence[Message]) -> Part:
    """Records of one partition, whole, with no positions but theirs."""
    part = Part(messages[0].offset(), messages[-1].offset() + 1)
    part.add(messages, [m.value() for m in messages])
    return part


def batch(topic: str, parts: Mapping[int, Part], head: bytes = b"") -> RawBatch:
    ordered = sorted(parts.items())
    spans = tuple(Span(number, part.start, part.stop, len(part.values)) for number, part in ordered)
    offsets = [array for _, part in ordered for array in part.offsets]
    headers = [one for _, part in ordered for one in part.headers]
    return RawBatch(
        topic=topic,
        keys=_binary([key for _, part in ordered for key in part.keys]),
        values=_binary([value for _, part in ordered for value in part.values]),
        partitions=pa.array(np.repeat(np.array([s.partition for s in spans], np.int32), [s.records for s in spans])),
        offsets=pa.array(np.concatenate(offsets) if offsets else np.zeros(0, np.int64)),
        spans=spans,
        headers=(lambda row: headers[row] or ()) if any(headers) else _no_headers,
        head=head,
    )


def _no_headers(_: int) -> Headers:
    return ()


def _offsets(messages: Sequence[Message]) -> npt.NDArray[np.int64]:
    """Ascending; without gaps (of markers of transactions, or compaction) the first and the last tell them all."""
    first, last = messages[0].offset(), messages[-1].offset()
    if last - first == len(messages) - 1:
        return np.arange(first, last + 1, dtype=np.int64)
    return np.fromiter((m.offset() for m in messages), np.int64, len(messages))


def _binary(texts: Texts) -> pa.Array:
    """What ``pa.array`` makes of them, copied once: its builder grows as it goes, which cost more than all else about large values. One
    poll stays far below the 2 GB that such an array holds: it takes little more than what the client's queue does."""
    there = None
    whole: Iterable[bytes] = texts  # type: ignore[assignment]
    try:
        content = b"".join(whole)
    except TypeError:  # A tombstone is among them.
        there = pa.py_buffer(np.packbits([text is not None for text in texts], bitorder="little"))
        whole = [text or b"" for text in texts]
        content = b"".join(whole)
    cuts = np.zeros(len(texts) + 1, np.int32)
    np.cumsum(np.fromiter(map(len, whole), np.int32, len(texts)), out=cuts[1:])
    return pa.Array.from_buffers(pa.binary(), len(texts), [there, pa.py_buffer(cuts), pa.py_buffer(content)])
