"""The frames of proposals and payloads: one encoding each, and one error for everything else."""

import struct
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consensus.errors import InvalidMessage
from consensus.messages import HEIGHT_MAX
from node.replication import codec

DIGESTS = st.binary(min_size=32, max_size=32)
HEIGHTS = st.integers(1, HEIGHT_MAX)
BODIES = st.lists(st.binary(min_size=1, max_size=40), max_size=6).map(tuple)
DECODERS = (codec.decode_proposal, codec.decode_payload_request, codec.decode_payload)
ENCODERS = (codec.encode_proposal, codec.encode_payload_request, codec.encode_payload)

proposals = st.tuples(st.binary(min_size=1, max_size=256), st.binary(min_size=1, max_size=200))
requests = st.tuples(HEIGHTS, DIGESTS, st.lists(DIGESTS, max_size=5).map(tuple))
payloads = st.tuples(DIGESTS, st.binary(max_size=100), BODIES)
KINDS = tuple(zip(ENCODERS, DECODERS, (proposals, requests, payloads), strict=True))
frames = st.sampled_from(KINDS).flatmap(
    lambda kind: kind[2].map(lambda fields: (kind[0], kind[1], fields))
)


@given(frames)
def test_decoding_inverts_encoding(frame):
    encode, decode, fields = frame
    assert decode(encode(*fields)) == fields


@given(st.sampled_from(DECODERS), st.binary(max_size=400))
def test_random_bytes_decode_to_what_encodes_to_them_or_are_refused(decode, data):
    encode = ENCODERS[DECODERS.index(decode)]
    try:
        fields = decode(data)
    except InvalidMessage:
        return
    assert encode(*fields) == data


@given(frames, st.data())
def test_a_mutated_frame_is_another_frame_or_is_refused(frame, data):
    encode, decode, fields = frame
    mutated = bytearray(encode(*fields))
    position = data.draw(st.integers(0, len(mutated) - 1))
    mutated[position] ^= data.draw(st.integers(1, 255))
    try:
        decoded = decode(bytes(mutated))
    except InvalidMessage:
        return
    assert decoded != fields
    assert encode(*decoded) == bytes(mutated)


@given(frames, st.data())
def test_a_truncated_frame_never_has_the_same_meaning(frame, data):
    encode, decode, fields = frame
    whole = encode(*fields)
    cut = whole[: data.draw(st.integers(0, len(whole) - 1))]
    with suppress(InvalidMessage):
        assert decode(cut) != fields


@given(payloads, st.binary(min_size=1, max_size=40))
def test_bytes_after_a_payload_are_refused(fields, tail):
    with pytest.raises(InvalidMessage, match="followed by other bytes"):
        codec.decode_payload(codec.encode_payload(*fields) + tail)


@pytest.mark.parametrize("length", [0, codec.PRE_PREPARE_BYTES_MAX + 1, 0xFFFF])
def test_a_pre_prepare_has_a_bounded_length(length):
    with pytest.raises(InvalidMessage, match="has no batch"):
        codec.decode_proposal(struct.pack(">H", length) + bytes(length + 1))


def test_a_proposal_without_a_batch_is_refused():
    with pytest.raises(InvalidMessage, match="has no batch"):
        codec.decode_proposal(codec.encode_proposal(b"vote", b""))


@pytest.mark.parametrize("height", [0, HEIGHT_MAX + 1, 2**64 - 1])
def test_a_request_names_a_height_that_can_be(height):
    with pytest.raises(InvalidMessage, match=f"height {height}"):
        codec.decode_payload_request(struct.pack(">Q", height) + bytes(32))


def test_more_missing_digests_than_a_batch_holds_are_refused():
    most = (bytes(32),) * codec.BODIES_MAX
    assert codec.decode_payload_request(codec.encode_payload_request(1, bytes(32), most))[2] == most
    with pytest.raises(InvalidMessage, match="up to 10000"):
        codec.decode_payload_request(codec.encode_payload_request(1, bytes(32), (*most, most[0])))


def test_more_bodies_than_a_batch_holds_are_refused_before_anything_is_built():
    most = (b"x",) * codec.BODIES_MAX
    assert codec.decode_payload(codec.encode_payload(bytes(32), b"", most))[2] == most
    with pytest.raises(InvalidMessage, match="announces 10002 items"):
        codec.decode_payload(codec.encode_payload(bytes(32), b"", (*most, b"x")))
    announced = bytes(32) + struct.pack(">I", 2**32 - 1) + bytes(1_000)
    with pytest.raises(InvalidMessage, match="announces 4294967295 items"):
        codec.decode_payload(announced)


def test_an_empty_body_is_refused_and_an_empty_batch_is_not():
    assert codec.decode_payload(codec.encode_payload(bytes(32), b"", [b"x"]))[1] == b""
    with pytest.raises(InvalidMessage, match="bodies that are empty"):
        codec.decode_payload(codec.encode_payload(bytes(32), b"batch", [b"x", b""]))
