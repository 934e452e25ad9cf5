"""A proof shows one statement; whatever is changed in it, it shows no other."""

from hashlib import sha256

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consensus.wire import pack, unpack
from storage.errors import InvalidProof
from storage.memory import MemoryStore
from storage.state import StateTree
from storage.state_proof import DEPTH_MAX, PROOF_BYTES_MAX, verify
from tests.storage.test_state import advance

PRESENT = {b"study/%d" % n: b"value %d" % (n % 5) for n in range(120)}
ABSENT = [b"study/%d" % n for n in range(1000, 1080)]


@pytest.fixture(scope="module")
def tree():
    store = MemoryStore()
    tree = StateTree(store)
    advance(store, tree, PRESENT)
    return tree


def is_shown(root, key, value, proof):
    try:
        verify(root, key, value, proof)
    except InvalidProof:
        return False
    return True


def other_of(proof):
    return unpack(proof)[3]


def test_every_present_and_every_absent_key_is_proved(tree):
    for key, value in PRESENT.items():
        verify(tree.root, key, value, tree.prove(key))
    proofs = {key: tree.prove(key) for key in ABSENT}
    for key, proof in proofs.items():
        verify(tree.root, key, None, proof)
    assert {bool(other_of(proof)) for proof in proofs.values()} == {True, False}


@pytest.mark.parametrize("size", [0, 1, 2, 17])
def test_small_states(size):
    store = MemoryStore()
    tree = StateTree(store)
    model = {b"%d" % n: b"" for n in range(size)}
    advance(store, tree, model)
    for key in [b"%d" % n for n in range(40)]:
        verify(tree.root, key, model.get(key), tree.prove(key))
        assert not is_shown(tree.root, key, None if key in model else b"", tree.prove(key))


def test_a_proof_shows_no_other_value_key_or_root(tree):
    for key in [*list(PRESENT)[:20], *ABSENT[:40]]:
        proof, value = tree.prove(key), PRESENT.get(key)
        for wrong in (None, b"", b"value 9", b"value"):
            assert is_shown(tree.root, key, wrong, proof) == (wrong == value)
        assert not is_shown(sha256(b"").digest(), key, value, proof)
        for other in PRESENT:
            if other != key:
                assert not is_shown(tree.root, other, None, proof)
                assert is_shown(tree.root, other, PRESENT[other], proof) is False


@pytest.mark.parametrize("key", [b"study/3", b"study/1000", b"study/1001", b"study/1007"])
def test_a_proof_with_any_byte_changed_or_cut_shows_nothing(tree, key):
    proof, value = tree.prove(key), PRESENT.get(key)
    verify(tree.root, key, value, proof)
    mutants = [proof[:cut] for cut in range(len(proof))]
    mutants += [proof + b"\x00", proof + proof, b"\x00" + proof]
    for offset in range(len(proof)):
        for mask in (0x01, 0x80, 0xFF):
            mutants.append(proof[:offset] + bytes([proof[offset] ^ mask]) + proof[offset + 1 :])
    statements = [
        (k, v) for k in (key, b"study/4", b"study/1002") for v in (None, value, b"value 4")
    ]
    for mutant in mutants:
        assert not any(is_shown(tree.root, k, v, mutant) for k, v in statements)


def test_a_neighbour_of_another_place_shows_no_absence(tree):
    """The attack: to deny a key by showing another pair and its true path."""
    denied = b"study/3"
    for key, value in PRESENT.items():
        depth, bitmap, hashes, _ = unpack(tree.prove(key))
        pair = sha256(key).digest() + sha256(value).digest()
        assert not is_shown(tree.root, denied, None, pack((depth, bitmap, hashes, pair)))


def test_a_hash_inside_the_tree_cannot_pose_as_a_leaf(tree):
    """Leaves and inner nodes are told apart, so a shorter path shows nothing."""
    for key in list(PRESENT)[:30]:
        depth, bitmap, hashes, _ = unpack(tree.prove(key))
        siblings, bits = [], int.from_bytes(bitmap, "big")
        for place in range(3 * depth):
            is_there = bits >> (3 * depth - 1 - place) & 1
            siblings.append(hashes[:32] if is_there else bytes(32))
            hashes = hashes[32:] if is_there else hashes
        for shorter in range(depth):
            kept = siblings[: 3 * shorter]
            mask = int("".join(str(int(any(s))) for s in kept) or "0", 2)
            short = pack(
                (shorter, mask.to_bytes((3 * shorter + 7) // 8, "big"),
                 b"".join(s for s in kept if any(s)), b"")
            )  # fmt: skip
            assert not is_shown(tree.root, key, None, short)
            assert not is_shown(tree.root, key, PRESENT[key], short)


def test_an_empty_sibling_that_is_spelled_out_is_refused():
    store = MemoryStore()
    tree = StateTree(store)
    advance(store, tree, {b"1": b"", b"2": b""})
    depth, bitmap, hashes, other = unpack(tree.prove(b"1"))
    verify(tree.root, b"1", b"", pack((depth, bitmap, hashes, other)))
    count = 3 * depth
    bits = int.from_bytes(bitmap, "big")
    full = ((1 << count) - 1).to_bytes(len(bitmap), "big")
    rest, spelled = hashes, b""
    for place in range(count):
        is_there = bits >> (count - 1 - place) & 1
        spelled += rest[:32] if is_there else bytes(32)
        rest = rest[32:] if is_there else rest
    with pytest.raises(InvalidProof, match="empty sibling"):
        verify(tree.root, b"1", b"", pack((depth, full, spelled, other)))


def two_keys_apart():
    """A tree whose proofs have depth 1, and two of its keys."""
    store, first = MemoryStore(), b"0"
    digit = sha256(first).digest()[0] >> 6
    other = next(k for k in map(b"%d".__mod__, range(1, 99)) if sha256(k).digest()[0] >> 6 != digit)
    tree = StateTree(store)
    advance(store, tree, {first: b"", other: b""})
    return tree, first, other


def test_one_statement_has_one_proof():
    tree, key, _ = two_keys_apart()
    depth, bitmap, hashes, other = unpack(tree.prove(key))
    assert depth == 1
    verify(tree.root, key, b"", pack((1, bitmap, hashes, other)))
    with_padding = bytes([bitmap[0] | 0x80])
    for fields in (
        (True, bitmap, hashes, other),
        (1, with_padding, bytes(31) + b"\x01" + hashes, other),
        (1, with_padding, hashes + bytes(31) + b"\x01", other),
        (1, b"\x00" + bitmap, hashes, other),
        (1, bitmap, hashes + b"\x00", other),
        (1, bitmap, hashes, sha256(key).digest() + sha256(b"").digest()),
        (1, bitmap, hashes, other, b""),
    ):
        assert not is_shown(tree.root, key, b"", pack(fields))


def test_a_pair_that_sits_where_it_does_not_belong_shows_no_absence():
    """A root that no honest tree has: the pair of one key lies on the way of another."""
    _, key, other = two_keys_apart()
    pair = sha256(other).digest() + sha256(b"").digest()
    below = [bytes(32)] * 4
    below[sha256(key).digest()[0] >> 6] = sha256(b"\x00" + pair).digest()
    root = sha256(b"\x01" + b"".join(below)).digest()
    with pytest.raises(InvalidProof, match="another place"):
        verify(root, key, None, pack((1, b"\x00", b"", pair)))


@given(st.binary(max_size=300))
def test_random_bytes_are_no_proof(tree, data):
    for value in (None, b"v"):
        assert not is_shown(tree.root, b"study/3", value, data)


FIELDS = st.tuples(
    st.integers(-1, DEPTH_MAX + 1) | st.booleans() | st.none(),
    st.binary(max_size=8),
    st.binary(max_size=2).map(lambda seed: seed * 32),
    st.sampled_from([b"", b"x" * 63, b"x" * 64]),
)


@settings(max_examples=200)
@given(FIELDS)
def test_random_fields_are_no_proof(tree, fields):
    for value in (None, b"v"):
        assert not is_shown(tree.root, b"study/3", value, pack(fields))


@pytest.mark.parametrize(
    "data",
    [
        b"\x91" * 4000,
        b"\xdc\xff\xff",
        b"\xdd\xff\xff\xff\xff",
        b"\x94\xc0\xc0\xc0\xc0",
        b"\xc4\xff",
        pack((True, b"\x00", b"", b"")),
        pack((1, b"\x08", b"", b"")),
        pack((1, b"", b"", b"")),
    ],
)
def test_hostile_encodings_are_invalid_proofs(tree, data):
    with pytest.raises(InvalidProof):
        verify(tree.root, b"study/3", None, data)


def test_an_oversized_proof_is_refused_by_its_length(tree):
    with pytest.raises(InvalidProof, match="at most"):
        verify(tree.root, b"study/3", None, bytes(PROOF_BYTES_MAX + 1))


def test_the_largest_proof_fits_the_bound():
    largest = pack((DEPTH_MAX, b"\xff" * 48, b"\xff" * (32 * 3 * DEPTH_MAX), b"\xff" * 64))
    assert len(largest) <= PROOF_BYTES_MAX
