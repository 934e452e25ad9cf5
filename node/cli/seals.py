"""Who sealed a block: every signature is checked here, against the genesis and nobody's word."""

from dataclasses import dataclass

from consensus.authentication import seal_checks
from consensus.errors import InvalidMessage
from node.ledger.genesis import Genesis
from node.ledger.queries import BlockView
from node.ledger.verifier import verify_all


@dataclass(frozen=True, slots=True)
class Seals:
    """The seals of one block."""

    institutions: tuple[str, ...]  # whose seals are valid, in the order of the validator set
    quorum: int
    problem: str  # a sentence; empty when a quorum of seals is valid, or there is none yet

    @property
    def is_sealed(self) -> bool:
        """Whether a quorum sealed the block."""
        return not self.problem and len(self.institutions) >= self.quorum


def sealed_by(block: BlockView, genesis: Genesis) -> Seals:
    """Return who sealed `block`, as far as the validator set of the genesis can tell."""
    validators = genesis.validator_set()
    certificate = block.certificate
    if certificate is None:
        return Seals((), validators.quorum, "")
    if block.header.validators_digest != validators.digest:
        return Seals((), validators.quorum, "sealed by another validator set than the genesis has")
    if (certificate.height, certificate.header) != (block.header.height, block.header.digest):
        return Seals((), validators.quorum, "the certificate is that of another header")
    try:
        checks = seal_checks(certificate, validators, genesis.chain_id)
    except InvalidMessage as error:
        return Seals((), validators.quorum, f"the certificate is not valid: {error}")
    verdicts = verify_all([(c.public_key, c.signed, c.signature) for c in checks])
    names = [validators.validators[sender].institution for sender, _ in certificate.seals]
    valid = tuple(name for name, good in zip(names, verdicts, strict=True) if good)
    problem = "" if len(valid) == len(names) else "a seal's signature does not verify"
    return Seals(valid, validators.quorum, problem)
