"""Throughput side by side: this service, its peers and the limits, on the same topics of the local stack, one after another.

Run: make bench (ARMS=plain,duckdb N=500000 WORKLOADS=insert WIRES=json PARTITIONS=1 ROUNDS=1). The table is printed, the result is
bench/results/bench.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import psycopg

from deploy.local.process import StackError
from deploy.local.stack import COMPONENTS, ORDER, Stack
from tests.bench import latency, page
from tests.bench.arms import ArmError, Run, run_limit, run_plain, run_service
from tests.bench.destinations import PostgreSqlDatabase, destination
from tests.bench.filled import Filled, filled
from tests.bench.growth import command, group, grown
from tests.bench.progress import say
from tests.bench.sink import SINKS, Worker, run_sink
from tests.bench.workload import WORKLOADS

N = 400_000


@dataclass(frozen=True, slots=True)
class Case:
    """One full topic; ``share`` of N changes are in it."""

    workload: str
    wire: str
    partitions: int
    share: float
    arms: tuple[str, ...]


OURS = ("plain", "duckdb", "postgresql")
MORE = ("command", "growth", "group", "latency")
LIMITS = ("limit-duckdb", "limit-postgresql")
CASES = (
    Case("insert", "json", 1, 1.25, (*OURS, *LIMITS)),
    Case("insert", "json+schema", 1, 1.25, (*OURS, *SINKS)),
    Case("mixed", "json+schema", 1, 1.0, (*OURS, *SINKS)),
    Case("insert", "avro", 1, 1.25, OURS),
    Case("insert", "json", 4, 1.0, OURS),
    Case("mixed1", "json", 1, 1.0, (*OURS, *LIMITS)),
    Case("mixed", "json", 1, 1.0, (*OURS, *LIMITS)),
    Case("hot", "json", 1, 1.0, OURS),
    Case("wide", "json", 1, 0.05, OURS),
    Case("large", "json", 1, 0.01, OURS),
    Case("tables200", "json", 1, 0.5, ("duckdb",)),
)


def arms(kinds: Sequence[str], workers: list[Worker]) -> dict[str, Callable[[Filled, Path], Run]]:
    """What runs on a full topic, by the name that ARMS takes. The sink's worker is made when it is first needed."""

    def service(kind: str) -> Callable[[Filled, Path], Run]:
        def run(topic: Filled, folder: Path) -> Run:
            with destination(kind, topic.stack, folder) as to:
                return run_service(topic, to, folder)

        return run

    def limit(kind: str) -> Callable[[Filled, Path], Run]:
        def run(topic: Filled, folder: Path) -> Run:
            with destination(kind, topic.stack, folder) as to:
                return run_limit(topic, to, folder)

        return run

    def sink(name: str) -> Callable[[Filled, Path], Run]:
        def run(topic: Filled, folder: Path) -> Run:
            with destination("postgresql", topic.stack, folder) as to:
                assert isinstance(to, PostgreSqlDatabase)
                if not workers:
                    workers.append(Worker(topic.stack, folder / "worker"))
                return run_sink(topic, to, workers[0], name)

        return run

    every = {"plain": lambda topic, _: run_plain(topic), "duckdb": service("duckdb"), "postgresql": service("postgresql")}
    every |= {f"limit-{kind}": limit(kind) for kind in ("duckdb", "postgresql")}
    every |= {name: sink(name) for name in SINKS}
    return {name: run for name, run in every.items() if name in kinds or not kinds}


@contextmanager
def standing(folder: Path, components: Sequence[str]) -> Iterator[Stack]:
    """The stack in CDC_STACK_DIR, or one of its own."""
    given = os.environ.get("CDC_STACK_DIR")
    stack = Stack(given or folder / "stack")
    with stack.guarded([] if given else ORDER, remove=not given):
        stack.start(components)
        yield stack


def measure(runs: list[Run], cases: Sequence[Case], wanted: Sequence[str], count: int, rounds: int, stack: Stack, folder: Path) -> None:
    """Every case with its arms; what has run is added to ``runs``."""
    workers: list[Worker] = []
    try:
        for number, case in enumerate(cases):
            names = [arm for arm in case.arms if not wanted or arm in wanted]
            if not names:
                continue
            mine = arms(names, workers)
            changes = max(500, int(count * case.share))
            with filled(stack, WORKLOADS[case.workload], case.wire, case.partitions, changes, folder / str(number)) as topic:
                for turn in range(rounds):
                    for name, run in mine.items():
                        place = folder / str(number) / f"{name}-{turn}"
                        runs += _tried(name, case.workload, lambda run=run, place=place: [run(topic, place)])  # type: ignore[misc]
    finally:
        for worker in workers:
            worker.close()


def more(
    runs: list[Run], wanted: Sequence[str], count: int, stack: Stack, folder: Path, rates: Sequence[int], sizes: Sequence[int]
) -> None:
    """What is measured on topics or tables of its own; it is added to ``runs``."""

    def part(arm: str, what: str, do: Callable[[Path], list[Run]]) -> None:
        if not wanted or arm in wanted:
            runs.extend(_tried(arm, what, lambda: do(folder / f"more{len(runs)}")))

    part("command", "", lambda _: command())
    for rows in sizes:
        for kind in ("duckdb", "postgresql"):
            what = f"{rows / 1e6:g}M rows"
            part("growth", what, lambda place, k=kind, r=rows: [grown(stack, k, r, count // 2, place)])  # type: ignore[misc]
    if not wanted or "group" in wanted:
        with filled(stack, WORKLOADS["insert"], "json", 4, count, folder / "group") as topic:
            for processes, kill in ((1, False), (2, False), (4, False), (2, True)):
                part("group", "insert", lambda place, p=processes, k=kill: [group(topic, p, place, kill=k)])  # type: ignore[misc]
    for kind in ("postgresql", "duckdb"):
        part("latency", kind, lambda place, k=kind: latency.measure(stack, place, k, tuple(rates), 8.0, 0.1))  # type: ignore[misc]


def _tried(name: str, workload: str, do: Callable[[], list[Run]]) -> list[Run]:
    """What ran; an arm that fails is reported with its reason, not left out."""
    try:
        runs = do()
    except (ArmError, AssertionError, StackError, psycopg.Error, duckdb.Error, subprocess.TimeoutExpired) as error:
        runs = [Run(name, workload, "", "", 0, 0, right=False, note=f"failed: {' '.join(str(error).split())[-500:]}")]
    for run in runs:
        say(line(run))
    return runs


HEAD = (
    f"{'arm':22} {'workload':10} {'wire':12} {'to':11} {'part.':>5} {'events':>10} {'s':>7} {'events/s':>9} {'CPU s':>7}"
    f" {'ev/CPU s':>9} {'db CPU':>7} {'MB':>5} {'others':>6} {'right':5}  note"
)


def line(run: Run) -> str:
    database = run.database_cpu_seconds
    per_cpu = f"{run.events / run.cpu_seconds:,.0f}" if run.cpu_seconds else ""
    right = {True: "yes", False: "NO", None: ""}[run.right]
    return (
        f"{run.arm:22} {run.workload:10} {run.wire:12} {run.destination:11} {run.partitions:5} {run.events:10,} {run.seconds:7.2f}"
        f" {run.events_per_second:9,} {run.cpu_seconds:7.2f} {per_cpu:>9} {database:7.2f} {run.peak_rss_mb:5}"
        f" {run.others:6.1f} {right:5}  {run.note}"
    ).rstrip()


def write(runs: Sequence[Run], place: Path) -> None:
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    machine = f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    place.parent.mkdir(parents=True, exist_ok=True)
    document = {"commit": commit, "at": datetime.now(UTC).isoformat(), "machine": machine, "runs": [asdict(r) for r in runs]}
    place.write_text(json.dumps(document, indent=1))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--arms", default="", help="some of " + ", ".join((*arms((), []), *MORE)))
    parser.add_argument("-n", type=int, default=N, help="changes in a topic; some workloads take a share of it")
    parser.add_argument("--workloads", default="")
    parser.add_argument("--wires", default="")
    parser.add_argument("--partitions", default="")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--sizes", default="100000,1000000,10000000", help="rows in the table whose growth is measured")
    parser.add_argument("--rates", default="100,1000,5000", help="events a second whose latency is measured")
    parser.add_argument("--out", type=Path, default=Path("bench/results/bench.json"))
    parser.add_argument("--page", action="store_true", help="write docs/performance.md and its picture from the result")
    options = parser.parse_args(arguments)
    cases = [
        case
        for case in CASES
        if (not options.workloads or case.workload in options.workloads.split(","))
        and (not options.wires or case.wire in options.wires.split(","))
        and (not options.partitions or str(case.partitions) in options.partitions.split(","))
    ]
    folder = Path(tempfile.mkdtemp(prefix="cdc-bench-"))
    needed = (*COMPONENTS, "registry") if any(case.wire == "avro" for case in cases) else COMPONENTS
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # What was started has to end then too, and what was measured is kept.
    runs: list[Run] = []
    wanted = [arm for arm in options.arms.split(",") if arm]
    try:
        with standing(folder, needed) as stack:
            measure(runs, cases, wanted, options.n, options.rounds, stack, folder)
            if not (options.workloads or options.wires or options.partitions) or set(wanted) & set(MORE):
                rates, sizes = ([int(text) for text in given.split(",") if text] for given in (options.rates, options.sizes))
                more(runs, wanted, options.n, stack, folder, rates, sizes)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        print("\n".join([HEAD, *map(line, runs)]))
        write(runs, options.out)
        say(f"written: {options.out}")
    if options.page:
        page.main(options.out)


if __name__ == "__main__":
    main()
