"""What can be proposed, as it is typed: an action and its words, turned into the arguments of the
ledger. A new key comes as an application (`node.cli.cards`), a policy as a file."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

import typer

from consensus.wire import Value
from node.cli.arguments import read_public_key
from node.cli.cards import Application, require_chain
from node.cli.failures import USAGE, Failure
from node.cli.policy_files import load_policy
from node.ledger.parameters import PARAMETERS

Arguments: TypeAlias = tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Action:
    """One action: `read` turns its words into arguments, for the chain of this id."""

    words: tuple[str, ...]  # what each word is, for people; in brackets what may be left out
    read: Callable[[Sequence[str], bytes], Arguments]


def read_action(name: str, words: Sequence[str], chain_id: bytes) -> tuple[str, Arguments]:
    """Return the action's name in the ledger and its arguments. Raises `Failure`, `OSError`."""
    action = ACTIONS.get(name)
    if action is None:
        raise Failure(USAGE, f"{name} is no action; there are:", *map(usage, ACTIONS))
    needed = sum(not word.startswith("[") for word in action.words)
    if not needed <= len(words) <= len(action.words):
        raise Failure(USAGE, f"this action is: {usage(name)}")
    return name.replace("-", "_"), action.read(words, chain_id)


def usage(name: str) -> str:
    """Return how an action is typed."""
    return " ".join((name, *ACTIONS[name].words))


def shown_name(action: str) -> str:
    """Return an action of the ledger as it is typed."""
    return action.replace("_", "-")


def shown_arguments(action: str, arguments: Sequence[Any]) -> str:
    """Return what an action is about, without the keys and signatures that a machine checks."""
    match action, tuple(arguments):
        case "institution_add", (name, display_name, country, admin_key, _):
            return f"{name}, {display_name}, {country}, administrator {_hex(admin_key)}"
        case (
            "validator_add" | "validator_rotate" | "observer_add",
            (institution, node_key, _, _),
        ):
            return f"{institution}, node {_hex(node_key)}"
        case "policy_publish", (name, effect, consent, condition):
            when = " ".join(condition.split())
            return f"{name}: {effect}, consent {consent.replace('_', ' ')}, if {when}"
        case _:
            return " ".join(map(_hex, arguments))


def _hex(value: Any) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)


def _application(file: str, chain_id: bytes) -> Application:
    path = Path(file)
    application = Application.load(path)
    require_chain(application, chain_id, path)
    return application


def _institution_add(words: Sequence[str], chain_id: bytes) -> Arguments:
    new = _application(words[0], chain_id)
    about = (new.institution, new.display_name, new.country)
    return (*about, new.admin_key, new.admin_possession)


def _node(words: Sequence[str], chain_id: bytes) -> Arguments:
    new = _application(words[0], chain_id)
    return (new.institution, new.node_key, new.certificate, new.node_possession)


def _name(words: Sequence[str], _: bytes) -> Arguments:
    return (words[0],)


def _node_key(words: Sequence[str], _: bytes) -> Arguments:
    return (read_public_key(words[0]),)


def _parameter(words: Sequence[str], _: bytes) -> Arguments:
    name, text = words
    bounds = PARAMETERS.get(name)
    if bounds is None:
        raise typer.BadParameter(f"a parameter is one of {', '.join(PARAMETERS)}")
    if not text.isascii() or not text.isdigit() or not bounds.low <= int(text) <= bounds.high:
        raise typer.BadParameter(f"{name} is a number from {bounds.low} to {bounds.high}")
    return (name, int(text))


def _policy(words: Sequence[str], _: bytes) -> Arguments:
    return tuple(load_policy(*words))


ACTIONS: Mapping[str, Action] = MappingProxyType(
    {
        "institution-add": Action(("APPLICATION",), _institution_add),
        "institution-suspend": Action(("NAME",), _name),
        "institution-resume": Action(("NAME",), _name),
        "validator-add": Action(("APPLICATION",), _node),
        "validator-remove": Action(("NAME",), _name),
        "validator-rotate": Action(("APPLICATION",), _node),
        "observer-add": Action(("APPLICATION",), _node),
        "observer-remove": Action(("NODE_KEY",), _node_key),
        "parameter-set": Action(("NAME", "VALUE"), _parameter),
        "policy-publish": Action(("FILE", "[RULE]"), _policy),
        "policy-retire": Action(("NAME",), _name),
    }
)
