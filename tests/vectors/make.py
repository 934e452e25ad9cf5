"""Writes the golden vectors of our own encodings: `python -m tests.vectors.make`.

Everything comes from labels through SHA-256 and Ed25519, so a second run gives the same file. A
change of these bytes is a change of the protocol: it needs a new version, not a new vector.
"""

import datetime
import hashlib
import json
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import NameOID

from consensus.messages import SealCertificate
from node.ledger.block import (
    Batch,
    Block,
    Event,
    Header,
    Receipt,
    block_time,
    encode_certificate,
    receipts_root,
    transactions_root,
)
from node.ledger.genesis import Genesis, Institution, Member, NodeIdentity
from node.ledger.merkle import Frontier, leaf_hash
from node.ledger.transaction import Operation, Transaction, sign_transaction

PATH = Path(__file__).with_name("ledger.json")


def digest(label: str) -> bytes:
    """32 bytes that depend on the label alone."""
    return hashlib.sha256(label.encode()).digest()


def key(label: str) -> Ed25519PrivateKey:
    """A private key that depends on the label alone."""
    return Ed25519PrivateKey.from_private_bytes(digest("key " + label))


def public(label: str) -> bytes:
    """The public key of `key(label)`."""
    return key(label).public_key().public_bytes_raw()


def certificate(label: str) -> bytes:
    """A self-signed certificate (DER) for `key(label)`."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, label)])
    begin = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key(label).public_key())
        .serial_number(int.from_bytes(digest(label)[:8], "big") >> 1)
        .not_valid_before(begin)
        .not_valid_after(begin + datetime.timedelta(days=3650))
    )
    return builder.sign(key(label), None).public_bytes(serialization.Encoding.DER)


def genesis() -> Genesis:
    """Two hospitals that vote and a university that watches."""
    return Genesis(
        name="vectors",
        time_ms=1_767_225_600_000,
        institutions=(
            Institution(
                "st-anna",
                "Sankt-Anna-Spital Zürich",
                (
                    Member(public("st-anna gateway"), ("gateway",)),
                    Member(public("st-anna admin"), ("administrator", "clinician")),
                ),
                "CH",
            ),
            Institution("north", "Northern Hospital", (Member(public("n"), ("gateway",)),), "NO"),
            Institution("university", "University", ()),
        ),
        validators=(
            NodeIdentity("st-anna", public("node 0"), certificate("node 0")),
            NodeIdentity("north", public("node 1"), certificate("node 1")),
        ),
        observers=(NodeIdentity("university", public("node 2"), certificate("node 2")),),
    )


def transactions() -> list[Transaction]:
    """One with a single operation, one with several and every kind of argument."""
    signer = key("st-anna gateway")
    common = {"chain_id": genesis().chain_id, "institution": "st-anna"}
    register = Operation("study.register", (digest("study")[:16], digest("root"), "CT", 3))
    mixed = Operation("test.every_kind", (None, True, -1, 2**63, b"", "Zürich", ((), (1,))))
    return [
        sign_transaction(
            signer.sign,
            public("st-anna gateway"),
            valid_until=100,
            operations=[register],
            salt=digest("salt 1")[:16],
            **common,
        ),
        sign_transaction(
            signer.sign,
            public("st-anna gateway"),
            valid_until=2**53,
            operations=[register, mixed],
            salt=digest("salt 2")[:16],
            **common,
        ),
    ]


def receipts() -> list[Receipt]:
    """A success with events, and a failure."""
    first, second = transactions()
    event = Event("study.registered", 0, (digest("study")[:16], "CT", 3, None))
    return [
        Receipt(first.id, events=(event,)),
        Receipt(second.id, "study_exists", 1, "custodian"),
    ]


def block() -> tuple[Header, Block]:
    """The header of height 0, and block 1 with a certificate (its seals are not signatures)."""
    start = genesis()
    validators = start.validator_set().digest
    parent = Header(
        start.chain_id,
        0,
        start.time_ms,
        bytes(32),
        transactions_root(None),
        receipts_root([]),
        digest("state 0"),
        Frontier().root(),
        validators,
        validators,
    )
    batch = Batch(start.time_ms + 1_000, tuple(t.digest for t in transactions()))
    header = Header(
        start.chain_id,
        1,
        block_time(parent.time_ms, batch),
        parent.digest,
        transactions_root(batch),
        receipts_root([receipt.encode() for receipt in receipts()]),
        digest("state 1"),
        Frontier().with_leaf(leaf_hash(parent.digest)).root(),
        validators,
        validators,
    )
    seals = tuple((i, digest(f"seal {i}") * 2) for i in range(2))
    certificate = SealCertificate(1, header.digest, seals)
    return parent, Block(header, batch, tuple(t.raw for t in transactions()), certificate)


def document() -> dict[str, object]:
    """Everything that the file holds; bytes are in hexadecimal."""
    parent, first = block()
    return {
        "genesis": {
            "encoding": genesis().encode().hex(),
            "chain_id": genesis().chain_id.hex(),
            "validators_digest": genesis().validator_set().digest.hex(),
        },
        "transactions": [
            {
                "encoding": t.raw.hex(),
                "signed": t.signed.hex(),
                "id": t.id.hex(),
                "digest": t.digest.hex(),
            }
            for t in transactions()
        ],
        "batch": {"encoding": first.batch.encode().hex(), "digest": first.batch.digest.hex()},
        "headers": [
            {"encoding": header.encode().hex(), "digest": header.digest.hex()}
            for header in (parent, first.header)
        ],
        "receipts": [receipt.encode().hex() for receipt in receipts()],
        "certificate": encode_certificate(first.certificate).hex(),
        "block": first.encode().hex(),
    }


def main() -> None:
    """Write the file anew."""
    PATH.write_text(json.dumps(document(), indent=1) + "\n")


if __name__ == "__main__":
    main()
