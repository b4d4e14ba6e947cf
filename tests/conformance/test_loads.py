"""Rows that were read at the source itself (Delta.loaded), one suite for all destinations and for the oracle."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from cdc_service.core.errors import Fenced
from cdc_service.core.types import META, NO_LOG, ChangeBatch, Delta, LoadedPart, LoadRange, Mode, Op
from cdc_service.pipeline.loading import PLACE, loaded_delta
from cdc_service.ports.destination import TableState
from tests.conformance.harness import ITEMS, LOG, PARAMS, Change, Feed, Harness, harness_of, parsed_statements

RANGES = [LoadRange(1, 0, "", "9", "f1"), LoadRange(1, 1, "9", "", "f1")]
BY_KEY = pytest.mark.parametrize("mode", [Mode.UPSERT, Mode.SOFT_DELETE])


@pytest.fixture(params=PARAMS)
def harness(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Harness]:
    with parsed_statements(), harness_of(request.param, tmp_path, request) as made:
        yield made


def begun(harness: Harness, mode: Mode = Mode.UPSERT) -> Feed:
    """A table whose generation 1 is being read: opened at position 5."""
    feed = Feed(harness.open(), ITEMS, mode).start()
    feed.apply(Change(Op.CREATE, {"id": 1, "name": "old", "body": "of before"}, 3))
    kept = feed.destination.load_state(feed.target)
    state = TableState("snapshotting", 1, 5, dict(feed.next), True, version=kept.version)
    feed.destination.begin_anew(feed.target, LOG, dict(feed.next), state)
    feed.destination.plan_load(feed.target, 1, RANGES)
    return feed.take()


def piece(feed: Feed, rows: dict[int, str], part: LoadedPart) -> Delta:
    n = len(rows)
    data = pa.table({"id": [*rows], "name": [*rows.values()], "body": pa.nulls(n, pa.string())}, schema=feed.schema.arrow)
    values = {"op": int(Op.READ), "partition": PLACE, "offset": PLACE, "record": 0, "minor": 0}
    meta = [pa.array(np.full(n, values[f.name]), f.type) if f.name in values else pa.nulls(n, f.type) for f in META]
    meta[-1] = pa.array(np.arange(n), pa.int64())
    return loaded_delta(ChangeBatch(feed.schema, data, pa.table(meta, schema=META), ()), feed.target, part)


def load(feed: Feed, found: dict[int, str], **part: Any) -> None:
    made = LoadedPart(**{"generation": 1, "number": 0, "rows": len(found), "position": 50, "done": True, **part})
    feed.destination.merge(piece(feed, found, made), {}, NO_LOG, feed.own)


def names(harness: Harness, feed: Feed) -> dict[int, str]:
    return {
        row["id"]: row["name"] for row in harness.rows(feed.destination, feed.target, feed.own).to_pylist() if not row.get("_cdc_deleted")
    }


@BY_KEY
def test_i31_rows_of_a_load_stand_before_every_change_of_their_generation(harness: Harness, mode: Mode) -> None:
    feed = begun(harness, mode)
    feed.apply(Change(Op.UPDATE, {"id": 2, "name": "changed", "body": "b"}, 10, gen=1), Change(Op.DELETE, {"id": 3}, 11, gen=1))
    load(feed, {1: "one", 2: "as it was", 3: "gone since", 4: "four"})
    assert names(harness, feed) == {1: "one", 2: "changed", 4: "four"}
    feed.apply(Change(Op.UPDATE, {"id": 4, "name": "later", "body": "b"}, 6, gen=1))
    assert names(harness, feed) == {1: "one", 2: "changed", 4: "later"}


@BY_KEY
def test_i31_a_range_is_marked_with_its_rows_and_once(harness: Harness, mode: Mode) -> None:
    feed = begun(harness, mode)
    d = feed.destination
    assert d.load_ranges(feed.target, 1) == RANGES
    assert d.load_ranges(feed.target, 0) == []
    load(feed, {1: "one"}, done=False)
    assert d.load_ranges(feed.target, 1) == [replace(RANGES[0], rows=1, position=50), RANGES[1]]
    load(feed, {2: "two"}, rows=2, position=51)
    done = [replace(RANGES[0], rows=2, position=51, done=True), RANGES[1]]
    assert d.load_ranges(feed.target, 1) == done
    with pytest.raises(Fenced):
        load(feed, {3: "by another process"})
    with pytest.raises(Fenced):
        load(feed, {3: "of no range"}, number=2)
    assert d.load_ranges(feed.target, 1) == done
    assert names(harness, feed) == {1: "one", 2: "two"}
    load(feed, {}, number=1)
    assert [r.done for r in d.load_ranges(feed.target, 1)] == [True, True]


def test_i31_nothing_of_an_older_generation_is_loaded(harness: Harness) -> None:
    feed = begun(harness)
    d, kept = feed.destination, feed.destination.load_state(feed.target)
    d.begin_anew(feed.target, LOG, dict(feed.next), replace(kept, generation=2))
    with pytest.raises(Fenced):
        d.plan_load(feed.target, 1, RANGES)
    d.plan_load(feed.target, 2, [replace(r, generation=2) for r in RANGES])
    assert d.load_ranges(feed.target, 1) == []
    with pytest.raises(Fenced):
        load(feed, {7: "late"})
    assert 7 not in names(harness, feed)


@BY_KEY
def test_a_range_that_is_read_again_changes_nothing(harness: Harness, mode: Mode) -> None:
    feed = begun(harness, mode)
    load(feed, {1: "one", 2: "two"}, done=False)
    feed.apply(Change(Op.UPDATE, {"id": 2, "name": "changed", "body": "b"}, 10, gen=1))
    load(feed, {1: "one", 2: "two", 3: "three"})
    assert names(harness, feed) == {1: "one", 2: "changed", 3: "three"}


@BY_KEY
def test_rows_for_an_empty_target_are_added_as_others_are(harness: Harness, mode: Mode) -> None:
    """Every column, metadata too, is as without the promise that nothing else is there."""
    kept = {}
    for fresh in (True, False):
        schema = replace(ITEMS, table=replace(ITEMS.table, name=f"items_{fresh}".lower()))
        feed = Feed(harness.open(), schema, mode).start()
        feed.destination.begin_anew(feed.target, LOG, dict(feed.next), TableState("snapshotting", 1, 5, dict(feed.next), True))
        feed.destination.plan_load(feed.target, 1, RANGES)
        feed.take()
        load(feed, {n: f"n{n}" for n in range(1000)}, fresh=fresh)
        load(feed, {n: f"n{n}" for n in range(1000, 1010)}, fresh=fresh, number=1)
        kept[fresh] = harness.rows(feed.destination, feed.target, feed.own).to_pylist()
        assert [r.done for r in feed.destination.load_ranges(feed.target, 1)] == [True, True]
        feed.apply(Change(Op.UPDATE, {"id": 5, "name": "changed", "body": "b"}, 10, gen=1), Change(Op.DELETE, {"id": 6}, 11, gen=1))
        assert len(names(harness, feed)) == 1009
        assert names(harness, feed)[5] == "changed"
    assert kept[True] == kept[False]
