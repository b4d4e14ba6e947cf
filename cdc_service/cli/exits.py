"""Exit codes of ``cdc``, all of them, and which error ends with which."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cdc_service.core.errors import CdcError

OK = 0
FINDING = 1
"""Something was found: differences, a failed check, a pending plan."""
UNFINISHED = 2
"""Could not finish, or timed out; the same command may succeed later."""
USAGE = 3
"""The configuration or the command line is wrong."""
DECISION = 4
"""A person has to decide: needs_resync, needs_decision, already running."""
INTERRUPTED = 130
TERMINATED = 143

DECIDING_STATES = frozenset({"needs_resync", "needs_decision", "schema_stopped", "quarantine_stopped", "drift", "error"})
"""States of a table that nothing but a person's decision ends."""


def exit_of(error: CdcError) -> int:
    """The exit code for an error that ended a command."""
    return {"config": USAGE, "operator": DECISION}.get(error.disposition.value, UNFINISHED)
