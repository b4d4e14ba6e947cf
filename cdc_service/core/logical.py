"""Logical types: the closed set that every source maps to and every destination maps from, each with exactly one Arrow type.

Sources and destinations never map to each other, so N sources and M destinations need N + M maps, not N * M.

Conventions of the values, where Arrow alone does not say it:

- ``DATE`` counts days and ``TIMESTAMP``/``TIMESTAMPTZ`` count microseconds since 1970-01-01; infinity is the largest value of the
  integer behind it, minus infinity its negative (``INFINITY``), which is also DuckDB's representation.
- ``TIMESTAMPTZ`` is an instant (UTC); the zone it was written in is gone.
- ``NUMERIC`` is a decimal number of any size as text with all its digits, NaN and infinities included; ``DECIMAL`` has at most 38 digits.
- ``INTERVAL`` is ISO 8601 text, ``UUID`` the 36-character lower-case text, ``JSON`` the text as the source sent it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import pyarrow as pa

DECIMAL_DIGITS_MAX = 38


class Kind(StrEnum):
    """The closed set. Adding one means: an Arrow type here, a line in each destination's map, a row in the generated docs."""

    BOOL = "bool"
    INT16 = "int16"
    INT32 = "int32"
    INT64 = "int64"
    FLOAT32 = "float32"
    FLOAT64 = "float64"
    DECIMAL = "decimal"
    NUMERIC = "numeric"
    STRING = "string"
    BYTES = "bytes"
    DATE = "date"
    TIME = "time"
    TIMESTAMP = "timestamp"
    TIMESTAMPTZ = "timestamptz"
    INTERVAL = "interval"
    UUID = "uuid"
    JSON = "json"
    ARRAY = "array"


_ARROW: dict[Kind, pa.DataType] = {
    Kind.BOOL: pa.bool_(),
    Kind.INT16: pa.int16(),
    Kind.INT32: pa.int32(),
    Kind.INT64: pa.int64(),
    Kind.FLOAT32: pa.float32(),
    Kind.FLOAT64: pa.float64(),
    Kind.NUMERIC: pa.string(),
    Kind.STRING: pa.string(),
    Kind.BYTES: pa.binary(),
    Kind.DATE: pa.date32(),
    Kind.TIME: pa.time64("us"),
    Kind.TIMESTAMP: pa.timestamp("us"),
    Kind.TIMESTAMPTZ: pa.timestamp("us", tz="UTC"),
    Kind.INTERVAL: pa.string(),
    Kind.UUID: pa.string(),
    Kind.JSON: pa.string(),
}

INFINITY: dict[Kind, int] = {
    Kind.DATE: 2**31 - 1,
    Kind.TIMESTAMP: 2**63 - 1,
    Kind.TIMESTAMPTZ: 2**63 - 1,
}
"""What stands for infinity in the integer behind the Arrow value; its negative stands for minus infinity."""


@dataclass(frozen=True, slots=True)
class LogicalType:
    """One member of the closed set, with its parameters.

    ``precision`` and ``scale`` belong to DECIMAL only (1..38 digits, 0 <= scale <= precision), ``element`` to ARRAY only.
    """

    kind: Kind
    precision: int | None = None
    scale: int | None = None
    element: LogicalType | None = None

    def __post_init__(self) -> None:
        if (self.kind is Kind.DECIMAL) != (self.precision is not None and self.scale is not None):
            raise ValueError(f"precision and scale belong to decimal, and only to it: {self.kind}")
        if self.precision is not None and self.scale is not None and not (0 <= self.scale <= self.precision <= DECIMAL_DIGITS_MAX):
            raise ValueError(f"decimal({self.precision},{self.scale}) is outside 1..{DECIMAL_DIGITS_MAX} digits")
        if (self.kind is Kind.ARRAY) != (self.element is not None):
            raise ValueError(f"an element belongs to array, and only to it: {self.kind}")

    @property
    def arrow(self) -> pa.DataType:
        if self.kind is Kind.DECIMAL:
            return pa.decimal128(self.precision, self.scale)
        if self.element is not None:
            return pa.list_(self.element.arrow)
        return _ARROW[self.kind]

    def __str__(self) -> str:
        if self.kind is Kind.DECIMAL:
            return f"decimal({self.precision},{self.scale})"
        return f"array({self.element})" if self.element is not None else self.kind.value


def decimal(precision: int, scale: int) -> LogicalType:
    return LogicalType(Kind.DECIMAL, precision, scale)


def array(element: LogicalType) -> LogicalType:
    return LogicalType(Kind.ARRAY, element=element)


def parse_type(text: str) -> LogicalType:
    """The inverse of ``str(LogicalType)``; it is how schema_history stores a type. Raises ValueError on anything else."""
    if text.startswith("decimal(") and text.endswith(")"):
        precision, _, scale = text[8:-1].partition(",")
        return decimal(int(precision), int(scale))
    if text.startswith("array(") and text.endswith(")"):
        return array(parse_type(text[6:-1]))
    return LogicalType(Kind(text))
