"""Failpoints: what the environment plans comes about at the right passing, and a wrong plan is refused."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from cdc_service.failpoints import NAMES, acting, failpoint

PASSES = """
from cdc_service.failpoints import failpoint
for _ in range(3):
    for name in ("line.flush", "merge.committed"):
        try:
            failpoint(name)
            print(name)
        except Exception as error:
            print(type(error).__name__)
"""


def passes(plan: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "CDC_FAILPOINTS": plan}
    return subprocess.run([sys.executable, "-c", PASSES], env=environment, capture_output=True, text=True, check=False, timeout=60)


def test_nothing_happens_without_a_plan() -> None:
    assert passes("").stdout.split() == ["line.flush", "merge.committed"] * 3


def test_each_action_comes_about_once_at_its_passing() -> None:
    done = passes("line.flush=raise@2,merge.committed=lose")
    assert done.stdout.split() == ["line.flush", "CommitUnknown", "Unavailable", "merge.committed", "line.flush", "merge.committed"]
    assert passes("line.flush=crash@3").returncode == -9


@pytest.mark.parametrize("plan", ["line.flash=raise", "line.flush=explode", "line.flush"])
def test_a_plan_that_names_nothing_is_refused(plan: str) -> None:
    done = passes(plan)
    assert done.returncode == 1
    assert "unknown failpoint or action" in done.stderr


def test_an_actor_is_called_at_every_failpoint_while_it_is_installed() -> None:
    seen: list[str] = []
    with acting(seen.append):
        for name in NAMES:
            failpoint(name)
    failpoint("line.flush")
    assert seen == list(NAMES)
