"""What goes wrong in the safety phase: crashes, pauses, cuts, slow and lost disks, bad weather."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from consensus.inputs import PrimarySuspected
from tests.simulation.node import SimNode

# Kinds of messages (consensus.messages.KIND) that get lost together: certificates that differ
# from node to node need a phase that only some see, several times in a row.
_TANGLES = tuple(
    map(bytes, [(1,), (2,), (3,), (4, 7), (3, 4, 7), (2, 3), (5, 6), (1, 2, 3, 4, 5, 6, 7)])
)


class Nemesis:
    """Picks one misfortune after another until told to stop."""

    def __init__(self, world: Any) -> None:
        self._world = world
        self._rng = world.rng
        self._stopped = False
        self._cut_count = 0
        misfortunes: list[tuple[Callable[[], None], int]] = [
            (self._crash_one, 5),
            (self._crash_many, 1),
            (self._pause, 2),
            (self._partition, 3),
            (self._isolate, 3),
            (self._slow_disk, 1),
            (self._slow_sender, 1),
            (self._storm, 1),
            (self._wipe, 3 if world.plan.wiped else 0),
            (self._tangle, world.plan.tangled),
            (self._suspect, 4 if world.plan.suspicion else 0),
        ]
        self._choices = [act for act, _ in misfortunes]
        self._weights = [weight for _, weight in misfortunes]

    def start(self) -> None:
        """Begin."""
        self._later(self._world.plan.faults_every_ms, self._strike)

    def stop(self) -> None:
        """Do nothing more; what was begun is for the world to undo."""
        self._stopped = True

    def _later(self, mean_ms: float, action: Callable[..., None], *arguments: object) -> None:
        def run() -> None:
            if not self._stopped:
                action(*arguments)

        self._world.scheduler.later(mean_ms * self._rng.uniform(0.1, 1.9), run)

    def _strike(self) -> None:
        self._rng.choices(self._choices, self._weights)[0]()
        self._later(self._world.plan.faults_every_ms, self._strike)

    def _any(self) -> SimNode:
        node: SimNode = self._rng.choice(self._world.nodes)
        return node

    def _crash_one(self) -> None:
        self._crash(self._any(), 500.0)

    def _crash(self, node: SimNode, down_ms: float) -> None:
        if node.up:
            node.crash()
            self._later(down_ms, self._restart, node)

    def _restart(self, node: SimNode) -> None:
        if not node.up:
            node.start()

    def _crash_many(self) -> None:
        share = self._rng.choice([0.5, 1.0])
        for node in self._world.nodes:
            if self._rng.random() < share:
                self._crash(node, 300.0)

    def _pause(self) -> None:
        node = self._any()
        if node.up:
            node.pause()
            self._later(500.0, node.resume)

    def _cut(self, cuts: set[tuple[int, int]]) -> None:
        self._cut_count += 1
        self._world.network.cuts = cuts
        self._later(700.0, self._mend, self._cut_count)

    def _mend(self, count: int) -> None:
        if count == self._cut_count:
            self._world.network.cuts = set()

    def _partition(self) -> None:
        places = [node.place for node in self._world.nodes]
        side = set(self._rng.sample(places, self._rng.randint(0, len(places))))
        self._world.trace(-1, "partition: %s", sorted(side))
        one_way = self._rng.random() < 0.3
        self._cut(
            {
                (a, b)
                for a in places
                for b in places
                if (a in side) != (b in side) and not (one_way and a in side)
            }
        )

    def _isolate(self) -> None:
        place, mode = self._any().place, self._rng.choice(["deaf", "dumb", "both"])
        self._world.trace(-1, "place %d becomes %s", place, mode)
        others = [node.place for node in self._world.nodes]
        cuts: set[tuple[int, int]] = set()
        if mode != "dumb":
            cuts |= {(other, place) for other in others}
        if mode != "deaf":
            cuts |= {(place, other) for other in others}
        self._cut(cuts)

    def _slow_disk(self) -> None:
        disk = self._any().disk
        disk.sync_ms = (20.0, 400.0)
        self._later(800.0, setattr, disk, "sync_ms", self._world.plan.sync_ms)

    def _slow_sender(self) -> None:
        place = self._any().place
        self._world.network.slow[place] = 10.0
        self._later(800.0, lambda: self._world.network.slow.pop(place, None))

    def _storm(self) -> None:
        network = self._world.network
        network.weather = replace(network.weather, loss=0.5, duplicate=0.2)
        self._later(300.0, self._clear_up)

    def _clear_up(self) -> None:
        network, usual = self._world.network, self._world.plan.weather
        network.weather = replace(network.weather, loss=usual.loss, duplicate=usual.duplicate)

    def _tangle(self) -> None:
        network, rng = self._world.network, self._rng
        share, kinds = rng.choice([0.0, 0.2, 0.4, 0.7]), rng.choice(_TANGLES)
        self._world.trace(-1, "%.1f of kinds %s get lost for good", share, list(kinds))
        network.weather = replace(network.weather, stubborn=share, stubborn_kinds=kinds)

    def _wipe(self) -> None:
        index = self._rng.choice(self._world.plan.wiped)
        for node in self._world.nodes:
            if node.index == index and node.up:
                self._world.trace(node.place, "loses its disk")
                node.crash()
                node.disk.wipe()
                self._later(300.0, self._restart, node)

    def _suspect(self) -> None:
        node = self._any()
        if node.up and not node.paused:
            node.step(PrimarySuspected(node.replica.view))
