"""Files of policies: the ready-made templates, and those that an institution wrote."""

import sys
from pathlib import Path

from node.cli.failures import USAGE, Failure
from node.ledger.contracts.policy import Publish
from node.ledger.policies.templates import InvalidTemplate, Template, load_template

SUFFIX = ".toml"
# In a checkout, and where a wheel puts them.
_FOLDERS = (
    Path(__file__).parents[2] / "config" / "policies",
    Path(sys.prefix) / "share" / "radledger" / "policies",
)


def templates_folder() -> Path:
    """Return where the ready-made templates are. Raises `Failure`."""
    for folder in _FOLDERS:
        if folder.is_dir():
            return folder
    raise Failure(USAGE, f"no templates are installed in {' or '.join(map(str, _FOLDERS))}")


def policy_path(name: str) -> Path:
    """Return the file that `name` is, or the template of this name. Raises `Failure`."""
    path = Path(name)
    if path.suffix == SUFFIX or path.exists():
        return path
    template = templates_folder() / (name + SUFFIX)
    if Path(name).name != name or not template.exists():
        raise Failure(
            USAGE,
            f"{name} is neither a file nor a template: `radledger policy templates` lists those",
        )
    return template


def load_policies(name: str) -> Template:
    """Return what the file or template holds. Raises `Failure` with every fault, `OSError`."""
    try:
        return load_template(policy_path(name))
    except InvalidTemplate as invalid:
        raise Failure(USAGE, "these policies cannot be published:", *invalid.problems) from invalid


def load_policy(name: str, rule: str | None = None) -> Publish:
    """Return one rule of a file or template; the only one if none is named. Raises `Failure`."""
    rules = {each.name: each for each in load_policies(name).rules}
    if rule is None and len(rules) == 1:
        return next(iter(rules.values()))
    if rule not in rules:
        raise Failure(USAGE, f"name one of the rules of {name}: {', '.join(rules)}")
    return rules[rule]
