"""A reconciliation's document in words: one sentence for a run, one for each table, and how numbers, times and positions are written.

Promises: plain text without markup or escapes, so whoever shows it escapes it. Nothing is said that the document does not say; what was
not compared is named in the same sentence as what was.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

Document = Mapping[str, Any]
Table = Mapping[str, Any]

STATUSES: Mapping[str, tuple[str, str]] = {
    "mismatch": ("≠", "mismatch"),
    "error": ("!", "error"),
    "partial": ("½", "partial"),
    "in_flight": ("~", "in flight"),
    "match": ("=", "match"),
    "skipped": ("–", "skipped"),
}
"""Sign and word of each status, what needs a person first. The signs are in every font."""
KINDS: Mapping[str, tuple[str, str, str]] = {
    "missing": ("−", "missing", "only the source has the row"),
    "extra": ("+", "extra", "only the warehouse has the row"),
    "different": ("≠", "different", "some values differ"),
    "representation": ("≈", "representation", "written otherwise, equal by type; does not count"),
}
NOT_COUNTED: Mapping[str, str] = {"late": "late", "representation": "representation", "in_flight": "in flight"}
"""What is counted and does not make a table differ."""
FENCES: Mapping[str, str] = {"exact": "both sides at one position", "stable": "no common position, what differed was looked at again"}
OPS: Mapping[str, str] = {"c": "insert", "u": "update", "d": "delete", "r": "snapshot", "t": "truncate"}
_RUN: Mapping[str, tuple[str, str]] = {
    "mismatch": ("differs from its source", "differ from their sources"),
    "error": ("could not be compared", "could not be compared"),
    "partial": ("was not compared to its end", "were not compared to their end"),
    "in_flight": ("is in flight", "are in flight"),
    "match": ("equals its source", "equal their sources"),
    "counted": ("has as many rows as its source", "have as many rows as their sources"),
    "skipped": ("was skipped", "were skipped"),
}
"""Where only rows were counted, a match is no more than that: ``counted``."""
_KNOWN_SINCE = datetime(2000, 1, 1, tzinfo=UTC)
"""A time before this is that of a table which was never begun."""


def summary(document: Document) -> str:
    """The run in one sentence."""
    tables: Sequence[Table] = document["tables"]
    if not tables:
        return "No table was compared"
    found = Counter("counted" if _counted(table) else str(table["status"]) for table in tables)
    if len(found) == 1:
        status, count = next(iter(found.items()))
        subject = tables[0]["source"] if count == 1 else f"All {count:,} tables"
        return f"{subject} {_came_to(status, count)}"
    order = list(_RUN)
    worst, *others = sorted(found, key=lambda status: order.index(status) if status in order else -1)
    first = f"{found[worst]:,} of {len(tables):,} tables {_came_to(worst, found[worst])}"
    return listed([first, *(f"{found[s]:,} {_came_to(s, found[s])}" for s in others)])


def _came_to(status: str, count: int) -> str:
    """What so many tables came to; a status may be of a later version."""
    return _RUN.get(status, (f"has status {status}", f"have status {status}"))[count > 1]


def verdict(table: Table) -> str:
    """What came out for a table: a sentence whose subject, the table's name, stands before it."""
    status = table["status"]
    reason = str(table.get("reason") or "").rstrip(". ")
    because = f": {reason}" if reason else ""
    if status == "skipped":
        return f"was not compared{because}"
    if status == "error":
        return f"could not be compared{because}"
    as_of = f" as of {position}" if (position := as_of_text(table)) else ""
    checked = f"checked in {duration(table['seconds'])}{_moved(table)}"
    if _counted(table):
        rows = counted(table["rows"].get("source"), "row")
        return _sentence(f"has as many rows as its source{_where(table)}{as_of}, and no more was compared", [rows, checked])
    if status == "match":
        return _sentence(f"equals its source{_where(table)}{as_of}", [*_extent(table), checked]) + _aside(table)
    if status == "mismatch":
        of = f"of {rows} at the source" if (rows := counted(table["rows"].get("source"), "row")) else ""
        facts = [f"{_found(table)} {of}".rstrip()] if differences(table) or not table["coverage"].get("lacking") else _extent(table)
        return _sentence(f"differs from its source{_where(table)}{as_of}", [*facts, checked]) + _aside(table)
    if status == "partial":
        found = _found(table) if differences(table) else ""
        return _sentence(f"was not compared to its end{_where(table)}{as_of}", [part for part in (reason, found, checked) if part])
    if status == "in_flight":
        waiting = table["counts"].get("in_flight") or 0
        why = reason or (f"{counted(waiting, 'key')} changed too fast to be judged" if waiting else "")
        return _sentence(f"has no confirmed difference{_where(table)}{as_of}", [*filter(None, [why]), *_extent(table), checked])
    return f"has status {status}{because}"


def _sentence(head: str, parts: Sequence[str]) -> str:
    return f"{head}: {', '.join(parts)}" if parts else head


def _counted(table: Table) -> bool:
    return bool(table["status"] == "match" and table.get("method") == "counts")


def _extent(table: Table) -> list[str]:
    """Rows and columns that were compared, with how many columns were not."""
    coverage = table["coverage"]
    compared, left = len(coverage["columns"]), len(coverage["left_out"])
    columns = f"{compared:,} of {compared + left:,} columns" if left else counted(compared, "column")
    if compared and (by_value := coverage.get("by_value")):
        columns += f" ({len(by_value):,} by value, not by text)"
    return [text for text in (counted(table["rows"].get("source"), "row"), columns if compared else "") if text]


def _aside(table: Table) -> str:
    """What the verdict must not hide."""
    counts, reason = table["counts"], str(table.get("reason") or "").rstrip(". ")
    parts = [f"{counts['parked']:,} explained by records in quarantine"] if counts.get("parked") else []
    if counts.get("in_flight"):
        parts.append(f"{counted(counts['in_flight'], 'key')} not judged{f': {reason}' if reason else ''}")
    elif reason and not table["coverage"].get("where"):  # A condition's reason is the condition, which the sentence has.
        parts.append(reason)
    return "".join(f"; {part}" for part in parts)


def _where(table: Table) -> str:
    where = table["coverage"].get("where")
    return f" where {where}" if where else ""


def _moved(table: Table) -> str:
    """Only keys that were seen to change prove that something moved; a fence says no more than that it could."""
    if table["counts"].get("late") or table["counts"].get("in_flight"):
        return " while both sides moved"
    return " without stopping either side" if table.get("fence") else ""


def _found(table: Table) -> str:
    counts = table["counts"]
    missing, extra, different = (counts.get(kind) or 0 for kind in ("missing", "extra", "different"))
    parts = [f"{n:,} {word}" for n, word in ((missing, "missing"), (extra, "extra"), (different, "different")) if n]
    if not parts:
        return "differences"
    first, _, rest = parts[0].partition(" ")
    return listed([f"{first} {'row' if first == '1' else 'rows'} {rest}", *parts[1:]])


def differences(table: Table) -> int:
    """How many differences count against the table."""
    return sum(table["counts"].get(kind) or 0 for kind in ("missing", "extra", "different"))


def compared(table: Table) -> bool:
    """Whether its counts say something: 0 differences of a table that was not read would be a claim."""
    return table["status"] not in ("error", "skipped") and table["rows"].get("source") is not None


def rank(status: str) -> int:
    """Where a status stands in a list that begins with what needs a person; one that is not known stands there too."""
    order = list(STATUSES)
    return order.index(status) if status in order else -1


def sign(status: str) -> str:
    return STATUSES.get(status, ("?", ""))[0]


def word(status: str) -> str:
    return STATUSES.get(status, ("", status))[1]


def as_of_text(table: Table) -> str | None:
    """The source position of the comparison, as its source writes it where that is known."""
    as_of = table["as_of"]
    found = as_of.get("source_text") or as_of.get("source")
    return None if found is None else str(found)


def event_position(event: Mapping[str, Any]) -> str | None:
    """Where an event stands in the source's log, as its source writes it where that is known."""
    found = event.get("position_text") or event.get("position")
    return None if found is None else str(found)


def rate(table: Table) -> int | None:
    """Rows compared a second."""
    rows, seconds = table["rows"].get("source"), table["seconds"]
    return round(rows / seconds) if rows and seconds else None


def time(text: Any) -> datetime | None:
    """A time of the document; None for none, for what is none, and for the zero of a table that was never begun."""
    try:
        found = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return None
    found = found if found.tzinfo else found.replace(tzinfo=UTC)
    return found if found >= _KNOWN_SINCE else None


def moment(found: datetime | None) -> str:
    return "" if found is None else f"{found.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def began(document: Document) -> datetime | None:
    """When the run began: the earliest known time in it."""
    times = [time(document.get("at")), *(time(table.get("started_at")) for table in document["tables"])]
    return min((t for t in times if t), default=None)


def took(document: Document) -> float:
    """Seconds from the begin of the first table to the end of the last; tables may have been compared side by side."""
    spans = [(start.timestamp(), table["seconds"]) for table in document["tables"] if (start := time(table.get("started_at")))]
    if not spans:
        return float(sum(table["seconds"] for table in document["tables"]))
    return float(max(start + seconds for start, seconds in spans) - min(start for start, _ in spans))


def duration(seconds: float) -> str:
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def size(count: int) -> str:
    amount = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"


def counted(count: int | None, noun: str) -> str:
    """``1 row``, ``2,000 rows``; empty where the count is not known."""
    return "" if count is None else f"{count:,} {noun}{'' if count == 1 else 's'}"


def listed(parts: Sequence[str]) -> str:
    """``a, b and c``."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
