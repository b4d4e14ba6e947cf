"""What the watcher saw, turned into what a table may claim: complete_through, the end of a snapshot, a topic that is another one.

Promises: ``complete_through`` is claimed only when every partition has passed the ends that were read after it, and only where the source's
identity of the table, read after it too, is the one under which the rows were read or the target could follow; a snapshot counts as
ended only when the connector said so *and* all that it wrote is merged; only then rows that it did not see are swept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Protocol

import structlog

from cdc_service.core.clock import Clock
from cdc_service.core.errors import CdcError, Disposition, Fenced, TableStopped
from cdc_service.core.identity import HINDRANCES, Judgement, Outcome
from cdc_service.core.types import Mode, TableId, Target
from cdc_service.pipeline.failures import snapshot_failed, snapshotted_anew, source_went_back, topic_gone
from cdc_service.pipeline.goals import Goal
from cdc_service.pipeline.poll_loop import PollLoop
from cdc_service.pipeline.table_task import TableTask
from cdc_service.ports.capture import Facts
from cdc_service.ports.destination import Destination, TableState

SAVE_SECONDS, SAVE_SECONDS_EACH = 10.0, 0.03
"""How often moving positions of completeness are written down, all of them at once: so often, or less where there are many tables."""
ASK_AGAIN_SECONDS = 60.0
"""How long nothing may be heard of a snapshot before it is asked for (again)."""
OVER = "nothing to do: this is over, and the table is read anew once what the connector was asked to read before has come"
SCANS_MAX = 3
"""So often the connector may fail to read a table before it stops: a deadlock or a session that was ended heals by itself."""
STANDSTILL_SECONDS = 30.0
UNREAD_SECONDS = 15.0
"""So long a partition may have no reader: consumers find new ones by themselves every 10 s."""
RECOUNT_SECONDS = 10.0
"""How often a process counts anew what others do for a table that another one leads."""
LOWEST = -(2**63)
KEEPS_UP_US = 15_000_000
"""A table without lag that was known to be complete so lately has none: what is known moves with the connector's heartbeats."""
NOT_YET = frozenset({"not_in_connector", "not_published", "slot_gone"})
"""What stands in the way of a table before it is registered: then it waits."""


class Snapshots(Protocol):
    def ask(self, table: TableId, signal_id: str, *, afresh: bool = False) -> None:
        """Asks the connector for an incremental snapshot of the table; ``afresh``, after it has begun to read anew what columns the table
        has."""
        ...

    def names(self, text: str, table: TableId) -> bool:
        """Whether a notification's ``text`` means the table."""
        ...


class Judges(Protocol):
    """The source, as far as it judges identities (ports.source)."""

    def judge(self, table: TableId, before: str | None, after: str | None) -> Judgement: ...


def signal_id(table: TableTask) -> str:
    """The id of the incremental snapshot that fills the table's generation: the same after a restart, another one for a generation of the
    same number in a warehouse that was restored from a backup: what an earlier snapshot sent stands before the offsets of this one."""
    offsets = sum((table.state.now.opened_at or {}).values())
    return f"resync-{table.state.now.generation}-{table.state.now.opened_record}-{offsets}-{table.source}"


class Watermarks:
    def __init__(
        self,
        line: PollLoop,
        facts: Callable[[], Facts | None],
        destination: Destination,
        snapshots: Snapshots,
        source: Judges,
        clock: Clock,
    ) -> None:
        self._line = line
        self._source = source
        self._facts = facts
        self._destination = destination
        self._snapshots = snapshots
        self._clock = clock
        self._seen: Facts | None = None
        self._ends: dict[tuple[TableId, int], int] = {}  # by table and generation: another process may have begun a later one
        self._quiet: dict[TableId, float] = {}
        self._by_connector: dict[tuple[TableId, int], bool] = {}
        """Tables, each with its generation, that could not be read at the source itself, and whether the connector was asked for them."""
        self._unheard: dict[tuple[TableId, int], int] = {}  # likewise: as of which position a lost signal was written again
        self._saved: dict[TableId, float] = {}
        self._newest: list[int | None] = []
        self._moving: dict[Target, TableTask] = {}
        """Tables whose complete_through is to be written down in this look."""
        self._moved: dict[TableId, tuple[int, float]] = {}
        self._attempts: dict[TableId, int] = {}  # at the connector's snapshot, as a table that is complete was first seen
        self._emptied_before: dict[tuple[TableId, int], int] = {}  # ms; by table and generation, as its reading was first seen
        self._unread: dict[TableId, float] = {}
        self._recounted: dict[TableId, float] = {}
        self._answered: dict[tuple[TableId, int], int] = {}  # failed scans that were asked for again; by table and generation
        self._log = structlog.get_logger()

    def look(self) -> None:
        """Called in each turn of the line in which it rests."""
        facts = self._facts()
        news = facts if facts is not self._seen else None
        self._seen = facts
        if news is not None:
            self._follow(news)
        self._moving.clear()
        self._newest.clear()
        for table in self._line.tables:
            try:
                if news is not None:
                    self._compare(table, news)
                goal = table.partitions.reached()
                if goal is not None and not table.state.stopped and not table.versions.reload:
                    self._through(table, goal)
            except TableStopped as error:
                self._line.stop(table, error)
            except Fenced as error:
                self._log.info("state was changed by another process", table=str(table.source), why=error.message)
                self._catch_up(table)
            except CdcError as error:
                self._log.warning("state not saved", table=str(table.source), why=error.message)
        self._save_moving()

    def _save_moving(self) -> None:
        """Writes down how far tables are, all at once: with a thousand of them, each by itself would be work for one core."""
        if not self._moving:
            return
        try:
            kept = self._destination.save_progress({target: table.state.now for target, table in self._moving.items()})
        except CdcError as error:
            self._log.warning("states not saved", why=error.message)
            return
        now = self._clock.monotonic()
        for target, table in self._moving.items():
            if target in kept:
                table.state.now, self._saved[table.source] = kept[target], now
            else:
                self._catch_up(table)
        self._line.touched()

    def _catch_up(self, table: TableTask) -> None:
        try:
            table.follow(self._destination.load_state(table.target))
        except CdcError as error:
            self._log.warning("what other processes did is not known", table=str(table.source), why=error.message)

    def _follow(self, facts: Facts) -> None:
        """Where several processes can share the destination: what the others did."""
        if not self._destination.capabilities.reads_while_writing:
            return
        now = self._clock.monotonic()
        try:
            states = self._destination.states()
            for table in self._line.tables:
                table.follow(states.get((str(table.source), str(table.target)), TableState()))
                topic = facts.topics.get(table.config.topic)
                shared = topic is not None and not set(topic.ends) <= set(table.partitions.own)
                if shared and (table.partitions.leads or now - self._recounted.get(table.source, float("-inf")) >= RECOUNT_SECONDS):
                    table.see_others()
                    table.tally.recount()
                    self._recounted[table.source] = now
        except CdcError as error:
            self._log.warning("what other processes did is not known", why=error.message)

    @property
    def snapshotting(self) -> bool:
        return any(t.state.name in ("waiting", "snapshotting") for t in self._line.tables)

    def begun(self, table: TableTask) -> None:
        """A new snapshot of the table begins: what was known of an earlier one counts no more."""
        self._forget(table)
        if table.config.direct:
            self._load(table)
        else:
            self._ask(table)

    def _forget(self, table: TableTask) -> None:
        self._ends.pop((table.source, table.state.now.generation), None)
        self._quiet.pop(table.source, None)

    def _compare(self, table: TableTask, facts: Facts) -> None:
        topic = facts.topics.get(table.config.topic)
        if topic is None:
            return
        ends = {p: high for p, (_, high) in topic.ends.items()}
        table.partitions.ends = ends
        if table.state.stopped and table.state.known and table.partitions.leads and table.state.now.error_code in HINDRANCES:
            self._identify(table, facts)
        # What was seen before the table was opened says nothing of it now: its topic may be another one since.
        if table.partitions.log is None or table.state.stopped or facts.at < table.opened_at:
            return
        if topic.log != table.partitions.log:
            if table.takes:  # One that is still to be opened, after a resync perhaps, finds out by itself.
                self._line.stop(table, topic_gone(table.config, exists=True))
            return
        self._watch_for_standstill(table)
        if not table.partitions.leads:
            table.end_load()
            return
        self._watch_for_unread(table)
        if self._skipped(table, facts):
            table.versions.reload = "the connector went on at the end of the log; what was committed before that was not sent"
            return
        if self._identify(table, facts) and facts.position is not None and not facts.snapshot:
            table.partitions.aim(Goal(facts.position, ends, facts.reached_us))
        if table.state.stopped:
            return
        if table.state.name in ("waiting", "snapshotting"):
            self._attempts.pop(table.source, None)
            self._emptied_before.setdefault((table.source, table.state.now.generation), self._emptied_at(table, facts))
            self._snapshot(table, facts)
        elif self._returned(table, facts):
            error = TableStopped(
                f"{table.source}: the connector did not capture it for a while, so changes in between are missing",
                state="needs_resync",
                code="not_captured",
                hint=f"load it anew while it goes on: cdc resync {table.source}",
            )
            self._line.stop(table, error)
        elif self._emptied(table, facts):
            self._line.stop(table, snapshotted_anew(table.config))

    def _identify(self, table: TableTask, facts: Facts) -> bool:
        """Whether all that the table's rows hold is known to be so up to ``facts.position``: the source's identity of the table, read after
        it, is the one under which the rows were read, or the target follows it now. Else the table stops, or is read anew."""
        found, kept = facts.identities, table.state.now
        if found is not None and found.position < (facts.position or 0) and not table.state.stopped:
            raise source_went_back(table.config)
        if found is None or found.position < max(kept.identity_at, facts.position or 0) or table.source in found.busy:
            return False
        now = found.tables.get(table.source)
        judged = self._source.judge(table.source, kept.identity or self._registered(table, facts), now)
        if judged.outcome is Outcome.STOPS:
            told = table.state.stopped and kept.error_message == judged.why  # What comes to light behind a cause that is gone is told too.
            if not told and not (table.state.name == "waiting" and judged.code in NOT_YET):
                self._line.stop(table, TableStopped(judged.why, state=judged.state, hint=judged.hint, code=judged.code))
            return False
        if table.state.stopped or judged.outcome is Outcome.ANEW:
            if self._is_read(table, facts):
                if table.state.stopped and kept.error_hint != OVER:
                    table.state.keep(error_hint=OVER)
                    self._line.touched()
                return False
            over = f"{kept.error_message}: this is over, and what was committed meanwhile did not arrive"
            table.versions.reload = over if table.state.stopped else judged.why
        elif judged.outcome is not Outcome.SAME or not kept.identity:
            assert now is not None
            table.follower.carry(judged, now, found.position)
            self._line.touched()
            return table.state.now.identity == now
        else:
            table.state.now = replace(kept, identity_at=found.position)
        return not table.versions.reload

    def _is_read(self, table: TableTask, facts: Facts) -> bool:
        """Whether rows that were asked for may still be on their way. Another reading waits for them: in its generation they would be taken
        for its own, and what went from the source without an event would stay."""
        kept, place = table.state.now, (table.source, table.state.now.generation)
        if table.config.direct and place not in self._by_connector:
            return False  # What is still read for this generation ends with it.
        if (kept.complete_through is not None and not kept.resync) or (kept.resync and signal_id(table) in facts.scans.lost):
            return False
        if self._scanned(table, facts) and facts.identities is not None:
            return facts.position is None or facts.position <= self._ends.setdefault(place, facts.identities.position)
        # Of a table that stands still nobody asks for them again.
        return not table.state.stopped or not self._is_quiet(table, facts)

    def _is_quiet(self, table: TableTask, facts: Facts) -> bool:
        """Whether nothing was heard of a snapshot for a while."""
        running = facts.connector is not None and facts.connector.running
        if not running or facts.snapshot or facts.incremental:
            self._quiet.pop(table.source, None)
            return False
        return self._clock.monotonic() - self._quiet.setdefault(table.source, self._clock.monotonic()) >= ASK_AGAIN_SECONDS

    def _registered(self, table: TableTask, facts: Facts) -> str | None:
        """The identity that registration saw before the connector began to read the table's first rows."""
        if table.state.now.complete_through is not None:
            return None
        told = facts.scans.identities.items()
        return next((text for name, text in told if self._snapshots.names(name, table.source)), None)

    def _watch_for_standstill(self, table: TableTask) -> None:
        """A table that should flow, lags and does not move is opened anew, and says so: whatever held it must not hold it in silence."""
        at, now = sum(part.checkpoint for part in table.partitions.own.values()), self._clock.monotonic()
        before, since = self._moved.get(table.source, (-1, now))
        if at != before or not table.partitions.own_lag or not table.flows or table.has_buffer:
            self._moved[table.source] = (at, now)
        elif now - since >= STANDSTILL_SECONDS:
            self._log.warning(
                "stood still, is opened again", table=str(table.source), lag=table.partitions.own_lag, seconds=round(now - since)
            )
            self._moved.pop(table.source)
            table.drop()

    def _watch_for_unread(self, table: TableTask) -> None:
        """Partitions that neither this process has nor another one ever had. Kafka is not asked who reads what: where the broker goes
        away under that question, librdkafka 2.16 aborts the process (seen; confluentinc/librdkafka 4605)."""
        now = self._clock.monotonic()
        if set(table.partitions.ends) <= set(table.partitions.own) | set(table.partitions.others):
            self._unread.pop(table.source, None)
        elif now - self._unread.setdefault(table.source, now) >= UNREAD_SECONDS:
            self._line.rejoin_group()

    def _snapshot(self, table: TableTask, facts: Facts) -> None:
        if table.state.name == "waiting":
            table.state.keep(state="snapshotting")
            self._line.touched()
        if table.state.now.resync and signal_id(table) in facts.scans.lost:
            self._forget(table)
            table.versions.reload = "the connector began anew after it had read the rows; what happened between the two was not sent"
            return
        place = table.source, table.state.now.generation
        if place in self._ends:
            return
        if table.config.direct and place not in self._by_connector:
            self._load(table)
            return
        if self._by_connector.get(place) is False:
            # One after the other: the notifications of several are hard to tell apart (connectors.debezium.notifications).
            if not any(self._by_connector.get(p) and p not in self._ends for p in self._places()):
                self._by_connector[place] = True
                self._ask(table)
            return
        if table.state.now.resync and facts.scans.skipped > max(table.state.now.opened_record, self._unheard.get(place, 0)):
            self._unheard[place] = facts.scans.skipped  # The signal was written where the log is not read any more.
            self._ask(table)
            return
        if self._scanned(table, facts):
            # Notifications overtake rows: whatever the snapshot wrote lies before what the source commits from now on.
            if facts.identities is not None:
                self._ends[table.source, table.state.now.generation] = facts.identities.position
            return
        failures = self._failures(table, facts)
        if len(failures) >= SCANS_MAX:
            raise snapshot_failed(table.config, failures[-1])
        if len(failures) > self._answered.get((table.source, table.state.now.generation), 0):
            self._answered[table.source, table.state.now.generation] = len(failures)
            self._quiet.pop(table.source, None)
            self._ask(table, afresh=True)
            return
        if self._is_quiet(table, facts):
            self._quiet.pop(table.source)
            self._ask(table)

    def _places(self) -> Iterator[tuple[TableId, int]]:
        """The tables that are being read, each with its generation."""
        return ((t.source, t.state.now.generation) for t in self._line.tables if t.state.name == "snapshotting")

    def _load(self, table: TableTask) -> None:
        """Has the rows read at the source itself. Where a value has no exact form there, or none that the target holds, the connector reads
        the table: what cannot be held is parked then, record by record."""
        if not table.state.now.resync:
            table.versions.reload = "its rows are read at the source itself"
            return
        loading = table.loading
        try:
            if loading is None or loading.generation != table.state.now.generation:
                table.load()
            elif loading.error is not None:
                table.end_load()
                raise loading.error
            elif loading.position is not None:
                self._ends[table.source, table.state.now.generation] = loading.position
                table.end_load()
                self._log.info("rows loaded", table=str(table.source), rows=loading.rows, ranges=loading.ranges)
        except CdcError as error:
            if error.disposition is Disposition.RETRY:
                self._log.warning("not loaded yet", table=str(table.source), why=error.message)
                return
            self._by_connector[table.source, table.state.now.generation] = False
            self._log.warning("the connector reads the table", table=str(table.source), why=error.message)

    def _ask(self, table: TableTask, *, afresh: bool = False) -> None:
        """Asks the connector to read the table; what does not reach it is asked for again."""
        try:
            self._snapshots.ask(table.source, signal_id(table), afresh=afresh)
            self._log.info("snapshot asked for", table=str(table.source))
        except CdcError as error:
            if error.code == "table_refused":
                self._line.stop(table, TableStopped(error.message, state="error", code=error.code, hint=error.hint))
            else:
                self._log.warning("snapshot not asked for yet", table=str(table.source), why=error.message)

    def _scanned(self, table: TableTask, facts: Facts) -> bool:
        def holds(texts: frozenset[str]) -> bool:
            return any(self._snapshots.names(text, table.source) for text in texts)

        if not table.config.keyed and self._failures(table, facts):
            return True  # By parts of its key is how the connector would read it: its log goes on without the rows.
        if table.state.now.resync:
            return holds(facts.scans.asked.get(signal_id(table), frozenset()))
        return holds(facts.scans.initial) or holds(facts.scans.incremental)

    def _failures(self, table: TableTask, facts: Facts) -> list[str]:
        """How each scan of the table ended that the connector gave up, of those that were asked for the generation under way."""
        ids = {signal_id(table)} if table.state.now.resync else None
        return [s for asked, text, s in facts.scans.failed if (ids is None or ids & asked) and self._snapshots.names(text, table.source)]

    def _skipped(self, table: TableTask, facts: Facts) -> bool:
        """Whether the connector left out what the table lacks. A first load may have read its rows before that."""
        if table.state.name in ("waiting", "snapshotting"):
            return bool(facts.scans.skipped and not table.state.now.resync)
        return facts.scans.skipped > (table.state.now.complete_through or 0)

    def _returned(self, table: TableTask, facts: Facts) -> bool:
        since_ms = (table.state.now.complete_at or 0) // 1000
        return any(at > since_ms and self._snapshots.names(text, table.source) for text, at in facts.scans.returned.items()) and bool(
            since_ms
        )

    def _emptied(self, table: TableTask, facts: Facts) -> bool:
        """Whether the connector began anew with a snapshot after the table was complete, and no row may come that would tell so: it had
        none, or they wait in the quarantine. What was deleted at the source would stay."""
        since_ms, scans = (table.state.now.complete_at or 0) // 1000, facts.scans
        # By the attempts that this process saw, whatever its clock says; by the time what came while no process ran.
        anew = scans.attempts > self._attempts.setdefault(table.source, scans.attempts)
        at_ms, before_ms = self._emptied_at(table, facts), self._emptied_before.get((table.source, table.state.now.generation), 0)
        found = anew or at_ms > max(since_ms, before_ms)
        return bool(since_ms and scans.repeated and found and table.target.mode is not Mode.APPEND)

    def _emptied_at(self, table: TableTask, facts: Facts) -> int:
        return max((at for text, at in facts.scans.empty.items() if self._snapshots.names(text, table.source)), default=0)

    def _through(self, table: TableTask, goal: Goal) -> None:
        now = self._clock.monotonic()
        if table.state.name == "snapshotting":
            end = self._ends.get((table.source, table.state.now.generation))
            if end is None or goal.position <= end:
                return  # At the very same position the connector may have been before it wrote the rows; a heartbeat moves it on.
            newest = None if table.state.now.resync else self._newest_snapshot()
            if newest is not None and newest - LOWEST > end:
                # Rows of an attempt that began after the one whose end is known: what that one brought is no ghost yet.
                self._forget(table)
                return
            if table.versions.doubtful or self._outdated(table):
                table.versions.reload = (
                    "the connector began its snapshot anew after it had sent changes; what happened between the two was not sent"
                )
                return
            swept = self._sweep(table)
            table.tally.swept()
            table.follower.make(goal.position)
            if table.versions.reload:
                return
            self._forget(table)
            table.state.keep(state="streaming", resync=False, complete_through=goal.position, complete_at=goal.at_us)
            self._attempts[table.source] = self._seen.scans.attempts if self._seen else 0
            self._log.info("snapshot complete", table=str(table.source), swept=swept)
        elif goal.position >= (table.state.now.complete_through or 0):
            table.advance(goal)
            if now - self._saved.get(table.source, float("-inf")) >= max(SAVE_SECONDS, SAVE_SECONDS_EACH * len(self._line.tables)):
                self._moving[table.target] = table
            return
        self._saved[table.source] = now
        self._line.touched()

    def _sweep(self, table: TableTask) -> int:
        """Removes what the snapshot did not see: of a resync all older generations; of an initial snapshot what only an earlier attempt
        saw, which the connector dropped when it was killed within it (all tables of one attempt are read at one position)."""
        d, kept = self._destination, table.state.now
        if not d.schemas(table.target):
            return 0
        if kept.resync:
            return d.sweep(table.target, kept.generation, LOWEST)
        newest = self._newest_snapshot()
        return d.sweep(table.target, kept.generation, newest) if newest is not None else 0

    def _newest_snapshot(self) -> int | None:
        """The record order of the initial snapshot's last attempt, of which some table has a row. Asked once in a look, in which nothing is
        merged."""
        if not self._newest:
            self._newest.append(self._destination.highest_snapshot())
        return self._newest[0]

    def _outdated(self, table: TableTask) -> bool:
        """Whether changes were applied that the connector sent before its last attempt at the snapshot. A connector that is killed before
        it has stored how far it is begins anew, and never sends what was committed between: rows of the snapshot, which come before every
        change of the stream, lose against what they should replace. A transaction that was open when the snapshot began looks the same
        only if it was the first to commit after it.

        What a first load holds is doubtful as a whole where an attempt began after another had ended: a row of the stream may have taken
        unsent values from one that was out of date, and an attempt that found no row leaves none that would tell."""
        facts, d = self._seen, self._destination
        if facts is None or facts.scans.attempts < 2 or not d.schemas(table.target):
            return False
        if not table.state.now.resync:
            empty = any(self._snapshots.names(text, table.source) for text in facts.scans.empty)
            return facts.scans.repeated or (empty and bool(d.table_rows(table.target)))
        newest = self._newest_snapshot()
        return newest is not None and d.holds_before(table.target, table.state.now.generation, newest - LOWEST)


def lag_seconds(table: TableTask, now_us: int) -> float | None:
    """Where more is waiting: seconds since the target was last known to be complete, or since the source committed what was applied last,
    whichever is later. 0 where nothing waits and the connector keeps up; None before anything came."""
    complete_us = table.state.now.complete_at
    if table.partitions.lag == 0 and table.partitions.ends and complete_us is not None and now_us - complete_us < KEEPS_UP_US:
        return 0.0
    known = [us for us in (table.tally.source_us, table.state.now.complete_at) if us is not None]
    return max(0.0, (now_us - max(known)) / 1e6) if known else None
