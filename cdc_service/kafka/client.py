"""What every client of Kafka here has: its options, its time limit, and the error that it raises."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from confluent_kafka import (
    KafkaError,
    KafkaException,
    Message,
)

from cdc_service.core.errors import CdcError, Unavailable
from cdc_service.ports.feed import PartitionError

ANSWER_SECONDS = 10.0
QUEUE_KILOBYTES = 32 * 1024
_DENIED = (KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.GROUP_AUTHORIZATION_FAILED, KafkaError.CLUSTER_AUTHORIZATION_FAILED)
_AWAY = (KafkaError._TIMED_OUT, KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN, KafkaError._RESOLVE, KafkaError._TIMED_OUT_QUEUE)


def client_options(bootstrap: str, options: Mapping[str, Any]) -> dict[str, Any]:
    return {"bootstrap.servers": bootstrap, "socket.connection.setup.timeout.ms": 5000, "log_level": 2, **options}


def unavailable(error: KafkaException) -> CdcError:
    kafka: KafkaError = error.args[0]
    if kafka.code() in _AWAY:
        return Unavailable("Kafka does not answer", hint="is a broker running where kafka.bootstrap_servers says? It is tried again")
    if kafka.code() in _DENIED:
        return CdcError(f"Kafka refuses: {kafka.str()}", code="kafka_denied", hint="grant the service's user the rights that docs name")
    return Unavailable(f"Kafka: {kafka.str()}", hint="it is tried again; look at the broker's log if it lasts")


def partition_error(message: Message, error: KafkaError) -> PartitionError | None:
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
