"""The configured tables met with a source's: which are taken, where they go, and every way in which that is unclear."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc_service.config import Config, InvalidConfig, TableConfig, load, resolve
from cdc_service.config.patterns import parse_pattern, render_target
from cdc_service.config.problems import unknown_table
from cdc_service.config.resolve import taken_as_log
from cdc_service.core.types import Mode, TableId

SHOP = [TableId("public", name) for name in ("customers", "orders", "order_items", "Orders", "a.b")] + [TableId("other", "orders")]
HEAD = """\
pipeline: shop
source: {url: "postgresql://cdc@localhost/shop"}
kafka: {bootstrap_servers: "localhost:9092"}
connect: {url: "http://localhost:8083"}
destination: {url: "duckdb:///w.duckdb"}
defaults: {flush: {rows: 7, seconds: 3}}
tables:
"""
names = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=12)


def config(folder: Path, *tables: str, defaults: str = "flush: {rows: 7, seconds: 3}") -> Config:
    text = HEAD.replace("flush: {rows: 7, seconds: 3}", defaults) + "".join(f"  {line}\n" for line in tables)
    (folder / "cdc.yaml").write_text(text, encoding="utf-8")
    return load(folder / "cdc.yaml", {})


def taken(found: list[TableConfig]) -> dict[str, str]:
    return {str(table.source): str(table.target) for table in found}


def refused(folder: Path, *tables: str, source: list[TableId] = SHOP, lower: bool = False, defaults: str = "mode: upsert") -> list[str]:
    with pytest.raises(InvalidConfig) as raised:
        resolve(config(folder, *tables, defaults=defaults), source, str.lower if lower else str)
    return [line.partition("cdc.yaml:")[2] for line in raised.value.message.splitlines()]


def test_an_exact_name_beats_a_pattern(tmp_path: Path) -> None:
    found = resolve(config(tmp_path, "public.order*: {mode: soft_delete, flush: {rows: 9}}", "public.orders: {metadata: minimal}"), SHOP)
    assert taken(found) == {"public.order_items": "public.order_items", "public.orders": "public.orders"}
    items, orders = found
    assert (items.target.mode, items.flush.rows, items.flush.seconds, items.target.full_metadata) == (Mode.SOFT_DELETE, 9, 3.0, True)
    assert (orders.target.mode, orders.flush.rows, orders.target.full_metadata, orders.key) == (Mode.UPSERT, 7, False, "public.orders")
    assert orders.topic == "shop.public.orders"


def test_tables_without_a_key(tmp_path: Path) -> None:
    bare = {TableId("public", "orders"), TableId("public", "order_items")}
    found = resolve(config(tmp_path, "public.order*: {keyless: append}", "public.orders: {}"), SHOP, keyless=bare)
    assert {t.source.name: (t.target.mode, t.keyed) for t in found} == {
        "order_items": (Mode.APPEND, False),
        "orders": (Mode.UPSERT, False),
    }
    made = config(tmp_path, "public.order*: {keyless: append}", "public.orders: {}", "public.o?: {mode: append}", defaults="mode: upsert")
    taken_so = {name for name in ("order_items", "orders", "ox", "other") if taken_as_log(made, TableId("public", name))}
    assert taken_so == {"order_items", "ox"}
    assert taken_as_log(config(tmp_path, "public.orders: {}", defaults="keyless: append"), TableId("public", "orders"))


def test_names_are_the_sources_own_and_quotes_hold_dots(tmp_path: Path) -> None:
    keys = ("public.Orders:", "'public.\"a.b\"':", "'\"oth*r\".x*': {}", "other.*:")
    assert taken(resolve(config(tmp_path, *keys), [*SHOP, TableId("oth*r", "xy")])) == {
        "other.orders": "other.orders",
        '"oth*r".xy': '"oth*r".xy',
        "public.Orders": "public.Orders",
        'public."a.b"': 'public."a.b"',
    }


def test_a_star_is_every_table(tmp_path: Path) -> None:
    assert [table.source for table in resolve(config(tmp_path, "'*': {}"), SHOP)] == sorted(SHOP)


def test_what_matches_nothing_is_named_with_the_nearest(tmp_path: Path) -> None:
    assert refused(tmp_path, "public.custommers: {}", "publik.order*: {}", "zzz.qqqqqqqq: {}") == [
        "8: tables[public.custommers]: the source has no such table; did you mean 'public.customers'?",
        "9: tables[publik.order*]: the pattern matches no table of the source; did you mean 'public.orders'?",
        "10: tables[zzz.qqqqqqqq]: the source has no such table",
    ]


def test_two_patterns_on_one_table_are_refused(tmp_path: Path) -> None:
    found = refused(tmp_path, "public.order*: {}", "'*.orders': {}")
    assert found == [
        "9: tables[*.orders]: matches public.orders, and so does 'public.order*' (line 8): name the table itself, or narrow one"
    ]
    assert len(refused(tmp_path, "public.orders: {}", "'\"public\".orders': {}")) == 1


def test_two_tables_with_one_target_are_refused(tmp_path: Path) -> None:
    assert resolve(config(tmp_path, "public.?rders: {}"), SHOP)
    assert refused(tmp_path, "public.?rders: {}", lower=True) == [
        "8: tables[public.?rders]: public.Orders and public.orders have one target, public.orders: give one of them another 'target'"
    ]
    assert len(refused(tmp_path, "public.order*: {}", defaults="target: raw.all")) == 1
    renamed = resolve(config(tmp_path, "public.orders: {}", "public.Orders: {target: raw.OrdersTwo}"), SHOP, str.lower)
    assert taken(renamed) == {"public.Orders": "raw.orderstwo", "public.orders": "public.orders"}


def test_two_tables_with_one_topic_are_refused(tmp_path: Path) -> None:
    twins = [TableId("public", "a b"), TableId("public", "a_b"), TableId("public_a", "b"), TableId("public", "ab")]
    found = refused(tmp_path, "'*': {}", source=twins)
    assert [line.partition(" have one ")[2].partition(":")[0] for line in found] == ["topic, shop.public.a_b", "topic, shop.public_a.b"]


@given(schema=names, name=names)
def test_every_name_can_be_spelled_and_means_itself_alone(schema: str, name: str) -> None:
    pattern = parse_pattern(str(TableId(schema, name)))
    assert pattern.exact == (schema, name)
    assert pattern.matches(TableId(schema, name))
    assert not pattern.matches(TableId(schema, name + "x"))


@given(schema=names, name=names)
def test_a_target_has_two_parts_whatever_the_names_hold(schema: str, name: str) -> None:
    assert render_target("{schema}.{table}", "p", schema, name) == (schema, name)
    assert render_target("raw.{pipeline}_{schema}_{table}", "p", schema, name) == ("raw", f"p_{schema}_{name}")


@pytest.mark.parametrize("text", ["", "a", "a.b.c", "a..b", ".a", "a.", '"a.b', '"a"b.c', 'a"b.c', '"".x'])
def test_what_is_no_name_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"not a name|two parts"):
        parse_pattern(text)


@pytest.mark.parametrize("template", ["{schema}", "{0}.{1}", "{schema.x}.y", "a.{table!z}", "a.{table", "{x}.y", "a.b.c"])
def test_what_is_no_target_is_refused(template: str) -> None:
    with pytest.raises(ValueError, match=r"two parts|nothing else in braces|not a name"):
        render_target(template, "p", "s", "t")


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("public.ordrs", "did you mean public.orders?"),
        ("Public.Customers", "did you mean public.customers?"),
        ("zzz", 'its tables: public.customers, public.orders, public.order_items, public.Orders, public."a.b", other.orders'),
    ],
)
def test_a_table_that_is_none_of_the_pipelines_has_the_nearest_as_its_cure(text: str, hint: str) -> None:
    error = unknown_table(text, SHOP)
    assert (error.code, error.hint) == ("unknown_table", hint)
    assert text in error.message
