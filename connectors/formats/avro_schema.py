"""Avro schemas: text from a registry -> a checked tree of types, and the Connect schema that it was made from.

The source of the format is the Avro specification 1.11; names of properties are those of Kafka Connect's AvroData (connect.name,
connect.type, connect.parameters, connect.default). A schema that this reader will not take is refused with the reason, before any byte
is read with it: recursion, elements that take no bytes, sizes beyond all measure.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from cdc_service.ports.events import Unsupported

PRIMITIVES = frozenset({"null", "boolean", "int", "long", "float", "double", "bytes", "string"})
SIZE_MAX = 50_000
"""Types in a schema, counted wherever they are used: a record type that is named twice is read twice."""
DEPTH_MAX = 40
COLUMN_NAME = "__debezium.source.column.name"


@dataclass(frozen=True, slots=True)
class Node:
    """One type. ``fields`` are a record's, ``branches`` a union's, ``items`` the elements of an array or the values of a map.

    ``size`` counts the types in it, ``least`` the fewest bytes that a value takes. ``about`` holds the properties beside the type's own.
    """

    kind: str
    name: str = ""
    fields: tuple[NamedNode, ...] = ()
    branches: tuple[Node, ...] = ()
    items: Node | None = None
    symbols: tuple[str, ...] = ()
    width: int = 0
    size: int = 1
    least: int = 0
    about: Mapping[str, Any] = field(default_factory=dict, compare=False, hash=False)


@dataclass(frozen=True, slots=True)
class NamedNode:
    """A field of a record: ``spelled`` is its name in the Avro schema, ``name`` what this service calls it."""

    spelled: str
    name: str
    type: Node
    default: Any = None


def parse(text: str, references: Sequence[str] = ()) -> Node:
    """The schema in ``text``; ``references`` are the schemas whose names it uses, each before those that use it. Raises Unsupported."""
    named: dict[str, Node] = {}
    try:
        for one in references:
            _node(json.loads(one), named, "", 0)
        return _node(json.loads(text), named, "", 0)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as problem:
        if isinstance(problem, Unsupported):
            raise
        raise Unsupported("the schema in the registry is no Avro schema") from None


def _node(schema: Any, named: dict[str, Node], space: str, depth: int) -> Node:
    if depth > DEPTH_MAX:
        raise Unsupported("the Avro schema is nested too deeply")
    if isinstance(schema, str):
        return _by_name(schema, named, space)
    if isinstance(schema, list):
        return _union([_node(one, named, space, depth + 1) for one in schema])
    kind = schema["type"]
    if isinstance(kind, (dict, list)):
        return _node(kind, named, space, depth + 1)
    about = {key: value for key, value in schema.items() if key not in ("type", "fields", "items", "values", "symbols", "doc")}
    if kind in ("record", "error"):
        return _record(schema, named, space, depth, about)
    if kind == "enum":
        made = Node("enum", symbols=tuple(str(symbol) for symbol in schema["symbols"]), least=1, about=about)
        return _keep(schema, made, named, space)
    if kind == "fixed":
        width = int(schema["size"])
        if width < 0:
            raise Unsupported("the Avro schema has a fixed type of less than no bytes")
        return _keep(schema, Node("fixed", width=width, least=width, about=about), named, space)
    if kind in ("array", "map"):
        items = _node(schema["items" if kind == "array" else "values"], named, space, depth + 1)
        if items.least == 0 and kind == "array":
            raise Unsupported("the Avro schema has an array of elements that take no bytes: their number has no bound")
        return _sized(Node(kind, items=items, least=1, size=1 + items.size, about=about))
    return replace(_by_name(kind, named, space), about=about) if kind in PRIMITIVES else _by_name(kind, named, space)


def _by_name(name: str, named: Mapping[str, Node], space: str) -> Node:
    if name in PRIMITIVES:
        return Node(name, least={"null": 0, "float": 4, "double": 8}.get(name, 1))
    full = name if "." in name or not space else f"{space}.{name}"
    found = named.get(full) or named.get(name)
    if found is None:
        raise Unsupported(f"the Avro schema uses the type {name!r} without defining it")
    if found.kind == "open":
        raise Unsupported(f"the Avro type {name!r} holds itself: such records have no columns")
    return found


def _full(schema: Mapping[str, Any], space: str) -> tuple[str, str]:
    """(full name, namespace) of a named type."""
    name = str(schema["name"])
    if "." not in name:
        own = str(schema.get("namespace", space) or "")
        return (f"{own}.{name}" if own else name), own
    return name, name.rpartition(".")[0]


def _keep(schema: Mapping[str, Any], made: Node, named: dict[str, Node], space: str) -> Node:
    full, _ = _full(schema, space)
    named[full] = replace(made, name=full)
    return named[full]


def _record(schema: Mapping[str, Any], named: dict[str, Node], space: str, depth: int, about: Mapping[str, Any]) -> Node:
    full, own = _full(schema, space)
    named[full] = Node("open", full)
    fields = []
    for one in schema["fields"]:
        spelled, made = str(one["name"]), _node(one["type"], named, own, depth + 1)
        fields.append(NamedNode(spelled, _column_name(spelled, made), made, one.get("default")))
    size, least = 1 + sum(f.type.size for f in fields), sum(f.type.least for f in fields)
    made = _sized(Node("record", full, tuple(fields), size=size, least=least, about=about))
    if len({f.name for f in fields}) != len(fields):
        raise Unsupported(f"the Avro record {full} has two fields of one name")
    named[full] = made
    return made


def _union(branches: list[Node]) -> Node:
    if not branches or any(branch.kind == "union" for branch in branches):
        raise Unsupported("the Avro schema has a union of nothing, or of unions")
    size = 1 + sum(branch.size for branch in branches)
    return _sized(Node("union", branches=tuple(branches), size=size, least=1))


def _sized(node: Node) -> Node:
    if node.size > SIZE_MAX:
        raise Unsupported(f"the Avro schema has more than {SIZE_MAX} types")
    return node


# The names that Avro cannot spell


def _column_name(spelled: str, node: Node) -> str:
    """The source's name of a column, where the connector says it and changed it only as it does for Avro."""
    inner = value_of(node)
    told = (inner.about.get("connect.parameters") or {}).get(COLUMN_NAME) if inner is not None else None
    return str(told) if told is not None and spelled in _spellings(str(told)) else spelled


def avro_spelling(name: str) -> str:
    """As field.name.adjustment.mode=avro spells a name; different names may come out alike."""
    return re.sub(r"^[^A-Za-z_]|(?<!^)[^A-Za-z0-9_]", "_", name, flags=re.ASCII)


def _spellings(name: str) -> Iterator[str]:
    yield avro_spelling(name)
    yield avro_unicode_spelling(name)
    yield avro_unicode_spelling(name, padded=True)


def avro_unicode_spelling(name: str, *, padded: bool = False) -> str:
    """As field.name.adjustment.mode=avro_unicode spells a name: the underscore begins the number of a character (of Java, 16 bits).

    Seen of Debezium 3.6: three digits are not padded to four (п is _u43f), so that a spelling alone does not tell the name. ``padded`` is
    as its documentation has it."""
    units = [int.from_bytes(pair, "big") for pair in zip(*[iter(name.encode("utf-16-be", "surrogatepass"))] * 2, strict=True)]
    letters = (chr(unit) for unit in units)
    return "".join(
        letter if re.fullmatch(r"[A-Za-z]" if place == 0 else r"[A-Za-z0-9]", letter, re.ASCII) else _escaped(ord(letter), padded)
        for place, letter in enumerate(letters)
    )


def _escaped(number: int, padded: bool) -> str:
    return f"_u{number:04x}" if padded or number < 0x100 else f"_u{number:x}"


# Back to the schema of Connect


def value_of(node: Node) -> Node | None:
    """The type of a value, without the null beside it; None for a union of more types than one."""
    if node.kind != "union":
        return node
    found = [branch for branch in node.branches if branch.kind != "null"]
    return found[0] if len(found) == 1 else None


_KINDS = {"boolean": "boolean", "int": "int32", "long": "int64", "float": "float", "double": "double", "bytes": "bytes", "string": "string"}
_KINDS |= {"enum": "string", "fixed": "bytes", "record": "struct", "array": "array", "map": "map"}
_NO_NAME = {"record", "enum", "fixed"}


def connect_schema(node: Node) -> dict[str, Any]:
    """What Connect's JSON converter writes of the schema that this one was made from, as connect_schema's functions read it."""
    inner = value_of(node)
    if inner is None or inner.kind == "null":
        return {"type": "union", "optional": True}
    about = inner.about
    made: dict[str, Any] = {"type": about.get("connect.type") or _KINDS[inner.kind], "optional": inner is not node}
    name = about.get("connect.name") or (inner.name if inner.kind in _NO_NAME else None)
    if name is not None:
        made["name"] = name
    if inner.kind == "enum" and name == inner.name:
        del made["name"]
    if about.get("connect.parameters"):
        made["parameters"] = dict(about["connect.parameters"])
    default = about.get("connect.default")
    if default is not None:
        made["default"] = _in_json(inner, default)
    if inner.kind == "record":
        made["fields"] = [_connect_field(one) for one in inner.fields]
    elif inner.items is not None:
        made["items" if inner.kind == "array" else "values"] = connect_schema(inner.items)
    return made


def _connect_field(one: NamedNode) -> dict[str, Any]:
    made = {**connect_schema(one.type), "field": one.name}
    inner = value_of(one.type)
    if one.default is not None and inner is not None:
        made.setdefault("default", _in_json(inner, one.default))
    return made


def _in_json(node: Node, default: Any) -> Any:
    """A default as Connect's JSON has it: bytes in base64, where Avro has one character a byte."""
    if node.kind in ("bytes", "fixed") and isinstance(default, str):
        return base64.b64encode(default.encode("latin-1", "replace")).decode()
    return default
