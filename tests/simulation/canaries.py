"""Known bugs, planted on purpose: a simulator that finds nothing proves nothing.

A canary patches the core or the node around it for as long as it runs, and is then undone.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

from consensus import (
    authentication,
    buffer,
    normal_case,
    relevance,
    replica,
    slots,
    validators,
    view_change,
    views,
    wal,
)
from consensus.effects import SetTimer
from consensus.messages import NULL_DIGEST, Commit, NewView, ViewChange
from consensus.options import Options
from tests.simulation import catchup, checker, letters
from tests.simulation.disk import Transaction
from tests.simulation.node import SimNode
from tests.simulation.plan import Plan, change_sets, draw
from tests.simulation.trace import Tracer
from tests.simulation.world import VIEW_TIMEOUT_MS, Result, World, run


@dataclass(frozen=True, slots=True)
class Canary:
    """One bug: how to plant it, and within how many seeds it must be found."""

    story: str
    seeds: int
    plant: Callable[[], Any]  # a context manager
    shape: Callable[[Plan], Plan] = lambda plan: plan


@dataclass(frozen=True, slots=True)
class Hunt:
    """How the search for one bug went."""

    name: str
    seeds: int
    found: Result | None

    def __str__(self) -> str:
        if self.found is None:
            return f"{self.name}: NOT FOUND within {self.seeds} seeds"
        first = (self.found.violation or "").splitlines()[0]
        return (
            f"{self.name}: found after {self.seeds} seeds: {first}\n"
            f"  replay: python -m tests.simulation --canary {self.name} "
            f"--seed {self.found.seed} --trace"
        )


@contextmanager
def patched(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Replace an attribute for a while; of a module, in every module that imported it, too."""
    old = getattr(owner, name)
    places = [owner]
    if getattr(owner, "__name__", "").startswith("consensus."):
        modules = [m for key, m in sys.modules.items() if key.startswith("consensus.")]
        places += [m for m in modules if getattr(m, name, None) is old and m is not owner]
    for place in places:
        setattr(place, name, value)
    try:
        yield
    finally:
        for place in places:
            setattr(place, name, old)


@contextmanager
def _small_quorum() -> Iterator[None]:
    """The checker believes in it, too, so that only the fork can give it away."""

    def too_small(n: int) -> int:
        return 2 * ((n - 1) // 3) + 1

    with (
        patched(validators, "quorum_size", too_small),
        patched(checker, "smallest_safe_quorum", too_small),
    ):
        yield


def _no_persist() -> Any:
    """Votes leave before they are durable, and a crash loses them."""

    def persist(world: World, node: SimNode, transaction: Transaction) -> int:
        node.disk.submit(transaction)
        return 0

    return patched(World, "persist", persist)


def _prepared_ignored() -> Any:
    original = view_change.carried_over

    def carried_over(view_changes: Any) -> list[tuple[int, bytes]]:
        return [(height, NULL_DIGEST) for height, _ in original(view_changes)]

    return patched(view_change, "carried_over", carried_over)


def _any_commit() -> Any:
    """A commit counts whatever digest it names."""
    original = slots.Tally.add

    def add(tally: Any, key: Any, vote: Any) -> int:
        count = original(tally, key, vote)
        return sum(tally.counts.values()) if isinstance(vote, Commit) else count

    return patched(slots.Tally, "add", add)


def _view_timer_once() -> Any:
    """The view timer is started only once in a node's life."""
    original = SimNode._do

    def do(node: SimNode, effect: Any) -> None:
        if isinstance(effect, SetTimer) and effect.name == "view":
            if node.view_timer_started:
                return
            node.view_timer_started = True
        original(node, effect)

    return patched(SimNode, "_do", do)


def _seals_unchecked() -> Any:
    return patched(catchup, "seal_checks", lambda *_: [])


def _view_forgotten() -> Any:
    """A restarted node believes to be in view 0."""
    original = World.start_replica

    def start_replica(world: World, replica: Any, rows: Any, *rest: Any) -> Any:
        views = (wal.NEW_VIEW_KEY, wal.VIEW_CHANGE_KEY)
        kept = {key: value for key, value in rows.items() if key not in views}
        return original(world, replica, kept, *rest)

    return patched(World, "start_replica", start_replica)


@contextmanager
def _vote_counted_twice() -> Iterator[None]:
    """A repeated commit of one validator raises the tally, too."""
    original = normal_case.on_commit
    is_relevant = replica.Replica.is_relevant

    def on_commit(state: Any, vote: Commit) -> None:
        slot = state.slots.get(vote.height)
        if slot is not None and slot.commits.votes.get(vote.sender) == vote:
            del slot.commits.votes[vote.sender]
        original(state, vote)

    def relevant(self: Any, message: Any) -> bool:
        return isinstance(message, Commit) or is_relevant(self, message)

    with (
        patched(normal_case, "on_commit", on_commit),
        patched(replica.Replica, "is_relevant", relevant),
    ):
        yield


def _lowest_view_wins() -> Any:
    """Of two certificates for a height, the new view takes the older."""

    def carried_over(view_changes: Any) -> list[tuple[int, bytes]]:
        stable = view_change.stable_certificate(view_changes).height
        votes = [c.pre_prepare for v in view_changes for c in v.prepared]
        above = sorted((v for v in votes if v.height > stable), key=lambda v: -v.view)
        digests = {vote.height: vote.digest for vote in above}
        heights = range(stable + 1, max(digests, default=stable) + 1)
        return [(height, digests.get(height, NULL_DIGEST)) for height in heights]

    return patched(view_change, "carried_over", carried_over)


def _new_view_unchecked() -> Any:
    """Backups believe what the new primary derived."""
    original = views.on_new_view

    def on_new_view(state: Any, message: Any) -> None:
        claimed = [(vote.height, vote.digest) for vote in message.pre_prepares]
        with patched(view_change, "carried_over", lambda _: claimed):
            original(state, message)

    return patched(views, "on_new_view", on_new_view)


def _certificates_unchecked() -> Any:
    """The signatures of prepared certificates are not verified."""
    all_signatures = authentication.signatures_of

    def signatures_of(message: Any, schedule: Any, chain_id: bytes) -> Any:
        found = all_signatures(message, schedule, chain_id)
        if not isinstance(message, ViewChange | NewView):
            return found
        view_changes = message.view_changes if isinstance(message, NewView) else (message,)
        prepared = {
            signature
            for v in view_changes
            for c in v.prepared
            for signature in (c.pre_prepare.signature, *(s for _, s in c.prepares))
        }
        return [check for check in found if check.signature not in prepared]

    return patched(letters, "signatures_of", signatures_of)


def _second_pre_prepare() -> Any:
    """The last PrePrepare for a height counts, not the first."""

    def on_pre_prepare(state: Any, vote: Any) -> None:
        slot = state.slot(vote.height)
        if slot.decided in (None, vote.digest):
            slot.voted = False
            normal_case.accept(state, vote, carried_over=False)

    return patched(normal_case, "on_pre_prepare", on_pre_prepare)


def _buffer_unbounded() -> Any:
    original = buffer.Buffer.__init__
    return patched(buffer.Buffer, "__init__", lambda self, limit: original(self, 10**9))


def _change_at_once() -> Any:
    """A set takes over at the height after the block that planned it."""

    def plan_set(world: World, schedule: Any, height: int, block: Any) -> None:
        with patched(Options, "horizon", 1):
            original(world, schedule, height, block)

    original = World.plan_set
    return patched(World, "plan_set", plan_set)


def _horizon_ignored() -> Any:
    """A node that is far behind judges votes by the sets that it knows."""
    return patched(relevance, "is_beyond_horizon", lambda *_: False)


def _sets_forgotten() -> Any:
    """A restarted node knows the set of the genesis only."""
    original = World.schedule_of
    return patched(World, "schedule_of", lambda world, _: original(world, ()))


def _certificate_last() -> Any:
    """A certificate is written when there is time, after the votes that rely on it."""
    original = World.keep

    def keep(world: World, node: SimNode, certificate: Any) -> None:
        node.later(300.0, original, world, node, certificate)

    return patched(World, "keep", keep)


def _changing(plan: Plan) -> Plan:
    return change_sets(replace(plan.steady(), kind="mixed"))


def _flooded(plan: Plan) -> Plan:
    flood: dict[int, tuple[str, ...]] = {0: ("flood",)}
    plan = replace(plan.steady(), n=4, kind="mixed", tactics=flood, wiped=())
    return replace(plan, faults_every_ms=1e6)


def _lying(plan: Plan) -> Plan:
    liars = dict.fromkeys(range(plan.f), ("liar",))
    return replace(plan.steady().tangle(), tactics=liars)


def _timer_never_doubles(plan: Plan) -> Plan:
    return replace(plan, options={**plan.options, "view_timeout_max_ms": VIEW_TIMEOUT_MS})


CANARIES = {
    "small-quorum": Canary(
        "2f+1 votes decide at N=8", 60, _small_quorum, lambda plan: plan.with_n(8)
    ),
    "no-persist": Canary("votes are sent before they are durable", 40, _no_persist),
    "prepared-ignored": Canary("a new view begins with null blocks", 40, _prepared_ignored),
    "any-commit": Canary("a commit counts for any digest", 80, _any_commit),
    "one-view-timer": Canary("the view timer never restarts", 40, _view_timer_once),
    "no-doubling": Canary("the view timer never doubles", 80, nullcontext, _timer_never_doubles),
    "view-forgotten": Canary("a restarted node is in view 0", 40, _view_forgotten),
    "double-votes": Canary("a validator's votes all count", 60, _vote_counted_twice),
    "lowest-view": Canary(
        "the certificate of the lowest view wins", 150, _lowest_view_wins, Plan.tangle
    ),
    "new-view-unchecked": Canary("backups believe any new view", 60, _new_view_unchecked),
    "certificates-unchecked": Canary(
        "prepared certificates need no valid signatures", 150, _certificates_unchecked, _lying
    ),
    "second-pre-prepare": Canary("the second pre-prepare counts", 100, _second_pre_prepare),
    "unbounded-buffer": Canary("what is early is kept for ever", 20, _buffer_unbounded, _flooded),
    "change-at-once": Canary("a new set takes over at once", 40, _change_at_once, _changing),
    "horizon-ignored": Canary(
        "votes are judged by sets that may have changed", 40, _horizon_ignored, _changing
    ),
    "sets-forgotten": Canary("a restart forgets all changes", 20, _sets_forgotten, _changing),
    "certificate-last": Canary(
        "a set's last certificate comes after the next one's votes",
        60,
        _certificate_last,
        _changing,
    ),
    "seals-unchecked": Canary("synced blocks need no valid seals", 150, _seals_unchecked),
}


def run_with(name: str, seed: int, tracer: Tracer | None = None) -> Result:
    """Simulate `seed` with the bug planted."""
    canary = CANARIES[name]
    with canary.plant():
        return run(canary.shape(draw(seed)), tracer)


def hunt(name: str) -> Hunt:
    """Search for the bug and stop at the first seed that shows it."""
    limit = CANARIES[name].seeds
    for seed in range(limit):
        result = run_with(name, seed)
        if result.violation is not None:
            return Hunt(name, seed + 1, result)
    return Hunt(name, limit, None)
