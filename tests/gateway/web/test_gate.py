"""Who is let in: token, Host, Origin, TLS and client certificates; connections are bounded."""

import asyncio
from contextlib import suppress

import pytest

from node.config.model import WebConfig
from node.gateway.web.server import WebServer
from tests.gateway.web.conftest import TOKEN
from tests.imaging.dicom import FILES

VIEWER = "https://viewer.hospital.example"


async def test_no_token_a_wrong_one_and_other_hosts(serve):
    async with serve([FILES / "CT_small.dcm"]) as site:
        assert (await site.get("/studies"))[0] == 200
        status, headers, _ = await site.get("/studies", token=None)
        assert (status, headers["WWW-Authenticate"]) == (401, "Bearer")
        assert (await site.get("/studies", token=TOKEN[:-1] + "x"))[0] == 401
        assert (await site.get("/studies", token="ä"))[0] == 401
        assert (await site.get("/studies", Host="evil.example"))[0] == 403
        assert (await site.get("/studies", Origin="https://evil.example"))[0] == 403
        assert [record.code for record in site.audit.records[1:]] == [
            "unauthorized", "unauthorized", "unauthorized", "host_not_allowed",
            "origin_not_allowed",
        ]  # fmt: skip
        assert TOKEN not in repr(site.server.__dict__)


async def test_a_known_viewer_in_a_browser(serve):
    async with serve([FILES / "CT_small.dcm"], allowed_origins=(VIEWER,)) as site:
        url = site.server.url + "/studies"
        preflight = {"Origin": VIEWER, "Access-Control-Request-Method": "GET"}
        async with site.http.options(url, headers=preflight) as response:
            assert response.status == 204
            assert response.headers["Access-Control-Allow-Origin"] == VIEWER
            assert "Authorization" in response.headers["Access-Control-Allow-Headers"]
        status, headers, _ = await site.get("/studies", Origin=VIEWER)
        assert (status, headers["Access-Control-Allow-Origin"]) == (200, VIEWER)
        assert (await site.get("/studies", token=None, Origin=VIEWER))[0] == 401
        uid = site.holdings.studies()[0].uid
        _, headers, _ = await site.get(f"/studies/{uid}/metadata", Origin=VIEWER)
        assert headers["Access-Control-Allow-Origin"] == VIEWER
        assert headers["Cache-Control"] == "no-store"


async def test_a_request_that_is_none_is_400_and_the_service_stays(serve):
    async with serve() as site:
        reader, writer = await asyncio.open_connection("127.0.0.1", site.server.port)
        writer.write(b"\x16\x03\x01 nonsense\r\n\r\n")
        assert b"400" in await reader.read(100)
        writer.close()
        assert (await site.get("/studies"))[0] == 200
        async with site.http.delete(
            site.server.url + "/studies", headers={"Authorization": f"Bearer {TOKEN}"}
        ) as response:
            assert response.status == 405


async def test_connections_are_bounded(serve):
    async with serve(limits={"connections_max": 4}) as site:
        idle = [await asyncio.open_connection("127.0.0.1", site.server.port) for _ in range(20)]
        async with asyncio.timeout(10):
            for reader, _ in idle[4:]:
                with suppress(ConnectionError):
                    assert await reader.read(1) == b""
        for _, writer in idle:
            writer.close()
    # One record of the flood, not one for each.
    assert [record.code for record in site.audit.records] == ["too_many_connections"]


def test_a_server_that_others_reach_needs_tls(tmp_path):
    for settings in (
        {"host": "0.0.0.0"},
        {"host": "0.0.0.0", "allow_remote": True},
        {"tls_client_ca_file": tmp_path / "ca.pem"},
    ):
        with pytest.raises(ValueError, match=r"gateway\.web"):
            WebServer(WebConfig(token_file=tmp_path / "t", **settings), None, None)


async def test_a_port_in_use_is_named(serve, tmp_path):
    async with serve() as site:
        config = WebConfig(token_file=tmp_path / "token", port=site.server.port)
        other = WebServer(config, site.holdings, site.spool)
        with pytest.raises(OSError, match=str(site.server.port)):
            await other.start()
        await other.stop()
