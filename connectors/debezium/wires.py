"""Which wire a connector writes: what its configuration says of converters and transforms, what is added to it, and what is refused.

The connector writes, so its configuration decides; the service only reads it. What would lose values or order without a trace is refused
before the connector gets it, with the settings to paste.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from cdc_service.config.models import Config
from cdc_service.core.errors import ConfigError
from cdc_service.ports.events import EventModel
from connectors.debezium.connect import KafkaConnect
from connectors.formats import flat

JSON = "org.apache.kafka.connect.json.JsonConverter"
CONFLUENT = "io.confluent.connect.avro.AvroConverter"
APICURIO = "io.apicurio.registry.utils.converter.AvroConverter"
AVRO = (CONFLUENT, APICURIO)
UNWRAP = "io.debezium.transforms.ExtractNewRecordState"
_SIDES = ("key.converter", "value.converter")
_AS_CONFLUENT = {"as-confluent": "true", "headers.enabled": "false", "use-id": "contentId"}
"""What Apicurio's converter has to be told, or the schema's number is not where readers look for it."""
NAMES = {"schema.name.adjustment.mode": "avro", "field.name.adjustment.mode": "avro_unicode"}
"""Names that Avro cannot spell are spelled so that no two become one; events tell the source's own name beside."""


def is_avro(connector: Mapping[str, str]) -> bool:
    return connector.get("value.converter") in AVRO


def writes_defaults_for_null(connector: Mapping[str, str]) -> bool:
    """Whether the connector's Avro has a column's default where the value is NULL. Apicurio's converter knows no other way."""
    if connector.get("value.converter") == CONFLUENT:
        return connector.get("value.converter.ignore.default.for.nullables") != "true"
    return is_avro(connector)


def added(config: Config) -> dict[str, str]:
    """The connector's settings that follow from ``schema_registry``; connect.options win over them."""
    registry, options = config.schema_registry, config.connect.options
    chosen = str(options.get("value.converter", JSON if registry.url is None else CONFLUENT))
    if chosen not in AVRO:
        return {}
    made = dict(NAMES)
    for side in _SIDES:
        made[side] = chosen
        if chosen == CONFLUENT:
            made[f"{side}.ignore.default.for.nullables"] = "true"
        address = registry.connect_url or registry.url
        if chosen == CONFLUENT and address is not None:
            # Credentials stay here: those of the converter are connect.options' own, as references that the worker resolves.
            made[f"{side}.schema.registry.url"] = address.without_login()
    return made


def require_readable(config: Config, connector: Mapping[str, str], model: EventModel) -> None:
    """Raises ConfigError where the service could not read, or not trust, what a connector with this configuration writes."""
    for message, cure in _problems(config, connector, model):
        raise ConfigError(message, hint=cure)


def _problems(config: Config, connector: Mapping[str, str], model: EventModel) -> Iterator[tuple[str, str]]:
    """(problem, cure)."""
    key, value = (connector.get(side, JSON) for side in _SIDES)
    if value not in (JSON, *AVRO):
        yield f"value.converter={value} is a wire that this service does not read", f"value.converter: {JSON}, {CONFLUENT} or {APICURIO}"
    if key != value:
        yield f"key.converter is {key} and value.converter {value}: both have to write the same", f"connect.options: key.converter: {value}"
    if value in AVRO and connector.get("value.converter.connect.meta.data", "true") != "true":
        yield (
            "without Connect's properties in its schemas, Avro does not tell a date from a number",
            "value.converter.connect.meta.data: true",
        )
    if value in AVRO and config.schema_registry.url is None:
        yield (
            "the connector writes Avro, and the configuration does not say where its schemas are",
            "add at the top:  schema_registry: {url: http://localhost:8081}",
        )
    if value == APICURIO:
        for side in _SIDES:
            wrong = {n: v for n, v in _AS_CONFLUENT.items() if connector.get(f"{side}.apicurio.registry.{n}") != v}
            if wrong:
                lines = "\n".join(f"  {side}.apicurio.registry.{name}: {text}" for name, text in wrong.items())
                yield f"{side} does not write Confluent's wire format", f"connect.options:\n{lines}"
    yield from _flattened(connector, model)


def _flattened(connector: Mapping[str, str], model: EventModel) -> Iterator[tuple[str, str]]:
    aliases = [one.strip() for one in connector.get("transforms", "").split(",") if one.strip()]
    for alias in (one for one in aliases if connector.get(f"transforms.{one}.type") == UNWRAP):
        start = f"transforms.{alias}."
        told = {name.removeprefix(start): text for name, text in connector.items() if name.startswith(start)}
        wrong = {name: text for name, text in flat.settings(model).items() if not _enough(name, told.get(name, ""), text, model)}
        paste = "connect.options:\n" + "\n".join(f"  {start}{name}: {text}" for name, text in wrong.items())
        if wrong:
            yield f"flattened events ({UNWRAP}) lack what is needed to put them in order, or to tell what was deleted", paste
        if told.get("add.fields.prefix", "__") != "__" or any(":" in one for one in told.get("add.fields", "").split(",")):
            yield (
                "flattened events are recognised by Debezium's own names of added fields",
                f"remove {start}add.fields.prefix and new names",
            )
        if connector.get("value.converter", JSON) == JSON and connector.get("value.converter.schemas.enable", "true") == "false":
            yield "flattened events without schemas do not say what their values mean", "value.converter.schemas.enable: true"


def flattens(connector: Mapping[str, str]) -> bool:
    return any(text == UNWRAP for name, text in connector.items() if name.startswith("transforms.") and name.endswith(".type"))


def _enough(name: str, told: str, wanted: str, model: EventModel) -> bool:
    if name == "add.fields":
        return set(flat.needed(model)) <= {one.strip().rpartition(".")[2] for one in told.split(",")}
    return told in ("rewrite", "rewrite-with-tombstone") if name == "delete.tombstone.handling.mode" else told == wanted


def require_converter(connect: KafkaConnect, connector: Mapping[str, str]) -> None:
    """Raises ConfigError where the worker lacks a converter that the configuration names."""
    there = {plugin.class_name for plugin in connect.plugins()} if is_avro(connector) else set()
    for name in sorted({connector[side] for side in _SIDES if connector.get(side) in AVRO} - there):
        raise ConfigError(
            f"the Kafka Connect worker has no converter {name}",
            hint="unpack the converter's archive into a folder of the worker's plugin.path and restart the worker; or let it write JSON:"
            f" connect.options: value.converter: {JSON} (and key.converter alike)",
            code="plugin_missing",
        )
