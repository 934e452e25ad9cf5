"""Access requests: one whole, and lists page by page, newest first.

A page is cut out of the one index that fits the question best; the rest of the question filters.
A state is shown as it is for the next height: a request whose time is over shows as expired before
anybody records that.
"""

from node.ledger.contracts import access_record as record
from node.ledger.contracts.access_record import Request
from node.ledger.contracts.access_steps import DECIDING_ROLES
from node.ledger.contracts.consent.operations import CONSENT_ROLES
from node.ledger.queries import paging
from node.ledger.queries.access_views import (
    REQUESTS_LIMIT_MAX,
    RequestPage,
    RequestQuery,
    RequestView,
)
from node.ledger.queries.moment import Moment
from node.ledger.queries.paging import BadQuery
from node.ledger.queries.steps import NextStep, step
from storage.errors import CorruptRecord

ROWS_MAX = 500  # looked at for one page; a request takes some 40 microseconds

_DELIVERING_ROLES = ("administrator", "gateway")
_REVIEWING_ROLES = ("data_protection_officer",)


def find_request(moment: Moment, request_id: bytes) -> RequestView | None:
    """Return the request with this id (16 bytes), or None. Raises `CorruptRecord`."""
    stored = record.find_request(moment.get, request_id)
    return None if stored is None else view(moment, request_id, stored)


def requests_page(moment: Moment, query: RequestQuery) -> RequestPage:
    """Return the page of `query` that its cursor asks for. Raises `BadQuery`, `CorruptRecord`."""
    _check(query)
    asked = _question(query)
    name, prefixes = _plan(moment, query)
    below = paging.decode_cursor(asked, query.cursor)

    def read(request_id: bytes) -> RequestView | None:
        stored = record.find_request(moment.get, request_id)
        if stored is None:
            raise CorruptRecord("an index names a request that the state does not hold")
        matches = _matches(query, stored, moment.height)
        return view(moment, request_id, stored) if matches else None

    rows = paging.newest_first(moment.chain, name, prefixes, below)
    found, last = paging.cut_page(rows, query.limit, read, ROWS_MAX)
    return RequestPage(tuple(found), paging.next_cursor(asked, last))


def view(moment: Moment, request_id: bytes, stored: Request) -> RequestView:
    """Return what a reader sees of a stored request at `moment`."""
    refusal = record.permitted(moment.get, stored, moment.height)
    state = state_at(stored, moment.height)
    return RequestView(
        id=request_id,
        study_id=stored.study_id,
        custodian=stored.custodian,
        subject_id=stored.subject_id,
        institution=stored.institution,
        member_key=stored.member_key,
        role=stored.role,
        purpose=stored.purpose,
        deidentified=stored.deidentified,
        ethics_digest=stored.ethics_digest,
        heights=stored.heights,
        uses_max=stored.uses_max,
        key_id=stored.key_id,
        asked_height=stored.asked_height,
        state=state,
        recorded_state=stored.state,
        decided_height=stored.decided_height,
        decided_by=stored.decided_by,
        rule=stored.rule,
        consent_needed=stored.consent,
        valid_from=stored.valid_from,
        expires_height=stored.expires_height,
        wrapped_digest=stored.wrapped_digest,
        delivered_height=stored.delivered_height,
        received_height=stored.received_height,
        uses=stored.uses,
        uses_left=max(0, stored.uses_max - stored.uses),
        ended_height=stored.ended_height,
        reason=stored.reason,
        break_glass=stored.break_glass,
        break_glass_reason=stored.break_glass_reason,
        finding=stored.finding,
        height=moment.height,
        permitted=refusal is None,
        in_force=record.is_in_force(moment.get, stored, moment.height),
        refusal=refusal,
        next_step=_next_step(moment, stored, state, refusal),
        review=_review(stored),
    )


def state_at(stored: Request, height: int) -> str:
    """Return the state of a request for an operation at `height`."""
    lives = stored.state in record.OPEN or stored.state in record.WAITING
    return record.EXPIRED if lives and stored.is_due(height) else stored.state


def _next_step(moment: Moment, stored: Request, state: str, refusal: str | None) -> NextStep:
    custodian, institution = (stored.custodian,), (stored.institution,)
    last = None if stored.expires_height is None else stored.expires_height - 1
    if state != stored.state:
        return step("record_expiry")
    if state == record.WAITING_CONSENT:
        return step("give_consent", custodian, CONSENT_ROLES, last)
    if state == record.WAITING_PERSON:
        effect = record.consent_effect(moment.get, stored, moment.height)
        if record.consent_refusal(effect, stored.consent) is not None:
            roles = CONSENT_ROLES | DECIDING_ROLES
            return step("consent_then_approve", custodian, roles, last)
        return step("approve_or_deny", custodian, DECIDING_ROLES, last)
    if state not in record.OPEN:
        return step("ask_anew", institution, (stored.role,))
    if refusal is not None:
        return _unblocking_step(stored, refusal, last)
    if state == record.GRANTED:
        return step("deliver_key", custodian, _DELIVERING_ROLES, last)
    code = "receive_study" if state == record.DELIVERED else "use_study"
    return step(code, institution, {stored.role, "gateway"}, last)


def _unblocking_step(stored: Request, refusal: str, last: int | None) -> NextStep:
    """Return what would let a grant go on that permits nothing at present."""
    if refusal in ("consent_missing", "consent_refused"):
        return step("give_consent", (stored.custodian,), CONSENT_ROLES, last)
    if refusal == "institution_suspended":
        return step("resume_institution", (stored.institution,), (), last)
    if refusal == "request_not_valid_yet":
        return step("await_height")
    return step("ask_anew", (stored.institution,), (stored.role,))


def _review(stored: Request) -> NextStep | None:
    if not stored.break_glass or stored.finding is not None:
        return None
    return step("review_break_glass", (stored.custodian,), _REVIEWING_ROLES)


def _check(query: RequestQuery) -> None:
    paging.check_institution("institution", query.institution)
    paging.check_institution("custodian", query.custodian)
    paging.check_id("study_id", query.study_id)
    paging.check_word("state", query.state, frozenset(record.STATES))
    if type(query.break_glass_unreviewed) is not bool:
        raise BadQuery("break_glass_unreviewed must be true or false")
    paging.check_limit(query.limit, REQUESTS_LIMIT_MAX)


def _question(query: RequestQuery) -> bytes:
    return paging.question(
        "requests",
        query.institution,
        query.custodian,
        query.study_id,
        query.state,
        query.break_glass_unreviewed,
    )


def _plan(moment: Moment, query: RequestQuery) -> tuple[str, list[tuple[bytes, ...]]]:
    """Return the index to read and the prefixes whose rows, merged, hold every match."""
    if query.study_id is not None:
        return record.INDEX_STUDY, [(query.study_id,)]
    if query.break_glass_unreviewed:
        name = record.INDEX_UNREVIEWED
    elif query.state in record.WAITING:
        name = record.INDEX_WAITING
    elif query.institution is not None:
        return record.INDEX_INSTITUTION, [(query.institution.encode(),)]
    else:
        name = record.INDEX_CUSTODIAN
    if query.custodian is not None:
        return name, [(query.custodian.encode(),)]
    return name, [(each,) for each in paging.first_parts(moment.chain, name)]


def _matches(query: RequestQuery, stored: Request, height: int) -> bool:
    unreviewed = stored.break_glass and stored.finding is None
    return (
        query.institution in (None, stored.institution)
        and query.custodian in (None, stored.custodian)
        and query.study_id in (None, stored.study_id)
        and query.state in (None, state_at(stored, height))
        and (unreviewed or not query.break_glass_unreviewed)
    )
