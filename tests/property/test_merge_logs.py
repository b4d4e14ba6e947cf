"""Random logs, cut into random batches, with redelivered tails and crashes: every destination ends as the source did (I1-I8, I11, I21).

A small source makes a log of inserts, updates, deletes, key changes and truncations over three partitions; the connector restarts and
repeats its tail; the batches go through the real fold into the oracle and into a destination. After every commit both agree, no version
went back, and the account is closed.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cdc_service.core.errors import Unavailable
from cdc_service.core.evolve import evolve
from cdc_service.core.fold import fold
from cdc_service.core.keys import key_text
from cdc_service.core.order import BY_RECORD, LAST_MINOR, Ordering, Ties, generations, snapshot_record
from cdc_service.core.types import META, ChangeBatch, Delta, LogId, Mode, Op, Span, TableId, TableSchema, Target
from cdc_service.ports.destination import UnsentUnknown
from cdc_service.testing.memory import MemoryDestination
from tests.conformance.harness import ITEMS, LOG, PARAMS, Harness, MemoryHarness, harness_of
from tests.support.line import FACTOR

PARTITIONS = 3
KEYS = 8


@dataclass(frozen=True)
class Event:
    op: Op
    partition: int
    record: int
    id: int | None = None
    name: str | None = None
    body: str | None = None
    body_unsent: bool = False
    old: int | None = None
    moved: bool = False
    tombstone: bool = False
    minor: int = 0


@dataclass
class Source:
    """A table of (name, body) by id, and the log of its changes."""

    random: random.Random
    ordering: Ordering = BY_RECORD
    rows: dict[int, tuple[str, str]] = field(default_factory=dict)
    log: list[Event] = field(default_factory=list)
    record: int = 100
    minor: int = 0
    alone: bool = True
    """Whether no other change may have the position."""
    spelled: dict[int, int] = field(default_factory=dict)
    """How often the key was spelled anew, which sends its changes to another partition."""

    def partition(self, id_: int) -> int:
        return (id_ + self.spelled.get(id_, 0)) % PARTITIONS

    def run(self, steps: int) -> None:
        for i in range(self.random.randrange(KEYS)):
            self.rows[i] = (f"s{i}", f"body {i}")
            record = int(snapshot_record(np.array([50]))[0])
            self.log.append(Event(Op.READ, i % PARTITIONS, record, i, *self.rows[i]))
        for _ in range(steps):
            self.step()

    def go_on(self, *, alone: bool) -> None:
        """To the position of the next change, which may be that of the one before it where the source has such."""
        if self.ordering == BY_RECORD or alone or self.alone or self.random.random() < 0.4:
            self.record += self.random.randrange(1, 5)
            self.minor = 0
        elif self.ordering.ties is Ties.SAME_CHANGE or self.random.random() < 0.3:
            self.minor += 1
        self.alone = alone

    def step(self) -> None:
        free = [i for i in range(KEYS) if i not in self.rows]
        what = self.random.choices(["insert", "update", "delete", "move", "spell", "truncate"], [4, 6, 2, 4, 1.5, 0.3])[0]
        self.go_on(alone=what in ("truncate", "spell"))
        if what == "truncate":
            self.rows.clear()
            self._event(Op.TRUNCATE, None, partition=self.random.randrange(PARTITIONS))
        elif what == "insert" and free:
            self._put(Op.CREATE, self.random.choice(free), f"n{self.record}", f"b{self.record}")
        elif self.rows and what == "spell":
            # A numeric key 1.50 that becomes 1.5: a delete and a create under one key, in two partitions of Kafka.
            id_ = self.random.choice(sorted(self.rows))
            name, body = self.rows[id_]
            self._event(Op.DELETE, id_, moved=True)
            self.spelled[id_] = self.spelled.get(id_, 0) + 1
            self._put(Op.CREATE, id_, name, body, self.random.random() < 0.7, old=id_)
        elif self.rows and what in ("update", "delete", "move"):
            id_ = self.random.choice(sorted(self.rows))
            if what == "update":
                self._put(Op.UPDATE, id_, f"n{self.record}", *self._body(id_))
            else:
                name, body = self.rows.pop(id_)
                moved = what == "move" and bool(free)
                self._event(Op.DELETE, id_, moved=moved)
                self._event(Op.DELETE, id_, tombstone=True)
                if moved:
                    self._put(Op.CREATE, self.random.choice(free), name, body, self.random.random() < 0.7, old=id_)

    def _event(self, op: Op, id_: int | None, *more: Any, partition: int | None = None, **flags: Any) -> None:
        place = partition if id_ is None or partition is not None else self.partition(id_)
        self.log.append(Event(op, place or 0, self.record, id_, *more, minor=self.minor, **flags))

    def _body(self, id_: int) -> tuple[str, bool]:
        return (f"b{self.record}", False) if self.random.random() < 0.4 else (self.rows[id_][1], self.random.random() < 0.7)

    def _put(self, op: Op, id_: int, name: str, body: str, unsent: bool = False, old: int | None = None) -> None:
        self.rows[id_] = (name, body)
        self._event(op, id_, name, None if unsent else body, unsent, old)

    def delivered(self) -> list[list[Event]]:
        """The log as it stands in each partition, with the tails that a restarted connector repeated."""
        sequence: list[Event] = []
        at = 0
        while at < len(self.log):
            sequence.append(self.log[at])
            at += 1
            if self.random.random() < 0.05:
                at = max(0, at - self.random.randrange(1, 8))
        return [[e for e in sequence if e.partition == p] for p in range(PARTITIONS)]


def batch(schema: TableSchema, parts: dict[int, tuple[int, Sequence[Event]]]) -> ChangeBatch:
    """``parts``: partition -> (start offset, events)."""
    placed = [(start + i, e) for start, events in parts.values() for i, e in enumerate(events)]
    rows = [(offset, e) for offset, e in placed if not e.tombstone]
    columns = {
        "op": [int(e.op) for _, e in rows],
        "partition": [e.partition for _, e in rows],
        "offset": [offset for offset, _ in rows],
        "commit": [e.record for _, e in rows],
        "record": [e.record for _, e in rows],
        "minor": [e.minor for _, e in rows],
        "source_us": [0] * len(rows),
        "index": list(range(len(rows))),
    }
    data = {"id": [e.id for _, e in rows], "name": [e.name for _, e in rows], "body": [e.body for _, e in rows]}
    return ChangeBatch(
        schema=schema,
        data=pa.table([pa.array(data[name], schema.arrow.field(name).type) for name in schema.names], schema=schema.arrow),
        meta=pa.table([pa.array(columns[f.name], f.type) for f in META], schema=META),
        spans=tuple(
            Span(p, start, start + len(events), len(events), sum(e.tombstone for e in events)) for p, (start, events) in parts.items()
        ),
        unsent=pa.table({"body": pa.array([e.body_unsent for _, e in rows], pa.bool_())}),
        old_key=pa.table({"id": pa.array([e.old for _, e in rows], pa.int64())}),
        moved=pa.array([e.moved for _, e in rows], pa.bool_()),
    )


def completed(delta: Delta, unknown: UnsentUnknown, source: Source) -> Delta:
    """The delta with the rows of ``unknown`` read again at the source's end: whole rows under that position, or deletes."""
    ids, data = delta.data["id"].to_pylist(), delta.data.to_pydict()
    again = {i for i, id_ in enumerate(ids) if id_ in set(unknown.keys["id"].to_pylist())}
    meta = delta.meta.to_pydict()
    for i in again:
        meta["record"][i] = source.record
        meta["minor"][i] = LAST_MINOR if source.ordering.minor else 0
        if ids[i] in source.rows:
            data["name"][i], data["body"][i] = source.rows[ids[i]]
        else:
            meta["op"][i], data["name"][i], data["body"][i] = int(Op.DELETE), None, None
        meta["moved"][i] = False
    assert delta.unsent is not None
    assert delta.base is not None
    cleared = pa.array([i in again for i in range(len(ids))])
    return replace(
        delta,
        data=pa.table(data, schema=delta.data.schema),
        meta=pa.table(meta, schema=delta.meta.schema),
        unsent=pa.table({name: pc.if_else(cleared, False, delta.unsent[name]) for name in delta.unsent.column_names}),
        base=delta.base.cleared(cleared),
    )


@dataclass
class Warehouse:
    """One destination under the loop: merges, completes what is unknown, crashes now and then."""

    harness: Harness
    destination: Any
    target: Target
    epochs: dict[int, int] = field(default_factory=dict)
    versions: dict[str, tuple[int, int]] = field(default_factory=dict)
    unknown: int = 0
    log: LogId = LOG

    def start(self, schema: TableSchema) -> Warehouse:
        self.destination.prepare()
        self.destination.evolve(self.target, *evolve((), schema))
        self.take()
        return self

    def take(self) -> dict[int, int]:
        taken = self.destination.claim(self.target, self.log, dict.fromkeys(range(PARTITIONS), 0))
        self.epochs = {c.partition: c.epoch for c in taken}
        return {c.partition: c.next_offset for c in taken}

    def merge(self, delta: Delta, source: Source, crash: int | None) -> None:
        schema = self.destination.schemas(self.target)[-1]
        if crash is not None:
            before = self.take()
            with self.harness.crash_at(self.destination, crash) as calls, contextlib.suppress(Unavailable, UnsentUnknown):
                self.destination.merge(delta, self.epochs, self.log, schema)
            after = self.take()
            if after != before:
                assert after == {**before, **{s.partition: s.stop for s in delta.spans}}, "a checkpoint moved by half"
                assert calls[0] <= crash or isinstance(self.destination, MemoryDestination)
                return
        try:
            self.destination.merge(delta, self.epochs, self.log, schema)
        except UnsentUnknown as unknown:
            self.unknown += 1
            self.destination.merge(completed(delta, unknown, source), self.epochs, self.log, schema)

    def check(self, schema: TableSchema, watermark: tuple[int, int]) -> dict[str, Any]:
        rows = self.harness.rows(self.destination, self.target, schema)
        deleted = self.harness.deleted(self.destination, self.target)
        versions = dict(deleted)
        for key, row in zip(key_text(rows.select(schema.key)).to_pylist(), rows.to_pylist(), strict=True):
            versions[key] = max(versions.get(key, (0, -(2**63))), (row["_cdc_gen"], row["_cdc_record"]))
        for key, version in self.versions.items():
            # A truncation takes rows away with their versions; the watermark stands for them.
            assert version <= max(versions.get(key, watermark), watermark), f"the version of {key} went back"
        self.versions = versions
        return {"rows": rows.to_pylist(), "deleted": deleted, "ledger": self.harness.ledger(self.destination, self.target)}


@pytest.fixture(scope="module", params=[param for param in PARAMS if param.values != ("memory",)])
def opened(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Harness, Any]]:
    with harness_of(request.param, tmp_path_factory.mktemp("logs"), request) as harness:
        destination = harness.open()
        yield harness, destination
        destination.close()


WORST = (2**31, 0)
COUNTER = iter(range(1_000_000))
UNKNOWN = [0]


@settings(max_examples=round(60 * FACTOR), deadline=None)
@example(seed=1)
@given(seed=st.integers(0, 2**32))
def test_i1_i4_i7_i8_i11_random_logs_end_as_the_source_did(opened: tuple[Harness, Any], seed: int) -> None:
    rand = random.Random(seed)
    mode = rand.choice([Mode.UPSERT, Mode.SOFT_DELETE])
    schema = replace(ITEMS, table=TableId("logs", f"t{next(COUNTER)}"))
    ordering = rand.choice([BY_RECORD, BY_RECORD, Ordering(minor=True), Ordering(True, Ties.OFFSET)])
    target = Target(schema.table, "logs", schema.table.name, mode, rand.random() < 0.7, ordering)
    source = Source(rand, ordering)
    source.run(rand.choice([5, 30, 80]))
    logs = source.delivered()
    memory = MemoryHarness(None)  # type: ignore[arg-type]
    houses = [Warehouse(memory, memory.open(), target).start(schema), Warehouse(*opened, target).start(schema)]
    next_offset = dict.fromkeys(range(PARTITIONS), 0)
    while any(next_offset[p] < len(logs[p]) for p in next_offset):
        sizes = {p: rand.choice([0, 0, 1, 2, 5, 30]) for p in next_offset}
        parts = {p: (at, logs[p][at : at + sizes[p]]) for p, at in next_offset.items() if logs[p][at : at + sizes[p]]}
        if not parts:
            continue
        delta = folded(schema, parts, target)
        crash = rand.randrange(24) if rand.random() < 0.2 else None
        for house in houses:
            house.merge(delta, source, crash)
        next_offset.update({p: start + len(events) for p, (start, events) in parts.items()})
        watermark = memory.open().kept(target).watermark or (-1, 0)
        states = [house.check(schema, watermark) for house in houses]
        assert states[0] == states[1]
        for row in states[0]["ledger"]:
            assert sum(row[n] for n in ("applied", "folded", "duplicate", "parked", "filtered")) == row["stop"] - row["start"]
    UNKNOWN[0] += houses[0].unknown
    found = {r["id"]: (r["name"], r["body"]) for r in states[0]["rows"] if not r.get("_cdc_deleted")} if any(logs) else {}
    assert found == source.rows
    replay(houses, logs, schema, source)


def replay(houses: list[Warehouse], logs: list[list[Event]], schema: TableSchema, source: Source) -> None:
    """I16: the whole log once more, from another topic, changes no row and counts as duplicate (or folded, within the batch)."""
    parts = {p: (0, events) for p, events in enumerate(logs) if events}
    if not parts:
        return
    for house in houses:
        delta = folded(schema, parts, house.target)
        before = house.check(schema, WORST)
        house.log = replace(LOG, topic_id="made again")
        house.take()
        house.merge(delta, source, None)
        after = house.check(schema, WORST)
        assert after["rows"] == before["rows"]
        assert after["deleted"] == before["deleted"]
        assert all(row["applied"] == 0 for row in after["ledger"][len(before["ledger"]) :])


def folded(schema: TableSchema, parts: dict[int, tuple[int, Sequence[Event]]], target: Target) -> Delta:
    batch_id = f"b{sum(start for start, _ in parts.values())}"
    made = [batch(schema, parts)]
    return fold(made, batch_id=batch_id, target=target, generations=lambda p, o, r: generations(p, o, r, 0, {}, 0))


def test_the_logs_above_met_unknown_values() -> None:
    """Otherwise the way through UnsentUnknown was not tried."""
    assert UNKNOWN[0] > 0
