"""Envelopes that are alike behind the row are read without parsing each; what is not quite alike is told as the exact reader does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from cdc_service.core.types import RawBatch
from connectors.formats import blocks, frames
from connectors.formats.debezium_json import DebeziumJsonDecoder
from connectors.formats.schemaless import SchemalessJsonDecoder
from connectors.sources.postgresql.events import PostgresEvents
from tests.support.envelopes import PLACEHOLDER, Col, Record, Table, raw, text
from tests.support.plain import told

TABLE = Table([Col("id", "int64", "INT8"), text("note"), text("source")])
ROW = {"id": 1, "note": 'a "quoted", ,"source":{ one', "source": "é\n"}
CONNECTOR = {"value.converter.replace.null.with.default": "false", "unavailable.value.placeholder": PLACEHOLDER}


def with_schemas() -> DebeziumJsonDecoder:
    return DebeziumJsonDecoder(PostgresEvents(), unavailable=PLACEHOLDER, logs=("log",))


def event(op: str, number: int, **source: Any) -> Record:
    return TABLE.change(op, {**ROW, "id": number}, **{"lsn": 1000 + number, "sequence": f'["{900 + number}","{1000 + number}"]', **source})


def without(record: Record) -> Record:
    """As a connector without schemas writes it."""
    key, value = (document[document.index(b',"payload":') + 11 : -1] for document in (record.key or b"", record.value or b""))
    return Record(key, value, record.partition)


def read(batch: RawBatch) -> list[Any]:
    return [told(one) for one in with_schemas().decode(batch)]


def read_bare(records: Sequence[Record]) -> list[Any]:
    schema = with_schemas().decode(raw([event("c", 1)]))[0].schema
    decoder = SchemalessJsonDecoder(PostgresEvents(), {"shop.public.t": schema}, CONNECTOR)
    return [told(one) for one in decoder.decode(raw([without(record) for record in records]))]


def parsed_whole(do: Callable[[], Any], *, exactly: bool = False) -> Any:
    """What ``do`` gives where each envelope is parsed whole, by the columnar reader or one by one."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise blocks.Refused

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frames, "framed", refuse)
        if exactly:
            patch.setattr(blocks, "columnar", refuse)
        return do()


def one_by_one(do: Callable[[], Any]) -> Any:
    return parsed_whole(do, exactly=True)


def test_the_records_of_a_stream_are_read_without_parsing_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inserts, updates and deletes, and numbers that grow by a digit: two shapes, and the second run is short."""
    records = [event("cud"[n % 3], n, txId=n, lsn=10_000 + n, ts_us=1795459285447293 + n) for n in range(600, 1200)]
    expected = one_by_one(lambda: read(raw(records)))
    bare = one_by_one(lambda: read_bare(records))

    def fail(*_: Any) -> Any:
        raise AssertionError("the envelopes were parsed whole")

    monkeypatch.setattr(frames, "read_block", fail)
    assert read(raw(records)) == expected
    assert read_bare(records) == bare


PLACES = {
    "a letter for a digit": (b'"lsn":1003', b'"lsn":10x3'),
    "a number that begins with 0": (b'"lsn":1003', b'"lsn":0003'),
    "a sign": (b'"lsn":1003', b'"lsn":-003'),
    "a fraction": (b'"lsn":1003', b'"lsn":1.03'),
    "an exponent": (b'"lsn":1003', b'"lsn":1e03'),
    "another table": (b'"table":"t"', b'"table":"u"'),
    "another op": (b'"op":"u"', b'"op":"m"'),
    "a delete with a row": (b'"op":"u"', b'"op":"d"'),
    "an escape": (b'"txId":726', b'"txId":"6"'),
    "beyond 64 bits": (b'"ts_ns":1795459285447293000', b'"ts_ns":9995459285447293000'),
    "a field twice": (b'"transaction":null', b'"after":{"id":9}  '),
    "a comma less": (b',"transaction"', b' "transaction"'),
    "no row at all": (b'"before":null,', b""),
    "no field before": (b'{"before":null,"after":{"id":3,', b'{"id":3,'),
    "spaces": (b'"source":{', b'"source": {'),
    "an end too much": (b'},"source":{', b'}},"source":{'),
    "another field": (b'"before":null', b'"others":null'),
    "not UTF-8": ("é".encode(), b"\xc3("),
}


@pytest.mark.parametrize("first", [True, False], ids=["first", "last"])
@pytest.mark.parametrize("name", PLACES)
def test_what_is_not_alike_is_told_as_the_exact_reader_does(name: str, first: bool) -> None:
    right, wrong = PLACES[name]
    odd = event("u", 3)
    assert odd.value is not None
    assert right in odd.value
    others = [event("u", n) for n in range(4, 9)]
    records = [Record(odd.key, odd.value.replace(right, wrong)), *others]
    batch = raw(records if first else records[::-1])
    if name == "another table":
        with pytest.raises(Exception, match="more than one table"):
            read(batch)
        return
    assert read(batch) == one_by_one(lambda: read(batch))
    records = records if first else records[::-1]
    assert read_bare(records) == one_by_one(lambda: read_bare(records))
