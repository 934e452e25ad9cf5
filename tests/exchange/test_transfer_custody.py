"""A custodian that lost chunks gets its own ciphertext back, and nobody else does so."""

import asyncio
import hashlib

import pytest

from node.exchange.transfer.client import recover
from node.exchange.transfer.errors import LedgerUnavailable
from node.exchange.transfer.ports import Custody, Happening, Permit
from tests.exchange.transfer_world import QUICK, World, get, until

SLOW = {"rate_bytes_per_s": 2_000_000, "piece_bytes": 4_096}


@pytest.fixture
def world(tmp_path):
    return custody(World(tmp_path))


@pytest.fixture
def large(tmp_path):
    return custody(World(tmp_path, count=4, size=4_000_000))


def custody(world):
    """Let beta be the custodian of a study that alpha and gamma hold, by no request."""
    world.ledger.permits.clear()
    world.ground = Custody(world.study.study_id)
    hold(world, "beta")
    return world


def hold(world, name):
    permit = Permit(None, world.study.study_id, name, None)
    world.ledger.permits[world.ground] = permit


async def run(world, *hospitals, liars=()):
    study = world.study
    holders = [each.holder for each in hospitals]
    beta, order = world.beta, study.order
    chunks = [each for each in order if each.digest not in beta.chunks.chunks]
    place = beta.identity, study.study_id, chunks, holders, beta.chunks
    return await recover(*place, limits=QUICK, liars=liars)


def path_of(world, query, number=0):
    return f"/v1/chunk/{world.study.order[number].digest.hex()}?{query}"


def by_study(world):
    return f"study={world.study.study_id.hex()}"


async def test_lost_chunks_come_back_and_the_record_says_on_what_ground(world):
    async with world.serving("alpha", "gamma") as (alpha, gamma):
        found = await run(world, alpha, gamma)
        assert (found.chunks, found.missing, found.liars, found.left) == (6, 0, (), {})
        assert world.beta.chunks.chunks == world.study.chunks
        admitted = alpha.admitted + gamma.admitted
    stated = {(each.kind, each.institution, each.request_id, each.custody) for each in admitted}
    assert stated == {(Happening.SENDING, "beta", None, world.ground)}
    sums = [each for each in alpha.events + gamma.events if each.kind is Happening.SENT]
    assert sum(each.chunks for each in sums) == 6
    assert {each.custody for each in sums} == {world.ground}


async def test_custody_opens_chunks_only_of_that_study_and_never_a_key(world):
    world.study.study_id, other = bytes(16), world.study.study_id
    async with world.serving("alpha") as alpha:
        status, _, body = await get(world.beta, alpha, path_of(world, f"study={other.hex()}"))
        assert (status, b"not_held" in body) == (404, True)
        for ground in (other.hex(), world.request_id.hex()):
            path = f"/v1/offer/{ground}?study={other.hex()}"
            status, _, body = await get(world.beta, alpha, path)
            assert (status, b"request_unknown" in body) == (404, True)
    assert alpha.admitted == []


@pytest.mark.parametrize("query", ["study=", "study=ab", "study={0}&request={0}", "study={0}0"])
async def test_a_ground_that_is_none_is_refused(world, query):
    async with world.serving("alpha") as alpha:
        query = query.format(world.study.study_id.hex())
        status, _, body = await get(world.beta, alpha, path_of(world, query))
        assert (status, b"request_invalid" in body) == (400, True)


async def test_another_than_the_custodian_gets_nothing(world):
    async with world.serving("alpha") as alpha:
        status, _, body = await get(world.gamma, alpha, path_of(world, by_study(world)))
        assert (status, b"not_custodian" in body) == (403, True)
        # A request whose id is that of the study is another ground.
        query = f"request={world.study.study_id.hex()}"
        status, _, _ = await get(world.beta, alpha, path_of(world, query))
        assert status == 404
        assert alpha.chunks.sent == []


async def test_without_the_ledger_or_a_record_nothing_goes(world):
    async with world.serving("alpha") as alpha:
        alpha.is_admitting = False
        status, _, body = await get(world.beta, alpha, path_of(world, by_study(world)))
        assert (status, b"not_recorded" in body) == (503, True)
        alpha.is_admitting, world.ledger.failure = True, LedgerUnavailable("away")
        status, _, body = await get(world.beta, alpha, path_of(world, by_study(world)))
        assert (status, b"ledger_unavailable" in body) == (503, True)
        assert alpha.server.bytes_sent == 0


async def test_custody_that_goes_over_cuts_what_flows(large):
    async with large.serving("alpha", recheck_ms=20, **SLOW) as alpha:
        running = asyncio.create_task(run(large, alpha))
        await until(lambda: alpha.server.bytes_sent > 100_000)
        hold(large, "gamma")
        found = await running
        assert (found.chunks, found.missing) == (0, 4)
        assert found.left == {"alpha": "not_custodian"}
        stopped = [each for each in alpha.events if each.kind is Happening.STOPPED]
        assert {(each.code, each.custody) for each in stopped} == {("not_custodian", large.ground)}


async def test_an_answer_is_cut_at_once_when_the_study_is_erased(large):
    async with large.serving("alpha", recheck_ms=60_000, **SLOW) as alpha:
        running = asyncio.create_task(run(large, alpha))
        await until(lambda: alpha.server.bytes_sent > 100_000)
        large.ledger.refusals[large.ground] = "study_erased"
        alpha.server.revoke(large.ground, "study_erased")
        found = await running
        assert (found.chunks, found.left) == (0, {"alpha": "study_erased"})


async def test_a_liar_is_named_and_those_who_were_are_not_asked(world):
    wrong = bytes(world.study.order[0].size)
    async with world.serving("alpha", "gamma") as (alpha, gamma):
        alpha.chunks.chunks = dict.fromkeys(world.study.chunks, wrong)
        found = await run(world, alpha, gamma)
        assert (found.missing, found.liars) == (0, ("alpha",))
        assert all(hashlib.sha256(d).digest() == k for k, d in world.beta.chunks.chunks.items())
        world.beta.chunks.chunks.clear()
        alpha.chunks.sent.clear()
        assert (await run(world, alpha, gamma, liars=("alpha",))).missing == 0
        assert alpha.chunks.sent == []
