"""Requests for access as they are stored, and whether one permits anything at a height.

State, canonical msgpack led by the record format:

    "request/" + request id (16)                  -> Request
    "asked/" + study id (16) + institution        -> Asked; no row: it never asked for the study

A request that is granted permits from `valid_from` to the height before `expires_height`. One that
waits has an `expires_height` too: nobody decides it from then on. The height counts at once in
every check; `access.expire` only writes it down.

Index rows, for queries only. `ordinal` is that of the request, whatever happens to it later.

    request_institution    (institution, ordinal) -> request id
    request_custodian      (custodian, ordinal)   -> request id
    request_study          (study id, ordinal)    -> request id
    request_waiting        (custodian, ordinal)   -> request id; while it waits, for whatever
    break_glass_unreviewed (custodian, ordinal)   -> request id; until it is reviewed
"""

from typing import NamedTuple

from consensus.wire import NotCanonical, Value, pack, unpack
from node.ledger import accounts
from node.ledger.accounts import Get
from node.ledger.contracts import consent
from node.ledger.contracts.base import Context
from node.ledger.contracts.study import Study, decode_study, study_key
from storage.errors import CorruptRecord

RECORD_FORMAT = 1

WAITING_CONSENT = "waiting_consent"
WAITING_PERSON = "waiting_person"
GRANTED = "granted"
DELIVERED = "delivered"
RECEIVED = "received"
DENIED = "denied"
CANCELLED = "cancelled"
REVOKED = "revoked"
EXPIRED = "expired"

WAITING = frozenset({WAITING_CONSENT, WAITING_PERSON})
OPEN = frozenset({GRANTED, DELIVERED, RECEIVED})

# Why a request in a state that is not `OPEN` permits nothing.
CLOSED_CODES = {
    WAITING_CONSENT: "request_waiting",
    WAITING_PERSON: "request_waiting",
    DENIED: "request_denied",
    CANCELLED: "request_cancelled",
    REVOKED: "request_revoked",
    EXPIRED: "request_expired",
}
STATES = OPEN | CLOSED_CODES.keys()

INDEX_INSTITUTION = "request_institution"
INDEX_CUSTODIAN = "request_custodian"
INDEX_STUDY = "request_study"
INDEX_WAITING = "request_waiting"
INDEX_UNREVIEWED = "break_glass_unreviewed"


class Asked(NamedTuple):
    """That an institution asked for a study, as stored."""

    format: int
    times: int
    request_id: bytes  # of the last request


class Request(NamedTuple):
    """One request for access to one study, as stored; the defaults are those of a new one."""

    format: int
    study_id: bytes
    custodian: str  # when it was asked; if custody moves on, the request permits nothing more
    subject_id: bytes  # the custodian's pseudonym
    institution: str  # that asks
    member_key: bytes  # 32 bytes, of the member that asks
    role: str  # in which the member asks
    purpose: str
    deidentified: bool = False  # a de-identified copy is what is asked for
    ethics_digest: bytes | None = None  # 32 bytes, of an approval that both sides know
    heights: int = 0  # for how long, from the grant
    uses_max: int = 0
    key_id: bytes | None = None  # 16 bytes, of the asker's encryption key
    asked_height: int = 0
    state: str = ""
    decided_height: int | None = None  # as of which it was decided
    decided_by: str = ""  # "", "rule", "person" or "patient"
    rule: str = ""  # "consent", a policy, "break_glass", or the code or reason of a denial
    consent: str = ""  # what the grant rests on: "required", "not_objected", "" for break-glass
    valid_from: int | None = None
    expires_height: int | None = None  # the first height at which it waits or permits no more
    wrapped_digest: bytes | None = None  # 32 bytes, of the study's key as delivered
    delivered_height: int | None = None
    received_height: int | None = None
    uses: int = 0
    ended_height: int | None = None
    reason: str | None = None  # why a person denied or revoked it
    break_glass: bool = False
    break_glass_reason: str | None = None
    finding: str | None = None  # of the review of a break-glass
    ordinal: bytes = b""

    def is_due(self, height: int) -> bool:
        """Return whether a request that waits or permits is over at `height`."""
        return self.expires_height is not None and height >= self.expires_height


def request_key(request_id: bytes) -> bytes:
    """Return the state key of a request."""
    return b"request/" + request_id


def asked_key(study_id: bytes, institution: str) -> bytes:
    """Return the state key of what an institution ever asked for a study."""
    return b"asked/" + study_id + institution.encode()


def decode_request(row: bytes) -> Request:
    """Return the stored request. Raises `CorruptRecord`."""
    request = Request(*_fields(row, len(Request._fields)))  # type: ignore[arg-type]
    if request.state not in STATES:
        raise CorruptRecord("the state holds a request in a state that is none")
    return request


def decode_asked(row: bytes) -> Asked:
    """Return what is stored of an institution that asked. Raises `CorruptRecord`."""
    return Asked(*_fields(row, len(Asked._fields)))  # type: ignore[arg-type]


def _fields(row: bytes, count: int) -> tuple[Value, ...]:
    try:
        value = unpack(row)
    except NotCanonical as error:
        raise CorruptRecord("the state holds a request record that cannot be read") from error
    if type(value) is not tuple or len(value) != count or value[0] != RECORD_FORMAT:
        raise CorruptRecord("the state holds a request record of another format")
    return value


def find_request(get: Get, request_id: bytes) -> Request | None:
    """Return the request of this id, or None. Raises `CorruptRecord`."""
    row = get(request_key(request_id))
    return None if row is None else decode_request(row)


def store_new(context: Context, request_id: bytes, request: Request) -> None:
    """Write a request for the first time, and what finds it again. Raises as `store` does."""
    store(context, request_id, request)
    ordinal = request.ordinal
    context.index(INDEX_INSTITUTION, (request.institution.encode(), ordinal), request_id)
    context.index(INDEX_CUSTODIAN, (request.custodian.encode(), ordinal), request_id)
    context.index(INDEX_STUDY, (request.study_id, ordinal), request_id)
    if request.break_glass:
        context.index(INDEX_UNREVIEWED, (request.custodian.encode(), ordinal), request_id)
    key = asked_key(request.study_id, request.institution)
    row = context.state.get(key)
    times = 1 if row is None else decode_asked(row).times + 1
    context.state.put(key, pack(Asked(RECORD_FORMAT, times, request_id)))


def store(context: Context, request_id: bytes, request: Request, before: str = "") -> None:
    """Write a request and keep right what follows from its state: the consent's waiting list and
    the custodian's index of what waits. `before` is the state so far, "" for a new one.

    Raises `Rejected` if the patient has too many requests waiting for consent.
    """
    custodian, state = request.custodian, request.state
    if (before == WAITING_CONSENT) != (state == WAITING_CONSENT):
        change = consent.add_waiting if state == WAITING_CONSENT else consent.remove_waiting
        change(context, custodian, request.subject_id, request_id)
    if (before in WAITING) != (state in WAITING):
        parts = (custodian.encode(), request.ordinal)
        if state in WAITING:
            context.index(INDEX_WAITING, parts, request_id)
        else:
            context.unindex(INDEX_WAITING, parts)
    context.state.put(request_key(request_id), pack(request))


def permitted(get: Get, request: Request, height: int) -> str | None:
    """Return None if `request` permits access at `height`, else the code that says why not.

    Asks everything anew: a grant lives only as long as its term and uses last, its study stays
    with the custodian and is not retired, the asker is not suspended, and consent does not stop
    it. Break-glass does not ask for consent. `get` reads the state. Raises `CorruptRecord`.
    """
    code = _course_refusal(request, height)
    if code is not None:
        return code
    if request.uses >= request.uses_max:
        return "uses_spent"
    return _world_refusal(get, request, height)


def is_in_force(get: Get, request: Request, height: int) -> bool:
    """Return whether access is permitted but for the number of uses: then what was counted as the
    last use may be brought to its end. Raises `CorruptRecord`."""
    refusal = _course_refusal(request, height) or _world_refusal(get, request, height)
    return refusal is None


def _course_refusal(request: Request, height: int) -> str | None:
    code = CLOSED_CODES.get(request.state)
    if code is not None:
        return code
    if request.valid_from is None or height < request.valid_from:
        return "request_not_valid_yet"
    return "request_expired" if request.is_due(height) else None


def _world_refusal(get: Get, request: Request, height: int) -> str | None:
    row = get(study_key(request.study_id))
    if row is None:
        return "study_unknown"
    code = study_refusal(decode_study(row), request.custodian, request.subject_id)
    if code is not None:
        return code
    if not accounts.is_active_institution(get, request.institution):
        return "institution_suspended"
    if request.break_glass:
        return None
    return consent_refusal(consent_effect(get, request, height), request.consent)


def study_refusal(study: Study, custodian: str, subject_id: bytes) -> str | None:
    """Return why no access to `study` is given by this custodian for this subject, or None.

    A study that comes back under another pseudonym has moved too: what the patient forbade on its
    way is on record under the new one only.
    """
    if study.erased_height is not None:
        return "study_erased"
    if study.retired is not None:
        return "study_retired"
    if (study.custodian, study.subject_id) != (custodian, subject_id):
        return "custody_moved"
    return None


def consent_effect(get: Get, request: Request, height: int) -> str:
    """Return what consent says to `request` at `height`: "permit", "deny" or "none"."""
    return consent.status(
        get,
        request.custodian,
        request.subject_id,
        request.study_id,
        request.institution,
        request.purpose,
        height,
    ).effect


def consent_refusal(effect: str, needed: str) -> str | None:
    """Return the code if consent of this `effect` is not what is `needed`, or None."""
    if effect == "deny":
        return "consent_refused"
    return "consent_missing" if effect == "none" and needed == "required" else None
