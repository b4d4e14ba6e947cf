"""The warehouses that schedules run on: in memory, DuckDB, PostgreSQL. Each statement is an effect; each commit is announced."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from cdc_service.core.errors import CommitUnknown, Unavailable
from cdc_service.core.types import LogId, PartitionCounts, TableSchema, Target
from cdc_service.ports.destination import TableState
from cdc_service.testing.memory import Kept, MemoryDestination
from tests.conformance.harness import DuckDbHarness, PostgreSqlHarness
from tests.simulation.world import Violation, World

_WRITES = ("merge", "claim", "begin_anew", "evolve", "plan_load", "save_state", "save_progress", "sweep")
COUNTED = ("partition", "start_offset", "stop_offset", "applied", "folded", "duplicate", "parked", "filtered")


@dataclass(frozen=True, slots=True)
class Parked:
    topic_id: str
    partition: int
    offset: int
    key_text: str | None


class Warehouse(Protocol):
    """``committed(target)`` is called after each commit of a worker; the rest reads what is committed, and fails never."""

    name: str
    workers_max: int

    def open(self) -> Any:
        """A destination for one worker: its statements are effects."""
        ...

    def crashed(self, destination: Any) -> None:
        """The process that had it is gone."""
        ...

    def state(self, target: Target) -> TableState: ...
    def schema(self, target: Target) -> TableSchema | None: ...
    def rows(self, target: Target, schema: TableSchema) -> pa.Table: ...
    def ledger(self, target: Target, since: int) -> Sequence[tuple[str, PartitionCounts]]:
        """The rows of the ledger after the first ``since``, each with its topic's id."""
        ...

    def checkpoints(self, target: Target) -> Mapping[tuple[LogId, int], int]: ...
    def parked(self, target: Target) -> Sequence[Parked]:
        """All that were ever parked."""
        ...

    def drop(self, target: Target) -> bool: ...
    def forget(self, target: Target) -> bool: ...
    def backup(self) -> None: ...
    def restore(self) -> bool: ...
    def close(self) -> None: ...


class MemoryWarehouse:
    name = "memory"
    workers_max = 4

    def __init__(self, world: World, committed: Callable[[Target], None]) -> None:
        self._world = world
        self._committed = committed
        self._tables: dict[Target, Kept] = _Told(committed)
        self._reads = MemoryDestination(self._tables)
        self._kept: dict[Target, Kept] | None = None

    def open(self) -> Any:
        return _Asked(self._world, MemoryDestination(self._tables, self._step))

    def _step(self, name: str) -> None:
        if name == "twice":
            raise Violation("I31: a row is added whose key is there already")
        if self._world.effect(f"warehouse.{name}"):
            if name == "commit":
                # The work is done, and its reply is what gets lost: at the very next effect.
                me = self._world.current
                assert me is not None
                me.plan[me.effects + 1] = "lose"
                return
            raise CommitUnknown("reply lost")

    def crashed(self, destination: Any) -> None:
        """Nothing of it is outside of the process."""

    def state(self, target: Target) -> TableState:
        return self._reads.load_state(target)

    def schema(self, target: Target) -> TableSchema | None:
        kept = self._reads.kept(target)
        return kept.schemas[-1] if kept.schemas and kept.made else None

    def rows(self, target: Target, schema: TableSchema) -> pa.Table:
        return self._reads.rows(target, schema)

    def ledger(self, target: Target, since: int) -> Sequence[tuple[str, PartitionCounts]]:
        return self._reads.kept(target).ledger[since:]

    def checkpoints(self, target: Target) -> Mapping[tuple[LogId, int], int]:
        return {where: offset for where, (offset, _) in self._reads.kept(target).checkpoints.items()}

    def parked(self, target: Target) -> Sequence[Parked]:
        kept = self._reads.kept(target)
        return [Parked(r.topic_id, r.partition, r.offset, r.key_text) for r in kept.quarantine]

    def drop(self, target: Target) -> bool:
        kept = self._reads.kept(target).copy()
        if not kept.made:
            return False
        kept.made, kept.rows, kept.changes = False, {}, []
        dict.__setitem__(self._tables, target, kept)
        return True

    def forget(self, target: Target) -> bool:
        kept = self._reads.kept(target).copy()
        if not kept.checkpoints:
            return False
        kept.checkpoints = {}
        kept.tails, kept.watermark, kept.snapshot = {}, None, None
        dict.__setitem__(self._tables, target, kept)
        return True

    def backup(self) -> None:
        self._kept = {target: kept.copy() for target, kept in self._tables.items()}

    def restore(self) -> bool:
        if self._kept is None:
            return False
        self._tables.clear()
        for target, kept in self._kept.items():
            dict.__setitem__(self._tables, target, kept.copy())
        return True

    def close(self) -> None:
        """Nothing is outside of the process."""


class _Told(dict[Target, Kept]):
    """Tells of each commit."""

    def __init__(self, committed: Callable[[Target], None]) -> None:
        super().__init__()
        self._committed = committed

    def __setitem__(self, target: Target, kept: Kept) -> None:
        super().__setitem__(target, kept)
        self._committed(target)


class _Asked:
    """A destination whose calls are effects."""

    def __init__(self, world: World, destination: Any) -> None:
        self._world, self._destination = world, destination
        self.capabilities = destination.capabilities

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._destination, name)
        if not callable(real):
            return real

        def call(*args: Any, **more: Any) -> Any:
            lost = self._world.effect(f"warehouse.{name}")
            answer = real(*args, **more)
            if lost:
                raise CommitUnknown(f"{name}: reply lost") if name in _WRITES else Unavailable(f"{name}: reply lost")
            return answer

        return call


class SqlWarehouse:
    """What DuckDB and PostgreSQL have in common. Its targets are numbered, so that one database serves many schedules."""

    name: str
    workers_max: int

    def __init__(self, world: World, committed: Callable[[Target], None], harness: Any) -> None:
        self._world = world
        self._committed = committed
        self._harness = harness
        self._reads = self._open()
        self._reads.prepare()
        self._quote = self._reads.spelling.quote
        self._known: dict[Target, set[tuple[Any, ...]]] = {}

    def _open(self) -> Any:
        return self._harness.open()

    def open(self) -> Any:
        destination = self._open()
        merging: list[Target] = []
        real = destination.connection
        known: list[Any] = []

        def connection() -> Any:
            raw = real()
            if not known or known[0].real is not raw:
                known[:] = [_Sent(self._world, raw, lambda: [self._committed(target) for target in merging])]
            return known[0]

        destination.connection = connection
        for name in _WRITES:
            _about(destination, name, merging)
        return destination

    def crashed(self, destination: Any) -> None:
        destination.close()

    def state(self, target: Target) -> TableState:
        return self._reads.load_state(target)  # type: ignore[no-any-return]

    def schema(self, target: Target) -> TableSchema | None:
        found = self._reads.schemas(target)
        return found[-1] if found and self._reads.connection().columns(target.namespace, target.name) is not None else None

    def rows(self, target: Target, schema: TableSchema) -> pa.Table:
        return self._harness.rows(self._reads, target, schema)  # type: ignore[no-any-return]

    def _fetch(self, what: str, table: str, target: Target, tail: str = "") -> list[tuple[Any, ...]]:
        sql = f"SELECT {what} FROM {self._quote('_cdc', table)} WHERE source_table = '{target.source}'{tail}"
        return self._reads.connection().fetch(sql)  # type: ignore[no-any-return]

    def ledger(self, target: Target, since: int) -> Sequence[tuple[str, PartitionCounts]]:
        columns = ", ".join(map(self._quote, COUNTED))
        rows = self._fetch(f"batch_id, topic_id, {columns}", "batch", target, f" ORDER BY {self._harness.oldest_first}")
        # By their times a row of a transaction that was open for long stands among older ones.
        known = self._known.setdefault(target, set())
        new = [row for row in rows if row[:5] not in known]
        known.update(row[:5] for row in new)
        return [(row[1], PartitionCounts(*row[2:])) for row in new]

    def checkpoints(self, target: Target) -> Mapping[tuple[LogId, int], int]:
        return {(c.log, c.partition): c.next_offset for c in self._reads.checkpoints(target)}

    def parked(self, target: Target) -> Sequence[Parked]:
        q = self._quote
        return [Parked(*row) for row in self._fetch(f"topic_id, {q('partition')}, {q('offset')}, key_text", "quarantine", target)]

    def drop(self, target: Target) -> bool:
        if self.schema(target) is None:
            return False
        return self._by_hand(f"DROP TABLE {self._quote(target.namespace, target.name)}") is not None

    def forget(self, target: Target) -> bool:
        sql = f"DELETE FROM {self._quote('_cdc', 'checkpoint')} WHERE source_table = '{target.source}'"
        return bool(self._by_hand(sql))

    def _by_hand(self, sql: str) -> int | None:
        """What a person does there; None where somebody holds a lock."""
        try:
            return int(self._reads.connection().execute(sql))
        except Unavailable:
            return None

    def backup(self) -> None:
        """Schedules restore the warehouse in memory alone."""

    def restore(self) -> bool:
        return False

    def close(self) -> None:
        self._reads.close()
        cleaning = self._harness.open()  # It waits for what the server still rolls back of sessions that were killed.
        for table in ("checkpoint", "writer", "table_state", "batch", "quarantine", "deleted_keys", "schema_history"):
            cleaning.connection().execute(f"DELETE FROM {self._quote('_cdc', table)}")
        cleaning.connection().execute(f"DROP SCHEMA IF EXISTS {self._quote('mart')} CASCADE")
        cleaning.close()


class DuckDbWarehouse(SqlWarehouse):
    """One process at a time opens the file, so there is one worker."""

    name = "duckdb"
    workers_max = 1


class PostgreSqlWarehouse(SqlWarehouse):
    """Each worker has a session. A lock that another one holds is not waited for: who holds it cannot go on meanwhile."""

    name = "postgresql"
    workers_max = 4

    def _open(self) -> Any:
        return self._harness.open(lock_timeout="5ms")


class _Sent:
    """mergers.sql.connection.Connection: what is sent to the database, each an effect."""

    def __init__(self, world: World, real: Any, committed: Callable[[], object]) -> None:
        self.real = real
        self._world = world
        self._committed = committed

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def _do(self, name: str, *args: Any) -> Any:
        lost = self._world.effect(f"warehouse.{name}")
        answer = getattr(self.real, name)(*args)
        if lost:
            raise Unavailable(f"{name}: reply lost")
        return answer

    def execute(self, *args: Any) -> Any:
        return self._do("execute", *args)

    def fetch(self, *args: Any) -> Any:
        return self._do("fetch", *args)

    def stage(self, *args: Any) -> Any:
        return self._do("stage", *args)

    def fill(self, *args: Any) -> Any:
        return self._do("fill", *args)

    def begin(self) -> None:
        self._do("begin")

    def commit(self) -> None:
        lost = self._world.effect("warehouse.commit")
        self.real.commit()
        self._committed()
        if lost or self._world.effect("warehouse.reply"):
            raise CommitUnknown("reply to COMMIT lost")


def _about(destination: Any, name: str, merging: list[Target]) -> None:
    """Notes which targets a call is about while it runs."""
    real = getattr(destination, name)

    def call(about: Any, *args: Any, **more: Any) -> Any:
        before = list(merging)
        merging[:] = [about.target] if name == "merge" else list(about) if name == "save_progress" else [about]
        try:
            return real(about, *args, **more)
        finally:
            merging[:] = before

    setattr(destination, name, call)


class Warehouses:
    """Makes one warehouse after another; ``close`` takes all away. For PostgreSQL ``PostgreSqlHarness.server`` must be set."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._stack = contextlib.ExitStack()
        self._harness: Any = None
        if name == "duckdb":
            folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="cdc-simulation-", dir=_fast()))
            self._harness = DuckDbHarness(Path(folder))
        elif name == "postgresql":
            self._harness = PostgreSqlHarness()
            self._stack.callback(self._harness.close)

    def make(self, world: World, committed: Callable[[Target], None]) -> Warehouse:
        if self._harness is None:
            return MemoryWarehouse(world, committed)
        return (DuckDbWarehouse if self.name == "duckdb" else PostgreSqlWarehouse)(world, committed, self._harness)

    def close(self) -> None:
        self._stack.close()


def _fast() -> str | None:
    """Memory, where there is a file system of it: a commit of a simulated warehouse needs no disk."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None
