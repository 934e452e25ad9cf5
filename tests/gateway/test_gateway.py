"""The whole gateway beside a real testnet: a study is sent, registered, final and stored."""

import asyncio
from contextlib import asynccontextmanager
from dataclasses import replace

import numpy as np
import pytest

from node.config import DicomPeer, GatewayConfig, GatewayLimits, StoreConfig
from node.exchange.store.opening import open_store
from node.gateway.daemon import Gateway, GatewayRefused, Parts
from node.imaging.vault import create_vault, open_vault
from node.keys import save_secret
from node.studies import Signer
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
