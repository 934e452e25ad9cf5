"""Running nodes under hostile input: they answer or drop with a reason, stay up, and go on.

Three of four validators run, so every one of them is needed for every block. The fourth is stopped
and its real key is in the test's hands: a validator that lies. After each attack the chain must
have grown on every node in the same view, nothing may have failed unseen, and whatever is repeated
must leave the memory flat.
"""

import asyncio
import gc
import json
import logging
import random
import secrets
import ssl
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

import psutil
import pytest

from consensus.messages import (
    Commit,
    Domain,
    NewView,
    Prepare,
    PrePrepare,
    Seal,
    SealCertificate,
    ViewChange,
    encode,
)
from consensus.wire import pack
from node import assembly, keys
from node.config import ConsensusConfig
from node.ledger.block import Batch
from node.ledger.transaction import Operation, sign_transaction, transaction_digest
from node.network.frames import PAYLOAD_BYTES_MAX, Kind, encode_frame
from node.network.payloads import (
    Blocks,
    FetchBlocks,
    Hello,
    Role,
    Status,
    decode_goodbye,
    encode_blocks,
    encode_digests,
    encode_fetch_blocks,
    encode_sealed,
    encode_status,
    encode_transactions,
)
from node.provision import passphrase_of
from node.replication.clocks import wall_ms
from node.replication.codec import encode_payload, encode_payload_request, encode_proposal
from storage import schema
from tests.network.harness import Identity, RawPeer, client_context, make_identities
from tests.testnet.test_testnet import assert_same_chain, registration

# Blocks take milliseconds here; a view change within a test would be the attack's doing.
PATIENT = ConsensusConfig(view_timeout_ms=8_000, view_timeout_ms_max=16_000)
QUICK = ConsensusConfig(view_timeout_ms=400, view_timeout_ms_max=2_000, resend_interval_ms=200)
GROWTH_MAX_BYTES = 24 * 1024 * 1024  # in the whole process, which holds the attackers too
LIAR = 3


@pytest.fixture(autouse=True)
def nothing_fails_unseen(caplog):
    """No traceback, and no error of any part, whatever the test does."""
    caplog.set_level(logging.INFO)
    yield
    gc.collect()  # a task whose exception nobody asked for says so when it is collected
    loud = [r for r in caplog.records if r.levelno >= logging.ERROR or r.exc_info]
    assert [record.getMessage() for record in loud] == []


@pytest.fixture
def lenient(monkeypatch):
    """A peer that was punished may come back at once, so that it can misbehave again."""
    made = assembly.transport_options
    monkeypatch.setattr(assembly, "transport_options", lambda c: replace(made(c), refuse_ms=0))


class Liar:
    """A stopped validator's key, and what can be done with it."""

    def __init__(self, net, index=LIAR):
        self.net = net
        self.index = index
        config = net.layout.configs[index]
        private = keys.load(config.key.file, passphrase_of(config.key))
        self.identity = Identity(
            private, net.genesis.validators[index].certificate, config.institution
        )
        self.chain_id = net.genesis.chain_id
        self.validators = net.genesis.validator_set()
        self.sender = self.validators.index_of(self.identity.key)
        self.hello = Hello(1, self.chain_id, Role.VALIDATOR, 0, "127.0.0.1", 1, "liar")

    def signed(self, message, chain_id=None):
        domain = Domain(chain_id or self.chain_id, self.validators.digest)
        signature = self.identity.private_key.sign(domain.signed_bytes(message))
        return replace(message, signature=signature)

    @asynccontextmanager
    async def connection(self, index):
        """A greeted connection with a node."""
        raw = await dial(self.net, index, self.identity)
        try:
            await raw.greet(self.hello)
            yield raw
        finally:
            raw.writer.transport.abort()

    async def sends(self, index, kind, payload):
        """Send one frame; return the reason with which the node ends the connection."""
        async with self.connection(index) as raw:
            raw.send(kind, payload)
            return decode_goodbye(await raw.until_kind(Kind.GOODBYE)).sentence

    async def says(self, index, *frames):
        """Send frames that the node takes or drops; return when it has read them all."""
        async with self.connection(index) as raw:
            for kind, payload in frames:
                raw.send(kind, payload)
            raw.send(Kind.PING, bytes(8))
            await raw.until_kind(Kind.PONG)


async def dial(net, index, identity):
    server = Identity(None, net.genesis.validators[index].certificate, "")
    return await RawPeer.dial(client_context(identity, server), at(net, index))


def at(net, index):
    network = net.layout.configs[index].network
    return network.listen_host, network.listen_port


@asynccontextmanager
async def three_of_four(testnet, consensus=PATIENT):
    async with testnet(validators=4, consensus=consensus) as net:
        await net.submit(0, [registration()])
        await net.kill(LIAR)
        yield net


async def goes_on(net, *, same_view=True):
    """Every node that runs takes a submission and executes it, and all have one chain."""
    running = [index for index, node in enumerate(net.nodes) if node is not None]
    async with asyncio.timeout(20):
        done = await asyncio.gather(*(net.submit(index, [registration()]) for index in running))
        assert {answer.code for answer in done} == {"ok"}
        await assert_same_chain(net)
    if same_view:
        assert {net.node(index).service.status().view for index in running} == {0}


async def memory_stays_flat(attack, *, rounds=4, trials=3):
    """Repeat an attack; after the first time, which warms caches, the process must not grow.

    Its heap may take a step once, for whatever ran here before; a leak grows in every trial.
    """
    process = psutil.Process()
    await attack()
    growth = []
    for _ in range(trials):
        gc.collect()
        before = process.memory_info().rss
        for _ in range(rounds):
            await attack()
        gc.collect()
        growth.append(process.memory_info().rss - before)
        if growth[-1] < GROWTH_MAX_BYTES:
            return
    raise AssertionError(f"the process grew by {growth} bytes")


# Strangers.


async def test_strangers_at_the_door_disturb_nobody(testnet):
    async with three_of_four(testnet) as net:
        idle = [await asyncio.open_connection(*at(net, 0)) for _ in range(200)]

        async def knock():
            for greeting, is_answered in [*GREETINGS.items()] * 5:
                reader, writer = await asyncio.open_connection(*at(net, 0))
                writer.write(greeting)
                if is_answered:
                    with suppress(ConnectionError):
                        assert len(await reader.read()) < 100  # an alert at most
                writer.transport.abort()

        await memory_stays_flat(knock)
        await goes_on(net)
        assert len(net.node(0)._transport.connected) == 2
        for _, writer in idle:
            writer.transport.abort()


def half_handshake():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with suppress(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing).do_handshake()
    return outgoing.read()


# What strangers say first; whether it is so wrong that the node ends the connection at once.
GREETINGS = {
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n": True,
    random.Random(1).randbytes(5_000): True,
    b"\x16\x03\x01\xff\xff" + bytes(20_000): True,
    encode_frame(Kind.PING, bytes(8)): True,
    half_handshake(): False,
    half_handshake()[:40]: False,
    b"": False,
}


async def test_an_unknown_certificate_is_never_greeted(testnet):
    (stranger,) = make_identities("stranger")
    async with three_of_four(testnet) as net:

        async def knock():
            for _ in range(10):
                with pytest.raises(OSError):  # noqa: PT011, PT012
                    raw = await dial(net, 1, stranger)
                    raw.send(Kind.PING, bytes(8))
                    await raw.next_frame()

        await memory_stays_flat(knock, rounds=2)
        assert len(net.node(1)._transport.connected) == 2
        await goes_on(net)


async def test_a_validators_key_greets_only_on_its_own_chain(testnet):
    async with three_of_four(testnet) as net:
        liar = Liar(net)
        for hello, words in (
            (replace(liar.hello, chain_id=bytes(32)), "compare the genesis files"),
            (replace(liar.hello, protocol_version=9), "upgrade the older one"),
        ):
            liar.hello = hello
            async with asyncio.timeout(10):
                raw = await dial(net, 0, liar.identity)
                with suppress(ConnectionError):
                    await raw.greet(hello)
                assert words in decode_goodbye(await raw.until_kind(Kind.GOODBYE)).sentence
        await goes_on(net)


# A known key: frames.


def samples(liar):
    """A well-formed payload of every kind that a peer may send after HELLO."""
    digest, vote = b"\x07" * 32, PrePrepare(0, 2, b"\x07" * 32, liar.sender)
    return {
        Kind.PING: bytes(8),
        Kind.STATUS: encode_status(Status(3, 0)),
        Kind.TRANSACTIONS: encode_transactions([bytes(300)]),
        Kind.ANNOUNCE: encode_digests([digest]),
        Kind.FETCH_TRANSACTIONS: encode_digests([digest]),
        Kind.PROPOSAL: encode_proposal(encode(liar.signed(vote)), Batch(1, (digest,)).encode()),
        Kind.CONSENSUS: encode(liar.signed(Prepare(0, 2, digest, liar.sender))),
        Kind.FETCH_PAYLOAD: encode_payload_request(1, digest, ()),
        Kind.PAYLOAD: encode_payload(digest, b"", [b"body"]),
        Kind.FETCH_BLOCKS: encode_fetch_blocks(FetchBlocks(1, 1, 5)),
        Kind.BLOCKS: encode_blocks(Blocks(1, 1, (b"block",))),
        Kind.SEALED: encode_sealed(1, b"block"),
    }


async def test_frames_that_break_the_form_are_answered_with_the_reason(testnet, lenient):
    async with three_of_four(testnet) as net:
        liar = Liar(net)
        for kind in samples(liar):
            reason = await liar.sends(0, kind, b"")
            assert reason
        for kind in (Kind.CONSENSUS, Kind.PROPOSAL, Kind.PAYLOAD, Kind.BLOCKS, Kind.TRANSACTIONS):
            assert await liar.sends(0, kind, random.Random(kind).randbytes(2_000))
        assert "msgpack" in await liar.sends(0, Kind.CONSENSUS, b"\xc1" * 50)
        assert "kind 99" in await raw_bytes(liar, b"\x00\x00\x00\x01\x63x")
        assert "a second HELLO" in await liar.sends(0, Kind.HELLO, b"")
        await goes_on(net)


async def raw_bytes(liar, data):
    async with liar.connection(0) as raw:
        raw.writer.write(data)
        return decode_goodbye(await raw.until_kind(Kind.GOODBYE)).sentence


async def test_oversized_frames_are_refused_by_their_header_alone(testnet, lenient):
    async with three_of_four(testnet) as net:
        liar = Liar(net)
        for kind in samples(liar):
            length = PAYLOAD_BYTES_MAX[kind] + 1
            header = length.to_bytes(4, "big") + bytes([kind])
            assert f"at most {length - 1}" in await raw_bytes(liar, header)
        await goes_on(net)


async def test_truncated_frames_leave_nothing_behind(testnet):
    async with three_of_four(testnet) as net:
        liar = Liar(net)

        async def cut_off():
            for kind in (Kind.PAYLOAD, Kind.BLOCKS, Kind.SEALED):
                async with liar.connection(1) as raw:
                    raw.writer.write(encode_frame(kind, bytes(2 * 1024 * 1024))[:-1])
                    await raw.writer.drain()

        await memory_stays_flat(cut_off)
        await goes_on(net)


async def test_mutated_frames_of_every_kind_do_no_harm(testnet, lenient):
    """Whole or cut, with bytes changed anywhere behind the header; the seed is fixed."""
    chance = random.Random(20_240)
    async with three_of_four(testnet) as net:
        liar = Liar(net)

        async def mutate():
            for kind, payload in samples(liar).items():
                async with liar.connection(chance.choice((0, 1, 2))) as raw:
                    for _ in range(12):
                        raw.writer.write(encode_frame(kind, mutated(chance, payload)))
                    raw.send(Kind.PING, bytes(8))
                    with suppress(OSError):
                        await raw.until_kind(Kind.PONG)

        await memory_stays_flat(mutate)
        await goes_on(net)


def mutated(chance, payload):
    changed = bytearray(payload)
    for _ in range(chance.randint(1, 4)):
        changed[chance.randrange(len(changed))] = chance.randrange(256)
    if chance.random() < 0.3:
        del changed[chance.randrange(len(changed)) :]
    return bytes(changed)


async def test_megabytes_of_nested_nothing_are_refused_undecoded(testnet, lenient):
    async with three_of_four(testnet) as net:
        liar = Liar(net)
        count = 4 * 1024 * 1024
        nested = b"\xdd" + count.to_bytes(4, "big") + b"\x90" * count

        async def flood():
            assert "a quorum of 3" in await liar.sends(2, Kind.CONSENSUS, nested)
            assert await liar.sends(2, Kind.PAYLOAD, nested)
            assert await liar.sends(2, Kind.PROPOSAL, nested[: 1024 * 1024])

        await memory_stays_flat(flood)
        await goes_on(net)


# A known key: well-formed lies.


async def test_forged_votes_are_punished_and_move_nobody(testnet):
    async with three_of_four(testnet) as net:
        liar = Liar(net)
        height, digest = net.node(0).height + 1, b"\x09" * 32
        seals = tuple((sender, bytes(64)) for sender in range(3))
        stable = SealCertificate(height + 5, digest, seals)
        forged = [
            Prepare(0, height, digest, 1, bytes(64)),
            Commit(0, height, digest, 2, secrets.token_bytes(64)),
            Seal(height, digest, 1, bytes(64)),
            stable,
            ViewChange(2**50, stable, (), 1, bytes(64)),
            NewView(1, (), (), 1, bytes(64)),
            PrePrepare(0, height, digest, 0, bytes(64)),
            Prepare(0, height, digest, 900, bytes(64)),
        ]
        frames = [(Kind.CONSENSUS, encode(message)) for message in forged]
        async with liar.connection(0) as raw:
            for kind, payload in frames:
                raw.send(kind, payload)
            reason = decode_goodbye(await raw.until_kind(Kind.GOODBYE)).sentence
        assert "bad signature" in reason or "validator" in reason
        await goes_on(net)
        raw = await dial(net, 0, liar.identity)
        assert "refused for another" in decode_goodbye(await raw.until_kind(Kind.GOODBYE)).sentence


async def test_genuine_but_contradicting_votes_change_nothing_and_are_kept(testnet, caplog):
    async with three_of_four(testnet) as net:
        liar = Liar(net)
        stable = SealCertificate(0, net.node(0).header_digest(0), ())

        async def equivocate():
            height = net.node(0).height + 2
            frames = []
            for mark in range(40):
                digest = mark.to_bytes(32, "big")
                for vote in (
                    Prepare(0, height, digest, liar.sender),
                    Commit(0, height, digest, liar.sender),
                    Seal(height, digest, liar.sender),
                    Prepare(mark, height + 200 + mark, digest, liar.sender),
                    ViewChange(2**50 + mark, stable, (), liar.sender),
                ):
                    frames.append((Kind.CONSENSUS, encode(liar.signed(vote))))
            for index in range(3):
                await liar.says(index, *frames)
            await goes_on(net)

        await memory_stays_flat(equivocate, rounds=3)
        assert "evidence of equivocation kind=Prepare sender=3" in caplog.text
        assert any(key.startswith(schema.META + b"evidence/") for key in rows(net.node(1)))
        foreign = liar.signed(Prepare(0, 2, bytes(32), liar.sender), chain_id=bytes(32))
        await liar.says(0, (Kind.CONSENSUS, encode(foreign)))
        await goes_on(net)


def rows(node):
    return [key for key, _ in node._store.iterate(schema.META, schema.after_prefix(schema.META))]


async def test_invalid_transactions_reach_no_block(testnet, lenient):
    async with three_of_four(testnet) as net:
        liar = Liar(net)
        good = net.sign(0, [registration()])
        bad = [
            b"\xc0",
            secrets.token_bytes(400),
            good.raw[:-1] + bytes([good.raw[-1] ^ 1]),
            pack((1, bytes(32), "north", bytes(32), 5, bytes(16), (("a.b", ()),), bytes(64))),
            net.sign(1, [Operation("study.burn", ())]).raw,
            net.sign(1, [Operation("study.register", (1, 2, 3))]).raw,
            bytes(70_000),
        ]  # fmt: skip

        async def spread():
            for raw in bad:
                await liar.says(0, (Kind.TRANSACTIONS, encode_transactions([raw])))
                announced = encode_digests([transaction_digest(raw), secrets.token_bytes(32)])
                await liar.says(1, (Kind.ANNOUNCE, announced))
            await goes_on(net)

        await memory_stays_flat(spread, rounds=2)
        client = await net.client(0)
        for height in range(1, net.node(0).height + 1):
            block = await client.block(height)
            assert {receipt.code for receipt in block.receipts} <= {"ok"}


async def test_false_heights_and_blocks_mislead_nobody(testnet, lenient):
    async with three_of_four(testnet) as net:
        liar = Liar(net)
        next_height = net.node(0).height + 1

        async def mislead():
            await liar.says(0, (Kind.STATUS, encode_status(Status(2**53, 2**53))))
            await liar.says(
                0, (Kind.SEALED, encode_sealed(next_height, secrets.token_bytes(9_000)))
            )
            await liar.says(
                0, (Kind.BLOCKS, encode_blocks(Blocks(7, next_height, (bytes(200_000),))))
            )
            lie = encode_payload(b"\x01" * 32, b"", [secrets.token_bytes(1_000)] * 500)
            await liar.says(0, *[(Kind.PAYLOAD, lie)] * 4)
            asking = [encode_fetch_blocks(FetchBlocks(n, 1, 2**53)) for n in range(30)]
            await liar.says(0, *[(Kind.FETCH_BLOCKS, request) for request in asking])
            asking = [encode_payload_request(1, secrets.token_bytes(32), ()) for _ in range(50)]
            await liar.says(0, *[(Kind.FETCH_PAYLOAD, request) for request in asking])

        await memory_stays_flat(mislead)
        await goes_on(net)


async def test_a_primary_that_proposes_forged_transactions_is_replaced(testnet):
    async with testnet(validators=4, consensus=QUICK) as net:
        await net.submit(1, [registration()])
        await net.kill(0)
        liar = Liar(net, 0)
        member = net._member(1, net.layout.configs[1])
        forged = sign_transaction(
            lambda _: bytes(64),
            keys.public_bytes(member),
            chain_id=liar.chain_id,
            institution=net.layout.configs[1].institution,
            valid_until=1_000,
            operations=[registration()],
        )
        height = net.node(1).height + 1
        now_ms = wall_ms()
        batch = Batch(now_ms, (forged.digest,))
        vote = liar.signed(PrePrepare(0, height, batch.digest, liar.sender))
        proposal = encode_proposal(encode(vote), batch.encode())
        bodies = encode_payload(batch.digest, batch.encode(), [forged.raw])
        for index in (1, 2, 3):
            await liar.says(index, (Kind.PROPOSAL, proposal), (Kind.PAYLOAD, bodies))
        await goes_on(net, same_view=False)
        views = {net.node(index).service.status().view for index in (1, 2, 3)}
        assert 0 not in views
        assert (await (await net.client(1)).block(height)).receipts[0].code == "ok"


async def test_the_key_of_a_running_validator_cannot_take_over_its_votes_for_long(testnet):
    """Two connections of one key: the newer replaces the older, and the true node comes back."""
    async with testnet(validators=4, consensus=PATIENT) as net:
        await net.submit(0, [registration()])
        liar = Liar(net)
        for index in range(3):
            with suppress(OSError):
                await liar.says(index, (Kind.STATUS, encode_status(Status(0, 0))))
        await net.wait_connected()
        await goes_on(net)


# The RPC.


async def test_rpc_garbage_and_huge_bodies_are_answered_with_a_reason(testnet):
    async with testnet(validators=1) as net:
        node = net.node(0)
        host, port = node.rpc_url.removeprefix("http://").split(":")
        token = node.rpc_token

        async def answers(words, body, *, length=None, secret=token, path="/rpc"):
            """Return once the answer has `words` in it; the node may keep the connection open."""
            head = (
                f"POST {path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {secret}\r\n"
                f"Content-Type: application/json\r\n"
                f"Content-Length: {len(body) if length is None else length}\r\n\r\n"
            )
            await says(words, head.encode() + body)

        async def says(words, request):
            reader, writer = await asyncio.open_connection(host, int(port))
            with suppress(ConnectionError):
                writer.write(request)
                await writer.drain()
            answer = b""
            async with asyncio.timeout(10):
                while words not in answer:
                    chunk = await reader.read(65_536)
                    assert chunk, (words, answer)
                    answer += chunk
            writer.transport.abort()

        def call(method, *params):
            return json.dumps(
                {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
            ).encode()

        async def abuse():
            for body, words in (
                (b"", b"-32700"),
                (b"\xff\x00garbage", b"-32700"),
                (b"[" * 5_000 + b"]" * 5_000, b"32"),
                (b"[]", b"-32600"),
                (call("no_such_method"), b"-32601"),
                (call("submit", 5), b"-32602"),
                (call("submit", "00" * 500, "final"), b"error"),
                (call("block", -1), b"error"),
                (call("block", 2**80), b"error"),
                (call("transaction", "zz"), b"error"),
                (call("study", {"a": [1] * 100}), b"error"),
                (json.dumps([json.loads(call("status"))] * 5_000).encode(), b"error"),
            ):
                await answers(words, body)
            await answers(b" 413 ", bytes(4 * 1024 * 1024))
            await answers(b" 413 ", bytes(4 * 1024 * 1024), length=2**40)
            await answers(b" 401 ", call("status"), secret="wrong")
            await answers(b" 404 ", b"{}", path="/admin")
            await says(b" 400 ", random.Random(3).randbytes(3_000) + b"\r\n\r\n")

        await memory_stays_flat(abuse, rounds=3)
        assert (await net.submit(0, [registration()])).code == "ok"
