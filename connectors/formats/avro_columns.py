"""Blocks of Avro data -> Arrow columns, all records of a block at once: each record has a cursor, and one step moves all cursors over one
field. What a step cannot read, in one record, goes to the exact reader, which reads it or says why not; the others never notice.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from connectors.formats.avro_exact import ANY, fits, reader
from connectors.formats.avro_schema import Node
from connectors.formats.blocks import Block, Problem
from connectors.formats.exact import Inexact

Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

_PAD = 16
"""Zero bytes behind the data: a cursor at the end of it may be read from."""
_FEW = 16
"""Arrays go on element by element while so many records have one more; longer ones than the others' are left to the exact reader."""
_HIGH = np.uint64(0x8080808080808080)
_BYTES_MAX = 2**30


def read_block(data: pa.Array, node: Node, schema: pa.Schema, skip: int = 0) -> Block:
    """``data``: a binary array without NULLs, each one datum of the schema ``node`` (a record) behind ``skip`` bytes. Fields that
    ``schema`` does not name are read over, ones that the record lacks are NULL."""
    if not len(data):
        return Block(schema.empty_table(), {})
    if data.nbytes > _BYTES_MAX and len(data) > 1:
        half = len(data) // 2
        first, second = read_block(data[:half], node, schema, skip), read_block(data[half:], node, schema, skip)
        later = {half + place: problem for place, problem in second.problems.items()}
        return Block(pa.concat_tables([first.rows, second.rows]).combine_chunks(), first.problems | later)
    kind = pa.struct(list(schema))
    try:
        columns = Columns(data, skip)
        rows = columns.read(node, kind, None)
        unread = columns.unread()
    except _Unfit:
        rows, unread = pa.nulls(len(data), kind), np.ones(len(data), np.bool_)
    problems: dict[int, Problem] = {}
    if unread.any():
        rows, problems = _exactly(data, node, kind, skip, rows, np.flatnonzero(unread))
    return Block(pa.Table.from_arrays(rows.flatten(), schema=schema), problems)


def _exactly(
    data: pa.Array, node: Node, kind: pa.DataType, skip: int, rows: pa.StructArray, places: Ints
) -> tuple[pa.StructArray, dict[int, Problem]]:
    """``rows`` with what the exact reader says of those at ``places``."""
    problems: dict[int, Problem] = {}
    values, read = [], reader(node, kind)
    for place, content in zip(places.tolist(), data.take(pa.array(places)).to_pylist(), strict=True):
        try:
            values.append(read(content[skip:]))
        except Inexact as problem:
            problems[place] = Problem(problem.code, str(problem))
            values.append(None)
    source = np.arange(len(rows))
    source[places] = len(rows) + np.arange(len(places))
    return pa.concat_arrays([rows, pa.array(values, kind)]).take(pa.array(source)), problems


class _Unfit(Exception):
    """The schema's types are not the wanted ones: the exact reader says it of each record."""


class Columns:
    """The cursors over one block. ``rows`` is everywhere the records that a step is about: their places, or None for all of them."""

    def __init__(self, data: pa.Array, skip: int) -> None:
        _, cuts, content = data.buffers()
        offsets = np.frombuffer(cuts, np.int32)[data.offset : data.offset + len(data) + 1].astype(np.int64)
        low, high = int(offsets[0]), int(offsets[-1])
        self._bytes = np.zeros(high - low + _PAD, np.uint8)
        if content is not None:
            self._bytes[: high - low] = np.frombuffer(content, np.uint8)[low:high]
        self._words = np.ndarray((len(self._bytes) - 7,), np.uint64, self._bytes.data, strides=(1,))
        self._buffer = pa.py_buffer(self._bytes)
        self._end = offsets[1:] - low
        self._bad = np.diff(offsets) < skip
        self._at = np.minimum(offsets[:-1] - low + skip, self._end)

    def unread(self) -> Mask:
        """Where something could not be read, or bytes are left over."""
        return np.asarray(self._bad | (self._at != self._end), np.bool_)

    # Cursors

    def _here(self, rows: Ints | None) -> Ints:
        return self._at if rows is None else self._at[rows]

    def _move(self, rows: Ints | None, at: Ints, sizes: Ints | int) -> None:
        """Moves the cursors from ``at`` over ``sizes`` bytes; a record that has not so many stays at its end, and is bad."""
        end = self._end if rows is None else self._end[rows]
        # As unsigned numbers: a negative size is beyond any end too.
        over = np.asarray(sizes, np.int64).view(np.uint64) > (end - at).view(np.uint64)
        to = at + sizes
        if over.any():
            self._mark(rows, over)
            to = np.where(over, end, to)
        if rows is None:
            self._at = to
        else:
            self._at[rows] = to

    def _mark(self, rows: Ints | None, bad: Mask) -> None:
        if rows is None:
            self._bad |= bad
        else:
            self._bad[rows[bad]] = True

    def _count(self, rows: Ints | None) -> int:
        return len(self._at) if rows is None else len(rows)

    def _long(self, rows: Ints | None) -> Ints:
        """Variable-length numbers in zigzag form; 0 where bad."""
        at = self._here(rows)
        first = self._bytes[at]
        if not len(first) or int(first.max()) < 0x80:
            self._move(rows, at, 1)
            small = first.astype(np.int64)
            return (small >> 1) ^ -(small & 1)
        words = self._words[at]
        stop = ~words & _HIGH
        stop &= -stop  # The highest bit of the last byte.
        below = stop - np.uint64(1)
        sizes = (np.bitwise_count(below).astype(np.int64) + 1) >> 3
        words &= below | stop
        words = (words & np.uint64(0x007F007F007F007F)) | ((words & np.uint64(0x7F007F007F007F00)) >> np.uint64(1))
        words = (words & np.uint64(0x00003FFF00003FFF)) | ((words & np.uint64(0x3FFF00003FFF0000)) >> np.uint64(2))
        words = (words & np.uint64(0x000000000FFFFFFF)) | ((words & np.uint64(0x0FFFFFFF00000000)) >> np.uint64(4))
        long = stop == 0
        if long.any():
            self._ninth(rows, at, words, sizes, np.flatnonzero(long))
        self._move(rows, at, sizes)
        return (words >> np.uint64(1)).view(np.int64) ^ -(words & np.uint64(1)).view(np.int64)

    def _ninth(self, rows: Ints | None, at: Ints, words: npt.NDArray[np.uint64], sizes: Ints, long: Ints) -> None:
        """Numbers of nine and ten bytes; the tenth has one bit."""
        ninth, tenth = (self._bytes[np.minimum(at[long] + more, len(self._bytes) - 1)].astype(np.uint64) for more in (8, 9))
        ten = ninth >= 0x80
        words[long] |= (ninth & np.uint64(0x7F)) << np.uint64(56)
        words[long] |= np.where(ten, tenth & np.uint64(1), np.uint64(0)) << np.uint64(63)
        sizes[long] = np.where(ten, 10, 9)
        beyond = ten & (tenth > 1)
        if beyond.any():
            bad = np.zeros(len(at), np.bool_)
            bad[long[beyond]] = True
            self._mark(rows, bad)

    # Values

    def read(self, node: Node, kind: pa.DataType, rows: Ints | None) -> pa.Array:
        """The next value of each record in ``rows`` as an array of ``kind`` (of nothing for ANY). Raises _Unfit."""
        if node.kind == "union":
            return self._union(node, kind, rows)
        if not fits(node, kind):
            raise _Unfit
        if node.kind == "null":
            return pa.nulls(self._count(rows), kind)
        if node.kind == "record":
            return self._record(node, kind, rows)
        if node.items is not None:
            return self._array(node, kind, rows)
        if node.kind in ("int", "long"):
            return self._integers(node, kind, rows)
        if node.kind in ("float", "double", "boolean"):
            return self._fixed_numbers(node, kind, rows)
        if node.kind == "enum":
            return self._enum(node, kind, rows)
        return self._content(node, kind, rows)

    def _union(self, node: Node, kind: pa.DataType, rows: Ints | None) -> pa.Array:
        branch = self._long(rows)
        low, high = (int(branch.min()), int(branch.max())) if len(branch) else (0, 0)
        if low == high and 0 <= low < len(node.branches):
            return self.read(node.branches[low], kind, rows)
        own = np.arange(len(self._at)) if rows is None else rows
        self._mark(rows, (branch < 0) | (branch >= len(node.branches)))
        parts, source, have = [pa.nulls(1, kind)], np.zeros(len(own), np.int64), 1
        for number, one in enumerate(node.branches):
            places = np.flatnonzero(branch == number)
            if len(places):
                part = self.read(one, kind, own[places])
                if one.kind != "null" and kind != ANY:
                    parts.append(part)
                    source[places] = have + np.arange(len(places))
                    have += len(places)
        if kind == ANY:
            return pa.nulls(len(own))
        return pa.concat_arrays(parts).take(pa.array(source))

    def _record(self, node: Node, kind: pa.DataType, rows: Ints | None) -> pa.Array:
        count = self._count(rows)
        wanted = {} if kind == ANY else {field.name: field.type for field in kind}
        found = {}
        for one in node.fields:
            values = self.read(one.type, wanted.get(one.name, ANY), rows)
            if one.name in wanted:
                found[one.name] = values
        if kind == ANY:
            return pa.nulls(count)
        columns = [found[field.name] if field.name in found else pa.nulls(count, field.type) for field in kind]
        return pa.StructArray.from_arrays(columns, fields=list(kind)) if columns else pa.array([{}] * count, kind)

    def _integers(self, node: Node, kind: pa.DataType, rows: Ints | None) -> pa.Array:
        values = self._long(rows)
        bits = 32 if node.kind == "int" else 64
        bits = bits if kind == ANY else min(bits, kind.bit_width)
        if bits < 64 and len(values):
            limit = 1 << (bits - 1)
            if int(values.min()) < -limit or int(values.max()) >= limit:
                bad = (values < -limit) | (values >= limit)
                self._mark(rows, bad)
                values = np.where(bad, 0, values)
        return pa.nulls(len(values)) if kind == ANY else pa.array(values).cast(kind)

    def _fixed_numbers(self, node: Node, kind: pa.DataType, rows: Ints | None) -> pa.Array:
        at = self._here(rows)
        self._move(rows, at, node.least)
        if node.kind == "boolean":
            flags = self._bytes[at]
            if len(flags) and int(flags.max()) > 1:
                self._mark(rows, flags > 1)
            return pa.nulls(len(at)) if kind == ANY else pa.array(flags == 1)
        if kind == ANY:
            return pa.nulls(len(at))
        words = self._words[at]
        return pa.array(words.view(np.float64) if node.kind == "double" else words.astype(np.uint32).view(np.float32))

    def _enum(self, node: Node, kind: pa.DataType, rows: Ints | None) -> pa.Array:
        symbol = self._long(rows)
        bad = (symbol < 0) | (symbol >= len(node.symbols))
        if bad.any():
            self._mark(rows, bad)
            symbol = np.where(bad, 0, symbol)
        if kind == ANY or not node.symbols:
            return pa.nulls(len(symbol), kind)
        return pa.array(node.symbols, pa.string()).take(pa.array(symbol))

    def _content(self, node: Node, kind: pa.DataType, rows: Ints | None) -> pa.Array:
        """Text and bytes: where each begins and how long it is, copied by Arrow."""
        sizes = np.full(self._count(rows), node.width) if node.kind == "fixed" else self._long(rows)
        at = self._here(rows)
        self._move(rows, at, sizes)
        if node.kind == "string":
            text = self._texts(rows, at, sizes)
            return pa.nulls(len(at)) if kind == ANY else text
        return pa.nulls(len(at)) if kind == ANY else self._values(rows, at, sizes)

    def _values(self, rows: Ints | None, at: Ints, sizes: Ints) -> pa.Array:
        bad = self._bad if rows is None else self._bad[rows]
        if bad.any():
            sizes = np.where(bad, 0, sizes)
        views = np.empty((len(at), 2), np.uint64)
        first = self._words[at]
        views[:, 0] = sizes.astype(np.uint64) | first << np.uint64(32)
        views[:, 1] = at.astype(np.uint64) << np.uint64(32)
        short = np.flatnonzero(sizes <= 12)
        if len(short):
            # Of a short one the view holds the bytes themselves. Behind the last four there may be none to read eight of.
            views[short, 1] = self._words[np.minimum(at[short] + 4, len(self._words) - 1)]
        return pa.Array.from_buffers(pa.binary_view(), len(at), [None, pa.py_buffer(views), self._buffer]).cast(pa.binary())

    def _texts(self, rows: Ints | None, at: Ints, sizes: Ints) -> pa.Array:
        """Text, and marks the records whose text is none."""
        values = self._values(rows, at, sizes)
        try:
            return values.cast(pa.string())
        except pa.ArrowInvalid:
            self._mark(rows, np.array([not _is_text(value) for value in values.to_pylist()], np.bool_))
            return self._values(rows, at, sizes).cast(pa.string())

    # Arrays and maps

    def _array(self, node: Node, kind: pa.DataType, rows: Ints | None) -> pa.Array:
        """One element of every record that has one more, until none has. A map is read over as an array of keys and values."""
        assert node.items is not None
        own = np.arange(len(self._at)) if rows is None else rows
        wanted = ANY if kind == ANY else kind.value_type
        left = self._more(own)
        parts: list[pa.Array] = []
        places: list[Ints] = []
        while True:
            going = np.flatnonzero((left > 0) & ~self._bad[own])
            if len(going) < _FEW and len(parts) >= _FEW:
                self._bad[own[going]] = True
                break
            if not len(going):
                break
            if node.kind == "map":
                self.read(_KEY, ANY, own[going])
            parts.append(self.read(node.items, wanted, own[going]))
            places.append(going)
            left[going] -= 1
            ended = going[left[going] == 0]
            if len(ended):
                left[ended] = self._more(own[ended])
        return pa.nulls(len(own)) if kind == ANY else _lists(kind, len(own), parts, places)

    def _more(self, rows: Ints) -> Ints:
        """The number of elements in the next block of each record."""
        counts = self._long(rows)
        sized = np.flatnonzero(counts < 0)
        if len(sized):
            self._long(rows[sized])
            counts[sized] = -counts[sized]
        beyond = (counts < 0) | (counts > self._end[rows] - self._at[rows])
        if beyond.any():
            self._bad[rows[beyond]] = True
            counts[beyond] = 0
        return counts


_KEY = Node("string", least=1)


def _lists(kind: pa.DataType, count: int, parts: Sequence[pa.Array], places: Sequence[Ints]) -> pa.Array:
    if not parts:
        return pa.ListArray.from_arrays(pa.array(np.zeros(count + 1, np.int32)), pa.nulls(0, kind.value_type))
    owner = np.concatenate(places)
    order = np.argsort(owner, kind="stable")
    cuts = np.concatenate([[0], np.cumsum(np.bincount(owner, minlength=count))]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(cuts), pa.concat_arrays(parts).take(pa.array(order)), type=kind)


def _is_text(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True
