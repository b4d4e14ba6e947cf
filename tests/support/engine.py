"""A stand-in for a Docker engine: it answers the part of the engine's HTTP interface that the stack of containers uses, and runs nothing.

The real clients (docker's and testcontainers') talk to it, so what it was told is what they would tell a real engine.
"""

from __future__ import annotations

import io
import json
import re
import struct
import tarfile
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

Answer = tuple[int, object]
"""The status, and a document, or bytes as they are."""


@dataclass
class Box:
    """A container: what it was made of, and how it is."""

    id: str
    name: str
    made_of: dict[str, Any]
    status: str = "created"
    exit_code: int = 0
    pid: int = 0
    told: list[str] = field(default_factory=list)
    """Signals."""
    written: bytes = b""

    @property
    def part(self) -> str:
        return self.name.rpartition("-")[2]

    @property
    def host(self) -> dict[str, Any]:
        found: dict[str, Any] = self.made_of["HostConfig"]
        return found

    @property
    def environment(self) -> dict[str, str]:
        return dict(one.split("=", 1) for one in self.made_of.get("Env") or [])

    @property
    def mounts(self) -> dict[str, str]:
        """Places in the container, and what is there, which it may only read."""
        found = {}
        for bind in self.host.get("Binds") or []:
            source, place, mode = bind.rsplit(":", 2)
            assert mode == "ro", bind
            found[place] = source
        return found

    def end(self, code: int, said: str = "") -> None:
        self.status, self.exit_code, self.pid, self.written = "exited", code, 0, self.written + said.encode()

    def inspected(self) -> dict[str, Any]:
        running = self.status in ("running", "paused")
        state = {"Status": self.status, "Running": running, "Paused": self.status == "paused", "Pid": self.pid, "ExitCode": self.exit_code}
        config = {key: value for key, value in self.made_of.items() if key not in ("HostConfig", "NetworkingConfig")}
        return {"Id": self.id, "Name": f"/{self.name}", "State": state, "Config": {**config, "Tty": False}, "HostConfig": self.host}


def without_tag(image: str) -> str:
    """Where there is a digest, it alone counts."""
    return re.sub(r":[^@/]+@", "@", image)


def image_id(image: str) -> str:
    return uuid.uuid5(uuid.NAMESPACE_URL, image).hex


class Engine:
    """Start it with `with`; its address is for DOCKER_HOST. What it has is open to look at and to change."""

    def __init__(self) -> None:
        self.boxes: dict[str, Box] = {}
        self.networks: dict[str, dict[str, Any]] = {}
        self.images: dict[str, dict[str, str]] = {}
        """Labels by name."""
        self.calls: list[str] = []
        """What changed something: verb and subject."""
        self.builds: list[dict[str, Any]] = []
        self.removed: list[tuple[str, bool]] = []
        """Containers that were, and whether their data went with them."""
        self.refuses: dict[str, str] = {}
        """Calls that fail, and how."""
        self.runs: Callable[[Box], None] = lambda _box: None
        """What a container does when it starts."""
        self._pids = iter(range(1000, 100000))
        self._lock = threading.RLock()
        engine = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize, disable_nagle_algorithm = -1, True  # Else each answer waits 40 ms for its second half.

            def do(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if self.headers.get("Transfer-Encoding") == "chunked":
                    while size := int(self.rfile.readline(), 16):
                        body += self.rfile.read(size)
                        self.rfile.readline()
                    self.rfile.readline()
                address = urlsplit(self.path)
                query = {name: values[0] for name, values in parse_qs(address.query).items()}
                path = re.sub(r"^/v\d+\.\d+", "", unquote(address.path))
                with engine._lock:
                    status, said = engine._answer(self.command, path, query, body)
                content = said if isinstance(said, bytes) else json.dumps(said).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/octet-stream" if isinstance(said, bytes) else "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_DELETE = do  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True

    @property
    def address(self) -> str:
        return f"tcp://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Engine:
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def box(self, part: str) -> Box:
        """The container of that part; the one that holds the network is called so."""
        (found,) = (box for box in self.boxes.values() if box.part == part)
        return found

    def running(self) -> set[str]:
        return {box.part for box in self.boxes.values() if box.status in ("running", "paused")}

    # ---- the interface -------------------------------------------------------------

    def _answer(self, verb: str, path: str, query: dict[str, str], body: bytes) -> Answer:
        if path == "/version":
            return 200, {"ApiVersion": "1.50", "MinAPIVersion": "1.24", "Version": "28.2.2"}
        of = {"images": self._images, "build": self._build, "networks": self._networks, "containers": self._containers}
        _, kind, *rest = path.split("/", 2)
        return of[kind](verb, "".join(rest), query, body)

    def _called(self, what: str) -> Answer | None:
        self.calls.append(what)
        return (500, {"message": self.refuses[what]}) if what in self.refuses else None

    def _images(self, verb: str, path: str, query: dict[str, str], _body: bytes) -> Answer:
        if verb == "POST" and path == "create":
            name = f"{query['fromImage']}{'@' if query['tag'].startswith('sha256:') else ':'}{query['tag']}"
            if refused := self._called(f"pull {name}"):
                return refused
            self.images[name] = {}
            return 200, b'{"status": "Pull complete"}\r\n'
        asked = without_tag(path.removesuffix("/json"))
        for name, labels in self.images.items():
            if asked == name or image_id(name).startswith(asked):
                return 200, {"Id": f"sha256:{image_id(name)}", "RepoTags": [name], "Config": {"Labels": labels}}
        return 404, {"message": f"No such image: {asked}"}

    def _build(self, _verb: str, _path: str, query: dict[str, str], body: bytes) -> Answer:
        with tarfile.open(fileobj=io.BytesIO(body)) as context:
            files = {one.name: context.extractfile(one).read() for one in context if one.isfile()}  # type: ignore[union-attr]
        self.builds.append({"tag": query["t"], "dockerfile": query["dockerfile"], "files": files})
        lines: list[dict[str, object]] = [{"stream": "Step 1/9 : FROM maven\n"}]
        if self._called(f"build {query['t']}"):
            lines += [{"stream": "[ERROR] no such artefact\n"}, {"error": self.refuses[f"build {query['t']}"]}]
        else:
            self.images[query["t"]] = json.loads(query["labels"])
            lines.append({"stream": f"Successfully built {image_id(query['t'])[:12]}\n"})
        return 200, b"".join(json.dumps(line).encode() + b"\r\n" for line in lines)

    def _networks(self, verb: str, path: str, query: dict[str, str], body: bytes) -> Answer:
        if verb == "POST":
            made = json.loads(body)
            if refused := self._called("create a network"):
                return refused
            made["Id"] = uuid.uuid4().hex
            self.networks[made["Id"]] = made
            return 201, {"Id": made["Id"]}
        if verb == "DELETE":
            if refused := self._called("remove a network"):
                return refused
            name = self.networks[path]["Name"]
            if any(box.status == "running" and box.host["NetworkMode"] == name for box in self.boxes.values()):
                return 403, {"message": f"network {name} has active endpoints"}
            del self.networks[path]
            return 204, b""
        if path:
            return 200, self.networks[path]
        return 200, [one for one in self.networks.values() if self._wanted(one["Labels"], query)]

    def _wanted(self, labels: dict[str, str] | None, query: dict[str, str]) -> bool:
        asked = json.loads(query.get("filters", "{}")).get("label", [])
        return all(one in [f"{name}={value}" for name, value in (labels or {}).items()] for one in asked)

    def _containers(self, verb: str, path: str, query: dict[str, str], body: bytes) -> Answer:
        if path == "create":
            return self._create(query["name"], json.loads(body))
        if path == "json":
            found = [box for box in self.boxes.values() if self._wanted(box.made_of.get("Labels"), query)]
            return 200, [{"Id": box.id, "Names": [f"/{box.name}"]} for box in found if "all" in query or box.status == "running"]
        name, _, what = path.partition("/")
        box = next((box for box in self.boxes.values() if name in (box.id, box.name)), None)
        if box is None:
            return 404, {"message": f"No such container: {name}"}
        if what == "json":
            return 200, box.inspected()
        if what == "logs":
            return 200, struct.pack(">BxxxL", 1, len(box.written)) + box.written if box.written else b""
        if verb == "DELETE":
            return self._remove(box, data=query.get("v") == "True", force=query.get("force") == "True")
        if refused := self._called(f"{what} {box.part}" + (f" {query['signal']}" if "signal" in query else "")):
            return refused
        return getattr(self, f"_{what}")(box, query)  # type: ignore[no-any-return]

    def _create(self, name: str, made_of: dict[str, Any]) -> Answer:
        box = Box(uuid.uuid4().hex, name, made_of)
        if refused := self._called(f"create {box.part}"):
            return refused
        if without_tag(made_of["Image"]) not in self.images:
            return 404, {"message": f"No such image: {made_of['Image']}"}
        if any(one.name == name for one in self.boxes.values()):
            return 409, {"message": f"the name {name} is in use"}
        if box.host.get("NetworkMode", "").startswith("container:") and box.host.get("PortBindings"):
            return 400, {"message": "conflicting options: port publishing and the container type network mode"}
        self.boxes[box.id] = box
        return 201, {"Id": box.id}

    def _remove(self, box: Box, *, data: bool, force: bool) -> Answer:
        if refused := self._called(f"remove {box.part}"):
            return refused
        if box.status == "running" and not force:
            return 409, {"message": "it runs"}
        del self.boxes[box.id]
        self.removed.append((box.part, data))
        return 204, b""

    def _start(self, box: Box, _query: dict[str, str]) -> Answer:
        mode = box.host["NetworkMode"]
        if mode.startswith("container:") and not self._runs(mode.removeprefix("container:")):
            return 409, {"message": f"cannot join network of a non running container: {mode}"}
        if box.status != "running":
            box.status, box.pid = "running", next(self._pids)
            self.runs(box)
        return 204, b""

    def _runs(self, box_id: str) -> bool:
        return box_id in self.boxes and self.boxes[box_id].status == "running"

    def _kill(self, box: Box, query: dict[str, str]) -> Answer:
        if box.status not in ("running", "paused"):
            return 409, {"message": f"container {box.name} is not running"}
        if box.status == "paused":
            return 409, {"message": f"container {box.name} is paused: unpause it before"}
        box.told.append(query["signal"])
        if query["signal"] in ("SIGKILL", "SIGTERM", "SIGINT", "SIGQUIT"):
            box.end(137 if query["signal"] == "SIGKILL" else 0)
        return 204, b""

    def _pause(self, box: Box, _query: dict[str, str]) -> Answer:
        box.status = "paused"
        return 204, b""

    def _unpause(self, box: Box, _query: dict[str, str]) -> Answer:
        box.status = "running"
        return 204, b""
