"""Loads within ``cdc run``: each table by its schedule, one at a time, on a thread of their own.

Promises: a table is loaded once at the start and then at its times; one that falls due while another is loaded waits for it, and one that
was missed is made up for once. A pipeline whose tables are all loaded runs without Kafka and Connect (``LoadService``).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import structlog
from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.cron import CronTrigger

from cdc_service.config import Config
from cdc_service.core.clock import Clock, RealClock, Stop
from cdc_service.core.errors import CdcError, ConfigError
from cdc_service.pipeline.load_task import LoadTask, Window
from cdc_service.runtime.load_status import loaded_table
from cdc_service.runtime.schedule import LATE_SECONDS
from cdc_service.runtime.service import alone
from cdc_service.runtime.status import document
from cdc_service.runtime.wiring import loading
from cdc_service.runtime.wiring.offline import query
from cdc_service.runtime.wiring.parts import prepared_destination

IDLE_SECONDS = 0.5


class Loads:
    """The loaded tables of a running service. ``documents`` are their parts of the status document, as of their last load."""

    def __init__(self, config: Config, clock: Clock) -> None:
        self._config = config
        self._clock = clock
        self._stop = Stop()
        self._one = threading.Lock()
        self._scheduler: BackgroundScheduler | None = None
        self._documents: dict[str, dict[str, Any]] = {}

    @property
    def documents(self) -> list[dict[str, Any]]:
        return [self._documents[name] for name in sorted(self._documents)]

    def start(self) -> None:
        """Raises what the source and the destination raise where they cannot be asked which tables there are."""
        with self._tasks() as tasks:
            due = {str(t.config.source): t.config.load.schedule for t in tasks if t.config.load is not None and t.config.load.schedule}
        if not due:
            return
        self._scheduler = BackgroundScheduler(
            timezone="UTC",
            executors={"default": ThreadPoolExecutor(1)},
            job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": LATE_SECONDS},
        )
        for name, schedule in due.items():
            trigger = CronTrigger.from_crontab(schedule, timezone="UTC")
            self._scheduler.add_job(self.load, trigger, args=[name], id=name, next_run_time=datetime.now(UTC))
        self._scheduler.start()

    def interrupt(self) -> None:
        """What is under way ends behind its page. Safe in a signal's handler."""
        self._stop.set()

    def stop(self) -> None:
        """The same, and waits for it."""
        self.interrupt()
        if self._scheduler is not None:
            self._scheduler.shutdown(wait=True)

    def load(self, *names: str) -> list[loading.Outcome]:
        """These tables now, or all; what goes wrong is logged, and kept in the table's state."""
        with self._one, self._tasks(*names) as tasks:
            return [self._loaded(task) for task in tasks if not self._stop.is_set() and not self._paused(task)]

    @staticmethod
    def _paused(task: LoadTask) -> bool:
        task.state.load()
        return task.state.name == "paused"

    def _loaded(self, task: LoadTask) -> loading.Outcome:
        outcome = loading.load_one(task, Window(), self._clock, lambda task: None, self._stop)
        if outcome.error is not None:
            why = outcome.error
            structlog.get_logger().warning("not loaded", table=str(task.config.source), why=why.message, cure=why.hint)
        return outcome

    @contextmanager
    def _tasks(self, *names: str) -> Iterator[list[LoadTask]]:
        """With connections that nothing else uses, as long as they are needed: others want the file of an embedded warehouse too."""
        with loading.opened(self._config) as source, prepared_destination(self._config) as destination:
            tasks = loading.load_tasks(self._config, source, destination, names)
            try:
                yield tasks
            finally:
                for task in tasks:
                    self._documents[str(task.config.source)] = loaded_table(task, destination)

    def act(self, action: str, table: str) -> dict[str, Any]:
        with self._one, self._tasks(table) as (task,):
            return loading.acted(task, action)


class LoadService:
    """``cdc run`` of a pipeline whose tables are all loaded: cli.run.Service, and what of api.service.Service has a meaning for it."""

    abandoned = False

    def __init__(self, config: Config) -> None:
        self.url: str | None = None
        self._config = config
        self._clock: Clock = RealClock()
        self._loads = Loads(config, self._clock)
        self._stop = Stop()

    def run(self, *, until_caught_up: bool, until: str | None, once: bool, timeout_seconds: float | None) -> str:
        if until is not None:
            raise ConfigError("loaded tables have no log with positions", hint="--once loads each of them once", code="usage")
        deadline = None if timeout_seconds is None else self._clock.monotonic() + timeout_seconds
        try:
            if until_caught_up or once:
                self._loads.load()
                return "stopped" if self._stop.is_set() else "once" if once else "caught_up"
            self._loads.start()
            while not self._stop.wait(IDLE_SECONDS):
                if deadline is not None and self._clock.monotonic() >= deadline:
                    return "timeout"
            return "stopped"
        finally:
            self._loads.stop()

    def stop(self) -> None:
        self._stop.set()
        self._loads.interrupt()

    def snapshot(self) -> dict[str, Any]:
        service = {"running": True, "pid": os.getpid(), "api": self.url, "ready": True}
        return document(self._config, service, None, (), self._clock.wall_us(), self._loads.documents)

    def act(self, action: str, table: str, body: Mapping[str, Any]) -> dict[str, Any]:
        return self._loads.act(action, table)

    def query(self, sql: str, rows_max: int) -> pa.Table:
        return query(self._config, sql, rows_max=rows_max)

    def health(self) -> tuple[bool, str]:
        return True, "loads by schedule"

    def ready(self) -> tuple[bool, str]:
        return True, "loads by schedule"

    def resume_all(self) -> dict[str, Any]:
        raise _not_here("resume all tables")

    def quarantine(self, action: str, body: Mapping[str, Any]) -> dict[str, Any]:
        return loading.quarantine(self._config, action, body)

    def reconcile(self, body: Mapping[str, Any]) -> dict[str, Any]:
        raise _not_here("compare tables")

    def reconciled(self, run_id: str) -> dict[str, Any]:
        raise _not_here("compare tables")

    def repair(self, body: Mapping[str, Any]) -> dict[str, Any]:
        raise _not_here("repair tables")

    def explain(self, body: Mapping[str, Any]) -> dict[str, Any]:
        raise _not_here("explain keys")

    def cancel(self, run_id: str) -> dict[str, Any]:
        raise _not_here("compare tables")


def _not_here(what: str) -> CdcError:
    hint = "cdc load TABLE --full reads all rows again, and writes those that differ"
    return ConfigError(f"a pipeline whose tables are all loaded cannot {what} yet", hint=hint, code="nothing_captured")


@contextmanager
def open_load_service(config: Config) -> Iterator[LoadService]:
    """The service with its API. Raises AlreadyRunning where the pipeline runs already."""
    from cdc_service.api.server import Api

    with alone(config.state_dir, config.pipeline):
        service = LoadService(config)
        with Api(service, config.api.listen, config.state_dir, config.api.token_file) as api:
            service.url = api.url
            yield service
