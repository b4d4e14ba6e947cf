"""The rows of one layout: payloads and keys -> the columns of a ChangeBatch, and the records that are not exact."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cdc_service.core.errors import TableStopped
from cdc_service.core.keys import key_text
from cdc_service.core.order import NO_POSITION, Ties
from cdc_service.core.rowtext import row_text
from cdc_service.core.types import META, Op, RawBatch, Rejected, TableId
from cdc_service.ports.events import Codec, EventModel
from connectors.formats.blocks import Block, Problem
from connectors.formats.codecs import convert, unsent
from connectors.formats.exact import Inexact, exact, parse
from connectors.formats.layout import KeyCodecs, Layout
from connectors.formats.segments import Decoded

Mask = npt.NDArray[np.bool_]
Reads = Callable[[pa.Schema], Block]
"""Reads a part of a group's records, whatever the wire: what the schema names, one row a record; NULL where a record has nothing."""

_OPS = pa.array(["r", "c", "u", "d", "t"])
"""In the order of core.types.Op."""
_TRANSACTION = pa.field("transaction", pa.struct([("id", pa.string()), ("total_order", pa.int64()), ("data_collection_order", pa.int64())]))
_NEW_KEY, _OLD_KEY = "__debezium.newkey", "__debezium.oldkey"

_NULL_KEY = Problem("null_key", "the table has a key and the record has none, or a part of it is NULL")
_BAD_KEY = Problem("bad_key", "the Kafka key holds a value that its column's type cannot hold exactly")
_KEY_DIFFERS = Problem("key_differs", "the Kafka key and the row's key columns differ")
_UNKNOWN_OP = Problem("unknown_op", "the record's op is none of r, c, u, d, t")
_NO_ROW = Problem("no_row", "the record's op needs a row and it holds none")
_EXTRA_ROW = Problem("extra_row", "the record is a delete or truncate and holds a row")
_NO_TABLE = Problem("no_table", "the record does not say which table it is of")
_NO_POSITION = Problem("no_position", "the record holds no position in the source's log")
_DOUBTFUL = Problem(
    "doubtful_value",
    "an array of more than one dimension, or of dates of another calendar, may have been changed by the connector: the event does not tell",
)
_BAD_OLD_KEY = Problem("bad_old_key", "the header that names the old key cannot be read")


class _Problems:
    """The first problem of each record of a group."""

    def __init__(self, size: int, *found: Mapping[int, Problem]) -> None:
        self._number = np.zeros(size, np.int32)
        self._kinds: list[Problem] = []
        for problems in found:
            for place, problem in problems.items():
                self.mark_one(place, problem)

    def mark(self, bad: Mask, problem: Problem) -> None:
        if bad.any():
            self._kinds.append(problem)
            self._number[bad & (self._number == 0)] = len(self._kinds)

    def mark_one(self, place: int, problem: Problem) -> None:
        if not self._number[place]:
            self._kinds.append(problem)
            self._number[place] = len(self._kinds)

    @property
    def good(self) -> Mask:
        good: Mask = self._number == 0
        return good

    def items(self) -> list[tuple[int, Problem]]:
        return [(int(place), self._kinds[self._number[place] - 1]) for place in np.flatnonzero(self._number)]


def rejection(raw: RawBatch, place: int, text: str | None, problem: Problem) -> Rejected:
    """The whole record as the quarantine keeps it."""
    return Rejected(
        partition=raw.partitions[place].as_py(),
        offset=raw.offsets[place].as_py(),
        key=raw.keys[place].as_py(),
        value=raw.value(place),
        headers=tuple(raw.headers(place)),
        key_text=text,
        stage="decode",
        code=problem.code,
        message=problem.message,
    )


def key_schema(codecs: KeyCodecs) -> pa.Schema:
    """What a reader takes from a key's payload, under the names that the key has."""
    return pa.schema([pa.field(spelled, codec.read) for spelled, codec in codecs])


def converted_key(codecs: KeyCodecs, rows: pa.Table) -> tuple[list[pa.Array], Mask]:
    """The key's columns from what was read with ``key_schema``, and where one of them is not exact."""
    columns, bad = [], np.zeros(rows.num_rows, np.bool_)
    for place, (_, codec) in enumerate(codecs):
        done = convert(codec, _one(rows.column(place)))
        columns.append(_normal(codec, done.values))
        if done.bad is not None:
            bad |= done.bad
    return columns, bad


def _normal(codec: Codec, values: pa.Array) -> pa.Array:
    """Numbers without a fixed scale as keys: 1.50 and 1.5 are one key in the source, so that they must be one text here."""
    if codec.name != "numeric":
        return values
    shortened = pc.replace_substring_regex(values, r"^(-?[0-9]+\.[0-9]*?)0+$", r"\1")
    return pc.replace_substring_regex(shortened, r"\.$", "")


def _one(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _mask(flags: pa.Array) -> Mask:
    return np.asarray(flags.fill_null(False).to_numpy(zero_copy_only=False), np.bool_)


class GroupReader:
    """Reads groups of records of one layout each.

    ``whole`` are the topics of tables of which every value is sent; one leaves the set when an update without
    the row before it shows that this is over. ``logs`` are the topics of tables that are kept as logs of changes: their images before
    are read too.
    """

    def __init__(self, model: EventModel, unavailable: str, *, whole: Collection[str] = (), logs: Collection[str] = ()) -> None:
        self._whole = set(whole)
        self._logs = frozenset(logs)
        self._model = model
        self._unavailable = unavailable
        told = pa.schema([*((name, pa.string()) for name in model.table), ("ts_us", pa.int64())])
        self._source = pa.struct(list(pa.unify_schemas([model.fields, told])))

    def read(
        self, raw: RawBatch, layout: Layout, places: npt.NDArray[np.int64], values: Reads, keys: Reads, table: TableId | None
    ) -> tuple[Decoded, dict[int, Rejected]]:
        """The rows, and by place in ``raw`` what is rejected. ``table`` is the topic's, when it is known."""
        log = raw.topic in self._logs
        block, key_block = values(self._schema(layout, log=log)), keys(key_schema(layout.key_codecs))
        problems = _Problems(len(places), block.problems, key_block.problems)
        rows = block.rows
        op = pc.index_in(_one(rows.column("op")), _OPS)
        problems.mark(_mask(op.is_null()), _UNKNOWN_OP)
        ops = np.array(op.fill_null(-1).to_numpy(zero_copy_only=False), np.int8)
        source = self._flat(rows.column("source"))
        found = self._table(raw.topic, source, problems, table)
        commit, record, minor = self._model.positions(source)
        problems.mark(record == NO_POSITION, _NO_POSITION)
        after = _one(rows.column("after"))
        present = _mask(after.is_valid())
        problems.mark((ops <= Op.UPDATE) & ~present, _NO_ROW)
        problems.mark((ops >= Op.DELETE) & present, _EXTRA_ROW)
        columns, missing, doubtful = self._columns(layout, after, problems)
        if log:
            problems.mark(doubtful, _DOUBTFUL)  # Each change stays as it came: the source tells no more what it held then.
        key_columns, bad_key = converted_key(layout.key_codecs, key_block.rows)
        key = dict(zip(layout.key, key_columns, strict=True))
        problems.mark(bad_key, _BAD_KEY)
        _check_key(layout, key, columns, ops, problems)
        self._check_ambiguous(raw, layout, places, ops, columns, rows, problems)
        columns.update(key)
        old_key, moved = self._moves(raw, layout, places, ops, missing, problems)
        before = self._images(raw.topic, layout, ops, rows, columns, missing, problems) if log else None
        placed = log and (not layout.key or self._model.ordering.ties is Ties.OFFSET)
        order = pc.struct_field(_one(rows.column("transaction")), "total_order") if placed else None
        meta = {
            "op": pa.array(ops, pa.int8()),
            "partition": raw.partitions.take(pa.array(places)),
            "offset": raw.offsets.take(pa.array(places)),
            "commit": commit,
            "record": pa.array(record),
            "minor": pa.array(minor),
            "source_us": source.field("ts_us"),
            "index": pa.array(places),
        }
        good = problems.good
        schema = layout.schema(found)
        data = pa.Table.from_arrays([columns[name] for name in schema.names], schema=schema.arrow)
        masks = pa.table({name: pa.array(mask) for name, mask in missing.items()}) if missing else None
        about = pa.Table.from_arrays(list(meta.values()), schema=META)
        unsure = pa.array(doubtful) if doubtful.any() and not log else None
        decoded = Decoded(schema, places, data, about, masks, old_key, moved, before, order, unsure)
        if not good.all():
            decoded = decoded.filter(good)
        return decoded, _rejections(raw, layout, places, key, bad_key, key_block.problems, problems)

    def _schema(self, layout: Layout, *, log: bool) -> pa.Schema:
        after = pa.struct([pa.field(column.name, codec.read) for column, codec in zip(layout.columns, layout.codecs, strict=True)])
        fields = [pa.field("after", after), pa.field("source", self._source), pa.field("op", pa.string())]
        if log:
            return pa.schema([*fields, pa.field("before", after), _TRANSACTION])
        if layout.ambiguous:
            # Only whether it is there matters: then everything was sent.
            fields.append(pa.field("before", pa.struct([after.field(0)])))
        return pa.schema(fields)

    def _flat(self, column: pa.ChunkedArray) -> pa.StructArray:
        """The source struct without NULLs of its own: its fields are NULL instead."""
        return pa.StructArray.from_arrays(_one(column).flatten(), fields=list(self._source))

    def _table(self, topic: str, source: pa.StructArray, problems: _Problems, table: TableId | None) -> TableId:
        """The table that all these records are of. Raises TableStopped when there are several."""
        schema, name = (source.field(field) for field in self._model.table)
        problems.mark(_mask(pc.or_(schema.is_null(), name.is_null())), _NO_TABLE)
        good = problems.good
        if not good.any():
            return table or TableId("", topic)
        if not good.all():
            schema, name = schema.filter(pa.array(good)), name.filter(pa.array(good))
        first = TableId(schema[0].as_py(), name[0].as_py())
        expected = table or first
        if not (pc.all(pc.equal(schema, expected.schema)).as_py() and pc.all(pc.equal(name, expected.name)).as_py()):
            raise TableStopped(
                f"topic {topic} holds records of more than one table, {expected} among them",
                state="error",
                code="several_tables",
                hint="one topic holds one table: remove the transform that routes several tables to this topic, or rename one of two "
                "tables whose names give the same topic",
            )
        return expected

    def _columns(self, layout: Layout, after: pa.StructArray, problems: _Problems) -> tuple[dict[str, pa.Array], dict[str, Mask], Mask]:
        """The row's columns, for those with values that were not sent, where, and the rows with a doubtful value."""
        columns: dict[str, pa.Array] = {}
        missing: dict[str, Mask] = {}
        doubtful = np.zeros(len(after), np.bool_)
        for column, codec, values in zip(layout.columns, layout.codecs, after.flatten(), strict=True):
            if column.name in layout.left_out:
                continue
            if column.name in layout.stand_ins:
                _mark_stand_ins(column.name, values, layout.stand_ins[column.name], problems)
            mask = unsent(codec, values, self._unavailable)
            if mask is not None:
                missing[column.name] = mask
                values = pc.if_else(pa.array(mask), pa.scalar(None, values.type), values)
            done = convert(codec, values)
            columns[column.name] = done.values
            if done.doubtful is not None:
                doubtful |= done.doubtful
            if done.bad is not None:
                message = (
                    f"column {column.name!r}: {codec.reason}" if codec.reason else f"column {column.name!r} holds no exact {column.type}"
                )
                problems.mark(done.bad, Problem("inexact_value", message))
        return columns, missing, doubtful

    def _images(
        self,
        topic: str,
        layout: Layout,
        ops: npt.NDArray[np.int8],
        rows: pa.Table,
        columns: dict[str, pa.Array],
        missing: dict[str, Mask],
        problems: _Problems,
    ) -> pa.Array:
        """The images before as text, and each delete's in ``columns``; what it lacks is marked in ``missing``.

        An update has one only with REPLICA IDENTITY FULL. A delete always has one, which without FULL is true in the key alone: other
        columns hold NULL, or a zero where NULL is not allowed. A delete of a time before the table was altered to FULL looks whole too.
        """
        image = _one(rows.column("before"))
        there = _mask(image.is_valid()) & (ops != Op.TRUNCATE)
        deletes = ops == Op.DELETE
        whole = there & ~deletes | (there if topic in self._whole else np.zeros(len(ops), np.bool_))
        texts: dict[str, pa.Array] = {}
        for column, wire, values in zip(layout.columns, layout.codecs, image.flatten(), strict=True):
            if column.name in layout.left_out:
                continue
            sent = whole | (there if column.name in layout.key else False)
            mask = unsent(wire, values, self._unavailable)
            if mask is not None:
                sent = sent & ~mask
            done = convert(wire, pc.if_else(pa.array(sent), values, pa.scalar(None, values.type)))
            if done.bad is not None:
                message = f"column {column.name!r} holds no exact {column.type} in the image before"
                problems.mark(done.bad & problems.good, Problem("inexact_value", message))
            if done.doubtful is not None:
                problems.mark(done.doubtful & problems.good, _DOUBTFUL)
            texts[column.name] = done.values
            if deletes.any() and column.name not in layout.key:
                columns[column.name] = pc.if_else(pa.array(deletes), done.values, columns[column.name])
                lacking = deletes & ~sent
                if lacking.any():
                    missing[column.name] = missing.get(column.name, np.zeros(len(ops), np.bool_)) | lacking
        keyed = row_text({name: texts[name] for name in layout.key}, there & ~whole)
        return pc.coalesce(row_text(texts, whole), keyed)

    def _check_ambiguous(
        self,
        raw: RawBatch,
        layout: Layout,
        places: npt.NDArray[np.int64],
        ops: npt.NDArray[np.int8],
        columns: Mapping[str, pa.Array],
        rows: pa.Table,
        problems: _Problems,
    ) -> None:
        """For some types the connector writes NULL where the source sent nothing. With the whole row before the change, it sent all."""
        if not layout.ambiguous:
            return
        suspect = (ops == Op.UPDATE) & _mask(_one(rows.column("before")).is_null())
        if suspect.any():
            self._whole.discard(raw.topic)
        for name in layout.ambiguous:
            null = _mask(columns[name].is_null())
            if raw.topic in self._whole:
                continue
            for place in np.flatnonzero(null & (ops == Op.CREATE) & problems.good):
                suspect[place] = _header(raw, int(places[place]), _OLD_KEY) is not None
            message = f"column {name!r} is NULL or was not sent, the record does not tell which: {self._model.whole}"
            problems.mark(null & suspect, Problem("null_or_unsent", message))

    def _moves(
        self,
        raw: RawBatch,
        layout: Layout,
        places: npt.NDArray[np.int64],
        ops: npt.NDArray[np.int8],
        missing: Mapping[str, Mask],
        problems: _Problems,
    ) -> tuple[pa.Table | None, pa.Array | None]:
        """(old keys of rows created by a key change that hold unsent values, deletes that are the first half of one)."""
        if not layout.key or not layout.may_be_unsent:
            return None, None
        moved = np.zeros(len(places), np.bool_)
        for place in np.flatnonzero((ops == Op.DELETE) & problems.good):
            moved[place] = _header(raw, int(places[place]), _NEW_KEY) is not None
        anything = np.logical_or.reduce([np.zeros(len(places), np.bool_), *missing.values()])
        old: dict[int, Any] = {}
        kind = pa.struct(list(key_schema(layout.key_codecs)))
        for place in np.flatnonzero((ops == Op.CREATE) & anything & problems.good):
            header = _header(raw, int(places[place]), _OLD_KEY)
            if header is not None:
                try:
                    old[int(place)] = exact(kind, _key_document(header))
                except Inexact:
                    problems.mark_one(int(place), _BAD_OLD_KEY)
        return self._old_key(layout, old, len(places), problems), pa.array(moved) if moved.any() else None

    def _old_key(self, layout: Layout, old: Mapping[int, Any], size: int, problems: _Problems) -> pa.Table | None:
        if not old:
            return None
        rows = pa.Table.from_pylist([row or {} for row in old.values()], key_schema(layout.key_codecs))
        columns, bad = converted_key(layout.key_codecs, rows.combine_chunks())
        for number, place in enumerate(old):
            if bad[number] or any(column[number].as_py() is None for column in columns):
                problems.mark_one(place, _BAD_OLD_KEY)
        spread = np.full(size, -1, np.int64)
        spread[list(old)] = np.arange(len(old))
        return pa.table(columns, names=list(layout.key)).take(pa.array(spread, mask=spread < 0))


def _mark_stand_ins(name: str, values: pa.Array, default: Any, problems: _Problems) -> None:
    """A converter that writes a column's default for NULL makes each default doubtful."""
    message = (
        f"column {name!r} holds its default, which the converter writes for NULL too: let Confluent's converter write (with"
        f" value.converter.ignore.default.for.nullables=true), or ALTER TABLE .. ALTER COLUMN .. DROP DEFAULT"
    )
    same = pc.equal(_comparable(values), _comparable(pa.array([default], values.type))[0])
    problems.mark(_mask(same), Problem("null_or_default", message))


def _key_document(header: bytes) -> Any:
    document = parse(header)
    # A header converter that writes schemas wraps the key once more.
    return document["payload"] if isinstance(document, dict) and set(document) == {"schema", "payload"} else document


def _header(raw: RawBatch, place: int, name: str) -> bytes | None:
    return next((value for key, value in raw.headers(place) if key == name), None)


def _check_key(
    layout: Layout, key: Mapping[str, pa.Array], columns: Mapping[str, pa.Array], ops: npt.NDArray[np.int8], problems: _Problems
) -> None:
    for name, values in key.items():
        problems.mark((ops != Op.TRUNCATE) & _mask(values.is_null()), _NULL_KEY)
        own = _normal(layout.codec(name), columns[name])
        equal = _mask(pc.equal(_comparable(values), _comparable(own)))
        problems.mark((ops <= Op.UPDATE) & ~equal, _KEY_DIFFERS)


def _comparable(values: pa.Array) -> pa.Array:
    """Floats by their bits, so that NaN equals itself."""
    if pa.types.is_floating(values.type):
        return values.view(pa.int32() if pa.types.is_float32(values.type) else pa.int64())
    return values


def _rejections(
    raw: RawBatch,
    layout: Layout,
    places: npt.NDArray[np.int64],
    key: Mapping[str, pa.Array],
    bad_key: Mask,
    unread: Mapping[int, Problem],
    problems: _Problems,
) -> dict[int, Rejected]:
    items = problems.items()
    if not items:
        return {}
    texts: list[str | None] = [None] * len(items)
    if layout.key:
        found = key_text(pa.table(dict(key)).take(pa.array([place for place, _ in items]))).to_pylist()
        texts = [None if bad_key[place] or place in unread else text for (place, _), text in zip(items, found, strict=True)]
    return {
        int(places[place]): rejection(raw, int(places[place]), text, problem) for (place, problem), text in zip(items, texts, strict=True)
    }
