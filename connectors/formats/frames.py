"""Envelopes -> Arrow columns, parsing of each only what differs: the row. The contract is blocks.read_block's.

Behind the row (``before``, ``after``) a connector writes the same bytes in record after record, but for digits and the letter of ``op``.
The first record of a block is parsed whole and tells where these stand; the others have to equal it everywhere else, or are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from connectors.formats.blocks import Block, Refused, columnar, read_block
from connectors.formats.exact import Inexact, exact, parse

Bytes = npt.NDArray[np.uint8]
Path = tuple[str, ...]

_BEHIND_ROW = b',"source":{'
"""Unescaped quotes stand in no text, so that this begins the field; a row that holds a structure with such a field is refused."""
_LINES = 256
"""Lines that are compared at once, as many as stay in a core's cache; and the shortest run of one shape that is worth it: where shapes
alternate, parsing is cheaper. A digit more in a position makes another shape, once in a long time."""
_ROW = ("before", "after")
_NONE = pa.schema([])
_SOURCE = pa.schema(
    [
        *((name, pa.string()) for name in ("version", "connector", "name", "snapshot", "db", "sequence")),
        *((name, pa.int64()) for name in ("ts_ms", "ts_ns")),
    ]
)
"""What each connector's source block has."""
_ENVELOPE = pa.schema(
    [
        ("transaction", pa.struct([("id", pa.string()), ("total_order", pa.int64()), ("data_collection_order", pa.int64())])),
        *((name, pa.int64()) for name in ("ts_ms", "ts_us", "ts_ns")),
    ]
)
_OPS = np.frombuffer(b"rcudt", np.uint8)


@dataclass(frozen=True, slots=True)
class Envelopes:
    """Records that hold an envelope each: ``skip`` bytes stand before it and ``behind`` bytes behind it. ``documents`` gives them as
    ``read_block`` takes them."""

    records: pa.Array
    skip: int
    behind: int
    documents: Callable[[], pa.Array]


def read_envelopes(envelopes: Envelopes, schema: pa.Schema, row: str | None = None, others: pa.Schema = _NONE) -> Block:
    """What ``schema`` names of the envelopes, ``after`` among it; ``row`` is as in ``read_block``. ``others`` are the fields of the source
    block that ``schema`` does not name and that not every connector has."""
    try:
        return Block(framed(envelopes, schema, row, others), {})
    except Refused:
        if row is None:
            return read_block(envelopes.documents(), schema)
        block = read_block(envelopes.documents(), _wide(schema, others), row)
        return Block(_narrow(block.rows, schema), block.problems)


def framed(envelopes: Envelopes, schema: pa.Schema, row: str | None = None, others: pa.Schema = _NONE) -> pa.Table:
    """The rows of envelopes that come in long runs of one shape each, or Refused."""
    rest, parts = envelopes.records, [schema.empty_table()]
    while len(rest):
        first = rest[0].as_py()
        shape = _Shape(first[envelopes.skip : len(first) - envelopes.behind], schema if row is None else _wide(schema, others))
        if len(_alike(rest.slice(0, _LINES), shape, envelopes)) < min(_LINES, len(rest)):
            raise Refused
        ends = _alike(rest, shape, envelopes)
        heads = pc.binary_slice(rest.slice(0, len(ends)), envelopes.skip, 2 - len(shape.text) - envelopes.behind)
        parts.append(shape.read(heads, ends, schema, row))
        rest = rest.slice(len(ends))
    return parts[1] if len(parts) == 2 else pa.concat_tables(parts).combine_chunks()


def _alike(records: pa.Array, shape: _Shape, envelopes: Envelopes) -> Bytes:
    """What stands behind the row in the first records that fit the shape, one a line."""
    behind = envelopes.behind
    size = len(shape.text) + behind
    lengths = pc.binary_length(records)
    long = records.slice(0, _run(np.asarray(pc.greater(lengths, envelopes.skip + size))))
    ends = _matrix(pc.binary_slice(long, -size, -behind if behind else pc.max(lengths).as_py()), len(long))
    return ends[: _run(shape.fits(ends))]


def _run(flags: npt.NDArray[np.bool_]) -> int:
    """How many are true before the first that is not."""
    return len(flags) if flags.all() else int(np.argmin(flags))


def _matrix(texts: pa.Array, rows: int) -> Bytes:
    """Texts of one length, one a line."""
    _, cuts, content = texts.buffers()
    first, last = np.frombuffer(cuts, np.int32)[[0, rows]]
    return np.frombuffer(content, np.uint8)[first:last].reshape(rows, -1)


def _wide(schema: pa.Schema, others: pa.Schema) -> pa.Schema:
    """With every field of the envelopes: the columnar reader that refuses columns nobody knows has to know these."""
    source = list(schema.field("source").type)
    source += [field for field in (*_SOURCE, *others) if field.name not in {known.name for known in source}]
    whole = [pa.field("source", pa.struct(source)) if field.name == "source" else field for field in schema]
    beside = [pa.field("before", schema.field("after").type), *_ENVELOPE]
    return pa.schema([*whole, *(field for field in beside if field.name not in schema.names)])


class _Shape:
    """What stands behind the row in one document, and where in it digits may differ. Refused where it is not plain enough to tell."""

    def __init__(self, document: bytes, schema: pa.Schema) -> None:
        start = document.rfind(_BEHIND_ROW)
        if start < 0:
            raise Refused
        self.text = document[start:]
        try:
            self.fields = parse(b"{" + self.text[1:])
            exact(pa.struct(list(schema)), self.fields)
        except Inexact:
            raise Refused from None
        # Written again it must be the same bytes: then each value stands where those before it end, and no field is there twice.
        if orjson.dumps(self.fields) != b"{" + self.text[1:] or set(self.fields) & set(_ROW):
            raise Refused
        self.columns = dict(_columns(self.fields, (), 1))
        self.free = np.zeros(len(self.text), np.bool_)
        """Places where any digit may stand."""
        self.firsts = np.zeros(len(self.text), np.bool_)
        """Of these, where no 0 may stand: JSON's numbers do not begin with one."""
        for path, columns in self.columns.items():
            self.free[[place for place in columns if 48 <= self.text[place] <= 57]] = True
            if type(self._value(path)) is int and len(columns) > 1:
                self.firsts[columns[0]] = True
                if len(columns) > 18:
                    # Below 9 * 10**18 all of them fit in 64 bits.
                    self.free[columns[:1] if self.text[columns[0]] < 57 else columns] = False
        self.varies = np.zeros(len(self.text), np.bool_)
        self.op = self.columns["op",][0] if self.fields.get("op") in tuple("rcudt") else -1

    def _value(self, path: Path) -> Any:
        value: Any = self.fields
        for name in path:
            value = value[name]
        return value

    def fits(self, ends: Bytes) -> npt.NDArray[np.bool_]:
        """Which lines equal the shape; ``varies`` then tells where some of them differ from its text."""
        text = np.frombuffer(self.text, np.uint8)
        blocks = (ends[first : first + _LINES] for first in range(0, len(ends), _LINES))
        places = np.flatnonzero(np.logical_or.reduce([(block != text).any(axis=0) for block in blocks]))
        self.varies = np.zeros(len(text), np.bool_)
        self.varies[places] = True
        fits = np.ones(len(ends), np.bool_)
        for place, found in zip(places.tolist(), np.ascontiguousarray(ends[:, places].T), strict=True):
            if place == self.op:
                fits &= np.isin(found, _OPS)
            elif self.free[place]:
                fits &= (found >= 48 + self.firsts[place]) & (found <= 57)
            else:
                fits &= found == text[place]
        return fits

    def read(self, heads: pa.Array, ends: Bytes, schema: pa.Schema, row: str | None) -> pa.Table:
        """``schema`` of envelopes that fit: of each what stands before the shape and two bytes of it, and what equals the shape."""
        after = schema.field("after")
        before = schema.field("before") if "before" in schema.names else pa.field("before", after.type)
        if pc.all(pc.starts_with(heads, pattern=b'{"before":null,')).as_py():
            before = pa.field("before", pa.null())
        rows = columnar(heads, pa.schema([before, after]), row, closed=False)
        columns = []
        for field in schema:
            if field.name not in _ROW:
                columns.append(self._column(field.type, (field.name,), self.fields.get(field.name), ends))
            elif field.name == "before" and before.type == pa.null():
                columns.append(pa.nulls(len(ends), field.type))
            else:
                columns.append(rows.column(field.name).chunk(0))
        return pa.Table.from_arrays(columns, schema=schema)

    def _column(self, kind: pa.DataType, path: Path, value: Any, ends: Bytes) -> pa.Array:
        if value is None:
            return pa.nulls(len(ends), kind)
        if pa.types.is_struct(kind) and isinstance(value, dict):
            inner = [self._column(field.type, (*path, field.name), value.get(field.name), ends) for field in kind]
            return pa.StructArray.from_arrays(inner, fields=list(kind))
        columns = self.columns.get(path, [])
        if not self.varies[columns].any():
            return pa.repeat(pa.scalar(value, kind), len(ends))
        texts = np.ascontiguousarray(ends[:, columns])
        cuts = np.arange(0, texts.size + 1, len(columns), dtype=np.int32)
        return pa.StringArray.from_buffers(len(ends), pa.py_buffer(cuts), pa.py_buffer(texts)).cast(kind)


def _columns(fields: dict[str, Any], path: Path, start: int) -> Iterator[tuple[Path, list[int]]]:
    """By the path of each value in which digits may differ, the places of its bytes (without marks of escape). ``start`` is where the
    object's first name stands."""
    for name, value in fields.items():
        start += len(orjson.dumps(name)) + 1
        written = orjson.dumps(value)
        if isinstance(value, dict):
            yield from _columns(value, (*path, name), start + 1)
        elif type(value) is int and value >= 0:
            yield (*path, name), list(range(start, start + len(written)))
        elif isinstance(value, str) and b"\\" not in written.replace(b'\\"', b""):
            yield (*path, name), [start + place for place in range(1, len(written) - 1) if written[place] != 92]
        start += len(written) + 1


def _narrow(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """The fields of ``schema``, of structures too."""
    columns = []
    for field in schema:
        column = rows.column(field.name).combine_chunks()
        column = column.chunk(0) if isinstance(column, pa.ChunkedArray) else column
        if column.type != field.type:
            of = {inner.name: values for inner, values in zip(column.type, column.flatten(), strict=True)}
            column = pa.StructArray.from_arrays([of[inner.name] for inner in field.type], fields=list(field.type), mask=column.is_null())
        columns.append(column)
    return pa.Table.from_arrays(columns, schema=schema)
