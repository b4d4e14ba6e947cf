"""A perfect replica of PostgreSQL tables in a DuckDB file, made without the service: what the comparison has to call equal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import duckdb
import psycopg
import pyarrow as pa
from psycopg import sql

_TYPES = {
    "int2": "SMALLINT", "int4": "INTEGER", "int8": "BIGINT", "bool": "BOOLEAN", "float4": "FLOAT", "float8": "DOUBLE", "bytea": "BLOB",
    "jsonb": "JSON", "date": "DATE", "time": "TIME", "timestamp": "TIMESTAMP", "timestamptz": "TIMESTAMPTZ", "uuid": "UUID",
    "_int4": "INTEGER[]", "_bool": "BOOLEAN[]",
}  # fmt: skip


def lower_ascii(name: str) -> str:
    """As DuckDB folds identifiers."""
    return "".join(chr(ord(c) + 32) if "A" <= c <= "Z" else c for c in name)


def target_of(source: str) -> str:
    """The target of a source table under the default pattern of targets."""
    return lower_ascii(source)


def quoted(name: str) -> str:
    """schema.table (or one name) as DuckDB reads it."""
    return ".".join('"' + part.replace('"', '""') + '"' for part in name.split(".", 1))


def replicate(url: str, warehouse: Path, tables: Sequence[str], *, soft: Sequence[str] = ()) -> None:
    """Make the targets and fill them. Those named ``soft`` get a row more that is marked as deleted."""
    with psycopg.connect(url) as source, duckdb.connect(str(warehouse)) as target:
        source.execute("SET timezone = 'UTC'; SET intervalstyle = 'iso_8601'")
        target.execute("SET timezone = 'UTC'; CREATE SCHEMA IF NOT EXISTS public")
        for table in tables:
            _copy(source, target, table, table in soft)


def _copy(source: psycopg.Connection[tuple[object, ...]], target: duckdb.DuckDBPyConnection, table: str, soft: bool) -> None:
    found = source.execute(
        """SELECT attname, CASE WHEN typtype = 'd' THEN (SELECT typname FROM pg_type b WHERE b.oid = t.typbasetype) ELSE typname END
           FROM pg_attribute JOIN pg_type t ON t.oid = atttypid
           WHERE attrelid = (quote_ident(%s) || '.' || quote_ident(%s))::regclass AND attnum > 0 AND NOT attisdropped AND attgenerated = ''
           ORDER BY attnum""",
        tuple(table.split(".", 1)),
    ).fetchall()
    read, write, columns = [], [], []
    for place, (name, base) in enumerate(found):
        kind = _TYPES.get(str(base), "VARCHAR[]" if str(base).startswith("_") else "VARCHAR")
        columns.append(f"{quoted_column(str(name))} {kind}")
        text, cast = "{}::text", f"c{place}::{kind}"
        if kind.endswith("[]"):
            text = "to_json({}::text[])::text" if kind == "VARCHAR[]" else "to_json({})::text"
            cast = f"from_json(c{place}::JSON, '[\"{kind[:-2]}\"]')"
        elif kind == "BLOB":
            text, cast = "encode({}, 'hex')", f"unhex(c{place})"
        elif kind.startswith("TIMESTAMP"):
            text = "CASE WHEN isfinite({0}) THEN ((extract(epoch FROM {0}) * 1000000)::bigint)::text ELSE {0}::text END"
            cast = f"_time(c{place})::{kind}"
        read.append(sql.SQL(text).format(sql.Identifier(str(name))))
        write.append(cast)
    target.execute(
        "CREATE OR REPLACE TEMP MACRO _time(x) AS CASE WHEN x LIKE '%infinity' THEN x::TIMESTAMP ELSE make_timestamp(x::BIGINT) END"
    )
    name = quoted(target_of(table))
    extra = ", _cdc_deleted BOOLEAN" if soft else ""
    target.execute(f"CREATE TABLE {name} ({', '.join(columns)}{extra})")
    rows = source.execute(sql.SQL("SELECT {} FROM {}").format(sql.SQL(", ").join(read), sql.Identifier(*table.split(".", 1)))).fetchall()
    texts = pa.table({f"c{place}": pa.array([row[place] for row in rows], pa.string()) for place in range(len(found))})
    target.register("texts", texts)
    target.execute(f"INSERT INTO {name} SELECT {', '.join(write)}{', false' if soft else ''} FROM texts")
    target.unregister("texts")
    if soft:
        target.execute(f"INSERT INTO {name} SELECT * REPLACE (true AS _cdc_deleted) FROM {name} LIMIT 1")


def quoted_column(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
