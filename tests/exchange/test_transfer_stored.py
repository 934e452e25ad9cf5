"""The whole way between two real stores: wrapped, offered, fetched, adopted, read; and kill -9."""

import asyncio
import hashlib
import multiprocessing
import os
import signal
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node.exchange import encryption_keys, hpke
from node.exchange.hpke import WrapContext
from node.exchange.store.errors import InvalidIndex, QuotaExceeded
from node.exchange.transfer.client import fetch
from node.exchange.transfer.errors import TransferIncomplete
from node.exchange.transfer.holders import Holder, Identity
from node.exchange.transfer.limits import ServerLimits
from node.exchange.transfer.offer import Delivery, Wanted, open_manifest, seal_manifest
from node.exchange.transfer.ports import Permit
from node.exchange.transfer.server import ExchangeServer
from node.exchange.transfer.state import Deliveries, Transfers
from node.gateway.chunks import StoreChunks
from node.network.tls import TrustedContexts
from tests.exchange.store_parts import STUDY, contents, new_store, noise, sources
from tests.exchange.transfer_world import QUICK, Ledger, World, get, until

MANIFEST = b"the manifest and its salt"


class Exchange:
    """Alpha has a study of several chunks in its store, wrapped for beta's key and delivered."""

    def __init__(self, folder, sizes=(5_000_000, 7_000_000, 900)):
        self.world = World(folder)
        self.folder = folder
        self.instances = [noise(size, seed) for seed, size in enumerate(sizes)]
        self.store = _store(folder / "alpha-store")
        self.store.put(STUDY, 1, sources(self.instances))
        self.key = encryption_keys.generate()
        self.context = WrapContext(
            b"\xc1" * 32, self.world.request_id, STUDY, 1, b"\xd1" * 32, "alpha", "beta",
            self.key.key_id,
        )  # fmt: skip
        study_key = self.store.key(STUDY)
        wrapped = hpke.wrap_study_key(self.context, self.key.kem, self.key.public_key, study_key)
        self.delivery = Delivery(
            self.world.request_id,
            STUDY,
            1,
            self.context.root,
            wrapped,
            seal_manifest(self.context, study_key, MANIFEST),
        )
        digest = hpke.wrapped_digest(wrapped)
        alpha = self.world.alpha
        alpha.deliveries.forget(self.world.request_id)
        alpha.deliveries.put(self.delivery)
        alpha.chunks = StoreChunks(self.store)
        self.world.ledger.permits[self.world.request_id] = Permit(
            self.world.request_id, STUDY, "beta", digest
        )
        self.wanted = Wanted(
            self.world.request_id, STUDY, digest, ((1, self.context.root),), 1 << 40
        )

    def adopt_into(self, store):
        def adopt(offer):
            study_key = self.key.unwrap(self.context, offer.delivery.wrapped)
            store.adopt(STUDY, study_key, offer.index)
            assert open_manifest(self.context, study_key, offer.delivery.manifest) == MANIFEST

        return adopt

    async def fetch(self, store, *holders, **options):
        beta = self.world.beta
        return await fetch(
            beta.identity,
            self.wanted,
            holders,
            StoreChunks(store),
            beta.transfers,
            limits=options.pop("limits", QUICK),
            prepare=self.adopt_into(store),
            **options,
        )


def _store(folder, **options):
    folder.mkdir(exist_ok=True)
    return new_store(folder, **options)


@pytest.fixture
def exchange(tmp_path):
    return Exchange(tmp_path)


async def test_a_study_goes_from_store_to_store(exchange, tmp_path):
    store = _store(tmp_path / "beta-store")
    async with exchange.world.serving("alpha") as alpha:
        fetched = await exchange.fetch(store, alpha.holder)
        assert store.is_complete(STUDY)
        assert contents(store) == exchange.instances
        assert (await exchange.fetch(store, alpha.holder)).chunks_fetched == 0
    assert fetched.chunks_fetched == len(store.index(STUDY).chunks) > 1


async def test_a_store_that_adopted_a_study_serves_it_on(exchange, tmp_path):
    first, second = _store(tmp_path / "gamma-store"), _store(tmp_path / "beta-store")
    world = exchange.world
    async with world.serving("alpha") as alpha:
        await exchange.fetch(first, alpha.holder)
        world.gamma.chunks = StoreChunks(first)
        async with world.serving("gamma") as gamma:
            alpha.chunks.ciphertext = _lost
            fetched = await exchange.fetch(second, alpha.holder, gamma.holder)
    assert contents(second) == exchange.instances
    assert fetched.liars == ()


def _lost(digest):
    raise LookupError


async def test_a_rotten_chunk_is_not_held_and_makes_nobody_a_liar(exchange, tmp_path):
    store = _store(tmp_path / "beta-store")
    rotten = next((tmp_path / "alpha-store" / "blobs" / "chunks").rglob("*/*"))
    content = rotten.read_bytes()
    rotten.chmod(0o600)
    rotten.write_bytes(b"\0" + content[1:])
    async with exchange.world.serving("alpha") as alpha:
        with pytest.raises(TransferIncomplete) as incomplete:
            await exchange.fetch(store, alpha.holder)
    assert incomplete.value.missing == 1
    assert exchange.world.beta.transfers.get(exchange.world.request_id).liars == ()


async def test_a_lie_is_found_by_the_store(exchange, tmp_path):
    store = _store(tmp_path / "beta-store")
    async with exchange.world.serving("alpha") as alpha:
        serve = alpha.chunks.ciphertext
        alpha.chunks.ciphertext = lambda digest: b"\0" + serve(digest)[1:]
        with pytest.raises(TransferIncomplete, match="another digest"):
            await exchange.fetch(store, alpha.holder)
    assert exchange.world.beta.transfers.get(exchange.world.request_id).liars == ("alpha",)


async def test_after_erasure_nothing_is_served(exchange, tmp_path):
    store = _store(tmp_path / "beta-store")
    digest = exchange.store.index(STUDY).chunks[0].digest
    async with exchange.world.serving("alpha") as alpha:
        path = exchange.world.chunk_path(digest)
        assert (await get(exchange.world.beta, alpha, path))[0] == 200
        exchange.store.erase(STUDY)
        assert (await get(exchange.world.beta, alpha, path))[0] == 404
        with pytest.raises(TransferIncomplete):
            await exchange.fetch(store, alpha.holder)


async def test_the_stores_own_refusal_reaches_the_caller(exchange, tmp_path):
    store = _store(tmp_path / "beta-store", quota_bytes=1_000_000)
    async with exchange.world.serving("alpha") as alpha:
        with pytest.raises(QuotaExceeded):
            await exchange.fetch(store, alpha.holder)


async def test_a_key_wrapped_for_another_request_is_not_adopted(exchange, tmp_path):
    store = _store(tmp_path / "beta-store")
    exchange.context = replace(exchange.context, request_id=b"\x01" * 16)
    async with exchange.world.serving("alpha") as alpha:
        with pytest.raises(hpke.CannotOpen):
            await exchange.fetch(store, alpha.holder)
    assert list(store.studies()) == []


async def test_an_index_that_the_wrapped_key_does_not_open_is_not_adopted(exchange, tmp_path):
    """The ledger has this key's digest, so the custodian committed to something useless."""
    store = _store(tmp_path / "beta-store")
    key, world = exchange.key, exchange.world
    wrong = hpke.wrap_study_key(exchange.context, key.kem, key.public_key, bytes(32))
    digest = hpke.wrapped_digest(wrong)
    world.alpha.deliveries.forget(world.request_id)
    world.alpha.deliveries.put(replace(exchange.delivery, wrapped=wrong))
    permit = world.ledger.permits[world.request_id]
    world.ledger.permits[world.request_id] = replace(permit, wrapped_digest=digest)
    exchange.wanted = replace(exchange.wanted, wrapped_digest=digest)
    async with world.serving("alpha") as alpha:
        with pytest.raises(InvalidIndex):
            await exchange.fetch(store, alpha.holder)
    assert list(store.studies()) == []


async def test_an_asker_killed_in_the_middle_goes_on_where_it_was(exchange, tmp_path):
    """A real process, ended by SIGKILL while chunks arrive."""
    world = exchange.world
    folder = tmp_path / "beta-store"
    _store(folder).close()
    chunks = folder / "blobs" / "chunks"
    slow = {"rate_bytes_per_s": 8_000_000}
    async with world.serving("alpha", **slow) as alpha:
        person = world.beta.person
        given = (
            folder, tmp_path / "transfers", person.private_key.private_bytes_raw(),
            person.certificate, alpha.holder, exchange.wanted, exchange.context, exchange.key,
        )  # fmt: skip
        child = multiprocessing.get_context("spawn").Process(target=_fetch_apart, args=given)
        child.start()
        await until(lambda: _whole(chunks) or not child.is_alive())
        child.kill()
        child.join()
        assert child.exitcode == -signal.SIGKILL
        before = _whole(chunks)
        asked = []
        serve = alpha.chunks.ciphertext
        alpha.chunks.ciphertext = lambda digest: asked.append(digest.hex()) or serve(digest)
        store = _store(folder)
        fetched = await exchange.fetch(store, alpha.holder)
    assert contents(store) == exchange.instances
    assert before
    missing = len(store.index(STUDY).chunks) - len(before)
    assert not before & set(asked)
    assert fetched.chunks_fetched == len(set(asked)) == missing


def _whole(chunks):
    """Names of the chunks that are whole; each is the digest of its content."""
    paths = [path for path in chunks.rglob("*/*") if len(path.name) == 64]
    return {p.name for p in paths if hashlib.sha256(p.read_bytes()).hexdigest() == p.name}


def _fetch_apart(folder, transfers, secret, certificate, holder, wanted, context, key):
    """The asker's process."""
    store = new_store(folder)
    identity = Identity(Ed25519PrivateKey.from_private_bytes(secret), certificate)

    def adopt(offer):
        store.adopt(STUDY, key.unwrap(context, offer.delivery.wrapped), offer.index)

    coming = fetch(
        identity, wanted, [holder], StoreChunks(store), Transfers(transfers),
        limits=replace(QUICK, parallel=1), prepare=adopt,
    )  # fmt: skip
    asyncio.run(coming)


async def test_a_custodian_killed_in_the_middle_is_resumed(exchange, tmp_path):
    world = exchange.world
    store = _store(tmp_path / "beta-store")
    exchange.store.close()
    permit = world.ledger.permits[world.request_id]
    people = [world.alpha.person, world.beta.person]
    given = (
        tmp_path,
        people[0].private_key.private_bytes_raw(),
        [p.certificate for p in people],
        permit,
    )
    spawn = multiprocessing.get_context("spawn")
    arrived = []
    for attempt in range(2):
        ours, theirs = spawn.Pipe()
        rate = 8_000_000 if attempt == 0 else 1 << 40
        child = spawn.Process(target=_serve_apart, args=(*given, rate, theirs))
        child.start()
        try:
            port = await asyncio.to_thread(ours.recv)
            holder = Holder("alpha", "127.0.0.1", port, world.alpha_certificates)
            task = asyncio.create_task(
                exchange.fetch(store, holder, limits=replace(QUICK, parallel=1))
            )
            if attempt == 0:
                await until(lambda: len(_whole(tmp_path / "beta-store" / "blobs" / "chunks")))
                os.kill(child.pid, signal.SIGKILL)
                with pytest.raises(TransferIncomplete):
                    await task
                arrived = _whole(tmp_path / "beta-store" / "blobs" / "chunks")
            else:
                fetched = await task
        finally:
            child.kill()
            child.join()
    assert contents(store) == exchange.instances
    assert fetched.chunks_fetched == len(store.index(STUDY).chunks) - len(arrived) > 0


def _serve_apart(folder, secret, certificates, permit, rate, pipe):
    """The custodian's process."""
    asyncio.run(_serve(folder, secret, certificates, permit, rate, pipe))


async def _serve(folder, secret, certificates, permit, rate, pipe):
    contexts = TrustedContexts(Ed25519PrivateKey.from_private_bytes(secret), *certificates[:1])
    contexts.trust(certificates[1])
    ledger = Ledger()
    ledger.permits[permit.request_id] = permit
    server = ExchangeServer(
        contexts,
        lambda key: "beta",
        ledger,
        StoreChunks(new_store(folder / "alpha-store")),
        Deliveries(folder / "alpha" / "deliveries"),
        limits=ServerLimits(rate_bytes_per_s=rate),
    )
    await server.start("127.0.0.1")
    pipe.send(server.port)
    await asyncio.get_running_loop().create_future()
