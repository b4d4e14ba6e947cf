"""A small share of `make identity` for each destination. CDC_TEST_LOAD asks for more, CDC_TEST_SEEDS for others."""

from __future__ import annotations

import os

import pytest

from deploy.local.stack import Stack
from tests.identity.identity import explore
from tests.support.line import FACTOR

TABLES = 6
SEQUENCES = max(1, round(TABLES * FACTOR))
SEED = int(os.environ.get("CDC_TEST_SEEDS", "1").split()[0])


@pytest.mark.timeout(300 * (SEQUENCES // TABLES + 1))
@pytest.mark.parametrize("destination", ["duckdb", "postgresql"])
def test_nothing_at_the_source_changes_unseen(stack: Stack, destination: str) -> None:
    """I28: at each claim the target is the source as of that position; what stops comes back by its own cure."""
    totals = explore(stack, destination, sequences=SEQUENCES, seed=SEED, tables=TABLES, limit_seconds=90)
    assert [f"{one.violation}\n{one.text()}" for one in totals.found] == []
    assert totals.sequences == SEQUENCES
    assert totals.claims >= SEQUENCES, "hardly anything was claimed, so hardly anything was judged"
    assert sum(totals.ran.values()) > 10 * SEQUENCES
