"""What is PostgreSQL's own as a destination: rights on one schema, two writers, locks, lost sessions, kept staging, a changed target."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest

from cdc_service.core.errors import CdcError, CommitUnknown, ConfigError, Fenced, TableStopped, Unavailable
from cdc_service.core.evolve import CreateTable
from cdc_service.core.logical import Kind, LogicalType
from cdc_service.core.types import Column, LogId, Mode, Op, TableId, TableSchema
from cdc_service.ports.destination import TableState
from deploy.local.stack import Stack
from mergers.destinations import open_destination
from mergers.destinations.postgresql import CAPABILITIES, PostgreSql
from mergers.sql.ledger import LedgerOpen
from tests.conformance.harness import ITEMS, LOG, Change, Feed, PostgreSqlHarness, number, parsed_statements, text
from tests.support.registration import eventually

ROOT = Path(__file__).resolve().parents[2]
WAIT = 30.0


@pytest.fixture
def harness(postgres: Stack) -> Iterator[PostgreSqlHarness]:
    with parsed_statements():
        made = PostgreSqlHarness()
        yield made
        made.close()


@pytest.fixture
def feed(harness: PostgreSqlHarness) -> Iterator[Feed]:
    destination = harness.open()
    yield Feed(destination, ITEMS).start()
    destination.close()


def row(op: Op, id_: int, record: int, name: str | None = None, **more: Any) -> Change:
    return Change(op, {"id": id_, "name": name, "body": None}, record, **more)


def names(destination: PostgreSql) -> dict[int, str]:
    return {r["id"]: r["name"] for r in destination.query("SELECT id, name FROM public.items", rows_max=1000).to_pylist()}


class Later:
    """A call in another thread; ``result`` is what it returned or raised."""

    def __init__(self, call: Any) -> None:
        self._call, self._done, self._result = call, threading.Event(), [None]
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        try:
            self._result = [self._call()]
        except BaseException as error:
            self._result = [error]  # type: ignore[list-item]
        self._done.set()

    @property
    def running(self) -> bool:
        return not self._done.is_set()

    def result(self) -> Any:
        assert self._done.wait(WAIT), f"the call did not end within {WAIT} s"
        return self._result[0]


def waits_for_a_lock(harness: PostgreSqlHarness) -> None:
    """Returns when a session of this database waits for another one's lock."""
    sql = "SELECT COUNT(*) FROM pg_stat_activity WHERE datname = '{}' AND wait_event_type = 'Lock'"
    eventually("somebody waits for a lock", lambda: harness.admin(sql)[0][0], WAIT)


# Address and rights


def test_urls(harness: PostgreSqlHarness) -> None:
    for url in (harness.url, harness.url.replace("postgresql://", "postgresql+psycopg://"), harness.url + "?sslmode=prefer"):
        destination = open_destination(url, pipeline="shop", options={"work_mem": "8MB"})
        assert harness.database in destination.probe()
        destination.close()
    with pytest.raises(ConfigError, match="names no database"):
        open_destination("postgresql://cdc@127.0.0.1", pipeline="shop")
    for name in ("TimeZone", "synchronous_commit", "search_path", "x -c y"):
        with pytest.raises(ConfigError, match=name):
            open_destination(harness.url, pipeline="shop", options={name: "off"})
    with pytest.raises(ConfigError, match="no_such_setting"):
        open_destination(harness.url, pipeline="shop", options={"no_such_setting": 1}).probe()
    secret = "a-wrong-password"
    for url, error in (
        (harness.url.replace("/w_", "/no_such_"), ConfigError),
        (harness.url.replace(harness.url.split(":")[2].split("@")[0], secret), ConfigError),
        ("postgresql://cdc:a-wrong-password@127.0.0.1:1/x", Unavailable),
    ):
        with pytest.raises(error) as caught:
            open_destination(url, pipeline="shop").prepare()
        assert secret not in str(caught.value) + caught.value.hint
        assert caught.value.hint


def test_a_database_that_is_not_utf8_is_refused(harness: PostgreSqlHarness) -> None:
    harness.admin("CREATE DATABASE {}_latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0", database="postgres")
    try:
        with pytest.raises(ConfigError, match="LATIN1"):
            open_destination(harness.url + "_latin", pipeline="shop").probe()
    finally:
        harness.admin("DROP DATABASE {}_latin", database="postgres")


def test_rights_on_schemas_that_an_admin_made_are_enough_and_what_misses_is_named(harness: PostgreSqlHarness) -> None:
    """The role owns nothing and may make nothing in the database; each sentence holds the statement that cures it."""
    harness.admin("ALTER DATABASE {} OWNER TO postgres", "REVOKE ALL ON DATABASE {} FROM PUBLIC", "GRANT CONNECT ON DATABASE {} TO cdc")
    destination = harness.open()
    feed = Feed(destination, TableSchema(TableId("mart", "items"), ITEMS.columns, ITEMS.key))
    cures = []

    def cured(call: Any) -> None:
        for _ in range(10):
            try:
                return call()
            except ConfigError as error:
                statement = error.hint.partition("warehouse: ")[2]
            assert statement.endswith(";")
            assert statement not in cures, f"{statement} did not help"
            cures.append(statement)
            harness.admin(statement)
        raise AssertionError("ten statements did not cure it")

    cured(destination.probe)
    cured(destination.prepare)
    cured(feed.start)
    assert [cure.split()[0:2] for cure in cures] == [["GRANT", "TEMPORARY"], ["CREATE", "SCHEMA"], ["CREATE", "SCHEMA"]]
    feed.apply(row(Op.CREATE, 1, 10, "a"))
    assert destination.table_rows(feed.target) == 1
    # Schemas of somebody else.
    harness.admin('ALTER SCHEMA "_cdc" OWNER TO postgres', "CREATE SCHEMA other", 'REVOKE ALL ON SCHEMA "_cdc" FROM cdc')
    cures.clear()
    cured(harness.open().prepare)
    cured(Feed(destination, TableSchema(TableId("other", "items"), ITEMS.columns, ITEMS.key), log=feed.log).start)
    assert cures == ['GRANT USAGE, CREATE ON SCHEMA "_cdc" TO "cdc";', 'GRANT USAGE, CREATE ON SCHEMA "other" TO "cdc";']
    destination.close()


def test_rights_on_one_schema_are_enough(harness: PostgreSqlHarness) -> None:
    """The service's own tables and the targets in a single schema, which somebody else made and owns."""
    harness.admin(
        "ALTER DATABASE {} OWNER TO postgres", "REVOKE ALL ON DATABASE {} FROM PUBLIC", "GRANT CONNECT, TEMPORARY ON DATABASE {} TO cdc",
        "REVOKE ALL ON SCHEMA public FROM PUBLIC, cdc", "CREATE SCHEMA mart", "GRANT USAGE, CREATE ON SCHEMA mart TO cdc",
    )  # fmt: skip
    destination = open_destination(harness.url, pipeline="shop", meta_schema="mart")
    assert harness.database in destination.probe()
    for mode in (Mode.UPSERT, Mode.SOFT_DELETE):
        table = TableId("mart", mode.value)
        feed = Feed(destination, TableSchema(table, ITEMS.columns, ITEMS.key), mode=mode, log=LogId("cluster", mode.value, "1")).start()
        feed.apply(row(Op.CREATE, 1, 10, "a"), row(Op.CREATE, 2, 11, "b", partition=1), rejected=[(0, None)])
        feed.evolve(TableSchema(table, (*ITEMS.columns, text("more")), ITEMS.key))
        feed.apply(row(Op.UPDATE, 1, 20, unsent=("name",)), row(Op.DELETE, 2, 21, partition=1, moved=True))
        assert destination.table_rows(feed.target) == 1
    made = "SELECT DISTINCT schemaname FROM pg_tables WHERE tableowner = 'cdc' AND schemaname NOT LIKE 'pg_temp%'"
    assert harness.admin(made) == [("mart",)]
    destination.close()


def test_the_statements_of_the_page_are_enough(harness: PostgreSqlHarness) -> None:
    """docs/destinations.md, pasted: the service writes with the first block's role, and a report reads with the second's."""
    page = (ROOT / "docs" / "destinations.md").read_text()
    own = {"cdc_writer": f"writer_{harness.database}", "bi": f"bi_{harness.database}", "DATABASE warehouse": f"DATABASE {harness.database}"}
    blocks = re.findall(r"```sql\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 2
    first, second = (re.sub("|".join(rf"\b{name}\b" for name in own), lambda m: own[m[0]], block) for block in blocks)
    address = harness.url.partition("@")[2]
    items = TableSchema(TableId("mart", "items"), ITEMS.columns, ITEMS.key)
    harness.admin("ALTER DATABASE {} OWNER TO postgres", "REVOKE ALL ON DATABASE {} FROM PUBLIC", "GRANT CONNECT ON DATABASE {} TO PUBLIC")
    try:
        harness.admin(first)
        destination = open_destination(f"postgresql://{own['cdc_writer']}:choose%20one@{address}", pipeline="shop")
        assert own["cdc_writer"] in destination.probe()
        Feed(destination, items).start().apply(row(Op.CREATE, 1, 10, "a"))
        harness.admin(second)
        later = Feed(destination, TableSchema(TableId("mart", "later"), ITEMS.columns, ITEMS.key), log=LogId("cluster", "later", "1"))
        later.start().apply(row(Op.CREATE, 1, 10, "a"))
        with psycopg.connect(f"postgresql://{own['bi']}:choose%20one@{address}", autocommit=True) as reader:
            for table in ("mart.items", "mart.later", "_cdc.table_status"):
                assert reader.execute(f"SELECT COUNT(*) FROM {table}").fetchone() is not None
            for refused in ("SELECT * FROM _cdc.checkpoint", "DELETE FROM mart.items", "CREATE TABLE mart.x (i INT)"):
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    reader.execute(refused)
        destination.close()
    finally:
        for role in (own["cdc_writer"], own["bi"]):
            harness.admin(f"DROP OWNED BY {role} CASCADE", f"DROP ROLE {role}")


def test_a_standby_or_read_only_server_is_away(harness: PostgreSqlHarness) -> None:
    destination = harness.open()
    destination.prepare()
    destination.connection().execute("SET default_transaction_read_only = on")
    with pytest.raises(Unavailable, match="only be read") as caught:
        destination.prepare()
    assert "primary" in caught.value.hint
    destination.close()


def test_names_that_postgresql_would_cut_are_refused(feed: Feed) -> None:
    long = "ü" * 32
    for schema in (
        TableSchema(TableId("public", long), ITEMS.columns, ITEMS.key),
        TableSchema(TableId("public", "t"), (number("id"), text(long + "1"), text(long + "2")), ("id",)),
    ):
        with pytest.raises(TableStopped, match="63 bytes") as caught:
            Feed(feed.destination, schema).evolve(schema)
        assert caught.value.state == "schema_stopped"
    with pytest.raises(ConfigError, match="63 bytes"):
        open_destination("postgresql://x/y", pipeline="shop", meta_schema=long)
    exact = TableSchema(TableId("public", "a" * 63), (number("id"), text("b" * 63)), ("id",))
    Feed(feed.destination, exact).start().apply(Change(Op.CREATE, {"id": 1, "b" * 63: "x"}, 1))
    own = TableSchema(TableId("public", "clash"), (number("id"), text("_cdc_gen")), ("id",))
    with pytest.raises(TableStopped, match="_cdc_gen"):
        Feed(feed.destination, own).evolve(own)


BEYOND = [(kind, end + step) for kind in (Kind.DATE, Kind.TIME) for end, step in zip(CAPABILITIES.ranges[kind], (-1, 1), strict=True)]
FIRST = CAPABILITIES.ranges[Kind.TIMESTAMP][0]


@pytest.mark.parametrize(("kind", "value"), [*BEYOND, (Kind.TIMESTAMP, FIRST - 1), (Kind.TIMESTAMPTZ, FIRST)])
@pytest.mark.xfail(strict=True, raises=(CdcError, psycopg.Error), reason=f"Capabilities.ranges: {CAPABILITIES.gaps['ranges']}")
def test_a_value_beyond_the_range_is_read_back(harness: PostgreSqlHarness, feed: Feed, kind: Kind, value: int) -> None:
    schema = TableSchema(TableId("public", "t"), (number("id"), Column("at", LogicalType(kind))), ("id",))
    other = Feed(feed.destination, schema, log=LogId("cluster", "t", "1")).start()
    other.apply(Change(Op.CREATE, {"id": 1, "at": value}, 1))
    with psycopg.connect(harness.url, options="-c TimeZone=America/New_York") as reader:
        use = "CAST(at AS timestamp)" if kind is Kind.TIMESTAMPTZ else "CAST(at AS text)"
        assert reader.execute(f"SELECT {use} FROM public.t".encode()).fetchone() is not None


@pytest.mark.xfail(strict=True, raises=CdcError, reason=f"Capabilities.nul_in_text: {CAPABILITIES.gaps['nul_in_text']}")
def test_a_text_with_a_nul_is_held(feed: Feed) -> None:
    feed.apply(row(Op.CREATE, 1, 10, "a\x00b"))


@pytest.mark.parametrize("mode", list(Mode))
def test_what_no_table_of_postgresql_can_have_stops_the_table(feed: Feed, mode: Mode) -> None:
    jsons = LogicalType(Kind.ARRAY, element=LogicalType(Kind.JSON))
    for columns, key, sentence in (
        ((Column("k", jsons), text("v")), "k", "does not compare JSON, of which the key column k is"),
        ((number("id"), text("ctid")), "id", "has a column ctid of its own"),
    ):
        schema = TableSchema(TableId("public", "t"), columns, (key,))
        with pytest.raises(TableStopped, match=sentence) as caught:
            Feed(feed.destination, schema, mode=mode).evolve(schema)
        assert caught.value.state == "schema_stopped"
        assert feed.destination.schemas(Feed(feed.destination, schema).target) == []


def test_a_target_without_a_key_has_an_index_on_its_positions(feed: Feed) -> None:
    schema = TableSchema(TableId("public", "log"), ITEMS.columns, ())
    target = Feed(feed.destination, schema).target
    for _ in range(2):
        feed.destination.evolve(target, [CreateTable(schema)], schema)
    indexes = feed.destination.connection().fetch("SELECT indexdef FROM pg_indexes WHERE tablename = 'log'")
    assert [row[0].rpartition(" ON ")[2] for row in indexes] == ["public.log USING btree (_cdc_record)"]
    assert feed.destination.drift(target, schema) == []


# Two writers


def test_i13_i14_a_taker_waits_for_the_open_transaction_and_then_wins(harness: PostgreSqlHarness, feed: Feed) -> None:
    """The older writer is stopped inside of its transaction, behind the swap: the new one waits for the row, and sees what it committed."""
    delta = feed.delta(row(Op.CREATE, 1, 10, "a"))
    other = Feed(harness.open(), ITEMS)
    inside, go_on = threading.Event(), threading.Event()
    connection = feed.destination.connection()
    real = connection.commit

    def commit() -> None:
        inside.set()
        assert go_on.wait(WAIT)
        real()

    connection.commit = commit
    merging = Later(lambda: feed.merge(delta))
    assert inside.wait(WAIT), "the merge never came to its commit"
    taking = Later(other.take)
    waits_for_a_lock(harness)
    assert taking.running
    go_on.set()
    merging.result()
    taking.result()
    connection.commit = real
    assert other.next[0] == 1
    with pytest.raises(Fenced):
        feed.apply(row(Op.UPDATE, 1, 20, "zombie"))
    other.apply(row(Op.UPDATE, 1, 30, "other"))
    assert names(other.destination) == {1: "other"}
    other.destination.close()


def test_i13_a_merge_that_waits_for_a_taker_is_fenced_when_it_wakes(harness: PostgreSqlHarness, feed: Feed) -> None:
    """READ COMMITTED compares again after the wait for the row."""
    delta = feed.delta(row(Op.CREATE, 1, 10, "a"))
    other = harness.open()
    holder = other.connection()
    holder.begin()
    holder.execute("UPDATE _cdc.checkpoint SET epoch = epoch + 1")
    merging = Later(lambda: feed.merge(delta))
    waits_for_a_lock(harness)
    holder.commit()
    assert isinstance(merging.result(), Fenced)
    assert names(feed.destination) == {}
    other.close()


@contextlib.contextmanager
def another_session(harness: PostgreSqlHarness, *statements: str) -> Iterator[psycopg.Connection[Any]]:
    """What another process has done and not committed yet."""
    with psycopg.connect(harness.url) as session:
        for statement in statements:
            session.execute(statement.encode())
        yield session


@pytest.mark.parametrize("commits", [True, False])
def test_i13_two_processes_make_the_first_row_of_a_writer(harness: PostgreSqlHarness, feed: Feed, commits: bool) -> None:
    """The one that comes second is refused by the key of the table where the first one commits, and goes on with that row."""
    schema = TableSchema(TableId("public", "new"), ITEMS.columns, ITEMS.key)
    mine = Feed(feed.destination, schema, log=LogId("cluster", "new", "1"))
    with another_session(harness, "INSERT INTO _cdc.writer VALUES ('shop', 'public.new', 'public.new', 6)") as session:
        taking = Later(mine.take)
        waits_for_a_lock(harness)
        (session.commit if commits else session.rollback)()
        assert taking.result() is mine
    assert set(mine.epochs.values()) == {7 if commits else 1}
    assert harness.admin("SELECT epoch FROM _cdc.writer WHERE source_table = 'public.new'") == [(7 if commits else 1,)]


def test_a_writer_whose_row_somebody_removed_is_fenced_and_goes_on(harness: PostgreSqlHarness, feed: Feed) -> None:
    for call in (feed.take, lambda: feed.apply(row(Op.CREATE, 1, 10, "a"))):
        harness.admin("DELETE FROM _cdc.writer")
        with pytest.raises(Fenced, match="removed"):
            call()
        call()
    assert names(feed.destination) == {1: "a"}


def test_two_processes_make_the_first_state_of_a_table(harness: PostgreSqlHarness, feed: Feed) -> None:
    """Both have seen none: the second one waits for the first one's transaction, and is then told that it was late."""
    other = harness.open()
    inside, go_on = threading.Event(), threading.Event()
    connection = feed.destination.connection()
    real = connection.commit

    def commit() -> None:
        inside.set()
        assert go_on.wait(WAIT)
        real()

    connection.commit = commit
    first = Later(lambda: feed.destination.save_state(feed.target, TableState("snapshotting")))
    assert inside.wait(WAIT), "the first one never came to its commit"
    second = Later(lambda: other.save_state(feed.target, TableState("paused")))
    waits_for_a_lock(harness)
    go_on.set()
    assert first.result() == TableState("snapshotting", version=1)
    assert isinstance(second.result(), Fenced)
    assert other.load_state(feed.target) == TableState("snapshotting", version=1)
    other.close()


def test_a_state_that_changes_while_progress_waits_for_it_is_left_out(harness: PostgreSqlHarness, feed: Feed) -> None:
    """The others are written all the same."""
    d = feed.destination
    targets = [replace(feed.target, name=f"t{n}") for n in range(3)]
    moved = {t: replace(d.save_state(t, TableState("streaming")), complete_through=5, complete_at=6) for t in targets}
    paused = "UPDATE _cdc.table_state SET state = 'paused', version = 2 WHERE target_table = 'public.t1'"
    with another_session(harness, paused) as session:
        saving = Later(lambda: d.save_progress(moved))
        waits_for_a_lock(harness)
        session.commit()
        assert saving.result() == {t: replace(moved[t], version=2) for t in (targets[0], targets[2])}
    assert d.load_state(targets[1]) == TableState("paused", version=2)
    assert [d.load_state(t).complete_through for t in targets] == [5, None, 5]


FROZEN = """
import os, signal, sys
from cdc_service import failpoints
from tests.conformance.harness import ITEMS, Change, Feed
from cdc_service.core.types import Op
from mergers.sql.ledger import LedgerOpen
from mergers.destinations.postgresql import open as open_postgresql

options = {"idle_in_transaction_session_timeout": sys.argv[2]}
destination = open_postgresql(sys.argv[1], pipeline="shop", meta_schema="_cdc", options=options)
feed = Feed(destination, ITEMS).take()
delta = feed.delta(Change(Op.CREATE, {"id": 1, "name": "zombie", "body": None}, 10))
connection = destination.connection()
real = connection.commit
def commit():
    print("inside", flush=True)
    os.kill(os.getpid(), signal.SIGSTOP)
    real()
connection.commit = commit
for attempt in range(2):
    try:
        feed.merge(delta)
        print("merged", flush=True)
    except Exception as error:
        print(type(error).__name__, flush=True)
    connection = destination.connection()
"""


def test_i14_a_process_frozen_inside_its_transaction_loses_it_and_wakes_up_fenced(harness: PostgreSqlHarness, feed: Feed) -> None:
    """The server ends the frozen writer's transaction after a while, so that nobody waits for it for ever."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    argv = [sys.executable, "-c", FROZEN, harness.url, "2s"]
    frozen = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT)
    try:
        assert frozen.stdout is not None
        assert frozen.stdout.readline() == "inside\n"
        other = Feed(harness.open(), ITEMS).take()
        other.apply(row(Op.CREATE, 1, 30, "other"))
        frozen.send_signal(signal.SIGCONT)
        said = frozen.communicate(timeout=WAIT)[0].split()
        assert said[0] in ("CommitUnknown", "Unavailable")
        assert said[1] == "Fenced"
        assert names(other.destination) == {1: "other"}
        other.destination.close()
    finally:
        frozen.kill()
        frozen.wait()


def test_a_lock_of_somebody_else_ends_in_an_error_that_names_the_session(harness: PostgreSqlHarness, feed: Feed) -> None:
    quick = Feed(harness.open(lock_timeout="200ms"), ITEMS).take()
    with psycopg.connect(harness.url, application_name="a report") as holder:
        holder.execute("LOCK TABLE public.items IN SHARE MODE")
        with pytest.raises(Unavailable, match=f"pid {holder.info.backend_pid} .*a report") as caught:
            quick.apply(row(Op.CREATE, 1, 10, "a"))
        assert "pg_terminate_backend" in caught.value.hint
    quick.apply(row(Op.CREATE, 1, 10, "a"))
    # A query that reads holds a lock that only DDL waits for.
    with psycopg.connect(harness.url, application_name="a report") as holder:
        holder.execute("SELECT * FROM public.items")
        quick.apply(row(Op.UPDATE, 1, 20, "b"))
        wide = TableSchema(ITEMS.table, (*ITEMS.columns, text("more")), ITEMS.key)
        with pytest.raises(Unavailable, match=f"pid {holder.info.backend_pid} "):
            quick.evolve(wide)
    quick.evolve(wide)
    assert quick.own == wide
    quick.destination.close()


def test_two_processes_prepare_and_make_a_table_at_the_same_time(harness: PostgreSqlHarness) -> None:
    opened = [harness.open() for _ in range(4)]
    feeds = [Feed(destination, ITEMS) for destination in opened]
    for call in (lambda f: f.destination.prepare(), lambda f: f.evolve(ITEMS), lambda f: f.take()):
        calls = [Later(lambda f=f, call=call: call(f)) for f in feeds]
        assert [r for r in (later.result() for later in calls) if isinstance(r, BaseException)] == []
    assert opened[0].schemas(feeds[0].target) == [ITEMS]
    assert len({f.epochs[0] for f in feeds}) == len(feeds)
    assert harness.admin("SELECT COUNT(*) - COUNT(DISTINCT version) FROM _cdc.migration") == [(0,)]
    assert harness.admin("SELECT COUNT(*) FROM _cdc.checkpoint") == [(2,)]
    max(feeds, key=lambda f: f.epochs[0]).apply(row(Op.CREATE, 1, 10, "a"))
    for destination in opened:
        destination.close()


# Lost sessions


@pytest.mark.parametrize("when", ["idle", "staged", "open"])
def test_a_session_that_was_ended_is_opened_again(harness: PostgreSqlHarness, feed: Feed, when: str) -> None:
    feed.apply(row(Op.CREATE, 1, 10, "a"))
    connection = feed.destination.connection()

    def end() -> None:
        harness.admin(f"SELECT pg_terminate_backend({connection.raw.info.backend_pid}, 5000)")

    if when == "idle":
        end()
    else:
        real, method = getattr(connection, "begin" if when == "staged" else "commit"), "begin" if when == "staged" else "execute"
        real = getattr(connection, method)

        def instead(*args: Any) -> Any:
            end()
            return real(*args)

        setattr(connection, method, instead)
        with pytest.raises(Unavailable, match="lost"):
            feed.apply(row(Op.UPDATE, 1, 20, "b"))
        feed.take()
        assert feed.next[0] == 1
    feed.apply(row(Op.UPDATE, 1, 20, "b"))
    assert names(feed.destination) == {1: "b"}


def test_a_server_that_restarts_is_away_and_then_there_again(postgres: Stack, harness: PostgreSqlHarness, feed: Feed) -> None:
    feed.apply(row(Op.CREATE, 1, 10, "a"))
    postgres.stop(["postgres"])
    try:
        for _ in range(2):
            with pytest.raises(Unavailable):
                feed.apply(row(Op.UPDATE, 1, 20, "b"))
        with pytest.raises(Unavailable):
            feed.destination.query("SELECT 1", rows_max=1)
    finally:
        postgres.start(["postgres"])
    feed.take()
    feed.apply(row(Op.UPDATE, 1, 20, "b"))
    assert names(feed.destination) == {1: "b"}


@pytest.mark.parametrize("where", ["statement", "commit"])
def test_i15_a_server_that_freezes_is_given_up(
    postgres: Stack, harness: PostgreSqlHarness, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """In a statement nothing was applied; in COMMIT the outcome is unknown until it is read."""
    monkeypatch.setattr("mergers.destinations.postgresql.GRACE_SECONDS", 0.5)
    feed = Feed(harness.open(statement_timeout="1s"), ITEMS).start()
    delta = feed.delta(row(Op.CREATE, 1, 10, "a"))
    connection = feed.destination.connection()
    backend = postgres.backend(connection.raw.info.backend_pid)
    method = "commit" if where == "commit" else "begin"
    real = getattr(connection, method)

    def frozen() -> None:
        os.kill(backend, signal.SIGSTOP)
        real()
        connection.execute("SELECT 1")

    monkeypatch.setattr(connection, method, frozen)
    try:
        with pytest.raises(CommitUnknown if where == "commit" else Unavailable):
            feed.merge(delta)
    finally:
        os.kill(backend, signal.SIGCONT)
    feed.take()
    if feed.next[0] == 0:
        feed.apply(row(Op.CREATE, 1, 10, "a"))
    assert names(feed.destination) == {1: "a"}
    feed.destination.close()


@pytest.mark.parametrize("applied", [True, False])
def test_i15_a_lost_reply_to_commit_is_unknown_and_then_read_back(harness: PostgreSqlHarness, feed: Feed, applied: bool) -> None:
    delta = feed.delta(row(Op.CREATE, 1, 10, "a"))
    connection = feed.destination.connection()
    raw = connection.raw

    class Lossy:
        def __getattr__(self, name: str) -> Any:
            return getattr(raw, name)

        def execute(self, sql: str, *params: Any) -> Any:
            if sql == "COMMIT":
                if applied:
                    raw.execute("COMMIT")
                harness.admin(f"SELECT pg_terminate_backend({raw.info.backend_pid}, 5000)")
            return raw.execute(sql, *params)

    connection.raw = Lossy()
    with pytest.raises(CommitUnknown):
        feed.merge(delta)
    feed.take()
    assert feed.next[0] == (1 if applied else 0)
    assert feed.destination.table_rows(feed.target) == feed.next[0]
    if not applied:
        feed.apply(row(Op.CREATE, 1, 10, "a"))


# Staging


def catalog_writes(harness: PostgreSqlHarness) -> int:
    """Rows ever written into the catalogs of tables and columns by sessions that have ended."""
    sql = "SELECT SUM(n_tup_ins + n_tup_upd + n_tup_del) FROM pg_stat_sys_tables WHERE relname IN ('pg_class', 'pg_attribute', 'pg_type')"
    return int(harness.admin(sql)[0][0])


def test_batches_leave_nothing_in_the_catalogs(harness: PostgreSqlHarness) -> None:
    """The first batches of each shape make tables; a hundred more make none, and what they staged is gone."""

    def run(batches: int) -> int:
        destination = harness.open()
        feed = Feed(destination, ITEMS).start()
        at = feed.next[0]
        for n in range(at, at + batches):
            feed.apply(row(Op.CREATE, n, n + 1, "a"), rejected=[(1, None)])
            feed.apply(row(Op.UPDATE, n, n + 2, unsent=("name",)), row(Op.DELETE, -1, n))
        sizes = "SELECT COUNT(*), SUM(pg_relation_size(oid)) FROM pg_class WHERE relpersistence = 't' AND relkind = 'r'"
        assert destination.connection().fetch(sizes) == [(4, 0)]
        destination.close()
        before = -1
        for _ in range(30):  # The counters come a little later than the session's end.
            if before == (before := catalog_writes(harness)):
                return before
            harness.admin("SELECT pg_sleep(0.7)")
        raise AssertionError("the counters never rested")

    first = run(2)
    few = run(2) - first
    many = run(100) - few - first
    assert 0 < many <= few + 20


def test_many_shapes_are_given_up_one_by_one(harness: PostgreSqlHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mergers.destinations.postgresql.SHAPES_MAX", 3)
    destination = harness.open()
    for n in range(6):
        schema = TableSchema(TableId("public", f"t{n % 5}"), (number("id"), *(text(f"c{i}") for i in range(n % 5))), ("id",))
        feed = Feed(destination, schema, log=LogId("cluster", f"topic {n % 5}", "id")).start()
        feed.apply(Change(Op.CREATE, {"id": n}, n + 1), rejected=[(0, None)])
        assert destination.table_rows(feed.target) in (1, 2)
    (left,) = destination.connection().fetch("SELECT COUNT(*) FROM pg_class WHERE relpersistence = 't' AND relkind = 'r'")
    assert left[0] <= 3
    destination.close()


# What somebody did to the target


@pytest.mark.parametrize(
    ("ddl", "sentence"),
    [
        ("ALTER TABLE public.items DROP COLUMN body", "column body is gone"),
        ("ALTER TABLE public.items ALTER COLUMN name TYPE bytea USING NULL", "column name is bytea and was text"),
        ("ALTER TABLE public.items RENAME COLUMN _cdc_record TO mine", "column _cdc_record is gone"),
        ("DROP TABLE public.items", "the table public.items is gone"),
        ("ALTER TABLE public.items DROP CONSTRAINT items_pkey", "the primary key is gone"),
    ],
)
def test_drift_is_named_and_stops_the_table(feed: Feed, ddl: str, sentence: str) -> None:
    feed.apply(row(Op.CREATE, 1, 10, "a"))
    feed.destination.connection().execute(ddl)
    assert sentence in "; ".join(feed.destination.drift(feed.target, feed.own))
    with pytest.raises(TableStopped, match=sentence) as caught:
        feed.apply(row(Op.UPDATE, 1, 20, "b"))
    assert caught.value.state == "drift"


def test_the_key_that_drift_names_can_be_put_back_and_other_indexes_are_no_drift(feed: Feed) -> None:
    feed.apply(row(Op.CREATE, 1, 10, "a"))
    c = feed.destination.connection()
    for index in ("CREATE INDEX ON public.items (name)", "CREATE UNIQUE INDEX ON public.items (id, name)"):
        c.execute(index)
    assert feed.destination.drift(feed.target, feed.own) == []
    c.execute("ALTER TABLE public.items DROP CONSTRAINT items_pkey")
    (sentence,) = feed.destination.drift(feed.target, feed.own)
    c.execute(sentence.partition("put it back: ")[2].removesuffix(")"))
    assert feed.destination.drift(feed.target, feed.own) == []
    c.execute("ALTER TABLE public.items ADD COLUMN mine INT")
    assert feed.destination.drift(feed.target, feed.own) == ["column mine was added"]


def test_another_table_of_the_same_name_is_not_taken_over(harness: PostgreSqlHarness) -> None:
    destination = harness.open()
    destination.prepare()
    destination.connection().execute("CREATE TABLE public.items (id BIGINT, other VARCHAR)")
    with pytest.raises(TableStopped, match=r"column name is gone.*primary key"):
        Feed(destination, ITEMS).evolve(ITEMS)
    assert destination.schemas(Feed(destination, ITEMS).target) == []
    destination.close()


def test_i3_a_row_that_somebody_keeps_out_is_not_taken_for_a_duplicate(harness: PostgreSqlHarness, feed: Feed) -> None:
    """The upsert itself compares versions, so that what it does not write has to stand there already."""
    feed.apply(row(Op.CREATE, 1, 10, "old"))
    keep_out = (
        "CREATE FUNCTION public.keep_out() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RETURN CASE WHEN NEW.id < 3 THEN NEW END; END$$"
    )
    harness.admin(keep_out, "CREATE TRIGGER keep_out BEFORE INSERT ON public.items FOR EACH ROW EXECUTE FUNCTION public.keep_out()")
    with pytest.raises(LedgerOpen, match="3 rows were to be written or older than what stands there, 2 are"):
        feed.apply(row(Op.UPDATE, 1, 9, "older"), row(Op.CREATE, 2, 11, "new"), row(Op.CREATE, 3, 12, "kept out"))
    assert names(feed.destination) == {1: "old"}
    harness.admin("DROP TRIGGER keep_out ON public.items")
    receipt = feed.apply(row(Op.UPDATE, 1, 9, "older"), row(Op.CREATE, 2, 11, "new"), row(Op.CREATE, 3, 12, "kept out"))
    assert names(feed.destination) == {1: "old", 2: "new", 3: "kept out"}
    assert [(n.applied, n.duplicate) for n in receipt.partitions] == [(2, 1)]


def test_a_view_on_the_target_is_named_where_it_stands_in_the_way(feed: Feed) -> None:
    feed.destination.connection().execute("CREATE VIEW public.report AS SELECT id FROM public.items")
    with pytest.raises(CdcError, match="depends on") as caught:
        feed.destination.begin_anew(feed.target, LOG, {0: 0, 1: 0}, TableState("snapshotting", 1), retire=True)
    assert caught.value.code == "mismatch"
    assert feed.destination.load_state(feed.target) == TableState()
    feed.apply(row(Op.CREATE, 1, 10, "a"))


# The service's own tables


def test_table_status_is_fresh_when_it_is_read_and_bi_may_be_let_in(harness: PostgreSqlHarness, feed: Feed) -> None:
    feed.apply(row(Op.CREATE, 1, 10, "a"), rejected=[(1, None)])
    feed.destination.save_state(feed.target, TableState("streaming", complete_through=10, complete_at=1_700_000_000_000_000))
    (status,) = feed.destination.query("SELECT * FROM _cdc.table_status", rows_max=5).to_pylist()
    assert list(status)[:2] == ["pipeline", "source_table"]
    assert (status["pipeline"], status["source_table"], status["target_table"]) == ("shop", "public.items", "public.items")
    assert float(status["freshness_seconds"]) > 10_000_000
    assert (status["applied"], status["parked"], status["parked_open"]) == (1, 1, 1)
    assert (status["is_complete"], status["verified_at"], status["synced_at"] is not None) == (False, None, True)
    assert status["complete_at"].timestamp() == 1_700_000_000


def test_every_meta_table_begins_with_pipeline_and_source_table(feed: Feed) -> None:
    sql = """SELECT table_name, array_agg(column_name::text ORDER BY ordinal_position) AS names FROM information_schema.columns
WHERE table_schema = '_cdc' AND table_name <> 'migration' GROUP BY 1"""
    tables = {r["table_name"]: r["names"] for r in feed.destination.query(sql, rows_max=100).to_pylist()}
    assert {"checkpoint", "batch", "quarantine", "deleted_keys", "schema_history", "table_state", "table_status"} <= set(tables)
    assert all(columns[:2] == ["pipeline", "source_table"] for columns in tables.values())


def test_retention_removes_old_rows_and_keeps_what_is_undecided(feed: Feed, harness: PostgreSqlHarness) -> None:
    feed.apply(row(Op.CREATE, 1, 10), row(Op.DELETE, 2, 11), rejected=[(0, '["9"]'), (0, '["8"]')])
    connection = feed.destination.connection()
    old = "now() - INTERVAL '400 days'"
    for sql in (
        f"UPDATE _cdc.batch SET committed_at = {old}",
        f"UPDATE _cdc.deleted_keys SET deleted_at = {old}",
        f"UPDATE _cdc.quarantine SET parked_at = {old}",
        f"UPDATE _cdc.quarantine SET state = 'replayed', decided_at = {old} WHERE key_text = '[\"8\"]'",
    ):
        connection.execute(sql)
    again = harness.open()
    again.prepare()
    assert harness.ledger(again, feed.target) == []
    assert harness.deleted(again, feed.target) == {}
    assert again.parked_keys(feed.target).to_pylist() == ['["9"]']
    assert again.query("SELECT COUNT(*) AS n FROM _cdc.quarantine", rows_max=1).to_pylist() == [{"n": 1}]
    again.close()


def test_i2_deleted_keys_stay_while_a_record_waits_whose_key_nobody_knows(feed: Feed, harness: PostgreSqlHarness) -> None:
    feed.apply(row(Op.CREATE, 1, 10), row(Op.DELETE, 2, 11), rejected=[(0, None)])
    connection = feed.destination.connection()
    connection.execute("UPDATE _cdc.deleted_keys SET deleted_at = now() - INTERVAL '400 days'")
    connection.execute("UPDATE _cdc.quarantine SET parked_at = now() - INTERVAL '400 days'")
    for state, kept in (("parked", {'["2"]': (0, 11)}), ("discarded", {})):
        connection.execute(f"UPDATE _cdc.quarantine SET state = '{state}', decided_at = now() - INTERVAL '400 days'")
        again = harness.open()
        again.prepare()
        assert harness.deleted(again, feed.target) == kept
        again.close()
    assert feed.destination.totals(feed.target).decided == {"discarded": 1}, "what was discarded is remembered for good"


def test_deleted_keys_are_found_by_their_index(feed: Feed) -> None:
    """A week of deletes is millions of rows, which no batch may read whole."""
    feed.destination.prepare()
    sql = "SELECT indexdef FROM pg_indexes WHERE schemaname = '_cdc' AND tablename = 'deleted_keys'"
    assert [r[0] for r in feed.destination.connection().fetch(sql)] == [
        "CREATE INDEX deleted_keys_key_hash ON _cdc.deleted_keys USING btree (key_hash)"
    ]
