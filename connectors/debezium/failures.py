"""What a connector's failure means and what heals it, out of the trace that Kafka Connect keeps.

A trace may quote cell values (a value that cannot be converted, a key within a chunk, a statement that the source refused). So nothing of
it is passed on but names of classes, and texts that are known to hold no value; of these, what a group of an expression names.
"""

from __future__ import annotations

import re

from cdc_service.ports.capture import Failure, Failures


def failure(trace: str | None, source: Failures | None) -> Failure | None:
    """None where there is no trace. ``source`` tells what only it knows of its connector."""
    first, *rest = (trace or "").strip().splitlines() or [""]
    if not first:
        return None
    # Whatever else stands at the beginning of a line belongs to a text, which may be a value's.
    thrown = [first.strip(), *(line.removeprefix("Caused by: ").strip() for line in rest if line.startswith("Caused by: "))]
    for line in reversed(thrown):
        if found := (source and source.diagnose(line)) or _diagnosed(line):
            return found
    outer, inner = _shown(thrown[0], source, outermost=True), _shown(thrown[-1], source, outermost=False)
    return Failure(outer if len(thrown) == 1 or inner in outer else f"{outer} ({inner})")


_AGAIN = "then: cdc register"
_KNOWN = (
    (
        r"^[\w.]*DebeziumException: Failed to properly convert data value for '(?P<column>.*)' of type (?P<type>\S+)$",
        Failure(
            "the connector cannot convert a value of the column {column} ({type}), and has stopped for all tables",
            "leave the column out, connect.options: {{column.exclude.list: '{column_pattern}'}}, or its table out of 'tables'; " + _AGAIN,
        ),
    ),
    (
        r"The message is (?P<bytes>\d+) bytes when serialized which is larger than (?P<limit>\d+)",
        Failure(
            "a row makes an event of {bytes} bytes, more than the {limit} that the connector may send, and it has stopped for all tables",
            "connect.options: {{producer.override.max.request.size: {twice}}}, or leave its table out of 'tables'; " + _AGAIN,
        ),
    ),
)
"""Expressions over one exception of a trace, the innermost first. What their groups take are names and sizes."""

_FREE_OF_VALUES = (
    r"java\.net\.[\w.]+: .*",
    r"java\.lang\.(?:NullPointerException|OutOfMemoryError|NoClassDefFoundError): .*",
)


def _diagnosed(thrown: str) -> Failure | None:
    for expression, known in _KNOWN:
        if found := re.search(expression, thrown):
            names = found.groupdict()
            more = {
                "column_pattern": re.escape(names.get("column", "")),
                "twice": 1 << (int(names.get("bytes", "0")) + 1).bit_length(),
            }
            return Failure(known.message.format(**names), known.cure.format(**names, **more), known.skips)
    return None


def _shown(thrown: str, source: Failures | None, *, outermost: bool) -> str:
    """The exception's class, and its text where that holds no value. Outermost stands what Connect says itself, in words alone."""
    if any(re.fullmatch(expression, thrown) for expression in _FREE_OF_VALUES):
        return thrown
    if outermost and re.fullmatch(r"[\w.]*\.ConnectException: [A-Za-z .,]+", thrown):
        return thrown
    if source is not None and (told := source.quotable(thrown)):
        return told
    named = re.match(r"(?:java|javax|org\.apache\.kafka|io\.debezium|io\.confluent|io\.apicurio)\.[\w.$]+", thrown)
    return named[0] if named else "an exception"
