"""A record as a DICOM audit message (PS3.15 A.5): XML of the schema in A.5.1.

By default nothing in it identifies a patient: studies are named by their ids on the ledger, and the
object for the patient, which some of the messages in A.5.3 ask for, is left out. So is what was
searched for. Study Instance UIDs are in it only where the record has them.
"""

import base64
import xml.etree.ElementTree as ET
from datetime import UTC, datetime
from typing import NamedTuple

from node.gateway.audit.acts import KINDS, Code, Kind, Outcome, Way
from node.gateway.audit.reader import Line
from node.gateway.audit.record import Record

DCM, OWN, RFC3881 = "DCM", "99RADLEDGER", "RFC-3881"
UNKNOWN = "unknown"
APPLICATION = Code("110150", "Application")
DESTINATION = Code("110152", "Destination Role ID")
SOURCE = Code("110153", "Source Role ID")
STUDY_UID = Code("110180", "Study Instance UID")
_URI = Code("12", "URI")
_ADDRESS = "2"  # NetworkAccessPointTypeCode
_APPLICATION_SERVER = "4"  # AuditSourceTypeCode
_SYSTEM_OBJECT, _REPORT, _SECURITY_RESOURCE = "2", "3", "13"


class Site(NamedTuple):
    """Who reports."""

    institution: str
    ae_title: str


def render(line: Line, site: Site) -> str:
    """Return the message of a record."""
    record, kind = line.record, KINDS[line.record.kind]
    root = ET.Element("AuditMessage")
    _event(root, record, kind)
    for participant in _participants(record, kind, site):
        _participant(root, participant)
    source = ET.SubElement(
        root,
        "AuditSourceIdentification",
        AuditEnterpriseSiteID=site.institution,
        AuditSourceID=f"{site.ae_title}@{site.institution}",
    )
    ET.SubElement(source, "AuditSourceTypeCode", {"csd-code": _APPLICATION_SERVER})
    _objects(root, record, kind)
    _place(root, line)
    return '<?xml version="1.0" encoding="UTF-8"?>' + ET.tostring(root, "unicode")


def time_of(record: Record) -> str:
    """Return when the act was, in UTC (RFC 3339)."""
    moment = datetime.fromtimestamp(record.time_ms // 1000, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{record.time_ms % 1000:03d}Z"


def _event(root: ET.Element, record: Record, kind: Kind) -> None:
    event = ET.SubElement(
        root,
        "EventIdentification",
        EventActionCode=kind.action,
        EventDateTime=time_of(record),
        EventOutcomeIndicator=str(int(record.outcome)),
    )
    _code(event, "EventID", kind.event)
    if kind.type is not None:
        _code(event, "EventTypeCode", kind.type)
    _code(event, "EventTypeCode", Code(record.kind, kind.words), OWN)
    if record.text("code") or record.outcome is not Outcome.SUCCESS:
        told = ET.SubElement(event, "EventOutcomeDescription")
        told.text = record.text("code") or kind.words


class _Participant(NamedTuple):
    user: str
    is_requestor: bool
    role: Code
    address: str = ""


def _participants(record: Record, kind: Kind, site: Site) -> list[_Participant]:
    who, where, to = record.text("who"), record.text("where"), record.text("to")
    if kind.way is Way.HERE:
        ours = _Participant(site.ae_title, not who, APPLICATION)
        return [ours, _Participant(who, True, SOURCE, where)] if who else [ours]
    if kind.way is Way.IN:
        sender = _Participant(who or where or UNKNOWN, True, SOURCE, where)
        return [sender, _Participant(site.ae_title, False, DESTINATION)]
    ours = _Participant(site.ae_title, not (who or where), SOURCE)
    if to and who and to != who:  # a third party asked, as by C-MOVE
        return [
            ours,
            _Participant(to, False, DESTINATION),
            _Participant(who, True, APPLICATION, where),
        ]
    return [
        ours,
        _Participant(to or who or where or UNKNOWN, bool(who or where), DESTINATION, where),
    ]


def _participant(root: ET.Element, participant: _Participant) -> None:
    attributes = {
        "UserID": participant.user,
        "UserIsRequestor": "true" if participant.is_requestor else "false",
    }
    if participant.address:
        attributes["NetworkAccessPointID"] = participant.address
        attributes["NetworkAccessPointTypeCode"] = _ADDRESS
    element = ET.SubElement(root, "ActiveParticipant", attributes)
    _code(element, "RoleIDCode", participant.role)


def _objects(root: ET.Element, record: Record, kind: Kind) -> None:
    """Name the studies, and the request on the ledger under which they were given."""
    details = {
        name: str(record.number(name)) for name in ("version", "size") if record.number(name)
    }
    if record.number("unnamed"):
        details["unnamed"] = str(record.number("unnamed"))
    count = record.number("instances")
    named = [f"radledger:study/{study}" for study in record.names("studies")]
    if record.text("arriving"):
        named.append(f"radledger:arriving/{record.text('arriving')}")
    if record.text("request"):
        named.append(f"radledger:request/{record.text('request')}")
    for each in named:
        _object(root, each, _URI, RFC3881, kind.life_cycle, details, count)
        details, count = {}, 0  # of the record as a whole: told once
    for uid in record.names("study_uids"):
        _object(root, uid, STUDY_UID, DCM, kind.life_cycle, details, count)
        details, count = {}, 0


def _object(
    root: ET.Element,
    name: str,
    code: Code,
    scheme: str,
    life_cycle: str,
    details: dict[str, str],
    instances: int,
) -> None:
    attributes = {
        "ParticipantObjectID": name,
        "ParticipantObjectTypeCode": _SYSTEM_OBJECT,
        "ParticipantObjectTypeCodeRole": _REPORT,
    }
    if life_cycle:
        attributes["ParticipantObjectDataLifeCycle"] = life_cycle
    element = ET.SubElement(root, "ParticipantObjectIdentification", attributes)
    _code(element, "ParticipantObjectIDTypeCode", code, scheme)
    ET.SubElement(element, "ParticipantObjectName").text = code.meaning
    for kind, value in details.items():
        _detail(element, kind, value.encode())
    if instances:
        description = ET.SubElement(element, "ParticipantObjectDescription")
        ET.SubElement(description, "SOPClass", NumberOfInstances=str(instances))


def _place(root: ET.Element, line: Line) -> None:
    """Say where in the trail the record is, so that the repository can prove a gap."""
    element = ET.SubElement(
        root,
        "ParticipantObjectIdentification",
        ParticipantObjectID=f"radledger:record/{line.record.seq}",
        ParticipantObjectTypeCode=_SYSTEM_OBJECT,
        ParticipantObjectTypeCodeRole=_SECURITY_RESOURCE,
    )
    _code(element, "ParticipantObjectIDTypeCode", _URI, RFC3881)
    ET.SubElement(element, "ParticipantObjectName").text = "record of the audit trail"
    _detail(element, "sha256", bytes.fromhex(line.digest))
    _detail(element, "before", bytes.fromhex(line.record.before))
    if line.record.text("trail"):
        _detail(element, "trail", bytes.fromhex(line.record.text("trail")))


def _detail(element: ET.Element, kind: str, value: bytes) -> None:
    text = base64.b64encode(value).decode("ascii")
    ET.SubElement(element, "ParticipantObjectDetail", type=kind, value=text)


def _code(parent: ET.Element, name: str, code: Code, scheme: str = DCM) -> None:
    attributes = {
        "csd-code": code.value,
        "codeSystemName": scheme,
        "originalText": code.meaning,
    }
    ET.SubElement(parent, name, attributes)
