"""A round: some sequences at once, each on a table of its own, of one pipeline on the real stack.

Each phase is its weather, all tables' steps beside one another, and then quiet: what the weather took away is given back, each table that
stopped gets the cure that its own message gives, word for word, and every table has to be complete up to a position behind all of it, in
time. Every claim seen on the way is judged.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Sequence as Many
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import psycopg

from cdc_service.pipeline.watermarks import OVER
from deploy.local.stack import Stack
from tests.identity.cure import Action, actions
from tests.identity.driver import Driver
from tests.identity.judge import judge
from tests.identity.observer import Observer, Status
from tests.identity.sequence import Sequence
from tests.support.line import Line, database
from tests.support.registration import eventually
from tests.support.warehouses import warehouse

LOAD_SECONDS = 120.0
CURE_SECONDS = 20.0
"""So long a table may say the same after its cure, before the cure is followed again."""
CURES = 3
"""How often a table may ask for a cure between two moments of quiet."""
PARKED_SECONDS = 8.0
COMMAND_SECONDS = 120.0
STOPPED = {"schema_stopped", "quarantine_stopped", "drift", "needs_resync", "needs_decision", "error"}


@dataclass(frozen=True, slots=True)
class Violation:
    """``kind``: wrong (a claim), cure (one that does not heal), endless (neither complete nor stopped), ended (the service itself)."""

    kind: str
    phase: int
    text: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.text}"


@dataclass
class Result:
    sequence: Sequence
    violation: Violation | None = None
    claims: int = 0
    cures: Counter[str] = field(default_factory=Counter)
    told: list[list[str]] = field(default_factory=list)
    ran: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)

    def text(self) -> str:
        """The sequence, with what each step did."""
        lines = [f"{self.sequence.shape} {self.sequence.number}"]
        for phase, told in zip(self.sequence.phases, self.told, strict=True):
            lines += [f"weather {phase.weather}", *(told or (str(step) for step in phase.steps))]
        return "\n".join(lines) + "\n"


class Round:
    """``limit_seconds``: how long a table may take to be complete once nothing moves any more."""

    def __init__(self, stack: Stack, destination: str, sequences: Many[Sequence], *, limit_seconds: float, seed: str = "") -> None:
        assert len({sequence.weather for sequence in sequences}) == 1, "the tables of a round share the weather"
        self.stack, self.destination, self.limit_seconds = stack, destination, limit_seconds
        self.dice = Random(f"round/{seed}")
        self.results = {f"t{number:02}": Result(sequence) for number, sequence in enumerate(sequences, 1)}
        self.drivers: dict[str, Driver] = {}
        self.line: Line
        self.observer: Observer

    def run(self) -> list[Result]:
        """What became of each sequence. Raises AssertionError where the round could not begin."""
        with ExitStack() as held:
            folder = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="cdc-identity-")))
            source = held.enter_context(database(self.stack))
            into = held.enter_context(warehouse(self.destination, self.stack, folder))
            names = "\n  ".join(f"public.{name}: {{}}" for name in self.results)
            self.line = Line(self.stack, source, folder, names, warehouse=into)
            held.callback(self._close)
            self.publication = f"cdc_{source.name}"
            self.line.execute("CREATE SCHEMA aside; GRANT USAGE ON SCHEMA aside TO cdc; ALTER ROLE cdc NOBYPASSRLS")
            for name, result in self.results.items():
                self.drivers[name] = Driver(source.url, name, self.publication, result.sequence, self._resync)
                held.callback(self.drivers[name].close)
                self.drivers[name].create()
            self.line.register()
            self.line.start()
            self.line.await_complete(limit_seconds=LOAD_SECONDS)
            self.observer = held.enter_context(Observer(self.line, self.results))
            for number in range(len(next(iter(self.results.values())).sequence.phases)):
                if self._live():
                    self._phase(number)
        for name, result in self.results.items():
            driver = self.drivers[name]
            result.told, result.ran, result.refused = driver.done, driver.ran, driver.refused
        return list(self.results.values())

    def _close(self) -> None:
        self.line.kill()
        self.stack.start()
        self.line.close()
        with psycopg.connect(self.stack.pg_url, autocommit=True) as admin:
            admin.execute("ALTER ROLE cdc NOBYPASSRLS")  # A cure for row security may have said otherwise.

    def _resync(self, name: str) -> None:
        """Somebody asks for it in the middle of everything; the service may refuse, or not be there."""
        with contextlib.suppress(AssertionError):
            self.line.request("POST", f"/tables/public.{name}/resync", {})

    def _live(self) -> list[str]:
        return [name for name, result in self.results.items() if result.violation is None]

    # ---- a phase -----------------------------------------------------------

    def _phase(self, number: int) -> None:
        live = self._live()
        weather = self.results[live[0]].sequence.phases[number].weather
        self._begin(weather)
        with ThreadPoolExecutor(len(live)) as pool:
            played = [pool.submit(self._play, name, number) for name in live]
            if weather == "killed":
                time.sleep(self.dice.uniform(0.1, 2.0))  # The fault itself: somewhere within the steps.
                self.line.kill()
            for one in played:
                one.result()
        self._end(weather)
        self._settle(number)

    def _play(self, name: str, number: int) -> None:
        driver = self.drivers[name]
        driver.play(self.results[name].sequence.phases[number], driver.done[number])

    def _begin(self, weather: str) -> None:
        if weather in ("paused", "paused_and_stopped"):
            self._ask_connector("pause", "PAUSED")
        if weather in ("stopped", "paused_and_stopped"):
            self.line.stop()
        if weather == "inserts_only":
            self.line.execute(f"ALTER PUBLICATION {self.publication} SET (publish = 'insert')")
        if weather == "leaves":
            self.line.execute(f"ALTER PUBLICATION {self.publication} SET (publish_via_partition_root = false)")
        if weather == "unpublished":
            self.line.execute(f"DROP PUBLICATION {self.publication}")

    def _end(self, weather: str) -> None:
        """Gives back what the weather took; what it did to the publication is given back for half of the rounds, else left to the cures."""
        if weather in ("paused", "paused_and_stopped"):
            self._ask_connector("resume", "RUNNING")
        if weather in ("stopped", "killed", "paused_and_stopped"):
            self.line.start()
        if weather in ("inserts_only", "leaves") and self.dice.random() < 0.5:
            everything = "publish = 'insert, update, delete, truncate', publish_via_partition_root = true"
            self.line.execute(f"ALTER PUBLICATION {self.publication} SET ({everything})")

    def _ask_connector(self, action: str, state: str) -> None:
        self._connect("PUT", action)
        eventually(f"the connector is {state}", lambda: self._connector_state() == state)

    def _connect(self, method: str, what: str) -> bytes:
        """Kafka Connect's answer on the connector, which has the publication's name."""
        asked = urllib.request.Request(f"{self.stack.connect_url}/connectors/{self.publication}/{what}", method=method)
        with urllib.request.urlopen(asked, timeout=30) as answer:
            told: bytes = answer.read()
            return told

    def _connector_state(self) -> str:
        """The worst that it and its task say."""
        try:
            found = json.loads(self._connect("GET", "status"))
        except OSError as error:
            return str(error)
        states = {part["state"] for part in (found["connector"], *found["tasks"])}
        return next((state for state in ("FAILED", "PAUSED", "UNASSIGNED", "RESTARTING") if state in states), "RUNNING")

    # ---- quiet -------------------------------------------------------------

    def _settle(self, number: int) -> None:
        """Every table that is left becomes complete behind all that happened, or has a violation."""
        fence, began = self.line.fence(), time.monotonic()
        waiting = {name: _Waiting(fence, began + self.limit_seconds) for name in self._live()}
        registered_at = began
        while waiting:
            turn = time.monotonic()
            for name in list(waiting):
                status = self.observer.statuses.get(name)
                violation = self._judged(name, number)
                if violation is None and status is not None and not self._complete(status, waiting[name]):
                    violation = self._helped(name, status, waiting[name], number)
                elif violation is None and status is not None:
                    del waiting[name]
                if violation is not None:
                    self._violated(name, violation)
                    waiting.pop(name, None)
            if self.line.process is None or self.line.process.poll() is not None:
                for name in waiting:
                    self._violated(name, Violation("ended", number, f"the service has ended\n{self.line.report()[-3000:]}"))
                return
            if waiting and time.monotonic() - registered_at > CURE_SECONDS and self._connector_state() != "RUNNING":
                registered_at = time.monotonic()
                self._do(Action(command=("register",)))
            for one in waiting.values():  # Commands take seconds; the others' time is not theirs.
                one.deadline += time.monotonic() - turn
            time.sleep(0.1)

    def _violated(self, name: str, violation: Violation) -> None:
        self.results[name].violation = violation
        self.observer.watched.discard(name)

    def _complete(self, status: Status, waiting: _Waiting) -> bool:
        return status.is_complete and status.complete_through >= waiting.fence and self.observer.polls > waiting.polls

    def _judged(self, name: str, number: int) -> Violation | None:
        for claim in self.observer.take(name):
            self.results[name].claims += 1
            if wrong := judge(self.drivers[name].records, claim):
                said = "\n  ".join(wrong)
                return Violation("wrong", number, f"complete through {claim.position} was claimed\n  {said}")
        return None

    def _helped(self, name: str, status: Status, waiting: _Waiting, number: int) -> Violation | None:
        """Follows the cure of a table that stopped, each time that it does; a violation where that does not help, or nothing comes."""
        now = time.monotonic()
        if now > waiting.deadline:
            kind = "cure" if waiting.cures else "endless"
            done = f"; done: {' | '.join(waiting.cures)}" if waiting.cures else ""
            told = f"{status}{done}; the connector is {self._connector_state()}"
            return Violation(kind, number, f"not within {self.limit_seconds:.0f} s complete through {waiting.fence}: {told}")
        stopped = status.state in STOPPED
        if not stopped and not (status.parked and status.state == "streaming"):
            waiting.parked_since = None
            return None
        if not stopped:
            waiting.parked_since = waiting.parked_since or now
            if now - waiting.parked_since < PARKED_SECONDS:
                return None
        if status.hint == OVER:
            return None
        asked = (status.state, status.at)
        if asked == waiting.asked and now - waiting.cured_at < CURE_SECONDS:
            return None
        if waiting.cured.count(status.code or "parked") >= CURES:
            return Violation("cure", number, f"it stopped again: {status}; done: {' | '.join(waiting.cures)}")
        found = actions(status.hint) if stopped else [Action(command=("resync", f"public.{name}"))]
        if not found:
            return Violation("cure", number, f"there is nothing to do in its cure: {status}")
        waiting.asked, waiting.cured_at = asked, now
        waiting.cured.append(status.code or "parked")
        self.results[name].cures[status.code or "parked"] += 1
        for action in found:
            waiting.cures.append(str(action))
            if problem := self._do(action):
                # What was followed for another table may have cured this one too, or brought another cause to light: then it says so soon.
                if (status.state, status.at, status.hint) == waiting.failed:
                    return Violation("cure", number, f"{status}; {action}: {problem}")
                waiting.failed = status.state, status.at, status.hint
                return None
        self.drivers[name].record()
        waiting.fence, waiting.deadline, waiting.polls = self.line.fence(), time.monotonic() + self.limit_seconds, self.observer.polls + 1
        return None

    def _do(self, action: Action, *, again: bool = True) -> str | None:
        """As a person does it; returns what went wrong. A command that asks for statements gets them, and is given once more."""
        if action.sql:
            try:
                self.line.execute(action.sql)
            except psycopg.Error as error:
                return str(error)
            return None
        argv = self.line.cdc.argv(*action.command, "--json", "--yes")
        done = subprocess.run(
            argv, env=self.line.cdc.env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=COMMAND_SECONDS
        )  # fmt: skip
        if done.returncode == 0:
            return None
        asked = [one for one in actions(_hint(done.stdout) or _hint(done.stderr)) if one.sql]
        if again and asked:
            problems = [problem for one in asked if (problem := self._do(one))]
            left = self._do(action, again=False)
            return left and " | ".join((left, *problems))
        return f"it ended with {done.returncode}: {done.stdout[-1500:]}{done.stderr[-1500:]}"


@dataclass
class _Waiting:
    fence: int
    deadline: float
    polls: int = 0
    """A status is taken from the observer's poll after this one."""
    asked: tuple[str, str] | None = None
    cured_at: float = 0.0
    failed: tuple[str, str, str] | None = None
    """The status whose cure could not be followed; it gets as long as one that was followed to change."""
    cured: list[str] = field(default_factory=list)
    cures: list[str] = field(default_factory=list)
    parked_since: float | None = None


def _hint(text: str) -> str:
    """The cure in a command's JSON."""
    try:
        found: Any = json.loads(text)
    except ValueError:
        return text
    return str((found.get("error") or found).get("hint", "")) if isinstance(found, dict) else ""
