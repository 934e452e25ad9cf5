"""Who may knock: a bearer token or a client's certificate, the Host header, known web pages only.

As at the RPC: loopback alone protects little, since any page in a browser on the machine reaches
it. A viewer in a browser is let in by its origin, and still needs the token.
"""

import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto

from node.config.model import WebConfig
from node.gateway.web.errors import Problem

ALLOWED_HEADERS = "Accept, Authorization, Content-Type"
ALLOWED_METHODS = "GET, HEAD, POST, OPTIONS"


class Role(Enum):
    """What a client may do."""

    LOCAL = auto()  # all: store, search, retrieve
    OUTSIDE = auto()  # search, without anything of the patient


@dataclass(frozen=True, slots=True)
class Tokens:
    """The bearer tokens; in no repr."""

    local: str
    outside: str | None = None

    def __repr__(self) -> str:
        return "Tokens(...)"


class Gate:
    """Decides on headers."""

    def __init__(self, config: WebConfig, tokens: Tokens) -> None:
        self._local = f"Bearer {tokens.local}".encode()
        self._outside = None if tokens.outside is None else f"Bearer {tokens.outside}".encode()
        names = {"localhost", "127.0.0.1", "::1", config.host, *config.allowed_hosts}
        self._hosts = frozenset(name.lower() for name in names)
        self._origins = frozenset(origin.lower() for origin in config.allowed_origins)

    def check_host(self, headers: Mapping[str, str]) -> None:
        """Raise `Problem` 403 for a Host that this server does not answer to (DNS rebinding)."""
        if host_name(headers.get("Host", "")) not in self._hosts:
            sentence = "this gateway does not answer to that Host; see gateway.web.allowed_hosts"
            raise Problem(403, "host_not_allowed", sentence)

    def origin(self, scheme: str, headers: Mapping[str, str]) -> str | None:
        """Return the origin of the web page that asks, None without one; raises `Problem` 403."""
        origin = headers.get("Origin")
        if origin is None or origin.lower() == f"{scheme}://{headers.get('Host', '')}".lower():
            return None
        if origin.lower() not in self._origins:
            sentence = "web pages of that origin may not call; see gateway.web.allowed_origins"
            raise Problem(403, "origin_not_allowed", sentence)
        return origin

    def role(self, headers: Mapping[str, str], has_certificate: bool) -> Role:
        """Return what the client may do; raises `Problem` 401.

        `has_certificate` says that TLS has verified a client certificate of the configured
        authority, which stands for the token.
        """
        given = headers.get("Authorization", "").encode("utf-8", "surrogateescape")
        is_local = hmac.compare_digest(given, self._local)
        if self._outside is not None and hmac.compare_digest(given, self._outside):
            return Role.OUTSIDE
        if is_local or (has_certificate and not given):
            return Role.LOCAL
        sentence = "needs the header `Authorization: Bearer <token>`; see gateway.web.token_file"
        raise Problem(401, "unauthorized", sentence)


def host_name(host: str) -> str:
    """Return the name in a Host header, without port and brackets (RFC 9110 §7.2)."""
    host = host.lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]
