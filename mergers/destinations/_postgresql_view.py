"""A read of one target in PostgreSQL at one moment, as Arrow, in a session of its own.

Promises: one repeatable-read transaction that only reads: it holds ACCESS SHARE on what it reads until it is closed, which stands in the
way of ALTER TABLE alone, and holds back vacuum. Values come exactly; where Arrow or the driver has no exact form, as text
(reconcile.protocol).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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


class PostgreSqlView(View):
    canonical = CANONICAL

    def __init__(self, url: URL, statements: TargetSql, schema: TableSchema) -> None:
        """``schema`` is the target's own, which says how each column is read."""
        self._columns = {c.name: c for c in schema.columns}
        try:
            self._connection = adbc.connect(url.set(drivername="postgresql").render_as_string(hide_password=False))
        except AdbcError as error:
            raise _translated(error) from None
        try:
            # A read that row level security would narrow has to fail: what it does not show would count as missing.
            settings = ("statement_timeout = 0", "row_security = off", *(f"{name} = '{value}'" for name, value in SPELLING.items()))
            for sql in ("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY", *(f"SET LOCAL {s}" for s in settings)):
                self._execute(sql)
            super().__init__(statements)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._connection.close()

    def _execute(self, sql: str) -> None:
        try:
            with self._connection.cursor() as cursor:
                cursor.execute(sql)
        except AdbcError as error:
            raise _translated(error) from None

    def read(self, sql: str) -> Iterator[pa.RecordBatch]:
        try:
            with self._connection.cursor(adbc_stmt_kwargs={"adbc.postgresql.batch_size_hint_bytes": str(BATCH_BYTES)}) as cursor:
                cursor.execute(sql)
                for batch in cursor.fetch_record_batch():
                    yield pa.RecordBatch.from_arrays([_exact(array) for array in batch.columns], batch.schema.names)
        except AdbcError as error:
            raise _translated(error) from None

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
