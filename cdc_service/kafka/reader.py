"""Topics read beside the group: ``TopicTail`` follows one, ``TopicReader`` reads a range of one. Every call has a time limit; what does
not answer raises Unavailable with the cure."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    TopicPartition,
)

from cdc_service.core.errors import CdcError, Unavailable
from cdc_service.core.types import RawBatch
from cdc_service.kafka.client import ANSWER_SECONDS, QUEUE_KILOBYTES, client_options, partition_error
from cdc_service.kafka.records import batch, part_of


class TopicTail:
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
            raise self.unavailable() from error
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
                raise self.unavailable()
        found, self._found = self._found, []
        return found

    def unavailable(self) -> Unavailable:
        return Unavailable(f"topic {self._partition.topic} cannot be read", hint=self._cure)

    def close(self) -> None:
        self._consumer.close()


class TopicReader:
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
        elif failure := partition_error(message, error):
            raise CdcError(f"topic {topic} cannot be read again in partition {p}: {failure.message}", code="log_truncated")

    def close(self) -> None:
        self._consumer.close()
