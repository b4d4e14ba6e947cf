"""The command ``cdc``: what it can do, and how a command ends (exit codes: exits.py).

An error is a sentence and its cure on stderr, never a traceback unless one is asked for. Nothing heavy is imported before it is used.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import traceback
from typing import Any

from cdc_service import __version__
from cdc_service.cli import exits


def main(arguments: list[str] | None = None) -> None:
    """Runs one command and ends the process with its exit code."""
    code = run(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(BrokenPipeError, ValueError):
            stream.flush()
    # All is closed by now, and the interpreter would take its time to tear down the libraries' threads: seconds after a SIGTERM.
    os._exit(code)


def run(arguments: list[str]) -> int:
    """Runs one command; the exit code."""
    if arguments in (["--version"], ["-V"]):
        print(f"cdc {__version__}")
        return exits.OK
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    try:
        from cdc_service.cli.commands import cdc

        code = cdc(args=arguments or ["--help"], prog_name="cdc", standalone_mode=False)
        sys.stdout.flush()
        if not arguments:
            return exits.USAGE
        return code if isinstance(code, int) else exits.OK
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return exits.INTERRUPTED
    except BrokenPipeError:
        return _reader_left()
    except SystemExit as ended:  # typer's answer to a broken pipe
        if not isinstance(ended.__context__, BrokenPipeError):
            raise
        return _reader_left()
    except Exception as error:
        if "--debug" in options or os.environ.get("CDC_DEBUG", "0") not in ("", "0"):
            traceback.print_exc()
        return _report(error, as_json="--json" in options)


def _reader_left() -> int:
    """Whoever reads the result has all it wanted (``cdc query ... | head``): no error, and nothing more to write."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stdout__.fileno() if sys.__stdout__ else 1)
    return exits.OK


def _report(error: Exception, *, as_json: bool) -> int:
    """Says what went wrong; the exit code."""
    code, name, message, hint, more = _explain(error)
    if as_json:
        from cdc_service.cli.output import dumps

        print(dumps({"error": {"code": name, "message": message, "hint": hint, **more}}), file=sys.stderr)
    else:
        first, *rest = message.splitlines() or [""]
        print(f"error: {first}", *(f"       {line}" for line in rest), sep="\n", file=sys.stderr)
        if hint:
            first, *rest = hint.splitlines()
            print(f"cure:  {first}", *(f"       {line}" for line in rest), sep="\n", file=sys.stderr)
    return code


def _explain(error: Exception) -> tuple[int, str, str, str, dict[str, Any]]:
    """Exit code, code, message, hint and what else JSON holds."""
    from cdc_service.core.errors import CdcError

    if isinstance(error, CdcError):
        problems = getattr(error, "as_json", None)
        return exits.exit_of(error), error.code, error.message, error.hint, {"problems": problems()} if problems else {}
    if hasattr(error, "format_message"):  # typer's own: the command line is wrong
        context = getattr(error, "ctx", None)
        path = context.command_path if context else "cdc"
        return exits.USAGE, "usage", error.format_message(), f"{path} --help", {}
    if type(error).__name__ == "Abort":
        return exits.INTERRUPTED, "interrupted", "interrupted", "", {}
    message = f"{type(error).__name__}: {error}" if isinstance(error, OSError) else f"an unexpected {type(error).__name__}"
    return exits.UNFINISHED, "unexpected", message, "run it again with --debug to see where, and report it", {}


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    main()
