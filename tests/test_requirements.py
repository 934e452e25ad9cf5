"""The table of imaging's requirements names tests that exist."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TABLE = ROOT / "docs" / "developers" / "imaging-requirements.md"
_ROW = re.compile(r"^\| ([0-9]+) \| (.+?) \| (.+) \|$")
_NAMED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def rows():
    """Return the cell of tests by the requirement's number."""
    found = [_ROW.match(line) for line in TABLE.read_text().splitlines()]
    return {int(match[1]): match[3] for match in found if match}


def missing(text):
    """Return the tests that a text names and that no file defines."""
    return [
        f"{path}::{name}"
        for path, name in _NAMED.findall(text)
        if not (ROOT / path).exists() or name not in collected_from(ROOT / path)
    ]


def collected_from(path):
    """Return the names that pytest would collect from a module."""
    tree = ast.parse(path.read_text())
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    defined = {node.name for node in tree.body if isinstance(node, functions)}
    return {name for name in defined if name.startswith("test_")}


def test_every_requirement_has_a_row_with_tests():
    assert set(rows()) >= set(range(1, 14))
    for number, tests in rows().items():
        assert _NAMED.search(tests) or number == 9, f"requirement {number} names no test"


def test_every_test_in_the_table_exists():
    text = TABLE.read_text()
    assert len(_NAMED.findall(text)) > 60
    assert missing(text) == []


@pytest.mark.parametrize(
    "text",
    [
        "`tests/gateway/test_scp.py::test_that_nobody_wrote`",
        "`tests/gateway/test_nowhere.py::test_an_echo_is_answered`",
    ],
)
def test_a_test_that_does_not_exist_is_named(text):
    assert missing(text) == [text.strip("`")]


def test_whatever_looks_like_a_test_is_read_as_one():
    """A name that the check does not see would never be missed."""
    assert TABLE.read_text().count("::") == len(_NAMED.findall(TABLE.read_text()))
