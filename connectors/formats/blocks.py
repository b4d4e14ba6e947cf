"""Blocks of JSON documents -> Arrow columns: the columnar reader guarded against its traps, the exact reader for what it refuses.

One bad document costs its small block the speed, and only itself the place: the others come out as if it were not there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj

from connectors.formats.exact import Inexact, exact, parse

_EXACT_ROWS_MAX = 64
"""A block of at most so many documents is read one by one when the columnar reader refuses it."""
_SPLIT = 16
_NON_FINITE = tuple((f'{mark}"{text}"'.encode(), f"{mark}{text}".encode()) for text in ("NaN", "Infinity", "-Infinity") for mark in ":[,")


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a document cannot be used; ``message`` holds no values."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Block:
    """``rows`` of the schema, one a document; all NULL where ``problems`` (by place) tells why."""

    rows: pa.Table
    problems: dict[int, Problem]


class Refused(Exception):
    """The columnar reader cannot be trusted with this block."""


def read_block(documents: pa.Array, schema: pa.Schema, row: str | None = None) -> Block:
    """``documents``: a binary array of n JSON objects, each followed by one byte that does not count (see ``columnar``).

    Fields outside the schema are ignored, missing ones are NULL; but the field called ``row`` is a structure that holds exactly the
    schema's fields. (``row`` "" is the document itself, whose missing fields are NULL.)
    """
    if not len(documents):
        return Block(schema.empty_table(), {})
    try:
        return Block(columnar(documents, schema, row), {})
    except Refused:
        pass
    if len(documents) <= _EXACT_ROWS_MAX:
        return _one_by_one(documents, schema, row)
    size = max(-(-len(documents) // _SPLIT), _EXACT_ROWS_MAX)
    tables, problems = [], {}
    for start in range(0, len(documents), size):
        block = read_block(documents.slice(start, size), schema, row)
        tables.append(block.rows)
        problems.update({start + place: problem for place, problem in block.problems.items()})
    return Block(pa.concat_tables(tables).combine_chunks(), problems)


def chosen(records: pa.Array, places: npt.NDArray[np.int64]) -> pa.Array:
    """The records at ``places`` (ascending) of a binary array; their bytes stay where they are when only NULLs are left out, which is
    what tombstones are."""
    if len(places) == len(records):
        return records
    _, cuts, content = records.buffers()
    offsets = np.frombuffer(cuts, np.int32)[records.offset : records.offset + len(records) + 1]
    starts, ends = offsets[places], offsets[places + 1]
    if not len(places) or (starts[1:] != ends[:-1]).any() or not np.asarray(records.is_valid())[places].all():
        return records.take(pa.array(places))
    return pa.Array.from_buffers(records.type, len(places), [None, pa.py_buffer(np.append(starts, ends[-1:])), content])


def columnar(documents: pa.Array, schema: pa.Schema, row: str | None = None, *, closed: bool = True) -> pa.Table:
    """The rows, or Refused: then nothing of what it read may be used. A field outside the schema is refused when there is a ``row``.

    The byte behind each document (the brace that closes the envelope) becomes the newline between them, which saves a copy. Of documents
    that are not ``closed`` the last brace is missing: two bytes stand behind each; fields outside the schema are refused.
    """
    data = _lines(documents, closed)
    strict = row is not None or not closed
    table = _read(pa.py_buffer(data), schema, len(documents), strict)
    floats = _has_floats(schema)
    if table is None and floats:
        text = data.tobytes()
        # Inside a JSON string these quotes would be escaped, so that what stands here is a value; in a text column it makes the read fail.
        for quoted, bare in _NON_FINITE:
            text = text.replace(quoted, bare)
        table = _read(pa.py_buffer(text), schema, len(documents), strict)
    elif table is not None and floats and not _finite(table):
        table = None  # NaN or Infinity without quotes is no JSON.
    if table is None or (row and not _complete(documents, table.column(row).chunk(0))):
        raise Refused
    return table


def _complete(documents: pa.Array, rows: pa.StructArray) -> bool:
    """Whether each NULL in ``rows`` was written as one: to the reader a missing field looks the same."""
    present = rows.is_valid()
    for field, values in zip(rows.type, rows.flatten(), strict=True):
        null = pc.and_(present, values.is_null())
        if pc.any(null).as_py():
            written = pc.match_substring(documents.filter(null), orjson.dumps(field.name) + b":null")
            if not pc.all(written).as_py():
                return False
    return True


def _lines(documents: pa.Array, closed: bool) -> npt.NDArray[np.uint8]:
    """The documents as lines; Refused unless each is one line that begins and ends as an object does (or will, with a brace)."""
    _, cuts, content = documents.buffers()
    offsets = np.frombuffer(cuts, np.int32)[documents.offset : documents.offset + len(documents) + 1]
    if content is None or int(np.diff(offsets).min()) < 3:
        raise Refused
    data = np.frombuffer(content, np.uint8)[offsets[0] : offsets[-1]].copy()
    starts, ends = offsets[:-1] - offsets[0], offsets[1:] - offsets[0]
    if not (data[starts] == ord("{")).all():
        raise Refused
    if closed and not ((data[ends - 2] == ord("}")).all() and (data[ends - 1] == ord("}")).all()):
        raise Refused
    if not closed:
        # Without a field a comma would follow the brace that opens.
        if not (data[starts + 1] == ord('"')).all():
            raise Refused
        data[ends - 2] = ord("}")
    if int(data.min()) < 0x20:
        raise Refused
    data[ends - 1] = ord("\n")
    return data


def _read(text: pa.Buffer, schema: pa.Schema, rows: int, strict: bool) -> pa.Table | None:
    try:
        table = pj.read_json(
            pa.BufferReader(text),
            read_options=pj.ReadOptions(use_threads=False, block_size=text.size + 1),
            parse_options=pj.ParseOptions(
                explicit_schema=schema, newlines_in_values=False, unexpected_field_behavior="error" if strict else "ignore"
            ),
        )
        if table.num_rows != rows:
            return None
        table = table.select(schema.names).combine_chunks()
        table.validate(full=True)  # Text that is not UTF-8 passes the reader.
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, UnicodeDecodeError):
        return None
    return table


def _has_floats(fields: pa.Schema | pa.StructType) -> bool:
    return any(_is_float(field.type) for field in fields)


def _is_float(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return _has_floats(kind)
    return _is_float(kind.value_type) if pa.types.is_list(kind) else pa.types.is_floating(kind)


def _finite(table: pa.Table) -> bool:
    return all(_finite_array(chunk) for column in table.columns for chunk in column.chunks)


def _finite_array(column: pa.Array) -> bool:
    if pa.types.is_struct(column.type):
        return all(_finite_array(child) for child in column.flatten() if _is_float(child.type))
    if pa.types.is_list(column.type):
        return not _is_float(column.type) or _finite_array(column.flatten())
    return not pa.types.is_floating(column.type) or bool(pc.all(pc.is_finite(column)).as_py() is not False)


def _one_by_one(documents: pa.Array, schema: pa.Schema, row: str | None = None) -> Block:
    kind = pa.struct(list(schema))
    rows, problems = [], {}
    for place, document in enumerate(documents.to_pylist()):
        try:
            if not document.endswith(b"}"):
                raise Inexact("bad_json", "the record is not valid JSON")
            parsed = exact(kind, parse(document[:-1]), closed=row)
            if parsed is None:
                raise Inexact("bad_json", "the payload is null")
        except Inexact as problem:
            parsed = None
            problems[place] = Problem(problem.code, str(problem))
        rows.append(parsed)
    structs = pa.array(rows, kind)
    return Block(pa.Table.from_arrays(structs.flatten(), schema=schema), problems)
