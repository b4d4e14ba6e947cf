"""The same formats read events of another source by its own model: of MariaDB here, whose source block has other fields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from cdc_service.core.errors import ConfigError
from cdc_service.core.logical import Kind, LogicalType, decimal
from cdc_service.core.order import INCREMENTAL, NO_POSITION, Ordering, Ties, snapshot_record
from cdc_service.core.types import Column, Op, TableId, TableSchema
from cdc_service.ports.events import Ambiguous, Codec, ConnectSchema, EventModel, Unsent
from connectors.formats import blocks, flat, frames
from connectors.formats.avro import DebeziumAvroDecoder, Schemas
from connectors.formats.connect_schema import LENGTH, NUMERIC, SCALE, SOURCE_TYPE, standard
from connectors.formats.debezium_json import DebeziumJsonDecoder
from connectors.formats.schemaless import SchemalessJsonDecoder, by_kind
from connectors.sources.postgresql.events import PostgresEvents
from tests.support.avro import Registry
from tests.support.envelopes import PLACEHOLDER, Block, Col, Record, Table, dumps, raw, text
from tests.support.plain import account, told


class MariaDbEvents:
    """As much of MariaDB as these tests need: changes are ordered by (number of the binlog file, position in it, row)."""

    table = ("db", "table")
    fields: pa.Schema = pa.schema([("file", pa.string()), ("pos", pa.int64()), ("row", pa.int64()), ("snapshot", pa.string())])
    needed: tuple[str, ...] = ("file", "pos", "row")
    others: pa.Schema = pa.schema([("server_id", pa.int64()), ("gtid", pa.string()), ("thread", pa.int64()), ("query", pa.string())])
    ordering = Ordering(minor=True, ties=Ties.OFFSET)
    settings: tuple[str, ...] = ()
    whole = "set binlog_row_image=FULL"

    def positions(self, source: pa.StructArray) -> tuple[pa.Array, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        record, minor = [], []
        for one in source.to_pylist():
            at = NO_POSITION if one["file"] is None or one["pos"] is None else int(one["file"].rpartition(".")[2]) << 32 | one["pos"]
            if one["snapshot"] == "incremental":
                at = INCREMENTAL
            elif one["snapshot"] is not None:
                at = int(snapshot_record(np.array([at]))[0])
            record.append(at)
            minor.append(one["row"] or 0)
        return pa.array([at if 0 < at < NO_POSITION else None for at in record], pa.int64()), np.array(record), np.array(minor)

    def source_type(self, field: ConnectSchema) -> str:
        return str((field.get("parameters") or {}).get(SOURCE_TYPE) or "")

    def codec(self, field: ConnectSchema) -> Codec:
        """Every value is sent."""
        if self.source_type(field) == "DECIMAL" and field["type"] == "string":
            told = field["parameters"]
            precision, scale = int(told[LENGTH]), int(told[SCALE])
            found = Codec("decimal", decimal(precision, scale), pa.string()) if precision <= 38 else NUMERIC
        else:
            found = standard(field)
        return replace(found, unsent=Unsent.NEVER)

    def codec_without_schema(self, column: Column, connector: Mapping[str, str] | None) -> Codec:
        if column.source_type == "BIT":
            raise Ambiguous
        return by_kind(column.type, connector or {})


TEXTS = ("version", "connector", "name", "snapshot", "db", "sequence", "table", "gtid", "file", "query")
FIELDS = {
    "version": "3.5.0.Final", "connector": "mariadb", "name": "ma", "ts_ms": 1795997583000, "snapshot": None, "db": "shop",
    "sequence": None, "ts_us": 1795997583000000, "ts_ns": 1795997583000000000, "table": "t", "server_id": 10011, "gtid": "7-10011-55",
    "file": "mdb-bin.000001", "pos": 22861, "row": 0, "thread": None, "query": None,
}  # fmt: skip
MARIADB = Block(
    FIELDS, ("db", "table"), [{"type": "string" if name in TEXTS else "int64", "optional": True, "field": name} for name in FIELDS]
)
NAME, AMOUNT = text("name", "VARCHAR"), Col("amount", "string", "DECIMAL", length=9, scale=4)
TABLE = Table([Col("id", "int64", "INT UNSIGNED", optional=False), NAME, AMOUNT], schema="shop", block=MARIADB)
FILE = 1 << 32
CONNECTOR = {
    "value.converter.replace.null.with.default": "false",
    "unavailable.value.placeholder": PLACEHOLDER,
    "decimal.handling.mode": "string",
}


def row(number: int) -> dict[str, Any]:
    return {"id": number, "name": f"n {number}", "amount": f"{number}.5000"}


def decoder(model: EventModel) -> DebeziumJsonDecoder:
    return DebeziumJsonDecoder(model, unavailable=PLACEHOLDER)


def history() -> list[Record]:
    """A snapshot, a statement of three rows, a change of a key, a row of an incremental snapshot."""
    first = {"snapshot": "first_in_data_collection", "gtid": None, "server_id": 0, "pos": 4711}
    moved = {"pos": 30000, "query": "update t set id = id + 100 where id = 3"}
    return [
        TABLE.change("r", row(1), **first),
        TABLE.change("r", row(2), **{**first, "snapshot": "last"}),
        *(TABLE.change("c", row(number), pos=22861, row=number - 3) for number in (3, 4, 5)),
        TABLE.change("d", row(3), **moved),
        Record(TABLE.key_of(row(3)), None),
        TABLE.change("c", {**row(3), "id": 103}, **moved),
        TABLE.change("u", {**row(4), "name": None}, file="mdb-bin.000002", pos=4),
        TABLE.change("r", row(6), snapshot="incremental", file="mdb-bin.000002", pos=900),
    ]


def test_rows_table_and_positions_come_out_by_the_sources_own_model() -> None:
    (batch,) = decoder(MariaDbEvents()).decode(raw(history(), "ma.shop.t"))
    assert batch.schema.table == TableId("shop", "t")
    assert [(c.name, c.type, c.source_type) for c in batch.schema.columns] == [
        ("id", LogicalType(Kind.INT64), "INT UNSIGNED"),
        ("name", LogicalType(Kind.STRING), "VARCHAR"),
        ("amount", decimal(9, 4), "DECIMAL"),
    ]
    assert not batch.rejected
    records, accounted = account(batch)
    assert records == accounted == 10
    assert batch.data.column("id").to_pylist() == [1, 2, 3, 4, 5, 3, 103, 4, 6]
    assert batch.data.column("name").to_pylist() == ["n 1", "n 2", "n 3", "n 4", "n 5", None, "n 3", None, "n 6"]
    assert [str(value) for value in batch.data.column("amount").to_pylist()[:2]] == ["1.5000", "2.5000"]
    ops = [Op.READ, Op.READ, Op.CREATE, Op.CREATE, Op.CREATE, Op.DELETE, Op.CREATE, Op.UPDATE, Op.READ]
    assert batch.meta.column("op").to_pylist() == ops
    snapshot = int(snapshot_record(np.array([FILE + 4711]))[0])
    streamed = [FILE + 22861] * 3 + [FILE + 30000] * 2 + [2 * FILE + 4]
    assert batch.meta.column("record").to_pylist() == [snapshot, snapshot, *streamed, INCREMENTAL]
    assert batch.meta.column("minor").to_pylist() == [0, 0, 0, 1, 2, 0, 0, 0, 0]
    assert batch.meta.column("commit").to_pylist() == [None, None, *streamed, None]
    assert batch.meta.column("source_us").to_pylist() == [1795997583000000] * 9


@pytest.mark.parametrize(
    ("lacks", "code"),
    [({"file": None}, "no_position"), ({"pos": None}, "no_position"), ({"db": None}, "no_table"), ({"table": None}, "no_table")],
)
def test_what_the_model_needs_and_an_event_lacks_parks_it(lacks: dict[str, Any], code: str) -> None:
    records = [TABLE.change("c", row(1)), TABLE.change("c", row(2), **lacks), TABLE.change("c", row(3))]
    (batch,) = decoder(MariaDbEvents()).decode(raw(records, "ma.shop.t"))
    assert [(one.offset, one.code, one.key_text) for one in batch.rejected] == [(1, code, '["2"]')]
    assert batch.data.column("id").to_pylist() == [1, 3]


def test_a_model_reads_no_other_sources_events() -> None:
    ours = Table([Col("id", optional=False)])
    (batch,) = decoder(PostgresEvents()).decode(raw(history(), "ma.shop.t"))
    assert {one.code for one in batch.rejected} == {"no_table"}
    (batch,) = decoder(MariaDbEvents()).decode(raw([ours.change("c", {"id": 1})]))
    assert [one.code for one in batch.rejected] == ["no_position"]


@pytest.mark.parametrize(
    ("model", "table", "name", "record"),
    [
        (PostgresEvents(), Table([Col("id", optional=False)]), TableId("public", "t"), 1),
        (MariaDbEvents(), Table([Col("id", optional=False)], schema="shop", block=MARIADB), TableId("shop", "t"), FILE + 22861),
    ],
)
def test_one_form_reads_both_each_by_its_model(model: EventModel, table: Table, name: TableId, record: int) -> None:
    (batch,) = decoder(model).decode(raw([table.change("c", {"id": 1}), table.change("u", {"id": 1}), table.change("d", {"id": 1})]))
    assert (batch.schema.table, batch.data.column("id").to_pylist(), batch.rejected) == (name, [1, 1, 1], ())
    assert batch.meta.column("record").to_pylist() == [record] * 3


def test_what_has_no_exact_form_is_refused_value_by_value() -> None:
    odd = Col("y", "int32", "YEAR", "io.debezium.time.Year")
    table = Table([Col("id", optional=False), odd], schema="shop", block=MARIADB)
    (batch,) = decoder(MariaDbEvents()).decode(raw([table.change("c", {"id": 1, "y": None}), table.change("c", {"id": 2, "y": 1901})]))
    assert batch.data.column("id").to_pylist() == [1]
    assert [one.code for one in batch.rejected] == ["inexact_value"]


def alike(number: int) -> Record:
    return TABLE.change("c", row(number), pos=22861 + number, query="insert")


def test_envelopes_that_are_alike_say_the_same_as_each_parsed_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    records = raw([*history(), *map(alike, range(1000, 1600))], "ma.shop.t")
    framed = [told(one) for one in decoder(MariaDbEvents()).decode(records)]
    monkeypatch.setattr(frames, "framed", refuse)
    assert [told(one) for one in decoder(MariaDbEvents()).decode(records)] == framed


def refuse(*_: Any, **__: Any) -> Any:
    raise blocks.Refused


def bare(record: Record) -> Record:
    """As a connector without schemas writes it."""
    documents = (record.key, record.value)
    key, value = (None if one is None else one[one.index(b',"payload":') + 11 : -1] for one in documents)
    return Record(key, value)


def test_without_schemas_the_columnar_reader_knows_every_field_of_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    (full,) = decoder(MariaDbEvents()).decode(raw(history(), "ma.shop.t"))
    monkeypatch.setattr(frames, "framed", refuse)
    monkeypatch.setattr(blocks, "_one_by_one", lambda *_: pytest.fail("a field that nobody knows"))
    made = SchemalessJsonDecoder(MariaDbEvents(), {"ma.shop.t": full.schema}, CONNECTOR)
    (batch,) = made.decode(raw([bare(one) for one in history()], "ma.shop.t"))
    assert told(batch) == told(full)


def test_without_schemas_a_model_says_what_is_ambiguous() -> None:
    def of(name: str, source: str) -> SchemalessJsonDecoder:
        columns = (Column("id", LogicalType(Kind.INT64)), Column(name, LogicalType(Kind.STRING), source_type=source))
        return SchemalessJsonDecoder(MariaDbEvents(), {"t": TableSchema(TableId("shop", "t"), columns, ("id",))}, CONNECTOR)

    of("b", "VARCHAR")
    with pytest.raises(ConfigError, match="ambiguous"):
        of("b", "BIT")
    with pytest.raises(ConfigError, match="cannot be told from the event's own field"):
        of("gtid", "VARCHAR")


def test_avro_and_json_tell_the_same() -> None:
    registry = Registry()
    records = [registry.record(one) for one in history()]
    made = DebeziumAvroDecoder(MariaDbEvents(), Schemas(registry, lambda: 0.0), unavailable=PLACEHOLDER)
    (avro,), (json,) = made.decode(raw(records, "ma.shop.t")), decoder(MariaDbEvents()).decode(raw(history(), "ma.shop.t"))
    assert told(avro) == told(json)


def test_flattened_events_name_what_the_model_needs() -> None:
    wanted = flat.settings(MariaDbEvents())["add.fields"]
    assert wanted == "op,source.db,source.table,source.file,source.pos,source.row,source.snapshot,source.ts_us"
    beside = {"__op": "c", "__source_db": "shop", "__source_table": "t", "__source_file": "mdb-bin.000001", "__source_pos": 7}
    beside |= {"__source_row": 2, "__source_ts_us": 5, "__deleted": "false"}
    kinds = [{"type": "int64" if isinstance(v, int) else "string", "optional": True, "field": n} for n, v in beside.items()]
    schema = {"type": "struct", "name": "ma.shop.t.Value", "fields": [*(c.schema() for c in TABLE.columns), *kinds]}

    def event(fields: list[dict[str, Any]]) -> Record:
        return Record(TABLE.key_of(row(1)), dumps({"schema": {**schema, "fields": fields}, "payload": {**row(1), **beside}}))

    (batch,) = decoder(MariaDbEvents()).decode(raw([event(schema["fields"])], "ma.shop.t"))  # type: ignore[arg-type]
    assert (batch.schema.table, batch.data.column("id").to_pylist()) == (TableId("shop", "t"), [1])
    assert (batch.meta.column("record").to_pylist(), batch.meta.column("minor").to_pylist()) == ([FILE + 7], [2])
    lacking = [one for one in schema["fields"] if one["field"] != "__source_pos"]  # type: ignore[index]
    (batch,) = decoder(MariaDbEvents()).decode(raw([event(lacking)], "ma.shop.t"))
    assert [(one.code, "pos" in one.message) for one in batch.rejected] == [("unsupported_type", True)]
