"""``cdc check``: whether everything is as the pipeline needs it, each failure with its cure. Changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import typer

from cdc_service.cli import exits
from cdc_service.cli.output import Output
from cdc_service.cli.shared import Shared, command

if TYPE_CHECKING:
    from cdc_service.ports.source import Finding


def register(app: typer.Typer) -> None:
    @command(app)
    def check(shared: Shared) -> int:
        """Check that all is ready, and say what cures what is not.

        Looks at source, Kafka, Connect and destination, and changes nothing. Exit code 1 when something has to be done first.
        """
        config = shared.load()
        from cdc_service.runtime.wiring import registration

        findings = registration.check(config)
        failed = [finding for finding in findings if finding.failed]
        if shared.json:
            shown = [documented(finding) for finding in findings]
            shared.out.document({"version": 1, "pipeline": config.pipeline, "ok": not failed, "findings": shown})
        else:
            _show(shared.out, findings, "cdc register" if config.captures else "cdc load")
        return exits.FINDING if failed else exits.OK


def _show(out: Output, findings: Sequence[Finding], following: str) -> None:
    show(out, findings)
    failed = sum(finding.failed for finding in findings)
    out.say(f"{len(findings)} checks, {failed} failed" if failed else f"{len(findings)} checks, none failed; next: {following}")


def show(out: Output, findings: Sequence[Finding]) -> None:
    out.findings([(status(f), f.name, f.message, "" if f.ok else f.cure) for f in findings])


def documented(finding: Finding) -> dict[str, Any]:
    """A finding in JSON; ``names`` are all that are meant where the message names some."""
    shown = {"name": finding.name, "status": status(finding), "message": finding.message, "cure": finding.cure}
    return {**shown, "names": list(finding.names)} if finding.names else shown


def status(finding: Finding) -> str:
    if finding.ok:
        return "ok"
    return "failed" if finding.failed else finding.level.value
