"""The study contract, rule by rule."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.sr.codedict import codes

from consensus.wire import pack
from node.ledger.contracts import study, study_erasure, vocabulary
from node.ledger.contracts.table import check_form, parse_operation
from node.ledger.errors import Refused, Rejected
from node.ledger.transaction import Operation
from storage.errors import CorruptRecord
from tests.ledger import contract_ledger
from tests.ledger.contract_ledger import digest, identity

S1, S2, S3, SUBJECT = map(identity, ("s1", "s2", "s3", "subject"))
R1, R2, R3 = map(digest, ("r1", "r2", "r3"))
WEIGHTS = digest("weights")

REGISTER = (S1, SUBJECT, R1, "CT", "chest", 5, 8)
AMEND = (S1, 2, R1, R2, 6, 8)
DERIVE = (S2, S1, R2, "ai_result", "vendor/lung-nodule", "2.1.0", WEIGHTS, "SEG", "chest", 0, 1)
RETIRE = (S1, "superseded")
CLASSIFY = (S1, "R")
ERASE = (S1, "court_order")
GOOD = {
    "study.register": REGISTER,
    "study.amend": AMEND,
    "study.derive": DERIVE,
    "study.retire": RETIRE,
    "study.classify": CLASSIFY,
}


class Ledger(contract_ledger.Ledger):
    """A ledger of studies."""

    def __init__(self):
        super().__init__((*study.KINDS, *study_erasure.KINDS))

    def study(self, study_id):
        return study.decode_study(self.state.get(study.study_key(study_id)))

    def version(self, root):
        return study.decode_version(self.state.get(study.root_key(root)))


@pytest.fixture
def ledger():
    return Ledger()


def with_argument(name, position, value):
    arguments = list(GOOD[name])
    arguments[position] = value
    return tuple(arguments)


def test_register_makes_the_sender_custodian_of_version_one(ledger):
    events = ledger.apply("study.register", *REGISTER)
    made = ledger.study(S1)
    assert events == [("study_registered", (S1, "charite", "CT", "chest"))]
    assert (made.custodian, made.subject_id, made.modality, made.region) == (
        "charite",
        SUBJECT,
        "CT",
        "chest",
    )
    assert (made.version, made.root, made.instance_bucket, made.size_bucket) == (1, R1, 5, 8)
    assert (made.changed_height, made.retired, made.derivation) == (7, None, None)
    assert (made.confidentiality, made.offered_to, made.erased_height) == ("N", None, None)
    assert ledger.version(R1) == study.Version(1, S1, 1, None, 5, 8, 7)


def test_amend_chains_a_new_version_to_the_one_before(ledger):
    ledger.apply("study.register", *REGISTER)
    events = ledger.apply("study.amend", *AMEND, height=9)
    assert events == [("study_amended", (S1, 2, R2))]
    made = ledger.study(S1)
    assert (made.version, made.root, made.instance_bucket, made.changed_height) == (2, R2, 6, 9)
    assert ledger.version(R2) == study.Version(1, S1, 2, R1, 6, 8, 9)
    assert ledger.version(R1).previous_root is None
    ledger.apply("study.amend", S1, 3, R2, R3, 7, 9)
    assert ledger.study(S1).root == R3


def test_derive_points_at_its_source_and_inherits_the_subject(ledger):
    ledger.apply("study.register", *REGISTER)
    events = ledger.apply("study.derive", *DERIVE)
    assert events == [("study_derived", (S2, S1, "ai_result"))]
    made = ledger.study(S2)
    assert made.subject_id == SUBJECT
    assert made.derivation == study.Derivation(
        "ai_result", S1, study.Model("vendor/lung-nodule", "2.1.0", WEIGHTS)
    )


def test_a_derived_object_may_itself_be_amended_and_be_a_source(ledger):
    ledger.apply("study.register", *REGISTER)
    ledger.apply("study.derive", *DERIVE)
    ledger.apply("study.derive", S3, S2, R3, "report", None, None, None, "SR", "chest", 0, 0)
    ledger.apply("study.amend", S2, 2, R2, digest("r4"), 0, 1)
    assert ledger.study(S3).derivation == study.Derivation("report", S2, None)
    assert ledger.study(S2).derivation.kind == "ai_result"


def test_retire_closes_the_study_and_keeps_it_readable(ledger):
    ledger.apply("study.register", *REGISTER)
    assert ledger.apply("study.retire", *RETIRE, height=8) == [
        ("study_retired", (S1, "superseded"))
    ]
    assert (ledger.study(S1).retired, ledger.study(S1).changed_height) == ("superseded", 8)


def test_classify_sets_what_policies_may_ask_for(ledger):
    ledger.apply("study.register", *REGISTER)
    assert ledger.apply("study.classify", S1, "V", height=8) == [("study_classified", (S1, "V"))]
    assert (ledger.study(S1).confidentiality, ledger.study(S1).changed_height) == ("V", 8)
    ledger.apply("study.classify", S1, "N", height=9)
    assert ledger.study(S1).confidentiality == "N"


def test_amending_and_retiring_keep_how_confidential_a_study_is(ledger):
    ledger.apply("study.register", *REGISTER)
    ledger.apply("study.classify", S1, "V")
    ledger.apply("study.amend", *AMEND)
    ledger.apply("study.retire", *RETIRE)
    assert ledger.study(S1).confidentiality == "V"


def test_the_trail_shows_what_happened_after_registration(ledger):
    """Registration itself is in the study's record; a row more would cost every study."""
    steps = [
        ("study.register", *REGISTER),
        ("study.amend", *AMEND),
        ("study.derive", S2, S1, R3, *DERIVE[3:]),
        ("study.classify", *CLASSIFY),
        ("study.retire", *RETIRE),
    ]
    seen = []
    for step in steps:
        ledger.apply(*step)
        seen.append((ledger.trail(S1), ledger.trail(S2)))
    assert seen == [(0, 0), (1, 0), (2, 0), (3, 0), (4, 0)]


def test_a_registration_costs_two_state_rows_and_three_index_rows(ledger):
    ledger.apply("study.register", *REGISTER)
    assert set(ledger.state.changes()) == {study.study_key(S1), study.root_key(R1)}
    assert len(ledger.state.index_changes()) == 3


def test_index_rows_lead_from_every_facet_to_the_study(ledger):
    ledger.apply("study.register", *REGISTER)
    ledger.apply("study.derive", *DERIVE)
    ledger.apply("study.retire", *RETIRE)
    ordinal = ledger.study(S1).ordinal
    rows = ledger.state.index_changes()
    listed = S1 + b"charite/CT/chest"
    assert [row for row in rows if row[1][-1] == ordinal and row[2] != S2] == [
        (study.INDEX_CUSTODIAN, (b"charite", ordinal), listed),
        (study.INDEX_SUBJECT, (SUBJECT, ordinal), listed),
        (study.INDEX_KIND, (b"CT", b"chest", ordinal), listed),
        (study.INDEX_RETIRED, (ordinal,), listed),
    ]
    assert study.read_listing(listed) == (S1, [b"charite", b"CT", b"chest"])
    assert (study.INDEX_DERIVED, (S1, ledger.study(S2).ordinal), S2) in rows


BEFORE = {
    "nothing": [],
    "registered": [("study.register", *REGISTER)],
    "amended": [("study.register", *REGISTER), ("study.amend", *AMEND)],
    "retired": [("study.register", *REGISTER), ("study.retire", *RETIRE)],
    "erased": [("study.register", *REGISTER), ("study.erase", *ERASE)],
}
OTHER_ROOT_DERIVE = (S2, S1, R1, *DERIVE[3:])


@pytest.mark.parametrize(
    ("before", "operation", "sender", "code"),
    [
        ("registered", ("study.register", *REGISTER), "charite", "study_exists"),
        ("registered", ("study.register", *REGISTER), "ukaachen", "study_exists"),
        ("registered", ("study.register", S2, *REGISTER[1:]), "charite", "root_exists"),
        ("registered", ("study.register", S2, *REGISTER[1:]), "ukaachen", "root_exists"),
        ("retired", ("study.register", *REGISTER), "charite", "study_exists"),
        ("retired", ("study.register", S2, *REGISTER[1:]), "charite", "root_exists"),
        ("amended", ("study.register", S2, *REGISTER[1:]), "charite", "root_exists"),
        ("nothing", ("study.amend", *AMEND), "charite", "study_unknown"),
        ("registered", ("study.amend", *AMEND), "ukaachen", "not_custodian"),
        ("retired", ("study.amend", *AMEND), "charite", "study_retired"),
        ("registered", ("study.amend", S1, 3, R1, R2, 6, 8), "charite", "version_conflict"),
        ("amended", ("study.amend", S1, 2, R2, R3, 6, 8), "charite", "version_conflict"),
        ("amended", ("study.amend", S1, 4, R2, R3, 6, 8), "charite", "version_conflict"),
        ("registered", ("study.amend", S1, 2, R3, R2, 6, 8), "charite", "root_conflict"),
        ("amended", ("study.amend", S1, 3, R1, R3, 6, 8), "charite", "root_conflict"),
        ("registered", ("study.amend", S1, 2, R1, R1, 6, 8), "charite", "root_exists"),
        ("amended", ("study.amend", S1, 3, R2, R1, 6, 8), "charite", "root_exists"),
        ("nothing", ("study.derive", *DERIVE), "charite", "source_unknown"),
        ("registered", ("study.derive", *DERIVE), "ukaachen", "not_custodian"),
        ("retired", ("study.derive", *DERIVE), "charite", "source_retired"),
        ("registered", ("study.derive", S1, *DERIVE[1:]), "charite", "study_exists"),
        ("registered", ("study.derive", *OTHER_ROOT_DERIVE), "charite", "root_exists"),
        ("nothing", ("study.derive", S1, *DERIVE[1:]), "charite", "source_unknown"),
        ("nothing", ("study.retire", *RETIRE), "charite", "study_unknown"),
        ("registered", ("study.retire", *RETIRE), "ukaachen", "not_custodian"),
        ("retired", ("study.retire", *RETIRE), "charite", "study_retired"),
        ("nothing", ("study.classify", *CLASSIFY), "charite", "study_unknown"),
        ("registered", ("study.classify", *CLASSIFY), "ukaachen", "not_custodian"),
        ("retired", ("study.classify", *CLASSIFY), "charite", "study_retired"),
        ("erased", ("study.register", *REGISTER), "charite", "study_exists"),
        ("erased", ("study.register", S2, *REGISTER[1:]), "charite", "root_exists"),
        ("erased", ("study.amend", *AMEND), "charite", "study_erased"),
        ("erased", ("study.derive", *DERIVE), "charite", "source_erased"),
        ("erased", ("study.retire", *RETIRE), "charite", "study_erased"),
        ("erased", ("study.classify", *CLASSIFY), "charite", "study_erased"),
        ("erased", ("study.classify", *CLASSIFY), "ukaachen", "not_custodian"),
    ],
)
def test_a_rule_that_is_broken_is_named_and_nothing_changes(
    ledger, before, operation, sender, code
):
    for name, *arguments in BEFORE[before]:
        ledger.apply(name, *arguments)
    assert ledger.refusal(*operation, institution=sender) == code
    assert code in study.REJECTIONS


# Every kind of thing that somebody might put where only a random id or a commitment belongs.
IDENTIFYING = [
    b"DOE^JANE^^^\x00\x00\x00\x00\x00",
    b"MRN 000123456789",
    b"1.2.840.10008.5.",
    b"19700101-1234567",
    bytes(16),
]


@pytest.mark.parametrize(
    ("name", "position", "value"),
    [
        *(
            (name, position, value)
            for name, positions in {
                "study.register": (0, 1),
                "study.amend": (0,),
                "study.derive": (0, 1),
                "study.retire": (0,),
                "study.classify": (0,),
            }.items()
            for position in positions
            for value in (*IDENTIFYING, S1[:15], S1 + b"\x80", S1.hex(), None, 7, True, ())
        ),
        *(
            (name, position, value)
            for name, positions in {
                "study.register": (2,),
                "study.amend": (2, 3),
                "study.derive": (2, 6),
            }.items()
            for position in positions
            for value in (bytes(32), R1.hex().encode()[:32], R1[:31], R1 + b"\x80", "", None, 1)
        ),
        *(
            (name, position, value)
            for name, position in {"study.register": 3, "study.derive": 7}.items()
            for value in ("ct", "CT ", "MRI", "CT\\MR", "", b"CT", None, 3, ("CT",))
        ),
        *(
            (name, position, value)
            for name, position in {"study.register": 4, "study.derive": 8}.items()
            for value in ("Chest", "left lung", "CHEST", "", b"chest", None)
        ),
        *(
            (name, position, value)
            for name, positions in {
                "study.register": (5, 6),
                "study.amend": (4, 5),
                "study.derive": (9, 10),
            }.items()
            for position in positions
            for value in (-1, 21, 512, True, "5", None, b"\x05")
        ),
        *(("study.amend", 1, value) for value in (0, 1, -2, 65_536, True, "2", None)),
        *(("study.derive", 3, value) for value in ("AI_RESULT", "opinion", "", None, b"report")),
        *(
            ("study.derive", 4, value)
            for value in (
                "Lung Nodule",
                "lung nodule",
                "1.2.840.10008",
                "jane.doe",
                "model-12345678",
                "m" * 49,
                "-model",
                "model-",
                "a//b",
                "lünge",
                "model\n",
                "",
                None,
                b"model",
            )
        ),
        *(
            ("study.derive", 5, value)
            for value in ("1.2.840.10008", "1.2.3.4.5", "v2", "2.", "2.0 beta", "2.0-x1234", "", 2)
        ),
        *(("study.retire", 1, value) for value in ("died", "patient asked", "", None, b"other")),
        *(("study.classify", 1, value) for value in ("n", "U", "secret", "", None, b"N", 1)),
    ],
)
def test_nothing_outside_the_positive_list_has_a_form(name, position, value):
    arguments = with_argument(name, position, value)
    with pytest.raises(Refused) as refused:
        check_form([Operation(name, arguments)])
    assert refused.value.code == "operation_invalid"
    if isinstance(value, str) and len(value) > 3:
        assert value not in str(refused.value)


@pytest.mark.parametrize("missing", [4, 5, 6])
def test_a_model_is_named_whole_or_not_at_all(missing):
    with pytest.raises(Refused):
        parse_operation("study.derive", with_argument("study.derive", missing, None))


def test_a_report_needs_no_model_and_an_ai_result_does():
    plain = (*DERIVE[:3], "report", None, None, None, *DERIVE[7:])
    assert parse_operation("study.derive", plain)[1].derivation.model is None
    with pytest.raises(Refused, match="must name its model"):
        parse_operation("study.derive", (*plain[:3], "ai_result", *plain[4:]))


@pytest.mark.parametrize("name", GOOD)
def test_a_refusal_names_the_operation_by_its_index(name):
    good = Operation(name, GOOD[name])
    check_form([good, good])
    with pytest.raises(Refused, match="operation 1: ") as refused:
        check_form([good, Operation(name, (*GOOD[name], 0))])
    assert refused.value.code == "operation_invalid"


def test_an_unknown_operation_has_no_form():
    with pytest.raises(Refused, match="operation 0: ") as refused:
        check_form([Operation("study.forge", ())])
    assert refused.value.code == "operation_unknown"


ANY_VALUE = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.binary(max_size=40)
    | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4).map(tuple),
    max_leaves=12,
)


@given(st.sampled_from(sorted(GOOD)), st.lists(ANY_VALUE, max_size=13).map(tuple), st.data())
def test_any_arguments_are_parsed_or_refused(name, foreign, data):
    """Half of the inputs are mutations of good ones, so that they get past the first check."""
    arguments = list(GOOD[name])
    for position, value in enumerate(foreign[: data.draw(st.integers(0, 2))]):
        arguments[(position * 5 + len(foreign)) % len(arguments)] = value
    for candidate in (foreign, tuple(arguments)):
        try:
            check_form([Operation(name, candidate)])
        except Refused as refused:
            assert refused.code == "operation_invalid"  # noqa: PT017


def test_every_role_rule_leaves_out_readers(ledger):
    for kind in study.KINDS:
        assert kind.roles - {"data_protection_officer"} == study.STUDY_ROLES
        with pytest.raises(Rejected, match="role_missing"):
            ledger.apply(kind.name, *GOOD[kind.name], roles=("auditor", "patient", "researcher"))
    assert {"data_protection_officer"} == study.CLASSIFY_ROLES - study.STUDY_ROLES


@given(st.binary(max_size=80))
def test_a_damaged_record_is_reported_as_such(row):
    for decode in (study.decode_study, study.decode_version):
        with pytest.raises(CorruptRecord):
            decode(row)


def test_a_record_of_another_format_is_not_guessed_at(ledger):
    ledger.apply("study.register", *REGISTER)
    with pytest.raises(CorruptRecord):
        study.decode_study(pack(ledger.study(S1)._replace(format=1)))


def test_records_decode_to_what_was_encoded(ledger):
    ledger.apply("study.register", *REGISTER)
    ledger.apply("study.derive", *DERIVE)
    for study_id in (S1, S2):
        record = ledger.study(study_id)
        assert study.decode_study(pack(record)) == record


def test_every_acquisition_and_derived_modality_of_the_standard_is_listed():
    """PS3.16 CID 33, in the edition that the installed pydicom carries."""
    standard = {code.value for code in codes.cid33.concepts.values()}
    assert len(standard) > 60
    assert standard - vocabulary.MODALITIES == set()


@pytest.mark.parametrize(
    ("count", "bucket"),
    [(1, 0), (2, 1), (3, 2), (4, 2), (5, 3), (500, 9), (2**20, 20), (10**9, 20)],
)
def test_instance_buckets_double(count, bucket):
    assert vocabulary.instance_bucket(count) == bucket


@pytest.mark.parametrize(
    ("size", "bucket"),
    [
        (0, 0),
        (1, 0),
        (2**20, 0),
        (2**20 + 1, 1),
        (2**21, 1),
        (2**21 + 1, 2),
        (2**39, 19),
        (2**60, 20),
    ],
)
def test_size_buckets_double(size, bucket):
    assert vocabulary.size_bucket(size) == bucket


def test_a_bucket_of_nothing_is_a_misuse():
    with pytest.raises(ValueError, match="at least one"):
        vocabulary.instance_bucket(0)
    with pytest.raises(ValueError, match="negative"):
        vocabulary.size_bucket(-1)
