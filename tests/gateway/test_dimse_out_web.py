"""Delivery by STOW-RS, read back by WADO-RS: against our own DICOMweb server, and hostile ones."""

import asyncio
import http.server
import threading
from contextlib import contextmanager

import pytest

from node.gateway import webpacs
from node.gateway.deliver import Deliverer
from node.gateway.deliveries import Deliveries, State
from node.gateway.spool import Spool
from node.gateway.ways import NotOffered, Unreachable
from node.gateway.webpacs import WebPacs
from tests.gateway.pacs import Scrambling
from tests.gateway.web.conftest import QUOTA, TOKEN, serving
from tests.gateway.web.folder import FolderHoldings
from tests.imaging import dicom

STUDY = "1.2.7"


@pytest.fixture
def paths(tmp_path):
    return [dicom.minimal(tmp_path / f"{n}.dcm", f"1.2.7.1.{n}", STUDY) for n in range(70)]


@pytest.fixture
def make_deliverer(tmp_path, paths):
    opened = []

    def make(*ways):
        deliveries = Deliveries(tmp_path / "deliveries", Scrambling())
        opened.append(deliveries)
        holdings = FolderHoldings(paths)
        targets = {"main": ways}
        return Deliverer(deliveries, holdings, targets, tmp_path / "work", audit=lambda _: None)

    yield make
    for deliveries in opened:
        deliveries.close()


async def test_a_study_is_stored_read_back_and_verified(tmp_path, paths, make_deliverer):
    async with serving(tmp_path, paths) as site:
        way = WebPacs(site.server.url, {"Authorization": f"Bearer {TOKEN}"})
        deliverer = make_deliverer(way)
        number = deliverer.submit(STUDY, "main")
        await asyncio.to_thread(deliverer.run_once)
        progress = deliverer.progress(number)
        listed = await asyncio.to_thread(way.lists, FolderHoldings(paths).study(STUDY).instances)
    spool = Spool(tmp_path / "spool", QUOTA)
    held = spool.holds([f"1.2.7.1.{n}" for n in range(70)])
    spool.close()
    assert (progress.state, progress.verified) == (State.DONE, 70)
    assert all(held)
    assert len(listed) == 70


async def test_without_permission_it_waits(tmp_path, paths, make_deliverer):
    async with serving(tmp_path, paths) as site:
        deliverer = make_deliverer(WebPacs(site.server.url))
        number = deliverer.submit(STUDY, "main")
        await asyncio.to_thread(deliverer.run_once)
        progress = deliverer.progress(number)
    assert (progress.state, progress.reason) == (
        State.WAITING,
        "STOW-RS is answered with 401",
    )


@contextmanager
def answering(status, kind, body):
    """Yield a way to a server that answers everything so."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, *_):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield WebPacs(f"http://127.0.0.1:{server.server_port}/dicom-web")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


MULTIPART = 'multipart/related; type="application/dicom"; boundary=b'


@pytest.mark.parametrize(
    ("status", "kind", "body", "error"),
    [
        (500, "text/plain", b"", Unreachable),
        (406, "text/plain", b"", NotOffered),
        (200, "multipart/related", b"--b\r\n\r\nx\r\n--b--", Unreachable),
        (200, MULTIPART, b"", Unreachable),
        (200, MULTIPART, b"--b\r\nA: " + b"x" * 40_000, Unreachable),
        (200, MULTIPART, b"--b\r\n\r\nwithout an end", Unreachable),
    ],
)
def test_what_is_no_answer_is_no_instance(tmp_path, paths, status, kind, body, error):
    (instance, *_) = FolderHoldings(paths[:1]).study(STUDY).instances
    with answering(status, kind, body) as way, pytest.raises(error):
        way.fetch([instance], tmp_path, lambda *_: None)


@pytest.mark.parametrize(
    ("status", "error"),
    [(401, Unreachable), (500, Unreachable), (503, Unreachable), (404, NotOffered)],
)
def test_a_search_that_fails_does_not_say_that_there_is_nothing(paths, status, error):
    instances = FolderHoldings(paths[:1]).study(STUDY).instances
    with answering(status, "text/plain", b"") as way, pytest.raises(error):
        way.lists(instances)


def test_a_search_that_finds_nothing_says_so(paths):
    instances = FolderHoldings(paths[:1]).study(STUDY).instances
    for status, body in ((204, b""), (200, b"[]")):
        with answering(status, "application/dicom+json", body) as way:
            assert way.lists(instances) == frozenset()


def test_an_answer_without_end_is_left(tmp_path, paths, monkeypatch):
    monkeypatch.setattr(webpacs, "READ_BACK_BYTES_MAX", 1_000)
    (instance, *_) = FolderHoldings(paths[:1]).study(STUDY).instances
    fetched = []
    for kind, body in (("application/dicom", b""), (MULTIPART, b"--b\r\n\r\n")):
        with (
            answering(200, kind, body + bytes(2_000)) as way,
            pytest.raises(Unreachable, match="more than 1000 bytes"),
        ):
            way.fetch([instance], tmp_path, lambda *row: fetched.append(row))
    assert fetched == []
    assert not (tmp_path / "fetched.dcm").exists()


def test_a_part_is_saved_exactly(tmp_path, paths):
    (instance, *_) = FolderHoldings(paths[:1]).study(STUDY).instances
    content = b"\r\n--b\r\n" + bytes(range(256)) * 9_000 + b"\r\n--b"
    body = b"--b\r\nContent-Type: application/dicom\r\n\r\n" + content + b"\r\n--b--\r\n"
    found = []
    with answering(200, MULTIPART, body) as way:
        way.fetch([instance], tmp_path, lambda _, path: found.append(path.read_bytes()))
    assert found == [content]


@pytest.mark.parametrize(
    "body", [b"no json", b"[1]", b"[" * 100_000, b'{"00081199": {"Value": 3}}']
)
def test_a_stow_answer_without_references_is_no_success(paths, body):
    (instance, *_) = FolderHoldings(paths[:1]).study(STUDY).instances
    codes = []
    with answering(200, "application/dicom+json", body) as way:
        try:
            way.send(
                [instance], lambda _: [b"x" * instance.size], lambda _, code: codes.append(code)
            )
        except Unreachable:
            codes.append("unreachable")
    assert "" not in codes


@pytest.mark.parametrize("url", ["ftp://pacs/", "pacs", "https://pacs/dicom-web"])
def test_other_urls_are_refused(url):
    with pytest.raises(ValueError, match=r"URL|TLS"):
        WebPacs(url)
