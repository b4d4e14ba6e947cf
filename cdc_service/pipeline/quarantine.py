"""What a person does about parked records: look at them, replay them, discard them. Called on the line's thread.

Promises: a replayed record goes the way of any other, from its bytes, in the order of its key, and is marked in the transaction that
applies it; what cannot be applied yet stays parked with the reason it has now, and all of its key behind it; a row that holds something
newer keeps it. A discarded record is left out for good, and no unsent value is taken from a row that lacks it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import structlog

from cdc_service.core.clock import rfc3339
from cdc_service.core.errors import CdcError, ConfigError
from cdc_service.core.keys import key_text
from cdc_service.core.types import (
    META,
    ChangeBatch,
    Decision,
    Delta,
    LogId,
    Mode,
    Op,
    RawBatch,
    Rejected,
    Span,
    TableId,
    TableSchema,
    Target,
)
from cdc_service.core.validate import nothing_parked
from cdc_service.pipeline.buffer import one_version
from cdc_service.pipeline.reread import Unreadable, Why, completed
from cdc_service.pipeline.table_task import TableTask
from cdc_service.ports.destination import Destination, Quarantined, UnsentUnknown

RECORDS_AT_ONCE = 500
"""About so many records are one transaction: all of as many keys."""
RECORDS_MAX = 10_000
"""The most that one call replays or discards, oldest first; the next call goes on."""
STATES = ("parked", "replayed", "discarded", "superseded")
LISTED = 100
LISTED_MAX = 10_000
NOT_NOW = ("needs_resync", "needs_decision")
"""States in which rows of the log have no place yet."""

Place = tuple[int, int]
"""(partition, offset)"""


@dataclass(frozen=True, slots=True)
class Listed:
    """A table whose records are only looked at."""

    source: TableId
    target: Target
    destination: Destination


@dataclass(frozen=True, slots=True)
class Asked:
    """Which parked records a person means, who that is and why: those of a key, of a code, one by its id; all where none is given."""

    key: str = ""
    code: str = ""
    id: str = ""
    by: str = ""
    reason: str = ""
    and_replay_rest: bool = False

    @staticmethod
    def of(body: Mapping[str, Any]) -> Asked:
        """Out of a request's body. Raises ConfigError for what is of another kind."""
        texts = {name: body.get(name) or "" for name in ("key", "code", "id", "by", "reason")}
        rest = body.get("and_replay_rest") or False
        if not all(isinstance(text, str) for text in texts.values()) or not isinstance(rest, bool):
            hint = 'send {"table": "public.orders", "key": "[\\"7\\"]", "reason": "why"}'
            raise ConfigError("key, code, id, by and reason are texts, and_replay_rest is true or false", hint=hint, code="usage")
        return Asked(**texts, and_replay_rest=rest)

    def matches(self, record: Quarantined) -> bool:
        return self.key in ("", record.key_text) and self.code in ("", record.code) and self.id in ("", record.id)


@dataclass(slots=True)
class _Work:
    """One call on one table: what is decided and by whom, and what came of it so far."""

    table: TableTask
    asked: Asked
    log: LogId
    discarded: frozenset[str]
    batch_id: str
    tainted: frozenset[str]
    """Keys of which a record was discarded, now or before."""
    done: Counter[str] = field(default_factory=Counter)
    still: Counter[tuple[str, str]] = field(default_factory=Counter)


def do(action: str, tables: Sequence[TableTask], body: Mapping[str, Any]) -> dict[str, Any]:
    """list and show look at all of ``tables``, replay and discard decide about records of one."""
    asked = Asked.of(body)
    for table in tables:
        # Another process of the group may have acted on the table since it was opened here.
        table.state.load()
    if action == "list":
        looked_at = [Listed(table.source, table.target, table.context.destination) for table in tables]
        return listed(looked_at, asked, body.get("state", "parked"), body.get("most", LISTED))
    if action == "show":
        found = next((shown for table in tables if (shown := _shown(table, asked.id)) is not None), None)
        if found is None:
            raise _unknown()
        return found
    return (replay if action == "replay" else discard)(tables[0], asked)


def listed(tables: Sequence[Listed], asked: Asked, state: object, most: object) -> dict[str, Any]:
    """The records, each table's oldest first, without their bytes, and how many the quarantine has of each kind."""
    if state not in (*STATES, "all") or type(most) is not int or not 0 < most <= LISTED_MAX:
        hint = f"state: {', '.join(STATES)} or all; most: 1 to {LISTED_MAX}"
        raise ConfigError("state or most is none that there is", hint=hint, code="usage")
    state = "" if state == "all" else str(state)
    ids = [asked.id] if asked.id else []
    records: list[dict[str, Any]] = []
    counts = []
    for table in tables:
        d = table.destination
        totals = d.totals(table.target)
        if totals.waiting or totals.decided:
            counts.append({"table": str(table.source), "waiting": dict(totals.waiting), "decided": dict(totals.decided)})
            found = d.quarantined(table.target, state=state, key=asked.key, code=asked.code, ids=ids, most=most + 1)
            records += [_row(table.source, record) for record in found]
    return {"tables": counts, "records": records[:most], "more": len(records) > most}


def shown(tables: Sequence[Listed], asked: Asked) -> dict[str, Any]:
    """One record with its bytes, of a table that is loaded by queries: nothing waits behind it, and reading its row again is what heals."""
    for table in tables if asked.id else ():
        for record in table.destination.quarantined(table.target, ids=[asked.id], whole=True, most=1):
            bytes_ = {"key_bytes": _readable(record.key), "value": _readable(record.value), "headers": list[Any]()}
            again = "it is read again by the next load of its row"
            return {**_row(table.source, record), "topic": "", "position": None, "now": again, **bytes_, "behind": []}
    raise _unknown()


def _unknown() -> ConfigError:
    return ConfigError("the quarantine has no record of this id", hint="cdc quarantine list --state all", code="unknown_record")


def _shown(table: TableTask, id_: str) -> dict[str, Any] | None:
    """One record with its bytes, what waits behind it, and whether it could be applied now; None where the table has no such record."""
    d = table.context.destination
    found = d.quarantined(table.target, ids=[id_], whole=True, most=1) if id_ else ()
    if not found:
        return None
    record = found[0]
    same = d.quarantined(table.target, state="parked", key=record.key_text, most=RECORDS_MAX) if record.key_text else []
    later = [
        _row(table.source, r) for r in same if (r.topic_id, r.partition) == (record.topic_id, record.partition) and r.offset > record.offset
    ]
    position, now = _judged(table, record)
    headers = [{"name": name, "value": _readable(value)} for name, value in record.headers or ()]
    bytes_ = {"key_bytes": _readable(record.key), "value": _readable(record.value), "headers": headers}
    return {**_row(table.source, record), "topic": table.config.topic, "position": position, "now": now, **bytes_, "behind": later}


def replay(table: TableTask, asked: Asked) -> dict[str, Any]:
    """Replays the records that are meant, each with all that is parked of its key."""
    parked = _parked(table, asked)
    meant = [r for r in parked if asked.matches(r)]
    keys = {r.key_text for r in meant if r.key_text is not None}
    ids = {r.id for r in meant}
    return _decide(table, asked, [r for r in parked if r.key_text in keys or r.id in ids], frozenset())


def discard(table: TableTask, asked: Asked) -> dict[str, Any]:
    """Leaves the records out that are meant and no other; with ``and_replay_rest`` what is parked of their keys beside is replayed."""
    if not asked.reason.strip():
        raise ConfigError("to discard records needs a reason", hint="--reason TEXT: it is kept with them", code="usage")
    if not (asked.key or asked.code or asked.id):
        raise ConfigError("which records are to be discarded?", hint="name them by --key, --id or --code", code="usage")
    parked = _parked(table, asked)
    ids = frozenset(r.id for r in parked if asked.matches(r))
    keys = {r.key_text for r in parked if r.id in ids and r.key_text is not None} if asked.and_replay_rest else set()
    return _decide(table, asked, [r for r in parked if r.id in ids or r.key_text in keys], ids)


def _parked(table: TableTask, asked: Asked) -> Sequence[Quarantined]:
    found = table.context.destination.quarantined(table.target, state="parked", most=RECORDS_MAX)
    if not any(asked.matches(r) for r in found):
        which = " of this key, code or id" if asked.key or asked.code or asked.id else ""
        hint = f"cdc quarantine list {table.source} --state all"
        raise CdcError(f"{table.source} has no parked records{which}", hint=hint, code="nothing_parked")
    return found


def _decide(table: TableTask, asked: Asked, wanted: Sequence[Quarantined], discarded: frozenset[str]) -> dict[str, Any]:
    if len(wanted) > len(discarded):
        _refuse_replay(table)
    d = table.context.destination
    # Records that are read already are screened by what was parked before: they are read again, behind what is decided now.
    table.drop()
    table.look_up()
    before = d.quarantined(table.target, state="discarded", most=RECORDS_MAX)
    tainted = frozenset(r.key_text for r in (*before, *(r for r in wanted if r.id in discarded)) if r.key_text is not None)
    logs = {c.log.topic_id: c.log for c in d.checkpoints(table.target)}
    batch_id, total = f"quarantine-{table.context.clock.wall_us()}", Counter[str]()
    still: Counter[tuple[str, str]] = Counter()
    for topic_id, records in _by_topic(wanted).items():
        # Only a truncation asks for the log, and it has to be the one whose checkpoint is kept.
        log = logs.get(topic_id, LogId("", table.config.topic, topic_id))
        for chunk in _chunks(records):
            work = _Work(table, asked, log, discarded, batch_id, tainted)
            try:
                _settle(work, chunk)
            finally:
                total, still = total + work.done, still + work.still
    table.tally.recount()
    left = table.tally.waiting.total()
    structlog.get_logger().info(
        "quarantine decided", table=str(table.source), by=asked.by, replayed=total["replayed"], discarded=total["discarded"], parked=left
    )
    return {
        "table": str(table.source),
        "state": table.state.name,
        "replayed": total["replayed"],
        "discarded": total["discarded"],
        "still": [{"code": code, "message": message, "records": n} for (code, message), n in sorted(still.items())],
        "waiting": left,
    }


def _refuse_replay(table: TableTask) -> None:
    if not table.config.keyed:
        raise CdcError(
            f"{table.source} has no key, so nobody can tell whether the log holds the change already",
            hint=f"cdc resync {table.source} begins a new generation of its log; cdc quarantine discard leaves the record out",
            code="keyless_replay",
        )
    if (now := table.state.now).state in NOT_NOW:
        raise CdcError(f"{table.source} is {now.state}: {now.error_message}", hint=now.error_hint, code=now.state)


def _by_topic(records: Sequence[Quarantined]) -> Mapping[str, list[Quarantined]]:
    found: dict[str, list[Quarantined]] = defaultdict(list)
    for record in records:
        found[record.topic_id].append(record)
    return found


def _chunks(records: Sequence[Quarantined]) -> Iterator[list[Quarantined]]:
    """All records of about as many keys as fill RECORDS_AT_ONCE."""
    keys: dict[str, list[Quarantined]] = defaultdict(list)
    for record in records:
        keys[record.key_text or record.id].append(record)
    chunk: list[Quarantined] = []
    for own in keys.values():
        chunk += own
        if len(chunk) >= RECORDS_AT_ONCE:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _settle(work: _Work, chunk: Sequence[Quarantined]) -> None:
    """Decides on all records of the chunk, which holds whole keys. Done in one transaction where all of them have one schema version;
    else the versions follow one another, each in its own."""
    left = {r.id: r for r in chunk}
    refused: dict[Place, Why] = {}
    while True:
        try:
            _pass(work, left, refused)
            return
        except Unreadable as lost:
            refused |= lost.records


def _pass(work: _Work, left: dict[str, Quarantined], refused: Mapping[Place, Why]) -> None:
    """Applies what of ``left`` can be applied; what is decided leaves it as its transaction ends, the rest stays parked."""
    replayed = [r for r in left.values() if r.id not in work.discarded]
    again = {(r.partition, r.offset): r.id for r in replayed}
    batches = _decoded(work, replayed, refused)
    still = {again[r.partition, r.offset]: r for batch in batches for r in batch.rejected}
    while True:
        count, run = one_version(batches) if batches else (0, [])
        del batches[:count]
        mine = [again[place] for batch in run for place in _places(batch)]
        if not batches:
            # What is neither row nor rejected changes no state (a tombstone, say); it goes with the last.
            mine = [id_ for id_ in again.values() if id_ in left and id_ not in still]
        gone = tuple(id_ for id_ in left if id_ in work.discarded)
        news = {id_: r for id_, r in still.items() if _is_news(left[id_], r)}
        decision = Decision(work.asked.by, work.asked.reason, tuple(mine), gone, news)
        delta = _delta(work, run) if any(batch.num_rows for batch in run) else _nothing(work)
        work.table.apply(run, replace(delta, spans=(), rejected=(), counts={}, tails={}, decision=decision), {}, work.log)
        for id_ in (*mine, *gone):
            del left[id_]
        work.done.update(replayed=len(mine), discarded=len(gone))
        if not batches:
            work.still.update((r.code, r.message) for r in still.values())
            return


def _is_news(record: Quarantined, now: Rejected) -> bool:
    same = (record.stage, record.code, record.message) == (now.stage, now.code, now.message)
    return not same or (record.key_text is None and now.key_text is not None)


def _places(batch: ChangeBatch) -> Iterator[Place]:
    return zip(batch.meta["partition"].to_pylist(), batch.meta["offset"].to_pylist(), strict=True)


def _decoded(work: _Work, records: Sequence[Quarantined], refused: Mapping[Place, Why]) -> list[ChangeBatch]:
    """The records on the way of any other. Behind a key of which others wait that are not among them, they wait on."""
    if not records:
        return []
    d, target = work.table.context.destination, work.table.target
    here = pa.array({r.key_text for r in records if r.key_text is not None}, pa.string())
    parked = d.parked_keys(target)
    parked = parked.filter(pc.invert(pc.is_in(parked, here)))
    raw = raw_batch(work.table, d.quarantined(target, state="parked", ids=[r.id for r in records], whole=True, most=RECORDS_MAX))
    found, _ = work.table.prepare.fitting(raw, parked, refused)
    return [work.table.translated(batch) for batch in found]


def _delta(work: _Work, run: Sequence[ChangeBatch]) -> Delta:
    """What the run comes to. Where a record of a key was discarded, no value that was not sent can be taken from an earlier one: the row is
    read again at the source."""
    m, table = work.table.context, work.table
    delta = table.folded(run, work.batch_id)
    if table.target.mode is Mode.APPEND:
        return delta
    keys = {key for batch in run for key in _unsent_keys(batch, work.tainted)}
    rows = pc.and_(pc.is_in(delta.meta["key"], pa.array(keys, pa.string())), pc.not_equal(delta.meta["op"], int(Op.DELETE)))
    lost = delta.data.select(delta.schema.key).filter(rows)
    return completed(delta, UnsentUnknown(lost, ()), m.source, table.prepare) if lost.num_rows else delta


def _unsent_keys(batch: ChangeBatch, tainted: Collection[str]) -> Iterator[str]:
    """Keys of changes that lack a value and follow, under this key or one that they moved from, a discarded record."""
    if batch.unsent is None or not tainted:
        return
    among = pa.array(tainted, pa.string())
    text = key_text(batch.data.select(batch.schema.key))
    follows = pc.is_in(text, among)
    if batch.old_key is not None:
        follows = pc.or_(follows, pc.is_in(key_text(batch.old_key), among))
    for column in batch.unsent.columns:
        yield from text.filter(pc.and_(follows, column)).to_pylist()


def _nothing(work: _Work) -> Delta:
    """A delta without rows, under the target's own schema."""
    known = work.table.context.destination.schemas(work.table.target)
    schema = known[-1] if known else TableSchema(work.table.source, (), ())
    return Delta(work.batch_id, work.table.target, schema, schema.arrow.empty_table(), META.empty_table(), (), {})


def _judged(table: TableTask, record: Quarantined) -> tuple[str | None, str]:
    """The record's position in the source's log, and what would become of it now if it were replayed alone."""
    raw = raw_batch(table, [record])
    try:
        records = [n for batch in table.prepare.changes(raw) for n in batch.meta["record"].to_pylist() if n > 0]
        fitting, _ = table.prepare.fitting(raw, nothing_parked())
    except CdcError as error:
        return None, error.message
    refused = [f"{r.code}: {r.message}" for batch in fitting for r in batch.rejected]
    return (str(records[0]) if records else None), (refused[0] if refused else "it can be applied")


def _row(table: TableId, record: Quarantined) -> dict[str, Any]:
    return {
        "id": record.id,
        "table": str(table),
        "partition": record.partition,
        "offset": record.offset,
        "key": record.key_text,
        "stage": record.stage,
        "code": record.code,
        "message": record.message,
        "state": record.state,
        "parked_at": rfc3339(record.parked_us),
        "decided_by": record.decided_by,
        "decided_at": rfc3339(record.decided_us),
        "reason": record.reason,
    }


def _readable(value: bytes | None) -> str | None:
    """Text where it is UTF-8, else hexadecimal digits behind 0x."""
    if value is None:
        return None
    try:
        return value.decode()
    except UnicodeDecodeError:
        return f"0x{value.hex()}"


def raw_batch(table: TableTask, records: Sequence[Quarantined]) -> RawBatch:
    """The records as they came from Kafka."""
    ordered = sorted(records, key=lambda r: (r.partition, r.offset))
    spans: dict[int, Span] = {}
    for r in ordered:
        old = spans.get(r.partition, Span(r.partition, r.offset, r.offset, 0))
        spans[r.partition] = replace(old, stop=r.offset + 1, records=old.records + 1)
    return RawBatch(
        table.config.topic,
        pa.array([r.key for r in ordered], pa.binary()),
        pa.array([r.value for r in ordered], pa.binary()),
        pa.array([r.partition for r in ordered], pa.int32()),
        pa.array([r.offset for r in ordered], pa.int64()),
        tuple(spans.values()),
        lambda i: ordered[i].headers or (),
    )
