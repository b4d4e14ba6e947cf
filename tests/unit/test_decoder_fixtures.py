"""Recorded events of a real connector decode to what the source's tables held, value by value, or are rejected for the known reason."""

from __future__ import annotations

import base64
import gzip
import json
import re
from collections import Counter
from collections.abc import Iterable
from decimal import Decimal
from typing import Any

import pytest

from cdc_service.core.logical import Kind, LogicalType
from cdc_service.core.types import ChangeBatch, Op, RawBatch, TableSchema
from connectors.formats.debezium_json import DebeziumJsonDecoder
from connectors.sources.postgresql.events import PostgresEvents
from tests.support import pgtext
from tests.support.envelopes import PLACEHOLDER, dumps
from tests.support.plain import account, rows
from tests.support.recorded import FIXTURES, batch_of, binary, topics

CASES = sorted(path.name.removesuffix(".sql") for path in FIXTURES.glob("*.sql"))

AMBIGUOUS = {"na", "fa", "ba", "tza", "ea", "r", "tsa", "i2", "fl", "ina", "tt", "bits"}
"""Columns of the case toast of which NULL may mean unsent; bits is a bit varying besides."""
INEXACT = {("toast", "d"): AMBIGUOUS, ("toast", "f"): {"bits", "tt"}, ("torture", "t_bin"): {"vb", "vb5"}, ("torture", "t_arr"): {"tm"}}
"""Columns that cost their rows; without them the rest of the row is judged."""
REJECTED = {
    # bit varying has no length in the event; NULL in these arrays may mean unsent, which only a full replica identity tells apart.
    ("toast", "d"): {"inexact_value": 4, "null_or_unsent": 6},
    ("toast", "f"): {"inexact_value": 10},
    ("torture", "t_bin"): {"inexact_value": 8},
    # time[] is cut to milliseconds.
    ("torture", "t_arr"): {"inexact_value": 6},
    # NaN in numeric(38,10); 294276 AD does not fit 64 bits of microseconds since 1970.
    ("torture", "t_num"): {"inexact_value": 2},
    ("torture", "t_time"): {"inexact_value": 2},
}
DOUBTFUL = {("torture", "t_arr_nd"): {1, 101}}
"""Rows with arrays of two dimensions, which arrive as NULLs or as names of Java objects: they are read again at the source."""
DOUBTFUL_WITHOUT = {**DOUBTFUL, ("torture", "t_arr"): {4, 104}}
"""Of old dates in arrays the connector makes others."""
REJECTED_WITHOUT = {key: codes for key, codes in REJECTED.items() if key not in INEXACT}
WRONG_IN_THE_EVENT = {
    # In a snapshot, dates before Christ lose it and October 1582 moves; in arrays, and for time zones of times, the connector loses more.
    ("torture", "t_time", "d", "snapshot"): {1, 8, 9},
    # Their lower bounds are 0 and 2.
    ("torture", "t_arr_nd", "i4", "any"): {2, 102},
    ("torture", "t_arr_nd", "t", "any"): {2, 102},
    ("torture", "t_arr2", "m", "any"): {2, 102},
    ("torture", "t_arr2", "lt", "any"): {2, 102},
    ("torture", "t_arr2", "cm", "any"): {2, 102},
    ("torture", "t_arr2", "p", "any"): {2, 102},
    ("torture", "t_arr2", "bi", "any"): {1, 2, 4, 5, 101, 102, 104, 105},
}
GEOMETRIC = {"LINE", "LSEG", "BOX", "PATH", "POLYGON", "CIRCLE"}
"""The connector writes their numbers in Java's notation."""
NUMBERS = re.compile(r"-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?|NaN|-?Infinity")


def decode(raw: RawBatch) -> list[ChangeBatch]:
    batches = list(DebeziumJsonDecoder(PostgresEvents(), unavailable=PLACEHOLDER).decode(raw))
    for batch in batches:
        records, accounted = account(batch)
        assert records == accounted
    return batches


Row = dict[str, Any]


def changes(batches: Iterable[ChangeBatch]) -> list[tuple[tuple[int, int, int], Row, Row, dict[str, Any] | None]]:
    """(order, meta, row, old key) of every change, in the source's order; of a moved key the delete comes first."""
    result = []
    for batch in batches:
        data, meta, unsent, old = rows(batch.data), rows(batch.meta), rows(batch.unsent), rows(batch.old_key)
        assert data is not None
        assert meta is not None
        for place in range(batch.num_rows):
            about = {name: values[place] for name, values in meta.items()}
            about["table"] = batch.schema
            about["unsent"] = {name for name, values in (unsent or {}).items() if values[place]}
            row = {name: values[place] for name, values in data.items()}
            before = {name: values[place] for name, values in (old or {}).items()}
            known = before if before and None not in before.values() else None
            result.append(((about["record"], -about["op"] if about["op"] in (1, 3) else 0, about["offset"]), about, row, known))
    return sorted(result, key=lambda change: change[0])


def replay(batches: Iterable[ChangeBatch]) -> tuple[dict[Any, Row], dict[Any, TableSchema], set[Any]]:
    """The table that the changes make, by key; the schema of each row; the keys whose row came from a snapshot."""
    table: dict[Any, Row] = {}
    gone: dict[Any, Row] = {}
    schemas: dict[Any, TableSchema] = {}
    snapshot: set[Any] = set()
    for _, meta, row, old in changes(batches):
        schema: TableSchema = meta["table"]
        if meta["op"] == Op.TRUNCATE:
            table.clear()
            continue
        key = tuple(row[name] for name in schema.key) if schema.key else (len(table), meta["offset"], meta["partition"])
        if meta["op"] == Op.DELETE:
            if key in table:
                gone[key] = table.pop(key)
            continue
        if meta["unsent"]:
            base = table.get(key) if old is None else gone.get(tuple(old[name] for name in schema.key))
            assert base is not None
            row |= {name: base[name] for name in meta["unsent"]}
        table[key], schemas[key] = row, schema
        snapshot.discard(key)
        if meta["op"] == Op.READ:
            snapshot.add(key)
    return table, schemas, snapshot


def known_wrong(case: str, table: str, column: str, key: Any, in_snapshot: bool) -> bool:
    wrong = WRONG_IN_THE_EVENT.get((case, table, column, "any"), set())
    if in_snapshot:
        wrong = wrong | WRONG_IN_THE_EVENT.get((case, table, column, "snapshot"), set())
    return key[0] in wrong


def key_value(text: str, kind: LogicalType) -> Any:
    """As a key: 2.50 and 2.5 are one number."""
    if kind.kind is Kind.NUMERIC and "." in text:
        return text.rstrip("0").rstrip(".")
    return pgtext.value(text, kind)


def agrees(text: str | None, got: Any, schema: TableSchema, name: str) -> bool:
    column = schema.column(name)
    source = column.source_type.upper()
    if text is None or got is None:
        return text is None and got is None
    if source in ("BPCHAR", "CHAR"):
        return bool(got.rstrip(" ") == text.rstrip(" "))
    if source == "INET":  # a cast to text adds the length of a whole address
        return bool(got == text.removesuffix("/128" if ":" in text else "/32"))
    if source == "MONEY":
        return bool(got == Decimal(re.sub(r"[$,]", "", text)))
    if source == "INTERVAL":
        return pgtext.interval(text) == pgtext.interval(got)
    if source in ("TIMETZ", "_TIMETZ", "_BPCHAR"):
        return True  # normalised to UTC by the connector; blanks of arrays of char(n)
    if source in GEOMETRIC:
        return [float(n) for n in NUMBERS.findall(text)] == [float(n) for n in NUMBERS.findall(got)]
    if source in ("HSTORE", "_HSTORE"):
        return True  # another notation; judged by json below
    if name in schema.key:
        return bool(got == key_value(text, column.type))
    return bool(got == pgtext.value(text, column.type))


@pytest.mark.parametrize(("case", "whole"), [(case, True) for case in CASES] + [("toast", False), ("torture", False)])
def test_recorded_events_make_the_table_that_the_source_held(case: str, whole: bool) -> None:
    """``whole`` false: without the columns that cannot be read exactly."""
    expected = json.loads(gzip.decompress((FIXTURES / f"{case}.expected.json.gz").read_bytes()))
    compared = 0
    differences = []
    for topic, records in topics(case).items():
        dropped = set() if whole else INEXACT.get((case, topic.rsplit(".", 1)[1]), set())
        batches = decode(batch_of(topic, without(records, dropped) if dropped else records))
        name = batches[0].schema.table.name
        codes = Counter(one.code for batch in batches for one in batch.rejected)
        assert codes == (REJECTED if whole else REJECTED_WITHOUT).get((case, name), {}), (topic, codes)
        if name not in expected or not batches[0].schema.key:
            continue
        table, schemas, snapshot = replay(batches)
        unsure = {key for batch in batches for key in _doubtful(batch)}
        assert unsure == (DOUBTFUL if whole else DOUBTFUL_WITHOUT).get((case, name), set())
        parked = {one.key_text for batch in batches for one in batch.rejected} | {f'["{key}"]' for key in unsure}
        last = max(batches, key=lambda batch: max([*batch.meta.column("record").to_pylist(), -(2**63)])).schema
        wanted = {}
        for row in expected[name]:
            key = tuple(key_value(row[column], last.column(column).type) for column in last.key)
            if json.dumps([row[column] for column in last.key], separators=(",", ":")) not in parked:
                wanted[key] = row
        assert {key for key in table if not parked or key in wanted} == set(wanted), topic
        for key, row in wanted.items():
            for column, text in row.items():
                if column in last.names and column in table[key] and not known_wrong(case, name, column, key, key in snapshot):
                    compared += 1
                    if not agrees(text, table[key][column], schemas[key], column):
                        differences.append((topic, key, column, text, table[key][column]))
    assert differences == []
    assert compared > 0 or (case == "toast" and whole)


def _doubtful(batch: ChangeBatch) -> set[Any]:
    return set() if batch.doubtful is None else set(batch.data.column("id").filter(batch.doubtful).to_pylist())


def without(records: Iterable[dict[str, Any]], columns: set[str]) -> list[dict[str, Any]]:
    """The records as if the source's table did not have these columns."""
    result = []
    for record in records:
        value = binary(record["value"])
        if value is not None:
            document = json.loads(value)
            for part in document["schema"]["fields"]:
                if part["field"] in ("before", "after"):
                    part["fields"] = [field for field in part["fields"] if field["field"] not in columns]
            for part in ("before", "after"):
                for column in columns:
                    (document["payload"][part] or {}).pop(column, None)
            record = {**record, "value": base64.b64encode(dumps(document)).decode()}
        result.append(record)
    return result


def test_every_form_of_an_unsent_value_is_recognised_also_across_a_key_change() -> None:
    """I11: unsent is neither NULL nor the placeholder; for an update and for a changed key."""
    (topic,) = [name for name in topics("toast") if name.endswith(".d")]
    batches = decode(batch_of(topic, without(topics("toast")[topic], AMBIGUOUS)))
    assert [one.code for batch in batches for one in batch.rejected] == []
    told = changes(batches)
    first = next(meta for _, meta, row, _ in told if meta["op"] == Op.UPDATE and row["id"] == 1)
    large = set(batches[0].schema.names) - {"id", "v", "ch", "r"}
    assert first["unsent"] == large
    moved = next((meta, old) for _, meta, row, old in told if meta["op"] == Op.CREATE and row["id"] == 20)
    assert moved[0]["unsent"] == large
    assert moved[1] == {"id": 2}
    deletes = {id_: moved for batch in batches for id_, op, moved in _moves(batch) if op == Op.DELETE}
    assert deletes == {2: True, 3: False}
    table, _, _ = replay(batches)
    assert PLACEHOLDER not in repr(table)
    assert all(row[name] is not None for key, row in table.items() if key == (20,) for name in large)


def _moves(batch: ChangeBatch) -> list[tuple[int, int, bool]]:
    moved = [False] * batch.num_rows if batch.moved is None else batch.moved.to_pylist()
    return list(zip(batch.data.column("id").to_pylist(), batch.meta.column("op").to_pylist(), moved, strict=True))


def test_hstore_arrives_as_json() -> None:
    (topic,) = [name for name in topics("torture") if name.endswith(".t_obj")]
    found = {}
    for batch in decode(batch_of(topic, topics("torture")[topic])):
        found |= dict(zip(batch.data.column("id").to_pylist(), batch.data.column("h").to_pylist(), strict=True))
    assert {key: None if text is None else json.loads(text) for key, text in found.items() if key < 100} == {
        1: {},
        2: {"a b": 'c, "d"', "e": None, "é": "{}"},
        3: None,
        4: {"a": ""},
    }


def test_positions_of_snapshot_and_stream() -> None:
    """I5: a snapshot row is older than any change of the stream, though its transaction was open during the snapshot."""
    for topic, records in topics("snapshot_to_stream").items():
        for batch in decode(batch_of(topic, records)):
            for op, record in zip(batch.meta.column("op").to_pylist(), batch.meta.column("record").to_pylist(), strict=True):
                assert (record < 0) == (op == Op.READ)


def test_incremental_rows_stand_between_snapshot_and_stream() -> None:
    seen = Counter[str]()
    for topic, records in topics("incremental").items():
        for batch in decode(batch_of(topic, records)):
            for op, record, commit in zip(*(batch.meta.column(n).to_pylist() for n in ("op", "record", "commit")), strict=True):
                seen[f"{'read' if op == Op.READ else 'change'} {(record > 0) - (record < 0)}"] += 1
                assert record != 0 or commit is None
    assert seen["read 0"] > 0
    assert set(seen) <= {"read -1", "read 0", "change 1"}
