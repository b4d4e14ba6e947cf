"""The local stack keeps its promises: idempotent start, the same ports and data after kill -9, no strangers killed, nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import Any

import duckdb
import psycopg
import pytest
from confluent_kafka import Consumer, TopicPartition

from deploy.local import shop
from deploy.local.compare import compare
from deploy.local.process import Daemon, StackError, birth
from deploy.local.stack import HOST, Stack, free_ports, open_stack
from tests.conftest import PgDatabase

WAIT_SECONDS = 60.0


def eventually(what: str, condition: Callable[[], Any], limit_seconds: float = WAIT_SECONDS) -> Any:
    deadline = time.monotonic() + limit_seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError(f"not within {limit_seconds} s: {what}")


def connect_call(stack: Stack, method: str, path: str, body: object = None) -> Any:
    request = urllib.request.Request(f"{stack.connect_url}{path}", method=method, headers={"Content-Type": "application/json"})
    with urllib.request.urlopen(request, json.dumps(body).encode() if body is not None else None, timeout=30) as answer:
        text = answer.read()
    return json.loads(text) if text else None


def connector(stack: Stack, database: PgDatabase) -> dict[str, str]:
    return {
        "connector.class": "io.debezium.connector.postgresql.PostgresConnector",
        "database.hostname": HOST,
        "database.port": str(stack.port("postgres")),
        "database.user": "cdc",
        "database.password": "${env:CDC_PASSWORD}",
        "database.dbname": database.name,
        "topic.prefix": database.name,
        "slot.name": database.name,
        "plugin.name": "pgoutput",
        "publication.name": "cdc_pub",
        "publication.autocreate.mode": "disabled",
        "poll.interval.ms": "50",
        "retriable.restart.connector.wait.ms": "500",
        "topic.creation.default.replication.factor": "1",
        "topic.creation.default.partitions": "1",
    }


def rows_seen(stack: Stack, topic: str, ids: set[int]) -> dict[int, dict[str, Any]]:
    """Read a one-partition topic from its start until each id was seen; what is redelivered after a crash is seen twice."""
    consumer = Consumer({"bootstrap.servers": stack.kafka, "group.id": f"test_{topic}"})
    found: dict[int, dict[str, Any]] = {}

    def all_there() -> bool:
        message = consumer.poll(1.0)
        value = message.value() if message is not None and message.error() is None else None
        if value is not None:
            payload = json.loads(value)["payload"]
            found[payload["after"]["id"]] = payload["after"]
        return ids <= found.keys()

    try:
        eventually(f"topic {topic}", lambda: topic in consumer.list_topics(timeout=10).topics)
        consumer.assign([TopicPartition(topic, 0, 0)])
        eventually(f"rows {ids} in {topic}", all_there)
        return found
    finally:
        consumer.close()


def test_change_of_a_row_arrives_as_a_debezium_event_and_goes_on_after_kill_9_of_each_part(stack: Stack, pg_database: PgDatabase) -> None:
    with psycopg.connect(pg_database.url, autocommit=True) as sql:
        sql.execute("CREATE TABLE note (id int PRIMARY KEY, body text)")
        sql.execute("INSERT INTO note VALUES (1, 'before')")
        sql.execute("CREATE PUBLICATION cdc_pub FOR TABLE note")
    name, topic = pg_database.name, f"{pg_database.name}.public.note"
    ports = dict(stack.state.ports)
    connect_call(stack, "PUT", f"/connectors/{name}/config", connector(stack, pg_database))
    try:
        assert rows_seen(stack, topic, {1}) == {1: {"id": 1, "body": "before"}}
        for number, part in enumerate(("connect", "kafka", "postgres"), start=2):
            stack.kill(part)
            assert stack.running()[part] is None
            stack.start([part])
            with psycopg.connect(pg_database.url, autocommit=True) as sql:
                sql.execute("INSERT INTO note VALUES (%s, %s)", (number, part))
            if part == "postgres":  # The task failed with its connection; a supervisor would restart it.
                eventually("the task runs again", lambda: restart_task(stack, name))
            assert rows_seen(stack, topic, {number})[number] == {"id": number, "body": part}
        assert stack.state.ports == ports
        config = json.dumps(connect_call(stack, "GET", f"/connectors/{name}"))
        assert stack.password("cdc") not in config
    finally:
        connect_call(stack, "DELETE", f"/connectors/{name}")


def restart_task(stack: Stack, name: str) -> bool:
    tasks = connect_call(stack, "GET", f"/connectors/{name}/status")["tasks"]
    if any(task["state"] == "FAILED" for task in tasks):
        connect_call(stack, "POST", f"/connectors/{name}/restart?includeTasks=true&onlyFailed=true")
        return False
    return bool(tasks) and all(task["state"] == "RUNNING" for task in tasks)


def test_start_again_changes_nothing(stack: Stack) -> None:
    before = stack.running()
    stack.start()
    assert {name for name, pid in before.items() if pid is not None} >= {"postgres", "kafka", "connect"}
    assert stack.running() == before


def test_all_ports_are_on_loopback_only(stack: Stack) -> None:
    wanted = {f"{stack.port(name):04X}" for name, pid in stack.running().items() if pid is not None}
    lines = [line.split() for table in ("tcp", "tcp6") for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]]
    listening = {line[1].rpartition(":")[2]: line[1].rpartition(":")[0] for line in lines if line[3] == "0A"}
    loopback = {"0100007F", "0000000000000000FFFF00000100007F"}
    assert {listening[port] in loopback for port in wanted} == {True}


def test_role_cdc_replicates_reads_and_writes_nothing(stack: Stack, pg_database: PgDatabase) -> None:
    with psycopg.connect(pg_database.url, autocommit=True) as sql:
        sql.execute("CREATE SCHEMA later CREATE TABLE thing (id int)")
    with psycopg.connect(pg_database.cdc_url, autocommit=True) as sql:
        assert sql.execute("SELECT count(*) FROM later.thing").fetchone() == (0,)
        assert sql.execute("SELECT rolreplication, rolsuper FROM pg_roles WHERE rolname = current_user").fetchone() == (True, False)
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            sql.execute("INSERT INTO later.thing VALUES (1)")


def test_a_recycled_pid_is_never_killed(tmp_path: Path) -> None:
    stranger = subprocess.Popen(["sleep", "60"])
    try:
        pid_file = tmp_path / "part.json"
        pid_file.write_text(json.dumps({"pid": stranger.pid, "born": "another-boot/1"}))
        daemon = Daemon("part", pid_file, tmp_path / "log")
        assert daemon.pid() is None
        daemon.end(((signal.SIGKILL, 1.0),))
        assert stranger.poll() is None
        assert not pid_file.exists()
    finally:
        stranger.kill()
        stranger.wait(10)


def test_a_part_that_ends_while_starting_is_named_with_its_log(tmp_path: Path) -> None:
    daemon = Daemon("part", tmp_path / "part.json", tmp_path / "log")
    daemon.spawn(["sh", "-c", "echo no such luck; exit 3"], cwd=tmp_path, env=dict(os.environ))
    with pytest.raises(StackError, match="no such luck"):
        daemon.wait_ready(lambda: "not yet", 20, Event())


@pytest.mark.parametrize("server", ["system", "pgserver"])
def test_postgres_alone_starts_keeps_its_data_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: str) -> None:
    monkeypatch.setenv("CDC_POSTGRES", server)
    made = Stack(tmp_path / "stack")
    try:
        made.start(["postgres"])
    except StackError as error:
        if "No PostgreSQL server was found" in str(error):
            pytest.skip(f"no {server} server on this machine")
        raise
    try:
        url = made.create_database("kept")
        with psycopg.connect(url, autocommit=True) as sql:
            assert sql.execute("SHOW wal_level").fetchone() == ("logical",)
            sql.execute("CREATE TABLE t AS SELECT generate_series(1, 1000) AS id")
        made.kill("postgres")
        made.start(["postgres"])
        with psycopg.connect(url) as sql:
            assert sql.execute("SELECT count(*) FROM t").fetchone() == (1000,)
        data = Path(made.state.postgres_data)
        pid = made.running()["postgres"]
        assert pid is not None
    finally:
        made.stop(remove=True)
    assert birth(pid) is None
    assert not data.exists()
    assert not made.dir.exists()


def test_postgres_that_another_process_started_comes_back_after_kill_9(tmp_path: Path) -> None:
    """Its parent is gone, so nobody may reap it: the killed server can stay a zombie whose pid still answers."""
    folder = tmp_path / "stack"
    command = [sys.executable, "-m", "deploy.local.stack", "start", "postgres", "--dir", str(folder)]
    made = open_stack(folder)
    try:
        started = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False, timeout=100)
        assert made.running()["postgres"] is not None, started.stderr
        made.kill("postgres")
        made.start(["postgres"])
        with psycopg.connect(made.pg_url) as sql:
            assert sql.execute("SELECT 1").fetchone() == (1,)
    finally:
        made.stop(remove=True)


def test_free_ports_are_distinct_and_below_the_range_of_outgoing_connections() -> None:
    low = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    ports = free_ports([f"n{number}" for number in range(20)])
    assert len(set(ports.values())) == 20
    assert all(10000 <= port < low for port in ports.values())


def fingerprint(url: str) -> dict[str, tuple[int, str]]:
    with psycopg.connect(url) as sql:
        found = {}
        for table in shop.TABLES:
            row = sql.execute(f"SELECT count(*), md5(string_agg(t::text, '|' ORDER BY t::text)) FROM {table} AS t").fetchone()
            assert row is not None
            found[table] = (row[0], row[1])
        return found


def test_shop_seed_is_the_same_each_time_and_its_load_makes_every_kind_of_change(stack: Stack) -> None:
    scale = shop.Scale().times(0.02)
    names = [f"s_{uuid.uuid4().hex[:12]}" for _ in range(2)]
    urls = [stack.create_database(name) for name in names]
    try:
        assert [shop.seed(url, scale) for url in urls] == [scale.rows] * 2
        before = fingerprint(urls[0])
        assert before == fingerprint(urls[1])
        assert {table: rows for table, (rows, _text) in before.items()} == {table: getattr(scale, table) for table in shop.TABLES}
        committed: list[int] = []
        report = shop.load(urls[0], 2_000, scale=scale, truncates=1, progress=committed.append)
        assert report.statements >= 2_000
        assert sum(committed) == report.statements
        assert set(report.kinds) == {*shop.KINDS, "truncate_addresses"}
        assert report.rolled_back > 0
        after = fingerprint(urls[0])
        assert all(after[table] != before[table] for table in shop.TABLES)
    finally:
        for name in names:
            stack.drop_database(name)


DUCK_TYPES = {
    "customers": "UUID, VARCHAR, VARCHAR, VARCHAR, DECIMAL(14,2), VARCHAR[], JSON, VARCHAR, DATE, BOOLEAN, BLOB, INTEGER, "
    "TIMESTAMPTZ, TIMESTAMPTZ",
    "addresses": "UUID, SMALLINT, VARCHAR, VARCHAR, VARCHAR, VARCHAR, DOUBLE, DOUBLE, TIMESTAMP",
    "products": "VARCHAR, VARCHAR, VARCHAR, DECIMAL(10,2), FLOAT, JSON, INTEGER[], BIGINT, DATE, VARCHAR",
    "orders": "BIGINT, UUID, VARCHAR, DECIMAL(12,2), VARCHAR, VARCHAR, JSON, VARCHAR, DATE, TIME, TIMESTAMPTZ",
    "order_items": "BIGINT, INTEGER, VARCHAR, SMALLINT, DECIMAL(10,2), DECIMAL(5,4), BOOLEAN",
}


def copy_to_duckdb(url: str, warehouse: Path) -> None:
    """The shop as a perfect replica, made without the service."""
    with psycopg.connect(url) as source, duckdb.connect(str(warehouse)) as target:
        source.execute("SET timezone = 'UTC'; SET intervalstyle = 'iso_8601'")
        target.execute("CREATE SCHEMA public")
        for table, types in DUCK_TYPES.items():
            found = source.execute(f"SELECT * FROM {table} LIMIT 0").description or []
            names = [column.name for column in found]
            kinds = types.replace("DECIMAL(", "DECIMAL<").replace(", ", "|").replace("<", "(").split("|")
            # As the output functions print: a cast to text would write an address's /32.
            texts = [
                f"to_json({name})::text"
                if kind.endswith("[]")
                else f"encode({name}, 'hex')"
                if kind == "BLOB"
                else f"CASE WHEN {name} IS NOT NULL THEN format('%s', {name}) END"
                for name, kind in zip(names, kinds, strict=True)
            ]
            casts = [
                f"from_json(?::JSON, '[\"{kind[:-2]}\"]')" if kind.endswith("[]") else "unhex(?)" if kind == "BLOB" else f"?::{kind}"
                for kind in kinds
            ]
            columns = ", ".join(f"{name} {kind}" for name, kind in zip(names, kinds, strict=True))
            target.execute(f"CREATE TABLE public.{table} ({columns}, _cdc_offset BIGINT)")
            rows = source.execute(f"SELECT {', '.join(texts)} FROM {table}").fetchall()
            target.executemany(f"INSERT INTO public.{table} VALUES ({', '.join(casts)}, 0)", rows)


def test_comparison_finds_every_kind_of_difference_and_no_other(stack: Stack, pg_database: PgDatabase, tmp_path: Path) -> None:
    shop.seed(pg_database.url, shop.Scale().times(0.01))
    warehouse = tmp_path / "w.duckdb"
    copy_to_duckdb(pg_database.url, warehouse)
    tables = {f"public.{table}": f"public.{table}" for table in shop.TABLES}
    assert [str(found) for found in compare(pg_database.url, warehouse, tables) if not found.equal] == []
    spoil = {
        "orders.total": "UPDATE public.orders SET total = total + 0.01 WHERE order_id = 1",
        "orders.placed_at": "UPDATE public.orders SET placed_at = placed_at + INTERVAL 1 MICROSECOND WHERE order_id = 1",
        "products.dimensions_mm": "UPDATE public.products SET dimensions_mm = [1] WHERE sku = 'SKU-000001'",
        "products.description": "UPDATE public.products SET description = NULL WHERE sku = 'SKU-000002'",
        "products.warranty": "UPDATE public.products SET warranty = 'P1D' WHERE sku = 'SKU-000002'",
        "customers.avatar": "UPDATE public.customers SET avatar = 'x'::BLOB WHERE email = 'user10@example.org'",
        "addresses.latitude": "UPDATE public.addresses SET latitude = latitude + 1e-12 WHERE postal_code = '00031'",
    }
    for column, statement in spoil.items():
        with duckdb.connect(str(warehouse)) as target:
            target.execute("BEGIN")
            before = target.execute(f"SELECT * FROM public.{column.split('.')[0]}").fetchall()
            target.execute(statement)
            assert target.execute(f"SELECT * FROM public.{column.split('.')[0]}").fetchall() != before
            target.execute("COMMIT")
        name = f"public.{column.split('.')[0]}"
        (found,) = compare(pg_database.url, warehouse, {name: name})
        assert column.split(".")[1] in {name for names in found.different.values() for name in names}
        assert not found.equal
    with duckdb.connect(str(warehouse)) as target:
        target.execute("DELETE FROM public.order_items WHERE order_id = 1 AND line_no = 1")
        stranger = "SELECT * REPLACE (-1 AS order_id) FROM public.order_items WHERE order_id = 2 AND line_no = 1"
        target.execute(f"INSERT INTO public.order_items {stranger}")
    (found,) = compare(pg_database.url, warehouse, {"public.order_items": "public.order_items"})
    assert (found.missing, found.extra) == ((("1", "1"),), (("-1", "1"),))
    assert not found.equal
    with duckdb.connect(str(warehouse)) as target:
        target.execute("CREATE OR REPLACE TABLE public.order_items AS SELECT * FROM public.order_items UNION ALL FROM public.order_items")
    (found,) = compare(pg_database.url, warehouse, {"public.order_items": "public.order_items"})
    assert not found.equal


def test_a_registry_comes_to_a_stack_that_runs_and_keeps_its_schemas(stack: Stack) -> None:
    """It is started only where it is asked for; Connect gets its converter; a schema keeps its number while the registry is away."""
    ran = stack.running().get("registry") is not None
    stack.start(["registry"])
    try:
        plugins = connect_call(stack, "GET", "/connector-plugins?connectorsOnly=false")
        assert "io.apicurio.registry.utils.converter.AvroConverter" in {plugin["class"] for plugin in plugins}
        body = json.dumps({"schema": '{"type":"record","name":"R","fields":[{"name":"f","type":"long"}]}'}).encode()
        headers = {"Content-Type": "application/json"}
        subject = f"{stack.registry_url}/subjects/s{uuid.uuid4().hex}/versions"
        with urllib.request.urlopen(urllib.request.Request(subject, body, headers), timeout=30) as answer:
            number = json.load(answer)["id"]
        stack.stop(["registry"])
        assert stack.running()["registry"] is None
        assert stack.running()["connect"] is not None
        stack.start(["registry"])
        with urllib.request.urlopen(f"{stack.registry_url}/schemas/ids/{number}", timeout=30) as answer:
            assert json.load(answer)["schema"] == json.loads(body)["schema"]
    finally:
        if not ran:
            stack.stop(["registry"])
