"""The wall clock of the service steps while it works: it is shown to people, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from deploy.local.stack import Stack
from tests.conftest import PgDatabase
from tests.fault.test_line_kills import KEYS, await_committed
from tests.support import hostile
from tests.support.clock import SteppingClock
from tests.support.line import FACTOR, Line, Versions, line

HOUR, YEAR = 3600.0, 365.25 * 86400


def _sees(pipeline: Line, ahead: float) -> bool:
    status = pipeline.status()
    return status is not None and abs(datetime.fromisoformat(status["at"]).timestamp() - datetime.now(UTC).timestamp() - ahead) < 60


@pytest.mark.timeout(300)
@pytest.mark.parametrize("destination", ["duckdb", "postgresql"])
def test_a_wall_clock_that_steps_changes_no_order(stack: Stack, pg_database: PgDatabase, tmp_path: Path, destination: str) -> None:
    """I1-I4, I7, I16: forward and back, by hours and by years, under load and over a kill -9; lag is never below zero."""
    scale = hostile.Scale().times(FACTOR / 2)
    hostile.seed(pg_database.url, scale)
    load = hostile.Load(pg_database.url, scale, seed=5)
    clock = SteppingClock(tmp_path)
    steps = (HOUR, -2 * HOUR, 3 * YEAR, -30 * YEAR, -HOUR)
    with line(stack, pg_database, tmp_path, hostile.CONFIG, destination=destination) as pipeline:
        pipeline.cdc = replace(pipeline.cdc, variables={**pipeline.cdc.variables, **clock.variables})
        pipeline.register()
        pipeline.start()
        with Versions(pipeline, KEYS) as versions, hostile.loading(load) as work:
            for number, ahead in enumerate(steps):
                await_committed(load, work, (number + 1) * scale.operations // (len(steps) + 1))
                clock.set(ahead)
                if number == 2:
                    pipeline.kill()
                    pipeline.start()
                pipeline.await_that(f"the service sees its clock {ahead:+.0f} s off", lambda ahead=ahead: _sees(pipeline, ahead), 30)
                lags = {name: table["lag_seconds"] for name, table in pipeline.tables().items()}
                assert all(lag is None or lag >= 0 for lag in lags.values()), lags
            work.result(timeout=240)
            pipeline.await_complete(*hostile.TABLES)
        pipeline.stop()
        pipeline.assert_equal(hostile.TABLES)
        pipeline.assert_ledger(hostile.TABLES)
        versions.check()
