"""The PACS of this hospital that images are delivered to, as the config describes them."""

import ssl
from collections.abc import Callable, Mapping
from pathlib import Path

from node.config.model import DicomPeer, GatewayConfig
from node.gateway.deliver import Deliverer, Given
from node.gateway.deliveries import Deliveries
from node.gateway.dialing import Dialer, Peer
from node.gateway.holdings import Holdings
from node.gateway.pacs import DimsePacs
from node.gateway.spool import Read, Spool
from node.gateway.tls import client_context
from node.gateway.ways import Way
from node.gateway.webpacs import WebPacs
from node.imaging.reader import read_instance
from node.keys import KeyFileError, read_private_file

FILE, FOLDER = "deliveries.db", "delivering"


class WayUnusable(Exception):
    """A file that the way to a PACS needs cannot be used; the text says which and why."""


def ways_of(config: GatewayConfig, dialer: Dialer | None = None) -> dict[str, list[Way]]:
    """Return the ways to each peer that can be delivered to, by AE title: C-STORE before STOW-RS.

    Reads certificates and tokens. Raises `WayUnusable`.
    """
    found: dict[str, list[Way]] = {}
    for peer in config.peers:
        ways: list[Way] = []
        try:
            if peer.host is not None and peer.port is not None:
                tls = dimse_context(config, peer)
                address = Peer(peer.ae_title, peer.host, peer.port)
                ways.append(DimsePacs(address, config.ae_title, tls, dialer))
            if peer.web_url is not None:
                ways.append(web_way(config, peer))
        except (OSError, ValueError, KeyFileError) as error:
            raise WayUnusable(f"peer {peer.ae_title}: {error}") from error
        if ways:
            found[peer.ae_title] = ways
    return found


def dimse_context(config: GatewayConfig, peer: DicomPeer) -> ssl.SSLContext | None:
    """Return what secures our associations to `peer`, None where the gateway has no TLS.

    Raises `OSError`, `ValueError`.
    """
    certificate, key = config.tls_certificate_file, config.tls_key_file
    if certificate is None or key is None:
        return None
    return client_context(_trust(config, peer), certificate, key)


def web_way(config: GatewayConfig, peer: DicomPeer) -> WebPacs:
    """Return the DICOMweb server of `peer`, which has a `web_url`.

    With a certificate of its own in the config the server is known by that, else by its name.
    Raises `OSError`, `ValueError`, `KeyFileError`.
    """
    url = peer.web_url or ""
    headers = {}
    if peer.web_authorization_file is not None:
        secret = read_private_file(peer.web_authorization_file)
        headers["Authorization"] = secret.strip().decode("ascii")
    if not url.startswith("https:"):
        return WebPacs(url, headers)
    files = config.tls_certificate_file, config.tls_key_file
    if peer.certificate_file is not None:
        return WebPacs(url, headers, client_context(_trust(config, peer), *files))
    context = ssl.create_default_context()
    if config.tls_trust_file is not None:
        context.load_verify_locations(config.tls_trust_file)
    if files[0] is not None:
        context.load_cert_chain(files[0], files[1])
    return WebPacs(url, headers, context)


def open_deliveries(spool: Spool) -> Deliveries:
    """Open the file of deliveries beside the spool, sealed with its key.

    Raises `DeliveriesUnusable`.
    """
    return Deliveries(spool.folder / FILE, spool)


def deliverer(
    deliveries: Deliveries,
    spool: Spool,
    holdings: Holdings,
    ways: Mapping[str, list[Way]],
    audit: Callable[[Given], None] = lambda given: None,
    as_of: Callable[[], int | None] | None = None,
    may_begin: Callable[[Given], bool] = lambda given: True,
    read: Read = read_instance,
) -> Deliverer:
    """Return what delivers to `ways`. `as_of`, `may_begin` and `read` are those of `Deliverer`."""
    return Deliverer(
        deliveries,
        holdings,
        ways,
        spool.folder / FOLDER,
        audit=audit,
        as_of=as_of,
        may_begin=may_begin,
        read=read,
    )


def _trust(config: GatewayConfig, peer: DicomPeer) -> str:
    """Return the PEM text of whom `peer` may be: its certificate alone, where that is named."""
    file: Path | None = peer.certificate_file or config.tls_trust_file
    return "" if file is None else file.read_text("ascii")
