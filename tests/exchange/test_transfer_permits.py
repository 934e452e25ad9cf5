"""Nothing goes to anybody whom the ledger does not permit, and not a moment longer."""

import asyncio
import ssl
from dataclasses import replace

import pytest
import uvloop

from node.exchange.transfer.client import fetch
from node.exchange.transfer.errors import LedgerUnavailable, NotPermitted, TransferIncomplete
from node.exchange.transfer.ports import Happening
from node.network.tls import TrustedContexts
from tests.exchange.transfer_world import QUICK, World, connect, get, until

SLOW = {"rate_bytes_per_s": 2_000_000, "piece_bytes": 4_096}


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


@pytest.fixture
def large(tmp_path):
    return World(tmp_path, count=4, size=4_000_000)


async def run(world, *holders, who=None, limits=QUICK):
    who = who or world.beta
    return await fetch(
        who.identity, world.wanted, holders, who.chunks, who.transfers, limits=limits
    )


def kinds(hospital):
    told = [event for event in hospital.events if event.kind is not Happening.SENT]
    return [(event.kind, event.institution, event.code) for event in told]


async def test_each_offer_and_each_refusal_is_one_event(world):
    async with world.serving("alpha") as alpha:
        await run(world, alpha.holder)
        assert kinds(alpha) == [(Happening.OFFERED, "beta", "")]
        world.ledger.refusals[world.request_id] = "consent_refused"
        world.beta.chunks.chunks.clear()
        with pytest.raises(NotPermitted) as refused:
            await run(world, alpha.holder, limits=replace(QUICK, parallel=1))
    assert refused.value.code == "consent_refused"
    assert kinds(alpha)[1:] == [(Happening.REFUSED, "beta", "consent_refused")]
    assert alpha.events[-1].request_id == world.request_id


@pytest.mark.parametrize(
    "code",
    ["consent_refused", "request_expired", "request_revoked", "uses_spent", "request_waiting"],
)
async def test_what_the_ledger_refuses_goes_nowhere(world, code):
    world.ledger.refusals[world.request_id] = code
    async with world.serving("alpha") as alpha:
        with pytest.raises(NotPermitted, match=code):
            await run(world, alpha.holder)
        digest = world.study.order[0].digest
        status, _, body = await get(world.beta, alpha, world.chunk_path(digest))
        assert (status, code in body.decode()) == (403, True)
    assert alpha.chunks.sent == []


async def test_the_ledger_is_asked_for_every_request(world):
    async with world.serving("alpha", recheck_ms=60_000) as alpha:
        await run(world, alpha.holder)
    assert world.ledger.asked == 1 + len(world.study.order)


async def test_another_institution_cannot_use_a_request(world):
    async with world.serving("alpha") as alpha:
        with pytest.raises(NotPermitted, match="request_unknown"):
            await run(world, alpha.holder, who=world.gamma)
        digest = world.study.order[0].digest
        status, _, _ = await get(world.gamma, alpha, world.chunk_path(digest))
        assert status == 404
    assert alpha.chunks.sent == []
    assert (Happening.REFUSED, "gamma", "request_unknown") in kinds(alpha)


async def test_a_request_that_nobody_made_is_unknown(world):
    world.ledger.permits.clear()
    async with world.serving("alpha") as alpha:
        with pytest.raises(NotPermitted, match="request_unknown"):
            await run(world, alpha.holder)


@pytest.mark.parametrize(
    ("on_chain", "code"), [(None, "request_not_delivered"), (b"\x01" * 32, "offer_unknown")]
)
async def test_no_key_leaves_without_its_digest_on_the_ledger(world, on_chain, code):
    permit = world.ledger.permits[world.request_id]
    world.ledger.permits[world.request_id] = replace(permit, wrapped_digest=on_chain)
    async with world.serving("alpha") as alpha:
        _, _, body = await get(world.beta, alpha, f"/v1/offer/{world.request_id.hex()}")
    assert code in body.decode()
    assert world.delivery.wrapped not in body


async def test_a_holder_that_is_not_the_custodian_offers_no_key(world):
    async with world.serving("gamma") as gamma:
        with pytest.raises(TransferIncomplete) as incomplete:
            await run(world, gamma.holder)
    assert incomplete.value.reasons == {"gamma": "offer_unknown"}


async def test_a_permit_is_for_one_study_only(world):
    """A chunk that is held, but of another study than the request's."""
    world.alpha.chunks.holds = lambda study_id, digest: study_id != world.study.study_id
    async with world.serving("alpha") as alpha:
        digest = world.study.order[0].digest
        status, _, _ = await get(world.beta, alpha, world.chunk_path(digest))
    assert (status, alpha.chunks.sent) == (404, [])


async def test_while_the_ledger_cannot_be_asked_nothing_goes_out(world):
    world.ledger.failure = LedgerUnavailable()
    async with world.serving("alpha") as alpha:
        path = f"/v1/offer/{world.request_id.hex()}"
        status, headers, body = await get(world.beta, alpha, path)
        assert (status, headers["retry-after"]) == (503, "1")
        assert b"ledger_unavailable" in body
        world.ledger.failure = None
        await run(world, alpha.holder)
    assert world.beta.chunks.chunks == world.study.chunks


async def test_a_withdrawal_stops_a_running_transfer_at_once(large):
    async with large.serving("alpha", recheck_ms=60_000, **SLOW) as alpha:
        task = asyncio.create_task(run(large, alpha.holder))
        running = alpha.server._running
        await until(lambda: len(running.snapshot()) == QUICK.parallel)
        await until(lambda: alpha.server.bytes_sent > 20_000)
        large.ledger.refusals[large.request_id] = "consent_refused"
        alpha.server.revoke(large.request_id, "consent_refused")
        sent = alpha.server.bytes_sent
        with pytest.raises(NotPermitted, match="consent_refused"):
            await task
        assert alpha.server.bytes_sent - sent <= QUICK.parallel * SLOW["piece_bytes"]
    assert large.beta.chunks.puts == []
    assert kinds(alpha).count((Happening.STOPPED, "beta", "consent_refused")) == QUICK.parallel


@pytest.mark.parametrize("failure", [None, LedgerUnavailable()])
async def test_a_withdrawal_that_nobody_tells_of_is_found_within_a_second(large, failure):
    async with large.serving("alpha", **SLOW) as alpha:
        task = asyncio.create_task(run(large, alpha.holder))
        await until(lambda: alpha.server.bytes_sent > 200_000)
        began = asyncio.get_running_loop().time()
        large.ledger.refusals[large.request_id] = "consent_refused"
        large.ledger.failure = failure
        await until(lambda: any(kind == Happening.STOPPED for kind, _, _ in kinds(alpha)))
        took = asyncio.get_running_loop().time() - began
        limits = alpha.server._limits
        task.cancel()
        await asyncio.wait([task])
    assert 2 * limits.recheck_ms <= 1_000  # one wait, and one answer of the ledger
    assert took < 5
    assert large.beta.chunks.puts == []


async def test_a_withdrawal_between_the_permit_and_the_first_byte_counts(world):
    """The ledger says yes, and before its answer is used somebody withdraws."""
    async with world.serving("alpha", recheck_ms=60_000) as alpha:
        permit = world.ledger.permit

        async def slow(request_id):
            answer = await permit(request_id)
            alpha.server.revoke(request_id, "consent_refused")
            return answer

        world.ledger.permit = slow
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError, ssl.SSLError)):
            await get(world.beta, alpha, world.chunk_path(world.study.order[0].digest))
    assert alpha.server.bytes_sent == 0


async def test_an_answer_that_waits_for_its_first_permit_is_not_cut_meanwhile(world):
    """The ledger may take `permit_timeout_ms` for that, many times `recheck_ms`; nothing flows."""
    async with world.serving("alpha", recheck_ms=10) as alpha:
        permit, flush = world.ledger.permit, alpha.server._given.flush
        looks = []

        async def slow(request_id):
            begun = len(looks)
            while len(looks) < begun + 4:  # the watch, meanwhile
                await asyncio.sleep(0.001)
            return await permit(request_id)

        def look(*arguments):
            looks.append(flush(*arguments))

        world.ledger.permit, alpha.server._given.flush = slow, look
        status, _, body = await get(world.beta, alpha, f"/v1/offer/{world.request_id.hex()}")
    assert (status, alpha.server.bytes_sent) == (200, len(body))
    assert Happening.STOPPED not in [kind for kind, _, _ in kinds(alpha)]


async def test_only_the_request_that_is_revoked_stops(large):
    async with large.serving("alpha", **SLOW) as alpha:
        task = asyncio.create_task(run(large, alpha.holder))
        await until(lambda: alpha.server.bytes_sent > 100_000)
        alpha.server.revoke(b"\x01" * 16, "consent_refused")
        sent = alpha.server.bytes_sent
        await until(lambda: alpha.server.bytes_sent > sent + 100_000)
        task.cancel()
        await asyncio.wait([task])
    assert Happening.STOPPED not in [kind for kind, _, _ in kinds(alpha)]


async def test_a_foreign_certificate_gets_no_connection(world):
    async with world.serving("alpha") as alpha:
        with pytest.raises(TransferIncomplete):
            await run(world, alpha.holder, who=world.delta)
        await until(lambda: alpha.server._acceptor.handshakes_failed > 0)
    assert alpha.chunks.sent == []
    assert alpha.events == []  # it never came so far


async def test_without_a_certificate_or_without_tls_nothing_is_said(world):
    anonymous = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    anonymous.check_hostname = False
    anonymous.verify_mode = ssl.CERT_NONE
    async with world.serving("alpha") as alpha:
        path = world.chunk_path(world.study.order[0].digest)
        for context in (anonymous, None):
            with pytest.raises((ConnectionError, asyncio.IncompleteReadError, ssl.SSLError)):
                await get(world.beta, alpha, path, context=context)
    assert alpha.chunks.sent == []


async def test_a_certificate_of_no_institution_is_cut_and_told(world):
    """The handshake still trusts it: the roster changed first."""
    del world.keys[world.beta.person.key]
    async with world.serving("alpha") as alpha:
        with pytest.raises(TransferIncomplete):
            await run(world, alpha.holder)
    assert set(kinds(alpha)) == {(Happening.REFUSED, None, "peer_unknown")}


async def test_a_key_that_is_trusted_no_longer_is_cut_in_the_middle(large):
    async with large.serving("alpha", **SLOW) as alpha:
        task = asyncio.create_task(run(large, alpha.holder))
        await until(lambda: alpha.server.bytes_sent > 100_000)
        key = large.beta.person.key
        del large.keys[key]
        alpha.contexts.distrust(key)
        alpha.server.drop(key)
        with pytest.raises(TransferIncomplete):
            await task
    assert large.beta.chunks.puts == []
    assert (Happening.STOPPED, "beta", "peer_unknown") in kinds(alpha)


async def test_a_suspended_institution_is_found_without_being_told(large):
    async with large.serving("alpha", recheck_ms=50, **SLOW) as alpha:
        task = asyncio.create_task(run(large, alpha.holder))
        await until(lambda: alpha.server.bytes_sent > 100_000)
        del large.keys[large.beta.person.key]
        with pytest.raises(TransferIncomplete):
            await task
    assert (Happening.STOPPED, "beta", "peer_unknown") in kinds(alpha)


async def test_a_certificate_that_is_trusted_later_connects_without_a_restart(world):
    async with world.serving("alpha") as alpha:
        alpha.contexts.distrust(world.beta.person.key)  # both contexts are made anew
        with pytest.raises(TransferIncomplete):
            await run(world, alpha.holder)
        alpha.contexts.trust(world.beta.person.certificate)
        await run(world, alpha.holder)
    assert world.beta.chunks.chunks == world.study.chunks


async def test_older_tls_is_refused(world):
    context = TrustedContexts(
        world.beta.person.private_key, world.beta.person.certificate, world.alpha_certificates
    ).client
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    async with world.serving("alpha") as alpha:
        with pytest.raises((ConnectionError, ssl.SSLError)):
            await get(world.beta, alpha, "/v1/offer/00", context=context)
        assert alpha.server._acceptor.handshakes_failed == 1


@pytest.mark.parametrize("on_uvloop", [False, True])
def test_what_the_kernel_had_taken_is_not_delivered_after_a_withdrawal(tmp_path, on_uvloop):
    """Megabytes wait in the socket of a slow reader; an ordinary close would still send them."""

    async def story():
        world = World(tmp_path, count=1, size=32_000_000)
        async with world.serving("alpha") as alpha:
            reader, writer = await connect(alpha, world.beta.contexts.client)
            writer.transport.pause_reading()
            path = world.chunk_path(world.study.order[0].digest)
            writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            await until(lambda: alpha.server.bytes_sent > 0)
            alpha.server.revoke(world.request_id, "consent_refused")
            await until(lambda: alpha.server._running.snapshot() == ())
            writer.transport.resume_reading()
            with pytest.raises(ConnectionResetError):
                await reader.readexactly(33_000_000)

    (uvloop.run if on_uvloop else asyncio.run)(story())
