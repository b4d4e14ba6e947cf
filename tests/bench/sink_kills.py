"""The peer under kill -9: Debezium's JDBC sink is killed again and again while it empties a topic, and judged at the end.

Run: python -m tests.bench.sink_kills --rounds 50. It is the counterpart of `python -m tests.fault.chaos --only "service killed"`: the sink
keeps no position in the warehouse, so what it wrote and did not commit to its consumer group comes again; looked at are the rows at the
end, the rows whose values went back meanwhile, and the time from a start of the worker to its next commit of offsets.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from random import Random

import psycopg

from cdc_service.kafka.admin import Admin
from deploy.local.stack import COMPONENTS
from tests.bench.arms import ArmError
from tests.bench.bench import standing
from tests.bench.destinations import PostgreSqlDatabase, destination
from tests.bench.filled import Filled, filled
from tests.bench.progress import say
from tests.bench.sink import START_SECONDS, Worker, failure, sink_config
from tests.bench.workload import WORKLOADS

ARM = "sink-buffer"


def kills(
    topic: Filled, to: PostgreSqlDatabase, folder: Path, rounds: int, dice: Random, session_seconds: float
) -> dict[str, object]:  # fmt: skip
    name, admin = f"{topic.name}_killed", Admin(topic.stack.kafka, {})
    group = f"connect-{name}"
    config = sink_config(topic, to, ARM) | {"consumer.override.session.timeout.ms": str(int(session_seconds * 1000))}
    starts: list[float] = []
    back: set[int] = set()
    done, killed = 0, 0
    versions: dict[int, int] = {}
    while done < topic.records:
        began = time.monotonic()
        worker = Worker(topic.stack, folder / f"worker{killed}")
        try:
            worker.call("POST", "/connectors", {"name": name, "config": config})
            first = done
            while done == first and done < topic.records:
                if wrong := failure(worker, name):
                    raise ArmError(wrong)
                if time.monotonic() - began > START_SECONDS:
                    raise ArmError(f"the sink committed nothing within {START_SECONDS:.0f} s")
                done = sum(admin.group_offsets(group).values())
                _look(to, topic, versions, back)
                time.sleep(0.05)
            starts.append(time.monotonic() - began)
            if killed == rounds:
                while done < topic.records:
                    done = sum(admin.group_offsets(group).values())
                    time.sleep(0.1)
                break
            time.sleep(dice.uniform(0, 1.0))  # The kill comes at a random moment.
            worker.process.kill()
            worker.process.wait(20)
            killed += 1
            say(f"{killed} of {rounds} kills, {done:,} of {topic.records:,} records, {len(back)} rows went back", passing=True)
        finally:
            worker.close()
    starts.sort()
    return {
        "kills": killed,
        "right": to.right(topic, prefix=f"{topic.name}_public_"),
        "rows of one in twenty that went back for a while": len(back),
        "start to next commit, median s": round(statistics.median(starts), 1),
        "p99 s": round(starts[min(len(starts) - 1, int(len(starts) * 0.99))], 1),
    }


def _look(to: PostgreSqlDatabase, topic: Filled, versions: dict[int, int], back: set[int]) -> None:
    """Of one row in twenty: which show an older change than they did (a note ends with its change's number)."""
    with psycopg.connect(to.admin_url) as connection:
        for table in topic.workload.names():
            place = f"public.{topic.name}_public_{table}"
            if connection.execute("SELECT to_regclass(%s)", [place]).fetchone() == (None,):
                continue
            for id_, change in connection.execute(
                f"SELECT id, split_part(note, ' after ', 2)::bigint FROM {place} WHERE id % 20 = 0".encode()
            ):
                if change < versions.get(id_, -1):
                    back.add(id_)
                versions[id_] = max(change, versions.get(id_, -1))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("-n", type=int, default=200_000, help="changes in the topic")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--session", type=float, default=45.0, help="seconds until the broker gives a killed member's place away")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="cdc-sink-"))
    try:
        with (
            standing(folder, COMPONENTS) as stack,
            filled(stack, WORKLOADS["mixed1"], "json+schema", 1, options.n, folder / "filled") as topic,
            destination("postgresql", stack, folder / "to") as to,
        ):
            assert isinstance(to, PostgreSqlDatabase)
            for what, value in kills(topic, to, folder, options.rounds, Random(options.seed), options.session).items():
                print(f"{what}: {value}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
