"""Debezium's JSON with schemas: the form of its records (envelope.Form), and the decoder of a connector that writes it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cdc_service.core.types import TableSchema
from cdc_service.ports.events import EventModel
from connectors.formats.blocks import Block, Problem, chosen, read_block
from connectors.formats.envelope import EnvelopeDecoder
from connectors.formats.frames import Envelopes, read_envelopes
from connectors.formats.layout import KeyField, Meaning, Prefixes, Recognised, ValueFields, read_key_schema, read_value_schema

_NO_KEY_DOCUMENT = b"{}}"
"""Stands for a NULL in a block: all its fields are NULL."""


class JsonForm:
    """JSON with schemas, as Connect's own converter writes it (envelope.Form)."""

    not_value = Problem(
        "not_schema_json",
        "the record is not JSON with a schema as Kafka Connect writes it: set value.converter.schemas.enable=true (Avro: schema_registry)",
    )
    not_key = Problem(
        "bad_key", "the Kafka key is not JSON with a schema as Kafka Connect writes it: set key.converter.schemas.enable=true"
    )

    def __init__(self, model: EventModel) -> None:
        self._values: Prefixes[ValueFields] = Prefixes(partial(read_value_schema, model))
        self._keys: Prefixes[tuple[KeyField, ...]] = Prefixes(partial(read_key_schema, model))

    def values(self, records: pa.Array, head: bytes = b"") -> Recognised[ValueFields]:
        return self._values.recognise(records, head)

    def keys(self, records: pa.Array) -> Recognised[tuple[KeyField, ...]]:
        return self._keys.recognise(records)

    def read(self, records: pa.Array, places: npt.NDArray[np.int64], known: Recognised[Any], schema: pa.Schema) -> Block:
        payloads = partial(_payloads, records, places, known)
        if not {"after", "source"} <= set(schema.names):
            return read_block(payloads(), schema)
        numbers = known.number[places]
        one = numbers[0]
        if (numbers == one).all():
            return read_envelopes(Envelopes(chosen(records, places), known.prefixes[one].length, 1, payloads), schema)
        documents = payloads()
        return read_envelopes(Envelopes(documents, 0, 1, lambda: documents), schema)


class DebeziumJsonDecoder(EnvelopeDecoder):
    """Decodes topics of one Debezium connector that writes JSON with schemas; the arguments are EnvelopeDecoder's."""

    def __init__(
        self,
        model: EventModel,
        *,
        unavailable: str,
        known: Mapping[str, TableSchema] | None = None,
        whole: Collection[str] = (),
        logs: Collection[str] = (),
        left_out: Mapping[str, frozenset[str]] | None = None,
    ) -> None:
        super().__init__(model, JsonForm(model), unavailable=unavailable, known=known, whole=whole, logs=logs, left_out=left_out)


def _payloads(records: pa.Array, places: npt.NDArray[np.int64], known: Recognised[Meaning]) -> pa.Array:
    """What follows the prefix of each record at ``places``; an empty document where the record is NULL."""
    number = known.number[places]
    numbers = np.unique(number)
    longest = pc.max(pc.binary_length(records)).as_py() or 0
    parts, order = [], []
    for one in numbers.tolist():
        own = np.flatnonzero(number == one)
        order.append(own)
        if one < 0:
            parts.append(pa.array([_NO_KEY_DOCUMENT] * len(own), pa.binary()))
            continue
        # Without an end, the kernel's estimate of its result overflows on large batches.
        rest = pc.binary_slice(records, known.prefixes[one].length, longest)
        parts.append(chosen(rest, places[own]))
    if len(parts) == 1:
        return parts[0]
    return pa.concat_arrays(parts).take(pa.array(np.argsort(np.concatenate(order), kind="stable")))
