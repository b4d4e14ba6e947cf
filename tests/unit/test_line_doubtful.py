"""Rows that their events leave in doubt: found, followed through a batch, and asked for at the source; what does not help is parked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pytest

from cdc_service.core.fold import fold
from cdc_service.core.order import Seen
from cdc_service.core.types import ChangeBatch, Delta, Mode, TableId, Target
from cdc_service.pipeline.reread import Unreadable, doubted
from connectors.formats.debezium_json import DebeziumJsonDecoder
from connectors.sources.postgresql.catalog import hazard
from connectors.sources.postgresql.events import PostgresEvents
from tests.support.envelopes import Col, Record, Table, listed, raw

TABLE = Table([Col("id", "int32", optional=False), listed("a", "int32", "_INT4"), Col("d", "int32", "DATE", "io.debezium.time.Date")])
UNSENT = list(b"unsent")


def row(id_: int, a: Any, d: int | None = None) -> dict[str, Any]:
    return {"id": id_, "a": a, "d": d}


def folded(*records: Record, mode: Mode = Mode.UPSERT) -> tuple[ChangeBatch, Delta]:
    (batch,) = DebeziumJsonDecoder(PostgresEvents(), unavailable="unsent").decode(raw(records))
    target = Target(batch.schema.table, "public", "t", mode)
    return batch, fold([batch], batch_id="1.1", target=target, generations=lambda partition, offset, record: partition * 0, loading=False)


class Source:
    """Says of a snapshot's rows what it was told."""

    def __init__(self, *seen: Seen) -> None:
        self.seen, self.asked = seen, 0

    def reread(self, table: TableId, keys: pa.Table, columns: Sequence[str]) -> Any:
        raise AssertionError

    def misread(self, table: TableId, key: Sequence[str], rows: pa.Table) -> pa.Int8Array:
        self.asked += rows.num_rows
        return pa.array([int(one) for one in self.seen], pa.int8())


def keys(delta: Delta, source: Source | None = None) -> list[int]:
    found = doubted(delta, source or Source())
    return [] if found is None else found["id"].to_pylist()


def test_a_row_is_read_again_where_its_last_event_leaves_it_in_doubt() -> None:
    batch, delta = folded(
        TABLE.change("c", row(1, [None, None]), lsn=10), TABLE.change("c", row(2, [1, None]), lsn=11),
        TABLE.change("c", row(3, [None]), lsn=12), TABLE.change("u", row(3, [1]), lsn=13),
        TABLE.change("c", row(4, [None]), lsn=14), TABLE.change("d", row(4, None), lsn=15),
    )  # fmt: skip
    assert batch.doubtful is not None
    assert batch.doubtful.to_pylist()[:5] == [True, False, True, False, True]
    assert keys(delta) == [1]


def test_doubt_goes_with_a_value_that_is_not_sent_again() -> None:
    _, delta = folded(TABLE.change("c", row(1, [None, None]), lsn=10), TABLE.change("u", row(1, UNSENT, 7), lsn=11))
    assert delta.data.to_pylist()[0]["a"] == [None, None]
    assert keys(delta) == [1]
    _, delta = folded(TABLE.change("c", row(1, [1]), lsn=10), TABLE.change("u", row(1, UNSENT, 7), lsn=11))
    assert (delta.data.to_pylist()[0]["a"], keys(delta)) == ([1], [])


def test_a_snapshot_s_rows_are_compared_and_those_of_the_stream_are_not() -> None:
    _, delta = folded(
        TABLE.change("r", row(1, None, 5), lsn=10, snapshot="true"),
        TABLE.change("r", row(2, None, 5), lsn=10, snapshot="true"),
        TABLE.change("c", row(3, None, 5), lsn=11),
    )
    source = Source(Seen.SAME, Seen.OTHER)
    assert (keys(delta, source), source.asked) == ([2], 2)
    with pytest.raises(Unreadable, match=r"UPDATE that row, then: cdc quarantine discard public\.t") as caught:
        doubted(delta, Source(Seen.KEY, Seen.SAME))
    assert {why[0] for why in caught.value.records.values()} == {"snapshot_value"}
    assert len(caught.value.records) == 1


def test_of_a_log_only_what_was_changed_on_the_way_is_parked() -> None:
    _, delta = folded(
        TABLE.change("r", row(1, None, 5), lsn=10, snapshot="true"),
        TABLE.change("r", row(2, None, 5), lsn=10, snapshot="true"),
        mode=Mode.APPEND,
    )
    assert keys(delta, Source(Seen.SAME, Seen.OTHER)) == []
    with pytest.raises(Unreadable):
        doubted(delta, Source(Seen.CHANGED, Seen.OTHER))


@pytest.mark.parametrize(
    ("column", "said", "blocking"),
    [
        ({"base": "money", "money_digits": 0}, "0 digits behind the point", True),
        ({"base": "money", "money_digits": 2}, None, False),
        ({"base": "numeric", "category": "A"}, "NaN or an infinity", False),
        ({"base": "xid", "category": "A"}, "a NULL in it", False),
        ({"base": "tsvector", "category": "A"}, "a NULL in it", False),
        ({"base": "inet", "category": "A"}, None, False),
    ],
)
def test_what_the_connector_stops_at_is_a_hazard(column: dict[str, Any], said: str | None, blocking: bool) -> None:
    whole = {"name": "c", "type": "t", "category": "X", "domain": False, "may_be_unsent": True, "modifier": -1, **column}
    found = hazard(whole, TableId("public", "t"), full_identity=True)
    assert (None if found is None else found.blocking) == (blocking if said else None)
    assert said is None or (found is not None and said in found.message)
