"""What commands print: results on stdout, prose and progress on stderr; a rich table on a terminal, plain aligned text in a pipe.

Text of the warehouse or of a server never reaches a terminal with control characters in it.
"""

from __future__ import annotations

import csv
import json
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, TextIO

from cdc_service.core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Output:
    """Where one command writes. ``as_json``: one JSON document is the whole of stdout. ``yes`` answers every question."""

    as_json: bool = False
    yes: bool = False

    @property
    def rich(self) -> bool:
        return not self.as_json and sys.stdout.isatty()

    def say(self, text: str) -> None:
        """A line of prose, on stderr."""
        print(text, file=sys.stderr, flush=True)

    def document(self, value: Any) -> None:
        """The result as JSON. Meant for ``--json``."""
        print(dumps(value), flush=True)

    def text(self, text: str) -> None:
        """A result that is text."""
        print(text, flush=True)

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[Any]], *, right: Iterable[str] = (), title: str = "") -> None:
        """Rows under their column names; those named in ``right`` are aligned to the right. Values are shown by ``cell``."""
        cells = [[cell(value, grouped=self.rich) for value in row] for row in rows]
        if self.rich:
            _rich_table(columns, cells, set(right), title)
        else:
            plain_table(columns, cells, set(right), sys.stdout)

    def records(self, columns: Sequence[str], rows: Iterable[Sequence[Any]], *, right: Iterable[str] = ()) -> None:
        """Rows as ``table`` shows them; on a terminal that is too narrow for them, a block of lines for each."""
        cells = [[cell(value) for value in row] for row in rows]
        numbers = set(right)
        if self.rich and cells:
            from rich.console import Console

            console = Console()
            if _needs(columns, cells, numbers) > console.width:
                _blocks(console, columns, cells)
                return
        self.table(columns, cells, right=numbers)

    def findings(self, found: Sequence[tuple[str, str, str, str]]) -> None:
        """Status, name and message of each in aligned columns, and its cure right below it. On a terminal messages are folded to its
        width; a cure never is, since it is there to be copied."""
        rows = [(status, printable(name), printable(message.replace("\n", "; ")), cure) for status, name, message, cure in found]
        first = max((len(status) for status, *_ in rows), default=0)
        second = max((len(name) for _, name, *_ in rows), default=0)
        console, width = None, None
        if self.rich:
            from rich.console import Console

            console = Console(soft_wrap=True, highlight=False)
            second = min(second, NAME_WIDTH, console.width // 3)
            width = console.width - first - second - 4
        for status, name, message, cure in rows:
            names, messages = folded(name, second if width else None), folded(message, width)
            for number, (part, text) in enumerate(zip_longest(names, messages, fillvalue="")):
                shown = "" if number else status
                rest = f"{'':{first - len(shown)}}  {part:{second}}  {text}".rstrip()
                if console is None:
                    print(shown + rest)
                else:
                    console.print(shown, style=STATE_STYLES.get(shown, ""), end="", markup=False)
                    console.print(rest, markup=False)
            lines = [printable(line) for line in cure.splitlines()]
            for line in [f"cure: {lines[0]}"] if len(lines) == 1 else ["cure:", *(f"  {line}" for line in lines)] if lines else []:
                print(f"{'':{first}}  {line}")
        sys.stdout.flush()

    def confirm(self, question: str) -> bool:
        """Asks on the terminal; ``--yes`` answers for it. Raises ConfigError where nobody can be asked."""
        if self.yes:
            return True
        if not sys.stdin.isatty():
            raise ConfigError(f"not done without an answer: {question}", hint="answer with --yes", code="needs_yes")
        sys.stderr.write(f"{question} [y/N] ")
        sys.stderr.flush()
        return sys.stdin.readline().strip().lower() in ("y", "yes")


def folded(text: str, width: int | None) -> list[str]:
    """The text in lines of at most so many characters, broken at blanks where there are any."""
    return [text] if width is None else textwrap.wrap(text, max(width, 8), break_on_hyphens=False) or [""]


def cell(value: Any, *, grouped: bool = False) -> str:
    """One value on one line: nothing for None, control characters as escapes; ``grouped`` makes long numbers easier to read."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return f"{value:,}" if grouped else str(value)
    if isinstance(value, float):
        return f"{value:.1f}"
    return printable(str(value))


def printable(text: str) -> str:
    return text if text.isprintable() else "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def plain_table(columns: Sequence[str], cells: Sequence[Sequence[str]], right: set[str], stream: TextIO) -> None:
    """Aligned columns, two spaces between them, nothing else: made for a pipe."""
    widths = [max([len(name), *(len(row[i]) for row in cells)]) for i, name in enumerate(columns)]
    for row in (columns, *cells):
        padded = (text.rjust(w) if name in right else text.ljust(w) for text, w, name in zip(row, widths, columns, strict=True))
        stream.write("  ".join(padded).rstrip() + "\n")
    stream.flush()


def _rich_table(columns: Sequence[str], cells: Sequence[Sequence[str]], right: set[str], title: str) -> None:
    from rich.console import Console

    Console().print(rich_table(columns, cells, right, title))


def rich_table(columns: Sequence[str], cells: Sequence[Sequence[str]], right: set[str], title: str = "") -> Any:
    """A rich Table of cells; the states of tables in it have their colour."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    look: dict[str, Any] = {"box": box.SIMPLE_HEAD, "title_justify": "left", "header_style": "bold", "pad_edge": False, "show_edge": False}
    table = Table(title=title or None, padding=(0, 1, 0, 0), **look)
    for name in columns:
        table.add_column(Text(name), justify="right" if name in right else "left", overflow="fold", no_wrap=name in right | STYLED)
    for row in cells:
        table.add_row(
            *(Text(text, style=STATE_STYLES.get(text, "") if name in STYLED else "") for text, name in zip(row, columns, strict=True))
        )
    return table


def give_way(
    columns: Sequence[str], cells: Sequence[Sequence[str]], names: Iterable[str], width: int, gap: int
) -> tuple[list[str], list[list[str]]]:
    """The columns that have room in ``width``; of ``names``, one after the other is left out until the rest has."""
    widths = [max([len(name), *(len(row[i]) for row in cells)]) for i, name in enumerate(columns)]
    left = list(range(len(columns)))
    for name in names:
        if sum(widths[i] + gap for i in left) <= width:
            break
        left = [i for i in left if columns[i] != name]
    return [columns[i] for i in left], [[row[i] for i in left] for row in cells]


def _needs(columns: Sequence[str], cells: Sequence[Sequence[str]], right: set[str]) -> int:
    """The least width at which a table can still be read: numbers whole, texts folded at FOLD."""
    widths = [max(len(name), *(len(row[i]) for row in cells)) for i, name in enumerate(columns)]
    return sum((w if name in right else min(w, FOLD)) + 2 for w, name in zip(widths, columns, strict=True))


def _blocks(console: Any, columns: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    from rich.table import Table
    from rich.text import Text

    for number, row in enumerate(cells, 1):
        console.print(Text(f"row {number}", style="dim"))
        block = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
        block.add_column(style="bold", no_wrap=True)
        block.add_column(overflow="fold")
        for name, text in zip(columns, row, strict=True):
            block.add_row(Text(name), Text(text))
        console.print(block)


FOLD = 16
NAME_WIDTH = 32
"""More of a finding's name is folded on a terminal."""
STYLED = frozenset({"state", "check", "status"})
STATE_STYLES: Mapping[str, str] = {
    "streaming": "green",
    "running": "green",
    "ok": "green",
    "match": "green",
    "in_flight": "cyan",
    "partial": "yellow",
    "skipped": "dim",
    "mismatch": "bold red",
    "snapshotting": "cyan",
    "waiting": "dim",
    "paused": "yellow",
    "warning": "yellow",
    "schema_stopped": "bold red",
    "quarantine_stopped": "bold red",
    "drift": "bold red",
    "needs_resync": "bold red",
    "needs_decision": "bold red",
    "error": "bold red",
    "failed": "bold red",
}


def write_csv(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Rows as CSV on stdout; NULL is an empty field."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    sys.stdout.flush()


def dumps(value: Any) -> str:
    """JSON in two-space indents; what JSON has no form for is text, as ``str`` gives it."""
    return json.dumps(value, indent=2, ensure_ascii=False, default=_plain)


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, set | frozenset | tuple):
        return sorted(value)
    isoformat = getattr(value, "isoformat", None)
    return isoformat() if isoformat else str(value)
