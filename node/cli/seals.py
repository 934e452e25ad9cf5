"""Who sealed a block: every signature is checked here, against the genesis and nobody's word.

After a vote has changed the validators, the node shows by a proof that the set was followed from
the genesis on.
"""

from dataclasses import dataclass

from consensus.authentication import seal_checks
from consensus.errors import InvalidMessage
from consensus.validators import ValidatorSet
from node.cli.failures import WRONG, Failure
from node.ledger.genesis import Genesis
from node.ledger.proofs.verify import verify
from node.ledger.queries import BlockView
from node.ledger.verifier import verify_all
from node.rpc.client import Client
from storage.errors import InvalidProof


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


async def validators_of(block: BlockView, genesis: Genesis, client: Client) -> ValidatorSet:
    """Return the set that sealed `block`: the genesis', or the one that the node proves.

    Raises what `Client.proof` does, and `Failure` for a proof that does not hold.
    """
    validators = genesis.validator_set()
    if block.certificate is None or block.header.validators_digest == validators.digest:
        return validators
    answer = await client.proof("time", [str(block.header.height)])
    try:
        proved = verify(answer.proof, genesis)
    except InvalidProof as error:
        raise Failure(WRONG, f"the node does not prove who votes: {error}") from error
    return proved.validators


def sealed_by(block: BlockView, genesis: Genesis, validators: ValidatorSet | None = None) -> Seals:
    """Return who sealed `block`, as far as a validator set can tell: the genesis', or a later one
    that a proof has shown."""
    validators = genesis.validator_set() if validators is None else validators
    certificate = block.certificate
    if certificate is None:
        return Seals((), validators.quorum, "")
    if block.header.validators_digest != validators.digest:
        return Seals((), validators.quorum, "sealed by another validator set than is known here")
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
