"""Suspected causes: a date that only a snapshot changes is told as such, with what events of the real connector carry (docs/)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime

import pytest

from cdc_service.core.types import LogId
from reconcile.explain import CAUSES, explain
from reconcile.judge import Found
from reconcile.protocol import LogEvent
from reconcile.report.document import Kind


class Log:
    id = LogId("cluster", "shop.public.t", "topic")
    placeholder = "__unsent"

    def __init__(self, *events: LogEvent) -> None:
        self.events = events

    def newest(self, keys: Collection[str], seconds: float) -> tuple[Mapping[str, Sequence[LogEvent]], int | None]:
        return {key: self.events for key in keys if self.events}, None


class View:
    """Everything is merged, nothing is parked or deleted."""

    def checkpoints(self, log: LogId) -> Mapping[int, int]:
        return {0: 100}

    def parked(self, keys: Sequence[str]) -> Mapping[str, tuple[int, int, str]]:
        return {}

    def deleted(self, keys: Sequence[str]) -> Mapping[str, tuple[int, int]]:
        return {}

    def batches(self, places: Collection[tuple[int, int]]) -> Mapping[tuple[int, int], tuple[str, datetime]]:
        return {}


def cause(op: str, source: str, there: str, dates: Collection[str] = ("d",)) -> str:
    event = LogEvent(0, 7, None if op == "r" else 5, op, False, {"id": "1", "d": there})
    row, other = {"id": "1", "d": source}, {"id": "1", "d": there}
    found = Found({"id": "1"}, '["1"]', Kind.DIFFERENT, ("d",), row, other, 9, (0, 7))
    (made,) = explain([found], Log(event), View(), {}, dates)  # type: ignore[arg-type]
    assert made.cause.split(":")[0] in CAUSES
    return made.cause


@pytest.mark.parametrize(
    ("source", "there"),
    [("1582-10-05", "1582-10-15"), ("1582-10-14", "1582-10-24"), ("-735235", "0044-03-15"), ("-2440550", "4713-01-01")],
)
def test_a_date_that_a_snapshot_changed_was_in_kafka(source: str, there: str) -> None:
    said = cause("r", source, there)
    assert said.startswith("changed by the snapshot: the last event, at 0/7, is a snapshot's row and carries another date in d")
    assert cause("u", source, there).startswith("never in Kafka"), "the stream is exact"


@pytest.mark.parametrize(
    ("source", "there", "dates"),
    [("1582-10-15", "1582-10-25", ("d",)), ("2024-01-01", "2024-01-02", ("d",)), ("-735235", "5", ()), ("-700000", "1", ("d",))],
)
def test_other_values_are_not_blamed_on_the_snapshot(source: str, there: str, dates: Collection[str]) -> None:
    assert cause("r", source, there, dates).startswith("never in Kafka")


def test_a_key_that_a_snapshot_changed_has_no_event() -> None:
    found = Found({"d": "1582-10-10"}, '["-141422"]', Kind.MISSING, (), {"d": "1582-10-10"}, None, 9, None)
    (made,) = explain([found], Log(), View(), {}, ("d",))  # type: ignore[arg-type]
    assert made.cause == "changed by the snapshot: no event of this key, since a snapshot's rows carry another date in d"
    (made,) = explain([found], Log(), View(), {}, ())  # type: ignore[arg-type]
    assert made.cause.startswith("never in Kafka")
