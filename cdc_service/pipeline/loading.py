"""Loads a table from the source itself, beside the stream: a thread reads its ranges in one snapshot, the merges take them piece by piece.

Order: the generation that is loaded was opened at a position below every open transaction and at the ends of the topic, both before the
first snapshot was taken. So each change that the snapshot may lack, or that came while it was read, comes by the stream, and wins: rows
of a load stand before all changes of the stream (core.order.INCREMENTAL). The stream of a table that has rows already is applied
meanwhile: its readers see its changes, though it is read anew for an hour. Of a table that was empty the stream waits in Kafka: as long
as nothing else writes there, rows are added without a look for others of their keys, which is several times cheaper (``fresh``).

Promises: a range counts as done only with its last row, in the transaction that writes it; what ends half-way is read again from its
beginning, and changes nothing that is there already.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa

from cdc_service.core.clock import Clock
from cdc_service.core.errors import CdcError
from cdc_service.core.keys import key_text
from cdc_service.core.order import INCREMENTAL
from cdc_service.core.types import META, ChangeBatch, Delta, LoadedPart, LoadRange, Op, TableSchema, Target
from cdc_service.pipeline.prepare import Prepare
from cdc_service.ports.reader import Load

RANGE_BYTES = 32 * 2**20
"""Of the source's pages: what a crash costs at most."""
PIECE_BYTES = 32 * 2**20
"""What one merge brings: a range that cannot be parted at the source comes in several."""
AHEAD = 1
"""Pieces that are read ahead of the merges."""
PLACE = -1
"""Partition and offset of a row that no record brought."""


@dataclass(frozen=True, slots=True)
class Plan:
    ranges: Sequence[LoadRange]


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows of a range, ready to be merged."""

    batch: ChangeBatch
    part: LoadedPart


Item = Plan | Piece | int
"""An int is the end: the position of the last snapshot."""


class Fetch(Protocol):
    """Takes items out of an iterator, which may ask the source for each: ``poll`` gives the next one if it is there; at the end, ``error``
    says why there is none."""

    error: CdcError | None

    def poll(self) -> Item | None: ...
    def end(self) -> None:
        """Nothing is wanted any more."""
        ...


class Beside:
    """A thread of its own, so that reading and merging go on together."""

    def __init__(self, items: Iterator[Item]) -> None:
        self.error: CdcError | None = None
        self._ready: queue.Queue[Item] = queue.Queue(AHEAD)
        self._over = threading.Event()
        threading.Thread(target=self._run, args=(items,), name="load", daemon=True).start()

    def poll(self) -> Item | None:
        try:
            return self._ready.get_nowait()
        except queue.Empty:
            return None

    def end(self) -> None:
        self._over.set()

    def _run(self, items: Iterator[Item]) -> None:
        try:
            for item in items:
                if not self._put(item):
                    return
        except CdcError as error:
            self.error = error
        except Exception as error:
            # The message of an error that nobody foresaw may hold values.
            self.error = CdcError(f"an unexpected {type(error).__name__} while it was loaded", hint="report it", code="unexpected")

    def _put(self, item: Item) -> bool:
        while not self._over.is_set():
            try:
                self._ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False


class Loading:
    """One load: of one table, for one generation. ``kept`` are the ranges that were planned for it before, by a process that ended; after
    ``seconds`` another snapshot is taken.

    ``rows`` is how many came so far; ``position`` is where the source's log stood when the rows were as they are now: known when all of
    them are merged. ``fresh`` is as in LoadedPart, as long as that holds."""

    def __init__(
        self,
        generation: int,
        open_: Callable[[], Load],
        prepare: Prepare,
        schema: TableSchema,
        kept: Sequence[LoadRange],
        *,
        clock: Clock,
        seconds: float,
        fresh: bool,
        fetch: Callable[[Iterator[Item]], Fetch] = Beside,
    ) -> None:
        self.generation = generation
        self.fresh = fresh
        self.rows = sum(r.rows or 0 for r in kept if r.done)
        self.ranges, self.done = len(kept), sum(r.done for r in kept)
        self.position: int | None = None
        self._open = open_
        self._prepare = prepare
        self._schema = schema
        self._kept = kept
        self._clock = clock
        self._seconds = seconds
        self._next: Item | None = None
        self._fetch = fetch(self._items())

    @property
    def error(self) -> CdcError | None:
        """Why the reading gave up."""
        return self._fetch.error

    def next(self) -> Plan | Piece | None:
        """What is to be done next; the same until ``taken``."""
        if self._next is None:
            self._next = self._fetch.poll()
        if isinstance(self._next, int):
            self.position, self._next = self._next, None
        return self._next

    def taken(self) -> None:
        """What ``next`` gave is done, durably."""
        if isinstance(self._next, Plan):
            self.ranges, self.done = len(self._next.ranges), 0
        elif isinstance(self._next, Piece):
            self.rows += self._next.batch.num_rows
            self.done += self._next.part.done
        self._next = None

    def end(self) -> None:
        self._fetch.end()

    # What is read

    def _items(self) -> Iterator[Item]:
        left = [r for r in self._kept if not r.done]
        storage = {r.storage for r in self._kept}
        while True:
            with self._open() as load:
                if storage != {load.storage}:
                    bounds, storage = load.ranges(RANGE_BYTES), {load.storage}
                    left = [LoadRange(self.generation, n, low, high, load.storage) for n, (low, high) in enumerate(bounds)]
                    yield Plan(tuple(left))
                until = self._clock.monotonic() + self._seconds
                while left:
                    yield from self._pieces(load, left[0])
                    del left[0]
                    if self._clock.monotonic() >= until:
                        break
                if not left:
                    yield load.position
                    return
            self.fresh = False  # A row that moved since is in a range that was read and in one that was not.

    def _pieces(self, load: Load, one: LoadRange) -> Iterator[Piece]:
        columns = self._schema.columns
        texts, count = load.as_text(columns), 0
        held: list[pa.RecordBatch] = []

        def piece(*, done: bool) -> Piece:
            rows = pa.Table.from_batches(held) if held else None
            part = LoadedPart(self.generation, one.number, count, load.position, done)
            return Piece(loaded_batch(self._prepare, self._schema, rows, texts), part)

        for batch in load.batches(columns, one.low, one.high):
            if sum(b.nbytes for b in held) >= PIECE_BYTES:
                yield piece(done=False)
                held.clear()
            held.append(batch)
            count += batch.num_rows
        yield piece(done=True)


def loaded_batch(prepare: Prepare, schema: TableSchema, rows: pa.Table | None, texts: frozenset[str]) -> ChangeBatch:
    """``rows`` as changes that can be merged; those columns that are ``texts`` are in the text of events. Raises CdcError (unloadable)
    where the target cannot hold one of them."""
    n = 0 if rows is None else rows.num_rows
    data = schema.arrow.empty_table()
    if rows is not None:
        read = (
            prepare.decoder.from_text(prepare.topic, rows.select([c.name for c in schema.columns if c.name in texts]), schema)
            if texts
            else None
        )
        data = pa.table({c.name: rows[c.name] if c.name not in texts or read is None else read[c.name] for c in schema.columns})
    meta = pa.table(
        [
            pa.array(np.full(n, int(Op.READ)), META.field("op").type),
            pa.array(np.full(n, PLACE), META.field("partition").type),
            pa.array(np.full(n, PLACE), META.field("offset").type),
            pa.nulls(n, pa.int64()),
            pa.array(np.full(n, INCREMENTAL), pa.int64()),
            pa.array(np.zeros(n, np.int64)),
            pa.nulls(n, pa.int64()),
            pa.array(np.arange(n)),
        ],
        schema=META,
    )
    return prepare.loaded(ChangeBatch(schema, data, meta, ()))


def loaded_delta(batch: ChangeBatch, target: Target, part: LoadedPart) -> Delta:
    """What merging the rows of a piece does: a snapshot shows each key once, so there is nothing to fold."""
    n = batch.num_rows
    meta = (
        batch.meta.append_column("gen", pa.array(np.full(n, part.generation), pa.int32()))
        .append_column("key", key_text(batch.data.select(batch.schema.key).combine_chunks()))
        .append_column("moved", pa.array(np.zeros(n, np.bool_)))
    )
    return Delta(f"load-{part.generation}.{part.number}", target, batch.schema, batch.data, meta, (), {}, loaded=part)
