"""Each report of the exchange, of searches between hospitals and of deliveries is one act."""

import pytest

from node.exchange.federation.ports import FederationEvent, Inquiry
from node.exchange.transfer.ports import Custody, Happening, TransferEvent, event_of
from node.gateway.audit import hearing
from node.gateway.audit.acts import Outcome
from node.gateway.audit.auditor import Auditor
from node.gateway.deliver import Given
from node.gateway.web.audit import Action, WebAccess
from tests.gateway.audit.conftest import records

REQUEST = bytes(range(16))


def ids(uid):
    return [uid.encode().ljust(16, b"\0")]


@pytest.mark.parametrize(
    ("happening", "request_id", "kind", "outcome"),
    [
        (Happening.OFFERING, REQUEST, "key_given", 0),
        (Happening.SENDING, REQUEST, "chunks_begun", 0),
        (Happening.SENT, REQUEST, "chunks_given", 0),
        (Happening.REFUSED, REQUEST, "transfer_refused", 8),
        (Happening.REFUSED, None, "peer_refused", 8),
        (Happening.STOPPED, REQUEST, "transfer_stopped", 4),
        (Happening.NOT_TAKEN, REQUEST, "fetch_refused", 8),
    ],
)
def test_transfers(happening, request_id, kind, outcome):
    act = hearing.transferred(TransferEvent(happening, "south", request_id, "why", 3, 700))
    assert (act.kind, act.outcome, act.who) == (kind, outcome, "south")
    assert (act.request, act.code, act.size) == (request_id, "why", 700)


def test_a_transfer_by_custody_names_the_study():
    custody = Custody(REQUEST)
    for happening, kind in [
        (Happening.SENDING, "chunks_begun"),
        (Happening.REFUSED, "transfer_refused"),
        (Happening.NOT_TAKEN, "fetch_refused"),
    ]:
        act = hearing.transferred(event_of(happening, "south", custody, "why"))
        assert (act.kind, act.who, act.request, act.studies) == (kind, "south", None, (REQUEST,))


def test_every_happening_is_heard_and_an_offer_once():
    for happening in set(Happening) - {Happening.OFFERED}:
        assert hearing.transferred(TransferEvent(happening, None, REQUEST)).request == REQUEST
    with pytest.raises(KeyError):
        hearing.transferred(TransferEvent(Happening.OFFERED, None, REQUEST))


@pytest.mark.parametrize(
    ("inquiry", "kind", "outcome"),
    [
        (Inquiry.ANSWERED, "search_answered", 0),
        (Inquiry.REFUSED, "search_answered", 8),
        (Inquiry.ASKED, "search_asked", 0),
        (Inquiry.CONFLICT, "conflict", 8),
    ],
)
def test_searches_between_hospitals(inquiry, kind, outcome):
    event = FederationEvent(inquiry, "south", "", "TREAT", "clinician", "find modality", 4)
    act = hearing.inquired(event)
    assert (act.kind, act.outcome) == (kind, outcome)
    assert "south" in (act.who, act.to)
    assert act.code == "find modality TREAT clinician told 4"


def test_a_message_of_instances_is_recorded_once():
    def heard(instances, code):
        access = WebAccess(Action.STORE, 200, code, instances, "192.0.2.1", "local", "1.2")
        act = hearing.browsed(access, ids, with_uids=False)
        return None if act is None else (act.kind, act.outcome, act.study_uids)

    assert heard(5, "") == ("stored", Outcome.SUCCESS, ())
    assert heard(5, "message_broken") == ("stored", Outcome.MINOR, ())
    assert heard(0, "bad_multipart") == ("refused", Outcome.SERIOUS, ())
    assert heard(0, "") is None  # each instance that was refused left its record


def test_deliveries_begin_and_end_in_the_trail(trail, folder):
    auditor = Auditor(trail, ids)
    assert auditor.delivering(Given("PACS", "1.2", 0, ""))
    auditor.delivered(Given("PACS", "1.2", 28, ""))
    auditor.delivered(Given("PACS", "1.2", 0, "withheld"))
    found = [(r.kind, r.outcome, r.text("to"), r.number("instances")) for r in records(folder)[1:]]
    assert found == [
        ("delivering", 0, "PACS", 0),
        ("delivered", 0, "PACS", 28),
        ("delivered", 8, "PACS", 0),
    ]
    assert {tuple(r.names("studies")) for r in records(folder)[1:]} == {(ids("1.2")[0].hex(),)}


async def test_what_is_told_in_the_event_loop_is_recorded_before_the_end(trail, folder):
    auditor = Auditor(trail, ids)
    for _ in range(20):
        auditor.transferred(TransferEvent(Happening.REFUSED, "south", REQUEST, "busy"))
    assert await auditor.may_transfer(TransferEvent(Happening.OFFERING, "south", REQUEST))
    await auditor.settled()
    assert len(records(folder)) == 22
