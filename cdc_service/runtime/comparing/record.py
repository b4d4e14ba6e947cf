"""Keeps what a comparison found in the warehouse, and reads it back for a run that goes on.

Promises: a table's result is kept whole or not at all, as soon as it is known.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from cdc_service.core.errors import CdcError
from cdc_service.core.types import Target
from cdc_service.ports.destination import State
from reconcile.report.document import Buckets, Difference, Event, Kind, Status, TableReport

HISTORY_RUNS = 10
RUNS_LOOKED_AT = 1_000
COUNTED = ("missing", "extra", "different", "representation", "late", "in_flight")


def keep(destination: State, target: Target, run_id: str, report: TableReport) -> TableReport:
    """Records the report in the warehouse, and gives it the table's last runs."""
    row = {
        "run_id": run_id, "at": datetime.fromtimestamp(report.started_us / 1e6, UTC), "status": str(report.status), "reason": report.reason,
        "method": report.method, "fence": report.fence, "position": report.position, "batch_id": report.batch_id,
        "rows_source": report.rows[0], "rows_destination": report.rows[1], "digest_source": report.digest[0],
        "digest_destination": report.digest[1], "buckets_total": report.buckets.total, "buckets_dirty": len(report.buckets.dirty),
        **{n: report.counts.get(n, 0) for n in COUNTED},
        "columns_compared": len(report.compared), "left_out": json.dumps(dict(report.left_out)),
        "by_value": json.dumps(dict(report.by_value)), "condition": report.where,
        "seconds": report.seconds, "bytes": report.bytes,
    }  # fmt: skip
    differences = [
        {
            "run_id": run_id, "key": json.dumps(d.key), "kind": str(d.kind), "columns": json.dumps(d.columns),
            "source": None if d.source is None else json.dumps(d.source),
            "destination": None if d.destination is None else json.dumps(d.destination), "position": d.position,
            "topic": d.event.topic if d.event else None, "partition": d.event.partition if d.event else None,
            "offset": d.event.offset if d.event else None, "op": d.event.op if d.event else None, "cause": d.cause,
        }
        for d in report.differences
    ]  # fmt: skip
    buckets = [
        {
            "run_id": run_id, "bucket": number, "rows_source": here.rows, "rows_destination": there.rows,
            "digest_source": here.digest, "digest_destination": there.digest,
        }
        for number, (here, there) in report.buckets.dirty.items()
    ]  # fmt: skip
    try:
        destination.keep_run(target, row, differences, buckets)
        history = [_past(r) for r in destination.runs(target, HISTORY_RUNS)]
    except CdcError as error:
        why = f"{report.reason}; " if report.reason else ""
        return replace(report, reason=f"{why}the result could not be kept in the warehouse: {error.message}")
    return replace(report, history=history)


def recorded(destination: State, source: str, target: Target, run_id: str) -> TableReport | None:
    """The report that a run recorded of the table, if it came to its end there; with what the warehouse keeps of it."""
    row = next((r for r in destination.runs(target, RUNS_LOOKED_AT) if r["run_id"] == run_id), None)
    if row is None or row["status"] in (Status.PARTIAL, Status.ERROR):
        return None
    differences = [_difference(d) for d in destination.differences(target, run_id)]
    return TableReport(
        source, str(target), str(target.mode), Status(row["status"]), reason=row["reason"] or "", method=row["method"], fence=row["fence"],
        position=row["position"], batch_id=row["batch_id"], rows=(row["rows_source"], row["rows_destination"]),
        digest=(row["digest_source"], row["digest_destination"]), buckets=Buckets(row["buckets_total"] or 0),
        counts={n: row[n] for n in COUNTED}, left_out=json.loads(row["left_out"]), by_value=json.loads(row["by_value"] or "{}"),
        where=row["condition"], differences=differences,
        columns=dict(Counter(c for d in differences for c in d.columns).most_common()),
        started_us=int(row["at"].timestamp() * 1e6), seconds=row["seconds"], bytes=row["bytes"] or 0,
        history=[_past(r) for r in destination.runs(target, HISTORY_RUNS)],
    )  # fmt: skip


def _difference(row: Mapping[str, Any]) -> Difference:
    source, there = (None if row[side] is None else json.loads(row[side]) for side in ("source", "destination"))
    event = None if row["offset"] is None else Event(row["topic"], row["partition"], row["offset"], op=row["op"])
    kind, columns = Kind(row["kind"]), tuple(json.loads(row["columns"]))
    return Difference(json.loads(row["key"]), kind, columns, source, there, row["position"], event, row["cause"] or "")


def _past(run: Mapping[str, Any]) -> dict[str, Any]:
    at = run["at"].astimezone(UTC).isoformat().replace("+00:00", "Z") if run["at"] else None
    counts = {n: run[n] for n in ("missing", "extra", "different")}
    return {"run_id": run["run_id"], "at": at, "status": run["status"], "counts": counts}
