"""Parked records and what a person decides about them, at every destination: the part of ports.destination that a replay rests on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cdc_service.core.errors import Fenced, Unavailable
from cdc_service.core.types import Decision, Delta, Mode, Op, Rejected
from cdc_service.ports.destination import Quarantined, UnsentUnknown
from tests.conformance.harness import ITEMS, LOG, PARAMS, Change, Feed, Harness, harness_of, parsed_statements

K5, K6 = '["5"]', '["6"]'


@pytest.fixture(params=PARAMS)
def harness(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Harness]:
    with parsed_statements(), harness_of(request.param, tmp_path, request) as made:
        yield made


@pytest.fixture(params=[Mode.UPSERT, Mode.SOFT_DELETE])
def feed(request: pytest.FixtureRequest, harness: Harness) -> Iterator[Feed]:
    opened = harness.open()
    yield Feed(opened, ITEMS, mode=request.param).start()
    opened.close()


def item(op: Op, id_: int, record: int, name: str | None = None, body: str | None = None, **more: Any) -> Change:
    return Change(op, {"id": id_, "name": name, "body": body}, record, **more)


def parked(feed: Feed, **more: Any) -> list[Quarantined]:
    return list(feed.destination.quarantined(feed.target, state="parked", most=100, **more))


def decided(feed: Feed, decision: Decision, *changes: Change) -> Delta:
    """A delta of parked records: no spans, whatever its rows' offsets."""
    return replace(feed.delta(*changes), spans=(), counts={}, decision=decision)


def decide(feed: Feed, decision: Decision, *changes: Change) -> None:
    feed.destination.merge(decided(feed, decision, *changes), {}, LOG, feed.own)
    feed.take()


def names(harness: Harness, feed: Feed) -> dict[int, tuple[str | None, str | None]]:
    rows = harness.rows(feed.destination, feed.target, feed.own).to_pylist()
    return {row["id"]: (row["name"], row["body"]) for row in rows if not row.get("_cdc_deleted")}


def test_records_are_found_by_what_is_asked(feed: Feed) -> None:
    feed.apply(rejected=[(1, K6), (0, K5), (0, None), (0, K5)])
    d, target = feed.destination, feed.target
    found = [(r.partition, r.offset, r.key_text) for r in parked(feed)]
    assert sorted(found, key=lambda r: r[0]) == [(0, 0, K5), (0, 1, None), (0, 2, K5), (1, 0, K6)], "each partition in the order of its log"
    assert [r.offset for r in parked(feed, key=K5)] == [0, 2]
    assert [r.key_text for r in parked(feed, ids=["topic-1:1:0", "topic-1:9:9"])] == [K6]
    assert len(parked(feed, code="bad_json")) == 4
    assert parked(feed, code="other") == []
    assert len(d.quarantined(target, most=3)) == 3
    listed, whole = parked(feed, key=K6)[0], parked(feed, key=K6, whole=True)[0]
    assert (listed.key, listed.value, listed.headers) == (None, None, None)
    assert (whole.key, whole.value, list(whole.headers or ())) == (b"key", b"value", [("h", b"\xff"), ("n", None)])
    assert (whole.stage, whole.code, whole.message, whole.state) == ("decode", "bad_json", "not JSON", "parked")
    assert (whole.decided_by, whole.decided_us, whole.reason) == (None, None, None)


def test_i12_i21_a_replay_is_all_or_nothing_at_every_step_and_the_ledger_stays(harness: Harness, feed: Feed) -> None:
    feed.apply(item(Op.CREATE, 1, 10, "a", "A"), rejected=[(0, K5), (0, K5), (1, K6)])
    before, ledger = (names(harness, feed), parked(feed)), harness.ledger(feed.destination, feed.target)
    decision = Decision("ann@host", "fixed", tuple(r.id for r in parked(feed, key=K5)))
    delta = decided(feed, decision, item(Op.UPDATE, 5, 21, "e", "E"), item(Op.DELETE, 7, 20))
    crashes = 0
    for call in range(200):
        with harness.crash_at(feed.destination, call) as calls:
            try:
                feed.destination.merge(delta, {}, LOG, feed.own)
            except Unavailable:
                crashes += 1
        if calls[0] <= call:
            break
        if (names(harness, feed), parked(feed)) != before:
            break  # Only the reply was lost.
    assert crashes >= 5
    assert names(harness, feed) == {1: ("a", "A"), 5: ("e", "E")}
    assert [r.key_text for r in parked(feed)] == [K6]
    done = feed.destination.quarantined(feed.target, state="replayed", most=9)
    assert [(r.key_text, r.decided_by, r.reason) for r in done] == [(K5, "ann@host", "fixed")] * 2
    assert all(r.decided_us is not None for r in done)
    assert harness.ledger(feed.destination, feed.target) == ledger, "they were counted when they were parked"
    totals = feed.destination.totals(feed.target)
    assert (totals.waiting, totals.decided, totals.counts["parked"]) == ({"bad_json": 1}, {"replayed": 2}, 3)


def test_a_record_is_decided_once(harness: Harness, feed: Feed) -> None:
    feed.apply(rejected=[(0, K5), (0, K6)])
    first, second = parked(feed)
    decide(feed, Decision("ann", "", (first.id,)), item(Op.CREATE, 5, 10, "e"))
    for again in (Decision("bob", "", (first.id, second.id)), Decision("bob", "why", (), (first.id,))):
        with pytest.raises(Fenced):
            decide(feed, again, item(Op.UPDATE, 5, 99, "twice"))
    assert names(harness, feed) == {5: ("e", None)}
    assert [r.id for r in parked(feed)] == [second.id], "all of a decision or nothing"


def test_i4_a_replayed_record_never_overwrites_what_is_newer(harness: Harness, feed: Feed) -> None:
    feed.apply(item(Op.CREATE, 5, 30, "new"), item(Op.DELETE, 6, 30), rejected=[(0, None), (0, None)])
    decide(feed, Decision("ann", "", tuple(r.id for r in parked(feed))), item(Op.UPDATE, 5, 20, "old"), item(Op.CREATE, 6, 20, "old"))
    assert names(harness, feed) == {5: ("new", None)}
    assert parked(feed) == []


def test_i14_i20_whoever_reads_the_table_is_fenced_by_a_decision(feed: Feed) -> None:
    feed.apply(rejected=[(0, K5)])
    late, epochs = feed.delta(item(Op.CREATE, 9, 10, "late")), dict(feed.epochs)
    decide(feed, Decision("ann", "", (), (parked(feed)[0].id,)))
    with pytest.raises(Fenced):
        feed.destination.merge(late, epochs, feed.log, feed.own)
    feed.merge(late)


def test_what_cannot_be_applied_yet_keeps_its_place_and_gets_its_new_reason(feed: Feed) -> None:
    feed.apply(rejected=[(0, None), (0, K6)])
    first, second = parked(feed)
    now = Rejected(0, first.offset, b"key", b"value", (), K5, "range", "out_of_range", "too large")
    decide(feed, Decision("ann", "", (), (second.id,), {first.id: now}))
    (left,) = parked(feed, whole=True)
    assert (left.id, left.key_text, left.stage, left.code, left.message) == (first.id, K5, "range", "out_of_range", "too large")
    assert (left.value, left.state, left.decided_by) == (b"value", "parked", None)
    assert feed.destination.parked_keys(feed.target).to_pylist() == [K5]
    assert [r.id for r in parked(feed, key=K5)] == [first.id], "it is found by the key that it has now"


@pytest.mark.parametrize("state", ["discarded", "replayed"])
def test_i11_no_unsent_value_comes_from_a_row_that_lacks_a_discarded_record(harness: Harness, feed: Feed, state: str) -> None:
    feed.apply(item(Op.CREATE, 5, 10, "a", "A"), item(Op.CREATE, 6, 11, "b", "B"), rejected=[(0, K5)])
    ids = (parked(feed)[0].id,)
    decide(feed, Decision("ann", "why", **{state: ids}))
    changes = [item(Op.UPDATE, 5, 20, "a2", unsent=("body",)), item(Op.UPDATE, 6, 21, "b2", unsent=("body",))]
    delta = feed.delta(*changes)
    if state == "replayed":
        feed.merge(delta)
        assert names(harness, feed) == {5: ("a2", "A"), 6: ("b2", "B")}
        return
    with pytest.raises(UnsentUnknown) as unknown:
        feed.merge(delta)
    assert (unknown.value.keys.to_pylist(), unknown.value.columns) == ([{"id": 5}], ("body",))
    assert names(harness, feed) == {5: ("a", "A"), 6: ("b", "B")}, "nothing was applied"
    feed.apply(item(Op.UPDATE, 5, 20, "a2", "whole"))
    assert names(harness, feed)[5] == ("a2", "whole")


def test_i11_nor_does_one_come_from_the_image_of_such_a_row(harness: Harness, feed: Feed) -> None:
    feed.apply(item(Op.CREATE, 5, 10, "a", "A"), rejected=[(0, K5)])
    decide(feed, Decision("ann", "why", (), (parked(feed)[0].id,)))
    feed.apply(item(Op.DELETE, 5, 30, moved=True))
    with pytest.raises(UnsentUnknown):
        feed.apply(item(Op.CREATE, 9, 30, "a", unsent=("body",), base={"id": 5}, move=30, partition=1))


def test_a_resync_settles_what_waits_and_leaves_what_was_decided(feed: Feed) -> None:
    feed.apply(rejected=[(0, K5), (0, K6)])
    decide(feed, Decision("ann", "why", (), (parked(feed, key=K5)[0].id,)))
    d = feed.destination
    d.begin_anew(feed.target, LOG, dict(feed.next), replace(d.load_state(feed.target), state="snapshotting"))
    found = {r.key_text: (r.state, r.decided_by) for r in d.quarantined(feed.target, most=9)}
    assert found == {K5: ("discarded", "ann"), K6: ("superseded", "cdc")}
    assert d.totals(feed.target).decided == {"discarded": 1, "superseded": 1}
