"""The source of the simulation: tables that transactions change at the same time, and what its log says of it.

Positions are PostgreSQL's: a change gets its log position when it is made, a transaction comes out when it commits, so that positions of
transactions interleave. Where the ordering has a minor part, changes of a table that follow one another in a transaction share theirs.
 A *moment* counts everything that became visible; ``history`` remembers for ever what each key held from which
moment on, the deleted ones too.

Its catalog (tests.simulation.catalog) changes too: what then happens to rows without an event is a moment like any other.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from cdc_service.core.order import BY_RECORD, Ordering, Ties
from cdc_service.core.types import Mode, Op
from tests.simulation.catalog import Altered, Names, Row, Shape, alter

KEYS = 8
BIG = "B"
"""A body that begins so is stored outside of its row: an update that leaves it alone does not send it."""
INITIAL, INCREMENTAL = "initial", "incremental"
SHARED = frozenset({"attach", "born", "publish", "unpublish"})
"""What is done to a table while transactions that changed it are open."""
TRANSACTIONAL = frozenset({"rename", "swap", "reuse", "rewrite", "restore", "hide", "show"})


@dataclass(frozen=True, slots=True)
class Event:
    """A record of the connector. ``row`` is what it sends of the row after the change, in the ``columns`` that the table had then, without
    ``unsent`` ones; ``sequence`` is where the transaction before this one committed; ``moment`` is what it tells of. ``lost`` is a change
    that no publication has: it happens, and is never sent."""

    table: str
    op: Op
    lsn: int
    moment: int
    columns: Names
    key: int | None = None
    row: Row | None = None
    unsent: bool = False
    old: int | None = None
    new: int | None = None
    sequence: int | None = None
    phase: str = ""
    tombstone: bool = False
    poison: bool = False
    lost: bool = False
    minor: int = 0
    us: int = 0


@dataclass
class Table:
    """``moved`` is the latest moment at which something changed that no event tells, ``grown`` that at which a column came."""

    name: str
    mode: Mode
    shape: Shape = field(default_factory=Shape)
    rows: dict[int, Row] = field(default_factory=dict)
    history: dict[int, list[tuple[int, Row | None]]] = field(default_factory=dict)
    fill: str | None = None
    """What rows older than the column ``extra`` hold in it; "?" where each holds a value of its own."""

    moved: int = 0
    grown: int = 0
    called: set[Names] = field(default_factory=set)
    """The names that its columns ever had."""

    @property
    def columns(self) -> Names:
        return self.shape.names

    @property
    def identity(self) -> str:
        return self.shape.identity

    def named(self, row: Row) -> Row:
        """By the names that its columns have now."""
        names = dict(self.columns)
        return {names[role]: value for role, value in row.items() if role in names}

    def ever_named(self, row: Row) -> list[Row]:
        """By all names that its columns ever had."""
        return [{name: row[role] for role, name in names if role in row} for names in {*self.called, self.columns}]

    def at(self, key: int, moment: int) -> Row | None:
        """What the key held at a moment."""
        found = self.history.get(key, [])
        place = bisect_right(found, moment, key=lambda entry: entry[0])
        return found[place - 1][1] if place else None

    def since(self, key: int, moment: int) -> Iterator[tuple[int, Row | None]]:
        """What the key held at ``moment`` and from then on, each with the moment of its beginning (not before ``moment``)."""
        yield moment, self.at(key, moment)
        found = self.history.get(key, [])
        yield from found[bisect_right(found, moment, key=lambda entry: entry[0]) :]


@dataclass
class Transaction:
    """``changes`` are events whose moment and sequence are not known yet; ``rows`` what it changed, by table and key, ``shapes`` the tables
    that it altered: nobody else reads or writes them until it ends."""

    changes: list[Event | Altered] = field(default_factory=list)
    rows: dict[tuple[str, int], Row | None] = field(default_factory=dict)
    shapes: dict[str, Shape] = field(default_factory=dict)


class Source:
    def __init__(self, modes: Mapping[str, Mode], ordering: Ordering = BY_RECORD) -> None:
        self.ordering = ordering
        self.tables = {name: Table(name, mode) for name, mode in modes.items()}
        self.lsn = 100
        self._minor = 0
        self.moment = 0
        self.log: list[Event] = []
        self.ends: list[int] = []
        """Of each event in the log the position at which its transaction committed."""
        self.open: dict[int, Transaction] = {}
        self.us = 1_700_000_000_000_000
        self._commits: list[tuple[int, int]] = [(0, 0)]

    def moment_of(self, position: int) -> int:
        """The moment at which everything committed up to ``position`` was visible."""
        return self._commits[bisect_right(self._commits, position, key=lambda c: c[0]) - 1][1]

    def busy(self, table: str) -> bool:
        """Whether an open transaction has changed the table, and so holds a lock on it."""
        return self.locked(table) or any(t == table for tx in self.open.values() for t, _ in tx.rows)

    def locked(self, table: str) -> bool:
        """Whether an open transaction has altered the table, so that nobody else even reads it."""
        return any(table in tx.shapes for tx in self.open.values())

    def horizon(self, stored: int) -> int:
        """A position below every change that is not both committed and stored by the connector (at ``stored`` in the log)."""
        waiting = [change.lsn for tx in self.open.values() for change in tx.changes] + [event.lsn for event in self.log[stored:]]
        return min([self.lsn, *(lsn - 1 for lsn in waiting)])

    def step_clock(self, seconds: int) -> None:
        self.us += seconds * 1_000_000

    # Transactions

    def write(self, slot: int, what: str, table: str, key: int, other: int) -> bool:
        """One statement of the transaction ``slot``, which it begins; False where it has nothing to do, or would wait for a lock."""
        t, tx = self.tables[table], self.open.get(slot, Transaction())
        others = [one for s, one in self.open.items() if s != slot]
        taken = {k for one in others for k in one.rows}
        keys = [(table, key), (table, other)] if what == "move" else [(table, key)]
        if taken & set(keys) or any(table in one.shapes for one in others):
            return False
        row = tx.rows.get((table, key), t.rows.get(key))
        there = tx.rows.get((table, other), t.rows.get(other)) if what == "move" else None
        if (row is None) != (what == "insert") or there is not None or (what == "move" and key == other):
            return False
        self.open[slot] = tx
        last = tx.changes[-1] if tx.changes else None
        self._minor = 0
        if self.ordering.minor and isinstance(last, Event) and (last.table, last.lsn) == (table, self.lsn):
            self._minor = last.minor + 1 if self.ordering.ties is Ties.SAME_CHANGE else 0
        else:
            self.lsn += 1 + (key + other) % 4
        n = f"{self.lsn}.{len(tx.changes)}" if self.ordering.minor else str(self.lsn)
        if what == "insert":
            there_are = {role for role, _ in tx.shapes.get(table, t.shape).names}
            new: Row = {role: value for role, value in self._new(key, n, other).items() if role in there_are}
            self._put(tx, t, Op.CREATE, key, new)
        elif what in ("update", "update_body"):
            assert row is not None
            changed = {**row, "name": f"n{n}"} | ({"body": self._body(n, other)} if what == "update_body" else {})
            self._put(tx, t, Op.UPDATE, key, changed, unsent=what == "update" and str(row["body"]).startswith(BIG))
        else:
            moved = other if what == "move" else None
            shape = tx.shapes.get(table, t.shape)
            lost = shape.member is None
            event = Event(table, Op.DELETE, self.lsn, 0, shape.names, key, new=moved, lost=lost, us=self.us, minor=self._minor)
            tx.changes += [event, replace(event, tombstone=True)]
            tx.rows[table, key] = None
            if moved is not None:
                assert row is not None
                changed = {**row, "id": moved}
                self._put(tx, t, Op.CREATE, moved, changed, unsent=str(row["body"]).startswith(BIG), old=key)
        self.us += 1000
        return True

    def _new(self, key: int, n: str, other: int) -> Row:
        return {"id": key, "name": f"n{n}", "body": self._body(n, other), "extra": f"e{n}"}

    @staticmethod
    def _body(n: str, other: int) -> str:
        return f"{BIG}{n}" if other % 3 else f"b{n}"

    def _put(self, tx: Transaction, t: Table, op: Op, key: int, row: Row, unsent: bool = False, old: int | None = None) -> None:
        shape = tx.shapes.get(t.name, t.shape)
        event = Event(t.name, op, self.lsn, 0, shape.names, key, row, unsent, old, lost=shape.member is None, us=self.us)
        tx.changes.append(replace(event, minor=self._minor))
        tx.rows[t.name, key] = row

    def commit(self, slot: int) -> bool:
        tx = self.open.pop(slot, None)
        if tx is None:
            return False
        self._commit(tx.changes)
        return True

    def abort(self, slot: int) -> bool:
        return self.open.pop(slot, None) is not None

    def _commit(self, changes: Sequence[Event | Altered]) -> None:
        before = self._commits[-1][0]
        self.lsn += 1
        for change in changes:
            if isinstance(change, Altered):
                self._alter(change)
                continue
            if not change.tombstone:
                self.moment += 1
            event = replace(change, moment=self.moment, sequence=before)
            if event.lost:
                self.tables[event.table].moved = self.moment
            else:
                self.log.append(event)
                self.ends.append(self.lsn)
            if event.op is Op.TRUNCATE:
                for key in list(self.tables[event.table].rows):
                    self._show(event.table, key, None)
            elif not event.tombstone:
                assert event.key is not None
                self._show(event.table, event.key, event.row)
        self._commits.append((self.lsn, self.moment))

    def _alter(self, change: Altered) -> None:
        t = self.tables[change.table]
        t.called.add(t.columns)
        t.shape = change.shape
        if change.shows:
            self.moment += 1
            t.moved = self.moment
            for key, row in change.rows.items():
                self._show(change.table, key, row)

    def _show(self, table: str, key: int, row: Row | None) -> None:
        t = self.tables[table]
        t.history.setdefault(key, []).append((self.moment, row))
        if row is None:
            t.rows.pop(key, None)
        else:
            t.rows[key] = row

    def heartbeat(self) -> None:
        """A transaction that changes no table of interest."""
        self.lsn += 2
        self._commits.append((self.lsn, self.moment))

    # What takes a table alone

    def truncate(self, table: str) -> bool:
        if self.busy(table):
            return False
        self.lsn += 2
        t = self.tables[table]
        self._commit([Event(table, Op.TRUNCATE, self.lsn, 0, t.columns, lost=t.shape.member is None, us=self.us)])
        return True

    def add_column(self, table: str, fill: str | None) -> bool:
        t = self.tables[table]
        if self.busy(table) or t.shape.has("extra") or t.fill == "gone" or "extra" in dict(t.columns).values():
            return False
        self.lsn += 2
        self.moment += 1
        t.shape, t.fill, t.grown = t.shape.added("extra"), fill, self.moment
        for key, row in list(t.rows.items()):
            self._show(table, key, {**row, "extra": f"own {key}" if fill == "?" else fill})
        self._commits.append((self.lsn, self.moment))
        return True

    def drop_column(self, table: str) -> bool:
        """The column that was added; it does not come again."""
        t = self.tables[table]
        if self.busy(table) or not t.shape.has("extra"):
            return False
        self.lsn += 2
        self.moment += 1
        t.shape, t.fill = t.shape.dropped("extra"), "gone"
        for key, row in list(t.rows.items()):
            self._show(table, key, {name: value for name, value in row.items() if name != "extra"})
        self._commits.append((self.lsn, self.moment))
        return True

    def read(self, table: str, keys: range, phase: str, lsn: int | None = None) -> list[Event]:
        """The rows that a snapshot reads now, under the position ``lsn`` (None: the log's end)."""
        t, lsn = self.tables[table], self.lsn if lsn is None else lsn
        seen = self.seen(table)
        return [Event(table, Op.READ, lsn, self.moment, t.columns, key, seen[key], phase=phase, us=self.us) for key in keys if key in seen]

    def seen(self, table: str) -> Mapping[int, Row]:
        """The rows that the service's and the connector's role sees."""
        t = self.tables[table]
        return {key: row for key, row in t.rows.items() if key % 2 == 0} if t.shape.hidden else t.rows

    # What the log does not tell

    def alter(self, slot: int | None, what: str, table: str, *words: str) -> bool:
        """One statement on the table's definition, within the transaction ``slot`` or (None) by itself; False where it makes no sense now,
        or would wait for a lock."""
        t, tx = self.tables[table], self.open.get(slot, Transaction()) if slot is not None else Transaction()
        others = [one for s, one in self.open.items() if s != slot]
        if any(table in one.shapes for one in others) or (what not in SHARED and any(k[0] == table for one in others for k in one.rows)):
            return False
        if slot is not None and what not in TRANSACTIONAL:
            return False
        mine = {key: row for (name, key), row in tx.rows.items() if name == table}
        there = {key: row for key, row in {**t.rows, **mine}.items() if row is not None}
        taken = {key for one in others for name, key in one.rows if name == table}
        change = alter(what, table, tx.shapes.get(table, t.shape), there, taken, words)
        if change is None:
            return False
        if "extra" in {role for role, _ in change.shape.names} - {role for role, _ in t.columns}:
            if t.fill is not None:
                return False
            t.fill = "?"  # Whether it comes to be or not: nobody may guess what older rows hold.
        self.lsn += 2
        change = replace(change, lsn=self.lsn)
        if slot is None:
            self._commit([change])
            return True
        self.open[slot] = tx
        tx.changes.append(change)
        tx.shapes[table] = change.shape
        tx.rows |= {(table, key): row for key, row in change.rows.items()}
        return True

    def cure(self) -> None:
        """A person does what each stopped table says."""
        for name in self.tables:
            self.alter(None, "publish", name)
            self.alter(None, "show", name)
