"""What is left here of a grant that has ended, of an erased study, of a custodian that lies."""

import hashlib
import os
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from node.exchange.store.errors import QuotaExceeded, StoreError, StudyErased, StudyUnknown
from node.exchange.store.index import encode_index
from node.exchange.store.sealing import seal_index
from node.exchange.transfer.errors import NotPermitted, TransferIncomplete
from node.exchange.transfer.ports import Chunk, Happening, SealedStudy
from node.gateway.requester import NotAuthentic
from tests.gateway.flow_world import confirmed, delivered, until, until_async, world


@asynccontextmanager
async def granted(folder):
    """Alpha's study, granted to beta and its key delivered; both exchanges run."""
    async with (
        world(folder) as all_,
        all_.alpha.serving(),
        all_.beta.serving(),
        all_.gamma.serving(),
    ):
        await confirmed(all_.beta)
        study = await all_.alpha.keep()
        request_id = await all_.beta.ask(study)
        await delivered(all_.beta, request_id)
        yield all_, study, request_id


def nothing_is_left(hospital, study):
    with pytest.raises((StudyUnknown, StudyErased)):
        hospital.store.key(study.id)
    return hospital.store.versions(study.id) == [] and not transfers(hospital)


def transfers(hospital):
    return list((hospital.folder / "exchange" / "transfers").iterdir())


def give_nothing(hospital, monkeypatch):
    def gone(digest):
        raise LookupError

    monkeypatch.setattr(hospital.exchange.server._source, "ciphertext", gone)


async def begin(all_, request_id, monkeypatch):
    """Begin a fetch that gets offer and key, and no chunk."""
    with monkeypatch.context() as meanwhile:
        give_nothing(all_.alpha, meanwhile)
        with pytest.raises(TransferIncomplete):
            await all_.beta.exchange.requester.fetch(request_id)
    assert transfers(all_.beta)


async def test_a_grant_that_ends_between_two_tries_leaves_nothing(tmp_path, monkeypatch):
    async with granted(tmp_path) as (all_, study, request_id):
        await begin(all_, request_id, monkeypatch)
        assert all_.beta.store.key(study.id)
        await all_.alpha.submit("access.revoke", request_id, "misuse")
        with pytest.raises(NotPermitted, match="request_revoked"):
            await all_.beta.exchange.requester.fetch(request_id)
        assert nothing_is_left(all_.beta, study)


async def test_a_grant_that_ends_while_nobody_runs_leaves_nothing(tmp_path, monkeypatch):
    async with world(tmp_path) as all_, all_.alpha.serving():
        alpha, beta = all_.alpha, all_.beta
        async with beta.serving():
            await confirmed(beta)
            study = await alpha.keep()
            request_id = await beta.ask(study)
            await delivered(beta, request_id)
            await begin(all_, request_id, monkeypatch)
        await alpha.submit("access.revoke", request_id, "misuse")
        async with beta.serving():
            await until(lambda: not transfers(beta))
        assert nothing_is_left(beta, study)


async def test_the_end_of_one_grant_leaves_what_came_under_another(tmp_path, monkeypatch):
    async with granted(tmp_path) as (all_, study, first):
        alpha, beta = all_.alpha, all_.beta
        requester = beta.exchange.requester
        await requester.fetch(first)
        second = await beta.ask(study)
        await delivered(beta, second)
        acknowledge = requester._acknowledge

        async def late(request, delivery):
            await alpha.submit("access.revoke", second, "misuse")
            await acknowledge(request, delivery)

        monkeypatch.setattr(requester, "_acknowledge", late)
        with pytest.raises(NotPermitted, match="request_revoked"):
            await requester.fetch(second)
        assert transfers(beta) == []
        assert requester.manifest(second) is None
        sent = {uid: path.read_bytes() for uid, path in study.files.items()}
        assert beta.bytes_of(study.id) == sent
        assert (await beta.request(first)).permitted


async def test_a_key_without_a_study_is_destroyed_with_it(tmp_path, monkeypatch):
    """There was no room for the study, and then it is erased."""
    async with granted(tmp_path) as (all_, study, request_id):
        alpha, beta = all_.alpha, all_.beta
        monkeypatch.setattr(beta.store, "_quota_bytes", 1)
        with pytest.raises(QuotaExceeded):
            await beta.exchange.requester.fetch(request_id)
        assert beta.store.key(study.id) == alpha.store.key(study.id)
        await alpha.submit("study.erase", study.id, "subject_request")
        await until(lambda: not beta.store.has_key(study.id) and not transfers(beta))
        assert nothing_is_left(beta, study)


async def test_a_key_without_a_study_is_destroyed_also_after_a_restart(tmp_path, monkeypatch):
    async with world(tmp_path) as all_, all_.alpha.serving():
        alpha, beta = all_.alpha, all_.beta
        async with beta.serving() as exchange:
            await confirmed(beta)
            study = await alpha.keep()
            request_id = await beta.ask(study)
            await delivered(beta, request_id)
            monkeypatch.setattr(beta.store, "_quota_bytes", 1)
            with pytest.raises(QuotaExceeded):
                await exchange.requester.fetch(request_id)
            exchange.requester.transfers.forget(request_id)  # as by a crash after that
        await alpha.submit("study.erase", study.id, "subject_request")
        assert list(beta.store.claimed()) == [study.id]
        async with beta.serving():
            await until(lambda: not beta.store.has_key(study.id))


async def test_an_erasure_that_cannot_be_finished_is_gone_on_with(tmp_path, monkeypatch):
    async with granted(tmp_path) as (all_, study, request_id):
        alpha, beta = all_.alpha, all_.beta
        await beta.exchange.requester.fetch(request_id)
        catalog, tried = beta.store._catalog, []
        compact = catalog.compact

        def full_at_first():
            monkeypatch.setattr(catalog, "compact", compact)
            tried.append(beta.store.has_key(study.id))
            raise StoreError("the key file cannot be used: database or disk is full")

        monkeypatch.setattr(catalog, "compact", full_at_first)
        await alpha.submit("study.erase", study.id, "subject_request")
        await until(lambda: beta.store.erasure(study.id) is not None)
        await until_async(lambda: attested(all_, beta, study))
        assert tried == [False]  # the key had gone first


async def attested(all_, hospital, study):
    client = await all_.net.client(hospital.index)
    return "study_erasure_attested" in str(await client.audit_trail(study.id))


async def test_a_chunk_that_opens_under_no_key_is_not_kept_nor_asked_for_again(
    tmp_path, monkeypatch
):
    async with granted(tmp_path) as (all_, study, _):
        alpha, beta = all_.alpha, all_.beta
        source = alpha.exchange.server._source
        index = alpha.store.index(study.id)
        junk = os.urandom(index.chunks[0].stored_bytes)
        digest = hashlib.sha256(junk).digest()
        forged = replace(index, chunks=(replace(index.chunks[0], digest=digest), *index.chunks[1:]))
        sealed = seal_index(alpha.store.key(study.id), study.id, 1, encode_index(forged))
        chunks = tuple(Chunk(each.digest, each.stored_bytes) for each in forged.chunks)
        holds, ciphertext = source.holds, source.ciphertext
        monkeypatch.setattr(source, "sealed_study", lambda *_: SealedStudy(1, sealed, chunks))
        monkeypatch.setattr(source, "holds", lambda id_, x: x == digest or holds(id_, x))
        monkeypatch.setattr(source, "ciphertext", lambda x: junk if x == digest else ciphertext(x))
        request_id = await beta.ask(study)
        await delivered(beta, request_id)
        assert await beta.exchange._fetch(request_id)  # done with: it is not tried again
        (told,) = [each for each in beta.happened if each.kind is Happening.NOT_TAKEN]
        assert (told.request_id, told.code) == (request_id, "not_authentic")
        assert nothing_is_left(beta, study)


async def test_an_offer_of_other_chunks_than_the_index_makes_nobody_a_liar(tmp_path, monkeypatch):
    async with granted(tmp_path) as (all_, study, request_id):
        source = all_.alpha.exchange.server._source
        true = source.sealed_study

        def lying(study_id, version):
            told = true(study_id, version)
            shorter = tuple(Chunk(each.digest, each.size - 1) for each in told.chunks)
            return replace(told, chunks=shorter)

        monkeypatch.setattr(source, "sealed_study", lying)
        with pytest.raises(NotAuthentic, match="other chunks than the index"):
            await all_.beta.exchange.requester.fetch(request_id)
        assert nothing_is_left(all_.beta, study)


async def test_a_catalogue_that_is_full_ends_nothing(tmp_path):
    async with granted(tmp_path) as (all_, study, _):
        alpha = all_.alpha
        finding = alpha.exchange.finding
        await until(lambda: len(finding.backlog) == 0)
        finding._catalogue._connection.execute("PRAGMA query_only = 1")
        finding._catalogue._kept.clear()  # as if it were new
        finding.add(study.id)
        await until(lambda: len(finding.backlog) == 0)
        await alpha.submit("study.erase", study.id, "subject_request")
        await until(lambda: alpha.store.erasure(study.id) is not None)
        await alpha.exchange.requester.granted()  # the exchange runs
