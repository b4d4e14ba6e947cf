"""All commands of ``cdc``, put together: one module for each group."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from cdc_service import __version__
from cdc_service.cli import check, init, load, quarantine, query, reconcile, register, repair, run, schema, status, table
from cdc_service.cli.shared import ConfigOption, DebugOption, JsonOption, YesOption, shared_options

app = typer.Typer(
    name="cdc",
    help="Keeps warehouse tables equal to their source tables.\n\nThe first time, in this order: init, check, register, run.",
    rich_markup_mode="rich" if sys.stdout.isatty() else None,  # a pipe gets plain text
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        print(f"cdc {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    context: typer.Context,
    config: ConfigOption = None,
    json: JsonOption = False,
    yes: YesOption = False,
    debug: DebugOption = False,
    version: Annotated[bool, typer.Option("--version", "-V", callback=_version, is_eager=True, help="Show the version.")] = False,
) -> None:
    context.obj = shared_options(config, json, yes, debug)


for module in (init, schema, check, register, run, load, status, table, quarantine, query, reconcile, repair):
    module.register(app)

cdc = typer.main.get_command(app)
"""All of them, put together once, whoever runs how many."""
