"""Why a row differs: what the log, the quarantine and the warehouse's own marks say of its key, put into one suspected cause.

Promises: each cause names the evidence it stands on; what the evidence does not tell is called unknown, never guessed. Causes begin with
one of ``CAUSES``, so that they can be counted.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from datetime import datetime

from cdc_service.ports.reader import View
from reconcile.judge import Found
from reconcile.protocol import Log, LogEvent
from reconcile.report.document import Difference, Event, Kind

HISTORY_SECONDS = 60.0
"""How long a run reads the log backwards to explain its differences."""
YEAR_1 = -719_162
"""Days from 1970-01-01 to the first day of the year 1."""
CAUSES = (
    "parked",
    "never in Kafka",
    "changed by the snapshot",
    "in Kafka, not applied",
    "delete lost",
    "placeholder",
    "mapping of column",
    "written from outside",
    "applied, then overwritten",
    "duplicate row",
    "representation",
    "unknown",
)


def explain(
    found: Sequence[Found],
    log: Log,
    view: View,
    mapped: Mapping[str, str],
    dates: Collection[str] = (),
    spelled: Callable[[int], str] = str,
    seconds: float = HISTORY_SECONDS,
) -> list[Difference]:
    """The differences with their last event and cause; ``view`` tells what is parked, which deletes are remembered and what merged an
    event, ``mapped`` names columns that differ in nearly every row, and says in how many, ``dates`` names the columns of dates,
    ``spelled`` writes a position as the source does."""
    if not found:
        return []
    keys = sorted({f.key_text for f in found})
    history, read = log.newest(keys, seconds)
    parked, deleted, checkpoints = view.parked(keys), view.deleted(keys), view.checkpoints(log.id)
    made = []
    for f in found:
        events = history.get(f.key_text, ())
        applied = [e for e in events if e.offset < checkpoints.get(e.partition, 0)]
        place = f.place or deleted.get(f.key_text)
        last = next((e for e in reversed(applied) if place is None or (e.partition, e.offset) == place), None)
        cause = _cause(f, applied, last, place, read, parked.get(f.key_text), log.placeholder, mapped, dates)
        shown = (f.key, f.kind, f.columns, f.source, f.destination, f.position)
        made.append(Difference(*shown, event=_event(log, last, place, spelled), cause=cause, count=f.count))
    merged = view.batches({(d.event.partition, d.event.offset) for d in made if d.event is not None})
    return [_merged_by(d, merged) for d in made]


def _event(log: Log, last: LogEvent | None, place: tuple[int, int] | None, spelled: Callable[[int], str]) -> Event | None:
    if last is not None:
        text = None if last.position is None else spelled(last.position)
        return Event(log.id.topic, last.partition, last.offset, last.position, last.op, position_text=text)
    return None if place is None or min(place) < 0 else Event(log.id.topic, *place)


def _merged_by(difference: Difference, merged: Mapping[tuple[int, int], tuple[str, datetime]]) -> Difference:
    event = difference.event
    if event is None or (batch := merged.get((event.partition, event.offset))) is None:
        return difference
    return replace(difference, event=replace(event, batch_id=batch[0]))


def _cause(
    f: Found,
    applied: Sequence[LogEvent],
    last: LogEvent | None,
    place: tuple[int, int] | None,
    read: int | None,
    parked: tuple[int, int, str] | None,
    placeholder: str,
    mapped: Mapping[str, str],
    dates: Collection[str],
) -> str:
    if f.kind is Kind.REPRESENTATION:
        return "representation: the values are equal by their type, their texts are not"
    if parked is not None:
        return f"parked: the event at {parked[0]}/{parked[1]} waits in quarantine: {parked[2]}"
    newest = applied[-1] if applied else None
    seen = "" if read is None else f" among the last {read:,} events"
    if f.destination is None:
        return _of_missing(newest, seen, [c for c in f.key if c in dates and _bent(f.key[c])])
    if f.source is not None and f.columns and any(f.destination.get(c) == placeholder for c in f.columns):
        return f"placeholder: the connector's mark for a value that it did not send stands in {', '.join(f.columns)}"
    if f.source is not None and not f.columns:
        return "duplicate row: the key stands more than once in the warehouse"
    if newest is not None and place is not None and (newest.partition, newest.offset) != place and _after(newest, place):
        what = "delete lost" if newest.op == "d" else "in Kafka, not applied"
        stands = f"the row still stands at {place[0]}/{place[1]}"
        return f"{what}: the event at {newest.partition}/{newest.offset} ({newest.op}) is past, {stands}"
    if f.source is None:
        return _of_extra(newest, seen)
    if f.columns and mapped.keys() >= set(f.columns):
        return f"mapping of column {', '.join(f.columns)}: {mapped[f.columns[0]]}"
    return _of_different(f, last, newest, seen, dates)


def _after(event: LogEvent, place: tuple[int, int]) -> bool:
    return event.partition != place[0] or event.offset > place[1]


def _of_missing(newest: LogEvent | None, seen: str, bent: Sequence[str]) -> str:
    if newest is None and bent:
        return f"changed by the snapshot: no event of this key{seen}, since a snapshot's rows carry another date in {', '.join(bent)}"
    if newest is None:
        return f"{'unknown' if seen else 'never in Kafka'}: no event of this key{seen}"
    where = f"{newest.partition}/{newest.offset}"
    if newest.op == "d":
        return f"never in Kafka: the last event is the delete at {where}, and the source has the row"
    return f"written from outside: the event at {where} ({newest.op}) was applied, and the row is gone without a delete"


def _of_extra(newest: LogEvent | None, seen: str) -> str:
    if newest is None:
        return f"{'unknown' if seen else 'written from outside'}: no event of this key{seen}"
    where = f"{newest.partition}/{newest.offset}"
    if newest.op == "d":
        return f"delete lost: the delete at {where} is past, the row still stands"
    return f"never in Kafka: the source has no such row, and its delete is not in the log (last event {newest.op} at {where})"


def _of_different(f: Found, last: LogEvent | None, newest: LogEvent | None, seen: str, dates: Collection[str]) -> str:
    event = last or newest
    if event is None or f.source is None or f.destination is None:
        return f"unknown: the row's last event is not{seen or ' in the log any more'}"
    where = f"{event.partition}/{event.offset}"
    told = [c for c in f.columns if c in event.values]
    if not told:
        return f"unknown: the last event, at {where}, did not send {', '.join(f.columns)}"
    if _same(told, event.values, f.source):
        return f"written from outside: the last event, at {where}, carried the source's values"
    if _same(told, event.values, f.destination):
        if event.op == "r" and all(c in dates and _bent(f.source.get(c)) for c in told):
            changed = f"carries another date in {', '.join(told)} than the source has; the stream would be exact"
            return f"changed by the snapshot: the last event, at {where}, is a snapshot's row and {changed}"
        return f"never in Kafka: the warehouse has what the last event, at {where}, carried; the source changed without another one"
    return f"applied, then overwritten: neither side has what the last event, at {where}, carried"


def _bent(text: str | None) -> bool:
    """Whether a snapshot carries another date in this one's place: its calendar has neither the ten days that were left out in 1582 nor a
    sign for years before Christ, which stand here as days since 1970 (core.rowtext)."""
    if text is None:
        return False
    return bool(re.fullmatch(r"1582-10-(0[5-9]|1[0-4])", text)) or (text.startswith("-") and text[1:].isdecimal() and int(text) < YEAR_1)


def _same(columns: Sequence[str], one: Mapping[str, str | None], other: Mapping[str, str | None]) -> bool:
    return all(one.get(c) == other.get(c) for c in columns)
