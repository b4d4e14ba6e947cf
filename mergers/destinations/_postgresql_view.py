"""A read of one target in PostgreSQL at one moment, as Arrow, in a session of its own.

Promises: one repeatable-read transaction that only reads: it holds ACCESS SHARE on what it reads until it is closed, which stands in the
way of ALTER TABLE alone, and holds back vacuum. Values come exactly; where Arrow or the driver has no exact form, as text
(reconcile.protocol).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any

import adbc_driver_postgresql.dbapi as adbc
import pyarrow as pa
from adbc_driver_manager import Error as AdbcError
from psycopg import sql as psql
from sqlalchemy.engine import URL

from cdc_service.core.errors import CdcError, Unavailable
from cdc_service.core.logical import Kind
from cdc_service.core.types import Column, TableSchema
from cdc_service.databases.postgresql import CANONICAL, INTERVAL_TEXT, SPELLING, input_text, unwrapped
from mergers.sql.statements import TargetSql
from mergers.sql.view import View

BATCH_BYTES = 8 * 2**20
_AS_TEXT = (Kind.NUMERIC, Kind.UUID, Kind.JSON, Kind.DECIMAL)


class Sessions:
    """Sessions for views that are opened one after another: the driver reads the server's types in each new one, which takes longer than
    to read a few rows."""

    def __init__(self, url: URL) -> None:
        self._url = url.set(drivername="postgresql").render_as_string(hide_password=False)
        self._idle: list[adbc.Connection] = []

    def __enter__(self) -> Sessions:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        while self._idle:
            self._idle.pop().close()

    def begun(self) -> adbc.Connection:
        """A session in a new transaction. One that was ended meanwhile is replaced."""
        while self._idle:
            connection = self._idle.pop()
            with contextlib.suppress(AdbcError):
                return _begun(connection)
        try:
            return _begun(adbc.connect(self._url))
        except AdbcError as error:
            raise _translated(error) from None

    def give_back(self, connection: adbc.Connection) -> None:
        try:
            connection.rollback()
        except AdbcError:
            connection.close()
        else:
            self._idle.append(connection)


def _begun(connection: adbc.Connection) -> adbc.Connection:
    # A read that row level security would narrow has to fail: what it does not show would count as missing.
    settings = ("statement_timeout = 0", "row_security = off", *(f"{name} = '{value}'" for name, value in SPELLING.items()))
    try:
        with connection.cursor() as cursor:
            for sql in ("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY", *(f"SET LOCAL {s}" for s in settings)):
                cursor.execute(sql)
    except BaseException:
        connection.close()
        raise
    return connection


class PostgreSqlView(View):
    canonical = CANONICAL

    def __init__(self, sessions: Sessions, statements: TargetSql, schema: TableSchema, *, kept: bool) -> None:
        """``schema`` is the target's own, which says how each column is read. ``kept``: the session is for the next view too."""
        self._columns = {c.name: c for c in schema.columns}
        self._sessions = sessions
        self._kept = kept
        self._connection = sessions.begun()
        try:
            super().__init__(statements)
        except BaseException:
            self._connection.close()
            raise

    def close(self) -> None:
        if self._kept:
            self._sessions.give_back(self._connection)
        else:
            self._connection.close()

    def read(self, sql: str) -> Iterator[pa.RecordBatch]:
        kept, self._kept = self._kept, False  # Nor is one with rows that nobody took.
        try:
            with self._connection.cursor(adbc_stmt_kwargs={"adbc.postgresql.batch_size_hint_bytes": str(BATCH_BYTES)}) as cursor:
                cursor.execute(sql)
                for batch in cursor.fetch_record_batch():
                    yield pa.RecordBatch.from_arrays([_exact(array) for array in batch.columns], batch.schema.names)
        except AdbcError as error:
            raise _translated(error) from None
        self._kept = kept

    def _form(self, name: str) -> str:
        quoted, column = self._s.spelling.quote(name), self._columns.get(name)
        if column is None:
            return quoted
        if column.type.element is not None:
            return f"CAST(to_json({quoted}) AS text)"
        if column.type.kind is Kind.INTERVAL:
            return INTERVAL_TEXT.format(quoted)
        return f"CAST({quoted} AS text)" if column.type.kind in _AS_TEXT else quoted

    def matching(self, key: Sequence[Column], keys: pa.Table) -> str:
        d = self._s.spelling
        texts = [psql.Literal(input_text(keys[c.name].combine_chunks()).to_pylist()).as_string(None) for c in key]
        arrays = ", ".join(f"CAST({text}::text[] AS {d.column_type(c.type)}[])" for text, c in zip(texts, key, strict=True))
        return f"({', '.join(d.quote(c.name) for c in key)}) IN (SELECT * FROM unnest({arrays}))"


def _exact(array: pa.Array) -> pa.Array:
    return unwrapped(array.storage if isinstance(array, pa.ExtensionArray) else array)


def _translated(error: AdbcError) -> CdcError:
    """The driver's messages may quote values of rows: only what it says of connections and names is passed on."""
    state: Any = str(error.sqlstate or "")
    if state[:2] in {"42", "25"}:
        first = next(iter(str(error).splitlines()), "")
        return CdcError(f"the warehouse refused to read (SQLSTATE {state}): {first}", code="warehouse")
    if not state or state[:2] in {"08", "53", "57", "40", "28"}:
        return Unavailable(f"the warehouse does not answer (SQLSTATE {state or 'none'})", hint="start it, or correct destination.url")
    return CdcError(f"the warehouse refused to read (SQLSTATE {state})", code="warehouse")
