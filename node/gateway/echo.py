"""A C-ECHO to a peer: does it answer us under our AE title?"""

from ssl import SSLContext

from pynetdicom import AE, build_context

from node.gateway.dialing import Dialer, NotReached, Peer

TIMEOUT_SECONDS = 10
_VERIFICATION = "1.2.840.10008.1.1"


def echo(own_title: str, peer: Peer, tls: SSLContext | None = None) -> str:
    """Return why the peer, which has host and port, does not answer, or "".

    `tls` secures the connection.
    """
    ae = AE(ae_title=own_title)
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = TIMEOUT_SECONDS
    ae.connection_timeout = TIMEOUT_SECONDS
    secure = None if tls is None else lambda: tls
    try:
        association = Dialer().dial(ae, peer, [build_context(_VERIFICATION)], secure)
        answer = association.send_c_echo()
        association.release()
    except NotReached as error:
        return str(error)
    except (RuntimeError, ValueError):  # the association has ended, or is for something else
        return "does not answer an echo"
    return "" if answer.get("Status") == 0 else "does not answer an echo"
