"""Loaded tables in the status document (runtime.status), with the same fields as others and one more, ``load``."""

from __future__ import annotations

from typing import Any

from cdc_service.core.clock import rfc3339
from cdc_service.pipeline.load_mark import Mark
from cdc_service.pipeline.load_task import LoadTask
from cdc_service.pipeline.tally import OUTCOMES
from cdc_service.ports.destination import Destination


def loaded_table(task: LoadTask, destination: Destination) -> dict[str, Any]:
    """Out of the destination alone."""
    task.state.load()
    task.tally.recount()
    kept, tally, load = task.state.now, task.tally, task.config.load
    assert load is not None
    checkpoints = [c for c in destination.checkpoints(task.target) if c.log == task.log]
    mark = Mark.read(checkpoints[0].mark if checkpoints else None)
    complete = kept.complete_through is not None
    error = {"code": kept.error_code, "message": kept.error_message, "hint": kept.error_hint, "at": rfc3339(kept.error_at)}
    return {
        "source": str(task.config.source),
        "target": str(task.target),
        "mode": str(task.target.mode),
        "state": task.state.name,
        "rows": destination.table_rows(task.target),
        **{name: tally.counts[name] for name in OUTCOMES},
        "parked_waiting": tally.waiting.total(),
        "quarantine": {"waiting": dict(tally.waiting), "decided": dict(tally.decided)},
        "lag_events": None,
        "lag_seconds": None,
        "position": None,
        "source_commit_at": None,
        "complete_through": str(kept.complete_through) if complete else None,
        "complete_at": rfc3339(kept.complete_at) if complete else None,
        "synced_at": rfc3339(tally.synced_us),
        "verified_at": rfc3339(tally.verified[0]),
        "verified_position": None if tally.verified[1] is None else str(tally.verified[1]),
        "partitions": [{"partition": c.partition, "next_offset": c.next_offset, "end_offset": None, "owned": False} for c in checkpoints],
        "error": error if kept.error_code else None,
        "load": {
            "by": load.by,
            "cursor": load.cursor,
            "schedule": load.schedule,
            "deletes": load.deletes,
            "mark": mark.low,
            "unfinished": mark.run is not None,
        },
    }
