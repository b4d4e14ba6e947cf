"""One table on the line: what of it was read and is not merged yet, and where the destination says that it stands.

Promises: a buffer leaves only with a Receipt, or is dropped and read again from the checkpoint; a table that stops names its state and
the cure and leaves the others alone. Called from the line's thread only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import numpy.typing as npt
import structlog

from cdc_service import transforms
from cdc_service.config.resolve import TableConfig
from cdc_service.core.append import gather
from cdc_service.core.clock import Backoff
from cdc_service.core.errors import CdcError, Fenced, TableStopped, Unavailable
from cdc_service.core.fold import fold
from cdc_service.core.identity import Identities
from cdc_service.core.order import generations
from cdc_service.core.types import NO_LOG, ChangeBatch, Delta, LogId, Mode, RawBatch, Receipt, TableId, Target
from cdc_service.core.validate import nothing_parked
from cdc_service.failpoints import failpoint
from cdc_service.pipeline.breaker import Breaker
from cdc_service.pipeline.buffer import Buffer, one_version, stream_records
from cdc_service.pipeline.context import Context
from cdc_service.pipeline.failures import drifted, scattered, snapshotted_anew
from cdc_service.pipeline.follower import Asked, Follower
from cdc_service.pipeline.goals import Goal
from cdc_service.pipeline.loading import Loading, Piece, Plan, loaded_delta
from cdc_service.pipeline.partitions import Part, Partitions
from cdc_service.pipeline.prepare import Prepare
from cdc_service.pipeline.reread import Unreadable, Why, completed, doubted
from cdc_service.pipeline.resume import starts
from cdc_service.pipeline.schema_versions import SchemaVersions
from cdc_service.pipeline.table_state import State
from cdc_service.pipeline.tally import Tally
from cdc_service.ports.destination import RightsLacking, TableState, UnsentUnknown

COMPLETIONS_MAX = 3


def not_asked() -> Identities | None:
    return None


class TableTask:
    def __init__(self, config: TableConfig, context: Context) -> None:
        self.config = config
        self.state = State(context.destination, config.target, context.clock)
        self.tally = Tally(context.destination, config.target, context.clock)
        self.partitions = Partitions()
        self.trouble: CdcError | None = None
        self.backoff = Backoff(context.clock)
        self.held: list[RawBatch] = []
        self.decoding = Backoff(context.clock)
        """The wait of records that cannot be decoded yet (``held``)."""
        self.opened_at = float("-inf")
        self.context = context
        self._opened = False
        self._batches = 0
        self.prepare = Prepare(config.topic, context.decoder, transforms.of(config), context.destination.capabilities)
        self.versions = SchemaVersions(config.target, context, self.prepare)
        self.follower = Follower(config, context, self.versions, self.state)
        self.loading: Loading | None = None
        """The load of its rows from the source itself, while one is under way."""
        self._parked = nothing_parked()
        self._breaker = Breaker(config.source, context.limits)
        self._refused: dict[tuple[int, int], Why] = {}
        self._buffer = Buffer(context.clock)

    @property
    def source(self) -> TableId:
        return self.config.source

    @property
    def target(self) -> Target:
        return self.config.target

    @property
    def flows(self) -> bool:
        """Whether records of the table are wanted now."""
        return self.takes and not self.backoff.waiting and not self.held and not self.waits_for_rows

    @property
    def takes(self) -> bool:
        """Whether records that are here already can be buffered: nothing else would ever bring them again."""
        return self._opened and not self.state.stopped

    @property
    def must_open(self) -> bool:
        return bool(self.partitions.own) and not self._opened and not self.state.stopped and not self.backoff.waiting

    # Opening

    def own(self, partition: int) -> None:
        """A partition came to this process; ``open`` takes it."""
        self.partitions.add(partition)

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
            own = self.partitions.own
            own |= {c.partition: Part(c.next_offset, 0, -1) for c in checkpoints if c.log == facts.log and c.partition in own}
            return {}
        rows = None if checkpoints else m.destination.table_rows(target)
        begin = starts(self.source, facts.log, facts.ends, sorted(self.partitions.own), checkpoints, rows)
        taken = m.destination.claim(target, facts.log, begin, self.state.now.generation)
        self.partitions.begin(facts.log, {p: high for p, (_, high) in facts.ends.items()})
        tails = m.destination.tails(target, facts.log) if target.mode is Mode.APPEND else {}
        self.partitions.claimed(taken, tails)
        self.follower.load()
        if self.versions.all and (found := m.destination.drift(target, self.versions.all[-1])):
            raise drifted(self.config, found)
        self._parked = m.destination.parked_keys(target)
        self._batches = 0
        self._opened = True
        self.opened_at = m.clock.monotonic()
        self.clear_error()
        return {p: part.checkpoint for p, part in self.partitions.own.items()}

    def close(self, partitions: Iterable[int] | None = None) -> None:
        """Gives partitions back (all where None); what is buffered is dropped, since a batch spans all of them."""
        self.drop()
        if self.loading is not None:
            self.loading.fresh = False  # Whoever has them next may write.
        if partitions is None:
            self.partitions.own.clear()
        for number in partitions or ():
            self.partitions.own.pop(number, None)

    def drop(self) -> None:
        """Forgets what was read since the checkpoint; the next ``open`` says where to read on."""
        self._buffer.clear()
        self.held.clear()
        self._opened = False

    # Loading

    def load(self) -> None:
        """Begins, or goes on, to read the rows of the table's generation at the source itself; ``loading`` says how far that is. Raises
        CdcError (unloadable) where nobody can tell the form of its columns."""
        self.end_load()
        schema, generation = self.context.schema_of(self.source), self.state.now.generation
        if schema is None:
            raise CdcError(f"{self.source}: the catalog does not tell the form of its events", code="unloadable")
        kept = self.context.destination.load_ranges(self.target, generation)
        empty = self.target.mode is Mode.UPSERT and not kept and not self.context.destination.table_rows(self.target)
        read = partial(self.context.source.load, self.source)
        m, fresh = self.context, empty and not self.has_buffer
        seconds = m.limits.snapshot_seconds
        self.loading = Loading(generation, read, self.prepare, schema, kept, clock=m.clock, seconds=seconds, fresh=fresh, fetch=m.fetch)

    def end_load(self) -> None:
        if self.loading is not None:
            self.loading.end()
        self.loading = None

    @property
    def has_its_rows(self) -> bool:
        """Whether no row is awaited that does not come by the topic."""
        return not self.config.direct or self.state.name not in ("waiting", "snapshotting")

    @property
    def waits_for_rows(self) -> bool:
        """Whether the stream waits until rows are there that are read at the source: before they are asked for, and while they are added
        to an empty target."""
        if self.has_its_rows or self.state.stopped:
            return False
        return not self.state.now.resync or (self.loading is not None and self.loading.fresh)

    @property
    def has_piece(self) -> bool:
        """Whether a piece of the load can be merged."""
        return self.loading is not None and self.loading.next() is not None and self.takes and not self.backoff.waiting

    def _merge_piece(self, loading: Loading) -> None:
        item = loading.next()
        try:
            if isinstance(item, Plan):
                self.context.destination.plan_load(self.target, loading.generation, item.ranges)
            elif isinstance(item, Piece):
                loading.fresh &= set(self.partitions.ends) <= set(self.partitions.own)  # Else others may write.
                part = replace(item.part, fresh=loading.fresh)
                run, delta = [item.batch], loaded_delta(item.batch, self.target, part)
                receipt = self.apply(run, delta, {}, NO_LOG)
                self.tally.merged(run, delta, receipt)
        except Unavailable:
            raise
        except CdcError:
            self.end_load()  # It is begun again, from what is there.
            raise
        loading.taken()
        failpoint("line.loaded")

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
        own = self.partitions.own
        for span in raw.spans:
            part = own.get(span.partition)
            if part is None or part.read != span.start:
                raise Fenced(f"{self.source}: records do not follow what was read before; they are read again from the checkpoint")
        arrived, self._parked = self.prepare.fitting(raw, self._parked, self._refused)
        self._buffer.add(arrived, sum(span.records for span in raw.spans))
        for span in raw.spans:
            own[span.partition].read = span.stop

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
        if self.has_piece:
            return 0.0
        if self.waits_for_rows:
            return float("inf")
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
        own = self.partitions.own
        if self.loading is not None and self.has_piece:
            self._merge_piece(self.loading)
        while (aside := self._buffer.aside) and not self.waits_for_rows:
            aside[:] = [self.translated(batch) for batch in aside]
            count, run = one_version(aside)
            delta, receipt = self._merge(run, asked)
            self._buffer.merged(count)
            self.tally.merged(run, delta, receipt)
            for counts in receipt.partitions:
                own[counts.partition].checkpoint = counts.stop
            for partition, tail in delta.tails.items():
                own[partition].tail = tail
            self._refused = {w: why for w, why in self._refused.items() if w[1] >= own[w[0]].checkpoint}
            moved.update({c.partition: c.stop for c in receipt.partitions})
            failpoint("line.merged")
        return moved

    def _merge(self, run: Sequence[ChangeBatch], asked: Asked) -> tuple[Delta, Receipt]:
        own, log = self.partitions.own, self.partitions.log
        assert log is not None
        self._batches += 1
        batch_id = f"{max(p.epoch for p in own.values())}.{self._batches}"
        delta = self.folded(run, batch_id)
        failpoint("line.folded")
        self._refuse_second_snapshot(delta)
        self._breaker.check(delta, self.tally.waiting.total())
        epochs = {span.partition: own[span.partition].epoch for span in delta.spans}
        try:
            return delta, self.apply(run, delta, epochs, log, asked)
        except Unreadable as lost:
            # Its raw bytes are gone by now: the log is read again from the checkpoint, and the record parked on its way.
            self._refused |= lost.records
            raise Fenced(f"{self.source}: {len(lost.records)} records are read again and parked") from lost

    def apply(self, run: Sequence[ChangeBatch], delta: Delta, epochs: Mapping[int, int], log: LogId, asked: Asked = not_asked) -> Receipt:
        """Makes the target hold rows as ``run`` has them, and merges ``delta``, which was folded of it. ``asked`` is as in ``flush``.
        Raises Unreadable where a value stands nowhere, and what the destination and the source raise."""
        m = self.context
        if any(batch.num_rows for batch in run):
            self.follower.identify(run, asked, others=self.versions.has_others(delta.schema))
            if self.versions.may_be_renamed(delta.schema):
                self.versions.distrust_passing(delta.schema)
            self.versions.evolve(delta.schema, stream_records(run), initial=delta.snapshot_record is not None)
            failpoint("line.evolved")

        def merge() -> Receipt:
            own = self.versions.all[-1] if self.versions.all else replace(delta.schema, version=0)
            return m.destination.merge(delta, epochs, log, own)

        def complete(unknown: UnsentUnknown) -> Delta:
            done = completed(delta, unknown, m.source, self.prepare)
            # Rows that were read again are later than changes still to come: what these tell of a column that came meanwhile is late.
            why = "rows were read again at the source for events of before it got the column {}"
            self.versions.distrust_lacking(delta.schema.names, why)
            failpoint("line.completed")
            return done

        if delta.loaded is None and (keys := doubted(delta, m.source)) is not None:
            delta = complete(UnsentUnknown(keys, ()))
        for _ in range(COMPLETIONS_MAX):
            try:
                return merge()
            except UnsentUnknown as unknown:
                delta = complete(unknown)
        return merge()

    def translated(self, batch: ChangeBatch) -> ChangeBatch:
        """The batch with the names that its columns have now at the source."""
        return self.versions.translated(batch)

    def folded(self, run: Sequence[ChangeBatch], batch_id: str) -> Delta:
        """What ``run`` comes to, by the table's mode."""
        if self.target.mode is Mode.APPEND:
            tails = {p: part.tail for p, part in self.partitions.own.items() if part.tail is not None}
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
            self.versions.doubt(())
        elif not self.state.now.resync and through is not None and newest + 2**63 > through:
            raise snapshotted_anew(self.config)

    def allow_more_parked(self) -> None:
        """A person has looked at the quarantine: as many again may be parked."""
        self._breaker.allow_more(self.tally.waiting.total())

    def look_up(self) -> None:
        """Reads anew what the destination tells of work done and of the target's schema."""
        self.recall()
        self.follower.load()

    # State

    def recall(self) -> None:
        """What the destination tells of the work done so far."""
        totals = self.tally.recount()
        self.follower.applied_to = max(0, totals.high_record or 0)

    def see_others(self) -> None:
        """Reads how far other processes are in the partitions that are theirs."""
        log = self.partitions.log
        found = {c.partition: c.next_offset for c in self.context.destination.checkpoints(self.target) if c.log == log}
        if not self.partitions.see_others(found) and self._opened:
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
            self.end_load()
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
        self.end_load()
        self.trouble = error
        if error.code == RightsLacking.code:
            self.backoff.failed()
        self.state.stop(error)

    def advance(self, goal: Goal) -> None:
        self.state.change(complete_through=goal.position, complete_at=goal.at_us or self.state.now.complete_at)
