"""The schema of audit messages (PS3.15 A.5.1, RELAX NG), as a check of a parsed message.

For each element: its attributes with the form of their values ("?" after a name: optional), then
its children in their order, each with how often it may come.
"""

import base64
import re
from typing import NamedTuple

TOKEN = r".*"
DATE_TIME = r"-?\d{4,}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)?"
BOOLEAN = r"true|false|0|1"
INTEGER = r"[+-]?\d+"
BASE64 = "base64"
ONE, MAYBE, ANY, SOME = (1, 1), (0, 1), (0, 10**6), (1, 10**6)


class Form(NamedTuple):
    attributes: dict
    children: tuple = ()
    text: str = r"\s*"


def numbers(first, last):
    return "|".join(map(str, range(first, last + 1)))


CODED = {
    "csd-code": TOKEN, "codeSystemName": TOKEN, "displayName?": TOKEN, "originalText": TOKEN,
}  # fmt: skip
CODE = Form(CODED)
UID = Form({"UID": TOKEN})
FORMS = {
    "AuditMessage": Form(
        {},
        (
            ("EventIdentification", ONE),
            ("ActiveParticipant", SOME),
            ("AuditSourceIdentification", ONE),
            ("ParticipantObjectIdentification", ANY),
        ),
    ),
    "EventIdentification": Form(
        {
            "EventActionCode?": "C|R|U|D|E",
            "EventDateTime": DATE_TIME,
            "EventOutcomeIndicator": "0|4|8|12",
        },
        (("EventID", ONE), ("EventTypeCode", ANY), ("EventOutcomeDescription", MAYBE)),
    ),
    "EventOutcomeDescription": Form({}, (), r".*"),
    "ActiveParticipant": Form(
        {
            "UserID": TOKEN,
            "AlternativeUserID?": TOKEN,
            "UserName?": TOKEN,
            "UserIsRequestor": BOOLEAN,
            "NetworkAccessPointID?": TOKEN,
            "NetworkAccessPointTypeCode?": numbers(1, 5),
        },
        (("RoleIDCode", ANY), ("MediaIdentifier", MAYBE)),
    ),
    "MediaIdentifier": Form({}, (("MediaType", ONE),)),
    "AuditSourceIdentification": Form(
        {"AuditEnterpriseSiteID?": TOKEN, "AuditSourceID": TOKEN},
        (("AuditSourceTypeCode", ANY),),
    ),
    # A single digit, or any code that has the other attributes.
    "AuditSourceTypeCode": Form({"csd-code": numbers(1, 9)}),
    "ParticipantObjectIdentification": Form(
        {
            "ParticipantObjectID": TOKEN,
            "ParticipantObjectTypeCode?": numbers(1, 4),
            "ParticipantObjectTypeCodeRole?": numbers(1, 26),
            "ParticipantObjectDataLifeCycle?": numbers(1, 15),
            "ParticipantObjectSensitivity?": TOKEN,
        },
        (
            ("ParticipantObjectIDTypeCode", ONE),
            ("ParticipantObjectName|ParticipantObjectQuery", ONE),
            ("ParticipantObjectDetail", ANY),
            ("ParticipantObjectDescription", ANY),
        ),
    ),
    "ParticipantObjectName": Form({}, (), r".*"),
    "ParticipantObjectQuery": Form({}, (), BASE64),
    "ParticipantObjectDetail": Form({"type": TOKEN, "value": BASE64}),
    "ParticipantObjectDescription": Form(
        {},
        (
            ("MPPS", ANY),
            ("Accession", ANY),
            ("SOPClass", ANY),
            ("ParticipantObjectContainsStudy", MAYBE),
            ("Encrypted", MAYBE),
            ("Anonymized", MAYBE),
        ),
    ),
    "MPPS": UID,
    "Accession": Form({"Number": TOKEN}),
    "SOPClass": Form({"UID?": TOKEN, "NumberOfInstances": INTEGER}, (("Instance", ANY),)),
    "Instance": UID,
    "ParticipantObjectContainsStudy": Form({}, (("StudyIDs", ANY),)),
    "StudyIDs": UID,
    "Encrypted": Form({}, (), BOOLEAN),
    "Anonymized": Form({}, (), BOOLEAN),
    **dict.fromkeys(
        ("EventID", "EventTypeCode", "RoleIDCode", "MediaType", "ParticipantObjectIDTypeCode"), CODE
    ),
}


def problems(root):
    """Return what of a message is not as the schema wants it."""
    if root.tag != "AuditMessage":
        return [f"the root is {root.tag}"]
    return list(_problems(root))


def _problems(element):
    form = FORMS[element.tag]
    wanted = {name.rstrip("?"): value for name, value in form.attributes.items()}
    for name, value in element.attrib.items():
        if name not in wanted:
            yield f"{element.tag} has {name}"
        elif not _fits(wanted[name], value):
            yield f"{element.tag} {name} is {value}"
    for name in form.attributes:
        if not name.endswith("?") and name not in element.attrib:
            yield f"{element.tag} lacks {name}"
    if not _fits(form.text, element.text or ""):
        yield f"{element.tag} has the text {element.text}"
    children = [child.tag for child in element]
    at = 0
    for names, (least, most) in form.children:
        count = 0
        while at < len(children) and children[at] in names.split("|"):
            at, count = at + 1, count + 1
        if not least <= count <= most:
            yield f"{element.tag} has {count} of {names}"
    if at < len(children):
        yield f"{element.tag} has {children[at]} where it must not be"
        return
    for child in element:
        yield from _problems(child)


def _fits(pattern, value):
    if pattern != BASE64:
        return re.fullmatch(pattern, value, re.DOTALL) is not None
    try:
        base64.b64decode(value, validate=True)
    except ValueError:
        return False
    return True
