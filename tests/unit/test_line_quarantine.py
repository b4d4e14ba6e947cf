"""Replaying and discarding through the real decoder: kept bytes of several keys, schemas and fates, and a table in memory."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
import pytest

from cdc_service.config.models import Flush, Limits
from cdc_service.config.resolve import TableConfig
from cdc_service.core.clock import RealClock
from cdc_service.core.errors import CdcError, Unavailable
from cdc_service.core.types import LogId, Mode, Op, TableId, TableSchema, Target
from cdc_service.pipeline import quarantine
from cdc_service.pipeline.context import Context
from cdc_service.pipeline.quarantine import Asked
from cdc_service.pipeline.table_task import TableTask
from cdc_service.ports.source import UNKNOWN_FILL, Fill, Reread
from cdc_service.testing.memory import MemoryDestination
from connectors.formats.debezium_json import DebeziumJsonDecoder
from connectors.sources.postgresql.events import PostgresEvents
from tests.conformance.harness import Change, Feed, number, text
from tests.support.envelopes import PLACEHOLDER, Col, Record
from tests.support.envelopes import Table as Source
from tests.support.envelopes import text as text_column

TOPIC = "shop.public.t"
LOG = LogId("cluster", TOPIC, "topic-1")
ID, NAME, BODY = Col("id", optional=False), text_column("name"), text_column("body")
NARROW, WIDE = Source([ID, NAME, BODY]), Source([ID, NAME, BODY, text_column("extra")])
SCHEMA = TableSchema(TableId("public", "t"), (number("id"), text("name"), text("body")), ("id",))
K1, K2 = '["1"]', '["2"]'


def row(id_: int, name: str, body: str = "b", **more: Any) -> dict[str, Any]:
    return {"id": id_, "name": name, "body": body, **more}


@dataclass
class World:
    """The source at which rows are read again, and a table of whose records some are parked."""

    mode: Mode = Mode.UPSERT
    keyed: bool = True
    rows: dict[int, tuple[str, str]] = field(default_factory=dict)
    unreadable: tuple[str, ...] = ()
    read: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.destination = MemoryDestination()
        target = Target(SCHEMA.table, "public", "t", self.mode)
        nobody: Any = None
        source: Any = self
        decoder = DebeziumJsonDecoder(PostgresEvents(), unavailable=PLACEHOLDER, logs={TOPIC} if self.mode is Mode.APPEND else ())
        context = Context(self.destination, nobody, decoder, source, nobody, nobody, nobody, RealClock(), Limits())
        config = TableConfig(SCHEMA.table, target, TOPIC, Flush(rows=1, bytes=1, seconds=1), "refuse", "public.t")
        self.table = TableTask(config if self.keyed else config.without_key(), context)
        schema = decoder.decode(quarantine.raw_batch(self.table, [_kept(NARROW.change("c", row(1, "x")))]))[0].schema
        self.feed = Feed(self.destination, schema, mode=self.mode, log=LOG, partitions=(0,)).start()

    def park(self, *records: tuple[Record, str | None]) -> list[str]:
        """The records follow one another in the log; their ids."""
        delta = self.feed.take().delta(rejected=[(0, key) for _, key in records])
        kept = [replace(r, key=record.key, value=record.value) for r, (record, _) in zip(delta.rejected, records, strict=True)]
        self.feed.merge(replace(delta, rejected=tuple(kept)))
        return [f"topic-1:0:{r.offset}" for r in kept]

    def reread(self, table: TableId, keys: pa.Table, columns: Sequence[str]) -> Reread:
        ids = keys["id"].to_pylist()
        self.read += ids
        found = [self.rows.get(i) for i in ids]
        rows = {"id": [str(i) for i in ids], "name": [f and f[0] for f in found], "body": [f and f[1] for f in found]}
        return Reread(pa.table(rows).select(list(columns)), pa.array([f is not None for f in found]), 10_000, self.unreadable)

    def fill_of_added_column(self, table: TableId, column: str) -> Fill:
        return UNKNOWN_FILL

    def here(self) -> dict[int, tuple[Any, ...]]:
        schema = self.destination.schemas(self.table.target)[-1]
        rows = self.destination.rows(self.table.target, schema).to_pylist()
        return {r["id"]: tuple(r[name] for name in schema.names if name != "id") for r in rows}

    def states(self) -> dict[str, str]:
        return {r.id: r.state if r.state != "parked" else r.code for r in self.destination.quarantined(self.table.target, most=99)}


def _kept(record: Record) -> Any:
    from cdc_service.ports.destination import Quarantined

    return Quarantined("i", "b", "t", 0, 0, None, "s", "c", "m", "parked", 0, None, None, None, record.key, record.value, ())


def change(op: str, id_: int, name: str, lsn: int, body: str = "b", source: Source = NARROW, **more: Any) -> tuple[Record, str]:
    return source.change(op, row(id_, name, body, **more), lsn=lsn), f'["{id_}"]'


def test_i12_a_key_is_replayed_in_order_over_versions_of_its_schema_whatever_crashes() -> None:
    for crash in range(40):
        world = World()
        ids = world.park(
            change("c", 1, "one", 10),
            change("u", 1, "two", 20, extra="e", source=WIDE),
            change("u", 1, "three", 30, extra="f", source=WIDE),
            change("c", 2, "other", 15), change("d", 2, "other", 40),
        )  # fmt: skip
        calls = [0]

        def step(name: str, calls: list[int] = calls, crash: int = crash) -> None:
            calls[0] += 1
            if calls[0] == crash + 1:
                raise Unavailable(f"crashed at {name}")

        world.destination.step = step
        with contextlib.suppress(Unavailable):
            quarantine.replay(world.table, Asked(by="ann"))
        world.destination.step = lambda name: None
        done = [id_ for id_ in ids[:3] if world.states()[id_] == "replayed"]
        assert done == ids[: len(done)], "what is applied of a key is its beginning"
        assert (len(done) == 0) == (1 not in world.here())
        with contextlib.suppress(CdcError):
            quarantine.replay(world.table, Asked(by="ann"))
        assert world.here() == {1: ("three", "b", "f")}
        assert set(world.states().values()) == {"replayed"}
        if calls[0] <= crash:
            return
    raise AssertionError("it never went without a crash")


def test_i20_what_cannot_be_applied_yet_holds_back_its_key_and_no_other() -> None:
    world = World()
    ids = world.park(
        change("c", 1, "one", 10), (Record(NARROW.key_of({"id": 1}), b"broken"), K1), change("u", 1, "three", 30), change("c", 2, "x", 11)
    )
    done = quarantine.replay(world.table, Asked())
    assert world.here() == {1: ("one", "b"), 2: ("x", "b")}
    assert [world.states()[i] for i in ids] == ["replayed", "not_schema_json", "behind_parked", "replayed"]
    assert (done["replayed"], done["waiting"], [s["code"] for s in done["still"]]) == (2, 2, ["behind_parked", "not_schema_json"])
    done = quarantine.discard(world.table, Asked(id=ids[1], reason="broken", by="ann", and_replay_rest=True))
    assert (done["discarded"], done["replayed"], done["waiting"]) == (1, 1, 0)
    assert world.here()[1] == ("three", "b")


def test_a_record_whose_key_is_known_now_waits_behind_what_is_parked_of_it() -> None:
    world = World()
    unknown, known = world.park((change("u", 1, "late", 30)[0], None), change("c", 1, "one", 10))
    quarantine.replay(world.table, Asked(id=unknown))
    assert world.states() == {unknown: "behind_parked", known: "bad_json"}
    assert world.destination.parked_keys(world.table.target).to_pylist() == [K1]
    quarantine.replay(world.table, Asked())
    assert world.here() == {1: ("late", "b")}, "in the order of the source"


def test_only_what_is_meant_is_decided() -> None:
    world = World()
    ids = world.park(change("c", 1, "one", 10), change("c", 2, "two", 11), change("u", 2, "two!", 12))
    quarantine.replay(world.table, Asked(key=K2))
    assert [world.states()[i] for i in ids] == ["bad_json", "replayed", "replayed"]
    with pytest.raises(CdcError, match="no parked records of this key"):
        quarantine.replay(world.table, Asked(key=K2))
    for wrong in (Asked(key=K1), Asked(reason="why")):
        with pytest.raises(CdcError) as refused:
            quarantine.discard(world.table, wrong)
        assert refused.value.code == "usage", "a reason and a choice are needed"
    assert world.here() == {2: ("two!", "b")}


@pytest.mark.parametrize("together", [True, False])
def test_i11_behind_a_discarded_record_unsent_values_are_read_at_the_source(together: bool) -> None:
    """Not from the row, and not from a record of the same replay that stands before the discarded one."""
    world = World(rows={1: ("now", "new body")})
    world.feed.apply(Change(Op.CREATE, row(1, "stored", "old"), 5))
    first, bad, last = world.park(
        change("u", 1, "before", 10, "older"), change("u", 1, "bad", 20, "new body"), change("u", 1, "after", 30, PLACEHOLDER)
    )
    asked = Asked(id=bad, reason="why", and_replay_rest=together)
    quarantine.discard(world.table, asked)
    if not together:
        assert world.states() == {first: "bad_json", bad: "discarded", last: "bad_json"}
        quarantine.replay(world.table, Asked(key=K1))
    assert world.here() == {1: ("now", "new body")}
    assert world.read == [1]


def test_i11_without_one_they_come_from_the_records_before() -> None:
    world = World()
    world.park(change("u", 1, "before", 10, "sent"), change("u", 1, "after", 30, PLACEHOLDER))
    quarantine.replay(world.table, Asked())
    assert (world.here(), world.read) == ({1: ("after", "sent")}, [])


def test_a_value_that_nobody_can_read_leaves_its_record_parked() -> None:
    world = World(unreadable=("body",))
    ids = world.park(change("c", 2, "fine", 10), change("u", 1, "lacks", 30, PLACEHOLDER), change("u", 1, "whole", 40, "sent"))
    # The last of the key brings everything; alone the one before it lacks a value.
    quarantine.replay(world.table, Asked())
    assert world.here() == {1: ("whole", "sent"), 2: ("fine", "b")}
    more = world.park(change("u", 3, "lacks", 50, PLACEHOLDER), change("c", 4, "fine", 51))
    quarantine.replay(world.table, Asked())
    assert [world.states()[i] for i in (*ids, *more)] == ["replayed"] * 3 + ["unsent_unreadable", "replayed"]
    assert 4 in world.here()


def test_every_change_of_a_log_is_a_row_once() -> None:
    world = World(mode=Mode.APPEND)
    world.park(change("c", 1, "one", 10), change("u", 1, "two", 20), change("c", 1, "one", 10))
    quarantine.replay(world.table, Asked())
    rows = world.destination.rows(world.table.target, world.feed.own).to_pylist()
    assert [(r["_cdc_op"], r["name"]) for r in rows] == [("c", "one"), ("u", "two")]


def test_a_table_without_a_key_is_not_replayed() -> None:
    world = World(mode=Mode.APPEND, keyed=False)
    ids = world.park(change("c", 1, "one", 10))
    with pytest.raises(CdcError) as refused:
        quarantine.replay(world.table, Asked())
    assert refused.value.code == "keyless_replay"
    quarantine.discard(world.table, Asked(id=ids[0], reason="why"))
    assert world.states() == {ids[0]: "discarded"}


def test_a_record_is_shown_with_what_would_become_of_it() -> None:
    world = World()
    ids = world.park(change("c", 1, "one", 10), (Record(NARROW.key_of({"id": 1}), b"\xff"), K1))
    first = quarantine.do("show", [world.table], {"id": ids[0]})
    assert (first["position"], first["now"], [r["id"] for r in first["behind"]]) == ("10", "it can be applied", [ids[1]])
    assert first["value"].startswith('{"schema":')
    second = quarantine.do("show", [world.table], {"id": ids[1]})
    assert (second["position"], second["value"], second["behind"]) == (None, "0xff", [])
    assert second["now"].startswith("not_schema_json: ")
    listed = quarantine.do("list", [world.table], {"most": 1})
    assert ([r["id"] for r in listed["records"]], listed["more"]) == ([ids[0]], True)
    assert listed["tables"] == [{"table": "public.t", "waiting": {"bad_json": 2}, "decided": {}}]
    for wrong in ({"most": 0}, {"state": "gone"}, {"key": 7}, {"most": "5"}):
        with pytest.raises(CdcError):
            quarantine.do("list", [world.table], wrong)
    with pytest.raises(CdcError) as unknown:
        quarantine.do("show", [world.table], {"id": "nothing"})
    assert unknown.value.code == "unknown_record"
