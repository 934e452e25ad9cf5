"""STOW-RS against a real server and a real spool: durable, bounded, each instance for itself."""

import asyncio
import json
import resource

import numpy as np
import pydicom
import pytest

from node.gateway.outcomes import Accepted
from node.gateway.spool import Quota
from tests.gateway.web.conftest import TOKEN
from tests.imaging.dicom import FILES, minimal

KIND = 'multipart/related; type="application/dicom"; boundary=b0und'


def message(bodies, boundary="b0und", kind="application/dicom"):
    head = f"\r\n--{boundary}\r\nContent-Type: {kind}\r\n\r\n".encode()
    return b"".join(head + body for body in bodies) + f"\r\n--{boundary}--".encode()


def written(folder, number, study="1.2.3", **elements):
    return minimal(folder / f"{number}.dcm", sop=f"1.2.3.4.{number}", study=study, **elements)


def uids(found, tag):
    return [item["00081155"]["Value"][0] for item in found.get(tag, {"Value": []})["Value"]]


def reasons(found, tag="00081198"):
    return [item["00081197"]["Value"][0] for item in found[tag]["Value"]]


@pytest.mark.parametrize("count", [1, 50, 500])
async def test_parts_are_stored_and_named(serve, tmp_path, count):
    paths = [written(tmp_path, number) for number in range(count)]
    async with serve() as site:
        status, headers, body = await site.post(
            "/studies/1.2.3", message(p.read_bytes() for p in paths), KIND
        )
        assert (status, headers["Content-Type"]) == (200, "application/dicom+json")
        found = json.loads(body)
        assert uids(found, "00081199") == [f"1.2.3.4.{n}" for n in range(count)]
        assert "00081198" not in found
        url = f"{site.server.url}/studies/1.2.3"
        assert found["00081190"]["Value"] == [url]
        place = found["00081199"]["Value"][0]["00081190"]["Value"][0]
        assert place == f"{url}/series/1.2.3.1/instances/1.2.3.4.0"
        assert site.spool.index.usage().files == count
        assert site.audit.records[-1].instances == count
        # Again: the same, and nothing is kept twice.
        status, _, body = await site.post("/studies", message([paths[0].read_bytes()]), KIND)
        assert (status, uids(json.loads(body), "00081199")) == (200, ["1.2.3.4.0"])
        assert site.spool.index.usage().files == count


async def test_dicomweb_client_stores(serve):
    original = pydicom.dcmread(FILES / "CT_small.dcm")
    async with serve() as site:
        answer = await site.ask("store_instances", [original])
        (item,) = answer.ReferencedSOPSequence
        assert item.ReferencedSOPInstanceUID == original.SOPInstanceUID
        assert item.ReferencedSOPClassUID == original.SOPClassUID


async def test_an_instance_of_another_study_fails_alone(serve, tmp_path):
    own, other = written(tmp_path, 1), written(tmp_path, 2, study="9.9")
    async with serve() as site:
        both = message([other.read_bytes(), own.read_bytes()])
        status, _, body = await site.post("/studies/1.2.3", both, KIND)
        found = json.loads(body)
        assert status == 202
        assert (uids(found, "00081198"), reasons(found)) == (["1.2.3.4.2"], [0xA900])
        assert uids(found, "00081199") == ["1.2.3.4.1"]
        assert site.spool.index.usage().files == 1
        status, _, body = await site.post("/studies/1.2.3", message([other.read_bytes()]), KIND)
        assert (status, reasons(json.loads(body))) == (409, [0xA900])


async def test_other_content_under_the_same_uid_is_refused(serve, tmp_path):
    one = written(tmp_path, 1).read_bytes()
    two = written(tmp_path, 1, SliceThickness="7").read_bytes()
    async with serve() as site:
        status, _, body = await site.post("/studies", message([one, two]), KIND)
        found = json.loads(body)
        assert (status, reasons(found), uids(found, "00081199")) == (202, [0x0111], ["1.2.3.4.1"])


async def test_what_is_no_instance_fails_alone(serve, tmp_path):
    good = written(tmp_path, 1).read_bytes()
    bad = [b"", b"not DICOM", good[:-5], good[:100], bytes(128) + b"DICM" + b"\xff" * 400]
    async with serve() as site:
        status, _, body = await site.post("/studies", message([*bad, good]), KIND)
        found = json.loads(body)
        assert status == 202
        assert uids(found, "00081199") == ["1.2.3.4.1"]
        failures = found.get("00081198", {"Value": []})["Value"] + found["0008119A"]["Value"]
        assert len(failures) == len(bad)
        assert site.spool.index.usage().files == 1
        status, _, _ = await site.post("/studies", message(bad), KIND)
        assert status == 409


async def test_the_whole_body_may_be_one_instance(serve, tmp_path):
    good = written(tmp_path, 1).read_bytes()
    async with serve() as site:
        status, _, body = await site.post("/studies", good, "application/dicom")
        assert (status, uids(json.loads(body), "00081199")) == (200, ["1.2.3.4.1"])


@pytest.mark.parametrize(
    ("kind", "body", "status"),
    [
        ("application/json", b"{}", 415),
        ('multipart/related; type="application/dicom+json"; boundary=x', b"", 415),
        ("multipart/form-data; boundary=x", b"", 415),
        ("nonsense", b"", 415),
        ('multipart/related; type="application/dicom"', b"", 400),
        ('multipart/related; type="application/dicom"; boundary="a\\"b"', b"", 400),
        (KIND, b"", 400),
        (KIND, b"--b0und--", 400),
        (KIND, message([b"x"], boundary="wrong"), 400),
        (KIND, b"x" * 100_000, 400),
        (KIND, b"--b0und\r\n" + b"X: y\r\n" * 5_000, 400),
    ],
)
async def test_messages_that_are_none(serve, kind, body, status):
    async with serve() as site:
        found = await site.post("/studies", body, kind)
        assert found[0] == status, found
        assert site.spool.index.usage().files == 0
        assert site.audit.records[-1].status == status


async def test_a_message_without_its_end_keeps_what_was_whole(serve, tmp_path):
    good = written(tmp_path, 1).read_bytes()
    cut = message([good, good])[: -len(good) // 2]
    async with serve() as site:
        status, _, body = await site.post("/studies", cut, KIND)
        found = json.loads(body)
        assert (status, uids(found, "00081199")) == (202, ["1.2.3.4.1"])
        assert len(found["0008119A"]["Value"]) == 1
        assert list(site.spool.incoming.iterdir()) == []


async def test_parts_of_another_type_fail_alone(serve, tmp_path):
    good = written(tmp_path, 1).read_bytes()
    text = b"--b0und\r\nContent-Type: text/plain\r\n\r\nhello"
    async with serve() as site:
        status, _, body = await site.post("/studies", text + message([good]), KIND)
        assert status == 202
        assert len(json.loads(body)["0008119A"]["Value"]) == 1


async def test_compressed_bodies_and_other_answers_are_refused(serve):
    async with serve() as site:
        found = await site.post("/studies", b"x", KIND, **{"Content-Encoding": "gzip"})
        assert found[0] == 415
        found = await site.post("/studies", b"x", KIND, Accept="application/dicom+xml")
        assert found[0] == 406
        assert (await site.post("/studies/1.2.x", b"x", KIND))[0] == 400


async def raw(site, text, *pieces):
    """Send bytes as they are; return the writer, and a task with all of the answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", site.server.port)
    writer.write(text)
    for piece in pieces:
        writer.write(piece)
    await writer.drain()
    return writer, asyncio.create_task(reader.read())


def head(length, path="/dicom-web/studies"):
    return (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n"
        f"Content-Type: {KIND}\r\nContent-Length: {length}\r\n\r\n"
    ).encode()


async def test_a_sender_that_stops_is_answered_and_leaves_nothing(serve, tmp_path):
    data = message([written(tmp_path, 1).read_bytes()])
    async with serve(limits={"idle_timeout_ms": 150}) as site:
        writer, answer = await raw(site, head(len(data)), data[: len(data) // 2])
        assert b"408" in (await answer).split(b"\r\n")[0]
        writer.close()
        assert list(site.spool.incoming.iterdir()) == []
        assert site.spool.index.usage().files == 0
        assert site.audit.records[-1].code == "too_slow"


async def test_a_sender_that_drips_is_too_slow(serve, tmp_path):
    limits = {"idle_timeout_ms": 100, "upload_bytes_per_second_min": 100_000_000}
    async with serve(limits=limits) as site:
        writer, answer = await raw(site, head(10_000), b"--b0und\r\n\r\n")
        while not site.audit.records:
            writer.write(b"x")
            await asyncio.sleep(0.02)
        assert (site.audit.records[0].status, site.audit.records[0].code) == (408, "too_slow")
        # A sender that goes on sending may see its connection reset before it sees the answer.
        await asyncio.gather(answer, return_exceptions=True)
        writer.close()


async def test_a_sender_that_vanishes_leaves_nothing(serve, tmp_path):
    data = message([written(tmp_path, 1).read_bytes()])
    async with serve() as site:
        writer, answer = await raw(site, head(len(data)), data[: len(data) // 2])
        while not list(site.spool.incoming.iterdir()):
            await asyncio.sleep(0.01)
        writer.transport.abort()
        while not site.audit.records:
            await asyncio.sleep(0.01)
        assert list(site.spool.incoming.iterdir()) == []
        assert site.audit.records[-1].code == "broken_off"
        answer.cancel()
        # The service is up.
        assert (await site.post("/studies", data, KIND))[0] == 200


async def test_more_than_allowed_is_refused(serve, tmp_path):
    good = written(tmp_path, 1).read_bytes()
    async with serve(limits={"upload_bytes_max": 1_000, "idle_timeout_ms": 300}) as site:
        assert (await site.post("/studies", message([good, good]), KIND))[0] == 413
        writer, answer = await raw(site, head(2_000).replace(b"Content-Length: 2000",
            b"Transfer-Encoding: chunked"), b"c\r\n--b0und\r\n\r\nx\r\n")  # fmt: skip
        for _ in range(10):
            writer.write(b"c8\r\n" + bytes(200) + b"\r\n")
        assert b"413" in (await answer).split(b"\r\n")[0]
        writer.close()
    async with serve(limits={"upload_parts_max": 2}) as site:
        assert (await site.post("/studies", message([good] * 2), KIND))[0] == 200
        assert (await site.post("/studies", message([good] * 3), KIND))[0] == 202


async def test_as_many_uploads_as_allowed(serve, tmp_path):
    data = message([written(tmp_path, 1).read_bytes()])
    async with serve(limits={"uploads_max": 1}) as site:
        writer, answer = await raw(site, head(len(data)), data[:500])
        while not list(site.spool.incoming.iterdir()):
            await asyncio.sleep(0.01)
        status, headers, _ = await site.post("/studies", data, KIND)
        assert (status, headers["Retry-After"]) == (503, "5")
        writer.write(data[500:])
        while site.audit.records[-1].status != 200:
            await asyncio.sleep(0.01)
        writer.close()
        await answer
        assert (await site.post("/studies", data, KIND))[0] == 200


async def test_a_full_spool_sends_away_before_reading(serve, tmp_path):
    good = written(tmp_path, 1).read_bytes()
    async with serve(quota=Quota(instances_max=0, disk_reserve_bytes=0)) as site:
        status, headers, body = await site.post("/studies", message([good]), KIND)
        assert (status, headers["Retry-After"]) == (503, "30")
        assert json.loads(body)["error"]["code"] == "no_room"


async def test_a_spool_that_fills_up_within_a_message(serve, tmp_path):
    paths = [written(tmp_path, number) for number in range(12)]
    async with serve(quota=Quota(instances_max=1, disk_reserve_bytes=0)) as site:
        status, _, body = await site.post("/studies", message(p.read_bytes() for p in paths), KIND)
        found = json.loads(body)
        assert status == 202
        stored = len(found["00081199"]["Value"])
        # Those that were under way together may all fit; the rest is told to come again.
        assert 1 <= stored <= 4
        assert reasons(found, "0008119A") == [0xA700] * (12 - stored)


class Sink:
    """A spool that reads everything and keeps nothing: to measure memory."""

    def __init__(self):
        self.bytes = 0

    def room(self):
        return None

    def accept(self, source, stream, study_uid=None):
        while data := stream.read(1 << 20):
            self.bytes += len(data)
        return Accepted("1.2.3", "1.2", "1.2", "1.2")


async def test_memory_does_not_grow_with_the_message(serve):
    block, blocks = np.random.default_rng(1).bytes(1 << 20), 400

    async def body():
        yield b"--b0und\r\n\r\n"
        for _ in range(blocks):
            yield block
        yield b"\r\n--b0und--"

    sink = Sink()
    async with serve(spool=sink) as site:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert (await site.post("/studies", body(), KIND))[0] == 200
        grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert sink.bytes == blocks << 20
    assert grown_kib < 32 << 10
