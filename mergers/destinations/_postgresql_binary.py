"""Arrow columns as the binary rows that PostgreSQL's COPY reads, at half of the text's work on either side.

Promises: what PostgreSQL reads is the value that it would read from core.postgresql's text of it; where a column has no form here the whole
table has none, and text carries it (_postgresql_copy). The format is that of PostgreSQL's manual, COPY, "Binary Format", and within a field
what the receive function of its type takes (``timestamptz_recv``, ``numeric_recv``: in the server's sources alone).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cdc_service.core.logical import INFINITY, Kind
from mergers.destinations._postgresql_copy import rows_at_once

_HEAD = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_END = b"\xff\xff"
_DAYS, _MICROSECONDS = 10_957, 946_684_800_000_000
"""From 1970-01-01 to 2000-01-01, where PostgreSQL's own counts begin."""

Values = npt.NDArray[Any]
"""One element a row, or several numbers of its field as a second dimension."""


@dataclass(frozen=True, slots=True)
class Form:
    """How a type's values are sent: ``bytes_of`` a column (NULL may be anything), or as they are, each with a length of its own, where it
    is None. ``fits`` says whether a column has this form: not where it is of another type than the one that it is staged as."""

    fits: Callable[[pa.Array], bool]
    bytes_of: Callable[[pa.Array], Values] | None = None


def binary_blocks(table: pa.Table, types: Sequence[str]) -> Iterator[pa.Buffer] | None:
    """The rows of ``table`` as COPY ... (FORMAT binary) takes them, ``types`` being PostgreSQL's of its columns; None where text has to."""
    forms = [_form(type_) for type_ in types]
    columns = [_whole(column) for column in table.columns]
    known = [form for form, column in zip(forms, columns, strict=True) if form is not None and form.fits(column)]
    return _blocks(columns, known, rows_at_once(table)) if len(known) == len(forms) else None


def _blocks(columns: Sequence[pa.Array], forms: Sequence[Form], rows: int) -> Iterator[pa.Buffer]:
    yield pa.py_buffer(_HEAD)
    for start in range(0, len(columns[0]), rows):
        yield _block([column.slice(start, rows) for column in columns], forms)
    yield pa.py_buffer(_END)


def _whole(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays([*column.chunks, pa.array([], column.type)])


def _block(columns: Sequence[pa.Array], forms: Sequence[Form]) -> pa.Buffer:
    """Each row is the number of its fields, then of each field its length in four bytes (-1 for NULL) and its bytes. Fields of one length
    that stand beside each other become one piece, and so does each text; the pieces are then joined row by row."""
    rows = len(columns[0])
    pieces: list[pa.Array] = []
    run: list[Values] = [np.full(rows, len(columns), ">i2")]
    for column, form in zip(columns, forms, strict=True):
        if form.bytes_of is None:
            lengths = pc.binary_length(column).fill_null(-1)
            pieces += [_piece([*run, lengths.to_numpy(zero_copy_only=False).astype(">i4")]), _bytes(column)]
            run = []
            continue
        values = form.bytes_of(column)
        if column.null_count:
            field = _matrix([np.full(rows, _width(values), ">i4"), values])
            there = np.asarray(column.is_valid())
            field[~there, :4] = 255
            pieces += [*([_piece(run)] if run else []), _ragged(field, there)]
            run = []
        else:
            run += [np.full(rows, _width(values), ">i4"), values]
    if run:
        pieces.append(_piece(run))
    joined = pc.binary_join_element_wise(*pieces, pa.scalar(b""), null_handling="replace", null_replacement=b"")
    _, cuts, content = joined.buffers()
    first, last = np.frombuffer(cuts, np.int32)[[joined.offset, joined.offset + rows]].tolist()
    return content.slice(first, last - first)


def _width(values: Values) -> int:
    return values.dtype.itemsize * (values.shape[1] if values.ndim > 1 else 1)


def _matrix(run: Sequence[Values]) -> npt.NDArray[np.uint8]:
    """The bytes of fields beside each other, a row each."""
    layout = np.dtype([(f"f{n}", v.dtype, v.shape[1:]) for n, v in enumerate(run)])
    packed = np.empty(len(run[0]), layout)
    for n, values in enumerate(run):
        packed[f"f{n}"] = values
    return packed.view(np.uint8).reshape(len(packed), layout.itemsize)


def _piece(run: Sequence[Values]) -> pa.Array:
    packed = _matrix(run)
    cuts = np.arange(0, packed.size + 1, packed.shape[1], dtype=np.int32)
    return pa.Array.from_buffers(pa.binary(), len(packed), [None, pa.py_buffer(cuts), pa.py_buffer(packed)])


def _ragged(field: npt.NDArray[np.uint8], there: npt.NDArray[np.bool_]) -> pa.Array:
    """Of each row its field, or only the length of it where it is NULL."""
    lengths = np.where(there, field.shape[1], 4)
    cuts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    content = field[np.arange(field.shape[1]) < lengths[:, None]]
    return pa.Array.from_buffers(pa.binary(), len(field), [None, pa.py_buffer(cuts), pa.py_buffer(content)])


def _bytes(column: pa.Array) -> pa.Array:
    return column if pa.types.is_binary(column.type) else column.view(pa.binary())


# The bytes of each type


def _of(type_: pa.DataType) -> Callable[[pa.Array], bool]:
    return lambda column: bool(column.type == type_)


def _integer(type_: pa.DataType, code: str) -> Form:
    """Narrower ones are sent as wide."""

    def fits(column: pa.Array) -> bool:
        return bool(pa.types.is_signed_integer(column.type) and column.type.bit_width <= type_.bit_width)

    return Form(fits, lambda column: _numbers(column, column.type).astype(code))


def _float(type_: pa.DataType, code: str) -> Form:
    """Every NaN is sent as the one that text means."""

    def bytes_of(column: pa.Array) -> Values:
        numbers = _numbers(column, type_)
        nan = np.isnan(numbers)
        return (np.where(nan, np.nan, numbers) if nan.any() else numbers).astype(code)

    return Form(_of(type_), bytes_of)


def _numbers(column: pa.Array, width: pa.DataType) -> Values:
    numbers = column.view(width)
    if column.null_count:
        numbers = numbers.fill_null(pa.scalar(0).cast(width))
    found: Values = numbers.to_numpy(zero_copy_only=False)
    return found


def _since_2000(type_: pa.DataType, width: pa.DataType, code: str, shift: int, infinity: int) -> Form:
    """Infinity is the highest number in PostgreSQL too, but minus infinity is the lowest."""

    def bytes_of(column: pa.Array) -> Values:
        counted = _numbers(column, width)
        moved = counted - counted.dtype.type(shift)
        ends = (counted == infinity) | (counted == -infinity)
        if ends.any():
            moved = np.where(ends, np.where(counted == infinity, infinity, -infinity - 1), moved)
        sent: Values = moved.astype(code)
        return sent

    return Form(_of(type_), bytes_of)


_NO_UUID = "0" * 8 + "-0000-0000-0000-" + "0" * 12
_GROUPS = ((0, 8), (9, 13), (14, 18), (19, 23), (24, 36))
_DIGIT = np.full(256, 16, np.uint8)
_DIGIT[np.frombuffer(b"0123456789abcdef", np.uint8)] = np.arange(16)


def _letters(column: pa.Array) -> npt.NDArray[np.uint8]:
    """Texts of 36 bytes, a row each."""
    texts = column.fill_null(_NO_UUID)
    _, cuts, content = texts.buffers()
    first = int(np.frombuffer(cuts, np.int32)[texts.offset])
    return np.frombuffer(content, np.uint8)[first : first + 36 * len(texts)].reshape(-1, 36)


def _are_uuids(column: pa.Array) -> bool:
    if not pa.types.is_string(column.type) or not pc.all(pc.equal(pc.binary_length(column), 36), min_count=0).as_py():
        return False
    if not len(column):
        return True
    letters = _letters(column)
    return bool((_digits(letters) < 16).all() and all((letters[:, stop] == ord("-")).all() for _, stop in _GROUPS[:-1]))


def _digits(letters: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    return np.take(_DIGIT, np.concatenate([letters[:, start:stop] for start, stop in _GROUPS], axis=1))


def _uuid(column: pa.Array) -> Values:
    digits = _digits(_letters(column))
    return digits[:, ::2] << 4 | digits[:, 1::2]


def _are_small(column: pa.Array) -> bool:
    """Whether the numbers fit in 64 bits, and so do their parts behind the point."""
    if not pa.types.is_decimal128(column.type) or column.type.scale > 18:
        return False
    low, high = _halves(column)
    return bool((high == low >> 63).all())


def _decimal(column: pa.Array) -> Values:
    """``numeric_recv``: how many groups of four digits, of which number the first one is, sign, scale, groups."""
    scale, (low, _) = column.type.scale, _halves(column)
    # The lowest number has no positive one beside it in 64 bits.
    size = np.where(low < 0, (~low).view(np.uint64) + np.uint64(1), low.view(np.uint64))
    whole, part = np.divmod(size, np.uint64(10**scale))
    before = -(-len(str(int(whole.max(initial=0)))) // 4)
    groups = [whole // np.uint64(10 ** (4 * n)) % np.uint64(10_000) for n in reversed(range(before))]
    for left in range(scale, 0, -4):
        # The last group is filled up with zeros where the scale ends within it.
        cut = part // np.uint64(10 ** max(0, left - 4)) % np.uint64(10 ** min(4, left))
        groups.append(cut * np.uint64(10 ** max(0, 4 - left)))
    head = [np.full(len(low), len(groups)), np.full(len(low), before - 1), np.where(low < 0, 0x4000, 0), np.full(len(low), scale)]
    return np.stack([*head, *groups], axis=1).astype(">u2")


def _halves(column: pa.Array) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    _, content = column.buffers()
    numbers = np.frombuffer(content or b"", np.int64).reshape(-1, 2)[column.offset : column.offset + len(column)]
    if column.null_count:
        numbers = np.where(np.asarray(column.is_valid())[:, None], numbers, 0)
    return np.ascontiguousarray(numbers[:, 0]), np.ascontiguousarray(numbers[:, 1])


_FORMS = {
    "boolean": Form(_of(pa.bool_()), lambda column: _numbers(column, pa.bool_()).astype("u1")),
    "smallint": _integer(pa.int16(), ">i2"),
    "integer": _integer(pa.int32(), ">i4"),
    "bigint": _integer(pa.int64(), ">i8"),
    "real": _float(pa.float32(), ">f4"),
    "double precision": _float(pa.float64(), ">f8"),
    "date": _since_2000(pa.date32(), pa.int32(), ">i4", _DAYS, INFINITY[Kind.DATE]),
    "time without time zone": Form(_of(pa.time64("us")), lambda column: _numbers(column, pa.int64()).astype(">i8")),
    "timestamp without time zone": _since_2000(pa.timestamp("us"), pa.int64(), ">i8", _MICROSECONDS, INFINITY[Kind.TIMESTAMP]),
    "timestamp with time zone": _since_2000(pa.timestamp("us", tz="UTC"), pa.int64(), ">i8", _MICROSECONDS, INFINITY[Kind.TIMESTAMPTZ]),
    "uuid": Form(_are_uuids, _uuid),
    "text": Form(_of(pa.string())),
    "json": Form(_of(pa.string())),
    "bytea": Form(_of(pa.binary())),
}


def _form(type_: str) -> Form | None:
    return Form(_are_small, _decimal) if re.fullmatch(r"numeric\(\d+,\d+\)", type_) else _FORMS.get(type_)
