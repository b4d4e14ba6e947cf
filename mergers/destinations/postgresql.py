"""PostgreSQL 14 or later as the warehouse: ``postgresql://user:password@host:5432/database`` (libpq's own options after a ``?``).

- A batch arrives by COPY in temporary tables of the session. One of each shape is kept and emptied by the commit, because a table made
  and dropped every second leaves dead rows in the catalogs, which a long query of somebody else keeps from being cleaned away.
- Each target of upsert or soft_delete has a PRIMARY KEY on its key: without an index a batch of ten rows would read the whole table, and
  INSERT ... ON CONFLICT, which replaces rows here (see docs/destinations.md for figures), needs it.
- Others read while the service writes: a table's batch becomes visible as a whole, with its checkpoint.
- The role needs CREATE and USAGE on the schemas that it writes and TEMPORARY on the database; schemas may be made by somebody else.
- No wait is without end: locks (10 s), statements (15 minutes) and an own transaction left open by a frozen process (1 minute) are ended
  by the server, and a server that froze itself is given up; ``destination.options`` sets these and other server settings.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import psycopg
import pyarrow as pa
import pyarrow.compute as pc
from psycopg.pq import TransactionStatus
from sqlalchemy.engine import URL, make_url

from cdc_service.core.errors import CdcError, CommitUnknown, ConfigError, Unavailable
from cdc_service.core.evolve import Change, CreateTable
from cdc_service.core.logical import Kind, LogicalType
from cdc_service.core.types import Delta, TableSchema, Target
from cdc_service.ports.destination import Capabilities, Commit, Misfit
from mergers.destinations._postgresql_binary import binary_blocks
from mergers.destinations._postgresql_copy import csv_blocks
from mergers.destinations._postgresql_errors import LOCK_TIMEOUT, translated
from mergers.destinations._postgresql_results import arrow_column
from mergers.destinations._postgresql_rights import lacking, namespace_rights
from mergers.destinations._postgresql_view import PostgreSqlView, Sessions
from mergers.sql.connection import Connection
from mergers.sql.destination import SqlDestination
from mergers.sql.spelling import Spelling
from mergers.sql.statements import TargetSql
from mergers.sql.tables import ANOTHER_TARGET
from mergers.sql.upsert import Upsert

NAME_BYTES = 63
OWN_COLUMNS = frozenset({"tableoid", "xmin", "cmin", "xmax", "cmax", "ctid"})
"""Each table of PostgreSQL has them already."""
COLUMNS_MAX = 1600
STAGED_BESIDE = 16
"""Columns of a staged batch beside the table's own and, once more, its key's: what orders a change, and what completes it."""
SHAPES_MAX = 64
"""Temporary tables kept in the session; each costs a look at every commit."""

GRACE_SECONDS = 30.0
"""A server that is silent for so much longer than ``statement_timeout`` is taken for gone."""

_MARK = "\x00"
"""Stands for a parameter until the text is complete: no name and no literal can hold it, as both can hold psycopg's own marks."""


class _PostgreSql(Spelling):
    """The spelling of PostgreSQL, where it is more than data."""

    __slots__ = ()

    def quote(self, *path: str) -> str:
        for part in path:
            if len(part.encode()) > NAME_BYTES or _MARK in part:
                raise ConfigError(
                    f"the name {part!r} cannot be one in PostgreSQL: it cuts names after {NAME_BYTES} bytes without a word",
                    hint="give the table another target, or the column another name at the source",
                )
        return super().quote(*path)

    def column_type(self, type_: LogicalType) -> str:
        """An array of arrays holds each inner one as PostgreSQL's text of it: its own arrays are rectangles without missing rows."""
        if type_.element is not None:
            return "text[]" if type_.element.kind is Kind.ARRAY else f"{self.column_type(type_.element)}[]"
        return super().column_type(type_)


SPELLING = _PostgreSql(
    name="postgres",
    types={
        Kind.BOOL: "boolean",
        Kind.INT16: "smallint",
        Kind.INT32: "integer",
        Kind.INT64: "bigint",
        Kind.FLOAT32: "real",
        Kind.FLOAT64: "double precision",
        Kind.NUMERIC: "numeric",
        Kind.STRING: "text",
        Kind.BYTES: "bytea",
        Kind.DATE: "date",
        Kind.TIME: "time without time zone",
        Kind.TIMESTAMP: "timestamp without time zone",
        Kind.TIMESTAMPTZ: "timestamp with time zone",
        Kind.INTERVAL: "interval",
        Kind.UUID: "uuid",
        # jsonb drops doubled keys and the order of keys, and refuses a lone surrogate; json is the text as it came.
        Kind.JSON: "json",
    },
    decimal="numeric({precision},{scale})",
    placeholder=_MARK,
    temporary="pg_temp",
    image_of="jsonb_object(CAST({names} AS TEXT[]), CAST(ARRAY[{values}] AS TEXT[]))",
    image_value="({image} ->> CAST(\x00 AS TEXT))",
    image_has="jsonb_exists({image}, \x00)",
    us_of_time="CAST(EXTRACT(EPOCH FROM {time}) * 1000000 AS BIGINT)",
    time_of_us="(TIMESTAMP WITH TIME ZONE 'epoch' + {us} * INTERVAL '1 microsecond')",
    blob="BYTEA",
    upsert=True,
    row_lock=" FOR UPDATE",
)

_DAY_US = 86_400_000_000
_FIRST_DAY = -2_440_588

CAPABILITIES = Capabilities(
    # Found by trial on PostgreSQL 15. Timestamps reach further than the 64 bits of microseconds since 1970.
    ranges={
        Kind.DATE: (_FIRST_DAY, 2_145_042_905),
        Kind.TIME: (0, _DAY_US),
        Kind.TIMESTAMP: (_FIRST_DAY * _DAY_US, 2**63 - 2),
        Kind.TIMESTAMPTZ: ((_FIRST_DAY + 1) * _DAY_US, 2**63 - 2),
    },
    infinity=frozenset({Kind.DATE, Kind.TIMESTAMP, Kind.TIMESTAMPTZ}),
    nul_in_text=False,
    reads_while_writing=True,
    commit=Commit.TRANSACTION,
    gaps={
        "ranges": "the first day is Julian day 0 (of instants the next: west of Greenwich a session fails on it), the last year 5874897",
        "nul_in_text": "no text type holds the character",
    },
)

_SETTINGS = {
    "lock_timeout": "10s",
    "statement_timeout": "15min",
    "idle_in_transaction_session_timeout": "1min",
    "work_mem": "64MB",
    "temp_buffers": "64MB",
    "jit": "off",
    # With the default of 4 a batch of 20,000 rows is joined by reading a table of 2 million whole: 2 s instead of 0.2.
    "random_page_cost": "1.1",
}
_LOCKED = {
    "search_path": "pg_catalog",
    "client_encoding": "UTF8",
    "default_transaction_isolation": "read committed",
    "default_transaction_read_only": "off",
    "DateStyle": "ISO",
    "IntervalStyle": "iso_8601",
    "TimeZone": "UTC",
    "extra_float_digits": "1",
    "bytea_output": "hex",
    "standard_conforming_strings": "on",
}
"""What exact texts and the order of writers need; cannot be set."""
_QUERY = {"statement_timeout": "10min", "lock_timeout": "10s", "default_transaction_read_only": "on", "jit": "off"}
_NETWORK = {"connect_timeout": 10, "keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3, "tcp_user_timeout": 60_000}


def open(url: str, *, pipeline: str, meta_schema: str, options: Mapping[str, Any]) -> PostgreSql:
    """``options`` are server settings of the writing session (lock_timeout, work_mem, ...), as PostgreSQL spells them."""
    parsed = make_url(url)
    if not parsed.database:
        raise ConfigError("destination.url names no database", hint="write it as postgresql://user:${PASSWORD}@host:5432/warehouse")
    locked = {name.lower() for name in (*_LOCKED, "synchronous_commit")}
    for name in options:
        if name.lower() in locked or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.]*", name):
            raise ConfigError(f"destination.options cannot set {name}", hint="remove it: exact values and durable commits depend on it")
    _q(meta_schema)
    settings = {**_SETTINGS, **{name: str(value) for name, value in options.items()}, **_LOCKED}
    return PostgreSql(parsed, settings, pipeline=pipeline, meta_schema=meta_schema)


class PostgreSql(SqlDestination):
    """The line's thread merges on one connection; ``query`` may be called from any thread and opens its own. Nothing else may."""

    capabilities = CAPABILITIES
    spelling = SPELLING
    copies = True

    def __init__(self, url: URL, settings: Mapping[str, str], *, pipeline: str, meta_schema: str) -> None:
        super().__init__(pipeline=pipeline, meta_schema=meta_schema)
        self._url = url
        self._settings = dict(settings)
        self._main: PostgreSqlConnection | None = None

    def fold(self, identifier: str) -> str:
        """Quoted names differ by case."""
        return identifier

    # Connections

    def connection(self) -> PostgreSqlConnection:
        if self._main is None or not self._main.alive():
            self._main = PostgreSqlConnection(_connect(self._url, self._settings), lambda: _connect(self._url, _QUERY))
        return self._main

    def release(self) -> None:
        """Nothing to let go of: others read and write beside this session."""

    def close(self) -> None:
        if self._main is not None:
            self._main.close()
            self._main = None

    def _add(self, c: Connection, s: TargetSql, delta: Delta) -> None:
        """COPY straight into the target takes half the time."""
        assert isinstance(s, Upsert)
        rows, types = s.added(delta)
        self.connection().copy(s.place, rows, [self.spelling.column_type(t) for t in types])

    # Rights

    def probe(self) -> str:
        version, database, user, standby, superuser = self.connection().fetch(
            """SELECT current_setting('server_version'), current_database(), current_user,
  current_setting('transaction_read_only'), current_setting('is_superuser')"""
        )[0]
        if standby == "on":
            raise translated("25006", "", catalog=False, holders="")
        if found := self.lacking(()):
            raise found[0]
        more = "; cdc query will not run as a superuser" if superuser == "on" else ""
        return f"PostgreSQL {version.split()[0]}, database {database}, can be written as {user}{more}"

    def lacking(self, targets: Sequence[Target]) -> Sequence[CdcError]:
        return lacking(self.connection().fetch, _q, self._meta_schema, targets) or super().lacking(targets)

    def misfit(self, target: Target, schema: TableSchema) -> Misfit | None:
        source, namespace = target.source, target.namespace
        if namespace == "information_schema" or namespace.startswith("pg_"):
            return Misfit(f"{source}: the schema {namespace} is PostgreSQL's own", hint=ANOTHER_TARGET)
        for name in (namespace, target.name, *schema.names):
            if (size := len(name.encode())) > NAME_BYTES:
                column = name if name in schema.names else ""
                cure = "rename the column at the source, or let the connector leave it out" if column else ANOTHER_TARGET
                what = f"cuts names after {NAME_BYTES} bytes, and {name} has {size}"
                return Misfit(f"{source}: PostgreSQL {what}", hint=cure, column=column)
        for name in schema.names:
            if name in OWN_COLUMNS:
                what = f"has a column {name} of its own in each table"
                return Misfit(f"{source}: PostgreSQL {what}", hint="rename the column at the source", column=name)
        for name in schema.key:
            if "json" in self.spelling.column_type(schema.column(name).type):
                what = f"does not compare JSON, of which the key column {name} is"
                return Misfit(f"{source}: PostgreSQL {what}", hint="give it another key at the source")
        own = max(len(self._sql(target).metadata), STAGED_BESIDE + len(schema.key))
        if len(schema.columns) + own > COLUMNS_MAX:
            what = f"has at most {COLUMNS_MAX} columns in a table; {len(schema.columns)} and {own} of this service's are more"
            return Misfit(
                f"{source}: PostgreSQL {what}", hint=f"let the connector leave out {len(schema.columns) + own - COLUMNS_MAX} columns"
            )
        return super().misfit(target, schema)

    def _make_namespace(self, namespace: str) -> Sequence[str]:
        """CREATE SCHEMA IF NOT EXISTS asks for CREATE on the database even where the schema is there, so that is looked up first."""
        there, error = namespace_rights(self.connection().fetch, _q, namespace)
        if error is not None:
            raise error
        if there:
            return ()
        return super()._make_namespace(namespace)

    # What is made

    def _prepare(self, c: Connection) -> None:
        """One process at a time."""
        c.fetch(f"SELECT 1 FROM pg_advisory_xact_lock(hashtextextended({_MARK}, 0))", [f"cdc {self._meta_schema}"])
        super()._prepare(c)
        index = "deleted_keys_key_hash"
        if not c.fetch(f"SELECT 1 FROM pg_indexes WHERE schemaname = {_MARK} AND indexname = {_MARK}", [self._meta_schema, index]):
            c.execute(f"CREATE INDEX {_q(index)} ON {_q(self._meta_schema, 'deleted_keys')} (key_hash)")

    def _ddl(self, c: Connection, s: TargetSql, target: Target, change: Change) -> Iterator[str]:
        yield from super()._ddl(c, s, target, change)
        if isinstance(change, CreateTable) and not _has_key(s, change.schema):
            # A log of changes looks for what it holds already by position.
            there = f"SELECT 1 FROM pg_indexes WHERE schemaname = {_MARK} AND tablename = {_MARK} AND indexdef LIKE '%(_cdc_record)'"
            if not c.fetch(there, [target.namespace, target.name]):
                yield f"CREATE INDEX ON {_q(target.namespace, target.name)} (_cdc_record)"

    def _constraints(self, s: TargetSql, schema: TableSchema) -> Sequence[str]:
        return [f"PRIMARY KEY ({', '.join(map(_q, schema.key))})"] if _has_key(s, schema) else []

    def drift(self, target: Target, schema: TableSchema) -> Sequence[str]:
        """Indexes that somebody added are no drift; a target without its key is."""
        found = list(super().drift(target, schema))
        if not _has_key(self._sql(target), schema) or found == [f"the table {target} is gone"]:
            return found
        sql = f"""SELECT array_agg(CAST(a.attname AS TEXT)) FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
JOIN pg_index AS i ON i.indrelid = c.oid JOIN pg_attribute AS a ON a.attrelid = c.oid
WHERE n.nspname = {_MARK} AND c.relname = {_MARK} AND i.indisunique AND i.indisvalid AND i.indimmediate AND i.indpred IS NULL
  AND a.attnum = ANY((CAST(i.indkey AS SMALLINT[]))[0 : i.indnkeyatts - 1]) GROUP BY i.indexrelid, i.indnkeyatts
HAVING COUNT(*) = i.indnkeyatts"""
        keys = [set(row[0]) for row in self.connection().fetch(sql, [target.namespace, target.name])]
        if set(schema.key) not in keys:
            listed, place = ", ".join(map(_q, schema.key)), _q(target.namespace, target.name)
            found.append(f"the primary key is gone (put it back: ALTER TABLE {place} ADD PRIMARY KEY ({listed}))")
        return found

    # Queries

    def view(self, target: Target, schema: TableSchema) -> PostgreSqlView:
        return PostgreSqlView(Sessions(self._url), self._sql(target), schema, kept=False)

    @contextlib.contextmanager
    def views(self) -> Iterator[Callable[[Target, TableSchema], PostgreSqlView]]:
        with Sessions(self._url) as sessions:
            yield lambda target, schema: PostgreSqlView(sessions, self._sql(target), schema, kept=True)

    def query(self, sql: str, *, rows_max: int) -> pa.Table:
        """At most ``rows_max`` rows of one SELECT, VALUES, TABLE, WITH or EXPLAIN, in a read-only transaction of a session of its own.

        A cursor takes no other statement and no WITH that writes. Functions run with the rights of the role, which is why a superuser is
        refused: some reach the server's files."""
        settings = {**{name: value for name, value in _LOCKED.items() if name != "search_path"}, **_QUERY}
        with contextlib.closing(_connect(self._url, settings)) as raw:
            return _query(raw, sql, rows_max)


def _has_key(s: TargetSql, schema: TableSchema) -> bool:
    return bool(schema.key) and s.by_key


def _q(*path: str) -> str:
    return SPELLING.quote(*path)


class _Session(psycopg.Connection[Any]):
    """A connection that gives up a server which does not answer: the server's own limits end only what the server still does."""

    limit_seconds: float | None = None

    def wait(self, gen: Any, interval: float = 0.1, timeout: float | None = None) -> Any:
        return super().wait(gen, interval, self.limit_seconds if timeout is None else timeout)


def _connect(url: URL, settings: Mapping[str, str]) -> psycopg.Connection[Any]:
    """A session with the settings. Raises Unavailable where nothing answers, ConfigError where the server is not one that can be used."""
    query = {name: value if isinstance(value, str) else value[-1] for name, value in url.query.items()}
    given = query.pop("options", "")
    escaped = {name: re.sub(r"([\\ ])", r"\\\1", value) for name, value in settings.items()}
    options = " ".join([given, *(f"-c {name}={value}" for name, value in escaped.items())])
    login = {"host": url.host, "port": url.port, "user": url.username, "password": url.password, "dbname": url.database}
    present = {name: value for name, value in login.items() if value is not None}
    wanted: dict[str, Any] = {**_NETWORK, "application_name": "cdc", **present, **query, "options": options}
    place = f"{url.host or 'the local socket'}:{url.port or 5432}"
    try:
        raw = _Session.connect(**wanted, autocommit=True, prepare_threshold=None, cursor_factory=psycopg.RawCursor)
    except psycopg.OperationalError as error:
        said = _first_line(error).partition("FATAL:")[2].strip()
        if re.search(r"authentication failed|does not exist|no pg_hba|permission denied|unrecognized configuration|invalid value", said):
            raise ConfigError(f"the warehouse at {place} refuses: {said}", hint="correct destination.url or destination.options") from None
        why = said or _first_line(error).rpartition(": ")[2]
        raise Unavailable(f"the warehouse at {place} does not answer: {why}", hint="start it, or correct destination.url") from None
    except psycopg.Error as error:
        raise ConfigError(f"destination.url cannot be used: {_first_line(error)}", hint="correct destination.url") from None
    with contextlib.suppress(psycopg.Error):  # What is wrong with the session shows at its first use.
        raw.execute("SELECT set_config('synchronous_commit', 'on', FALSE) WHERE current_setting('synchronous_commit') = 'off'")
        ((limit,),) = raw.execute("SELECT CAST(setting AS BIGINT) FROM pg_settings WHERE name = 'statement_timeout'").fetchall()
        raw.limit_seconds = limit / 1000 + GRACE_SECONDS if limit else None
    encoding, version = raw.info.parameter_status("server_encoding"), raw.info.server_version
    if version < 140_000 or encoding != "UTF8":
        raw.close()
        raise ConfigError(
            f"the warehouse at {place} is PostgreSQL {version // 10_000} with {encoding}",
            hint="use version 14 or later, and a database made with ENCODING 'UTF8'",
        )
    return raw


def _query(raw: psycopg.Connection[Any], sql: str, rows_max: int) -> pa.Table:
    if raw.info.parameter_status("is_superuser") == "on":
        raise ConfigError(
            "queries do not run as a superuser: functions could reach the server's files",
            hint="let destination.url name a role of its own: docs/destinations.md has the statements",
        )
    try:
        raw.prepare_threshold = 0
        raw.execute("BEGIN READ ONLY", prepare=False)
        # Prepared, because text without a parameter may hold several statements. Nothing is ever committed.
        if re.match(r"\s*EXPLAIN\b", sql, re.IGNORECASE):
            cursor = raw.execute(sql, prepare=True)
        else:
            raw.execute(f"DECLARE cdc_query NO SCROLL CURSOR FOR {sql}", prepare=True)
            cursor = raw.execute(f"FETCH FORWARD {max(0, int(rows_max))} FROM cdc_query", prepare=False)
    except psycopg.Error as error:
        if error.sqlstate is None or error.sqlstate.startswith(("57P", "08")):
            raise Unavailable(f"the warehouse went away while it read: {_first_line(error)}") from None
        raise ConfigError(f"the query fails: {str(error).strip()}", hint="correct the query; it is one statement that only reads") from None
    result = cursor.pgresult
    if result is None or not result.nfields:
        raise ConfigError("a query is one statement that only reads", hint="write one SELECT; changes come through the source")
    rows = min(result.ntuples, rows_max)
    names = [(result.fname(i) or b"").decode() for i in range(result.nfields)]
    columns = [
        arrow_column(name, [result.get_value(row, i) for row in range(rows)], result.ftype(i), result.fmod(i))
        for i, name in enumerate(names)
    ]
    return pa.table(columns, names=names)


class PostgreSqlConnection:
    """mergers.sql.connection.Connection over one session. What is staged begins the transaction that ``begin`` then takes over."""

    def __init__(self, raw: psycopg.Connection[Any], beside: Callable[[], psycopg.Connection[Any]]) -> None:
        """``beside`` opens another session, to see who holds a lock."""
        self.raw = raw
        self._beside = beside
        self._shapes: dict[tuple[str, object], str] = {}
        self._made: list[tuple[str, object]] = []
        """Shapes whose table was made in this transaction: gone if it does not commit."""
        self._places: dict[str, str] = {}
        self._used: set[str] = set()
        """Tables that hold rows of this transaction."""
        self._counter = 0
        self._staging = False

    def alive(self) -> bool:
        """False where the server has closed the session meanwhile; looks without asking it."""
        if self.raw.closed:
            return False
        if self.raw.pgconn.transaction_status == TransactionStatus.IDLE:
            try:
                for _ in range(2):  # What the server said last, then the end.
                    self.raw.pgconn.consume_input()
            except psycopg.Error:
                self.close()
        return not self.raw.closed

    # Statements

    def execute(self, sql: str, params: Sequence[object] = ()) -> int:
        return max(0, self._run(sql, params).rowcount)

    def fetch(self, sql: str, params: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        cursor = self._run(sql, params)
        try:
            return cursor.fetchall() if cursor.description else []
        except psycopg.Error as error:
            raise self._translated(error) from None

    def _run(self, sql: str, params: Sequence[object]) -> psycopg.Cursor[Any]:
        text = self._placed(sql)
        if params:
            first, *rest = text.split(_MARK)
            text = first + "".join(f"${n}{part}" for n, part in enumerate(rest, start=1))
        try:
            return self.raw.execute(text, params or None)
        except psycopg.Error as error:
            raise self._translated(error) from None

    def _placed(self, sql: str) -> str:
        """The statement with the tables of this batch's shapes. A quoted name cannot hold these names: its marks are doubled."""
        for name, place in self._places.items():
            sql = sql.replace(_q("pg_temp", name), place)
        return sql

    # Staging

    def stage(self, name: str, table: pa.Table, types: Sequence[str]) -> None:
        if self.raw.pgconn.transaction_status == TransactionStatus.IDLE:
            self._run("BEGIN", ())
            self._staging = True
        columns = ", ".join(f"{_q(column)} {type_}" for column, type_ in zip(table.column_names, types, strict=True))
        if "key" in table.column_names:
            # Rows that lie near each other in the target are met one after another: 100,000 random ones take half the time.
            table = table.take(pc.sort_indices(table["key"]))
        self.copy(self._place(name, columns, "({}) ON COMMIT DELETE ROWS", columns), table, types)

    def copy(self, place: str, table: pa.Table, types: Sequence[str]) -> None:
        """Adds the rows to a table that has these columns; Fenced where one has a key that is there."""
        names = ", ".join(map(_q, table.column_names))
        try:
            blocks = binary_blocks(table, types)
            form = "csv" if blocks is None else "binary"
            with self.raw.cursor() as cursor, cursor.copy(f"COPY {place} ({names}) FROM STDIN (FORMAT {form})") as copy:
                for block in csv_blocks(table) if blocks is None else blocks:
                    copy.write(memoryview(block))
        except psycopg.Error as error:
            raise self._translated(error) from None

    def fill(self, name: str, select: str, params: Sequence[object] = ()) -> None:
        text = self._placed(select)
        place = self._place(name, text, "ON COMMIT DELETE ROWS AS {} WITH NO DATA", text, params)
        self._run(f"INSERT INTO {place} {text}", params)

    def _place(self, name: str, shape: str, definition: str, held: str, params: Sequence[object] = ()) -> str:
        """An empty table of the shape: the one that is kept, or one made now."""
        place = self._shapes.pop((name, shape), None)
        if place is None:
            if len(self._shapes) >= SHAPES_MAX:
                self._run(f"DROP TABLE {self._shapes.pop(next(iter(self._shapes)))}", ())
            self._counter += 1
            place = _q("pg_temp", f"{name}_{self._counter}")
            self._run(f"CREATE TEMPORARY TABLE {place} {definition.replace('{}', held)}", params)
            self._made.append((name, shape))
        elif place in self._used:
            self._run(f"TRUNCATE {place}", ())
        self._shapes[name, shape] = place  # As the last one: the first is the one to give up.
        self._used.add(place)
        self._places[name] = place
        return place

    def unstage(self, name: str) -> None:
        if self._staging:
            self.rollback()
        self._places.pop(name, None)

    def columns(self, namespace: str, name: str) -> Sequence[tuple[str, str]] | None:
        sql = f"""SELECT a.attname, format_type(a.atttypid, a.atttypmod)
FROM pg_attribute AS a JOIN pg_class AS c ON c.oid = a.attrelid JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname = {_MARK} AND c.relname = {_MARK} AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum"""
        return [(column, type_) for column, type_ in self.fetch(sql, [namespace, name])] or None

    # Transactions

    def begin(self) -> None:
        if self._staging:
            self._staging = False
        else:
            self._run("BEGIN", ())

    def commit(self) -> None:
        try:
            done = self.raw.execute("COMMIT")
        except psycopg.Error as error:
            if self.raw.closed or error.sqlstate is None:
                self.close()
                raise CommitUnknown("the connection to the warehouse was lost during COMMIT") from None
            raise self._translated(error) from None
        if done.statusmessage != "COMMIT":
            raise CdcError("the warehouse rolled a transaction back that was to be committed", code="warehouse")
        self._made.clear()
        self._used.clear()

    def rollback(self) -> None:
        self._staging = False
        with contextlib.suppress(psycopg.Error):
            self.raw.execute("ROLLBACK")
        for shape in self._made:
            self._shapes.pop(shape, None)
        self._made.clear()
        self._used.clear()
        self._places.clear()

    def close(self) -> None:
        with contextlib.suppress(psycopg.Error):
            self.raw.close()

    # Errors

    def _translated(self, error: psycopg.Error) -> CdcError:
        """The service's error for PostgreSQL's. Its messages may quote cell values; ours do not."""
        if self.raw.closed or (error.sqlstate is None and isinstance(error, psycopg.OperationalError)):
            self.close()
            return Unavailable("the connection to the warehouse was lost", hint="nothing to do: it is opened again")
        state = error.sqlstate or ""
        if not state:
            return CdcError(f"the warehouse failed: {type(error).__name__}", code="warehouse")
        holders = self._holders() if state in (LOCK_TIMEOUT, "40P01") else ""
        return translated(state, error.diag.message_primary or "", catalog=error.diag.schema_name == "pg_catalog", holders=holders)

    def _holders(self) -> str:
        """Who else holds locks on tables here, the longest transaction first; names no query, because its text may hold values."""
        sql = """SELECT a.pid, a.usename, a.application_name, COALESCE(a.state, 'state unknown') FROM pg_locks AS l
JOIN pg_stat_activity AS a USING (pid) JOIN pg_database AS d ON d.oid = l.database
WHERE l.granted AND l.locktype = 'relation' AND l.relation >= 16384 AND d.datname = current_database()
  AND a.pid NOT IN (pg_backend_pid(), $1)
GROUP BY 1, 2, 3, 4 ORDER BY bool_and(l.mode = 'AccessShareLock'), MIN(a.xact_start) LIMIT 3"""
        try:
            with contextlib.closing(self._beside()) as beside:
                found = beside.execute(sql, [self.raw.info.backend_pid]).fetchall()
        except (psycopg.Error, CdcError):
            return ""
        return ": " + ", ".join(f"pid {pid} ({user}, {app or 'no name'}, {state})" for pid, user, app, state in found) if found else ""


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
