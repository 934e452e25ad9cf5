"""Associations that the gateway opens: mutual TLS to whom it trusts, nothing to anybody else, and
no peer that can hold it up."""

import socket
import threading
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace

import numpy as np
import pynetdicom
import pytest
from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom import AE, AllStoragePresentationContexts, build_context, evt

from node.config.model import DicomPeer, GatewayConfig
from node.gateway import pacs as gateway_pacs
from node.gateway.commitments import PUSH_MODEL, PUSH_MODEL_INSTANCE
from node.gateway.delivering import ways_of
from node.gateway.dialing import Dialer, NotReached, Peer
from node.gateway.echo import echo
from node.gateway.pacs import DimsePacs
from node.gateway.spool import Spool
from node.gateway.tls import client_context
from node.gateway.ways import Unreachable
from tests.gateway import dimse
from tests.gateway.dimse import QUOTA, SENDER, TITLE, in_thread, opened_door
from tests.gateway.flow_world import until
from tests.gateway.identities import Identity
from tests.gateway.pacs import Pacs
from tests.gateway.test_dimse_out import identifier, move, opened
from tests.gateway.test_scp import Reports, commitment
from tests.gateway.web.folder import FolderHoldings
from tests.imaging import dicom

STUDY = "1.2.7"
VERIFICATION = "1.2.840.10008.1.1"
NATIVE = [ExplicitVRLittleEndian]


@pytest.fixture(autouse=True)
def buffered(monkeypatch):
    monkeypatch.setattr(pynetdicom._config, "STORE_RECV_CHUNKED_DATASET", False)


class Parties:
    """The gateway, the PACS that it knows, and a stranger."""

    def __init__(self, folder):
        self.gateway, self.pacs, self.stranger = (
            Identity(folder, name) for name in ("gateway", "pacs", "stranger")
        )

    def servers(self):
        """Return what a PACS may serve with that is not as agreed, and what must be said of it."""
        return {
            "other certificate": (self.stranger.serving(self.gateway), "not trusted here"),
            "does not know us": (self.pacs.serving(self.stranger), "does not take our certificate"),
            "clear": (None, "TLS"),
        }


@pytest.fixture
def parties(tmp_path):
    return Parties(tmp_path)


@pytest.fixture
def paths(tmp_path):
    return [dicom.minimal(tmp_path / f"{n}.dcm", f"1.2.7.1.{n}", STUDY) for n in range(3)]


@contextmanager
def serving(tls, title="PACS"):
    pacs = Pacs(NATIVE, tls=tls)
    pacs.start()
    try:
        yield pacs
    finally:
        pacs.stop()


def sends(way, paths):
    """Send files; return what became of each. Raises `Unreachable`."""
    holdings, codes = FolderHoldings(paths), []

    def read(instance):
        with holdings.open(instance) as stream:
            while piece := stream.read(1 << 16):
                yield piece

    way.send(holdings.study(STUDY).instances, read, lambda _, code: codes.append(code))
    return codes


WRONG = ["other certificate", "does not know us", "clear"]


def test_a_study_goes_to_the_pacs_over_mutual_tls_and_is_read_back(parties, paths, tmp_path):
    told = []
    with serving(parties.pacs.serving(parties.gateway)) as pacs:
        config = GatewayConfig(
            spool_dir=tmp_path,
            tls_certificate_file=parties.gateway.certificate,
            tls_key_file=parties.gateway.key,
            peers=(
                DicomPeer(
                    ae_title="PACS",
                    host="127.0.0.1",
                    port=pacs.port,
                    certificate_file=parties.pacs.certificate,
                ),
            ),
        )
        (way,) = ways_of(config, Dialer(lambda *event: told.append(event)))["PACS"]
        assert sends(way, paths) == ["", "", ""]
        back = []
        instances = FolderHoldings(paths).study(STUDY).instances
        way.fetch(instances, tmp_path, lambda _, path: back.append(path is not None))
        assert way.lists(instances) == {f"1.2.7.1.{n}" for n in range(3)}
    assert (back, told) == ([True] * 3, [])


@pytest.mark.parametrize("wrong", WRONG)
def test_a_pacs_that_is_not_who_it_should_be_gets_nothing(parties, paths, wrong):
    told = []
    tls, sentence = parties.servers()[wrong]
    with serving(tls) as pacs:
        context = parties.gateway.calling(parties.pacs)
        dialer = Dialer(lambda *event: told.append(event))
        way = DimsePacs(pacs.peer, TITLE, context, dialer)
        for _ in range(2):  # told once, however often it is tried
            with pytest.raises(Unreachable, match=sentence):
                sends(way, paths)
        assert (pacs.received, told) == ([], [("peer_not_reached", "PACS", "tls")])
        assert sentence in echo(TITLE, pacs.peer, context)


def test_without_our_certificate_a_pacs_takes_nothing(parties, paths):
    with serving(parties.pacs.serving(parties.gateway)) as pacs:
        for tls in (None, client_context(parties.pacs.pem, None, None)):
            with pytest.raises(Unreachable):
                sends(DimsePacs(pacs.peer, TITLE, tls), paths)
            assert echo(TITLE, pacs.peer, tls)
        assert pacs.received == []


def test_an_echo_passes_over_mutual_tls(parties):
    ae = AE(ae_title="PACS")
    ae.add_supported_context(VERIFICATION)
    tls = parties.pacs.serving(parties.gateway)
    server = ae.start_server(("127.0.0.1", 0), block=False, ssl_context=tls)
    try:
        peer = Peer("PACS", *server.server_address)
        assert echo(TITLE, peer, parties.gateway.calling(parties.pacs)) == ""
    finally:
        server.shutdown()


def test_a_peer_that_can_be_reached_again_is_told_of_anew():
    told, port = [], 0
    dialer = Dialer(lambda *event: told.append(event))
    ae = AE(ae_title=TITLE)
    server = AE(ae_title="PACS")
    server.add_supported_context(VERIFICATION)
    for _ in range(2):
        running = server.start_server(("127.0.0.1", port), block=False)
        port = running.server_address[1]
        peer = Peer("PACS", "127.0.0.1", port)
        dialer.dial(ae, peer, [build_context(VERIFICATION)]).release()
        running.shutdown()
        for _ in range(2):
            with pytest.raises(NotReached):
                dialer.dial(ae, peer, [build_context(VERIFICATION)])
    assert told == [("peer_not_reached", "PACS", "unreachable")] * 2


async def moved(folder, parties, paths, tls):
    """Ask for a C-MOVE of the study to a PACS that serves with `tls`; return the last status, what
    the PACS got, and the codes of events."""
    with serving(tls) as pacs:
        peer = replace(pacs.peer, trust=parties.pacs.pem)
        files = parties.gateway.files
        async with opened(folder, paths, peers=[peer], files=files) as site:
            asked = identifier("STUDY", StudyInstanceUID=STUDY)
            answers = await in_thread(move, site.port, asked, pacs.peer.ae_title)
            (access,) = await site.audited()
        return answers[-1].Status, sorted(pacs.received), access.code


def noted(folder):
    """Return source and code of peers that were not reached."""
    spool = Spool(folder, QUOTA)
    events = [event for _, event in spool.index.last_events(10)]
    spool.close()
    return [(e.source, e.code) for e in events if e.kind == "peer_not_reached"]


async def test_sub_operations_of_a_move_go_over_mutual_tls(parties, paths, tmp_path):
    folder = tmp_path / "spool"
    done = await moved(folder, parties, paths, parties.pacs.serving(parties.gateway))
    assert done == (0, [f"1.2.7.1.{n}" for n in range(3)], "")
    assert noted(folder) == []


@pytest.mark.parametrize("wrong", WRONG)
async def test_a_move_to_a_pacs_that_is_not_who_it_should_be_sends_nothing(
    parties, paths, tmp_path, wrong
):
    folder = tmp_path / "spool"
    done = await moved(folder, parties, paths, parties.servers()[wrong][0])
    assert done == (0xA801, [], "unreachable")
    assert noted(folder) == [("PACS", "tls")]


async def committed(folder, parties, tls, *, is_reported):
    """Ask for storage commitment; return the reports that the asker got at its own address."""
    reports = Reports()
    ae = AE(ae_title=SENDER)
    ae.add_supported_context(PUSH_MODEL, scu_role=True, scp_role=True)
    server = ae.start_server(
        ("127.0.0.1", 0), block=False, evt_handlers=reports.handlers, ssl_context=tls
    )
    peer = Peer(SENDER, *server.server_address, parties.pacs.pem)
    try:
        async with opened_door(folder, peers=[peer], files=parties.gateway.files) as door:
            association = await in_thread(dimse.associate, door.port, [build_context(PUSH_MODEL)])
            request = commitment("1.2.3.1")
            await in_thread(association.send_n_action, request, 1, PUSH_MODEL, PUSH_MODEL_INSTANCE)
            await in_thread(association.release)
            await until(lambda: reports.came.is_set() if is_reported else noted(folder))
    finally:
        server.shutdown()
    return [kind for kind, *_ in reports.received]


async def test_storage_commitment_is_reported_over_mutual_tls(parties, tmp_path):
    tls = parties.pacs.serving(parties.gateway)
    assert await committed(tmp_path / "spool", parties, tls, is_reported=True) == [2]


@pytest.mark.parametrize("wrong", WRONG)
async def test_a_stranger_at_the_askers_address_gets_no_report(parties, tmp_path, wrong):
    tls = parties.servers()[wrong][0]
    assert await committed(tmp_path / "spool", parties, tls, is_reported=False) == []
    assert noted(tmp_path / "spool") == [(SENDER, "tls")]


async def test_the_certificates_of_many_peers_reach_the_receiving_process(tmp_path):
    peers = [Peer(f"PEER{n}", "127.0.0.1", 1, "x" * 4_000) for n in range(256)]
    async with opened_door(tmp_path / "spool", peers=[Peer(SENDER), *peers]) as door:
        association = await in_thread(dimse.associate, door.port, [build_context(VERIFICATION)])
        assert association.is_established
        await in_thread(association.release)


def raised_in_time(function, *arguments):
    """Return what a call raises, in a thread that may be left behind if it never ends."""
    found = []

    def run():
        try:
            function(*arguments)
        except (NotReached, Unreachable) as error:
            found.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive(), "it waits without end"
    return found[0]


@contextmanager
def silent(tls):
    """Yield the port of somebody who takes connections, shakes hands, and says nothing."""
    ended = threading.Event()

    def serve(listener):
        with suppress(OSError), listener.accept()[0] as plain, secured(plain):
            ended.wait(60)

    def secured(plain):
        return tls.wrap_socket(plain, server_side=True) if tls else nullcontext()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        yield listener.getsockname()[1]
        ended.set()
        thread.join()


@pytest.mark.parametrize("is_secured", [False, True], ids=["clear", "tls"])
def test_a_peer_that_says_nothing_is_given_up(parties, is_secured):
    """With TLS, a session ticket wakes pynetdicom, which then reads without end."""
    tls, own = None, None
    if is_secured:
        tls = parties.pacs.serving(parties.gateway)
        own = lambda: parties.gateway.calling(parties.pacs)  # noqa: E731
    ae = AE(ae_title=TITLE)
    ae.acse_timeout = ae.network_timeout = ae.connection_timeout = 0.3
    with silent(tls) as port:
        peer = Peer("PACS", "127.0.0.1", port)
        error = raised_in_time(Dialer().dial, ae, peer, [build_context(VERIFICATION)], own)
    assert error.code == "not_accepted"


def test_a_pacs_that_stops_reading_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(gateway_pacs, "_TIMEOUT_SECONDS", 0.3)
    large = np.zeros((3_000, 3_000), "<u2")  # more than sockets hold
    path = dicom.minimal(tmp_path / "a.dcm", "1.2.7.1.1", STUDY, pixels=large)
    ended = threading.Event()
    ae = AE(ae_title="PACS")
    ae.supported_contexts = AllStoragePresentationContexts

    def stop(event):
        if event.pdu.pdu_type == 0x04:
            ended.wait(60)

    handlers = [(evt.EVT_PDU_RECV, stop)]
    server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
    try:
        way = DimsePacs(Peer("PACS", *server.server_address), TITLE)
        assert isinstance(raised_in_time(sends, way, [path]), Unreachable)
    finally:
        ended.set()
        server.shutdown()


async def test_a_peer_whose_name_is_not_known_is_only_unreachable(paths, tmp_path):
    lost = Peer("LOST", "nobody.invalid", 104)
    with pytest.raises(Unreachable, match="nobody"):
        sends(DimsePacs(lost, TITLE), paths)
    async with opened(tmp_path / "spool", paths, peers=[lost]) as site:
        asked = identifier("STUDY", StudyInstanceUID=STUDY)
        answers = await in_thread(move, site.port, asked, "LOST")
    assert [answer.Status for answer in answers] == [0xA801]
    assert noted(tmp_path / "spool") == [("LOST", "unreachable")]
