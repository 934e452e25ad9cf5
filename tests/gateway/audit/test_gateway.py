"""The whole gateway and its trail: what is recorded, of whom, and before what."""

import asyncio
import contextlib
import socket
import struct
from contextlib import asynccontextmanager
from dataclasses import replace

import aiohttp
import pytest
from pynetdicom import build_context

from node.config import DicomPeer, GatewayConfig, GatewayLimits
from node.config.model import AuditConfig, WebConfig, WebLimits
from node.gateway.audit.chain import verify
from node.gateway.audit.errors import TrailFull
from node.gateway.audit.trail import Trail
from node.gateway.daemon import Gateway, Parts
from node.imaging.vault import create_vault
from node.studies import Signer
from tests.gateway import dimse
from tests.gateway.audit.conftest import records
from tests.gateway.dimse import SENDER, VERIFICATION, in_thread
from tests.gateway.flow_world import until
from tests.gateway.test_dimse_out import GET, identifier
from tests.gateway.test_front import command, fragment, hostile, request, uid
from tests.gateway.test_gateway import kept, new_files
from tests.gateway.web.test_stow import KIND, message
from tests.imaging import dicom
from tests.imaging.test_hostile import RLE, encapsulated, image

TOKEN = "t" * 43
STUDY = "1.2.826.0.1.3680043.2"
STORAGE = "1.2.840.10008.5.1.4.1.1.7"
QUIET = {"trail_began", "started", "stopped"}


@pytest.fixture
def config(tmp_path):
    (tmp_path / "token").write_text(TOKEN)
    (tmp_path / "token").chmod(0o600)
    return GatewayConfig(
        spool_dir=tmp_path / "spool",
        listen_port=0,
        peers=(DicomPeer(ae_title=SENDER),),
        quiet_ms=300,
        limits=GatewayLimits(disk_reserve_bytes=2**20, instance_bytes_max=2**26, connections_max=8),
        web=WebConfig(token_file=tmp_path / "token", port=0, limits=WebLimits(idle_timeout_ms=150)),
    )


class Site:
    """A gateway, and ways to talk to it and to read its trail."""

    def __init__(self, gateway, http, folder):
        self.gateway, self.http, self.folder = gateway, http, folder

    @property
    def port(self):
        return self.gateway.front.port

    def acts(self):
        return [record for record in records(self.folder) if record.kind not in QUIET]

    async def get(self, path, **headers):
        headers = {"Authorization": f"Bearer {TOKEN}", **headers}
        async with self.http.get(self.gateway.web.url + path, headers=headers) as response:
            return response.status, await response.read()

    async def post(self, body, kind=KIND):
        headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": kind}
        url = self.gateway.web.url + "/studies"
        async with self.http.post(url, data=body, headers=headers) as response:
            return response.status


@asynccontextmanager
async def serving(net, config, opened, tmp_path):
    signer = Signer(net.member_key(0), net.layout.configs[0].institution, net.genesis.chain_id)
    with create_vault(tmp_path / "vault.db", "passphrase") as vault:
        gateway = Gateway(Parts(config, await net.client(0), vault, signer, opened))
        async with gateway.running(), aiohttp.ClientSession() as http:
            yield Site(gateway, http, config.spool_dir / "audit")


def get_study(port):
    """Fetch the study by C-GET; return how many instances came and the last status."""
    association = dimse.associate(
        port,
        [build_context(GET), build_context(STORAGE)],
        handlers=[],
    )
    try:
        asked = identifier("STUDY", StudyInstanceUID=STUDY)
        return [status.get("Status") for status, _ in association.send_c_get(asked, GET)][-1]
    finally:
        association.release()


async def test_the_life_of_a_study_is_recorded_by_its_id_and_never_by_its_uid(
    testnet,
    config,
    store,
    tmp_path,
):
    paths = new_files(tmp_path, 3)
    async with testnet(validators=1) as net, serving(net, config, store, tmp_path) as site:
        assert await in_thread(dimse.send, site.port, paths) == [0, 0, 0]
        await kept(site.gateway, store, 1)
        (study_id,) = store.studies()
        await until(lambda: site.gateway.holdings.ids_of(STUDY))
        await in_thread(get_study, site.port)
        await until(lambda: [a.kind for a in site.acts()][-1] == "retrieved")
        assert (await site.get("/studies"))[0] == 200
        everything = f"/studies/{STUDY}"
        accept = 'multipart/related; type="application/dicom"; transfer-syntax=*'
        assert (await site.get(everything, Accept=accept))[0] == 200
        assert (await site.get("/studies", Authorization="Bearer x"))[0] == 401
        acts = site.acts()
        site.gateway.forget(study_id)
        found = [(a.kind, a.text("who"), a.names("studies"), a.number("instances")) for a in acts]
        own = [study_id.hex()]
        assert found == [
            ("receiving", SENDER, [], 0),
            ("registered", "", own, 3),
            ("retrieving", SENDER, own, 0),
            ("retrieved", SENDER, own, acts[3].number("instances")),
            ("searched", "local", [], 0),
            ("retrieved", "local", own, 3),
            ("web_refused", "", [], 0),
        ]
        assert acts[0].text("arriving") == acts[1].text("arriving") != ""
        assert (acts[6].text("where"), acts[6].text("code")) == ("127.0.0.1", "unauthorized")
    everything = b"".join(path.read_bytes() for path in site.folder.glob("*.log"))
    assert STUDY.encode() not in everything
    kinds = [record.kind for record in records(site.folder)]
    assert kinds[:2] == ["trail_began", "started"]
    assert kinds[-2:] == ["erased", "stopped"]
    assert verify(site.folder).problems is None


async def test_uids_are_recorded_where_the_config_wants_them(
    testnet,
    config,
    store,
    tmp_path,
):
    config = replace(config, audit=AuditConfig(study_uids=True, folder=tmp_path / "elsewhere"))
    async with testnet(validators=1) as net, serving(net, config, store, tmp_path) as site:
        await in_thread(dimse.send, site.port, new_files(tmp_path, 1))
        await kept(site.gateway, store, 1)
        await until(lambda: site.gateway.holdings.ids_of(STUDY))
        assert (await site.get(f"/studies/{STUDY}/metadata"))[0] == 200
    last = [r for r in records(tmp_path / "elsewhere") if r.kind == "retrieved"][-1]
    assert last.names("study_uids") == [STUDY]


async def test_nothing_is_taken_or_given_that_cannot_be_recorded(
    testnet,
    config,
    store,
    tmp_path,
    monkeypatch,
    caplog,
):
    def full(trail, act):
        raise TrailFull("the audit trail is full")

    async with testnet(validators=1) as net, serving(net, config, store, tmp_path) as site:
        await in_thread(dimse.send, site.port, new_files(tmp_path, 2))
        await kept(site.gateway, store, 1)
        await until(lambda: site.gateway.holdings.ids_of(STUDY))
        with monkeypatch.context() as patched:
            patched.setattr(Trail, "append", full)
            accept = 'multipart/related; type="application/dicom"; transfer-syntax=*'
            status, body = await site.get(f"/studies/{STUDY}", Accept=accept)
            assert (status, b"not_recorded" in body, b"DICM" in body) == (503, True, False)
            assert (await site.get("/studies"))[0] == 503
            assert await in_thread(get_study, site.port) not in (0, 0xFF00)
            fresh = [path.read_bytes() for path in new_files(tmp_path, 1, study="1.2.9")]
            assert await site.post(message(fresh)) == 503
        assert "it cannot be audited" in caplog.text
        assert (await site.get("/studies"))[0] == 200
    assert "trail_resumed" in [record.kind for record in records(site.folder)]


def broken_rle(path):
    good = struct.pack("<16L", 1, 64, *[0] * 14) + b"\x03abcd\0"
    data = image(frames=b"2 ") + encapsulated(good, b"\xff" * 66)
    return dicom.raw_file(path, data, RLE)


def wrong_size(path):
    return dicom.minimal(path, Rows=500, Columns=500)


async def send_huge_pdu(site):
    association = await in_thread(dimse.associate, site.port, [build_context(VERIFICATION)])
    with contextlib.suppress(OSError):
        association.dul.socket.socket.sendall(b"\x04\x00\xff\xff\xff\xff" + bytes(1_000))
    await in_thread(association.join, 20)


async def send_endless_command(site):
    association = await in_thread(dimse.associate, site.port, [build_context(VERIFICATION)])
    raw = association.dul.socket.socket
    piece = fragment(1, 0x01, bytes(60_000))
    with contextlib.suppress(OSError):
        for _ in range(500):
            await in_thread(raw.sendall, piece)
    await in_thread(association.join, 20)


async def send_too_much(site):
    association = await in_thread(dimse.associate, site.port, [build_context(STORAGE)])
    raw = association.dul.socket.socket
    fields = [
        (0x0002, uid(STORAGE)),
        (0x0100, struct.pack("<H", 1)),
        (0x0110, struct.pack("<H", 1)),
        (0x0700, struct.pack("<H", 0)),
        (0x0800, struct.pack("<H", 1)),
        (0x1000, uid("1.2.3")),
    ]
    with contextlib.suppress(OSError):
        await in_thread(raw.sendall, fragment(1, 0x03, command(fields)))
        await in_thread(raw.sendall, fragment(1, 0x00, bytes(120_000)) * 1_300)
    await in_thread(association.join, 20)


async def open_many(site):
    silent = []
    try:
        for _ in range(100):
            silent.append(socket.create_connection(("127.0.0.1", site.port)))
        await until(lambda: site.acts()[-1].text("code") == "too_many_connections")
    finally:
        for each in silent:
            each.close()


async def send_raw(site, data):
    reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
    writer.write(data)
    with contextlib.suppress(ConnectionError):
        await reader.read(1_000)
    writer.close()


async def send_slowly(site):
    reader, writer = await asyncio.open_connection("127.0.0.1", site.gateway.web.port)
    head = (
        "POST /dicom-web/studies HTTP/1.1\r\nHost: localhost\r\n"
        f"Authorization: Bearer {TOKEN}\r\nContent-Type: {KIND}\r\nContent-Length: 9999\r\n\r\n"
    )
    writer.write(head.encode() + b"--b0und\r\n\r\n")
    await reader.read(1_000)
    writer.close()


# What is sent, and the one record that it leaves: requirement 13 of the design.
BY_STORE = {
    "truncated": "truncated", "nested": "limit", "bomb": "bomb", "uid": "bad_uid",
}  # fmt: skip


async def test_each_hostile_input_leaves_one_record(testnet, config, store, tmp_path):
    expected = []

    async def meets(site, sending, kind, code, who=""):
        await sending
        expected.append((kind, code))
        await until(lambda: len(site.acts()) >= len(expected))
        last = site.acts()[-1]
        assert (last.kind, last.text("code")) == expected[-1]
        assert last.outcome == 8
        assert last.text("who") == who

    async with testnet(validators=1) as net, serving(net, config, store, tmp_path) as site:
        for name, code in BY_STORE.items():
            path = hostile(name, tmp_path / name)
            await meets(site, in_thread(dimse.send, site.port, [path]), "refused", code, SENDER)
        parts = {
            "": b"",
            "foreign": b"not DICOM" * 50,
            "decoder": broken_rle(tmp_path / "rle").read_bytes(),
            "pixels": wrong_size(tmp_path / "size").read_bytes(),
        }
        for code, data in parts.items():
            sent = site.post(message([data]))
            code = code or "empty"
            await meets(site, sent, "refused", code, "stow")
        wrong = message([b"x"], boundary="wrong")
        await meets(site, site.post(wrong), "refused", "bad_multipart", "local")
        await meets(site, site.post(message([b"{}"], kind="text/plain")), "refused",
                    "foreign_parts", "local")  # fmt: skip
        await meets(site, send_slowly(site), "refused", "too_slow", "local")
        first = b"\x01\x00\xff\xff\xff\xff"
        await meets(site, send_raw(site, first), "association_refused", "pdu_length")
        stranger = request(calling="STRANGER")
        await meets(site, send_raw(site, stranger), "association_refused", "unlisted_ae")
        await meets(site, send_raw(site, b"GET / HTTP/1.1\r\n\r\n"), "association_refused",
                    "not_dicom")  # fmt: skip
        await meets(site, send_endless_command(site), "connection_ended", "too_much", SENDER)
        await meets(site, send_too_much(site), "connection_ended", "broken_off", SENDER)
        await meets(site, open_many(site), "association_refused", "too_many_connections")
        # The service is up, and none of them left a second record.
        async with asyncio.timeout(20):
            while (await in_thread(echo, site.port)) != 0:
                pass
    found = [(record.kind, record.text("code")) for record in site.acts()]
    assert found == expected


def echo(port):
    association = dimse.associate(port, [build_context(VERIFICATION)])
    if not association.is_established:
        return None
    status = association.send_c_echo().get("Status")
    association.release()
    return status


async def test_a_huge_pdu_within_an_association_leaves_one_record(
    testnet,
    config,
    store,
    tmp_path,
):
    async with testnet(validators=1) as net, serving(net, config, store, tmp_path) as site:
        await send_huge_pdu(site)
        await until(site.acts)
    found = [(record.kind, record.text("code")) for record in site.acts()]
    assert found == [("association_refused", "pdu_length")]
