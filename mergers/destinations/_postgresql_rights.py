"""What the service's role may do in a PostgreSQL warehouse, each lack with the statement to paste. Asks the catalog, changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from cdc_service.core.errors import CdcError
from cdc_service.core.types import Target, spell
from cdc_service.ports.destination import RightsLacking
from mergers.sql import meta
from mergers.sql.tables import ANOTHER_TARGET

Fetch = Callable[[str, Sequence[object]], list[tuple[Any, ...]]]
Quote = Callable[..., str]

# A parameter is a NUL character in all statements of this destination.
_DATABASE = "SELECT current_user, current_database(), has_database_privilege(current_database(), 'TEMPORARY')"
_NAMESPACE = """SELECT current_user, current_database(), has_database_privilege(current_database(), 'CREATE'), n.oid IS NOT NULL,
  COALESCE(has_schema_privilege(n.oid, 'USAGE') AND has_schema_privilege(n.oid, 'CREATE'), FALSE)
FROM (SELECT) AS one LEFT JOIN pg_namespace AS n ON n.nspname = \x00"""
_RELATIONS = """SELECT n.nspname, c.relname, c.relkind, pg_has_role(c.relowner, 'USAGE'), pg_get_userbyid(c.relowner),
  has_table_privilege(c.oid, 'SELECT') AND (c.relkind = 'v' OR (has_table_privilege(c.oid, 'INSERT')
    AND has_table_privilege(c.oid, 'UPDATE') AND has_table_privilege(c.oid, 'DELETE')))
FROM unnest(CAST(\x00 AS TEXT[]), CAST(\x00 AS TEXT[])) AS wanted(space, name)
JOIN pg_namespace AS n ON n.nspname = wanted.space JOIN pg_class AS c ON c.relnamespace = n.oid AND c.relname = wanted.name
ORDER BY 1, 2"""


def namespace_rights(fetch: Fetch, quote: Quote, namespace: str) -> tuple[bool, RightsLacking | None]:
    """Whether the schema is there, and what keeps the role from making tables in it or, where it is not, from making it."""
    user, database, may_create, there, usable = fetch(_NAMESPACE, [namespace])[0]
    if there and not usable:
        give = f"GRANT USAGE, CREATE ON SCHEMA {quote(namespace)} TO {quote(user)};"
        return True, _missing(user, f"write into the schema {namespace}", give)
    if not there and not may_create:
        give = f"CREATE SCHEMA {quote(namespace)} AUTHORIZATION {quote(user)};"
        return False, _missing(user, f"make the schema {namespace} in {database}", give)
    return there, None


def lacking(fetch: Fetch, quote: Quote, meta_schema: str, targets: Sequence[Target]) -> list[CdcError]:
    """Destination.lacking of PostgreSQL. A target has to be the role's own, since it is altered; the service's tables are only written."""
    ((user, database, temporary),) = fetch(_DATABASE, ())
    found: list[CdcError] = []
    if not temporary:
        give = f"GRANT TEMPORARY ON DATABASE {quote(database)} TO {quote(user)};"
        found.append(_missing(user, f"make temporary tables in {database}", give))
    for namespace in dict.fromkeys([meta_schema, *(t.namespace for t in targets)]):
        _, error = namespace_rights(fetch, quote, namespace)
        if error is not None:
            found.append(error)
    sources = {(meta_schema, name): "" for name in meta.NAMES} | {(t.namespace, t.name): str(t.source) for t in targets}
    taken = fetch(_RELATIONS, [[space for space, _ in sources], [name for _, name in sources]])
    for space, name, kind, owned, owner, usable in taken:
        place, source, table = spell(space, name), sources[space, name], kind in ("r", "p")
        if source and not table:
            message = f"{place} is there already and is no table, so {source} cannot be kept in it"
            found.append(CdcError(message, hint=f"{ANOTHER_TARGET}, or drop what is there", code="drift"))
        elif not owned and (source or not usable):
            give = f"ALTER {'VIEW' if kind == 'v' else 'TABLE'} {quote(space, name)} OWNER TO {quote(user)};"
            found.append(_missing(user, f"alter {place}, which belongs to {owner}", give))
        elif not usable:
            found.append(_missing(user, f"write {place}", f"GRANT ALL ON TABLE {quote(space, name)} TO {quote(user)};"))
    return found


def _missing(user: str, what: str, statement: str) -> RightsLacking:
    return RightsLacking(f"the role {user} may not {what}", statement)
