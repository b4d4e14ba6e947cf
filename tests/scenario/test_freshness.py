"""May today's report run? README's question says no whenever changes do not come through, whatever Kafka Connect calls it.

It is asked with a lower threshold than README's, so that nobody waits for a minute; and since numbers of seconds depend on the machine, the
strict part is another: no table may say that it was complete at a time at which nothing read the source any more.
"""

from __future__ import annotations

import contextlib
import json
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb
import psycopg
import pytest

from deploy.local.stack import Stack
from tests.support.line import Line, database, line
from tests.support.registration import eventually
from tests.support.warehouses import PostgreSqlDatabase

SECONDS = 12
"""More than an idle table's age in a line that is well: the service saves how far it has come every ten seconds."""
TABLES = ("busy", "idle")


@pytest.fixture(scope="module", params=["duckdb", "postgresql"])
def pipeline(request: pytest.FixtureRequest, stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Line]:
    folder: Path = tmp_path_factory.mktemp("freshness")
    with database(stack) as source, line(stack, source, folder, "public.*: {}", destination=request.param) as made:
        for name in TABLES:
            made.execute(f"CREATE TABLE {name}(id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, n int); INSERT INTO {name}(n) VALUES (1)")
        made.register()
        made.start()
        made.await_complete(limit_seconds=90)
        yield made


def answer(pipeline: Line) -> dict[str, Any]:
    """README's question, and the latest time at which a table says that it was complete: in the warehouse itself, as a report asks, and
    where its file is in the service's hands, through the service."""
    told = f"bool_and(is_complete AND freshness_seconds < {SECONDS}) AS may, max(complete_at) AS complete_at"
    statement = f"SELECT {told} FROM _cdc.table_status"
    found = None if isinstance(pipeline.warehouse, PostgreSqlDatabase) else pipeline.query(statement)
    if found is not None:
        row: dict[str, Any] = found.to_pylist()[0]
        return row
    with contextlib.suppress(duckdb.IOException):  # The service has it, and does not answer now.
        ((may, complete_at),) = pipeline.rows(statement)
        return {"may": may, "complete_at": complete_at}
    return {"may": None, "complete_at": None}


def assert_yes(pipeline: Line) -> None:
    pipeline.await_that("the report may run", lambda: answer(pipeline)["may"], 90)


def assert_no(pipeline: Line) -> None:
    """To be called when nothing reads the source any more: the answer becomes no, and no table says that it was complete later than now."""
    with psycopg.connect(pipeline.database.url, autocommit=True) as connection:
        found = connection.execute("SELECT clock_timestamp()").fetchone()
    assert found is not None
    since: datetime = found[0]
    pipeline.execute("INSERT INTO busy(n) VALUES (2)")
    eventually("the report may not run", lambda: answer(pipeline)["may"] is False, 60, lambda: answer(pipeline))
    assert answer(pipeline)["complete_at"] <= since, "a table says that it was complete while nothing was read"


def connector(pipeline: Line, method: str, what: str = "", body: object = None) -> Any:
    """Kafka Connect's answer on the pipeline's connector."""
    data = None if body is None else json.dumps(body).encode()
    url = f"{pipeline.stack.connect_url}/connectors/cdc_{pipeline.database.name}{what}"
    asked = urllib.request.Request(url, data=data, headers={"Content-Type": "application/json"}, method=method)
    with urllib.request.urlopen(asked, timeout=30) as told:
        text = told.read()
    return json.loads(text) if text else None


def await_connector(pipeline: Line, state: str, *, tasks: bool = True) -> None:
    def reached() -> bool:
        found = connector(pipeline, "GET", "/status")
        return (found["tasks"] != []) == tasks and {part["state"] for part in found["tasks"] or [found["connector"]]} == {state}

    eventually(f"the connector is {state}", reached, 60, lambda: connector(pipeline, "GET", "/status"))


@contextmanager
def resumed(pipeline: Line) -> Iterator[None]:
    """The connector runs again at the end, whatever happened, so that each test is of its own."""
    try:
        yield
    finally:
        connector(pipeline, "PUT", "/resume")


def test_a_connector_that_is_paused(pipeline: Line) -> None:
    assert_yes(pipeline)
    with resumed(pipeline):
        connector(pipeline, "PUT", "/pause")
        await_connector(pipeline, "PAUSED")
        assert_no(pipeline)
    assert_yes(pipeline)


def test_a_connector_that_is_stopped(pipeline: Line) -> None:
    assert_yes(pipeline)
    with resumed(pipeline):
        connector(pipeline, "PUT", "/stop")
        await_connector(pipeline, "STOPPED", tasks=False)
        assert_no(pipeline)
    assert_yes(pipeline)


def test_a_task_that_failed(pipeline: Line) -> None:
    """A transform that cannot do its work ends the task with the first change that comes."""
    assert_yes(pipeline)
    config = connector(pipeline, "GET", "/config")
    broken = {"transforms": "broken", "transforms.broken.type": "org.apache.kafka.connect.transforms.Cast$Value"}
    connector(pipeline, "PUT", "/config", {**config, **broken, "transforms.broken.spec": "source:int32"})
    try:
        pipeline.execute("INSERT INTO busy(n) VALUES (4)")
        await_connector(pipeline, "FAILED")
        assert_no(pipeline)
    finally:
        connector(pipeline, "PUT", "/config", config)
    assert_yes(pipeline)


def test_a_service_that_is_stopped(pipeline: Line) -> None:
    assert_yes(pipeline)
    pipeline.stop()
    try:
        assert_no(pipeline)
    finally:
        pipeline.start()
    assert_yes(pipeline)


def test_a_connector_that_is_deleted(pipeline: Line) -> None:
    assert_yes(pipeline)
    connector(pipeline, "DELETE")
    eventually("its reader has let go of the slot", lambda: not readers(pipeline))
    assert_no(pipeline)


def readers(pipeline: Line) -> bool:
    with psycopg.connect(pipeline.database.url) as connection:
        name = (f"cdc_{pipeline.database.name}",)
        return connection.execute("SELECT 1 FROM pg_replication_slots WHERE slot_name = %s AND active", name).fetchone() is not None
