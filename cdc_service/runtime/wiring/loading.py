"""Tables that are loaded by queries: at once, for ``cdc load``, and by their schedules within ``cdc run``.

Promises: one load of a pipeline at a time holds its lock; a server that is away for a moment ends no load, and an error of one table keeps
no other from being loaded.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from cdc_service.config import Config, TableConfig, resolve
from cdc_service.config.patterns import parse_pattern
from cdc_service.config.problems import dotted, unknown_table
from cdc_service.config.resolve import resolution
from cdc_service.core.clock import Backoff, Clock, RealClock, Stop
from cdc_service.core.errors import CdcError, ConfigError, Disposition
from cdc_service.core.types import TableId, Target
from cdc_service.pipeline import quarantine as parked
from cdc_service.pipeline.load_task import LoadTask, Window, log_said
from cdc_service.ports.destination import Destination
from cdc_service.ports.load import Loadable
from cdc_service.ports.source import Finding
from cdc_service.runtime.load_status import loaded_table
from cdc_service.runtime.service import alone
from cdc_service.runtime.wiring.load_proposal import warnings
from cdc_service.runtime.wiring.parts import open_configured, prepared_destination
from connectors.sources import open_loadable

TRIES = 6
"""How often in a row a load is tried that merges nothing, where only waiting helps."""
AGAIN = frozenset({Disposition.RETRY, Disposition.UNKNOWN})

Told = Callable[[LoadTask], None]
"""Called before each page, and when a table is done."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one table: loaded, stopped (by a person, on the way), planned, or failed with its error."""

    task: LoadTask
    outcome: str
    seconds: float
    error: CdcError | None = None
    planned: tuple[int, str | None, bool] | None = None


@contextmanager
def opened(config: Config) -> Iterator[Loadable]:
    source = open_loadable(config.source.url.reveal())
    try:
        yield source
    finally:
        source.close()


def load_tasks(config: Config, source: Loadable, destination: Destination, names: Sequence[str] = ()) -> list[LoadTask]:
    """The loaded tables, or those of ``names``. Raises ConfigError where one is none of them."""
    tables = resolve(config, source.tables(), destination.fold, loaded=True)
    if not tables:
        hint = "say how: tables.SCHEMA.TABLE.load: {cursor: COLUMN}, or {by: full}"
        raise ConfigError(f"{config.file}: no table is loaded by queries", hint=hint, code="nothing_loaded")
    clock = RealClock()
    return [LoadTask(c, destination, source, clock, config.limits) for c in _chosen(tables, names)]


def _chosen(tables: Sequence[TableConfig], names: Sequence[str]) -> Sequence[TableConfig]:
    by_name = {t.source: t for t in tables}
    chosen = []
    for text in names:
        exact = None
        with contextlib.suppress(ValueError):
            exact = parse_pattern(text).exact
        if exact is None or TableId(*exact) not in by_name:
            raise unknown_table(text, list(by_name))
        chosen.append(by_name[TableId(*exact)])
    return chosen or tables


def load(config: Config, names: Sequence[str], window: Window, *, told: Told, stop: Stop) -> list[Outcome]:
    """Loads the tables of ``names``, or all, one after another."""
    with alone(config.state_dir, config.pipeline), opened(config) as source, prepared_destination(config) as destination:
        tasks = load_tasks(config, source, destination, names)
        return [load_one(task, window, RealClock(), told, stop) for task in tasks if not stop.is_set()]


def load_one(task: LoadTask, window: Window, clock: Clock, told: Told, stop: Stop) -> Outcome:
    """One table, tried again while that may help."""
    began, backoff, tries = clock.monotonic(), Backoff(clock), 0

    def asked() -> bool:
        told(task)
        return stop.is_set()

    while True:
        merged = task.tally.merges
        try:
            ended = task.run(window, asked)
            log_said(task.config, task.done)
            told(task)
            return Outcome(task, "loaded" if ended else "stopped", clock.monotonic() - began)
        except CdcError as error:
            tries = 1 if task.tally.merges > merged else tries + 1
            if error.disposition not in AGAIN or tries >= TRIES or stop.wait(backoff.failed()):
                return Outcome(task, "failed", clock.monotonic() - began, error)


def plan(config: Config, names: Sequence[str], window: Window) -> list[Outcome]:
    """What ``load`` would read. Writes nothing, and makes no warehouse where there is none."""
    destination = open_configured(config)
    try:
        with opened(config) as source:
            return [_planned(task, window, destination) for task in load_tasks(config, source, destination, names)]
    finally:
        destination.close()


def _planned(task: LoadTask, window: Window, destination: Destination) -> Outcome:
    mark = None
    with contextlib.suppress(CdcError):
        destination.query("SELECT 1", rows_max=1)  # Raises where there is no warehouse, which the next question would make.
        mark = next((c.mark for c in destination.checkpoints(task.target) if c.log == task.log), None)
    try:
        return Outcome(task, "planned", 0.0, planned=task.plan(window, mark))
    except CdcError as error:
        return Outcome(task, "failed", 0.0, error)


def known_tasks(config: Config, destination: Destination) -> Iterator[LoadTask]:
    """The loaded tables that the destination knows or the source has; where the source is away, those alone."""
    if not any(table.load is not None for table in config.tables.values()):
        return
    with opened(config) as source:
        known = {TableId(*exact) for text, _ in destination.states() if (exact := parse_pattern(text).exact) is not None}
        with contextlib.suppress(CdcError):
            known |= set(source.tables())
        tables, _ = resolution(config, known, destination.fold, loaded=True)
        for table in tables:
            yield LoadTask(table, destination, source, RealClock(), config.limits)


def status(config: Config, destination: Destination) -> list[dict[str, Any]]:
    """The loaded tables in the status document."""
    return [loaded_table(task, destination) for task in known_tasks(config, destination)]


def act(config: Config, action: str, table: str) -> dict[str, Any] | None:
    """A person's deed on a loaded table while no service runs; None where ``table`` is none."""
    if not any(t.load is not None for t in config.tables.values()):
        return None
    with alone(config.state_dir, config.pipeline), prepared_destination(config) as destination:
        found = next((task for task in known_tasks(config, destination) if str(task.config.source) == table), None)
        return None if found is None else acted(found, action)


def is_loaded(config: Config, table: object) -> bool:
    """Whether the configuration says by its name that ``table`` is loaded."""
    return isinstance(table, str) and (own := config.tables.get(table)) is not None and own.load is not None


def quarantine(config: Config, action: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """The parked records of loaded tables. They are looked at; a load that reads a row again decides about its records by itself."""
    with prepared_destination(config) as destination:
        tasks = list(known_tasks(config, destination))
        chosen = [task for task in tasks if body.get("table") in (None, str(task.config.source))]
        if not chosen:
            raise unknown_table(str(body.get("table")), [task.config.source for task in tasks])
        return quarantine_of(chosen, destination, action, body)


def quarantine_of(tasks: Sequence[LoadTask], destination: Destination, action: str, body: Mapping[str, Any]) -> dict[str, Any]:
    tables = [parked.Listed(task.config.source, task.target, destination) for task in tasks]
    if action == "list":
        return parked.listed(tables, parked.Asked.of(body), body.get("state", "parked"), body.get("most", parked.LISTED))
    if action == "show":
        return parked.shown(tables, parked.Asked.of(body))
    name = tasks[0].config.source
    raise ConfigError(
        f"records of {name}, which is loaded by queries, are not decided on: when a row is read again, its records are discarded by that",
        hint=f"mend the row at the source, then: cdc load {name} --full",
        code="usage",
    )


def acted(task: LoadTask, action: str) -> dict[str, Any]:
    name = task.config.source
    task.state.load()
    if action == "pause":
        task.state.keep(state="paused")
    elif action == "resume":
        task.state.go_on()
    else:
        raise ConfigError(f"{name} is loaded by queries: it knows no {action}", hint=f"cdc load {name} --full", code="usage")
    return {"table": str(name), "state": task.state.name}


def check(config: Config, destination: Destination) -> tuple[list[Finding], list[Target]]:
    """Whether the loaded tables can be, what speaks against their cursors, and the targets of those that can."""
    own = {key for key, table in config.tables.items() if table.load is not None}
    if not own:
        return [], []
    findings, targets = list[Finding](), list[Target]()
    with opened(config) as source:
        try:
            tables, problems = resolution(config, source.tables(), destination.fold, loaded=True)
        except CdcError as error:
            return [Finding("load", False, error.message, error.hint)], []
        wrong = [p for p in problems if any(p.path == dotted(("tables", key)) for key in own)]
        findings += [Finding("load", False, p.render(config.file)) for p in wrong]
        for table in tables:
            task = LoadTask(table, destination, source, RealClock(), config.limits)
            name = f"load {table.source}"
            try:
                found, reading = task.reading()
            except CdcError as error:
                findings.append(Finding(name, False, error.message, error.hint))
                continue
            how = f"by {reading.cursor}" if reading.cursor is not None else "in full"
            findings.append(Finding(name, True, f"is loaded {how}, key ({', '.join(reading.key)})"))
            if table.load is not None:
                findings += warnings(found, table.load)
            targets.append(table.target)
    return findings, targets


def document(config: Config, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The result of ``cdc load --json``."""
    return {"version": 1, "pipeline": config.pipeline, "tables": [_table(o) for o in outcomes]}


def _table(o: Outcome) -> Mapping[str, Any]:
    done, load_ = o.task.done, o.task.config.load
    assert load_ is not None
    error = None if o.error is None else {"code": o.error.code, "message": o.error.message, "hint": o.error.hint}
    shared = {
        "source": str(o.task.config.source),
        "target": str(o.task.target),
        "mode": str(o.task.target.mode),
        "by": load_.by,
        "cursor": load_.cursor,
        "outcome": o.outcome,
    }
    if o.planned is not None:
        rows, low, full = o.planned
        return {**shared, "full": full, "rows": rows, "since": low, "error": error}
    counts = {name: getattr(done, name) for name in ("full", "read", "applied", "unchanged", "duplicate", "parked", "deleted")}
    return {**shared, **counts, "mark": done.low, "held": done.held, "seconds": round(o.seconds, 3), "error": error}
