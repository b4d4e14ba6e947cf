"""What is kept of the direct loading of a table: its ranges, and which of them are there, in LOAD_RANGE.

Promises: a range is marked in the transaction that writes its rows, and only by whoever loads the generation that the ranges are of.
"""

from __future__ import annotations

from collections.abc import Sequence

from cdc_service.core.errors import Fenced
from cdc_service.core.types import LoadedPart, LoadRange
from mergers.sql import meta
from mergers.sql.connection import Connection
from mergers.sql.statements import TargetSql

ROWS_AT_ONCE = 200


def plan(c: Connection, s: TargetSql, ranges: Sequence[LoadRange]) -> None:
    """In the place of what was planned before. Inside of a transaction."""
    c.execute(f"DELETE FROM {s.meta(meta.LOAD_RANGE)} WHERE {s.in_scope()}", s.scope)
    for first in range(0, len(ranges), ROWS_AT_ONCE):
        some = ranges[first : first + ROWS_AT_ONCE]
        values = [v for r in some for v in (*s.scope, r.generation, r.number, r.low, r.high, r.storage, None, None, False, None)]
        c.execute(s.insert(meta.LOAD_RANGE, len(some)), values)


def ranges(c: Connection, s: TargetSql, generation: int) -> Sequence[LoadRange]:
    """In their order."""
    q = s.spelling.quote
    names = ", ".join(map(q, ("generation", "number", "low", "high", "storage", "rows", "position", "done")))
    sql = f"SELECT {names} FROM {s.meta(meta.LOAD_RANGE)} WHERE {s.in_scope()} AND generation = {s.spelling.placeholder} ORDER BY 2"
    return [LoadRange(*row) for row in c.fetch(sql, [*s.scope, generation])]


def mark(c: Connection, s: TargetSql, part: LoadedPart) -> None:
    """Raises Fenced where the range is done already, or of another generation. Inside of a transaction."""
    p, q = s.spelling.placeholder, s.spelling.quote
    sql = f"""UPDATE {s.meta(meta.LOAD_RANGE)}
SET {q("rows")} = {p}, {q("position")} = {p}, done = {p}, loaded_at = now()
WHERE {s.in_scope()} AND generation = {p} AND {q("number")} = {p} AND NOT done"""
    values = [part.rows, part.position, part.done, *s.scope, part.generation, part.number]
    if c.execute(sql, values) != 1:
        raise Fenced(f"{s.target}: another process loads the table, or it is read anew", hint="nothing to do")
