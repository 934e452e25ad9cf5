"""Where other hospitals' questions arrive: read, answered, reported."""

import logging
from collections.abc import Callable

from node.exchange.federation.answer import Answer, encode_answer
from node.exchange.federation.answering import Answering, NotOffered
from node.exchange.federation.asking import FIND_PATH
from node.exchange.federation.errors import InvalidQuestion
from node.exchange.federation.ports import FederationEvent, Inquiry, Report
from node.exchange.federation.question import (
    QUESTION_BYTES_MAX,
    Kind,
    Question,
    decode_question,
)
from node.exchange.transfer import refusals
from node.exchange.transfer.errors import LedgerUnavailable
from node.exchange.transfer.posts import Post
from node.exchange.transfer.refusals import Refusal

log = logging.getLogger(__name__)


def find_post(answering: Callable[[], Answering | None], report: Report, per_minute: int) -> Post:
    """Return the path on which `answering` is asked, None meaning that nothing is offered now.

    Every question is one event: an answer here, a refusal by the server that this is part of.
    """

    async def respond(institution: str, body: bytes) -> bytes:
        answers = answering()
        if answers is None:
            raise not_offered()
        try:
            question = decode_question(body)
        except InvalidQuestion as error:
            log.info("a question is not understood institution=%s: %s", institution, error)
            raise question_invalid() from error
        try:
            answer = await answers.answer(institution, question)
        except NotOffered:
            raise not_offered() from None
        except LedgerUnavailable as error:
            raise refusals.unavailable() from error
        report(event_of(Inquiry.ANSWERED, institution, question, answer))
        return encode_answer(answer)

    return Post(
        path=FIND_PATH,
        respond=respond,
        body_bytes_max=QUESTION_BYTES_MAX,
        per_minute=per_minute,
    )


def event_of(
    kind: Inquiry, institution: str, question: Question, answer: Answer | None, code: str = ""
) -> FederationEvent:
    """Return what is to be kept of a question: who, what for, about which fields; no values."""
    about = sorted({field.value for field in (*question.matched, *question.fields)})
    told = 0
    if answer is not None:
        if answer.unoffered:
            code = "not_offered"
        told = len(answer.studies)
        if answer.kind is Kind.COUNT and answer.total is not None:
            told = answer.total[1]
    return FederationEvent(
        kind,
        institution,
        code,
        question.purpose,
        question.role,
        f"{question.kind.value} {'+'.join(about)}".strip(),
        told,
    )


def not_offered() -> Refusal:
    """Return the refusal of a question that this hospital does not answer."""
    return Refusal(403, "not_offered", "this hospital does not answer such questions")


def question_invalid() -> Refusal:
    """Return the refusal of what is no question."""
    return Refusal(400, "question_invalid", "this is no question that is understood here")
