"""Kafka as the service sees it: the only module that imports confluent_kafka.

``Log`` reads change topics: batches of records whose offsets mean "next to read", assignment by a cooperative consumer group, positions
always given by the caller (the destination's checkpoint). ``Admin`` asks and makes: topics and their ids, ends of partitions, signals.
Every call has a time limit; what does not answer raises Unavailable with the cure.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import structlog
from confluent_kafka import (
    OFFSET_BEGINNING,
    OFFSET_END,
    Consumer,
    ConsumerGroupTopicPartitions,
    IsolationLevel,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic, OffsetSpec

from cdc_service.consume.records import HeadLength, Heads, Taken, batch, part_of
from cdc_service.core.errors import CdcError, Unavailable
from cdc_service.core.types import LogId, RawBatch
from cdc_service.ports.feed import Assignment, PartitionError, Polled, TopicFacts

ANSWER_SECONDS = 10.0
FETCH_WAIT_MS = (500, 5_000)
QUEUE_KILOBYTES = 32 * 1024
SLICE_BYTES = 4 * 2**20
SLICE_RECORDS = (50, 2_000)
"""What is asked of the client at once, so that each value is cut and copied while it is in the processor's cache."""
GATHER_SECONDS = 0.02
"""How long a poll waits for more, once something came."""
CLOSE_SECONDS = 2.0
REJOIN_SECONDS = 5.0
"""At least so long a member is one before it joins anew."""
SHARE_SECONDS = 20.0
"""At least so long a share of the partitions stands before another one is asked for."""


def client_options(bootstrap: str, options: Mapping[str, Any]) -> dict[str, Any]:
    return {"bootstrap.servers": bootstrap, "socket.connection.setup.timeout.ms": 5000, "log_level": 2, **options}


class Log:
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

    def share_anew(self) -> None:
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
        """What arrived, at most ``records_max`` records, waiting at most ``seconds`` for the first one and GATHER_SECONDS for more. A topic
        has a RawBatch, or several where the head of its values changes."""
        polled = Polled()
        self._taken = Taken(self._heads)
        until, left = time.monotonic() + min(seconds, GATHER_SECONDS), records_max
        if seconds > GATHER_SECONDS:
            first = self._consumer.consume(1, seconds)
            self._take(first, polled)
            until, left = time.monotonic() + GATHER_SECONDS, left - 1 if first else 0
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
                failure = _partition_error(message, error)
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

    def advise(self, offsets: Mapping[tuple[str, int], int]) -> None:
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
            raise _unavailable(error) from error


class Tail:
    """Reads one small topic from its beginning, without a group: notifications of the connector. One thread calls it."""

    def __init__(self, bootstrap: str, topic: str, options: Mapping[str, Any]) -> None:
        self._partition = TopicPartition(topic, 0)
        self._cure = f"is a broker running at {bootstrap}?"
        own = {
            "group.id": "cdc_tail",  # Never joined: a consumer must name one.
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            "enable.partition.eof": True,
            "fetch.queue.backoff.ms": 5,
            "topic.metadata.refresh.interval.ms": 10_000,
        }
        self._consumer = Consumer({**client_options(bootstrap, options), **own})
        self._next = -1
        self._found: list[bytes] = []

    def read(self, records_max: int = 10_000) -> list[bytes]:
        """The values that came since the last call, in order, up to the end that the topic has now; empty while the topic is not there.
        Raises Unavailable, and gives what was read with the next call, where the end is not reached in ANSWER_SECONDS."""
        try:
            end = self._consumer.get_watermark_offsets(self._partition, ANSWER_SECONDS)[1]
        except KafkaException as error:
            if error.args[0].code() in (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_PARTITION, KafkaError._UNKNOWN_TOPIC):
                return []
            raise self._unavailable() from error
        if not 0 <= self._next <= end:  # The first time; or the topic was made again.
            self._consumer.assign([TopicPartition(self._partition.topic, 0, OFFSET_BEGINNING)])
            self._next = 0
        deadline = time.monotonic() + ANSWER_SECONDS
        while self._next < end:
            for message in self._consumer.consume(records_max, 0.05):
                failure = message.error()
                if failure is None:
                    self._next = message.offset() + 1
                    if message.value() is not None:
                        self._found.append(message.value())
                elif failure.code() == KafkaError._PARTITION_EOF:
                    self._next = max(self._next, message.offset())
            if self._next < end and time.monotonic() > deadline:
                raise self._unavailable()
        found, self._found = self._found, []
        return found

    def _unavailable(self) -> Unavailable:
        return Unavailable(f"topic {self._partition.topic} cannot be read", hint=self._cure)

    def close(self) -> None:
        self._consumer.close()


class Reader:
    """Reads ranges of a topic again, beside whoever consumes it. One thread calls it."""

    def __init__(self, bootstrap: str, options: Mapping[str, Any]) -> None:
        own = {
            "group.id": "cdc_reader",  # Never joined: a consumer must name one.
            "enable.auto.commit": False,
            "auto.offset.reset": "error",
            "enable.partition.eof": True,
            "fetch.queue.backoff.ms": 5,
            "queued.max.messages.kbytes": QUEUE_KILOBYTES,
            "isolation.level": "read_committed",
        }
        self._consumer = Consumer({**client_options(bootstrap, options), **own})
        self._cure = f"is a broker running at {bootstrap}?"

    def read(self, topic: str, start: Mapping[int, int], stop: Mapping[int, int], records_max: int = 2_000) -> Iterator[RawBatch]:
        """All records from ``start`` up to ``stop`` of each partition. Raises CdcError (log_truncated) where the log no longer has them,
        Unavailable where nothing comes for ANSWER_SECONDS."""
        at = {p: start[p] for p, end in stop.items() if p in start and start[p] < end}
        self._consumer.assign([TopicPartition(topic, p, offset) for p, offset in at.items()])
        heard = time.monotonic()
        try:
            while at:
                messages = self._consumer.consume(records_max, 0.05)
                if messages:
                    heard = time.monotonic()
                elif time.monotonic() - heard > ANSWER_SECONDS:
                    raise Unavailable(f"topic {topic} cannot be read: nothing came for {ANSWER_SECONDS:g} s", hint=self._cure)
                found: dict[int, list[Message]] = {}
                for message in messages:
                    self._take(topic, message, at, stop, found)
                if found:
                    yield batch(topic, {p: part_of(messages) for p, messages in found.items()})
                for p in [p for p, offset in at.items() if offset >= stop[p]]:
                    del at[p]
                    self._consumer.incremental_unassign([TopicPartition(topic, p)])
        finally:
            self._consumer.unassign()

    @staticmethod
    def _take(topic: str, message: Message, at: dict[int, int], stop: Mapping[int, int], found: dict[int, list[Message]]) -> None:
        error, p = message.error(), message.partition()
        if p not in at:
            return
        if error is None:
            if message.offset() < stop[p]:
                found.setdefault(p, []).append(message)
            at[p] = max(at[p], message.offset() + 1)
        elif error.code() == KafkaError._PARTITION_EOF:
            at[p] = max(at[p], message.offset())
        elif failure := _partition_error(message, error):
            raise CdcError(f"topic {topic} cannot be read again in partition {p}: {failure.message}", code="log_truncated")

    def close(self) -> None:
        self._consumer.close()


def _partition_error(message: Message, error: KafkaError) -> PartitionError | None:
    codes = {
        KafkaError._AUTO_OFFSET_RESET: "offset_out_of_range",
        KafkaError.OFFSET_OUT_OF_RANGE: "offset_out_of_range",
        KafkaError.UNKNOWN_TOPIC_OR_PART: "topic_gone",
        KafkaError._UNKNOWN_TOPIC: "topic_gone",
        KafkaError._UNKNOWN_PARTITION: "topic_gone",
        KafkaError.UNKNOWN_TOPIC_ID: "topic_gone",
    }
    code = codes.get(error.code())
    if code is None or message.topic() is None:
        return None  # Brokers that come and go: librdkafka reconnects by itself for ever.
    return PartitionError(message.topic(), message.partition(), code, error.str())


class Admin:
    """Questions and small deeds at the cluster. Thread-safe."""

    def __init__(self, bootstrap: str, options: Mapping[str, Any]) -> None:
        self._bootstrap = bootstrap
        self._options = client_options(bootstrap, options)
        self._admin = AdminClient(self._options)

    def topics(self) -> Mapping[str, int]:
        """Names of all topics with their number of partitions."""
        return {name: len(t.partitions) for name, t in self._metadata().topics.items()}

    def cluster_id(self) -> str:
        return str(self._metadata().cluster_id)

    def describe(self, names: Sequence[str], *, lows: bool = True) -> Mapping[str, TopicFacts]:
        """Facts of the topics that exist; the others are left out. Without ``lows`` the low offsets are not asked for, and are 0."""
        cluster = self.cluster_id()  # This reads all metadata anew: else a partition that was added would be unknown below.
        ids, partitions = {}, []
        for name, future in self._admin.describe_topics(TopicCollection(list(names)), request_timeout=ANSWER_SECONDS).items():
            description = self._result(future, missing=(KafkaError.UNKNOWN_TOPIC_OR_PART,))
            if description is not None:
                ids[name] = str(description.topic_id)
                partitions += [TopicPartition(name, p.id) for p in description.partitions]
        low = self._offsets(partitions, OffsetSpec.earliest()) if lows else {(p.topic, p.partition): 0 for p in partitions}
        high = self._offsets(partitions, OffsetSpec.latest())
        ends: dict[str, dict[int, tuple[int, int]]] = {name: {} for name in ids}
        for (name, partition), first in low.items():
            if (name, partition) in high:
                ends[name][partition] = first, high[name, partition]
        return {name: TopicFacts(LogId(cluster, name, topic_id), ends[name]) for name, topic_id in ids.items()}

    def topic_ids(self, names: Sequence[str]) -> Mapping[str, str]:
        """The ids of the topics that exist now; one small request."""
        futures = self._admin.describe_topics(TopicCollection(list(names)), request_timeout=ANSWER_SECONDS)
        found = {name: self._result(future, missing=(KafkaError.UNKNOWN_TOPIC_OR_PART,)) for name, future in futures.items()}
        return {name: str(description.topic_id) for name, description in found.items() if description is not None}

    def create_topics(self, names: Sequence[str], *, partitions: int, config: Mapping[str, str]) -> Sequence[str]:
        """Creates those that do not exist; returns their names."""
        new = [NewTopic(n, num_partitions=partitions, replication_factor=-1, config=dict(config)) for n in names]
        made = []
        for name, future in self._admin.create_topics(new, operation_timeout=ANSWER_SECONDS).items() if new else ():
            if self._result(future, missing=(KafkaError.TOPIC_ALREADY_EXISTS,), value=True) is not None:
                made.append(name)
        return made

    def delete_topics(self, names: Sequence[str]) -> None:
        for future in self._admin.delete_topics(list(names), operation_timeout=ANSWER_SECONDS).values() if names else ():
            self._result(future, missing=(KafkaError.UNKNOWN_TOPIC_OR_PART,))

    def topic_config(self, name: str) -> Mapping[str, str]:
        resource = ConfigResource(ConfigResource.Type.TOPIC, name)
        entries = self._result(self._admin.describe_configs([resource], request_timeout=ANSWER_SECONDS)[resource])
        return {key: entry.value for key, entry in entries.items()}

    def group_offsets(self, group: str) -> Mapping[tuple[str, int], int]:
        """The group's committed offsets: advice, never the truth."""
        request = [ConsumerGroupTopicPartitions(group)]
        result = self._result(self._admin.list_consumer_group_offsets(request, request_timeout=ANSWER_SECONDS)[group])
        return {(p.topic, p.partition): p.offset for p in result.topic_partitions if p.offset >= 0}

    def members(self, group: str) -> Mapping[str, str]:
        """The group's members now: name (``member`` of Log) -> host. A member that was killed is named until its session ends (10 s)."""
        described = self._result(self._admin.describe_consumer_groups([group], request_timeout=ANSWER_SECONDS)[group])
        return {str(m.group_instance_id or m.member_id): str(m.host).lstrip("/") for m in described.members}

    def send(self, topic: str, records: Iterable[tuple[str, bytes]]) -> None:
        """Writes records, each a key and a value, and waits until the cluster has them (signals to Debezium, what registration notes)."""
        failures: list[KafkaError] = []
        producer = Producer({**self._options, "enable.idempotence": True, "message.timeout.ms": int(ANSWER_SECONDS * 1000)})
        for key, value in records:
            producer.produce(topic, key=key.encode(), value=value, on_delivery=lambda error, _: failures.append(error) if error else None)
        left = producer.flush(ANSWER_SECONDS)
        if left or failures:
            raise Unavailable(f"Kafka did not take a record for topic {topic}", hint=self._cure())

    def _metadata(self) -> Any:
        try:
            return self._admin.list_topics(timeout=ANSWER_SECONDS)
        except KafkaException as error:
            raise Unavailable(f"Kafka does not answer at {self._bootstrap}: {error.args[0].str()}", hint=self._cure()) from error

    def _offsets(self, partitions: Sequence[TopicPartition], spec: OffsetSpec) -> dict[tuple[str, int], int]:
        if not partitions:
            return {}
        futures = self._admin.list_offsets(
            dict.fromkeys(partitions, spec), isolation_level=IsolationLevel.READ_COMMITTED, request_timeout=ANSWER_SECONDS
        )
        missing = (KafkaError.UNKNOWN_TOPIC_OR_PART,)
        found = {(p.topic, p.partition): self._result(future, missing=missing) for p, future in futures.items()}
        told = {where: int(result.offset) for where, result in found.items() if result is not None}
        # Under load an answer without an offset (OFFSET_INVALID) was seen; taken for one, the log would seem to have shrunk.
        if unknown := sorted(where for where, offset in told.items() if offset < 0):
            topic, partition = unknown[0]
            raise Unavailable(f"Kafka did not tell the offsets of topic {topic}, partition {partition}", hint=self._cure())
        return told

    def _result(self, future: Future[Any], missing: tuple[int, ...] = (), value: Any = None) -> Any:
        try:
            answer = future.result(timeout=ANSWER_SECONDS + 5)
        except KafkaException as error:
            if error.args[0].code() in missing:
                return None
            raise _unavailable(error) from error
        except TimeoutError as error:
            raise Unavailable(f"Kafka does not answer at {self._bootstrap}", hint=self._cure()) from error
        return answer if value is None else value

    def _cure(self) -> str:
        return f"is a broker running at {self._bootstrap}? kafka.bootstrap_servers and kafka.options say how to reach it"


_DENIED = (KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.GROUP_AUTHORIZATION_FAILED, KafkaError.CLUSTER_AUTHORIZATION_FAILED)


_AWAY = (KafkaError._TIMED_OUT, KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN, KafkaError._RESOLVE, KafkaError._TIMED_OUT_QUEUE)


def _unavailable(error: KafkaException) -> CdcError:
    kafka: KafkaError = error.args[0]
    if kafka.code() in _AWAY:
        return Unavailable("Kafka does not answer", hint="is a broker running where kafka.bootstrap_servers says? It is tried again")
    if kafka.code() in _DENIED:
        return CdcError(f"Kafka refuses: {kafka.str()}", code="kafka_denied", hint="grant the service's user the rights that docs name")
    return Unavailable(f"Kafka: {kafka.str()}", hint="it is tried again; look at the broker's log if it lasts")
