"""A C-ECHO to a peer: does it answer us under our AE title?"""

from ssl import SSLContext

from pynetdicom import AE

TIMEOUT_SECONDS = 10
_VERIFICATION = "1.2.840.10008.1.1"


def echo(
    own_title: str, peer_title: str, host: str, port: int, tls: SSLContext | None = None
) -> str:
    """Return why the peer does not answer, or "". `tls` secures the connection."""
    ae = AE(ae_title=own_title)
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = TIMEOUT_SECONDS
    ae.connection_timeout = TIMEOUT_SECONDS
    ae.add_requested_context(_VERIFICATION)
    try:
        association = ae.associate(
            host, port, ae_title=peer_title, tls_args=None if tls is None else (tls, host)
        )
    except OSError as error:
        return f"{host}: {error.strerror}"
    if not association.is_established:
        return f"{host}:{port} does not accept an association of {own_title}"
    answer = association.send_c_echo()
    association.release()
    return "" if answer.get("Status") == 0 else "does not answer an echo"
