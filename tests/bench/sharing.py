"""Access requests beside plain registrations: what consent and policy cost, in the same run.

Every hospital has a consortium's usual handful of policies and asks the next one for studies of
patients who consented. Each request is decided by rule, so it evaluates all policies and the
consent; a request that is not granted ends the run.
"""

import asyncio
import itertools
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from node.ledger.transaction import Operation
from tests.bench.load import Load

CLIENTS = 64
STUDIES = 16  # of each hospital, all with consent
HEIGHTS = 1_000
ROUNDS = 3  # registrations and requests take turns, so that both see the same machine
POLICIES = (
    ("treatment", "permit", "required",
     'request.purpose == "TREAT" && requester.role in ["clinician", "gateway"]'),
    ("research", "permit", "required",
     'request.purpose == "HRESCH" && request.deidentified && request.ethics'),
    ("restricted", "ask", "required", 'study.confidentiality == "V"'),
    ("abroad", "deny", "required",
     'requester.country != study.country && request.purpose != "TREAT"'),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Hospital:
    name: str
    studies: tuple[bytes, ...]


async def measure(load: Load, names: Sequence[str], seconds: float) -> dict[str, float]:
    """Return transactions per second of both kinds, and their ratio; `load` is connected."""
    hospitals = await asyncio.gather(
        *(_furnish(load, index, name) for index, name in enumerate(names))
    )
    requests = [_requests(hospitals[(i + 1) % len(hospitals)]) for i in range(len(hospitals))]
    plain, asked = [], []
    for _ in range(ROUNDS):
        plain.append(await load.closed_loop(CLIENTS, seconds / ROUNDS, warm_up_s=0.3))
        asked.append(
            await load.closed_loop(
                CLIENTS,
                seconds / ROUNDS,
                warm_up_s=0.3,
                operations_of=lambda node: (next(requests[node]),),
            )
        )
    await _check_granted(load, [each for phase in asked for each in phase.ids[:4]])
    return {
        "registrations_per_s": round(sum(p.rate for p in plain) / ROUNDS, 1),
        "requests_per_s": round(sum(p.rate for p in asked) / ROUNDS, 1),
        "p50_ms": round(sum(p.percentile_ms(0.5) for p in asked) / ROUNDS, 2),
        "p99_ms": round(max(p.percentile_ms(0.99) for p in asked), 2),
        "share_of_registrations": round(sum(p.rate for p in asked) / sum(p.rate for p in plain), 3),
        "policies": len(POLICIES),
    }


async def _furnish(load: Load, node: int, name: str) -> _Hospital:
    studies, operations = [], []
    for _ in range(STUDIES):
        study, subject, root = (secrets.token_bytes(size) for size in (16, 16, 32))
        form, consent = secrets.token_bytes(32), secrets.token_bytes(16)
        operations += [
            Operation("study.register", (study, subject, root, "CT", "head", 5, 3)),
            Operation("consent.grant", (consent, subject, None, None, (), None, form)),
        ]
        studies.append(study)
    operations += [Operation("policy.publish", policy) for policy in POLICIES]
    await load.submit(node, operations)
    return _Hospital(name, tuple(studies))


def _requests(custodian: _Hospital) -> Iterator[Operation]:
    for study in itertools.cycle(custodian.studies):
        arguments = (
            secrets.token_bytes(16), study, "gateway", "TREAT", HEIGHTS, 3, False, None, None,
        )  # fmt: skip
        yield Operation("access.request", arguments)


async def _check_granted(load: Load, ids: Sequence[bytes]) -> None:
    for identifier in ids:
        view = await load.clients[0].transaction(identifier)
        if view is None or "access_granted" not in [event.name for event in view.receipt.events]:
            raise RuntimeError("an access request of the load was not granted by rule")
