"""The consent record: its rows, what it says about a use, and which requests wait for it.

State, all values canonical msgpack and led by the record format:

    "consent/" + institution + "/" + subject id (16)   -> Consent

Ended rules stay for readers until their room is needed.

Index rows, for queries only:

    consent         (institution, subject id, ordinal)   -> consent id
    consent_subject (institution, subject id)            -> empty
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple, TypeAlias

from consensus.wire import NotCanonical, pack, unpack
from node.ledger.contracts.base import Context
from node.ledger.errors import Rejected
from storage.errors import CorruptRecord

RECORD_FORMAT = 1
RULES_MAX = 64  # of one subject at one custodian
WAITING_MAX = 16  # requests that wait for one subject's consent

PERMIT, DENY, NONE = "permit", "deny", "none"
OPTED_OUT = "opted_out"  # what an opt-out becomes when a study goes to another custodian
PATIENT, CUSTODIAN = "patient", "custodian"

REJECTIONS = {
    "consent_full": f"the subject has {RULES_MAX} rules that have not ended; withdraw some",
    "waiting_full": f"{WAITING_MAX} requests wait for the subject's consent already",
}

INDEX_CONSENT = "consent"
INDEX_SUBJECT = "consent_subject"

Get: TypeAlias = Callable[[bytes], bytes | None]


class Rule(NamedTuple):
    """One permission or prohibition. It holds from `from_height` to the lower of `until_height` and
    `ended_height`, all inclusive; None is no limit."""

    consent_id: bytes
    effect: str  # PERMIT, DENY or OPTED_OUT
    study_id: bytes | None  # None: every study of the subject
    recipient: str | None  # an institution; None: every one
    purposes: tuple[str, ...]  # ascending; empty: every purpose
    from_height: int
    until_height: int | None  # as asked when the rule was made
    ended_height: int | None  # set by withdrawal
    by: str  # PATIENT or CUSTODIAN
    form_digest: bytes | None  # 32 bytes; None when by the patient

    def holds(self, height: int) -> bool:
        """Return whether the rule counts for decisions at `height`."""
        return self.from_height <= height and not self.is_over(height)

    def is_over(self, height: int) -> bool:
        """Return whether the rule counts neither at `height` nor ever after."""
        return (self.until_height is not None and self.until_height < height) or (
            self.ended_height is not None and self.ended_height < height
        )

    def covers(self, study_id: bytes, recipient: str, purpose: str) -> bool:
        """Return whether the rule is about this use, whenever that is."""
        return (
            self.study_id in (None, study_id)
            and self.recipient in (None, recipient)
            and (not self.purposes or purpose in self.purposes)
        )

    @property
    def rank(self) -> int:
        """How specific the rule is; the highest that holds decides."""
        return (
            4 * (self.study_id is not None)
            + 2 * (self.recipient is not None)
            + (len(self.purposes) > 0)
        )


class Consent(NamedTuple):
    """All that one custodian holds of one subject's consent, as stored."""

    format: int = RECORD_FORMAT
    patient_key: bytes | None = None  # 32 bytes
    opted_out_from: int | None = None  # the latest opt-out; None: there was none
    opted_out_until: int | None = None  # its last height; None: it lasts
    opted_out_by: str | None = None  # PATIENT or CUSTODIAN
    rules: tuple[Rule, ...] = ()  # oldest first, at most RULES_MAX
    waiting: tuple[bytes, ...] = ()  # request ids, oldest first, at most WAITING_MAX

    @property
    def is_opted_out(self) -> bool:
        """Whether the latest opt-out was not taken back, be it in force yet or not."""
        return self.opted_out_from is not None and self.opted_out_until is None

    def opted_out(self, height: int) -> bool:
        """Return whether an opt-out counts for decisions at `height`."""
        return (
            self.opted_out_from is not None
            and self.opted_out_from <= height
            and (self.opted_out_until is None or height <= self.opted_out_until)
        )


class ConsentAnswer(NamedTuple):
    """What consent says about one use."""

    effect: str  # PERMIT, DENY or NONE
    consent_id: bytes | None  # the rule that decided; None for an opt-out and for NONE


def consent_key(institution: str, subject_id: bytes) -> bytes:
    """Return the state key of a subject's consent; `subject_id` has 16 bytes."""
    return b"consent/" + institution.encode() + b"/" + subject_id


# The same record is read for every chunk of an exchange; one has up to 10 KB.
@lru_cache(maxsize=256)
def decode_consent(row: bytes) -> Consent:
    """Return the stored consent. Raises `CorruptRecord`."""
    try:
        match unpack(row):
            case (1, _, _, _, _, tuple(rules), tuple()) as value:
                made = [Rule(*each) for each in rules if type(each) is tuple]  # type: ignore[arg-type]
                if len(made) == len(rules):
                    return Consent(*value)._replace(rules=tuple(made))  # type: ignore[arg-type]
        raise ValueError("another record format")
    except (NotCanonical, TypeError, ValueError) as error:
        raise CorruptRecord("the state holds a consent record that cannot be read") from error


def get_consent(get: Get, institution: str, subject_id: bytes) -> Consent:
    """Return a subject's consent, an empty one if nothing is stored. Raises `CorruptRecord`."""
    row = get(consent_key(institution, subject_id))
    return Consent() if row is None else decode_consent(row)


def patient_key(get: Get, institution: str, subject_id: bytes) -> bytes | None:
    """Return the key (32 bytes) that decides for the subject, or None. Raises `CorruptRecord`."""
    return get_consent(get, institution, subject_id).patient_key


def status(
    get: Get,
    custodian: str,
    subject_id: bytes,
    study_id: bytes,
    recipient: str,
    purpose: str,
    height: int,
) -> ConsentAnswer:
    """Return what consent says about a use decided at `height`.

    Opted out is DENY, be it here or where the study came from. Else the most specific rule in force
    decides: about the study, before about the recipient, before about purposes; DENY among equals.
    NONE is no consent: what follows from that is the policy's to say. `height` is the current one
    or later: of earlier ones the record may have forgotten what has ended since.
    """
    consent = get_consent(get, custodian, subject_id)
    if consent.opted_out(height):
        return ConsentAnswer(DENY, None)
    found: tuple[int, bool, bytes] | None = None
    for rule in consent.rules:
        if rule.holds(height) and rule.covers(study_id, recipient, purpose):
            if rule.effect == OPTED_OUT:
                return ConsentAnswer(DENY, rule.consent_id)
            candidate = rule.rank, rule.effect == DENY, rule.consent_id
            if found is None or candidate > found:
                found = candidate
    if found is None:
        return ConsentAnswer(NONE, None)
    _, denied, consent_id = found
    return ConsentAnswer(DENY if denied else PERMIT, consent_id)


def add_waiting(context: Context, custodian: str, subject_id: bytes, request_id: bytes) -> None:
    """Have `request_id` decided anew when the subject's consent changes for the better.

    Raises `Rejected` with waiting_full. A request that waits already is left where it is.
    """
    consent = get_consent(context.state.get, custodian, subject_id)
    if request_id in consent.waiting:
        return
    if len(consent.waiting) == WAITING_MAX:
        raise Rejected("waiting_full")
    put_consent(
        context, custodian, subject_id, consent._replace(waiting=(*consent.waiting, request_id))
    )


def remove_waiting(context: Context, custodian: str, subject_id: bytes, request_id: bytes) -> None:
    """Take `request_id` off the list; one that is not on it is no error."""
    consent = get_consent(context.state.get, custodian, subject_id)
    left = tuple([each for each in consent.waiting if each != request_id])
    if left != consent.waiting:
        put_consent(context, custodian, subject_id, consent._replace(waiting=left))


def add_rules(
    context: Context, institution: str, subject_id: bytes, added: Sequence[tuple[bytes, Rule]]
) -> None:
    """Store new rules and list each under its ordinal, which no other rule has.

    If there is no room the oldest rules that are over make it; else raises `Rejected` with
    consent_full.
    """
    if not added:
        return
    consent = get_consent(context.state.get, institution, subject_id)
    rules = list(consent.rules)
    excess = len(rules) + len(added) - RULES_MAX
    for over in [each for each in rules if each.is_over(context.height)][: max(0, excess)]:
        rules.remove(over)
    if len(rules) + len(added) > RULES_MAX:
        raise Rejected("consent_full")
    rules += [rule for _, rule in added]
    put_consent(context, institution, subject_id, consent._replace(rules=tuple(rules)))
    for ordinal, rule in added:
        context.index(INDEX_CONSENT, (institution.encode(), subject_id, ordinal), rule.consent_id)


def put_consent(context: Context, institution: str, subject_id: bytes, consent: Consent) -> None:
    """Store a subject's consent; the first one also lists the subject."""
    key = consent_key(institution, subject_id)
    if context.state.get(key) is None:
        context.index(INDEX_SUBJECT, (institution.encode(), subject_id))
    context.state.put(key, pack(consent))
