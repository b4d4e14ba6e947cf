"""What may happen to one table of a running pipeline, and that the others go on: schema changes, drift, lost topics, decisions, additions.

All tests share one pipeline, and each has a table of its own; `calm` is the neighbour that nothing may disturb.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from deploy.local.stack import Stack
from tests.support.line import Line, database, line

OWN = (
    "constant",
    "volatile",
    "retold",
    "wider",
    "dropped",
    "typed",
    "rekeyed",
    "altered",
    "lost",
    "remade",
    "paused",
    "emptied",
    "adopted",
)
TABLES = ("calm", *OWN)
EMPTY = "nothing"
ADDED = ("added", "added_empty")
STOPPED = {"schema_stopped", "drift", "needs_resync", "needs_decision"}


@pytest.fixture(scope="module")
def shared(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Line]:
    """One pipeline with all tables of 50 rows each, in the stream."""
    with database(stack) as source:
        folder = tmp_path_factory.mktemp("tables")
        with line(stack, source, folder, config((*TABLES, EMPTY))) as pipeline:
            pipeline.execute(f"CREATE TABLE {EMPTY}(id int PRIMARY KEY)")
            for name in TABLES:
                pipeline.execute(
                    f"CREATE TABLE {name}(id int PRIMARY KEY, n int, t text, u varchar(10), d numeric(6,2), gone text DEFAULT 'gone')"
                )
                pipeline.execute(f"INSERT INTO {name} SELECT g, g, 'text ' || g, g::text, g / 10.0 FROM generate_series(1, 50) g")
            pipeline.register()
            pipeline.start()
            pipeline.await_complete(limit_seconds=90)
            yield pipeline


@pytest.fixture
def pipeline(shared: Line) -> Line:
    """The shared pipeline, running; what an earlier test left dead is started, what it left stopped is nobody else's failure."""
    if shared.process is None or shared.process.poll() is not None:
        shared.start()
    shared.stopped_before = {name for name, table in shared.tables().items() if table["state"] in STOPPED}
    return shared


def config(names: tuple[str, ...]) -> str:
    return "\n  ".join(f"public.{name}: {{}}" for name in names)


class Writer:
    """Inserts rows into a table, one after the other, until the block ends, so that changes of it happen while events flow."""

    def __init__(self, pipeline: Line, table: str) -> None:
        self.pipeline, self.table, self.rows = pipeline, table, 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._write, daemon=True)

    def __enter__(self) -> Writer:
        self._thread.start()
        self.pipeline.await_that("the writer writes", lambda: self.rows > 20, 10)
        return self

    def __exit__(self, *_: object) -> None:
        seen = self.rows
        self.pipeline.await_that("the writer wrote on", lambda: self.rows > seen + 20, 10)
        self._done.set()
        self._thread.join(10)

    def _write(self) -> None:
        with psycopg.connect(self.pipeline.database.url, autocommit=True) as connection:
            while not self._done.wait(0.003):
                self.rows += 1
                connection.execute(f"INSERT INTO {self.table}(id) VALUES (%s)", (1_000_000 + self.rows,))


def assert_others_go_on(pipeline: Line, *but: str) -> None:
    """A change of the calm neighbour arrives, and nobody else stands in a state that needs a person."""
    pipeline.execute("UPDATE calm SET n = n + 1 WHERE id <= 3")
    pipeline.await_that("calm follows", lambda: pipeline.differences("public.calm") == [], 60)
    stopped = {name: table["state"] for name, table in pipeline.tables().items() if table["state"] in STOPPED}
    assert set(stopped) <= {f"public.{name}" for name in but} | pipeline.stopped_before, stopped


def assert_stopped(pipeline: Line, name: str, state: str) -> dict[str, Any]:
    """The table is in the state and says why and what cures it; the others go on."""
    table = pipeline.await_state(f"public.{name}", state)
    assert table["error"]["message"], table
    assert f"public.{name}" in table["error"]["message"] + table["error"]["hint"]
    assert_others_go_on(pipeline, name)
    return table


def resync(pipeline: Line, name: str) -> None:
    """A resync cures the table."""
    pipeline.act("resync", f"public.{name}")
    pipeline.await_state(f"public.{name}", "streaming")
    assert_same(pipeline, name)
    pipeline.execute(
        f"UPDATE {name} SET t = 'after' WHERE id % 5 = 0; DELETE FROM {name} WHERE id % 7 = 0; INSERT INTO {name}(id) VALUES (-1)"
    )
    assert_same(pipeline, name)


def assert_same(pipeline: Line, name: str) -> None:
    pipeline.await_complete(f"public.{name}")
    assert pipeline.differences(f"public.{name}") == []


def equal_or_stopped(pipeline: Line, name: str) -> None:
    """After a change that the log does not carry: equal, or stopped by name and equal after the cure; never different in silence."""
    fence = pipeline.fence()
    source = f"public.{name}"

    def settled() -> bool:
        table = pipeline.tables().get(source) or {}
        return table.get("state") in STOPPED or (table.get("state") == "streaming" and int(table.get("complete_through") or 0) >= fence)

    pipeline.await_that(f"{name} is complete or stopped", settled)
    if pipeline.tables()[source]["state"] in STOPPED:
        assert_stopped(pipeline, name, pipeline.tables()[source]["state"])
        resync(pipeline, name)
    assert pipeline.differences(source) == []


def test_idle_tables_are_complete_through_what_happens_elsewhere(pipeline: Line) -> None:
    """Heartbeats: without a change of any table the slot and complete_through move on, also past what is not replicated."""
    before = pipeline.tables()
    pipeline.execute("CREATE TABLE elsewhere(id int PRIMARY KEY); INSERT INTO elsewhere SELECT generate_series(1, 5000)")
    fence = pipeline.await_complete()
    tables = pipeline.tables()
    assert {name: table["applied"] for name, table in tables.items()} == {name: table["applied"] for name, table in before.items()}
    assert {type(table["complete_through"]) for table in tables.values()} == {str}
    assert not tables[f"public.{EMPTY}"]["rows"]

    def slot_passed() -> bool:
        with psycopg.connect(pipeline.database.url) as connection:
            question = "SELECT confirmed_flush_lsn - '0/0'::pg_lsn FROM pg_replication_slots WHERE database = current_database()"
            row = connection.execute(question).fetchone()
            return row is not None and int(row[0]) >= fence

    pipeline.await_that("the slot follows", slot_passed, 30)


def test_commands_that_end_by_themselves_bring_what_was_there_at_their_start(pipeline: Line) -> None:
    pipeline.await_complete()
    pipeline.stop()
    # A service that does not run says the same from the warehouse, and what it knew when it ended.
    after = {table["source"]: table for table in pipeline.call("status")["tables"]}
    assert (after["public.calm"]["state"], after["public.calm"]["rows"]) == ("streaming", 50)
    pipeline.execute("UPDATE calm SET t = NULL WHERE id <= 10")
    pipeline.start(arguments=["--until", str_lsn(pipeline.fence()), "--timeout", "60"], ready=False)
    assert pipeline.wait() == 0, pipeline.report()
    answer = pipeline.call("query", "SELECT count(*) AS n, count(t) AS t FROM public.calm")
    assert answer["rows"] == [{"n": 50, "t": 40}]
    pipeline.start(arguments=["--until", "FFFFFF/0", "--timeout", "2"], ready=False)
    assert pipeline.wait() == 2, pipeline.report()
    pipeline.catch_up()


def str_lsn(position: int) -> str:
    return f"{position >> 32:X}/{position & 0xFFFFFFFF:X}"


def test_a_column_is_added_while_events_flow(pipeline: Line) -> None:
    """I9: rows that are there take the constant default, in the source without an event."""
    with Writer(pipeline, "constant"):
        pipeline.execute("ALTER TABLE constant ADD plain int")
        pipeline.execute("ALTER TABLE constant ADD five int NOT NULL DEFAULT 5, ADD word text DEFAULT 'it''s, \"five\"'")
        pipeline.execute(
            "ALTER TABLE constant ADD big bigint DEFAULT 9007199254740993, ADD dec numeric(20,4) DEFAULT 0.1234, ADD yes bool DEFAULT true"
        )
    pipeline.execute("UPDATE constant SET plain = id, five = 6 WHERE id <= 5; UPDATE constant SET word = NULL WHERE id = 6")
    assert_same(pipeline, "constant")
    assert_others_go_on(pipeline)


def test_a_column_with_a_volatile_default_is_never_wrong_in_silence(pipeline: Line) -> None:
    """I9: the source writes another value into each row that is there, and the log says nothing of it."""
    with Writer(pipeline, "volatile"):
        pipeline.execute("ALTER TABLE volatile ADD dice text DEFAULT md5(random()::text)")
    equal_or_stopped(pipeline, "volatile")


def test_a_default_that_changed_before_the_next_event_is_not_taken_for_the_first(pipeline: Line) -> None:
    """I9: rows that are there hold 5, those that come hold 9, and events know only of 9."""
    pipeline.execute(
        "ALTER TABLE retold ADD x int DEFAULT 5; ALTER TABLE retold ALTER x SET DEFAULT 9; INSERT INTO retold(id) VALUES (100)"
    )
    equal_or_stopped(pipeline, "retold")


def test_a_wider_type_widens(pipeline: Line) -> None:
    with Writer(pipeline, "wider"):
        pipeline.execute("ALTER TABLE wider ALTER n TYPE bigint, ALTER u TYPE varchar(40), ALTER d TYPE numeric(12,2)")
    pipeline.execute(f"UPDATE wider SET n = {2**60 + 1}, u = repeat('x', 40), d = 1234567890.12 WHERE id <= 3")
    assert_same(pipeline, "wider")
    assert_others_go_on(pipeline)


def test_a_dropped_column_stays_and_a_new_one_of_its_name_is_its_own(pipeline: Line) -> None:
    with Writer(pipeline, "dropped"):
        pipeline.execute("ALTER TABLE dropped DROP gone")
    pipeline.execute("UPDATE dropped SET n = 0 WHERE id = 1")
    assert_same(pipeline, "dropped")
    found = pipeline.query("SELECT id, gone FROM public.dropped WHERE id IN (1, 2) ORDER BY id")
    assert found is not None
    assert found.column("gone").to_pylist() == [None, "gone"]
    assert_others_go_on(pipeline)


def test_a_type_that_does_not_fit_stops_its_table_alone_and_a_resync_cures_it(pipeline: Line) -> None:
    pipeline.execute("ALTER TABLE typed ALTER n TYPE text USING 'n' || n; INSERT INTO typed(id, n) VALUES (100, 'word')")
    table = assert_stopped(pipeline, "typed", "schema_stopped")
    assert "n" in table["error"]["message"]
    assert "cdc resync public.typed" in table["error"]["hint"]
    pipeline.execute("DELETE FROM typed WHERE id = 4; UPDATE typed SET n = 'late' WHERE id = 5")
    resync(pipeline, "typed")


def test_another_key_stops_its_table_alone_and_a_resync_cures_it(pipeline: Line) -> None:
    pipeline.execute("ALTER TABLE rekeyed DROP CONSTRAINT rekeyed_pkey, ADD PRIMARY KEY (n, id); UPDATE rekeyed SET n = n + 1 WHERE id = 1")
    assert_stopped(pipeline, "rekeyed", "schema_stopped")
    pipeline.call("resync", "public.rekeyed", "--yes")
    pipeline.await_state("public.rekeyed", "streaming")
    pipeline.execute("UPDATE rekeyed SET n = n + 100 WHERE id = 2; DELETE FROM rekeyed WHERE id = 3")
    assert_same(pipeline, "rekeyed")


def test_what_somebody_did_at_the_destination_stops_those_tables_alone_and_each_has_its_cure(pipeline: Line) -> None:
    """I17: a column altered, a table dropped, checkpoints lost."""
    pipeline.stop()
    pipeline.warehouse.change(
        "ALTER TABLE public.altered ALTER n TYPE VARCHAR",
        "DROP TABLE public.lost",
        "DELETE FROM _cdc.checkpoint WHERE source_table IN ('public.emptied', 'public.adopted')",
        "CREATE TEMPORARY TABLE one AS SELECT * FROM public.emptied LIMIT 1",
        "UPDATE one SET id = 777",
        "INSERT INTO public.emptied SELECT * FROM one",
    )
    for name in ("altered", "lost", "emptied", "adopted"):
        pipeline.execute(f"UPDATE {name} SET n = -5 WHERE id = 5")
    pipeline.start()
    for name, state, cure in (
        ("altered", "drift", "resync"),
        ("lost", "drift", "resync"),
        ("emptied", "needs_decision", "adopt"),
        ("adopted", "needs_decision", "adopt"),
    ):
        table = pipeline.await_state(f"public.{name}", state)
        assert f"cdc {cure} public.{name}" in table["error"]["hint"], table
    assert_others_go_on(pipeline, "altered", "lost", "emptied", "adopted")
    pipeline.call("resync", "public.altered", "--yes")
    pipeline.act("resync", "public.lost")
    pipeline.act("adopt", "public.emptied", how="empty")
    pipeline.call("adopt", "public.adopted", "--at-offsets", "--yes")
    for name in ("altered", "lost", "emptied", "adopted"):
        assert_same(pipeline, name)
        pipeline.execute(f"UPDATE {name} SET t = 'after' WHERE id % 5 = 0; DELETE FROM {name} WHERE id % 7 = 0")
    for name in ("altered", "lost", "emptied", "adopted"):
        assert_same(pipeline, name)


def test_a_topic_deleted_and_made_again_is_noticed_and_a_resync_cures_it(pipeline: Line) -> None:
    """I18."""
    topic = f"{pipeline.database.name}.public.remade"
    assert topic in pipeline.kafka.topics()
    pipeline.kafka.delete_topics([topic])
    pipeline.await_that("the topic is gone", lambda: topic not in pipeline.kafka.topics(), 30)
    pipeline.kafka.create_topics([topic], partitions=3, config={"cleanup.policy": "delete"})
    pipeline.execute("UPDATE remade SET n = -1 WHERE id <= 20")
    assert_stopped(pipeline, "remade", "needs_resync")
    pipeline.execute("DELETE FROM remade WHERE id = 21")
    resync(pipeline, "remade")


def test_a_paused_table_waits_and_goes_on(pipeline: Line) -> None:
    pipeline.act("pause", "public.paused")
    pipeline.await_state("public.paused", "paused")
    before = pipeline.query("SELECT sum(n), count(*) FROM public.paused")
    pipeline.execute("UPDATE paused SET n = n + 1; DELETE FROM paused WHERE id > 40")
    assert_others_go_on(pipeline)
    assert pipeline.query("SELECT sum(n), count(*) FROM public.paused") == before
    # It stays paused over a restart.
    pipeline.stop()
    pipeline.start()
    assert_others_go_on(pipeline)
    assert pipeline.tables()["public.paused"]["state"] == "paused"
    assert pipeline.query("SELECT sum(n), count(*) FROM public.paused") == before
    pipeline.act("resume", "public.paused")
    assert_same(pipeline, "paused")


def test_tables_with_rows_are_added_to_a_running_pipeline(pipeline: Line) -> None:
    """The service is restarted with the longer file; meanwhile the new table and its neighbours are written."""
    pipeline.execute("CREATE TABLE added(id int PRIMARY KEY, n int, t text); CREATE TABLE added_empty(id int PRIMARY KEY)")
    pipeline.execute("INSERT INTO added SELECT g, g, repeat('x', g % 100) FROM generate_series(1, 5000) g")
    with Writer(pipeline, "added"):
        pipeline.configure(config((*TABLES, EMPTY, *ADDED)))
        registered = pipeline.register()
        assert set(registered["snapshotting"]) == {"public.added", "public.added_empty"}
        pipeline.execute(
            "UPDATE added SET n = -n WHERE id % 3 = 0; DELETE FROM added WHERE id % 50 = 0; UPDATE added SET id = -id WHERE id % 50 = 1"
        )
        pipeline.stop()
        pipeline.start()
        pipeline.execute("UPDATE added SET t = NULL WHERE id % 4 = 0")
    for name in ADDED:
        assert_same(pipeline, name)
    assert pipeline.cdc.call("plan", "--json", accept=(0,))["steps"] == []
    assert_others_go_on(pipeline)


def test_at_the_end_every_table_is_equal(pipeline: Line) -> None:
    """After all of the above: every column of every table, and the ledgers of those that nobody touched at the destination."""
    pipeline.await_complete(*(f"public.{name}" for name in pipeline_tables(pipeline)))
    pipeline.stop()
    pipeline.assert_equal([f"public.{name}" for name in pipeline_tables(pipeline)])
    untouched = ("calm", "constant", "dropped", "paused")
    pipeline.assert_ledger([f"public.{name}" for name in untouched])
    with Path(pipeline.folder / "service.log").open() as log:
        assert "Traceback" not in log.read()


def pipeline_tables(pipeline: Line) -> list[str]:
    """The tables that the configuration names now."""
    text = pipeline.cdc.config.read_text()
    return [name for name in (*TABLES, *ADDED) if f"public.{name}:" in text]
