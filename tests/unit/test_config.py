"""Loading the configuration: what is accepted, what is refused and how every mistake is named."""

from __future__ import annotations

import contextlib
import textwrap
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from cdc_service.config import Config, InvalidConfig, json_schema, load
from cdc_service.config.units import parse_seconds, parse_size
from cdc_service.core.errors import ConfigError, Disposition
from cdc_service.core.types import Mode, TableId

WHOLE = """\
pipeline: shop
source:
  url: postgresql://cdc:${SHOP_PASSWORD}@localhost:5432/shop
  connect_host: postgres
  connect_port: 5433
  replica_url: postgresql://cdc:${SHOP_PASSWORD}@replica/shop
kafka: {bootstrap_servers: "localhost:9092", topic_prefix: shops, options: {security.protocol: PLAINTEXT, fetch.wait.max.ms: 100}}
connect: {url: http://localhost:8083, secrets: env, options: {slot.max.retries: 3, "database.sslpassword": "${env:SSL}", cost: $$5}}
destination: {url: duckdb:///warehouse.duckdb, meta_schema: _cdc, options: {}}
defaults: {mode: upsert, target: "{schema}.{table}", keyless: refuse, flush: {rows: 100000, bytes: 64MiB, seconds: 1}}
tables:
  public.customers: {}
  public.products:
  public.order*: {mode: soft_delete, metadata: minimal, flush: {seconds: 500ms}}
limits: {memory: 400MiB, quarantine_rows: 10000, quarantine_share: 0.01}
api: {listen: "127.0.0.1:0", token_file: secrets/token}
state_dir: state
"""
MINIMAL = """\
pipeline: shop
source: {url: "postgresql://cdc@localhost/shop"}
kafka: {bootstrap_servers: "localhost:9092"}
connect: {url: "http://localhost:8083"}
destination: {url: "duckdb:///w.duckdb"}
tables: {public.customers: {}}
"""
ENV = {"SHOP_PASSWORD": "p@ss:w/rd%41"}


def made(folder: Path, text: str, env: dict[str, str] | None = None) -> Config:
    file = folder / "cdc.yaml"
    file.write_text(textwrap.dedent(text), encoding="utf-8")
    return load(file, ENV if env is None else env)


def problems(folder: Path, text: str, env: dict[str, str] | None = None) -> list[str]:
    """What is wrong, without the file's name."""
    with pytest.raises(InvalidConfig) as raised:
        made(folder, text, env)
    name = str(folder / "cdc.yaml") + ":"
    lines = raised.value.message.splitlines()
    assert all(line.startswith(name) for line in lines)
    return [line.removeprefix(name) for line in lines]


def test_the_whole_file_of_the_contract_loads(tmp_path: Path) -> None:
    config = made(tmp_path, WHOLE)
    assert (config.names.connector, config.names.at_source, config.names.group) == ("cdc_shop",) * 3
    assert config.names.topic(TableId("public", "größe x🐘")) == "shops.public.gr__e_x__"
    assert config.source.url.reveal() == "postgresql://cdc:p%40ss%3Aw%2Frd%2541@localhost:5432/shop"
    assert config.source.url.password is not None
    assert config.source.url.password.variable == "SHOP_PASSWORD"
    assert (config.source.connect_host, config.source.connect_port) == ("postgres", 5433)
    assert config.kafka.options.reveal() == {"security.protocol": "PLAINTEXT", "fetch.wait.max.ms": "100"}
    assert config.connect.options.reveal() == {"slot.max.retries": "3", "database.sslpassword": "${env:SSL}", "cost": "$5"}
    assert config.destination.url.reveal() == f"duckdb:///{tmp_path}/warehouse.duckdb"
    assert (config.state_dir, config.api.token_file) == (tmp_path / "state", tmp_path / "secrets/token")
    assert config.tables["public.order*"].mode is Mode.SOFT_DELETE
    assert (config.defaults.flush.bytes, config.limits.memory, config.api.listen) == (64 * 2**20, 400 * 2**20, ("127.0.0.1", 0))


def test_what_is_left_out_has_its_default(tmp_path: Path) -> None:
    config = made(tmp_path, MINIMAL)
    assert (config.topic_prefix, config.state_dir, config.destination.meta_schema) == ("shop", tmp_path / ".cdc", "_cdc")
    assert (config.defaults.mode, config.defaults.keyless, config.connect.secrets) == (Mode.UPSERT, "refuse", "env")
    assert (config.defaults.flush.rows, config.defaults.flush.bytes, config.defaults.flush.seconds) == (100_000, 64 * 2**20, 1.0)
    assert str(config.api.listen) == "127.0.0.1:0"


def test_a_loaded_configuration_is_frozen_through_and_through(tmp_path: Path) -> None:
    config = made(tmp_path, WHOLE)
    sections: list[tuple[BaseModel, str]] = [
        (config, "pipeline"),
        (config.source, "url"),
        (config.defaults.flush, "rows"),
        (config.tables["public.customers"], "mode"),
    ]
    for section, field in sections:
        with pytest.raises(ValidationError):
            setattr(section, field, None)
    with pytest.raises(TypeError):
        config.kafka.options["x"] = "y"  # type: ignore[index]


def test_every_mistake_is_named_at_once_with_line_and_nearest_spelling(tmp_path: Path) -> None:
    text = """\
        pipelin: shop
        source:
          url: postgresql://cdc:${SHOP_PASWORD}@localhost:5432/shop
          conect_host: x
        kafka: {bootstrap_servers: 12}
        connect: {url: http://localhost:8083, secrets: invlne}
        destination:
          url: duckdb:///x.duckdb
          rows: 5
        defaults: {mode: soft-delete, target: "{schema}.{tabel}", flush: {rows: 0, bytes: 64Mib, seconds: soon}}
        tables:
          customers: {}
          public.order*:
            mod: upsert
        limits: {memory: 400XB, quarantine_share: 7}
        api: {listen: localhost}
        """
    assert problems(tmp_path, text) == [
        "1: pipelin: unknown key; did you mean 'pipeline'?",
        "1: pipeline: missing",
        "3: source.url: the environment variable SHOP_PASWORD is not set; did you mean 'SHOP_PASSWORD'?",
        "4: source.conect_host: unknown key; did you mean 'connect_host'?",
        "5: kafka.bootstrap_servers: must be text (put it in quotes)",
        "6: connect.secrets: must be one of env, file, inline; did you mean 'inline'?",
        "9: destination.rows: unknown key here; it belongs to defaults.flush.rows",
        "10: defaults.flush.rows: must be greater than 0",
        "10: defaults.flush.seconds: not a duration such as 1 (seconds), 500ms or 5min",
        "10: defaults.mode: must be one of upsert, soft_delete, append; did you mean 'soft_delete'?",
        "10: defaults.target: may name {schema}, {table} and {pipeline}, and nothing else in braces",
        "12: tables.customers: needs two parts, schema.table",
        "14: tables[public.order*].mod: unknown key; did you mean 'mode'?",
        "15: limits.memory: not a size such as 64MiB or 67108864 (bytes)",
        "15: limits.quarantine_share: must be less than or equal to 1",
        "16: api.listen: not an address such as 127.0.0.1:8080 (port 0 takes a free one)",
    ]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("pipeline: shop", "pipeline: Shop", "1: pipeline: must begin with a-z, hold only a-z, 0-9 and _, and have at most 41 characters"),
        ("pipeline: shop", "pipeline: s" + "x" * 41, "1: pipeline: must begin with a-z"),
        ("pipeline: shop", "pipeline: no", "1: pipeline: must be text (put it in quotes)"),
        ("tables: {public.customers: {}}", "tables: {}", "6: tables: must not be empty"),
        ("tables: {public.customers: {}}", "tables: [public.customers]", "6: tables: must be a mapping of keys to values"),
        (
            "tables: {public.customers: {}}",
            "tables: {public.a: {}, public.a: {}}",
            "6: tables[public.a]: written twice (the first time in line 6)",
        ),
        ("localhost/shop", "localhost", "2: source.url: names no host or no database"),
        ("cdc@localhost/shop", "cdc:a@b@localhost/shop", "2: source.url: an '@' in the user or password must be written %40"),
        ("localhost/shop", "localhost:0/shop", "2: source.url: the port is not a number from 1 to 65535"),
        ("duckdb:///w", "duckdb://w", "5: destination.url: names no file: write duckdb:///warehouse.duckdb (three slashes)"),
        ("cdc@", "${env:A}@", "2: source.url: ${env:A} is resolved by Kafka Connect alone; the service needs the value too: write ${A}"),
        ("cdc@", "${A:-cdc}@", "2: source.url: ${A:-cdc}: defaults are not supported; set the variable and write ${A}"),
        ("cdc@", "${}@", "2: source.url: ${} does not name a variable; write $$ for a dollar sign"),
        (
            "pipeline: shop",
            "pipeline: !!python/name:os.system x",
            "1: pipeline: the tag tag:yaml.org,2002:python/name:os.system is not known",
        ),
        ("pipeline: shop", "pipeline: [shop", "2: not YAML: "),
    ],
)
def test_one_mistake_is_one_line(tmp_path: Path, old: str, new: str, expected: str) -> None:
    found = problems(tmp_path, MINIMAL.replace(old, new))
    assert len(found) == 1
    assert found[0].startswith(expected)


def test_merged_and_aliased_sections_are_read_and_endless_ones_refused(tmp_path: Path) -> None:
    text = MINIMAL.replace("tables: {public.customers: {}}", "tables: {public.a: &a {mode: soft_delete}, public.b: *a, public.c: {<<: *a}}")
    assert {table.mode for table in made(tmp_path, text).tables.values()} == {Mode.SOFT_DELETE}
    assert "nested too deeply" in problems(tmp_path, MINIMAL.replace("tables: {public.customers: {}}", "tables: &a {public.a: *a}"))[0]
    bomb = "a: &a0 [x]\n" + "".join(f"b{i}: &a{i} [*a{i - 1}, *a{i - 1}, *a{i - 1}, *a{i - 1}]\n" for i in range(1, 14))
    assert len(problems(tmp_path, bomb)) > 0


def test_a_file_that_cannot_be_read_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no configuration file") as raised:
        load(tmp_path / "none.yaml", {})
    assert raised.value.disposition is Disposition.CONFIG
    assert "cdc init" in raised.value.hint
    (tmp_path / "latin.yaml").write_bytes(b"pipeline: shop\n# \xe9\n")
    with pytest.raises(InvalidConfig, match="2: not UTF-8 text"):
        load(tmp_path / "latin.yaml", {})
    with pytest.raises(ConfigError, match="cannot read"):
        load(tmp_path, {})


def test_the_file_is_found_by_option_then_variable_then_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two", "cdc"):
        (tmp_path / f"{name}.yaml").write_text(MINIMAL.replace("shop\n", f"{name}\n", 1))
    monkeypatch.chdir(tmp_path)
    variable = {"CDC_CONFIG": "two.yaml"}
    assert [load("one.yaml", variable).pipeline, load(None, variable).pipeline, load(None, {}).pipeline] == ["one", "two", "cdc"]


def test_variables_fill_values_and_never_structure(tmp_path: Path) -> None:
    text = MINIMAL.replace('bootstrap_servers: "localhost:9092"', "bootstrap_servers: '${A}-$$-$$${A}'").replace(
        "pipeline: shop", "pipeline: ${P}"
    )
    config = made(tmp_path, text, {"A": "x, y: [z] ${A} # $$", "P": "other"})
    assert config.kafka.bootstrap_servers == "x, y: [z] ${A} # $$-$-$x, y: [z] ${A} # $$"
    assert config.pipeline == "other"


@pytest.mark.parametrize(
    ("text", "expected"),
    [("64MiB", 64 * 2**20), ("1 KiB", 1024), ("1.5K", 1536), ("2MB", 2_000_000), ("10", 10), (7, 7), ("3gib", 3 * 2**30), ("12B", 12)],
)
def test_sizes(text: object, expected: int) -> None:
    assert parse_size(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [(1, 1.0), (0.25, 0.25), ("500ms", 0.5), ("2 min", 120.0), ("1h", 3600.0), ("1d", 86400.0), ("3", 3.0), ("90s", 90.0)],
)
def test_durations(text: object, expected: float) -> None:
    assert parse_seconds(text) == pytest.approx(expected)


@given(st.one_of(st.text(max_size=8), st.booleans(), st.none(), st.lists(st.integers(), max_size=2), st.floats()))
def test_sizes_and_durations_are_numbers_or_refused(value: object) -> None:
    for parse in (parse_size, parse_seconds):
        with contextlib.suppress(ValueError):
            assert 0 <= parse(value) < float("inf")


def test_the_schema_describes_every_key() -> None:
    schema = json_schema()
    assert schema["required"] == ["pipeline", "source", "destination", "tables"]
    sections = {"Config": schema, **{name: part for name, part in schema["$defs"].items() if "properties" in part}}
    assert len(sections) == 14
    for name, section in sections.items():
        assert section["additionalProperties"] is False, name
        for key, field in section["properties"].items():
            target = schema["$defs"].get(field.get("$ref", "").rpartition("/")[2], {})
            assert field.get("description") or target.get("description"), f"{name}.{key}"
    assert set(schema["properties"]) == {field.alias or name for name, field in Config.model_fields.items()}


LOADED = """
pipeline: shop
source: {url: "sqlite:///shop.db"}
destination: {url: "duckdb:///w.duckdb"}
tables:
  main.items: {load: {cursor: updated_at}}
"""


def test_a_pipeline_whose_tables_are_all_loaded_needs_no_kafka_and_no_connect(tmp_path: Path) -> None:
    config = made(tmp_path, LOADED)
    assert not config.captures
    assert config.source.url.database == str(tmp_path / "shop.db")
    assert config.tables["main.items"].load is not None
    assert config.topic_prefix == "shop"
    for section in ("kafka", "connect"):
        with pytest.raises(ConfigError, match=f"has no section '{section}'") as refused:
            getattr(config, section)
        assert "cdc load" in refused.value.hint


def test_a_captured_table_without_kafka_is_refused_with_its_line_and_the_cure(tmp_path: Path) -> None:
    found = problems(tmp_path, LOADED + "  main.orders: {}\n")
    where = "main.orders (line 7) is captured from the source's log"
    assert found == [
        f"2: connect: missing: {where}; add connect: {{url: http://host:8083}}, or load the table by queries: load: {{cursor: ...}}",
        f"2: kafka: missing: {where}; add kafka: {{bootstrap_servers: host:9092}}, or load the table by queries: load: {{cursor: ...}}",
    ]


@pytest.mark.parametrize(
    ("load_", "why"),
    [
        ("{}", "names no cursor"),
        ("{by: full, cursor: x}", "takes no cursor"),
        ("{by: ful}", "must be one of cursor, full"),
        ("{cursor: x, schedule: often}", "Wrong number of fields"),
        ("{cursor: x, deletes: always}", "must be one of never, compare"),
    ],
)
def test_what_a_load_cannot_be(tmp_path: Path, load_: str, why: str) -> None:
    (found,) = problems(tmp_path, LOADED.replace("{cursor: updated_at}", load_))
    assert why in found
    assert found.startswith("6: tables[main.items].load")
