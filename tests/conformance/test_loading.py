"""Loaded tables at the edge of their cursor, on PostgreSQL and SQLite in their own way, and on PostgreSQL as any database that SQLAlchemy
knows."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from cdc_service.core.errors import CdcError, ConfigError, Fenced, TableStopped, Unavailable
from cdc_service.pipeline.load_task import Window
from cdc_service.ports.load import Snapshot
from deploy.local.stack import Stack
from tests.support.loading import Database, Loads, database, loads, values, write

CURSOR = {"cursor": "at", "lookback": 0}
ITEMS = "CREATE TABLE items (id integer PRIMARY KEY, name text, at timestamptz)"


def at(second: int, rest: str = "") -> str:
    return f"2026-03-01 10:{second // 60:02d}:{second % 60:02d}{rest}"


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.stack), pytest.param("any", marks=pytest.mark.stack)])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    stack = None if request.param == "sqlite" else request.getfixturevalue("postgres")
    with database(request.param, tmp_path, stack) as made:
        yield made


@pytest.fixture
def pg_source(postgres: Stack, tmp_path: Path) -> Iterator[Database]:
    with database("postgresql", tmp_path, postgres) as made:
        yield made


def filled(source: Database, rows: list[tuple[Any, ...]], table: str = ITEMS) -> None:
    source.run(table, f"INSERT INTO items VALUES {values(rows)}")


def at_pages(monkeypatch: pytest.MonkeyPatch, loads: Loads, page: int, do: Any) -> None:
    """Calls ``do`` once, before the ``page``-th page of a snapshot is given out (from 0)."""
    real, left = loads.opened.snapshot, [True]

    def snapshot(reading: Any) -> Snapshot:
        made = real(reading)
        pages = made.pages

        def counted(part: Any, rows: int) -> Iterator[Any]:
            for number, one in enumerate(pages(part, rows)):
                if number == page and left:
                    left.clear()
                    do(made)
                yield one

        monkeypatch.setattr(made, "pages", counted, raising=False)
        return made

    monkeypatch.setattr(loads.opened, "snapshot", snapshot)


# Twice, and in between


def test_a_load_and_a_second_one_that_changes_nothing(source: Database, tmp_path: Path) -> None:
    filled(source, [(n, f"n{n}", at(n)) for n in range(25)])
    with loads(source, tmp_path, CURSOR, rows=10) as shop:
        first = shop.loaded().done
        assert (first.read, first.applied, shop.ids()) == (25, 25, list(range(25)))
        before = shop.everything()
        again = shop.loaded().done
        assert (again.read, again.unchanged, again.applied) == (1, 1, 0)
        assert shop.everything() == before
        assert shop.loaded(full=True).done.unchanged == 25
        assert shop.everything()[0] == before[0]
        assert shop.everything()[2:] == before[2:]
        source.run(f"UPDATE items SET name = 'x', at = '{at(40)}' WHERE id = 3", f"INSERT INTO items VALUES (99, 'new', '{at(41)}')")
        assert shop.loaded().done.applied == 2
        assert shop.kept("id, name", "id IN (3, 99)") == [(3, "x"), (99, "new")]


@pytest.mark.parametrize("mode", ["append", "soft_delete"])
def test_a_log_gets_a_row_only_where_something_changed(source: Database, tmp_path: Path, mode: str) -> None:
    filled(source, [(n, f"n{n}", at(n)) for n in range(3)])
    with loads(source, tmp_path, {**CURSOR, "deletes": "compare"}, mode=mode) as shop:
        for _ in range(2):
            shop.loaded()
            shop.loaded(full=True)
            shop.loaded(since=at(0), until=at(9))
        assert len(shop.kept()) == 3
        source.run(f"UPDATE items SET name = 'x', at = '{at(9)}' WHERE id = 1", "DELETE FROM items WHERE id = 0")
        for _ in range(2):
            shop.loaded()
        if mode == "append":
            # An update has its whole row; a delete names its key.
            assert shop.kept("id, name, _cdc_op") == [(0, "n0", "r"), (0, None, "d"), (1, "n1", "r"), (1, "x", "u"), (2, "n2", "r")]
        else:
            assert shop.kept("id, name, _cdc_deleted") == [(0, "n0", True), (1, "x", False), (2, "n2", False)]
        source.run(f"INSERT INTO items VALUES (0, 'back', '{at(20)}')")
        shop.loaded()
        assert shop.kept("count(*)")[0][0] == (6 if mode == "append" else 3)
        assert (0, "back") in shop.kept("id, name")


def test_a_window_reads_only_that_and_leaves_the_mark(source: Database, tmp_path: Path) -> None:
    filled(source, [(n, "n", at(n)) for n in range(10)])
    with loads(source, tmp_path, CURSOR) as shop:
        assert shop.loaded(since=at(2), until=at(5)).done.applied == 3
        assert shop.ids() == [2, 3, 4]
        assert json.loads(shop.checkpoint().mark or "{}").get("low") is None
        before = shop.everything()
        shop.loaded(since=at(2), until=at(5))
        assert shop.everything() == before
        assert shop.loaded(since=at(50), until=at(60)).done.read == 0
        shop.loaded()
        assert shop.ids() == list(range(10))
        if source.engine != "sqlite":
            with pytest.raises(CdcError, match=r"no value of at|refused a statement"):
                shop.loaded(since="yesterday or so")


def test_a_table_that_is_empty_is_made_and_filled_later(source: Database, tmp_path: Path) -> None:
    source.run(ITEMS)
    with loads(source, tmp_path, CURSOR) as shop:
        assert shop.loaded().done.read == 0
        assert shop.kept() == []
        source.run(f"INSERT INTO items VALUES (1, 'a', '{at(1)}')")
        shop.loaded()
        source.run("DELETE FROM items")
        assert shop.loaded().done.read == 0
        source.run(f"INSERT INTO items VALUES (2, 'b', '{at(0)}')")
        shop.loaded()
        assert shop.ids() == [1, 2]


# The edge itself


def test_ties_at_the_mark_are_read_again(source: Database, tmp_path: Path) -> None:
    """With > the second row would be lost; with >= and no merge by key the first would be there twice."""
    filled(source, [(1, "a", at(5))])
    for mode in ("upsert", "append"):
        folder = tmp_path / mode
        folder.mkdir()
        with loads(source, folder, CURSOR, mode=mode) as shop:
            shop.loaded()
            source.run(f"INSERT INTO items VALUES (2, 'b', '{at(5)}')")
            assert (shop.loaded().done.applied, shop.ids()) == (1, [1, 2])
            shop.loaded()
            assert shop.ids() == [1, 2]
            source.run("DELETE FROM items WHERE id = 2")


def test_ties_larger_than_a_page_are_gone_through_and_gone_on_in(source: Database, tmp_path: Path) -> None:
    filled(source, [(n, "n", at(5)) for n in range(95)])
    with loads(source, tmp_path, CURSOR, rows=10, mode="append") as shop:
        task = shop.task()
        pages = iter([False, False, False, True])
        assert not task.run(Window(), lambda: next(pages))
        assert len(shop.ids()) == 30
        mark = json.loads(shop.checkpoint().mark or "")
        assert len(mark["run"]["after"]) == 2
        assert shop.loaded().done.read == 65
        assert shop.ids() == list(range(95))
        assert len(shop.checkpoint().mark or "") < 200


def test_the_bound_and_the_rows_are_of_one_state(source: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that are committed between the question for the highest cursor and the pages are not seen, and not lost."""
    filled(source, [(n, "n", at(n)) for n in range(5)])
    with loads(source, tmp_path, CURSOR, rows=2) as shop:
        at_pages(monkeypatch, shop, 1, lambda s: source.run(f"INSERT INTO items VALUES (50, 'n', '{at(2, '.5')}'), (51, 'n', '{at(30)}')"))
        assert shop.loaded().done.read == 5
        monkeypatch.undo()
        # The first one lies below the mark by now: a clock that went back, which only a lookback covers.
        shop.loaded()
        assert shop.ids() == [0, 1, 2, 3, 4, 51]
        shop.loaded(full=True)
        assert shop.ids() == [0, 1, 2, 3, 4, 50, 51]


def test_a_transaction_that_commits_late_is_read_by_the_next_load(pg_source: Database, tmp_path: Path) -> None:
    source = pg_source
    source.run("CREATE TABLE items (id integer PRIMARY KEY, name text, at timestamptz DEFAULT now())", "INSERT INTO items VALUES (1, 'a')")
    late = source.session()
    late.execute("BEGIN")
    late.execute("SELECT now()")  # It began, and writes later.
    source.run("INSERT INTO items VALUES (2, 'b')")
    with loads(source, tmp_path, {"cursor": "at"}) as shop:
        first = shop.loaded()
        assert shop.ids() == [1, 2]
        assert "open transaction" in first.done.held
        late.execute("INSERT INTO items VALUES (3, 'late')")
        source.run("INSERT INTO items VALUES (4, 'c')")
        shop.loaded()
        assert shop.ids() == [1, 2, 4]
        late.execute("COMMIT")
        late.close()
        assert shop.loaded().done.held == ""
        assert shop.ids() == [1, 2, 3, 4]
        assert shop.loaded().done.applied == 0


def test_a_cursor_ahead_of_the_clock_hides_no_row(pg_source: Database, tmp_path: Path) -> None:
    source = pg_source
    source.run("CREATE TABLE items (id integer PRIMARY KEY, at timestamptz)", "INSERT INTO items VALUES (1, 'infinity')")
    with loads(source, tmp_path, {"cursor": "at"}) as shop:
        shop.loaded()
        source.run("INSERT INTO items VALUES (2, now())")
        shop.loaded()
        assert shop.ids() == [1, 2]


def test_a_number_that_is_drawn_and_committed_late_is_read_too(pg_source: Database, tmp_path: Path) -> None:
    source = pg_source
    source.run("CREATE TABLE items (id serial PRIMARY KEY, name text)", "INSERT INTO items (name) VALUES ('a')")
    late = source.session()
    late.execute("BEGIN")
    late.execute("INSERT INTO items (name) VALUES ('late')")
    source.run("INSERT INTO items (name) VALUES ('b')")
    with loads(source, tmp_path, {"cursor": "id"}) as shop:
        assert "open transactions" in shop.loaded().done.held
        assert shop.ids() == [1, 3]
        late.execute("COMMIT")
        late.close()
        assert shop.loaded().done.held == ""
        assert shop.ids() == [1, 2, 3]
        assert shop.loaded().done.read == 1


def test_a_lookback_covers_what_no_engine_can_tell(source: Database, tmp_path: Path) -> None:
    filled(source, [(1, "a", at(100))])
    with loads(source, tmp_path, {"cursor": "at", "lookback": "1min"}) as shop:
        shop.loaded()
        source.run(f"INSERT INTO items VALUES (2, 'late', '{at(41)}'), (3, 'too late', '{at(39)}')")
        shop.loaded()
        assert shop.ids() == [1, 2]


def test_rows_without_a_cursor(source: Database, tmp_path: Path) -> None:
    filled(source, [(1, "a", at(1)), (2, "b", None)])
    for policy, expected in (("include", [1, 2, 3]), ("skip", [1])):
        folder = tmp_path / policy
        folder.mkdir()
        with loads(source, folder, {**CURSOR, "null_cursor": policy}) as shop:
            shop.loaded()
            source.run("INSERT INTO items VALUES (3, 'c', NULL)")
            shop.loaded()
            before = shop.everything()
            shop.loaded()
            assert shop.everything() == before
            assert shop.ids() == expected
            source.run("DELETE FROM items WHERE id = 3")
    with loads(source, tmp_path, CURSOR) as shop, pytest.raises(TableStopped, match="1 rows have no at"):
        shop.loaded()


def test_no_driver_cuts_or_rounds_the_mark(source: Database, tmp_path: Path) -> None:
    filled(source, [(1, "a", at(1, ".123456")), (2, "b", at(1, ".123457"))])
    with loads(source, tmp_path, CURSOR) as shop:
        shop.loaded()
        assert ".123457" in (shop.checkpoint().mark or "")
        source.run(f"INSERT INTO items VALUES (3, 'c', '{at(1, '.123458')}')")
        assert (shop.loaded().done.applied, shop.ids()) == (1, [1, 2, 3])


def test_a_nanosecond_is_set_aside_and_not_cut(tmp_path: Path) -> None:
    with database("sqlite", tmp_path, None) as source:
        filled(source, [(1, "a", at(1, ".123456789")), (2, "b", at(1, ".1234567891"))])
        with loads(source, tmp_path, CURSOR, rows=1) as shop:
            done = shop.loaded().done
            assert (done.read, done.parked, shop.ids()) == (2, 2, [])
            assert json.loads(shop.checkpoint().mark or "")["low"].endswith(".1234567891")
            before = shop.everything()
            shop.loaded(full=True)  # What is set aside already is not set aside again.
            assert shop.everything()[2:] == before[2:]
            source.run(f"UPDATE items SET at = '{at(2)}'")
            shop.loaded()
            assert shop.ids() == [1, 2]
            assert shop.destination.parked_keys(shop.task().target).to_pylist() == []


def test_the_zone_of_the_session_changes_no_value_and_no_place(pg_source: Database, tmp_path: Path) -> None:
    source = pg_source
    name = source.url.rpartition("/")[2]
    source.run("CREATE TABLE items (id integer PRIMARY KEY, at timestamptz)", "INSERT INTO items VALUES (1, '2026-03-01 10:00:00+00')")
    with loads(source, tmp_path, {"cursor": "at"}) as shop:
        shop.loaded()
        mark = shop.checkpoint().mark
        source.run(f"ALTER DATABASE {name} SET TimeZone = 'America/New_York'", f"ALTER DATABASE {name} SET DateStyle = 'German'")
        assert shop.loaded().done.unchanged == 1
        assert shop.checkpoint().mark == mark
        assert shop.kept('epoch_us("at")') == [(1772359200000000,)]


def test_a_clock_without_a_zone_that_is_set_back_loses_no_row(source: Database, tmp_path: Path) -> None:
    """25 October 2026 in Berlin: 02:59 comes before 02:01 of the second time."""
    table = "CREATE TABLE items (id integer PRIMARY KEY, name text, at timestamp)"
    filled(source, [(1, "summer", "2026-10-25 02:59:00")], table)
    with loads(source, tmp_path, {"cursor": "at"}) as shop:
        shop.loaded()
        source.run("INSERT INTO items VALUES (2, 'winter', '2026-10-25 02:01:00')")
        shop.loaded()
        assert shop.ids() == [1, 2]


@pytest.mark.parametrize(
    ("type_", "cursors"),
    [
        ("text", ["a", "a'b", "ä", 'b"c']),
        ("uuid", [f"00000000-0000-0000-0000-00000000000{n}" for n in "1279"]),
        ("numeric", ["9007199254740993", "9007199254740994", "9007199254740995", "9007199254740996"]),
        ("integer", ["-2", "3", "20", "100"]),
        ("date", ["2026-01-01", "2026-01-02", "2026-02-01", "2026-12-31"]),
    ],
)
def test_a_cursor_of_another_type(source: Database, tmp_path: Path, type_: str, cursors: list[str]) -> None:
    filled(source, [(n, "n", c) for n, c in enumerate(cursors[:2])], f"CREATE TABLE items (id integer PRIMARY KEY, name text, at {type_})")
    with loads(source, tmp_path, {"cursor": "at"}, rows=1) as shop:
        shop.loaded()
        source.run(f"INSERT INTO items VALUES {values([(2, 'n', cursors[2]), (3, 'n', cursors[3])])}")
        done = shop.loaded().done
        assert (shop.ids(), done.applied, done.read) == ([0, 1, 2, 3], 2, 3)
        assert [str(row[0]) for row in shop.kept('CAST("at" AS VARCHAR), id')] == sorted(cursors)
        assert shop.loaded().done.read == 1


def test_a_cursor_that_is_in_no_order_is_refused(pg_source: Database, tmp_path: Path) -> None:
    pg_source.run("CREATE TABLE items (id integer PRIMARY KEY, data json, flag boolean)")
    for cursor, why in (("xmin", "no column xmin"), ("data", "is in no order"), ("flag", "is in no order"), ("dat", "no column dat")):
        with loads(pg_source, tmp_path, {"cursor": cursor}) as shop, pytest.raises(ConfigError, match=why):
            shop.loaded()


# What becomes of the table


def test_a_column_that_comes_is_filled_in_all_rows_and_one_that_is_renamed_too(source: Database, tmp_path: Path) -> None:
    filled(source, [(n, f"n{n}", at(n)) for n in range(5)])
    with loads(source, tmp_path, CURSOR, rows=2) as shop:
        shop.loaded()
        source.run("ALTER TABLE items ADD COLUMN extra integer DEFAULT 7")
        assert shop.loaded().done.full
        assert shop.kept("id, extra") == [(n, 7) for n in range(5)]
        assert not shop.loaded().done.full
        source.run("ALTER TABLE items RENAME COLUMN name TO title")
        assert shop.loaded().done.full
        assert shop.kept("id, title") == [(n, f"n{n}") for n in range(5)]


def test_a_column_that_is_widened_is_followed_and_one_that_cannot_be_says_what_does(pg_source: Database, tmp_path: Path) -> None:
    source = pg_source
    filled(source, [(1, 5, at(1))], "CREATE TABLE items (id integer PRIMARY KEY, n integer, at timestamptz)")
    with loads(source, tmp_path, CURSOR) as shop:
        shop.loaded()
        source.run("ALTER TABLE items ALTER n TYPE bigint", f"INSERT INTO items VALUES (2, {2**40}, '{at(2)}')")
        shop.loaded()
        assert shop.kept("id, n") == [(1, 5), (2, 2**40)]
        source.run("ALTER TABLE items ALTER n TYPE text", f"INSERT INTO items VALUES (3, 'x', '{at(3)}')")
        with pytest.raises(TableStopped) as stopped:
            shop.loaded()
        assert stopped.value.hint.endswith("cdc load public.items --full")
        assert shop.destination.load_state(shop.task().target).state == "schema_stopped"
        shop.loaded(full=True)
        assert shop.kept("id, n") == [(1, "5"), (2, str(2**40)), (3, "x")]
        assert shop.loaded().done.applied == 0


def test_a_row_that_moves_back_is_seen_within_the_lookback_and_by_a_full_load(source: Database, tmp_path: Path) -> None:
    filled(source, [(1, "a", at(100)), (2, "b", at(90))])
    with loads(source, tmp_path, {"cursor": "at", "lookback": "30s"}) as shop:
        shop.loaded()
        source.run(f"UPDATE items SET name = 'near', at = '{at(80)}' WHERE id = 1")
        shop.loaded()
        assert shop.kept("id, name") == [(1, "near"), (2, "b")]
        source.run(f"UPDATE items SET name = 'far', at = '{at(1)}' WHERE id = 1")
        shop.loaded()
        assert shop.kept("id, name") == [(1, "near"), (2, "b")]
        shop.loaded(full=True)
        assert shop.kept("id, name") == [(1, "far"), (2, "b")]


@pytest.mark.parametrize("load_", [CURSOR, {"by": "full"}])
def test_rows_that_are_gone_and_keys_that_change(source: Database, tmp_path: Path, load_: dict[str, Any]) -> None:
    filled(source, [(n, "n", at(n)) for n in range(30)])
    with loads(source, tmp_path, load_, rows=7) as shop:
        shop.loaded()
        source.run("DELETE FROM items WHERE id < 10", f"UPDATE items SET id = 1000, at = '{at(500)}' WHERE id = 20")
        shop.loaded()
        assert len(shop.ids()) == 31
    with loads(source, tmp_path, {**load_, "deletes": "compare"}, rows=7) as shop:
        task = shop.loaded()
        assert task.done.deleted == 11
        assert shop.ids() == [*range(10, 20), *range(21, 30), 1000]
        before = shop.everything()
        assert shop.loaded().done.deleted == 0
        assert shop.everything() == before


def test_a_key_that_names_several_rows_is_refused(source: Database, tmp_path: Path) -> None:
    filled(source, [(1, "a", at(1)), (2, "a", at(2)), (3, None, at(3))])
    with loads(source, tmp_path, {**CURSOR, "key": ["name"]}) as shop:
        with pytest.raises(TableStopped, match="names several rows, or holds NULL"):
            shop.loaded()
        source.run("UPDATE items SET name = 'b' WHERE id = 2")
        with pytest.raises(TableStopped, match="names several rows, or holds NULL"):
            shop.loaded()
        source.run("UPDATE items SET name = 'c' WHERE id = 3")
        shop.loaded()
        assert len(shop.kept()) == 3


def test_a_full_load_writes_only_what_differs(source: Database, tmp_path: Path) -> None:
    filled(source, [(n, "n", at(n)) for n in range(20)])
    with loads(source, tmp_path, {"by": "full", "deletes": "compare"}, rows=6) as shop:
        shop.loaded()
        source.run(
            "UPDATE items SET name = 'x' WHERE id = 4", "DELETE FROM items WHERE id = 5", f"INSERT INTO items VALUES (70, 'y', '{at(1)}')"
        )
        done = shop.loaded().done
        assert (done.read, done.unchanged, done.applied, done.deleted) == (20, 18, 3, 1)
        assert shop.kept("id, name", "id IN (4, 5, 70)") == [(4, "x"), (70, "y")]


# What goes wrong on the way

CRASH = """
import sys
from pathlib import Path
from cdc_service.cli.main import run
sys.exit(run(["load", "-c", sys.argv[1]]))
"""


@pytest.mark.parametrize("place", ["merge.staged@2", "merge.swapped@3", "merge.recorded@2", "merge.committed@2", "line.merged@3"])
@pytest.mark.parametrize("mode", ["upsert", "append"])
def test_a_load_that_is_killed_goes_on_and_nothing_is_there_twice(tmp_path: Path, place: str, mode: str) -> None:
    with database("sqlite", tmp_path, None) as source:
        filled(source, [(n, "n", at(n // 7)) for n in range(50)])
        write(source, tmp_path, CURSOR, mode=mode, rows=10)
        name, _, count = place.partition("@")
        environment = {**os.environ, "CDC_FAILPOINTS": f"{name}=crash@{count}"}
        command = [sys.executable, "-c", CRASH, str(tmp_path / "cdc.yaml")]
        killed = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        with loads(source, tmp_path, CURSOR, mode=mode, rows=10) as shop:
            assert 0 < len(shop.ids()) < 50
            shop.loaded()
            assert shop.ids() == list(range(50))
            counted = shop.destination.totals(shop.task().target).counts
            assert (counted["applied"], counted["duplicate"], shop.checkpoint().next_offset) == (50, 0, 50)


def test_the_session_ends_in_the_middle_of_the_pages(pg_source: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = pg_source
    source.run(ITEMS, f"INSERT INTO items SELECT n, repeat('x', 500), '{at(1)}' FROM generate_series(1, 40000) AS n")

    def end_it(snapshot: Any) -> None:
        source.rows("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()")

    with loads(source, tmp_path, CURSOR, mode="append", rows=1000) as shop:
        at_pages(monkeypatch, shop, 2, end_it)
        task = shop.loaded()
        assert task.done.read < 40000
        assert shop.ids() == list(range(1, 40001))


def test_a_source_that_is_away_for_a_moment_ends_no_load(source: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(source, [(n, "n", at(n)) for n in range(30)])

    def gone(snapshot: Any) -> None:
        raise Unavailable("the server is gone")

    with loads(source, tmp_path, CURSOR, mode="append", rows=10) as shop:
        at_pages(monkeypatch, shop, 1, gone)
        assert shop.loaded().done.read == 20
        assert shop.ids() == list(range(30))


def test_of_two_loads_at_once_one_is_fenced_and_nothing_is_there_twice(
    source: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(source, [(n, "n", at(n)) for n in range(30)])
    with loads(source, tmp_path, CURSOR, mode="append", rows=10) as shop:
        at_pages(monkeypatch, shop, 2, lambda s: shop.loaded())
        with pytest.raises(Fenced):
            shop.loaded()
        assert shop.ids() == list(range(30))


def test_names_are_names_whatever_they_hold(source: Database, tmp_path: Path) -> None:
    table = """CREATE TABLE items (id integer PRIMARY KEY, ":n" text, "a%sb" integer, "it's" integer, "x""y" timestamptz)"""
    filled(source, [(n, "n", n, n, at(n)) for n in range(5)], table)
    with loads(source, tmp_path, {"cursor": 'x"y', "lookback": 0, "deletes": "compare"}, rows=2) as shop:
        assert shop.loaded().done.applied == 5
        source.run("DELETE FROM items WHERE id = 0")
        assert (shop.loaded().done.deleted, len(shop.ids())) == (1, 4)


def test_a_value_of_another_type_is_set_aside_and_the_other_rows_are_not(tmp_path: Path) -> None:
    table = "CREATE TABLE items (id integer PRIMARY KEY, n integer, t text, at timestamp)"
    with database("sqlite", tmp_path, None) as source:
        source.run(table, f"INSERT INTO items VALUES (1, 5, 'a', '{at(1)}'), (2, 'five', 'b', '{at(2)}'), (3, 6, x'ff', '{at(3)}')")
        source.run(f"INSERT INTO items VALUES (4, 7, CAST(x'ff41' AS text), '{at(4)}'), (5, 9223372036854775807, 'e', '{at(5)}')")
        with loads(source, tmp_path, CURSOR) as shop:
            assert shop.loaded().done.parked == 3
            assert shop.kept("id, n") == [(1, 5), (5, 2**63 - 1)]
            kept = shop.destination.quarantined(shop.task().target, most=10, whole=True)
            assert [(r.key_text, r.code) for r in kept] == [(f'["{n}"]', "inexact_value") for n in (2, 3, 4)]
            assert b'"five"' in (kept[0].value or b"")
            assert "five" not in kept[0].message


def test_rows_without_a_checkpoint_wait_for_a_decision(source: Database, tmp_path: Path) -> None:
    filled(source, [(1, "a", at(1))])
    with loads(source, tmp_path, CURSOR) as shop:
        shop.loaded()
        shop.destination.connection().execute("DELETE FROM _cdc.checkpoint")  # type: ignore[attr-defined]
        with pytest.raises(TableStopped) as stopped:
            shop.loaded()
        assert (stopped.value.state, stopped.value.hint.split(": ")[1]) == ("needs_decision", f"cdc load {source.schema}.items --full")
        source.run(f"UPDATE items SET name = 'b', at = '{at(2)}'")
        shop.loaded(full=True)
        assert shop.kept("id, name") == [(1, "b")]


def test_another_cursor_is_another_reading(source: Database, tmp_path: Path) -> None:
    filled(source, [(n, "n", at(n)) for n in range(5)])
    with loads(source, tmp_path, CURSOR) as shop:
        shop.loaded()
        source.run("UPDATE items SET name = 'x' WHERE id = 2")
    with loads(source, tmp_path, {"cursor": "id"}) as shop:
        done = shop.loaded().done
        assert (done.read, done.unchanged, done.applied) == (5, 4, 1)


def test_what_a_replica_of_the_rules_is_not_allowed_to_see_is_told(pg_source: Database, tmp_path: Path) -> None:
    """Without pg_read_all_stats another role's transaction is seen to be open, and not since when."""
    source = pg_source
    source.run(ITEMS, f"INSERT INTO items VALUES (1, 'a', '{at(1)}')", "GRANT SELECT ON items TO cdc")
    late = source.session()
    late.execute("BEGIN")
    late.execute("SELECT 1")
    login = psycopg.conninfo.conninfo_to_dict(source.url)
    assert login["user"] != "cdc"
    source.run(
        "DROP ROLE IF EXISTS loader_of_tests", "CREATE ROLE loader_of_tests LOGIN PASSWORD 'x'", "GRANT SELECT ON items TO loader_of_tests"
    )
    try:
        own = Database("postgresql", source.url.replace(f"{login['user']}:{login['password']}@", "loader_of_tests:x@"), schema="public")
        with loads(own, tmp_path, {"cursor": "at"}) as shop:
            assert "pg_read_all_stats" in shop.loaded().done.held
            assert shop.ids() == [1]
            late.execute("COMMIT")
            late.close()
            assert shop.loaded().done.held == ""
    finally:
        source.run("DROP OWNED BY loader_of_tests", "DROP ROLE loader_of_tests")
