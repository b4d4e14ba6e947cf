"""Rounds of merges (cdc_service.pipeline.merge_worker): what they ask the source ahead of it holds no merge back."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from cdc_service.core.clock import RealClock
from cdc_service.core.errors import Unavailable
from cdc_service.core.identity import Identities
from cdc_service.core.types import TableId
from cdc_service.pipeline import merge_worker as merging
from cdc_service.pipeline.follower import Asked
from cdc_service.pipeline.merge_worker import MergeWorker, beside

NOW = Identities(7, {}, frozenset(), 0, False)


class Ahead:
    """A table whose changes are ahead of what the source said; ``told`` is what each of its merges was told."""

    source = TableId("public", "t")
    is_ahead = True
    merges = 0

    def __init__(self) -> None:
        self.config = self.partitions = self.log = self.tally = self
        self.topic = self.topic_id = "t"
        self.told: list[Identities | None] = []

    def set_aside(self) -> None:
        pass

    def flush(self, asked: Asked) -> Mapping[int, int]:
        self.told.append(asked())
        return {0: 1}


class Source:
    def __init__(self) -> None:
        self.answers, self.asked = threading.Event(), 0
        self.error: Exception | None = None

    def topic_ids(self, names: Sequence[str]) -> Mapping[str, str]:
        return {name: name for name in names}

    def identities(self, tables: Sequence[TableId]) -> Identities:
        self.asked += 1
        assert self.answers.wait(30), "nobody let it answer"
        if self.error is not None:
            raise self.error
        return NOW


def merged(rounds: MergeWorker, *tables: Any) -> None:
    rounds.begin(tables)
    rounds.wait(30)
    outcomes = rounds.outcomes()
    assert [outcome.error for outcome in outcomes] == [None] * len(tables), outcomes


def test_a_source_that_hangs_holds_a_round_once_and_is_asked_again_when_it_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merging, "ANSWER_SECONDS", 0.05)
    source, table, other = Source(), Ahead(), Ahead()
    rounds = MergeWorker(source, source.identities, beside, RealClock(), beside)
    for _ in range(3):
        merged(rounds, table, other)
    assert (table.told, other.told, source.asked) == ([None] * 3, [None] * 3, 1)
    source.answers.set()
    while NOW not in table.told:
        assert len(table.told) < 100_000, "it is not asked again"
        merged(rounds, table)


def test_a_source_that_fails_holds_no_round() -> None:
    source, table = Source(), Ahead()
    source.error = Unavailable("away")
    source.answers.set()
    rounds = MergeWorker(source, source.identities, beside, RealClock(), beside)
    merged(rounds, table)
    source.error = None
    while NOW not in table.told:
        assert len(table.told) < 100_000, "it is not asked again"
        merged(rounds, table)
    assert source.asked == 2
