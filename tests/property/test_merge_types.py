"""Every value of every logical type comes back from a destination exactly: through a merge, the released file, a fill and a key change."""

from __future__ import annotations

import math
import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cdc_service.core.logical import INFINITY, Kind, LogicalType, array, decimal
from cdc_service.core.types import Column, Op, TableId, TableSchema
from cdc_service.ports.destination import Capabilities, UnsentUnknown
from cdc_service.testing.memory import plain
from mergers.destinations.duckdb import CAPABILITIES
from tests.conformance.harness import PARAMS, Change, Feed, harness_of, number

TEXT = st.text(st.characters(codec="utf-8"), max_size=30)
JSON_TEXT = st.one_of(
    st.sampled_from(['{"a": 1, "a": 2}', '"\\ud800"', "1e400", "-0.0", ' {"x" : [null, true] } ', '"\\u0000"', "1" * 60, "null"]),
    st.integers().map(str),
)


def bounded(can: Capabilities, kind: Kind) -> st.SearchStrategy[int]:
    low, high = can.ranges[kind]
    edges = [n for n in (low, low + 1, -1, 0, 1, high - 1, high) if low <= n <= high]
    if kind in can.infinity:
        edges += [INFINITY[kind], -INFINITY[kind]]
    return st.one_of(st.sampled_from(edges), st.integers(low, high))


def decimals(precision: int, scale: int) -> st.SearchStrategy[Decimal]:
    top = 10**precision - 1
    return st.one_of(st.sampled_from([-top, top, 0, 1, -1]), st.integers(-top, top)).map(lambda n: Decimal(f"{n}e-{scale}"))


def integers(bits: int) -> st.SearchStrategy[int]:
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    return st.one_of(st.sampled_from([low, high, 0]), st.integers(low, high))


def values(can: Capabilities) -> dict[LogicalType, st.SearchStrategy[Any]]:
    """Values of every type that the destination says it can hold."""
    texts = ["", "NULL", "é" * 20, "\U0001f600", "\\.", "a\n\\.\nb", '{"', "\t\\N", "it's, \r\n"]
    texts += ["\x00", "a\x00b"] if can.nul_in_text else []
    single: dict[LogicalType, st.SearchStrategy[Any]] = {
        LogicalType(Kind.BOOL): st.booleans(),
        LogicalType(Kind.INT16): integers(16),
        LogicalType(Kind.INT32): integers(32),
        LogicalType(Kind.INT64): integers(64),
        LogicalType(Kind.FLOAT32): st.floats(width=32),
        LogicalType(Kind.FLOAT64): st.floats(),
        decimal(38, 10): decimals(38, 10),
        decimal(5, 0): decimals(5, 0),
        decimal(3, 3): decimals(3, 3),
        LogicalType(Kind.NUMERIC): st.sampled_from(["NaN", "Infinity", "-Infinity", "1" * 200 + "." + "9" * 200, "0.00", "-7.50"]),
        LogicalType(Kind.STRING): st.one_of(TEXT if can.nul_in_text else TEXT.filter(lambda t: "\x00" not in t), st.sampled_from(texts)),
        LogicalType(Kind.BYTES): st.binary(max_size=30),
        LogicalType(Kind.DATE): bounded(can, Kind.DATE),
        LogicalType(Kind.TIME): bounded(can, Kind.TIME),
        LogicalType(Kind.TIMESTAMP): bounded(can, Kind.TIMESTAMP),
        LogicalType(Kind.TIMESTAMPTZ): bounded(can, Kind.TIMESTAMPTZ),
        LogicalType(Kind.INTERVAL): st.sampled_from(["P1Y2M3DT4H5M6.7S", "P0D", "P-1Y", "PT-0.000001S", "P0Y-3M0DT-50H0M0.1S"]),
        LogicalType(Kind.UUID): st.uuids().map(str),
        LogicalType(Kind.JSON): JSON_TEXT,
    }
    single |= {array(type_): st.lists(st.none() | values, max_size=4) for type_, values in list(single.items())}
    return {**single, **{NESTED: st.lists(st.none() | st.lists(st.none() | integers(32), max_size=3), max_size=3)}}


NESTED = array(array(LogicalType(Kind.INT32)))
TYPES = list(values(CAPABILITIES))
SCHEMA = TableSchema(TableId("public", "all types"), (number("id"), *(Column(f"c{i} {t}", t) for i, t in enumerate(TYPES))), ("id",))


def test_the_list_is_complete() -> None:
    assert {t.kind for t in TYPES} == set(Kind)


@dataclass
class TypesFeed(Feed):
    harness: Any = None


@pytest.fixture(scope="module", params=[param for param in PARAMS if param.values != ("memory",)])
def feed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TypesFeed]:
    with harness_of(request.param, Path(tmp_path_factory.mktemp("types")), request) as harness:
        destination = harness.open()
        feed = TypesFeed(destination, SCHEMA, harness=harness)
        feed.start()
        yield feed
        destination.close()


def row_values(can: Capabilities) -> st.SearchStrategy[list[Any]]:
    return st.tuples(*(st.none() | each for each in values(can).values())).map(list)


def read(feed: TypesFeed) -> dict[int, list[Any]]:
    q = feed.destination.spelling.quote
    found = feed.destination.query(f"SELECT {', '.join(map(q, SCHEMA.names))} FROM {q('public', 'all types')}", rows_max=1000)
    rows = zip(*(plain(feed.harness.typed(found[c.name], c.type)) for c in SCHEMA.columns), strict=True)
    return {row[0]: list(row[1:]) for row in rows}


def meaning(type_: LogicalType, value: Any) -> Any:
    """The value itself; of an interval its months, days and microseconds, because its text has many forms."""
    if isinstance(value, list) and type_.element is not None:
        return [meaning(type_.element, item) for item in value]
    if type_.kind is not Kind.INTERVAL or value is None:
        return value
    units = {"Y": (12, 0, 0), "M": (1, 0, 0), "D": (0, 1, 0), "h": (0, 0, 3_600_000_000), "m": (0, 0, 60_000_000), "s": (0, 0, 1_000_000)}
    date, _, time = value.removeprefix("P").partition("T")
    parts = re.findall(r"(-?[\d.]+)([A-Za-z])", date + time.lower())
    return tuple(sum(Decimal(number) * units[unit][i] for number, unit in parts) for i in range(3))


def same(left: Any, right: Any) -> bool:
    """Equal to the last bit: NaN is NaN, and minus zero is not zero."""
    if isinstance(left, list | tuple) and isinstance(right, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, float) and isinstance(right, float):
        return (math.isnan(left) and math.isnan(right)) or (left == right and math.copysign(1, left) == math.copysign(1, right))
    if isinstance(left, Decimal) and isinstance(right, Decimal):
        return left == right and left.as_tuple().exponent == right.as_tuple().exponent
    return type(left) is type(right) and bool(left == right)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_every_value_round_trips(feed: TypesFeed, data: st.DataObject) -> None:
    first, second = (data.draw(row_values(feed.destination.capabilities)) for _ in range(2))
    record = sum(feed.next.values()) * 10 + 1
    rows = {1: first, 2: second}
    names = SCHEMA.names[1:]
    feed.apply(*(Change(Op.CREATE, {"id": i, **dict(zip(names, values, strict=True))}, record + i) for i, values in rows.items()))
    feed.destination.release()
    check(feed, rows)
    # Unsent everywhere: the row keeps every value through the fill.
    feed.apply(Change(Op.UPDATE, {"id": 1}, record + 3, unsent=names))
    check(feed, rows)
    # A key change whose halves come apart: exact through the image, or said to be unknown.
    feed.apply(Change(Op.DELETE, {"id": 2}, record + 4, moved=True))
    moved = Change(Op.CREATE, {"id": 3}, record + 4, partition=1, unsent=names, base={"id": 2}, move=record + 4)
    try:
        feed.apply(moved)
        check(feed, {1: first, 3: second})
    except UnsentUnknown:
        check(feed, {1: first})
    feed.apply(Change(Op.DELETE, {"id": 3}, record + 5, partition=1))


def check(feed: TypesFeed, expected: dict[int, list[Any]]) -> None:
    found = read(feed)
    assert set(found) == set(expected)
    for i, values in expected.items():
        for type_, wanted, value in zip(TYPES, values, found[i], strict=True):
            wanted_there = plain(pa.array([wanted], type_.arrow))[0] if type_.kind is Kind.FLOAT32 else wanted
            assert same(meaning(type_, value), meaning(type_, wanted_there)), f"{type_}: {wanted!r} came back as {value!r}"


def test_common_values_survive_a_key_change_in_two_halves(feed: TypesFeed) -> None:
    """The image is not always refused: what shops hold goes through it."""
    names = SCHEMA.names[1:]
    usual = {
        Kind.STRING: "it's", Kind.JSON: '{"a": [1]}', Kind.UUID: str(uuid.UUID(int=5)), Kind.FLOAT64: 0.1, Kind.BYTES: b"\x00'",
        Kind.DATE: 2**31 - 1, Kind.TIMESTAMPTZ: 1_700_000_000_000_001,
    }  # fmt: skip
    values = [usual.get(t.kind) for t in TYPES]
    record = sum(feed.next.values()) * 10 + 1
    feed.apply(Change(Op.CREATE, {"id": 50, **dict(zip(names, values, strict=True))}, record))
    feed.apply(Change(Op.DELETE, {"id": 50}, record + 1, moved=True))
    feed.apply(Change(Op.CREATE, {"id": 51}, record + 1, partition=1, unsent=names, base={"id": 50}, move=record + 1))
    assert read(feed)[51] == values
    feed.apply(Change(Op.DELETE, {"id": 51}, record + 2, partition=1))
