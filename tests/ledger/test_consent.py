"""The consent contract, rule by rule."""

import contextlib
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consensus.wire import pack
from node.ledger import accounts
from node.ledger.contracts import consent, study, study_erasure
from node.ledger.contracts.consent import operations
from node.ledger.contracts.vocabulary import PURPOSES
from node.ledger.errors import Refused, Rejected
from storage.errors import CorruptRecord
from tests.ledger import contract_ledger
from tests.ledger.contract_ledger import digest, identity

S1, S2, SUBJECT, STRANGER = map(identity, ("s1", "s2", "subject", "stranger"))
C1, C2, C3 = map(identity, ("c1", "c2", "c3"))
FORM, KEY, OTHER_KEY = map(digest, ("form", "key", "other key"))
PATIENT = {"key": KEY, "roles": ("patient",)}
HEIGHT = 7

GOOD = {
    "consent.grant": (C1, SUBJECT, S1, "ukaachen", ("HRESCH", "TREAT"), 100, FORM),
    "consent.restrict": (C1, SUBJECT, None, None, (), None, FORM),
    "consent.withdraw": (SUBJECT, C1, FORM),
    "consent.opt_out": (SUBJECT, FORM),
    "consent.opt_in": (SUBJECT, FORM),
    "consent.bind": (SUBJECT, KEY),
}


class Ledger(contract_ledger.Ledger):
    """One custodian, charite, with two studies of one subject, whose key is not bound yet."""

    def __init__(self):
        self.reconsidered = []
        super().__init__(
            (*study.KINDS, *study_erasure.KINDS, *consent.kinds(self._reconsider)),
        )
        for name in (S1, S2):
            self.apply("study.register", name, SUBJECT, digest(name), "CT", "chest", 5, 8, height=1)
        self.add_member("charite", KEY, "patient")

    def _reconsider(self, context, request_id):
        get = self.state.get
        self.reconsidered.append((request_id, self.stored(), context.height))
        assert get(consent.consent_key("charite", SUBJECT)) is not None
        consent.remove_waiting(context, "charite", SUBJECT, request_id)

    def stored(self, subject=SUBJECT):
        return consent.get_consent(self.state.get, "charite", subject)

    def status(self, height=HEIGHT + 1, of=S1, recipient="ukaachen", purpose="TREAT"):
        return consent.status(self.state.get, "charite", SUBJECT, of, recipient, purpose, height)

    def bind(self):
        self.apply("consent.bind", SUBJECT, KEY, height=1)

    def rule(
        self, verb, consent_id, study_id=None, recipient=None, purposes=(), until=None, **sender
    ):
        form = None if sender.get("roles") == ("patient",) else FORM
        arguments = (consent_id, SUBJECT, study_id, recipient, purposes, until, form)
        return self.apply(f"consent.{verb}", *arguments, **sender)

    def wait(self, *request_ids):
        row = pack(self.stored()._replace(waiting=request_ids))
        self.state.put(consent.consent_key("charite", SUBJECT), row)


@pytest.fixture
def ledger():
    return Ledger()


@pytest.mark.parametrize(("verb", "effect"), [("grant", "permit"), ("restrict", "deny")])
def test_a_rule_is_stored_as_asked_and_holds_from_the_next_height(ledger, verb, effect):
    done = {"grant": "granted", "restrict": "restricted"}[verb]
    arguments = (C1, SUBJECT, S1, "ukaachen", ("TREAT", "HRESCH"), 100, FORM)
    assert ledger.apply(f"consent.{verb}", *arguments) == [
        (f"consent_{done}", ("charite", SUBJECT, C1, "custodian"))
    ]
    scope = (S1, "ukaachen", ("HRESCH", "TREAT"))
    assert ledger.stored().rules == (
        consent.Rule(C1, effect, *scope, HEIGHT + 1, 100, None, "custodian", FORM),
    )
    assert ledger.status(HEIGHT) == ("none", None)
    assert ledger.status(HEIGHT + 1) == (effect, C1)
    assert ledger.status(100) == (effect, C1)
    assert ledger.status(101) == ("none", None)


@pytest.mark.parametrize("verb", ["grant", "restrict"])
def test_withdrawal_ends_a_rule_with_its_own_height(ledger, verb):
    ledger.rule(verb, C1)
    before = ledger.status(20)
    assert ledger.apply("consent.withdraw", SUBJECT, C1, FORM, height=20) == [
        ("consent_withdrawn", ("charite", SUBJECT, C1, "custodian"))
    ]
    assert ledger.stored().rules[0].ended_height == 20
    assert (ledger.status(20), ledger.status(21)) == (before, ("none", None))


def test_a_rule_withdrawn_in_its_own_block_never_holds(ledger):
    ledger.rule("grant", C1)
    ledger.apply("consent.withdraw", SUBJECT, C1, FORM)
    assert {ledger.status(height).effect for height in range(HEIGHT, HEIGHT + 5)} == {"none"}


def test_opting_out_beats_every_rule_from_the_next_height(ledger):
    ledger.rule("grant", C1, S1, "ukaachen", ("TREAT",))
    assert ledger.apply("consent.opt_out", SUBJECT, FORM, height=9) == [
        ("consent_opted_out", ("charite", SUBJECT, "custodian"))
    ]
    assert (ledger.status(9), ledger.status(10)) == (("permit", C1), ("deny", None))
    assert ledger.apply("consent.opt_in", SUBJECT, FORM, height=12) == [
        ("consent_opted_in", ("charite", SUBJECT, "custodian"))
    ]
    assert (ledger.status(12), ledger.status(13)) == (("deny", None), ("permit", C1))


def test_opting_in_and_out_within_a_block_changes_nothing_at_its_height(ledger):
    ledger.apply("consent.opt_out", SUBJECT, FORM, height=5)
    for name in ("opt_in", "opt_out", "opt_in", "opt_out"):
        ledger.apply(f"consent.{name}", SUBJECT, FORM, height=9)
        assert ledger.status(9) == ("deny", None)
    assert ledger.status(10) == ("deny", None)
    ledger.apply("consent.opt_in", SUBJECT, FORM, height=9)
    assert ledger.status(10) == ("none", None)


SCOPES = list(product((None, S1), (None, "ukaachen"), ((), ("TREAT",))))


@pytest.mark.parametrize("broad", range(len(SCOPES)))
@pytest.mark.parametrize("narrow", range(len(SCOPES)))
@pytest.mark.parametrize(("first", "second"), [("grant", "restrict"), ("restrict", "grant")])
def test_the_most_specific_rule_wins_and_refusal_wins_ties(ledger, broad, narrow, first, second):
    """SCOPES are in order of rank: study before recipient before purposes."""
    ledger.rule(first, C1, *SCOPES[broad])
    ledger.rule(second, C2, *SCOPES[narrow])
    if broad == narrow:
        expected = C1 if first == "restrict" else C2
    else:
        expected = C1 if broad > narrow else C2
    verb = first if expected == C1 else second
    assert ledger.status() == ({"grant": "permit", "restrict": "deny"}[verb], expected)


@pytest.mark.parametrize("scope", [(S2,), (None, "third"), (None, None, ("HRESCH", "PATRQT"))])
def test_a_rule_about_something_else_says_nothing(ledger, scope):
    ledger.rule("grant", C1, *scope)
    assert ledger.status() == ("none", None)


def test_other_custodians_and_subjects_are_not_touched(ledger):
    ledger.rule("restrict", C1)
    get = ledger.state.get
    for custodian, subject in (("ukaachen", SUBJECT), ("charite", STRANGER)):
        answer = consent.status(get, custodian, subject, S1, "third", "TREAT", 20)
        assert answer == ("none", None)


def test_a_bound_patient_acts_alone_and_staff_by_form(ledger):
    ledger.bind()
    assert ledger.rule("grant", C1, **PATIENT)[0][1][-1] == "patient"
    assert ledger.stored().rules[0][-2:] == ("patient", None)
    for role in sorted(operations.STAFF_ROLES):
        ledger.rule("grant", identity(role), roles=(role,))
    assert {rule[-2:] for rule in ledger.stored().rules[1:]} == {("custodian", FORM)}


def test_what_the_patient_set_only_the_patient_ends(ledger):
    ledger.bind()
    ledger.rule("restrict", C1, **PATIENT)
    ledger.rule("restrict", C2)
    ledger.apply("consent.opt_out", SUBJECT, None, **PATIENT)
    refused = {
        ledger.refusal("consent.withdraw", SUBJECT, C1, FORM),
        ledger.refusal("consent.opt_in", SUBJECT, FORM),
    }
    assert refused == {"patient_decides"}
    ledger.apply("consent.withdraw", SUBJECT, C2, None, **PATIENT)
    ledger.apply("consent.withdraw", SUBJECT, C1, None, **PATIENT)
    ledger.apply("consent.opt_in", SUBJECT, None, **PATIENT)
    assert ledger.status().effect == "none"


def test_a_patient_takes_over_the_custodians_opt_out(ledger):
    ledger.bind()
    ledger.apply("consent.opt_out", SUBJECT, FORM, height=5)
    ledger.apply("consent.opt_out", SUBJECT, None, height=9, **PATIENT)
    assert {ledger.status(height).effect for height in (6, 9, 10)} == {"deny"}
    assert ledger.refusal("consent.opt_in", SUBJECT, FORM, height=9) == "patient_decides"
    for form, sender in ((None, PATIENT), (FORM, {})):
        assert ledger.refusal("consent.opt_out", SUBJECT, form, height=9, **sender) == "opted_out"


def test_binding_moves_the_say_from_key_to_key(ledger):
    ledger.add_member("charite", OTHER_KEY, "patient")
    assert ledger.apply("consent.bind", SUBJECT, KEY) == [
        ("consent_bound", ("charite", SUBJECT, "bound"))
    ]
    assert consent.patient_key(ledger.state.get, "charite", SUBJECT) == KEY
    ledger.rule("restrict", C1, **PATIENT)
    ledger.apply("consent.bind", SUBJECT, OTHER_KEY)
    withdraw = ("consent.withdraw", SUBJECT, C1, None)
    assert ledger.refusal(*withdraw, **PATIENT) == "patient_not_bound"
    ledger.apply(*withdraw, key=OTHER_KEY, roles=("patient",))
    assert ledger.apply("consent.bind", SUBJECT, None)[0][1][-1] == "unbound"
    assert ledger.refusal("consent.opt_out", SUBJECT, None, **PATIENT) == "patient_not_bound"


def test_a_bound_key_counts_in_its_own_institution_and_role_alone(ledger):
    ledger.bind()
    opt_out = ("consent.opt_out", SUBJECT, None)
    other = PATIENT | {"institution": "ukaachen"}
    assert ledger.refusal(*opt_out, **other) == "patient_not_bound"
    assert ledger.refusal(*opt_out, key=KEY, roles=("clinician",)) == "form_missing"


def prepare(ledger, *steps):
    for step in steps:
        match step:
            case "bound":
                ledger.bind()
            case "erased":
                ledger.apply("study.erase", S1, "other", height=2)
            case "full":
                for number in range(consent.RULES_MAX):
                    ledger.rule("grant", identity(("full", number)), height=2)
            case "short":
                ledger.rule("grant", C1, until=5, height=2)
            case (name, *arguments):
                ledger.apply(name, *arguments, height=2)


GRANT = ("consent.grant", C1, SUBJECT, None, None, (), None, FORM)
WITHDRAW = ("consent.withdraw", SUBJECT, C1, FORM)


@pytest.mark.parametrize(
    ("before", "operation", "sender", "code"),
    [
        ([], (*GRANT[:-1], None), {}, "form_missing"),
        ([], (*GRANT[:-1], None), PATIENT, "patient_not_bound"),
        (["bound"], GRANT, PATIENT, "form_unexpected"),
        (["bound"], (*GRANT[:-1], None), PATIENT | {"key": OTHER_KEY}, "patient_not_bound"),
        ([], ("consent.grant", C1, SUBJECT, None, "nowhere", (), None, FORM), {},
         "institution_unknown"),
        ([], ("consent.grant", C1, SUBJECT, identity("?"), None, (), None, FORM), {},
         "study_unknown"),
        ([], ("consent.grant", C1, STRANGER, S1, None, (), None, FORM), {}, "subject_mismatch"),
        ([], ("consent.grant", C1, SUBJECT, S1, None, (), None, FORM),
         {"institution": "ukaachen"}, "not_custodian"),
        (["erased"], ("consent.grant", C1, SUBJECT, S1, None, (), None, FORM), {}, "study_erased"),
        ([], ("consent.grant", C1, SUBJECT, None, None, (), HEIGHT, FORM), {}, "until_passed"),
        ([GRANT], GRANT, {}, "consent_exists"),
        ([GRANT], ("consent.restrict", *GRANT[1:]), {}, "consent_exists"),
        (["full"], GRANT, {}, "consent_full"),
        ([], WITHDRAW, {}, "consent_unknown"),
        ([GRANT], ("consent.withdraw", SUBJECT, C2, FORM), {}, "consent_unknown"),
        ([GRANT], ("consent.withdraw", SUBJECT, C1, None), {}, "form_missing"),
        ([GRANT, WITHDRAW], WITHDRAW, {}, "consent_ended"),
        (["short"], WITHDRAW, {}, "consent_ended"),
        ([], ("consent.opt_in", SUBJECT, FORM), {}, "opted_in"),
        ([("consent.opt_out", SUBJECT, FORM)], ("consent.opt_out", SUBJECT, FORM), {},
         "opted_out"),
        ([("consent.opt_out", SUBJECT, FORM), ("consent.opt_in", SUBJECT, FORM)],
         ("consent.opt_in", SUBJECT, FORM), {}, "opted_in"),
        ([], ("consent.opt_out", SUBJECT, None), {}, "form_missing"),
        ([("consent.opt_out", SUBJECT, FORM)], ("consent.opt_in", SUBJECT, None), {},
         "form_missing"),
        ([], ("consent.bind", SUBJECT, None), {}, "binding_unchanged"),
        (["bound"], ("consent.bind", SUBJECT, KEY), {}, "binding_unchanged"),
        ([], ("consent.bind", SUBJECT, OTHER_KEY), {}, "member_unknown"),
        ([], ("consent.bind", SUBJECT, KEY), {"institution": "ukaachen"}, "member_unknown"),
    ],
)  # fmt: skip
def test_a_rule_that_is_broken_is_named_and_nothing_changes(
    ledger, before, operation, sender, code
):
    prepare(ledger, *before)
    assert ledger.refusal(*operation, **sender) == code
    assert code in consent.REJECTIONS


def test_only_an_active_patients_key_is_bound(ledger):
    ledger.add_member("charite", OTHER_KEY, "clinician")
    assert ledger.refusal("consent.bind", SUBJECT, OTHER_KEY) == "key_not_patient"
    ledger.add_member("charite", OTHER_KEY, "patient", active=False)
    assert ledger.refusal("consent.bind", SUBJECT, OTHER_KEY) == "member_unknown"


def test_who_may_send_what(ledger):
    for name, arguments in GOOD.items():
        for role in ("auditor", "researcher"):
            with pytest.raises(Rejected, match="role_missing"):
                ledger.apply(name, *arguments, roles=(role,))
    for role in ("clinician", "data_protection_officer", "patient"):
        with pytest.raises(Rejected, match="role_missing"):
            ledger.apply("consent.bind", SUBJECT, KEY, roles=(role,))


def test_ended_rules_make_room_oldest_first(ledger):
    for number in range(consent.RULES_MAX):
        ledger.rule("grant", identity(number), until=9 if number == 5 else None)
    ledger.apply("consent.withdraw", SUBJECT, identity(7), FORM, height=8)
    # Both still count at their last heights, so neither makes room at those.
    assert ledger.refusal("consent.grant", C1, *GRANT[2:], height=8) == "consent_full"
    ledger.rule("grant", C1, height=9)
    assert ledger.refusal("consent.grant", C2, *GRANT[2:], height=9) == "consent_full"
    ledger.rule("grant", C2, height=10)
    left = [rule.consent_id for rule in ledger.stored().rules]
    expected = [identity(each) for each in range(consent.RULES_MAX) if each not in (5, 7)]
    assert left == [*expected, C1, C2]


def test_a_full_record_can_still_be_opted_out_of_and_withdrawn_from(ledger):
    prepare(ledger, "full")
    ledger.apply("consent.opt_out", SUBJECT, FORM)
    ledger.apply("consent.withdraw", SUBJECT, identity(("full", 0)), FORM)
    assert ledger.status().effect == "deny"


REQUESTS = tuple(identity(("request", number)) for number in range(3))


@pytest.mark.parametrize(
    ("before", "operation"),
    [
        ([], GRANT),
        ([("consent.opt_out", SUBJECT, FORM)], ("consent.opt_in", SUBJECT, FORM)),
        ([("consent.restrict", *GRANT[1:])], WITHDRAW),
    ],
)
def test_what_waits_is_decided_when_consent_gets_better(ledger, before, operation):
    prepare(ledger, *before)
    ledger.wait(*REQUESTS)
    ledger.apply(*operation)
    assert [each[0] for each in ledger.reconsidered] == list(REQUESTS)
    assert {each[2] for each in ledger.reconsidered} == {HEIGHT}
    # Each decision sees the change itself.
    assert ledger.reconsidered[0][1] == ledger.stored()._replace(waiting=REQUESTS)
    assert ledger.stored().waiting == ()


@pytest.mark.parametrize(
    ("before", "operation"),
    [
        ([], ("consent.restrict", *GRANT[1:])),
        ([], ("consent.opt_out", SUBJECT, FORM)),
        ([], ("consent.bind", SUBJECT, KEY)),
        ([GRANT], WITHDRAW),
    ],
)
def test_what_waits_goes_on_waiting_otherwise(ledger, before, operation):
    prepare(ledger, *before)
    ledger.wait(*REQUESTS)
    ledger.apply(*operation)
    assert ledger.reconsidered == []
    assert ledger.stored().waiting == REQUESTS


def waiting_context(ledger):
    return contract_ledger.Context(
        ledger.state, HEIGHT, 0, 0, "ukaachen", bytes(32), frozenset({"clinician"})
    )


def test_the_waiting_list_is_bounded_and_names_each_request_once(ledger):
    context = waiting_context(ledger)
    requests = [identity(("many", number)) for number in range(consent.WAITING_MAX)]
    for request_id in requests * 2:
        consent.add_waiting(context, "charite", SUBJECT, request_id)
    assert ledger.stored().waiting == tuple(requests)
    with pytest.raises(Rejected, match="waiting_full"):
        consent.add_waiting(context, "charite", SUBJECT, identity("one more"))
    consent.remove_waiting(context, "charite", SUBJECT, requests[3])
    consent.remove_waiting(context, "charite", SUBJECT, requests[3])
    consent.remove_waiting(context, "ukaachen", SUBJECT, requests[0])
    assert ledger.stored().waiting == tuple(requests[:3] + requests[4:])
    assert ledger.state.get(consent.consent_key("ukaachen", SUBJECT)) is None


def test_index_rows_list_subjects_once_and_rules_in_order(ledger):
    ledger.bind()
    for number, consent_id in enumerate((C2, C1, C3)):
        ledger.rule("grant", consent_id, height=8 + number)
    assert ledger.index(consent.INDEX_SUBJECT) == {(b"charite", SUBJECT): b""}
    rows = ledger.index(consent.INDEX_CONSENT)
    assert [rows[parts] for parts in sorted(rows)] == [C2, C1, C3]
    assert {parts[:2] for parts in rows} == {(b"charite", SUBJECT)}
    assert sum(row[0] == consent.INDEX_SUBJECT for row in ledger.state.index_changes()) == 1


def test_the_trail_of_a_study_shows_the_rules_that_name_it(ledger):
    ledger.rule("grant", C1, S1)
    ledger.rule("restrict", C2)
    ledger.apply("consent.withdraw", SUBJECT, C1, FORM)
    ledger.apply("consent.opt_out", SUBJECT, FORM)
    assert (ledger.trail(S1), ledger.trail(S2)) == (2, 0)


TEXT = b"DOE^JANE 1970-01"


@pytest.mark.parametrize(
    ("name", "position", "value"),
    [
        *(
            (name, position, value)
            for name, positions in {
                "consent.grant": (0, 1, 2),
                "consent.restrict": (0, 1, 2),
                "consent.withdraw": (0, 1),
                "consent.opt_out": (0,),
                "consent.opt_in": (0,),
                "consent.bind": (0,),
            }.items()
            for position in positions
            for value in (TEXT, bytes(16), S1[:15], S1 + b"\x80", S1.hex(), 7, True, ())
        ),
        *(
            (name, position, value)
            for name, position in {
                "consent.grant": 6,
                "consent.restrict": 6,
                "consent.withdraw": 2,
                "consent.opt_out": 1,
                "consent.opt_in": 1,
                "consent.bind": 1,
            }.items()
            for value in (TEXT * 2, FORM[:31], FORM + b"\x80", "form 12 of Jane Doe", 1, ())
        ),
        *(
            (name, position, None)
            for name, position in product(("consent.grant", "consent.restrict"), (0, 1, 4))
        ),
        *(
            ("consent.grant", 3, value)
            for value in ("", "UK Aachen", "Jane Doe", "a" * 33, "-x", "x\n", "ä", b"x", 1, ())
        ),
        *(
            ("consent.grant", 4, value)
            for value in (
                "TREAT",
                ("treat",),
                ("TREAT", "TREAT"),
                ("TREAT", None),
                (("TREAT",),),
                ("TREAT",) * 12,
                (*sorted(PURPOSES), "TREAT"),
                {"TREAT"},
            )
        ),
        *(("consent.grant", 5, value) for value in (0, -1, 2**64, True, "100", b"")),
    ],
)
def test_nothing_outside_the_positive_list_has_a_form(ledger, name, position, value):
    arguments = list(GOOD[name])
    arguments[position] = value
    with pytest.raises(Refused) as refused:
        ledger.kinds[name].parse(tuple(arguments))
    assert refused.value.code == "operation_invalid"
    if isinstance(value, str) and len(value) > 5:
        assert value not in str(refused.value)


def test_optional_arguments_may_be_none_and_every_purpose_named(ledger):
    parse = ledger.kinds["consent.grant"].parse
    asked = parse((C1, SUBJECT, None, None, tuple(PURPOSES), None, None))
    assert asked.purposes == tuple(sorted(PURPOSES))
    assert parse((C1, SUBJECT, None, None, (), None, None))[2:] == (None, None, (), None, None)


ANY_VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.binary(max_size=40) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4).map(tuple),
    max_leaves=12,
)


@given(st.sampled_from(sorted(GOOD)), st.lists(ANY_VALUE, max_size=9).map(tuple), st.data())
def test_any_arguments_are_parsed_or_refused(name, foreign, data):
    parse = {kind.name: kind.parse for kind in consent.kinds(lambda *_: None)}[name]
    mutated = list(GOOD[name])
    for value in foreign[:2]:
        mutated[data.draw(st.integers(0, len(mutated) - 1))] = value
    for candidate in (foreign, tuple(mutated)):
        try:
            parse(candidate)
        except Refused as refused:
            assert refused.code == "operation_invalid"  # noqa: PT017


@given(st.binary(max_size=80), st.data())
def test_a_damaged_record_is_reported_as_such(row, data):
    with pytest.raises(CorruptRecord):
        consent.decode_consent(row)
    rule = consent.Rule(C1, "permit", None, None, (), 1, None, None, "custodian", FORM)
    whole = pack(consent.Consent(rules=(rule,), waiting=(C2,)))
    assert pack(consent.decode_consent(whole)) == whole
    with pytest.raises(CorruptRecord):
        consent.decode_consent(whole[: data.draw(st.integers(0, len(whole) - 1))])
    position = data.draw(st.integers(0, len(whole) - 1))
    mutated = bytearray(whole)
    mutated[position] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(CorruptRecord):
        consent.decode_consent(bytes(mutated))


@pytest.mark.parametrize(
    "value",
    [
        (),
        1,
        (2, None, None, None, None, (), ()),
        (1, None, None, None, None, ()),
        (1, None, None, None, None, (), (), None),
        (1, None, None, None, None, None, ()),
        (1, None, None, None, None, ("abcdefghij",), ()),
        (1, None, None, None, None, ((1, 2),), ()),
    ],
)
def test_a_record_of_another_shape_is_not_guessed_at(value):
    with pytest.raises(CorruptRecord):
        consent.decode_consent(pack(value))


def test_members_of_accounts_are_what_binding_looks_at(ledger):
    """A key that was rotated out acts no more, so it is bound no more."""
    row = pack(accounts.new_member(("patient",), until_height=HEIGHT - 1))
    ledger.state.put(accounts.member_key("charite", OTHER_KEY), row)
    assert ledger.refusal("consent.bind", SUBJECT, OTHER_KEY) == "member_unknown"
