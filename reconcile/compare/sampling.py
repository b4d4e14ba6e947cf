"""Looks at a few rows of both sides before all are read, so that a column is compared in a way that suits its values.

Where values that are equal by type stand as different texts, comparing texts would nominate every row: such a column is brought into a
normal form first (``by_value``), or, where only the databases' canonical texts differ, is not summed up (``textless``). A column in which
nearly every row differs was mapped wrongly, whatever a single row looks like (``mapped``).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cdc_service.core.types import Column
from cdc_service.ports.reader import Reader, Scan, View
from reconcile.compare.engine import pairs_of, typed_table, unequal

SAMPLED = 500
SAMPLED_FROM = 50_000
"""Rows of a table from which on the sample comes from all over it."""
COLUMNS_AT_ONCE = 400
"""Some databases' SELECT has 1,664 columns at most, and each is asked for twice."""
MAPPED_MIN = 20
MAPPED_SHARE = 0.9


@dataclass(frozen=True, slots=True)
class Sampled:
    """Columns by name, each with the reason in words."""

    by_value: Mapping[str, str] = field(default_factory=dict)
    textless: Mapping[str, str] = field(default_factory=dict)
    mapped: Mapping[str, str] = field(default_factory=dict)


def sample(scan: Scan, view: View, key: Sequence[Column], columns: Sequence[Column], where: str | None, rows_expected: int) -> Sampled:
    """What rows that both sides have tell of ``columns``, all of which both sides can read."""
    if not (keys := _sample(scan, key, where, rows_expected)).num_rows:
        return Sampled()
    whole = list({c.name: c for c in (*key, *columns)}.values())
    texts = set(scan.texts(whole)) & set(view.texts(whole))
    by_value, textless, mapped = {}, {}, {}
    for column, found in _counted(scan, view, key, columns, texts, keys):
        rows, real, represented, textual = found
        of = f"of {rows:,} rows that were looked at"
        if represented:
            by_value[column] = f"its values are equal and their texts are not in {represented:,} {of}"
        if textual:
            textless[column] = f"its values are equal and the databases write them otherwise in {textual:,} {of}"
        if rows >= MAPPED_MIN and real >= MAPPED_SHARE * rows:
            mapped[column] = f"it differs in {real:,} {of}"
    return Sampled(by_value, textless, mapped)


def _sample(scan: Scan, key: Sequence[Column], where: str | None, rows_expected: int) -> pa.Table:
    """Some keys of the source, from all over a large table, where a sample of its pages meets rows."""
    shares = [200.0 * SAMPLED / rows_expected] if rows_expected >= SAMPLED_FROM else []
    for share in (*shares, None):
        batches = list(scan.rows(key, where, share, SAMPLED))
        if sum(b.num_rows for b in batches):
            return typed_table(key, pa.Table.from_batches(batches))
    return pa.table({})


def _counted(
    scan: Scan, view: View, key: Sequence[Column], columns: Sequence[Column], texts: Collection[str], keys: pa.Table
) -> Iterator[tuple[str, tuple[int, int, int, int]]]:
    """By column in how many rows: both sides have them, the values differ, only what is hashed differs, only the canonical texts do."""
    for first in range(0, len(columns), COLUMNS_AT_ONCE):
        some = columns[first : first + COLUMNS_AT_ONCE]
        sides = [_rows(side, key, some, [c.name for c in some if c.name in texts], keys) for side in (scan, view)]
        pairs = pairs_of(key, *sides)
        both = pairs.taken(pc.indices_nonzero(pc.and_(pairs.s.is_valid(), pairs.d.is_valid())))
        here, there = sides[0].take(both.s), sides[1].take(both.d)
        real, text = unequal(some, here, there)
        for c in some:
            same = ~real[c.name]
            textual = same & _texts_differ(here, there, f"text {c.name}") if c.name in texts else np.zeros_like(same)
            yield c.name, (len(same), int(real[c.name].sum()), int((same & text[c.name]).sum()), int(textual.sum()))


def _rows(side: Reader, key: Sequence[Column], columns: Sequence[Column], texts: Sequence[str], keys: pa.Table) -> pa.Table:
    """The rows with these keys; the canonical text of a column is called ``text NAME``."""
    whole = list({c.name: c for c in (*key, *columns)}.values())
    made = side.texts(whole)
    batches = list(side.select({**side.forms(whole), **{f"text {n}": made[n] for n in texts}}, side.matching(key, keys)))
    names = [*(c.name for c in whole), *(f"text {n}" for n in texts)]
    return pa.Table.from_batches(batches) if batches else pa.table({n: pa.array([], pa.string()) for n in names})


def _texts_differ(here: pa.Table, there: pa.Table, name: str) -> npt.NDArray[np.bool_]:
    """No canonical text is NULL."""
    found: npt.NDArray[np.bool_] = pc.not_equal(here[name], there[name]).to_numpy()
    return found
