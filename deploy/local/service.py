"""The service as its users see it: the `cdc` command, and the status of a running one, sampled over time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deploy.local.process import StackError

CALL_SECONDS = 120.0
SAMPLE_SECONDS = 0.25
STOPPED_STATES = frozenset({"schema_stopped", "quarantine_stopped", "drift", "needs_resync", "needs_decision", "error"})


@dataclass(frozen=True, slots=True)
class Cdc:
    """The `cdc` command with one configuration and the variables that it needs."""

    config: Path
    variables: Mapping[str, str]

    def argv(self, *arguments: str) -> list[str]:
        """The command line; the module where the command is not installed."""
        command = Path(sys.executable).with_name("cdc")
        start = [str(command)] if command.exists() else [sys.executable, "-m", "cdc_service.cli.main"]
        return [*start, *arguments, "--config", str(self.config)]

    @property
    def env(self) -> dict[str, str]:
        """The environment of the command."""
        root = str(Path(__file__).resolve().parents[2])
        paths = [root, os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else [root]
        return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **self.variables}

    def call(self, *arguments: str, accept: Sequence[int] = (0,)) -> Any:
        """Run a command to its end; returns its JSON (None when it prints none). Raises StackError with what it said."""
        try:
            command, nothing = self.argv(*arguments), subprocess.DEVNULL
            done = subprocess.run(command, env=self.env, stdin=nothing, capture_output=True, text=True, check=False, timeout=CALL_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise StackError(f"cdc {' '.join(arguments)} did not end within {CALL_SECONDS:.0f} s") from error
        if done.returncode not in accept:
            raise StackError(f"cdc {' '.join(arguments)} ended with {done.returncode}:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
        return json.loads(done.stdout) if done.stdout.strip() else None

    def live_status(self) -> dict[str, Any] | None:
        """The status document of the running service, from its API; None while it does not answer."""
        try:
            api = json.loads((self.config.parent / ".cdc" / "api.json").read_text())
            request = urllib.request.Request(f"{api['url']}/status", headers={"Authorization": f"Bearer {api['token']}"})
            with urllib.request.urlopen(request, timeout=10) as answer:
                found: dict[str, Any] = json.loads(answer.read())
                return found
        except (OSError, ValueError, KeyError):
            return None


@dataclass(slots=True)
class _Track:
    """`first` is the last moment before an event was applied, `last` the moment of the latest one."""

    applied: int = 0
    first: float | None = None
    last: float | None = None
    lag_seconds_max: float = 0.0


@dataclass(slots=True)
class Watch:
    """What a running service says about each table, and what can be learnt from having asked often."""

    cdc: Cdc
    names: tuple[str, ...]
    tables: dict[str, dict[str, Any]] = field(default_factory=dict)
    tracks: dict[str, _Track] = field(default_factory=dict)

    def sample(self) -> None:
        """Ask once; a service that does not answer at the moment changes nothing."""
        document = self.cdc.live_status()
        if document is None:
            return
        now = time.monotonic()
        for table in document.get("tables", []):
            name = table["source"]
            self.tables[name] = table
            track = self.tracks.setdefault(name, _Track())
            applied = int(table.get("applied") or 0)
            if applied > track.applied:
                if track.first is None:
                    track.first = track.last if track.last is not None else now - SAMPLE_SECONDS
                track.applied, track.last = applied, now
            elif track.first is None:
                track.last = now
            track.lag_seconds_max = max(track.lag_seconds_max, float(table.get("lag_seconds") or 0.0))

    @property
    def applied(self) -> int:
        """Events applied to all tables since the service started."""
        return sum(track.applied for track in self.tracks.values())

    @property
    def lag_seconds(self) -> float:
        """The largest present lag of a table."""
        return max((float(table.get("lag_seconds") or 0.0) for table in self.tables.values()), default=0.0)

    def complete_through(self, position: int) -> bool:
        """Whether every table is complete up to this source position, and nothing waits."""
        found = [self.tables.get(name) for name in self.names]
        return all(
            table is not None and int(table.get("complete_through") or 0) >= position and int(table.get("lag_events") or 0) == 0
            for table in found
        )

    def stopped(self) -> str:
        """The tables that stand in a state that only a person ends, with their reasons; empty when there is none."""
        stopped = [name for name, table in self.tables.items() if table.get("state") in STOPPED_STATES]
        return "; ".join(f"{name} is {self.tables[name]['state']}: {self.tables[name].get('error')}" for name in stopped)

    def troubles(self) -> str:
        """One line on each table, for a message."""
        wanted = ("state", "applied", "lag_events", "complete_through", "error")
        return "; ".join(f"{name} { ({key: table.get(key) for key in wanted}) }" for name, table in self.tables.items()) or "no status"
