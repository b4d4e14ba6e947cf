"""Errors: one root; each says what the service does about it (disposition), one sentence for the operator, and the cure.

Cell values never stand in a message: messages reach logs, cells must not.
"""

from __future__ import annotations

from enum import StrEnum


class Disposition(StrEnum):
    """What happens next. RETRY heals by itself; OPERATOR needs a person; POISON parks one record; UNKNOWN means that a commit's outcome
    must be read back from the checkpoint; FENCED means that another writer owns the partition; CONFIG is a mistake in what was asked."""

    RETRY = "retry"
    OPERATOR = "operator"
    POISON = "poison"
    UNKNOWN = "unknown"
    FENCED = "fenced"
    CONFIG = "config"


class CdcError(Exception):
    """Root of all errors that this service raises on purpose.

    ``code`` is stable (snake_case, for JSON, metrics and docs), ``message`` one sentence, ``hint`` the command or change that cures it.
    """

    code: str = "error"
    disposition: Disposition = Disposition.OPERATOR

    def __init__(self, message: str, *, hint: str = "", code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        if code is not None:
            self.code = code


class ConfigError(CdcError):
    """The configuration or the command line cannot be used as it is."""

    code = "config"
    disposition = Disposition.CONFIG


class Unavailable(CdcError):
    """A server did not answer, or refused for now; the same call may succeed later."""

    code = "unavailable"
    disposition = Disposition.RETRY


class Fenced(CdcError):
    """Another writer took the partition: this batch was not applied and must be dropped."""

    code = "fenced"
    disposition = Disposition.FENCED


class CommitUnknown(CdcError):
    """The connection was lost during COMMIT: take a new epoch, then read the checkpoint."""

    code = "commit_unknown"
    disposition = Disposition.UNKNOWN


class TableStopped(CdcError):
    """One table cannot go on until a person acts; the others go on. ``state`` is what the table is put into (docs/operations.md)."""

    code = "table_stopped"

    def __init__(self, message: str, *, state: str, hint: str = "", code: str | None = None) -> None:
        super().__init__(message, hint=hint, code=code or state)
        self.state = state


class AlreadyRunning(CdcError):
    """The same pipeline runs already."""

    code = "already_running"
