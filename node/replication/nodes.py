"""Which nodes may connect, as the chain says, kept in step with it while the node runs.

A validator may connect from the block that plans its set until the last height of its last set is
sealed; an observer while it is listed. Nobody else may. Every node decides so by what it has itself
executed and seen sealed, so one that is behind goes on knowing those that it still needs.
"""

import asyncio
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from consensus.validators import ValidatorSchedule
from node.ledger import membership
from node.ledger.execution import ExecutedBlock
from node.ledger.genesis import NodeIdentity
from node.network.payloads import Role
from node.network.peers import KnownPeer
from storage.chain import SCAN_MAX, ChainStore


class Links(Protocol):
    """What is needed of the transport."""

    def know(self, peers: Iterable[KnownPeer]) -> None:
        """Know exactly these peers from now on."""
        ...


def listed_nodes(chain: ChainStore, height: int) -> list[tuple[NodeIdentity, Role]]:
    """Return who may connect while `height` is the next to be sealed, each key once.

    Validators come first, those planned last before those of the set that reigns. Reads the disk.
    """
    listed: dict[bytes, tuple[NodeIdentity, Role]] = {}
    for planned in _sets(chain):
        for node in planned.nodes:
            listed.setdefault(node.public_key, (node, Role.VALIDATOR))
        if planned.height <= height:
            break
    for node in _observers(chain):
        listed.setdefault(node.public_key, (node, Role.OBSERVER))
    return list(listed.values())


def find_node(chain: ChainStore, public_key: bytes) -> NodeIdentity | None:
    """Return the node with this key, if the chain lists it or has ever let it vote."""
    observer = membership.observer(chain.state_value, public_key)
    voters = (node for planned in _sets(chain) for node in planned.nodes)
    return next((node for node in voters if node.public_key == public_key), observer)


def _sets(chain: ChainStore) -> Iterator[membership.PlannedSet]:
    get = chain.state_value
    for index in reversed(range(membership.set_count(get))):
        yield membership.planned_set(get, index)


def _observers(chain: ChainStore) -> Iterator[NodeIdentity]:
    cursor: bytes | None = None
    while True:
        rows = chain.scan_index(membership.INDEX_OBSERVER, after=cursor, limit=SCAN_MAX)
        for row in rows:
            yield membership.decode_observer(row.parts[0], row.value)
        if len(rows) < SCAN_MAX:
            return
        cursor = rows[-1].cursor


class KnownNodes:
    """Tells the transport whom to know: at the start, and after each block that changes it."""

    def __init__(
        self,
        *,
        chain_store: ChainStore,
        schedule: ValidatorSchedule,
        readers: ThreadPoolExecutor,
        addresses: Mapping[str, tuple[str, int]],
        own_key: bytes,
        stable_height: int,
    ) -> None:
        """`addresses` are those to dial, by institution: all of its nodes may be there."""
        self._chain_store = chain_store
        self._schedule = schedule
        self._readers = readers
        self._addresses = addresses
        self._own_key = own_key
        self._stable_height = stable_height
        self._changed = asyncio.Event()
        self.is_listed = True  # this node itself, as of the last look

    @property
    def own_role(self) -> Role:
        """What this node is: a validator also while its set is only planned."""
        sets = self._schedule.since(self._stable_height + 1)
        votes = any(each.index_of(self._own_key) is not None for each in sets)
        return Role.VALIDATOR if votes else Role.OBSERVER

    def peers(self) -> list[KnownPeer]:
        """Return who may connect now. Reads the disk."""
        nodes = listed_nodes(self._chain_store, self._stable_height + 1)
        self.is_listed = any(node.public_key == self._own_key for node, _ in nodes)
        return [self._peer(node, role) for node, role in nodes]

    def executed(self, block: ExecutedBlock) -> None:
        """Take note of a block that is final and durable."""
        if block.changes_nodes:
            self._changed.set()

    def stable(self, height: int) -> None:
        """Take note that a height is sealed; with the last one of a set, its reign is over."""
        if height > self._stable_height:
            before = self._schedule.reign_start(self._stable_height + 1)
            self._stable_height = height
            if self._schedule.reign_start(height + 1) != before:
                self._changed.set()

    async def run(self, links: Links) -> None:
        """Keep `links` up to date until cancelled. Raises `CorruptRecord`."""
        loop = asyncio.get_running_loop()
        while True:
            await self._changed.wait()
            self._changed.clear()
            links.know(await loop.run_in_executor(self._readers, self.peers))

    def _peer(self, node: NodeIdentity, role: Role) -> KnownPeer:
        host, port = self._addresses.get(node.institution, (None, 0))
        return KnownPeer(node.certificate, node.institution, role, host, port)
