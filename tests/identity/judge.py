"""Is a claim right? Pure: what the source held, as its only writer recorded it, against what the target showed with a claim.

A claim is the target's rows and `complete_through`, read together, while `is_complete` was true. It is right when every key shows what the
source held under it after the newest transaction at or before that position, or at some later moment: rows may be ahead, never behind.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal

Key = tuple[str | None, ...]
Row = Mapping[str, str | None]
"""Column to canonical text."""


@dataclass(frozen=True, slots=True)
class Record:
    """What the source held at a moment. ``position`` is a log position behind it, None within a transaction (which may show ahead of the
    position, and is never what a claim has to reach). ``rows`` is None while there is no such table. ``only`` are the rows without those of
    inheriting tables, where there are some: a service that leaves those out is right too, if it does so throughout."""

    position: int | None
    key: tuple[str, ...] = ()
    rows: Mapping[Key, Row] | None = None
    only: Mapping[Key, Row] | None = None


@dataclass(frozen=True, slots=True)
class Claim:
    position: int
    columns: frozenset[str]
    rows: Sequence[Row]
    _indexed: dict[tuple[str, ...], tuple[dict[Key, Row], list[Key]]] = field(default_factory=dict, compare=False, repr=False)

    def by(self, key: tuple[str, ...]) -> tuple[dict[Key, Row], list[Key]]:
        """The rows by key, and the keys that stand there more than once. Without such columns: none."""
        if key not in self._indexed:
            found: dict[Key, Row] = {}
            twice = []
            if set(key) <= self.columns:
                for row in self.rows:
                    at = tuple(row[name] for name in key)
                    if at in found:
                        twice.append(at)
                    found[at] = row
            self._indexed[key] = (found, twice)
        return self._indexed[key]


def canonical(value: object) -> str | None:
    """One text for one value, whatever the database that it came from: 1.50 and 1.5 are one number, times are in UTC."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(value)
    if isinstance(value, Decimal):
        text = format(value, "f")
        return (text.rstrip("0").rstrip(".") if "." in text else text) or "0"
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="microseconds")
    if isinstance(value, bytes):  # A composite value arrives as the bytes of its text.
        return value.decode(errors="replace")
    return str(value)


def judge(records: Sequence[Record], claim: Claim) -> list[str]:
    """What is wrong with it, at most a few lines; nothing where it is right, or older than the first record."""
    due = [at for at, record in enumerate(records) if record.position is not None and record.position <= claim.position]
    if not due:
        return []
    after = records[due[-1] :]
    whole = _wrong(after, claim, whole=True)
    if whole and any(record.only is not None for record in after):
        return _wrong(after, claim, whole=False) and whole
    return whole


def _held(record: Record, whole: bool) -> Mapping[Key, Row]:
    rows = record.rows if whole or record.only is None else record.only
    return rows or {}


def _wrong(after: Sequence[Record], claim: Claim, *, whole: bool) -> list[str]:
    due = after[0]
    if due.rows is None:
        return ["there is no such table at the source"]
    after = [record for record in after if record.rows is not None]
    found: list[str] = []
    keys = {key for record in after for key in _held(record, whole)}
    under = {record.key: claim.by(record.key) for record in after}
    if claim.rows and not any(here for here, _ in under.values()):
        found.append(f"no column {', '.join(sorted(set(due.key) - claim.columns))}, which is the key")
    for here, _ in under.values():
        keys |= here.keys()
    # The target has one of the keys that the table had: what is no key yet, or no more, may hold a value often.
    doubled = [twice for here, twice in under.values() if here]
    if doubled and all(doubled):
        found += [f"key {', '.join(map(str, key))}: more than one row" for key in doubled[0][:2]]
    for key in sorted(keys, key=str):
        if not any(_same(under[record.key][0].get(key), _held(record, whole).get(key)) for record in after):
            told = [_told(under[record.key][0].get(key), _held(record, whole).get(key)) for record in after]
            found.append(f"key {', '.join(map(str, key))}: {min(told)[1]}")
    return found[:5] + ([f"and {len(found) - 5} more"] if len(found) > 5 else [])


def _same(target: Row | None, source: Row | None) -> bool:
    if target is None or source is None:
        return target is None and source is None
    return all(name in target and target[name] == value for name, value in source.items())


def _told(target: Row | None, source: Row | None) -> tuple[int, str]:
    """How far off it is, and what differs."""
    if target is None or source is None:
        return 1_000, "missing" if target is None else "extra"
    parts = []
    for name, value in source.items():
        if name not in target:
            parts.append(f"no column {name}")
        elif target[name] != value:
            parts.append(f"{name} is {_short(target[name])} instead of {_short(value)}")
    return len(parts), ", ".join(parts)


def _short(value: str | None) -> str:
    return "NULL" if value is None else repr(value if len(value) < 40 else f"{value[:20]}..")
