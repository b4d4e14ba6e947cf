"""Images before, and numbers within transactions: what the decoder reads of topics that are kept as logs of changes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cdc_service.core.types import ChangeBatch, Op
from connectors.formats.debezium_json import DebeziumJsonDecoder
from connectors.sources.postgresql.events import PostgresEvents
from tests.support.envelopes import Col, Record, Table, raw

TOPIC = "shop.public.t"
COLUMNS = (Col("id", "int32", optional=False), Col("n", "int32", optional=False), Col("big", "string"))
KEYED, BARE = Table(COLUMNS), Table(COLUMNS, key=())


def row(id_: int, n: int = 0, big: str | None = None) -> dict[str, Any]:
    return {"id": id_, "n": n, "big": big}


def decoded(records: list[Record], *, whole: bool = False) -> ChangeBatch:
    topics = [TOPIC] if whole else []
    decoder = DebeziumJsonDecoder(PostgresEvents(), unavailable="unsent", whole=topics, logs=[TOPIC])
    (batch,) = decoder.decode(raw(records))
    return batch


def befores(batch: ChangeBatch) -> list[Any]:
    assert batch.before is not None
    return [None if text is None else json.loads(text) for text in batch.before.to_pylist()]


def unsent(batch: ChangeBatch) -> list[set[str]]:
    columns = [] if batch.unsent is None else batch.unsent.column_names
    return [{name for name in columns if batch.unsent is not None and batch.unsent[name][i].as_py()} for i in range(batch.num_rows)]


def test_with_the_whole_row_before_a_delete_holds_it() -> None:
    key = KEYED.key_of(row(1))
    batch = decoded([Record(key, KEYED.value("d", before=row(1, 5, 'a "quoted"\nline')))], whole=True)
    assert batch.data.to_pylist() == [row(1, 5, 'a "quoted"\nline')]
    assert befores(batch) == [row(1, 5, 'a "quoted"\nline')]
    assert unsent(batch) == [set()]


def test_i11_without_it_a_delete_holds_its_key_and_says_what_is_missing() -> None:
    """The connector writes zeros where NULL is not allowed; they are nobody's values."""
    batch = decoded([Record(KEYED.key_of(row(1)), KEYED.value("d", before=row(1, 0, None)))])
    assert batch.data.to_pylist() == [{"id": 1, "n": None, "big": None}]
    assert befores(batch) == [{"id": 1}]
    assert unsent(batch) == [{"n", "big"}]


def test_updates_inserts_and_truncations() -> None:
    records = [
        KEYED.change("c", row(1, 1, "x")),
        Record(KEYED.key_of(row(1)), KEYED.value("u", row(1, 2, "unsent"))),
        Record(KEYED.key_of(row(1)), KEYED.value("u", row(1, 3, "y"), before=row(1, 2, "x"))),
        Record(None, KEYED.value("t")),
    ]
    batch = decoded(records, whole=True)
    assert befores(batch) == [None, None, row(1, 2, "x"), None]
    assert unsent(batch) == [set(), {"big"}, set(), set()]
    assert batch.order is None


def test_a_table_without_a_key_tells_numbers_within_transactions() -> None:
    payload = json.loads(BARE.value("c", row(1), lsn=9).split(b',"payload":', 1)[1][:-1])
    numbered = BARE.wrap(json.dumps({**payload, "transaction": {"id": "7:9", "total_order": 4, "data_collection_order": 2}}).encode())
    batch = decoded([Record(None, numbered), BARE.change("u", row(1)), Record(None, None), BARE.change("d", row(2, 3))], whole=True)
    assert batch.schema.key == ()
    assert batch.order is not None
    assert batch.order.to_pylist() == [4, None, None]
    assert batch.meta["op"].to_pylist() == [Op.CREATE, Op.UPDATE, Op.DELETE]
    assert batch.data.to_pylist()[2] == row(2, 3)
    assert batch.spans[0].filtered == 1


@pytest.mark.parametrize("logs", [True, False])
def test_a_value_that_is_not_exact_in_the_image_before_parks_its_change_in_a_log_alone(logs: bool) -> None:
    table = Table((Col("id", "int32", optional=False), Col("d", "int32", semantic="io.debezium.time.Date")))
    record = Record(table.key_of({"id": 1}), table.value("u", {"id": 1, "d": 5}, before={"id": 1, "d": 2**31 - 5}))
    decoder = DebeziumJsonDecoder(PostgresEvents(), unavailable="unsent", logs=[TOPIC] if logs else [])
    (batch,) = decoder.decode(raw([record]))
    assert [r.code for r in batch.rejected] == (["inexact_value"] if logs else [])
