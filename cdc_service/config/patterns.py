"""Names of tables as the configuration writes them: ``schema.table``, with ``*``, ``?`` and ``[..]`` outside quotes as a pattern.

A part that holds a dot (or a character of patterns) stands in double quotes, with ``""`` for a quote in it; what is quoted is literal.
``core.types.spell`` writes such names.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cdc_service.core.types import TableId

PIPELINE = r"^[a-z][a-z0-9_]{0,40}$"
PIPELINE_RULE = "must begin with a-z, hold only a-z, 0-9 and _, and have at most 41 characters"

_PART = re.compile(r'"((?:[^"]|"")+)"|([^."]+)')
_GLOB = re.compile(r"([*?\[])")


@dataclass(frozen=True, slots=True)
class Pattern:
    """A key of ``tables``. ``exact`` holds the two parts where nothing in it is a pattern; else schema and table are matched by shape."""

    text: str
    exact: tuple[str, str] | None
    schema_glob: str
    table_glob: str

    def matches(self, table: TableId) -> bool:
        if self.exact is not None:
            return (table.schema, table.name) == self.exact
        return fnmatchcase(table.schema, self.schema_glob) and fnmatchcase(table.name, self.table_glob)


def split_name(text: str) -> tuple[tuple[str, bool], ...]:
    """The parts of a dotted name, each with whether it was quoted. Raises ValueError with what is wrong."""
    parts: list[tuple[str, bool]] = []
    at = 0
    while True:
        found = _PART.match(text, at)
        if found is None or (found.end() < len(text) and text[found.end()] != "."):
            raise ValueError('not a name such as schema.table; a part with a dot or a quote in it is written "in quotes"')
        parts.append((found[2], False) if found[1] is None else (found[1].replace('""', '"'), True))
        if found.end() == len(text):
            return tuple(parts)
        at = found.end() + 1


def parse_pattern(text: str) -> Pattern:
    """Reads a key of ``tables``; ``*`` alone means every table of every schema. Raises ValueError with what is wrong."""
    if text == "*":
        return Pattern(text, None, "*", "*")
    parts = split_name(text)
    if len(parts) != 2:
        raise ValueError("needs two parts, schema.table")
    if not any(_GLOB.search(part) for part, quoted in parts if not quoted):
        return Pattern(text, (parts[0][0], parts[1][0]), "", "")
    schema, table = (_GLOB.sub(r"[\1]", part) if quoted else part for part, quoted in parts)
    return Pattern(text, None, schema, table)


def render_target(template: str, pipeline: str, schema: str, table: str) -> tuple[str, str]:
    """The target's two parts, from a template such as ``{schema}.{table}``. Raises ValueError with what is wrong.

    The template is split before its names are filled in, so a dot in a table's name never makes a third part.
    """
    parts = split_name(template)
    if len(parts) != 2:
        raise ValueError("needs two parts, such as {schema}.{table}")
    try:
        first, second = (part.format_map({"pipeline": pipeline, "schema": schema, "table": table}) for part, _ in parts)
    except (KeyError, IndexError, ValueError, AttributeError):
        raise ValueError("may name {schema}, {table} and {pipeline}, and nothing else in braces") from None
    return first, second
