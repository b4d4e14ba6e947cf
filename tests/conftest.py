"""Fixtures of the real stack: started once for a run (or found through CDC_STACK_DIR), and ended with the run that started it, however that
one ends."""

from __future__ import annotations

import os
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import Phase, settings

if TYPE_CHECKING:
    from deploy.local.stack import Stack

# The same examples in every run, so that a failure is of the change that brought it; HYPOTHESIS_PROFILE=explore looks for new ones.
settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile("explore", derandomize=False, deadline=None)
# What a change of the code breaks is told by the first example that fails: `make mutate` has no use for a smaller one.
settings.register_profile("mutation", derandomize=True, deadline=None, database=None, phases=[Phase.explicit, Phase.generate])
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))

# What a shell that looked around in the demo has set belongs to the demo, not to the tests.
for name in [n for n in os.environ if n in ("CDC_CONFIG", "CDC_PASSWORD", "CDC_DEBUG") or n.startswith("PG")]:
    del os.environ[name]


LONGEST_FIRST = ("fault", "identity", "scenario", "simulation", "property", "conformance")


@dataclass(frozen=True, slots=True)
class PgDatabase:
    """One empty source database: its name, the superuser's URL and the URL of the role `cdc`."""

    name: str
    url: str
    cdc_url: str


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test that asks for the stack carries its mark, so that `-m 'not stack'` is the fast part. The tests of a file stay together: with
    several processes (-n) each has a stack of its own, and some files count what their tests have met. What takes longest comes first.
    A unit test that asks for the stack is refused: those are what runs in seconds and without a server."""
    items.sort(key=lambda item: LONGEST_FIRST.index(found) if (found := item.path.parent.name) in LONGEST_FIRST else len(LONGEST_FIRST))
    for item in items:
        if {"stack", "postgres"} & set(getattr(item, "fixturenames", ())):
            if item.path.parent.name == "unit":
                raise pytest.UsageError(f"{item.nodeid} needs a server: its place is with the scenarios")
            item.add_marker(pytest.mark.stack)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup() -> Iterator[None]:
    """What this kind of stack cannot do is skipped, with the reason that the stack gives."""
    yield from _refusals_skip()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Iterator[None]:
    yield from _refusals_skip()


def _refusals_skip() -> Iterator[None]:
    from deploy.local.process import Refused

    try:
        yield
    except Refused as refused:
        pytest.skip(str(refused))


@pytest.fixture(scope="session")
def stack_home() -> Iterator[Stack]:
    """The stack of this session, of which nothing needs to run yet; what was not running before ends with the session."""
    from deploy.local.stack import ORDER, open_stack

    given = os.environ.get("CDC_STACK_DIR")
    found = open_stack(Path(given) / os.environ.get("PYTEST_XDIST_WORKER", "") if given else Path(tempfile.mkdtemp(prefix="cdc-tests-")))
    before = {name for name, pid in found.running().items() if pid is not None} if (found.dir / "stack.json").exists() else set()
    with found.guarded([name for name in ORDER if name not in before], remove=not given):
        yield found


@pytest.fixture(scope="session")
def stack(stack_home: Stack) -> Stack:
    """PostgreSQL, Kafka, Connect with Debezium, all running. A test that kills a part starts it again before it ends."""
    stack_home.start()
    return stack_home


@pytest.fixture(scope="session")
def postgres(stack_home: Stack) -> Stack:
    """PostgreSQL alone, the server of the warehouses under test."""
    from tests.conformance.harness import PostgreSqlHarness

    stack_home.start(["postgres"])
    PostgreSqlHarness.server = stack_home
    return stack_home


@pytest.fixture
def pg_database(stack: Stack) -> Iterator[PgDatabase]:
    """A fresh database on the stack, dropped with its replication slots when the test ends. What another test left dead is started."""
    stack.start()
    name = f"t_{uuid.uuid4().hex[:12]}"
    url = stack.create_database(name)
    yield PgDatabase(name, url, stack.pg_url_for(name, "cdc"))
    stack.start(["postgres"])
    stack.drop_database(name)
