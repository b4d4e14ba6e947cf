"""Nothing at the source changes unseen: random sequences of DDL between random changes of rows, on the real stack, against what the service
claims. `make identity SEQUENCES=n SEED=s DEST=duckdb|postgresql TABLES=n REPLAY=file`.

The last line is ``sequences=N claims=N violations=N seconds=S``; the exit code is 1 where violations is not 0. A violation is printed with
the shortest sequence that was found to show it, as text for REPLAY.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from collections.abc import Sequence as Many
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from deploy.local.stack import ORDER, Stack, open_stack
from tests.identity.rounds import Result, Round
from tests.identity.sequence import Sequence, Step, generate, weather_of
from tests.identity.shrink import smallest

BATCH = 12
"""Candidates that are tried at once when a sequence is shrunk, each on a table of its own."""


@dataclass
class Totals:
    sequences: int = 0
    claims: int = 0
    found: list[Result] = field(default_factory=list)
    ran: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    cures: Counter[str] = field(default_factory=Counter)
    weather: Counter[str] = field(default_factory=Counter)

    def add(self, results: Many[Result]) -> None:
        self.sequences += len(results)
        for result in results:
            self.claims += result.claims
            self.ran.update(result.ran)
            self.refused.update(result.refused)
            self.cures.update(result.cures)
            if result.violation is not None:
                self.found.append(result)
        self.weather.update(results[0].sequence.weather)


def play(stack: Stack, destination: str, sequences: Many[Sequence], *, limit_seconds: float, seed: str = "") -> list[Result]:
    return Round(stack, destination, sequences, limit_seconds=limit_seconds, seed=seed).run()


def explore(
    stack: Stack, destination: str, *, sequences: int, seed: int, first: int = 0, tables: int, limit_seconds: float,
    only: tuple[str, ...] = (), alone: bool = False, weather: tuple[str, ...] = (),
    told: Callable[[Totals, Many[Result]], None] = lambda *_: None,
) -> Totals:  # fmt: skip
    """Rounds of ``tables`` sequences each until there were so many."""
    totals = Totals()
    for number in range(first, first + sequences, tables):
        over = weather or weather_of(seed, number // tables)
        made = [generate(seed, n, over, only=only, alone=alone) for n in range(number, min(number + tables, first + sequences))]
        results = play(stack, destination, made, limit_seconds=limit_seconds, seed=f"{seed}/{number}")
        totals.add(results)
        told(totals, results)
    return totals


def shrunk(stack: Stack, destination: str, result: Result, *, limit_seconds: float, deadline: float) -> Result:
    """The shortest sequence found in time that has a violation of the same kind, as it was played."""
    assert result.violation is not None
    kind, best = result.violation.kind, result

    def fails(candidates: list[Sequence]) -> list[bool]:
        nonlocal best
        if time.monotonic() > deadline:
            return [False] * len(candidates)
        played = play(stack, destination, candidates, limit_seconds=limit_seconds, seed="shrink")
        failing = [one for one in played if one.violation is not None and one.violation.kind == kind]
        best = min([best, *failing], key=lambda one: len(one.sequence.steps))
        return [one in failing for one in played]

    sequence = result.sequence.with_steps([(at, step) for at, step in result.sequence.steps if at <= result.violation.phase])
    calm = sequence.in_weather(*["calm"] * len(sequence.phases))
    if calm.weather != sequence.weather and fails([calm])[0]:
        sequence = calm

    def some(candidates: list[list[tuple[int, Step]]]) -> list[bool]:
        # Phases without steps stay, so that all candidates have one weather.
        return fails(
            [
                Sequence(sequence.shape, sequence.number, sequence.with_steps([*kept, (len(sequence.phases) - 1, Step("pause"))]).phases)
                for kept in candidates
            ]
        )

    smallest(sequence.steps, some, batch=BATCH)
    return best


def show(totals: Totals, console: Console) -> None:
    for title, counts in (("kind of step", totals.ran), ("weather", totals.weather), ("cure followed", totals.cures)):
        console.print(f"\n  {title:<28} {'times':>6}" + (f" {'refused':>8}" if counts is totals.ran else ""), highlight=False)
        for name in sorted({*counts, *(totals.refused if counts is totals.ran else ())}):
            more = f" {totals.refused[name]:>8}" if counts is totals.ran else ""
            console.print(f"  {name:<28} {counts[name]:>6}{more}", highlight=False)


def main(arguments: Many[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.identity.identity", description=__doc__)
    parser.add_argument("--sequences", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="the number of the first sequence of the seed")
    parser.add_argument(
        "--tables", type=int, help="sequences of one round, each on a table of its own (10); with --replay: how often at once (1)"
    )
    parser.add_argument("--destination", choices=["duckdb", "postgresql"], default="duckdb")
    parser.add_argument("--limit", type=float, default=90.0, help="seconds in which a table has to be complete once nothing moves")
    parser.add_argument("--shrink", type=float, default=300.0, help="seconds for shrinking, in all")
    parser.add_argument("--only", action="append", default=[], metavar="KIND", help="of the schema's changes; may be given several times")
    parser.add_argument(
        "--alone", action="store_true", help="each sequence has one kind of change of the schema: what is found is of that kind"
    )
    parser.add_argument("--weather", action="append", default=[], metavar="NAME", help="of each phase, instead of drawing it")
    parser.add_argument("--replay", help="a file with one sequence, or its text")
    options = parser.parse_args(arguments)
    console, result, began = Console(stderr=True), Console(), time.monotonic()
    given = os.environ.get("CDC_STACK_DIR")
    stack = open_stack(Path(given or tempfile.mkdtemp(prefix="cdc-identity-stack-")), say=lambda text: console.print(text, style="dim"))

    def told(totals: Totals, results: Many[Result]) -> None:
        for one in results:
            if one.violation is not None:
                console.print(f"{one.violation}\n{one.text()}", style="red", markup=False, highlight=False, soft_wrap=True)
        console.print(
            f"{time.monotonic() - began:6.0f} s  {totals.sequences} sequences, {totals.claims} claims, {len(totals.found)} violations"
        )

    with stack.guarded([] if given else ORDER, remove=not given):
        stack.start()
        if options.replay:
            text = options.replay if "\n" in options.replay else Path(options.replay).read_text(encoding="utf-8")
            totals = Totals()
            totals.add(play(stack, options.destination, [Sequence.of(text)] * (options.tables or 1), limit_seconds=options.limit))
            told(totals, totals.found)
        else:
            totals = explore(
                stack, options.destination, sequences=options.sequences, seed=options.seed, first=options.first,
                tables=options.tables or 10, limit_seconds=options.limit, only=tuple(options.only),
                alone=options.alone, weather=tuple(options.weather), told=told,
            )  # fmt: skip
            deadline = time.monotonic() + options.shrink
            for one in sorted(totals.found, key=lambda each: len(each.sequence.steps)):
                if time.monotonic() < deadline:
                    short = shrunk(stack, options.destination, one, limit_seconds=options.limit, deadline=deadline)
                    result.print(f"VIOLATION {short.violation}\n{short.text()}", markup=False, highlight=False, soft_wrap=True)
    show(totals, result)
    print(f"sequences={totals.sequences} claims={totals.claims} violations={len(totals.found)} seconds={time.monotonic() - began:.0f}")
    return 1 if totals.found else 0


if __name__ == "__main__":
    sys.exit(main())
