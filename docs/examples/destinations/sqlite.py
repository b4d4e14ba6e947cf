"""SQLite as a warehouse, the example of docs/adding-a-destination.md: ``sqlite:///FILE`` (relative) or ``sqlite:////FILE`` (absolute).

- A file has no namespaces: the table ``items`` of ``public`` is called ``"public.items"``.
- Whole numbers and booleans are INTEGER. All else is TEXT that says the value exactly, because a REAL drops NaN and the sign of zero, and
  NUMERIC rounds: decimals and floats as digits, bytes as hex, instants as ``2026-01-31 12:00:00.000000Z``, arrays as JSON.
- Others read while the service writes (WAL); writers wait for each other, because each transaction holds the whole file for writing.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from hashlib import md5
from pathlib import Path
from typing import Any

import pyarrow as pa
from sqlalchemy.engine import make_url

from cdc_service.core.errors import CdcError, CommitUnknown, ConfigError, Unavailable
from cdc_service.core.logical import Kind
from cdc_service.core.rowtext import value_text
from cdc_service.ports.destination import Capabilities, Commit
from mergers.sql.connection import Mismatch
from mergers.sql.destination import SqlDestination
from mergers.sql.spelling import Spelling

SPELLING = Spelling(
    name="sqlite",
    namespaces=False,
    types={kind: "INTEGER" if kind in (Kind.BOOL, Kind.INT16, Kind.INT32, Kind.INT64) else "TEXT" for kind in Kind},
    decimal="TEXT",
    array="TEXT",
    image="TEXT",
    image_of="image_of({names}, (SELECT json_group_array(column1) FROM (VALUES ({values}))))",
    image_join="), (",  # A function takes 127 arguments, VALUES any number of rows.
    image_value="image_value({image}, ?)",
    image_has="image_has({image}, ?)",
    us_of_time="us_of_time({time})",
    time_of_us="time_of_us({us})",
    widen=(
        'ALTER TABLE {place} RENAME COLUMN {column} TO "_cdc_narrow"',
        "ALTER TABLE {place} ADD COLUMN {column} {type}",
        'UPDATE {place} SET {column} = "_cdc_narrow"',
        'ALTER TABLE {place} DROP COLUMN "_cdc_narrow"',
    ),
)

_DAY_US, _FIRST_DAY, _LAST_DAY = 86_400_000_000, -719_162, 2_932_896
_INSTANTS = (_FIRST_DAY * _DAY_US, (_LAST_DAY + 1) * _DAY_US - 1)
CAPABILITIES = Capabilities(
    gaps={"ranges": "texts of years outside of 1 to 9999 do not sort", "nul_in_text": "stored, but SQLite's functions end a text there"},
    ranges={Kind.DATE: (_FIRST_DAY, _LAST_DAY), Kind.TIME: (0, _DAY_US), Kind.TIMESTAMP: _INSTANTS, Kind.TIMESTAMPTZ: _INSTANTS},
    infinity=frozenset({Kind.DATE, Kind.TIMESTAMP, Kind.TIMESTAMPTZ}),
    nul_in_text=False,
    reads_while_writing=True,
    commit=Commit.TRANSACTION,
)

_READS = (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE)
_EPOCH, _US, _INSTANT = dt.datetime(1970, 1, 1, tzinfo=dt.UTC), dt.timedelta(microseconds=1), "%Y-%m-%d %H:%M:%S.%fZ"


def open(url: str, *, pipeline: str, meta_schema: str, options: Mapping[str, Any]) -> Sqlite:
    database = make_url(url).database
    if not database or database == ":memory:" or options:
        raise ConfigError("destination.url names no file, or there are destination.options", hint="write it as sqlite:////folder/file.db")
    return Sqlite(Path(database).absolute(), pipeline=pipeline, meta_schema=meta_schema)


class Sqlite(SqlDestination):
    capabilities = CAPABILITIES
    spelling = SPELLING

    def __init__(self, path: Path, *, pipeline: str, meta_schema: str) -> None:
        super().__init__(pipeline=pipeline, meta_schema=meta_schema)
        self._path = path
        self._main: SqliteConnection | None = None

    def connection(self) -> SqliteConnection:
        self._main = self._main or SqliteConnection(_connect(self._path, "rwc"))
        return self._main

    def fold(self, identifier: str) -> str:
        return "".join(c.lower() if c.isascii() else c for c in identifier)

    def probe(self) -> str:
        if not os.access(self._path if self._path.exists() else self._path.parent, os.W_OK):
            raise ConfigError(f"{self._path} cannot be written", hint="make the folder, grant the rights, or name another file")
        return f"{self._path.name} can be written"

    def query(self, sql: str, *, rows_max: int) -> pa.Table:
        with contextlib.closing(_connect(self._path, "rw")) as raw:
            raw.set_authorizer(lambda action, *_: sqlite3.SQLITE_OK if action in _READS else sqlite3.SQLITE_DENY)
            try:
                cursor = raw.execute(sql)
                if cursor.description is None:
                    raise sqlite3.Warning("it is not one that returns rows")
                rows, names = cursor.fetchmany(rows_max), [column[0] for column in cursor.description]
                return pa.table([pa.array([row[i] for row in rows]) for i in range(len(names))], names=names)
            except (sqlite3.Error, sqlite3.Warning, pa.ArrowException) as error:
                raise ConfigError(f"the query fails: {error}", hint="write one SELECT; changes come through the source") from None

    def release(self) -> None:
        """Others read beside this connection, and write between its transactions."""

    def close(self) -> None:
        if self._main is not None:
            self._main.raw.close()
            self._main = None


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    try:
        raw = sqlite3.connect(f"{path.as_uri()}?mode={mode}", uri=True, timeout=10, isolation_level=None, check_same_thread=False)
        raw.executescript("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA temp_store = MEMORY")
    except sqlite3.Error as error:
        raise Unavailable(f"the warehouse file {path} cannot be opened: {error}", hint="check the path, the rights and the disk") from None
    raw.create_function("now", 0, lambda: dt.datetime.now(dt.UTC).strftime(_INSTANT))
    raw.create_function("md5", 1, lambda text: text and md5(text.encode(), usedforsecurity=False).hexdigest())
    raw.create_function("greatest", 2, lambda a, b: None if None in (a, b) else max(a, b))
    raw.create_function("us_of_time", 1, lambda text: text and (dt.datetime.fromisoformat(text) - _EPOCH) // _US)
    raw.create_function("time_of_us", 1, lambda us: None if us is None else (_EPOCH + us * _US).strftime(_INSTANT))
    raw.create_function("image_of", 2, lambda names, values: json.dumps(dict(zip(json.loads(names), json.loads(values), strict=True))))
    raw.create_function("image_value", 2, lambda image, name: image and json.loads(image).get(name))
    raw.create_function("image_has", 2, lambda image, name: image and name in json.loads(image))
    return raw


class SqliteConnection:
    """mergers.sql.connection.Connection over one SQLite connection."""

    def __init__(self, raw: sqlite3.Connection) -> None:
        self.raw = raw

    def execute(self, sql: str, params: Sequence[object] = ()) -> int:
        before = self.raw.total_changes  # The driver's rowcount knows no statement that begins with WITH.
        self.fetch(sql, params)
        return self.raw.total_changes - before

    def fetch(self, sql: str, params: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        with _translated():
            return self.raw.execute(sql, [json.dumps(p) if isinstance(p, list) else p for p in params]).fetchall()

    def stage(self, name: str, table: pa.Table, types: Sequence[str]) -> None:
        place, columns = SPELLING.quote("temp", name), zip(map(SPELLING.quote, table.column_names), types, strict=True)
        self.unstage(name)
        self.fetch(f"CREATE TEMPORARY TABLE {place} ({', '.join(f'{column} {type_}' for column, type_ in columns)})")
        values = [_held(column.combine_chunks(), type_) for column, type_ in zip(table.columns, types, strict=True)]
        with _translated():
            self.raw.executemany(f"INSERT INTO {place} VALUES ({', '.join('?' * len(types))})", zip(*values, strict=True))

    def fill(self, name: str, select: str, params: Sequence[object] = ()) -> None:
        self.fetch(f"CREATE TEMPORARY TABLE {SPELLING.quote('temp', name)} AS {select}", params)

    def unstage(self, name: str) -> None:
        with contextlib.suppress(sqlite3.Error):
            self.raw.execute(f"DROP TABLE IF EXISTS {SPELLING.quote('temp', name)}")

    def columns(self, namespace: str, name: str) -> Sequence[tuple[str, str]] | None:
        return self.fetch("SELECT name, type FROM pragma_table_info(?) ORDER BY cid", [f"{namespace}.{name}"]) or None

    def begin(self) -> None:
        self.fetch("BEGIN IMMEDIATE")

    def commit(self) -> None:
        try:
            self.fetch("COMMIT")
        except CdcError as error:
            if self.raw.in_transaction:  # Refused, as when the disk is full: what follows is a rollback, and nothing was applied.
                raise
            raise CommitUnknown(f"COMMIT failed: {error}") from None

    def rollback(self) -> None:
        with contextlib.suppress(sqlite3.Error):
            self.raw.execute("ROLLBACK")


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        reason = getattr(error, "sqlite_errorname", "SQLITE_").split("_")[1]
        if reason in ("ERROR", "CONSTRAINT"):  # SQLite names tables and columns there, and quotes no value.
            raise Mismatch(f"the warehouse refuses a statement: {error}") from None
        if reason in ("BUSY", "LOCKED", "FULL", "IOERR", "CANTOPEN", "READONLY"):
            raise Unavailable(f"the warehouse is not written: {reason}", hint="end who else writes, or check disk and rights") from None
        raise CdcError(f"the warehouse failed: {reason or type(error).__name__}", code="warehouse") from None


def _held(values: pa.Array, type_: str) -> list[Any]:
    """What SQLite is given for each value: an integer, a text, or bytes (in the quarantine)."""
    exact = values.cast(pa.float64()) if pa.types.is_floating(values.type) else values  # A float32 stays the double that it equals.
    return list((value_text(exact) if type_ == "TEXT" else exact).to_pylist())
