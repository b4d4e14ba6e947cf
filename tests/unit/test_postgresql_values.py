"""PostgreSQL's forms of values: what it reads as input, and infinities as its Arrow driver gives them."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from cdc_service.core.logical import INFINITY, Kind
from cdc_service.databases.postgresql import input_text, unwrapped
from cdc_service.testing.memory import plain, restore

DAY = 86_400_000_000
MOMENT, INSTANT = pa.timestamp("us"), pa.timestamp("us", tz="UTC")


@pytest.mark.parametrize(
    ("type_", "value", "text"),
    [
        (pa.int64(), -(2**63), "-9223372036854775808"),
        (pa.string(), "", ""),
        (pa.string(), "it's", "it's"),
        (pa.binary(), b"\x00'", "\\x0027"),
        (pa.date32(), -735_160, "J1705428"),  # 44 before Christ
        (pa.date32(), 3_670_000, "J6110588"),  # the year 12018
        (pa.date32(), 2**31 - 1, "infinity"),
        (pa.date32(), -(2**31) + 1, "-infinity"),
        (pa.time64("us"), DAY, "24:00:00"),
        (pa.time64("us"), 1, "00:00:00.000001"),
        (MOMENT, -735_160 * DAY + 1, "J1705428 00:00:00.000001"),
        (INSTANT, -1, "J2440587 23:59:59.999999+00"),
        (INSTANT, 2**63 - 1, "infinity"),
        (INSTANT, -(2**63) + 1, "-infinity"),
        (pa.list_(pa.string()), ['"', None, "\\"], '{"\\"",NULL,"\\\\"}'),
    ],
)
def test_input_text(type_: pa.DataType, value: Any, text: str) -> None:
    assert input_text(restore([value, None], type_)).to_pylist() == [text, None]


@pytest.mark.parametrize(
    ("type_", "infinity", "minus"),
    [
        (pa.date32(), -(2**31) + 10_956, -(2**31) + 10_957),
        (MOMENT, -(2**63) + 946_684_799_999_999, -(2**63) + 946_684_800_000_000),
        (INSTANT, -(2**63) + 946_684_799_999_999, -(2**63) + 946_684_800_000_000),
    ],
)
def test_wrapped_infinities(type_: pa.DataType, infinity: int, minus: int) -> None:
    meant = INFINITY[Kind.DATE if pa.types.is_date32(type_) else Kind.TIMESTAMP]
    came = restore([infinity, None, minus, 0], type_)
    assert plain(unwrapped(came)) == [meant, None, -meant, 0]
    assert unwrapped(came).type == type_
    listed = pa.ListArray.from_arrays(pa.array([0, 2, 2, 4], pa.int32()), came, mask=pa.array([False, True, False]))
    assert plain(unwrapped(listed)) == [[meant, None], None, [-meant, 0]]


@pytest.mark.parametrize("values", [pa.array([], pa.date32()), pa.array([None], INSTANT), pa.array([5], MOMENT), pa.array(["a"])])
def test_what_is_not_wrapped_stays_itself(values: pa.Array) -> None:
    assert unwrapped(values) is values
