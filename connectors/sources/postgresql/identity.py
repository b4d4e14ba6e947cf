# ruff: noqa: S608  (the texts are of this module, values are parameters)
"""The identity of PostgreSQL tables (core.identity): read from the catalog for all tables at once, and what a change of it means.

Values of a row change without an event in few ways, and each leaves a trace in the catalog:

- a rewrite (another file node) with another row version (xmin) of the column in pg_attribute: ALTER TYPE. VACUUM FULL and CLUSTER give a
  new file node too and touch no row of pg_attribute, but for one thing: they clear the value that a fast ADD COLUMN .. DEFAULT left in
  it, after they wrote pg_class within the same transaction (cmin), where ALTER TYPE does so before;
- other names, labels of enums, attributes of composite types: without a rewrite, each with its number in the catalog;
- other tables behind the name, partitions that come, go, or are emptied alone: by their oids, file nodes and rows of pg_inherits. A
  partition that was *created* as one was empty then, and all of its rows came through the log: of these some column still has the row
  version of the table's creation, where ATTACH wrote all of them anew. VACUUM FULL of a partition swaps its TOAST table with the same
  command (cmin) as the table itself, TRUNCATE with the next one; without a TOAST table nobody can tell.

Something that was changed and changed back between two looks shows in the row versions of pg_class, pg_attribute, pg_publication and
pg_enum and in new rows of pg_publication_rel and pg_inherits; where a row version moved and nothing in the row explains it, the table is
read anew (two columns that change names, and change them back, send the rows in between under each other's names).
Sources: PostgreSQL's cluster.c, tablecmds.c, publicationcmds.c; each trace is held by a test on a real server.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from typing import Any

from sqlalchemy import Connection, TextClause, text

from cdc_service.core.errors import ConfigError
from cdc_service.core.identity import Identities, Judgement, Outcome
from cdc_service.core.names import Names
from cdc_service.core.types import TableId
from connectors.sources.postgresql import catalog
from connectors.sources.postgresql.catalog import qualified, quoted
from connectors.sources.postgresql.settings import is_sealed

FIRST_OWN_OID = 16384
"""Types from here on are a database's own (PostgreSQL's transam.h); the built-in ones never change."""

_MEMBER_14 = """json_build_array((SELECT r.oid::bigint FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid
        WHERE p.pubname = :publication AND r.prrelid = c.oid), false, NULL, NULL)"""
_MEMBER = """(SELECT json_build_array(r.oid::bigint, coalesce(r.prqual IS NOT NULL, false), r.prattrs::text, s.oid::bigint)
        FROM pg_publication p LEFT JOIN pg_publication_rel r ON r.prpubid = p.oid AND r.prrelid = c.oid
        LEFT JOIN pg_publication_namespace s ON s.pnpubid = p.oid AND s.pnnspid = c.relnamespace WHERE p.pubname = :publication)"""

_TABLES = """
SELECT n.nspname AS schema, c.relname AS name, c.oid::bigint, c.relkind::text AS kind, c.relpersistence::text AS persistence,
       c.relispartition AS partition, c.relreplident::text AS replica, c.relfilenode::bigint AS file, c.reltoastrelid::bigint AS toast,
       c.xmin::text::bigint AS edition,
       md5(concat_ws(' ', c.relowner, c.relacl, c.reloptions, c.relam, c.reltablespace, c.relhasrules, c.relhastriggers, c.relchecks,
                     c.relnatts, c.relrowsecurity, c.relforcerowsecurity, c.relhassubclass, c.relhasindex)) AS rest,
       row_security_active(c.oid) AS hidden,
       (SELECT json_build_array(k.conkey, k.condeferrable) FROM pg_constraint k WHERE k.conrelid = c.oid AND k.contype = 'p') AS key,
       (SELECT i.indkey::text FROM pg_index i WHERE i.indrelid = c.oid AND i.indisreplident) AS replica_index,
       (SELECT json_agg(json_build_array(a.attnum, a.attname, a.atttypid::bigint, a.atttypmod, a.attgenerated <> '', a.atthasmissing,
                                         a.xmin::text::bigint,
                                         a.xmin = c.xmin AND a.cmin::text::bigint > c.cmin::text::bigint,
                                         md5(json_build_array(a.attnotnull, a.atthasdef, d.oid, a.attidentity, a.attstattarget,
                                                              a.attstorage, a.attcompression, a.attoptions, a.attacl, a.attndims,
                                                              a.attislocal, a.attinhcount)::text)) ORDER BY a.attnum)
        FROM pg_attribute a LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
        WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped) AS columns,
       CASE WHEN c.relkind = 'r' AND c.relhassubclass THEN
            (SELECT json_agg(format('%I.%I', kn.nspname, k.relname) ORDER BY k.oid) FROM pg_inherits i JOIN pg_class k ON k.oid = i.inhrelid
             JOIN pg_namespace kn ON kn.oid = k.relnamespace WHERE i.inhparent = c.oid) END AS kids,
       CASE WHEN c.relkind = 'p' THEN (
            WITH RECURSIVE tree AS (
                SELECT i.inhrelid, i.xmin, i.inhdetachpending FROM pg_inherits i WHERE i.inhparent = c.oid
                UNION ALL SELECT i.inhrelid, i.xmin, i.inhdetachpending FROM tree JOIN pg_inherits i ON i.inhparent = tree.inhrelid)
            SELECT json_agg(json_build_array(
                p.oid::bigint, p.relkind, p.relfilenode::bigint, tree.xmin::text::bigint, tree.inhdetachpending, p.relpersistence,
                coalesce(t.xmin = p.xmin AND t.cmin::text = p.cmin::text, false),
                EXISTS (SELECT FROM pg_attribute s JOIN pg_attribute u ON u.attrelid = s.attrelid
                        WHERE s.attrelid = p.oid AND s.attnum = -6 AND u.attnum > 0 AND u.attinhcount > 0
                          AND u.xmin = s.xmin AND u.cmin::text = s.cmin::text)) ORDER BY p.oid)
            FROM tree JOIN pg_class p ON p.oid = tree.inhrelid LEFT JOIN pg_class t ON t.oid = p.reltoastrelid) END AS parts,
       {member} AS member,
       (SELECT max(a.atttypid::bigint) FROM pg_attribute a WHERE a.attrelid = c.oid AND NOT a.attisdropped) AS newest_type
FROM unnest(CAST(:schemas AS text[]), CAST(:names AS text[])) AS w(schema, name)
JOIN pg_namespace n ON n.nspname = w.schema
JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = w.name AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
"""
_TYPES = """
WITH RECURSIVE used(oid) AS (
    SELECT a.atttypid FROM told JOIN pg_attribute a ON a.attrelid = CAST(told.oid AS oid) AND a.attnum > 0 WHERE told.newest_type >= {own}
    UNION
    SELECT inner_type FROM used JOIN pg_type t ON t.oid = used.oid, LATERAL (
        SELECT unnest(ARRAY[t.typbasetype, t.typelem])
        UNION ALL SELECT a.atttypid FROM pg_attribute a WHERE a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped
        UNION ALL SELECT r.rngsubtype FROM pg_range r WHERE r.rngtypid = t.oid OR r.rngmultitypid = t.oid) AS below(inner_type)
    WHERE inner_type <> 0)
SELECT t.oid::bigint, t.typbasetype::bigint AS base, t.typtypmod AS modifier, t.typelem::bigint AS element,
       (SELECT r.rngsubtype::bigint FROM pg_range r WHERE r.rngtypid = t.oid OR r.rngmultitypid = t.oid) AS subtype,
       (SELECT json_agg(json_build_array(e.oid::bigint, e.enumlabel, e.xmin::text::bigint) ORDER BY e.oid)
        FROM pg_enum e WHERE e.enumtypid = t.oid) AS labels,
       CASE WHEN t.typtype = 'c' THEN (
            SELECT json_agg(json_build_array(a.attnum, a.atttypid::bigint, a.atttypmod) ORDER BY a.attnum)
            FROM pg_attribute a WHERE a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped) END AS attributes
FROM used JOIN pg_type t ON t.oid = used.oid WHERE t.oid >= {own}
"""
_PUBLICATION = """
SELECT p.oid::bigint, p.xmin::text::bigint AS edition, p.pubowner::bigint AS owner, p.puballtables AS everything, p.pubviaroot AS root,
       p.pubinsert AND p.pubupdate AND p.pubdelete AND p.pubtruncate AS whole
FROM pg_publication p WHERE p.pubname = :publication
"""
_SLOT = """
SELECT s.plugin::text AS plugin, (s.confirmed_flush_lsn - '0/0'::pg_lsn)::bigint AS sent_from, s.active
FROM pg_replication_slots s WHERE s.slot_name = :slot AND s.wal_status <> 'lost'
"""
_ALL = """
WITH told AS MATERIALIZED ({tables})
SELECT schema, name, row_to_json(told)::text FROM told
UNION ALL SELECT NULL, 'publication', row_to_json(p)::text FROM ({publication}) AS p
UNION ALL SELECT NULL, 'slot', row_to_json(s)::text FROM ({slot}) AS s
UNION ALL SELECT NULL, 'role', to_json(current_user)::text
UNION ALL SELECT NULL, 'types', (SELECT json_object_agg(t.oid, row_to_json(t) ORDER BY t.oid)::text FROM ({types}) AS t)
"""
"""One statement, so that all is of one snapshot: a row for each table, and one for each thing that all of them share (without a schema)."""

_POSITION_AND_LOCKED = text(f"""
SELECT p.position, (
    SELECT array_agg(relation::bigint) FROM pg_locks
    WHERE p.position IS NOT NULL AND locktype = 'relation' AND mode = 'AccessExclusiveLock' AND granted
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())) AS locked
FROM ({catalog.POSITION} OFFSET 0) AS p
""")
"""Whoever alters or empties a table holds this lock until everybody sees what was done. The locks are read after the position, on which
that subquery hangs."""


Cache = dict[TableId, tuple[tuple[Any, ...], str]]
"""By table what the catalog told last, and the identity that was made of it: most looks find nothing new."""


def read(
    connection: Connection,
    tables: Sequence[TableId],
    names: Names,
    connector: Mapping[str, str] | None,
    unwanted: str,
    cache: Cache,
) -> Identities:
    """``connection`` is in autocommit. ``connector`` is the connector's configuration (None: not known), ``unwanted`` the expressions by
    which the configuration itself leaves columns out."""
    position, locked = connection.execute(_POSITION_AND_LOCKED).one()
    # In a snapshot that is taken after the position and the locks: what is not in it and has written below the position holds one.
    asked = {
        "schemas": [t.schema for t in tables],
        "names": [t.name for t in tables],
        "publication": names.at_source,
        "slot": names.at_source,
    }
    rows = connection.execute(_all((connection.dialect.server_version_info or (15,))[0]), asked).all()
    common = {name: json.loads(told or "null") for schema, name, told in rows if schema is None}
    slot, types = common.get("slot") or {}, common["types"] or {}
    shared = {
        "publication": common.get("publication"),
        "published_as": names.at_source,
        "role": common["role"],
        "slot": slot.get("plugin"),
        "sealed": None if connector is None else is_sealed(connector),
    }
    captured = None if connector is None else connector.get("table.include.list", "")
    left_out = None if connector is None else connector.get("column.exclude.list", "")
    around = (json.dumps(types), json.dumps(shared), captured, left_out, unwanted)
    found, busy = {}, set()
    for schema, name, told in rows:
        if schema is None:
            continue
        table = TableId(schema, name)
        if cache.get(table, ((), ""))[0] != (told, *around):
            cache[table] = (told, *around), _identity(table, json.loads(told), types, shared, captured, left_out, unwanted)
        found[table] = cache[table][1]
        if locked and not _oids(json.loads(told)).isdisjoint(locked):
            busy.add(table)
    return Identities(int(position), found, frozenset(busy), int(slot.get("sent_from") or 0), bool(slot.get("active")))


@lru_cache
def _all(version: int) -> TextClause:
    tables, types = _TABLES.format(member=_MEMBER_14 if version < 15 else _MEMBER), _TYPES.format(own=FIRST_OWN_OID)
    return text(_ALL.format(tables=tables, types=types, publication=_PUBLICATION, slot=_SLOT))


def _oids(row: Mapping[str, Any]) -> set[int]:
    return {row["oid"], *(part[_PART] for part in row["parts"] or ())}


def _identity(
    table: TableId,
    row: Mapping[str, Any],
    types: Mapping[str, Mapping[str, Any]],
    shared: Mapping[str, Any],
    captured: str | None,
    left_out: str | None,
    unwanted: str,
) -> str:
    one = {name: row[name] for name in _NAMES} | dict(shared)
    one["replica_index"] = None if row["replica_index"] is None else [int(n) for n in row["replica_index"].split()]
    one["captured"] = None if captured is None else _is_listed(captured, f"{table.schema}.{table.name}")
    one["out"] = None if left_out is None else _left_out(table, row["columns"] or (), left_out, unwanted)
    if (row["newest_type"] or 0) >= FIRST_OWN_OID:
        one["types"] = {str(oid): _kind(types[str(oid)]) for oid in sorted(_reached(one["columns"] or (), types))}
    return json.dumps(one, ensure_ascii=False, separators=(",", ":"), sort_keys=True)


_NAMES = (
    *("schema", "name", "oid", "kind", "persistence", "partition", "replica", "file", "toast", "edition", "rest", "hidden"),
    *("key", "columns", "kids", "parts", "member"),
)
_NUMBER, _NAME, _TYPE, _MODIFIER, _GENERATED, _MISSING, _VERSION, _CLEARED, _REST = range(9)
"""Places in an entry of ``columns``: _CLEARED says that only a rewrite that keeps values can have written it last, _REST stands for all
that changes no value. Identities that were kept before there was a _REST have none."""
_PART, _PART_KIND, _PART_FILE, _PART_LINK, _PART_LEAVING, _PART_LOGGED, _PART_SWEPT, _PART_BORN = range(8)
"""Places in an entry of ``parts``: _PART_LINK is the row version of its place in the tree, _PART_SWEPT whether VACUUM FULL or CLUSTER
gave it its file, _PART_BORN whether it was created as a partition."""


def _kind(row: Mapping[str, Any]) -> list[Any]:
    return [row["base"], row["modifier"], row["element"], row["labels"], row["attributes"]]


def _reached(columns: Sequence[Sequence[Any]], types: Mapping[str, Mapping[str, Any]]) -> set[int]:
    """The database's own types that values of the columns are made of."""
    reached: set[int] = set()
    waiting = [column[_TYPE] for column in columns]
    while waiting:
        oid = waiting.pop()
        if oid in reached or str(oid) not in types:
            continue
        reached.add(oid)
        row = types[str(oid)]
        waiting += [row["base"], row["element"], row["subtype"] or 0, *(a[1] for a in row["attributes"] or ())]
    return reached


@lru_cache(maxsize=4096)
def _is_listed(patterns: str, name: str) -> bool:
    """Whether a list of the connector's expressions (settings made by this service, without case unless they say so) means the name."""
    return any(p.fullmatch(name) for p in _compiled(patterns))


@lru_cache(maxsize=64)
def _compiled(patterns: str) -> tuple[re.Pattern[str], ...]:
    def one(pattern: str) -> re.Pattern[str]:
        exact = pattern.startswith("(?-i)")
        return re.compile(pattern.removeprefix("(?-i)"), 0 if exact else re.IGNORECASE)

    try:
        return tuple(one(p.strip()) for p in re.split(r"(?<!\\),", patterns) if p.strip())
    except re.error as error:
        raise ConfigError("connect.options: column.exclude.list is not a list of regular expressions", hint=str(error)) from error


def _left_out(table: TableId, columns: Sequence[Sequence[Any]], left_out: str, unwanted: str) -> list[int]:
    """The numbers of columns that the connector leaves out though the log carries them and nobody asked for it."""

    def name(column: Sequence[Any]) -> str:
        return f"{table.schema}.{table.name}.{column[_NAME]}"

    kept = [column for column in columns if not column[_GENERATED] and _is_listed(left_out, name(column))]
    return [column[_NUMBER] for column in kept if not _is_listed(unwanted, name(column))]


# What an identity means


def judge(table: TableId, before: str | None, after: str | None) -> Judgement:
    """What ``after`` means for rows of ``table`` that were read under ``before`` (None: no rows yet; only what STOPS counts)."""
    if after is None:
        hint = f"take {table} out of tables; or make it again, and: cdc register"
        return Judgement(Outcome.STOPS, f"{table} is gone at the source", hint, "table_gone")
    if before == after:
        return Judgement(Outcome.SAME)
    new = json.loads(after)
    old = None if before is None else json.loads(before)
    if (stopped := _hindrance(table, new, old)) is not None:
        return stopped
    if old is None:
        return Judgement(Outcome.SAME)
    if _key_names(old) and _key_numbers(old) != _key_numbers(new) and old["oid"] == new["oid"]:
        why = f"{table}: its key changed from ({', '.join(_key_names(old))}) to ({', '.join(_key_names(new))})"
        hint = f"load the table anew under the new key: cdc resync {table}"
        return Judgement(Outcome.STOPS, why, hint, "schema_stopped", "schema_stopped")
    if why := _reading(old, new):
        return Judgement(Outcome.ANEW, f"{table}: {why}")
    mine = {c[_NUMBER]: c for c in old["columns"]}
    renamed = {mine[c[_NUMBER]][_NAME]: c[_NAME] for c in new["columns"] if c[_NUMBER] in mine and mine[c[_NUMBER]][_NAME] != c[_NAME]}
    others = [_shape(c) for c in old["columns"]] != [_shape(c) for c in new["columns"]]
    return Judgement(Outcome.CARRIED, renamed=renamed, columns=others)


def _shape(column: Sequence[Any]) -> tuple[Any, ...]:
    return column[_NUMBER], column[_NAME], column[_TYPE], column[_MODIFIER], column[_GENERATED]


def _key_numbers(one: Mapping[str, Any]) -> list[int]:
    return list((one["key"] or [[]])[0])


def _key_names(one: Mapping[str, Any]) -> list[str]:
    names = {c[_NUMBER]: c[_NAME] for c in one["columns"]}
    return [names[n] for n in _key_numbers(one)]


def _hindrance(table: TableId, new: Mapping[str, Any], old: Mapping[str, Any] | None) -> Judgement | None:
    """Why changes of the table do not arrive, or its rows cannot be read, or None."""
    name = qualified(table)

    def stops(code: str, why: str, hint: str) -> Judgement:
        return Judgement(Outcome.STOPS, f"{table} {why}", hint, code)

    if new["kind"] not in ("r", "p"):
        return stops("table_gone", "is no table any more: a view or foreign table has its name", f"take {table} out of tables")
    if new["partition"]:
        return stops("is_partition", "was attached as a partition: its changes arrive under the name of the whole", "register that one")
    if new["persistence"] != "p":
        return stops("not_logged", "is unlogged: its changes never reach the log", f"ALTER TABLE {name} SET LOGGED;")
    if new["kids"]:
        kid = new["kids"][0]
        why = f"has {kid} as a child (INHERITS): its rows are read with the table's and their changes never arrive under its name"
        return stops("inherited", why, f"ALTER TABLE {kid} NO INHERIT {name};")
    if new["hidden"]:
        why = f"has row level security, and the role {new['role']} is not exempt: rows that it may not see look as if they were deleted"
        hint = f"ALTER ROLE {quoted(new['role'])} BYPASSRLS;  -- by a superuser; or: ALTER TABLE {name} DISABLE ROW LEVEL SECURITY"
        return stops("row_security", why, hint)
    if (lost := _identity_lost(table, new, old)) is not None:
        return stops(*lost)
    return _unpublished(table, new, old)


def _identity_lost(table: TableId, new: Mapping[str, Any], old: Mapping[str, Any] | None) -> tuple[str, str, str] | None:
    """Why the log does not say any more which row a change means."""
    name, key = qualified(table), _key_numbers(new)
    if not key and old is not None and _key_numbers(old):
        columns = ", ".join(quoted(n) for n in _key_names(old))
        return "no_key", "lost its primary key, so a change cannot be tied to a row", f"ALTER TABLE {name} ADD PRIMARY KEY ({columns});"
    named = {"d": set(key), "f": set(key), "i": set(new["replica_index"] or ()), "n": set()}[new["replica"]]
    if key and (not set(key) <= named or (new["replica"] == "d" and new["key"][1])):
        why = "has a replica identity without its primary key: a delete or update in the log does not say which row it means"
        return "identity_lacks_key", why, f"ALTER TABLE {name} REPLICA IDENTITY DEFAULT;"
    if not key and new["replica"] != "f":
        why = "has no key and no REPLICA IDENTITY FULL: the log does not say which row a change means"
        return "identity_lacks_key", why, f"ALTER TABLE {name} REPLICA IDENTITY FULL;"
    return None


def _unpublished(table: TableId, new: Mapping[str, Any], old: Mapping[str, Any] | None) -> Judgement | None:
    """Why what the log has of the table is not sent, or None."""
    name, publication, head = qualified(table), quoted(new["published_as"]), new["publication"]

    def stops(code: str, why: str, hint: str) -> Judgement:
        return Judgement(Outcome.STOPS, f"{table} {why}", hint, code)

    if head is None:
        return stops("not_published", f"is not published: the publication {new['published_as']} is gone", "cdc register")
    entry, filtered, listed, schema = new["member"] or [None, False, None, None]
    if not head["everything"] and entry is None and schema is None:
        hint = f"ALTER PUBLICATION {publication} ADD TABLE {name};"
        return stops("not_published", f"is not in the publication {new['published_as']}: its changes are not sent", hint)
    if not head["whole"] or (new["kind"] == "p" and not head["root"]):
        hint = f"ALTER PUBLICATION {publication} SET (publish = 'insert, update, delete, truncate', publish_via_partition_root = true);"
        why = f"is published in part: the publication {new['published_as']} leaves out operations, or names partitions in its place"
        return stops("published_in_part", why, hint)
    lacking = {c[_NUMBER] for c in new["columns"] if not c[_GENERATED]} - {int(n) for n in (listed or "").split()} if listed else set()
    if filtered or lacking:
        hint = f"ALTER PUBLICATION {publication} DROP TABLE {name};\nALTER PUBLICATION {publication} ADD TABLE {name};"
        what = "rows that its filter leaves out" if filtered else "columns that its list leaves out"
        return stops("published_in_part", f"is published in part: {new['published_as']} does not send {what}", hint)
    if new["captured"] is False:
        return stops("not_in_connector", "is not captured by the connector any more", "cdc register")
    if new["out"]:
        names = {c[_NUMBER]: c[_NAME] for c in new["columns"]}
        columns = ", ".join(names[n] for n in new["out"])
        return stops("columns_left_out", f"has columns that the connector leaves out: {columns}", "cdc register")
    if new["sealed"] is False or (new["captured"] is not None and new["sealed"] is None and old is not None and old.get("sealed")):
        why = "may lack changes: its connector's settings were changed by another hand than cdc register"
        return stops("connector_changed", why, "cdc register")
    if old is not None and old["slot"] and new["slot"] != old["slot"]:
        return stops("slot_gone", "is not read any more: the replication slot is gone, and what it held of the log with it", "cdc register")
    return None


def _reading(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Why the rows have to be read anew; empty where nothing that was seen changes them."""
    if old["oid"] != new["oid"]:
        return "another table has its name: it was made again, or swapped"
    return (
        _publication_moved(old, new)
        or _partitions_moved(old.get("parts") or (), new.get("parts") or ())
        or _columns_moved(old, new)
        or _types_moved(old.get("types") or {}, new.get("types") or {})
        or _back_and_forth(old, new)
        or _partitions_emptied(old.get("parts") or (), new.get("parts") or ())
    )


def _publication_moved(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    mine, its = old["publication"], new["publication"]
    if mine is None or its is None:
        return ""
    if mine["oid"] != its["oid"]:
        return "the publication was dropped and made again: what was committed in between was not sent"
    entry, came = [member and [member[0], member[3]] for member in (old["member"], new["member"])]
    if entry != came and not (mine["everything"] and its["everything"]):
        return "it was taken out of the publication and came back: what was committed in between was not sent"
    if mine["edition"] != its["edition"] and {**mine, "edition": 0} == {**its, "edition": 0}:
        return "the publication was changed and changed back: what was committed in between may not have been sent"
    return ""


def _partitions_moved(old: Collection[Sequence[Any]], new: Collection[Sequence[Any]]) -> str:
    mine = {p[_PART]: p for p in old}
    its = {p[_PART]: p for p in new}
    if gone := mine.keys() - its.keys():
        return f"{len(gone)} of its partitions were detached or dropped: their rows went without a change in the log"
    for oid, part in its.items():
        known = mine.get(oid)
        if known is None:
            if not part[_PART_BORN]:
                return "a partition was attached: the rows that it had came without a change in the log"
        elif (known[_PART_LINK], known[_PART_LEAVING]) != (part[_PART_LINK], part[_PART_LEAVING]):
            return "a partition was detached, and attached again"
    return ""


def _partitions_emptied(old: Collection[Sequence[Any]], new: Collection[Sequence[Any]]) -> str:
    """Where some have another file that no VACUUM FULL or CLUSTER gave them."""
    mine = {p[_PART]: p[_PART_FILE] for p in old}
    emptied = sum(p[_PART] in mine and mine[p[_PART]] != p[_PART_FILE] and not p[_PART_SWEPT] for p in new)
    return f"{emptied} of its partitions were emptied, which the log does not tell where it was done to one by itself" if emptied else ""


def _columns_moved(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    mine, its = {c[_NUMBER]: c for c in old["columns"]}, {c[_NUMBER]: c for c in new["columns"]}
    left, came = {c[_NAME] for n, c in mine.items() if n not in its}, {c[_NAME] for n, c in its.items() if n not in mine}
    if again := sorted(left & came):
        return f"the column {again[0]} was dropped and made again"
    before, after = {c[_NAME] for c in mine.values()}, {c[_NAME] for c in its.values()}
    rewritten = old["file"] != new["file"] or old["toast"] != new["toast"] or _files(old) != _files(new)
    for number, column in its.items():
        known = mine.get(number)
        if known is None:
            continue
        if known[_NAME] != column[_NAME] and (column[_NAME] in before or known[_NAME] in after):
            return f"the columns {known[_NAME]} and {column[_NAME]} changed names among each other"
        if known[_GENERATED] != column[_GENERATED]:
            return f"the column {column[_NAME]} is not generated any more: the log never carried what its rows hold"
        if known[_TYPE] != column[_TYPE] and not {known[_TYPE], column[_TYPE]} <= _TEXTS:
            return f"the column {column[_NAME]} has another type"
        if rewritten and known[_VERSION] != column[_VERSION] and not (known[_MISSING] and column[_CLEARED]):
            return f"its rows were written anew as the column {column[_NAME]} was altered: they may hold other values"
        if len(known) > _REST and known[_VERSION] != column[_VERSION] and _settled(known) == _settled(column):
            return f"the column {column[_NAME]} was changed and changed back"
    return ""


def _settled(column: Sequence[Any]) -> list[Any]:
    """All of it but its row version."""
    return [value for place, value in enumerate(column) if place not in (_VERSION, _CLEARED)]


_TEXTS = {25, 1043}
"""text and character varying: the same values, which ALTER TYPE does not write anew."""


def _files(one: Mapping[str, Any]) -> list[list[Any]]:
    return [[p[_PART], p[_PART_FILE]] for p in one["parts"] or () if p[_PART_KIND] == "r"]


def _types_moved(old: Mapping[str, Sequence[Any]], new: Mapping[str, Sequence[Any]]) -> str:
    for oid in old.keys() & new.keys():
        if old[oid][:3] != new[oid][:3] or old[oid][4] != new[oid][4]:
            return "a type of its columns was altered: its values read otherwise"
        labels = {label[0]: label for label in new[oid][3] or ()}
        if any(labels.get(label[0]) != label for label in old[oid][3] or ()):
            return "a value of an enum was renamed: rows that hold it read otherwise"
    return ""


def _back_and_forth(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """A row version of pg_class that nothing in the row explains: something was changed and changed back."""
    if old["edition"] == new["edition"]:
        return ""
    said = ("rest", "file", "toast", "replica", "persistence", "hidden", "partition")
    if any(old[name] != new[name] for name in said):
        return ""
    return "its definition was changed and changed back"
