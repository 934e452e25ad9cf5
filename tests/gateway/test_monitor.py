"""The gateway measures itself: counts are right, causes are named, nobody is identified."""

import asyncio
from contextlib import asynccontextmanager
from dataclasses import replace

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from node.config import ConsensusConfig
from node.exchange.store.store import StudyStore
from node.gateway import health
from node.gateway.health_server import HealthServer
from node.gateway.metrics import GatewayMetrics
from node.gateway.monitor import Monitor, Watched
from tests.gateway import dimse
from tests.gateway.dimse import SENDER, in_thread
from tests.gateway.test_gateway import config, kept, new_files, running, store
from tests.imaging import dicom

__all__ = ["config", "store"]  # fixtures

NO_ROOM = 0xA700
QUICK = ConsensusConfig(view_timeout_ms=1_500, resend_interval_ms=300)


@asynccontextmanager
async def watched(net, config, store, tmp_path):
    async with running(net, config, store, tmp_path) as (gateway, _):
        monitor = Monitor(Watched(gateway, await net.client(0), None), GatewayMetrics("1"))
        await monitor.look()
        yield gateway, monitor


async def measured(monitor):
    """Look once more; return samples by name and by the value of their label."""
    await monitor.look_long()
    await monitor.look()
    families = text_string_to_metric_families(monitor.metrics.text().decode())
    return {
        (sample.name.removeprefix("radledger_gateway_"), *sample.labels.values()): sample.value
        for family in families
        for sample in family.samples
    }


def codes(monitor):
    return [each.code for each in monitor.health.findings]


async def test_what_comes_is_counted_and_names_nobody(testnet, config, store, tmp_path):
    paths = new_files(tmp_path, 3)
    other = dicom.minimal(tmp_path / "o.dcm", sop="1.2.826.0.1.3680043.2.1", PatientID="4711")
    async with (
        testnet(validators=1) as net,
        watched(net, config, store, tmp_path) as (gateway, monitor),
    ):
        assert await in_thread(dimse.send, gateway.front.port, paths) == [0, 0, 0]
        await kept(gateway, store, 1)
        assert await in_thread(dimse.send, gateway.front.port, [paths[0], other]) == [0, 0xC000]
        found = await measured(monitor)
        text = monitor.metrics.text() + health.encode(monitor.health)
    assert found["received_instances_total",] == 3
    assert found["received_bytes_total",] > 3 * 128
    assert found["duplicate_instances_total",] == 1
    assert found["refused_instances_total", "conflict"] == 1
    assert found["quarantine_instances",] == 1
    assert (found["spool_instances",], found["spool_bytes",]) == (0, 0)
    assert (found["versions_registered_total",], found["versions_stored_total",]) == (1, 1)
    assert found["store_studies",] == 1
    assert found["node_height",] >= 1
    assert found["is_well",] == 1
    assert codes(monitor) == ["quarantine"]
    for identifying in (b"1.2.826", b"4711", SENDER.encode()):
        assert identifying not in text


async def test_counts_go_on_where_they_stood_before_a_restart(testnet, config, store, tmp_path):
    async with testnet(validators=1) as net:
        async with watched(net, config, store, tmp_path) as (gateway, _):
            await in_thread(dimse.send, gateway.front.port, new_files(tmp_path, 2))
        async with watched(net, config, store, tmp_path) as (_, monitor):
            found = await measured(monitor)
    assert found["received_instances_total",] == 2


async def test_without_a_quorum_senders_are_refused_when_the_spool_is_full_and_nothing_is_lost(
    testnet, config, store, tmp_path
):
    """The chain stands longer than the spool can hold; what was refused is sent again later."""
    limits = replace(config.limits, spool_instances_max=3)
    config = replace(config, limits=limits)
    paths = new_files(tmp_path, 6)
    async with (
        testnet(validators=2, consensus=QUICK) as net,
        watched(net, config, store, tmp_path) as (gateway, monitor),
    ):
        await net.kill(1)
        assert await in_thread(dimse.send, gateway.front.port, paths[:3]) == [0, 0, 0]
        refused = await in_thread(dimse.send, gateway.front.port, paths[3:])
        assert refused == [NO_ROOM] * 3
        await seen(monitor, "node_not_ready")
        found = await measured(monitor)
        assert "spool_full" in codes(monitor)
        assert found["refused_instances_total", "no_room"] == 3
        assert (found["spool_instances",], found["is_well",]) == (3, 0)
        assert list(store.studies()) == []
        await net.start(1)
        await kept(gateway, store, 1)
        assert await in_thread(dimse.send, gateway.front.port, paths[3:]) == [0, 0, 0]
        await kept(gateway, store, 2)
        await monitor.look()
        assert monitor.health.is_well, monitor.health
    (study_id,) = store.studies()
    assert len(store.index(study_id).instances) == 6


async def seen(monitor, code):
    async with asyncio.timeout(30):
        while code not in codes(monitor):
            await monitor.look()


async def test_a_node_that_is_gone_is_named_and_over_http_it_is_503(
    testnet, config, store, tmp_path
):
    async with (
        testnet(validators=1) as net,
        watched(net, config, store, tmp_path) as (_, monitor),
        told(monitor) as (session, url),
    ):
        async with session.get(url + "/health") as answer:
            assert (answer.status, (await answer.json())["findings"]) == (200, [])
        await net.kill(0)
        await monitor.look()
        async with session.get(url + "/health") as answer:
            assert answer.status == 503
            (finding,) = (await answer.json())["findings"]
        assert finding["code"] == "node_unreachable"
        async with session.get(url + "/metrics") as answer:
            assert b"radledger_gateway_is_well 0.0" in await answer.read()
        async with session.get(url + "/metrics", headers={"Host": "evil.example"}) as answer:
            assert answer.status == 403


@asynccontextmanager
async def told(monitor):
    server = HealthServer(lambda: monitor.health, monitor.metrics)
    await server.start(0)
    try:
        async with aiohttp.ClientSession() as session:
            yield session, f"http://127.0.0.1:{server.port}"
    finally:
        await server.stop()


async def test_the_store_and_its_last_scrub_are_shown(testnet, config, store, tmp_path):
    async with (
        testnet(validators=1) as net,
        watched(net, config, store, tmp_path) as (gateway, monitor),
    ):
        await in_thread(dimse.send, gateway.front.port, new_files(tmp_path, 2))
        await kept(gateway, store, 1)
        (chunk,) = (each for each in (tmp_path / "store").rglob("*") if len(each.name) == 64)
        chunk.write_bytes(b"rot")
        found = await measured(monitor)
        assert found["scrub_time_seconds",] == 0
        list(store.scrub())
        found = await measured(monitor)
        assert found["scrub_time_seconds",] > 0
        assert found["scrub_findings", "rotten"] == 1
        assert found["store_missing_chunks",] == 1
        assert codes(monitor) == ["chunks_missing"]


@pytest.mark.parametrize("quota", [1, 2**40])
async def test_a_store_at_its_quota_is_said(testnet, config, store, tmp_path, quota, monkeypatch):
    async with (
        testnet(validators=1) as net,
        watched(net, config, store, tmp_path) as (gateway, monitor),
    ):
        await in_thread(dimse.send, gateway.front.port, new_files(tmp_path, 1))
        await kept(gateway, store, 1)
        usage = replace(store.usage(), quota_bytes=quota)
        monkeypatch.setattr(StudyStore, "usage", lambda _: usage)
        await measured(monitor)
    assert (codes(monitor) == ["store_quota"]) is (quota == 1)


async def test_a_store_that_is_not_mounted_is_said(testnet, config, store, tmp_path):
    async with (
        testnet(validators=1) as net,
        watched(net, config, store, tmp_path) as (gateway, monitor),
    ):
        await in_thread(dimse.send, gateway.front.port, new_files(tmp_path, 1))
        await kept(gateway, store, 1)
        (tmp_path / "store").rename(tmp_path / "elsewhere")
        await measured(monitor)
        (tmp_path / "elsewhere").rename(tmp_path / "store")
        assert codes(monitor) == ["store_unreachable"]
