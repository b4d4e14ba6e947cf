"""The contract of sources (ports.source.Source), one suite for all that are found, on their real servers.

A source's file without a harness here fails the suite. What only one source has is tested beside it (tests/scenario).
"""

from __future__ import annotations

import pkgutil
import socket
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib.util import find_spec
from typing import Protocol

import psycopg
import pyarrow as pa
import pytest
from psycopg import sql

import connectors.sources
from cdc_service.core.errors import ConfigError, Unavailable
from cdc_service.core.names import Names
from cdc_service.core.types import TableId
from cdc_service.ports.source import Identity, Source, SourceTable
from connectors.sources import open_source, source_name
from deploy.local.stack import Stack

NAMES = ("plain", "Mixed", "mixed", "select", "with space", "comma,here", "dot.here", "Größe", "日本", "per%cent", "it's", "back\\slash")


class Harness(Protocol):
    """One empty database of a real server."""

    url: str
    elsewhere: str
    """A URL at which nothing listens."""
    schema: str
    """Where a table goes whose name is not qualified."""

    def execute(self, *statements: str) -> None: ...
    def quote(self, name: str) -> str: ...
    def close(self) -> None: ...


class PostgreSqlSource:
    schema = "public"

    def __init__(self, server: Stack) -> None:
        self._server = server
        self._name = f"t_{uuid.uuid4().hex[:12]}"
        self._owner = server.create_database(self._name)
        self.url = server.pg_url_for(self._name)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.elsewhere = f"postgresql://cdc:x@127.0.0.1:{free.getsockname()[1]}/{self._name}"

    def execute(self, *statements: str) -> None:
        with psycopg.connect(self._owner, autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement.encode())

    def quote(self, name: str) -> str:
        return sql.Identifier(name).as_string()

    def close(self) -> None:
        self._server.drop_database(self._name)


HARNESSES: Mapping[str, type[PostgreSqlSource]] = {"postgresql": PostgreSqlSource}
FOUND = {m.name for m in pkgutil.iter_modules(connectors.sources.__path__) if find_spec(f"connectors.sources.{m.name}.source")}
"""Those whose log is captured; what is only loaded has tests/conformance/test_loading.py."""


def test_every_source_has_a_harness() -> None:
    assert set(HARNESSES) == FOUND


@pytest.fixture(params=sorted(HARNESSES))
def harness(request: pytest.FixtureRequest, postgres: Stack) -> Iterator[Harness]:
    made = HARNESSES[request.param](postgres)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def source(harness: Harness) -> Iterator[Source]:
    opened = open_source(harness.url)
    yield opened
    opened.close()


def tables(source: Source) -> dict[str, SourceTable]:
    return {t.table.name: t for t in source.tables()}


def test_a_source_is_found_by_its_url(harness: Harness, source: Source) -> None:
    assert source_name(harness.url) in FOUND
    assert source.name == source_name(harness.url)
    assert source.connector_class.startswith("io.debezium.connector.")


def test_the_catalog_tells_tables_keys_and_what_the_log_says_of_old_rows(harness: Harness, source: Source) -> None:
    harness.execute(
        "CREATE TABLE keyed(a int, b varchar(20) NOT NULL, c int NOT NULL, PRIMARY KEY (c, b))",
        "CREATE TABLE bare(a int)",
        "INSERT INTO keyed VALUES (1, 'x', 2)",
    )
    found = tables(source)
    assert list(found) == sorted(found)
    keyed, bare = found["keyed"], found["bare"]
    assert source.tables(keyed.table) == (keyed,)
    assert source.tables(TableId(harness.schema, "none")) == ()
    assert keyed.table == TableId(harness.schema, "keyed")
    assert [c.name for c in keyed.columns] == ["a", "b", "c"]
    assert [c.nullable for c in keyed.columns] == [True, False, False]
    assert (keyed.key, keyed.identity) == (("c", "b"), Identity.KEY)
    assert (bare.key, bare.identity_columns) == ((), ())
    assert source.refusal(keyed) is None
    refused = source.refusal(bare)
    assert refused is not None
    assert refused.failed
    assert source.refusal(replace(bare, identity=Identity.FULL, identity_columns=("a",), log=True)) is None


@pytest.mark.parametrize("name", NAMES)
def test_a_notification_means_exactly_its_table(harness: Harness, source: Source, name: str) -> None:
    harness.execute(f"CREATE TABLE {harness.quote(name)}(id int PRIMARY KEY)")
    assert list(tables(source)) == [name]
    told = source.collection(TableId(harness.schema, name))
    assert [n for n in NAMES if source.names_collection(told, TableId(harness.schema, n))] == [name]


def test_positions_grow_with_commits_and_read_back_as_they_are_written(harness: Harness, source: Source) -> None:
    positions = [source.position()]
    for i in range(3):
        harness.execute(f"CREATE TABLE t{i}(id int PRIMARY KEY)", f"INSERT INTO t{i} VALUES (1)")
        positions.append(source.position())
    assert positions == sorted(set(positions))
    assert [source.parse_position(source.format_position(p)) for p in positions] == positions
    assert source.parse_position(str(positions[0])) == positions[0]
    for wrong in ("", "nowhere", "-1"):
        with pytest.raises(ConfigError) as caught:
            source.parse_position(wrong)
        assert caught.value.message


def test_rows_are_read_again_in_the_order_asked_for(harness: Harness, source: Source) -> None:
    harness.execute(
        "CREATE TABLE t(a int, b varchar(20), v varchar(50), n int, PRIMARY KEY (a, b))",
        "INSERT INTO t VALUES (1, 'x', 'one', NULL), (1, 'y', 'it''s', 7), (2, 'x', '', 8)",
    )
    keys = pa.table({"a": pa.array([2, 1, 9, 1], pa.int32()), "b": ["x", "y", "x", "x"]})
    again = source.reread(TableId(harness.schema, "t"), keys, ["v", "n"])
    assert again.found.to_pylist() == [True, True, False, True]
    assert again.rows.select(["v", "n"]).to_pydict() == {"v": ["", "it's", None, "one"], "n": ["8", "7", None, None]}
    harness.execute("UPDATE t SET n = 9")
    assert again.position < source.position()


def test_what_older_rows_hold_in_an_added_column(harness: Harness, source: Source) -> None:
    harness.execute(
        "CREATE TABLE t(id int PRIMARY KEY)",
        "INSERT INTO t VALUES (1)",
        "ALTER TABLE t ADD COLUMN bare int",
        "ALTER TABLE t ADD COLUMN seven int DEFAULT 7",
        "ALTER TABLE t ADD COLUMN word varchar(20) DEFAULT 'it''s'",
    )
    found = {name: source.fill_of_added_column(TableId(harness.schema, "t"), name) for name in ("bare", "seven", "word")}
    assert {name: (fill.known, fill.text) for name, fill in found.items()} == {
        "bare": (True, None),
        "seven": (True, "7"),
        "word": (True, "it's"),
    }


def test_a_pipeline_that_was_never_registered_holds_and_releases_nothing(harness: Harness, source: Source) -> None:
    names = Names("never", "never")
    assert source.hold(names) is None
    assert list(source.release(names)) == []
    assert source.registered({}) == frozenset()
    progress = source.progress([])
    assert progress.position is None
    assert not progress.incremental


def test_a_server_that_is_away_is_said_to_be_and_nothing_else(harness: Harness) -> None:
    away = open_source(harness.elsewhere)
    for ask in (away.tables, away.position, lambda: away.hold(Names("shop", "shop"))):
        with pytest.raises(Unavailable) as caught:
            ask()
        assert caught.value.hint
        assert "x@" not in caught.value.message
    away.close()


def test_a_closed_source_opens_again_with_the_next_call(source: Source) -> None:
    first = source.position()
    source.close()
    source.close()
    assert source.position() >= first
