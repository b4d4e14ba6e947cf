"""The ways in which a table is kept, and the statements of each. A mode is one class; nothing else in the engine asks which one it is."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from cdc_service.core.types import Mode
from mergers.sql.append import CHANGE, Append
from mergers.sql.soft_delete import DELETED, SoftDelete
from mergers.sql.staging import METADATA, MINOR
from mergers.sql.statements import TargetSql
from mergers.sql.upsert import Upsert

MODES: Mapping[Mode, type[TargetSql]] = {Mode.UPSERT: Upsert, Mode.SOFT_DELETE: SoftDelete, Mode.APPEND: Append}

RESERVED = tuple(name for name, *_ in (*METADATA, MINOR, DELETED, *CHANGE))
"""The names that no column of a source can have: a table may come to be kept in another mode."""


def kept_as(columns: Collection[str]) -> Mode:
    """How a table that has these columns was kept, whatever the configuration says by now."""
    if CHANGE[0][0] in columns:
        return Mode.APPEND
    return Mode.SOFT_DELETE if DELETED[0] in columns else Mode.UPSERT
