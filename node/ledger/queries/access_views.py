"""Questions and answers about consent, policies and access requests.

Whatever is computed here (in force, expired, permitted) holds for a transaction in the next block:
`height` says which that is.
"""

from dataclasses import dataclass

from node.ledger.queries.steps import NextStep

REQUESTS_LIMIT_MAX = 200  # requests on one page
DRAFTS_MAX = 8  # rules tried at once


@dataclass(frozen=True, slots=True)
class ConsentRuleView:
    """One rule of a patient's consent."""

    consent_id: bytes  # 16 bytes
    effect: str  # "permit" or "deny"
    study_id: bytes | None  # None: every study of the subject
    recipient: str | None  # institution; None: every one
    purposes: tuple[str, ...]  # ascending; empty: every purpose
    from_height: int  # the first height at which it holds
    until_height: int | None  # the last height at which it holds, as given; None: no end
    ended_height: int | None  # the last height at which it holds, once withdrawn
    by: str  # "patient" or "custodian"
    form_digest: bytes | None  # 32 bytes, of the signed form
    state: str  # at the next height: "in_force", "not_yet", "withdrawn" or "expired"


@dataclass(frozen=True, slots=True)
class ConsentView:
    """What a custodian has on record for one of its subjects."""

    institution: str  # the custodian
    subject_id: bytes  # 16 bytes
    height: int  # the next height, for which the rest is said
    patient_key: bytes | None  # 32 bytes, of the member that may act for itself
    opted_out: bool  # nothing is permitted but break-glass
    opted_out_from: int | None
    opted_out_until: int | None
    opted_out_by: str | None  # "patient" or "custodian": who alone can end it
    rules: tuple[ConsentRuleView, ...]  # in the order of the record, oldest first
    waiting: tuple[bytes, ...]  # ids of requests that wait for a consent
    next_step: NextStep


@dataclass(frozen=True, slots=True)
class PolicyRuleView:
    """One published rule."""

    name: str
    effect: str  # "permit", "ask" or "deny"
    consent: str  # "required" or "not_objected"
    condition: str  # in the policy language
    from_height: int  # the first height at whose decisions it holds
    until_height: int | None  # the last one, once replaced or retired
    in_force: bool  # at the next height


@dataclass(frozen=True, slots=True)
class PoliciesView:
    """The rules that decide on requests for an institution's studies."""

    institution: str | None  # None: only the consortium's rules were asked for
    height: int  # the next height
    consortium: tuple[PolicyRuleView, ...]  # by name; they hold for everybody
    own: tuple[PolicyRuleView, ...]  # by name; the institution's


@dataclass(frozen=True, slots=True)
class PolicyDraft:
    """A rule that is not published; with it a custodian sees what publishing would change."""

    name: str
    effect: str  # "permit", "ask" or "deny"
    consent: str  # "required" or "not_objected"
    condition: str


@dataclass(frozen=True, slots=True)
class PolicyQuestion:
    """A request that nobody makes: what would become of it?"""

    study_id: bytes  # 16 bytes
    institution: str  # of the requester
    role: str
    purpose: str
    heights: int  # for how long
    uses_max: int
    deidentified: bool = False
    ethics_digest: bytes | None = None  # 32 bytes, of the ethics approval
    time_ms: int | None = None  # when; None: now
    drafts: tuple[PolicyDraft, ...] = ()  # as if the custodian had published these


@dataclass(frozen=True, slots=True)
class RuleTrial:
    """How one rule takes a request."""

    rule: str  # "INSTITUTION/name" or "consortium/name"
    effect: str
    consent: str
    outcome: str  # "match", "no_match" or "error"; a deny that fails counts as a match
    decides: bool
    parts: tuple[tuple[str, bool | None], ...]  # of the condition, and how each came out


@dataclass(frozen=True, slots=True)
class PolicyTrial:
    """What would become of a request in the next block, and why. Nothing was written."""

    question: PolicyQuestion
    height: int  # the next height
    time_ms: int  # for which it was tried
    outcome: str  # "granted", "denied", "waiting_consent", "waiting_person" or "rejected"
    code: str | None  # with "rejected": why the request could not even be made
    refusal: str | None  # the code of consent or policy that keeps it from being granted
    rule: str  # which rule decides: "INSTITUTION/name", "consortium/name", "consent" or empty
    effect: str  # of the policies: "permit", "ask", "deny" or "none"
    consent_needed: str  # "required" or "not_objected"
    consent_effect: str  # of the patient's consent: "permit", "deny" or "none"
    consent_id: bytes | None  # the consent rule that says so
    rules: tuple[RuleTrial, ...]  # the consortium's first, then the custodian's, each by name
    next_step: NextStep


@dataclass(frozen=True, slots=True)
class RequestView:
    """One request for access, from asking to its end."""

    id: bytes  # 16 bytes
    study_id: bytes  # 16 bytes
    custodian: str  # when it was asked
    subject_id: bytes  # 16 bytes
    institution: str  # of the requester
    member_key: bytes  # 32 bytes, of the member that asked
    role: str
    purpose: str
    deidentified: bool
    ethics_digest: bytes | None  # 32 bytes
    heights: int  # for how long access was asked
    uses_max: int
    key_id: bytes | None  # 16 bytes, of the requester's encryption key
    asked_height: int
    state: str  # as it is at the next height; "expired" as soon as its time is over
    recorded_state: str  # as it stands in the ledger
    decided_height: int | None
    decided_by: str  # "rule", "person", "patient"; empty while undecided
    rule: str  # that decided or asked for a person: "consent", a policy, a code; may be empty
    consent_needed: str  # "required", "not_objected", or empty for break-glass
    valid_from: int | None  # the first height at which it can be used
    expires_height: int | None  # the first height at which it waits or permits no more
    wrapped_digest: bytes | None  # 32 bytes, of the key as it was delivered
    delivered_height: int | None
    received_height: int | None
    uses: int
    uses_left: int
    ended_height: int | None
    reason: str | None  # why a person denied or revoked it
    break_glass: bool
    break_glass_reason: str | None
    finding: str | None  # of the review of a break-glass access
    height: int  # the next height, for which the following is said
    permitted: bool  # the study may be delivered, received or used
    in_force: bool  # so it is but for the number of uses: the last one may be brought to its end
    refusal: str | None  # the code why it is not permitted
    next_step: NextStep
    review: NextStep | None  # besides: who has to review an emergency access, until it is done


@dataclass(frozen=True, slots=True)
class RequestQuery:
    """Which requests; None leaves a field open."""

    institution: str | None = None  # of the requester
    custodian: str | None = None
    study_id: bytes | None = None
    state: str | None = None  # as it is now: `RequestView.state`
    break_glass_unreviewed: bool = False  # only emergency accesses that wait for their review
    limit: int = 50
    cursor: str | None = None  # `RequestPage.next_cursor` of the same question


@dataclass(frozen=True, slots=True)
class RequestPage:
    """Part of the answer, newest first. It can be short, even empty, and still have a next one:
    the work for one page is bounded. The answer is complete when `next_cursor` is None."""

    requests: tuple[RequestView, ...]
    next_cursor: str | None
