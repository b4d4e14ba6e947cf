"""What a benchmark says while it works, on stderr: lines that stay, and on a terminal one that is written over."""

from __future__ import annotations

import sys
import time

_BEGAN = time.monotonic()


def say(text: str, *, passing: bool = False) -> None:
    """A line; a ``passing`` one is shown on a terminal only, until the next."""
    line = f"{time.monotonic() - _BEGAN:6.1f} s  {text}"
    if sys.stderr.isatty():
        print(f"\r\033[K{line}", end="" if passing else "\n", file=sys.stderr, flush=True)
    elif not passing:
        print(line, file=sys.stderr, flush=True)
