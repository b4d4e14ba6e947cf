"""``cdc check``: whether everything is as the pipeline needs it, each failure with its cure. Changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

from cdc_service.cli import exits
from cdc_service.cli.output import Output, printable
from cdc_service.cli.shared import Shared, command

if TYPE_CHECKING:
    from connectors.protocol import Finding


def register(app: typer.Typer) -> None:
    @command(app)
    def check(shared: Shared) -> int:
        """Check that all is ready, and say what cures what is not.

        Looks at source, Kafka, Connect and destination, and changes nothing. Exit code 1 when something has to be done first.
        """
        config = shared.load()
        from cdc_service import app as service

        findings = service.check(config)
        failed = [finding for finding in findings if finding.failed]
        if shared.json:
            shown = [{"name": f.name, "status": _status(f), "message": f.message, "cure": f.cure} for f in findings]
            shared.out.document({"version": 1, "pipeline": config.pipeline, "ok": not failed, "findings": shown})
        else:
            _show(shared.out, findings)
        return exits.FINDING if failed else exits.OK


def _show(out: Output, findings: Sequence[Finding]) -> None:
    out.table(["status", "check", "result"], [[_status(f), f.name, f.message] for f in findings])
    cures = [finding for finding in findings if finding.cure and not finding.ok]
    for finding in cures:
        out.text(f"\n{_status(finding)}: {printable(finding.name)}\n  cure:")
        out.text("\n".join(f"    {printable(line)}" for line in finding.cure.splitlines()))
    failed = sum(finding.failed for finding in findings)
    out.say(f"{len(findings)} checks, {failed} failed" if failed else f"{len(findings)} checks, none failed; next: cdc register")


def _status(finding: Finding) -> str:
    if finding.ok:
        return "ok"
    return "failed" if finding.failed else finding.level.value
