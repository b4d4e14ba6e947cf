"""What the SQL engine needs of a driver."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import pyarrow as pa

from cdc_service.core.errors import CdcError
from mergers.sql.spelling import Statement


class Mismatch(CdcError):
    """A statement names a table or column that is not there, or not of this type: somebody changed the target."""

    code = "mismatch"


class Connection(Protocol):
    """What the engine needs of a driver. Errors are the service's own (core.errors) and hold no cell values.

    A conflict with another writer raises Fenced; a lost reply to COMMIT raises CommitUnknown; a missing table or column Mismatch.
    """

    def execute(self, sql: str, params: Sequence[object] = ()) -> int:
        """Runs one statement; the number of rows it affected."""
        ...

    def fetch(self, sql: str, params: Sequence[object] = ()) -> list[tuple[Any, ...]]: ...

    def stage(self, name: str, table: pa.Table, types: Sequence[str]) -> None:
        """Makes (or replaces) the temporary table ``name`` with the columns of ``table``, converted exactly to the column ``types``."""
        ...

    def fill(self, name: str, select: str, params: Sequence[object] = ()) -> None:
        """Makes the temporary table ``name`` of what ``select`` returns; inside of a transaction."""
        ...

    def unstage(self, name: str) -> None:
        """Lets go of a temporary table, whether it is there or not; never raises."""
        ...

    def columns(self, namespace: str, name: str) -> Sequence[tuple[str, str]] | None:
        """(name, type as the catalog prints it) of a table's columns in order; None where there is no table."""
        ...

    def begin(self) -> None: ...
    def commit(self) -> None: ...
    def rollback(self) -> None:
        """Ends the transaction without effect; never raises."""
        ...


Discard = Callable[[Statement], int]
"""Takes the rows out of the staged table whose ``n`` the query returns; how many these were."""


def run(c: Connection, statement: Statement) -> int:
    """The number of rows affected."""
    return c.execute(statement.sql, statement.params)
