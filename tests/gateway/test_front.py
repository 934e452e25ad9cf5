"""The door: who may come in, and what a hostile peer meets; the service is up after each."""

import asyncio
import os
import socket
import ssl
import struct
import zlib
from pathlib import Path

import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st
from pydicom.encaps import encapsulate, generate_frames
from pynetdicom import build_context

from node.gateway import pdu
from node.gateway.dialing import Peer
from node.gateway.front import Front, FrontRules, _Passage
from node.gateway.pdu import InvalidPdu
from node.gateway.spool import Quota, Spool
from node.gateway.tls import server_context
from tests.gateway import dimse
from tests.gateway.dimse import SENDER, TITLE, VERIFICATION, in_thread, opened_door
from tests.gateway.identities import Identity
from tests.imaging import dicom, vendor
from tests.imaging.test_codestream import swollen

MEMORY_MAX = 256 << 20


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "spool"


def memory_peak(pid):
    """Return the most memory that the process has had, in bytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


async def echoes(door):
    association = await in_thread(dimse.associate, door.port, [build_context(VERIFICATION)])
    if not association.is_established:
        return False
    status = await in_thread(association.send_c_echo)
    await in_thread(association.release)
    return status.get("Status") == 0


async def answer_to(port, data):
    """Send bytes and return all that comes back before the connection ends."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    try:
        async with asyncio.timeout(20):
            return await reader.read(1_000)
    except ConnectionResetError:
        return b""
    finally:
        writer.close()


def request(called=TITLE, calling=SENDER, items=b""):
    """Return an A-ASSOCIATE-RQ."""
    titles = called.ljust(16).encode() + calling.ljust(16).encode()
    body = struct.pack(">HH", 1, 0) + titles + bytes(32) + items
    return struct.pack(">BBL", 1, 0, len(body)) + body


@pytest.mark.parametrize(
    ("title", "called", "code"),
    [("STRANGER", TITLE, "unlisted_ae"), (SENDER, "OTHER", "unknown_called_ae")],
)
async def test_unlisted_titles_are_rejected_and_audited(folder, title, called, code):
    async with opened_door(folder) as door:
        contexts = [build_context(VERIFICATION)]
        association = await in_thread(
            dimse.associate, door.port, contexts, title=title, called=called
        )
        assert not association.is_established
        assert door.codes() == [code]
        assert await echoes(door)


async def test_a_rejection_reaches_the_peer_before_the_connection_ends(folder):
    async with opened_door(folder) as door:
        reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
        writer.write(request(calling="STRANGER"))
        rejected = pdu.rejection(pdu.Rejection.UNKNOWN_CALLING)
        assert await reader.readexactly(10) == rejected
        writer.close()


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"\x01\x00\xff\xff\xff\xff", "pdu_length"),  # 4 GiB are announced
        (b"\x04\x00\x00\x00\x00\x10", "not_dicom"),
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "not_dicom"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01", "not_dicom"),  # TLS at a clear port
        (b"\x01\x00\x00\x00\x00\x10" + bytes(16), "pdu_length"),
        (request(calling="\xff\xfe"), "unlisted_ae"),
        (request(calling=""), "unlisted_ae"),
    ],
    ids=["4GiB", "data-first", "http", "tls", "short", "binary-title", "no-title"],
)
async def test_a_wrong_first_pdu_ends_the_connection(folder, data, code):
    async with opened_door(folder) as door:
        await answer_to(door.port, data)
        assert door.codes() in ([code], ["ae_title"])
        assert await echoes(door)
        assert memory_peak(door.receiving.pid) < MEMORY_MAX


async def test_a_huge_pdu_after_the_association_ends_it_in_little_memory(folder):
    async with opened_door(folder) as door:
        association = await in_thread(dimse.associate, door.port, [build_context(VERIFICATION)])
        raw = association.dul.socket.socket
        raw.sendall(b"\x04\x00\xff\xff\xff\xff" + bytes(1_000))
        async with asyncio.timeout(20):
            while not door.codes():
                await asyncio.sleep(0)
        await in_thread(association.join, 20)
        assert door.codes() == ["pdu_length"]
        assert await echoes(door)
        assert memory_peak(door.receiving.pid) < MEMORY_MAX


async def test_a_thousand_silent_connections_do_not_keep_others_out_for_long(folder):
    limits = {"connections_max": 50, "arrival_seconds": 1.0}
    async with opened_door(folder, **limits) as door:
        silent = []
        try:
            for _ in range(1_000):
                silent.append(await in_thread(socket.create_connection, ("127.0.0.1", door.port)))
            async with asyncio.timeout(30):
                while not await echoes(door):
                    pass
        finally:
            for each in silent:
                each.close()
        assert sorted(set(door.codes())) == ["too_many_connections", "too_slow"]
        assert len(door.codes()) == 2  # one record of each, not a thousand
        assert memory_peak(door.receiving.pid) < MEMORY_MAX


async def test_more_associations_than_allowed_are_rejected_and_the_others_go_on(folder):
    async with opened_door(folder, associations_max=2) as door:
        contexts = [build_context(VERIFICATION)]
        first = [await in_thread(dimse.associate, door.port, contexts) for _ in range(2)]
        third = await in_thread(dimse.associate, door.port, contexts)
        assert not third.is_established
        for association in first:
            assert (await in_thread(association.send_c_echo)).Status == 0
            await in_thread(association.release)
        assert door.codes() == ["too_many_associations"]
        async with asyncio.timeout(20):
            while not await echoes(door):
                pass


async def passage(idle_seconds):
    """Return a passage between two socket pairs, running, with the outer and the inner end."""
    outer, outer_theirs = socket.socketpair()
    inner, inner_theirs = socket.socketpair()
    streams = [
        *await asyncio.open_connection(sock=outer_theirs),
        *await asyncio.open_connection(sock=inner_theirs),
    ]
    running = asyncio.create_task(_Passage(2**17, idle_seconds).copy_both(*streams))
    ends = [await asyncio.open_connection(sock=end) for end in (outer, inner)]
    return running, *ends


async def test_a_peer_may_be_silent_while_we_send_but_not_when_nobody_does():
    running, outer, inner = await passage(idle_seconds=1.0)
    loop = asyncio.get_running_loop()
    began = loop.time()
    while loop.time() < began + 2.0:
        inner[1].write(b"x")
        await outer[0].readexactly(1)
    assert not running.done()
    with pytest.raises(TimeoutError):
        await running
    outer[1].close()
    inner[1].close()


async def test_a_pdu_that_comes_by_drops_is_cut_off_although_we_send():
    running, outer, inner = await passage(idle_seconds=0.5)
    outer[1].write(b"\x04\x00\x00\x00\xff\x00")
    while not running.done():
        inner[1].write(b"x")
        outer[1].write(b"x")
        await asyncio.wait([running], timeout=0.01)
    with pytest.raises(TimeoutError):
        await running
    outer[1].close()
    inner[1].close()


def command(fields):
    """Return an encoded command set, its group length first."""
    body = b"".join(
        struct.pack("<HHL", 0, element, len(value)) + value for element, value in fields
    )
    return struct.pack("<HHLL", 0, 0, 4, len(body)) + body


def fragment(context, control, data):
    pdv = struct.pack(">LBB", len(data) + 2, context, control) + data
    return struct.pack(">BBL", 4, 0, len(pdv)) + pdv


def uid(text):
    data = text.encode()
    return data + b"\0" * (len(data) % 2)


async def test_a_command_that_never_ends_is_cut_off_in_little_memory(folder):
    async with opened_door(folder) as door:
        association = await in_thread(dimse.associate, door.port, [build_context(VERIFICATION)])
        raw = association.dul.socket.socket
        piece = fragment(1, 0x01, bytes(60_000))
        sent = 0
        try:
            for _ in range(5_000):
                await in_thread(raw.sendall, piece)
                sent += len(piece)
        except OSError:
            pass
        assert sent < 100 << 20
        await in_thread(association.join, 20)
        assert await echoes(door)
        assert memory_peak(door.receiving.pid) < MEMORY_MAX


async def test_a_data_set_beyond_the_limit_is_cut_off_and_leaves_no_file(folder):
    quota = Quota(disk_reserve_bytes=1, instance_bytes_max=1 << 20)
    storage = "1.2.840.10008.5.1.4.1.1.7"
    async with opened_door(folder, quota=quota) as door:
        association = await in_thread(
            dimse.associate, door.port, [build_context(storage), build_context(VERIFICATION)]
        )
        raw = association.dul.socket.socket
        fields = [
            (0x0002, uid(storage)),
            (0x0100, struct.pack("<H", 1)),
            (0x0110, struct.pack("<H", 1)),
            (0x0700, struct.pack("<H", 0)),
            (0x0800, struct.pack("<H", 1)),
            (0x1000, uid("1.2.3")),
        ]
        await in_thread(raw.sendall, fragment(1, 0x03, command(fields)))
        piece = fragment(1, 0x00, bytes(100_000))
        with pytest.raises(ConnectionError):
            await in_thread(raw.sendall, piece * 5_000)  # far beyond what a file may have
        await in_thread(association.join, 20)
        async with asyncio.timeout(20):
            while [p for p in (folder / "incoming").rglob("*") if p.is_file()]:
                await asyncio.sleep(0.01)
        assert await echoes(door)
        assert memory_peak(door.receiving.pid) < MEMORY_MAX


async def test_a_broken_transfer_leaves_no_file(folder, tmp_path):
    pixels = dicom.np.zeros((2_000, 1_000), "<u2")
    path = dicom.minimal(tmp_path / "a", pixels=pixels)
    storage = "1.2.840.10008.5.1.4.1.1.7"
    async with opened_door(folder) as door:
        # Somebody else stays, so that nothing is removed for want of associations alone.
        other = await in_thread(dimse.associate, door.port, [build_context(VERIFICATION)])
        association = await in_thread(dimse.associate, door.port, dimse.contexts_of([path]))
        raw = association.dul.socket.socket
        fields = [
            (0x0002, uid(storage)),
            (0x0100, struct.pack("<H", 1)),
            (0x0110, struct.pack("<H", 1)),
            (0x0700, struct.pack("<H", 0)),
            (0x0800, struct.pack("<H", 1)),
            (0x1000, uid("1.2.3")),
        ]
        await in_thread(raw.sendall, fragment(1, 0x03, command(fields)))
        await in_thread(raw.sendall, fragment(1, 0x00, bytes(50_000)))
        incoming = folder / "incoming"
        async with asyncio.timeout(20):
            while not [p for p in incoming.rglob("*") if p.is_file()]:
                await asyncio.sleep(0.01)
        raw.shutdown(socket.SHUT_RDWR)
        async with asyncio.timeout(20):
            while [p for p in incoming.rglob("*") if p.is_file()]:
                await asyncio.sleep(0.01)
        assert (await in_thread(other.send_c_echo)).Status == 0
        await in_thread(other.release)


KINDS = {
    "bomb": "bomb",
    "nested": "limit",
    "uid": "bad_uid",
    "truncated": "truncated",
    "rows": "pixels",  # more rows than there are samples
    "bits": "pixels",  # bits allocated that no image has
    "rle-broken": "decoder",
    "rle-bomb": "pixels",
    "jpeg-2000-bomb": "pixels",  # 60,000 by 60,000 samples are announced
    "jpeg-ls-bomb": "pixels",
    "jpeg-lossless-bomb": "pixels",
    "jpeg-lossless-broken": "decoder",
    "jpeg-ls-broken": "decoder",
    "jpeg-2000-broken": "decoder",
    "fragment": "truncated",  # one that is longer than the file
    "fragments": "malformed",  # no delimiter at their end
}


@pytest.mark.parametrize("kind", KINDS)
async def test_hostile_instances_are_refused_in_little_memory(folder, tmp_path, kind):
    path = hostile(kind, tmp_path / kind)
    async with opened_door(folder) as door:
        (status,) = await in_thread(dimse.send, door.port, [path])
        assert status == 0xC000
        assert await echoes(door)
        assert memory_peak(door.receiving.pid) < MEMORY_MAX
    spool = Spool(folder, Quota(disk_reserve_bytes=1))
    (aside,) = spool.asides()
    events = spool.index.events()
    spool.close()
    assert aside.code == KINDS[kind]
    assert len(aside.reason.split()) > 3
    assert len(events) == 1


def hostile(kind, path):
    """Write an instance that can be sent, and should not be taken."""
    if kind.startswith(("rle", "jpeg", "fragment")):
        return hostile_frames(kind, path)
    dicom.minimal(path)
    loaded = dicom.pydicom.dcmread(path)
    if kind in ("rows", "bits"):
        loaded.Rows = 30_000 if kind == "rows" else loaded.Rows
        loaded.BitsAllocated = 13 if kind == "bits" else 16
        loaded.save_as(path)
        return path
    if kind == "uid":
        loaded.StudyInstanceUID = "../../../etc/passwd"
        loaded.save_as(path)
        return path
    if kind == "truncated":
        content = path.read_bytes()
        path.write_bytes(content[:-7])
        return path
    meta = path.read_bytes()
    with open(path, "rb") as file:
        dicom.pydicom.filereader.read_preamble(file, False)
        dicom.pydicom.filereader._read_file_meta_info(file)
        start = file.tell()
    if kind == "nested":
        item = b"\xfe\xff\x00\xe0\xff\xff\xff\xff"
        sequence = struct.pack("<HH", 0x0040, 0xA730) + b"SQ\0\0\xff\xff\xff\xff"
        path.write_bytes(meta[:start] + (sequence + item) * 100_000)
        return path
    loaded.file_meta.TransferSyntaxUID = dicom.DeflatedExplicitVRLittleEndian
    loaded.save_as(path, implicit_vr=False, little_endian=True)
    with open(path, "rb") as file:
        dicom.pydicom.filereader.read_preamble(file, False)
        dicom.pydicom.filereader._read_file_meta_info(file)
        start = file.tell()
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    zeros = bytes(1 << 20)
    bomb = b"".join(squeeze.compress(zeros) for _ in range(1_000)) + squeeze.flush()
    path.write_bytes(path.read_bytes()[:start] + bomb)
    return path


def hostile_frames(kind, path):
    """Write an image of two compressed frames, the second of which is not what it should be."""
    codec, _, fault = kind.rpartition("-")
    made = vendor.generate(path.with_name("vendor"))
    loaded = dicom.pydicom.dcmread(made[f"mr-{codec or 'rle'}"])
    first, second = generate_frames(loaded.PixelData, number_of_frames=2)
    if fault == "bomb":
        second = swollen(f"mr-{codec}", second)
    elif fault == "broken":
        second = second[: len(second) // 3]
    loaded.PixelData = encapsulate([first, second])
    if kind == "fragment":
        at = loaded.PixelData.rindex(second) - 4
        huge = (2**31).to_bytes(4, "little")
        loaded.PixelData = loaded.PixelData[:at] + huge + loaded.PixelData[at + 4 :]
    loaded.save_as(path)
    if kind == "fragments":
        path.write_bytes(path.read_bytes()[:-8] + struct.pack("<HHL", 0x7FE0, 0x0011, 0))
    return path


async def test_only_a_trusted_peer_under_its_own_title_passes_over_tls(folder, tmp_path):
    server, trusted, second, stranger = (
        Identity(tmp_path, name) for name in ("server", "trusted", "second", "stranger")
    )
    trust = trusted.certificate.read_text() + second.certificate.read_text()
    tls = server_context(server.certificate, server.key, trust)
    peers = [Peer(SENDER), Peer("SECOND")]
    pins = {SENDER: trusted.digest, "SECOND": second.digest}
    contexts = [build_context(VERIFICATION)]

    async def tries(port, client_tls, title=SENDER):
        association = await in_thread(dimse.associate, port, contexts, title=title, tls=client_tls)
        is_in = association.is_established
        if is_in:
            assert (await in_thread(association.send_c_echo)).Status == 0
            await in_thread(association.release)
        return is_in

    async with opened_door(folder, peers=peers, tls=tls, pins=pins) as door:
        assert await tries(door.port, trusted.client(server))
        assert await tries(door.port, second.client(server), "SECOND")
        assert door.codes() == []
        assert not await tries(door.port, second.client(server))  # under another's title
        assert not await tries(door.port, stranger.client(server))
        assert not await tries(door.port, None)  # in clear
        anonymous = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        anonymous.check_hostname = False
        anonymous.load_verify_locations(server.certificate)
        assert not await tries(door.port, anonymous)
        assert not await tries(door.port, trusted.client(server), "UNLISTED")
        assert await tries(door.port, trusted.client(server))
    assert set(door.codes()) == {"other_certificate", "tls", "unlisted_ae"}


def test_every_handshake_succeeds_under_the_loop_that_the_gateway_runs_in(tmp_path):
    """A handshake that began after the first read lost the client's first bytes, now and then."""
    server, trusted = Identity(tmp_path, "server"), Identity(tmp_path, "trusted")

    def shake(port):
        with socket.create_connection(("127.0.0.1", port), 3) as plain:
            trusted.client(server).wrap_socket(plain).close()

    async def visit():
        rules = FrontRules(TITLE, {}, idle_seconds=2, arrival_seconds=2)
        front = Front(rules, lambda *_: False, lambda *_: None, server.serving(trusted))
        await front.start("127.0.0.1", 0)
        await asyncio.gather(*(in_thread(shake, front.port) for _ in range(24)))
        await front.stop()

    uvloop.run(visit())


@given(st.binary(max_size=8))
def test_any_head_is_read_or_refused(data):
    for read in (pdu.first_head, lambda head: pdu.later_head(head, 2**17)):
        try:
            head = read(data)
        except InvalidPdu:
            continue
        assert head.length <= pdu.REQUEST_BYTES_MAX


@given(st.binary(max_size=100))
def test_any_request_is_read_or_refused(data):
    try:
        who = pdu.callers(data)
    except InvalidPdu:
        return
    assert len(who.called) <= 16
    assert (who.called + who.calling).isprintable()


def test_a_rejection_says_what_the_standard_says():
    # PS3.8 table 9-21: rejected-permanent, service user, calling AE title not recognised.
    assert pdu.rejection(pdu.Rejection.UNKNOWN_CALLING) == bytes.fromhex("03000000000400010103")


def test_the_door_does_not_hold_descriptors(folder):
    async def visit():
        async with opened_door(folder) as door:
            before = len(os.listdir("/proc/self/fd"))
            for _ in range(5):
                assert await echoes(door)
            async with asyncio.timeout(20):
                while len(os.listdir("/proc/self/fd")) > before:
                    await asyncio.sleep(0)

    asyncio.run(visit())


def test_no_first_byte_of_tls_is_missed(tmp_path):
    """The peer's hello may be here before we look; uvloop, which serves, has read it by then."""
    server, peer = Identity(tmp_path, "server"), Identity(tmp_path, "peer")
    tls = server_context(server.certificate, server.key, peer.certificate.read_text())

    def hello(port):
        client = peer.client(server).wrap_socket(
            socket.create_connection(("127.0.0.1", port)), do_handshake_on_connect=False
        )
        client.setblocking(False)
        with pytest.raises(ssl.SSLWantReadError):
            client.do_handshake()
        client.settimeout(20)
        return client

    async def knock():
        front = Front(FrontRules(TITLE, {}), lambda *_: False, lambda *_: None, tls)
        await front.start("127.0.0.1", 0)
        try:
            for _ in range(20):
                with hello(front.port) as client:
                    await in_thread(client.do_handshake)
        finally:
            await front.stop()

    uvloop.run(knock())
