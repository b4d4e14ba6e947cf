"""A circuit for each table: one whose merges fail for ever, in whatever way, neither stops the others nor slows them, nor takes their
memory; and one that parks too much stops alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
import pytest

from cdc_service.config.models import Flush, Limits
from cdc_service.config.resolve import TableConfig
from cdc_service.core.errors import CdcError, CommitUnknown, Fenced, TableStopped, Unavailable
from cdc_service.core.types import ChangeBatch, Delta, LogId, Op, RawBatch, Receipt, Rejected, Span, TableId, TableSchema, Target
from cdc_service.pipeline.commands import Commands
from cdc_service.pipeline.context import Context
from cdc_service.pipeline.poll_loop import PollLoop
from cdc_service.pipeline.table_task import TableTask
from cdc_service.ports.feed import Assignment, Polled, TopicFacts
from cdc_service.testing.memory import MemoryDestination
from tests.conformance.harness import ITEMS
from tests.property.test_merge_logs import Event, batch

BAD, GOOD = "public.bad", "public.good"
RECORDS = 300
LITTLE = 3000
"""Memory in bytes that 30 records of one table fill."""


class Destination(MemoryDestination):
    """Its merges into ``bad`` raise what the test says."""

    error: Callable[[], Exception] | None = None
    tried = 0

    def merge(self, delta: Delta, epochs: Mapping[int, int], log: LogId, table: TableSchema) -> Receipt:
        if str(delta.target) == BAD and self.error is not None:
            self.tried += 1
            raise self.error()
        return super().merge(delta, epochs, log, table)


@dataclass
class World:
    """Clock, Kafka, decoder and schema of two tables of one partition each; a record's offset is its key."""

    at: float = 0.0
    broken: set[tuple[str, int]] = field(default_factory=set)
    positions: dict[str, int] = field(default_factory=dict)
    paused: set[str] = field(default_factory=set)
    records: dict[str, int] = field(default_factory=lambda: {BAD: RECORDS, GOOD: RECORDS})
    polled: int = 10
    assignment: Assignment | None = None

    def monotonic(self) -> float:
        return self.at

    def wall_us(self) -> int:
        return int(self.at * 1e6)

    def chance(self) -> float:
        return 0.5

    def join(self, assignment: Assignment) -> World:
        self.assignment = assignment
        return self

    def describe(self, names: Sequence[str]) -> Mapping[str, TopicFacts]:
        return {name: TopicFacts(LogId("cluster", name, f"id of {name}"), {0: (0, self.records[name])}) for name in names}

    def topic_ids(self, names: Sequence[str]) -> Mapping[str, str]:
        return {name: f"id of {name}" for name in names}

    def poll(self, records_max: int, seconds: float) -> Polled:
        self.at += 0.3
        if self.assignment is not None:
            begin = self.assignment.assigned([(BAD, 0), (GOOD, 0)])
            self.positions |= {topic: offset or 0 for (topic, _), offset in begin.items()}
            self.assignment = None
            return Polled()
        found = []
        for topic, start in self.positions.items():
            stop = min(self.records[topic], start + self.polled)
            if topic not in self.paused and stop > start:
                self.positions[topic] = stop
                nothing = pa.nulls(stop - start, pa.binary())
                spans = (Span(0, start, stop, stop - start),)
                found.append(RawBatch(topic, nothing, nothing, pa.nulls(0), pa.nulls(0), spans, lambda i: ()))
        return Polled(found)

    def decode(self, raw: RawBatch) -> list[ChangeBatch]:
        (span,) = raw.spans
        events = [Event(Op.CREATE, 0, 100 + offset, offset, "x" * 100, "y") for offset in range(span.start, span.stop)]
        made = batch(replace(ITEMS, table=TableId(*raw.topic.split("."))), {0: (span.start, events)})
        bad = [o for o in range(span.start, span.stop) if (raw.topic, o) in self.broken]
        rejected = [Rejected(0, o, None, None, (), f'["{o}"]', "decode", "bad_json", "not JSON") for o in bad]
        return [made.filter(pa.array([o not in bad for o in range(span.start, span.stop)]), rejected)]

    def seek(self, topic: str, partition: int, offset: int) -> None:
        self.positions[topic] = offset

    def pause(self, where: Sequence[tuple[str, int]]) -> None:
        self.paused |= {topic for topic, _ in where}

    def resume(self, where: Sequence[tuple[str, int]]) -> None:
        self.paused -= {topic for topic, _ in where}

    def commit_offsets(self, offsets: Mapping[tuple[str, int], int]) -> None:
        pass

    def rejoin_group(self) -> None:
        pass


def made(memory: int = 10**9, **limits: Any) -> tuple[World, Destination, PollLoop, Commands]:
    world, destination = World(), Destination()
    anything: Any = world
    limit = Limits(memory=memory, **limits)
    context = Context(destination, anything, anything, anything, lambda table: None, lambda table: (), anything, world, limit)
    tables, flush = [], Flush(rows=20, bytes=10**6, seconds=0.5)
    for name in (BAD, GOOD):
        source = TableId(*name.split("."))
        tables.append(TableTask(TableConfig(source, Target(source, *name.split(".")), name, flush, "refuse", name), context))
    line = PollLoop(tables, context, anything, context.identities, anything.join, memory=memory, clock=world)
    return world, destination, line, Commands(tables, context, anything, lambda table: None, dict)


def turns_to_the_end(line: PollLoop, table: TableTask) -> int:
    """How many turns the line takes until all records of the table are merged."""
    for turn in range(1, 1000):
        line.read(0)
        line.merge()
        if table.partitions.checkpoints.get(0) == table.partitions.ends.get(0):
            return turn
    raise AssertionError(
        f"{table.source} is at {table.partitions.checkpoints} of {table.partitions.ends}: {table.state.name}, {table.trouble}"
    )


WAYS: dict[str, Callable[[], Exception]] = {
    "unavailable": lambda: Unavailable("locked by somebody"),
    "fenced": lambda: Fenced("another writer"),
    "unknown": lambda: CommitUnknown("reply lost"),
    "refused": lambda: CdcError("a trigger refuses the rows", code="mismatch"),
    "stopped": lambda: TableStopped("a column is gone", state="drift"),
    "unexpected": lambda: ZeroDivisionError("a defect"),
}


@pytest.mark.parametrize(("way", "memory"), [*((way, 10**9) for way in WAYS), ("unavailable", LITTLE)])
def test_a_table_whose_merges_fail_for_ever_holds_nobody_back(way: str, memory: int) -> None:
    _, _, line, _ = made()
    alone = turns_to_the_end(line, line.tables[1])
    world, destination, line, _ = made(memory)
    destination.error, world.polled = WAYS[way], 30
    bad, good = line.tables
    assert turns_to_the_end(line, good) <= alone + 2 + 20 * (memory == LITTLE)
    for _ in range(1000):
        line.read(0)
        line.merge()
        assert line.buffered_bytes <= memory + 4 * LITTLE
    world.records[GOOD] += RECORDS
    good.partitions.ends = {0: world.records[GOOD]}
    assert turns_to_the_end(line, good) <= alone + 2 + 20 * (memory == LITTLE), "however long the other has failed"
    assert destination.table_rows(good.target) == 2 * RECORDS
    assert not good.state.stopped
    if way in ("unavailable", "fenced", "unknown"):
        assert not bad.state.stopped, "nobody has to act"
        assert 8 <= destination.tried <= 40, "in five minutes, with pauses of up to half a minute"
        destination.error = None
        turns_to_the_end(line, bad)
        assert destination.table_rows(bad.target) == RECORDS
    else:
        assert bad.state.stopped
        assert destination.tried == 1, "repeating it heals nothing"
        assert bad.state.now.error_message


@pytest.mark.parametrize(
    ("limits", "first", "more"), [({"quarantine_rows": 5, "quarantine_share": 1}, 5, 5), ({"quarantine_share": 0.01}, 3, 60)]
)
def test_a_table_that_parks_too_much_stops_alone_and_goes_on_when_asked(limits: dict[str, Any], first: int, more: int) -> None:
    """By the number that waits, or by its share of the last records."""
    world, destination, line, control = made(**limits)
    bad, good = line.tables
    world.polled, world.records[BAD] = 100, 3000
    world.broken = {(BAD, o) for o in (*range(first), *range(2000, 2000 + more))}
    turns_to_the_end(line, good)
    for _ in range(100):
        line.read(0)
        line.merge()
    assert (bad.state.name, bad.state.now.error_code) == ("quarantine_stopped", "quarantine_stopped")
    assert destination.totals(bad.target).waiting == {"bad_json": first}, "it stops before it parks more"
    assert bad.tally.waiting == {"bad_json": first}
    assert bad.partitions.checkpoints[0] <= 2000
    assert not good.state.stopped
    assert control.act("resume", bad, {})["state"] != "quarantine_stopped"
    turns_to_the_end(line, bad)
    assert destination.totals(bad.target).waiting == {"bad_json": first + more}
