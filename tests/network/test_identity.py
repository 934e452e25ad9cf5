"""Only those who prove a known key over TLS 1.3 are ever greeted."""

import asyncio
import contextlib
import datetime
import ssl
from dataclasses import replace

import pytest

from node.network.errors import Reason
from node.network.frames import Kind
from node.network.payloads import Role, decode_goodbye, encode_hello
from tests.network.harness import (
    HELLO,
    Identity,
    certificate_valid_until,
    client_context,
    make_identities,
    turns_until,
)


async def refusals(node) -> None:
    await turns_until(lambda: node.transport.listener_counters.handshakes_failed)
    assert node.recorder.events == []


async def dial_in_vain(network, node, context) -> None:
    """TLS 1.3 lets a client finish before the server has judged it; reading then says no."""
    with pytest.raises(OSError):  # noqa: PT011, PT012
        raw = await network.raw(node.identity, node, context=context)
        raw.send(Kind.HELLO, encode_hello(HELLO))
        await raw.next_frame()


async def test_two_known_nodes_connect_and_the_smaller_key_dials(network):
    alpha, beta = await network.pair()
    assert alpha.recorder.connected[beta.key].dialled
    assert not beta.recorder.connected[alpha.key].dialled
    assert alpha.recorder.connected[beta.key].hello == HELLO
    assert alpha.line(beta.identity).state == "connected"


async def test_each_validator_dials_one_way_and_observers_dial_validators(network):
    alpha, watch, other = make_identities("alpha", "watch", "other")
    validator = await network.start(
        alpha, [watch.known(role=Role.OBSERVER), other.known(role=Role.OBSERVER)]
    )
    observer_hello = replace(HELLO, role=Role.OBSERVER)
    second = await network.start(other, [alpha.known(validator.at)], hello=observer_hello)
    first = await network.start(
        watch,
        [alpha.known(validator.at), other.known(second.at, Role.OBSERVER)],
        hello=observer_hello,
    )
    await validator.until_connected(watch, other)
    assert validator.recorder.connected[watch.key].hello.role is Role.OBSERVER
    assert first.line(other).state == "waiting"  # an observer does not dial an observer


async def test_a_certificate_that_nobody_knows_is_refused(network):
    alpha, stranger = make_identities("alpha", "stranger")
    node = await network.start(alpha, [])
    await dial_in_vain(network, node, client_context(stranger, alpha))
    await refusals(node)


async def test_another_certificate_of_a_known_name_is_refused(network):
    alpha, beta = make_identities("alpha", "beta")
    forger = make_identities("beta")[0]
    node = await network.start(alpha, [beta.known()])
    await dial_in_vain(network, node, client_context(forger, alpha))
    await refusals(node)


async def test_an_expired_certificate_is_refused(network):
    alpha, beta = make_identities("alpha", "beta")
    past = datetime.datetime(2021, 1, 1, tzinfo=datetime.UTC)
    expired = Identity(beta.private_key, certificate_valid_until(beta, past), "beta")
    node = await network.start(alpha, [expired.known()])
    await dial_in_vain(network, node, client_context(expired, alpha))
    await refusals(node)


async def test_the_same_kind_of_certificate_is_accepted_before_it_expires(network):
    alpha, beta = make_identities("alpha", "beta")
    future = datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=1)
    valid = Identity(beta.private_key, certificate_valid_until(beta, future), "beta")
    node = await network.start(alpha, [valid.known()])
    await (await network.raw(valid, node)).greet()
    await node.until_connected(beta)


async def test_a_client_without_a_certificate_is_refused(network):
    alpha, beta = make_identities("alpha", "beta")
    node = await network.start(alpha, [beta.known()])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(cadata=alpha.certificate)
    await dial_in_vain(network, node, context)
    await refusals(node)


async def test_tls_1_2_is_refused(network):
    alpha, beta = make_identities("alpha", "beta")
    node = await network.start(alpha, [beta.known()])
    context = client_context(beta, alpha)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(OSError):  # noqa: PT011 - the words are OpenSSL's
        await network.raw(beta, node, context=context)
    await refusals(node)


async def test_plain_tcp_is_refused(network):
    node = await network.start(make_identities("alpha")[0], [])
    reader, writer = await asyncio.open_connection(*node.at)
    writer.write(b"GET / HTTP/1.1\r\nHost: hospital\r\n\r\n")
    try:
        while await reader.read(1024):
            pass
    except ConnectionError:
        pass
    writer.transport.abort()
    await refusals(node)


async def test_a_connection_that_says_nothing_is_cut_by_the_handshake_timeout(network):
    node = await network.start(make_identities("alpha")[0], [], handshake_timeout_ms=50)
    reader, writer = await asyncio.open_connection(*node.at)
    with contextlib.suppress(ConnectionError):
        assert await reader.read(1) == b""
    writer.transport.abort()
    await refusals(node)


async def test_a_certificate_that_tls_trusts_is_not_enough(network):
    alpha, beta = make_identities("alpha", "beta")
    node = await network.start(alpha, [])
    node.transport._contexts.trust(beta.certificate)
    raw = await network.raw(beta, node)
    goodbye = decode_goodbye(await raw.until_kind(Kind.GOODBYE))
    assert goodbye.code == Reason.UNKNOWN_PEER
    assert node.recorder.events == []


async def test_another_known_peer_at_the_dialled_address_is_refused(network):
    alpha, beta, gamma = make_identities("alpha", "beta", "gamma")
    listening = await network.start(gamma, [alpha.known()])
    node = await network.start(alpha, [beta.known(listening.at), gamma.known()])
    await node.until_error(beta, "dialled beta, but gamma answered")
    assert node.recorder.events == []


async def test_a_node_that_dials_itself_is_told_so(network):
    alpha, _ = make_identities("alpha", "beta")
    node = await network.start(alpha, [])
    raw = await network.raw(alpha, node)
    goodbye = decode_goodbye(await raw.until_kind(Kind.GOODBYE))
    assert goodbye.code == Reason.OWN_KEY
    assert "one key" in goodbye.sentence


async def test_trust_can_be_given_and_taken_back_while_running(network):
    alpha, beta = make_identities("alpha", "beta")
    listening = await network.start(beta, [])
    dialling = await network.start(alpha, [beta.known(listening.at)])
    await turns_until(lambda: listening.transport.listener_counters.handshakes_failed)
    assert listening.transport.trust(alpha.known()) == alpha.key
    await listening.until_connected(alpha)
    await dialling.until_connected(beta)

    listening.transport.distrust(alpha.key)
    assert listening.recorder.events[-1] == ("disconnected", "alpha")
    await dialling.recorder.until(lambda: not dialling.recorder.connected)
    failed = listening.transport.listener_counters.handshakes_failed
    await turns_until(lambda: listening.transport.listener_counters.handshakes_failed > failed)
    assert not listening.transport.connected


async def test_a_peer_may_get_another_certificate_and_address(network):
    alpha, beta = make_identities("alpha", "beta")
    listening = await network.start(beta, [alpha.known()])
    dialling = await network.start(alpha, [beta.known(("127.0.0.1", 1))])
    dialling.transport.trust(beta.known(listening.at))
    await dialling.until_connected(beta)
