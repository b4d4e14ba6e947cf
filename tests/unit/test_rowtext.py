"""Rows as JSON text: every text is JSON, tells each value exactly, and different rows have different texts."""

from __future__ import annotations

import datetime as dt
import json
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc_service.core.logical import INFINITY, Kind
from cdc_service.core.rowtext import name_lists, row_text

HOSTILE = st.text(st.characters(codec="utf-8"), max_size=8)


def texts(**columns: pa.Array) -> list[Any]:
    rows = len(next(iter(columns.values())))
    return row_text(columns, np.ones(rows, np.bool_)).to_pylist()


@given(name=HOSTILE, values=st.lists(st.none() | HOSTILE, min_size=1, max_size=5), numbers=st.integers(-(2**63), 2**63 - 1))
def test_text_and_numbers_come_back(name: str, values: list[str | None], numbers: int) -> None:
    columns = {name + "1": pa.array(values, pa.string()), name + "2": pa.array([numbers] * len(values), pa.int64())}
    found = row_text(columns, np.ones(len(values), np.bool_)).to_pylist()
    assert [json.loads(text) for text in found] == [{name + "1": value, name + "2": numbers} for value in values]


@given(values=st.lists(st.none() | st.binary(max_size=6), min_size=1, max_size=5), start=st.integers(0, 4))
def test_bytes_are_hexadecimal_also_in_a_slice(values: list[bytes | None], start: int) -> None:
    column = pa.array(values, pa.binary()).slice(start)
    found = texts(b=column) if len(column) else []
    assert [json.loads(text)["b"] for text in found] == [None if v is None else v.hex() for v in values[start:]]


@given(values=st.lists(st.none() | st.lists(st.none() | HOSTILE, max_size=3), min_size=1, max_size=5), start=st.integers(0, 4))
def test_lists_come_back_also_in_a_slice(values: list[Any], start: int) -> None:
    column = pa.array(values, pa.list_(pa.string())).slice(start)
    found = texts(v=column) if len(column) else []
    assert [json.loads(text)["v"] for text in found] == values[start:]


@given(value=st.floats(), width=st.sampled_from([pa.float32(), pa.float64()]))
def test_floats_come_back(value: float, width: pa.DataType) -> None:
    stored = pa.array([value], pa.float64()).cast(width)[0].as_py()
    (text,) = texts(f=pa.array([stored], width))
    found = float(json.loads(text)["f"])
    assert pa.array([found]).cast(width)[0].as_py() == stored or stored != stored


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (pa.array([Decimal("1.50")], pa.decimal128(5, 2)), '"1.50"'),
        (pa.array([dt.date(2024, 2, 29)]), '"2024-02-29"'),
        (pa.array([dt.date(1, 1, 1)]), '"0001-01-01"'),
        (pa.array([INFINITY[Kind.DATE]], pa.int32()).view(pa.date32()), '"infinity"'),
        (pa.array([-INFINITY[Kind.TIMESTAMP]]).view(pa.timestamp("us")), '"-infinity"'),
        (pa.array([2**62]).view(pa.timestamp("us", "UTC")), '"4611686018427387904"'),
        (pa.array([-(10**17)]).view(pa.timestamp("us")), '"-100000000000000000"'),
        (pa.array([dt.datetime(2024, 2, 29, 1, 2, 3, 4, tzinfo=dt.UTC)]), '"2024-02-29 01:02:03.000004Z"'),
        (pa.array([86_400_000_000]).view(pa.time64("us")), '"24:00:00"'),
        (pa.array([True]), "true"),
        (pa.array([None], pa.bool_()), "null"),
    ],
)
def test_other_kinds(values: pa.Array, said: str) -> None:
    assert texts(v=values) == ['{"v":' + said + "}"]


def test_rows_without_an_image_and_tables_without_columns_are_null() -> None:
    assert row_text({"a": pa.array([1, 2])}, np.array([True, False])).to_pylist() == ['{"a":1}', None]
    assert row_text({}, np.array([True, True])).to_pylist() == [None, None]


@given(flags=st.lists(st.tuples(st.booleans(), st.booleans()), max_size=6), name=HOSTILE)
def test_lists_of_names(flags: list[tuple[bool, bool]], name: str) -> None:
    names = (name + "1", name + ',"2')
    columns = {n: np.array([flag[i] for flag in flags], np.bool_) for i, n in enumerate(names)}
    found = name_lists(columns, len(flags)).to_pylist()
    wanted = [[n for n, held in zip(names, flag, strict=True) if held] or None for flag in flags]
    assert [text and json.loads(text) for text in found] == wanted
