"""Debezium's events that come with their schemas, whatever the wire -> ChangeBatches; the contract is ports.events.Decoder.

What a record says that is not exact, or not of its table, leaves as Rejected beside the batch; tombstones are filtered.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cdc_service.core.keys import key_text
from cdc_service.core.types import ChangeBatch, RawBatch, Rejected, TableId, TableSchema
from cdc_service.ports.events import EventModel
from connectors.formats.blocks import Block, Problem
from connectors.formats.flat import as_envelope
from connectors.formats.layout import KeyCodecs, KeyField, Layout, Recognised, ValueFields, codecs_of_key, make_layout
from connectors.formats.rows import GroupReader, Reads, converted_key, key_schema, rejection
from connectors.formats.schemaless import layout_of_texts
from connectors.formats.segments import batches
from connectors.formats.texts import columns_from_text

Places = npt.NDArray[np.int64]


@dataclass
class _Topic:
    """What a topic has shown so far: its table, the layout of the last rows, the fields of its key (None: not known yet), and the layouts
    of all versions by their schema's fingerprint."""

    table: TableId | None = None
    layout: Layout | None = None
    key: tuple[KeyField, ...] | None = None
    layouts: dict[str, Layout] = field(default_factory=dict)


@dataclass(frozen=True)
class Group:
    """Records of one layout: their places in the RawBatch, and how to read their values and keys."""

    layout: Layout
    places: Places
    values: Reads
    keys: Reads


class Form(Protocol):
    """How a wire writes one record with its schema."""

    not_value: Problem
    """What a value is that has no schema which can be read."""
    not_key: Problem

    def values(self, records: pa.Array, head: bytes) -> Recognised[ValueFields]:
        """For a nullable binary array, whose records stand behind ``head``. Raises Unavailable where a schema is to be had later."""
        ...

    def keys(self, records: pa.Array) -> Recognised[tuple[KeyField, ...]]: ...

    def read(self, records: pa.Array, places: Places, known: Recognised[Any], schema: pa.Schema) -> Block:
        """What ``schema`` names of the records at ``places``, all NULL where a record is NULL."""
        ...


class EnvelopeDecoder:
    """Decodes topics of one Debezium connector whose records tell their schemas (ports.events.Decoder), in the form of ``form``.

    ``unavailable`` is the connector's ``unavailable.value.placeholder``. ``known`` holds, by topic, the last schema of its table where
    one is known: it tells the key before the first record with a key is seen. A batch without rows has the last schema seen, else the
    known one, else one without columns. ``whole`` are the topics of tables whose events hold every value,
    ``logs`` those of tables that are kept as logs of changes. ``left_out`` are, by topic, columns that nobody wants.
    """

    def __init__(
        self,
        model: EventModel,
        form: Form,
        *,
        unavailable: str,
        known: Mapping[str, TableSchema] | None = None,
        whole: Collection[str] = (),
        logs: Collection[str] = (),
        left_out: Mapping[str, frozenset[str]] | None = None,
    ) -> None:
        self._left_out = dict(left_out or {})
        self._form = form
        self._model = model
        self._reader = GroupReader(model, unavailable, whole=whole, logs=logs)
        self._known = dict(known or {})
        self._topics: dict[str, _Topic] = {}

    def decode(self, raw: RawBatch) -> Sequence[ChangeBatch]:
        topic = self._topics.setdefault(raw.topic, _Topic())
        values, keys = self._form.values(raw.values, raw.head), self._form.keys(raw.keys)
        groups, problems = self._groups(raw, topic, values, keys)
        decoded, rejected = [], {}
        for group in groups:
            done, parked = self._reader.read(raw, group.layout, group.places, group.values, group.keys, topic.table)
            topic.layout = group.layout
            if len(done.places):  # Where all were rejected, nobody knows whose they are.
                topic.table = done.schema.table
            topic.layouts[done.schema.fingerprint] = group.layout
            decoded.append(done)
            rejected.update(parked)
        rejected.update(self._stray(raw, topic, keys, problems))
        return batches(raw, decoded, values.number == -1, rejected, self._last_schema(raw.topic, topic))

    def from_text(self, topic: str, rows: pa.Table, version: TableSchema) -> pa.Table:
        layouts = self._topics[topic].layouts if topic in self._topics else {}
        able = [found for found in layouts.values() if {c.name for c in found.columns} >= set(rows.column_names)]
        layout = layouts.get(version.fingerprint) or (able[-1] if able else None)
        if layout is None:
            asked = tuple(c for c in version.columns if c.name in rows.column_names)
            layout = layout_of_texts(replace(version, columns=asked, key=()), self._model)
        return columns_from_text(layout.of_text, rows)

    def _last_schema(self, name: str, topic: _Topic) -> TableSchema:
        known = self._known.get(name)
        table = topic.table or (known.table if known is not None else TableId("", name))
        if topic.layout is not None:
            return topic.layout.schema(table)
        return known or TableSchema(table, (), ())

    def _groups(
        self, raw: RawBatch, topic: _Topic, values: Recognised[ValueFields], keys: Recognised[tuple[KeyField, ...]]
    ) -> tuple[list[Group], dict[int, Problem]]:
        """Records whose rows may share a batch, together; and by place those that no layout reads."""
        problems = {int(place): self._form.not_value for place in np.flatnonzero(values.number == -2)}
        problems |= {int(place): self._form.not_key for place in np.flatnonzero((keys.number == -2) & (values.number >= 0))}
        usable = np.flatnonzero((values.number >= 0) & (keys.number >= -1))
        width = len(keys.prefixes) + 1
        pairs, which = np.unique(values.number[usable] * width + keys.number[usable] + 1, return_inverse=True)
        members: dict[tuple[object, ...], tuple[Layout, list[int]]] = {}
        for number, pair in enumerate(pairs.tolist()):
            value, key = pair // width, pair % width - 1
            layout = self._layout(raw.topic, topic, values.prefixes[value].meaning, None if key < 0 else keys.prefixes[key].meaning, keys)
            if isinstance(layout, Problem):
                problems.update({int(place): layout for place in usable[which == number]})
            else:
                members.setdefault(layout.identity, (layout, []))[1].append(number)
        groups = []
        for layout, numbers in members.values():
            places = usable[np.isin(which, numbers)]
            of_values: Reads = partial(self._form.read, raw.values, places, values)
            if layout.flat is not None:
                of_values = partial(as_envelope, layout.flat, of_values)
            groups.append(Group(layout, places, of_values, partial(self._form.read, raw.keys, places, keys)))
        groups.sort(key=lambda group: int(group.places[0]))
        return groups, problems

    def _layout(
        self,
        name: str,
        topic: _Topic,
        value: ValueFields | Problem,
        key: tuple[KeyField, ...] | Problem | None,
        keys: Recognised[tuple[KeyField, ...]],
    ) -> Layout | Problem:
        if isinstance(value, Problem):
            return value
        if isinstance(key, Problem):
            return key
        left_out = self._left_out.get(name, frozenset())
        if key is None:
            return make_layout(value, self._key_of_topic(name, topic, value, keys), left_out)
        layout = make_layout(value, key, left_out)
        if isinstance(layout, Layout):  # A damaged key must not speak for the records that have none.
            topic.key = key
        return layout

    def _key_of_topic(self, name: str, topic: _Topic, value: ValueFields, keys: Recognised[tuple[KeyField, ...]]) -> tuple[KeyField, ...]:
        """The key of a record without one (a truncate, or a table that has none)."""
        # The last key that was seen may be called otherwise since: a later one may stand in the same records.
        there = [prefix.meaning for prefix in keys.prefixes if not isinstance(prefix.meaning, Problem)]
        for key in there if topic.key is None else (topic.key, *there):
            if isinstance(make_layout(value, key), Layout):
                return key
        if topic.key is not None:
            return topic.key
        known = self._known.get(name)
        by_name = {field.name: field for field in value.as_key}
        return tuple(by_name[column] for column in known.key if column in by_name) if known is not None else ()

    def _stray(
        self, raw: RawBatch, topic: _Topic, keys: Recognised[tuple[KeyField, ...]], problems: Mapping[int, Problem]
    ) -> dict[int, Rejected]:
        """The records that belong to no group, with their key wherever its own schema can be read: what follows has to wait behind them,
        also where nothing else of the topic was read yet."""
        if not problems:
            return {}
        places = np.array(sorted(problems), np.int64)
        texts: dict[int, str | None] = {}
        for number, prefix in enumerate(keys.prefixes):
            mine = places[keys.number[places] == number]
            codecs = self._key_codecs(raw.topic, topic, prefix.meaning) if len(mine) else ()
            if codecs:
                block = self._form.read(raw.keys, mine, keys, key_schema(codecs))
                columns, bad = converted_key(codecs, block.rows)
                whole = key_text(pa.table(columns, names=[spelled for spelled, _ in codecs])).to_pylist()
                texts |= {int(p): None if bad[i] or i in block.problems else whole[i] for i, p in enumerate(mine)}
        return {place: rejection(raw, place, texts.get(place), problem) for place, problem in problems.items()}

    def _key_codecs(self, name: str, topic: _Topic, key: tuple[KeyField, ...] | Problem) -> KeyCodecs:
        if isinstance(key, Problem):
            return ()
        same = topic.layout is not None and key == topic.key
        return topic.layout.key_codecs if topic.layout is not None and same else codecs_of_key(key, self._known.get(name))
