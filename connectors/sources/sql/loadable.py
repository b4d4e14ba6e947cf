# ruff: noqa: S608  (names enter statements through the dialect's own quoting; values are parameters)
"""Tables of any database that SQLAlchemy knows, read by queries (ports.load): one SELECT a reading, in one transaction, cut into pages.

Types and values are exact or set aside (connectors.sources.sql.values). What an engine cannot tell, such as transactions that are still
open, is not guessed: ``settled`` is the highest cursor then, and a lookback is what covers late commits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from types import TracebackType
from typing import Any

import pyarrow as pa
from sqlalchemy import Connection, Engine, Row, create_engine, event, inspect, text, types
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError, NoSuchModuleError, OperationalError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from cdc_service.core.errors import CdcError, ConfigError, Unavailable
from cdc_service.core.logical import DECIMAL_DIGITS_MAX, Kind, LogicalType, decimal
from cdc_service.core.types import TableId
from cdc_service.ports.load import Fault, LoadedColumn, LoadedTable, Page, Part, Place, Reading
from connectors.sources.sql.spelling import Sqlite, Standard
from connectors.sources.sql.values import column as exact_column
from connectors.sources.sql.values import raw

BUSY_SECONDS = 30
"""How long a lock of a file is waited for."""
NAME = "inexact_value"


def open_loadable(url: URL) -> SqlLoadable:
    return SqlLoadable(url)


class SqlLoadable:
    """ports.load.Loadable."""

    def __init__(self, url: URL) -> None:
        self.name = url.get_backend_name()
        self.place = url.set(username=None, password=None, query={}).render_as_string()
        self._url = url
        self._spelling = Sqlite() if self.name == "sqlite" else Standard()
        more: dict[str, Any] = {"connect_args": {"timeout": BUSY_SECONDS}} if self.name == "sqlite" else {}
        try:
            self._engine = create_engine(url, poolclass=NullPool, hide_parameters=True, **more)
        except (NoSuchModuleError, ModuleNotFoundError) as error:
            hint = "install the package that SQLAlchemy names for it, and write scheme+driver://"
            raise ConfigError(f"no driver for {url.drivername}:// is installed: {error}", hint=hint) from None
        if self.name == "sqlite":
            event.listen(self._engine, "connect", _text_as_bytes)

    def close(self) -> None:
        self._engine.dispose()

    def tables(self) -> Sequence[TableId]:
        with self._asking() as connection:
            inspector = inspect(connection)
            schemas = ["main"] if self.name == "sqlite" else inspector.get_schema_names()
            skipped = {"information_schema", "performance_schema", "mysql", "sys"}
            return sorted(
                TableId(schema, name)
                for schema in schemas
                if schema not in skipped and not schema.startswith("pg_")
                for name in inspector.get_table_names(schema=schema)
            )

    def table(self, table: TableId) -> LoadedTable | None:
        with self._asking() as connection:
            inspector = inspect(connection)
            if not inspector.has_table(table.name, schema=table.schema):
                return None
            found = inspector.get_columns(table.name, schema=table.schema)
            key = tuple(inspector.get_pk_constraint(table.name, schema=table.schema)["constrained_columns"] or ())
            # An expression has no name.
            indexes = [(tuple(i["column_names"]), i["unique"]) for i in inspector.get_indexes(table.name, schema=table.schema)]
            indexes += [(tuple(u["column_names"]), True) for u in inspector.get_unique_constraints(table.name, schema=table.schema)]
            required = {c["name"] for c in found if not c["nullable"]} | set(key)
            sets = [tuple(str(name) for name in names) for names, unique in indexes if unique and set(names) <= required]
            first = [str(names[0]) for names, _ in indexes if names and names[0]]
            columns = tuple(self._column(c, key) for c in found)
            return LoadedTable(
                table, columns, key, tuple(dict.fromkeys(one for one in (key, *sets) if one)), tuple(dict.fromkeys([*key[:1], *first]))
            )

    def _column(self, found: Any, key: Sequence[str]) -> LoadedColumn:
        spelled = found["type"].compile(dialect=self._engine.dialect) if not isinstance(found["type"], types.NullType) else ""
        kind = _logical(found["type"], exact_text=self.name == "sqlite")
        reason = "" if kind is not None else f"a {spelled or 'column without a type'} has no exact form here"
        return LoadedColumn(found["name"], kind, bool(found["nullable"]) and found["name"] not in key, spelled, reason)

    def snapshot(self, reading: Reading) -> SqlSnapshot:
        return SqlSnapshot(self._engine, self._spelling, reading)

    @contextmanager
    def _asking(self) -> Iterator[Connection]:
        with _explained(self._url), self._engine.connect() as connection:
            yield connection


class SqlSnapshot:
    """ports.load.Snapshot over one transaction, whose first statement takes its state."""

    def __init__(self, engine: Engine, spelling: Standard, reading: Reading) -> None:
        self._url, self._spelling, self._reading = engine.url, spelling, reading
        self._marks = engine.dialect.identifier_preparer
        self._where = ".".join(self._quote(name) for name in (reading.table.schema, reading.table.name))
        with _explained(self._url):
            self._connection = engine.connect()
        try:
            with _explained(self._url):
                if spelling.snapshot:
                    self._connection = self._connection.execution_options(isolation_level=spelling.snapshot)
                else:
                    self._connection.exec_driver_sql("BEGIN")
                # Before the state is taken, so that it never claims to be newer than it is.
                self.at_us = time.time_ns() // 1000
                self._connection.execute(text(f"SELECT 1 FROM {self._where} WHERE 1 = 0"))
                self._high = self._highest()
        except BaseException:
            self._connection.close()
            raise

    def __enter__(self) -> SqlSnapshot:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._connection.close()

    def _quote(self, name: str) -> str:
        """For text(), in which a colon begins a parameter; what a percent sign means to the driver is its own matter there."""
        p = self._marks
        return f"{p.initial_quote}{name.replace(p.escape_quote, p.escape_to_quote)}{p.final_quote}".replace(":", r"\:")

    def _highest(self) -> str | None:
        if self._reading.cursor is None:
            return None
        name = self._quote(self._reading.cursor)
        top = f"SELECT {name} AS c FROM {self._where} WHERE {name} IS NOT NULL ORDER BY {name} DESC"
        found = self._connection.execute(text(f"SELECT {self._spelling.text('c')} FROM ({top} LIMIT 1) AS m")).scalar()
        return None if found is None else self._spelling.place(found)

    def high(self) -> str | None:
        return self._high

    def settled(self) -> tuple[str | None, str]:
        return self._high, ""

    def null_cursors(self) -> int:
        return 0 if self._reading.cursor is None else self._counted(f"{self._quote(self._reading.cursor)} IS NULL", {})

    def twins(self) -> bool:
        names = [self._quote(name) for name in self._reading.key]
        missing = " OR ".join(f"{name} IS NULL" for name in names)
        several = f"SELECT 1 FROM {self._where} GROUP BY {', '.join(names)} HAVING COUNT(*) > 1 LIMIT 1"
        with _explained(self._url):
            return bool(self._counted(missing, {})) or self._connection.execute(text(several)).first() is not None

    def count(self, part: Part) -> int:
        return self._counted(*self._conditions(part))

    def _counted(self, where: str, values: Mapping[str, Any]) -> int:
        with _explained(self._url):
            return int(self._connection.execute(text(f"SELECT COUNT(*) FROM {self._where}{_clause(where)}"), values).scalar_one())

    def pages(self, part: Part, rows: int) -> Iterator[Page]:
        reading = self._reading.by_key() if part.nulls else self._reading
        where, values = self._conditions(part)
        names = [c.name for c in self._reading.columns]
        # Of each value the text too, by which a place is told; behind the row's own columns.
        places = [f"{self._spelling.text(self._quote(name))} AS _cdc_place_{i}" for i, name in enumerate(reading.order)]
        order = ", ".join(self._quote(name) for name in reading.order)
        sql = f"SELECT {', '.join([*map(self._quote, names), *places])} FROM {self._where}{_clause(where)} ORDER BY {order}"
        with _explained(self._url):
            result = self._connection.execution_options(stream_results=True, max_row_buffer=rows).execute(text(sql), values)
            for found in result.partitions(rows):
                yield self._page(names, found)

    def _page(self, names: Sequence[str], found: Sequence[Row[Any]]) -> Page:
        columns = list(zip(*found, strict=True))
        arrays, faults = [], []
        for column, values in zip(self._reading.columns, columns[: len(names)], strict=True):
            array, wrong = exact_column(values, column.type)
            arrays.append(array)
            faults += [Fault(row, column.name, NAME, f"column {column.name}: its value {why}") for row, why in wrong.items()]
        last = tuple(map(self._spelling.place, found[-1][len(names) :]))
        return Page(pa.table(arrays, names=list(names)), last, faults, lambda row: raw(names, found[row][: len(names)]))

    def _conditions(self, part: Part) -> tuple[str, dict[str, Any]]:
        values: dict[str, Any] = {}

        def value(name: str, said: str) -> str:
            parameter = f"p{len(values)}"
            sql, values[parameter] = self._spelling.value(self._reading.column(name), said, parameter)
            return sql

        cursor, said = self._reading.cursor, []
        if part.nulls:
            assert cursor is not None
            return f"{self._quote(cursor)} IS NULL", {}
        if cursor is not None:
            said.append(f"{self._quote(cursor)} IS NOT NULL")
            if part.low is not None:
                low = self._spelling.back(self._reading.column(cursor), part.low, part.lookback) if part.lookback else part.low
                said.append(f"{self._quote(cursor)} >= {value(cursor, low)}")
            if part.until is not None:
                said.append(f"{self._quote(cursor)} < {value(cursor, part.until)}")
        if part.after is not None:
            said.append(self._behind(self._reading.order, part.after, value))
        return " AND ".join(said), values

    def _behind(self, order: Sequence[str], after: Place, value: Callable[[str, str], str]) -> str:
        """Written out, since not every engine compares rows: (a, b) > (1, 2) is a >= 1 AND (a > 1 OR b > 2)."""
        name = self._quote(order[0])
        if len(order) == 1:
            return f"{name} > {value(order[0], after[0])}"
        rest = self._behind(order[1:], after[1:], value)
        return f"({name} >= {value(order[0], after[0])} AND ({name} > {value(order[0], after[0])} OR {rest}))"

    def written(self, cursor: str) -> str:
        assert self._reading.cursor is not None
        return self._spelling.given(self._reading.column(self._reading.cursor), cursor)


def _clause(where: str) -> str:
    return f" WHERE {where}" if where else ""


_decoded = partial(str, encoding="utf-8", errors="surrogateescape")
"""Made of C alone: it is called for each value."""


def _text_as_bytes(connection: Any, record: object) -> None:
    """A text that is no UTF-8 must not end the reading: it comes with marks that no text of ours has, and its row is set aside."""
    connection.text_factory = _decoded
    connection.isolation_level = None  # The driver would begin and end transactions by itself.


def _logical(type_: types.TypeEngine[Any], *, exact_text: bool) -> LogicalType | None:
    """``exact_text``: the driver gives moments and decimals as they are kept, whatever that is."""
    found: Kind | None
    match type_:
        case types.Boolean():
            found = Kind.BOOL
        case types.SmallInteger() if not exact_text:
            found = Kind.INT16
        case types.BigInteger() | types.Integer() if exact_text or isinstance(type_, types.BigInteger):
            found = Kind.INT64
        case types.Integer():
            found = Kind.INT32
        case types.Float():
            found = Kind.FLOAT64
        case types.Numeric() if type_.precision is None or exact_text or type_.precision > DECIMAL_DIGITS_MAX:
            found = Kind.NUMERIC
        case types.Numeric():
            return decimal(type_.precision or 0, type_.scale or 0)
        case types.DateTime():
            found = Kind.TIMESTAMPTZ if type_.timezone and not exact_text else Kind.TIMESTAMP
        case types.Date():
            found = Kind.DATE
        case types.Time():
            found = Kind.TIME
        case types.Uuid():
            found = Kind.UUID
        case types.JSON():
            found = Kind.JSON if exact_text else None
        case types.LargeBinary() | types.BINARY() | types.VARBINARY():
            found = Kind.BYTES
        case types.String():
            found = Kind.STRING
        case _:
            found = None
    return None if found is None else LogicalType(found)


@contextmanager
def _explained(url: URL) -> Iterator[None]:
    """Errors of the driver in our words; their own may quote values."""
    where = url.set(username=None, password=None, query={}).render_as_string()
    try:
        yield
    except OperationalError as error:
        kind = type(error.orig).__name__
        raise Unavailable(f"{where} does not answer, or refused a statement ({kind})", hint="is it there, and may we read it?") from None
    except DBAPIError as error:
        raise CdcError(f"{where} refused a statement ({type(error.orig).__name__})", hint="see its log", code="source_statement") from None
    except SQLAlchemyError as error:
        raise CdcError(f"{where} cannot be read ({type(error).__name__})", code="source_statement") from None
