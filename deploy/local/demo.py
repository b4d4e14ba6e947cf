"""`make demo`: the main job on real parts, from an empty machine to a warehouse that was compared with its source row for row.

It ends by itself, says what each step took and leaves nothing running, unless KEEP=1; a DuckDB file stays. DEST=postgresql makes another
database of the stack's server the warehouse. Run it as `python -m deploy.local.demo [--keep] [--destination postgresql]`;
`python -m deploy.local.demo stop` ends what was kept.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from shlex import quote
from typing import Any

import psycopg
from rich.console import Console
from rich.markup import escape

from deploy.local import shop
from deploy.local.artifacts import prepare
from deploy.local.compare import Comparison, compare
from deploy.local.process import Daemon, StackError, tail
from deploy.local.service import SAMPLE_SECONDS, Cdc, Watch
from deploy.local.stack import COMPONENTS, HOST, KINDS, chosen_kind, open_stack, private
from deploy.local.steps import Steps, results, show

DIR = Path(".demo")
OPERATIONS = 20_000
SESSIONS = 4
RATE = 4_000.0  # Statements a second: about what two cores give beside everything else.
STEP_SECONDS = 180.0
TABLES = {f"public.{table}": f"public.{table}" for table in shop.TABLES}


class Demo:
    """One run. Everything that it starts is in its folder, by pid file."""

    def __init__(self, folder: Path, console: Console, *, keep: bool, operations: int, factor: float, destination: str) -> None:
        self.dir = folder.absolute()
        self.destination = destination
        self.keep = keep
        self.operations = operations
        self.scale = shop.Scale().times(factor)
        self.steps = Steps(console)
        self.stack = open_stack(self.dir / "stack", there=True)
        self.service = Daemon("service", self.dir / "run" / "service.json", self.dir / "service.log")
        self.cdc = Cdc(self.dir / "cdc.yaml", {})
        self.warehouse = self.dir / "warehouse.duckdb"
        self.url = ""

    def run(self) -> bool:
        """All steps; returns whether source and warehouse were equal. Raises StackError when a step does not come to its end."""
        if self.stack.kind == KINDS[0]:
            prepare(COMPONENTS, self.steps.console)  # The first start fetches, and takes as long as the network does.
        began = time.monotonic()
        self.start_stack()
        self.fill_shop()
        self.register()
        self.start_service()
        watch = Watch(self.cdc, tuple(TABLES))
        snapshot_seconds = self.await_snapshot(watch)
        load = self.run_load(watch)
        self.catch_up(watch)
        self.stop_service()
        comparisons = self.compare()
        console = self.steps.console
        console.print()
        show(console, results(comparisons, watch))
        rows = self.scale.rows
        console.print(f"\nSnapshot: {rows:,} rows in {snapshot_seconds:.1f} s.", highlight=False)
        console.print(
            f"Load: {load.statements:,} statements in {load.transactions:,} transactions of {SESSIONS} sessions at once"
            f" ({load.rolled_back} more rolled back) in {load.seconds:.1f} s.",
            highlight=False,
            soft_wrap=not console.is_terminal,
        )
        equal = all(found.equal for found in comparisons)
        if not equal:
            for found in comparisons:
                if not found.equal:
                    console.print(f"[bold red]different:[/] {found}")
        values = sum(found.rows_source * found.columns for found in comparisons)
        verdict = "[bold green]Every row and column is equal[/]" if equal else "[bold red]NOT EQUAL[/]"
        console.print(f"{verdict} ({values:,} values). The whole took {time.monotonic() - began:.0f} s.", highlight=False)
        return equal

    # ---- the steps ------------------------------------------------------------

    def start_stack(self) -> None:
        with self.steps.step("start PostgreSQL, Kafka, Connect with Debezium") as step:
            self.stack._say = step.note
            took = self.stack.start()
            step.done(", ".join(f"{name} {seconds:.1f} s" for name, seconds in took.items()))

    def fill_shop(self) -> None:
        with self.steps.step(f"fill the shop: {len(TABLES)} tables, {self.scale.rows:,} rows") as step:
            self.url = self.stack.create_database("shop")
            if self.destination == "postgresql":
                with psycopg.connect(self.stack.pg_url, autocommit=True) as connection:
                    connection.execute("CREATE DATABASE warehouse OWNER cdc")
            shop.seed(self.url, self.scale)
            self.configure()
            step.done(f"PostgreSQL at {HOST}:{self.stack.port('postgres')}")

    def configure(self) -> None:
        """The configuration that a user would write, and a file of shell variables for looking around afterwards."""
        address = "duckdb:///warehouse.duckdb"
        if self.destination == "postgresql":
            address = f"postgresql://cdc:${{CDC_PASSWORD}}@{HOST}:{self.stack.port('postgres')}/warehouse"
        text = f"""# Written by the demo. All keys: .venv/bin/cdc schema
pipeline: shop
source:
  url: postgresql://cdc:${{CDC_PASSWORD}}@{HOST}:{self.stack.port("postgres")}/shop
kafka:
  bootstrap_servers: {self.stack.kafka}
connect:
  url: {self.stack.connect_url}
destination:
  url: {address}
tables:
  public.customers: {{}}
  public.addresses: {{}}
  public.products: {{}}
  public.order*: {{}}     # orders and order_items
"""
        self.cdc.config.write_text(text)
        self.cdc = Cdc(self.cdc.config, {"CDC_PASSWORD": self.stack.password("cdc")})
        variables = {
            "CDC_CONFIG": str(self.cdc.config),
            "CDC_PASSWORD": self.stack.password("cdc"),
            "PGHOST": HOST,
            "PGPORT": str(self.stack.port("postgres")),
            "PGUSER": "postgres",
            "PGDATABASE": "shop",
            "PGPASSFILE": str(self.stack.dir / "pgpass"),
        }
        lines = [f"export {name}={quote(value)}\n" for name, value in variables.items()]
        private(self.dir / "env", "".join(lines) + f"export PATH={quote(str(Path(sys.executable).parent))}:$PATH\n")

    def register(self) -> None:
        """What a user does: look at the plan, have the owner of the tables run the statements in it, check, register."""
        with self.steps.step("cdc plan: what the owner of the tables has to run") as step:
            planned = self.cdc.call("plan", "--json", accept=(0, 1))
            by_hand = [found for found in planned["steps"] if found["by_hand"]]
            with psycopg.connect(self.url, autocommit=True) as connection:
                for found in by_hand:
                    connection.execute("\n".join(found["detail"]).encode())
            lines = "".join(f"\n{found['what']}" for found in by_hand)
            step.done(f"{len(planned['steps'])} steps; {len(by_hand)} of them were run here as the owner:{lines}")
        with self.steps.step("cdc check: is everything ready?") as step:
            checked = self.cdc.call("check", "--json", accept=(0, 1))
            found = checked["findings"]
            wrong = [f"\n{one['status']}: {one['name']}: {one['message']}" for one in found if one["status"] not in ("ok", "info")]
            step.done(f"{len(found)} checks{''.join(wrong)}")
        with self.steps.step("cdc register: the connector") as step:
            done = self.cdc.call("register", "--json", "--yes")
            step.done(f"{done['connector']['name']} is {done['connector']['state']}")

    def start_service(self) -> None:
        with self.steps.step("cdc run: the service") as step:
            self.service.spawn(self.cdc.argv("run"), cwd=self.dir, env=self.cdc.env)
            self.stack.guard_process(self.service.pid() or 0)
            self.service.wait_ready(lambda: None if self.cdc.live_status() else "its API does not answer", 30, threading.Event())
            step.done(f"pid {self.service.pid()}")

    def await_snapshot(self, watch: Watch) -> float:
        with self.steps.step("snapshot", total=self.scale.rows) as step:
            began = time.monotonic()
            self.await_that(watch, step.advance_to, lambda: watch.applied >= self.scale.rows, "the snapshot")
            seconds = time.monotonic() - began
            step.done(f"{watch.applied:,} rows, {watch.applied / seconds:,.0f} a second")
            return seconds

    def run_load(self, watch: Watch) -> shop.LoadReport:
        """The load runs beside the service; the bar shows what it has committed."""
        committed: list[int] = []
        stop = threading.Event()
        outcome: list[shop.LoadReport | BaseException] = []

        def work() -> None:
            try:
                options: dict[str, Any] = {"scale": self.scale, "sessions": SESSIONS, "rate": RATE}
                outcome.append(shop.load(self.url, self.operations, stop=stop, progress=committed.append, **options))
            except BaseException as error:
                outcome.append(error)

        with self.steps.step("load: inserts, updates, deletes, key changes, rollbacks", total=self.operations) as step:
            before = watch.applied
            thread = threading.Thread(target=work, daemon=True)
            thread.start()
            try:
                self.await_that(watch, lambda _applied: step.advance_to(sum(committed)), lambda: not thread.is_alive(), "the load")
            finally:
                stop.set()
                thread.join(30)
            result = outcome[0]
            if isinstance(result, BaseException):
                raise StackError(f"the load failed: {result}") from result
            meanwhile = f"{watch.applied - before:,} events applied meanwhile, lag {watch.lag_seconds:.1f} s"
            step.done(f"{result.statements:,} statements; {meanwhile}")
            return result

    def catch_up(self, watch: Watch) -> None:
        with self.steps.step("catch up with the source") as step:
            with psycopg.connect(self.url) as connection:
                row = connection.execute("SELECT pg_current_wal_lsn() - '0/0'::pg_lsn").fetchone()
            assert row is not None
            fence = int(row[0])
            self.await_that(watch, lambda _applied: None, lambda: watch.complete_through(fence), "the last changes")
            step.done(f"complete through LSN {fence:,}")

    def await_that(self, watch: Watch, moved: Callable[[int], None], reached: Callable[[], bool], what: str) -> None:
        """Poll the service until the condition holds. Raises StackError when it ends, or no event is applied for too long."""
        quiet_since = time.monotonic()
        last = -1
        while True:
            if self.service.pid() is None:
                raise StackError(f"the service ended while waiting for {what}. The end of {self.service.log}:\n{tail(self.service.log)}")
            watch.sample()
            moved(watch.applied)
            if reached():
                return
            if watch.applied != last:
                last, quiet_since = watch.applied, time.monotonic()
            if time.monotonic() - quiet_since > STEP_SECONDS:
                connect = tail(self.stack.daemon("connect").log, 8)
                raise StackError(f"{what}: nothing moved for {STEP_SECONDS:.0f} s: {watch.troubles()}\nConnect says:\n{connect}")
            if troubles := watch.stopped():
                raise StackError(f"{what}: {troubles}")
            time.sleep(SAMPLE_SECONDS)

    def stop_service(self) -> None:
        with self.steps.step("stop the service") as step:
            self.service.end(((signal.SIGTERM, 15.0), (signal.SIGKILL, 5.0)))
            step.done("SIGTERM")

    def compare(self) -> list[Comparison]:
        with self.steps.step("compare source and warehouse, every row and column") as step:
            warehouse = self.warehouse if self.destination == "duckdb" else self.stack.pg_url_for("warehouse", "cdc")
            found = compare(self.url, warehouse, TABLES)
            step.done("equal" if all(one.equal for one in found) else "DIFFERENT")
            return found

    # ---- the end --------------------------------------------------------------

    def farewell(self) -> None:
        """Leave all running (and the service runs again), or end all; either way say how to look around."""
        console = self.steps.console
        here = os.path.relpath(self.dir)
        elsewhere = "" if self.dir == DIR.absolute() else f" --dir {here}"
        query = 'cdc query "SELECT status, count(*) FROM public.orders GROUP BY status"'
        readers = [("psql -d warehouse", "the warehouse, as any other reader")] if self.destination == "postgresql" else []
        if not self.keep:
            self.end()
            if self.destination == "postgresql":
                console.print("Everything that was started has ended, and the warehouse with its server.", highlight=False)
                console.print("KEEP=1 leaves all running; then open it with")
                console.print(f"  . {here}/env && psql -d warehouse", style="bold", soft_wrap=True, highlight=False)
                return
            console.print("Everything that was started has ended. The warehouse stays; open it with")
            console.print(f"  . {here}/env && {query}", style="bold", soft_wrap=True, highlight=False)
            return
        self.service.spawn(self.cdc.argv("run"), cwd=self.dir, env=self.cdc.env)
        self.service.wait_ready(lambda: None if self.cdc.live_status() else "its API does not answer", 30, threading.Event())
        console.print("Still running. To look around, first:")
        for line, what in (
            (f". {here}/env", ""),
            ("cdc status --watch", "where it stands"),
            (query, "the warehouse"),
            *readers,
            ("cdc reconcile --html report.html", "the proof that both sides are equal, while both move"),
            ("psql", "the source, as its owner"),
            ("python -m deploy.local.shop load", "more changes"),
            *((follow, "logs") for follow in self.stack.follow(f"{here}/service.log")),
            (f"python -m deploy.local.demo stop{elsewhere}", "end all of it"),
        ):
            console.print(f"  [bold]{escape(line)}[/]" + (f"    # {what}" if what else ""), soft_wrap=True, highlight=False)

    def end(self) -> None:
        """End the service and the stack with its data; the warehouse and the configuration stay."""
        self.service.end(((signal.SIGTERM, 10.0), (signal.SIGKILL, 5.0)))
        self.stack.stop(remove=True)

    def clean(self) -> None:
        """End what an earlier demo kept, and begin in an empty folder."""
        if self.dir.exists():
            self.end()
            for path in self.dir.iterdir():
                if path.name != "lock":
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
        self.stack = open_stack(self.dir / "stack")
        self.dir.mkdir(exist_ok=True)
        (self.dir / ".gitignore").write_text("*\n")


class Ended(BaseException):
    """A signal asks the demo to end; the exit code is its usual one."""

    def __init__(self, number: int) -> None:
        self.code = 128 + number


@contextmanager
def signals() -> Iterator[None]:
    """Let SIGINT, SIGTERM and SIGHUP end the work in order; a second one does not disturb the tidying up."""

    def raise_once(number: int, _frame: object) -> None:
        for each in chosen:
            signal.signal(each, signal.SIG_IGN)
        raise Ended(number)

    chosen = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {each: signal.signal(each, raise_once) for each in chosen}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """One demo at a time in a folder. Raises StackError when another one is at work."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StackError(f"another demo is at work in {folder}: wait for it, or give --dir another folder") from error
        yield


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns 0 when source and warehouse were equal, 1 when not, 2 when a step failed, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m deploy.local.demo", description=__doc__)
    parser.add_argument("verb", nargs="?", default="run", choices=["run", "stop"])
    parser.add_argument("--keep", action="store_true", help="leave everything running at the end")
    parser.add_argument("--dir", type=Path, default=DIR)
    parser.add_argument("--operations", type=int, default=OPERATIONS)
    parser.add_argument("--factor", type=float, default=1.0, help="times the usual 113,000 rows")
    parser.add_argument("--destination", choices=["duckdb", "postgresql"], default="duckdb")
    options = parser.parse_args(arguments)
    console = Console()
    settings = {"keep": options.keep, "operations": options.operations, "factor": options.factor, "destination": options.destination}
    try:
        if options.verb == "run":
            chosen_kind()  # A kind of stack that there is not is refused before anything is ended.
        demo = Demo(options.dir, console, **settings)
        with alone(demo.dir), signals():
            return _guarded(demo, options.verb)
    except StackError as error:
        console.print(f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        return 2


def _guarded(demo: Demo, verb: str) -> int:
    """Run, and end everything however the run ended; where this process is killed, the stack's guard does."""
    try:
        if verb == "stop":
            demo.end()
            return 0
        demo.clean()
        demo.stack.guard(remove=True)
        equal = demo.run()
        demo.farewell()
        return 0 if equal else 1
    except Ended as ended:
        demo.steps.console.print("ending what was started ...")
        demo.end()
        return ended.code
    except BaseException:
        demo.end()
        raise
    finally:
        demo.stack.unguard()


if __name__ == "__main__":
    sys.exit(main())
