"""One table that is loaded by queries: pages of rows in the order of (cursor, key), through the same door and the same merge as changes.

Order. Each row that is merged is a record of a log of one partition that only exists in the checkpoint: its offset is a running number, and
so is its position. A row that was read later has the higher number and wins, whatever its cursor says: rows that move back included.

Reading is inclusive: a load begins at the mark itself (less a lookback), since rows may share a cursor. So rows come again, and of each the
target's row is looked up first: one that is the same in all columns is left out. Loading twice changes nothing, in any mode: an upsert is
not written again, a log of changes gets a row only where something changed, and what was counted stays. Only where the target was empty at
the beginning nothing is looked up.

Progress. The mark (pipeline.load_mark) moves in the transaction of the rows that it stands behind. A load that is killed goes on there; a
second one at the same time takes another epoch, and the first one is fenced at its next merge.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import structlog

from cdc_service import transforms
from cdc_service.config.models import Limits, Load
from cdc_service.config.problems import nearest
from cdc_service.config.resolve import TableConfig
from cdc_service.core.append import gather
from cdc_service.core.clock import Clock
from cdc_service.core.errors import CdcError, ConfigError, TableStopped
from cdc_service.core.fold import fold
from cdc_service.core.identity import Identities, Judgement, Outcome
from cdc_service.core.keys import key_text
from cdc_service.core.logical import Kind
from cdc_service.core.types import (
    META,
    ChangeBatch,
    Column,
    Decision,
    LogId,
    Mode,
    Op,
    RawBatch,
    Rejected,
    Span,
    TableId,
    TableSchema,
    Target,
)
from cdc_service.core.validate import nothing_parked
from cdc_service.failpoints import failpoint
from cdc_service.pipeline.breaker import Breaker
from cdc_service.pipeline.context import Context
from cdc_service.pipeline.failures import drifted
from cdc_service.pipeline.load_mark import Mark, Run
from cdc_service.pipeline.load_same import gone, kept_keys, same
from cdc_service.pipeline.prepare import Prepare
from cdc_service.pipeline.schema_versions import SchemaVersions
from cdc_service.pipeline.table_state import State
from cdc_service.pipeline.tally import Tally
from cdc_service.ports.destination import Destination
from cdc_service.ports.feed import TopicFacts
from cdc_service.ports.load import ORDERED, TIMES, Loadable, LoadedTable, Page, Part, Reading, Snapshot
from cdc_service.ports.reader import Load as RowsAsked
from cdc_service.ports.source import Fill, Reread
from cdc_service.transforms import transformed_schema

CLUSTER = "load"
"""What stands for a cluster where there is no Kafka."""
PARTITION = 0
ANOTHER_LOOKBACK = {Kind.TIMESTAMP: 7200.0}
"""The lookback where none is given: a clock of no zone is set back by an hour in autumn, and by two at most."""


@dataclass(frozen=True, slots=True)
class Window:
    """What one load is asked for: ``full`` all rows, ``since`` and ``until`` (from, and below) only those with such a cursor."""

    full: bool = False
    since: str | None = None
    until: str | None = None

    @property
    def bounded(self) -> bool:
        return self.since is not None or self.until is not None


@dataclass(slots=True)
class Done:
    """What a load has done so far. ``read`` = unchanged + applied + folded + duplicate + parked; ``deleted`` are keys that were gone."""

    read: int = 0
    unchanged: int = 0
    applied: int = 0
    duplicate: int = 0
    parked: int = 0
    deleted: int = 0
    low: str | None = None
    held: str = ""
    full: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Records(RawBatch):
    """A page as the line takes records: those of it that are set aside are written only then."""

    page: Page
    batch: ChangeBatch

    def value(self, place: int) -> bytes | None:
        return self.page.raw(place)


class Pages:
    """ports.events.Decoder of pages, which are decoded already."""

    def decode(self, raw: RawBatch) -> Sequence[ChangeBatch]:
        assert isinstance(raw, Records)
        return [raw.batch]

    def from_text(self, topic: str, rows: pa.Table, version: TableSchema) -> pa.Table:
        raise CdcError("a loaded table has no events", code="reread_failed")


class NoLog:
    """What a table asks of Kafka and of its source's log (pipeline.context), where there is neither. Rows that are older than a new column
    count as NULL in it: all of them are read again (``LoadTask._is_wider``)."""

    def describe(self, names: Sequence[str], *, lows: bool = True) -> Mapping[str, TopicFacts]:
        return {}

    def topic_ids(self, names: Sequence[str]) -> Mapping[str, str]:
        return {}

    def load(self, table: TableId) -> RowsAsked:
        raise CdcError(f"{table} is loaded by queries, and not beside a stream", code="reread_failed")

    def fill_of_added_column(self, table: TableId, column: str) -> Fill:
        return Fill(known=True)

    def judge(self, table: TableId, before: str | None, after: str | None) -> Judgement:
        return Judgement(Outcome.SAME)

    def reread(self, table: TableId, keys: pa.Table, columns: Sequence[str]) -> Reread:
        raise CdcError(f"{table} is loaded by queries, and no row of it is read by itself", code="reread_failed")

    def misread(self, table: TableId, key: Sequence[str], rows: pa.Table) -> pa.Int8Array | None:
        return None

    def identities(self, tables: Sequence[TableId]) -> Identities:
        return Identities(0, {})


class LoadTask:
    """``run`` loads once. ``done`` may be read from another thread."""

    def __init__(self, config: TableConfig, destination: Destination, source: Loadable, clock: Clock, limits: Limits) -> None:
        assert config.load is not None
        self.config = config
        self.done = Done()
        self._load: Load = config.load
        self._source = source
        self._destination = destination
        self._clock = clock
        self._transforms = transforms.of(config)
        self._prepare = Prepare(config.topic, Pages(), self._transforms, destination.capabilities)
        no_log = NoLog()
        context = Context(
            *(destination, no_log, Pages(), no_log, lambda table: None, lambda table: (), no_log.identities, clock, limits),
        )
        self.state = State(destination, config.target, clock)
        self.tally = Tally(destination, config.target, clock)
        self._versions = SchemaVersions(config.target, context, self._prepare)
        self._breaker = Breaker(config.source, limits)
        self._next = self._epoch = self._batches = 0
        self._mark = Mark()
        self._parked = set[str]()
        self._known: set[tuple[str | None, bytes | None]] | None = None

    @property
    def target(self) -> Target:
        return self.config.target

    @property
    def log(self) -> LogId:
        """Another database, cursor or key is another log: all rows are read, and only those that differ are written."""
        what = (self._source.place, self._load.by, self._load.cursor, tuple(self._load.key), self._load.null_cursor)
        return LogId(CLUSTER, str(self.config.source), hashlib.sha256(repr(what).encode()).hexdigest()[:16])

    # What is read

    def reading(self) -> tuple[LoadedTable, Reading]:
        """The table and how it is read. Raises TableStopped or ConfigError where it cannot be."""
        name, load = self.config.source, self._load
        table = self._source.table(name)
        if table is None:
            raise TableStopped(f"{name}: the source has no such table", state="error", hint="take it out of tables", code="table_gone")
        wanted = [c for c in table.columns if c.name not in self.config.exclude]
        key = tuple(load.key) or table.key
        if not key:
            hint = f"name the columns that do: tables.{name}.load.key: [..]"
            raise ConfigError(f"{name} has no primary key, so nothing names a row of it", hint=hint, code="load_keyless")
        for column in dict.fromkeys([*key, *([load.cursor] if load.cursor else [])]):
            found = table.column(column)
            what = "cursor" if column == load.cursor else "key"
            if found is None or found not in wanted:
                near = nearest(column, [c.name for c in wanted])
                raise ConfigError(f"{name} has no column {column} that its {what} could be", hint=f"did you mean {near}?" if near else "")
            if found.type is None or found.type.kind not in ORDERED:
                why = found.reason or f"a {found.source_type} is in no order"
                raise ConfigError(f"{name}: {column} cannot be its {what}: {why}", hint="name another column", code="load_order")
            if load.lookback is not None and column == load.cursor and found.type.kind not in TIMES:
                raise ConfigError(f"{name}: {column} is no time, so no lookback can be taken from it", hint="leave lookback out")
        if unreadable := [c for c in wanted if c.type is None]:
            names = ", ".join(c.name for c in unreadable)
            raise TableStopped(
                f"{name}: column {unreadable[0].name}: {unreadable[0].reason}",
                state="schema_stopped",
                hint=f"leave out what cannot be read: tables.{name}.columns: {{exclude: [{names}]}}",
            )
        columns = tuple(Column(c.name, c.type, c.nullable, source_type=c.source_type) for c in wanted if c.type is not None)
        return table, Reading(name, columns, key, load.cursor)

    # Opening

    def open(self, *, anew: bool) -> None:
        """Takes the table at the destination. ``anew``: rows without a checkpoint are replaced, and a schema that cannot follow is made
        again. Raises TableStopped where a person is needed."""
        d, target = self._destination, self.target
        kept = d.load_state(target)
        checkpoints = d.checkpoints(target)
        self.state.begin(kept)
        totals = self.tally.recount()
        if self.state.stopped:
            raise TableStopped(
                f"{self.config.source} is {self.state.name}",
                state=self.state.name,
                hint=kept.error_hint or f"cdc resume {self.config.source}",
            )
        begin = max([*(c.next_offset for c in checkpoints), totals.high_record or 0])
        if not checkpoints and d.table_rows(target) and d.schemas(target):
            if not anew:
                raise TableStopped(
                    f"{self.config.source}: its target has rows and no checkpoint, so nobody knows what they are",
                    state="needs_decision",
                    hint=f"compare and mend all of them: cdc load {self.config.source} --full",
                )
            self._begin_anew(begin, retire=False)
        self._claim(begin)
        self._versions.load(totals.high_record or 0, self.state.now.generation)
        if self._versions.all and (found := d.drift(target, self._versions.all[-1])):
            raise drifted(self.config, found)
        self._parked = set(d.parked_keys(target).to_pylist())
        self._known, self._batches = None, 0
        if self.state.now.complete_through is None and self.state.name != "snapshotting":
            self.state.keep(state="snapshotting")

    def _claim(self, begin: int) -> None:
        (taken,) = self._destination.claim(self.target, self.log, {PARTITION: begin}, self.state.now.generation)
        self._next, self._epoch, self._mark = taken.next_offset, taken.epoch, Mark.read(taken.mark)

    def _begin_anew(self, begin: int, *, retire: bool) -> None:
        """The next generation, to which every row that is there already is older."""
        now = self.state.now
        state = replace(now, state="snapshotting", generation=now.generation + 1, complete_through=None, complete_at=None)
        self.state.now = self._destination.begin_anew(self.target, self.log, {PARTITION: begin}, state, retire=retire)

    # Loading

    def plan(self, window: Window, mark: str | None) -> tuple[int, str | None, bool]:
        """What ``run`` would do, the checkpoint's ``mark`` given: how many rows it would read, from which cursor on, and whether that is
        all of them. Asks the source alone."""
        table, reading = self.reading()
        self._mark = Mark.read(mark)
        with self._source.snapshot(reading) as snapshot:
            self._refuse(table, reading, snapshot)
            part, full = self._asked(snapshot, reading, window)
            return snapshot.count(part), part.low, full

    def run(self, window: Window, stop: Callable[[], bool] = lambda: False) -> bool:
        """Loads what ``window`` says; whether it came to its end. ``stop`` is asked before each page whether that is to be sooner. Raises
        TableStopped, with the state that the table is in then, and what source and destination raise; what was merged until then counts."""
        self.done = Done(full=window.full or self._load.by == "full")
        try:
            table, reading = self.reading()
            if window.bounded and reading.cursor is None:
                raise ConfigError(
                    f"{self.config.source} is loaded without a cursor, so no window can be taken", hint="leave out --since/--until"
                )
            schema = TableSchema(self.config.source, reading.columns, reading.key)
            self.open(anew=window.full)
            self._make(schema, anew=window.full)
            return self._read(table, reading, window, stop)
        except TableStopped as error:
            if self.state.name != error.state:  # Else it stood still already, and says why.
                self.state.stop(error)
                self.state.save()
            raise

    def _make(self, schema: TableSchema, *, anew: bool) -> None:
        """Makes the target hold such rows, before the first one comes; an empty table has a target too. Where it gets a column, what its
        rows hold in that is told by all of them alone, which is noted first."""
        made = transformed_schema(self._transforms, schema)
        if self._is_wider(made) and not (self._mark.run and self._mark.run.full):
            self._note(replace(self._mark, run=Run(full=True, fresh=False, low=None, at_us=0)))
        try:
            self._versions.evolve(made, (self._next + 1, self._next + 1))
        except TableStopped as error:
            if not anew:
                raise TableStopped(
                    error.message, state=error.state, hint=f"make it anew with all rows: cdc load {self.config.source} --full"
                ) from error
            self._begin_anew(self._next, retire=True)
            self.open(anew=True)
            self._versions.evolve(made, None)

    def _is_wider(self, schema: TableSchema) -> bool:
        if not self._versions.all:
            return False
        return not set(schema.names) <= {c.name for c in self._versions.all[-1].columns if not c.dropped}

    def _read(self, table: LoadedTable, reading: Reading, window: Window, stop: Callable[[], bool]) -> bool:
        with self._source.snapshot(reading) as snapshot:
            self._refuse(table, reading, snapshot)
            run, part = self._begun(snapshot, reading, window)
            if reading.cursor is not None and self._load.null_cursor == "include" and not window.bounded and run.after is None:
                for page in snapshot.pages(Part(nulls=True), self.config.flush.rows):
                    if stop():
                        return False
                    self._merge(page, reading, run, None)
            for page in snapshot.pages(part, self.config.flush.rows):
                if stop():
                    return False
                run = replace(run, after=page.last)
                self._merge(page, reading, run, None if window.bounded else replace(self._mark, run=run))
            empty = snapshot.high() is None and reading.cursor is not None
        if self._load.deletes == "compare" and not window.bounded and not self._remove_gone(reading, run, stop):
            return False
        if not window.bounded:
            self._end(run, empty=empty)
        return True

    def _refuse(self, table: LoadedTable, reading: Reading, snapshot: Snapshot) -> None:
        name = self.config.source
        if reading.cursor is not None and self._load.null_cursor == "refuse" and (count := snapshot.null_cursors()):
            raise TableStopped(
                f"{name}: {count} rows have no {reading.cursor}, so they would never be seen",
                state="error",
                hint=f"fill the column; or say so: tables.{name}.load.null_cursor: include (read each time), or skip",
                code="null_cursor",
            )
        if not any(set(names) <= set(reading.key) for names in table.unique) and snapshot.twins():
            raise TableStopped(
                f"{name}: its key ({', '.join(reading.key)}) names several rows, or holds NULL",
                state="error",
                hint="name columns that are unique and NOT NULL: load.key",
                code="key_not_unique",
            )

    def _begun(self, snapshot: Snapshot, reading: Reading, window: Window) -> tuple[Run, Part]:
        """The load that begins or goes on, and what is read for it."""
        part, self.done.full = self._asked(snapshot, reading, window)
        fresh = not self._destination.table_rows(self.target)
        going = self._mark.run
        if window.bounded:
            if going is not None and going.fresh:  # Something may stand behind its place from now on.
                self._note(replace(self._mark, run=replace(going, fresh=False)))
            return Run(False, fresh, None, snapshot.at_us), part
        if going is not None and part.after is not None:
            self.done.low = going.low
            return going, part
        self.done.low, self.done.held = snapshot.settled() if reading.cursor is not None else (None, "")
        return Run(self.done.full, fresh, self.done.low, snapshot.at_us), part

    def _asked(self, snapshot: Snapshot, reading: Reading, window: Window) -> tuple[Part, bool]:
        """What is read, and whether it is all rows: what was begun goes on, unless more is wanted now."""
        if window.bounded:
            since, until = (None if said is None else snapshot.written(said) for said in (window.since, window.until))
            return Part(low=since, until=until), False
        going = self._mark.run
        full = window.full or reading.cursor is None or (going is not None and going.full)
        after = going.after if going is not None and going.full == full else None
        return self._part(reading, full=full, after=after), full

    def _part(self, reading: Reading, *, full: bool, after: tuple[str, ...] | None = None) -> Part:
        low = None if full or reading.cursor is None else self._mark.low
        lookback = self._load.lookback
        if lookback is None and reading.cursor is not None:
            lookback = ANOTHER_LOOKBACK.get(reading.column(reading.cursor).type.kind, 0.0)
        return Part(low=low, lookback=lookback or 0.0 if low is not None else 0.0, after=after)

    def _end(self, run: Run, *, empty: bool) -> None:
        low = None if empty else run.low if run.low is not None else self._mark.low
        if (mark := Mark(low)) != self._mark:
            self._note(mark)
        self.done.low = low
        self.state.keep(state="streaming", complete_through=max(self._next, 1), complete_at=run.at_us)

    # Merging

    def _merge(self, page: Page, reading: Reading, run: Run, mark: Mark | None) -> None:
        """Merges what of a page is not in the target yet, and the mark behind it."""
        raw = self._records(page, reading)
        self.done.read += raw.num_rows
        batches, _ = self._prepare.fitting(raw, nothing_parked())
        batches = [self._not_parked_yet(batch) for batch in batches]
        if not run.fresh:
            batches = [self._changed(batch) for batch in batches]
        kept = sum(batch.num_rows + len(batch.rejected) for batch in batches)
        self.done.unchanged += raw.num_rows - kept
        if kept:
            self._merged([_renumbered(batch, self._next) for batch in batches], mark)
        elif mark is not None and run.full:  # Long ways are not gone twice.
            self._note(mark)

    def _merged(self, batches: Sequence[ChangeBatch], mark: Mark | None) -> None:
        """One transaction: rows, their account and the mark."""
        assert len(batches) == 1
        (batch,) = batches
        self._batches += 1
        batch_id = f"{self._epoch}.{self._batches}"
        if self.target.mode is Mode.APPEND:
            delta = gather([batch], batch_id=batch_id, target=self.target, generations=self._generations)
        else:
            delta = fold([batch], batch_id=batch_id, target=self.target, generations=self._generations)
        failpoint("line.folded")
        self._breaker.check(delta, self.tally.waiting.total())
        delta = replace(delta, mark=None if mark is None else mark.text(), decision=self._outdated(batch))
        receipt = self._destination.merge(delta, {PARTITION: self._epoch}, self.log, self._versions.all[-1])
        if delta.decision is not None:
            self._claim(self._next)  # Whoever else has the partition must ask again which keys are parked.
        self.tally.merged([batch], delta, receipt)
        (counts,) = receipt.partitions
        self._next = counts.stop
        self.done.applied += counts.applied
        self.done.duplicate += counts.folded + counts.duplicate
        self.done.parked += counts.parked
        if mark is not None:
            self._mark = mark
        if delta.decision is not None:
            self._parked.difference_update(_keys(batch))
        self._parked |= {r.key_text for r in batch.rejected if r.key_text is not None}
        failpoint("line.merged")

    def _outdated(self, batch: ChangeBatch) -> Decision | None:
        """A row is read whole: records of its key that were set aside before tell nothing any more."""
        if not self._parked:
            return None
        again = self._parked & {*_keys(batch), *(r.key_text for r in batch.rejected)}
        waiting = max(1, self.tally.waiting.total())
        found = [r.id for key in sorted(again) for r in self._destination.quarantined(self.target, state="parked", key=key, most=waiting)]
        return Decision("cdc load", "a later state of the row was loaded", discarded=tuple(found)) if found else None

    def _note(self, mark: Mark) -> None:
        """Keeps the mark without rows."""
        own = self._versions.all[-1] if self._versions.all else TableSchema(self.config.source, (), ())
        empty = ChangeBatch(own, own.arrow.empty_table(), META.empty_table(), (Span(PARTITION, self._next, self._next, 0),))
        self._batches += 1
        generations = self._generations
        delta = fold([empty], batch_id=f"{self._epoch}.{self._batches}", target=self.target, generations=generations)
        self._destination.merge(replace(delta, mark=mark.text()), {PARTITION: self._epoch}, self.log, own)
        self._mark = mark

    def _generations(
        self, partition: npt.NDArray[np.int32], offset: npt.NDArray[np.int64], record: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.int32]:
        return np.full(len(offset), self.state.now.generation, np.int32)

    def _records(self, page: Page, reading: Reading) -> Records:
        """The page as records from the next offset on; rows with a fault are set aside."""
        n = page.rows.num_rows
        schema = TableSchema(self.config.source, reading.columns, reading.key)
        numbers = np.arange(n)
        meta = _meta(numbers, np.full(n, int(Op.READ), np.int8), self._next, _instants(page.rows, reading))
        faults = {fault.row: fault for fault in reversed(page.faults)}
        wrong: dict[int, set[str]] = {}
        for fault in page.faults:
            wrong.setdefault(fault.row, set()).add(fault.column)
        texts = key_text(page.rows.select(list(reading.key))) if faults else pa.nulls(0, pa.string())
        rejected = [
            Rejected(
                *(PARTITION, self._next + row, None, page.raw(row), ()),
                key_text=None if wrong[row] & set(reading.key) else texts[row].as_py(),
                stage="decode",
                code=fault.code,
                message=fault.message,
            )
            for row, fault in sorted(faults.items())
        ]
        span = Span(PARTITION, self._next, self._next + n, n)
        batch = ChangeBatch(schema, page.rows.cast(schema.arrow), meta, (span,))
        if faults:
            batch = batch.filter(pa.array(~np.isin(numbers, list(faults))), rejected)
        none = pa.nulls(n, pa.binary())
        return Records(self.config.topic, none, none, meta["partition"], meta["offset"], (span,), lambda i: (), page=page, batch=batch)

    def _not_parked_yet(self, batch: ChangeBatch) -> ChangeBatch:
        """Without the records that are in the quarantine already, as they are: each load would park them again."""
        if not batch.rejected:
            return batch
        if self._known is None:
            most = max(1, self.tally.waiting.total())
            parked = self._destination.quarantined(self.target, state="parked", whole=True, most=most)
            self._known = {(r.key_text, r.value) for r in parked}
        new = tuple(r for r in batch.rejected if (r.key_text, r.value) not in self._known)
        self._known |= {(r.key_text, r.value) for r in new}
        return replace(batch, rejected=new)

    def _changed(self, batch: ChangeBatch) -> ChangeBatch:
        """Without the rows that the target holds already; of the others whether they are new there."""
        if not batch.num_rows or not self._versions.all:
            return batch
        own = self._versions.all[-1]
        with self._destination.view(self.target, own) as view:
            here, alike = same(view, self.target, own, batch.data)
        op = pa.array(np.where(here, int(Op.UPDATE), int(Op.CREATE)).astype(np.int8))
        meta = batch.meta.set_column(batch.meta.schema.get_field_index("op"), META.field("op"), op)
        return replace(batch, meta=meta).filter(pa.array(~alike), ())

    # Deletes

    def _remove_gone(self, reading: Reading, run: Run, stop: Callable[[], bool]) -> bool:
        """Deletes the rows of the target whose keys the source has no more, by a state of it behind all that was read."""
        own = self._versions.all[-1]
        key = tuple(own.column(name) for name in own.key)
        keys = Reading(self.config.source, reading.key_columns, reading.key)

        def there(snapshot: Snapshot) -> Iterator[pa.Table]:
            for page in snapshot.pages(Part(), self.config.flush.rows):
                if page.faults:
                    raise TableStopped(
                        f"{self.config.source}: which rows are gone cannot be told: in a key, {page.faults[0].message}",
                        state="error",
                        hint="mend the value at the source, or write deletes: never",
                        code="key_inexact",
                    )
                yield page.rows

        with self._source.snapshot(keys) as snapshot, self._destination.view(self.target, own) as view:
            found = list(gone(kept_keys(view, self.target, key), there(snapshot)))
        for part in found:
            for first in range(0, part.num_rows, self.config.flush.rows):
                if stop():
                    return False
                self._merged([self._deletes(part.slice(first, self.config.flush.rows), own)], None)
        self.done.deleted = sum(part.num_rows for part in found)
        return True

    def _deletes(self, keys: pa.Table, own: TableSchema) -> ChangeBatch:
        n = keys.num_rows
        live = tuple(c for c in own.columns if not c.dropped)
        data = pa.table([keys[c.name] if c.name in own.key else pa.nulls(n, c.type.arrow) for c in live], names=[c.name for c in live])
        schema = TableSchema(own.table, live, own.key)
        meta = _meta(np.arange(n), np.full(n, int(Op.DELETE), np.int8), self._next, pa.nulls(n, pa.int64()))
        unsent = None
        if self.target.mode is Mode.APPEND:
            unsent = pa.table({c.name: pa.array(np.ones(n, np.bool_)) for c in live if c.name not in own.key})
        return ChangeBatch(schema, data.cast(schema.arrow), meta, (Span(PARTITION, self._next, self._next + n, n),), unsent=unsent)


def _meta(index: npt.NDArray[np.int64], op: npt.NDArray[np.int8], begin: int, source_us: pa.Array) -> pa.Table:
    """META of records that follow one another from the offset ``begin`` on. Positions are above 0, where those of a snapshot end."""
    n = len(op)
    offset = np.arange(begin, begin + n)
    columns = [op, np.full(n, PARTITION, np.int32), offset, offset + 1, offset + 1, np.zeros(n, np.int64), source_us, index]
    return pa.table([pa.array(c, f.type) for c, f in zip(columns, META, strict=True)], schema=META)


def _keys(batch: ChangeBatch) -> list[str]:
    return list(key_text(batch.data.select(batch.schema.key)).to_pylist())


def _renumbered(batch: ChangeBatch, begin: int) -> ChangeBatch:
    """The batch with the offsets of what is left of it: what changes nothing is no record."""
    kept, parked = batch.num_rows, len(batch.rejected)
    meta = _meta(batch.meta["index"].to_numpy(), batch.meta["op"].to_numpy(), begin, batch.meta["source_us"].combine_chunks())
    rejected = tuple(replace(r, offset=begin + kept + i) for i, r in enumerate(batch.rejected))
    return replace(batch, meta=meta, rejected=rejected, spans=(Span(PARTITION, begin, begin + kept + parked, kept + parked),))


def _instants(rows: pa.Table, reading: Reading) -> pa.Array:
    """When each row was changed, where its cursor says so; of a time without a zone nobody knows."""
    if reading.cursor is None or reading.column(reading.cursor).type.kind is not Kind.TIMESTAMPTZ:
        return pa.nulls(rows.num_rows, pa.int64())
    return rows[reading.cursor].combine_chunks().view(pa.int64())


def log_said(config: TableConfig, done: Done) -> None:
    """One line of the log for a load that ended."""
    say: Iterable[tuple[str, object]] = ((n, getattr(done, n)) for n in ("read", "applied", "unchanged", "parked", "deleted", "held"))
    structlog.get_logger().info("loaded", table=str(config.source), **dict(say))
