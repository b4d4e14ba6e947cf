"""The loop: reads change topics, decodes and buffers; what is due is merged beside it (pipeline.merge_worker) while it reads on.

Promises: a record that was read is merged or read again, never skipped; what fails at one table leaves the others alone; memory stays
under its limit; the destination is used by one thread at a time. Whatever heals by itself is tried again for ever, with jitter.
"""

from __future__ import annotations

import queue
import traceback
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import structlog

from cdc_service.core.clock import Backoff, Clock
from cdc_service.core.errors import CdcError, Disposition, Fenced, Unavailable
from cdc_service.core.identity import Identities
from cdc_service.core.types import TableId
from cdc_service.failpoints import failpoint
from cdc_service.pipeline.context import Context
from cdc_service.pipeline.merge_worker import MergeWorker, Outcome, Submit, at_once
from cdc_service.pipeline.table_task import TableTask
from cdc_service.ports.feed import Assignment, Feed, PartitionError, Topics, Where

POLL_SECONDS = 0.05
IDLE_POLL_SECONDS, IDLE_SLICE_SECONDS = 0.002, 0.2
"""So much longer for each table while nothing comes: a turn goes over all of them. The first record ends the wait, and after each slice of
it a command does."""
POLL_BYTES = (6 * 2**20, 28 * 2**20)
"""At most of one table, at most of all: decoding has its price for each poll and table, and what is polled takes memory several times."""
POLL_RECORDS = (100, 5_000, 40_000)
"""At least so many records a poll; at most of one table, at most of all."""
IDLE_SECONDS = 1.0
"""After this long without a record the destination's file is released."""
PATIENCE_SECONDS = 1.0
"""So long the next batch, once it is full, waits for the merges under way before partitions are paused: a pause throws away what was
fetched ahead."""
STUCK_SECONDS = 30.0
"""Merges that take longer are no sign of life any more."""


@dataclass(slots=True)
class Totals:
    """What the loop did since it began. ``at`` is when it was last seen to work (seconds of the clock)."""

    fetched: int = 0
    fetched_bytes: int = 0
    merges: int = 0
    merge_seconds: float = 0.0
    at: float = 0.0


class PollLoop:
    """``join(assignment)`` opens the feed; the loop tells it where each partition begins. ``submit`` runs the merges, ``ask`` what is asked
    ahead of them: ``identities`` is as Context.identities, but may know the connector's settings as they were at the last look.

    A turn is ``read``, then whatever else uses the destination (only while ``resting``), then ``merge``.
    """

    def __init__(
        self,
        tables: Sequence[TableTask],
        context: Context,
        topics: Topics,
        identities: Callable[[Sequence[TableId]], Identities],
        join: Callable[[Assignment], Feed],
        *,
        memory: int,
        clock: Clock,
        submit: Submit = at_once,
        ask: Submit = at_once,
    ) -> None:
        self.tables = list(tables)
        self.totals = Totals(at=clock.monotonic())
        self.log = structlog.get_logger()
        self._by_topic = {t.config.topic: t for t in self.tables}
        self._context = context
        self._worker = MergeWorker(topics, identities, submit, clock, ask)
        self._memory = memory
        self._clock = clock
        self._record_bytes = 64_000.0  # Until it is known: the first polls are short.
        self._moved_at = clock.monotonic()
        self._released = False
        self._idle = False
        self._commands: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = queue.SimpleQueue()
        self._log = join(Assignment(self._assigned, self._revoked, self._lost))

    def read(self, seconds: float | None = None) -> None:
        """Takes what has come, waiting at most ``seconds`` for it (None: as long as is good). Merges may be under way meanwhile."""
        self._take()
        self._obey()
        self._reopen()
        self._decode_again()
        idle = False
        if not self._is_ahead():
            self._throttle()
            idle = self._poll(self._patience() if seconds is None else seconds)
            self._idle = idle
        self._take()
        self._rest(idle=idle)
        if self._worker.seconds < STUCK_SECONDS:
            self.totals.at = self._clock.monotonic()

    def _patience(self) -> float:
        if self._idle and self.resting and not self.buffered_bytes:
            return max(POLL_SECONDS, len(self.tables) * IDLE_POLL_SECONDS)
        return min([POLL_SECONDS, *(t.due_in for t in self.tables)]) if self.resting else POLL_SECONDS

    @property
    def resting(self) -> bool:
        """Whether no merge is under way, so that others may use the destination."""
        return not self._worker.under_way

    def merge(self) -> None:
        """Begins to merge what is due, unless merges are under way."""
        if self.resting and (due := [t for t in self.tables if t.due()] or self._largest()):
            self._worker.begin(due)
            self._take()

    def _is_ahead(self) -> bool:
        """Whether a whole batch waits behind the merges under way: then it is these that are waited for, not records."""
        if self.resting or self._worker.seconds > PATIENCE_SECONDS:
            return False
        if self.buffered_bytes <= self._memory and not any(t.full for t in self.tables):
            return False
        self._worker.wait(POLL_SECONDS)
        return True

    def _poll(self, seconds: float) -> bool:
        """Whether nothing came."""
        polled = self._log.poll(self._records_max(), min(seconds, IDLE_SLICE_SECONDS))
        while seconds > IDLE_SLICE_SECONDS and not (polled.batches or polled.errors) and self._commands.empty():
            seconds -= IDLE_SLICE_SECONDS
            polled = self._log.poll(self._records_max(), min(seconds, IDLE_SLICE_SECONDS))
        for error in polled.errors:
            self._cannot_read(error)
        if records := sum(raw.num_rows for raw in polled.batches):
            mean = sum(raw.nbytes for raw in polled.batches) / records
            self._record_bytes = max(mean, 0.8 * self._record_bytes)
        for raw in polled.batches:
            self._receive(raw)
        return not polled.batches

    # From record to buffer

    def _records_max(self) -> int:
        """As many records as fill POLL_BYTES, or a quarter of the memory, by their size of late; a quarter more than last time at most."""
        low, each, high = POLL_RECORDS
        tables = len(self.tables)
        size = min(POLL_BYTES[0] * tables, POLL_BYTES[1], self._memory // 4)
        return int(min(each * tables, high, max(low, size / self._record_bytes)))

    def _receive(self, raw: Any) -> None:
        table = self._by_topic.get(raw.topic)
        if table is None or not table.takes:
            return  # In flight when the table stopped: it is read again when the table goes on.
        self.totals.fetched += raw.num_rows
        self.totals.fetched_bytes += raw.wire_bytes

        def receive() -> None:
            failpoint("line.polled")
            table.receive(raw)

        self._decode(table, receive)

    def _decode(self, table: TableTask, decode: Callable[[], None]) -> None:
        def guarded() -> None:
            try:
                decode()
            except Unavailable as error:
                self._wait(table, error, table.decoding)

        if not self._guarded(table, guarded) and table.takes:
            self._drop(table)  # The consumer is past these records: they come again from the checkpoint.

    def _decode_again(self) -> None:
        for table in self.tables:
            if table.held and not table.decoding.waiting:
                self._decode(table, table.again)

    def _throttle(self) -> None:
        """Lets the partitions flow whose records are wanted, and holds the others. Where the memory is full, a table that only waits gives
        its place to the others; it reads its records again when it goes on."""
        while self.buffered_bytes > self._memory and (waiting := [t for t in self.tables if t.backoff.waiting and t.has_buffer]):
            self._drop(max(waiting, key=lambda t: t.buffered_bytes))
        full = self.buffered_bytes > self._memory or (not self.resting and any(t.full for t in self.tables))
        flowing: list[Where] = []
        held: list[Where] = []
        for table in self.tables:
            wanted = table.flows and not full
            (flowing if wanted else held).extend((table.config.topic, p) for p in table.partitions.own)
        self._log.pause(held)
        self._log.resume(flowing)

    @property
    def buffered_bytes(self) -> int:
        return sum(t.buffered_bytes for t in self.tables)

    # From buffer to destination

    def _largest(self) -> list[TableTask]:
        """The table to merge before its time, where the buffers hold more than half of the memory."""
        waiting = [t for t in self.tables if self._ready(t)]
        return [max(waiting, key=lambda t: t.buffered_bytes)] if waiting and self.buffered_bytes > self._memory // 2 else []

    def flush(self, tables: Sequence[TableTask]) -> None:
        """Merges what these tables have buffered, and waits for it."""
        self._settle()
        if due := [t for t in tables if self._ready(t)]:
            self._worker.begin(due)
            self._settle()

    def flush_all(self, deadline: float) -> bool:
        """Merges what is buffered until ``deadline`` (seconds of the clock); the rest is read again by the next run. False where a merge
        is under way even then: the destination must not be used any more."""
        for table in [None, *self.tables]:
            self._worker.wait(max(0.0, deadline - self._clock.monotonic()))
            self._take()
            if not self.resting:
                return False
            if table is not None and self._ready(table) and self._clock.monotonic() < deadline:
                self._worker.begin([table])
        self._worker.wait(max(0.0, deadline - self._clock.monotonic()))
        self._take()
        return self.resting

    @staticmethod
    def _ready(table: TableTask) -> bool:
        return table.has_buffer and not table.state.stopped and not table.backoff.waiting

    def _settle(self) -> None:
        """Waits for the merges under way: afterwards this thread may use the destination."""
        self._worker.wait(None)
        self._take()

    def _take(self) -> None:
        """What became of the merges that have ended."""
        for outcome in self._worker.outcomes():
            if self._guarded(outcome.table, lambda outcome=outcome: self._merged(outcome)):  # type: ignore[misc]
                self.totals.merge_seconds += outcome.seconds
            self.touched()

    def _merged(self, outcome: Outcome) -> None:
        table = outcome.table
        self.totals.merges += outcome.merges
        table.put_back()
        if outcome.error is not None:
            raise outcome.error
        table.backoff.succeeded()
        table.clear_error()
        self._log.commit_offsets({(table.config.topic, p): offset for p, offset in outcome.moved.items()})
        failpoint("line.advised")

    def touched(self) -> None:
        """The destination was used: it is let go of when it has been idle for a while."""
        self._moved_at, self._released = self._clock.monotonic(), False

    # What goes wrong

    def _guarded(self, table: TableTask, do: Callable[[], None]) -> bool:
        """Runs ``do``; an error ends at its table, as its class says. Whether it went well."""
        try:
            do()
            return True
        except CdcError as error:
            match error.disposition:
                case Disposition.RETRY:
                    self._wait(table, error)
                case Disposition.FENCED | Disposition.UNKNOWN:
                    self.log.warning("table is opened again", table=str(table.source), why=error.message)
                    self._drop(table)
                    table.backoff.failed()
                case _:
                    self.stop(table, error)
        except Exception as error:
            # The message of an error that nobody foresaw may hold values: only its place is told.
            frames = "".join(traceback.format_tb(error.__traceback__))
            self.log.error("unexpected", table=str(table.source), error=type(error).__name__, frames=frames)
            hint = f"see the service's log and report it; cdc resume {table.source} tries again"
            self.stop(table, CdcError(f"{table.source}: an unexpected {type(error).__name__}", hint=hint, code="unexpected"))
        return False

    def _drop(self, table: TableTask) -> None:
        """Forgets what of the table is not merged; merges under way end first."""
        self._settle()
        table.drop()

    def _wait(self, table: TableTask, error: CdcError, backoff: Backoff | None = None) -> None:
        seconds = (backoff or table.backoff).failed()
        if table.trouble is None or table.trouble.message != error.message:
            self.log.warning("waiting", table=str(table.source), seconds=round(seconds, 1), why=error.message, cure=error.hint)
        table.trouble = error

    def stop(self, table: TableTask, error: CdcError) -> None:
        self._settle()
        table.stop(error)
        self.log.error("table stopped", table=str(table.source), state=table.state.name, why=error.message, cure=error.hint)
        try:
            self._save_stopped(table, error)
            self.touched()
        except CdcError as failed:
            self.log.warning("state not saved", table=str(table.source), why=failed.message)

    def _save_stopped(self, table: TableTask, error: CdcError) -> None:
        try:
            table.state.save()
        except Fenced:
            generation = table.state.now.generation
            table.follow(self._context.destination.load_state(table.target))
            if not table.state.stopped and table.state.now.generation == generation:
                table.stop(error)
                table.state.save()

    def _cannot_read(self, error: PartitionError) -> None:
        table = self._by_topic.get(error.topic)
        if table is None or table.state.stopped:
            return
        if error.code == "topic_gone":
            self._wait(table, Unavailable(f"topic {error.topic} does not exist", hint="cdc register creates it"))
            self._drop(table)
            return
        self.log.warning("offset not in the log", table=str(table.source), partition=error.partition, why=error.message)
        self._drop(table)  # Opening it again finds out what became of the log.

    # Partitions that come and go

    def _reopen(self) -> None:
        for table in self.tables:
            if table.must_open:
                self._settle()
                self._guarded(table, lambda table=table: self._seek(table, table.open()))  # type: ignore[misc]

    def _seek(self, table: TableTask, begin: Mapping[int, int]) -> None:
        for partition, offset in begin.items():
            self._log.seek(table.config.topic, partition, offset)

    def _assigned(self, where: Sequence[Where]) -> Mapping[Where, int | None]:
        self._settle()
        found: dict[Where, int | None] = dict.fromkeys(where)
        for topic, partitions in _grouped(where).items():
            table = self._by_topic[topic]
            self.flush([table])
            others = set(table.partitions.own) - set(partitions)
            table.drop()
            for number in partitions:
                table.own(number)
            begin: dict[int, int] = {}
            if not table.state.stopped:
                self._guarded(table, lambda table=table, begin=begin: begin.update(table.open()))  # type: ignore[misc]
            for number, offset in begin.items():
                if number in others:
                    self._log.seek(topic, number, offset)
                else:
                    found[topic, number] = offset
        self.log.info("partitions taken", partitions=len(where))
        return found

    def _revoked(self, where: Sequence[Where]) -> None:
        for topic, partitions in _grouped(where).items():
            table = self._by_topic[topic]
            self.flush([table])
            table.close(partitions)
        self.log.info("partitions given back", partitions=len(where))

    def _lost(self, where: Sequence[Where]) -> None:
        self._settle()
        for topic, partitions in _grouped(where).items():
            self._by_topic[topic].close(partitions)
        self.log.warning("partitions lost", partitions=len(where))

    # Between records

    def _rest(self, *, idle: bool) -> None:
        """Lets go of an embedded destination's file while there is nothing to do."""
        now = self._clock.monotonic()
        if idle and self.resting and not self._released and now - self._moved_at > IDLE_SECONDS and not self.buffered_bytes:
            for table in self.tables:
                if table.flows:
                    table.tally.refresh()
            self._context.destination.release()
            self._released = True

    def ask(self, do: Callable[[], Any]) -> Future[Any]:
        """From any thread: ``do`` runs on the line's thread before its next poll."""
        future: Future[Any] = Future()
        self._commands.put((do, future))
        return future

    def _obey(self) -> None:
        while not self._commands.empty():
            self._settle()
            do, future = self._commands.get()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(do())
            except Exception as error:
                future.set_exception(error)
            self.touched()

    def rejoin_group(self) -> None:
        """For partitions that no member of the group reads."""
        self._log.rejoin_group()

    def table(self, source: TableId) -> TableTask | None:
        return next((t for t in self.tables if t.source == source), None)

    def close(self) -> None:
        for table in self.tables:
            table.end_load()
        self._log.close()


def _grouped(where: Sequence[Where]) -> Mapping[str, list[int]]:
    grouped: dict[str, list[int]] = defaultdict(list)
    for topic, partition in where:
        grouped[topic].append(partition)
    return grouped
