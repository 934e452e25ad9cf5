"""Every code that the program can show is in the one table that documents it."""

import ast
from pathlib import Path

import node
from node.ledger.contracts import table
from node.ledger.contracts.table import REJECTIONS
from node.ledger.errors import PERMANENT, REFUSALS, TEMPORARY, Refused, Rejected

SOURCES = sorted(Path(node.__file__).parent.rglob("*.py"))


def codes_of(name):
    """The literal first arguments of all calls of `name`; an f-string as its constant ending."""
    for path in SOURCES:
        for call in ast.walk(ast.parse(path.read_text())):
            if not isinstance(call, ast.Call) or getattr(call.func, "id", "") != name:
                continue
            match call.args[:1]:
                case [ast.Constant(str() as code)]:
                    yield path.name, code
                case [ast.JoinedStr(values=[*_, ast.Constant(str() as ending)])]:
                    yield path.name, "*" + ending


def is_listed(code, table):
    return any(known.endswith(code[1:]) for known in table) if code[0] == "*" else code in table


def test_every_refusal_is_in_the_table():
    found = list(codes_of("Refused"))
    assert len(found) > 20
    assert [each for each in found if not is_listed(each[1], REFUSALS)] == []


def test_every_rejection_is_in_the_table():
    found = list(codes_of("Rejected"))
    assert len(found) > 5
    assert [each for each in found if not is_listed(each[1], REJECTIONS | REFUSALS)] == []


def test_no_code_means_two_things():
    assert not PERMANENT.keys() & TEMPORARY.keys()
    assert not REFUSALS.keys() & REJECTIONS.keys()
    for contract in table._CONTRACTS:
        for code, sentence in contract.REJECTIONS.items():
            if code in REJECTIONS:
                assert sentence == REJECTIONS[code], (contract.__name__, code)


def test_only_what_no_state_could_change_is_permanent():
    assert {code for code in REFUSALS if Refused(code, "").permanent} == PERMANENT.keys()


def test_errors_read_well():
    assert str(Refused("busy", "come again")) == "busy: come again"
    assert str(Rejected("study_exists")) == "study_exists"
    assert str(Rejected("denied", "default")) == "denied (default)"
