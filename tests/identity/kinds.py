"""What one step does to a table: the statements of each kind, made for the shape that the table has at that moment.

Pure: (shape, dice) -> statements, for a shape that has a key. No statement means that the kind has nothing to do there; one that PostgreSQL
refuses counts as not done.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from random import Random

from tests.identity.shape import Column, Shape, literal

Kind = Callable[[Shape, Random], list[str]]

IDS = 60
"""Keys are drawn from so few that what was deleted comes again."""
PARTITION = 20
"""Keys of one partition."""
CHILD_IDS = 1000


def q(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def fresh(shape: Shape, dice: Random, stem: str = "x") -> str:
    """A name that no column has."""
    taken = {column.name for column in shape.columns}
    return next(name for name in (f"{stem}{dice.randrange(100)}" for _ in range(1000)) if name not in taken)


def pick(shape: Shape, dice: Random, *bases: str) -> Column | None:
    found = shape.plain(*bases)
    return dice.choice(found) if found else None


# ---- rows ------------------------------------------------------------------


def _free(s: Shape) -> list[int]:
    """Keys that no row has, and that have a partition where they need one."""
    there = {_number(name) for name in s.partitions}
    return [n for n in range(1, IDS) if n not in s.ids and (not there or n // PARTITION in there)]


def insert(s: Shape, dice: Random) -> list[str]:
    free, made = _free(s), []
    for id_ in dice.sample(free, min(len(free), dice.randrange(1, 4))):
        columns = [c for c in s.columns if not c.generated and c.name != s.key[0] and (not c.default or dice.random() < 0.6)]
        names = ", ".join(q(name) for name in (s.key[0], *(c.name for c in columns)))
        values = ", ".join((str(id_), *(literal(c, dice) for c in columns)))
        made.append(f"INSERT INTO {s.table} ({names}) VALUES ({values})")
    return made


def update(s: Shape, dice: Random) -> list[str]:
    if not s.ids or not s.plain():
        return []
    columns = dice.sample(s.plain(), min(len(s.plain()), dice.randrange(1, 4)))
    made = []
    for id_ in dice.sample(s.ids, min(len(s.ids), dice.randrange(1, 4))):
        sets = ", ".join(f"{q(c.name)} = {literal(c, dice)}" for c in columns)
        made.append(f"UPDATE {s.table} SET {sets} WHERE {q(s.key[0])} = {id_}")
    return made


def delete(s: Shape, dice: Random) -> list[str]:
    return [f"DELETE FROM {s.table} WHERE {q(s.key[0])} = {dice.choice(s.ids)}"] if s.ids else []


def rekey(s: Shape, dice: Random) -> list[str]:
    free = _free(s)
    if not s.ids or not free:
        return []
    return [f"UPDATE {s.table} SET {q(s.key[0])} = {dice.choice(free)} WHERE {q(s.key[0])} = {dice.choice(s.ids)}"]


def truncate(s: Shape, dice: Random) -> list[str]:
    return [f"TRUNCATE {s.table}"]


# ---- columns ---------------------------------------------------------------


def _add(definition: str) -> Kind:
    def add(s: Shape, dice: Random) -> list[str]:
        number = pick(s, dice, "int4", "int8")
        told = definition.format(number=q(number.name) if number else "7", constant=dice.randrange(100))
        return [f"ALTER TABLE {s.table} ADD COLUMN {fresh(s, dice)} {told}"]

    return add


def _column(action: str, *bases: str) -> Kind:
    """ALTER TABLE with ``{c}``, the name of a column of these types."""

    def alter(s: Shape, dice: Random) -> list[str]:
        column = pick(s, dice, *bases)
        return [] if column is None else [f"ALTER TABLE {s.table} {action.format(c=q(column.name), n=dice.randrange(100))}"]

    return alter


def rename(s: Shape, dice: Random) -> list[str]:
    column = pick(s, dice)
    return [] if column is None else [f"ALTER TABLE {s.table} RENAME {q(column.name)} TO {fresh(s, dice, 'r')}"]


def rename_key(s: Shape, dice: Random) -> list[str]:
    return [f"ALTER TABLE {s.table} RENAME {q(s.key[0])} TO {fresh(s, dice, 'id')}"]


def rename_and_add(s: Shape, dice: Random) -> list[str]:
    column = pick(s, dice, "int4")
    if column is None:
        return []
    return [*_renamed(s, column.name, fresh(s, dice, "r")), f"ALTER TABLE {s.table} ADD {q(column.name)} int DEFAULT {dice.randrange(100)}"]


def _renamed(s: Shape, old: str, new: str) -> list[str]:
    return [f"ALTER TABLE {s.table} RENAME {q(old)} TO {q(new)}"]


def swap_names(s: Shape, dice: Random) -> list[str]:
    alike = [(a, b) for a in s.plain() for b in s.plain() if a.name < b.name and a.type == b.type]
    if not alike:
        return []
    a, b = dice.choice(alike)
    return [*_renamed(s, a.name, "swapping"), *_renamed(s, b.name, a.name), *_renamed(s, "swapping", b.name)]


def drop_and_add(s: Shape, dice: Random) -> list[str]:
    column = pick(s, dice, "int4")
    if column is None:
        return []
    drop, add = f"DROP COLUMN {q(column.name)}", f"ADD COLUMN {q(column.name)} int DEFAULT {dice.randrange(100)}"
    return [f"ALTER TABLE {s.table} {drop}, {add}"] if dice.random() < 0.5 else [f"ALTER TABLE {s.table} {do}" for do in (drop, add)]


def drop_expression(s: Shape, dice: Random) -> list[str]:
    found = [c for c in s.columns if c.generated]
    return [f"ALTER TABLE {s.table} ALTER {q(dice.choice(found).name)} DROP EXPRESSION"] if found else []


def other_key(s: Shape, dice: Random) -> list[str]:
    """Another column becomes the primary key."""
    column = next((c for c in s.plain("int4") if c.not_null), None)
    if column is None or s.partitions:
        return []
    key = f"{s.table}_pkey"
    return [f"ALTER TABLE {s.table} DROP CONSTRAINT {key}, ADD CONSTRAINT {key} PRIMARY KEY ({q(column.name)})"]


# ---- types of our own ------------------------------------------------------


def enum_add(s: Shape, dice: Random) -> list[str]:
    place = dice.choice(("", " BEFORE 'sad'", " AFTER 'glad'"))
    return [f"ALTER TYPE {s.table}_mood ADD VALUE IF NOT EXISTS 'mood{dice.randrange(9)}'{place}"]


def enum_rename(s: Shape, dice: Random) -> list[str]:
    there = next((c.parts for c in s.columns if c.base == "enum"), ())
    both = [(a, b) for a, b in (("sad", "blue"), ("blue", "sad"), ("glad", "merry"), ("merry", "glad")) if a in there]
    if not both:
        return []
    old, new = dice.choice(both)
    return [f"ALTER TYPE {s.table}_mood RENAME VALUE '{old}' TO '{new}'"]


def enum_swap(s: Shape, dice: Random) -> list[str]:
    """Two labels change places; each value means the other one then."""
    told = (("sad", "between"), ("glad", "sad"), ("between", "glad"))
    return [f"ALTER TYPE {s.table}_mood RENAME VALUE '{old}' TO '{new}'" for old, new in told]


def domain(s: Shape, dice: Random) -> list[str]:
    name = f"{s.table}_small"
    return [
        f"ALTER DOMAIN {name} "
        + dice.choice(
            ("ADD CONSTRAINT big CHECK (VALUE < 100000)", "DROP CONSTRAINT IF EXISTS big", "SET DEFAULT 5", "DROP DEFAULT", "SET NOT NULL")
        )
    ]


def composite(s: Shape, dice: Random) -> list[str]:
    told = (
        "ADD ATTRIBUTE more int",
        "DROP ATTRIBUTE IF EXISTS more",
        "RENAME ATTRIBUTE b TO bb",
        "RENAME ATTRIBUTE bb TO b",
        "DROP ATTRIBUTE IF EXISTS a",
    )
    return [f"ALTER TYPE {s.table}_pair {dice.choice(told)}"]


# ---- what changes no value -------------------------------------------------


def _same(*statements: str) -> Kind:
    """One of these, with ``{t}`` for the table, ``{k}`` for its key's first column."""

    def run(s: Shape, dice: Random) -> list[str]:
        told = dice.choice(statements)
        return [told.format(t=s.table, k=q(s.key[0]), n=dice.randrange(1000), p=s.publication)]

    return run


# ---- publication, replica identity, row security ---------------------------


def _published(*actions: str) -> Kind:
    """Each action with ``{t}`` and ``{k}``, in this order."""

    def run(s: Shape, dice: Random) -> list[str]:
        key = q(s.key[0])
        return [f"ALTER PUBLICATION {s.publication} {action.format(t=s.table, k=key, n=dice.randrange(IDS))}" for action in actions]

    return run


def publish_columns(s: Shape, dice: Random) -> list[str]:
    kept = dice.sample(s.plain(), len(s.plain()) // 2)
    names = ", ".join(q(name) for name in (*s.key, *(c.name for c in kept)))
    return [f"ALTER PUBLICATION {s.publication} DROP TABLE {s.table}", f"ALTER PUBLICATION {s.publication} ADD TABLE {s.table} ({names})"]


def unlog(s: Shape, dice: Random) -> list[str]:
    return [f"ALTER PUBLICATION {s.publication} DROP TABLE {s.table}", f"ALTER TABLE {s.table} SET UNLOGGED"]


def log_again(s: Shape, dice: Random) -> list[str]:
    return [f"ALTER TABLE {s.table} SET LOGGED", f"ALTER PUBLICATION {s.publication} ADD TABLE {s.table}"]


def row_security(s: Shape, dice: Random) -> list[str]:
    on = f"ALTER TABLE {s.table} ENABLE ROW LEVEL SECURITY"
    policy = f"CREATE POLICY half ON {s.table} USING ({q(s.key[0])} % 2 = 0)"
    forced = f"ALTER TABLE {s.table} FORCE ROW LEVEL SECURITY"
    return dice.choice(([on], [on, policy], [policy, on, forced], [forced]))


# ---- the table itself ------------------------------------------------------


def _copied(s: Shape, name: str, where: str = "") -> list[str]:
    names = ", ".join(q(c.name) for c in s.columns if not c.generated)
    return [f"CREATE TABLE {name} (LIKE {s.table} INCLUDING ALL)", f"INSERT INTO {name} ({names}) SELECT {names} FROM {s.table} {where}"]


def swap_table(s: Shape, dice: Random) -> list[str]:
    """A filled copy takes the table's place, with some rows less."""
    if s.partitions:
        return []
    new, old = f"{s.table}_new{dice.randrange(1000)}", f"{s.table}_old{dice.randrange(1000)}"
    return [
        *_copied(s, new, f"WHERE {q(s.key[0])} % 5 <> 0"),
        f"ALTER TABLE {s.table} RENAME TO {old}",
        f"ALTER TABLE {new} RENAME TO {s.table}",
    ]


def recreate(s: Shape, dice: Random) -> list[str]:
    if s.partitions:
        return []
    kept = f"{s.table}_kept{dice.randrange(1000)}"
    return [
        *_copied(s, kept, f"WHERE {q(s.key[0])} % 3 <> 0"),
        f"DROP TABLE {s.table} CASCADE",
        f"ALTER TABLE {kept} RENAME TO {s.table}",
    ]


def recreate_empty(s: Shape, dice: Random) -> list[str]:
    if s.partitions:
        return []
    kept = f"{s.table}_kept{dice.randrange(1000)}"
    return [*_copied(s, kept)[:1], f"DROP TABLE {s.table} CASCADE", f"CREATE TABLE {s.table} (LIKE {kept} INCLUDING ALL)"]


def away_and_back(s: Shape, dice: Random) -> list[str]:
    """The table has another name, or stands in another schema, for a while."""
    if dice.random() < 0.5:
        return [f"ALTER TABLE {s.table} RENAME TO {s.table}_away", f"ALTER TABLE {s.table}_away RENAME TO {s.table}"]
    return [f"ALTER TABLE {s.table} SET SCHEMA aside", f"ALTER TABLE aside.{s.table} SET SCHEMA public"]


# ---- inheritance and partitions --------------------------------------------


def child(s: Shape, dice: Random) -> list[str]:
    """A table with rows becomes a child."""
    if s.partitions:
        return []
    name, key = f"{s.table}_child{dice.randrange(1000)}", q(s.key[0])
    names = ", ".join(q(c.name) for c in s.columns if not c.generated and c.name not in s.key)
    shifted = ", ".join((f"{key} + {CHILD_IDS}", names)) if names else f"{key} + {CHILD_IDS}"
    listed = f"{key}, {names}" if names else key
    return [
        f"CREATE TABLE {name} () INHERITS ({s.table})",
        f"INSERT INTO {name} ({listed}) SELECT {shifted} FROM ONLY {s.table} WHERE {key} % 2 = 0 AND {key} < {CHILD_IDS}",
    ]


def child_rows(s: Shape, dice: Random) -> list[str]:
    found = [name for name in s.beside if "_child" in name]
    column = pick(s, dice, "int4")
    if not found:
        return child(s, dice)
    if column is None:
        return []
    name = dice.choice(found)
    return [f"UPDATE {name} SET {q(column.name)} = {literal(column, dice)} WHERE {q(s.key[0])} % 3 = 0"]


def child_off(s: Shape, dice: Random) -> list[str]:
    found = [name for name in s.beside if "_child" in name]
    if not found:
        return child(s, dice)
    return [f"ALTER TABLE {dice.choice(found)} {dice.choice(('NO INHERIT', 'INHERIT'))} {s.table}"]


def _bounds(number: int) -> str:
    return f"FOR VALUES FROM ({number * PARTITION}) TO ({(number + 1) * PARTITION})"


def _number(name: str) -> int:
    return int(name.rpartition("_p")[2].partition("_")[0])


def _free_number(s: Shape) -> int | None:
    return next(iter(sorted(set(range(IDS // PARTITION)) - {_number(name) for name in s.partitions})), None)


def part_create(s: Shape, dice: Random) -> list[str]:
    number = _free_number(s)
    if not s.partitions or number is None:
        return []
    return [f"CREATE TABLE {s.table}_p{number}_{dice.randrange(1000)} PARTITION OF {s.table} {_bounds(number)}"]


def part_attach(s: Shape, dice: Random) -> list[str]:
    """A filled table, or one that was taken off before, becomes a partition."""
    if not s.partitions:
        return []
    off = [name for name in s.beside if "_p" in name and _number(name) not in {_number(p) for p in s.partitions}]
    if off and dice.random() < 0.6:
        name = dice.choice(off)
        return [f"ALTER TABLE {s.table} ATTACH PARTITION {name} {_bounds(_number(name))}"]
    number = _free_number(s)
    if number is None:
        return []
    name = f"{s.table}_p{number}_{dice.randrange(1000)}"
    made = [f"CREATE TABLE {name} (LIKE {s.table} INCLUDING ALL)"]
    for id_ in dice.sample(range(number * PARTITION + 1, (number + 1) * PARTITION), 3):
        columns = [c for c in s.columns if not c.generated and c.name not in s.key]
        values = ", ".join((str(id_), *(literal(c, dice) for c in columns)))
        made.append(f"INSERT INTO {name} ({', '.join(q(n) for n in (*s.key, *(c.name for c in columns)))}) VALUES ({values})")
    return [*made, f"ALTER TABLE {s.table} ATTACH PARTITION {name} {_bounds(number)}"]


def _partition(statement: str) -> Kind:
    """With ``{p}``, one of at least two partitions."""

    def run(s: Shape, dice: Random) -> list[str]:
        return [statement.format(t=s.table, p=dice.choice(s.partitions))] if len(s.partitions) > 1 else []

    return run


def part_swap(s: Shape, dice: Random) -> list[str]:
    """A partition is taken off and a changed copy of it attached in its place."""
    if not s.partitions:
        return []
    old = dice.choice(s.partitions)
    new = f"{s.table}_p{_number(old)}_{dice.randrange(1000)}"
    names = ", ".join(q(c.name) for c in s.columns if not c.generated)
    return [
        f"CREATE TABLE {new} (LIKE {s.table} INCLUDING ALL)",
        f"INSERT INTO {new} ({names}) SELECT {names} FROM {old} WHERE {q(s.key[0])} % 3 <> 0",
        f"ALTER TABLE {s.table} DETACH PARTITION {old}",
        f"ALTER TABLE {s.table} ATTACH PARTITION {new} {_bounds(_number(old))}",
    ]


ROWS: Mapping[str, tuple[int, Kind]] = {
    "insert": (10, insert),
    "update": (10, update),
    "delete": (4, delete),
    "rekey": (3, rekey),
    "truncate": (1, truncate),
}
"""Changes of rows, each with its weight."""

COMMON: Mapping[str, Kind] = {
    "add_null": _add("int"),
    "add_constant": _add("int DEFAULT {constant}"),
    "add_constant_text": _add("text NOT NULL DEFAULT 'since {constant}'"),
    "add_volatile": _add("timestamptz DEFAULT clock_timestamp()"),
    "add_volatile_uuid": _add("uuid NOT NULL DEFAULT gen_random_uuid()"),
    "add_generated": _add("int GENERATED ALWAYS AS ({number} + 1) STORED"),
    "drop": _column("DROP COLUMN {c}"),
    "rename": rename,
    "rename_key": rename_key,
    "rename_and_add": rename_and_add,
    "swap_names": swap_names,
    "drop_and_add": drop_and_add,
    "type_bigint": _column("ALTER {c} TYPE bigint", "int4"),
    "type_int": _column("ALTER {c} TYPE int", "int8"),
    "type_scale_down": _column("ALTER {c} TYPE numeric(12,2)", "numeric"),
    "type_scale_up": _column("ALTER {c} TYPE numeric(14,4)", "numeric"),
    "type_varchar_wider": _column("ALTER {c} TYPE varchar(40)", "varchar"),
    "type_varchar_narrower": _column("ALTER {c} TYPE varchar(2) USING left({c}, 2)", "varchar"),
    "type_varchar_text": _column("ALTER {c} TYPE text", "varchar"),
    "type_using_same": _column("ALTER {c} TYPE int USING {c} * 100", "int4"),
    "type_using_text": _column("ALTER {c} TYPE text USING {c} || '!'", "text"),
    "type_to_text": _column("ALTER {c} TYPE text", "int4"),
    "type_collation": _column('ALTER {c} TYPE text COLLATE "POSIX"', "text"),
    "default_set": _column("ALTER {c} SET DEFAULT {n}", "int4", "int8"),
    "default_drop": _column("ALTER {c} DROP DEFAULT"),
    "not_null_set": _column("ALTER {c} SET NOT NULL"),
    "not_null_drop": _column("ALTER {c} DROP NOT NULL"),
    "drop_expression": drop_expression,
    "enum_add": enum_add,
    "enum_rename": enum_rename,
    "enum_swap": enum_swap,
    "domain": domain,
    "composite": composite,
    "vacuum_full": _same("VACUUM FULL {t}"),
    "cluster": _same("CLUSTER {t} USING {t}_pkey"),
    "reindex": _same("REINDEX TABLE {t}", "CREATE INDEX ON {t} ({k})", "ANALYZE {t}"),
    "harmless": _same(
        "GRANT SELECT ON {t} TO PUBLIC",
        "COMMENT ON TABLE {t} IS 'number {n}'",
        "ALTER TABLE {t} ALTER {k} SET STATISTICS {n}",
        "ALTER TABLE {t} SET (fillfactor = 70)",
        "ALTER TABLE {t} ADD CHECK ({k} > -{n} - 1)",
        "CREATE STATISTICS {t}_s{n} ON {k}, k FROM {t}",
    ),
    "publication_drop": _published("DROP TABLE {t}"),
    "publication_add": _published("ADD TABLE {t}"),
    "publication_drop_add": _published("DROP TABLE {t}", "ADD TABLE {t}"),
    "publication_filter": _published("DROP TABLE {t}", "ADD TABLE {t} WHERE ({k} > {n})"),
    "publication_plain": _published("DROP TABLE {t}", "ADD TABLE {t}"),
    "publication_columns": publish_columns,
    "replica_full": _same("ALTER TABLE {t} REPLICA IDENTITY FULL"),
    "replica_default": _same("ALTER TABLE {t} REPLICA IDENTITY DEFAULT"),
    "replica_index": _same("ALTER TABLE {t} REPLICA IDENTITY USING INDEX {t}_u"),
    "replica_nothing": _same("ALTER TABLE {t} REPLICA IDENTITY NOTHING"),
    "row_security": row_security,
    "row_security_off": _same("ALTER TABLE {t} DISABLE ROW LEVEL SECURITY"),
    "revoke": _same("REVOKE SELECT ON {t} FROM cdc", "GRANT SELECT ON {t} TO cdc"),
    "away_and_back": away_and_back,
}
PLAIN: Mapping[str, Kind] = {
    "swap_table": swap_table,
    "recreate": recreate,
    "recreate_empty": recreate_empty,
    "other_key": other_key,
    "unlogged": unlog,
    "logged": log_again,
    "child": child,
    "child_rows": child_rows,
    "child_off": child_off,
}
PARTITIONED: Mapping[str, Kind] = {
    "part_create": part_create,
    "part_attach": part_attach,
    "part_detach": _partition("ALTER TABLE {t} DETACH PARTITION {p}"),
    "part_drop": _partition("DROP TABLE {p}"),
    "part_truncate": _partition("TRUNCATE {p}"),
    "part_vacuum_full": _partition("VACUUM FULL {p}"),
    "part_swap": part_swap,
}
ALL: Mapping[str, Kind] = {**{name: kind for name, (_, kind) in ROWS.items()}, **COMMON, **PLAIN, **PARTITIONED}
