"""Rules over more than one setting, checked on the raw document so that they are told together
with everything else that is wrong. A value of the wrong type is some other rule's problem."""

import ipaddress
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields
from typing import Any, TypeAlias

from node.config.model import (
    ConsensusConfig,
    GatewayConfig,
    MempoolConfig,
    NetworkConfig,
    RpcConfig,
    RpcLimits,
)
from node.config.toml_lines import KeyPath

Found: TypeAlias = Iterator[tuple[KeyPath, str]]


def is_loopback(host: str) -> bool:
    """Tell whether `host` can only be reached from this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def cross_problems(document: Mapping[str, Any]) -> Found:
    """Yield the place and the sentence of each contradiction between settings."""
    yield from _passphrase(_table(document, "key"))
    yield from _rpc(_table(document, "rpc"))
    yield from _peers(document.get("institution"), _table(document, "network"))
    yield from _ports(document)
    yield from _gateway(_table(document, "gateway"))
    yield from _store(_table(document, "store"))
    yield from _at_most(
        document, ConsensusConfig, ("consensus",), "view_timeout_ms", "view_timeout_ms_max"
    )
    yield from _at_most(
        document,
        MempoolConfig,
        ("mempool",),
        "transactions_per_institution_max",
        "transactions_max",
    )
    yield from _at_most(
        document, RpcLimits, ("rpc", "limits"), "in_flight_per_connection_max", "in_flight_max"
    )


def _passphrase(key: Mapping[str, Any]) -> Found:
    if "passphrase_file" in key and "passphrase_environment" in key:
        yield ("key", "passphrase_environment"), "passphrase_file is set too; keep one of them"


def _rpc(rpc: Mapping[str, Any]) -> Found:
    host = _value(rpc, RpcConfig, "host", str)
    has_certificate, has_key = "tls_certificate_file" in rpc, "tls_key_file" in rpc
    remote = rpc.get("allow_remote") is True
    if host and not is_loopback(host) and not remote:
        yield (
            ("rpc", "host"),
            f'"{host}" is reachable from other machines; use 127.0.0.1, or set allow_remote = true '
            "with tls_certificate_file and tls_key_file",
        )
    if remote and not (has_certificate and has_key):
        yield ("rpc", "allow_remote"), "needs tls_certificate_file and tls_key_file"
    elif has_certificate != has_key:
        name = "tls_certificate_file" if has_certificate else "tls_key_file"
        yield ("rpc", name), "tls_certificate_file and tls_key_file come together"


def _peers(institution: object, network: Mapping[str, Any]) -> Found:
    peers = network.get("peers")
    names: set[str] = set()
    addresses: set[tuple[str, int]] = set()
    for index, peer in enumerate(peers if isinstance(peers, list) else []):
        if not isinstance(peer, dict):
            continue
        name, host, port = peer.get("institution"), peer.get("host"), peer.get("port")
        if isinstance(name, str):
            if name == institution:
                yield ("network", "peers", index, "institution"), f'"{name}" is this node itself'
            elif name in names:
                yield ("network", "peers", index, "institution"), f'"{name}" is listed twice'
            names.add(name)
        if isinstance(host, str) and isinstance(port, int):
            if (host, port) in addresses:
                yield ("network", "peers", index, "port"), f"{host}:{port} is listed twice"
            addresses.add((host, port))


def _ports(document: Mapping[str, Any]) -> Found:
    listen = _value(_table(document, "network"), NetworkConfig, "listen_port", int)
    rpc = _value(_table(document, "rpc"), RpcConfig, "port", int)
    if listen and listen == rpc:
        yield ("rpc", "port"), f"{rpc} is network.listen_port too; each needs its own"


def _gateway(gateway: Mapping[str, Any]) -> Found:
    if not gateway:
        return
    files = [name for name in ("tls_certificate_file", "tls_key_file") if name in gateway]
    if len(files) == 1:
        yield ("gateway", files[0]), "tls_certificate_file and tls_key_file come together"
    host = _value(gateway, GatewayConfig, "listen_host", str)
    if host and not is_loopback(host) and not files and gateway.get("allow_clear") is not True:
        yield (
            ("gateway", "listen_host"),
            f'"{host}" is reachable from other machines; set tls_certificate_file and '
            "tls_key_file, or allow_clear = true where the network itself is trusted",
        )
    yield from _dicom_peers(gateway, has_tls=bool(files))
    apart = gateway.get("apart")
    for index, series in enumerate(apart if isinstance(apart, list) else []):
        if series == {}:
            yield ("gateway", "apart", index), "needs modality or description, or both"
    yield from _audit(_table(gateway, "audit"))


def _audit(audit: Mapping[str, Any]) -> Found:
    place = ("gateway", "audit")
    trusts = [name for name in ("trust_file", "server_certificate_file") if name in audit]
    if "host" in audit:
        for name in ("certificate_file", "key_file"):
            if name not in audit:
                yield (*place, "host"), f"needs {name}: the repository demands a certificate of us"
        if len(trusts) != 1:
            yield (*place, "host"), "needs trust_file or server_certificate_file, one of them"


def _dicom_peers(gateway: Mapping[str, Any], *, has_tls: bool) -> Found:
    peers = gateway.get("peers")
    titles: set[str] = set()
    for index, peer in enumerate(peers if isinstance(peers, list) else []):
        if not isinstance(peer, dict):
            continue
        place = ("gateway", "peers", index)
        title = peer.get("ae_title")
        if isinstance(title, str):
            if title in titles:
                yield (*place, "ae_title"), f'"{title}" is listed twice'
            titles.add(title)
        if ("host" in peer) != ("port" in peer):
            yield (*place, "host" if "host" in peer else "port"), "host and port come together"
        yield from _delivery(peer, place)
        trusted = "certificate_file" in peer or "tls_trust_file" in gateway
        if has_tls and not trusted:
            yield place, "with TLS it needs certificate_file here, or gateway.tls_trust_file"


def _delivery(peer: Mapping[str, Any], place: KeyPath) -> Found:
    url = peer.get("web_url")
    if isinstance(url, str) and not url.startswith(("http://", "https://")):
        yield (*place, "web_url"), f'"{url}" is not the URL of a DICOMweb server'
    if "web_authorization_file" in peer and "web_url" not in peer:
        yield (*place, "web_authorization_file"), "needs web_url"
    if peer.get("takes_fetched") is True and "host" not in peer and "web_url" not in peer:
        yield (*place, "takes_fetched"), "needs host and port, or web_url, to deliver to"


_STORE_KEYS = (
    "master_key_file",
    "master_passphrase_file",
    "master_key_environment",
    "master_passphrase_environment",
)


def _store(store: Mapping[str, Any]) -> Found:
    if not store:
        return
    if ("folder" in store) == ("url" in store):
        yield ("store",), "needs exactly one of folder and url"
    if sum(name in store for name in _STORE_KEYS) != 1:
        yield ("store",), f"needs exactly one of {', '.join(_STORE_KEYS)}"


def _at_most(
    document: Mapping[str, Any], kind: type, path: tuple[str, ...], low: str, high: str
) -> Found:
    table: Mapping[str, Any] = document
    for part in path:
        table = _table(table, part)
    least, most = _value(table, kind, low, int), _value(table, kind, high, int)
    if least is not None and most is not None and least > most:
        yield (*path, low if low in table else high), f"{low} {least} is above {high} {most}"


def _table(document: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    table = document.get(name)
    return table if isinstance(table, dict) else {}


def _value(table: Mapping[str, Any], kind: type, name: str, wanted: type) -> Any:
    """Return the setting or its default; None when it has the wrong type."""
    default = next(f.default for f in fields(kind) if f.name == name)
    value = table.get(name, None if default is MISSING else default)
    return value if isinstance(value, wanted) and not isinstance(value, bool) else None
