"""The worked example of the contract guide is real: it is run as it stands in the text."""

import re
import types
from pathlib import Path

import pytest

from node.ledger.block import Receipt
from node.ledger.contracts import study
from node.ledger.contracts.table import REJECTIONS
from node.ledger.errors import Refused
from tests.ledger.contract_ledger import Ledger, digest, identity

GUIDE = Path(__file__).parents[2] / "docs/developers/contracts.md"


@pytest.fixture(scope="module")
def quality():
    (source,) = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    module = types.ModuleType("quality")
    exec(compile(source, str(GUIDE), "exec"), module.__dict__)
    return module


@pytest.fixture
def ledger(quality):
    made = Ledger((*study.KINDS, *quality.KINDS))
    made.apply(
        "study.register", identity("s"), identity("p"), digest("r"), "CT", "head", 5, 3
    )  # fmt: skip
    return made


def test_a_grade_leaves_its_row_event_trail_and_index(ledger, quality):
    (event,) = ledger.apply("quality.grade", identity("s"), "limited", roles=("clinician",))
    assert event == ("quality_graded", (identity("s"), "limited"))
    assert ledger.state.get(quality.quality_key(digest("r"))) is not None
    assert ledger.trail(identity("s")) == 1
    assert list(ledger.index(quality.INDEX_GRADE).values()) == [identity("s")]


@pytest.mark.parametrize(
    ("label", "institution", "code"),
    [("unknown", "charite", "study_unknown"), ("s", "ukaachen", "not_custodian")],
)
def test_each_rule_rejects_with_its_code(ledger, label, institution, code):
    operation = "quality.grade", identity(label), "limited"
    assert ledger.refusal(*operation, institution=institution, roles=("clinician",)) == code


def test_a_version_is_graded_once(ledger):
    ledger.apply("quality.grade", identity("s"), "limited", roles=("clinician",))
    again = "quality.grade", identity("s"), "diagnostic"
    assert ledger.refusal(*again, roles=("clinician",)) == "quality_graded"


def test_the_form_takes_listed_words_only(quality):
    with pytest.raises(Refused, match="grade must be a listed word"):
        quality.parse_grade((identity("s"), "Mrs Miller moved during the scan"))


def test_shared_codes_keep_their_sentence_and_codes_go_into_receipts(quality):
    for code, sentence in quality.REJECTIONS.items():
        assert REJECTIONS.get(code, sentence) == sentence
        assert Receipt.decode(Receipt(bytes(32), code, 0).encode()).code == code
