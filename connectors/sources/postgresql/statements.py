"""The statements that prepare a PostgreSQL source: its publication, and the table through which snapshots are asked for."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping

from sqlalchemy.engine import RowMapping

from cdc_service.core.names import Names
from cdc_service.core.types import TableId
from cdc_service.core.wording import some
from cdc_service.ports.source import SourceTable, Statement
from connectors.sources.postgresql.catalog import qualified, quoted

_OPERATIONS = {"insert", "update", "delete", "truncate"}
_WITH = "(publish = 'insert, update, delete, truncate', publish_via_partition_root = true)"


def signal_table(table: TableId, role: str, *, allowed: bool) -> list[Statement]:
    name, why = qualified(table), "a table through which snapshots are asked for"
    create = f"CREATE TABLE {name} (id text PRIMARY KEY, type text NOT NULL, data text)"
    made = [Statement("signals", create, why, allowed, "" if allowed else "the owner of the schema")]
    if not allowed:
        grant = f"GRANT SELECT, INSERT, DELETE ON {name} TO {quoted(role)}"
        may = f"the right of {role} to ask for snapshots through it"
        made.append(Statement("signals", grant, may, allowed, "the owner of the schema"))
    return made


def grants(tables: Iterable[SourceTable], role: str, *, superuser: bool) -> Iterator[Statement]:
    """The connector asks for a table that its role may not read again and again, and never comes to the others."""
    for table in (t for t in tables if not t.readable):
        usage = f"GRANT USAGE ON SCHEMA {quoted(table.table.schema)} TO {quoted(role)}"
        body = f"{usage}; GRANT SELECT ON {qualified(table.table)} TO {quoted(role)}"
        allowed = superuser or table.owned
        why = f"role {role} may not read {table.table}"
        yield Statement("grant", body, why, allowed, "" if allowed else "the owner of the tables or a superuser")


def publication_statements(
    names: Names,
    facts: RowMapping,
    head: RowMapping,
    published: Mapping[TableId, bool],
    entries: Mapping[TableId, bool],
    harmful: Collection[TableId],
) -> Iterator[Statement]:
    """What brings the publication to cover ``entries`` (each with whether the role owns it), and none that is ``harmful`` to the connector
    though nobody asks for it."""
    name = quoted(names.at_source)

    def statement(body: str, why: str, touched: Iterable[TableId], *, entitled: bool, subject: str = "publication") -> Statement:
        foreign = [t for t in touched if not entries.get(t, True)]
        allowed = bool(facts["superuser"] or (entitled and not foreign))
        who = "the owner of the tables or a superuser" if foreign else "the owner of the publication or a superuser"
        return Statement(subject, body, why, allowed, "" if allowed else who)

    if head["pubname"] is None:
        if entries:
            listed = ", ".join(qualified(t) for t in entries)
            why = f"publication {names.at_source} does not exist"
            yield statement(f"CREATE PUBLICATION {name} FOR TABLE {listed} WITH {_WITH}", why, entries, entitled=facts["may_create"])
        return
    if set(head["operations"]) != _OPERATIONS or not head["pubviaroot"]:
        why = f"publication {names.at_source} leaves out operations or names partitions"
        yield statement(f"ALTER PUBLICATION {name} SET {_WITH}", why, (), entitled=head["owned"])
    added = [t for t in entries if t not in published]
    if added and not head["puballtables"]:
        why = f"publication {names.at_source} lacks {some([str(t) for t in added])}"
        body = f"ALTER PUBLICATION {name} ADD TABLE {', '.join(map(qualified, added))}"
        yield statement(body, why, added, entitled=head["owned"])
    for table in (t for t in entries if published.get(t)):
        why = f"publication {names.at_source} has a row filter or a column list on {table}, so rows or values are missing"
        # Together: what is changed between the two would not be in the log.
        body = (
            f"BEGIN; ALTER PUBLICATION {name} DROP TABLE {qualified(table)}; ALTER PUBLICATION {name} ADD TABLE {qualified(table)}; COMMIT"
        )
        yield statement(body, why, [table], entitled=head["owned"], subject="filter")
    for table in sorted(t for t in harmful if t in published and t not in entries and not head["puballtables"]):
        why = f"{table} has columns whose names differ only by case: while it is published, its next change ends the connector"
        yield statement(f"ALTER PUBLICATION {name} DROP TABLE {qualified(table)}", why, (), entitled=head["owned"])
