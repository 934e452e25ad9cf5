"""The table of methods: names, parameters with their checks, and what each asks of the node.

Adding a method is adding a row. Every check names the parameter; nothing here knows of sockets.
"""

import binascii
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from consensus.wire import NotCanonical, Value, unpack
from node.ledger.limits import HEIGHT_MAX, TIME_MS_MAX
from node.ledger.queries.access_views import (
    DRAFTS_MAX,
    REQUESTS_LIMIT_MAX,
    PolicyDraft,
    PolicyQuestion,
    RequestQuery,
)
from node.ledger.queries.audit_views import ANCHORS_LIMIT_MAX, TRAIL_LIMIT_MAX
from node.ledger.queries.member_views import MEMBERS_LIMIT_MAX
from node.ledger.queries.studies import LIMIT_MAX, StudyQuery
from node.rpc.jsonrpc import Params
from node.rpc.service import WAITS, NodeService

EVENT_NAMES_MAX = 64
TEXT_LENGTH_MAX = 256
TEXTS_MAX = 16
EVENT_NAME_LENGTH_MAX = 64
CONDITION_LENGTH_MAX = 4_096  # more than the policy language takes; it says the exact bound
PAGE_LIMIT = 50  # rows on a page, unless a call says otherwise


_DRAFT_MEMBERS = frozenset(field.name for field in fields(PolicyDraft))


class InvalidParams(ValueError):
    """The parameters do not fit the method; the sentence names the one that is wrong."""


class _Required:
    """Marks a parameter without a default."""


REQUIRED = _Required()


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter; `read` turns the JSON value into the argument or raises `ValueError`."""

    name: str
    read: Callable[[Any], Any]
    default: object = REQUIRED


@dataclass(frozen=True, slots=True)
class Method:
    """`ask(service, *arguments)` gives the result, or an awaitable of it.

    A read may fetch from the disk: only a few of one connection run at once. Streaming methods need
    a WebSocket and are answered by its connection.
    """

    name: str
    parameters: tuple[Parameter, ...]
    ask: Callable[..., Awaitable[Any] | Any] | None
    is_read: bool = False

    def bind(self, params: Params) -> list[Any]:
        """Return the arguments in order, from `params` by position or by name.

        Raises `InvalidParams`.
        """
        if isinstance(params, dict):
            return self._bind_names(params)
        parameters = self.parameters
        given = len(params)
        if given > len(parameters):
            raise InvalidParams(f"{given} parameters; {self._usage()}")
        arguments = []
        for index, parameter in enumerate(parameters):
            if index < given:
                arguments.append(_read(parameter, params[index]))
            elif parameter.default is REQUIRED:
                raise InvalidParams(f"{parameter.name} is missing; {self._usage()}")
            else:
                arguments.append(parameter.default)
        return arguments

    def _bind_names(self, params: Mapping[str, Any]) -> list[Any]:
        unknown = params.keys() - {parameter.name for parameter in self.parameters}
        if unknown:
            raise InvalidParams(f"unknown parameter {min(unknown)[:64]!r}; {self._usage()}")
        arguments = []
        for parameter in self.parameters:
            if parameter.name in params:
                arguments.append(_read(parameter, params[parameter.name]))
            elif parameter.default is REQUIRED:
                raise InvalidParams(f"{parameter.name} is missing; {self._usage()}")
            else:
                arguments.append(parameter.default)
        return arguments

    def _usage(self) -> str:
        if not self.parameters:
            return f"{self.name} takes none"
        return f"{self.name} takes {', '.join(parameter.name for parameter in self.parameters)}"


def _read(parameter: Parameter, value: object) -> object:
    # null stands for a default, so that callers by position can leave one out.
    if value is None and parameter.default is not REQUIRED:
        return parameter.default
    try:
        return parameter.read(value)
    except ValueError as error:
        raise InvalidParams(f"{parameter.name}: {error}") from error


def base64_bytes(value: object) -> bytes:
    """Read standard base64 with padding (RFC 4648 §4), nothing else in between."""
    if type(value) is not str or not value:
        raise ValueError("needs base64 text")
    try:
        return binascii.a2b_base64(value, strict_mode=True)
    except ValueError as error:
        raise ValueError("not standard base64 with padding") from error


def arguments(value: object) -> tuple[Value, ...]:
    """Read base64 of a canonical msgpack array: typed arguments, as an operation carries them."""
    try:
        decoded = unpack(base64_bytes(value))
    except NotCanonical as error:
        raise ValueError("not canonical msgpack") from error
    if type(decoded) is not tuple:
        raise ValueError("needs an array")
    return decoded


def boolean(value: object) -> bool:
    """Read true or false."""
    if type(value) is not bool:
        raise ValueError("needs true or false")
    return value


def hex_bytes(size: int) -> Callable[[object], bytes]:
    """Read exactly `size` bytes as hexadecimal."""

    def read(value: object) -> bytes:
        if type(value) is str and len(value) == 2 * size and value.isalnum():
            try:
                return bytes.fromhex(value)
            except ValueError:
                pass
        raise ValueError(f"needs {2 * size} hexadecimal digits")

    return read


def integer(low: int, high: int) -> Callable[[object], int]:
    """Read an integer from `low` to `high`, both inclusive."""

    def read(value: object) -> int:
        if type(value) is not int or not low <= value <= high:
            raise ValueError(f"needs an integer from {low} to {high}")
        return value

    return read


def one_of(*words: str) -> Callable[[object], str]:
    """Read one of a few words."""

    def read(value: object) -> str:
        if type(value) is not str or value not in words:
            raise ValueError(f"needs one of {', '.join(words)}")
        return value

    return read


def text(value: object) -> str:
    """Read a short text; what it may say is decided by who uses it."""
    if type(value) is not str or not 0 < len(value) <= TEXT_LENGTH_MAX:
        raise ValueError(f"needs text of 1 to {TEXT_LENGTH_MAX} characters")
    return value


def texts(value: object) -> tuple[str, ...]:
    """Read a list of short texts."""
    if type(value) is not list or len(value) > TEXTS_MAX:
        raise ValueError(f"needs an array of at most {TEXTS_MAX} texts")
    return tuple(map(text, value))


def event_names(value: object) -> frozenset[str]:
    """Read a list of event names; an empty one means every event."""
    if type(value) is not list or len(value) > EVENT_NAMES_MAX:
        raise ValueError(f"needs an array of at most {EVENT_NAMES_MAX} event names")
    for name in value:
        if type(name) is not str or not 0 < len(name) <= EVENT_NAME_LENGTH_MAX:
            raise ValueError(f"an event name is text of 1 to {EVENT_NAME_LENGTH_MAX} characters")
    return frozenset(value)


def policy_drafts(value: object) -> tuple[PolicyDraft, ...]:
    """Read a list of rules, each an object with the members of `PolicyDraft`."""
    if type(value) is not list or len(value) > DRAFTS_MAX:
        raise ValueError(f"needs an array of at most {DRAFTS_MAX} rules")
    for rule in value:
        if type(rule) is not dict or rule.keys() != _DRAFT_MEMBERS:
            raise ValueError(f"a rule is an object with {', '.join(sorted(_DRAFT_MEMBERS))}")
        for name, member in rule.items():
            if type(member) is not str or len(member) > CONDITION_LENGTH_MAX:
                raise ValueError(f"{name} is text of at most {CONDITION_LENGTH_MAX} characters")
    return tuple(PolicyDraft(**rule) for rule in value)


def _submit(service: NodeService, raw: bytes, wait: Any, timeout_ms: int) -> Awaitable[Any]:
    return service.submit(raw, wait, timeout_ms / 1000)


def build_methods(request_timeout_ms: int) -> dict[str, Method]:
    """Return the methods by name; nobody waits for finality longer than `request_timeout_ms`."""
    height = integer(0, HEIGHT_MAX)
    timeout = Parameter("timeout_ms", integer(1, request_timeout_ms), request_timeout_ms)
    rows = [
        Method(
            "submit",
            (
                Parameter("transaction", base64_bytes),
                Parameter("wait", one_of(*WAITS), "final"),
                timeout,
            ),
            _submit,
        ),
        Method(
            "transaction",
            (Parameter("id", hex_bytes(32)),),
            lambda service, identifier: service.transaction(identifier),
            is_read=True,
        ),
        Method(
            "block",
            (Parameter("height", height, None),),
            lambda service, at: service.block(at),
            is_read=True,
        ),
        Method(
            "study",
            (Parameter("id", hex_bytes(16)),),
            lambda service, identifier: service.study(identifier),
            is_read=True,
        ),
        Method(
            "search",
            (
                Parameter("custodian", text, None),
                Parameter("subject_id", hex_bytes(16), None),
                Parameter("modality", text, None),
                Parameter("region", text, None),
                Parameter("status", text, None),
                Parameter("height_from", height, None),
                Parameter("height_to", height, None),
                Parameter("limit", integer(1, LIMIT_MAX), StudyQuery().limit),
                Parameter("cursor", text, None),
                Parameter("offered_to", text, None),
            ),
            lambda service, *asked: service.search(StudyQuery(*asked)),
            is_read=True,
        ),
        *_access_methods(),
        *_member_methods(),
        *_audit_methods(),
        Method("head", (), lambda service: service.head()),
        Method("status", (), lambda service: service.status()),
        Method("validators", (), lambda service: service.validators()),
        Method("peers", (), lambda service: service.peers()),
        Method("readiness", (), lambda service: service.readiness()),
        Method(
            "subscribe",
            (Parameter("from_height", height, None), Parameter("events", event_names, frozenset())),
            None,
        ),
        Method("unsubscribe", (Parameter("subscription", integer(1, HEIGHT_MAX)),), None),
    ]
    return {method.name: method for method in rows}


def _access_methods() -> list[Method]:
    defaults = RequestQuery()
    return [
        _read_method(
            "consent",
            (Parameter("institution", text), Parameter("subject_id", hex_bytes(16))),
            lambda service, institution, subject: service.consent(institution, subject),
        ),
        _read_method(
            "policies",
            (Parameter("institution", text, None),),
            lambda service, institution: service.policies(institution),
        ),
        _read_method(
            "policy_try",
            (
                Parameter("study_id", hex_bytes(16)),
                Parameter("institution", text),
                Parameter("role", text),
                Parameter("purpose", text),
                Parameter("heights", integer(1, HEIGHT_MAX)),
                Parameter("uses_max", integer(1, HEIGHT_MAX)),
                Parameter("deidentified", boolean, False),
                Parameter("ethics_digest", hex_bytes(32), None),
                Parameter("time_ms", integer(0, TIME_MS_MAX), None),
                Parameter("drafts", policy_drafts, ()),
            ),
            lambda service, *asked: service.policy_try(PolicyQuestion(*asked)),
        ),
        _read_method(
            "request",
            (Parameter("id", hex_bytes(16)),),
            lambda service, identifier: service.request(identifier),
        ),
        _read_method(
            "requests",
            (
                Parameter("institution", text, None),
                Parameter("custodian", text, None),
                Parameter("study_id", hex_bytes(16), None),
                Parameter("state", text, None),
                Parameter("break_glass_unreviewed", boolean, False),
                Parameter("limit", integer(1, REQUESTS_LIMIT_MAX), defaults.limit),
                Parameter("cursor", text, None),
            ),
            lambda service, *asked: service.requests(RequestQuery(*asked)),
        ),
    ]


def _member_methods() -> list[Method]:
    institution = Parameter("institution", text)
    page = _page_parameters(MEMBERS_LIMIT_MAX)
    return [
        _read_method(
            "institution",
            (Parameter("name", text),),
            lambda service, name: service.institution(name),
        ),
        _read_method("institutions", page, lambda service, *asked: service.institutions(*asked)),
        _read_method(
            "members", (institution, *page), lambda service, *asked: service.members(*asked)
        ),
        _read_method(
            "encryption_keys",
            (institution, *page),
            lambda service, *asked: service.encryption_keys(*asked),
        ),
        _read_method(
            "proposal",
            (Parameter("id", hex_bytes(16)),),
            lambda service, identifier: service.proposal(identifier),
        ),
        _read_method(
            "proposals",
            (Parameter("state", text, None), *page),
            lambda service, *asked: service.proposals(*asked),
        ),
        _read_method(
            "proposal_try",
            (Parameter("action", text), Parameter("arguments", arguments)),
            lambda service, action, given: service.proposal_try(action, given),
        ),
        _read_method("parameters", (), lambda service: service.parameters()),
    ]


def _audit_methods() -> list[Method]:
    return [
        _read_method(
            "audit_trail",
            (Parameter("study_id", hex_bytes(16)), *_page_parameters(TRAIL_LIMIT_MAX)),
            lambda service, *asked: service.audit_trail(*asked),
        ),
        _read_method(
            "anchors",
            (Parameter("institution", text), *_page_parameters(ANCHORS_LIMIT_MAX)),
            lambda service, *asked: service.anchors(*asked),
        ),
        _read_method(
            "proof",
            (Parameter("kind", text), Parameter("arguments", texts, ())),
            lambda service, kind, given: service.proof(kind, given),
        ),
    ]


def _page_parameters(limit_max: int) -> tuple[Parameter, Parameter]:
    return Parameter("limit", integer(1, limit_max), PAGE_LIMIT), Parameter("cursor", text, None)


def _read_method(
    name: str, parameters: tuple[Parameter, ...], ask: Callable[..., Awaitable[Any]]
) -> Method:
    return Method(name, parameters, ask, is_read=True)
