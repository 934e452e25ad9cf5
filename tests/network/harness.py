"""Nodes with real TLS on loopback, and raw peers that break every rule on purpose."""

import asyncio
import datetime
import ssl
from collections.abc import Callable
from dataclasses import dataclass, replace

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding

from node.network.frames import FrameParser, Kind, encode_frame
from node.network.options import TransportOptions
from node.network.payloads import Hello, Role, encode_hello
from node.network.peers import KnownPeer, Peer
from node.network.tls import TrustedContexts, make_certificate
from node.network.transport import Priority, Transport

PATIENCE_S = 20.0  # a test that waits longer has failed
CHAIN = b"\x07" * 32
HELLO = Hello(1, CHAIN, Role.VALIDATOR, 5, "127.0.0.1", 7610, "radledger/test")
FAST = TransportOptions(backoff_min_ms=5, backoff_max_ms=50, goodbye_timeout_ms=200)


@dataclass(frozen=True)
class Identity:
    """A key, its certificate, and a name."""

    private_key: Ed25519PrivateKey
    certificate: bytes
    name: str

    @property
    def key(self) -> bytes:
        return self.private_key.public_key().public_bytes_raw()

    def known(self, at: tuple[str, int] | None = None, role: Role = Role.VALIDATOR) -> KnownPeer:
        host, port = at or (None, 0)
        return KnownPeer(self.certificate, self.name, role, host, port)


def make_identities(*names: str) -> list[Identity]:
    """Identities in ascending order of their keys: each one dials those that come after it."""
    private_keys = sorted(
        (Ed25519PrivateKey.generate() for _ in names),
        key=lambda key: key.public_key().public_bytes_raw(),
    )
    return [
        Identity(key, make_certificate(key, name), name)
        for key, name in zip(private_keys, names, strict=True)
    ]


def certificate_valid_until(identity: Identity, end: datetime.datetime) -> bytes:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, identity.name)])
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(identity.private_key.public_key())
        .serial_number(1)
        .not_valid_before(end - datetime.timedelta(days=1))
        .not_valid_after(end)
        .sign(identity.private_key, None)
        .public_bytes(Encoding.DER)
    )


class Recorder:
    """A transport's handler that remembers everything and wakes whoever waits."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str]] = []
        self.frames: list[tuple[bytes, Kind, bytes]] = []
        self.connected: dict[bytes, Peer] = {}
        self.on_frame: Callable[[bytes, Kind, bytes], None] | None = None
        self.on_disconnected: Callable[[Peer], None] | None = None
        self._changed = asyncio.Event()

    def peer_connected(self, peer: Peer) -> None:
        self.events.append(("connected", peer.name))
        self.connected[peer.key] = peer
        self._changed.set()

    def peer_changed(self, peer: Peer) -> None:
        self.events.append(("changed", peer.name))
        self.connected[peer.key] = peer
        self._changed.set()

    def peer_disconnected(self, peer: Peer) -> None:
        self.events.append(("disconnected", peer.name))
        del self.connected[peer.key]
        self._changed.set()
        if self.on_disconnected is not None:
            self.on_disconnected(peer)

    def frame(self, key: bytes, kind: Kind, payload: bytes) -> None:
        self.frames.append((key, kind, payload))
        self._changed.set()
        if self.on_frame is not None:
            self.on_frame(key, kind, payload)

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                self._changed.clear()
                await self._changed.wait()


async def turns_until(condition: Callable[[], object]) -> None:
    """Let the loop turn until something that tells nobody has happened."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0)


class Node:
    """One transport with its recorder."""

    def __init__(
        self,
        identity: Identity,
        known: list[KnownPeer],
        options: TransportOptions,
        hello: Hello,
        at: tuple[str, int],
    ) -> None:
        self.identity = identity
        self.key = identity.key
        self.recorder = Recorder()
        self.hello = hello
        self.transport = Transport(
            identity.private_key,
            identity.certificate,
            known,
            *at,
            lambda: self.hello,
            self.recorder,
            options,
        )

    @property
    def at(self) -> tuple[str, int]:
        return self.transport.addresses[0]

    def line(self, identity: Identity):
        return next(line for line in self.transport.report() if line.key == identity.key)

    async def until_connected(self, *others: Identity) -> None:
        keys = {other.key for other in others}
        await self.recorder.until(lambda: keys <= self.recorder.connected.keys())

    async def until_error(self, identity: Identity, words: str) -> None:
        await turns_until(lambda: words in self.line(identity).last_error)

    def send(self, to: Identity, payload: bytes, priority: Priority = Priority.CONSENSUS) -> bool:
        return self.transport.send(to.key, Kind.CONSENSUS, payload, priority)


class RawPeer:
    """A TLS client that speaks only when told to, and whatever it is told to."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self._parser = FrameParser()
        self._frames: list[tuple[Kind, bytes]] = []

    @classmethod
    async def dial(cls, context: ssl.SSLContext, at: tuple[str, int]) -> "RawPeer":
        return cls(*await asyncio.open_connection(*at, ssl=context, server_hostname=""))

    def send(self, kind: Kind, payload: bytes) -> None:
        self.writer.write(encode_frame(kind, payload))

    async def next_frame(self) -> tuple[Kind, bytes]:
        async with asyncio.timeout(PATIENCE_S):
            while not self._frames:
                chunk = await self.reader.read(65_536)
                if not chunk:
                    raise ConnectionError("closed")
                self._frames += self._parser.feed(chunk)
        return self._frames.pop(0)

    async def greet(self, hello: Hello = HELLO) -> None:
        self.send(Kind.HELLO, encode_hello(hello))
        kind, _ = await self.next_frame()
        assert kind is Kind.HELLO

    async def until_kind(self, kind: Kind) -> bytes:
        while True:
            got, payload = await self.next_frame()
            if got is kind:
                return payload

    async def until_closed(self) -> None:
        try:
            while True:
                await self.next_frame()
        except (OSError, ConnectionError):
            pass


class Network:
    """Starts nodes and raw peers, and ends them all."""

    def __init__(self) -> None:
        self._nodes: list[Node] = []
        self._raw: list[RawPeer] = []

    async def __aenter__(self) -> "Network":
        return self

    async def __aexit__(self, *_: object) -> None:
        for raw in self._raw:
            raw.writer.transport.abort()
        for node in self._nodes:
            await node.transport.close()

    async def start(
        self,
        identity: Identity,
        known: list[KnownPeer],
        *,
        at: tuple[str, int] = ("127.0.0.1", 0),
        hello: Hello = HELLO,
        **changes: object,
    ) -> Node:
        node = Node(identity, known, replace(FAST, **changes), hello, at)
        await node.transport.start()
        self._nodes.append(node)
        return node

    async def pair(self, **changes: object) -> tuple[Node, Node]:
        """Two connected nodes; the first has dialled."""
        first, second = make_identities("alpha", "beta")
        listening = await self.start(second, [first.known()], **changes)
        dialling = await self.start(first, [second.known(listening.at)], **changes)
        await listening.until_connected(first)
        await dialling.until_connected(second)
        return dialling, listening

    async def raw(
        self, identity: Identity, node: Node, *, context: ssl.SSLContext | None = None
    ) -> RawPeer:
        if context is None:
            context = client_context(identity, node.identity)
        raw = await RawPeer.dial(context, node.at)
        self._raw.append(raw)
        return raw


def client_context(identity: Identity, *trusted: Identity) -> ssl.SSLContext:
    certificates = [other.certificate for other in trusted]
    return TrustedContexts(identity.private_key, identity.certificate, certificates).client
