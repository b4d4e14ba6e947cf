"""A pipeline on the real stack, as tests of registration and checks use it: its configuration, its parts, and what its topics hold."""

from __future__ import annotations

import contextlib
import json
import os
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import psycopg
from confluent_kafka import Consumer, TopicPartition

from cdc_service.config import Config, load
from cdc_service.core.errors import CdcError
from cdc_service.core.names import Names
from cdc_service.core.types import TableId
from cdc_service.kafka.admin import Admin
from cdc_service.ports.source import Source
from connectors.debezium.connect import KafkaConnect
from connectors.debezium.register import Registered, RegistrationPlan, apply_registration, plan_registration, unregister
from connectors.sources import open_source
from deploy.local.stack import Stack
from tests.conftest import PgDatabase

WAIT_SECONDS = 60.0


def eventually(what: str, condition: Callable[[], Any], limit_seconds: float = WAIT_SECONDS, rest: Callable[[], Any] = lambda: None) -> Any:
    """The first true value of ``condition``; an AssertionError that names ``what``, and shows what ``rest`` returns, after the limit."""
    deadline = time.monotonic() + limit_seconds
    while True:
        if found := condition():
            return found
        if time.monotonic() > deadline:
            shown = rest()
            raise AssertionError(f"not within {limit_seconds} s: {what}" + (f"; {shown}" if shown is not None else ""))
        time.sleep(0.05)


@dataclass
class Pipeline:
    """One pipeline on one database; ``owner`` is the superuser's connection, the service itself logs in as ``role``."""

    stack: Stack
    database: PgDatabase
    config: Config
    source: Source
    connect: KafkaConnect
    kafka: Admin
    owner: psycopg.Connection
    said: list[str] = field(default_factory=list)

    @property
    def names(self) -> Names:
        return self.config.names

    def execute(self, statement: str) -> None:
        """SQL of one or more statements, as the owner of everything."""
        self.owner.execute(statement.encode())

    def plan(self, *tables: str, snapshot: Sequence[TableId] = ()) -> RegistrationPlan:
        wanted = [TableId("public", name) for name in tables]
        return plan_registration(self.config, wanted, self.source, self.connect, self.kafka, snapshot=snapshot)

    def register(self, *tables: str, connect: KafkaConnect | None = None) -> Registered:
        return apply_registration(self.plan(*tables), self.source, connect or self.connect, self.kafka, self.said.append)

    def events(self, topic: str) -> list[tuple[Any, Any, dict[str, bytes]]]:
        """(key, payload, headers) of each record of the topic now, tombstones too (payload None), by partition."""
        ends = self.kafka.describe([topic]).get(topic)
        consumer = Consumer({"bootstrap.servers": self.stack.kafka, "group.id": uuid.uuid4().hex, "enable.partition.eof": True,
                             "auto.offset.reset": "earliest", "isolation.level": "read_committed"})  # fmt: skip
        found: dict[int, list[Any]] = {}
        left = {p for p, (low, high) in ends.ends.items() if high > low} if ends else set()
        try:
            consumer.assign([TopicPartition(topic, p, 0) for p in left])
            deadline = time.monotonic() + WAIT_SECONDS
            while left:
                assert time.monotonic() < deadline, f"topic {topic} was not read within {WAIT_SECONDS} s"
                message = consumer.poll(0.5)
                if message is None:
                    continue
                if message.error() is not None:
                    left.discard(message.partition())
                    continue
                value = None if message.value() is None else json.loads(message.value())["payload"]
                key = None if message.key() is None else json.loads(message.key())
                found.setdefault(message.partition(), []).append(
                    (key["payload"] if key and "payload" in key else key, value, dict(message.headers() or []))
                )
        finally:
            consumer.close()
        return [event for _, events in sorted(found.items()) for event in events]

    def rows(self, table: str) -> dict[Any, Any]:
        """The table as its events give it: column ``id`` to row."""
        rows: dict[Any, Any] = {}
        for key, value, _ in self.events(self.names.topic(TableId("public", table))):
            if value is not None:
                rows.pop(key["id"], None)
                if value["op"] != "d":
                    rows[key["id"]] = value["after"]
        return rows

    def await_rows(self, table: str, ids: set[Any]) -> dict[Any, Any]:
        found: dict[Any, Any] = eventually(f"rows {sorted(ids)[:5]}.. in the events of {table}", lambda: _same(self.rows(table), ids))
        return found

    def lose_slot(self) -> None:
        """Lets the server give up the pipeline's slot, which nobody may be reading: it keeps less of the log than is written now."""
        self.execute("ALTER SYSTEM SET max_slot_wal_keep_size = '1MB'")
        try:
            self.execute("SELECT pg_reload_conf()")

            def lost() -> bool:
                self.execute("SELECT pg_logical_emit_message(false, 'filler', repeat('x', 100000)); SELECT pg_switch_wal()")
                self.execute("CHECKPOINT")
                hold = self.source.hold(self.names)
                return hold is not None and hold.status == "lost"

            eventually("the loss of the slot", lost)
        finally:
            self.execute("ALTER SYSTEM RESET max_slot_wal_keep_size")
            self.execute("SELECT pg_reload_conf()")

    def close(self) -> None:
        with contextlib.suppress(CdcError):  # What a role may not drop goes with the database.
            unregister(self.config, self.source, self.connect)
        self.connect.close()
        self.source.close()
        self.owner.close()


def _same(rows: dict[Any, Any], ids: set[Any]) -> dict[Any, Any] | None:
    return rows if set(rows) == ids else None


@contextmanager
def pipeline(
    stack: Stack, database: PgDatabase, folder: Path, *, role: str = "cdc", more: str = "", source: str = "", tables: str = "public.*: {}"
) -> Iterator[Pipeline]:
    """A pipeline whose service and connector log in as ``role`` (cdc or postgres); ``more`` is added to its file."""
    variable = {"cdc": "CDC_PASSWORD", "postgres": "CDC_TEST_SUPERUSER"}[role]
    secret = f"${{{variable}}}" if role == "cdc" else stack.password("postgres")
    file = folder / "cdc.yaml"
    file.write_text(
        f"pipeline: {database.name}\n"
        f'source: {{url: "postgresql://{role}:{secret}@127.0.0.1:{stack.port("postgres")}/{database.name}"{source}}}\n'
        f'kafka: {{bootstrap_servers: "{stack.kafka}"}}\n'
        "destination: {url: 'duckdb:///warehouse.duckdb'}\n"
        f"tables:\n  {tables}\n" + (more or f'connect: {{url: "{stack.connect_url}", secrets: {"env" if role == "cdc" else "inline"}}}\n')
    )
    with patch.dict(os.environ, {"CDC_PASSWORD": stack.password("cdc")}):
        config = load(file)
    source_of = open_source(config.source.url.reveal())
    made = Pipeline(
        stack,
        database,
        config,
        source_of,
        KafkaConnect(config.connect.url.reveal(), source_of.failures),
        Admin(stack.kafka, {}),
        psycopg.connect(database.url, autocommit=True),
    )
    try:
        yield made
    finally:
        made.close()
