"""Templates: rules ready to be published, as TOML that a hospital reads, changes and publishes.

    title = "Treatment inside the consortium"

    [[rules]]
    name = "treatment"
    effect = "permit"               # permit, ask or deny
    consent = "not_objected"        # required or not_objected
    condition = "request.purpose == 'TREAT'"

The comment at the head of a file says what its rules do, and what else they need.
"""

import tomllib
from dataclasses import dataclass
from pathlib import Path

from node.ledger.contracts import policy
from node.ledger.errors import Refused

BYTES_MAX = 65_536
_KEYS = ("name", "effect", "consent", "condition")


class InvalidTemplate(ValueError):
    """A file is no template; `problems` names every fault with its place."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


@dataclass(frozen=True, slots=True)
class Template:
    """What one file holds."""

    title: str
    about: str  # the comment at its head
    rules: tuple[policy.Publish, ...]


def load_templates(folder: Path) -> dict[str, Template]:
    """Return the templates of `folder` by their file's name without the ending, in order.

    Raises `InvalidTemplate`, `OSError`.
    """
    return {path.stem: load_template(path) for path in sorted(folder.glob("*.toml"))}


def load_template(path: Path) -> Template:
    """Return the template in a file. Raises `InvalidTemplate`, `OSError`."""
    with path.open("rb") as file:
        content = file.read(BYTES_MAX + 1)
    if len(content) > BYTES_MAX:
        raise InvalidTemplate([f"{path.name} has more than {BYTES_MAX} bytes"])
    try:
        return parse_template(content.decode())
    except UnicodeDecodeError:
        raise InvalidTemplate([f"{path.name} is not UTF-8"]) from None
    except InvalidTemplate as invalid:
        raise InvalidTemplate([f"{path.name}: {each}" for each in invalid.problems]) from None


def parse_template(text: str) -> Template:
    """Return the template that `text` is. Raises `InvalidTemplate`."""
    try:
        document = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise InvalidTemplate([f"not TOML: {error}"]) from None
    title, rows = document.pop("title", None), document.pop("rules", None)
    problems = [f"the key {key} is not known" for key in document]
    if type(title) is not str or not title:
        problems.append("title is missing")
    rules = []
    if type(rows) is not list or not 0 < len(rows) <= policy.RULES_MAX:
        problems.append(f"[[rules]] must be given 1 to {policy.RULES_MAX} times")
    else:
        for number, row in enumerate(rows, 1):
            try:
                rules.append(_rule(row))
            except Refused as refused:
                problems.append(f"rule {number}: {refused.sentence}")
    if len({rule.name for rule in rules}) < len(rules):
        problems.append("two rules have one name")
    if problems:
        raise InvalidTemplate(problems)
    return Template(title, _head(text), tuple(rules))


def _rule(row: object) -> policy.Publish:
    if not isinstance(row, dict) or sorted(row) != sorted(_KEYS):
        raise Refused("operation_invalid", f"a rule has the keys {', '.join(_KEYS)}")
    return policy.parse_publish(tuple(row[key] for key in _KEYS))


def _head(text: str) -> str:
    """Return the lines of the comment at the head, without their marks."""
    lines = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        lines.append(line[1:].strip())
    return "\n".join(lines).strip()
