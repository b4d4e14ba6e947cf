"""What reconciliation reads of a destination (mergers.sql.view): one state, beside a writer that goes on; and what runs leave behind."""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from cdc_service.core.errors import CdcError
from cdc_service.core.keys import key_text
from cdc_service.core.logical import INFINITY, Kind, LogicalType, array, decimal
from cdc_service.core.types import Column, Mode, Op, TableId, TableSchema
from tests.conformance.harness import ITEMS, LOG, PARAMS, Change, Feed, Harness, PostgreSqlHarness, harness_of, number, text

C, U, D = Op.CREATE, Op.UPDATE, Op.DELETE
PAIRS = TableSchema(TableId("public", "pairs"), (text("a"), number("n"), text("note")), ("a", "n"))


@pytest.fixture(params=[p for p in PARAMS if p.values[0] in ("duckdb", "postgresql")])
def harness(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Harness]:
    with harness_of(request.param, tmp_path, request) as made:
        yield made


@pytest.fixture
def destination(harness: Harness) -> Iterator[Any]:
    opened = harness.open()
    yield opened
    opened.close()


def item(op: Op, id_: int, record: int, name: str | None = None, **more: Any) -> Change:
    return Change(op, {"id": id_, "name": name, "body": None}, record, **more)


def ids(*values: int) -> pa.Table:
    return pa.table({"id": pa.array(values, pa.int64())})


def read(view: Any, *names: str, where: str | None = None) -> list[dict[str, Any]]:
    columns = [c for c in ITEMS.columns if c.name in names]
    rows = [row for batch in view.select(view.forms(columns), where) for row in batch.to_pylist()]
    return sorted(rows, key=lambda row: row["id"])


def test_views_one_after_another_are_each_as_of_their_opening(destination: Any, harness: Harness) -> None:
    """Also where one left rows unread, was refused a statement, or its session was ended between two of them."""
    feed = Feed(destination, ITEMS).start()
    feed.apply(item(C, 1, 10, "a"))
    ended = 0
    with destination.views() as views:
        for number_ in range(2, 6):
            with views(feed.target, feed.own) as before:
                feed.apply(item(C, number_, 10 * number_, "b"))
                assert before.count() == number_ - 1
                if number_ == 3:
                    assert next(before.select({"n": "1"})).num_rows > 0
                if number_ == 4:
                    with pytest.raises(CdcError):
                        before.count("no_such_column = 1")
            if isinstance(harness, PostgreSqlHarness):
                kept = f"datname = '{harness.database}' AND query = 'ROLLBACK' AND state = 'idle'"
                ended += len(harness.admin(f"SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE {kept}"))
        with views(feed.target, feed.own) as last, views(feed.target, feed.own) as beside:
            assert (last.count(), beside.count()) == (5, 5)
    assert ended or not isinstance(harness, PostgreSqlHarness), "no session was kept"


def test_a_view_stays_as_it_was_opened(destination: Any) -> None:
    feed = Feed(destination, ITEMS).start()
    feed.apply(item(C, 1, 10, "a"), item(C, 2, 11, "b", partition=1))
    with destination.view(feed.target, feed.own) as before:
        batch = before.batch_id
        last = feed.apply(item(U, 1, 20, "later"), item(D, 2, 21, partition=1), item(C, 3, 22))
        with destination.view(feed.target, feed.own) as after:
            assert [(r["id"], r["name"]) for r in read(before, "id", "name")] == [(1, "a"), (2, "b")]
            assert [(r["id"], r["name"]) for r in read(after, "id", "name")] == [(1, "later"), (3, None)]
            assert (before.count(), after.count(), after.count("id > 1")) == (2, 2, 1)
            assert (before.checkpoints(LOG), after.checkpoints(LOG)) == ({0: 1, 1: 1}, {0: 3, 1: 2})
            assert batch is not None
            assert after.batch_id not in (None, batch)
            key = key_text(ids(1, 2)).to_pylist()
            assert before.deleted(key) == {}
            assert after.deleted(key) == {key[1]: (1, 1)}
            merged = after.batches([(0, 0), (1, 0), (0, 2), (1, 1), (0, 3), (7, 0)])
            assert {place: name for place, (name, _) in merged.items()} == {
                **{(0, 0): batch, (1, 0): batch, (0, 2): last.batch_id, (1, 1): last.batch_id}
            }
            assert merged[0, 0][1] <= merged[0, 2][1] <= dt.datetime.now(dt.UTC)
            assert before.batches([(0, 2)]) == {}
    assert last.batch_id == after.batch_id


def test_rows_by_key_with_the_place_of_their_last_event(destination: Any) -> None:
    feed = Feed(destination, PAIRS).start()
    odd = ["", " ", "p|q", "'", '"', "\\", "é", "日本", "NULL"]
    feed.apply(*(Change(C, {"a": a, "n": n, "note": f"{a}{n}"}, 10) for a in odd for n in (-1, 2)))
    wanted = pa.table({"a": pa.array([*odd, "not there"]), "n": pa.array([2] * len(odd) + [2], pa.int64())})
    with destination.view(feed.target, feed.own) as view:
        found = view.fetch(PAIRS.key_columns, ["a", "n", "note", "_cdc_partition", "_cdc_offset"], wanted).to_pylist()
        none = view.fetch(PAIRS.key_columns, ["a"], wanted.slice(len(odd)))
    assert sorted((r["a"], r["n"], r["note"]) for r in found) == sorted((a, 2, f"{a}2") for a in odd)
    assert {r["_cdc_offset"] for r in found} == {2 * i + 1 for i in range(len(odd))}
    assert none.num_rows == 0


def test_soft_deleted_rows_are_no_rows(destination: Any) -> None:
    feed = Feed(destination, ITEMS, mode=Mode.SOFT_DELETE).start()
    feed.apply(item(C, 1, 10, "a"), item(C, 2, 11, "b"))
    feed.apply(item(D, 1, 20))
    with destination.view(feed.target, feed.own) as view:
        assert [r["id"] for r in read(view, "id")] == [2]
        assert view.count() == 1
        assert view.fetch(ITEMS.key_columns, ["id"], ids(1, 2))["id"].to_pylist() == [2]
        assert sum(n for b in view.digests("0", "0", "1") for n in b["n"].to_pylist()) == 1


def test_what_is_parked(destination: Any) -> None:
    feed = Feed(destination, ITEMS).start()
    keys = key_text(ids(1, 2)).to_pylist()
    feed.apply(item(C, 1, 10, "a"), rejected=[(0, keys[1]), (1, None)])
    with destination.view(feed.target, feed.own) as view:
        assert view.parked(keys) == {keys[1]: (0, 1, "not JSON")}


def test_minimal_metadata_has_no_offsets(destination: Any) -> None:
    feed = Feed(destination, ITEMS, full_metadata=False).start()
    feed.apply(item(C, 1, 10, "a"))
    with destination.view(feed.target, feed.own) as view:
        rows = view.fetch(ITEMS.key_columns, ["id", "_cdc_partition", "_cdc_offset"], ids(1)).to_pylist()
    assert rows == [{"id": 1, "_cdc_partition": 0, "_cdc_offset": None}]


US = 1_715_000_000_123_456
FORMS: Sequence[tuple[LogicalType, Any, str]] = [
    (LogicalType(Kind.BOOL), True, "1"),
    (LogicalType(Kind.BOOL), False, "0"),
    (LogicalType(Kind.INT16), -(2**15), "-32768"),
    (LogicalType(Kind.INT32), 7, "7"),
    (LogicalType(Kind.INT64), 2**63 - 1, "9223372036854775807"),
    (LogicalType(Kind.FLOAT32), 0.5, "3fe0000000000000"),
    (LogicalType(Kind.FLOAT64), 0.1, "3fb999999999999a"),
    (LogicalType(Kind.FLOAT64), 0.10000000000000002, "3fb999999999999b"),
    (LogicalType(Kind.FLOAT64), -0.0, "0000000000000000"),
    (LogicalType(Kind.FLOAT64), float("nan"), "nan"),
    (LogicalType(Kind.FLOAT64), float("-inf"), "fff0000000000000"),
    (decimal(12, 2), Decimal("1.50"), "1.50"),
    (decimal(12, 2), Decimal("-0.05"), "-0.05"),
    (LogicalType(Kind.NUMERIC), "12345678901234567890.5", "12345678901234567890.5"),
    (LogicalType(Kind.STRING), "", "0:"),
    (LogicalType(Kind.STRING), "p|q", "3:p|q"),
    (LogicalType(Kind.STRING), "日本 ", "7:日本 "),
    (LogicalType(Kind.BYTES), b"\x00\xff", "00ff"),
    (LogicalType(Kind.BYTES), b"", ""),
    (LogicalType(Kind.DATE), -1, "-1"),
    (LogicalType(Kind.DATE), INFINITY[Kind.DATE], "infinity"),
    (LogicalType(Kind.TIME), 86_400_000_000, "86400000000"),
    (LogicalType(Kind.TIMESTAMP), US, str(US)),
    (LogicalType(Kind.TIMESTAMP), -1, "-1"),
    (LogicalType(Kind.TIMESTAMP), -INFINITY[Kind.TIMESTAMP], "-infinity"),
    (LogicalType(Kind.TIMESTAMPTZ), US, str(US)),
    (LogicalType(Kind.TIMESTAMPTZ), INFINITY[Kind.TIMESTAMPTZ], "infinity"),
    (LogicalType(Kind.UUID), "6f1e2d3c-0000-4000-8000-00000000000a", "6f1e2d3c-0000-4000-8000-00000000000a"),
    (LogicalType(Kind.JSON), '{"a": "|"}', '10:{"a": "|"}'),
    (LogicalType(Kind.INTERVAL), "P1Y2M3DT4H5M6.5S", "16:P1Y2M3DT4H5M6.5S"),
]
"""A value and its canonical text, spelled here by hand: whatever sums rows up has to agree with it."""


def hash_of(*texts: str) -> int:
    return int(hashlib.md5("|".join(texts).encode()).hexdigest()[-15:], 16)


def test_sums_are_those_of_the_canonical_texts(destination: Any) -> None:
    """One table of all forms, a value in one column of each row and NULL in the others."""
    columns = (number("id"), *(Column(f"c{i}", type_) for i, (type_, _, _) in enumerate(FORMS)))
    schema = TableSchema(TableId("public", "forms"), columns, ("id",))
    feed = Feed(destination, schema).start()
    nulls = dict.fromkeys(f"c{i}" for i in range(len(FORMS)))
    rows = [Change(C, {"id": i, **nulls, f"c{i}": value}, 10) for i, (_, value, _) in enumerate(FORMS)]
    feed.apply(*rows)
    wanted = {i: hash_of(str(i), *("" if n != i else canonical for n, (_, _, canonical) in enumerate(FORMS))) for i in range(len(FORMS))}
    with destination.view(feed.target, feed.own) as view:
        texts = view.texts(columns)
        assert set(texts) == set(schema.names)
        found = {
            row["id"]: row["h"]
            for b in view.select({**view.forms(columns[:1]), "h": view.canonical.hash(texts.values())})
            for row in b.to_pylist()
        }
        assert [FORMS[i] for i in wanted if found[i] != wanted[i]] == []
        id_ = view.forms(columns[:1])["id"]
        sums = [
            row
            for b in view.digests(view.canonical.divide.format(id_, 10), f"({id_} % 10)", view.canonical.hash(texts.values()))
            for row in b.to_pylist()
        ]
    for bucket in {i // 10 for i in wanted}:
        some = {i: h for i, h in wanted.items() if i // 10 == bucket}
        (row,) = (r for r in sums if r["b"] == bucket)
        places = sum((i % 10) * (h >> 10) for i, h in some.items())
        assert (row["n"], int(row["t"]), int(row["l"])) == (len(some), sum(some.values()), places)


def test_lists_have_no_canonical_text(destination: Any) -> None:
    schema = TableSchema(TableId("public", "lists"), (number("id"), Column("a", array(LogicalType(Kind.INT32)))), ("id",))
    feed = Feed(destination, schema).start()
    with destination.view(feed.target, feed.own) as view:
        assert set(view.texts(schema.columns)) == {"id"}


def test_runs_are_kept_and_told_again(destination: Any) -> None:
    feed = Feed(destination, ITEMS).start()
    at = dt.datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=dt.UTC)
    runs = [
        {"run_id": f"r{n}", "at": at + dt.timedelta(hours=n), "status": "mismatch", "position": 2**62, "left_out": "{}"} for n in range(3)
    ]
    difference = {"run_id": "r1", "key": '{"id": "1"}', "kind": "extra", "columns": "[]", "destination": '{"id": "1", "name": "é|\\u0000"}'}
    for run in runs:
        buckets = [{"run_id": run["run_id"], "bucket": b, "rows_source": 2**40, "digest_source": "0f"} for b in (1, 1023)]
        destination.keep_run(feed.target, run, [difference] if run["run_id"] == "r1" else [], buckets)
    told = destination.runs(feed.target, 2)
    assert [(r["run_id"], r["at"], r["position"]) for r in told] == [(r["run_id"], r["at"], 2**62) for r in (runs[2], runs[1])]
    (found,) = destination.differences(feed.target, "r1")
    assert {name: found[name] for name in difference} == difference
    assert destination.differences(feed.target, "r2") == []
    destination.mark_repaired(feed.target, "r2", [difference["key"]], at)
    assert destination.differences(feed.target, "r1")[0]["repaired_at"] is None
    destination.mark_repaired(feed.target, "r1", ["other", difference["key"]], at)
    assert destination.differences(feed.target, "r1")[0]["repaired_at"] == at
