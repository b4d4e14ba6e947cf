"""The example of docs/adding-a-destination.md: the page holds its file whole, its gaps are real, and it goes through the configuration."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cdc_service.config import load
from cdc_service.core.errors import CdcError, CommitUnknown, ConfigError, Unavailable
from cdc_service.core.logical import Kind, LogicalType
from cdc_service.core.types import Column, Op, TableId, TableSchema
from cdc_service.ports.destination import TableState
from cdc_service.runtime.wiring.parts import open_configured
from mergers.destinations import open_destination
from tests.conformance.harness import ITEMS, Change, Feed, SqliteHarness, number

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "adding-a-destination.md").read_text(encoding="utf-8")
EXAMPLE = (ROOT / "docs" / "examples" / "destinations" / "sqlite.py").read_text(encoding="utf-8")


@pytest.fixture
def harness(tmp_path: Path) -> SqliteHarness:
    return SqliteHarness(tmp_path)


@pytest.fixture
def feed(harness: SqliteHarness) -> Iterator[Feed]:
    opened = harness.open()
    yield Feed(opened, ITEMS).start()
    opened.close()


def names(feed: Feed) -> list[str | None]:
    found = feed.destination.query('SELECT name FROM "public.items" ORDER BY id', rows_max=100)
    return list(found["name"].to_pylist()) if found.num_rows else []


def item(id_: int, record: int, name: str) -> Change:
    return Change(Op.CREATE, {"id": id_, "name": name}, record)


# The page


def code_blocks() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


def test_the_page_holds_the_example_whole_and_in_order() -> None:
    mine = [block for block in code_blocks() if not block.startswith("# tests/")]
    lines = [line for block in mine for line in block.splitlines() if line]
    assert lines == [line for line in EXAMPLE.splitlines() if line]
    assert len(EXAMPLE.splitlines()) < 200


def test_the_page_holds_the_harness_as_it_is() -> None:
    others = [block.partition("\n") for block in code_blocks() if block.startswith("# tests/")]
    assert others
    for path, _, code in others:
        assert code.strip() in (ROOT / path.removeprefix("# ")).read_text(encoding="utf-8")


def test_every_path_and_test_that_the_page_names_is_there() -> None:
    paths = set(re.findall(r"\b(?:mergers|tests|docs|cdc_service|deploy)/[\w/.-]+\.(?:py|md|toml)\b", PAGE))
    assert len(paths) > 5
    assert {path for path in paths if not (ROOT / path).exists() and not path.endswith("NAME.py")} == set()
    suite = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    named = {name for name in re.findall(r"\btest_\w+", PAGE) if f"/{name}.py" not in PAGE}
    assert named
    assert {name for name in named if f"def {name}(" not in suite} == set()


# What it cannot hold


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        pytest.param(kind, value, marks=pytest.mark.xfail(strict=True, reason=f"Capabilities.ranges: {kind} ends with the year 9999"))
        for kind, value in ((Kind.DATE, 2_932_897), (Kind.TIMESTAMP, 2_932_897 * 86_400_000_000))
    ],
)
def test_far_days_sort_behind_near_ones(harness: SqliteHarness, kind: Kind, value: int) -> None:
    destination = harness.open()
    feed = Feed(destination, TableSchema(TableId("public", "days"), (number("id"), Column("day", LogicalType(kind))), ("id",))).start()
    feed.apply(Change(Op.CREATE, {"id": 1, "day": value}, 1), Change(Op.CREATE, {"id": 2, "day": value - 1}, 2))
    assert destination.query('SELECT id FROM "public.days" ORDER BY day DESC', rows_max=9)["id"].to_pylist() == [1, 2]


@pytest.mark.xfail(strict=True, reason="Capabilities.nul_in_text: SQLite's functions end a text at a NUL")
def test_a_text_with_a_nul_has_its_length(feed: Feed) -> None:
    feed.apply(item(1, 10, "a\x00b"))
    assert feed.destination.query('SELECT length(name) AS n FROM "public.items"', rows_max=9)["n"].to_pylist() == [3]


# Queries


@pytest.mark.parametrize(
    "sql",
    [
        'DELETE FROM "public.items"', "ATTACH 'other.db' AS other", "PRAGMA journal_mode = DELETE", "SELECT 1; SELECT 2", "SELECT nothing",
        "CREATE TEMP TABLE t (x)", "VACUUM INTO 'other.db'", "SELECT load_extension('x')", "",
    ],
)  # fmt: skip
def test_a_query_only_reads(feed: Feed, sql: str) -> None:
    feed.apply(item(1, 10, "a"))
    with pytest.raises(ConfigError):
        feed.destination.query(sql, rows_max=10)
    assert names(feed) == ["a"]


def test_others_read_while_the_service_writes_and_see_whole_batches(feed: Feed) -> None:
    feed.apply(item(1, 10, "a"))
    connection = feed.destination.connection()
    connection.begin()
    connection.execute('DELETE FROM "public.items"')
    assert names(feed) == ["a"]
    connection.rollback()


# Failures


def test_another_process_that_writes_is_waited_for_and_named(harness: SqliteHarness, feed: Feed) -> None:
    feed.destination.connection().raw.execute("PRAGMA busy_timeout = 20")
    other = sqlite3.connect(harness.url.removeprefix("sqlite:///"), isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(Unavailable, match="BUSY"):
        feed.apply(item(1, 10, "a"))
    other.execute("ROLLBACK")
    other.close()
    feed.apply(item(1, 10, "a"))
    assert names(feed) == ["a"]


class Failing:
    """A driver's connection whose COMMIT fails before or after it took effect."""

    def __init__(self, raw: Any, *, done: bool) -> None:
        self._raw, self._done = raw, done

    def __getattr__(self, name: str) -> Any:
        return getattr(self._raw, name)

    def execute(self, sql: str, *args: Any) -> Any:
        if sql != "COMMIT":
            return self._raw.execute(sql, *args)
        if self._done:
            self._raw.execute(sql)
        raise sqlite3.OperationalError("disk I/O error")


@pytest.mark.parametrize("done", [False, True])
def test_i12_a_commit_that_fails_is_unknown_only_where_it_may_have_happened(feed: Feed, done: bool) -> None:
    connection = feed.destination.connection()
    real, connection.raw = connection.raw, Failing(connection.raw, done=done)
    delta = feed.delta(item(1, 10, "a"))
    with pytest.raises(CdcError) as caught:
        feed.merge(delta)
    connection.raw = real
    assert isinstance(caught.value, CommitUnknown) is done
    assert names(feed) == (["a"] if done else [])
    assert feed.destination.checkpoints(feed.target)[0].next_offset == int(done)


# The way of the configuration


CONFIG = """\
pipeline: shop
source: {url: "postgresql://cdc@localhost/shop"}
kafka: {bootstrap_servers: "localhost:9092"}
connect: {url: "http://localhost:8083"}
destination: {url: "sqlite:///FILE"}
tables:
  public.items: {}
"""


def test_the_scheme_of_the_url_finds_it(tmp_path: Path) -> None:
    (tmp_path / "cdc.yaml").write_text(CONFIG.replace("FILE", str(tmp_path / "w.db")), encoding="utf-8")
    destination = open_configured(load(tmp_path / "cdc.yaml", {}))
    assert destination.fold("Straße") == destination.fold("STRAßE") != destination.fold("STRASSE")
    assert "w.db" in destination.probe()
    assert not (tmp_path / "w.db").exists()
    feed = Feed(destination, ITEMS).start()
    feed.apply(item(1, 10, "a"))
    destination.save_state(feed.target, TableState("streaming", complete_through=10, complete_at=1_700_000_000_000_000))
    found = destination.query('SELECT * FROM "_cdc.table_status"', rows_max=10).to_pylist()
    assert [(row["state"], row["is_complete"], row["applied"]) for row in found] == [("streaming", 1, 1)]
    assert found[0]["freshness_seconds"] > 0
    assert found[0]["complete_at"] == "2023-11-14 22:13:20.000000Z"
    destination.close()


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:"])
def test_a_url_without_a_file_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="file"):
        open_destination(url, pipeline="shop")
