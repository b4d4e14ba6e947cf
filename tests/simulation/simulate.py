"""``make simulate``: schedules of one seed after another, until so many or so long; what was found, and what was met on the way.

Run: python -m tests.simulation.simulate --seeds 200 [--first N] [--seconds S] [--destination memory|duckdb|postgresql] [--replay FILE]
The last line is ``schedules=N commits=N faults=N violations=N seconds=S``; the exit code is 1 where violations is not 0.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from deploy.local.stack import ORDER, open_stack
from tests.conformance.harness import PostgreSqlHarness
from tests.simulation.catalog import STATEMENTS
from tests.simulation.generate import run
from tests.simulation.schedule import ACTIONS, Outcome, Schedule, execute, shrink
from tests.simulation.warehouses import Warehouses

SHRINK_SECONDS = 120
FAULTS = (
    *ACTIONS,
    *("kill", "zombie woke", "join", "rebalance", "kafka down", "warehouse down", "source down", "tail repeated", "snapshot begun anew"),
    *("offsets of the connector removed", "signal lost", "poison", "retention", "topic deleted", "topic made again", "partition added"),
    *("target dropped", "checkpoint removed", "warehouse restored", "clock stepped", "truncate", "column added", "column dropped"),
    *(f"catalog: {what}" for what in STATEMENTS),
)
"""What counts as a fault; the rest of what happened is shown beside."""


@dataclass
class Totals:
    schedules: int = 0
    commits: int = 0
    violations: int = 0
    cpu: float = 0.0
    happened: Counter[str] = field(default_factory=Counter)
    passed: Counter[str] = field(default_factory=Counter)
    checked: Counter[str] = field(default_factory=Counter)
    in_schedules: Counter[str] = field(default_factory=Counter)

    def add(self, outcome: Outcome) -> None:
        self.schedules += 1
        self.commits += outcome.commits
        self.violations += bool(outcome.violation)
        for mine, its in ((self.happened, outcome.happened), (self.passed, outcome.passed), (self.checked, outcome.checked)):
            mine.update(its)
        self.in_schedules.update(name for name, count in outcome.happened.items() if count)

    @property
    def faults(self) -> int:
        return sum(self.happened[name] for name in FAULTS)


def shrunk(outcome: Outcome, warehouses: Warehouses, seconds: float = SHRINK_SECONDS) -> Schedule:
    """The smallest schedule found in time that breaks the same invariant."""
    deadline, invariant = time.monotonic() + seconds, outcome.violation.split()[0]

    def fails(schedule: Schedule) -> bool:
        return time.monotonic() < deadline and execute(schedule, warehouses).violation.split()[:1] == [invariant]

    return shrink(outcome.schedule, fails)


@contextmanager
def warehouses_of(destination: str) -> Iterator[Warehouses]:
    """With a PostgreSQL server for it, where it needs one: the stack's of CDC_STACK_DIR, or one of its own."""
    if destination != "postgresql":
        made = Warehouses(destination)
        try:
            yield made
        finally:
            made.close()
        return
    given = os.environ.get("CDC_STACK_DIR")
    stack = open_stack(Path(given or tempfile.mkdtemp(prefix="cdc-simulation-")))
    with stack.guarded([] if given else ORDER, remove=not given):
        stack.start(["postgres"])
        PostgreSqlHarness.server = stack
        made = Warehouses(destination)
        try:
            yield made
        finally:
            made.close()


def simulate(destination: str, first: int, seeds: int, seconds: float | None) -> Totals:
    totals, began, cpu, said = Totals(), time.monotonic(), time.process_time(), time.monotonic()
    ended: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda got, _: ended.append(got))
    with warehouses_of(destination) as warehouses:
        for seed in range(first, first + seeds):
            now = time.monotonic()
            if ended:
                break  # A run that is ended early tells what it saw, too.
            if seconds is not None and now - began >= seconds:
                break
            if now - said >= 10:
                said = now
                rate = totals.schedules / (now - began)
                print(f"  {now - began:6.0f} s  seed {seed:8}  {rate:6.1f} schedules/s  {totals.violations} violations", flush=True)
            outcome = run(seed, warehouses)
            totals.add(outcome)
            if outcome.violation:
                print(f"seed {seed}: {outcome.violation}", flush=True)
                small = shrunk(outcome, warehouses)
                print(f"# seed {seed}, {len(outcome.schedule.steps)} steps, shrunk to {len(small.steps)}; replay it: --replay FILE")
                print(f"{small}\n", flush=True)
        totals.cpu = time.process_time() - cpu
    return totals


def table(title: str, counts: Mapping[str, int], more: Mapping[str, int] | None = None) -> None:
    width = max(map(len, (title, *counts)))
    print(f"\n  {title:<{width}}  {'times':>9}" + (f"  {'schedules':>9}" if more is not None else ""))
    for name, count in counts.items():
        print(f"  {name:<{width}}  {count:>9}" + (f"  {more.get(name, 0):>9}" if more is not None else ""))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--seeds", type=int, default=200, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--seconds", type=float, help="end after this long")
    parser.add_argument("--destination", default="memory", choices=["memory", "duckdb", "postgresql"])
    parser.add_argument("--replay", type=Path, help="a file with one schedule")
    options = parser.parse_args()
    began = time.monotonic()
    if options.replay is not None:
        totals = Totals()
        with warehouses_of(options.destination) as warehouses:
            outcome = execute(Schedule.of(options.replay.read_text(encoding="utf-8")), warehouses)
        totals.add(outcome)
        print(outcome.violation or "nothing is wrong")
    else:
        totals = simulate(options.destination, options.first, options.seeds, options.seconds)
    seconds = time.monotonic() - began
    table("fault", {name: totals.happened[name] for name in FAULTS}, totals.in_schedules)
    rest = {name: count for name, count in sorted(totals.happened.items()) if name not in FAULTS}
    table("also met", rest, totals.in_schedules)
    table("invariant", dict(sorted(totals.checked.items(), key=lambda entry: int(entry[0][1:]))))
    print(f"\n  {totals.schedules / seconds:.1f} schedules/s, {totals.schedules / max(totals.cpu, 0.001):.1f} per second of the processor")
    print(f"  {sum(totals.checked.values())} checks of invariants, {sum(totals.passed.values())} effects at {len(totals.passed)} places\n")
    print(
        f"schedules={totals.schedules} commits={totals.commits} faults={totals.faults} violations={totals.violations} seconds={seconds:.0f}"
    )
    return 1 if totals.violations else 0


if __name__ == "__main__":
    sys.exit(main())
