"""What failures of the connector mean that only PostgreSQL's has, and what heals them (ports.capture.Failures)."""

from __future__ import annotations

import re

from cdc_service.ports.capture import Failure
from connectors.sources.postgresql.catalog import quoted

_AGAIN = "then: cdc register"
_KNOWN = (
    (
        r"^[\w.]*DebeziumException: Table '(?P<table>[^']*)' has columns that differ only by case\. Column name: '(?P<column>[^']*)'",
        Failure(
            "table {table} has columns whose names differ only by case, {column} beside another one: the connector reads no such table,"
            " and has stopped for all",
            f"ALTER TABLE {{table_sql}} RENAME COLUMN {{column_sql}} TO ...;  -- {_AGAIN}"
            " (it skips what the log holds; all tables are read anew)",
            skips=True,
        ),
    ),
    (
        r"Cannot serialize chunk information",
        Failure(
            "the connector cannot keep how far it has read a table whose key holds an array, and has stopped for all",
            "cdc register (it skips what the log holds; all tables are read anew, but that one, which cdc check names)",
            skips=True,
        ),
    ),
    (
        r"NullPointerException.*java\.sql\.ResultSet\.getArray",
        Failure(
            "the database has an enum without labels or a domain over an enum, at which the connector stops for all tables",
            "cdc check names it, with the statement that cures; " + _AGAIN,
        ),
    ),
    (r"Publication autocreation is disabled", Failure("Publication autocreation is disabled, and there is no publication", "cdc register")),
    (
        r"is trying to read change stream starting at|can no longer get changes from replication slot|requested WAL segment",
        Failure(
            "the source no longer holds the log from where the connector stands: its slot was lost or dropped", "cdc register", skips=True
        ),
    ),
    (
        r"(must be superuser or replication role|permission denied to (?:start WAL sender|use replication slots))",
        Failure("the source's role lacks the right of replication (REPLICATION)", "cdc check prints the statement; " + _AGAIN),
    ),
    (
        r"all replication slots are in use",
        Failure("all replication slots of the source are in use", "cdc check prints the statement; " + _AGAIN),
    ),
)
"""Expressions over one exception of a trace. What their groups take are names."""

_FREE_OF_VALUES = (
    r"[\w.]*SQLException: FATAL: .*",  # The end of a session: login, limits, shutdown.
    r"[\w.]*SQLException: ERROR: (?:replication slot|publication) .*",
    r"[\w.]*SQLException: (?:Connection to .* refused|The connection attempt failed|An I/O error occurred).*",
    r"[\w.]*DebeziumException: Creation of replication slot failed.*",
)


class PostgresFailures:
    """Of Debezium's PostgreSQL connector and its driver."""

    def diagnose(self, thrown: str) -> Failure | None:
        for expression, known in _KNOWN:
            if found := re.search(expression, thrown):
                names = found.groupdict(default="")
                sql = {f"{what}_sql": quoted(*name.split(".", 1 if what == "table" else 0)) for what, name in names.items()}
                return Failure(known.message.format(**names), known.cure.format(**names, **sql), known.skips)
        return None

    def quotable(self, thrown: str) -> str:
        if any(re.fullmatch(expression, thrown) for expression in _FREE_OF_VALUES):
            return thrown
        driver = re.match(r"org\.postgresql\.[\w.$]+", thrown)
        return driver[0] if driver else ""

    def refuses_login(self, message: str) -> bool:
        return "pg_hba" in message
