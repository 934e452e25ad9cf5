"""What an institution makes to take part: keys, its public card, the genesis, the config.

folder/
  node.key.pem        votes, seals and pins TLS; encrypted
  gateway.key.pem     signs the institution's transactions; encrypted
  passphrase          opens both, 0600; move it to a secret store and name another source instead
  institution.json    the public card: goes to whoever assembles the genesis
  node.toml, rpc.token, data/
"""

import base64
import json
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node import keys
from node.config import (
    KeyConfig,
    NetworkConfig,
    NodeConfig,
    PeerAddress,
    RpcConfig,
    load_config,
    parse_config,
    render_config,
)
from node.ledger.contracts.vocabulary import COUNTRIES, COUNTRY_NOT_STATED
from node.ledger.genesis import (
    DISPLAY_NAME_MAX,
    Genesis,
    Institution,
    Member,
    NodeIdentity,
    is_display_name,
)
from node.ledger.transaction import INSTITUTION
from node.network.tls import make_certificate

NODE_KEY = "node.key.pem"
GATEWAY_KEY = "gateway.key.pem"
PASSPHRASE = "passphrase"  # noqa: S105 - a file's name
CARD = "institution.json"
CONFIG = "node.toml"
TOKEN = "rpc.token"  # noqa: S105 - a file's name
GENESIS = "genesis.json"
CARD_VERSION = 1
CARD_BYTES_MAX = 1024 * 1024


class InvalidCard(ValueError):
    """An institution's public card cannot be made or used; the text says which and why."""


@dataclass(frozen=True, slots=True)
class Card:
    """The public half of what `create_identity` made."""

    institution: str
    display_name: str
    node_key: bytes  # 32 bytes
    certificate: bytes  # DER
    members: tuple[Member, ...]
    observer: bool = False
    country: str = COUNTRY_NOT_STATED  # ISO 3166-1 alpha-2

    def save(self, path: Path) -> None:
        """Write the card as JSON."""
        value = {
            "version": CARD_VERSION,
            "institution": self.institution,
            "display_name": self.display_name,
            "country": self.country,
            "observer": self.observer,
            "node_key": self.node_key.hex(),
            "certificate": base64.b64encode(self.certificate).decode(),
            "members": [{"public_key": m.public_key.hex(), "roles": m.roles} for m in self.members],
        }
        path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")

    @staticmethod
    def load(path: Path) -> "Card":
        """Read a card. Raises `InvalidCard`; whether its keys are sound, the genesis checks."""
        try:
            with path.open("rb") as file:
                content = file.read(CARD_BYTES_MAX + 1)
            if len(content) > CARD_BYTES_MAX:
                raise InvalidCard(f"{path}: more than {CARD_BYTES_MAX} bytes: not a card")
            return _card(path, json.loads(content))
        except OSError as error:
            raise InvalidCard(f"{path}: {error.strerror}") from error
        except InvalidCard:
            raise
        except KeyError as error:
            raise InvalidCard(f"{path}: not an institution's card: {error} is missing") from error
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise InvalidCard(f"{path}: not an institution's card ({error})") from error


def _card(path: Path, value: Any) -> Card:
    if value["version"] != CARD_VERSION:
        raise InvalidCard(
            f"{path}: card version {value['version']!r}; this program knows {CARD_VERSION}"
        )
    country = value.get("country", COUNTRY_NOT_STATED)  # cards of earlier releases state none
    named = {"institution": value["institution"], "display_name": value["display_name"]}
    for name, text in (named | {"country": country}).items():
        if not isinstance(text, str):
            raise InvalidCard(f"{path}: {name} must be text")
    members = tuple(
        Member(bytes.fromhex(m["public_key"]), tuple(sorted(m["roles"]))) for m in value["members"]
    )
    return Card(
        value["institution"],
        value["display_name"],
        bytes.fromhex(value["node_key"]),
        base64.b64decode(value["certificate"], validate=True),
        members,
        value.get("observer") is True,
        country,
    )


def create_identity(
    folder: Path,
    institution: str,
    display_name: str,
    *,
    passphrase: bytes | None = None,
    observer: bool = False,
    country: str = COUNTRY_NOT_STATED,
) -> Card:
    """Make node and gateway keys in `folder` and return the public card, which is written too.

    Without a passphrase a random one is made and kept beside the keys, 0600. Raises `InvalidCard`
    for a name or country that no genesis takes, and `KeyFileError` when the folder holds an
    identity already: nothing is ever overwritten.
    """
    if INSTITUTION.fullmatch(institution) is None:
        raise InvalidCard(
            f"the institution {institution!r} must match {INSTITUTION.pattern}: "
            "a short name in lower case, for instance st-mary"
        )
    if not is_display_name(display_name):
        raise InvalidCard(f"a display name is 1 to {DISPLAY_NAME_MAX} printable characters")
    if COUNTRIES.fullmatch(country) is None:
        raise InvalidCard(
            f"the country {country!r} must be two capital letters of ISO 3166-1, for instance CH, "
            f"or {COUNTRY_NOT_STATED} if it is not stated"
        )
    _make_private_folder(folder)
    made = (NODE_KEY, GATEWAY_KEY, CARD)
    for name in made if passphrase is not None else (*made, PASSPHRASE):
        if (folder / name).exists():
            raise keys.KeyFileError(f"{folder / name} exists and is never overwritten")
    is_random = passphrase is None  # and so needs no stretching
    if passphrase is None:
        passphrase = secrets.token_urlsafe(32).encode()
        keys.save_secret(folder / PASSPHRASE, passphrase + b"\n")
    node, gateway = keys.generate(), keys.generate()
    keys.save(node, folder / NODE_KEY, passphrase, stretch=not is_random)
    keys.save(gateway, folder / GATEWAY_KEY, passphrase, stretch=not is_random)
    card = Card(
        institution,
        display_name,
        keys.public_bytes(node),
        make_certificate(node, institution),
        (Member(keys.public_bytes(gateway), ("administrator", "gateway")),),
        observer,
        country,
    )
    card.save(folder / CARD)
    return card


def make_genesis(name: str, cards: Iterable[Card], time_ms: int) -> Genesis:
    """Return the genesis of a consortium; the order of the cards is the order of voting."""
    cards = tuple(cards)
    return Genesis(
        name=name,
        time_ms=time_ms,
        institutions=tuple(
            Institution(c.institution, c.display_name, c.members, c.country) for c in cards
        ),
        validators=tuple(_identity(c) for c in cards if not c.observer),
        observers=tuple(_identity(c) for c in cards if c.observer),
    )


def node_config(
    institution: str,
    *,
    listen: tuple[str, int],
    peers: Sequence[PeerAddress],
    rpc_port: int,
    genesis_file: Path = Path(GENESIS),
    data_dir: Path = Path("data"),
    passphrase_file: Path | None = Path(PASSPHRASE),
) -> NodeConfig:
    """Return the settings of a node, its paths relative to the folder where its keys are."""
    return NodeConfig(
        institution=institution,
        data_dir=data_dir,
        genesis_file=genesis_file,
        key=KeyConfig(file=Path(NODE_KEY), passphrase_file=passphrase_file),
        rpc=RpcConfig(token_file=Path(TOKEN), port=rpc_port),
        network=NetworkConfig(listen_host=listen[0], listen_port=listen[1], peers=tuple(peers)),
    )


def write_node(folder: Path, config: NodeConfig) -> NodeConfig:
    """Write `config` and a new RPC token into `folder`; an existing token stays.

    Returns the settings as they are read back, with paths that hold from anywhere. Raises
    `ConfigError` for settings that no node takes, and writes nothing then.
    """
    text = render_config(config)
    parse_config(text.encode(), name=CONFIG, base=folder.absolute())
    token_file = folder / config.rpc.token_file
    if not token_file.exists():
        keys.create_token(token_file)
    (folder / CONFIG).write_text(text, encoding="utf-8")
    return load_config(folder / CONFIG)


def passphrase_of(config: KeyConfig) -> bytes:
    """Return the passphrase that opens this institution's keys. Raises `KeyFileError`."""
    source: keys.PassphraseSource = keys.PassphrasePrompt()
    if config.passphrase_file is not None:
        source = keys.PassphraseFile(config.passphrase_file)
    elif config.passphrase_environment is not None:
        source = keys.PassphraseEnvironment(config.passphrase_environment)
    return keys.read_passphrase(source)


def public_key_of(path: Path) -> bytes | None:
    """Return the public key that a key file names in clear, without opening it; None if none.

    Raises `KeyFileError` as reading the file does.
    """
    head = keys.read_private_file(path).partition(b"\n")[0]
    name, _, digits = head.partition(b": ")
    try:
        return bytes.fromhex(digits.decode("ascii")) if name == b"Public-Key" else None
    except ValueError:
        return None


def load_member_key(folder: Path, passphrase: bytes) -> Ed25519PrivateKey:
    """Return the key with which the institution's gateway signs. Raises `KeyFileError`."""
    return keys.load(folder / GATEWAY_KEY, passphrase)


def _identity(card: Card) -> NodeIdentity:
    return NodeIdentity(card.institution, card.node_key, card.certificate)


def _make_private_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise keys.KeyFileError(f"{folder} cannot be made: {error.strerror}") from error
