"""The contract of destinations for logs of changes (Mode.APPEND), one suite for all of them and for the oracle."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from cdc_service.core.append import gather
from cdc_service.core.errors import CommitUnknown, Fenced, Unavailable
from cdc_service.core.evolve import evolve
from cdc_service.core.types import META, ChangeBatch, Delta, LogId, Mode, Op, Receipt, Rejected, Span, TableId, TableSchema, Tail, Target
from cdc_service.ports.destination import TableState
from cdc_service.testing.memory import restore
from tests.conformance.harness import ITEMS, LOG, PARAMS, Harness, harness_of, number, parsed_statements, text

C, R, U, D, T = Op.CREATE, Op.READ, Op.UPDATE, Op.DELETE, Op.TRUNCATE
BARE = replace(ITEMS, key=())


@dataclass(frozen=True)
class Row:
    op: Op
    values: Mapping[str, Any]
    record: int
    partition: int = 0
    gen: int = 0
    order: int | None = None
    before: str | None = None
    unsent: tuple[str, ...] = ()


@dataclass
class Log:
    """One writer of one table: gives each change the next offset of its partition, gathers and merges."""

    destination: Any
    schema: TableSchema
    log: LogId = LOG
    next: dict[int, int] = field(default_factory=dict)
    epochs: dict[int, int] = field(default_factory=dict)
    tails: Mapping[int, Tail] = field(default_factory=dict)

    @property
    def target(self) -> Target:
        return Target(self.schema.table, self.schema.table.schema, self.schema.table.name, Mode.APPEND, full_metadata=False)

    def start(self) -> Log:
        self.destination.prepare()
        self.evolve(self.schema)
        return self.take()

    def evolve(self, schema: TableSchema) -> None:
        changes, own = evolve(tuple(self.destination.schemas(self.target)), schema)
        self.destination.evolve(self.target, changes, own)

    def take(self) -> Log:
        taken = self.destination.claim(self.target, self.log, {0: self.next.get(0, 0), 1: self.next.get(1, 0)})
        self.epochs = {c.partition: c.epoch for c in taken}
        self.next = {c.partition: c.next_offset for c in taken}
        self.tails = self.destination.tails(self.target, self.log)
        return self

    def delta(self, *rows: Row, schema: TableSchema | None = None, rejected: Sequence[int] = ()) -> Delta:
        schema, at = schema or self.schema, dict(self.next)
        offsets = []
        for row in rows:
            offsets.append(at[row.partition])
            at[row.partition] += 1
        parked = []
        for partition in rejected:
            parked.append(Rejected(partition, at[partition], None, b"v", [], None, "decode", "bad_json", "not JSON"))
            at[partition] += 1
        columns = {
            "op": [int(r.op) for r in rows],
            "partition": [r.partition for r in rows],
            "offset": offsets,
            "commit": [None for _ in rows],
            "record": [r.record for r in rows],
            "minor": [0] * len(rows),
            "source_us": [abs(r.record) % 10**9 for r in rows],
            "index": list(range(len(rows))),
        }
        made = ChangeBatch(
            schema=schema,
            data=pa.table([restore([r.values.get(c.name) for r in rows], c.type.arrow) for c in schema.columns], schema=schema.arrow),
            meta=pa.table([pa.array(columns[f.name], f.type) for f in META], schema=META),
            spans=tuple(Span(p, self.next[p], at[p], at[p] - self.next[p]) for p in at if at[p] > self.next[p]),
            unsent=pa.table({c.name: pa.array([c.name in r.unsent for r in rows], pa.bool_()) for c in schema.columns}),
            rejected=tuple(parked),
            before=pa.array([r.before for r in rows], pa.string()),
            order=pa.array([r.order for r in rows], pa.int64()),
        )
        generations = np.array([r.gen for r in rows], np.int32)
        return gather([made], batch_id="b", target=self.target, generations=lambda p, o, r: generations, tails=self.tails)

    def merge(self, delta: Delta) -> Receipt:
        receipt: Receipt = self.destination.merge(delta, self.epochs, self.log, self.destination.schemas(self.target)[-1])
        self.next.update({span.partition: span.stop for span in delta.spans})
        self.tails = {**self.tails, **delta.tails}
        return receipt

    def apply(self, *rows: Row, **more: Any) -> list[tuple[int, int]]:
        """(applied, duplicate) of each partition."""
        return [(p.applied, p.duplicate) for p in self.merge(self.delta(*rows, **more)).partitions]


@pytest.fixture(params=PARAMS)
def harness(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Harness]:
    with parsed_statements(), harness_of(request.param, tmp_path, request) as made:
        yield made


@pytest.fixture
def destination(harness: Harness) -> Iterator[Any]:
    opened = harness.open()
    yield opened
    opened.close()


@pytest.fixture
def keyed(destination: Any) -> Log:
    return Log(destination, ITEMS).start()


@pytest.fixture
def bare(destination: Any) -> Log:
    return Log(destination, BARE).start()


def row(op: Op, id_: int | None, record: int, name: str | None = None, **more: Any) -> Row:
    return Row(op, {"id": id_, "name": name}, record, **more)


def held(harness: Harness, log: Log) -> list[tuple[Any, ...]]:
    found = harness.rows(log.destination, log.target, log.destination.schemas(log.target)[-1]).to_pylist()
    return [(r["_cdc_op"], r["id"], r["name"], r["_cdc_record"], r["_cdc_seq"]) for r in found]


def test_each_change_is_a_row_and_a_truncation_removes_none(harness: Harness, keyed: Log) -> None:
    keyed.apply(row(C, 1, 10, "a"), row(U, 1, 20, "b", before='{"id":1}', unsent=("body",)), row(D, 1, 30), row(T, None, 40, partition=1))
    assert held(harness, keyed) == [("c", 1, "a", 10, 0), ("u", 1, "b", 20, 0), ("d", 1, None, 30, 0), ("t", None, None, 40, 0)]
    rows = harness.rows(keyed.destination, keyed.target, ITEMS).to_pylist()
    assert [(r["_cdc_before"], r["_cdc_unsent"], r["_cdc_offset"], r["_cdc_partition"]) for r in rows[1:2]] == [
        ('{"id":1}', '["body"]', 1, 0)
    ]
    assert keyed.destination.table_rows(keyed.target) == 4


def test_i4_i16_what_comes_again_is_no_row_again(harness: Harness, keyed: Log) -> None:
    changes = (row(C, 1, 10, "a"), row(U, 1, 20, "b"), row(D, 1, 30), row(T, None, 40, partition=1))
    assert keyed.apply(*changes) == [(3, 0), (1, 0)]
    before = held(harness, keyed)
    assert keyed.apply(*changes) == [(0, 3), (0, 1)]
    assert keyed.apply(row(U, 1, 20, "b"), row(C, 2, 50, "new"), row(C, 2, 50, "new"), row(T, None, 40)) == [(1, 3)]
    assert held(harness, keyed) == [*before, ("c", 2, "new", 50, 0)]
    # The same log from a topic that was made again.
    again = Log(keyed.destination, ITEMS, log=replace(LOG, topic_id="again")).take()
    assert again.apply(*changes) == [(0, 3), (0, 1)]


def test_a_change_that_comes_again_in_a_later_generation_is_the_same_change_and_belongs_to_that_one(harness: Harness, keyed: Log) -> None:
    keyed.apply(row(C, 1, 100, "a"), row(R, 2, -5, "read"))
    assert keyed.apply(row(C, 1, 100, "a", gen=1), row(R, 2, -5, "read", gen=1)) == [(1, 1)]
    assert [r[0] for r in held(harness, keyed)] == ["r", "r", "c"]
    assert keyed.apply(row(C, 1, 100, "a")) == [(0, 1)]
    assert [r[0] for r in held(harness, keyed)] == ["r", "r", "c"]


def test_readings_of_an_incremental_snapshot_are_each_a_row(harness: Harness, keyed: Log) -> None:
    assert keyed.apply(row(R, 1, 0, "a"), row(R, 1, 0, "a")) == [(2, 0)]
    assert keyed.apply(row(R, 1, 0, "b")) == [(1, 0)]
    assert [r[2] for r in held(harness, keyed)] == ["a", "a", "b"]


def test_a_key_change_that_keeps_the_text_of_the_key_is_two_changes(harness: Harness, keyed: Log) -> None:
    assert keyed.apply(row(D, 1, 10), row(C, 1, 10, "moved onto itself")) == [(2, 0)]
    assert keyed.apply(row(D, 1, 10), row(C, 1, 10, "moved onto itself")) == [(0, 2)]


def test_rows_of_one_log_record_without_a_key_are_counted_over_batches_and_restarts(harness: Harness, bare: Log) -> None:
    same = [row(C, 1, 10, "alike", order=n) for n in range(1, 11)]
    bare.apply(*same[:3])
    bare.take()
    bare.apply(*same[3:7])
    assert [r[4] for r in held(harness, bare)] == list(range(7))
    # The connector dies after seven of ten and sends the record again from its first row; the batch is cut in the middle of it.
    assert bare.apply(*same[:5]) == [(0, 5)]
    bare.take()
    assert bare.apply(*same[5:]) == [(3, 2)]
    assert [r[4] for r in held(harness, bare)] == list(range(10))
    assert bare.apply(*same, row(C, 1, 11, "next", order=11)) == [(1, 10)]
    assert harness.open().tails(bare.target, LOG) == {0: Tail(11, 11, 0)}


def test_rows_of_a_snapshot_without_a_key_are_counted_too(harness: Harness, bare: Log) -> None:
    first, second = -(2**63) + 40, -(2**63) + 50
    bare.apply(*(row(R, 1, first, "alike") for _ in range(3)))
    bare.apply(*(row(R, 1, first, "alike") for _ in range(2)), *(row(R, 1, second, "alike") for _ in range(2)))
    bare.apply(*(row(R, 1, second, "alike") for _ in range(3)), row(C, 1, 60, "alike", order=1))
    assert bare.destination.highest_snapshot() == second
    assert bare.destination.sweep(bare.target, 0, second) == 5
    assert [(r[3], r[4]) for r in held(harness, bare)] == [*((second, n) for n in range(5)), (60, 0)]
    # What only the first attempt saw never comes back.
    assert bare.apply(row(R, 1, first, "late")) == [(0, 1)]
    assert bare.destination.sweep(bare.target, 0, second) == 0


def test_the_end_of_a_resync_removes_nothing(harness: Harness, keyed: Log) -> None:
    keyed.apply(row(R, 1, -5, "read"), row(C, 2, 10, "old"), row(R, 3, 0, "incremental"))
    keyed.apply(row(R, 1, 0, "anew", gen=1), row(C, 4, 20, "new", gen=1))
    before = held(harness, keyed)
    assert keyed.destination.sweep(keyed.target, 1, -(2**63)) == 0
    assert held(harness, keyed) == before
    assert keyed.apply(row(C, 5, 11, "late")) == [(1, 0)]


def test_forgotten_checkpoints_make_nothing_twice(harness: Harness, keyed: Log) -> None:
    keyed.apply(row(C, 1, 10, "a"), row(C, 2, 500, "b"))
    keyed.destination.begin_anew(keyed.target, LOG, dict(keyed.next), TableState("snapshotting"))
    keyed.take()
    assert keyed.apply(row(C, 1, 10, "a")) == [(0, 1)]
    assert keyed.apply(row(C, 2, 500, "b"), row(C, 3, 400, "c")) == [(1, 1)]


def test_i12_a_crash_at_any_step_leaves_all_or_nothing(harness: Harness, bare: Log) -> None:
    bare.apply(row(C, 1, 10, "a", order=1))
    steps, call = 0, 0
    while True:
        before = held(harness, bare), harness.ledger(bare.destination, bare.target), bare.take().tails
        delta = bare.delta(row(C, 1, 10, "a", order=1), *(row(C, 1, 20 + call, "b", order=n) for n in range(2, 5)), rejected=[0])
        with harness.crash_at(bare.destination, call) as calls, contextlib.suppress(Unavailable, CommitUnknown):
            bare.destination.merge(delta, bare.epochs, LOG, bare.destination.schemas(bare.target)[-1])
        at = bare.next[0]
        bare.take()
        now = held(harness, bare), harness.ledger(bare.destination, bare.target), bare.tails
        if bare.next[0] == at:
            assert now == before
            steps += 1
        else:
            assert len(now[0]) == len(before[0]) + 3
            assert now[2] == {0: Tail(20 + call, 4, 2)}
        if calls[0] <= call:
            break
        call += 1
    assert steps > 3


def test_i13_i14_another_writer_fences_this_one(harness: Harness, keyed: Log) -> None:
    other = Log(keyed.destination, ITEMS).take()
    with pytest.raises(Fenced):
        keyed.apply(row(C, 1, 10, "a"))
    assert held(harness, other) == []
    assert other.apply(row(C, 1, 10, "a")) == [(1, 0)]


def test_i9_rows_stay_what_they_were_when_columns_come_and_go(harness: Harness, keyed: Log) -> None:
    keyed.apply(row(C, 1, 10, "a"))
    wide = TableSchema(ITEMS.table, (*ITEMS.columns, number("stock")), ITEMS.key)
    keyed.evolve(wide)
    keyed.apply(Row(C, {"id": 2, "name": "b", "stock": 7}, 20), schema=wide)
    keyed.apply(row(C, 3, 15, "late"))
    narrow = TableSchema(ITEMS.table, (number("id"), number("stock")), ITEMS.key)
    keyed.evolve(narrow)
    keyed.apply(Row(C, {"id": 4, "stock": 8}, 30), schema=narrow)
    found = harness.rows(keyed.destination, keyed.target, keyed.destination.schemas(keyed.target)[-1]).to_pylist()
    assert [(r["id"], r["name"], r["stock"]) for r in found] == [(1, "a", None), (3, "late", None), (2, "b", 7), (4, None, 8)]
    assert keyed.destination.drift(keyed.target, keyed.destination.schemas(keyed.target)[-1]) == []


HOSTILE = (
    "select",
    'a"b',
    "semi;colon --",
    "ünïcödé ☃",
    "c0",
    "s",
    "'",
    "%s",
    "?",
    "{x}",
    "n",
    "letter",
    "seq",
    "$1",
    "\\",
    "key",
    "before",
)


@pytest.mark.parametrize("key", [('a"b', "select"), ()])
def test_hostile_identifiers(harness: Harness, destination: Any, key: tuple[str, ...]) -> None:
    schema = TableSchema(TableId('we"ird', 'or"der; drop'), tuple(text(name) for name in HOSTILE), key)
    log = Log(destination, schema).start()
    changes = [Row(C, {name: f"{i} {name}" for name in HOSTILE}, 10, order=i, unsent=("\\", 'a"b')) for i in (1, 2)]
    assert log.apply(*changes) == [(2, 0)]
    assert log.apply(*changes) == [(0, 2)]
    rows = harness.rows(destination, log.target, schema).to_pylist()
    assert [{name: r[name] for name in HOSTILE} for r in rows] == [dict(c.values) for c in changes]
    assert {r["_cdc_unsent"] for r in rows} == {'["a\\"b","\\\\"]'}


def test_a_retired_log_goes_on_under_another_name(harness: Harness, keyed: Log) -> None:
    d, target = keyed.destination, keyed.target
    keyed.apply(row(C, 1, 10, "kept"))
    state = TableState("snapshotting", 4)
    for _ in range(2):
        state = d.begin_anew(target, LOG, dict(keyed.next), state, retire=True)
        assert d.table_rows(target) is None
        assert d.schemas(target) == []
    assert d.table_rows(replace(target, name="items_until_3")) == 1
    keyed.evolve(BARE)
    keyed.take().apply(row(R, 1, 0, "anew", gen=4), schema=BARE)
    assert d.table_rows(target) == 1


def test_a_retired_log_with_a_long_name_meets_no_other(destination: Any) -> None:
    name = "ü" * 31 + "x"
    log = Log(destination, replace(ITEMS, table=TableId("public", name))).start()
    log.apply(row(C, 1, 10, "kept"))
    destination.begin_anew(log.target, LOG, dict(log.next), TableState("snapshotting", 4), retire=True)
    assert destination.table_rows(log.target) is None
    assert destination.table_rows(replace(log.target, name="ü" * 27 + "_until_3")) == 1


def test_what_stood_before_a_snapshot_is_told_as_by_key(keyed: Log) -> None:
    d, target = keyed.destination, keyed.target
    keyed.apply(row(R, 1, -5, "read"), row(R, 1, 0, "read again"), row(C, 2, 100, "streamed"))
    assert not d.holds_before(target, 0, 100)
    assert d.holds_before(target, 0, 101)
    assert not d.holds_before(target, 1, 101)
