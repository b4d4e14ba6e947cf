"""Decoding speed: events a second and CPU microseconds an event of one process on one core, RawBatch in, ChangeBatches out.

Run: python -m tests.bench.bench_decode [ROWS]. The reading of JSON runs on one thread.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc

from cdc_service.core.types import RawBatch, TableSchema
from cdc_service.ports.events import Decoder
from connectors.formats.avro import HEAD, DebeziumAvroDecoder, Schemas
from connectors.formats.avro_exact import reader
from connectors.formats.avro_schema import parse
from connectors.formats.debezium_json import DebeziumJsonDecoder
from connectors.formats.schemaless import SchemalessJsonDecoder
from connectors.sources.postgresql.events import PostgresEvents
from tests.support.avro import Registry
from tests.support.envelopes import PLACEHOLDER, Col, Record, Table, number, raw, text

ORDERS = Table(
    [
        Col("id", "int64", "INT8", optional=False),
        Col("customer_id", "int64", "INT8"),
        number("total", 12, 2),
        text("note"),
        text("created_at", "TIMESTAMPTZ", "io.debezium.time.ZonedTimestamp"),
        Col("quantity"),
        Col("paid", "boolean", "BOOL"),
        text("doc", "JSONB", "io.debezium.data.Json"),
        text("token", "UUID", "io.debezium.data.Uuid"),
        text("status", "STATUS", "io.debezium.data.Enum", parameters={"allowed": "new,paid,sent"}),
    ]
)


def row(number: int) -> dict[str, object]:
    return {
        "id": number,
        "customer_id": number % 1000,
        "total": f"{number % 9999}.12",
        "note": f"some text of note number {number}",
        "created_at": "2024-05-06T05:08:09.123456Z",
        "quantity": number % 7,
        "paid": True,
        "doc": '{"a": [1, 2], "b": 1}',
        "token": "6f1e2d3c-0000-4000-8000-000000000001",
        "status": "paid",
    }


def events(rows: int) -> RawBatch:
    schema = ORDERS.wrap(b"")[:-1]
    records = []
    for place in range(rows):
        value = ORDERS.value(
            "c" if place % 2 else "u",
            row(place),
            lsn=26385368 + place,
            sequence=f'["{26385300 + place // 10}","{26385368 + place}"]',
            txId=100_726 + place // 10,
            ts_us=1795459285447293 + place * 7,
        )
        assert value.startswith(schema)
        records.append(Record(ORDERS.key_of(row(place)), value, place % 3))
    return raw(records)


def without_schemas(batch: RawBatch, schema: TableSchema) -> tuple[RawBatch, SchemalessJsonDecoder]:
    """The same events as a connector without schemas writes them, and their decoder."""
    head, key_head = ORDERS.wrap(b"")[:-1], len(ORDERS.key_of(row(0))) - len(b'{"id":0}') - 1
    values = pc.binary_slice(batch.values, len(head), pc.max(pc.binary_length(batch.values)).as_py())
    cut = [
        pa.array([v[:-1] for v in values.to_pylist()], pa.binary()),
        pa.array([k[key_head:-1] for k in batch.keys.to_pylist()], pa.binary()),
    ]
    settings = {
        "decimal.handling.mode": "string",
        "time.precision.mode": "microseconds",
        "value.converter.replace.null.with.default": "false",
    }
    return replace(batch, values=cut[0], keys=cut[1]), SchemalessJsonDecoder(PostgresEvents(), {batch.topic: schema}, settings)


def in_avro(batch: RawBatch) -> tuple[RawBatch, Registry]:
    """The same events in Avro, and the registry with their schemas."""
    registry = Registry()
    values, keys = ([registry.datum(one) for one in column.to_pylist()] for column in (batch.values, batch.keys))
    return replace(batch, values=pa.array(values, pa.binary()), keys=pa.array(keys, pa.binary())), registry


def measure_exact(batch: RawBatch, registry: Registry) -> None:
    """The reader that takes over what the columnar one cannot read."""
    node = parse(registry.texts[int.from_bytes(batch.values[0].as_py()[1:5], "big")])
    some = batch.values.slice(0, 5000).to_pylist()
    read = reader(node, None)
    start = time.perf_counter()
    for one in some:
        read(one[HEAD:])
    print(f"Avro, exact reader alone: {len(some) / (time.perf_counter() - start):,.0f} events/s")


def measure(name: str, decoder: Decoder, batch: RawBatch) -> None:
    best, cpu = 0.0, float("inf")
    for _ in range(5):
        start, used = time.perf_counter(), time.process_time()
        done = decoder.decode(batch)
        best = max(best, batch.num_rows / (time.perf_counter() - start))
        cpu = min(cpu, (time.process_time() - used) / batch.num_rows)
        assert sum(one.num_rows for one in done) == batch.num_rows
    size = len(batch.values[0].as_py())
    print(f"{name}: {batch.num_rows} events of {size} B, {best:,.0f} events/s, CPU {cpu * 1e6:.2f} us/event")


def main() -> None:
    batch = events(int(sys.argv[1]) if len(sys.argv) > 1 else 50_000)
    decoder = DebeziumJsonDecoder(PostgresEvents(), unavailable=PLACEHOLDER)
    measure("JSON with schemas", decoder, batch)
    bare, schemaless = without_schemas(batch, decoder.decode(batch)[0].schema)
    measure("JSON without schemas", schemaless, bare)
    binary, registry = in_avro(batch)
    avro = DebeziumAvroDecoder(PostgresEvents(), Schemas(registry, time.monotonic), unavailable=PLACEHOLDER)
    measure("Avro", avro, binary)
    measure_exact(binary, registry)


if __name__ == "__main__":
    main()
