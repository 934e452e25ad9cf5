"""A small chain with real seals and two changes of validators, and the golden proof files of it:
`python -m tests.vectors.make_proofs` writes them.

Everything comes from labels through SHA-256 and Ed25519, so a second run gives the same file.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

from consensus.messages import Domain, Seal, SealCertificate
from consensus.validators import quorum_size
from consensus.wire import pack, unpack
from node.ledger import membership
from node.ledger.block import Header, encode_certificate, header_digest
from node.ledger.contracts import access_record, table
from node.ledger.contracts.base import OperationKind
from node.ledger.contracts.consent.record import Consent, Rule, consent_key
from node.ledger.genesis import Genesis, Institution, Member, NodeIdentity
from node.ledger.merkle import inclusion_proof, leaf_hash, root
from node.ledger.proofs.make import make
from node.ledger.proofs.opening import open_instance, open_manifest
from node.ledger.proofs.questions import read_request
from node.ledger.proofs.verify import verify
from node.ledger.transaction import Operation, sign_transaction
from storage.kv import WriteBatch
from tests.ledger import harness
from tests.vectors.make import certificate, digest, key, public

PATH = Path(__file__).with_name("proofs.json")
SPECIFICATION = Path(__file__).parents[2] / "docs" / "developers" / "proof-format.md"
FENCE = "```vector\n"

HOSPITALS = ("north", "east", "south", "west")
STUDY, SUBJECT, REQUEST, CONSENT = (digest(each)[:16] for each in ("s", "p", "r", "c"))
SALT = digest("study salt")


def node(institution: str, label: str = "") -> NodeIdentity:
    """A validator whose key depends on its institution and the label."""
    name = f"{institution} node{label}"
    return NodeIdentity(institution, public(name), certificate(name))


def signer_of(identity: NodeIdentity):
    """The private key of a `node`."""
    labels = (f"{identity.institution} node{each}" for each in ("", " 2"))
    return next(key(label) for label in labels if public(label) == identity.public_key)


GENESIS = Genesis(
    name="proofs",
    time_ms=1_767_225_600_000,
    institutions=tuple(
        Institution(
            name, name.title(), (Member(public(f"{name} gateway"), ("clinician", "gateway")),)
        )
        for name in (*HOSPITALS, "lake")
    ),
    validators=tuple(node(name) for name in HOSPITALS),
)


def record(number: int) -> bytes:
    """The record of an instance: rules, form, K, P, F, X, size."""
    digests = (digest(f"{letter} {number}") for letter in "KPFX")
    return pack((1, 2, *digests, 1_000 + number))


def blinding(number: int) -> bytes:
    """32 bytes; in earnest they come from the study's salt."""
    return digest(f"blinding {number}")


RECORDS = tuple(record(number) for number in range(5))
BLINDINGS = tuple(blinding(number) for number in range(5))
LEAVES = [leaf_hash(b + r) for b, r in zip(BLINDINGS, RECORDS, strict=True)]
TREE = root(LEAVES)


def manifest_root(study_id=STUDY, version=1, previous=None, count=5, tree=TREE) -> bytes:
    """The root that goes on the chain."""
    bound = pack((study_id, version, previous, count, tree))
    return hashlib.sha256(b"radledger/manifest/1" + bound).digest()


ROOT = manifest_root()


def put_row(context, arguments) -> None:
    """An operation for tests alone: sets a row of the state."""
    key_, value = arguments
    context.state.put(key_, value)


def plan_validators(context, arguments) -> None:
    """An operation for tests alone: other validators, as soon as may be."""
    (names,) = arguments
    nodes = tuple(node(*name.split("|")) for name in names)
    planned = membership.PlannedSet(context.height + membership.CHANGE_DELAY, nodes)
    membership.append(context.state.put, context.state.get, planned)


def use(context, arguments) -> None:
    """An operation for tests alone: emits what `access.use` does."""
    context.emit("access_used", *arguments)


@contextmanager
def operations() -> Iterator[None]:
    """Add the operations above to the executor's table."""
    kinds = [
        OperationKind(name, frozenset({"gateway"}), lambda arguments: arguments, apply)
        for name, apply in (
            ("test.put", put_row),
            ("test.plan", plan_validators),
            ("access.use", use),
        )
    ]
    added = {**table.OPERATIONS, **{kind.name: kind for kind in kinds}}
    with mock.patch("node.ledger.execution.OPERATIONS", added):
        yield


class World:
    """One node's chain, with the keys of everybody who seals."""

    def __init__(self) -> None:
        self.node = harness.Chain(genesis=GENESIS)
        self.ids: list[bytes] = []  # of all transactions signed so far

    @property
    def height(self) -> int:
        """The height of the head."""
        return self.node.executor.head.height

    def signed(self, *operations_, by="north"):
        """A transaction with a real signature; `operations_` are (name, *arguments)."""
        made = sign_transaction(
            key(f"{by} gateway").sign,
            public(f"{by} gateway"),
            chain_id=GENESIS.chain_id,
            institution=by,
            valid_until=1_000,
            operations=[Operation(name, tuple(arguments)) for name, *arguments in operations_],
            salt=digest(f"salt {len(self.ids)}")[:16],
        )
        self.ids.append(made.id)
        return made

    def add(self, *transactions, is_sealed=True):
        """Execute a block, and seal it unless told otherwise."""
        with operations():
            block = self.node.add(*transactions) if transactions else self.node.add_null()
        assert all(receipt.code == "ok" for receipt in block.receipts), block.receipts
        if is_sealed:
            self.put_certificate(self.seal(self.height))
        return block

    def add_until(self, height: int) -> None:
        """Execute and seal null blocks up to and with `height`."""
        while self.height < height:
            self.add()

    def seal(self, height: int, senders=None) -> SealCertificate:
        """The certificate of `height`, by a quorum of those who reign, or by `senders`."""
        encoded = self.node.chain.header(height)
        return self.sealed_header(height, encoded, senders)

    def sealed_header(self, height: int, encoded: bytes, senders=None) -> SealCertificate:
        """The certificate over any header, true or not."""
        planned = membership.reigning(self.node.chain.state_value, height)
        domain = Domain(GENESIS.chain_id, planned.validator_set().digest)
        named = range(quorum_size(len(planned.nodes))) if senders is None else senders
        found = header_digest(encoded)
        seals = [
            (i, signer_of(planned.nodes[i]).sign(domain.signed_bytes(Seal(height, found, i))))
            for i in named
        ]
        return SealCertificate(height, found, tuple(seals))

    def put_certificate(self, sealed: SealCertificate) -> None:
        """Keep a certificate."""
        out = WriteBatch()
        self.node.chain.put_certificate(out, sealed.height, encode_certificate(sealed))
        self.node.store.write(out, sync=False)

    def proof(self, kind: str, *arguments) -> bytes:
        """The proof file that a node would make now."""
        words = [each.hex() if isinstance(each, bytes) else str(each) for each in arguments]
        snapshot = self.node.store.snapshot()
        try:
            return make(snapshot, GENESIS, read_request(kind, words))
        finally:
            snapshot.close()


def consent_row() -> bytes:
    """One rule by the custodian."""
    rule = Rule(
        CONSENT, "permit", None, "east", ("TREAT",), 3, None, None, "custodian", digest("form")
    )
    return pack(Consent(rules=(rule,)))


def request_row() -> bytes:
    """A request that a policy granted."""
    return pack(
        access_record.Request(
            format=access_record.RECORD_FORMAT,
            study_id=STUDY,
            custodian="north",
            subject_id=SUBJECT,
            institution="east",
            member_key=public("east gateway"),
            role="clinician",
            purpose="TREAT",
            heights=500,
            uses_max=10,
            asked_height=3,
            state="granted",
            decided_height=3,
            decided_by="rule",
            rule="north/treatment",
            consent="required",
            valid_from=4,
            expires_height=504,
            ordinal=bytes((3, 3, 2, 3, 1)),
        )
    )


def world() -> World:
    """Height 1: a study. 2: three transactions. 3: consent and a grant. 4, 68: changes planned,
    which take over at 68 and 132. 133: no seals. 134: the head."""
    made = World()
    study = ("study.register", STUDY, SUBJECT, ROOT, "CT", "head", 3, 4)
    made.add(made.signed(study))
    made.add(
        made.signed(("test.put", b"a", b"1")),
        made.signed(("access.use", REQUEST, STUDY), by="east"),
        made.signed(("test.put", b"b", b"2")),
    )
    asked = pack((access_record.RECORD_FORMAT, 1, REQUEST))
    made.add(
        made.signed(
            ("test.put", consent_key("north", SUBJECT), consent_row()),
            ("test.put", access_record.request_key(REQUEST), request_row()),
            ("test.put", access_record.asked_key(STUDY, "east"), asked),
        )
    )
    made.add(made.signed(("test.plan", ("north", "east", "south", "west", "lake"))))
    made.add_until(67)
    made.add(made.signed(("test.plan", ("north| 2", "south", "west", "lake"))))
    made.add_until(132)
    made.add(is_sealed=False)
    made.add()
    return made


def instance(base: bytes, position: int) -> bytes:
    """The proof of one instance, out of that of its version."""
    return open_instance(
        base,
        RECORDS[position],
        BLINDINGS[position],
        position=position,
        count=len(LEAVES),
        path=inclusion_proof(LEAVES, position),
        tree=TREE,
    )


def proofs(made: World) -> dict[str, bytes]:
    """One proof file of every kind, and of every way to trust a header."""
    version = made.proof("version", STUDY, ROOT)
    with mock.patch("node.ledger.proofs.make.SEARCH_HEIGHTS", 1):
        history = made.proof("time", 133)
    return {
        "time": made.proof("time", 1),
        "time, under the next height": made.proof("time", 133),
        "time, under the history": history,
        "time, of the genesis": made.proof("time", 0),
        "study": made.proof("study", STUDY),
        "version": version,
        "instance": instance(version, 3),
        "manifest": open_manifest(version, RECORDS, BLINDINGS),
        "consent": made.proof("consent", "north", SUBJECT),
        "no consent": made.proof("consent", "east", SUBJECT),
        "grant": made.proof("grant", REQUEST),
        "transaction": made.proof("transaction", made.ids[0]),
        "access": made.proof("access", made.ids[2]),
        "absence": made.proof("absence", "asked", STUDY, "south"),
    }


def document() -> dict[str, object]:
    """Everything that the file holds; bytes are in hexadecimal."""
    return {
        "genesis": GENESIS.encode().hex(),
        "chain_id": GENESIS.chain_id.hex(),
        "proofs": [shown(name, proof) for name, proof in proofs(world()).items()],
    }


def shown(name: str, proof: bytes) -> dict[str, object]:
    """One vector: the file, and what it proves."""
    proved = verify(proof, GENESIS)
    return {
        "name": name,
        "kind": proved.kind,
        "height": proved.header.height,
        "time_ms": proved.header.time_ms,
        "anchor_height": proved.anchor.height,
        "sealed_by": list(proved.sealed_by),
        "changes": list(proved.changes),
        "rows": [[k.hex(), None if v is None else v.hex()] for k, v in proved.rows],
        "transaction_id": proved.transaction and proved.transaction.id.hex(),
        "receipt_code": proved.receipt and proved.receipt.code,
        "records": [each.hex() for each in proved.records],
        "file": proof.hex(),
    }


def worked(proof: bytes) -> str:
    """The vector that the specification takes apart: a proof of time without lineage."""
    _, _, chain_id, _, (_, (header, seals), _, _), checked = unpack(proof)
    fields = unpack(header)
    names = [field.name for field in dataclasses.fields(Header)]
    lines = [
        f"file ({len(proof)} bytes)  {proof.hex()}",
        f"chain_id         {chain_id.hex()}",
        'statement        ["time"]',
        "changes, details []          lineage nil",
        f"digest           {checked.hex()}",
        f"header_digest    {header_digest(header).hex()}",
        *(f"  {name:24} {_hex(value)}" for name, value in zip(names, fields[1:], strict=True)),
        f"validator set    {GENESIS.validator_set().digest.hex()}, n 4, f 1, quorum 3",
        *(f"  {v.institution:24} {v.public_key.hex()}" for v in GENESIS.validators),
        *(f"seal of {index}        {signature.hex()}" for index, signature in seals),
    ]
    signed = pack((GENESIS.protocol_version, chain_id, GENESIS.validator_set().digest))
    last = pack((fields[2], header_digest(header), seals[0][0]))
    lines.append(f'seal 0 covers    "radledger/seal/1" | 94 {signed[1:].hex()} {last.hex()}')
    return "\n".join(lines)


def _hex(value) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)


def main() -> None:
    """Write the vectors and the specification's example anew."""
    made = document()
    PATH.write_text(json.dumps(made, indent=1) + "\n")
    text = SPECIFICATION.read_text()
    start, end = text.index(FENCE) + len(FENCE), text.rindex("```")
    example = worked(bytes.fromhex(made["proofs"][0]["file"]))
    SPECIFICATION.write_text(f"{text[:start]}{example}\n{text[end:]}")


if __name__ == "__main__":
    main()
