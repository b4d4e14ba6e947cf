"""The workers of the simulation and what the broker thinks of them: who has which partition, who is frozen, who is gone.

A worker runs the service's own loop in a coroutine, which an effect may leave: then others run before it goes on.
"""

from __future__ import annotations

import contextlib
import random
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import greenlet
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cdc_service.config.models import Flush, Limits, Snapshot
from cdc_service.config.resolve import TableConfig
from cdc_service.core.errors import CdcError, Unavailable
from cdc_service.core.identity import HINDRANCES
from cdc_service.core.order import Ordering
from cdc_service.core.types import Headers, Mode, Target
from cdc_service.kafka.records import Heads, Taken
from cdc_service.pipeline.commands import Commands
from cdc_service.pipeline.context import Context
from cdc_service.pipeline.loading import Item
from cdc_service.pipeline.poll_loop import PollLoop
from cdc_service.pipeline.table_task import TableTask
from cdc_service.pipeline.watermarks import Watermarks
from cdc_service.ports.capture import Facts
from cdc_service.ports.feed import Assignment, PartitionError, Polled
from connectors.formats.debezium_json import DebeziumJsonDecoder
from connectors.formats.layout import schema_length
from connectors.sources.postgresql.events import PostgresEvents
from tests.simulation.outside import Record
from tests.simulation.warehouses import Warehouse
from tests.simulation.world import Crash, Running, Violation, World
from tests.support.envelopes import PLACEHOLDER

Where = tuple[str, int]
LIMITS = Limits(memory=10**9, quarantine_rows=6, quarantine_share=0.5, snapshot_seconds=0.5)


class InTurn:
    """pipeline.loading.Fetch: reads when it is asked, so that a schedule says what happens in between."""

    def __init__(self, items: Iterator[Item]) -> None:
        self.error: CdcError | None = None
        self._items = items

    def poll(self) -> Item | None:
        try:
            return next(self._items, None) if self.error is None else None
        except CdcError as error:
            self.error = error
            return None

    def end(self) -> None:
        """Whoever is left in the middle of a reading finds it as it was."""


class GroupLog:
    """ports.feed.Feed: one member of the group. ``given``, ``taken`` and ``lost`` are moves that its next poll tells it of."""

    def __init__(self, world: World, assignment: Assignment) -> None:
        self.world, self.assignment = world, assignment
        self.positions: dict[Where, int | None] = {}
        self.paused: set[Where] = set()
        self.given: set[Where] = set()
        self.taken: set[Where] = set()
        self.lost: set[Where] = set()
        self.heads = Heads(schema_length)

    def poll(self, records_max: int, seconds: float) -> Polled:
        self.world.at += self.world.draw.choice([0.0, 0.05, 0.4, 1.1])
        self.world.effect("kafka.poll", fails=False)
        self._tell()
        polled, read = Polled(), Taken(self.heads)
        if "kafka" in self.world.down:
            return polled
        for where, at in list(self.positions.items()):
            if where in self.paused or at is None or self.world.draw.random() < 0.3:
                continue
            topic = self.world.broker.topics[where[0]]
            if not topic.here:
                polled.errors.append(PartitionError(*where, "topic_gone", "unknown topic"))
                continue
            low, high = topic.facts.ends[where[1]] if where[1] < len(topic.partitions) else (0, 0)
            if not low <= at <= high:
                polled.errors.append(PartitionError(*where, "offset_out_of_range", "offset out of range"))
                continue
            records = topic.partitions[where[1]][at : at + self.world.draw.choice([1, 3, 20])]
            if records:
                read.add(*where, at, at + len(records), [Sent(record, at + place) for place, record in enumerate(records)])
                self.positions[where] = at + len(records)
        polled.batches += read.batches()
        return polled

    def _tell(self) -> None:
        """The moves that happened. A callback may be left in its middle, so each move is taken off before it is told."""
        while mine := sorted(self.lost & set(self.positions)):
            self.lost -= set(mine)
            self._drop(mine)
            self.assignment.lost(mine)
        while mine := sorted(self.taken & set(self.positions)):
            self.taken -= set(mine)
            self.assignment.revoked(mine)
            self._drop(mine)
        self.lost.clear()
        self.taken &= self.given  # A partition that it was not told of yet is revoked when it was.
        while new := sorted(self.given):
            begin = self.assignment.assigned(new)
            for where in new:
                self.positions[where] = begin[where]
                if begin[where] is None:
                    self.paused.add(where)
            self.given -= set(new)

    def _drop(self, where: Sequence[Where]) -> None:
        for one in where:
            self.positions.pop(one, None)
            self.paused.discard(one)

    def seek(self, topic: str, partition: int, offset: int) -> None:
        if (topic, partition) in self.positions or (topic, partition) in self.given:
            self.positions[topic, partition] = offset

    def pause(self, where: Sequence[Where]) -> None:
        self.paused |= {w for w in where if w in self.positions}

    def resume(self, where: Sequence[Where]) -> None:
        self.paused -= set(where)

    def commit_offsets(self, offsets: Mapping[Where, int]) -> None:
        self.world.broker.committed |= {w: o for w, o in offsets.items() if w in self.positions}

    def rejoin_group(self) -> None:
        """The world shares out anew by itself whenever partitions come."""

    def close(self) -> None:
        """Nobody calls it here: workers that end are killed."""


class Sent(NamedTuple):
    """A record as the client hands it over (kafka.records.Message)."""

    record: Record
    place: int

    def key(self) -> bytes | None:
        return self.record.key

    def value(self) -> bytes | None:
        return self.record.value

    def offset(self) -> int:
        return self.place

    def headers(self) -> Headers:
        return self.record.headers


class SharedPositions(PostgresEvents):
    """Of a source whose changes share positions: PostgreSQL's, and a number in each."""

    fields = PostgresEvents.fields.append(pa.field("row", pa.int64()))

    def __init__(self, ordering: Ordering) -> None:
        self.ordering = ordering

    def positions(self, source: pa.StructArray) -> tuple[pa.Array, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        commit, record, _ = super().positions(source)
        return commit, record, np.array(source.field("row").fill_null(0).to_numpy(zero_copy_only=False), np.int64)


class Worker:
    """One service process."""

    def __init__(self, name: str, world: World, warehouse: Warehouse, targets: Sequence[Target], memory: int, snapshot: Snapshot) -> None:
        self.name = name
        self.world = world
        self.warehouse = warehouse
        self.running = Running(name)
        self.facts: Facts | None = None
        self.destination = warehouse.open()
        self._coroutine: greenlet.greenlet | None = None
        topics = world.broker.names
        known = {topics[t.source.name]: warehouse.schema(t) or world.schema(t.source.name) for t in targets}
        logs = {topics[t.source.name] for t in targets if t.mode is Mode.APPEND}
        model = SharedPositions(world.source.ordering) if world.source.ordering.minor else PostgresEvents()
        decoder = DebeziumJsonDecoder(model, unavailable=PLACEHOLDER, known=known, logs=logs)
        context = Context(
            self.destination, world, decoder, world, world.schema_of, world.columns_of, world.identities, world, LIMITS, InTurn
        )
        flush = Flush(rows=5, bytes=10**6, seconds=1)
        configs = [TableConfig(t.source, t, topics[t.source.name], flush, "refuse", str(t.source), snapshot=snapshot) for t in targets]
        self.tables = [TableTask(config, context) for config in configs]
        self.logs: list[GroupLog] = []

        def join(assignment: Assignment) -> GroupLog:
            self.logs.append(GroupLog(world, assignment))
            return self.logs[0]

        self.line = PollLoop(self.tables, context, world, world.identities, join, memory=memory, clock=world)
        self.progress = Watermarks(self.line, lambda: self.facts, self.destination, world, world, world)
        self.control = Commands(self.tables, context, world, self.progress.begun, lambda: world.broker.committed)

    @property
    def log(self) -> GroupLog:
        return self.logs[0]

    @property
    def busy(self) -> bool:
        return bool(self.running.asleep)

    def turn(self) -> None:
        """As cdc_service.runtime.service does it."""
        with contextlib.suppress(Unavailable):
            self.line.read(0)
        self.progress.look()
        self.control.look()
        self.line.merge()

    def go(self, what: Callable[[], object], plan: Mapping[int, str]) -> bool:
        """Does ``what``, or goes on where it was left; whether the process still lives. Faults come at the effects that ``plan`` counts."""
        me, before = self.running, self.world.current
        me.plan, me.effects, me.hit = dict(plan), 0, []
        self.world.current = me
        try:
            if not self.busy:
                self._coroutine = greenlet.greenlet(what)
            assert self._coroutine is not None
            self._coroutine.switch()
            return True
        except Crash:
            self.end()
            return False
        except Exception as error:
            frames = "".join(traceback.format_tb(error.__traceback__)[-2:])
            raise Violation(f"I24: an error ends the process: {type(error).__name__}: {error}\n{frames}") from error
        finally:
            self.world.current = before

    def end(self) -> None:
        """Kill -9."""
        self.running.dead = True
        if self.busy and self._coroutine is not None:
            # The stack has to go; nothing on it may do anything more.
            before, self.world.current = self.world.current, None
            self._coroutine.throw(greenlet.GreenletExit)
            self.world.current = before
        self.running.asleep = ""
        self.warehouse.crashed(self.destination)

    def operate(self, *, patient: bool = False) -> None:
        """What an operator does who reads why a table stands still; ``patient``: not where the source is to be mended."""
        for table in self.tables:
            if not table.state.stopped or not table.partitions.own or (patient and table.state.now.error_code in HINDRANCES):
                continue
            action = "resync" if table.state.name in ("needs_resync", "schema_stopped", "drift") else "resume"
            body: dict[str, Any] = {}
            if table.state.name == "needs_decision":
                action, body = "adopt", {"how": "empty"}
            self._act(action, table, body)

    def act(self, action: str, table: str) -> None:
        for one in self.tables:
            if one.source.name == table:
                self._act(action, one, {})

    def _act(self, action: str, table: TableTask, body: Mapping[str, Any]) -> None:
        try:
            self.control.act(action, table, body)
            self.world.happened[f"operator: {action}"] += 1
        except CdcError:
            self.world.happened["operator: refused"] += 1


class Group:
    """Which worker has which partition, as the broker thinks. ``frozen`` are no members any more, and do not know it."""

    def __init__(self, world: World, open_worker: Callable[[str], Worker]) -> None:
        self.world = world
        self._open = open_worker
        self.workers: list[Worker] = []
        self.frozen: list[Worker] = []
        self.owner: dict[Where, Worker] = {}
        self._count = 0

    @property
    def places(self) -> list[Where]:
        return [(name, p) for name, topic in self.world.broker.topics.items() if topic.here for p in range(len(topic.partitions))]

    def join(self, seed: int) -> None:
        self.workers.append(self._open(f"w{self._count}"))
        self._count += 1
        self.share(seed)

    def named(self, name: str) -> Worker | None:
        return next((w for w in (*self.workers, *self.frozen) if w.name == name), None)

    def share(self, seed: int) -> None:
        """Each partition to a worker by chance. Who loses one gives it back with its next poll, or is told that it lost it before."""
        draw = random.Random(seed)
        for where in self.places if self.workers else ():
            new, lost = draw.choice(self.workers), draw.random() < 0.2
            old = self.owner.get(where)
            if lost and old is not new and old in self.workers and where in old.log.positions:
                old.log.lost.add(where)
            self.owner[where] = new
        self.settle()

    def settle(self) -> None:
        """A partition is given to its owner when no other member has it any more; who has it, and is not its owner, is to give it back."""
        for where in self.places:
            if not self.workers:
                return
            if self.owner.get(where) not in self.workers:
                self.owner[where] = self.workers[where[1] % len(self.workers)]
            owner, held = self.owner[where], False
            for worker in self.workers:
                log = worker.log
                if worker is owner or where in log.lost:
                    continue
                if where in log.given and not worker.busy:
                    log.given.discard(where)
                if where in log.positions or where in log.given:
                    log.taken.add(where)
                    held = True
            if not held and where not in owner.log.positions:
                owner.log.given.add(where)

    def left(self, worker: Worker, seed: int) -> None:
        """It is no member any more."""
        if worker in self.workers:
            self.workers.remove(worker)
        if worker in self.frozen:
            self.frozen.remove(worker)
        if not self.workers:
            self.join(seed)
        self.share(seed)

    def freeze(self, worker: Worker, seed: int) -> None:
        self.left(worker, seed)
        self.frozen.append(worker)

    def wake(self, worker: Worker, seed: int) -> None:
        """It still believes that it has its partitions, and goes on with what it was about, before it learns better."""
        self.frozen.remove(worker)
        worker.log.lost = set(worker.log.positions)
        worker.log.given.clear()
        worker.log.taken.clear()
        self.workers.append(worker)
        worker.running.frozen = False
        self.share(seed)

    def kill_all(self) -> None:
        for worker in (*self.workers, *self.frozen):
            worker.end()
        self.workers, self.frozen = [], []
        self.owner.clear()


def turn(worker: Worker, look: bool) -> Callable[[], object]:
    """One turn of the loop; ``look``: with what a watcher sees now."""
    if look:
        worker.facts = worker.world.look()
    return partial(worker.turn)
