"""The whole gateway beside a real testnet: a study is sent, registered, final and stored."""

import asyncio
from contextlib import asynccontextmanager
from dataclasses import replace

import numpy as np
import pytest

from node.config import DicomPeer, GatewayConfig, GatewayLimits, StoreConfig
from node.config.model import ApartSeries
from node.exchange.store.opening import open_store
from node.gateway.daemon import Gateway, GatewayRefused, Parts
from node.imaging.vault import create_vault, open_vault
from node.keys import save_secret
from node.studies import Signer, register
from tests.gateway import dimse
from tests.gateway.dimse import SENDER, in_thread
from tests.imaging import dicom

PASSPHRASE = "correct horse"


@pytest.fixture
def config(tmp_path):
    return GatewayConfig(
        spool_dir=tmp_path / "spool",
        listen_port=0,
        peers=(DicomPeer(ae_title=SENDER),),
        watch_dir=tmp_path / "watch",
        quiet_ms=300,
        limits=GatewayLimits(disk_reserve_bytes=2**20),
    )


@pytest.fixture
def store(tmp_path):
    secret = tmp_path / "master"
    save_secret(secret, b"ab" * 32)
    opened = open_store(
        StoreConfig(
            key_file=tmp_path / "store.keys", folder=tmp_path / "store", master_key_file=secret
        )
    )
    yield opened
    opened.close()


@asynccontextmanager
async def running(net, config, store, tmp_path):
    """Yield a gateway of the first hospital."""
    path = tmp_path / "vault.db"
    vault = open_vault(path, PASSPHRASE) if path.exists() else create_vault(path, PASSPHRASE)
    signer = Signer(net.member_key(0), net.layout.configs[0].institution, net.genesis.chain_id)
    with vault:
        gateway = Gateway(Parts(config, await net.client(0), vault, signer, store))
        async with gateway.running():
            yield gateway, vault


async def kept(gateway, store, versions):
    """Wait until the store holds so many versions and the spool is empty."""
    async with asyncio.timeout(60):
        while True:
            found = [v for study in store.studies() for v in store.versions(study)]
            if len(found) == versions and gateway.spool.usage().files == 0:
                return
            await asyncio.sleep(0.02)


def new_files(tmp_path, count, start=0, study="1.2.826.0.1.3680043.2"):
    paths = []
    for number in range(start, start + count):
        pixels = np.full((8, 8), number, "<u2")
        path = tmp_path / f"{number}.dcm"
        paths.append(dicom.minimal(path, sop=f"{study}.{number + 1}", study=study, pixels=pixels))
    return paths


async def test_a_sent_study_becomes_final_and_is_kept_byte_for_byte(
    testnet, config, store, tmp_path
):
    paths = new_files(tmp_path, 3)
    async with testnet(validators=1) as net:
        async with running(net, config, store, tmp_path) as (gateway, _):
            statuses = await in_thread(dimse.send, gateway.front.port, paths)
            assert statuses == [0, 0, 0]
            await kept(gateway, store, 1)
            late = new_files(tmp_path, 1, start=3)
            assert await in_thread(dimse.send, gateway.front.port, late) == [0]
            await kept(gateway, store, 2)
        (study_id,) = store.studies()
        view = await (await net.client(0)).study(study_id)
    assert [version.version for version in view.versions] == [2, 1]
    index = store.index(study_id)
    assert len(index.instances) == 4
    stored = {b"".join(store.read(study_id, n))[-128:] for n in range(4)}
    assert stored == {path.read_bytes()[-128:] for path in (*paths, *late)}


async def test_what_was_registered_by_hand_is_kept_as_it_comes_from_the_pacs(
    testnet, config, store, tmp_path
):
    """Over C-STORE the file meta information is another one, and with it F."""
    paths = new_files(tmp_path, 2)
    async with testnet(validators=1) as net:
        signer = Signer(net.member_key(0), net.layout.configs[0].institution, net.genesis.chain_id)
        with create_vault(tmp_path / "vault.db", PASSPHRASE) as vault:
            assert (await register(paths, await net.client(0), vault, signer)).is_done
        async with running(net, config, store, tmp_path) as (gateway, _):
            assert await in_thread(dimse.send, gateway.front.port, paths) == [0, 0]
            await kept(gateway, store, 1)
        (study_id,) = store.studies()
        view = await (await net.client(0)).study(study_id)
    assert [version.version for version in view.versions] == [2, 1]
    assert len(store.index(study_id).instances) == 2


async def test_what_came_before_a_restart_is_registered_after_it(testnet, config, store, tmp_path):
    patient = replace(config, quiet_ms=3_600_000)
    paths = new_files(tmp_path, 2)
    async with testnet(validators=1) as net:
        async with running(net, patient, store, tmp_path) as (gateway, _):
            assert await in_thread(dimse.send, gateway.front.port, paths) == [0, 0]
        assert list(store.studies()) == []
        async with running(net, patient, store, tmp_path) as (gateway, _):
            gateway.spool.signal()
            await kept(gateway, store, 1)


async def test_files_in_the_watched_folder_are_taken_and_removed(testnet, config, store, tmp_path):
    config.watch_dir.mkdir()
    for path in new_files(tmp_path, 2):
        path.rename(config.watch_dir / path.name)
    (config.watch_dir / "notes.txt").write_text("not DICOM")
    (config.watch_dir / "coming.part").write_bytes(b"half")
    async with (
        testnet(validators=1) as net,
        running(net, config, store, tmp_path) as (gateway, _),
    ):
        await kept(gateway, store, 1)
        async with asyncio.timeout(30):
            while len(list(config.watch_dir.iterdir())) > 1:
                await asyncio.sleep(0.02)
        assert [a.code for a in gateway.spool.asides()] == ["foreign"]
    assert [path.name for path in config.watch_dir.iterdir()] == ["coming.part"]


async def test_a_port_that_is_taken_is_said_and_nothing_is_left_running(
    testnet, config, store, tmp_path
):
    async with (
        testnet(validators=1) as net,
        running(net, config, store, tmp_path) as (gateway, _),
    ):
        taken = replace(config, listen_port=gateway.front.port, spool_dir=tmp_path / "other")
        with pytest.raises(GatewayRefused, match="cannot listen"):
            async with running(net, taken, store, tmp_path):
                pass


async def test_a_series_of_a_rule_is_kept_apart_and_its_erasure_leaves_the_rest(
    testnet, config, store, tmp_path
):
    study = "1.2.826.0.1.3680043.2"
    head, genetic = new_files(tmp_path, 2), []
    for number in range(2):
        words = {"SeriesInstanceUID": f"{study}.77", "SeriesDescription": "Genetic marker"}
        path = tmp_path / f"genetic-{number}.dcm"
        genetic.append(dicom.minimal(path, sop=f"{study}.77.{number}", study=study, **words))
    apart = replace(config, apart=(ApartSeries(description="GENETIC"),))
    async with testnet(validators=1) as net:
        async with running(net, apart, store, tmp_path) as (gateway, vault):
            sent = [*head, genetic[0]]
            assert await in_thread(dimse.send, gateway.front.port, sent) == [0, 0, 0]
            await kept(gateway, store, 2)
        # What comes late follows its series, whatever the config says by then.
        async with running(net, config, store, tmp_path) as (gateway, vault):
            assert await in_thread(dimse.send, gateway.front.port, genetic[1:]) == [0]
            await kept(gateway, store, 3)
            rest, set_apart = vault.parts(study)
            counts = {each: len(store.index(each).instances) for each in store.studies()}
            assert counts == {rest.study_id: 2, set_apart.study_id: 2}
            assert rest.subject_id == set_apart.subject_id
            async with asyncio.timeout(30):
                while len(gateway.holdings.study(study).instances) < 4:
                    await asyncio.sleep(0.02)
            uids = [f"{study}.1", f"{study}.2"]
            assert gateway.spool.holds(uids) == [True, True]
            await asyncio.to_thread(gateway.forget, set_apart.study_id)
            assert gateway.spool.holds(uids) == [True, True]
            assert len(gateway.holdings.study(study).series) == 1
            await asyncio.to_thread(gateway.forget, rest.study_id)
            assert gateway.spool.holds(uids) == [False, False]


async def test_a_study_that_another_process_stored_is_listed_when_it_is_registered(
    testnet, config, store, tmp_path
):
    told = []
    async with testnet(validators=1) as net, running(net, config, store, tmp_path) as (gateway, _):
        gateway._parts = replace(gateway._parts, on_kept=told.append)
        assert await in_thread(dimse.send, gateway.front.port, new_files(tmp_path, 1)) == [0]
        await kept(gateway, store, 1)
        (study_id,) = store.studies()
        gateway.holdings.remove(study_id)
        gateway.registered_elsewhere(bytes(16))  # registered, and not stored yet: no error
        gateway.registered_elsewhere(study_id)
        async with asyncio.timeout(30):
            while told.count(study_id) < 2:
                await asyncio.sleep(0.02)
        assert len(gateway.holdings.studies()) == 1
        assert set(told) == {study_id}
