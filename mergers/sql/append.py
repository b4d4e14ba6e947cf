"""A target that is a log of changes (Mode.APPEND): how changes become rows, each once, and what the end of a snapshot removes.

Which changes are the same is said in core.append; here the same is said in SQL. The conditions on positions are constants, so that a
warehouse that keeps ranges of values for its blocks, or an index, looks only where such positions can stand.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pyarrow as pa
import pyarrow.compute as pc

from cdc_service.core.logical import Kind, LogicalType
from cdc_service.core.order import INCREMENTAL
from cdc_service.core.types import Delta, Op
from mergers.sql.connection import Connection, Discard, run
from mergers.sql.ledger import LedgerOpen
from mergers.sql.spelling import Statement
from mergers.sql.staging import METADATA, MINOR, STAGE, Metadata, stage_table
from mergers.sql.statements import TargetSql

_TEXT, _LONG = LogicalType(Kind.STRING), LogicalType(Kind.INT64)

CHANGE: tuple[Metadata, ...] = (
    ("_cdc_op", _TEXT, "s.letter", False),
    ("_cdc_seq", _LONG, "s.seq", False),
    ("_cdc_before", _TEXT, "s.before", False),
    ("_cdc_unsent", _TEXT, "s.missing", False),
)
LETTERS = "rcudt"
"""Debezium's, in the order of Op."""


class Append(TargetSql):
    __slots__ = ()

    by_key = False

    @property
    def metadata(self) -> tuple[Metadata, ...]:
        """All, whatever ``metadata`` says."""
        return (*METADATA, *((MINOR,) if self.target.ordering.minor else ()), *CHANGE)

    def stage(self, delta: Delta) -> tuple[pa.Table, list[LogicalType]]:
        """No value is looked up, so a column that the delta does not know is NULL."""
        meta = delta.meta
        letters = pa.array(list(LETTERS)).take(meta["op"])
        texts = [("letter", letters), ("before", meta["before"]), ("missing", meta["missing"])]
        more = [*((name, _TEXT, values) for name, values in texts), ("seq", _LONG, meta["seq"])]
        return stage_table(delta, self.table, more, defaults=False)

    def sweep(self, generation: int, record: int) -> Statement:
        """Only the rows of an initial snapshot of the generation that an earlier attempt saw and the last one did not."""
        p, q = self.spelling.placeholder, self.spelling.quote
        sql = f"DELETE FROM {self.place} AS t WHERE t.{q('_cdc_gen')} = {p} AND t.{q('_cdc_record')} < {p} AND t.{q('_cdc_record')} < 0"
        return Statement(sql, [generation, record])

    def retire(self, c: Connection, generation: int) -> None:
        """A log of changes is what nothing can make anew: it goes on under another name."""
        ends = (f"_until_{generation}{more}" for more in ("", *(f"_{n}" for n in range(2, 100))))
        # As long a name as PostgreSQL takes; it would cut a longer one, and meet another.
        names = (self.target.name.encode()[: 63 - len(end)].decode(errors="ignore") + end for end in ends)
        name = next(n for n in names if c.columns(self.target.namespace, n) is None)
        path = (name,) if self.spelling.namespaces else (self.target.namespace, name)
        c.execute(f"ALTER TABLE {self.place} RENAME TO {self.spelling.quote(*path)}")

    # The merge

    def apply(self, c: Connection, delta: Delta, watermark: tuple[int, int] | None, discard: Discard) -> Mapping[int, int]:
        """Writes the staged changes that the target does not hold."""
        if (pc.max(delta.meta["gen"]).as_py() or 0) > 0:
            run(c, self.lift(delta))
        for there in self.known(delta, watermark):
            discard(there)
        new: dict[int, int] = dict(c.fetch(f"SELECT s.part, COUNT(*) FROM {self.temporary(STAGE)} AS s GROUP BY 1"))
        total = sum(new.values())
        written = c.execute(self.insert_rows(STAGE)) if total else 0
        if written != total:
            raise LedgerOpen(f"{delta.target}: {total} changes were to be written, {written} were")
        return new

    def known(self, delta: Delta, watermark: tuple[int, int] | None) -> Iterator[Statement]:
        """The staged changes that the target holds already: queries of their ``n``."""
        p = self.spelling.placeholder
        if watermark is not None:
            below = f"s.gen < {p} OR (s.gen = {p} AND s.rec < {p})"
            yield self.staged(f"WHERE s.rec < 0 AND ({below})", [watermark[0], watermark[0], watermark[1]])
        same, range_ = self._same(delta)
        key = f" AND {self.same_key()} AND s.op <> {int(Op.TRUNCATE)}" if self.table.key else ""
        yield self.staged(f"JOIN {self.place} AS t ON {same}{key}", range_)
        if self.table.key and pc.any(pc.equal(delta.meta["op"], int(Op.TRUNCATE))).as_py():
            yield self.staged(f"JOIN {self.place} AS t ON {same} AND s.op = {int(Op.TRUNCATE)}", range_)

    def lift(self, delta: Delta) -> Statement:
        """Gives the changes that the target holds already the generation in which they came again."""
        same, range_ = self._same(delta)
        gen = self.spelling.quote("_cdc_gen")
        key = f" AND (s.op = {int(Op.TRUNCATE)} OR {self.same_key()})" if self.table.key else ""
        sql = f"UPDATE {self.place} AS t SET {gen} = s.gen FROM {self.temporary(STAGE)} AS s WHERE {same}{key} AND t.{gen} < s.gen"
        return Statement(sql, range_)

    def _same(self, delta: Delta) -> tuple[str, list[object]]:
        """The condition that a staged change and a row are one change, but for the key."""
        p, q = self.spelling.placeholder, self.spelling.quote
        ends = pc.min_max(delta.meta["record"])
        minor = f" AND t.{q('_cdc_minor')} = s.minor" if self.target.ordering.minor else ""
        same = f"""t.{q("_cdc_record")} >= {p} AND t.{q("_cdc_record")} <= {p} AND t.{q("_cdc_record")} = s.rec{minor}
  AND t.{q("_cdc_op")} = s.letter AND t.{q("_cdc_seq")} = s.seq AND t.{q("_cdc_source_ts")} IS NOT DISTINCT FROM s.src
  AND s.rec <> {INCREMENTAL} AND (s.rec > 0 OR t.{q("_cdc_gen")} = s.gen)"""
        return same, [ends["min"].as_py(), ends["max"].as_py()]
