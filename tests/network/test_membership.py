"""Peers that become known, change their role, or are known no more, while connections go on."""

import logging
from dataclasses import replace

import pytest

from node.network.errors import CertificateRefused
from node.network.payloads import Role
from node.network.peers import KnownPeer
from node.network.tls import TrustedContexts
from tests.network.harness import HELLO, make_identities

OBSERVER = replace(HELLO, role=Role.OBSERVER)


async def test_who_becomes_known_can_connect_and_who_is_dropped_cannot(network):
    stays, goes, comes = make_identities("stays", "goes", "comes")
    hub = await network.start(make_identities("hub")[0], [stays.known(), goes.known()])
    first = await network.start(stays, [hub.identity.known(hub.at)], hello=OBSERVER)
    second = await network.start(goes, [hub.identity.known(hub.at)], hello=OBSERVER)
    third = await network.start(comes, [hub.identity.known(hub.at)], hello=OBSERVER)
    await hub.until_connected(stays, goes)
    hub.transport.know([stays.known(), comes.known()])
    await hub.until_connected(comes)
    await hub.recorder.until(lambda: ("disconnected", "goes") in hub.recorder.events)
    await second.until_error(hub.identity, "does not know")
    assert {p.name for p in hub.transport.connected.values()} == {"stays", "comes"}
    assert ("disconnected", "stays") not in hub.recorder.events
    await third.until_connected(hub.identity)
    assert first.recorder.events == third.recorder.events == [("connected", "hub")]


async def test_another_role_is_told_and_the_connection_goes_on(network):
    first, second = await network.pair()
    second.transport.know([first.identity.known(role=Role.OBSERVER)])
    assert second.recorder.events == [("connected", "alpha"), ("changed", "alpha")]
    assert second.recorder.connected[first.key].role is Role.OBSERVER
    assert second.transport.connected[first.key].role is Role.OBSERVER
    second.transport.know([first.identity.known(role=Role.OBSERVER)])
    assert second.recorder.events[2:] == []


async def test_the_role_is_what_the_node_knows_and_not_what_the_peer_says(network):
    alpha, beta = make_identities("alpha", "beta")
    listening = await network.start(beta, [alpha.known(role=Role.OBSERVER)])
    await network.start(alpha, [beta.known(listening.at)], hello=HELLO)
    await listening.until_connected(alpha)
    peer = listening.recorder.connected[alpha.key]
    assert (peer.role, peer.hello.role) == (Role.OBSERVER, Role.VALIDATOR)


async def test_a_certificate_that_cannot_be_used_keeps_nobody_else_out(network, caplog):
    alpha, beta = make_identities("alpha", "beta")
    listening = await network.start(beta, [])
    with caplog.at_level(logging.ERROR):
        listening.transport.know([KnownPeer(b"no certificate", "hill"), alpha.known()])
    assert "peer=hill" in caplog.text
    await network.start(alpha, [beta.known(listening.at)])
    await listening.until_connected(alpha)


async def test_of_two_validators_the_later_one_dials_when_nobody_comes(network):
    """A new validator knows where the others are; they do not know where it is."""
    small, large = make_identities("small", "large")
    old = await network.start(small, [large.known()])  # it would dial, but does not know where
    new = await network.start(large, [small.known(old.at)], dial_patience_ms=20)
    await old.until_connected(large)
    await new.until_connected(small)
    assert new.transport.connected[small.key].dialled


async def test_of_two_validators_the_later_one_leaves_it_to_the_first_for_a_while(network):
    small, large = make_identities("small", "large")
    second = await network.start(large, [small.known(("127.0.0.1", 9))], dial_patience_ms=20_000)
    first = await network.start(small, [large.known(second.at)])
    await second.until_connected(small)
    await first.until_connected(large)
    assert first.transport.connected[large.key].dialled
    assert second.line(small).last_error == ""  # nobody dialled the closed port


async def test_a_validator_that_only_follows_now_is_dialled_no_more(network):
    first, second = await network.pair()
    at = second.at
    first.transport.know([second.identity.known(at, Role.OBSERVER)])
    assert first.transport.hold_off_s(second.key) is None
    await second.transport.close()
    await first.recorder.until(lambda: second.key not in first.recorder.connected)
    assert first.transport.hold_off_s(second.key) is None
    first.transport.know([second.identity.known(at)])
    assert first.transport.hold_off_s(second.key) == 0


def test_a_certificate_that_openssl_refuses_is_not_half_trusted(monkeypatch):
    alpha, beta = make_identities("alpha", "beta")
    contexts = TrustedContexts(alpha.private_key, alpha.certificate)
    monkeypatch.setattr("node.network.tls.certificate_key", lambda _: beta.key)
    with pytest.raises(CertificateRefused, match="OpenSSL"):
        contexts.trust(b"\x30\x03\x02\x01\x00")
    monkeypatch.undo()
    assert contexts.trust(beta.certificate) == beta.key
