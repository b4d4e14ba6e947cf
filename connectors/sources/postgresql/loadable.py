# ruff: noqa: S608  (names enter statements through quoted(); places as literals)
"""Tables of PostgreSQL that are loaded by queries (ports.load), read as Arrow by the same scan that comparisons use.

What this engine adds is ``settled``: it knows which transactions are open, and a row that one of them commits late lies at or above a bound
that can be told. The highest cursor is asked first, then who is open, and only then the snapshot is taken that rows are read in:

- a cursor of time is set by a clock no earlier than its transaction began, so the bound is the beginning of the oldest one that is open,
  and never the last second, in which one may have begun that is not told yet (of time without a zone, whose clock is not known: as far
  below the highest cursor as the oldest transaction is old);
- any other cursor that grows (a sequence) is drawn under the lock on the table, so those who held one are waited for, for a moment.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any

import pyarrow as pa
from sqlalchemy import Connection, text
from sqlalchemy.engine import URL, RowMapping

from cdc_service.core.errors import CdcError, ConfigError
from cdc_service.core.logical import Kind
from cdc_service.core.types import Column, TableId
from cdc_service.databases.postgresql import unwrapped
from cdc_service.ports.load import TIMES, Fault, LoadedColumn, LoadedTable, Page, Part, Reading
from cdc_service.ports.source import SourceColumn, SourceTable
from connectors.sources.postgresql import scan as scans
from connectors.sources.postgresql import schema as learned
from connectors.sources.postgresql.catalog import qualified, quoted
from connectors.sources.postgresql.settle import SETTLE_SECONDS
from connectors.sources.postgresql.source import PostgresSource
from connectors.sources.sql.values import column as exact_column

PAGE_BYTES = 64 * 2**20
_AGAIN_SECONDS = 0.02
_LISTED = {Kind.BOOL, Kind.INT16, Kind.INT32, Kind.INT64, Kind.FLOAT32, Kind.FLOAT64, Kind.STRING, Kind.UUID}
"""Kinds whose lists are read out of JSON."""

_INDEXES = """
SELECT i.indisunique AND i.indimmediate AND i.indpred IS NULL AND count(a.attname) = i.indnkeyatts AND bool_and(a.attnotnull) AS unique,
       array_agg(a.attname::text ORDER BY k.place) AS names, bool_or(k.place = 1 AND k.attnum > 0) AS first
FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid JOIN pg_namespace n ON n.oid = c.relnamespace
CROSS JOIN LATERAL unnest(i.indkey::int2[]) WITH ORDINALITY AS k(attnum, place)
LEFT JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
WHERE n.nspname = :schema AND c.relname = :table AND i.indisvalid AND k.place <= i.indnkeyatts
GROUP BY i.indexrelid, i.indisunique, i.indimmediate, i.indpred, i.indnkeyatts
ORDER BY i.indexrelid
"""

# Nobody else's transaction is told to a role without pg_read_all_stats; that one is open is.
_NOW = "SELECT clock_timestamp()"
_OPEN = """
SELECT CAST(:now AS timestamptz) AS now, pg_is_in_recovery() AS replica, min(a.xact_start) AS oldest,
       coalesce(array_agg(l.virtualtransaction) FILTER (WHERE a.query = '<insufficient privilege>'), '{}') AS hidden
FROM pg_stat_activity a
JOIN pg_locks l ON l.pid = a.pid AND l.locktype = 'virtualxid' AND l.mode = 'ExclusiveLock' AND l.granted
WHERE a.datname = current_database() AND a.pid <> pg_backend_pid()
  AND (a.backend_type IS NULL OR a.backend_type NOT IN ('walsender', 'autovacuum worker', 'parallel worker'))
"""
_WRITERS = """
WITH root AS (SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = :schema AND c.relname = :table),
parts AS (SELECT oid FROM root UNION SELECT p.relid FROM root CROSS JOIN LATERAL pg_partition_tree(root.oid) p)
SELECT DISTINCT l.virtualtransaction AS id, l.pid FROM pg_locks l JOIN parts ON parts.oid = l.relation
WHERE l.locktype = 'relation' AND l.granted AND l.pid IS DISTINCT FROM pg_backend_pid()
  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND l.mode IN ('RowExclusiveLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')
"""
_STILL = "SELECT DISTINCT virtualtransaction FROM pg_locks WHERE virtualtransaction = ANY (:ids)"

_AGE = "coalesce(CAST(:now AS timestamptz) - CAST(:oldest AS timestamptz), interval '0')"
_CAPPED = {
    Kind.TIMESTAMPTZ: "CAST(LEAST(CAST(:high AS timestamptz), CAST(:now AS timestamptz) - interval '1 second',"
    " CAST(:oldest AS timestamptz)) AS text)",
    # A clock of any zone is at most 14 hours ahead of UTC.
    Kind.TIMESTAMP: "CAST(LEAST(CAST(:high AS timestamp), CAST(:now AS timestamptz) AT TIME ZONE 'UTC' + interval '14 hours')"
    f" - {_AGE} AS text)",
    Kind.DATE: "CAST(LEAST(CAST(:high AS date), CAST(CAST(:now AS timestamptz) AT TIME ZONE 'UTC' + interval '14 hours' AS date))"
    f" - CAST(ceil(extract(epoch FROM {_AGE}) / 86400) AS int) AS text)",
}


def open_loadable(url: URL) -> PostgresLoadable:
    return PostgresLoadable(url)


class PostgresLoadable:
    """ports.load.Loadable."""

    name = "postgresql"

    def __init__(self, url: URL) -> None:
        self.place = url.set(drivername="postgresql", username=None, password=None, query={}).render_as_string()
        self._url = url
        self._source = PostgresSource(url)

    def close(self) -> None:
        self._source.close()

    def tables(self) -> Sequence[TableId]:
        return [t.table for t in self._source.tables() if t.root is None]

    def table(self, table: TableId) -> LoadedTable | None:
        found = next(iter(self._source.tables(table)), None)
        if found is None:
            return None
        name = {"schema": table.schema, "table": table.name}
        with self._source._connected() as connection:
            columns = connection.execute(text(learned.COLUMNS), name).mappings().all()
            types = {row["oid"]: row for row in connection.execute(text(learned.TYPES), name).mappings()}
            indexes = connection.execute(text(_INDEXES), name).mappings().all()
        read = self._source._column_types([table]).get(table, {})
        by_name = {row["name"]: row for row in columns}
        live = [c for c in found.columns if not c.generated and c.name in by_name]
        return LoadedTable(
            table,
            tuple(_column(found, c, by_name[c.name], types, read[c.name]) for c in live),
            found.key,
            tuple(dict.fromkeys(tuple(i["names"]) for i in indexes if i["unique"])),
            tuple(dict.fromkeys(i["names"][0] for i in indexes if i["first"])),
        )

    def snapshot(self, reading: Reading) -> PostgresSnapshot:
        return PostgresSnapshot(self._url, self._source, reading)


def _column(table: SourceTable, column: SourceColumn, row: RowMapping, types: Mapping[int, RowMapping], read: RowMapping) -> LoadedColumn:
    """By the schema that events of the column would have, so that a table may be captured later; as far as it can be read exactly."""
    alone = SourceTable(
        *(table.table, (column,), (column.name,), "", False, table.identity, (), table.partitioned, None, True, 0, True, True)
    )
    schema = learned.schema_of(alone, [row], types)
    known = schema.columns[0] if schema is not None and schema.columns else None
    exact = known is not None and scans.form(known, read, "v") is not None
    if known is not None and known.type.element is not None and known.type.element.kind not in _LISTED:
        exact = False
    reason = "" if exact else f"a {column.type} has no exact form that a query could read"
    return LoadedColumn(column.name, known.type if known is not None and exact else None, column.nullable, column.type, reason)


class PostgresSnapshot:
    """ports.load.Snapshot."""

    def __init__(self, url: URL, source: PostgresSource, reading: Reading) -> None:
        self._reading = reading
        types = source._column_types([reading.table])
        self._types = types.get(reading.table, {})
        self._source = source
        self._settled: str | None = None
        self._held = ""
        high = None
        if reading.cursor is not None:
            with scans.TableScan(url, reading.table, types) as before:
                high = self._highest(before)
        with source._connected() as connection:
            now = connection.execute(text(_NOW)).scalar_one()
            opened = connection.execute(text(_OPEN), {"now": now}).mappings().one()
            self.at_us = int(opened["now"].timestamp() * 1_000_000)
            if high is not None:
                self._settled, self._held = self._bound(connection, high, opened)
        # Locked: to an older state, a table that somebody writes anew is empty.
        self._scan = scans.TableScan(url, reading.table, types, lock=True)
        try:
            self._high = None if reading.cursor is None else self._highest(self._scan)
        except BaseException:
            self._scan.close()
            raise

    def __enter__(self) -> PostgresSnapshot:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._scan.close()

    def _highest(self, scan: scans.TableScan) -> str | None:
        name = f"t.{quoted(self._reading.cursor or '')}"
        top = f"SELECT {name} AS c FROM {qualified(self._reading.table)} AS t WHERE {name} IS NOT NULL ORDER BY {name} DESC LIMIT 1"
        found: str | None = scan._fetch(f"SELECT (SELECT CAST(m.c AS text) FROM ({top}) AS m) AS high")["high"][0].as_py()
        return found

    def high(self) -> str | None:
        return self._high

    def settled(self) -> tuple[str | None, str]:
        return self._settled, self._held

    def _bound(self, connection: Connection, high: str, opened: RowMapping) -> tuple[str | None, str]:
        """``settled`` of the rows that the snapshot to come will show."""
        if opened["replica"]:
            return high, "a replica does not tell which transactions are open: a lookback covers late commits"
        kind = self._reading.column(self._reading.cursor or "").type.kind
        table = {"schema": self._reading.table.schema, "table": self._reading.table.name}
        writers = connection.execute(text(_WRITERS), table).mappings().all()
        # Of a prepared transaction nobody knows when it began.
        awaited = [w["id"] for w in writers if kind not in TIMES or w["pid"] is None]
        awaited += opened["hidden"] if kind in TIMES else []
        deadline = time.monotonic() + SETTLE_SECONDS
        while awaited and time.monotonic() < deadline:
            awaited = list(connection.execute(text(_STILL), {"ids": awaited}).scalars())
            time.sleep(_AGAIN_SECONDS if awaited else 0.0)
        if awaited:
            grant = "; GRANT pg_read_all_stats tells since when" if opened["hidden"] and kind in TIMES else ""
            return None, f"{len(awaited)} open transactions may still commit rows below the highest cursor{grant}"
        if kind not in TIMES:
            return high, ""
        values = {"high": high, "now": opened["now"], "oldest": opened["oldest"]}
        capped = str(connection.execute(text(f"SELECT {_CAPPED[kind]}"), values).scalar_one())
        return capped, "an open transaction may still commit rows below the highest cursor" if opened["oldest"] and capped != high else ""

    def null_cursors(self) -> int:
        return 0 if self._reading.cursor is None else self._scan.count(f"t.{quoted(self._reading.cursor)} IS NULL")

    def twins(self) -> bool:
        names = [f"t.{quoted(name)}" for name in self._reading.key]
        if self._scan.count(" OR ".join(f"{name} IS NULL" for name in names)):
            return True
        several = f"SELECT 1 AS n FROM {qualified(self._reading.table)} AS t GROUP BY {', '.join(names)} HAVING count(*) > 1 LIMIT 1"
        return bool(self._scan._fetch(several).num_rows)

    def count(self, part: Part) -> int:
        return self._scan.count(self._where(part))

    def pages(self, part: Part, rows: int) -> Iterator[Page]:
        reading = self._reading.by_key() if part.nulls else self._reading
        forms = {f"c{i}": self._form(c) for i, c in enumerate(self._reading.columns)}
        # Of each value of a place the text too; behind the row's own columns.
        forms |= {f"p{i}": f"CAST(t.{quoted(name)} AS text)" for i, name in enumerate(reading.order)}
        where = self._where(part)
        order = ", ".join(f"t.{quoted(name)}" for name in reading.order)
        statement = self._scan._select(forms, f"{f' WHERE {where}' if where else ''} ORDER BY {order}")
        waiting: list[pa.RecordBatch] = []
        for batch in self._scan._read(statement):
            waiting.append(batch)
            if sum(b.num_rows for b in waiting) >= rows or sum(b.nbytes for b in waiting) >= PAGE_BYTES:
                yield from self._cut(waiting, rows)
                waiting = []
        if waiting:
            yield from self._cut(waiting, rows)

    def _cut(self, batches: Sequence[pa.RecordBatch], rows: int) -> Iterator[Page]:
        whole = pa.Table.from_batches(batches).combine_chunks()
        for first in range(0, whole.num_rows, rows):
            yield self._page(whole.slice(first, rows))

    def _page(self, found: pa.Table) -> Page:
        own, faults, arrays = self._reading.columns, list[Fault](), []
        for place, column in enumerate(own):
            array, wrong = _typed(found.column(place).combine_chunks(), column)
            arrays.append(array)
            faults += [Fault(row, column.name, "inexact_value", f"column {column.name}: its value {why}") for row, why in wrong.items()]
        last = tuple(str(found.column(len(own) + i)[-1].as_py()) for i in range(found.num_columns - len(own)))

        def raw(row: int) -> bytes:
            values = {c.name: found.column(i)[row] for i, c in enumerate(own)}
            shown = {name: str(value) if value.is_valid else None for name, value in values.items()}
            return json.dumps(shown, ensure_ascii=False).encode()

        return Page(pa.table(arrays, names=[c.name for c in own]), last, faults, raw)

    def _form(self, column: Column) -> str:
        value = f"t.{quoted(column.name)}"
        if column.type.kind is Kind.UUID:
            return f"CAST({value} AS text)"
        form = scans.form(column, self._types[column.name], value) if column.name in self._types else None
        if form is None:
            raise CdcError(f"{self._reading.table}: its column {column.name} was altered while it was to be read", code="source_value")
        return form

    def _where(self, part: Part) -> str:
        cursor = self._reading.cursor
        if part.nulls:
            return f"t.{quoted(cursor or '')} IS NULL"
        said = [] if cursor is None else [f"t.{quoted(cursor)} IS NOT NULL"]
        if cursor is not None and part.low is not None:
            low = self._value(cursor, part.low)
            kind = self._reading.column(cursor).type.kind
            if part.lookback and kind is Kind.DATE:
                low = f"{low} - {-int(-part.lookback // 86_400)}"
            elif part.lookback:
                low = f"{low} - interval '{part.lookback:f} seconds'"
            said.append(f"t.{quoted(cursor)} >= {low}")
        if cursor is not None and part.until is not None:
            said.append(f"t.{quoted(cursor)} < {self._value(cursor, part.until)}")
        if part.after is not None:
            order = self._reading.order
            names = ", ".join(f"t.{quoted(name)}" for name in order)
            values = ", ".join(self._value(name, value) for name, value in zip(order, part.after, strict=True))
            said.append(f"({names}) > ({values})")
        return " AND ".join(said)

    def _value(self, name: str, value: str) -> str:
        """Without the column's own precision, to which the database would round what a person wrote."""
        type_ = self._types[name]
        plain = type_["type"] if type_["base"] == "enum" else f"{type_['type_schema']}.{quoted(type_['base'])}"
        return f"CAST({scans.literal(value)} AS {plain})"

    def written(self, cursor: str) -> str:
        name = self._reading.cursor or ""
        try:
            return str(self._scan._fetch(f"SELECT CAST({self._value(name, cursor)} AS text) AS c")["c"][0].as_py())
        except CdcError as error:
            hint = f"write it as a {self._types[name]['type']} of the database"
            raise ConfigError(f"{cursor!r} is no value of {name}", hint=hint, code="usage") from error


def _typed(array: pa.Array, column: Column) -> tuple[pa.Array, Mapping[int, str]]:
    """What the driver read in the column's own type; text where that is how it was read."""
    array = unwrapped(array.storage if isinstance(array, pa.ExtensionArray) else array)
    wanted = column.type.arrow
    if array.type == wanted:
        return array, {}
    if column.type.element is not None:
        return _lists(array, column)
    if not pa.types.is_string(array.type):
        return array.cast(wanted), {}
    try:
        return array.cast(wanted), {}
    except pa.ArrowException:
        return exact_column(array.to_pylist(), column.type)


def _lists(array: pa.Array, column: Column) -> tuple[pa.Array, Mapping[int, str]]:
    element, found, wrong = column.type.element, list[Any](), dict[int, str]()
    assert element is not None
    for place, said in enumerate(array.to_pylist()):
        read = None if said is None else json.loads(said)
        inner, bad = exact_column(read, element) if isinstance(read, list) else (None, {})
        if bad or isinstance(read, str):
            wrong[place] = f"is no list of {element}"
        found.append(None if inner is None or bad else inner.to_pylist())
    return pa.array(found, column.type.arrow), wrong
