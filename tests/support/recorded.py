"""The recorded events of real connectors (tests/fixtures), by wire, as batches for decoders."""

from __future__ import annotations

import base64
import gzip
import json
from collections import defaultdict
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa

from cdc_service.core.types import RawBatch, Span

FIXTURES = Path(__file__).parent.parent / "fixtures" / "postgresql"


class Recorded:
    """The registry of the recording."""

    def __init__(self) -> None:
        self._texts = json.loads(gzip.decompress((FIXTURES / "avro_schemas.json.gz").read_bytes()))

    def schema(self, number: int) -> tuple[str, tuple[str, ...]] | None:
        text = self._texts.get(str(number))
        return None if text is None else (text, ())


def binary(text: str | None) -> bytes | None:
    return None if text is None else base64.b64decode(text)


@cache
def topics(case: str, wire: str = "json") -> dict[str, tuple[dict[str, Any], ...]]:
    """The records of each table's topic, by partition and offset."""
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    name = case if wire == "json" else f"{case}.{wire}"
    for line in gzip.decompress((FIXTURES / f"{name}.jsonl.gz").read_bytes()).splitlines():
        record = json.loads(line)
        if ".public." in record["topic"]:
            found[record["topic"]].append(record)
    return {topic: tuple(sorted(many, key=lambda r: (r["partition"], r["offset"]))) for topic, many in found.items()}


def config_of(case: str) -> dict[str, str]:
    """The settings of the connector that recorded it as JSON."""
    config: dict[str, str] = json.loads((FIXTURES / "index.json").read_text())[case]["config"]
    return config


def batch_of(topic: str, records: Iterable[dict[str, Any]]) -> RawBatch:
    records = list(records)
    offsets: dict[int, list[int]] = defaultdict(list)
    for record in records:
        offsets[record["partition"]].append(record["offset"])
    return RawBatch(
        topic,
        pa.array([binary(r["key"]) for r in records], pa.binary()),
        pa.array([binary(r["value"]) for r in records], pa.binary()),
        pa.array([r["partition"] for r in records], pa.int32()),
        pa.array([r["offset"] for r in records], pa.int64()),
        tuple(Span(partition, own[0], own[-1] + 1, len(own)) for partition, own in offsets.items()),
        lambda place: [(name, binary(value)) for name, value in records[place]["headers"]],
    )
