"""What the demo shows: a line for each step with what it took, bars on a terminal, and the table at the end."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from deploy.local.compare import Comparison
from deploy.local.service import Watch

INDENT = "\n" + " " * 12


class Step:
    """One step while it runs."""

    def __init__(self, progress: Progress | None, console: Console, title: str, total: int | None) -> None:
        self._progress, self._console, self.title, self.total = progress, console, title, total
        self._task = progress.add_task(escape(title), total=total) if progress else None
        self.result = ""

    def advance_to(self, count: int) -> None:
        """So much of the total is done."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=min(count, self.total or count))

    def note(self, text: str) -> None:
        """A word on what it does at the moment."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, description=f"{escape(self.title)} [dim]({escape(text)})[/]")
        else:
            self._console.print(f"   {text}", highlight=False)

    def done(self, result: str) -> None:
        """What came out of it."""
        self.result = result


class Steps:
    """The steps of one run, in their order."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.number = 0

    @contextmanager
    def step(self, title: str, total: int | None = None) -> Iterator[Step]:
        """Show a step while it runs, and a line about it when it has ended."""
        self.number += 1
        began = time.monotonic()
        if self.console.is_terminal:
            columns = [SpinnerColumn(), TextColumn("{task.description}")]
            bars = [BarColumn(), MofNCompleteColumn()] if total else []
            with Progress(*columns, *bars, TimeElapsedColumn(), console=self.console, transient=True) as progress:
                step = Step(progress, self.console, title, total)
                yield step
        else:
            step = Step(None, self.console, title, total)
            yield step
        head = (f"[green]{self.number:2}[/]", f"{time.monotonic() - began:5.1f} s ")
        text = f"{escape(title)}: [bold]{escape(step.result)}[/]"
        if self.console.is_terminal:  # Long lines go on under their own beginning.
            line = Table.grid(padding=(0, 1, 0, 0))
            line.add_row(*head, text)
            self.console.print(line, highlight=False)
        else:
            self.console.print(" ".join((*head, text.replace("\n", INDENT))), highlight=False, soft_wrap=True)


def results(comparisons: Sequence[Comparison], watch: Watch) -> Table:
    """Each table's rows on both sides, what was applied and how fast, its lag, and whether all of it is equal; at most 80 columns wide
    while the tables' names are short."""
    look: dict[str, Any] = {"title_style": "bold", "title_justify": "left", "header_style": "bold", "box": None, "padding": (0, 2, 0, 0)}
    table = Table(title="Source against warehouse", **look)
    table.add_column("table", vertical="bottom", no_wrap=True)
    for name in ("source\nrows", "warehouse\nrows", "events\napplied", "events/s", "lag\nmax", "lag\nnow"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("equal", no_wrap=True)
    for found in comparisons:
        track = watch.tracks.get(found.table)
        status = watch.tables.get(found.table, {})
        busy = (track.last or 0.0) - (track.first or 0.0) if track else 0.0
        table.add_row(
            found.table,
            f"{found.rows_source:,}",
            f"{found.rows_destination:,}",
            f"{track.applied:,}" if track else "",
            f"{track.applied / busy:,.0f}" if track and busy > 0 else "",
            f"{track.lag_seconds_max:.1f} s" if track else "",
            f"{status.get('lag_events') or 0:,}",
            "[green]yes[/]" if found.equal else "[bold red]NO[/]",
        )
    return table


def show(console: Console, table: Table) -> None:
    """Print it; where no terminal sets a width, in the one that it needs."""
    before = console.width
    if not console.is_terminal:
        console.width = max(before, Measurement.get(console, console.options.update(width=1000), table).maximum)
    console.print(table)
    console.width = before
