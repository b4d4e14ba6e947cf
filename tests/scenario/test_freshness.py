"""May today's report run? README's question says no whenever changes do not come through, whatever Kafka Connect calls it.

It is asked with a lower threshold than README's, so that nobody waits for a minute; and since numbers of seconds depend on the machine, the
strict part is another: no table may say that it was complete at a time at which nothing read the source any more.
"""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest

from deploy.local.stack import Stack
from tests.support.line import Line, database, line
from tests.support.registration import eventually

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


def ask(pipeline: Line, statement: str) -> list[dict[str, Any]]:
    """Through the service while it runs, else in the warehouse itself."""
    if pipeline.process is None or pipeline.process.poll() is not None:
        (row,) = pipeline.rows(statement)
        return [dict(zip(("may", "complete_at"), row, strict=True))]
    found = pipeline.query(statement)
    return [] if found is None else found.to_pylist()


def answer(pipeline: Line) -> dict[str, Any]:
    """README's question, and the latest time at which a table says that it was complete."""
    rows = ask(
        pipeline,
        f"SELECT bool_and(is_complete AND freshness_seconds < {SECONDS}) AS may, max(complete_at) AS complete_at FROM _cdc.table_status",
    )
    return rows[0] if rows else {"may": None, "complete_at": None}


def assert_yes(pipeline: Line) -> None:
    pipeline.await_that("the report may run", lambda: answer(pipeline)["may"], 90)


@contextmanager
def nothing_comes(pipeline: Line) -> Iterator[None]:
    """Nothing reads the source any more: the answer becomes no before the block and stays it, and for no table a later time counts."""
    with psycopg.connect(pipeline.database.url, autocommit=True) as connection:
        found = connection.execute("SELECT clock_timestamp()").fetchone()
    assert found is not None
    since: datetime = found[0]
    pipeline.execute("INSERT INTO busy(n) VALUES (2)")
    eventually("the report may not run", lambda: answer(pipeline)["may"] is False, 60, lambda: answer(pipeline))
    assert answer(pipeline)["complete_at"] <= since, "a table says that it was complete while nothing was read"
    yield
    assert answer(pipeline)["may"] is False
    assert answer(pipeline)["complete_at"] <= since


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


def test_a_connector_that_is_paused(pipeline: Line) -> None:
    assert_yes(pipeline)
    connector(pipeline, "PUT", "/pause")
    await_connector(pipeline, "PAUSED")
    with nothing_comes(pipeline):
        pipeline.execute("INSERT INTO idle(n) VALUES (3)")
    connector(pipeline, "PUT", "/resume")
    assert_yes(pipeline)


def test_a_connector_that_is_stopped(pipeline: Line) -> None:
    assert_yes(pipeline)
    connector(pipeline, "PUT", "/stop")
    await_connector(pipeline, "STOPPED", tasks=False)
    with nothing_comes(pipeline):
        pass
    connector(pipeline, "PUT", "/resume")
    assert_yes(pipeline)


def test_a_task_that_failed(pipeline: Line) -> None:
    """A transform that cannot do its work ends the task with the first change that comes."""
    assert_yes(pipeline)
    config = connector(pipeline, "GET", "/config")
    broken = {"transforms": "broken", "transforms.broken.type": "org.apache.kafka.connect.transforms.Cast$Value"}
    connector(pipeline, "PUT", "/config", {**config, **broken, "transforms.broken.spec": "source:int32"})
    pipeline.execute("INSERT INTO busy(n) VALUES (4)")
    await_connector(pipeline, "FAILED")
    with nothing_comes(pipeline):
        pass
    connector(pipeline, "PUT", "/config", config)
    assert_yes(pipeline)


def test_a_service_that_is_stopped(pipeline: Line) -> None:
    assert_yes(pipeline)
    pipeline.stop()
    with nothing_comes(pipeline):
        pass
    pipeline.start()
    assert_yes(pipeline)


def test_a_connector_that_is_deleted(pipeline: Line) -> None:
    assert_yes(pipeline)
    connector(pipeline, "DELETE")
    eventually("its reader has let go of the slot", lambda: not readers(pipeline))
    with nothing_comes(pipeline):
        pass


def readers(pipeline: Line) -> bool:
    with psycopg.connect(pipeline.database.url) as connection:
        name = (f"cdc_{pipeline.database.name}",)
        return connection.execute("SELECT 1 FROM pg_replication_slots WHERE slot_name = %s AND active", name).fetchone() is not None
