"""What the conformance suite needs of each destination beside its contract, and a small builder of deltas.

A destination file without a harness here fails the suite.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import importlib
import json
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from decimal import Decimal
from pathlib import Path
from typing import Any, Protocol

import psycopg
import pyarrow as pa
import pytest
import sqlglot
from sqlglot import exp

import mergers.destinations
from cdc_service.core.errors import Unavailable
from cdc_service.core.evolve import evolve
from cdc_service.core.keys import key_text
from cdc_service.core.logical import INFINITY, Kind, LogicalType
from cdc_service.core.order import BY_RECORD, Ordering
from cdc_service.core.types import (
    BASE,
    META,
    Base,
    Column,
    Delta,
    LogId,
    Mode,
    Op,
    Receipt,
    Rejected,
    Span,
    TableId,
    TableSchema,
    Target,
    Truncation,
)
from cdc_service.failpoints import acting
from cdc_service.ports.destination import Destination
from cdc_service.testing.memory import CHANGE_COLUMNS, CHANGE_TYPES, Kept, MemoryDestination, restore
from deploy.local.stack import Stack
from mergers.destinations.duckdb import DuckDbConnection
from mergers.destinations.duckdb import open as open_duckdb
from mergers.destinations.postgresql import PostgreSql, PostgreSqlConnection
from mergers.destinations.postgresql import open as open_postgresql

mergers.destinations.__path__.append(str(Path(__file__).parents[2] / "docs" / "examples" / "destinations"))
"""The examples of docs/ are destinations too, for the tests alone."""
sqlite: Any = importlib.import_module("mergers.destinations.sqlite")

LOG = LogId("cluster", "shop.public.t", "topic-1")


def text(name: str, **more: Any) -> Column:
    return Column(name, LogicalType(Kind.STRING), **more)


def number(name: str, **more: Any) -> Column:
    return Column(name, LogicalType(Kind.INT64), **more)


ITEMS = TableSchema(TableId("public", "items"), (number("id"), text("name"), text("body")), ("id",))


class Harness(Protocol):
    """One warehouse under test. ``open`` gives a new writer on it; ``rows`` has the shape of MemoryDestination.rows."""

    name: str

    def __init__(self, folder: Path) -> None: ...
    def open(self) -> Destination: ...
    def rows(self, destination: Any, target: Target, schema: TableSchema) -> pa.Table: ...
    def ledger(self, destination: Any, target: Target) -> list[dict[str, Any]]:
        """start, stop, applied, folded, duplicate, parked, filtered and partition of each row of the ledger, oldest first."""
        ...

    def deleted(self, destination: Any, target: Target) -> dict[str, tuple[int, int]]: ...
    def crash_at(self, destination: Any, call: int, *, after: bool = False) -> contextlib.AbstractContextManager[list[int]]:
        """Raises Unavailable instead of the ``call``-th inner call (from 0), or ``after`` it: the work is done and the reply lost. The list
        says how many calls there were."""
        ...

    def close(self) -> None: ...


class MemoryHarness:
    name = "memory"

    def __init__(self, folder: Path) -> None:
        self._tables: dict[Target, Kept] = {}

    def open(self) -> MemoryDestination:
        return MemoryDestination(self._tables)

    def rows(self, destination: MemoryDestination, target: Target, schema: TableSchema) -> pa.Table:
        return destination.rows(target, schema)

    def ledger(self, destination: MemoryDestination, target: Target) -> list[dict[str, Any]]:
        names = ("partition", "start", "stop", "applied", "folded", "duplicate", "parked", "filtered")
        return [{name: getattr(row, name) for name in names} for _, row in destination.kept(target).ledger]

    def deleted(self, destination: MemoryDestination, target: Target) -> dict[str, tuple[int, int]]:
        return {key: gone.version for key, gone in destination.kept(target).deleted.items()}

    @contextlib.contextmanager
    def crash_at(self, destination: MemoryDestination, call: int, *, after: bool = False) -> Iterator[list[int]]:
        calls = [0]  # Between two steps, so that behind one is before the next; the last one is the reply.

        def step(name: str) -> None:
            calls[0] += 1
            if calls[0] == call + 1:
                raise Unavailable(f"crashed at {name}")

        destination.step = step
        try:
            with acting(step):
                yield calls
        finally:
            destination.step = lambda name: None

    def close(self) -> None:
        """Nothing is kept outside of the process."""


class SqlHarness:
    """What the harnesses of SQL destinations share; they open them, and spell two things."""

    name: str
    oldest_first: str
    """The order of the ledger's rows."""

    def open(self) -> Any:
        raise NotImplementedError

    def rows(self, destination: Any, target: Target, schema: TableSchema) -> pa.Table:
        q = destination.spelling.quote
        if target.mode is Mode.APPEND:
            return self._changes(destination, target, schema)
        names = [*schema.names, "_cdc_gen", "_cdc_record", *(["_cdc_deleted"] if target.mode is Mode.SOFT_DELETE else [])]
        place = q(target.namespace, target.name)
        found = destination.query(f"SELECT {', '.join(map(q, names))} FROM {place}", rows_max=10_000_000)
        found = found.rename_columns(names)  # Arrow's C interface cuts a name at a NUL.
        typed = pa.table([self.typed(found[c.name], c.type) for c in schema.columns], names=list(schema.names))
        for name in names[len(schema.columns) :]:
            typed = typed.append_column(name, found[name])
        order = pa.table({"k": key_text(typed.select(schema.key))}).sort_by("k")
        places = pa.compute.index_in(order["k"], key_text(typed.select(schema.key)))
        return typed.take(places)

    def _changes(self, destination: Any, target: Target, schema: TableSchema) -> pa.Table:
        q = destination.spelling.quote
        shown = [
            f"{destination.spelling.us_of_time.format(time=q(name))} AS us" if name == "_cdc_source_ts" else q(name)
            for name in CHANGE_COLUMNS
        ]
        sql = f"SELECT {', '.join([*map(q, schema.names), *shown])} FROM {q(target.namespace, target.name)}"
        found = destination.query(sql, rows_max=10_000_000)
        data = [self.typed(found.column(i), c.type) for i, c in enumerate(schema.columns)]
        more = [found.column(len(data) + i).cast(type_) for i, type_ in enumerate(CHANGE_TYPES)]
        typed = pa.table([*data, *more], names=[*schema.names, *CHANGE_COLUMNS])
        keys = key_text(typed.select(schema.key)).to_pylist()
        about = [typed[name].to_pylist() for name in ("_cdc_gen", "_cdc_record", "_cdc_seq", "_cdc_offset")]
        order = sorted(range(len(keys)), key=lambda i: (about[0][i], about[1][i], keys[i] or "", about[2][i], about[3][i]))
        return typed.take(pa.array(order, pa.int64()))

    def typed(self, values: pa.ChunkedArray, type_: LogicalType) -> pa.ChunkedArray | pa.Array:
        """A column of a query's result as the Arrow values that were merged."""
        return values.cast(type_.arrow)

    def ledger(self, destination: Any, target: Target) -> list[dict[str, Any]]:
        sql = """SELECT "partition", start_offset AS start, stop_offset AS stop, applied, folded, duplicate, parked, filtered
FROM {} WHERE pipeline = 'shop' AND source_table = '{}' ORDER BY {}""".format(
            destination.spelling.quote("_cdc", "batch"), str(target.source).replace("'", "''"), self.oldest_first
        )
        rows: list[dict[str, Any]] = destination.query(sql, rows_max=1_000_000).to_pylist()
        return rows

    def deleted(self, destination: Any, target: Target) -> dict[str, tuple[int, int]]:
        place, source = destination.spelling.quote("_cdc", "deleted_keys"), str(target.source).replace("'", "''")
        sql = f"SELECT key, gen, record FROM {place} WHERE source_table = '{source}'"
        return {row["key"]: (row["gen"], row["record"]) for row in destination.query(sql, rows_max=1_000_000).to_pylist()}

    @contextlib.contextmanager
    def crash_at(self, destination: Any, call: int, *, after: bool = False) -> Iterator[list[int]]:
        calls, connection = [0], destination.connection()
        real = connection.raw
        connection.raw = _Crashing(real, call, calls, after)
        try:
            yield calls
        finally:
            connection.raw = real

    def close(self) -> None:
        """Takes the warehouse away."""


class DuckDbHarness(SqlHarness):
    name = "duckdb"
    oldest_first = "rowid"

    def __init__(self, folder: Path) -> None:
        self._url = f"duckdb:///{folder}/warehouse.duckdb"

    def open(self) -> Any:
        return open_duckdb(self._url, pipeline="shop", meta_schema="_cdc", options={"threads": 2, "memory_limit": "500MB"})


class PostgreSqlHarness(SqlHarness):
    """A database of its own, owned by a role that is no superuser."""

    name = "postgresql"
    oldest_first = "committed_at, ctid"
    server: Stack | None = None
    """Set by the fixture ``postgres``."""

    def __init__(self, folder: Path | None = None) -> None:
        assert self.server is not None, "ask for the fixture postgres"
        self.database = f"w_{uuid.uuid4().hex[:12]}"
        self.admin("CREATE DATABASE {} OWNER cdc", database="postgres")
        self.url = self.server.pg_url_for(self.database, "cdc")

    def admin(self, *statements: str, database: str = "") -> list[Any]:
        """Runs statements as the superuser, {} being this database; the rows of the last."""
        assert self.server is not None
        with psycopg.connect(self.server.pg_url_for(database or self.database), autocommit=True) as connection:
            for statement in statements:
                cursor = connection.execute(statement.replace("{}", self.database).encode())
            return cursor.fetchall() if cursor.description else []

    def open(self, **options: str) -> PostgreSql:
        return open_postgresql(self.url, pipeline="shop", meta_schema="_cdc", options=options)

    def typed(self, values: pa.ChunkedArray, type_: LogicalType) -> pa.ChunkedArray | pa.Array:
        """PostgreSQL has no arrays of arrays: each inner one is there as its text."""
        if type_.element is None or type_.element.kind is not Kind.ARRAY:
            return super().typed(values, type_)
        return pa.array([None if v is None else [None if t is None else _inner(t) for t in v] for v in values.to_pylist()], type_.arrow)

    def close(self) -> None:
        self.admin("DROP DATABASE IF EXISTS {} WITH (FORCE)", database="postgres")


def _inner(text: str) -> list[int | None]:
    return [None if item == "NULL" else int(item) for item in text[1:-1].split(",") if item]


class SqliteHarness(SqlHarness):
    name = "sqlite"
    oldest_first = "rowid"

    def __init__(self, folder: Path) -> None:
        self.url = f"sqlite:///{folder}/warehouse.db"

    def open(self) -> Any:
        return sqlite.open(self.url, pipeline="shop", meta_schema="_cdc", options={})

    def typed(self, values: pa.ChunkedArray, type_: LogicalType) -> pa.ChunkedArray | pa.Array:
        return restore([_unheld(v, type_) for v in values.to_pylist()], type_.arrow)


def _unheld(value: Any, type_: LogicalType) -> Any:
    """A value as the column of SQLite says it, dates and times as the integers behind them."""
    if value is None:
        return None
    if type_.element is not None:
        items = json.loads(value, parse_int=str, parse_float=str) if isinstance(value, str) else value
        return [_unheld(item, type_.element) for item in items]
    infinity, epoch, us = INFINITY.get(type_.kind), dt.datetime(1970, 1, 1), dt.timedelta(microseconds=1)
    if infinity is not None and value.endswith("infinity"):
        return infinity if value == "infinity" else -infinity
    match type_.kind:
        case Kind.BOOL:
            return bool(value)
        case Kind.INT16 | Kind.INT32 | Kind.INT64:
            return int(value)
        case Kind.BYTES:
            return bytes.fromhex(value)
        case Kind.FLOAT32 | Kind.FLOAT64:
            return float(value)
        case Kind.DECIMAL:
            return Decimal(value)
        case Kind.DATE:
            return (dt.date.fromisoformat(value) - epoch.date()).days
        case Kind.TIME:
            return 86_400_000_000 if value == "24:00:00" else (dt.datetime.fromisoformat(f"1970-01-01 {value}") - epoch) // us
        case Kind.TIMESTAMP:
            return (dt.datetime.fromisoformat(value) - epoch) // us
        case Kind.TIMESTAMPTZ:
            return (dt.datetime.fromisoformat(value) - epoch.replace(tzinfo=dt.UTC)) // us
    return value


class _Crashing:
    """A driver connection that dies once, at its n-th use or behind it; the transaction under way is lost with it."""

    def __init__(self, raw: Any, call: int, calls: list[int], after: bool) -> None:
        self._raw, self._call, self._calls, self._after = raw, call, calls, after

    def __getattr__(self, name: str) -> Any:
        return getattr(self._raw, name)

    def _use(self, what: str, use: Callable[[], Any]) -> Any:
        self._calls[0] += 1
        dies = self._calls[0] == self._call + 1
        result = None if dies and not self._after else use()
        if dies:
            raise Unavailable(f"crashed {'behind' if self._after else 'at'} {what}")
        return result

    def execute(self, sql: str, *params: Any, **more: Any) -> Any:
        if sql.startswith(("ROLLBACK", "DROP TABLE IF EXISTS", "DROP VIEW IF EXISTS")):  # Cleaning up may fail, and stops nothing.
            return self._raw.execute(sql, *params, **more)
        return self._use(sql[:40], lambda: self._raw.execute(sql, *params, **more))

    def cursor(self) -> Any:
        return self._use("COPY", self._raw.cursor)

    def executemany(self, *args: Any) -> Any:
        return self._use("INSERT many", lambda: self._raw.executemany(*args))


HARNESSES: Mapping[str, type[Harness]] = {
    harness.name: harness for harness in (MemoryHarness, DuckDbHarness, PostgreSqlHarness, SqliteHarness)
}
PARAMS = [pytest.param(name, marks=[pytest.mark.stack] if name == "postgresql" else []) for name in sorted(HARNESSES)]
"""The names for a fixture's params; the ones that need a server carry its mark."""


@contextlib.contextmanager
def harness_of(name: str, folder: Path, request: pytest.FixtureRequest) -> Iterator[Any]:
    """One warehouse of the destination, gone at the end."""
    if name == "postgresql":
        request.getfixturevalue("postgres")
    made = HARNESSES[name](folder)
    try:
        yield made
    finally:
        made.close()


_PARSED: set[tuple[str, str]] = set()


@contextlib.contextmanager
def parsed_statements() -> Iterator[None]:
    """Every statement that a SQL destination runs meanwhile is one that sqlglot can parse, as exactly one statement. None needs what some
    warehouses lack (INSERT ... ON CONFLICT, RETURNING, WITH before what writes), but for the upsert of rows where the spelling has one."""
    seen: set[tuple[str, str]] = set()
    spied: list[tuple[Any, str, str]] = [
        (DuckDbConnection, "fetch", "duckdb"),
        (PostgreSqlConnection, "_run", "postgres"),
        (sqlite.SqliteConnection, "fetch", "sqlite"),
    ]

    def spy(real: Any, spelling: str) -> Any:
        def run(self: Any, sql: str, params: Sequence[object] = ()) -> Any:
            seen.add((spelling, sql.replace("\x00", "$1")))
            return real(self, sql, params)

        return run

    with pytest.MonkeyPatch.context() as patch:
        for connection, method, spelling in spied:
            patch.setattr(connection, method, spy(getattr(connection, method), spelling))
        yield
    for spelling, sql in seen - _PARSED:
        (statement,) = sqlglot.parse(sql, read=spelling)
        assert statement is not None
        assert not isinstance(statement, exp.Command), f"sqlglot does not understand: {sql}"
        assert statement.sql(dialect=spelling)
        if statement.find(exp.OnConflict, exp.Returning):
            assert spelling == "postgres", sql
            assert "_cdc" not in {table.db for table in statement.find_all(exp.Table)}, sql
        assert not (isinstance(statement, (exp.Insert, exp.Update, exp.Delete)) and statement.find(exp.With)), sql
    _PARSED.update(seen)


@dataclass
class Change:
    """A row of a delta to be; ``values`` by column name, ``base`` the key values of the base row, ``move`` the record of a move,
    ``left`` the record at which the base row left its key (None: the change's own)."""

    op: Op
    values: Mapping[str, Any]
    record: int
    partition: int = 0
    gen: int = 0
    moved: bool = False
    unsent: tuple[str, ...] = ()
    base: Mapping[str, Any] | None = None
    move: int | None = None
    left: int | None = None
    minor: int = 0


@dataclass
class Feed:
    """A log of one table: gives each change the next offset of its partition, and makes deltas of them."""

    destination: Any
    schema: TableSchema
    mode: Mode = Mode.UPSERT
    log: LogId = LOG
    full_metadata: bool = True
    ordering: Ordering = BY_RECORD
    partitions: tuple[int, ...] = (0, 1)
    next: dict[int, int] = field(default_factory=dict)
    epochs: dict[int, int] = field(default_factory=dict)

    @property
    def target(self) -> Target:
        return Target(self.schema.table, self.schema.table.schema, self.schema.table.name, self.mode, self.full_metadata, self.ordering)

    @property
    def own(self) -> TableSchema:
        own: TableSchema = self.destination.schemas(self.target)[-1]
        return own

    def start(self) -> Feed:
        self.destination.prepare()
        self.evolve(self.schema)
        return self.take()

    def evolve(self, schema: TableSchema) -> None:
        changes, own = evolve(tuple(self.destination.schemas(self.target)), schema)
        self.destination.evolve(self.target, changes, own)

    def take(self) -> Feed:
        taken = self.destination.claim(self.target, self.log, {p: self.next.get(p, 0) for p in self.partitions})
        self.epochs = {c.partition: c.epoch for c in taken}
        self.next = {c.partition: c.next_offset for c in taken}
        return self

    def delta(
        self,
        *changes: Change,
        schema: TableSchema | None = None,
        truncation: Truncation | None = None,
        rejected: Sequence[tuple[int, str | None]] = (),
        filtered: Mapping[int, int] | None = None,
    ) -> Delta:
        """``rejected`` are (partition, key text); ``filtered`` counts tombstones per partition. Offsets follow one another."""
        schema = schema or self.schema
        at = dict(self.next)
        records = dict.fromkeys(at, 0)

        def place(partition: int) -> int:
            records[partition] += 1
            at[partition] += 1
            return at[partition] - 1

        offsets = [place(c.partition) for c in changes]
        parked = tuple(
            Rejected(p, place(p), b"key", b"value", [("h", b"\xff"), ("n", None)], key, "decode", "bad_json", "not JSON")
            for p, key in rejected
        )
        counts: dict[int, dict[str, int]] = {}
        if truncation is not None:
            place(truncation.partition)
            counts[truncation.partition] = {"applied": 1, "folded": 0, "duplicate": 0}
        for partition, count in (filtered or {}).items():
            for _ in range(count):
                place(partition)
        spans = tuple(Span(p, self.next[p], at[p], records[p], (filtered or {}).get(p, 0)) for p in at if at[p] > self.next[p])
        return _with_base(
            Delta(
                batch_id=uuid.uuid4().hex,
                target=self.target,
                schema=schema,
                data=pa.table(
                    [restore([c.values.get(col.name) for c in changes], col.type.arrow) for col in schema.columns], schema=schema.arrow
                ),
                meta=_meta(schema, changes, offsets),
                spans=spans,
                counts=counts,
                truncation=truncation,
                rejected=parked,
                snapshot_record=max((c.record for c in changes if c.record < 0), default=None),
            ),
            changes,
        )

    def merge(self, delta: Delta) -> Receipt:
        receipt: Receipt = self.destination.merge(delta, self.epochs, self.log, self.own)
        self.next.update({span.partition: span.stop for span in delta.spans})
        return receipt

    def apply(self, *changes: Change, **more: Any) -> Receipt:
        return self.merge(self.delta(*changes, **more))


def _meta(schema: TableSchema, changes: Sequence[Change], offsets: Sequence[int]) -> pa.Table:
    keys = pa.table(
        [restore([c.values[name] for c in changes], schema.column(name).type.arrow) for name in schema.key], names=list(schema.key)
    )
    columns = {
        "op": [int(c.op) for c in changes],
        "partition": [c.partition for c in changes],
        "offset": offsets,
        "commit": [c.record for c in changes],
        "record": [c.record for c in changes],
        "minor": [c.minor for c in changes],
        "source_us": [1_700_000_000_000_000] * len(changes),
        "index": list(range(len(changes))),
    }
    meta = pa.table([pa.array(columns[f.name], f.type) for f in META], names=META.names)
    return (
        meta.append_column("gen", pa.array([c.gen for c in changes], pa.int32()))
        .append_column("key", key_text(keys) if changes else pa.array([], pa.string()))
        .append_column("moved", pa.array([c.moved for c in changes], pa.bool_()))
    )


def _with_base(delta: Delta, changes: Sequence[Change]) -> Delta:
    names = sorted({name for c in changes for name in c.unsent})
    if not names:
        return delta
    schema = delta.schema
    bases = [(c.base or {k: c.values[k] for k in schema.key}) if c.unsent else dict.fromkeys(schema.key) for c in changes]
    base_key = pa.table([restore([b[k] for b in bases], schema.column(k).type.arrow) for k in schema.key], names=list(schema.key))
    about = [
        key_text(base_key),
        pa.array([c.move for c in changes], pa.int64()),
        pa.array([(c.left or c.record) if c.unsent else None for c in changes], pa.int64()),
        pa.nulls(len(changes), pa.int32()),
        pa.array([None if c.move is None else 0 for c in changes], pa.int64()),
        pa.array([c.minor if c.unsent else None for c in changes], pa.int64()),
        pa.array([at if c.unsent else None for c, at in zip(changes, delta.meta["offset"].to_pylist(), strict=True)], pa.int64()),
    ]
    return Delta(
        **{f.name: getattr(delta, f.name) for f in fields(delta) if f.name not in ("unsent", "base")},
        unsent=pa.table({name: pa.array([name in c.unsent for c in changes]) for name in names}),
        base=Base(base_key, pa.table(about, schema=BASE)),
    )
