"""From a grant on the ledger to images in another hospital's store, over real nodes and TLS."""

import asyncio
import secrets

import pytest

from node.exchange.transfer.errors import NotPermitted
from node.exchange.transfer.ports import Happening
from node.gateway.custodian import Outcome
from node.gateway.requester import NotReady
from tests.gateway.flow_world import confirmed, delivered, until, until_async, world

# Slow enough that a test can act in the middle of a transfer of a few megabytes.
SLOW = {"peer_rate_bytes_per_s": 1_500_000, "piece_bytes": 64 * 1024}
LARGE = {"instances": 3, "side": 1_500}  # 13.5 MB in four chunks


async def test_a_granted_study_arrives_whole_and_the_ledger_tells_the_story(tmp_path):
    async with world(tmp_path) as all_, all_.alpha.serving(), all_.beta.serving() as exchange:
        alpha, beta = all_.alpha, all_.beta
        study = await alpha.keep(instances=5, side=64)
        request_id = await beta.ask(study)
        received = await exchange.requester.fetch(request_id, wait_s=30)
        sent = {uid: path.read_bytes() for uid, path in study.files.items()}
        assert beta.bytes_of(study.id) == sent
        assert (received.root, received.instances, received.absent) == (study.root, 5, 0)
        view = await beta.request(request_id)
        assert (view.state, view.uses) == ("received", 0)
        assert view.delivered_height < view.received_height
        # Again: nothing moves, and nothing is refused.
        again = await exchange.requester.fetch(request_id)
        assert (again.chunks_fetched, again.root) == (0, study.root)
        assert exchange.requester.manifest(request_id).root == study.root
        # One use counts once, whatever becomes of the process between.
        await exchange.requester.use(request_id, b"view 1")
        await beta.make(exchange.custodian._acting).requester.use(request_id, b"view 1")
        assert (await beta.request(request_id)).uses == 1
        await exchange.requester.use(request_id, b"view 2")
        with pytest.raises(NotPermitted, match="uses_spent"):
            await exchange.requester.use(request_id, b"view 3")
        assert (await beta.request(request_id)).uses == 2


async def test_a_custodian_whose_node_is_a_height_behind_is_asked_again(tmp_path, monkeypatch):
    async with (
        world(tmp_path) as all_,
        all_.alpha.serving() as giving,
        all_.beta.serving(fetch_at_once=True),
    ):
        asked, permit = [], giving._permits.permit

        async def behind(request_id):
            asked.append(request_id)
            if len(asked) < 3:
                raise NotPermitted(["request_unknown", "request_not_delivered"][len(asked) - 1])
            return await permit(request_id)

        monkeypatch.setattr(giving._permits, "permit", behind)
        study = await all_.alpha.keep()
        await all_.beta.ask(study)
        await until(lambda: all_.beta.received)
        assert len(asked) >= 3


async def test_what_is_delivered_comes_by_itself_also_what_was_while_nobody_ran(tmp_path):
    async with world(tmp_path) as all_, all_.alpha.serving():
        alpha, beta = all_.alpha, all_.beta
        first, second = await alpha.keep(), await alpha.keep()
        async with beta.serving():
            await confirmed(beta)
            before = await beta.ask(first)
            await delivered(beta, before)
        async with beta.serving(fetch_at_once=True):
            after = await beta.ask(second)
            await until(lambda: len(beta.received) == 2)
        assert {each.request_id for each in beta.received} == {before, after}
        assert set(beta.store.studies()) == {first.id, second.id}


async def end_by_revocation(all_, request_id, study):
    await all_.alpha.submit("access.revoke", request_id, "misuse")
    return "request_revoked"


async def end_by_restriction(all_, request_id, study):
    rule = (secrets.token_bytes(16), study.subject_id, study.id, None, (), None, bytes(range(32)))
    await all_.alpha.submit("consent.restrict", *rule)
    return "consent_refused"


async def end_by_opt_out(all_, request_id, study):
    await all_.alpha.submit("consent.opt_out", study.subject_id, bytes(range(32)))
    return "consent_refused"


async def end_by_expiry(all_, request_id, study):
    view = await all_.alpha.request(request_id)
    while all_.net.node(0).height < view.expires_height:
        await all_.gamma.submit("registry.key_publish", secrets.token_bytes(16), "x25519", KEY)
    return "request_expired"


KEY = bytes([9] + 31 * [0])
# Where the ledger says so, the event alone must do: the server would not ask again for an hour. A
# term ends by height, without an event; then the server's own question must find it.
BY_EVENT = SLOW | {"recheck_ms": 3_600_000}
ENDINGS = [
    (end_by_revocation, 10_000, BY_EVENT),
    (end_by_restriction, 10_000, BY_EVENT),
    (end_by_opt_out, 10_000, BY_EVENT),
    (end_by_expiry, 12, SLOW),
]


@pytest.mark.parametrize(("ending", "heights", "limits"), ENDINGS)
async def test_what_ends_a_grant_stops_its_running_transfer(tmp_path, ending, heights, limits):
    async with (
        world(tmp_path) as all_,
        all_.alpha.serving(server=limits) as server,
        all_.beta.serving() as exchange,
    ):
        alpha, beta = all_.alpha, all_.beta
        study = await alpha.keep(**LARGE)
        await confirmed(beta)
        request_id = await beta.ask(study, heights=heights)
        await delivered(beta, request_id)
        fetching = asyncio.create_task(exchange.requester.fetch(request_id))
        await until(lambda: server.server.bytes_sent > 200_000 or fetching.done())
        assert not fetching.done()
        code = await ending(all_, request_id, study)
        with pytest.raises(NotPermitted) as refused:
            await fetching
        assert refused.value.code == code
        given = (Happening.OFFERED, Happening.SENT)
        stopped = [each for each in alpha.happened if each.kind not in given]
        assert {(each.request_id, each.code) for each in stopped} == {(request_id, code)}
        assert Happening.STOPPED in {each.kind for each in stopped}
        assert server.server.bytes_sent < 13_500_000
        # What had come is of no use to anybody, and goes.
        assert list(beta.store.studies()) == []
        assert beta.store.usage().stored_bytes == 0


async def test_no_key_leaves_before_the_receivers_key_is_proved(tmp_path):
    async with world(tmp_path) as all_:
        alpha, beta = all_.alpha, all_.beta
        study = await alpha.keep()
        async with beta.acting() as acting:
            lonely = beta.make(acting)  # nobody runs yet who would challenge
            await lonely.keys.open()
            key_id = await lonely.keys.publish()
        request_id = await beta.ask(study, key_id=key_id)
        async with alpha.acting() as acting:
            custodian = alpha.make(acting).custodian
            assert await custodian.deliver(request_id) is Outcome.WAITS
        assert (await beta.request(request_id)).state == "granted"
        async with alpha.serving(), beta.serving() as exchange:  # challenged, answered, delivered
            await exchange.requester.fetch(request_id, wait_s=30)
        assert (await beta.request(request_id)).state == "received"


async def test_the_original_never_goes_out_for_a_deidentified_copy(tmp_path):
    async with world(tmp_path) as all_, all_.beta.serving(), all_.alpha.serving() as exchange:
        alpha, beta = all_.alpha, all_.beta
        study = await alpha.keep()
        await confirmed(beta)
        request_id = await beta.ask(study, deidentified=True)
        assert await exchange.custodian.deliver(request_id) is Outcome.BY_HAND
        assert (await beta.request(request_id)).wrapped_digest is None
        assert await beta.exchange.custodian.deliver(request_id) is Outcome.FOREIGN
        with pytest.raises(NotReady, match="granted"):
            await beta.exchange.requester.fetch(request_id)


async def test_a_request_that_is_not_ours_or_not_there_is_unknown(tmp_path):
    async with world(tmp_path) as all_, all_.gamma.serving() as exchange:
        study = await all_.alpha.keep()
        request_id = await all_.beta.ask(study)
        await until_async(lambda: _is_known(all_.gamma, request_id))
        for unknown in (request_id, secrets.token_bytes(16)):
            with pytest.raises(NotPermitted, match="request_unknown"):
                await exchange.requester.fetch(unknown)


async def _is_known(hospital, request_id):
    return await hospital.request(request_id) is not None


async def test_a_study_is_shown_as_long_as_its_grant_lasts(tmp_path):
    async with world(tmp_path) as all_, all_.alpha.serving() as owner, all_.beta.serving() as other:
        alpha, beta = all_.alpha, all_.beta
        study = await alpha.keep()
        request_id = await beta.ask(study)
        assert not other.shown.may_show(study.id)
        await other.requester.fetch(request_id, wait_s=30)
        await until(lambda: other.shown.may_show(study.id) and owner.shown.may_show(study.id))
        # The request stays "received": what permits it is the patient's consent, asked anew.
        form = bytes(range(32))
        await alpha.submit("consent.opt_out", study.subject_id, form)
        await until(lambda: not other.shown.may_show(study.id))
        await alpha.submit("consent.opt_in", study.subject_id, form)
        await until(lambda: other.shown.may_show(study.id))
        await alpha.submit("access.revoke", request_id, "misuse")
        await until(lambda: not other.shown.may_show(study.id))
        assert owner.shown.may_show(study.id)
        assert list(beta.store.studies()) == [study.id]


async def test_the_copy_of_an_erased_study_is_destroyed_and_that_is_attested(tmp_path):
    async with world(tmp_path) as all_, all_.alpha.serving(), all_.beta.serving() as exchange:
        alpha, beta = all_.alpha, all_.beta
        study = await alpha.keep()
        request_id = await beta.ask(study)
        await exchange.requester.fetch(request_id, wait_s=30)
        alpha.store.erase(study.id)
        await alpha.submit("study.erase", study.id, "subject_request")
        await until_async(lambda: is_attested(all_, beta, study))
        assert beta.store.erasure(study.id).is_complete
        assert exchange.requester.manifest(request_id) is None
        notes = beta.folder / "exchange" / "erasures"
        await until(lambda: not list(notes.iterdir()))


async def test_an_attestation_that_a_crash_cut_off_follows(tmp_path, monkeypatch):
    async with world(tmp_path) as all_, all_.alpha.serving():
        alpha, beta = all_.alpha, all_.beta
        study = await alpha.keep()
        async with beta.serving() as exchange:
            request_id = await beta.ask(study)
            await exchange.requester.fetch(request_id, wait_s=30)
        await alpha.submit("study.erase", study.id, "subject_request")
        await all_.reach(all_.net.node(alpha.index).height)
        async with beta.acting() as acting:
            assert beta.make(acting).erasures._destroy(study.id)  # and then it dies
        beta.open_store()
        assert not await is_attested(all_, beta, study)
        async with beta.serving():
            await until_async(lambda: is_attested(all_, beta, study))


async def is_attested(all_, hospital, study):
    client = await all_.net.client(hospital.index)
    trail = await client.audit_trail(study.id)
    return "study_erasure_attested" in str(trail)
