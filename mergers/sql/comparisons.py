"""What is kept of comparisons with the source: each run, its differences and its buckets, in the meta tables of the destination."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from mergers.sql import meta
from mergers.sql.connection import Connection
from mergers.sql.statements import TargetSql

ROWS_AT_ONCE = 200

Row = Mapping[str, object]
"""By the columns of its meta table; those that are not named are NULL."""


def keep(c: Connection, s: TargetSql, run: Row, differences: Sequence[Row], buckets: Sequence[Row]) -> None:
    """Inside of a transaction."""
    for table, rows in (
        (meta.RECONCILE_RUN, [run]),
        (meta.RECONCILE_DIFFERENCE, differences),
        (meta.RECONCILE_BUCKET, buckets),
    ):
        names = [name for name, _ in table.columns]
        for first in range(0, len(rows), ROWS_AT_ONCE):
            some = rows[first : first + ROWS_AT_ONCE]
            c.execute(s.insert(table, len(some)), [v for row in some for v in (*s.scope, *(row.get(n) for n in names))])


def runs(c: Connection, s: TargetSql, most: int) -> Sequence[Mapping[str, Any]]:
    """The last ones first."""
    return _rows(c, s, meta.RECONCILE_RUN, "", f" ORDER BY {s.spelling.quote('at')} DESC LIMIT {most:d}")


def differences(c: Connection, s: TargetSql, run_id: str) -> Sequence[Mapping[str, Any]]:
    return _rows(c, s, meta.RECONCILE_DIFFERENCE, f" AND run_id = {s.spelling.placeholder}", "", run_id)


def mark_repaired(c: Connection, s: TargetSql, run_id: str, keys: Sequence[str], at: datetime) -> None:
    """Inside of a transaction."""
    p, q = s.spelling.placeholder, s.spelling.quote
    for first in range(0, len(keys), ROWS_AT_ONCE):
        some = keys[first : first + ROWS_AT_ONCE]
        sql = f"""UPDATE {s.meta(meta.RECONCILE_DIFFERENCE)} SET repaired_at = {p}
WHERE {s.in_scope()} AND run_id = {p} AND {q("key")} IN ({", ".join([p] * len(some))})"""
        c.execute(sql, [at, *s.scope, run_id, *some])


def _rows(c: Connection, s: TargetSql, table: meta.MetaTable, also: str, tail: str, *params: object) -> Sequence[Mapping[str, Any]]:
    names = [name for name, _ in table.columns]
    sql = f"SELECT {', '.join(map(s.spelling.quote, names))} FROM {s.meta(table)} WHERE {s.in_scope()}{also}{tail}"
    return [dict(zip(names, row, strict=True)) for row in c.fetch(sql, [*s.scope, *params])]
