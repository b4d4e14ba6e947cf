"""How a reconciliation's document looks to a person at a terminal: a row for each table, then the first differences and their cure.

Promises: results go to stdout, sentences and cures to stderr; in a pipe every column is there, on a terminal those that matter least give
way. Text is in quotes and NULL is not, so that nothing, the empty text and a blank at an end look different.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from cdc_service.cli.output import Output, cell, give_way, printable
from reconcile.report import summary as words

COLUMNS = ("table", "status", "source", "warehouse", "missing", "extra", "different", "in flight", "as of", "seconds", "rows/s")
RIGHT = ("source", "warehouse", "missing", "extra", "different", "in flight", "seconds", "rows/s")
GIVE_WAY = ("rows/s", "seconds", "in flight", "as of", "warehouse", "source")
"""What a narrow terminal leaves out, in this order."""
GAP = 2
VALUE_MAX = 60
BEFORE_MAX = 20
"""Characters of a long value that are shown, and how many of them before the first that differs."""
FIELDS_MAX = 6


def show(out: Output, document: Mapping[str, Any], differences_max: int = 20) -> None:
    """The whole result. ``differences_max`` is for each table."""
    if out.as_json:
        out.document(document)
        return
    out.say(printable(f"pipeline {document['pipeline']}, run {document['run_id']}: {words.summary(document)}"))
    tables = sorted(document["tables"], key=lambda table: words.rank(table["status"]))
    if tables:
        _table(out, [_values(table) for table in tables])
    for table in tables:
        for line in _differences(table, differences_max):
            out.text(line)
        for line in _cures(table):
            out.say(line)


def _table(out: Output, rows: list[list[Any]]) -> None:
    if not out.rich:
        out.table(COLUMNS, rows, right=RIGHT)
        return
    from rich.console import Console

    from cdc_service.cli.output import rich_table

    console = Console()
    names, cells = give_way(COLUMNS, [[cell(value, grouped=True) for value in row] for row in rows], GIVE_WAY, console.width, GAP)
    console.print(rich_table(names, cells, set(RIGHT)))


def _values(table: Mapping[str, Any]) -> list[Any]:
    """A table's row."""
    counts = table["counts"] if words.compared(table) else {}
    return [
        *(table["source"], table["status"], table["rows"].get("source"), table["rows"].get("destination")),
        *(counts.get(name) for name in ("missing", "extra", "different", "in_flight")),
        *(words.as_of_text(table), float(table["seconds"]) if table["seconds"] else None, words.rate(table)),
    ]


def _differences(table: Mapping[str, Any], most: int) -> Iterator[str]:
    found = table["differences"][: max(0, most)]
    if not found:
        return
    total = max(words.differences(table), len(table["differences"]))
    some = f", the first {len(found):,}" if len(found) < total else ""
    yield f"{printable(table['source'])}: {words.counted(total, 'difference')}{some}"
    for difference in found:
        yield from _difference(difference, table)


def _difference(difference: Mapping[str, Any], table: Mapping[str, Any]) -> Iterator[str]:
    key = ", ".join(f"{printable(name)}={quoted(value)}" for name, value in difference["key"].items())
    times = f" ({difference['count']:,} rows)" if (difference.get("count") or 1) > 1 else ""
    yield f"  {printable(difference['kind'])} {key}{times}"
    source, destination = difference["source"], difference["destination"]
    if source is None or destination is None:
        row = source if destination is None else destination
        if row:
            yield f"    only the {'source' if destination is None else 'warehouse'}: {_row(row, difference['key'])}"
    else:
        for name in difference["columns"]:
            one, other = _both(source, destination, name)
            yield f"    {printable(name)}: source {one}, warehouse {other}"
    yield f"    {_why(difference)}"


def _both(source: Mapping[str, str | None], destination: Mapping[str, str | None], name: str) -> tuple[str, str]:
    """Both values of a column; long ones from a little before where they begin to differ."""
    one, other = source.get(name), destination.get(name)
    start = 0
    if one is not None and other is not None and max(len(one), len(other)) > VALUE_MAX:
        same = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
        start = max(0, same - BEFORE_MAX)
    return quoted(one, start) if name in source else "not told", quoted(other, start) if name in destination else "not told"


def _row(row: Mapping[str, str | None], key: Mapping[str, str | None]) -> str:
    fields = [(name, value) for name, value in row.items() if name not in key]
    more = f", and {words.counted(len(fields) - FIELDS_MAX, 'more column')}" if len(fields) > FIELDS_MAX else ""
    return ", ".join(f"{printable(name)}={quoted(value)}" for name, value in fields[:FIELDS_MAX]) + more


def quoted(value: str | None, start: int = 0) -> str:
    """A value as SQL writes it, on one line; of a long one a part, with its length."""
    if value is None:
        return "NULL"
    stop = start + VALUE_MAX
    text = printable(value[start:stop]).replace("'", "''")
    long = len(value) > stop or start
    return f"{'...' if start else ''}'{text}'{'...' if len(value) > stop else ''}{f' ({len(value):,} characters)' if long else ''}"


def _why(difference: Mapping[str, Any]) -> str:
    """The suspected cause and the last event on one line."""
    cause = f"suspected cause: {difference['cause']}; " if difference.get("cause") else ""
    event = difference.get("event")
    if not event:
        return printable(f"{cause}no event of this key is known")
    parts = [
        f"{event['topic']} partition {event['partition']} offset {event['offset']}",
        f"position {at}" if (at := words.event_position(event)) else "",
        f"op {event['op']}" if event.get("op") else "",
        f"batch {event['batch_id']}" if event.get("batch_id") else "",
    ]
    return printable(f"{cause}last event: {', '.join(part for part in parts if part)}")


def _cures(table: Mapping[str, Any]) -> Iterator[str]:
    """What a person has to know of a table that does not equal its source, and the command for it."""
    if table["status"] == "match":
        return
    yield printable(f"{table['source']} {words.verdict(table)}")
    if table.get("repair"):
        yield printable(f"  cure: {table['repair']}")
