"""``cdc query``: reads the warehouse, through the running service or from the destination itself when none runs."""

from __future__ import annotations

import json
import math
import sys
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cdc_service.cli import exits
from cdc_service.cli.shared import Shared, command
from cdc_service.results import ARROW, ROWS_MAX, column_values

if TYPE_CHECKING:
    import httpx
    import pyarrow as pa

    from cdc_service.config import Config

Sql = Annotated[str, typer.Argument(metavar="SQL", help="One statement that only reads; - takes it from stdin.", show_default=False)]
Csv = Annotated[bool, typer.Option("--csv", help="CSV as the result.")]
Limit = Annotated[int, typer.Option("--limit", metavar="N", min=1, help="Most rows to show.")]


def register(app: typer.Typer) -> None:
    @command(app)
    def query(shared: Shared, sql: Sql, csv: Csv = False, limit: Limit = ROWS_MAX) -> int:
        """Run one reading SQL statement on the warehouse."""
        from cdc_service.cli.output import write_csv
        from cdc_service.core.errors import ConfigError

        if csv and shared.json:
            raise ConfigError("--csv and --json are two forms of one result", hint="leave one of them out", code="usage")
        text = sys.stdin.read() if sql == "-" else sql
        table = ask(shared.load(), text, limit + 1)
        more = table.num_rows > limit
        table = table.slice(0, limit)
        values = [column_values(column) for column in table.columns]
        rows = list(zip(*values, strict=True)) if values else []
        if shared.json:
            names = _distinct(table.column_names)
            found = [dict(zip(names, map(_json, row), strict=True)) for row in rows]
            shared.out.document({"columns": names, "rows": found, "truncated": more})
        elif csv:
            write_csv(table.column_names, [[None if value is None else _text(value) for value in row] for row in rows])
        else:
            _show(shared, table, rows)
        if more:
            shared.out.say(f"there are more than {limit} rows; --limit shows more")
        return exits.OK


def ask(config: Config, sql: str, rows_max: int) -> pa.Table:
    """At most ``rows_max`` rows of the statement's result."""
    from cdc_service.cli.service import QUERY_SECONDS, served

    def here() -> pa.Table:
        from cdc_service.runtime.wiring import offline

        return offline.query(config, sql, rows_max=rows_max)

    return served(config, "POST", "/query", {"sql": sql, "rows_max": rows_max}, read=_table, here=here, seconds=QUERY_SECONDS)


def _table(answer: httpx.Response) -> pa.Table:
    import pyarrow as pa

    if answer.headers.get("content-type", "").startswith(ARROW):
        return pa.ipc.open_stream(answer.content).read_all()
    said = answer.json()
    return pa.table(dict(zip(_distinct(said["columns"]), map(list, zip(*said["rows"], strict=True)), strict=True)))


def _show(shared: Shared, table: pa.Table, rows: list[tuple[Any, ...]]) -> None:
    import pyarrow as pa

    names = _distinct(table.column_names)
    numeric = [n for n, field in zip(names, table.schema, strict=True) if _is_number(pa, field.type)]
    shared.out.records(names, [[_text(value) for value in row] for row in rows], right=numeric)
    shared.out.say(f"{len(rows)} row{'' if len(rows) == 1 else 's'}")


def _is_number(pa: Any, kind: Any) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def _text(value: Any) -> str:
    """A cell as SQL shells show it: NULL is seen, numbers are as they are, lists and structures are JSON, intervals ISO 8601."""
    if value is None:
        return "NULL"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, bytes):
        return "\\x" + value.hex()
    if hasattr(value, "nanoseconds"):
        return _interval(value)
    return json.dumps(_json(value), ensure_ascii=False, default=_text) if isinstance(value, list | dict) else str(value)


def _interval(value: Any) -> str:
    """Of a pyarrow MonthDayNano."""
    seconds = f"{Decimal(value.nanoseconds).scaleb(-9).normalize():f}"
    return f"P{value.months}M{value.days}DT{seconds}S"


def _json(value: Any) -> Any:
    if hasattr(value, "nanoseconds"):
        return _interval(value)
    if isinstance(value, list):
        return [_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # NaN and infinity are no JSON
    return value


def _distinct(names: list[str]) -> list[str]:
    """The names, with a number behind each that was there before."""
    seen: dict[str, int] = {}
    made = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        made.append(name if seen[name] == 1 else f"{name}_{seen[name]}")
    return made
