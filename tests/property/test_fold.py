"""Fold against a row-by-row model: the latest version of each key wins, unsent values come from the earlier image, the account closes."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from cdc_service.core.fold import fold
from cdc_service.core.keys import key_text
from cdc_service.core.logical import Kind, LogicalType
from cdc_service.core.order import generations
from cdc_service.core.types import META, ChangeBatch, Column, Op, Span, TableId, TableSchema, Target

SCHEMA = TableSchema(
    TableId("public", "t"),
    (Column("id", LogicalType(Kind.INT64)), Column("a", LogicalType(Kind.STRING)), Column("b", LogicalType(Kind.STRING))),
    ("id",),
)
TARGET = Target(SCHEMA.table, "public", "t")
UNSENT = object()


@dataclass
class Event:
    op: Op
    partition: int
    offset: int
    record: int
    key: int | None
    a: object = None
    b: object = None
    old: int | None = None
    moved: bool = False


def batch_of(events: list[Event], starts: dict[int, int], stops: dict[int, int]) -> ChangeBatch:
    def values(name: str) -> list[object]:
        return [None if getattr(e, name) is UNSENT else getattr(e, name) for e in events]

    masks = {name: [getattr(e, name) is UNSENT for e in events] for name in ("a", "b")}
    masks = {name: mask for name, mask in masks.items() if any(mask)}
    return ChangeBatch(
        schema=SCHEMA,
        data=pa.table({"id": [e.key for e in events], "a": values("a"), "b": values("b")}, schema=SCHEMA.arrow),
        meta=pa.table(
            {
                "op": [int(e.op) for e in events],
                "partition": [e.partition for e in events],
                "offset": [e.offset for e in events],
                "commit": [None] * len(events),
                "record": [e.record for e in events],
                "minor": [0] * len(events),
                "source_us": [None] * len(events),
                "index": list(range(len(events))),
            },
            schema=META,
        ),
        spans=tuple(Span(p, starts[p], stops[p], sum(e.partition == p for e in events)) for p in starts),
        unsent=pa.table(masks) if masks else None,
        old_key=pa.table({"id": pa.array([e.old for e in events], pa.int64())}) if any(e.old is not None for e in events) else None,
        moved=pa.array([e.moved for e in events]),
    )


@dataclass
class Source:
    """A source table that emits what Debezium would, keys spread over partitions, and remembers the row images."""

    partitions: int
    rows: dict[int, tuple[str, str]] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    lsn: int = 100
    offsets: dict[int, int] = field(default_factory=dict)

    def emit(self, op: Op, key: int | None, **values: object) -> None:
        partition = 0 if key is None else key % self.partitions
        offset = self.offsets.get(partition, 0)
        self.offsets[partition] = offset + 1
        self.events.append(Event(op, partition, offset, self.lsn, key, **values))  # type: ignore[arg-type]

    def apply(self, action: str, key: int, other: int, text: str, unsent: bool) -> None:
        self.lsn += 10
        if action == "truncate" and key == 0:
            self.rows.clear()
            self.emit(Op.TRUNCATE, None)
        elif action == "delete" and key in self.rows:
            del self.rows[key]
            self.emit(Op.DELETE, key)
        elif action == "move" and key in self.rows and other not in self.rows:
            a, _ = self.rows.pop(key)
            self.rows[other] = (a, text) if unsent else (text, text)
            self.emit(Op.DELETE, key, moved=True)
            self.emit(Op.CREATE, other, a=UNSENT if unsent else text, b=text, old=key)
        elif key in self.rows:
            a, _ = self.rows[key]
            self.rows[key] = (a, text) if unsent else (text, text)
            self.emit(Op.UPDATE, key, a=UNSENT if unsent else text, b=text)
        else:
            self.rows[key] = (text, text)
            self.emit(Op.CREATE, key, a=text, b=text)


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["write", "write", "write", "delete", "move", "truncate"]),
        st.integers(0, 6),
        st.integers(0, 6),
        st.text("xyz", min_size=1, max_size=3),
        st.booleans(),
    ),
    max_size=60,
)


@settings(max_examples=400, deadline=None)
@given(actions=ACTIONS, partitions=st.integers(1, 3), tail=st.integers(0, 8))
def test_i1_i4_i11_whole_log_folds_to_the_source(actions: list[tuple[str, int, int, str, bool]], partitions: int, tail: int) -> None:
    source = Source(partitions)
    for action in actions:
        source.apply(*action)
    repeated = source.events[len(source.events) - tail :] if tail else []
    events = list(source.events)
    for event in repeated:
        offset = source.offsets[event.partition]
        source.offsets[event.partition] = offset + 1
        events.append(Event(**{**event.__dict__, "offset": offset}))
    if not events:
        return
    events.sort(key=lambda e: (e.partition, e.offset))
    delta = fold(
        [batch_of(events, dict.fromkeys(source.offsets, 0), source.offsets)],
        batch_id="b",
        target=TARGET,
        generations=lambda p, o, r: generations(p, o, r, 0, {}, 0),
    )
    rows = {
        row["id"]: (row["a"], row["b"])
        for row, op in zip(delta.data.to_pylist(), delta.meta["op"].to_pylist(), strict=True)
        if op != Op.DELETE
    }
    assert rows == source.rows
    assert delta.unsent is None or not any(
        any(mask) for name, op in (("a", None), ("b", None)) if name in delta.unsent.column_names for mask in [_live(delta, name)]
    )
    assert len(set(delta.meta["key"].to_pylist())) == delta.meta.num_rows
    for span in delta.spans:
        counts = delta.counts.get(span.partition, {})
        winners = delta.meta["partition"].to_pylist().count(span.partition)
        assert winners + sum(counts.values()) == span.records


def _live(delta: object, name: str) -> list[bool]:
    ops = delta.meta["op"].to_pylist()  # type: ignore[attr-defined]
    return [m for m, op in zip(delta.unsent[name].to_pylist(), ops, strict=True) if op != Op.DELETE]  # type: ignore[attr-defined]


def test_i11_move_whose_other_half_is_elsewhere_names_it() -> None:
    events = [Event(Op.CREATE, 1, 5, 200, 7, a=UNSENT, b="x", old=3)]
    delta = fold([batch_of(events, {1: 5}, {1: 6})], batch_id="b", target=TARGET, generations=lambda p, o, r: np.zeros(len(p), np.int32))
    assert delta.base is not None
    assert delta.base.key.to_pylist() == [{"id": 3}]
    assert delta.base.about["text"].to_pylist() == ['["3"]']
    assert delta.base.about["move"].to_pylist() == [200]


def test_i11_update_of_a_row_outside_of_the_batch_looks_under_its_own_key() -> None:
    events = [Event(Op.UPDATE, 0, 5, 200, 4, a=UNSENT, b="x"), Event(Op.UPDATE, 0, 6, 210, 4, a=UNSENT, b="y")]
    delta = fold([batch_of(events, {0: 5}, {0: 7})], batch_id="b", target=TARGET, generations=lambda p, o, r: np.zeros(len(p), np.int32))
    assert delta.data.to_pylist() == [{"id": 4, "a": None, "b": "y"}]
    assert delta.base is not None
    assert delta.base.key.to_pylist() == [{"id": 4}]
    assert delta.base.about["move"].to_pylist() == [None]


def test_key_text_is_injective_where_joining_collides() -> None:
    table = pa.table({"x": ["p|q", "p", 'a","b', "a", "\\", "\\\\"], "y": ["r", "q|r", "c", 'b","c', '"', ""]})
    assert len(set(key_text(table).to_pylist())) == 6


def test_i6_snapshot_row_never_beats_the_stream_and_redelivery_is_duplicate() -> None:
    events = [
        Event(Op.UPDATE, 0, 0, 50, 1, a="s", b="s"),
        Event(Op.READ, 0, 1, 900 - 2**63, 1, a="old", b="old"),
        Event(Op.UPDATE, 0, 2, 50, 1, a="s", b="s"),
    ]
    delta = fold([batch_of(events, {0: 0}, {0: 3})], batch_id="b", target=TARGET, generations=lambda p, o, r: np.zeros(len(p), np.int32))
    assert delta.data.to_pylist() == [{"id": 1, "a": "s", "b": "s"}]
    assert delta.counts[0] == {"applied": 0, "folded": 1, "duplicate": 1}


def test_the_newest_snapshot_is_known_where_its_rows_are_folded_away() -> None:
    def folded(*events: Event) -> int | None:
        whole = batch_of(list(events), {0: 0}, {0: len(events)})
        delta = fold([whole], batch_id="b", target=TARGET, generations=lambda p, o, r: np.zeros(len(p), np.int32))
        return delta.snapshot_record

    reads = [Event(Op.READ, 0, 0, -(2**63) + 10, 1, "a"), Event(Op.READ, 0, 1, -(2**63) + 20, 1, "a")]
    assert folded(*reads, Event(Op.UPDATE, 0, 2, 30, 1, "b")) == -(2**63) + 20
    assert folded(*reads, Event(Op.TRUNCATE, 0, 2, 30, None)) == -(2**63) + 20
    assert folded(Event(Op.READ, 0, 0, 0, 1, "a"), Event(Op.UPDATE, 0, 1, 30, 1, "b")) is None


def test_i11_what_stands_under_a_key_that_was_left_is_bounded_by_the_change_that_left_it() -> None:
    """3 -> 5 at 200, 3 made anew at 210, 5 -> 7 at 220: the image of 7 stands under 3 only where that is older than 200."""
    events = [
        Event(Op.DELETE, 0, 5, 200, 3, moved=True),
        Event(Op.CREATE, 0, 6, 200, 5, a=UNSENT, b="x", old=3),
        Event(Op.CREATE, 0, 7, 210, 3, a="other", b="other"),
        Event(Op.DELETE, 0, 8, 220, 5, moved=True),
        Event(Op.CREATE, 0, 9, 220, 7, a=UNSENT, b="x", old=5),
    ]
    delta = fold([batch_of(events, {0: 5}, {0: 10})], batch_id="b", target=TARGET, generations=lambda p, o, r: np.zeros(len(p), np.int32))
    place = delta.data["id"].to_pylist().index(7)
    row = {"text": '["3"]', "move": None, "record": 200, "partition": 0, "move_minor": None, "minor": 0, "offset": 6}
    assert delta.base.about.to_pylist()[place] == row


def test_i11_an_image_that_came_by_another_partition_is_looked_up() -> None:
    """Partitions were added: between a key's change on the first one and that on the second there may be some that are not read yet."""
    first = batch_of([Event(Op.CREATE, 0, 5, 200, 3, a="old", b="x")], {0: 5}, {0: 6})
    later = [Event(Op.UPDATE, 1, 0, 220, 3, a=UNSENT, b="y"), Event(Op.UPDATE, 1, 1, 230, 3, a=UNSENT, b="z")]
    second = batch_of(later, {1: 0}, {1: 2})
    delta = fold([first, second], batch_id="b", target=TARGET, generations=lambda p, o, r: np.zeros(len(p), np.int32))
    assert delta.unsent is not None
    assert (delta.unsent["a"].to_pylist(), delta.base.about["partition"].to_pylist()) == ([True], [1])


def test_i11_the_image_behind_a_change_of_key_came_by_the_partition_of_its_delete() -> None:
    events = [Event(Op.DELETE, 0, 5, 200, 3, moved=True), Event(Op.CREATE, 1, 0, 200, 5, a=UNSENT, b="x", old=3)]
    delta = fold(
        [batch_of(events, {0: 5, 1: 0}, {0: 6, 1: 1})], batch_id="b", target=TARGET, generations=lambda p, o, r: np.zeros(len(p), np.int32)
    )
    assert delta.base.about["partition"][delta.data["id"].to_pylist().index(5)].as_py() == 0


def test_i11_what_stands_under_a_key_is_bounded_by_the_change_that_left_it_whatever_came_before_and_after() -> None:
    """The tail comes again: 3 -> 5 at 200, and 3 was made anew at 205, between that and the latest change."""
    events = [
        Event(Op.UPDATE, 0, 5, 190, 3, a=UNSENT, b="x"),
        Event(Op.DELETE, 0, 6, 200, 3, moved=True),
        Event(Op.CREATE, 0, 7, 200, 5, a=UNSENT, b="x", old=3),
        Event(Op.UPDATE, 0, 8, 210, 5, a=UNSENT, b="y"),
    ]
    delta = fold([batch_of(events, {0: 5}, {0: 9})], batch_id="b", target=TARGET, generations=lambda p, o, r: np.zeros(len(p), np.int32))
    place = delta.data["id"].to_pylist().index(5)
    assert (delta.base.about["text"][place].as_py(), delta.base.about["record"][place].as_py()) == ('["3"]', 200)
