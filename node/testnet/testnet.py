"""A whole consortium in one process: real TLS sockets on loopback, real LevelDB in a folder.

async with Testnet(validators=4) as net:
    await net.submit(0, [Operation("study.register", (...))])
    await net.kill(1)
    await net.submit(0, ...)
    await net.start(1)
    await net.wait_height(2)
"""

import asyncio
import secrets
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node import keys, provision
from node.config import ConsensusConfig, NodeConfig
from node.daemon import Node
from node.ledger import genesis_file
from node.ledger.genesis import Genesis
from node.ledger.transaction import Operation, Transaction, sign_transaction
from node.rpc.client import Client
from node.rpc.service import Submitted, Wait
from node.testnet.layout import (
    Layout,
    create_layout,
    extend_layout,
    institution_name,
    rotate_key,
)

TIMEOUT_S = 60.0
VALIDITY_HEIGHTS = 10_000


class Testnet:
    """N nodes that tests can stop, kill, restart and cut off from one another."""

    __test__ = False  # the name is the field's; pytest need not collect it

    def __init__(
        self,
        validators: int = 4,
        observers: int = 0,
        *,
        folder: Path | None = None,
        consensus: ConsensusConfig | None = None,
    ) -> None:
        """Everything lives in `folder`, or else in a temporary one that goes at the end."""
        self._temporary = None
        if folder is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="radledger-")
            folder = Path(self._temporary.name)
        self.layout: Layout = create_layout(
            folder, validators=validators, observers=observers, consensus=consensus
        )
        self.genesis: Genesis = genesis_file.load(self.layout.genesis_file)
        self.nodes: list[Node | None] = [None] * len(self.layout.configs)
        self._members: dict[int, Ed25519PrivateKey] = {}
        self._clients: dict[int, Client] = {}
        self._groups: tuple[frozenset[int], ...] = ()

    async def __aenter__(self) -> Self:
        """Start all nodes and wait until they are connected."""
        try:
            await asyncio.gather(*(self.start(index) for index in range(len(self.nodes))))
            await self.wait_connected()
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._close()

    def node(self, index: int) -> Node:
        """Return a running node."""
        node = self.nodes[index]
        if node is None:
            raise ValueError(f"node {index} is not running")
        return node

    async def start(self, index: int) -> Node:
        """Start a node that is not running; its data is what it left."""
        if self.nodes[index] is not None:
            raise ValueError(f"node {index} is running already")
        node = Node(self.layout.configs[index])
        await node.start()
        self.nodes[index] = node
        self._apply_partition()
        return node

    def add(self, name: str | None = None) -> tuple[int, provision.Card]:
        """Make a node that is not of the genesis; return its index and public card.

        It can be started at once. The others let it connect when the chain lists it.
        """
        index = len(self.nodes)
        self.layout = extend_layout(self.layout, name or institution_name(index))
        self.nodes.append(None)
        return index, provision.Card.load(self.layout.node_folder(index) / provision.CARD)

    def rotate(self, index: int) -> provision.Card:
        """Make another key for a node, which it uses from its next start on; return its card."""
        self.layout, card = rotate_key(self.layout, index)
        return card

    def node_key(self, index: int) -> Ed25519PrivateKey:
        """Return the key with which a node votes from its next start on."""
        config = self.layout.configs[index]
        return keys.load(config.key.file, provision.passphrase_of(config.key))

    def member_key(self, index: int) -> Ed25519PrivateKey:
        """Return the key of a node's institution with which `sign` signs."""
        return self._member(index, self.layout.configs[index])

    async def stop(self, index: int) -> None:
        """Stop a node in good order."""
        await self._end(index, graceful=True)

    async def kill(self, index: int) -> None:
        """End a node at once: whatever it had not written is lost, nobody is told."""
        await self._end(index, graceful=False)

    async def restart(self, index: int) -> Node:
        """Kill a node and start it again."""
        await self.kill(index)
        return await self.start(index)

    def partition(self, *groups: Iterable[int]) -> None:
        """Cut all connections between nodes of different groups; a node in none is alone."""
        self._groups = tuple(frozenset(group) for group in groups)
        self._apply_partition()

    def heal(self) -> None:
        """End the partition."""
        self._groups = ()
        self._apply_partition()

    async def client(self, index: int) -> Client:
        """Return a connected client of one node; it is closed with the testnet or the node."""
        client = self._clients.get(index)
        if client is None:
            client = Client(self.node(index).rpc_url, self.node(index).rpc_token)
            await client.__aenter__()
            self._clients[index] = client
        return client

    def sign(
        self, index: int, operations: Sequence[Operation], *, valid_until: int | None = None
    ) -> Transaction:
        """Return a transaction of this institution's gateway."""
        config = self.layout.configs[index]
        member = self._member(index, config)
        if valid_until is None:
            valid_until = self.node(index).height + VALIDITY_HEIGHTS
        return sign_transaction(
            member.sign,
            keys.public_bytes(member),
            chain_id=self.genesis.chain_id,
            institution=config.institution,
            valid_until=valid_until,
            operations=tuple(operations),
            salt=secrets.token_bytes(16),
        )

    async def submit(
        self, index: int, operations: Sequence[Operation], *, wait: Wait = "final"
    ) -> Submitted:
        """Sign, submit to this institution's node and wait."""
        client = await self.client(index)
        return await client.submit(self.sign(index, operations).raw, wait=wait)

    async def wait_height(
        self, height: int, nodes: Iterable[int] | None = None, timeout_s: float = TIMEOUT_S
    ) -> None:
        """Wait until the named nodes, or all that run, have executed `height`."""
        async with asyncio.timeout(timeout_s):
            await asyncio.gather(*(node.wait_height(height) for node in self._running(nodes)))

    async def wait_connected(self, timeout_s: float = TIMEOUT_S) -> None:
        """Wait until every running validator sees every other one that it may see."""
        async with asyncio.timeout(timeout_s):
            running = [index for index, node in enumerate(self.nodes) if node is not None]
            for index in running:
                expected = {
                    self.layout.configs[other].institution
                    for other in running
                    if other != index
                    and self._may_talk(index, other)
                    and min(index, other) < len(self.genesis.validators)
                }
                await self.node(index).wait_connected(expected)

    async def wait_parted(self, timeout_s: float = TIMEOUT_S) -> None:
        """Wait until no running node sees another one from which a partition cuts it off."""
        async with asyncio.timeout(timeout_s):
            for index, node in enumerate(self.nodes):
                if node is not None:
                    others = range(len(self.nodes))
                    cut_off = {i for i in others if i != index and not self._may_talk(index, i)}
                    await node.wait_parted({self.layout.configs[i].institution for i in cut_off})

    def _running(self, nodes: Iterable[int] | None) -> list[Node]:
        if nodes is not None:
            return [self.node(index) for index in nodes]
        return [node for node in self.nodes if node is not None]

    def _member(self, index: int, config: NodeConfig) -> Ed25519PrivateKey:
        member = self._members.get(index)
        if member is None:
            folder = self.layout.node_folder(index)
            source = keys.PassphraseFile(folder / provision.PASSPHRASE)
            member = provision.load_member_key(folder, keys.read_passphrase(source))
            self._members[index] = member
        return member

    def _may_talk(self, first: int, second: int) -> bool:
        if not self._groups:
            return True
        return any(first in group and second in group for group in self._groups)

    def _apply_partition(self) -> None:
        nodes = [(i, node) for i, node in enumerate(self.nodes) if node is not None]
        for index, node in nodes:
            node.cut(
                other.public_key
                for i, other in nodes
                if i != index and not self._may_talk(index, i)
            )

    async def _end(self, index: int, *, graceful: bool) -> None:
        node = self.node(index)
        client = self._clients.pop(index, None)
        if client is not None:
            await client.__aexit__(None, None, None)
        self.nodes[index] = None
        await (node.stop() if graceful else node.kill())

    async def _close(self) -> None:
        for index, node in enumerate(self.nodes):
            if node is not None:
                await self._end(index, graceful=True)
        if self._temporary is not None:
            self._temporary.cleanup()
