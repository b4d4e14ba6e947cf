"""Options that every command accepts, before or after its name, and what a command gets of them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from cdc_service.cli.output import Output

if TYPE_CHECKING:
    from cdc_service.config import Config

ConfigOption = Annotated[
    Path | None, typer.Option("--config", "-c", metavar="FILE", help="Configuration file; else $CDC_CONFIG, else ./cdc.yaml.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON document as the result.")]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Answer every question with yes.")]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show tracebacks (also CDC_DEBUG=1).")]


@dataclass(frozen=True, slots=True)
class Shared:
    """What was asked of every command alike."""

    config_file: Path | None
    json: bool
    yes: bool
    debug: bool

    @property
    def out(self) -> Output:
        return Output(self.json, self.yes)

    def load(self) -> Config:
        """The configuration; from here on, what is logged goes to stderr. Raises ConfigError as ``config.load`` does."""
        import structlog

        from cdc_service.cli import logs
        from cdc_service.config import load

        if not structlog.is_configured():
            logs.configure("warning")
        return load(self.config_file)


def shared_options(
    config: ConfigOption = None, json: JsonOption = False, yes: YesOption = False, debug: DebugOption = False
) -> dict[str, Any]:
    """The options themselves, once: as parameters of a function, which is how typer reads them."""
    return {"config_file": config, "json": json, "yes": yes, "debug": debug}


def command(app: typer.Typer, name: str | None = None) -> Callable[[Callable[..., int | None]], Callable[..., int | None]]:
    """Registers ``function(shared, ...)`` as a command with the shared options added to its own. It returns its exit code."""

    def register(function: Callable[..., int | None]) -> Callable[..., int | None]:
        own = list(inspect.signature(function).parameters.values())[1:]
        common = inspect.signature(shared_options).parameters
        hints = get_type_hints(function, include_extras=True)

        @functools.wraps(function)
        def run(**given: Any) -> int | None:
            context: typer.Context = given.pop("context")
            here = shared_options(**{name: given.pop(name) for name in common})
            before = context.find_root().obj or {}
            merged: dict[str, Any] = {key: value or before.get(key) for key, value in here.items()}
            return function(Shared(**merged), **given)

        hints |= get_type_hints(shared_options, include_extras=True)
        context = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
        parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[p.name]) for p in (*own, *common.values())]
        run.__signature__ = inspect.Signature([context, *parameters])  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in (context, *parameters)}
        del run.__wrapped__  # typer would read the parameters of what it wraps
        return app.command(name)(run)

    return register
