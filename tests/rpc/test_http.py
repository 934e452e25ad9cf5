"""JSON-RPC over HTTP, the doors, health and metrics, against a real server."""

import asyncio
import base64
import contextlib
import gzip
import logging
from dataclasses import replace

import orjson
import pytest
from prometheus_client.parser import text_string_to_metric_families

from node.config.model import RpcLimits
from node.rpc.service import Readiness

TX = base64.b64encode(b"transaction").decode()


def call(method="status", params=None, id=1, **more):
    body = {"jsonrpc": "2.0", "method": method, "id": id} | more
    return orjson.dumps(body if params is None else body | {"params": params}).decode()


async def answer(node, body):
    status, answered = await node.post(body)
    assert status == 200, answered
    return orjson.loads(answered)


async def test_a_call_is_answered_with_its_id(node):
    answered = await answer(node, call("status", id="abc"))
    assert answered["id"] == "abc"
    assert answered["result"]["institution"] == "north"
    assert answered["result"]["chain_id"] == "02" * 32
    assert "error" not in answered


async def test_submit_passes_the_bytes_on(node):
    answered = await answer(node, call("submit", {"transaction": TX, "wait": "accepted"}))
    assert answered["result"]["state"] == "accepted"
    assert node.service.submitted == [b"transaction"]


async def test_every_method_of_the_table_answers(node):
    calls = {
        "submit": [TX],
        "transaction": ["ab" * 32],
        "block": [5],
        "study": ["ab" * 16],
        "search": {"modality": "CT"},
        "head": [],
        "status": [],
        "validators": [],
        "peers": [],
        "readiness": [],
    }
    for method, params in calls.items():
        assert "result" in await answer(node, call(method, params)), method


# The batch of the JSON-RPC 2.0 specification, §7, with methods that exist here.
async def test_the_batch_of_the_specification(node):
    batch = f"""[
        {call("head", [], id="1")},
        {{"jsonrpc": "2.0", "method": "submit", "params": ["{TX}"]}},
        {call("submit", [TX], id="2")},
        {{"foo": "boo"}},
        {call("foo.get", {"name": "myself"}, id="5")},
        {call("status", id="9")}
    ]"""
    answered = await answer(node, batch)
    assert [(one["id"], one.get("error", {}).get("code")) for one in answered] == [
        *(("1", None), ("2", None), (None, -32600), ("5", -32601), ("9", None))
    ]
    assert len(node.service.submitted) == 2


async def test_notifications_are_carried_out_and_not_answered(node):
    notification = f'{{"jsonrpc":"2.0","method":"submit","params":["{TX}"]}}'
    assert await node.post(notification) == (204, b"")
    assert await node.post(f"[{notification},{notification}]") == (204, b"")
    wrong = '{"jsonrpc":"2.0","method":"nothing"}'
    assert await node.post(wrong) == (204, b"")
    assert len(node.service.submitted) == 3


async def test_empty_and_invalid_batches_of_the_specification(node):
    assert (await answer(node, "[]"))["error"]["code"] == -32600
    assert [one["error"]["code"] for one in await answer(node, "[1]")] == [-32600]
    assert [one["error"]["code"] for one in await answer(node, "[1,2,3]")] == [-32600] * 3
    assert (await answer(node, '[{"jsonrpc": "2.0", "method"'))["error"]["code"] == -32700


@pytest.mark.parametrize(
    ("body", "number", "code"),
    [
        (call("nothing"), -32601, "method_unknown"),
        (call("submit", [7]), -32602, "invalid_params"),
        (call("search", {"modality": "XX"}), -32602, "invalid_params"),
        (call("submit", [base64.b64encode(b"refuse me").decode()]), -32000, "quota_exceeded"),
        (call("submit", [base64.b64encode(b"late").decode()]), -32001, "timed_out"),
        (call("subscribe", []), -32003, "needs_websocket"),
        (call("unsubscribe", [1]), -32003, "needs_websocket"),
        (call(method="__class__"), -32601, "method_unknown"),
    ],
)
async def test_errors_have_number_code_and_sentence(node, body, number, code):
    error = (await answer(node, body))["error"]
    assert (error["code"], error["data"]["code"]) == (number, code)
    assert error["data"]["sentence"]


async def test_an_internal_error_shows_an_incident_and_nothing_else(node, caplog):
    with caplog.at_level(logging.ERROR):
        status, body = await node.post(call("submit", [base64.b64encode(b"bug").decode()]))
    error = orjson.loads(body)["error"]
    assert (status, error["code"], error["data"]["code"]) == (200, -32603, "internal")
    assert b"SECRET" not in body
    assert b"Traceback" not in body
    assert "SECRET" not in caplog.text
    incident = error["data"]["sentence"].rpartition(" ")[2]
    assert f"incident={incident} kind=KeyError" in caplog.text


async def test_an_answer_without_a_form_is_an_internal_error(node):
    node.service.answers["study"] = object()
    answered = await answer(node, call("study", ["ab" * 16]))
    assert answered["error"]["data"]["code"] == "internal"


async def test_a_read_that_hangs_is_answered(serve):
    node = await serve(RpcLimits(request_timeout_ms=20))
    node.service.gate = asyncio.Event()
    answered = await answer(node, call("study", ["ab" * 16]))
    assert answered["error"]["data"]["code"] == "timed_out"


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({"Authorization": "Bearer wrong"}, 401, "unauthorized"),
        ({"Authorization": ""}, 401, "unauthorized"),
        ({"Authorization": "t" * 43}, 401, "unauthorized"),
        ({"Authorization": "bearer " + "t" * 43}, 401, "unauthorized"),
        ({"Authorization": "Bearer " + "t" * 42}, 401, "unauthorized"),
        ({"Authorization": "Bearer " + "t" * 44}, 401, "unauthorized"),
        ({"Authorization": "Bearer \u00e9"}, 401, "unauthorized"),
        ({"Host": "attacker.example"}, 403, "host_not_allowed"),
        ({"Host": "attacker.example:80"}, 403, "host_not_allowed"),
        ({"Host": "127.0.0.1.attacker.example"}, 403, "host_not_allowed"),
        ({"Host": ""}, 403, "host_not_allowed"),
        ({"Origin": "http://attacker.example"}, 403, "origin_not_allowed"),
        ({"Origin": "null"}, 403, "origin_not_allowed"),
        ({"Origin": "http://127.0.0.1:1"}, 403, "origin_not_allowed"),
        ({"Content-Type": "text/plain"}, 415, "unsupported_media_type"),
    ],
)
async def test_the_door(node, headers, status, code):
    send = {"Content-Type": "application/json"} | headers
    async with (
        node.session() as session,
        session.post("/rpc", data=call("submit", [TX]), headers=send) as response,
    ):
        assert response.status == status
        assert (await response.json())["error"]["code"] == code
        assert ("WWW-Authenticate" in response.headers) == (status == 401)
    assert node.service.submitted == []


@pytest.mark.parametrize("path", ["/rpc", "/ws", "/metrics", "/nothing", "/"])
async def test_no_path_but_health_is_open_without_the_token(node, path):
    headers = {"Authorization": "", "Upgrade": "websocket", "Connection": "Upgrade"}
    async with (
        node.session() as session,
        session.get(f"{path}?token={'t' * 43}&access_token={'t' * 43}", headers=headers) as got,
    ):
        assert got.status == 401


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:99", "127.0.0.1", "[::1]:7620", "[::1]"])
async def test_names_of_loopback_are_allowed_and_so_is_the_own_origin(node, host):
    headers = {
        "Host": host,
        "Origin": f"http://{host}",
        "Content-Type": "application/json",
    }
    async with (
        node.session() as session,
        session.post("/rpc", data=call(), headers=headers) as response,
    ):
        assert response.status == 200


async def test_unknown_paths_and_methods(node):
    async with node.session() as session:
        async with session.get("/nothing") as response:
            assert response.status == 404
        async with session.get("/rpc") as response:
            assert response.status == 405
            assert response.headers["Allow"] == "POST"
            assert response.headers["Server"] == "radledger"
            assert response.headers["Cache-Control"] == "no-store"


async def test_a_body_beyond_the_limit_is_refused_declared_or_not(serve):
    node = await serve(RpcLimits(message_bytes_max=2_048))

    async def chunks():
        for _ in range(8):
            yield b" " * 512

    for body in (b" " * 4_096, chunks()):
        assert (await node.post(body))[0] == 413
    assert (await node.post(call() + " " * 1_000))[0] == 200


async def test_a_compressed_body_is_not_inflated(node):
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    async with (
        node.session() as session,
        session.post("/rpc", data=gzip.compress(call().encode()), headers=headers) as response,
    ):
        assert (await response.json())["error"]["code"] == -32700


async def test_a_client_that_calls_too_often_is_told_to_wait(serve):
    node = await serve(RpcLimits(calls_per_second_max=3))
    async with node.session() as session:
        statuses = []
        for _ in range(2):
            body = f"[{call()},{call()}]"
            headers = {"Content-Type": "application/json"}
            async with session.post("/rpc", data=body, headers=headers) as response:
                statuses.append(response.status)
                retry = response.headers.get("Retry-After")
    assert statuses == [200, 429]
    assert int(retry) >= 1


async def test_calls_beyond_what_the_node_does_at_once_are_refused(serve):
    node = await serve(RpcLimits(in_flight_max=2, in_flight_per_connection_max=2))
    node.service.gate = asyncio.Event()
    batch = f"[{','.join(call('submit', [TX], id=i) for i in range(3))}]"
    posted = asyncio.create_task(answer(node, batch))
    await node.service.entered.wait()
    node.service.gate.set()
    outcomes = [one.get("error", {}).get("data", {}).get("code") for one in await posted]
    assert outcomes == [None, None, "busy"]
    assert "result" in await answer(node, call("submit", [TX]))


async def test_a_connection_too_many_is_closed(serve):
    node = await serve(RpcLimits(connections_max=1))
    async with node.session() as session, session.ws_connect("/ws"):
        reader, writer = await asyncio.open_connection("127.0.0.1", node.server.port)
        writer.write(b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""
        writer.close()


async def test_an_idle_connection_without_a_request_is_closed(serve):
    node = await serve(RpcLimits(idle_timeout_ms=20))
    for begun in (b"", b"GET /health/live HTTP/1.1\r\nHost: loc"):
        reader, writer = await asyncio.open_connection("127.0.0.1", node.server.port)
        writer.write(begun)
        async with asyncio.timeout(20):
            assert await reader.read() == b""
        writer.close()


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"\x00" * 2_000,
        b"GET " + b"/" * 20_000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 5_000 + b"\r\n",
        b"POST /rpc HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
    ],
)
async def test_garbage_instead_of_http_is_refused_and_not_logged(node, garbage, caplog):
    reader, writer = await asyncio.open_connection("127.0.0.1", node.server.port)
    writer.write(garbage)
    try:
        head = await reader.readline()
    except ConnectionResetError:
        head = b""
    writer.close()
    assert head == b"" or head.startswith((b"HTTP/1.0 4", b"HTTP/1.1 4"))
    assert caplog.text == ""
    assert "result" in await answer(node, call())


async def test_health_needs_no_token(node):
    async with node.session() as session:
        async with session.get("/health/live", headers={"Authorization": ""}) as response:
            assert (response.status, await response.json()) == (200, {"alive": True})
        async with session.get("/health/ready", headers={"Authorization": ""}) as response:
            assert response.status == 200
            assert (await response.json())["is_ready"] is True


async def test_not_ready_says_who_is_missing_in_which_phase_and_view(node):
    node.service.ready = Readiness(
        False, "waiting for 3 of 4 prepares", ("south", "east"), "prepare", 12, 900
    )
    async with node.session() as session, session.get("/health/ready") as response:
        assert response.status == 503
        assert await response.json() == {
            "is_ready": False,
            "reason": "waiting for 3 of 4 prepares",
            "missing": ["south", "east"],
            "phase": "prepare",
            "view": 12,
            "height": 900,
        }


async def test_metrics_are_prometheus_text_and_count_calls(node):
    await answer(node, call("status"))
    await answer(node, call('nothing\n{evil="x"}'))
    await answer(node, call("submit", [base64.b64encode(b"refuse").decode()]))
    node.metrics.height_executed.set(41)
    async with node.session() as session, session.get("/metrics") as response:
        assert response.headers["Content-Type"].startswith("text/plain")
        text = await response.text()
    samples = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }

    def calls(method, outcome):
        labels = (("method", method), ("outcome", outcome))
        return samples[("radledger_rpc_calls_total", labels)]

    assert samples[("radledger_height_executed", ())] == 41
    assert samples[("radledger_rpc_in_flight", ())] == 0
    assert calls("status", "ok") == 1
    assert calls("unknown", "method_unknown") == 1
    assert calls("submit", "refused") == 1
    assert "evil" not in text


async def test_a_taken_port_is_named(serve, node):
    with pytest.raises(OSError, match=rf"rpc cannot listen on 127\.0\.0\.1:{node.server.port}"):
        await serve(port=node.server.port)


async def test_readiness_over_rpc_is_what_health_says(node):
    assert (await answer(node, call("readiness")))["result"] == orjson.loads(
        orjson.dumps(replace(node.service.ready))
    )
