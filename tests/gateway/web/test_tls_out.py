"""Delivery by STOW-RS over TLS: to the server that was meant, known by certificate or by name."""

import asyncio

import pytest

from node.config.model import DicomPeer, GatewayConfig
from node.gateway.deliver import Deliverer
from node.gateway.deliveries import Deliveries, State
from node.gateway.delivering import ways_of
from tests.gateway.pacs import Scrambling
from tests.gateway.web.conftest import TOKEN, serving
from tests.gateway.web.folder import FolderHoldings
from tests.gateway.web.test_tls import settings
from tests.imaging import dicom

STUDY = "1.2.7"


@pytest.fixture
def paths(tmp_path):
    return [dicom.minimal(tmp_path / f"{n}.dcm", f"1.2.7.1.{n}", STUDY) for n in range(3)]


@pytest.fixture
def deliver(tmp_path, paths):
    """Return a function that delivers the study to a server, and returns what became of it."""

    async def run(site, *, host="127.0.0.1", pinned=None, trust=None, own=None):
        authorization = tmp_path / "authorization"
        authorization.write_text(f"Bearer {TOKEN}")
        authorization.chmod(0o600)
        peer = DicomPeer(
            ae_title="PACS",
            certificate_file=pinned,
            web_url=site.server.url.replace("127.0.0.1", host),
            web_authorization_file=authorization,
        )
        config = GatewayConfig(
            spool_dir=tmp_path,
            tls_trust_file=trust,
            tls_certificate_file=own and own.with_suffix(".pem"),
            tls_key_file=own and own.with_suffix(".key"),
            peers=(peer,),
        )
        deliveries = Deliveries(tmp_path / "deliveries", Scrambling())
        try:
            deliverer = Deliverer(
                deliveries,
                FolderHoldings(paths),
                ways_of(config),
                tmp_path / "work",
                audit=lambda _: None,
            )
            number = deliverer.submit(STUDY, "PACS")
            await asyncio.to_thread(deliverer.run_once)
            return deliverer.progress(number)
        finally:
            deliveries.close()

    return run


@pytest.fixture
def pacs(tmp_path, keys, paths):
    """Return a context manager that serves DICOMweb over TLS, and gives the study to who asks."""
    folder = tmp_path / "pacs"
    folder.mkdir()
    return lambda **more: serving(folder, paths, **settings(keys, **more))


async def stored(site):
    return await asyncio.to_thread(site.spool.holds, [f"1.2.7.1.{n}" for n in range(3)])


async def test_a_server_known_by_its_certificate(pacs, keys, deliver):
    async with pacs() as site:
        # Its name is not looked at: "localhost" does not stand in the certificate.
        progress = await deliver(site, host="localhost", pinned=keys / "server.pem")
        assert (progress.state, progress.verified) == (State.DONE, 3)
        assert all(await stored(site))


async def test_a_server_known_by_authority_and_name_that_demands_our_certificate(
    pacs, keys, deliver
):
    more = {"tls_client_ca_file": keys / "authority.pem"}
    async with pacs(**more) as site:
        progress = await deliver(site, trust=keys / "server.pem", own=keys / "client")
        assert (progress.state, progress.verified) == (State.DONE, 3)


@pytest.mark.parametrize(
    ("known", "reason"),
    [
        ({}, "its certificate is not trusted here"),
        ({"pinned": "client.pem"}, "its certificate is not trusted here"),
        ({"trust": "server.pem", "host": "localhost"}, "its certificate is not trusted here"),
        ({"pinned": "server.pem", "demands": True}, "take our certificate"),
        ({"pinned": "server.pem", "demands": True, "own": "server"}, "take our certificate"),
    ],
)
async def test_a_server_that_is_not_the_one_or_does_not_know_us_gets_nothing(
    pacs, keys, deliver, known, reason
):
    more = {"tls_client_ca_file": keys / "authority.pem"} if known.pop("demands", False) else {}
    known = {name: value if name == "host" else keys / value for name, value in known.items()}
    async with pacs(**more) as site:
        progress = await deliver(site, **known)
        assert progress.state is State.WAITING
        assert reason in progress.reason
        assert not any(await stored(site))
