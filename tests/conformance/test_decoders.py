"""One history of one source, recorded on every wire at the same time: each decoder makes the same changes of it.

What a wire cannot tell is a flag of it, with the reason; a flag that does not show any more fails.
"""

from __future__ import annotations

import base64
import contextlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import pytest

from cdc_service.core.errors import ConfigError
from cdc_service.core.keys import key_text
from cdc_service.core.types import ChangeBatch, Op, TableSchema
from cdc_service.ports.events import Decoder
from connectors.formats.avro import DebeziumAvroDecoder, Schemas
from connectors.formats.debezium_json import DebeziumJsonDecoder
from connectors.formats.schemaless import SchemalessJsonDecoder
from connectors.sources.postgresql.events import PostgresEvents
from tests.support.envelopes import PLACEHOLDER
from tests.support.plain import account, rows
from tests.support.recorded import FIXTURES, Recorded, batch_of, config_of, topics

CASES = sorted(path.name.removesuffix(".avro.jsonl.gz") for path in FIXTURES.glob("*.avro.jsonl.gz"))


def in_json(known: Mapping[str, TableSchema], config: Mapping[str, str]) -> Decoder:
    return DebeziumJsonDecoder(PostgresEvents(), unavailable=PLACEHOLDER, known=known)


def in_avro(known: Mapping[str, TableSchema], config: Mapping[str, str]) -> Decoder:
    return avro_decoder(known, trusting=True)


def avro_decoder(known: Mapping[str, TableSchema], *, trusting: bool) -> Decoder:
    schemas = Schemas(Recorded(), lambda: 0.0)
    return DebeziumAvroDecoder(PostgresEvents(), schemas, unavailable=PLACEHOLDER, known=known, defaults_for_null=not trusting)


def without_schemas(known: Mapping[str, TableSchema], config: Mapping[str, str]) -> Decoder:
    settings = {**config, "value.converter.replace.null.with.default": "false"}
    return SchemalessJsonDecoder(PostgresEvents(), known, settings)


NO_TRUNCATE = "no_truncate: the transform ExtractNewRecordState drops truncates"
DEFAULT_FOR_NULL = "default_for_null: Apicurio's converter writes a column's default where the value is NULL"
NEEDS_SCHEMAS = "needs_schemas: without schemas, the values of some types are ambiguous, and their tables are refused"
ONE_VERSION = "one_version: without schemas, only the records of the table as it is now can be read"
NEGATIVE_SCALE = {"public.t_num"}
"""Without schemas, a numeric of negative scale keeps the zeros that the connector writes behind its point: the same number."""
WIRES = {"schemaless": without_schemas, "avro": in_avro, "flat": in_json, "flat_avro": in_avro}
GAPS = {
    ("truncate", "flat"): NO_TRUNCATE,
    ("truncate", "flat_avro"): NO_TRUNCATE,
    ("ops", "avro"): DEFAULT_FOR_NULL,
    ("ops", "flat_avro"): DEFAULT_FOR_NULL,
    ("torture", "avro"): DEFAULT_FOR_NULL,
    ("torture", "flat_avro"): DEFAULT_FOR_NULL,
    ("ops", "schemaless"): ONE_VERSION,
    ("snapshot_to_stream", "schemaless"): ONE_VERSION,
    ("toast", "schemaless"): NEEDS_SCHEMAS,
    ("torture", "schemaless"): NEEDS_SCHEMAS,
}
"""Where a wire cannot tell what JSON with schemas tells, and why."""
BROKEN = base64.b64encode(b'{"schema": \xff broken').decode()
PAIRS = [(case, wire) for case in CASES for wire in WIRES]


def phase(record: int) -> Any:
    """Each connector read its own snapshot, at a position of its own."""
    return "snapshot" if record < 0 else record


def changes(batches: Sequence[ChangeBatch]) -> Counter[str]:
    """What was decoded, each as text; the order of the log is the position's, which is in it."""
    found: Counter[str] = Counter()
    for batch in batches:
        records, accounted = account(batch)
        assert records == accounted
        data, meta, unsent, old = rows(batch.data), rows(batch.meta), rows(batch.unsent), rows(batch.old_key)
        assert data is not None
        assert meta is not None
        moved = [None] * batch.num_rows if batch.moved is None else batch.moved.to_pylist()
        for place in range(batch.num_rows):
            row = {name: values[place] for name, values in data.items()}
            if meta["op"][place] == Op.DELETE:
                row = {name: row[name] for name in batch.schema.key}
            about = (phase(meta["record"][place]), Op(meta["op"][place]).name, row)
            hidden = sorted(name for name, values in (unsent or {}).items() if values[place])
            before = {name: values[place] for name, values in (old or {}).items()}
            told = repr((*about, hidden, before if any(v is not None for v in before.values()) else None, bool(moved[place])))
            # An array in an array is a name of Java's, another one in each process; such a row is read again at the source.
            found[re.sub(r"\[L[\w.]+;@[0-9a-f]+", "an array", told)] += 1
        for one in batch.rejected:
            found[repr(("rejected", one.code, one.key_text))] += 1
    return found


@cache
def decoded(case: str, wire: str) -> Mapping[str, Counter[str]]:
    """The changes of each table; a table that the wire's decoder refuses is not there."""
    decoder = {"json": in_json, **WIRES}[wire]
    found = {}
    for topic, records in topics(case, wire).items():
        table = topic.split(".", 1)[1]
        known = {topic: last_schema(case, table)} if wire == "schemaless" else {}
        with contextlib.suppress(ConfigError):
            found[table] = changes(decoder(known, config_of(case)).decode(batch_of(topic, records)))
    return found


def last_schema(case: str, table: str) -> TableSchema:
    (records,) = (found for topic, found in topics(case).items() if topic.split(".", 1)[1] == table)
    return in_json({}, {}).decode(batch_of("t", records))[-1].schema


def lacking(case: str, wire: str) -> Any:
    reason = GAPS.get((case, wire))
    return pytest.param(case, wire, marks=[pytest.mark.xfail(strict=True, raises=AssertionError, reason=reason)] if reason else [])


@pytest.mark.parametrize(("case", "wire"), [lacking(case, wire) for case, wire in PAIRS])
def test_every_wire_tells_the_same_history(case: str, wire: str) -> None:
    """I11, I23: rows, order, unsent values, changed keys and what is rejected."""
    expected, found = decoded(case, "json"), decoded(case, wire)
    assert set(found) == set(expected)
    for table, told in found.items():
        assert told == expected[table], table


@pytest.mark.parametrize(("case", "wire"), list(GAPS))
def test_what_a_wire_cannot_tell_costs_nothing_else(case: str, wire: str) -> None:
    reason, expected, found = GAPS[case, wire], decoded(case, "json"), decoded(case, wire)
    for table, told in found.items():
        missing, extra = expected[table] - told, told - expected[table]
        if reason == NO_TRUNCATE:
            assert not extra
            assert all("'TRUNCATE'" in one for one in missing)
        elif reason == DEFAULT_FOR_NULL:
            assert all("None" in one for one in missing)
        elif reason == ONE_VERSION:
            assert all("'columns_differ'" in one for one in extra)
        elif table not in NEGATIVE_SCALE:
            assert told == expected[table]


@pytest.mark.parametrize(("case", "wire"), [pair for pair, reason in GAPS.items() if reason == DEFAULT_FOR_NULL])
def test_a_default_that_may_stand_for_null_is_refused(case: str, wire: str) -> None:
    """I23: with a converter that writes defaults for NULL, no doubtful value passes, and no other is held up."""
    refused = 0
    for topic, records in topics(case, wire).items():
        table = topic.split(".", 1)[1]
        told = changes(avro_decoder({}, trusting=False).decode(batch_of(topic, records)))
        extra, missing = told - decoded(case, "json")[table], decoded(case, "json")[table] - told
        assert all("'null_or_default'" in one for one in extra), table
        assert sum(extra.values()) == sum(missing.values())
        refused += sum(extra.values())
    assert refused > 0


@pytest.mark.parametrize(("case", "wire"), [(case, wire) for case in CASES for wire in ("json", *WIRES)])
def test_a_broken_value_has_the_key_of_its_record_also_where_nothing_was_read_before(case: str, wire: str) -> None:
    """I19: what follows has to wait behind it, and a service that was just started knows no layout of the topic."""
    opened = {"json": in_json, **WIRES}[wire]
    seen = 0
    for topic, records in topics(case, wire).items():
        table = topic.split(".", 1)[1]
        known = {topic: last_schema(case, table)}
        try:
            told = opened(known, config_of(case)).decode(batch_of(topic, records))
        except ConfigError:
            continue  # A table that the wire's decoder refuses.
        keys = {(p, o): key for batch in told if batch.schema.key for p, o, key in places_and_keys(batch)}
        broken = [{**record, "value": BROKEN} for record in records if record["value"] is not None]
        decoder = opened(known, config_of(case))
        parked = [one for batch in decoder.decode(batch_of(topic, broken)) for one in batch.rejected]
        assert len(parked) == len(broken)
        for one in parked:
            if (one.partition, one.offset) in keys:
                assert one.key_text == keys[one.partition, one.offset]
                seen += 1
    assert seen > 0 or (case, wire) == ("toast", "schemaless")  # Which refuses all of its tables.


def places_and_keys(batch: ChangeBatch) -> Iterator[tuple[int, int, str]]:
    """Of each row but a truncation: partition, offset, and its key as the quarantine would name it."""
    texts = key_text(batch.data.select(batch.schema.key)).to_pylist()
    meta = batch.meta
    places = zip(meta["partition"].to_pylist(), meta["offset"].to_pylist(), texts, meta["op"].to_pylist(), strict=True)
    return ((partition, offset, text) for partition, offset, text, op in places if op != Op.TRUNCATE)
