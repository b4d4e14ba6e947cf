"""The source of the simulation: tables that transactions change at the same time, and what its log says of it.

Positions are PostgreSQL's: a change gets its log position when it is made, a transaction comes out when it commits, so that positions of
transactions interleave. A *moment* counts everything that became visible; ``history`` remembers for ever what each key held from which
moment on, the deleted ones too.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from cdc_service.core.identity import Judgement, Outcome
from cdc_service.core.types import Mode, Op, TableId

KEYS = 8
BIG = "B"
"""A body that begins so is stored outside of its row: an update that leaves it alone does not send it."""
INITIAL, INCREMENTAL = "initial", "incremental"

Row = Mapping[str, str | int | None]


@dataclass(frozen=True, slots=True)
class Event:
    """A record of the connector. ``row`` is what it sends of the row after the change, in the ``columns`` that the table had then, without
    ``unsent`` ones; ``sequence`` is where the transaction before this one committed; ``moment`` is what it tells of."""

    table: str
    op: Op
    lsn: int
    moment: int
    columns: tuple[str, ...]
    key: int | None = None
    row: Row | None = None
    unsent: bool = False
    old: int | None = None
    new: int | None = None
    sequence: int | None = None
    phase: str = ""
    tombstone: bool = False
    poison: bool = False
    us: int = 0


@dataclass
class Table:
    name: str
    mode: Mode
    columns: tuple[str, ...] = ("id", "name", "body")
    rows: dict[int, Row] = field(default_factory=dict)
    history: dict[int, list[tuple[int, Row | None]]] = field(default_factory=dict)
    fill: str | None = None
    """What rows older than the column ``extra`` hold in it; "?" where each holds a value of its own."""

    @property
    def identity(self) -> str:
        """As core.identity has it: what the catalog says of the table."""
        return ",".join(self.columns)

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


def judge(table: TableId, before: str | None, after: str | None) -> Judgement:
    """What an identity means for rows that were read under an earlier one."""
    if before is None or before == after:
        return Judgement(Outcome.SAME)
    return Judgement(Outcome.CARRIED, columns=True)


@dataclass
class Transaction:
    """``changes`` are events whose moment and sequence are not known yet; ``rows`` what it changed, by table and key."""

    changes: list[Event] = field(default_factory=list)
    rows: dict[tuple[str, int], Row | None] = field(default_factory=dict)


class Source:
    def __init__(self, modes: Mapping[str, Mode]) -> None:
        self.tables = {name: Table(name, mode) for name, mode in modes.items()}
        self.lsn = 100
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
        return any(t == table for tx in self.open.values() for t, _ in tx.rows)

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
        taken = {k for s, one in self.open.items() if s != slot for k in one.rows}
        keys = [(table, key), (table, other)] if what == "move" else [(table, key)]
        if taken & set(keys):
            return False
        row = tx.rows.get((table, key), t.rows.get(key))
        there = tx.rows.get((table, other), t.rows.get(other)) if what == "move" else None
        if (row is None) != (what == "insert") or there is not None or (what == "move" and key == other):
            return False
        self.open[slot] = tx
        self.lsn += 1 + (key + other) % 4
        n = self.lsn
        if what == "insert":
            new: Row = {name: value for name, value in self._new(key, n, other).items() if name in t.columns}
            self._put(tx, t, Op.CREATE, key, new)
        elif what in ("update", "update_body"):
            assert row is not None
            changed = {**row, "name": f"n{n}"} | ({"body": self._body(n, other)} if what == "update_body" else {})
            self._put(tx, t, Op.UPDATE, key, changed, unsent=what == "update" and str(row["body"]).startswith(BIG))
        else:
            moved = other if what == "move" else None
            event = Event(table, Op.DELETE, n, 0, t.columns, key, new=moved, us=self.us)
            tx.changes += [event, replace(event, tombstone=True)]
            tx.rows[table, key] = None
            if moved is not None:
                assert row is not None
                changed = {**row, "id": moved}
                self._put(tx, t, Op.CREATE, moved, changed, unsent=str(row["body"]).startswith(BIG), old=key)
        self.us += 1000
        return True

    def _new(self, key: int, n: int, other: int) -> Row:
        return {"id": key, "name": f"n{n}", "body": self._body(n, other), "extra": f"e{n}"}

    @staticmethod
    def _body(n: int, other: int) -> str:
        return f"{BIG}{n}" if other % 3 else f"b{n}"

    def _put(self, tx: Transaction, t: Table, op: Op, key: int, row: Row, unsent: bool = False, old: int | None = None) -> None:
        tx.changes.append(Event(t.name, op, self.lsn, 0, t.columns, key, row, unsent, old, us=self.us))
        tx.rows[t.name, key] = row

    def commit(self, slot: int) -> bool:
        tx = self.open.pop(slot, None)
        if tx is None:
            return False
        self._commit(tx.changes)
        return True

    def abort(self, slot: int) -> bool:
        return self.open.pop(slot, None) is not None

    def _commit(self, changes: list[Event]) -> None:
        before = self._commits[-1][0]
        self.lsn += 1
        for change in changes:
            if not change.tombstone:
                self.moment += 1
            event = replace(change, moment=self.moment, sequence=before)
            self.log.append(event)
            self.ends.append(self.lsn)
            if event.op is Op.TRUNCATE:
                for key in list(self.tables[event.table].rows):
                    self._show(event.table, key, None)
            elif not event.tombstone:
                assert event.key is not None
                self._show(event.table, event.key, event.row)
        self._commits.append((self.lsn, self.moment))

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
        self._commit([Event(table, Op.TRUNCATE, self.lsn, 0, self.tables[table].columns, us=self.us)])
        return True

    def add_column(self, table: str, fill: str | None) -> bool:
        t = self.tables[table]
        if self.busy(table) or "extra" in t.columns or t.fill == "gone":
            return False
        self.lsn += 2
        self.moment += 1
        t.columns, t.fill = (*t.columns, "extra"), fill
        for key, row in list(t.rows.items()):
            self._show(table, key, {**row, "extra": f"own {key}" if fill == "?" else fill})
        self._commits.append((self.lsn, self.moment))
        return True

    def drop_column(self, table: str) -> bool:
        """The column that was added; it does not come again."""
        t = self.tables[table]
        if self.busy(table) or "extra" not in t.columns:
            return False
        self.lsn += 2
        self.moment += 1
        t.columns, t.fill = tuple(c for c in t.columns if c != "extra"), "gone"
        for key, row in list(t.rows.items()):
            self._show(table, key, {name: value for name, value in row.items() if name != "extra"})
        self._commits.append((self.lsn, self.moment))
        return True

    def read(self, table: str, keys: range, phase: str, lsn: int | None = None) -> list[Event]:
        """The rows that a snapshot reads now, under the position ``lsn`` (None: the log's end)."""
        t, lsn = self.tables[table], self.lsn if lsn is None else lsn
        return [
            Event(table, Op.READ, lsn, self.moment, t.columns, key, t.rows[key], phase=phase, us=self.us) for key in keys if key in t.rows
        ]
