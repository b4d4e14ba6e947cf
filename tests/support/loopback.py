"""HTTP to a server on this machine, as tests ask one."""

from __future__ import annotations

import ssl
from collections.abc import Mapping

import httpx


def client(url: str, headers: Mapping[str, str] | Mapping[bytes, bytes] | None = None, *, timeout: float = 30.0) -> httpx.Client:
    """Without a proxy, and without the certificates that this machine trusts: reading them takes longer than most such tests."""
    return httpx.Client(base_url=url, headers=headers, timeout=timeout, trust_env=False, verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))


def get(url: str, headers: Mapping[str, str] | None = None) -> httpx.Response:
    with client(url, headers) as asking:
        return asking.get(url)
