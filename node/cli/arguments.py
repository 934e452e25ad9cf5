"""What commands are given, read with a sentence for what is wrong."""

from collections.abc import Callable, Set
from pathlib import Path
from typing import Annotated

import typer

from node import provision
from node.ledger.contracts.vocabulary import PURPOSES
from node.ledger.genesis import ROLES
from node.rpc.service import Wait

ConfigFile = Annotated[
    Path,
    typer.Option("--config", "-c", envvar="RADLEDGER_CONFIG", help="The node's TOML file."),
]
DEFAULT_CONFIG = Path(provision.CONFIG)

WaitOption = Annotated[
    Wait,
    typer.Option(
        "--wait",
        help="Return once the node has accepted it, it is final, or a quorum has sealed its block.",
    ),
]
Timeout = Annotated[
    float | None,
    typer.Option(
        "--timeout", min=0.001, help="Seconds to wait; the node's own limit if not given."
    ),
]


def _digits(size: int, what: str) -> Callable[[str], bytes]:
    def read(text: str) -> bytes:
        try:
            value = bytes.fromhex(text) if len(text) == 2 * size else b""
        except ValueError:
            value = b""
        if len(value) != size:
            raise typer.BadParameter(f"{what} is {2 * size} hexadecimal digits")
        return value

    return read


read_study_id = _digits(16, "a study id")
read_subject_id = _digits(16, "a subject id")
read_consent_id = _digits(16, "a consent id")
read_request_id = _digits(16, "a request id")
read_proposal_id = _digits(16, "a proposal id")
read_key_id = _digits(16, "a key id")
read_transaction_id = _digits(32, "a transaction id")
read_public_key = _digits(32, "a public key")
read_digest = _digits(32, "a digest")


def words_of(words: Set[str], what: str) -> Callable[[str], str]:
    """Return a reader of one of `words`; a wrong one is answered with all that there are."""

    def read(text: str) -> str:
        if text not in words:
            raise typer.BadParameter(f"{what} is one of {', '.join(sorted(words))}")
        return text

    return read


read_purpose = words_of(PURPOSES, "a purpose (HL7 PurposeOfUse)")
read_role = words_of(ROLES, "a role")

Purpose = Annotated[
    str,
    typer.Option(
        "--purpose",
        parser=read_purpose,
        metavar="WORD",
        help="What for, an HL7 PurposeOfUse: TREAT, ETREAT, HRESCH, ...",
        autocompletion=lambda: sorted(PURPOSES),
    ),
]
Cursor = Annotated[
    str | None, typer.Option(help="Where the page before said that the next begins.")
]


def read_address(text: str) -> tuple[str, int]:
    """Return host and port of "host:port" or "[IPv6 address]:port"."""
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise typer.BadParameter(f"{text!r}: an IPv6 address stands in brackets, [::1]:7610")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65_535:
        raise typer.BadParameter(f"{text!r} is not host:port")
    return host, int(port)


def read_peer(text: str) -> tuple[str, str, int]:
    """Return institution, host and port of "institution=host:port"."""
    institution, equals, address = text.partition("=")
    if not equals or not institution:
        raise typer.BadParameter(f"{text!r} is not institution=host:port")
    return (institution, *read_address(address))
