"""A client of a schema registry with Confluent's interface: the one question that decoding asks, what schema a number stands for.

Of an answer nothing but the schema is kept, and nobody is told of credentials. A call has a time limit and is not repeated here: whoever
asked waits, and asks again. (confluent_kafka's own client would bring a second way of logging in and four packages for this one GET.)
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote

import httpx

from cdc_service.core.errors import ConfigError, Unavailable
from cdc_service.ports.events import Unsupported

ANSWER_SECONDS = 3.0
QUIET_SECONDS = 1.0
QUIET_SHARE = 10
"""After a failure nobody asks again for so long, or for so many times as long as the failure took: the tables that need no new schema go on
meanwhile, and a registry that does not even say no holds them up for a tenth of the time at most."""
REFERENCES_MAX = 200
OPTIONS = {
    "basic.auth.user.info",
    "bearer.auth.token",
    "ssl.ca.location",
    "ssl.certificate.location",
    "ssl.key.location",
    "ssl.key.password",
}
"""What may be set, under the names of Confluent's clients."""


class SchemaRegistry:
    """``url`` may hold user and password. Raises ConfigError for options that are not known or do not fit."""

    def __init__(self, url: str, options: Mapping[str, str] | None = None, monotonic: Callable[[], float] = time.monotonic) -> None:
        given = dict(options or {})
        if unknown := sorted(set(given) - OPTIONS):
            raise ConfigError(f"schema_registry.options: {', '.join(unknown)} is not known", hint=f"there are {', '.join(sorted(OPTIONS))}")
        address = httpx.URL(url)
        user = given.get("basic.auth.user.info")
        auth = httpx.BasicAuth(*user.partition(":")[::2]) if user else None
        if address.userinfo:
            auth = httpx.BasicAuth(address.username, address.password)
        token = given.get("bearer.auth.token")
        self.shown = str(address.copy_with(userinfo=b"", query=None)).rstrip("/")
        self._http = httpx.Client(
            auth=auth,
            headers={"Accept": "application/vnd.schemaregistry.v1+json", **({"Authorization": f"Bearer {token}"} if token else {})},
            timeout=httpx.Timeout(ANSWER_SECONDS, connect=2.0),
            verify=_tls(given) if address.scheme == "https" else True,
        )
        self._monotonic = monotonic
        self._failed: tuple[float, Unavailable] | None = None

    def close(self) -> None:
        self._http.close()

    def probe(self) -> None:
        """Raises Unavailable or ConfigError where this is no registry that answers."""
        self._get("/subjects")

    def schema(self, number: int) -> tuple[str, tuple[str, ...]] | None:
        """As connectors.formats.avro.Registry says."""
        found = self._get(f"/schemas/ids/{number}")
        if found is None:
            return None
        if found.get("schemaType", "AVRO") != "AVRO" or not isinstance(found.get("schema"), str):
            raise Unsupported(f"it is a schema of {str(found.get('schemaType'))[:20]}, not of Avro")
        referred: dict[tuple[str, int], str] = {}
        self._refer(found, referred, 0)
        return found["schema"], tuple(referred.values())

    def _refer(self, document: Mapping[str, Any], referred: dict[tuple[str, int], str], depth: int) -> None:
        """Adds the schemas that ``document`` refers to, each behind those that it refers to itself."""
        for one in document.get("references") or []:
            subject, version = str(one["subject"]), int(one["version"])
            if (subject, version) in referred:
                continue
            if len(referred) >= REFERENCES_MAX or depth > 20:
                raise Unsupported("it refers to too many others")
            found = self._get(f"/subjects/{quote(subject, safe='')}/versions/{version}")
            if found is None:
                raise Unsupported(f"it refers to version {version} of {subject}, which the registry does not have")
            self._refer(found, referred, depth + 1)
            referred[subject, version] = str(found["schema"])

    def _get(self, path: str) -> Any:
        """The answer; None where the registry says that there is no such thing."""
        began = self._monotonic()
        if self._failed is not None and began < self._failed[0]:
            raise self._failed[1]
        try:
            found = self._ask(path)
        except Unavailable as error:
            now = self._monotonic()
            self._failed = now + max(QUIET_SECONDS, QUIET_SHARE * (now - began)), error
            raise
        self._failed = None
        return found

    def _ask(self, path: str) -> Any:
        hint = f"is a registry with Confluent's interface running at {self.shown}? schema_registry.url says where it is"
        try:
            answer = self._http.get(self.shown + path)
        except httpx.TimeoutException:
            raise Unavailable(f"the schema registry at {self.shown} took longer than the limit", hint=hint, code="registry_away") from None
        except httpx.TransportError as error:
            reason = type(error).__name__
            raise Unavailable(f"the schema registry cannot be reached at {self.shown}: {reason}", hint=hint, code="registry_away") from None
        if answer.status_code in (401, 403):
            message = f"the schema registry at {self.shown} refused the login"
            raise Unavailable(message, hint="put user and password into schema_registry.url, or see its options", code="registry_login")
        try:
            body = answer.json()
        except ValueError:
            body = None
        if answer.status_code == 404 and isinstance(body, dict) and body.get("error_code") in (404, 40401, 40402, 40403):
            return None
        if not answer.is_success or body is None:
            message = f"the schema registry at {self.shown} answered {answer.status_code}"
            raise Unavailable(message, hint=hint, code="registry_error")
        return body


def _tls(options: Mapping[str, str]) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=options.get("ssl.ca.location"))
        if "ssl.certificate.location" in options:
            key, password = options.get("ssl.key.location"), options.get("ssl.key.password")
            context.load_cert_chain(options["ssl.certificate.location"], key, password)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"schema_registry.options: the certificates cannot be used: {type(error).__name__}") from None
    return context
