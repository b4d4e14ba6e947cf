"""DuckDB: one file, embedded, ``duckdb:///FILE`` (relative) or ``duckdb:////FILE`` (absolute), ``duckdb:///:memory:`` for tests.

No second process can open the file, not even to read: an idle service lets go of it (``release``), and opens it again in about 20 ms.
The database never reads or writes another file, whoever asks: external access is off and the configuration is locked.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
from sqlalchemy.engine import make_url

from cdc_service.core.canonical import Canonical
from cdc_service.core.errors import CdcError, CommitUnknown, ConfigError, Fenced, Unavailable
from cdc_service.core.logical import Kind
from cdc_service.core.types import Column, TableSchema, Target
from cdc_service.ports.destination import Capabilities, Commit, Misfit, RightsLacking
from mergers.sql.connection import Mismatch
from mergers.sql.destination import SqlDestination
from mergers.sql.spelling import Spelling, Statement
from mergers.sql.staging import STAGE
from mergers.sql.statements import TargetSql
from mergers.sql.tables import ANOTHER_TARGET
from mergers.sql.view import View

SPELLING = Spelling(
    name="duckdb",
    types={
        Kind.BOOL: "BOOLEAN",
        Kind.INT16: "SMALLINT",
        Kind.INT32: "INTEGER",
        Kind.INT64: "BIGINT",
        Kind.FLOAT32: "FLOAT",
        Kind.FLOAT64: "DOUBLE",
        Kind.NUMERIC: "VARCHAR",
        Kind.STRING: "VARCHAR",
        Kind.BYTES: "BLOB",
        Kind.DATE: "DATE",
        Kind.TIME: "TIME",
        Kind.TIMESTAMP: "TIMESTAMP",
        Kind.TIMESTAMPTZ: "TIMESTAMP WITH TIME ZONE",
        # Its INTERVAL keeps months, days and microseconds but reads no ISO text, and the text is what the source sent.
        Kind.INTERVAL: "VARCHAR",
        Kind.UUID: "UUID",
        Kind.JSON: "JSON",
    },
    image="MAP(VARCHAR, VARCHAR)",
    image_of="MAP(CAST({names} AS VARCHAR[]), [{values}])",
    image_value="{image}[?]",
    image_has="MAP_CONTAINS({image}, ?)",
    text_exact="TRY_CAST(CAST({c} AS VARCHAR) AS {t}) IS NOT DISTINCT FROM {c}",
    us_of_time="EPOCH_US({time})",
    time_of_us="CAST(MAKE_TIMESTAMP({us}) AS TIMESTAMP WITH TIME ZONE)",
)

_TEXT = "CAST({0} AS VARCHAR)"
_BITS = "CASE WHEN isnan({0}) THEN 'nan' ELSE lower(hex(CAST(CAST(CAST({0} AS DOUBLE) + 0.0 AS BIT) AS BLOB))) END"
_MOMENT = "CASE WHEN isfinite({0}) THEN CAST(epoch_us({0}) AS VARCHAR) ELSE CAST({0} AS VARCHAR) END"

CANONICAL = Canonical(
    texts={
        Kind.BOOL: "CAST(CAST({0} AS INTEGER) AS VARCHAR)",
        **dict.fromkeys((Kind.INT16, Kind.INT32, Kind.INT64, Kind.DECIMAL, Kind.NUMERIC, Kind.UUID, Kind.JSON), _TEXT),
        Kind.FLOAT32: _BITS,
        Kind.FLOAT64: _BITS,
        Kind.STRING: "{0}",
        Kind.INTERVAL: "{0}",
        Kind.BYTES: "lower(hex({0}))",
        Kind.DATE: "CASE WHEN isfinite({0}) THEN CAST({0} - DATE '1970-01-01' AS VARCHAR) ELSE CAST({0} AS VARCHAR) END",
        Kind.TIME: "CAST(epoch_us({0}) AS VARCHAR)",
        Kind.TIMESTAMP: _MOMENT,
        Kind.TIMESTAMPTZ: _MOMENT,
    },
    md5="CAST('0x' || right(md5({0}), 15) AS BIGINT)",
    length="strlen({0})",
    divide="({0} // {1})",
)

_DAY_US = 86_400_000_000
_FIRST_US, _LAST_US = -9_223_372_022_400_000_000, 2**63 - 2

CAPABILITIES = Capabilities(
    # Found by trial: what stores and reads back as SQL text, as Arrow and after the file was opened again.
    ranges={
        Kind.DATE: (-(2**31) + 2, 2**31 - 2),
        Kind.TIME: (0, _DAY_US),
        Kind.TIMESTAMP: (_FIRST_US, _LAST_US),
        Kind.TIMESTAMPTZ: (_FIRST_US + _DAY_US, _LAST_US - _DAY_US),
    },
    infinity=frozenset({Kind.DATE, Kind.TIMESTAMP, Kind.TIMESTAMPTZ}),
    nul_in_text=True,
    reads_while_writing=False,
    commit=Commit.TRANSACTION,
    gaps={
        "ranges": "an earlier moment stores, and no reading of it succeeds; instants keep a day's distance: time zones move them",
        "reads_while_writing": "one process at a time can open the file",
    },
)

# A checkpoint rewrites every row group that a batch touched: seconds on a table of millions. After 128 MB of log it is worth that; a log
# of this size is read again in under a second when the file is opened after a crash.
SCAN_BYTES = 8 * 2**20
"""At most so much of a staged batch is handed over at once: DuckDB copies 2,048 rows of it at a time otherwise, however large they are."""
_SETTINGS = {"memory_limit": "256MB", "preserve_insertion_order": "false", "checkpoint_threshold": "128MB"}
_LOCKED = {"enable_external_access": "false", "lock_configuration": "true"}
_UPPER = {i: i + 32 for i in range(ord("A"), ord("Z") + 1)}
_DATABASES = frozenset({"temp", "system"})
_SYSTEM = frozenset({"information_schema", "pg_catalog"})
_READS = (duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN)


def open(url: str, *, pipeline: str, meta_schema: str, options: Mapping[str, Any]) -> DuckDb:
    """``options`` are DuckDB's own settings (memory_limit, threads, temp_directory, ...); the ones that keep it closed cannot be set."""
    database = make_url(url).database
    if not database:
        raise ConfigError("destination.url names no file", hint="write it as duckdb:///warehouse.duckdb")
    if locked := sorted(set(options) & set(_LOCKED)):
        raise ConfigError(f"destination.options cannot set {', '.join(locked)}", hint="remove it: queries must not reach other files")
    if meta_schema.translate(_UPPER) in _taken(database):
        cure = "name another file in destination.url, or another destination.meta_schema"
        raise ConfigError(f"DuckDB cannot tell the schema {meta_schema} from the database {Path(database).name}", hint=cure)
    settings = {**_SETTINGS, **{name: str(value) for name, value in options.items()}, **_LOCKED}
    return DuckDb(database, settings, pipeline=pipeline, meta_schema=meta_schema)


class DuckDb(SqlDestination):
    """The line's thread merges on one connection; ``query`` may be called from any thread and has its own. Nothing else may."""

    capabilities = CAPABILITIES
    spelling = SPELLING

    def __init__(self, database: str, settings: Mapping[str, str], *, pipeline: str, meta_schema: str) -> None:
        super().__init__(pipeline=pipeline, meta_schema=meta_schema)
        self._database = database
        self._settings = dict(settings)
        self._lock = threading.Lock()
        self._main: DuckDbConnection | None = None
        self._readers = 0

    def fold(self, identifier: str) -> str:
        """DuckDB compares identifiers without the case of ASCII letters; other letters keep theirs."""
        return identifier.translate(_UPPER)

    def probe(self) -> str:
        path = Path(self._database)
        if found := self.lacking(()):
            raise found[0]
        if self._database == ":memory:" or path.exists():
            self.connection().fetch("SELECT 1")
            self.release()
            return f"{path.name} can be opened and written"
        return f"{path.name} will be made with the first run"

    def lacking(self, targets: Sequence[Target]) -> Sequence[CdcError]:
        """The file, what DuckDB writes beside it, and the folder that these are made in; then what is in it."""
        if self._database == ":memory:":
            return super().lacking(targets)
        path = Path(self._database).absolute()
        folder = next(p for p in path.parents if p.exists())
        if path.is_dir() or not folder.is_dir():
            wrong, what = (path, "is a folder") if path.is_dir() else (folder, "is no folder")
            return [ConfigError(f"{wrong} {what}, so it cannot hold the warehouse", hint="name another file in destination.url")]
        places = [(folder, os.W_OK | os.X_OK, "wx"), *((p, os.R_OK | os.W_OK, "rw") for p in (path, Path(f"{path}.wal")) if p.exists())]
        barred = [(place, mode) for place, wanted, mode in places if not os.access(place, wanted)]
        if not barred and path.exists() and targets:
            try:
                return super().lacking(targets)
            finally:
                self.release()
        why = f"cannot be written by the user that runs this, so the warehouse {path.name} cannot be"
        return [RightsLacking(f"{place} {why}", _given(place, mode)) for place, mode in barred]

    def misfit(self, target: Target, schema: TableSchema) -> Misfit | None:
        namespace = target.namespace.translate(_UPPER)
        if namespace in _SYSTEM:
            return Misfit(f"{target.source}: the schema {target.namespace} is DuckDB's own", hint=ANOTHER_TARGET)
        if namespace in _taken(self._database):
            file = Path(self._database).name
            message = (
                f"{target.source}: DuckDB cannot tell the schema {target.namespace} from a database, which it names after the file {file}"
            )
            if namespace in _DATABASES:
                message = f"{target.source}: DuckDB cannot tell the schema {target.namespace} from a database of its own"
            return Misfit(message, hint=f"{ANOTHER_TARGET}, or name another file in destination.url")
        return super().misfit(target, schema)

    def connection(self) -> DuckDbConnection:
        with self._lock:
            return self._open()

    def _open(self) -> DuckDbConnection:
        if self._main is None or self._main.broken:
            self._main = DuckDbConnection(_connect(self._database, self._settings))
        return self._main

    def query(self, sql: str, *, rows_max: int) -> pa.Table:
        """At most ``rows_max`` rows of one SELECT or EXPLAIN, in a read-only transaction of its own. Makes no file where there is none."""
        if self._database != ":memory:" and not Path(self._database).exists():
            raise ConfigError(
                f"there is no warehouse file {self._database} yet", hint="cdc run makes it; destination.url names it", code="no_warehouse"
            )
        with self._lock:
            cursor = self._open().raw.cursor()
            self._readers += 1
        try:
            return _query(cursor, sql, rows_max)
        finally:
            cursor.close()
            with self._lock:
                self._readers -= 1

    def _discard(self, numbers: Statement) -> int:
        return self.connection().discard(STAGE, numbers)

    def view(self, target: Target, schema: TableSchema) -> DuckDbView:
        with self._lock:
            cursor = self._open().raw.cursor()
            self._readers += 1
        return DuckDbView(self._sql(target), cursor, self._left)

    def _left(self) -> None:
        with self._lock:
            self._readers -= 1

    def release(self) -> None:
        """Closes the file, unless a query is reading it: then the next call does."""
        with self._lock:
            if self._main is not None and not self._readers and self._database != ":memory:":
                self._main.close()
                self._main = None

    def close(self) -> None:
        with self._lock:
            if self._main is not None:
                self._main.close()
                self._main = None


def _taken(database: str) -> frozenset[str]:
    """The names, folded, that a schema cannot have beside the databases of a session: that of the file is its name up to the first dot."""
    base = "memory" if database == ":memory:" else next(iter(Path(database).name.translate(_UPPER).strip(".").split(".")), "")
    return _DATABASES | {f"{base}_db" if base in {"main", *_DATABASES} else base}


def _given(place: Path, mode: str) -> str:
    """The command that lets this user write a file or a folder."""
    name, user = shlex.quote(str(place)), os.geteuid()
    return f"chmod u+{mode} {name}" if place.stat().st_uid == user else f"chown {user} {name} && chmod u+{mode} {name}  # as root"


def _connect(database: str, settings: Mapping[str, str]) -> duckdb.DuckDBPyConnection:
    try:
        if database != ":memory:":
            Path(database).parent.mkdir(parents=True, exist_ok=True)
        return duckdb.connect(database, config=dict(settings))
    except (duckdb.IOException, OSError) as error:
        held = re.search(r"PID (\d+)", str(error))
        if held or "lock" in str(error):
            by = f"by the process {held[1]}" if held else "by another process"
            cure = f"wait for it or end it: kill {held[1]}" if held else "end the other process"
            raise Unavailable(
                f"the warehouse file {database} is held open {by}; DuckDB lets one process at a time open a file",
                hint=f"{cure}; while the service runs, read through it: cdc query SQL",
            ) from error
        raise Unavailable(
            f"the warehouse file {database} cannot be opened: {_first_line(error)}", hint="check the path, the rights and the disk"
        ) from error
    except duckdb.Error as error:
        raise ConfigError(
            f"DuckDB refuses to open {database}: {_first_line(error)}", hint="check destination.options, and that the file is DuckDB's"
        ) from error


def _query(cursor: duckdb.DuckDBPyConnection, sql: str, rows_max: int) -> pa.Table:
    try:
        statements = cursor.extract_statements(sql)
        if len(statements) != 1 or not _reads(statements[0]):
            raise ConfigError("a query is one statement that only reads", hint="write one SELECT; changes come through the source")
        cursor.execute("BEGIN TRANSACTION READ ONLY")
        try:
            reader = cursor.sql(sql).to_arrow_reader(max(1, min(rows_max, 10_000)))
            batches, rows = [], 0
            for batch in reader:
                batches.append(batch.slice(0, rows_max - rows))
                rows += batches[-1].num_rows
                if rows >= rows_max:
                    break
            result = pa.Table.from_batches(batches, schema=reader.schema)
            reader.close()
            return result
        finally:
            cursor.execute("ROLLBACK")
    except duckdb.FatalException as error:
        raise Unavailable(f"the warehouse failed while it read: {_first_line(error)}") from error
    except duckdb.Error as error:
        raise ConfigError(str(error), hint="correct the query") from error


def _reads(statement: Any) -> bool:
    try:
        return statement.type in _READS
    except ValueError:  # A kind of statement that the driver has no name for.
        return False


class DuckDbView(View):
    """A read-only transaction on a cursor of its own."""

    native = True
    canonical = CANONICAL

    def __init__(self, statements: TargetSql, cursor: duckdb.DuckDBPyConnection, left: Callable[[], None]) -> None:
        self._cursor = cursor
        self._left = left
        try:
            cursor.execute("BEGIN TRANSACTION READ ONLY")
            super().__init__(statements)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._cursor.close()
        self._left()

    def read(self, sql: str) -> Iterator[pa.RecordBatch]:
        try:
            yield from self._cursor.sql(sql).to_arrow_reader(200_000)
        except duckdb.Error as error:
            # Its text may quote a value where a conversion fails.
            kind = type(error).__name__
            detail = f": {_first_line(error)}" if isinstance(error, (duckdb.BinderException, duckdb.CatalogException)) else ""
            raise CdcError(f"the warehouse failed while it read ({kind}){detail}", code="warehouse") from None

    def matching(self, key: Sequence[Column], keys: pa.Table) -> str:
        self._cursor.register("keys_wanted", keys)
        names, wanted = ([SPELLING.quote(c.name) for c in key] for _ in range(2))
        types = [SPELLING.column_type(c.type) for c in key]
        casts = ", ".join(f"CAST({n} AS {t})" for n, t in zip(wanted, types, strict=True))
        return f"({', '.join(names)}) IN (SELECT {casts} FROM keys_wanted)"


class DuckDbConnection:
    """mergers.sql.connection.Connection over one DuckDB connection. ``broken`` is true when it has to be opened again."""

    def __init__(self, raw: duckdb.DuckDBPyConnection) -> None:
        self.raw = raw
        self.broken = False
        self._staged: dict[str, pa.Table] = {}
        self._begun = False

    def execute(self, sql: str, params: Sequence[object] = ()) -> int:
        rows = self.fetch(sql, params)
        return int(rows[0][0]) if rows and isinstance(rows[0][0], int) else 0

    def fetch(self, sql: str, params: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        try:
            rows: list[tuple[Any, ...]] = self.raw.execute(sql, list(params)).fetchall()
            return rows
        except duckdb.Error as error:
            raise self._translated(error) from None

    def stage(self, name: str, table: pa.Table, types: Sequence[str]) -> None:
        """A view: the rows stay in Arrow, each statement reads the columns that it needs. Copying them first took a sixth of a merge."""
        marked = pa.schema([_mark_json(field, type_) for field, type_ in zip(table.schema, types, strict=True)])
        columns = ", ".join(
            f"CAST({SPELLING.quote(field.name)} AS {type_}) AS {SPELLING.quote(field.name)}"
            for field, type_ in zip(marked, types, strict=True)
        )
        view, rows = SPELLING.quote("temp", name), SPELLING.quote(f"{name}_arrow")
        rows_at_once = max(1, SCAN_BYTES * table.num_rows // max(1, table.nbytes))
        self._show(name, pa.Table.from_batches(pa.Table.from_arrays(table.columns, schema=marked).to_batches(rows_at_once), marked))
        self.fetch(f"CREATE OR REPLACE TEMPORARY VIEW {view} AS SELECT {columns} FROM {rows}")

    def _show(self, name: str, rows: pa.Table) -> None:
        try:
            self.raw.register(f"{name}_arrow", rows)
        except duckdb.Error as error:
            raise self._translated(error) from None
        self._staged[name] = rows

    def discard(self, name: str, numbers: Statement) -> int:
        """Takes the rows out of a staged view whose ``n`` the query returns; how many these were."""
        try:
            found = self.raw.execute(numbers.sql, list(numbers.params)).fetchnumpy()["n"]
        except duckdb.Error as error:
            raise self._translated(error) from None
        if not len(found):
            return 0
        rows = self._staged[name]
        self._show(name, rows.filter(pc.invert(pc.is_in(rows["n"], pa.array(found)))))
        return int(rows.num_rows - self._staged[name].num_rows)

    def fill(self, name: str, select: str, params: Sequence[object] = ()) -> None:
        self.fetch(f"CREATE TEMPORARY TABLE {SPELLING.quote('temp', name)} AS {select}", params)

    def unstage(self, name: str) -> None:
        if self._staged.pop(name, None) is None:
            self._quietly(lambda: self.raw.execute(f"DROP TABLE IF EXISTS {SPELLING.quote('temp', name)}").fetchall())
        else:
            self._quietly(lambda: self.raw.execute(f"DROP VIEW IF EXISTS {SPELLING.quote('temp', name)}").fetchall())
            self._quietly(lambda: self.raw.unregister(f"{name}_arrow"))

    def columns(self, namespace: str, name: str) -> Sequence[tuple[str, str]] | None:
        if self._begun:
            sql = """SELECT column_name, data_type FROM duckdb_columns()
WHERE database_name = current_database() AND lower(schema_name) = lower(?) AND lower(table_name) = lower(?) ORDER BY column_index"""
            return [(column, type_) for column, type_ in self.fetch(sql, [namespace, name])] or None
        # With a thousand tables this takes a fortieth of the time. Of a table that is not there it fails, which would end a transaction.
        here = self.fetch("SELECT current_database()")[0][0]
        try:
            found = self.raw.execute("SELECT name, type FROM pragma_table_info(?) ORDER BY cid", [SPELLING.quote(here, namespace, name)])
            return [(column, type_) for column, type_ in found.fetchall()]
        except duckdb.CatalogException:
            return None
        except duckdb.Error as error:
            raise self._translated(error) from None

    def begin(self) -> None:
        self.fetch("BEGIN TRANSACTION")
        self._begun = True

    def commit(self) -> None:
        self._begun = False
        try:
            self.raw.execute("COMMIT").fetchall()
        except duckdb.TransactionException as error:
            # A conflict found while committing: DuckDB has rolled back.
            raise self._translated(error) from None
        except duckdb.Error as error:
            self.broken = True
            self.close()
            raise CommitUnknown(f"the warehouse failed during COMMIT: {_first_line(error)}") from None

    def rollback(self) -> None:
        self._begun = False
        self._quietly(lambda: self.raw.execute("ROLLBACK").fetchall())

    def close(self) -> None:
        self.broken = True
        self._quietly(self.raw.close)

    @staticmethod
    def _quietly(action: Callable[[], object]) -> None:
        with contextlib.suppress(duckdb.Error):
            action()

    def _translated(self, error: duckdb.Error) -> CdcError:
        """The service's error for DuckDB's. Its messages may quote cell values; ours do not."""
        match error:
            case duckdb.TransactionException() if "onflict" in str(error):
                return Fenced("another writer changed the same rows of the warehouse at the same time")
            case duckdb.TransactionException() if "write file" in str(error):
                # Found while committing; DuckDB has rolled back and cut its log to where it was.
                return Unavailable(f"the warehouse cannot write its file: {_first_line(error)}", hint="free space on its disk")
            case duckdb.BinderException() | duckdb.CatalogException():
                return Mismatch(f"the warehouse refuses a statement: {_first_line(error)}")
            case duckdb.ConstraintException():
                return Mismatch("a constraint or index that somebody put on the target refuses the rows; drop it")
            case duckdb.DependencyException():
                return Mismatch(f"something that somebody made depends on the target: {_first_line(error)}")
            case duckdb.FatalException() | duckdb.InternalException() | duckdb.ConnectionException():
                self.close()
                return Unavailable("the warehouse had to be closed after an internal error of DuckDB; it is opened again")
            case duckdb.OutOfMemoryException():
                return Unavailable(
                    "the warehouse has no memory or disk left for this batch",
                    hint="raise destination.options.memory_limit, lower defaults.flush.rows, or free disk space",
                )
            case duckdb.IOException():
                return Unavailable(f"the warehouse cannot read or write its file: {_first_line(error)}", hint="check the disk")
            case duckdb.DataError() | duckdb.InvalidInputException():
                return CdcError(
                    f"the warehouse refuses a value ({type(error).__name__}); its message is withheld because it quotes the value",
                    code="value_refused",
                )
        return CdcError(f"the warehouse failed: {type(error).__name__}", code="warehouse")


def _mark_json(field: pa.Field, type_: str) -> pa.Field:
    """Tells DuckDB that text is JSON already: the source has validated it, and DuckDB's parser refuses some of what the source accepts
    (a lone surrogate), which would fail the whole batch."""
    if type_ == "JSON":
        return field.with_metadata({"ARROW:extension:name": "arrow.json", "ARROW:extension:metadata": ""})
    if type_.endswith("[]") and pa.types.is_list(field.type):
        return pa.field(field.name, pa.list_(_mark_json(field.type.value_field, type_[:-2])))
    return field


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
