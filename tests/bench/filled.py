"""A pipeline whose topics are full: registered as its operator does it, its connector stopped, the events of a workload in its topics.

Debezium itself writes an insert, an update and a delete of each table first; the events of the workload have the form of these.
"""

from __future__ import annotations

import contextlib
import json
import time
import urllib.request
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pyarrow as pa
import pyarrow.compute as pc
from confluent_kafka import Consumer, Producer, TopicPartition
from psycopg import sql

from cdc_service.core.errors import CdcError
from cdc_service.kafka.admin import Admin
from connectors.debezium.connect import KafkaConnect
from deploy.local.service import Cdc
from deploy.local.stack import HOST, Stack
from tests.bench.progress import say
from tests.bench.wire import Event, learn
from tests.bench.workload import DELETE, INSERT, UPDATE, Changes, Workload

WIRES = ("json", "json+schema", "avro")
PROBE_ID = 1_000_000_000
PROBE_SECONDS = 60.0
CHUNK = 20_000
CHANGES_PER_TRANSACTION = 10
LSN_STEP = 100
APICURIO = "io.apicurio.registry.utils.converter.AvroConverter"
OPS = {INSERT: "c", UPDATE: "u", DELETE: "d"}


@dataclass
class Filled:
    """``changes`` are in the topics; ``records`` of them, tombstones too. ``shared`` is the state_dir of every arm that runs on them."""

    stack: Stack
    workload: Workload
    wire: str
    partitions: int
    folder: Path
    name: str
    changes: Changes
    records: int = 0
    value_bytes: int = 0
    key: dict[str, Event] = field(default_factory=dict)
    events: dict[tuple[str, str], Event] = field(default_factory=dict)
    """By table and op."""
    tombstones: bool = False
    where: dict[str, int] = field(default_factory=dict)
    """The log positions and times that the made events go on from."""

    @property
    def topics(self) -> list[str]:
        return [f"{self.name}.public.{table}" for table in self.workload.names()]

    @property
    def url(self) -> str:
        return self.stack.pg_url_for(self.name)

    def config(self, folder: Path, destination: str, sections: str = "", *, state: Path | None = None) -> Cdc:
        """The configuration of an arm, in a folder of its own."""
        folder.mkdir(parents=True, exist_ok=True)
        tables = "\n".join(f"  public.{table}: {{}}" for table in self.workload.names())
        registry = f'schema_registry: {{url: "{self.stack.registry_url}"}}\n' if self.wire == "avro" else ""
        (folder / "cdc.yaml").write_text(
            f"pipeline: {self.name}\n"
            f'source: {{url: "postgresql://cdc:${{CDC_PASSWORD}}@{HOST}:{self.stack.port("postgres")}/{self.name}"}}\n'
            f'kafka: {{bootstrap_servers: "{self.stack.kafka}"}}\n'
            f'connect: {{url: "{self.stack.connect_url}", options: {json.dumps(options(self.stack, self.wire))}}}\n'
            f"destination: {{url: '{destination}'}}\nstate_dir: {state or self.folder / 'state'}\n{registry}{sections}\n"
            f"tables:\n{tables}\n"
        )
        return Cdc(folder / "cdc.yaml", {"CDC_PASSWORD": self.stack.password("cdc")})


def options(stack: Stack, wire: str) -> dict[str, str]:
    """The connector's options that make it write this wire."""
    told: dict[str, str] = {}
    for side in ("key.converter", "value.converter"):
        if wire == "json":
            told[f"{side}.schemas.enable"] = "false"
        if wire == "avro":
            told |= {
                side: APICURIO,
                f"{side}.apicurio.registry.url": stack.converter_url,
                f"{side}.apicurio.registry.auto-register": "true",
                f"{side}.apicurio.registry.as-confluent": "true",
                f"{side}.apicurio.registry.headers.enabled": "false",
                f"{side}.apicurio.registry.use-id": "contentId",
                f"{side}.apicurio.registry.check-period-ms": "86400000",
            }
    return told


@contextmanager
def filled(stack: Stack, workload: Workload, wire: str, partitions: int, count: int, folder: Path) -> Iterator[Filled]:
    """The pipeline with ``count`` changes in its topics; taken away at the end."""
    with prepared(stack, workload, wire, partitions, count, folder) as made:
        began = time.monotonic()
        fill(made)
        rate = made.records / (time.monotonic() - began)
        say(f"{workload.name}, {wire}, {partitions}p: {made.records:,} records of {made.value_bytes:,} B made, {rate:,.0f} a second")
        yield made


@contextmanager
def prepared(stack: Stack, workload: Workload, wire: str, partitions: int, count: int, folder: Path) -> Iterator[Filled]:
    """The pipeline with empty topics, ready for ``fill``; taken away at the end."""
    name = f"bench_{uuid.uuid4().hex[:8]}"
    folder.mkdir(parents=True)
    made = Filled(stack, workload, wire, partitions, folder, name, workload.changes(count))
    stack.create_database(name)
    admin = Admin(stack.kafka, {})
    try:
        _register(made, admin)
        _probe(made, admin)
        yield made
    finally:
        connect = KafkaConnect(stack.connect_url)
        with contextlib.suppress(CdcError):
            connect.delete(f"cdc_{name}")
        connect.close()
        admin.delete_topics([topic for topic in admin.topics() if topic.startswith((f"{name}.", f"__debezium-heartbeat.{name}"))])
        stack.drop_database(name)


def _register(made: Filled, admin: Admin) -> None:
    with psycopg.connect(made.url, autocommit=True) as owner:
        for table in made.workload.names():
            owner.execute(made.workload.shape.create(table).encode())
        admin.create_topics(made.topics, partitions=made.partitions, config={"cleanup.policy": "delete"})
        cdc = made.config(made.folder / "register", f"duckdb:///{made.folder}/register.duckdb")
        for step in cdc.call("plan", "--json", accept=(0, 1))["steps"]:
            if step["by_hand"]:
                owner.execute("\n".join(step["detail"]).encode())
        cdc.call("register", "--json", "--yes")


def _probe(made: Filled, admin: Admin) -> None:
    """Has Debezium write one insert, update and delete of each table, learns their form, and stops it."""
    shape = made.workload.shape
    before, after = (shape.rows(np.array([PROBE_ID]), np.array([change])).to_pylist()[0] for change in (PROBE_ID + 1, PROBE_ID + 2))
    columns = [c.name for c in shape.columns if before[c.name] != after[c.name]] or [shape.columns[-1].name]
    with psycopg.connect(made.url, autocommit=True) as owner:
        for table in made.workload.names():
            values = sql.SQL(", ").join(sql.Literal(str(before[c.name])) for c in shape.columns)
            sets = sql.SQL(", ").join(sql.SQL("{} = {}").format(sql.Identifier(n), sql.Literal(str(after[n]))) for n in columns)
            owner.execute(sql.SQL("INSERT INTO {} VALUES ({})").format(sql.Identifier(table), values))
            owner.execute(sql.SQL("UPDATE {} SET {}").format(sql.Identifier(table), sets))
            owner.execute(sql.SQL("DELETE FROM {}").format(sql.Identifier(table)))
    schemas = _Schemas(made.stack)
    for table, records in _recorded(made).items():
        made.tombstones = records[-1][1] is None
        made.key[table], _ = learn(records[0][0], ["id"], schemas)
        for op, (_, value) in zip("cud", records, strict=False):
            assert value is not None
            made.events[table, op], found = learn(value, shape.rows(np.array([0]), np.array([0])).column_names, schemas)
            if op == "d":
                made.where = {name: number for name, number in found.items() if isinstance(number, int)}
        made.value_bytes = len(records[1][1] or b"")
    connect = KafkaConnect(made.stack.connect_url)
    connect.stop(f"cdc_{made.name}")
    connect.close()
    admin.delete_topics(made.topics)  # What was only to be learnt from: a workload has its own changes and no others.
    deadline = time.monotonic() + PROBE_SECONDS
    while len(admin.create_topics(made.topics, partitions=made.partitions, config={"cleanup.policy": "delete"})) < len(made.topics):
        assert time.monotonic() < deadline, "the topics are not gone yet"
        time.sleep(0.1)


class _Schemas(dict[int, Any]):
    """Avro schemas by their number, from the registry."""

    def __init__(self, stack: Stack) -> None:
        super().__init__()
        self._stack = stack

    def __missing__(self, number: int) -> Any:
        with urllib.request.urlopen(f"{self._stack.registry_url}/schemas/ids/{number}", timeout=10) as answer:
            self[number] = json.loads(json.load(answer)["schema"])
        return self[number]


def _recorded(made: Filled) -> dict[str, list[tuple[bytes, bytes | None]]]:
    """Key and value of the records that Debezium wrote to each topic: insert, update, delete, and the tombstone if it writes one."""
    found: dict[str, list[tuple[bytes, bytes | None]]] = {table: [] for table in made.workload.names()}
    consumer = Consumer({"bootstrap.servers": made.stack.kafka, "group.id": "bench_probe", "fetch.queue.backoff.ms": 5})
    consumer.assign([TopicPartition(topic, p, 0) for topic in made.topics for p in range(made.partitions)])
    deadline, quiet = time.monotonic() + PROBE_SECONDS, 0
    try:
        while quiet < 10 or any(len(records) < 3 for records in found.values()):
            lacking = [table for table, records in found.items() if len(records) < 3]
            assert time.monotonic() < deadline, f"Debezium did not write 3 records for each of {lacking} within {PROBE_SECONDS:.0f} s"
            messages = consumer.consume(10_000, 0.05)
            quiet = 0 if messages else quiet + 1
            for message in messages:
                assert message.error() is None, message.error()
                found[message.topic().rpartition(".")[2]].append((message.key(), message.value()))
    finally:
        consumer.close()
    return found


def fill(made: Filled, start: int = 0) -> None:
    """Writes the workload's changes from ``start`` on to the topics."""
    producer = Producer(
        {
            "bootstrap.servers": made.stack.kafka,
            "compression.type": "lz4",  # As the worker's producers have it.
            "batch.size": 262_144,
            "linger.ms": 5,
            "partitioner": "murmur2_random",
            "queue.buffering.max.messages": 200_000,
            "queue.buffering.max.kbytes": 256 * 1024,
            "message.max.bytes": 4_000_000,
        }
    )
    chunk = max(100, min(CHUNK, 32 * 2**20 // made.value_bytes))
    for first in range(start, len(made.changes), chunk):
        say(f"{made.workload.name}, {made.wire}: making events, {first / len(made.changes):4.0%}", passing=True)
        numbers = np.arange(first, min(first + chunk, len(made.changes)))
        for place, table in enumerate(made.workload.names()):
            mine = numbers[made.changes.table[numbers] == place]
            if len(mine):
                made.records += _send(producer, made, table, mine)
    left = producer.flush(120)
    assert left == 0, f"Kafka did not take {left} records"


def _send(producer: Producer, made: Filled, table: str, numbers: Any) -> int:
    """Sends these changes of one table; how many records that made."""
    ops = made.changes.op[numbers]
    rows = _envelopes(made, numbers)
    keys = made.key[table].render(rows).to_pylist()
    values: list[bytes] = [b""] * len(numbers)
    for op, letter in OPS.items():
        places = np.flatnonzero(ops == op)
        if len(places):
            chosen = {name: column.take(pa.array(places)) for name, column in rows.items()}
            for place, value in zip(places.tolist(), made.events[table, letter].render(chosen).to_pylist(), strict=True):
                values[place] = value
    topic, produce = f"{made.name}.public.{table}", producer.produce
    tombstones = ops == DELETE if made.tombstones else np.zeros(len(ops), bool)
    for key, value, twice in zip(keys, values, tombstones.tolist(), strict=True):
        while True:
            try:
                produce(topic, value, key)
                if twice:
                    produce(topic, None, key)
                break
            except BufferError:
                producer.poll(0.05)
    producer.poll(0)
    return len(keys) + int(tombstones.sum())


def _envelopes(made: Filled, numbers: Any) -> Mapping[str, pa.Array]:
    """The columns of rows and envelopes. Positions go on behind those of the recorded events, ten changes a transaction."""
    rows = made.workload.shape.rows(made.changes.id[numbers], numbers)
    first = made.where["lsn"] + 10_000
    transaction = numbers // CHANGES_PER_TRANSACTION
    size = LSN_STEP * CHANGES_PER_TRANSACTION
    lsn = first + numbers * LSN_STEP
    before = first + transaction * size - 20  # Where the transaction before ended.
    us = made.where["source_us"] + 1000 + transaction * 37
    moving = {
        "source_ms": us // 1000, "source_us": us, "source_ns": us * 1000, "transaction": made.where["transaction"] + 1 + transaction,
        "lsn": lsn, "us": us + 4321, "ms": (us + 4321) // 1000, "ns": (us + 4321) * 1000 + 17,
    }  # fmt: skip
    ends, own = (pa.array(column).cast(pa.string()) for column in (before, lsn))
    sequence = pc.binary_join_element_wise('["', ends, '","', own, '"]', "")
    columns = {name: rows[name].combine_chunks() for name in rows.column_names}
    return {**columns, **{name: pa.array(numbers) for name, numbers in moving.items()}, "sequence": sequence}
