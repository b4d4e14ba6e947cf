"""Debezium envelopes as the connector's JSON converter writes them, built for tests: compact, every field of the payload present."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pyarrow as pa

from cdc_service.core.types import Headers, RawBatch, Span

PLACEHOLDER = "__unsent_7f3a9c21__"


@dataclass(frozen=True)
class Col:
    """A column as the connector's schema describes it."""

    name: str
    kind: str = "int32"
    source: str = "INT4"
    semantic: str | None = None
    optional: bool = True
    length: int | None = None
    scale: int | None = None
    default: Any = None
    items: Mapping[str, Any] | None = None
    parameters: Mapping[str, str] = field(default_factory=dict)

    def schema(self) -> dict[str, Any]:
        parameters = {"__debezium.source.column.type": self.source, **self.parameters}
        if self.length is not None:
            parameters["__debezium.source.column.length"] = str(self.length)
        if self.scale is not None:
            parameters["__debezium.source.column.scale"] = str(self.scale)
        result: dict[str, Any] = {"type": self.kind, "optional": self.optional}
        if self.items is not None:
            result["items"] = dict(self.items)
        if self.semantic is not None:
            result |= {"name": self.semantic, "version": 1}
        if self.default is not None:
            result["default"] = self.default
        return {**result, "parameters": parameters, "field": self.name}


def number(name: str, precision: int, scale: int, **more: Any) -> Col:
    return Col(name, "string", "NUMERIC", length=precision, scale=scale, **more)


def text(name: str, source: str = "TEXT", semantic: str | None = None, **more: Any) -> Col:
    return Col(name, "string", source, semantic, **more)


def listed(name: str, kind: str, source: str, semantic: str | None = None) -> Col:
    items: dict[str, Any] = {"type": kind, "optional": True} | ({"name": semantic} if semantic else {})
    return Col(name, "array", source, items=items)


@dataclass(frozen=True)
class Block:
    """The ``source`` block of a connector's events: ``fields`` as they stand where nothing else is said, which of them name the ``table``,
    and the fields of its ``schema`` (PostgreSQL's is abbreviated)."""

    fields: Mapping[str, Any]
    table: tuple[str, str]
    schema: Sequence[Mapping[str, Any]]


POSTGRESQL = Block(
    {
        "version": "3.6.3.Final", "connector": "postgresql", "name": "shop", "ts_ms": 1795459285447, "snapshot": None, "db": "shop",
        "sequence": None, "ts_us": 1795459285447293, "ts_ns": 1795459285447293000, "schema": "public", "table": "t", "txId": 726, "lsn": 1,
        "xmin": None, "origin": None, "origin_lsn": None,
    },
    ("schema", "table"),
    [{"type": "int64", "optional": True, "field": "lsn"}],
)  # fmt: skip


def dumps(document: Any) -> bytes:
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()


@dataclass(frozen=True)
class Table:
    """Makes the records of one version of one table."""

    columns: Sequence[Col]
    key: Sequence[str] = ("id",)
    name: str = "t"
    schema: str = "public"
    block: Block = POSTGRESQL

    @cached_property
    def value_schema(self) -> bytes:
        row = {
            "type": "struct",
            "fields": [column.schema() for column in self.columns],
            "optional": True,
            "name": f"shop.{self.schema}.{self.name}.Value",
        }
        fields = [{**row, "field": "before"}, {**row, "field": "after"}]
        fields += [{"type": "struct", "fields": list(self.block.schema), "optional": False, "field": "source"}]
        fields += [{"type": "string", "optional": False, "field": "op"}]
        return dumps(
            {"type": "struct", "fields": fields, "optional": False, "name": f"shop.{self.schema}.{self.name}.Envelope", "version": 2}
        )

    @cached_property
    def key_schema(self) -> bytes:
        by_name = {column.name: column for column in self.columns}
        fields = []
        for name in self.key:
            column = by_name[name]
            one: dict[str, Any] = {"type": column.kind, "optional": False}
            if column.semantic:
                one |= {"name": column.semantic, "version": 1}
            fields.append({**one, "field": name})
        return dumps({"type": "struct", "fields": fields, "optional": False, "name": f"shop.{self.schema}.{self.name}.Key"})

    def value(
        self,
        op: str,
        after: Mapping[str, Any] | None = None,
        /,
        *,
        before: Mapping[str, Any] | None = None,
        **source: Any,
    ) -> bytes:
        """``source`` is what its block holds instead of what it holds else."""
        where = {**self.block.fields, **dict(zip(self.block.table, (self.schema, self.name), strict=True)), **source}
        whole = {
            "before": before, "after": after, "source": where, "transaction": None, "op": op, "ts_ms": 1795459285447,
            "ts_us": 1795459285447293, "ts_ns": 1795459285447293000,
        }  # fmt: skip
        return self.wrap(dumps(whole))

    def wrap(self, payload: bytes) -> bytes:
        return b'{"schema":' + self.value_schema + b',"payload":' + payload + b"}"

    def key_of(self, row: Mapping[str, Any]) -> bytes:
        return b'{"schema":' + self.key_schema + b',"payload":' + dumps({name: row[name] for name in self.key}) + b"}"

    def change(self, op: str, row: Mapping[str, Any], /, **more: Any) -> Record:
        """A record with the key of ``row``; a delete has the row before it."""
        after = None if op == "d" else row
        return Record(self.key_of(row) if self.key else None, self.value(op, after, before=row if op == "d" else None, **more))


@dataclass(frozen=True)
class Record:
    key: bytes | None
    value: bytes | None
    partition: int = 0
    headers: Headers = ()


def raw(records: Sequence[Record], topic: str = "shop.public.t", start: int = 0) -> RawBatch:
    """Records as they stand in the log, numbered per partition from ``start``; spans end right behind the last."""
    ordered = sorted(records, key=lambda record: record.partition)
    offsets: list[int] = []
    heads: dict[int, int] = {}
    for record in ordered:
        heads.setdefault(record.partition, start)
        offsets.append(heads[record.partition])
        heads[record.partition] += 1
    return RawBatch(
        topic,
        pa.array([record.key for record in ordered], pa.binary()),
        pa.array([record.value for record in ordered], pa.binary()),
        pa.array([record.partition for record in ordered], pa.int32()),
        pa.array(offsets, pa.int64()),
        tuple(Span(partition, start, stop, stop - start) for partition, stop in heads.items()),
        lambda place: ordered[place].headers,
    )
