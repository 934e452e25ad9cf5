"""Validators that lie. Each runs the real replica and bends what leaves it.

All of one network conspire: they share what they hear and vote for each other's double proposals.
They can sign with their own keys only.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

from consensus.messages import (
    NULL_DIGEST,
    Commit,
    Domain,
    Message,
    NewView,
    Prepare,
    PreparedCertificate,
    PrePrepare,
    Seal,
    SealCertificate,
    ViewChange,
    encode,
)
from consensus.validators import ValidatorSet
from consensus.view_change import carried_over
from tests.simulation.checker import header_after
from tests.simulation.disk import Block
from tests.simulation.execution import Copied
from tests.simulation.node import SimNode
from tests.simulation.payloads import GOOD, INVALID, Payload, digest_of

_TICK_MS = 60.0
_FLOOD = 12  # pairs of messages per tick


@dataclass(frozen=True, slots=True)
class Split:
    """Two batches for one height, each shown to one side."""

    digests: tuple[bytes, bytes]
    second: frozenset[int]  # validators that see the second digest

    def side(self, validator: int) -> int:
        """Return which of the two `validator` is shown."""
        return int(validator in self.second)


class Coalition:
    """What the Byzantine validators of one network share."""

    def __init__(self) -> None:
        self.members: list[ByzantineNode] = []
        self.heard: deque[bytes] = deque(maxlen=300)
        self.digests: deque[bytes] = deque([NULL_DIGEST], maxlen=40)
        self.certificates: deque[PreparedCertificate] = deque(maxlen=60)
        self.view_changes: dict[int, dict[int, ViewChange]] = {}  # view: sender: message
        self.splits: dict[tuple[int, int], Split] = {}
        self.view = 0
        self.height = 0

    def learn(self, message: Message) -> None:
        """Take what is of use out of an authentic message."""
        match message:
            case PrePrepare(view, height, digest):
                self.digests.append(digest)
                self.view, self.height = view, height
            case ViewChange(view=view, prepared=prepared, sender=sender):
                self.certificates.extend(prepared)
                self.view_changes.setdefault(view, {})[sender] = message


class ByzantineNode(SimNode):
    """A validator that follows its tactics instead of the protocol."""

    def __init__(self, world: Any, place: int, index: int, tactics: tuple[str, ...]) -> None:
        super().__init__(world, place, index)
        self.honest = False
        self.index: int = index
        self.tactics = frozenset(tactics)
        self.coalition: Coalition = world.coalition
        self.coalition.members.append(self)
        self._sign = self.keys.signer(index)
        chance, choice = self.rng.random, self.rng.choice
        self._deaf_to_us = frozenset(
            i for i in range(world.key_count) if chance() < choice([0.3, 0.6, 1.0])
        )
        self._lies: dict[bytes, bytes] = {}

    @property
    def _set(self) -> ValidatorSet:
        """The validators that it speaks to now."""
        return self.schedule.at(self.disk.head + 1)

    @property
    def me(self) -> int:
        """Its place among them; once voted out it speaks as if it were the first."""
        return self._set.index_of(self.keys.public[self.index]) or 0

    def start(self) -> None:
        """Boot, and begin to act on its own account."""
        super().start()
        self.later(self.rng.uniform(0, _TICK_MS), self._tick)

    def deliver(self, data: bytes) -> None:
        """Take a message, and remember it for the coalition."""
        if self.up:
            self.coalition.heard.append(data)
            letter = self.world.letters.open(data)
            letters, truth = self.world.letters, self.world.checker.truth
            if letter.message is not None and letters.is_authentic(letter, truth):
                self.coalition.learn(letter.message)
        super().deliver(data)

    def transmit(self, to: bytes | None, message: Message) -> None:
        """Send whatever the tactics make of `message`."""
        public = self.keys.public
        targets = [i for i in range(self.world.key_count) if i != self.index]
        for target in targets if to is None else [public.index(to)]:
            for bent in self._bend(target, message):
                self.post(public[target], encode(bent))
        if "replay" in self.tactics and self.coalition.heard and self.rng.random() < 0.3:
            self.post(None, self.rng.choice(self.coalition.heard))
        if "garbage" in self.tactics and self.rng.random() < 0.3:
            self.post(None, self._garbage(encode(message)))

    def _bend(self, target: int, message: Message) -> Iterator[Message]:
        tactics, chance = self.tactics, self.rng.random
        if "mute" in tactics and target in self._deaf_to_us and chance() < 0.9:
            return
        if "equivocate" in tactics and isinstance(message, PrePrepare | Prepare | Commit):
            yield from self._two_faced(target, message)
            return
        if "liar" in tactics and isinstance(message, ViewChange | NewView) and chance() < 0.7:
            message = self.lie(message)
        if "withhold" in tactics and isinstance(message, PrePrepare):
            message = self._unobtainable(message)
        if "mutate" in tactics and chance() < 0.3:
            yield self.mutate(message)
            if chance() < 0.5:
                return
        yield message

    # Equivocation

    def _two_faced(self, target: int, message: PrePrepare | Prepare | Commit) -> Iterator[Message]:
        key = (message.view, message.height)
        if isinstance(message, PrePrepare) and key not in self.coalition.splits:
            self._split(message)
        split = self.coalition.splits.get(key)
        if split is None:
            yield message
        elif isinstance(message, PrePrepare):
            yield self.signed(replace(message, digest=split.digests[split.side(target)]))

    def _split(self, message: PrePrepare) -> None:
        """Make a second batch for the height and let every friend vote for both."""
        data = Payload(-1, self.place, self.world.nonce()).encode()
        others = sorted(
            i for i in range(self.world.key_count) if i not in self.world.checker.faulty
        )
        share = len(others) // 2 if self.rng.random() < 0.7 else self.rng.randint(1, len(others))
        self._lend_out(data)
        split = Split((message.digest, digest_of(data)), frozenset(self.rng.sample(others, share)))
        self.coalition.splits[(message.view, message.height)] = split
        for friend in self.coalition.members:
            if friend.up:
                for delay in (1.0, 15.0, 80.0):
                    friend.later(delay, friend.support, message.view, message.height, split)

    def support(self, view: int, height: int, split: Split) -> None:
        """Vote for both batches of a split, each where it is known."""
        me, public = self.me, self.keys.public
        for target in range(self.world.key_count):
            digest = split.digests[split.side(target)]
            if target == self.index:
                continue
            if me != self._set.primary(view):
                self.post(public[target], self._vote(Prepare(view, height, digest, me)))
            self.post(public[target], self._vote(Commit(view, height, digest, me)))

    def _vote(self, message: Message) -> bytes:
        return encode(self.signed(message))

    def _lend_out(self, data: bytes) -> None:
        for friend in self.coalition.members:
            friend._lies[digest_of(data)] = data

    def lend(self, digest: bytes) -> bytes | None:
        """Give out what was forged, too; the withholding give nothing."""
        if "withhold" in self.tactics and self.rng.random() < 0.9:
            return None
        return self._lies.get(digest) or super().lend(digest)

    def _unobtainable(self, message: PrePrepare) -> Message:
        data = Payload(-1, self.place, message.height, self.rng.choice([GOOD, INVALID])).encode()
        if self.rng.random() < 0.5:
            self._lend_out(data)
        return self.signed(replace(message, digest=digest_of(data)))

    # Lies about the past

    def lie(self, message: ViewChange | NewView) -> Message:
        """Withhold certificates, offer stale ones, or bend what a new view begins with."""
        rng = self.rng
        if isinstance(message, ViewChange):
            genesis = SealCertificate(0, self.world.genesis.header, ())
            stable = rng.choice([message.stable, genesis])
            prepared = self._claims(message, stable.height)
            return self.signed(replace(message, prepared=prepared, stable=stable))
        if rng.random() < 0.5:
            return self._other_quorum(message)
        pre_prepares = list(message.pre_prepares)
        for position, old in enumerate(pre_prepares):
            if rng.random() < 0.5:
                digest = rng.choice(self.coalition.digests)
                pre_prepares[position] = self.signed(replace(old, digest=digest))
        if rng.random() < 0.3:
            pre_prepares = pre_prepares[: rng.randint(0, len(pre_prepares))]
        return self.signed(replace(message, pre_prepares=tuple(pre_prepares)))

    def _claims(self, message: ViewChange, low: int) -> tuple[PreparedCertificate, ...]:
        """Return certificates that are true, withheld, outdated or made up."""
        rng = self.rng
        claims = {p.pre_prepare.height: p for p in message.prepared if rng.random() < 0.5}
        for old in self.coalition.certificates:
            if rng.random() < 0.2 and old.pre_prepare.view < message.view:
                claims[old.pre_prepare.height] = old
        if rng.random() < 0.5:
            first = message.stable.height + 1
            for height in range(first, first + rng.randint(1, 3)):
                view = rng.choice([message.view - 1, rng.randrange(message.view)])
                claims[height] = self._made_up(view, height)
        return tuple(claims[height] for height in sorted(claims) if height > low)

    def _made_up(self, view: int, height: int) -> PreparedCertificate:
        """Return a certificate that lacks nothing but the others' signatures."""
        validators, digest = self._set, self.rng.choice(self.coalition.digests)
        n, wanted, primary = validators.n, validators.quorum - 1, validators.primary(view)
        friends = {friend.me: friend for friend in self.coalition.members}
        vote = friends.get(primary, self).signed(PrePrepare(view, height, digest, primary))
        backups = [i for i in range(n) if i != primary][:wanted]
        if self.rng.random() < 0.3:  # all true, but too few, or too often the same
            few = sorted(i for i in friends if i != primary) or [self.me]
            backups = self.rng.choice([few, few * n])[:wanted]
        votes = [friends.get(i, self).signed(Prepare(view, height, digest, i)) for i in backups]
        return PreparedCertificate(vote, tuple((v.sender, v.signature) for v in votes))

    def _other_quorum(self, message: NewView) -> Message:
        """Begin the view with another quorum's ViewChanges than the rest may be shown."""
        known = {v.sender: v for v in message.view_changes}
        known |= self.coalition.view_changes.get(message.view, {})
        chosen = sorted(self.rng.sample(sorted(known), len(message.view_changes)))
        view_changes = tuple(known[sender] for sender in chosen)
        low = max(v.stable.height for v in view_changes)
        pre_prepares = tuple(
            PrePrepare(message.view, height, digest, self.me)
            for height, digest in carried_over(view_changes)
            if height > low
        )
        return self.signed(NewView(message.view, view_changes, pre_prepares, self.me))

    # Mutation

    def mutate(self, message: Message) -> Message:
        """Change one field, at any depth, and sign again."""
        changed = self._mutated(message)
        if hasattr(changed, "sender") and self.rng.random() < 0.8:
            changed = replace(changed, sender=self.me)
        return self.signed(changed)

    def _mutated(self, value: Any) -> Any:
        rng = self.rng
        if is_dataclass(value):
            name = rng.choice([f.name for f in fields(value) if f.name != "signature"])
            old = getattr(value, name)
            return replace(value, **{name: self._mutated(old)})  # type: ignore[type-var]
        if isinstance(value, tuple):
            return self._mutated_tuple(value)
        if isinstance(value, bytes):
            return rng.choice(self.coalition.digests) if len(value) == 32 else bytes(64)
        return max(0, value + rng.choice([-2, -1, 1, 2, self.world.plan.n, 10**6]))

    def _mutated_tuple(self, value: tuple[Any, ...]) -> tuple[Any, ...]:
        if not value:
            return value
        position, items = self.rng.randrange(len(value)), list(value)
        match self.rng.randrange(4):
            case 0:
                del items[position]
            case 1:
                items.append(items[position])
            case 2:
                items.reverse()
            case _:
                items[position] = self._mutated(items[position])
        return tuple(items)

    def signed(self, message: Any) -> Any:
        """Sign with its own key, also the nested messages that carry its name."""
        if isinstance(message, NewView):
            nested = tuple(self.signed(p) for p in message.pre_prepares)
            message = replace(message, pre_prepares=nested)
        if not hasattr(message, "signature"):
            return message
        domain = Domain(self.chain_id, self._set.digest)
        return replace(message, signature=self._sign(domain.signed_bytes(message)))

    def _garbage(self, data: bytes) -> bytes:
        rng = self.rng
        cut = data[: rng.randint(0, len(data))]
        return rng.choice([cut, rng.randbytes(rng.randint(0, 60)), cut + b"\xc0", b"\x93" * 200])

    # Acting unasked

    def _tick(self) -> None:
        if "flood" in self.tactics:
            for _ in range(_FLOOD):
                self.post(None, encode(self.signed(self._nonsense())))
                self.post(None, encode(self.signed(self._too_early())))
        if "hasty" in self.tactics and self.rng.random() < 0.3:
            view = self.coalition.view + self.rng.choice([1, 1, 2, 5, 2**40])
            genesis = SealCertificate(0, self.world.genesis.header, ())
            self.post(None, encode(self.signed(ViewChange(view, genesis, (), self.me))))
        self.later(_TICK_MS, self._tick)

    def _nonsense(self) -> Message:
        rng, me = self.rng, self.me
        window = self.world.options.window
        above = rng.choice([-3, -1, 0, 0, 1, 2, rng.randint(0, 2 * window), 2**40])
        view = max(0, self.coalition.view + rng.choice([-1, 0, 0, 1, rng.randint(0, 10**6), 2**40]))
        height = max(1, self.coalition.height + above)
        digest = rng.choice([*self.coalition.digests, rng.randbytes(32)])
        genesis = SealCertificate(0, self.world.genesis.header, ())
        makers: list[Callable[[], Message]] = [
            lambda: PrePrepare(view, height, digest, me),
            lambda: Prepare(view, height, digest, me),
            lambda: Commit(view, height, digest, me),
            lambda: Seal(height, digest, me),
            lambda: ViewChange(view + 1, genesis, (), me),
        ]
        return rng.choice(makers)()

    def _too_early(self) -> Message:
        """Return what a correct node might keep for later."""
        window = self.world.options.window
        view = self.coalition.view + self.rng.randint(1, 10**6)
        height = max(1, self.coalition.height) + self.rng.randint(window // 2, window)
        kind = self.rng.choice([Prepare, Commit])
        return kind(view, height, self.rng.randbytes(32), self.me)

    # Forged blocks

    def lend_blocks(self, above: int) -> Copied | None:
        """Serve blocks whose certificate is signed by the coalition only."""
        if "forge" not in self.tactics or not self.up:
            return super().lend_blocks(above)
        height = above + 1
        if above > self.disk.head:
            return None
        data = Payload(-1, self.place, self.world.nonce()).encode()
        header = header_after(self.disk.blocks[above].header, height, digest_of(data))
        seals = []
        validators = self.schedule.at(height)
        domain = Domain(self.chain_id, validators.digest)
        for index in range(validators.quorum):
            seal = Seal(height, header, index)
            seals.append((index, self._sign(domain.signed_bytes(seal))))
        certificate = SealCertificate(height, header, tuple(seals))
        return Copied(height, (Block(digest_of(data), header, data),), certificate)
