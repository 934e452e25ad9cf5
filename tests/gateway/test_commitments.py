"""Promises to report on storage: each peer has its own, bounded, and none is in another's way."""

import json
import threading
from types import SimpleNamespace

import pytest
from pydicom.dataset import Dataset

from node.gateway import commitments as module
from node.gateway.commitments import AGE_MS_MAX, PUSH_MODEL_INSTANCE, Commitments
from node.gateway.dialing import Peer
from node.gateway.index import PROMISE_BYTES_MAX, PROMISES_MAX
from tests.gateway.test_scp import commitment

SILENT, PACS, LOST = Peer("SILENT"), Peer("PACS", "127.0.0.1", 1), Peer("LOST", "127.0.0.1", 1)
PEERS = {peer.ae_title: peer for peer in (SILENT, PACS, LOST)}


class Reporting(Commitments):
    """Reports to peers without a network: what was reported, and what becomes of it."""

    def __init__(self, spool):
        super().__init__(spool, PEERS, "US")
        self.calls, self.answers = [], {}
        self.called, self.done = threading.Event(), threading.Event()

    def _call(self, peer, promise):
        self.calls.append((peer.ae_title, promise.number))
        self.called.set()
        answer = self.answers.get(promise.number, peer is not LOST)
        if isinstance(answer, Exception):
            raise answer
        self.done.set()
        return answer


@pytest.fixture
def reporting(spool, clock, monkeypatch):
    monkeypatch.setattr(module, "_now_ms", clock)
    return Reporting(spool)


@pytest.fixture
def promise(spool, clock):
    sealed = spool.seal(json.dumps(["1.2.3", [["1.2", "1.2.3.4"]]]).encode())
    return lambda peer: spool.index.promise(peer.ae_title, sealed, clock())


class Asking:
    """As much of an association as an N-ACTION needs; it can be remembered weakly."""

    def __init__(self, peer):
        self.requestor = SimpleNamespace(ae_title=peer.ae_title)


def ask(reporting, information, peer=SILENT):
    """Return the status that the peer's N-ACTION is answered with."""
    request = SimpleNamespace(RequestedSOPInstanceUID=PUSH_MODEL_INSTANCE)
    event = SimpleNamespace(
        action_type=1, request=request, action_information=information, assoc=Asking(peer)
    )
    return reporting._asked(event)[0]


def test_promises_of_a_peer_without_address_starve_nobody(reporting, promise):
    for _ in range(150):
        promise(SILENT)
    mine = promise(PACS)
    reporting._report_due()
    assert reporting.calls == [("PACS", mine.number)]


def test_a_peer_that_cannot_be_called_is_called_once_in_a_round(reporting, promise, clock):
    for _ in range(3):
        promise(LOST)
    clock.pass_ms(1)
    mine = promise(PACS)
    reporting._report_due()
    assert [title for title, _ in reporting.calls].count("LOST") == 1
    assert ("PACS", mine.number) in reporting.calls


def test_a_promise_that_fails_rests_and_the_thread_goes_on(reporting, promise, clock, caplog):
    first = promise(PACS)
    reporting.answers[first.number] = MemoryError("Doe^Jane")
    reporting.start()
    assert reporting.called.wait(20)
    second = promise(PACS)
    reporting._wake.set()
    assert reporting.done.wait(20)
    reporting.stop()
    assert reporting.calls[:2] == [("PACS", first.number), ("PACS", second.number)]
    assert "MemoryError" in caplog.text
    assert "Doe" not in caplog.text


def test_one_peer_has_so_many_promises_and_no_more(reporting, spool):
    for _ in range(PROMISES_MAX):
        assert ask(reporting, commitment("1.2.3.1")) == 0
    assert ask(reporting, commitment("1.2.3.1")) == 0x0213
    assert ask(reporting, commitment("1.2.3.1"), PACS) == 0


def test_one_peer_has_so_many_bytes_of_promises_and_no_more(spool, clock):
    half = bytes(PROMISE_BYTES_MAX // 2)
    kept = [spool.index.promise("SILENT", half, clock()) for _ in range(3)]
    assert [promise is not None for promise in kept] == [True, True, False]
    assert spool.index.promise("PACS", half, clock()) is not None


def test_what_nobody_comes_for_is_forgotten(reporting, promise, spool, clock):
    old = promise(SILENT)
    clock.pass_ms(AGE_MS_MAX)
    new = promise(SILENT)
    reporting._report_due()
    assert spool.index.sealed_promise(old.number) is None
    assert spool.index.promises("SILENT", clock()) == [new]


def test_a_report_reads_no_promise_but_its_own(reporting, promise, spool, monkeypatch):
    sent, read = [], []
    real = spool.index.sealed_promise
    monkeypatch.setattr(spool.index, "sealed_promise", lambda n: read.append(n) or real(n))
    association = SimpleNamespace(
        send_n_event_report=lambda report, *_: (sent.append(report) or success(), None)
    )
    _, mine, _ = promise(SILENT), promise(SILENT), promise(SILENT)
    reporting._report_on(association, [mine])
    assert read == [mine.number]
    assert [report.TransactionUID for report in sent] == ["1.2.3"]
    assert len(spool.index.promises("SILENT", module._now_ms())) == 2


def success():
    status = Dataset()
    status.Status = 0
    return status
