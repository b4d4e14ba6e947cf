"""Delta debugging over a list, where a whole batch of candidates is tried at once. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


def smallest(items: Sequence[T], fails: Callable[[list[list[T]]], list[bool]], *, batch: int = 12) -> list[T]:
    """A part of ``items`` that still fails, and of which no part that was tried does. ``fails`` answers for each candidate; one that has no
    time left answers no for all."""
    kept, parts = list(items), 2
    while len(kept) > 1:
        parts = min(parts, len(kept))
        bounds = [len(kept) * n // parts for n in range(parts + 1)]
        chunks = [(bounds[n], bounds[n + 1]) for n in range(parts)]
        candidates = [kept[a:b] for a, b in chunks] if parts > 2 else []
        candidates += [kept[:a] + kept[b:] for a, b in chunks]
        shorter = None
        for start in range(0, len(candidates), batch):
            tried = candidates[start : start + batch]
            failing = [one for one, failed in zip(tried, fails(tried), strict=True) if failed]
            if failing:
                shorter = min(failing, key=len)
                break
        if shorter is not None:
            parts = max(2, parts - 1) if len(shorter) > len(kept) // 2 else 2
            kept = shorter
        elif parts < len(kept):
            parts *= 2
        else:
            break
    return kept
