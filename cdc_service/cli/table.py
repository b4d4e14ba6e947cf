"""``cdc pause``, ``resume``, ``resync`` and ``adopt``: one table's state, changed through the running service or at the destination."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import quote

import typer

from cdc_service.cli import exits
from cdc_service.cli.shared import Shared, command

Table = Annotated[str, typer.Argument(metavar="TABLE", help="schema.table as the source spells it.", show_default=False)]
OneTable = Annotated[str | None, typer.Argument(metavar="[TABLE]", help="schema.table as the source spells it.", show_default=False)]
Every = Annotated[bool, typer.Option("--all", help="All tables that were paused or have stopped.")]
AtOffsets = Annotated[bool, typer.Option("--at-offsets", help="The rows are right: go on at the consumer group's committed offsets.")]
Empty = Annotated[bool, typer.Option("--empty", help="The rows do not count: read the table anew, as resync does.")]


def register(app: typer.Typer) -> None:
    @command(app)
    def pause(shared: Shared, table: Table) -> int:
        """Stop applying changes to a table; they wait in Kafka."""
        return _act(shared, "pause", table)

    @command(app)
    def resume(shared: Shared, table: OneTable = None, every: Every = False) -> int:
        """Go on with a table that was paused or has stopped.

        With --all every such table goes on, each at its checkpoint. Where that cannot be, it says what can, and the exit code is 4.
        """
        from cdc_service.core.errors import ConfigError

        if (table is None) is not every:
            raise ConfigError("resume needs a table, or --all", hint="cdc resume TABLE; or cdc resume --all", code="usage")
        return _resume_all(shared) if table is None else _act(shared, "resume", table)

    @command(app)
    def resync(shared: Shared, table: Table) -> int:
        """Read a table anew from the source while changes go on.

        Rows that the source has no more are removed at its end. Until then the table is not complete.
        """
        if not shared.out.confirm(f"Read all of {table} again from the source?"):
            shared.out.say("nothing was done")
            return exits.FINDING
        return _act(shared, "resync", table)

    @command(app)
    def adopt(shared: Shared, table: Table, at_offsets: AtOffsets = False, empty: Empty = False) -> int:
        """Decide about a table whose rows have no checkpoint.

        Such a table waits in the state needs_decision: its target has rows, but nothing tells up to where they are right.
        """
        from cdc_service.core.errors import ConfigError

        if at_offsets == empty:
            raise ConfigError("adopt needs one of --at-offsets and --empty", hint="'cdc adopt --help' says what each means", code="usage")
        if empty and not shared.out.confirm(f"Empty the target of {table} and load it again?"):
            shared.out.say("nothing was done")
            return exits.FINDING
        return _act(shared, "adopt", table, {"how": "empty" if empty else "at_offsets"})


def _resume_all(shared: Shared) -> int:
    """The same for every table that stands still; those that a person has to decide on say so, and the others go on."""
    from cdc_service.cli.service import served

    config = shared.load()

    def here() -> dict[str, Any]:
        from cdc_service.runtime.wiring import offline

        return offline.resume_all(config)

    result = served(config, "POST", "/resume", {}, read=lambda answer: dict(answer.json()), here=here)
    if shared.json:
        shared.out.document(result)
    elif not result["tables"]:
        shared.out.say("no table stands still")
    for table in [] if shared.json else result["tables"]:
        shared.out.text(f"{table['table']}: {table['state']}")
        if error := table.get("error"):
            shared.out.say(f"{table['table']}: {error['message']}" + (f"\n  cure: {error['hint']}" if error["hint"] else ""))
    return exits.DECISION if any("error" in table for table in result["tables"]) else exits.OK


def _act(shared: Shared, action: str, table: str, body: dict[str, Any] | None = None) -> int:
    """Does it, and says in which state the table is now."""
    from cdc_service.cli.service import served

    config = shared.load()

    def here() -> dict[str, Any]:
        from cdc_service.runtime.wiring import offline

        return offline.act(config, action, table, **(body or {}))

    path = f"/tables/{quote(table, safe='')}/{action}"
    result = served(config, "POST", path, body or {}, read=lambda answer: dict(answer.json()), here=here)
    if shared.json:
        shared.out.document(result)
    else:
        shared.out.text(f"{result['table']}: {result['state']}")
        if result.get("message"):
            shared.out.say(result["message"])
    return exits.OK
