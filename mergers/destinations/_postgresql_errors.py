"""The service's error for each of PostgreSQL's, by SQLSTATE. Messages of data errors quote cell values, so they are withheld."""

from __future__ import annotations

from cdc_service.core.errors import CdcError, ConfigError, Fenced, Unavailable
from cdc_service.ports.destination import RightsLacking
from mergers.sql.connection import Mismatch

LOCK_TIMEOUT = "55P03"

_AWAY = ("08", "53", "57", "58")
"""Classes: connection, resources, intervention by an operator, system."""
_CURES = {
    "53100": "free disk space on the server",
    "53200": "give the server more memory, or lower defaults.flush.rows",
    "53300": "raise max_connections, or end sessions that nobody needs",
    "57014": "raise destination.options.statement_timeout, or ask who cancels statements of this role",
}
_MADE_TWICE = ("42P07", "42P06", "42710", "42701")


def translated(state: str, sentence: str, *, catalog: bool, holders: str) -> CdcError:
    """``state`` is the SQLSTATE, ``sentence`` the server's primary message, ``catalog`` says that a table of PostgreSQL's own is meant,
    ``holders`` names the sessions that hold locks."""
    match state:
        case "40001":
            return Fenced("another writer changed the same rows of the warehouse at the same time")
        case "40P01":
            return Unavailable(f"the warehouse ended a deadlock with another session{holders}")
        case "55P03":
            return Unavailable(
                f"another session of the warehouse holds a lock for too long{holders}",
                hint="wait for it, or end it as its role or an administrator: SELECT pg_terminate_backend(PID)",
            )
        case "42501":
            return ConfigError(
                f"the warehouse refuses: {sentence}",
                hint="cdc check has the statement that gives the right; then it goes on by itself",
                code=RightsLacking.code,
            )
        case "25006":
            return Unavailable(
                "the warehouse can only be read now: it is a standby, or default_transaction_read_only is on",
                hint="let destination.url lead to the primary (?target_session_attrs=read-write with several hosts)",
            )
        case "2BP01":
            return Mismatch(f"something that somebody made depends on the target: {sentence}")
        case "0A000" | "54000" | "54001" | "54011":
            return Mismatch(f"the warehouse refuses a statement: {sentence}")
    if catalog or state in _MADE_TWICE:
        return Unavailable("another process made the same thing in the warehouse at the same time", hint="nothing to do: it is tried again")
    if state[:2] in _AWAY:
        return Unavailable(f"the warehouse does not serve now: {sentence}", hint=_CURES.get(state, "look into the server's log"))
    if state[:2] in ("42", "3F"):
        return Mismatch(f"the warehouse refuses a statement: {sentence}")
    if state[:2] in ("23", "44"):
        return Mismatch("a constraint, index or trigger that somebody put on the target refuses the rows; drop it")
    if state[:2] in ("21", "22"):
        return CdcError(
            f"the warehouse refuses a value (SQLSTATE {state}); its message is withheld because it quotes the value", code="value_refused"
        )
    return CdcError(f"the warehouse failed: SQLSTATE {state}", code="warehouse")
