"""The statements that prepare a PostgreSQL source: its publication, and the table through which snapshots are asked for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from sqlalchemy.engine import RowMapping

from cdc_service.core.names import Names
from cdc_service.core.types import TableId
from connectors.dialects._postgresql_catalog import qualified, quoted
from connectors.protocol import Statement, some

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


def publication_statements(
    names: Names, facts: RowMapping, head: RowMapping, published: Mapping[TableId, bool], entries: Mapping[TableId, bool]
) -> Iterator[Statement]:
    """What brings the publication to cover ``entries`` (each with whether the role owns it)."""
    name = quoted(names.publication)

    def statement(body: str, why: str, touched: Iterable[TableId], *, entitled: bool) -> Statement:
        foreign = [t for t in touched if not entries[t]]
        allowed = bool(facts["superuser"] or (entitled and not foreign))
        who = "the owner of the tables or a superuser" if foreign else "the owner of the publication or a superuser"
        return Statement("publication", body, why, allowed, "" if allowed else who)

    if head["pubname"] is None:
        if entries:
            listed = ", ".join(qualified(t) for t in entries)
            why = f"publication {names.publication} does not exist"
            yield statement(f"CREATE PUBLICATION {name} FOR TABLE {listed} WITH {_WITH}", why, entries, entitled=facts["may_create"])
        return
    if set(head["operations"]) != _OPERATIONS or not head["pubviaroot"]:
        why = f"publication {names.publication} leaves out operations or names partitions"
        yield statement(f"ALTER PUBLICATION {name} SET {_WITH}", why, (), entitled=head["owned"])
    added = [t for t in entries if t not in published]
    if added and not head["puballtables"]:
        why = f"publication {names.publication} lacks {some([str(t) for t in added])}"
        body = f"ALTER PUBLICATION {name} ADD TABLE {', '.join(map(qualified, added))}"
        yield statement(body, why, added, entitled=head["owned"])
