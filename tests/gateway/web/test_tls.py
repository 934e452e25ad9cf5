"""TLS: a trusting client is served with a token; with an authority, a certificate is enough."""

import ssl

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


async def test_files_that_cannot_be_used_are_named(serve, keys, tmp_path):
    bad = settings(keys) | {"tls_key_file": tmp_path / "nothing"}
    with pytest.raises(OSError, match=r"DICOMweb cannot use .*server\.pem with .*nothing"):
        async with serve(**bad):
            pass
