"""Notifications: what Debezium really wrote, with and without its schema, and what is none."""

from __future__ import annotations

import base64
import gzip
import json
from pathlib import Path

import pytest

from connectors.debezium.notifications import Notices, Notification, parse, returning, skipped

FIXTURES = Path(__file__).parent.parent / "fixtures" / "postgresql"


def recorded(case: str) -> list[bytes]:
    lines = gzip.decompress((FIXTURES / f"{case}.jsonl.gz").read_bytes()).splitlines()
    return [base64.b64decode(r["value"]) for r in map(json.loads, lines) if r["topic"].endswith(".notifications")]


@pytest.mark.parametrize("schema", [True, False])
def test_recorded_notifications_say_what_happened(schema: bool) -> None:
    values = recorded("incremental")
    read = [parse(v if schema else json.dumps(json.loads(v)["payload"]).encode()) for v in values]
    assert None not in read
    said = sorted((n for n in read if n is not None), key=lambda n: n.at_ms)
    initial = [n for n in said if n.aggregate == "initial"]
    assert [initial[0].type, initial[-1].type] == ["STARTED", "COMPLETED"]
    ends = [n for n in said if n.scanned]
    assert {n.aggregate for n in ends} == {"initial", "incremental"}
    assert all(len(n.tables) == 1 and n.tables[0].startswith("public.") for n in ends)
    started = next(n for n in said if n.aggregate == "incremental")
    assert started.type == "STARTED"
    assert {t for n in ends if n.id == started.id for t in n.tables} <= set(started.tables)


def test_a_scan_that_did_not_read_its_table_is_no_end() -> None:
    value = json.loads(returning("x", "public.a", 5)[1])["payload"]
    value |= {"type": "TABLE_SCAN_COMPLETED", "aggregate_type": "Incremental Snapshot"}
    for status, scanned in [("SUCCEEDED", True), ("EMPTY", True), ("UNKNOWN_SCHEMA", False), ("SQL_EXCEPTION", False)]:
        value["additional_data"]["status"] = status
        read = parse(json.dumps(value).encode())
        assert read is not None
        assert (read.scanned, read.status) == (scanned, status)


@pytest.mark.parametrize(
    ("table", "queue", "waiting"),
    [
        ("public.a", "public.a,public.a,public.b", 1),
        ("public.a", "public.a,public.a,public.a", 2),
        ("public.a", "public.a,public.b", 0),
        ("public.a", "public.ab,xpublic.a,public.a", 0),
        ("public.a,b", "public.a,b,public.a,b", 1),
        ("public.(x)*", "public.(x)*,public.(x)*", 1),
    ],
)
def test_a_scan_says_whether_its_table_is_scanned_again(table: str, queue: str, waiting: int) -> None:
    """As two signals for one table, and a third one meanwhile, were answered."""
    data = {"scanned_collection": table, "data_collections": queue, "status": "SUCCEEDED"}
    record = {"id": "third", "type": "TABLE_SCAN_COMPLETED", "aggregate_type": "Incremental Snapshot", "additional_data": data}
    read = parse(json.dumps({**record, "timestamp": 1}).encode())
    assert read is not None
    assert (read.scanned, read.tables, read.waiting) == (True, (table,), waiting)


def test_a_table_that_comes_back_is_said_in_the_same_form() -> None:
    for name in ('a.b,"c" \n é🐘', "public.a"):
        assert parse(returning("returning-1", name, 7)[1]) == Notification("returning-1", "registration", "RETURNING", (name,), "", 7)


@pytest.mark.parametrize("value", [None, b"", b"null", b"[]", b"1", b"{", b"{}", b'{"payload": null}', b'{"id": "x"}', b"\xff"])
def test_what_is_no_notification_is_none(value: bytes | None) -> None:
    assert parse(value) is None


def said(*records: tuple[str, str, str, str], aggregate: str = "Incremental Snapshot") -> list[bytes]:
    """(type, id, table, all tables that are still to be scanned)"""
    made = []
    for type_, id_, table, queue in records:
        data = {"scanned_collection": table or None, "data_collections": queue, "status": "SUCCEEDED"}
        made.append(json.dumps({"id": id_, "type": type_, "aggregate_type": aggregate, "additional_data": data, "timestamp": 1}).encode())
    return made


def test_an_initial_snapshot_counts_when_it_came_to_its_end() -> None:
    notices = Notices()
    first = [("STARTED", "i", "", "a,b"), ("TABLE_SCAN_COMPLETED", "i", "a", "")]
    assert notices.add(said(*first, aggregate="Initial Snapshot")).initial == frozenset()
    again = [*first, ("TABLE_SCAN_COMPLETED", "i", "b", ""), ("COMPLETED", "i", "", "")]
    assert notices.add(said(*again, aggregate="Initial Snapshot")).initial == {"a", "b"}
    assert notices.scans.attempts == 2


def test_a_connector_that_begins_anew_after_a_snapshot_has_ended_is_told_from_one_that_was_killed_within_it() -> None:
    notices, begins, ends = Notices(), ("STARTED", "i", "", "a"), ("COMPLETED", "i", "", "")
    assert not notices.add(said(begins, begins, ends, aggregate="Initial Snapshot")).repeated
    assert notices.add(said(begins, aggregate="Initial Snapshot")).repeated


def test_an_initial_snapshot_says_of_which_tables_it_read_no_row() -> None:
    notices = Notices()
    assert notices.add(recorded("incremental")).empty.keys() == {"public.empty"}
    assert notices.add(said(("STARTED", "i", "", "a"), aggregate="Initial Snapshot")).empty == {}


def test_what_was_read_for_a_signal_before_the_connector_began_anew_is_lost() -> None:
    notices = Notices()
    first = [("STARTED", "1", "", "a"), ("TABLE_SCAN_COMPLETED", "1", "a", "a"), ("COMPLETED", "1", "", "")]
    notices.add(said(*first, ("STARTED", "2", "", "a")))
    scans = notices.add(said(("STARTED", "i", "", "a"), aggregate="Initial Snapshot"))
    assert (scans.lost, scans.asked) == ({"1", "2"}, {})


def test_scans_of_signals_that_overlap_count_for_each_signal_that_began_before_them() -> None:
    notices = Notices()
    notices.add(said(("STARTED", "1", "", "a"), ("TABLE_SCAN_COMPLETED", "2", "a", "a,b"), ("TABLE_SCAN_COMPLETED", "2", "b", "b")))
    assert notices.scans.asked == {"1": {"a", "b"}, "2": {"a", "b"}}
    assert notices.scans.incremental == {"a", "b"}


def test_a_scan_under_way_when_its_table_is_asked_for_again_does_not_count_for_the_second_signal() -> None:
    notices = Notices()
    notices.add(said(("STARTED", "1", "", "a"), ("TABLE_SCAN_COMPLETED", "2", "a", "a,a")))
    assert notices.scans.asked == {"1": {"a"}}
    notices.add(said(("TABLE_SCAN_COMPLETED", "2", "a", "a"), ("COMPLETED", "2", "", "")))
    assert notices.scans.asked == {"1": {"a"}, "2": {"a"}}
    notices.add(said(("STARTED", "3", "", "b"), ("TABLE_SCAN_COMPLETED", "3", "b", "b")))
    assert notices.scans.asked["1"] == {"a"}, "a signal that has ended takes no more scans"


def test_a_scan_that_did_not_read_its_table_counts_as_failed_for_each_signal_that_it_may_be_of() -> None:
    notices = Notices()
    (begins,) = said(("STARTED", "1", "", "a"))
    end = json.loads(said(("TABLE_SCAN_COMPLETED", "2", "a", "a"))[0])
    end["additional_data"]["status"] = "SQL_EXCEPTION"
    scans = notices.add([begins, json.dumps(end).encode()])
    assert scans.failed == ((frozenset({"1", "2"}), "a", "SQL_EXCEPTION"),)
    assert (scans.asked, scans.incremental) == ({}, frozenset())
    assert notices.add(said(("STARTED", "i", "", "a"), aggregate="Initial Snapshot")).failed == ()


def test_where_the_connector_left_its_log_out_what_it_read_before_is_of_no_use() -> None:
    notices = Notices()
    notices.add(said(("STARTED", "1", "", "a"), ("TABLE_SCAN_COMPLETED", "1", "a", "a"), ("STARTED", "2", "", "a")))
    scans = notices.add([skipped("x", 2**63, 5)[1]])
    assert (scans.skipped, scans.asked, scans.lost) == (2**63, {}, {"1", "2"})
    assert notices.add(said(("STARTED", "i", "", "a"), aggregate="Initial Snapshot")).skipped == 0


def test_a_table_that_came_back_is_told_with_its_time() -> None:
    assert Notices().add([returning("x", "public.a", 5)[1]]).returned == {"public.a": 5}
