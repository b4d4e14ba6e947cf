"""The contract of destinations (cdc_service.ports.destination), one suite for all of them and for the oracle."""

from __future__ import annotations

import contextlib
import importlib
import pkgutil
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import mergers.destinations
from cdc_service.core.errors import CommitUnknown, Fenced, TableStopped, Unavailable
from cdc_service.core.evolve import evolve
from cdc_service.core.logical import INFINITY, Kind, LogicalType, decimal
from cdc_service.core.order import LAST_MINOR, Ordering, Ties
from cdc_service.core.types import BASE, Column, LogId, Mode, Op, PartitionCounts, TableId, TableSchema, Truncation
from cdc_service.ports.destination import TableState, UnsentUnknown
from tests.conformance.harness import HARNESSES, ITEMS, LOG, PARAMS, Change, Feed, Harness, harness_of, number, parsed_statements, text

C, R, U, D = Op.CREATE, Op.READ, Op.UPDATE, Op.DELETE


def test_every_destination_has_a_harness() -> None:
    found = {m.name for m in pkgutil.iter_modules(mergers.destinations.__path__) if not m.name.startswith("_")}
    assert found <= set(HARNESSES)


@pytest.mark.parametrize("name", [name for name in HARNESSES if name != "memory"])
def test_each_gap_has_its_reason(name: str) -> None:
    can = importlib.import_module(f"mergers.destinations.{name}").CAPABILITIES
    whole = {"nul_in_text": can.nul_in_text, "reads_while_writing": can.reads_while_writing, "infinity": can.infinity == set(INFINITY)}
    whole["modes"] = can.modes == set(Mode)
    assert set(can.gaps) == {"ranges", *(flag for flag, holds in whole.items() if not holds)}
    assert all(can.gaps.values())


@pytest.fixture(params=PARAMS)
def harness(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Harness]:
    with parsed_statements(), harness_of(request.param, tmp_path, request) as made:
        yield made


@pytest.fixture
def destination(harness: Harness) -> Iterator[Any]:
    opened = harness.open()
    yield opened
    opened.close()


@pytest.fixture(params=[Mode.UPSERT, Mode.SOFT_DELETE])
def feed(request: pytest.FixtureRequest, destination: Any) -> Feed:
    return Feed(destination, ITEMS, mode=request.param).start()


def item(op: Op, id_: int, record: int, name: str | None = None, body: str | None = None, **more: Any) -> Change:
    return Change(op, {"id": id_, "name": name, "body": body}, record, **more)


def live(harness: Harness, feed: Feed) -> dict[int, tuple[str | None, str | None]]:
    """The rows that a reader sees: key -> (name, body)."""
    rows = harness.rows(feed.destination, feed.target, feed.own).to_pylist()
    return {row["id"]: (row["name"], row["body"]) for row in rows if not row.get("_cdc_deleted")}


def everything(harness: Harness, feed: Feed) -> tuple[Any, ...]:
    """All that a merge may change, but for clocks."""
    d, target = feed.destination, feed.target
    rows = harness.rows(d, target, feed.own).to_pylist()
    return rows, harness.ledger(d, target), harness.deleted(d, target), d.checkpoints(target), d.parked_keys(target).to_pylist()


# Changes reach rows


def test_create_update_delete(harness: Harness, feed: Feed) -> None:
    feed.apply(item(C, 1, 10, "a", "A"), item(C, 2, 11, "b", "B", partition=1), item(R, 3, -5, "c"))
    assert live(harness, feed) == {1: ("a", "A"), 2: ("b", "B"), 3: ("c", None)}
    receipt = feed.apply(item(U, 1, 20, "a2", "A2"), item(D, 2, 21, partition=1))
    assert live(harness, feed) == {1: ("a2", "A2"), 3: ("c", None)}
    assert receipt.partitions == (PartitionCounts(0, 2, 3, applied=1), PartitionCounts(1, 1, 2, applied=1))
    assert (receipt.high_commit, receipt.high_record) in ((21, 21), (None, None))
    assert feed.destination.table_rows(feed.target) == 2


def test_a_key_comes_back_after_its_delete(harness: Harness, feed: Feed) -> None:
    feed.apply(item(C, 1, 10, "a"))
    feed.apply(item(D, 1, 20))
    feed.apply(item(C, 1, 30, "again"))
    assert live(harness, feed) == {1: ("again", None)}


def test_soft_delete_keeps_the_last_values(harness: Harness, destination: Any) -> None:
    feed = Feed(destination, ITEMS, mode=Mode.SOFT_DELETE).start()
    feed.apply(item(C, 1, 10, "a", "A"))
    feed.apply(item(D, 1, 20), item(D, 9, 21))
    rows = harness.rows(destination, feed.target, feed.own).to_pylist()
    assert rows == [
        {"id": 1, "name": "a", "body": "A", "_cdc_gen": 0, "_cdc_record": 20, "_cdc_deleted": True},
        {"id": 9, "name": None, "body": None, "_cdc_gen": 0, "_cdc_record": 21, "_cdc_deleted": True},
    ]


def test_an_empty_delta_moves_the_checkpoint(harness: Harness, feed: Feed) -> None:
    receipt = feed.apply(filtered={0: 3})
    assert receipt.partitions == (PartitionCounts(0, 0, 3, filtered=3),)
    assert [c.next_offset for c in feed.destination.checkpoints(feed.target)] == [3, 0]


def test_minimal_metadata_keeps_what_the_order_needs(harness: Harness, destination: Any) -> None:
    feed = Feed(destination, ITEMS, full_metadata=False, mode=Mode.SOFT_DELETE).start()
    feed.apply(item(C, 1, 10, "a"))
    feed.apply(item(U, 1, 9, "older"), truncation=None)
    feed.apply(truncation=Truncation(0, 50, 0))
    assert destination.drift(feed.target, feed.own) == []
    assert harness.rows(destination, feed.target, feed.own).to_pylist()[0]["name"] == "a"
    assert destination.table_rows(feed.target) == 0


# Order


def test_i4_a_redelivered_tail_changes_nothing_and_counts_as_duplicate(harness: Harness, feed: Feed) -> None:
    first = [item(C, 1, 10, "a"), item(C, 2, 11, "b", partition=1)]
    second = [item(U, 1, 20, "a2"), item(D, 2, 21, partition=1)]
    feed.apply(*first)
    feed.apply(*second)
    rows, deleted = harness.rows(feed.destination, feed.target, feed.own), harness.deleted(feed.destination, feed.target)
    for again in (first, second):
        receipt = feed.apply(*again)
        assert [(p.applied, p.duplicate) for p in receipt.partitions] == [(0, 1), (0, 1)]
    assert harness.rows(feed.destination, feed.target, feed.own).equals(rows)
    assert harness.deleted(feed.destination, feed.target) == deleted


def test_i2_a_deleted_key_is_not_resurrected(harness: Harness, feed: Feed) -> None:
    feed.apply(item(D, 1, 20))
    receipt = feed.apply(item(C, 1, 10, "late"), item(C, 2, 12, "b", partition=1))
    assert live(harness, feed) == {2: ("b", None)}
    assert [p.duplicate for p in receipt.partitions] == [1, 0]


def test_i5_a_snapshot_row_never_overwrites_a_stream_event(harness: Harness, feed: Feed) -> None:
    feed.apply(item(U, 1, 3, "stream"))
    feed.apply(item(R, 1, -(2**63) + 1_000_000, "snapshot"))
    assert live(harness, feed) == {1: ("stream", None)}


def test_a_generation_beats_every_position_of_the_one_before(harness: Harness, feed: Feed) -> None:
    feed.apply(item(C, 1, 2**62, "old"))
    feed.apply(item(R, 1, 5, "new", gen=1))
    feed.apply(item(U, 1, 2**62 + 1, "old tail"))
    assert live(harness, feed) == {1: ("new", None)}


def test_i8_truncation_reaches_every_partition_and_stays(harness: Harness, feed: Feed) -> None:
    feed.apply(item(C, 1, 10, "a"), item(C, 2, 11, "b", partition=1), item(C, 3, 60, "young", partition=1))
    receipt = feed.apply(truncation=Truncation(0, 50, 0))
    assert receipt.partitions == (PartitionCounts(0, 1, 2, applied=1),)
    assert live(harness, feed) == {3: ("young", None)}
    # Older events, unread on the other partition until now, are superseded; younger ones are not.
    receipt = feed.apply(item(C, 4, 40, "old", partition=1), item(U, 2, 45, "old", partition=1), item(C, 5, 55, "new", partition=1))
    assert live(harness, feed) == {3: ("young", None), 5: ("new", None)}
    assert [(p.applied, p.duplicate) for p in receipt.partitions] == [(1, 2)]
    receipt = feed.apply(truncation=Truncation(0, 50, 0))
    assert [(p.applied, p.duplicate) for p in receipt.partitions] == [(0, 1)]


def test_truncation_and_rows_in_one_delta(harness: Harness, feed: Feed) -> None:
    feed.apply(item(C, 1, 10, "a"))
    feed.apply(item(C, 1, 60, "new"), item(U, 2, 40, "old", partition=1), truncation=Truncation(0, 50, 0))
    assert live(harness, feed) == {1: ("new", None)}


@pytest.mark.parametrize("first", [D, C])
def test_i2_i7_a_create_is_later_than_the_delete_of_the_same_record(harness: Harness, feed: Feed, first: Op) -> None:
    """A numeric key 1.50 becomes 1.5: to Kafka two keys, in two partitions, and one here."""
    feed.apply(item(C, 1, 10, "a", "A"))
    gone, there = item(D, 1, 20, moved=True), item(C, 1, 20, "b", "B", partition=1)
    for _ in range(2):
        for change in (gone, there) if first is D else (there, gone):
            feed.apply(change)
        assert live(harness, feed) == {1: ("b", "B")}
    feed.apply(item(D, 1, 30, partition=1))
    feed.apply(there)
    assert live(harness, feed) == {}


SPELLED = [(Kind.NUMERIC, "1.0", "1.00"), (Kind.FLOAT64, 0.0, -0.0), (Kind.INTERVAL, "P1M", "P30D")]


@pytest.mark.parametrize("mode", [Mode.UPSERT, Mode.SOFT_DELETE])
@pytest.mark.parametrize(("kind", "one", "other"), SPELLED, ids=[kind.value for kind, *_ in SPELLED])
def test_i2_i7_a_key_that_changes_its_spelling_alone(
    harness: Harness, destination: Any, kind: Kind, one: Any, other: Any, mode: Mode
) -> None:
    """To Kafka they are two keys, in two partitions; to the source, and to a warehouse that compares like it, one row."""
    columns = (number("id"), Column("k", LogicalType(kind)), text("v"))
    feed = Feed(destination, TableSchema(TableId("public", "spelled"), columns, ("id", "k")), mode=mode).start()
    dice, ids = random.Random(1), range(6)
    for id_ in (*ids, *ids):  # The second time all of it is redelivered.
        left = [[(C, one, 10), (D, one, 20), (C, one, 30), (D, one, 40)], [(C, other, 20), (D, other, 30), (C, other, 40)]]
        if id_ % 2:
            left[1].append((D, other, 50))
        while any(left):
            picked = [(p, part.pop(0)) for p, part in enumerate(left) if part and dice.random() < 0.6]
            feed.apply(*(Change(op, {"id": id_, "k": key, "v": str(record)}, record, partition=p) for p, (op, key, record) in picked))
    rows = harness.rows(destination, feed.target, feed.own).to_pylist()
    found = [(row["id"], str(row["k"]), row["v"]) for row in rows if not row.get("_cdc_deleted")]
    assert sorted(found) == [(id_, str(other), "40") for id_ in ids if id_ % 2 == 0]


# Checkpoints and fencing


def test_i13_a_stale_epoch_or_offset_is_fenced_and_changes_nothing(harness: Harness, feed: Feed) -> None:
    feed.apply(item(C, 1, 10, "a"), item(C, 2, 11, partition=1))
    before = everything(harness, feed)
    delta = feed.delta(item(U, 1, 20, "x"), item(U, 2, 21, "x", partition=1))
    with pytest.raises(Fenced):
        feed.destination.merge(delta, {**feed.epochs, 1: feed.epochs[1] - 1}, feed.log, feed.own)
    with pytest.raises(Fenced):
        feed.destination.merge(delta, {0: feed.epochs[0]}, feed.log, feed.own)
    with pytest.raises(Fenced):
        feed.destination.merge(delta, feed.epochs, replace(feed.log, topic_id="another"), feed.own)
    spans = (replace(delta.spans[0], start=5, stop=6), delta.spans[1])
    with pytest.raises(Fenced):
        feed.destination.merge(replace(delta, spans=spans), feed.epochs, feed.log, feed.own)
    assert everything(harness, feed) == before
    feed.merge(delta)


def test_i14_a_writer_that_wakes_up_changes_nothing(harness: Harness, feed: Feed) -> None:
    feed.apply(item(C, 1, 10, "a"))
    other = Feed(harness.open(), ITEMS, mode=feed.mode)
    other.take()
    assert other.next == {0: 1, 1: 0}
    assert min(other.epochs.values()) > max(feed.epochs.values())
    with pytest.raises(Fenced):
        feed.apply(item(U, 1, 20, "zombie"))
    other.apply(item(U, 1, 30, "other"))
    assert live(harness, other) == {1: ("other", None)}
    other.destination.close()


def test_taking_partitions_leaves_the_others_to_their_writer(harness: Harness, feed: Feed) -> None:
    other = Feed(harness.open(), ITEMS, mode=feed.mode, partitions=(1, 2), next={2: 7})
    other.take()
    assert other.next == {1: 0, 2: 7}
    feed.apply(item(C, 1, 10, "mine"))
    other.apply(item(C, 2, 10, "other", partition=2))
    with pytest.raises(Fenced):
        feed.apply(item(C, 3, 10, "gone", partition=1))
    assert live(harness, feed) == {1: ("mine", None), 2: ("other", None)}
    other.destination.close()


def test_partitions_that_are_added_begin_anew_and_the_others_go_on(harness: Harness, feed: Feed) -> None:
    feed.apply(item(C, 1, 10, "a"), item(C, 2, 11, "b", partition=1), item(C, 3, 12, "c"))
    feed.partitions = (0, 1, 2, 3)
    feed.take()
    assert feed.next == {0: 2, 1: 1, 2: 0, 3: 0}
    # A key's later changes come through another partition now; what its old one still holds is older.
    feed.apply(item(U, 1, 20, "a2", partition=3), item(D, 2, 21, partition=2), item(C, 4, 22, "d", partition=3))
    feed.apply(item(U, 1, 15, "late"), item(U, 2, 16, "late", partition=1))
    assert live(harness, feed) == {1: ("a2", None), 3: ("c", None), 4: ("d", None)}
    assert [c.next_offset for c in feed.destination.checkpoints(feed.target)] == [3, 2, 1, 2]


REAL = [param for param in PARAMS if param.values != ("memory",)]


@pytest.mark.parametrize("harness", REAL, indirect=True)
def test_i13_i14_two_live_writers_apply_each_change_once(harness: Harness) -> None:
    """Two threads on connections of their own steal the table from each other, again and again."""
    changes, fenced, failures = 150, [0, 0], list[BaseException]()
    feeds = [Feed(harness.open(), ITEMS, partitions=(0,)) for _ in range(2)]
    feeds[0].start()

    def write(me: int) -> None:
        feed, merged = feeds[me], 0
        try:
            take_again(feed)
            while (at := feed.next[0]) < changes:
                try:
                    feed.apply(*(item(U, n % 7, n + 1, str(n)) for n in range(at, min(at + 2, changes))))
                    merged += 1
                    if merged % 3 == me:
                        feed.take()
                except Fenced:
                    fenced[me] += 1
                    take_again(feed)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(me,), daemon=True) for me in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive(), "a writer did not end within 120 s"
    assert failures == []
    assert sum(fenced) > 0, "the writers never met"
    assert live(harness, feeds[0]) == {n % 7: (str(n), None) for n in range(changes - 7, changes)}
    ledger = harness.ledger(feeds[0].destination, feeds[0].target)
    spans = sorted((line["start"], line["stop"]) for line in ledger)
    assert [start for start, _ in spans] == [0, *(stop for _, stop in spans[:-1])]
    assert spans[-1][1] == changes
    assert sum(line["applied"] + line["duplicate"] for line in ledger) == changes
    for feed in feeds:
        feed.destination.close()


def take_again(feed: Feed) -> None:
    for _ in range(100):
        with contextlib.suppress(Fenced):  # DuckDB: the other one took in the same moment.
            feed.take()
            return
    raise AssertionError("the table could not be taken in a hundred tries")


@pytest.mark.parametrize("harness", REAL, indirect=True)
def test_a_huge_batch_and_its_redelivery(harness: Harness, destination: Any) -> None:
    feed = Feed(destination, ITEMS).start()
    rows = 300_000
    delta = feed.delta(*(item(C, n, n + 1, f"name {n}", "b", partition=n % 2) for n in range(rows)))
    assert [p.applied for p in feed.merge(delta).partitions] == [rows // 2, rows // 2]
    spans = tuple(replace(s, start=s.stop, stop=2 * s.stop) for s in delta.spans)
    again = feed.merge(replace(delta, spans=spans, batch_id="again"))
    assert [(p.applied, p.duplicate) for p in again.partitions] == [(0, rows // 2), (0, rows // 2)]
    assert destination.table_rows(feed.target) == rows


def test_nobody_takes_a_partition_of_a_log_that_a_resync_has_left(harness: Harness, feed: Feed) -> None:
    """Who read the state before the resync began must not bring the old log's checkpoints back."""
    old = feed.destination.load_state(feed.target).generation
    new_log = LogId("cluster", LOG.topic, "topic-2")
    begin_anew(feed, new_log, {0: 0, 1: 0})
    before = feed.destination.checkpoints(feed.target)
    with pytest.raises(Fenced):
        feed.destination.claim(feed.target, LOG, {0: 3, 1: 4}, old)
    assert feed.destination.checkpoints(feed.target) == before


def test_epochs_grow_even_after_the_checkpoints_were_forgotten(harness: Harness, feed: Feed) -> None:
    before = dict(feed.epochs)
    new_log = LogId("cluster", LOG.topic, "topic-2")
    begin_anew(feed, new_log, {0: 3, 1: 4})
    assert [(c.log, c.partition, c.next_offset) for c in feed.destination.checkpoints(feed.target)] == [(new_log, 0, 3), (new_log, 1, 4)]
    assert min(c.epoch for c in feed.destination.checkpoints(feed.target)) > max(before.values())
    with pytest.raises(Fenced):
        feed.apply(item(C, 1, 10, "of the old log"))


def begin_anew(feed: Feed, log: LogId, starts: dict[int, int], *, retire: bool = False) -> TableState:
    d = feed.destination
    kept = d.load_state(feed.target)
    state = TableState("snapshotting", kept.generation + 1, 5, starts, True, version=kept.version)
    begun: TableState = d.begin_anew(feed.target, log, starts, state, retire=retire)
    assert d.load_state(feed.target) == begun == replace(state, version=kept.version + 1)
    return begun


def rich_delta(feed: Feed) -> Any:
    """A delta that goes through every statement of a merge."""
    feed.apply(item(C, 1, 10, "a", "A"), item(C, 2, 11, "b", "B"), item(C, 3, 12, "c", "C"), item(C, 4, 13, "d", "D"))
    feed.apply(item(D, 4, 20, moved=True))
    return feed.delta(
        item(U, 1, 30, "a2", unsent=("body",)),
        item(D, 2, 31),
        item(C, 5, 20, "d", partition=1, unsent=("body",), base={"id": 4}, move=20),
        item(D, 3, 33, moved=True),
        item(U, 9, 1, "below the truncation", partition=1),
        truncation=Truncation(0, 5, 0),
        rejected=[(0, '["77"]'), (1, None)],
        filtered={1: 2},
    )


@pytest.mark.parametrize("after", [False, True], ids=["crash", "lost reply"])
def test_i12_i15_a_crash_at_any_step_leaves_all_or_nothing(harness: Harness, feed: Feed, after: bool) -> None:
    delta = rich_delta(feed)
    before = everything(harness, feed)
    crashes = 0
    for call in range(200):
        with harness.crash_at(feed.destination, call, after=after) as calls:
            try:
                feed.merge(delta)
            except (Unavailable, CommitUnknown):
                crashes += 1
        if calls[0] <= call:
            break
        if everything(harness, feed) != before:
            break
    else:
        raise AssertionError("the merge never ended")
    assert crashes >= 6
    after = everything(harness, feed)
    assert [c.next_offset for c in after[3]] == [delta.spans[0].stop, delta.spans[1].stop]
    assert live(harness, feed) == {1: ("a2", "A"), 5: ("d", "D")}
    assert after[4] == ['["77"]']
    with pytest.raises(Fenced):
        feed.destination.merge(delta, feed.epochs, feed.log, feed.own)


def test_i21_the_account_closes(harness: Harness, feed: Feed) -> None:
    delta = rich_delta(feed)
    feed.merge(delta)
    rows = harness.ledger(feed.destination, feed.target)[-2:]
    counted = [sum(row[n] for n in ("applied", "folded", "duplicate", "parked", "filtered")) for row in rows]
    assert counted == [span.records for span in delta.spans]
    assert [(row["parked"], row["filtered"]) for row in rows] == [(1, 0), (1, 2)]
    before = everything(harness, feed)
    wrong = feed.delta(item(C, 70, 70))
    with pytest.raises(Exception, match="account"):
        feed.merge(replace(wrong, spans=(replace(wrong.spans[0], records=2),)))
    assert everything(harness, feed) == before


# Unsent values


def test_i11_unsent_values_come_from_the_row_itself(harness: Harness, feed: Feed) -> None:
    feed.apply(item(C, 1, 10, "a", "long"), item(C, 2, 11, "b", None))
    feed.apply(item(U, 1, 20, "a2", unsent=("body",)), item(U, 2, 21, unsent=("body", "name")), item(C, 3, 22, "c", "C"))
    assert live(harness, feed) == {1: ("a2", "long"), 2: ("b", None), 3: ("c", "C")}


def test_i11_unsent_values_follow_a_key_change_in_one_delta(harness: Harness, feed: Feed) -> None:
    feed.apply(item(C, 1, 10, "a", "long"))
    feed.apply(item(D, 1, 20, moved=True), item(C, 2, 20, "a", unsent=("body",), base={"id": 1}))
    assert live(harness, feed) == {2: ("a", "long")}


def test_i11_unsent_values_follow_a_key_change_over_two_deltas(harness: Harness, feed: Feed) -> None:
    feed.apply(item(C, 1, 10, "a", 'it\'s "long" \\ \n'))
    feed.apply(item(D, 1, 20, moved=True))
    feed.apply(item(C, 1, 30, "another", "row"))
    feed.apply(item(U, 2, 25, "a2", partition=1, unsent=("body",), base={"id": 1}, move=20))
    assert live(harness, feed) == {1: ("another", "row"), 2: ("a2", 'it\'s "long" \\ \n')}


def test_i11_the_new_half_first_is_not_filled_from_a_row_that_may_be_stale(harness: Harness, feed: Feed) -> None:
    feed.apply(item(C, 1, 10, "a", "stale"))
    before = everything(harness, feed)
    with pytest.raises(UnsentUnknown) as caught:
        feed.apply(item(C, 2, 20, "a", partition=1, unsent=("body",), base={"id": 1}, move=20), item(C, 3, 21, "c", "C", partition=1))
    assert caught.value.keys.to_pylist() == [{"id": 2}]
    assert caught.value.columns == ("body",)
    assert everything(harness, feed) == before
    feed.apply(item(C, 2, 20, "a", "read again", partition=1), item(C, 3, 21, "c", "C", partition=1))
    assert live(harness, feed) == {1: ("a", "stale"), 2: ("a", "read again"), 3: ("c", "C")}


# Changes that share a position


@pytest.fixture(params=[Mode.UPSERT, Mode.SOFT_DELETE], ids=str)
def shared(request: pytest.FixtureRequest, destination: Any) -> Callable[[Ties], Feed]:
    """A feed without the metadata that can be left out, of a source whose positions have a second part."""
    return lambda ties: Feed(destination, ITEMS, mode=request.param, full_metadata=False, ordering=Ordering(True, ties)).start()


def test_i32_changes_of_one_record_are_ordered_by_their_minor_part(harness: Harness, shared: Callable[[Ties], Feed]) -> None:
    feed = shared(Ties.SAME_CHANGE)
    feed.apply(item(C, 1, 10, "a", "A"), item(C, 2, 10, "b", "B", partition=1, minor=1))
    feed.apply(item(U, 1, 10, "late", "L", minor=3))
    feed.apply(item(U, 1, 10, "early", "E", minor=2))
    assert live(harness, feed) == {1: ("late", "L"), 2: ("b", "B")}
    feed.apply(item(U, 1, 10, "later", minor=4, unsent=("body",)))
    assert live(harness, feed)[1] == ("later", "L")
    feed.apply(item(D, 1, 10, minor=6))
    for again in (item(C, 1, 10, "before", minor=5), item(D, 1, 10, minor=6), item(U, 1, 10, "later", minor=4)):
        feed.apply(again)
        assert live(harness, feed) == {2: ("b", "B")}
    feed.apply(item(C, 1, 10, "new", "N", minor=7))
    assert live(harness, feed) == {1: ("new", "N"), 2: ("b", "B")}


def test_i32_of_two_changes_at_one_position_the_later_in_the_log_wins_where_the_source_says_so(
    harness: Harness, shared: Callable[[Ties], Feed]
) -> None:
    feed = shared(Ties.OFFSET)
    feed.apply(item(C, 1, 10, "a", "A"))
    feed.apply(item(U, 1, 10, "b", unsent=("body",)))
    assert live(harness, feed) == {1: ("b", "A")}
    feed.apply(item(D, 1, 10))
    assert live(harness, feed) == {}
    feed.apply(item(C, 1, 10, "c", "C"))
    assert live(harness, feed) == {1: ("c", "C")}
    feed.apply(item(U, 1, 9, "old", "O"))
    assert live(harness, feed) == {1: ("c", "C")}
    # Offsets of two partitions do not compare: a key that changed its spelling alone is there.
    feed.apply(item(D, 1, 10, partition=1, moved=True))
    assert live(harness, feed) == {1: ("c", "C")}


def test_i32_what_was_read_at_a_position_stands_behind_all_changes_there(harness: Harness, shared: Callable[[Ties], Feed]) -> None:
    feed = shared(Ties.OFFSET)
    feed.apply(item(U, 1, 10, "read", "R", minor=LAST_MINOR))
    feed.apply(item(U, 1, 10, "change", "C", minor=5))
    assert live(harness, feed) == {1: ("read", "R")}


def test_i11_a_row_that_came_by_another_partition_is_not_the_base(harness: Harness, feed: Feed) -> None:
    """Partitions were added, so that a key's changes are on two: later ones of the first may not be read yet."""
    feed.apply(item(C, 1, 10, "a", "long"), item(C, 2, 11, "b", "B", partition=1))
    delta = feed.delta(*(item(U, id_, 20 + id_, unsent=("body",), partition=1) for id_ in (1, 2)))
    assert delta.base is not None
    about = delta.base.about.set_column(3, BASE.field("partition"), delta.meta["partition"])
    with pytest.raises(UnsentUnknown) as caught:
        feed.merge(replace(delta, base=replace(delta.base, about=about)))
    assert caught.value.keys.to_pylist() == [{"id": 1}]
    feed.apply(item(D, 1, 30, partition=1, moved=True), item(D, 2, 31, partition=1, moved=True))
    feed.apply(item(C, 12, 31, "moved", unsent=("body",), base={"id": 2}, move=31))
    with pytest.raises(UnsentUnknown):
        feed.apply(item(C, 11, 30, "moved", unsent=("body",), base={"id": 1}, move=30))
    assert live(harness, feed) == {12: ("moved", "B")}


def test_i11_a_base_row_that_is_younger_is_not_the_base(harness: Harness, feed: Feed) -> None:
    """The old key was used again, and that is applied already: what stands under it is another row."""
    feed.apply(item(C, 1, 30, "another", "row"))
    with pytest.raises(UnsentUnknown):
        feed.apply(item(C, 2, 20, "a", partition=1, unsent=("body",), base={"id": 1}))
    assert live(harness, feed) == {1: ("another", "row")}


def test_i11_under_a_key_that_was_left_and_used_again_stands_no_base(harness: Harness, feed: Feed) -> None:
    """1 -> 2 at 20, 1 made anew at 30, 2 -> 3 at 40; the tail comes again, and only the last change is news."""
    feed.apply(item(C, 1, 10, "a", "right"))
    feed.apply(item(D, 1, 20, moved=True), item(C, 2, 20, "a", unsent=("body",), base={"id": 1}))
    feed.apply(item(C, 1, 30, "another", "wrong"))
    before = everything(harness, feed)
    with pytest.raises(UnsentUnknown):
        feed.apply(item(D, 2, 40), item(C, 1, 30, "another", "wrong"), item(C, 3, 40, "a", unsent=("body",), base={"id": 1}, left=20))
    assert everything(harness, feed) == before


def test_i11_a_row_from_before_a_resync_is_no_base(harness: Harness, feed: Feed) -> None:
    """It may have been wrong, or changes of it were skipped; the resync's own row may come later, and then loses."""
    feed.apply(item(C, 1, 10, "a", "stale"), item(C, 2, 11, "b", "stale"))
    feed.apply(item(D, 2, 12, moved=True))
    with pytest.raises(UnsentUnknown):
        feed.apply(item(U, 1, 20, "a2", unsent=("body",), gen=1))
    with pytest.raises(UnsentUnknown):
        feed.apply(item(C, 3, 12, "b", partition=1, unsent=("body",), base={"id": 2}, move=12, gen=1))
    feed.apply(item(R, 1, 0, "a", "fresh", gen=1))
    feed.apply(item(U, 1, 20, "a2", unsent=("body",), gen=1))
    assert live(harness, feed)[1] == ("a2", "fresh")


@pytest.mark.parametrize("gone", ["never", "deleted", "truncated"])
def test_i11_no_row_to_fill_from_is_said_and_nothing_applied(harness: Harness, feed: Feed, gone: str) -> None:
    if gone != "never":
        feed.apply(item(C, 1, 10, "a", "A"))
    if gone == "deleted":
        feed.apply(item(D, 1, 11))
    if gone == "truncated":
        feed.apply(truncation=Truncation(0, 15, 0))
    before = everything(harness, feed)
    with pytest.raises(UnsentUnknown):
        feed.apply(item(U, 1, 20, "a", unsent=("body",)))
    assert everything(harness, feed) == before


def test_i11_a_loser_needs_no_values(harness: Harness, feed: Feed) -> None:
    feed.apply(item(C, 1, 30, "a", "A"))
    receipt = feed.apply(item(U, 1, 20, "late", unsent=("body",)), item(D, 2, 5))
    assert [(p.applied, p.duplicate) for p in receipt.partitions] == [(1, 1)]
    assert live(harness, feed) == {1: ("a", "A")}


# Schema


def test_i9_a_new_column_gives_old_rows_its_default(harness: Harness, feed: Feed) -> None:
    feed.apply(item(C, 1, 10, "a", "A"))
    wide = TableSchema(ITEMS.table, (*ITEMS.columns, number("stock", default=7), text("note")), ITEMS.key)
    feed.evolve(wide)
    assert [row["stock"] for row in harness.rows(feed.destination, feed.target, feed.own).to_pylist()] == [7]
    feed.apply(Change(U, {"id": 1, "name": "a", "body": "A", "stock": None, "note": "n"}, 20), schema=wide)
    # Rows of the older schema, late from another partition: an existing row keeps its value, a new one takes the default.
    feed.apply(item(U, 1, 30, "a3", "A3"), item(C, 2, 31, "b", partition=1), schema=ITEMS)
    rows = harness.rows(feed.destination, feed.target, feed.own).to_pylist()
    assert [(r["name"], r["stock"], r["note"]) for r in rows] == [("a3", None, "n"), ("b", 7, None)]


@pytest.mark.parametrize(
    ("type_", "default"),
    [
        (LogicalType(Kind.BOOL), True),
        (decimal(10, 2), Decimal("-1.50")),
        (LogicalType(Kind.STRING), 'it\'s "so"; -- é\n'),
        (LogicalType(Kind.BYTES), b"\x00'\xff"),
        (LogicalType(Kind.TIMESTAMPTZ), 2**63 - 1),
        (LogicalType(Kind.DATE), 10),
        (LogicalType(Kind.FLOAT64), 0.1),
        (LogicalType(Kind.UUID), "6f1e2d3c-0000-4000-8000-000000000001"),
        (LogicalType(Kind.JSON), '{"a": [1, "b\'"]}'),
        (LogicalType(Kind.ARRAY, element=LogicalType(Kind.STRING)), ["a,b", None, "'"]),
    ],
    ids=str,
)
def test_defaults_of_every_kind_reach_old_rows_exactly(harness: Harness, destination: Any, type_: LogicalType, default: Any) -> None:
    feed = Feed(destination, ITEMS).start()
    feed.apply(item(C, 1, 10, "a"))
    wide = TableSchema(ITEMS.table, (*ITEMS.columns, Column("extra", type_, default=default)), ITEMS.key)
    feed.evolve(wide)
    feed.apply(item(C, 2, 20, "b"), schema=ITEMS)
    expected = pa.array([default, default], type_.arrow)
    assert harness.rows(destination, feed.target, feed.own)["extra"].combine_chunks().equals(expected)
    assert destination.schemas(feed.target)[-1] == wide


def test_i9_types_widen_and_keep_their_values(harness: Harness, destination: Any) -> None:
    def schema(*types: LogicalType) -> TableSchema:
        return TableSchema(TableId("s", "w"), (number("id"), *(Column(f"c{i}", t) for i, t in enumerate(types))), ("id",))

    narrow = schema(LogicalType(Kind.INT16), LogicalType(Kind.FLOAT32), decimal(5, 1), LogicalType(Kind.INT32))
    wide = schema(LogicalType(Kind.INT64), LogicalType(Kind.FLOAT64), decimal(20, 4), decimal(12, 2))
    feed = Feed(destination, narrow).start()
    feed.apply(Change(C, {"id": 1, "c0": -32768, "c1": 0.5, "c2": Decimal("-9999.9"), "c3": 2**31 - 1}, 1))
    feed.evolve(wide)
    feed.evolve(wide)
    feed.apply(Change(C, {"id": 2, "c0": 2**62, "c1": 0.1, "c2": Decimal("0.0001"), "c3": Decimal("1.25")}, 2), schema=wide)
    feed.apply(Change(U, {"id": 1, "c0": 5, "c1": 0.25, "c2": Decimal("1.5"), "c3": 7}, 3, partition=1), schema=narrow)
    rows = harness.rows(destination, feed.target, feed.own).to_pylist()
    assert [tuple(r[f"c{i}"] for i in range(4)) for r in rows] == [
        (5, 0.25, Decimal("1.5000"), Decimal("7.00")),
        (2**62, 0.1, Decimal("0.0001"), Decimal("1.25")),
    ]
    assert destination.drift(feed.target, feed.own) == []


def test_i9_a_dropped_column_stays_and_becomes_null(harness: Harness, feed: Feed) -> None:
    feed.apply(item(C, 1, 10, "a", "A"), item(C, 2, 11, "b", "B"))
    narrow = TableSchema(ITEMS.table, ITEMS.columns[:2], ITEMS.key)
    feed.evolve(narrow)
    assert feed.own.column("body").dropped
    feed.apply(Change(U, {"id": 1, "name": "a2"}, 20), schema=narrow)
    assert live(harness, feed) == {1: ("a2", None), 2: ("b", "B")}


@pytest.mark.parametrize("type_", [Kind.INT16, Kind.INT32, Kind.INT64])
def test_i9_a_dropped_column_that_comes_back_is_live(harness: Harness, destination: Any, type_: Kind) -> None:
    """With the type that it had, a narrower and a wider one."""
    key, last = number("id"), number("last")
    first = TableSchema(ITEMS.table, (key, Column("n", LogicalType(Kind.INT32)), last), ITEMS.key)
    narrow = TableSchema(ITEMS.table, (key, last), ITEMS.key)
    again = TableSchema(ITEMS.table, (key, last, Column("n", LogicalType(type_))), ITEMS.key)
    feed = Feed(destination, first).start()
    feed.apply(Change(C, {"id": 1, "n": 10, "last": 1}, 1), Change(C, {"id": 2, "n": 20, "last": 1}, 2))
    feed.evolve(narrow)
    feed.apply(Change(U, {"id": 1, "last": 2}, 3), schema=narrow)
    assert feed.own.column("n").dropped
    feed.evolve(again)
    assert not feed.own.column("n").dropped
    assert feed.own.column("n").type.kind is (Kind.INT64 if type_ is Kind.INT64 else Kind.INT32)
    assert destination.drift(feed.target, feed.own) == []
    feed.apply(Change(C, {"id": 3, "n": 30, "last": 3}, 4), schema=again)
    rows = harness.rows(destination, feed.target, feed.own).to_pylist()
    assert {row["id"]: row["n"] for row in rows} == {1: None, 2: 20, 3: 30}
    # A change of key takes the column along again, though its value is not sent.
    feed.apply(Change(D, {"id": 3}, 5, moved=True), schema=again)
    feed.apply(Change(C, {"id": 4, "last": 4}, 5, unsent=("n",), base={"id": 3}, move=5), schema=again)
    assert {row["id"]: row["n"] for row in harness.rows(destination, feed.target, feed.own).to_pylist()} == {1: None, 2: 20, 4: 30}


def test_i9_late_rows_of_before_a_drop_and_after_it_are_each_written_under_their_own_version(harness: Harness, feed: Feed) -> None:
    narrow = TableSchema(ITEMS.table, ITEMS.columns[:2], ITEMS.key)
    feed.apply(item(C, 1, 10, "a", "A"), item(C, 2, 11, "b", "B"))
    for record in (20, 30):
        feed.evolve(narrow)
        feed.apply(Change(U, {"id": 1, "name": "a2"}, record), schema=narrow)
        assert feed.own.column("body").dropped
        feed.evolve(ITEMS)
        feed.apply(item(U, 2, record + 1, "b", f"B{record}", partition=1))
    assert live(harness, feed) == {1: ("a2", None), 2: ("b", "B30")}
    # The version before a column was added does not drop the column, whatever else it restores.
    wide = TableSchema(ITEMS.table, (*narrow.columns, number("stock", default=7)), ITEMS.key)
    feed.evolve(wide)
    feed.evolve(ITEMS)
    assert [(c.name, c.dropped) for c in feed.own.columns] == [("id", False), ("name", False), ("body", False), ("stock", False)]


def test_evolving_twice_records_one_version(harness: Harness, feed: Feed) -> None:
    wide = TableSchema(ITEMS.table, (*ITEMS.columns, number("stock", default=7)), ITEMS.key)
    for _ in range(2):
        feed.evolve(wide)
    assert feed.destination.schemas(feed.target) == [ITEMS, wide]
    assert harness.open().schemas(feed.target) == [ITEMS, wide]


@pytest.mark.parametrize("after", [False, True], ids=["crash", "lost reply"])
def test_an_interrupted_evolution_ends_the_same(harness: Harness, feed: Feed, after: bool) -> None:
    feed.apply(item(C, 1, 10, "a"))
    wide = TableSchema(ITEMS.table, (*ITEMS.columns, number("stock", default=7), text("note")), ITEMS.key)
    for call in range(30):
        with harness.crash_at(feed.destination, call, after=after) as calls:
            try:
                feed.evolve(wide)
            except (Unavailable, CommitUnknown):
                continue
        if calls[0] <= call:
            break
    assert feed.own == wide
    assert feed.destination.drift(feed.target, wide) == []
    assert [row["stock"] for row in harness.rows(feed.destination, feed.target, wide).to_pylist()] == [7]


HOSTILE = ("select", 'a"b', "semi;colon --", "ünïcödé ☃", "c0", "s", "with space", "'", "%s", "?", "{x}", "n", "offset", "$1", "\\", "key")


def test_hostile_identifiers(harness: Harness, destination: Any) -> None:
    columns = tuple(text(name) for name in HOSTILE)
    schema = TableSchema(TableId('we"ird', 'or"der; drop'), columns, ('a"b', "select"))
    feed = Feed(destination, schema).start()
    feed.apply(Change(C, {name: f"1 {name}" for name in HOSTILE}, 1), Change(C, {name: f"2 {name}" for name in HOSTILE}, 2))
    key = {'a"b': '1 a"b', "select": "1 select"}
    feed.apply(Change(U, {**key, "?": "new"}, 3, unsent=tuple(n for n in HOSTILE if n not in ("?", 'a"b', "select"))))
    feed.apply(Change(D, {**key, "?": None}, 4, moved=True))
    moved = {'a"b': "3", "select": "3"}
    feed.apply(Change(C, {**moved, "?": "moved"}, 4, unsent=tuple(n for n in HOSTILE if n not in ("?", 'a"b', "select")), base=key, move=4))
    rows = harness.rows(destination, feed.target, feed.own).to_pylist()
    rest = {name: f"1 {name}" for name in HOSTILE}
    assert {name: rows[1][name] for name in HOSTILE} == {**rest, **moved, "?": "moved"}
    feed.evolve(TableSchema(schema.table, (*columns, text('new"; --', default="'")), schema.key))
    assert harness.rows(destination, feed.target, feed.own)['new"; --'].to_pylist() == ["'", "'"]


def test_400_columns(harness: Harness, destination: Any) -> None:
    columns = (number("id"), *(text(f"column {i}") for i in range(400)))
    feed = Feed(destination, TableSchema(TableId("public", "wide"), columns, ("id",)), mode=Mode.SOFT_DELETE).start()
    feed.apply(Change(C, {"id": 1, **{f"column {i}": str(i) for i in range(400)}}, 1))
    feed.apply(Change(U, {"id": 1}, 2, unsent=tuple(f"column {i}" for i in range(400))))
    feed.apply(Change(D, {"id": 1}, 3, moved=True))
    feed.apply(Change(C, {"id": 2}, 3, unsent=tuple(f"column {i}" for i in range(400)), base={"id": 1}, move=3))
    assert [r["column 399"] for r in harness.rows(destination, feed.target, feed.own).to_pylist()] == ["399", "399"]


def test_columns_that_clash_are_refused(harness: Harness, destination: Any) -> None:
    destination.prepare()
    for name in ("ID", "_cdc_GEN"):
        schema = TableSchema(TableId("public", f"clash of {name}"), (number("id"), text(name)), ("id",))
        if destination.fold(name) in (destination.fold("id"), destination.fold("_cdc_gen")):
            with pytest.raises(TableStopped, match=name):
                Feed(destination, schema).evolve(schema)
        else:
            Feed(destination, schema).start().apply(Change(C, {"id": 1, name: "x"}, 1))


# The rest of the contract


def test_sweep_removes_what_a_resync_did_not_see(harness: Harness, feed: Feed) -> None:
    feed.apply(item(C, 1, 10, "gone"), item(C, 2, 11, "seen"), item(C, 3, 200, "touched later"))
    feed.apply(item(R, 2, 100, "seen", gen=1))
    feed.apply(item(U, 3, 201, "touched later", gen=1), item(C, 5, 150, "new", gen=1))
    assert feed.destination.sweep(feed.target, 1, 100) == 1
    assert sorted(live(harness, feed)) == [2, 3, 5]
    assert feed.destination.sweep(feed.target, 1, 100) == 0
    # What the source did to a swept key before the resync does not bring it back; what it does afterwards does.
    feed.apply(item(U, 1, 90, "old tail", gen=0), item(U, 5, 151, "newer", gen=1))
    assert sorted(live(harness, feed)) == [2, 3, 5]
    feed.apply(item(C, 1, 300, "again", gen=1))
    assert live(harness, feed)[1] == ("again", None)


def test_sweep_at_the_lowest_position(harness: Harness, feed: Feed) -> None:
    feed.apply(item(C, 1, 10, "gone"), item(R, 2, -(2**63), "seen", gen=1))
    assert feed.destination.sweep(feed.target, 1, -(2**63)) == 1
    assert sorted(live(harness, feed)) == [2]


def test_sweep_by_generation_keeps_incremental_rows_and_nothing_older_comes_back(harness: Harness, feed: Feed) -> None:
    feed.apply(item(C, 1, 10, "gone"), item(R, 2, -5, "gone too"), item(C, 3, 2**63 - 2, "gone", partition=1), item(C, 4, 12, "old"))
    feed.apply(item(D, 4, 13))
    feed.apply(item(R, 5, 0, "read again", gen=1), item(C, 6, 150, "new", gen=1), item(R, 7, -(2**63), "lowest", gen=1))
    assert feed.destination.sweep(feed.target, 1, -(2**63)) == 3
    assert live(harness, feed) == {5: ("read again", None), 6: ("new", None), 7: ("lowest", None)}
    again = feed.apply(item(U, 1, 99, "late"), item(C, 3, 2**63 - 2, "late", partition=1), item(C, 8, 99, "late"), item(C, 4, 14, "late"))
    assert [(p.applied, p.duplicate) for p in again.partitions] == [(0, 3), (0, 1)]
    assert live(harness, feed) == {5: ("read again", None), 6: ("new", None), 7: ("lowest", None)}
    assert feed.destination.sweep(feed.target, 1, -(2**63)) == 0
    assert feed.destination.sweep(feed.target, 0, 50) == 0
    feed.apply(item(C, 9, 2**62, "late"), item(U, 5, 7, "changed", gen=1))
    assert live(harness, feed) == {5: ("changed", None), 6: ("new", None), 7: ("lowest", None)}
    rows = harness.rows(feed.destination, feed.target, feed.own).to_pylist()
    assert [(row["id"], row["_cdc_deleted"]) for row in rows if row.get("_cdc_deleted")] == (
        [(n, True) for n in (1, 2, 3, 4)] if feed.mode is Mode.SOFT_DELETE else []
    )


def test_of_two_readings_of_an_incremental_snapshot_the_later_one_stays(harness: Harness, feed: Feed) -> None:
    """A scan may end in the generation of the next one; between the two the source may have changed in a way that no event tells."""
    feed.apply(item(R, 1, 0, "first", gen=1), item(C, 2, 10, "changed", gen=1))
    feed.apply(item(R, 1, 0, "later", gen=1), item(R, 2, 0, "later", gen=1))
    assert live(harness, feed) == {1: ("later", None), 2: ("changed", None)}
    feed.apply(item(D, 1, 11, gen=1))
    feed.apply(item(R, 1, 0, "late", gen=1))
    assert live(harness, feed) == {2: ("changed", None)}


def test_i5_ghosts_of_a_snapshot_that_was_begun_twice_are_swept_for_ever(harness: Harness, feed: Feed) -> None:
    first, second = -(2**63) + 1_000, -(2**63) + 2_000
    assert feed.destination.highest_snapshot() is None
    ghost = item(R, 1, first, "ghost")
    feed.apply(ghost, item(R, 2, first, "kept"), item(R, 3, first, "kept", partition=1))
    assert feed.destination.highest_snapshot() == first
    feed.apply(item(R, 2, second, "kept"), item(R, 3, second, "kept", partition=1))
    # No row of the second attempt is left, and the attempt is known all the same.
    feed.apply(item(U, 2, 3_000, "streamed"), item(D, 3, 3_001, partition=1))
    assert feed.destination.highest_snapshot() == second
    assert harness.open().highest_snapshot() == second
    assert feed.destination.sweep(feed.target, 0, second) == 1
    assert live(harness, feed) == {2: ("streamed", None)}
    feed.apply(ghost)
    assert live(harness, feed) == {2: ("streamed", None)}
    feed.apply(item(C, 1, 3_002, "made again"))
    assert live(harness, feed) == {1: ("made again", None), 2: ("streamed", None)}


def test_a_retired_table_is_made_anew_under_another_key(harness: Harness, feed: Feed) -> None:
    d, target = feed.destination, feed.target
    other = Feed(d, replace(ITEMS, table=TableId("public", "others")), mode=feed.mode, log=replace(LOG, topic_id="t2")).start()
    other.apply(item(C, 1, 10, "stays"), item(D, 2, 11, moved=True), rejected=[(1, '["6"]')])
    feed.apply(item(C, 1, 10, "a", "A"), item(D, 2, 11, moved=True), rejected=[(1, '["5"]')])
    ledger, left = harness.ledger(d, target), everything(harness, other)
    for _ in range(2):
        begin_anew(feed, LOG, {0: 7, 1: 8}, retire=True)
        assert d.table_rows(target) is None
        assert (d.schemas(target), harness.deleted(d, target), d.parked_keys(target).to_pylist()) == ([], {}, [])
        assert harness.ledger(d, target) == ledger
        assert d.totals(target).counts["parked"] == 1
        assert {c.partition: c.next_offset for c in d.checkpoints(target)} == {0: 7, 1: 8}
    assert everything(harness, other) == left
    schema = TableSchema(ITEMS.table, (text("id"), text("name")), ("name",))
    feed.schema = schema
    feed.evolve(schema)
    assert d.drift(target, schema) == []
    feed.take().apply(Change(R, {"id": "x", "name": "a"}, 0, gen=1))
    assert [row["id"] for row in harness.rows(d, target, feed.own).to_pylist()] == ["x"]


def test_who_knows_a_table_of_before_it_was_made_anew_changes_nothing_of_it(harness: Harness, feed: Feed) -> None:
    """A new table counts its versions from the first again: a writer that slept takes them for those that it knows."""
    d, target = feed.destination, feed.target
    make = evolve((), ITEMS)
    late = evolve((feed.own,), TableSchema(ITEMS.table, (*ITEMS.columns, text("late")), ITEMS.key))
    begin_anew(feed, LOG, dict(feed.next), retire=True)
    with pytest.raises(Fenced):
        d.evolve(target, *make, 0)
    assert d.table_rows(target) is None
    made = TableSchema(ITEMS.table, (text("id"), text("name")), ("name",))
    d.evolve(target, *evolve((), made), 1)
    with pytest.raises(Fenced):
        d.evolve(target, *late, 0)
    assert [(s.version, s) for s in d.schemas(target)] == [(1, made)]
    assert d.drift(target, made) == []
    wide = TableSchema(ITEMS.table, (*made.columns, text("more")), made.key)
    d.evolve(target, *evolve((replace(made, version=1),), wide), 1)
    assert d.schemas(target)[-1].names == wide.names


def test_a_table_that_the_service_did_not_make_is_not_dropped(harness: Harness, destination: Any) -> None:
    feed = Feed(destination, ITEMS)
    destination.prepare()
    begin_anew(feed, LOG, {0: 0}, retire=True)
    assert destination.table_rows(feed.target) is None


@pytest.mark.parametrize("after", [False, True], ids=["crash", "lost reply"])
@pytest.mark.parametrize("retire", [False, True])
def test_a_resync_begins_whole_or_not_at_all(harness: Harness, feed: Feed, retire: bool, after: bool) -> None:
    d, target = feed.destination, feed.target
    feed.apply(item(C, 1, 10, "a"), item(D, 2, 11, moved=True), rejected=[(0, '["5"]')])
    before = everything(harness, feed), d.load_state(target)
    for call in range(60):
        with harness.crash_at(d, call, after=after) as calls, contextlib.suppress(Unavailable, CommitUnknown):
            begin_anew(feed, LOG, {0: 5, 1: 0}, retire=retire)
        if calls[0] <= call:
            break
        if d.load_state(target).generation == 0:
            assert (everything(harness, feed), d.load_state(target)) == before
        else:
            break  # Only the reply was lost.
    assert d.load_state(target).generation == 1
    assert d.table_rows(target) == (None if retire else 1)
    assert harness.deleted(d, target) == ({} if retire else before[0][2])
    assert d.parked_keys(target).to_pylist() == []
    assert {c.partition: c.next_offset for c in d.checkpoints(target)} == {0: 5, 1: 0}


def test_what_the_stream_brought_before_a_position_is_found(harness: Harness, feed: Feed) -> None:
    def holds(position: int, generation: int = 0) -> bool:
        found: bool = feed.destination.holds_before(feed.target, generation, position)
        return found

    feed.apply(item(R, 1, -(2**63) + 50, "snapshot"), item(R, 2, 0, "incremental"))
    assert not holds(2**62)
    feed.apply(item(C, 3, 100, "row"))
    assert [holds(100), holds(101), holds(101, 1)] == [False, True, False]
    feed.apply(item(U, 3, 300, "row"), item(D, 4, 200, moved=True))
    assert [holds(200), holds(201)] == [False, True]
    feed.apply(truncation=Truncation(0, 150, 0))
    assert [holds(150), holds(151)] == [False, True]


def test_i19_rejected_records_are_kept_with_the_checkpoint(harness: Harness, feed: Feed) -> None:
    receipt = feed.apply(item(C, 1, 10), rejected=[(0, '["5"]'), (1, None), (0, '["5"]')])
    assert [p.parked for p in receipt.partitions] == [2, 1]
    assert feed.destination.parked_keys(feed.target).to_pylist() == ['["5"]']
    assert feed.destination.parked_keys(feed.target).type == pa.string()


def test_settled_records_stay_and_hold_no_key_back(harness: Harness, feed: Feed) -> None:
    feed.apply(item(C, 1, 10), item(C, 2, 11), rejected=[(0, '["5"]'), (1, None)])
    totals = {"applied": 2, "folded": 0, "duplicate": 0, "parked": 2, "filtered": 0}
    assert feed.destination.totals(feed.target).counts == totals
    found = feed.destination.totals(feed.target)
    assert found.waiting == {"bad_json": 2}
    assert found.decided == {}
    assert found.synced_us is None or found.synced_us > 1_700_000_000_000_000
    begin_anew(feed, LOG, dict(feed.next))
    assert feed.destination.parked_keys(feed.target).to_pylist() == []
    assert feed.destination.totals(feed.target).counts == totals
    assert feed.destination.totals(feed.target).waiting == {}
    assert feed.destination.totals(feed.target).decided == {"superseded": 2}


def test_who_writes_a_state_must_have_seen_the_last_one(harness: Harness, feed: Feed) -> None:
    d, other = feed.destination, harness.open()
    first = d.save_state(feed.target, TableState("streaming"))
    with pytest.raises(Fenced):
        other.save_state(feed.target, TableState("paused"))
    second = other.save_state(feed.target, replace(other.load_state(feed.target), state="paused"))
    for late in (first, TableState("error")):
        with pytest.raises(Fenced):
            d.save_state(feed.target, late)
        with pytest.raises(Fenced):
            d.begin_anew(feed.target, LOG, {0: 0, 1: 0}, late, retire=True)
    assert d.load_state(feed.target) == second
    assert d.states()[str(feed.target.source), str(feed.target)] == second
    assert d.table_rows(feed.target) == 0
    other.close()


def test_how_far_tables_are_is_written_for_all_but_those_that_another_process_changed(harness: Harness, feed: Feed) -> None:
    d, other = feed.destination, harness.open()
    targets = [replace(feed.target, source=TableId("public", f"t{n}"), name=f"t{n}") for n in range(5)]
    kept = {target: d.save_state(target, TableState("streaming", error_code="code", complete_at=1)) for target in targets}
    changed = other.save_state(targets[1], replace(kept[targets[1]], state="paused"))
    moved = {t: replace(s, complete_through=n, complete_at=2**50 + n, identity_at=n + 7) for n, (t, s) in enumerate(kept.items())}
    now = d.save_progress(moved)
    assert now == {t: replace(s, version=2) for t, s in moved.items() if t != targets[1]}
    assert {t: d.load_state(t) for t in targets} == {**now, targets[1]: changed}
    again = {t: replace(s, complete_through=99) for t, s in {**now, targets[1]: changed}.items()}
    assert d.save_progress(again) == {t: replace(s, version=3) for t, s in again.items()}
    assert d.save_progress(now) == {}
    assert {t: d.load_state(t).complete_through for t in targets} == dict.fromkeys(targets, 99)
    assert d.save_progress({}) == {}
    other.close()


def test_a_writer_with_an_older_schema_is_fenced(harness: Harness, feed: Feed) -> None:
    """Its rows would lose what another writer's new column holds."""
    other = Feed(harness.open(), ITEMS, mode=feed.mode, partitions=(1,)).take()
    feed.partitions = (0,)
    feed.take().apply(item(C, 1, 10, "a"))
    old = other.own
    feed.evolve(TableSchema(ITEMS.table, (*ITEMS.columns, number("extra", default=5)), ITEMS.key))
    with pytest.raises(Fenced):
        other.destination.merge(other.delta(item(C, 2, 20, "b", partition=1)), other.epochs, other.log, old)
    with pytest.raises(Fenced):
        other.destination.evolve(feed.target, *evolve((old,), TableSchema(ITEMS.table, (*ITEMS.columns, text("y")), ITEMS.key)))
    other.apply(item(C, 2, 20, "b", partition=1))
    rows = harness.rows(feed.destination, feed.target, feed.own).to_pylist()
    assert [(row["id"], row["extra"]) for row in rows] == [(1, 5), (2, 5)]
    other.destination.close()


def test_the_mark_of_a_loaded_table_moves_with_the_rows_and_not_without(harness: Harness, feed: Feed) -> None:
    def marks() -> list[str | None]:
        return [c.mark for c in feed.destination.checkpoints(feed.target)]

    def marked(mark: str, *changes: Change) -> Any:
        return replace(feed.delta(*changes), mark=mark)

    assert marks() == [None, None]
    feed.merge(marked("a 'mark'", item(C, 1, 10, "a")))
    assert marks() == ["a 'mark'", None]
    feed.apply(item(U, 1, 20, "b"))
    assert marks() == ["a 'mark'", None]
    before = everything(harness, feed)
    lost = marked("lost", item(U, 1, 30, "c"))
    with harness.crash_at(feed.destination, 2), pytest.raises(Unavailable):
        feed.merge(lost)
    feed.destination = harness.open()
    assert everything(harness, feed) == before
    feed.merge(replace(lost, mark="kept"))
    assert marks() == ["kept", None]
    taken = feed.destination.claim(feed.target, feed.log, {0: 0})
    assert [c.mark for c in taken] == ["kept"]
    with pytest.raises(Fenced):
        feed.merge(marked("fenced", item(U, 1, 40, "d")))
    assert marks() == ["kept", None]
    anew = feed.destination.load_state(feed.target)
    feed.destination.begin_anew(feed.target, feed.log, {0: 0}, anew)
    assert marks() == [None]


def test_table_state_round_trips(harness: Harness, feed: Feed) -> None:
    d = feed.destination
    assert d.load_state(feed.target) == TableState()
    full = TableState("snapshotting", 3, 2**62, {0: 5, 11: 2**40}, True, 2**61, 1_700_000_000_000_001, "code", "it's", "hint", 5)
    for state in (full, TableState("streaming"), full):
        kept = d.save_state(feed.target, replace(state, version=d.load_state(feed.target).version))
        assert d.load_state(feed.target) == kept
    other = replace(feed.target, source=TableId("public", "other"), name="other")
    assert d.load_state(other) == TableState()


def test_tables_do_not_see_each_other(harness: Harness, feed: Feed) -> None:
    other = Feed(
        feed.destination, replace(ITEMS, table=TableId("public", "others")), mode=feed.mode, log=replace(LOG, topic_id="t2")
    ).start()
    feed.apply(item(C, 1, 10, "a"))
    feed.apply(item(D, 1, 50), truncation=None)
    other.apply(item(C, 1, 20, "b"), truncation=None)
    feed.apply(truncation=Truncation(0, 99, 0))
    other.apply(item(U, 1, 30, "b2"))
    assert live(harness, other) == {1: ("b2", None)}
    assert feed.destination.table_rows(other.target) == 1


def test_release_lets_go_and_the_next_call_goes_on(harness: Harness, feed: Feed) -> None:
    feed.apply(item(C, 1, 10, "a"))
    feed.destination.release()
    feed.apply(item(U, 1, 20, "b"))
    feed.destination.release()
    feed.destination.release()
    assert live(harness, feed) == {1: ("b", None)}


def test_preparing_again_changes_nothing(harness: Harness, feed: Feed) -> None:
    feed.apply(item(C, 1, 10, "a"), item(D, 2, 11))
    before = everything(harness, feed)
    feed.destination.prepare()
    again = harness.open()
    again.prepare()
    assert everything(harness, feed) == before
    again.close()


def test_a_checkpoint_of_before_marks_gets_them(harness: Harness, feed: Feed) -> None:
    """The meta tables as the version before made them, brought up by the next start."""
    if harness.name in ("memory", "sqlite"):
        pytest.skip("none was ever made by an older version")
    feed.apply(item(C, 1, 10, "a"))
    s = feed.destination._sql(feed.target)
    q, c = s.spelling.quote, feed.destination.connection()
    c.execute(f"ALTER TABLE {q('_cdc', 'checkpoint')} DROP COLUMN mark")
    c.execute(f"DELETE FROM {q('_cdc', 'migration')} WHERE version >= 8")
    feed.destination.prepare()
    feed.take()
    feed.merge(replace(feed.delta(item(U, 1, 20, "b")), mark="here"))
    assert [c.mark for c in feed.destination.checkpoints(feed.target)] == ["here", None]


def test_a_table_that_is_not_there_has_no_rows(destination: Any) -> None:
    destination.prepare()
    target = Feed(destination, ITEMS).target
    assert destination.table_rows(target) is None
    assert destination.schemas(target) == []
    assert destination.drift(target, ITEMS)
