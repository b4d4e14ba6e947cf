"""The consumer: batches of records whose offsets mean "next to read", assignment by a cooperative consumer group, positions always given
by the caller (the destination's checkpoint). Every call has a time limit; what does not answer raises Unavailable with the cure."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import structlog
from confluent_kafka import (
    OFFSET_END,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    TopicPartition,
)

from cdc_service.kafka.client import QUEUE_KILOBYTES, client_options, partition_error, unavailable
from cdc_service.kafka.records import HeadLength, Heads, Taken
from cdc_service.ports.feed import Assignment, Polled

FETCH_WAIT_MS = (500, 5_000)
SLICE_BYTES = 4 * 2**20
SLICE_RECORDS = (50, 2_000)
"""What is asked of the client at once, so that each value is cut and copied while it is in the processor's cache."""
GATHER_SECONDS, GATHER_SECONDS_EACH, GATHER_SECONDS_MAX = 0.02, 0.001, 0.05
"""How long a poll waits for more, once something came: so long, or so much for each topic, since a turn goes over all of them."""
CLOSE_SECONDS = 2.0
REJOIN_SECONDS = 5.0
"""At least so long a member is one before it joins anew."""
SHARE_SECONDS = 20.0
"""At least so long a share of the partitions stands before another one is asked for."""


class GroupConsumer:
    """A member of the consumer group. Not thread-safe: one thread calls it. Where the broker ends the member for good, it joins anew."""

    def __init__(
        self,
        bootstrap: str,
        group: str,
        member: str,
        topics: Sequence[str],
        options: Mapping[str, Any],
        assignment: Assignment,
        head_length: HeadLength = lambda _: 0,
    ) -> None:
        """``member`` is a name that a process keeps over restarts: the next one takes its partitions over at once (KIP-345)."""
        self._heads = Heads(head_length)
        self._taken = Taken(self._heads)
        self._slice = SLICE_RECORDS[0]
        self._positions: dict[tuple[str, int], int] = {}
        self._paused: set[tuple[str, int]] = set()
        self._sought: dict[tuple[str, int], bool] = {}
        self._assignment = assignment
        self._topics = list(topics)
        self._gather = min(max(GATHER_SECONDS, GATHER_SECONDS_EACH * len(topics)), GATHER_SECONDS_MAX)
        self._ended: KafkaError | None = None
        self._joined_at = float("-inf")
        self._options: dict[str, Any] = {
            "group.id": group,
            "group.instance.id": member,
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "partition.assignment.strategy": "cooperative-sticky",
            # The checkpoint says where to read; anything else must stop, never jump.
            "auto.offset.reset": "error",
            # Without it the position stays before trailing transaction markers and lag never reaches zero.
            "enable.partition.eof": True,
            # librdkafka's default of 1000 ms stalls a fast reader to a third of its rate.
            "fetch.queue.backoff.ms": 5,
            # An idle fetch names all partitions: with many it is sent less often. The first record ends the wait of one.
            "fetch.wait.max.ms": min(max(FETCH_WAIT_MS[0], 5 * len(topics)), FETCH_WAIT_MS[1]),
            "queued.max.messages.kbytes": QUEUE_KILOBYTES,
            "queued.min.messages": 200_000,
            # A fetch comes compressed: schemas that repeat in each event make twenty times as much of it, beyond what the queue may hold.
            "fetch.message.max.bytes": 512 * 1024,
            "fetch.max.bytes": 2 * 1024 * 1024,
            "session.timeout.ms": 10_000,
            "heartbeat.interval.ms": 2_000,
            # A topic that is registered later is found soon; librdkafka's default is five minutes.
            "topic.metadata.refresh.interval.ms": max(10_000, 30 * len(topics)),
            "isolation.level": "read_committed",
            **client_options(bootstrap, options),
        }
        self._consumer = self._join()

    def _join(self) -> Consumer:
        self._ended = None
        consumer = Consumer(self._options)
        self._subscribe(consumer)
        return consumer

    def _subscribe(self, consumer: Consumer) -> None:
        self._joined_at = time.monotonic()
        consumer.subscribe(self._topics, on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost)

    def rejoin_group(self) -> None:
        """Has the group share its partitions out anew, unless it did so lately. A static member that comes back is given its old share
        (KIP-345), and librdkafka does not tell the leader's first metadata from those that the share was made with (KIP-814): partitions
        that were added meanwhile would have no reader for ever. Seen."""
        if time.monotonic() - self._joined_at > SHARE_SECONDS:
            structlog.get_logger().warning("nobody reads some partitions; they are shared out anew")
            self._call(self._consumer.unsubscribe)
            self._subscribe(self._consumer)

    def _join_again(self, error: KafkaError) -> None:
        """A member that the broker has ended reads nothing any more, and says so once. It was seen without a second process of this
        name, after kills of service and broker. Where there is one, each ends the other in turn, not at once."""
        structlog.get_logger().warning("the broker ended this member of the group; it joins anew", why=error.str())
        where = list(self._positions)
        self._drop(where)
        if where:
            self._assignment.lost(where)
        time.sleep(max(0.0, self._joined_at + REJOIN_SECONDS - time.monotonic()))
        old, self._consumer = self._consumer, self._join()
        threading.Thread(target=old.close, name="close", daemon=True).start()

    def poll(self, records_max: int, seconds: float) -> Polled:
        """What arrived, at most ``records_max`` records, waiting at most ``seconds`` for the first one and a moment for more. A topic
        has a RawBatch, or several where the head of its values changes."""
        polled = Polled()
        self._taken = Taken(self._heads)
        until, left = time.monotonic() + min(seconds, self._gather), records_max
        if seconds > self._gather:
            first = self._consumer.consume(1, seconds)
            self._take(first, polled)
            until, left = time.monotonic() + self._gather, left - 1 if first else 0
        while left > 0 and self._ended is None:
            wanted = min(left, self._slice)
            messages = self._consumer.consume(wanted, max(0.0, until - time.monotonic()))
            self._take(messages, polled)
            left -= wanted
            if len(messages) < wanted:
                break
        if self._ended is not None:
            self._join_again(self._ended)
            return Polled()  # Its partitions were lost: all is read again from the checkpoint.
        polled.batches = self._taken.batches()
        self._taken = Taken(self._heads)  # Else its values would be held twice until the next poll.
        return polled

    def _take(self, messages: Sequence[Message], polled: Polled) -> None:
        found: dict[tuple[str, int], list[Message]] = {}
        ends: dict[tuple[str, int], int] = {}
        size = 0
        for message in messages:
            error = message.error()
            if error is None:
                found.setdefault((message.topic(), message.partition()), []).append(message)
                size += len(message)
            elif error.code() == KafkaError._PARTITION_EOF:
                ends[message.topic(), message.partition()] = message.offset()
                found.setdefault((message.topic(), message.partition()), [])
            elif error.fatal() or error.code() == KafkaError._FATAL:
                self._ended = error
            else:
                failure = partition_error(message, error)
                if failure is not None:
                    polled.errors.append(failure)
        for where, records in found.items():
            self._take_of(where, records, ends.get(where))
        if size:
            low, high = SLICE_RECORDS
            self._slice = int(min(high, max(low, SLICE_BYTES * len(messages) / size)))

    def _take_of(self, where: tuple[str, int], found: list[Message], end: int | None) -> None:
        start = self._positions.get(where)
        if start is None:
            return
        # A record below the position was in flight when the position was set: the log is read again from there.
        kept = [m for m in found if m.offset() >= start] if found and found[0].offset() < start else found
        if kept and where in self._sought and self._must_look_twice(where, kept[0].offset()):
            return
        stop = max(start, kept[-1].offset() + 1 if kept else start, end or start)
        if stop > start:
            self._positions[where] = stop
            self._taken.add(*where, start, stop, kept)

    def _must_look_twice(self, where: tuple[str, int], first: int) -> bool:
        """The first record after a seek should stand where it was sought. A gap there may be the log's own (transaction markers), or
        a record that was in flight before the seek, after which those in between would be lost: it is sought once more to tell."""
        start, again = self._positions[where], self._sought.pop(where)
        if first == start or again:
            return False
        self.seek(*where, start)
        self._sought[where] = True
        return True

    def seek(self, topic: str, partition: int, offset: int) -> None:
        """Reads on from ``offset``; what was fetched before is dropped."""
        where = TopicPartition(topic, partition, offset)
        self._taken.forget(topic, partition)
        self._positions[topic, partition] = offset
        self._sought[topic, partition] = False
        try:
            self._consumer.seek(where)
        except KafkaException:
            # A partition that fell out of fetching (its offset left the log, its topic was made again) is not sought but assigned anew.
            self._call(lambda: (self._consumer.incremental_unassign([where]), self._consumer.incremental_assign([where])))
            self._flow([where])

    def pause(self, where: Iterable[tuple[str, int]]) -> None:
        new = [w for w in where if w not in self._paused and w in self._positions]
        if new:
            self._paused.update(new)
            self._call(lambda: self._consumer.pause([TopicPartition(*w) for w in new]))

    def resume(self, where: Iterable[tuple[str, int]]) -> None:
        old = [w for w in where if w in self._paused]
        if old:
            self._paused.difference_update(old)
            self._call(lambda: self._consumer.resume([TopicPartition(*w) for w in old]))

    def _flow(self, assigned: Sequence[TopicPartition]) -> None:
        """librdkafka keeps a pause over unassign and assign: a partition that comes back would stand still, and nobody would know."""
        self._call(lambda: self._consumer.resume(list(assigned)))
        self._paused.difference_update((p.topic, p.partition) for p in assigned)

    def commit_offsets(self, offsets: Mapping[tuple[str, int], int]) -> None:
        """Commits group offsets, asynchronously: advice for lag tools. Partitions that this member does not own are left out."""
        owned = [TopicPartition(t, p, o) for (t, p), o in offsets.items() if (t, p) in self._positions]
        if owned:
            try:
                self._consumer.commit(offsets=owned, asynchronous=True)
            except KafkaException:
                return  # Advice only: the checkpoint in the warehouse is what counts, and the next batch advises again.

    def positions(self) -> Mapping[tuple[str, int], int]:
        return dict(self._positions)

    def close(self) -> None:
        """Leaves the cluster, or gives that up after CLOSE_SECONDS: librdkafka waits for ever for a broker that went away while the member
        joined its group. Nothing is lost by it: the checkpoint is elsewhere, and the next process of this name takes the partitions."""
        closing = threading.Thread(target=self._consumer.close, name="close", daemon=True)
        closing.start()
        closing.join(CLOSE_SECONDS)

    def _on_assign(self, consumer: Consumer, partitions: Sequence[TopicPartition]) -> None:
        if consumer is not self._consumer:
            return  # One that was ended is being closed.
        where = [(p.topic, p.partition) for p in partitions]
        starts = self._assignment.assigned(where)
        held = [w for w in where if starts.get(w) is None]
        assigned = []
        for topic, partition in where:
            start = starts.get((topic, partition))
            self._taken.forget(topic, partition)
            self._positions[topic, partition] = OFFSET_END if start is None else start
            self._sought[topic, partition] = False
            assigned.append(TopicPartition(topic, partition, OFFSET_END if start is None else start))
        consumer.incremental_assign(assigned)
        self._flow(assigned)
        self.pause(held)

    def _on_revoke(self, consumer: Consumer, partitions: Sequence[TopicPartition]) -> None:
        if consumer is not self._consumer:
            return  # One that was ended is being closed.
        where = [(p.topic, p.partition) for p in partitions]
        self._assignment.revoked(where)
        self._drop(where)
        consumer.incremental_unassign(list(partitions))

    def _on_lost(self, consumer: Consumer, partitions: Sequence[TopicPartition]) -> None:
        if consumer is not self._consumer:
            return  # One that was ended is being closed.
        where = [(p.topic, p.partition) for p in partitions]
        self._drop(where)
        self._assignment.lost(where)
        consumer.incremental_unassign(list(partitions))

    def _drop(self, where: Iterable[tuple[str, int]]) -> None:
        for w in where:
            self._taken.forget(*w)
            self._positions.pop(w, None)
            self._sought.pop(w, None)
            self._paused.discard(w)

    def _call(self, do: Callable[[], object]) -> None:
        try:
            do()
        except KafkaException as error:
            raise unavailable(error) from error
