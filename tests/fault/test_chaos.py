"""A few rounds of chaos (tests.fault.chaos), so that it can be run for long at any time. CDC_TEST_ROUNDS asks for more."""

from __future__ import annotations

import os

import pytest

from deploy.local.stack import Stack
from tests.fault.chaos import possible, run

ROUNDS = int(os.environ.get("CDC_TEST_ROUNDS", "3"))


@pytest.mark.timeout(60 + 150 * ROUNDS)
def test_rounds_of_faults_end_equal(stack: Stack) -> None:
    """I1-I5, I7, I8, I11-I16, I21, I24."""
    names = possible("postgresql", ["reply to COMMIT lost", "service killed", "warehouse connections reset"])
    done = run(
        stack, destination="postgresql", seed=1, until=lambda t: t.rounds >= ROUNDS, names=names, statements=150, told=lambda *_: None
    )  # fmt: skip
    assert done.violations == []
    assert done.rounds == ROUNDS
    assert done.commits > 0
