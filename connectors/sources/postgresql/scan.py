# ruff: noqa: S608  (names enter statements through quoted(); keys as literals that the driver quotes)
"""Reads whole tables of PostgreSQL as Arrow, all in one snapshot, for reconciliation.

Promises: what ``TableScan`` reads of its table was committed at or before its ``position``, and it is one snapshot (ports.reader.Scan). The
driver reads COPY's binary form (https://arrow.apache.org/adbc/current/driver/postgresql.html), which costs the server least.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any

import adbc_driver_postgresql.dbapi as adbc
import pyarrow as pa
from adbc_driver_manager import Error as AdbcError
from psycopg import sql as psql
from psycopg.conninfo import make_conninfo
from sqlalchemy.engine import URL

from cdc_service.core.canonical import digests
from cdc_service.core.errors import CdcError, Unavailable
from cdc_service.core.logical import Kind
from cdc_service.core.types import Column, TableId
from cdc_service.databases.postgresql import CANONICAL, unwrapped
from connectors.sources.postgresql.catalog import COMPARABLE_ELEMENTS, event_text, key_parameter, qualified, quoted
from connectors.sources.postgresql.findings import refused_row_security
from connectors.sources.postgresql.settings import session_options

Types = Mapping[str, Mapping[Any, Any]]
"""Rows of the catalog's COLUMN_TYPES by column."""

BATCH_BYTES = 4 * 2**20
AHEAD = 3
SPLIT_PAGES = 4_000
"""From so many pages on (of 8 kB) a second session is worth its while."""
PART_PAGES = 4_000
"""What one statement sums up, so that it can be stopped, counted and slowed down in between."""
NATIVE = {
    Kind.BOOL: {"bool"},
    Kind.INT16: {"int2"},
    Kind.INT32: {"int2", "int4"},
    Kind.INT64: {"int2", "int4", "int8"},
    Kind.FLOAT32: {"float4"},
    Kind.FLOAT64: {"float4", "float8"},
    Kind.STRING: {"text", "varchar", "bpchar"},
    Kind.BYTES: {"bytea"},
    Kind.DATE: {"date"},
    Kind.TIME: {"time"},
    Kind.TIMESTAMP: {"timestamp"},
    Kind.TIMESTAMPTZ: {"timestamptz"},
    Kind.UUID: {"uuid"},
}
"""Types that the driver reads exactly."""


def form(column: Column, type_: Mapping[Any, Any], value: str) -> str | None:
    """The SQL expression by which ``value`` (of the catalog's type) is read for ``column``; None where there is no exact one."""
    kind, base, array = column.type.kind, type_["base"], type_["category"] == "A"
    if not array and base in NATIVE.get(kind, ()):
        return value
    if not array and kind is Kind.INT64 and base == "oid":
        return f"CAST({value} AS int8)"
    if kind in (Kind.NUMERIC, Kind.DECIMAL) and base == "numeric":  # The driver would make text of it too, at twice the price.
        return f"CAST({value} AS text)"
    if (kind is Kind.ARRAY) != array or kind not in _AS_TEXT or (array and base not in COMPARABLE_ELEMENTS):
        return None
    return event_text(base, type_["category"], value, type_["type_schema"])


_AS_TEXT = {Kind.STRING, Kind.UUID, Kind.JSON, Kind.INTERVAL, Kind.ARRAY}


class _Transaction:
    """A session in a read-only transaction; ``position`` is where the log stood when its snapshot was taken."""

    def __init__(self, url: URL, *, snapshot: str | None = None, lock: TableId | None = None) -> None:
        """``snapshot`` is another transaction's, to be ``shared``. Until the end nobody alters the table ``lock``, or writes it anew."""
        self._snapshot = snapshot
        self._lock = lock
        self.shared = snapshot is not None
        try:
            self.connection = adbc.connect(_conninfo(url))
        except AdbcError as error:
            raise _translated(error) from None
        try:
            self._begin()
            # On a replica the log is only replayed: what was replayed by now holds all that the snapshot shows.
            row = self.fetch(
                "SELECT txid_current_snapshot()::text AS s, (CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn()"
                " ELSE pg_current_wal_insert_lsn() END - '0/0'::pg_lsn)::int8 AS position"
            )
            self.position = int(row["position"][0].as_py())
        except AdbcError as error:
            self.connection.close()
            raise _translated(error) from None
        except BaseException:
            self.connection.close()
            raise

    def _begin(self) -> None:
        self.run("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        self.run("SET LOCAL statement_timeout = 0")
        self.run("SET LOCAL idle_in_transaction_session_timeout = 0")
        if self._lock is not None:  # Before the snapshot is taken, so that its pages are those of the table as it is from now on.
            self.run(f"LOCK TABLE {qualified(self._lock)} IN ACCESS SHARE MODE")
        if self._snapshot is not None:
            self.run(f"SET TRANSACTION SNAPSHOT {literal(self._snapshot)}")

    def again(self) -> None:
        """Whatever became of the transaction: a new one, of the same snapshot where that is another's."""
        self.connection.rollback()
        self._begin()

    def export(self) -> str:
        """The snapshot's name, by which other sessions read the same."""
        try:
            return str(self.fetch("SELECT pg_export_snapshot() AS name")["name"][0].as_py())
        except AdbcError as error:
            raise _translated(error) from None

    def run(self, sql: str) -> None:
        with self.connection.cursor() as cursor:
            cursor.execute(sql)

    def fetch(self, sql: str) -> pa.Table:
        with self.connection.cursor() as cursor:
            cursor.execute(sql)
            return cursor.fetch_arrow_table()


class TablesSnapshot:
    """Tables of one snapshot. One session holds it, another reads several tables, each in a transaction of its own: what fails for one ends
    that alone."""

    def __init__(self, url: URL, types: Mapping[TableId, Types]) -> None:
        self._url = url
        self._types = types
        self._held = self._reading = _Transaction(url)
        self.position = self._held.position
        if len(types) > 1:
            try:
                self._reading = _Transaction(url, snapshot=self._held.export())
                self._reading.position = self.position
            except BaseException:
                self._held.connection.close()
                raise

    def __enter__(self) -> TablesSnapshot:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for transaction in {self._held, self._reading}:
            transaction.connection.close()

    def scan(self, table: TableId) -> TableScan:
        return TableScan(self._url, table, self._types, within=self._reading)


class TableScan:
    """One table in a read-only transaction, its own or (``within``) one that reads others too."""

    canonical = CANONICAL

    def __init__(
        self,
        url: URL,
        table: TableId,
        types: Mapping[TableId, Types],
        *,
        snapshot: str | None = None,
        within: _Transaction | None = None,
        lock: bool = False,
    ) -> None:
        """``types`` are the columns of ``table`` and maybe others; ``snapshot`` is another scan's, to be shared. With ``lock`` nobody
        alters the table, or writes it anew, until the scan ends."""
        if table not in types:
            raise CdcError(f"the source has no table {table}", hint="check its name, or take it out of 'tables'", code="no_table")
        self._url = url
        self._table = table
        self._types = types[table]
        self._owned = within is None
        self._transaction = within or _Transaction(url, snapshot=snapshot, lock=table if lock else None)
        self.position = self._transaction.position

    def __enter__(self) -> TableScan:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def unreadable(self, columns: Sequence[Column]) -> Mapping[str, str]:
        found = {}
        for column in columns:
            type_ = self._types.get(column.name)
            if type_ is None:
                found[column.name] = "the source has no such column any more"
            elif form(column, type_, quoted(column.name)) is None:
                found[column.name] = f"a {type_['type']} of the source has no exact form that could be compared"
        return found

    def types(self, columns: Sequence[Column]) -> Mapping[str, str]:
        return {c.name: self._types[c.name]["type"] for c in columns}

    def close(self) -> None:
        if self._owned:
            self._transaction.connection.close()
        elif self._transaction.shared:
            try:
                self._transaction.again()
            except AdbcError as error:
                raise _translated(error) from None

    def count(self, where: str | None = None) -> int:
        return int(self._fetch(f"SELECT count(*) AS n FROM {qualified(self._table)} AS t{conditioned(where)}")["n"][0].as_py())

    def _pages(self) -> int:
        """How many pages the table has; 0 where its rows lie in several tables (partitions, children), the snapshot cannot be shared, or
        the server cannot read a range of pages without reading all (before version 14)."""
        sql = f"""SELECT CASE WHEN relkind = 'r' AND NOT relhassubclass AND NOT pg_is_in_recovery()
    AND current_setting('server_version_num')::int8 >= 140000
  THEN pg_relation_size(oid) / current_setting('block_size')::int8 ELSE 0 END AS n
FROM pg_class WHERE oid = {literal(qualified(self._table))}::regclass"""
        return int(self._fetch(sql)["n"][0].as_py())

    def forms(self, columns: Sequence[Column]) -> Mapping[str, str]:
        found = {c.name: form(c, self._types[c.name], f"t.{quoted(c.name)}") for c in columns}
        exact = {name: value for name, value in found.items() if value is not None}
        if len(exact) < len(found):
            raise ValueError("a column has no exact form")
        return exact

    def texts(self, columns: Sequence[Column]) -> Mapping[str, str]:
        forms = self.forms(columns)
        known = {c.name: CANONICAL.text(c.type, forms[c.name]) for c in columns}
        # PostgreSQL takes the blanks that pad a char(n) away wherever it becomes a text.
        return {name: text for name, text in known.items() if text is not None and self._types[name]["base"] != "bpchar"}

    def rows(
        self, columns: Sequence[Column], where: str | None = None, sample: float | None = None, most: int | None = None
    ) -> Iterator[pa.RecordBatch]:
        """A large table is read in two parts at a time, by two sessions that share the snapshot, and ahead of whoever takes the rows:
        reading and hashing go on together. One of several tables of a snapshot is taken for small."""
        some = "" if sample is None else f" TABLESAMPLE SYSTEM ({sample})"
        pages = self._pages() if sample is None and most is None and not self._transaction.shared else 0
        half = -(-pages // 2) if pages >= SPLIT_PAGES else 0
        for batch in self._split(half, lambda part: self._select(self.forms(columns), some + conditioned(where, part) + _limit(most))):
            yield _typed(batch, columns)

    def select(self, expressions: Mapping[str, str], where: str | None = None) -> Iterator[pa.RecordBatch]:
        for batch in self._read(self._select(expressions, conditioned(where))):
            yield pa.RecordBatch.from_arrays([unwrapped(plain(a)) for a in batch.columns], batch.schema.names)

    def digests(self, bucket: str, place: str, hash_: str, where: str | None = None, most: int | None = None) -> Iterator[pa.RecordBatch]:
        """By two sessions too, some pages at a time: what comes for one bucket has to be added up."""
        pages = self._pages() if most is None and not self._transaction.shared else 0

        def sums(part: str) -> str:
            return digests(f"{qualified(self._table)} AS t{conditioned(where, part)}{_limit(most)}", bucket, place, hash_)

        for batch in self._split(PART_PAGES if pages > PART_PAGES else 0, sums):
            yield pa.RecordBatch.from_arrays([unwrapped(plain(a)) for a in batch.columns], batch.schema.names)

    def _split(self, pages: int, statement: Callable[[str], str]) -> Iterator[pa.RecordBatch]:
        """The rows of ``statement`` over all parts of the table, so many pages each (0: as one), by two sessions."""
        if not pages:
            # A session that is used again has no other thread, whatever becomes of the rows.
            yield from self._read(statement("")) if self._transaction.shared else _ahead([self._read(statement(""))])
            return
        firsts = range(0, self._pages() + 1, pages)
        # The last part has no end: pages that were added meanwhile hold no row of this snapshot.
        parts = [f"t.ctid >= '({n},0)'::tid" + (f" AND t.ctid < '({n + pages},0)'::tid" if n != firsts[-1] else "") for n in firsts]
        left, lock = iter(parts), threading.Lock()

        def some(scan: TableScan) -> Iterator[pa.RecordBatch]:
            while True:
                with lock:
                    part = next(left, None)
                if part is None:
                    return
                yield from scan._read(statement(part))

        with TableScan(self._url, self._table, {self._table: self._types}, snapshot=self._transaction.export()) as other:
            yield from _ahead([some(self), some(other)])

    def matching(self, key: Sequence[Column], keys: pa.Table) -> str:
        names = [f"t.{quoted(c.name)}" for c in key]
        texts = [psql.Literal(key_parameter(keys.column(i))).as_string(None) for i in range(len(key))]
        arrays = ", ".join(f"CAST({text}::text[] AS {self._types[c.name]['type']}[])" for text, c in zip(texts, key, strict=True))
        return f"({', '.join(names)}) IN (SELECT * FROM unnest({arrays}))"

    def fetch(self, key: Sequence[Column], columns: Sequence[Column], keys: pa.Table) -> pa.Table:
        """The rows with these keys; those that are not there are left out."""
        batches = [_typed(batch, columns) for batch in self._read(self._select(self.forms(columns), conditioned(self.matching(key, keys))))]
        if not batches:
            return pa.table({c.name: pa.array([], c.type.arrow) for c in columns})
        return pa.Table.from_batches(batches, batches[0].schema)

    def _select(self, expressions: Mapping[str, str], tail: str) -> str:
        return f"SELECT {', '.join(f'{e} AS {quoted(n)}' for n, e in expressions.items())} FROM {qualified(self._table)} AS t{tail}"

    def _read(self, sql: str) -> Iterator[pa.RecordBatch]:
        settings = {"adbc.postgresql.batch_size_hint_bytes": str(BATCH_BYTES)}
        try:
            with self._transaction.connection.cursor(adbc_stmt_kwargs=settings) as cursor:
                cursor.execute(sql)
                yield from cursor.fetch_record_batch()
        except (AdbcError, OSError) as error:
            raise self._explained(error) from None

    def _fetch(self, sql: str) -> pa.Table:
        try:
            return self._transaction.fetch(sql)
        except (AdbcError, OSError) as error:
            raise self._explained(error) from None

    def _explained(self, error: AdbcError | OSError) -> CdcError:
        """The driver does not tell a missing right from rows that policies would hide, nor what went wrong once rows are on their way. The
        server's words are in its own language."""
        if isinstance(error, AdbcError) and error.sqlstate != "42501":
            return _translated(error)
        try:
            self._transaction.again()
            asked = f"SELECT row_security_active({literal(qualified(self._table))}::regclass) AS active, current_user::text AS role"
            found = self._transaction.fetch(asked).to_pylist()[0]
        except AdbcError as after:
            return _translated(after)
        if isinstance(error, OSError):
            message = "the source ended a statement while it ran, as it does for a value that it cannot take"
            return CdcError(message, hint="see the server's log", code="source_value")
        return refused_row_security(self._table, found["role"]) if found["active"] else _translated(error)


def _conninfo(url: URL) -> str:
    """As libpq's keywords: in a URL it would take blanks in options for plus signs."""
    given = {name: value if isinstance(value, str) else value[-1] for name, value in url.query.items()}
    where = url.translate_connect_args(username="user", database="dbname")
    return make_conninfo(**{**where, **given, "options": session_options(given.get("options", ""))})


def plain(array: pa.Array) -> pa.Array:
    return array.storage if isinstance(array, pa.ExtensionArray) and array.type != pa.uuid() else array


def _typed(batch: pa.RecordBatch, columns: Sequence[Column]) -> pa.RecordBatch:
    arrays = [exact(plain(array), c) for array, c in zip(batch.columns, columns, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, [c.name for c in columns])


def exact(array: pa.Array, column: Column) -> pa.Array:
    wanted = column.type.arrow
    if pa.types.is_string(array.type) or array.type in (wanted, pa.uuid()):
        return unwrapped(array)
    try:
        return array.cast(wanted)
    except pa.ArrowInvalid:
        message = f"column {column.name}: the source has values that the target's {column.type} does not hold"
        raise CdcError(message, hint="its change of type is on its way, or stopped the table: cdc status", code="inexact_text") from None


def conditioned(*conditions: str | None) -> str:
    said = [f"({c})" for c in conditions if c]
    return f" WHERE {' AND '.join(said)}" if said else ""


def _limit(most: int | None) -> str:
    return "" if most is None else f" LIMIT {most}"


def _ahead(parts: Sequence[Iterator[pa.RecordBatch]]) -> Iterator[pa.RecordBatch]:
    """The batches of all parts as they come, each part read by a thread of its own, at most AHEAD batches ahead."""
    ready: queue.Queue[pa.RecordBatch | BaseException | None] = queue.Queue(AHEAD)
    over = threading.Event()

    def put(item: pa.RecordBatch | BaseException | None) -> bool:
        while not over.is_set():
            with contextlib.suppress(queue.Full):
                ready.put(item, timeout=0.2)
                return True
        return False

    def read(part: Iterator[pa.RecordBatch]) -> None:
        try:
            for batch in part:
                if not put(batch):
                    return
            put(None)
        except BaseException as error:
            put(error)

    threads = [threading.Thread(target=read, args=(part,), name="scan", daemon=True) for part in parts]
    for thread in threads:
        thread.start()
    try:
        left = len(threads)
        while left:
            item = ready.get()
            if isinstance(item, BaseException):
                raise item
            if item is None:
                left -= 1
            else:
                yield item
    finally:
        over.set()
        for thread in threads:
            thread.join()


def literal(text: str) -> str:
    return psql.Literal(text).as_string(None)


def _translated(error: AdbcError) -> CdcError:
    """The driver's messages may quote values of rows: only what it says of connections and names is passed on."""
    state = str(error.sqlstate or "")
    first = next(iter(str(error).splitlines()), type(error).__name__)
    if state[:2] in {"42", "25", "55"}:
        return CdcError(f"the source refused a statement (SQLSTATE {state}): {first}", hint="see the server's log", code="source_statement")
    if not state or state[:2] in {"08", "53", "57", "40", "28"}:
        return Unavailable(f"the source does not answer (SQLSTATE {state or 'none'})", hint="is it running, and is source.url right?")
    code = "source_value" if state[:2] == "22" else "source_statement"
    return CdcError(f"the source refused a statement (SQLSTATE {state})", hint="see the server's log", code=code)
