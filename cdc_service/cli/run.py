"""``cdc run``: the service itself, with a live table on a terminal and log lines in a pipe.

The first SIGTERM or Ctrl-C lets it finish or abort its batch and leave (exit 0 or 130); a second one ends it at once (143 or 130), which
is safe too: what was not committed is read again.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer

from cdc_service.cli import exits
from cdc_service.cli.shared import Shared, command

if TYPE_CHECKING:
    from cdc_service.config import Config

LIVE_SECONDS = 0.5
LINE_SECONDS, LINE_SECONDS_EACH = 10.0, 0.03
"""How often a log gets lines of the tables that moved: so often, or so much for each table where there are many."""
STOPPING = "stopping: the current batch is finished or aborted; once more to end at once"

CaughtUp = Annotated[bool, typer.Option("--until-caught-up", help="End when all that was in Kafka at the start is applied.")]
Until = Annotated[
    str | None, typer.Option("--until", metavar="LSN|FILE:POS", help="End when everything up to this source position is applied.")
]
Once = Annotated[bool, typer.Option("--once", help="End after one batch of each table that has any.")]
Timeout = Annotated[float | None, typer.Option("--timeout", metavar="SECONDS", min=0, help="End with exit code 2 when it takes longer.")]
Level = Annotated[str, typer.Option("--log-level", metavar="LEVEL", help="debug, info, warning or error.")]


class Service(Protocol):
    """What this command needs of the service."""

    def run(self, *, until_caught_up: bool, until: str | None, once: bool, timeout_seconds: float | None) -> str:
        """Works until it is stopped or has reached its end. Says why it ended: stopped, caught_up, until, once, timeout."""
        ...

    def stop(self) -> None:
        """Asks ``run`` to end soon. Safe from a signal handler and from another thread."""
        ...

    def snapshot(self) -> dict[str, Any]:
        """The status document, from memory: safe from another thread, never waits for a server."""
        ...


def register(app: typer.Typer) -> None:
    @command(app)
    def run(
        shared: Shared,
        until_caught_up: CaughtUp = False,
        until: Until = None,
        once: Once = False,
        timeout: Timeout = None,
        log_level: Level = "info",
    ) -> int:
        """Apply changes to the warehouse, until stopped.

        Waits for servers that are away. Ctrl-C or SIGTERM finishes or aborts the batch and ends it within seconds; what was not
        committed is read again by the next run.
        """
        from cdc_service.cli import logs
        from cdc_service.core.errors import ConfigError

        if sum((until_caught_up, until is not None, once)) > 1:
            raise ConfigError("--until-caught-up, --until and --once are three different ends", hint="choose one", code="usage")
        if log_level.lower() not in ("debug", "info", "warning", "error"):
            raise ConfigError("--log-level must be one of debug, info, warning, error", code="usage")
        logs.configure(log_level)
        live = _live(shared)
        try:
            with Signals(quiet=live) as signals:
                config = shared.load()
                with _opened(config) as service:
                    signals.stop = service.stop
                    with Display(service.snapshot, signals, live=live):
                        ended = service.run(until_caught_up=until_caught_up, until=until, once=once, timeout_seconds=timeout)
                        document = service.snapshot()
        except TerminatedEarly:
            return exits.OK
        if shared.json:
            shared.out.document({**document, "ended": ended})
        else:
            shared.out.say(f"ended: {ended.replace('_', ' ')}")
        code = exit_code(ended, signals.first, document)
        if service.abandoned:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        return code


def _opened(config: Config) -> AbstractContextManager[Any]:
    """The service; where nothing is captured from a log, one without Kafka and Connect."""
    if config.captures:
        from cdc_service.runtime.wiring.running import open_service

        return open_service(config)
    from cdc_service.runtime.wiring.load_running import open_load_service

    return open_load_service(config)


def exit_code(ended: str, signal_number: int | None, document: Mapping[str, Any]) -> int:
    """How a run that ended by itself or by one signal counts."""
    if signal_number == signal.SIGINT:
        return exits.INTERRUPTED
    if ended == "timeout":
        return exits.UNFINISHED
    if ended != "stopped" and any(table["state"] in exits.DECIDING_STATES for table in document["tables"]):
        return exits.DECISION
    return exits.OK


def _live(shared: Shared) -> bool:
    return sys.stderr.isatty() and not shared.json and os.environ.get("TERM") != "dumb"


class TerminatedEarly(BaseException):
    """SIGTERM came before there was a service to stop; nothing is under way, so nothing has to be finished."""


class Signals:
    """While it is entered, the first SIGTERM or SIGINT calls ``stop``; a second one ends the process at once."""

    def __init__(self, *, quiet: bool) -> None:
        self.stop: Callable[[], None] | None = None
        self.first: int | None = None
        self._quiet = quiet  # a live display says it itself
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.first is not None:
            os.write(2, b"\naborted; what was not committed is read again\n")
            os._exit(exits.INTERRUPTED if number == signal.SIGINT else exits.TERMINATED)
        self.first = number
        if self.stop is None:
            raise KeyboardInterrupt if number == signal.SIGINT else TerminatedEarly
        self.stop()
        if not self._quiet:
            os.write(2, f"{STOPPING}\n".encode())


class Display:
    """While it is entered, shows the service's status every now and then: a live table, or a line for each table that moved."""

    def __init__(self, snapshot: Callable[[], Mapping[str, Any]], signals: Signals, *, live: bool) -> None:
        from cdc_service.cli.view import Rates

        self._snapshot = snapshot
        self._signals = signals
        self._rates = Rates()
        self._last: dict[str, tuple[Any, ...]] = {}
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._show_live if live else self._show_lines, name="display", daemon=True)

    def __enter__(self) -> Display:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join(timeout=2.0)

    def _show_live(self) -> None:
        from rich.console import Console
        from rich.live import Live

        console = Console(stderr=True)
        with Live(console=console, auto_refresh=False, redirect_stdout=False) as live:
            while True:
                last = self._done.wait(LIVE_SECONDS)
                live.update(self._frame(console.width), refresh=True)
                if last:
                    return

    def _frame(self, width: int) -> Any:
        from rich.console import Group
        from rich.text import Text

        from cdc_service.cli import view

        document = self._snapshot()
        shown = view.frame(document, self._rates.add(time.monotonic(), document), width)
        return shown if self._signals.first is None else Group(shown, Text(STOPPING, style="yellow"))

    def _show_lines(self) -> None:
        tables = 0
        while True:
            last = self._done.wait(max(LINE_SECONDS, LINE_SECONDS_EACH * tables))
            tables = self._lines()
            if last:
                return

    def _lines(self) -> int:
        """How many tables there are."""
        import structlog

        document = self._snapshot()
        rates = self._rates.add(time.monotonic(), document)
        for table in document["tables"]:
            state = tuple(table.get(name) for name in ("state", "applied", "lag_events", "parked"))
            if self._last.get(table["source"]) != state:
                self._last[table["source"]] = state
                structlog.get_logger().info(
                    "table",
                    table=table["source"],
                    state=table["state"],
                    applied=table.get("applied"),
                    rate=round(rates.get(table["source"], 0.0)),
                    lag=table.get("lag_events"),
                    parked=table.get("parked"),
                    position=table.get("position"),
                )
        return len(document["tables"])
