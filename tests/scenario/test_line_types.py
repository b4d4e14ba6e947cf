"""Every PostgreSQL type that Debezium emits, its extremes, NULL and special values, through the whole line: exact, or parked by name."""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from cdc_service.core.types import TableId, TableSchema, Target
from cdc_service.ports.destination import Destination
from deploy.local.stack import Stack
from mergers.destinations import open_destination
from tests.conformance.harness import HARNESSES
from tests.conftest import PgDatabase
from tests.support.line import Line, line
from tests.support.plain import plain
from tests.unit.test_decoder_fixtures import agrees, known_wrong

SCRIPT = Path(__file__).parents[1] / "fixtures" / "postgresql" / "torture.sql"
PREPARE = r"""
-- The connector stops at these: NaN in numeric[], NULL in arrays of enums, ltree, composites and domains; bit(3)[] is left out by option.
UPDATE t_arr SET n = '{1.50,-2}' WHERE id = 4;
UPDATE t_arr2 SET m = array_remove(m, NULL), lt = array_remove(lt, NULL), cm = array_remove(cm, NULL), p = array_remove(p, NULL);
-- What cannot be read exactly costs its whole row, so these tables come a second time without such columns.
CREATE TABLE x_bin AS SELECT id, by, b1, b8, b70 FROM t_bin;
CREATE TABLE x_arr AS SELECT id, i2, i4, i8, t, vc, n, n12, f4, f8, b, d, tz, ts, ts3, u, ch FROM t_arr;
ALTER TABLE x_bin ADD PRIMARY KEY (id);
ALTER TABLE x_arr ADD PRIMARY KEY (id);
DO $$ DECLARE t text; BEGIN
  FOR t IN SELECT relname FROM pg_class WHERE relkind = 'r' AND relname ~ '^[tx]_' LOOP
    EXECUTE format('ALTER TABLE %I REPLICA IDENTITY FULL', t);
  END LOOP;
END $$;
"""
PARKED: Mapping[str, set[int]] = {
    "t_num": {4},  # NaN in numeric(38,10)
    "t_time": {2},  # 294276 AD does not fit microseconds since 1970
    "t_bin": {1, 2, 4, 5},  # bit varying comes without its length
    "t_arr": {1, 2, 4},  # time[] is cut to milliseconds
    "x_arr": {4},  # 294276 AD in an array does not fit them either; what else the connector changes in arrays is read again
    "t_arr_nd": {1},  # arrays of two dimensions
}
"""The rows that cannot be exact, by id; those of the stream have 100 more."""
NEVER_SENT = {("t_arr2", "iv"), ("t_arr2", "mo"), ("t_arr2", "po"), ("t_arr2", "x"), ("t_arr2", "bi")}
"""Columns that are not part of the connector's events."""


@pytest.mark.parametrize(
    ("destination", "snapshot"), [("duckdb", "connector"), ("postgresql", "connector"), ("duckdb", "direct"), ("postgresql", "direct")]
)
def test_every_type_arrives_exact_or_is_parked_with_a_reason(
    stack: Stack, pg_database: PgDatabase, tmp_path: Path, destination: str, snapshot: str
) -> None:
    """I1, I19, I20, I23; whoever reads the rows that are there at the beginning."""
    setup, stream = prepare()
    with psycopg.connect(pg_database.url, autocommit=True) as connection:
        connection.execute(setup.encode())
        connection.execute(PREPARE.encode())
        found = connection.execute("SELECT relname FROM pg_class WHERE relkind = 'r' AND relname ~ '^[tx]_' ORDER BY 1").fetchall()
    names = [str(row[0]) for row in found]
    assert len(names) == 16
    options = "column.exclude.list: 'public\\.t_arr2\\.bi'"
    tables = "\n  ".join(f"public.{name}: {{}}" for name in names)
    with line(stack, pg_database, tmp_path, tables, options=options, destination=destination) as pipeline:
        text = pipeline.cdc.config.read_text()
        pipeline.cdc.config.write_text(f"{text}limits: {{quarantine_share: 1}}\ndefaults: {{snapshot: {snapshot}}}\n")
        pipeline.register()
        pipeline.execute(stream)
        pipeline.start()
        pipeline.await_complete()
        pipeline.stop()
        compared = compare(pipeline, names, HARNESSES[destination], in_snapshot=True)
        assert compared > 1_000
        assert_parked(pipeline, rounds=1)
        # Every row is written again, so that what the snapshot could not say right is right, and what is parked stays so.
        pipeline.execute("; ".join(f"UPDATE {name} SET id = id" for name in names))
        pipeline.start()
        pipeline.await_complete()
        pipeline.stop()
        assert compare(pipeline, names, HARNESSES[destination], in_snapshot=False) >= compared
        assert_parked(pipeline, rounds=2)
        pipeline.assert_ledger(
            [f"public.{name}" for name in names], parked={f"public.{name}": 4 * len(ids) for name, ids in PARKED.items()}
        )


def prepare() -> tuple[str, str]:
    """The script's two halves, without what belongs to its own connector."""
    setup, stream = SCRIPT.read_text().split("-- @setup", 1)[1].split("-- @stream", 1)
    setup = re.sub(r"create (table debezium_signal|publication)[^;]*;", "", setup)
    return setup, stream.replace("relname like 't\\_%'", "relname ~ '^[tx]_'")


def compare(pipeline: Line, names: list[str], kind: type[Any], *, in_snapshot: bool) -> int:
    """Compares each value of each row that is not parked; returns how many."""
    url = pipeline.warehouse.url.replace("${CDC_PASSWORD}", pipeline.stack.password("cdc"))
    differences, compared = [], 0
    destination = open_destination(url, pipeline=pipeline.database.name)
    with psycopg.connect(pipeline.database.url) as source, contextlib.closing(destination):
        source.execute("SET timezone = 'UTC'; SET bytea_output = 'hex'; SET lc_monetary = 'C'")
        for name in names:
            target = Target(TableId("public", name), "public", name)
            schema = destination.schemas(target)[-1]
            wanted, columns = source_rows(source, name)
            held = target_rows(kind, destination, target, schema)
            parked = {id_ + more for id_ in PARKED.get(name, set()) for more in (0, 100)}
            assert set(held) == set(wanted) - parked, name
            assert {(name, column) for column in columns if column not in schema.names} <= NEVER_SENT
            for id_, row in held.items():
                for column in schema.names:
                    fixture = name.replace("x_", "t_")
                    if known_wrong("torture", fixture, column, (id_,), in_snapshot=False) and column not in ("m", "lt", "cm", "p"):
                        continue
                    compared += 1
                    if not agrees(wanted[id_][column], row[column], schema, column):
                        differences.append((name, id_, column, wanted[id_][column], row[column]))
    assert differences == []
    return compared


def source_rows(source: psycopg.Connection[Any], name: str) -> tuple[dict[int, dict[str, str | None]], list[str]]:
    shape = source.execute(sql.SQL("SELECT * FROM {} LIMIT 0").format(sql.Identifier(name))).description or []
    columns = [column.name for column in shape]
    texts = sql.SQL(", ").join(sql.SQL("{}::text").format(sql.Identifier(column)) for column in columns)
    rows = source.execute(sql.SQL("SELECT id, {} FROM {}").format(texts, sql.Identifier(name))).fetchall()
    return {row[0]: dict(zip(columns, row[1:], strict=True)) for row in rows}, columns


def target_rows(kind: type[Any], destination: Destination, target: Target, schema: TableSchema) -> dict[int, dict[str, Any]]:
    """Values as tests.support.plain gives them."""
    found = kind.rows(kind.__new__(kind), destination, target, schema)  # It reads any warehouse, not only one that it made.
    values = [plain(found[name]) for name in schema.names]
    return {row[schema.names.index("id")]: dict(zip(schema.names, row, strict=True)) for row in zip(*values, strict=True)}


def assert_parked(pipeline: Line, *, rounds: int) -> None:
    """Each row that cannot be exact is in quarantine, whole and with a reason, and so is what came after it."""
    found = pipeline.rows("SELECT source_table, key_text, stage, message, value IS NULL, state FROM _cdc.quarantine")
    times = Counter((table, int(re.sub(r"\D", "", key))) for table, key, *_ in found)
    assert times == {(f"public.{name}", id_ + more): rounds for name, ids in PARKED.items() for id_ in ids for more in (0, 100)}
    assert all(message and not empty and state == "parked" for _, _, _, message, empty, state in found)
    decoded = [ids for name, ids in PARKED.items() if name not in ("x_arr", "t_arr_nd")]  # Those are read again first.
    assert Counter(stage for _, _, stage, *_ in found)["decode"] >= sum(len(ids) * 2 for ids in decoded)
