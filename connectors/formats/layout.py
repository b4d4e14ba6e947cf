"""What a record's schema bytes mean, learned once: prefixes of values and keys, and the layouts that pairs of them make."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cdc_service.core.logical import Kind, LogicalType
from cdc_service.core.types import Column, TableId, TableSchema
from cdc_service.ports.events import Codec, ConnectSchema, EventModel, Unsent, Unsupported
from connectors.formats.avro_schema import Node
from connectors.formats.blocks import Problem
from connectors.formats.connect_schema import Field, columns_of
from connectors.formats.exact import Inexact, parse
from connectors.formats.flat import Flat, row_of

SPLIT = b',"payload":'
"""Ends the schema part. It cannot stand within: no key of Connect's JSON schema is called payload, and in text the quotes are escaped."""
_BEGIN = b'{"schema":'
_PREFIXES_MAX = 256
_ROUNDS_MAX = 16

Meaning = TypeVar("Meaning")


@dataclass(frozen=True, slots=True)
class KeyField:
    """A field of the Kafka key as its schema describes it; ``codec`` is how its values stand there (None: in no form that compares)."""

    name: str
    kind: str
    semantic: str | None
    codec: Codec | None = field(default=None, compare=False)


KeyCodecs = tuple[tuple[str, Codec], ...]
"""The fields of a key, in key order: the name that the key gives each, and how its values stand there."""


@dataclass(frozen=True, slots=True)
class Layout:
    """One version of a table and how its values stand on the wire. Two layouts are the same version when they are equal."""

    columns: tuple[Column, ...]
    codecs: tuple[Codec, ...]
    key: tuple[str, ...]
    spelled: tuple[str, ...] = ()
    """The names of the key's fields as the key itself spells them."""
    stand_ins: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}), hash=False)
    """By column: what the converter writes in the place of NULL, as it stands on the wire. Empty for converters that write NULL."""
    flat: Flat | None = None
    """Where flattened events keep what they say beside the row; None for envelopes."""
    in_json: tuple[Codec, ...] = ()
    """How the same values stand in JSON, where the wire is another: text that is read again at the source is in that form."""
    left_out: frozenset[str] = frozenset()
    """Columns that nobody wants: they stand in the record, and no value of them is read."""

    def __post_init__(self) -> None:
        if not self.spelled:
            object.__setattr__(self, "spelled", self.key)

    @property
    def identity(self) -> tuple[object, ...]:
        """Equal for layouts whose rows may share a batch: defaults, nullability and names of source types may differ."""
        return tuple(c.name for c in self.columns), self.codecs, self.key, self.spelled, self.flat, repr(self.stand_ins), self.left_out

    @property
    def of_text(self) -> Layout:
        """The layout of the same values as text of JSON events."""
        return replace(self, codecs=self.in_json) if self.in_json else self

    def schema(self, table: TableId) -> TableSchema:
        return TableSchema(table, tuple(column for column, _ in self.wanted), self.key)

    @property
    def wanted(self) -> tuple[tuple[Column, Codec], ...]:
        both = tuple(zip(self.columns, self.codecs, strict=True))
        return tuple((column, codec) for column, codec in both if column.name not in self.left_out) if self.left_out else both

    @property
    def key_codecs(self) -> KeyCodecs:
        return tuple((spelled, self.codec(name)) for name, spelled in zip(self.key, self.spelled, strict=True))

    def codec(self, name: str) -> Codec:
        return next(codec for column, codec in zip(self.columns, self.codecs, strict=True) if column.name == name)

    @property
    def ambiguous(self) -> tuple[str, ...]:
        """Columns of which NULL may mean that the value was not sent."""
        return tuple(column.name for column, codec in self.wanted if codec.unsent is Unsent.NULL)

    @property
    def may_be_unsent(self) -> bool:
        return any(codec.unsent is not Unsent.NEVER for _, codec in self.wanted)


def schema_length(value: bytes) -> int:
    """How many bytes at a value's beginning are its schema part; 0 where it has none."""
    return value.find(SPLIT) + len(SPLIT) if value.startswith(_BEGIN) and SPLIT in value else 0


class Prefix(NamedTuple, Generic[Meaning]):
    """What tells a record's schema at its beginning: its length, what it means or why it cannot be used, and in Avro the schema."""

    length: int
    meaning: Meaning | Problem
    node: Node | None = None


@dataclass(frozen=True, slots=True)
class Recognised(Generic[Meaning]):
    """Which prefix each record begins with: a place in ``prefixes``, or -1 (NULL), or -2 (no schema part that can be read)."""

    number: npt.NDArray[np.int32]
    prefixes: tuple[Prefix[Meaning], ...]


class Prefixes(Generic[Meaning]):
    """A bounded memory of schema parts by their bytes; the least recently used leaves first."""

    def __init__(self, read: Callable[[ConnectSchema], Meaning]) -> None:
        self._read = read
        self._known: OrderedDict[bytes, Meaning | Problem] = OrderedDict()

    def recognise(self, records: pa.Array, head: bytes = b"") -> Recognised[Meaning]:
        """For a nullable binary array. Each distinct prefix is compared with all records at once; in a topic with very many of them the
        rest is looked up one by one. ``head``, as ``schema_length`` measures it, stands before all of them."""
        number = np.where(np.array(records.is_null()), -1, -3).astype(np.int32)
        if head:
            meaning = self._meaning(head)
            number[number == -3] = -2 if meaning is None else 0
            return Recognised(number, () if meaning is None else (Prefix(0, meaning),))
        places: dict[bytes, int] = {}
        found: list[Prefix[Meaning]] = []
        for attempt in range(len(records) + 1):
            unknown = np.flatnonzero(number == -3) if attempt else np.flatnonzero(number == -3)[:1]
            if not len(unknown):
                break
            if attempt >= _ROUNDS_MAX:
                for place in unknown:
                    number[place] = self._place(records[int(place)].as_py(), places, found)
                break
            record = records[int(unknown[0])].as_py()
            place = self._place(record, places, found)
            number[unknown[0]] = place
            if place >= 0:
                same = np.array(pc.starts_with(records, pattern=record[: found[place].length]).fill_null(False))
                number[same & (number == -3)] = place
        return Recognised(number, tuple(found))

    def _place(self, record: bytes, places: dict[bytes, int], found: list[Prefix[Meaning]]) -> int:
        cut = record.find(SPLIT)
        if cut < 0:
            return -2
        prefix = record[: cut + len(SPLIT)]
        if prefix not in places:
            meaning = self._meaning(prefix)
            if meaning is None:
                return -2
            places[prefix] = len(found)
            found.append(Prefix(len(prefix), meaning))
        return places[prefix]

    def _meaning(self, prefix: bytes) -> Meaning | Problem | None:
        if prefix in self._known:
            self._known.move_to_end(prefix)
            return self._known[prefix]
        try:
            document = parse(prefix[: -len(SPLIT)] + b"}")
        except Inexact:
            return None
        if not isinstance(document, dict) or list(document) != ["schema"] or not isinstance(document["schema"], dict):
            return None
        try:
            meaning: Meaning | Problem = self._read(document["schema"])
        except Unsupported as problem:
            meaning = Problem("unsupported_type", str(problem))
        except (KeyError, TypeError, ValueError, AttributeError):
            meaning = Problem("bad_schema", "the record's schema part is not what Kafka Connect writes")
        self._known[prefix] = meaning
        if len(self._known) > _PREFIXES_MAX:
            self._known.popitem(last=False)
        return meaning


@dataclass(frozen=True, slots=True)
class ValueFields:
    """What a value's schema says: the row's columns, and the same fields, in the same order, as a key would name them.

    ``flat`` is where a flattened event keeps what it says beside the row, None for an envelope. ``in_json`` and ``stand_ins`` are as
    in Layout."""

    fields: tuple[Field, ...]
    as_key: tuple[KeyField, ...]
    flat: Flat | None = None
    in_json: tuple[Codec, ...] = ()
    stand_ins: Mapping[str, Any] = field(default_factory=dict, hash=False)


def read_value_schema(model: EventModel, schema: ConnectSchema) -> ValueFields:
    """The schema of an envelope or of a flattened event. Raises Unsupported."""
    row, flat = row_of(schema, model)
    return ValueFields(columns_of(row, model), read_key_schema(model, row), flat)


def read_key_schema(model: EventModel, schema: ConnectSchema) -> tuple[KeyField, ...]:
    """The fields of a key, in key order. Raises Unsupported."""
    if schema.get("type") != "struct":
        raise Unsupported("the Kafka key is not a structure: remove transforms that unwrap it")
    return tuple(KeyField(str(one["field"]), str(one["type"]), one.get("name"), _key_codec(model, one)) for one in schema["fields"])


def _key_codec(model: EventModel, schema: ConnectSchema) -> Codec | None:
    try:
        codec = model.codec(schema)
    except Unsupported:
        return None
    return codec if _compares(codec) else None


def _compares(codec: Codec) -> bool:
    return codec.element is None and codec.name not in ("point", "refused")


_OF_SOURCE: dict[tuple[str, Kind], str] = {
    ("plain", Kind.NUMERIC): "numeric",
    ("plain", Kind.DECIMAL): "decimal",
    ("base64", Kind.STRING): "base64_text",
    ("bytes", Kind.STRING): "bytes_text",
}
"""Codecs that the source's type decides, which a key does not tell; by what the key alone looks like."""


def codecs_of_key(key: tuple[KeyField, ...], table: TableSchema | None) -> KeyCodecs:
    """How a key's values stand in it, where no row of this key was read: what its own schema tells, and beside it the types of ``table``,
    where that is known. Empty where a part of the key has no form that compares."""
    types: list[LogicalType | None] = [None] * len(key)
    if table is not None and len(table.key) == len(key):
        of = {column.name: column.type for column in table.columns}
        types = [of[name] for name in table.key]
    codecs = tuple((one.name, _as_type(one.codec, kind)) for one, kind in zip(key, types, strict=True) if one.codec is not None)
    return codecs if len(codecs) == len(key) else ()


def _as_type(codec: Codec, kind: LogicalType | None) -> Codec:
    if kind is None:
        return codec
    alone = "bytes" if pa.types.is_binary(codec.read) else codec.name
    name = _OF_SOURCE.get((alone, kind.kind))
    return codec if name is None or (alone == "plain" and not pa.types.is_string(codec.read)) else replace(codec, name=name, type=kind)


def make_layout(value: ValueFields, key: tuple[KeyField, ...], left_out: frozenset[str] = frozenset()) -> Layout | Problem:
    """The layout of records with this value and this key; ``left_out`` is as in Layout."""
    columns = tuple(field.column for field in value.fields)
    named = {one.name: column.name for one, column in zip(value.as_key, columns, strict=True)}
    names = tuple(named.get(field.name, field.name) for field in key)
    if not set(key) <= set(value.as_key) or len(set(names)) != len(names):
        return Problem("key_schema", "the Kafka key's fields are not columns of the row, or of another type: check message.key.columns")
    spelled = tuple(field.name for field in key)
    codecs = tuple(field.codec for field in value.fields)
    layout = Layout(columns, codecs, names, spelled, value.stand_ins, value.flat, value.in_json, left_out - set(names))
    if len({column.name for column in layout.columns}) != len(layout.columns):
        return Problem("bad_schema", "the record's schema part names a column twice")
    if not all(_compares(layout.codec(name)) for name in names):
        return Problem("unsupported_key", "a key of such a type cannot be compared: choose other key columns (message.key.columns)")
    return layout
