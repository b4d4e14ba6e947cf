"""Rows as numbers that every engine computes alike, so that two databases compare tables by sums, without moving the rows.

Promises: a row's text tells its values apart (NULL is empty, what may hold any character is led by its length in bytes), and values that
are equal by their type make equal texts on every engine that has a ``Canonical``; a row's hash is the low 60 bits of the text's MD5. Sums
of hashes, never XOR: two equal faults must not cancel each other.

A bucket's rows come to three sums: how many there are, their hashes, and the upper 50 bits of each hash times the row's place in the
bucket. Where one row alone differs between two sides, the quotient of the last two deltas is its place, as with checksums that correct an
error (Fletcher, An Arithmetic Checksum for Serial Transmissions, 1982); who uses it checks that what lies there explains both deltas.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from cdc_service.core.logical import Kind, LogicalType

PLACES = 8_192
"""Places in a bucket: times 50 bits they stay within 63."""
CUT = 10
"""The bits of a hash that its place is not multiplied with."""
AT_ONCE = 50
"""Texts that one expression joins; some databases' functions take 100 arguments at most."""
_LED = (Kind.STRING, Kind.JSON, Kind.INTERVAL)
"""Kinds whose text may hold the mark between columns."""


@dataclass(frozen=True, slots=True)
class Canonical:
    """An engine's expressions. ``texts`` gives by kind the text of a value ``{0}`` that is not NULL; kinds without one are compared by
    value only. ``md5`` is the hash of a text as an integer, ``length`` its bytes, ``divide`` the whole quotient of {0} by {1}, both
    positive integers."""

    texts: Mapping[Kind, str]
    md5: str
    length: str
    divide: str

    def text(self, type_: LogicalType, value: str) -> str | None:
        """The text of a column that is read by the expression ``value``; empty for NULL."""
        form = self.texts.get(type_.kind)
        if form is None:
            return None
        made = form.format(value)
        if type_.kind in _LED:
            made = f"CAST({self.length.format(made)} AS VARCHAR) || ':' || {made}"
        return f"COALESCE({made}, '')"

    def hash(self, texts: Collection[str]) -> str:
        made = list(texts)
        # A row of some hundred columns: databases parse no expression so deep, and DuckDB takes seconds to plan it.
        while len(made) > AT_ONCE:
            made = [f"concat_ws('|', {', '.join(made[first : first + AT_ONCE])})" for first in range(0, len(made), AT_ONCE)]
        return self.md5.format(" || '|' || ".join(made))


def digests(rows: str, bucket: str, place: str, hash_: str) -> str:
    """The statement that sums up ``rows`` (all that follows FROM): b, n, t and l of each bucket. OFFSET 0 keeps a database from computing
    the hash once for each sum."""
    return f"""SELECT b, count(*) AS n, CAST(sum(h) AS VARCHAR) AS t, CAST(sum(p * (h >> {CUT})) AS VARCHAR) AS l
FROM (SELECT {bucket} AS b, {place} AS p, {hash_} AS h FROM {rows} OFFSET 0) AS g GROUP BY b"""  # noqa: S608
