"""The engine that every SQL destination shares: checkpoint, guard, merge, ledger and evolution over a thin connection and a spelling.

Promises: one transaction a merge, its first statement the compare-and-swap of the checkpoint; rows staged are compared with rows
affected; the account of records closes or nothing is applied. A destination adds a spelling, a connection and what is its own.
"""

from __future__ import annotations

import abc
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from cdc_service.core.errors import CdcError, ConfigError, Fenced, TableStopped
from cdc_service.core.evolve import AddColumn, Change, CreateTable, DropColumn, RenameColumn, RestoreColumn, WidenType
from cdc_service.core.logical import Kind, LogicalType
from cdc_service.core.types import Checkpoint, Column, Decision, Delta, LogId, PartitionCounts, Receipt, TableSchema, Tail, Target
from cdc_service.failpoints import failpoint
from cdc_service.ports.destination import Capabilities, Misfit, Quarantined, TableState, Totals
from mergers.sql import comparisons, meta, quarantine, states
from mergers.sql.connection import Connection, Mismatch, run
from mergers.sql.ledger import LedgerOpen, account, highs, parked
from mergers.sql.modes import MODES, RESERVED, kept_as
from mergers.sql.schema_text import schema_from_json, schema_to_json
from mergers.sql.spelling import Spelling, Statement
from mergers.sql.staging import FILLED, PARKED, STAGE
from mergers.sql.statements import High, TargetSql

PRUNE_SECONDS = 3600
ANOTHER_TARGET = "give the table another target in the configuration"

if TYPE_CHECKING:
    from mergers.sql.view import View


class SqlDestination(abc.ABC):
    """ports.destination.Destination over SQL; subclasses open the connection and say how to query and to let go."""

    capabilities: Capabilities
    spelling: Spelling

    def __init__(self, *, pipeline: str, meta_schema: str) -> None:
        self._pipeline = pipeline
        self._meta_schema = meta_schema
        self._pruned = float("-inf")
        self._enrolled: set[tuple[str, str, str]] = set()

    @abc.abstractmethod
    def connection(self) -> Connection:
        """The one connection of the line, opened when it is not."""

    @abc.abstractmethod
    def fold(self, identifier: str) -> str: ...

    # Meta tables

    def prepare(self) -> None:
        with self._transaction() as c:
            self._prepare(c)

    def _prepare(self, c: Connection) -> None:
        q = self.spelling.quote
        for sql in self._make_namespace(self._meta_schema):
            c.execute(sql)
        version_table = q(self._meta_schema, "migration")
        c.execute(f"CREATE TABLE IF NOT EXISTS {version_table} (version INTEGER, {q('at')} TIMESTAMP WITH TIME ZONE)")
        done = c.fetch(f"SELECT COALESCE(MAX(version), 0) FROM {version_table}")[0][0]
        for version, statements in enumerate(meta.migrations(self.spelling, self._meta_schema), start=1):
            if version > done:
                for sql in statements if version == 1 or done else ():
                    c.execute(sql)
                c.execute(f"INSERT INTO {version_table} VALUES ({self.spelling.placeholder}, now())", [version])
        self._prune()

    def _prune(self) -> None:
        if time.monotonic() - self._pruned >= PRUNE_SECONDS:
            for sql in meta.retention(self.spelling, self._meta_schema):
                self.connection().execute(sql)
            self._pruned = time.monotonic()

    def checkpoints(self, target: Target) -> Sequence[Checkpoint]:
        s = self._sql(target)
        rows = self.connection().fetch(f"{self._select_checkpoints(s)} WHERE {s.in_scope()} ORDER BY 4", s.scope)
        return [Checkpoint(LogId(cluster, topic, topic_id), p, offset, epoch) for cluster, topic, topic_id, p, offset, epoch in rows]

    def _select_checkpoints(self, s: TargetSql) -> str:
        return f"SELECT cluster_id, topic, topic_id, {s.spelling.quote('partition')}, next_offset, epoch FROM {s.meta(meta.CHECKPOINT)}"

    def claim(self, target: Target, log: LogId, starts: Mapping[int, int], generation: int | None = None) -> Sequence[Checkpoint]:
        if not starts:
            return []
        s = self._sql(target)
        self._enrol(s)
        with self._transaction() as c:
            taken = self._take(c, s, log, starts)
            # Behind the writer's number, which a resync takes too: none begins between this and the commit.
            if generation is not None and self.load_state(target).generation != generation:
                raise Fenced(f"{target.source} was read anew meanwhile; its partitions are opened again")
            return taken

    def _take(self, c: Connection, s: TargetSql, log: LogId, starts: Mapping[int, int]) -> Sequence[Checkpoint]:
        p, table = self.spelling.placeholder, s.meta(meta.CHECKPOINT)
        here = f"{s.in_scope()} AND cluster_id = {p} AND topic = {p} AND topic_id = {p}"
        log_params = [*s.scope, log.cluster_id, log.topic, log.topic_id]
        partitions = sorted(starts)
        listed = f"{s.spelling.quote('partition')} IN ({', '.join([p] * len(partitions))})"
        epoch = self._next_epoch(c, s)
        c.execute(f"UPDATE {table} SET epoch = {p} WHERE {here} AND {listed}", [epoch, *log_params, *partitions])
        there = {row[0] for row in c.fetch(f"SELECT {s.spelling.quote('partition')} FROM {table} WHERE {here}", log_params)}
        new = [n for n in partitions if n not in there]
        if new:
            none: list[object] = [None] * (len(meta.CHECKPOINT.columns) - 6)
            rows = [[*log_params, n, starts[n], epoch, *none] for n in new]
            c.execute(s.insert(meta.CHECKPOINT, len(rows)), [value for row in rows for value in row])
        taken = c.fetch(f"{self._select_checkpoints(s)} WHERE {here} AND {listed} ORDER BY 4", [*log_params, *partitions])
        return [Checkpoint(log, row[3], row[4], row[5]) for row in taken]

    def _next_epoch(self, c: Connection, s: TargetSql) -> int:
        """A number that no other transaction gets: the update makes whoever wants one too wait, or fail."""
        place = s.meta(meta.WRITER)
        if not c.execute(f"UPDATE {place} SET epoch = epoch + 1 WHERE {s.in_scope()}", s.scope):
            raise self._struck(s)
        return int(c.fetch(f"SELECT MAX(epoch) FROM {place} WHERE {s.in_scope()}", s.scope)[0][0])

    def begin_anew(
        self, target: Target, log: LogId, starts: Mapping[int, int], state: TableState, *, forget: bool = True, retire: bool = False
    ) -> TableState:
        s = self._sql(target)
        with self._locked(s) as c:
            kept = states.store(c, s, state)
            run(c, quarantine.settle_all(s, "the table was read anew (resync)"))
            gone = [meta.CHECKPOINT] if forget else []
            if retire:
                if self._history(target):
                    there = [name for name, _ in c.columns(target.namespace, target.name) or ()]
                    self._sql(replace(target, mode=kept_as(there))).retire(c, state.generation - 1)
                gone += [meta.DELETED_KEYS, meta.SCHEMA_HISTORY]
            for table in gone:
                c.execute(f"DELETE FROM {s.meta(table)} WHERE {s.in_scope()}", s.scope)
            self._take(c, s, log, starts)
        return kept

    def totals(self, target: Target) -> Totals:
        s, names = self._sql(target), ("applied", "folded", "duplicate", "parked", "filtered")
        summed = ", ".join(f"CAST(COALESCE(SUM({name}), 0) AS BIGINT)" for name in names)
        counts = self.connection().fetch(f"SELECT {summed} FROM {s.meta(meta.BATCH)} WHERE {s.in_scope()}", s.scope)[0]
        kinds = f"SELECT state, code, COUNT(*) FROM {s.meta(meta.QUARANTINE)} WHERE {s.in_scope()} GROUP BY state, code ORDER BY 1, 2"
        last = f"""SELECT MAX(high_commit), MAX(high_record), {self.spelling.us_of_time.format(time="MAX(committed_at)")}
FROM {s.meta(meta.CHECKPOINT)} WHERE {s.in_scope()} AND batch_id IS NOT NULL"""
        ((high, record, synced),) = self.connection().fetch(last, s.scope)
        q = self.spelling.quote
        verified = f"""SELECT {self.spelling.us_of_time.format(time=f"MAX({q('at')})")}, MAX({q("position")})
FROM {s.meta(meta.RECONCILE_RUN)} WHERE {s.in_scope()} AND {meta.proves(self.spelling)}"""
        ((at, position),) = self.connection().fetch(verified, s.scope)
        waiting, decided = dict[str, int](), Counter[str]()
        for state, code, count in self.connection().fetch(kinds, s.scope):
            if state == "parked":
                waiting[code] = count
            else:
                decided[state] += count
        return Totals(dict(zip(names, counts, strict=True)), waiting, decided, high, record, synced, at, position)

    def parked_keys(self, target: Target) -> pa.Array:
        s = self._sql(target)
        sql = f"""SELECT DISTINCT key_text FROM {s.meta(meta.QUARANTINE)}
WHERE {s.in_scope()} AND state = 'parked' AND key_text IS NOT NULL"""
        return pa.array([row[0] for row in self.connection().fetch(sql, s.scope)], pa.string())

    def quarantined(
        self, target: Target, *, state: str = "", key: str = "", code: str = "", ids: Sequence[str] = (), whole: bool = False, most: int
    ) -> Sequence[Quarantined]:
        c, s = self.connection(), self._sql(target)
        return list(quarantine.read(c, s, state=state, key=key, code=code, ids=ids, whole=whole, most=most))

    # The state of a table

    def load_state(self, target: Target) -> TableState:
        return states.load(self.connection(), self._sql(target))

    def states(self) -> Mapping[tuple[str, str], TableState]:
        return states.of_pipeline(self.connection(), self.spelling, self._meta_schema, self._pipeline)

    def save_state(self, target: Target, state: TableState) -> TableState:
        s = self._sql(target)
        # Two processes may both find no state: the first one is made under the writer's lock.
        with self._transaction() if state.version else self._locked(s) as c:
            return states.store(c, s, state)

    def save_progress(self, moved: Mapping[Target, TableState]) -> Mapping[Target, TableState]:
        left = dict(moved)
        while left:
            c = self.connection()
            try:
                c.stage(states.MOVED, *states.staged(left, self.spelling))
                with self._transaction():
                    states.advance(c, self.spelling, self._meta_schema, self._pipeline, len(left))
                return {target: replace(state, version=state.version + 1) for target, state in left.items()}
            except states.Overtaken:
                kept = self.states()
                left = {t: s for t, s in left.items() if (now := kept.get((str(t.source), str(t)))) and now.version == s.version}
            finally:
                c.unstage(states.MOVED)
        return {}

    # Comparisons with the source

    def view(self, target: Target, schema: TableSchema) -> View:
        raise ConfigError(f"{target}: this destination cannot be compared with its source yet", code="no_view")

    def keep_run(
        self,
        target: Target,
        run: Mapping[str, object],
        differences: Sequence[Mapping[str, object]],
        buckets: Sequence[Mapping[str, object]],
    ) -> None:
        with self._transaction() as c:
            comparisons.keep(c, self._sql(target), run, differences, buckets)

    def runs(self, target: Target, most: int) -> Sequence[Mapping[str, Any]]:
        return comparisons.runs(self.connection(), self._sql(target), most)

    def differences(self, target: Target, run_id: str) -> Sequence[Mapping[str, Any]]:
        return comparisons.differences(self.connection(), self._sql(target), run_id)

    def mark_repaired(self, target: Target, run_id: str, keys: Sequence[str], at: datetime) -> None:
        with self._transaction() as c:
            comparisons.mark_repaired(c, self._sql(target), run_id, keys, at)

    # The target's schema

    def table_rows(self, target: Target) -> int | None:
        s = self._sql(target)
        if self.connection().columns(target.namespace, target.name) is None:
            return None
        where = f" WHERE {live}" if (live := s.live("t")) else ""
        return int(self.connection().fetch(f"SELECT COUNT(*) FROM {s.place} AS t{where}")[0][0])

    def schemas(self, target: Target) -> Sequence[TableSchema]:
        return [replace(schema_from_json(text), version=version) for version, text in self._history(target)]

    def _history(self, target: Target) -> list[tuple[Any, ...]]:
        s = self._sql(target)
        sql = f'SELECT version, "schema" FROM {s.meta(meta.SCHEMA_HISTORY)} WHERE {s.in_scope()} ORDER BY version'
        return self.connection().fetch(sql, s.scope)

    def evolve(self, target: Target, changes: Sequence[Change], schema: TableSchema) -> None:
        if (misfit := self.misfit(target, schema)) is not None:
            raise misfit
        s = self._sql(target, schema)
        with self._locked(s) as c:
            self._evolve(c, s, changes, schema)

    def _evolve(self, c: Connection, s: TargetSql, changes: Sequence[Change], schema: TableSchema) -> None:
        target, ran = s.target, list[str]()
        history, text = self._history(target), schema_to_json(schema)
        newest = history[-1] if history else (0, "")
        if newest[0] != schema.version and newest[1] != text:
            raise Fenced(f"{target}: another process changed its schema meanwhile", hint="nothing to do: it is read again")
        if newest[1] == text:
            return  # It was done before, and only the reply was lost.
        for change in changes:
            for sql in self._ddl(c, s, target, change):
                c.execute(sql)
                ran.append(sql)
        if any(isinstance(change, CreateTable) for change in changes) and (found := self.drift(target, schema)):
            raise TableStopped(
                f"{target} is there already and is not the table that {target.source} needs: {'; '.join(found)}",
                state="drift",
                hint="name another target for the table in the configuration, or move the existing one away",
            )
        change_text = ", ".join(map(_describe, changes))
        row = [*s.scope, newest[0] + 1, change_text, ";\n".join(ran), schema.fingerprint, text]
        c.execute(s.insert(meta.SCHEMA_HISTORY, 1, now="at"), row)

    def misfit(self, target: Target, schema: TableSchema) -> Misfit | None:
        if self.fold(target.namespace) == self.fold(self._meta_schema) and self.fold(target.name) in map(self.fold, meta.NAMES):
            return Misfit(f"{target.source}: {target} is a table of this service's own", hint=ANOTHER_TARGET)
        seen = {self.fold(name): "a column of this service" for name in RESERVED}
        for column in schema.columns:
            folded = self.fold(column.name)
            if folded in seen:
                message = f"{schema.table}: the column {column.name} has the same name as {seen[folded]} at the destination"
                return Misfit(message, hint="rename the column at the source, or let the connector leave it out", column=column.name)
            seen[folded] = f"the column {column.name}"
        return None

    def lacking(self, targets: Sequence[Target]) -> Sequence[CdcError]:
        """Targets that are there and were never this service's: a first load would stop at them."""
        found: list[CdcError] = []
        for target in targets:
            there = self.connection().columns(target.namespace, target.name)
            if there is not None and self.fold("_cdc_gen") not in {self.fold(name) for name, _ in there}:
                message = f"{target} is there already and is not the table that {target.source} needs: it has no column _cdc_gen"
                cure = f"{ANOTHER_TARGET}, or move away what is there"
                found.append(CdcError(message, hint=cure, code="drift"))
        return found

    def _ddl(self, c: Connection, s: TargetSql, target: Target, change: Change) -> Iterator[str]:
        """What is done already is left out: some databases end the transaction at each of these."""
        q, type_of = self.spelling.quote, self.spelling.column_type
        there = {self.fold(name): type_ for name, type_ in c.columns(target.namespace, target.name) or ()}
        match change:
            case CreateTable(schema):
                columns = [*((col.name, col.type) for col in schema.columns), *((name, t) for name, t, *_ in s.metadata)]
                parts = [*(f"{q(name)} {type_of(type_)}" for name, type_ in columns), *self._constraints(s, schema)]
                yield from self._make_namespace(target.namespace)
                yield f"CREATE TABLE IF NOT EXISTS {s.place} ({', '.join(parts)})"
            case AddColumn(column):
                # The default stays on the column: it is harmless, because every row that is written names all columns.
                if self.fold(column.name) not in there:
                    yield f"ALTER TABLE {s.place} ADD COLUMN {q(column.name)} {type_of(column.type)}{self._default(c, column)}"
            case WidenType(column, _):
                if there.get(self.fold(column.name)) != type_of(column.type):
                    for sql in self.spelling.widen:
                        yield sql.format(place=s.place, column=q(column.name), type=type_of(column.type))
            case RenameColumn(before, column):
                if self.fold(column.name) not in there:
                    yield f"ALTER TABLE {s.place} RENAME COLUMN {q(before)} TO {q(column.name)}"
            case DropColumn() | RestoreColumn():
                pass

    def _make_namespace(self, namespace: str) -> Sequence[str]:
        """The statements that make a namespace which may be there already."""
        return [f"CREATE SCHEMA IF NOT EXISTS {self.spelling.quote(namespace)}"] if self.spelling.namespaces else []

    def _constraints(self, s: TargetSql, schema: TableSchema) -> Sequence[str]:
        """What stands behind the columns where a target is made, such as its key."""
        return ()

    def _default(self, c: Connection, column: Column) -> str:
        """A DEFAULT clause that gives existing rows exactly the column's default; empty where that is NULL."""
        if column.default is None:
            return ""
        type_ = self.spelling.column_type(column.type)
        refused = TableStopped(
            f"the default of the new column {column.name} ({column.type}) cannot be written exactly into existing rows",
            state="schema_stopped",
            hint="load the table anew: cdc resync",
        )
        try:
            value = pa.array([column.default], column.type.arrow)
        except (pa.ArrowException, OverflowError, TypeError, ValueError):
            raise refused from None
        c.stage(STAGE, pa.table({"x": value}), [type_])
        stage = self.spelling.quote(self.spelling.temporary, STAGE)
        test = self.spelling.text_exact.format(c="x", t=type_) or "TRUE"
        ((text, exact),) = c.fetch(f"SELECT CAST(x AS VARCHAR), {test} FROM {stage}")
        c.unstage(STAGE)
        if not exact:
            raise refused
        return f" DEFAULT {self.spelling.literal(text)}"

    def drift(self, target: Target, schema: TableSchema) -> Sequence[str]:
        there = self.connection().columns(target.namespace, target.name)
        if there is None:
            return [f"the table {target} is gone"]
        found = {self.fold(name): (name, type_) for name, type_ in there}
        expected = [(c.name, c.type) for c in schema.columns] + [(name, t) for name, t, *_ in self._sql(target).metadata]
        sentences = []
        for name, type_ in expected:
            _, actual = found.pop(self.fold(name), ("", None))
            wanted = self.spelling.column_type(type_)
            if actual is None:
                sentences.append(f"column {name} is gone")
            elif actual != wanted:
                sentences.append(f"column {name} is {actual} and was {wanted}")
        return [*sentences, *(f"column {name} was added" for name, _ in found.values())]

    # The merge

    def merge(self, delta: Delta, epochs: Mapping[int, int], log: LogId, table: TableSchema) -> Receipt:
        s, c = self._sql(delta.target, table), self.connection()
        self._prune()
        self._enrol(s)
        try:
            if delta.meta.num_rows:
                staged, types = s.stage(delta)
                c.stage(STAGE, staged, [self.spelling.column_type(t) for t in types])
            if delta.rejected:
                rejected, rejected_types = parked(delta, log)
                c.stage(PARKED, rejected, [self._meta_type(t) for t in rejected_types])
            reached = highs(delta)
            failpoint("merge.staged")
            with self._locked(s):
                self._swap(c, s, delta, epochs, log, reached)
                if delta.decision is not None:
                    self._decide(c, s, delta.decision)
                failpoint("merge.swapped")
                news = self._truncate(c, s, delta, log)
                failpoint("merge.truncated")
                winners = s.apply(c, delta, self._watermark(c, s), self._discard) if delta.meta.num_rows else {}
                counts = account(delta, winners, truncated_before=not news)
                self._record(c, s, delta, log, counts)
                failpoint("merge.recorded")
            failpoint("merge.committed")
        except Mismatch as error:
            if found := self.drift(delta.target, table):
                raise TableStopped(
                    f"{delta.target} was changed by somebody: {'; '.join(found)}",
                    state="drift",
                    hint=f"change it back, or load it anew: cdc resync {delta.target.source}",
                ) from error
            raise
        finally:
            for name in (STAGE, FILLED, PARKED):
                c.unstage(name)
        commits = [commit for commit, _ in reached.values() if commit is not None]
        records = [record for _, record in reached.values() if record is not None]
        return Receipt(delta.batch_id, delta.target, counts, max(commits, default=None), max(records, default=None))

    def _swap(self, c: Connection, s: TargetSql, delta: Delta, epochs: Mapping[int, int], log: LogId, reached: Mapping[int, High]) -> None:
        hit = run(c, s.swap(log, delta, epochs, reached)) if delta.spans else 0
        if hit != len(delta.spans):
            raise Fenced(
                f"{delta.target}: {len(delta.spans) - hit} of {len(delta.spans)} partitions of the batch are no longer this writer's",
                hint="nothing to do: the batch is dropped and the partitions are read again from their checkpoint",
            )

    def _decide(self, c: Connection, s: TargetSql, decision: Decision) -> None:
        p = self.spelling.placeholder
        if c.fetch(f"SELECT {s.newest()}", s.scope)[0][0] != s.table.version:
            raise Fenced(f"{s.target}: its schema was changed meanwhile", hint="do it again")
        quarantine.decide(c, s, decision)
        # Whoever reads the partitions still holds back what need not wait any more.
        c.execute(f"UPDATE {s.meta(meta.CHECKPOINT)} SET epoch = {p} WHERE {s.in_scope()}", [self._next_epoch(c, s), *s.scope])

    def _truncate(self, c: Connection, s: TargetSql, delta: Delta, log: LogId) -> bool:
        """Applies the delta's truncation; False where it, or a later one, was applied before."""
        t, p = delta.truncation, self.spelling.placeholder
        if t is None:
            return True
        known = self._watermark(c, s)
        if known is not None and known >= (t.generation, t.record):
            return False
        sql = f"""{self._set_watermark(s)}
WHERE {s.in_scope()} AND cluster_id = {p} AND topic = {p} AND topic_id = {p} AND {self.spelling.quote("partition")} = {p}"""
        where = [*s.scope, log.cluster_id, log.topic, log.topic_id, t.partition]
        if c.execute(sql, [t.generation, t.record, *where]) != 1:
            raise LedgerOpen(f"{delta.target}: a truncation came from partition {t.partition}, which is not in its batch")
        run(c, s.sweep(t.generation, t.record))
        return True

    @staticmethod
    def _set_watermark(s: TargetSql) -> str:
        return f"UPDATE {s.meta(meta.CHECKPOINT)} SET truncate_gen = {s.spelling.placeholder}, truncate_commit = {s.spelling.placeholder}"

    def _watermark(self, c: Connection, s: TargetSql) -> tuple[int, int] | None:
        sql = f"""SELECT truncate_gen, truncate_commit FROM {s.meta(meta.CHECKPOINT)}
WHERE {s.in_scope()} AND truncate_commit IS NOT NULL ORDER BY 1 DESC, 2 DESC LIMIT 1"""
        rows = c.fetch(sql, s.scope)
        return (rows[0][0], rows[0][1]) if rows else None

    def _discard(self, numbers: Statement) -> int:
        """Takes the rows out of the staged table whose ``n`` the query returns; how many these were. Not every database has DELETE ...
        USING."""
        stage = self.spelling.quote(self.spelling.temporary, STAGE)
        return self.connection().execute(f"DELETE FROM {stage} WHERE n IN ({numbers.sql})", numbers.params)

    def _record(self, c: Connection, s: TargetSql, delta: Delta, log: LogId, counts: Sequence[PartitionCounts]) -> None:
        if delta.rejected:
            kept = run(c, s.park())
            if kept != len(delta.rejected):
                raise LedgerOpen(f"{delta.target}: {len(delta.rejected)} records were to be parked, {kept} were")
        values: list[object] = []
        for n in counts:
            numbers = (n.partition, n.start, n.stop, n.applied, n.folded, n.duplicate, n.parked, n.filtered)
            values += [*s.scope, delta.batch_id, log.topic_id, *numbers]
        if counts:
            c.execute(s.insert(meta.BATCH, len(counts), now="committed_at"), values)

    def sweep(self, target: Target, generation: int, record: int) -> int:
        s = self._sql(target)
        with self._locked(s) as c:
            known = self._watermark(c, s)
            if known is None or known < (generation, record):
                c.execute(f"{self._set_watermark(s)} WHERE {s.in_scope()}", [generation, record, *s.scope])
            return run(c, s.sweep(generation, record))

    def tails(self, target: Target, log: LogId) -> Mapping[int, Tail]:
        s, p = self._sql(target), self.spelling.placeholder
        sql = f"""SELECT {s.spelling.quote("partition")}, last_record, last_order, last_seq FROM {s.meta(meta.CHECKPOINT)}
WHERE {s.in_scope()} AND cluster_id = {p} AND topic = {p} AND topic_id = {p} AND last_record IS NOT NULL"""
        rows = self.connection().fetch(sql, [*s.scope, log.cluster_id, log.topic, log.topic_id])
        return {row[0]: Tail(*row[1:]) for row in rows}

    def highest_snapshot(self) -> int | None:
        place = self.spelling.quote(self._meta_schema, meta.CHECKPOINT.name)
        sql = f"SELECT MAX(high_snapshot) FROM {place} WHERE pipeline = {self.spelling.placeholder}"
        highest: int | None = self.connection().fetch(sql, [self._pipeline])[0][0]
        return highest

    def holds_before(self, target: Target, generation: int, position: int) -> bool:
        s, p, q = self._sql(target), self.spelling.placeholder, self.spelling.quote

        def early(gen: str, record: str, commit: str = "") -> tuple[str, list[object]]:
            before = f"{gen} = {p} AND {record} > 0 AND {record} < {p}"
            if not commit:
                return before, [generation, position]
            return f"{before} AND ({commit} IS NULL OR {commit} < {p})", [generation, position, position]

        row, row_params = early(
            q("_cdc_gen"), q("_cdc_record"), q("_cdc_commit") if "_cdc_commit" in {name for name, *_ in s.metadata} else ""
        )
        deleted, deleted_params = early("gen", "record", q("commit"))
        truncated, truncated_params = early("truncate_gen", "truncate_commit")
        found = [
            (f"SELECT 1 FROM {s.meta(meta.DELETED_KEYS)} WHERE {s.in_scope()} AND {deleted}", [*s.scope, *deleted_params]),
            (f"SELECT 1 FROM {s.meta(meta.CHECKPOINT)} WHERE {s.in_scope()} AND {truncated}", [*s.scope, *truncated_params]),
            (f"SELECT 1 FROM {s.place} WHERE {row}", row_params),
        ]
        return any(self.connection().fetch(f"{sql} LIMIT 1", params) for sql, params in found)

    # Helpers

    def _sql(self, target: Target, table: TableSchema | None = None) -> TargetSql:
        empty = TableSchema(target.source, (), ())
        scope = (self._pipeline, str(target.source), str(target))
        return MODES[target.mode](self.spelling, self._meta_schema, scope, target, table or empty)

    def _meta_type(self, type_: LogicalType) -> str:
        return self.spelling.blob if type_.kind is Kind.BYTES else self.spelling.column_type(type_)

    def _enrol(self, s: TargetSql) -> None:
        """Gives the target its row in WRITER, of which everything that two writers must not do at the same time begins with a lock or an
        update. The row is made before that, in a transaction of its own: an insert that a unique index refuses ends the transaction that
        it is in, and where nothing is unique two rows do no harm, because they are counted up together."""
        if s.scope in self._enrolled:
            return
        c = self.connection()
        try:
            run(c, s.insert_once(meta.WRITER, [0]))
        except (Fenced, Mismatch):
            if not c.fetch(f"SELECT epoch FROM {s.meta(meta.WRITER)} WHERE {s.in_scope()}", s.scope):
                raise
            # Another process was first.
        self._enrolled.add(s.scope)

    def _struck(self, s: TargetSql) -> Fenced:
        self._enrolled.discard(s.scope)
        return Fenced(f"{s.target}: somebody removed its row from {s.meta(meta.WRITER)}", hint="nothing to do: it is made again")

    @contextmanager
    def _locked(self, s: TargetSql) -> Iterator[Connection]:
        """A transaction in which no other writer changes the target: two that see each other's half would leave a row that one of them
        removed, or lose a column that one of them added."""
        self._enrol(s)
        with self._transaction() as c:
            lock = f"SELECT epoch FROM {s.meta(meta.WRITER)} WHERE {s.in_scope()}{self.spelling.row_lock}"
            if self.spelling.row_lock and not c.fetch(lock, s.scope):
                raise self._struck(s)
            yield c

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        c = self.connection()
        try:
            c.begin()
            yield c
            c.commit()
        except BaseException:
            c.rollback()
            raise


def _describe(change: Change) -> str:
    match change:
        case CreateTable():
            return "create table"
        case AddColumn(column):
            return f"add column {column.name} {column.type}"
        case WidenType(column, before):
            return f"widen column {column.name} from {before} to {column.type}"
        case DropColumn(column):
            return f"drop column {column.name} (kept, NULL from now on)"
        case RestoreColumn(column):
            return f"column {column.name} is there again"
        case RenameColumn(before, column):
            return f"rename column {before} to {column.name}"
