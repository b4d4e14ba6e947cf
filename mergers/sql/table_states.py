"""The state of a table as the destination keeps it: what it is in, of which generation, how far complete, and why it stands still.

Promises: a state that somebody else changed since it was read is not overwritten.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

from cdc_service.core.errors import Fenced
from cdc_service.core.logical import Kind, LogicalType
from cdc_service.core.types import Target
from cdc_service.ports.destination import TableState
from mergers.sql import meta
from mergers.sql.connection import Connection, run
from mergers.sql.meta import SCOPE
from mergers.sql.spelling import Spelling
from mergers.sql.statements import TargetSql

MOVED = "_cdc_moved"
"""The staged table of what ``advance`` writes."""


def load(c: Connection, s: TargetSql) -> TableState:
    rows = c.fetch(f"{_select(s.spelling, s.meta(meta.TABLE_STATE))} WHERE {s.in_scope()}", s.scope)
    return _state(rows[0][2:]) if rows else TableState()


def expect(c: Connection, s: TargetSql, generation: int | None) -> None:
    """Raises Fenced where the target is of another ``generation`` (None: any will do) by now: a resync began meanwhile. Behind the lock or
    the update of the writer's number, which a resync takes too: none begins between this and the commit."""
    if generation is not None and load(c, s).generation != generation:
        raise Fenced(f"{s.target.source} was read anew meanwhile", hint="nothing to do: it is opened again")


def of_pipeline(c: Connection, spelling: Spelling, meta_schema: str, pipeline: str) -> Mapping[tuple[str, str], TableState]:
    """By source table and target."""
    sql = f"{_select(spelling, spelling.quote(meta_schema, meta.TABLE_STATE.name))} WHERE pipeline = {spelling.placeholder}"
    return {(row[0], row[1]): _state(row[2:]) for row in c.fetch(sql, [pipeline])}


def store(c: Connection, s: TargetSql, state: TableState) -> TableState:
    """The state with its new version. Raises Fenced where it is not the one that was read. Inside of a transaction."""
    p, table, kept = s.spelling.placeholder, s.meta(meta.TABLE_STATE), replace(state, version=state.version + 1)
    offsets = None if kept.opened_at is None else json.dumps({str(n): offset for n, offset in kept.opened_at.items()})
    values = [
        *(kept.state, kept.generation, kept.opened_record, offsets, kept.resync, kept.complete_through, kept.complete_at),
        *(
            kept.error_code,
            kept.error_message,
            kept.error_hint,
            kept.error_at,
            kept.identity,
            kept.identity_at,
            kept.columns_at,
            kept.version,
        ),
    ]
    if state.version == 0:
        written = run(c, s.insert_once(meta.TABLE_STATE, values, now="updated_at"))
    else:
        sets = ", ".join(f"{name} = {p}" for name, _ in meta.TABLE_STATE.columns[:-1])
        sql = f"UPDATE {table} SET {sets}, updated_at = now() WHERE {s.in_scope()} AND version = {p}"
        written = c.execute(sql, [*values, *s.scope, state.version])
    if not written:
        raise Fenced(f"{s.target.source}: its state was changed by another process meanwhile", hint="nothing to do: it is read again")
    return kept


class Overtaken(Exception):
    """Some of the states are no longer the ones that were read."""


def staged(moved: Mapping[Target, TableState], spelling: Spelling) -> tuple[pa.Table, Sequence[str]]:
    """What MOVED holds, and the types of its columns."""
    text, long = LogicalType(Kind.STRING), LogicalType(Kind.INT64)
    types = {"source_table": text, "target_table": text, **dict.fromkeys(("through", "at_us", "identity_at", "version"), long)}
    rows = ((str(t.source), str(t), s.complete_through, s.complete_at, s.identity_at, s.version) for t, s in moved.items())
    columns = [pa.array(values, type_.arrow) for values, type_ in zip(zip(*rows, strict=True), types.values(), strict=True)]
    return pa.table(columns, names=list(types)), [spelling.column_type(type_) for type_ in types.values()]


def advance(c: Connection, spelling: Spelling, meta_schema: str, pipeline: str, tables: int) -> None:
    """Writes how far the tables in MOVED are complete, in one statement: a thousand of them, each by itself, took over a second of a core.
    Raises Overtaken where it did not hit all of the ``tables``: which ones it hit, no database tells. Inside of a transaction."""
    place, stage = spelling.quote(meta_schema, meta.TABLE_STATE.name), spelling.quote(spelling.temporary, MOVED)
    sql = f"""UPDATE {place} AS t SET complete_through = m.through, complete_at_us = m.at_us, identity_at = m.identity_at,
  version = m.version + 1, updated_at = now() FROM {stage} AS m
WHERE t.source_table = m.source_table AND t.target_table = m.target_table AND t.version = m.version
  AND t.pipeline = {spelling.placeholder}"""
    if c.execute(sql, [pipeline]) != tables:
        raise Overtaken


def _select(spelling: Spelling, place: str) -> str:
    columns = ", ".join((*SCOPE[1:], *(name for name, _ in meta.TABLE_STATE.columns[:-1])))
    return f"SELECT {columns} FROM {place}"


def _state(row: Sequence[Any]) -> TableState:
    state, generation, record, opened_at, *rest, identity, identity_at, columns_at, version = row
    offsets = None if opened_at is None else {int(p): offset for p, offset in json.loads(opened_at).items()}
    # A state that was written before there were identities has none.
    kept = TableState(state, generation, record, offsets, *rest)
    return replace(kept, identity=identity or "", identity_at=identity_at or 0, columns_at=columns_at or 0, version=version)
