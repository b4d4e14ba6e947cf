"""The rows of targets: ports.destination.Writer over SQL.

Promises: one transaction a merge, its first statement the compare-and-swap of the checkpoint; rows staged are compared with rows affected;
the account of records closes or nothing is applied.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cdc_service.core.errors import Fenced, TableStopped
from cdc_service.core.logical import Kind, LogicalType
from cdc_service.core.types import Decision, Delta, LogId, PartitionCounts, Receipt, TableSchema, Target
from cdc_service.failpoints import failpoint
from mergers.sql import loads, meta, quarantine
from mergers.sql.connection import Connection, Mismatch, run
from mergers.sql.ledger import LedgerOpen, account, highs, parked
from mergers.sql.spelling import Statement
from mergers.sql.staging import FILLED, PARKED, STAGE
from mergers.sql.statements import High, TargetSql
from mergers.sql.tables import SqlTables


class SqlWriter(SqlTables):
    copies = False
    """Whether rows that are only to be added go straight into the target."""

    def merge(self, delta: Delta, epochs: Mapping[int, int], log: LogId, table: TableSchema) -> Receipt:
        s, c = self._sql(delta.target, table), self.connection()
        self._prune()
        self._enrol(s)
        try:
            fresh = delta.loaded is not None and delta.loaded.fresh
            if delta.meta.num_rows and not (fresh and self.copies):
                staged, types = s.stage(delta)
                c.stage(STAGE, staged, [self.spelling.column_type(t) for t in types])
            if delta.rejected:
                rejected, rejected_types = parked(delta, log)
                c.stage(PARKED, rejected, [self._meta_type(t) for t in rejected_types])
            reached, winners = highs(delta), dict[int, int]()
            failpoint("merge.staged")
            with self._locked(s):
                self._swap(c, s, delta, epochs, log, reached)
                if delta.loaded is not None:
                    loads.mark(c, s, delta.loaded)
                if delta.decision is not None:
                    self._decide(c, s, delta.decision)
                failpoint("merge.swapped")
                news = self._truncate(c, s, delta, log)
                failpoint("merge.truncated")
                if fresh and delta.meta.num_rows:
                    self._add(c, s, delta)
                elif delta.meta.num_rows:
                    winners.update(s.apply(c, delta, self._watermark(c, s), self._discard))
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

    def _add(self, c: Connection, s: TargetSql, delta: Delta) -> None:
        """Writes rows beside which nothing of their keys stands in the target: out of the stage, or, where the destination ``copies``,
        without one."""
        written = c.execute(s.insert_rows(STAGE))
        if written != delta.meta.num_rows:
            raise LedgerOpen(f"{delta.target}: {delta.meta.num_rows} rows were to be added, {written} were")

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
        counts = [n for n in counts if n.stop > n.start]  # One that passes no record (it moves a mark) has nothing to account for.
        for n in counts:
            numbers = (n.partition, n.start, n.stop, n.applied, n.folded, n.duplicate, n.parked, n.filtered)
            values += [*s.scope, delta.batch_id, log.topic_id, *numbers]
        if counts:
            c.execute(s.insert(meta.BATCH, len(counts), now="committed_at"), values)

    def _meta_type(self, type_: LogicalType) -> str:
        return self.spelling.blob if type_.kind is Kind.BYTES else self.spelling.column_type(type_)

    # Beside merges

    def sweep(self, target: Target, generation: int, record: int) -> int:
        s = self._sql(target)
        with self._locked(s) as c:
            known = self._watermark(c, s)
            if known is None or known < (generation, record):
                c.execute(f"{self._set_watermark(s)} WHERE {s.in_scope()}", [generation, record, *s.scope])
            return run(c, s.sweep(generation, record))

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
