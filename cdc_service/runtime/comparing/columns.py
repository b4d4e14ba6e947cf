"""Which of the source's columns a target has not, and why: what events never carry is left out, and what they should is a finding.

Promises: a column is called left out only for what the catalog or the configuration says of it; of every other the cure is told.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from cdc_service.core.types import TableSchema
from cdc_service.ports.source import SourceTable, without_columns

EXCLUDE, INCLUDE = "column.exclude.list", "column.include.list"


def uncovered(
    table: SourceTable,
    schema: TableSchema,
    excluded: Collection[str],
    asked: Mapping[str, str],
    running: Callable[[], Mapping[str, str]],
) -> tuple[dict[str, str], dict[str, str]]:
    """Those that events never carry, and those that the target lacks, each with the reason. ``excluded`` are left out by the configuration,
    ``asked`` are the connector's options in it; ``running`` gives those that the connector runs with."""
    there = {c.name for c in schema.columns if not c.dropped}
    apart, lacking = dict[str, str](), dict[str, str]()
    for column in table.columns:
        if column.name in there:
            continue
        if column.generated:
            apart[column.name] = "a generated column, which the log does not carry"
        elif column.name in excluded:
            apart[column.name] = "the configuration leaves it out (columns.exclude)"
        elif not column.carried:
            apart[column.name] = f"the connector's events never carry {column.type}"
        elif column.name in _excluded(table, asked.get(EXCLUDE, "")):
            apart[column.name] = f"connect.options leave it out ({EXCLUDE})"
        elif INCLUDE in asked and column.name not in _excluded(table, asked[INCLUDE]):
            apart[column.name] = f"connect.options leave it out ({INCLUDE})"
        elif any("ReplaceField" in value for value in asked.values()):
            apart[column.name] = "connect.options drop fields from events (ReplaceField)"
        else:
            lacking[column.name] = ""
    registered = _excluded(table, running().get(EXCLUDE, "")) if lacking else frozenset[str]()
    return apart, {name: _why(table, registered=name in registered) for name in lacking}


def _why(table: SourceTable, *, registered: bool) -> str:
    if registered:
        return f"the connector leaves it out since it was registered, and should not any more: cdc register, then cdc resync {table.table}"
    return f"no event that was merged had it: it comes with the table's next change, or with cdc resync {table.table}"


def _excluded(table: SourceTable, patterns: str) -> frozenset[str]:
    """The columns that these expressions name, but for the key's."""
    (kept,) = without_columns((table,), patterns)
    return frozenset(c.name for c in table.columns) - {c.name for c in kept.columns}
