"""The first frame both ways says who speaks; what does not fit is told why."""

from dataclasses import replace

import msgpack
import pytest

from consensus.wire import pack
from node.network import frames
from node.network.errors import Reason
from node.network.frames import Kind
from node.network.payloads import MAGIC, decode_goodbye, encode_goodbye, encode_hello
from tests.network.harness import HELLO, make_identities


async def goodbye_after(network, kind, payload):
    alpha, beta = make_identities("alpha", "beta")
    node = await network.start(alpha, [beta.known()])
    raw = await network.raw(beta, node)
    raw.writer.write(frames._HEADER.pack(len(payload), kind) + payload)
    goodbye = decode_goodbye(await raw.until_kind(Kind.GOODBYE))
    await raw.until_closed()
    assert node.recorder.events == []
    return goodbye


async def test_another_protocol_version_is_refused_and_both_are_named(network):
    alpha, beta = make_identities("alpha", "beta")
    newer = replace(HELLO, protocol_version=2)
    listening = await network.start(beta, [alpha.known()], hello=newer)
    dialling = await network.start(alpha, [beta.known(listening.at)])
    await dialling.until_error(beta, "protocol version 1")
    words = dialling.line(beta).last_error
    assert "protocol version 1" in words
    assert "protocol version 2" in words
    assert dialling.recorder.events == listening.recorder.events == []


async def test_another_wire_version_is_refused_and_both_are_named(network):
    hello = pack((MAGIC, 2, 7, "whatever", "a later", "version", "says"))
    goodbye = await goodbye_after(network, Kind.HELLO, hello)
    assert goodbye.code == Reason.VERSION
    assert "wire version 1" in goodbye.sentence
    assert "wire version 2" in goodbye.sentence


async def test_another_chain_is_refused(network):
    foreign = replace(HELLO, chain_id=b"\x08" * 32)
    goodbye = await goodbye_after(network, Kind.HELLO, encode_hello(foreign))
    assert goodbye.code == Reason.CHAIN
    assert "genesis" in goodbye.sentence


@pytest.mark.parametrize(
    ("kind", "payload", "words"),
    [
        (Kind.STATUS, bytes(16), "STATUS before HELLO"),
        (Kind.HELLO, b"\xc1", "canonical"),
        (Kind.HELLO, msgpack.packb({"magic": 1}), "canonical"),
        (Kind.HELLO, pack((b"bitcoin", 1, 1)), "magic"),
        (Kind.HELLO, bytes(1025), "at most 1024"),
        (77, b"", "kind 77 is not known to wire version 1"),
        (0, b"", "kind 0"),
    ],
)
async def test_what_is_no_hello_is_refused_in_words(network, kind, payload, words):
    goodbye = await goodbye_after(network, kind, payload)
    assert goodbye.code == Reason.MALFORMED
    assert words in goodbye.sentence


async def test_a_second_hello_is_refused(network):
    alpha, beta = make_identities("alpha", "beta")
    node = await network.start(alpha, [beta.known()])
    raw = await network.raw(beta, node)
    await raw.greet()
    raw.send(Kind.HELLO, encode_hello(HELLO))
    goodbye = decode_goodbye(await raw.until_kind(Kind.GOODBYE))
    assert goodbye.code == Reason.MALFORMED


async def test_silence_after_tls_ends_the_connection(network):
    alpha, beta = make_identities("alpha", "beta")
    node = await network.start(alpha, [beta.known()], hello_timeout_ms=50)
    raw = await network.raw(beta, node)
    goodbye = decode_goodbye(await raw.until_kind(Kind.GOODBYE))
    assert goodbye.code == Reason.SILENT
    assert node.recorder.events == []


async def test_the_peers_last_words_reach_the_operator(network):
    alpha, beta = make_identities("alpha", "beta")
    node = await network.start(alpha, [beta.known()])
    raw = await network.raw(beta, node)
    await raw.greet()
    await node.until_connected(beta)
    raw.send(Kind.GOODBYE, encode_goodbye(Reason.SHUTDOWN, "back in an hour"))
    await node.recorder.until(lambda: not node.recorder.connected)
    assert node.line(beta).last_error == "the peer said: back in an hour"


async def test_a_frame_over_its_limit_is_refused_before_its_body(network):
    alpha, beta = make_identities("alpha", "beta")
    node = await network.start(alpha, [beta.known()], refuse_ms=60_000)
    raw = await network.raw(beta, node)
    await raw.greet()
    raw.writer.write(frames._HEADER.pack(0xFFFF_FFFF, Kind.BLOCKS))  # and nothing else
    goodbye = decode_goodbye(await raw.until_kind(Kind.GOODBYE))
    assert goodbye.code == Reason.MALFORMED
    assert "4294967295 bytes" in goodbye.sentence
    await node.recorder.until(lambda: not node.recorder.connected)
    assert node.line(beta).state == "refused"

    again = await network.raw(beta, node)
    assert decode_goodbye(await again.until_kind(Kind.GOODBYE)).code == Reason.PUNISHED
