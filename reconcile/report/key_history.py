"""The life of one key: every event of it in Kafka, what became of each, and the row on both sides now.

Promises: events are in the log's order, each with its fate by the warehouse's own books (checkpoint, quarantine, ledger); nothing is judged
that the books do not tell. The whole log is read, which takes as long as it takes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from cdc_service.core.errors import CdcError, ConfigError
from cdc_service.core.keys import key_text
from cdc_service.core.logical import Kind
from cdc_service.core.rowtext import value_text
from cdc_service.core.types import Column
from reconcile.compare.engine import PLACE, key_table, typed_table
from reconcile.protocol import LogEvent
from reconcile.run import Subject

Place = tuple[int, int]


def life(subject: Subject, key: Sequence[str]) -> dict[str, Any]:
    """``key`` are the values of the key columns as reports show them. Raises ConfigError for a wrong number of them, and
    for what is no value of its type."""
    columns = subject.schema.key_columns
    if len(key) != len(columns):
        names = ", ".join(c.name for c in columns)
        message = f"the key of {subject.target.source} has {len(columns)} columns: {names}"
        raise ConfigError(message, hint="give a value for each", code="usage")
    keys, here, position = _typed(subject, key)
    (text,) = key_text(keys).to_pylist()
    history, whole = subject.log.history([text])
    events = history.get(text, ())
    with subject.view() as view:
        checkpoints, parked, deleted = view.checkpoints(subject.log.id), view.parked([text]), view.deleted([text])
        merged = view.batches([(e.partition, e.offset) for e in events])
        there = view.fetch(columns, [*(c.name for c in subject.schema.columns), *PLACE], keys)
        stored = typed_table(subject.schema.columns, there)
    last = _place(there)
    format_position = subject.source.format_position
    return {
        "table": str(subject.target.source),
        "key": {c.name: value for c, value in zip(columns, key, strict=True)},
        "whole_log": whole,
        "events": [_event(e, _fate(e, checkpoints, parked.get(text), last or deleted.get(text)), merged, format_position) for e in events],
        "source": {"position": str(position), "row": _text(here)},
        "destination": {"row": _text(stored), "last_event": last, "deleted_by": deleted.get(text)},
        "parked": parked.get(text),
    }


def _typed(subject: Subject, key: Sequence[str]) -> tuple[pa.Table, pa.Table, int]:
    """The key as its columns have it, its row at the source, and the position of that. Raises ConfigError where what was typed is none of
    the key's type: by the warehouse's, or by the source's own, which may know less values (an enum)."""
    columns = subject.schema.key_columns
    with subject.source.scan(subject.target.source) as scan:
        left_out = scan.unreadable(subject.schema.columns)
        if lost := set(left_out) & {c.name for c in columns}:
            raise CdcError(f"{subject.target.source}: its key cannot be read: {left_out[min(lost)]}", code="key_unreadable")
        types = scan.types(columns)
        for c, typed in zip(columns, key, strict=True):
            if not _reads(c, typed):
                raise _mistyped(subject, types, f"{typed!r} is no {types[c.name]}")
        keys = key_table(columns, {c.name: [typed] for c, typed in zip(columns, key, strict=True)})
        readable = [c for c in subject.schema.columns if c.name not in left_out]
        try:
            here = typed_table(readable, scan.fetch(columns, readable, keys))
        except CdcError as error:
            if error.code != "source_value":
                raise
            typed = ", ".join(map(repr, key))
            raise _mistyped(subject, types, f"the source cannot read {typed} as {', '.join(types.values())}") from None
        here = _of_key(here, columns, keys)
    # A number without a scale is one key however it is typed; events have it as the source writes it.
    return typed_table(columns, here.select(keys.column_names)) if here.num_rows else keys, here, scan.position


def _reads(column: Column, typed: str) -> bool:
    """Whether the text is a value of the column's type, and not only near one: 1.5 is no integer, though a cast takes it for 2."""
    kind = column.type.kind
    if "\0" in typed or (kind is Kind.BYTES and not re.fullmatch("([0-9a-fA-F]{2})*", typed)):
        return False
    try:
        typed.encode()
        value = key_table([column], {column.name: [typed]})[column.name][0]
        return kind not in (Kind.INT16, Kind.INT32, Kind.INT64, Kind.DECIMAL) or Decimal(typed) == value.as_py()
    except (CdcError, InvalidOperation, ValueError):
        return False


def _mistyped(subject: Subject, types: Mapping[str, str], why: str) -> ConfigError:
    key = ", ".join(f"{name} ({type_})" for name, type_ in types.items())
    return ConfigError(f"the key of {subject.target.source} is {key}: {why}", hint="give the value as cdc reconcile shows it", code="usage")


def _of_key(rows: pa.Table, key: Sequence[Column], keys: pa.Table) -> pa.Table:
    """Those whose texts are the key's: a collation may call 'a' and 'A' equal, and a cast cuts off what is too long."""
    for c in key:
        if c.type.kind is Kind.STRING:
            rows = rows.filter(pc.equal(rows[c.name], keys[c.name][0]))
    return rows


def _text(rows: pa.Table) -> dict[str, str | None] | None:
    """The first row as texts."""
    if not rows.num_rows:
        return None
    one = rows.slice(0, 1).combine_chunks()
    return {name: value_text(one[name].chunk(0)).to_pylist()[0] for name in one.column_names}


def _place(rows: pa.Table) -> Place | None:
    found = rows.select(list(PLACE)).to_pylist()[:1]
    return None if not found or None in found[0].values() else (found[0][PLACE[0]], found[0][PLACE[1]])


def _fate(event: LogEvent, checkpoints: Mapping[int, int], parked: tuple[int, int, str] | None, last: Place | None) -> str:
    place = (event.partition, event.offset)
    if event.offset >= checkpoints.get(event.partition, 0):
        return "not merged yet"
    if parked is not None and parked[:2] == place:
        return "parked"
    return "the row's last" if place == last else "superseded"


def _event(
    event: LogEvent, fate: str, merged: Mapping[Place, tuple[str, datetime]], format_position: Callable[[int], str]
) -> dict[str, Any]:
    at = None if event.source_us is None else datetime.fromtimestamp(event.source_us / 1e6, UTC)
    batch_id, merged_at = merged.get((event.partition, event.offset), (None, None))
    return {
        "partition": event.partition,
        "offset": event.offset,
        "op": event.op,
        "position": None if event.position is None else str(event.position),
        "position_text": None if event.position is None else format_position(event.position),
        "at": _time(at),
        "moved": event.moved,
        "batch_id": batch_id,
        "merged_at": _time(merged_at),
        "fate": fate,
        "values": dict(event.values),
    }


def _time(at: datetime | None) -> str | None:
    return None if at is None else at.astimezone(UTC).isoformat().replace("+00:00", "Z")
