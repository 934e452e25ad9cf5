"""The multipart parser: any cut gives the same parts, any garbage only `InvalidMultipart`."""

from contextlib import suppress
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.gateway.web.multipart import (
    InvalidMultipart,
    MultipartParser,
    PartBegin,
    PartData,
    PartEnd,
    check_boundary,
)

BOUNDARY = b"frontier"
# RFC 2046 §5.1.1, the example: preamble, a part without and one with a header, epilogue.
RFC_2046 = (
    b"This is the preamble.  It is to be ignored, though it\r\n"
    b"is a handy place for composition agents to include an\r\n"
    b"explanatory note to non-MIME conformant readers.\r\n"
    b"\r\n--simple boundary\r\n"
    b"\r\nThis is implicitly typed plain US-ASCII text.\r\n"
    b"It does NOT end with a linebreak."
    b"\r\n--simple boundary\r\nContent-type: text/plain; charset=us-ascii\r\n"
    b"\r\nThis is explicitly typed plain US-ASCII text.\r\nIt DOES end with a linebreak.\r\n"
    b"\r\n--simple boundary--\r\n\r\nThis is the epilogue.  It is also to be ignored."
)


def parse(pieces, boundary=BOUNDARY, header_max=1_000, parts_max=100):
    parser = MultipartParser(boundary, header_max, parts_max)
    parts, whole = [], 0
    for piece in pieces:
        for event in parser.feed(piece):
            match event:
                case PartBegin(headers):
                    parts.append((headers, bytearray()))
                case PartData(data):
                    assert data
                    parts[-1][1].extend(data)
                case PartEnd():
                    whole += 1
    parser.finish()
    assert whole == len(parts)
    return [(headers, bytes(data)) for headers, data in parts]


def encode(bodies, boundary=BOUNDARY, preamble=b"", padding=b""):
    out = preamble
    for body in bodies:
        out += (
            b"\r\n--" + boundary + padding + b"\r\nContent-Type: application/dicom\r\n\r\n" + body
        )
    return out + b"\r\n--" + boundary + b"--\r\n"


def cut(data, places):
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[a:b] for a, b in pairwise(edges)]


def test_the_example_of_rfc_2046():
    assert parse([RFC_2046], b"simple boundary") == [
        ({}, b"This is implicitly typed plain US-ASCII text.\r\nIt does NOT end with a linebreak."),
        (
            {"content-type": "text/plain; charset=us-ascii"},
            b"This is explicitly typed plain US-ASCII text.\r\nIt DOES end with a linebreak.\r\n",
        ),
    ]


near = st.sampled_from([b"\r\n--frontie", b"\r\n-", b"\r", b"--frontier", b"\r\n\r\n", b"\0" * 50])
bodies = st.lists(st.lists(near | st.binary(max_size=40), max_size=5).map(b"".join), max_size=5)


@given(bodies, st.lists(st.integers(0, 10_000), max_size=12), st.sampled_from([b"", b" \t"]))
def test_any_cut_gives_the_same_parts(some, places, padding):
    some = [body for body in some if b"\r\n--frontier" not in b"\r\n" + body]
    if not some:
        return
    data = encode(some, padding=padding)
    assert [body for _, body in parse(cut(data, places))] == some
    assert [body for _, body in parse(data[i : i + 1] for i in range(len(data)))] == some
    assert [body for _, body in parse([data[2:]])] == some  # nothing before the first boundary


@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=5))
def test_garbage_is_refused_and_nothing_else(data, places):
    with pytest.raises(InvalidMultipart):
        parse(cut(data, places))


@given(st.data())
def test_mutated_messages_are_parsed_or_refused(data):
    message = bytearray(encode([b"one", b"two" * 30]))
    for _ in range(data.draw(st.integers(1, 4))):
        message[data.draw(st.integers(0, len(message) - 1))] = data.draw(st.integers(0, 255))
    end = data.draw(st.integers(0, len(message)))
    with suppress(InvalidMultipart):
        parse([bytes(message[:end])])


def test_every_truncation_is_noticed():
    message = encode([b"one", b"two"])[:-2]
    for end in range(len(message)):
        with pytest.raises(InvalidMultipart):
            parse([message[:end]])


@pytest.mark.parametrize(
    "message",
    [
        b"x" * 10_000,
        b"--frontierX\r\n\r\n",
        b"--frontier" + b" " * 300,
        b"--frontier\r\n" + b"a: b\r\n" * 400,
        b"--frontier\r\nno colon\r\n\r\nx",
        b"--frontier\r\n: nameless\r\n\r\nx",
        encode([b""] * 101),
    ],
)
def test_bounds(message):
    with pytest.raises(InvalidMultipart):
        parse([message])


def test_what_is_held_does_not_grow_with_a_part():
    parser = MultipartParser(BOUNDARY, 1_000, 100)
    parser.feed(b"--frontier\r\n\r\n")
    for _ in range(100):
        parser.feed(b"\r" * 10_000)
    assert len(parser._buffer) < 100


@pytest.mark.parametrize("boundary", [None, "", "a" * 71, "a b ", "ä", "a\r\nb", 'a"b'])
def test_boundaries_that_rfc_2046_does_not_allow(boundary):
    with pytest.raises(InvalidMultipart):
        check_boundary(boundary)
