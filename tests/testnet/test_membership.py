"""Validators that come, go and change their keys while the chain goes on, by votes of its own."""

import asyncio
import secrets
import shutil

import pytest

from consensus.inputs import PrimarySuspected
from consensus.validators import quorum_size
from node import keys
from node.ledger.contracts.possession import possession_message
from node.ledger.membership import CHANGE_DELAY
from node.ledger.transaction import Operation
from tests.testnet.test_testnet import QUICK, assert_same_chain, registration


def possession(net, institution, key):
    return key.sign(possession_message(net.genesis.chain_id, institution, keys.public_bytes(key)))


def bringing(net, index, card):
    """The arguments with which a node's key is voted in."""
    signature = possession(net, card.institution, net.node_key(index))
    return card.institution, card.node_key, card.certificate, signature


async def decide(net, action, *arguments, voters=(0, 1, 2)):
    """Let institutions vote an action through; return the height of its execution."""
    proposal_id = secrets.token_bytes(16)
    first, *others = voters
    proposal = Operation("governance.propose", (proposal_id, action, arguments, 1_000))
    steps = [(first, proposal)]
    steps += [(other, Operation("governance.vote", (proposal_id, True))) for other in others]
    steps += [(first, Operation("governance.execute", (proposal_id,)))]
    for index, operation in steps:
        done = await net.submit(index, [operation])
        assert done.code == "ok", (operation.name, done.code, done.rule)
    return done.height


async def admit(net, index, card):
    """Take in the institution of a further node, with the key that signs its transactions."""
    admin = net.member_key(index)
    name, key = card.institution, keys.public_bytes(admin)
    signature = possession(net, name, admin)
    await decide(net, "institution_add", name, card.display_name, "ZZ", key, signature)


async def reign(net, executed_height, through=0):
    """Bring the chain to the first height of the set that was planned at this height."""
    while net.node(through).height < executed_height + CHANGE_DELAY:
        await net.submit(through, [registration()])
    await net.wait_height(executed_height + CHANGE_DELAY)


def voters(net, index):
    return [line.institution for line in net.node(index).service.validators()]


async def suspect_until(net, institution):
    """Make everybody leave one view after another, until this institution is the primary."""
    running = [node for node in net.nodes if node is not None]
    statuses = [node.service.status() for node in running]
    while {status.primary for status in statuses} != {institution}:
        for node, status in zip(running, statuses, strict=True):
            if status.primary != institution:
                node._driver.feed(PrimarySuspected(status.view))
        await asyncio.gather(*(net.submit(0, [registration()]) for _ in range(2)))
        statuses = [node.service.status() for node in running]


async def test_a_fifth_node_joins_follows_votes_and_leads(testnet):
    async with testnet(consensus=QUICK) as net:
        index, card = net.add()
        await admit(net, index, card)
        node = await net.start(index)  # before anybody knows it
        assert "once it is voted in" in node.service.readiness().reason
        planned = await decide(net, "validator_add", *bringing(net, index, card))
        await node.wait_connected(set(voters(net, 0)))
        await net.wait_height(planned)
        assert not node.service.status().is_validator
        await reign(net, planned)
        await net.submit(index, [registration()])
        await net.wait_height(net.node(0).height)
        assert {tuple(voters(net, i)) for i in range(5)} == {
            ("north", "south", "east", "west", card.institution)
        }
        assert node.service.status().is_validator
        assert node.service.readiness().is_ready
        await suspect_until(net, card.institution)
        assert (await net.submit(1, [registration()])).code == "ok"
        assert node.service.status().view % 5 == 4
        await net.kill(1)  # four of five are a quorum: from now on each one's vote is needed
        assert quorum_size(5) == 4
        assert (await net.submit(index, [registration()])).code == "ok"
        await assert_same_chain(net)


@pytest.mark.parametrize("stays", [False, True], ids=["for good", "to follow"])
async def test_a_validator_that_is_voted_out_follows_only_if_it_is_listed(testnet, stays):
    async with testnet(consensus=QUICK) as net:
        west = net.genesis.validators[3]
        if stays:
            signature = possession(net, "west", net.node_key(3))
            listed = ("west", west.public_key, west.certificate, signature)
            await decide(net, "observer_add", *listed)
        planned = await decide(net, "validator_remove", "west")
        if stays:
            await reign(net, planned)
        else:
            while net.node(0).height < planned + CHANGE_DELAY:
                await net.submit(0, [registration()])
        assert voters(net, 0) == ["north", "south", "east"]
        await net.submit(1, [registration()], wait="sealed")
        last = net.node(0).height
        if stays:
            await net.wait_height(last)
            status = net.node(3).service.status()
            assert not status.is_validator
            assert set(status.peers_connected) == {"north", "south", "east"}
        else:
            await net.wait_height(last, [0, 1, 2])
            assert not [p for p in net.node(0).service.peers() if p.institution == "west"]
            assert net.node(3).height <= planned + CHANGE_DELAY
        await net.kill(2)  # two of three are a quorum; the fourth has nothing to say
        assert (await net.submit(0, [registration()])).code == "ok"


async def test_a_rotated_key_votes_in_the_place_of_the_old_one(testnet):
    async with testnet(consensus=QUICK) as net:
        old = net.genesis.validators[3].public_key
        card = net.rotate(3)
        planned = await decide(net, "validator_rotate", *bringing(net, 3, card))
        await net.restart(3)  # with the new key: until it votes it follows
        await reign(net, planned)
        lines = {line.institution: line for line in net.node(0).service.validators()}
        assert lines["west"].public_key == card.node_key != old
        assert lines["west"].index == 3
        await net.kill(2)  # from now on its vote is needed
        assert (await net.submit(3, [registration()])).code == "ok"
        await assert_same_chain(net)


async def test_sets_survive_restarts_and_a_wiped_node_learns_them_forward(testnet):
    """Requirement 42, through three sets with different members."""
    async with testnet(consensus=QUICK) as net:
        index, card = net.add()
        await admit(net, index, card)
        planned = await decide(net, "validator_add", *bringing(net, index, card))
        await net.start(index)
        await reign(net, planned)
        await net.stop(3)
        await reign(net, await decide(net, "validator_remove", "west", voters=(0, 1, 2, index)))
        await asyncio.gather(*(net.kill(i) for i in (0, 1, 2, index)))
        shutil.rmtree(net.layout.configs[1].data_dir)
        await asyncio.gather(*(net.start(i) for i in (0, 1, 2, index)))
        await net.wait_height(net.node(0).height)
        assert {tuple(voters(net, i)) for i in (0, 1, 2, index)} == {
            ("north", "south", "east", card.institution)
        }
        await net.kill(2)
        assert (await net.submit(1, [registration()])).code == "ok"
        await assert_same_chain(net)
