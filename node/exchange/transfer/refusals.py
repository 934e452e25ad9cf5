"""What a peer is told when it gets nothing: a status, a stable code, one sentence."""

import json

from aiohttp import web

from node.exchange.transfer.errors import NotPermitted

REQUEST_UNKNOWN = "request_unknown"
NOT_CUSTODIAN = "not_custodian"


class Refusal(Exception):
    """A request of a peer is refused; nothing in it tells more than the peer may know."""

    def __init__(self, status: int, code: str, sentence: str, retry_s: int | None = None) -> None:
        super().__init__(code)
        self.status = status
        self.code = code
        self.sentence = sentence
        self.retry_s = retry_s


def not_permitted(error: NotPermitted) -> Refusal:
    """Return the refusal of what the ledger does not permit."""
    if error.code == REQUEST_UNKNOWN:
        return Refusal(404, REQUEST_UNKNOWN, "the ledger has no such request of yours")
    return Refusal(403, error.code, "the ledger does not permit it")


def invalid(what: str) -> Refusal:
    """Return the refusal of a request that is not well formed."""
    return Refusal(400, "request_invalid", f"{what} is needed")


def peer_unknown() -> Refusal:
    """Return the refusal of a peer whose key no institution has (any more)."""
    return Refusal(403, "peer_unknown", "the certificate is of no institution that is known here")


def not_held() -> Refusal:
    """Return the refusal of what is not here: never, not yet, or not any more."""
    return Refusal(404, "not_held", "it is not held here")


def offer_unknown() -> Refusal:
    """Return the refusal of an offer that this hospital did not make."""
    return Refusal(
        404, "offer_unknown", "no key was wrapped here for this request; ask its custodian"
    )


def not_satisfiable(size: int) -> Refusal:
    """Return the refusal of a range that lies outside of a chunk."""
    return Refusal(416, "range_invalid", f"one range of bytes within {size} is needed")


def busy() -> Refusal:
    """Return the refusal of one answer too many at a time."""
    return Refusal(429, "too_many_requests", "more requests at a time than one peer may make", 1)


def too_often() -> Refusal:
    """Return the refusal of one question too many in a minute."""
    return Refusal(429, "too_many_questions", "more questions than one institution may ask", 60)


def too_large(bytes_max: int) -> Refusal:
    """Return the refusal of a body that is too long."""
    return Refusal(413, "request_too_large", f"a body has at most {bytes_max} bytes here")


def too_slow() -> Refusal:
    """Return the refusal of a body that does not come."""
    return Refusal(408, "request_too_slow", "the rest of the request did not come in time")


def unavailable() -> Refusal:
    """Return the refusal while nobody can ask the ledger."""
    return Refusal(503, "ledger_unavailable", "the ledger cannot be asked now; try again", 1)


def not_recorded() -> Refusal:
    """Return the refusal while what leaves here cannot be audited."""
    return Refusal(503, "not_recorded", "it cannot be audited now, so nothing is given", 30)


def internal() -> Refusal:
    """Return the refusal after a fault of ours."""
    return Refusal(500, "internal", "the other side failed; its operator finds why in its log", 5)


def response(refusal: Refusal) -> web.Response:
    """Return the refusal as HTTP."""
    body = {"error": {"code": refusal.code, "sentence": refusal.sentence}}
    answer = web.Response(
        status=refusal.status, body=json.dumps(body).encode(), content_type="application/json"
    )
    if refusal.retry_s is not None:
        answer.headers["Retry-After"] = str(refusal.retry_s)
    return answer
