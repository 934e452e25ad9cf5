"""Replicas that talk through a list: the test decides what is delivered, dropped, or crashes.

Signatures are real functions of key and bytes (keyed BLAKE2b instead of Ed25519, for speed), and
every delivered message passes through its encoding and through `signatures_of`.
"""

import hashlib
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from consensus.authentication import signatures_of
from consensus.effects import (
    Broadcast,
    CancelTimer,
    Effect,
    Evidence,
    Execute,
    Forget,
    Halt,
    NeedSync,
    ObtainPayload,
    Persist,
    Send,
    SetTimer,
    Stable,
    ViewEntered,
)
from consensus.inputs import (
    Executed,
    Input,
    MessageReceived,
    PayloadReady,
    Propose,
    Synced,
    TimerFired,
    WorkPending,
)
from consensus.messages import Domain, Message, SealCertificate, decode, encode
from consensus.options import Options
from consensus.replica import Replica
from consensus.validators import Validator, ValidatorSchedule, ValidatorSet

CHAIN = hashlib.sha256(b"a chain for tests").digest()
GENESIS = hashlib.sha256(b"genesis").digest()
GENESIS_CERTIFICATE = SealCertificate(0, GENESIS, ())


def digest(name: object) -> bytes:
    return hashlib.sha256(repr(name).encode()).digest()


def public_key(member: int) -> bytes:
    return hashlib.sha256(b"key %d" % member).digest()


def sign_with(key: bytes, signed: bytes) -> bytes:
    return hashlib.blake2b(signed, key=key, digest_size=64).digest()


def validator_set(members: Iterable[int]) -> ValidatorSet:
    return ValidatorSet(tuple(Validator(f"hospital {m}", public_key(m)) for m in members))


def signed_by(validators: ValidatorSet, message, chain_id: bytes = CHAIN):
    """Return `message` with its sender's signature."""
    signed = Domain(chain_id, validators.digest).signed_bytes(message)
    key = validators.validators[message.sender].public_key
    return replace(message, signature=sign_with(key, signed))


def is_authentic(message: Message, schedule: ValidatorSchedule, chain_id: bytes = CHAIN) -> bool:
    checks = signatures_of(message, schedule, chain_id)
    return all(sign_with(c.public_key, c.signed) == c.signature for c in checks)


def next_header(parent: bytes, height: int, batch: bytes) -> bytes:
    return hashlib.sha256(parent + height.to_bytes(8, "big") + batch).digest()


@dataclass(frozen=True)
class Letter:
    sender: int
    to: int
    message: Message


class Member:
    """One replica, its disk and what it did."""

    def __init__(self, cluster: "Cluster", index: int, voting: bool = True) -> None:
        self.cluster = cluster
        self.index = index
        self.voting = voting
        self.wal: dict[bytes, bytes] = {}
        self.payloads: set[bytes] = set()
        self.blocks: list[tuple[bytes, bytes]] = [(b"", GENESIS)]  # (digest, header) by height
        self.stable = GENESIS_CERTIFICATE
        self.timers: dict[str, int] = {}
        self.up = True
        self.effects: list[Effect] = []  # everything since the beginning
        self.sent: list[Message] = []
        self.replica = self._new_replica()

    def _new_replica(self) -> Replica:
        key = public_key(self.index)
        index = None
        if self.voting:
            index = self.cluster.schedule.at(self.stable.height + 1).index_of(key)
        return Replica(
            index,
            self.cluster.schedule,
            CHAIN,
            lambda signed: sign_with(key, signed),
            self.cluster.options,
            key if self.voting else None,
        )

    def start(self) -> None:
        self.up = True
        self.timers.clear()
        self.replica = self._new_replica()
        height = len(self.blocks) - 1
        self.perform(self.replica.start(self.wal, height, self.blocks[-1][1], self.stable))

    def step(self, happened: Input) -> list[Effect]:
        effects = self.replica.step(happened)
        self.perform(effects)
        return effects

    def perform(self, effects: list[Effect]) -> None:
        for effect in effects:
            if not self.up:
                return
            self.effects.append(effect)
            if self.cluster.before_effect is not None:
                self.cluster.before_effect(self, effect)
                if not self.up:
                    return
            self._perform_one(effect)

    def _perform_one(self, effect: Effect) -> None:
        match effect:
            case Persist(key, value):
                self.wal[key] = value
            case Forget(key):
                self.wal.pop(key, None)
            case Broadcast(message):
                self.sent.append(message)
                for other in self.cluster.members:
                    if other is not self:
                        self.cluster.post(Letter(self.index, other.index, message))
            case Send(to, message):
                self.sent.append(message)
                place = next(m.index for m in self.cluster.members if public_key(m.index) == to)
                self.cluster.post(Letter(self.index, place, message))
            case SetTimer(name, delay_ms):
                self.timers[name] = delay_ms
            case CancelTimer(name):
                self.timers.pop(name, None)
            case ObtainPayload(height, wanted, _):
                if self.cluster.payloads_arrive:
                    self.cluster.later(self, PayloadReady(height, wanted))
            case Execute(height, batch):
                self.cluster.later(self, self._execute, height, batch)
            case Stable(certificate):
                self.stable = certificate
            case NeedSync(height):
                if self.cluster.sync_works:
                    self.cluster.later(self, self._synchronise, height)
            case Halt() | Evidence() | ViewEntered():
                pass

    def _execute(self, height: int, batch: bytes) -> None:
        if height == len(self.blocks):
            self.blocks.append((batch, self.cluster.execute(self, height, batch)))
        self.step(Executed(height, self.blocks[height][1]))

    def _synchronise(self, height: int) -> None:
        best = max((m for m in self.cluster.members if m.up), key=lambda m: m.stable.height)
        if best.stable.height < len(self.blocks):
            return
        certificate = best.stable
        self.blocks = best.blocks[: certificate.height + 1]
        self.stable = certificate
        self.step(Synced(certificate))

    def fire(self, name: str) -> None:
        """Let a running timer fire."""
        del self.timers[name]
        self.step(TimerFired(name))

    def all_of(self, kind: type) -> list:
        return [effect for effect in self.effects if isinstance(effect, kind)]

    def sent_of(self, kind: type) -> list:
        return [message for message in self.sent if isinstance(message, kind)]


class Cluster:
    """N members, one first-in-first-out list of letters and local answers."""

    def __init__(
        self, n: int = 4, options: Options | None = None, schedule=None, observers: int = 0
    ):
        self.schedule = schedule or ValidatorSchedule(validator_set(range(n)))
        self.validators = self.schedule.at(1)
        self.options = options or Options()
        self.letters: deque[Letter] = deque()
        self.local: deque[tuple[Member, Callable, tuple]] = deque()
        self.dropped: Callable[[Letter], bool] = lambda letter: False
        self.before_effect: Callable[[Member, Effect], None] | None = None
        self.payloads_arrive = True
        self.sync_works = True
        self.members: list[Member] = []
        for index in range(n + observers):
            self.members.append(Member(self, index, voting=index < n))
        for member in self.members:
            member.start()

    def __getitem__(self, index: int) -> Member:
        return self.members[index]

    def execute(self, member: Member, height: int, batch: bytes) -> bytes:
        return next_header(member.blocks[-1][1], height, batch)

    def signed(self, message):
        return signed_by(self.validators, message)

    def post(self, letter: Letter) -> None:
        if not self.dropped(letter):
            self.letters.append(letter)

    def later(self, member: Member, action, *arguments) -> None:
        self.local.append((member, action, arguments))

    def deliver(self, letter: Letter) -> None:
        member = self.members[letter.to]
        if not member.up or self.dropped(letter):
            return
        message = decode(encode(letter.message))
        assert message == letter.message
        if member.replica.is_relevant(message):
            assert is_authentic(message, self.schedule), message
            member.step(MessageReceived(message))

    def answer_locally(self) -> None:
        while self.local:
            member, action, arguments = self.local.popleft()
            if member.up:
                member.step(action) if not callable(action) else action(*arguments)

    def run(self, limit: int = 100_000) -> None:
        """Deliver until nothing is under way; timers do not fire."""
        for _ in range(limit):
            self.answer_locally()
            if not self.letters:
                return
            self.deliver(self.letters.popleft())
        raise AssertionError("messages without end")

    def fire(self, name: str, *indices: int) -> None:
        """Fire the running timer of this name at these members, or at all."""
        for index in indices or range(len(self.members)):
            member = self.members[index]
            if member.up and name in member.timers:
                member.fire(name)

    def settle(self, periods: int = 12) -> None:
        """Run with as many resend periods as given."""
        self.run()
        for _ in range(periods):
            self.fire("resend")
            self.run()

    def propose(self, name: object) -> bytes:
        """Let the primary propose a batch; return its digest."""
        primary = next(m for m in self.members if m.up and m.replica.can_propose)
        batch = digest(name)
        primary.step(Propose(batch))
        return batch

    def commit(self, *names: object) -> None:
        """Order and execute batches one after the other."""
        for name in names:
            self.propose(name)
            self.run()

    def work(self, pending: bool = True) -> None:
        for member in self.members:
            if member.up:
                member.step(WorkPending(pending))

    def crash(self, index: int) -> None:
        member = self.members[index]
        member.up = False
        self.local = deque(job for job in self.local if job[0] is not member)

    def heights(self) -> list[int]:
        return [member.replica.executed_height for member in self.members]

    def assert_agreement(self) -> None:
        longest = max((member.blocks for member in self.members), key=len)
        for member in self.members:
            assert member.blocks == longest[: len(member.blocks)]
            assert not member.all_of(Halt)
