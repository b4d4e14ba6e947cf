"""What ends a connector for all tables, or lets it run and decode nothing: it is refused before, or named without a value, and each cure is
followed as it is printed, until changes flow again."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from cdc_service.config import load
from cdc_service.core.errors import CdcError, ConfigError
from cdc_service.core.types import TableId
from cdc_service.ports.capture import ConnectorStatus
from cdc_service.ports.source import Finding
from connectors.debezium.check import check
from connectors.debezium.notifications import Notification, parse
from connectors.debezium.register import request_snapshots
from deploy.local.stack import Stack
from tests.conftest import PgDatabase
from tests.support.registration import Pipeline, eventually, pipeline

SECRET = "hunter2"
"""A cell value, which no message may hold."""


@pytest.fixture
def owner(stack: Stack, pg_database: PgDatabase, tmp_path: Path) -> Iterator[Pipeline]:
    with pipeline(stack, pg_database, tmp_path, role="postgres") as made:
        made.execute("CREATE TABLE a(id int PRIMARY KEY, v text); INSERT INTO a VALUES (1)")
        yield made


def failed(on: Pipeline) -> ConnectorStatus:
    def found() -> ConnectorStatus | None:
        status = on.connect.status(on.names.connector)
        return status if status is not None and status.overall == "FAILED" else None

    status: ConnectorStatus = eventually("the connector's failure", found)
    return status


def findings(on: Pipeline) -> list[Finding]:
    return check(on.config, lambda: on.kafka, lambda _: ())


def option(on: Pipeline, text: str) -> None:
    """``text`` as it stands in connect.options."""
    file = on.config.file
    file.write_text(file.read_text().replace("secrets: inline", f"secrets: inline, options: {text}"))
    on.config = load(file)


def flows(on: Pipeline, table: str = "a") -> None:
    """A row that is written now arrives."""
    row = 1000 + len(on.said)
    on.said.append("")
    on.execute(f"INSERT INTO {table} VALUES ({row})")
    eventually(f"a new row of {table}", lambda: row in on.rows(table), rest=lambda: on.connect.status(on.names.connector))


def notices(on: Pipeline) -> list[Notification]:
    read = [parse(json.dumps(value).encode()) for _, value, _ in on.events(on.names.notification_topic)]
    return [notice for notice in read if notice is not None]


@pytest.mark.parametrize(
    ("change", "column"),
    [('ALTER TABLE t ADD "V" text', "V"), ('ALTER TABLE t RENAME v TO "ID"', "ID")],
    ids=["added", "renamed"],
)
@pytest.mark.parametrize("way", ["mended", "left out"])
def test_names_that_differ_only_by_case_end_the_connector_until_their_cure(owner: Pipeline, change: str, column: str, way: str) -> None:
    owner.execute("CREATE TABLE t(id int PRIMARY KEY, v text)")
    owner.register("a", "t")
    flows(owner, "t")
    owner.execute(f"{change}; INSERT INTO t VALUES (1, '{SECRET}'); INSERT INTO a VALUES (2)")
    status = failed(owner)
    assert "table public.t" in status.problems[0]
    found = next(f for f in findings(owner) if f.name == "connector")
    assert "table public.t" in found.message
    assert found.cure == status.cure
    assert SECRET not in found.message + found.cure
    (refused,) = owner.plan("a", "t").refused
    assert (refused.name, "differ by case only" in refused.message) == ("table public.t", True)
    if way == "left out":
        tables = ["a"]
    else:
        statement, again = status.cure.split("  -- ")
        assert again.startswith("then: cdc register")
        owner.execute(statement.replace("...", "w"))
        tables = ["a", "t"]
    assert any("every table anew" in step.why for step in owner.plan(*tables).steps)
    owner.register(*tables)
    flows(owner)
    owner.execute("INSERT INTO t VALUES (5)")
    flows(owner)
    assert owner.plan(*tables).steps == ()


def test_two_names_that_differ_only_by_case_are_refused_before(owner: Pipeline) -> None:
    owner.execute('CREATE TABLE t(id int PRIMARY KEY, v text, "V" text)')
    with pytest.raises(ConfigError, match=r"public\.t has columns whose names differ by case only") as caught:
        owner.register("a", "t")
    owner.execute(caught.value.hint.splitlines()[0].replace("...", "w"))
    owner.register("a", "t")
    flows(owner)


@pytest.mark.parametrize("way", ["the column", "the table"])
def test_a_value_that_cannot_be_converted_is_named_by_its_column_and_leaving_it_out_heals(owner: Pipeline, way: str) -> None:
    owner.execute("CREATE TABLE t(id int PRIMARY KEY, v text)")
    owner.register("a", "t")
    flows(owner, "t")
    owner.execute(f"ALTER TABLE t ADD b bit(3)[]; INSERT INTO t VALUES (1, '{SECRET}', '{{101}}'); INSERT INTO a VALUES (2)")
    status = failed(owner)
    assert "public.t.b" in status.problems[0]
    assert "101" not in status.problems[0] + status.cure
    assert status.cure.endswith("then: cdc register")
    if way == "the column":
        found = re.search(r"connect\.options: (\{.*?\})", status.cure)
        assert found is not None
        option(owner, found[1])
    owner.register("a", *(["t"] if way == "the column" else ()))
    eventually("the row behind", lambda: 2 in owner.rows("a"))
    if way == "the column":
        assert owner.rows("t")[1] == {"id": 1, "v": SECRET}


@pytest.mark.parametrize(
    "made",
    [
        "CREATE TYPE mood AS ENUM (); ALTER TABLE a ADD m mood",
        "CREATE TYPE mood AS ENUM ('x'); CREATE DOMAIN d AS mood; CREATE DOMAIN e AS d; ALTER TABLE a ADD m e; ALTER TABLE a ADD n d",
    ],
    ids=["enum", "domain"],
)
def test_a_type_at_which_the_connector_ends_is_named_and_its_cure_heals(owner: Pipeline, made: str) -> None:
    owner.register("a")
    flows(owner)
    owner.execute(f"{made}; INSERT INTO a VALUES (2, '{SECRET}')")
    status = failed(owner)
    assert status.cure.startswith("cdc check names it")
    for finding in (f for f in findings(owner) if f.name == "enums"):
        owner.execute(finding.cure.split("  -- or")[0])
    owner.register("a")
    eventually("the row behind", lambda: 2 in owner.rows("a"))


def test_a_type_at_which_the_connector_would_end_is_refused_before(owner: Pipeline) -> None:
    owner.execute("CREATE TYPE mood AS ENUM ()")
    (refused,) = owner.plan("a").refused
    assert "mood is an enum without a label" in refused.message
    owner.execute(refused.cure)
    assert owner.plan("a").refused == ()


def test_a_row_that_is_too_large_for_the_connector_goes_through_with_its_cure(owner: Pipeline) -> None:
    owner.register("a")
    flows(owner)
    owner.execute(f"INSERT INTO a VALUES (2, repeat('{SECRET}', 3000000))")
    status = failed(owner)
    assert SECRET not in status.problems[0]
    found = re.search(r"connect\.options: (\{.*?\})", status.cure)
    assert found is not None
    option(owner, found[1])
    owner.register("a")
    eventually("the large row", lambda: 2 in owner.rows("a"))


def test_a_table_that_the_role_may_not_read_is_granted_before(stack: Stack, pg_database: PgDatabase, tmp_path: Path) -> None:
    """The connector would ask for it again and again, and come to no other table."""
    with pipeline(stack, pg_database, tmp_path) as made:
        made.execute("CREATE TABLE a(id int PRIMARY KEY); INSERT INTO a VALUES (1)")
        made.execute("CREATE SCHEMA s; CREATE TABLE b(id int PRIMARY KEY); REVOKE ALL ON b FROM cdc")
        with pytest.raises(CdcError) as caught:
            made.register("a", "b")
        assert caught.value.code == "table_refused"
        (refused,) = made.plan("a", "b").refused
        made.execute(refused.cure)
        with pytest.raises(CdcError) as caught:
            made.register("a", "b")
        assert caught.value.code == "needs_ddl"
        made.execute(caught.value.hint)
        made.register("a", "b")
        made.await_rows("a", {1})


@pytest.mark.parametrize("way", ["flows", "stopped", "by hand", "by hand, after the failure"])
def test_a_publication_made_anew_lets_the_connector_go_on_at_the_end_of_the_log(owner: Pipeline, way: str) -> None:
    owner.register("a")
    flows(owner)
    assert owner.plan("a").steps == ()
    if way == "stopped":
        owner.connect.stop(owner.names.connector)
    owner.execute(f"DROP PUBLICATION {owner.names.at_source}; INSERT INTO a VALUES (2)")
    if way == "by hand, after the failure":
        failed(owner)
    if way.startswith("by hand"):
        for statement in owner.plan("a").statements:
            owner.execute(statement.sql)
    assert any("every table anew" in step.why for step in owner.plan("a").steps)
    assert not owner.register("a").initial
    flows(owner)
    assert owner.plan("a").steps == ()
    (told,) = [notice for notice in notices(owner) if notice.type == "SKIPPED" and notice.aggregate == "registration"]
    assert 0 < told.position <= owner.source.position()
    assert not [f for f in findings(owner) if f.failed]


@pytest.mark.parametrize("state", ["dropped", "lost"])
def test_a_slot_that_is_gone_is_made_anew_by_registering(owner: Pipeline, state: str) -> None:
    owner.register("a")
    flows(owner)
    owner.connect.stop(owner.names.connector)
    if state == "lost":
        owner.lose_slot()
    else:
        owner.execute(f"SELECT pg_drop_replication_slot('{owner.names.at_source}')")
    owner.execute("INSERT INTO a VALUES (2)")
    assert any("every table anew" in step.why for step in owner.plan("a").steps)
    assert not owner.register("a").initial
    flows(owner)
    assert owner.plan("a").steps == ()


def test_a_publication_that_was_altered_is_mended_where_it_was(owner: Pipeline) -> None:
    """The filter of a table that is none of ours stays."""
    owner.execute("CREATE TABLE b(id int PRIMARY KEY, v text); CREATE TABLE other(id int PRIMARY KEY)")
    owner.register("a", "b")
    name = owner.names.at_source
    owner.execute(f"ALTER PUBLICATION {name} ADD TABLE other WHERE (id > 5); ALTER PUBLICATION {name} SET (publish = 'insert')")
    owner.execute(f"ALTER PUBLICATION {name} DROP TABLE a; ALTER PUBLICATION {name} ADD TABLE a WHERE (id > 5)")
    owner.execute(f"ALTER PUBLICATION {name} DROP TABLE b; ALTER PUBLICATION {name} ADD TABLE b (id)")
    said = [step.why for step in owner.plan("a", "b").steps]
    assert any("leaves out operations" in why for why in said)
    assert {why.rpartition(" on ")[2].split(",")[0] for why in said if "a row filter or a column list" in why} == {"public.a", "public.b"}
    owner.register("a", "b")
    assert owner.plan("a", "b").steps == ()
    filters = "SELECT tablename FROM pg_publication_tables WHERE pubname = %s AND rowfilter IS NOT NULL"
    assert owner.owner.execute(filters, (name,)).fetchall() == [("other",)]
    owner.execute("INSERT INTO a VALUES (3, 'x'); UPDATE a SET v = 'y' WHERE id = 3; INSERT INTO b VALUES (3, 'x')")
    eventually("the update and the whole row", lambda: owner.rows("a").get(3, {}).get("v") == "y" and owner.rows("b")[3]["v"] == "x")


@pytest.mark.parametrize("kind", ["prepared", "session"])
def test_the_transaction_that_the_slot_waits_for_is_named_with_what_ends_it(
    owner: Pipeline, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with contextlib.closing(psycopg.connect(owner.database.url, autocommit=True)) as session:
        session.execute("BEGIN; INSERT INTO a VALUES (2)")
        if kind == "prepared":
            session.execute(f"PREPARE TRANSACTION 'it''s {owner.database.name}'")
        with monkeypatch.context() as limits:
            limits.setattr("connectors.sources.postgresql.source.AWAITED_SECONDS", 0.001)
            warned = next(f for f in findings(owner) if f.name == "open transactions")
            limits.setattr("connectors.debezium.register.CONNECTOR_START_SECONDS", 5.0)
            with pytest.raises(CdcError) as caught:
                owner.register("a")
        assert caught.value.code == "source_busy"
        who = f"it''s {owner.database.name}" if kind == "prepared" else str(session.info.backend_pid)
        assert who in caught.value.message
        assert who in warned.message
        assert not warned.failed
        assert warned.cure == caught.value.hint
        found = re.search(r"end it: (.*?;)", caught.value.hint)
        assert found is not None
        owner.execute(found[1])
        owner.register("a")
        owner.await_rows("a", {1})


def test_a_transaction_older_than_the_publication_is_named_before_the_log_is_left_out(
    owner: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner.register("a")
    flows(owner)
    with psycopg.connect(owner.database.url) as session:
        session.execute("INSERT INTO a VALUES (2)")
        owner.execute(f"DROP PUBLICATION {owner.names.at_source}")
        with monkeypatch.context() as limits:
            limits.setattr("connectors.sources.postgresql.slot.SKIP_SECONDS", 1.0)
            with pytest.raises(CdcError, match=f"waits for the session with pid {session.info.backend_pid}") as caught:
                owner.register("a")
        assert caught.value.code == "source_busy"
        session.commit()
    owner.register("a")
    flows(owner)


@pytest.mark.parametrize(
    ("type_", "mend"),
    [("int[]", "DROP CONSTRAINT t_pkey, ADD PRIMARY KEY (n)"), ("money", "")],
)
def test_a_key_that_the_connector_cannot_read_by_is_refused_beside_the_stream_and_its_cure_heals(
    owner: Pipeline, type_: str, mend: str
) -> None:
    value = f"'{{1}}'::{type_}" if type_ == "int[]" else "1::money"
    owner.execute(f"CREATE TABLE t(id {type_} PRIMARY KEY, n int NOT NULL); INSERT INTO t VALUES ({value}, 1)")
    owner.register("a", "t")
    eventually("its first row", lambda: len(owner.events(owner.names.topic(TableId("public", "t")))) == 1)
    with pytest.raises(ConfigError, match=r"table public\.t has .* in its primary key") as caught:
        request_snapshots(owner.names, [TableId("public", "t")], owner.source, owner.connect, owner.kafka)
    assert any(f.name == "table public.t" and "cannot be resynced" in f.message for f in findings(owner))
    flows(owner)
    statement = caught.value.hint.splitlines()[0]
    owner.execute(f"ALTER TABLE t {mend}" if mend else statement)
    request_snapshots(owner.names, [TableId("public", "t")], owner.source, owner.connect, owner.kafka)
    eventually("the end of its snapshot", lambda: any(n.scanned and n.aggregate == "incremental" for n in notices(owner)))
    flows(owner)


def test_keys_of_times_and_bits_are_read_beyond_the_first_chunk(stack: Stack, pg_database: PgDatabase, tmp_path: Path) -> None:
    more = f'connect: {{url: "{stack.connect_url}", secrets: inline, options: {{incremental.snapshot.chunk.size: 2}}}}\n'
    keys = {
        "timestamp": "timestamp '2024-01-01' + g * interval '1us'",
        "timestamptz": "timestamptz '2024-10-27 00:59:59.999998+00' + g * interval '1us'",
        "time": "time '01:00' + g * interval '1s'",
        "timetz": "timetz '01:00+01' + g * interval '1s'",
        "bit(8)": "g::bit(8)",
    }
    with pipeline(stack, pg_database, tmp_path, role="postgres", more=more) as made:
        names = {f"t{place}": (type_, value) for place, (type_, value) in enumerate(keys.items())}
        for name, (type_, value) in names.items():
            made.execute(f"CREATE TABLE {name}(id {type_} PRIMARY KEY); INSERT INTO {name} SELECT {value} FROM generate_series(1, 5) g")
        made.register(*names)
        eventually("the first rows", lambda: all(len(made.rows(name)) == 5 for name in names))
        request_snapshots(made.names, [TableId("public", name) for name in names], made.source, made.connect, made.kafka)

        def ends() -> list[str]:
            found = [n for n in notices(made) if n.aggregate == "incremental" and n.type == "TABLE_SCAN_COMPLETED"]
            return [n.status for n in found] if len(found) == len(names) else []

        assert set(eventually("the end of all scans", ends)) == {"SUCCEEDED"}
        assert {name: len(made.events(made.names.topic(TableId("public", name)))) for name in names} == dict.fromkeys(names, 10)
