"""`cdc explain` with a key that is none of its type: a mistake in the command that names the type, and no fault of the source."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from cdc_service.cli import exits
from cdc_service.core.errors import ConfigError
from cdc_service.core.evolve import CreateTable
from cdc_service.core.types import TableId, Target
from cdc_service.ports.source import Source
from cdc_service.runtime.comparing.change_log import Sources
from connectors.sources import open_source
from deploy.local.process import StackError
from deploy.local.stack import Stack
from mergers.destinations.duckdb import open as open_duckdb
from reconcile.report.key_history import life
from reconcile.run import Subject
from tests.support.line import database, line
from tests.support.still import StillLog

TABLE = TableId("public", "t")


@pytest.fixture(scope="module")
def source(postgres: Stack) -> Iterator[tuple[str, Source]]:
    name = f"keys_{uuid.uuid4().hex[:12]}"
    url = postgres.create_database(name)
    with psycopg.connect(url) as connection:
        connection.execute("CREATE TYPE mood AS ENUM ('sad', 'glad')")
        connection.execute("CREATE COLLATION any_case (provider = icu, locale = 'und-u-ks-level2', deterministic = false)")
    opened = open_source(url)
    yield url, opened
    opened.close()
    postgres.drop_database(name)


KEYS = {
    "uuid": ("6f1e2d3c-0000-4000-8000-000000000001", ["1", "x", ""]),
    "integer": ("17", ["1.5", "x", "99999999999", "1e400", "NaN", ""]),
    "smallint": ("-3", ["40000", "0x10"]),
    "bigint": ("9223372036854775807", ["9223372036854775808", "9223372036854775807.5"]),
    "numeric(6,2)": ("-12.50", ["1.234", "NaN", "1,5", "123456"]),
    "numeric": ("1.50", ["x", "1,5"]),
    "boolean": ("true", ["2.5", "maybe"]),
    "date": ("2024-02-29", ["2023-02-29", "yesterday at noon"]),
    "time without time zone": ("12:34:56.789", ["25:61"]),
    "timestamp without time zone": ("2024-05-06 07:08:09.123456", ["2024-13-01"]),
    "timestamp with time zone": ("2024-05-06 07:08:09.123456+00", ["soon"]),
    "bytea": ("00ff", ["0", "zz", "\\x00ff"]),
    "mood": ("glad", ["angry", "Glad"]),
    "inet": ("10.3.0.7", ["10.3.0", "host"]),
    "macaddr": ("08:00:2b:01:02:03", ["08:00"]),
    "character varying(3)": ("abc", ["a\0"]),
}


@pytest.mark.parametrize("type_", KEYS)
def test_what_is_no_value_of_the_keys_type_is_told_as_such(source: tuple[str, Source], tmp_path: Path, type_: str) -> None:
    right, wrong = KEYS[type_]
    with explained(source, tmp_path, type_, right) as subject:
        row = life(subject, [right])["source"]["row"]
        assert row is not None
        assert row["v"] == "7"
        for typed in wrong:
            with pytest.raises(ConfigError) as caught:
                life(subject, [typed])
            assert caught.value.code == "usage"
            assert f"the key of public.t is id ({type_}): " in caught.value.message
            assert repr(typed) in caught.value.message


@pytest.mark.parametrize(("type_", "right", "typed"), [("numeric", "1.50", "1.5"), ("integer", "17", "017")])
def test_a_number_is_one_key_however_it_is_typed(source: tuple[str, Source], tmp_path: Path, type_: str, right: str, typed: str) -> None:
    with explained(source, tmp_path, type_, right) as subject:
        asked = list[object]()
        history = subject.log.history
        subject.log.history = lambda keys: (asked.extend(keys), history(keys))[1]  # type: ignore[method-assign]
        assert life(subject, [typed])["source"]["row"] == {"id": right, "v": "7"}
        assert asked == [f'["{right}"]']


@pytest.mark.parametrize(("type_", "typed"), [("varchar(3)", "abcd"), ("text COLLATE any_case", "ABC")])
def test_a_text_that_only_resembles_a_key_is_not_that_key(source: tuple[str, Source], tmp_path: Path, type_: str, typed: str) -> None:
    with explained(source, tmp_path, type_, "abc") as subject:
        assert life(subject, ["abc"])["source"]["row"] == {"id": "abc", "v": "7"}
        assert life(subject, [typed])["source"]["row"] is None


class explained:  # noqa: N801
    """A table with one row of that key, at the source alone."""

    def __init__(self, source: tuple[str, Source], folder: Path, type_: str, key: str) -> None:
        url, opened = source
        with psycopg.connect(url) as connection:
            value = f"\\x{key}" if type_ == "bytea" else key
            connection.execute(f"DROP TABLE IF EXISTS t; CREATE TABLE t (id {type_} PRIMARY KEY, v int)".encode())
            connection.execute(f"INSERT INTO t VALUES (CAST('{value}' AS {type_.split(' COLLATE')[0]}), 7)".encode())
        (table,) = opened.tables(TABLE)
        schema = opened.schema(table, {})
        assert schema is not None
        target = Target(TABLE, "public", "t")
        self._warehouse = warehouse = open_duckdb(f"duckdb:///{folder}/w.duckdb", pipeline="p", meta_schema="_cdc", options={})
        warehouse.prepare()
        warehouse.evolve(target, [CreateTable(schema)], schema)
        sources = Sources(opened, opened)
        self._subject = Subject(
            target, schema, sources, lambda: warehouse.view(target, schema), StillLog(), lambda _: True, 1, lambda *_: (), frozenset()
        )

    def __enter__(self) -> Subject:
        return self._subject

    def __exit__(self, *_: object) -> None:
        self._warehouse.close()


def test_the_command_says_so(stack: Stack, tmp_path: Path) -> None:
    with database(stack) as made, line(stack, made, tmp_path, "public.t: {}") as pipeline:
        pipeline.execute("CREATE TABLE t (id uuid PRIMARY KEY, n int); INSERT INTO t VALUES (gen_random_uuid(), 1)")
        pipeline.register()
        pipeline.catch_up()
        said = rf"(?s)ended with {exits.USAGE}:.*usage.*the key of public.t is id \(uuid\): '1' is no uuid"
        with pytest.raises(StackError, match=said):
            pipeline.call("explain", "public.t", "1")
