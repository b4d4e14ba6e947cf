"""Values that a source read as text (Source.reread, Fill) -> the columns that a decoder makes of the same values.

The text is in the form of the connector's events: text as it is, bytes in base64, arrays as JSON text, counts as decimal numbers. What
events carry as bytes and is a text here (bit strings, types that the connector does not know) is that text.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cdc_service.ports.events import Codec, InexactText
from connectors.formats.codecs import convert
from connectors.formats.exact import Inexact, exact, parse
from connectors.formats.layout import Layout

_TEXTS = {"bits", "base64_text"}


def columns_from_text(layout: Layout, rows: pa.Table) -> pa.Table:
    """The columns of ``rows`` (string columns named as the layout's) in their logical types. Raises InexactText for values that their
    types do not hold exactly."""
    columns, bad, names = {}, np.zeros(rows.num_rows, np.bool_), []
    for name in rows.column_names:
        columns[name], wrong = _column(_as_text(layout.codec(name)), rows.column(name))
        bad |= wrong
        names += [repr(name)] if wrong.any() else []
    if names:
        raise InexactText(f"column {', '.join(names)}: what was read at the source has no exact form in the target", bad)
    return pa.table(columns)


def _as_text(codec: Codec) -> Codec:
    if codec.element is not None:
        return replace(codec, element=_as_text(codec.element))
    return replace(codec, name="plain") if codec.name in _TEXTS else codec


def _column(codec: Codec, texts: pa.ChunkedArray) -> tuple[pa.Array, npt.NDArray[np.bool_]]:
    """The values, and the rows that have none that is exact."""
    found, wrong = [], np.zeros(len(texts), np.bool_)
    for place, text in enumerate(texts.to_pylist()):
        try:
            found.append(None if text is None else _value(codec.read, text))
        except (Inexact, KeyError, ValueError):
            found.append(None)
            wrong[place] = True
    done = convert(codec, pa.array(found, codec.read))
    return done.values, wrong if done.bad is None else wrong | done.bad


def _value(kind: pa.DataType, text: str) -> Any:
    if pa.types.is_nested(kind):
        return exact(kind, parse(text.encode()))
    if pa.types.is_boolean(kind):
        return {"true": True, "false": False, "1": True, "0": False}[text]  # bit(1) is a boolean in events.
    if pa.types.is_integer(kind):
        return exact(kind, int(text))
    return float(text) if pa.types.is_floating(kind) else text
