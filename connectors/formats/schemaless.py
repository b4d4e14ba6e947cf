"""Debezium's JSON without schemas -> ChangeBatches, where the connector's configuration leaves no doubt of what its values mean.

A record does not say its columns' types, so the table's schema must be known; a record with other columns is rejected, never guessed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cdc_service.core.errors import ConfigError
from cdc_service.core.logical import Kind, LogicalType
from cdc_service.core.types import ChangeBatch, RawBatch, Rejected, TableSchema
from cdc_service.ports.events import Ambiguous, Codec, EventModel, Unsent
from connectors.formats.blocks import chosen, read_block
from connectors.formats.connect_schema import NUMERIC, PRIMITIVE, SEMANTIC, TEXT
from connectors.formats.frames import Envelopes, read_envelopes
from connectors.formats.layout import Layout
from connectors.formats.rows import GroupReader
from connectors.formats.segments import Decoded, batches
from connectors.formats.texts import columns_from_text

_PLAIN = {
    Kind.BOOL: "boolean",
    Kind.INT16: "int16",
    Kind.INT32: "int32",
    Kind.INT64: "int64",
    Kind.FLOAT32: "float",
    Kind.FLOAT64: "double",
    Kind.BYTES: "bytes",
}
_TIMES = {
    "microseconds": {
        Kind.DATE: ("int32", "io.debezium.time.Date"),
        Kind.TIME: ("int64", "io.debezium.time.MicroTime"),
        Kind.TIMESTAMP: ("int64", "io.debezium.time.MicroTimestamp"),
    },
    "isostring": {
        Kind.DATE: ("string", "io.debezium.time.IsoDate"),
        Kind.TIME: ("string", "io.debezium.time.IsoTime"),
        Kind.TIMESTAMP: ("string", "io.debezium.time.IsoTimestamp"),
    },
}
"""What time.precision.mode makes of times. The other modes make counts whose unit depends on the column's precision."""
_SETTINGS = {
    Kind.DECIMAL: ("decimal.handling.mode", "precise", {"string"}),
    Kind.NUMERIC: ("decimal.handling.mode", "precise", {"string"}),
    Kind.INTERVAL: ("interval.handling.mode", "numeric", {"string"}),
    Kind.DATE: ("time.precision.mode", "adaptive", set(_TIMES)),
    Kind.TIME: ("time.precision.mode", "adaptive", set(_TIMES)),
    Kind.TIMESTAMP: ("time.precision.mode", "adaptive", set(_TIMES)),
    Kind.BYTES: ("binary.handling.mode", "bytes", {"bytes", "base64"}),
}
"""By kind: the connector's setting that gives its values their form, its default, and the forms that say what they mean."""
_REPLACE_NULL = "value.converter.replace.null.with.default"
_NULL_BESIDE = ("before", "after", "transaction", "snapshot", "sequence")
"""Fields of an event that may be NULL themselves, as those of its source block may: a column of such a name could go missing unnoticed."""
_CURE = "set {setting} in the connector's options, or let it write schemas (value.converter.schemas.enable=true)"


class SchemalessJsonDecoder:
    """Decodes topics of one connector that writes JSON without schemas (ports.events.Decoder).

    ``tables`` holds the schema of each topic's table, ``connector`` the connector's configuration. Raises ConfigError where a column's
    values could mean more than one thing.
    """

    def __init__(
        self,
        model: EventModel,
        tables: Mapping[str, TableSchema],
        connector: Mapping[str, str],
        whole: Collection[str] = (),
        logs: Collection[str] = (),
        left_out: Mapping[str, frozenset[str]] | None = None,
    ) -> None:
        if connector.get(_REPLACE_NULL, "true") != "false":
            raise ConfigError(
                "the connector's JSON writes a column's default where the value is NULL",
                hint=_CURE.format(setting=f"{_REPLACE_NULL}=false"),
            )
        unavailable = connector.get("unavailable.value.placeholder", "__debezium_unavailable_value")
        self._reader = GroupReader(model, unavailable, whole=whole, logs=logs)
        self._others = model.others
        self._tables = dict(tables)
        apart = left_out or {}
        self._layouts = {t: replace(_layout(table, connector, model), left_out=apart.get(t, frozenset())) for t, table in tables.items()}

    def decode(self, raw: RawBatch) -> Sequence[ChangeBatch]:
        raw = raw.whole()
        table, layout = self._tables[raw.topic], self._layouts[raw.topic]
        tombstones: npt.NDArray[np.bool_] = np.array(raw.values.is_null())
        places = np.flatnonzero(~tombstones)
        decoded: list[Decoded] = []
        rejected: dict[int, Rejected] = {}
        if len(places):
            values, keys = chosen(raw.values, places), chosen(raw.keys, places)
            envelopes = Envelopes(values, 0, 0, partial(_closed, values))
            of_values = partial(read_envelopes, envelopes, row="after", others=self._others)
            of_keys = partial(read_block, _closed(keys), row="")
            done, rejected = self._reader.read(raw, layout, places, of_values, of_keys, table.table)
            decoded.append(done)
        return batches(raw, decoded, tombstones, rejected, layout.schema(table.table))

    def from_text(self, topic: str, rows: pa.Table, version: TableSchema) -> pa.Table:
        return columns_from_text(self._layouts[topic], rows)


def _closed(documents: pa.Array) -> pa.Array:
    """Each document with one byte behind it, as readers of blocks take them; a NULL becomes an empty one."""
    return pc.binary_join_element_wise(documents.fill_null(b"{}"), pa.scalar(b"}"), pa.scalar(b""))


def layout_of_texts(table: TableSchema, model: EventModel) -> Layout:
    """How the source's own reading gives the columns of ``table`` as text (Source.reread), where no event showed them yet. Raises
    ConfigError for a type whose text may mean several things."""
    return _layout(table, None, model)


def _layout(table: TableSchema, connector: Mapping[str, str] | None, model: EventModel) -> Layout:
    beside = {*_NULL_BESIDE, *model.fields.names, *model.others.names}
    codecs = []
    for column in table.columns:
        if column.name in beside:
            raise ConfigError(
                f"{table.table}: without schemas, column {column.name!r} cannot be told from the event's own field of that name",
                hint="let the connector write schemas (value.converter.schemas.enable=true)",
            )
        try:
            codecs.append(model.codec_without_schema(column, connector))
        except Ambiguous as found:
            where = (
                f"{table.table}: without schemas, the values of column {column.name!r} ({column.source_type or column.type}) are ambiguous"
            )
            raise ConfigError(f"{where} with {found.setting}" if found.setting else where, hint=found.cure) from None
    return Layout(table.columns, tuple(codecs), table.key)


def by_kind(kind: LogicalType, connector: Mapping[str, str]) -> Codec:
    """How a connector with this configuration writes values of a kind (but lists), by Debezium's own types. Raises Ambiguous."""
    if kind.kind in _SETTINGS:
        require(connector, *_SETTINGS[kind.kind])
    if kind.kind in _PLAIN:
        return PRIMITIVE[_PLAIN[kind.kind]]
    times = _TIMES.get(connector.get("time.precision.mode", "adaptive"), {})
    if kind.kind in times:
        return SEMANTIC[times[kind.kind]]
    if kind.kind is Kind.TIMESTAMPTZ:
        return SEMANTIC["string", "io.debezium.time.ZonedTimestamp"]
    if kind.kind is Kind.DECIMAL:
        return Codec("decimal", kind, pa.string(), unsent=Unsent.TEXT)
    return NUMERIC if kind.kind is Kind.NUMERIC else Codec("plain", kind, pa.string(), unsent=TEXT.unsent)


def require(connector: Mapping[str, str], setting: str, default: str, allowed: Collection[str]) -> None:
    """Raises Ambiguous where the connector's setting is none of those under which values say what they mean."""
    found = connector.get(setting, default)
    if found not in allowed:
        wanted = f"{setting}={' or '.join(sorted(allowed))}"
        raise Ambiguous(f"{setting}={found}", _CURE.format(setting=wanted))
