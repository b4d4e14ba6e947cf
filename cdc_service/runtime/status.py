"""The status document (``cdc status --json``, ``GET /status``): where every table stands. Positions and other 64-bit numbers are decimal
strings, times RFC 3339 in UTC; what is not known is null."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from cdc_service.config import Config
from cdc_service.core.clock import rfc3339
from cdc_service.core.errors import CdcError
from cdc_service.pipeline.table_task import TableTask
from cdc_service.pipeline.tally import OUTCOMES
from cdc_service.pipeline.watermarks import lag_seconds
from cdc_service.ports.capture import Facts

VERSION = 1


def document(
    config: Config,
    service: Mapping[str, Any],
    facts: Facts | None,
    tables: Iterable[TableTask],
    now_us: int,
    loaded: Iterable[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """The whole document; safe from any thread, since it only reads. ``loaded`` are the parts of loaded tables (runtime.load_status)."""
    return {
        "version": VERSION,
        "pipeline": config.pipeline,
        "at": rfc3339(now_us),
        "service": dict(service),
        "connector": _connector(config, facts),
        "tables": [*(_table(table, now_us) for table in tables), *map(dict, loaded)],
    }


def waiting_for(trouble: CdcError) -> dict[str, str]:
    """A server that does not answer, as ``service.waiting_for`` says it."""
    return {"code": trouble.code, "message": trouble.message, "hint": trouble.hint}


def _connector(config: Config, facts: Facts | None) -> dict[str, Any]:
    status = facts.connector if facts else None
    hold = facts.hold if facts else None
    return {
        "name": config.names.connector if config.captures else None,
        "state": status.overall if status else "MISSING" if facts and facts.connector_missing else None,
        "problems": list(status.problems) if status else [],
        "cures": [failure.cure for failure in status.failures] if status else [],
        "slot": hold.name if hold else None,
        "wal_status": hold.status if hold else None,
        "retained_bytes": hold.retained_bytes if hold else None,
        "left_bytes": hold.left_bytes if hold else None,
    }


def _table(table: TableTask, now_us: int) -> dict[str, Any]:
    kept = table.state.now
    claims = kept.complete_through is not None and not kept.resync
    parts = sorted(table.partitions.checkpoints.items())
    return {
        "source": str(table.source),
        "target": str(table.target),
        "mode": str(table.target.mode),
        "state": table.state.name,
        "rows": table.tally.rows,
        "loading": _loading(table),
        **{name: table.tally.counts[name] for name in OUTCOMES},
        "parked_waiting": table.tally.waiting.total(),
        "quarantine": {"waiting": dict(table.tally.waiting), "decided": dict(table.tally.decided)},
        "lag_events": table.partitions.lag if parts else None,
        "lag_seconds": lag_seconds(table, now_us) if parts else None,
        "position": _text(table.tally.high_commit),
        "source_commit_at": rfc3339(table.tally.source_us),
        "complete_through": _text(kept.complete_through) if claims else None,
        "complete_at": rfc3339(kept.complete_at) if claims else None,
        "synced_at": rfc3339(table.tally.synced_us),
        "verified_at": rfc3339(table.tally.verified[0]),
        "verified_position": _text(table.tally.verified[1]),
        "partitions": [
            {"partition": p, "next_offset": offset, "end_offset": table.partitions.ends.get(p), "owned": p in table.partitions.own}
            for p, offset in parts
        ],
        "error": _error(table),
    }


def _loading(table: TableTask) -> dict[str, Any] | None:
    """How far its rows are read at the source itself."""
    found = table.loading
    return None if found is None else {"rows": found.rows, "ranges": found.ranges, "ranges_done": found.done}


def _error(table: TableTask) -> dict[str, Any] | None:
    kept = table.state.now
    if table.state.stopped and kept.error_code:
        return {"code": kept.error_code, "message": kept.error_message, "hint": kept.error_hint, "at": rfc3339(kept.error_at)}
    if table.trouble is not None:
        return {"code": table.trouble.code, "message": table.trouble.message, "hint": table.trouble.hint, "at": None}
    return None


def _text(position: int | None) -> str | None:
    return None if position is None else str(position)
