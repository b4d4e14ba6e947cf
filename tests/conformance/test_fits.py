"""What a destination says before anything is written: rights that are lacking, files that cannot be written, tables that can never fit."""

from __future__ import annotations

import multiprocessing
import os
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from cdc_service.core.errors import ConfigError, TableStopped
from cdc_service.core.types import Mode, Op, TableId, TableSchema, Target
from cdc_service.ports.destination import RightsLacking
from deploy.local.stack import Stack
from mergers.destinations import open_destination
from mergers.destinations.postgresql import COLUMNS_MAX, STAGED_BESIDE
from mergers.sql import meta
from tests.conformance.harness import ITEMS, Change, Feed, PostgreSqlHarness, number, text

NOBODY = 65534
WAIT_SECONDS = 60.0
TARGETS = [Target(TableId("shop", "items"), "mart", "items"), Target(TableId("shop", "more"), "mart", "more")]
MART = TableSchema(TableId("mart", "items"), ITEMS.columns, ITEMS.key)


@pytest.fixture
def harness(postgres: Stack) -> Iterator[PostgreSqlHarness]:
    made = PostgreSqlHarness()
    made.admin("ALTER DATABASE {} OWNER TO postgres", "REVOKE ALL ON DATABASE {} FROM PUBLIC", "GRANT CONNECT ON DATABASE {} TO cdc")
    yield made
    made.close()


def first(destination: Any) -> None:
    """Everything that a first load writes."""
    destination.prepare()
    Feed(destination, MART).start().apply(Change(Op.CREATE, {"id": 1, "name": "a", "body": None}, 10))


ALL = ("CREATE SCHEMA mart AUTHORIZATION cdc", "CREATE SCHEMA _cdc AUTHORIZATION cdc", "GRANT TEMPORARY ON DATABASE {} TO cdc")
MADE = "CREATE TABLE mart.items (id int, _cdc_gen int)"
FAULTS = {
    "nothing was granted": ("SELECT 1",),
    "no schema, and none may be made": (*ALL, "DROP SCHEMA mart"),
    "no CREATE": (*ALL, "ALTER SCHEMA mart OWNER TO postgres", "GRANT USAGE ON SCHEMA mart TO cdc"),
    "no USAGE": (*ALL, "ALTER SCHEMA mart OWNER TO postgres", "GRANT CREATE ON SCHEMA mart TO cdc"),
    "somebody else's table": (*ALL, MADE, "GRANT ALL ON mart.items TO cdc", "CREATE TABLE mart.more (_cdc_gen int)"),
    "rights that were taken away": (*ALL, MADE, "ALTER TABLE mart.items OWNER TO cdc", "REVOKE DELETE ON mart.items FROM cdc"),
    "no temporary tables": (*ALL, "REVOKE TEMPORARY ON DATABASE {} FROM cdc"),
}  # fmt: skip


@pytest.mark.parametrize("fault", list(FAULTS))
def test_each_lacking_right_is_named_at_once_and_its_statement_gives_it(harness: PostgreSqlHarness, fault: str) -> None:
    harness.admin(*FAULTS[fault])
    destination = harness.open()
    found = destination.lacking(TARGETS)
    assert found
    assert all(isinstance(one, RightsLacking) and one.statement.endswith(";") for one in found)
    assert len({(one.message, one.hint) for one in found}) == len(found)
    assert destination.lacking(TARGETS) == found or len(destination.lacking(TARGETS)) == len(found), "asking changes nothing"
    harness.admin(*(one.statement for one in found if isinstance(one, RightsLacking)))
    assert destination.lacking(TARGETS) == []
    harness.admin("DROP TABLE IF EXISTS mart.items, mart.more")
    first(destination)
    destination.close()


def test_what_is_no_table_and_tables_of_an_earlier_role(harness: PostgreSqlHarness) -> None:
    harness.admin(*ALL, "CREATE VIEW mart.items AS SELECT 1 AS id")
    destination = harness.open()
    (found,) = destination.lacking(TARGETS)
    assert "is no table" in found.message
    assert "another target" in found.hint
    harness.admin("DROP VIEW mart.items")
    first(destination)
    assert destination.lacking([MART_TARGET]) == []
    harness.admin(
        *(f"ALTER TABLE _cdc.{table.name} OWNER TO postgres" for table in meta.TABLES), "ALTER TABLE mart.items OWNER TO postgres"
    )
    lacks = destination.lacking([MART_TARGET])
    assert len(lacks) == len(meta.TABLES) + 1
    with pytest.raises(ConfigError) as caught:
        Feed(destination, MART).take()
    assert caught.value.code == RightsLacking.code
    harness.admin(*(one.statement for one in lacks if isinstance(one, RightsLacking)))
    Feed(destination, MART).take()
    destination.close()


MART_TARGET = Feed(None, MART).target


@pytest.mark.parametrize("mode", list(Mode))
def test_as_many_columns_as_are_said_to_fit_do(postgres: Stack, mode: Mode) -> None:
    """All of them unsent at once and moved by a change of key, which is what takes most beside them."""
    harness = PostgreSqlHarness()
    destination = harness.open()
    most = COLUMNS_MAX - STAGED_BESIDE - 1
    wide = TableSchema(TableId("public", "wide"), (number("id"), *(text(f"c{n}") for n in range(most - 1))), ("id",))
    feed = Feed(destination, wide, mode)
    one_more = TableSchema(wide.table, (*wide.columns, text("more")), wide.key)
    assert destination.misfit(feed.target, wide) is None
    found = destination.misfit(feed.target, one_more)
    assert found is not None
    assert f"{most + 1} and {STAGED_BESIDE + 1}" in found.message
    feed.start()
    values: dict[str, Any] = {"id": 1, **{f"c{n}": "x" for n in range(most - 1)}}
    unsent = () if mode is Mode.APPEND else tuple(wide.names[1:])
    nothing = dict.fromkeys(wide.names[1:])
    with psycopg.connect(harness.url, autocommit=True) as reader:
        if mode is not Mode.APPEND:
            feed.apply(Change(Op.CREATE, values, 10))
            feed.apply(Change(Op.UPDATE, {"id": 1, **nothing}, 20, unsent=unsent))
            feed.apply(Change(Op.DELETE, {"id": 1, **nothing}, 30, moved=True))
            feed.apply(Change(Op.CREATE, {"id": 2, **nothing}, 31, unsent=unsent, base={"id": 1}, move=30))
            assert reader.execute(f"SELECT id, c0, c{most - 2} FROM public.wide WHERE id = 2").fetchall() == [(2, "x", "x")]
    destination.close()
    harness.close()


# DuckDB: what stands on a disk


def as_nobody(folder: Path, do: Callable[[], str]) -> str:
    """What ``do`` returns in a process of a user who owns nothing: root may write everywhere."""
    inside, outside = multiprocessing.Pipe()

    def run() -> None:
        try:
            os.chdir(folder)
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            outside.send(do())
        except BaseException:
            outside.send(traceback.format_exc())

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    try:
        assert inside.poll(WAIT_SECONDS), f"the process of another user said nothing within {WAIT_SECONDS} s"
        said: str = inside.recv()
        return said
    finally:
        process.kill()
        process.join(WAIT_SECONDS)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else for a moment")
@pytest.mark.parametrize("what", ["folder", "file", "file and folder", "log"])
def test_a_file_or_folder_that_cannot_be_written_is_named_with_the_command_that_heals(tmp_path: Path, what: str) -> None:
    for path in (tmp_path, *tmp_path.parents[:3]):
        path.chmod(path.stat().st_mode | 0o755)
    folder, file = tmp_path / "data", tmp_path / "data/w.duckdb"
    folder.mkdir()
    url = "duckdb:///w.duckdb"
    os.chown(folder, NOBODY, NOBODY)
    if what != "folder":
        assert as_nobody(folder, lambda: _written(url)) == "written"
    if what == "log":
        Path(f"{file}.wal").touch()
    wrong = {"folder": [folder], "file": [file], "file and folder": [folder, file], "log": [Path(f"{file}.wal")]}[what]
    for path in wrong:
        os.chown(path, 0, 0)
        path.chmod(0o755 if path.is_dir() else 0o644)

    def lacks() -> str:
        return "\n".join(f"{e.message}|{getattr(e, 'statement', e.hint)}" for e in open_destination(url, pipeline="shop").lacking(TARGETS))

    said = as_nobody(folder, lacks).splitlines()
    assert [line.partition(" cannot be written")[0] for line in said] == [str(path) for path in wrong]
    for line in said:
        command = line.partition("|")[2]
        assert command.endswith("# as root")
        assert os.system(command) == 0
    assert as_nobody(folder, lacks) == ""
    if what != "log":
        assert as_nobody(folder, lambda: _written(url)) == "written"


def _written(url: str) -> str:
    destination = open_destination(url, pipeline="shop")
    first(destination)
    destination.close()
    return "written"


def test_a_path_that_can_hold_no_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path, said in ((tmp_path, "is a folder"), (tmp_path / "file" / "w.duckdb", "is no folder")):
        destination = open_destination(f"duckdb:///{path}", pipeline="shop")
        (found,) = destination.lacking(TARGETS)
        assert said in found.message
        with pytest.raises(ConfigError, match=said):
            destination.probe()
    assert open_destination(f"duckdb:///{tmp_path}/new/w.duckdb", pipeline="shop").lacking(TARGETS) == []
    assert list(tmp_path.iterdir()) == [tmp_path / "file"], "asking makes nothing"


@pytest.mark.parametrize("file", ["_cdc.duckdb", "_CDC.old.db"])
def test_a_file_that_takes_the_name_of_the_services_own_schema(tmp_path: Path, file: str) -> None:
    with pytest.raises(ConfigError, match="cannot tell the schema _cdc"):
        open_destination(f"duckdb:///{tmp_path}/{file}", pipeline="shop")


@pytest.mark.parametrize("kind", ["duckdb", "postgresql"])
def test_a_table_of_somebody_else_where_a_target_shall_be(kind: str, postgres: Stack, tmp_path: Path) -> None:
    """It is told before: the first load stops at it."""
    harness = PostgreSqlHarness()
    url = harness.url if kind == "postgresql" else f"duckdb:///{tmp_path}/w.duckdb"
    destination = open_destination(url, pipeline="shop")
    connection: Any = destination.connection()  # type: ignore[attr-defined]
    connection.execute("CREATE SCHEMA mart")
    connection.execute("CREATE TABLE mart.items (id INTEGER, name TEXT)")
    (found,) = destination.lacking(TARGETS)
    assert "mart.items is there already" in found.message
    with pytest.raises(TableStopped, match="is there already and is not the table"):
        Feed(destination, MART).start()
    destination.close()
    destination = open_destination(url, pipeline="shop")
    moved: Any = destination.connection()  # type: ignore[attr-defined]
    moved.execute("ALTER TABLE mart.items RENAME TO items_of_before")
    assert not destination.lacking(TARGETS)
    first(destination)
    assert not destination.lacking([MART_TARGET])
    destination.close()
    harness.close()
