"""What a seed stands for: the network, its faults, and what is demanded of it."""

from dataclasses import dataclass, field, replace
from random import Random
from typing import TypeAlias

from consensus.validators import faults_tolerated, quorum_size
from tests.simulation.network import Weather

TACTICS = (
    "mute",  # says some things to some validators only
    "equivocate",  # two pre-prepares to two halves; its friends vote for both
    "mutate",  # changes a field of a correct message and signs that
    "replay",  # sends again what it once heard
    "flood",  # bursts of signed nonsense
    "liar",  # withholds certificates in view changes, bends new views
    "hasty",  # demands view changes all the time, to near and absurd views
    "garbage",  # bytes that are no message
    "withhold",  # proposes batches that nobody can get, or that break the rules
    "forge",  # serves forged blocks to those that sync
    "twins",  # runs two correct nodes with one key
)


Seats: TypeAlias = tuple[tuple[int, int], ...]  # (institution, key) in voting order


@dataclass(frozen=True, slots=True)
class Plan:
    """One simulated history before it happens. Times are in milliseconds."""

    seed: int
    n: int
    kind: str  # "mixed"; "tangled"; "stall": one silent too many; "slow": links near the timeout
    tactics: dict[int, tuple[str, ...]]  # Byzantine validator -> what it does
    wiped: tuple[int, ...]  # these may lose their disk; they count against f too
    observers: int
    weather: Weather  # of the safety phase
    calm: Weather  # after healing
    sync_ms: tuple[float, float]
    execute_ms: tuple[float, float]
    fetch_ms: tuple[float, float]
    skew: tuple[float, float]  # range of the factor on a node's timers
    doubtful: float  # share of batches that some nodes refuse when fresh
    faults_every_ms: float
    work_every_ms: float
    safety_ms: float
    tangled: int  # weight among the misfortunes: whole phases of the protocol reach only some nodes
    suspicion: bool  # nodes now and then suspect a primary for no reason
    options: dict[str, int] = field(default_factory=dict)
    later_sets: tuple[Seats, ...] = ()  # those that the chain may plan, one after another
    rotations: dict[int, int] = field(default_factory=dict)  # key -> its node's next key

    @property
    def sets(self) -> tuple[Seats, ...]:
        """The validator sets, the genesis' own first."""
        return (tuple((index, index) for index in range(self.n)), *self.later_sets)

    @property
    def key_count(self) -> int:
        """How many keys there are; key i < n is that of validator i of the genesis."""
        return 1 + max(key for seats in self.sets for _, key in seats)

    @property
    def f(self) -> int:
        """The faults that `n` validators withstand."""
        return faults_tolerated(self.n)

    @property
    def quorum(self) -> int:
        """The number of votes that decides."""
        return quorum_size(self.n)

    def tangle(self) -> "Plan":
        """Return this plan with one trouble only: phases of the protocol reach some nodes and not
        others, so that what nodes have prepared differs from view to view."""
        return replace(
            self,
            kind="tangled",
            tactics={},
            wiped=(),
            weather=Weather(delay_ms=(0.5, 8.0)),
            sync_ms=(0.1, 1.0),
            execute_ms=(0.1, 2.0),
            fetch_ms=(1.0, 5.0),
            skew=(0.8, 1.25),
            faults_every_ms=500.0,
            work_every_ms=20.0,
            safety_ms=10_000.0,
            tangled=60,
            suspicion=False,
            options={"window": 16, "in_flight_max": 4},
        )

    def with_n(self, n: int) -> "Plan":
        """Return this plan for another size, all f of its faulty validators equivocating."""
        faulty = range(n - faults_tolerated(n), n)
        tactics = dict.fromkeys(faulty, ("equivocate",))
        return replace(self.steady(), n=n, kind="mixed", tactics=tactics, wiped=())

    def steady(self) -> "Plan":
        """Return this plan with the validators of the genesis for ever."""
        return replace(self, later_sets=(), rotations={})


def draw(seed: int) -> Plan:
    """Return the plan of `seed`."""
    rng = Random(f"radledger/{seed}")
    n = rng.choices(range(1, 11), (1, 1, 2, 22, 18, 14, 18, 8, 2, 2))[0]
    kind = rng.choices(("mixed", "tangled", "stall", "slow"), (70, 12, 9, 9))[0]
    f = faults_tolerated(n)
    faulty = rng.sample(
        range(n), rng.choice([f, f, f, rng.randint(0, f)]) if kind != "stall" else 0
    )
    wiped = tuple(index for index in faulty if rng.random() < 0.2)
    tactics = {index: _tactics(rng) for index in faulty if index not in wiped}
    plan = Plan(
        seed=seed,
        n=n,
        kind=kind,
        tactics=tactics,
        wiped=wiped,
        observers=int(rng.random() < 0.2),
        weather=_weather(rng),
        calm=_calm(rng, kind),
        sync_ms=rng.choice([(0.1, 1.0), (0.1, 1.0), (1.0, 10.0), (0.1, 80.0)]),
        execute_ms=rng.choice([(0.1, 2.0), (1.0, 10.0), (5.0, 60.0)]),
        fetch_ms=rng.choice([(1.0, 5.0), (5.0, 100.0), (1.0, 800.0)]),
        skew=rng.choice([(1.0, 1.0), (0.8, 1.25), (0.5, 2.0)]),
        doubtful=rng.choice([0.0, 0.0, 0.1, 0.3]),
        faults_every_ms=rng.choice([200.0, 500.0, 1500.0]),
        work_every_ms=rng.choice([20.0, 60.0, 150.0]),
        safety_ms=rng.uniform(3000.0, 12000.0),
        tangled=rng.choice([0, 0, 0, 12, 12]),
        suspicion=rng.random() < 0.15,
        options={"window": rng.choice([4, 8, 32]), "in_flight_max": rng.choice([1, 2, 4])},
    )
    plan = plan.tangle() if kind == "tangled" else plan
    return change_sets(plan) if seed % 4 == 2 and kind != "stall" else plan


def change_sets(plan: Plan) -> Plan:
    """Return `plan` with validators that come, go and change their keys.

    No set has more faulty members than it withstands. The numbers are of a stream of their own, so
    that all other plans stay what they were.
    """
    rng = Random(f"radledger/{plan.seed}/sets")
    sets, rotations = [plan.sets[0]], dict[int, int]()
    next_key = plan.n
    for _ in range(30):
        kind = rng.choice(["add", "remove", "rotate", "return"])
        before = sets[-1]
        place = rng.randrange(len(before))
        seat = before[place]
        new = (seat[0] if kind == "rotate" else next_key, next_key)
        here = {institution for institution, _ in before}
        gone = sorted(
            {s for seats in sets for s in seats if s[0] not in here and s[1] not in rotations}
        )
        match kind:
            case "add":
                after = (*before, new)
            case "return" if gone:
                after = (*before, rng.choice(gone))
            case "rotate":
                after = (*before[:place], new, *before[place + 1 :])
            case _:
                after = (*before[:place], *before[place + 1 :])
        faulty = [key for _, key in after if key in plan.tactics or key in plan.wiped]
        if not after or len(after) > 11 or len(faulty) > faults_tolerated(len(after)):
            continue
        sets.append(after)
        if new in after:
            next_key += 1
            if kind == "rotate" and seat[1] not in plan.tactics and rng.random() < 0.5:
                rotations[seat[1]] = new[1]
        if len(sets) > rng.choice([2, 3, 4]):
            break
    options = {**plan.options, "window": rng.choice([4, 4, 8]), "in_flight_max": rng.choice([1, 4])}
    return replace(plan, later_sets=tuple(sets[1:]), rotations=rotations, options=options)


def _tactics(rng: Random) -> tuple[str, ...]:
    if rng.random() < 0.12:
        return ("twins",)
    others = TACTICS[:-1]
    return tuple(sorted(rng.sample(others, rng.choice([1, 1, 2, 3, 5]))))


def _weather(rng: Random) -> Weather:
    delay = rng.choice([(0.5, 3.0), (1.0, 20.0), (1.0, 120.0), (20.0, 60.0)])
    return Weather(
        delay_ms=delay,
        loss=rng.choice([0.0, 0.0, 0.02, 0.1, 0.25]),
        duplicate=rng.choice([0.0, 0.0, 0.05, 0.3]),
        straggle=rng.choice([0.0, 0.0, 0.02, 0.1]),
        in_order=rng.random() < 0.3,
    )


def _calm(rng: Random, kind: str) -> Weather:
    if kind == "slow":
        return Weather(delay_ms=(180.0, 320.0))
    return Weather(
        delay_ms=rng.choice([(0.5, 3.0), (1.0, 20.0), (10.0, 30.0)]),
        loss=rng.choice([0.0, 0.0, 0.02]),
        duplicate=rng.choice([0.0, 0.05]),
        in_order=rng.random() < 0.5,
    )
