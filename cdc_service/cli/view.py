"""How the status document looks to a person: one row for each table, the same in ``cdc status`` and in the live display of ``cdc run``.

On a terminal the columns that matter least give way until a line is as wide as the terminal; in a pipe they are always the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import zip_longest
from typing import Any

COLUMNS = ("table", "state", "rows/s", "rows", "applied", "parked", "lag", "behind", "age", "position")
GAP = 2
RIGHT = ("rows/s", "rows", "applied", "parked", "lag", "behind", "age")
GIVE_WAY = ("position", "age", "applied", "rows/s", "rows")
"""What a narrow terminal leaves out, in this order."""
RATE_SECONDS = 5.0


@dataclass(slots=True)
class Rates:
    """Events applied per second, by table, over the last seconds of what was shown."""

    seen: dict[str, list[tuple[float, int]]] = field(default_factory=dict)

    def add(self, at: float, document: Mapping[str, Any]) -> dict[str, float]:
        """Takes a status document of time ``at`` (seconds, any origin); the rate of each table that was seen before."""
        rates = {}
        for table in document["tables"]:
            if table["state"] == "waiting":
                continue  # What was applied before this start is not told yet, and would look like a burst when it is.
            done = sum(table.get(name) or 0 for name in ("applied", "folded", "duplicate", "parked", "filtered"))
            done += (table.get("loading") or {}).get("rows", 0)
            points = self.seen.setdefault(table["source"], [])
            points.append((at, done))
            while len(points) > 2 and at - points[0][0] > RATE_SECONDS:
                points.pop(0)
            if len(points) > 1 and at > points[0][0]:
                rates[table["source"]] = max(0.0, done - points[0][1]) / (
                    at - points[0][0]
                )  # What was loaded is told no more when it is there.
        return rates


def rows(document: Mapping[str, Any], rates: Mapping[str, float] | None = None) -> tuple[list[str], list[list[Any]]]:
    """Column names and one row for each table. Rates are a column only where they are given."""
    columns = [name for name in COLUMNS if rates is not None or name != "rows/s"]
    now = _time(document.get("at")) or datetime.now(UTC)
    return columns, [[_values(table, rates or {}, now)[name] for name in columns] for table in document["tables"]]


def frame(document: Mapping[str, Any], rates: Mapping[str, float] | None, width: int) -> Any:
    """All of it as something that rich shows on a terminal of so many columns."""
    from rich.console import Group
    from rich.text import Text

    from cdc_service.cli.output import cell, printable, rich_table

    columns, values = rows(document, rates)
    names, cells = fit(columns, [[cell(value, grouped=True) for value in row] for row in values], width)
    wrong = [Text(printable(line), style="red") for line in troubles(document)]
    head = [Text(printable(line), style="dim") for line in (service(document), connector(document)) if line]
    return Group(*head, rich_table(names, cells, set(RIGHT)), *wrong)


def fit(columns: list[str], cells: list[list[str]], width: int) -> tuple[list[str], list[list[str]]]:
    """The columns that have room, without "parked" where nothing is."""
    from cdc_service.cli.output import give_way

    parked = columns.index("parked")
    left = [i for i in range(len(columns)) if i != parked or any(row[i] for row in cells)]
    return give_way([columns[i] for i in left], [[row[i] for i in left] for row in cells], GIVE_WAY, width, GAP)


def _values(table: Mapping[str, Any], rates: Mapping[str, float], now: datetime) -> dict[str, Any]:
    synced = _time(table.get("synced_at"))
    rate = rates.get(table["source"])
    return {
        "table": table["source"],
        "state": _state(table),
        "rows/s": None if rate is None else round(rate),
        "rows": table.get("rows"),
        "applied": table.get("applied"),
        "parked": table.get("parked_waiting", table.get("parked")) or None,
        "lag": table.get("lag_events"),
        "behind": None if table.get("lag_events") is None else duration(table.get("lag_seconds")),
        "age": duration(None if synced is None else max(0.0, (now - synced).total_seconds())),
        "position": table.get("position"),
    }


def _state(table: Mapping[str, Any]) -> str:
    """With how much of it is there, while its rows are read."""
    found = table.get("loading") or {}
    part = f" {100 * found['ranges_done'] // found['ranges']}%" if found.get("ranges") else ""
    return f"{table['state']}{part}"


def headline(document: Mapping[str, Any]) -> str:
    """Pipeline, service and connector in one line."""
    return "; ".join(part for part in (service(document), connector(document)) if part)


def service(document: Mapping[str, Any]) -> str:
    """Pipeline and service."""
    found = document.get("service") or {}
    running = f"service running (pid {found['pid']})" if found.get("running") else "service not running"
    return f"pipeline {document['pipeline']}; {running}"


def connector(document: Mapping[str, Any]) -> str:
    """Connector, and what its slot holds back at the source; empty where nothing is known."""
    found = document.get("connector") or {}
    parts = [f"connector {found['name']} {str(found.get('state') or 'unknown').lower()}"] if found.get("name") else []
    if found.get("slot"):
        kept = "" if found.get("retained_bytes") is None else f", keeps {size(int(found['retained_bytes']))}"
        parts.append(f"slot {found['slot']} {found.get('wal_status') or ''}".rstrip() + kept)
    return "; ".join(parts)


def troubles(document: Mapping[str, Any]) -> list[str]:
    """What is wrong: with a server that is waited for, with the connector, with tables; each sentence with its cure below it."""
    lines = []
    waiting = (document.get("service") or {}).get("waiting_for")
    if waiting:
        lines += _lines(f"waiting: {waiting['message']}", waiting.get("hint"))
    found = document.get("connector") or {}
    for problem, cure in zip_longest(found.get("problems") or (), found.get("cures") or (), fillvalue="mend the cause, then: cdc register"):
        lines += _lines(f"connector {found.get('name')}: {problem}", cure)
    state = str(found.get("state") or "").upper()
    if state in ("MISSING", "PAUSED", "STOPPED"):
        why = "does not exist" if state == "MISSING" else f"is {state.lower()}"
        lines += _lines(f"connector {found.get('name')} {why}, so nothing new comes from the source", "cdc register")
    alike: dict[tuple[str, str], list[str]] = {}
    for table in document["tables"]:
        error = table.get("error")
        if error and error.get("message"):
            said = str(error["message"]).removeprefix(f"{table['source']}: ")
            alike.setdefault((said, error.get("hint") or ""), []).append(str(table["source"]))
    for (said, hint), names in alike.items():
        lines += _lines(f"{_some(names)}: {said}", hint)
    if sum(table["state"] == "error" for table in document["tables"]) > 1:
        lines.append("when what stopped them is mended, one command lets all go on: cdc resume --all")
    return lines


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _lines(message: str, hint: str | None) -> list[str]:
    return [message, f"  cure: {hint}"] if hint else [message]


def duration(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    if seconds < 10:
        return f"{seconds:.1f}s"
    for limit, unit, width in ((120, "s", 1), (7200, "min", 60), (172_800, "h", 3600)):
        if seconds < limit:
            return f"{seconds / width:.0f}{unit}"
    return f"{seconds / 86_400:.0f}d"


def size(count: int) -> str:
    amount = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"


def _time(text: Any) -> datetime | None:
    return datetime.fromisoformat(text) if isinstance(text, str) else None
