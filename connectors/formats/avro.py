"""Debezium's Avro in Confluent's wire format: the form of its records (envelope.Form), and the decoder of a connector that writes it.

A record is a zero byte, four bytes with the number of its schema, and one datum. Schemas come from a registry, each asked for once. JSON
with schemas in between is read too, so that a topic may change from one to the other.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from cdc_service.core.errors import Unavailable
from cdc_service.core.types import TableSchema
from cdc_service.ports.events import Codec, EventModel, Unsupported
from connectors.formats.avro_columns import read_block
from connectors.formats.avro_exact import reader
from connectors.formats.avro_schema import Node, connect_schema, parse, value_of
from connectors.formats.blocks import Block, Problem, chosen
from connectors.formats.connect_schema import Field, columns_of
from connectors.formats.debezium_json import JsonForm
from connectors.formats.envelope import EnvelopeDecoder
from connectors.formats.exact import Inexact, exact
from connectors.formats.flat import row_of
from connectors.formats.layout import KeyField, Prefix, Recognised, ValueFields, read_key_schema

HEAD = 5
"""Bytes before the datum."""
PATIENCE_SECONDS = 60.0
"""How long a number that the registry does not know may still come to be known there, before its records are parked."""

Meaning = TypeVar("Meaning")


class Registry(Protocol):
    """A schema registry (connectors.debezium.schema_registry)."""

    def schema(self, number: int) -> tuple[str, tuple[str, ...]] | None:
        """(the schema with this number, the schemas that it refers to, each before those that use it), None where the registry knows no
        such number. Raises Unavailable, and Unsupported for what is no Avro schema."""
        ...


class Schemas:
    """The schemas of a registry by their numbers, each fetched once: a number never gets another schema."""

    def __init__(self, registry: Registry, monotonic: Callable[[], float], patience: float = PATIENCE_SECONDS) -> None:
        self._registry = registry
        self._monotonic = monotonic
        self._patience = patience
        self._known: dict[int, Node | Problem] = {}
        self._missed: dict[int, float] = {}

    def node(self, number: int) -> Node | Problem:
        """The schema, or why its records cannot be read. Raises Unavailable while the registry does not answer, and where it does not know
        the number, for as long as it may have lagged behind."""
        if number not in self._known:
            try:
                found = self._registry.schema(number)
                if found is None:
                    return self._unknown(number)
                self._known[number] = parse(*found)
            except Unsupported as problem:
                self._known[number] = Problem("bad_schema", f"schema {number}: {problem}")
            self._missed.pop(number, None)
        return self._known[number]

    def _unknown(self, number: int) -> Problem:
        waited = self._monotonic() - self._missed.setdefault(number, self._monotonic())
        message = f"the schema registry knows no schema with the number {number}"
        if waited < self._patience:
            hint = f"a registry that lags gets {self._patience:.0f} s, then the records are parked; look for it at /schemas/ids/{number}"
            raise Unavailable(message, hint=hint, code="unknown_schema_id")
        return Problem("unknown_schema_id", message)


class AvroForm:
    """Records in Confluent's wire format, and JSON among them (envelope.Form).

    ``defaults_for_null``: the converter writes a column's default where the value is NULL, so that such values are refused.
    """

    not_value = Problem("not_avro", "the record is no Avro in Confluent's wire format: value.converter has to write the schema's number")
    not_key = Problem("bad_key", "the Kafka key is no Avro in Confluent's wire format: key.converter has to write the schema's number")

    def __init__(self, model: EventModel, schemas: Schemas, *, defaults_for_null: bool) -> None:
        self._model = model
        self._schemas = schemas
        self._defaults_for_null = defaults_for_null
        self._json = JsonForm(model)
        self._values: dict[int, Prefix[ValueFields]] = {}
        self._keys: dict[int, Prefix[tuple[KeyField, ...]]] = {}

    def values(self, records: pa.Array, head: bytes) -> Recognised[ValueFields]:
        if head:
            return self._json.values(records, head)
        return self._recognise(records, self._values, self._value, self._json.values)

    def keys(self, records: pa.Array) -> Recognised[tuple[KeyField, ...]]:
        return self._recognise(records, self._keys, partial(_key, self._model), self._json.keys)

    def _recognise(
        self,
        records: pa.Array,
        known: dict[int, Prefix[Meaning]],
        read: Callable[[Node], Meaning],
        in_json: Callable[[pa.Array], Recognised[Meaning]],
    ) -> Recognised[Meaning]:
        ids = _numbers(records)
        number = np.where(np.array(records.is_null()), -1, -2).astype(np.int32)
        prefixes: list[Prefix[Meaning]] = []
        for one in np.unique(ids[ids >= 0]).tolist():
            if one not in known:
                prefix = self._prefix(one, read)
                if isinstance(prefix.meaning, Problem) and prefix.meaning.code == "unknown_schema_id":
                    prefixes.append(prefix)  # The registry may come to know it.
                    number[ids == one] = len(prefixes) - 1
                    continue
                known[one] = prefix
            prefixes.append(known[one])
            number[ids == one] = len(prefixes) - 1
        if (number == -2).any():
            others = in_json(pc.if_else(pa.array(ids >= 0), pa.scalar(None, pa.binary()), records))
            found = others.number >= 0
            number[found] = others.number[found] + len(prefixes)
            prefixes.extend(others.prefixes)
        return Recognised(number, tuple(prefixes))

    def _prefix(self, number: int, read: Callable[[Node], Meaning]) -> Prefix[Meaning]:
        node = self._schemas.node(number)
        if isinstance(node, Problem):
            return Prefix(HEAD, node)
        try:
            return Prefix(HEAD, read(node), node)
        except Unsupported as problem:
            return Prefix(HEAD, Problem("unsupported_type", str(problem)), node)
        except (KeyError, TypeError, ValueError, AttributeError):
            return Prefix(HEAD, Problem("bad_schema", f"schema {number} is none that Kafka Connect writes"), node)

    def _value(self, node: Node) -> ValueFields:
        """Raises Unsupported."""
        if "connect.name" not in node.about:
            # Without Connect's properties a date is a number like any other.
            raise Unsupported("the Avro schema lacks Connect's properties, which tell types: set value.converter.connect.meta.data=true")
        row, flat = row_of(connect_schema(node), self._model)
        rows = node if flat is not None else next(one.type for one in node.fields if one.name == "after")
        inner = value_of(rows)
        assert inner is not None
        fields = columns_of(row, self._model)
        schemas = [field for field in row["fields"] if any(field["field"] == one.column.name for one in fields)]
        spelled = [one.spelled for one in inner.fields[: len(fields)]]
        as_key = tuple(replace(one, name=name) for one, name in zip(read_key_schema(self._model, row), spelled, strict=True))
        own = tuple(Field(one.column, avro_codec(one.codec, schema)) for one, schema in zip(fields, schemas, strict=True))
        stand_ins = {}
        if self._defaults_for_null:
            stand_ins = {
                one.column.name: _stand_in(one, schema)
                for one, schema in zip(own, schemas, strict=True)
                if one.column.nullable and schema.get("default") is not None
            }
        return ValueFields(own, as_key, flat, tuple(one.codec for one in fields), stand_ins)

    def read(self, records: pa.Array, places: npt.NDArray[np.int64], known: Recognised[Any], schema: pa.Schema) -> Block:
        number = known.number[places]
        own = np.array([-1 if one.node is None else place for place, one in enumerate(known.prefixes)] + [-2])[number]
        # -2: NULL; -1: JSON, which is read in one block; else the prefix's place.
        parts: list[pa.Table] = []
        order: list[npt.NDArray[np.int64]] = []
        problems: dict[int, Problem] = {}
        for one in np.unique(own).tolist():
            mine = np.flatnonzero(own == one)
            if one == -2:
                block = Block(pa.Table.from_arrays([pa.nulls(len(mine), field.type) for field in schema], schema=schema), {})
            elif one == -1:
                block = self._json.read(records, places[mine], known, schema)
            else:
                block = read_block(chosen(records, places[mine]), known.prefixes[one].node, schema, HEAD)
            parts.append(block.rows)
            order.append(mine)
            problems.update({int(mine[place]): problem for place, problem in block.problems.items()})
        if len(parts) == 1:
            return Block(parts[0], problems)
        back = np.argsort(np.concatenate(order), kind="stable") if order else np.zeros(0, np.int64)
        rows = pa.concat_tables([schema.empty_table(), *parts]).take(pa.array(back)).combine_chunks()
        return Block(rows, problems)


class DebeziumAvroDecoder(EnvelopeDecoder):
    """Decodes topics of one Debezium connector that writes Avro; the other arguments are EnvelopeDecoder's and AvroForm's."""

    def __init__(
        self,
        model: EventModel,
        schemas: Schemas,
        *,
        unavailable: str,
        known: Mapping[str, TableSchema] | None = None,
        whole: Collection[str] = (),
        logs: Collection[str] = (),
        left_out: Mapping[str, frozenset[str]] | None = None,
        defaults_for_null: bool = False,
    ) -> None:
        form = AvroForm(model, schemas, defaults_for_null=defaults_for_null)
        super().__init__(model, form, unavailable=unavailable, known=known, whole=whole, logs=logs, left_out=left_out)


class Tail(Protocol):
    def read(self) -> list[bytes]: ...


class InJson:
    """A tail of records that may be Avro, each as JSON. What the registry does not tell yet waits, and with it what follows."""

    def __init__(self, tail: Tail, schemas: Schemas) -> None:
        self._tail = tail
        self._schemas = schemas
        self._waiting: list[bytes] = []

    def read(self) -> list[bytes]:
        self._waiting += self._tail.read()
        found: list[bytes] = []
        while self._waiting:
            try:
                found.append(self._in_json(self._waiting[0]))
            except Unavailable:
                break
            del self._waiting[0]
        return found

    def _in_json(self, value: bytes) -> bytes:
        if len(value) < HEAD or value[0] != 0:
            return value
        node = self._schemas.node(int.from_bytes(value[1:HEAD], "big"))
        try:
            return b"null" if isinstance(node, Problem) else orjson.dumps(reader(node, None)(value[HEAD:]))
        except (Inexact, orjson.JSONEncodeError):
            return b"null"


def _numbers(records: pa.Array) -> npt.NDArray[np.int64]:
    """The number of each record's schema; -1 where the record does not begin as Confluent's wire format does."""
    _, cuts, content = records.buffers()
    offsets = np.frombuffer(cuts, np.int32)[records.offset : records.offset + len(records) + 1].astype(np.int64)
    found = np.full(len(records), -1, np.int64)
    long = np.flatnonzero((np.diff(offsets) >= HEAD) & np.array(records.is_valid()))
    if not len(long) or content is None:
        return found
    data, at = np.frombuffer(content, np.uint8), offsets[:-1][long]
    number = sum(data[at + 1 + place].astype(np.int64) << (8 * (3 - place)) for place in range(4))
    found[long] = np.where(data[at] == 0, number, -1)
    return found


def _key(model: EventModel, node: Node) -> tuple[KeyField, ...]:
    """Raises Unsupported."""
    schema = connect_schema(node)
    fields = zip(read_key_schema(model, schema), node.fields, schema["fields"], strict=True)
    return tuple(replace(one, name=own.spelled, codec=one.codec and avro_codec(one.codec, told)) for one, own, told in fields)


_READ = {"bytes": pa.binary(), "float": pa.float32()}
_CONVERSIONS = {"base64": "plain", "base64_text": "bytes_text", "bits": "bytes_bits", "float32": "plain"}
"""Avro has bytes and single floats of its own; all else stands in it as in JSON."""


def avro_codec(codec: Codec, schema: Mapping[str, Any]) -> Codec:
    """The form in Avro of what stands as ``codec`` in JSON; ``schema`` is Connect's of the same field."""
    if schema["type"] == "array":
        if codec.element is not None:
            element = avro_codec(codec.element, schema["items"])
            return replace(codec, element=element, read=pa.list_(element.read))
        return replace(codec, read=pa.list_(_READ.get(schema["items"]["type"], codec.read.value_type)))
    return replace(codec, name=_CONVERSIONS.get(codec.name, codec.name), read=_READ.get(schema["type"], codec.read))


def _stand_in(one: Field, schema: Mapping[str, Any]) -> Any:
    """A default as it stands on the wire."""
    default = schema["default"]
    try:
        if pa.types.is_binary(one.codec.read):
            return base64.b64decode(default)
        return exact(one.codec.read, default)
    except (Inexact, ValueError, TypeError):
        raise Unsupported(f"column {one.column.name!r}: its default, which the converter writes for NULL, cannot be told") from None
