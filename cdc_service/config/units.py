"""Sizes and durations as people write them: ``64MiB`` is a number of bytes, ``500ms`` a number of seconds."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, WithJsonSchema

_SIZES = {"": 1, "b": 1} | {
    prefix.lower() + unit: base**power for power, prefix in enumerate("KMGT", 1) for unit, base in (("", 1024), ("ib", 1024), ("b", 1000))
}
_SECONDS = {"": 1.0, "ms": 0.001, "s": 1.0, "sec": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_NUMBER = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*")


def parse_size(value: object) -> int:
    """Bytes: a whole number, or one with a unit (B, KB, MB, GB of 1000; KiB, MiB, GiB or K, M, G of 1024)."""
    number, unit = _split(value)
    if number is None or unit not in _SIZES:
        raise ValueError("not a size such as 64MiB or 67108864 (bytes)")
    return int(number * _SIZES[unit])


def parse_seconds(value: object) -> float:
    """Seconds: a number, or one with a unit (ms, s, min, h, d)."""
    number, unit = _split(value)
    if number is None or unit not in _SECONDS:
        raise ValueError("not a duration such as 1 (seconds), 500ms or 5min")
    return number * _SECONDS[unit]


def _split(value: object) -> tuple[float | None, str]:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None, ""
    found = _NUMBER.fullmatch(str(value))
    return (float(found[1]), found[2].lower()) if found else (None, "")


def _or_text(number: dict[str, Any], text: str) -> WithJsonSchema:
    return WithJsonSchema({"anyOf": [number, {"type": "string", "pattern": rf"^(\$\{{.*|{text})$"}]})


_VARIABLE = {"type": "string", "pattern": r"^\$\{"}

Size = Annotated[
    int,
    BeforeValidator(parse_size),
    Field(gt=0),
    _or_text({"type": "integer", "minimum": 1}, r"\d+(\.\d+)? ?([KMGTkmgt]i?)?[Bb]?"),
]
Seconds = Annotated[
    float,
    BeforeValidator(parse_seconds),
    Field(gt=0),
    _or_text({"type": "number", "exclusiveMinimum": 0}, r"\d+(\.\d+)? ?(ms|s|sec|m|min|h|d)"),
]
SecondsOrNone = Annotated[
    float,
    BeforeValidator(parse_seconds),
    Field(ge=0),
    _or_text({"type": "number", "minimum": 0}, r"\d+(\.\d+)? ?(ms|s|sec|m|min|h|d)"),
]
"""The same, or 0."""
Count = Annotated[int, Field(gt=0), WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 1}, _VARIABLE]})]
Share = Annotated[float, Field(ge=0, le=1), WithJsonSchema({"anyOf": [{"type": "number", "minimum": 0, "maximum": 1}, _VARIABLE]})]
Port = Annotated[int, Field(gt=0, lt=65536), WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 1, "maximum": 65535}, _VARIABLE]})]
