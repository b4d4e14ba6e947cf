"""How a place in the order of rows is written by the database and read back, for each engine that SQLAlchemy reaches.

Promises: ``text`` is SQL that the database turns a value into text with; ``value`` turns that text into a parameter, and SQL around it,
that the database reads as exactly this value.
"""

from __future__ import annotations

import datetime as dt
import re
from typing import Any

from cdc_service.core.errors import ConfigError
from cdc_service.core.logical import Kind
from cdc_service.core.types import Column

_MOMENT = re.compile(r"(\d{4}-\d\d-\d\d)(?:([ T])(\d\d:\d\d(?::\d\d)?)(\.\d+)?)?(Z|[+-]\d\d(?::?\d\d)?)?")


class Standard:
    """Engines that keep to the standard: a CAST to text and back, as exact as the engine's own."""

    snapshot = "REPEATABLE READ"
    """The isolation level in which a transaction reads one state; the engine's own where it has none of this name."""

    def __init__(self, text_type: str = "VARCHAR(4000)") -> None:
        self._text_type = text_type

    def text(self, name: str) -> str:
        return f"CAST({name} AS {self._text_type})"

    def place(self, value: Any) -> str:
        """The text of a value that was read by the expression ``text``."""
        return str(value)

    def value(self, column: Column, text: str, parameter: str) -> tuple[str, Any]:
        """The SQL expression of a place's text, and the value of its ``parameter``."""
        return f"CAST(:{parameter} AS {column.source_type})", text

    def back(self, column: Column, text: str, seconds: float) -> str:
        """The text of what lies so many seconds before a moment. Earlier is right too."""
        return _before(text, seconds)

    def given(self, column: Column, text: str) -> str:
        """What a person wrote, as ``text`` writes it."""
        return text


class Sqlite(Standard):
    """Values have types of their own there, whatever the column says: each text is led by a letter that says which. The driver gives them
    as they are kept (whole numbers, doubles, texts, bytes), so Python writes them as exactly as the database would."""

    snapshot = ""

    def text(self, name: str) -> str:
        return name

    def place(self, value: Any) -> str:
        match value:
            case int():
                return f"i{value}"
            case float():
                return f"r{value!r}"
            case str():
                return f"t{value}"
            case _:
                return f"b{bytes(value).hex()}"

    def value(self, column: Column, text: str, parameter: str) -> tuple[str, Any]:
        kind, rest = text[:1], text[1:]
        read: dict[str, Any] = {"i": int, "r": float, "t": str, "b": bytes.fromhex}
        if kind not in read:
            raise ConfigError(f"the checkpoint holds no place that can be read: it begins with {kind!r}", hint="cdc load --full")
        value = read[kind](rest)
        if kind == "t" and not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):  # It is no UTF-8 there.
            return f"CAST(:{parameter} AS text)", value.encode(errors="surrogateescape")
        return f":{parameter}", value

    def back(self, column: Column, text: str, seconds: float) -> str:
        if text[:1] != "t":
            raise ConfigError(
                f"a lookback needs a cursor that is written as a moment, and {column.name} is not",
                hint="leave lookback out, or name another cursor",
            )
        return "t" + _before(text[1:], seconds)

    def given(self, column: Column, text: str) -> str:
        number = {**dict.fromkeys((Kind.INT16, Kind.INT32, Kind.INT64), int), Kind.FLOAT64: float}.get(column.type.kind)
        if number is None:
            return f"t{text}"
        try:
            return f"{'i' if number is int else 'r'}{number(text)!r}"
        except ValueError:
            raise ConfigError(f"{text!r} is no value of {column.name}", hint="write a number", code="usage") from None


def _before(text: str, seconds: float) -> str:
    """The moment so much earlier, in the form that ``text`` has, so that the two compare as texts too."""
    found = _MOMENT.fullmatch(text)
    if found is None:
        raise ConfigError("a lookback cannot be taken from a cursor that is no moment such as 2026-01-31 12:00:00", hint="leave it out")
    day, between, time, fraction, zone = found.groups()
    moment = dt.datetime.fromisoformat(f"{day} {time or '00:00'}")
    earliest = dt.datetime.min + dt.timedelta(days=1)
    earlier = max(moment, earliest) - min(dt.timedelta(seconds=seconds), max(moment, earliest) - earliest)
    if earlier.microsecond:
        earlier = earlier.replace(microsecond=0)
    if time is None:
        return earlier.date().isoformat()
    shown = earlier.time().isoformat()[: len(time)]
    return f"{earlier.date().isoformat()}{between}{shown}{'.' + '0' * (len(fraction) - 1) if fraction else ''}{zone or ''}"
