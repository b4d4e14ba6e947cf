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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cdc_service.core.errors import CdcError, Unavailable
from cdc_service.core.keys import key_text
from cdc_service.core.rowtext import value_text
from cdc_service.core.types import Column, TableId
from cdc_service.ports.reader import View
from reconcile.compare.engine import PLACE, Pairs, pairs_of, typed_values, unequal
from reconcile.protocol import Log, LogEvent, Settled, Source
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
    """Looks at the keys of one table."""

    def __init__(
        self, table: TableId, key: Sequence[Column], columns: Sequence[Column], view: Callable[[], AbstractContextManager[View]], log: Log
    ) -> None:
        self.table = table
        self.key = tuple(key)
        self.columns = tuple(columns)
        self.view = view
        self.log = log

    def compare(self, asked: pa.Table, here: pa.Table, there: pa.Table, position: int) -> list[Found]:
        """The rows that differ. A key that stands several times on a side is a row too many (the target has no unique index). A side may
        have given rows of more keys than ``asked``: a collation may call 'a' and 'A' equal."""
        pairs = pairs_of(self.key, here, there)
        wanted = pc.is_in(key_text(pairs.keys), pa.array(sorted(set(key_text(asked).to_pylist())), pa.string()))
        pairs = pairs.taken(pc.indices_nonzero(wanted))
        real, textual = unequal(self.columns, here.take(pairs.s), there.take(pairs.d))
        differs = np.logical_or.reduce([*real.values(), *textual.values()], initial=False) | _alone(pairs)
        chosen = np.flatnonzero(differs)
        pairs = pairs.taken(pa.array(chosen))
        if not len(chosen):
            return []
        texts = key_text(pairs.keys).to_pylist()
        keys = _shown(pairs.keys, self.key)
        rows_s, rows_d = (_shown(typed_values(self.columns, side), self.columns) for side in (here.take(pairs.s), there.take(pairs.d)))
        places = there.select(list(PLACE)).take(pairs.d).to_pylist()
        found = []
        for i, row in enumerate(chosen):
            has_s, has_d, copies = pairs.s[i].is_valid, pairs.d[i].is_valid, pairs.copies[i].as_py() or 1
            both = has_s and has_d
            by_type = tuple(c.name for c in self.columns if both and real[c.name][row])
            by_text = tuple(c.name for c in self.columns if both and textual[c.name][row])
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


@dataclass(slots=True)
class Case:
    """The nominated keys of a table (key columns by name), and what becomes of them."""

    judge: Judge
    nominated: Iterable[pa.Table] = ()
    verdicts: Verdicts = field(default_factory=Verdicts)
    found: list[Found] = field(default_factory=list)
    error: CdcError | None = None
    """Ends the looking at this table, and at no other."""

    def differences(self) -> Sequence[Found]:
        if self.error is not None:
            raise self.error
        return self.found

    def parts(self, most: int) -> Iterator[_Look]:
        for table in self.nominated:
            for first in range(0, table.num_rows, most):
                some = table.slice(first, most)
                yield _Look(self, pa.table({c.name: some[c.name].cast(c.type.arrow) for c in self.judge.key}))


def judge(cases: Sequence[Case], source: Source, *, until: float = float("inf")) -> None:
    """Fills what the cases found. Keys of several tables are looked at together, at one state of the source. ``until`` (seconds of the
    monotonic clock) ends looking again."""
    together, filled = list[_Look](), 0.0
    for case in cases:
        share = max(1 / KEYS_AT_ONCE, len(case.judge.columns) / VALUES_AT_ONCE)
        for look in case.parts(max(1, int(1 / share))):
            if together and filled + look.keys.num_rows * share > 1:
                _settle(together, source, until)
                together, filled = [], 0.0
            together.append(look)
            filled += look.keys.num_rows * share
    _settle(together, source, until)


def _settle(looks: list[_Look], source: Source, until: float) -> None:
    for number in range(LOOKS):
        if not looks:
            return
        if time.monotonic() > until:
            for look in looks:
                look.case.verdicts.why = "the time that the comparison may take was over"
            break
        _look(looks, source, until)
        if looks := [_Look(look.case, look.keys) for look in looks if look.why and look.case.error is None]:
            time.sleep(min(2.0, 0.1 * 2**number))  # What stands in the way ends by itself or not at all.
    for look in looks:
        look.case.verdicts.in_flight += look.keys.num_rows


@dataclass(slots=True)
class _Look:
    """One look at keys of a table. With ``why`` something stood in its way; then ``keys`` are what has to be looked at again."""

    case: Case
    keys: pa.Table
    why: str = ""
    there: pa.Table | None = None
    start: Mapping[int, int] = field(default_factory=dict)
    """The offsets up to which the log is in ``there``."""
    here: pa.Table | None = None
    found: list[Found] = field(default_factory=list)

    @contextmanager
    def step(self) -> Iterator[None]:
        try:
            yield
        except CdcError as error:
            self.case.error = error

    def hinder(self, why: str) -> None:
        self.why = self.case.verdicts.why = why

    def read_there(self) -> None:
        judge = self.case.judge
        with judge.view() as view:
            self.start = view.checkpoints(judge.log.id)
            self.there = view.fetch(judge.key, [*(c.name for c in judge.columns), *PLACE], self.keys)

    def read_here(self, settled: Settled) -> None:
        judge = self.case.judge
        try:
            with settled.scan(judge.table) as scan:
                self.here = scan.fetch(judge.key, judge.columns, self.keys)
        except Unavailable as error:
            self.hinder(error.message)

    def compare(self, position: int) -> None:
        assert self.here is not None
        assert self.there is not None
        self.found = self.case.judge.compare(self.keys, self.here, self.there, position)
        self.case.verdicts.late += self.keys.num_rows - len(self.found)
        self.here = self.there = None

    def confirm(self, ends: Mapping[int, int]) -> None:
        """Of what differs that counts which no event on its way leads to."""
        try:
            events = self.case.judge.log.between({f.key_text for f in self.found}, self.start, ends)
        except Unavailable as error:
            self.differ(error.message)
            return
        confirmed = [f for f in self.found if not any(_leads_to(e, f) for e in events.get(f.key_text, ()))]
        self.case.verdicts.late += len(self.found) - len(confirmed)
        self.case.found += confirmed

    def differ(self, why: str) -> None:
        """What differs has to be looked at again."""
        self.hinder(why)
        wanted = pa.array(sorted({f.key_text for f in self.found}), pa.string())
        self.keys = self.keys.filter(pc.is_in(key_text(self.keys), wanted))


def _look(looks: Sequence[_Look], source: Source, until: float) -> None:
    for look in looks:
        look.case.verdicts.looks += 1
        with look.step():
            look.read_there()
    if not (left := _open(looks)):
        return
    position = _read_here(left, source)
    for look in (left := _open(left)):
        with look.step():
            look.compare(position)
    over, sent = min(until, time.monotonic() + LOOK_SECONDS), True
    for look in _open(left):
        if not look.found:
            continue
        with look.step():
            ends = look.case.judge.log.ends_after(position, max(0.0, over - time.monotonic())) if sent else None
            if sent := ends is not None:
                look.confirm(ends)
            else:
                look.differ("the connector has not sent what the source committed")


def _open(looks: Sequence[_Look]) -> list[_Look]:
    """Those that nothing stands in the way of."""
    return [look for look in looks if not look.why and look.case.error is None]


def _read_here(looks: Sequence[_Look], source: Source) -> int:
    """The rows at one state of the source, and its position (-1: there is none, and the looks say so)."""
    try:
        with source.settled([look.case.judge.table for look in looks]) as settled:
            for look in looks:
                with look.step():
                    look.read_here(settled)
            return settled.snapshot.position
    except Unavailable as error:
        for look in looks:
            look.hinder(error.message)
    except CdcError as error:
        for look in looks:
            look.case.error = error
    return -1


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
