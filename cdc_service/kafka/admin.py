"""What is asked of the cluster, and made there: topics and their ids, ends of partitions, committed offsets, records of ours. Every call
has a time limit; what does not answer raises Unavailable with the cure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from confluent_kafka import (
    ConsumerGroupTopicPartitions,
    IsolationLevel,
    KafkaError,
    KafkaException,
    Producer,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic, OffsetSpec

from cdc_service.core.errors import Unavailable
from cdc_service.core.types import LogId
from cdc_service.kafka.client import ANSWER_SECONDS, client_options, unavailable
from cdc_service.ports.feed import TopicFacts


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
            raise unavailable(error) from error
        except TimeoutError as error:
            raise Unavailable(f"Kafka does not answer at {self._bootstrap}", hint=self._cure()) from error
        return answer if value is None else value

    def _cure(self) -> str:
        return f"is a broker running at {self._bootstrap}? kafka.bootstrap_servers and kafka.options say how to reach it"
