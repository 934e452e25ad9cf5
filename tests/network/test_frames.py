"""The frame parser: any chunking, any rubbish, never more than one frame's worth of memory."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.network.errors import InvalidFrame
from node.network.frames import (
    GREETING_KINDS,
    HEADER_BYTES,
    PAYLOAD_BYTES_MAX,
    FrameParser,
    Kind,
    encode_frame,
)

FRAMES = st.lists(
    st.sampled_from(list(Kind)).flatmap(
        lambda kind: st.tuples(
            st.just(kind), st.binary(max_size=min(PAYLOAD_BYTES_MAX[kind], 2_000))
        )
    ),
    max_size=12,
)


def parse(chunks, limits=PAYLOAD_BYTES_MAX):
    """The frames that come out, and the error that ends them if there is one."""
    parser, frames = FrameParser(limits), []
    try:
        for chunk in chunks:
            for frame in parser.feed(chunk):
                frames.append(frame)
    except InvalidFrame as error:
        return frames, str(error), parser
    return frames, None, parser


def cut(data, points):
    edges = [0, *sorted(point % (len(data) + 1) for point in points), len(data)]
    return [data[a:b] for a, b in pairwise(edges)]


def test_the_header_is_four_bytes_of_length_and_one_of_kind():
    assert encode_frame(Kind.PING, b"12345678") == b"\x00\x00\x00\x08\x0312345678"
    assert list(map(int, Kind)) == list(range(1, 16))


@given(FRAMES, st.lists(st.integers(0, 10_000), max_size=20))
def test_any_chunking_gives_the_same_frames(frames, points):
    stream = b"".join(encode_frame(kind, payload) for kind, payload in frames)
    parsed, error, parser = parse(cut(stream, points))
    assert parsed == frames
    assert error is None
    assert parser.buffered == 0


@given(FRAMES.filter(bool), st.data())
def test_a_truncated_stream_gives_the_frames_that_are_whole(frames, data):
    encoded = [encode_frame(kind, payload) for kind, payload in frames]
    stream = b"".join(encoded)
    length = data.draw(st.integers(0, len(stream) - 1))
    parsed, error, parser = parse([stream[:length]])
    assert error is None
    assert parsed == frames[: len(parsed)]
    assert sum(map(len, encoded[: len(parsed)])) + parser.buffered == length


@given(st.binary(max_size=4_000), st.lists(st.integers(0, 4_000), max_size=10))
def test_rubbish_is_refused_alike_however_it_is_cut(rubbish, points):
    assert parse([rubbish])[:2] == parse(cut(rubbish, points))[:2]


@given(FRAMES, st.lists(st.tuples(st.integers(0, 20_000), st.integers(0, 255)), max_size=4))
def test_a_mutated_stream_raises_the_documented_error_only(frames, mutations):
    stream = bytearray(b"".join(encode_frame(kind, payload) for kind, payload in frames))
    for position, value in mutations:
        if stream:
            stream[position % len(stream)] = value
    parse([bytes(stream)])


@pytest.mark.parametrize("kind", list(Kind))
def test_one_byte_over_the_limit_is_refused_before_the_body_is_held(kind):
    limit = PAYLOAD_BYTES_MAX[kind]
    header = (limit + 1).to_bytes(4, "big") + bytes([kind])
    frames, error, parser = parse([header[:3], header[3:]])
    assert (frames, parser.buffered) == ([], 0)
    assert f"at most {limit}" in error
    with pytest.raises(ValueError, match="at most"):
        encode_frame(kind, bytes(limit + 1))


def test_never_more_than_one_frame_is_held():
    body = bytes(PAYLOAD_BYTES_MAX[Kind.TRANSACTIONS])
    stream = encode_frame(Kind.TRANSACTIONS, body) * 2
    parser, largest, count = FrameParser(), 0, 0
    for start in range(0, len(stream), 10_000):
        count += len(list(parser.feed(stream[start : start + 10_000])))
        largest = max(largest, parser.buffered)
    assert count == 2
    assert largest <= len(body) + HEADER_BYTES


def test_before_the_greeting_only_hello_and_goodbye_are_legal():
    for kind in Kind:
        _, error, _ = parse([encode_frame(kind, b"")], GREETING_KINDS)
        assert (error is None) == (kind in (Kind.HELLO, Kind.GOODBYE))


def test_limits_may_be_raised_between_two_frames_of_one_chunk():
    parser = FrameParser(GREETING_KINDS)
    kinds = []
    for kind, _ in parser.feed(encode_frame(Kind.HELLO, b"") + encode_frame(Kind.STATUS, b"")):
        parser.limits = PAYLOAD_BYTES_MAX
        kinds.append(kind)
    assert kinds == [Kind.HELLO, Kind.STATUS]
