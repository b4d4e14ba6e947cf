"""Pieces of sentences that people read."""

from __future__ import annotations

from collections.abc import Sequence

NAMES_SHOWN = 3


def some(names: Sequence[str]) -> str:
    """The names as a sentence takes them: all of a few, of more the first and how many there are besides."""
    if len(names) <= NAMES_SHOWN + 1:
        return ", ".join(names)
    return f"{', '.join(names[:NAMES_SHOWN])} and {len(names) - NAMES_SHOWN} more"
