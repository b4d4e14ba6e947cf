"""The contract of decoders: bytes in, Arrow batches out; what cannot be decoded comes back beside the batch and never fails it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cdc_service.core.errors import CdcError
from cdc_service.core.order import Ordering
from cdc_service.core.types import ChangeBatch, RawBatch, TableSchema


class InexactText(CdcError):
    """Of what was read again at the source some values are not exact; ``rows`` says of each row whether it has one."""

    code = "inexact_text"

    def __init__(self, message: str, rows: npt.NDArray[np.bool_]) -> None:
        super().__init__(message)
        self.rows = rows


class Positions(Protocol):
    """How one kind of source orders its changes; a source implements it on columns."""

    fields: pa.Schema
    """The fields of Debezium's ``source`` struct that it reads, with their Arrow types."""
    ordering: Ordering

    def read(self, source: pa.StructArray) -> tuple[pa.Array, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """(commit, record, minor) of each change, as META holds them: commit int64 and nullable, record int64 with the phase as its sign
        (core.order). A row whose position is missing gets record = core.order.NO_POSITION and is rejected by the decoder."""
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
