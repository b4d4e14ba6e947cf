"""The contracts of events: what a source says of those of its connector, and of decoders, which make batches of them.

Bytes in, Arrow batches out; what cannot be decoded comes back beside the batch and never fails it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cdc_service.core.errors import CdcError
from cdc_service.core.logical import LogicalType
from cdc_service.core.order import Ordering
from cdc_service.core.types import ChangeBatch, Column, RawBatch, TableSchema


class InexactText(CdcError):
    """Of what was read again at the source some values are not exact; ``rows`` says of each row whether it has one."""

    code = "inexact_text"

    def __init__(self, message: str, rows: npt.NDArray[np.bool_]) -> None:
        super().__init__(message)
        self.rows = rows


ConnectSchema = Mapping[str, Any]
"""The schema of a field as Kafka Connect's JSON converter writes it: ``type``, ``name``, ``optional``, ``parameters``, ``items``."""


class Unsupported(ValueError):
    """A column that cannot be read exactly, with the reason and the cure. It holds names and types, never values."""


class Ambiguous(ValueError):
    """Values that come without their schema could mean more than one thing: under which setting of the connector (empty: under each of
    them), and the cure."""

    def __init__(self, setting: str = "", cure: str = "let the connector write schemas (value.converter.schemas.enable=true)") -> None:
        super().__init__(setting)
        self.setting = setting
        self.cure = cure


class Unsent(StrEnum):
    """How a value that the source did not send stands in the record.

    NEVER: the type is always sent. TEXT: the placeholder; BASE64, OBJECT, UUID: its form in that type (OBJECT: a JSON object that holds it
    under itself); LIST: a list of its form in the elements' type. NULL: the connector has no form for the type and sends NULL, which cannot
    be told from a real one.
    """

    NEVER = "never"
    TEXT = "text"
    BASE64 = "base64"
    OBJECT = "object"
    UUID = "uuid"
    LIST = "list"
    NULL = "null"


@dataclass(frozen=True, slots=True)
class Codec:
    """How the values of one column stand in events: ``name`` is that of its conversion (connectors.formats.codecs), ``read`` the Arrow type
    that a JSON reader gives for it. ``parameter`` is the conversion's: bits of a bit string, units of a count. ``reason`` tells why the
    conversion ``refused`` takes no value.
    """

    name: str
    type: LogicalType
    read: pa.DataType
    parameter: int = 0
    unsent: Unsent = Unsent.NEVER
    element: Codec | None = None
    reason: str = ""


class EventModel(Protocol):
    """What of an event only its source understands: which table a change is of, where in the log it stands, and what its values mean.

    Table and position stand in the event's ``source`` block, whose fields differ by connector. What Debezium's own types mean (a
    MicroTimestamp, a Uuid) is the same everywhere: connectors.formats.connect_schema knows it, and a model goes by it for all that is not
    its source's speciality.
    """

    table: tuple[str, str]
    """The fields of the block that name a change's table: what holds it (a schema, a database) and the table itself."""
    fields: pa.Schema
    """The fields of the block that ``positions`` reads, with their Arrow types."""
    needed: tuple[str, ...]
    """Those of ``fields`` without which no change can be put in order."""
    others: pa.Schema
    """The fields that this source's block has beside: a reader that refuses what nobody knows has to know them."""
    ordering: Ordering
    settings: tuple[str, ...]
    """The connector's settings that decide what its values mean, beside those of every connector of Debezium."""
    whole: str
    """What makes the source send every value of a row with each change, for a person to do."""

    def positions(self, source: pa.StructArray) -> tuple[pa.Array, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """(commit, record, minor) of each change, as META holds them: commit int64 and nullable, record int64 with the phase as its sign
        (core.order). A row whose position is missing gets record = core.order.NO_POSITION and is rejected by the decoder."""
        ...

    def source_type(self, field: ConnectSchema) -> str:
        """The source's own name of a field's type, the same in every event (Column.source_type); empty where the field does not tell."""
        ...

    def codec(self, field: ConnectSchema) -> Codec:
        """How the values of a field stand in JSON with schemas. Raises Unsupported for a type that has no exact form: then each of its
        values is refused."""
        ...

    def codec_without_schema(self, column: Column, connector: Mapping[str, str] | None) -> Codec:
        """The same where events tell no types, by the connector's configuration; for None as Source.reread gives the values. Raises
        Ambiguous."""
        ...


class Decoder(Protocol):
    """One wire format of one source. Stateful only in what it learned of schemas; safe to call with the same records again."""

    def decode(self, raw: RawBatch) -> Sequence[ChangeBatch]:
        """All records of ``raw``, each once: as a row, a rejected record or a filtered one (tombstone, foreign message).

        Each batch has one schema version. Batches are in an order that keeps every partition's log order, and their spans follow one
        another per partition from the start of ``raw``'s spans to the end of them. A topic with records of several tables raises
        TableStopped (error). Never raises for what a record holds.
        """
        ...

    def from_text(self, topic: str, rows: pa.Table, version: TableSchema) -> pa.Table:
        """Columns of ``version`` that were read again at the source, as text in the form of the connector's events, in their logical types.

        Raises InexactText where values are not exact, CdcError where no record with these columns was decoded yet.
        """
        ...
