"""Where the service spends its time on full topics: py-spy samples `cdc run`, and the shares of its functions are printed.

Run: make bench-profile (N=400000 WIRES=json DESTINATIONS=duckdb). Shares are of the samples of the two threads of the line, the one that
reads and the one that merges; a function's share has that of all that it calls. Samples are taken where a thread works, or waits for a lock
or a server, and while it goes on: stopped for each sample, the service takes six times as long.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from deploy.local.stack import COMPONENTS
from tests.bench.arms import run_service
from tests.bench.bench import standing
from tests.bench.destinations import destination
from tests.bench.filled import filled
from tests.bench.progress import say
from tests.bench.workload import WORKLOADS

ROOTS = ("read (cdc_service/pipeline/poll_loop.py", "_merge (cdc_service/pipeline/merge_worker.py")
OURS = re.compile(r"([^;()]+) \(((?:cdc_service|connectors|mergers)/[^:)]+)(?::\d+)?\)")
LEAST = 0.02
RATE = 200


def shares(raw: Path) -> Iterator[tuple[str, float]]:
    """Function -> share of the samples, the largest first; threads that do not run the line are left out."""
    inclusive: Counter[str] = Counter()
    total = 0
    for text in raw.read_text().splitlines():
        stack, _, count = text.rpartition(" ")
        begins = [stack.index(root) for root in ROOTS if root in stack]
        if not begins:
            continue
        total += int(count)
        below = stack[begins[0] :]
        for function, module in {(m[1], m[2]) for m in OURS.finditer(below) if "<" not in m[1]}:
            inclusive[f"{module.removesuffix('.py').replace('/', '.')}.{function}"] += int(count)
    for name, count in inclusive.most_common():
        yield name, count / total


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--py-spy", type=Path, required=True, help="the program")
    parser.add_argument("-n", type=int, default=400_000)
    parser.add_argument("--workloads", default="insert")
    parser.add_argument("--wires", default="json")
    parser.add_argument("--destinations", default="duckdb,postgresql")
    options = parser.parse_args(arguments)
    needed = (*COMPONENTS, "registry") if "avro" in options.wires else COMPONENTS
    with tempfile.TemporaryDirectory(prefix="cdc-bench-") as text, standing(Path(text), needed) as stack:
        for workload in options.workloads.split(","):
            for wire in options.wires.split(","):
                with filled(stack, WORKLOADS[workload], wire, 1, options.n, Path(text) / f"{workload}-{wire}") as topic:
                    for kind in options.destinations.split(","):
                        folder = Path(text) / f"{workload}-{wire}-{kind}"
                        raw = folder / "samples.raw"
                        spy = [str(options.py_spy.resolve()), "record", "--nonblocking", "-r", str(RATE), "-f", "raw", "-o", str(raw), "--"]
                        with destination(kind, stack, folder) as to:
                            run = run_service(topic, to, folder, prefix=spy)
                        print(f"\n{workload}, {wire} to {kind}: {run.events:,} events, {run.events_per_second:,} a second under py-spy")
                        for name, share in shares(raw):
                            if share >= LEAST:
                                print(f"  {share:4.0%}  {name}")
                        say(f"{workload}, {wire} to {kind} done")


if __name__ == "__main__":
    main()
