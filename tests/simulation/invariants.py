"""What has to hold after every commit, judged by what the source held and when; nothing here knows how the service orders changes.

For each key there is a *floor*: the latest moment that a record tells of which the ledger calls done (or that ``complete_through``
claims). The target has to show what the source held at one moment not before the floor, nor before the one that it showed last.

What no record tells (values written anew, names of columns, changes that no publication had) counts from the first claim of a moment not
before it: until then rows of before it may stand beside rows of after it, but each of them, while the table says that it is complete, has
to be a row that the source held. From then on every row has to be so, and every column to have the name that it has at the source (I28).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from cdc_service.core.types import Mode, Op, PartitionCounts, TableSchema, Target
from cdc_service.ports.destination import TableState
from tests.simulation.catalog import Row
from tests.simulation.outside import Record, Topic
from tests.simulation.source import KEYS, Table
from tests.simulation.warehouses import Parked, Warehouse
from tests.simulation.world import Violation, World

Place = tuple[str, int]
"""(topic id, partition)"""


@dataclass
class Seen:
    """What is known of one target from the commits so far."""

    generation: int = 0
    rows: int = 0
    """Rows of the ledger that were looked at."""
    at: dict[Place, int] = field(default_factory=dict)
    skips: set[tuple[str, int, int]] = field(default_factory=set)
    floor: dict[int, int] = field(default_factory=dict)
    floor_of_all: int = 0
    reached: dict[int, int] = field(default_factory=dict)
    parked: dict[int, dict[Place, int]] = field(default_factory=dict)
    """By key the first record that waits, in each partition."""
    changes: Counter[tuple[str, int, int | None]] = field(default_factory=Counter)
    claim: int = -1

    def anew(self, generation: int, *, retired: bool) -> None:
        self.generation, self.floor_of_all = generation, 0
        self.floor.clear()
        self.reached.clear()
        self.parked.clear()
        if retired:
            self.changes.clear()


class Invariants:
    """``check`` is called after each commit of a target. ``checked`` counts what was compared, by invariant."""

    def __init__(self, world: World, targets: Sequence[Target]) -> None:
        self.world = world
        self.targets = targets
        self.warehouse: Warehouse | None = None
        self.seen = {target: Seen() for target in targets}
        self.checked: Counter[str] = Counter()
        self.commits = 0
        self._kept = self.seen

    def check(self, target: Target) -> None:
        if target not in self.seen or self.warehouse is None:
            return
        self.commits += 1
        w, seen = self.warehouse, self.seen[target]
        state = w.state(target)
        self._generation(target, seen, state)
        new = w.ledger(target, seen.rows)
        seen.rows += len(new)
        parked = w.parked(target) if any(counts.parked for _, counts in new) else ()
        for topic_id, counts in new:
            self._account(target, seen, state, topic_id, counts, parked)
        self._checkpoints(target, seen)
        schema = w.schema(target)
        if state.state == "streaming" and not state.resync and state.complete_through is not None:
            self._claim(target, seen, state, schema)
        if schema is None:
            return
        if target.mode is Mode.APPEND:
            self._changes(target, seen, schema)
        else:
            self._rows(target, seen, state, schema)

    def backup(self) -> None:
        """What was seen goes with the warehouse."""
        self._kept = deepcopy(self.seen)

    def restored(self) -> None:
        self.seen = deepcopy(self._kept)

    # The ledger

    def _generation(self, target: Target, seen: Seen, state: TableState) -> None:
        topic = self._topic(target)
        for partition, offset in (state.opened_at or {}).items():
            seen.skips.add((topic.log.topic_id, partition, offset))
        for partition, low in enumerate(topic.low):
            seen.skips.add((topic.log.topic_id, partition, low))
        if state.generation != seen.generation:
            if state.generation < seen.generation:
                self._wrong("I4", target, "the generation went back")
            assert self.warehouse is not None
            seen.anew(state.generation, retired=self.warehouse.schema(target) is None)

    def _topic(self, target: Target) -> Topic:
        return self.world.broker.topics[self.world.broker.names[target.source.name]]

    def _account(
        self, target: Target, seen: Seen, state: TableState, topic_id: str, counts: PartitionCounts, parked: Sequence[Parked]
    ) -> None:
        place = topic_id, counts.partition
        before = seen.at.get(place)
        self.checked["I22"] += 1
        if counts.start != (before or 0):
            again = (topic_id, counts.partition, counts.start) in seen.skips and seen.generation > 0
            if before is not None and counts.start < before and not again:  # A resync may read once more what came in while it began.
                self._wrong("I13", target, f"partition {counts.partition}: from {counts.start} on it was applied before, up to {before}")
            if (topic_id, counts.partition, counts.start) not in seen.skips:
                self._wrong("I22", target, f"partition {counts.partition}: {before or 0} to {counts.start} was not read")
        seen.at[place] = counts.stop
        records = self.world.broker.all[topic_id].partitions[counts.partition][counts.start : counts.stop]
        mine = [one for one in parked if (one.topic_id, one.partition) == place and counts.start <= one.offset < counts.stop]
        here = {one.offset: one for one in mine}
        self.checked["I21"] += 1
        done = counts.applied + counts.folded + counts.duplicate + counts.parked + counts.filtered
        if done != counts.stop - counts.start or counts.stop - counts.start != len(records):
            self._wrong("I21", target, f"{counts} does not account for {len(records)} records")
        if counts.filtered != sum(r.event.tombstone for r in records):
            self._wrong("I21", target, f"{counts.filtered} filtered, the log holds {sum(r.event.tombstone for r in records)} tombstones")
        if counts.parked != len(here):
            self._wrong("I19", target, f"{counts.parked} are parked by the ledger, {len(here)} stand in the quarantine")
        for offset, record in enumerate(records, counts.start):
            self._consumed(target, seen, state, place, offset, record, here.get(offset))

    def _consumed(
        self, target: Target, seen: Seen, state: TableState, place: Place, offset: int, record: Record, parked: Parked | None
    ) -> None:
        event, key = record.event, record.event.key
        if event.tombstone:
            return
        if parked is not None:
            if key is not None:
                waits = seen.parked.setdefault(key, {})
                if parked.key_text is not None:  # Without a key nothing can wait behind it.
                    waits.setdefault(place, offset)
            return
        if event.poison:
            self._wrong("I23", target, f"the spoiled record {offset} was applied")
        if target.mode is Mode.APPEND and event.lsn > 0 and not event.phase:
            seen.changes["rcudt"[event.op], event.lsn, key] = 1
        if key is not None and key in seen.parked:
            self.checked["I20"] += 1
            if place in seen.parked[key]:
                self._wrong("I20", target, f"record {offset} of key {key} was applied, and an earlier one is parked")
            return
        if event.phase and self.world.connector.attempts > 1 and state.state != "streaming":
            return  # Rows that were read say little after a snapshot was begun twice, until the service has judged it.
        if event.op is Op.TRUNCATE:
            seen.floor_of_all = max(seen.floor_of_all, event.moment)
        elif key is not None:
            seen.floor[key] = max(seen.floor.get(key, 0), event.moment)

    def _checkpoints(self, target: Target, seen: Seen) -> None:
        assert self.warehouse is not None
        for (log, partition), offset in self.warehouse.checkpoints(target).items():
            self.checked["I12"] += 1
            at = seen.at.get((log.topic_id, partition), 0)
            if offset != at and (log.topic_id, partition, offset) not in seen.skips:
                self._wrong("I12", target, f"the checkpoint of partition {partition} is {offset}, its batches end at {at}")

    def _claim(self, target: Target, seen: Seen, state: TableState, schema: TableSchema | None) -> None:
        assert state.complete_through is not None
        self.checked["I10"] += 1
        t, moment = self.world.source.tables[target.source.name], self.world.source.moment_of(state.complete_through)
        if state.complete_through > seen.claim and schema is not None and max(t.moved, t.grown) <= moment:
            self.checked["I28"] += 1
            live = {c.name for c in schema.columns if not c.dropped}
            if lacking := {name for _, name in t.columns} - live:
                self._wrong("I28", target, f"it claims to be complete and has no column {sorted(lacking)}: {sorted(live)}")
        seen.claim = max(seen.claim, state.complete_through)
        seen.floor_of_all = max(seen.floor_of_all, moment)

    # The rows

    def _rows(self, target: Target, seen: Seen, state: TableState, schema: TableSchema) -> None:
        found = self.shown(target, schema)
        t = self.world.source.tables[target.source.name]
        claimed = 0 if state.complete_through is None else self.world.source.moment_of(state.complete_through)
        if t.moved > claimed:
            if state.state == "streaming" and not state.resync and (state.complete_through or 0) >= state.columns_at:
                self._ahead(target, t, seen, claimed, schema, found)
            return
        if state.resync or (state.state != "streaming" and self.world.connector.attempts > 1):
            return  # Rows of several ages stand beside one another until the resync, or the judgement of a second snapshot, has ended.
        # What older rows hold in a new column may take reading the table anew; until then they are NULL in it.
        unknown = dict(t.columns).get("extra") if t.fill is not None and t.grown > claimed else None
        for key in range(KEYS):
            if key in seen.parked:
                continue
            live = {c.name for c in schema.columns if not c.dropped}
            floor = max(seen.floor.get(key, 0), seen.floor_of_all)
            since = max(floor, seen.reached.get(key, 0))
            self.checked["I3"] += 1
            shown = found.get(key)
            if unknown is not None and shown is not None and shown.get(unknown) is None:
                live = live - {unknown}
            reached = next((moment for moment, row in t.since(key, since) if _same(t, shown, row, live)), None)
            if reached is None:
                invariant, why = self._judge(target, key, shown, floor, live)
                if seen.floor.get(key, 0) < t.moved:
                    invariant = "I28"
                self._wrong(invariant, target, f"key {key} shows {_brief(shown)}: {why}")
            else:
                seen.reached[key] = reached
        if strangers := set(found) - set(range(KEYS)):
            self._wrong("I2", target, f"the source never had the keys {sorted(strangers)}")

    def _ahead(self, target: Target, t: Table, seen: Seen, claimed: int, schema: TableSchema, found: Mapping[int, Row]) -> None:
        """Rows of after something that no event told: each has to be what the source held, be it under other names, at some moment."""
        live = {c.name for c in schema.columns if not c.dropped}
        for key, shown in found.items():
            if key in seen.parked:
                continue
            self.checked["I28"] += 1
            held = [named for _, row in t.since(key, claimed) if row is not None for named in t.ever_named(row)]
            if held and not any(all(shown.get(name) in (value, None) for name, value in row.items() if name in live) for row in held):
                self._wrong("I28", target, f"key {key} shows {_brief(shown)} ahead of its claim, which the source never held")

    def shown(self, target: Target, schema: TableSchema) -> Mapping[int, Row]:
        """The rows that the target shows, by key."""
        assert self.warehouse is not None
        table = self.warehouse.rows(target, schema)
        found: dict[int, Row] = {}
        for row in table.to_pylist():
            if row.get("_cdc_deleted"):
                continue
            key = row[schema.key[0]]
            if key in found:
                self._wrong("I7", target, f"key {key} has two rows")
            found[key] = {name: row[name] for name in schema.names}
        return found

    def _judge(self, target: Target, key: int, shown: Row | None, floor: int, live: set[str]) -> tuple[str, str]:
        """Which invariant that is, as far as one row can tell."""
        t = self.world.source.tables[target.source.name]
        ever = [moment for moment, row in [(0, None), *t.history.get(key, [])] if _same(t, shown, row, live)]
        now = f"the source held {_brief(t.at(key, floor))} at moment {floor}"
        if not ever:
            return "I11", f"the source never held that; {now}"
        if shown is None:
            return "I1", f"it is lost; {now}"
        if t.at(key, floor) is None:
            return "I2", f"it was deleted after moment {ever[-1]}; {now}"
        return "I4", f"that is of moment {ever[-1]}; {now}"

    def _changes(self, target: Target, seen: Seen, schema: TableSchema) -> None:
        """Each change that was read is a row once."""
        assert self.warehouse is not None
        table = self.warehouse.rows(target, schema)
        about = (table["_cdc_op"].to_pylist(), table["_cdc_record"].to_pylist(), table[schema.key[0]].to_pylist())
        self.checked["I16"] += 1
        found = Counter(change for change in zip(*about, strict=True) if change[1] > 0)
        if found != seen.changes:
            more, less = found - seen.changes, seen.changes - found
            self._wrong("I2" if more else "I1", target, f"changes too many: {sorted(more.items())}, too few: {sorted(less.items())}")

    # The end

    def check_end(self) -> None:
        """No fault is on any more, and all workers are idle: every target is what its source is."""
        assert self.warehouse is not None
        for target in self.targets:
            self.checked["I1"] += 1
            t = self.world.source.tables[target.source.name]
            schema = self.warehouse.schema(target)
            if schema is None:
                self._wrong("I1", target, "there is no target")
            elif target.mode is Mode.APPEND:
                self._check_log(target, schema)
            else:
                found = self.shown(target, schema)
                live = set(schema.names)
                wrong = [key for key in range(KEYS) if not _same(t, found.get(key), t.rows.get(key), live)]
                if wrong:
                    shown = {key: (_brief(found.get(key)), _brief(t.rows.get(key))) for key in wrong}
                    self._wrong("I1", target, f"target and source differ at the end: {shown}")
            seen = self.seen[target]
            topic = self._topic(target)
            opened = self.warehouse.state(target).opened_at or {}
            events = [r.event for p, log in enumerate(topic.partitions) for r in log[opened.get(p, 0) :] if not r.event.poison]
            sent = {name for event in events for _, name in event.columns}
            if schema is not None and not t.moved and not sent <= set(schema.names):
                self._wrong("I9", target, f"it has the columns {schema.names}, events had {sorted(sent)}")
            for partition, log in enumerate(topic.partitions):
                at = self.warehouse.checkpoints(target).get((topic.log, partition))
                if at != len(log):
                    self._wrong("I24", target, f"partition {partition} is read up to {at} of {len(log)}")
            if seen.claim != self.world.source.lsn:
                self._wrong("I24", target, f"it claims to be complete through {seen.claim} of {self.world.source.lsn}")

    def _check_log(self, target: Target, schema: TableSchema) -> None:
        """The newest generation of the log of changes tells what the source holds."""
        assert self.warehouse is not None
        state = self.warehouse.state(target)
        rows = self.warehouse.rows(target, schema).to_pylist()
        latest: dict[int, Mapping[str, Any]] = {}
        for row in sorted((r for r in rows if r["_cdc_gen"] == state.generation), key=lambda r: (r["_cdc_record"], r["_cdc_offset"])):
            if row["_cdc_op"] == "t":
                latest.clear()
            else:
                latest[row[schema.key[0]]] = row
        t = self.world.source.tables[target.source.name]
        name = dict(t.columns)["name"]
        told = {key: row[name] for key, row in latest.items() if row["_cdc_op"] != "d"}
        held = {key: row["name"] for key, row in t.rows.items()}
        if told != held:
            self._wrong("I1", target, f"its log tells {told}, the source holds {held}")

    def _wrong(self, invariant: str, target: Target, what: str) -> None:
        raise Violation(f"{invariant} {target.source}: {what}")


def _same(t: Table, shown: Row | None, row: Row | None, live: set[str]) -> bool:
    if shown is None or row is None:
        return shown is row
    return all(shown.get(name) == value for name, value in t.named(row).items() if name in live)


def _brief(row: Row | None) -> str:
    return "nothing" if row is None else "(" + ", ".join(str(value) for value in row.values()) + ")"
