"""Transforms of the line, a file each (contract: ports.transform), and which of them a table's configuration asks for, in their order.

Example: ``of(config)`` is ``()`` for a table that says nothing: its changes go through as they are.
"""

from __future__ import annotations

from collections.abc import Sequence

from cdc_service.config.resolve import TableConfig
from cdc_service.core.types import ChangeBatch, TableSchema
from cdc_service.ports.transform import Transform
from cdc_service.transforms.exclude import Exclude


def of(config: TableConfig) -> Sequence[Transform]:
    return (Exclude(frozenset(config.exclude)),) if config.exclude else ()


def unread(transforms: Sequence[Transform]) -> frozenset[str]:
    """The source's columns that nothing behind the first transform sees."""
    return frozenset(transforms[0].unread) if transforms else frozenset()


def transformed(transforms: Sequence[Transform], batch: ChangeBatch) -> ChangeBatch:
    for transform in transforms:
        batch = transform.apply(batch)
    return batch


def transformed_schema(transforms: Sequence[Transform], schema: TableSchema) -> TableSchema:
    for transform in transforms:
        schema = transform.schema(schema)
    return schema
