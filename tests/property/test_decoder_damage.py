"""A recorded record that was damaged costs itself alone: no exception, all accounted for, its neighbours as they were."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from random import Random
from typing import Any

import pytest

from cdc_service.core.errors import TableStopped
from cdc_service.core.types import ChangeBatch
from tests.support.plain import rows
from tests.support.recorded import batch_of, binary, topics
from tests.unit.test_decoder_fixtures import CASES, decode


def by_offset(batches: Iterable[ChangeBatch]) -> dict[tuple[int, int], Any]:
    """What became of each record that is no tombstone."""
    result: dict[tuple[int, int], Any] = {}
    for batch in batches:
        data, meta = rows(batch.data), rows(batch.meta)
        assert data is not None
        assert meta is not None
        for place in range(batch.num_rows):
            result[meta["partition"][place], meta["offset"][place]] = {name: values[place] for name, values in data.items()}
        result |= {(one.partition, one.offset): one.code for one in batch.rejected}
    return result


@pytest.mark.parametrize("case", CASES)
def test_damaged_records_are_rejected_alone(case: str) -> None:
    """Bytes of recorded records changed anywhere, keys too: no exception, all accounted for (decode asserts it), neighbours unchanged."""
    random = Random(case)
    for topic, recorded in topics(case).items():
        whole = by_offset(decode(batch_of(topic, recorded)))
        for _ in range(15):
            records = [dict(record) for record in recorded]
            damaged = random.sample(range(len(records)), max(1, len(records) // 10))
            for place in damaged:
                part = random.choice(["key", "value", "value", "value"])
                content = bytearray(binary(records[place][part]) or b"x")
                for _ in range(random.randint(1, 4)):
                    content[random.randrange(len(content))] = random.randrange(256)
                records[place][part] = base64.b64encode(content).decode()
            try:
                after = by_offset(decode(batch_of(topic, records)))
            except TableStopped as problem:
                # The name of the table itself was damaged.
                if problem.code != "several_tables":
                    raise
                continue
            apart = {(records[place]["partition"], records[place]["offset"]) for place in damaged}
            assert {key: row for key, row in after.items() if key not in apart} == {k: row for k, row in whole.items() if k not in apart}
