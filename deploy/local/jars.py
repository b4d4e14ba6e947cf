"""What runs on a JVM, fetched file by file as `jars.lock` names it: coordinates, SHA-256, bytes. Neither Maven nor Java is needed for it.

`jars.toml` says what is wanted. `python -m deploy.local.jars lock` makes the lock anew from it; `... unpack PART FOLDER` brings one part
where an image is built. The files come from Maven Central, or from the repository that CDC_MAVEN_REPOSITORY or a mirror in the user's own
settings of Maven names; a file that Maven has on this machine already is copied. Whatever its way, only the pinned content is taken.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import os
import queue
import shutil
import sys
import tarfile
import tempfile
import threading
import time
import tomllib
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from deploy.local.process import StackError

HERE = Path(__file__).resolve().parent
WANTED = HERE / "jars.toml"
LOCK = HERE / "jars.lock"
REPOSITORY = "CDC_MAVEN_REPOSITORY"
AT_ONCE = 8
ATTEMPTS = 3
QUIET_SECONDS = 20
"""A repository that sends nothing for so long is asked again."""
HEAD = "# Made by `python -m deploy.local.jars lock` from jars.toml; do not edit. Part, coordinates, SHA-256, bytes.\n"
CURE = f"""What came whole is kept: the next start goes on from there. Do the network and the repository answer? In a closed network, name
the repository that is reached from here: {REPOSITORY}=https://... (or as a mirror of `central` in ~/.m2/settings.xml)"""


@dataclass(frozen=True, slots=True)
class Pin:
    """One file: whose part it is, Maven's coordinates of it, and its content."""

    part: str
    coordinates: str
    sha256: str
    size: int

    @property
    def path(self) -> str:
        """Where it is in every repository of Maven."""
        group, artifact, packaging, *classifier, version = self.coordinates.split(":")
        return "/".join((*group.split("."), artifact, version, f"{'-'.join((artifact, version, *classifier))}.{packaging}"))

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    def fits(self, file: Path) -> bool:
        """Whether the file has the pinned content."""
        if file.stat().st_size != self.size:
            return False
        with file.open("rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest() == self.sha256


@dataclass(frozen=True, slots=True)
class Part:
    """What belongs together: a word for a person, its licence, the coordinates that are wanted, and the artifacts that are left out."""

    what: str
    licence: str
    wanted: tuple[str, ...]
    without: tuple[str, ...] = ()


@functools.cache
def versions() -> dict[str, str]:
    """The version of kafka, debezium, log4j, registry, converter and sink."""
    return dict(tomllib.loads(WANTED.read_text())["versions"])


@functools.cache
def parts() -> dict[str, Part]:
    """What `jars.toml` wants, with its versions in it."""

    def filled(text: str) -> str:
        return text.format(**versions())

    found = tomllib.loads(WANTED.read_text())["parts"]
    return {
        name: Part(filled(one["what"]), one["licence"], tuple(map(filled, one["wanted"])), tuple(one.get("without", ())))
        for name, one in found.items()
    }


def pins(part: str) -> list[Pin]:
    """The files of a part, as the lock has them."""
    lines = (line.split() for line in LOCK.read_text().splitlines() if not line.startswith("#"))
    found = [Pin(name, coordinates, sha256, int(size)) for name, coordinates, sha256, size in lines if name == part]
    if not found:
        raise StackError(f"{LOCK} has no part `{part}`: python -m deploy.local.jars lock")
    return found


def fingerprint(part: str) -> str:
    """A short word that changes with any file of the part."""
    return hashlib.sha256("".join(pin.sha256 for pin in pins(part)).encode()).hexdigest()[:12]


# ---- from where -------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository of Maven; without an address it is Maven Central, whose address the client knows."""

    url: str = ""

    def __str__(self) -> str:
        """For a message: no password in it."""
        parts = urlsplit(self.url)
        return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])) if self.url else "Maven Central"


def repository() -> Repository:
    """The one that CDC_MAVEN_REPOSITORY names, else the mirror of Maven Central in the user's settings of Maven, else Maven Central."""
    return Repository((os.environ.get(REPOSITORY) or _mirror(Path.home() / ".m2" / "settings.xml")).rstrip("/"))


def _mirror(settings: Path) -> str:
    """The address of the first mirror that is one of Maven Central; empty where there is none."""
    try:
        root = ElementTree.parse(settings).getroot()
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except (ElementTree.ParseError, OSError) as error:
        raise StackError(f"{settings} cannot be read ({error}): mend it, or set {REPOSITORY}") from error
    for mirror in root.iterfind("{*}mirrors/{*}mirror"):
        of = {one.strip() for one in mirror.findtext("{*}mirrorOf", "").split(",")}
        if of & {"*", "external:*", "central"} and "!central" not in of and mirror.findtext("{*}blocked", "").strip() != "true":
            return mirror.findtext("{*}url", "").strip()
    return ""


# ---- the way of a file -------------------------------------------------------------


class _Stopped(Exception):
    """Nobody waits for this file any more."""


def fetch(wanted: Sequence[Pin], folder: Path, moved: Callable[[int], None] = lambda _bytes: None) -> None:
    """Bring the files into the folder: each whole and as it is pinned, or not at all. What is there already is not fetched again.

    ``moved`` hears of bytes as they come, and of less than none where an attempt failed. Raises StackError with what to do.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob(".fetch-*"):  # Of a process that was killed: whoever writes here holds the lock.
        shutil.rmtree(old, ignore_errors=True)
    source = repository()
    waiting: queue.SimpleQueue[Pin] = queue.SimpleQueue()
    came: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
    stop = threading.Event()
    missing = 0
    for pin in wanted:
        if (folder / pin.name).exists():
            moved(pin.size)
        else:
            waiting.put(pin)
            missing += 1

    def work() -> None:
        with contextlib.suppress(queue.Empty):
            while not stop.is_set():
                pin = waiting.get_nowait()
                try:
                    _bring(pin, folder, source, moved, stop)
                    came.put(None)
                except BaseException as error:
                    came.put(error)

    # Threads that die with the process: a Ctrl-C must not wait for a repository that is silent.
    for _ in range(min(AT_ONCE, missing)):
        threading.Thread(target=work, daemon=True).start()
    try:
        for _ in range(missing):
            error = came.get()
            if error is not None:
                raise error
    finally:
        stop.set()


def _bring(pin: Pin, folder: Path, source: Repository, moved: Callable[[int], None], stop: threading.Event) -> None:
    """One file into the folder, from Maven's own copy on this machine or from the repository."""
    from jgo.constants import default_maven_repo

    kept = default_maven_repo() / pin.path
    for attempt in range(ATTEMPTS):
        count = 0

        def heard(more: int) -> None:
            nonlocal count
            if stop.is_set():
                raise _Stopped
            count += more
            moved(more)

        with tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-", ignore_cleanup_errors=True) as scratch:
            try:
                if attempt == 0 and kept.is_file() and pin.fits(kept):
                    file = Path(shutil.copyfile(kept, Path(scratch) / pin.name))
                else:
                    file = _download(pin, Path(scratch), source, heard)
            except (OSError, RuntimeError) as error:  # What the client raises for the network, and for any answer but the file.
                moved(-count)
                if attempt + 1 < ATTEMPTS and not stop.wait(attempt + 0.5):
                    continue
                raise StackError(f"{pin.coordinates} could not be fetched from {source}: {_said(error, source)}\n{CURE}") from error
            if not pin.fits(file):
                raise StackError(
                    f"{source} gave another file than the one that {LOCK.name} pins as {pin.coordinates}: {file.stat().st_size:,} bytes,"
                    f" where {pin.size:,} with the SHA-256 {pin.sha256} are right. It was thrown away. A proxy that answers in the"
                    f" repository's place, or a mirror with files of its own? Name another repository: {REPOSITORY}=https://..."
                )
            moved(pin.size - count)
            if not stop.is_set():
                file.replace(folder / pin.name)
            return


def _said(error: BaseException, source: Repository) -> str:
    """The reason in one line, without the password that the repository's address may have in it."""
    if isinstance(error, RuntimeError):
        return "it does not have this file, or does not give it out"
    while below := error.__cause__ or error.__context__:
        error = below
    text = str(error).replace(source.url, str(source)) if source.url else str(error)
    return f"{type(error).__name__}: {text[:300]}"


def _download(pin: Pin, scratch: Path, source: Repository, heard: Callable[[int], None]) -> Path:
    from jgo.maven import MavenContext
    from jgo.maven import PythonResolver as Client

    @contextlib.contextmanager
    def told(_name: str, _size: int) -> Iterator[Callable[[int], None]]:
        yield heard

    remote = {"repository": source.url} if source.url else None
    client = MavenContext(Client(progress_callback=told), repo_cache=scratch, remote_repos=remote, timeout=QUIET_SECONDS)
    group, artifact, packaging, *classifier, version = pin.coordinates.split(":")
    return client.project(group, artifact).at_version(version).artifact("".join(classifier), packaging).resolve()


def unpack(part: str, home: Path, moved: Callable[[int], None] = lambda _bytes: None) -> None:
    """Fetch the part's archives and unpack them into the folder; a second call goes on where a first one was interrupted."""
    archives = home / ".archives"
    fetch(pins(part), archives, moved)
    for old in home.iterdir():
        if old.is_dir() and old != archives:
            shutil.rmtree(old)
        elif old != archives:
            old.unlink()
    for pin in pins(part):
        with tarfile.open(archives / pin.name) as content:
            content.extractall(home, filter="data")
    shutil.rmtree(archives)


# ---- the lock -------------------------------------------------------------


def resolve(part: Part, scratch: Path) -> list[str]:
    """The coordinates of the wanted artifacts and, of jars, of all that they need at run time, as Maven chooses the versions."""
    from jgo.maven import Dependency, MavenContext

    source = repository()
    client = MavenContext(repo_cache=scratch, remote_repos={"repository": source.url} if source.url else None, timeout=QUIET_SECONDS)
    jars, found = [], []
    for one in part.wanted:
        group, artifact, packaging, *_, version = one.split(":")
        if packaging == "jar":
            jars.append(Dependency(client.project(group, artifact).at_version(version).artifact(), raw=True))
        else:
            found.append(one)
    for each in [each for several in client.resolver.resolve(jars) for each in several] if jars else []:
        if each.scope in (None, "compile", "runtime") and not each.optional and each.artifactId not in part.without:
            classifier = [each.artifact.classifier] if each.artifact.classifier else []
            found.append(":".join((each.groupId, each.artifactId, each.artifact.packaging, *classifier, each.artifact.version)))
    return sorted(found)


def lock(say: Callable[[str], None]) -> str:
    """The text of a new lock. It trusts what the repository gives now; afterwards nobody has to."""
    lines = []
    with tempfile.TemporaryDirectory(prefix="cdc-jars-") as scratch:
        for name, part in parts().items():
            say(f"{name}: {part.what}")
            for coordinates in resolve(part, Path(scratch)):
                pin = Pin(name, coordinates, "", 0)
                file = _download(pin, Path(scratch), repository(), lambda _bytes: None)
                with file.open("rb") as content:
                    digest = hashlib.file_digest(content, "sha256").hexdigest()
                lines.append(f"{name} {coordinates} {digest} {file.stat().st_size}\n")
    return HEAD + "".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m deploy.local.jars", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("lock", help="write jars.lock anew from jars.toml")
    one = verbs.add_parser("unpack", help="fetch the archives of one part and unpack them")
    one.add_argument("part")
    one.add_argument("folder", type=Path)
    options = parser.parse_args(arguments)
    began = time.monotonic()
    try:
        if options.verb == "lock":
            text = lock(lambda line: print(line, file=sys.stderr))
            LOCK.write_text(text)
        else:
            unpack(options.part, options.folder)
    except (StackError, OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"done in {time.monotonic() - began:.0f} s", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
