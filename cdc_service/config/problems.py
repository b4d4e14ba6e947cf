"""What is wrong with a configuration: every problem at once, each with its file, line, key and the nearest right spelling."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from cdc_service.core.errors import ConfigError
from cdc_service.core.types import TableId

TABLES_SHOWN = 20


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """One mistake. ``path`` is the dotted key, empty for the file as a whole; ``suggestion`` a right spelling, where one is near."""

    line: int
    path: str
    message: str
    suggestion: str | None = None

    def render(self, file: Path) -> str:
        where = f"{self.path}: " if self.path else ""
        near = f"; did you mean '{self.suggestion}'?" if self.suggestion else ""
        return f"{file}:{self.line}: {where}{self.message}{near}"


class InvalidConfig(ConfigError):
    """A configuration that cannot be used. ``problems`` holds all of them, in the order of the file; the message has a line for each."""

    code = "config_invalid"

    def __init__(self, file: Path, problems: Iterable[Problem], hint: str = "") -> None:
        self.file = file
        self.problems = tuple(sorted(set(problems), key=lambda p: (p.line, p.path, p.message)))
        super().__init__("\n".join(problem.render(file) for problem in self.problems), hint=hint)

    def as_json(self) -> list[dict[str, Any]]:
        return [
            {"file": str(self.file), "line": p.line, "path": p.path, "message": p.message, "suggestion": p.suggestion}
            for p in self.problems
        ]


def nearest(wrong: str, right: Sequence[str]) -> str | None:
    """The nearest of the right spellings, if one is near; case alone never keeps two spellings apart."""
    folded = get_close_matches(wrong.casefold(), [text.casefold() for text in right], n=1, cutoff=0.6)
    found = [text for text in right if text.casefold() in folded]
    return get_close_matches(wrong, found, n=1, cutoff=0.0)[0] if found else None


def unknown_table(text: str, tables: Iterable[TableId]) -> ConfigError:
    """That ``text`` names none of a pipeline's tables: with the nearest of them, else with what there is."""
    names = [str(table) for table in tables]
    near = nearest(text, names)
    hint = f"did you mean {near}?" if near else f"its tables: {', '.join(names[:TABLES_SHOWN])}"
    return ConfigError(f"the pipeline has no table {text}", hint=hint, code="unknown_table")


def dotted(path: Iterable[str]) -> str:
    """A path for people. Keys of tables hold dots themselves: they stand in brackets."""
    text = ""
    for part in path:
        text += f"[{part}]" if "." in part else f".{part}" if text else part
    return text
