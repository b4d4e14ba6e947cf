"""Envelopes that are read without parsing each, in any mixture and with any byte changed, are told as when each is parsed whole."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.envelopes import Record, raw
from tests.unit.test_decoder_frames import event, one_by_one, parsed_whole, read

SNAPSHOTS = st.sampled_from([None, "true", "last", "incremental"])


@given(st.lists(st.tuples(st.sampled_from("rcud"), st.integers(0, 10**6), SNAPSHOTS), min_size=1))
@settings(max_examples=60, deadline=None)
def test_any_mixture_of_shapes_comes_out_in_its_order(rows: list[tuple[str, int, str | None]]) -> None:
    """More shapes than are tried, too."""
    records = [event(op, number, snapshot=snapshot, txId=number % 1000) for op, number, snapshot in rows]
    assert read(raw(records)) == one_by_one(lambda: read(raw(records)))
    assert read(raw(records, topic="log")) == one_by_one(lambda: read(raw(records, topic="log")))


@given(st.integers(0, 400), st.sampled_from(list(b'0123456789"{}\\,:xu\n\x00\xff')), st.booleans())
@settings(max_examples=100, deadline=None)
def test_a_byte_changed_anywhere_behind_the_row_is_noticed_or_means_the_same(place: int, byte: int, first: bool) -> None:
    odd = event("u", 3)
    assert odd.value is not None
    at = odd.value.rindex(b',"source":{') + place
    changed = Record(odd.key, odd.value[:at] + bytes([byte]) + odd.value[at + 1 :])
    records = [event("u", n) for n in range(4, 7)]
    batch = raw([changed, *records] if first else [*records, changed])

    def outcome() -> Any:
        try:
            return read(batch)
        except Exception as problem:
            return type(problem), str(problem)

    assert outcome() == parsed_whole(outcome)
