"""Writes the conformance set of policies: `python -m tests.vectors.policies`.

Every condition stands next to the same rule in Python, and the expected answers come from these and
from a second statement of who decides, never from the node's own code. A second implementation that
gives all of these answers decides requests as this one does.

A change of the file is a change of the protocol: it needs a new version, not a new answer.
"""

import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

PATH = Path(__file__).with_name("policies.json")

EVALUATOR = ["common-expression-language", "0.10.0"]

HOUR_MS = 3_600_000
MIDNIGHT = 1_767_225_600_000  # 2026-01-01 00:00 UTC, a Thursday
REQUEST: dict[str, Any] = {
    "request_purpose": "TREAT",
    "request_uses": 2,
    "request_heights": 5_000,
    "request_deidentified": False,
    "request_ethics": False,
    "requester_institution": "ukaachen",
    "requester_role": "clinician",
    "requester_country": "DE",
    "study_custodian": "charite",
    "study_country": "DE",
    "study_modality": "CT",
    "study_region": "chest",
    "study_version": 1,
    "study_derived": False,
    "study_instance_bucket": 5,
    "study_size_bucket": 8,
    "study_confidentiality": "N",
    "consent_given": False,
    "height": 1_000,
    "time_ms": MIDNIGHT + 12 * HOUR_MS,
}
Rule = tuple[str, str, str, str, Callable[[Any], bool]]

# institution ("" for the consortium) -> (name, effect, consent, condition, the same in Python)
RULES: dict[str, list[Rule]] = {
    "": [
        (
            "abroad",
            "deny",
            "required",
            'requester.country != study.country && request.purpose != "ETREAT"',
            lambda f: f.requester_country != f.study_country and f.request_purpose != "ETREAT",
        ),
        (
            "emergency",
            "permit",
            "not_objected",
            "request.purpose == 'ETREAT' && requester.role in ['clinician', 'gateway']",
            lambda f: (
                f.request_purpose == "ETREAT" and f.requester_role in ("clinician", "gateway")
            ),
        ),
        (
            "otherwise",
            "ask",
            "required",
            "!(request.purpose == 'HLEGAL')",
            lambda f: f.request_purpose != "HLEGAL",
        ),
    ],
    "charite": [
        (
            "few-uses",
            "permit",
            "required",
            'request.purpose == "TREAT" && requester.role == "clinician" && request.uses <= 3',
            lambda f: (
                f.request_purpose == "TREAT"
                and f.requester_role == "clinician"
                and f.request_uses <= 3
            ),
        ),
        (
            "night",
            "permit",
            "not_objected",
            "(block.hour >= 18 || block.hour < 6 || block.weekday >= 5)"
            '&& request.purpose == "TREAT"',
            lambda f: (
                (f.hour >= 18 or f.hour < 6 or f.weekday >= 5) and f.request_purpose == "TREAT"
            ),
        ),
        (
            "restricted",
            "deny",
            "required",
            'study.confidentiality in ["R", "V"] && !consent.given',
            lambda f: f.study_confidentiality in ("R", "V") and not f.consent_given,
        ),
        (
            "research",
            "permit",
            "required",
            'request.purpose in ["HRESCH", "CLINTRCH"]'
            "? request.deidentified && request.ethics : false",
            lambda f: (
                f.request_purpose in ("HRESCH", "CLINTRCH")
                and f.request_deidentified
                and f.request_ethics
            ),
        ),
        (
            "partner",
            "ask",
            "not_objected",
            'requester.institution == "ukaachen" && study.custodian != requester.institution',
            lambda f: f.requester_institution == "ukaachen" != f.study_custodian,
        ),
    ],
    "stanna": [
        (
            "big",
            "deny",
            "required",
            "study.size_bucket + study.instance_bucket - 1 > 20 || study.version in [7, 9]",
            lambda f: (
                f.study_size_bucket + f.study_instance_bucket - 1 > 20 or f.study_version in (7, 9)
            ),
        ),
        (
            "derived",
            "permit",
            "not_objected",
            "study.derived == !consent.given && height - request.heights < -3999",
            lambda f: (
                f.study_derived == (not f.consent_given) and f.height - f.request_heights < -3999
            ),
        ),
        (
            "region",
            "permit",
            "required",
            '!(study.region in ["head", "neck"]) && study.modality == "MR"',
            lambda f: f.study_region not in ("head", "neck") and f.study_modality == "MR",
        ),
    ],
    "quiet": [],
}

# Each list varies one or more fields together; all pairs of entries of different lists are asked.
VARIATIONS: list[list[dict[str, Any]]] = [
    [{"request_purpose": word} for word in ("ETREAT", "HRESCH", "CLINTRCH", "PATRQT", "HLEGAL")],
    [{"requester_role": word} for word in ("gateway", "researcher", "patient")],
    [{"requester_country": "FR"}, {"study_country": "ZZ"}],
    [{"request_deidentified": True, "request_ethics": True}, {"request_ethics": True}],
    [{"request_uses": number} for number in (0, 3, 4, 2**53)],
    [{"study_confidentiality": "R"}, {"study_confidentiality": "V"}],
    [{"consent_given": True}],
    [
        {"time_ms": MIDNIGHT + hours * HOUR_MS + extra}
        for hours, extra in (
            (5, HOUR_MS - 1),
            (6, 0),
            (17, HOUR_MS - 1),
            (18, 0),
            (2 * 24 + 12, -1),
            (4 * 24 + 12, 0),
        )
    ],
    [{"requester_institution": "quiet"}],
    [{"study_size_bucket": 16}, {"study_size_bucket": 17}, {"study_version": 9}],
    [{"study_derived": True}],
    [{"height": 1_001}, {"request_heights": 4_999}],
    [{"study_modality": "MR"}, {"study_modality": "MR", "study_region": "head"}],
]

ORDER = [
    ("deny", None),
    ("permit", "not_objected"),
    ("permit", "required"),
    ("ask", "not_objected"),
    ("ask", "required"),
]


def expected(custodian: str, request: dict[str, Any]) -> list[str]:
    """[effect, rule, consent] by the second statement of the rules."""
    days, rest = divmod(request["time_ms"], 24 * HOUR_MS)
    # 2026-01-01, day 20454, was a Thursday, number 3.
    asked = SimpleNamespace(**request, hour=rest // HOUR_MS, weekday=(days - 20_454 + 3) % 7)
    matching = [
        (effect, consent, f"{institution or 'consortium'}/{name}")
        for institution in ("", custodian)
        for name, effect, consent, _, holds in sorted(RULES[institution], key=lambda rule: rule[0])
        if holds(asked)
    ]
    for effect, consent in ORDER:
        for found in matching:
            if found[0] == effect and consent in (None, found[1]):
                return [found[0], found[2], found[1]]
    return ["none", "", "required"]


def requests() -> Iterator[tuple[str, dict[str, Any]]]:
    """(custodian, what differs from REQUEST)"""
    singles = [change for group in VARIATIONS for change in group]
    pairs = [
        one | other
        for group, later in itertools.combinations(VARIATIONS, 2)
        for one in group
        for other in later
    ]
    for change in [{}, *singles]:
        yield from ((custodian, change) for custodian in ("charite", "stanna", "quiet"))
    for number, change in enumerate(pairs):
        yield "stanna" if number % 4 == 0 else "charite", change


def make() -> dict[str, Any]:
    """The whole set."""
    return {
        "about": "Who decides a request for access, by the policies; see tests/vectors/policies.py",
        "evaluator": EVALUATOR,
        "rules": {
            institution: [list(rule[:4]) for rule in rules] for institution, rules in RULES.items()
        },
        "request": REQUEST,
        "cases": [
            [
                custodian,
                change,
                expected(custodian, REQUEST | {"study_custodian": custodian} | change),
            ]
            for custodian, change in requests()
        ],
    }


def encode(made: dict[str, Any]) -> str:
    """The file's text, one case a line."""
    cases = made.pop("cases")
    head = json.dumps(made, indent=2, ensure_ascii=False)[:-2]
    lines = ",\n".join("    " + json.dumps(case, ensure_ascii=False) for case in cases)
    return f'{head},\n  "cases": [\n{lines}\n  ]\n}}\n'


if __name__ == "__main__":
    PATH.write_text(encode(make()), encoding="utf-8")
