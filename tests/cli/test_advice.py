"""What is advised after a refusal: about codes that there are, with commands that there are."""

import re

import pytest

from node.cli.advice import ADVICE, lines_about
from node.cli.codes import meaning_of_code
from node.ledger.contracts.table import REJECTIONS
from node.ledger.errors import REFUSALS
from tests.cli.conftest import run


@pytest.mark.parametrize("code", ADVICE)
def test_advice_is_about_a_code_that_there_is(code):
    assert code in REJECTIONS | REFUSALS


def test_commands_that_are_advised_are_there():
    named = set(re.findall(r"`radledger ([a-z]+ [a-z-]+)", " ".join(ADVICE.values())))
    assert "consent grant" in named
    assert [words for words in sorted(named) if run(*words.split(), "--help").status] == []


def test_a_code_that_this_program_does_not_know_has_a_sentence():
    assert "a rule of the contract" in meaning_of_code("from_the_future")
    assert lines_about("from_the_future", "x", "north/night") == [
        "refused (from_the_future), by the rule north/night: x"
    ]
