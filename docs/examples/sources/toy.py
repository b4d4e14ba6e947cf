"""A source in memory, the example of docs/adding-a-source.md: ``toy://NAME``. A table is a dict of rows by their key, its log a list."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from sqlalchemy.engine import URL

from cdc_service.core.errors import ConfigError
from cdc_service.core.identity import Identities, Judgement, Outcome
from cdc_service.core.names import Names
from cdc_service.core.order import BY_RECORD, NO_POSITION, snapshot_record
from cdc_service.core.types import Column, TableId, TableSchema
from cdc_service.ports.events import Codec, ConnectSchema, Unsent
from cdc_service.ports.source import UNKNOWN_FILL, Fill, Finding, Identity, Reread, SourceColumn, SourceTable
from connectors.formats.connect_schema import SOURCE_TYPE, standard
from connectors.formats.schemaless import by_kind


class ToyEvents:
    """ports.events.EventModel: a change has a number of its own in the log, so that no two share a position."""

    table = ("space", "table")
    fields: pa.Schema = pa.schema([("number", pa.int64()), ("snapshot", pa.string())])
    needed: tuple[str, ...] = ("number",)
    others: pa.Schema = pa.schema([])
    ordering = BY_RECORD
    settings: tuple[str, ...] = ()
    whole = "nothing: every change has the whole row"

    def positions(self, source: pa.StructArray) -> tuple[pa.Array, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        number = source.field("number")
        record = number.fill_null(NO_POSITION).to_numpy(zero_copy_only=False).astype(np.int64)
        read = np.asarray(source.field("snapshot").is_valid())
        record = np.where(read & (record != NO_POSITION), snapshot_record(record), record)
        return pc.if_else(pa.array(read), pa.scalar(None, pa.int64()), number), record, np.zeros(len(record), np.int64)

    def source_type(self, field: ConnectSchema) -> str:
        return str((field.get("parameters") or {}).get(SOURCE_TYPE) or "")

    def codec(self, field: ConnectSchema) -> Codec:
        return replace(standard(field), unsent=Unsent.NEVER)

    def codec_without_schema(self, column: Column, connector: Mapping[str, str] | None) -> Codec:
        return by_kind(column.type, connector or {})


@dataclass
class World:
    """What the source holds: rows by table and key, and its log as (number, op, table, row)."""

    columns: dict[TableId, tuple[str, ...]] = field(default_factory=dict)
    rows: dict[TableId, dict[int, dict[str, Any]]] = field(default_factory=dict)
    log: list[tuple[int, str, TableId, dict[str, Any]]] = field(default_factory=list)

    def create(self, table: TableId, *columns: str) -> None:
        """A table of texts with a key ``id`` before them."""
        self.columns[table], self.rows[table] = ("id", *columns), {}

    def put(self, table: TableId, **row: Any) -> None:
        op = "u" if row["id"] in self.rows[table] else "c"
        self.rows[table][row["id"]] = row
        self.log.append((len(self.log) + 1, op, table, row))

    def remove(self, table: TableId, id_: int) -> None:
        self.log.append((len(self.log) + 1, "d", table, self.rows[table].pop(id_)))


WORLDS: dict[str, World] = {}


class Toy:
    """ports.source.Catalog and what of RowReader the stream asks for."""

    name = "toy"
    events = ToyEvents()

    def __init__(self, world: World) -> None:
        self._world = world

    def tables(self, only: TableId | None = None) -> tuple[SourceTable, ...]:
        return tuple(self._table(table) for table in sorted(self._world.columns) if only in (None, table))

    def _table(self, table: TableId) -> SourceTable:
        columns = tuple(SourceColumn(name, "text" if name != "id" else "int", name != "id", False) for name in self._world.columns[table])
        known = {"rows": len(self._world.rows[table]), "logged": True, "readable": True, "owned": True, "partitioned": False, "root": None}
        key = {"key": ("id",), "key_name": "id", "key_deferrable": False, "identity": Identity.FULL, "identity_columns": ()}
        return SourceTable(table, columns, **key, **known)  # type: ignore[arg-type]

    def schema(self, table: SourceTable, options: Mapping[str, str]) -> TableSchema | None:
        return None  # The first event tells it.

    def identities(
        self, tables: Sequence[TableId], names: Names, connector: Mapping[str, str] | None, options: Mapping[str, str]
    ) -> Identities:
        return Identities(self.position(), {t: repr(self._world.columns[t]) for t in tables if t in self._world.columns})

    def judge(self, table: TableId, before: str | None, after: str | None) -> Judgement:
        if after is None:
            return Judgement(Outcome.STOPS, f"{table} is not there any more", "take it out of tables", "table_gone", "schema_stopped")
        if before in (None, after):
            return Judgement(Outcome.SAME)
        return Judgement(Outcome.ANEW, f"{table} has other columns than its rows were read with")

    def refusal(self, table: SourceTable) -> Finding | None:
        return None

    def fill_of_added_column(self, table: TableId, column: str) -> Fill:
        return UNKNOWN_FILL

    def position(self) -> int:
        return len(self._world.log)

    def parse_position(self, text: str) -> int:
        if not text.isdecimal():
            raise ConfigError(f"{text!r} is no position of the log", hint="write the number of a change")
        return int(text)

    def format_position(self, position: int) -> str:
        return str(position)

    def settled(self, table: TableId) -> int:
        return self.position()

    def reread(self, table: TableId, keys: pa.Table, columns: Sequence[str]) -> Reread:
        found = [self._world.rows[table].get(id_) for id_ in keys["id"].to_pylist()]
        texts = {name: [None if row is None or row.get(name) is None else str(row[name]) for row in found] for name in columns}
        rows = pa.table({name: pa.array(values, pa.string()) for name, values in texts.items()})
        return Reread(rows, pa.array([row is not None for row in found]), self.position())

    def misread(self, table: TableId, key: Sequence[str], rows: pa.Table) -> pa.Int8Array | None:
        return None

    def close(self) -> None: ...


def open_source(url: URL) -> Toy:
    return Toy(WORLDS.setdefault(url.host or "", World()))
