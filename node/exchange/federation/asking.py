"""Asks hospitals a question, all at once, and says who did not answer and why.

What they say is believed only so far as the ledger agrees: a study that is told must be the
answering hospital's own there. Who claims another's is named, and nothing of its answer is used.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, replace
from typing import TypeAlias

from node.exchange.federation.answer import ANSWER_BYTES_MAX, Answer, decode_answer
from node.exchange.federation.errors import InvalidAnswer
from node.exchange.federation.question import Question, encode_question
from node.exchange.transfer.holders import (
    Holder,
    HolderBusy,
    HolderFailed,
    HolderLied,
    HolderRefused,
    Identity,
    Link,
    NotHeld,
)
from node.exchange.transfer.limits import ClientLimits
from node.network.errors import CertificateRefused

FIND_PATH = "/v1/find"
_AT_ONCE = 32

# Returns who has a study (16 bytes) in its keeping, None if it is not known here, or erased.
CustodianOf: TypeAlias = Callable[[bytes], Awaitable[str | None]]


@dataclass(frozen=True, slots=True)
class Findings:
    """What came of a question, by institution."""

    answers: dict[str, Answer]
    silent: dict[str, str]  # who gave no answer, and why


async def ask(
    identity: Identity,
    question: Question,
    holders: Iterable[Holder],
    custodian_of: CustodianOf,
    *,
    timeout_s: float,
) -> Findings:
    """Ask everybody; whoever has not answered after `timeout_s` is silent, the others count.

    Raises `InvalidQuestion`, and what `custodian_of` raises.
    """
    body = encode_question(question)
    turns = asyncio.Semaphore(_AT_ONCE)
    limits = ClientLimits(parallel=1, connect_timeout_ms=max(1, int(timeout_s * 1000)))

    async def one(holder: Holder) -> Answer | str:
        async with turns:
            link = Link(holder, identity, limits)
            try:
                async with asyncio.timeout(timeout_s):
                    data = await link.post(FIND_PATH, body, ANSWER_BYTES_MAX)
                return decode_answer(data, question)
            except (*_FAILURES, TimeoutError) as error:
                return _reason(error, timeout_s)
            finally:
                await link.close()

    asked = list(holders)
    results = await asyncio.gather(*map(one, asked))
    answers: dict[str, Answer] = {}
    silent: dict[str, str] = {}
    for holder, result in zip(asked, results, strict=True):
        believed = result
        if isinstance(result, Answer):
            believed = await _believed(holder.institution, result, custodian_of)
        if isinstance(believed, Answer):
            answers[holder.institution] = believed
        else:
            silent[holder.institution] = believed
    return Findings(answers, silent)


_FAILURES = (
    HolderFailed,
    HolderLied,
    HolderRefused,
    HolderBusy,
    NotHeld,
    InvalidAnswer,
    CertificateRefused,
)
_MEANINGS = {
    "status_404": "its gateway does not answer searches",
    "request_invalid": "its gateway does not answer searches",
    "not_offered": "it does not answer such questions",
    "question_invalid": "it does not understand the question",
    "peer_unknown": "it does not know this hospital",
    "too_many_questions": "it was asked too often; wait a minute",
    "too_many_requests": "it is answering this hospital already",
    "ledger_unavailable": "it cannot ask the ledger now",
}


def _reason(error: Exception, timeout_s: float) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {timeout_s:g} seconds"
    if isinstance(error, HolderRefused | HolderBusy):
        code = str(error)
        return _MEANINGS.get(code, f"it refused: {code}")
    return str(error) or "it has nothing"


async def _believed(institution: str, answer: Answer, custodian_of: CustodianOf) -> Answer | str:
    """Return the answer without what the ledger, as it is known here, does not know (yet)."""
    custodians = await asyncio.gather(*(custodian_of(study.study_id) for study in answer.studies))
    if any(custodian not in (institution, None) for custodian in custodians):
        return "it told of a study that is not its own on the ledger"
    known = tuple(
        study
        for study, custodian in zip(answer.studies, custodians, strict=True)
        if custodian is not None
    )
    if len(known) == len(answer.studies):
        return answer
    return replace(answer, studies=known, is_complete=False)
