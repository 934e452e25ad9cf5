"""Who may knock: the bearer token, the Host header against DNS rebinding, no foreign web pages.

Loopback alone protects little: any page in a browser on the machine can reach it. So every request
needs the token (RFC 6750, in a header only: URLs end up in logs), a Host that this node answers to,
and no Origin but its own. Only health may be asked without the token, and only from loopback.
"""

import hmac
from collections.abc import Mapping
from dataclasses import dataclass

from node.config.checks import is_loopback
from node.config.model import RpcConfig

HEALTH = "/health/"


@dataclass(frozen=True, slots=True)
class Denied:
    """Why a request is turned away."""

    status: int  # HTTP status
    code: str
    sentence: str


class Gate:
    """Decides on headers; holds the token, which is in no repr."""

    def __init__(self, config: RpcConfig, token: str) -> None:
        self._expected = f"Bearer {token}".encode()
        names = {"localhost", "127.0.0.1", "::1", config.host, *config.allowed_hosts}
        self._hosts = frozenset(name.lower() for name in names)

    def denied(
        self, path: str, scheme: str, remote: str | None, headers: Mapping[str, str]
    ) -> Denied | None:
        """Return why the request is turned away; None lets it in."""
        host = headers.get("Host", "")
        if _host_name(host) not in self._hosts:
            sentence = "this node does not answer to that Host; see rpc.allowed_hosts"
            return Denied(403, "host_not_allowed", sentence)
        origin = headers.get("Origin")
        if origin is not None and origin.lower() != f"{scheme}://{host}".lower():
            return Denied(403, "origin_not_allowed", "web pages of other origins may not call")
        if path.startswith(HEALTH) and remote is not None and is_loopback(remote):
            return None
        given = headers.get("Authorization", "").encode("utf-8", "surrogateescape")
        if not hmac.compare_digest(given, self._expected):
            sentence = "needs the header `Authorization: Bearer <token>`; see rpc.token_file"
            return Denied(401, "unauthorized", sentence)
        return None


def _host_name(host: str) -> str:
    """Return the name in a Host header, without port and brackets (RFC 9110 §7.2)."""
    host = host.lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]
