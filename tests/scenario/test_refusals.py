"""What can never work is said before the first event, by check, plan and register alike, and each cure is followed as it is printed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from cdc_service.config import Config, load
from cdc_service.core.errors import ConfigError
from cdc_service.ports.source import Finding
from cdc_service.runtime.wiring import registration as app
from deploy.local.stack import Stack
from tests.conftest import PgDatabase
from tests.scenario.test_check import failures
from tests.support.registration import Pipeline, eventually, pipeline
from tests.support.warehouses import Warehouse, warehouse


@pytest.fixture
def owner(stack: Stack, pg_database: PgDatabase, tmp_path: Path) -> Iterator[Pipeline]:
    with pipeline(stack, pg_database, tmp_path, role="postgres") as made:
        made.execute("CREATE TABLE fine(id int PRIMARY KEY, v text)")
        yield made


@pytest.fixture(params=["duckdb", "postgresql"])
def into(request: pytest.FixtureRequest, stack: Stack, tmp_path: Path) -> Iterator[Warehouse]:
    with warehouse(request.param, stack, tmp_path) as made:
        yield made


def configured(on: Pipeline, into: str, monkeypatch: pytest.MonkeyPatch, tables: str = "public.*: {}", options: str = "") -> Config:
    """The pipeline's file with this warehouse, these tables and these options of the connector."""
    monkeypatch.setenv("CDC_PASSWORD", on.stack.password("cdc"))
    text = on.config.file.read_text().partition("destination:")[0]
    file = on.config.file.with_name("other.yaml")
    connect = f'connect:\n  url: "{on.stack.connect_url}"\n  secrets: inline\n  options:\n    snapshot.fetch.size: 100\n{options}'
    file.write_text(f"{text}destination: {{url: '{into}'}}\ntables:\n  {tables}\n{connect}\n")
    return load(file)


def excluded(*cures: str) -> str:
    """The lines that cures print for the configuration, as one line there: each behind the last one, with a comma."""
    lines = [line for cure in cures for line in cure.splitlines() if line.startswith("column.exclude.list: ")]
    assert len(lines) == len(cures), cures
    first, *rest = (line.removeprefix("column.exclude.list: ") for line in lines)
    return f"    column.exclude.list: {','.join([first.rstrip(chr(39)), *(text.strip(chr(39)) for text in rest)])}'"


def refused(config: Config, table: str) -> list[Finding]:
    """What check says of the table, which plan and register say too; the others stay in the plan."""
    name = f"table public.{table}"
    found = [f for f in app.check(config) if f.failed and f.name == name]
    plan = app.plan(config)
    assert {f.message for f in found} >= {f.message for f in plan.refused} != set()
    assert {f.name for f in plan.refused} == {name}
    assert f"events of public.{table}" not in {step.why for step in plan.steps}
    assert "events of public.fine" in {step.why for step in plan.steps}
    with pytest.raises(ConfigError) as caught:
        app.register(config, plan, lambda _: None)
    assert caught.value.code == "table_refused"
    assert all(f.message in caught.value.message for f in plan.refused)
    return found


CLASHES = {
    "own": ('CREATE TABLE bad(id int PRIMARY KEY, v int, "_cdc_gen" int)', ["_cdc_gen has the same name as a column of this service"]),
    "both": ('CREATE TABLE bad(id int PRIMARY KEY, v int, "_cdc_op" int, _cdc_seq int)', ["column _cdc_op has", "column _cdc_seq has"]),
}
FOLDED = ('CREATE TABLE bad(id int PRIMARY KEY, v int, "_CDC_Gen" int)', ["_CDC_Gen has the same name as a column of this service"])


@pytest.mark.parametrize("case", list(CLASHES))
def test_names_of_the_services_own_columns(owner: Pipeline, into: Warehouse, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    ddl, said = CLASHES[case]
    clash(owner, into, monkeypatch, ddl, said)


def test_names_of_the_services_own_columns_in_another_case(owner: Pipeline, into: Warehouse, monkeypatch: pytest.MonkeyPatch) -> None:
    ddl, said = FOLDED
    if into.url.startswith("duckdb"):
        clash(owner, into, monkeypatch, ddl, said)
    else:
        owner.execute(ddl)
        assert failures(app.check(configured(owner, into.url, monkeypatch))) == []


def clash(owner: Pipeline, into: Warehouse, monkeypatch: pytest.MonkeyPatch, ddl: str, said: list[str]) -> None:
    """The table is refused for each of its columns, and what the cures print heals it: what is left out is these columns alone."""
    owner.execute(f"{ddl}; INSERT INTO bad(id, v) VALUES (1, 2)")
    found = refused(configured(owner, into.url, monkeypatch), "bad")
    assert len(found) == len(said)
    assert all(one in f.message for one, f in zip(said, found, strict=True))
    config = configured(owner, into.url, monkeypatch, options=excluded(*(f.cure for f in found)))
    assert failures(app.check(config)) == []
    plan = app.plan(config)
    assert plan.refused == ()
    app.register(config, plan, owner.said.append)
    assert owner.await_rows("bad", {1}) == {1: {"id": 1, "v": 2}}


def test_columns_at_which_the_connector_ends_for_all_tables(owner: Pipeline, into: Warehouse, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names that differ by case only: whether one of them is left out or not, so that the only cure is another name."""
    owner.execute('CREATE TABLE bad(id int PRIMARY KEY, v int, "V" int); INSERT INTO bad VALUES (1, 2, 3)')
    for options in ("", r"    column.exclude.list: '(?-i:public\.bad\.V)'"):
        (said,) = refused(configured(owner, into.url, monkeypatch, options=options), "bad")
        assert "names differ by case only (v, V)" in said.message
    owner.execute(said.cure.replace("...", "other"))
    config = configured(owner, into.url, monkeypatch)
    assert failures(app.check(config)) == []
    app.register(config, app.plan(config), owner.said.append)
    assert owner.await_rows("bad", {1}) == {1: {"id": 1, "v": 2, "other": 3}}


def test_what_postgresql_cannot_hold(owner: Pipeline, stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    many = ", ".join(f"c{n} int" for n in range(1583))
    owner.execute(f"CREATE TABLE keyed(k jsonb PRIMARY KEY); CREATE TABLE wide(id int PRIMARY KEY, {many})")
    others = "public.fine: {}\n  "
    with warehouse("postgresql", stack, tmp_path) as into:

        def found(table: str, more: str = "") -> str:
            config = configured(owner, into.url, monkeypatch, f"{others}public.{table}: {{{more}}}")
            return refused(config, table)[0].message

        assert "does not compare JSON" in found("keyed")
        assert "at most 1600 columns" in found("wide")
        owner.execute("CREATE TABLE a(id int PRIMARY KEY)")
        long = "x" * 64
        assert "cuts names after 63 bytes" in found("a", f"target: mart.{long}")
        assert "cuts names after 63 bytes" in found("a", f"target: '{long}.{{table}}'")
        assert "is PostgreSQL's own" in found("a", "target: pg_mart.a")
        assert "this service's own" in found("a", "target: _cdc.checkpoint")
        owner.execute("ALTER TABLE wide DROP COLUMN c0")
        fits = configured(owner, into.url, monkeypatch, f"{others}public.wide: {{}}\n  public.a: {{target: {'x' * 63}.a}}")
        assert failures(app.check(fits)) == []
    config = configured(owner, f"duckdb:///{tmp_path}/other.duckdb", monkeypatch, f"{others}public.keyed: {{}}\n  public.wide: {{}}")
    assert failures(app.check(config)) == []


@pytest.mark.parametrize(
    ("file", "target"),
    [("public.duckdb", ""), ("Public.old.db", ""), ("w.duckdb", "temp.a"), ("w.duckdb", "pg_catalog.a"), ("w.duckdb", "_CDC.batch")],
)
def test_what_duckdb_cannot_tell_apart(owner: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, target: str) -> None:
    owner.execute("CREATE TABLE a(id int PRIMARY KEY)")
    tables = f"public.fine: {{target: mart.fine}}\n  public.a: {{{f'target: {target}' if target else ''}}}"
    (said,) = refused(configured(owner, f"duckdb:///{tmp_path}/{file}", monkeypatch, tables), "a")
    assert "another target" in said.cure
    healed = configured(owner, f"duckdb:///{tmp_path}/{file}", monkeypatch, tables.replace("public.a: {", "public.a: {target: mart.a} #"))
    assert failures(app.check(healed)) == []


def test_a_column_that_the_connector_cannot_carry_is_left_out_as_the_cure_says(owner: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    name = 'it\'s $odd, (a.b) "c" \\d'
    owner.execute(
        f'CREATE TABLE "odd.T"(id int PRIMARY KEY, "{name.replace(chr(34), chr(34) * 2)}" bit varying(153), wide bit(153));'
        'CREATE TABLE "odd.t"(id int PRIMARY KEY, wide int); INSERT INTO "odd.T" VALUES (1); INSERT INTO "odd.t" VALUES (1, 2)'
    )
    tables = "public.fine: {}\n  'public.\"odd.T\"': {}\n  'public.\"odd.t\"': {target: public.other}"
    config = configured(owner, "duckdb:///w.duckdb", monkeypatch, tables)
    found = [f for f in app.check(config) if f.failed]
    assert len(found) == 2
    assert len({f.message for f in found}) == 2
    assert all("cannot be told from NULL" in f.message for f in found)
    healed = configured(owner, "duckdb:///w.duckdb", monkeypatch, tables, excluded(*(f.cure for f in found)))
    assert failures(app.check(healed)) == []
    app.register(healed, app.plan(healed), owner.said.append)
    assert owner.await_rows("odd.T", {1}) == {1: {"id": 1}}
    assert owner.await_rows("odd.t", {1}) == {1: {"id": 1, "wide": 2}}, "a name that differs by case only is another one"
    # Or with the statement that stands first.
    owner.execute(found[0].cure.partition("  -- or")[0])
    assert failures(app.check(config)) == []


def test_bits_are_refused_by_the_bound_beyond_which_postgresql_may_not_send_them(owner: Pipeline) -> None:
    """The longest that is always sent, and one bit more, in the rows that would have it moved away if any have."""
    wide = ", ".join(f"x{n} bigint DEFAULT {n}" for n in range(260))
    owner.execute("CREATE DOMAIN short AS bit(152); CREATE DOMAIN long AS bit(153)")
    sizes = {"bit": 1, "bit(152)": 152, "bit varying(152)": 152, "short": 152, "bit(153)": 153, "bit varying(153)": 153, "long": 153}
    sizes |= {"bit varying": 153}
    for number, (type_, bits) in enumerate(sizes.items()):
        name = f"b{number}"
        owner.execute(f"CREATE TABLE {name}(id int PRIMARY KEY, v int, b {type_}, t text, {wide})")
        owner.execute(f"INSERT INTO {name}(id, b) VALUES (1, B'{'10' * (bits // 2)}{'1' * (bits % 2)}')")
        with psycopg.connect(owner.database.url) as connection:
            place = connection.execute("SELECT reltoastrelid::regclass::text FROM pg_class WHERE relname = %s", [name]).fetchone()
            assert place is not None
            chunks = connection.execute(f"SELECT count(*) FROM {place[0]}".encode()).fetchone()
            assert chunks is not None
        (table,) = (t for t in owner.source.tables() if t.table.name == name)
        refusal = owner.source.refusal(table)
        assert (chunks[0] > 0, refusal is not None) == (bits > 152, bits > 152), type_


def test_bits_that_are_always_sent_arrive_with_the_update_of_another_column(owner: Pipeline) -> None:
    wide = ", ".join(f"x{n} bigint DEFAULT {n}" for n in range(260))
    owner.execute(f"CREATE TABLE a(id int PRIMARY KEY, v int, b bit(152), {wide}); INSERT INTO a(id, b) VALUES (1, B'{'10' * 76}')")
    owner.register("a")
    before = owner.await_rows("a", {1})[1]["b"]
    owner.execute("UPDATE a SET v = 2")
    topic = f"{owner.config.topic_prefix}.public.a"
    after = eventually("the update", lambda: [v["after"] for _, v, _ in owner.events(topic) if v and v["op"] == "u"])
    assert (after[0]["v"], after[0]["b"]) == (2, before)


def test_keys_of_the_configuration_that_mean_nothing_hide_nothing_else(owner: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    owner.execute("CREATE TABLE keyless(v int)")
    config = configured(owner, "duckdb:///w.duckdb", monkeypatch, "public.*: {}\n  public.fime: {}\n  zzz.qqqqqqqq*: {}")
    found = app.check(config)
    missing = [f for f in found if f.name == "tables" and f.failed]
    assert ["did you mean 'public.fine'" in f.message for f in missing] == [True, False]
    assert "write it as public.fine" in missing[0].cure
    assert any(f.failed and f.name == "table public.keyless" for f in found)
    assert {"kafka", "connect", "destination"} <= {f.name for f in found if f.ok}
    plan = app.plan(config)
    assert [f.name for f in plan.refused] == ["table public.keyless", "tables", "tables"]
    assert "events of public.fine" in {step.why for step in plan.steps}


def test_both_halves_of_what_a_log_of_changes_takes_are_said_at_once(owner: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    owner.execute('CREATE TABLE "Bare"(v int)')
    config = configured(owner, "duckdb:///w.duckdb", monkeypatch)
    (found,) = (f for f in app.check(config) if f.failed)
    _, said, statement = found.cure.splitlines()
    owner.execute(statement)
    key = said.partition("tables: ")[2].partition(", and at")[0]
    assert failures(app.check(configured(owner, "duckdb:///w.duckdb", monkeypatch, f"public.fine: {{}}\n  {key}"))) == []


def test_no_two_findings_are_told_in_the_same_words(
    stack: Stack, pg_database: PgDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever has to run several statements is told of each what it is for; and long lists are cut for people, not for programs."""
    with pipeline(stack, pg_database, tmp_path) as reader:
        monkeypatch.setenv("CDC_PASSWORD", stack.password("cdc"))
        for number in range(30):
            reader.execute(f"CREATE TABLE t{number}(id int PRIMARY KEY)")
        found = app.check(reader.config)
        said = [(f.name, f.message) for f in found]
        assert len(said) == len(set(said))
        assert len([f for f in found if f.name == "publication"]) == 3
        (topics,) = (f for f in found if f.name == "topics")
        assert len(topics.names) > 30
        assert len(topics.message) < 120
        assert all(len(f.message) < 250 for f in found)
