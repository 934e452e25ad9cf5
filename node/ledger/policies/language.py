"""The conditions that a policy may carry: a small, typed, bounded part of CEL.

CEL is the Common Expression Language (github.com/google/cel-spec). A condition is one expression of
type bool:

    expression = or [ "?" or ":" expression ]        both branches bool, or both int
    or         = and { "||" and }
    and        = relation { "&&" relation }
    relation   = sum [ ( "==" | "!=" | "<" | "<=" | ">" | ">=" ) sum | "in" list ]
    sum        = unary { ( "+" | "-" ) unary }       of int
    unary      = "!" unary | "-" unary | "(" expression ")" | literal | field
    list       = "[" literal { "," literal } "]"     of one type, at most LIST_MAX
    literal    = "true" | "false" | digits | "..." | '...'

Precedence and meaning are CEL's. What CEL has beyond this is refused: functions, macros and their
loops (nested ones take exponential time), regular expressions, floating-point and unsigned
numbers, maps, indexing, comments. So evaluation takes one step for each node at most, cannot
overflow (numbers are below 2**53 and nodes few), and cannot fail.

A string stands only next to a field, and must be one that the field can hold: no free text gets on
the chain. Fields and their words are in `facts`.
"""

import re
from dataclasses import dataclass
from typing import NamedTuple, NoReturn

from node.ledger.limits import HEIGHT_MAX
from node.ledger.policies.facts import FIELDS, INSTITUTIONS, Field, Type, variable

LENGTH_MAX = 2_048  # characters
NODES_MAX = 200  # operators, brackets, fields and literals
DEPTH_MAX = 16  # brackets, signs, negations and choices inside one another
LIST_MAX = 64
INT_MAX = HEIGHT_MAX

_TOKEN = re.compile(
    r"""[ \t\r\n]*(?:
        (?P<word>[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z_][A-Za-z0-9_]*)*)
      | (?P<int>[0-9]+)
      | (?P<string>"[A-Za-z0-9_-]*"|'[A-Za-z0-9_-]*')
      | (?P<sign>&&|\|\||[=!<>]=|[-!<>+?:()\[\],])
      | (?P<end>\Z)
    )""",
    re.VERBOSE,
)
_BLANKS = " \t\r\n"
_BEGINNINGS = frozenset({"(", "!", "-"})  # signs that an operand begins with
_ORDERS = frozenset({"<", "<=", ">", ">="})
_EQUALS = frozenset({"==", "!="})
_WORDS_SHOWN = 12


class InvalidCondition(ValueError):
    """A text is no condition. `position` counts characters from 0; the text is not repeated, since
    what somebody wrongly put there may identify a patient."""

    def __init__(self, text: str, position: int, sentence: str) -> None:
        line = text.count("\n", 0, position) + 1
        column = position - (text.rfind("\n", 0, position) + 1) + 1
        super().__init__(f"line {line}, column {column}: {sentence}")
        self.position = position
        self.sentence = sentence


class Part(NamedTuple):
    """An operand of the outermost `&&` or `||`, or the whole condition where there is none."""

    start: int  # in the text of the condition
    end: int  # exclusive
    expression: str  # canonical


@dataclass(frozen=True, slots=True)
class Condition:
    """A condition that was checked."""

    expression: str  # canonical CEL over `facts.variable` names: what is evaluated
    parts: tuple[Part, ...]
    fields: frozenset[str]  # that it reads, keys of FIELDS
    institutions: frozenset[str]  # that it names
    nodes: int


class _Token(NamedTuple):
    kind: str  # word, int, string, sign or end
    text: str
    start: int
    end: int


# How tightly an expression holds together; what is looser than its place allows gets brackets.
_ATOM, _SUM, _RELATION, _CHAIN, _CHOICE = range(5)


class _Node(NamedTuple):
    """An expression with its type and canonical text."""

    type: Type
    level: int
    text: str
    start: int
    end: int
    field: Field | None = None  # that this is
    literal: str | None = None  # the word or the digits that this is, a sign before it or not
    parts: tuple[Part, ...] = ()

    def within(self, level: int) -> str:
        """Return the text for a place that takes nothing looser than `level`."""
        return self.text if self.level <= level else f"({self.text})"


def check(text: str) -> Condition:
    """Return the condition that `text` holds. Raises `InvalidCondition`.

    Takes time linear in the length, which is bounded.
    """
    if len(text) > LENGTH_MAX:
        raise InvalidCondition(text, LENGTH_MAX, f"a condition has at most {LENGTH_MAX} characters")
    return _Parser(text).condition()


def _tokens(text: str) -> list[_Token]:
    found = []
    position = 0
    while True:
        match = _TOKEN.match(text, position)
        if match is None:
            raise _unreadable(text, position)
        kind = match.lastgroup or ""
        found.append(_Token(kind, match[kind], match.start(kind), match.end()))
        if kind == "end":
            return found
        position = match.end()


def _unreadable(text: str, position: int) -> InvalidCondition:
    while text[position] in _BLANKS:
        position += 1
    if text[position] in "\"'":
        sentence = "a string has letters, digits, - and _ between two marks of one kind"
    else:
        sentence = "no condition may hold this character"
    return InvalidCondition(text, position, sentence)


class _Parser:
    """One descent through one text: checks form, types and bounds, and writes canonical CEL."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = _tokens(text)
        self._index = 0
        self._next = self._tokens[0]
        self._depth = 0
        self._nodes = 0
        self._fields: set[str] = set()
        self._institutions: set[str] = set()

    def condition(self) -> Condition:
        node = self._expression()
        if self._next.kind != "end":
            self._refuse(self._next, "an operator is missing, or a bracket closes nothing")
        self._expect(node, "bool", "a condition is either true or false")
        return Condition(
            node.text,
            node.parts or (Part(node.start, node.end, node.text),),
            frozenset(self._fields),
            frozenset(self._institutions),
            self._nodes,
        )

    def _expression(self) -> _Node:
        chosen = self._chain("||")
        if not self._skip("?"):
            return chosen
        self._expect(chosen, "bool", "what stands before ? must be true or false")
        self._count()
        with_true = self._chain("||")
        self._take(":", "a choice is written condition ? one : other")
        self._enter()
        with_false = self._expression()
        self._depth -= 1
        if with_true.type == "string" or with_true.type != with_false.type:
            self._refuse(with_false, "both sides of : must be numbers, or both true or false")
        branches = f"{with_true.within(_RELATION)} : {with_false.within(_RELATION)}"
        text = f"{chosen.within(_RELATION)} ? {branches}"
        return _Node(with_true.type, _CHOICE, text, chosen.start, with_false.end)

    def _chain(self, operator: str) -> _Node:
        """Read operands of `||`, each of which is operands of `&&`, each of which is a relation."""
        operand = self._relation if operator == "&&" else self._conjunction
        first = operand()
        if self._next.text != operator:
            return first
        nodes = [first]
        while self._skip(operator):
            self._count()
            nodes.append(operand())
        for node in nodes:
            self._expect(node, "bool", f"both sides of {operator} must be true or false")
        # An && within an || gets brackets, too: then precedence is nobody's to get wrong.
        text = f" {operator} ".join([node.within(_RELATION) for node in nodes])
        parts = tuple([Part(node.start, node.end, node.text) for node in nodes])
        return _Node("bool", _CHAIN, text, first.start, nodes[-1].end, parts=parts)

    def _conjunction(self) -> _Node:
        return self._chain("&&")

    def _relation(self) -> _Node:
        left = self._sum()
        token = self._next
        operator = token.text
        if operator == "in":
            self._advance()
            return self._membership(left)
        if operator not in _ORDERS and operator not in _EQUALS:
            return left
        self._advance()
        self._count()
        right = self._sum()
        if operator in _ORDERS:
            for node in (left, right):
                self._expect(node, "int", f"only numbers can be compared with {operator}")
        elif left.type != right.type:
            self._refuse(token, f"{left.type} and {right.type} cannot be compared")
        elif left.type == "string":
            self._compare(left, right)
        if self._next.text in _ORDERS or self._next.text in _EQUALS:
            self._refuse(self._next, "comparisons do not chain; join them with &&")
        text = f"{left.within(_SUM)} {operator} {right.within(_SUM)}"
        return _Node("bool", _RELATION, text, left.start, right.end)

    def _membership(self, left: _Node) -> _Node:
        self._count()
        self._take("[", "after in stands a list in square brackets")
        items = [self._item(left)]
        while self._skip(","):
            if len(items) == LIST_MAX:
                self._refuse(self._next, f"a list has at most {LIST_MAX} entries")
            items.append(self._item(left))
        end = self._take("]", "a list ends with ]")
        text = f"{left.within(_SUM)} in [{', '.join([item.text for item in items])}]"
        return _Node("bool", _RELATION, text, left.start, end.end)

    def _item(self, left: _Node) -> _Node:
        token = self._next
        if token.kind not in ("int", "string") and token.text != "-":
            self._refuse(token, "a list holds numbers, or strings")
        item = self._unary()
        if item.type != left.type:
            self._refuse(token, f"{left.type} cannot be in a list of {item.type}")
        if item.literal is None:
            self._refuse(token, "a list holds numbers, or strings")
        if item.type == "string":
            self._compare(left, item)
        return item

    def _compare(self, left: _Node, right: _Node) -> None:
        """Check that two strings can be equal at all, and that a literal is no free text."""
        if left.field is None:
            left, right = right, left
        field = left.field
        if field is None:
            self._refuse(right, "a string is compared with a field, not with another string")
        if right.literal is None:
            if right.field != field:
                self._refuse(right, "the two fields never hold the same words")
            return
        if not field.takes(right.literal):
            words = sorted(field.words)
            listed = f": {', '.join(words)}" if 0 < len(words) <= _WORDS_SHOWN else ""
            self._refuse(right, f"this is not {field.what}{listed}")
        if field is INSTITUTIONS:
            self._institutions.add(right.literal)

    def _sum(self) -> _Node:
        first = last = self._unary()
        text = first.within(_ATOM)
        while self._next.text in ("+", "-"):
            operator = self._advance().text
            self._count()
            right = self._unary()
            for node in (last, right):
                self._expect(node, "int", f"only numbers can stand next to {operator}")
            text, last = f"{text} {operator} {right.within(_ATOM)}", right
        return first if last is first else _Node("int", _SUM, text, first.start, last.end)

    def _unary(self) -> _Node:
        token = self._next
        if token.kind == "end" or (token.kind == "sign" and token.text not in _BEGINNINGS):
            self._refuse(token, "a field, a number, a string, true or false is missing")
        self._advance()
        self._count()
        if token.kind == "word":
            return self._word(token)
        if token.kind == "int":
            return self._number(token)
        if token.kind == "string":
            # Whether a field can hold this is seen where it stands; the form keeps it harmless.
            literal = token.text[1:-1]
            return _Node("string", _ATOM, f'"{literal}"', token.start, token.end, literal=literal)
        return self._bracket(token) if token.text == "(" else self._signed(token)

    def _bracket(self, opening: _Token) -> _Node:
        self._enter()
        inner = self._expression()
        self._depth -= 1
        closing = self._take(")", "a bracket is not closed")
        return _Node(
            inner.type,
            inner.level,
            inner.text,
            opening.start,
            closing.end,
            inner.field,
            inner.literal,
            inner.parts,
        )

    def _signed(self, sign: _Token) -> _Node:
        self._enter()
        node = self._unary()
        self._depth -= 1
        if sign.text == "!":
            self._expect(node, "bool", "only what is true or false can stand behind !")
        else:
            self._expect(node, "int", "only a number can stand behind -")
        text = f"(-{node.within(_ATOM)})" if sign.text == "-" else f"!{node.within(_ATOM)}"
        return _Node(node.type, _ATOM, text, sign.start, node.end, literal=node.literal)

    def _number(self, token: _Token) -> _Node:
        if token.text != "0" and token.text.startswith("0"):
            self._refuse(token, "a number does not begin with 0")
        if len(token.text) > len(str(INT_MAX)) or int(token.text) > INT_MAX:
            self._refuse(token, f"a number is at most {INT_MAX}")
        return _Node("int", _ATOM, token.text, token.start, token.end, literal=token.text)

    def _word(self, token: _Token) -> _Node:
        if token.text in ("true", "false"):
            return _Node("bool", _ATOM, token.text, token.start, token.end)
        field = FIELDS.get(token.text)
        if field is None:
            self._refuse(token, _unknown_field(token.text))
        self._fields.add(token.text)
        return _Node(field.type, _ATOM, variable(token.text), token.start, token.end, field)

    def _advance(self) -> _Token:
        """Go past the next token, which is not the end, and return it."""
        token = self._next
        self._index += 1
        self._next = self._tokens[self._index]
        return token

    def _skip(self, sign: str) -> bool:
        """Go past the next token if it is `sign`."""
        if self._next.text != sign:
            return False
        self._advance()
        return True

    def _take(self, sign: str, sentence: str) -> _Token:
        if self._next.text != sign:
            self._refuse(self._next, sentence)
        return self._advance()

    def _enter(self) -> None:
        self._depth += 1
        if self._depth > DEPTH_MAX:
            self._refuse(self._next, f"nested more than {DEPTH_MAX} deep")

    def _count(self) -> None:
        self._nodes += 1
        if self._nodes > NODES_MAX:
            self._refuse(
                self._next, f"more than {NODES_MAX} operators, brackets, fields and values"
            )

    def _expect(self, node: _Node, type_: Type, sentence: str) -> None:
        if node.type != type_:
            self._refuse(node, f"{sentence}; this is of type {node.type}")

    def _refuse(self, at: _Token | _Node, sentence: str) -> NoReturn:
        raise InvalidCondition(self._text, at.start, sentence)


def _unknown_field(path: str) -> str:
    head, _, _ = path.partition(".")
    names = sorted(name.removeprefix(f"{head}.") for name in FIELDS if name.startswith(f"{head}."))
    if names:
        return f"{head} has the fields {', '.join(names)}"
    heads = sorted({name.partition(".")[0] for name in FIELDS})
    return f"no field and no function that a condition knows; fields are in {', '.join(heads)}"
