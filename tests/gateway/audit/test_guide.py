"""The operators' guide lists every kind of act, with the codes that are really sent."""

import re
from pathlib import Path

from node.gateway.audit.acts import KINDS

GUIDE = Path(__file__).parents[3] / "docs" / "operators" / "audit.md"


def test_the_guide_lists_every_kind_as_it_is_sent():
    rows = re.findall(r"^\| `(\w+)` \| (.*) \| (.*) \| (.*) \| (\w) \|$", GUIDE.read_text(), re.M)
    assert {name: tuple(row) for name, *row in rows} == {
        name: (
            kind.words,
            " ".join(kind.event),
            "" if kind.type is None else " ".join(kind.type),
            kind.action,
        )
        for name, kind in KINDS.items()
    }
