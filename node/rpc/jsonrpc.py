"""JSON-RPC 2.0 as bytes: requests in, responses out; no socket and no method here.

Source: the JSON-RPC 2.0 specification (jsonrpc.org, 2013-01-04). Stricter than it in two points:
a numeric id is an integer of 64 bits, and an id of text has at most 128 characters. Of members
that occur twice in one object the last counts (RFC 8259 §4).
"""

from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import orjson

from node.rpc.codec import encode

PARSE_ERROR = -32700
INVALID_REQUEST = -32600
METHOD_NOT_FOUND = -32601
INVALID_PARAMS = -32602
INTERNAL_ERROR = -32603
# -32000 to -32099 are left to implementations (specification §5.1).
REFUSED = -32000
TIMED_OUT = -32001
LIMITED = -32002
UNAVAILABLE = -32003

MESSAGES = {
    PARSE_ERROR: "Parse error",
    INVALID_REQUEST: "Invalid Request",
    METHOD_NOT_FOUND: "Method not found",
    INVALID_PARAMS: "Invalid params",
    INTERNAL_ERROR: "Internal error",
    REFUSED: "Refused",
    TIMED_OUT: "Timed out",
    LIMITED: "Limit exceeded",
    UNAVAILABLE: "Not available",
}

ID_LENGTH_MAX = 128

Id: TypeAlias = str | int | None
Params: TypeAlias = list[Any] | dict[str, Any]


class Call(NamedTuple):
    """A well-formed request; `expects_answer` is False for a notification."""

    method: str
    params: Params
    id: Id
    expects_answer: bool


@dataclass(frozen=True, slots=True)
class Failure:
    """Why there is no result."""

    number: int
    code: str
    sentence: str
    id: Id = None


Request: TypeAlias = Call | Failure


def decode(data: bytes, batch_calls_max: int, depth_max: int) -> Request | list[Request]:
    """Return the call, or the calls of a batch, that `data` encodes; what is wrong is a `Failure`.

    The caller bounds `len(data)`. Never raises.
    """
    try:
        value = orjson.loads(data)
    except ValueError:
        return Failure(PARSE_ERROR, "parse_error", "not JSON in UTF-8")
    # Depth needs as many brackets: count them first, which costs next to nothing.
    if data.count(b"{") + data.count(b"[") > depth_max and _is_deeper(value, depth_max):
        return Failure(INVALID_REQUEST, "too_deep", f"nested deeper than {depth_max} levels")
    if type(value) is not list:
        return request(value)
    if not value:
        return Failure(INVALID_REQUEST, "invalid_request", "an empty batch")
    if len(value) > batch_calls_max:
        sentence = f"a batch of {len(value)} calls; at most {batch_calls_max}"
        return Failure(LIMITED, "batch_too_long", sentence)
    return [request(element) for element in value]


def request(value: object) -> Request:
    """Return the call that one parsed JSON value is, or what is wrong with it."""
    if type(value) is not dict:
        return _invalid("a request is an object")
    identifier = value.get("id")
    if not _is_id(identifier):
        return _invalid(f"id is text of at most {ID_LENGTH_MAX} characters, an integer, or null")
    if value.get("jsonrpc") != "2.0":
        return _invalid('jsonrpc is exactly "2.0"', identifier)
    method = value.get("method")
    if type(method) is not str:
        return _invalid("method is text", identifier)
    params = value.get("params", _NO_PARAMS)
    if type(params) is not list and type(params) is not dict:
        return _invalid("params is an array or an object", identifier)
    return Call(method, params, identifier, "id" in value)


def result_bytes(identifier: Id, result: object) -> bytes:
    """Return the response with a result. Raises `TypeError` when it has no form in JSON."""
    return encode({"jsonrpc": "2.0", "id": identifier, "result": result})


def failure_bytes(failure: Failure) -> bytes:
    """Return the response with an error; `data` has the stable code and the sentence."""
    error = {
        "code": failure.number,
        "message": MESSAGES[failure.number],
        "data": {"code": failure.code, "sentence": failure.sentence},
    }
    return encode({"jsonrpc": "2.0", "id": failure.id, "error": error})


def notification_bytes(method: str, params: object) -> bytes:
    """Return a notification from the node, as used for events."""
    return encode({"jsonrpc": "2.0", "method": method, "params": params})


def batch_bytes(responses: list[bytes]) -> bytes:
    """Return the response to a batch out of encoded responses."""
    return b"[" + b",".join(responses) + b"]"


_NO_PARAMS: list[Any] = []


def _invalid(sentence: str, identifier: Id = None) -> Failure:
    return Failure(INVALID_REQUEST, "invalid_request", sentence, identifier)


def _is_id(value: object) -> bool:
    kind = type(value)
    # Integers beyond 64 bits arrive as floats and are refused with them.
    return kind is int or value is None or (kind is str and len(value) <= ID_LENGTH_MAX)  # type: ignore[arg-type]


def _is_deeper(value: object, levels: int) -> bool:
    """Tell whether arrays and objects in `value` nest deeper than `levels`; no recursion."""
    layer = [value] if type(value) in (dict, list) else []
    for _ in range(levels):
        inner: list[object] = []
        for element in layer:
            if isinstance(element, dict):
                inner.extend(element.values())
            elif isinstance(element, list):
                inner.extend(element)
        layer = [element for element in inner if type(element) in (dict, list)]
        if not layer:
            return False
    return bool(layer)
