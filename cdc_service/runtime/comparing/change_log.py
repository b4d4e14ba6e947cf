"""What reads the source and the change topic for a comparison: reconcile.protocol's Source and Log over connectors, Connect and Kafka.

Promises: every wait has a limit; nothing here is called by the line or stops it.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from cdc_service.core.errors import CdcError, Unavailable
from cdc_service.core.keys import key_text
from cdc_service.core.names import Names
from cdc_service.core.rowtext import value_text
from cdc_service.core.types import ChangeBatch, LogId, Op, TableId
from cdc_service.kafka.admin import Admin
from cdc_service.kafka.reader import TopicReader
from cdc_service.pipeline.prepare import Prepare
from cdc_service.ports.reader import Scan, Snapshot
from cdc_service.ports.source import Capture, RowReader, Source
from connectors.debezium.connect import KafkaConnect
from reconcile.protocol import LogEvent, Settled

REPLICA_SECONDS = 30.0
BETWEEN_MAX = 5_000_000
"""How many events may lie between the warehouse and the source for a key to be judged by them."""
STEP_RECORDS = 300_000
"""How many records at a time are read backwards."""
_AGAIN_SECONDS = 0.2
_LETTERS = "rcudt"


@dataclass(frozen=True, slots=True)
class Sources:
    """reconcile.protocol.Source; whole tables are read at ``reads`` (a replica, or ``primary`` itself)."""

    primary: Source
    reads: RowReader

    def scan(self, table: TableId) -> Scan:
        return self.reads.scan(table)

    def snapshot(self, tables: Sequence[TableId]) -> Snapshot:
        return self.reads.snapshot(tables)

    @contextmanager
    def settled(self, tables: Sequence[TableId]) -> Iterator[Settled]:
        position, busy = self.primary.settle(tables)
        deadline = time.monotonic() + REPLICA_SECONDS
        while True:
            with self.reads.snapshot(tables) as snapshot:
                if snapshot.position >= position:
                    yield Settled(snapshot, position, busy)
                    return
            if time.monotonic() > deadline:
                hint = "look at its replication, or leave source.replica_url out"
                raise Unavailable("the replica is too far behind the source", hint=hint)
            time.sleep(_AGAIN_SECONDS)

    def format_position(self, position: int) -> str:
        return self.primary.format_position(position)


class Sent:
    """How far the connector has sent the source's log; what it has once sent is not asked again."""

    def __init__(self, source: Capture, connect: KafkaConnect, names: Names) -> None:
        self._source = source
        self._connect = connect
        self._names = names
        self._known = -1

    def reaches(self, position: int, seconds: float) -> bool:
        """Whether it has sent all up to ``position``, or does within so long."""
        deadline = time.monotonic() + seconds
        while self._known < position:
            with suppress(Unavailable):  # It may come back within the time.
                progress = self._source.progress(self._connect.offsets(self._names.connector))
                if progress.position is not None and not progress.snapshot:
                    self._known = max(self._known, progress.position)
            if self._known < position:
                if time.monotonic() > deadline:
                    return False
                time.sleep(_AGAIN_SECONDS)
        return True


class TopicLog:
    """reconcile.protocol.Log over Kafka and Connect."""

    def __init__(self, id_: LogId, sent: Sent, kafka: Admin, reader: TopicReader, prepare: Prepare, placeholder: str) -> None:
        self.id = id_
        self.placeholder = placeholder
        self._sent = sent
        self._kafka = kafka
        self._reader = reader
        self._prepare = prepare

    def ends_after(self, position: int, seconds: float) -> Mapping[int, int] | None:
        return {p: high for p, (_, high) in self._ends().items()} if self._sent.reaches(position, seconds) else None

    def _ends(self) -> Mapping[int, tuple[int, int]]:
        facts = self._kafka.describe([self.id.topic]).get(self.id.topic)
        if facts is None or facts.log != self.id:
            raise CdcError(f"topic {self.id.topic} is gone or was made again", hint="cdc status", code="topic_gone")
        return facts.ends

    def between(self, keys: Collection[str], start: Mapping[int, int], stop: Mapping[int, int]) -> Mapping[str, Sequence[LogEvent]]:
        count = sum(max(0, stop[p] - start.get(p, 0)) for p in stop)
        if count > BETWEEN_MAX:
            message = f"{count:,} events are not merged yet, too many to tell what they change"
            raise Unavailable(message, hint="wait until the lag is smaller: cdc status", code="lag")
        return self._events(keys, {p: start.get(p, 0) for p in stop}, stop)

    def history(self, keys: Collection[str]) -> tuple[Mapping[str, Sequence[LogEvent]], bool]:
        ends = self._ends()
        start, stop = {p: low for p, (low, _) in ends.items()}, {p: high for p, (_, high) in ends.items()}
        return self._events(keys, start, stop), not any(start.values())

    def newest(self, keys: Collection[str], seconds: float) -> tuple[Mapping[str, Sequence[LogEvent]], int | None]:
        ends, deadline = self._ends(), time.monotonic() + seconds
        stop, found = {p: high for p, (_, high) in ends.items()}, dict[str, Sequence[LogEvent]]()
        step, read = STEP_RECORDS // max(1, len(ends)), 0
        while (left := set(keys) - found.keys()) and any(stop[p] > low for p, (low, _) in ends.items()):
            if time.monotonic() > deadline:
                return found, read
            start = {p: max(low, stop[p] - step) for p, (low, _) in ends.items()}
            found |= self._events(left, start, stop)
            read += sum(stop[p] - start[p] for p in ends)
            stop = start
        return found, read if left and any(stop.values()) else None

    def _events(self, keys: Collection[str], start: Mapping[int, int], stop: Mapping[int, int]) -> Mapping[str, Sequence[LogEvent]]:
        wanted, found = pa.array(sorted(keys), pa.string()), defaultdict[str, list[LogEvent]](list)
        for batch in self._batches(start, stop):
            if batch.num_rows:
                for text, event in _events(batch, wanted):
                    found[text].append(event)
        return found

    def _batches(self, start: Mapping[int, int], stop: Mapping[int, int]) -> Iterator[ChangeBatch]:
        for raw in self._reader.read(self.id.topic, start, stop):
            yield from self._prepare.changes(raw)


def _events(batch: ChangeBatch, wanted: pa.Array) -> Iterator[tuple[str, LogEvent]]:
    texts = key_text(batch.data.select(list(batch.schema.key)))
    truncations = pc.equal(batch.meta["op"], int(Op.TRUNCATE))
    chosen = pc.indices_nonzero(pc.or_(pc.is_in(texts, wanted), truncations))
    if not len(chosen):
        return
    rows, meta = batch.data.take(chosen), batch.meta.take(chosen).to_pylist()
    values = {name: value_text(rows[name].combine_chunks()).to_pylist() for name in rows.column_names}
    none = [False] * len(chosen)
    unsent = {} if batch.unsent is None else batch.unsent.take(chosen).to_pydict()
    moved = none if batch.moved is None else batch.moved.take(chosen).to_pylist()
    for i, (text, m) in enumerate(zip(texts.take(chosen).to_pylist(), meta, strict=True)):
        told = {name: column[i] for name, column in values.items() if not unsent.get(name, none)[i]}
        record = m["record"] if m["record"] > 0 else None
        event = LogEvent(m["partition"], m["offset"], record, _LETTERS[m["op"]], bool(moved[i]), told, m["source_us"])
        for key in [text] if m["op"] != int(Op.TRUNCATE) else wanted.to_pylist():
            yield key, event
