"""The verdict: nominated keys are looked at again by the values of their rows: each is equal, on its way, or different at a position.

A look takes the rows of the keys at the warehouse (a view, which tells the offsets up to which the log is in it), then the same rows at
the source once every writer of the table that was at work has ended, and then waits until the log holds all that the source showed. Every
change between the two rows is then an event between the view's offsets and those ends. Where one of these events leaves the row as the
source has it, the warehouse is on its way there; where none does, no change that is on its way explains the difference. So no difference
is false while both sides move, however fast, and whether the merging goes on or not.

Promises: ``judge`` reports a difference only so; values are compared by their types, texts decide nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cdc_service.core.errors import Unavailable
from cdc_service.core.keys import key_text
from cdc_service.core.rowtext import value_text
from cdc_service.core.types import Column, TableId
from cdc_service.ports.reader import View
from reconcile.compare.engine import PLACE, Pairs, pairs_of, typed_values, unequal
from reconcile.protocol import Log, LogEvent, Source
from reconcile.report.document import Kind

KEYS_AT_ONCE = 5_000
VALUES_AT_ONCE = 500_000
"""Of a wide table fewer keys are looked at together."""
LOOKS = 5
"""How often a look is tried that something stands in the way of."""
LOOK_SECONDS = 20.0
"""How long one look waits for the connector to come as far as the source was."""


@dataclass(frozen=True, slots=True)
class Found:
    """A confirmed difference. ``partition`` and ``offset`` are the warehouse row's last event, where it has one."""

    key: Mapping[str, str | None]
    key_text: str
    kind: Kind
    columns: tuple[str, ...]
    source: Mapping[str, str | None] | None
    destination: Mapping[str, str | None] | None
    position: int
    place: tuple[int, int] | None
    count: int = 1
    """How many rows too many there are."""


@dataclass(slots=True)
class Verdicts:
    """``late`` keys were equal or on their way when they were looked at; ``in_flight`` could not be judged, and ``why`` says the reason."""

    late: int = 0
    in_flight: int = 0
    why: str = ""
    looks: int = 0


class Judge:
    def __init__(
        self,
        table: TableId,
        key: Sequence[Column],
        columns: Sequence[Column],
        source: Source,
        view: Callable[[], AbstractContextManager[View]],
        log: Log,
        *,
        until: float = float("inf"),
    ) -> None:
        """``until`` (seconds of the monotonic clock) ends looking again."""
        self._table = table
        self._key = tuple(key)
        self._columns = tuple(columns)
        self._source = source
        self._view = view
        self._log = log
        self._until = until

    def judge(self, nominated: Iterator[pa.Table], verdicts: Verdicts) -> Iterator[Found]:
        """The differences among ``nominated`` (key columns by name)."""
        for table in nominated:
            size = max(1, min(KEYS_AT_ONCE, VALUES_AT_ONCE // max(1, len(self._columns))))
            for first in range(0, table.num_rows, size):
                yield from self._settle(self._typed(table.slice(first, size)), verdicts)

    def _typed(self, keys: pa.Table) -> pa.Table:
        return pa.table({c.name: keys[c.name].cast(c.type.arrow) for c in self._key})

    def _settle(self, keys: pa.Table, verdicts: Verdicts) -> Iterator[Found]:
        for number in range(LOOKS):
            if time.monotonic() > self._until:
                verdicts.why = "the time that the comparison may take was over"
                break
            verdicts.looks += 1
            differing, busy, why = self._look(keys)
            verdicts.why = why or verdicts.why
            verdicts.late += keys.num_rows - len(differing) - busy.num_rows
            yield from differing
            keys = busy
            if not keys.num_rows:
                return
            if why:
                time.sleep(min(2.0, 0.1 * 2**number))  # What stands in the way ends by itself or not at all.
        verdicts.in_flight += keys.num_rows

    def _look(self, keys: pa.Table) -> tuple[list[Found], pa.Table, str]:
        """The differences among ``keys``, those that are to be looked at again, and why, where it is not that they change."""
        names = [c.name for c in self._columns]
        with self._view() as view:
            start = view.checkpoints(self._log.id)
            there = view.fetch(self._key, [*names, *PLACE], keys)
        try:
            with self._source.settled(self._table) as (scan, _):
                position = scan.position
                here = scan.fetch(self._key, self._columns, keys)
        except Unavailable as error:
            return [], keys, error.message
        found = self._compare(keys, here, there, position)
        if not found:
            return [], keys.slice(0, 0), ""
        ends = self._log.ends_after(position, min(LOOK_SECONDS, max(0.0, self._until - time.monotonic())))
        if ends is None:
            return [], self._only(keys, found), "the connector has not sent what the source committed"
        try:
            events = self._log.between({f.key_text for f in found}, start, ends)
        except Unavailable as error:
            return [], self._only(keys, found), error.message
        return [f for f in found if not any(_leads_to(e, f) for e in events.get(f.key_text, ()))], keys.slice(0, 0), ""

    def _only(self, keys: pa.Table, found: Sequence[Found]) -> pa.Table:
        return keys.filter(pc.is_in(key_text(keys), pa.array(sorted({f.key_text for f in found}), pa.string())))

    def _compare(self, asked: pa.Table, here: pa.Table, there: pa.Table, position: int) -> list[Found]:
        """The rows that differ. A key that stands several times on a side is a row too many (the target has no unique index). A side may
        have given rows of more keys than ``asked``: a collation may call 'a' and 'A' equal."""
        pairs = pairs_of(self._key, here, there)
        wanted = pc.is_in(key_text(pairs.keys), pa.array(sorted(set(key_text(asked).to_pylist())), pa.string()))
        pairs = pairs.taken(pc.indices_nonzero(wanted))
        real, textual = unequal(self._columns, here.take(pairs.s), there.take(pairs.d))
        differs = np.logical_or.reduce([*real.values(), *textual.values()], initial=False) | _alone(pairs)
        chosen = np.flatnonzero(differs)
        pairs = pairs.taken(pa.array(chosen))
        if not len(chosen):
            return []
        texts = key_text(pairs.keys).to_pylist()
        keys = _shown(pairs.keys, self._key)
        rows_s, rows_d = (_shown(typed_values(self._columns, side), self._columns) for side in (here.take(pairs.s), there.take(pairs.d)))
        places = there.select(list(PLACE)).take(pairs.d).to_pylist()
        found = []
        for i, row in enumerate(chosen):
            has_s, has_d, copies = pairs.s[i].is_valid, pairs.d[i].is_valid, pairs.copies[i].as_py() or 1
            both = has_s and has_d
            by_type = tuple(c.name for c in self._columns if both and real[c.name][row])
            by_text = tuple(c.name for c in self._columns if both and textual[c.name][row])
            kind, columns = (Kind.DIFFERENT, by_type) if by_type else (Kind.REPRESENTATION, by_text)
            if not has_d:
                kind, columns = Kind.MISSING, ()
            elif not has_s or copies > 1:
                kind, columns = Kind.EXTRA, ()
            place = tuple(places[i][name] for name in PLACE)
            source, destination = rows_s[i] if has_s else None, rows_d[i] if has_d else None
            last = (place[0], place[1]) if has_d and place[1] is not None else None
            found.append(Found(keys[i], texts[i], kind, columns, source, destination, position, last, max(1, copies - has_s)))
        return found


def _alone(pairs: Pairs) -> npt.NDArray[np.bool_]:
    """Of which rows there is no other, or more than one."""
    more = pc.greater(pairs.copies, 1).fill_null(False)
    found: npt.NDArray[np.bool_] = pc.or_(pc.or_(pairs.s.is_null(), pairs.d.is_null()), more).to_numpy(zero_copy_only=False)
    return found


def _leads_to(event: LogEvent, found: Found) -> bool:
    """Whether the event leaves the row as the source has it. What it did not send stays as it was, whatever that is by then."""
    if event.op in ("d", "t"):
        return found.source is None
    return found.source is not None and all(found.source.get(name, value) == value for name, value in event.values.items())


def _shown(rows: pa.Table, columns: Sequence[Column]) -> list[dict[str, str | None]]:
    """Each row as texts."""
    texts = [value_text(rows[c.name].combine_chunks()).to_pylist() for c in columns]
    return [{c.name: text[i] for c, text in zip(columns, texts, strict=True)} for i in range(rows.num_rows)]
