"""Push-down: each side sums its own rows up by bucket, and only rows of buckets that differ move.

Promises: both sides are asked about the one state that they show; where one sum led straight to a row, what was found there explains the
whole difference of its bucket, else all rows of the bucket are fetched; the keys that differ are those that the streamed comparison finds,
but for columns without a canonical text, which nothing here sees. The hash and the sums are those of cdc_service.core.canonical.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from cdc_service.core.canonical import CUT, PLACES
from cdc_service.core.types import Column
from cdc_service.ports.reader import Reader, Scan, View
from reconcile.compare.engine import BUCKETS, Comparison, Ranges, in_ranges
from reconcile.report.document import Buckets, Total

PROBED_ROWS = 50_000
WORTHWHILE = 2.0
"""So many times faster the sums of a probe have to be than its rows: afterwards rows are fetched too, and sums cost the databases more."""
SPAN_MAX = 2**61
BUCKET_ROWS = 128
BUCKETS_MAX = 2**16
"""Buckets are small, so that even where thousands of keys changed meanwhile most buckets hold one of them, or none."""
RANGES_AT_ONCE = 200
"""Ranges of keys in one condition."""
KEYS_AT_ONCE = 10_000


@dataclass(slots=True)
class Sums:
    """Of a bucket: rows, hashes, hashes by place."""

    n: int = 0
    t: int = 0
    l: int = 0  # noqa: E741

    def add(self, n: int, t: int, l: int) -> None:  # noqa: E741
        self.n, self.t, self.l = self.n + n, self.t + t, self.l + l


@dataclass(slots=True)
class _Half:
    """One side with its expressions."""

    name: str
    side: Reader
    bucket: str
    place: str
    hash: str
    staged: Mapping[str, str]
    sums: dict[int, Sums] = field(default_factory=lambda: defaultdict(Sums))


class PushDown:
    def __init__(
        self,
        comparison: Comparison,
        scan: Scan,
        view: View,
        columns: Sequence[Column],
        where: str | None,
        rows_expected: int,
        *,
        give_up: bool,
    ) -> None:
        """``columns`` have a canonical text on both sides; the rows that may differ are staged in ``comparison``. ``give_up``: nothing is
        fetched where more than half of the buckets differ (``widespread``), as it would be most of the table."""
        self._give_up = give_up
        fine = max(BUCKETS, min(BUCKETS_MAX, 2 ** (rows_expected // BUCKET_ROWS).bit_length()))
        self._fine = fine  # A power of two, so that the buckets of the report are made of whole ones.
        self._comparison = comparison
        self._key = comparison.key
        self._columns = columns
        self._where = where
        self._sides: dict[str, Reader] = {"d": view, "s": scan}
        self._halves: list[_Half] = []
        self._ranges: Ranges | None = None
        self.totals: tuple[Total, Total] = (Total(0, ""), Total(0, ""))
        self.buckets = Buckets()
        self.widespread = False

    def run(self) -> Iterator[tuple[str, int, int]]:
        """Side, rows and bytes of each step; then ``totals`` and ``buckets`` are there."""
        self._ranges = self._bounds() if in_ranges(self._key) else None
        self._halves = [self._half(name, side) for name, side in self._sides.items()]
        for half in self._halves:
            for batch in half.side.digests(half.bucket, half.place, half.hash, self._where):
                rows = 0
                for b, n, t, l in zip(*(batch.column(i).to_pylist() for i in range(4)), strict=True):  # noqa: E741
                    half.sums[int(b)].add(int(n), int(t), int(l))
                    rows += int(n)
                yield half.name, rows, batch.nbytes
        d, s = self._halves
        numbers = sorted({*s.sums, *d.sums})
        self.totals = _total(s, numbers), _total(d, numbers)
        deltas = {b: Sums(x.n - y.n, x.t - y.t, x.l - y.l) for b in numbers for x, y in [(s.sums[b], d.sums[b])]}
        dirty = {b: delta for b, delta in deltas.items() if (delta.n, delta.t) != (0, 0)}
        self.widespread = len(dirty) > (self._ranges.total if self._ranges else self._fine) // 2
        if self.widespread and self._give_up:
            return
        solved = yield from self._localized(dirty)
        yield from self._whole([b for b in dirty if b not in solved])
        self.buckets = self._told(dirty, len(solved))

    def _told(self, dirty: Mapping[int, Sums], localized: int) -> Buckets:
        """The report's buckets, each of some small ones; ``localized`` counts the small ones."""
        each = 1 if self._ranges is None else -(-self._ranges.total // BUCKETS)
        total = BUCKETS if self._ranges is None else -(-self._ranges.total // each)
        d, s = self._halves
        told = {}
        for number in sorted({b % BUCKETS if self._ranges is None else b // each for b in dirty}):
            small = range(number, self._fine, BUCKETS) if self._ranges is None else range(number * each, (number + 1) * each)
            told[number] = _total(s, small), _total(d, small)
        return Buckets(total, told, localized, "hash" if self._ranges is None else "key")

    def _bounds(self) -> Ranges | None:
        found: list[int] = []
        for side in self._sides.values():
            key = side.forms(self._key)[self._key[0].name]
            for batch in side.select({"low": f"CAST(min({key}) AS BIGINT)", "high": f"CAST(max({key}) AS BIGINT)"}, self._where):
                found += [v for row in batch.to_pylist() for v in row.values() if v is not None]
        low, high = min(found, default=0), max(found, default=0)
        return Ranges(low, high, self._fine) if high - low < SPAN_MAX else None

    @property
    def _unit(self) -> int:
        """Keys that share a place."""
        return (self._ranges.width - 1) // PLACES + 1 if self._ranges else 1

    def _half(self, name: str, side: Reader) -> _Half:
        c, forms, texts = side.canonical, side.forms(self._key), side.texts([*self._key, *self._columns])
        if self._ranges is None:
            bucket, place = f"({c.hash([texts[k.name] for k in self._key])} % {self._fine})", "0"
        else:
            at = f"(CAST({forms[self._key[0].name]} AS BIGINT) - ({self._ranges.low}))"
            bucket = c.divide.format(at, self._ranges.width)
            place = c.divide.format(f"({at} % {self._ranges.width})", self._unit)
        hash_ = c.hash([texts[column.name] for column in self._columns])
        staged = {f"k{i}": forms[k.name] for i, k in enumerate(self._key)} | {"h": hash_}
        return _Half(name, side, bucket, place, hash_, staged)

    def _localized(self, dirty: Mapping[int, Sums]) -> Generator[tuple[str, int, int], None, frozenset[int]]:
        """Fetches the rows to which the sums lead, and gives (as its result) the buckets that these explain."""
        ranges = {b: place for b, delta in dirty.items() if (place := self._place(b, delta)) is not None}
        if not ranges:
            return frozenset[int]()
        found: dict[str, list[pa.Table]] = {}
        explained: dict[int, Sums] = defaultdict(Sums)
        for half in self._halves:
            sign = 1 if half.name == "s" else -1
            found[half.name] = []
            for batch in self._at(half, list(ranges.values())):
                found[half.name].append(pa.Table.from_batches([batch]))
                for b, h in zip(batch["b"].to_pylist(), batch["h"].to_pylist(), strict=True):
                    explained[b].add(sign, sign * h, 0)
                yield half.name, 0, batch.nbytes
        solved = frozenset(b for b in ranges if (explained[b].n, explained[b].t) == (dirty[b].n, dirty[b].t))
        for name, tables in found.items():
            kept = (t.filter(pa.array([b in solved for b in t["b"].to_pylist()], pa.bool_())).drop_columns(["b"]) for t in tables)
            for _ in self._comparison.stage_hashed(name, (batch for t in kept for batch in t.to_batches())):
                pass
        return solved

    def _place(self, bucket: int, delta: Sums) -> tuple[int, int] | None:
        """The keys at which the bucket's difference lies if it is one row's; None where it cannot be."""
        if self._ranges is None or delta.t == 0 or abs(delta.n) > 1:
            return None
        place = round(delta.l * 2**CUT / delta.t)
        low = self._ranges.low + bucket * self._ranges.width + place * self._unit
        return (low, low + self._unit - 1) if 0 <= place < PLACES else None

    def _at(self, half: _Half, ranges: Sequence[tuple[int, int]]) -> Iterator[pa.RecordBatch]:
        name, exact = half.side.forms(self._key)[self._key[0].name], self._unit == 1
        step = KEYS_AT_ONCE if exact else RANGES_AT_ONCE
        for first in range(0, len(ranges), step):
            some = ranges[first : first + step]
            said = f"{name} IN ({', '.join(str(low) for low, _ in some)})" if exact else _between(name, some)
            yield from half.side.select(dict(half.staged) | {"b": half.bucket}, _and(self._where, said))

    def _whole(self, buckets: Sequence[int]) -> Iterator[tuple[str, int, int]]:
        """Fetches the keys and hashes of all rows of these buckets."""
        if not buckets:
            return
        for half in self._halves:
            said = f"{half.bucket} IN ({', '.join(map(str, buckets))})"
            if self._ranges is not None and len(buckets) <= RANGES_AT_ONCE:
                low, width = self._ranges.low, self._ranges.width
                ranges = [(low + b * width, low + (b + 1) * width - 1) for b in buckets]
                said = _between(half.side.forms(self._key)[self._key[0].name], ranges)
            for _, size in self._comparison.stage_hashed(half.name, half.side.select(half.staged, _and(self._where, said))):
                yield half.name, 0, size


def _total(half: _Half, buckets: Iterable[int]) -> Total:
    sums = [half.sums[b] for b in buckets if b in half.sums]
    return Total.of(sum(x.n for x in sums), sum(x.t for x in sums))


def _between(name: str, ranges: Sequence[tuple[int, int]]) -> str:
    return " OR ".join(f"{name} BETWEEN {low} AND {high}" for low, high in ranges)


def _and(*conditions: str | None) -> str:
    return " AND ".join(f"({c})" for c in conditions if c)


def faster(scan: Scan, view: View, key: Sequence[Column], columns: Sequence[Column]) -> bool:
    """Whether sums come in less time than rows: of a few rows both are taken. Between hosts the network decides, on one the processors."""
    whole = list({c.name: c for c in (*key, *columns)}.values())
    rows = _seconds(scan.rows(whole, most=PROBED_ROWS))
    sides: list[Reader] = [scan]
    if not view.native:
        rows *= 2  # The other side's rows would have to come as well.
        sides.append(view)
    sums = 0.0
    for side in sides:
        texts = side.texts(whole)
        sums += _seconds(side.digests("0", "0", side.canonical.hash([texts[c.name] for c in columns]), most=PROBED_ROWS))
    return sums * WORTHWHILE < rows


def _seconds(batches: Iterable[pa.RecordBatch]) -> float:
    began = time.monotonic()
    for _ in batches:
        pass
    return time.monotonic() - began
