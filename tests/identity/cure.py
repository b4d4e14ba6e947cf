"""What a message tells a person to do, read as that person would: statements to paste, and commands of `cdc`. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

_SQL = re.compile(r"\b(?:ALTER|CREATE|DROP|GRANT|REVOKE|UPDATE|SELECT) [A-Z_]+\b[^;\n]*")
_CDC = re.compile(r"\bcdc (register|resync|resume|adopt|repair)\b((?:[ ]+(?:--[a-z-]+|\"?[\w$]+\"?\.\"?[^\s;,()'`]+))*)")
_PROSE = re.compile(r",?\s+(?:and\s+)?then\b.*|\s+#.*|\s+\((?:it|the|this|as)\b.*")


@dataclass(frozen=True, slots=True)
class Action:
    """``sql`` is run at the source by its owner; else it is a command line without `cdc`."""

    sql: str = ""
    command: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.sql or " ".join(("cdc", *self.command))


def actions(hint: str) -> list[Action]:
    """What to do, in the order of the text. Of alternatives (`; or`) the one with statements, else the one that reads the table anew."""
    ways = [found for way in re.split(r"[;,]\s+or:?\s", hint) if (found := _in_order(way))]
    for wanted in (lambda a: bool(a.sql), lambda a: a.command[:1] == ("resync",)):
        for way in ways:
            if any(wanted(action) for action in way):
                return way
    return ways[0] if ways else []


def _in_order(text: str) -> list[Action]:
    found = [(match.start(), Action(sql=_PROSE.sub("", match[0]).strip())) for match in _SQL.finditer(text)]
    for match in _CDC.finditer(text):
        words = (match[1], *(word.rstrip(".:") for word in match[2].split()))
        if len(words) > 1 or match[1] == "register":
            found.append((match.start(), Action(command=words)))
    return [action for _, action in sorted(found, key=lambda entry: entry[0])]
