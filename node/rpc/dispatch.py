"""From a decoded call to the bytes of its answer: method, limits, time, errors. No transport.

Whatever happens inside the node, a caller sees a documented error: never a traceback, a path or a
value. What was unexpected is logged under an incident id that the caller is told.
"""

import asyncio
import logging
import secrets
from inspect import isawaitable
from time import perf_counter
from typing import Any, Protocol

from node.config.model import RpcLimits
from node.ledger.errors import Refused
from node.ledger.queries import BadQuery
from node.rpc import jsonrpc
from node.rpc.errors import RpcError
from node.rpc.jsonrpc import Call, Failure, Request
from node.rpc.methods import InvalidParams, Method, build_methods
from node.rpc.metrics import Metrics
from node.rpc.service import NodeService

log = logging.getLogger(__name__)


class Lane(Protocol):
    """The connection that a call came by."""

    reads: asyncio.Semaphore

    def stream(self, method: str, arguments: list[Any]) -> object:
        """Answer `subscribe` or `unsubscribe`. Raises `RpcError` where events cannot be sent."""
        ...


class Dispatcher:
    """Answers calls by asking the service."""

    def __init__(self, service: NodeService, limits: RpcLimits, metrics: Metrics) -> None:
        self._service = service
        self._limits = limits
        self._timeout_s = limits.request_timeout_ms / 1000
        self._methods = build_methods(limits.request_timeout_ms)
        self._in_flight = 0
        self._metrics = metrics
        self._seconds = {
            name: metrics.rpc_call_seconds.labels(name).observe for name in self._methods
        }
        self._succeeded = {name: metrics.rpc_calls.labels(name, "ok").inc for name in self._methods}
        metrics.rpc_in_flight.set_function(lambda: self._in_flight)

    def decode(self, data: bytes) -> Request | list[Request]:
        """Return what a client sent, form checked within this server's limits."""
        return jsonrpc.decode(data, self._limits.batch_calls_max, self._limits.depth_max)

    async def respond(self, request: Request | list[Request], lane: Lane) -> bytes | None:
        """Return the response's bytes; None when none is due (notifications)."""
        if not isinstance(request, list):
            return await self._answer(request, lane)
        answers = await asyncio.gather(*[self._answer(single, lane) for single in request])
        due = [answer for answer in answers if answer is not None]
        return jsonrpc.batch_bytes(due) if due else None

    async def _answer(self, request: Request, lane: Lane) -> bytes | None:
        if isinstance(request, Failure):
            return self._failed("unknown", request)
        if self._in_flight >= self._limits.in_flight_max:
            sentence = f"the node has {self._in_flight} calls in work; try again later"
            return self._failed_call(request, jsonrpc.LIMITED, "busy", sentence)
        self._in_flight += 1
        try:
            return await self._attempt(request, lane)
        finally:
            self._in_flight -= 1

    async def _attempt(self, call: Call, lane: Lane) -> bytes | None:
        method = self._methods.get(call.method)
        if method is None:
            sentence = f"methods are {', '.join(self._methods)}"
            return self._failed_call(call, jsonrpc.METHOD_NOT_FOUND, "method_unknown", sentence)
        started = perf_counter()
        try:
            result = await self._result(method, method.bind(call.params), lane)
            response = jsonrpc.result_bytes(call.id, result) if call.expects_answer else None
        except (InvalidParams, BadQuery) as error:
            return self._failed_call(call, jsonrpc.INVALID_PARAMS, "invalid_params", str(error))
        except Refused as error:
            return self._failed_call(call, jsonrpc.REFUSED, error.code, error.sentence)
        except RpcError as error:
            return self._failed_call(call, error.number, error.code, error.sentence)
        except TimeoutError:
            return self._failed_call(call, jsonrpc.TIMED_OUT, "timed_out", _timeout(call.method))
        except Exception as error:  # noqa: BLE001 - the boundary: a client never sees more
            return self._failed_call(call, jsonrpc.INTERNAL_ERROR, "internal", incident(error))
        self._seconds[call.method](perf_counter() - started)
        self._succeeded[call.method]()
        return response

    async def _result(self, method: Method, arguments: list[Any], lane: Lane) -> object:
        if method.ask is None:
            return lane.stream(method.name, arguments)
        if method.is_read:
            async with asyncio.timeout(self._timeout_s), lane.reads:
                return await method.ask(self._service, *arguments)
        # What is left answers at once, but for submit: the service keeps that one's time-out.
        result = method.ask(self._service, *arguments)
        return await result if isawaitable(result) else result

    def _failed_call(self, call: Call, number: int, code: str, sentence: str) -> bytes | None:
        name = call.method if call.method in self._methods else "unknown"
        response = self._failed(name, Failure(number, code, sentence, call.id))
        return response if call.expects_answer else None

    def _failed(self, method: str, failure: Failure) -> bytes:
        outcome = "refused" if failure.number == jsonrpc.REFUSED else failure.code
        self._metrics.rpc_calls.labels(method, outcome).inc()
        return jsonrpc.failure_bytes(failure)


def incident(error: BaseException) -> str:
    """Log an unexpected error and return the sentence that a client may see."""
    identifier = secrets.token_hex(4)
    # The kind and the place, without the message: it could repeat a value.
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = f"{trace.tb_frame.f_globals.get('__name__')}:{trace.tb_lineno}" if trace else "?"
    log.error("rpc call failed incident=%s kind=%s at=%s", identifier, type(error).__name__, place)
    return f"an internal error; the node's log has it as incident {identifier}"


def _timeout(method: str) -> str:
    if method == "submit":
        return "not so far within the time; it may still become final: ask for the transaction"
    return "the node took too long"
