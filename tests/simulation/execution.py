"""The part of a node that turns committed batches and synced blocks into durable ones, in order."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from consensus.inputs import Executed, Input, Synced
from consensus.messages import NULL_DIGEST, SealCertificate
from tests.simulation.checker import header_after
from tests.simulation.disk import Block, Disk, Transaction


@dataclass(frozen=True, slots=True)
class Ordered:
    """The replica said: execute this."""

    height: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class Copied:
    """Blocks from a peer, already verified against `certificate`."""

    first: int
    blocks: tuple[Block, ...]
    certificate: SealCertificate


class Owner(Protocol):
    """What the executor needs of its node."""

    disk: Disk

    def later(self, delay_ms: float, action: Callable[..., None], *arguments: object) -> None: ...
    def execution_ms(self) -> float: ...
    def payload(self, digest: bytes) -> bytes | None: ...
    def became_durable(self, height: int, block: Block) -> None: ...
    def step(self, happened: Input) -> None: ...
    def wake(self, action: Callable[..., None], *arguments: object) -> Callable[[], None]: ...
    def broken(self, sentence: str) -> None: ...


class Executor:
    """One job at a time; each ends with a synced block and an input for the replica."""

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._jobs: deque[Ordered | Copied] = deque()
        self._busy = False

    def submit(self, job: Ordered | Copied) -> None:
        """Queue a job behind those that wait."""
        self._jobs.append(job)
        if not self._busy:
            self._next()

    def _next(self) -> None:
        self._busy = bool(self._jobs)
        if not self._jobs:
            return
        job, owner = self._jobs.popleft(), self._owner
        if isinstance(job, Ordered):
            owner.later(owner.execution_ms(), self._execute, job)
        else:
            owner.later(owner.execution_ms() * len(job.blocks) / 4, self._copy, job)

    def _execute(self, job: Ordered) -> None:
        disk = self._owner.disk
        if job.height <= disk.head:  # sync was faster
            if disk.blocks[job.height].digest != job.digest:
                self._owner.broken(f"executes another batch at height {job.height} than it synced")
            self._report(Executed(job.height, disk.blocks[job.height].header))
            return
        payload = None
        if job.digest != NULL_DIGEST:
            payload = self._owner.payload(job.digest)
        header = header_after(disk.blocks[-1].header, job.height, job.digest)
        self._store(
            job.height, (Block(job.digest, header, payload),), None, Executed(job.height, header)
        )

    def _copy(self, job: Copied) -> None:
        skip = self._owner.disk.head + 1 - job.first
        if skip < 0:
            self._next()
            return
        self._store(job.first + skip, job.blocks[skip:], job.certificate, Synced(job.certificate))

    def _store(
        self,
        first: int,
        blocks: tuple[Block, ...],
        certificate: SealCertificate | None,
        answer: Executed | Synced,
    ) -> None:
        numbered = list(enumerate(blocks, first))

        def stored() -> None:
            for height, block in numbered:
                self._owner.became_durable(height, block)
            self._report(answer)

        transaction = Transaction(blocks=numbered, certificate=certificate)
        transaction.then = self._owner.wake(stored)
        self._owner.disk.submit(transaction)

    def _report(self, answer: Executed | Synced) -> None:
        self._owner.step(answer)
        self._next()
