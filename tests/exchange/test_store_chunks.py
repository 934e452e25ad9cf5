"""Compression, sealing and the index: every decoder over cut, mutated and foreign bytes."""

import hashlib

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st

from node.exchange.store import pack
from node.exchange.store.compression import LEVELS, Method, compress, expand
from node.exchange.store.errors import Damaged, InvalidIndex
from node.exchange.store.index import (
    ChunkEntry,
    IndexedInstance,
    StudyIndex,
    decode_index,
    encode_index,
)
from node.exchange.store.sealing import (
    STORED_BYTES_MAX,
    Place,
    open_chunk,
    open_index,
    seal_chunk,
    seal_index,
)
from tests.exchange.store_parts import OTHER, STUDY, contents, new_store, noise, source, sources

KEY = bytes(range(32))
CIPHER = AESGCM(KEY)
PLACE = Place(STUDY, 3, 7, False)


def slices(size: int = 200_000) -> bytes:
    """Return 16-bit numbers that wander, as rows of a CT do."""
    steps = noise(size // 2)
    value, out = 1_000, bytearray()
    for step in steps:
        value = (value + step % 17 - 8) % 65_536
        out += value.to_bytes(2, "little")
    return bytes(out)


def sealed(plain: bytes, place: Place = PLACE, level: int | None = 1) -> bytes:
    return bytes(seal_chunk(CIPHER, place, plain, level, bytearray(STORED_BYTES_MAX)))


@given(st.binary(max_size=500), st.integers(0, 300), st.sampled_from(list(LEVELS.values())))
def test_compression_gives_back_every_byte(part, times, level):
    plain = part * times
    method, packed = compress(plain, level)
    assert expand(method, packed, len(plain)) == plain


@pytest.mark.parametrize("odd", [0, 1])
def test_each_kind_of_content_gets_its_method(odd):
    assert compress(noise(100_000), 1)[0] is Method.RAW
    assert compress(b"words and words " * 5_000, 1)[0] is Method.ZSTD
    pixels = slices() + b"x" * odd
    method, packed = compress(pixels, 1)
    assert method is Method.WORDS
    assert len(packed) < 0.62 * len(pixels)
    assert expand(method, packed, len(pixels)) == pixels
    assert compress(pixels, None)[0] is Method.RAW


@given(st.integers(0, 255), st.binary(max_size=200), st.integers(0, 2**22))
def test_what_was_never_compressed_is_damaged(method, packed, size):
    try:
        assert len(expand(method, packed, size)) == size
    except Damaged:
        return
    assert method in (Method.RAW, Method.ZSTD, Method.WORDS)


def test_a_bomb_gets_no_memory():
    _, packed = compress(bytes(4_000_000), 1)
    with pytest.raises(Damaged):
        expand(Method.ZSTD, packed, 1_000)


@pytest.mark.parametrize("plain", [b"x", noise(5_000), slices()])
def test_a_chunk_opens_in_its_own_place_only(plain):
    chunk = sealed(plain)
    assert open_chunk(CIPHER, PLACE, chunk, len(plain)) == plain
    foreign = [
        Place(OTHER, 3, 7, False),  # another study
        Place(STUDY, 2, 7, False),  # replayed from another version
        Place(STUDY, 3, 8, False),  # reordered
        Place(STUDY, 3, 7, True),  # cut short: taken for the last
    ]
    for place in foreign:
        with pytest.raises(Damaged):
            open_chunk(CIPHER, place, chunk, len(plain))
    with pytest.raises(Damaged):
        open_chunk(AESGCM(bytes(32)), PLACE, chunk, len(plain))
    with pytest.raises(Damaged):
        open_chunk(CIPHER, PLACE, chunk, len(plain) + 1)


def test_no_nonce_comes_twice():
    assert len({sealed(b"same")[2:14] for _ in range(1_000)}) == 1_000


CHUNK = sealed(slices(2_000))


@given(st.integers(0, len(CHUNK) - 1), st.integers(1, 255))
def test_every_changed_byte_of_a_chunk_is_found(at, change):
    mutated = bytearray(CHUNK)
    mutated[at] ^= change
    with pytest.raises(Damaged):
        open_chunk(CIPHER, PLACE, mutated, 2_000)


@given(st.one_of(st.binary(max_size=300), st.integers(0, len(CHUNK) - 1).map(lambda n: CHUNK[:n])))
def test_random_and_truncated_bytes_are_no_chunk(data):
    with pytest.raises(Damaged):
        open_chunk(CIPHER, PLACE, data, 2_000)


def index(count: int = 3) -> StudyIndex:
    chunks = tuple(
        ChunkEntry(hashlib.sha256(bytes([n])).digest(), 4_126, 4_096, 2, n, n == 2)
        for n in range(3)
    )
    instances = tuple(
        IndexedInstance(source(n, noise(4_000, n)).facts, n, 90) for n in range(count)
    )
    return StudyIndex(STUDY, 2, instances, chunks)


def test_an_index_comes_back():
    plain = encode_index(index())
    assert decode_index(plain) == index()
    key = bytes(32)
    assert open_index(key, STUDY, seal_index(key, STUDY, 2, plain)) == (2, plain)


INDEX = encode_index(index())
SEALED_INDEX = seal_index(KEY, STUDY, 2, INDEX)


@given(st.binary(max_size=200))
def test_random_bytes_are_no_index(data):
    with pytest.raises(InvalidIndex):
        decode_index(data)
    with pytest.raises(InvalidIndex):
        open_index(KEY, STUDY, data)


@given(st.integers(0, len(INDEX) - 1), st.integers(1, 255))
def test_a_mutated_index_is_another_valid_one_or_refused(at, change):
    mutated = bytearray(INDEX)
    mutated[at] ^= change
    try:
        decoded = decode_index(bytes(mutated))
    except InvalidIndex:
        return
    assert encode_index(decoded) == mutated
    for ordinal in range(len(decoded.instances)):
        assert decoded.span(ordinal).stop <= len(decoded.chunks)


@given(st.integers(0, len(SEALED_INDEX) - 1), st.integers(1, 255))
def test_every_changed_byte_of_a_sealed_index_is_found(at, change):
    mutated = bytearray(SEALED_INDEX)
    mutated[at] ^= change
    with pytest.raises(InvalidIndex):
        open_index(KEY, STUDY, bytes(mutated))
    with pytest.raises(InvalidIndex):
        open_index(KEY, STUDY, SEALED_INDEX[:at])


def test_an_index_that_contradicts_itself_is_refused():
    good = index()
    first, *others = good.chunks
    facts = good.instances[0].facts
    reordered = (others[0], first, others[1])
    bad = [
        StudyIndex(STUDY[:15], 2, good.instances, good.chunks),
        StudyIndex(STUDY, 0, good.instances, good.chunks),
        StudyIndex(STUDY, 1, good.instances, good.chunks),  # chunks of a later version
        StudyIndex(STUDY, 2, (), good.chunks),
        StudyIndex(STUDY, 2, good.instances, ()),
        StudyIndex(STUDY, 2, good.instances, reordered),
        StudyIndex(STUDY, 2, good.instances, (first, first, *others)),
        StudyIndex(STUDY, 2, good.instances, (first, others[0])),  # the last one cut off
        StudyIndex(STUDY, 2, good.instances * 2, good.chunks),
        StudyIndex(STUDY, 2, (IndexedInstance(facts, 3, 0),), good.chunks),
        StudyIndex(STUDY, 2, (IndexedInstance(facts, 0, 4_096),), good.chunks),
        StudyIndex(STUDY, 2, (IndexedInstance(facts, 2, 97),), good.chunks),
    ]
    for each in bad:
        with pytest.raises(InvalidIndex):
            encode_index(each)


@settings(max_examples=30)
@given(
    st.lists(st.integers(1, 3_000), min_size=1, max_size=12), st.sampled_from([64, 1_000, 4_096])
)
def test_any_cut_gives_back_every_instance(tmp_path_factory, sizes, chunk_bytes):
    given_ = [noise(size, seed) for seed, size in enumerate(sizes)]
    folder = tmp_path_factory.mktemp("cuts")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pack, "CHUNK_BYTES", chunk_bytes)
        store = new_store(folder)
        stored = store.put(STUDY, 1, sources(given_))
    assert contents(store) == given_
    assert stored.chunks == -(-sum(sizes) // chunk_bytes)
    entries = store.index(STUDY).chunks
    assert [entry.final for entry in entries] == [False] * (len(entries) - 1) + [True]
    store.close()
