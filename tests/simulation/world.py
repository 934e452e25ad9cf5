"""One simulated network, from its seed to its verdict."""

import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

from consensus.effects import Effect
from consensus.messages import SealCertificate
from consensus.options import Options
from consensus.replica import Replica
from consensus.validators import Validator, ValidatorSchedule, ValidatorSet
from tests.simulation.byzantine import ByzantineNode, Coalition
from tests.simulation.checker import Checker, Violation, smallest_safe_quorum
from tests.simulation.disk import Block, Transaction
from tests.simulation.footprint import footprint
from tests.simulation.keys import Keyring
from tests.simulation.letters import Letters
from tests.simulation.nemesis import Nemesis
from tests.simulation.network import Network
from tests.simulation.node import SimNode
from tests.simulation.payloads import decode_payload
from tests.simulation.plan import Plan, draw
from tests.simulation.scheduler import Scheduler
from tests.simulation.trace import Tracer

CHAIN_ID = bytes(range(32))
NEW_WORK = 5  # batches that must get through after healing
STEPS_MAX = 600_000
VIEW_TIMEOUT_MS, VIEW_TIMEOUT_MAX_MS, RESEND_MS = 400, 6_400, 200


@dataclass(slots=True)
class Result:
    """What became of one seed."""

    seed: int
    violation: str | None = None
    details: str = ""
    counters: Counter[str] = field(default_factory=Counter)


class World:
    """All nodes of one network, and the time they live in."""

    def __init__(self, plan: Plan, tracer: Tracer | None = None) -> None:
        self.plan = plan
        self.key_count = plan.key_count
        self.rng = Random(f"radledger/{plan.seed}/world")
        self.scheduler = Scheduler()
        self.fetch_ms = plan.fetch_ms
        self.network = Network(self.scheduler, self.rng, plan.weather)
        self.keys = Keyring(plan.seed, plan.key_count)
        self.chain_id = CHAIN_ID
        public = self.keys.public
        self.sets = [
            ValidatorSet(tuple(Validator(f"hospital-{i}", public[key]) for i, key in seats))
            for seats in plan.sets
        ]
        self.letters = Letters(CHAIN_ID, self.keys)
        self.genesis = Block(bytes(32), bytes(31) + b"\x01", None)
        self.checker = Checker(self.sets[0], CHAIN_ID, self.keys, self.genesis, self.plan_set)
        self.checker.faulty = set(plan.tactics)
        self.checker.forgetful = set(plan.wiped)
        self.options = Options(
            **{
                "view_timeout_ms": VIEW_TIMEOUT_MS,
                "view_timeout_max_ms": VIEW_TIMEOUT_MAX_MS,
                "resend_ms": RESEND_MS,
                "buffered_per_sender_max": 32,
                **plan.options,
            }
        )
        self.counters: Counter[str] = Counter()
        self.work_count = 0
        self._nonce = 0
        self._tracer = tracer
        self.coalition = Coalition()
        self.nodes: list[SimNode] = []
        self._settle()

    def _settle(self) -> None:
        """Build the nodes: validators, the second of each twin, validators to come, observers."""
        plan = self.plan
        for index in range(plan.n):
            tactics = plan.tactics.get(index, ())
            if tactics and "twins" not in tactics:
                self.nodes.append(ByzantineNode(self, index, index, tactics))
            else:
                self.nodes.append(SimNode(self, index, index))
        twins = [index for index, tactics in plan.tactics.items() if "twins" in tactics]
        for index in twins:
            self.nodes[index].honest = False
            self.nodes.append(SimNode(self, len(self.nodes), index))
            self.nodes[-1].honest = False
        for key in sorted(set(range(plan.n, plan.key_count)) - set(plan.rotations.values())):
            self.nodes.append(SimNode(self, len(self.nodes), key))
        for _ in range(plan.observers):
            self.nodes.append(SimNode(self, len(self.nodes), None))

    # What nodes need

    def new_replica(self, node: SimNode) -> Replica:
        """Return the production replica for `node`, not started yet."""
        if node.index is None:
            return Replica(None, node.schedule, CHAIN_ID, _cannot_sign, self.options)
        sign, key = self.keys.signer(node.index), self.keys.public[node.index]
        return Replica(None, node.schedule, CHAIN_ID, sign, self.options, key)

    def schedule_of(self, blocks: Sequence[Block]) -> ValidatorSchedule:
        """Return what a node knows of the validator sets that has executed `blocks`."""
        schedule = ValidatorSchedule(self.sets[0])
        for height, block in enumerate(blocks):
            self.plan_set(schedule, height, block)
        return schedule

    def plan_set(self, schedule: ValidatorSchedule, height: int, block: Block) -> None:
        """Do what execution does with a change: one is planned at a time, as early as allowed."""
        if block.payload is None or schedule.next_change_after(height) is not None:
            return
        change, known = decode_payload(block.payload).change, len(schedule.sets())
        if change == known < len(self.sets):
            schedule.plan(height + self.options.horizon, self.sets[change])

    def start_replica(
        self,
        replica: Replica,
        wal: Mapping[bytes, bytes],
        height: int,
        header: bytes,
        stable: SealCertificate,
    ) -> list[Effect]:
        """Let the replica rebuild itself from what is durable."""
        return replica.start(wal, height, header, stable)

    def keep(self, node: SimNode, certificate: SealCertificate) -> None:
        """Begin to make a certificate durable, before the rows of the same list."""
        node.disk.submit(Transaction(certificate=certificate))

    def persist(self, node: SimNode, transaction: Transaction) -> int:
        """Begin to make rows durable; return the number to wait for."""
        return node.disk.submit(transaction)

    def nonce(self) -> int:
        """Return a number never given before."""
        self._nonce += 1
        return self._nonce

    def trace(self, place: int, text: str, *values: object) -> None:
        """Show one event, when somebody watches."""
        if self._tracer is not None:
            self._tracer.show(self.scheduler.now, place, text, values)

    # The two phases

    def run(self) -> None:
        """Live through the whole plan. Raises `Violation`."""
        for node in self.nodes:
            self.scheduler.later(self.rng.uniform(0, 50), _start, node)
        if self.plan.kind == "stall":
            self._stall()
        else:
            self._suffer()
        healed = self._heal()
        self._recover(healed)
        self._check_memory()

    def _suffer(self) -> None:
        nemesis = Nemesis(self)
        nemesis.start()
        end = self.plan.safety_ms
        self._bring_work(self.plan.work_every_ms, end)
        while self.scheduler.now < end:
            self._advance(min(end, self.scheduler.now + 250.0))
            self._check_memory()
        nemesis.stop()

    def _stall(self) -> None:
        """One validator too many falls silent: nothing may be decided until they are back."""
        plan = self.plan
        end = plan.safety_ms + 4 * VIEW_TIMEOUT_MS
        self._bring_work(plan.work_every_ms, end)
        self._advance(plan.safety_ms / 2)
        silent = self.rng.sample(range(plan.n), plan.n - plan.quorum + 1)
        self.trace(-1, "%s fall silent", silent)
        crash = self.rng.random() < 0.5
        for index in silent:
            if crash:
                self.nodes[index].crash()
            others = [node.place for node in self.nodes]
            self.network.cuts |= {(index, other) for other in others}
        self._advance(self.scheduler.now + 2_000.0)  # what was under way may arrive
        decided = len(self.checker.decided)
        self._advance(end + 2_000.0)
        if len(self.checker.decided) != decided:
            self.checker.broken(-1, "a height was decided without a quorum")

    def _heal(self) -> list[SimNode]:
        """Repair a quorum of honest validators and all observers; leave the rest broken."""
        honest = [node for node in self.nodes if node.honest and node.index is not None]
        if self.plan.later_sets:
            healed = self._enough_for_all_sets(honest)
        else:
            count = self.rng.randint(self.plan.quorum, len(honest))
            healed = self.rng.sample(honest, count if self.rng.random() < 0.7 else len(honest))
        healed += [node for node in self.nodes if node.index is None]
        self.network.cuts, self.network.slow = set(), {}
        self.network.weather = self.plan.calm
        self.fetch_ms = (1.0, 40.0)
        for node in self.nodes:
            if node in healed or not node.honest:
                self._repair(node)
            else:
                self._leave_broken(node)
        self.trace(-1, "healed: %s", sorted(node.place for node in healed))
        return healed

    def _enough_for_all_sets(self, honest: list[SimNode]) -> list[SimNode]:
        """Choose nodes of which every set has a quorum: blocks of earlier ones are needed, too."""
        healed = self.rng.sample(honest, len(honest))
        members = [{key for _, key in seats} for seats in self.plan.sets]
        for node in list(healed):
            rest = {key for other in healed if other is not node for key in self._keys_of(other)}
            needed = [smallest_safe_quorum(len(keys)) for keys in members]
            enough = all(len(k & rest) >= q for k, q in zip(members, needed, strict=True))
            if enough and self.rng.random() < 0.4:
                healed.remove(node)
        return healed

    def _keys_of(self, node: SimNode) -> set[int]:
        """Return all keys that a node has in its life."""
        own = {node.index}
        while more := {pair for pair in self.plan.rotations.items() if len(own & set(pair)) == 1}:
            own |= {key for pair in more for key in pair}
        return {key for key in own if key is not None}

    def _repair(self, node: SimNode) -> None:
        node.disk.sync_ms = (0.1, 2.0)
        if not node.up:
            self.scheduler.later(self.rng.uniform(0, 400), _start, node)
        elif node.paused:
            node.resume()

    def _leave_broken(self, node: SimNode) -> None:
        others = [other.place for other in self.nodes]
        match self.rng.choice(["down", "deaf", "dumb"]):
            case "down":
                if node.up:
                    node.crash()
            case "deaf":
                self.network.cuts |= {(other, node.place) for other in others}
            case "dumb":
                self.network.cuts |= {(node.place, other) for other in others}

    def _recover(self, healed: list[SimNode]) -> None:
        """Demand that new work is executed everywhere, and all that was acknowledged is there."""
        acknowledged = len(self.checker.decided) - 1
        before = {work for node in self.nodes for work in node.done}
        wanted = NEW_WORK
        if self.plan.later_sets and self.plan.calm.delay_ms[1] < RESEND_MS / 2:
            wanted += self.options.horizon  # what is planned by then takes over, too
        skew = max(1.0, self.plan.skew[1])
        limit = self.scheduler.now + 12 * VIEW_TIMEOUT_MAX_MS * skew
        self._bring_work(120.0, limit)

        def recovered() -> bool:
            self._check_steps()
            return all(
                node.disk.head >= acknowledged and len(node.done - before) >= wanted
                for node in healed
            )

        began = self.scheduler.now
        if not self._advance(limit, recovered):
            self.checker.broken(-1, self._describe_stall(healed, acknowledged, before, wanted))
        self.counters["recovery_ms"] = round(self.scheduler.now - began)

    def _describe_stall(
        self, healed: list[SimNode], acknowledged: int, before: set[int], wanted: int
    ) -> str:
        lines = [f"no recovery: {wanted} more batches and height {acknowledged} are demanded"]
        lines += [
            f"  place {node.place}: view {node.replica.view} height {node.disk.head} "
            f"{len(node.done - before)} more batches; {node.replica.phase_report()}"
            for node in healed
        ]
        return "\n".join(lines)

    def _advance(self, until: float, stop: Callable[[], bool] | None = None) -> bool:
        self._check_steps()
        return self.scheduler.run(until, stop)

    def _check_steps(self) -> None:
        if self.scheduler.steps > STEPS_MAX:
            self.checker.broken(-1, f"more than {STEPS_MAX} steps: a storm of messages")

    def _bring_work(self, every_ms: float, until: float) -> None:
        if self.scheduler.now >= until:
            return
        work = self.work_count
        self.work_count += 1
        for node in self.nodes:
            self.scheduler.later(self.rng.uniform(0, 30), node.learn, work)
        self.scheduler.later(
            every_ms * self.rng.uniform(0.2, 1.8), self._bring_work, every_ms, until
        )

    def _check_memory(self) -> None:
        for node in self.nodes:
            if node.honest and node.up:
                size = footprint(node.replica)
                self.counters["footprint"] = max(size, self.counters["footprint"])
                self.checker.bounded(node.place, size, self.memory_limit)

    @property
    def reigns(self) -> int:
        """How many validator sets took over from another."""
        truth, head = self.checker.truth, len(self.checker.decided) - 1
        return truth.sets().index(truth.at(head))

    @property
    def memory_limit(self) -> int:
        """The values that one replica may hold, from what its options allow."""
        n = max(each.n for each in self.sets)
        votes = 10 * self.options.buffered_per_sender_max + 40 * self.options.window
        certificates = self.options.window * (3 * smallest_safe_quorum(n) + 10)
        return 1000 + n * (votes + certificates)


def _start(node: SimNode) -> None:
    if not node.up:
        node.start()


def _cannot_sign(data: bytes) -> bytes:
    raise Violation("an observer signed something")


def simulate(seed: int) -> Result:
    """Simulate the plan of `seed`."""
    return run(draw(seed))


def run(plan: Plan, tracer: Tracer | None = None) -> Result:
    """Simulate `plan` and return its result; a violation is in it, not raised."""
    world = World(plan, tracer)
    result = Result(plan.seed)
    try:
        world.run()
    except Violation as violation:
        result.violation = str(violation)
        result.details = traceback.format_exc(limit=-6)
    counters = world.counters
    counters["steps"] = world.scheduler.steps
    counters["messages"] = world.network.carried
    counters["crashes"] = sum(node.crashes for node in world.nodes)
    counters["heights"] = len(world.checker.decided) - 1
    counters["reigns"] = world.reigns
    counters["virtual_ms"] = round(world.scheduler.now)
    result.counters = counters
    return result
