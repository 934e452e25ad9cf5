"""The evaluator: its version, its answers to the conformance set, and what it may never do."""

import json
import threading
from importlib import metadata

import cel
import pytest

from consensus.errors import InvariantViolation
from consensus.wire import pack
from node.ledger.contracts import policy
from node.ledger.policies import language, program
from node.ledger.policies.facts import Facts
from tests.bench.policies import REQUEST
from tests.vectors import policies as vectors

CONFORMANCE = json.loads(vectors.PATH.read_text(encoding="utf-8"))
STATE = {
    policy.policy_key(institution): pack((1, tuple(sorted((*rule, 1, None) for rule in rules))))
    for institution, rules in CONFORMANCE["rules"].items()
}


def test_the_conformance_set_is_what_its_script_makes():
    assert vectors.PATH.read_text(encoding="utf-8") == vectors.encode(vectors.make())


def test_the_conformance_set_has_every_kind_of_answer():
    answers = {tuple(answer) for _, _, answer in CONFORMANCE["cases"]}
    assert len(CONFORMANCE["cases"]) >= 100
    assert len(answers) == 1 + sum(map(len, CONFORMANCE["rules"].values())), (
        "each rule decides once"
    )


def test_the_conformance_set_is_answered_as_expected():
    wrong = []
    for custodian, change, answer in CONFORMANCE["cases"]:
        facts = Facts(**(CONFORMANCE["request"] | {"study_custodian": custodian} | change))
        got = policy.decide(STATE.get, custodian, facts)
        if list(got) != answer or policy.try_policies(STATE.get, custodian, facts)[0] != got:
            wrong.append((custodian, change, answer, got))
    assert wrong == []


def test_the_rules_of_the_conformance_set_can_be_published():
    for rules in CONFORMANCE["rules"].values():
        for rule in rules:
            policy.parse_publish(tuple(rule))


def test_the_installed_evaluator_is_the_one_of_the_protocol():
    program.require_evaluator()
    assert CONFORMANCE["evaluator"] == [program.EVALUATOR, program.EVALUATOR_VERSION]
    assert metadata.version(program.EVALUATOR) == program.EVALUATOR_VERSION


def test_with_another_evaluator_nothing_is_compiled(monkeypatch):
    monkeypatch.setattr(program, "EVALUATOR_VERSION", "0.9.0")
    with pytest.raises(InvariantViolation, match=r"0\.9\.0 decides.*0\.10\.0 is installed"):
        program.require_evaluator()
    with pytest.raises(InvariantViolation):
        program.load("true && !true && !!true")


def test_a_condition_is_compiled_once():
    assert program.load("height > 41") is program.load("height > 41")


def test_values_need_the_fields_that_are_read_only():
    condition = program.load("height > 41 && consent.given")
    assert condition.fields == {"height", "consent.given"}
    assert condition.evaluate(program.values_of(REQUEST, condition.fields)) is True
    assert condition.evaluate(program.values_of(REQUEST, frozenset({"height"}))) is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"request_uses": "many"},
        {"request_uses": None},
        {"request_uses": True},
        {"request_uses": object()},
        {"request_uses": []},
        {"consent_given": None},
        {"consent_given": 1},
    ],
)
def test_values_of_another_type_are_an_error_and_no_answer(wrong):
    condition = program.load("consent.given && request.uses < 5")
    assert condition.evaluate(program.values_of(REQUEST)) is True
    assert condition.evaluate(program.values_of(REQUEST._replace(**wrong))) is None


class Compiled:
    """What the evaluator would give, but it does as told."""

    def __init__(self, does):
        self.does = does

    def execute(self, context):
        return self.does()


class PanicException(BaseException):
    """Named as what a panic of the evaluator's language raises."""


def told(does):
    return program.Program(language.check("true"), Compiled(does))


def raising(error):
    def act():
        raise error

    return told(act)


@pytest.mark.parametrize("result", [1, 0, None, "true", [], 1.0])
def test_only_a_bool_is_an_answer(result):
    assert told(lambda: result).evaluate(program.values_of(REQUEST)) is None


@pytest.mark.parametrize(
    "error",
    [ValueError(), TypeError(), RuntimeError(), KeyError(), OverflowError(), PanicException("x")],
)
def test_an_error_or_a_panic_of_the_evaluator_is_no_answer(error):
    assert raising(error).evaluate(program.values_of(REQUEST)) is None


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(), MemoryError()])
def test_what_is_not_the_evaluators_gets_out(error):
    with pytest.raises(type(error)):
        raising(error).evaluate(program.values_of(REQUEST))


@pytest.mark.parametrize("error", [ValueError("no parse"), PanicException("x")])
def test_what_the_evaluator_cannot_compile_is_refused_and_halts_nobody(monkeypatch, error):
    def fail(expression):
        raise error

    monkeypatch.setattr(program.cel, "compile", fail)
    with pytest.raises(language.InvalidCondition, match="cannot compile"):
        program.load("true && height != 77")


def test_the_evaluator_treats_types_as_the_checker_does():
    """What the checker's typing rests on: numbers are one type, no type turns into another."""
    context = cel.Context({"i": 2**53, "b": True, "s": "CT"})
    assert type(cel.compile("i").execute(context)) is int
    assert cel.compile("i + i > 0 && i - i == 0 && -i < 0").execute(context) is True
    assert cel.compile("b == true && b").execute(context) is True
    assert cel.compile("i == 1 || b == (s == 'ct')").execute(context) is False
    assert cel.compile('s in ["MR", "CT"] && !(i in [1, (-2)])').execute(context) is True
    for mistyped in ("i && true", "b + 1 > 0", "s > 1", "b && i", "!i", "i ? b : true"):
        with pytest.raises(TypeError):
            cel.compile(mistyped).execute(context)


def test_what_the_evaluator_lets_through_the_checker_refuses():
    """The evaluator alone is laxer than CEL in places; checked conditions never get to them."""
    context = cel.Context({"height": -(2**63), "consent": {"given": True}})
    assert cel.compile("-consent.given == 1").execute(context) is False
    assert cel.compile("-height > 0").execute(context) is False  # the least number has no negative
    assert cel.compile("height in ['CT']").execute(context) is False
    for text in ("-consent.given == 1", "height in ['CT']", "9223372036854775808 > height"):
        with pytest.raises(language.InvalidCondition):
            language.check(text)


def test_an_error_next_to_an_operand_that_decides_is_absorbed_as_cel_says():
    """Checked conditions have no errors; should one come, all versions of CEL agree on this."""
    context = cel.Context({})
    assert cel.compile("1 / 0 > 0 || true").execute(context) is True
    assert cel.compile("true || 1 / 0 > 0").execute(context) is True
    assert cel.compile("1 / 0 > 0 && false").execute(context) is False
    assert cel.compile("false && 1 / 0 > 0").execute(context) is False


def test_threads_share_programs_and_get_the_same_answers():
    conditions = [rule[3] for rules in CONFORMANCE["rules"].values() for rule in rules]
    alone = [program.load(each).evaluate(program.values_of(REQUEST)) for each in conditions]
    together = []

    def run():
        for _ in range(50):
            values = program.values_of(REQUEST)
            together.append([program.load(each).evaluate(values) for each in conditions])

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == [alone] * 200


def test_explain_gives_the_parts_as_they_were_written():
    values = program.values_of(REQUEST)
    assert program.explain("height>1  && ( study.derived||false )", values) == (
        ("height>1", True),
        ("( study.derived||false )", False),
    )
    assert program.explain("consent.given", values) == (("consent.given", True),)
