"""A real DICOMweb server on loopback, over a folder of files and a real spool."""

import asyncio
import datetime
import ipaddress
import warnings
from contextlib import asynccontextmanager

import aiohttp
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from dicomweb_client.api import DICOMwebClient
from dicomweb_client.session_utils import create_session

from node.config.model import WebConfig, WebLimits
from node.gateway.spool import Quota, Spool
from node.gateway.web.server import WebServer
from tests.gateway.web.folder import FolderHoldings

TOKEN, OUTSIDE = "t" * 43, "o" * 43
QUOTA = Quota(disk_reserve_bytes=0)


class Ledger:
    """Keeps the audit records."""

    def __init__(self):
        self.records = []

    async def record(self, access):
        self.records.append(access)
        return True


class Site:
    """One server and ways to talk to it."""

    def __init__(self, server, holdings, spool, audit, http):
        self.server, self.holdings, self.spool = server, holdings, spool
        self.audit, self.http = audit, http
        session = create_session()
        session.headers["Authorization"] = f"Bearer {TOKEN}"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._client = DICOMwebClient(server.url, session=session)
            self._client.set_http_retry_params(retry=False)

    async def ask(self, name, *arguments, **options):
        """Call a method of dicomweb-client, which blocks."""

        def call():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return getattr(self._client, name)(*arguments, **options)

        return await asyncio.to_thread(call)

    async def get(self, path, accept=None, token=TOKEN, **headers):
        """Return status, headers and body."""
        if token:
            headers["Authorization"] = f"Bearer {token}"
        if accept:
            headers["Accept"] = accept
        async with self.http.get(self.server.url + path, headers=headers) as response:
            return response.status, response.headers, await response.read()

    async def post(self, path, body, content_type, token=TOKEN, **headers):
        headers |= {"Authorization": f"Bearer {token}", "Content-Type": content_type}
        url = self.server.url + path
        async with self.http.post(url, data=body, headers=headers) as response:
            return response.status, response.headers, await response.read()


@asynccontextmanager
async def serving(folder, paths=(), quota=QUOTA, spool=None, holdings=None, **settings):
    (folder / "token").write_text(TOKEN)
    (folder / "outside").write_text(OUTSIDE)
    for name in ("token", "outside"):
        (folder / name).chmod(0o600)
    holdings = FolderHoldings(paths) if holdings is None else holdings
    real = spool is None
    spool = Spool(folder / "spool", quota) if real else spool
    audit = Ledger()
    limits = WebLimits(**settings.pop("limits", {}))
    config = WebConfig(
        token_file=folder / "token",
        outside_token_file=folder / "outside",
        port=0,
        limits=limits,
        **settings,
    )
    server = WebServer(config, holdings, spool, audit)
    await server.start()
    try:
        async with aiohttp.ClientSession() as http:
            yield Site(server, holdings, spool, audit, http)
    finally:
        await server.stop()
        if real:
            spool.close()


@pytest.fixture
def serve(tmp_path):
    """Return a context manager that serves files; see `serving`."""
    return lambda paths=(), **settings: serving(tmp_path, paths, **settings)


def _write(path, certificate, private):
    path.with_suffix(".pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    path.with_suffix(".key").write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )


@pytest.fixture(scope="session")
def keys(tmp_path_factory):
    """Certificates of a server, of an authority, and of a client that it signed."""
    folder = tmp_path_factory.mktemp("tls")
    now = datetime.datetime.now(datetime.UTC)
    made = {}
    for name, issuer in (("server", "server"), ("authority", "authority"), ("client", "authority")):
        private = ec.generate_private_key(ec.SECP256R1())
        made[name] = private
        subject, issued = (
            x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, word)]) for word in (name, issuer)
        )
        address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issued)
            .public_key(private.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(name == "authority", None), critical=True)
            .add_extension(x509.SubjectAlternativeName([address]), critical=False)
            .sign(made[issuer], hashes.SHA256())
        )
        _write(folder / name, certificate, private)
    return folder
