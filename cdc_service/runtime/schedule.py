"""Compares tables with their source at the times that the configuration names, inside the running service.

Promises: one comparison at a time; one that falls due while another runs waits for it, and one that was missed (the service was down, or
the one before took longer) is made up for once, not many times. What goes wrong is logged and kept like any other run.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import structlog
from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.cron import CronTrigger

from cdc_service.config.resolve import TableConfig
from cdc_service.core.errors import CdcError
from cdc_service.runtime.comparing.reconciler import Reconciler
from reconcile.report.document import Status
from reconcile.run import Options

LATE_SECONDS = 3600
"""How long after its time a comparison is still begun."""
AGAIN_SECONDS = 2.0


class Schedule:
    """``start`` looks at the clock from then on, where some table has a schedule; ``stop`` leaves what is under way to the Reconciler."""

    def __init__(self, tables: Sequence[TableConfig], comparing: Reconciler) -> None:
        self._tables = [t for t in tables if t.reconcile.schedule is not None]
        self._comparing = comparing
        self._stopped = False
        self._scheduler: BackgroundScheduler | None = None

    def start(self) -> None:
        if not self._tables:
            return
        self._scheduler = BackgroundScheduler(
            timezone="UTC",
            executors={"default": ThreadPoolExecutor(1)},
            job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": LATE_SECONDS},
        )
        for table in self._tables:
            trigger = CronTrigger.from_crontab(table.reconcile.schedule, timezone="UTC")
            self._scheduler.add_job(self._compare, trigger, args=[table], id=str(table.source))
        self._scheduler.start()

    def stop(self) -> None:
        self._stopped = True
        if self._scheduler is not None:
            self._scheduler.shutdown(wait=False)

    def _compare(self, table: TableConfig) -> None:
        log, r = structlog.get_logger(), table.reconcile
        options = Options(max_seconds=r.max_seconds, max_rows_per_second=r.max_rows_per_second)
        while not self._stopped:
            try:
                run = self._comparing.begin([str(table.source)], options)
                break
            except CdcError as error:
                if error.code != "busy":
                    log.warning("not compared", table=str(table.source), why=error.message, cure=error.hint)
                    return
            time.sleep(AGAIN_SECONDS)
        else:
            return
        while not run.wait(1.0):
            if self._stopped:
                return
        for report in run.reports:
            say = log.error if report.status is Status.MISMATCH else log.info
            told = {"run": run.id, "status": str(report.status), "differences": report.found, "seconds": round(report.seconds, 1)}
            say("compared", table=report.source, **told)
        if run.error is not None:
            log.warning("not compared", table=str(table.source), why=run.error.message, cure=run.error.hint)
