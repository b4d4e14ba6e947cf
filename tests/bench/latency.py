"""Latency: from the commit at the source to the moment at which somebody who asks the destination sees the row, on the whole real stack.

Rows are inserted at a steady rate, a transaction each 10 ms, while the destination is asked for its highest key all the time. What each
stage took comes from the events themselves: the commit's time, Debezium's, Kafka's, and when the merge began that wrote the row.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psycopg
import pyarrow as pa
from confluent_kafka import Consumer, TopicPartition

from connectors.debezium.connect import KafkaConnect
from deploy.local.stack import Stack
from tests.bench.arms import ArmError, Run, Running, sample
from tests.bench.destinations import destination
from tests.bench.filled import Filled, prepared
from tests.bench.measure import family, peak_rss_mb
from tests.bench.progress import say
from tests.bench.workload import WORKLOADS

TICK_SECONDS = 0.01
WARM_SECONDS = 2.0
"""Rows of this first part are not judged: the service has just started."""
SEEN_SECONDS = 60.0
ASK_SECONDS = {"postgresql": 0.002, "duckdb": 0.02}
INSERT = """INSERT INTO orders SELECT i, i %% 1000, (i %% 999999) / 100.0, 'some text of note number ' || i, clock_timestamp(), i %% 7,
    i %% 2 = 0, '{"a": [1, 2], "b": 1}', gen_random_uuid(), 'paid' FROM generate_series(CAST(%s AS bigint), CAST(%s AS bigint)) i"""
STAGES = ("Debezium", "Kafka", "fetch, decode, wait for the batch", "merge")


def measure(stack: Stack, folder: Path, kind: str, rates: tuple[int, ...], seconds: float, flush: float) -> list[Run]:
    """One service for all rates, one after another; ``flush`` is flush.seconds."""
    sections = f"defaults: {{flush: {{seconds: {flush:g}}}}}"
    runs = []
    with prepared(stack, WORKLOADS["insert"], "json", 1, 0, folder) as topic, destination(kind, stack, folder / "to") as to:
        connect = KafkaConnect(stack.connect_url)
        connect.resume(f"cdc_{topic.name}")
        connect.await_running(f"cdc_{topic.name}")
        connect.close()
        watched = Running(topic.config(folder / "run", to.url, sections), [], topic.folder / "state")
        try:
            first = 1
            for rate in (50, *rates):
                run = Run("latency", f"{rate}/s", "json", kind, 1, 0, note=f"flush.seconds {flush:g}")
                pids = family(watched.process.pid)
                began = sample(stack, pids)
                seen = Seen(topic, kind, watched, to)
                count = _load(topic, rate, seconds if rate != 50 else 1.0, first, seen)
                ended = sample(stack, pids)
                run.events, run.seconds, run.events_per_second = count, round(ended.at - began.at, 2), rate
                run.cpu_seconds = round(ended.cpu - began.cpu, 2)
                run.others = round((ended.others_cpu - began.others_cpu) / (ended.at - began.at), 1)
                run.peak_rss_mb = peak_rss_mb(pids)
                if rate != 50:  # The first one only makes the table.
                    _judge(run, topic, to, watched, kind, first, count, seen)
                    runs.append(run)
                    say(f"{kind} at {rate}/s, {run.note}")
                first += count
        finally:
            watched.process.terminate()
            watched.process.wait(30)
    return runs


class Seen:
    """Asks the destination for its highest key, again and again; when each answer came (microseconds since 1970)."""

    def __init__(self, topic: Filled, kind: str, watched: Running, to: Any) -> None:
        self.highest, self.answers = 0, [(0, 0)]
        self._done = threading.Event()
        self._rest = ASK_SECONDS[kind]
        self._ask = self._postgresql(to.admin_url) if kind == "postgresql" else lambda: watched.highest("public.orders")
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _postgresql(self, url: str) -> Callable[[], int]:
        connection = psycopg.connect(url, autocommit=True)

        def ask() -> int:
            try:
                row = connection.execute("SELECT max(id) FROM public.orders").fetchone()
            except psycopg.errors.UndefinedTable:
                return 0
            return int(row[0] or 0) if row else 0

        return ask

    def _watch(self) -> None:
        while not self._done.wait(self._rest):
            found = self._ask()
            if found > self.highest:
                self.highest = found
                self.answers.append((found, time.time_ns() // 1000))

    def stop(self) -> None:
        self._done.set()
        self._thread.join(10)


def _load(topic: Filled, rate: int, seconds: float, first: int, seen: Seen) -> int:
    """Inserts at the rate and waits until the last row is seen; how many rows there were."""
    sent, began = 0, time.monotonic()
    with psycopg.connect(topic.url, autocommit=True) as source:
        while (passed := time.monotonic() - began) < seconds:
            due = int(rate * passed) - sent
            if due > 0:
                source.execute(INSERT, [first + sent, first + sent + due - 1])
                sent += due
            time.sleep(TICK_SECONDS)
    deadline = time.monotonic() + SEEN_SECONDS
    while seen.highest < first + sent - 1:
        if time.monotonic() > deadline:
            raise ArmError(f"row {first + sent - 1} was not seen within {SEEN_SECONDS:.0f} s, only {seen.highest}")
        time.sleep(0.02)
    seen.stop()
    return sent


def _judge(run: Run, topic: Filled, to: Any, watched: Running, kind: str, first: int, count: int, seen: Seen) -> None:
    ids, source, debezium, kafka = _events(topic, first, count)
    keys, times = (np.array(column) for column in zip(*seen.answers, strict=True))
    visible = times[np.searchsorted(keys, ids)]
    synced = _synced(to, watched, kind, first, count)[ids - first]
    judged = source >= source[0] + WARM_SECONDS * 1e6
    latency = (visible - source)[judged] / 1000
    p50, p99 = np.percentile(latency, [50, 99])
    steps = np.diff(np.stack([source, debezium, kafka, np.maximum(synced, kafka), visible])[:, judged], axis=0).mean(axis=1) / 1000
    run.right = len(np.unique(ids)) == count
    shares = ", ".join(f"{name} {share:.0f}" for name, share in zip(STAGES, steps, strict=True))
    run.note = f"p50 {p50:.0f} ms, p99 {p99:.0f} ms, max {latency.max():.0f} ms; mean ms: {shares}; {run.note}"


def _events(topic: Filled, first: int, count: int) -> tuple[npt.NDArray[np.int64], ...]:
    """Key, time of the commit, of Debezium and of Kafka (microseconds) of each event, in the order of the log."""
    found = []
    consumer = Consumer({"bootstrap.servers": topic.stack.kafka, "group.id": "bench_latency", "fetch.queue.backoff.ms": 5})
    consumer.assign([TopicPartition(topic.topics[0], 0, 0)])
    try:
        deadline = time.monotonic() + SEEN_SECONDS
        while len(found) < count:
            assert time.monotonic() < deadline, f"{count - len(found)} events were not read again"
            for message in consumer.consume(10_000, 0.1):
                event = json.loads(message.value())
                if event["after"]["id"] >= first:
                    found.append((event["after"]["id"], event["source"]["ts_us"], event["ts_us"], message.timestamp()[1] * 1000))
    finally:
        consumer.close()
    columns = np.array(found, np.int64)[:count].T
    return columns[0], columns[1], columns[2], np.maximum(columns[3], columns[2])


def _synced(to: Any, watched: Running, kind: str, first: int, count: int) -> npt.NDArray[np.int64]:
    """When the merge of each row began, by key."""
    epoch = "CAST(EXTRACT(EPOCH FROM _cdc_synced_at) * 1000000 AS BIGINT)" if kind == "postgresql" else "epoch_us(_cdc_synced_at)"
    statement = f"SELECT {epoch} AS us FROM public.orders WHERE id BETWEEN {first} AND {first + count - 1} ORDER BY id"
    if kind == "postgresql":
        with psycopg.connect(to.admin_url) as connection:
            return np.array([row[0] for row in connection.execute(statement.encode())], np.int64)
    found = watched.query(statement, count)
    assert isinstance(found, pa.Table)
    return found["us"].to_numpy().astype(np.int64)
