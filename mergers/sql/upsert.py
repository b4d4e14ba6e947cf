"""A target that holds the rows of its source (Mode.UPSERT): the staged changes that win are written, the others are not.

Promises: a change wins only where its version is above that of the stored row, of the deleted key and of the last truncation; what is
affected is compared with what was to be.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import ClassVar, Literal

import pyarrow as pa
import pyarrow.compute as pc

from cdc_service.core.errors import TableStopped
from cdc_service.core.logical import Kind, LogicalType
from cdc_service.core.order import INCREMENTAL, Ties
from cdc_service.core.types import Delta, Op
from cdc_service.ports.destination import UnsentUnknown
from mergers.sql.connection import Connection, Discard, run
from mergers.sql.ledger import LedgerOpen
from mergers.sql.meta import DELETED_KEYS, QUARANTINE, SCOPE
from mergers.sql.spelling import Statement
from mergers.sql.staging import FILLED, METADATA, MINOR, STAGE, STAGED_META, Metadata
from mergers.sql.statements import TargetSql

Compared = Literal["all", "deletes", "none"]

SPELLINGS = frozenset({Kind.NUMERIC, Kind.FLOAT32, Kind.FLOAT64, Kind.INTERVAL})
"""Kinds of which equal values may be spelled differently (1.0 and 1.00, 0.0 and -0.0, a month and 30 days): two keys by their text, and one
row by the warehouse's own comparison."""


@dataclass(frozen=True, slots=True)
class Version:
    """The expressions of a version (core.order): of a stored row, a staged one, a deleted key."""

    gen: str
    record: str
    minor: str
    partition: str
    offset: str


STAGED = Version("s.gen", "s.rec", "s.minor", "s.part", "s.pos")


class Upsert(TargetSql):
    """A deleted row is removed, and leaves its version in DELETED_KEYS. (mergers.sql.soft_delete has what is otherwise where it stays.)"""

    __slots__ = ()

    by_key = True
    keeps_deleted: ClassVar[bool] = False
    """Whether a delete writes a row too."""
    becomes_row: ClassVar[str] = f"s.op <> {int(Op.DELETE)}"
    """The condition that a staged change becomes a row."""
    leaves_key: ClassVar[str] = f"s.op = {int(Op.DELETE)}"
    """The condition that a staged change leaves its version in DELETED_KEYS."""

    @property
    def metadata(self) -> tuple[Metadata, ...]:
        """``metadata: minimal`` leaves out what no order needs."""
        ordering = ("_cdc_offset",) if self.target.ordering.ties is Ties.OFFSET else ()
        own = (c for c in METADATA if self.target.full_metadata or not c[3] or c[0] in ordering)
        return (*own, MINOR) if self.target.ordering.minor else tuple(own)

    def sweep(self, generation: int, record: int) -> Statement:
        below, params = self._below(generation, record)
        return Statement(f"DELETE FROM {self.place} AS t WHERE {below}", params)

    def _below(self, generation: int, record: int) -> tuple[str, list[object]]:
        p, q = self.spelling.placeholder, self.spelling.quote
        below = f"(t.{q('_cdc_gen')} < {p} OR (t.{q('_cdc_gen')} = {p} AND t.{q('_cdc_record')} < {p}))"
        return below, [generation, generation, record]

    def retire(self, c: Connection, generation: int) -> None:
        """What it held is read anew."""
        c.execute(f"DROP TABLE IF EXISTS {self.place}")

    # The merge

    def apply(self, c: Connection, delta: Delta, watermark: tuple[int, int] | None, discard: Discard) -> Mapping[int, int]:
        kept, unsent = self._missing(delta)
        ends = pc.any(pc.equal(delta.meta["op"], int(Op.DELETE))).as_py()
        # Where nothing has to be completed first, the upsert itself compares versions: rows are looked for once.
        direct = self.spelling.upsert and not (kept or unsent or (self.keeps_deleted and ends))
        compared: Compared = "all" if not direct else "deletes" if ends else "none"
        staged = delta.meta.num_rows
        for losers in self.losers(watermark, compared=compared):
            staged -= discard(losers)
        counted = f" WHERE s.op = {int(Op.DELETE)}" if direct else ""
        sql = f"SELECT s.part, s.op = {int(Op.DELETE)}, COUNT(*) FROM {self.temporary(STAGE)} AS s{counted} GROUP BY 1, 2"
        rows = c.fetch(sql) if compared != "none" else []
        winners = Counter[int]()
        for partition, _, count in rows:
            winners[partition] += count
        deletes = sum(count for _, is_delete, count in rows if is_delete)
        total = winners.total()
        becoming = total if self.keeps_deleted else total - deletes
        if not total and not direct:
            return winners
        rows_from = self._complete(c, delta, kept, unsent) if kept or unsent or (self.keeps_deleted and deletes) else STAGE
        if deletes:
            moves = bool(pc.any(delta.meta["moved"]).as_py())
            if moves or not self.keeps_deleted:
                run(c, self.forget_deleted())
                run(c, self.remember_deleted(moves=moves))
        replaces = self.spelling.upsert and becoming == total
        removed = 0 if replaces else run(c, self.remove_old())
        if removed > total and delta.spans:  # What comes from no log is a repair, which may find a key twice.
            raise TableStopped(
                f"{delta.target} holds several rows of one key: {removed} rows of {total} keys",
                state="drift",
                hint=f"somebody else wrote into the table; load it anew: cdc resync {delta.target.source}",
            )
        if direct:
            winners.update(dict(c.fetch(self.upsert())))
            if winners.total() != staged and (found := c.fetch(self.standing())[0][0]) != staged - deletes:
                raise LedgerOpen(f"{delta.target}: {staged - deletes} rows were to be written or older than what stands there, {found} are")
            return winners
        written = run(c, self.insert_new(rows_from)) if becoming else 0
        if written != becoming:
            raise LedgerOpen(f"{delta.target}: {becoming} rows were to be written, {written} were")
        return winners

    def _missing(self, delta: Delta) -> tuple[list[int], list[int]]:
        """The columns that the delta does not know (an existing row keeps its value), and those of which values are unsent."""
        places = {name: i for i, name in enumerate(self.table.names)}
        kept = [i for name, i in places.items() if name not in delta.schema.names and not self.table.columns[i].dropped]
        return kept, [] if delta.unsent is None else sorted(places[name] for name in delta.unsent.column_names)

    def _complete(self, c: Connection, delta: Delta, kept: Sequence[int], unsent: Sequence[int]) -> str:
        """Gives the winners the values that stand in the warehouse; which staged table holds the rows to write."""
        moves = delta.base is not None and delta.base.about["move"].null_count < delta.base.about.num_rows
        rows = self.filled(unsent, kept, moves=moves)
        c.fill(FILLED, rows.sql, rows.params)
        missing = pa.array([row[0] for row in c.fetch(self.unfilled())], pa.int64())
        if len(missing) and delta.unsent is not None:
            flags = delta.unsent.take(missing)
            columns = tuple(name for name in delta.unsent.column_names if pc.any(flags[name]).as_py())
            raise UnsentUnknown(delta.data.select(delta.schema.key).take(missing), columns)
        return FILLED

    def deleted_in_scope(self) -> str:
        """``in_scope`` of the deleted keys ``d``, in a form of whose selectivity planners know nothing. Of three equalities on columns
        without statistics PostgreSQL expects one row, and compares each of tens of thousands with the whole stage."""
        named = (f"d.{self.spelling.quote(name)} = {self.spelling.placeholder}" for name in SCOPE)
        return " AND ".join(f"COALESCE({equal}, FALSE)" for equal in named)

    def added(self, delta: Delta) -> tuple[pa.Table, list[LogicalType]]:
        """The rows of ``delta``, which ends none, as the target holds them, and the types of their columns."""
        staged, _ = self.stage(delta)
        names = list(self.table.names)
        columns, kinds = [staged[f"c{i}"] for i in range(len(names))], [c.type for c in self.table.columns]
        for name, type_, value, _ in self.metadata:
            if value.removeprefix("s.") in staged.column_names:
                columns.append(staged[value.removeprefix("s.")])
            else:
                constant = datetime.now(UTC) if value == "now()" else False  # That a row was deleted: none is.
                columns.append(pa.repeat(pa.scalar(constant, type_.arrow), delta.meta.num_rows))
            names, kinds = [*names, name], [*kinds, type_]
        return pa.table(columns, names=names), kinds

    # Order: what a staged row has to beat

    def losers(self, watermark: tuple[int, int] | None, *, compared: Compared = "all") -> Iterator[Statement]:
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
            f"""JOIN {self.meta(DELETED_KEYS)} AS d ON d.key_hash = md5(s.key) AND d.{q("key")} = s.key AND {self.deleted_in_scope()}
WHERE {self._is_reached(gone, STAGED, f"s.op = {int(Op.DELETE)}")}""",
            self.scope,
        )
        if spelled:
            equal = " AND ".join(f"o.c{i} = s.c{i}" for i in map(self.table.names.index, self.table.key))
            last = f"(CASE WHEN {{0}}.op = {int(Op.DELETE)} THEN 0 ELSE 1 END, {{0}}.n)"
            later = self._is_reached(
                Version("o.gen", "o.rec", "o.minor", "o.part", "o.pos"), STAGED, f"{last.format('o')} > {last.format('s')}"
            )
            yield self.staged(f"JOIN {stage} AS o ON {equal} WHERE o.n <> s.n AND {later} AND {self.becomes_row}")

    def _is_younger(self, version: Version, revives: str) -> str:
        """Whether the stored row ``t`` is at least as young as this version, which does not end the row where ``revives``. Of two rows of
        incremental snapshots the one that comes later was read later."""
        stored = self._stored("t")
        again = f"{version.record} = {INCREMENTAL} AND {stored.record} = {INCREMENTAL}"
        return f"({self._is_as_young(version, revives)} AND NOT ({stored.gen} = {version.gen} AND {again}))"

    def _is_as_young(self, version: Version, revives: str) -> str:
        return self._is_reached(self._stored("t"), version, self._stays(revives))

    def _stays(self, revives: str) -> str:
        """Whether the stored row is not one that ended and comes back where ``revives``."""
        return "TRUE"

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

    def _alive(self, alias: str = "t") -> str:
        live = self.live(alias)
        return f" AND {live}" if live else ""

    # Values that the delta does not hold

    def filled(self, unsent: Sequence[int], kept: Sequence[int], *, moves: bool) -> Statement:
        """What FILLED holds: the staged rows with every value that stands in the warehouse, in one pass (to UPDATE the stage is ten times
        slower).

        Unsent values come out of the row under the base key, with a lower version of the same generation (before a resync the row may have
        been wrong, or changes of it skipped) that came by the same partition, or out of the image that the other half of a key change left
        behind (``moves``): never out of the old key's row then, because changes of it that are not applied yet may stand between. Nor out
        of either where a record of that key was discarded, whatever it would have changed.
        ``kept`` are columns that the delta's schema does not know: an existing row keeps its value, a new one has the default staged.
        Where deleted rows are kept, they keep what they held last. ``filled`` is false where an unsent value was found nowhere.
        """
        q, last = self.spelling.quote, self.keeps_deleted
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
            joins += f""" LEFT JOIN {self.meta(DELETED_KEYS)} AS d ON d.key_hash = md5(s.base_text) AND d.{q("key")} = s.base_text
  AND d.gen = s.gen AND d.record = s.base_move{moved} AND s.needs
  AND d.{q("row")} IS NOT NULL AND {self.deleted_in_scope()}"""
            params += [self.table.columns[i].name for i in unsent] + list(self.scope)
            here = " AND ".join(f"(NOT {marks[i]} OR {has})" for i in unsent)
            found = f"(NOT s.needs OR b.{q('_cdc_gen')} IS NOT NULL OR (d.key IS NOT NULL AND {here}))"
        if unsent:
            joins += f""" LEFT JOIN (SELECT DISTINCT key_text FROM {self.meta(QUARANTINE)}
  WHERE state = 'discarded' AND key_text IS NOT NULL AND {self.in_scope()}) AS x ON x.key_text = s.base_text AND s.needs"""
            found = f"({found} AND x.key_text IS NULL)"
            params += self.scope
        staged = (*STAGED_META, "minor") if self.target.ordering.minor else STAGED_META
        columns = ", ".join([*(f"s.{name}" for name in staged), *values, f"{found} AS filled"])
        return Statement(f"SELECT {columns} FROM {self.temporary(STAGE)} AS s{joins}", params)

    def unfilled(self) -> str:
        return f"SELECT s.n FROM {self.temporary(FILLED)} AS s WHERE NOT s.filled ORDER BY s.n"

    # Writing

    def forget_deleted(self) -> Statement:
        """A deleted key has one version, the last."""
        return Statement(
            f"""DELETE FROM {self.meta(DELETED_KEYS)} AS d
WHERE {self.deleted_in_scope()} AND (d.key_hash, d.{self.spelling.quote("key")}) IN
(SELECT md5(s.key), s.key FROM {self.temporary(STAGE)} AS s WHERE {self.leaves_key})""",
            self.scope,
        )

    def remember_deleted(self, *, moves: bool) -> Statement:
        """Versions of deleted keys; with ``moves``, the image of a row that a key change took away, where text holds it exactly. A row of
        an earlier generation is none: a resync has skipped what changed it; nor is one that came by another partition."""
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
        minor = "s.minor" if self.target.ordering.minor else "0"
        return Statement(
            f"""INSERT INTO {self.meta(DELETED_KEYS)} ({", ".join(map(q, DELETED_KEYS.names))})
SELECT {p}, {p}, {p}, md5(s.key), s.key, s.part, s.pos, s.gen, s.com, s.rec, now(), {image}, {minor}
FROM {self.temporary(STAGE)} AS s{join} WHERE {self.leaves_key}""",
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
        return Statement(f"{self._insert(rows)} {self._conflict}" if self.spelling.upsert else self._insert(rows))

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
        return self.insert_rows(rows, f" WHERE {self.becomes_row}")

    @property
    def _conflict(self) -> str:
        q = self.spelling.quote
        sets = ", ".join(f"{q(name)} = excluded.{q(name)}" for name in (*self.table.names, *(n for n, *_ in self.metadata)))
        return f"ON CONFLICT ({', '.join(map(q, self.table.key))}) DO UPDATE SET {sets}"


def _spelled(type_: LogicalType) -> bool:
    return _spelled(type_.element) if type_.element is not None else type_.kind in SPELLINGS
