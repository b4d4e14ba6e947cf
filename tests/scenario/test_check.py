"""Pre-flight checks on the real stack: each fault is found, named, and gone after its own cure was run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest

from cdc_service.config import Config, load
from cdc_service.core.errors import Unavailable
from cdc_service.kafka.admin import Admin
from cdc_service.ports.source import Finding, Level
from connectors.debezium.check import check
from connectors.debezium.connect import ConnectorPlan
from connectors.debezium.register import unregister
from deploy.local.stack import HOST, Stack, free_ports
from tests.conftest import PgDatabase
from tests.support.registration import Pipeline, pipeline


@pytest.fixture
def reader(stack: Stack, pg_database: PgDatabase, tmp_path: Path) -> Iterator[Pipeline]:
    with pipeline(stack, pg_database, tmp_path) as made:
        made.execute("CREATE TABLE a(id int PRIMARY KEY, v text); INSERT INTO a VALUES (1, 'x')")
        yield made


@pytest.fixture
def owner(stack: Stack, pg_database: PgDatabase, tmp_path: Path) -> Iterator[Pipeline]:
    with pipeline(stack, pg_database, tmp_path, role="postgres") as made:
        made.execute("CREATE TABLE a(id int PRIMARY KEY, v text)")
        yield made


def findings(on: Pipeline, config: Config | None = None, destination: Callable[[Any], Sequence[Finding]] = lambda _: ()) -> list[Finding]:
    return check(config or on.config, lambda: on.kafka, destination)


def failures(found: Sequence[Finding]) -> list[str]:
    return [f"{f.name}: {f.message}" for f in found if f.failed]


def the(found: Sequence[Finding], name: str, *, ok: bool = False) -> Finding:
    """The only finding of that name that is (not) ok."""
    matching = [f for f in found if f.name == name and f.ok is ok]
    assert len(matching) == 1, [(f.name, f.ok, f.message) for f in found]
    return matching[0]


def heal(on: Pipeline, finding: Finding) -> None:
    on.execute(finding.cure)


def test_a_new_pipeline_fails_nothing_and_one_that_runs_has_nothing_to_do(owner: Pipeline) -> None:
    found = findings(owner)
    assert failures(found) == []
    assert the(found, "connector").level is Level.INFO
    owner.register("a")
    found = findings(owner)
    assert [f.name for f in found if not f.ok] == ["log limit", "secrets", "worker settings"]
    assert {f.level for f in found if not f.ok} == {Level.WARNING, Level.INFO}
    assert all(not f.cure for f in found if f.ok)


def test_what_only_the_owner_may_do_is_ddl_to_paste_and_enough(reader: Pipeline) -> None:
    found = findings(reader)
    ddl = [f.cure for f in found if f.name == "publication" and f.failed]
    assert ddl
    assert all("must run this" in f.message for f in found if f.name == "publication")
    for statement in ddl:
        reader.execute(statement)
    assert failures(findings(reader)) == []
    reader.register("a")


def changed(on: Pipeline, old: str, new: str, tmp_path: Path) -> Config:
    file = tmp_path / "changed.yaml"
    text = on.config.file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))
    return load(file)


def test_a_wrong_password_is_said_and_the_other_parts_are_asked_all_the_same(reader: Pipeline, monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.setenv("CDC_PASSWORD", "wrong horse")
    found = findings(reader, load(reader.config.file))
    assert "refused the login of cdc" in the(found, "source").message
    assert the(found, "kafka", ok=True)
    assert the(found, "plugin", ok=True)
    assert "wrong horse" not in repr(found)


@pytest.mark.parametrize(
    ("old", "new", "part", "said"),
    [
        ("@127.0.0.1:{postgres}/", "@127.0.0.1:{free}/", "source", "does not answer"),
        ('{database}"', 'no_such_database"', "source", "no such database"),
        ("{connect}", "http://127.0.0.1:{free}", "connect", "cannot be reached"),
        ("public.*", "public.nothing*", "tables", "matches no table"),
    ],
)
def test_what_cannot_be_reached_is_said_with_a_cure(
    reader: Pipeline, tmp_path: Path, monkeypatch: Any, old: str, new: str, part: str, said: str
) -> None:
    monkeypatch.setenv("CDC_PASSWORD", reader.stack.password("cdc"))
    known = {
        "postgres": reader.stack.port("postgres"),
        "free": free_ports(["free"])["free"],
        "database": reader.database.name,
        "connect": reader.stack.connect_url,
    }
    found = findings(reader, changed(reader, old.format(**known), new.format(**known), tmp_path))
    finding = the(found, part)
    assert said in finding.message
    assert finding.cure
    assert the(found, "kafka", ok=True)


def test_kafka_that_does_not_answer_is_said_and_connect_is_asked_all_the_same(reader: Pipeline) -> None:
    nobody = Admin(f"{HOST}:{free_ports(['nobody'])['nobody']}", {})
    found = check(reader.config, lambda: nobody, lambda _: ())
    assert "does not answer" in the(found, "kafka").message
    assert the(found, "plugin", ok=True)


def test_the_destination_tells_its_own_and_its_errors_are_findings(reader: Pipeline) -> None:
    def fails(_: object) -> Sequence[Finding]:
        raise Unavailable("the warehouse sleeps", hint="wake it")

    assert the(findings(reader, destination=fails), "destination") == Finding("destination", False, "the warehouse sleeps", "wake it")
    told = Finding("destination rights", True, "may write")
    assert told in findings(reader, destination=lambda _: [told])


@pytest.mark.parametrize(
    ("fault", "name"),
    [
        ("REVOKE SELECT ON a FROM cdc", "role may read"),
        ("CREATE SCHEMA hidden; REVOKE ALL ON SCHEMA hidden FROM cdc; ALTER TABLE a SET SCHEMA hidden", "role may read"),
        ("REVOKE EXECUTE ON FUNCTION pg_logical_emit_message(boolean, text, text) FROM public", "heartbeat"),
        ("ALTER TABLE a DROP CONSTRAINT a_pkey, ADD PRIMARY KEY (id) DEFERRABLE", "table public.a"),
        ("ALTER TABLE a REPLICA IDENTITY NOTHING", "table public.a"),
        ("ALTER TABLE a SET UNLOGGED", "table public.a"),
        ("CREATE TYPE nothing AS ENUM ()", "enums"),
        ("ALTER TABLE a ADD n numeric[]", "table public.a"),
    ],
)
def test_a_fault_at_the_source_is_found_and_its_cure_cures(
    reader: Pipeline, tmp_path: Path, monkeypatch: Any, fault: str, name: str
) -> None:
    monkeypatch.setenv("CDC_PASSWORD", reader.stack.password("cdc"))
    config = changed(reader, "public.*", '"*"', tmp_path)
    reader.execute(f"CREATE PUBLICATION {reader.names.at_source} FOR ALL TABLES WITH (publish_via_partition_root)")
    assert failures(findings(reader, config)) == []
    reader.execute(fault)
    finding = the(findings(reader, config), name)
    assert finding.failed
    reader.execute(finding.cure.split("  -- or")[0])
    assert failures(findings(reader, config)) == []


def test_a_role_without_replication_is_found(reader: Pipeline, tmp_path: Path, monkeypatch: Any) -> None:
    role = f"r_{reader.database.name}"
    reader.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'only here'; GRANT SELECT ON a TO {role}")
    try:
        monkeypatch.setenv("CDC_PASSWORD", "only here")
        config = changed(reader, "//cdc:", f"//{role}:", tmp_path)
        finding = the(findings(reader, config), "role may replicate")
        assert finding.failed
        reader.execute(finding.cure)
        assert the(findings(reader, config), "role may replicate", ok=True)
    finally:
        reader.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


def test_a_keyless_table_and_a_partition_named_as_such_are_refused(reader: Pipeline, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("CDC_PASSWORD", reader.stack.password("cdc"))
    reader.execute(
        "CREATE TABLE keyless(v int); CREATE TABLE parted(id int PRIMARY KEY) PARTITION BY RANGE (id);"
        "CREATE TABLE part1 PARTITION OF parted FOR VALUES FROM (0) TO (10);"
        "CREATE TABLE bare_parts(v int) PARTITION BY RANGE (v); ALTER TABLE bare_parts REPLICA IDENTITY FULL"
    )
    logs = findings(reader, changed(reader, "public.*: {}", "public.*: {keyless: append}", tmp_path))
    assert "REPLICA IDENTITY FULL" in the(logs, "table public.keyless").cure
    assert "each partition" in the(logs, "table public.bare_parts").message
    found = findings(reader)
    assert "no primary key" in the(found, "table public.keyless").message
    assert not [f for f in found if "part1" in f.name]
    named = findings(reader, changed(reader, "public.*: {}", "public.part1: {}", tmp_path))
    assert "partition of public.parted" in the(named, "table public.part1").message


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("ALTER TABLE a ADD g int GENERATED ALWAYS AS (id) STORED", "generated columns are left out"),
        ("ALTER TABLE a ADD x xml[]", "is not part of the connector's events"),
        ("ALTER TABLE a ALTER id TYPE bigint, ADD d date; INSERT INTO a VALUES (2, 'x', '0044-03-15 BC')", "dates before the year 1"),
    ],
)
def test_what_only_needs_knowing_is_said_and_fails_nothing(owner: Pipeline, statement: str, said: str) -> None:
    owner.execute(statement)
    found = findings(owner)
    assert failures(found) == []
    assert said in next(f for f in found if f.name == "table public.a").message


@pytest.mark.parametrize(
    ("column", "value", "said", "stops"),
    [
        ("day", "0001-12-31 BC", "dates before the year 1", False),
        ("day", "1582-10-14", "dates before the year 1", False),
        ("day", "0005-02-29 BC", "29 February before Christ (c): at a snapshot", True),
        ("int[]", "{{1,2},{3,4}}", "more than one dimension", False),
        ("numbers", "[0:1]={1,2}", "more than one dimension", False),
        ("date[]", "{0001-02-29 BC}", "29 February before Christ in an array", True),
        ("timestamptz[]", "{2000-01-01 00:00+00 BC}", "2200 BC to 1583 BC", False),
        ("numeric[]", "{1,NaN}", "arrays with NaN", True),
        ("pair[]", "{NULL}", "arrays with a NULL", True),
        ("xid[]", "{NULL}", "arrays with a NULL", True),
    ],
)
def test_values_that_the_connector_changes_or_stops_at_are_told(owner: Pipeline, column: str, value: str, said: str, stops: bool) -> None:
    owner.execute("CREATE DOMAIN day AS date; CREATE DOMAIN numbers AS int[]; CREATE TYPE pair AS (a int, b int)")
    owner.execute(f"ALTER TABLE a ALTER id TYPE bigint, ADD c {column}; ALTER TABLE a REPLICA IDENTITY FULL")
    of_values = lambda: [f for f in findings(owner) if f.name == "table public.a" and "holds" in f.message]  # noqa: E731
    harmless = {"day": "2020-01-01", "numbers": "{1,NULL}", "date[]": "{infinity,0001-01-01,NULL}", "numeric[]": "{1.5,NULL}"}
    owner.execute(f"INSERT INTO a VALUES (2, 'x', '{harmless.get(column, '{}')}')")
    assert of_values() == []
    owner.execute(f"INSERT INTO a VALUES (3, 'x', '{value}')")
    found = of_values()
    assert found[-1].message.startswith("holds")
    assert any(said in f.message and f.failed == stops and f.cure for f in found), found


def test_a_name_that_a_snapshot_beside_the_stream_cannot_have_is_told(owner: Pipeline) -> None:
    owner.execute('CREATE TABLE "order items"(id int PRIMARY KEY)')
    found = findings(owner)
    assert failures(found) == []
    assert "cannot be resynced" in the(found, "table public.order items").message


def test_a_publication_that_leaves_something_out_is_found(owner: Pipeline) -> None:
    owner.execute(f"CREATE PUBLICATION {owner.names.at_source} FOR TABLE a (id) WITH (publish = 'insert')")
    found = findings(owner)
    assert "column list" in the(found, "publication filters").message
    assert any("leaves out operations" in f.message for f in found)
    heal(owner, the(found, "publication filters"))
    owner.register("a")
    assert failures(findings(owner)) == []


def test_drift_and_failure_of_the_connector_are_found(owner: Pipeline) -> None:
    owner.register("a")
    before = owner.connect.config(owner.names.connector)
    assert before is not None
    owner.connect.apply(ConnectorPlan(owner.names.connector, "update", (), {**before, "decimal.handling.mode": "double"}))
    drift = the(findings(owner), "connector drift")
    assert "decimal.handling.mode" in drift.message
    owner.register("a")
    owner.connect.stop(owner.names.connector)
    assert "is stopped" in the(findings(owner), "connector").message


def test_topics_that_lose_events_are_found(owner: Pipeline) -> None:
    topic = f"{owner.config.topic_prefix}.public.a"
    owner.kafka.create_topics([topic], partitions=3, config={"cleanup.policy": "compact", "retention.ms": "60000"})
    owner.kafka.create_topics([owner.names.notification_topic], partitions=3, config={})
    found = findings(owner)
    assert any("is compacted" in f.message and f.failed and "cleanup.policy=delete" in f.cure for f in found if f.name == f"topic {topic}")
    assert any("keeps events for 60 s" in f.message for f in found if f.name == f"topic {topic}")
    assert "exactly one" in the(found, f"topic {owner.names.notification_topic}").message


def test_a_slot_that_was_lost_is_found_and_beginning_anew_cures(owner: Pipeline) -> None:
    owner.register("a")
    assert the(findings(owner), "slot", ok=True)
    owner.connect.stop(owner.names.connector)
    owner.lose_slot()
    finding = the(findings(owner), "slot")
    assert finding.failed
    assert "cdc register --delete" in finding.cure
    unregister(owner.config, owner.source, owner.connect)
    assert owner.register("a").initial
    assert failures(findings(owner)) == []


@pytest.mark.parametrize(
    ("wrong", "name"),
    [
        ({"wal_level": "replica"}, "wal_level"),
        ({"slots": 10}, "replication slots"),
        ({"senders": 10}, "wal senders"),
        ({"in_recovery": True}, "primary"),
        ({"version_number": 130000}, "server"),
    ],
)
def test_settings_of_the_server_that_do_not_do(wrong: dict[str, object], name: str) -> None:
    from connectors.sources.postgresql import findings as findings_of

    good = {"version": "16", "version_number": 160000, "wal_level": "logical", "slots_max": 10, "slots": 1, "senders_max": 10, "senders": 1}
    good |= {"keep_size": "10GB", "in_recovery": False}
    assert all(f.ok for f in findings_of.server(good, has_slot=False))  # type: ignore[arg-type]
    failed = [f for f in findings_of.server(good | wrong, has_slot=False) if f.failed]  # type: ignore[arg-type]
    assert [f.name for f in failed] == [name]
    assert failed[0].cure


def test_no_finding_shows_a_password(reader: Pipeline) -> None:
    found = findings(reader)
    secrets = {reader.stack.password("cdc"), reader.stack.password("postgres")}
    assert not [f for f in found if any(s in repr(replace(f)) for s in secrets)]
    with psycopg.connect(reader.database.url) as _:
        assert reader.stack.password("cdc") not in repr(reader.source)
