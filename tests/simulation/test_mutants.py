"""Design bugs put into the code are caught: the invariants are no ornament. docs/simulation.md has the table."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulation.generate import run
from tests.simulation.mutants import MUTANTS, Mutant, killed
from tests.simulation.warehouses import Warehouses

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_each_design_bug_is_caught(mutant: Mutant) -> None:
    known = killed()[mutant.name]
    with mutant.applied():
        violation = run(known["seed"], Warehouses("memory")).violation
    again = "run: python docs/simulation.py --search 250, then python docs/simulation.py"
    assert violation.startswith(known["invariant"]), f"seed {known['seed']} does not catch it any more ({violation or 'nothing'}); {again}"
    assert not run(known["seed"], Warehouses("memory")).violation


def test_there_are_enough_of_them() -> None:
    assert len(MUTANTS) >= 25
    assert set(killed()) == {mutant.name for mutant in MUTANTS}


def test_the_page_is_current() -> None:
    done = subprocess.run([sys.executable, ROOT / "docs" / "simulation.py", "--check"], check=False, timeout=120)
    assert done.returncode == 0, "run: python docs/simulation.py"
