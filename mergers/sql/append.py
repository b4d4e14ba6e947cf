"""A target that is a log of changes (Mode.APPEND): how changes become rows, each once, and what the end of a snapshot removes.

Which changes are the same is said in core.append; here the same is said in SQL. The conditions on positions are constants, so that a
warehouse that keeps ranges of values for its blocks, or an index, looks only where such positions can stand.
"""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow.compute as pc

from cdc_service.core.order import INCREMENTAL
from cdc_service.core.types import Delta, Op
from mergers.sql.connection import Connection, Discard, run
from mergers.sql.ledger import LedgerOpen
from mergers.sql.spelling import Statement
from mergers.sql.statements import STAGE, MergeSql


def apply(c: Connection, s: MergeSql, delta: Delta, watermark: tuple[int, int] | None, discard: Discard) -> dict[int, int]:
    """Writes the staged changes that the target does not hold; how many of them each partition has."""
    if (pc.max(delta.meta["gen"]).as_py() or 0) > 0:
        run(c, lift(s, delta))
    for there in known(s, delta, watermark):
        discard(there)
    new: dict[int, int] = dict(c.fetch(f"SELECT s.part, COUNT(*) FROM {s.temporary(STAGE)} AS s GROUP BY 1"))
    total = sum(new.values())
    written = run(c, s.insert_new(STAGE)) if total else 0
    if written != total:
        raise LedgerOpen(f"{delta.target}: {total} changes were to be written, {written} were")
    return new


def known(s: MergeSql, delta: Delta, watermark: tuple[int, int] | None) -> Iterator[Statement]:
    """The staged changes that the target holds already: queries of their ``n``."""
    p = s.spelling.placeholder
    if watermark is not None:
        below = f"s.gen < {p} OR (s.gen = {p} AND s.rec < {p})"
        yield s.staged(f"WHERE s.rec < 0 AND ({below})", [watermark[0], watermark[0], watermark[1]])
    same, range_ = _same(s, delta)
    key = f" AND {s.same_key()} AND s.op <> {int(Op.TRUNCATE)}" if s.table.key else ""
    yield s.staged(f"JOIN {s.place} AS t ON {same}{key}", range_)
    if s.table.key and pc.any(pc.equal(delta.meta["op"], int(Op.TRUNCATE))).as_py():
        yield s.staged(f"JOIN {s.place} AS t ON {same} AND s.op = {int(Op.TRUNCATE)}", range_)


def lift(s: MergeSql, delta: Delta) -> Statement:
    """Gives the changes that the target holds already the generation in which they came again."""
    same, range_ = _same(s, delta)
    gen = s.spelling.quote("_cdc_gen")
    key = f" AND (s.op = {int(Op.TRUNCATE)} OR {s.same_key()})" if s.table.key else ""
    return Statement(
        f"UPDATE {s.place} AS t SET {gen} = s.gen FROM {s.temporary(STAGE)} AS s WHERE {same}{key} AND t.{gen} < s.gen", range_
    )


def _same(s: MergeSql, delta: Delta) -> tuple[str, list[object]]:
    """The condition that a staged change and a row are one change, but for the key."""
    p, q = s.spelling.placeholder, s.spelling.quote
    ends = pc.min_max(delta.meta["record"])
    minor = f" AND t.{q('_cdc_minor')} = s.minor" if s.target.ordering.minor else ""
    same = f"""t.{q("_cdc_record")} >= {p} AND t.{q("_cdc_record")} <= {p} AND t.{q("_cdc_record")} = s.rec{minor}
  AND t.{q("_cdc_op")} = s.letter AND t.{q("_cdc_seq")} = s.seq AND t.{q("_cdc_source_ts")} IS NOT DISTINCT FROM s.src
  AND s.rec <> {INCREMENTAL} AND (s.rec > 0 OR t.{q("_cdc_gen")} = s.gen)"""
    return same, [ends["min"].as_py(), ends["max"].as_py()]


def remove_readings(s: MergeSql, generation: int, record: int) -> Statement:
    """Removes the rows of an initial snapshot of the generation that only an earlier attempt saw."""
    p, q = s.spelling.placeholder, s.spelling.quote
    sql = f"DELETE FROM {s.place} AS t WHERE t.{q('_cdc_gen')} = {p} AND t.{q('_cdc_record')} < {p} AND t.{q('_cdc_record')} < 0"
    return Statement(sql, [generation, record])
