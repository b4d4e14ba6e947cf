"""``cdc load``: loads tables that have no log by queries, now. Running it again goes on where it stood, and changes nothing that is so."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cdc_service.cli import exits
from cdc_service.cli.shared import Shared, command

if TYPE_CHECKING:
    from cdc_service.pipeline.load_task import LoadTask
    from cdc_service.runtime.wiring.loading import Outcome

Tables = Annotated[list[str] | None, typer.Argument(metavar="[TABLE]...", help="schema.table; all loaded tables where none is named.")]
Full = Annotated[bool, typer.Option("--full", help="Read all rows, and write those that differ.")]
Since = Annotated[str | None, typer.Option("--since", metavar="V", help="Only rows with a cursor from V on, as the database spells it.")]
Until = Annotated[str | None, typer.Option("--until", metavar="V", help="Only rows with a cursor below V.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be read, and do nothing.")]
From = Annotated[str | None, typer.Option("--from", metavar="URL", help="Load this database without a configuration (with --to).")]
To = Annotated[str | None, typer.Option("--to", metavar="URL", help="The warehouse to load it into.")]
One = Annotated[list[str] | None, typer.Option("--table", metavar="T", help="With --from: only this table; may be repeated.")]

RIGHT = ("read", "applied", "unchanged", "parked", "deleted", "seconds", "rows")


def register(app: typer.Typer) -> None:
    @command(app)
    def load(
        shared: Shared,
        tables: Tables = None,
        full: Full = False,
        since: Since = None,
        until: Until = None,
        dry_run: DryRun = False,
        from_: From = None,
        to: To = None,
        table: One = None,
    ) -> int:
        """Load tables that have no log, by queries.

        Each goes on at its mark, in the transaction of its rows. A window (--since, --until) reads only that and leaves the mark where
        it is. Loading twice changes nothing. Ctrl-C ends it behind the current page.
        """
        from cdc_service.core.errors import ConfigError

        if full and (since is not None or until is not None):
            raise ConfigError("--full reads all rows, --since and --until some", hint="leave one of them out", code="usage")
        if (from_ is None) is not (to is None) or (table and from_ is None) or (tables and from_ is not None):
            raise ConfigError(
                "--from and --to belong together, and --table to them", hint="cdc load --from URL --to URL [--table T]...", code="usage"
            )
        from cdc_service.cli import logs
        from cdc_service.pipeline.load_task import Window
        from cdc_service.runtime.wiring import load_proposal, loading

        proposal = ""
        if from_ is not None and to is not None:
            logs.configure("warning")
            proposal = load_proposal.proposed(from_, to, table or [])
            config = load_proposal.configured(proposal)
        else:
            config = shared.load()
        window = Window(full, since, until)
        if dry_run:
            outcomes = loading.plan(config, tables or [], window)
            return _said(shared, loading.document(config, outcomes), outcomes, planned=True)
        from cdc_service.cli.run import Signals
        from cdc_service.core.clock import Stop

        stop = Stop()
        with Signals(quiet=False) as signals, _progress(shared) as told:
            signals.stop = stop.set
            outcomes = loading.load(config, tables or [], window, told=told, stop=stop)
        code = _said(shared, loading.document(config, outcomes), outcomes, planned=False)
        if proposal and not shared.json:
            shared.out.say("\nTo keep them fresh, write this to cdc.yaml; then: cdc load, or cdc run with a schedule\n")
            shared.out.say(load_proposal.shown(proposal))
        return exits.INTERRUPTED if signals.first is not None else code


def _said(shared: Shared, document: dict[str, Any], outcomes: list[Outcome], *, planned: bool) -> int:
    """Shows what became of the tables; the exit code is that of the first error."""
    if shared.json:
        shared.out.document(document)
    else:
        names = ("rows", "since", "full") if planned else ("outcome", "read", "applied", "unchanged", "parked", "deleted", "seconds")
        rows = [[t["source"], *(t.get(name) for name in names)] for t in document["tables"]]
        shared.out.table(["table", *names], rows, right=RIGHT)
        for table in document["tables"]:
            if table.get("held"):
                shared.out.say(f"{table['source']}: the next load begins at {table['mark']}: {table['held']}")
            if table["error"] is not None:
                shared.out.say(f"{table['source']}: {table['error']['message']}\n  cure: {table['error']['hint']}")
    errors = [o.error for o in outcomes if o.error is not None]
    return exits.exit_of(errors[0]) if errors else exits.OK


@contextmanager
def _progress(shared: Shared) -> Iterator[Any]:
    """What is called before each page: a line for each table on a terminal, else nothing (the log has a line for each that is done)."""
    if shared.json or not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield lambda task: None
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TextColumn("{task.fields[said]}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), redirect_stdout=False) as progress:
        shown: dict[str, Any] = {}

        def told(task: LoadTask) -> None:
            name = str(task.config.source)
            if name not in shown:
                shown[name] = progress.add_task(name, said="", total=None)
            progress.update(shown[name], said=f"{task.done.read:,} rows read, {task.done.applied:,} written")

        yield told
