"""Whole gateways: rot is found, mended and recorded, and the trail anchored, by nobody's hand."""

import logging
import time
from contextlib import asynccontextmanager, closing
from dataclasses import replace

import pytest

from node.config.model import StoreConfig
from node.gateway import site
from node.gateway.audit.acts import Act
from node.gateway.audit.anchoring import is_anchored
from node.gateway.audit.segments import segments
from node.gateway.audit.trail import Trail
from node.gateway.site import Opened
from tests.gateway.audit.conftest import records
from tests.gateway.flow_world import until, world
from tests.gateway.test_mending import LARGE, damage, sent, whole
from tests.privacy.site_world import config_of, quick

TWO_DAYS_MS = 2 * 86_400_000


@pytest.fixture(autouse=True)
def quick_mending(monkeypatch):
    quick(monkeypatch)


@asynccontextmanager
async def gateway_of(hospital):
    folder = hospital.folder
    store = StoreConfig(key_file=folder / "keys.db", folder=folder / "blobs")
    config = replace(config_of(hospital), store=store)
    client = await hospital.net.client(hospital.index)
    opened = Opened(client, hospital.vault, hospital.signer, hospital.store, hospital.net.genesis)
    async with site.running(config, opened, log_level=logging.WARNING):
        yield folder / "spool" / "audit"


def told(folder, kind):
    return [record for record in records(folder) if record.kind == kind]


async def test_a_gateway_mends_its_own_study_and_anchors_its_trail_by_itself(tmp_path):
    async with world(tmp_path) as all_:
        alpha, beta = all_.alpha, all_.beta
        async with alpha.serving(), beta.serving() as exchange:
            study = await alpha.keep(**LARGE)
            await exchange.requester.fetch(await beta.ask(study), wait_s=30)
        damage(alpha, study)
        old_ms = time.time_ns() // 1_000_000 - TWO_DAYS_MS
        with closing(Trail(alpha.folder / "spool" / "audit", now_ms=lambda: old_ms)) as trail:
            trail.append(Act("refused"))
        async with gateway_of(beta) as there, gateway_of(alpha) as here:
            await until(lambda: told(here, "mended"))
            await until(lambda: told(there, "chunks_begun"))
            await until(lambda: is_anchored(segments(here)[0].path))
        assert whole(alpha, study)
        assert alpha.bytes_of(study.id) == sent(study)
        (mended,) = told(here, "mended")
        (given,) = told(there, "chunks_begun")
        for record in (mended, given):
            assert record.names("studies") == [study.id.hex()]
            assert "request" not in record.fields
        assert given.text("who") == alpha.name
        page = await (await all_.net.client(0)).anchors(alpha.name)
        assert len(page.anchors) == 1
