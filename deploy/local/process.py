"""Daemons by pid file: start one, know whether it still runs, end it; and a guard, which ends what a process started when that is gone.

A pid that now belongs to another process is never touched.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Protocol

POLL_SECONDS = 0.05


class StackError(Exception):
    """Something of the local stack is missing or does not work; the message says what to do."""


class Refused(StackError):
    """This kind of stack cannot do that, another one can; the message is the reason that a test is skipped with."""


@dataclass(frozen=True, slots=True)
class Account:
    """The operating system's user that a daemon runs as."""

    name: str
    uid: int
    gid: int


def birth(pid: int) -> str | None:
    """What tells this process from any other that ever had its pid; None when it is gone (a zombie is gone)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        if Path("/proc/self/stat").exists():
            return None
        found = subprocess.run(["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout.strip()
        return None if not found or found.startswith("Z") else found.split(maxsplit=1)[1]
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else f"{boot}/{fields[19]}"


def descendants(pid: int) -> list[int]:
    """The living children of a process, and theirs (Linux; elsewhere none)."""
    found: list[int] = []
    try:
        tasks = list(Path(f"/proc/{pid}/task").glob("*/children"))
    except OSError:
        return []  # It ended meanwhile.
    for children in tasks:
        try:
            direct = [int(child) for child in children.read_text().split()]
        except OSError:
            continue
        for child in direct:
            found += [child, *descendants(child)]
    return found


def tail(path: Path, lines: int = 25) -> str:
    """The last lines of a log, or a word on why there are none."""
    try:
        with path.open("rb") as log:
            log.seek(max(0, path.stat().st_size - 200 * lines))
            return "\n".join(log.read().decode("utf-8", "replace").splitlines()[-lines:]) or "(the log is empty)"
    except FileNotFoundError:
        return "(there is no log yet)"


class Part(Protocol):
    """What a stack needs of one of its parts, be it a process or a container."""

    @property
    def name(self) -> str: ...
    @property
    def log(self) -> Path: ...
    def pid(self) -> int | None: ...
    def wait_ready(self, probe: Callable[[], str | None], limit_seconds: float, given_up: Event) -> None: ...
    def send(self, number: signal.Signals) -> None: ...
    def end(self, steps: Sequence[tuple[signal.Signals, float]]) -> bool: ...


def await_ready(part: Part, probe: Callable[[], str | None], limit_seconds: float, given_up: Event) -> None:
    """Return once the probe finds nothing wrong. Raises StackError with the log's tail when the part ends, or the limit passes."""
    deadline = time.monotonic() + limit_seconds
    while True:
        if part.pid() is None:
            log = part.log
            raise StackError(f"{part.name} ended while starting. The end of its log, {log}:\n{tail(log)}")
        wrong = probe()
        if wrong is None:
            return
        if given_up.is_set():
            raise StackError(f"{part.name}: given up because another part failed")
        if time.monotonic() > deadline:
            log = part.log
            raise StackError(f"{part.name} was not ready within {limit_seconds:.0f} s ({wrong}). The end of its log, {log}:\n{tail(log)}")
        time.sleep(POLL_SECONDS)


@dataclass(frozen=True, slots=True)
class Daemon:
    """One process that outlives us, its pid file and its log."""

    name: str
    pid_file: Path
    log: Path

    def pid(self) -> int | None:
        """The pid while the process that we started runs, else None."""
        try:
            record = json.loads(self.pid_file.read_text())
        except (FileNotFoundError, ValueError):
            return None
        pid = int(record["pid"])
        _reap(pid)
        born = birth(pid)
        return pid if born is not None and born == record["born"] else None

    def spawn(self, argv: Sequence[str], *, cwd: Path, env: Mapping[str, str], account: Account | None = None) -> None:
        """Start it in its own session (a Ctrl-C at our terminal is not for it); its output is appended to the log."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.pid_file.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                list(argv),
                cwd=cwd,
                env=dict(env),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                user=account.uid if account else None,
                group=account.gid if account else None,
                extra_groups=[] if account else None,
            )
        process.returncode = 0  # Popen would warn at exit that the daemon still runs, which is the point of a daemon.
        fresh = self.pid_file.with_suffix(".new")
        fresh.write_text(json.dumps({"pid": process.pid, "born": birth(process.pid)}))
        fresh.replace(self.pid_file)

    def wait_ready(self, probe: Callable[[], str | None], limit_seconds: float, given_up: Event) -> None:
        """Return once the probe finds nothing wrong. Raises StackError with the log's tail when the process ends, or the limit passes."""
        await_ready(self, probe, limit_seconds, given_up)

    def send(self, number: signal.Signals) -> None:
        """Send it a signal, where it runs."""
        pid = self.pid()
        if pid is not None:
            os.kill(pid, number)

    def end(self, steps: Sequence[tuple[signal.Signals, float]]) -> bool:
        """Send each signal and wait so many seconds for the process and its children to go; returns when all have gone.

        True when the first signal was enough for a process that ran.
        """
        pid, tidy = self.pid(), False
        if pid is not None:
            family = {member: birth(member) for member in [pid, *descendants(pid)]}
            for number, seconds in steps:
                if birth(pid) == family[pid]:
                    os.kill(pid, number)
                if _gone(family, seconds):
                    tidy = number is steps[0][0]
                    break
            else:
                for member, born in family.items():  # An orphan of a killed parent, or a process that ignores signals.
                    if born is not None and birth(member) == born:
                        os.kill(member, signal.SIGKILL)
                if not _gone(family, 10):
                    raise StackError(f"{self.name} (pid {pid}) does not end, even by SIGKILL: look at it with `ps -fp {pid}`")
        self.pid_file.unlink(missing_ok=True)
        return tidy


class Guard:
    """Another small process that sees this one go, however it goes: the pipe between them closes. `keep_guard` is its part."""

    def __init__(self, command: Sequence[str], folder: Path) -> None:
        # In a session of its own, so that a Ctrl-C which ends us does not end it.
        null = subprocess.DEVNULL
        self._process = subprocess.Popen(list(command), cwd=folder, stdin=subprocess.PIPE, stdout=null, stderr=null, start_new_session=True)

    def add(self, pid: int) -> None:
        """One more process that has to go with us, and its children."""
        self._tell(f"{pid} {birth(pid)}\n")

    def end(self, *, released: bool = False) -> None:
        """Returns when the guard has done its work, now and not when we go; or, released, when it has left everything as it is."""
        if released:
            self._tell("released\n")
        self._process.stdin.close()  # type: ignore[union-attr]
        self._process.wait(60)

    def _tell(self, line: str) -> None:
        with contextlib.suppress(BrokenPipeError):  # Somebody killed the guard: it was there for the worst case only.
            self._process.stdin.write(line.encode())  # type: ignore[union-attr]
            self._process.stdin.flush()  # type: ignore[union-attr]


def keep_guard(told: Iterable[str]) -> bool:
    """Read what a `Guard` tells until it is gone; whether it went without a word. The processes that it named are killed then."""
    pids: dict[int, str] = {}
    for line in told:
        if line == "released\n":
            return False
        named, _, came = line.rstrip("\n").partition(" ")
        pids[int(named)] = came
    for pid, born in pids.items():
        if birth(pid) == born:
            for member in (pid, *descendants(pid)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(member, signal.SIGKILL)
    return True


def _gone(family: Mapping[int, str | None], limit_seconds: float) -> bool:
    deadline = time.monotonic() + limit_seconds
    while True:
        for member in family:
            _reap(member)
        if not any(born is not None and birth(member) == born for member, born in family.items()):
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)


def _reap(pid: int) -> None:
    """Let go of a child of ours that has ended; other processes are not ours to wait for."""
    try:
        os.waitpid(pid, os.WNOHANG)
    except (ChildProcessError, OSError):
        return
