"""Everything around the workers: clock, source, connector, Kafka, and the faults that are under way.

Whatever a worker does to the outside is an *effect* with a name, and a place where it may crash, freeze, be overtaken by others, fail, or
have done the work and lose the reply. The failpoints of the service are effects too.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import greenlet
import pyarrow as pa

from cdc_service.core.errors import CdcError, CommitUnknown, Unavailable
from cdc_service.core.identity import Identities, Judgement
from cdc_service.core.logical import Kind, LogicalType
from cdc_service.core.order import BY_RECORD, Ordering
from cdc_service.core.types import Column, Mode, TableId, TableSchema
from cdc_service.ports.capture import ConnectorStatus, Facts, TaskStatus
from cdc_service.ports.feed import TopicFacts
from cdc_service.ports.source import UNKNOWN_FILL, Fill, Reread
from tests.simulation.catalog import judge
from tests.simulation.outside import Broker, Connector
from tests.simulation.source import Source

RUNNING = ConnectorStatus("cdc_shop", "RUNNING", "w", "", (TaskStatus(0, "RUNNING", "w"),))
NUMBER, TEXT = LogicalType(Kind.INT64), LogicalType(Kind.STRING)


class Crash(BaseException):
    """The process of a worker is gone; nothing in it may catch this."""


class Violation(BaseException):
    """An invariant does not hold; nothing in a worker may catch this."""


@dataclass
class Running:
    """What a worker's process is about: how many effects this turn had, and what is to happen at which of them."""

    name: str
    plan: dict[int, str] = field(default_factory=dict)
    effects: int = 0
    hit: list[tuple[int, str, str]] = field(default_factory=list)
    asleep: str = ""
    frozen: bool = False
    dead: bool = False


class World:
    def __init__(self, modes: Mapping[str, Mode], partitions: int, ordering: Ordering = BY_RECORD) -> None:
        self.source = Source(modes, ordering)
        self.broker = Broker({name: f"shop.public.{name}" for name in modes}, partitions)
        self.connector = Connector(self.source, self.broker, wall_ms=lambda: self.wall_us() // 1000)
        self.at = 0.0
        self.wall_offset = 0
        self.draw = random.Random(0)
        """What is left to chance within one step; each step has a seed of its own."""
        self.current: Running | None = None
        self.down: set[str] = set()
        self.lost_signals = 0
        self.lagging: int | None = None
        """Where the log ended a step ago, where it is that which questions to the catalog begin with: what happens goes on meanwhile."""
        self.happened: Counter[str] = Counter()
        self.passed: Counter[str] = Counter()

    # Clock

    def monotonic(self) -> float:
        return self.at

    def wall_us(self) -> int:
        return int(self.at * 1e6) + self.wall_offset * 1_000_000 + 1_700_000_000_000_000

    def chance(self) -> float:
        return self.draw.random()

    # Effects

    def effect(self, name: str, *, fails: bool = True) -> bool:
        """Whether its reply is to be lost: then it is done, and an error raised. Raises what else happens in its place. What does not
        fail (``fails``) is a place to crash or to be left at."""
        me = self.current
        if me is None:
            return False
        me.effects += 1
        self.passed[name] += 1
        action = me.plan.pop(me.effects, "")
        if not action and fails and name.partition(".")[0] in self.down:
            self.happened[f"{name.partition('.')[0]} down"] += 1
            raise Unavailable(f"{name} is down")
        if not action or (action in ("raise", "lose") and not fails):
            return False
        self.happened[action] += 1
        me.hit.append((me.effects, action, name))
        if action == "crash":
            raise Crash(name)
        if action in ("freeze", "pause"):
            me.asleep, me.frozen = name, action == "freeze"
            greenlet.getcurrent().parent.switch()
            me.asleep, me.frozen = "", False
            if me.dead:
                raise Crash(name)
            return False
        if action == "lose":
            return True
        raise Unavailable(f"failed at {name}")

    def failpoint(self, name: str) -> None:
        if self.effect(name):
            raise CommitUnknown(f"{name}: reply lost")

    def ask_of(self, name: str, do: Callable[[], Any]) -> Any:
        """Something asked of a server: where the reply is lost, it is done all the same."""
        lost = self.effect(name)
        answer = do()
        if lost:
            raise Unavailable(f"{name}: reply lost")
        return answer

    # What a table asks

    def describe(self, names: Sequence[str]) -> Mapping[str, TopicFacts]:
        found: Mapping[str, TopicFacts] = self.ask_of("kafka.describe", self.broker.describe)
        return {name: found[name] for name in names if name in found}

    def topic_ids(self, names: Sequence[str]) -> Mapping[str, str]:
        found: Mapping[str, TopicFacts] = self.ask_of("kafka.topic_ids", self.broker.describe)
        return {name: found[name].log.topic_id for name in names if name in found}

    def reread(self, table: TableId, keys: pa.Table, columns: Sequence[str]) -> Reread:
        return self.ask_of("source.reread", lambda: self._reread(table, keys, columns))  # type: ignore[no-any-return]

    def _reread(self, table: TableId, keys: pa.Table, columns: Sequence[str]) -> Reread:
        if self.source.busy(table.name):
            raise Unavailable("transactions that changed the table are open")
        roles = {name: role for role, name in self.source.tables[table.name].columns}
        if missing := [name for name in keys.column_names if roles.get(name) != "id"]:
            raise CdcError(f"the source has no key {missing[0]} any more", hint="resync", code="reread_failed")
        self.happened["read again"] += 1
        seen = self.source.seen(table.name)
        found = [seen.get(key) for key in keys.column(0).to_pylist()]
        texts = {
            name: pa.array([None if row is None else _text(row.get(roles.get(name, ""))) for row in found], pa.string()) for name in columns
        }
        return Reread(pa.table(texts), pa.array([row is not None for row in found], pa.bool_()), self.source.lsn)

    def load(self, table: TableId) -> Loaded:
        def snapshot() -> Loaded:
            if self.source.locked(table.name):
                raise Unavailable("somebody alters the table")
            self.happened["load begun"] += 1
            return Loaded(self, table.name)

        return self.ask_of("source.load", snapshot)  # type: ignore[no-any-return]

    def fill_of_added_column(self, table: TableId, column: str) -> Fill:
        found: Fill = self.ask_of("source.fill", lambda: self._fill(table.name, column))
        return found

    def _fill(self, table: str, column: str) -> Fill:
        t = self.source.tables[table]
        role = next((role for role, name in t.columns if name == column), None)
        if role is None or t.shape.file:
            return UNKNOWN_FILL
        if role != "extra":
            return Fill(True)  # So it looks in the catalog: nothing tells it from one that came later, without a default.
        return UNKNOWN_FILL if t.fill == "?" else Fill(True, t.fill)

    def schema_of(self, table: TableId) -> TableSchema:
        self.effect("source.schema")
        return self.schema(table.name)

    def columns_of(self, table: TableId) -> Sequence[str]:
        self.effect("source.schema")
        return self.schema(table.name).names

    def schema(self, table: str) -> TableSchema:
        """As the source has it now."""
        columns = self.source.tables[table].columns
        found = tuple(Column(name, NUMBER if role == "id" else TEXT) for role, name in columns)
        return TableSchema(TableId("public", table), found, (dict(columns)["id"],))

    def identities(self, tables: Sequence[TableId]) -> Identities:
        return self.ask_of("source.identities", self.catalog)  # type: ignore[no-any-return]

    def catalog(self) -> Identities:
        """What the source says of its tables now."""
        position = self.lagging if self.lagging is not None else self.source.lsn
        tables = {TableId("public", name): t.identity for name, t in self.source.tables.items()}
        return Identities(position, tables, frozenset(table for table in tables if self.source.locked(table.name)))

    def judge(self, table: TableId, before: str | None, after: str | None) -> Judgement:
        return judge(table, before, after)

    def horizon(self, table: TableId) -> int:
        lost = self.effect("source.horizon")
        if lost:
            raise Unavailable("reply lost")
        return self.source.horizon(self.connector.stored or 0)

    def settled(self, table: TableId) -> int:
        def wait() -> int:
            if self.source.busy(table.name):
                raise Unavailable("transactions that changed the table are open")
            return self.source.lsn

        return self.ask_of("source.settled", wait)  # type: ignore[no-any-return]

    # Snapshots

    def ask(self, table: TableId, id_: str, *, afresh: bool = False) -> None:
        def send() -> None:
            self.happened["snapshot asked for"] += 1
            if self.lost_signals:
                self.lost_signals -= 1
                self.happened["signal lost"] += 1
            else:
                self.connector.ask(id_, table.name)

        self.ask_of("source.ask", send)

    def names(self, text: str, table: TableId) -> bool:
        return text == str(table)

    def look(self) -> Facts:
        """What a watcher sees now."""
        c = self.connector
        return Facts(
            self.wall_us(),
            self.at,
            RUNNING,
            None,
            c.position,
            incremental=bool(c.scans),
            topics=self.broker.describe(),
            scans=c.told,
            identities=self.catalog(),
            reached_us=self.wall_us(),
        )


class Loaded:
    """ports.reader.Load: the rows as they are when it is opened, in two ranges. A row lies in another one whenever it is written."""

    def __init__(self, world: World, table: str) -> None:
        t = world.source.tables[table]
        self._world = world
        self._rows = {key: t.named(row) for key, row in world.source.seen(table).items()}
        written = Counter(key for e in world.source.log if e.table == table for key in {e.key, e.old, e.new})
        self._places = {key: (key + written[key]) % 2 for key in self._rows}
        self._columns = {name for _, name in t.columns}
        self.position = world.source.lsn
        self.storage = str(t.shape.file)

    def __enter__(self) -> Loaded:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def ranges(self, size: int) -> Sequence[tuple[str, str]]:
        return [("", "1"), ("1", "")]

    def as_text(self, columns: Sequence[Column]) -> frozenset[str]:
        return frozenset()

    def batches(self, columns: Sequence[Column], low: str, high: str) -> Iterator[pa.RecordBatch]:
        if self._world.effect("source.range"):
            raise Unavailable("reply lost")
        if missing := [c.name for c in columns if c.name not in self._columns]:
            raise CdcError(f"the source has no column {missing[0]} any more", code="unloadable")
        rows = [row for key, row in self._rows.items() if self._places[key] == int(low == "1")]
        self._world.happened["rows loaded"] += len(rows)
        yield pa.RecordBatch.from_arrays(
            [pa.array([row.get(c.name) for row in rows], c.type.arrow) for c in columns], [c.name for c in columns]
        )


def _text(value: object) -> str | None:
    return None if value is None else str(value)
