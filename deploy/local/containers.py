"""The same stack from containers, where a Docker engine runs: CDC_TEST_STACK=containers. Built on testcontainers, imported when it is used.

Images, commands and paths are those of deploy/compose, settings those of the processes. All parts share the network of one container that
does nothing else, and listen there on the numbers that it publishes on this machine's loopback: so one address is right both here and for
Connect. A part that is killed or stopped keeps its container, and its data with it; `stop(remove=True)` takes all of them away. What would
need the server's files, programs or processes on this machine is refused, and tests that ask for it are skipped with the reason.

No Docker engine ran this where it was written: tests/unit/test_containers.py drives it with a stand-in for one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shlex
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

import yaml

from deploy.local import artifacts
from deploy.local.process import POLL_SECONDS, Part, Refused, StackError, await_ready
from deploy.local.stack import COMPONENTS, HEAP, HOST, INITDB, JVM_FLAGS, KIND, KINDS, LIMIT_SECONDS, ORDER, Stack, free_ports

if TYPE_CHECKING:
    from testcontainers.core.docker_client import DockerClient
    from testcontainers.core.network import Network

COMPOSE = artifacts.HERE.parent / "compose"
EVERYWHERE = "0.0.0.0"
"""Where the parts listen inside their own network; this machine publishes it on loopback only."""
LOCAL = ("localhost", HOST, "::1")
POD = "network"
"""The container that holds the network and the published ports of all others, so that these stay where a part is killed."""
LATER = "later"
"""The port that is published for a registry, whether or not one will come."""
LABEL, PLAN, CONTEXT = "cdc.stack", "cdc.plan", "cdc.context"
LOG4J = "/etc/cdc/log4j2.xml"


@dataclass(frozen=True, slots=True)
class Plan:
    """What a part's container is made of."""

    image: str
    command: list[str] | None = None
    entrypoint: list[str] | None = None
    environment: dict[str, str] = field(default_factory=dict)
    mounts: dict[str, str] = field(default_factory=dict)
    """Files and folders of this machine, which the container reads, by their paths in it."""
    ports: list[int] = field(default_factory=list)
    """Published on loopback by the same numbers."""

    def digest(self) -> str:
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


@cache
def services() -> dict[str, Any]:
    """What deploy/compose says of each part."""
    found: dict[str, Any] = yaml.safe_load((COMPOSE / "docker-compose.yml").read_text())["services"]
    return found


def place_of(name: str, config: str) -> str:
    """Where the part has this file of deploy/config in its container."""
    volumes: list[str] = services()[name]["volumes"]
    return next(volume.split(":")[1] for volume in volumes if volume.startswith(f"../config/{config}:"))


class Container:
    """One part: a container that stays when it has ended."""

    def __init__(self, stack: ContainerStack, part: str) -> None:
        self._stack, self._part = stack, part

    @property
    def name(self) -> str:
        return self._part

    @property
    def full_name(self) -> str:
        """Its name at the engine."""
        return f"{self._stack.group}-{self._part}"

    @property
    def log(self) -> Path:
        """The file that holds all it has written so far; where the engine does not answer, what it had written before."""
        path = self._stack.dir / "logs" / f"{self._part}.log"
        with contextlib.suppress(StackError):
            found = self.found()
            if found is not None:
                path.parent.mkdir(exist_ok=True)
                earlier = self._earlier.read_bytes() if self._earlier.exists() else b""
                with asking(f"the log of {self._part}"):
                    path.write_bytes(earlier + found.logs() + _end_of(found.attrs["State"]).encode())
        return path

    @property
    def _earlier(self) -> Path:
        """What was written by containers of this part that were since made anew."""
        return self._stack.dir / "logs" / f".{self._part}.earlier"

    def found(self) -> Any:
        """The engine's container as it is now, None where there is none."""
        from docker.errors import NotFound

        with asking(self._part):
            try:
                return self._stack.engine().containers.get(self.full_name)
            except NotFound:
                return None

    def pid(self) -> int | None:
        """What the engine says of its first process, None where it does not run."""
        found = self.found()
        return int(found.attrs["State"]["Pid"]) if found is not None and found.attrs["State"]["Running"] else None

    def run(self, plan: Plan, *, network: Network | None = None, beside: str | None = None, anew: bool = False) -> None:
        """Start the container that there is; make it where there is none, or where it would be another now and may be made ``anew``. Its
        network is that one, or that of the container which it is ``beside``."""
        from testcontainers.core.container import DockerContainer

        found = self.found()
        with asking(self._part):
            if found is not None and anew and found.labels.get(PLAN) != plan.digest():
                if (written := self.log).exists():
                    written.replace(self._earlier)
                found.remove(v=True, force=True)
                found = None
            if found is not None:
                found.start()
                return
            made = DockerContainer(plan.image, env=dict(plan.environment), name=self.full_name)
            if plan.command is not None:
                made.with_command(plan.command)
            for place, source in plan.mounts.items():
                made.with_volume_mapping(source, place, "ro")
            for port in plan.ports:
                made.ports[f"{port}/tcp"] = (HOST, port)  # type: ignore[assignment]  # Its methods would publish it on every address.
            how: dict[str, Any] = {"entrypoint": plan.entrypoint, "labels": {**self._stack.labels, PLAN: plan.digest()}}
            if network is not None:
                made.with_network(network)
            else:  # Where no network is named, not even none, testcontainers would look for one.
                how |= {"network": None, "network_mode": f"container:{beside}"}
            made.with_kwargs(**how)
            try:
                made.start()
            finally:
                made.get_docker_client().client.close()

    def wait_ready(self, probe: Callable[[], str | None], limit_seconds: float, given_up: Event) -> None:
        """As of a process."""
        await_ready(self, probe, limit_seconds, given_up)

    def send(self, number: signal.Signals) -> None:
        """Send it a signal, where it runs; to stop and to continue holds for all its processes."""
        from docker.errors import APIError

        found = self.found()
        if found is None or not found.attrs["State"]["Running"]:
            return
        with asking(self._part):
            try:
                if found.attrs["State"]["Paused"]:
                    found.unpause()  # A paused one is told nothing.
                if number == signal.SIGSTOP:
                    found.pause()
                elif number != signal.SIGCONT:
                    found.kill(signal=number.name)
            except APIError:
                if self.pid() is not None:  # It has not ended in between.
                    raise

    def end(self, steps: Sequence[tuple[signal.Signals, float]]) -> bool:
        """As of a process: each signal, and so many seconds for all its processes to go."""
        if self.pid() is None:
            return False
        for number, seconds in steps:
            self.send(number)
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline:
                if self.pid() is None:
                    return number is steps[0][0]
                time.sleep(POLL_SECONDS)
        raise StackError(f"{self._part} does not end: look at its container with `docker inspect {self.full_name}`")


class ContainerStack(Stack):
    """One stack of containers; its folder holds what is chosen, the files that they read, and their logs as they were last asked for.
    Connect has passwords in its environment only: it does not see ``secrets_file``."""

    kind = KINDS[1]

    def __init__(self, folder: Path | str, *, say: Callable[[str], None] | None = None) -> None:
        super().__init__(folder, say=say)
        self._clients = threading.local()

    # ---- the engine -------------------------------------------------------------

    def engine(self) -> Any:
        """The client of the engine on this machine, one for each thread. Raises StackError where there is none."""
        found = getattr(self._clients, "found", None)
        if found is None:
            found = self._clients.found = _found_engine()
        return found.client

    @property
    def group(self) -> str:
        """What the names of this stack's containers begin with."""
        return f"cdc-{self.state.cluster_id}"

    @property
    def labels(self) -> dict[str, str]:
        """What tells this stack's containers and network from all others."""
        return {LABEL: self.group}

    def daemon(self, component: str) -> Part:
        return self._container(component)

    def _container(self, component: str) -> Container:
        return Container(self, component)

    def follow(self, *more: str) -> list[str]:
        return [f"tail -f {' '.join(more)}", *(f"docker logs -f {self._container(name).full_name}" for name in COMPONENTS)]

    # ---- what needs processes -------------------------------------------------------------

    @property
    def postgres_data(self) -> Path:
        raise Refused("PostgreSQL's data are in its container: a test that changes its files needs a stack of processes")

    @property
    def postgres_bin(self) -> Path:
        raise Refused("PostgreSQL's programs are in its container: a test that runs them needs a stack of processes")

    def backend(self, pid: int) -> int:
        raise Refused("PostgreSQL's processes are in its container, and here others may have their numbers")

    # ---- life -------------------------------------------------------------

    def start(
        self,
        components: Iterable[str] = COMPONENTS,
        *,
        limit_seconds: float = LIMIT_SECONDS,
        connect_env: Mapping[str, str] | None = None,
    ) -> dict[str, float]:
        """As of processes. Images that are not there are fetched, and Connect's is built, before anything starts."""
        try:
            return super().start(components, limit_seconds=limit_seconds, connect_env=connect_env)
        except BaseException:
            with contextlib.suppress(StackError), artifacts.locked(self.dir / "lock"):
                self._end([])  # What failed may have been after the network came, and before any part.
            raise

    def _choose(self) -> None:
        self.engine()  # Where there is none, nothing is chosen, so that nothing has to be taken away.
        super()._choose()

    def _free_ports(self, names: Sequence[str]) -> dict[str, int]:
        if self._state is None:
            return free_ports([*names, LATER])
        return dict.fromkeys(names, self.state.ports[LATER])  # Ports are published once, when the network comes.

    def _starters(self, wanted: Sequence[str], connect_env: Mapping[str, str]) -> dict[str, Callable[[], None]]:
        if not wanted:
            return {}
        plans = {name: self._plan(name, connect_env) for name in wanted}
        if "connect" in plans:
            self._build(plans["connect"].image)
        for image in {plan.image: None for name, plan in plans.items() if name != "connect"} | {self._pod_plan().image: None}:
            self._fetch(image)
        self._hold_network()
        return {name: partial(self._start_part, name, plan) for name, plan in plans.items()}

    def _start_part(self, name: str, plan: Plan) -> None:
        # Connect keeps nothing in its container; what the others keep there has to stay.
        self._container(name).run(plan, beside=self._container(POD).found().id, anew=name == "connect")

    def _end(self, components: Iterable[str], *, hurry: bool = False) -> None:
        if not (self.dir / "stack.json").exists():
            return
        super()._end(components, hurry=hurry)
        if all(self._container(name).pid() is None for name in ORDER):
            self._container(POD).end(((signal.SIGKILL, 10.0),))

    def _discard(self) -> None:
        """Every container with its data, and the network. What could not be removed is named, after all else was."""
        client, mine, left = self.engine(), {"label": f"{LABEL}={self.group}"}, []
        with asking("what is left of the stack"):
            containers = client.containers.list(all=True, filters=mine, ignore_removed=True)
            networks = client.networks.list(filters=mine)
        # The one that holds the network goes last.
        for container in sorted(containers, key=lambda one: one.name == self._container(POD).full_name):
            left += _removed(container, v=True, force=True)
        for network in networks:
            left += _removed(network)
        if left:
            raise StackError("not removed: " + "; ".join(left))

    # ---- what the containers are made of -------------------------------------------------------------

    def _plan(self, name: str, connect_env: Mapping[str, str]) -> Plan:
        if name == "connect":
            return self._connect_plan(connect_env)
        return {"postgres": self._postgres_plan, "kafka": self._kafka_plan, "registry": self._registry_plan}[name]()

    def _pod_plan(self) -> Plan:
        """Nothing but a process that does nothing, in an image that is there anyway."""
        ports = [self.state.ports[name] for name in (*COMPONENTS, LATER)]
        return Plan(services()["postgres"]["image"], entrypoint=["sleep", "infinity"], ports=ports)

    def _postgres_plan(self) -> Plan:
        compose = services()["postgres"]
        return Plan(
            compose["image"],
            command=[*compose["command"], "-p", str(self.port("postgres"))],
            environment={"POSTGRES_PASSWORD": self.password("postgres"), "POSTGRES_INITDB_ARGS": shlex.join(INITDB)},
            mounts={place_of("postgres", "postgresql.conf"): str(artifacts.CONFIG / "postgresql.conf")},
        )

    def _kafka_plan(self) -> Plan:
        compose = services()["kafka"]
        properties = self._kafka_properties(EVERYWHERE, compose["environment"]["KAFKA_LOG_DIRS"])
        return Plan(
            compose["image"],
            environment={"CLUSTER_ID": self.state.cluster_id, **_jvm("kafka")},
            mounts={place_of("kafka", "kafka.properties"): str(properties), LOG4J: str(artifacts.CONFIG / "log4j2.xml")},
        )

    def _connect_plan(self, extra_env: Mapping[str, str]) -> Plan:
        mounts, plugins = {LOG4J: str(artifacts.CONFIG / "log4j2.xml")}, ["/opt/plugins"]
        if "registry" in self.state.ports:
            plugins.append("/opt/registry-plugins")
            mounts[plugins[-1]] = str(self._registry().plugins)
        place = place_of("connect", "connect.properties")
        mounts[place] = str(self._connect_properties(EVERYWHERE, plugins))
        return Plan(
            services()["connect"]["image"],
            entrypoint=["/opt/kafka/bin/connect-distributed.sh", place],
            environment={**self._connect_env(extra_env), **_jvm("connect")},
            mounts=mounts,
        )

    def _registry(self) -> artifacts.Registry:
        """The program, which runs in the Java of Kafka's image, and the converter: those of the processes."""
        return artifacts.fetch_registry(artifacts.Lines(self._say))

    def _registry_plan(self) -> Plan:
        program = self._registry().program
        return Plan(
            services()["kafka"]["image"],
            entrypoint=self._registry_argv("java", f"/opt/registry/{program.name}"),
            environment=self._registry_env(EVERYWHERE, "/tmp/schemas"),
            mounts={"/opt/registry": str(program.parent)},
        )

    def _hold_network(self) -> None:
        """A network of its own, and the container that publishes its ports."""
        from testcontainers.core.network import Network

        network = Network(docker_network_kw={"labels": self.labels})
        network.name = self.group
        with asking("the stack's network"):
            if not self.engine().networks.list(filters={"label": f"{LABEL}={self.group}"}):
                network.create()
        if self._container(POD).pid() is None:
            self._container(POD).run(self._pod_plan(), network=network)

    # ---- images -------------------------------------------------------------

    def _fetch(self, image: str) -> None:
        from docker.errors import ImageNotFound

        image = _prefixed(image)
        with asking(image):
            try:
                self.engine().images.get(image)
            except ImageNotFound:
                self._say(f"fetching the image {image}, once")
                self.engine().images.pull(image)

    def _build(self, image: str) -> None:
        """Connect with Debezium as deploy/compose builds it, from the files that its Dockerfile needs and no others."""
        from docker.errors import BuildError, ImageNotFound
        from testcontainers.core.image import DockerImage

        recipe = services()["connect"]["build"]
        root, dockerfile = (COMPOSE / recipe["context"]).resolve(), recipe["dockerfile"]
        ignored = (root / f"{dockerfile}.dockerignore").read_text().split()
        files = [dockerfile, *(name.removeprefix("!") for name in ignored if name.startswith("!"))]
        context = hashlib.sha256(b"\0".join((root / name).read_bytes() for name in files)).hexdigest()
        image = _prefixed(image)
        with asking(image):
            with contextlib.suppress(ImageNotFound):
                if self.engine().images.get(image).labels.get(CONTEXT) == context:
                    return
            self._say(f"building the image {image}, once")
            with tempfile.TemporaryDirectory(prefix="cdc-image-") as scratch:
                for name in files:
                    copy = Path(scratch) / name
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(root / name, copy)
                building = DockerImage(path=scratch, tag=image, dockerfile_path=dockerfile, clean_up=False, labels={CONTEXT: context})
                try:
                    building.build()
                except BuildError as error:
                    said = "".join(str(line.get("stream", "")) for line in error.build_log).splitlines()
                    raise StackError(f"{image} cannot be built: {error}\n" + "\n".join(said[-15:])) from error
                finally:
                    building.get_docker_client().client.close()


@contextlib.contextmanager
def asking(what: str) -> Iterator[None]:
    """What the engine refuses, or that it is away, as StackError."""
    from docker.errors import DockerException
    from requests.exceptions import RequestException

    try:
        yield
    except (DockerException, RequestException) as error:
        said = getattr(error, "explanation", None) or error
        raise StackError(f"{what}: the Docker engine says: {said}") from error


def _removed(one: Any, **how: bool) -> list[str]:
    """Why it could not be removed, if so."""
    from docker.errors import DockerException, NotFound

    try:
        one.remove(**how)
    except NotFound:
        return []
    except DockerException as error:
        return [f"{one.name}: {error}"]
    return []


def _found_engine() -> DockerClient:
    from docker.errors import DockerException
    from testcontainers.core.config import testcontainers_config
    from testcontainers.core.docker_client import DockerClient

    # Its own guard would be one more container, published on every address, and end what KEEP=1 keeps: `Stack.guard` is there for that.
    testcontainers_config.ryuk_disabled = True
    try:
        found = DockerClient()
    except DockerException as error:
        without = f"start one, or leave {KIND} away for a stack of processes"
        raise StackError(f"{KIND}={KINDS[1]}, and no Docker engine answers ({error}): {without}") from error
    if (host := found.host()) not in LOCAL:
        raise StackError(
            f"the Docker engine is on {host}, and the stack's ports are bound to {HOST} there: it has to be one on this machine"
        )
    return found


def _prefixed(image: str) -> str:
    """As testcontainers will name it: a mirror of the registry may be set for it."""
    from testcontainers.core.config import testcontainers_config

    return testcontainers_config.hub_image_name_prefix + image


def _jvm(name: str) -> dict[str, str]:
    """For the scripts in Kafka's image what a process has on its command line."""
    return {
        "KAFKA_HEAP_OPTS": f"-Xmx{HEAP[name]}",
        "KAFKA_JVM_PERFORMANCE_OPTS": " ".join(JVM_FLAGS),
        "KAFKA_LOG4J_OPTS": f"-Dlog4j2.configurationFile={LOG4J}",
    }


def _end_of(state: Mapping[str, Any]) -> str:
    """A last line for the log of a container that has ended."""
    if state["Running"] or state["Status"] == "created":
        return ""
    why = ", for want of memory" if state.get("OOMKilled") else f": {state['Error']}" if state.get("Error") else ""
    return f"(the container ended with {state['ExitCode']}{why})\n"
