"""Connections that persist, queues that are bounded, floods and partitions."""

import asyncio
import contextlib
import socket

import pytest

from node.network.budgets import RATES, Rate
from node.network.errors import InvalidFrame, ListenFailed, Reason
from node.network.frames import Kind
from node.network.payloads import decode_goodbye
from node.network.send_queue import Priority, QueueLimits
from tests.network.harness import PATIENCE_S, make_identities, turns_until

KIB, MIB = 1024, 1024 * 1024
BODY = bytes(300)


def writes_of(node, other) -> list[bytes]:
    """Record what is written to a peer's transport from now on."""
    connection, _ = node.transport._live[other.key]
    written: list[bytes] = []

    class Tap:
        def __init__(self, inner):
            self._inner = inner

        def write(self, data):
            written.append(data)
            self._inner.write(data)

        def __getattr__(self, name):
            return getattr(self._inner, name)

    connection._transport = Tap(connection._transport)
    return written


async def test_frames_arrive_whole_in_order_and_in_both_directions(network):
    alpha, beta = await network.pair()
    sent = [bytes([i % 256]) * (1 + i * 997 % 50_000) for i in range(200)]
    for payload in sent:
        assert alpha.send(beta.identity, payload)
        assert beta.send(alpha.identity, payload[:100])
    await beta.recorder.until(lambda: len(beta.recorder.frames) == 200)
    await alpha.recorder.until(lambda: len(alpha.recorder.frames) == 200)
    assert [payload for _, _, payload in beta.recorder.frames] == sent
    assert {key for key, _, _ in beta.recorder.frames} == {alpha.key}


async def test_a_frame_of_many_megabytes_arrives(network):
    alpha, beta = await network.pair()
    alpha.transport.send(beta.key, Kind.BLOCKS, b"b" * (19 * MIB), Priority.PAYLOAD)
    await beta.recorder.until(lambda: beta.recorder.frames)
    assert beta.recorder.frames[0][2] == b"b" * (19 * MIB)


async def test_all_frames_of_one_turn_leave_in_one_write(network):
    alpha, beta = await network.pair()
    written = writes_of(alpha, beta)
    for _ in range(1000):
        alpha.send(beta.identity, BODY)
    await beta.recorder.until(lambda: len(beta.recorder.frames) == 1000)
    assert [len(data) for data in written] == [1000 * 305]


async def test_the_urgent_overtakes_within_one_turn(network):
    alpha, beta = await network.pair()
    for name, priority in ((b"gossip", 2), (b"payload", 1), (b"consensus", 0), (b"gossip", 2)):
        alpha.send(beta.identity, name, Priority(priority))
    await beta.recorder.until(lambda: len(beta.recorder.frames) == 4)
    names = [payload for _, _, payload in beta.recorder.frames]
    assert names == [b"consensus", b"payload", b"gossip", b"gossip"]


async def test_a_broadcast_counts_those_that_it_reaches(network):
    alpha, beta = await network.pair()
    keys = [beta.key, b"\x01" * 32]
    assert alpha.transport.broadcast(keys, Kind.STATUS, bytes(16), Priority.GOSSIP) == 1
    assert not alpha.transport.send(b"\x01" * 32, Kind.STATUS, bytes(16), Priority.GOSSIP)
    with pytest.raises(ValueError, match="at most"):
        alpha.transport.broadcast(keys, Kind.STATUS, bytes(65), Priority.GOSSIP)


async def test_a_peer_that_stops_reading_delays_nobody_and_memory_is_bounded(network):
    alpha, beta, slow = make_identities("alpha", "beta", "slow")
    limits = QueueLimits((2 * MIB, 2 * MIB, 2 * MIB), (10_000, 10_000, 10_000), 4 * MIB)
    good = await network.start(beta, [alpha.known()])
    node = await network.start(
        alpha, [beta.known(good.at), slow.known()], queue=limits, stall_max_ms=60_000
    )
    raw = await network.raw(slow, node)
    await raw.greet()
    await node.until_connected(beta, slow)
    raw.writer.transport.pause_reading()

    payload, largest = bytes(64 * KIB), 0
    keys = (slow.key, beta.key)
    while node.line(slow).traffic.frames_dropped < 50:
        assert node.transport.broadcast(keys, Kind.CONSENSUS, payload, Priority.CONSENSUS) == 2
        await good.recorder.until(lambda: good.recorder.frames)
        good.recorder.frames.clear()
        largest = max(largest, node.line(slow).queued_bytes)
    assert 2 * MIB - 64 * KIB < largest < 3 * MIB  # the queue, and a little in TLS
    assert node.line(beta).queued_bytes == 0


async def test_a_peer_that_reads_nothing_for_long_is_cut(network):
    alpha, slow = make_identities("alpha", "slow")
    node = await network.start(alpha, [slow.known()], stall_max_ms=50, ping_interval_ms=20)
    raw = await network.raw(slow, node)
    await raw.greet()
    await node.until_connected(slow)
    raw.writer.transport.pause_reading()
    while node.transport.connected:
        node.send(slow, bytes(64 * KIB))
        await asyncio.sleep(0)
    assert "nothing was read" in node.line(slow).last_error


async def test_a_peer_that_says_nothing_is_cut_although_the_socket_lives(network):
    alpha, dead = make_identities("alpha", "dead")
    node = await network.start(alpha, [dead.known()], silence_max_ms=60, ping_interval_ms=20)
    raw = await network.raw(dead, node)
    await raw.greet()
    assert decode_goodbye(await raw.until_kind(Kind.GOODBYE)).code == Reason.SILENT
    await node.recorder.until(lambda: not node.recorder.connected)


async def test_pings_keep_an_idle_connection_and_measure_it(network):
    alpha, beta = await network.pair(silence_max_ms=2_000, ping_interval_ms=5)
    await turns_until(lambda: alpha.line(beta.identity).round_trip_ms)
    assert 0 < alpha.line(beta.identity).round_trip_ms < 2_000
    assert alpha.recorder.frames == beta.recorder.frames == []


async def test_the_dialler_returns_when_the_listener_does(network):
    alpha, beta = make_identities("alpha", "beta")
    listening = await network.start(beta, [alpha.known()])
    at = listening.at
    dialling = await network.start(alpha, [beta.known(at)])
    await dialling.until_connected(beta)
    reasons = []
    dialling.recorder.on_disconnected = lambda _: reasons.append(dialling.line(beta).last_error)
    await listening.transport.close()
    await dialling.recorder.until(lambda: not dialling.recorder.connected)
    assert reasons == ["the peer said: the node stops"]
    assert not dialling.send(beta, BODY)
    await dialling.until_error(beta, "refused")  # ECONNREFUSED: nobody listens

    back = await network.start(beta, [alpha.known()], at=at)
    await dialling.until_connected(beta)
    await back.until_connected(alpha)
    assert dialling.send(beta, BODY)
    await back.recorder.until(lambda: back.recorder.frames)
    assert dialling.line(beta).last_error == ""
    events = [("connected", "beta"), ("disconnected", "beta"), ("connected", "beta")]
    assert dialling.recorder.events == events


async def test_a_newer_connection_of_a_peer_replaces_the_older(network):
    alpha, beta = make_identities("alpha", "beta")
    node = await network.start(alpha, [beta.known()])
    old = await network.raw(beta, node)
    await old.greet()
    await node.until_connected(beta)
    new = await network.raw(beta, node)
    await new.greet()
    assert decode_goodbye(await old.until_kind(Kind.GOODBYE)).code == Reason.REPLACED
    await node.recorder.until(lambda: len(node.recorder.events) == 3)
    assert [event for event, _ in node.recorder.events] == [
        "connected",
        "disconnected",
        "connected",
    ]
    node.send(beta, b"to the newer")
    assert await new.until_kind(Kind.CONSENSUS) == b"to the newer"


async def test_a_peer_that_connected_the_other_way_round_is_dialled_when_it_leaves(network):
    alpha, beta = make_identities("alpha", "beta")
    listening = await network.start(beta, [alpha.known()])
    at = listening.at
    await listening.transport.close()
    node = await network.start(alpha, [beta.known(at)], backoff_max_ms=5)
    await node.until_error(beta, "refused")
    answers, hold_off_s = [], node.transport.hold_off_s

    def spy(key):
        answers.append(hold_off_s(key))
        return answers[-1]

    node.transport.hold_off_s = spy
    raw = await network.raw(beta, node)
    await raw.greet()
    await node.until_connected(beta)
    await turns_until(lambda: None in answers)  # the dialler waits to be woken
    await network.start(beta, [alpha.known()], at=at)
    raw.writer.transport.abort()
    await node.recorder.until(lambda: len(node.recorder.events) == 3)
    assert node.recorder.connected[beta.key].dialled


@pytest.mark.parametrize("blocker", [0, 1], ids=["the dialler", "the listener"])
async def test_a_partition_cuts_refuses_and_heals(network, blocker):
    nodes = await network.pair()
    here, there = nodes[blocker], nodes[1 - blocker]
    here.transport.block([there.key])
    assert here.recorder.events[-1] == ("disconnected", there.identity.name)
    await there.recorder.until(lambda: not there.recorder.connected)
    assert here.line(there.identity).state == "blocked"
    if blocker == 1:  # the other keeps dialling in vain
        tries = here.transport.listener_counters.accepted
        await turns_until(lambda: here.transport.listener_counters.accepted > tries + 2)
    for node, other in ((here, there), (there, here)):
        name = other.identity.name
        assert node.recorder.events == [("connected", name), ("disconnected", name)]
    here.transport.unblock([there.key])
    await here.until_connected(there.identity)
    await there.until_connected(here.identity)


async def test_a_flood_is_held_back_and_not_buffered(network):
    alpha, flooder = make_identities("alpha", "flooder")
    rates = RATES | {Kind.STATUS: Rate(frames=50, bytes=1_000_000)}
    node = await network.start(alpha, [flooder.known()], rates=rates)
    raw = await network.raw(flooder, node)
    await raw.greet()
    await node.until_connected(flooder)
    began_s = asyncio.get_running_loop().time()
    burst = b"".join(b"\x00\x00\x00\x10\x05" + bytes(16) for _ in range(4096))
    stuck = False
    while not stuck:  # until TCP itself pushes back
        raw.writer.write(burst)
        try:
            async with asyncio.timeout(0.3):
                await raw.writer.drain()
        except TimeoutError:
            stuck = True
    assert node.line(flooder).traffic.read_pauses >= 1
    took_s = asyncio.get_running_loop().time() - began_s
    # Twice a burst, what the pace allows, and what one read brings beyond it.
    assert len(node.recorder.frames) < 50 * (2 * 2 + took_s) + 300 * KIB // 21
    assert "flooder" in [peer.name for peer in node.recorder.connected.values()]


async def test_what_was_held_back_is_read_later(network):
    rates = RATES | {Kind.STATUS: Rate(frames=500, bytes=1_000_000)}
    alpha, beta = await network.pair(rates=rates)
    sent = 0
    while not beta.line(alpha.identity).traffic.read_pauses:
        for _ in range(600):
            alpha.transport.send(beta.key, Kind.STATUS, bytes(16), Priority.GOSSIP)
        sent += 600
        await turns_until(lambda: not alpha.line(beta.identity).queued_bytes)
    await beta.recorder.until(lambda: len(beta.recorder.frames) == sent)
    alpha.send(beta.identity, b"still there")
    await beta.recorder.until(lambda: beta.recorder.frames[-1][2] == b"still there")


async def test_misbehaviour_adds_up_and_is_refused_for_a_while(network):
    alpha, beta = await network.pair(refuse_ms=100)
    beta.transport.punish(alpha.key, 60, "first")
    assert beta.transport.connected
    beta.transport.punish(alpha.key, 60, "second")
    assert not beta.transport.connected
    assert beta.line(alpha.identity).state == "refused"
    await alpha.until_error(beta.identity, "second")
    await alpha.until_connected(beta.identity)  # and forgiven
    assert beta.line(alpha.identity).traffic.punishments == 2


async def test_a_payload_that_the_handler_refuses_is_the_peers_fault(network):
    alpha, beta = await network.pair()

    def refuse(_key, _kind, _payload):
        raise InvalidFrame("nonsense")

    beta.recorder.on_frame = refuse
    alpha.send(beta.identity, BODY)
    await alpha.until_error(beta.identity, "nonsense")
    assert beta.line(alpha.identity).state == "refused"


async def test_a_failing_handler_stops_the_node(network):
    alpha, beta = await network.pair()
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda *_: None)

    def fail(_key, _kind, _payload):
        raise KeyError("our own bug")

    beta.recorder.on_frame = fail
    alpha.send(beta.identity, BODY)
    with pytest.raises(KeyError, match="our own bug"):
        await beta.transport.wait()
    await alpha.recorder.until(lambda: not alpha.recorder.connected)


async def test_many_idle_sockets_do_not_keep_a_peer_out(network):
    alpha, beta = make_identities("alpha", "beta")
    node = await network.start(beta, [alpha.known()], half_open_max=8, handshake_timeout_ms=600_000)
    idle = [await asyncio.open_connection(*node.at) for _ in range(40)]
    other = await network.start(alpha, [beta.known(node.at)])
    await other.until_connected(beta)
    assert node.transport.listener_counters.half_open_cut >= 32
    for reader, _ in idle[:32]:  # the oldest are gone
        async with asyncio.timeout(PATIENCE_S):
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
    for _, writer in idle:
        writer.transport.abort()


async def test_connections_in_all_are_bounded(network):
    node = await network.start(make_identities("alpha")[0], [], connections_max=3)
    idle = [await asyncio.open_connection(*node.at) for _ in range(6)]
    await turns_until(lambda: node.transport.listener_counters.refused_full == 3)
    for _, writer in idle:
        writer.transport.abort()


async def test_every_listening_address_answers(network):
    alpha, beta = make_identities("alpha", "beta")
    listening = await network.start(beta, [alpha.known()], at=("", 0))
    families = {socket.AF_INET6 if ":" in host else 0 for host, _ in listening.transport.addresses}
    assert len({port for _, port in listening.transport.addresses}) == 1
    loopbacks = ["127.0.0.1", *(["::1"] if socket.AF_INET6 in families else [])]
    for host in loopbacks:
        raw = await network.raw(alpha, _At(listening, (host, listening.at[1])))
        await raw.greet()
        await listening.until_connected(alpha)
        assert host in listening.recorder.connected[alpha.key].address
        raw.writer.transport.abort()
        await listening.recorder.until(lambda: not listening.recorder.connected)


class _At:
    def __init__(self, node, at):
        self.identity, self.at = node.identity, at


async def test_a_taken_port_is_named(network):
    alpha, beta = make_identities("alpha", "beta")
    node = await network.start(alpha, [])
    with pytest.raises(ListenFailed, match=rf"127\.0\.0\.1:{node.at[1]}"):
        await network.start(beta, [], at=node.at)
    with pytest.raises(ListenFailed, match="cannot listen on nowhere"):
        await network.start(beta, [], at=("nowhere.invalid", 0))


async def test_an_unreachable_name_is_an_error_for_the_operator_not_a_crash(network):
    alpha, beta = make_identities("alpha", "beta")
    node = await network.start(alpha, [beta.known(("..", 7610))])
    await turns_until(lambda: node.line(beta).last_error)
    assert node.line(beta).state == "connecting"


async def test_close_leaves_no_socket_and_no_task(network):
    alpha, beta = await network.pair()
    await alpha.transport.close()
    await beta.transport.close()
    assert not alpha.transport._all
    assert not beta.transport._all
    names = {task.get_name() for task in asyncio.all_tasks()}
    assert not {name for name in names if name.startswith(("dial-", "listener", "transport"))}
