"""Design bugs put into the service, one at a time: each has to be caught by the invariants, or the simulation proves little.

A mutant replaces a small part of the code that runs; those of the merge are put into the model warehouse, which stands for SQL.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cdc_service.core import fold as fold_module
from cdc_service.core.errors import CommitUnknown, TableStopped
from cdc_service.core.identity import HINDRANCES, Judgement, Outcome
from cdc_service.core.order import Ordering
from cdc_service.core.types import Checkpoint, Delta, Op, PartitionCounts, RawBatch, Receipt
from cdc_service.core.validate import nothing_parked
from cdc_service.pipeline import commands as control_module
from cdc_service.pipeline import follower as follower_module
from cdc_service.pipeline import goals
from cdc_service.pipeline import loading as loading_module
from cdc_service.pipeline import merge_worker as merging_module
from cdc_service.pipeline import partitions as partitions_module
from cdc_service.pipeline import prepare as prepare_module
from cdc_service.pipeline import schema_versions as versions_module
from cdc_service.pipeline import table_task as table_module
from cdc_service.pipeline import watermarks as progress_module
from cdc_service.pipeline.table_state import State, flowing, going_on
from cdc_service.testing import memory
from connectors.formats import envelope
from connectors.sources.postgresql import events
from tests.simulation import group as group_module
from tests.simulation import world as world_module

Patch = tuple[Any, str, Any]
KILLED = Path(__file__).with_name("killed.json")


@dataclass(frozen=True)
class Mutant:
    name: str
    bug: str
    """What is wrong with it, for people."""
    patches: Callable[[], Sequence[Patch]]

    @contextmanager
    def applied(self) -> Iterator[None]:
        with ExitStack() as stack:
            for patch in self.patches():
                stack.enter_context(mock.patch.object(*patch))
            yield


MUTANTS: list[Mutant] = []


def mutant(name: str, bug: str) -> Callable[[Callable[[], Sequence[Patch]]], Callable[[], Sequence[Patch]]]:
    def keep(patches: Callable[[], Sequence[Patch]]) -> Callable[[], Sequence[Patch]]:
        MUTANTS.append(Mutant(name, bug, patches))
        return patches

    return keep


def _with_record(order: Callable[[pa.Table], pa.Array]) -> Patch:
    """Changes of the stream get another order."""
    real = envelope.EnvelopeDecoder.decode

    def decode(self: Any, raw: RawBatch) -> Any:
        done = []
        if raw.topic in self._reader._logs:
            return real(self, raw)  # A log of changes shows the position itself: caught at once, which would say little.
        for batch in real(self, raw):
            stream = pc.greater(batch.meta["record"], 0)
            place = batch.meta.schema.get_field_index("record")
            record = pc.if_else(stream, pc.cast(order(batch.meta), pa.int64()), batch.meta["record"])
            done.append(replace(batch, meta=batch.meta.set_column(place, batch.meta.schema.field("record"), record)))
        return done

    return envelope.EnvelopeDecoder, "decode", decode


# Order


@mutant("order by time", "changes of a key are ordered by the source's clock")
def _() -> Sequence[Patch]:
    return [_with_record(lambda meta: pc.fill_null(meta["source_us"], 1))]


@mutant("order by offset", "changes of a key are ordered by their offset in Kafka")
def _() -> Sequence[Patch]:
    return [_with_record(lambda meta: pc.add(meta["offset"], 1))]


@mutant("order by commit", "changes of a key are ordered by where their transaction's predecessor committed")
def _() -> Sequence[Patch]:
    return [_with_record(lambda meta: pc.add(pc.fill_null(meta["commit"], 0), 1))]


@mutant("no snapshot phase", "a row of the initial snapshot has the log position at which it was read")
def _() -> Sequence[Patch]:
    return [(events, "snapshot_record", lambda position: position)]


@mutant("incremental rows by position", "a row of an incremental snapshot beats every change that came before it")
def _() -> Sequence[Patch]:
    real = envelope.EnvelopeDecoder.decode

    def decode(self: Any, raw: RawBatch) -> Any:
        done = []
        for batch in real(self, raw):
            record = batch.meta["record"]
            self.high = max(getattr(self, "high", 1), pc.max(record).as_py() or 1)
            place = batch.meta.schema.get_field_index("record")
            ordered = pc.if_else(pc.equal(record, 0), self.high, record)
            done.append(replace(batch, meta=batch.meta.set_column(place, batch.meta.schema.field("record"), ordered)))
        return real(self, raw) if raw.topic in self._reader._logs else done

    return [(envelope.EnvelopeDecoder, "decode", decode)]


@mutant("positions without their minor part", "of changes that share a record one is taken for the other, come again")
def _() -> Sequence[Patch]:
    real = group_module.SharedPositions.positions

    def positions(self: Any, source: pa.StructArray) -> Any:
        commit, record, minor = real(self, source)
        return commit, record, np.zeros_like(minor)

    return [(group_module.SharedPositions, "positions", positions)]


@mutant(
    "ties are one change", "of two changes at one position the second is taken for the first, where the source says that the offset decides"
)
def _() -> Sequence[Patch]:
    wins, one_change = memory._wins, Ordering(minor=True)

    def fold(batches: Any, *, target: Any, **more: Any) -> Delta:
        unlike = replace(target, ordering=replace(target.ordering, ties=one_change.ties))
        return replace(fold_module.fold(batches, target=unlike, **more), target=target)

    return [
        (table_module, "fold", fold),
        (memory, "_wins", lambda kept, change, ordering: wins(kept, change, replace(ordering, ties=one_change.ties))),
    ]


@mutant("no version guard", "a batch writes its rows, whatever version stands in the target")
def _() -> Sequence[Patch]:
    return [(memory, "_wins", lambda kept, change, ordering: True)]


@mutant("deleted keys forgotten", "a tombstone erases the version of the key that was deleted")
def _() -> Sequence[Patch]:
    real = memory._write

    def write(kept: Any, target: Any, change: Any, values: Any) -> None:
        real(kept, target, change, values)
        if change.op is Op.DELETE and not change.moved:
            kept.deleted.pop(change.key, None)
            if change.key in kept.rows:
                kept.rows[change.key] = replace(kept.rows[change.key], version=(-1, -(2**63)))

    return [(memory, "_write", write)]


@mutant("earliest change of a batch", "of several changes of a key in one batch the first one wins")
def _() -> Sequence[Patch]:
    real = fold_module._same_as_next
    return [
        (fold_module, "_same_as_next", lambda values: fold_module._same_as_previous(values) if values.dtype == np.int64 else real(values))
    ]


# Fencing and commits


def _unfenced(check: Callable[[Any, Any, int], bool]) -> Callable[[], Sequence[Patch]]:
    """The swap of the checkpoint compares less than all."""
    real = memory.MemoryDestination.merge

    def merge(self: Any, delta: Delta, epochs: Mapping[int, int], log: Any, table: Any) -> Receipt:
        kept, mine, spans = self.kept(delta.target), dict(epochs), []
        for span in delta.spans:
            offset, epoch = kept.checkpoints.get((log, span.partition), (None, None))
            if offset is not None and check(span, offset, epoch == epochs.get(span.partition)):
                mine[span.partition] = epoch
                kept.checkpoints[log, span.partition] = (span.start, epoch)
            spans.append(span)
        return real(self, delta, mine, log, table)

    return lambda: [(memory.MemoryDestination, "merge", merge)]


MUTANTS.append(Mutant("no fence", "a batch is written whoever took the partition since", _unfenced(lambda span, offset, mine: True)))
MUTANTS.append(Mutant("epoch alone", "the swap compares the writer's epoch and not the offset", _unfenced(lambda span, offset, mine: mine)))
MUTANTS.append(
    Mutant(
        "a newer offset may be swapped",
        "the swap compares that the checkpoint is not behind, in place of equal",
        _unfenced(lambda span, offset, mine: offset >= span.start),
    )
)


@mutant("checkpoint before data", "the checkpoint is committed first, the rows after it")
def _() -> Sequence[Patch]:
    real = memory.MemoryDestination.merge

    def merge(self: Any, delta: Delta, epochs: Mapping[int, int], log: Any, table: Any) -> Receipt:
        counts = {s.partition: {"applied": s.records - s.filtered, "folded": 0, "duplicate": 0} for s in delta.spans}
        for rejected in delta.rejected:
            counts[rejected.partition]["applied"] -= 1
        nothing = dict.fromkeys(("unsent", "base", "truncation"))
        first = replace(delta, data=delta.data.slice(0, 0), meta=delta.meta.slice(0, 0), counts=counts, **nothing)
        receipt = real(self, first, epochs, log, table)
        real(self, replace(delta, spans=(), rejected=()), epochs, log, table)
        return receipt

    return [(memory.MemoryDestination, "merge", merge)]


@mutant("acknowledged before it is merged", "where reading goes on is the consumer group's offset, told when records are buffered")
def _() -> Sequence[Patch]:
    real_receive, real_open = table_module.TableTask.receive, table_module.TableTask.open

    def receive(self: Any, raw: RawBatch) -> None:
        real_receive(self, raw)
        told = self.context.topics.broker.committed
        told |= {(raw.topic, span.partition): span.stop for span in raw.spans}

    def open_(self: Any) -> Mapping[int, int]:
        begin = dict(real_open(self))
        own, told = self.partitions.own, self.context.topics.broker.committed
        for p in begin:
            at = told.get((self.config.topic, p))
            if at is not None and self.partitions.log == self.context.topics.broker.topics[self.config.topic].log:
                self.context.destination.tables[self.target].checkpoints[self.partitions.log, p] = (at, own[p].epoch)
                begin[p] = own[p].read = own[p].checkpoint = at
        return begin

    return [(table_module.TableTask, "receive", receive), (table_module.TableTask, "open", open_)]


@mutant("unknown outcome assumed done", "a lost reply to COMMIT counts as success")
def _() -> Sequence[Patch]:
    real = memory.MemoryDestination.merge

    def merge(self: Any, delta: Delta, epochs: Mapping[int, int], log: Any, table: Any) -> Receipt:
        try:
            return real(self, delta, epochs, log, table)
        except CommitUnknown:
            counts = tuple(PartitionCounts(s.partition, s.start, s.stop) for s in delta.spans)
            for s in delta.spans:  # It goes on behind them, and so does the checkpoint with its next batch.
                kept = self.kept(delta.target)
                kept.checkpoints[log, s.partition] = (s.stop, epochs[s.partition])
            return Receipt(delta.batch_id, delta.target, counts)

    def before(self: Any, target: Any) -> Any:
        return real_transaction(self, target)

    real_transaction = memory.MemoryDestination._transaction
    return [(memory.MemoryDestination, "merge", merge), (memory.MemoryDestination, "_transaction", before)]


@mutant("a state is written over", "who saves the state of a table does not look whether another one did")
def _() -> Sequence[Patch]:
    def store(kept: Any, target: Any, state: Any) -> Any:
        kept.state = replace(state, version=kept.state.version + 1)
        return kept.state

    return [(memory, "_store", store)]


# Where reading begins


def _starts(change: Callable[..., Any]) -> Callable[[], Sequence[Patch]]:
    real = table_module.starts

    def starts(table: Any, log: Any, ends: Any, partitions: Any, checkpoints: Sequence[Checkpoint], rows: Any) -> Any:
        return change(real, table, log, ends, partitions, checkpoints, rows)

    return lambda: [(table_module, "starts", starts)]


def _silently(offset: Callable[[tuple[int, int], int], int]) -> Callable[..., Any]:
    def change(real: Any, table: Any, log: Any, ends: Any, partitions: Any, checkpoints: Any, rows: Any) -> Any:
        try:
            return real(table, log, ends, partitions, checkpoints, rows)
        except TableStopped as stopped:
            if stopped.code not in ("log_truncated", "log_shrunk"):
                raise
            own = {c.partition: c.next_offset for c in checkpoints if c.log == log}
            return {p: offset(ends[p], own.get(p, 0)) for p in partitions}

    return change


MUTANTS.append(
    Mutant(
        "out of range begins at the oldest",
        "auto.offset.reset=earliest: what retention took away is skipped",
        lambda: [*_starts(_silently(lambda ends, own: max(ends[0], own)))(), _retaken()],
    )
)


def _retaken() -> Patch:
    """Taking a partition moves its checkpoint to where reading is to begin."""
    real = memory.MemoryDestination.claim

    def claim(self: Any, target: Any, log: Any, starts: Mapping[int, int], generation: int | None) -> Any:
        kept = self.kept(target)
        for p, start in starts.items():
            if (log, p) in kept.checkpoints:
                kept.checkpoints[log, p] = (start, kept.checkpoints[log, p][1])
        return real(self, target, log, starts, generation)

    return memory.MemoryDestination, "claim", claim


@mutant("a topic is known by its name", "a topic that was deleted and made again is read on as if it were the old one")
def _() -> Sequence[Patch]:
    def change(real: Any, table: Any, log: Any, ends: Any, partitions: Any, checkpoints: Any, rows: Any) -> Any:
        same = [replace(c, log=log) for c in checkpoints if c.log.topic == log.topic]
        return {p: min(start, ends[p][1]) for p, start in real(table, log, dict.fromkeys(ends, (0, 10**9)), partitions, same, rows).items()}

    def merge_one(self: Any, table: Any, topic_id: Any, found: Any) -> Any:
        return real_merge_one(self, table, topic_id if table.partitions.log is None else table.partitions.log.topic_id, found)

    def compare(self: Any, table: Any, facts: Any) -> None:
        topic = facts.topics.get(table.config.topic)
        if topic is not None and table.partitions.log is not None and topic.log != table.partitions.log and not table.state.stopped:
            table.drop()
            return
        real_compare(self, table, facts)

    real_merge_one, real_compare = merging_module.MergeWorker._merge_one, progress_module.Watermarks._compare
    return [
        *_starts(change)(),
        (merging_module.MergeWorker, "_merge_one", merge_one),
        (progress_module.Watermarks, "_compare", compare),
    ]


@mutant("rows without a checkpoint are taken for right", "a target with rows and no checkpoint is read on at the end of the log")
def _() -> Sequence[Patch]:
    def change(real: Any, table: Any, log: Any, ends: Any, partitions: Any, checkpoints: Any, rows: Any) -> Any:
        if not checkpoints and rows:
            return {p: ends[p][1] for p in partitions}
        return real(table, log, ends, partitions, checkpoints, rows)

    return _starts(change)()


# Values


@mutant("placeholder written", "the text that stands for an unsent value is written as the value")
def _() -> Sequence[Patch]:
    real = envelope.EnvelopeDecoder.__init__

    def init(self: Any, *args: Any, unavailable: str, **more: Any) -> None:
        real(self, *args, unavailable="__another__", **more)

    return [(envelope.EnvelopeDecoder, "__init__", init)]


@mutant("unsent is NULL", "a value that was not sent is written as NULL")
def _() -> Sequence[Patch]:
    return [(table_module, "fold", lambda batches, **more: _without_unsent(fold_module.fold(batches, **more)))]


def _without_unsent(delta: Delta) -> Delta:
    return replace(delta, unsent=None, base=None)


@mutant("an image of any age", "an unsent value of a changed key is taken from whatever row stands under the old key")
def _() -> Sequence[Patch]:
    def base(kept: Any, change: Any, ordering: Any) -> Any:
        row = kept.rows.get(change.base_text)
        gone = kept.deleted.get(change.base_text)
        return row.values if row is not None else gone.image if gone is not None else None

    return [(memory, "_base", base)]


@mutant("a new column without its fill", "rows older than a new column hold NULL in it, whatever they hold at the source")
def _() -> Sequence[Patch]:
    def fills(self: Any, incoming: Any) -> Any:
        return replace(incoming, columns=tuple(replace(c, default=None) for c in incoming.columns))

    return [(versions_module.SchemaVersions, "_with_fills", fills)]


# Rows that the service reads itself


@mutant("loaded rows after the stream's", "a row that was read at the source beats every change that came before it")
def _() -> Sequence[Patch]:
    return [(loading_module, "INCREMENTAL", 10**12)]


@mutant("a range is lost", "of a load the rows of one range are never read")
def _() -> Sequence[Patch]:
    real = world_module.Loaded.batches

    def batches(self: Any, columns: Any, low: str, high: str) -> Iterator[pa.RecordBatch]:
        return iter(()) if low else real(self, columns, low, high)

    return [(world_module.Loaded, "batches", batches)]


@mutant("what was planned counts as loaded", "who goes on with a load of another process takes its ranges for done")
def _() -> Sequence[Patch]:
    real = memory.MemoryDestination.load_ranges

    def ranges(self: Any, target: Any, generation: int) -> Sequence[Any]:
        return [replace(r, done=True) for r in real(self, target, generation)]

    return [(memory.MemoryDestination, "load_ranges", ranges)]


@mutant("the stream does not wait", "rows are added blindly to a target that takes the stream's meanwhile")
def _() -> Sequence[Patch]:
    def waits(self: Any) -> bool:
        return not self.has_its_rows and not self.state.stopped and not self.state.now.resync

    return [(table_module.TableTask, "waits_for_rows", property(waits))]


@mutant("added blindly for ever", "rows of a second snapshot, or beside another process, are added as if nothing else were there")
def _() -> Sequence[Patch]:
    class Blind(loading_module.Loading):
        fresh = property(lambda self: True, lambda self, value: None)  # type: ignore[assignment]

    return [(table_module, "Loading", Blind)]


# Truncation, snapshots, what may be claimed


@mutant("truncated on one partition", "TRUNCATE removes only rows that came by its own partition")
def _() -> Sequence[Patch]:
    def truncate(kept: Any, delta: Delta) -> bool:
        if delta.truncation is None:
            return False
        there = dict(kept.rows)
        again = real(kept, delta)
        kept.rows |= {key: row for key, row in there.items() if row.partition != delta.truncation.partition}
        return again

    real = memory._truncate
    return [(memory, "_truncate", truncate)]


@mutant("no truncate watermark", "older events that are still unread on other partitions bring rows back")
def _() -> Sequence[Patch]:
    def truncate(kept: Any, delta: Delta) -> bool:
        before = kept.watermark
        again = real(kept, delta)
        kept.watermark = before
        return again

    real = memory._truncate
    return [(memory, "_truncate", truncate)]


@mutant("no sweep", "the end of a resync removes nothing")
def _() -> Sequence[Patch]:
    return [(memory.MemoryDestination, "sweep", lambda self, target, generation, record: 0)]


@mutant("swept too early", "a resync ends as soon as its snapshot was asked for")
def _() -> Sequence[Patch]:
    return [(progress_module.Watermarks, "_scanned", lambda self, table, facts: True)]


@mutant("the end of a scan is not waited for", "a snapshot is complete when the connector says so, not when its rows are merged")
def _() -> Sequence[Patch]:
    real = progress_module.Watermarks._through

    def through(self: Any, table: Any, goal: Any) -> None:
        if (table.source, table.state.now.generation) in self._ends:
            self._ends[table.source, table.state.now.generation] = goal.position - 1
        real(self, table, goal)

    return [(progress_module.Watermarks, "_through", through)]


@mutant("one partition tells for all", "a table is complete when one of its partitions has passed the end")
def _() -> Sequence[Patch]:
    def passed(checkpoints: Mapping[int, int], ends: Mapping[int, int]) -> bool:
        return any(checkpoints.get(p, -1) >= end for p, end in ends.items())

    return [(goals, "passed", passed), (partitions_module, "passed", passed)]


@mutant("a second snapshot is believed", "a connector that began anew after it had streamed goes unnoticed")
def _() -> Sequence[Patch]:
    return [(table_module.TableTask, "_refuse_second_snapshot", lambda self, delta: None)]


@mutant("a snapshot begun twice is believed", "changes sent before the last attempt at the snapshot stay")
def _() -> Sequence[Patch]:
    return [(progress_module.Watermarks, "_outdated", lambda self, table: False)]


# Errors


@mutant("parked keys go on", "later records of a key are applied though an earlier one is parked")
def _() -> Sequence[Patch]:
    real = prepare_module.screen

    def screen(raw: Any, batch: Any, bounds: Any, parked: Any, refused: Any = None) -> Any:
        hidden = replace(batch, rejected=())
        kept, _ = real(raw, hidden, bounds, nothing_parked(), refused)
        return replace(kept, rejected=(*batch.rejected, *kept.rejected)), nothing_parked()

    return [(prepare_module, "screen", screen)]


@mutant("poison is dropped", "a record that cannot be decoded is skipped and stands nowhere")
def _() -> Sequence[Patch]:
    real = memory.MemoryDestination.merge

    def merge(self: Any, delta: Delta, epochs: Any, log: Any, table: Any) -> Receipt:
        lost = {p: sum(r.partition == p for r in delta.rejected) for p in {r.partition for r in delta.rejected}}
        counts = {p: {**{"applied": 0, "folded": 0, "duplicate": 0}, **delta.counts.get(p, {})} for p in {*delta.counts, *lost}}
        for p, n in lost.items():
            counts[p]["folded"] += n
        return real(self, replace(delta, rejected=(), counts=counts), epochs, log, table)

    return [(memory.MemoryDestination, "merge", merge)]


@mutant("a change is a row each time", "what the connector repeats becomes another row of a log of changes")
def _() -> Sequence[Patch]:
    return [(memory.Logged, "same", lambda self, other: False)]


@mutant(
    "a resync skips the horizon", "a resync takes the end of the log for its beginning, and leaves transactions out that were open then"
)
def _() -> Sequence[Patch]:
    real = control_module.Commands.resync

    def resync(self: Any, table: Any) -> str:
        horizon = self._source.horizon
        with mock.patch.object(type(self._source), "horizon", side_effect=lambda table: horizon(table) + 10_000):
            return real(self, table)

    return [(control_module.Commands, "resync", resync)]


# What the source became


@mutant("claims ask for no identity", "complete_through moves with the connector's position, whatever became of the table at its source")
def _() -> Sequence[Patch]:
    return [(progress_module.Watermarks, "_identify", lambda self, table, facts: True)]


@mutant("an identity of before", "the identity that an earlier look saw stands for the position of this one")
def _() -> Sequence[Patch]:
    real, seen = progress_module.Watermarks._identify, dict[Any, Any]()

    def identify(self: Any, table: Any, facts: Any) -> bool:
        place = id(self), table.source
        before, seen[place] = seen.get(place, facts.identities), facts.identities
        return real(self, table, replace(facts, identities=replace(before, position=facts.identities.position)))

    return [(progress_module.Watermarks, "_identify", identify)]


@mutant("rows ahead are taken as they come", "values that events leave out are kept in rows that were written anew meanwhile")
def _() -> Sequence[Patch]:
    return [(table_module.TableTask, "is_ahead", False), (follower_module.Follower, "identify", lambda self, run, found, *, others: None)]


@mutant("identities are names", "two identities are compared by the names of the columns alone")
def _() -> Sequence[Patch]:
    def judge(table: Any, before: Any, after: str) -> Judgement:
        mine, its = ({c["name"] for c in json.loads(one or after)["columns"]} for one in (before, after))
        return Judgement(Outcome.SAME if mine == its else Outcome.CARRIED, columns=mine != its)

    return [(world_module, "judge", judge)]


@mutant("a stop ends where it began", "a table that the source had stopped goes on at its checkpoint, without being read anew")
def _() -> Sequence[Patch]:
    real = progress_module.Watermarks._identify

    def identify(self: Any, table: Any, facts: Any) -> bool:
        stopped, good = table.state.stopped, real(self, table, facts)
        if stopped and table.versions.reload:
            table.versions.reload = ""
            now = facts.identities
            gone = dict.fromkeys(("error_code", "error_message", "error_hint"), "")
            table.state.keep(state=flowing(table.state.now), identity=now.tables[table.source], identity_at=now.position, **gone)
        return good

    return [(progress_module.Watermarks, "_identify", identify)]


@mutant("a resync keeps the identity of its end", "what the source became while rows were read anew counts as what they were read under")
def _() -> Sequence[Patch]:
    real = progress_module.Watermarks._identify

    def identify(self: Any, table: Any, facts: Any) -> bool:
        if table.state.now.resync and table.state.name == "snapshotting":
            table.state.change(identity=facts.identities.tables[table.source])
        return real(self, table, facts)

    return [(progress_module.Watermarks, "_identify", identify)]


@mutant("a stop is forgotten over a restart", "who opens a table takes the source as it is then, also where it had stopped the table")
def _() -> Sequence[Patch]:
    real = State.begin

    def begin(self: Any, kept: Any) -> None:
        real(self, kept)
        if kept.complete_through is None or kept.resync:
            return
        if kept.error_code in HINDRANCES:
            self.now = going_on(kept)
        self.change(identity="")

    return [(State, "begin", begin)]


@mutant("a resync begins where the log is held", "changes of before the source became what it is win over the rows that are read")
def _() -> Sequence[Patch]:
    return [(world_module.World, "settled", lambda self, table: -1)]


def killed() -> dict[str, dict[str, Any]]:
    """By mutant a seed whose schedule catches it, by which invariant, and how many schedules came up to it."""
    found: dict[str, dict[str, Any]] = json.loads(KILLED.read_text(encoding="utf-8")) if KILLED.exists() else {}
    return found
