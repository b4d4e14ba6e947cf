"""What is measured on full topics: this service as its operator runs it, and plain consumption. One process an arm.

Of each: the events applied up to a moment when more are still waiting, the time from its first assignment to then, CPU and memory.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from deploy.local.process import tail
from deploy.local.service import Cdc
from deploy.local.stack import Stack
from tests.bench.filled import Filled
from tests.bench.measure import children_cpu, cpu_seconds, family, machine_cpu_seconds, peak_rss_mb
from tests.bench.progress import say

SAMPLE_SECONDS = 0.05
JUDGED_SHARE = 0.75
"""The rate is that up to the first moment at which so much of all is done: nobody is measured while a last batch waits to fill."""
LIMIT_SECONDS = 400.0


class ArmError(Exception):
    """An arm did not do its work; the message is its reason."""


@dataclass
class Run:
    """One arm on one topic. ``events`` are changes without tombstones; ``right`` is None where there is no end state to compare."""

    arm: str
    workload: str
    wire: str
    destination: str
    partitions: int
    events: int
    seconds: float = 0.0
    events_per_second: int = 0
    cpu_seconds: float = 0.0
    peak_rss_mb: int = 0
    right: bool | None = None
    note: str = ""
    database_cpu_seconds: float = 0.0
    start_seconds: float = 0.0
    others: float = 0.0
    """How many cores were busy meanwhile with what is neither the arm nor a server that it uses: on a quiet machine none."""

    def took(self, records: int, of: int, seconds: float) -> None:
        """``records`` of all took so long."""
        self.events = round(self.events * records / of)
        self.seconds = round(seconds, 2)
        self.events_per_second = round(self.events / seconds) if seconds else 0


@dataclass(frozen=True, slots=True)
class Sample:
    at: float
    done: int
    cpu: float
    database_cpu: float
    others_cpu: float


def sample(stack: Stack, pids: Sequence[int], done: int = 0, at: float | None = None) -> Sample:
    """Now: what the arm's processes have used, what the database, and what nobody of the benchmark."""
    servers = {name: cpu_seconds(family(pid)) for name, pid in stack.running().items() if pid is not None}
    own, bench = cpu_seconds(pids), cpu_seconds([os.getpid()])
    return Sample(at or time.time(), done, own, servers.get("postgres", 0.0), machine_cpu_seconds() - own - sum(servers.values()) - bench)


def judge(run: Run, start: Sample, samples: Sequence[Sample], total: int) -> None:
    """Writes the rate and the CPU of the judged part into the run."""
    judged = next((s for s in samples if s.done >= JUDGED_SHARE * total), samples[-1])
    run.took(judged.done, total, judged.at - start.at)
    run.cpu_seconds = round(judged.cpu - start.cpu, 2)
    run.database_cpu_seconds = round(judged.database_cpu - start.database_cpu, 2)
    run.others = round((judged.others_cpu - start.others_cpu) / max(0.01, judged.at - start.at), 1)


class Running:
    """`cdc run` as a process, its log, and its status through the API."""

    def __init__(self, cdc: Cdc, arguments: Sequence[str], state: Path, *, prefix: Sequence[str] = ()) -> None:
        self.folder = cdc.config.parent
        self.log = self.folder / "service.log"
        self._api = state / "api.json"
        self._api.unlink(missing_ok=True)
        self._connection: http.client.HTTPConnection | None = None
        self._token = ""
        self.began = time.time()
        with self.log.open("ab") as log:
            command = [*prefix, *cdc.argv("run", *arguments)]
            self.process = subprocess.Popen(
                command, cwd=self.folder, env=cdc.env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def status(self) -> dict[str, Any] | None:
        """The status document, or None where it does not answer."""
        try:
            if self._connection is None:
                found = json.loads(self._api.read_text())
                if int(found["pid"]) not in family(self.process.pid):
                    return None
                self._token = found["token"]
                self._connection = http.client.HTTPConnection(found["url"].removeprefix("http://"), timeout=10)
            self._connection.request("GET", "/status", headers={"Authorization": f"Bearer {self._token}"})
            document: dict[str, Any] = json.loads(self._connection.getresponse().read())
            return document
        except (OSError, ValueError, KeyError, http.client.HTTPException):
            self._connection = None
            return None

    def query(self, statement: str, rows_max: int) -> pa.Table | None:
        """Rows as the service gives them, or None where it does not answer."""
        try:
            found = json.loads(self._api.read_text())
            headers = {"Authorization": f"Bearer {found['token']}", "Content-Type": "application/json"}
            data = json.dumps({"sql": statement, "rows_max": rows_max}).encode()
            with urllib.request.urlopen(urllib.request.Request(f"{found['url']}/query", data, headers), timeout=30) as answer:
                return pa.ipc.open_stream(answer.read()).read_all()
        except (OSError, ValueError, KeyError):
            return None

    def highest(self, table: str) -> int:
        """The highest key of a table; 0 while there is none."""
        found = self.query(f"SELECT max(id) FROM {table}", 1)
        return 0 if found is None else found.column(0)[0].as_py() or 0

    def assigned_at(self) -> float | None:
        """When it got its partitions (seconds since 1970), from its log."""
        found = re.search(rb"(\S+Z) info +partitions taken", self.log.read_bytes())
        return datetime.fromisoformat(found[1].decode()).timestamp() if found else None

    def caught_up_at(self) -> float:
        """When it had merged all, from its log: it says how long it took to close what was open then."""
        found = re.search(rb"(\S+Z) debug +finished flush=(\S+) save=(\S+) close=(\S+)", self.log.read_bytes())
        if found is None:
            return time.time()
        return datetime.fromisoformat(found[1].decode()).timestamp() - sum(map(float, found.groups()[1:]))

    def merged(self) -> int:
        document = self.status()
        return 0 if document is None else sum(int(p["next_offset"]) for t in document["tables"] for p in t["partitions"])


def run_service(
    filled: Filled,
    destination: Any,
    folder: Path,
    *,
    arm: str = "cdc-service",
    sections: str = "",
    prefix: Sequence[str] = (),
    done: int = 0,
) -> Run:
    """`cdc run --until-caught-up` into a destination, whose rows are compared afterwards; it has ``done`` records already."""
    events = round(len(filled.changes) * (filled.records - done) / filled.records)
    run = Run(arm, filled.workload.name, filled.wire, destination.kind, filled.partitions, events)
    state = filled.folder / "state"
    cdc = filled.config(folder, destination.url, sections)
    watched = Running(cdc, ["--until-caught-up", "--timeout", str(LIMIT_SECONDS), "--log-level", "debug"], state, prefix=prefix)
    samples: list[Sample] = []
    start: Sample | None = None
    try:
        while watched.process.poll() is None:
            pids = family(watched.process.pid)
            if start is None:
                assigned = watched.assigned_at()
                start = None if assigned is None else sample(filled.stack, pids, at=assigned)
            elif not samples or samples[-1].done < filled.records:
                merged = max(watched.merged(), samples[-1].done if samples else done)
                samples.append(sample(filled.stack, pids, merged))
                say(f"{arm} to {destination.kind}: {merged:,} of {filled.records:,}", passing=True)
            run.peak_rss_mb = max(run.peak_rss_mb, peak_rss_mb(pids))
            time.sleep(SAMPLE_SECONDS)
        if watched.process.returncode != 0 or start is None:
            raise ArmError(f"cdc run ended with {watched.process.returncode}: {tail(watched.log, 15)}")
    finally:
        if watched.process.poll() is None:
            watched.process.kill()
            watched.process.wait(20)
    last = samples[-1] if samples else start
    samples.append(replace(last, at=watched.caught_up_at(), done=filled.records))
    run.start_seconds = round(start.at - watched.began, 2)
    judge(run, start, [replace(s, done=s.done - done) for s in samples], filled.records - done)
    run.right = destination.right(filled)
    return run


def run_plain(filled: Filled) -> Run:
    """confluent-kafka handing over key and value of each message and nothing else."""
    run = Run("plain consumption", filled.workload.name, filled.wire, "none", filled.partitions, len(filled.changes))
    arguments = (filled.stack.kafka, str(filled.records), str(filled.partitions), *filled.topics)
    return _child_run(run, filled, "tests.bench.plain", *arguments)


def run_limit(filled: Filled, destination: Any, folder: Path) -> Run:
    """COPY + MERGE of the same changes, folded before."""
    run = Run("COPY + MERGE alone", filled.workload.name, "none", destination.kind, filled.partitions, len(filled.changes))
    url = [] if destination.kind == "duckdb" else [destination.admin_url]
    return _child_run(run, filled, "tests.bench.limits", filled.workload.name, str(len(filled.changes)), str(folder), *url)


def _child_run(run: Run, filled: Filled, module: str, *arguments: str) -> Run:
    """A module of the benchmark that measures itself."""
    began = sample(filled.stack, [])
    told = child(module, *arguments)
    run.took(filled.records, filled.records, told["seconds"])
    ended = sample(filled.stack, [])
    run.cpu_seconds, run.peak_rss_mb = round(told["cpu_seconds"], 2), told["peak_rss_mb"]
    run.database_cpu_seconds = round(ended.database_cpu - began.database_cpu, 2)
    run.others = max(0.0, round((ended.others_cpu - began.others_cpu - told["all_cpu_seconds"]) / (ended.at - began.at), 1))
    return run


def child(module: str, *arguments: str) -> dict[str, Any]:
    """The JSON that a module of the benchmark prints as its last line. Raises ArmError with what it said where it fails."""
    before = children_cpu()
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments], capture_output=True, text=True, check=False, timeout=LIMIT_SECONDS, env=os.environ
    )
    if done.returncode != 0:
        raise ArmError((done.stdout + done.stderr)[-2000:])
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    told["all_cpu_seconds"] = children_cpu() - before
    return told
