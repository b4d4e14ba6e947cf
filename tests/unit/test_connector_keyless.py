"""What a connector is told for tables without a key, and what would let their rows count twice."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cdc_service.core.errors import ConfigError
from cdc_service.core.names import Names
from cdc_service.core.types import TableId
from cdc_service.ports.source import ConnectorRequest, Identity, Source, SourceColumn, SourceTable
from connectors.sources import open_source

BARE = SourceTable(
    TableId("public", "bare"),
    (SourceColumn("v", "integer", True, False),),
    key=(),
    key_name="",
    key_deferrable=False,
    identity=Identity.FULL,
    identity_columns=("v",),
    partitioned=False,
    root=None,
    logged=True,
    rows=0,
    readable=True,
    owned=True,
    log=True,
)


@pytest.fixture
def source() -> Source:
    return open_source("postgresql://cdc@localhost/shop")


def told(source: Source, *tables: SourceTable, **options: str) -> dict[str, str]:
    spelled = {name.replace("_", "."): value for name, value in options.items()}
    siblings = [t.table for t in tables]
    return source.connector_config(ConnectorRequest(Names("shop", "shop"), tables, siblings, "localhost:9092", options=spelled))


def test_their_topics_have_one_partition_and_their_rows_numbers(source: Source) -> None:
    made = told(source, BARE)
    assert made["provide.transaction.metadata"] == "true"
    assert made["topic.creation.keyless.include"] == r"shop\.public\.bare"
    assert made["topic.creation.keyless.partitions"] == "1"
    keyed = replace(BARE, table=TableId("public", "keyed"), key=("v",))
    assert not any("keyless" in name for name in told(source, keyed))
    assert made["topic.creation.keyless.include"] == told(source, BARE, keyed)["topic.creation.keyless.include"]


@pytest.mark.parametrize(
    "options", [{"provide_transaction_metadata": "false"}, {"transforms_flat_type": "io.debezium.transforms.ExtractNewRecordState"}]
)
def test_options_may_not_take_the_numbers_away(source: Source, options: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="without a key"):
        told(source, BARE, **options)


@pytest.mark.parametrize(
    ("table", "refused"),
    [
        (BARE, ""),
        (replace(BARE, log=False), "keyless: append"),
        (replace(BARE, identity=Identity.KEY, identity_columns=()), "REPLICA IDENTITY FULL"),
        (replace(BARE, partitioned=True), "ADD PRIMARY KEY"),
        (replace(BARE, logged=False), "SET LOGGED"),
    ],
)
def test_which_of_them_are_refused_and_with_which_cure(source: Source, table: SourceTable, refused: str) -> None:
    found = source.refusal(table)
    assert (found is None) == (not refused)
    assert found is None or refused in found.cure
