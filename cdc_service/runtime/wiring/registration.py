"""Before anything runs: what the pipeline lacks (``check``), what registering it would do (``plan``), and doing it or taking it back.

Promises: ``check`` and the plans change nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

from cdc_service.config import Config
from cdc_service.config.resolve import resolution
from cdc_service.core.errors import AlreadyRunning, CdcError, Unavailable
from cdc_service.core.types import Target
from cdc_service.ports.destination import RightsLacking
from cdc_service.ports.source import Finding, SourceTable
from cdc_service.runtime.service import alone
from cdc_service.runtime.wiring import loading
from cdc_service.runtime.wiring.parts import open_admin, open_configured, open_parts
from connectors.debezium import check as preflight
from connectors.debezium import refusals
from connectors.debezium import register as connector
from connectors.debezium.check import selectable


def check(config: Config) -> list[Finding]:
    """All pre-flight findings. Changes nothing."""

    warehouse = open_configured(config)

    def destination(targets: Sequence[Target]) -> Sequence[Finding]:
        opened = open_configured(config)
        try:
            return [_lack(error) for error in opened.lacking(targets)] or [Finding("destination", True, opened.probe())]
        except Unavailable:
            if opened.capabilities.reads_while_writing:
                raise
            with contextlib.suppress(AlreadyRunning), alone(config.state_dir, config.pipeline):
                raise
            return [Finding("destination", True, "the running service has it open")]
        finally:
            opened.close()

    loads, targets = loading.check(config, warehouse)
    if not config.captures:
        return [*loads, *destination(targets)]
    captured = preflight.check(config, lambda: open_admin(config), destination, fold=warehouse.fold, fits=warehouse.misfit)
    return [*captured, *loads]


def _lack(error: CdcError) -> Finding:
    """The statement alone is the cure, so that it can be pasted."""
    if not isinstance(error, RightsLacking):
        return Finding("destination", False, error.message, error.hint)
    return Finding("destination", False, f"{error.message}; an administrator of the warehouse must run this", error.statement)


def plan(config: Config) -> connector.RegistrationPlan:
    """What registration would do. Tables that cannot be replicated are named in it, and left out of its steps."""
    warehouse = open_configured(config)
    with open_parts(config) as p:
        catalog = p.source.tables()
        keyless = {t.table for t in catalog if not t.key}
        resolved, problems = resolution(config, selectable(config, catalog), warehouse.fold, keyless)
        problems += refusals.excluded(config, resolved, catalog)
        targets = {t.source: t.target for t in resolved}

        def refuse(tables: Sequence[SourceTable]) -> Iterator[Finding]:
            yield from refusals.of_configuration(config, problems)
            yield from refusals.of_destination(tables, targets, p.source, warehouse.misfit)

        return connector.plan_registration(config, [*targets], p.source, p.connect, p.kafka, refuse=refuse)


def register(config: Config, plan: connector.RegistrationPlan, say: Callable[[str], None]) -> connector.Registered:
    with open_parts(config) as p:
        return connector.apply_registration(plan, p.source, p.connect, p.kafka, say)


def plan_removal(config: Config) -> tuple[connector.Step, ...]:
    with open_parts(config) as p:
        return connector.plan_removal(config, p.source, p.connect)


def unregister(config: Config, say: Callable[[str], None]) -> None:
    with open_parts(config) as p:
        connector.unregister(config, p.source, p.connect, say)
