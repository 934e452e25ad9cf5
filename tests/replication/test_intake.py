"""The intake: a lane for each validator, in turn, and no signature checked in vain.

The replica here finds everything relevant and what the test says certain; signatures are real.
"""

import asyncio
from dataclasses import replace
from types import SimpleNamespace

import pytest

from consensus.messages import (
    Commit,
    Prepare,
    PreparedCertificate,
    PrePrepare,
    Seal,
    ViewChange,
    encode,
)
from consensus.validators import Validator, ValidatorSchedule, ValidatorSet
from node.ledger.verifier import verify_all
from node.replication import intake as module
from node.replication.intake import BATCH_CHECKS_MAX, TURN_CHECKS_MAX, Intake
from tests.replication.world import (
    GENESIS,
    KEYS,
    NEW_KEY,
    SET,
    FakeLinks,
    certificate,
    settle,
    signed,
    until,
)

LIAR = 3


class World:
    """An intake, its task, and everything around it in the test's hands."""

    def __init__(self):
        self.replica = SimpleNamespace(
            low=0, syncing=False, is_relevant=lambda _: True, can_judge=lambda _: self.is_certain
        )
        self.schedule = ValidatorSchedule(SET)
        self.links = FakeLinks()
        self.is_certain = True
        self.verified = []  # how many checks at a time
        self.fed = []
        self.backlog = 0
        self.intake = Intake(
            replica=self.replica,
            schedule=self.schedule,
            chain_id=GENESIS.chain_id,
            verifier=self,
            punish=self.links.punish,
            feed=lambda happened: self.fed.append(happened.message),
            backlog=lambda: self.backlog,
        )

    async def verify(self, checks):
        self.verified.append(len(checks))
        return verify_all(checks)

    def receive(self, *messages, peer=None):
        """Take frames, each from the sender of its message; return how many were admitted."""
        count = 0
        for message in messages:
            key = KEYS[message.sender] if peer is None else peer
            if self.intake.admit(key):
                self.intake.frame(key, encode(message))
                count += 1
        return count

    async def work(self):
        await until(lambda: not self.intake)
        await settle()


@pytest.fixture
async def world():
    made = World()
    running = asyncio.create_task(made.intake.run())
    yield made
    running.cancel()
    await asyncio.wait([running])
    assert running.cancelled()


def seals(count, sender=LIAR):
    """Genuine seals that contradict each other."""
    return [signed(Seal(5, number.to_bytes(32, "big"), sender)) for number in range(count)]


def view_change(heights=45, *, bad=()):
    """A genuine ViewChange with 4 signatures and 3 for each height but for the `bad` heights."""
    prepared = []
    for height in range(2, 2 + heights):
        vote = signed(PrePrepare(0, height, b"\x01" * 32, 0))
        votes = [signed(Prepare(0, height, vote.digest, sender)) for sender in (1, 2)]
        if height in bad:
            votes[0] = replace(votes[0], signature=bytes(64))
        entries = tuple((each.sender, each.signature) for each in votes)
        prepared.append(PreparedCertificate(vote, entries))
    stable = certificate(1, b"\x02" * 32)
    return signed(ViewChange(1, stable, tuple(prepared), LIAR))


# Lanes.


async def test_a_vote_does_not_wait_for_what_another_peer_has_queued(world):
    vote = signed(Commit(0, 1, b"\x01" * 32, 2))
    world.receive(*seals(500), vote)
    await until(lambda: vote in world.fed)
    assert world.verified == [TURN_CHECKS_MAX + 1]
    await world.work()
    assert len(world.fed) == 501


async def test_a_full_lane_takes_no_room_from_the_others(monkeypatch, world):
    monkeypatch.setattr(module, "LANE_MESSAGES_MAX", 100)
    assert world.receive(*seals(150)) == 100
    assert world.receive(*seals(100, sender=2)) == 100
    await world.work()
    assert world.receive(*seals(1)) == 1


async def test_a_lane_is_bounded_in_bytes_too(monkeypatch, world):
    large = view_change()
    monkeypatch.setattr(module, "LANE_BYTES_MAX", 2 * len(encode(large)) - 1)
    assert world.receive(*[large] * 10) == 2
    assert world.receive(*seals(1, sender=2)) == 1
    await world.work()
    assert len(world.fed) == 3
    assert world.receive(large) == 1


async def test_a_batch_is_bounded_and_each_peers_messages_stay_in_order(world):
    sent = {sender: seals(150, sender) for sender in range(4)}
    for messages in sent.values():
        world.receive(*messages)
    await world.work()
    assert max(world.verified) == BATCH_CHECKS_MAX == 3 * TURN_CHECKS_MAX
    for sender, messages in sent.items():
        assert [each for each in world.fed if each.sender == sender] == messages
    first = {each.sender for each in world.fed[: 2 * BATCH_CHECKS_MAX]}
    assert first == {0, 1, 2, 3}  # whoever found the first batch full was in the second


async def test_small_votes_of_several_peers_are_one_batch(world):
    votes = [signed(Commit(0, h, b"\x01" * 32, sender)) for h in range(1, 21) for sender in (0, 2)]
    world.receive(*votes)
    await world.work()
    assert world.verified == [40]


async def test_a_full_backlog_holds_verification_back_until_it_is_less(world):
    world.backlog = module.BACKLOG_MAX
    world.receive(*seals(10))
    await settle()
    assert (world.fed, len(world.intake)) == ([], 10)
    world.backlog -= 1
    world.intake.wake()
    await world.work()
    assert len(world.fed) == 10


# Messages with many signatures.


async def test_a_large_message_is_verified_in_parts_and_others_between_them(world):
    large, vote = view_change(), signed(Commit(0, 1, b"\x01" * 32, 2))
    after = seals(1)[0]
    world.receive(large, after, vote)
    await world.work()
    assert world.fed == [vote, large, after]
    assert world.verified == [TURN_CHECKS_MAX + 1, TURN_CHECKS_MAX, 139 - 2 * TURN_CHECKS_MAX + 1]


@pytest.mark.parametrize(("bad", "parts"), [(2, 1), (30, 2)])
async def test_after_a_bad_signature_the_rest_of_a_message_is_not_verified(world, bad, parts):
    world.receive(view_change(bad=range(bad, 47)))
    await world.work()
    assert world.verified == [TURN_CHECKS_MAX] * parts
    assert world.fed == []
    reason = "a consensus message with a bad signature"
    assert world.links.punished == [(KEYS[LIAR], 20, reason)]


async def test_beyond_the_horizon_a_bad_view_change_costs_a_little_and_a_bad_vote_nothing(world):
    world.is_certain = False
    world.receive(view_change(bad=[2]))
    world.receive(replace(view_change(3), sender=LIAR, stable=certificate(1, bytes(32), (0, 1))))
    world.receive(replace(seals(1)[0], signature=bytes(64)))
    await world.work()
    assert [(key, points) for key, points, _ in world.links.punished] == [(KEYS[LIAR], 3)] * 2
    assert world.fed == []


# Who has a vote.


async def test_frames_of_a_peer_without_a_vote_are_dropped_undecoded(monkeypatch, world):
    monkeypatch.setattr(module, "decode", None)
    assert world.receive(*seals(3), peer=NEW_KEY) == 0
    assert [(key, points) for key, points, _ in world.links.punished] == [(NEW_KEY, 1)] * 3


async def test_a_node_that_is_behind_does_not_blame_who_may_vote_by_now(world):
    world.replica.syncing = True
    assert world.receive(*seals(3), peer=NEW_KEY) == 0
    assert world.links.punished == []


async def test_who_votes_soon_or_voted_for_the_stable_height_has_a_lane(world):
    voters = ValidatorSet((*SET.validators[1:], Validator("new", NEW_KEY)))
    world.schedule.plan(10, voters)
    assert [world.intake.admit(key) for key in (KEYS[0], KEYS[1], NEW_KEY)] == [True] * 3
    world.replica.low = 9
    assert world.intake.admit(KEYS[0])
    world.replica.low = 10
    assert [world.intake.admit(key) for key in (KEYS[0], KEYS[1], NEW_KEY)] == [False, True, True]
