"""Records as DICOM audit messages (PS3.15 A.5) in syslog (RFC 5424), framed (RFC 5425)."""

import base64
import re
import xml.etree.ElementTree as ET

import pytest

from node.gateway.audit.acts import KINDS, Act, Outcome
from node.gateway.audit.message import render
from node.gateway.audit.reader import Line
from node.gateway.audit.record import FIRST_BEFORE, decode, encode, link
from node.gateway.audit.syslog import MESSAGE_BYTES_MAX, frame
from tests.gateway.audit import structure
from tests.gateway.audit.conftest import SITE
from tests.gateway.audit.receiver import parse

TIME_MS = 1_700_000_000_007


def line_of(act, seq=17):
    line = encode(seq, FIRST_BEFORE, TIME_MS, act)
    return Line(decode(line), link(line))


def root_of(act):
    return ET.fromstring(render(line_of(act), SITE).encode())


def full(kind):
    """Return an act with everything in it."""
    return Act(
        kind,
        Outcome.SERIOUS,
        who="MODALITY <&>",
        where="192.0.2.7",
        to="PACS",
        code="why <not> & so",
        request=bytes(range(16)),
        studies=(b"\x01" * 16, b"\x02" * 16),
        arriving="abcdef",
        version=2,
        instances=500,
        size=7,
        study_uids=("1.2.3", "1.2.4"),
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("make", [Act, full], ids=["bare", "full"])
def test_every_kind_is_a_message_of_the_schema(kind, make):
    assert structure.problems(root_of(make(kind))) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('EventOutcomeIndicator="8"', 'EventOutcomeIndicator="7"'),
        ('EventActionCode="R"', 'EventActionCode="X"'),
        ('originalText="Export"', ""),
        ("<EventIdentification", "<Event"),
        ('UserIsRequestor="true"', ""),
        ("ParticipantObjectName", "ParticipantObjectTitle"),
        ("T22:13:20.007Z", " 22:13"),
    ],
)
def test_the_check_of_the_schema_finds_what_is_wrong(old, new):
    text = render(line_of(full("key_given")), SITE)
    assert old in text
    try:
        problems = structure.problems(ET.fromstring(text.replace(old, new)))
    except (KeyError, ET.ParseError):
        return
    assert problems


def test_a_retrieval_says_who_what_when_and_how_it_went():
    act = Act("retrieved", who="VIEWER", studies=(b"\xab" * 16,), instances=28)
    root = root_of(act)
    event = root.find("EventIdentification")
    assert event.find("EventID").attrib == {
        "csd-code": "110104",
        "codeSystemName": "DCM",
        "originalText": "DICOM Instances Transferred",
    }
    assert event.get("EventActionCode") == "R"
    assert event.get("EventDateTime") == "2023-11-14T22:13:20.007Z"
    assert event.get("EventOutcomeIndicator") == "0"
    who = {
        each.get("UserID"): (each.find("RoleIDCode").get("csd-code"), each.get("UserIsRequestor"))
        for each in root.findall("ActiveParticipant")
    }
    assert who == {"RADLEDGER": ("110153", "false"), "VIEWER": ("110152", "true")}
    assert root.find("AuditSourceIdentification").get("AuditSourceID") == "RADLEDGER@north"
    study, record = root.findall("ParticipantObjectIdentification")
    assert study.get("ParticipantObjectID") == "radledger:study/" + "ab" * 16
    described = study.find("ParticipantObjectDescription/SOPClass")
    assert described.get("NumberOfInstances") == "28"
    assert record.get("ParticipantObjectID") == "radledger:record/17"


def test_a_c_move_names_who_asked_and_who_got_it():
    root = root_of(Act("retrieved", who="VIEWER", to="PACS"))
    roles = {
        each.get("UserID"): each.find("RoleIDCode").get("originalText")
        for each in root.findall("ActiveParticipant")
    }
    assert roles == {
        "RADLEDGER": "Source Role ID",
        "PACS": "Destination Role ID",
        "VIEWER": "Application",
    }


def test_uids_are_in_a_message_only_where_the_record_has_them():
    assert "110180" not in render(line_of(Act("retrieved", studies=(bytes(16),))), SITE)
    root = root_of(Act("retrieved", study_uids=("1.2.3",)))
    study = root.find("ParticipantObjectIdentification")
    assert study.get("ParticipantObjectID") == "1.2.3"
    assert study.find("ParticipantObjectIDTypeCode").get("csd-code") == "110180"


def test_a_message_carries_its_place_in_the_trail():
    line = line_of(Act("started"))
    record = ET.fromstring(render(line, SITE)).findall("ParticipantObjectIdentification")[-1]
    details = {
        each.get("type"): base64.b64decode(each.get("value")).hex()
        for each in record.findall("ParticipantObjectDetail")
    }
    assert details == {"sha256": line.digest, "before": FIRST_BEFORE}


@pytest.mark.parametrize(
    ("outcome", "priority"), [(0, 85), (4, 84), (8, 83), (12, 82)]
)  # facility 10, severities notice to critical
def test_a_frame_is_counted_octets_of_rfc_5424(outcome, priority):
    data = frame(line_of(Act("started", Outcome(outcome))), SITE)
    count, _, message = data.partition(b" ")
    assert int(count) == len(message)
    found = parse(message)
    assert (found.priority, found.id, found.sequence) == (priority, "DICOM+RFC3881", 17)
    assert found.kind == "started"
    assert re.match(rb"<\d+>1 2023-11-14T22:13:20\.007Z \S+ radledger \d+ ", message)


def test_the_sequence_id_stays_within_its_bounds():
    data = frame(line_of(Act("started"), seq=2_147_483_648), SITE)
    assert b'sequenceId="1"' in data


def test_the_largest_message_is_one_that_a_repository_must_take():
    act = Act(
        "trail_resumed",
        Outcome.MAJOR,
        *("&" * 500 for _ in range(4)),
        request=bytes(16),
        studies=tuple(bytes([n]) * 16 for n in range(200)),
        arriving="&" * 500,
        study_uids=tuple("1." + str(n) * 62 for n in range(200)),
        size=2**60,
        version=2**31,
        instances=2**31,
    )
    assert len(frame(line_of(act), SITE)) <= MESSAGE_BYTES_MAX
