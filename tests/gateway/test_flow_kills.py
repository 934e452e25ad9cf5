"""Whoever dies, whenever: keys are delivered once, chunks fetched once, uses counted once."""

import asyncio
from contextlib import asynccontextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest

from node.exchange import hpke
from node.exchange.store import pack
from node.exchange.store.index import file_source
from node.exchange.transfer.errors import NotPermitted, TransferIncomplete
from node.exchange.transfer.offer import seal_manifest
from node.exchange.transfer.state import Deliveries
from node.gateway.acting import Acting
from node.gateway.custodian import Outcome
from node.gateway.requester import NotAuthentic
from node.imaging import manifest_codec
from node.imaging.manifest import Manifest
from node.rpc.client import Client
from tests.damage import last_byte_changed
from tests.gateway.flow_world import confirmed, delivered, until, world

SLOW = {"peer_rate_bytes_per_s": 6_000_000, "piece_bytes": 64 * 1024}
LARGE = {"instances": 3, "side": 1_500}  # 13.5 MB in four chunks


class Killed(BaseException):
    """As if the process had ended here."""


def dies_after(monkeypatch, owner, name):
    """Let the next call of a method do its work and then end the process."""
    method = getattr(owner, name)

    def synchronous(*arguments, **options):
        monkeypatch.setattr(owner, name, method)
        method(*arguments, **options)
        raise Killed

    async def asynchronous(*arguments, **options):
        monkeypatch.setattr(owner, name, method)
        await method(*arguments, **options)
        raise Killed

    is_async = asyncio.iscoroutinefunction(method)
    monkeypatch.setattr(owner, name, asynchronous if is_async else synchronous)


def dies_before(monkeypatch, owner, name):
    method = getattr(owner, name)

    async def ended(*arguments, **options):
        monkeypatch.setattr(owner, name, method)
        raise Killed

    monkeypatch.setattr(owner, name, ended)


KILLS = {
    "before anything is kept": lambda m: dies_before(m, Client, "study"),
    "kept, not sent": lambda m: dies_after(m, Deliveries, "put"),
    "signed, not sent": lambda m: dies_before(m, Acting, "submit"),
    "final, and nobody heard": lambda m: dies_after(m, Acting, "submit"),
}


@asynccontextmanager
async def granted(folder, **size):
    """A study that alpha granted to beta, whose key is confirmed, and nobody running."""
    async with world(folder) as all_:
        async with all_.alpha.serving(), all_.beta.serving():
            await confirmed(all_.beta)
        study = await all_.alpha.keep(**size)
        request_id = await all_.beta.ask(study)
        view = await all_.beta.request(request_id)
        await all_.reach(view.decided_height)
        yield all_, study, request_id


@pytest.mark.parametrize("kill", KILLS)
async def test_a_custodian_that_dies_delivers_once(tmp_path, monkeypatch, kill):
    async with granted(tmp_path) as (all_, study, request_id):
        alpha, beta = all_.alpha, all_.beta
        async with alpha.acting() as acting:
            KILLS[kill](monkeypatch)
            with pytest.raises(Killed):
                await alpha.make(acting).custodian.deliver(request_id)
        kept = Deliveries(alpha.folder / "exchange" / "deliveries").get(request_id)
        alpha.open_store()
        async with alpha.serving(), beta.serving() as exchange:
            received = await exchange.requester.fetch(request_id, wait_s=30)
            assert await alpha.exchange.custodian.deliver(request_id) is Outcome.DELIVERED
        assert received.root == study.root
        view = await beta.request(request_id)
        after = Deliveries(alpha.folder / "exchange" / "deliveries").get(request_id)
        assert view.wrapped_digest == hpke.wrapped_digest(after.wrapped)
        assert kept in (None, after)


async def test_a_receiver_that_dies_fetches_only_the_rest(tmp_path):
    async with granted(tmp_path, **LARGE) as (all_, study, request_id):
        alpha, beta = all_.alpha, all_.beta
        async with alpha.serving(server=SLOW):
            await delivered(beta, request_id)
            async with beta.serving() as exchange:
                fetching = asyncio.create_task(exchange.requester.fetch(request_id))
                await until(lambda: fetching.done() or _held(beta, study) >= 1)
                fetching.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await fetching
        held = _held(beta, study)
        assert 1 <= held < 4
        beta.open_store()
        async with alpha.serving() as server, beta.serving() as exchange:
            received = await exchange.requester.fetch(request_id)
            # Perhaps fewer: a thread that was writing a chunk outlives the task that waited.
            assert 0 < received.chunks_fetched <= 4 - held
            assert received.bytes_fetched == server.server.bytes_sent
        assert sorted(beta.bytes_of(study.id)) == sorted(study.files)


async def test_a_custodian_that_dies_in_the_middle_is_gone_on_with(tmp_path):
    async with granted(tmp_path, **LARGE) as (all_, study, request_id):
        alpha, beta = all_.alpha, all_.beta
        async with beta.serving() as exchange:
            async with alpha.serving(server=SLOW):
                await delivered(beta, request_id)
                fetching = asyncio.create_task(exchange.requester.fetch(request_id))
                await until(lambda: fetching.done() or _held(beta, study) >= 1)
            with pytest.raises(TransferIncomplete):
                await fetching
            held = _held(beta, study)
            async with alpha.serving():
                received = await exchange.requester.fetch(request_id)
        assert (received.chunks_fetched, received.root) == (4 - held, study.root)


async def test_another_holder_serves_when_the_custodian_is_gone(tmp_path):
    async with granted(tmp_path, **LARGE) as (all_, study, request_id):
        alpha, beta, gamma = all_.hospitals
        async with gamma.serving() as third:
            async with alpha.serving(), beta.serving():
                await confirmed(gamma)
                own = await gamma.ask(study)
                await third.requester.fetch(own, wait_s=30)
            async with beta.serving() as exchange:
                async with alpha.serving(server=SLOW):
                    await delivered(beta, request_id)
                    fetching = asyncio.create_task(exchange.requester.fetch(request_id))
                    await until(lambda: fetching.done() or third.server.bytes_sent > 0)
                received = await fetching
        assert (received.root, received.chunks_fetched) == (study.root, 4)
        assert sorted(beta.bytes_of(study.id)) == sorted(study.files)


async def test_a_node_that_restarts_is_waited_for_and_no_grant_is_missed(tmp_path):
    async with world(tmp_path) as all_:
        alpha, beta = all_.alpha, all_.beta
        study = await alpha.keep()
        async with alpha.serving() as server, beta.serving() as exchange:
            await confirmed(beta)
            await until(lambda: server.events.height > 0)
            await all_.net.restart(alpha.index)
            await all_.net.wait_connected()
            request_id = await beta.ask(study)
            received = await exchange.requester.fetch(request_id, wait_s=30)
        assert received.root == study.root


@pytest.mark.parametrize("when", ["before it is sent", "when it is final"])
async def test_a_use_counts_once_whenever_its_process_dies(tmp_path, monkeypatch, when):
    async with granted(tmp_path) as (all_, _, request_id):
        alpha, beta = all_.alpha, all_.beta
        async with alpha.serving(), beta.serving() as exchange:
            await exchange.requester.fetch(request_id, wait_s=30)
            await confirmed(alpha)  # from here on nobody else sends anything
            dies = dies_before if when == "before it is sent" else dies_after
            dies(monkeypatch, Client, "submit")
            with pytest.raises(Killed):
                await exchange.requester.use(request_id, b"report")
        async with beta.acting() as acting:
            requester = beta.make(acting).requester
            await requester.use(request_id, b"report")
            assert (await beta.request(request_id)).uses == 1
            await requester.use(request_id, b"another")
            with pytest.raises(NotPermitted, match="uses_spent"):
                await requester.use(request_id, b"a third")


def _held(hospital, study):
    """Return how many chunks of the study a hospital holds, whole and durable."""
    if study.id not in hospital.store.studies():
        return 0
    index = hospital.store.index(study.id)
    return len(index.chunks) - len(hospital.store.missing(study.id))


# What a custodian that lies hands over.


def forged_manifest(manifest: Manifest) -> Manifest:
    """Another salt: the same files, but nothing that is on the ledger."""
    return replace(manifest, salt=bytes(32))


def smaller_manifest(manifest: Manifest) -> Manifest:
    return replace(manifest, instances=manifest.instances[1:])


@pytest.mark.parametrize("forge", [forged_manifest, smaller_manifest])
async def test_a_manifest_that_does_not_lead_to_the_root_is_refused(tmp_path, monkeypatch, forge):
    async with granted(tmp_path) as (all_, _, request_id):
        alpha, beta = all_.alpha, all_.beta

        def sealed(context, study_key, manifest):
            forged = forge(manifest_codec.decode(manifest))
            return seal_manifest(context, study_key, manifest_codec.encode(forged))

        monkeypatch.setattr("node.gateway.custodian.seal_manifest", sealed)
        async with alpha.serving(), beta.serving() as exchange:
            with pytest.raises(NotAuthentic, match="root on the ledger"):
                await exchange.requester.fetch(request_id, wait_s=30)
        assert list(beta.store.studies()) == []
        assert (await beta.request(request_id)).state == "delivered"


async def test_an_index_of_other_files_than_the_registered_ones_is_refused(tmp_path):
    async with granted(tmp_path) as (all_, study, request_id):
        alpha, beta = all_.alpha, all_.beta
        other = await alpha.keep()
        (kept, swapped) = (alpha.store.index(each.id) for each in (study, other))
        facts = [
            replace(new.facts, sop_instance_uid=old.facts.sop_instance_uid)
            for old, new in zip(kept.instances, swapped.instances, strict=True)
        ]
        paths = [other.files[each.facts.sop_instance_uid] for each in swapped.instances]
        alpha.store.abandon(study.id)
        alpha.store.put(study.id, 1, list(map(file_source, facts, paths)))
        async with alpha.serving(), beta.serving() as exchange:
            with pytest.raises(NotAuthentic, match="another file"):
                await exchange.requester.fetch(request_id, wait_s=30)
            assert list(beta.store.studies()) == []


async def test_bytes_that_are_not_what_the_index_says_are_refused(tmp_path, monkeypatch):
    async with granted(tmp_path) as (all_, study, request_id):
        alpha, beta = all_.alpha, all_.beta
        first, *others = alpha.store.index(study.id).instances
        paths = [study.files[each.facts.sop_instance_uid] for each in (first, *others)]
        forged = tmp_path / "forged.dcm"
        forged.write_bytes(last_byte_changed(paths[0].read_bytes()))
        alpha.store.abandon(study.id)
        facts = [each.facts for each in (first, *others)]
        sources = list(map(file_source, facts, [forged, *paths[1:]]))
        with monkeypatch.context() as careless:
            careless.setattr(pack, "hmac", SimpleNamespace(compare_digest=lambda *_: True))
            alpha.store.put(study.id, 1, sources)
        async with alpha.serving(), beta.serving() as exchange:
            with pytest.raises(NotAuthentic, match="instance 1 of 4"):
                await exchange.requester.fetch(request_id, wait_s=30)
            assert list(beta.store.studies()) == []
            assert (await beta.request(request_id)).state == "delivered"
