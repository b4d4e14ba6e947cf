"""The two readers of Avro are one, whatever the schema and whatever the bytes: a record that cannot be read never costs its neighbours."""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdc_service.ports.events import Unsupported
from connectors.formats.avro_columns import read_block
from connectors.formats.avro_exact import reader
from connectors.formats.avro_schema import Node, avro_unicode_spelling, connect_schema, parse
from connectors.formats.exact import Inexact
from tests.support.avro import encode, number
from tests.support.plain import plain

Schema = Any
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=15)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "null": st.none(),
    "boolean": st.booleans(),
    "int": st.one_of(st.integers(-(2**31), 2**31 - 1), st.sampled_from([-(2**31), 2**31 - 1, 0, -1, 63, 64, -64, -65])),
    "long": st.one_of(st.integers(-(2**63), 2**63 - 1), st.sampled_from([-(2**63), 2**63 - 1, 2**55, -(2**55), 2**62, -(2**62) - 1])),
    "float": st.floats(width=32),
    "double": st.floats(),
    "bytes": st.binary(max_size=20),
    "string": TEXT,
}
ARROW = {
    "boolean": pa.bool_(), "int": pa.int32(), "long": pa.int64(), "float": pa.float32(), "double": pa.float64(), "bytes": pa.binary(),
    "string": pa.string(),
}  # fmt: skip


@st.composite
def typed(draw: st.DrawFn, depth: int = 2) -> tuple[Schema, st.SearchStrategy[Any], pa.DataType | None]:
    """(schema, values as ``encode`` takes them, the Arrow type to read it as, None to read over it)."""
    kinds = ["primitive", "optional", "several", "enum", "fixed", *(["record", "array", "map"] if depth else [])]
    kind = draw(st.sampled_from(kinds))
    if kind == "primitive":
        name = draw(st.sampled_from(list(ARROW)))
        return name, VALUES[name], draw(st.sampled_from([ARROW[name], None]))
    if kind == "optional":
        inner, values, arrow = draw(typed(depth=max(depth - 1, 0)).filter(lambda one: not isinstance(one[0], list)))
        first = draw(st.booleans())
        branches = [inner, "null"] if first else ["null", inner]
        null, own = (1, 0) if first else (0, 1)
        return branches, st.one_of(st.just((null, None)), values.map(lambda value: (own, value))), arrow
    if kind == "several":
        names = draw(st.lists(st.sampled_from(list(VALUES)), min_size=2, max_size=4, unique=True))
        return names, st.one_of(*(VALUES[name].map(lambda v, p=place: (p, v)) for place, name in enumerate(names))), None  # type: ignore[misc]
    if kind == "enum":
        symbols = draw(st.sampled_from([["a"], ["a", "b", "c"], [f"s{n}" for n in range(70)]]))
        return {"type": "enum", "name": fresh(draw), "symbols": symbols}, st.sampled_from(symbols), pa.string()
    if kind == "fixed":
        size = draw(st.integers(0, 13))
        return {"type": "fixed", "name": fresh(draw), "size": size}, st.binary(min_size=size, max_size=size), pa.binary()
    if kind == "record":
        return draw(record(depth - 1))
    inner, values, arrow = draw(typed(depth=depth - 1))
    if kind == "array" and parse(json.dumps({"type": "record", "name": "R", "fields": [{"name": "f", "type": inner}]})).least == 0:
        inner, values, arrow = "int", VALUES["int"], pa.int32()
    long = draw(st.sampled_from([3, 3, 40]))
    if kind == "array":
        return {"type": "array", "items": inner}, st.lists(values, max_size=long), None if arrow is None else pa.list_(arrow)
    return {"type": "map", "values": inner}, st.dictionaries(TEXT, values, max_size=4), None


def fresh(draw: st.DrawFn) -> str:
    return f"T{draw(st.integers(0, 10**9))}"


@st.composite
def record(draw: st.DrawFn, depth: int = 2) -> tuple[Schema, st.SearchStrategy[Any], pa.DataType]:
    fields = draw(st.lists(typed(depth=depth), min_size=1, max_size=5))
    names = [f"f{place}" for place in range(len(fields))]
    schema = {"type": "record", "name": fresh(draw), "fields": [{"name": n, "type": f[0]} for n, f in zip(names, fields, strict=True)]}
    values = st.fixed_dictionaries({n: f[1] for n, f in zip(names, fields, strict=True)})
    wanted = [pa.field(n, f[2]) for n, f in zip(names, fields, strict=True) if f[2] is not None]
    return schema, values, pa.struct([*wanted, pa.field("lacking", pa.string())])


def value_of(schema: Schema, value: Any, kind: pa.DataType) -> Any:
    """What must arrive of a value as ``encode`` took it."""
    if isinstance(schema, list):
        return value_of(schema[value[0]], value[1], kind)
    if value is None:
        return None
    if pa.types.is_struct(kind):
        types = {field["name"]: field["type"] for field in schema["fields"]}
        return {field.name: value_of(types[field.name], value[field.name], field.type) if field.name in types else None for field in kind}
    if pa.types.is_list(kind):
        return [value_of(schema["items"], one, kind.value_type) for one in value]
    return value


def read(node: Node, data: Sequence[bytes], kind: pa.DataType) -> list[Any]:
    """Each record, or the code of its problem, by the columnar reader; the exact one says the same, or this fails."""
    schema = pa.schema(list(kind))
    block = read_block(pa.array([b"12345" + one for one in data], pa.binary()), node, schema, 5)
    block.rows.validate(full=True)
    assert block.rows.num_rows == len(data)
    columns = [plain(column) for column in map(flat, block.rows.columns)]
    found = [block.problems[place].code if place in block.problems else [column[place] for column in columns] for place in range(len(data))]
    expected, exactly_read = [], reader(node, kind)
    for one in data:
        try:
            expected.append(plain_row(exactly_read(one), schema))
        except Inexact as problem:
            expected.append(problem.code)
    assert found == expected
    return found


def flat(column: pa.ChunkedArray) -> pa.Array:
    return pa.array([repr(exactly(value)) for value in column.to_pylist()])


def exactly(value: Any) -> Any:
    """Floats by their bits, so that NaN equals itself and zero is not minus zero."""
    if isinstance(value, float):
        return struct.pack("<d", math.nan if value != value else value)
    if isinstance(value, dict):
        return {name: exactly(one) for name, one in value.items()}
    return [exactly(one) for one in value] if isinstance(value, list) else value


def plain_row(row: Any, schema: pa.Schema) -> list[Any]:
    table = pa.Table.from_pylist([row], schema)
    return [plain(flat(column))[0] for column in table.columns]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_both_readers_say_what_was_written(data: st.DataObject) -> None:
    schema, values, kind = data.draw(record())
    rows = data.draw(st.lists(values, min_size=1, max_size=30))
    found = read(parse(json.dumps(schema)), [encode(schema, row) for row in rows], kind)
    assert found == [plain_row(value_of(schema, row, kind), pa.schema(list(kind))) for row in rows]


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_damaged_bytes_are_rejected_alone_by_both_readers(data: st.DataObject) -> None:
    """Cut off, changed, or with something behind: neighbours as before, and never an exception of another kind."""
    schema, values, kind = data.draw(record())
    rows = [encode(schema, row) for row in data.draw(st.lists(values, min_size=2, max_size=20))]
    node = parse(json.dumps(schema))
    whole = read(node, rows, kind)
    place = data.draw(st.integers(0, len(rows) - 1))
    damaged = bytearray(rows[place])
    for _ in range(data.draw(st.integers(1, 3))):
        if damaged:
            damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.sampled_from([0, 1, 2, 0x7F, 0x80, 0xFE, 0xFF]))
    cut = data.draw(st.integers(0, len(damaged)))
    content = data.draw(st.sampled_from([bytes(damaged), bytes(damaged[:cut]), bytes(damaged) + b"\0", rows[place] + b"x"]))
    after = read(node, [*rows[:place], content, *rows[place + 1 :]], kind)
    assert after[:place] + after[place + 1 :] == whole[:place] + whole[place + 1 :]


def one_field(kind: Schema) -> Node:
    return parse(json.dumps({"type": "record", "name": "R", "fields": [{"name": "f", "type": kind}]}))


@pytest.mark.parametrize("size", [2**20, 2**31, 2**40, 2**62, -1, -(2**63)])
@pytest.mark.parametrize(
    ("kind", "arrow"),
    [
        ("string", pa.string()),
        ("bytes", pa.binary()),
        ({"type": "array", "items": "int"}, pa.list_(pa.int32())),
        ({"type": "map", "values": "int"}, None),
        (["null", "string"], pa.string()),
        ({"type": "enum", "name": "E", "symbols": ["a"]}, pa.string()),
    ],
)
def test_a_claimed_size_takes_no_memory(kind: Schema, arrow: pa.DataType | None, size: int) -> None:
    wanted = pa.struct([pa.field("f" if arrow is not None else "other", arrow or pa.string())])
    neighbours = {"string": b"\x02a", "bytes": b"\x02a"}.get(kind if isinstance(kind, str) else "", b"\0")
    found = read(one_field(kind), [neighbours, number(size) + b"abc", neighbours], wanted)
    assert found[1] == "bad_avro"
    assert found[0] == found[2] != "bad_avro"


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "bad_avro"),
        (b"\x80" * 9 + b"\x02", "bad_avro"),
        (b"\xff" * 10, "bad_avro"),
        (b"\xff" * 11, "bad_avro"),
        (b"\x80\x80", "bad_avro"),
    ],
)
def test_numbers_that_are_none(content: bytes, code: str) -> None:
    assert read(one_field("long"), [b"\x02", content, b"\x04"], pa.struct([("f", pa.int64())])) == [["1"], code, ["2"]]


def test_an_int_beyond_32_bits_is_none_and_one_beyond_the_column_is_no_value_of_it() -> None:
    big, small = number(2**31), number(2**15)
    assert read(one_field("int"), [big, small], pa.struct([("f", pa.int64())])) == ["bad_avro", ["32768"]]
    assert read(one_field("int"), [big, small, b"\x02"], pa.struct([("f", pa.int16())])) == ["bad_avro", "wrong_type", ["1"]]


def test_text_that_is_not_utf8_is_rejected_also_where_it_is_read_over() -> None:
    bad = b"\x04\xff\xfe"
    for wanted in (pa.struct([("f", pa.string())]), pa.struct([("other", pa.string())])):
        found = read(one_field("string"), [b"\x04\xc3\xa9", bad], wanted)
        assert found[1] == "bad_avro"
        assert found[0] != "bad_avro"


@pytest.mark.parametrize("elements", [1, 15, 16, 17, 500])
def test_arrays_of_very_different_lengths(elements: int) -> None:
    schema = {"type": "array", "items": ["null", "long"]}
    lists = [[(1, n) for n in range(elements)], [], *[[(0, None), (1, 7)]] * 40]
    found = read(one_field(schema), [encode(schema, one) for one in lists], pa.struct([("f", pa.list_(pa.int64()))]))
    assert found[0] == [repr(list(range(elements)))]
    assert found[1:3] == [["[]"], ["[None, 7]"]]


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"type": "record", "name": "R", "fields": [{"name": "next", "type": ["null", "R"]}]}, "holds itself"),
        ({"type": "array", "items": "null"}, "take no bytes"),
        ({"type": "array", "items": {"type": "record", "name": "E", "fields": []}}, "take no bytes"),
        ({"type": "record", "name": "R", "fields": [{"name": "f", "type": "Unknown"}]}, "without defining"),
        ({"type": "fixed", "name": "F", "size": -1}, "less than no bytes"),
        ([["null"]], "union"),
        ([], "union"),
        ({"type": "record", "name": "R"}, "no Avro schema"),
        (7, "no Avro schema"),
    ],
)
def test_schemas_that_are_refused(schema: Schema, reason: str) -> None:
    with pytest.raises(Unsupported, match=reason):
        parse(json.dumps(schema))


def test_a_schema_that_doubles_at_each_step_is_refused_at_once() -> None:
    schema: Schema = "int"
    for level in range(30):
        inner = schema if level == 0 else f"L{level - 1}"
        first = {"name": "a", "type": schema}
        schema = {"type": "record", "name": f"L{level}", "fields": [first, {"name": "b", "type": inner}]}
    with pytest.raises(Unsupported, match="more than"):
        parse(json.dumps(schema))


def test_a_schema_nested_without_end_is_refused() -> None:
    with pytest.raises(Unsupported):
        parse('{"type":"array","items":' * 5000 + '"int"' + "}" * 5000)


@pytest.mark.parametrize(
    ("name", "spelled"),
    [("späterer wert", "sp_u00e4terer_u0020wert"), ("пример", "_u43f_u440_u438_u43c_u435_u440"), ("_time", "_u005ftime"), ("日", "_u65e5")],
)
def test_names_as_the_connector_was_seen_to_spell_them(name: str, spelled: str) -> None:
    assert avro_unicode_spelling(name) == spelled


@given(TEXT)
def test_names_that_avro_cannot_spell_come_back(name: str) -> None:
    spelled = avro_unicode_spelling(name)
    assert re.fullmatch(r"[A-Za-z0-9_]*", spelled)
    about = {"type": "int", "connect.parameters": {"__debezium.source.column.name": name}}
    node = parse(json.dumps({"type": "record", "name": "R", "fields": [{"name": spelled, "type": ["null", about]}]}))
    assert connect_schema(node)["fields"][0]["field"] == name
    # A transform that renamed the column has the last word.
    other = parse(json.dumps({"type": "record", "name": "R", "fields": [{"name": "renamed_by_a_transform", "type": about}]}))
    assert connect_schema(other)["fields"][0]["field"] == "renamed_by_a_transform"
