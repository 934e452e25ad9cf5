"""Conditions, compiled once and evaluated.

The evaluator is never given what somebody wrote, but the canonical expression that `language` made
of it: nothing that the checker misread can get to it. Its version is part of the protocol version,
as two versions might part the nodes; with another one installed nothing is compiled.
"""

from collections.abc import Set
from functools import cache, lru_cache
from importlib import metadata

import cel

from consensus.errors import require
from node.ledger.policies import facts, language
from node.ledger.policies.facts import FIELDS, Facts

EVALUATOR = "common-expression-language"
EVALUATOR_VERSION = "0.10.0"

_ALL_FIELDS = frozenset(FIELDS)


class Values:
    """The facts of one request, in the evaluator's form."""

    __slots__ = ("context",)

    def __init__(self, variables: dict[str, object]) -> None:
        self.context: cel.Context | None
        try:
            self.context = cel.Context(variables)
        except (ValueError, TypeError, OverflowError):
            self.context = None  # every condition is then an error


class Program:
    """A condition that was checked and compiled."""

    __slots__ = ("_compiled", "fields", "institutions", "nodes")

    def __init__(self, condition: language.Condition, compiled: cel.Program) -> None:
        self.fields = condition.fields
        self.institutions = condition.institutions
        self.nodes = condition.nodes
        self._compiled = compiled

    def evaluate(self, values: Values) -> bool | None:
        """Return whether the condition holds, or None if it cannot be evaluated.

        `values` must have the variables of `fields`.
        """
        return _evaluate(self._compiled, values)


def require_evaluator() -> None:
    """Raise `InvariantViolation` unless the evaluator is the one that the protocol names."""
    installed = _installed_version()
    require(
        installed == EVALUATOR_VERSION,
        f"{EVALUATOR} {EVALUATOR_VERSION} decides policies in this protocol version, "
        f"{installed} is installed; install what requirements.lock names",
    )


def values_of(asked: Facts, fields: Set[str] = _ALL_FIELDS) -> Values:
    """Return the values of `fields`, for conditions that read no others."""
    return Values(facts.values(asked, fields))


# Nearly all requests meet rules that others met before. An ordinary program takes 2 kB, the
# greatest 30: over 100 MB only when somebody fills the cache with the greatest.
@lru_cache(maxsize=4_096)
def load(condition: str) -> Program:
    """Return the program of a condition. Raises `language.InvalidCondition`."""
    checked = language.check(condition)
    compiled = _compile(checked.expression)
    if compiled is None:
        # Nothing known gets here. If something does, all nodes refuse it alike and none halts.
        raise language.InvalidCondition(condition, 0, "the evaluator cannot compile this")
    return Program(checked, compiled)


def explain(condition: str, values: Values) -> tuple[tuple[str, bool | None], ...]:
    """Return the operands of the outermost `&&` or `||`, as written, and how each came out."""
    parts = language.check(condition).parts
    return tuple(
        (condition[part.start : part.end], _evaluate(_compile(part.expression), values))
        for part in parts
    )


def _evaluate(compiled: cel.Program | None, values: Values) -> bool | None:
    if compiled is None or values.context is None:
        return None
    try:
        result = compiled.execute(values.context)
    except (ValueError, TypeError, RuntimeError, KeyError, ArithmeticError):
        return None
    except BaseException as error:
        if _is_panic(error):
            return None
        raise
    return result if type(result) is bool else None


def _compile(expression: str) -> cel.Program | None:
    require_evaluator()
    try:
        return cel.compile(expression)
    except ValueError:
        return None
    except BaseException as error:
        if _is_panic(error):
            return None
        raise


def _is_panic(error: BaseException) -> bool:
    """Return whether the evaluator's own language panicked; its exception is past `Exception` and
    cannot be imported."""
    return type(error).__name__ == "PanicException"


@cache
def _installed_version() -> str:
    return metadata.version(EVALUATOR)
