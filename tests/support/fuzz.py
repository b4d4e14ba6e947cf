"""Recorded events, some of them mutated, and what must hold of a decoder that reads them: no crash, no hang, no value changed in silence.

A batch is checked in a process of its own (``Child``), because a native reader may take its process with it. Of each batch must hold:

- nothing but ``several_tables`` (damage may make a record name another table) is raised, and every record is accounted for;
- the fast readers say of every record what the exact readers say of the same bytes, rejections and their reasons included; but of what no
  column takes they may overlook that it is no JSON (bytes that are not UTF-8, a bare NaN), and then the rest of the record is as written;
- records that were not touched come out as they do among their own;
- an accepted row of JSON holds what Python's own parser finds in its bytes, wherever the two can be compared as they are.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import pickle
import re
import resource
import select
import subprocess
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pytest

from cdc_service.core.errors import ConfigError, TableStopped
from cdc_service.core.logical import Kind
from cdc_service.core.types import ChangeBatch, Headers, RawBatch, Span, TableSchema
from cdc_service.ports.events import Decoder
from connectors.formats import avro_columns, blocks
from connectors.formats.avro import DebeziumAvroDecoder, Schemas
from connectors.formats.debezium_json import DebeziumJsonDecoder
from connectors.formats.schemaless import SchemalessJsonDecoder
from connectors.sources.postgresql.events import PostgresEvents
from tests.support.envelopes import PLACEHOLDER
from tests.support.plain import account, rows, told
from tests.support.recorded import FIXTURES, Recorded, batch_of, binary, config_of, topics

WIRES = ("json", "schemaless", "flat", "avro", "flat_avro")
_PLAIN = (Kind.BOOL, Kind.INT16, Kind.INT32, Kind.INT64)
RECORDS = 24
"""Records of a batch; a third of them is mutated."""
LIMIT_SECONDS = 60.0
"""A batch takes milliseconds; whoever needs so long hangs."""
MEMORY_BYTES = 8 << 30
"""Of addresses: a size that a record only claims must not be allocated."""


class Event(NamedTuple):
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]


@dataclass(frozen=True, slots=True)
class Subject:
    """The recorded events of one topic on one wire. ``log``: the table is kept as a log of changes."""

    wire: str
    case: str
    topic: str
    events: tuple[Event, ...]
    known: TableSchema | None = None
    log: bool = False

    def decoder(self) -> Decoder:
        logs = (self.topic,) if self.log else ()
        if self.wire in ("json", "flat"):
            return DebeziumJsonDecoder(PostgresEvents(), unavailable=PLACEHOLDER, logs=logs)
        if self.wire in ("avro", "flat_avro"):
            schemas = Schemas(Recorded(), lambda: 0.0, patience=0.0)
            return DebeziumAvroDecoder(PostgresEvents(), schemas, unavailable=PLACEHOLDER, logs=logs)
        assert self.known is not None
        return SchemalessJsonDecoder(PostgresEvents(), {self.topic: self.known}, _settings(self.case), logs=logs)


def _settings(case: str) -> Mapping[str, str]:
    return {**config_of(case), "value.converter.replace.null.with.default": "false"}


@cache
def subjects(wire: str) -> tuple[Subject, ...]:
    """All topics that were recorded on the wire, each once as a table and once as a log."""
    suffix = ".jsonl.gz" if wire == "json" else f".{wire}.jsonl.gz"
    cases = sorted(p.name.removesuffix(suffix) for p in FIXTURES.glob(f"*{suffix}") if p.name.count(".") == (2 if wire == "json" else 3))
    found = []
    for case in cases:
        known = _last_schemas(case) if wire == "schemaless" else {}
        for topic, records in topics(case, wire).items():
            events = tuple(Event(binary(r["key"]), binary(r["value"]), tuple((n, binary(v)) for n, v in r["headers"])) for r in records)
            made = [Subject(wire, case, topic, events, known.get(topic.split(".", 1)[1]), log) for log in (False, True)]
            found += [one for one in made if _readable(one)]
    return tuple(found)


def _last_schemas(case: str) -> dict[str, TableSchema]:
    decoder = DebeziumJsonDecoder(PostgresEvents(), unavailable=PLACEHOLDER)
    return {topic.split(".", 1)[1]: decoder.decode(batch_of(topic, records))[-1].schema for topic, records in topics(case).items()}


def _readable(subject: Subject) -> bool:
    try:
        subject.decoder()
    except ConfigError:  # Without schemas, some tables are refused.
        return False
    return True


def raw_of(subject: Subject, events: Sequence[Event]) -> RawBatch:
    return RawBatch(
        subject.topic,
        pa.array([e.key for e in events], pa.binary()),
        pa.array([e.value for e in events], pa.binary()),
        pa.array(np.zeros(len(events), np.int32)),
        pa.array(np.arange(len(events))),
        (Span(0, 0, len(events), len(events)),),
        lambda place: _headers(events[place]),
    )


def _headers(event: Event) -> Headers:
    return list(event.headers)


# What must hold


def check(subject: Subject, before: Sequence[Event], after: Sequence[Event]) -> str:
    """Raises AssertionError, or whatever the decoder raises; else says what became of the mutated events: accepted, parked or stopped."""
    fast, exact = _decoded(subject, after, fast=True), _decoded(subject, after, fast=False)
    if isinstance(fast, str) or isinstance(exact, str):
        assert fast == exact == "several_tables", (fast, exact)
        return "stopped"
    overlooked = _overlooked(subject, after, by_place(fast), by_place(exact))
    assert overlooked or [told(batch) for batch in fast] == [told(batch) for batch in exact], "the readers differ"
    touched = {place for place, (old, new) in enumerate(zip(before, after, strict=True)) if old != new}
    whole = _decoded(subject, before, fast=True)
    assert not isinstance(whole, str)
    expected, found = by_place(whole), by_place(fast)
    for place, row in expected.items():
        if place not in touched:
            assert found.get(place) == row, f"record {place} was not touched, and changed"
    if "avro" not in subject.wire and not overlooked:
        types = {int(offset): {c.name: c.type.kind for c in b.schema.columns} for b in fast for offset in b.meta["offset"].to_numpy()}
        for place in touched & types.keys():
            _as_written(subject, after[place], found[place], types[place])
    parked = {one.offset for batch in fast for one in batch.rejected}
    return "parked" if touched <= parked else "accepted"


def _overlooked(subject: Subject, events: Sequence[Event], fast: Mapping[int, Any], exact: Mapping[int, Any]) -> bool:
    """Whether the readers differ where the exact one met what is no JSON, and nowhere else."""
    differ = [place for place in fast.keys() | exact.keys() if fast.get(place) != exact.get(place)]
    for place in differ:
        assert exact.get(place) == "bad_json", f"the readers differ about record {place}: {exact.get(place)}, and fast {fast.get(place)}"
        event = events[place]
        if isinstance(fast[place], tuple):
            mended = _decoded(subject, [event._replace(value=_mended(event.value or b""), key=_mended(event.key or b""))], fast=False)
            assert not isinstance(mended, str)
            row = by_place(mended)[0]
            assert isinstance(row, tuple), f"record {place} is read, and is not even when it is JSON: {row}"
            about = {**row[3], "offset": place}
            assert (*row[:3], about, row[4]) == fast[place], f"record {place} says something else"
    return bool(differ)


def _mended(content: bytes) -> bytes | None:
    """The document with what is no JSON in it replaced."""
    if not content:
        return None
    document = json.loads(content.decode("utf-8", "replace"), parse_constant=lambda _: None)
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()


def _decoded(subject: Subject, events: Sequence[Event], *, fast: bool) -> list[ChangeBatch] | str:
    def refuse(*_: Any) -> Any:
        raise blocks.Refused

    def unfit(*_: Any) -> Any:
        raise avro_columns._Unfit

    with pytest.MonkeyPatch.context() as patch:
        if not fast:
            patch.setattr(blocks, "columnar", refuse)
            patch.setattr(avro_columns, "Columns", unfit)
        try:
            batches = list(subject.decoder().decode(raw_of(subject, events)))
        except TableStopped as stopped:
            return stopped.code
    for batch in batches:
        records, accounted = account(batch)
        assert records == accounted, "the account does not close"
        for column in batch.data.columns:
            column.validate(full=not pa.types.is_time(column.type))  # 24:00:00 is a time of day in PostgreSQL.
    return batches


def by_place(batches: Sequence[ChangeBatch]) -> dict[int, Any]:
    """What became of each record: its row with all that is said of it, or why it was rejected."""
    found: dict[int, Any] = {}
    for batch in batches:
        data, unsent, old = rows(batch.data) or {}, rows(batch.unsent) or {}, rows(batch.old_key) or {}
        images = [None] * batch.num_rows if batch.before is None else batch.before.to_pylist()
        meta = rows(batch.meta.drop_columns(["index"])) or {}
        for place, offset in enumerate(meta["offset"]):
            hidden = {name for name, flags in unsent.items() if flags[place]}
            left = {name: values[place] for name, values in old.items() if values[place] is not None}
            about = {name: values[place] for name, values in meta.items()}
            found[offset] = ({name: values[place] for name, values in data.items()}, hidden, left, about, images[place])
        found.update({one.offset: one.code for one in batch.rejected})
    return found


def _as_written(subject: Subject, event: Event, row: Any, kinds: Mapping[str, Kind]) -> None:
    """Python's own parser is the witness for NULL, and for what stands in the event as it stands in the table."""
    assert event.value is not None
    values, hidden, _, about, _ = row
    document = json.loads(event.value)
    payload = document["payload"] if subject.wire != "schemaless" else document
    written = payload if subject.wire == "flat" else payload["after"]
    if written is None or about["op"] >= 3:
        return
    for name, value in values.items():
        if kinds[name] in _PLAIN and value is not None:
            assert (value, type(value)) == (written[name], type(written[name])), f"{name} is not what the event says"
        if name in written:
            assert (written[name] is None) <= (value is None), f"{name} came out of nothing"
            assert (value is None) <= (written[name] is None or name in hidden), f"{name} was lost"


# Mutations

_TOKENS = re.compile(rb'-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?|"(?:[^"\\]|\\.)*"|true|false|null|[{}\[\]:,]')
_HOSTILE = (
    b"null", b"true", b"false", b"0", b"-0", b"-1", b"1.0", b"1.5", b"1e5", b"1e400", b"-1e-400", b"NaN", b"Infinity", b"-Infinity", b"01",
    b'"NaN"', b'"Infinity"', b'"-infinity"', b'""', b'"\\u0000"', b'"\\ud800"', b'"\xff"', b'"\xed\xa0\x80"', b"[]", b"{}", b"[[]]",
    b"32768", b"-32769", b"2147483648", b"-2147483649", b"9223372036854775807", b"9223372036854775808", b"-9223372036854775809",
    b"18446744073709551616", b"1" * 400, b'"' + b"9" * 40 + b'"', b'"1e400"', b'"0x10"', b'" 1"', b'"+1"', b'"1_000"', b'"\xd9\xa1"',
    b'"2024-02-30T00:00:00Z"', b'"0000-00-00T00:00:00Z"', b'"2024-01-01T24:00:00Z"', b'"+292278994-08-17T07:12:55.807Z"', b'"=="',
    b"[" * 2000, b'{"a":' * 200, b"\n", b"\x00", b"}{", b"\xef\xbb\xbf", b" ", b"//", b'{"schema":null,"payload":null}', b'"c"', b'"d"',
)  # fmt: skip
_EDGES = (b"\x00", b"\x01", b"\x02", b"\x7f", b"\x80", b"\xfe", b"\xff", b"\x80" * 9 + b"\x01", b"\xff" * 9 + b"\x01", b"\xff" * 10)


def mutated(content: bytes, random: Random, other: bytes) -> bytes:
    """``content`` changed in one to three places; ``other`` is another record's."""
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        content = random.choice(_MUTATIONS)(content, random, other)
    return content


def _flipped(content: bytes, random: Random, other: bytes) -> bytes:
    found = bytearray(content or b"x")
    found[random.randrange(len(found))] ^= 1 << random.randrange(8)
    return bytes(found)


def _edged(content: bytes, random: Random, other: bytes) -> bytes:
    place, gone = random.randrange(len(content) + 1), random.choice((0, 1, 1, 2, 8))
    return content[:place] + random.choice(_EDGES) + content[place + gone :]


def _cut(content: bytes, random: Random, other: bytes) -> bytes:
    low, high = sorted(random.randrange(len(content) + 1) for _ in range(2))
    return random.choice((content[:low], content[low:], content[:low] + content[high:]))


def _doubled(content: bytes, random: Random, other: bytes) -> bytes:
    place, size = random.randrange(len(content) + 1), random.choice((1, 4, 30, 400, len(content)))
    return content[:place] + content[place : place + size] + content[place:]


def _crossed(content: bytes, random: Random, other: bytes) -> bytes:
    return content[: random.randrange(len(content) + 1)] + other[random.randrange(len(other) + 1) :]


def _token(content: bytes, random: Random, other: bytes) -> bytes:
    """A token of JSON (near the end most often: there stands the payload) becomes something else, moves or goes."""
    tokens = list(_TOKENS.finditer(content, int(len(content) * random.choice((0, 0.5, 0.9)))))
    if not tokens:
        return content + random.choice(_HOSTILE)
    one, two = random.choice(tokens), random.choice(tokens)
    new = random.choice((random.choice(_HOSTILE), random.choice(_HOSTILE), two[0], b"", one[0] + b"," + one[0], b" " + one[0] + b"\t"))
    return content[: one.start()] + new + content[one.end() :]


def _member(content: bytes, random: Random, other: bytes) -> bytes:
    """A member of an object goes, comes twice, gets another name, or another value."""
    found = list(re.finditer(rb'"(?:[^"\\]|\\.)*":', content))
    if not found:
        return content
    one, two = random.choice(found), random.choice(found)
    whole = random.choice((one[0] + random.choice(_HOSTILE) + b"," + one[0], two[0], b'"other":', b'"other":1,' + one[0], one[0].upper()))
    return content[: one.start()] + whole + content[one.end() :]


def _spelled(content: bytes, random: Random, other: bytes) -> bytes:
    """The same document in other bytes: indented, escaped, or with its members in another order."""
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        return content + b" "
    if random.random() < 0.3 and isinstance(document, dict) and isinstance(document.get("payload"), dict):
        document["payload"] = dict(reversed(document["payload"].items()))
    made = random.choice(
        (
            lambda: json.dumps(document, indent=1),
            lambda: json.dumps(document, separators=(",", ":"), ensure_ascii=True),
            lambda: json.dumps(document, separators=(",", ":"), ensure_ascii=False),
            lambda: json.dumps(document, sort_keys=True),
        )
    )
    return made().encode("utf-8", "surrogatepass")


_MUTATIONS = (_flipped, _flipped, _edged, _edged, _cut, _doubled, _crossed, _token, _token, _token, _member, _member, _spelled)


def drawn(wire: str, random: Random) -> tuple[int, list[Event], list[Event]]:
    """(place in ``subjects``, events as recorded, the same with a third mutated in key, value or headers)."""
    own = subjects(wire)
    number = random.randrange(len(own))
    events = own[number].events
    start = random.randrange(max(1, len(events) - RECORDS))
    before = list(events[start : start + RECORDS])
    after = list(before)
    for place in random.sample(range(len(before)), max(1, len(before) // 3)):
        after[place] = _changed(before[place], random, random.choice(events))
    return number, before, after


def _changed(event: Event, random: Random, other: Event) -> Event:
    part = random.choice(("value",) * 7 + ("key",) * 3 + ("headers",))
    if part == "headers" and event.headers:
        headers = tuple((name, None if value is None else mutated(value, random, other.value or b"")) for name, value in event.headers)
        return event._replace(headers=headers)
    if random.random() < 0.03:
        return event._replace(**{"key" if part == "key" else "value": random.choice((None, b"", b"\x00", b"{}", b"null"))})
    if part == "key":
        return event._replace(key=mutated(event.key or b"x", random, other.key or b""))
    return event._replace(value=mutated(event.value or b"x", random, other.value or b""))


# The process


class Failed(AssertionError):
    """A batch broke a promise; the message holds the mutated records."""


class Child:
    """A process that checks batches, one after the other."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def check(self, wire: str, number: int, before: Sequence[Event], after: Sequence[Event]) -> str:
        """Raises Failed where a promise is broken, the process dies or it does not answer within LIMIT_SECONDS."""
        if self._process is None:
            self._process = self._started()
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            pickle.dump((wire, number, list(map(tuple, before)), list(map(tuple, after))), process.stdin)
            process.stdin.flush()
            ready, _, _ = select.select([process.stdout], [], [], LIMIT_SECONDS)
            answer = process.stdout.readline().decode() if ready else ""
        except BrokenPipeError:
            ready, answer = [process.stdout], ""
        if answer.startswith("ok "):
            return answer[3:].strip()
        ended = f"the process ended with {process.wait(10)}" if ready and not answer else "no answer: it hangs"
        self.close()
        why = json.loads(answer) if answer else ended
        subject = subjects(wire)[number]
        changed = [new for old, new in zip(before, after, strict=False) if old != new]
        shown = "\n".join(repr([_base64(e.key), _base64(e.value), [(n, _base64(v)) for n, v in e.headers]]) for e in changed)
        where = f"{wire}, {subject.case}, {subject.topic}, log={subject.log}"
        raise Failed(f"{where}: {why}\nmutated (key, value, headers in base64):\n{shown}")

    def _started(self) -> subprocess.Popen[bytes]:
        root = str(Path(__file__).parents[2])
        return subprocess.Popen(
            [sys.executable, "-m", "tests.support.fuzz"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=root,
            env={**os.environ, "PYTHONPATH": root}, bufsize=1 << 20,
        )  # fmt: skip

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()

    def close(self) -> None:
        self.kill()
        if self._process is not None:
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            self._process.stdout.close()
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
            self._process.wait()
            self._process = None


def _base64(content: bytes | None) -> str | None:
    return None if content is None else base64.b64encode(content).decode()


def batches(wire: str, seed: int, events: int) -> Iterator[tuple[int, list[Event], list[Event]]]:
    """Batches with so many mutated events in all; the same for the same seed."""
    random = Random(f"{wire} {seed}")
    while events > 0:
        number, before, after = drawn(wire, random)
        events -= sum(old != new for old, new in zip(before, after, strict=True))
        yield number, before, after


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # What a library prints must not be taken for an answer.
    while True:
        try:
            wire, number, before, after = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            said = check(subjects(wire)[number], [Event(*e) for e in before], [Event(*e) for e in after])
            print(f"ok {said}", file=answers, flush=True)
        except BaseException:
            print(json.dumps(traceback.format_exc()[-4000:]), file=answers, flush=True)


if __name__ == "__main__":
    main()
