"""A peer: Debezium's JDBC sink into PostgreSQL, in a Connect worker of its own with the JVM's usual settings, in several configurations."""

from __future__ import annotations

import json
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cdc_service.kafka.admin import Admin
from deploy.local import artifacts
from deploy.local.process import tail
from deploy.local.stack import HOST, Stack, free_ports, write_properties
from tests.bench.arms import LIMIT_SECONDS, ArmError, Run, Sample, judge, sample
from tests.bench.destinations import PostgreSqlDatabase
from tests.bench.filled import Filled
from tests.bench.measure import family, peak_rss_mb
from tests.bench.progress import say

HEAP = "1g"
START_SECONDS = 120.0
BATCH = {
    "batch.size": "5000",
    "consumer.override.max.poll.records": "5000",
    # Otherwise a fetch brings 1 MB, which are 270 events with their schemas.
    "consumer.override.max.partition.fetch.bytes": "33554432",
    "consumer.override.fetch.max.bytes": "67108864",
}
BUFFER = {"use.reduction.buffer": "true"}
SINKS: Mapping[str, tuple[Mapping[str, str], str]] = {
    "sink-default": ({}, ""),
    "sink-batch": (BATCH, ""),
    "sink-rewrite": (BATCH, "?reWriteBatchedInserts=true"),
    "sink-buffer": (BATCH | BUFFER, ""),
    "sink-buffer-rewrite": (BATCH | BUFFER, "?reWriteBatchedInserts=true"),
    "sink-unnest": (BATCH | BUFFER | {"dialect.postgres.unnest.insert.enabled": "true"}, ""),
}
"""What each arm sets beside what the sink needs, and what it adds to the connection's URL."""


class Worker:
    """A Connect worker with the sink, for all arms: what the JVM has compiled for one serves the next."""

    def __init__(self, stack: Stack, folder: Path) -> None:
        folder.mkdir(parents=True)
        watcher = artifacts.Lines(say)
        java = artifacts.find_java(watcher)
        jars, plugin = artifacts.fetch_jars(java, watcher), artifacts.fetch_plugin("sink", watcher)
        self.url = f"http://{HOST}:{free_ports(['rest'])['rest']}"
        settings = {"bootstrap.servers": stack.kafka, "plugin.path": str(plugin), "listeners": self.url}
        settings |= {"offset.storage.file.filename": str(folder / "offsets"), "offset.flush.interval.ms": "250"}
        properties = write_properties(folder / "worker.properties", "connect", settings)
        flags = [f"-Xmx{HEAP}", "-Djava.awt.headless=true", "-Djava.net.preferIPv4Stack=true"]
        flags.append(f"-Dlog4j2.configurationFile={artifacts.CONFIG / 'log4j2.xml'}")
        main = "org.apache.kafka.connect.cli.ConnectStandalone"
        self.log = folder / "worker.log"
        with self.log.open("wb") as out:
            command = [java.executable, *flags, "-cp", jars.classpath, main, str(properties)]
            self.process = subprocess.Popen(command, cwd=folder, stdout=out, stderr=out, start_new_session=True)
        self._await(lambda: self.call("GET", "/connectors") is not None, "the worker answers")

    def _await(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not condition():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise ArmError(f"not within {START_SECONDS:.0f} s: {what}: {tail(self.log, 5)}")
            time.sleep(0.1)

    def call(self, method: str, path: str, body: object = None) -> Any:
        """The worker's answer, None where it gives none."""
        data = None if body is None else json.dumps(body).encode()
        asked = urllib.request.Request(self.url + path, data=data, method=method, headers={"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(asked, timeout=60) as answer:
                return json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as error:
            if method == "POST":
                raise ArmError(error.read().decode(errors="replace")[:500]) from error
            return None
        except (OSError, ValueError):
            return None

    def forget_peak(self) -> None:
        """The peak of memory begins anew."""
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")

    def close(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(20)


def run_sink(filled: Filled, destination: PostgreSqlDatabase, worker: Worker, arm: str) -> Run:
    """The sink reads the topics into an empty database."""
    run = Run(arm, filled.workload.name, filled.wire, "postgresql", filled.partitions, len(filled.changes))
    name = f"{filled.name}_{arm.replace('-', '_')}"
    admin, pids = Admin(filled.stack.kafka, {}), family(worker.process.pid)
    began = time.time()
    samples: list[Sample] = []
    start: Sample | None = None
    worker.forget_peak()
    worker.call("POST", "/connectors", {"name": name, "config": sink_config(filled, destination, arm)})
    try:
        while not samples or samples[-1].done < filled.records:
            if wrong := failure(worker, name):
                raise ArmError(wrong)
            if start is None:
                if admin.members(f"connect-{name}"):
                    start = sample(filled.stack, pids)
                elif time.time() - began > START_SECONDS:
                    raise ArmError(f"the sink did not begin within {START_SECONDS:.0f} s: {tail(worker.log, 5)}")
            else:
                done = sum(admin.group_offsets(f"connect-{name}").values())
                samples.append(sample(filled.stack, pids, done))
                say(f"{arm}: {done:,} of {filled.records:,}", passing=True)
                if samples[-1].at - start.at > LIMIT_SECONDS:
                    raise ArmError(f"{done:,} of {filled.records:,} records within {LIMIT_SECONDS:.0f} s")
            time.sleep(0.1)
    finally:
        run.peak_rss_mb = peak_rss_mb(pids)
        worker.call("DELETE", f"/connectors/{name}")
    assert start is not None
    run.start_seconds = round(start.at - began, 2)
    judge(run, start, samples, filled.records)
    run.right = destination.right(filled, prefix=f"{filled.name}_public_")
    return run


def sink_config(filled: Filled, destination: PostgreSqlDatabase, arm: str) -> dict[str, str]:
    options, query = SINKS[arm]
    return {
        "connector.class": "io.debezium.connector.jdbc.JdbcSinkConnector",
        "topics": ",".join(filled.topics),
        "connection.url": f"jdbc:postgresql://{HOST}:{filled.stack.port('postgres')}/{destination.name}{query}",
        "connection.username": "postgres",
        "connection.password": filled.stack.password("postgres"),
        "insert.mode": "upsert",
        "delete.enabled": "true",
        "primary.key.mode": "record_key",
        "schema.evolution": "basic",
        "consumer.override.auto.offset.reset": "earliest",
        **options,
    }


def failure(worker: Worker, name: str) -> str:
    """The last cause of why a task failed, empty while none has."""
    status = worker.call("GET", f"/connectors/{name}/status")
    if status is None:
        return "the worker ended" if worker.process.poll() is not None else ""
    traces = [task.get("trace", "") for task in [status["connector"], *status["tasks"]] if task.get("state") == "FAILED"]
    causes = [line for trace in traces for line in trace.splitlines() if line.startswith(("org.", "java", "Caused", "io."))]
    return causes[-1].strip() if causes else "".join(traces)[:300]
