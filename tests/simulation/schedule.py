"""Schedules: what happens to the world, step by step. One seed makes one; it is text that can be replayed and cut down.

The first line says what there is, each further line is one step. What a step leaves to chance it draws from a seed of its own, so that a
schedule stays the same one when other steps are taken out of it. A step that makes no sense any more does nothing.
"""

from __future__ import annotations

import json
import logging
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial

import structlog

from cdc_service.core.errors import CdcError
from cdc_service.core.order import BY_RECORD, Ordering, Ties
from cdc_service.core.types import Mode, TableId, Target
from cdc_service.failpoints import acting
from tests.simulation.group import Group, Worker, turn
from tests.simulation.invariants import Invariants
from tests.simulation.warehouses import Warehouse, Warehouses
from tests.simulation.world import Violation, World

HEALING_TURNS = 300
CURED_AT = 7
"""The turn at which a person does at the source what tables that it stopped say; these go on by themselves."""
POLL_BYTES_MAX = 60_000
"""What one poll of this Kafka brings at most, decoded."""
ACTIONS = ("crash", "freeze", "pause", "raise", "lose")


@dataclass(frozen=True)
class Setting:
    """What a schedule begins with."""

    modes: tuple[tuple[str, Mode], ...] = (("t0", Mode.UPSERT),)
    partitions: int = 3
    memory: int = 10**9
    rows: int = 0
    """How many rows each table has before the connector begins; a transaction that changes the first ones is open then."""
    alone: bool = True
    """Whether one worker is left at the end."""
    ties: str = ""
    """Whether statements of a transaction share positions, and what orders them then: minor, or offset."""
    direct: bool = False
    """Whether the service reads the rows of tables itself: the connector begins without a snapshot."""

    @property
    def ordering(self) -> Ordering:
        return {"": BY_RECORD, "minor": Ordering(minor=True), "offset": Ordering(True, Ties.OFFSET)}[self.ties]

    def __str__(self) -> str:
        tables, more = ",".join(f"{name}:{mode.value}" for name, mode in self.modes), f" ties={self.ties}" if self.ties else ""
        more += " direct=1" if self.direct else ""
        return f"begin tables={tables} partitions={self.partitions} memory={self.memory} rows={self.rows} alone={int(self.alone)}{more}"

    @staticmethod
    def of(line: str) -> Setting:
        words = dict(word.split("=") for word in line.split()[1:])
        tables = [one.split(":") for one in words["tables"].split(",")]
        modes = tuple((name, Mode(mode)) for name, mode in tables)
        numbers = (int(words[name]) for name in ("partitions", "memory", "rows"))
        return Setting(modes, *numbers, words["alone"] == "1", words.get("ties", ""), words.get("direct") == "1")


@dataclass(frozen=True)
class Step:
    """``faults`` are (number of an effect within a turn, what happens there, the effect's name, for people)."""

    verb: str
    words: tuple[str, ...] = ()
    faults: tuple[tuple[int, str, str], ...] = ()

    def __str__(self) -> str:
        faults = [f"{action}@{at}({name})" for at, action, name in self.faults]
        return " ".join([self.verb, *self.words, *faults])

    @staticmethod
    def of(line: str) -> Step:
        verb, *words = line.split()
        found = [re.fullmatch(r"([a-z]+)@([0-9]+)\((.*)\)", word) for word in words]
        faults = tuple((int(m[2]), m[1], m[3]) for m in found if m)
        return Step(verb, tuple(w for w, m in zip(words, found, strict=True) if not m), faults)


@dataclass(frozen=True)
class Schedule:
    setting: Setting
    steps: tuple[Step, ...]

    def __str__(self) -> str:
        return "\n".join(map(str, (self.setting, *self.steps)))

    @staticmethod
    def of(text: str) -> Schedule:
        first, *rest = [line.split("#")[0].strip() for line in text.strip().splitlines() if line.split("#")[0].strip()]
        return Schedule(Setting.of(first), tuple(Step.of(line) for line in rest))


@dataclass
class Outcome:
    schedule: Schedule
    violation: str = ""
    commits: int = 0
    happened: Counter[str] = field(default_factory=Counter)
    passed: Counter[str] = field(default_factory=Counter)
    checked: Counter[str] = field(default_factory=Counter)


class Simulation:
    """One world, into which steps are put."""

    def __init__(self, setting: Setting, warehouses: Warehouses) -> None:
        self.setting = setting
        self.world = World(dict(setting.modes), setting.partitions, setting.ordering)
        targets = [Target(TableId("public", name), "mart", name, mode, ordering=setting.ordering) for name, mode in setting.modes]
        self.invariants = Invariants(self.world, targets)
        self.warehouse: Warehouse = warehouses.make(self.world, self.invariants.check)
        self.invariants.warehouse = self.warehouse
        how = "direct" if setting.direct else "connector"
        self.group = Group(self.world, lambda name: Worker(name, self.world, self.warehouse, targets, setting.memory, how))
        self.targets = targets
        self.backed_up = False
        self.broken: Step | None = None
        """The step in which an invariant was found broken."""
        self.kinds: frozenset[str] = frozenset()
        """The kinds of faults that are on, for who makes the steps."""
        source = self.world.source
        for name, _ in setting.modes:
            for key in range(setting.rows):
                source.write(0, "insert", name, key, key)
        source.commit(0)
        for name, _ in setting.modes[: setting.rows]:
            source.write(1, "update", name, 0, 0)
            source.write(1, "delete", name, 1, 0)
        if setting.direct:
            self.world.connector.begin_at_the_end()
        else:
            self.world.connector.begin()

    def apply(self, step: Step) -> Step | None:
        """Does it. What was really done: with the faults that came about, or None where it made no sense."""
        seed = next((int(w) for w in step.words if w.isdigit()), 0)
        self.world.draw = random.Random(f"{step.verb}/{seed}")
        before = self.world.source.lsn
        do: Callable[[Step], bool | Step] = getattr(self, f"_{step.verb}")
        try:
            done = do(step)
        except Violation:
            worker = self.group.named(step.words[0]) if step.words else None
            self.broken = replace(step, faults=tuple(worker.running.hit) if worker is not None else ())
            raise
        if self.world.lagging is not None:
            self.world.lagging = before
        self.group.settle()
        return done if isinstance(done, Step) else step if done else None

    # The source

    def _write(self, step: Step) -> bool:
        slot, what, table, key, other = step.words
        return self.world.source.write(int(slot), what, table, int(key), int(other))

    def _commit(self, step: Step) -> bool:
        return self.world.source.commit(int(step.words[0]))

    def _abort(self, step: Step) -> bool:
        return self.world.source.abort(int(step.words[0]))

    def _truncate(self, step: Step) -> bool:
        return self._counted("truncate", self.world.source.truncate(step.words[0]))

    def _add_column(self, step: Step) -> bool:
        table, fill = step.words
        return self._counted("column added", self.world.source.add_column(table, None if fill == "null" else fill))

    def _drop_column(self, step: Step) -> bool:
        return self._counted("column dropped", self.world.source.drop_column(step.words[0]))

    def _catalog(self, step: Step) -> bool:
        slot, what, table, *words = step.words
        if what == "detach" and not self._knows_partition(table):
            return False  # One that came and went unseen leaves no trace in PostgreSQL's catalog either.
        done = self.world.source.alter(None if slot == "-" else int(slot), what, table, *words)
        return self._counted(f"catalog: {what}", done)

    def _knows_partition(self, table: str) -> bool:
        parts, known = self.world.source.tables[table].shape.parts, self.warehouse.state(self._target(table)).identity
        return bool(parts and known) and not self.backed_up and parts[-1].link in {p["link"] for p in json.loads(known)["parts"]}

    def _lag(self, step: Step) -> bool:
        self.world.lagging = self.world.source.lsn
        return True

    def _source_clock(self, step: Step) -> bool:
        self.world.source.step_clock(int(step.words[0]))
        return self._counted("clock stepped", True)

    # The connector

    def _deliver(self, step: Step) -> bool:
        return bool(self.world.connector.deliver(int(step.words[0])))

    def _store(self, step: Step) -> bool:
        self.world.source.heartbeat()
        self.world.connector.store()
        return True

    def _restart_connector(self, step: Step) -> bool:
        c = self.world.connector
        again = c.stored is not None and not c.reading
        if (again and c.stored == c.at) or not (again or self._topics_here()):
            return False
        c.restart()
        return self._counted("tail repeated" if again else "snapshot begun anew", True)

    def _forget_offsets(self, step: Step) -> bool:
        """Somebody removed the connector's offsets: it begins anew, though it streamed. A table that is empty then sends nothing that
        would tell, and the service does not notice."""
        if not self._topics_here() or not all(map(self.world.source.seen, self.world.source.tables)):
            return False
        if self.setting.direct:
            self.world.connector.restart()  # Without a snapshot it reads its slot, which is where it was stored.
        else:
            self.world.connector.begin()
        return self._counted("offsets of the connector removed", True)

    def _topics_here(self) -> bool:
        return all(topic.here for topic in self.world.broker.topics.values())

    def _poison(self, step: Step) -> bool:
        self.world.connector.poison += 1
        return self._counted("poison", True)

    def _lose_signal(self, step: Step) -> bool:
        self.world.lost_signals += 1
        return True

    # Kafka

    def _retain(self, step: Step) -> bool:
        table, partition, left = step.words[0], int(step.words[1]), int(step.words[2])
        topic = self.world.broker.topics[self.world.broker.names[table]]
        if partition >= len(topic.partitions):
            return False
        low = max(topic.low[partition], len(topic.partitions[partition]) - left)
        moved = low != topic.low[partition]
        topic.low[partition] = low
        return self._counted("retention", moved)

    def _delete_topic(self, step: Step) -> bool:
        topic = self.world.broker.topics[self.world.broker.names[step.words[0]]]
        if not topic.here or not self.warehouse.checkpoints(self._target(step.words[0])):
            return False  # Of a topic that went before the service ever saw it nobody can know.
        topic.here = False
        return self._counted("topic deleted", True)

    def _make_topic(self, step: Step) -> bool:
        name = self.world.broker.names[step.words[0]]
        topic = self.world.broker.topics[name]
        if topic.here:
            return False
        self.world.broker.create(name, len(topic.partitions))
        return self._counted("topic made again", True)

    def _add_partition(self, step: Step) -> bool:
        topic = self.world.broker.topics[self.world.broker.names[step.words[0]]]
        if not topic.here or len(topic.partitions) >= 5:
            return False
        topic.partitions.append([])
        topic.low.append(0)
        self.group.share(int(step.words[1]))
        return self._counted("partition added", True)

    def _share(self, step: Step) -> bool:
        self.group.share(int(step.words[0]))
        return self._counted("rebalance", True)

    # Servers that are down

    def _down(self, step: Step) -> bool:
        self.world.down.add(step.words[0])
        return True

    def _up(self, step: Step) -> bool:
        there = step.words[0] in self.world.down
        self.world.down.discard(step.words[0])
        return there

    # The warehouse

    def _drop_target(self, step: Step) -> bool:
        return self._counted("target dropped", self.warehouse.drop(self._target(step.words[0])))

    def _forget_checkpoint(self, step: Step) -> bool:
        target, topic = self._target(step.words[0]), self.world.broker.topics[self.world.broker.names[step.words[0]]]
        if not topic.here or any(log != topic.log for log, _ in self.warehouse.checkpoints(target)):
            return False  # A topic made again and nothing that remembers the old one: nobody can know.
        if self.world.connector.attempts > 1:
            return False  # With the checkpoint goes what was known of a snapshot that was begun twice.
        if not self._live_rows(target):
            return False  # Nobody would be asked: an empty target without a checkpoint is read from the beginning, and fills again.
        done, seen = self.warehouse.forget(target), self.invariants.seen[target]
        if done:  # What is read from the beginning is read again by right; who was about to take it goes on where it saw it.
            seen.skips |= {(*place, at) for place, end in seen.at.items() for at in range(end + 1)}
            seen.at.clear()
        return self._counted("checkpoint removed", done)

    def _live_rows(self, target: Target) -> int:
        schema = self.warehouse.schema(target)
        if schema is None:
            return 0
        rows = self.warehouse.rows(target, schema)
        return sum(not row.get("_cdc_deleted") for row in rows.to_pylist())

    def _target(self, table: str) -> Target:
        return next(t for t in self.targets if t.source.name == table)

    def _backup(self, step: Step) -> bool:
        if not all(self.warehouse.checkpoints(target) for target in self.targets):
            return False  # Of a day before the service knew its topics.
        self.warehouse.backup()
        self.invariants.backup()
        self.backed_up = True
        return True

    def _restore(self, step: Step) -> bool:
        """The service is stopped for it."""
        if not self.warehouse.restore():
            return False
        self.group.kill_all()
        self.invariants.restored()
        return self._counted("warehouse restored", True)

    # Workers

    def _join(self, step: Step) -> bool:
        if len(self.group.workers) >= self.warehouse.workers_max:
            return False
        self.group.join(int(step.words[0]))
        return self._counted("join", True)

    def _turn(self, step: Step) -> bool | Step:
        if not self.group.workers:
            self.group.join(int(step.words[1]))
        worker = self.group.named(step.words[0])
        if worker is None or worker in self.group.frozen:
            return False
        self._run(worker, turn(worker, "look" in step.words), step)
        return replace(step, faults=tuple(worker.running.hit))

    def _run(self, worker: Worker, what: Callable[[], object], step: Step) -> None:
        alive = worker.go(what, {at: action for at, action, _ in step.faults})
        seed = int(step.words[1])
        if not alive:
            self.group.left(worker, seed)
        elif worker.running.frozen:
            self.group.freeze(worker, seed)
        elif not worker.busy and worker.line.buffered_bytes > self.setting.memory + POLL_BYTES_MAX:
            raise Violation(f"I25: {worker.line.buffered_bytes} bytes are buffered")

    def _kill(self, step: Step) -> bool:
        worker = self.group.named(step.words[0])
        if worker is None:
            return False
        worker.end()
        self.group.left(worker, int(step.words[1]))
        return self._counted("kill", True)

    def _wake(self, step: Step) -> bool | Step:
        worker = self.group.named(step.words[0])
        if worker is None or worker not in self.group.frozen or len(self.group.workers) >= self.warehouse.workers_max:
            return False
        self.world.happened["zombie woke"] += 1
        self.group.wake(worker, int(step.words[1]))
        self._run(worker, lambda: None, step)
        return replace(step, faults=tuple(worker.running.hit))

    def _operate(self, step: Step) -> bool | Step:
        worker = self.group.named(step.words[0])
        if worker is None or worker.busy or not any(t.state.stopped for t in worker.tables):
            return False
        self._run(worker, worker.operate, step)
        return replace(step, faults=tuple(worker.running.hit))

    def _act(self, step: Step) -> bool | Step:
        """A person pauses a table, or has it read anew."""
        worker = self.group.named(step.words[0])
        if worker is None or worker.busy:
            return False
        action, table = step.words[2:]
        self._run(worker, lambda: worker.act(action, table), step)
        return replace(step, faults=tuple(worker.running.hit))

    def _wait(self, step: Step) -> bool:
        self.world.at += int(step.words[0])
        return True

    def _wall_clock(self, step: Step) -> bool:
        self.world.wall_offset += int(step.words[0])
        return self._counted("clock stepped", True)

    def _counted(self, what: str, done: bool) -> bool:
        self.world.happened[what] += done
        return done

    # The end

    def heal(self) -> None:
        """No more faults (I24): within so many turns every lag is 0 and every target equal."""
        world, group = self.world, self.group
        world.down.clear()
        world.lost_signals = world.connector.poison = 0
        world.lagging = None
        world.draw = random.Random("heal")
        for worker in list(group.frozen):
            if len(group.workers) < self.warehouse.workers_max:
                group.wake(worker, 0)
            else:
                worker.end()
                group.left(worker, 0)
        for slot in list(world.source.open):
            world.source.commit(slot)
        for name, _ in self.setting.modes:
            # That a target is gone shows with the next change of its table.
            world.source.write(0, "update" if world.source.tables[name].rows.get(0) else "insert", name, 0, 0)
        world.source.commit(0)
        for name, _ in self.setting.modes:
            self._make_topic(Step("make_topic", (name,)))
        if not group.workers:
            group.join(0)
        for number in range(HEALING_TURNS):
            self._heal_once(number)
            if self._healed():
                self.invariants.check_end()
                return
        states = [
            (
                w.name,
                [
                    (str(t.source), t.state.name, t.trouble and t.trouble.message, dict(t.partitions.checkpoints), dict(t.partitions.ends))
                    for t in w.tables
                ],
            )
            for w in group.workers
        ]
        raise Violation(f"I24: not caught up after {HEALING_TURNS} turns: {states}")

    def _heal_once(self, number: int) -> None:
        world, group = self.world, self.group
        world.at += 5.0
        if number % 5 == 0:
            world.source.heartbeat()
        world.connector.deliver(10_000)
        world.connector.store()
        for worker in list(group.workers):
            if not worker.go(turn(worker, True), {}):
                group.left(worker, number)
        group.settle()
        if number == CURED_AT:
            world.source.cure()
        if number == 10 and self.setting.alone:
            for worker in group.workers[1:]:
                worker.end()
                group.left(worker, number)
        if number % 5 == 4:
            for worker in group.workers:
                worker.go(partial(worker.operate, patient=True), {})
                for table in worker.tables:
                    # The documented way out of the quarantine.
                    if table.partitions.leads and table.state.name == "streaming" and self.invariants.seen[table.target].parked:
                        worker.go(lambda worker=worker, table=table: worker.act("resync", table.source.name), {})

    def _healed(self) -> bool:
        ends = self.world.broker.describe()
        for target in self.targets:
            topic = self.world.broker.names[target.source.name]
            leads = [t for w in self.group.workers for t in w.tables if t.target == target and t.partitions.leads]
            if len(leads) != 1:
                return False
            (table,) = leads
            highs = {p: high for p, (_, high) in ends[topic].ends.items()}
            through = table.state.name == "streaming" and table.state.now.complete_through == self.world.source.lsn
            if not (through and table.partitions.passed(highs)) or self.invariants.seen[target].parked:
                return False
            try:
                table.state.save()
            except CdcError:
                return False
        return True


def execute(schedule: Schedule, warehouses: Warehouses) -> Outcome:
    """Replays a schedule and heals."""

    def play(simulation: Simulation) -> Iterator[Step]:
        for step in schedule.steps:
            if simulation.apply(step) is not None:
                yield step

    return play_out(schedule.setting, warehouses, play)


def play_out(setting: Setting, warehouses: Warehouses, play: Callable[[Simulation], Iterator[Step]]) -> Outcome:
    steps: list[Step] = []
    with quiet():
        simulation = Simulation(setting, warehouses)
        violation = ""
        try:
            with acting(simulation.world.failpoint):
                steps.extend(play(simulation))
                simulation.heal()
        except Violation as found:
            violation = str(found)
            steps.extend([simulation.broken] if simulation.broken is not None else [])
        finally:
            simulation.world.current = None
            simulation.group.kill_all()
            simulation.warehouse.close()
    world = simulation.world
    return Outcome(
        Schedule(setting, tuple(steps)),
        violation,
        simulation.invariants.commits,
        world.happened,
        world.passed,
        simulation.invariants.checked,
    )


@contextmanager
def quiet() -> Iterator[None]:
    """The service logs each fault; thousands of schedules need none of it."""
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL), cache_logger_on_first_use=False)
    try:
        yield
    finally:
        structlog.configure(**before)


def shrink(schedule: Schedule, fails: Callable[[Schedule], bool]) -> Schedule:
    """The schedule with as many steps and faults taken out as it can lose and still fail (ddmin)."""
    steps = list(schedule.steps)
    size = max(1, len(steps) // 2)
    while steps:
        at, less = 0, False
        while at < len(steps):
            rest = steps[:at] + steps[at + size :]
            if fails(replace(schedule, steps=tuple(rest))):
                steps, less = rest, True
            else:
                at += size
        if size == 1 and not less:
            break
        size = max(1, size // 2)
    for number, step in enumerate(steps):
        for fault in step.faults:
            milder = replace(steps[number], faults=tuple(f for f in steps[number].faults if f != fault))
            if fails(replace(schedule, steps=(*steps[:number], milder, *steps[number + 1 :]))):
                steps[number] = milder
    return replace(schedule, steps=tuple(steps))
