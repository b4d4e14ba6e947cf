"""The versions of a target's schema: which of two is the later one, and what the target has to become for rows of one.

Promises: a column is added, with what its older rows hold, before the first row that has it; rows that come late change nothing; what
cannot be followed exactly raises TableStopped before anything is written.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc

from cdc_service.core.errors import CdcError
from cdc_service.core.evolve import Change, RenameColumn, evolve
from cdc_service.core.types import UNTOLD, ChangeBatch, Column, Mode, TableSchema, Target
from cdc_service.pipeline.context import Context
from cdc_service.pipeline.prepare import Prepare


class SchemaVersions:
    """``all`` are the versions as the destination has them, oldest first. ``reload`` says why the table has to be read anew, if it has."""

    def __init__(self, target: Target, context: Context, prepare: Prepare) -> None:
        self.all: tuple[TableSchema, ...] = ()
        self.reload = ""
        self._target = target
        self._prepare = prepare
        self._context = context
        self._handled: set[str] = set()
        self._judged: dict[str, int] = {}
        self._applied_to = 0
        self._generation = 0
        self._lacked: set[str] = set()

    def load(self, applied_to: int, generation: int) -> None:
        """Reads them anew; ``applied_to`` is the highest position of the rows that were applied so far, or of the source's catalog that the
        target followed, ``generation`` the table's."""
        self.all = tuple(self._context.destination.schemas(self._target))
        self._handled, self._judged, self._applied_to, self._generation = set(), {}, applied_to, generation
        # The process that learned so may have ended before the table was read anew.
        if doubtful := self.doubtful:
            self.reload = self.reload or f"only reading its rows anew tells what they hold in the column {doubtful[0]}"

    @property
    def doubtful(self) -> Sequence[str]:
        """The columns in which rows of the generation may hold what is not so."""
        own = self.all[-1].columns if self.all else ()
        return [c.name for c in own if c.unread is not None and c.unread >= self._generation]

    def evolve(self, incoming: TableSchema, records: tuple[int, int] | None, *, initial: bool = False) -> None:
        """Makes the target hold rows of ``incoming``, which stand at ``records`` (lowest and highest; None: no changes of the stream);
        ``initial``: rows of an initial snapshot are among them."""
        if self.all:
            incoming = self._in_order(incoming, self.all[-1], records, initial=initial)
        if incoming.fingerprint not in self._handled:
            incoming = self._with_fills(incoming)
            changes, schema = evolve(self.all[-1:], incoming)
            if changes:
                self._record(changes, schema)
                self._handled.clear()
            self._handled.add(incoming.fingerprint)
        for column in self.all[-1].columns if records else ():
            if (column.name in incoming.names) != column.dropped:
                self._judged[column.name] = max(records[1] if records else 0, self._judged.get(column.name, self._applied_to))

    def _record(self, changes: Sequence[Change], schema: TableSchema) -> None:
        """Makes the target hold ``schema`` as its next version. Fenced where the versions here are not the target's any more: another
        process was first, or began to read the table anew."""
        self._context.destination.evolve(self._target, changes, schema, self._generation)
        self.all = (*self.all, replace(schema, version=schema.version + 1))

    def follow(self, renamed: Mapping[str, str], position: int) -> str:
        """Makes the target hold the columns that the source's catalog has, as of ``position`` or later, though no row came that has them;
        ``renamed`` are those that got other names (old -> new). Sets ``reload`` where only reading the rows anew does it. Returns the name
        of a new column of which only an event tells the form, so that it has to be waited for; empty where the target followed."""
        if not self.all:
            # The target is made with its first rows, which may be older than what the catalog says.
            self.reload = "its columns were altered before the first of its rows came"
            return ""
        if renamed and not self._rename(renamed, position):
            return ""
        told, own = self._context.schema_of(self._target.source), self.all[-1]
        if told is None:
            there = set(self._context.columns_of(self._target.source))
            if new := sorted(there - {c.name for c in own.columns if not c.dropped}):
                return new[0]
            told = replace(own, columns=tuple(c for c in own.columns if not c.dropped and c.name in there))
        # What the catalog says now is later than all rows that were judged.
        at = max(position, self._applied_to, *self._judged.values()) + 1
        self.evolve(told, (at, at))
        return ""

    def key_called_again(self) -> Mapping[str, str]:
        """Columns of the key that the source has no more, each with a name that it had and that the source has now (the target's -> the
        source's). Where all rows are read anew it does not matter whether it is the same column."""
        if not self.all or self._target.mode is Mode.APPEND:
            return {}
        own, there = self.all[-1], set(self._context.columns_of(self._target.source))
        live = {c.name for c in own.columns if not c.dropped}
        lost = [c for c in own.columns if c.name in own.key and c.name not in there]
        return {c.name: old for c in lost for old, _ in c.former if old in there and old not in live}

    def _rename(self, renamed: Mapping[str, str], position: int) -> bool:
        """Whether the target's columns took the names. They do not where the target has moved on already: then they are others."""
        own = self.all[-1]
        live = {c.name for c in own.columns if not c.dropped}
        mine = {old: new for old, new in renamed.items() if old in live}
        if taken := [new for new in mine.values() if new in {c.name for c in own.columns}]:
            self.reload = f"a column is called {taken[0]} now, and the target has one of that name already"
            return False

        strange = {new for old, new in renamed.items() if old not in live} - {c.name for c in own.columns}
        if strange & set(self._context.columns_of(self._target.source)):
            self.reload = f"a column is called {min(strange)} now, and its rows came under a name that it had in between"
            return False

        def named(c: Column) -> Column:
            return replace(c, name=mine[c.name], former=(*c.former, (c.name, position))) if c.name in mine else c

        columns = tuple(map(named, own.columns))
        schema = replace(own, columns=columns, key=tuple(mine.get(name, name) for name in own.key))
        changes = [RenameColumn(old, schema.column(new)) for old, new in mine.items()]
        if changes:
            self._record(changes, schema)
            self._handled.clear()
        return True

    def translated(self, batch: ChangeBatch) -> ChangeBatch:
        """The batch with the names that its columns have now, where it is of a time before they got them."""
        own = self.all[-1] if self.all else None
        if own is None or not any(c.former for c in own.columns):
            return batch
        there = set(batch.schema.names)
        latest = pc.max(batch.meta["record"]).as_py() or 0
        live = {c.name for c in own.columns if not c.dropped}
        names: dict[str, str] = {}
        for c in own.columns:
            # Rows that a snapshot read stand at no position: where a column has the name now, it is that one which they mean.
            mine = c.former if c.name not in there else ()
            held = live if c.dropped or latest <= 0 else ()
            names |= {old: c.name for old, until in mine if old in there and latest <= until and old not in held}
        return batch.renamed(names) if names else batch

    def has_others(self, incoming: TableSchema) -> bool:
        """Whether it has other columns than the target: one may have another name, or may not be sent."""
        return bool(self.all) and {c.name for c in self.all[-1].columns if not c.dropped} != set(incoming.names)

    def may_be_renamed(self, incoming: TableSchema) -> bool:
        """Whether a column is new still and another one is missing, so that one may be the other."""
        live = {c.name for c in self.all[-1].columns if not c.dropped} if self.all else set(incoming.names)
        return bool(set(incoming.names) - live and live - set(incoming.names))

    def distrust_passing(self, incoming: TableSchema) -> None:
        """Has a log of changes read anew of which rows know a column by a name that it had only between two looks: nothing tells any more
        which one it was. (A table that is kept by key is read anew for any new column that the source does not have.)"""
        new = set(incoming.names) - {c.name for c in self.all[-1].columns}
        if self._target.mode is Mode.APPEND and (passing := sorted(new - set(self._context.columns_of(self._target.source)))):
            self._distrust(passing, "a column was called {} for a while, and nobody can tell which one")

    def _in_order(self, incoming: TableSchema, own: TableSchema, records: tuple[int, int] | None, *, initial: bool) -> TableSchema:
        """``incoming`` as far as it is news. Versions of a schema come out of order over partitions: a column that is missing was dropped,
        and a dropped one came back, only in rows later than all that were judged before. ALTER TABLE waits for every writer of the table
        and lets none in, so its versions never overlap in the log."""

        def later(name: str) -> bool:
            return records is not None and records[0] > self._judged.get(name, self._applied_to)

        gone = {c.name for c in own.columns if c.dropped and not later(c.name)}
        still = [c for c in own.columns if not c.dropped and c.name not in incoming.names and not later(c.name)]
        kept = [c for c in incoming.columns if c.name not in gone]
        untold = {c.name for c in (*self.all[0].columns, *(c for c in own.columns if c.unread is not None))}
        # Nobody could tell, or was ever asked (of a column that came with the table), what older rows hold in it; these are older rows.
        new = [c for c in still if c.name in untold] if self._target.mode is not Mode.APPEND else []
        why = "rows of before the column {} was added came after the table was made with it"
        if new and (records or initial):
            self._distrust([c.name for c in new], why)
        elif new:
            # Rows of an incremental snapshot lack a column that came after they were read, and one that was dropped.
            self.distrust_lacking(incoming.names, why)
        return incoming if len(kept) == len(incoming.columns) and not still else replace(incoming, columns=(*kept, *still))

    def distrust_lacking(self, names: Collection[str], why: str) -> None:
        """Has the table read anew where the source has got a column that is not among ``names``; ``why`` has a place for it. Once a column:
        some that the source has never come in events (a publication or a transform may leave them out). Their place in the catalog tells
        nothing: a column that was made again stands behind one that came in between."""
        now = self._context.columns_of(self._target.source)
        lacking = [name for name in now if name not in names and name not in self._lacked]
        self._lacked.update(lacking)
        if lacking:
            self._distrust(lacking, why)

    def _distrust(self, names: Sequence[str], why: str) -> None:
        self.reload = self.reload or why.format(names[0])
        self.doubt(names)

    def doubt(self, names: Collection[str]) -> None:
        """Notes at the destination, so that the next process knows, that rows of the generation may hold what is not so in these columns;
        the key's stand for all, and for those that the target does not have yet."""
        if not self.all:
            return
        own = self.all[-1]
        wrong = {c.name for c in own.columns} & set(names) or set(own.key)
        marked = tuple(replace(c, unread=self._generation) if c.name in wrong else c for c in own.columns)
        if marked != own.columns:
            self._record([], replace(own, columns=marked))

    def _with_fills(self, incoming: TableSchema) -> TableSchema:
        """``incoming`` with, for each column that the table does not have yet, what its older rows hold at the source."""
        if not self.all:
            return incoming
        known = {c.name: c.dropped for c in self.all[-1].columns}
        new = [c for c in incoming.columns if known.get(c.name, True)]
        if not new:
            return incoming
        if self._target.mode is Mode.APPEND:
            # The rows of a log are what they were, also where the source's own rows have another value in the new column.
            return replace(incoming, columns=tuple(replace(c, default=None) for c in incoming.columns))
        filled, why = {}, ""
        unread = self._generation if self._context.destination.table_rows(self._target) else UNTOLD
        for column in new:
            if column.name in known:
                why = f"the column {column.name} came back after it was dropped, so its older rows hold other values at the source"
                filled[column.name] = replace(column, unread=unread)
                continue
            found = self._filled(column, incoming)
            filled[column.name] = found or replace(column, default=None, unread=unread)
            if found is None:
                why = f"only reading its rows tells what the new column {column.name} holds in them"
        if why and unread != UNTOLD:
            self.reload = why
        return replace(incoming, columns=tuple(filled.get(c.name, c) for c in incoming.columns))

    def _filled(self, column: Column, version: TableSchema) -> Column | None:
        """The column with what rows older than it hold; None where only reading them tells."""
        m = self._context
        fill = m.source.fill_of_added_column(self._target.source, column.name)
        if fill.known and fill.text is None:
            return replace(column, default=None)
        if fill.known:
            try:
                text = pa.table({column.name: pa.array([fill.text], pa.string())})
                value = self._prepare.from_text(text, version)
                return replace(column, default=value.column(0)[0].as_py())
            except (CdcError, OverflowError, ValueError):
                return None
        return None
