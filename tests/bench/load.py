"""A load generator: members of every institution that submit to their own node and wait."""

import asyncio
import random
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node import keys, provision
from node.ledger import genesis_file
from node.ledger.transaction import Operation, sign_transaction
from node.rpc.client import Client
from node.testnet.processes import ProcessTestnet

TRANSACTION_BYTES = 300
VALIDITY_HEIGHTS = 15_000


def registration() -> Operation:
    """Return a registration as the gateway sends it, with random ids and root."""
    ids = secrets.token_bytes(64)
    return Operation("study.register", (ids[:16], ids[16:32], ids[32:], "CT", "head", 5, 3))


@dataclass
class Result:
    """What a phase of load gave."""

    clients: int
    seconds: float = 0.0
    latencies_s: list[float] = field(default_factory=list)
    ids: list[bytes] = field(default_factory=list)
    bytes: int = 0

    @property
    def rate(self) -> float:
        """Transactions per second."""
        return len(self.latencies_s) / self.seconds if self.seconds else 0.0

    def percentile_ms(self, share: float) -> float:
        """Return a percentile of the latency to finality."""
        ordered = sorted(self.latencies_s)
        return 1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0

    def summary(self) -> dict[str, float]:
        """Return the figures of this phase."""
        return {
            "clients": self.clients,
            "transactions": len(self.latencies_s),
            "tx_per_s": round(self.rate, 1),
            "p50_ms": round(self.percentile_ms(0.50), 2),
            "p99_ms": round(self.percentile_ms(0.99), 2),
        }


class Load:
    """One connection per node, shared by any number of closed-loop clients."""

    def __init__(self, net: ProcessTestnet) -> None:
        self._net = net
        genesis = genesis_file.load(net.layout.genesis_file)
        self._chain_id = genesis.chain_id
        self._voters = len(genesis.validators)
        self._members: list[Ed25519PrivateKey] = []
        self.clients: list[Client] = []
        self.height = 0

    async def __aenter__(self) -> Self:
        for index, node in enumerate(self._net.nodes[: self._voters]):
            folder = self._net.layout.node_folder(index)
            self._members.append(open_member(folder))
            client = node.client()
            await client.__aenter__()
            self.clients.append(client)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for client in self.clients:
            await client.__aexit__(None, None, None)

    def sign(self, node: int, operations: Sequence[Operation]) -> tuple[bytes, bytes]:
        """Return (id, encoding) of a transaction of this node's institution."""
        member = self._members[node]
        signed = sign_transaction(
            member.sign,
            keys.public_bytes(member),
            chain_id=self._chain_id,
            institution=self._net.nodes[node].name,
            valid_until=self.height + VALIDITY_HEIGHTS,
            operations=operations,
        )
        return signed.id, signed.raw

    async def submit(self, node: int, operations: Sequence[Operation]) -> None:
        """Submit one transaction of this node's institution. Raises `RuntimeError` if it fails."""
        self.height = (await self.clients[node].head()).height
        _, raw = self.sign(node, operations)
        await self._final(node, raw)

    async def _final(self, node: int, raw: bytes) -> None:
        done = await self.clients[node].submit(raw, wait="final")
        if done.code != "ok":
            raise RuntimeError(f"operation {done.operation} failed: {done.code} {done.rule or ''}")

    async def closed_loop(
        self,
        clients: int,
        seconds: float,
        operations: Callable[[], Sequence[Operation]] = lambda: (registration(),),
        *,
        warm_up_s: float = 0.0,
        operations_of: Callable[[int], Sequence[Operation]] | None = None,
    ) -> Result:
        """Let `clients` each submit, wait until final, and submit again.

        Every answer in the time counts, and every transaction is waited for to the end.
        `operations_of`, if given, makes the operations for each node by its index.
        """
        self.height = (await self.clients[0].head()).height
        result = Result(clients)
        begin = time.perf_counter() + warm_up_s
        end = begin + seconds

        async def run(index: int) -> None:
            node = index % self._voters
            while time.perf_counter() < end:
                transaction_id, raw = self.sign(
                    node, operations() if operations_of is None else operations_of(node)
                )
                started = time.perf_counter()
                await self._final(node, raw)
                ended = time.perf_counter()
                result.ids.append(transaction_id)
                if begin <= ended <= end:
                    result.latencies_s.append(ended - started)
                    result.bytes += len(raw)

        await asyncio.gather(*(run(index) for index in range(clients)))
        result.seconds = seconds
        return result

    async def poisson(self, rate: float, seconds: float, chance: random.Random) -> Result:
        """Submit `rate` registrations a second, at random times, to the nodes in turn.

        Whoever is late does not hold up the next: a latency counts from when its turn was.
        """
        self.height = (await self.clients[0].head()).height
        result = Result(0, seconds)

        async def run(node: int, due: float) -> None:
            transaction_id, raw = self.sign(node, (registration(),))
            await self._final(node, raw)
            result.ids.append(transaction_id)
            result.latencies_s.append(time.perf_counter() - due)
            result.bytes += len(raw)

        due = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for number in range(int(rate * seconds)):
                due += chance.expovariate(rate)
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                group.create_task(run(number % self._voters, due))
        return result


def open_member(folder: Path) -> Ed25519PrivateKey:
    """Return the gateway key that a testnet keeps in a node's folder."""
    source = keys.PassphraseFile(folder / provision.PASSPHRASE)
    return provision.load_member_key(folder, keys.read_passphrase(source))
