"""Policies: the rules by which requests for access are decided without a person.

A rule says for which requests (a condition, `node.ledger.policies.language`) what happens: permit,
ask a person, or deny; and whether a permit needs a consent or only that nobody objected. An
institution's rules hold for the studies that it keeps. The consortium's hold for all studies; their
institution is the empty name, and only a vote of the consortium changes them.

    "policy/" + institution     -> (format, (Rule, ...)) in ascending order of name and height

A change made at height h holds from h + 1. Until then, and for the decisions of h itself, what was
before holds; so a replaced or retired rule stays in its row, with the last height at which it
holds, until the first change at a later height. A row never holds more than twice `RULES_MAX`.

Who decides, of all rules in force whose condition holds for the request: the first deny; else the
first permit, those that need no consent before the others; else, likewise, the first ask; else
nobody. First means the consortium's before the custodian's, then in ascending order of name. A
condition that cannot be evaluated counts as held in a deny, and as not held in any other.
"""

import re
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple, TypeAlias

from consensus.wire import NotCanonical, Value, pack, unpack
from node.ledger.accounts import institution_key
from node.ledger.contracts import forms
from node.ledger.contracts.base import Context, OperationKind
from node.ledger.errors import Refused, Rejected
from node.ledger.policies import language, program
from node.ledger.policies.facts import Facts
from storage.errors import CorruptRecord

RECORD_FORMAT = 1
CONSORTIUM = ""  # the institution of the consortium's rules
CONSORTIUM_LABEL = "consortium"
RULES_MAX = 32  # of one institution
NODES_MAX = (
    2_048  # in the conditions of one institution, so that a decision takes under a millisecond
)
POLICY_ROLES = frozenset({"administrator", "data_protection_officer"})

EFFECTS = frozenset({"permit", "ask", "deny"})
CONSENTS = frozenset({"required", "not_objected"})

REJECTIONS = {
    "institution_unknown": "no institution of this name",
    "policy_unknown": "there is no policy of this name",
    "policy_full": "the institution's policies are as many, or as long together, as they may be",
}

Get: TypeAlias = Callable[[bytes], bytes | None]


class Rule(NamedTuple):
    """One rule, as stored."""

    name: str
    effect: str  # of EFFECTS
    consent: str  # of CONSENTS
    condition: str
    from_height: int  # the first height at whose decisions it holds
    until_height: int | None  # the last one, once replaced or retired

    def is_in_force(self, height: int) -> bool:
        """Return whether decisions at `height` follow this rule."""
        return self.from_height <= height and (
            self.until_height is None or height <= self.until_height
        )


class PolicyAnswer(NamedTuple):
    """What the policies say to a request."""

    effect: str  # of EFFECTS, or "none" when no rule matches
    rule: str  # "INSTITUTION/name" or "consortium/name"; empty when no rule matches
    consent: str  # of CONSENTS; "required" when no rule matches


class Trial(NamedTuple):
    """What a dry run found out about one rule."""

    rule: str  # as in PolicyAnswer
    effect: str
    consent: str
    outcome: str  # "match", "no_match" or "error"
    is_decisive: bool  # it is the rule that decides
    parts: tuple[tuple[str, bool | None], ...]  # of the condition and how each came out


class Publish(NamedTuple):
    name: str
    effect: str
    consent: str
    condition: str


class Retire(NamedTuple):
    name: str


class _Loaded(NamedTuple):
    """The rules of one row, ready to decide."""

    rules: tuple[tuple[int, Rule, program.Program, PolicyAnswer], ...]  # led by the rank
    fields: frozenset[str]  # that any of the conditions reads


# Of two rules that match, the one of the earlier kind decides. A deny says nothing about consent.
_RANKS = {
    ("deny", "required"): 0,
    ("deny", "not_objected"): 0,
    ("permit", "not_objected"): 1,
    ("permit", "required"): 2,
    ("ask", "not_objected"): 3,
    ("ask", "required"): 4,
}
_OUTCOMES = {True: "match", False: "no_match", None: "error"}
_NONE = PolicyAnswer("none", "", "required")
_NO_RULES = _Loaded((), frozenset())


def policy_key(institution: str) -> bytes:
    """Return the state key of an institution's rules; `CONSORTIUM` has one, too."""
    return b"policy/" + institution.encode()


def decode_policies(row: bytes) -> tuple[Rule, ...]:
    """Return the stored rules, in force or not. Raises `CorruptRecord`."""
    try:
        value = unpack(row)
    except NotCanonical as error:
        raise CorruptRecord("the state holds policies that cannot be read") from error
    match value:
        case (1, tuple(rows)):
            return tuple([_decode_rule(each) for each in rows])
    raise CorruptRecord("the state holds policies that cannot be read")


def _decode_rule(value: Value) -> Rule:
    match value:
        case (
            str(name),
            str(effect),
            str(consent),
            str(condition),
            int(from_height),
            int() | None as until_height,
        ) if effect in EFFECTS and consent in CONSENTS:
            return Rule(name, effect, consent, condition, from_height, until_height)
    raise CorruptRecord("the state holds a policy that cannot be read")


def rules_in_force(get: Get, institution: str, height: int) -> tuple[Rule, ...]:
    """Return the rules of `institution` that decisions at `height` follow, in order of name."""
    row = get(policy_key(institution))
    if row is None:
        return ()
    return tuple(rule for rule in decode_policies(row) if rule.is_in_force(height))


def decide(get: Get, custodian: str, facts: Facts) -> PolicyAnswer:
    """Return what the rules of the consortium and of `custodian` say, at `facts.height`.

    `get` reads the state. Raises `CorruptRecord`.
    """
    common, own = _loaded(get, CONSORTIUM), _loaded(get, custodian)
    values = program.values_of(facts, common.fields | own.fields)
    best, best_rank = _NONE, len(_RANKS)
    for rank, rule, condition, answer in (*common.rules, *own.rules):
        if (
            rank < best_rank
            and rule.is_in_force(facts.height)
            and _matches(rule.effect, condition.evaluate(values))
        ):
            best, best_rank = answer, rank
    return best


def try_policies(
    get: Get, custodian: str, facts: Facts, drafts: tuple[Publish, ...] = ()
) -> tuple[PolicyAnswer, tuple[Trial, ...]]:
    """Return what `decide` would, and how each rule in force came out: a dry run.

    `drafts` are tried as if `custodian` had published them. Raises `CorruptRecord`, and
    `InvalidCondition` for a draft that could not be published.
    """
    replaced = {draft.name for draft in drafts}
    rules = [
        (institution, rule)
        for institution in (CONSORTIUM, custodian)
        for rule in rules_in_force(get, institution, facts.height)
        if institution == CONSORTIUM or rule.name not in replaced
    ]
    rules += [(custodian, Rule(*draft, facts.height, None)) for draft in drafts]
    rules.sort(key=lambda named: (named[0] != CONSORTIUM, named[1].name))
    values = program.values_of(facts)
    held = [program.load(rule.condition).evaluate(values) for _, rule in rules]
    matching = [
        position
        for position, (_, rule) in enumerate(rules)
        if _matches(rule.effect, held[position])
    ]
    best = min(matching, key=lambda position: _rank(rules[position][1]), default=None)
    trials = tuple(
        Trial(
            label(institution, rule.name),
            rule.effect,
            rule.consent,
            _OUTCOMES[held[position]],
            position == best,
            program.explain(rule.condition, values),
        )
        for position, (institution, rule) in enumerate(rules)
    )
    return _NONE if best is None else _answer(*rules[best]), trials


def label(institution: str, name: str) -> str:
    """Return how receipts and people name a rule."""
    return f"{institution or CONSORTIUM_LABEL}/{name}"


def parse_publish(arguments: tuple[Value, ...]) -> Publish:
    """(name, effect, consent, condition)"""
    name, effect, consent, condition = forms.fields(arguments, 4)
    return Publish(
        _name(name),
        forms.word(effect, EFFECTS, "effect"),
        forms.word(consent, CONSENTS, "consent"),
        _condition(condition),
    )


def parse_retire(arguments: tuple[Value, ...]) -> Retire:
    """(name)"""
    (name,) = forms.fields(arguments, 1)
    return Retire(_name(name))


def publish(context: Context, asked: Publish) -> None:
    """Add a rule of the sender's institution, or replace the one of this name."""
    apply_publish(context, context.institution, asked)


def retire(context: Context, asked: Retire) -> None:
    """End a rule of the sender's institution."""
    apply_retire(context, context.institution, asked)


def apply_publish(context: Context, institution: str, asked: Publish) -> None:
    """Let `institution`, or the `CONSORTIUM`, have the rule `asked` from the next height.

    Raises `Rejected`: policy_full, or institution_unknown when the condition names an institution
    that is not there, since a misspelt name would make a rule silent that should deny.
    """
    get = context.state.get
    for named in sorted(program.load(asked.condition).institutions):
        if get(institution_key(named)) is None:
            raise Rejected("institution_unknown")
    kept = _without(context, institution, asked.name)
    rule = Rule(*asked, context.height + 1, None)
    rules = sorted((*kept, rule), key=lambda each: (each.name, each.from_height))
    lasting = [each for each in rules if each.until_height is None]
    nodes = sum(program.load(each.condition).nodes for each in lasting)
    if len(lasting) > RULES_MAX or nodes > NODES_MAX:
        raise Rejected("policy_full")
    _put(context, institution, rules)
    context.emit("policy_published", institution, asked.name, asked.effect, asked.consent)


def apply_retire(context: Context, institution: str, asked: Retire) -> None:
    """End the rule `asked` of `institution`, or of the `CONSORTIUM`, from the next height.

    Raises `Rejected`: policy_unknown.
    """
    rules = _stored(context, institution)
    if not any(rule.name == asked.name and rule.until_height is None for rule in rules):
        raise Rejected("policy_unknown")
    _put(context, institution, _without(context, institution, asked.name))
    context.emit("policy_retired", institution, asked.name)


# Neither a record number nor a name in capitals fits.
_NAME = re.compile(r"(?=.{1,32}\Z)(?!.*\d{5})[a-z][a-z0-9]*(?:-[a-z0-9]+)*")


def _name(value: Value) -> str:
    if type(value) is not str or not value.isascii() or not _NAME.fullmatch(value):
        forms.refuse(
            "name",
            "at most 32 lower-case letters and digits in parts joined by -, "
            "with no run of five digits",
        )
    return value


def _condition(value: Value) -> str:
    if type(value) is not str:
        forms.refuse("condition", "text")
    try:
        program.load(value)
    except language.InvalidCondition as invalid:
        raise Refused("operation_invalid", f"condition, {invalid}") from None
    return value


def _stored(context: Context, institution: str) -> tuple[Rule, ...]:
    row = context.state.get(policy_key(institution))
    return () if row is None else decode_policies(row)


def _without(context: Context, institution: str, name: str) -> list[Rule]:
    """Return the institution's rules as they are once the rule `name` is ended at this height."""
    height = context.height
    kept = []
    for rule in _stored(context, institution):
        if rule.until_height is not None and rule.until_height < height:
            continue
        if rule.name == name and rule.until_height is None:
            if rule.from_height > height:
                continue  # made at this height: it never comes into force
            rule = rule._replace(until_height=height)
        kept.append(rule)
    return kept


def _put(context: Context, institution: str, rules: list[Rule]) -> None:
    key = policy_key(institution)
    if rules:
        context.state.put(key, pack((RECORD_FORMAT, tuple(rules))))
    else:
        context.state.delete(key)


def _loaded(get: Get, institution: str) -> _Loaded:
    row = get(policy_key(institution))
    return _NO_RULES if row is None else _load(institution, row)


# Every request asks for two rows, and rows change rarely.
@lru_cache(maxsize=512)
def _load(institution: str, row: bytes) -> _Loaded:
    rules = []
    fields: frozenset[str] = frozenset()
    for rule in decode_policies(row):
        try:
            condition = program.load(rule.condition)
        except language.InvalidCondition as error:
            raise CorruptRecord("the state holds a policy whose condition is none") from error
        rules.append((_rank(rule), rule, condition, _answer(institution, rule)))
        fields |= condition.fields
    return _Loaded(tuple(rules), fields)


def _rank(rule: Rule) -> int:
    return _RANKS[rule.effect, rule.consent]


def _answer(institution: str, rule: Rule) -> PolicyAnswer:
    return PolicyAnswer(rule.effect, label(institution, rule.name), rule.consent)


def _matches(effect: str, held: bool | None) -> bool:
    """Return whether a rule speaks; a condition that cannot be evaluated can only deny."""
    return effect == "deny" if held is None else held


KINDS = (
    OperationKind("policy.publish", POLICY_ROLES, parse_publish, publish),
    OperationKind("policy.retire", POLICY_ROLES, parse_retire, retire),
)
