"""Catching up over a real chain: blocks made by executing, sealed with real keys, told by liars."""

import asyncio
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from consensus.inputs import MessageReceived, Synced
from node.ledger.block import Block
from node.ledger.transaction import decode_transaction
from node.ledger.verifier import SignatureVerifier
from node.network.errors import InvalidFrame
from node.network.frames import Kind
from node.network.payloads import (
    Blocks,
    FetchBlocks,
    Hello,
    Role,
    Status,
    decode_blocks,
    decode_fetch_blocks,
    decode_sealed,
    encode_blocks,
    encode_fetch_blocks,
    encode_sealed,
    encode_status,
)
from node.network.peers import Peer
from node.replication import catch_up as module
from node.replication.catch_up import CatchUp
from node.replication.chain import Diverged
from storage import schema
from storage.errors import CorruptRecord
from storage.kv import WriteBatch
from storage.memory import MemoryStore
from tests.damage import last_byte_changed
from tests.replication.world import (
    GENESIS,
    KEYS,
    NULL,
    PATIENCE_S,
    SCHEDULE,
    TIME_MS,
    FakeLinks,
    build_blocks,
    certificate,
    open_chain,
    payload,
    readers,
    settle,
    transaction,
    until,
)

A, B, C = (name * 32 for name in (b"a", b"b", b"c"))
STRANGER = b"s" * 32  # the key of a node that does not vote


class FakeDriver:
    """Takes what the driver is told of synced blocks."""

    view = 0

    def __init__(self):
        self.fed, self.executed = [], []
        self.on_executed = lambda block: None

    def feed(self, happened):
        self.fed.append(happened)

    def after_execution(self, block, digest):
        self.executed.append(block.header.height)
        self.on_executed(block)


class Node:
    """A node that catches up, with the peers in the test's hands."""

    def __init__(self, store, own_key, schedule=SCHEDULE):
        self.store = store
        self.chain, self.chain_store = open_chain(store, schedule)
        self.links = FakeLinks()
        self.driver = FakeDriver()
        self.verifier = SignatureVerifier(1)
        self.readers = readers()
        self.sealed = []
        self.task = self.ended = None
        self.now_ms = 0
        self.catch_up = CatchUp(
            chain=self.chain,
            chain_store=self.chain_store,
            schedule=schedule,
            genesis=GENESIS,
            driver=self.driver,
            verifier=self.verifier,
            links=self.links,
            readers=self.readers,
            stable_height=0,
            own_key=own_key,
            on_sealed=lambda seals: self.sealed.append(seals.height),
            now_ms=lambda: self.now_ms,
        )
        self.driver.on_executed = lambda block: self.catch_up.executed(block.header.height)

    def connect(self, *keys, height=0):
        for key in keys:
            hello = Hello(1, GENESIS.chain_id, Role.VALIDATOR, height)
            self.catch_up.peer_connected(Peer(key, key.hex()[:4], hello, True, "127.0.0.1:1"))

    def asked(self):
        """The requests that left since the last look: (peer, request)."""
        frames = self.links.take()
        return [
            (frame.to, decode_fetch_blocks(frame.payload))
            for frame in frames
            if frame.kind is Kind.FETCH_BLOCKS
        ]

    def answer(self, peer, request, blocks):
        """Let `peer` answer with its chain's part of the request."""
        part = blocks[request.first - 1 : request.last]
        encoded = tuple(block.encode() for block in part)
        frame = encode_blocks(Blocks(request.request_id, request.first, encoded))
        self.catch_up.blocks_frame(peer, frame)

    def wait_ms(self, milliseconds):
        self.now_ms += milliseconds
        self.catch_up.tick()

    async def reach(self, height):
        """Return once a height is executed and everybody was told."""
        await until(lambda: self.catch_up._sync.executed >= height)
        assert self.chain.height == height

    async def end(self):
        """Return the exceptions that ended the tasks."""
        await asyncio.wait([self.task])
        self.ended = self.task.exception()
        return self.ended.exceptions

    @property
    def blamed(self):
        return {key for key, *_ in self.links.punished}


@asynccontextmanager
async def live(node):
    """Run a node's tasks; an exception that ends them unexpectedly is raised at the end."""
    task = node.task = asyncio.create_task(node.catch_up.run())
    await asyncio.sleep(0)
    try:
        yield node
    finally:
        task.cancel()
        await asyncio.wait([task])
        await node.chain.close()
        node.verifier.close()
        node.readers.shutdown()
    if node.ended is None and not task.cancelled():
        task.result()


def running(*, follows=True):
    """A node with nothing but genesis."""
    return live(Node(MemoryStore(), STRANGER if follows else KEYS[0]))


async def make_chain(length, certified=None):
    """Blocks 1 to `length`, each with a transaction or none; seals only at `certified` heights."""
    chain, _ = open_chain(MemoryStore())
    payloads = [
        NULL if height % 4 == 3 else payload(transaction(), time_ms=TIME_MS + 1_000 * height)
        for height in range(1, length + 1)
    ]
    blocks = await build_blocks(chain, *payloads)
    await chain.close()
    return [
        block if certified is None or block.header.height in certified else stripped(block)
        for block in blocks
    ]


def stripped(block):
    return replace(block, certificate=None)


def fabricated(blocks, height):
    """Blocks whose one at `height` is of the liar's making, and those above descend from it."""
    made = list(blocks[: height - 1])
    for block in blocks[height - 1 :]:
        header = replace(block.header, state_root=b"\x66" * 32)
        if block.header.height > height:
            header = replace(header, parent=made[-1].header.digest)
        made.append(replace(block, header=header, certificate=None))
    return made


async def serve(node, chains, goal):
    """Answer every request out of the asked peer's chain until the node has executed `goal`."""
    async with asyncio.timeout(PATIENCE_S):
        while node.catch_up._sync.executed < goal:
            for peer, request in node.asked():
                node.answer(peer, request, chains[peer])
            node.wait_ms(5)
            await asyncio.sleep(0)


# Honest peers.


@pytest.mark.parametrize("certified", [None, {10}, {4, 9, 10}])
async def test_a_new_node_executes_the_chain_of_its_peers(certified):
    blocks = await make_chain(10, certified)
    async with running() as node:
        node.connect(A, B, height=10)
        ((peer, request),) = node.asked()
        assert (peer, request.first, request.last) == (A, 1, 10)
        node.answer(peer, request, blocks)
        await node.reach(10)
        await until(lambda: node.sealed)
        assert node.chain.head == blocks[-1].header
        assert node.driver.executed == list(range(1, 11))
        expected = sorted(certified or range(1, 11))
        assert node.sealed == expected
        assert node.driver.fed == [Synced(blocks[height - 1].certificate) for height in expected]
        assert node.catch_up.stable_height == 10
        assert node.blamed == set()


async def test_blocks_without_seals_wait_for_a_later_one_that_has_them():
    blocks = await make_chain(6, {6})
    async with running() as node:
        node.connect(A, height=4)
        ((peer, request),) = node.asked()
        node.answer(peer, request, blocks)
        await until(lambda: len(node.catch_up._unproven) == 4)
        assert node.chain.height == 0
        assert node.driver.fed == []
        node.catch_up.status_frame(A, encode_status(Status(6, 0)))
        ((peer, request),) = node.asked()
        node.answer(peer, request, blocks)
        await node.reach(6)
        assert node.catch_up._unproven == []


async def test_a_long_chain_comes_in_ranges_from_several_peers():
    blocks = await make_chain(150)
    async with running() as node:
        node.connect(A, B, C, height=150)
        chains = {A: blocks, B: blocks, C: blocks}
        askers = set()
        while node.chain.height < 150:
            requests = node.asked()
            askers |= {peer for peer, _ in requests}
            for peer, request in requests:
                node.answer(peer, request, chains[peer])
            await asyncio.sleep(0)
        assert len(askers) > 1
        assert node.chain.head == blocks[-1].header
        assert node.blamed == set()


async def test_a_validator_leaves_the_blocks_to_consensus_until_it_needs_them():
    blocks = await make_chain(5)
    async with running(follows=False) as node:
        node.connect(A, height=5)
        assert node.asked() == []
        node.catch_up.need(5)
        assert node.catch_up.is_behind
        ((peer, request),) = node.asked()
        node.answer(peer, request, blocks)
        await node.reach(5)
        await until(lambda: not node.catch_up.is_behind)


# Consensus is faster.


async def test_what_consensus_executed_is_not_executed_again_and_its_seals_are_news():
    blocks = await make_chain(3)
    async with running() as node:
        node.connect(A, height=3)
        ((peer, request),) = node.asked()
        first = blocks[0]
        bodies = tuple(transaction_of(first))
        await node.chain.execute(1, payload(*bodies, time_ms=first.batch.time_ms))
        node.answer(peer, request, blocks)
        await node.reach(3)
        await until(lambda: node.sealed == [2, 3])
        assert node.driver.executed == [2, 3]
        assert node.blamed == set()


async def test_a_run_that_consensus_overtakes_is_dropped():
    blocks = await make_chain(3, {3})
    async with running() as node:
        node.connect(A, height=2)
        ((peer, request),) = node.asked()
        node.answer(peer, request, blocks)
        await until(lambda: len(node.catch_up._unproven) == 2)
        for block in blocks[:2]:
            bodies = transaction_of(block)
            await node.chain.execute(
                block.header.height, payload(*bodies, time_ms=block.batch.time_ms)
            )
            node.catch_up.executed(block.header.height)
        node.catch_up.status_frame(A, encode_status(Status(3, 0)))
        ((peer, request),) = node.asked()
        node.answer(peer, request, blocks)
        await node.reach(3)
        assert node.driver.executed == [3]
        assert node.blamed == set()


async def test_seals_of_a_height_that_consensus_executes_meanwhile_reach_the_replica():
    blocks = await make_chain(1)
    async with running() as node:
        node.connect(A, height=1)
        ((peer, request),) = node.asked()
        adopt = node.chain.adopt_sealed

        async def overtaken(block, proposed):
            await node.chain.execute(1, proposed)
            return await adopt(block, proposed)

        node.chain.adopt_sealed = overtaken
        node.answer(peer, request, blocks)
        await until(lambda: node.driver.fed)
        assert node.driver.fed == [MessageReceived(blocks[0].certificate)]
        assert node.driver.executed == []
        assert node.sealed == []  # the driver tells when it is stored


def transaction_of(block):
    return [decode_transaction(body, GENESIS.limits) for body in block.bodies]


# Lies.


def bad_seals(block):
    seals = certificate(block.header.height, block.header.digest).seals
    return replace(block.certificate, seals=((seals[0][0], bytes(64)), *seals[1:]))


LIES = {
    "bytes": lambda block: None,
    "body": lambda block: replace(block, bodies=(last_byte_changed(block.bodies[0]),)),
    "missing body": lambda block: replace(block, bodies=()),
    "state": lambda block: replace(block, header=replace(block.header, state_root=bytes(32))),
    "seals of another header": lambda block: replace(
        block, certificate=certificate(2, b"\x05" * 32)
    ),
    "chain": lambda block: replace(
        block, header=replace(block.header, chain_id=bytes(32)), certificate=None
    ),
    "height": lambda block: replace(
        block, header=replace(block.header, height=9), certificate=None
    ),
}


@pytest.mark.parametrize("lie", LIES)
async def test_a_wrong_block_names_its_peer_and_comes_from_another(lie, caplog):
    blocks = await make_chain(4)
    wrong = LIES[lie](blocks[1])
    async with running() as node:
        node.connect(A, height=4)
        ((_, request),) = node.asked()
        node.connect(B, height=4)
        encoded = [block.encode() for block in blocks]
        encoded[1] = b"\xc1garbage" if wrong is None else wrong.encode()
        frame = encode_blocks(Blocks(request.request_id, 1, tuple(encoded)))
        node.catch_up.blocks_frame(A, frame)
        await until(lambda: node.blamed == {A})
        assert node.chain.height == 1  # what was good before it stands
        assert "block refused height=2" in caplog.text
        requests = [(peer, request) for peer, request in node.asked() if peer == B]
        assert requests[0][1].first == 2
        for peer, request in requests:
            node.answer(peer, request, blocks)
        await node.reach(4)
        assert node.blamed == {A}


BAD_SEALS = {
    "forged": bad_seals,
    "too few": lambda block: certificate(block.header.height, block.header.digest, (0, 1)),
    "too many": lambda block: certificate(block.header.height, block.header.digest, range(4)),
}


@pytest.mark.parametrize("lie", BAD_SEALS)
async def test_a_liar_on_top_does_not_take_back_what_seals_prove_below(lie):
    blocks = await make_chain(4)
    liars = [*blocks[:3], replace(blocks[3], certificate=BAD_SEALS[lie](blocks[3]))]
    async with running() as node:
        node.connect(A, height=4)
        ((_, request),) = node.asked()
        node.answer(A, request, liars)
        await until(lambda: node.blamed == {A})
        assert node.chain.height == 3
        assert node.catch_up.stable_height == 3
        node.connect(B, height=4)
        await serve(node, {A: liars, B: blocks}, 4)
        assert node.blamed == {A}


@pytest.mark.parametrize("lie", BAD_SEALS)
async def test_false_seals_below_genuine_ones_are_neither_stored_nor_believed(lie):
    blocks = await make_chain(4)
    liars = [replace(block, certificate=BAD_SEALS[lie](block)) for block in blocks[:3]]
    async with running() as node:
        node.connect(A, height=4)
        ((_, request),) = node.asked()
        node.answer(A, request, [*liars, blocks[3]])
        await node.reach(4)
        assert node.blamed == {A}
        assert node.driver.fed == [Synced(blocks[3].certificate)]
        assert [node.chain_store.certificate(height) for height in (1, 2, 3)] == [None] * 3


async def test_an_honest_peer_is_not_blamed_for_what_a_liar_put_below_its_block():
    """Fabricated blocks without seals, and then an honest one that does not descend from them."""
    blocks = await make_chain(6, {6})
    async with running() as node:
        node.connect(A, height=3)
        ((_, request),) = node.asked()
        node.answer(A, request, fabricated(blocks, 2))
        await until(lambda: len(node.catch_up._unproven) == 3)
        node.connect(B, height=6)
        await serve(node, {A: fabricated(blocks, 2), B: blocks}, 6)
        assert node.chain.height == 6
        assert B not in node.blamed


async def test_a_block_refused_above_unproven_ones_of_another_peer_does_not_lose_them():
    blocks = await make_chain(6, {6})
    wrong = [*blocks[:3], *[replace(block, bodies=(b"x",)) for block in blocks[3:]]]
    async with running() as node:
        node.connect(A, height=3)
        ((_, request),) = node.asked()
        node.answer(A, request, blocks)
        await until(lambda: len(node.catch_up._unproven) == 3)
        node.connect(B, height=6)
        for peer, request in node.asked():
            node.answer(peer, request, {A: blocks, B: wrong}[peer])
        await until(lambda: node.blamed == {B})
        node.connect(C, height=6)
        await serve(node, {A: blocks, B: wrong, C: blocks}, 6)
        assert node.chain.height == 6
        assert node.blamed == {B}


async def test_a_liar_that_strips_all_seals_holds_nobody_up():
    """It fills all that may be delivered ahead; a chain never goes on so long without seals."""
    blocks = await make_chain(80)
    bare = [stripped(block) for block in blocks]
    async with running() as node:
        node.connect(A, height=80)
        chains = {A: bare, B: blocks}
        for peer, request in node.asked():
            node.answer(peer, request, chains[peer])
        await until(lambda: node.blamed == {A})
        assert node.chain.height == 0
        node.connect(B, height=80)
        await serve(node, chains, 80)
        assert node.blamed == {A}


async def test_a_short_bare_run_is_fetched_anew_when_it_has_waited_too_long():
    blocks = await make_chain(5)
    bare = [stripped(block) for block in blocks]
    async with running() as node:
        node.connect(A, height=5)
        ((_, request),) = node.asked()
        node.answer(A, request, bare)
        await until(lambda: len(node.catch_up._unproven) == 5)
        node.connect(B, height=5)
        node.wait_ms(module.UNPROVEN_MAX_MS)
        assert node.asked() == []
        node.wait_ms(1)
        await until(lambda: not node.catch_up._unproven)
        ((peer, request),) = node.asked()
        assert (peer, request.first) == (B, 1)
        node.answer(peer, request, blocks)
        await node.reach(5)
        assert node.blamed == set()  # it may have been bad luck


async def test_a_silent_peer_is_followed_by_another():
    blocks = await make_chain(3)
    async with running() as node:
        node.connect(A, height=3)
        ((peer, _),) = node.asked()
        node.connect(B, height=3)
        assert (peer, node.asked()) == (A, [])
        node.wait_ms(5_000)
        ((peer, request),) = node.asked()
        assert peer == B
        node.answer(peer, request, blocks)
        await node.reach(3)


async def test_a_peer_that_leaves_is_followed_by_another():
    blocks = await make_chain(3)
    async with running() as node:
        node.connect(A, height=3)
        node.asked()
        node.connect(B, height=3)
        hello = Hello(1, GENESIS.chain_id, Role.VALIDATOR, 3)
        node.catch_up.peer_disconnected(Peer(A, "a", hello, True, ""))
        ((peer, request),) = node.asked()
        assert peer == B
        node.answer(peer, request, blocks)
        await node.reach(3)
        assert node.catch_up.heights() == {B: 3}


async def test_frames_that_are_nothing_are_refused():
    async with running() as node:
        node.connect(A, height=3)
        for take in (
            node.catch_up.status_frame,
            node.catch_up.blocks_frame,
            node.catch_up.sealed_frame,
            node.catch_up.fetch_frame,
        ):
            with pytest.raises(InvalidFrame):
                take(A, b"\x00\x01\x02")


async def test_blocks_that_nobody_asked_for_are_blamed():
    async with running() as node:
        node.connect(A, height=0)
        node.catch_up.blocks_frame(A, encode_blocks(Blocks(77, 1, (b"block",))))
        assert node.blamed == {A}


async def test_seals_over_another_block_than_consensus_executes_meanwhile_stop_the_node():
    blocks = await make_chain(1)
    async with running() as node:
        node.connect(A, height=1)
        ((peer, request),) = node.asked()
        adopt = node.chain.adopt_sealed

        async def overtaken(block, proposed):
            await node.chain.execute(1, payload(transaction()))
            return await adopt(block, proposed)

        node.chain.adopt_sealed = overtaken
        node.answer(peer, request, blocks)
        (error,) = await node.end()
        assert isinstance(error, Diverged)


# Serving.


async def served_node():
    blocks = await make_chain(6)
    node = Node(MemoryStore(), STRANGER)
    for block in blocks:
        proposed = NULL
        if block.batch is not None:
            proposed = payload(*transaction_of(block), time_ms=block.batch.time_ms)
        await node.chain.adopt_sealed(block, proposed)
    node.catch_up.stable_height = 6
    return node, blocks


@asynccontextmanager
async def serving():
    """A node with a chain of six, and its blocks."""
    node, blocks = await served_node()
    async with live(node):
        yield node, blocks


def answers(node):
    return [
        (frame.to, decode_blocks(frame.payload))
        for frame in node.links.sent
        if frame.kind is Kind.BLOCKS
    ]


async def test_asked_blocks_are_handed_out_as_they_were_sealed():
    async with serving() as (node, blocks):
        node.catch_up.fetch_frame(A, encode_fetch_blocks(FetchBlocks(5, 2, 9)))
        await until(lambda: answers(node))
        ((to, answer),) = answers(node)
        assert (to, answer.request_id, answer.first) == (A, 5, 2)
        assert [Block.decode(each, GENESIS.limits) for each in answer.blocks] == blocks[1:]


async def test_nothing_above_the_stable_height_is_handed_out():
    async with serving() as (node, _):
        node.catch_up.stable_height = 3
        node.catch_up.fetch_frame(A, encode_fetch_blocks(FetchBlocks(1, 1, 6)))
        node.catch_up.fetch_frame(A, encode_fetch_blocks(FetchBlocks(2, 4, 6)))
        await until(lambda: len(answers(node)) == 2)
        assert [len(answer.blocks) for _, answer in answers(node)] == [3, 0]


async def test_every_waiting_request_is_answered_without_waiting_for_time_to_pass():
    async with serving() as (node, _):
        for peer in (A, B, C):
            for number in range(4):
                request = FetchBlocks(number, 1, 2)
                node.catch_up.fetch_frame(peer, encode_fetch_blocks(request))
        await until(lambda: len(answers(node)) == 12)


async def test_requests_beyond_a_peers_share_are_ignored():
    async with serving() as (node, _):
        for number in range(50):
            node.catch_up.fetch_frame(A, encode_fetch_blocks(FetchBlocks(number, 1, 1)))
        node.catch_up.fetch_frame(B, encode_fetch_blocks(FetchBlocks(99, 1, 1)))
        await until(lambda: B in {to for to, _ in answers(node)})
        await settle()
        assert len([to for to, _ in answers(node) if to == A]) <= 6


async def test_a_request_before_the_start_waits_for_it():
    node, _ = await served_node()
    node.catch_up.fetch_frame(A, encode_fetch_blocks(FetchBlocks(1, 1, 1)))
    async with live(node):
        node.catch_up.tick()
        await until(lambda: answers(node))


async def test_observers_get_every_sealed_block_in_order():
    async with serving() as (node, blocks):
        node.connect(A, KEYS[1])
        for height in (4, 5, 6):
            node.catch_up.stable(height)
        await until(lambda: len(node.links.sent) == 3)
        pushed = [
            (frame.to, frame.kind, *decode_sealed(frame.payload)) for frame in node.links.sent
        ]
        assert pushed == [(A, Kind.SEALED, h, blocks[h - 1].encode()) for h in (4, 5, 6)]


async def test_a_pushed_block_is_adopted_and_its_gap_is_fetched():
    blocks = await make_chain(3)
    async with running() as node:
        node.connect(A, height=0)
        node.catch_up.sealed_frame(A, encode_sealed(1, blocks[0].encode()))
        await node.reach(1)
        node.catch_up.sealed_frame(A, encode_sealed(3, blocks[2].encode()))
        ((peer, request),) = node.asked()
        assert (request.first, request.last) == (2, 2)
        node.answer(peer, request, blocks)
        await node.reach(3)
        assert node.sealed == [1, 2, 3]


@pytest.mark.parametrize("damage", ["missing", "garbage"])
async def test_a_damaged_block_stops_the_node_instead_of_being_served(damage):
    async with serving() as (node, blocks):
        key = schema.PAYLOAD + schema.height_bytes(2) + blocks[1].batch.digest
        row = None if damage == "missing" else schema.encode_strings([b"garbage"])
        write(node.store, key, row)
        node.catch_up.fetch_frame(A, encode_fetch_blocks(FetchBlocks(1, 1, 6)))
        (error,) = await node.end()
        assert isinstance(error, CorruptRecord)
        assert "height 2" in str(error)
        assert answers(node) == []


def write(store, key, value):
    batch = WriteBatch()
    if value is None:
        batch.delete(key)
    else:
        batch.put(key, value)
    store.write(batch, sync=True)
