"""Registration on the real stack: what it makes, that it makes it once, and that a crash between any two of its steps heals."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from cdc_service.config import load
from cdc_service.core.errors import CdcError, ConfigError
from cdc_service.core.types import TableId
from cdc_service.ports.source import MESSAGE_BYTES_MAX
from connectors.debezium.connect import ConnectorPlan, KafkaConnect
from connectors.debezium.notifications import Notification, parse
from connectors.debezium.register import plan_removal, request_snapshots, unregister
from deploy.local.stack import Stack
from tests.conftest import PgDatabase
from tests.support.registration import Pipeline, eventually, pipeline


@pytest.fixture
def owner(stack: Stack, pg_database: PgDatabase, tmp_path: Path) -> Iterator[Pipeline]:
    """A pipeline whose role may do everything at its source."""
    with pipeline(stack, pg_database, tmp_path, role="postgres") as made:
        yield made


@pytest.fixture
def reader(stack: Stack, pg_database: PgDatabase, tmp_path: Path) -> Iterator[Pipeline]:
    """A pipeline whose role may log in, replicate and read."""
    with pipeline(stack, pg_database, tmp_path) as made:
        yield made


def test_registration_streams_the_tables_and_a_second_one_does_nothing(owner: Pipeline) -> None:
    owner.execute("CREATE TABLE a(id int PRIMARY KEY, v text); INSERT INTO a SELECT g, 'row ' || g FROM generate_series(1, 10) g")
    done = owner.register("a")
    assert done.initial
    assert done.snapshotting == (TableId("public", "a"),)
    owner.execute("INSERT INTO a VALUES (11, NULL); DELETE FROM a WHERE id = 1")
    assert owner.await_rows("a", set(range(2, 12)))[11] == {"id": 11, "v": None}

    assert owner.plan("a").steps == ()
    before = owner.connect.config(owner.names.connector)
    assert not owner.register("a").initial
    assert owner.connect.config(owner.names.connector) == before

    topic = f"{owner.config.topic_prefix}.public.a"
    assert owner.kafka.topics()[topic] == 3
    settings = owner.kafka.topic_config(topic)
    assert (settings["cleanup.policy"], settings["max.message.bytes"]) == ("delete", str(MESSAGE_BYTES_MAX))


def test_a_role_that_may_not_is_given_the_ddl_and_nothing_was_changed(reader: Pipeline) -> None:
    reader.execute("CREATE TABLE a(id int PRIMARY KEY); INSERT INTO a VALUES (1)")
    topics = set(reader.kafka.topics())
    with pytest.raises(CdcError, match="may not do what is missing") as caught:
        reader.register("a")
    assert caught.value.code == "needs_ddl"
    assert reader.connect.config(reader.names.connector) is None
    assert {t for t in reader.kafka.topics() if t.startswith(reader.config.topic_prefix)} <= topics

    reader.execute(caught.value.hint)
    assert not reader.plan("a").by_hand
    reader.register("a")
    reader.await_rows("a", {1})
    config = reader.connect.config(reader.names.connector)
    assert config is not None
    assert config["database.password"] == "${env:CDC_PASSWORD}"
    assert reader.stack.password("cdc") not in json.dumps(config)


@pytest.mark.parametrize("way", ["table", "topic"])
def test_a_table_added_to_a_running_connector_brings_its_rows_and_no_other_loses_any(reader: Pipeline, way: str) -> None:
    reader.execute("CREATE TABLE a(id int PRIMARY KEY); INSERT INTO a VALUES (0); CREATE TABLE b(id int PRIMARY KEY, v text)")
    for statement in reader.plan("a").by_hand:
        if way == "table" or statement.subject != "signals":
            signals = f', "public"."{reader.names.signal_table}"'
            reader.execute(statement.sql if way == "table" else statement.sql.replace(signals, ""))
    reader.register("a")
    config = reader.connect.config(reader.names.connector)
    assert config is not None
    assert config["signal.enabled.channels"] == {"table": "source", "topic": "kafka"}[way]
    reader.await_rows("a", {0})

    reader.execute("INSERT INTO b SELECT g, 'old' FROM generate_series(1, 3000) g")
    reader.execute(f"ALTER PUBLICATION {reader.names.at_source} ADD TABLE b")
    plan = reader.plan("a", "b")
    assert plan.snapshots == (TableId("public", "b"),)
    assert not plan.returning
    reader.execute("INSERT INTO a VALUES (1); INSERT INTO b VALUES (3001, 'new')")
    done = reader.register("a", "b")
    assert done.snapshotting == plan.snapshots
    assert not done.initial
    reader.execute("INSERT INTO a VALUES (2); UPDATE b SET v = 'newer' WHERE id = 1; DELETE FROM b WHERE id = 2")
    rows = reader.await_rows("b", {1, *range(3, 3002)})
    assert rows[1]["v"] == "newer"
    reader.await_rows("a", {0, 1, 2})
    assert reader.plan("a", "b").steps == ()


def test_a_table_that_comes_back_is_announced_before_its_snapshot(owner: Pipeline) -> None:
    owner.execute("CREATE TABLE a(id int PRIMARY KEY); CREATE TABLE b(id int PRIMARY KEY); INSERT INTO b VALUES (1), (2)")
    owner.execute("CREATE TABLE c(id int PRIMARY KEY); INSERT INTO c VALUES (1)")
    owner.register("a", "b")
    owner.await_rows("b", {1, 2})
    owner.register("a")
    owner.execute("DELETE FROM b WHERE id = 1")
    assert owner.plan("a", "b", "c").returning == (TableId("public", "b"),)
    done = owner.register("a", "b", "c")
    (signal_id,) = set(done.signal_ids.values())
    assert signal_id.startswith("added-")

    def said() -> list[Notification]:
        read = [parse(json.dumps(value).encode()) for _, value, _ in owner.events(owner.names.notification_topic)]
        found = [n for n in read if n is not None and n.aggregate in ("incremental", "registration") and n.type != "IDENTITY"]
        return found if sum(n.scanned for n in found) >= 2 else []

    found = eventually("the end of both snapshots", said)
    assert [(n.type, n.tables) for n in found if n.aggregate == "registration"] == [("RETURNING", ("public.b",))]
    assert found[0].aggregate == "registration"
    assert found[0].id.startswith("returning-")
    assert {t for n in found if n.scanned for t in n.tables} == {"public.b", "public.c"}
    assert {n.id for n in found[1:]} == {signal_id}


class Breaks(KafkaConnect):
    """A client whose process dies at the given call."""

    def __init__(self, url: str, call: str) -> None:
        super().__init__(url)
        self._at = call

    def apply(self, plan: ConnectorPlan) -> None:
        if self._at == "before apply":
            raise KeyboardInterrupt
        super().apply(plan)
        if self._at == "after apply":
            raise KeyboardInterrupt


@pytest.mark.parametrize("call", ["before apply", "after apply"])
def test_a_crash_before_the_connector_ever_ran_is_healed_by_registering_again(owner: Pipeline, call: str) -> None:
    owner.execute("CREATE TABLE a(id int PRIMARY KEY); INSERT INTO a VALUES (1), (2)")
    with pytest.raises(KeyboardInterrupt):
        owner.register("a", connect=Breaks(owner.stack.connect_url, call))
    assert owner.plan("a").pending
    assert owner.register("a").initial
    owner.await_rows("a", {1, 2})


@pytest.mark.parametrize("call", ["before apply", "after apply"])
def test_a_crash_while_a_table_is_added_loses_neither_its_snapshot_nor_events(owner: Pipeline, call: str) -> None:
    owner.execute(
        "CREATE TABLE a(id int PRIMARY KEY); INSERT INTO a VALUES (1); CREATE TABLE b(id int PRIMARY KEY); INSERT INTO b VALUES (5)"
    )
    owner.register("a")
    owner.await_rows("a", {1})
    with pytest.raises(KeyboardInterrupt):
        owner.register("a", "b", connect=Breaks(owner.stack.connect_url, call))
    owner.execute("INSERT INTO a VALUES (2); INSERT INTO b VALUES (6)")
    assert owner.plan("a", "b").pending
    owner.register("a", "b")
    owner.await_rows("b", {5, 6})
    owner.await_rows("a", {1, 2})


class Watches(KafkaConnect):
    """A client that looks how far the connector had come when it stopped."""

    sent = 0

    def __init__(self, owner: Pipeline, topic: str) -> None:
        super().__init__(owner.stack.connect_url)
        self._owner, self._topic = owner, topic

    def stop(self, name: str) -> None:
        super().stop(name)
        self.sent = written(self._owner, self._topic)


def written(owner: Pipeline, topic: str) -> int:
    return sum(high for _, high in owner.kafka.describe([topic])[topic].ends.values())


def test_a_connector_stopped_among_the_rows_of_one_log_record_loses_none(owner: Pipeline) -> None:
    """Rows of one COPY share log positions, and the connector itself goes on behind the position of the last row that it sent."""
    rows, topic = 60_000, owner.names.topic(TableId("public", "a"))
    owner.execute("CREATE TABLE a(id int PRIMARY KEY, t text); CREATE TABLE b(id int PRIMARY KEY)")
    owner.register("a")
    with owner.owner.cursor().copy("COPY a FROM STDIN") as into:
        for i in range(rows):
            into.write_row((i, "some text"))
    eventually("the first rows in Kafka", lambda: written(owner, topic) > 0)
    connect = Watches(owner, topic)
    owner.register("a", "b", connect=connect)
    assert 0 < connect.sent < rows, "the connector was not stopped among these rows"
    eventually("the whole COPY once more", lambda: written(owner, topic) >= connect.sent + rows, rest=lambda: written(owner, topic))
    missing = set(range(rows)) - set(owner.rows("a"))
    assert not missing, f"{len(missing)} rows were lost, {sorted(missing)[:3]} among them"


def test_a_connector_in_its_initial_snapshot_is_not_disturbed(
    stack: Stack, pg_database: PgDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I2: begun anew, a snapshot would leave rows behind that were deleted in between."""
    slow = "snapshot.select.statement.overrides: public.a, snapshot.select.statement.overrides.public.a: 'SELECT a.* FROM a, pg_sleep(6)'"
    more = f'connect: {{url: "{stack.connect_url}", secrets: inline, options: {{{slow}}}}}\n'
    with pipeline(stack, pg_database, tmp_path, role="postgres", more=more) as made:
        made.execute("CREATE TABLE a(id int PRIMARY KEY); INSERT INTO a VALUES (1); CREATE TABLE b(id int PRIMARY KEY)")
        made.register("a")
        config = made.connect.config(made.names.connector)
        with monkeypatch.context() as patience:
            patience.setattr("connectors.debezium.register.SNAPSHOT_PATIENCE_SECONDS", 1.0)
            with pytest.raises(CdcError, match="in its initial snapshot") as caught:
                made.register("a", "b")
        assert caught.value.code == "snapshotting"
        assert made.connect.config(made.names.connector) == config
        assert made.register("a", "b").snapshotting == (TableId("public", "b"),)
        made.await_rows("a", {1})


def test_drift_of_the_connector_is_named_and_mended_and_the_placeholder_stays(owner: Pipeline) -> None:
    owner.execute("CREATE TABLE a(id int PRIMARY KEY)")
    owner.register("a")
    before = owner.connect.config(owner.names.connector)
    assert before is not None
    drifted = {**before, "poll.interval.ms": "400", "value.converter.replace.null.with.default": "true"}
    owner.connect.apply(ConnectorPlan(owner.names.connector, "update", (), drifted))
    plan = owner.plan("a")
    assert {(c.key, c.before, c.after) for c in plan.connector.changes} == {
        ("poll.interval.ms", "400", "50"),
        ("value.converter.replace.null.with.default", "true", "false"),
    }
    assert [step.kind for step in plan.steps] == ["connector"]
    owner.register("a")
    assert owner.connect.config(owner.names.connector) == before


def test_a_connector_that_failed_is_started_again(owner: Pipeline) -> None:
    owner.execute("CREATE TABLE a(id int PRIMARY KEY); INSERT INTO a VALUES (1)")
    owner.register("a")
    owner.await_rows("a", {1})
    owner.connect.stop(owner.names.connector)
    publication = [s.sql for s in owner.source.release(owner.names) if s.subject == "publication"]
    owner.execute(publication[0])
    owner.connect.resume(owner.names.connector)
    failed = eventually("the task's failure", lambda: (s := owner.connect.status(owner.names.connector)) and s.overall == "FAILED" and s)
    assert "Publication" in failed.problems[0]
    steps = owner.plan("a").steps
    assert [step.kind for step in steps] == ["source", "connector"]
    owner.register("a")
    owner.execute("INSERT INTO a VALUES (2)")
    owner.await_rows("a", {1, 2})


def test_a_connector_that_fails_at_its_start_fails_the_registration(stack: Stack, pg_database: PgDatabase, tmp_path: Path) -> None:
    role = f"r_{pg_database.name}"
    with pipeline(stack, pg_database, tmp_path, role="postgres") as made:
        made.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'only here'; CREATE TABLE a(id int PRIMARY KEY); GRANT SELECT ON a TO {role}")
        try:
            options = f"options: {{database.user: {role}, database.password: only here}}"
            file = tmp_path / "cdc.yaml"
            file.write_text(file.read_text().replace("secrets: inline", f"secrets: inline, {options}"))
            made.config = load(file)
            with pytest.raises(CdcError, match="replication") as caught:
                made.register("a")
            assert caught.value.code == "connector_failed"
        finally:
            made.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


def test_unregistering_leaves_nothing_and_the_next_registration_begins_anew(owner: Pipeline) -> None:
    owner.execute("CREATE TABLE a(id int PRIMARY KEY); INSERT INTO a VALUES (1)")
    owner.register("a")
    owner.await_rows("a", {1})
    planned = plan_removal(owner.config, owner.source, owner.connect)
    assert len(planned) == 4
    assert not any(step.by_hand for step in planned), "its role may drop all of it"
    unregister(owner.config, owner.source, owner.connect)
    assert plan_removal(owner.config, owner.source, owner.connect) == ()
    assert owner.source.hold(owner.names) is None
    assert [t.table.name for t in owner.source.tables()] == ["a"]
    unregister(owner.config, owner.source, owner.connect)

    owner.connect.apply(owner.plan("a").connector)
    assert list(owner.connect.offsets(owner.names.connector)) == []
    owner.connect.delete(owner.names.connector)
    owner.execute("INSERT INTO a VALUES (2)")
    assert owner.register("a").initial
    owner.await_rows("a", {1, 2})


@pytest.mark.parametrize("slot", ["kept", "dropped"])
def test_a_connector_deleted_by_hand_goes_on_only_where_its_slot_kept_the_log(owner: Pipeline, slot: str) -> None:
    owner.execute("CREATE TABLE a(id int PRIMARY KEY); INSERT INTO a VALUES (1)")
    owner.register("a")
    owner.await_rows("a", {1})
    eventually("the connector's offsets", lambda: owner.source.progress(owner.connect.offsets(owner.names.connector)).position)
    owner.connect.stop(owner.names.connector)
    owner.connect.delete(owner.names.connector)
    owner.execute("INSERT INTO a VALUES (2)")
    if slot == "dropped":
        owner.execute(f"SELECT pg_drop_replication_slot('{owner.names.at_source}')")
    owner.execute("INSERT INTO a VALUES (3)")
    assert owner.register("a").initial == (slot == "dropped")
    owner.await_rows("a", {1, 2, 3})


@pytest.mark.parametrize("state", ["kept", "lost"])
def test_a_slot_left_by_an_earlier_connector_is_not_taken_over(owner: Pipeline, state: str) -> None:
    owner.execute("CREATE TABLE a(id int PRIMARY KEY); INSERT INTO a VALUES (1)")
    owner.execute(f"SELECT pg_create_logical_replication_slot('{owner.names.at_source}', 'pgoutput')")
    if state == "lost":
        owner.lose_slot()
    owner.execute("INSERT INTO a VALUES (2)")
    assert owner.register("a").initial
    owner.execute("INSERT INTO a VALUES (3)")
    owner.await_rows("a", {1, 2, 3})
    assert sorted(v["op"] for _, v, _ in owner.events(f"{owner.config.topic_prefix}.public.a")) == ["c", "r", "r"]


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        ("CREATE TABLE a(id int)", "no primary key"),
        ("CREATE TABLE a(id int PRIMARY KEY DEFERRABLE)", "deferrable"),
        ("CREATE TABLE a(id int PRIMARY KEY); ALTER TABLE a REPLICA IDENTITY NOTHING", "no replica identity"),
        ("CREATE TABLE a(id int PRIMARY KEY, u int NOT NULL UNIQUE); ALTER TABLE a REPLICA IDENTITY USING INDEX a_u_key", "which row went"),
        ("CREATE UNLOGGED TABLE a(id int PRIMARY KEY)", "never reach the log"),
        ("CREATE TABLE a(id int PRIMARY KEY, n numeric[])", "cannot be told from NULL"),
    ],
)
def test_a_table_that_cannot_be_exact_is_refused_and_its_cure_cures(owner: Pipeline, table: str, reason: str) -> None:
    owner.execute(table)
    assert reason in owner.plan("a").refused[0].message
    with pytest.raises(ConfigError, match=reason) as caught:
        owner.register("a")
    cure = caught.value.hint.splitlines()[0].split("  -- or")[0].replace("(...)", "(id)")
    owner.execute(cure)
    plan = owner.plan("a")
    assert plan.pending
    assert not plan.refused


def test_a_table_whose_snapshot_beside_the_stream_would_end_the_connector_is_taken_at_its_beginning_alone(owner: Pipeline) -> None:
    owner.execute(
        'CREATE TABLE a(id int PRIMARY KEY); CREATE TABLE "order items"(id int PRIMARY KEY); INSERT INTO "order items" VALUES (1)'
    )
    owner.register("a")
    with pytest.raises(ConfigError, match="order items has a blank within its name") as caught:
        owner.register("a", "order items")
    assert "RENAME TO" in caught.value.hint
    unregister(owner.config, owner.source, owner.connect)
    owner.register("a", "order items")
    owner.await_rows("order items", {1})


def test_options_may_not_undo_what_keeps_values_and_the_rest_is_passed_on(stack: Stack, pg_database: PgDatabase, tmp_path: Path) -> None:
    def options(text: str) -> str:
        return f'connect: {{url: "{stack.connect_url}", secrets: inline, options: {{{text}}}}}\n'

    with pipeline(stack, pg_database, tmp_path, role="postgres", more=options("skipped.operations: t, slot.name: other")) as made:
        made.execute("CREATE TABLE a(id int PRIMARY KEY, secret text)")
        with pytest.raises(ConfigError, match=r"skipped\.operations, slot\.name"):
            made.plan("a")
    more = options('max.batch.size: 100, column.exclude.list: "public\\\\.a\\\\.(secret|b)"')
    with pipeline(stack, pg_database, tmp_path, role="postgres", more=more) as made:
        made.execute("ALTER TABLE a ADD b bit(3)[]; INSERT INTO a VALUES (1, 'hidden', '{101}')")
        made.register("a")
        assert made.await_rows("a", {1}) == {1: {"id": 1}}
        config = made.connect.config(made.names.connector)
        assert config is not None
        assert config["max.batch.size"] == "100"


def test_events_keep_what_the_settings_promise(owner: Pipeline) -> None:
    owner.execute(
        """CREATE TABLE a(id text PRIMARY KEY, n int DEFAULT 5, big text, g int GENERATED ALWAYS AS (1) STORED);
        CREATE TABLE "A"(id text PRIMARY KEY)"""
    )
    owner.execute("ALTER TABLE a ALTER big SET STORAGE EXTERNAL")
    owner.register("a")
    key = 'new\nline "quoted" \\ é'
    owner.owner.execute("INSERT INTO a VALUES ('k', NULL, repeat('x', 3000000))")
    owner.owner.execute("UPDATE a SET id = %s", (key,))
    rows = owner.await_rows("a", {key})
    config = owner.connect.config(owner.names.connector)
    assert config is not None
    # A NULL beside a default stays NULL, a row of 3 MB passes, a value that was not sent is the placeholder, generated columns are out.
    assert rows[key] == {"id": key, "n": None, "big": config["unavailable.value.placeholder"]}
    headers = [h for _, _, h in owner.events(f"{owner.config.topic_prefix}.public.a") if "__debezium.newkey" in h]
    assert json.loads(headers[0]["__debezium.newkey"]) == {"id": key}
    assert f"{owner.config.topic_prefix}.public.A" not in owner.kafka.topics()


def test_a_snapshot_asked_for_brings_each_row_again_with_its_signal(owner: Pipeline) -> None:
    owner.execute("CREATE TABLE a(id int PRIMARY KEY); INSERT INTO a VALUES (1), (2)")
    owner.register("a")
    owner.await_rows("a", {1, 2})
    table = TableId("public", "a")
    ids = request_snapshots(owner.names, [table], owner.source, owner.connect, owner.kafka)

    def completed() -> bool:
        said = [value for _, value, _ in owner.events(owner.names.notification_topic)]
        return any(n["id"] == ids[table] and n["type"] == "TABLE_SCAN_COMPLETED" for n in said)

    eventually("the notification of the snapshot's end", completed)
    events = owner.events(f"{owner.config.topic_prefix}.public.a")
    assert sorted(value["after"]["id"] for _, value, _ in events) == [1, 1, 2, 2]
    assert {value["source"]["snapshot"] for _, value, _ in events[2:]} <= {
        "incremental",
        "first",
        "true",
        "last",
        "last_in_data_collection",
    }
