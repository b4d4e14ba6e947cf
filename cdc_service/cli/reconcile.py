"""``cdc reconcile``: compares warehouse tables with their source, through the running service or by itself when none runs."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cdc_service.cli import exits
from cdc_service.cli.shared import Shared, command

if TYPE_CHECKING:
    from cdc_service.config import Config

Tables = Annotated[list[str] | None, typer.Argument(metavar="[TABLE]...", help="schema.table; else all.", show_default=False)]
Html = Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write the report as one HTML file.")]
Csv = Annotated[Path | None, typer.Option("--csv", metavar="FILE", help="Write the differences as CSV.")]
Mode = Annotated[str, typer.Option("--mode", metavar="auto|stream|pushdown", help="Move the rows, or let both databases sum them up.")]
Counts = Annotated[bool, typer.Option("--counts", help="Count rows only: cheap, and proves little.")]
Where = Annotated[str | None, typer.Option("--where", metavar="SQL", help="Compare only rows of a condition that both sides understand.")]
Sample = Annotated[float | None, typer.Option("--sample", metavar="PERCENT", min=0.001, max=100, help="Compare so much of the source.")]
Seconds = Annotated[float | None, typer.Option("--max-seconds", min=0.1, help="Give up after so long, for each table.")]
Resume = Annotated[str | None, typer.Option("--resume", metavar="ID", help="Go on with a run that was interrupted.")]
Rate = Annotated[float | None, typer.Option("--max-rows-per-second", min=1, help="Read no faster from the source.")]

POLL_SECONDS = 0.2
STATUS_EXITS = {"match": exits.OK, "skipped": exits.OK, "mismatch": exits.FINDING}


def register(app: typer.Typer) -> None:
    @command(app)
    def reconcile(
        shared: Shared,
        tables: Tables = None,
        html: Html = None,
        csv: Csv = None,
        mode: Mode = "auto",
        counts: Counts = False,
        where: Where = None,
        sample: Sample = None,
        max_seconds: Seconds = None,
        max_rows_per_second: Rate = None,
        resume: Resume = None,
    ) -> int:
        """Compare tables with their source, while both go on.

        Each row is compared by value; what changes meanwhile is looked at again. Ends with 1 where there are differences.
        """
        options: dict[str, Any] = {
            "mode": mode,
            "counts_only": counts,
            "where": where,
            "sample": sample,
            "max_seconds": max_seconds,
            "max_rows_per_second": max_rows_per_second,
            "resume": resume,
        }
        document = run(shared, tables or [], {name: value for name, value in options.items() if value})
        _write(shared, document, html, csv)
        return STATUS_EXITS.get(document["status"], exits.UNFINISHED)


def run(shared: Shared, tables: list[str], options: dict[str, Any]) -> dict[str, Any]:
    """The document of a run over these tables; its progress is shown meanwhile."""
    from cdc_service.cli.service import call_or_none

    config = shared.load()
    answer = call_or_none(config, "POST", "/reconcile", {"tables": tables, **options})
    with _Bar(shown=not shared.json and sys.stderr.isatty()) as bar:
        return _here(config, tables, options, bar) if answer is None else _there(config, answer.json()["run_id"], bar)


def _here(config: Config, tables: list[str], options: dict[str, Any], bar: _Bar) -> dict[str, Any]:
    from cdc_service.runtime.comparing.reconciler import asked
    from cdc_service.runtime.wiring import reconciling

    with reconciling.comparing(config) as comparing:
        run = comparing.begin(*asked({"tables": tables, **options}))
        try:
            while not run.wait(POLL_SECONDS):
                bar.show(run.state())
        except KeyboardInterrupt:
            _interrupted(run.id)
            raise
        return run.document()


def _there(config: Config, run_id: str, bar: _Bar) -> dict[str, Any]:
    from cdc_service.cli.service import find
    from cdc_service.core.errors import Unavailable

    try:
        while (service := find(config)) is not None:
            state = service.call("GET", f"/reconcile/{run_id}")
            bar.show(state)
            if state["done"]:
                return dict(state["document"])
            time.sleep(POLL_SECONDS)
    except KeyboardInterrupt:
        if (service := find(config)) is not None:
            service.call("POST", f"/reconcile/{run_id}/cancel")
        _interrupted(run_id)
        raise
    raise Unavailable("the service ended before the comparison was done", hint=f"start it, then: cdc reconcile --resume {run_id}")


def _interrupted(run_id: str) -> None:
    print(f"to go on with it: cdc reconcile --resume {run_id}", file=sys.stderr)


def _write(shared: Shared, document: dict[str, Any], html: Path | None, csv: Path | None) -> None:
    from cdc_service.cli.reconcile_view import show

    if html is not None:
        from reconcile.report.html import render

        html.write_text(render(document), encoding="utf-8")
    if csv is not None:
        from reconcile.report.csv_rows import write_csv

        with csv.open("w", encoding="utf-8", newline="") as stream:
            write_csv(document, stream)
    show(shared.out, document)
    for path in (html, csv):
        if path is not None:
            shared.out.say(f"written: {path}")


class _Bar:
    """A progress bar on stderr; nothing where nobody looks."""

    def __init__(self, *, shown: bool) -> None:
        self._shown = shown
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> _Bar:
        if self._shown:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[rows]}"), TimeElapsedColumn())
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._bar.start()
            self._task = self._bar.add_task("waiting", total=None, rows="")
        return self

    def show(self, state: dict[str, Any]) -> None:
        if self._bar is None:
            return
        words = {"fence": "waiting for the fence", "judge": "looking again at what differs", "explain": "tracing differences"}
        expected = state["rows_expected"]
        place = f" ({state['tables_done']} of {state['tables']} done)" if state["tables"] > 1 else ""
        self._bar.update(
            self._task,
            description=f"{state['table']}{place}: {words.get(state['phase'], state['phase'])}",
            total=expected or None,
            completed=min(state["rows"], expected),
            rows=f"{state['rows']:,} rows" if state["rows"] else "",
        )

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
