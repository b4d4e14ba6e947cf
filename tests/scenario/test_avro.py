"""PostgreSQL, Debezium with Avro and a schema registry, `cdc run`, a warehouse: equal, whatever the registry goes through meanwhile."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer

from cdc_service.core.errors import ConfigError
from deploy.local.stack import Stack
from tests.conftest import PgDatabase
from tests.support import hostile
from tests.support.line import FACTOR, Line, line
from tests.support.wires import APICURIO, FLATTENED, avro

UNKNOWN = b"\0\x7f\xff\xff\xf0garbage"
"""A record of a schema that no registry has."""


@pytest.fixture
def registry(stack: Stack) -> Iterator[Stack]:
    """The stack with its registry, which is ended again where it did not run before."""
    ran = stack.running().get("registry") is not None
    stack.start(["registry"])
    yield stack
    if not ran:
        stack.stop(["registry"])


def waits_for_registry(pipeline: Line) -> bool:
    tables: list[dict[str, Any]] = list(pipeline.tables().values())
    return bool(tables) and any("registry" in str(table.get("error")) for table in tables)


def test_a_hostile_load_arrives_equal_through_an_outage_of_the_registry(registry: Stack, pg_database: PgDatabase, tmp_path: Path) -> None:
    """I1, I2, I4, I7, I8, I9, I11, I19, I21, I23, I24: versions change in the middle, the registry goes and comes back, a record has an
    unknown number. The load begins while the snapshot is read."""
    scale = hostile.Scale().times(FACTOR)
    hostile.seed(pg_database.url, scale)
    hostile.without_defaults(pg_database.url)
    load = hostile.Load(pg_database.url, scale, seed=21)
    with line(registry, pg_database, tmp_path, hostile.CONFIG, **avro(registry)) as pipeline, ThreadPoolExecutor(1) as pool:
        pipeline.register()
        garbage(registry, f"{pg_database.name}.public.soft")
        work = pool.submit(load.run)
        try:
            pipeline.start()
            # A column of which older rows may hold what nobody knows (one that comes in a snapshot, or with values in a table that was
            # truncated) has its table read anew, which skips offsets.
            for table in ("public.pair", "public.Größe-Order"):
                pipeline.await_state(table, "streaming", limit_seconds=120.0)
            pipeline.execute('ALTER TABLE "Größe-Order" ADD "späterer wert" text, ADD "1st" int')
            pipeline.execute("ALTER TABLE pair ADD later numeric(8,3) NOT NULL DEFAULT 1.5")
            pipeline.await_that("the load is done", work.done, 240)
            work.result()
            # The load may have ended before the columns came: events have to tell of them while the registry is there.
            pipeline.execute('UPDATE pair SET later = later; UPDATE "Größe-Order" SET "1st" = "1st"')
            pipeline.await_complete("public.pair", "public.Größe-Order")
            pipeline.execute('UPDATE "Größe-Order" SET "1st" = 1')
            pipeline.await_complete(*(table for table in hostile.TABLES if table != "public.soft"))
            # Schemas that are known need no registry.
            registry.stop(["registry"])
            pipeline.execute("UPDATE whole SET id = id")
            pipeline.await_complete("public.whole")
            pipeline.kill()
            pipeline.start()
            pipeline.execute("UPDATE pair SET later = later + 0.125; UPDATE soft SET k = k")
            pipeline.await_that("the tables wait for the registry", lambda: waits_for_registry(pipeline))
            registry.start(["registry"])
            pipeline.await_complete(*hostile.TABLES)
        finally:
            load.stop.set()
            registry.start(["registry"])
        pipeline.stop()
        pipeline.assert_equal(hostile.TABLES)
        pipeline.assert_ledger(hostile.TABLES, parked={"public.soft": 1})
        assert pipeline.rows("SELECT code, value IS NOT NULL FROM _cdc.quarantine") == [("unknown_schema_id", True)]


def garbage(stack: Stack, topic: str) -> None:
    producer = Producer({"bootstrap.servers": stack.kafka})
    producer.produce(topic, UNKNOWN, partition=0)
    assert producer.flush(20) == 0, "the broker did not take the record"


JSON = dict.fromkeys(("key.converter", "value.converter"), "org.apache.kafka.connect.json.JsonConverter")


@pytest.mark.parametrize("wire", ["json", "avro"])
def test_flattened_events_arrive_equal(registry: Stack, pg_database: PgDatabase, tmp_path: Path, wire: str) -> None:
    """I1, I2, I7, I11: everything but TRUNCATE, whose events the transform drops. The pipeline then turns to whole events on the other
    wire, in the same topics, beside the running service; `cdc check` says of both what it has to."""
    sections = avro(registry)["sections"]
    wires = {"json": ", ".join(f'{name}: "{value}"' for name, value in JSON.items()), "avro": avro(registry)["options"]}
    flattened = ", ".join(f'{name}: "{value}"' for name, value in FLATTENED.items())
    tables = "public.a: {}"
    with line(registry, pg_database, tmp_path, tables, options=f"{wires[wire]}, {flattened}", sections=sections) as pipeline:
        pipeline.execute("CREATE TABLE a(id int PRIMARY KEY, v text, big text); ALTER TABLE a ALTER big SET STORAGE EXTERNAL")
        pipeline.execute("INSERT INTO a SELECT n, n::text, repeat('x', 9000) FROM generate_series(1, 200) n")
        pipeline.register()
        found = [one for one in pipeline.call("check", accept=(0, 1))["findings"] if one["name"] == "wire"]
        assert [("TRUNCATE" in one["message"], one["status"]) for one in found][-1] == (True, "warning")
        pipeline.start()
        pipeline.await_complete()
        pipeline.execute("UPDATE a SET v = NULL WHERE id < 50; DELETE FROM a WHERE id > 150; UPDATE a SET id = -id WHERE id < 20")
        pipeline.execute(
            "INSERT INTO a VALUES (160, 'again', NULL); ALTER TABLE a ADD n numeric(9,2); UPDATE a SET n = id WHERE id % 2 = 0"
        )
        pipeline.await_complete()
        pipeline.configure(tables, options=wires["json" if wire == "avro" else "avro"], sections=sections)
        pipeline.register()
        pipeline.execute("DELETE FROM a WHERE id % 3 = 0; UPDATE a SET v = 'whole' WHERE id % 5 = 0")
        pipeline.await_complete()
        pipeline.stop()
        pipeline.assert_equal(["public.a"])
        pipeline.assert_ledger(["public.a"])
        assert [one for one in pipeline.call("check", accept=(0, 1))["findings"] if "TRUNCATE" in one["message"]] == []


def test_what_a_worker_cannot_write_is_said_before_it_is_asked_to(registry: Stack, pg_database: PgDatabase, tmp_path: Path) -> None:
    """Confluent's converter, which the registry alone asks for, is no plugin of this worker; then settings that the service cannot read."""
    section = avro(registry)["sections"]
    with line(registry, pg_database, tmp_path, "public.a: {}", sections=section) as pipeline:
        pipeline.execute("CREATE TABLE a(id int PRIMARY KEY, v text)")
        said = json.dumps(pipeline.call("check", accept=(1,)))
        assert "io.confluent.connect.avro.AvroConverter" in said
        assert "plugin.path" in said
        with pytest.raises(ConfigError, match=r"io\.confluent\.connect\.avro"):
            pipeline.prepare()
        pipeline.configure("public.a: {}", options=f'value.converter: "{APICURIO}"', sections=section)
        assert "as-confluent: true" in json.dumps(pipeline.call("check", accept=(1, 3)))
        pipeline.configure("public.a: {}", options=f'value.converter: "{APICURIO}"')
        assert "schema_registry" in json.dumps(pipeline.call("check", accept=(1, 3)))
        pipeline.configure("public.a: {}", **{**avro(registry), "sections": "schema_registry: {url: 'http://127.0.0.1:9'}"})
        assert "cannot be reached" in json.dumps(pipeline.call("check", accept=(1, 3)))
        pipeline.configure("public.a: {}", **avro(registry))
        found = pipeline.call("check", accept=(0, 1))["findings"]
        assert [one["name"] for one in found if one["name"] == "schema registry" and one["status"] == "ok"] == ["schema registry"]
        assert [one["status"] for one in found if one["name"] == "wire"] == ["warning"]


def test_doubtful_defaults_are_parked_and_nothing_else(registry: Stack, pg_database: PgDatabase, tmp_path: Path) -> None:
    """I19, I23: this converter writes a default where the value is NULL; both are kept whole, and a resync under JSON settles them."""
    with line(registry, pg_database, tmp_path, "public.a: {}", **avro(registry)) as pipeline:
        pipeline.execute("CREATE TABLE a(id int PRIMARY KEY, v text DEFAULT 'new', n int NOT NULL DEFAULT 7)")
        pipeline.execute("INSERT INTO a VALUES (1, NULL, 7), (2, 'new', 7), (3, 'other', 7), (4, 'sent', 8)")
        pipeline.register()
        pipeline.start()
        pipeline.await_that("all are read", lambda: pipeline.tables().get("public.a", {}).get("parked") == 2)
        pipeline.await_complete()
        found = pipeline.query("SELECT id FROM public.a ORDER BY id")
        assert found is not None
        assert found.column("id").to_pylist() == [3, 4]
        pipeline.stop()
        assert set(pipeline.rows("SELECT code, key_text FROM _cdc.quarantine")) == {
            ("null_or_default", '["1"]'),
            ("null_or_default", '["2"]'),
        }
