"""Connector and Kafka of the simulation. Values are what Debezium writes: JSON with its schema, byte for byte as the decoder gets it."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import count

from cdc_service.core.types import Headers, LogId, Mode, Op
from cdc_service.ports.capture import Scans
from cdc_service.ports.feed import TopicFacts
from tests.simulation.catalog import Names
from tests.simulation.source import INCREMENTAL, INITIAL, KEYS, Event, Source
from tests.support.envelopes import PLACEHOLDER, Col, Table, dumps, text

CHUNK = 3
"""Keys that an incremental snapshot reads at once."""


@cache
def _wire(table: str, columns: Names) -> Table:
    key = next(name for role, name in columns if role == "id")
    return Table([Col(name, "int64", "INT8", optional=False) if name == key else text(name) for _, name in columns], (key,), table)


@dataclass(frozen=True, slots=True)
class Record:
    event: Event
    key: bytes | None
    value: bytes | None
    headers: Headers = ()


def encode(event: Event) -> Record:
    wire = _wire(event.table, event.columns)
    (own,) = wire.key
    key = None if event.key is None else wire.key_of({own: event.key})
    headers: list[tuple[str, bytes | None]] = []
    if event.old is not None:
        headers.append(("__debezium.oldkey", dumps({own: event.old})))
    if event.new is not None:
        headers.append(("__debezium.newkey", dumps({own: event.new})))
    if event.tombstone:
        return Record(event, key, None, headers)
    where = {"lsn": event.lsn, "ts_us": event.us, "sequence": f'["{event.sequence}","{event.lsn}"]' if event.sequence else None}
    where["row"] = event.minor
    if event.phase == INITIAL:
        where |= {"snapshot": "true", "sequence": f'[null,"{event.lsn}"]'}
    elif event.phase == INCREMENTAL:
        where |= {"snapshot": "incremental", "lsn": None}
    op = "x" if event.poison else "rcudt"[event.op]
    after = None if event.row is None else {name: event.row.get(role) for role, name in event.columns}
    if after is not None and event.unsent:
        after[dict(event.columns)["body"]] = PLACEHOLDER
    image = {name: event.key if name == own else None for _, name in event.columns} if event.op is Op.DELETE else None
    return Record(event, key, wire.value(op, after, before=image, **where), headers)  # type: ignore[arg-type]


@dataclass
class Topic:
    """``partitions`` hold everything that was ever written, ``low`` what retention has left of it."""

    log: LogId
    partitions: list[list[Record]]
    low: list[int]
    here: bool = True

    @property
    def facts(self) -> TopicFacts:
        return TopicFacts(self.log, {p: (self.low[p], len(log)) for p, log in enumerate(self.partitions)})


class Broker:
    def __init__(self, names: Mapping[str, str], partitions: int) -> None:
        """``names`` gives each table's topic."""
        self.names = names
        self._ids = count(1)
        self.topics: dict[str, Topic] = {}
        self.all: dict[str, Topic] = {}
        """Also those that were deleted, by their ids."""
        self.committed: dict[tuple[str, int], int] = {}
        self._sent = 0
        for name in names.values():
            self.create(name, partitions)

    def create(self, name: str, partitions: int) -> None:
        topic = Topic(LogId("cluster", name, f"topic-{next(self._ids)}"), [[] for _ in range(partitions)], [0] * partitions)
        self.topics[name] = self.all[topic.log.topic_id] = topic

    def describe(self) -> dict[str, TopicFacts]:
        return {name: topic.facts for name, topic in self.topics.items() if topic.here}

    def takes(self, table: str) -> bool:
        return self.topics[self.names[table]].here

    def send(self, event: Event) -> None:
        topic = self.topics[self.names[event.table]]
        self._sent += 1
        place = self._sent if event.key is None else event.key
        topic.partitions[place % len(topic.partitions)].append(encode(event))


@dataclass
class Scan:
    """An incremental snapshot that was asked for: ``left`` are the keys still to be read."""

    id: str
    table: str
    left: range


@dataclass
class Connector:
    """Debezium: an initial snapshot, then the log from there on; incremental snapshots in between. ``at`` is the next event of the log;
    ``stored`` is where it would go on after a restart, None while it would begin anew."""

    source: Source
    broker: Broker
    at: int = 0
    stored: int | None = None
    position: int | None = None
    attempts: int = 0
    began: int = 0
    """The position at which the initial snapshot began."""
    initial: deque[Event] = field(default_factory=deque)
    unread: deque[str] = field(default_factory=deque)
    """Tables that an initial snapshot begun anew has yet to read: each as it is then, under the position of the beginning. The first one
    reads all at once, as the slot's own snapshot shows them (docs/debezium-postgresql.md)."""
    reading: bool = True
    scans: deque[Scan] = field(default_factory=deque)
    chunk: tuple[int, list[Event]] | None = None
    """Rows that were read, and how far the log must be sent before them."""
    told: Scans = field(default_factory=Scans)
    wall_ms: Callable[[], int] = lambda: 0
    poison: int = 0
    """How many of the next changes come out spoiled."""

    def begin(self) -> None:
        """Begins with a snapshot; what the source did and the connector did not send is never sent."""
        self.attempts += 1
        repeated = self.told.repeated or bool(self.told.initial)
        self.told = replace(self.told, initial=frozenset(), attempts=self.attempts, repeated=repeated)
        self.source.heartbeat()
        self.initial, self.unread = deque(), deque(self.source.tables)
        self.reading, self.at, self.began = True, len(self.source.log), self.source.lsn
        lost = self.told.lost | set(self.told.asked) | {scan.id for scan in self.scans}
        self.told = replace(self.told, asked={}, lost=lost, empty={})
        if self.attempts == 1:  # A registration says what it saw before.
            self.told = replace(self.told, identities={f"public.{name}": t.identity for name, t in self.source.tables.items()})
        while self.attempts == 1 and self.unread:
            self._read_table()
        self.stored = self.position = self.chunk = None
        self.scans.clear()

    def begin_at_the_end(self) -> None:
        """As it is registered where the service reads rows itself: a slot at the end of the log, of which the service is told, and no
        snapshot."""
        self.source.heartbeat()
        self.reading, self.at = False, len(self.source.log)
        self.stored, self.position = self.at, self.source.lsn
        tables = {f"public.{name}": t.identity for name, t in self.source.tables.items()}
        self.told = replace(self.told, skipped=self.source.lsn, identities=tables)

    def restart(self) -> None:
        if self.stored is None or self.reading:
            self.begin()
            return
        self.at = self.stored
        if self.chunk is not None and self.scans:
            scan = self.scans[0]
            scan.left = range(max(0, scan.left.start - CHUNK), KEYS)
        self.chunk = None

    def ask(self, id_: str, table: str) -> None:
        self.scans.append(Scan(id_, table, range(KEYS)))

    def store(self) -> None:
        """Connect writes down how far the connector is."""
        if self.reading:
            return
        if self.chunk is not None and self.at >= self.chunk[0] and not self._emit(self.chunk[1]):
            return  # It is no further than the rows that it has read.
        self.stored = self.at
        done = len(self.source.log) == self.at
        if done:
            self.position = self.source.lsn
        elif self.at and self.source.ends[self.at] != self.source.ends[self.at - 1]:
            self.position = self.source.ends[self.at - 1]

    def deliver(self, events: int) -> int:
        """Sends so many events, fewer where nothing more is to be sent; how many it sent."""
        for sent in range(events):
            if not self._one():
                return sent
        return events

    def _one(self) -> bool:
        if self.reading:
            return self._snapshot()
        if self.chunk is not None and self.at >= self.chunk[0]:
            return self._emit(self.chunk[1])
        if self.chunk is None and self.scans:
            return not self.source.locked(self.scans[0].table) and self._read()
        if self.at == len(self.source.log) or not self.broker.takes(self.source.log[self.at].table):
            return False
        event = self.source.log[self.at]
        if self.poison and event.op in (Op.CREATE, Op.UPDATE):
            self.poison -= 1
            event = replace(event, poison=True)
        self.broker.send(event)
        self.at += 1
        return True

    def _read_table(self) -> None:
        table = self.unread.popleft()
        found = self.source.read(table, range(KEYS), INITIAL, self.began)
        self.initial += found
        if not found:
            self.told = replace(self.told, empty={**self.told.empty, f"public.{table}": self.wall_ms()})

    def _snapshot(self) -> bool:
        while self.unread and not self.initial:
            if self.source.locked(self.unread[0]):
                return False
            self._read_table()
        if self.initial:
            if not self.broker.takes(self.initial[0].table):
                return False
            self.broker.send(self.initial.popleft())
        if not self.initial and not self.unread:
            self.reading = False
            self.told = replace(self.told, initial=frozenset(f"public.{name}" for name in self.source.tables))
        return True

    def _emit(self, rows: list[Event]) -> bool:
        if rows and not self.broker.takes(rows[0].table):
            return False
        for event in rows:
            self.broker.send(event)
        self.chunk = None
        if self.scans and not self.scans[0].left:
            self.scans.popleft()
        return True

    def _read(self) -> bool:
        """Reads a chunk; its rows come out behind everything that was committed before. The end is told before the rows are there."""
        scan = self.scans[0]
        keys = range(scan.left.start, min(scan.left.start + CHUNK, KEYS))
        scan.left = range(keys.stop, KEYS)
        self.chunk = len(self.source.log), self.source.read(scan.table, keys, INCREMENTAL)
        if not scan.left:
            asked = {**self.told.asked, scan.id: frozenset({f"public.{scan.table}"})}
            self.told = replace(self.told, asked=asked, incremental=self.told.incremental | {f"public.{scan.table}"})
        return True


def modes(draw: random.Random, tables: int) -> dict[str, Mode]:
    """Tables by name, each with its mode."""
    return {f"t{n}": draw.choice(list(Mode)) for n in range(tables)}
