"""The whole gateway, sent images that end whatever decodes them: it stays, and so do the others."""

import asyncio
import os
import signal
from functools import partial

import psutil
import pytest

from node.config import DicomPeer, GatewayConfig, GatewayLimits, StoreConfig
from node.config.model import WebConfig
from node.exchange.store.opening import open_store
from node.gateway import parsing
from node.gateway.parsing import DIED, HUNG, Parsing, Patience
from node.imaging.reader import read_instance
from node.keys import save_secret
from tests.gateway import dimse
from tests.gateway.audit.test_gateway import TOKEN, serving
from tests.gateway.dimse import SENDER, in_thread
from tests.gateway.flow_world import until
from tests.gateway.planted_parser import ABORTS, EATS, HANGS
from tests.gateway.test_gateway import kept
from tests.gateway.test_parsing import MEMORY_BYTES, PLANTED, image
from tests.gateway.web.test_stow import message

CODES = {ABORTS: DIED, EATS: DIED, HANGS: HUNG}


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.setattr(parsing, "MODULE", PLANTED)
    monkeypatch.setattr("node.gateway.daemon.Parsing", partial(Parsing, patience=Patience(2.0)))
    (tmp_path / "token").write_text(TOKEN)
    (tmp_path / "token").chmod(0o600)
    return GatewayConfig(
        spool_dir=tmp_path / "spool",
        listen_port=0,
        peers=(DicomPeer(ae_title=SENDER),),
        watch_dir=tmp_path / "watch",
        quiet_ms=300,
        limits=GatewayLimits(disk_reserve_bytes=2**20, memory_bytes_max=MEMORY_BYTES),
        web=WebConfig(token_file=tmp_path / "token", port=0),
    )


@pytest.fixture
def store(tmp_path):
    secret = tmp_path / "master"
    save_secret(secret, b"ab" * 32)
    files = StoreConfig(
        key_file=tmp_path / "store.keys", folder=tmp_path / "store", master_key_file=secret
    )
    opened = open_store(files)
    yield opened
    opened.close()


def refused(site):
    """Return the code of every refusal, as the trail has them, and as the events."""
    acts = sorted(act.text("code") for act in site.acts() if act.kind == "refused")
    events = [event for _, event in site.gateway.spool.index.last_events(100)]
    assert sorted(event.code for event in events if event.kind == "refused") == acts
    return acts


def stored(store):
    """Return how many instances there are of the only study."""
    return sum(len(store.index(study).instances) for study in store.studies())


async def test_each_bad_image_by_stow_is_refused_and_the_others_are_registered(
    testnet, config, store, tmp_path
):
    study = "1.2.826.0.1.3680043.77"
    bad = [image(tmp_path / f"{rows}.dcm", rows, study=study) for rows in CODES]
    good = [image(tmp_path / f"{number}.dcm", 8, number, study) for number in range(6)]
    mixed = [good[0], bad[0], good[1], bad[1], good[2], bad[2], *good[3:]]
    main = psutil.Process()
    async with testnet(validators=1) as net, serving(net, config, store, tmp_path) as site:
        before = main.memory_info().rss
        assert await site.post(message(path.read_bytes() for path in mixed)) == 202
        assert main.memory_info().rss - before < MEMORY_BYTES // 4
        assert refused(site) == sorted(CODES.values())
        # While one hangs those before it may be registered, and the others are the next version.
        await until(lambda: stored(store) == len(good))
        assert refused(site) == sorted(CODES.values())  # and nothing was tried again
        asides = [aside.code for aside in site.gateway.spool.asides()]
        assert sorted(asides) == sorted(CODES.values())


async def test_an_image_that_ends_its_process_when_it_is_registered_is_put_aside(
    testnet, config, store, tmp_path
):
    """By C-STORE it was taken, where the receiving process has another decoder."""
    study = "1.2.826.0.1.3680043.78"
    paths = [image(tmp_path / "bad.dcm", ABORTS, study=study)]
    paths += [image(tmp_path / f"{number}.dcm", 8, number, study) for number in range(3)]
    async with testnet(validators=1) as net, serving(net, config, store, tmp_path) as site:
        assert set(await in_thread(dimse.send, site.port, paths)) == {0}
        await kept(site.gateway, store, 1)
        (study_id,) = store.studies()
        assert len(store.index(study_id).instances) == 3
        assert [aside.code for aside in site.gateway.spool.asides()] == [DIED]
        assert len([act for act in site.acts() if act.text("code") == DIED]) == 1


async def test_what_is_put_into_the_folder_cannot_end_the_gateway_either(
    testnet, config, store, tmp_path
):
    config.watch_dir.mkdir()
    for rows in (ABORTS, EATS):
        image(config.watch_dir / f"{rows}.dcm", rows)
    image(config.watch_dir / "good.dcm", 8)
    async with testnet(validators=1) as net, serving(net, config, store, tmp_path) as site:
        await kept(site.gateway, store, 1)
        await until(lambda: refused(site) == [DIED, DIED])
        await until(lambda: list(config.watch_dir.iterdir()) == [])


async def test_a_process_that_is_killed_from_outside_costs_nothing(
    testnet, config, store, tmp_path
):
    study = "1.2.826.0.1.3680043.79"
    paths = [image(tmp_path / f"{number}.dcm", 8, number, study) for number in range(30)]
    async with testnet(validators=1) as net, serving(net, config, store, tmp_path) as site:
        slots = site.gateway.parsing._slots

        posting = asyncio.create_task(site.post(message(path.read_bytes() for path in paths)))
        await until(lambda: any(slot.worker for slot in slots))
        os.kill(next(slot.worker.process.pid for slot in slots if slot.worker), signal.SIGKILL)
        assert await posting == 200
        await kept(site.gateway, store, 1)
        assert refused(site) == []
        (study_id,) = store.studies()
        index = store.index(study_id)
        assert {each.facts.digest for each in index.instances} == {
            read_instance(path).commitment.file for path in paths
        }
