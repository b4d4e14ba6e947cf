"""The statements of one merge, written for any spelling: text and parameters, nothing runs here.

The staged table (``stage_columns``) has names of its own making, so that no column of the source, whatever it is called, meets ours:
``c<i>`` is column i of the target's own schema, ``unsent`` says by a 1 for which of the columns that have unsent values this one is, and
``b<j>`` is key column j of the base row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cdc_service.core.logical import Kind, LogicalType
from cdc_service.core.order import INCREMENTAL, Ties
from cdc_service.core.types import Delta, LogId, Mode, Op, TableSchema, Target
from mergers.sql.meta import SCOPE, MetaTable
from mergers.sql.spelling import Spelling, Statement

Compared = Literal["all", "deletes", "none"]
High = tuple[int | None, int | None]
"""The highest (commit, record) of a batch in one partition."""

STAGE = "_cdc_stage"
FILLED = "_cdc_filled"
PARKED = "_cdc_parked"

STAGED_META = ("n", "op", "part", "pos", "com", "rec", "src", "gen", "key", "moved")

_LONG, _INT, _TIME = LogicalType(Kind.INT64), LogicalType(Kind.INT32), LogicalType(Kind.TIMESTAMPTZ)

METADATA = (
    ("_cdc_synced_at", _TIME, "now()", True),
    ("_cdc_source_ts", _TIME, "s.src", True),
    ("_cdc_partition", _INT, "s.part", False),
    ("_cdc_offset", _LONG, "s.pos", True),
    ("_cdc_gen", _INT, "s.gen", False),
    ("_cdc_commit", _LONG, "s.com", True),
    ("_cdc_record", _LONG, "s.rec", False),
)
"""Row columns of every target: name, type, what a merge writes, and whether ``metadata: minimal`` leaves it out."""
MINOR = ("_cdc_minor", _LONG, "s.minor", False)
"""One more where the source's positions have a second part."""
DELETED = ("_cdc_deleted", LogicalType(Kind.BOOL), f"s.op = {int(Op.DELETE)}", False)
CHANGE = (
    ("_cdc_op", LogicalType(Kind.STRING), "s.letter", False),
    ("_cdc_seq", _LONG, "s.seq", False),
    ("_cdc_before", LogicalType(Kind.STRING), "s.before", False),
    ("_cdc_unsent", LogicalType(Kind.STRING), "s.missing", False),
)
"""More of them where the target is a log of changes, which keeps all."""
LETTERS = "rcudt"
"""Debezium's, in the order of Op."""
SPELLINGS = frozenset({Kind.NUMERIC, Kind.FLOAT32, Kind.FLOAT64, Kind.INTERVAL})
"""Kinds of which equal values may be spelled differently (1.0 and 1.00, 0.0 and -0.0, a month and 30 days): two keys by their text, and one
row by the warehouse's own comparison."""


def metadata_columns(target: Target) -> tuple[tuple[str, LogicalType, str, bool], ...]:
    more = (MINOR,) if target.ordering.minor else ()
    if target.mode is Mode.APPEND:
        return (*METADATA, *more, *CHANGE)
    ordering = ("_cdc_offset",) if target.ordering.ties is Ties.OFFSET else ()
    columns = (*(c for c in METADATA if target.full_metadata or not c[3] or c[0] in ordering), *more)
    return (*columns, DELETED) if target.mode is Mode.SOFT_DELETE else columns


def stage_table(delta: Delta, table: TableSchema) -> tuple[pa.Table, list[LogicalType]]:
    """The delta as one Arrow table with the staged names, and the logical types its columns are staged as."""
    rows, meta, string, flag = delta.meta.num_rows, delta.meta, LogicalType(Kind.STRING), LogicalType(Kind.BOOL)
    unsent = {} if delta.unsent is None else {name: delta.unsent[name] for name in delta.unsent.column_names}
    columns: list[tuple[str, LogicalType, pa.Array | pa.ChunkedArray]] = [
        ("n", _LONG, pa.array(np.arange(rows))),
        ("op", LogicalType(Kind.INT16), meta["op"]),
        ("part", _INT, meta["partition"]),
        ("pos", _LONG, meta["offset"]),
        ("com", _LONG, meta["commit"]),
        ("rec", _LONG, meta["record"]),
        ("src", _TIME, _instants(meta["source_us"])),
        ("gen", _INT, meta["gen"]),
        ("key", string, meta["key"]),
        ("moved", flag, meta["moved"]),
    ]
    if delta.target.ordering.minor:
        columns.append(("minor", _LONG, meta["minor"]))
    if delta.target.mode is Mode.APPEND:
        letters = pa.array(list(LETTERS)).take(meta["op"])
        columns += [("letter", string, letters), ("seq", _LONG, meta["seq"])]
        columns += [("before", string, meta["before"]), ("missing", string, meta["missing"])]
    if delta.base is not None:
        columns += [
            ("needs", flag, _any(list(unsent.values()), rows)),
            ("unsent", string, _marks([unsent[name] for name in table.names if name in unsent])),
            ("base_text", string, delta.base.about["text"]),
            ("base_move", _LONG, delta.base.about["move"]),
            ("base_rec", _LONG, delta.base.about["record"]),
            ("base_part", _INT, delta.base.about["partition"]),
        ]
        if delta.target.ordering.minor:
            names = {"base_move_minor": "move_minor", "base_minor": "minor", "base_pos": "offset"}
            columns += [(staged, _LONG, delta.base.about[name]) for staged, name in names.items()]
    sent = set(delta.schema.names)
    for i, column in enumerate(table.columns):
        if column.name in sent:
            values = delta.data[column.name]
        else:
            constant = pa.scalar(None if column.dropped or delta.target.mode is Mode.APPEND else column.default, column.type.arrow)
            values = pa.repeat(constant, rows)
        columns.append((f"c{i}", column.type, values))
    if delta.base is not None:
        columns += [(f"b{j}", table.column(name).type, delta.base.key[name]) for j, name in enumerate(table.key)]
    arrow = pa.table([values for _, _, values in columns], names=[name for name, _, _ in columns])
    return arrow, [type_ for _, type_, _ in columns]


def _instants(numbers: pa.ChunkedArray) -> pa.ChunkedArray:
    type_ = pa.timestamp("us", tz="UTC")
    return pa.chunked_array([chunk.view(type_) for chunk in numbers.chunks], type=type_)


def _marks(masks: Sequence[pa.ChunkedArray]) -> pa.ChunkedArray:
    """One text a row, with a digit for each mask. A column for each would be more than a table may have where many are unsent."""
    digits = [pc.if_else(mask, "1", "0") for mask in masks]
    return digits[0] if len(digits) == 1 else pc.binary_join_element_wise(*digits, "")


def _spelled(type_: LogicalType) -> bool:
    return _spelled(type_.element) if type_.element is not None else type_.kind in SPELLINGS


def _any(masks: Sequence[pa.ChunkedArray], rows: int) -> pa.Array:
    result = np.zeros(rows, np.bool_)
    for mask in masks:
        result |= mask.to_numpy()
    return pa.array(result)


@dataclass(frozen=True, slots=True)
class Version:
    """The expressions of a version (core.order): of a stored row, a staged one, a deleted key."""

    gen: str
    record: str
    minor: str
    partition: str
    offset: str


STAGED = Version("s.gen", "s.rec", "s.minor", "s.part", "s.pos")


@dataclass(frozen=True, slots=True)
class MergeSql:
    """Writes the statements for one target. ``scope`` is (pipeline, source table, target table) as the meta tables hold it."""

    spelling: Spelling
    meta_schema: str
    scope: tuple[str, str, str]
    target: Target
    table: TableSchema

    def meta(self, table: MetaTable) -> str:
        return self.spelling.quote(self.meta_schema, table.name)

    @property
    def place(self) -> str:
        return self.spelling.quote(self.target.namespace, self.target.name)

    @property
    def soft(self) -> bool:
        return self.target.mode is Mode.SOFT_DELETE

    @property
    def append(self) -> bool:
        return self.target.mode is Mode.APPEND

    def temporary(self, name: str) -> str:
        return self.spelling.quote(self.spelling.temporary, name)

    def in_scope(self, alias: str = "") -> str:
        """A condition of three parameters: the scope."""
        prefix = f"{alias}." if alias else ""
        return " AND ".join(f"{prefix}{self.spelling.quote(name)} = {self.spelling.placeholder}" for name in SCOPE)

    def deleted_in_scope(self) -> str:
        """``in_scope`` of the deleted keys ``d``, in a form of whose selectivity planners know nothing. Of three equalities on columns
        without statistics PostgreSQL expects one row, and compares each of tens of thousands with the whole stage."""
        named = (f"d.{self.spelling.quote(name)} = {self.spelling.placeholder}" for name in SCOPE)
        return " AND ".join(f"COALESCE({equal}, FALSE)" for equal in named)

    def insert(self, table: MetaTable, rows: int, *, now: str = "") -> str:
        """An INSERT of ``rows`` rows of parameters, the scope first; the column ``now`` takes no parameter but the server's clock."""
        q, names = self.spelling.quote, table.names
        values = f"({', '.join('now()' if name == now else self.spelling.placeholder for name in names)})"
        return f"INSERT INTO {self.meta(table)} ({', '.join(map(q, names))}) VALUES {', '.join([values] * rows)}"

    def insert_once(self, table: MetaTable, values: Sequence[object], *, now: str = "") -> Statement:
        """An INSERT of one row where the scope has none yet; ``now`` as in ``insert``."""
        q, names = self.spelling.quote, table.names
        row = ", ".join("now()" if name == now else self.spelling.placeholder for name in names)
        sql = f"""INSERT INTO {self.meta(table)} ({", ".join(map(q, names))}) SELECT {row} FROM (SELECT 1 AS one) AS o
WHERE NOT EXISTS (SELECT 1 FROM {self.meta(table)} AS k WHERE {self.in_scope("k")})"""
        return Statement(sql, [*self.scope, *values, *self.scope])

    # The checkpoint

    def swap(
        self, meta: MetaTable, history: MetaTable, log: LogId, delta: Delta, epochs: Mapping[int, int], highs: Mapping[int, High]
    ) -> Statement:
        """The compare-and-swap: one statement for all partitions; it must hit as many rows as there are spans. It hits none where another
        writer has given the target a newer schema."""
        p = self.spelling.placeholder
        longs = ("start", "stop", "epoch", "com", "rec", "snap", "last_rec", "last_ord", "last_seq")
        types = {"batch": "VARCHAR", "part": "INTEGER", **dict.fromkeys(longs, "BIGINT")}
        # All parameters but those of WHERE are in here: some databases number them by clauses, and not as they stand in the text.
        row = "SELECT " + ", ".join(f"CAST({p} AS {type_}) AS {name}" for name, type_ in types.items())
        values: list[object] = []
        for span in delta.spans:
            commit, record = highs.get(span.partition, (None, None))
            values += [delta.batch_id, span.partition, span.start, span.stop, epochs.get(span.partition, -1)]
            values += [commit, record, delta.snapshot_record]
            tail = delta.tails.get(span.partition)
            values += [None, None, None] if tail is None else [tail.record, tail.order, tail.seq]
        sql = f"""UPDATE {self.meta(meta)} AS k SET next_offset = v.stop, batch_id = v.batch, committed_at = now(),
  high_commit = GREATEST(COALESCE(k.high_commit, v.com), COALESCE(v.com, k.high_commit)),
  high_record = GREATEST(COALESCE(k.high_record, v.rec), COALESCE(v.rec, k.high_record)),
  high_snapshot = GREATEST(COALESCE(k.high_snapshot, v.snap), COALESCE(v.snap, k.high_snapshot)),
  last_record = COALESCE(v.last_rec, k.last_record),
  last_order = CASE WHEN v.last_rec IS NULL THEN k.last_order ELSE v.last_ord END,
  last_seq = COALESCE(v.last_seq, k.last_seq)
FROM ({" UNION ALL ".join([row] * len(delta.spans))}) AS v
WHERE k.{self.spelling.quote("partition")} = v.part AND k.next_offset = v.start AND k.epoch = v.epoch
  AND {self.in_scope("k")} AND k.cluster_id = {p} AND k.topic = {p} AND k.topic_id = {p} AND {self.newest(history)} = {p}"""
        where = [*self.scope, log.cluster_id, log.topic, log.topic_id, *self.scope, self.table.version]
        return Statement(sql, [*values, *where])

    def newest(self, history: MetaTable) -> str:
        """The number of the target's newest schema, an expression of three parameters."""
        return f"(SELECT COALESCE(MAX(h.version), 0) FROM {self.meta(history)} AS h WHERE {self.in_scope('h')})"

    # Order: what a staged row has to beat

    def remove_below(self, generation: int, record: int) -> Statement:
        """Removes (soft delete: marks) the rows with a version below."""
        p, q = self.spelling.placeholder, self.spelling.quote
        below = f"(t.{q('_cdc_gen')} < {p} OR (t.{q('_cdc_gen')} = {p} AND t.{q('_cdc_record')} < {p}))"
        params: list[object] = [generation, generation, record]
        if not self.soft:
            return Statement(f"DELETE FROM {self.place} AS t WHERE {below}", params)
        sets = [f"{q('_cdc_deleted')} = TRUE"]
        if self.target.full_metadata:
            sets.append(f"{q('_cdc_synced_at')} = now()")
        return Statement(f"UPDATE {self.place} AS t SET {', '.join(sets)} WHERE NOT t.{q('_cdc_deleted')} AND {below}", params)

    def losers(self, deleted_keys: MetaTable, watermark: tuple[int, int] | None, *, compared: Compared = "all") -> Iterator[Statement]:
        """The staged rows that are not younger than the stored row, the deleted key and the last truncation: queries of their ``n``, of
        which each may count on the losers of those before it to be discarded. ``compared`` are the staged rows that are compared with the
        stored ones: ``upsert`` compares all but deletes itself.
        The same generation and record is the same change, whatever its offset; but where a key changed its spelling alone, its delete and
        its create are both of one row, which the create wins (core.order)."""
        q, p, stage = self.spelling.quote, self.spelling.placeholder, self.temporary(STAGE)
        if watermark is not None:
            yield self.staged(f"WHERE s.gen < {p} OR (s.gen = {p} AND s.rec < {p})", [watermark[0], watermark[0], watermark[1]])
        spelled = [name for name in self.table.key if _spelled(self.table.column(name).type)]
        if compared != "none":
            only = f" AND s.op = {int(Op.DELETE)}" if compared == "deletes" else ""
            younger = self._is_younger(STAGED, f"s.op <> {int(Op.DELETE)}")
            yield self.staged(f"JOIN {self.place} AS t ON {self.same_key()} WHERE {younger}{only}")
        gone = Version("d.gen", "d.record", "d.minor", f"d.{q('partition')}", f"d.{q('offset')}")
        yield self.staged(
            f"""JOIN {self.meta(deleted_keys)} AS d ON d.key_hash = md5(s.key) AND d.{q("key")} = s.key AND {self.deleted_in_scope()}
WHERE {self._is_reached(gone, STAGED, f"s.op = {int(Op.DELETE)}")}""",
            self.scope,
        )
        if spelled:
            equal = " AND ".join(f"o.c{i} = s.c{i}" for i in map(self.table.names.index, self.table.key))
            last = f"(CASE WHEN {{0}}.op = {int(Op.DELETE)} THEN 0 ELSE 1 END, {{0}}.n)"
            later = self._is_reached(
                Version("o.gen", "o.rec", "o.minor", "o.part", "o.pos"), STAGED, f"{last.format('o')} > {last.format('s')}"
            )
            written = "" if self.soft else f" AND s.op <> {int(Op.DELETE)}"
            yield self.staged(f"JOIN {stage} AS o ON {equal} WHERE o.n <> s.n AND {later}{written}")

    def _is_younger(self, version: Version, revives: str) -> str:
        """Whether the stored row ``t`` is at least as young as this version, which does not end the row where ``revives``. Of two rows of
        incremental snapshots the one that comes later was read later."""
        stored = self._stored("t")
        again = f"{version.record} = {INCREMENTAL} AND {stored.record} = {INCREMENTAL}"
        return f"({self._is_as_young(version, revives)} AND NOT ({stored.gen} = {version.gen} AND {again}))"

    def _is_as_young(self, version: Version, revives: str) -> str:
        revived = f"NOT (t.{self.spelling.quote('_cdc_deleted')} AND {revives})" if self.soft else "TRUE"
        return self._is_reached(self._stored("t"), version, revived)

    def _stored(self, alias: str) -> Version:
        names = ("_cdc_gen", "_cdc_record", "_cdc_minor", "_cdc_partition", "_cdc_offset")
        return Version(*(f"{alias}.{self.spelling.quote(name)}" for name in names))

    def _is_reached(self, a: Version, b: Version, tie: str) -> str:
        """Whether version ``a`` is ``b`` or above it; ``tie`` says it where they have one position, of which the offsets do not decide."""
        ordering = self.target.ordering
        if ordering.ties is Ties.OFFSET:
            tie = f"CASE WHEN {a.partition} = {b.partition} THEN {a.offset} >= {b.offset} ELSE {tie} END"
        if ordering.minor:
            tie = f"({a.minor} > {b.minor} OR ({a.minor} = {b.minor} AND {tie}))"
        reached = f"{a.record} >= {b.record}" if tie == "TRUE" else f"({a.record} > {b.record} OR ({a.record} = {b.record} AND {tie}))"
        return f"({a.gen} > {b.gen} OR ({a.gen} = {b.gen} AND {reached}))"

    def staged(self, chosen: str, params: Sequence[object] = ()) -> Statement:
        """The ``n`` of the staged rows that the clauses ``chosen`` (JOIN, WHERE) leave."""
        return Statement(f"SELECT s.n FROM {self.temporary(STAGE)} AS s {chosen}", params)

    def same_key(self, prefix: str = "c", alias: str = "t") -> str:
        """The join of a staged row with the target's row of its own key (c) or of its base row's (b)."""
        places = {name: i for i, name in enumerate(self.table.names)}
        pairs = ((f"{prefix}{places[name] if prefix == 'c' else j}", name) for j, name in enumerate(self.table.key))
        return " AND ".join(f"{alias}.{self.spelling.quote(name)} = s.{staged}" for staged, name in pairs)

    def _alive(self, alias: str = "t") -> str:
        return f" AND NOT {alias}.{self.spelling.quote('_cdc_deleted')}" if self.soft else ""

    # Values that the delta does not hold

    def complete(
        self, deleted_keys: MetaTable, quarantine: MetaTable, unsent: Sequence[int], kept: Sequence[int], *, moves: bool
    ) -> Statement:
        """What FILLED holds: the staged rows with every value that stands in the warehouse, in one pass (to UPDATE the stage is ten times
        slower).

        Unsent values come out of the row under the base key, with a lower version of the same generation (before a resync the row may have
        been wrong, or changes of it skipped) that came by the same partition, or out of the image that the other half of a key change left
        behind (``moves``): never out of the old key's row then, because changes of it that are not applied yet may stand between. Nor out
        of either where a record of that key was discarded, whatever it would have changed.
        ``kept`` are columns that the delta's schema does not know: an existing row keeps its value, a new one has the default staged.
        In soft delete a deleted row keeps what it held last. ``filled`` is false where an unsent value was found nowhere.
        """
        q, last = self.spelling.quote, self.soft
        values, found, params = [], "TRUE", list[object]()
        marks = {i: f"SUBSTR(s.unsent, {place}, 1) = '1'" for place, i in enumerate(unsent, 1)}
        images = {i: self.spelling.image_value.format(image=f"d.{q('row')}") for i in unsent} if moves else {}
        for i, column in enumerate(self.table.columns):
            value, name = f"s.c{i}", q(column.name)
            if i in unsent:
                base = f"b.{name}"
                if moves:
                    image = f"CAST({images[i]} AS {self.spelling.column_type(column.type)})"
                    base = f"CASE WHEN s.base_move IS NULL THEN b.{name} ELSE {image} END"
                    params.append(column.name)
                value = f"CASE WHEN {marks[i]} THEN {base} ELSE {value} END"
            if i in kept:
                value = f"CASE WHEN t.{q('_cdc_gen')} IS NOT NULL{self._alive()} THEN t.{name} ELSE {value} END"
            if last:
                value = f"CASE WHEN s.op = {int(Op.DELETE)} AND t.{q('_cdc_gen')} IS NOT NULL THEN t.{name} ELSE {value} END"
            values.append(f"{value} AS c{i}")
        joins = f" LEFT JOIN {self.place} AS t ON {self.same_key()}" if kept or last else ""
        if unsent:
            bound = Version("s.gen", "s.base_rec", "s.base_minor", "COALESCE(s.base_part, s.part)", "s.base_pos")
            joins += f""" LEFT JOIN {self.place} AS b ON {self.same_key("b", "b")} AND s.needs AND s.base_move IS NULL{self._alive("b")}
  AND b.{q("_cdc_gen")} = s.gen AND NOT {self._is_reached(self._stored("b"), bound, "TRUE")}
  AND (s.base_part IS NULL OR b.{q("_cdc_partition")} = s.base_part)"""
            found = f"(NOT s.needs OR b.{q('_cdc_gen')} IS NOT NULL)"
        if unsent and moves:
            moved = " AND d.minor = s.base_move_minor" if self.target.ordering.minor else ""
            has = self.spelling.image_has.format(image=f"d.{q('row')}")
            joins += f""" LEFT JOIN {self.meta(deleted_keys)} AS d ON d.key_hash = md5(s.base_text) AND d.{q("key")} = s.base_text
  AND d.gen = s.gen AND d.record = s.base_move{moved} AND s.needs
  AND d.{q("row")} IS NOT NULL AND {self.deleted_in_scope()}"""
            params += [self.table.columns[i].name for i in unsent] + list(self.scope)
            here = " AND ".join(f"(NOT {marks[i]} OR {has})" for i in unsent)
            found = f"(NOT s.needs OR b.{q('_cdc_gen')} IS NOT NULL OR (d.key IS NOT NULL AND {here}))"
        if unsent:
            joins += f""" LEFT JOIN (SELECT DISTINCT key_text FROM {self.meta(quarantine)}
  WHERE state = 'discarded' AND key_text IS NOT NULL AND {self.in_scope()}) AS x ON x.key_text = s.base_text AND s.needs"""
            found = f"({found} AND x.key_text IS NULL)"
            params += self.scope
        staged = (*STAGED_META, "minor") if self.target.ordering.minor else STAGED_META
        columns = ", ".join([*(f"s.{name}" for name in staged), *values, f"{found} AS filled"])
        return Statement(f"SELECT {columns} FROM {self.temporary(STAGE)} AS s{joins}", params)

    def unfilled(self) -> str:
        return f"SELECT s.n FROM {self.temporary(FILLED)} AS s WHERE NOT s.filled ORDER BY s.n"

    # Writing

    def forget_deleted(self, deleted_keys: MetaTable) -> Statement:
        """A deleted key has one version, the last. In soft delete only key changes leave one here."""
        only = " AND s.moved" if self.soft else ""
        return Statement(
            f"""DELETE FROM {self.meta(deleted_keys)} AS d
WHERE {self.deleted_in_scope()} AND (d.key_hash, d.{self.spelling.quote("key")}) IN
(SELECT md5(s.key), s.key FROM {self.temporary(STAGE)} AS s WHERE s.op = {int(Op.DELETE)}{only})""",
            self.scope,
        )

    def remember_deleted(self, deleted_keys: MetaTable, *, moves: bool) -> Statement:
        """Versions of deleted keys; with ``moves``, the image of a row that a key change took away, where text holds it exactly. A row of
        an earlier generation is none: a resync has skipped what changed it; nor is one that came by another partition.
        In soft delete the row itself keeps the version, and only images are kept here."""
        d, q = self.spelling, self.spelling.quote
        image, join, names = f"CAST(NULL AS {d.image})", "", list[object]()
        if moves:
            columns = [(f"t.{q(c.name)}", d.column_type(c.type)) for c in self.table.columns if not c.dropped]
            tests = [d.text_exact.format(c=c, t=t) for c, t in columns if d.text_exact]
            exact = "".join(f" AND {test}" for test in tests)
            texts = d.image_join.join(f"CAST({c} AS VARCHAR)" for c, _ in columns)
            built = d.image_of.format(names=d.placeholder, values=texts)
            same = f"t.{q('_cdc_gen')} = s.gen AND t.{q('_cdc_partition')} = s.part"
            image = f"CASE WHEN s.moved AND {same}{exact} THEN {built} END"
            join = f" LEFT JOIN {self.place} AS t ON {self.same_key()}{self._alive()}"
            names = [[c.name for c in self.table.columns if not c.dropped]]
        p = d.placeholder
        only = " AND s.moved" if self.soft else ""
        minor = "s.minor" if self.target.ordering.minor else "0"
        return Statement(
            f"""INSERT INTO {self.meta(deleted_keys)} ({", ".join(map(q, deleted_keys.names))})
SELECT {p}, {p}, {p}, md5(s.key), s.key, s.part, s.pos, s.gen, s.com, s.rec, now(), {image}, {minor}
FROM {self.temporary(STAGE)} AS s{join} WHERE s.op = {int(Op.DELETE)}{only}""",
            [*self.scope, *names],
        )

    def remove_old(self) -> Statement:
        """Removes the rows that the staged ones replace; where the spelling upserts, only those that end."""
        ends = f" WHERE s.op = {int(Op.DELETE)}" if self.spelling.upsert else ""
        names = ", ".join(f"t.{self.spelling.quote(name)}" for name in self.table.key)
        staged = ", ".join(f"s.c{self.table.names.index(name)}" for name in self.table.key)
        old = f"SELECT {staged} FROM {self.temporary(STAGE)} AS s{ends}"
        return Statement(f"DELETE FROM {self.place} AS t WHERE ({names}) IN ({old})")

    def insert_new(self, rows: str) -> Statement:
        """``rows`` is STAGE, or FILLED where there was something to complete."""
        return Statement(self._insert(rows) + (f" {self._conflict}" if self.spelling.upsert and not self.append else ""))

    def upsert(self) -> str:
        """Inserts the staged rows and replaces those that are older, as ``losers`` says; how many that were of each partition."""
        q = self.spelling.quote
        younger = self._is_younger(self._stored("excluded"), f"NOT excluded.{q('_cdc_deleted')}")
        written = f"{self._insert(STAGE)} {self._conflict} WHERE {younger} IS NOT TRUE RETURNING t.{q('_cdc_partition')} AS part"
        return f"WITH w AS ({written}) SELECT w.part, COUNT(*) FROM w GROUP BY 1"

    def standing(self) -> str:
        """How many staged rows, but for deletes, have a stored row that is at least as young: after ``upsert`` all have."""
        younger, kept = self._is_as_young(STAGED, "TRUE"), f"s.op <> {int(Op.DELETE)}"
        return f"SELECT COUNT(*) FROM {self.temporary(STAGE)} AS s JOIN {self.place} AS t ON {self.same_key()} WHERE {kept} AND {younger}"

    def _insert(self, rows: str) -> str:
        metadata = metadata_columns(self.target)
        names = ", ".join(map(self.spelling.quote, (*self.table.names, *(name for name, *_ in metadata))))
        values = ", ".join([*(f"s.c{i}" for i in range(len(self.table.columns))), *(value for _, _, value, _ in metadata)])
        where = "" if self.soft or self.append else f" WHERE s.op <> {int(Op.DELETE)}"
        alias = " AS t" if self.spelling.upsert else ""
        return f"INSERT INTO {self.place}{alias} ({names}) SELECT {values} FROM {self.temporary(rows)} AS s{where}"

    @property
    def _conflict(self) -> str:
        q = self.spelling.quote
        sets = ", ".join(f"{q(name)} = excluded.{q(name)}" for name in (*self.table.names, *(n for n, *_ in metadata_columns(self.target))))
        return f"ON CONFLICT ({', '.join(map(q, self.table.key))}) DO UPDATE SET {sets}"

    def park(self, quarantine: MetaTable) -> Statement:
        """Rejected records out of the staged table PARKED, which has the quarantine's columns up to ``state``."""
        q, p = self.spelling.quote, self.spelling.placeholder
        names = quarantine.names[len(SCOPE) : quarantine.names.index("state")]
        into = ", ".join(map(q, (*SCOPE, *names, "state", "parked_at")))
        picked = ", ".join(f"r.{q(name)}" for name in names)
        rows = self.temporary(PARKED)
        sql = f"INSERT INTO {self.meta(quarantine)} ({into}) SELECT {p}, {p}, {p}, {picked}, 'parked', now() FROM {rows} AS r"
        return Statement(sql, self.scope)
