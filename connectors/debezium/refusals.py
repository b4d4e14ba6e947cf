"""Why tables cannot be replicated, told before anything is done: the configuration's, the source's and the destination's reasons alike.

``check``, ``plan`` and ``register`` ask here, so that none of them passes what another one refuses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

from cdc_service.config.models import Config
from cdc_service.config.problems import Problem
from cdc_service.config.resolve import TableConfig, excluded_keys, excluded_unknown
from cdc_service.core.logical import Kind, LogicalType
from cdc_service.core.types import Column, TableId, TableSchema, Target
from cdc_service.ports.source import Capture, Finding, SourceTable


class Misfit(Protocol):
    """What keeps a table out of the destination (ports.destination.Misfit)."""

    @property
    def message(self) -> str: ...
    @property
    def hint(self) -> str: ...
    @property
    def column(self) -> str: ...


Fits = Callable[[Target, TableSchema], Misfit | None]
"""A destination's ``misfit``."""


def of_configuration(config: Config, problems: Sequence[Problem]) -> Iterator[Finding]:
    """Keys of ``tables`` that mean no table, or one too many."""
    for problem in problems:
        near = f"write it as {problem.suggestion}, or take it out" if problem.suggestion else "correct it, or take it out"
        yield Finding("tables", False, problem.render(config.file), near)


def excluded(config: Config, tables: Sequence[TableConfig], catalog: Sequence[SourceTable]) -> list[Problem]:
    """Columns that the configuration leaves out and cannot: those of a key, and those that are not there."""
    keys = {t.table: t.key for t in catalog}
    columns = {t.table: [c.name for c in t.columns] for t in catalog}
    return [*excluded_keys(config, tables, keys), *excluded_unknown(config, tables, columns)]


def of_destination(tables: Sequence[SourceTable], targets: Mapping[TableId, Target], source: Capture, fits: Fits) -> Iterator[Finding]:
    """Tables that their targets can never hold."""
    for table in tables:
        # Names that differ by case only are the source's refusal already, and so is a key that is generated.
        kept = [c for c in table.columns if not c.generated and (c.name not in table.alike or c.name in table.key)]
        columns = [Column(c.name, _JSON if c.json else _ANY) for c in kept]
        while {*table.key} <= {c.name for c in columns}:
            misfit = fits(targets[table.table], TableSchema(table.table, tuple(columns), table.key))
            if misfit is None:
                break
            cure = source.avoid(table, misfit.column) if misfit.column else misfit.hint
            yield Finding(f"table {table.table}", False, misfit.message.removeprefix(f"{table.table}: "), cure)
            if not misfit.column:
                break
            columns = [c for c in columns if c.name != misfit.column]


_JSON, _ANY = LogicalType(Kind.JSON), LogicalType(Kind.STRING)
