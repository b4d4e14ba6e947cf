"""Arrow columns as the CSV text that PostgreSQL's COPY reads, exactly and by whole columns (core.postgresql says each value's text)."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
from pyarrow import csv

from cdc_service.databases.postgresql import input_text

BLOCK_ROWS = 16_384
BLOCK_BYTES = 8 * 2**20
"""At most so much of the batch is one block: what stands in memory beside it."""

_OPTIONS = csv.WriteOptions(include_header=False)


def csv_blocks(table: pa.Table) -> Iterator[memoryview]:
    """The rows of ``table`` as COPY ... (FORMAT csv) takes them: NULL is nothing, an empty text is two quotes."""
    for batch in table.to_batches(max_chunksize=rows_at_once(table)):
        sink = pa.BufferOutputStream()
        columns = [column if _is_plain(column.type) else input_text(column) for column in batch.columns]
        csv.write_csv(pa.record_batch(columns, names=batch.schema.names), sink, _OPTIONS)
        yield memoryview(sink.getvalue())


def rows_at_once(table: pa.Table) -> int:
    """How many rows are one block."""
    return max(1, min(BLOCK_ROWS, BLOCK_BYTES * int(table.num_rows) // max(1, int(table.nbytes))))


def _is_plain(type_: pa.DataType) -> bool:
    """Whether pyarrow writes it as PostgreSQL reads it."""
    return bool(pa.types.is_boolean(type_) or pa.types.is_integer(type_) or pa.types.is_string(type_))
