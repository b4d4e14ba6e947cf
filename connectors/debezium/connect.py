"""Kafka Connect's REST API: what a connector is, what would change, and the change itself; every failure with its cure.

Settings that hold secrets are compared, never shown. Every call has a time limit, and the repetitions have one too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import quote

import httpx
import structlog
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_delay, wait_exponential_jitter

from cdc_service.core.errors import CdcError, ConfigError, Disposition, Unavailable
from cdc_service.ports.capture import OTHER_CURE, ConnectorStatus, Failures, TaskStatus
from cdc_service.ports.source import Offsets
from connectors.debezium.failures import failure

ANSWER_SECONDS = 30.0
"""Limit of one call. Validation connects to the source, so it may take a while."""
RETRY_SECONDS = 30.0
"""How long a call is repeated while the worker cannot be reached or rebalances."""
QUIET_SECONDS = 3.0
"""A wait that is longer is said, so that nobody sits before a silent command."""
CONNECTOR_START_SECONDS = 60.0

_SECRET = re.compile(r"passw|secret|token|credential|jaas|private|passphrase|api.?key|access.?key|user\.info|keystore\.key", re.IGNORECASE)
_REFERENCE = re.compile(r"\$\{[^{}:]+:[^{}]+\}")
MASK = "***"


def masked(key: str, value: str | None) -> str | None:
    """``value`` as it may be shown: a reference that Connect resolves is no secret, what else stands under such a key is."""
    return MASK if value is not None and _SECRET.search(key) and not _REFERENCE.fullmatch(value) else value


@dataclass(frozen=True, slots=True)
class Change:
    """One setting that would change; None where it is not there. Secrets are masked."""

    key: str
    before: str | None
    after: str | None


@dataclass(frozen=True, slots=True)
class ConnectorPlan:
    """What ``apply`` would do to one connector. ``config`` holds secrets and is never shown."""

    name: str
    kind: Literal["create", "update", "nothing"]
    changes: tuple[Change, ...]
    config: Mapping[str, str] = field(repr=False)


@dataclass(frozen=True, slots=True)
class FieldProblem:
    """What Connect or the connector says about one setting."""

    key: str
    message: str


@dataclass(frozen=True, slots=True)
class Worker:
    version: str
    cluster_id: str


@dataclass(frozen=True, slots=True)
class Plugin:
    class_name: str
    type: str
    version: str


class _Busy(CdcError):
    """The worker answered that it rebalances (409), or could not be reached."""

    disposition = Disposition.RETRY


class KafkaConnect:
    """A client of one worker's REST API. Methods raise Unavailable when it does not answer within the limits."""

    def __init__(
        self,
        url: str,
        failures: Failures | None = None,
        *,
        answer_seconds: float = ANSWER_SECONDS,
        retry_seconds: float = RETRY_SECONDS,
    ) -> None:
        """``failures`` tells what only the source knows of its connector's."""
        self._address = httpx.URL(url)
        self._failures = failures
        self._answer_seconds = answer_seconds
        self._retry_seconds = retry_seconds
        self._said = False
        base = str(self._address.copy_with(userinfo=b"")).rstrip("/")
        user = self._address.userinfo
        auth = httpx.BasicAuth(self._address.username, self._address.password) if user else None
        self._shown = base
        self._http = httpx.Client(base_url=base, timeout=httpx.Timeout(answer_seconds, connect=5.0), auth=auth)

    def close(self) -> None:
        self._http.close()

    # -- the worker

    def worker(self) -> Worker:
        answer = self._call("GET", "/")
        if not isinstance(answer, dict) or "version" not in answer:
            raise ConfigError(f"{self._shown} is no Kafka Connect worker", hint="connect.url is the worker's REST address")
        return Worker(str(answer["version"]), str(answer.get("kafka_cluster_id", "")))

    def plugins(self) -> tuple[Plugin, ...]:
        found = self._call("GET", "/connector-plugins?connectorsOnly=false")
        return tuple(Plugin(p["class"], p.get("type", ""), p.get("version") or "") for p in found)

    def require_plugin(self, class_name: str) -> Plugin:
        """The plugin, or ConfigError with the list of those that are there."""
        found = self.plugins()
        for plugin in found:
            if plugin.class_name == class_name:
                return plugin
        there = ", ".join(sorted(p.class_name for p in found if p.type == "source")) or "none"
        raise ConfigError(
            f"the worker at {self._shown} has no plugin {class_name}; source connectors there: {there}",
            hint="unpack the connector's plugin archive into a folder of the worker's plugin.path and restart the worker",
            code="plugin_missing",
        )

    def reads_environment(self, class_name: str) -> bool:
        """Whether the worker resolves ``${env:..}``: its validation of a name that no name may be quotes what it saw. PATH is no secret;
        never ask so for one that is, the worker logs it."""
        seen = self._validate({"connector.class": class_name, "name": "cdc_probe", "topic.prefix": "${env:PATH}"})
        return not any("${env:PATH}" in error for entry in seen for error in entry["value"]["errors"])

    # -- one connector

    def config(self, name: str) -> dict[str, str] | None:
        """The configuration as it was sent, or None where there is no such connector. It may hold secrets."""
        found = self._call("GET", f"/connectors/{quote(name, safe='')}/config", missing=None)
        return None if found is None else {str(k): str(v) for k, v in found.items()}

    def plan(self, config: Mapping[str, str], secrets: Collection[str] = ()) -> ConnectorPlan:
        """What ``apply`` would change. ``config`` names the connector in ``name``; ``secrets`` are keys whose values are secret though
        their names do not say so."""
        existing = self.config(config["name"])
        before = existing or {}
        keys = sorted(k for k in {*config, *before} if config.get(k) != before.get(k))
        changes = tuple(_change(k, before.get(k), config.get(k), hidden=k in secrets) for k in keys)
        kind: Literal["create", "update", "nothing"] = "create" if existing is None else "update" if keys else "nothing"
        return ConnectorPlan(config["name"], kind, changes, dict(config))

    def validate(self, config: Mapping[str, str]) -> tuple[FieldProblem, ...]:
        """What the connector itself says about the configuration; it tries to reach the source. Empty when all is well."""
        self.require_plugin(config["connector.class"])
        entries = self._validate(config)
        return tuple(
            FieldProblem(entry["value"]["name"], _scrubbed(message, config)) for entry in entries for message in entry["value"]["errors"]
        )

    def cure(self, problems: Sequence[FieldProblem]) -> str:
        """What to do about problems that a validation found."""
        text = " ".join(p.message for p in problems)
        refused = self._failures is not None and any(self._failures.refuses_login(p.message) for p in problems)
        if refused or re.search(r"authentication|password", text, re.IGNORECASE):
            return (
                "the worker could not log in to the source: with connect.secrets env, the variable must be set where the worker runs and"
                " its configuration hold config.providers=env,file (cdc check says which)"
            )
        if re.search(r"refused|unknown ?host|timed? ?out|connection attempt failed", text, re.IGNORECASE):
            return "the worker could not reach the source: source.connect_host and connect_port say where it is as the worker sees it"
        return "change these settings in connect.options or source"

    def require_valid(self, config: Mapping[str, str]) -> None:
        """Raises ConfigError, by field and with the cure, where ``validate`` finds problems."""
        problems = self.validate(config)
        if problems:
            lines = "; ".join(f"{p.key}: {p.message}" for p in problems)
            message = f"Kafka Connect refuses the configuration of {config['name']}: {lines}"
            raise ConfigError(message, hint=self.cure(problems), code="connector_invalid")

    def apply(self, plan: ConnectorPlan) -> None:
        """Creates the connector, stopped, or updates it in the state that it is in. Safe to call again."""
        if plan.kind == "nothing":
            return
        if plan.kind == "create":
            # It starts stopped, so that offsets left by a deleted connector of this name can be seen before they count.
            self._call(
                "POST", "/connectors", body={"name": plan.name, "config": dict(plan.config), "initial_state": "STOPPED"}, exists=True
            )
        else:
            self._call("PUT", f"/connectors/{quote(plan.name, safe='')}/config", body=dict(plan.config))

    def status(self, name: str) -> ConnectorStatus | None:
        found = self._call("GET", f"/connectors/{quote(name, safe='')}/status", missing=None)
        if found is None:
            return None
        connector = found["connector"]
        tasks = tuple(TaskStatus(t["id"], t["state"], t.get("worker_id", "")) for t in found["tasks"])
        failures = tuple(f for part in (connector, *found["tasks"]) if (f := failure(part.get("trace"), self._failures)) is not None)
        problem = failures[0].message if failures else ""
        return ConnectorStatus(name, connector["state"], connector.get("worker_id", ""), problem, tasks, failures)

    def offsets(self, name: str) -> Offsets:
        """(partition, offset) pairs that Connect keeps for the connector; empty before the first flush."""
        found = self._call("GET", f"/connectors/{quote(name, safe='')}/offsets", missing={"offsets": []})
        return [(entry["partition"], entry["offset"]) for entry in found["offsets"]]

    def forget_offsets(self, name: str) -> None:
        """Drops the connector's offsets: it will begin with a snapshot. The connector must be stopped."""
        self._call("DELETE", f"/connectors/{quote(name, safe='')}/offsets", missing=None)

    def change_offsets(self, name: str, offsets: Offsets) -> None:
        """Sets the offsets of these partitions. The connector must be stopped."""
        changed = [{"partition": dict(partition), "offset": offset and dict(offset)} for partition, offset in offsets]
        self._call("PATCH", f"/connectors/{quote(name, safe='')}/offsets", body={"offsets": changed})

    def pause(self, name: str) -> None:
        self._call("PUT", f"/connectors/{quote(name, safe='')}/pause")

    def stop(self, name: str) -> None:
        """Ends the tasks and keeps the configuration; waits until no task is left."""
        self._call("PUT", f"/connectors/{quote(name, safe='')}/stop")
        self._await(name, lambda s: s is not None and s.state == "STOPPED" and not s.tasks, "stop")

    def resume(self, name: str) -> None:
        self._call("PUT", f"/connectors/{quote(name, safe='')}/resume")

    def restart(self, name: str) -> None:
        """Restarts the connector and its tasks, whatever state they are in."""
        self._call("POST", f"/connectors/{quote(name, safe='')}/restart?includeTasks=true&onlyFailed=false")

    def delete(self, name: str) -> None:
        """Deletes the connector; Connect keeps its offsets (``forget_offsets`` first). No error where it is gone already."""
        self._call("DELETE", f"/connectors/{quote(name, safe='')}", missing=None)
        self._await(name, lambda s: s is None, "go")

    def await_running(self, name: str, seconds: float = CONNECTOR_START_SECONDS) -> ConnectorStatus:
        """Waits until the connector and all of its tasks run. Raises CdcError with the cause as soon as one fails."""

        def settled(status: ConnectorStatus | None) -> bool:
            return status is not None and (status.running or status.overall == "FAILED")

        status = self._await(name, settled, "run", seconds)
        if status is None or not status.running:
            causes, cure = ("; ".join(status.problems), status.cure) if status is not None else ("", OTHER_CURE)
            raise CdcError(f"connector {name} failed: {causes}", hint=cure, code="connector_failed")
        return status

    def _await(
        self, name: str, done: Callable[[ConnectorStatus | None], bool], what: str, seconds: float = CONNECTOR_START_SECONDS
    ) -> ConnectorStatus | None:
        waiting = Retrying(
            retry=retry_if_exception_type(_Busy),
            stop=stop_after_delay(seconds),
            wait=wait_exponential_jitter(multiplier=0.05, max=0.5, jitter=0.05),
            reraise=True,
        )

        def once() -> ConnectorStatus | None:
            status = self.status(name)
            if not done(status):
                state = "not there" if status is None else f"{status.overall}, {len(status.tasks)} tasks"
                raise _Busy(f"connector {name} does not {what} within {seconds:.0f} s (it is {state})", hint="see the worker's log")
            return status

        try:
            return waiting(once)
        except _Busy as error:
            raise Unavailable(error.message, hint=error.hint, code="connector_slow") from None

    # -- HTTP

    def _validate(self, config: Mapping[str, str]) -> list[dict[str, Any]]:
        class_name = config["connector.class"]
        found = self._call("PUT", f"/connector-plugins/{quote(class_name, safe='')}/config/validate", body=dict(config))
        return list(found["configs"])

    def _call(self, method: str, path: str, *, body: object = None, missing: Any = ..., exists: bool = False) -> Any:
        """The answer's JSON (None for an empty one). ``missing`` is returned for 404, ``exists`` lets 409 pass where it says so."""
        retrying = Retrying(
            retry=retry_if_exception_type(_Busy),
            stop=stop_after_delay(self._retry_seconds),
            wait=wait_exponential_jitter(multiplier=0.2, max=3.0, jitter=0.2),
            before_sleep=self._waits,
            reraise=True,
        )
        try:
            return retrying(self._once, method, path, body, missing, exists)
        except _Busy as error:
            raise Unavailable(error.message, hint=error.hint, code=error.code) from None

    def _waits(self, call: RetryCallState) -> None:
        error = call.outcome.exception() if call.outcome else None
        if isinstance(error, CdcError) and not self._said and (call.seconds_since_start or 0) > QUIET_SECONDS:
            self._said = True
            structlog.get_logger().warning("waiting", why=error.message, for_seconds=f"{self._retry_seconds:.0f} at most")

    def _once(self, method: str, path: str, body: object, missing: Any, exists: bool) -> Any:
        hint = f"is Kafka Connect running at {self._shown}? connect.url says where it is"
        try:
            answer = self._http.request(method, path, json=body)
        except httpx.TimeoutException:
            raise Unavailable(
                f"Kafka Connect at {self._shown} did not answer within {self._answer_seconds:g} s",
                hint="see the worker's log; without Kafka it answers nothing",
            ) from None
        except httpx.TransportError as error:
            raise _Busy(f"Kafka Connect cannot be reached at {self._shown}: {error}", hint=hint, code="connect_unreachable") from None
        if answer.is_success:
            return answer.json() if answer.content else None
        said = _message(answer)
        if answer.status_code == 404 and missing is not ...:
            return missing
        if answer.status_code == 409 and exists and "already exists" in said:
            return None
        if answer.status_code in {409, 503} or (answer.status_code == 500 and ("rebalance" in said or "timed out" in said)):
            raise _Busy(
                f"Kafka Connect at {self._shown} is busy: {said}", hint="its workers rebalance; try again shortly", code="connect_busy"
            )
        if answer.status_code in {401, 403}:
            raise ConfigError(f"Kafka Connect at {self._shown} refused the login", hint="put user and password into connect.url")
        if answer.status_code == 400:
            raise ConfigError(f"Kafka Connect refuses: {said}", hint="see connect.options", code="connector_invalid")
        raise CdcError(f"Kafka Connect answered {answer.status_code}: {said}", hint="see the worker's log", code="connect_error")


def _change(key: str, before: str | None, after: str | None, *, hidden: bool) -> Change:
    if hidden:
        return Change(key, MASK if before is not None else None, MASK if after is not None else None)
    return Change(key, masked(key, before), masked(key, after))


def _message(answer: httpx.Response) -> str:
    try:
        body = answer.json()
    except json.JSONDecodeError:
        return str(answer.reason_phrase)
    text = body.get("message") if isinstance(body, dict) else None
    return str(text or answer.reason_phrase).splitlines()[0][:500]


def _scrubbed(message: str, config: Mapping[str, str]) -> str:
    for key, value in config.items():
        if value and masked(key, value) == MASK:
            message = message.replace(value, MASK)
    return message
