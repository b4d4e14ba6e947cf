"""``cdc plan`` and ``cdc register``: what has to be done at the source, in Kafka and in Connect so that the tables stream; and doing it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cdc_service.cli import exits
from cdc_service.cli.check import documented, show
from cdc_service.cli.output import Output, printable
from cdc_service.cli.shared import Shared, command

if TYPE_CHECKING:
    from cdc_service.config import Config
    from cdc_service.ports.source import Finding
    from connectors.debezium.register import Step

DETAILS_MAX = 12
"""A new connector has some fifty settings, a change of one only those that change."""

Delete = Annotated[
    bool, typer.Option("--delete", help="Take it back: delete the connector, its slot and publication; topics and tables stay.")
]


def register(app: typer.Typer) -> None:
    @command(app)
    def plan(shared: Shared) -> int:
        """Show what register would do, and what is left to others.

        Tables that cannot be replicated come first, each with its cure; the steps are those for the others. Changes nothing. Exit code 1
        when something is pending or refused. --json has every setting of the connector.
        """
        config = shared.load()
        from cdc_service.runtime.wiring import registration

        plan = registration.plan(config)
        if shared.json:
            _document(shared, config, plan.steps, refused=plan.refused, applied=False)
        else:
            _show_refused(shared.out, plan.refused)
            show_steps(shared.out, plan.steps, refused=bool(plan.refused))
        return exits.FINDING if plan.pending else exits.OK

    @command(app, "register")
    def register_(shared: Shared, delete: Delete = False) -> int:
        """Make the tables stream: show the plan and carry it out.

        What is in place already is left alone. Tables that are new in the configuration get their first rows beside the stream of the
        others. Statements that the source's role may not run are shown for whoever may; then nothing is done.
        """
        return _delete(shared) if delete else _register(shared)


def _register(shared: Shared) -> int:
    config = shared.load()
    from cdc_service.cli.service import find
    from cdc_service.runtime.wiring import registration

    plan = registration.plan(config)
    if not shared.json and not plan.refused:
        show_steps(shared.out, plan.steps)
    done = registration.register(config, plan, shared.out.say)
    snapshotting = [str(table) for table in done.snapshotting]
    if shared.json:
        connector = {"name": done.status.name, "state": done.status.overall.lower()}
        _document(shared, config, plan.steps, applied=True, connector=connector, snapshotting=snapshotting)
    else:
        shared.out.say(f"connector {done.status.name} is {done.status.overall.lower()}")
        if snapshotting:
            shared.out.say(f"a snapshot is under way of {', '.join(snapshotting)}")
        running = find(config)
        again = f"stop cdc run (pid {running.pid}) and start it again: it reads the configuration at its start" if running else "cdc run"
        shared.out.say(f"next: {again}" if plan.steps or not running else f"cdc run is at work (pid {running.pid})")
    return exits.OK


def _delete(shared: Shared) -> int:
    config = shared.load()
    from cdc_service.runtime.wiring import registration

    steps = registration.plan_removal(config)
    if not shared.json:
        show_steps(shared.out, steps)
    agreed = not steps or shared.out.confirm(f"Delete these? After that, {config.pipeline} can only begin with a new snapshot.")
    if steps and agreed:
        registration.unregister(config, shared.out.say)
    if shared.json:
        _document(shared, config, steps, applied=agreed)
    elif not agreed:
        shared.out.say("nothing was done")
    return exits.OK if agreed else exits.FINDING


def _show_refused(out: Output, refused: Sequence[Finding]) -> None:
    if refused:
        show(out, refused)
        out.text("\nNothing is registered before that is mended, or these are left out of the configuration. The plan for the others:\n")


def show_steps(out: Output, steps: Sequence[Step], *, refused: bool = False) -> None:
    """Each step with its reason and details, as text for people; what others have to run comes first, ready to be pasted."""
    if not steps and refused:
        out.text("nothing to do for them")
    elif not steps:
        out.text("nothing to do: all is in place")
    by_hand = [step for step in steps if step.by_hand]
    for whom in dict.fromkeys(step.by_hand for step in by_hand):
        out.text(f"To be run by {printable(whom or '')}:\n")
        for step in (step for step in by_hand if step.by_hand == whom):
            out.text(f"  -- {printable(step.why)}")
            _details(out, "  ", step.detail or (step.what,))
        out.text("")
    for number, step in enumerate((step for step in steps if not step.by_hand), 1):
        statement = step.kind == "source" and bool(step.detail)  # the statement itself is the detail
        out.text(f"{number}. {printable(step.why) if statement else f'{printable(step.what)}  ({printable(step.why)})'}")
        if len(step.detail) > DETAILS_MAX:
            out.text(f"     {len(step.detail)} settings; cdc plan --json shows them")
        else:
            _details(out, "     ", step.detail)


def _details(out: Output, indent: str, detail: Sequence[str]) -> None:
    for line in (line for text in detail for line in text.splitlines()):
        out.text(f"{indent}{printable(line.replace(': (not set) -> ', ': '))}")


def _document(
    shared: Shared, config: Config, steps: Sequence[Step], *, applied: bool, refused: Sequence[Finding] = (), **more: Any
) -> None:
    shown = [{"kind": s.kind, "what": s.what, "why": s.why, "detail": list(s.detail), "by_hand": s.by_hand} for s in steps]
    pending = bool(steps or refused) and not applied
    told = {"refused": [documented(finding) for finding in refused]}
    shared.out.document({"version": 1, "pipeline": config.pipeline, "steps": shown, **told, "pending": pending, **more})
