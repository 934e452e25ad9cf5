"""Whole nodes: waiting for the seals of a height is answered on every kind of node."""

from tests.testnet.test_testnet import QUICK, registration


async def test_a_client_of_an_observer_hears_that_its_block_is_sealed(testnet):
    async with testnet(validators=4, observers=1, consensus=QUICK) as net:
        done = await net.submit(4, [registration()], wait="sealed")
        assert done.state == "sealed"
        assert net.node(4).service.head().stable_height >= done.height


async def test_after_a_restart_what_was_sealed_before_is_answered_at_once(testnet):
    async with testnet(validators=1, consensus=QUICK) as net:
        transaction = net.sign(0, [registration()])
        first = await (await net.client(0)).submit(transaction, wait="sealed")
        await net.stop(0)
        await net.start(0)
        again = await (await net.client(0)).submit(transaction, wait="sealed")
        assert (again.id, again.height, again.state) == (first.id, first.height, "sealed")
