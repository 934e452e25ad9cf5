"""The part of a node that copies sealed blocks from others when the replica says it is behind."""

from collections.abc import Callable
from hashlib import sha256
from random import Random
from typing import Protocol

from consensus.authentication import seal_checks
from consensus.errors import InvalidMessage
from consensus.validators import ValidatorSchedule
from tests.simulation.checker import header_after
from tests.simulation.disk import Block, Disk
from tests.simulation.execution import Copied
from tests.simulation.keys import Keyring

_BLOCKS_MAX = 8
_RETRY_MS = 150.0


class Owner(Protocol):
    """What catching up needs of its node."""

    disk: Disk
    rng: Random
    keys: Keyring
    schedule: ValidatorSchedule
    chain_id: bytes

    def later(self, delay_ms: float, action: Callable[..., None], *arguments: object) -> None: ...
    def ask_for_blocks(self, above: int) -> None: ...
    def copy(self, job: Copied) -> None: ...


def serve(disk: Disk, above: int) -> Copied | None:
    """Return the blocks after height `above` up to one that has a certificate."""
    sealed = [height for height in disk.certificates if above < height <= disk.head]
    if not sealed:
        return None
    near = [height for height in sealed if height <= above + _BLOCKS_MAX]
    last = max(near) if near else min(sealed)
    return Copied(above + 1, tuple(disk.blocks[above + 1 : last + 1]), disk.certificates[last])


class CatchUp:
    """Asks one peer after another until the wanted height is durable."""

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._wanted = 0
        self._asking = False

    def want(self, height: int) -> None:
        """Fetch blocks up to at least `height`."""
        self._wanted = max(height, self._wanted)
        if not self._asking:
            self._ask()

    def answer(self, copied: Copied) -> None:
        """Take blocks from a peer, if they are what the quorum sealed."""
        if self._is_sealed(copied):
            self._owner.copy(copied)

    def _ask(self) -> None:
        head = self._owner.disk.head
        self._asking = head < self._wanted
        if self._asking:
            self._owner.ask_for_blocks(head)
            self._owner.later(_RETRY_MS, self._ask)

    def _is_sealed(self, copied: Copied) -> bool:
        owner = self._owner
        certificate, height = copied.certificate, copied.first - 1
        if height > owner.disk.head:
            return False
        header = owner.disk.blocks[height].header
        for block in copied.blocks:
            height += 1
            header = header_after(header, height, block.digest)
            if header != block.header or not _has_its_payload(block):
                return False
        if (height, header) != (certificate.height, certificate.header):
            return False
        validators = owner.schedule.at(height)
        try:
            checks = seal_checks(certificate, validators, owner.chain_id)
        except InvalidMessage:
            return False
        return owner.keys.verify(checks)


def _has_its_payload(block: Block) -> bool:
    payload = block.payload
    return block.digest == (bytes(32) if payload is None else sha256(payload).digest())
