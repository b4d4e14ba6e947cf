"""The limit of reading: confluent-kafka hands over key and value of each message, and nothing is done with them.

Run by the benchmark: python -m tests.bench.plain BOOTSTRAP RECORDS PARTITIONS TOPIC...; prints a line of JSON.
"""

from __future__ import annotations

import json
import os
import sys
import time

from confluent_kafka import Consumer, TopicPartition

from tests.bench.measure import cpu_seconds, peak_rss_mb


def main(bootstrap: str, records: int, partitions: int, topics: list[str]) -> None:
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": "bench_plain",  # Never joined: a consumer must name one.
            "enable.auto.commit": False,
            # With librdkafka's default of 1000 ms a fast reader stands still two thirds of the time.
            "fetch.queue.backoff.ms": 5,
            "queued.min.messages": 200_000,
            "queued.max.messages.kbytes": 64 * 1024,
        }
    )
    consumer.list_topics(timeout=10)
    own = [os.getpid()]
    consumer.assign([TopicPartition(topic, p, 0) for topic in topics for p in range(partitions)])
    began, cpu, left, size = time.perf_counter(), cpu_seconds(own), records, 0
    while left > 0:
        for message in consumer.consume(20_000, 0.1):
            key, value = message.key(), message.value()
            size += len(key) + (0 if value is None else len(value))
            left -= 1
        assert time.perf_counter() - began < 300, f"{left} records did not come"
    seconds = time.perf_counter() - began
    print(json.dumps({"seconds": seconds, "cpu_seconds": cpu_seconds(own) - cpu, "peak_rss_mb": peak_rss_mb(own), "bytes": size}))
    consumer.close()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
