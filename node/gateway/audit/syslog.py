"""A syslog message around an audit message: RFC 5424, framed for TLS by RFC 5425 §4.3.

PS3.15 A.6 and IHE ITI-20: facility 10 (security), MSGID DICOM+RFC3881, XML in UTF-8 with its byte
order mark. The structured data carries `sequenceId` (RFC 5424 §7.3.1), by which a receiver sees
what is missing or came twice; it is the record's number.
"""

import os
import re
import socket

from node.gateway.audit.acts import Outcome
from node.gateway.audit.message import Site, render, time_of
from node.gateway.audit.reader import Line

MESSAGE_BYTES_MAX = 32_768  # what a repository must take (PS3.15 A.6)
APPLICATION = "radledger"
MESSAGE_ID = "DICOM+RFC3881"
_SECURITY = 10
_SEVERITIES = {Outcome.SUCCESS: 5, Outcome.MINOR: 4, Outcome.SERIOUS: 3, Outcome.MAJOR: 2}
_SEQUENCE_MAX = 2_147_483_647
_BYTE_ORDER_MARK = "\ufeff"


def frame(line: Line, site: Site) -> bytes:
    """Return a record as it goes over the connection: octet count, space, message."""
    message = syslog(line, site).encode("utf-8")
    return b"%d %s" % (len(message), message)


def syslog(line: Line, site: Site) -> str:
    """Return a record's syslog message."""
    record = line.record
    priority = _SECURITY * 8 + _SEVERITIES[record.outcome]
    head = f"<{priority}>1 {time_of(record)} {host_name()} {APPLICATION} {os.getpid()} {MESSAGE_ID}"
    sequence = (record.seq - 1) % _SEQUENCE_MAX + 1
    return f'{head} [meta sequenceId="{sequence}"] {_BYTE_ORDER_MARK}{render(line, site)}'


def host_name() -> str:
    """Return this machine's name as RFC 5424 wants it: printable, 255 at most, "-" for none."""
    return re.sub(r"[^!-~]", "", socket.gethostname())[:255] or "-"
