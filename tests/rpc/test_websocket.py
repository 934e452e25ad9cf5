"""Many calls on one socket, its limits, and subscriptions, against a real server."""

import asyncio
import base64
import contextlib
import gc

import aiohttp
import orjson
import pytest
from aiohttp import WSMsgType

from node.config.model import RpcLimits
from node.rpc.websocket import _text_head
from tests.rpc.conftest import TOKEN, eventually

TX = base64.b64encode(b"transaction").decode()


async def send(socket, method, params=(), id=1):
    request = {"jsonrpc": "2.0", "method": method, "params": list(params), "id": id}
    await socket.send_str(orjson.dumps(request).decode())


async def receive(socket):
    async with asyncio.timeout(20):
        message = await socket.receive()
    assert message.type is WSMsgType.TEXT, message
    return orjson.loads(message.data)


async def ask(socket, method, params=(), id=1):
    await send(socket, method, params, id)
    return await receive(socket)


def heights(notifications):
    return [one["params"]["height"] for one in notifications]


async def test_text_and_binary_frames_and_batches_are_answered(node):
    async with node.websocket() as socket:
        assert (await ask(socket, "status", id="a"))["id"] == "a"
        await socket.send_bytes(b'{"jsonrpc":"2.0","method":"head","id":2}')
        assert (await receive(socket))["result"]["height"] == 0
        await socket.send_str('[{"jsonrpc":"2.0","method":"head","id":3}, 5]')
        assert [one.get("id") for one in await receive(socket)] == [3, None]
        await socket.send_str("{")
        assert (await receive(socket))["error"]["code"] == -32700


async def test_answers_come_as_they_are_ready_not_in_order(node):
    node.service.gate = asyncio.Event()
    async with node.websocket() as socket:
        await send(socket, "submit", [TX], id="slow")
        await node.service.entered.wait()
        assert (await ask(socket, "status", id="quick"))["id"] == "quick"
        node.service.gate.set()
        assert (await receive(socket))["id"] == "slow"


async def test_a_thousand_pipelined_calls_are_each_answered_once(node):
    async with node.websocket() as socket:
        for number in range(1_000):
            await send(socket, "submit", [TX], id=number)
        answered = [(await receive(socket))["id"] for _ in range(1_000)]
    assert sorted(answered) == list(range(1_000))


@pytest.mark.parametrize("size", [1, 100, 125, 126, 300, 65_400, 65_535, 65_536, 200_000])
async def test_answers_of_any_size_are_whole_whether_alone_or_coalesced(node, size):
    node.service.answers["study"] = "x" * size
    async with node.websocket() as socket:
        for number in range(5):
            await send(socket, "study", ["ab" * 16], id=number)
        answered = [await receive(socket) for _ in range(5)]
    assert all(one["result"] == "x" * size for one in answered)
    assert sorted(one["id"] for one in answered) == [0, 1, 2, 3, 4]


# RFC 6455 §5.2: the shortest of three lengths, whole and unmasked text (0x81).
@pytest.mark.parametrize(
    ("size", "head"),
    [
        (0, "8100"),
        (125, "817d"),
        (126, "817e007e"),
        (65_535, "817effff"),
        (65_536, "817f0000000000010000"),
    ],
)
def test_the_head_of_a_frame(size, head):
    assert _text_head(size).hex() == head


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Bearer wrong"},
        {"Origin": "http://attacker.example"},
        {"Host": "attacker.example"},
    ],
)
async def test_the_handshake_is_guarded(node, headers):
    async with node.session() as session:
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await session.ws_connect("/ws", headers=headers)
    assert refused.value.status in (401, 403)


async def test_open_calls_of_one_connection_are_limited(serve):
    node = await serve(RpcLimits(in_flight_per_connection_max=2))
    node.service.gate = asyncio.Event()
    async with node.websocket() as socket:
        await send(socket, "submit", [TX], id=1)
        await send(socket, "submit", [TX], id=2)
        refused = await ask(socket, "status", id=3)
        assert (refused["id"], refused["error"]["data"]["code"]) == (3, "too_many_in_flight")
        batch = b'[{"jsonrpc":"2.0","method":"head","id":4},{"jsonrpc":"2.0","method":"head"}]'
        await socket.send_bytes(batch)
        assert [one["id"] for one in await receive(socket)] == [4]
        node.service.gate.set()
        assert {(await receive(socket))["id"] for _ in range(2)} == {1, 2}
        assert "result" in await ask(socket, "status", id=5)


async def test_only_a_few_reads_of_one_connection_run_at_once(serve):
    node = await serve(RpcLimits(reads_per_connection_max=3))
    node.service.gate = asyncio.Event()
    async with node.websocket() as socket:
        for number in range(10):
            await send(socket, "study", ["ab" * 16], id=number)
        await eventually(lambda: node.service.open_reads == 3)
        # A submission is not behind them.
        node.service.gate, gate = None, node.service.gate
        assert "result" in await ask(socket, "submit", [TX], id="s")
        gate.set()
        assert len({(await receive(socket))["id"] for _ in range(10)}) == 10
    assert node.service.open_reads_most == 3


async def test_a_message_beyond_the_limit_closes_the_connection(serve):
    node = await serve(RpcLimits(message_bytes_max=2_048))
    async with node.websocket() as socket:
        await socket.send_str("x" * 4_096)
        message = await socket.receive()
        assert (message.type, message.data) == (WSMsgType.CLOSE, 1009)
    async with node.websocket() as socket:
        assert "result" in await ask(socket, "status")


async def test_calls_end_with_their_connection(node):
    node.service.gate = asyncio.Event()
    async with node.websocket() as socket:
        await send(socket, "submit", [TX])
        await node.service.entered.wait()
    await eventually(lambda: node.service.cancelled == 1)


async def test_events_from_the_past_and_then_live_without_gap_or_repetition(node):
    for _ in range(10):
        node.service.add_block("study.registered")
    async with node.websocket() as socket:
        answered = await ask(socket, "subscribe", [3])
        number = answered["result"]["subscription"]
        assert answered["result"]["from_height"] == 3
        seen = [await receive(socket) for _ in range(8)]
        node.service.add_block()
        node.service.add_block("a", "b")
        seen += [await receive(socket) for _ in range(2)]
    assert heights(seen) == list(range(3, 13))
    assert {one["params"]["subscription"] for one in seen} == {number}
    assert all(one["method"] == "event" and "id" not in one for one in seen)
    assert seen[-2]["params"]["events"] == []
    first = seen[0]["params"]["events"][0]
    assert first["transaction_id"] == "03" * 32
    assert first["event"] == {
        "name": "study.registered",
        "operation": 0,
        "fields": ["ab", "CT", 7],
    }


async def test_without_a_height_events_begin_with_the_next_block(node):
    node.service.add_block("a")
    async with node.websocket() as socket:
        assert (await ask(socket, "subscribe"))["result"]["from_height"] == 2
        node.service.add_block("b")
        assert heights([await receive(socket)]) == [2]


async def test_a_filter_leaves_out_other_events_and_blocks_without(node):
    for names in (["a"], ["b"], [], ["b", "a", "b"], ["c"]):
        node.service.add_block(*names)
    async with node.websocket() as socket:
        await ask(socket, "subscribe", [0 + 1, ["b", "c"]])
        seen = [await receive(socket) for _ in range(3)]
    assert heights(seen) == [2, 4, 5]
    assert [[event["event"]["name"] for event in one["params"]["events"]] for one in seen] == [
        ["b"],
        ["b", "b"],
        ["c"],
    ]


async def test_a_filtered_subscription_is_told_of_progress(node):
    for _ in range(1_005):
        node.service.add_block()
    async with node.websocket() as socket:
        await ask(socket, "subscribe", [1, ["rare"]])
        notification = await receive(socket)
    assert notification["params"]["height"] == 1_000
    assert notification["params"]["events"] == []


async def test_subscriptions_end_when_told_and_are_limited(serve):
    node = await serve(RpcLimits(subscriptions_per_connection_max=2))
    async with node.websocket() as socket:
        numbers = [(await ask(socket, "subscribe"))["result"]["subscription"] for _ in range(2)]
        refused = await ask(socket, "subscribe")
        assert refused["error"]["data"]["code"] == "too_many_subscriptions"
        assert (await ask(socket, "unsubscribe", [numbers[0]]))["result"] is True
        assert (await ask(socket, "unsubscribe", [numbers[0]]))["result"] is False
        assert (await ask(socket, "unsubscribe", [99]))["result"] is False
        node.service.add_block()
        assert (await receive(socket))["params"]["subscription"] == numbers[1]
        assert "result" in await ask(socket, "subscribe")
    metric = node.metrics.rpc_subscriptions
    await eventually(lambda: metric._value.get() == 0)


async def test_a_subscription_in_a_batch_is_answered_before_its_first_event(node):
    node.service.add_block("a")
    async with node.websocket() as socket:
        await socket.send_str(
            '[{"jsonrpc":"2.0","method":"subscribe","params":[1],"id":1},'
            '{"jsonrpc":"2.0","method":"head","id":2}]'
        )
        assert [one["id"] for one in await receive(socket)] == [1, 2]
        assert (await receive(socket))["method"] == "event"


async def test_a_height_that_is_not_kept_ends_the_subscription_with_the_reason(node):
    node.service.feed.skip_to(5)
    async with node.websocket() as socket:
        await ask(socket, "subscribe", [2])
        closed = await receive(socket)
    assert closed["method"] == "subscription_closed"
    assert closed["params"]["code"] == "expired"
    assert closed["params"]["next_height"] == 2


async def test_a_bug_in_a_subscription_shows_an_incident_only(node, monkeypatch):
    async def broken(from_height):
        raise KeyError("SECRET")
        yield

    monkeypatch.setattr(node.service, "subscribe", broken)
    async with node.websocket() as socket:
        await ask(socket, "subscribe", [1])
        closed = await receive(socket)
    assert closed["params"]["code"] == "internal"
    assert "SECRET" not in str(closed)


class Deaf:
    """A client that does the handshake by hand and reads only when told to."""

    def __init__(self, reader, writer) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    @contextlib.asynccontextmanager
    async def connect(cls, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**16)
        writer.write(
            b"GET /ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n"
            b"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
            b"Authorization: Bearer " + TOKEN.encode() + b"\r\n\r\n"
        )
        await reader.readuntil(b"\r\n\r\n")
        try:
            yield cls(reader, writer)
        finally:
            writer.close()

    def send(self, payload: bytes) -> None:
        head = bytes((0x81, 0xFE)) + len(payload).to_bytes(2, "big") + bytes(4)
        self.writer.write(head + payload)

    async def read_frame(self) -> bytes:
        head = await self.reader.readexactly(2)
        size = head[1]
        if size == 126:
            size = int.from_bytes(await self.reader.readexactly(2), "big")
        elif size == 127:
            size = int.from_bytes(await self.reader.readexactly(8), "big")
        return await self.reader.readexactly(size)


async def test_a_slow_subscriber_is_told_where_to_go_on_and_closed(serve):
    node = await serve(RpcLimits(slow_subscriber_timeout_ms=50))
    names = ["n" * 60] * 2_000  # some 350 KB a block
    async with Deaf.connect(node.server.port) as deaf:
        deaf.send(b'{"jsonrpc":"2.0","method":"subscribe","params":[1],"id":1}')
        # More than any socket buffer holds; the node must not keep what is not read.
        for _ in range(100):
            node.service.add_block(*names)
        closed = node.metrics.rpc_rejected
        await eventually(lambda: "slow_subscriber" in closed._children)
        seen = [orjson.loads(await deaf.read_frame())]
        while seen[-1].get("method") != "subscription_closed":
            seen.append(orjson.loads(await deaf.read_frame()))
        last = seen[-1]["params"]
        assert last["code"] == "slow_subscriber"
        assert heights(seen[1:-1]) == list(range(1, last["next_height"]))
        assert last["next_height"] < 100
        # The connection itself goes on.
        deaf.send(b'{"jsonrpc":"2.0","method":"head","id":2}')
        assert orjson.loads(await deaf.read_frame())["id"] == 2


async def test_a_block_whose_events_exceed_the_buffer_gets_through(serve):
    node = await serve(RpcLimits(send_buffer_bytes_max=64 * 1024))
    for names in (["a"], ["n" * 60] * 2_000, ["b"]):
        node.service.add_block(*names)
    async with node.websocket() as socket:
        await ask(socket, "subscribe", [1])
        assert heights([await receive(socket) for _ in range(3)]) == [1, 2, 3]
    assert "slow_client" not in node.metrics.rpc_rejected._children


async def test_a_client_that_reads_no_answers_is_cut(serve):
    node = await serve(RpcLimits(send_buffer_bytes_max=64 * 1024))
    node.service.answers["study"] = "x" * 60_000
    async with Deaf.connect(node.server.port) as deaf:
        request = b'{"jsonrpc":"2.0","method":"study","params":["' + b"ab" * 16 + b'"],"id":1}'
        with contextlib.suppress(ConnectionError):
            while "slow_client" not in node.metrics.rpc_rejected._children:
                deaf.send(request)
                await asyncio.sleep(0)
    await eventually(lambda: node.metrics.rpc_connections._value.get() == 0)
    async with node.websocket() as socket:
        assert "result" in await ask(socket, "head")


async def test_a_client_that_calls_too_often_is_slowed_down_not_refused(serve):
    node = await serve(RpcLimits(calls_per_second_max=100))
    async with node.websocket() as socket:
        for number in range(130):
            await send(socket, "head", id=number)
        answered = [await receive(socket) for _ in range(130)]
    assert all("result" in one for one in answered)
    assert "paused" in node.metrics.rpc_rejected._children


async def test_closing_the_node_tells_its_clients(serve):
    node = await serve()
    async with node.websocket() as socket:
        await ask(socket, "subscribe")
        closing = asyncio.create_task(node.server.close())
        message = await socket.receive()
        assert (message.type, message.data) == (WSMsgType.CLOSE, 1001)
        await closing
    with pytest.raises(aiohttp.ClientConnectionError):
        async with node.websocket():
            pass


async def test_frames_of_garbage_close_only_their_own_connection(node):
    async with Deaf.connect(node.server.port) as deaf:
        deaf.writer.write(b"\xff" * 64)
        async with asyncio.timeout(20):
            with contextlib.suppress(ConnectionError):
                await deaf.reader.read()
    async with node.websocket() as socket:
        assert "result" in await ask(socket, "status")


async def test_nothing_of_a_closed_connection_is_left(node):
    for _ in range(5):
        async with node.websocket() as socket:
            await ask(socket, "subscribe", [1])
            await ask(socket, "submit", [TX])
    await eventually(lambda: node.metrics.rpc_connections._value.get() == 0)
    gc.collect()
    names = [task.get_coro().__qualname__ for task in asyncio.all_tasks()]
    assert not [name for name in names if name.startswith("Connection.")]
