"""What a poll takes comes out once, in its order and byte by byte, whatever the slices it came in and the heads of its values."""

from __future__ import annotations

from collections import defaultdict
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc_service.core.types import ChangeBatch, Headers, RawBatch
from cdc_service.kafka.records import Heads, Taken
from connectors.formats.debezium_json import DebeziumJsonDecoder
from connectors.formats.layout import schema_length
from connectors.sources.postgresql.events import PostgresEvents
from tests.support import plain
from tests.support.envelopes import PLACEHOLDER
from tests.support.recorded import FIXTURES, batch_of, topics

HEADS = (b'{"schema":{"a":1},"payload":', b'{"schema":{"a":12},"payload":', b'{"schema":{"b":1},"payload":', b"")


class Sent(NamedTuple):
    where: tuple[str, int]
    at: int
    named: bytes | None
    text: bytes | None
    told: Headers

    def key(self) -> bytes | None:
        return self.named

    def value(self) -> bytes | None:
        return self.text

    def offset(self) -> int:
        return self.at

    def headers(self) -> Headers:
        return self.told


@st.composite
def slices(draw: st.DrawFn) -> list[list[Sent]]:
    """Each of one partition, its offsets behind those of the partition's last, sometimes with a gap."""
    ends: dict[tuple[str, int], int] = defaultdict(int)
    found = []
    for _ in range(draw(st.integers(0, 8))):
        where = draw(st.sampled_from(["a", "b"])), draw(st.integers(0, 2))
        heads = draw(st.lists(st.sampled_from(HEADS), min_size=1, max_size=2))
        part = []
        for _ in range(draw(st.integers(1, 6))):
            ends[where] += draw(st.sampled_from([1, 1, 1, 3]))
            rest = draw(st.one_of(st.none(), st.binary(max_size=6)))
            text = None if rest is None else draw(st.sampled_from(heads)) + rest
            key = draw(st.one_of(st.none(), st.binary(max_size=3)))
            part.append(Sent(where, ends[where], key, text, draw(st.sampled_from([(), (("h", b"1"),)]))))
        found.append(part)
    return found


def told(batches: list[RawBatch]) -> dict[tuple[str, int], list[Any]]:
    found: dict[tuple[str, int], list[Any]] = defaultdict(list)
    for raw in batches:
        whole = raw.whole()
        for place, (number, offset) in enumerate(zip(raw.partitions.to_pylist(), raw.offsets.to_pylist(), strict=True)):
            assert whole.values[place].as_py() == raw.value(place)
            found[raw.topic, number].append((offset, raw.keys[place].as_py(), raw.value(place), tuple(raw.headers(place))))
    return found


@given(slices(), st.booleans())
def test_every_record_comes_out_once_in_its_order(parts: list[list[Sent]], forgotten: bool) -> None:
    taken, positions = Taken(Heads(schema_length)), defaultdict[tuple[str, int], int](int)
    expected: dict[tuple[str, int], list[Any]] = defaultdict(list)
    for number, part in enumerate(parts):
        where = part[0].where
        if forgotten and number == len(parts) // 2:
            taken.forget(*where)
            expected.pop(where, None)
        taken.add(*where, positions[where], part[-1].at + 1, part)
        expected[where] += [(one.at, one.key(), one.text, one.told) for one in part]
        positions[where] = part[-1].at + 1
    batches = taken.batches()
    assert told(batches) == expected
    reached: dict[tuple[str, int], int] = {}
    for raw in batches:
        assert raw.wire_bytes - raw.nbytes == len(raw.head) * (raw.num_rows - raw.values.null_count)
        assert sum(span.records for span in raw.spans) == raw.num_rows
        for span in raw.spans:
            where = raw.topic, span.partition
            assert reached.get(where, span.start) == span.start
            reached[where] = span.stop
    assert reached == {where: positions[where] for where in reached}
    assert set(reached) == set(expected)


def test_positions_without_records_join_what_came_before() -> None:
    taken = Taken(Heads(schema_length))
    taken.add("a", 0, 3, 5, [])
    taken.add("a", 0, 5, 6, [Sent(("a", 0), 5, b"k", HEADS[0] + b"x", ())])
    taken.add("a", 1, 0, 2, [])
    (raw,) = taken.batches()
    assert raw.head == HEADS[0]
    assert [(span.partition, span.start, span.stop, span.records) for span in raw.spans] == [(0, 3, 6, 1), (1, 0, 2, 0)]


CASES = sorted(path.name.removesuffix(".sql") for path in FIXTURES.glob("*.sql"))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("size", [1, 3, 1000])
def test_values_behind_their_head_are_decoded_as_whole_ones(case: str, size: int) -> None:
    """Recorded events, in slices of several sizes."""
    for topic, records in topics(case).items():
        whole = batch_of(topic, records)
        headed, beheaded = (DebeziumJsonDecoder(PostgresEvents(), unavailable=PLACEHOLDER) for _ in range(2))
        taken = Taken(Heads(schema_length))
        for span in whole.spans:
            places = [p for p, number in enumerate(whole.partitions.to_pylist()) if number == span.partition]
            at = span.start
            for first in range(0, len(places), size):
                part = [
                    Sent((topic, span.partition), whole.offsets[p].as_py(), whole.keys[p].as_py(), whole.value(p), whole.headers(p))
                    for p in places[first : first + size]
                ]
                taken.add(topic, span.partition, at, part[-1].at + 1, part)
                at = part[-1].at + 1
        cut = taken.batches()
        assert size > 1 or all(raw.head for raw in cut)
        assert rows([b for raw in cut for b in beheaded.decode(raw)]) == rows(list(headed.decode(whole)))


def rows(batches: list[ChangeBatch]) -> tuple[list[Any], list[Any]]:
    """Rows with their place in the log, and what was rejected, by partition and offset."""
    found: list[Any] = []
    for one in batches:
        about = one.meta.drop_columns(["index"]).to_pylist()
        values = plain.rows(one.data) or {}
        masks: list[set[str]] = [set() for _ in about]
        for name in [] if one.unsent is None else one.unsent.column_names:
            for place in np.flatnonzero(one.unsent[name]):
                masks[place].add(name)
        found += zip(about, [{name: values[name][place] for name in values} for place in range(len(about))], masks, strict=True)
    found.sort(key=lambda row: (row[0]["partition"], row[0]["offset"]))
    rejected = sorted((r.partition, r.offset, r.code, r.key, r.value) for one in batches for r in one.rejected)
    return found, rejected
