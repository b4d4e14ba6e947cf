"""A run that is interrupted or killed leaves nothing running: tests, with workers and without, and the demo."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import shutil
import signal
import socket
import subprocess
import sys
import termios
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from deploy.local.artifacts import Lines, find_java
from deploy.local.jars import REPOSITORY
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


def marked(mark: str) -> dict[int, str]:
    """The living processes that have this in their environment, and with it all that a run has started, whatever became of its parent."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (born := birth(int(entry.name))) is not None:
            with contextlib.suppress(OSError):
                if mark.encode() in (entry / "environ").read_bytes():
                    found[int(entry.name)] = born
    return found


class Terminal:
    """A terminal with one command at work in it, and what it shows."""

    def __init__(self, argv: Sequence[str], **environment: str) -> None:
        self.mark = f"CDC_TEST_MARK={uuid.uuid4().hex}"
        name, _, value = self.mark.partition("=")
        kept = {key: text for key, text in os.environ.items() if not key.startswith(("CDC_STACK", "CDC_TEST_STACK", "PYTEST"))}
        self._ours, theirs = pty.openpty()

        def at_the_terminal() -> None:
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)
            signal.signal(signal.SIGINT, signal.SIG_DFL)

        self.process = subprocess.Popen(
            argv, cwd=ROOT, env=kept | environment | {name: value, "TERM": "xterm"}, stdin=theirs, stdout=theirs, stderr=theirs,
            start_new_session=True, preexec_fn=at_the_terminal,
        )  # fmt: skip
        os.close(theirs)
        self._shown = bytearray()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # Nobody is at the terminal any more.
            while more := os.read(self._ours, 65536):
                self._shown += more

    def shown(self) -> str:
        return self._shown.decode(errors="replace")

    def ctrl_c(self) -> None:
        os.write(self._ours, b"\x03")

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        killed(marked(self.mark))
        self.process.wait(20)
        self._reader.join(20)
        os.close(self._ours)


def installed() -> bool:
    """Whether `make` finds its environment here, and so makes none."""
    return shutil.which("make") is not None and subprocess.run(["make", "-q", ".venv/.installed"], cwd=ROOT, check=False).returncode == 0


@pytest.mark.stack
@pytest.mark.timeout(240)
@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("verb", ["demo", "test"])
def test_ctrl_c_at_the_terminal_of_make_leaves_nothing_running(verb: str, times: int, tmp_path: Path) -> None:
    if not installed():
        pytest.skip("these tests do not run in the environment of `make install`")
    if verb == "demo":
        begun, arguments = tmp_path / "demo" / "run" / "service.json", f"--dir {tmp_path / 'demo'} --factor 0.01"
    else:
        (tmp_path / "test_waits.py").write_text(TEST.replace('"begun', f'"{tmp_path}/begun'))
        (tmp_path / "pytest.ini").write_text("[pytest]\n")
        begun, arguments = tmp_path / "begun", f"-p tests.conftest -p no:cacheprovider -c {tmp_path}/pytest.ini {tmp_path}/test_waits.py"
    with Terminal(["make", verb, f"ARGS={arguments}"]) as terminal:
        eventually("it is at work", lambda: begun.exists() or terminal.process.poll() is not None, 120, terminal.shown)
        assert begun.exists(), terminal.shown()[-2000:]
        assert len(marked(terminal.mark)) > 4
        for _ in range(times):
            terminal.ctrl_c()
            time.sleep(0.1)
        assert terminal.process.wait(60) != 0
        eventually("nothing is left", lambda: not marked(terminal.mark), 60, terminal.shown)


@pytest.mark.timeout(120)
def test_ctrl_c_while_the_first_start_fetches_does_not_wait_for_the_network(tmp_path: Path) -> None:
    home = Path(find_java(Lines(lambda _text: None)).executable).resolve().parents[1]
    with socket.create_server(("127.0.0.1", 0)) as silent:
        environment = {
            "XDG_CACHE_HOME": str(tmp_path / "cache"),
            "M2_REPO": str(tmp_path / "m2"),
            "JAVA_HOME": str(home),
            REPOSITORY: f"http://127.0.0.1:{silent.getsockname()[1]}/maven",
        }
        with Terminal([sys.executable, "-m", "deploy.local.demo", "--dir", str(tmp_path / "demo")], **environment) as terminal:
            eventually("it fetches", lambda: "fetch Kafka" in terminal.shown(), 60, terminal.shown)
            terminal.ctrl_c()
            assert terminal.process.wait(10) == 130, terminal.shown()
            eventually("nothing is left", lambda: not marked(terminal.mark))


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
