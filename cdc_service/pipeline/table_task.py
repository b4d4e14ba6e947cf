"""One table on the line: what of it was read and is not merged yet, and where the destination says that it stands.

Promises: a buffer leaves only with a Receipt, or is dropped and read again from the checkpoint; a table that stops names its state and
the cure and leaves the others alone. Called from the line's thread only.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import structlog

from cdc_service import transforms
from cdc_service.config.resolve import TableConfig
from cdc_service.core.append import gather
from cdc_service.core.clock import Backoff
from cdc_service.core.errors import CdcError, Fenced, TableStopped, Unavailable
from cdc_service.core.fold import fold
from cdc_service.core.identity import Identities, Judgement, Outcome
from cdc_service.core.order import generations
from cdc_service.core.types import ChangeBatch, Delta, LogId, Mode, RawBatch, Receipt, TableId, Tail, Target
from cdc_service.core.validate import nothing_parked
from cdc_service.failpoints import failpoint
from cdc_service.pipeline.breaker import Breaker
from cdc_service.pipeline.buffer import Buffer, one_version, stream_records
from cdc_service.pipeline.context import Context
from cdc_service.pipeline.failures import drifted, scattered, snapshotted_anew
from cdc_service.pipeline.goals import Goal, Goals, passed
from cdc_service.pipeline.prepare import Prepare
from cdc_service.pipeline.reread import Unreadable, Why, completed, doubted
from cdc_service.pipeline.resume import starts
from cdc_service.pipeline.schema_versions import SchemaVersions
from cdc_service.pipeline.table_state import State
from cdc_service.pipeline.tally import Tally
from cdc_service.ports.destination import RightsLacking, TableState, UnsentUnknown

Asked = Callable[[], Identities | None]
"""Waits for the answer to a question that was put to the source."""
COMPLETIONS_MAX = 3
COLUMN_SECONDS = 10.0
"""How long an event is awaited that tells the form of a new column, where the catalog does not."""


def not_asked() -> Identities | None:
    return None


@dataclass(slots=True)
class Part:
    """A partition that this process owns: the destination's checkpoint and epoch, and the next offset that the line reads; of a table
    without a key also the last change before the checkpoint."""

    checkpoint: int
    epoch: int
    read: int
    tail: Tail | None = None


class TableTask:
    """``others`` are the checkpoints of partitions that other processes own, as last seen."""

    def __init__(self, config: TableConfig, context: Context) -> None:
        self.config = config
        self.state = State(context.destination, config.target, context.clock)
        self.tally = Tally(context.destination, config.target, context.clock)
        self.log: LogId | None = None
        self.parts: dict[int, Part] = {}
        self.others: Mapping[int, int] = {}
        self.ends: Mapping[int, int] = {}
        self.trouble: CdcError | None = None
        self.backoff = Backoff(context.clock)
        self.held: list[RawBatch] = []
        self.decoding = Backoff(context.clock)
        """The wait of records that cannot be decoded yet (``held``)."""
        self.opened_at = float("-inf")
        self.context = context
        self._unknown_since: float | None = None
        self._opened = False
        self._batches = 0
        self.prepare = Prepare(config.topic, context.decoder, transforms.of(config), context.destination.capabilities)
        self._versions = SchemaVersions(config.target, context, self.prepare)
        self._applied_to = 0
        self._parked = nothing_parked()
        self._breaker = Breaker(config.source, context.limits)
        self._goals = Goals()
        self._refused: dict[tuple[int, int], Why] = {}
        self._buffer = Buffer(context.clock)

    @property
    def source(self) -> TableId:
        return self.config.source

    @property
    def target(self) -> Target:
        return self.config.target

    @property
    def doubtful(self) -> bool:
        """Whether rows of the generation may be wrong, so that its end has to be the beginning of another one."""
        return bool(self._versions.doubtful)

    @property
    def reload(self) -> str:
        """Why the table has to be read anew; empty where it has not."""
        return self._versions.reload

    @reload.setter
    def reload(self, why: str) -> None:
        self._versions.reload = why

    @property
    def flows(self) -> bool:
        """Whether records of the table are wanted now."""
        return self.takes and not self.backoff.waiting and not self.held

    @property
    def takes(self) -> bool:
        """Whether records that are here already can be buffered: nothing else would ever bring them again."""
        return self._opened and not self.state.stopped

    @property
    def leads(self) -> bool:
        """Of the processes that share a table one watches over its state: the one that has its first partition."""
        return 0 in self.parts

    @property
    def must_open(self) -> bool:
        return bool(self.parts) and not self._opened and not self.state.stopped and not self.backoff.waiting

    # Opening

    def own(self, partition: int) -> None:
        """A partition came to this process; ``open`` takes it."""
        self.parts.setdefault(partition, Part(0, 0, -1))

    def open(self) -> Mapping[int, int]:
        """Takes the partitions at the destination, and says where each is read on. The buffer must be empty.

        Raises TableStopped where a person is needed, Unavailable while a server does not answer.
        """
        self._opened = False
        m, target = self.context, self.target
        # The state first, so that checkpoints of before a resync are not taken for those of its generation; and both before the log: what
        # others merge meanwhile must not look like a log that ends before its checkpoint.
        kept = m.destination.load_state(target)
        checkpoints = m.destination.checkpoints(target)
        facts = m.topics.describe([self.config.topic]).get(self.config.topic)
        if facts is None:
            raise Unavailable(f"{self.source}: topic {self.config.topic} does not exist", hint="cdc register creates it")
        if not self.config.keyed and target.mode is Mode.APPEND and len(facts.ends) > 1:
            raise scattered(self.config, len(facts.ends))
        self.state.begin(kept)
        self.recall()
        self.tally.refresh()
        if self.state.stopped:
            self.parts |= {c.partition: Part(c.next_offset, 0, -1) for c in checkpoints if c.log == facts.log and c.partition in self.parts}
            return {}
        rows = None if checkpoints else m.destination.table_rows(target)
        begin = starts(self.source, facts.log, facts.ends, sorted(self.parts), checkpoints, rows)
        taken = m.destination.claim(target, facts.log, begin, self.state.now.generation)
        if self.log != facts.log:
            self._goals.clear()  # Their ends are another log's.
        self.log = facts.log
        self.ends = {p: high for p, (_, high) in facts.ends.items()}
        tails = m.destination.tails(target, facts.log) if target.mode is Mode.APPEND else {}
        self.parts = {c.partition: Part(c.next_offset, c.epoch, c.next_offset, tails.get(c.partition)) for c in taken}
        self._versions.load(self.applied_to, self.state.now.generation)
        if self._versions.all and (found := m.destination.drift(target, self._versions.all[-1])):
            raise drifted(self.config, found)
        self._parked = m.destination.parked_keys(target)
        self._batches = 0
        self._opened = True
        self.opened_at = m.clock.monotonic()
        self.clear_error()
        return {p: part.checkpoint for p, part in self.parts.items()}

    def close(self, partitions: Iterable[int] | None = None) -> None:
        """Gives partitions back (all where None); what is buffered is dropped, since a batch spans all of them."""
        self.drop()
        if partitions is None:
            self.parts.clear()
        for number in partitions or ():
            self.parts.pop(number, None)

    def drop(self) -> None:
        """Forgets what was read since the checkpoint; the next ``open`` says where to read on."""
        self._buffer.clear()
        self.held.clear()
        self._opened = False

    # Reading

    def receive(self, raw: RawBatch) -> None:
        """Decodes and screens records, and buffers them. Raises Fenced where they do not follow what was read before, and Unavailable
        where they cannot be decoded yet: then they are held, and ``again`` is to be called after a while."""
        if self.held:
            self.held.append(raw)
            return
        try:
            self._receive(raw)
        except Unavailable:
            self.held.append(raw)
            raise

    def again(self) -> None:
        """Decodes what is held, in its order. Raises as ``receive`` does."""
        held, self.held = self.held, []
        for place, raw in enumerate(held):
            try:
                self._receive(raw)
            except Unavailable:
                self.held += held[place:]
                raise
        self.decoding.succeeded()
        self.clear_error()

    def _receive(self, raw: RawBatch) -> None:
        for span in raw.spans:
            part = self.parts.get(span.partition)
            if part is None or part.read != span.start:
                raise Fenced(f"{self.source}: records do not follow what was read before; they are read again from the checkpoint")
        arrived, self._parked = self.prepare.fitting(raw, self._parked, self._refused)
        self._buffer.add(arrived, sum(span.records for span in raw.spans))
        for span in raw.spans:
            self.parts[span.partition].read = span.stop

    @property
    def full(self) -> bool:
        """Whether the buffer holds a whole batch."""
        return self._buffer.full(self.config.flush)

    def due(self) -> bool:
        """Whether the buffer is to be merged now: rows, bytes or age."""
        return self.due_in <= 0

    @property
    def due_in(self) -> float:
        """The seconds until it is; infinity where nothing waits, or may not be merged."""
        wait = self._buffer.due_in(self.config.flush)
        if wait == float("inf") or self.backoff.waiting or self.state.stopped:
            return float("inf")
        return 0.0 if self.full else wait

    @property
    def has_buffer(self) -> bool:
        return bool(self._buffer)

    @property
    def buffered_bytes(self) -> int:
        return self._buffer.nbytes + sum(raw.nbytes for raw in self.held)

    # Merging

    def set_aside(self) -> None:
        """What is buffered is for the next ``flush``; what is received from now on is not. ``put_back`` ends it."""
        self._buffer.set_aside()

    def put_back(self) -> None:
        """What ``flush`` left (nothing, where it went well) stands first in the buffer again."""
        self._buffer.put_back()

    @property
    def is_ahead(self) -> bool:
        """Whether what was set aside tells of changes that the source made after it last said what the table is."""
        records = stream_records(self._buffer.aside) if self.state.now.identity and self.state.name == "streaming" else None
        return records is not None and records[1] > self.state.now.identity_at

    def flush(self, asked: Asked = not_asked) -> Mapping[int, int]:
        """Merges what was set aside, one transaction for each run of one schema version; the checkpoints that moved.

        ``asked`` gives what the source said after the records came, None where it was not asked or did not answer. What was merged before
        an error is gone from what was set aside, the rest stays. Raises what the destination and the source raise. May run beside
        ``receive``, and beside nothing else of the table.
        """
        moved: dict[int, int] = {}
        while aside := self._buffer.aside:
            aside[:] = [self.translated(batch) for batch in aside]
            count, run = one_version(aside)
            delta, receipt = self._merge(run, asked)
            self._buffer.merged(count)
            self.tally.merged(run, delta, receipt)
            for counts in receipt.partitions:
                self.parts[counts.partition].checkpoint = counts.stop
            for partition, tail in delta.tails.items():
                self.parts[partition].tail = tail
            self._refused = {w: why for w, why in self._refused.items() if w[1] >= self.parts[w[0]].checkpoint}
            moved.update({c.partition: c.stop for c in receipt.partitions})
            failpoint("line.merged")
        return moved

    def _merge(self, run: Sequence[ChangeBatch], asked: Asked) -> tuple[Delta, Receipt]:
        assert self.log is not None
        self._batches += 1
        batch_id = f"{max(p.epoch for p in self.parts.values())}.{self._batches}"
        delta = self.folded(run, batch_id)
        failpoint("line.folded")
        self._refuse_second_snapshot(delta)
        self._breaker.check(delta, self.tally.waiting.total())
        epochs = {span.partition: self.parts[span.partition].epoch for span in delta.spans}
        try:
            return delta, self.apply(run, delta, epochs, self.log, asked)
        except Unreadable as lost:
            # Its raw bytes are gone by now: the log is read again from the checkpoint, and the record parked on its way.
            self._refused |= lost.records
            raise Fenced(f"{self.source}: {len(lost.records)} records are read again and parked") from lost

    def apply(self, run: Sequence[ChangeBatch], delta: Delta, epochs: Mapping[int, int], log: LogId, asked: Asked = not_asked) -> Receipt:
        """Makes the target hold rows as ``run`` has them, and merges ``delta``, which was folded of it. ``asked`` is as in ``flush``.
        Raises Unreadable where a value stands nowhere, and what the destination and the source raise."""
        m = self.context
        if any(batch.num_rows for batch in run):
            self._identify(run, asked, others=self._versions.has_others(delta.schema))
            if self._versions.may_be_renamed(delta.schema):
                self._versions.distrust_passing(delta.schema)
            self._versions.evolve(delta.schema, stream_records(run), initial=delta.snapshot_record is not None)
            failpoint("line.evolved")

        def merge() -> Receipt:
            own = self._versions.all[-1] if self._versions.all else replace(delta.schema, version=0)
            return m.destination.merge(delta, epochs, log, own)

        def complete(unknown: UnsentUnknown) -> Delta:
            done = completed(delta, unknown, m.source, self.prepare)
            # Rows that were read again are later than changes still to come: what these tell of a column that came meanwhile is late.
            why = "rows were read again at the source for events of before it got the column {}"
            self._versions.distrust_lacking(delta.schema.names, why)
            failpoint("line.completed")
            return done

        if (keys := doubted(delta, m.source)) is not None:
            delta = complete(UnsentUnknown(keys, ()))
        for _ in range(COMPLETIONS_MAX):
            try:
                return merge()
            except UnsentUnknown as unknown:
                delta = complete(unknown)
        return merge()

    def _identify(self, run: Sequence[ChangeBatch], asked: Asked, *, others: bool) -> None:
        """Before rows are merged of which the source was not asked yet: what it says of the table since. An event does not tell that a
        value that it leaves out was written anew, or that it lacks a column; ``others`` are rows with other columns than the target.
        Where rows would show what never was, the table says first that it is not complete. Raises TableStopped, and what the source
        raises where there are ``others``."""
        kept = self.state.now
        if not kept.identity or not (others or self.state.name == "streaming"):
            return
        records = stream_records(run)
        latest = records[1] if records else 0
        if not others and latest <= kept.identity_at:
            return
        found = asked()
        if others and (found is None or found.position < latest):
            found = self.context.identities([self.source])
        now = found.tables.get(self.source) if found else None
        if found is None or now is None or found.position < latest or self.source in found.busy:
            if kept.columns_at < latest:
                self.state.keep(columns_at=latest)  # Until it is known.
            return
        judged = self.context.source.judge(self.source, kept.identity, now)
        if judged.outcome is Outcome.CARRIED:
            self.carry(judged, now, found.position)
        elif judged.outcome is Outcome.STOPS:
            raise TableStopped(judged.why, state=judged.state, hint=judged.hint, code=judged.code)
        elif judged.outcome is Outcome.ANEW:
            self.reload = judged.why
            if self.state.name == "streaming":
                self.state.keep(state="snapshotting")

    def carry(self, judged: Judgement, identity: str, position: int) -> None:
        """Makes the target follow a change of the source that no row tells of, and keeps the ``identity`` that the source has since, as
        of ``position``. ``reload`` says why where it cannot follow. Raises what the destination raises."""
        if judged.renamed:
            self.state.keep(columns_at=position)  # Before a reader sees the new names, under which the rows are older still.
        unknown = self._versions.follow(judged.renamed, position) if judged.columns else ""
        if unknown:
            self._await_column(unknown, position)
            return
        self._unknown_since = None
        if not self.reload:
            self.state.keep(identity=identity, identity_at=position, columns_at=position if judged.renamed else self.state.now.columns_at)

    def _await_column(self, name: str, position: int) -> None:
        """Only an event tells the form of the new column. Until one comes the table is not complete; where none comes it is read anew."""
        now = self.context.clock.monotonic()
        if self._unknown_since is None:
            self._unknown_since = now
            self.state.keep(columns_at=position)
        elif now - self._unknown_since >= COLUMN_SECONDS:
            self._unknown_since = None
            self.reload = f"only events tell the form of the new column {name}, and none came"

    def take_columns(self, position: int) -> None:
        """Makes the target hold the columns that the source's catalog has, as of ``position`` or later, before rows are read anew: those of
        a snapshot bring no column back that was dropped. Where it cannot follow (it is gone, or has other types), that shows when such
        rows come."""
        self.look_up()
        if self._versions.all and self.context.destination.drift(self.target, self._versions.all[-1]):
            return  # Opening it says what somebody did to the target.
        with contextlib.suppress(CdcError):
            self._versions.follow(self._versions.key_called_again(), position)

    @property
    def applied_to(self) -> int:
        """Up to here no row has news of columns: the highest position of rows that were applied, or of the catalog that was followed."""
        return max(self._applied_to, self.state.now.identity_at)

    def translated(self, batch: ChangeBatch) -> ChangeBatch:
        """The batch with the names that its columns have now at the source."""
        return self._versions.translated(batch)

    def folded(self, run: Sequence[ChangeBatch], batch_id: str) -> Delta:
        """What ``run`` comes to, by the table's mode."""
        if self.target.mode is Mode.APPEND:
            tails = {p: part.tail for p, part in self.parts.items() if part.tail is not None}
            return gather(run, batch_id=batch_id, target=self.target, generations=self._generations, tails=tails)
        if not run[0].schema.key and any(batch.num_rows for batch in run):
            raise TableStopped(
                f"{self.source}: its events have no key, so a change cannot be tied to a row",
                state="schema_stopped",
                hint="give it a primary key, or keep it as a log of changes (mode: append); then register it and load it anew: "
                f"cdc resync {self.source}",
            )
        loading = self.state.now.complete_through is None and not self.state.now.resync
        return fold(run, batch_id=batch_id, target=self.target, generations=self._generations, loading=loading)

    def _generations(
        self, partition: npt.NDArray[np.int32], offset: npt.NDArray[np.int64], record: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.int32]:
        kept = self.state.now
        return generations(partition, offset, record, kept.generation, dict(kept.opened_at or {}), kept.opened_record)

    def _refuse_second_snapshot(self, delta: Delta) -> None:
        """Rows of an initial snapshot later than what the table holds already, be they folded away by later changes: the connector began
        anew. A resync under way goes on to its end: changes of its generation may have come before those that are missing."""
        through, newest = self.state.now.complete_through, delta.snapshot_record
        if newest is None:
            return
        if self.state.now.resync and newest + 2**63 > self.state.now.opened_record:
            self._versions.doubt(())
        elif not self.state.now.resync and through is not None and newest + 2**63 > through:
            raise snapshotted_anew(self.config)

    def allow_more_parked(self) -> None:
        """A person has looked at the quarantine: as many again may be parked."""
        self._breaker.allow_more(self.tally.waiting.total())

    def look_up(self) -> None:
        """Reads anew what the destination tells of work done and of the target's schema."""
        self.recall()
        self._versions.load(self.applied_to, self.state.now.generation)

    def make(self, position: int) -> None:
        """At the end of a load: makes the target of a table of which no event ever came, empty; none where it is not certain how its events
        will look. Columns of the source, as of ``position``, that no row brought are added; ``reload`` says so where a column was called
        otherwise while rows came."""
        self._versions.load(self.applied_to, self.state.now.generation)
        if not self._versions.all:
            if (schema := self.context.schema_of(self.source)) is not None:
                self._versions.evolve(schema, None)
            return
        there, live = set(self.context.columns_of(self.source)), {c.name for c in self._versions.all[-1].columns if not c.dropped}
        if there == live or self.context.identities([self.source]).tables.get(self.source) != self.state.now.identity:
            return  # What it became since is for the next look to judge.
        if live <= there or (there - live and not self.context.destination.table_rows(self.target)):
            self._versions.follow({}, position)
        elif len(self._versions.all) > 1:
            self.reload = f"its column {min(live - there)} was called otherwise, or dropped, while its rows came"

    # State

    def recall(self) -> None:
        """What the destination tells of the work done so far."""
        totals = self.tally.recount()
        self._applied_to = max(0, totals.high_record or 0)

    def see_others(self) -> None:
        """Reads how far other processes are in the partitions that are theirs."""
        found = {c.partition: c.next_offset for c in self.context.destination.checkpoints(self.target) if c.log == self.log}
        self.others = {p: offset for p, offset in found.items() if p not in self.parts}
        if self._opened and not set(self.parts) <= set(found):
            self.drop()  # Somebody removed them; others would wait for a partition that they cannot see.

    def follow(self, state: TableState) -> None:
        """Takes over what another process wrote of the table; the partitions that are read here stay with it."""
        before = self.state.now
        if state.version <= before.version:
            return
        if before.generation == state.generation and not state.resync and before.complete_through is not None:
            state = replace(state, complete_through=max(before.complete_through, state.complete_through or 0))
        self.state.now, self.state.known = state, True
        if self.state.stopped or before.generation != state.generation:
            self.drop()
        elif before.state == "quarantine_stopped":
            self.allow_more_parked()

    def clear_error(self) -> None:
        """What it waited for is there again."""
        if self.held:
            return
        if self.trouble is not None and not self.state.stopped:
            structlog.get_logger().info("goes on", table=str(self.source), after=self.trouble.message)
        self.trouble = None

    def stop(self, error: CdcError) -> None:
        """Puts the table into the state that the error names; its partitions stand still until somebody acts."""
        self.drop()
        self.trouble = error
        if error.code == RightsLacking.code:
            self.backoff.failed()
        self.state.stop(error)

    # Progress

    def aim(self, goal: Goal) -> None:
        self._goals.aim(goal)

    def advance(self, goal: Goal) -> None:
        self.state.change(complete_through=goal.position, complete_at=goal.at_us or self.state.now.complete_at)

    def reached(self) -> Goal | None:
        """The latest goal that the checkpoints have passed since the last call."""
        return self._goals.reached(self.checkpoints)

    def passed(self, ends: Mapping[int, int]) -> bool:
        """Whether all below these ends is merged."""
        return passed(self.checkpoints, ends)

    @property
    def checkpoints(self) -> Mapping[int, int]:
        """How far each partition is merged, whoever reads it."""
        return {**self.others, **{p: part.checkpoint for p, part in self.parts.items()}}

    @property
    def lag(self) -> int:
        """Records between the checkpoints and the ends of the log, as last seen."""
        return self._between(self.checkpoints)

    @property
    def own_lag(self) -> int:
        """Of ``lag`` what lies in this process's partitions."""
        return self._between({p: part.checkpoint for p, part in self.parts.items()})

    def _between(self, checkpoints: Mapping[int, int]) -> int:
        return sum(max(0, end - checkpoints[p]) for p, end in self.ends.items() if p in checkpoints)
