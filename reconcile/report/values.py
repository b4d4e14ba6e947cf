"""Two values side by side in HTML, so that a person sees what differs.

Promises: nothing of a value is markup. NULL, the empty text and the text "null" look different even where no colour is seen; blanks at the
ends and characters that cannot be seen are shown by signs; the characters that differ are marked where both values are text.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from difflib import SequenceMatcher
from html import escape

SHOWN_MAX = 320
"""Characters of a value that are shown; of a longer one, those around the first that differs."""
BEFORE_MAX = 60
"""Characters shown before the first that differs, where not all are."""
COMPARED_MAX = 400
"""Characters a side up to which single ones are compared. Longer middles are marked as a whole: the comparison takes quadratic time."""
ALIKE_MIN = 0.4
"""Below this likeness marks on single characters are noise."""
UNSEEN = {"\0": "NUL", "\t": "TAB", "\n": "LF", "\r": "CR", "\x1b": "ESC", "\x7f": "DEL", "\xa0": "NBSP"}
NULL = '<span class="token">NULL</span>'
EMPTY = '<span class="token">empty text</span>'
NOT_TOLD = '<span class="token">not told</span>'

Span = tuple[int, int]


def text(value: object) -> str:
    """Any text of the document as HTML: names, reasons, commands."""
    return "".join(_signs(str(value)))


def attribute(value: object) -> str:
    """The same for where no element may stand: in an attribute or a title."""
    return escape("".join(c if c.isprintable() else f"⟨U+{ord(c):04X}⟩" for c in str(value)))


def single(value: str | None) -> str:
    """One value alone."""
    return pair(value, value)[0]


def pair(source: str | None, destination: str | None) -> tuple[str, str]:
    """Both values as HTML."""
    if source is None or destination is None:
        return _whole(source), _whole(destination)
    left, right = changed(source, destination)
    start = 0
    if max(len(source), len(destination)) > SHOWN_MAX:
        start = max(0, _common(source, destination) - BEFORE_MAX)
    return _shown(source, left, start), _shown(destination, right, start)


def changed(a: str, b: str) -> tuple[list[Span], list[Span]]:
    """Which characters of each are not those of the other, as (start, stop)."""
    if a == b:
        return [], []
    head = _common(a, b)
    tail = min(_common(a[::-1], b[::-1]), len(a) - head, len(b) - head)
    middle_a, middle_b = a[head : len(a) - tail], b[head : len(b) - tail]
    whole = [(head, head + len(middle_a))], [(head, head + len(middle_b))]
    if not middle_a or not middle_b or len(middle_a) > COMPARED_MAX or len(middle_b) > COMPARED_MAX:
        return whole
    matcher = SequenceMatcher(None, middle_a, middle_b, autojunk=False)
    same = sum(block.size for block in matcher.get_matching_blocks())
    if 2 * (head + same + tail) < ALIKE_MIN * (len(a) + len(b)):
        return [(0, len(a))], [(0, len(b))]
    if 2 * same < ALIKE_MIN * (len(middle_a) + len(middle_b)):
        return whole
    parts = [code for code in matcher.get_opcodes() if code[0] != "equal"]
    return [(head + i, head + j) for _, i, j, _, _ in parts], [(head + i, head + j) for _, _, _, i, j in parts]


def _whole(value: str | None) -> str:
    return NULL if value is None else _shown(value, [], 0)


def _shown(value: str, spans: Sequence[Span], start: int) -> str:
    """A value from a character on, with its spans marked. Marks that would come out empty are left out."""
    if not value:
        return EMPTY
    stop = min(len(value), start + SHOWN_MAX)
    signs = _signs(value)
    parts, at = ["…" if start else ""], start
    for first, last in spans:
        first, last = max(first, at), min(last, stop)
        if first < last:
            parts += [*signs[at:first], _mark(value[first:last], signs[first:last])]
            at = last
    parts += [*signs[at:stop], "…" if stop < len(value) else ""]
    shown = "".join(parts)
    if value.casefold() == "null":
        shown = f"'{shown}'"
    cut = f' <span class="note">({len(value):,} characters)</span>' if start or stop < len(value) else ""
    return f'<span class="value">{shown}</span>{cut}'


def _mark(part: str, signs: Sequence[str]) -> str:
    """A marked part; letters that only look like others are told by their codes, and an accent stands apart from its letter."""
    if part.isascii() or len(part) > 8:
        return f"<mark>{''.join(signs)}</mark>"
    codes = " ".join(f"U+{ord(c):04X}" for c in part)
    shown = "".join(_sign(c) if unicodedata.combining(c) else sign for c, sign in zip(part, signs, strict=True))
    return f'<mark title="{codes}">{shown}</mark>'


def _signs(value: str) -> list[str]:
    """The HTML of each character."""
    lead, trail = len(value) - len(value.lstrip(" ")), len(value.rstrip(" "))
    return [
        '<span class="sign">·</span>' if c == " " and (i < lead or i >= trail) else escape(c) if c.isprintable() else _sign(c)
        for i, c in enumerate(value)
    ]


def _sign(c: str) -> str:
    """A character that cannot be seen, by its short name or its code. Unicode's pictures for them are missing in too many fonts."""
    return f'<span class="sign">⟨{UNSEEN.get(c) or f"U+{ord(c):04X}"}⟩</span>'


def _common(a: str, b: str) -> int:
    """How many characters both begin with."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
