"""Values that a source dialect read as text (SourceDialect.reread, Fill) -> the columns that a decoder makes of the same values.

The text is in the form of the connector's events: text as it is, bytes in base64, arrays as JSON text, counts as decimal numbers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from cdc_service.core.errors import CdcError
from connectors.decoders.exact import Inexact, exact, parse
from connectors.decoders.layout import Layout
from connectors.decoders.wire import Wire, convert


def columns_from_text(layout: Layout, rows: pa.Table) -> pa.Table:
    """The columns of ``rows`` (string columns named as the layout's) in their logical types. Raises CdcError (inexact_text) for a value
    that its type does not hold exactly."""
    columns = {name: _column(layout.wire(name), rows.column(name), name) for name in rows.column_names}
    return pa.table(columns)


def _column(wire: Wire, texts: pa.ChunkedArray, name: str) -> pa.Array:
    refused = CdcError(f"column {name!r}: what was read at the source is no exact {wire.type}", code="inexact_text")
    try:
        values = [None if text is None else _value(wire.read, text) for text in texts.to_pylist()]
        done = convert(wire, pa.array(values, wire.read))
    except (Inexact, KeyError, ValueError, pa.ArrowException):
        raise refused from None
    if done.bad is not None and np.any(done.bad):
        raise refused
    return done.values


def _value(kind: pa.DataType, text: str) -> Any:
    if pa.types.is_list(kind):
        return exact(kind, parse(text.encode()))
    if pa.types.is_boolean(kind):
        return {"true": True, "false": False}[text]
    if pa.types.is_integer(kind):
        return exact(kind, int(text))
    return float(text) if pa.types.is_floating(kind) else text
