"""What the core decides, case by case: order, canonical keys, screening, evolution, fold and the sums of a comparison."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from cdc_service.core.append import gather
from cdc_service.core.canonical import CUT, PLACES, Canonical, digests
from cdc_service.core.errors import TableStopped
from cdc_service.core.evolve import AddColumn, CreateTable, DropColumn, RestoreColumn, WidenType, evolve, wider
from cdc_service.core.fold import fold, join_spans
from cdc_service.core.keys import key_text
from cdc_service.core.logical import INFINITY, Kind, LogicalType, array, decimal
from cdc_service.core.order import INCREMENTAL, NO_POSITION, generations, is_snapshot, snapshot_record
from cdc_service.core.types import META, ChangeBatch, Column, Op, RawBatch, Rejected, Span, TableId, TableSchema, Tail, Target, Truncation
from cdc_service.core.validate import nothing_parked, screen

TABLE = TableId("public", "t")
TARGET = Target(TABLE, "public", "t")
INT, BIG, TEXT = LogicalType(Kind.INT32), LogicalType(Kind.INT64), LogicalType(Kind.STRING)
ITEMS = TableSchema(TABLE, (Column("id", BIG), Column("v", TEXT)), ("id",))


def ints(*values: int, kind: Any = np.int64) -> Any:
    return np.array(values, kind)


# Order


def test_rows_of_a_snapshot_come_before_the_stream_and_in_their_own_order() -> None:
    records = snapshot_record(ints(0, 5, 2**62))
    assert records.tolist() == [-(2**63), -(2**63) + 5, -(2**63) + 2**62]
    assert is_snapshot(records).all()
    assert is_snapshot(ints(-1, 0, 1)).tolist() == [True, False, False]
    assert records.max() < INCREMENTAL < 1
    assert np.iinfo(np.int64).max == NO_POSITION


def test_the_generation_of_a_change_is_told_by_its_offset_and_its_position() -> None:
    def told(*rows: tuple[int, int, int], current: int = 3, opened: Mapping[int, int] | None = None) -> list[int]:
        partition, offset, record = (list(column) for column in zip(*rows, strict=True))
        opened_at = {0: 10, 1: 20} if opened is None else dict(opened)
        found = generations(ints(*partition, kind=np.int32), ints(*offset), ints(*record), current, opened_at, 100)
        assert found.dtype == np.int32
        return list(found.tolist())

    assert told((0, 9, 500), (0, 10, 500), (1, 19, 500), (1, 20, 500)) == [2, 3, 2, 3]
    assert told((0, 50, 99), (0, 50, 100), (0, 50, INCREMENTAL), (0, 9, INCREMENTAL), (0, 50, -5)) == [2, 3, 3, 2, 2]
    # A partition that was added later was empty when the generation was opened.
    assert told((2, 0, 100), (7, 0, 100)) == [3, 3]
    assert told((0, 0, 100), opened={}) == [3]
    assert told((0, 0, 0), current=0) == [0]
    assert generations(ints(kind=np.int32), ints(), ints(), 2, {}, 0).tolist() == []


# Keys


def test_keys_as_text() -> None:
    def one(values: list[Any], kind: pa.DataType | None = None) -> list[str | None]:
        return list(key_text(pa.table({"k": pa.array(values, kind)})).to_pylist())

    assert one([7, None, -1]) == ['["7"]', None, '["-1"]']
    assert one(['a"b', "a\\b", "a\nb", "a\rb", "a\tb", "a\x00b", "\x01", ""]) == [
        '["a\\"b"]', '["a\\\\b"]', '["a\\nb"]', '["a\\rb"]', '["a\\tb"]', '["a\\u0000b"]', '["\x01"]', '[""]',
    ]  # fmt: skip
    assert one([b"\x00\xff", None], pa.binary()) == ['["00ff"]', None]
    assert one([True, False]) == ['["true"]', '["false"]']
    date = pa.array([1, INFINITY[Kind.DATE]], pa.int32()).view(pa.date32())
    moment = pa.array([5, -INFINITY[Kind.TIMESTAMP]], pa.int64()).view(pa.timestamp("us"))
    assert key_text(pa.table({"d": date})).to_pylist() == ['["1"]', f'["{INFINITY[Kind.DATE]}"]']
    assert key_text(pa.table({"t": moment})).to_pylist() == ['["5"]', f'["{-INFINITY[Kind.TIMESTAMP]}"]']
    two = pa.table({"a": ["p|q", "x", None], "b": ["r", None, "y"]})
    assert key_text(two).to_pylist() == ['["p|q","r"]', None, None]
    assert key_text(pa.table({"a": ["x"], "b": [1], "c": ["z"]})).to_pylist() == ['["x","1","z"]']
    none = key_text(pa.table({"a": [1, 2]}).select([]))
    assert none.type == pa.string()
    assert isinstance(key_text(pa.table({"a": pa.chunked_array([[1], [2]])})), pa.Array)


@pytest.mark.parametrize("kind", [pa.int64(), pa.date32(), pa.timestamp("us"), pa.binary()])
def test_keys_of_no_rows_and_of_nothing_are_texts(kind: pa.DataType) -> None:
    one = pa.table({"k": pa.array([None], kind)})
    assert key_text(one).to_pylist() == [None]
    assert key_text(one).type == pa.string()
    none = one.filter(pa.array([False]))
    assert none["k"].num_chunks == 0
    assert key_text(none).type == pa.string()


# Screening


@dataclass
class Bounds:
    ranges: Mapping[Kind, tuple[int, int]] = field(default_factory=dict)
    infinity: frozenset[Kind] = frozenset()
    nul_in_text: bool = True


def screened(
    type_: LogicalType, values: pa.Array, bounds: Bounds, *, keys: list[int] | None = None, parked: list[str] | None = None, **more: Any
) -> tuple[list[int], list[tuple[int, str, str, str | None]], list[str]]:
    """(the offsets that stay; offset, stage, code and key of what leaves; the keys that are parked from now on)."""
    batch, raw = batch_and_raw(type_, values, keys)
    batch = replace(batch, rejected=more.pop("rejected", ()))
    found, texts = screen(raw, batch, bounds, nothing_parked() if parked is None else pa.array(parked, pa.string()), **more)
    for one in found.rejected[len(batch.rejected) :]:
        assert (one.partition, one.key, one.value) == (3, b"k%d" % one.offset, b"v%d" % one.offset)
        assert list(one.headers) == [("h", b"%d" % one.offset)]
        assert one.message
    out = [(one.offset, one.stage, one.code, one.key_text) for one in found.rejected[len(batch.rejected) :]]
    return found.meta["offset"].to_pylist(), out, texts.to_pylist()


def batch_and_raw(type_: LogicalType, values: pa.Array, keys: list[int] | None) -> tuple[ChangeBatch, RawBatch]:
    n = len(values)
    schema = TableSchema(TABLE, (Column("id", BIG), Column("x", type_)), ("id",))
    data = pa.table([pa.array(keys or list(range(n)), pa.int64()), values], schema=schema.arrow)
    places = list(range(n))
    columns = {
        "op": [1] * n, "partition": [3] * n, "offset": [100 + p for p in places], "commit": [None] * n, "record": places,
        "minor": [0] * n, "source_us": [None] * n, "index": [p + 1 for p in places],
    }  # fmt: skip
    # The raw batch has a tombstone in front, so that a place in it is none in the batch.
    raw = RawBatch(
        "topic", pa.array([b"k%d" % (99 + p) for p in range(n + 1)]), pa.array([b"v%d" % (99 + p) for p in range(n + 1)]),
        pa.array([3] * (n + 1), pa.int32()), pa.array([99 + p for p in range(n + 1)], pa.int64()), (Span(3, 99, 100 + n, n + 1, 1),),
        lambda place: [("h", b"%d" % (99 + place))],
    )  # fmt: skip
    return ChangeBatch(schema, data, pa.table(columns, schema=META), (Span(3, 99, 100 + n, n + 1, 1),)), raw


def test_what_fits_stays_as_it_is() -> None:
    batch, raw = batch_and_raw(TEXT, pa.array(["a\x00"]), None)
    found, parked = screen(raw, batch, Bounds(), nothing_parked())
    assert found is batch
    assert parked.to_pylist() == []
    assert nothing_parked().type == pa.string()


@pytest.mark.parametrize(
    ("kind", "width"), [(Kind.DATE, pa.int32()), (Kind.TIME, pa.int64()), (Kind.TIMESTAMP, pa.int64()), (Kind.TIMESTAMPTZ, pa.int64())]
)
def test_times_beyond_the_range_leave(kind: Kind, width: pa.DataType) -> None:
    def of(*numbers: int | None) -> pa.Array:
        return pa.array(numbers, width).view(LogicalType(kind).arrow)

    bounds = Bounds({kind: (-10, 10)})
    assert screened(LogicalType(kind), of(-10, 10, None), bounds) == ([100, 101, 102], [], [])
    stay, out, parked = screened(LogicalType(kind), of(-11, 0, 11, None), bounds)
    assert stay == [101, 103]
    assert out == [(100, "range", "out_of_range", '["0"]'), (102, "range", "out_of_range", '["2"]')]
    assert sorted(parked) == ['["0"]', '["2"]']
    assert screened(LogicalType(kind), of(-11, 11), Bounds({})) == ([100, 101], [], [])
    assert screened(LogicalType(kind), of(None, None), bounds)[1] == []
    listed = pa.array([[0, 11], None, [], [-3], [None, -11]], pa.list_(width)).cast(pa.list_(width))
    lists = pa.ListArray.from_arrays(
        listed.offsets, listed.values.view(LogicalType(kind).arrow), mask=pa.array([False, True, False, False, False])
    )
    assert screened(array(LogicalType(kind)), lists, bounds)[0] == [101, 102, 103]
    assert screened(array(LogicalType(kind)), lists.slice(1, 3), bounds)[1] == []


def test_one_end_beyond_the_range_is_enough_and_nothing_else_leaves_for_it() -> None:
    def of(*numbers: int) -> pa.Array:
        return pa.array(numbers, pa.int64()).view(pa.timestamp("us"))

    type_, far = LogicalType(Kind.TIMESTAMP), INFINITY[Kind.TIMESTAMP]
    bounds = Bounds({Kind.TIMESTAMP: (-10, 10)})
    assert screened(type_, of(-11, 0), bounds)[0] == [101]
    assert screened(type_, of(0, 11), bounds)[0] == [100]
    assert screened(type_, of(far, 0, 11), replace(bounds, infinity=frozenset({Kind.TIMESTAMP})))[0] == [100, 101]


@pytest.mark.parametrize("type_", [LogicalType(Kind.DATE), array(LogicalType(Kind.DATE)), TEXT, array(TEXT)])
def test_a_batch_that_every_row_left_is_screened_and_folded(type_: LogicalType) -> None:
    batch, raw = batch_and_raw(type_, pa.array([None], type_.arrow), None)
    left = replace(batch.filter(pa.array([False]), []), spans=())
    assert left.data["x"].num_chunks == 0
    found, parked = screen(raw, left, Bounds({Kind.DATE: (-10, 10)}, nul_in_text=False), nothing_parked())
    assert (found.num_rows, parked.to_pylist()) == (0, [])
    assert len(folded(found).data) == 0


@pytest.mark.parametrize("kind", [Kind.DATE, Kind.TIMESTAMP, Kind.TIMESTAMPTZ])
def test_infinity_stays_where_there_is_one(kind: Kind) -> None:
    width, far = (pa.int32() if kind is Kind.DATE else pa.int64()), INFINITY[kind]
    values = pa.array([far, -far, 99, far - 1], width).view(LogicalType(kind).arrow)
    assert screened(LogicalType(kind), values, Bounds({kind: (0, 10)}, frozenset({kind})))[0] == [100, 101]
    assert screened(LogicalType(kind), values, Bounds({kind: (0, 10)}))[0] == []


def test_text_with_a_nul_leaves_where_it_cannot_be_held() -> None:
    values, bounds = pa.array(["a\x00b", "ab", None, "\x00"]), Bounds(nul_in_text=False)
    for kind in (Kind.STRING, Kind.JSON):
        assert screened(LogicalType(kind), values, bounds)[0] == [101, 102]
        assert screened(LogicalType(kind), values, Bounds())[0] == [100, 101, 102, 103]
    lists = pa.array([["x", "\x00"], ["x"], None, []], pa.list_(pa.string()))
    assert screened(array(TEXT), lists, bounds)[0] == [101, 102, 103]
    numbers = pa.array([[1], [2]], pa.list_(pa.int32()))
    assert screened(array(INT), numbers, bounds)[0] == [100, 101]


def test_what_follows_a_parked_record_of_its_key_is_parked_behind_it() -> None:
    values, keys = pa.array(["a", "\x00", "b", "c", "d"]), [1, 2, 2, 1, 2]
    stay, out, parked = screened(TEXT, values, Bounds(nul_in_text=False), keys=keys)
    assert stay == [100, 103]
    assert out == [
        (101, "range", "out_of_range", '["2"]'),
        (102, "order", "behind_parked", '["2"]'),
        (104, "order", "behind_parked", '["2"]'),
    ]
    assert parked == ['["2"]']
    # What was parked before the batch holds everything of its key back; what is parked in it only what is behind.
    stay, out, parked = screened(TEXT, values, Bounds(), keys=keys, parked=['["1"]', '["9"]'])
    assert stay == [101, 102, 104]
    assert [one[2:] for one in out] == [("behind_parked", '["1"]')] * 2
    assert parked == ['["1"]', '["9"]']
    rejected = tuple(Rejected(3, o, b"", b"", (), t, "decode", "bad", "bad") for o, t in ((103, '["2"]'), (101, '["2"]'), (50, None)))
    stay, out, parked = screened(TEXT, values, Bounds(), keys=keys, rejected=rejected)
    assert stay == [100, 101, 103]
    assert [one[0] for one in out] == [102, 104]
    assert parked == ['["2"]']


def test_the_first_parked_record_of_a_key_holds_back_from_there_on() -> None:
    def bad(*offsets: int) -> tuple[Rejected, ...]:
        return tuple(Rejected(3, o, b"", b"", (), '["1"]', "decode", "bad", "bad") for o in offsets)

    values, keys = pa.array(["a", "b", "c"]), [1, 1, 1]
    for rejected in (bad(101), bad(101, 103), bad(103, 101)):
        stay, out, parked = screened(TEXT, values, Bounds(), keys=keys, rejected=rejected)
        assert (stay, [one[0] for one in out], parked) == ([100, 101], [102], ['["1"]'])
    # One key was parked before the batch, another is in it: both hold back.
    stay, out, _ = screened(TEXT, pa.array(["\x00", "b", "c"]), Bounds(nul_in_text=False), keys=[1, 2, 1], parked=['["2"]'])
    assert (stay, [one[0] for one in out]) == ([], [100, 101, 102])


def test_a_record_that_a_merge_could_not_complete_leaves_with_the_reason() -> None:
    values, keys = pa.array(["a", "b", "\x00"]), [1, 1, 2]
    batch, raw = batch_and_raw(TEXT, values, keys)
    refused = {(3, 100): ("unsent_unreadable", "gone"), (3, 102): ("array_dimensions", "no list"), (9, 101): ("no", "no")}
    found, _ = screen(raw, batch, Bounds(nul_in_text=False), nothing_parked(), refused)
    assert [(r.offset, r.code, r.message) for r in found.rejected] == [
        (100, "unsent_unreadable", "gone"), (102, "array_dimensions", "no list"),
        (101, "behind_parked", "an earlier record of this key is parked"),
    ]  # fmt: skip
    batch, raw = batch_and_raw(TEXT, pa.array(["\x00"]), None)
    found, _ = screen(raw, batch, Bounds(nul_in_text=False), nothing_parked())
    assert found.rejected[0].message == "column x holds a value outside of what the destination can hold"


# Evolution


def schema(*columns: Column, key: tuple[str, ...] = ("id",)) -> TableSchema:
    return TableSchema(TABLE, (Column("id", BIG), *columns), key)


@pytest.mark.parametrize(
    ("old", "new", "wide"),
    [
        (INT, INT, INT), (INT, BIG, BIG), (BIG, INT, BIG), (LogicalType(Kind.INT16), INT, INT), (TEXT, INT, None),
        (LogicalType(Kind.FLOAT32), LogicalType(Kind.FLOAT64), LogicalType(Kind.FLOAT64)),
        (LogicalType(Kind.FLOAT64), LogicalType(Kind.FLOAT32), LogicalType(Kind.FLOAT64)),
        (LogicalType(Kind.FLOAT32), INT, None), (LogicalType(Kind.INT16), decimal(4, 2), decimal(7, 2)),
        (INT, decimal(12, 2), decimal(12, 2)),
        (BIG, decimal(3, 0), decimal(19, 0)), (INT, decimal(3, 1), decimal(11, 1)), (decimal(6, 1), decimal(5, 3), decimal(8, 3)),
        (decimal(6, 1), decimal(6, 1), decimal(6, 1)), (decimal(38, 0), decimal(38, 0), decimal(38, 0)),
        (decimal(38, 0), decimal(3, 1), None),
        (decimal(37, 0), decimal(3, 1), decimal(38, 1)), (BIG, decimal(38, 19), decimal(38, 19)), (BIG, decimal(38, 20), None),
        (LogicalType(Kind.NUMERIC), decimal(3, 1), None), (array(INT), array(BIG), None),
        (LogicalType(Kind.DATE), LogicalType(Kind.TIMESTAMP), None),
    ],
)  # fmt: skip
def test_the_type_that_holds_both(old: LogicalType, new: LogicalType, wide: LogicalType | None) -> None:
    assert wider(old, new) == wide
    assert wider(new, old) == wide


def test_evolution_change_by_change() -> None:
    first = schema(Column("a", INT, source_type="int4"), Column("b", TEXT))
    made, own = evolve((), replace(first, version=7))
    assert made == (CreateTable(first),)
    assert own == first
    assert own.version == 0
    assert evolve((first,), first) == ((), first)
    wide = schema(Column("a", BIG, source_type="int8"), Column("b", TEXT), Column("c", TEXT, default="x"))
    changes, own = evolve((first,), wide)
    assert changes == (WidenType(Column("a", BIG, source_type="int8"), INT), AddColumn(Column("c", TEXT, default="x")))
    assert own == wide
    narrow, _ = evolve((wide,), schema(Column("a", INT), Column("b", TEXT), Column("c", TEXT)))
    assert narrow == ()
    changes, own = evolve((first, wide), schema(Column("b", TEXT), Column("c", TEXT)))
    assert changes == (DropColumn(Column("a", BIG, source_type="int8", dropped=True)),)
    assert [c.dropped for c in own.columns] == [False, True, False, False]
    assert own.column("a").default is None
    again, kept = evolve((first, wide, own), schema(Column("b", TEXT), Column("c", TEXT)))
    assert (again, kept) == ((), own)
    # A late event of the time before the drop, or the column made again: live, and nothing else is dropped for it.
    changes, live = evolve((first, wide, own), first)
    assert changes == (RestoreColumn(Column("a", BIG, source_type="int4")),)
    assert [c.dropped for c in live.columns] == [False] * 4
    changes, _ = evolve((own,), schema(Column("a", decimal(20, 0)), Column("b", TEXT), Column("c", TEXT)))
    assert changes == (WidenType(Column("a", decimal(20, 0)), BIG), RestoreColumn(Column("a", decimal(20, 0))))
    dropped_default = schema(Column("a", INT, default=5))
    changes, own = evolve((dropped_default,), schema())
    assert changes == (DropColumn(Column("a", INT, dropped=True)),)
    # An older version lacks what came after it, which is not dropped for that.
    assert evolve((first, wide), first) == ((), wide)
    # What comes behind a new column is looked at too.
    several = schema(Column("n", TEXT), Column("a", BIG), Column("m", TEXT), Column("b", TEXT))
    changes, own = evolve((first,), several)
    assert changes == (AddColumn(Column("n", TEXT)), WidenType(Column("a", BIG), INT), AddColumn(Column("m", TEXT)))
    assert own.names == ("id", "a", "b", "n", "m")


def test_what_cannot_follow_stops_the_table_with_the_change_and_the_cure() -> None:
    own = schema(Column("a", INT, source_type="int4"))
    for incoming, said in (
        (schema(Column("a", TEXT, source_type="text")), "public.t: column a changed its type from int4 to text; the rows already"),
        (schema(Column("a", TEXT)), "column a changed its type from int4 to string"),
        (schema(Column("a", INT), key=("id", "a")), "its key changed from (id) to (id, a)"),
    ):
        with pytest.raises(TableStopped) as stopped:
            evolve((own,), incoming)
        assert said in stopped.value.message
        assert stopped.value.state == "schema_stopped"
        assert "cdc resync public.t" in stopped.value.hint


# Fold and append


def changes(*rows: tuple[Op, int, int, int | None], partition: int = 0, start: int = 0, moved: bool = False, **more: Any) -> ChangeBatch:
    """(op, record, offset, key) each."""
    n = len(rows)
    keys = [key for *_, key in rows]
    columns = {
        "op": [int(op) for op, *_ in rows], "partition": [partition] * n, "offset": [offset for _, _, offset, _ in rows],
        "commit": [None] * n, "record": [record for _, record, _, _ in rows], "minor": [0] * n,
        "source_us": [None] * n, "index": list(range(n)),
    }  # fmt: skip
    data = pa.table([pa.array(keys, pa.int64()), pa.array([f"v{o}" for _, _, o, _ in rows], pa.string())], schema=ITEMS.arrow)
    stop = rows[-1][2] + 1 if rows else start
    flags = pa.array([moved] * n) if moved else None
    return ChangeBatch(ITEMS, data, pa.table(columns, schema=META), (Span(partition, start, stop, n),), moved=flags, **more)


def none(partition: Any, offset: Any, record: Any) -> Any:
    return np.zeros(len(record), np.int32)


C, U, D, T, R = Op.CREATE, Op.UPDATE, Op.DELETE, Op.TRUNCATE, Op.READ


def test_a_truncate_takes_what_is_below_it_and_the_account_closes() -> None:
    rejected = (Rejected(0, 9, b"", b"", (), None, "decode", "bad", "bad"),)
    whole = changes((C, 10, 0, 1), (T, 20, 1, None), (C, 20, 2, 2), (C, 19, 3, 3), (U, 30, 4, 2), (T, 15, 5, None), rejected=rejected)
    delta = fold([whole], batch_id="b", target=TARGET, generations=none)
    assert delta.truncation == Truncation(0, 20, 0)
    assert delta.data.to_pylist() == [{"id": 2, "v": "v4"}]
    assert delta.counts == {0: {"applied": 1, "folded": 4, "duplicate": 0}}
    assert delta.rejected == rejected
    assert (delta.batch_id, delta.target, delta.spans) == ("b", TARGET, (Span(0, 0, 6, 6),))
    assert (delta.unsent, delta.base) == (None, None)
    assert delta.meta["gen"].type == pa.int32()
    assert delta.meta["key"].to_pylist() == ['["2"]']
    newer = fold([changes((T, 90, 0, None), (C, 5, 1, 1))], batch_id="b", target=TARGET, generations=lambda p, o, r: o.astype(np.int32))
    assert newer.data.to_pylist() == [{"id": 1, "v": "v1"}]
    assert newer.truncation == Truncation(0, 90, 0)
    both = fold([changes((T, 90, 0, None), (T, 5, 1, None))], batch_id="b", target=TARGET, generations=lambda p, o, r: o.astype(np.int32))
    assert both.truncation == Truncation(1, 5, 0)
    assert both.counts == {0: {"applied": 1, "folded": 1, "duplicate": 0}}
    # A row that the truncate's own record made is there.
    same = fold([changes((T, 20, 0, None), (C, 20, 1, 1), (C, 19, 2, 2))], batch_id="b", target=TARGET, generations=none)
    assert same.data["id"].to_pylist() == [1]


def test_generation_beats_record_and_record_beats_offset() -> None:
    delta = fold(
        [changes((C, 90, 0, 1), (U, 5, 1, 1), (U, 7, 2, 2), (U, 6, 3, 2), (U, 6, 4, 3), (U, 6, 5, 3))],
        batch_id="b", target=TARGET, generations=lambda p, o, r: (o == 1).astype(np.int32),
    )  # fmt: skip
    assert sorted(delta.data["v"].to_pylist()) == ["v1", "v2", "v5"]
    assert delta.counts == {0: {"applied": 0, "folded": 2, "duplicate": 1}}
    assert dict(zip(delta.meta["key"].to_pylist(), delta.meta["gen"].to_pylist(), strict=True))['["1"]'] == 1


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_at_one_record_a_create_is_later_than_the_delete(order: tuple[int, int]) -> None:
    """A key that changes its spelling alone: its halves may come by two partitions, at offsets that tell nothing."""
    halves = [changes((op, 5, at, 1), start=at, partition=at) for op, at in zip((D, C), order, strict=True)]
    assert fold(halves, batch_id="b", target=TARGET, generations=none).meta["op"].to_pylist() == [C]


def test_a_moved_delete_says_so_only_where_nothing_of_its_key_was_folded() -> None:
    alone = fold([changes((D, 10, 0, 1), moved=True)], batch_id="b", target=TARGET, generations=none)
    assert alone.meta["moved"].to_pylist() == [True]
    behind = fold([changes((U, 5, 0, 1)), changes((D, 10, 1, 1), start=1, moved=True)], batch_id="b", target=TARGET, generations=none)
    assert behind.meta["moved"].to_pylist() == [False]
    assert behind.spans == (Span(0, 0, 2, 2),)


def test_spans_meet_or_are_refused() -> None:
    joined = join_spans([[Span(0, 0, 2, 2, 1), Span(1, 5, 6, 1)], [Span(0, 2, 3, 1)]])
    assert joined == (Span(0, 0, 3, 3, 1), Span(1, 5, 6, 1))
    with pytest.raises(ValueError, match="does not follow"):
        join_spans([[Span(0, 0, 2, 2)], [Span(0, 3, 4, 1)]])


def folded(batch: ChangeBatch, gen: Any = none) -> Any:
    return fold([batch], batch_id="b", target=TARGET, generations=gen)


def unsent(batch: ChangeBatch, *, v: list[bool], old: list[int | None] | None = None) -> ChangeBatch:
    data = batch.data.set_column(
        1, "v", pa.array([None if u else t for u, t in zip(v, batch.data["v"].to_pylist(), strict=True)], pa.string())
    )
    keys = None if old is None else pa.table({"id": pa.array(old, pa.int64())})
    return replace(batch, data=data, unsent=pa.table({"v": v}), old_key=keys)


def bases(delta: Any) -> list[tuple[int, Any, Any, Any, Any]]:
    """Of each row that lacks a value: its key, and the key, text, move and record of its base."""
    assert delta.unsent is not None
    found = zip(
        delta.data["id"].to_pylist(), delta.unsent["v"].to_pylist(), delta.base.key["id"].to_pylist(),
        *(delta.base.about[name].to_pylist() for name in ("text", "move", "record")), strict=True,
    )  # fmt: skip
    return sorted((i, k, t, m, r) for i, missing, k, t, m, r in found if missing)


def test_what_came_again_behind_a_change_is_not_the_image_before_it() -> None:
    """Between record 2 and record 5 there was another change, which was merged before: its own repetition comes with the next batch."""
    again = changes((U, 5, 0, 1), (C, 2, 1, 1))
    assert bases(folded(unsent(again, v=[True, False]))) == [(1, 1, '["1"]', None, 5)]
    moved = unsent(changes((D, 5, 0, 1), (C, 5, 1, 2), (C, 2, 2, 1)), v=[False, True, False], old=[None, 1, None])
    assert bases(folded(moved)) == [(2, 1, '["1"]', None, 5)]
    whole = changes((C, 2, 0, 1), (U, 5, 1, 1), (C, 2, 2, 1), (U, 5, 3, 1))
    assert folded(unsent(whole, v=[False, True, False, True])).unsent is None


def test_unsent_values_are_followed_back_within_a_batch_or_named() -> None:
    filled = folded(unsent(changes((C, 1, 0, 1), (U, 2, 1, 1), (U, 3, 2, 1)), v=[False, True, True]))
    assert filled.data.to_pylist() == [{"id": 1, "v": "v0"}]
    assert filled.unsent is None
    named = folded(unsent(changes((U, 2, 0, 1), (U, 3, 1, 1), (C, 4, 2, 9)), v=[True, True, False]))
    assert bases(named) == [(1, 1, '["1"]', None, 3)]
    assert named.base.key["id"].to_pylist() == [1, None]
    # Behind a delete the image is not to be had from the batch: the record says from where it was meant.
    for gone in (
        unsent(changes((C, 1, 0, 1), (D, 2, 1, 1), (U, 3, 2, 1)), v=[False, False, True]),
        unsent(changes((D, 2, 0, 1), (U, 3, 1, 1)), v=[False, True]),
    ):
        assert bases(folded(gone)) == [(1, 1, '["1"]', 3, 3)]
    # Nor across generations, nor from a row of an incremental snapshot.
    for batch, gen in (
        (changes((C, 1, 0, 1), (U, 3, 1, 1)), lambda p, o, r: o.astype(np.int32)),
        (changes((R, 0, 0, 1), (U, 3, 1, 1)), none),
    ):
        assert bases(folded(unsent(batch, v=[False, True]), gen)) == [(1, 1, '["1"]', None, 3)]


def test_a_row_that_lacks_nothing_has_no_base_beside_one_that_does() -> None:
    delta = folded(unsent(changes((U, 2, 0, 1), (C, 1, 1, 9), (U, 4, 2, 9)), v=[True, False, True]))
    assert delta.data.to_pylist() == [{"id": 1, "v": None}, {"id": 9, "v": "v1"}]
    assert delta.unsent["v"].to_pylist() == [True, False]
    assert delta.base.key["id"].to_pylist() == [1, None]
    assert delta.base.about["text"].to_pylist() == ['["1"]', None]
    assert delta.base.about["record"].to_pylist() == [2, None]
    assert delta.base.about["partition"].to_pylist() == [0, None]
    # The base's key is its own, also where the batch begins with a row that has none.
    assert bases(folded(unsent(changes((T, 1, 0, None), (U, 2, 1, 1)), v=[False, True]))) == [(1, 1, '["1"]', None, 2)]


def test_an_image_is_not_taken_from_a_row_of_another_key() -> None:
    rows: list[tuple[Op, int, int, int | None]] = [(C, 1, 0, 8), (C, 1, 1, 9)]
    # Not where the row before it is of an incremental snapshot or came by another partition, nor for a move whose delete is elsewhere.
    assert bases(folded(unsent(changes(*rows, (R, 0, 2, 1), (U, 3, 3, 1)), v=[False] * 3 + [True]))) == [(1, 1, '["1"]', None, 3)]
    first, second = changes(*rows, (U, 2, 2, 1)), unsent(changes((U, 3, 0, 1), partition=1), v=[True])
    assert bases(fold([first, second], batch_id="b", target=TARGET, generations=none)) == [(1, 1, '["1"]', None, 3)]
    moved = unsent(changes(*rows, (D, 5, 2, 1), (C, 5, 3, 2)), v=[False] * 3 + [True], old=[None] * 3 + [7])
    assert bases(folded(moved)) == [(2, 7, '["7"]', 5, 5)]


def test_unsent_values_are_followed_through_changes_of_key() -> None:
    def moved(*, before: bool, old: int = 1) -> Any:
        rows = [(C, 1, 0, 1), (D, 5, 1, 1), (C, 5, 2, 2)] if before else [(D, 5, 1, 1), (C, 5, 2, 2)]
        batch = unsent(changes(*rows, start=0 if before else 1), v=[False] * (len(rows) - 1) + [True], old=[None] * (len(rows) - 1) + [old])
        return fold([batch], batch_id="b", target=TARGET, generations=none)

    found = moved(before=True)
    assert {r["id"]: r["v"] for r in found.data.to_pylist()} == {1: "v1", 2: "v0"}
    assert found.unsent is None
    # The delete is here and what was before it is not: the row under the old key is the base, and no move is missing.
    assert bases(moved(before=False)) == [(2, 1, '["1"]', None, 5)]
    # The other half is elsewhere: its record says which move.
    assert bases(moved(before=True, old=7)) == [(2, 7, '["7"]', 5, 5)]
    twice = changes((C, 1, 0, 1), (D, 5, 1, 1), (C, 5, 2, 2), (D, 9, 3, 2), (C, 9, 4, 3))
    delta = folded(unsent(twice, v=[False, False, True, False, True], old=[None, None, 1, None, 2]))
    assert {r["id"]: r["v"] for r in delta.data.to_pylist() if r["id"] == 3} == {3: "v0"}
    # The mask of one batch and the old keys of another are put side by side.
    first, second = changes((U, 2, 0, 5)), unsent(changes((C, 5, 1, 2), start=1), v=[True], old=[1])
    delta = fold([first, second], batch_id="b", target=TARGET, generations=none)
    assert bases(delta) == [(2, 1, '["1"]', 5, 5)]


def test_what_a_change_of_key_takes_along_is_unknown_while_the_table_is_loaded() -> None:
    rows: list[tuple[Op, int, int, int | None]] = [(R, 1, 0, 1), (U, 3, 1, 1), (D, 5, 2, 1), (C, 5, 3, 2), (U, 6, 4, 2), (U, 7, 5, 3)]
    batch = unsent(changes(*rows), v=[False, True, False, True, True, True], old=[None, None, None, 1, None, None])
    assert {r["id"]: r["v"] for r in folded(batch).data.to_pylist()}[2] == "v0"
    delta = fold([batch], batch_id="b", target=TARGET, generations=none, loading=True)
    # Nothing comes by the partition -1. A row that kept its key goes on as ever.
    assert bases(delta) == [(2, 1, '["1"]', None, 5), (3, 3, '["3"]', None, 7)]
    assert dict(zip(delta.data["id"].to_pylist(), delta.base.about["partition"].to_pylist(), strict=True)) == {1: None, 2: -1, 3: 0}


def test_the_other_half_of_a_move_is_the_delete_of_that_key_at_that_record() -> None:
    earlier = unsent(changes((C, 1, 0, 3), (D, 2, 1, 3), (C, 9, 2, 5)), v=[False, False, True], old=[None, None, 3])
    assert bases(folded(earlier)) == [(5, 3, '["3"]', 9, 9)]
    # What stood before it was deleted already, or is of another generation: the image cannot be known, and the move says so.
    deleted = unsent(changes((D, 2, 0, 1), (D, 5, 1, 1), (C, 5, 2, 2)), v=[False, False, True], old=[None, None, 1])
    assert bases(folded(deleted)) == [(2, 1, '["1"]', 5, 5)]
    across = unsent(changes((C, 1, 0, 1), (D, 5, 1, 1), (C, 5, 2, 2)), v=[False, False, True], old=[None, None, 1])
    assert bases(folded(across, lambda p, o, r: (o == 2).astype(np.int32))) == [(2, 1, '["1"]', 5, 5)]


def test_a_row_that_was_moved_and_one_that_was_not_lack_values_side_by_side() -> None:
    batch = changes((C, 5, 0, 2), (U, 9, 1, 2), (U, 7, 2, 4), (C, 1, 3, 6))
    delta = folded(unsent(batch, v=[True, True, True, False], old=[7, None, None, None]))
    assert bases(delta) == [(2, 7, '["7"]', 5, 5), (4, 4, '["4"]', None, 7)]
    assert delta.base.key["id"].to_pylist() == [7, 4, None]
    assert delta.base.about["text"].to_pylist() == ['["7"]', '["4"]', None]
    # The log repeats what it held before: the move stands behind a change that was merged after it, or after yet another one.
    late = unsent(changes((U, 5, 0, 1), (C, 3, 1, 1)), v=[True, True], old=[None, 9])
    assert bases(folded(late)) == [(1, 1, '["1"]', None, 5)]


BARE = replace(ITEMS, key=())


def bare(*rows: tuple[int, int, int | None], start: int = 0, partition: int = 0) -> ChangeBatch:
    """(record, offset, number in its transaction) each, of a table without a key."""
    made = changes(*((C, record, offset, 1) for record, offset, _ in rows), start=start, partition=partition)
    return replace(made, schema=BARE, order=pa.array([number for *_, number in rows], pa.int64()))


def places(*batches: ChangeBatch, tails: Mapping[int, Tail] | None = None) -> tuple[list[int], Mapping[int, Tail]]:
    delta = gather(batches, batch_id="b", target=TARGET, generations=none, tails=tails)
    return delta.meta["seq"].to_pylist(), delta.tails


def test_changes_of_one_log_record_without_a_key_are_told_apart_by_their_place() -> None:
    assert places(bare((10, 0, 1), (10, 1, 2), (20, 2, 3))) == ([0, 1, 0], {0: Tail(20, 3, 0)})
    # The connector begins the record again: its numbers fall, and what comes again is no row again.
    assert places(bare((10, 0, 1), (10, 1, 2), (10, 2, 1), (10, 3, 2), (10, 4, 3))) == ([0, 1, 2], {0: Tail(10, 3, 2)})
    # It goes on where the batch before ended, or begins the record again.
    assert places(bare((10, 5, 3), start=5), tails={0: Tail(10, 2, 1)}) == ([2], {0: Tail(10, 3, 2)})
    assert places(bare((10, 5, 5), start=5), tails={0: Tail(10, 2, 1)}) == ([4], {0: Tail(10, 5, 4)})
    assert places(bare((10, 5, 1), start=5), tails={0: Tail(10, 2, 1)}) == ([0], {0: Tail(10, 1, 0)})
    assert places(bare((11, 5, 3), start=5), tails={0: Tail(10, 2, 1)}) == ([0], {0: Tail(11, 3, 0)})
    # Without numbers each follows the last.
    assert places(bare((10, 0, None), (10, 1, None))) == ([0, 1], {0: Tail(10, None, 1)})
    assert places(bare((10, 5, None), start=5), tails={0: Tail(10, None, 1)}) == ([2], {0: Tail(10, None, 2)})
    assert places(bare((10, 5, 4), start=5), tails={0: Tail(10, None, 1)}) == ([2], {0: Tail(10, 4, 2)})
    two = places(bare((10, 0, 1), (10, 1, 2)), bare((10, 7, 1), start=7, partition=2), tails={2: Tail(10, 9, 9), 5: Tail(1, 1, 1)})
    assert two[1] == {0: Tail(10, 2, 1), 2: Tail(10, 1, 0)}
    assert places(bare()) == ([], {})
    # A number that stays begins the record again as one that falls, within a batch and behind the one before.
    assert places(bare((10, 0, 1), (10, 1, 2), (10, 2, 2))) == ([0, 1], {0: Tail(10, 2, 0)})
    assert places(bare((10, 5, 2), start=5), tails={0: Tail(10, 2, 1)}) == ([0], {0: Tail(10, 2, 0)})
    # Only two numbers can be compared; beside a change without one it is the next.
    assert places(bare((10, 0, None), (10, 1, 4), (10, 2, 6)))[0] == [0, 1, 3]
    assert places(bare((10, 0, 4), (10, 1, None)))[0] == [0, 1]
    mixed = places(bare((10, 0, 1)), replace(bare((10, 1, None), (10, 2, None), start=1), order=None))
    assert mixed == ([0, 1, 2], {0: Tail(10, None, 2)})
    # Each change is told from the one before it, not from the first.
    assert places(bare((10, 0, 1), (20, 1, 2), (20, 2, 3)))[0] == [0, 0, 1]
    assert places(bare((9, 0, 1)), bare((10, 0, 1), (10, 1, 2), partition=1))[0] == [0, 0, 1]
    behind = bare((10, 0, None), (11, 1, None), (10, 2, None), partition=1)
    assert places(bare((9, 0, None)), behind, tails={1: Tail(10, None, 3)})[0] == [0, 4, 0, 0]


def test_a_change_that_comes_again_is_no_row_again() -> None:
    def gathered(*batches: ChangeBatch, gen: Any = none) -> Any:
        return gather(batches, batch_id="b", target=TARGET, generations=gen)

    again = gathered(changes((C, 10, 0, 1), (U, 10, 1, 1), (C, 10, 2, 1), (C, 10, 3, 2), (C, 11, 4, 1)))
    assert again.meta["offset"].to_pylist() == [0, 1, 3, 4]
    assert again.counts == {0: {"applied": 0, "folded": 0, "duplicate": 1}}
    assert again.meta["gen"].to_pylist() == [0] * 4
    assert again.meta["moved"].to_pylist() == [False] * 4
    assert again.meta["missing"].to_pylist() == [None] * 4
    assert again.meta["before"].to_pylist() == [None] * 4
    assert again.tails == {}
    assert again.spans == (Span(0, 0, 5, 5),)
    # Readings of an incremental snapshot are each a row; those of an initial one are the same within a generation.
    assert len(gathered(changes((R, 0, 0, 1), (R, 0, 1, 1))).data) == 2
    assert len(gathered(changes((R, -5, 0, 1), (R, -5, 1, 1))).data) == 1
    assert len(gathered(changes((R, -5, 0, 1), (R, -5, 1, 1)), gen=lambda p, o, r: o.astype(np.int32)).data) == 2
    # A change of the stream is one in all generations, and belongs to the last that it came in.
    assert gathered(changes((C, 5, 0, 1), (C, 5, 1, 1)), gen=lambda p, o, r: o.astype(np.int32)).meta["gen"].to_pylist() == [1]
    # Another time of the source is another change.
    one, two = changes((C, 5, 0, 1)), changes((C, 5, 1, 1), start=1)
    other = two.meta.set_column(6, "source_us", pa.array([7], pa.int64()))
    assert len(gathered(one, replace(two, meta=other)).data) == 2
    assert len(gathered(one, two).data) == 1
    assert gathered(changes((R, -9, 0, 1), (R, -5, 1, 1), (R, -7, 2, 3))).snapshot_record == -5
    assert gathered(changes((C, 9, 0, 1))).snapshot_record is None


def test_what_is_gathered_keeps_whose_it_is_and_what_left_it() -> None:
    rejected = (Rejected(0, 9, b"", b"", (), None, "decode", "bad", "bad"),)
    batches = [changes((C, 10, 5, 1), rejected=rejected), changes((C, 11, 6, 2), partition=1)]
    delta = gather(batches, batch_id="b", target=TARGET, generations=lambda p, o, r: generations(p, o, r, 3, {0: 6, 1: 6}, 10))
    assert (delta.batch_id, delta.target, delta.schema, delta.rejected) == ("b", TARGET, ITEMS, rejected)
    assert delta.meta["gen"].to_pylist() == [2, 3]
    assert delta.meta["key"].to_pylist() == ['["1"]', '["2"]']
    assert (delta.meta["moved"].type, delta.meta["seq"].type) == (pa.bool_(), pa.int64())
    assert gather([bare((10, 0, 1))], batch_id="b", target=TARGET, generations=none).meta["seq"].type == pa.int64()


def test_what_a_change_lacks_is_named_and_its_image_kept() -> None:
    batch = replace(unsent(changes((U, 10, 0, 1), (U, 11, 1, 1)), v=[True, False]), before=pa.array(["x", None]))
    delta = gather([batch, changes((C, 12, 2, 1), start=2)], batch_id="b", target=TARGET, generations=none)
    assert delta.meta["missing"].to_pylist() == ['["v"]', None, None]
    assert delta.meta["before"].to_pylist() == ["x", None, None]
    assert delta.unsent is None


# Sums


def test_the_text_of_a_row_tells_values_apart_and_the_statement_sums_its_hash() -> None:
    engine = Canonical({Kind.INT64: "n({0})", Kind.STRING: "s({0})"}, "m({0})", "len({0})", "d({0},{1})")
    assert engine.text(BIG, "x") == "COALESCE(n(x), '')"
    assert engine.text(TEXT, "x") == "COALESCE(CAST(len(s(x)) AS VARCHAR) || ':' || s(x), '')"
    assert engine.text(INT, "x") is None
    assert engine.hash(["a", "b"]) == "m(a || '|' || b)"
    for kind in (Kind.JSON, Kind.INTERVAL):
        assert "len(" in str(replace(engine, texts={kind: "{0}"}).text(LogicalType(kind), "x"))
    assert " ".join(digests("t", "bk", "pl", "hs").split()) == (
        "SELECT b, count(*) AS n, CAST(sum(h) AS VARCHAR) AS t, CAST(sum(p * (h >> 10)) AS VARCHAR) AS l "
        "FROM (SELECT bk AS b, pl AS p, hs AS h FROM t OFFSET 0) AS g GROUP BY b"
    )
    # A bucket's sum of places times hashes stays within 63 bits.
    assert (PLACES - 1) * (2 ** (60 - CUT) - 1) < 2**63
