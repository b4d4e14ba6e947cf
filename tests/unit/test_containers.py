"""The stack of containers, driven with a stand-in for a Docker engine: what the engine is told, in which order, and what any end leaves."""

from __future__ import annotations

import ast
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from threading import Event

import pytest
import yaml

from deploy.local import artifacts, containers, demo, stack
from deploy.local.containers import LATER, ContainerStack
from deploy.local.process import Refused, StackError
from deploy.local.stack import COMPONENTS, HEAP, HOST, INITDB, JVM_FLAGS, ORDER, Stack, State, chosen_kind, open_stack
from tests.support.engine import Box, Engine

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = yaml.safe_load((ROOT / "deploy" / "compose" / "docker-compose.yml").read_text())["services"]
PARTS = {*COMPONENTS, "network"}
LIMIT = 20.0


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    """The engine, and what the stack asks its parts themselves: they are ready at once, and there is no server for a role."""
    monkeypatch.setenv("CDC_TEST_STACK", "containers")
    for name in ("DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH", "DOCKER_AUTH_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(ContainerStack, "_probe", lambda _self, _name: None)
    monkeypatch.setattr(ContainerStack, "_make_role", lambda _self: None)
    monkeypatch.setattr(containers, "POLL_SECONDS", 0.001)
    monkeypatch.setenv("NO_PROXY", HOST)  # Else each call to the engine reads all of the environment, twice, for one.
    with Engine() as made:
        monkeypatch.setenv("DOCKER_HOST", made.address)
        yield made


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> artifacts.Registry:
    """What would be fetched for the registry."""
    found = artifacts.Registry(tmp_path / "app" / "registry-runner.jar", tmp_path / "plugins")
    monkeypatch.setattr(ContainerStack, "_registry", lambda _self: found)
    return found


@pytest.fixture
def made(engine: Engine, tmp_path: Path) -> Stack:
    """A stack of containers of which nothing was started."""
    return open_stack(tmp_path / "stack")


def properties(path: str | Path) -> dict[str, str]:
    lines = (line.split("=", 1) for line in Path(path).read_text().splitlines() if line and not line.startswith("#"))
    return dict(lines)


def left(engine: Engine) -> list[str]:
    return [box.name for box in engine.boxes.values()] + [str(one["Name"]) for one in engine.networks.values()]


# ---- what the containers are made of


def test_images_are_those_of_compose_by_their_exact_versions(made: Stack, engine: Engine, registry: artifacts.Registry) -> None:
    made.start(ORDER)
    assert {box.part: box.made_of["Image"] for box in engine.boxes.values()} == {
        "postgres": COMPOSE["postgres"]["image"],
        "kafka": COMPOSE["kafka"]["image"],
        "connect": COMPOSE["connect"]["image"],
        "registry": COMPOSE["kafka"]["image"],  # For its Java.
        "network": COMPOSE["postgres"]["image"],
    }
    # By digest where somebody pinned one, else by a tag that says the whole version; and no other image, such as a guard's.
    assert all(re.search(r"@sha256:[0-9a-f]{64}$|:[a-z-]*\d+\.\d+[\w.-]*$", image) for image in engine.images), engine.images


def test_an_image_that_is_pinned_by_its_digest_is_fetched_and_run_by_it(
    made: Stack, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    pinned = f"{COMPOSE['postgres']['image'].partition('@')[0]}@sha256:{'0' * 64}"
    monkeypatch.setattr(containers, "services", lambda: COMPOSE | {"postgres": COMPOSE["postgres"] | {"image": pinned}})
    made.start(["postgres"])
    assert engine.calls[0] == f"pull postgres@sha256:{'0' * 64}"
    assert engine.box("postgres").made_of["Image"] == pinned


def test_ports_are_published_on_loopback_and_by_one_container_only(made: Stack, engine: Engine, registry: artifacts.Registry) -> None:
    made.start(ORDER)
    holder = engine.box("network")
    wanted = {f"{made.port(name)}/tcp": [{"HostIp": HOST, "HostPort": str(made.port(name))}] for name in ORDER}
    assert holder.host["PortBindings"] == wanted
    for box in engine.boxes.values():
        assert not box.host.get("PublishAllPorts")
        assert not box.host.get("Privileged")
        if box is not holder:
            assert not box.host.get("PortBindings")
            assert box.host["NetworkMode"] == f"container:{holder.id}"
    (network,) = engine.networks.values()
    assert holder.host["NetworkMode"] == network["Name"]
    assert holder.made_of["Entrypoint"] == ["sleep", "infinity"]
    assert made.port("controller") not in {int(port.split("/")[0]) for port in wanted}


def test_settings_are_those_of_processes(made: Stack, engine: Engine, registry: artifacts.Registry, tmp_path: Path) -> None:
    """But for addresses inside the container's own network, and for paths in it."""
    made.start(ORDER, connect_env={"OTHER": "told"})
    processes = Stack(tmp_path / "processes")
    processes._state = State(made.state.ports, made.state.passwords, made.state.cluster_id)
    jvm = {"KAFKA_JVM_PERFORMANCE_OPTS": " ".join(JVM_FLAGS), "KAFKA_LOG4J_OPTS": "-Dlog4j2.configurationFile=/etc/cdc/log4j2.xml"}

    kafka = engine.box("kafka")
    here = properties(kafka.mounts["/mnt/shared/config/server.properties"])
    there = properties(processes._kafka_properties(HOST, "/data"))
    assert {key for key in here if here[key] != there.get(key)} == {"listeners", "log.dirs"}
    assert here.keys() == there.keys()
    assert here["listeners"] == there["listeners"].replace(f"PLAINTEXT://{HOST}", "PLAINTEXT://0.0.0.0")
    assert here["advertised.listeners"] == f"PLAINTEXT://{made.kafka}"
    assert here["log.dirs"] == COMPOSE["kafka"]["environment"]["KAFKA_LOG_DIRS"]
    assert kafka.environment == {"CLUSTER_ID": made.state.cluster_id, "KAFKA_HEAP_OPTS": f"-Xmx{HEAP['kafka']}", **jvm}
    assert kafka.mounts["/etc/cdc/log4j2.xml"] == str(artifacts.CONFIG / "log4j2.xml")

    connect = engine.box("connect")
    here = properties(connect.mounts["/etc/cdc/connect.properties"])
    there = properties(processes._connect_properties(HOST, ["/plugins"]))
    assert {key for key in here if here[key] != there.get(key)} == {"listeners", "plugin.path"}
    assert here.keys() == there.keys()
    assert here["listeners"] == there["listeners"].replace(HOST, "0.0.0.0")
    assert here["plugin.path"] == "/opt/plugins,/opt/registry-plugins"
    heap = {"KAFKA_HEAP_OPTS": f"-Xmx{HEAP['connect']}"}
    assert connect.environment == {**processes._connect_env({"OTHER": "told"}), **heap, **jvm}
    assert connect.environment["CDC_PASSWORD"] == made.password("cdc")
    assert connect.made_of["Entrypoint"] == ["/opt/kafka/bin/connect-distributed.sh", "/etc/cdc/connect.properties"]
    assert connect.mounts["/opt/registry-plugins"] == str(registry.plugins)

    postgres = engine.box("postgres")
    assert postgres.made_of["Cmd"] == [*COMPOSE["postgres"]["command"], "-p", str(made.port("postgres"))]
    assert postgres.environment == {"POSTGRES_PASSWORD": made.password("postgres"), "POSTGRES_INITDB_ARGS": " ".join(INITDB)}
    assert postgres.mounts == {"/etc/cdc/postgresql.conf": str(artifacts.CONFIG / "postgresql.conf")}

    server = engine.box("registry")
    told = processes._registry_env("0.0.0.0", "/tmp/schemas")
    assert server.environment == told
    assert told["QUARKUS_HTTP_PORT"] == str(made.port("registry"))
    assert server.made_of["Entrypoint"] == processes._registry_argv("java", "/opt/registry/registry-runner.jar")
    assert server.mounts == {"/opt/registry": str(registry.program.parent)}


def test_what_compose_says_beside_is_the_same() -> None:
    assert all(COMPOSE[name]["environment"]["KAFKA_HEAP_OPTS"] == f"-Xmx{HEAP[name]}" for name in ("kafka", "connect"))
    assert "listen_addresses=*" in COMPOSE["postgres"]["command"]
    # Where Connect's plugins are in the image.
    assert "COPY --from=plugins /plugins /opt/plugins\n" in (ROOT / COMPOSE["connect"]["build"]["dockerfile"]).read_text()


def test_connect_s_image_is_built_from_what_its_dockerfile_needs_and_once(
    made: Stack, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    made.start()
    made.stop(["connect"])
    made.start()
    (build,) = engine.builds
    assert build["tag"] == COMPOSE["connect"]["image"]
    assert build["dockerfile"] == "deploy/compose/connect.Dockerfile"
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", (ROOT / build["dockerfile"]).read_text(), re.MULTILINE)
    assert set(build["files"]) == {build["dockerfile"], *" ".join(copied).split()}
    assert all((ROOT / name).read_bytes() == content for name, content in build["files"].items())
    # One that was built from other files, or by compose, is built anew.
    engine.images[build["tag"]] = {}
    made.stop(["connect"])
    made.start()
    assert len(engine.builds) == 2


def test_a_build_that_fails_says_how(made: Stack, engine: Engine) -> None:
    engine.refuses[f"build {COMPOSE['connect']['image']}"] = "mvn returned 1"
    with pytest.raises(StackError, match=r"cannot be built: mvn returned 1(\n.*)*no such artefact"):
        made.start()
    assert engine.boxes == {}


# ---- how they start


def test_images_come_first_then_the_network_then_the_parts_and_each_is_waited_for(
    made: Stack, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, int] = {}

    def probe(_self: Stack, name: str) -> str | None:
        asked[name] = asked.get(name, 0) + 1
        assert engine.box(name).status == "running"
        return None if asked[name] > 3 else "not yet"

    roles: list[int] = []
    monkeypatch.setattr(ContainerStack, "_probe", probe)
    monkeypatch.setattr(ContainerStack, "_make_role", lambda _self: roles.append(asked["postgres"]))
    took = made.start()
    assert asked == dict.fromkeys(COMPONENTS, 4)
    assert roles == [4]
    assert set(took) == set(COMPONENTS)
    images = {f"pull {COMPOSE[name]['image']}" for name in ("postgres", "kafka")} | {f"build {COMPOSE['connect']['image']}"}
    assert set(engine.calls[:3]) == images
    assert engine.calls[3:6] == ["create a network", "create network", "start network"]
    assert sorted(engine.calls[6:]) == sorted([f"create {name}" for name in COMPONENTS] + [f"start {name}" for name in COMPONENTS])
    assert engine.running() == PARTS


def test_start_again_changes_nothing_also_from_another_process(made: Stack, engine: Engine) -> None:
    made.start()
    before, calls = made.running(), list(engine.calls)
    other = open_stack(made.dir)
    other.start()
    assert engine.calls == calls
    assert other.running() == before
    assert all(before[name] for name in COMPONENTS)


def test_a_part_that_ends_while_starting_is_named_with_its_last_lines_and_the_others_end(
    made: Stack, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def runs(box: Box) -> None:
        if box.part == "kafka":
            box.end(3, "".join(f"line {number}\n" for number in range(100)) + "no such luck\n")

    engine.runs = runs
    monkeypatch.setattr(ContainerStack, "_probe", lambda _self, _name: "not yet")
    with pytest.raises(StackError) as failed:
        made.start(limit_seconds=LIMIT)
    said = str(failed.value).splitlines()
    assert said[0].startswith(f"kafka ended while starting. The end of its log, {made.dir}/logs/kafka.log")
    assert said[-2:] == ["no such luck", "(the container ended with 3)"]
    assert "line 50" not in said
    assert engine.running() == set()


def test_a_part_that_is_not_ready_in_time_is_named_with_what_is_missing(
    made: Stack, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.runs = lambda box: setattr(box, "written", f"{box.part} begins\n".encode())
    monkeypatch.setattr(ContainerStack, "_probe", lambda _self, name: "no plugin yet" if name == "connect" else None)
    with pytest.raises(StackError, match=r"connect was not ready within 0 s \(no plugin yet\)(.*\n)+connect begins"):
        made.start(limit_seconds=0.1)
    assert engine.running() == set()


@pytest.mark.parametrize("call", ["create kafka", "start kafka", "start network", "create network", "create a network"])
def test_what_the_engine_refuses_is_said_and_nothing_runs(made: Stack, engine: Engine, call: str) -> None:
    engine.refuses[call] = "port is already allocated"
    with pytest.raises(StackError, match="the Docker engine says: port is already allocated"):
        made.start()
    assert engine.running() == set()
    engine.refuses.clear()
    made.start()
    assert engine.running() == PARTS


def test_an_image_that_is_not_to_be_had_is_said_before_anything_starts(made: Stack, engine: Engine) -> None:
    image = COMPOSE["kafka"]["image"]
    engine.refuses[f"pull {image}"] = "no such host"
    with pytest.raises(StackError, match=f"{image}: the Docker engine says: no such host"):
        made.start()
    assert engine.boxes == engine.networks == {}


# ---- how they end


def interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def refuse_start(engine: Engine, _monkeypatch: pytest.MonkeyPatch) -> None:
    engine.refuses["start connect"] = "no space left"


def refuse_create(engine: Engine, _monkeypatch: pytest.MonkeyPatch) -> None:
    engine.refuses["create kafka"] = "no space left"


def interrupted_while_waiting(_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ContainerStack, "_probe", lambda _self, _name: "not yet")
    real, first = stack.wait, Event()

    def wait(running: object) -> object:
        if first.is_set():
            return real(running)  # type: ignore[call-overload]
        first.set()
        raise KeyboardInterrupt

    monkeypatch.setattr(stack, "wait", wait)


def interrupted_before_the_parts(_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    real = ContainerStack._hold_network

    def hold(self: ContainerStack) -> None:
        real(self)
        raise KeyboardInterrupt

    monkeypatch.setattr(ContainerStack, "_hold_network", hold)


def interrupted_while_fetching(_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ContainerStack, "_fetch", interrupt)


@pytest.mark.parametrize(
    ("fault", "raised"),
    [
        (None, None),
        (refuse_start, StackError),
        (refuse_create, StackError),
        (interrupted_while_fetching, KeyboardInterrupt),
        (interrupted_before_the_parts, KeyboardInterrupt),
        (interrupted_while_waiting, KeyboardInterrupt),
    ],
)
def test_whatever_happens_nothing_is_left(
    made: Stack, engine: Engine, monkeypatch: pytest.MonkeyPatch, fault: Callable[..., None] | None, raised: type[BaseException] | None
) -> None:
    if fault:
        fault(engine, monkeypatch)

    def run() -> None:
        with made.guarded(remove=True):
            try:
                made.start(limit_seconds=LIMIT)
            except BaseException:
                assert engine.running() == set()
                raise
            assert engine.running() == PARTS

    if raised:
        with pytest.raises(raised):
            run()
    else:
        run()
    assert left(engine) == []
    assert all(data for _, data in engine.removed)
    assert not made.dir.exists()
    assert engine.images.keys() <= {COMPOSE[name]["image"] for name in COMPONENTS}  # They stay for the next time.


def test_only_its_own_are_removed(made: Stack, engine: Engine, tmp_path: Path) -> None:
    other = open_stack(tmp_path / "other")
    other.start(["postgres"])
    made.start(["postgres"])
    made.stop(remove=True)
    assert {box.name for box in engine.boxes.values()} == {f"cdc-{other.state.cluster_id}-{part}" for part in ("postgres", "network")}
    assert other.running()["postgres"] is not None
    other.stop(remove=True)
    assert left(engine) == []


def test_what_cannot_be_removed_is_named_and_the_next_time_it_is_tried_again(made: Stack, engine: Engine) -> None:
    made.start()
    engine.refuses["remove kafka"] = "device is busy"
    with pytest.raises(StackError, match=r"not removed: cdc-\S+-kafka: .*device is busy"):
        made.stop(remove=True)
    assert {box.part for box in engine.boxes.values()} == {"kafka"}
    engine.refuses.clear()
    open_stack(made.dir, there=True).stop(remove=True)
    assert left(engine) == []


def test_a_stack_whose_process_is_killed_is_removed_by_its_guard(engine: Engine, tmp_path: Path) -> None:
    code = """
import os, signal, sys
from deploy.local.containers import ContainerStack
from deploy.local.stack import open_stack
ContainerStack._probe = lambda _self, _name: None
ContainerStack._make_role = lambda _self: None
made = open_stack(sys.argv[1])
made.guard(remove=True)
made.start(["postgres"])
print("started", flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "stack")], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert "started" in done.stdout, done.stderr
    assert done.returncode == -signal.SIGKILL
    until = Event()
    for _ in range(600):
        if not left(engine) and not (tmp_path / "stack").exists():
            break
        until.wait(0.05)
    assert left(engine) == []
    assert ("postgres", True) in engine.removed


# ---- faults


def test_a_killed_part_comes_back_with_its_data_and_its_ports(made: Stack, engine: Engine) -> None:
    made.start()
    ports = dict(made.state.ports)
    for part in COMPONENTS:
        box = engine.box(part)
        made.kill(part)
        assert box.told == ["SIGKILL"]
        assert made.running()[part] is None
        assert engine.running() == PARTS - {part}
        with pytest.raises(StackError, match=f"{part} does not run, so it cannot be sent SIGTERM"):
            made.kill(part, signal.SIGTERM)
        made.start([part])
        assert engine.box(part).id == box.id
    assert made.state.ports == ports
    assert engine.removed == []


def test_a_part_is_frozen_and_woken_and_a_frozen_one_can_end(made: Stack, engine: Engine) -> None:
    made.start()
    box = engine.box("postgres")
    made.kill("postgres", signal.SIGSTOP)
    assert box.status == "paused"
    assert made.running()["postgres"] is not None
    made.kill("postgres", signal.SIGCONT)
    assert (box.status, box.told) == ("running", [])
    made.kill("postgres", signal.SIGHUP)
    made.kill("postgres", signal.SIGSTOP)
    made.restart("postgres")
    assert (box.status, box.told) == ("running", ["SIGHUP", "SIGINT"])


def test_a_part_that_does_not_go_is_told_more_plainly(made: Stack, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    made.start(["kafka"])
    monkeypatch.setitem(stack.STOP, "kafka", ((signal.SIGHUP, 0.05), (signal.SIGKILL, 5.0)))  # type: ignore[misc]
    made.stop(["kafka"])
    assert engine.box("kafka").told == ["SIGHUP", "SIGKILL"]


def test_the_network_ends_with_the_last_part_and_comes_back_with_the_first(made: Stack, engine: Engine) -> None:
    made.start()
    made.stop(["connect", "kafka"])
    assert engine.running() == {"postgres", "network"}
    made.stop()
    assert engine.running() == set()
    made.start(["postgres"])
    assert engine.running() == {"postgres", "network"}
    assert len(engine.boxes) == 4


def test_a_registry_comes_to_a_stack_that_runs(made: Stack, engine: Engine, registry: artifacts.Registry) -> None:
    made.start()
    assert "registry" not in made.running()
    before = {part: engine.box(part).id for part in PARTS}
    engine.box("connect").written = b"the first of them\n"
    reserved = made.state.ports[LATER]
    made.start(["registry"])
    assert made.port("registry") == reserved
    assert engine.running() == {*PARTS, "registry"}
    # Connect needs the converter: it alone is made anew, and its log goes on.
    assert {part for part in PARTS if engine.box(part).id != before[part]} == {"connect"}
    engine.box("connect").written = b"the second\n"
    assert made.daemon("connect").log.read_text() == "the first of them\n(the container ended with 0)\nthe second\n"
    made.stop(["registry"])
    made.start(["registry"])
    assert len(engine.removed) == 1


def test_connect_s_environment_is_that_of_its_last_start(made: Stack, engine: Engine) -> None:
    made.start(connect_env={"CDC_PASSWORD": "wrong", "OTHER": "told"})
    assert engine.box("connect").environment["CDC_PASSWORD"] == "wrong"
    made.restart("connect")
    assert engine.box("connect").environment["CDC_PASSWORD"] == made.password("cdc")
    assert "OTHER" not in engine.box("connect").environment


def test_what_holds_data_is_not_made_anew_where_it_would_be_made_otherwise_now(
    made: Stack, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    made.start()
    before = {part: engine.box(part).id for part in PARTS}
    made.stop()
    monkeypatch.setattr(containers, "JVM_FLAGS", ("-XX:+UseG1GC",))
    monkeypatch.setattr(containers, "INITDB", ("-E", "LATIN1"))
    made.start()
    assert {part for part in PARTS if engine.box(part).id != before[part]} == {"connect"}
    assert engine.box("connect").environment["KAFKA_JVM_PERFORMANCE_OPTS"] == "-XX:+UseG1GC"


def test_what_needs_processes_is_refused_with_a_sentence(made: Stack, engine: Engine) -> None:
    made.start(["postgres"])
    for asked in (lambda: made.postgres_data, lambda: made.postgres_bin, lambda: made.backend(4711)):
        with pytest.raises(Refused, match="container"):
            asked()
    with pytest.raises(Refused, match=f"the stack in {made.dir} consists of containers, and processes are needed"):
        Stack(made.dir).start(["postgres"])
    with pytest.raises(Refused):
        Stack(made.dir).stop(remove=True)
    assert made.running()["postgres"] is not None


def test_a_refusal_skips_the_test_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "test_them.py").write_text("""
import pytest
from deploy.local.process import Refused, StackError
@pytest.fixture
def needs():
    raise Refused("not before it")
def test_one(needs): pass
def test_two():
    raise Refused("not in it")
def test_three():
    raise StackError("another thing")
def test_four(): pass
""")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "tests.conftest",
        "-p",
        "no:cacheprovider",
        "-n",
        "0",
        "-ra",
        "--rootdir",
        str(tmp_path),
    ]
    environment = {"PYTHONPATH": str(ROOT), "PATH": ""}
    done = subprocess.run([*command, "test_them.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert "1 failed, 1 passed, 2 skipped" in done.stdout, done.stdout + done.stderr
    assert re.search(r"SKIPPED \[1\] .*not before it", done.stdout)
    assert re.search(r"SKIPPED \[1\] .*not in it", done.stdout)


# ---- which kind


def test_the_variable_chooses_and_what_it_does_not_know_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds: Mapping[str, type[Stack]] = {"": Stack, "processes": Stack, "containers": ContainerStack}
    for value, kind in kinds.items():
        monkeypatch.setenv("CDC_TEST_STACK", value)
        assert type(open_stack(tmp_path)) is kind
    monkeypatch.delenv("CDC_TEST_STACK")
    assert type(open_stack(tmp_path)) is Stack
    monkeypatch.setenv("CDC_TEST_STACK", "docker")
    with pytest.raises(StackError, match="CDC_TEST_STACK=docker: there is no such stack; there are processes and containers"):
        open_stack(tmp_path)
    with pytest.raises(StackError):
        chosen_kind()


def test_what_was_started_in_a_folder_is_what_is_there(made: Stack, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    made.start(["postgres"])
    monkeypatch.delenv("CDC_TEST_STACK")
    assert isinstance(open_stack(made.dir), ContainerStack)
    monkeypatch.setenv("CDC_TEST_STACK", "processes")
    with pytest.raises(StackError, match=rf"CDC_TEST_STACK=processes, and the stack in {made.dir} consists of containers"):
        open_stack(made.dir)
    for value in ("processes", "docker"):
        monkeypatch.setenv("CDC_TEST_STACK", value)
        assert isinstance(open_stack(made.dir, there=True), ContainerStack)
    assert stack.main(["stop", "--remove", "--dir", str(made.dir)]) == 0
    assert left(engine) == []


def test_the_commands_of_a_stack_work_on_containers(made: Stack, engine: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    engine.runs = lambda box: setattr(box, "written", f"{box.part} writes\n".encode())
    assert stack.main(["start", "--dir", str(made.dir)]) == 0
    assert stack.main(["logs", "kafka", "--dir", str(made.dir)]) == 0
    assert stack.main(["stop", "connect", "--dir", str(made.dir)]) == 0
    assert stack.main(["status", "--dir", str(made.dir)]) == 1
    said = capsys.readouterr().out
    assert f"kafka     ready on {HOST}:{made.port('kafka')}" in said
    assert "kafka writes" in said
    assert "connect   not running" in said


def test_the_demo_takes_its_stack_from_the_same_function(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[Stack] = []
    monkeypatch.setattr(demo.Demo, "run", lambda self: (self.stack.start(), ran.append(self.stack)) and True)
    argv = ["--dir", str(tmp_path / "demo")]
    assert demo.main(argv) == 0
    assert isinstance(ran[0], ContainerStack)
    assert left(engine) == []
    assert len(engine.removed) == 4
    # What was kept is ended by its own kind, and the next one may be of another.
    kept = open_stack(tmp_path / "demo" / "stack")
    kept.start()
    logs = [f"docker logs -f {engine.box(part).name}" for part in COMPONENTS]
    assert kept.follow("service.log") == ["tail -f service.log", *logs]
    monkeypatch.setenv("CDC_TEST_STACK", "docker")
    assert demo.main(argv) == 2
    assert "there are processes and containers" in capsys.readouterr().out
    assert engine.running() == PARTS
    monkeypatch.setenv("CDC_TEST_STACK", "processes")
    monkeypatch.setattr(demo.Demo, "run", lambda self: ran.append(self.stack) or True)
    assert demo.main(argv) == 0
    assert left(engine) == []
    assert type(ran[1]) is Stack


def test_the_logs_of_processes_are_followed_in_their_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Stack(tmp_path / "demo" / "stack").follow("demo/service.log") == ["tail -f demo/service.log demo/stack/logs/*.log"]


# ---- the engine, and what is loaded


def test_without_an_engine_it_is_said_and_nothing_is_left(made: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{made.dir}/docker.sock")
    with pytest.raises(StackError, match=r"CDC_TEST_STACK=containers, and no Docker engine answers .* leave CDC_TEST_STACK away"):
        made.start()
    made.stop(remove=True)
    assert not made.dir.exists()


def test_an_engine_that_goes_away_is_said_and_the_folder_stays(made: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    made.start()
    monkeypatch.setattr(made, "_clients", type("None yet", (), {})())
    monkeypatch.setenv("DOCKER_HOST", f"unix://{made.dir}/docker.sock")
    with pytest.raises(StackError, match="no Docker engine answers"):
        made.stop(remove=True)
    assert (made.dir / "stack.json").exists()


def test_an_engine_on_another_machine_is_refused(made: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    from testcontainers.core.docker_client import DockerClient

    monkeypatch.setattr(DockerClient, "host", lambda _self: "builder-7")
    with pytest.raises(StackError, match=r"the Docker engine is on builder-7, and the stack's ports are bound to 127\.0\.0\.1"):
        made.start()


def test_nothing_of_docker_is_loaded_before_it_is_used(tmp_path: Path) -> None:
    code = f"""
import os, sys
import deploy.local.demo, deploy.local.stack, tests.conftest
from deploy.local.stack import open_stack
open_stack({str(tmp_path)!r}).stop(remove=True)
os.environ["CDC_TEST_STACK"] = "containers"
open_stack({str(tmp_path / "stack")!r}).stop(remove=True)
print([name for name in sys.modules if name.partition(".")[0] in ("testcontainers", "docker")])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "[]\n"


def test_testcontainers_are_named_in_one_module() -> None:
    found = set()
    for path in (*ROOT.glob("deploy/**/*.py"), *ROOT.glob("tests/**/*.py")):
        text = path.read_text()
        if "docker" not in text and "testcontainers" not in text:
            continue  # What is not written there is not imported.
        for node in ast.walk(ast.parse(text)):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [one.name for one in node.names] if isinstance(node, ast.Import) else []
            if any(name.partition(".")[0] in ("testcontainers", "docker") for name in names):
                found.add(str(path.relative_to(ROOT)))
    assert found == {"deploy/local/containers.py", "tests/unit/test_containers.py"}
