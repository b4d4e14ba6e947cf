"""``cdc status``: where every table stands, from the running service or, when none runs, from the destination."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cdc_service.cli import exits
from cdc_service.cli.shared import Shared, command

if TYPE_CHECKING:
    from cdc_service.config import Config


WATCH_SECONDS = 1.0
Watch = Annotated[bool, typer.Option("--watch", "-w", help="Show it again every second, until Ctrl-C.")]


def register(app: typer.Typer) -> None:
    @command(app)
    def status(shared: Shared, watch: Watch = False) -> int:
        """Show each table's state, rows and lag.

        rows: in the target. applied: events. parked: waits in quarantine. lag: events that wait in Kafka. behind: how long the
        target has not been complete, while more waits. age: since the last change was applied. position: of that change in the log.
        """
        from cdc_service.cli import view
        from cdc_service.core.errors import ConfigError

        config = shared.load()
        if watch:
            if not shared.out.rich:
                raise ConfigError("--watch needs a terminal, and no --json", hint="ask once, without --watch", code="usage")
            return _watch(config)
        document = current(config)
        if shared.json:
            shared.out.document(document)
        elif shared.out.rich:
            from rich.console import Console

            console = Console()
            console.print(view.frame(document, None, console.width))
        else:
            shared.out.say(view.headline(document))
            columns, rows = view.rows(document)
            shared.out.table(columns, rows, right=view.RIGHT)
            for line in view.troubles(document):
                shared.out.say(line)
        return exits.OK


def _watch(config: Config) -> int:
    """Shows the status until Ctrl-C; what stands in its way at the moment is shown in its place."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    from cdc_service.cli import view
    from cdc_service.cli.output import printable
    from cdc_service.core.errors import CdcError, Disposition

    console, rates = Console(), view.Rates()
    with Live(console=console, auto_refresh=False, transient=False) as live:
        while True:
            try:
                document = current(config)
                live.update(view.frame(document, rates.add(time.monotonic(), document), console.width), refresh=True)
            except CdcError as error:
                if error.disposition is not Disposition.RETRY:
                    raise
                live.update(Text(printable(error.message), style="red"), refresh=True)
            time.sleep(WATCH_SECONDS)


def current(config: Config) -> dict[str, Any]:
    """The status document of contract."""
    from cdc_service.cli.service import served

    def here() -> dict[str, Any]:
        from cdc_service.runtime.wiring import offline

        return offline.status(config)

    return served(config, "GET", "/status", read=lambda answer: dict(answer.json()), here=here)
