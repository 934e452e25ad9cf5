"""python -m tests.bench.policies: what 2,000 hostile policies cost, one by one.

Each is refused, or it is accepted, compiled and evaluated; the figure is the processor time of all
of that, on first sight. `hostile_policies` serves the test suite, too, which counts steps instead.
"""

import gc
import random
import sys
import time
from collections.abc import Callable, Iterator

from node.ledger.policies import language, program
from node.ledger.policies.facts import FIELDS, Facts

COUNT = 2_000
LIMIT_MS = 5.0
SEED = 20_261_124

REQUEST = Facts(
    request_purpose="TREAT",
    request_uses=1,
    request_heights=5_000,
    request_deidentified=False,
    request_ethics=False,
    requester_institution="ukaachen",
    requester_role="clinician",
    requester_country="DE",
    study_custodian="charite",
    study_country="DE",
    study_modality="CT",
    study_region="chest",
    study_version=1,
    study_derived=False,
    study_instance_bucket=5,
    study_size_bucket=8,
    study_confidentiality="N",
    consent_given=True,
    height=1_000,
    time_ms=1_700_000_000_000,
)

_TYPES = {kind: [n for n, f in FIELDS.items() if f.type == kind] for kind in ("bool", "int")}
_STRINGS = {
    "request.purpose": ["TREAT", "HRESCH"],
    "requester.role": ["clinician", "researcher"],
    "study.modality": ["CT", "MR", "US", "DX"],
    "study.region": ["chest", "lower_limb"],
    "study.country": ["DE", "FR"],
    "study.custodian": ["charite", "a-hospital-with-a-very-long-name"],
}
_SOUP = [
    *FIELDS, "&&", "||", "!", "==", "!=", "<", "<=", ">", ">=", "in", "?", ":", "+", "-", "(", ")",
    "[", "]", ",", "true", "false", "0", "7", "9007199254740992", '"CT"', "'DE'", '"clinician"',
]  # fmt: skip
_TEXTS = r"""
study.modality.matches('(a+)+$')
size(study.modality) > 1
study['modality'] == 'CT'
[1, 2, 3].map(x, x * x) == [1]
has(study.age)
study.name == 'Anna Muster'
study.modality == 'JOHN'
study.modality == 'CT\u0000'
study.modality < 'MR'
study.modality == study.region
study.modality in []
1.5 < 2.0
1e400 > 1
0x10 > 1
1u < 2u
b'x' == b'x'
r'\d' == 'x'
'a' == 'a'
timestamp('2026-01-01T00:00:00Z') < now
{'a': 1}.a == 1
height / 0 > 1
height % 2 == 0
height * 9 > 1
height in [
height in [true]
height
!height
1 in height
1 == true
1 < 2 < 3
null == null
true // and so on
true ? 1 : 2
consent.given + 1 > 0
-consent.given
request == request
dyn(1) == 1
type(height) == int
cel.bind(x, 1, x) == 1
.height > 1
a.b.c.d.e == 1
__proto__
9223372036854775808 > 0
-9223372036854775808 < 0
((((((
in in in
? :
!
-
"
'
'CT'
[1]
""".strip().splitlines()
_TEXTS += ["", "\x00", "\ud800", "true\u2028&& true", "\uff54rue", "\n" * 3_000]


def hostile_policies(count: int = COUNT, seed: int = SEED) -> Iterator[str]:
    """Make `count` conditions that want to be expensive or wrong, the same ones for one seed."""
    draw = random.Random(seed)
    makers: list[Callable[[random.Random], str]] = [
        _deep, _deep, _long, _long, _nested_loops, _wide_lists, _soup, _mutated, _tree, _tree,
        _full, _full, lambda draw: draw.choice(_TEXTS),
    ]  # fmt: skip
    for _ in range(count):
        yield draw.choice(makers)(draw)


def _deep(draw: random.Random) -> str:
    levels = draw.choice([3, 15, 16, 17, 18, 40, 200, 900, 5_000, 60_000])
    left, right = draw.choice(
        [("(", ")"), ("!", ""), ("-", ""), ("!(", ")"), ("-(", ")"), ("[", "]"), ("(1 + ", ")"),
         ("true ? ", " : false"), ("(true ? ", " : false)"), ("true ? true : ", ""),
         ("(true ? false : ", ")"), ("true || (false && ", ")"), ("height in [", "]"),
         ("(height == ", ")"), ("!(height < 5 || ", ")"), ("size(", ")"), ("(", "")]
    )  # fmt: skip
    core = draw.choice(["true", "height", "1", "consent.given", "height > 0", "study.derived"])
    return left * levels + core + right * levels + draw.choice(["", " > 0", " == true"])


def _long(draw: random.Random) -> str:
    operator = draw.choice(["&&", "||", "+", "-", "==", "<", "?", ":", "in", "!=", "&& !", "- -"])
    operand = draw.choice([*FIELDS, "1", "true", "height > 0", "(true)", "(height - 1)", "-height"])
    return f" {operator} ".join([operand] * draw.choice([20, 63, 85, 128, 129, 300, 5_000, 40_000]))


def _nested_loops(draw: random.Random) -> str:
    text = "true"
    items = "[" + ", ".join(map(str, range(draw.choice([3, 10, 60])))) + "]"
    for level in range(draw.choice([1, 3, 5, 12])):
        macro = draw.choice(["all", "exists", "exists_one", "filter", "map"])
        text = f"{items}.{macro}(x{level}, {text})"
    return text


def _wide_lists(draw: random.Random) -> str:
    field, words = draw.choice(list(_STRINGS.items()))
    items = [f'"{draw.choice(words)}"' for _ in range(draw.choice([10, 40, 60, 64, 65, 2_000]))]
    return " || ".join([f"{field} in [{','.join(items)}]"] * draw.choice([1, 2, 3, 5, 20]))


def _soup(draw: random.Random) -> str:
    return " ".join(draw.choices(_SOUP, k=draw.choice([2, 8, 40, 250, 3_000])))


def _mutated(draw: random.Random) -> str:
    text = _typed(draw, "bool", 3)
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(len(text) + 1)
        text = text[:at] + draw.choice("()[]!-+&|=<>?:,\"'. \n\\09azA\x7fé") + text[at + 1 :]
    return text


def _tree(draw: random.Random) -> str:
    return _typed(draw, "bool", draw.randint(2, 7))


def _full(draw: random.Random) -> str:
    """What is expensive and allowed: as many nodes as fit, in shapes that evaluate all of them."""
    unit = draw.choice(
        ["(height - 1) < 0", "!!!!study.derived", "study.derived", "1<0", "(((((height))))) < 1",
         "(height<1?height>1:false)", 'study.modality in ["MR","US","DX","MG","XA"]', "-height>1",
         "height in [1,2,3,4,5,6,7]", "(study.derived||1>2)", "(height<1)==consent.given",
         '(study.country!="DE"&&consent.given)', "1<0&&1<0"]
    )  # fmt: skip
    fitting = (language.NODES_MAX + 1) // (language.check(unit).nodes + 1)
    joined = "||".join([unit] * min(fitting, (language.LENGTH_MAX + 2) // (len(unit) + 2)))
    return joined + draw.choice(["", "&&true", "||" + unit])


def _typed(draw: random.Random, kind: str, depth: int) -> str:
    """Make a well-typed expression."""
    if depth == 0 or draw.random() < 0.1:
        leaves = [*_TYPES[kind], *(["true", "false"] if kind == "bool" else ["0", "7", "1000"])]
        return draw.choice(leaves)
    if kind == "int":
        left, right = (_typed(draw, "int", depth - 1) for _ in range(2))
        return draw.choice([f"({left} + {right})", f"({left} - {right})", f"(-{left})"])
    shape = draw.randrange(6)
    if shape == 0:
        return f"!{_typed(draw, 'bool', depth - 1)}"
    if shape == 1:
        left, right = (_typed(draw, "int", depth - 1) for _ in range(2))
        return f"({left} {draw.choice(['<', '<=', '>', '>=', '==', '!='])} {right})"
    if shape == 2:
        field, words = draw.choice(list(_STRINGS.items()))
        return f'({field} {draw.choice(["==", "!="])} "{draw.choice(words)}")'
    if shape == 3:
        first, second, third = (_typed(draw, "bool", depth - 1) for _ in range(3))
        return f"({first} ? {second} : {third})"
    operator = draw.choice([" && ", " || "])
    return operator.join(_typed(draw, "bool", depth - 1) for _ in range(draw.randint(2, 3)))


def attempt(condition: str) -> bool:
    """Check, compile and evaluate as on first sight; return whether it was accepted."""
    program.load.cache_clear()
    try:
        program.load(condition).evaluate(program.values_of(REQUEST))
    except language.InvalidCondition:
        return False
    return True


def main() -> int:
    """Print the slowest; the exit status is 1 if one took longer than the limit."""
    conditions = list(hostile_policies())
    program.require_evaluator()  # once, as the node does when it starts
    gc.collect()
    gc.freeze()  # a collection of all that the imports left behind is not these policies' cost
    times: list[tuple[float, str]] = []
    accepted = 0
    for condition in conditions:
        begin = time.process_time_ns()
        accepted += attempt(condition)
        times.append(((time.process_time_ns() - begin) / 1e6, condition))
    times.sort(reverse=True)
    slowest = times[0][0]
    print(f"{COUNT} hostile policies, {accepted} accepted and evaluated, the others refused")
    print(f"median {times[COUNT // 2][0]:.3f} ms, p99 {times[COUNT // 100][0]:.3f} ms")
    print(f"slowest {slowest:.3f} ms of processor time, limit {LIMIT_MS:.0f} ms")
    for took, condition in times[:5]:
        print(f"  {took:.3f} ms  {len(condition)} characters: {condition[:60]!r}")
    return int(slowest > LIMIT_MS)


if __name__ == "__main__":
    sys.exit(main())
