"""Results of queries on their way to a person: the wire form, and Arrow columns as Python values. Loads nothing heavy by itself."""

from __future__ import annotations

from typing import Any

ARROW = "application/vnd.apache.arrow.stream"
ROWS_MAX = 10_000


def column_values(column: Any) -> list[Any]:
    """Python values of an Arrow column; a time that Python cannot hold (infinity, year 294276) is text."""
    import pyarrow as pa

    try:
        values: list[Any] = column.to_pylist()
        return values
    except (OverflowError, ValueError, pa.ArrowException):
        pass
    end = {pa.date32(): 2**31 - 1}.get(column.type, 2**63 - 1)
    numbers = column.cast(pa.int32() if column.type == pa.date32() else pa.int64())
    names = {end: "infinity", -end: "-infinity"}
    texts = column.cast(pa.string()).to_pylist()
    return [names.get(number, text) for number, text in zip(numbers.to_pylist(), texts, strict=True)]
