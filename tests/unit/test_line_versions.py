"""Versions of a schema that come out of order over partitions: an older row drops no column and brings none back; and those that no row
tells of, since the source's catalog alone has them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest

from cdc_service.config.models import Flush, Limits
from cdc_service.config.resolve import TableConfig
from cdc_service.core.clock import RealClock
from cdc_service.core.errors import Fenced, TableStopped
from cdc_service.core.evolve import CreateTable
from cdc_service.core.logical import Kind, LogicalType
from cdc_service.core.types import META, ChangeBatch, Column, LogId, Mode, Op, RawBatch, Span, TableId, TableSchema, Target
from cdc_service.pipeline.context import Context
from cdc_service.pipeline.prepare import Prepare
from cdc_service.pipeline.schema_versions import SchemaVersions
from cdc_service.pipeline.table_task import TableTask
from cdc_service.ports.destination import TableState
from cdc_service.ports.feed import TopicFacts
from cdc_service.ports.source import Fill
from cdc_service.testing.memory import MemoryDestination
from mergers.sql.schema_text import schema_from_json, schema_to_json

TABLE, TOPIC = TableId("public", "t"), "shop.public.t"
LOG = LogId("cluster", TOPIC, "topic-1")
TEXT = LogicalType(Kind.STRING)


def schema(*names: str) -> TableSchema:
    return TableSchema(TABLE, (Column("id", LogicalType(Kind.INT32), False), *(Column(n, TEXT) for n in names)), ("id",))


def rows(partition: int, offset: int, record: int, version: TableSchema, *values: Any) -> ChangeBatch:
    data = pa.table([pa.array([v], f.type) for v, f in zip(values, version.arrow, strict=True)], schema=version.arrow)
    meta = [int(Op.CREATE), partition, offset, record, record, 0, 0, 0]
    return ChangeBatch(
        version,
        data,
        pa.table([pa.array([v], f.type) for v, f in zip(meta, META, strict=True)], schema=META),
        (Span(partition, offset, offset + 1, 1),),
    )


class Outside:
    """Kafka, source and decoder of one table: what is decoded is what the test says."""

    def __init__(self) -> None:
        self.batches: list[ChangeBatch] = []

    def describe(self, names: Sequence[str]) -> dict[str, TopicFacts]:
        return {TOPIC: TopicFacts(LOG, {0: (0, 9), 1: (0, 9)})}

    def decode(self, raw: RawBatch) -> list[ChangeBatch]:
        return self.batches

    def from_text(self, topic: str, texts: pa.Table, version: TableSchema) -> pa.Table:
        return texts

    def fill_of_added_column(self, table: TableId, column: str) -> Fill:
        return Fill(known=True, text=f"fill of {column}")

    def reread(self, table: TableId, keys: pa.Table, columns: Sequence[str]) -> Any:
        raise AssertionError("nothing is to be read again")


@pytest.fixture
def outside() -> Outside:
    return Outside()


@pytest.fixture
def warehouse() -> MemoryDestination:
    return MemoryDestination()


@pytest.fixture
def table(outside: Outside, warehouse: MemoryDestination) -> TableTask:
    context = Context(warehouse, outside, outside, outside, lambda table: None, lambda table: (), outside, RealClock(), Limits())
    made = TableTask(TableConfig(TABLE, Target(TABLE, "public", "t"), TOPIC, Flush(), "refuse", "public.t"), context)
    made.own(0)
    made.own(1)
    made.open()
    return made


def apply(table: TableTask, outside: Outside, batch: ChangeBatch) -> None:
    outside.batches = [batch]
    nothing = pa.nulls(1, pa.binary())
    table.receive(RawBatch(TOPIC, nothing, nothing, pa.nulls(1, pa.int32()), pa.nulls(1, pa.int64()), batch.spans, lambda i: ()))
    table.set_aside()
    table.flush()
    table.put_back()


def found(warehouse: MemoryDestination, table: TableTask) -> dict[int, dict[str, Any]]:
    return {row.values["id"]: {k: v for k, v in row.values.items() if k != "id"} for row in warehouse.kept(table.target).rows.values()}


def dropped(warehouse: MemoryDestination, table: TableTask) -> dict[str, bool]:
    return {c.name: c.dropped for c in warehouse.schemas(table.target)[-1].columns}


def test_i9_an_older_version_that_was_never_seen_drops_nothing(outside: Outside, warehouse: MemoryDestination, table: TableTask) -> None:
    apply(table, outside, rows(0, 0, 10, schema("a"), 1, "a1"))
    apply(table, outside, rows(0, 1, 30, schema("a", "x", "y"), 2, "a2", "x2", "y2"))
    apply(table, outside, rows(1, 0, 20, schema("a", "x"), 3, "a3", "x3"))
    assert dropped(warehouse, table) == {"id": False, "a": False, "x": False, "y": False}
    assert found(warehouse, table) == {
        1: {"a": "a1", "x": "fill of x", "y": "fill of y"},
        2: {"a": "a2", "x": "x2", "y": "y2"},
        3: {"a": "a3", "x": "x3", "y": "fill of y"},
    }


@pytest.mark.parametrize("restarted", [False, True])
def test_i9_a_drop_is_seen_in_later_rows_alone(outside: Outside, warehouse: MemoryDestination, table: TableTask, restarted: bool) -> None:
    apply(table, outside, rows(0, 0, 30, schema("a", "x"), 1, "a1", "x1"))
    if restarted:
        table.drop()
        table.open()
    apply(table, outside, rows(0, 1, 40, schema("a"), 2, "a2"))
    assert dropped(warehouse, table)["x"]
    assert found(warehouse, table)[2] == {"a": "a2", "x": None}
    if restarted:
        table.drop()
        table.open()
    apply(table, outside, rows(1, 0, 35, schema("a", "x"), 3, "a3", "x3"))
    assert dropped(warehouse, table)["x"], "a row from before the drop brought the column back"
    apply(table, outside, rows(1, 1, 50, schema("a", "x"), 4, "a4", "x4"))
    assert not dropped(warehouse, table)["x"]
    assert "came back" in table.versions.reload


def test_i9_a_log_of_changes_fills_no_column_and_is_read_anew_for_none(outside: Outside, warehouse: MemoryDestination) -> None:
    context = Context(warehouse, outside, outside, outside, lambda table: None, lambda table: (), outside, RealClock(), Limits())
    target = Target(TABLE, "public", "t", Mode.APPEND)
    table = TableTask(TableConfig(TABLE, target, TOPIC, Flush(), "refuse", "public.t"), context)
    table.own(0)
    table.own(1)
    table.open()
    apply(table, outside, rows(0, 0, 10, schema("a"), 1, "a1"))
    apply(table, outside, rows(0, 1, 20, schema("a", "x"), 1, "a2", "x2"))
    apply(table, outside, rows(0, 2, 30, schema("a"), 1, "a3"))
    apply(table, outside, rows(0, 3, 40, schema("a", "x"), 1, "a4", "x4"))
    assert [change.values["x"] for change in warehouse.kept(target).changes] == [None, "x2", None, "x4"]
    assert table.versions.reload == ""


@pytest.mark.parametrize("mode", [Mode.UPSERT, Mode.SOFT_DELETE])
def test_i23_events_without_a_key_stop_a_table_that_is_kept_by_key(outside: Outside, warehouse: MemoryDestination, mode: Mode) -> None:
    context = Context(warehouse, outside, outside, outside, lambda table: None, lambda table: (), outside, RealClock(), Limits())
    table = TableTask(TableConfig(TABLE, Target(TABLE, "public", "t", mode), TOPIC, Flush(), "refuse", "public.t"), context)
    table.own(0)
    table.open()
    with pytest.raises(TableStopped, match="have no key"):
        apply(table, outside, rows(0, 0, 10, replace(schema("a"), key=()), 1, "a1"))


def test_i9_rows_of_a_snapshot_judge_no_column(outside: Outside, warehouse: MemoryDestination, table: TableTask) -> None:
    apply(table, outside, rows(0, 0, 30, schema("a", "x"), 1, "a1", "x1"))
    apply(table, outside, rows(1, 0, -(2**63) + 5, schema("a"), 2, "a2"))
    apply(table, outside, rows(1, 1, 0, schema("a"), 3, "a3"))
    assert not dropped(warehouse, table)["x"]


def test_a_column_that_events_do_not_know_has_the_table_read_anew_once(outside: Outside, warehouse: MemoryDestination) -> None:
    now = ["id", "a"]
    context = Context(warehouse, outside, outside, outside, lambda table: None, lambda table: tuple(now), outside, RealClock(), Limits())
    versions = SchemaVersions(Target(TABLE, "public", "t"), context, Prepare(TOPIC, context.decoder, (), context.destination.capabilities))
    versions.evolve(schema("a"), (10, 10))

    def why(*names: str) -> str:
        versions.reload = ""
        versions.distrust_lacking(names, "late: {}")
        return versions.reload

    assert why("id", "a") == ""
    # Between the event and now: b was made, and a was dropped and made again behind it.
    now[1:] = ["b", "a"]
    assert why("id", "a") == "late: b"
    assert why("id", "a") == "", "once a column: it may be one that is never sent"
    assert versions.doubtful


# What the catalog tells


@pytest.fixture
def catalog() -> list[TableSchema | None]:
    """What the source has: the last of them."""
    return [None]


@pytest.fixture
def versions(outside: Outside, warehouse: MemoryDestination, catalog: list[TableSchema | None]) -> SchemaVersions:
    def columns(table: TableId) -> tuple[str, ...]:
        return () if catalog[-1] is None else catalog[-1].names

    context = Context(warehouse, outside, outside, outside, lambda table: catalog[-1], columns, outside, RealClock(), Limits())
    return SchemaVersions(Target(TABLE, "public", "t"), context, Prepare(TOPIC, context.decoder, (), context.destination.capabilities))


def live(versions: SchemaVersions) -> list[str]:
    return [c.name for c in versions.all[-1].columns if not c.dropped]


def test_a_column_takes_its_new_name_and_keeps_the_old_one_for_older_rows(
    versions: SchemaVersions, warehouse: MemoryDestination, catalog: list[TableSchema | None]
) -> None:
    versions.evolve(schema("a", "other"), (10, 10))
    catalog.append(schema("b", "other"))
    versions.follow({"a": "b"}, 20)
    assert live(versions) == ["id", "b", "other"]
    kept = warehouse.schemas(Target(TABLE, "public", "t"))[-1]
    assert kept.column("b").former == (("a", 20),)
    assert schema_from_json(schema_to_json(kept)).column("b") == kept.column("b")
    assert versions.translated(rows(0, 0, 20, schema("a", "other"), 1, "old", "x")).data.to_pylist() == [
        {"id": 1, "b": "old", "other": "x"}
    ]
    assert versions.translated(rows(0, 1, 0, schema("a", "other"), 1, "read", "x")).schema.names == ("id", "b", "other")
    # What has the name later is another column, and so it is beside the one that had it.
    assert versions.translated(rows(0, 2, 21, schema("a", "other"), 1, "new", "x")).schema.names == ("id", "a", "other")
    assert versions.translated(rows(0, 3, 20, schema("a", "b"), 1, "new", "x")).schema.names == ("id", "a", "b")
    # And once more: rows of each age have their column.
    catalog.append(schema("c", "other"))
    versions.follow({"b": "c"}, 30)
    assert versions.all[-1].column("c").former == (("a", 20), ("b", 30))
    assert versions.translated(rows(0, 4, 15, schema("a", "other"), 1, "old", "x")).schema.names == ("id", "c", "other")
    assert versions.translated(rows(0, 5, 25, schema("b", "other"), 1, "old", "x")).schema.names == ("id", "c", "other")
    assert versions.reload == ""


def test_a_key_takes_its_new_name(versions: SchemaVersions, catalog: list[TableSchema | None]) -> None:
    versions.evolve(schema("a"), (10, 10))
    named = TableSchema(TABLE, (Column("number", LogicalType(Kind.INT32), False), Column("a", TEXT)), ("number",))
    catalog.append(named)
    versions.follow({"id": "number"}, 20)
    assert versions.all[-1].key == ("number",)
    moved = rows(0, 0, 15, schema("a"), 1, "x")
    moved = replace(moved, unsent=pa.table({"a": [True]}), old_key=pa.table({"id": [7]}))
    now = versions.translated(moved)
    assert (now.schema.key, now.schema.names) == (("number",), ("number", "a"))
    assert (now.data.column_names, now.old_key and now.old_key.column_names) == (["number", "a"], ["number"])
    assert now.unsent is not None
    assert now.unsent.column_names == ["a"]
    assert (now.meta, now.spans) == (moved.meta, moved.spans)


def test_a_name_that_the_target_has_already_is_told_by_rows_alone(versions: SchemaVersions, catalog: list[TableSchema | None]) -> None:
    versions.evolve(schema("a"), (10, 10))
    versions.evolve(schema("a", "b"), (15, 15))
    catalog.append(schema("b"))
    versions.follow({"a": "b"}, 20)
    assert "has one of that name already" in versions.reload
    assert live(versions) == ["id", "a", "b"]


def test_what_is_altered_before_the_first_row_came_is_read_anew(versions: SchemaVersions, catalog: list[TableSchema | None]) -> None:
    """That row may be of before it: then the target would be made with columns that the source has no more."""
    catalog.append(schema("b"))
    versions.follow({"a": "b"}, 20)
    assert "before the first of its rows came" in versions.reload
    assert versions.all == ()


def test_columns_come_and_go_with_the_catalog(versions: SchemaVersions, catalog: list[TableSchema | None]) -> None:
    versions.evolve(schema("a", "gone"), (10, 10))
    catalog.append(schema("a", "new"))
    versions.follow({}, 20)
    assert live(versions) == ["id", "a", "new"]
    assert versions.all[-1].column("new").default == "fill of new"
    # Rows of before it tell nothing about it.
    versions.evolve(schema("a", "gone"), (15, 15))
    assert live(versions) == ["id", "a", "new"]
    assert versions.reload == ""


def test_a_new_column_whose_form_only_events_tell_is_waited_for(outside: Outside, warehouse: MemoryDestination, table: TableTask) -> None:
    now = ["id", "a"]
    context = Context(warehouse, outside, outside, outside, lambda table: None, lambda table: tuple(now), outside, RealClock(), Limits())
    versions = SchemaVersions(Target(TABLE, "public", "t"), context, Prepare(TOPIC, context.decoder, (), context.destination.capabilities))
    versions.evolve(schema("a"), (10, 10))
    now.append("b")
    assert versions.follow({}, 20) == "b"
    assert live(versions) == ["id", "a"]
    versions.evolve(schema("a", "b"), (25, 25))
    assert versions.follow({}, 28) == ""
    now.remove("a")
    assert versions.follow({}, 30) == ""
    assert live(versions) == ["id", "b"]
    assert versions.reload == ""


def test_one_column_may_be_another_where_one_is_new_and_one_is_missing(versions: SchemaVersions) -> None:
    assert not versions.may_be_renamed(schema("a"))
    versions.evolve(schema("a", "b"), (10, 10))
    assert versions.may_be_renamed(schema("a", "c"))
    assert not versions.may_be_renamed(schema("a", "b", "c"))
    assert not versions.may_be_renamed(schema("a"))


@pytest.mark.parametrize("deed", ["rows", "catalog", "doubt"])
def test_versions_of_before_a_table_was_made_anew_change_nothing_of_it(
    versions: SchemaVersions, warehouse: MemoryDestination, catalog: list[TableSchema | None], deed: str
) -> None:
    versions.evolve(schema("a"), (10, 10))
    catalog.append(schema("b"))
    target = Target(TABLE, "public", "t")
    warehouse.begin_anew(target, LOG, {}, TableState("snapshotting", 1), retire=True)
    warehouse.evolve(target, [CreateTable(schema("a"))], schema("a"), 1)  # By another process; as many versions as are known here.
    deeds: dict[str, Callable[[], object]] = {
        "rows": lambda: versions.evolve(schema("a", "c"), (20, 20)),
        "catalog": lambda: versions.follow({"a": "b"}, 20),
        "doubt": lambda: versions.doubt(["a"]),
    }
    with pytest.raises(Fenced):
        deeds[deed]()
    assert warehouse.schemas(target) == [schema("a")]
    versions.load(0, 1)
    deeds[deed]()
    assert len(warehouse.schemas(target)) == 2


def test_rows_of_a_snapshot_mean_the_column_that_has_their_name_now(versions: SchemaVersions, catalog: list[TableSchema | None]) -> None:
    """It went from a to b and back to a between two looks, so that the target has a column of each."""
    versions.evolve(schema("a"), (10, 10))
    catalog.append(schema("b"))
    versions.follow({"a": "b"}, 20)
    catalog.append(schema("a"))
    versions.follow({}, 30)
    assert live(versions) == ["id", "a"]
    assert versions.translated(rows(0, 0, 0, schema("a"), 1, "read")).schema.names == ("id", "a")
    assert versions.translated(rows(0, 1, 15, schema("a"), 1, "late")).schema.names == ("id", "a")
