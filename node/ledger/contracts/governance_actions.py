"""What a proposal can bring about: the actions of governance, their arguments and their effects.

An action is parsed when it is proposed, and its proof of possession is checked then, because
neither can change afterwards. Its effect checks the state when the proposal is executed. Changes of
the validator set keep the order of those who stay, begin `CHANGE_DELAY` heights later, and come one
at a time; no change leaves fewer than one validator, and no institution has two votes.

A node's key serves one institution. It may be listed as an observer besides being a validator: so
a candidate follows before it votes, and a validator that is voted out can stay to follow.
"""

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from consensus.wire import Value, pack
from node.ledger import accounts, membership
from node.ledger.accounts import ADMINISTRATOR, Get, Institution
from node.ledger.contracts import forms, policy, possession
from node.ledger.contracts.base import Context
from node.ledger.contracts.vocabulary import COUNTRIES
from node.ledger.errors import Rejected
from node.ledger.genesis import (
    CERTIFICATE_BYTES_MAX,
    DISPLAY_NAME_MAX,
    OBSERVERS_MAX,
    VALIDATORS_MAX,
    NodeIdentity,
    certified_key,
    is_display_name,
)
from node.ledger.membership import CHANGE_DELAY, PlannedSet
from node.ledger.parameters import PARAMETERS, encode_parameter, parameter_key

REJECTIONS = {
    "institution_exists": "an institution of this name is there already; names are used once",
    "institution_active": "the institution is not suspended",
    "institution_votes": "the institution has a validator, now or as planned; remove it first, and "
    "suspend the institution once the set without it reigns",
    "change_planned": "a change of the validators is planned and does not reign yet; one at a time",
    "validator_exists": "the institution has a validator; an institution has one vote",
    "validator_unknown": "the institution has no validator",
    "validator_last": "the last validator cannot be removed",
    "validators_full": f"there are {VALIDATORS_MAX} validators, and there may be no more",
    "node_key_used": "the key is that of another node",
    "observer_exists": "there is an observer with this key already",
    "observer_unknown": "there is no observer with this key",
    "observers_full": f"there are {OBSERVERS_MAX} observers, and there may be no more",
    **possession.REJECTIONS,
    **policy.REJECTIONS,
}


class Proof(NamedTuple):
    """Who holds a new key: checked with the chain id when the action is proposed."""

    institution: str
    public_key: bytes
    signature: bytes


class Action(NamedTuple):
    """One thing that the consortium can decide."""

    parse: Callable[[tuple[Value, ...]], Any]  # form only; raises Refused("operation_invalid")
    apply: Callable[[Context, Any], None]  # takes what `parse` returned; raises Rejected
    proof: Callable[[Any], Proof] | None = None  # of what `parse` returned


class AddInstitution(NamedTuple):
    name: str
    display_name: str
    country: str
    admin_key: bytes
    possession: bytes


class BringNode(NamedTuple):
    """A node that is to vote, to take the place of another, or to follow."""

    node: NodeIdentity
    possession: bytes


class SetParameter(NamedTuple):
    name: str
    value: int


_RECORD_NUMBER = re.compile(r"\d{5}")  # or a date or telephone number, but part of no name


def parse_institution_add(arguments: tuple[Value, ...]) -> AddInstitution:
    """(name, display name, country, first administrator's key, signature by that key)"""
    name, display_name, country, admin_key, signature = forms.fields(arguments, 5)
    if type(display_name) is not str or not is_display_name(display_name):
        forms.refuse("display_name", f"1 to {DISPLAY_NAME_MAX} printable characters")
    if _RECORD_NUMBER.search(display_name):
        forms.refuse("display_name", "a name, with no run of five digits")
    if type(country) is not str or COUNTRIES.fullmatch(country) is None:
        forms.refuse("country", "two capital letters of ISO 3166-1, or ZZ if it is not stated")
    return AddInstitution(
        possession.institution_name(name, "name"),
        display_name,
        country,
        possession.public_key(admin_key, "admin_key"),
        possession.signature(signature, "possession"),
    )


def parse_institution(arguments: tuple[Value, ...]) -> str:
    """(institution)"""
    (name,) = forms.fields(arguments, 1)
    return possession.institution_name(name, "institution")


def parse_node(arguments: tuple[Value, ...]) -> BringNode:
    """(institution, node key, certificate in DER for this key, signature by the node key)"""
    institution, node_key, certificate, signature = forms.fields(arguments, 4)
    node_key = possession.public_key(node_key, "node_key")
    if type(certificate) is not bytes or certified_key(certificate) != node_key:
        forms.refuse(
            "certificate",
            f"an X.509 certificate in DER for node_key, of at most {CERTIFICATE_BYTES_MAX} bytes",
        )
    return BringNode(
        NodeIdentity(
            possession.institution_name(institution, "institution"), node_key, certificate
        ),
        possession.signature(signature, "possession"),
    )


def parse_observer_remove(arguments: tuple[Value, ...]) -> bytes:
    """(node key)"""
    (node_key,) = forms.fields(arguments, 1)
    return possession.public_key(node_key, "node_key")


def parse_parameter_set(arguments: tuple[Value, ...]) -> SetParameter:
    """(parameter, value)"""
    name, value = forms.fields(arguments, 2)
    name = forms.word(name, PARAMETERS.keys(), "name")
    bounds = PARAMETERS[name]
    return SetParameter(name, forms.integer(value, bounds.low, bounds.high, "value"))


def institution_add(context: Context, asked: AddInstitution) -> None:
    """Take in an institution; its first administrator registers the other members."""
    key = accounts.institution_key(asked.name)
    if context.state.get(key) is not None:
        raise Rejected("institution_exists")
    context.state.put(key, pack(accounts.new_institution(asked.display_name, asked.country, 1)))
    member = accounts.new_member([ADMINISTRATOR])
    context.state.put(accounts.member_key(asked.name, asked.admin_key), pack(member))
    name = asked.name.encode()
    context.index(accounts.INDEX_INSTITUTION, (name,))
    context.index(accounts.INDEX_MEMBER, (name, asked.admin_key))
    context.emit("governance_institution_added", asked.name, asked.country, asked.admin_key)


def institution_suspend(context: Context, name: str) -> None:
    """Stop all members of an institution that has no vote."""
    get = context.state.get
    institution = _institution(get, name)
    if not institution.active:
        raise Rejected("institution_suspended")
    if any(nodes.node_of(name) for nodes in _counting_sets(get, context.height)):
        raise Rejected("institution_votes")
    context.state.put(accounts.institution_key(name), pack(institution._replace(active=False)))
    context.emit("governance_institution_suspended", name)


def institution_resume(context: Context, name: str) -> None:
    """Let the members of a suspended institution act again."""
    institution = _institution(context.state.get, name)
    if institution.active:
        raise Rejected("institution_active")
    context.state.put(accounts.institution_key(name), pack(institution._replace(active=True)))
    context.emit("governance_institution_resumed", name)


def validator_add(context: Context, asked: BringNode) -> None:
    """Let an institution's node vote, last in the order."""
    last = _changeable_set(context)
    node = asked.node
    _require_active(context.state.get, node.institution)
    if last.node_of(node.institution) is not None:
        raise Rejected("validator_exists")
    if len(last.nodes) >= VALIDATORS_MAX:
        raise Rejected("validators_full")
    _require_free_key(context, node)
    _plan(context, (*last.nodes, node))


def validator_remove(context: Context, institution: str) -> None:
    """Take an institution's vote away."""
    last = _changeable_set(context)
    if last.node_of(institution) is None:
        raise Rejected("validator_unknown")
    if len(last.nodes) == 1:
        raise Rejected("validator_last")
    _plan(context, tuple(node for node in last.nodes if node.institution != institution))


def validator_rotate(context: Context, asked: BringNode) -> None:
    """Let another node, with a key of its own, vote in the place of an institution's validator."""
    last = _changeable_set(context)
    node = asked.node
    if last.node_of(node.institution) is None:
        raise Rejected("validator_unknown")
    _require_free_key(context, node)
    _plan(context, tuple(node if n.institution == node.institution else n for n in last.nodes))


def observer_add(context: Context, asked: BringNode) -> None:
    """Let a node connect and follow."""
    get, node = context.state.get, asked.node
    _require_active(get, node.institution)
    if membership.observer(get, node.public_key) is not None:
        raise Rejected("observer_exists")
    if membership.observer_count(get) >= OBSERVERS_MAX:
        raise Rejected("observers_full")
    if _is_other_institutions_validator(context, node):
        raise Rejected("node_key_used")
    membership.add_observer(context.state, node)
    context.emit("governance_observer_added", node.institution, node.public_key)


def observer_remove(context: Context, node_key: bytes) -> None:
    """Let a node no longer connect, unless it is a validator's."""
    node = membership.observer(context.state.get, node_key)
    if node is None:
        raise Rejected("observer_unknown")
    membership.remove_observer(context.state, node_key)
    context.emit("governance_observer_removed", node.institution, node_key)


def parameter_set(context: Context, asked: SetParameter) -> None:
    """Change a number that the operations after this one read."""
    context.state.put(parameter_key(asked.name), encode_parameter(asked.value))
    context.emit("governance_parameter_set", asked.name, asked.value)


def policy_publish(context: Context, asked: policy.Publish) -> None:
    """Add or replace a rule that holds for the studies of all institutions."""
    policy.apply_publish(context, policy.CONSORTIUM, asked)


def policy_retire(context: Context, asked: policy.Retire) -> None:
    """End a rule of the consortium."""
    policy.apply_retire(context, policy.CONSORTIUM, asked)


def _institution(get: Get, name: str) -> Institution:
    institution = accounts.find_institution(get, name)
    if institution is None:
        raise Rejected("institution_unknown")
    return institution


def _require_active(get: Get, name: str) -> None:
    if not _institution(get, name).active:
        raise Rejected("institution_suspended")


def _counting_sets(get: Get, height: int) -> tuple[PlannedSet, PlannedSet]:
    """Return the set that reigns and the one planned last, which may be the same."""
    return membership.reigning(get, height), membership.latest(get)


def _changeable_set(context: Context) -> PlannedSet:
    if membership.is_change_planned(context.state.get, context.height):
        raise Rejected("change_planned")
    return membership.latest(context.state.get)


def _require_free_key(context: Context, node: NodeIdentity) -> None:
    """Refuse a key that votes already, or with which another institution follows."""
    get = context.state.get
    observer = membership.observer(get, node.public_key)
    if observer is not None and observer.institution != node.institution:
        raise Rejected("node_key_used")
    if any(each.public_key == node.public_key for each in membership.latest(get).nodes):
        raise Rejected("node_key_used")


def _is_other_institutions_validator(context: Context, node: NodeIdentity) -> bool:
    return any(
        each.public_key == node.public_key and each.institution != node.institution
        for planned in _counting_sets(context.state.get, context.height)
        for each in planned.nodes
    )


def _plan(context: Context, nodes: tuple[NodeIdentity, ...]) -> None:
    planned = PlannedSet(context.height + CHANGE_DELAY, nodes)
    index = membership.append(context.state.put, context.state.get, planned)
    context.emit("governance_validators_planned", index, planned.height, len(nodes))


def _proof_of_institution(asked: AddInstitution) -> Proof:
    return Proof(asked.name, asked.admin_key, asked.possession)


def _proof_of_node(asked: BringNode) -> Proof:
    return Proof(asked.node.institution, asked.node.public_key, asked.possession)


ACTIONS: Mapping[str, Action] = MappingProxyType(
    {
        "institution_add": Action(parse_institution_add, institution_add, _proof_of_institution),
        "institution_suspend": Action(parse_institution, institution_suspend),
        "institution_resume": Action(parse_institution, institution_resume),
        "validator_add": Action(parse_node, validator_add, _proof_of_node),
        "validator_remove": Action(parse_institution, validator_remove),
        "validator_rotate": Action(parse_node, validator_rotate, _proof_of_node),
        "observer_add": Action(parse_node, observer_add, _proof_of_node),
        "observer_remove": Action(parse_observer_remove, observer_remove),
        "parameter_set": Action(parse_parameter_set, parameter_set),
        "policy_publish": Action(policy.parse_publish, policy_publish),
        "policy_retire": Action(policy.parse_retire, policy_retire),
    }
)
