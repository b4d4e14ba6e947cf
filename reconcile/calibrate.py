"""Looks at a few rows of both sides before all are read, so that a column is compared in a way that suits its values.

Where values that are equal by type stand as different texts, comparing texts would nominate every row: such a column is brought into a
normal form first (``by_value``), or, where only the databases' canonical texts differ, is not summed up (``textless``). A column in which
nearly every row differs was mapped wrongly, whatever a single row looks like (``mapped``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from cdc_service.core.side import Scan, Side
from cdc_service.core.types import Column
from reconcile.compare import distinct, distinct_texts, sides, typed_table
from reconcile.protocol import View

SAMPLED = 500
SAMPLED_FROM = 50_000
"""Rows of a table from which on the sample comes from all over it."""
MAPPED_MIN = 20
MAPPED_SHARE = 0.9


@dataclass(frozen=True, slots=True)
class Calibration:
    """Columns by name, each with the reason in words."""

    by_value: Mapping[str, str] = field(default_factory=dict)
    textless: Mapping[str, str] = field(default_factory=dict)
    mapped: Mapping[str, str] = field(default_factory=dict)


def calibrate(
    scan: Scan, view: View, key: Sequence[Column], columns: Sequence[Column], where: str | None, rows_expected: int
) -> Calibration:
    """What rows that both sides have tell of ``columns``, all of which both sides can read."""
    if not (keys := _sample(scan, key, where, rows_expected)).num_rows:
        return Calibration()
    whole = list({c.name: c for c in (*key, *columns)}.values())
    texts = {c.name: c for c in whole if c.name in scan.texts(whole) and c.name in view.texts(whole)}
    here, there = (_rows(side, key, whole, list(texts), keys) for side in (scan, view))
    by_value, textless, mapped = {}, {}, {}
    for column, found in _counted(key, columns, texts, here, there).items():
        rows, real, represented, textual = found
        of = f"of {rows:,} rows that were looked at"
        if represented:
            by_value[column] = f"its values are equal and their texts are not in {represented:,} {of}"
        if textual:
            textless[column] = f"its values are equal and the databases write them otherwise in {textual:,} {of}"
        if rows >= MAPPED_MIN and real >= MAPPED_SHARE * rows:
            mapped[column] = f"it differs in {real:,} {of}"
    return Calibration(by_value, textless, mapped)


def _sample(scan: Scan, key: Sequence[Column], where: str | None, rows_expected: int) -> pa.Table:
    """Some keys of the source, from all over a large table, where a sample of its pages meets rows."""
    shares = [200.0 * SAMPLED / rows_expected] if rows_expected >= SAMPLED_FROM else []
    for share in (*shares, None):
        batches = list(scan.rows(key, where, share, SAMPLED))
        if sum(b.num_rows for b in batches):
            return typed_table(key, pa.Table.from_batches(batches))
    return pa.table({})


def _rows(side: Side, key: Sequence[Column], whole: Sequence[Column], texts: Sequence[str], keys: pa.Table) -> pa.Table:
    """The rows with these keys; the canonical text of a column is called ``text NAME``."""
    made = side.texts(whole)
    batches = list(side.select({**side.forms(whole), **{f"text {n}": made[n] for n in texts}}, side.matching(key, keys)))
    names = [*(c.name for c in whole), *(f"text {n}" for n in texts)]
    return pa.Table.from_batches(batches) if batches else pa.table({n: pa.array([], pa.string()) for n in names})


def _counted(
    key: Sequence[Column], columns: Sequence[Column], texts: Mapping[str, Column], here: pa.Table, there: pa.Table
) -> dict[str, tuple[int, int, int, int]]:
    """By column in how many rows: both sides have them, the values differ, only what is hashed differs, only the canonical texts do."""
    counts = []
    for i, column in enumerate(columns):
        real, text = f"COALESCE({distinct(column, i)}, false)", f'"text {column.name.replace(chr(34), chr(34) * 2)}"'
        canonical = f"s.{text} IS DISTINCT FROM d.{text}" if column.name in texts else "false"
        counts += [f"count(*) FILTER ({real})"]
        counts += [f"count(*) FILTER (NOT ({real}) AND ({other}))" for other in (distinct_texts(column, i), canonical)]
    more = [f"text {n}" for n in texts]
    with sides(key, columns, here, there, more, more) as db:
        using = ", ".join(f"k{i}" for i in range(len(key)))
        (row,) = db.execute(f"SELECT count(*){''.join(', ' + c for c in counts)} FROM s JOIN d USING ({using})").fetchall()
    return {c.name: (row[0], *row[1 + 3 * i : 4 + 3 * i]) for i, c in enumerate(columns)}
