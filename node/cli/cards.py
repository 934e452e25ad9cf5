"""The public files by which a new key, or a whole new institution, asks to be let in.

A private key never leaves the machine it was made on. What travels is its public half with a
signature over chain and institution, which proves that the sender holds it:

    member card     a person's key, for an administrator of the institution (`member add`)
    application     an institution's node and administrator, for the consortium (`gov propose`)
"""

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node import keys
from node.cli.failures import USAGE, Failure
from node.ledger.contracts.possession import possession_message
from node.provision import CARD_BYTES_MAX, Card

VERSION = 1
CARD_SUFFIX = ".card.json"
APPLICATION = "application.json"

_Form = TypeVar("_Form", "MemberCard", "Application")


@dataclass(frozen=True, slots=True)
class MemberCard:
    """A key that wants to be a member."""

    chain_id: bytes  # 32 bytes
    institution: str
    public_key: bytes  # 32 bytes
    possession: bytes  # 64 bytes, by that key

    @staticmethod
    def make(private: Ed25519PrivateKey, chain_id: bytes, institution: str) -> "MemberCard":
        """Return the card of a key."""
        public_key = keys.public_bytes(private)
        return MemberCard(
            chain_id, institution, public_key, _possession(private, chain_id, institution)
        )

    def save(self, path: Path) -> None:
        """Write the card as JSON; a file that is there is kept. Raises `Failure`."""
        _save(path, "member", self)

    @staticmethod
    def load(path: Path) -> "MemberCard":
        """Read a card. Raises `Failure`."""
        return _load(path, "member", MemberCard)


@dataclass(frozen=True, slots=True)
class Application:
    """An institution that wants to take part, or to bring a new node."""

    chain_id: bytes
    institution: str
    display_name: str
    country: str
    admin_key: bytes  # 32 bytes; the first administrator, who adds the other members
    admin_possession: bytes  # 64 bytes, by that key
    node_key: bytes  # 32 bytes
    node_possession: bytes  # 64 bytes, by that key
    certificate: bytes  # DER, of the node

    @staticmethod
    def make(
        card: Card,
        chain_id: bytes,
        node: Ed25519PrivateKey,
        gateway: Ed25519PrivateKey,
    ) -> "Application":
        """Return the application of an institution whose keys `radledger keygen` made."""
        name = card.institution
        return Application(
            chain_id,
            name,
            card.display_name,
            card.country,
            keys.public_bytes(gateway),
            _possession(gateway, chain_id, name),
            keys.public_bytes(node),
            _possession(node, chain_id, name),
            card.certificate,
        )

    def save(self, path: Path) -> None:
        """Write the application as JSON; a file that is there is kept. Raises `Failure`."""
        _save(path, "application", self)

    @staticmethod
    def load(path: Path) -> "Application":
        """Read an application. Raises `Failure`."""
        return _load(path, "application", Application)


def require_chain(form: MemberCard | Application, chain_id: bytes, path: Path) -> None:
    """Raise `Failure` for a file that was made for another chain, before a node refuses it."""
    if form.chain_id != chain_id:
        raise Failure(
            USAGE, f"{path} was made for another chain: make it anew with this chain's genesis"
        )


def _possession(private: Ed25519PrivateKey, chain_id: bytes, institution: str) -> bytes:
    return private.sign(possession_message(chain_id, institution, keys.public_bytes(private)))


def _save(path: Path, kind: str, form: MemberCard | Application) -> None:
    value: dict[str, object] = {"version": VERSION, "kind": kind}
    for field in fields(form):
        entry = getattr(form, field.name)
        if field.name == "certificate":
            entry = base64.b64encode(entry).decode()
        value[field.name] = entry.hex() if isinstance(entry, bytes) else entry
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(json.dumps(value, indent=2) + "\n")
    except FileExistsError as error:
        raise Failure(USAGE, f"{path} exists and is never overwritten") from error


def _load(path: Path, kind: str, form: type[_Form]) -> _Form:
    with path.open("rb") as file:
        content = file.read(CARD_BYTES_MAX + 1)
    try:
        value = json.loads(content) if len(content) <= CARD_BYTES_MAX else None
        if not isinstance(value, dict) or (value.get("version"), value.get("kind")) != (
            VERSION,
            kind,
        ):
            raise ValueError
        return form(*(_entry(value, field.name, field.type) for field in fields(form)))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        made_by = "member keygen" if kind == "member" else "gov application"
        raise Failure(
            USAGE, f"{path} is not what `radledger {made_by}` writes, or it is damaged"
        ) from error


def _entry(value: Mapping[str, Any], name: str, kind: object) -> Any:
    entry = value[name]
    if not isinstance(entry, str):
        raise TypeError(name)
    if name == "certificate":
        return base64.b64decode(entry, validate=True)
    return bytes.fromhex(entry) if kind is bytes else entry
