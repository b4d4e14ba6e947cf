"""The running service: one loop on the caller's thread, the API and the watcher beside it, an end that is orderly.

Promises: one service a pipeline and state_dir; it starts while servers are away and waits for them; ``stop`` ends it within seconds,
whatever is under way, and what was not merged by then is read again by the next run.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import pyarrow as pa
import structlog

from cdc_service.config import Config
from cdc_service.config.patterns import parse_pattern
from cdc_service.config.problems import unknown_table
from cdc_service.core.clock import Backoff, Clock, Stop
from cdc_service.core.errors import AlreadyRunning, CdcError, ConfigError, Disposition, Unavailable
from cdc_service.core.types import TableId
from cdc_service.pipeline import quarantine
from cdc_service.pipeline.commands import Commands
from cdc_service.pipeline.poll_loop import PollLoop
from cdc_service.pipeline.table_task import TableTask
from cdc_service.pipeline.watermarks import Watermarks
from cdc_service.runtime.comparing.reconciler import Reconciler, asked
from cdc_service.runtime.monitor import Monitor
from cdc_service.runtime.status import document, waiting_for

FLUSH_SECONDS = 1.5
"""How long the last merges may take after a stop."""
ANEW_SECONDS = 86_400.0
"""And where all is only opened anew, so that nobody waits for the end."""
ACT_SECONDS = 25.0
QUARANTINE_SECONDS = 300.0
STALE_SECONDS = 60.0
"""A loop that did not turn for so long is not healthy; a merge of a full batch takes far less."""


class Loads(Protocol):
    """The pipeline's tables that are loaded by queries (runtime.wiring.load_running)."""

    @property
    def documents(self) -> Sequence[Mapping[str, Any]]: ...


@dataclass(frozen=True, slots=True)
class Works:
    """What runs once all servers answered."""

    line: PollLoop
    progress: Watermarks
    control: Commands
    watch: Monitor
    parse_position: Callable[[str], int]
    query: Callable[[str, int], pa.Table]
    comparing: Reconciler
    close: Callable[[], None]
    loads: Loads | None = None


class Service:
    """``build`` makes the works; it raises Unavailable while a server is away. ``url`` is the API's address, once it listens."""

    def __init__(self, config: Config, build: Callable[[], Works], clock: Clock) -> None:
        self.url: str | None = None
        self.abandoned = False
        """Whether a merge was still under way at the end: its thread has the destination, so the process has to end without tidying up."""
        self._config = config
        self._build = build
        self._clock = clock
        self._stop = Stop()
        self._works: Works | None = None
        self._trouble: CdcError | None = None
        self._log = structlog.get_logger()

    def run(self, *, until_caught_up: bool, until: str | None, once: bool, timeout_seconds: float | None) -> str:
        """Works until stopped or as far as asked; says why it ended: stopped, caught_up, until, once, timeout."""
        deadline = None if timeout_seconds is None else self._clock.monotonic() + timeout_seconds
        bounded = until_caught_up or once or until is not None
        while True:
            ended = self._start(deadline, patient=not bounded)
            if ended is not None:
                return ended
            works = self._works
            assert works is not None
            try:
                ended = self._turn(works, deadline, self._end_of(works, until_caught_up=until_caught_up, until=until, once=once))
            finally:
                ends = self._stop.is_set() or ended is not None
                self._works = works if ends else None
                self._finish(works, FLUSH_SECONDS if ends else ANEW_SECONDS)
            if ended is not None:
                return ended

    def _turn(self, works: Works, deadline: float | None, reached: Callable[[], str | None] | None) -> str | None:
        """Steps until there is a reason to end, or until all has to be opened anew (None)."""
        backoff = Backoff(self._clock)
        while not self._stop.is_set():
            try:
                works.line.read()
                backoff.succeeded()
            except Unavailable as error:
                self._log.warning("waiting", why=error.message, cure=error.hint)
                self._stop.wait(backoff.failed())
            if works.line.resting:
                works.progress.look()
                works.control.look()
                works.control.retry()
            works.line.merge()
            if reached is not None and (ended := reached()) is not None:
                return ended
            if deadline is not None and self._clock.monotonic() >= deadline:
                return "timeout"
            if works.watch.facts is not None and works.watch.facts.connector_differs:
                self._log.warning("the connector is gone or was made anew; all is opened again", cure="cdc register")
                return None
        return "stopped"

    def _start(self, deadline: float | None, *, patient: bool) -> str | None:
        """Makes the works, waiting for servers that are away. Returns why it gave up, or None."""
        backoff, said = Backoff(self._clock), ""
        while not self._stop.is_set():
            try:
                self._works = self._build()
                self._works.watch.start()
                self._trouble = None
                return None
            except CdcError as error:
                if error.disposition is not Disposition.RETRY or not patient:
                    raise
                self._trouble = error
                if error.message != said:
                    self._log.warning("waiting", why=error.message, cure=error.hint)
                    said = error.message
            wait = backoff.failed()
            if deadline is not None and self._clock.monotonic() + wait >= deadline:
                return "timeout"
            self._stop.wait(wait)
        return "stopped"

    def _end_of(self, works: Works, *, until_caught_up: bool, until: str | None, once: bool) -> Callable[[], str | None] | None:
        """Asked after each step: the reason to end, or None."""
        tables = works.line.tables
        if until is not None:
            position = works.parse_position(until)
            return lambda: "until" if all(t.state.stopped or (t.state.now.complete_through or 0) >= position for t in tables) else None
        if until_caught_up or once:
            works.watch.look()
            facts = works.watch.facts
            if facts is None or facts.trouble is not None:
                raise facts.trouble if facts and facts.trouble else Unavailable("nothing answered")
            ends = {topic: {p: high for p, (_, high) in found.ends.items()} for topic, found in facts.topics.items()}
            word = "once" if once else "caught_up"

            def there() -> str | None:
                done = all(
                    t.state.stopped or (once and t.tally.merges) or (t.has_its_rows and t.partitions.passed(ends.get(t.config.topic, {})))
                    for t in tables
                    if t.config.topic in ends
                )
                return word if done else None

            return there
        return None

    def _finish(self, works: Works, flush_seconds: float) -> None:
        began = self._clock.monotonic()
        works.watch.stop()
        works.comparing.cancel()
        if not works.line.flush_all(began + flush_seconds):
            self.abandoned = True
            self._log.warning("a merge does not end; it is left, and its events are read again by the next run")
            return
        flushed = self._clock.monotonic()
        for table in works.line.tables:
            try:
                if table.partitions.log is not None and table.partitions.leads:
                    table.state.save()
            except CdcError as error:
                self._log.warning("state not saved", table=str(table.source), why=error.message)
        saved = self._clock.monotonic()
        works.close()
        closed = self._clock.monotonic()
        self._log.debug("finished", flush=flushed - began, save=saved - flushed, close=closed - saved)

    def stop(self) -> None:
        self._stop.set()
        if (works := self._works) is not None:
            works.line.ask(lambda: None)  # Else it may wait for records for a while.

    def snapshot(self) -> dict[str, Any]:
        works, now = self._works, self._clock.wall_us()
        service: dict[str, Any] = {"running": True, "pid": os.getpid(), "api": self.url, "ready": self.ready()[0]}
        facts = works.watch.facts if works is not None else None
        trouble = self._trouble or (facts.trouble if facts is not None else None)
        if trouble is not None:
            service["waiting_for"] = waiting_for(trouble)
        if works is None:
            return document(self._config, service, None, (), now)
        totals = works.line.totals
        service |= {
            "buffered_bytes": works.line.buffered_bytes,
            "merges": totals.merges,
            "merge_seconds": round(totals.merge_seconds, 3),
            "fetched_records": totals.fetched,
            "fetched_bytes": totals.fetched_bytes,
        }
        return document(self._config, service, facts, works.line.tables, now, works.loads.documents if works.loads else ())

    # Called from threads of the API

    def act(self, action: str, table: str, body: Mapping[str, Any]) -> dict[str, Any]:
        works = self._ready_works()
        found = find_table(works.line.tables, table)
        return _on_line(works, lambda: works.control.act(action, found, body), f"{action} {table}", ACT_SECONDS)

    def resume_all(self) -> dict[str, Any]:
        works = self._ready_works()
        return _on_line(works, works.control.resume_all, "resume all tables", ACT_SECONDS)

    def quarantine(self, action: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Lists, shows, replays or discards parked records: {table?, key?, code?, id?, ...} (pipeline.quarantine)."""
        works = self._ready_works()
        tables = tables_of(works.line.tables, action, body)
        return _on_line(works, lambda: quarantine.do(action, tables, body), f"{action} records", QUARANTINE_SECONDS)

    def query(self, sql: str, rows_max: int) -> pa.Table:
        return self._ready_works().query(sql, rows_max)

    def reconcile(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Begins to compare tables ({tables: [...], options}); {run_id}."""
        return self._ready_works().comparing.begin(*asked(body)).state()

    def reconciled(self, run_id: str) -> dict[str, Any]:
        """How far a comparison is, and its document once it is done."""
        run = self._ready_works().comparing.run(run_id)
        return {**run.state(), "document": run.document() if run.done else None}

    def repair(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Repairs what a comparison found: {table, run?, dry_run?}."""
        run = body.get("run")
        if not isinstance(body.get("table"), str) or not (run is None or isinstance(run, str)):
            raise ConfigError("a repair names a table", hint='send {"table": "public.orders", "dry_run": true}', code="usage")
        return self._ready_works().comparing.repair(body["table"], run, dry_run=bool(body.get("dry_run", False)))

    def explain(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The life of a key: {table, key: [values]}."""
        key = body.get("key")
        if not isinstance(body.get("table"), str) or not isinstance(key, list) or not all(isinstance(k, str) for k in key):
            raise ConfigError("table and key are needed", hint='send {"table": "public.orders", "key": ["7"]}', code="usage")
        return self._ready_works().comparing.explain(body["table"], key)

    def cancel(self, run_id: str) -> dict[str, Any]:
        run = self._ready_works().comparing.run(run_id)
        run.progress.cancelled = True
        return run.state()

    def health(self) -> tuple[bool, str]:
        works = self._works
        if works is None:
            return True, "starting"
        idle = self._clock.monotonic() - works.line.totals.at
        return idle < STALE_SECONDS, f"the loop turned {idle:.1f} s ago"

    def ready(self) -> tuple[bool, str]:
        works = self._works
        if works is None:
            return False, self._trouble.message if self._trouble else "starting"
        waiting = [t.trouble.message for t in works.line.tables if t.trouble is not None and not t.state.stopped]
        facts = works.watch.facts
        if facts is not None and facts.trouble is not None:
            waiting.append(facts.trouble.message)
        return not waiting, "; ".join(dict.fromkeys(waiting)) or "reading and merging"

    def _ready_works(self) -> Works:
        if self._works is None:
            message = self._trouble.message if self._trouble else "the service is starting"
            raise Unavailable(message, hint=self._trouble.hint if self._trouble else "try again in a moment")
        return self._works


def _on_line(works: Works, do: Callable[[], dict[str, Any]], what: str, seconds: float) -> dict[str, Any]:
    """What ``do`` gives on the line's thread."""
    future = works.line.ask(do)
    try:
        done: dict[str, Any] = future.result(timeout=seconds)
    except TimeoutError:
        future.cancel()
        message = f"the service was too busy to {what} within {seconds:g} s"
        raise Unavailable(message, hint="try again; cdc status tells what it waits for") from None
    return done


def tables_of(tables: list[TableTask], action: str, body: Mapping[str, Any]) -> list[TableTask]:
    """Those that a request about the quarantine means: one, or all where it only looks."""
    name = body.get("table")
    if name is None and action in ("list", "show"):
        return tables
    if not isinstance(name, str):
        raise ConfigError("which table is meant?", hint='send {"table": "public.orders"}', code="usage")
    return [find_table(tables, name)]


def find_table(tables: list[TableTask], text: str) -> TableTask:
    """The table that ``text`` names (schema.table, parts with a dot in quotes). Raises ConfigError with the nearest name."""
    try:
        exact = parse_pattern(text).exact
    except ValueError:
        exact = None
    found = next((t for t in tables if exact is not None and t.source == TableId(*exact)), None)
    if found is None:
        raise unknown_table(text, [t.source for t in tables])
    return found


@contextmanager
def alone(state_dir: Path, pipeline: str) -> Iterator[None]:
    """Holds the pipeline's lock. Raises AlreadyRunning, with the process that has it."""
    state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = state_dir / f"{pipeline}.lock"
    with path.open("a+", encoding="utf-8") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyRunning(
                f"pipeline {pipeline} runs already{_holder(handle)}", hint="cdc status shows it; stop it before you start another one"
            ) from None
        handle.seek(0)
        handle.truncate()
        handle.write(str(os.getpid()))
        handle.flush()
        yield


def _holder(handle: IO[str]) -> str:
    handle.seek(0)
    pid = handle.read().strip()
    return f" (pid {pid})" if pid.isdigit() else ""
