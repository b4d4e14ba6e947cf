"""When tables are compared inside the running service."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import pytest

from cdc_service.config.models import Flush, Reconcile
from cdc_service.config.resolve import TableConfig
from cdc_service.core.errors import CdcError
from cdc_service.core.types import TableId, Target
from cdc_service.runtime.comparing.reconciler import Run
from cdc_service.runtime.schedule import Schedule
from reconcile.run import Options

ORDERS = TableId("public", "orders")


class Comparing:
    """A reconciler that is busy a few times."""

    def __init__(self, busy: int) -> None:
        self.busy, self.asked, self.began = busy, list[tuple[Sequence[str], Options]](), threading.Event()

    def begin(self, tables: Sequence[str], options: Options) -> Run:
        self.asked.append((tables, options))
        if len(self.asked) <= self.busy:
            raise CdcError("another one", code="busy")
        self.began.set()
        run = Run("p", tables)
        run.end()
        return run


def table(schedule: str | None) -> TableConfig:
    reconcile = Reconcile(schedule=schedule, max_seconds=60)
    return TableConfig(ORDERS, Target(ORDERS, "public", "orders"), "t", Flush(), "refuse", "public.orders", reconcile=reconcile)


def test_a_table_is_compared_when_it_is_due_and_waits_for_another_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    comparing: Any = Comparing(busy=2)
    monkeypatch.setattr("cdc_service.runtime.schedule.AGAIN_SECONDS", 0.01)
    schedule = Schedule([table("*/5 * * * *"), table(None)], comparing)
    schedule.start()
    assert schedule._scheduler is not None
    (job,) = schedule._scheduler.get_jobs()
    job.func(*job.args)
    assert comparing.began.wait(5)
    assert comparing.asked == [(["public.orders"], Options(max_seconds=60))] * 3
    schedule.stop()


def test_without_a_schedule_no_clock_is_looked_at() -> None:
    schedule = Schedule([table(None)], Comparing(0))  # type: ignore[arg-type]
    schedule.start()
    assert schedule._scheduler is None


@pytest.mark.parametrize("wrong", ["every day", "61 * * * *", "* * *"])
def test_a_wrong_expression_is_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match="schedule"):
        Reconcile(schedule=wrong)
