"""`access`: the life of a request as those who act see it. No rule is published: people decide."""

import pytest

from node.cli.outlook import COMMANDS, command_of
from node.ledger.queries.steps import NEXT_STEPS, step
from tests.cli.conftest import asked, executed, run


@pytest.fixture
def waiting(shared, north, south, doctor):
    """A request of south's that waits for a person at north."""

    def make(*options):
        study, subject = shared()
        done = doctor.asked("access", "request", study, "--purpose", "CAREMGT", *options)
        executed(north, done["transaction"]["height"])
        return done["request"]["id"], study, subject

    return make


@pytest.fixture
def consented(waiting, north, tmp_path):
    """The same, with the patient's consent on record."""
    form = tmp_path / "form"
    form.write_text("yes")

    def make(*options):
        request, study, subject = waiting(*options)
        asked("consent", "grant", subject, "--form", form, "-c", north)
        return request, study, subject

    return make


def test_a_request_without_a_rule_waits_for_a_person_and_says_for_whom(waiting, north):
    request, _, _ = waiting()
    view = asked("access", "show", request, "-c", north)
    assert view["state"] == "waiting_person"
    answer = run("access", "show", request, "-c", north)
    assert f"radledger access approve {request}" in answer.words
    assert "at north" in answer.words
    listed = asked(
        "access", "list", "--custodian", "north", "--state", "waiting_person", "-c", north
    )
    assert request in [each["id"] for each in listed["requests"]]


def test_approval_needs_consent_and_says_how_to_record_it(waiting, north):
    request, _, _ = waiting()
    answer = run("access", "approve", request, "-c", north)
    assert answer.status == 1
    assert "consent_missing" in answer.words
    assert "radledger consent grant" in answer.words


def test_from_approval_to_use(consented, north, south, doctor, tmp_path):
    request, _, _ = consented("--uses", 2)
    granted = asked("access", "approve", request, "-c", north)
    assert (granted["request"]["state"], granted["request"]["decided_by"]) == ("granted", "person")
    assert granted["next"]["command"] == f"radledger access deliver {request} --wrapped FILE"
    wrapped = tmp_path / "wrapped"
    wrapped.write_bytes(bytes(range(100)))
    delivered = asked("access", "deliver", request, "--wrapped", wrapped, "-c", north)
    executed(south, delivered["transaction"]["height"])
    received = doctor.asked("access", "receive", request)
    assert received["request"]["received_height"] == received["transaction"]["height"]
    assert doctor.asked("access", "use", request)["request"]["uses_left"] == 1
    assert doctor.asked("access", "use", request)["request"]["uses_left"] == 0
    assert doctor.code("access", "use", request) == "uses_spent"
    assert "no: uses_spent" in run("access", "show", request, "-c", south).words


def test_denied_revoked_cancelled(consented, waiting, north, south, doctor):
    request, _, _ = waiting()
    denied = asked("access", "deny", request, "--reason", "not_justified", "-c", north)
    assert (denied["request"]["state"], denied["request"]["reason"]) == ("denied", "not_justified")
    request, _, _ = consented()
    asked("access", "approve", request, "-c", north)
    revoked = asked("access", "revoke", request, "--reason", "misuse", "-c", north)
    assert revoked["request"]["state"] == "revoked"
    request, _, _ = waiting()
    assert (
        asked("access", "cancel", request, "-c", north, status=1)["error"]["code"]
        == "not_requester"
    )
    assert doctor.asked("access", "cancel", request)["request"]["state"] == "cancelled"
    assert doctor.code("access", "expire", request) == "request_cancelled"


def test_a_denied_request_is_exit_status_1_and_still_an_answer(shared, north, doctor, tmp_path):
    study, subject = shared()
    form = tmp_path / "form"
    form.write_text("no")
    done = asked("consent", "restrict", subject, "--form", form, "-c", north)
    executed(doctor.config, done["transaction"]["height"])
    denied = doctor.asked("access", "request", study, "--purpose", "TREAT", status=1)
    assert (denied["request"]["state"], denied["request"]["rule"]) == ("denied", "consent")


def test_break_glass_is_reviewed_once(shared, north, doctor, officer):
    study, _ = shared()
    taken = doctor.asked("access", "break-glass", study, "--reason", "life_threatening")["request"]
    assert taken["break_glass_reason"] == "life_threatening"
    executed(north, taken["asked_height"])
    answer = run("access", "show", taken["id"], "-c", north)
    assert f"radledger access review {taken['id']} --finding WORD" in answer.words
    review = ("access", "review", taken["id"], "--finding", "unjustified")
    assert officer.asked(*review)["request"]["finding"] == "unjustified"
    assert officer.code(*review) == "request_reviewed"


def test_ones_own_study_needs_no_request(shared, north, doctor):
    study, _ = shared()
    request = ("access", "request", study, "--purpose", "TREAT", "--role", "gateway")
    refused = asked(*request, "-c", north, status=1)
    assert refused["error"]["code"] == "own_study"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["request", "ab" * 16, "--purpose", "FUN"], "HL7 PurposeOfUse"),
        (["request", "ab" * 16, "--purpose", "TREAT", "--role", "patient"], "role of a requester"),
        (["deny", "ab" * 16, "--reason", "because"], "a reason is one of"),
        (["deliver", "ab" * 16], "--wrapped FILE or --wrapped-digest"),
        (["review", "ab" * 16, "--finding", "fine"], "a finding is one of"),
        (["list", "--state", "open"], "a state is one of"),
        (["list", "--cursor", "nonsense"], "cursor"),
        (["show", "12"], "32 hexadecimal digits"),
    ],
)
def test_wrong_words_are_answered_with_the_right_ones(words, told, north):
    answer = run("access", *words, "-c", north)
    assert answer.status == 2
    assert told in answer.words


@pytest.mark.parametrize("command", ["show", "approve", "receive"])
def test_a_request_that_is_not_there_is_exit_status_1(command, north):
    answer = run("access", command, "ab" * 16, "-c", north)
    assert answer.status == 1


def test_every_command_of_a_next_step_is_one_that_there_is():
    assert set(COMMANDS) <= set(NEXT_STEPS)
    for code in COMMANDS:
        command = command_of(step(code, ("north",)), request=bytes(16))
        for part in command.replace(", then", ", or").split(", or "):
            if part.startswith("radledger "):
                group, name = part.split()[1:3]
                assert run(group, name, "--help").status == 0
