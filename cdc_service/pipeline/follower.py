"""Makes a table's target follow what the source itself says of the table, where no row tells of it or rows may tell it too late: columns
that were added, renamed or dropped, and the source's identity of the table (core.identity).

Promises: rows are merged under an identity that the source named after their last record, or the table says first that it is not complete;
where the target cannot follow, ``versions.reload`` says why it has to be read anew.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

from cdc_service.config.resolve import TableConfig
from cdc_service.core.errors import CdcError, TableStopped
from cdc_service.core.identity import Identities, Judgement, Outcome
from cdc_service.core.types import ChangeBatch
from cdc_service.pipeline.buffer import stream_records
from cdc_service.pipeline.context import Context
from cdc_service.pipeline.schema_versions import SchemaVersions
from cdc_service.pipeline.table_state import State

Asked = Callable[[], Identities | None]
"""Waits for the answer to a question that was put to the source."""
COLUMN_SECONDS = 10.0
"""How long an event is awaited that tells the form of a new column, where the catalog does not."""


class Follower:
    """Of one table. ``applied_to`` is the highest position of rows that were applied; who applies them keeps it."""

    def __init__(self, config: TableConfig, context: Context, versions: SchemaVersions, state: State) -> None:
        self.applied_to = 0
        self._source = config.source
        self._target = config.target
        self._context = context
        self._versions = versions
        self._state = state
        self._unknown_since: float | None = None

    def load(self) -> None:
        """Reads the versions anew. Up to the highest position of rows that were applied, or of the catalog that was followed, no row has
        news of columns."""
        self._versions.load(max(self.applied_to, self._state.now.identity_at), self._state.now.generation)

    def identify(self, run: Sequence[ChangeBatch], asked: Asked, *, others: bool) -> None:
        """Before rows are merged of which the source was not asked yet: what it says of the table since. An event does not tell that a
        value that it leaves out was written anew, or that it lacks a column; ``others`` are rows with other columns than the target.
        Where rows would show what never was, the table says first that it is not complete. Raises TableStopped, and what the source
        raises where there are ``others``."""
        kept = self._state.now
        if not kept.identity or not (others or self._state.name == "streaming"):
            return
        records = stream_records(run)
        latest = records[1] if records else 0
        if not others and latest <= kept.identity_at:
            return
        found = asked()
        if others and (found is None or found.position < latest):
            found = self._context.identities([self._source])
        now = found.tables.get(self._source) if found else None
        if found is None or now is None or found.position < latest or self._source in found.busy:
            if kept.columns_at < latest:
                self._state.keep(columns_at=latest)  # Until it is known.
            return
        judged = self._context.source.judge(self._source, kept.identity, now)
        if judged.outcome is Outcome.CARRIED:
            self.carry(judged, now, found.position)
        elif judged.outcome is Outcome.STOPS:
            raise TableStopped(judged.why, state=judged.state, hint=judged.hint, code=judged.code)
        elif judged.outcome is Outcome.ANEW:
            self._versions.reload = judged.why
            if self._state.name == "streaming":
                self._state.keep(state="snapshotting")

    def carry(self, judged: Judgement, identity: str, position: int) -> None:
        """Makes the target follow a change of the source that no row tells of, and keeps the ``identity`` that the source has since, as
        of ``position``. Raises what the destination raises."""
        if judged.renamed:
            self._state.keep(columns_at=position)  # Before a reader sees the new names, under which the rows are older still.
        unknown = self._versions.follow(judged.renamed, position) if judged.columns else ""
        if unknown:
            self._await_column(unknown, position)
            return
        self._unknown_since = None
        if not self._versions.reload:
            columns_at = position if judged.renamed else self._state.now.columns_at
            self._state.keep(identity=identity, identity_at=position, columns_at=columns_at)

    def _await_column(self, name: str, position: int) -> None:
        """Only an event tells the form of the new column. Until one comes the table is not complete; where none comes it is read anew."""
        now = self._context.clock.monotonic()
        if self._unknown_since is None:
            self._unknown_since = now
            self._state.keep(columns_at=position)
        elif now - self._unknown_since >= COLUMN_SECONDS:
            self._unknown_since = None
            self._versions.reload = f"only events tell the form of the new column {name}, and none came"

    def take_columns(self, position: int) -> None:
        """Makes the target hold the columns that the source's catalog has, as of ``position`` or later, before rows are read anew: those of
        a snapshot bring no column back that was dropped. Where it cannot follow (it is gone, or has other types), that shows when such
        rows come."""
        self.load()
        if self._versions.all and self._context.destination.drift(self._target, self._versions.all[-1]):
            return  # Opening it says what somebody did to the target.
        with contextlib.suppress(CdcError):
            self._versions.follow(self._versions.key_called_again(), position)

    def make(self, position: int) -> None:
        """At the end of a load: makes the target of a table of which no event ever came, empty; none where it is not certain how its events
        will look. Columns of the source, as of ``position``, that no row brought are added; a table of which a column was called otherwise
        while rows came has to be read anew."""
        self.load()
        if not self._versions.all:
            if (schema := self._context.schema_of(self._source)) is not None:
                self._versions.evolve(schema, None)
            return
        there, live = set(self._context.columns_of(self._source)), {c.name for c in self._versions.all[-1].columns if not c.dropped}
        if there == live or self._context.identities([self._source]).tables.get(self._source) != self._state.now.identity:
            return  # What it became since is for the next look to judge.
        if live <= there or (there - live and not self._context.destination.table_rows(self._target)):
            self._versions.follow({}, position)
        elif len(self._versions.all) > 1:
            self._versions.reload = f"its column {min(live - there)} was called otherwise, or dropped, while its rows came"
