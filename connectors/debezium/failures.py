"""What a connector's failure means and what heals it, out of the trace that Kafka Connect keeps.

A trace may quote cell values (a value that cannot be converted, a key within a chunk, a statement that the source refused). So nothing of
it is passed on but names of classes, and texts that are known to hold no value; of these, what a group of an expression names.
"""

from __future__ import annotations

import re

from cdc_service.ports.capture import Failure


def failure(trace: str | None) -> Failure | None:
    """None where there is no trace."""
    first, *rest = (trace or "").strip().splitlines() or [""]
    if not first:
        return None
    # Whatever else stands at the beginning of a line belongs to a text, which may be a value's.
    thrown = [first.strip(), *(line.removeprefix("Caused by: ").strip() for line in rest if line.startswith("Caused by: "))]
    for line in reversed(thrown):
        for expression, known in _KNOWN:
            if found := re.search(expression, line):
                return Failure(_filled(known.message, found), _filled(known.cure, found), known.skips)
    outer, inner = _shown(thrown[0], outermost=True), _shown(thrown[-1], outermost=False)
    return Failure(outer if len(thrown) == 1 or inner in outer else f"{outer} ({inner})")


_AGAIN = "then: cdc register"
_KNOWN = (
    (
        r"^[\w.]*DebeziumException: Table '(?P<table>[^']*)' has columns that differ only by case\. Column name: '(?P<column>[^']*)'",
        Failure(
            "table {table} has columns whose names differ only by case, {column} beside another one: the connector reads no such table,"
            " and has stopped for all",
            'ALTER TABLE {table_sql} RENAME COLUMN "{column}" TO ...;  -- '
            + _AGAIN
            + " (it skips what the log holds; all tables are read anew)",
            skips=True,
        ),
    ),
    (
        r"^[\w.]*DebeziumException: Failed to properly convert data value for '(?P<column>.*)' of type (?P<type>\S+)$",
        Failure(
            "the connector cannot convert a value of the column {column} ({type}), and has stopped for all tables",
            "leave the column out, connect.options: {{column.exclude.list: '{column_pattern}'}}, or its table out of 'tables'; " + _AGAIN,
        ),
    ),
    (
        r"Cannot serialize chunk information",
        Failure(
            "the connector cannot keep how far it has read a table whose key holds an array, and has stopped for all",
            "cdc register (it skips what the log holds; all tables are read anew, but that one, which cdc check names)",
            skips=True,
        ),
    ),
    (
        r"NullPointerException.*java\.sql\.ResultSet\.getArray",
        Failure(
            "the database has an enum without labels or a domain over an enum, at which the connector stops for all tables",
            "cdc check names it, with the statement that cures; " + _AGAIN,
        ),
    ),
    (r"Publication autocreation is disabled", Failure("Publication autocreation is disabled, and there is no publication", "cdc register")),
    (
        r"is trying to read change stream starting at|can no longer get changes from replication slot|requested WAL segment",
        Failure(
            "the source no longer holds the log from where the connector stands: its slot was lost or dropped", "cdc register", skips=True
        ),
    ),
    (
        r"The message is (?P<bytes>\d+) bytes when serialized which is larger than (?P<limit>\d+)",
        Failure(
            "a row makes an event of {bytes} bytes, more than the {limit} that the connector may send, and it has stopped for all tables",
            "connect.options: {{producer.override.max.request.size: {twice}}}, or leave its table out of 'tables'; " + _AGAIN,
        ),
    ),
    (
        r"(must be superuser or replication role|permission denied to (?:start WAL sender|use replication slots))",
        Failure("the source's role lacks the right of replication (REPLICATION)", "cdc check prints the statement; " + _AGAIN),
    ),
    (
        r"all replication slots are in use",
        Failure("all replication slots of the source are in use", "cdc check prints the statement; " + _AGAIN),
    ),
)
"""Expressions over one exception of a trace, the innermost first. What their groups take are names and sizes."""

_FREE_OF_VALUES = (
    r"[\w.]*SQLException: FATAL: .*",  # The end of a session: login, limits, shutdown.
    r"[\w.]*SQLException: ERROR: (?:replication slot|publication) .*",
    r"[\w.]*SQLException: (?:Connection to .* refused|The connection attempt failed|An I/O error occurred).*",
    r"java\.net\.[\w.]+: .*",
    r"java\.lang\.(?:NullPointerException|OutOfMemoryError|NoClassDefFoundError): .*",
    r"[\w.]*DebeziumException: Creation of replication slot failed.*",
)


def _shown(thrown: str, *, outermost: bool) -> str:
    """The exception's class, and its text where that holds no value. Outermost stands what Connect says itself, in words alone."""
    if any(re.fullmatch(expression, thrown) for expression in _FREE_OF_VALUES):
        return thrown
    if outermost and re.fullmatch(r"[\w.]*\.ConnectException: [A-Za-z .,]+", thrown):
        return thrown
    named = re.match(r"(?:java|javax|org\.apache\.kafka|org\.postgresql|io\.debezium|io\.confluent|io\.apicurio)\.[\w.$]+", thrown)
    return named[0] if named else "an exception"


def _filled(text: str, found: re.Match[str]) -> str:
    names = found.groupdict()
    parts = names.get("table", "").split(".", 1)
    return text.format(
        **names,
        table_sql=".".join('"' + part.replace('"', '""') + '"' for part in parts),
        column_pattern=re.escape(names.get("column", "")),
        twice=1 << (int(names.get("bytes", "0")) + 1).bit_length(),
    )
