"""What is kept about targets beside their rows: ports.destination.State over SQL, in the meta tables of the same database."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

import pyarrow as pa

from cdc_service.core.types import Checkpoint, LoadRange, LogId, Tail, Target
from cdc_service.ports.destination import Quarantined, TableState, Totals
from mergers.sql import comparisons, loads, meta, quarantine, table_states
from mergers.sql.connection import Connection
from mergers.sql.session import SqlSession
from mergers.sql.statements import TargetSql


class SqlState(SqlSession):
    # How far the log is applied, and by whom

    def checkpoints(self, target: Target) -> Sequence[Checkpoint]:
        s = self._sql(target)
        rows = self.connection().fetch(f"{self._select_checkpoints(s)} WHERE {s.in_scope()} ORDER BY 4", s.scope)
        return [Checkpoint(LogId(*row[:3]), *row[3:]) for row in rows]

    def _select_checkpoints(self, s: TargetSql) -> str:
        names = ("cluster_id", "topic", "topic_id", s.spelling.quote("partition"), "next_offset", "epoch", "mark")
        return f"SELECT {', '.join(names)} FROM {s.meta(meta.CHECKPOINT)}"

    def claim(self, target: Target, log: LogId, starts: Mapping[int, int], generation: int | None = None) -> Sequence[Checkpoint]:
        if not starts:
            return []
        s = self._sql(target)
        self._enrol(s)
        with self._transaction() as c:
            taken = self._claim(c, s, log, starts)
            table_states.expect(c, s, generation)
            return taken

    def _claim(self, c: Connection, s: TargetSql, log: LogId, starts: Mapping[int, int]) -> Sequence[Checkpoint]:
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
        return [Checkpoint(log, *row[3:]) for row in taken]

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

    # The ranges of a load

    def plan_load(self, target: Target, generation: int, ranges: Sequence[LoadRange]) -> None:
        s = self._sql(target)
        with self._locked(s) as c:
            table_states.expect(c, s, generation)
            loads.plan(c, s, ranges)

    def load_ranges(self, target: Target, generation: int) -> Sequence[LoadRange]:
        return loads.ranges(self.connection(), self._sql(target), generation)

    # The state of a table

    def load_state(self, target: Target) -> TableState:
        return table_states.load(self.connection(), self._sql(target))

    def states(self) -> Mapping[tuple[str, str], TableState]:
        return table_states.of_pipeline(self.connection(), self.spelling, self._meta_schema, self._pipeline)

    def save_state(self, target: Target, state: TableState) -> TableState:
        s = self._sql(target)
        # Two processes may both find no state: the first one is made under the writer's lock.
        with self._transaction() if state.version else self._locked(s) as c:
            return table_states.store(c, s, state)

    def save_progress(self, moved: Mapping[Target, TableState]) -> Mapping[Target, TableState]:
        left = dict(moved)
        while left:
            c = self.connection()
            try:
                c.stage(table_states.MOVED, *table_states.staged(left, self.spelling))
                with self._transaction():
                    table_states.advance(c, self.spelling, self._meta_schema, self._pipeline, len(left))
                return {target: replace(state, version=state.version + 1) for target, state in left.items()}
            except table_states.Overtaken:
                kept = self.states()
                left = {t: s for t, s in left.items() if (now := kept.get((str(t.source), str(t)))) and now.version == s.version}
            finally:
                c.unstage(table_states.MOVED)
        return {}

    # What became of records

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

    # Comparisons with the source

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
