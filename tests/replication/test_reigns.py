"""Validator sets that change while a node catches up, votes, and decides whom to know."""

import asyncio
from dataclasses import replace

import pytest

from consensus.effects import Broadcast, Persist, Stable
from consensus.inputs import TimerFired
from consensus.messages import Commit, Prepare, Seal, encode
from consensus.validators import ValidatorSchedule
from node.ledger import membership
from node.ledger.contracts.base import OperationKind
from node.ledger.contracts.table import OPERATIONS
from node.ledger.genesis import NodeIdentity
from node.ledger.membership import CHANGE_DELAY, PlannedSet
from node.ledger.transaction import Operation, sign_transaction
from node.network.frames import Kind
from node.network.payloads import Role, decode_sealed
from node.replication.chain import NULL_PAYLOAD
from node.replication.nodes import KnownNodes, find_node, listed_nodes
from storage import schema
from storage.memory import MemoryStore
from tests.replication.stage import on_stage
from tests.replication.test_catch_up import STRANGER, Node, live, serve
from tests.replication.test_driver import Scripted
from tests.replication.world import (
    GATEWAY,
    GENESIS,
    KEYS,
    NEW_KEY,
    TIME_MS,
    build_blocks,
    certificate,
    open_chain,
    payload,
    public,
    readers,
    settle,
    signed,
    until,
)

START = 1 + CHANGE_DELAY  # of the set that height 1 plans
NEWCOMER = NodeIdentity("hill", NEW_KEY, b"certificate of hill")
SECOND = (*GENESIS.validators[:3], NEWCOMER)  # without the last one
WATCHER = NodeIdentity("lake", b"w" * 32, b"certificate of lake")


@pytest.fixture(autouse=True)
def operations(monkeypatch):
    """Stands in for governance: changes at a word, without a vote."""

    def plan(context, _):
        planned = PlannedSet(context.height + CHANGE_DELAY, SECOND)
        membership.append(context.state.put, context.state.get, planned)

    def watch(context, _):
        membership.add_observer(context.state, WATCHER)

    added = dict(OPERATIONS)
    for name, apply in (("test.plan", plan), ("test.watch", watch)):
        added[name] = OperationKind(name, frozenset({"gateway"}), lambda each: each, apply)
    monkeypatch.setattr("node.ledger.execution.OPERATIONS", added)


def ordered(name):
    """A batch with this operation in it."""
    transaction = sign_transaction(
        GATEWAY.sign,
        public(GATEWAY),
        chain_id=GENESIS.chain_id,
        institution="north",
        valid_until=500,
        operations=[Operation(name, ())],
        salt=name.ljust(16).encode(),
    )
    return payload(transaction, time_ms=TIME_MS + 1_000)


def new_schedule():
    return ValidatorSchedule(GENESIS.validator_set())


async def make_chain(length, *, schedule=None):
    """Blocks 1 to `length`, of which the first plans `SECOND`."""
    schedule = schedule or new_schedule()
    chain, _ = open_chain(MemoryStore(), schedule)
    nulls = [NULL_PAYLOAD] * (length - 1)
    blocks = await build_blocks(chain, ordered("test.plan"), *nulls, schedule=schedule)
    await chain.close()
    return blocks


def newcomer(own_key=STRANGER):
    """A node with nothing but genesis."""
    return live(Node(MemoryStore(), own_key, new_schedule()))


# Catching up


async def test_each_block_is_judged_by_the_set_that_reigned():
    blocks = await make_chain(START + 5)
    async with newcomer() as node:
        node.connect(*KEYS[:2], height=START + 5)
        await serve(node, dict.fromkeys(KEYS[:2], blocks), START + 5)
        assert node.chain.head == blocks[-1].header
        assert node.sealed == list(range(1, START + 6))
        assert node.blamed == set()


async def test_seals_of_validators_that_left_prove_nothing():
    """They know their old keys, and whoever steals one of them, too."""
    blocks = await make_chain(START)
    last = blocks[-1]
    old = certificate(START, last.header.digest)
    forged = [*blocks[:-1], replace(last, certificate=old)]
    async with newcomer() as node:
        node.connect(KEYS[3], height=START)
        await serve(node, {KEYS[3]: forged}, START - 1)
        await until(lambda: node.blamed)
        assert node.blamed == {KEYS[3]}
        assert node.chain.height == START - 1
        node.connect(KEYS[0], height=START)
        await serve(node, {KEYS[0]: blocks, KEYS[3]: forged}, START)


async def test_who_has_no_vote_on_a_height_gets_its_block():
    """An observer always, the newcomer up to its reign, the one that left from then on."""
    schedule = new_schedule()
    blocks = await make_chain(START + 1, schedule=schedule)
    node = Node(MemoryStore(), KEYS[0], schedule)
    await build_blocks(node.chain, ordered("test.plan"), *[NULL_PAYLOAD] * START)
    async with live(node):
        node.connect(STRANGER, NEW_KEY, *KEYS[1:])
        for height in (START - 1, START):
            node.catch_up.stable(height)
        await until(lambda: len(node.links.sent) == 4)
        pushed = {(f.to, decode_sealed(f.payload)[0]) for f in node.links.sent}
        assert {f.kind for f in node.links.sent} == {Kind.SEALED}
        assert pushed == {
            (STRANGER, START - 1),
            (NEW_KEY, START - 1),
            (STRANGER, START),
            (KEYS[3], START),
        }
    assert blocks[-1].header == node.chain.head


@pytest.mark.parametrize(
    ("own_key", "before", "after"), [(NEW_KEY, True, False), (KEYS[3], False, True)]
)
async def test_a_node_follows_for_as_long_as_it_has_no_vote(own_key, before, after):
    schedule = new_schedule()
    schedule.plan(2, PlannedSet(2, SECOND).validator_set())
    async with live(Node(MemoryStore(), own_key, schedule)) as node:
        assert node.catch_up._sync.follows is before
        await node.chain.execute(1, NULL_PAYLOAD)
        node.catch_up.executed(1)
        assert node.catch_up._sync.follows is after


async def test_a_validator_too_far_behind_to_judge_votes_fetches_what_f_plus_1_have():
    far = CHANGE_DELAY + 1
    async with newcomer(KEYS[0]) as node:
        node.connect(KEYS[1], STRANGER, height=far)
        node.connect(KEYS[2], height=far - 1)
        assert not node.catch_up.is_behind
        assert node.asked() == []  # it would wait for consensus to bring it
        node.connect(KEYS[3], height=far)
        assert node.catch_up.is_behind
        assert node.asked()
        node.connect(KEYS[1], height=3)
        node.catch_up.executed(0)
        assert node.catch_up.is_behind is False


# Voting


async def test_nobody_is_punished_for_signatures_that_the_node_cannot_judge(monkeypatch):
    async with on_stage(monkeypatch) as stage:
        horizon = stage.replica.executed_height + CHANGE_DELAY
        for height in (horizon, horizon + 1):
            stage.receive(Seal(height, b"\x01" * 32, 2, bytes(64)), sign=False)
        unknown = Commit(0, horizon + 1, b"\x01" * 32, 77, bytes(64))
        stage.driver.consensus_frame(KEYS[3], encode(unknown))
        await until(lambda: stage.links.punished)
        await settle()
        assert [key for key, *_ in stage.links.punished] == [KEYS[2]]
        assert stage.links.punished[0][1:] == (20, "a consensus message with a bad signature")


async def test_a_certificate_is_durable_with_the_votes_that_come_after_it(monkeypatch):
    stable = Stable(certificate(1, b"\x01" * 32))
    vote = Broadcast(signed(Prepare(0, 2, b"\x01" * 32, 1)))
    script = {"go": [stable, Persist(b"v", b"x"), vote]}
    async with on_stage(monkeypatch, replica=Scripted(script)) as stage:
        stage.listener.stable = lambda _: None
        before = len(stage.store.writes)
        stage.driver.feed(TimerFired("go"))
        await until(lambda: stage.links.sent)
        (rows, sync), *more = stage.store.writes[before:]
        assert sync
        assert not more
        keys = [key[:1] for key, _ in rows]
        assert keys == [schema.CERTIFICATE, schema.WAL]


# Whom to know


class World:
    """The chain of a node that wants to know whom to know."""

    def __init__(self, own_key=KEYS[0]):
        self.schedule = new_schedule()
        self.chain, self.store = open_chain(MemoryStore(), self.schedule)
        self.readers = readers()
        self.nodes = KnownNodes(
            chain_store=self.store,
            schedule=self.schedule,
            readers=self.readers,
            addresses={"hill": ("hill.example", 7610)},
            own_key=own_key,
            stable_height=0,
        )
        self.known = []

    def know(self, peers):
        self.known.append({peer.name: peer for peer in peers})

    async def add(self, each):
        executed = await self.chain.execute(self.chain.height + 1, each)
        self.nodes.executed(executed)
        self.nodes.stable(executed.header.height)

    async def close(self):
        await self.chain.close()
        self.readers.shutdown()


@pytest.fixture
async def world():
    made = World()
    yield made
    await made.close()


def listed(world, height):
    return [(node.institution, role) for node, role in listed_nodes(world.store, height)]


async def test_validators_are_known_from_their_plan_to_the_end_of_their_reign(world):
    four = ["north", "south", "east", "west"]
    assert listed(world, 1) == [(name, Role.VALIDATOR) for name in four]
    await world.add(ordered("test.plan"))
    both = {name for name, _ in listed(world, START - 1)}
    assert both == {*four, "hill"}
    assert [name for name, _ in listed(world, START)] == ["north", "south", "east", "hill"]


async def test_observers_are_known_as_such_while_they_are_listed(world):
    await world.add(ordered("test.watch"))
    assert listed(world, 2)[4:] == [("lake", Role.OBSERVER)]
    assert find_node(world.store, WATCHER.public_key) == WATCHER


async def test_a_node_finds_itself_in_every_set_that_ever_was(world):
    await world.add(ordered("test.plan"))
    assert find_node(world.store, KEYS[3]) == GENESIS.validators[3]
    assert find_node(world.store, NEW_KEY) == NEWCOMER
    assert find_node(world.store, STRANGER) is None


async def test_the_transport_is_told_after_the_blocks_that_change_something(world):
    running = asyncio.create_task(world.nodes.run(world))
    try:
        await world.add(ordered("test.plan"))
        await until(lambda: len(world.known) == 1)
        hill = world.known[0]["hill"]
        assert (hill.certificate, hill.role) == (NEWCOMER.certificate, Role.VALIDATOR)
        assert (hill.host, hill.port) == ("hill.example", 7610)
        assert world.known[0]["west"].host is None
        for _ in range(2, START - 1):
            await world.add(NULL_PAYLOAD)
        await settle()
        assert len(world.known) == 1
        await world.add(NULL_PAYLOAD)  # the last height of the first set
        await until(lambda: len(world.known) == 2)
        assert set(world.known[1]) == {"north", "south", "east", "hill"}
    finally:
        running.cancel()


@pytest.mark.parametrize(
    ("own_key", "roles"),
    [
        (KEYS[0], [Role.VALIDATOR] * 3),
        (KEYS[3], [Role.VALIDATOR, Role.VALIDATOR, Role.OBSERVER]),
        (NEW_KEY, [Role.OBSERVER, Role.VALIDATOR, Role.VALIDATOR]),
        (STRANGER, [Role.OBSERVER] * 3),
    ],
)
async def test_a_node_says_that_it_votes_from_the_plan_to_the_end(own_key, roles):
    world = World(own_key)
    seen = [world.nodes.own_role]
    await world.add(ordered("test.plan"))
    seen.append(world.nodes.own_role)
    for _ in range(2, START):
        await world.add(NULL_PAYLOAD)
    seen.append(world.nodes.own_role)
    await world.close()
    assert seen == roles
