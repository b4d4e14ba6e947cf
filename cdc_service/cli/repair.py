"""``cdc repair`` and ``cdc explain``: what to do about a difference, and the life of one key."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from cdc_service.cli import exits
from cdc_service.cli.shared import Shared, command

Table = Annotated[str, typer.Argument(metavar="TABLE", help="schema.table as the source spells it.", show_default=False)]
Key = Annotated[list[str], typer.Argument(metavar="KEY...", help="The value of each key column, in key order.", show_default=False)]
RunId = Annotated[str | None, typer.Option("--run", metavar="ID", help="The comparison; else the last one that found differences.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only show what would be done.")]

SECONDS = 600.0
KEYS_SHOWN = 20


def register(app: typer.Typer) -> None:
    @command(app)
    def repair(shared: Shared, table: Table, run: RunId = None, dry_run: DryRun = False) -> int:
        """Repair the rows at which a table differs from its source.

        What still differs is read again at the source and merged like a change; then it is looked at again.
        """
        body = {"table": table, "run": run}
        planned = _ask(shared, "/repair", {**body, "dry_run": True})
        deeds = [deed for deed in planned["keys"] if deed["action"] != "none"]
        if dry_run or not deeds:
            return _show(shared, planned)
        if not shared.json:
            _list(shared, planned)
        if not shared.out.confirm(f"Repair {len(deeds)} rows of {table}?"):
            shared.out.say("nothing was done")
            return exits.FINDING
        return _show(shared, _ask(shared, "/repair", {**body, "run": planned["run_id"], "dry_run": False}), listed=True)

    @command(app)
    def explain(shared: Shared, table: Table, key: Key) -> int:
        """Show the life of one key: its events, and both rows now.

        The whole log of the table is read for it; each event is told with the batch that merged it and what became of it.
        """
        found = _ask(shared, "/explain", {"table": table, "key": key})
        if shared.json:
            shared.out.document(found)
            return exits.OK
        rows = [
            [f"{e['partition']}/{e['offset']}", e["op"], e["position_text"], e["at"], e["batch_id"], e["fate"], _values(e["values"])]
            for e in found["events"]
        ]
        shared.out.records(("event", "op", "position", "at", "batch", "fate", "values"), rows)
        if not found["whole_log"]:
            shared.out.say("the log no longer reaches back to the table's beginning")
        for side, row in (("source", found["source"]["row"]), ("warehouse", found["destination"]["row"])):
            shared.out.text(f"{side}: {_values(row) if row is not None else 'no row'}")
        return exits.OK


def _ask(shared: Shared, path: str, body: dict[str, Any]) -> dict[str, Any]:
    from cdc_service.cli.service import served

    config = shared.load()

    def here() -> dict[str, Any]:
        from cdc_service.runtime.wiring import reconciling

        with reconciling.comparing(config) as comparing:
            if path == "/explain":
                return comparing.explain(body["table"], body["key"])
            return comparing.repair(body["table"], body["run"], dry_run=body["dry_run"])

    return served(config, "POST", path, body, read=lambda answer: dict(answer.json()), here=here, seconds=SECONDS)


def _show(shared: Shared, done: dict[str, Any], *, listed: bool = False) -> int:
    """What was done, or would be; the exit code: whether anything is left."""
    if shared.json:
        shared.out.document(done)
    else:
        if not listed:
            _list(shared, done)
        shared.out.text(_sentence(done))
    untouched = any(deed["action"] == "none" for deed in done["keys"])
    if done["in_flight"]:
        return exits.UNFINISHED
    return exits.FINDING if done["left"] or untouched or (done["dry_run"] and done["keys"]) else exits.OK


def _list(shared: Shared, done: dict[str, Any]) -> None:
    rows = [[_values(deed["key"]), deed["action"], deed["why"]] for deed in done["keys"][:KEYS_SHOWN]]
    if rows:
        shared.out.table(("key", "action", "why not"), rows)
    if len(done["keys"]) > KEYS_SHOWN:
        shared.out.say(f"and {len(done['keys']) - KEYS_SHOWN} more")


def _sentence(done: dict[str, Any]) -> str:
    deeds = [deed for deed in done["keys"] if deed["action"] != "none"]
    parts = [f"{done['table']}, run {done['run_id']}:"]
    parts.append(f"{len(deeds)} rows would be repaired" if done["dry_run"] else f"{done['repaired']} rows were repaired and are equal now")
    parts.append(f"; {done['equal']} had become equal before" if done["equal"] else "")
    parts.append(f"; {done['left']} still differ" if done["left"] else "")
    parts.append(f"; {done['in_flight']} change too fast to be judged" if done["in_flight"] else "")
    return f"{parts[0]} {''.join(parts[1:])}"


def _values(row: dict[str, Any]) -> str:
    return ", ".join(f"{name}={'NULL' if value is None else repr(value)}" for name, value in row.items())
