"""What a person can do to one table while the others go on: pause, resume, resync, adopt. Called on the line's thread.

Promises: each deed is one transaction at the destination, so that a crash in it leaves a table that either did not begin or goes on with
it, and other processes follow; rows stay readable during a resync unless the table itself has to be made anew.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import structlog

from cdc_service.core.errors import CdcError, ConfigError
from cdc_service.core.identity import HINDRANCES, Outcome
from cdc_service.core.types import Mode, TableId
from cdc_service.pipeline.context import Context
from cdc_service.pipeline.table_task import TableTask
from cdc_service.ports.destination import TableState
from cdc_service.ports.feed import TopicFacts


class Horizon(Protocol):
    """What a resync asks of the source."""

    def horizon(self, table: TableId) -> int:
        """A log position below every change of the transactions that are open now. Raises CdcError where nothing holds the log, or where
        the table cannot be read anew beside the stream."""
        ...

    def settled(self, table: TableId) -> int:
        """A log position at or above every change that was made before this is called, now that all of them are committed or taken back.
        Raises Unavailable where one is not after a while."""
        ...


class Commands:
    """``begun`` is told of a table whose resync begins and asks the connector for its rows; ``advice`` gives the consumer group's
    committed offsets."""

    def __init__(
        self,
        tables: Sequence[TableTask],
        context: Context,
        source: Horizon,
        begun: Callable[[TableTask], None],
        advice: Callable[[], Mapping[tuple[str, int], int]],
    ) -> None:
        self._tables = tables
        self._context = context
        self._source = source
        self._begun = begun
        self._advice = advice

    def act(self, action: str, table: TableTask, body: Mapping[str, Any]) -> dict[str, Any]:
        """Does it; the table's state after it. Raises ConfigError for an unknown action, CdcError where it makes no sense now."""
        deeds: dict[str, Callable[[], str]] = {
            "pause": lambda: self.pause(table),
            "resume": lambda: self.resume(table),
            "resync": lambda: self.resync(table),
            "adopt": lambda: self.adopt(table, body.get("how")),
        }
        if action not in deeds:
            raise ConfigError(f"no action is called {action!r}", hint=f"one of {', '.join(deeds)}")
        # Another process of the group may have acted on the table since it was opened here.
        table.follow(self._context.destination.load_state(table.target))
        message = deeds[action]()
        structlog.get_logger().info("asked by a person", action=action, table=str(table.source), state=table.state.name)
        return {"table": str(table.source), "state": table.state.name, "message": message}

    def pause(self, table: TableTask) -> str:
        if table.state.stopped and table.state.name != "paused":
            raise CdcError(f"{table.source} stands still already: {table.state.name}", code="not_running")
        table.drop()
        table.state.keep(state="paused")
        return "its events wait in Kafka; lag grows, and the source keeps no more log for it"

    def resume(self, table: TableTask) -> str:
        if table.state.name in ("needs_resync", "needs_decision"):
            now = table.state.now
            raise CdcError(f"it cannot simply go on: {now.error_message}", hint=now.error_hint, code=now.state)
        if not table.state.stopped:
            return "it was not stopped"
        if table.state.now.error_code in HINDRANCES:
            return self.resync(table)  # Nobody knows what did not arrive meanwhile.
        if table.state.name == "quarantine_stopped":
            table.allow_more_parked()
        table.state.go_on()
        table.trouble = None
        table.backoff.succeeded()
        return "it goes on at its checkpoint"

    def resume_all(self) -> dict[str, Any]:
        """Lets every table go on that stands still; ``tables`` says of each what became of it. One that cannot go on says why and hinders
        no other."""
        done: list[dict[str, Any]] = []
        for table in self._tables:
            table.follow(self._context.destination.load_state(table.target))
            if not table.state.stopped:
                continue
            try:
                done.append(self.act("resume", table, {}))
            except CdcError as error:
                told = {"code": error.code, "message": error.message, "hint": error.hint}
                done.append({"table": str(table.source), "state": table.state.name, "message": error.message, "error": told})
        return {"tables": done}

    def retry(self) -> None:
        """Lets tables try again that stopped for a right that the destination's role lacked, with growing pauses: whoever gives it has done
        all that there is to do."""
        for table in self._tables:
            if table.state.lacks_right and table.partitions.leads and not table.backoff.waiting:
                try:
                    table.follow(self._context.destination.load_state(table.target))
                    if not table.state.lacks_right:
                        continue  # Somebody else was first.
                    table.state.go_on()
                except CdcError:
                    table.backoff.failed()

    def resync(self, table: TableTask) -> str:
        """Reads the table anew beside the stream: a new generation, whose end removes the rows that were not seen in it."""
        kept = table.state.now
        # In this order: what the table is, where the log is held, where it ends in Kafka, and only then the snapshot. All that lies in
        # Kafka before these ends was committed before the snapshot reads, so it is skipped.
        identity, identity_at = self._identity(table)
        opened = self._source.horizon(table.source)
        if identity != kept.identity or kept.error_code in HINDRANCES:
            # What was committed before the source became what it is now may be of another form, and what was begun while the log was not
            # sent never comes: both have to lie before the reading, and count for less than it.
            opened = max(opened, self._source.settled(table.source) + 1)
        facts = self._facts(table)
        ends = {p: high for p, (_, high) in facts.ends.items()}
        state = TableState(
            *("snapshotting", kept.generation + 1, opened, ends),
            resync=True,
            identity=identity,
            identity_at=identity_at,
            version=kept.version,
        )
        anew = table.state.name in ("schema_stopped", "drift")
        table.drop()
        if not anew:
            table.recall()
            table.follower.take_columns(identity_at)
        begin, forget = (ends, True) if anew else self._begin(table, facts, ends)
        table.end_load()
        table.state.now = self._context.destination.begin_anew(table.target, facts.log, begin, state, forget=forget, retire=anew)
        table.trouble = None
        table.versions.reload = ""
        table.backoff.succeeded()
        self._begun(table)
        if table.target.mode is not Mode.APPEND:
            return "its rows are read anew while changes go on; rows that are gone at the source are removed at the end"
        read = "its rows are read anew, as" if table.config.keyed else "it has no key to be read anew by: its next changes are"
        return f"{read} rows of generation {table.state.now.generation}; the log that it has stays"

    def _identity(self, table: TableTask) -> tuple[str, int]:
        """The table's identity at the source, under which its rows will be read. Raises CdcError where they cannot be read, or their
        changes do not arrive: rows that are only hidden would be taken for deleted."""
        found = self._context.identities([table.source])
        now = found.tables.get(table.source)
        judged = self._context.source.judge(table.source, None, now)
        if judged.outcome is Outcome.STOPS or now is None:
            raise CdcError(f"it cannot be read anew: {judged.why}", hint=judged.hint, code=judged.code)
        return now, found.position

    def _begin(self, table: TableTask, facts: TopicFacts, ends: Mapping[int, int]) -> tuple[Mapping[int, int], bool]:
        """Where a resync reads on, and whether the checkpoints are forgotten. What Kafka still has belongs into a log of changes; only what
        cannot follow the rows there is skipped."""
        if table.target.mode is not Mode.APPEND:
            return ends, True
        own = {c.partition: c.next_offset for c in self._context.destination.checkpoints(table.target) if c.log == facts.log}
        follows = {p: own.get(p, -1) for p, (low, high) in facts.ends.items() if low <= own.get(p, -1) <= high}
        if len(follows) == len(facts.ends):
            return own, False
        # The others go on where they are: rows that an incremental snapshot read would be there twice.
        return {p: follows.get(p, low) for p, (low, _) in facts.ends.items()}, True

    def adopt(self, table: TableTask, how: object) -> str:
        if how not in ("at_offsets", "empty"):
            raise ConfigError("adopt says how: at_offsets or empty")
        if table.state.name != "needs_decision":
            raise CdcError(f"{table.source} waits for no decision: {table.state.name}", code="not_waiting")
        if how == "empty":
            return self.resync(table)
        facts = self._facts(table)
        advice = self._advice()
        offsets = {p: advice.get((table.config.topic, p)) for p in facts.ends}
        known = {p: offset for p, offset in offsets.items() if offset is not None}
        if len(known) < len(offsets):
            raise CdcError(
                f"the consumer group has no committed offsets for {table.config.topic}, so nobody knows up to where the rows are right",
                hint=f"cdc adopt {table.source} --empty loads the table anew",
                code="no_offsets",
            )
        self._context.destination.claim(table.target, facts.log, known)
        table.state.keep(state="streaming", error_code="", error_message="", error_hint="", error_at=None)
        table.trouble = None
        return f"it goes on at the consumer group's offsets: {', '.join(f'{p}: {o}' for p, o in sorted(known.items()))}"

    def look(self) -> None:
        """Begins the resyncs that tables found necessary by themselves."""
        for table in self._tables:
            if (
                table.versions.reload
                and not table.backoff.waiting
                and (not table.state.stopped or table.state.now.error_code in HINDRANCES)
            ):
                why, table.versions.reload = table.versions.reload, ""
                try:
                    state = self._context.destination.load_state(table.target)
                    if state.generation > table.state.now.generation:
                        table.follow(state)  # Another process found the same, and has begun.
                        continue
                    structlog.get_logger().info("table is read anew", table=str(table.source), why=why)
                    table.state.now = state
                    self.resync(table)
                except CdcError as error:
                    table.versions.reload = why
                    structlog.get_logger().warning("table is not read anew yet", table=str(table.source), why=error.message)
                    table.backoff.failed()
                    with contextlib.suppress(CdcError):
                        if error.code == "table_refused":  # By the connector, until somebody changes the table.
                            table.stop(error)
                            table.state.save()
                        elif table.state.name == "streaming":
                            table.state.keep(state="snapshotting")  # What it holds is not complete any more, and has to say so.

    def _facts(self, table: TableTask) -> TopicFacts:
        facts = self._context.topics.describe([table.config.topic]).get(table.config.topic)
        if facts is None:
            raise CdcError(f"topic {table.config.topic} does not exist", hint="cdc register creates it", code="topic_gone")
        return facts
