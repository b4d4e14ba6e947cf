"""The differences of a reconciliation as CSV: one line for each differing column, one for each row that a side lacks.

Promises: values stand there as they are; NULL and the empty text are told apart by ``source_is_null`` and ``destination_is_null``. The line
of a missing or extra row has no column, and its value is the whole row as JSON.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from typing import Any, TextIO

HEADER = (
    *("run_id", "table", "kind", "key", "column", "source_value", "destination_value", "source_is_null", "destination_is_null"),
    *("topic", "partition", "offset", "position", "op", "batch_id", "cause"),
)


def write_csv(document: Mapping[str, Any], stream: TextIO) -> None:
    """Writes all differences that the document holds. Open ``stream`` with ``newline=""``, as the csv module asks for."""
    writer = csv.writer(stream)
    writer.writerow(HEADER)
    for table in document["tables"]:
        for difference in table["differences"]:
            writer.writerows(_lines(document["run_id"], table["source"], difference))


def _lines(run_id: str, table: str, difference: Mapping[str, Any]) -> Iterator[list[Any]]:
    source, destination = difference["source"], difference["destination"]
    event = difference.get("event") or {}
    head = [run_id, table, difference["kind"], _json(difference["key"])]
    tail = [*(event.get(name) for name in ("topic", "partition", "offset", "position", "op", "batch_id")), difference.get("cause")]
    if source is None or destination is None or not difference["columns"]:
        values: list[tuple[str, str | None, str | None]] = [("", _row(source), _row(destination))]
    else:
        values = [(name, source.get(name), destination.get(name)) for name in difference["columns"]]
    for name, one, other in values:
        yield [*head, name, one, other, _flag(one is None), _flag(other is None), *tail]


def _row(row: Mapping[str, str | None] | None) -> str | None:
    return None if row is None else _json(row)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _flag(value: bool) -> str:
    return "true" if value else "false"
