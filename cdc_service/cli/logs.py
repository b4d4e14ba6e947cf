"""Log lines of ``cdc run``: one event a line on stderr, plain text. Neither cell values nor secrets reach them."""

from __future__ import annotations

import sys
from typing import Any

import structlog

from cdc_service.cli.output import printable


def configure(level: str = "info") -> None:
    """Sends structlog's events to whatever ``sys.stderr`` is at the time (a live display takes its place for a while)."""
    import logging

    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            _line,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=lambda *_: _Stderr(),
        cache_logger_on_first_use=True,
    )


class _Stderr:
    def msg(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    debug = info = warning = warn = error = critical = exception = fatal = log = msg


def _line(logger: object, method: str, event: Any) -> str:
    """``time level event key=value ...``; a traceback follows on its own lines."""
    trace = event.pop("exception", None)
    head = f"{event.pop('timestamp')} {event.pop('level'):7} {printable(str(event.pop('event')))}"
    pairs = " ".join(f"{key}={_value(value)}" for key, value in event.items())
    return "\n".join(part for part in (f"{head} {pairs}".rstrip(), trace) if part)


def _value(value: object) -> str:
    text = printable(f"{value:.3f}" if isinstance(value, float) else str(value))
    return repr(text) if " " in text or not text else text
