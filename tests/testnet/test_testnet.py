"""Several whole nodes, real sockets and disks: they agree, survive, and come back."""

import asyncio
import secrets
import shutil

import pytest

from node.config import ConsensusConfig
from node.ledger.errors import Refused
from node.ledger.transaction import Operation

QUICK = ConsensusConfig(view_timeout_ms=600, view_timeout_ms_max=3_000, resend_interval_ms=300)


def registration() -> Operation:
    ids = secrets.token_bytes(64)
    return Operation("study.register", (ids[:16], ids[16:32], ids[32:], "CT", "head", 1, 1))


async def executed_ids(net, index):
    """Return the ids of all successful transactions of one node's chain, in order."""
    client = await net.client(index)
    ids = []
    for height in range(1, net.node(index).height + 1):
        block = await client.block(height)
        ids += [r.transaction_id for r in block.receipts if r.code == "ok"]
    return ids


async def assert_same_chain(net):
    """All running nodes come to one head, and none differs."""
    running = [node for node in net.nodes if node is not None]
    height = max(node.height for node in running)
    await net.wait_height(height)
    assert len({node.header_digest(height) for node in running}) == 1


async def test_all_nodes_agree_on_what_any_of_them_was_given(testnet):
    async with testnet(consensus=QUICK) as net:
        answers = await asyncio.gather(*(net.submit(i % 4, [registration()]) for i in range(12)))
        assert {answer.code for answer in answers} == {"ok"}
        await assert_same_chain(net)
        ids = await executed_ids(net, 3)
        assert sorted(ids) == sorted(answer.id for answer in answers)


async def test_the_same_transaction_twice_is_executed_once(testnet):
    async with testnet(consensus=QUICK) as net:
        transaction = net.sign(0, [registration()])
        first, second = [await net.client(index) for index in (0, 1)]
        answers = await asyncio.gather(
            first.submit(transaction), first.submit(transaction), second.submit(transaction)
        )
        later = await second.submit(transaction)
        assert {(a.id, a.height, a.code) for a in (*answers, later)} == {
            (transaction.id, answers[0].height, "ok")
        }
        await assert_same_chain(net)
        assert await executed_ids(net, 2) == [transaction.id]


async def test_a_sealed_answer_means_that_a_quorum_signed_the_block(testnet):
    async with testnet(consensus=QUICK) as net:
        done = await net.submit(1, [registration()], wait="sealed")
        block = await (await net.client(1)).block(done.height)
        assert block.certificate is not None
        assert len(block.certificate.seals) == 3


async def test_a_dead_primary_is_replaced_and_comes_back(testnet):
    async with testnet(consensus=QUICK) as net:
        await net.submit(1, [registration()])
        primary = net.node(1).service.status().primary
        index = [c.institution for c in net.layout.configs].index(primary)
        others = [i for i in range(4) if i != index]
        await net.kill(index)
        done = await asyncio.gather(*(net.submit(i, [registration()]) for i in others))
        assert {answer.code for answer in done} == {"ok"}
        assert net.node(others[0]).service.status().view > 0
        await net.start(index)
        await net.wait_height(max(answer.height for answer in done))
        await assert_same_chain(net)


async def test_a_minority_stops_and_a_healed_network_goes_on(testnet):
    async with testnet(consensus=QUICK) as net:
        await net.submit(0, [registration()])
        net.partition([0, 1], [2, 3])
        waiting = [asyncio.create_task(net.submit(i, [registration()])) for i in (0, 2)]
        await net.wait_parted()
        readiness = net.node(0).service.readiness()
        assert set(readiness.missing) == {"east", "west"}
        assert "3 are needed" in readiness.reason
        assert not any(task.done() for task in waiting)
        net.heal()
        answers = await asyncio.wait_for(asyncio.gather(*waiting), 40)
        assert {answer.code for answer in answers} == {"ok"}
        await assert_same_chain(net)


async def test_all_nodes_killed_at_once_go_on_from_where_they_were(testnet):
    async with testnet(consensus=QUICK) as net:
        answers = [await net.submit(i % 4, [registration()]) for i in range(5)]
        before = await executed_ids(net, 0)
        await asyncio.gather(*(net.kill(index) for index in range(4)))
        await asyncio.gather(*(net.start(index) for index in range(4)))
        await net.wait_connected()
        later = await net.submit(2, [registration()])
        assert later.height > answers[-1].height
        await assert_same_chain(net)
        assert await executed_ids(net, 1) == [*before, later.id]


async def test_a_wiped_node_syncs_and_votes_again(testnet):
    async with testnet(consensus=QUICK) as net:
        for _ in range(6):
            await net.submit(0, [registration()])
        await net.kill(3)
        shutil.rmtree(net.layout.configs[3].data_dir)
        await net.start(3)
        await net.wait_height(net.node(0).height)
        await assert_same_chain(net)
        await net.kill(2)  # from now on its vote is needed
        done = await net.submit(0, [registration()])
        await net.wait_height(done.height)
        await assert_same_chain(net)


async def test_an_observer_follows_and_takes_submissions(testnet):
    async with testnet(validators=4, observers=1, consensus=QUICK) as net:
        done = await net.submit(0, [registration()])
        await net.wait_height(done.height, [4])
        through = await net.submit(4, [registration()])
        await net.wait_height(through.height)
        await assert_same_chain(net)
        assert not net.node(4).service.status().is_validator


@pytest.mark.parametrize("validators", [1, 2, 7])
async def test_other_sizes_work_too(testnet, validators):
    async with testnet(validators=validators, consensus=QUICK) as net:
        done = [await net.submit(i % validators, [registration()]) for i in range(3)]
        assert {answer.code for answer in done} == {"ok"}
        await assert_same_chain(net)


async def test_a_transaction_of_another_chain_is_refused_with_its_code(testnet):
    async with testnet(validators=1) as one, testnet(validators=1) as other:
        foreign = other.sign(0, [registration()])
        client = await one.client(0)
        with pytest.raises(Refused) as refused:
            await client.submit(foreign)
        assert refused.value.code == "wrong_chain"


async def test_events_resume_from_any_height(testnet):
    async with testnet(validators=1) as net:
        for _ in range(3):
            await net.submit(0, [registration()])
        client = await net.client(0)
        heights = []
        async for block in client.events(from_height=2):
            heights.append(block.height)
            assert [view.event.name for view in block.events] == ["study_registered"]
            if len(heights) == 2:
                break
        assert heights == [2, 3]
