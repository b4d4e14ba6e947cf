"""The decoder's rules and the traps of its columnar reader, one by one."""

from __future__ import annotations

import re
from decimal import Decimal
from functools import partial
from typing import Any

import pyarrow as pa
import pytest

from cdc_service.core.errors import TableStopped
from cdc_service.core.logical import INFINITY, Kind, array, decimal
from cdc_service.core.types import ChangeBatch, Column, Op, RawBatch, Span, TableId, TableSchema
from cdc_service.ports.events import Codec, Unsupported
from connectors.formats import blocks, layout
from connectors.formats.codecs import convert
from connectors.formats.connect_schema import PRIMITIVE, SEMANTIC, field_of
from connectors.formats.debezium_json import DebeziumJsonDecoder
from connectors.sources.postgresql.events import PostgresEvents
from tests.support.envelopes import PLACEHOLDER, Col, Record, Table, dumps, listed, number, raw, text
from tests.support.plain import account, plain

ID = Col("id", optional=False)
PLAIN = Table([ID, text("name")])


def decoder(**more: Any) -> DebeziumJsonDecoder:
    return DebeziumJsonDecoder(PostgresEvents(), unavailable=PLACEHOLDER, **more)


def decode(records: list[Record], **more: Any) -> list[ChangeBatch]:
    batches = list(decoder(**more).decode(raw(records)))
    for batch in batches:
        records_, accounted = account(batch)
        assert records_ == accounted
    return batches


def one(records: list[Record], **more: Any) -> ChangeBatch:
    (batch,) = decode(records, **more)
    return batch


def codes(batch: ChangeBatch) -> list[tuple[int, str]]:
    return [(rejected.offset, rejected.code) for rejected in batch.rejected]


def row(id_: int, name: str | None = "x") -> dict[str, Any]:
    return {"id": id_, "name": name}


def test_operations_tombstones_and_truncates_all_find_their_place() -> None:
    """I6, I21."""
    deleted = PLAIN.change("d", row(1), lsn=4)
    batch = one(
        [
            PLAIN.change("r", row(1), lsn=1, snapshot="first"),
            PLAIN.change("c", row(2), lsn=2),
            PLAIN.change("u", row(2, None), lsn=3),
            deleted,
            Record(deleted.key, None),
            Record(None, PLAIN.value("t", lsn=5)),
        ]
    )
    assert batch.data.to_pylist() == [row(1), row(2), row(2, None), row(1, None), {"id": None, "name": None}]
    assert batch.meta.column("op").to_pylist() == [Op.READ, Op.CREATE, Op.UPDATE, Op.DELETE, Op.TRUNCATE]
    assert batch.meta.column("record").to_pylist() == [1 - 2**63, 2, 3, 4, 5]
    assert batch.meta.column("index").to_pylist() == [0, 1, 2, 3, 5]
    assert batch.spans == (Span(0, 0, 6, 6, 1),)
    assert batch.rejected == ()


def test_the_commit_is_the_first_of_the_sequence_and_null_where_it_is_not_known() -> None:
    sequences = ['["17","18"]', '[null,"18"]', None, "nonsense", "[]", f'["{"9" * 30}","1"]']
    batch = one([PLAIN.change("c", row(1), sequence=sequence) for sequence in sequences])
    assert batch.meta.column("commit").to_pylist() == [17, None, None, None, None, None]


def test_a_record_without_position_is_rejected() -> None:
    assert codes(one([PLAIN.change("c", row(1), lsn=None), PLAIN.change("c", row(2), lsn=-5)])) == [(0, "no_position"), (1, "no_position")]


@pytest.mark.parametrize(
    ("record", "code"),
    [
        (Record(None, PLAIN.value("c", row(1))), "null_key"),
        (Record(PLAIN.key_of(row(2)), PLAIN.value("c", row(1))), "key_differs"),
        (Record(PLAIN.key_of(row(2)), PLAIN.value("u", row(1))), "key_differs"),
        (Record(b"17", PLAIN.value("c", row(1))), "bad_key"),
        (Record(PLAIN.key_of(row(1)), PLAIN.value("m", row(1))), "unknown_op"),
        (Record(PLAIN.key_of(row(1)), PLAIN.value("c", None)), "no_row"),
        (Record(PLAIN.key_of(row(1)), PLAIN.value("d", row(1))), "extra_row"),
        (Record(PLAIN.key_of(row(1)), PLAIN.value("c", row(1), table=None)), "no_table"),
        (Record(PLAIN.key_of(row(1)), PLAIN.value("c", {"id": "one", "name": "x"})), "wrong_type"),
        (Record(PLAIN.key_of(row(1)), PLAIN.value("c", {"id": 2**31, "name": "x"})), "wrong_type"),
        (Record(PLAIN.key_of(row(1)), b'{"before":null,"after":{"id":1},"op":"c"}'), "not_schema_json"),
        (Record(PLAIN.key_of(row(1)), b'{"schema":{"type":"struct","fields":[]},"payload":{"id":1}}'), "unsupported_type"),
    ],
)
def test_what_cannot_be_applied_is_rejected_beside_the_batch(record: Record, code: str) -> None:
    """I23, I19: whole, with its reason, and its neighbours go on."""
    batch = one([PLAIN.change("c", row(5)), record, PLAIN.change("c", row(6))])
    assert codes(batch) == [(1, code)]
    assert (batch.rejected[0].key, batch.rejected[0].value) == (record.key, record.value)
    assert batch.data.column("id").to_pylist() == [5, 6]


def test_a_rejected_record_names_its_key_and_no_value() -> None:
    """I20: later records of its key are parked behind it; cell values never reach a message."""
    table = Table([ID, number("total", 5, 2), text("secret")])
    batch = one(
        [
            table.change("c", {"id": 7, "total": "123456.78", "secret": "hunter2"}),
            Record(table.key_of({"id": 8}), b"hunter2"),
        ]
    )
    assert [rejected.key_text for rejected in batch.rejected] == ['["7"]', '["8"]']
    assert "hunter2" not in "".join(rejected.message for rejected in batch.rejected)
    assert "123456" not in "".join(rejected.message for rejected in batch.rejected)
    assert "total" in batch.rejected[0].message


def test_a_broken_record_that_comes_first_names_its_key_as_later_ones_do() -> None:
    """I20: a key does not tell the source's types; the schema that the destination knows does."""
    table = Table(
        [Col("at", "bytes", "PG_LSN"), number("n", 0, 0), number("d", 5, 2), Col("raw", "bytes", "BYTEA")], key=("at", "n", "d", "raw")
    )
    good = table.change("c", {"at": "MC8x", "n": "1.50", "d": "2.50", "raw": "/w=="})
    ahead = decoder(known={"shop.public.t": one([good]).schema}).decode(raw([Record(good.key, b"broken")]))
    behind = one([good, Record(good.key, b"broken")])
    assert [r.key_text for batch in ahead for r in batch.rejected] == [behind.rejected[0].key_text] == ['["0/1","1.5","2.50","ff"]']


def test_a_truncation_behind_a_renamed_key_has_the_key_that_comes_after_it() -> None:
    """It has no key itself, and the last one that was seen is none of its columns any more."""
    renamed = Table([Col("number", optional=False), text("name")], key=("number",))
    one_decoder = decoder()
    one_decoder.decode(raw([PLAIN.change("c", row(1), lsn=1)]))
    later = [Record(None, renamed.value("t", lsn=3)), renamed.change("c", {"number": 2, "name": "b"}, lsn=4)]
    (batch,) = one_decoder.decode(raw(later, start=1))
    assert (batch.rejected, batch.schema.key) == ((), ("number",))
    assert batch.meta.column("op").to_pylist() == [Op.TRUNCATE, Op.CREATE]


def test_the_order_of_a_composite_key_is_the_keys_own() -> None:
    table = Table([text("b"), Col("a"), text("c")], key=("a", "b"))
    batch = one([table.change("d", {"a": 1, "b": "x", "c": "y"})])
    assert batch.schema.key == ("a", "b")
    assert batch.data.to_pylist() == [{"b": "x", "a": 1, "c": None}]


def test_numeric_keys_that_are_one_number_are_one_text() -> None:
    table = Table([number("id", 0, 0), text("name")])
    batch = one([table.change("c", row(value)) for value in ("1.50", "1.5", "10", "100.00", "-0.10")])  # type: ignore[arg-type]
    assert batch.data.column("id").to_pylist() == ["1.5", "1.5", "10", "100", "-0.1"]


def test_a_truncate_before_any_key_knows_the_key_of_the_table() -> None:
    known = TableSchema(TableId("public", "t"), (Column("id", PRIMITIVE["int32"].type), Column("name", PRIMITIVE["string"].type)), ("id",))
    assert one([Record(None, PLAIN.value("t"))]).schema.key == ()
    assert one([Record(None, PLAIN.value("t"))], known={"shop.public.t": known}).schema.key == ("id",)
    assert one([Record(None, PLAIN.value("t")), PLAIN.change("c", row(1))]).schema.key == ("id",)


def test_several_tables_in_a_topic_stop_the_table() -> None:
    other = Table([ID, text("name")], name="other")
    with pytest.raises(TableStopped) as caught:
        decode([PLAIN.change("c", row(1)), other.change("c", row(2))])
    assert (caught.value.state, caught.value.code) == ("error", "several_tables")
    # Also when the schema part is the same, as after a transform that routes topics.
    mixed = Record(PLAIN.key_of(row(2)), PLAIN.value("c", row(2), table="other"))
    with pytest.raises(TableStopped):
        decode([PLAIN.change("c", row(1)), mixed])


def test_the_schema_part_ends_where_it_ends() -> None:
    """Not at text that looks like it: in a default, an enum's labels, a value or a column's name."""
    trap = 'x,"payload":{'
    table = Table(
        [ID, text("payload", default=trap), text("e", "E", "io.debezium.data.Enum", parameters={"allowed": trap}), text("schema")]
    )
    value = {"id": 1, "payload": trap, "e": trap, "schema": '{"schema":1,"payload":2}'}
    assert one([table.change("c", value)]).data.to_pylist() == [value]


def test_records_of_many_schema_parts_keep_their_order() -> None:
    """More distinct prefixes of different lengths than are compared as whole columns."""
    tables = [Table([ID, text("name", default="x" * (size % 29))]) for size in range(60)]
    batch = one([table.change("c", row(place)) for place, table in enumerate(tables)])
    assert batch.data.column("id").to_pylist() == list(range(60))


def test_prefixes_leave_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "_PREFIXES_MAX", 3)
    prefixes = layout.Prefixes(partial(layout.read_value_schema, PostgresEvents()))
    for size in range(10):
        prefixes.recognise(pa.array([Table([ID, text("name", default="x" * size)]).value("c", row(1))], pa.binary()))
    assert len(prefixes._known) == 3


def test_a_change_of_schema_splits_the_batch_where_it_happens() -> None:
    """I9: each batch has one version; the spans of a partition follow one another; partitions at the same version go together."""
    later = Table([ID, text("name"), Col("more")])
    changed = {"id": 3, "name": "x", "more": 1}
    records = [
        *[Record(PLAIN.key_of(row(1)), PLAIN.value("c", row(1)), 0), Record(PLAIN.key_of(row(1)), None, 0)],
        *[Record(later.key_of(changed), later.value("c", changed), 0)],
        *[Record(PLAIN.key_of(row(2)), PLAIN.value("c", row(2)), 1)],
        *[Record(None, None, 2)],
        *[Record(later.key_of(changed), later.value("c", changed), 3), Record(PLAIN.key_of(row(4)), PLAIN.value("c", row(4)), 3)],
    ]
    batches = decode(records)
    assert [len(batch.schema.columns) for batch in batches] == [2, 3, 2]
    assert [batch.data.column("id").to_pylist() for batch in batches] == [[1, 2], [3, 3], [4]]
    assert batches[0].spans == (Span(0, 0, 2, 2, 1), Span(1, 0, 1, 1), Span(2, 0, 1, 1, 1))
    assert batches[1].spans == (Span(0, 2, 3, 1), Span(3, 0, 1, 1))
    assert batches[2].spans == (Span(3, 1, 2, 1),)


def test_a_default_or_a_source_types_name_makes_no_new_version() -> None:
    first = Table([ID, number("n", 0, 0), Col("s", "int64", "BIGSERIAL")])
    later = Table([ID, number("n", 131089, 0), Col("s", "int64", "INT8", default=5)])
    value = {"id": 1, "n": "1", "s": 2}
    assert one([first.change("c", value), later.change("c", value)]).num_rows == 2


def test_positions_without_records_move_on() -> None:
    empty = RawBatch(
        "t",
        *(pa.array([], kind) for kind in (pa.binary(), pa.binary(), pa.int32(), pa.int64())),
        (Span(0, 5, 7, 0), Span(1, 2, 3, 0)),
        lambda _: (),
    )
    (batch,) = decoder().decode(empty)
    assert (batch.num_rows, batch.spans) == (0, empty.spans)


TOASTED = Table(
    [ID, text("big"), Col("raw", "bytes", "BYTEA"), listed("tags", "string", "_TEXT"), text("fixed", "UUID", "io.debezium.data.Uuid")]
)


def test_unsent_values_are_masked_and_null() -> None:
    """I11. A type that is always sent is never taken for unsent."""
    whole = {"id": 1, "big": "b", "raw": "AA==", "tags": ["t"], "fixed": PLACEHOLDER}
    batch = one([TOASTED.change("u", {**whole, "big": PLACEHOLDER, "tags": [PLACEHOLDER]}), TOASTED.change("u", whole)])
    assert batch.unsent is not None
    assert batch.unsent.to_pydict() == {"big": [True, False], "tags": [True, False]}
    assert batch.data.column("big").to_pylist() == [None, "b"]
    assert batch.data.column("fixed").to_pylist() == [PLACEHOLDER, PLACEHOLDER]


def test_headers_are_asked_only_where_they_matter() -> None:
    whole = {"id": 1, "big": "b", "raw": "AA==", "tags": ["t"], "fixed": "f"}
    cut = {**whole, "id": 2, "big": PLACEHOLDER}
    old, new = (("__debezium.oldkey", b'{"id":1}'),), (("__debezium.newkey", b'{"id":2}'),)
    moved = TOASTED.change("d", whole)
    records = [
        TOASTED.change("c", whole),
        Record(moved.key, moved.value, 0, new),
        Record(TOASTED.key_of(cut), TOASTED.value("c", cut), 0, old),
        TOASTED.change("u", cut),
        Record(TOASTED.key_of(cut), TOASTED.value("c", cut), 0, (("__debezium.oldkey", b'{"id":"x"}'),)),
    ]
    batch, asked = raw(records), []

    def headers(place: int) -> Any:
        asked.append(place)
        return records[place].headers

    (done,) = decoder().decode(RawBatch(batch.topic, batch.keys, batch.values, batch.partitions, batch.offsets, batch.spans, headers))
    assert set(asked) == {1, 2, 4}
    assert done.moved is not None
    assert done.moved.to_pylist() == [False, True, False, False]
    assert done.old_key is not None
    assert done.old_key.to_pylist() == [{"id": None}, {"id": None}, {"id": 1}, {"id": None}]
    assert codes(done) == [(4, "bad_old_key")]


def test_null_that_may_mean_unsent_is_rejected_unless_the_whole_row_was_logged() -> None:
    table = Table([ID, listed("prices", "string", "_NUMERIC")])
    value = {"id": 1, "prices": None}
    key = table.key_of(value)
    batch = one(
        [
            Record(key, table.value("u", value)),
            Record(key, table.value("u", value, before=value)),
            Record(key, table.value("c", value)),
            Record(key, table.value("c", value), 0, (("__debezium.oldkey", b'{"id":9}'),)),
            Record(key, table.value("r", value, snapshot="true")),
            Record(key, table.value("u", {"id": 1, "prices": []})),
        ]
    )
    assert codes(batch) == [(0, "null_or_unsent"), (3, "null_or_unsent")]
    assert batch.num_rows == 4


SCHEMA = pa.schema([("a", pa.string()), ("f", pa.float64())])


@pytest.mark.parametrize(
    "documents",
    [
        [b"null}", b'{"a":"x"}}'],
        [b'{"a":\n"x"}}'],
        [b'{"a":"x"}{"a":"y"}}'],
        [b'{"a":"x"} {"a":"y"}}'],
        [b'{"a":"x"},}'],
        [b'{"a":"x"}]'],
        [b'{"a":"x\x00"}}'],
        [b'{"a":"\xff"}}'],
        [b'{"a":"\xed\xa0\x80"}}'],
        [b'{"a":"\\ud800"}}'],
        [b'{"a":1}}'],
        [b'{"f":NaN}}'],
        [b'{"f":Infinity}}'],
        [b'{"f":1e400}}'],
        [b'{"f":"1"}}'],
        [b'{"a":"x","a":"y"}}'],
        [b"}"],
        [b""],
    ],
)
def test_the_columnar_reader_refuses_what_it_would_get_wrong(documents: list[bytes]) -> None:
    with pytest.raises(blocks.Refused):
        blocks.columnar(pa.array(documents, pa.binary()), SCHEMA)


def test_the_columnar_reader_reads_numbers_that_json_has_no_form_for() -> None:
    documents = [
        b'{"a":"a:\\"NaN\\"","f":"NaN"}}',
        b'{"a":"b","f":"-Infinity"}}',
        b'{"a":null,"f":1}}',
        b'{"f":"Infinity","zz":{"a":[1]}}}',
    ]
    table = blocks.columnar(pa.array(documents, pa.binary()), SCHEMA)
    assert repr(table.to_pydict()) == "{'a': ['a:\"NaN\"', 'b', None, None], 'f': [nan, -inf, 1.0, inf]}"


def test_the_columnar_reader_reads_such_numbers_in_lists_beside_columns_of_that_name() -> None:
    schema = pa.schema([("x", pa.list_(pa.float64())), ("t", pa.string())])
    documents = [b'{"x":["NaN",1.5,"NaN","-Infinity"],"t":"[\\"NaN\\",1]"}}', b'{"x":[],"t":null}}']
    assert repr(blocks.columnar(pa.array(documents, pa.binary()), schema).to_pydict()) == (
        "{'x': [[nan, 1.5, nan, -inf], []], 't': ['[\"NaN\",1]', None]}"
    )
    table = Table([ID, Col("NaN", "double", "FLOAT8"), listed("x", "double", "_FLOAT8")])
    batch = one([table.change("c", {"id": 1, "NaN": "NaN", "x": ["Infinity"]})])
    assert repr(batch.data.to_pylist()) == "[{'id': 1, 'NaN': nan, 'x': [inf]}]"


def test_parts_of_larger_arrays_decode_as_whole_ones() -> None:
    whole = raw([PLAIN.change("c", row(place)) for place in range(6)])
    part = RawBatch(
        whole.topic,
        *(column.slice(2, 3) for column in (whole.keys, whole.values, whole.partitions, whole.offsets)),
        (Span(0, 2, 5, 3),),
        lambda _: (),
    )
    (batch,) = decoder().decode(part)
    assert batch.data.column("id").to_pylist() == [2, 3, 4]
    assert batch.meta.column("offset").to_pylist() == [2, 3, 4]


def test_one_bad_document_costs_a_small_block_its_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    one_by_one = blocks._one_by_one
    monkeypatch.setattr(blocks, "_one_by_one", lambda documents, *more: read.append(len(documents)) or one_by_one(documents, *more))
    records = [PLAIN.change("c", row(place)) for place in range(5000)]
    records[2345] = Record(records[2345].key, PLAIN.wrap(b'{"op":"c","after":{"id":2345,"name":7}}'))
    batch = one(records)
    assert codes(batch) == [(2345, "wrong_type")]
    assert batch.num_rows == 4999
    assert sum(read) <= 64


def test_messages_larger_than_a_readers_block_arrive() -> None:
    large = "ü" * 3_000_000
    assert one([PLAIN.change("c", row(1, large)), PLAIN.change("c", row(2))]).data.column("name").to_pylist() == [large, "x"]


def told(codec: Codec, values: list[Any]) -> tuple[list[Any], list[int]]:
    """(values, places of bad ones) of a conversion."""
    done = convert(codec, pa.array(values, codec.read))
    bad = [] if done.bad is None else [place for place, flag in enumerate(done.bad) if flag]
    assert done.values.type == codec.type.arrow
    return plain(done.values), bad


def codec(column: Col) -> Codec:
    return field_of(column.schema(), PostgresEvents()).codec


@pytest.mark.parametrize(
    ("column", "values", "expected", "bad"),
    [
        (
            number("n", 5, 2),
            ["123.45", "123.456", "1234.5", "-0.10", None],
            [Decimal("123.45"), None, None, Decimal("-0.10"), None],
            [1, 2],
        ),
        (number("n", 5, 2), ["NAN", "1e9", ""], [None, None, None], [0, 1, 2]),
        (number("n", 5, 2046), ["1200.000", "0.0", None], ["1200", "0", None], []),
        (number("n", 0, 0), ["1.10", "NAN", "NaN", "1e5", " 1"], ["1.10", "NaN", None, None, None], [2, 3, 4]),
        (Col("f", "float", "FLOAT4"), [1e39, 1e-60, 0.0, None], [None, None, 0, None], [0, 1]),
        (Col("b", "bytes", "BYTEA"), ["", "AA==", "AAA=", "AAAA", None], [b"", b"\0", b"\0\0", b"\0\0\0", None], []),
        (Col("b", "bytes", "BYTEA"), ["A=AA", "AAA", "AA==AAAA", "A A=", "====", "AAAA"], [None] * 5 + [b"\0\0\0"], [0, 1, 2, 3, 4]),
        (Col("b", "bytes", "LINE"), ["ezEsMCwwfQ==", "/w==", None], ["{1,0,0}", None, None], [1]),
        (
            Col("b", "bytes", "BIT", "io.debezium.data.Bits", parameters={"length": "10"}),
            ["", "AQ==", "AAI=", "AAQ=", "AAAA", None],
            ["0" * 10, "0" * 9 + "1", "1" + "0" * 9, None, "0" * 10, None],
            [3],
        ),
        (
            Col("d", "int32", "DATE", "io.debezium.time.Date"),
            [0, -2147472692, -2147472691, -622191234, -625821272, -2440588, -2440589, 2145042906],
            [0, *[INFINITY[Kind.DATE], -INFINITY[Kind.DATE]] * 2, -2440588, None, None],
            [6, 7],
        ),
        (
            Col("t", "int64", "TIMESTAMP", "io.debezium.time.Timestamp"),
            [1, 9223372036825200, -9223372036832400, -9223372036853775],
            [1000, INFINITY[Kind.TIMESTAMP], -INFINITY[Kind.TIMESTAMP], None],
            [3],
        ),
        (
            Col("t", "int64", "TIME", "io.debezium.time.NanoTime"),
            [1000, 1, 86_400_000_000_000, -1],
            [1, None, 86_400_000_000, None],
            [1, 3],
        ),
        (
            text("t", "TIMESTAMPTZ", "io.debezium.time.ZonedTimestamp"),
            [
                "1970-01-01T00:00:00Z",
                "1970-01-01T00:00:00.1234567Z",
                "+294276-12-31T23:59:59.999999Z",
                "2023-02-29T00:00:00Z",
                "0000-12-31T00:00:00Z",
            ],
            [0, None, None, None, -62135683200000000],
            [1, 2, 3],
        ),
        (
            text("d", "DATE", "io.debezium.time.IsoDate"),
            ["1970-01-02Z", "-0001-02-29Z", "-0004-02-29Z", "x"],
            [1, None, -720930, None],
            [1, 3],
        ),
        (text("t", "TIME", "io.debezium.time.IsoTime"), ["00:00:01.5Z", "24:00:00Z", "1Z"], [1_500_000, None, None], [1, 2]),
        (
            listed("a", "int32", "_DATE", "io.debezium.time.Date"),
            [[0, None], [-622191234, -625821272], None, []],
            [[0, None], [INFINITY[Kind.DATE], -INFINITY[Kind.DATE]], None, []],
            [],
        ),
    ],
)
def test_values_are_exact_or_refused(column: Col, values: list[Any], expected: list[Any], bad: list[int]) -> None:
    assert told(codec(column), values) == (expected, bad)
    # A value's fate does not hang on its neighbours.
    assert [told(codec(column), [value])[0][0] for value in values] == expected


DAYS = listed("a", "int32", "_DATE", "io.debezium.time.Date")
MICROS = listed("a", "int64", "_TIMESTAMP", "io.debezium.time.MicroTimestamp")
INSTANTS = listed("a", "string", "_TIMESTAMPTZ", "io.debezium.time.ZonedTimestamp")


@pytest.mark.parametrize(
    ("column", "sure", "doubtful"),
    [
        # Of a day before Christ the connector makes the same day of the year with that number.
        (DAYS, [0, -141417, 84005, 1002590, 2145042905, -622191234, -625821272], [-141418, -719162, 84006, 1002589, 2145042906]),
        (MICROS, [0, 2**60, 9223372036825200000, -9223372036832400000], [-12218428800000001, -(2**62), 9223372036854775807]),
        (
            INSTANTS,
            ["1582-10-25T00:00:00Z", "2199-12-31T23:59:59Z", "+10000-01-01T00:00:00Z", "infinity"],
            ["1582-10-24T23:59:59Z", "0044-03-15T00:00:00Z", "4713-01-01T00:00:00Z", "+292269055-12-02T23:00:00.000000Z"],
        ),
        (listed("a", "string", "_TEXT"), ["", "a@b", "[x]@1"], ["[Ljava.lang.String;@25bae3a6"]),
    ],
)
def test_elements_that_the_connector_may_have_changed_are_doubtful(column: Col, sure: list[Any], doubtful: list[Any]) -> None:
    for element, told_apart in [*((e, False) for e in sure), *((e, True) for e in doubtful)]:
        lists = [[element], [sure[0], element, None], [sure[0]], [None, None], [], None]
        done = convert(codec(column), pa.array(lists, codec(column).read))
        assert done.bad is None, element
        # Nothing but NULLs is what the connector makes of arrays of two dimensions.
        assert done.doubtful is not None
        assert done.doubtful.tolist() == [told_apart, told_apart, False, True, False, False], element


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        (number("n", 38, 38), decimal(38, 38)),
        (number("n", 39, 0), PRIMITIVE["string"].type.__class__(Kind.NUMERIC)),
        (number("n", 3, 5), PRIMITIVE["string"].type.__class__(Kind.NUMERIC)),
        (text("m", "MONEY"), decimal(19, 2)),
        (listed("a", "int64", "_INT8"), array(PRIMITIVE["int64"].type)),
        (text("e", "MOOD", "io.debezium.data.Enum"), PRIMITIVE["string"].type),
        (text("e", "X", "org.example.Own"), PRIMITIVE["string"].type),
    ],
)
def test_types_land_where_they_belong(column: Col, kind: Any) -> None:
    assert codec(column).type == kind


@pytest.mark.parametrize(
    "column",
    [
        Col("x", "double", "NUMERIC"),
        Col("x", "int64", "TIMESTAMP", "io.debezium.time.NanoTimestamp"),
        Col("x", "int64", "INTERVAL", "io.debezium.time.MicroDuration"),
        Col("x", "bytes", "NUMERIC", "org.apache.kafka.connect.data.Decimal"),
        Col("x", "bytes", "VARBIT", "io.debezium.data.Bits", parameters={"length": "2147483647"}),
        Col("x", "int64", "X", "org.example.Own"),
        listed("x", "int64", "_TIME", "io.debezium.time.MicroTime"),
    ],
)
def test_types_without_an_exact_form_cost_the_record_and_say_the_cure(column: Col) -> None:
    table = Table([ID, column])
    given: Any = {"double": 1.5, "int64": 1, "bytes": "AA==", "array": [1]}[column.kind]
    batch = one([table.change("c", {"id": 1, "x": given}), table.change("c", {"id": 2, "x": None})])
    assert codes(batch) == [(0, "inexact_value")]
    assert "'x'" in batch.rejected[0].message
    assert re.search(r"[;:] (set|leave) ", batch.rejected[0].message)
    assert batch.data.to_pylist() == [{"id": 2, "x": None}]


def test_a_structure_that_is_not_known_is_refused_with_its_name() -> None:
    with pytest.raises(Unsupported, match=r"column 'x'.*Decimal"):
        field_of(Col("x", "struct", "NUMERIC", "io.debezium.data.VariableScaleDecimal").schema(), PostgresEvents())


def test_defaults_are_exact_values_or_none() -> None:
    def default(column: Col) -> Any:
        return field_of(column.schema(), PostgresEvents()).column.default

    assert default(number("n", 5, 2, default="1.50")) == Decimal("1.50")
    assert default(Col("b", "bytes", "BYTEA", default="AAE=")) == b"\x00\x01"
    assert default(Col("i", default=7)) == 7
    assert default(Col("i", default="seven")) is None
    # now() arrives as the zero of its type.
    assert default(text("t", "TIMESTAMPTZ", "io.debezium.time.ZonedTimestamp", default="1970-01-01T00:00:00.000000Z")) is None


def test_every_semantic_type_has_a_conversion() -> None:
    for wire_ in [*PRIMITIVE.values(), *SEMANTIC.values()]:
        assert plain(convert(wire_, pa.nulls(2, wire_.read)).values) == [None, None]
        assert len(convert(wire_, pa.nulls(0, wire_.read)).values) == 0


def test_the_same_records_again_give_the_same_batches() -> None:
    """Safe to call again: what the decoder learned changes nothing."""
    records = [PLAIN.change("c", row(1)), Record(None, PLAIN.value("t")), Record(PLAIN.key_of(row(1)), dumps({"x": 1}))]
    same = decoder()
    first, again = same.decode(raw(records)), same.decode(raw(records))
    assert [b.data.to_pylist() for b in first] == [b.data.to_pylist() for b in again]
    assert [b.rejected for b in first] == [b.rejected for b in again]


@pytest.mark.parametrize("first", [True, False])
def test_a_key_that_fits_no_row_does_not_speak_for_records_without_one(first: bool) -> None:
    """Found by the fuzzer: the truncate beside it was parked too."""
    other = Table([Col("other", optional=False), text("name")], key=("other",))
    strange = Record(other.key_of({"other": 1}), PLAIN.change("c", row(1)).value)
    truncate = Record(None, PLAIN.value("t", lsn=9))
    batch = one([strange, truncate, PLAIN.change("c", row(2))] if first else [PLAIN.change("c", row(2)), truncate, strange])
    assert [r.code for r in batch.rejected] == ["key_schema"]
    assert sorted(plain(batch.meta.column("op"))) == [Op.CREATE, Op.TRUNCATE]
    assert batch.schema.key == ("id",)
