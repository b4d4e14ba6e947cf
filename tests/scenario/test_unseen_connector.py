"""Between the log and Kafka nothing is left out unseen (I28): a connector with other settings than were registered, and a slot that was
moved while nobody read it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from connectors.debezium.connect import KafkaConnect
from connectors.sources.postgresql.failures import PostgresFailures
from deploy.local.stack import Stack
from tests.support.line import EACH, Line, database, line

TABLES = ("public.a", "public.b")
PARTED = "public.parted"


@pytest.fixture(scope="module", params=EACH)
def pipeline(stack: Stack, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Line]:
    configured = "\n  ".join(f"{table}: {{}}" for table in (*TABLES, PARTED))
    with (
        database(stack) as source,
        line(stack, source, tmp_path_factory.mktemp("connector"), configured, destination=request.param) as made,
    ):
        made.execute("CREATE TABLE a(id int PRIMARY KEY, n int); INSERT INTO a SELECT g, g FROM generate_series(1, 5) g")
        made.execute("CREATE TABLE b(id int PRIMARY KEY, n int); INSERT INTO b SELECT g, g FROM generate_series(1, 5) g")
        made.execute("CREATE TABLE parted(id int PRIMARY KEY, n int) PARTITION BY RANGE (id)")
        made.execute("CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM (0) TO (40)")
        made.execute("INSERT INTO parted SELECT g, g FROM generate_series(1, 5) g")
        made.register()
        made.start()
        made.await_complete()
        yield made


@pytest.fixture
def connect(pipeline: Line) -> Iterator[KafkaConnect]:
    made = KafkaConnect(pipeline.stack.connect_url, PostgresFailures())
    yield made
    made.close()


def claims(pipeline: Line) -> dict[str, dict[str, Any]]:
    found = pipeline.query("SELECT source_table, state, is_complete, complete_through, error_code, error_hint FROM _cdc.table_status")
    return {} if found is None else {row["source_table"]: row for row in found.to_pylist()}


def await_right(pipeline: Line) -> None:
    pipeline.await_complete(limit_seconds=120)
    for table in TABLES:
        with psycopg.connect(pipeline.database.url) as connection:
            here = connection.execute(f"SELECT id, n FROM {table} ORDER BY id".encode()).fetchall()
        found = pipeline.query(f"SELECT id, n FROM {table} ORDER BY id")
        assert found is not None
        assert [tuple(row.values()) for row in found.to_pylist()] == here


FILTER = {
    "transforms": "drop",
    "transforms.drop.type": "org.apache.kafka.connect.transforms.Filter",
    "transforms.drop.predicate": "one",
    "predicates": "one",
    "predicates.one.type": "org.apache.kafka.connect.transforms.predicates.TopicNameMatches",
    "predicates.one.pattern": ".*[.]a",
}


@pytest.mark.parametrize("settings", [{"skipped.operations": "d"}, FILTER], ids=["operations", "filter"])
def test_i28_a_connector_that_leaves_changes_out_stops_its_tables_until_it_is_registered(
    pipeline: Line, connect: KafkaConnect, settings: dict[str, str]
) -> None:
    name = f"cdc_{pipeline.database.name}"
    registered = connect.config(name)
    assert registered is not None
    connect.apply(connect.plan({**registered, **settings}))
    pipeline.await_that("a says so", lambda: claims(pipeline)["public.a"]["error_code"] == "connector_changed", 60)
    said = claims(pipeline)["public.a"]
    assert (said["is_complete"], said["error_hint"]) == (False, "cdc register")
    pipeline.execute("UPDATE a SET n = n + 10 WHERE id = 1; DELETE FROM a WHERE id = 5; DELETE FROM b WHERE id = 5")
    pipeline.call("register", "--yes")
    assert connect.config(name) == registered
    await_right(pipeline)
    connect.apply(connect.plan({**registered, "max.batch.size": "1000"}))  # Tuning is free.
    pipeline.execute("INSERT INTO a VALUES (5, 50); INSERT INTO b VALUES (5, 50)")
    await_right(pipeline)
    connect.apply(connect.plan(registered))


@pytest.mark.parametrize("how", ["advanced", "made anew"])
def test_i28_a_slot_that_was_moved_while_the_connector_stood_still_has_every_table_read_anew(
    pipeline: Line, connect: KafkaConnect, how: str
) -> None:
    name = f"cdc_{pipeline.database.name}"
    connect.stop(name)
    with psycopg.connect(pipeline.database.url, autocommit=True) as session:
        active = f"SELECT 1 FROM pg_replication_slots WHERE slot_name = '{name}' AND active".encode()
        pipeline.await_that("nobody reads the slot", lambda: session.execute(active).fetchone() is None, 30)
    pipeline.execute("DELETE FROM a WHERE id = 2; UPDATE a SET n = n + 10 WHERE id = 3; INSERT INTO b SELECT max(id) + 1, 0 FROM b")
    pipeline.execute(
        f"SELECT pg_replication_slot_advance('{name}', pg_current_wal_lsn())"
        if how == "advanced"
        else f"SELECT pg_drop_replication_slot('{name}'); SELECT pg_create_logical_replication_slot('{name}', 'pgoutput')"
    )
    # Whoever moves it between two looks of the service leaves no trace.
    pipeline.await_that("it is noticed", lambda: not any(said["is_complete"] for said in claims(pipeline).values()), 60)
    connect.resume(name)

    def settled() -> bool:
        status = connect.status(name)
        return (status is not None and bool(status.failures)) or all(said["is_complete"] for said in claims(pipeline).values())

    pipeline.await_that("the connector goes on, or says that it cannot", settled, 90)
    status = connect.status(name)
    assert status is not None
    if status.failures:  # Where the server holds no log from before its offset any more the connector ends by itself.
        assert status.cure == "cdc register"
        pipeline.call("register", "--yes")
    await_right(pipeline)


def test_i28_rows_are_read_where_the_connector_knows_the_key_by_its_former_name(pipeline: Line) -> None:
    """The log tells of the columns with a TRUNCATE, and of their new names with the next row only: by the old ones the connector finds no
    key, and says that the table was scanned."""
    pipeline.execute("TRUNCATE parted; ALTER TABLE parted RENAME id TO ident")
    pipeline.execute(
        "CREATE TABLE parted_2 (LIKE parted INCLUDING ALL); INSERT INTO parted_2 VALUES (45, 1), (46, 2);"
        " ALTER TABLE parted ATTACH PARTITION parted_2 FOR VALUES FROM (40) TO (60)"
    )
    fence = pipeline.fence()

    def complete() -> bool:
        said = claims(pipeline)[PARTED]
        if said["state"] == "schema_stopped":
            pipeline.call("resync", PARTED, "--yes")
        return bool(said["is_complete"] and said["complete_through"] >= fence)

    pipeline.await_that("the table is complete", complete, 120)
    found = pipeline.query("SELECT ident, n FROM public.parted ORDER BY ident")
    assert found is not None
    assert found.to_pylist() == [{"ident": 45, "n": 1}, {"ident": 46, "n": 2}]
