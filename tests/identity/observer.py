"""What the warehouse says and shows: `_cdc.table_status` and the rows of a table in one read, again and again beside everything else."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import duckdb
import psycopg

from tests.identity.judge import Claim, Row, canonical
from tests.support.line import Line
from tests.support.replica import quoted
from tests.support.warehouses import PostgreSqlDatabase

STATUS = "state, is_complete, complete_through, freshness_seconds, parked_open, error_code, error_message, error_hint, error_at"
ASKED = "state AS s_state, is_complete AS s_complete, complete_through AS s_through"
POLL_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Status:
    state: str
    is_complete: bool
    complete_through: int
    freshness_seconds: float | None
    parked: int
    code: str
    message: str
    hint: str
    at: str

    def __str__(self) -> str:
        said = f", {self.code}: {self.message}; cure: {self.hint}" if self.code else ""
        parked = f", {self.parked} parked" if self.parked else ""
        return f"{self.state}, {'' if self.is_complete else 'not '}complete, through {self.complete_through}{parked}{said}"


class Observer:
    """Reads in a thread while it is entered. ``claims`` are those that were seen and not taken yet, by table."""

    def __init__(self, line: Line, tables: Iterable[str]) -> None:
        self.line = line
        self.watched = set(tables)
        self.claims: dict[str, list[Claim]] = {name: [] for name in self.watched}
        self.statuses: dict[str, Status] = {}
        self.polls = 0
        self._last: dict[str, Claim] = {}
        self._lock, self._done = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._warehouse: psycopg.Connection[Any] | None = None

    def __enter__(self) -> Observer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join(60)
        if self._warehouse is not None:
            self._warehouse.close()

    def take(self, table: str) -> list[Claim]:
        with self._lock:
            found, self.claims[table] = self.claims[table], []
        return found

    def _watch(self) -> None:
        while not self._done.wait(POLL_SECONDS):
            with contextlib.suppress(AssertionError, psycopg.Error, duckdb.Error, OSError):  # Not there yet, or not there at the moment.
                self._poll()

    def _poll(self) -> None:
        found = {row["source_table"]: row for row in self._read(f"SELECT source_table, {STATUS} FROM _cdc.table_status")[1]}
        for table in sorted(self.watched):
            row = found.get(f"public.{table}")
            if row is not None:
                self.statuses[table] = _status(row)
                if row["is_complete"]:
                    with contextlib.suppress(AssertionError, psycopg.Error, duckdb.Error):  # Its target is being made again.
                        self._claim(table)
        self.polls += 1

    def _claim(self, table: str) -> None:
        """One statement reads both, so that they are of one moment."""
        target = quoted(self.line.warehouse.target_of(f"public.{table}"))
        columns, rows = self._read(
            f"SELECT * FROM (SELECT {ASKED} FROM _cdc.table_status WHERE source_table = 'public.{table}') AS s"
            f" LEFT JOIN (SELECT 1 AS s_there, t.* FROM {target} AS t) AS r ON true"
        )
        if not rows or not rows[0]["s_complete"] or rows[0]["s_through"] is None:
            return
        names = [name for name in columns if not name.startswith(("s_", "_cdc_"))]
        shown: list[Row] = [{name: canonical(row[name]) for name in names} for row in rows if row["s_there"]]
        claim = Claim(int(rows[0]["s_through"]), frozenset(names), shown)
        with self._lock:
            if claim != self._last.get(table):
                self.claims[table].append(claim)
                self._last[table] = claim

    def _read(self, statement: str) -> tuple[list[str], list[Mapping[str, Any]]]:
        """Column names and rows. Of a DuckDB file through the service, or from the file where nobody has it open."""
        warehouse = self.line.warehouse
        if isinstance(warehouse, PostgreSqlDatabase):
            if self._warehouse is None or self._warehouse.broken:
                url = warehouse.url.replace("${CDC_PASSWORD}", self.line.stack.password("cdc"))
                self._warehouse = psycopg.connect(url, autocommit=True, prepare_threshold=None)  # The columns change under a plan.
                self._warehouse.execute("SET timezone = 'UTC'")
            cursor = self._warehouse.execute(statement.encode())
            names = [column.name for column in cursor.description or []]
            return names, [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
        found = self.line.query(statement)
        if found is None:
            found = self._file(statement)
        return found.column_names, found.to_pylist()

    def _file(self, statement: str) -> Any:
        with duckdb.connect(str(self.line.folder / "warehouse.duckdb"), read_only=True) as connection:
            connection.execute("SET timezone = 'UTC'")
            return connection.sql(statement).to_arrow_table()


def _status(row: Mapping[str, Any]) -> Status:
    freshness = row["freshness_seconds"]
    return Status(
        str(row["state"]), bool(row["is_complete"]), int(row["complete_through"] or 0), None if freshness is None else float(freshness),
        int(row["parked_open"] or 0), str(row["error_code"] or ""), str(row["error_message"] or ""), str(row["error_hint"] or ""),
        str(row["error_at"] or ""),
    )  # fmt: skip
