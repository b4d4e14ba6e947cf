"""``cdc schema``: the JSON Schema of the configuration file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cdc_service.cli import exits
from cdc_service.cli.output import dumps
from cdc_service.cli.shared import Shared, command

Target = Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write it to a file instead of stdout.")]


def register(app: typer.Typer) -> None:
    @command(app)
    def schema(shared: Shared, output: Target = None) -> int:
        """Print the JSON Schema of the configuration, for editors."""
        from cdc_service.config import json_schema

        text = dumps(json_schema())
        if output is None:
            shared.out.text(text)
        else:
            output.write_text(text + "\n", encoding="utf-8")
            shared.out.say(f"wrote {output}; for editors, begin cdc.yaml with: # yaml-language-server: $schema={output}")
        return exits.OK
