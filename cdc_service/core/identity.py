"""The source's identity of a table: all that decides what its rows are, and whether their changes reach the log that is read.

A log carries changes of rows. It does not carry that a column got another name, that a partition with rows was attached, or that the table
left the publication. So the source gives each table an identity, a text that changes with any such thing, read from its catalog in one
snapshot at a known position. Rows are read under the identity that is kept with them; what a later one means for them the source judges.

Promises: nothing here, and nothing on the line, knows what stands in the text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from cdc_service.core.types import TableId


class Outcome(StrEnum):
    """What an identity means for rows that were read under an earlier one. SAME: nothing. CARRIED: the target can follow without reading
    rows (a new column with a known value, a name). ANEW: only reading the rows tells what they hold now. STOPS: changes do not arrive, or
    cannot be read, until somebody acts at the source."""

    SAME = "same"
    CARRIED = "carried"
    ANEW = "anew"
    STOPS = "stops"


HINDRANCES = frozenset(
    {
        "table_gone",
        "not_in_connector",
        "not_published",
        "published_in_part",
        "row_security",
        "inherited",
        "is_partition",
        "no_key",
        "identity_lacks_key",
        "not_logged",
        "columns_left_out",
        "slot_gone",
        "connector_changed",
        "source_went_back",
    }
)
"""The codes of STOPS that the table leaves by itself: it is read anew as soon as the source shows that the cause is gone."""


@dataclass(frozen=True, slots=True)
class Identities:
    """What the catalog told of tables in one snapshot. ``position`` was the end of the log before the snapshot was taken: all that was
    committed up to it is in the identities. A table that is not there any more is missing in ``tables``; of those in ``busy`` somebody was
    changing the definition, so that the identity tells nothing for certain. Whoever begins to read the log now is sent nothing that was
    committed before ``sent_from`` (0: not known); ``is_read`` says whether somebody reads it at this moment."""

    position: int
    tables: Mapping[TableId, str]
    busy: frozenset[TableId] = frozenset()
    sent_from: int = 0
    is_read: bool = True


@dataclass(frozen=True, slots=True)
class Judgement:
    """``why`` is a sentence that begins with the table's name, ``hint`` the cure of what STOPS, ``code`` and ``state`` as TableStopped has
    them. ``renamed`` are columns that are the same under another name (old -> new); ``columns`` says whether the columns are others at
    all, so that the target has to follow."""

    outcome: Outcome
    why: str = ""
    hint: str = ""
    code: str = ""
    state: str = "error"
    renamed: Mapping[str, str] = field(default_factory=dict)
    columns: bool = False
