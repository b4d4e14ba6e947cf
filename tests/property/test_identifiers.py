"""Names that a source, an event or a configuration chooses are never SQL: whatever they hold, live warehouses take them as names or not.

CDC_NAMES_EXAMPLES says how many tables of hostile names are tried on each destination.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cdc_service.core.errors import CdcError
from cdc_service.core.types import LogId, Op, TableId, TableSchema
from mergers.destinations import open_destination
from tests.conformance.harness import PARAMS, Change, Feed, Harness, PostgreSqlHarness, harness_of, parsed_statements, text

EXAMPLES = int(os.environ.get("CDC_NAMES_EXAMPLES", "6"))
CLASSIC = [
    'a"b', "a'b", "a`b", "a]b", "a\\b", 'x"; DROP TABLE canary; --', "x'; DROP TABLE canary; --", 'x"."y', "a.b", "--", "/*", "*/ x", "#",
    "$1", "$$", "$x$", "?", ":x", "%s", "%(x)s", "{}", "{0}", "{x}", ";", " ", " a ", "a\nb", "a\rb", "a\tb", "\x00", "a\x00b",
    "\x1b[31m", "select", "SELECT", "table", "user", "null", "true", "order", "rowid", "ctid", "oid", "xmin", "tableoid", "*", "a*",
    "ünïcödé ☃", "日本", "ß", "ſ", "İ", "\u200b", "\u202ea", "\ufeff", "😀", "\uffff", "e\u0301", "é", "a" * 63, "a" * 64, "ü" * 31 + "a",
    "ü" * 32, "a" * 300, "temp", "pg_temp", "pg_catalog", "information_schema", "main", "sqlite_x", "memory", "s", "t", "n", "c0", "key",
    "excluded", "new", "old", "U&\"x\"", "E'x'", "x'); COMMIT; DROP TABLE canary; --", "\\'; DROP TABLE canary", "1", "1e5", "-1",
]  # fmt: skip
NAMES = st.sampled_from(CLASSIC) | st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
VALUES = st.sampled_from(CLASSIC) | st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
COUNTER = iter(range(1_000_000))


@dataclass
class Opened:
    harness: Any
    destination: Any


@pytest.fixture(scope="module", params=[param for param in PARAMS if param.values != ("memory",)])
def opened(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Opened]:
    with harness_of(request.param, tmp_path_factory.mktemp("names"), request) as harness:
        destination = harness.open()
        canary = Feed(destination, TableSchema(TableId("public", "canary"), (text("id"),), ("id",))).start()
        canary.apply(Change(Op.CREATE, {"id": "alive"}, 1))
        yield Opened(harness, destination)
        destination.close()


def tables(harness: Harness, destination: Any) -> set[tuple[str, str]]:
    """All tables of the warehouse that are not of a session."""
    sql = {
        "duckdb": "SELECT schema_name, table_name FROM duckdb_tables() WHERE NOT temporary",
        "postgresql": """SELECT n.nspname, c.relname FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE c.relkind = 'r' AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'""",
        "sqlite": "SELECT '', name FROM sqlite_master WHERE type = 'table'",
    }[harness.name]
    return {(row[0], row[1]) for row in destination.connection().fetch(sql)}


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_names_of_tables_and_columns_are_names_or_refused(opened: Opened, data: st.DataObject) -> None:
    harness, destination = opened.harness, opened.destination
    # One of the two is new each time, so that no example meets the table of another.
    schema, table = data.draw(st.sampled_from([("{}", "t{n}"), ("s{n}", "{}")]), "which is hostile")
    hostile = data.draw(NAMES, "its name")
    schema, table = (part.replace("{n}", f"_{next(COUNTER)}") if "{n}" in part else hostile for part in (schema, table))
    names = data.draw(st.lists(NAMES, min_size=2, max_size=5, unique_by=destination.fold), "columns")
    later, kind, default = data.draw(NAMES, "added column"), data.draw(VALUES, "type of the source"), data.draw(VALUES, "default")
    made = TableSchema(TableId(schema, table), tuple(text(name, source_type=kind) for name in names), tuple(names[:1]))
    before = tables(harness, destination)
    row = {name: data.draw(VALUES, "value") for name in names}
    if harness.name == "postgresql":  # Its texts hold no NUL: such rows are parked before they come here.
        row, default = {name: value.replace("\x00", "") for name, value in row.items()}, default.replace("\x00", "")
    feed = Feed(destination, made, log=LogId("cluster", f"shop.{schema}.{table}", kind or "1"))
    expected = [row]
    with parsed_statements():
        try:
            feed.start()
            feed.apply(Change(Op.CREATE, row, 1))
            feed.apply(Change(Op.UPDATE, {**row, names[1]: "new"}, 2, unsent=tuple(names[2:])))
            expected = [{**row, names[1]: "new"}]
            if destination.fold(later) not in {destination.fold(name) for name in names}:
                feed.evolve(TableSchema(made.table, (*made.columns, text(later, source_type=kind, default=default)), made.key))
                expected = [{**expected[0], later: default}]
        except CdcError:  # An error of the service, not of a driver: the table waits, the others go on.
            pass
        else:
            found = harness.rows(destination, feed.target, feed.own).to_pylist()
            assert [{name: one[name] for name in expected[0]} for one in found] == expected
            assert destination.drift(feed.target, feed.own) == []
    grown = tables(harness, destination) - before
    assert before <= tables(harness, destination)
    assert len(grown) <= 1, "one table, and nothing else"
    assert destination.query(f"SELECT id FROM {destination.spelling.quote('public', 'canary')}", rows_max=9).to_pylist() == [
        {"id": "alive"}
    ]


@settings(max_examples=max(5, EXAMPLES // 3), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_names_of_pipelines_and_of_their_schema_are_names_or_refused(
    opened: Opened, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    harness = opened.harness
    pipeline, meta = data.draw(VALUES, "pipeline"), data.draw(NAMES, "meta_schema")
    folder: Path = tmp_path_factory.mktemp("meta")
    url = harness.url if isinstance(harness, PostgreSqlHarness) else f"{harness.name}:///{folder}/w.db"
    if isinstance(harness, PostgreSqlHarness):
        pipeline = pipeline.replace("\x00", "")
    with contextlib.suppress(CdcError), parsed_statements():
        destination = open_destination(url, pipeline=pipeline, meta_schema=meta)
        try:
            feed = Feed(destination, TableSchema(TableId("meta", f"t_{next(COUNTER)}"), (text("id"),), ("id",))).start()
            feed.apply(Change(Op.CREATE, {"id": pipeline}, 1))
            again = open_destination(url, pipeline=pipeline, meta_schema=meta)
            assert [c.next_offset for c in again.checkpoints(feed.target)] == [1, 0]
            again.close()
        finally:
            destination.close()
    opened.destination.release()
    assert opened.destination.query("SELECT 1 AS one", rows_max=1).num_rows == 1
