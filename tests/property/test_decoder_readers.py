"""The two readers are one: whatever a topic holds, block by block or one by one, and hostile neighbours change nothing for the others."""

from __future__ import annotations

import base64
import json
import math
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cdc_service.core.errors import TableStopped
from cdc_service.core.logical import INFINITY, Kind
from cdc_service.core.types import ChangeBatch, RawBatch
from connectors.formats import blocks
from connectors.formats.avro import DebeziumAvroDecoder, Schemas
from connectors.formats.debezium_json import DebeziumJsonDecoder
from connectors.formats.schemaless import SchemalessJsonDecoder
from connectors.sources.postgresql.events import PostgresEvents
from tests.support.avro import Registry
from tests.support.envelopes import PLACEHOLDER, Col, Record, Table, listed, number, raw, text
from tests.support.plain import account, plain, told

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
INFINITE = INFINITY[Kind.TIMESTAMP]


@dataclass(frozen=True)
class Typed:
    """A column, how the connector writes a value of it, and the value that must arrive (as tests.support.plain gives it)."""

    column: Callable[[str], Col]
    values: st.SearchStrategy[tuple[Any, Any]]


def same(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, Any]]:
    return strategy.map(lambda value: (value, value))


def bits32(value: float) -> int:
    return int(struct.unpack("<i", struct.pack("<f", value))[0])


def bits64(value: float) -> int:
    return int(struct.unpack("<q", struct.pack("<d", value))[0])


def float_wire(value: float) -> Any:
    return "NaN" if math.isnan(value) else {math.inf: "Infinity", -math.inf: "-Infinity"}.get(value, value)


def timestamp_text(micros: int) -> str:
    # Independent of the decoder: numpy's calendar. Its years are astronomical, as the connector's are.
    import numpy as np

    day, rest = divmod(micros, 86_400_000_000)
    date = str(np.datetime64(day, "D"))
    if date.startswith("-"):
        year, rest_of_date = date[1:].split("-", 1)
        date = f"-{int(year):04}-{rest_of_date}"
    elif len(date.split("-")[0]) > 4:
        date = "+" + date
    seconds, fraction = divmod(rest, 1_000_000)
    return f"{date}T{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}.{fraction:06}Z"


NAN = math.nan
TIMES = st.integers(-210863520000000000, 9223372036825199999)
TYPES = [
    Typed(lambda n: Col(n, "int16", "INT2"), same(st.integers(-(2**15), 2**15 - 1))),
    Typed(lambda n: Col(n), same(st.integers(-(2**31), 2**31 - 1))),
    Typed(lambda n: Col(n, "int64", "INT8"), same(st.integers(-(2**63), 2**63 - 1))),
    Typed(lambda n: Col(n, "boolean", "BOOL"), same(st.booleans())),
    Typed(lambda n: text(n), same(TEXT)),
    Typed(lambda n: text(n, "JSONB", "io.debezium.data.Json"), same(TEXT)),
    Typed(lambda n: text(n, "MOOD", "io.debezium.data.Enum"), same(st.sampled_from(["sad", "ok", "a,b"]))),
    Typed(lambda n: text(n, "UUID", "io.debezium.data.Uuid"), same(st.uuids().map(str))),
    Typed(lambda n: number(n, 12, 3), st.decimals(-(10**9) + 1, 10**9 - 1, places=3).map(lambda d: (str(d), d))),
    Typed(lambda n: number(n, 38, 0), st.integers(-(10**38) + 1, 10**38 - 1).map(lambda d: (str(d), Decimal(d)))),
    Typed(lambda n: number(n, 131089, 0), same(st.decimals(allow_nan=False, allow_infinity=False, places=5).map(lambda d: f"{d:f}"))),
    Typed(
        lambda n: number(n, 0, 0), st.sampled_from([("NAN", "NaN"), ("POSITIVE_INFINITY", "Infinity"), ("NEGATIVE_INFINITY", "-Infinity")])
    ),
    Typed(
        lambda n: Col(n, "float", "FLOAT4"),
        st.floats(width=32, allow_subnormal=False).map(lambda v: (float_wire(v), bits32(v if v == v else NAN))),
    ),
    Typed(lambda n: Col(n, "double", "FLOAT8"), st.floats().map(lambda v: (float_wire(v), bits64(v if v == v else NAN)))),
    Typed(lambda n: Col(n, "bytes", "BYTEA"), st.binary(max_size=9).map(lambda b: (base64.b64encode(b).decode(), b))),
    Typed(lambda n: Col(n, "int32", "DATE", "io.debezium.time.Date"), same(st.integers(-2440588, 2145042905))),
    Typed(lambda n: Col(n, "int64", "TIME", "io.debezium.time.MicroTime"), same(st.integers(0, 86_400_000_000))),
    Typed(lambda n: Col(n, "int64", "TIMESTAMP", "io.debezium.time.MicroTimestamp"), same(TIMES)),
    Typed(
        lambda n: Col(n, "int64", "TIMESTAMP", "io.debezium.time.MicroTimestamp"),
        st.sampled_from([(9223372036825200000, INFINITE), (-9223372036832400000, -INFINITE)]),
    ),
    Typed(lambda n: text(n, "TIMESTAMPTZ", "io.debezium.time.ZonedTimestamp"), TIMES.map(lambda t: (timestamp_text(t), t))),
    Typed(
        lambda n: text(n, "TIMESTAMPTZ", "io.debezium.time.ZonedTimestamp"),
        st.sampled_from([("infinity", INFINITE), ("-infinity", -INFINITE)]),
    ),
    Typed(lambda n: listed(n, "string", "_TEXT"), same(st.lists(TEXT | st.none(), max_size=3))),
    Typed(lambda n: listed(n, "int32", "_INT4"), same(st.lists(st.integers(-9, 9) | st.none(), max_size=3))),
    Typed(
        lambda n: listed(n, "bytes", "_BYTEA"),
        st.lists(st.binary(max_size=4) | st.none(), max_size=3).map(
            lambda many: ([None if b is None else base64.b64encode(b).decode() for b in many], many)
        ),
    ),
]

Rows = list[tuple[str, dict[str, Any], dict[str, Any]]]


@st.composite
def changes(draw: st.DrawFn) -> tuple[Table, Rows]:
    """A table of random columns and changes to it: op, what the connector writes, what must arrive."""
    names = draw(st.lists(TEXT.filter(lambda name: name not in ("", "id")), unique=True, max_size=4))
    types = [draw(st.sampled_from(TYPES)) for _ in names]
    key = draw(
        st.sampled_from(
            [Typed(lambda n: Col(n, "int64", "INT8"), same(st.integers(0, 9))), TYPES[4], TYPES[7], TYPES[8], TYPES[14], TYPES[19]]
        )
    )
    table = Table([key.column("id"), *(kind.column(name) for name, kind in zip(names, types, strict=True))])
    rows: Rows = []
    for op in draw(st.lists(st.sampled_from("rcud"), min_size=1, max_size=6)):
        pairs = {"id": draw(key.values)}
        for name, kind in zip(names, types, strict=True):
            pairs[name] = (None, None) if draw(st.booleans()) and draw(st.booleans()) else draw(kind.values)
        rows.append((op, {name: pair[0] for name, pair in pairs.items()}, {name: pair[1] for name, pair in pairs.items()}))
    return table, rows


def decoder() -> DebeziumJsonDecoder:
    return DebeziumJsonDecoder(PostgresEvents(), unavailable=PLACEHOLDER)


def decode(batch: RawBatch) -> list[ChangeBatch]:
    result = list(decoder().decode(batch))
    for one in result:
        records, accounted = account(one)
        assert records == accounted
        one.data.validate(full=False)
    for span in batch.spans:
        own = [s for one in result for s in one.spans if s.partition == span.partition]
        whole = own[0]
        for later in own[1:]:
            whole = whole.then(later)
        assert (whole.start, whole.stop, whole.records) == (span.start, span.stop, span.records)
    return result


def one_by_one(batch: RawBatch) -> list[ChangeBatch]:
    """With the columnar reader out of the way."""

    def refuse(*_: Any) -> Any:
        raise blocks.Refused

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "columnar", refuse)
        return decode(batch)


@given(changes())
@settings(max_examples=150, deadline=None)
def test_values_of_all_types_arrive_exactly(case: tuple[Table, Rows]) -> None:
    table, rows = case
    (batch,) = decode(raw([table.change(op, wire, lsn=place + 1) for place, (op, wire, _) in enumerate(rows)]))
    assert [r.code for r in batch.rejected] == []
    for column in batch.schema.columns:
        expected = [None if op == "d" and column.name != "id" else right[column.name] for op, _, right in rows]
        assert plain(batch.data.column(column.name)) == expected
    assert batch.meta.column("op").to_pylist() == ["rcud".index(op) for op, _, _ in rows]
    assert batch.meta.column("record").to_pylist() == list(range(1, len(rows) + 1))


CONNECTOR = {
    "decimal.handling.mode": "string",
    "time.precision.mode": "microseconds",
    "value.converter.replace.null.with.default": "false",
    "unavailable.value.placeholder": PLACEHOLDER,
}


def bare(document: bytes | None) -> bytes | None:
    """Without its schema part."""
    return None if document is None or b',"payload":' not in document else document[document.index(b',"payload":') + 11 : -1]


@given(changes())
@settings(max_examples=150, deadline=None)
def test_json_without_schemas_tells_the_same(case: tuple[Table, Rows]) -> None:
    table, rows = case
    records = [table.change(op, wire, lsn=place + 1) for place, (op, wire, _) in enumerate(rows)]
    records += [Record(records[0].key, None), Record(None, table.value("t", lsn=99))]
    (batch,) = decode(raw(records))
    assume(not {"before", "after", "lsn", "origin"} & set(batch.schema.names))
    without = raw([Record(bare(r.key), bare(r.value)) for r in records])
    (same_batch,) = SchemalessJsonDecoder(PostgresEvents(), {without.topic: batch.schema}, CONNECTOR).decode(without)
    assert told(same_batch) == told(batch)


@given(changes())
@settings(max_examples=150, deadline=None)
def test_avro_tells_the_same(case: tuple[Table, Rows]) -> None:
    table, rows = case
    records = [table.change(op, wire, lsn=place + 1) for place, (op, wire, _) in enumerate(rows)]
    records += [Record(records[0].key, None), Record(None, table.value("t", lsn=99))]
    registry = Registry()
    found = avro_decoder(registry).decode(raw([registry.record(record) for record in records]))
    assert [told(batch) for batch in found] == [told(batch) for batch in decode(raw(records))]


@given(changes(), st.randoms(use_true_random=False), st.integers(1, 4))
@settings(max_examples=100, deadline=None)
def test_a_damaged_record_of_avro_never_harms_its_neighbours(case: tuple[Table, Rows], random: Any, damaged: int) -> None:
    """Numbers of schemas that nobody knows, and bytes that say something else: parked, or read as what they say, alone."""
    table, rows = case
    registry = Registry()
    records = [registry.record(table.change(op, wire, lsn=place + 1)) for place, (op, wire, _) in enumerate(rows)] * 3
    whole = by_offset(avro_decoder(registry).decode(raw(records)))
    places = random.sample(range(len(records)), min(damaged, len(records)))
    for place in places:
        records[place] = Record(records[place].key, damage(records[place].value or b"", random), 0)
    try:
        batches = avro_decoder(registry).decode(raw(records))
    except TableStopped as problem:
        if problem.code != "several_tables":
            raise
        return
    for batch in batches:
        for column in batch.data.columns:
            column.validate(full=not pa.types.is_time(column.type))  # 24:00:00 is a time of day in PostgreSQL.
        assert account(batch)[0] == account(batch)[1]
    after = by_offset(batches)
    for offset, row in whole.items():
        if offset not in places:
            assert after[offset] == row


def avro_decoder(registry: Registry) -> DebeziumAvroDecoder:
    """One that parks numbers that it does not know at once."""
    return DebeziumAvroDecoder(PostgresEvents(), Schemas(registry, lambda: 0.0, patience=0.0), unavailable=PLACEHOLDER)


HOSTILE = [
    b"null",
    b"",
    b"{}",
    b"\xff\xfe",
    b"[" * 5000,
    b'{"schema":null,"payload":null}',
    b'{"schema":{},"payload":{}}',
    b'{"schema":{"type":"struct","fields":[{"field":"after"}]},"payload":{}}',
]
PAYLOADS = [
    b"null",
    b"{}",
    b'{"op":"c"}',
    b'{"op":"c"} ',
    b'{"op":"c"}\n{"op":"c"}',
    b'{"op":"c"}{"op":"c"}',
    b'{"op":"c"},"x":{"op":"d"}',
    b'{"op":"m","after":null}',
    b'{"op":"c","after":{"id":"\\ud800"}}',
    b'{"op":"c","after":{"id":"\xff"}}',
    b'{"op":"c","after":{"id":1e400}}',
    b'{"op":"c","after":{"id":NaN}}',
    b'{"op":"c","after":7}',
    b'{"op":"c","after":{"id":1},"after":{"id":2}}',
]


@given(changes(), st.data())
@settings(max_examples=150, deadline=None)
def test_both_readers_tell_the_same_of_any_topic(case: tuple[Table, Rows], data: st.DataObject) -> None:
    table, rows = case
    records = [table.change(op, wire, lsn=place + 1) for place, (op, wire, _) in enumerate(rows)]
    strange = st.one_of(
        st.sampled_from(HOSTILE).map(lambda value: Record(None, value)),
        st.sampled_from(PAYLOADS).map(lambda payload: Record(records[0].key, table.wrap(payload))),
        st.just(Record(records[0].key, None)),
        st.just(Record(None, table.value("t", lsn=9))),
        st.just(Record(records[0].key, table.value("c", dict.fromkeys(rows[0][1], True)))),
        st.just(Record(records[0].key, json.dumps(json.loads(records[0].value or b""), indent=1).encode())),
    )
    mixed = data.draw(st.permutations([*records, *data.draw(st.lists(strange, max_size=5))]))
    placed = [Record(r.key, r.value, data.draw(st.integers(0, 2)), r.headers) for r in mixed]
    columnar, exact = decode(raw(placed)), one_by_one(raw(placed))
    assert [told(batch) for batch in columnar] == [told(batch) for batch in exact]


@given(changes(), st.randoms(use_true_random=False), st.integers(1, 4))
@settings(max_examples=100, deadline=None)
def test_a_damaged_record_never_harms_its_neighbours(case: tuple[Table, Rows], random: Any, damaged: int) -> None:
    """Bytes changed, cut or doubled anywhere: no exception, every record accounted for, and the whole ones as they were."""
    table, rows = case
    records = [table.change(op, wire, lsn=place + 1) for place, (op, wire, _) in enumerate(rows)] * 3
    whole = by_offset(decode(raw(records)))
    places = random.sample(range(len(records)), min(damaged, len(records)))
    for place in places:
        records[place] = Record(records[place].key, damage(records[place].value or b"", random), 0)
    try:
        after = by_offset(decode(raw(records)))
    except TableStopped as problem:
        # Damage may make a record name another table, and that is refused as a whole.
        if problem.code != "several_tables":
            raise
        return
    for offset, row in whole.items():
        if offset not in places:
            assert after[offset] == row


def damage(value: bytes, random: Any) -> bytes:
    place = random.randrange(len(value))
    return [
        value[:place] + bytes([random.randrange(256)]) + value[place + 1 :],
        value[:place] + value[place + 1 :],
        value[:place],
        value[:place] + value[place : place + 20] + value[place:],
        value[:place] + random.choice([b"\n", b"\x00", b'"', b"{", b"}", b"\\", b"}{", b"null"]) + value[place:],
    ][random.randrange(5)]


def by_offset(batches: Sequence[ChangeBatch]) -> dict[int, Any]:
    result: dict[int, Any] = {}
    for batch in batches:
        columns = [plain(column) for column in batch.data.columns]
        for place, offset in enumerate(batch.meta.column("offset").to_pylist()):
            result[offset] = [column[place] for column in columns]
        result.update({one.offset: (one.code, one.value) for one in batch.rejected})
    return result
