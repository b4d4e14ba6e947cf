"""A destination in plain dictionaries: the oracle that SQL destinations are compared with, and the simulator's warehouse.

It follows ports.destination by the letter, row by row and without any SQL, keeps every deleted key for ever, passes the failpoints of a
merge, and calls ``step`` right before ("commit") and after ("reply") each commit, where a test may raise: before it nothing is kept, after
it everything is. Of two transactions on one target at the same time the one that commits last is fenced.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

from cdc_service.core.errors import CdcError, ConfigError, Fenced, TableStopped
from cdc_service.core.evolve import AddColumn, Change, CreateTable, RenameColumn
from cdc_service.core.keys import key_text
from cdc_service.core.logical import INFINITY, Kind
from cdc_service.core.order import INCREMENTAL, Ordering, Ties
from cdc_service.core.types import (
    BASE,
    Checkpoint,
    Decision,
    Delta,
    LoadedPart,
    LoadRange,
    LogId,
    Mode,
    Op,
    PartitionCounts,
    Receipt,
    Rejected,
    TableSchema,
    Tail,
    Target,
)
from cdc_service.failpoints import failpoint
from cdc_service.ports.destination import Capabilities, Commit, Quarantined, TableState, Totals, UnsentUnknown

CHANGE_COLUMNS = (
    *("_cdc_op", "_cdc_seq", "_cdc_before", "_cdc_unsent", "_cdc_source_ts"),
    *("_cdc_gen", "_cdc_record", "_cdc_partition", "_cdc_offset"),
)
"""What ``rows`` shows of a log of changes beside the schema's columns; the source's clock in microseconds."""
CHANGE_TYPES = (pa.string(), pa.int64(), pa.string(), pa.string(), pa.int64(), pa.int32(), pa.int64(), pa.int32(), pa.int64())

Version = tuple[int, int]
"""(generation, record)"""


@dataclass(frozen=True, slots=True)
class Row:
    """``values`` by column name, as ``plain`` gives them."""

    values: Mapping[str, Any]
    version: Version
    minor: int
    partition: int
    offset: int
    commit: int | None
    deleted: bool = False


@dataclass(frozen=True, slots=True)
class DeletedKey:
    """``image`` is the row that a change of key took away, where it was known."""

    version: Version
    minor: int
    partition: int
    offset: int
    commit: int | None
    image: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Logged:
    """A row of a target that is a log of changes."""

    values: Mapping[str, Any]
    op: Op
    key: str | None
    version: Version
    minor: int
    seq: int
    before: str | None
    missing: str | None
    source_us: int | None
    partition: int
    offset: int
    commit: int | None

    def same(self, other: Logged) -> bool:
        """Whether both are one change of the source."""
        mine, its = ((c.version[1], c.minor, c.op, c.key, c.seq, c.source_us) for c in (self, other))
        record = self.version[1]
        return mine == its and record != INCREMENTAL and (record > 0 or self.version[0] == other.version[0])


@dataclass(slots=True)
class Kept:
    """Everything about one target; a merge works on a copy. Ledger and quarantine say of which topic (its id) they are."""

    checkpoints: dict[tuple[LogId, int], tuple[int, int]] = field(default_factory=dict)
    rows: dict[str, Row] = field(default_factory=dict)
    deleted: dict[str, DeletedKey] = field(default_factory=dict)
    watermark: Version | None = None
    snapshot: int | None = None
    ledger: list[tuple[str, PartitionCounts]] = field(default_factory=list)
    quarantine: list[Quarantined] = field(default_factory=list)
    schemas: list[TableSchema] = field(default_factory=list)
    state: TableState = field(default_factory=TableState)
    changes: list[Logged] = field(default_factory=list)
    tails: dict[tuple[LogId, int], Tail] = field(default_factory=dict)
    ranges: list[LoadRange] = field(default_factory=list)
    marks: dict[tuple[LogId, int], str] = field(default_factory=dict)
    made: bool = False
    epoch: int = 0

    def copy(self) -> Kept:
        other = copy(self)
        for name in ("checkpoints", "rows", "deleted", "ledger", "quarantine", "schemas", "changes", "tails", "ranges", "marks"):
            setattr(other, name, copy(getattr(self, name)))
        return other

    @property
    def parked(self) -> list[Quarantined]:
        return [r for r in self.quarantine if r.state == "parked"]


class MemoryDestination:
    """Several instances share one warehouse when they are given the same ``tables``: two writers, one fenced."""

    capabilities = Capabilities(
        ranges={
            Kind.DATE: (-(2**31) + 2, 2**31 - 2),
            Kind.TIMESTAMP: (-(2**63) + 2, 2**63 - 2),
            Kind.TIMESTAMPTZ: (-(2**63) + 2, 2**63 - 2),
        },
        infinity=frozenset(INFINITY),
        nul_in_text=True,
        reads_while_writing=True,
        commit=Commit.TRANSACTION,
        gaps={"ranges": "the outermost numbers are the infinities"},
    )

    def __init__(self, tables: dict[Target, Kept] | None = None, step: Callable[[str], None] = lambda name: None) -> None:
        self.tables: dict[Target, Kept] = {} if tables is None else tables
        self.step = step

    def kept(self, target: Target) -> Kept:
        return self.tables.setdefault(target, Kept())

    @contextmanager
    def _transaction(self, target: Target) -> Iterator[Kept]:
        seen = self.kept(target)
        work = seen.copy()
        yield work
        self.step("commit")
        if self.tables[target] is not seen:
            raise Fenced(f"another writer changed {target} at the same time")
        self.tables[target] = work
        self.step("reply")

    def fold(self, identifier: str) -> str:
        return identifier

    def probe(self) -> str:
        return "memory"

    def prepare(self) -> None:
        pass

    def release(self) -> None:
        pass

    def close(self) -> None:
        pass

    def query(self, sql: str, *, rows_max: int) -> pa.Table:
        raise ConfigError("the in-memory destination answers no SQL")

    def checkpoints(self, target: Target) -> Sequence[Checkpoint]:
        kept = self.kept(target)
        found = sorted(kept.checkpoints.items(), key=repr)
        return [Checkpoint(log, p, offset, epoch, kept.marks.get((log, p))) for (log, p), (offset, epoch) in found]

    def claim(self, target: Target, log: LogId, starts: Mapping[int, int], generation: int | None = None) -> Sequence[Checkpoint]:
        with self._transaction(target) as kept:
            _expect(kept, target, generation)
            kept.epoch += 1
            for partition, start in starts.items():
                offset, _ = kept.checkpoints.get((log, partition), (start, 0))
                kept.checkpoints[log, partition] = (offset, kept.epoch)
        return [Checkpoint(log, p, *kept.checkpoints[log, p], kept.marks.get((log, p))) for p in sorted(starts)]

    def begin_anew(
        self, target: Target, log: LogId, starts: Mapping[int, int], state: TableState, *, forget: bool = True, retire: bool = False
    ) -> TableState:
        with self._transaction(target) as kept:
            _store(kept, target, state)
            _mark(kept, [r.id for r in kept.parked], "superseded", "cdc", "the table was read anew (resync)")
            kept.epoch += 1
            if forget:
                kept.watermark = kept.snapshot = None
                kept.checkpoints, kept.tails, kept.marks = {}, {}, {}
            for partition, start in starts.items():
                offset, _ = kept.checkpoints.get((log, partition), (start, 0))
                kept.checkpoints[log, partition] = (offset, kept.epoch)
            if retire:
                if kept.schemas:
                    kept.made = False
                    kept.rows = {}
                    if kept.changes:
                        end = f"_until_{state.generation - 1}"
                        aside = replace(target, name=target.name.encode()[: 63 - len(end)].decode(errors="ignore") + end)
                        self.tables[aside] = Kept(changes=kept.changes, made=True)
                    kept.changes = []
                kept.deleted, kept.schemas = {}, []
        return self.kept(target).state

    def plan_load(self, target: Target, generation: int, ranges: Sequence[LoadRange]) -> None:
        with self._transaction(target) as kept:
            _expect(kept, target, generation)
            kept.ranges = list(ranges)

    def load_ranges(self, target: Target, generation: int) -> Sequence[LoadRange]:
        return [r for r in self.kept(target).ranges if r.generation == generation]

    def table_rows(self, target: Target) -> int | None:
        kept = self.kept(target)
        return len(kept.changes) + sum(not row.deleted for row in kept.rows.values()) if kept.made else None

    def tails(self, target: Target, log: LogId) -> Mapping[int, Tail]:
        return {partition: tail for (other, partition), tail in self.kept(target).tails.items() if other == log}

    def schemas(self, target: Target) -> Sequence[TableSchema]:
        return list(self.kept(target).schemas)

    def evolve(self, target: Target, changes: Sequence[Change], schema: TableSchema, generation: int | None = None) -> None:
        with self._transaction(target) as kept:
            _expect(kept, target, generation)
            if kept.schemas[-1:] == [schema]:
                return
            if len(kept.schemas) != schema.version:
                raise Fenced(f"{target}: another process changed its schema meanwhile")
            for change in changes:
                if isinstance(change, CreateTable):
                    kept.made = True
                if isinstance(change, AddColumn):
                    added = {change.column.name: plain(pa.array([change.column.default], change.column.type.arrow))[0]}
                    kept.rows = {key: replace(row, values={**row.values, **added}) for key, row in kept.rows.items()}
                    kept.changes = [replace(row, values={**row.values, **added}) for row in kept.changes]
                if isinstance(change, RenameColumn):
                    names = {change.before: change.column.name}
                    kept.rows = {key: replace(row, values=_named(row.values, names)) for key, row in kept.rows.items()}
                    kept.changes = [replace(row, values=_named(row.values, names)) for row in kept.changes]
                    kept.deleted = {
                        key: replace(gone, image=_named(gone.image, names)) if gone.image is not None else gone
                        for key, gone in kept.deleted.items()
                    }
            kept.schemas.append(replace(schema, version=len(kept.schemas) + 1))

    def drift(self, target: Target, schema: TableSchema) -> Sequence[str]:
        return [] if self.kept(target).made else [f"the table {target} is gone"]

    def totals(self, target: Target) -> Totals:
        names = ("applied", "folded", "duplicate", "parked", "filtered")
        kept = self.kept(target)
        versions = [row.version for row in kept.rows.values()] + [gone.version for gone in kept.deleted.values()]
        records = [record for _, record in (*versions, *(change.version for change in kept.changes))]
        counts = {name: sum(getattr(c, name) for _, c in kept.ledger) for name in names}
        decided = Counter(r.state for r in kept.quarantine if r.state != "parked")
        waiting = Counter(r.code for r in kept.parked)
        return Totals(counts, waiting, decided, high_record=max(records, default=None))

    def parked_keys(self, target: Target) -> pa.Array:
        return pa.array(sorted({r.key_text for r in self.kept(target).parked if r.key_text is not None}), pa.string())

    def quarantined(
        self, target: Target, *, state: str = "", key: str = "", code: str = "", ids: Sequence[str] = (), whole: bool = False, most: int
    ) -> Sequence[Quarantined]:
        found = [
            r if whole else replace(r, key=None, value=None, headers=None)
            for r in self.kept(target).quarantine
            if state in ("", r.state) and key in ("", r.key_text) and code in ("", r.code) and (not ids or r.id in ids)
        ]
        return found[:most]

    def load_state(self, target: Target) -> TableState:
        return self.kept(target).state

    def states(self) -> Mapping[tuple[str, str], TableState]:
        return {(str(target.source), str(target)): kept.state for target, kept in self.tables.items() if kept.state.version}

    def save_state(self, target: Target, state: TableState) -> TableState:
        with self._transaction(target) as kept:
            return _store(kept, target, state)

    def save_progress(self, moved: Mapping[Target, TableState]) -> Mapping[Target, TableState]:
        kept = {}
        for target, state in moved.items():
            with contextlib.suppress(Fenced):
                kept[target] = self.save_state(target, state)
        return kept

    def sweep(self, target: Target, generation: int, record: int) -> int:
        with self._transaction(target) as kept:
            kept.watermark = max(kept.watermark or (0, -(2**63)), (generation, record))
            if target.mode is Mode.APPEND:
                before = len(kept.changes)
                kept.changes = [c for c in kept.changes if c.version[0] != generation or c.version[1] >= min(record, 0)]
                return before - len(kept.changes)
            return _remove_below(kept, target, (generation, record))

    def highest_snapshot(self) -> int | None:
        return max((kept.snapshot for kept in self.tables.values() if kept.snapshot is not None), default=None)

    def holds_before(self, target: Target, generation: int, position: int) -> bool:
        kept = self.kept(target)
        stands = [(row.version, row.commit) for row in kept.rows.values()]
        stands += [(gone.version, gone.commit) for gone in kept.deleted.values()]
        stands += [(change.version, change.commit) for change in kept.changes]
        stands += [(kept.watermark, None)] if kept.watermark is not None else []
        return any(
            gen == generation and 0 < record < position and (commit is None or commit < position) for (gen, record), commit in stands
        )

    def rows(self, target: Target, schema: TableSchema) -> pa.Table:
        """The target's rows sorted by canonical key: the schema's columns, then _cdc_gen, _cdc_record and, in soft_delete, _cdc_deleted."""
        if target.mode is Mode.APPEND:
            return self._changes(target, schema)
        rows = [row for _, row in sorted(self.kept(target).rows.items())]
        columns = [restore([row.values.get(c.name) for row in rows], c.type.arrow) for c in schema.columns]
        names = [*schema.names, "_cdc_gen", "_cdc_record"]
        columns += [pa.array([row.version[0] for row in rows], pa.int32()), pa.array([row.version[1] for row in rows], pa.int64())]
        if target.mode is Mode.SOFT_DELETE:
            columns.append(pa.array([row.deleted for row in rows], pa.bool_()))
            names.append("_cdc_deleted")
        return pa.table(columns, names=names)

    def _changes(self, target: Target, schema: TableSchema) -> pa.Table:
        """The log of changes by position, then key, place and offset: the schema's columns, then CHANGE_COLUMNS."""
        rows = sorted(self.kept(target).changes, key=lambda c: (c.version, c.key or "", c.seq, c.offset))
        data = [restore([row.values.get(c.name) for row in rows], c.type.arrow) for c in schema.columns]
        more = [("rcudt"[r.op], r.seq, r.before, r.missing, r.source_us, r.version[0], r.version[1], r.partition, r.offset) for r in rows]
        each = list(zip(*more, strict=True)) or [()] * len(CHANGE_TYPES)
        columns = [pa.array(values, type_) for values, type_ in zip(each, CHANGE_TYPES, strict=True)]
        return pa.table([*data, *columns], names=[*schema.names, *CHANGE_COLUMNS])

    # The merge

    def merge(self, delta: Delta, epochs: Mapping[int, int], log: LogId, table: TableSchema) -> Receipt:
        target = delta.target
        failpoint("merge.staged")
        with self._transaction(target) as kept:
            if len(kept.schemas) != table.version:
                raise Fenced(f"{target}: another process changed its schema meanwhile")
            for span in delta.spans:
                if kept.checkpoints.get((log, span.partition)) != (span.start, epochs.get(span.partition)):
                    raise Fenced(f"partition {span.partition} of {target} is no longer this writer's")
                kept.checkpoints[log, span.partition] = (span.stop, epochs[span.partition])
                if delta.mark is not None:
                    kept.marks[log, span.partition] = delta.mark
            if delta.loaded is not None:
                _mark_range(kept, delta.loaded)
            if delta.decision is not None:
                self.step("decide")
                _decide(kept, delta.decision)
            if delta.snapshot_record is not None:
                kept.snapshot = max(kept.snapshot or delta.snapshot_record, delta.snapshot_record)
            kept.tails |= {(log, partition): tail for partition, tail in delta.tails.items()}
            failpoint("merge.swapped")
            duplicate_truncation = _truncate(kept, delta)
            failpoint("merge.truncated")
            if delta.meta.num_rows and (found := self.drift(target, table)):
                raise TableStopped(
                    f"{target} was changed by somebody: {'; '.join(found)}",
                    state="drift",
                    hint=f"load it anew: cdc resync {target.source}",
                )
            if target.mode is Mode.APPEND:
                winners = _append(kept, delta, table)
            else:
                fresh = delta.loaded is not None and delta.loaded.fresh  # Nobody looks for rows of the same keys then.
                winners = [i for i in incoming(delta) if fresh or _wins(kept, i, target.ordering)]
                if fresh and any(i.key in kept.rows for i in winners):
                    self.step("twice")
                filled = _fill(kept, delta, table, winners)
                for change, values in zip(winners, filled, strict=True):
                    _write(kept, target, change, values)
            counts = _account(delta, winners, duplicate_truncation)
            kept.ledger += [(log.topic_id, row) for row in counts if row.stop > row.start]
            kept.quarantine += [_quarantined(r, delta.batch_id, log) for r in delta.rejected]
            failpoint("merge.recorded")
        failpoint("merge.committed")
        return Receipt(delta.batch_id, target, counts)


def _mark_range(kept: Kept, part: LoadedPart) -> None:
    at = next((i for i, r in enumerate(kept.ranges) if (r.generation, r.number) == (part.generation, part.number) and not r.done), None)
    if at is None:
        raise Fenced("another process loads the table, or it is read anew")
    kept.ranges[at] = replace(kept.ranges[at], rows=part.rows, position=part.position, done=part.done)


def _quarantined(r: Rejected, batch_id: str, log: LogId) -> Quarantined:
    where = (f"{log.topic_id}:{r.partition}:{r.offset}", batch_id, log.topic_id, r.partition, r.offset)
    return Quarantined(*where, r.key_text, r.stage, r.code, r.message, "parked", 0, None, None, None, r.key, r.value, r.headers)


def _decide(kept: Kept, decision: Decision) -> None:
    waiting = {r.id for r in kept.parked}
    if not {*decision.discarded, *decision.replayed} <= waiting:
        raise Fenced("a record was decided on by somebody else meanwhile")
    _mark(kept, decision.discarded, "discarded", decision.by, decision.reason)
    _mark(kept, decision.replayed, "replayed", decision.by, decision.reason)
    for place, r in enumerate(kept.quarantine):
        if r.state == "parked" and (now := decision.refused.get(r.id)) is not None:
            key = r.key_text if now.key_text is None else now.key_text
            kept.quarantine[place] = replace(r, key_text=key, stage=now.stage, code=now.code, message=now.message)
    kept.epoch += 1
    kept.checkpoints = {where: (offset, kept.epoch) for where, (offset, _) in kept.checkpoints.items()}


def _mark(kept: Kept, ids: Sequence[str], state: str, by: str, reason: str) -> None:
    for place, r in enumerate(kept.quarantine):
        if r.state == "parked" and r.id in ids:
            kept.quarantine[place] = replace(r, state=state, decided_by=by, decided_us=0, reason=reason)


def _named(values: Mapping[str, Any], names: Mapping[str, str]) -> Mapping[str, Any]:
    return {names.get(name, name): value for name, value in values.items()}


def _expect(kept: Kept, target: Target, generation: int | None) -> None:
    if generation is not None and kept.state.generation != generation:
        raise Fenced(f"{target.source} was read anew meanwhile")


def _store(kept: Kept, target: Target, state: TableState) -> TableState:
    if kept.state.version != state.version:
        raise Fenced(f"{target.source}: its state was changed by another process meanwhile")
    kept.state = replace(state, version=state.version + 1)
    return kept.state


@dataclass(frozen=True, slots=True)
class Incoming:
    """One row of a delta."""

    op: Op
    key: str
    version: Version
    minor: int
    partition: int
    offset: int
    commit: int | None
    moved: bool
    values: Mapping[str, Any]
    unsent: frozenset[str]
    base_text: str | None
    base_move: int | None
    base_record: int | None
    base_partition: int | None
    base_move_minor: int | None
    base_minor: int | None
    base_offset: int | None
    place: int


def incoming(delta: Delta) -> list[Incoming]:
    rows = delta.meta.num_rows
    columns = {name: plain(delta.data[name]) for name in delta.schema.names}
    masks = {} if delta.unsent is None else {name: delta.unsent[name].to_pylist() for name in delta.unsent.column_names}
    bases = [dict.fromkeys(BASE.names)] * rows if delta.base is None else delta.base.about.to_pylist()
    if delta.base is not None:
        assert key_text(delta.base.key).to_pylist() == [base["text"] for base in bases], "the base's text is not that of its key"
    return [
        Incoming(
            op=Op(meta["op"]),
            key=meta["key"],
            version=(meta["gen"], meta["record"]),
            minor=meta["minor"],
            partition=meta["partition"],
            offset=meta["offset"],
            commit=meta["commit"],
            moved=meta["moved"],
            values={name: column[i] for name, column in columns.items()},
            unsent=frozenset(name for name, mask in masks.items() if mask[i]),
            **{f"base_{name}": base for name, base in bases[i].items()},
            place=i,
        )
        for i, meta in enumerate(delta.meta.to_pylist())
    ]


def _append(kept: Kept, delta: Delta, table: TableSchema) -> list[Incoming]:
    """Adds the changes that are not there; which of the delta they are."""
    new = []
    for change, meta in zip(incoming(delta), delta.meta.to_pylist(), strict=True):
        row = Logged(
            values={column.name: change.values.get(column.name) for column in table.columns},
            op=change.op,
            version=change.version,
            **{name: meta[name] for name in ("minor", "key", "seq", "before", "missing", "source_us", "partition", "offset", "commit")},
        )
        superseded = row.version[1] < 0 and kept.watermark is not None and row.version < kept.watermark
        kept.changes = [replace(c, version=max(c.version, row.version)) if row.same(c) else c for c in kept.changes]
        if not superseded and not any(row.same(other) for other in kept.changes):
            kept.changes.append(row)
            new.append(change)
    return new


def _truncate(kept: Kept, delta: Delta) -> bool:
    """Applies the truncation; True where it had been applied before."""
    if delta.truncation is None:
        return False
    version = (delta.truncation.generation, delta.truncation.record)
    if kept.watermark is not None and kept.watermark >= version:
        return True
    kept.watermark = version
    _remove_below(kept, delta.target, version)
    return False


def _remove_below(kept: Kept, target: Target, bound: Version) -> int:
    removed = {key: row for key, row in kept.rows.items() if row.version < bound and not row.deleted}
    for key, row in removed.items():
        if target.mode is Mode.SOFT_DELETE:
            kept.rows[key] = replace(row, deleted=True)
        else:
            del kept.rows[key]
    return len(removed)


def _wins(kept: Kept, change: Incoming, ordering: Ordering) -> bool:
    if kept.watermark is not None and change.version < kept.watermark:
        return False
    row, gone = kept.rows.get(change.key), kept.deleted.get(change.key)
    for one, dead in ((row, row is not None and row.deleted), (gone, True)):
        if one is None:
            continue
        mine, its = (change.version, change.minor), (one.version, one.minor)
        if mine > its:
            continue
        if mine == its and change.version[1] == INCREMENTAL and not dead:
            continue  # Of two rows of incremental snapshots the one that comes later was read later.
        if mine == its and ordering.ties is Ties.OFFSET and change.partition == one.partition:
            if change.offset <= one.offset:
                return False
            continue
        # Where a key changed its spelling alone, its delete and its create have one version, and the create wins.
        if mine < its or not dead or change.op is Op.DELETE:
            return False
    return True


def _fill(kept: Kept, delta: Delta, table: TableSchema, winners: Sequence[Incoming]) -> list[dict[str, Any]]:
    """The whole rows to write, by the target's own columns."""
    filled, missing, columns = [], [], set[str]()
    for change in winners:
        own = kept.rows.get(change.key)
        values: dict[str, Any] = {}
        for column in table.columns:
            if column.name in change.values:
                values[column.name] = change.values[column.name]
            elif own is not None and not own.deleted and not column.dropped:
                values[column.name] = own.values[column.name]
            else:
                default = None if column.dropped else column.default
                values[column.name] = plain(pa.array([default], column.type.arrow))[0]
        if change.unsent:
            image = _base(kept, change, delta.target.ordering)
            if image is None or not change.unsent <= set(image):
                missing.append(change.place)
                columns |= change.unsent
            else:
                values.update({name: image[name] for name in change.unsent})
        filled.append(values)
    if missing:
        names = tuple(name for name in delta.schema.names if name in columns)
        raise UnsentUnknown(delta.data.select(delta.schema.key).take(pa.array(missing)), names)
    return filled


def _base(kept: Kept, change: Incoming, ordering: Ordering) -> Mapping[str, Any] | None:
    """The image that a row's unsent values are taken from."""
    assert change.base_text is not None, "a row with unsent values names no base"
    if any(r.state == "discarded" and r.key_text == change.base_text for r in kept.quarantine):
        return None
    if change.base_move is None:
        row = kept.rows.get(change.base_text)
        assert change.base_record is not None, "a base row has no bound"
        bound = ((change.version[0], change.base_record), change.base_minor or 0)
        if row is None or row.deleted or row.version[0] != change.version[0] or (row.version, row.minor) > bound:
            return None
        here = change.partition if change.base_partition is None else change.base_partition
        by_offset = ordering.ties is Ties.OFFSET and row.partition == here and row.offset < (change.base_offset or 0)
        if (row.version, row.minor) == bound and not by_offset:
            return None
        return row.values if change.base_partition in (None, row.partition) else None
    gone = kept.deleted.get(change.base_text)
    if gone is None or (gone.version, gone.minor) != ((change.version[0], change.base_move), change.base_move_minor):
        return None
    return gone.image


def _write(kept: Kept, target: Target, change: Incoming, values: dict[str, Any]) -> None:
    soft = target.mode is Mode.SOFT_DELETE
    own = kept.rows.get(change.key)
    row = Row(values, change.version, change.minor, change.partition, change.offset, change.commit)
    if change.op is not Op.DELETE:
        kept.rows[change.key] = row
        return
    mine = own is not None and not own.deleted and own.version[0] == change.version[0]
    # One that came by another partition is no image: changes of it may be on their way there.
    image = own.values if change.moved and own is not None and mine and own.partition == change.partition else None
    if not soft or change.moved:
        kept.deleted[change.key] = DeletedKey(change.version, change.minor, change.partition, change.offset, change.commit, image)
    if soft:
        kept.rows[change.key] = replace(row, values=values if own is None else own.values, deleted=True)
    else:
        kept.rows.pop(change.key, None)


def _account(delta: Delta, winners: Sequence[Incoming], duplicate_truncation: bool) -> tuple[PartitionCounts, ...]:
    rows = []
    for span in delta.spans:
        known = dict(delta.counts.get(span.partition, {}))
        if duplicate_truncation and delta.truncation is not None and delta.truncation.partition == span.partition:
            known["applied"] -= 1
            known["duplicate"] = known.get("duplicate", 0) + 1
        won = sum(w.partition == span.partition for w in winners)
        staged = delta.meta["partition"].to_pylist().count(span.partition)
        row = PartitionCounts(
            span.partition,
            span.start,
            span.stop,
            known.get("applied", 0) + won,
            known.get("folded", 0),
            known.get("duplicate", 0) + staged - won,
            sum(r.partition == span.partition for r in delta.rejected),
            span.filtered,
        )
        if row.applied + row.folded + row.duplicate + row.parked + row.filtered != span.records:
            raise CdcError(f"partition {span.partition}: the account does not close: {row} of {span.records}", code="account_open")
        rows.append(row)
    return tuple(rows)


def plain(values: pa.Array | pa.ChunkedArray) -> list[Any]:
    """Python values; dates and times as the integers behind them, because infinity and far years have no Python date."""
    result: list[Any] = values.cast(_integers(values.type)).to_pylist()
    return result


def restore(values: list[Any], type_: pa.DataType) -> pa.Array:
    return pa.array(values, _integers(type_)).cast(type_)


def _integers(type_: pa.DataType) -> pa.DataType:
    if pa.types.is_list(type_):
        return pa.list_(_integers(type_.value_type))
    if pa.types.is_date32(type_):
        return pa.int32()
    return pa.int64() if pa.types.is_temporal(type_) else type_
