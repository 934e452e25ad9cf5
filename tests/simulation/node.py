"""A node around the production replica: performs its effects on a simulated disk and network."""

from collections import deque
from collections.abc import Callable
from random import Random
from typing import Any

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
    Input,
    MessageReceived,
    PayloadReady,
    PayloadRefused,
    Propose,
    TimerFired,
    WorkPending,
)
from consensus.messages import Message, SealCertificate, encode
from tests.simulation.catchup import CatchUp, serve
from tests.simulation.checker import Violation
from tests.simulation.disk import Block, Disk, Transaction
from tests.simulation.execution import Copied, Executor, Ordered
from tests.simulation.payloads import (
    DOUBTFUL,
    GOOD,
    INVALID,
    Payload,
    decode_payload,
    digest_of,
)
from tests.simulation.trace import brief

_FROZEN_MAX = 3000
_REFETCH_MS = 80.0
_STATUS_MS = 500.0


class SimNode:
    """One running node at one place. Crashes lose all but `disk`."""

    def __init__(self, world: Any, place: int, index: int | None) -> None:
        self.world = world
        self.place = place
        self.index = index  # of its key; the same for its whole life unless it rotates
        self.rng: Random = world.rng
        self.keys, self.chain_id = world.keys, world.chain_id
        self.disk = Disk(world.scheduler, self.rng, world.genesis)
        self.disk.sync_ms = world.plan.sync_ms
        self.schedule = world.schedule_of(self.disk.blocks)
        self.skew = self.rng.uniform(*world.plan.skew)
        self.honest = True
        self.up = False
        self.paused = False
        self.crashes = 0
        self.views = 0
        self._life = 0

    # Life and death

    def start(self) -> None:
        """Boot from what the disk holds."""
        world = self.world
        self.up, self.paused = True, False
        self._life += 1
        self._frozen: deque[Callable[[], None]] = deque()
        self._queue: deque[tuple[Effect, int]] = deque()  # effect, transaction it waits for
        self._timers: dict[str, int] = {}
        self._timer_count = 0
        self._volatile: dict[bytes, bytes] = {}
        self._readied: set[tuple[int, bytes]] = set()  # batches answered for in this life
        self._ordered = 0  # the last height that was to be executed in this life
        self._proposed: dict[int, int] = {}  # work -> view in which we proposed it
        self._proposing = False
        self._pending_said = False
        self.view_timer_started = False
        self.executor = Executor(self)
        self.catchup = CatchUp(self)
        self.done = {
            decode_payload(block.payload).work for block in self.disk.blocks if block.payload
        }
        self.pending: dict[int, None] = {}
        self.disk.on_synced = self.wake(self._perform)
        self.schedule = world.schedule_of(self.disk.blocks)
        following = self._next_key()
        if following is not None:
            world.trace(self.place, "has key %d from now on", following)
            self.index = following
        self.replica = world.new_replica(self)
        world.trace(self.place, "starts at height %d", self.disk.head)
        if self.honest:  # the crash may have come between the sync and the word of it
            for height, block in enumerate(self.disk.blocks):
                world.checker.durable(self.place, height, block)
        self._guard(lambda: self._take(self._boot(), Transaction()))
        self.later(self.rng.uniform(0, 20), self._learn_work)
        if world.plan.later_sets:
            self._look_around()

    def _next_key(self) -> int | None:
        """Return the key that this node changes to, once that is of the set that reigns."""
        following: int | None = self.world.plan.rotations.get(self.index)
        validators = self.schedule.at(self._stable().height + 1)
        if following is None or validators.index_of(self.keys.public[following]) is None:
            return None
        return following

    def _consider_next_key(self) -> None:
        if self.index in self.world.plan.rotations:
            self.later(self.rng.uniform(0, 500), self._restart_with_next_key)

    def _restart_with_next_key(self) -> None:
        if self._next_key() is not None:
            self.crash()
            self.start()

    def _look_around(self) -> None:
        """Ask now and then how far others are: votes of validators that it does not know tell it
        nothing."""
        peer = self.rng.choice(self.world.nodes)
        if peer is not self:
            carry = self.world.network.carry
            carry(self.place, peer.place, self._asked_height, peer, self._life)
        self.later(_STATUS_MS, self._look_around)

    def _asked_height(self, peer: "SimNode", life: int) -> None:
        if peer.up and not peer.paused:
            height = peer._stable().height
            self.world.network.carry(peer.place, self.place, self._told_height, life, height)

    def _told_height(self, life: int, height: int) -> None:
        if life != self._life or self.paused:
            return
        # Who has no vote follows its peers; who has one leaves it to consensus while it can.
        ahead = 0 if self.replica.index is None else self.world.options.horizon
        if height > self.disk.head + ahead:
            self.catchup.want(height)

    def _stable(self) -> SealCertificate:
        disk = self.disk
        certified = [height for height in disk.certificates if height <= disk.head]
        return disk.certificates[max(certified)] if certified else self._genesis_certificate()

    def _boot(self) -> list[Effect]:
        disk = self.disk
        return self.world.start_replica(
            self.replica, dict(disk.wal), disk.head, disk.blocks[-1].header, self._stable()
        )

    def _genesis_certificate(self) -> SealCertificate:
        return SealCertificate(0, self.world.genesis.header, ())

    def crash(self) -> None:
        """Stop at once; whatever was not synced is gone."""
        self.world.trace(self.place, "crashes")
        self.up = False
        self.crashes += 1
        self._life += 1
        self.disk.crash()

    def pause(self) -> None:
        """Stop like SIGSTOP: everything that happens waits."""
        self.paused = True

    def resume(self) -> None:
        """Go on; what waited happens now."""
        self.paused = False
        while self._frozen and self.up and not self.paused:
            self._frozen.popleft()()

    def later(self, delay_ms: float, action: Callable[..., None], *arguments: object) -> None:
        """Do something after a delay, unless this life has ended by then."""
        self.world.scheduler.later(delay_ms, self.wake(action, *arguments))

    def wake(self, action: Callable[..., None], *arguments: object) -> Callable[[], None]:
        """Return a callback that does nothing in a later life and waits while paused."""
        life = self._life

        def run() -> None:
            if life != self._life:
                return
            if self.paused:
                if len(self._frozen) < _FROZEN_MAX:
                    self._frozen.append(run)
                return
            action(*arguments)

        return run

    # Inputs

    def deliver(self, data: bytes) -> None:
        """Take a message from the network, in the order of checks of the production driver."""
        if not self.up:
            return
        if self.paused:
            if len(self._frozen) < _FROZEN_MAX:
                self._frozen.append(self.wake(self.deliver, data))
            return
        world = self.world
        letter = world.letters.open(data)
        message = letter.message
        if message is None or not self._guard(lambda: self.replica.is_relevant(message)):
            return
        is_certain = self._guard(lambda: self.replica.can_judge(message))
        if world.letters.is_authentic(letter, self.schedule):
            world.trace(self.place, "receives %s", message)
            self.step(MessageReceived(message))
        elif self.honest and is_certain:
            truth = world.checker.truth
            if world.letters.is_authentic(letter, truth):
                world.checker.broken(self.place, f"would punish who sent {brief(message)}")

    def step(self, happened: Input, payload: tuple[int, bytes, bytes] | None = None) -> None:
        """Let the replica take one input and perform what it asks for."""
        transaction = Transaction()
        if payload is not None:
            transaction.payloads.append(payload)
            self._readied.add(payload[:2])
        effects = self._guard(lambda: self.replica.step(happened))
        if effects is not None:
            self._take(effects, transaction)
        if self.up:
            self._consider_proposing()

    def _guard(self, act: Callable[[], Any]) -> Any:
        """Run core code; an honest node's exception is a violation, a faulty one's its end."""
        try:
            return act()
        except Violation:
            raise
        except Exception as error:  # noqa: BLE001 - whatever the core raises is the finding
            if self.honest:
                self.world.checker.broken(self.place, f"{type(error).__name__}: {error}", error)
            self.crash()
            return None

    def _take(self, effects: list[Effect], transaction: Transaction) -> None:
        for effect in effects:
            if isinstance(effect, Persist):
                transaction.wal.append((effect.key, effect.value))
            elif isinstance(effect, Forget):
                transaction.wal.append((effect.key, None))
            elif isinstance(effect, Stable):  # durable no later than the rows that follow
                self._keep(effect.certificate)
        ticket = 0
        if transaction.wal or transaction.payloads:
            ticket = self.world.persist(self, transaction)
        waits = 0
        for effect in effects:
            if isinstance(effect, Persist):
                waits = ticket
            elif not isinstance(effect, Forget | Stable):
                self._queue.append((effect, waits))
        self._perform()

    def _keep(self, certificate: SealCertificate) -> None:
        if self.honest:
            self.world.checker.stable(self.place, certificate)
        self.world.keep(self, certificate)
        self._consider_next_key()

    def _perform(self) -> None:
        """Perform queued effects in order, up to the first that waits for the disk."""
        queue = self._queue
        life = self._life
        while queue and queue[0][1] <= self.disk.durable:
            effect, _ = queue.popleft()
            self._do(effect)
            if life != self._life:
                return

    def _do(self, effect: Effect) -> None:
        world = self.world
        match effect:
            case Broadcast(message):
                self.transmit(None, message)
            case Send(to, message):
                self.transmit(to, message)
            case SetTimer(name, delay_ms):
                self._timer_count += 1
                self._timers[name] = self._timer_count
                self.later(delay_ms * self.skew, self._fire, name, self._timer_count)
            case CancelTimer(name):
                self._timers.pop(name, None)
            case ObtainPayload(height, digest, fresh):
                self.later(self.rng.uniform(0, 1), self._obtain, height, digest, fresh)
            case Execute(height, digest):
                self._execute(height, digest)
            case Evidence():
                world.trace(self.place, "accuses: %s", effect)
                world.counters["evidence"] += 1
                if self.honest:
                    world.checker.accused(self.place, effect)
            case NeedSync(height):
                world.trace(self.place, "needs blocks up to %d", height)
                self.catchup.want(height)
            case ViewEntered(view):
                world.trace(self.place, "enters view %d", view)
                world.counters["views"] += 1
                self.views += 1
                self._proposed.clear()
            case Halt(reason):
                if self.honest:
                    world.checker.broken(self.place, f"halts: {reason}")
                self.crash()

    def _fire(self, name: str, count: int) -> None:
        if self._timers.get(name) == count:
            del self._timers[name]
            self.world.trace(self.place, "timer %s fires", name)
            self.step(TimerFired(name))

    # Messages out

    def transmit(self, to: bytes | None, message: Message) -> None:
        """Send to one validator, by its key, or to all and to the observers."""
        if self.honest and self.index is not None:
            self.world.checker.sent(self.index, message)
        self.post(to, encode(message))

    def post(self, to: bytes | None, data: bytes) -> None:
        """Put bytes on the network."""
        world = self.world
        target = None if to is None else self.keys.public.index(to)
        for node in world.nodes:
            if node.index == self.index or (to is not None and node.index != target):
                continue
            if not world.network.is_lost_for_good(node.place, data):
                world.network.carry(self.place, node.place, node.deliver, data)

    # Payloads

    def payload(self, digest: bytes) -> bytes | None:
        """Return the batch's bytes if this node has them."""
        return self._volatile.get(digest) or self.disk.payloads.get(digest)

    def lend(self, digest: bytes) -> bytes | None:
        """Return what this node gives to a peer that asks."""
        return self.payload(digest) if self.up and not self.paused else None

    def _obtain(self, height: int, digest: bytes, fresh: bool) -> None:
        if self.replica.low >= height:
            return
        data = self.payload(digest)
        if data is not None:
            self._judge(height, digest, data, fresh)
            return
        for peer in self.rng.sample(self.world.nodes, min(2, len(self.world.nodes))):
            if peer is not self:
                self.world.network.carry(self.place, peer.place, self._ask_payload, peer, digest)
        self.later(_REFETCH_MS, self._obtain, height, digest, fresh)

    def _ask_payload(self, peer: "SimNode", digest: bytes) -> None:
        data = peer.lend(digest)
        if data is not None and digest_of(data) == digest:
            self.world.scheduler.later(
                self.rng.uniform(*self.world.fetch_ms),
                self._receive_payload, self._life, digest, data,
            )  # fmt: skip

    def _receive_payload(self, life: int, digest: bytes, data: bytes) -> None:
        if life == self._life and not self.paused:
            self._volatile[digest] = data

    def _judge(self, height: int, digest: bytes, data: bytes, fresh: bool) -> None:
        quality = decode_payload(data).quality
        refused = quality == INVALID or (quality == DOUBTFUL and self.rng.random() < 0.5)
        if fresh and refused:
            self.step(PayloadRefused(height, digest))
        else:
            self.step(PayloadReady(height, digest), (height, digest, data))

    # Execution and synchronisation

    def execution_ms(self) -> float:
        """Return how long the next block takes."""
        return self.rng.uniform(*self.world.plan.execute_ms)

    def copy(self, job: Copied) -> None:
        """Queue verified blocks from a peer."""
        self.executor.submit(job)

    def _execute(self, height: int, digest: bytes) -> None:
        self.world.trace(self.place, "executes height %d: %s", height, digest)
        if self.honest:
            # As in production, a batch is kept by height: having it for another one is no help.
            has = (height, digest) in self._readied or self.disk.has(height, digest)
            has = has or height <= self.disk.head  # sync brought it meanwhile
            self.world.checker.committed(self.place, height, digest, self._ordered_head(), has)
        self._ordered = height
        self.executor.submit(Ordered(height, digest))

    def _ordered_head(self) -> int:
        return max(self.disk.head, self._ordered)

    def became_durable(self, height: int, block: Block) -> None:
        """A block was synced to disk: here a client would get its answer."""
        if self.honest:
            self.world.checker.durable(self.place, height, block)
        self.world.plan_set(self.schedule, height, block)
        self._consider_next_key()
        if block.payload is not None:
            work = decode_payload(block.payload).work
            self.done.add(work)
            self.pending.pop(work, None)
        self._say_pending()

    def broken(self, sentence: str) -> None:
        """The node found that it must have been misled."""
        if self.honest:
            self.world.checker.broken(self.place, sentence, None)

    def ask_for_blocks(self, above: int) -> None:
        """Ask a random peer for sealed blocks."""
        peer = self.rng.choice(self.world.nodes)
        if peer is not self:
            self.world.network.carry(self.place, peer.place, self._asked, peer, self._life, above)

    def _asked(self, peer: "SimNode", life: int, above: int) -> None:
        copied = peer.lend_blocks(above)
        if copied is not None:
            self.world.network.carry(peer.place, self.place, self._answered, life, copied)

    def lend_blocks(self, above: int) -> Copied | None:
        """Return sealed blocks for a peer that is behind."""
        return serve(self.disk, above) if self.up and not self.paused else None

    def _answered(self, life: int, copied: Copied) -> None:
        if life == self._life and not self.paused:
            self.catchup.answer(copied)

    # Work of clients

    def learn(self, work: int) -> None:
        """A client's batch reached this node's mempool."""
        if self.up and work not in self.done:
            self.pending[work] = None
            self._say_pending()
            self._consider_proposing()

    def _learn_work(self) -> None:
        for work in range(self.world.work_count):
            if work not in self.done:
                self.pending[work] = None
        self._say_pending()
        self._consider_proposing()

    def _say_pending(self) -> None:
        pending = bool(self.pending)
        if pending != self._pending_said:
            self._pending_said = pending
            self.step(WorkPending(pending))

    def _consider_proposing(self) -> None:
        if self._proposing or not self.pending or not self.replica.can_propose:
            return
        if any(work not in self._proposed for work in self.pending):
            self._proposing = True
            self.later(self.rng.uniform(0.0, 2.0), self._propose)

    def _change(self) -> int:
        """Return which validator set the next batch plans, if it plans one."""
        following = len(self.schedule.sets())
        if following > len(self.world.plan.later_sets) or self.rng.random() < 0.7:
            return 0
        return following

    def _propose(self) -> None:
        self._proposing = False
        if not self.replica.can_propose:
            return
        work = next((work for work in self.pending if work not in self._proposed), None)
        if work is None:
            return
        quality = DOUBTFUL if self.rng.random() < self.world.plan.doubtful else GOOD
        change = self._change()
        data = Payload(work, self.place, self.world.nonce(), quality, change).encode()
        digest, height = digest_of(data), self.replica.next_height
        self._proposed[work] = height
        self._volatile[digest] = data
        self.world.trace(self.place, "proposes work %d as %s", work, digest)
        self.step(Propose(digest), (height, digest, data))
