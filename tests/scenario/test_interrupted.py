"""A run that is interrupted or killed leaves nothing running: tests, with workers and without, and the demo."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from deploy.local.process import birth
from deploy.local.stack import Stack
from tests.support.registration import eventually

ROOT = Path(__file__).resolve().parents[2]
TEST = """
import os, subprocess, sys, threading
def test_that_waits(postgres):
    beside = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    postgres.guard_process(beside.pid)
    with open("begun.new", "w") as told:
        told.write(f"{postgres.dir} {os.getpid()} {beside.pid}")
    os.replace("begun.new", "begun")
    threading.Event().wait()
"""


@contextmanager
def running(folder: Path, *argv: str) -> Iterator[subprocess.Popen[bytes]]:
    """A run in a session of its own (a terminal's Ctrl-C is sent to its group), with a stack of processes: they are looked for."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("CDC_STACK", "CDC_TEST_STACK", "PYTEST"))}
    environment["PYTHONPATH"] = str(ROOT)
    with (folder / "out").open("wb") as out:
        process = subprocess.Popen([sys.executable, *argv], cwd=folder, env=environment, stdout=out, stderr=out, start_new_session=True)
        try:
            yield process
        finally:
            process.kill()
            process.wait(20)


def parts(folder: Path) -> dict[int, str]:
    """The processes of a stack in the folder, by what tells them from others that have their pid later."""
    found = {}
    for file in folder.glob("run/*.json"):
        record = json.loads(file.read_text())
        if record["born"] is not None:
            found[int(record["pid"])] = record["born"]
    return found


def gone(processes: dict[int, str]) -> bool:
    return not any(birth(pid) == born for pid, born in processes.items())


def killed(processes: dict[int, str]) -> None:
    """What the test found running though it should not: it is ours."""
    for pid, born in processes.items():
        if birth(pid) == born:
            os.kill(pid, signal.SIGKILL)


@pytest.mark.stack
@pytest.mark.timeout(120)
@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("how", ["SIGINT", "SIGTERM", "SIGKILL", "SIGKILL of the worker"])
def test_tests_that_are_interrupted_leave_nothing_running(tmp_path: Path, how: str, workers: int) -> None:
    if "worker" in how and not workers:
        pytest.skip("with -n 0 there is no worker that could be killed")
    (tmp_path / "test_waits.py").write_text(TEST)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    begun = tmp_path / "begun"
    with running(tmp_path, "-m", "pytest", "-p", "tests.conftest", "-p", "no:cacheprovider", "-n", str(workers), "test_waits.py") as run:
        eventually("the test has its server", lambda: begun.exists() or run.poll() is not None, 90)
        assert begun.exists(), (tmp_path / "out").read_text()
        home, worker, beside = begun.read_text().split()
        processes = parts(Path(home)) | {int(beside): birth(int(beside)) or ""}
        assert len(processes) > 1
        assert not gone(processes)
        try:
            number = signal.Signals[how.split()[0]]
            if number is signal.SIGINT:
                os.killpg(run.pid, number)
            else:
                os.kill(int(worker) if "worker" in how else run.pid, number)
            eventually("server and companion have ended", lambda: gone(processes), 60, lambda: (tmp_path / "out").read_text()[-2000:])
            eventually("its folder is gone", lambda: not Path(home).exists())
        finally:
            killed(processes)


@pytest.mark.stack
@pytest.mark.timeout(180)
def test_a_demo_that_is_killed_leaves_nothing_running(tmp_path: Path) -> None:
    """Ctrl-C and SIGTERM are tried in test_demo."""
    with running(tmp_path, "-m", "deploy.local.demo", "--dir", str(tmp_path / "demo"), "--factor", "0.01") as run:
        service = tmp_path / "demo" / "run" / "service.json"
        eventually("the demo runs its service", lambda: service.exists() or run.poll() is not None, 120)
        assert service.exists(), (tmp_path / "out").read_text()[-2000:]
        processes = parts(tmp_path / "demo" / "stack") | parts(tmp_path / "demo")
        assert len(processes) == 4
        try:
            run.kill()
            eventually("all parts have ended", lambda: gone(processes), 60)
        finally:
            killed(processes)


def test_what_is_released_is_left_alone(tmp_path: Path) -> None:
    """As the demo does with KEEP=1: its end is not the end of what it started."""
    stack, sleeper = Stack(tmp_path / "stack"), subprocess.Popen(["sleep", "60"])
    try:
        stack.guard(remove=True)
        stack.guard_process(sleeper.pid)
        stack.unguard()
        assert sleeper.poll() is None
        stack.guard(remove=True)
        stack.guard_process(sleeper.pid)
        stack.unguard(released=False)
        assert sleeper.wait(30) == -signal.SIGKILL
    finally:
        sleeper.kill()
        sleeper.wait()
