"""Two hospitals with whole gateways, as `radledger gateway start` runs them, in this process."""

import logging
from contextlib import asynccontextmanager
from dataclasses import replace

import aiohttp
from pydicom.uid import ExplicitVRLittleEndian

from node.config.model import (
    DicomPeer,
    ExchangeConfig,
    ExchangePeer,
    GatewayConfig,
    GatewayLimits,
    SearchConfig,
    SearchField,
    WebConfig,
)
from node.gateway import exchange_opening, site
from node.gateway.site import Opened
from tests.gateway.dimse import SENDER
from tests.gateway.flow_world import HOST, PACE
from tests.gateway.pacs import TITLE, Pacs

EVERY_FIELD = SearchField.__args__
TOKEN = "w" * 43


def quick(monkeypatch):
    """Let keys be challenged at once: the third hospital has no gateway that would."""
    real = exchange_opening.settings_of
    monkeypatch.setattr(site, "settings_of", lambda config: replace(real(config), pace=PACE))


def config_of(hospital, pacs=None, *, fetches=False):
    """Return the config of a hospital's node with everything in it."""
    folder = hospital.folder
    token = folder / "web.token"
    token.write_text(TOKEN)
    token.chmod(0o600)
    peers = [DicomPeer(ae_title=SENDER)]
    if pacs is not None:
        place = {"host": "127.0.0.1", "port": pacs.port, "takes_fetched": True}
        peers.append(DicomPeer(ae_title=TITLE, **place))
    return replace(
        hospital.config,
        gateway=GatewayConfig(
            spool_dir=folder / "spool",
            listen_port=0,
            peers=tuple(peers),
            quiet_ms=200,
            limits=GatewayLimits(disk_reserve_bytes=2**20),
            web=WebConfig(token_file=token, port=0),
        ),
        exchange=ExchangeConfig(
            folder=folder / "exchange",
            listen_host=HOST,
            listen_port=hospital.port,
            peers=tuple(
                ExchangePeer(institution=p.institution, host=p.host, port=p.port)
                for p in hospital.places
            ),
            fetch_at_once=fetches or pacs is not None,
            search=SearchConfig(fields=EVERY_FIELD, questions_per_minute=600),
        ),
    )


@asynccontextmanager
async def gateway_of(hospital, pacs=None, *, fetches=False):
    """Run a hospital's gateway."""
    client = await hospital.net.client(hospital.index)
    opened = Opened(client, hospital.vault, hospital.signer, hospital.store, hospital.net.genesis)
    async with site.running(
        config_of(hospital, pacs, fetches=fetches), opened, log_level=logging.DEBUG
    ) as gateway:
        yield gateway


@asynccontextmanager
async def pacs_running():
    """Run a PACS that gives back what it has."""
    pacs = Pacs([ExplicitVRLittleEndian])
    pacs.start()
    try:
        yield pacs
    finally:
        pacs.stop()


async def web(gateway, path):
    """Ask a gateway's DICOMweb as the hospital's own viewer does; return status and body."""
    headers = {"Authorization": f"Bearer {TOKEN}", "Accept": "application/dicom+json"}
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        session.get(gateway.web.url + path) as answer,
    ):
        return answer.status, await answer.read()
