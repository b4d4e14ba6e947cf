"""The real loop under schedules of seeds: transactions, snapshots, servers that fail, workers that die, freeze and wake; every invariant
after every commit (I1-I4, I7-I13, I16-I25). docs/simulation.md says how, `make simulate` runs more.

A violation prints its shrunk schedule; add it to regressions.py when it is mended.
"""

from __future__ import annotations

import ast
import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from cdc_service.failpoints import NAMES
from tests.conformance.harness import PostgreSqlHarness
from tests.simulation.generate import run
from tests.simulation.regressions import REGRESSIONS
from tests.simulation.schedule import Schedule, Setting, Simulation, Step, execute, quiet
from tests.simulation.simulate import shrunk
from tests.simulation.warehouses import Warehouses

ROOT = Path(__file__).parents[2]
SECONDS = float(os.environ.get("CDC_SIMULATION_SECONDS", "15"))
"""How long schedules run on each destination."""
ENOUGH = 5
"""So many run however slow the machine is."""

"""Shrunk schedules of bugs that the simulation found in the service."""


@pytest.fixture(scope="module")
def memory() -> Iterator[Warehouses]:
    made = Warehouses("memory")
    yield made
    made.close()


@pytest.fixture(params=["memory", "duckdb", pytest.param("postgresql", marks=pytest.mark.stack)])
def warehouses(request: pytest.FixtureRequest) -> Iterator[Warehouses]:
    if request.param == "postgresql":
        PostgreSqlHarness.server = request.getfixturevalue("postgres")
    made = Warehouses(request.param)
    yield made
    made.close()


def test_all_invariants_hold_after_every_commit_whatever_happens(warehouses: Warehouses) -> None:
    began, seed, commits = time.monotonic(), 0, 0
    while time.monotonic() - began < SECONDS or seed < ENOUGH:
        outcome = run(seed, warehouses)
        assert not outcome.violation, f"seed {seed}: {outcome.violation}\n\n{shrunk(outcome, warehouses, 60)}"
        seed, commits = seed + 1, commits + outcome.commits
    print(f"{warehouses.name}: {seed} schedules, {commits} commits")


@pytest.mark.parametrize("what", REGRESSIONS)
def test_what_was_found_and_mended_stays_so(memory: Warehouses, what: str) -> None:
    assert not execute(Schedule.of(REGRESSIONS[what]), memory).violation


def test_a_schedule_is_text_that_can_be_replayed(memory: Warehouses) -> None:
    seen: Counter[str] = Counter()
    for seed in range(3):
        first = run(seed, memory)
        again = execute(Schedule.of(str(first.schedule)), memory)
        assert str(again.schedule) == str(first.schedule)
        assert (again.violation, again.commits, again.happened) == (first.violation, first.commits, first.happened)
        seen.update(first.happened)
    assert sum(seen.values()) > 10


def code_failpoints() -> set[str]:
    """The names at which the service's code passes failpoints."""
    found = set()
    for package in ("cdc_service", "connectors", "mergers", "reconcile"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "failpoint":
                    (name,) = node.args
                    assert isinstance(name, ast.Constant), f"{path}: a failpoint's name is a text"
                    found.add(name.value)
    return found


def test_every_failpoint_is_registered_and_schedules_pass_it(memory: Warehouses) -> None:
    assert code_failpoints() == set(NAMES)
    passed: Counter[str] = Counter()
    for seed in range(200):
        passed.update(run(seed, memory).passed)
        if set(NAMES) <= set(passed):
            return
    pytest.fail(f"never passed: {sorted(set(NAMES) - set(passed))}")


def test_a_table_of_which_no_event_ever_came_has_an_empty_target(memory: Warehouses) -> None:
    with quiet():
        simulation = Simulation(Setting(), memory)
        for number in range(40):
            simulation.world.at += 1.0
            for step in (Step("deliver", ("10",)), Step("store"), Step("turn", ("w0", str(number), "look"))):
                simulation.apply(step)
    (target,) = simulation.targets
    schema = simulation.warehouse.schema(target)
    assert schema == simulation.world.schema("t0")
    assert simulation.warehouse.rows(target, schema).num_rows == 0
    assert simulation.warehouse.state(target).state == "streaming"


def test_i18_a_resync_into_a_topic_made_again_goes_on_while_no_partition_is_here(memory: Warehouses) -> None:
    """The group takes seconds to hand the new topic's partitions out; until then the table knows only the old topic."""
    with quiet():
        simulation = Simulation(Setting(rows=2), memory)
        for number in range(20):
            for step in (Step("deliver", ("10",)), Step("store"), Step("turn", ("w0", str(number), "look"))):
                simulation.apply(step)
        (worker,) = simulation.group.workers
        simulation.apply(Step("delete_topic", ("t0",)))
        worker.log.lost = set(worker.log.positions)
        worker.turn()
        simulation.apply(Step("make_topic", ("t0",)))
        worker.log.given.clear()
        worker.facts = simulation.world.look()
        worker.turn()
        worker.act("resync", "t0")
        for _ in range(3):
            simulation.world.at += 1.0
            worker.facts = simulation.world.look()
            worker.turn()
        assert worker.tables[0].state.name == "snapshotting"
        simulation.heal()


@pytest.mark.parametrize(
    ("statement", "read"),
    [
        (("vacuum", "t0"), 0),
        (("born", "t0"), 0),
        (("rename", "t0", "name", "1"), 0),
        (("rename", "t0", "id", "1"), 0),
        (("rewrite", "t0", "name"), 1),
        (("swap", "t0"), 1),
        (("attach", "t0", "7"), 1),
    ],
    ids=lambda one: one[0] if isinstance(one, tuple) else None,
)
def test_i28_a_table_is_read_anew_only_where_nothing_else_tells(memory: Warehouses, statement: tuple[str, ...], read: int) -> None:
    with quiet():
        simulation = Simulation(Setting(rows=6), memory)
        (target,) = simulation.targets

        def turns(first: int) -> None:
            for number in range(first, first + 20):
                simulation.world.at += 1.0
                for step in (Step("deliver", ("10",)), Step("store"), Step("turn", ("w0", str(number), "look"))):
                    simulation.apply(step)

        simulation.apply(Step("commit", ("1",)))
        turns(0)
        assert simulation.warehouse.state(target).state == "streaming"
        # Its changes come after the catalog was seen, and know the columns by the names of before.
        assert simulation.apply(Step("write", ("0", "update", "t0", "3", "0"))) is not None
        assert simulation.apply(Step("commit", ("0",))) is not None
        assert simulation.apply(Step("catalog", ("-", *statement))) is not None
        simulation.apply(Step("turn", ("w0", "99", "look")))
        turns(100)
        state = simulation.warehouse.state(target)
        assert (state.state, state.generation) == ("streaming", read)
        simulation.heal()
        assert simulation.warehouse.state(target).generation == read
