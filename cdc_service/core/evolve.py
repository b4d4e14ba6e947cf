"""Schema evolution as a pure function: from the table's own schema and an incoming one to the changes that apply by themselves.

What applies: a new table, a new column, a wider type (exact for every old value). What needs nothing: a column that the source dropped
(it stays and becomes NULL in the rows written from then on) or made again (rows that are not written keep what they held), a narrower type
(its values fit), nullability. Everything else stops the table with a sentence that names the change.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from cdc_service.core.errors import TableStopped
from cdc_service.core.logical import DECIMAL_DIGITS_MAX, Kind, LogicalType, decimal
from cdc_service.core.types import Column, TableSchema

_INTEGER_DIGITS = {Kind.INT16: 5, Kind.INT32: 10, Kind.INT64: 19}
_INTEGERS = (Kind.INT16, Kind.INT32, Kind.INT64)


@dataclass(frozen=True, slots=True)
class CreateTable:
    schema: TableSchema


@dataclass(frozen=True, slots=True)
class AddColumn:
    """Rows already there take ``column.default``."""

    column: Column


@dataclass(frozen=True, slots=True)
class WidenType:
    column: Column
    before: LogicalType


@dataclass(frozen=True, slots=True)
class DropColumn:
    """The source dropped it. The target keeps the column; rows written from then on hold NULL in it."""

    column: Column


@dataclass(frozen=True, slots=True)
class RestoreColumn:
    """A dropped column is there again, or a late event is of the time before its drop. Nothing changes in the rows already there."""

    column: Column


@dataclass(frozen=True, slots=True)
class RenameColumn:
    """The source gave it another name: the column of the target that was called ``before`` keeps what it holds. No event tells so."""

    before: str
    column: Column


Change = CreateTable | AddColumn | WidenType | DropColumn | RestoreColumn | RenameColumn


def wider(old: LogicalType, new: LogicalType) -> LogicalType | None:
    """The narrowest type that holds every value of both exactly, or None where the set has none."""
    if old == new:
        return old
    kinds = {old.kind, new.kind}
    if kinds <= set(_INTEGERS):
        return LogicalType(_INTEGERS[max(_INTEGERS.index(k) for k in kinds)])
    if kinds == {Kind.FLOAT32, Kind.FLOAT64}:
        return LogicalType(Kind.FLOAT64)
    if kinds <= {*_INTEGERS, Kind.DECIMAL}:
        scale = max(t.scale or 0 for t in (old, new))
        whole = max(_INTEGER_DIGITS.get(t.kind, (t.precision or 0) - (t.scale or 0)) for t in (old, new))
        # Stored text keeps the digits after the point that the source printed, so a change of scale is exact only between numbers.
        return decimal(whole + scale, scale) if whole + scale <= DECIMAL_DIGITS_MAX else None
    return None


def evolve(known: tuple[TableSchema, ...], incoming: TableSchema) -> tuple[tuple[Change, ...], TableSchema]:
    """Changes that bring the table from ``known[-1]`` (its own schema; empty: no table yet) to hold ``incoming``; its schema after them.

    A version that is known already needs nothing, unless it has a column that was dropped since: late events and a column that was made
    again look the same, so the column is live for the changes of this version and dropped again with the next change that lacks it.
    Raises TableStopped (schema_stopped) for a change that cannot be made exactly.
    """
    if not known:
        return (CreateTable(incoming),), replace(incoming, version=0)
    own = known[-1]
    dropped = {c.name for c in own.columns if c.dropped}
    seen = incoming.fingerprint in {s.fingerprint for s in known}
    if seen and dropped.isdisjoint(incoming.names):
        return (), own
    if incoming.key != own.key:
        raise _stopped(own, f"its key changed from ({', '.join(own.key)}) to ({', '.join(incoming.key)})")
    changes: list[Change] = []
    columns = list(own.columns)
    places = {c.name: i for i, c in enumerate(columns)}
    for column in incoming.columns:
        if column.name not in places:
            changes.append(AddColumn(column))
            columns.append(column)
            continue
        old = columns[places[column.name]]
        wide = wider(old.type, column.type)
        if wide is None:
            before, after = old.source_type or old.type, column.source_type or column.type
            raise _stopped(own, f"column {column.name} changed its type from {before} to {after}")
        if wide != old.type or old.dropped:
            columns[places[column.name]] = replace(column, type=wide)
        if wide != old.type:
            changes.append(WidenType(columns[places[column.name]], old.type))
        if old.dropped:
            changes.append(RestoreColumn(columns[places[column.name]]))
    # A version that was seen before lacks what came after it, which is not dropped for that.
    gone = set() if seen else {c.name for c in columns} - set(incoming.names)
    for place, column in enumerate(columns):
        if column.name in gone and not column.dropped:
            columns[place] = replace(column, dropped=True, default=None)
            changes.append(DropColumn(columns[place]))
    return tuple(changes), replace(own, columns=tuple(columns))


def _stopped(own: TableSchema, change: str) -> TableStopped:
    return TableStopped(
        f"{own.table}: {change}; the rows already in the warehouse cannot follow exactly",
        state="schema_stopped",
        hint=f"load the table anew under the new schema: cdc resync {own.table}",
    )
