"""The contract between the line and a destination: what is ordered, what may repeat, what a return promises.

One destination is one file in mergers/destinations, found by the scheme of its URL (``open_destination``). The line calls from one thread.

It is three contracts: the ``Writer`` of rows, the ``State`` that is kept about them, and what is ``Readable``. One object has all three,
because in a database with transactions a merge moves rows and state at once; whoever needs one of them asks for that one alone, and a
destination whose rows are committed elsewhere than its state can make each of its own parts (docs/adr/0009).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Protocol

import pyarrow as pa

from cdc_service.core.errors import CdcError, ConfigError, TableStopped
from cdc_service.core.evolve import Change
from cdc_service.core.logical import Kind
from cdc_service.core.types import Checkpoint, Delta, Headers, LoadRange, LogId, Mode, Receipt, TableSchema, Tail, Target
from cdc_service.ports.reader import View


class UnsentUnknown(CdcError):
    """A merge met rows whose unsent values stand nowhere in the warehouse; nothing was applied.

    ``keys`` holds the key columns of these rows, ``columns`` the names of the columns to read again at the source. The line reads them,
    completes the delta and merges again.
    """

    code = "unsent_unknown"

    def __init__(self, keys: pa.Table, columns: tuple[str, ...]) -> None:
        super().__init__("some values were not sent by the source and stand nowhere in the warehouse")
        self.keys = keys
        self.columns = columns


class RightsLacking(ConfigError):
    """The role of the destination lacks a right; ``statement`` gives it. A table that stopped for it tries again by itself."""

    code = "warehouse_rights"

    def __init__(self, message: str, statement: str) -> None:
        super().__init__(message, hint=f"run as an administrator of the warehouse: {statement}")
        self.statement = statement


class Misfit(TableStopped):
    """A table that the destination can never hold as it is. ``column`` is the one without which it could (empty: none is)."""

    def __init__(self, message: str, *, hint: str, column: str = "") -> None:
        super().__init__(message, state="schema_stopped", hint=hint)
        self.column = column


class Commit(StrEnum):
    """What makes a batch part of the warehouse, and so what a reader, and a writer after a crash, can rely on. In each kind nothing has a
    visible effect twice, and a stale writer changes nothing."""

    TRANSACTION = "transaction"
    """Rows, checkpoint, ledger and quarantine of a batch are there at once or not at all. Who wants to know how far a target is reads its
    checkpoint."""
    SNAPSHOT = "snapshot"
    """The rows of a batch are there at once, by a commit of the target's own table, which holds the batch's token (offsets, epoch, id).
    Checkpoint, ledger and quarantine are kept elsewhere and follow it: where the two differ after a crash, the table is right."""
    IDEMPOTENT = "idempotent"
    """The rows come by steps of which each may be done again with the same outcome, and the checkpoint moves behind the last one. Until
    then a reader may see a part of the batch; after a crash the whole batch is applied again."""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a destination can hold and do. A False or a bound is a gap that docs and the conformance suite name.

    ``ranges`` bounds, inclusive, the integer behind Arrow values of a kind (microseconds, days); the infinities of core.logical are
    outside of the bounds and allowed where ``infinity`` holds the kind. Values outside are parked, never coerced.
    """

    ranges: Mapping[Kind, tuple[int, int]]
    infinity: frozenset[Kind]
    nul_in_text: bool
    reads_while_writing: bool
    """Whether other processes can read, and write other tables or partitions, while the service writes."""
    commit: Commit
    gaps: Mapping[str, str]
    """By the names here, why each that falls short does: "ranges" always, "infinity" and "modes" where one of them misses, the others where
    False."""
    modes: frozenset[Mode] = frozenset(Mode)
    """A configuration that wants another one is refused."""


@dataclass(frozen=True, slots=True)
class TableState:
    """What is kept of a table beside its checkpoint, one row of ``table_state``; positions are as in core.order.

    ``generation`` was opened at source position ``opened_record`` and at the offsets ``opened_at`` (partition -> next offset); while
    ``resync`` is true its rows still arrive, and its end sweeps. ``complete_through`` is the source commit position up to which the table
    holds everything: the source stood there at ``complete_at`` (microseconds since 1970). ``identity`` is the source's identity of the
    table (core.identity) under which its rows were read, as the source said it at position ``identity_at``; empty where nobody asked yet.
    Before ``columns_at`` the source had other columns than the target has now, or was not asked for them: what the target holds is
    complete only from there on.
    """

    state: str = "waiting"
    generation: int = 0
    opened_record: int = 0
    opened_at: Mapping[int, int] | None = None
    resync: bool = False
    complete_through: int | None = None
    complete_at: int | None = None
    error_code: str = ""
    error_message: str = ""
    error_hint: str = ""
    error_at: int | None = None
    identity: str = ""
    identity_at: int = 0
    columns_at: int = 0
    version: int = 0
    """How often it was written: who writes it must have seen the last version."""


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A record of the quarantine. ``state`` is parked, replayed, discarded, or superseded (its table was read anew); times are
    microseconds since 1970. ``key``, ``value`` and ``headers`` are None where only the list was asked for."""

    id: str
    batch_id: str
    topic_id: str
    partition: int
    offset: int
    key_text: str | None
    stage: str
    code: str
    message: str
    state: str
    parked_us: int | None
    decided_by: str | None
    decided_us: int | None
    reason: str | None
    key: bytes | None = None
    value: bytes | None = None
    headers: Headers | None = None


@dataclass(frozen=True, slots=True)
class Totals:
    """What was done for a target. ``counts`` are its records by what became of them (applied, folded, duplicate, parked, filtered), as far
    as the ledger reaches back; ``waiting`` are, by code, those parked that nobody has decided on, ``decided`` the others by their state;
    ``high_commit`` and ``high_record`` are the highest positions applied, ``synced_us`` when the last merge was (microseconds since 1970).
    ``verified_*`` are when and at which source position the target was last found equal to its source."""

    counts: Mapping[str, int]
    waiting: Mapping[str, int]
    decided: Mapping[str, int]
    high_commit: int | None = None
    high_record: int | None = None
    synced_us: int | None = None
    verified_us: int | None = None
    verified_position: int | None = None


class Writer(Protocol):
    """The rows of targets, and the schemas that they have."""

    def table_rows(self, target: Target) -> int | None:
        """Number of live rows (soft-deleted ones not counted), or None where the table does not exist."""
        ...

    def schemas(self, target: Target) -> Sequence[TableSchema]:
        """The versions applied so far, oldest first; empty for a table that this service did not make. The last is the table's own."""
        ...

    def evolve(self, target: Target, changes: Sequence[Change], schema: TableSchema, generation: int | None = None) -> None:
        """Makes the target hold ``schema`` and records it as version ``schema.version + 1``; Fenced where another writer recorded that
        first. Idempotent: a crash half-way and a second call end the same. Creates the table (and namespace) where ``changes`` begin with
        CreateTable. No merge runs meanwhile.

        Raises Fenced, too, where the target is of another ``generation`` (given) by now: a table that was made anew counts its versions
        from the first again, so their number alone does not tell it from the one that was there before."""
        ...

    def drift(self, target: Target, schema: TableSchema) -> Sequence[str]:
        """Sentences on what somebody changed in the target against ``schema`` and the metadata columns; empty when nothing."""
        ...

    def merge(self, delta: Delta, epochs: Mapping[int, int], log: LogId, table: TableSchema) -> Receipt:
        """Applies the delta in one transaction, checkpoint first: compare-and-swap of (span.start, epoch) on every partition of the batch,
        N of N or Fenced. Merges of one target come one after another, whoever makes them. Then truncation, guard by version (rows and
        deleted keys), unsent values filled, delete and insert, deleted keys, ledger, quarantine. Durable when it returns. A delta without
        rows still moves the checkpoint.

        ``table`` is the target's own schema of the newest version (else Fenced), which holds all columns of ``delta.schema`` (types wider
        or equal) and may hold more: these become NULL in the rows written where ``dropped``; else an existing row keeps its value and a
        new one takes the column's default.
        Raises UnsentUnknown (nothing applied) as said there.

        With Mode.APPEND every change of the delta becomes a row, unless the target holds it already (core.append says what is the same
        change); nothing else is written or removed, no value is looked up, and columns that the delta's schema does not know are NULL.

        A delta with a ``decision`` applies parked records like any others, and in the same transaction marks what was decided: all of its
        records are parked, or Fenced. Their partitions get a new epoch, so that whoever reads them asks for ``parked_keys`` again; the
        ledger stays, it has counted them as parked. From a row under the key of a discarded record no unsent value is ever taken: the row
        lacks what that record changed.
        """
        ...

    def sweep(self, target: Target, generation: int, record: int) -> int:
        """The end of a resync, or of an initial snapshot that was begun twice: removes rows with a version below ``(generation, record)``,
        and supersedes for ever what arrives with one, like a truncation there. Returns how many. Needs checkpoint rows.
        With Mode.APPEND only rows of initial snapshots are concerned, and a resync removes none: ``record`` says which attempt counts."""
        ...

    def holds_before(self, target: Target, generation: int, position: int) -> bool:
        """Whether something of the stream that may have been committed before ``position`` stands in this generation: a row, a deleted key
        or a truncation. Beside a snapshot that was read at ``position`` it may be out of date."""
        ...


class State(Protocol):
    """What is kept about targets beside their rows: how far the log is in them and who writes them, what they are in, what became of their
    records, what comparisons with the source found. Where a merge moves some of it (checkpoints, tails, quarantine, totals), it is
    read here."""

    def checkpoints(self, target: Target) -> Sequence[Checkpoint]:
        """All checkpoint rows of the target, of any log. Takes nothing."""
        ...

    def claim(self, target: Target, log: LogId, starts: Mapping[int, int], generation: int | None = None) -> Sequence[Checkpoint]:
        """Takes the partitions for this writer: a new epoch each, durable on return; older epochs are fenced from then on.

        A partition that has no checkpoint row in ``log`` begins at ``starts[partition]``; one that has keeps its own next_offset. Raises
        Fenced, and takes none, where the target is of another ``generation`` (given) by now: a resync began meanwhile.
        """
        ...

    def tails(self, target: Target, log: LogId) -> Mapping[int, Tail]:
        """The last change of each partition of ``log``, where the table has no key (``Delta.tails``); of the others none."""
        ...

    def highest_snapshot(self) -> int | None:
        """The highest record order of an initial-snapshot row (< 0) that any merge of the pipeline was given, whether the row is still
        there or not: the newest attempt at the snapshot. None where there was none, or all of it was forgotten since."""
        ...

    def load_state(self, target: Target) -> TableState:
        """The kept state; TableState() where there is none."""
        ...

    def states(self) -> Mapping[tuple[str, str], TableState]:
        """All states that are kept of the pipeline, by (source table as TableId prints it, target as Target prints it)."""
        ...

    def save_state(self, target: Target, state: TableState) -> TableState:
        """Keeps the state if ``state.version`` is the one that is kept now, and returns it with its new version; else Fenced."""
        ...

    def save_progress(self, moved: Mapping[Target, TableState]) -> Mapping[Target, TableState]:
        """Keeps how far tables are complete (``complete_through``, ``complete_at`` and ``identity_at``; nothing else is written) in one
        transaction, and returns those states with their new versions; one that another process changed meanwhile is left out."""
        ...

    def plan_load(self, target: Target, generation: int, ranges: Sequence[LoadRange]) -> None:
        """Keeps the ranges by which the table is read at the source for this generation, in the place of all that was planned before.
        Raises Fenced where the target is of another generation by now. A merge marks them (``Delta.loaded``): with the rows, or not at
        all; Fenced where the range is done already, or of another plan."""
        ...

    def load_ranges(self, target: Target, generation: int) -> Sequence[LoadRange]:
        """Those of the generation, in their order; none where nothing was planned."""
        ...

    def totals(self, target: Target) -> Totals: ...

    def parked_keys(self, target: Target) -> pa.Array:
        """Canonical texts of the keys that have records parked and undecided (string array)."""
        ...

    def quarantined(
        self, target: Target, *, state: str = "", key: str = "", code: str = "", ids: Sequence[str] = (), whole: bool = False, most: int
    ) -> Sequence[Quarantined]:
        """The first ``most`` records of the quarantine for which all that is given holds, oldest first, each partition's in the order of
        its log; with their bytes where ``whole``."""
        ...

    def keep_run(
        self,
        target: Target,
        run: Mapping[str, object],
        differences: Sequence[Mapping[str, object]],
        buckets: Sequence[Mapping[str, object]],
    ) -> None:
        """Records a comparison with the source, whole or not at all: values by the column names of the tables reconcile_*."""
        ...

    def runs(self, target: Target, most: int) -> Sequence[Mapping[str, Any]]:
        """The last comparisons with the source, newest first, as ``keep_run`` recorded them."""
        ...

    def differences(self, target: Target, run_id: str) -> Sequence[Mapping[str, Any]]:
        """The differences that the run recorded."""
        ...

    def mark_repaired(self, target: Target, run_id: str, keys: Sequence[str], at: datetime) -> None:
        """Notes when the run's differences at these keys (as it recorded them) were repaired."""
        ...


class Readable(Protocol):
    """What others read, from any thread."""

    def view(self, target: Target, schema: TableSchema) -> View:
        """A read of the target as it is now, for another thread than the line's, which may call this. ``schema`` is the target's own.
        Raises Unavailable as the others do."""
        ...

    def views(self) -> AbstractContextManager[Callable[[Target, TableSchema], View]]:
        """``view``, for many that are opened one after another by one thread: what takes long to open is kept in between."""
        ...

    def query(self, sql: str, *, rows_max: int) -> pa.Table:
        """Runs a statement that can only read: no writes, no files, no settings. Raises ConfigError with the database's sentence."""
        ...


class Destination(Writer, State, Readable, Protocol):
    """A warehouse. Every method may be called again after any failure; none leaves staging behind that matters.

    Raises Unavailable when the warehouse does not answer (nothing was applied), CommitUnknown when the reply to COMMIT was lost, Fenced
    when another writer took a partition, TableStopped when this table needs a person, ConfigError for what was asked wrongly.
    """

    capabilities: Capabilities

    def fold(self, identifier: str) -> str:
        """The identifier as the destination compares it: two that fold together would be one table or column."""
        ...

    def misfit(self, target: Target, schema: TableSchema) -> Misfit | None:
        """Why ``target`` can never hold rows of ``schema`` (names, their number, the key's types), or None. Asks nobody: it is said before
        the first event, and again by ``evolve``, which raises it."""
        ...

    def probe(self) -> str:
        """A sentence on what would be written to. Changes nothing; raises what ``prepare`` would raise, as far as it can be told."""
        ...

    def lacking(self, targets: Sequence[Target]) -> Sequence[CdcError]:
        """What keeps the service from writing to its own tables and to ``targets``, whether they are there yet or not: a sentence each,
        with the statement to paste that heals it. Changes nothing."""
        ...

    def prepare(self) -> None:
        """Creates or migrates the meta schema (contract: checkpoint, batch, quarantine, ...). Errors name the grant that is missing."""
        ...

    def begin_anew(
        self, target: Target, log: LogId, starts: Mapping[int, int], state: TableState, *, forget: bool = True, retire: bool = False
    ) -> TableState:
        """The beginning of a resync, all of it or nothing: keeps ``state`` as ``save_state`` does, takes the partitions at ``starts``
        (older writers are fenced), decides all parked records as superseded (their rows are read anew). ``forget`` drops all checkpoint
        rows first; without it they stay, and say where each partition goes on.

        ``retire`` also drops the target's table, the history of its schema and the versions of its deleted keys, so that ``evolve`` makes
        it anew (after a change of key or type); a table that this service did not make (``schemas`` is empty) is left alone. A log of
        changes (Mode.APPEND) is not dropped but renamed, to <name>_until_<generation>. Writer, ledger and quarantine stay.
        """
        ...

    def release(self) -> None:
        """Lets go of what other processes wait for (the file of an embedded database) until the next call. Cheap to call when idle."""
        ...

    def close(self) -> None: ...
