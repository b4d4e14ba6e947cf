"""``cdc quarantine list``, ``show``, ``replay`` and ``discard``: the records that could not be applied, and what becomes of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote, urlencode

import typer

from cdc_service.cli import exits
from cdc_service.cli.shared import Shared, command

if TYPE_CHECKING:
    import httpx

Table = Annotated[str, typer.Argument(metavar="TABLE", help="schema.table as the source spells it.", show_default=False)]
AnyTable = Annotated[str | None, typer.Argument(metavar="[TABLE]", help="Only of this table.", show_default=False)]
Id = Annotated[str, typer.Argument(metavar="ID", help="The record's id, as list shows it.", show_default=False)]
State = Annotated[str, typer.Option("--state", help="parked, replayed, discarded, superseded or all.")]
Key = Annotated[str, typer.Option("--key", metavar="K", help="Of this key, as list shows it, or its value where it is one column.")]
Code = Annotated[str, typer.Option("--code", metavar="C", help="With this code.")]
OneId = Annotated[str, typer.Option("--id", metavar="ID", help="This record.")]
Most = Annotated[int, typer.Option("--most", metavar="N", help="Show at most so many.")]
Reason = Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why; it is kept with the records.")]
Rest = Annotated[bool, typer.Option("--and-replay-rest", help="Then replay what else is parked of their keys.")]

SECONDS = 600.0


def register(app: typer.Typer) -> None:
    group = typer.Typer(no_args_is_help=True, help="Review the records that could not be applied.")
    app.add_typer(group, name="quarantine")

    @command(group, "list")
    def list_(shared: Shared, table: AnyTable = None, state: State = "parked", code: Code = "", key: Key = "", most: Most = 100) -> int:
        """List the records, and how many there are of each code."""
        asked = {"table": table, "state": state, "code": code, "key": _key(key), "most": most}
        return _list(shared, _ask(shared, "list", {name: value for name, value in asked.items() if value}))

    @command(group)
    def show(shared: Shared, id: Id) -> int:
        """Show one record with its bytes, and what waits behind it.

        It also says what would become of it if it were replayed alone.
        """
        found = _ask(shared, "show", {"id": id})
        if shared.json:
            shared.out.document(found)
        else:
            _show(shared, found)
        return exits.OK

    @command(group)
    def replay(shared: Shared, table: Table, key: Key = "", id: OneId = "", code: Code = "", reason: Reason = "") -> int:
        """Apply parked records after all, in the order of their keys.

        Without an option all of the table. Each goes with everything that is parked of its key. What cannot be applied yet stays, and all
        of its key behind it. A row that holds something newer keeps it.
        """
        return _decide(shared, "replay", {"table": table, "key": _key(key), "id": id, "code": code, "reason": reason})

    @command(group)
    def discard(
        shared: Shared, table: Table, key: Key = "", id: OneId = "", code: Code = "", reason: Reason = "", and_replay_rest: Rest = False
    ) -> int:
        """Leave parked records out for good, for a reason.

        --key, --id or --code says which. What is parked of their keys beside them stays parked, unless --and-replay-rest applies it. The
        row lacks what a discarded record changed until a later event brings it; cdc reconcile finds such rows, and cdc repair reads them
        again.
        """
        body = {"table": table, "key": _key(key), "id": id, "code": code, "reason": reason, "and_replay_rest": and_replay_rest}
        if not reason.strip() or not (key or id or code):
            return _decide(shared, "discard", body)  # which says what is missing
        wanted = {name: value for name, value in body.items() if value and name in ("table", "key", "code", "id")}
        meant = _ask(shared, "list", {**wanted, "most": 10_000})["records"]
        if meant and not shared.out.confirm(_question(table, meant, and_replay_rest)):
            shared.out.say("nothing was done")
            return exits.FINDING
        return _decide(shared, "discard", body)


def _key(text: str) -> str:
    """The canonical text of a key: what does not look like one is the value of a single column."""
    if not text or text.startswith('["'):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'["{escaped}"]'


def _question(table: str, meant: list[dict[str, Any]], rest: bool) -> str:
    keys = len({record["key"] for record in meant})
    after = "what else is parked of their keys is replayed" if rest else "what else is parked of their keys stays parked"
    return f"Leave {_records(len(meant))} of {keys} key{'s' * (keys != 1)} out of {table} for good? ({after})"


def _records(count: int) -> str:
    return "1 record" if count == 1 else f"{count} records"


def _ask(shared: Shared, action: str, body: dict[str, Any]) -> dict[str, Any]:
    """From the running service, or where none runs, from the destination."""
    from cdc_service.cli.service import served

    config = shared.load()

    def here() -> dict[str, Any]:
        from cdc_service.runtime.wiring import offline

        return offline.quarantine(config, action, body)

    def read(answer: httpx.Response) -> dict[str, Any]:
        return dict(answer.json())

    if action == "list":
        return served(config, "GET", f"/quarantine?{urlencode(body)}", read=read, here=here, seconds=SECONDS)
    if action == "show":
        return served(config, "GET", f"/quarantine/{quote(body['id'], safe='')}", read=read, here=here, seconds=SECONDS)
    return served(config, "POST", f"/quarantine/{action}", body, read=read, here=here, seconds=SECONDS)


def _decide(shared: Shared, action: str, body: dict[str, Any]) -> int:
    done = _ask(shared, action, {**body, "by": _who()})
    if shared.json:
        shared.out.document(done)
    else:
        shared.out.text(f"{done['table']}: {done['replayed']} replayed, {done['discarded']} discarded, {done['waiting']} parked")
        for still in done["still"]:
            stays = "stays" if still["records"] == 1 else "stay"
            shared.out.say(f"{_records(still['records'])} {stays} parked: {still['code']}: {still['message']}")
        if done["state"] == "quarantine_stopped":
            shared.out.say(f"the table stands still: cdc resume {done['table']}")
    return exits.FINDING if done["still"] else exits.OK


def _who() -> str:
    import getpass
    import socket

    try:
        return f"{getpass.getuser()}@{socket.gethostname()}"
    except (KeyError, OSError):  # a process without a name for its user
        return f"cdc@{socket.gethostname()}"


def _list(shared: Shared, found: dict[str, Any]) -> int:
    if shared.json:
        shared.out.document(found)
        return exits.OK
    names = ("id", "table", "key", "code", "state", "parked_at", "message")
    columns = ("id", "table", "key", "code", "state", "parked", "message")
    if found["records"]:
        shared.out.records(columns, [[record[name] for name in names] for record in found["records"]])
    else:
        shared.out.say("no such records")
    if found["more"]:
        shared.out.say("and more: --most shows them")
    for counts in found["tables"]:
        waiting = ", ".join(f"{n} {code}" for code, n in counts["waiting"].items()) or "nothing"
        decided = "".join(f"; {n} {state}" for state, n in counts["decided"].items())
        shared.out.say(f"{counts['table']}: {waiting} parked{decided}")
    return exits.OK


def _show(shared: Shared, found: dict[str, Any]) -> None:
    from cdc_service.cli.output import cell

    names = ("id", "table", "state", "topic", "partition", "offset", "position", "key", "stage", "code", "message", "parked_at", "now")
    decided = ("decided_by", "decided_at", "reason") if found["state"] != "parked" else ()
    lines = [(name.replace("_", " "), found[name]) for name in (*names, *decided)]
    lines += [("key bytes", found["key_bytes"]), ("value", found["value"])]
    lines += [(f"header {header['name']}", header["value"]) for header in found["headers"]]
    width = max(len(name) for name, _ in lines)
    for name, value in lines:
        shared.out.text(f"{cell(name):<{width}}  {cell(value)}".rstrip())
    if found["behind"]:
        shared.out.say(f"later records of its key that wait behind it ({len(found['behind'])}):")
        shared.out.table(("id", "code", "parked"), [[r["id"], r["code"], r["parked_at"]] for r in found["behind"]])
