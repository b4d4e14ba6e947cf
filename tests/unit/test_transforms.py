"""What the configuration takes away is gone behind the one way in, whichever wire and whichever kind of record brings it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pytest

from cdc_service import transforms
from cdc_service.config.models import Flush
from cdc_service.config.resolve import TableConfig
from cdc_service.core.types import ChangeBatch, TableId, Target
from cdc_service.core.validate import nothing_parked
from cdc_service.pipeline.prepare import Prepare
from cdc_service.testing.memory import MemoryDestination
from cdc_service.transforms.exclude import Exclude
from connectors.formats.debezium_json import DebeziumJsonDecoder
from connectors.sources.postgresql.events import PostgresEvents
from tests.support.envelopes import PLACEHOLDER, Col, Record, Table, raw, text
from tests.support.plain import account, told
from tests.support.recorded import FIXTURES, batch_of, topics

TOPIC = "shop.public.t"
TABLE = Table([Col("id", optional=False), text("name"), text("secret")])
NAMED = TableId("public", "t")
CASES = sorted(path.name.removesuffix(".avro.jsonl.gz") for path in FIXTURES.glob("*.avro.jsonl.gz"))


def config(*exclude: str) -> TableConfig:
    return TableConfig(NAMED, Target(NAMED, "public", "t"), TOPIC, Flush(), "refuse", "public.t", exclude=exclude)


def prepare(*exclude: str, log: bool = False) -> Prepare:
    chosen = transforms.of(config(*exclude))
    decoder = DebeziumJsonDecoder(
        PostgresEvents(),
        unavailable=PLACEHOLDER,
        logs={TOPIC} if log else (),
        whole={TOPIC} if log else (),
        left_out={TOPIC: transforms.unread(chosen)},
    )
    return Prepare(TOPIC, decoder, chosen, MemoryDestination().capabilities)


def row(id_: int, name: str = "n", secret: Any = "hidden") -> dict[str, Any]:
    return {"id": id_, "name": name, "secret": secret}


def fitting(made: Prepare, records: Sequence[Record]) -> ChangeBatch:
    (batch,), _ = made.fitting(raw(records), nothing_parked())
    records_, accounted = account(batch)
    assert records_ == accounted
    return batch


def test_a_table_that_says_nothing_goes_through_as_it_is() -> None:
    assert transforms.of(config()) == ()
    batch = fitting(prepare(), [TABLE.change("c", row(1))])
    assert batch.data.to_pylist() == [row(1)]


def test_the_columns_are_in_no_part_of_what_goes_on() -> None:
    changes = [
        TABLE.change("c", row(1), lsn=1),
        TABLE.change("u", row(1, secret=PLACEHOLDER), lsn=2),
        Record(TABLE.key_of(row(1)), TABLE.value("d", before=row(1), lsn=3)),
    ]
    batch = fitting(prepare("secret", log=True), changes)
    assert batch.schema.names == ("id", "name")
    assert "hidden" not in repr(told(batch)) + repr(batch.before)
    assert batch.before is not None
    assert batch.before.to_pylist()[2] == '{"id":1,"name":"n"}'
    assert batch.unsent is None


def test_a_value_that_cannot_be_told_holds_nothing_up_where_nobody_wants_it() -> None:
    """Neither decoding nor the destination's bounds look at it."""
    odd = Table([Col("id", optional=False), Col("at", "int64", "TIMESTAMP", "io.debezium.time.NanoTimestamp"), text("nul")])
    record = odd.change("c", {"id": 1, "at": 5, "nul": "a\x00b"})
    (kept,), _ = prepare().fitting(raw([record]), nothing_parked())
    assert [one.code for one in kept.rejected] == ["inexact_value"]
    assert fitting(prepare("at", "nul"), [record]).data.to_pylist() == [{"id": 1}]


def test_rows_that_are_read_again_lose_them_too() -> None:
    made = prepare("secret")
    schema = fitting(made, [TABLE.change("c", row(1))]).schema
    again = made.from_text(pa.table({"name": ["m"]}), schema)
    assert again.to_pylist() == [{"name": "m"}]


@pytest.mark.parametrize("case", CASES)
def test_a_column_that_is_left_unread_is_one_that_is_taken_away_later(case: str) -> None:
    """On everything that was recorded: of each table, every third column by itself that belongs to no key."""
    tried = 0
    for topic, records in topics(case).items():
        records = _exact(topic, records)
        whole = DebeziumJsonDecoder(PostgresEvents(), unavailable=PLACEHOLDER).decode(batch_of(topic, records))
        names = {name for batch in whole for name in batch.schema.names if name not in batch.schema.key}
        for name in sorted(names)[::3]:
            unread = {topic: frozenset({name})}
            decoder = DebeziumJsonDecoder(PostgresEvents(), unavailable=PLACEHOLDER, left_out=unread)
            found = _one_by_one(decoder.decode(batch_of(topic, records)))
            assert found == _one_by_one([Exclude(unread[topic]).apply(batch) for batch in whole]), (topic, name)
            tried += 1
    assert tried > 0


def _exact(topic: str, records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without those that are rejected: without the column that they are rejected for, they would not be."""
    found = DebeziumJsonDecoder(PostgresEvents(), unavailable=PLACEHOLDER).decode(batch_of(topic, records))
    bad = {(one.partition, one.offset) for batch in found for one in batch.rejected}
    return [record for record in records if (record["partition"], record["offset"]) not in bad]


def _one_by_one(batches: Sequence[ChangeBatch]) -> list[Any]:
    """Each change with the names of its columns: versions that differ by the column alone may share a batch."""
    found = []
    for batch in batches:
        about = told(batch)
        unsent = about["unsent"] or {}
        doubtful = [False] * batch.num_rows if batch.doubtful is None else batch.doubtful.to_pylist()
        for place in range(batch.num_rows):
            values = {name: column[place] for name, column in about["data"].items()}
            beside = {name: column[place] for name, column in about["meta"].items()}
            hidden = sorted(name for name, column in unsent.items() if column[place])
            # The old key is for values that were not sent.
            old = {name: column[place] for name, column in (about["old_key"] or {}).items() if hidden}
            found.append(
                (beside["offset"], values, beside, old if any(v is not None for v in old.values()) else {}, hidden, doubtful[place])
            )
    return sorted(found, key=lambda one: (one[2]["partition"], one[0]))
