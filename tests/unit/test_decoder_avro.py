"""What the decoder of Avro does about numbers of schemas, registries, other wires in the topic, and flattened events."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from typing import Any

import pytest

from cdc_service.core.errors import Unavailable
from cdc_service.core.types import ChangeBatch, Op
from connectors.debezium.notifications import parse
from connectors.formats.avro import PATIENCE_SECONDS, DebeziumAvroDecoder, InJson, Schemas
from connectors.formats.debezium_json import DebeziumJsonDecoder
from connectors.sources.postgresql.events import PostgresEvents
from tests.support.avro import Registry, encode, head
from tests.support.envelopes import PLACEHOLDER, Col, Record, Table, dumps, listed, number, raw, text
from tests.support.plain import account, told

ID = Col("id", optional=False)
PLAIN = Table([ID, text("name")])
WIDER = Table([ID, text("name"), Col("n", "int16", "INT2")])


@dataclass
class Time:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


def decoder(registry: Any, time: Time | None = None, **more: Any) -> DebeziumAvroDecoder:
    return DebeziumAvroDecoder(PostgresEvents(), Schemas(registry, time or Time()), unavailable=PLACEHOLDER, **more)


def decode(registry: Any, records: list[Record], **more: Any) -> list[ChangeBatch]:
    batches = list(decoder(registry, **more).decode(raw(records)))
    for batch in batches:
        records_, accounted = account(batch)
        assert records_ == accounted
    return batches


def codes(batches: list[ChangeBatch]) -> list[tuple[int, str]]:
    return sorted((one.offset, one.code) for batch in batches for one in batch.rejected)


def names(batches: list[ChangeBatch]) -> list[list[str | None]]:
    return [batch.data.column("name").to_pylist() for batch in batches]


def test_versions_change_in_the_middle_in_their_order_and_each_is_asked_for_once() -> None:
    """I9."""
    registry = Registry()
    one, two = PLAIN.change("c", {"id": 1, "name": "a"}), WIDER.change("c", {"id": 2, "name": "b", "n": -3})
    again = PLAIN.change("c", {"id": 3, "name": "c"})
    batches = decode(registry, [registry.record(r) for r in (one, one, two, two, again)])
    assert names(batches) == [["a", "a"], ["b", "b"], ["c"]]
    assert [(span.start, span.stop) for batch in batches for span in batch.spans] == [(0, 2), (2, 4), (4, 5)]
    assert batches[1].data.column("n").to_pylist() == [-3, -3]
    assert sorted(registry.asked) == sorted(set(registry.asked))


def test_every_type_comes_as_it_does_in_json() -> None:
    columns = [
        ID, text("name"), Col("b", "bytes", "BYTEA"), Col("f", "float", "FLOAT4"), Col("d", "double", "FLOAT8"), number("n", 9, 2),
        Col("bits", "bytes", "BIT", "io.debezium.data.Bits", parameters={"length": "10"}), Col("box", "bytes", "BOX"),
        listed("bs", "bytes", "_BYTEA"), listed("is", "int32", "_INT4"), Col("yes", "boolean", "BOOL"), Col("s", "int16", "INT2"),
    ]  # fmt: skip
    table = Table(columns)
    full = {
        "id": 1, "name": "é", "b": "AP8=", "f": 1.5, "d": "NaN", "n": "1.10", "bits": "AQI=", "box": "KDEsMik=", "bs": ["AP8=", None],
        "is": [1, None, -2], "yes": True, "s": -7,
    }  # fmt: skip
    records = [table.change("c", full), table.change("u", {**dict.fromkeys(full), "id": 2}), table.change("d", full)]
    registry = Registry()
    (avro,) = decode(registry, [registry.record(one) for one in records])
    (plain,) = DebeziumJsonDecoder(PostgresEvents(), unavailable=PLACEHOLDER).decode(raw(records))
    assert told(avro) == told(plain)
    assert avro.rejected == ()


def test_a_schema_without_connect_s_properties_is_refused() -> None:
    """I23: a date would be a number."""
    registry = Registry()
    record = registry.record(PLAIN.change("c", {"id": 1, "name": "a"}))
    number_ = int.from_bytes((record.value or b"")[1:5], "big")
    registry.texts[number_] = json.dumps({k: v for k, v in json.loads(registry.texts[number_]).items() if k != "connect.name"})
    (batch,) = decode(registry, [record])
    assert [one.code for one in batch.rejected] == ["unsupported_type"]
    assert "connect.meta.data" in batch.rejected[0].message


def test_a_decimal_of_avro_s_own_is_parked_with_the_setting_and_null_is_null() -> None:
    name = "org.apache.kafka.connect.data.Decimal"
    table = Table([ID, Col("n", "bytes", "NUMERIC", name, parameters={"scale": "2"})])
    registry = Registry()
    records = [registry.record(table.change("c", {"id": n, "n": value})) for n, value in enumerate([None, "AP8="])]
    (batch,) = decode(registry, records)
    assert batch.data.to_pylist() == [{"id": 0, "n": None}]
    assert [one.code for one in batch.rejected] == ["inexact_value"]
    assert "decimal.handling.mode=string" in batch.rejected[0].message


def test_unsent_values_of_bytes_are_the_placeholder_itself() -> None:
    """I11."""
    table = Table([ID, Col("b", "bytes", "BYTEA"), listed("bs", "bytes", "_BYTEA")])
    spelled = base64.b64encode(PLACEHOLDER.encode()).decode()
    registry = Registry()
    (batch,) = decode(registry, [registry.record(table.change("u", {"id": 1, "b": spelled, "bs": [spelled]}))])
    assert batch.unsent is not None
    assert batch.unsent.to_pylist() == [{"b": True, "bs": True}]
    assert batch.data.to_pylist() == [{"id": 1, "b": None, "bs": None}]


def test_a_topic_may_change_from_json_to_avro_and_back() -> None:
    registry = Registry()
    rows = [PLAIN.change("c", {"id": n, "name": str(n)}) for n in range(6)]
    mixed = [registry.record(one) if place in (2, 3, 5) else one for place, one in enumerate(rows)]
    (batch,) = decode(registry, mixed)
    assert batch.data.column("name").to_pylist() == list("012345")
    floats = Table([ID, Col("f", "float", "FLOAT4")])
    rows = [floats.change("c", {"id": n, "f": n + 0.5}) for n in range(4)]
    batches = decode(registry, [registry.record(one) if place >= 2 else one for place, one in enumerate(rows)])
    assert [batch.data.column("f").to_pylist() for batch in batches] == [[0.5, 1.5], [2.5, 3.5]]


def test_the_json_decoder_parks_avro_with_a_reason() -> None:
    registry = Registry()
    (batch,) = DebeziumJsonDecoder(PostgresEvents(), unavailable=PLACEHOLDER).decode(
        raw([registry.record(PLAIN.change("c", {"id": 1, "name": "x"}))])
    )
    assert [one.code for one in batch.rejected] == ["not_schema_json"]
    assert "schema_registry" in batch.rejected[0].message


def test_an_unknown_number_is_waited_for_then_parked_and_read_when_it_comes_to_be_known() -> None:
    """I19, I23."""
    registry, time = Registry(), Time()
    good = registry.record(PLAIN.change("c", {"id": 1, "name": "a"}))
    assert good.value is not None
    late = Record(good.key, head(77) + good.value[5:])
    one = decoder(registry, time)
    with pytest.raises(Unavailable, match="77") as caught:
        one.decode(raw([good, late]))
    assert caught.value.code == "unknown_schema_id"
    time.now = PATIENCE_SECONDS - 1
    with pytest.raises(Unavailable):
        one.decode(raw([good, late]))
    time.now = PATIENCE_SECONDS + 1
    batches = list(one.decode(raw([good, late, good])))
    assert codes(batches) == [(1, "unknown_schema_id")]
    assert [key.key_text for batch in batches for key in batch.rejected] == ['["1"]']
    assert sum(batch.num_rows for batch in batches) == 2
    registry.texts[77] = registry.texts[int.from_bytes(good.value[1:5], "big")]
    assert codes(list(one.decode(raw([good, late])))) == []


class Away:
    def schema(self, number: int) -> None:
        raise Unavailable("the registry is away")


def test_a_registry_that_is_away_is_waited_for_and_known_numbers_need_none() -> None:
    registry = Registry()
    record = registry.record(PLAIN.change("c", {"id": 1, "name": "a"}))
    with pytest.raises(Unavailable):
        decoder(Away()).decode(raw([record]))
    one = decoder(registry)
    one.decode(raw([record]))
    registry.texts.clear()
    assert sum(batch.num_rows for batch in one.decode(raw([record]))) == 1


@pytest.mark.parametrize(
    "schema", ["{", '"nothing"', '{"type":"record","name":"R","fields":[{"name":"n","type":["null","R"]}]}', '"long"', "[]"]
)
def test_a_schema_that_cannot_be_used_parks_its_records_and_no_others(schema: str) -> None:
    registry = Registry()
    good = registry.record(PLAIN.change("c", {"id": 1, "name": "a"}))
    registry.texts[50] = schema
    batches = decode(registry, [good, Record(good.key, head(50) + b"secret"), good])
    assert [offset for offset, _ in codes(batches)] == [1]
    assert codes(batches)[0][1] in ("bad_schema", "unsupported_type")
    assert not any("secret" in one.message for batch in batches for one in batch.rejected)
    assert sum(batch.num_rows for batch in batches) == 2


@pytest.mark.parametrize("value", [b"", b"\0", b"\0\0\0\0", b"\1\0\0\0\1x", b"{}", b"hello", b'{"schema":null,"payload":null}'])
def test_what_is_neither_wire_is_parked_alone(value: bytes) -> None:
    registry = Registry()
    good = registry.record(PLAIN.change("c", {"id": 1, "name": "a"}))
    batches = decode(registry, [good, Record(good.key, value), good])
    assert [offset for offset, _ in codes(batches)] == [1]


def test_bytes_behind_the_datum_and_bytes_that_lack_are_parked() -> None:
    registry = Registry()
    good = registry.record(PLAIN.change("c", {"id": 1, "name": "a"}))
    assert good.value is not None
    assert good.key is not None
    records = [Record(good.key, good.value + b"\0"), good, Record(good.key, good.value[:-1]), Record(good.key + b"\0", good.value)]
    assert codes(decode(registry, records)) == [(0, "bad_avro"), (2, "bad_avro"), (3, "bad_avro")]


def test_names_of_key_columns_come_back_too() -> None:
    table = Table(
        [Col("weird id", optional=False, parameters={"__debezium.source.column.name": "weird id"}), text("name")], key=["weird id"]
    )
    registry = Registry()
    record = table.change("c", {"weird id": 7, "name": "x"})
    assert record.key is not None
    assert record.value is not None
    spelled = Record(record.key.replace(b'"weird id"', b'"weird_u0020id"'), _spelled(record.value))
    (batch,) = decode(registry, [registry.record(spelled)])
    assert batch.schema.names == ("weird id", "name")
    assert batch.schema.key == ("weird id",)
    assert batch.data.to_pylist() == [{"weird id": 7, "name": "x"}]


def _spelled(value: bytes) -> bytes:
    return value.replace(b'"field":"weird id"', b'"field":"weird_u0020id"').replace(b'{"weird id":', b'{"weird_u0020id":')


FLAT = [
    ("__deleted", "string"), ("__op", "string"), ("__source_schema", "string"), ("__source_table", "string"), ("__source_lsn", "int64"),
    ("__source_sequence", "string"), ("__source_snapshot", "string"), ("__source_ts_us", "int64"),
]  # fmt: skip


def flat(op: str, row: dict[str, Any], lack: tuple[str, ...] = (), **more: Any) -> Record:
    """A flattened event as the transform writes it, in JSON."""
    deleted = "true" if op == "d" else "false"
    about = [deleted, op, "public", "t", 5, '["3","5"]', None, 9]
    added = {name: value for (name, _), value in zip(FLAT, about, strict=True) if name not in lack} | more
    columns = [ID.schema(), text("name").schema()]
    columns += [{"type": kind, "optional": True, "field": name} for name, kind in FLAT if name not in lack]
    schema = {"type": "struct", "fields": columns, "optional": False, "name": "shop.public.t.Value"}
    return Record(PLAIN.key_of(row), b'{"schema":' + dumps(schema) + b',"payload":' + dumps({**row, **added}) + b"}")


@pytest.mark.parametrize("wire", ["json", "avro"])
def test_a_flattened_event_is_the_change_that_it_was_made_from(wire: str) -> None:
    registry = Registry()
    records = [flat("c", {"id": 1, "name": "a"}), flat("u", {"id": 1, "name": None}), flat("d", {"id": 1, "name": None})]
    records = [one if wire == "json" else registry.record(one) for one in [*records, Record(PLAIN.key_of({"id": 1}), None)]]
    (batch,) = decode(registry, records)
    assert batch.meta.column("op").to_pylist() == [Op.CREATE, Op.UPDATE, Op.DELETE]
    assert batch.data.to_pylist() == [{"id": 1, "name": "a"}, {"id": 1, "name": None}, {"id": 1, "name": None}]
    assert batch.meta.column("record").to_pylist() == [5, 5, 5]
    assert batch.meta.column("commit").to_pylist() == [3, 3, 3]
    assert batch.schema.names == ("id", "name")
    assert batch.spans[0].filtered == 1


@pytest.mark.parametrize("lack", ["__deleted", "__op", "__source_lsn", "__source_snapshot", "__source_table", "__source_schema"])
def test_a_flattened_event_without_what_orders_it_is_parked_with_the_settings(lack: str) -> None:
    """I23."""
    (batch,) = decode(Registry(), [flat("c", {"id": 1, "name": "a"}, lack=(lack,))])
    (rejected,) = batch.rejected
    assert rejected.code == "unsupported_type"
    assert "add.fields=op,source.schema" in rejected.message


def test_a_flattened_event_that_contradicts_itself_is_parked() -> None:
    (batch,) = decode(
        Registry(), [flat("u", {"id": 1, "name": "a"}, __deleted="true"), flat("d", {"id": 2, "name": "b"}, __deleted="false")]
    )
    assert [one.code for one in batch.rejected] == ["no_row"]
    assert batch.meta.column("op").to_pylist() == [Op.DELETE]


def test_notifications_in_avro_are_read_as_those_in_json() -> None:
    schema = {"type": "record", "name": "Notification", "fields": [
        {"name": "id", "type": "string"}, {"name": "type", "type": "string"}, {"name": "aggregate_type", "type": "string"},
        {"name": "additional_data", "type": ["null", {"type": "map", "values": "string"}]}, {"name": "timestamp", "type": "long"},
    ]}  # fmt: skip
    registry = Registry()
    said = {"id": "a", "type": "TABLE_SCAN_COMPLETED", "aggregate_type": "Initial Snapshot", "timestamp": 7}
    data = {"scanned_collection": "public.t", "status": "SUCCEEDED"}
    value = head(registry.add(schema)) + encode(schema, {**said, "additional_data": (1, data)})

    class Tail:
        def __init__(self) -> None:
            self.values = [json.dumps({**said, "additional_data": data}).encode(), value, head(9) + b"x", value, b"\0\0\0\0\1garbage"]

        def read(self) -> list[bytes]:
            found, self.values = self.values, []
            return found

    time = Time()
    tail = InJson(Tail(), Schemas(registry, time))
    first = [parse(one) for one in tail.read()]
    assert first[0] == first[1] is not None
    assert len(first) == 2, "what follows an unknown number waits with it"
    assert tail.read() == []
    time.now = PATIENCE_SECONDS + 1
    assert [parse(one) for one in tail.read()] == [None, first[0], None]


def test_a_bad_record_of_a_table_without_a_key_is_parked_alone() -> None:
    """Found by the fuzzer: it ended the decoder."""
    bare = Table([ID, text("name")], key=())
    registry = Registry()
    records = [bare.change("c", {"id": n, "name": "x"}, lsn=None if n == 2 else n) for n in (1, 2, 3)]
    (batch,) = decode(registry, [registry.record(record) for record in records])
    assert batch.data.column("id").to_pylist() == [1, 3]
    assert [(r.offset, r.code, r.key_text) for r in batch.rejected] == [(1, "no_position", None)]
