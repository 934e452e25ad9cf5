"""Payloads: one byte string per value, and a refusal in words for everything else."""

from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from consensus.wire import pack
from node.network.errors import Incompatible, InvalidFrame, Reason
from node.network.payloads import (
    BLOCKS_MAX,
    DIGESTS_MAX,
    HEIGHT_MAX,
    SENTENCE_MAX,
    TRANSACTIONS_MAX,
    Blocks,
    FetchBlocks,
    Goodbye,
    Hello,
    Role,
    Status,
    decode_blocks,
    decode_digests,
    decode_fetch_blocks,
    decode_goodbye,
    decode_hello,
    decode_sealed,
    decode_status,
    decode_transactions,
    encode_blocks,
    encode_digests,
    encode_fetch_blocks,
    encode_goodbye,
    encode_hello,
    encode_sealed,
    encode_status,
    encode_transactions,
)

OWN = Hello(1, b"\x07" * 32, Role.VALIDATOR, 5, "node.example", 7610, "radledger/0.1.0")
HEIGHTS = st.integers(0, HEIGHT_MAX)
BODIES = st.lists(st.binary(min_size=1, max_size=200), min_size=1, max_size=20)


def hello_again(payload):
    return encode_hello(decode_hello(payload, OWN))


DECODERS = {
    "hello": (hello_again, encode_hello(OWN)),
    "goodbye": (
        lambda p: encode_goodbye(*_parts(decode_goodbye(p))),
        encode_goodbye(Reason.SHUTDOWN, "the node stops"),
    ),
    "status": (lambda p: encode_status(decode_status(p)), encode_status(Status(9, 2))),
    "digests": (
        lambda p: encode_digests(decode_digests(p)),
        encode_digests([b"a" * 32, b"b" * 32]),
    ),
    "transactions": (
        lambda p: encode_transactions(decode_transactions(p)),
        encode_transactions([b"one", b"three"]),
    ),
    "fetch_blocks": (
        lambda p: encode_fetch_blocks(decode_fetch_blocks(p)),
        encode_fetch_blocks(FetchBlocks(1, 2, 3)),
    ),
    "blocks": (
        lambda p: encode_blocks(decode_blocks(p)),
        encode_blocks(Blocks(7, 2, (b"block", b"b"))),
    ),
    "sealed": (lambda p: encode_sealed(*decode_sealed(p)), encode_sealed(4, b"block")),
}


def _parts(goodbye):
    return goodbye.code, goodbye.sentence


def accepts_canonical_only(name, payload):
    """A decoder returns what encodes to the same bytes, or raises what it documents."""
    again, _ = DECODERS[name]
    with suppress(InvalidFrame, Incompatible):
        assert again(payload) == payload


@pytest.mark.parametrize("name", DECODERS)
@given(rubbish=st.binary(max_size=300))
@example(rubbish=b"")
@example(rubbish=b"\xff" * 40)
@example(rubbish=b"\x91" * 300)
def test_rubbish_gives_the_documented_error_only(name, rubbish):
    accepts_canonical_only(name, rubbish)


@pytest.mark.parametrize("name", DECODERS)
@given(data=st.data())
def test_a_mutated_payload_is_canonical_or_refused(name, data):
    payload = bytearray(DECODERS[name][1])
    for _ in range(data.draw(st.integers(1, 3))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    accepts_canonical_only(name, bytes(payload))


@pytest.mark.parametrize("name", DECODERS)
def test_every_truncation_and_every_trailing_byte_is_refused(name):
    again, payload = DECODERS[name]
    assert again(payload) == payload
    for wrong in [payload[:length] for length in range(len(payload))] + [payload + b"\x00"]:
        accepts_canonical_only(name, wrong)
        if name not in ("sealed", "digests"):  # whose last part has no length of its own
            with pytest.raises(InvalidFrame):
                again(wrong)


@given(HEIGHTS, st.integers(0, 2**16 - 1), st.sampled_from(Role))
def test_hello_survives(height, port, role):
    hello = replace(OWN, height=height, listen_port=port, role=role)
    assert decode_hello(encode_hello(hello), OWN) == hello


@given(HEIGHTS, HEIGHTS, BODIES, st.integers(0, 2**32 - 1))
def test_the_others_survive(height, view, bodies, number):
    assert decode_status(encode_status(Status(height, view))) == Status(height, view)
    assert decode_transactions(encode_transactions(bodies)) == bodies
    answer = Blocks(number, height, tuple(bodies))
    assert decode_blocks(encode_blocks(answer)) == answer
    assert decode_sealed(encode_sealed(height, bodies[0])) == (height, bodies[0])
    first, last = sorted((height, view))
    if first:
        request = FetchBlocks(number, first, last)
        assert decode_fetch_blocks(encode_fetch_blocks(request)) == request


def test_golden_bytes():
    assert encode_status(Status(1, 2)).hex() == "00000000000000010000000000000002"
    assert encode_fetch_blocks(FetchBlocks(1, 2, 3)).hex() == "00000001" + "00" * 7 + "02" + (
        "00" * 7 + "03"
    )
    assert encode_transactions([b"ab", b"c"]).hex() == "000000020000000200000001616263"
    assert encode_blocks(Blocks(1, 2, ())).hex() == "00000001000000000000000200000000"
    assert encode_goodbye(Reason.CHAIN, "no").hex() == "9203a26e6f"
    assert encode_hello(replace(OWN, agent="")).hex() == (
        "99c4097261646c65646765720101c420"
        + "07" * 32
        + "a976616c696461746f7205ac6e6f64652e6578616d706c65cd1dbaa0"
    )


@pytest.mark.parametrize(
    "change",
    [
        {"height": HEIGHT_MAX + 1},
        {"height": -1},
        {"listen_port": 65_536},
        {"listen_host": "a b"},
        {"listen_host": "a" * 254},
        {"listen_host": "host\n"},
        {"agent": "x\n"},
        {"agent": "x" * 65},
        {"role": "admin"},
        {"chain_id": b"short"},
        {"protocol_version": True},
        {"protocol_version": 2**32},
    ],
)
def test_hello_with_a_field_out_of_range_is_refused(change):
    with pytest.raises(InvalidFrame):
        decode_hello(encode_hello(replace(OWN, **change)), OWN)


def test_versions_are_compared_before_anything_else_is_read():
    later = pack((b"radledger", 9, 3, ("anything", None)))
    with pytest.raises(Incompatible, match=r"wire version 1.*wire version 9") as refused:
        decode_hello(later, OWN)
    assert refused.value.reason is Reason.VERSION


def test_goodbye_cuts_and_cleans_what_goes_into_logs():
    goodbye = decode_goodbye(encode_goodbye(Reason.SILENT, "a\nb\x1b[31m" + "ü" * 1000))
    assert goodbye.sentence.startswith("a?b?[31m?")
    assert len(goodbye.sentence) == SENTENCE_MAX
    assert decode_goodbye(pack((250, "from the future"))) == Goodbye(250, "from the future")
    for sentence in ("x\n", "x" * (SENTENCE_MAX + 1), "ü"):
        with pytest.raises(InvalidFrame):
            decode_goodbye(pack((1, sentence)))


def test_lists_are_bounded_in_number_before_they_are_built():
    with pytest.raises(InvalidFrame, match="announces"):
        decode_transactions((TRANSACTIONS_MAX + 1).to_bytes(4, "big") * (TRANSACTIONS_MAX + 2))
    with pytest.raises(InvalidFrame, match="announces"):
        decode_blocks(bytes(12) + (BLOCKS_MAX + 1).to_bytes(4, "big") * (BLOCKS_MAX + 2))
    with pytest.raises(InvalidFrame, match="announces"):
        decode_transactions(b"\xff\xff\xff\xff")
    digests = [i.to_bytes(32, "big") for i in range(DIGESTS_MAX + 1)]
    assert decode_digests(encode_digests(digests[:-1])) == digests[:-1]
    with pytest.raises(InvalidFrame, match="at most"):
        decode_digests(encode_digests(digests))


def test_empty_items_and_repeated_digests_are_refused():
    for payload in (encode_transactions([]), encode_transactions([b"a", b""])):
        with pytest.raises(InvalidFrame):
            decode_transactions(payload)
    with pytest.raises(InvalidFrame):
        decode_blocks(encode_blocks(Blocks(1, 1, (b"",))))
    with pytest.raises(InvalidFrame, match="twice"):
        decode_digests(b"a" * 64)
    for first, last in ((0, 5), (6, 5), (1, HEIGHT_MAX + 1)):
        with pytest.raises(InvalidFrame):
            decode_fetch_blocks(encode_fetch_blocks(FetchBlocks(1, first, last)))
