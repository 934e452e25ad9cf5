"""What the store has lost comes back from hospitals that hold the same ciphertext, and only so."""

import asyncio
import secrets
from contextlib import asynccontextmanager

from node.exchange.transfer.client import recover
from node.exchange.transfer.ports import Chunk, Custody, Happening
from node.gateway.chunks import StoreChunks
from tests.gateway.flow_world import CLIENT, until, until_async, world

LARGE = {"instances": 2, "side": 1_500}  # 9 MB in three chunks


def damage(hospital, study):
    """Flip a byte of one chunk's file and delete another's."""
    rotten, gone, *_ = [row.digest.hex() for row in hospital.store._catalog.chunks(study.id)]
    path = hospital.folder / "blobs" / "chunks" / rotten[:2] / rotten
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.chmod(0o600)
    path.write_bytes(data)
    (hospital.folder / "blobs" / "chunks" / gone[:2] / gone).unlink()


def spoil(hospital, study):
    """Damage two chunks, and let a scrub find both."""
    damage(hospital, study)
    found = [finding.kind.value for finding in hospital.store.scrub()]
    assert sorted(found) == ["lost", "rotten"]


def sent(study):
    return {uid: path.read_bytes() for uid, path in study.files.items()}


def whole(hospital, study):
    return hospital.store.is_complete(study.id)


def events(hospital, kind):
    return [each for each in hospital.happened if each.kind is kind]


@asynccontextmanager
async def shared(tmp_path, *receivers, **keep):
    """Alpha's study is with the receivers, whose exchanges run as alpha's does."""
    async with (
        world(tmp_path) as all_,
        all_.alpha.serving(),
        all_.beta.serving(),
        all_.gamma.serving(),
    ):
        study = await all_.alpha.keep(**(keep or LARGE))
        requests = {}
        for name in receivers:
            hospital = getattr(all_, name)
            requests[name] = await hospital.ask(study)
            await hospital.exchange.requester.fetch(requests[name], wait_s=30)
            await all_.reach(all_.net.node(hospital.index).height)  # all know that it was received
        yield all_, study, requests


async def test_an_own_study_is_mended_by_who_received_it(tmp_path):
    async with shared(tmp_path, "beta") as (all_, study, requests):
        alpha, beta = all_.alpha, all_.beta
        before = await alpha.request(requests["beta"])
        await asyncio.to_thread(spoil, alpha, study)
        await alpha.exchange.mending.look()
        await until(lambda: whole(alpha, study))
        assert await asyncio.to_thread(alpha.bytes_of, study.id) == sent(study)
        assert list(alpha.store.scrub()) == []
        await until(lambda: alpha.mended)
        (mended,) = alpha.mended
        assert (mended.study_id, mended.request_id, mended.chunks) == (study.id, None, 2)
        (begun,) = [each for each in beta.admitted if each.custody is not None]
        place = begun.kind, begun.institution, begun.custody, begun.request_id
        assert place == (Happening.SENDING, alpha.name, Custody(study.id), None)
        after = await alpha.request(requests["beta"])
        assert (after.uses, after.received_height) == (before.uses, before.received_height)


async def test_a_received_study_is_mended_and_counts_nothing_twice(tmp_path):
    async with shared(tmp_path, "beta") as (all_, study, requests):
        beta = all_.beta
        await beta.exchange.requester.use(requests["beta"], b"view")
        before = await beta.request(requests["beta"])
        await asyncio.to_thread(spoil, beta, study)
        height = all_.net.node(1).height
        await beta.exchange.mending.look()
        await until(lambda: beta.mended)
        assert await asyncio.to_thread(beta.bytes_of, study.id) == sent(study)
        assert (beta.mended[0].request_id, beta.mended[0].chunks) == (requests["beta"], 2)
        after = await beta.request(requests["beta"])
        assert (after.uses, after.received_height) == (1, before.received_height)
        assert all_.net.node(1).height == height  # nothing was put on the ledger
        assert beta.received == []  # nor is it taken for a study that came


async def test_a_received_study_needs_no_custodian_to_be_mended(tmp_path):
    async with shared(tmp_path, "beta", "gamma") as (all_, study, _):
        await all_.alpha.exchange.server.close()
        del all_.beta.exchange.directory._places[all_.alpha.name]  # as if it had left
        await asyncio.to_thread(spoil, all_.beta, study)
        await all_.beta.exchange.mending.look()
        await until(lambda: all_.beta.mended)
        assert await asyncio.to_thread(all_.beta.bytes_of, study.id) == sent(study)


async def test_under_a_grant_that_is_over_nothing_is_mended(tmp_path):
    async with shared(tmp_path, "beta") as (all_, study, requests):
        beta = all_.beta
        await all_.alpha.submit("access.revoke", requests["beta"], "misuse")
        await asyncio.to_thread(spoil, beta, study)
        assert await beta.exchange.mending.mend(study.id) is False
        assert not whole(beta, study)
        assert beta.store.versions(study.id)  # nor is it thrown away
        assert events(beta, Happening.NOT_TAKEN) == []  # nobody was asked


async def test_a_holder_that_lies_is_refused_named_and_not_asked_again(tmp_path, monkeypatch):
    async with shared(tmp_path, "beta", "gamma") as (all_, study, _):
        alpha, beta, gamma = all_.alpha, all_.beta, all_.gamma
        true, asked = StoreChunks.ciphertext, []

        def ciphertext(self, digest):
            data = true(self, digest)
            if self._store is beta.store:
                asked.append(digest)
                return bytes(len(data))
            return data

        monkeypatch.setattr(StoreChunks, "ciphertext", ciphertext)
        gone = gamma.store._catalog
        for row in list(gone.chunks(study.id)):
            gone.mark(row.digest, present=False)  # at first only the liar has any
        await asyncio.to_thread(spoil, alpha, study)
        assert await alpha.exchange.mending.mend(study.id) is False
        assert asked
        assert not whole(alpha, study)
        (told,) = events(alpha, Happening.NOT_TAKEN)
        stated = told.institution, told.code, told.custody
        assert stated == (beta.name, "wrong_digest", Custody(study.id))
        asked.clear()
        for row in list(gone.chunks(study.id)):
            gone.mark(row.digest, present=True)
        assert await alpha.exchange.mending.mend(study.id) is True
        assert await asyncio.to_thread(alpha.bytes_of, study.id) == sent(study)
        assert asked == []


def chunks_of(hospital, study):
    return [Chunk(row.digest, row.stored_bytes) for row in hospital.store._catalog.chunks(study.id)]


async def left_of(who, study_id, chunks, *holders):
    """Return what holders say to one who asks as the study's custodian, and gets nothing."""
    found = await recover(
        who.identity,
        study_id,
        chunks,
        [who.exchange.directory.holder(each.name) for each in holders],
        StoreChunks(who.store),
        limits=CLIENT,
    )
    assert found.chunks == 0
    return found.left


def given_by(hospital):
    return [each for each in hospital.admitted if each.custody is not None]


SMALL = {"instances": 1, "side": 16}


async def test_who_is_not_the_custodian_gets_nothing_by_the_study(tmp_path):
    async with shared(tmp_path, "beta", **SMALL) as (all_, study, _):
        alpha, beta, gamma = all_.alpha, all_.beta, all_.gamma
        chunks = chunks_of(alpha, study)
        # One that was granted the study, and one that was not, at the custodian's and elsewhere.
        found = await left_of(beta, study.id, chunks, alpha)
        assert found == {alpha.name: "not_custodian"}
        found = await left_of(gamma, study.id, chunks, alpha, beta)
        assert found == {alpha.name: "not_custodian", beta.name: "not_custodian"}
        found = await left_of(gamma, secrets.token_bytes(16), chunks, beta)
        assert found == {beta.name: "study_unknown"}
        # Nor does custody of one study open another: gamma is custodian of its own.
        own = await gamma.keep(**SMALL)
        await until_async(lambda: known(beta, own))
        found = await left_of(gamma, own.id, chunks, beta)
        assert found == {beta.name: "it lacks chunks"}
        assert given_by(alpha) == given_by(beta) == []
        codes = [each.code for each in events(beta, Happening.REFUSED) if each.custody is not None]
        assert set(codes) == {"not_custodian", "study_unknown", "not_held"}


async def test_an_erased_study_gives_nothing_to_who_was_its_custodian(tmp_path):
    async with shared(tmp_path, "beta", **SMALL) as (all_, study, _):
        alpha, beta = all_.alpha, all_.beta
        chunks = chunks_of(beta, study)
        await alpha.submit("study.erase", study.id, "subject_request")
        assert await left_of(alpha, study.id, chunks, beta) == {beta.name: "study_erased"}
        assert given_by(beta) == []


async def test_custody_that_went_over_goes_with_the_right_to_be_mended(tmp_path):
    async with shared(tmp_path, "beta", "gamma") as (all_, study, _):
        alpha, beta, gamma = all_.alpha, all_.beta, all_.gamma
        await alpha.submit("study.offer", study.id, gamma.name)
        await gamma.submit("study.accept", study.id, secrets.token_bytes(16))
        found = await left_of(alpha, study.id, chunks_of(beta, study), beta)
        assert found == {beta.name: "not_custodian"}
        await asyncio.to_thread(spoil, gamma, study)
        await alpha.exchange.server.close()
        assert await gamma.exchange.mending.mend(study.id) is True
        assert await asyncio.to_thread(gamma.bytes_of, study.id) == sent(study)
        assert gamma.mended[0].request_id is None


async def known(hospital, study):
    return await (await hospital.net.client(hospital.index)).study(study.id) is not None
