"""Row for row, column for column: is a table of the warehouse equal to the PostgreSQL table that it was replicated from?

Both sides are read whole and turned into one canonical text per value, by rules that know nothing of how the service works.
For tables that fit in memory. Not foreseen: dates before Christ, char(n), arrays of floats or of bytes.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Protocol

import duckdb
import psycopg
from psycopg import sql

Row = tuple[object, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """One table on both sides: rows there, and the keys that are missing, too many, or differ (with the columns that do)."""

    table: str
    rows_source: int
    rows_destination: int
    missing: tuple[Row, ...]
    extra: tuple[Row, ...]
    different: Mapping[Row, tuple[str, ...]]
    columns: int
    unknown_columns: tuple[str, ...]

    @property
    def equal(self) -> bool:
        """Every row and every column of the source is there, and nothing else."""
        return not (self.missing or self.extra or self.different or self.unknown_columns) and self.rows_source == self.rows_destination

    def __str__(self) -> str:
        if self.equal:
            return f"{self.table}: equal, {self.rows_source} rows x {self.columns} columns"
        columns: dict[str, int] = {}
        for names in self.different.values():
            for name in names:
                columns[name] = columns.get(name, 0) + 1
        return (
            f"{self.table}: {self.rows_source} rows in the source, {self.rows_destination} in the warehouse; missing {len(self.missing)}"
            f" {list(self.missing[:3])}, extra {len(self.extra)} {list(self.extra[:3])}, different {len(self.different)}"
            f" {list(self.different)[:3]} in {columns}; columns not in the warehouse: {list(self.unknown_columns)}"
        )


@dataclass(frozen=True, slots=True)
class _Column:
    name: str
    base: str  # PostgreSQL's type below all domains; "[numeric]" and "[]" for arrays.


class _Warehouse(Protocol):
    """The side that was replicated to."""

    def columns(self, schema: str, table: str) -> set[str]: ...
    def rows(self, schema: str, table: str, columns: Sequence[_Column], *, alive: bool) -> list[Row]:
        """The columns' values in the form that the source's are read in; ``alive`` leaves out rows marked as deleted."""
        ...


class _DuckDb:
    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        self._connection = connection

    def columns(self, schema: str, table: str) -> set[str]:
        sql = "SELECT column_name FROM information_schema.columns WHERE table_schema = ? AND table_name = ?"
        return {row[0] for row in self._connection.execute(sql, [schema, table]).fetchall()}

    def rows(self, schema: str, table: str, columns: Sequence[_Column], *, alive: bool) -> list[Row]:
        wanted = ", ".join(_DESTINATION.get(column.base, "{}::VARCHAR").format(_quoted(column.name)) for column in columns)
        where = "WHERE NOT coalesce(_cdc_deleted, false)" if alive else ""
        found: list[Row] = self._connection.execute(f"SELECT {wanted} FROM {_quoted(schema)}.{_quoted(table)} {where}").fetchall()
        return found


class _PostgreSql:
    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        connection.execute(_SESSION)
        self._connection = connection

    def columns(self, schema: str, table: str) -> set[str]:
        sql = "SELECT column_name FROM information_schema.columns WHERE table_schema = %s AND table_name = %s"
        return {row[0] for row in self._connection.execute(sql, [schema, table]).fetchall()}

    def rows(self, schema: str, table: str, columns: Sequence[_Column], *, alive: bool) -> list[Row]:
        bases = {column.name: column.base for column in _catalog(self._connection, schema, table)[0]}
        wanted = sql.SQL(", ").join(sql.SQL(_SOURCE.get(bases[c.name], "{}::text")).format(sql.Identifier(c.name)) for c in columns)
        where = sql.SQL("WHERE NOT coalesce(_cdc_deleted, false)" if alive else "")
        return self._connection.execute(sql.SQL("SELECT {} FROM {} {}").format(wanted, sql.Identifier(schema, table), where)).fetchall()


def compare(pg_url: str, warehouse: Path | str, tables: Mapping[str, str]) -> list[Comparison]:
    """Compare each source table (schema.table, it has a key) with its target (schema.table of ``warehouse``: a DuckDB file that nobody has
    open, or the URL of a PostgreSQL database)."""
    with psycopg.connect(pg_url) as source, contextlib.ExitStack() as opened:
        source.execute(_SESSION)
        destination: _Warehouse
        if isinstance(warehouse, Path):
            destination = _DuckDb(opened.enter_context(duckdb.connect(str(warehouse), read_only=True)))
        else:
            destination = _PostgreSql(opened.enter_context(psycopg.connect(warehouse)))
        return [_compare_table(source, destination, name, target) for name, target in tables.items()]


def _compare_table(source: psycopg.Connection[Any], destination: _Warehouse, name: str, target: str) -> Comparison:
    schema, table = name.split(".", 1)
    columns, key = _catalog(source, schema, table)
    target_schema, target_table = target.split(".", 1)
    present = destination.columns(target_schema, target_table)
    shared = [column for column in columns if column.name in present]
    unknown = tuple(column.name for column in columns if column.name not in present)
    if not set(key) <= present:
        return Comparison(name, -1, -1, (), (), {}, len(columns), unknown)
    chosen = sql.SQL(", ").join(sql.SQL(_SOURCE.get(column.base, "{}::text")).format(sql.Identifier(column.name)) for column in shared)
    from_source = sql.SQL("SELECT {} FROM {}").format(chosen, sql.Identifier(schema, table))
    keys = [index for index, column in enumerate(shared) if column.name in key]
    left_rows = source.execute(from_source).fetchall()
    right_rows = destination.rows(target_schema, target_table, shared, alive="_cdc_deleted" in present)
    left = _by_key(left_rows, shared, keys)
    right = _by_key(right_rows, shared, keys)
    different = {}
    for at in left.keys() & right.keys():
        if left[at] != right[at]:
            different[at] = tuple(c.name for c, one, other in zip(shared, left[at], right[at], strict=True) if one != other)
    missing, extra = tuple(sorted(left.keys() - right.keys(), key=str)), tuple(sorted(right.keys() - left.keys(), key=str))
    return Comparison(name, len(left_rows), len(right_rows), missing, extra, different, len(columns), unknown)


def _catalog(source: psycopg.Connection[Any], schema: str, table: str) -> tuple[list[_Column], list[str]]:
    """Columns in their order, with the base type of domains, and the primary key's columns. Generated columns are never replicated."""
    rows = source.execute(
        """WITH RECURSIVE base AS (
               SELECT oid, oid AS top, typbasetype, typcategory, typname FROM pg_type
               UNION ALL
               SELECT t.oid, b.top, t.typbasetype, t.typcategory, t.typname FROM base b JOIN pg_type t ON t.oid = b.typbasetype)
           SELECT a.attname, CASE WHEN b.typcategory <> 'A' THEN b.typname::text
                      WHEN (SELECT typelem FROM pg_type e WHERE e.oid = b.oid) = 'numeric'::regtype THEN '[numeric]' ELSE '[]' END,
                  coalesce(a.attnum = ANY (i.indkey), false)
           FROM pg_attribute a
           JOIN base b ON b.top = a.atttypid AND b.typbasetype = 0
           LEFT JOIN pg_index i ON i.indrelid = a.attrelid AND i.indisprimary
           WHERE a.attrelid = (quote_ident(%s) || '.' || quote_ident(%s))::regclass
             AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
           ORDER BY a.attnum""",
        (schema, table),
    ).fetchall()
    return [_Column(row[0], row[1]) for row in rows], [row[0] for row in rows if row[2]]


_SESSION = "SET timezone = 'UTC'; SET intervalstyle = 'iso_8601'; SET bytea_output = 'hex'"
_SOURCE: Mapping[str, Any] = {
    "float4": "{}::float8",
    "float8": "{}::float8",
    "bytea": "encode({}, 'hex')",
    "inet": "abbrev({})",  # A cast to text would write the whole address's /32, which its output function leaves out.
    "[]": "to_json({})::text",
    "[numeric]": "to_json({}::text[])::text",
    "timestamp": "CASE WHEN isfinite({0}) THEN ((extract(epoch FROM {0}) * 1000000)::bigint)::text ELSE {0}::text END",
    "timestamptz": "CASE WHEN isfinite({0}) THEN ((extract(epoch FROM {0}) * 1000000)::bigint)::text ELSE {0}::text END",
}
_DESTINATION: Mapping[str, str] = {
    "float4": "{}::DOUBLE",
    "float8": "{}::DOUBLE",
    "bytea": "lower(hex({}))",
    "[]": "to_json({})::VARCHAR",
    "[numeric]": "to_json({}::VARCHAR[])::VARCHAR",
    "timestamp": "CASE WHEN isfinite({0}) THEN epoch_us({0})::VARCHAR ELSE {0}::VARCHAR END",
    "timestamptz": "CASE WHEN isfinite({0}) THEN epoch_us({0})::VARCHAR ELSE {0}::VARCHAR END",
}
_PARSED = frozenset({"[]", "[numeric]", "interval", "float4", "float8"})


def _by_key(rows: Sequence[Row], columns: Sequence[_Column], keys: Sequence[int]) -> dict[Row, Row]:
    parsed = [index for index, column in enumerate(columns) if column.base in _PARSED]
    numbers = [index for index in keys if columns[index].base == "numeric"]
    found: dict[Row, Row] = {}
    for row in rows:
        if parsed or numbers:
            values = list(row)
            for index in parsed:
                values[index] = _parsed(columns[index].base, values[index])
            for index in numbers:  # 1.50 and 1.5 are one key.
                values[index] = Decimal(str(values[index])).normalize()
            row = tuple(values)
        found[tuple(row[index] for index in keys)] = row
    return found


def _parsed(base: str, value: object) -> object:
    """Arrays without their spacing, floats by their bits (every NaN is one), intervals as months, days and microseconds."""
    if value is None:
        return None
    if isinstance(value, float):
        return "NaN" if math.isnan(value) else struct.pack(">d", value).hex()
    text = str(value)
    if base != "interval":
        return json.dumps(json.loads(text))
    months = days = micros = 0
    date, _, time = text.partition("T")
    for number, unit in re.findall(r"(-?[\d.]+)([YMWD])", date):
        months += int(number) * {"Y": 12, "M": 1}.get(unit, 0)
        days += int(number) * {"W": 7, "D": 1}.get(unit, 0)
    for number, unit in re.findall(r"(-?[\d.]+)([HMS])", time):
        micros += round(float(number) * {"H": 3_600_000_000, "M": 60_000_000, "S": 1_000_000}[unit])
    return (months, days, micros)


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
