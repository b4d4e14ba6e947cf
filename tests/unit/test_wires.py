"""What a connector is told to write, and what is refused because the service could not read or not trust it."""

from __future__ import annotations

from pathlib import Path

import pytest

from cdc_service.config import Config, load
from cdc_service.core.errors import ConfigError
from connectors.debezium import wires
from connectors.debezium.wires import APICURIO, CONFLUENT, JSON, UNWRAP
from connectors.sources.postgresql.events import PostgresEvents

AS_CONFLUENT = {
    f"{side}.apicurio.registry.{name}": value
    for side in ("key.converter", "value.converter")
    for name, value in {"as-confluent": "true", "headers.enabled": "false", "use-id": "contentId"}.items()
}
FLAT = {
    "transforms": "a, unwrap",
    "transforms.a.type": "Other",
    "transforms.unwrap.type": UNWRAP,
    "transforms.unwrap.add.fields": "op,table,schema,lsn,snapshot",
    "transforms.unwrap.delete.tombstone.handling.mode": "rewrite",
    "transforms.unwrap.replace.null.with.default": "false",
}


def config(folder: Path, registry: str = "", options: str = "") -> Config:
    path = folder / "cdc.yaml"
    path.write_text(
        "pipeline: shop\nsource: {url: postgresql://u@localhost/shop}\nkafka: {bootstrap_servers: 'localhost:1'}\n"
        f"connect: {{url: http://localhost:2, options: {{{options}}}}}\n{registry}\n"
        "destination: {url: 'duckdb:///w.duckdb'}\ntables: {public.a: {}}\n"
    )
    return load(path)


REGISTRY = "schema_registry: {url: 'http://me:secret@localhost:8081', connect_url: 'http://me:secret@registry:8081/x'}"


def both(name: str) -> dict[str, str]:
    return {"key.converter": name, "value.converter": name}


def test_without_a_registry_nothing_is_added(tmp_path: Path) -> None:
    assert wires.added(config(tmp_path)) == {}
    assert wires.added(config(tmp_path, REGISTRY, f"value.converter: {JSON}")) == {}


def test_a_registry_makes_the_connector_write_avro_that_is_exact(tmp_path: Path) -> None:
    made = wires.added(config(tmp_path, REGISTRY))
    for side in ("key.converter", "value.converter"):
        assert made[side] == CONFLUENT
        assert made[f"{side}.schema.registry.url"] == "http://registry:8081/x"
        assert made[f"{side}.ignore.default.for.nullables"] == "true"
    assert made["field.name.adjustment.mode"] == "avro_unicode"
    assert "secret" not in str(made)
    assert wires.is_avro(made)
    assert not wires.writes_defaults_for_null(made)
    wires.require_readable(config(tmp_path, REGISTRY), made, PostgresEvents())


def test_a_chosen_converter_is_kept_and_gets_the_names(tmp_path: Path) -> None:
    made = wires.added(config(tmp_path, REGISTRY, f"value.converter: {APICURIO}"))
    assert made == {**both(APICURIO), **wires.NAMES}
    assert wires.writes_defaults_for_null(made)
    assert wires.writes_defaults_for_null(both(CONFLUENT))
    assert not wires.writes_defaults_for_null({})


@pytest.mark.parametrize(
    ("registry", "connector", "says", "cure"),
    [
        ("", both(CONFLUENT), "does not say where its schemas are", "schema_registry"),
        (REGISTRY, both(CONFLUENT) | {"key.converter": JSON}, "both have to write the same", f"key.converter: {CONFLUENT}"),
        (REGISTRY, both(CONFLUENT) | {"value.converter.connect.meta.data": "false"}, "a date from a number", "connect.meta.data: true"),
        (REGISTRY, both("org.example.Protobuf"), "does not read", JSON),
        (REGISTRY, both(APICURIO), "does not write Confluent's wire format", "apicurio.registry.use-id: contentId"),
        (
            REGISTRY,
            both(APICURIO) | AS_CONFLUENT | {"value.converter.apicurio.registry.as-confluent": "false"},
            "value.converter does not",
            "as-confluent: true",
        ),
        (
            "",
            FLAT | {"transforms.unwrap.add.fields": "op,table,lsn"},
            "put them in order",
            "transforms.unwrap.add.fields: op,source.schema",
        ),
        ("", FLAT | {"transforms.unwrap.delete.tombstone.handling.mode": "drop"}, "what was deleted", "handling.mode: rewrite"),
        ("", {k: v for k, v in FLAT.items() if "replace.null" not in k}, "lack what is needed", "replace.null.with.default: false"),
        ("", FLAT | {"transforms.unwrap.add.fields.prefix": "x_"}, "own names", "remove transforms.unwrap.add.fields.prefix"),
        ("", FLAT | {"transforms.unwrap.add.fields": "op:o,table,schema,lsn,snapshot"}, "", ""),
        ("", FLAT | {"value.converter.schemas.enable": "false"}, "without schemas", "schemas.enable: true"),
    ],
)
def test_what_could_not_be_read_is_refused_with_the_settings(
    tmp_path: Path, registry: str, connector: dict[str, str], says: str, cure: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        wires.require_readable(config(tmp_path, registry), connector, PostgresEvents())
    assert says in caught.value.message
    assert cure in caught.value.hint


@pytest.mark.parametrize(
    "connector", [{}, both(JSON), FLAT, FLAT | {"transforms.unwrap.delete.tombstone.handling.mode": "rewrite-with-tombstone"}]
)
def test_what_can_be_read_is_let_through(tmp_path: Path, connector: dict[str, str]) -> None:
    wires.require_readable(config(tmp_path), connector, PostgresEvents())
    wires.require_readable(config(tmp_path, REGISTRY), connector | both(APICURIO) | AS_CONFLUENT, PostgresEvents())
    assert wires.flattens(connector) == ("transforms" in connector)


def test_the_registry_s_login_never_shows(tmp_path: Path) -> None:
    made = config(tmp_path, "schema_registry: {url: 'http://me:hidden@localhost:8081', options: {basic.auth.user.info: 'a:hidden'}}")
    assert "hidden" not in repr(made) + str(made) + made.model_dump_json()
    assert made.schema_registry.options.reveal() == {"basic.auth.user.info": "a:hidden"}
