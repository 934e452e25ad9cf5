"""Every event that some part of the gateway leaves has an act in the audit trail."""

import ast
from pathlib import Path

import pytest

import node
from node.gateway.audit.acts import KINDS
from node.gateway.audit.notes import OUTCOMES, noted
from node.gateway.dialing import EVENT

ROOM = Path(node.__file__).parent
NOTING = {"note", "_note", "_report"}


def kinds_noted():
    """Yield the kinds of events in the code that are not audited by other means, and where."""
    for path in [*(ROOM / "gateway").rglob("*.py"), *(ROOM / "cli").glob("*.py")]:
        for call in ast.walk(ast.parse(path.read_text())):
            is_note = isinstance(call, ast.Call) and len(call.args) == 3
            if is_note and getattr(call.func, "attr", "") in NOTING:
                first, is_audited = call.args[0], any(k.arg == "is_audited" for k in call.keywords)
                if isinstance(first, ast.Constant) and not is_audited:
                    yield first.value, f"{path.name}:{call.lineno}"


def test_every_event_in_the_code_is_known_to_the_trail():
    found = list(kinds_noted())
    assert {"medium", "lost", "connection_ended"} <= {kind for kind, _ in found}
    assert [(kind, where) for kind, where in found if kind not in OUTCOMES] == []
    assert EVENT in OUTCOMES


@pytest.mark.parametrize("kind", OUTCOMES)
def test_an_event_becomes_an_act(kind):
    act = noted(kind, "SOURCE", "code")
    assert act.kind in KINDS
    assert "SOURCE" in (act.who, act.to, act.where)
