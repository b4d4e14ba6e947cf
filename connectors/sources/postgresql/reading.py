# ruff: noqa: S608  (names enter statements through quoted() and types through format_type; values are parameters)
"""What PostgreSQL holds now against what the connector sent: rows read again, and rows of its snapshots that it changed on the way.

Snapshots carry dates through java.sql.Date, which knows no years before Christ and takes 1582-10-05..14 for ten days later; the stream is
exact. So a date of a snapshot is what the source holds, or one of those.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from sqlalchemy import Connection, text

from cdc_service.core.order import Seen
from cdc_service.core.types import TableId
from cdc_service.ports.source import Reread
from connectors.sources.postgresql.catalog import MISSHAPEN, OLD, event_text, key_parameter, written

Types = Mapping[str, Mapping[Any, Any]]
"""Rows of the catalog's COLUMN_TYPES by column."""

ROWS_AT_ONCE = 100_000
"""As many as one batch has: where the table is scanned for them, once."""


def form(type_: Mapping[Any, Any] | None, value: str) -> str:
    """The text of a column's values; of one that has no form of an event only whether there is a value; NULL without the column."""
    if type_ is None:
        return "CAST(NULL AS text)"
    found = event_text(type_["base"], type_["category"], value, type_["type_schema"])
    return found if found is not None else f"CASE WHEN {value} IS NOT NULL THEN '' END"


def told(types: Types, rows: pa.Table, found: pa.BooleanArray, position: int) -> Reread:
    """``rows`` as ``form`` gave them, without what is no text of an event."""
    where, misshapen = {}, set()
    for place, name in enumerate(rows.column_names):
        type_ = types.get(name)
        if type_ is None:
            continue
        has_form = event_text(type_["base"], type_["category"], "v", type_["type_schema"]) is not None
        if has_form and type_["category"] != "A":
            continue
        values = rows.column(name).combine_chunks()
        lost = pc.starts_with(values, MISSHAPEN).fill_null(False) if has_form else values.is_valid()
        if pc.any(lost).as_py():
            where[name] = lost
            misshapen |= {name} if has_form else set()
            rows = rows.set_column(place, name, pc.if_else(lost, pa.scalar(None, pa.string()), values))
    return Reread(rows, found, position, tuple(where), where, frozenset(misshapen))


def misread(connection: Connection, table: TableId, types: Types, key: Sequence[str], rows: pa.Table) -> pa.Int8Array:
    """Source.misread, of rows that have dates. What the table has lost meanwhile is SAME: the change of its schema is on its way."""
    seen = np.zeros(rows.num_rows, np.int8)
    dates = [f.name for f in rows.schema if pa.types.is_date(f.type) and f.name in types and types[f.name]["base"] == "date"]
    if not set(key) <= set(types):
        return pa.array(seen)
    dated = np.logical_or.reduce([np.zeros(rows.num_rows, np.bool_), *(np.array(rows.column(name).is_valid()) for name in dates)])
    places = np.flatnonzero(dated)
    for first in range(0, len(places), ROWS_AT_ONCE):
        here = places[first : first + ROWS_AT_ONCE]
        asked = rows.select([*key, *(d for d in dates if d not in key)]).take(pa.array(here))
        for place, verdict in _compared(connection, table, types, key, asked):
            seen[here[place]] = verdict
        for twins, of in _twins(asked, [name for name in key if name in dates]):
            # Rows under the keys that a snapshot turns into these, whatever else they hold.
            there = _compared(connection, table, types, key, twins.select(list(key)), f"t.{written(key[0])} IS NOT NULL")
            for place, _ in there:
                seen[here[of[place]]] = Seen.KEY
    return pa.array(seen)


def _compared(
    connection: Connection, table: TableId, types: Types, key: Sequence[str], rows: pa.Table, where: str = ""
) -> Iterator[tuple[int, int]]:
    """Place and verdict of each row that is not at the source as it is in ``rows``, or (``where``) for which that is so."""
    names = rows.column_names
    parameters = {f"k{i}": key_parameter(rows.column(i)) for i in range(len(names))}
    arrays = ", ".join(f"CAST(:k{i} AS text[])" for i in range(len(names)))
    came = {name: f"CAST(k.k{i} AS {types[name]['type']})" for i, name in enumerate(names)}
    others = [name for name in names if name not in key]
    same = " AND ".join([f"t.{written(key[0])} IS NOT NULL", *(f"t.{written(n)} IS NOT DISTINCT FROM {came[n]}" for n in others)])
    old = " OR ".join(OLD.format(f"t.{written(name)}") for name in others) or "false"
    statement = (
        f"SELECT k.place - 1, CASE WHEN {old} THEN {int(Seen.CHANGED)} ELSE {int(Seen.OTHER)} END"
        f" FROM unnest({arrays}) WITH ORDINALITY AS k({', '.join(f'k{i}' for i in range(len(names)))}, place)"
        f" LEFT JOIN {written(table.schema, table.name)} AS t ON {' AND '.join(f't.{written(n)} = {came[n]}' for n in key)}"
        f" WHERE {where or f'NOT ({same})'}"
    )
    for place, verdict in connection.execute(text(statement), parameters):
        yield int(place), int(verdict)


def _twins(rows: pa.Table, dates: Sequence[str]) -> Iterator[tuple[pa.Table, npt.NDArray[np.int64]]]:
    """The rows under each other key that a snapshot turns into theirs, and their places in ``rows``."""
    for ways in product((_itself, _before_christ, _ten_days_before), repeat=len(dates)):
        if all(way is _itself for way in ways):
            continue
        moved, there = rows, np.ones(rows.num_rows, np.bool_)
        for name, way in zip(dates, ways, strict=True):
            days, can = way(np.array(rows.column(name).combine_chunks().view(pa.int32())))
            there &= can
            at = moved.column_names.index(name)
            moved = moved.set_column(at, name, pa.array(days.astype(np.int32)).view(pa.date32()))
        if there.any():
            yield moved.filter(pa.array(there)), np.flatnonzero(there)


Days = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


def _itself(days: Days) -> tuple[Days, Bools]:
    return days, np.ones(len(days), np.bool_)


def _before_christ(days: Days) -> tuple[Days, Bools]:
    """The same day of the year with this number before Christ, where there may be one (year y is 1 - y there)."""
    can = (days >= -719_162) & (days < 1_002_590)  # 0001-01-01 to 4714-12-31
    dates = np.where(can, days, 0).astype("datetime64[D]")
    months = dates.astype("datetime64[M]")
    years = dates.astype("datetime64[Y]").astype(np.int64) + 1970
    moved = (months.astype(np.int64) + 12 * (1 - 2 * years)).astype("datetime64[M]")
    twins = moved.astype("datetime64[D]") + (dates - months.astype("datetime64[D]"))
    can &= (twins.astype("datetime64[M]") == moved) & (twins.astype(np.int64) >= -2_440_588)
    return twins.astype(np.int64), can


def _ten_days_before(days: Days) -> tuple[Days, Bools]:
    return days - 10, (days >= -141_427) & (days < -141_417)  # 1582-10-15 to 24
