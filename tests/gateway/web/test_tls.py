"""TLS: a trusting client is served with a token; with an authority, a certificate is enough."""

import asyncio
import ssl
from contextlib import suppress

import aiohttp
import pytest

from tests.imaging.dicom import FILES


def settings(keys, **more):
    return {
        "tls_certificate_file": keys / "server.pem",
        "tls_key_file": keys / "server.key",
        **more,
    }


async def status(site, tls, token):
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    async with site.http.get(site.server.url + "/studies", headers=headers, ssl=tls) as response:
        return response.status


async def test_tls_with_a_token(serve, keys):
    trusting = ssl.create_default_context(cafile=keys / "server.pem")
    async with serve([FILES / "CT_small.dcm"], **settings(keys)) as site:
        assert site.server.url.startswith("https://127.0.0.1:")
        assert await status(site, trusting, "t" * 43) == 200
        assert await status(site, trusting, None) == 401
        with pytest.raises(aiohttp.ClientError):
            await status(site, ssl.create_default_context(), "t" * 43)


async def test_a_certificate_of_the_authority_stands_for_the_token(serve, keys):
    known = ssl.create_default_context(cafile=keys / "server.pem")
    known.load_cert_chain(keys / "client.pem", keys / "client.key")
    stranger = ssl.create_default_context(cafile=keys / "server.pem")
    stranger.load_cert_chain(keys / "server.pem", keys / "server.key")
    anonymous = ssl.create_default_context(cafile=keys / "server.pem")
    more = settings(keys, tls_client_ca_file=keys / "authority.pem")
    async with serve([FILES / "CT_small.dcm"], **more) as site:
        assert await status(site, known, None) == 200
        assert await status(site, known, "wrong") == 401
        for refused in (stranger, anonymous):
            with pytest.raises(aiohttp.ClientError):
                await status(site, refused, "t" * 43)


async def test_connections_are_bounded_from_the_first_moment_on(serve, keys):
    """Those that never finish, or begin, a handshake count as well."""
    trusting = ssl.create_default_context(cafile=keys / "server.pem")
    more = settings(keys, limits={"connections_max": 4})
    async with serve([FILES / "CT_small.dcm"], **more) as site:
        idle = [await asyncio.open_connection("127.0.0.1", site.server.port) for _ in range(20)]
        async with asyncio.timeout(10):
            for reader, _ in idle[4:]:
                with suppress(ConnectionError):
                    assert await reader.read(1) == b""
            assert not any(reader.at_eof() for reader, _ in idle[:4])
            for _, writer in idle:
                writer.close()
            while True:  # until it has seen that they are gone
                with suppress(aiohttp.ClientError):
                    assert await status(site, trusting, "t" * 43) == 200
                    break
    assert site.audit.records[0].code == "too_many_connections"


async def test_a_handshake_that_does_not_go_on_is_ended(serve, keys):
    more = settings(keys, limits={"connections_max": 1, "idle_timeout_ms": 100})
    async with serve(**more) as site, asyncio.timeout(10):
        reader, writer = await asyncio.open_connection("127.0.0.1", site.server.port)
        with suppress(ConnectionError):
            assert await reader.read(1) == b""
        writer.close()


async def test_a_server_stops_in_the_midst_of_a_handshake(serve, keys):
    async with serve(**settings(keys)) as site:
        reader, writer = await asyncio.open_connection("127.0.0.1", site.server.port)
    async with asyncio.timeout(10):
        with suppress(ConnectionError):
            assert await reader.read(1) == b""
    writer.close()


async def test_files_that_cannot_be_used_are_named(serve, keys, tmp_path):
    bad = settings(keys) | {"tls_key_file": tmp_path / "nothing"}
    with pytest.raises(OSError, match=r"DICOMweb cannot use .*server\.pem with .*nothing"):
        async with serve(**bad):
            pass
