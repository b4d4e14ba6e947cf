"""The judges of the line are judged first: the load does what it says, the comparison finds every kind of difference in every column."""

from __future__ import annotations

from pathlib import Path

import duckdb
import psycopg

from deploy.local.compare import Comparison, compare
from deploy.local.stack import Stack
from tests.conftest import PgDatabase
from tests.support import hostile
from tests.support.replica import quoted, quoted_column, replicate, target_of

TARGETS = {table: target_of(table) for table in hostile.TABLES}


def one(url: str, warehouse: Path, table: str) -> Comparison:
    (found,) = compare(url, warehouse, {table: TARGETS[table]})
    return found


def test_the_load_makes_every_kind_of_change_and_loses_no_time_to_conflicts(stack: Stack, pg_database: PgDatabase) -> None:
    scale = hostile.Scale(rows=400, docs=60, operations=2_500, truncates=2)
    hostile.seed(pg_database.url, scale)
    with psycopg.connect(pg_database.url) as connection:
        numbers = range(200)
        words = [row[0] for row in connection.execute("SELECT word(i) FROM unnest(%s::int[]) i", (list(numbers),)).fetchall()]
    assert words == [hostile.word(number) for number in numbers]
    assert len(set(words)) == len(words)
    load = hostile.Load(pg_database.url, scale, seed=1)
    report = load.run()
    assert load.committed == report.statements >= scale.operations
    assert set(report.kinds) >= {*hostile.KINDS, "truncate"}
    assert report.kinds["truncate"] == 2
    assert report.rolled_back > 0
    assert report.rows > report.statements / 2


def test_the_comparison_finds_a_difference_in_every_column_and_no_other(stack: Stack, pg_database: PgDatabase, tmp_path: Path) -> None:
    scale = hostile.Scale(rows=120, docs=60, operations=1_000, truncates=0)
    hostile.seed(pg_database.url, scale)
    hostile.Load(pg_database.url, scale, seed=2).run()
    warehouse = tmp_path / "w.duckdb"
    replicate(pg_database.url, warehouse, hostile.TABLES, soft=["public.soft"])
    before = compare(pg_database.url, warehouse, TARGETS)
    assert [str(found) for found in before if not found.equal] == []
    assert min(found.rows_source for found in before) > 20
    for table in hostile.TABLES:
        plant_in_columns(pg_database.url, warehouse, table)
        plant_in_rows(pg_database.url, warehouse, table)


KEYS = {
    "public.doc": ["id"],
    "public.pair": ["a", "b"],
    "public.whole": ["id"],
    "public.Größe-Order": ["Select", "пример"],
    "public.part": ["region", "id"],
    "public.soft": ["k", "t"],
}


def plant_in_columns(url: str, warehouse: Path, table: str) -> None:
    """In each column one row's value becomes NULL, and another's becomes that of a third; each must be found, with its column alone."""
    name, planted = quoted(TARGETS[table]), []
    with duckdb.connect(str(warehouse)) as there:
        there.execute(f"CREATE TABLE kept AS FROM {name}")
        columns = [row[0] for row in there.execute(f"SELECT * FROM {name} LIMIT 0").description or []]
        used: set[int] = set()
        for column in columns:
            if column in KEYS[table] or column == "_cdc_deleted":
                continue
            value = quoted_column(column)
            alive = "NOT _cdc_deleted" if table == "public.soft" else "true"
            wanted = f"SELECT rowid, {value}::VARCHAR FROM kept WHERE {alive} AND {value} IS NOT NULL ORDER BY rowid"
            found = there.execute(wanted).fetchall()
            free = [(row, text) for row, text in found if row not in used]
            there.execute(f"UPDATE {name} SET {value} = NULL WHERE rowid = ?", [free[0][0]])
            used.add(free[0][0])
            planted.append(column)
            if pair := next(((row, other) for row, text in free[1:] for other, else_ in found if else_ != text), None):
                there.execute(f"UPDATE {name} SET {value} = (SELECT {value} FROM kept WHERE rowid = ?) WHERE rowid = ?", [pair[1], pair[0]])
                used.add(pair[0])
                planted.append(column)
    found_ = one(url, warehouse, table)
    assert sorted(found_.different.values()) == sorted((column,) for column in planted)
    assert not found_.equal
    assert not found_.missing
    assert not found_.extra
    with duckdb.connect(str(warehouse)) as there:
        there.execute(f"CREATE OR REPLACE TABLE {name} AS FROM kept; DROP TABLE kept")


def plant_in_rows(url: str, warehouse: Path, table: str) -> None:
    """A row is lost, a row is there twice, a column is not there."""
    name = quoted(TARGETS[table])
    alive = "NOT _cdc_deleted" if table == "public.soft" else "true"
    chosen = f"rowid = (SELECT min(rowid) FROM {name} WHERE {alive})"
    with duckdb.connect(str(warehouse)) as there:
        there.execute(f"CREATE TABLE kept AS FROM {name}")
    for statement in (
        f"DELETE FROM {name} WHERE {chosen}",
        f"INSERT INTO {name} SELECT * FROM {name} WHERE {chosen}",
        f"ALTER TABLE {name} DROP COLUMN v" if table in ("public.pair", "public.soft") else f"TRUNCATE {name}",
        f"UPDATE {name} SET _cdc_deleted = NOT _cdc_deleted WHERE {chosen}" if table == "public.soft" else f"TRUNCATE {name}",
    ):
        with duckdb.connect(str(warehouse)) as there:
            there.execute(statement)
        assert not one(url, warehouse, table).equal, statement
        with duckdb.connect(str(warehouse)) as there:
            there.execute(f"CREATE OR REPLACE TABLE {name} AS FROM kept")
    with duckdb.connect(str(warehouse)) as there:
        there.execute("DROP TABLE kept")
