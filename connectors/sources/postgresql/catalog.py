# ruff: noqa: S608  (the source passes quoted names and the catalog's own type names; values are parameters)
"""PostgreSQL's catalog: the queries that the source asks, what its types mean for the connector,
and the text forms in which events carry values."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from cdc_service.core.errors import ConfigError
from cdc_service.core.types import TableId
from cdc_service.databases.postgresql import INTERVAL_TEXT, input_text
from cdc_service.ports.source import Hazard


def quoted(*parts: str) -> str:
    """The identifier, each part in double quotes: the only way that a name enters SQL here. Raises ConfigError on a NUL character."""
    if any("\0" in part for part in parts):
        raise ConfigError("a PostgreSQL name cannot hold a NUL character")
    return ".".join('"' + part.replace('"', '""') + '"' for part in parts)


def written(*parts: str) -> str:
    """``quoted`` within a statement that has parameters: SQLAlchemy takes a name for one that begins with a colon."""
    return quoted(*parts).replace(":", r"\:")


def qualified(table: TableId) -> str:
    return quoted(table.schema, table.name)


def pattern(table: TableId, column: str | None = None) -> str:
    """The Java regular expression that matches this name, and others only where they differ by case. A dot within a name is ``[.]``, so
    that ``\\.`` only ever stands between names, and a blank is ``[ ]``, since Debezium cuts them off an expression's ends."""
    parts = [table.schema, table.name] if column is None else [table.schema, table.name, column]
    return r"\.".join(re.sub(r"[.\s]", r"[\g<0>]", re.sub(r"[^\w\s.]", r"\\\g<0>", part)) for part in parts)


def column_alone(table: TableId, column: str) -> str:
    """The expression that matches this column and none that differs by case, for Java and for Python, which reads them too."""
    return f"(?-i:{pattern(table, column)})"


def leave_out(table: TableId, column: str) -> str:
    """Where in the configuration the connector is told to leave the column out, and the line that says it."""
    text = column_alone(table, column)
    value = "'" + text.replace("'", "''") + "'" if text.isprintable() else json.dumps(text)
    return f"leave the column out, below connect: options: (behind what stands there, with a comma):\ncolumn.exclude.list: {value}"


_SYSTEM = "n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname !~ '^pg_(toast|temp_)'"
_ONLY = "(CAST(:table AS text) IS NULL OR (n.nspname = :schema AND c.relname = :table))"

# A temporary child shows its rows to its own session alone.
_SILENT = """
    SELECT i.inhrelid AS oid, i.inhparent AS parent, 'child' AS kind
    FROM pg_inherits i JOIN pg_class k ON k.oid = i.inhrelid WHERE c.relkind = 'r' AND i.inhparent = c.oid AND k.relpersistence <> 't'
    UNION ALL
    SELECT k.oid, t.parentrelid, CASE WHEN k.relkind = 'f' THEN 'foreign' ELSE 'unlogged' END
    FROM pg_partition_tree(CASE WHEN c.relkind = 'p' THEN c.oid END) t JOIN pg_class k ON k.oid = t.relid
    WHERE t.isleaf AND (k.relkind = 'f' OR k.relpersistence = 'u')"""

TABLES = f"""
SELECT c.oid, n.nspname AS schema, c.relname AS name, c.relkind = 'p' AS partitioned, c.relpersistence = 'p' AS logged,
       c.relreplident::text AS identity, rn.nspname AS root_schema, r.relname AS root_name,
       coalesce(k.conname, '') AS key_name, coalesce(k.condeferrable, false) AS key_deferrable,
       ARRAY(SELECT a.attname::text FROM unnest(k.conkey) WITH ORDINALITY u(number, place)
             JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = u.number ORDER BY u.place) AS key,
       ARRAY(SELECT a.attname::text FROM pg_index i CROSS JOIN unnest(i.indkey) WITH ORDINALITY u(number, place)
             JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = u.number
             WHERE i.indrelid = c.oid AND i.indisreplident ORDER BY u.place) AS identity_index,
       has_table_privilege(c.oid, 'SELECT') AND has_schema_privilege(n.oid, 'USAGE') AS readable,
       row_security_active(c.oid) AS row_security, pg_has_role(c.relowner, 'USAGE') AS owned,
       (SELECT json_agg(json_build_array(p.kind, sn.nspname, s.relname, un.nspname, u.relname) ORDER BY p.kind, sn.nspname, s.relname)
        FROM ({_SILENT}) AS p JOIN pg_class s ON s.oid = p.oid JOIN pg_namespace sn ON sn.oid = s.relnamespace
        JOIN pg_class u ON u.oid = p.parent JOIN pg_namespace un ON un.oid = u.relnamespace) AS silent,
       CASE WHEN c.relkind = 'p'
            THEN (SELECT coalesce(sum(greatest(l.reltuples, 0)), 0) FROM pg_partition_tree(c.oid) p JOIN pg_class l ON l.oid = p.relid
                  WHERE p.isleaf)
            ELSE greatest(c.reltuples, 0) END::bigint AS rows
FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_constraint k ON k.conrelid = c.oid AND k.contype = 'p'
LEFT JOIN pg_class r ON c.relispartition AND r.oid = pg_partition_root(c.oid)
LEFT JOIN pg_namespace rn ON rn.oid = r.relnamespace
WHERE c.relkind IN ('r', 'p') AND {_SYSTEM} AND {_ONLY}
ORDER BY n.nspname COLLATE "C", c.relname COLLATE "C"
"""

_TYPE = """format_type(a.atttypid, a.atttypmod) AS type, b.typcategory::text AS category,
       CASE WHEN b.typtype = 'e' THEN 'enum' WHEN b.typcategory = 'A' THEN
            (SELECT CASE WHEN e.typtype = 'e' THEN 'enum' ELSE e.typname END FROM pg_type e WHERE e.oid = b.typelem)
            ELSE b.typname END AS base,
       (SELECT quote_ident(tn.nspname) FROM pg_namespace tn WHERE tn.oid = b.typnamespace) AS type_schema"""
_TYPE_JOIN = """JOIN pg_type t ON t.oid = a.atttypid JOIN pg_type b ON b.oid = CASE WHEN t.typtype <> 'd' THEN t.oid ELSE (
    WITH RECURSIVE below AS (
        SELECT t.typbasetype AS oid UNION ALL
        SELECT d.typbasetype FROM below JOIN pg_type d ON d.oid = below.oid AND d.typtype = 'd')
    SELECT below.oid FROM below JOIN pg_type d ON d.oid = below.oid AND d.typtype <> 'd') END"""

COLUMNS = f"""
SELECT c.oid, a.attname AS name, NOT a.attnotnull AS nullable,
       a.attgenerated <> '' AS generated, t.typtype = 'd' AS domain, a.attstorage <> 'p' AS may_be_unsent,
       CASE WHEN t.typtype <> 'd' THEN a.atttypmod WHEN t.typbasetype = b.oid THEN t.typtypmod ELSE -1 END AS modifier,
       scale(CAST(CAST(0 AS money) AS numeric)) AS money_digits, {_TYPE}
FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
{_TYPE_JOIN}
WHERE c.relkind IN ('r', 'p') AND {_SYSTEM} AND {_ONLY}
ORDER BY c.oid, a.attnum
"""

COLUMN_TYPES = f"""
SELECT a.attname AS name, {_TYPE}
FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
{_TYPE_JOIN}
WHERE n.nspname = :schema AND c.relname = :table AND c.relkind IN ('r', 'p')
"""

TYPES_OF_TABLES = f"""
SELECT w.place - 1 AS place, a.attname AS name, {_TYPE}
FROM unnest(CAST(:schemas AS text[]), CAST(:tables AS text[])) WITH ORDINALITY AS w(schema, name, place)
JOIN pg_namespace n ON n.nspname = w.schema
JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = w.name AND c.relkind IN ('r', 'p')
JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
{_TYPE_JOIN}
"""

KEY_TYPES = (
    COLUMN_TYPES
    + """
  AND a.attnum = ANY ((SELECT k.conkey FROM pg_constraint k WHERE k.conrelid = c.oid AND k.contype = 'p')::smallint[])
ORDER BY a.attnum
"""
)

FILL = f"""
SELECT c.relname AS name, n.nspname AS schema, {_TYPE},
       CASE WHEN a.atthasmissing THEN (a.attmissingval::text::text[])[1] END AS missing,
       row_security_active(c.oid) OR NOT has_table_privilege(c.oid, 'SELECT') AS hidden,
       a.attnotnull AS required, pg_relation_filenode(c.oid) = c.oid AS as_created
FROM (SELECT coalesce(p.relid, root.oid) AS oid
      FROM pg_class root JOIN pg_namespace rn ON rn.oid = root.relnamespace
      LEFT JOIN LATERAL pg_partition_tree(root.oid) p ON p.isleaf
      WHERE rn.nspname = :schema AND root.relname = :table) AS leaf
JOIN pg_class c ON c.oid = leaf.oid
JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = :column AND a.attnum > 0 AND NOT a.attisdropped
{_TYPE_JOIN}
"""

# A domain over an enum has its category and no labels either. What was made of another one comes first, so that it can be dropped first.
UNREADABLE_TYPES = """
SELECT format_type(t.oid, NULL) AS name, t.typtype = 'd' AS domain,
       ARRAY(SELECT format('ALTER TABLE %I.%I ALTER %I TYPE %s;', n.nspname, c.relname, a.attname, format_type(b.oid, NULL))
             FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
             WHERE a.atttypid = t.oid AND NOT a.attisdropped AND c.relkind IN ('r', 'p') AND NOT c.relispartition
             ORDER BY c.oid, a.attnum) AS uses
FROM pg_type t CROSS JOIN LATERAL (
    WITH RECURSIVE below AS (SELECT t.oid, t.typtype, t.typbasetype UNION ALL
        SELECT d.oid, d.typtype, d.typbasetype FROM below JOIN pg_type d ON below.typtype = 'd' AND d.oid = below.typbasetype)
    SELECT below.oid FROM below WHERE below.typtype <> 'd') b
WHERE t.typcategory = 'E' AND NOT EXISTS (SELECT FROM pg_enum e WHERE e.enumtypid = t.oid) ORDER BY t.oid DESC
"""

TWINS = """
SELECT n.nspname::text AS schema, c.relname::text AS name FROM pg_attribute a
JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p') AND a.attnum > 0 AND NOT a.attisdropped
GROUP BY n.nspname, c.relname HAVING count(*) > count(DISTINCT lower(a.attname))
"""

POSITION = "SELECT (pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::bigint AS position"

FACTS = """
SELECT current_setting('server_version') AS version, current_setting('server_version_num')::int AS version_number,
       current_setting('wal_level') AS wal_level, pg_is_in_recovery() AS in_recovery,
       current_setting('max_replication_slots')::int AS slots_max, (SELECT count(*) FROM pg_replication_slots) AS slots,
       current_setting('max_wal_senders')::int AS senders_max,
       (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'walsender') AS senders,
       current_setting('max_slot_wal_keep_size') AS keep_size,
       current_user::text AS role, current_database()::text AS database, r.rolsuper AS superuser,
       r.rolsuper OR r.rolreplication
           OR coalesce((SELECT pg_has_role(g.oid, 'USAGE') FROM pg_roles g WHERE g.rolname = 'rds_replication'), false) AS may_replicate,
       has_database_privilege(current_database(), 'CREATE') AS may_create,
       (SELECT bool_and(has_function_privilege(p.oid, 'EXECUTE')) FROM pg_proc p
        WHERE p.proname = 'pg_logical_emit_message' AND p.proargtypes[2] = 'text'::regtype) AS may_emit
FROM pg_roles r WHERE r.rolname = current_user
"""

SLOT = """
SELECT s.slot_name::text, s.active, s.wal_status, s.safe_wal_size, s.plugin::text, s.database::text,
       (s.confirmed_flush_lsn - '0/0'::pg_lsn)::bigint AS confirmed,
       (pg_current_wal_lsn() - s.restart_lsn)::bigint AS retained
FROM (SELECT 1) AS one LEFT JOIN pg_replication_slots s ON s.slot_name = :slot
"""

PUBLICATION = """
SELECT p.pubname::text, p.puballtables, p.pubviaroot, pg_has_role(p.pubowner, 'USAGE') AS owned,
       array_remove(ARRAY[CASE WHEN p.pubinsert THEN 'insert' END, CASE WHEN p.pubupdate THEN 'update' END,
                          CASE WHEN p.pubdelete THEN 'delete' END, CASE WHEN p.pubtruncate THEN 'truncate' END], NULL) AS operations
FROM (SELECT 1) AS one LEFT JOIN pg_publication p ON p.pubname = :name
"""

SIGNALS = """
SELECT n.nspname::text AS schema, pg_has_role(c.relowner, 'USAGE') AS owned,
       has_table_privilege(c.oid, 'SELECT') AND has_table_privilege(c.oid, 'INSERT') AND has_table_privilege(c.oid, 'DELETE') AS usable,
       (SELECT has_schema_privilege(h.oid, 'CREATE') FROM pg_namespace h WHERE h.nspname = :home) AS may_create
FROM (SELECT 1) AS one LEFT JOIN pg_class c ON c.relname = :name AND c.relkind = 'r' LEFT JOIN pg_namespace n ON n.oid = c.relnamespace
ORDER BY n.nspname LIMIT 1
"""

PUBLISHED_14 = (
    "SELECT schemaname::text AS schema, tablename::text AS name, false AS narrow FROM pg_publication_tables WHERE pubname = :name"
)
PUBLISHED = """
SELECT t.schemaname::text AS schema, t.tablename::text AS name,
       t.rowfilter IS NOT NULL OR EXISTS (
           SELECT FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid JOIN pg_class c ON c.oid = r.prrelid
           JOIN pg_namespace n ON n.oid = c.relnamespace
           WHERE p.pubname = t.pubname AND n.nspname = t.schemaname AND c.relname = t.tablename AND r.prattrs IS NOT NULL) AS narrow
FROM pg_publication_tables t WHERE t.pubname = :name
"""

# What Debezium 3.6 does to values of these types was seen on a real stream; see the table of types in docs/.
_ARRAYS_NEVER_SENT = {"interval", "money", "name", "point", "refcursor", "xml"}
_ARRAYS_FAIL = {"bit", "varbit"}
_ARRAYS_TAKE_NULL = {
    *("int2", "int4", "int8", "oid", "float4", "float8", "numeric", "bool", "text", "varchar", "bpchar", "char", "citext", "bytea", "uuid"),
    *("date", "time", "timetz", "timestamp", "timestamptz", "json", "jsonb", "hstore", "inet", "cidr", "macaddr", "macaddr8"),
    *("int4range", "int8range", "numrange", "tsrange", "tstzrange", "daterange"),
}
_ARRAYS_UNSENT_AS_PLACEHOLDER = {"text", "varchar", "jsonb", "bytea", "int4", "int8", "date", "uuid"}
_JSON = {"json", "jsonb", "hstore"}
BITS_ALWAYS_SENT = 152
"""The longest bit string that never lies out of line, however large its row: PostgreSQL moves a value away only if it has more than the 24
bytes of an aligned TOAST pointer (heaptoast.c, toast_helper.c); this one has 1 for its header, 4 for its length and 19 for its bits."""


OLD = "((isfinite({0}) AND {0} < '0001-01-01') OR {0} BETWEEN '1582-10-05' AND '1582-10-14')"
"""Whether a date is one that the connector's snapshots change."""


def base_of(column: Mapping[Any, Any]) -> str:
    """SourceColumn.base of a row of COLUMNS."""
    return f"{column['base']}[]" if column["category"] == "A" else str(column["base"])


def takes_null(base: str) -> bool:
    """Whether the connector can send arrays of the type with a NULL in them."""
    return base in _ARRAYS_TAKE_NULL


def never_sent(column: Mapping[Any, Any]) -> bool:
    """Whether the connector's events have no such column (a row of COLUMNS)."""
    return bool(column["generated"] or (column["category"] == "A" and column["base"] in _ARRAYS_NEVER_SENT))


def is_json(column: Mapping[Any, Any]) -> bool:
    """Whether a column (a row of COLUMNS) holds one JSON document, as events give it."""
    return column["base"] in _JSON and column["category"] != "A"


def _may_be_unsent(column: Mapping[Any, Any]) -> bool:
    """Whether an UPDATE can leave the column's value out of its event."""
    bits = column["modifier"] if column["base"] in ("bit", "varbit") and column["category"] != "A" else -1
    if column["base"] == "bit" and bits < 0 and column["category"] != "A" and not column["domain"]:
        bits = 1
    return column["may_be_unsent"] and not 0 <= bits <= BITS_ALWAYS_SENT


def hazard(column: Mapping[Any, Any], table: TableId, *, full_identity: bool) -> Hazard | None:
    """What the connector cannot carry of a column (a row of COLUMNS) of ``table``, by its type."""
    name, base, array = column["name"], column["base"], column["category"] == "A"
    left_out = leave_out(table, name)
    if array and base in _ARRAYS_NEVER_SENT:
        return Hazard(
            f"column {name} ({column['type']}) is not part of the connector's events", "the target will not have it", blocking=False
        )
    if array and base in _ARRAYS_FAIL:
        return Hazard(
            f"column {name} ({column['type']}): the connector cannot convert it and stops at the first value", left_out, blocking=True
        )
    if base == "varbit" and column["domain"]:
        return Hazard(f"column {name} ({column['type']}): events carry it as if all its values were of one length", left_out, blocking=True)
    unsent_lost = base in ("bit", "varbit") or (array and base not in _ARRAYS_UNSENT_AS_PLACEHOLDER)
    if unsent_lost and _may_be_unsent(column) and not full_identity:
        message = f"column {name} ({column['type']}): a large value that an UPDATE leaves as it is cannot be told from NULL"
        cure = f"ALTER TABLE {qualified(table)} REPLICA IDENTITY FULL;  -- or {left_out}"
        return Hazard(message, cure, blocking=True)
    if base == "varbit":
        return Hazard(f"column {name} ({column['type']}): events do not say how long the bit string is", left_out, blocking=False)
    if array and not takes_null(base):
        message = f"column {name} ({column['type']}): the connector stops at an array with a NULL in it"
        return Hazard(message, f"keep NULL out of these arrays, or {left_out}", blocking=False)
    if array and base == "numeric":
        message = f"column {name} ({column['type']}): the connector stops at an array with NaN or an infinity in it"
        return Hazard(message, f"keep these out of the arrays, or {left_out}", blocking=False)
    if base == "money" and column.get("money_digits", 2) != 2:
        message = f"column {name} ({column['type']}): its values have {column['money_digits']} digits behind the point here, events two"
        return Hazard(message, f"ALTER TABLE {qualified(table)} ALTER COLUMN {quoted(name)} TYPE numeric;  -- or {left_out}", blocking=True)
    return None


_RANGES = {"int4range", "int8range", "numrange", "tsrange", "tstzrange", "daterange"}
_AS_TEXT = {
    *("text", "varchar", "name", "citext", "enum", "xml", "json", "jsonb", "uuid", "cidr", "macaddr", "macaddr8", "ltree", "isbn"),
    *("tsvector", "int2", "int4", "int8", "oid", "bit", "varbit", "char", *_RANGES),
    # Events carry the text of these as bytes.
    *("int4multirange", "int8multirange", "nummultirange", "tsmultirange", "tstzmultirange", "datemultirange", "xid", "xid8", "cid", "tid"),
    *("pg_lsn", "tsquery", "regclass", "regtype", "regproc", "regrole", "regnamespace", "jsonpath", "pg_snapshot", "txid_snapshot"),
    *("aclitem", "lquery", "ltxtquery"),
}
_JSON_ELEMENTS = {"int2", "int4", "int8", "bool", "float4", "float8"}
_TEXT_ELEMENTS = {
    "text",
    "varchar",
    "uuid",
    "enum",
    "citext",
    "json",
    "jsonb",
    "cidr",
    "macaddr",
    "macaddr8",
    "tsvector",
    "ltree",
    *_RANGES,
}
COMPARABLE_ELEMENTS = frozenset(_JSON_ELEMENTS | _TEXT_ELEMENTS)
"""Elements whose text in an event is the value's own, so that arrays of them can be compared."""
_COUNTED_ELEMENTS = {"date", "time", "timestamp", "oid"}
_NUMERIC = (
    "CASE CAST({0} AS text) WHEN 'NaN' THEN 'NAN' WHEN 'Infinity' THEN 'POSITIVE_INFINITY' WHEN '-Infinity' THEN 'NEGATIVE_INFINITY'"
    " ELSE CAST({0} AS text) END"
)
_INSTANT = """CASE {0} WHEN 'infinity' THEN 'infinity' WHEN '-infinity' THEN '-infinity' ELSE (
        SELECT CASE WHEN y > 9999 THEN '+' || y WHEN y > 0 THEN lpad(y::text, 4, '0') WHEN y = -1 THEN '0000'
            ELSE '-' || lpad((-y - 1)::text, 4, '0') END || to_char(u, '-MM-DD"T"HH24:MI:SS.US"Z"')
        FROM (SELECT {0} AT TIME ZONE 'UTC' AS u, CAST(extract(year FROM {0} AT TIME ZONE 'UTC') AS integer) AS y) AS at) END"""
_FORMS = {
    "bool": "CAST({0} AS text)",
    "float4": "CAST({0} AS text)",
    "float8": "CAST({0} AS text)",
    # A cast of character(n) to text loses its trailing blanks; its output function keeps them.
    "bpchar": "CAST(textin(bpcharout({0})) AS text)",
    "bytea": "translate(encode({0}, 'base64'), E'\\n', '')",
    "numeric": _NUMERIC,
    # A cast to text writes a whole address's /32, which the output function leaves out.
    "inet": "CAST(textin(inet_out({0})) AS text)",
    "money": "CAST(CAST({0} AS numeric) AS text)",
    "interval": INTERVAL_TEXT,
    "time": "CAST(trunc(extract(epoch FROM {0}) * 1000000) AS text)",
    # In UTC, as ISO 8601; 24:00 is 00:00 there.
    "timetz": "replace(replace(CAST({0} AT TIME ZONE 'UTC' AS text), '24:00:00', '00:00:00'), '+00', 'Z')",
    "point": "CASE WHEN {0} IS NOT NULL THEN CAST(json_build_object('x', ({0})[0], 'y', ({0})[1]) AS text) END",
    # Infinite values as the connector writes them (docs/debezium-postgresql.md).
    "date": """CASE {0} WHEN 'infinity' THEN '-2147472692' WHEN '-infinity' THEN '-2147472691'
        ELSE CAST({0} - DATE '1970-01-01' AS text) END""",
    "timestamp": """CASE {0} WHEN 'infinity' THEN '9223372036825200000' WHEN '-infinity' THEN '-9223372036832400000'
        ELSE CAST(trunc(extract(epoch FROM {0}) * 1000000) AS text) END""",
    "timestamptz": _INSTANT,
    "hstore": "CAST({1}.hstore_to_json({0}) AS text)",
}


_BYTES_OF_TEXT = "translate(encode(convert_to(CAST({0} AS text), 'UTF8'), 'base64'), E'\\n', '')"
MISSHAPEN = '"'
"""Begins what stands for an array of another form than a list: a JSON text."""


def event_text(base: str, category: str, value: str, type_schema: str) -> str | None:
    """The SQL expression that gives ``value`` (an SQL expression too) as events carry it: text as it is, bytes in base64, arrays as JSON
    text, days and microseconds since 1970 as numbers. None where the form of events is not one that SQL can give.

    An array of more than one dimension, or that does not begin with element 1, is no list: it comes as a JSON text of PostgreSQL's own."""
    if category == "A":
        form = _list_text(base, value, type_schema)
        if form is None:
            return None
        other = f"array_ndims({value}) > 1 OR array_lower({value}, 1) <> 1"
        return f"CASE WHEN {other} THEN CAST(to_json(CAST({value} AS text)) AS text) ELSE {form} END"
    if base in _AS_TEXT:
        return f"CAST({value} AS text)"
    form = _FORMS.get(base) or (_BYTES_OF_TEXT if category in ("C", "R") else None)
    return None if form is None else form.format(value, type_schema)


def _list_text(base: str, value: str, type_schema: str) -> str | None:
    if base in _JSON_ELEMENTS:
        return f"CAST(to_json({value}) AS text)"
    if base in _TEXT_ELEMENTS:
        return f"CAST(to_json(CAST({value} AS text[])) AS text)"
    element = event_text(base, "", "e.v", type_schema)
    if element is None:
        return None
    if base in _COUNTED_ELEMENTS:
        element = f"CAST({element} AS numeric)"
    listed = f"(SELECT CAST(json_agg({element} ORDER BY e.n) AS text) FROM unnest({value}) WITH ORDINALITY AS e(v, n))"
    return f"CASE WHEN {value} IS NOT NULL THEN coalesce({listed}, '[]') END"


def reread(table: str, key: Sequence[tuple[str, str]], forms: Sequence[str]) -> str:
    """One row for each key, in their order: its place, whether the row is there, then the forms. Keys are the parameters k0, k1, ...:
    arrays of text. ``key`` pairs each quoted column with its type."""
    arrays = ", ".join(f"CAST(:k{i} AS text[])" for i in range(len(key)))
    names = ", ".join(f"k{i}" for i in range(len(key)))
    equal = " AND ".join(f"t.{column} = CAST(k.k{i} AS {type_})" for i, (column, type_) in enumerate(key))
    values = "".join(f", {form}" for form in forms)
    return (
        f"SELECT k.place, t.{key[0][0]} IS NOT NULL{values} FROM unnest({arrays}) WITH ORDINALITY AS k({names}, place)"
        f" LEFT JOIN {table} AS t ON {equal} ORDER BY k.place"
    )


def key_parameter(column: pa.ChunkedArray) -> list[str]:
    """Key values as the text that PostgreSQL reads back into the same value."""
    return list(input_text(column.combine_chunks()).to_pylist())
