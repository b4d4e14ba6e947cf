"""Reads the rows of a table for its load: in ranges of its pages, in one snapshot, as Arrow from the driver's binary protocol.

Promises: each value is exact, in its Arrow type or in the text of the connector's events; a table that has a value of which that is not so
raises CdcError (unloadable), and none of that range is given. While it reads nobody alters the table or writes it anew elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc
from sqlalchemy.engine import URL

from cdc_service.core.errors import CdcError
from cdc_service.core.logical import INFINITY, Kind
from cdc_service.core.types import Column, TableId
from connectors.sources.postgresql import scan
from connectors.sources.postgresql.catalog import MISSHAPEN, event_text, qualified, quoted
from connectors.sources.postgresql.scan import TableScan, Types

FIRST_US = -210_866_803_200_000_000
"""The first instant of PostgreSQL: 4713-11-24 BC."""


class TableLoad(TableScan):
    """ports.reader.Load. Where the rows lie in several tables (partitions), or the server cannot read a range of pages without reading all,
    there is one range: the whole table."""

    def __init__(self, url: URL, table: TableId, types: Mapping[TableId, Types]) -> None:
        super().__init__(url, table, types, lock=True)
        sql = f"SELECT COALESCE(pg_relation_filenode({scan.literal(qualified(table))}::regclass)::text, '') AS node"
        self.storage = str(self._fetch(sql)["node"][0].as_py())

    def __enter__(self) -> TableLoad:
        return self

    def ranges(self, size: int) -> Sequence[tuple[str, str]]:
        pages, block = self._pages(), int(self._fetch("SELECT current_setting('block_size')::int8 AS n")["n"][0].as_py())
        firsts = range(0, max(pages, 1), max(1, size // block))
        # The first and the last have no outer end: a table that is one range is read without a condition.
        return [(str(n) if n else "", "" if n == firsts[-1] else str(n + firsts.step)) for n in firsts]

    def as_text(self, columns: Sequence[Column]) -> frozenset[str]:
        return frozenset(c.name for c in columns if not self._is_native(c))

    def _is_native(self, column: Column) -> bool:
        type_, kind = self._type(column.name), column.type.kind
        return type_["category"] != "A" and kind is not Kind.UUID and type_["base"] in scan.NATIVE.get(kind, ())

    def batches(self, columns: Sequence[Column], low: str, high: str) -> Iterator[pa.RecordBatch]:
        texts = self.as_text(columns)
        forms = {c.name: self._text(c.name) if c.name in texts else f"t.{quoted(c.name)}" for c in columns}
        ends = [f"t.ctid >= '({low},0)'::tid" if low else None, f"t.ctid < '({high},0)'::tid" if high else None]
        for batch in self._read(self._select(forms, scan.conditioned(*ends))):
            arrays = [
                self._listed(c.name, scan.plain(array)) if c.name in texts else _in_range(scan.exact(scan.plain(array), c), c)
                for c, array in zip(columns, batch.columns, strict=True)
            ]
            yield pa.RecordBatch.from_arrays(arrays, [c.name for c in columns])

    def _type(self, name: str) -> dict[str, str]:
        if name not in self._types:
            raise _unloadable(name, "the source has no such column any more")
        return dict(self._types[name])

    def _text(self, name: str) -> str:
        type_ = self._type(name)
        found = event_text(type_["base"], type_["category"], f"t.{quoted(name)}", type_["type_schema"])
        if found is None:
            raise _unloadable(name, f"a {type_['type']} has no text that is exact")
        return found

    def _listed(self, name: str, texts: pa.Array) -> pa.Array:
        if self._types[name]["category"] == "A" and pc.any(pc.starts_with(texts, MISSHAPEN)).as_py():
            raise _unloadable(name, "an array in it is no list")
        return texts


def _in_range(array: pa.Array, column: Column) -> pa.Array:
    """The driver counts from 1970 without a look at the ends of 64 bits: an instant of the last years that the source knows wraps around
    to one before the first."""
    if column.type.kind in (Kind.TIMESTAMP, Kind.TIMESTAMPTZ):
        numbers = array.view(pa.int64())
        first = pc.min(numbers.filter(pc.not_equal(numbers, -INFINITY[column.type.kind]))).as_py()
        if first is not None and first < FIRST_US:
            raise _unloadable(column.name, "an instant in it is beyond the year 294246")
    return array


def _unloadable(name: str, why: str) -> CdcError:
    return CdcError(f"column {name}: {why}", code="unloadable")
