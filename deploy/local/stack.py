"""The real stack on one machine without a container engine: PostgreSQL, a Kafka broker, Kafka Connect with Debezium, as plain processes;
and, where it is asked for, a schema registry.

Everything listens on loopback, on ports chosen once and kept in DIR/stack.json; `start` is idempotent and returns when all parts answer;
`stop` ends all that it started, and `remove` takes the data away too; what is `guarded` ends with the process that asked for it, also where
that one is killed. Run it as `python -m deploy.local.stack start|stop|status|logs`.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from threading import Event

from rich.console import Console

from deploy.local import artifacts
from deploy.local.process import Account, Daemon, Guard, Part, Refused, StackError, birth, keep_guard, tail

COMPONENTS = ("postgres", "kafka", "connect")
ORDER = ("postgres", "kafka", "registry", "connect")
"""All that there is, in the order of need; they end in the reverse order. The registry is started only where it is asked for."""
HOST = "127.0.0.1"
KINDS = ("processes", "containers")
KIND = "CDC_TEST_STACK"
"""The variable that says which of these a stack consists of; the first where nothing is said."""
LIMIT_SECONDS = 120.0
INITDB = ("-A", "scram-sha-256", "-E", "UTF8", "--locale=C", "--no-sync", "--no-instructions")
JVM_FLAGS = ("-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto", "-Djava.awt.headless=true", "-Djava.net.preferIPv4Stack=true")
HEAP = {"kafka": "512m", "connect": "512m", "registry": "256m"}
STOP: Mapping[str, tuple[tuple[signal.Signals, float], ...]] = {
    "registry": ((signal.SIGTERM, 15.0), (signal.SIGKILL, 5.0)),
    "connect": ((signal.SIGTERM, 15.0), (signal.SIGKILL, 5.0)),
    "kafka": ((signal.SIGTERM, 15.0), (signal.SIGKILL, 5.0)),
    "postgres": ((signal.SIGINT, 15.0), (signal.SIGQUIT, 5.0), (signal.SIGKILL, 5.0)),
}


@dataclass(slots=True)
class State:
    """What is chosen at the first start and kept: ports, passwords, the broker's identity, where PostgreSQL's data is."""

    ports: dict[str, int]
    passwords: dict[str, str]
    cluster_id: str
    postgres_data: str = ""
    postgres_bin: str = ""
    kind: str = KINDS[0]

    @classmethod
    def read(cls, path: Path) -> State:
        """From its file; what another version of this module wrote beside it is left out."""
        known = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in json.loads(path.read_text()).items() if name in known})


class Stack:
    """One stack in one folder. Every method may be called from any process that may read the folder; calls exclude each other."""

    kind = KINDS[0]

    def __init__(self, folder: Path | str, *, say: Callable[[str], None] | None = None) -> None:
        self.dir = Path(folder).absolute()
        self._say = say or (lambda _text: None)
        self._state: State | None = None
        self._guard: Guard | None = None

    # ---- addresses -------------------------------------------------------------

    @property
    def state(self) -> State:
        """What the first start chose. Raises StackError before it."""
        if self._state is None:
            try:
                self._state = self._read()
            except FileNotFoundError as error:
                raise StackError(f"no stack was ever started in {self.dir}: python -m deploy.local.stack start --dir {self.dir}") from error
        return self._state

    def _read(self) -> State:
        found = State.read(self.dir / "stack.json")
        if found.kind != self.kind:
            raise Refused(f"the stack in {self.dir} consists of {found.kind}, and {self.kind} are needed")
        return found

    def port(self, name: str) -> int:
        """The port of postgres, kafka or connect."""
        return self.state.ports[name]

    @property
    def pg_url(self) -> str:
        """The superuser's URL of the database `postgres`."""
        return self.pg_url_for("postgres")

    def pg_url_for(self, database: str, user: str = "postgres") -> str:
        """The URL of a database for `postgres` (superuser) or `cdc` (LOGIN REPLICATION, may read what create_database granted)."""
        return f"postgresql://{user}:{self.password(user)}@{HOST}:{self.port('postgres')}/{database}"

    def password(self, user: str) -> str:
        """The password of `postgres` or `cdc`; Connect also has cdc's as ${env:CDC_PASSWORD} and in `secrets_file`."""
        return self.state.passwords[user]

    @property
    def kafka(self) -> str:
        """The broker's bootstrap address."""
        return f"{HOST}:{self.port('kafka')}"

    @property
    def connect_url(self) -> str:
        """The base URL of Connect's REST interface."""
        return f"http://{HOST}:{self.port('connect')}"

    @property
    def registry_url(self) -> str:
        """The base URL of the registry's interface after Confluent's; for a stack that was started with it."""
        return f"http://{HOST}:{self.port('registry')}/apis/ccompat/v7"

    @property
    def converter_url(self) -> str:
        """The registry as Connect's Avro converter of this stack wants it."""
        return f"http://{HOST}:{self.port('registry')}/apis/registry/v2"

    @property
    def secrets_file(self) -> Path:
        """A properties file for ${file:PATH:cdc_password} references in a connector's configuration."""
        return self.dir / "secrets.properties"

    @property
    def postgres_data(self) -> Path:
        """The folder with PostgreSQL's data, for a test that takes it back to what it was."""
        return Path(self.state.postgres_data)

    @property
    def postgres_bin(self) -> Path:
        """The folder of the programs that PostgreSQL's data were made with."""
        return Path(self.state.postgres_bin)

    def backend(self, pid: int) -> int:
        """The process on this machine that PostgreSQL calls by this number."""
        return pid

    def daemon(self, component: str) -> Part:
        """The process, or the container, of one component."""
        return self._process(component)

    def _process(self, component: str) -> Daemon:
        return Daemon(component, self.dir / "run" / f"{component}.json", self.dir / "logs" / f"{component}.log")

    def follow(self, *more: str) -> list[str]:
        """The commands that show these files and the logs of all parts while they are written."""
        return [f"tail -f {' '.join((*more, f'{os.path.relpath(self.dir)}/logs/*.log'))}"]

    # ---- life -------------------------------------------------------------

    def start(
        self,
        components: Iterable[str] = COMPONENTS,
        *,
        limit_seconds: float = LIMIT_SECONDS,
        connect_env: Mapping[str, str] | None = None,
    ) -> dict[str, float]:
        """Start what does not run yet, all at the same time; returns the seconds each took. On failure, what this call started is ended.

        A Connect that runs already is started again where the registry comes to the stack: the converter is one of its plugins."""
        wanted = [name for name in ORDER if name in set(components)]
        self.dir.mkdir(parents=True, exist_ok=True)
        with artifacts.locked(self.dir / "lock"):
            self._choose()
            if "registry" in wanted and "registry" not in self.state.ports:
                self.state.ports |= self._free_ports(["registry"])
                self._save()
                if self.daemon("connect").pid() is not None:
                    self._end(["connect"])
                    wanted = [name for name in ORDER if name in {*wanted, "connect"}]
            already = {name for name in wanted if self.daemon(name).pid() is not None}
            ours = [name for name in wanted if name not in already]
            starters = self._starters(ours, connect_env or {})
            given_up = Event()

            def one(name: str) -> float:
                began = time.monotonic()
                try:
                    if name not in already:
                        self._say(f"starting {name}")
                        starters[name]()
                    self.daemon(name).wait_ready(lambda: self._probe(name), limit_seconds, given_up)
                    if name == "postgres":
                        self._make_role()
                except BaseException:
                    given_up.set()
                    raise
                return round(time.monotonic() - began, 2)

            with ThreadPoolExecutor(len(ORDER)) as pool:
                running = {name: pool.submit(one, name) for name in wanted}
                try:
                    wait(running.values())
                except BaseException:  # Ctrl-C: the threads must not wait for their limit.
                    given_up.set()
                    wait(running.values())
                    self._end(ours)
                    raise
            failures = [error for future in running.values() if (error := future.exception())]
            if failures:
                self._end(ours)
                raise next((error for error in failures if "given up" not in str(error)), failures[0])
            return {name: future.result() for name, future in running.items()}

    def stop(self, components: Iterable[str] = ORDER, *, remove: bool = False) -> None:
        """End the components in the reverse order of need. With remove, the data goes too, so nothing waits for a tidy end."""
        if not self.dir.exists():
            return
        with artifacts.locked(self.dir / "lock"):
            self._end(ORDER if remove else components, hurry=remove)
            if remove:
                if (self.dir / "stack.json").exists():
                    self._discard()
                self._state = None
                shutil.rmtree(self.dir, ignore_errors=True)

    def _discard(self) -> None:
        """Take away what lies outside the folder."""
        outside = self.postgres_data
        if outside.name and not outside.is_relative_to(self.dir):
            shutil.rmtree(outside.parent, ignore_errors=True)

    @contextlib.contextmanager
    def guarded(self, components: Iterable[str] = ORDER, *, remove: bool = False) -> Iterator[None]:
        """The components are stopped at the end of the block, or when this process is gone before that: Ctrl-C twice, SIGTERM, kill -9."""
        chosen = list(components)
        self.guard(chosen, remove=remove)
        try:
            yield
        finally:
            self.stop(chosen, remove=remove)
            self.unguard(released=False)

    def guard(self, components: Iterable[str] = ORDER, *, remove: bool = False) -> None:
        """From now on, and until `unguard`, the components are stopped when this process is gone, however it went."""
        verb = ["guard", *components, "--dir", str(self.dir), *(["--remove"] if remove else [])]
        self._guard = Guard([sys.executable, "-m", "deploy.local.stack", *verb], Path(__file__).parents[2])

    def unguard(self, *, released: bool = True) -> None:
        """What runs is left alone; not ``released``, it ends now."""
        guard, self._guard = self._guard, None
        if guard is not None:
            guard.end(released=released)

    def guard_process(self, pid: int) -> None:
        """Where there is a guard: this process, which works on the stack, is killed with it."""
        if self._guard is not None:
            self._guard.add(pid)

    def kill(self, component: str, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to the component's main process; after SIGKILL, return when it and its children are gone."""
        daemon = self.daemon(component)
        if daemon.pid() is None:
            raise StackError(f"{component} does not run, so it cannot be sent {number.name}")
        if number == signal.SIGKILL:
            daemon.end(((signal.SIGKILL, 5.0),))
        else:
            daemon.send(number)

    def restart(self, component: str) -> None:
        """End the component if it runs, and start it with the same port and data."""
        self.stop([component])
        self.start([component])

    def running(self) -> dict[str, int | None]:
        """The pid of each component, None where it does not run."""
        return {name: self.daemon(name).pid() for name in ORDER if name in self.state.ports}

    def _end(self, components: Iterable[str], *, hurry: bool = False) -> None:
        chosen = set(components)
        for name in reversed(ORDER):
            if name not in chosen:
                continue
            fresh = self._fresh_classes(name)
            target = fresh.with_suffix(".target")
            kept = Path(target.read_text()) if target.exists() else None
            wanted = kept is not None and not kept.exists()  # Only a JVM that ends tidily writes the archive of its classes.
            tidy = self.daemon(name).end(((signal.SIGKILL, 5.0),) if hurry and name != "postgres" and not wanted else STOP[name])
            if tidy and kept is not None and fresh.exists():
                with contextlib.suppress(OSError):
                    building = kept.with_suffix(f".{os.getpid()}")
                    shutil.copyfile(fresh, building)
                    building.replace(kept)
            fresh.unlink(missing_ok=True)

    def _fresh_classes(self, name: str) -> Path:
        """Where a JVM that found no archive of its classes writes one when it ends."""
        return self.dir / "run" / f"{name}.jsa"

    # ---- what a start needs -------------------------------------------------------------

    def _choose(self) -> None:
        """Read what the first start chose, or choose it now."""
        path = self.dir / "stack.json"
        if path.exists():
            self._state = self._read()
        else:
            ports = self._free_ports([*COMPONENTS, "controller"])
            passwords = {user: secrets.token_hex(12) for user in ("postgres", "cdc")}
            cluster_id = base64.urlsafe_b64encode(uuid.uuid4().bytes).rstrip(b"=").decode()
            self._state = State(ports, passwords, cluster_id, kind=self.kind)
            self._save()

    def _free_ports(self, names: Sequence[str]) -> dict[str, int]:
        """Where these parts will listen."""
        return free_ports(names)

    def _starters(self, wanted: Sequence[str], connect_env: Mapping[str, str]) -> dict[str, Callable[[], None]]:
        """Find or fetch what the parts need; the result starts one part each. Raises StackError naming what is missing."""
        starters: dict[str, Callable[[], None]] = {}
        watcher = artifacts.Lines(self._say)
        if "postgres" in wanted:
            postgres = artifacts.find_postgres()
            starters["postgres"] = lambda: self._start_postgres(postgres)
        if "kafka" in wanted or "connect" in wanted:
            java = artifacts.find_java(watcher)
            jars = artifacts.fetch_jars(java, watcher)
            starters["kafka"] = lambda: self._start_kafka(java, jars)
            starters["connect"] = lambda: self._start_connect(java, jars, connect_env)
        if "registry" in wanted:
            server = artifacts.find_java(watcher)
            registry = artifacts.fetch_registry(watcher)
            starters["registry"] = lambda: self._start_registry(server, registry)
        return starters

    def _save(self) -> None:
        state = self.state
        private(self.dir / "stack.json", json.dumps(asdict(state), indent=1))
        private(self.secrets_file, f"cdc_password={state.passwords['cdc']}\npostgres_password={state.passwords['postgres']}\n")
        lines = [f"{HOST}:{state.ports['postgres']}:*:{user}:{word}\n" for user, word in state.passwords.items()]
        private(self.dir / "pgpass", "".join(lines))

    def _start_postgres(self, postgres: artifacts.Postgres) -> None:
        state = self.state
        if not state.postgres_data:
            self._make_cluster(postgres)
        data = Path(state.postgres_data)
        made_by = Path(state.postgres_bin)  # A cluster is opened by the server version that made it.
        binaries = made_by if (made_by / "postgres").exists() else postgres.bin
        options = ["-D", str(data), "-p", str(state.ports["postgres"]), "-c", f"listen_addresses={HOST}", "-c", "unix_socket_directories="]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
        drop_stale_lock(data)
        self._process("postgres").spawn([str(binaries / "postgres"), *options], cwd=data, env=environment, account=postgres.account)

    def _make_cluster(self, postgres: artifacts.Postgres) -> None:
        """initdb, in our folder, or beside the system's temporary files when PostgreSQL's user cannot enter our folder."""
        account, binaries = postgres.account, postgres.bin
        home = self.dir / "postgres"
        if account is not None and not artifacts.reaches(account, self.dir):
            home = Path(tempfile.mkdtemp(prefix="cdc-stack-postgres-"))
        home.mkdir(exist_ok=True)
        if account is not None and not artifacts.reaches(account, binaries):
            root = binaries.parent.parent  # PyPI's programs look for their libraries beside the package.
            for part in (root, root.parent / f"{root.name}.libs"):
                if part.exists():
                    shutil.copytree(part, home / part.name)
            binaries = home / root.name / binaries.relative_to(root)
        _give(home, account)
        data = home / "data"
        password = home / "superuser"
        private(password, self.state.passwords["postgres"])
        _give(password, account)
        command = [str(binaries / "initdb"), "-D", str(data), "-U", "postgres", "--pwfile", str(password), *INITDB]
        try:
            done = subprocess.run(
                command,
                cwd=home,
                capture_output=True,
                text=True,
                check=False,
                timeout=120,
                user=account.uid if account else None,
                group=account.gid if account else None,
                extra_groups=[] if account else None,
            )
        finally:
            password.unlink(missing_ok=True)
        if done.returncode != 0:
            shutil.rmtree(data, ignore_errors=True)
            raise StackError(f"initdb failed ({binaries}):\n{done.stdout[-1500:]}{done.stderr[-1500:]}")
        with (data / "postgresql.conf").open("a") as settings:
            settings.write((artifacts.CONFIG / "postgresql.conf").read_text())
        self.state.postgres_data, self.state.postgres_bin = str(data), str(binaries)
        self._save()

    def _start_kafka(self, java: artifacts.Java, jars: artifacts.Jars) -> None:
        home = self.dir / "kafka"
        data = home / "data"
        if not (data / "meta.properties").exists():
            data.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(jars.bootstrap, data / "bootstrap.checkpoint")
            directory = base64.urlsafe_b64encode(uuid.uuid4().bytes).rstrip(b"=").decode()
            lines = ["version=1", f"cluster.id={self.state.cluster_id}", "node.id=1", f"directory.id={directory}"]
            (data / "meta.properties").write_text("\n".join(lines) + "\n")
        self._java("kafka", java, jars, "kafka.Kafka", self._kafka_properties(HOST, str(data)), {})

    def _kafka_properties(self, listen: str, data: str) -> Path:
        """The file for a broker that listens at that address, and is reached on loopback."""
        controller = f"{HOST}:{self.port('controller')}"
        settings = {
            "controller.quorum.voters": f"1@{controller}",
            "listeners": f"PLAINTEXT://{listen}:{self.port('kafka')},CONTROLLER://{controller}",
            "advertised.listeners": f"PLAINTEXT://{self.kafka}",
            "log.dirs": data,
        }
        return write_properties(self.dir / "kafka" / "server.properties", "kafka", settings)

    def _start_connect(self, java: artifacts.Java, jars: artifacts.Jars, extra_env: Mapping[str, str]) -> None:
        plugins = [str(jars.plugins)]
        if "registry" in self.state.ports:
            plugins.append(str(artifacts.fetch_registry(artifacts.Lines(self._say)).plugins))
        properties = self._connect_properties(HOST, plugins)
        self._java("connect", java, jars, "org.apache.kafka.connect.cli.ConnectDistributed", properties, self._connect_env(extra_env))

    def _connect_properties(self, listen: str, plugins: Sequence[str]) -> Path:
        """The file for a worker that listens at that address, and is reached on loopback."""
        settings = {
            "bootstrap.servers": self.kafka,
            "plugin.path": ",".join(plugins),
            "listeners": f"http://{listen}:{self.port('connect')}",
        }
        settings |= {"rest.advertised.host.name": HOST, "rest.advertised.port": str(self.port("connect"))}
        return write_properties(self.dir / "connect" / "worker.properties", "connect", settings)

    def _connect_env(self, extra_env: Mapping[str, str]) -> dict[str, str]:
        return {"CDC_PASSWORD": self.password("cdc"), **extra_env}

    def _start_registry(self, java: artifacts.Java, registry: artifacts.Registry) -> None:
        home = self.dir / "registry"
        home.mkdir(parents=True, exist_ok=True)
        environment = {key: value for key, value in os.environ.items() if key not in ("CLASSPATH", "JAVA_TOOL_OPTIONS")}
        argv = self._registry_argv(java.executable, str(registry.program))
        self._process("registry").spawn(argv, cwd=home, env=environment | self._registry_env(HOST, str(home / "schemas")))

    def _registry_argv(self, java: str, program: str) -> list[str]:
        return [java, *JVM_FLAGS, f"-Xmx{HEAP['registry']}", "-jar", program]

    def _registry_env(self, listen: str, schemas: str) -> dict[str, str]:
        return {
            "QUARKUS_HTTP_HOST": listen,
            "QUARKUS_HTTP_PORT": str(self.port("registry")),
            # In a file: a registry that forgot its schemas would give their numbers to others.
            "APICURIO_DATASOURCE_URL": f"jdbc:h2:file:{schemas}",
        }

    def _java(
        self, name: str, java: artifacts.Java, jars: artifacts.Jars, main: str, properties: Path, extra_env: Mapping[str, str]
    ) -> None:
        classes = artifacts.shared_classes(java, jars, name)
        fresh = self._fresh_classes(name)
        fresh.parent.mkdir(exist_ok=True)
        fresh.unlink(missing_ok=True)
        share = f"-XX:SharedArchiveFile={classes}" if classes.exists() else f"-XX:ArchiveClassesAtExit={fresh}"
        flags = [*JVM_FLAGS, share, f"-Xmx{HEAP[name]}", f"-Dlog4j2.configurationFile={artifacts.CONFIG / 'log4j2.xml'}"]
        fresh.with_suffix(".target").write_text(str(classes))
        environment = {key: value for key, value in os.environ.items() if key not in ("CLASSPATH", "JAVA_TOOL_OPTIONS")}
        argv = [java.executable, *flags, "-cp", jars.classpath, main, str(properties)]
        self._process(name).spawn(argv, cwd=properties.parent, env=environment | dict(extra_env))

    # ---- readiness -------------------------------------------------------------

    def _probe(self, name: str) -> str | None:
        """None when the component does its work, else what is missing."""
        import psycopg

        try:
            with socket.create_connection((HOST, self.port(name)), timeout=1):
                pass
            if name == "postgres":
                psycopg.connect(self.pg_url, connect_timeout=2).close()
            elif name == "kafka":
                return self._probe_kafka()
            elif name == "registry":
                with urllib.request.urlopen(f"{self.registry_url}/subjects", timeout=5):
                    pass
            else:
                with urllib.request.urlopen(f"{self.connect_url}/connector-plugins", timeout=5) as answer:
                    if b"io.debezium.connector.postgresql" not in answer.read():
                        return "Connect does not list Debezium's PostgreSQL connector"
                with urllib.request.urlopen(f"{self.connect_url}/connectors", timeout=5):
                    pass
                with urllib.request.urlopen(f"{self.connect_url}/", timeout=5) as answer:
                    if json.load(answer)["kafka_cluster_id"] != self.state.cluster_id:
                        return f"another worker listens on port {self.port('connect')}"
        except (OSError, psycopg.Error) as error:
            return f"{type(error).__name__}: {error}"
        return None

    def _probe_kafka(self) -> str | None:
        from confluent_kafka import KafkaException
        from confluent_kafka.admin import AdminClient

        settings: dict[str, str | int | float | bool] = {"bootstrap.servers": self.kafka, "reconnect.backoff.max.ms": 200, "log_level": 0}
        try:
            found = AdminClient(settings).list_topics(timeout=2)
        except KafkaException as error:
            return str(error)
        if found.cluster_id not in (None, self.state.cluster_id):
            return f"another broker listens on port {self.port('kafka')}"
        return None if found.brokers else "the broker knows no broker yet"

    # ---- databases -------------------------------------------------------------

    def _make_role(self) -> None:
        """The role that Debezium and the service use, as an operator makes it: it logs in, replicates, and reads what it is granted."""
        import psycopg
        from psycopg import sql

        with psycopg.connect(self.pg_url, autocommit=True) as connection:
            if connection.execute("SELECT 1 FROM pg_roles WHERE rolname = 'cdc'").fetchone() is None:
                statement = sql.SQL("CREATE ROLE cdc LOGIN REPLICATION PASSWORD {}").format(sql.Literal(self.password("cdc")))
                connection.execute(statement)

    def create_database(self, name: str) -> str:
        """Make an empty database whose later schemas and tables the role `cdc` may read; returns the superuser's URL of it."""
        import psycopg
        from psycopg import sql

        with psycopg.connect(self.pg_url, autocommit=True) as connection:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        url = self.pg_url_for(name)
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO cdc")
            connection.execute("ALTER DEFAULT PRIVILEGES GRANT USAGE ON SCHEMAS TO cdc")
        return url

    def drop_database(self, name: str) -> None:
        """Drop a database with the replication slots in it; its sessions are ended."""
        import psycopg
        from psycopg import sql

        with psycopg.connect(self.pg_url, autocommit=True) as connection:
            slots = connection.execute("SELECT slot_name, active_pid FROM pg_replication_slots WHERE database = %s", (name,)).fetchall()
            for slot, pid in slots:
                if pid is not None:
                    connection.execute("SELECT pg_terminate_backend(%s, 5000)", (pid,))
                connection.execute("SELECT pg_drop_replication_slot(%s)", (slot,))
            connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))

    def status(self) -> dict[str, object]:
        """What runs, where, and whether it answers; no password in it."""
        parts = {}
        for name, pid in self.running().items():
            if name not in COMPONENTS and pid is None:
                continue  # A registry that nobody asked for this time.
            wrong = self._probe(name) if pid else "not running"
            parts[name] = {"pid": pid, "port": self.port(name), "ready": wrong is None, "problem": wrong, "log": str(self.daemon(name).log)}
        return {"dir": str(self.dir), "kafka": self.kafka, "connect": self.connect_url, "components": parts}


def chosen_kind() -> str:
    """What a new stack consists of. Raises StackError where the variable asks for what there is not."""
    kind = os.environ.get(KIND) or KINDS[0]
    if kind not in KINDS:
        raise StackError(f"{KIND}={kind}: there is no such stack; there are {' and '.join(KINDS)}")
    return kind


def open_stack(folder: Path | str, *, say: Callable[[str], None] | None = None, there: bool = False) -> Stack:
    """The stack in a folder: what was started there, else one of the kind that CDC_TEST_STACK asks for. Where the two differ, StackError
    is raised, but not where only what is ``there`` is wanted, for instance to end it."""
    path = Path(folder).absolute() / "stack.json"
    found = State.read(path).kind if path.exists() else None
    if not (there and found):
        kind = chosen_kind()
        if found and found != kind and os.environ.get(KIND):
            raise StackError(
                f"{KIND}={kind}, and the stack in {path.parent} consists of {found}: remove that one, or choose another folder"
            )
        found = found or kind
    if found == KINDS[0]:
        return Stack(folder, say=say)
    from deploy.local.containers import ContainerStack  # It needs more packages.

    return ContainerStack(folder, say=say)


def free_ports(names: Sequence[str]) -> dict[str, int]:
    """A free loopback port for each name, below the range of outgoing connections: a retrying client can then never take one."""
    try:
        low = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except OSError:
        low = 32768
    top = low if low > 12000 else 65000
    chosen: dict[str, int] = {}
    with contextlib.ExitStack() as held:
        for _attempt in range(1000):
            if len(chosen) == len(names):
                return chosen
            port = random.SystemRandom().randrange(10000, top)
            candidate = held.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                candidate.bind((HOST, port))
                chosen[names[len(chosen)]] = port
    raise StackError(f"no free ports between 10000 and {top} on {HOST}")


def drop_stale_lock(data: Path) -> None:
    """Remove the lock file of a PostgreSQL that was killed. The server does so itself, except where the pid still answers: as a zombie that
    a container's first process never reaps, or as a stranger that got the number."""
    lock = data / "postmaster.pid"
    try:
        pid = int(lock.read_text().split()[0])
        command = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace") if birth(pid) is not None else ""
    except (OSError, ValueError, IndexError):
        return
    if str(data) not in command:
        lock.unlink(missing_ok=True)


def write_properties(path: Path, base: str, settings: Mapping[str, str]) -> Path:
    """The shared settings of deploy/config with this machine's addresses and paths after them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"{key}={value}\n" for key, value in settings.items()]
    path.write_text((artifacts.CONFIG / f"{base}.properties").read_text() + "".join(lines))
    return path


def private(path: Path, text: str) -> None:
    """Write a file that only its owner can read, whole or not at all."""
    fresh = path.with_name(f".{path.name}.new")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as handle:
        handle.write(text)
    fresh.replace(path)


def _give(path: Path, account: Account | None) -> None:
    if account is not None:
        os.chown(path, account.uid, account.gid)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code (0 done, 1 something does not run, 2 could not)."""
    parser = argparse.ArgumentParser(prog="python -m deploy.local.stack", description=__doc__)
    parser.add_argument("verb", choices=["start", "stop", "status", "logs", "guard"])
    parser.add_argument("component", nargs="*", help=f"of {', '.join(ORDER)}; start: {', '.join(COMPONENTS)} when none is named, else all")
    parser.add_argument("--dir", default=".stack", type=Path)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--remove", action="store_true", help="stop: take the data away too")
    parser.add_argument("--lines", type=int, default=40, help="logs: how many lines of each")
    options = parser.parse_args(arguments)
    if unknown := set(options.component) - set(ORDER):
        parser.error(f"unknown component {', '.join(sorted(unknown))}; there are {', '.join(ORDER)}")
    try:
        stack = open_stack(options.dir, say=lambda text: print(text, file=sys.stderr), there=options.verb != "start")
        if options.verb == "start":
            if stack.kind == KINDS[0]:
                artifacts.prepare(options.component or COMPONENTS, Console(stderr=True))
            stack.start(options.component or COMPONENTS)
        elif options.verb == "guard":  # The other end of Stack.guard.
            if keep_guard(sys.stdin):
                stack.stop(options.component, remove=options.remove)
            return 0
        elif options.verb == "stop":
            stack.stop(options.component or ORDER, remove=options.remove)
            return 0
        elif options.verb == "logs":
            for name in options.component or stack.running():
                print(f"==> {stack.daemon(name).log} <==\n{tail(stack.daemon(name).log, options.lines)}")
            return 0
        return _print_status(stack, options.json)
    except StackError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _print_status(stack: Stack, as_json: bool) -> int:
    found = stack.status()
    components = found["components"]
    assert isinstance(components, dict)
    if as_json:
        print(json.dumps(found))
    else:
        for name, part in components.items():
            state = f"ready on {HOST}:{part['port']} (pid {part['pid']})" if part["ready"] else part["problem"]
            print(f"{name:9} {state}")
        print(f"settings  {stack.dir / 'stack.json'}")
        print(f"psql      PGPASSFILE={stack.dir / 'pgpass'} psql -h {HOST} -p {stack.port('postgres')} -U postgres")
    return 0 if all(part["ready"] for part in components.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
