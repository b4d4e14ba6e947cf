"""Rounds of faults on the real stack under a hostile load, for as long as asked: `make chaos MINUTES=n SEED=s`.

Each round commits some hundred statements at the source, does one thing to a part of the line meanwhile, and must end complete within its
limit. Source and warehouse are compared row by row after it (a DuckDB file at the end of all), the ledger must close, and no row's version
may go back. The seed chooses the faults and the statements; how processes interleave is left to the machine.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import psycopg
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from deploy.local.stack import ORDER, Stack, open_stack
from tests.support import hostile
from tests.support.line import Line, Versions, database
from tests.support.proxy import FaultyLink
from tests.support.warehouses import PostgreSqlDatabase, warehouse

KEYS = {"public.doc": ["id"], "public.pair": ["b", "a"], "public.soft": ["k", "t"], "public.part": ["region", "id"]}
COMPLETE_SECONDS = 120.0
FROZEN_SECONDS = 3.0
BLACK_HOLE_SECONDS = 4.0


@dataclass
class Field:
    """What the faults work on."""

    stack: Stack
    pipeline: Line
    dice: Random
    link: FaultyLink | None
    restarts: list[float] = field(default_factory=list)
    """Seconds from the start of a killed service to its first merge."""

    def restart(self) -> None:
        began = time.monotonic()
        self.pipeline.start()
        self.pipeline.await_that("the first merge after a restart", self._merged, 60)
        self.restarts.append(time.monotonic() - began)

    def _merged(self) -> bool:
        status = self.pipeline.status()
        # Where nothing was left to merge, being caught up counts.
        return status is not None and (status["service"].get("merges", 0) > 0 or all(not t["lag_events"] for t in status["tables"]))


def service_killed(f: Field) -> None:
    f.pipeline.kill()
    f.restart()


def service_ended(f: Field) -> None:
    f.pipeline.stop()
    f.restart()


def service_frozen(f: Field) -> None:
    """Longer than nothing, shorter than its session: it goes on with what it held."""
    f.pipeline.signal(signal.SIGSTOP)
    time.sleep(f.dice.uniform(0.2, FROZEN_SECONDS))  # The fault itself.
    f.pipeline.signal(signal.SIGCONT)


def _part_killed(part: str) -> Callable[[Field], None]:
    def kill(f: Field) -> None:
        f.stack.kill(part)
        f.stack.start([part])

    return kill


def _killed_twice(part: str) -> Callable[[Field], None]:
    def kill(f: Field) -> None:
        f.pipeline.kill()
        f.stack.kill(part)
        f.stack.start([part])
        f.restart()

    return kill


def replication_cut(f: Field) -> None:
    """The connector's connection to the source's log."""
    with psycopg.connect(f.stack.pg_url, autocommit=True) as admin:
        admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_replication")


def source_sessions_cut(f: Field) -> None:
    with psycopg.connect(f.stack.pg_url, autocommit=True) as admin:
        admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'cdc' AND pid <> pg_backend_pid()")


def _link(do: Callable[[FaultyLink, Random], None]) -> Callable[[Field], None]:
    def fault(f: Field) -> None:
        assert f.link is not None
        try:
            do(f.link, f.dice)
        finally:
            f.link.heal()

    return fault


def _slow(link: FaultyLink, dice: Random) -> None:
    link.slow(dice.choice((0.02, 0.2)))
    time.sleep(FROZEN_SECONDS)  # The fault itself.


def _reset(link: FaultyLink, dice: Random) -> None:
    for _ in range(dice.randrange(1, 6)):
        link.reset()
        time.sleep(dice.uniform(0, 0.4))


def _black_hole(link: FaultyLink, dice: Random) -> None:
    link.swallow()
    time.sleep(BLACK_HOLE_SECONDS)
    if dice.random() < 0.5:
        link.reset()


def _commit_lost(link: FaultyLink, dice: Random) -> None:
    lost = link.lost
    link.lose_commit()
    deadline = time.monotonic() + 20
    while link.lost == lost and time.monotonic() < deadline:
        time.sleep(0.02)


FAULTS: dict[str, tuple[int, Callable[[Field], None]]] = {
    "service killed": (8, service_killed),
    "service ended and started": (2, service_ended),
    "service frozen, woken": (3, service_frozen),
    "Connect killed": (1, _part_killed("connect")),
    "broker killed": (1, _part_killed("kafka")),
    "PostgreSQL killed": (1, _part_killed("postgres")),
    "service and broker killed": (1, _killed_twice("kafka")),
    "service and Connect killed": (1, _killed_twice("connect")),
    "log connection cut": (2, replication_cut),
    "source sessions cut": (2, source_sessions_cut),
    "warehouse slow": (1, _link(_slow)),
    "warehouse connections reset": (2, _link(_reset)),
    "warehouse a black hole": (1, _link(_black_hole)),
    "reply to COMMIT lost": (4, _link(_commit_lost)),
}
"""Each with its weight."""
LINK = {name for name in FAULTS if name.startswith(("warehouse", "reply"))}


def possible(destination: str, chosen: Sequence[str]) -> list[str]:
    """The faults that can be had here: the link needs a server as warehouse."""
    found = [n for n in FAULTS if destination == "postgresql" or n not in LINK]
    if not chosen:
        return found
    if unknown := set(chosen) - set(found):
        raise SystemExit(f"not possible here: {', '.join(sorted(unknown))}; there are: {', '.join(found)}")
    return list(chosen)


@dataclass
class Tally:
    rounds: int = 0
    statements: int = 0
    commits: int = 0
    violations: list[str] = field(default_factory=list)
    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    """By fault: how long each round needed from its last statement until all was complete."""
    restarts: list[float] = field(default_factory=list)


def play(field_: Field, names: Sequence[str], tally: Tally, *, seed: int, statements: int, source_url: str, comparing: bool) -> str:
    """One round; the fault's name."""
    dice, pipeline = field_.dice, field_.pipeline
    name = dice.choices(list(names), [FAULTS[n][0] for n in names])[0]
    scale = hostile.Scale(operations=statements, truncates=int(dice.random() < 0.2))
    load = hostile.Load(source_url, scale, seed=seed * 100_000 + tally.rounds)
    with hostile.loading(load) as work:
        moment = dice.randrange(statements)
        while load.committed < moment and not work.done():
            time.sleep(0.01)
        FAULTS[name][1](field_)
        tally.statements += work.result(timeout=240).statements
    began = time.monotonic()
    pipeline.await_complete(*hostile.TABLES, limit_seconds=COMPLETE_SECONDS)
    tally.seconds[name].append(time.monotonic() - began)
    if comparing:
        tally.violations += [str(one) for one in pipeline.compare(hostile.TABLES) if not one.equal]
    tally.rounds += 1
    return name


def run(
    stack: Stack, *, destination: str, seed: int, until: Callable[[Tally], bool], names: Sequence[str], statements: int,
    told: Callable[[Tally, str], None],
) -> Tally:  # fmt: skip
    """Rounds until ``until`` says so. What a check finds stands in ``violations``; what does not heal raises AssertionError."""
    tally = Tally()
    with ExitStack() as held, tempfile.TemporaryDirectory(prefix="cdc-chaos-") as folder:
        source = held.enter_context(database(stack))
        into = held.enter_context(warehouse(destination, stack, Path(folder)))
        link = None
        if isinstance(into, PostgreSqlDatabase):
            link = held.enter_context(FaultyLink(stack.port("postgres")))
            into.url = into.url.replace(f":{stack.port('postgres')}/", f":{link.port}/")
        hostile.seed(source.url, hostile.Scale())
        pipeline = Line(stack, source, Path(folder), hostile.CONFIG, warehouse=into)
        try:
            pipeline.register()
            pipeline.start()
            pipeline.await_complete(*hostile.TABLES)
            field_ = Field(stack, pipeline, Random(f"chaos/{seed}"), link)
            with Versions(pipeline, KEYS) as versions:
                while not until(tally):
                    comparing = destination == "postgresql"
                    name = play(field_, names, tally, seed=seed, statements=statements, source_url=source.url, comparing=comparing)
                    told(tally, name)
            pipeline.stop()
            tally.restarts = field_.restarts
            tally.violations += versions.wrong
            tally.violations += [str(one) for one in pipeline.compare(hostile.TABLES) if not one.equal]
            try:
                pipeline.assert_ledger(hostile.TABLES)
            except AssertionError as error:
                tally.violations.append(str(error))
            tally.commits = int(pipeline.rows("SELECT count(*) FROM (SELECT DISTINCT source_table, batch_id FROM _cdc.batch) AS b")[0][0])
        finally:
            pipeline.kill()
            stack.start()
            pipeline.close()
    return tally


def show(tally: Tally, console: Console) -> None:
    table = Table(title="Faults, and how long it took from the last statement until all was complete", title_justify="left")
    for name, justify in (("fault", "left"), ("rounds", "right"), ("median s", "right"), ("longest s", "right")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for name, seconds in sorted(tally.seconds.items(), key=lambda item: -len(item[1])):
        table.add_row(name, str(len(seconds)), f"{statistics.median(seconds):.1f}", f"{max(seconds):.1f}")
    console.print(table)
    if restarts := sorted(tally.restarts):
        p99 = restarts[min(len(restarts) - 1, int(len(restarts) * 0.99))]
        console.print(f"restart to first merge: {len(restarts)} times, median {statistics.median(restarts):.1f} s, p99 {p99:.1f} s")
    for one, times in Counter(tally.violations).items():
        console.print(f"VIOLATION ({times} times): {one}", style="bold red", markup=False)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fault.chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, help="instead of minutes")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--destination", choices=["duckdb", "postgresql"], default="postgresql")
    parser.add_argument("--statements", type=int, default=400, help="committed at the source in each round")
    parser.add_argument("--only", action="append", default=[], metavar="FAULT", help="may be given several times")
    options = parser.parse_args(arguments)
    names = possible(options.destination, options.only)
    console, began = Console(stderr=True), time.monotonic()
    result = Console()
    given = os.environ.get("CDC_STACK_DIR")
    stack = open_stack(Path(given or tempfile.mkdtemp(prefix="cdc-chaos-stack-")), say=lambda text: console.print(text, style="dim"))
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[said]}"), TimeElapsedColumn())
    try:
        with stack.guarded([] if given else ORDER, remove=not given), Progress(*columns, console=console) as bar:
            stack.start()
            total = options.rounds or options.minutes * 60
            task = bar.add_task("chaos", total=total, said="")

            def ends(tally: Tally) -> bool:
                return tally.rounds >= options.rounds if options.rounds else time.monotonic() - began >= options.minutes * 60

            said = 0

            def told(tally: Tally, name: str) -> None:
                nonlocal said
                for one in tally.violations[said:]:
                    console.print(f"round {tally.rounds}, {name}: {one}", style="bold red", markup=False)
                said = len(tally.violations)
                done = tally.rounds if options.rounds else time.monotonic() - began
                bar.update(task, completed=done, said=f"{tally.rounds} rounds, {len(tally.violations)} violations, last: {name}")

            tally = run(
                stack, destination=options.destination, seed=options.seed, until=ends, names=names, statements=options.statements, told=told
            )  # fmt: skip
    except AssertionError as error:
        console.print(f"it did not heal (seed {options.seed}):\n{error}", style="red", markup=False)
        print(f"rounds=0 commits=0 faults=0 violations=1 seconds={time.monotonic() - began:.0f}")
        return 1
    show(tally, result)
    print(
        f"rounds={tally.rounds} commits={tally.commits} faults={tally.rounds} violations={len(tally.violations)}"
        f" seconds={time.monotonic() - began:.0f}"
    )
    return 1 if tally.violations else 0


if __name__ == "__main__":
    sys.exit(main())
