"""RFC 6962 trees: the published vectors of certificate transparency, and the definition."""

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.ledger.merkle import (
    EMPTY_ROOT,
    Frontier,
    consistency_proof,
    inclusion_proof,
    leaf_hash,
    node_hash,
    root,
    verify_consistency,
    verify_inclusion,
)

# The eight inputs that the certificate transparency projects publish, with their roots and proofs.
INPUTS = [
    "",
    "00",
    "10",
    "2021",
    "3031",
    "40414243",
    "5051525354555657",
    "606162636465666768696a6b6c6d6e6f",
]
LEAVES = [leaf_hash(bytes.fromhex(text)) for text in INPUTS]
ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
H01 = "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"
H23 = "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e"
H0123 = "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7"
H45 = "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a"
H67 = "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0"
H4567 = "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4"
H0 = "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d"
H1 = "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7"
H4 = "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b"

leaf_lists = st.lists(st.binary(max_size=3).map(leaf_hash), min_size=1, max_size=70)


def hexes(proof):
    return [each.hex() for each in proof]


def naive_root(leaves):
    """MTH of RFC 6962 §2.1, word for word."""
    if not leaves:
        return hashlib.sha256().digest()
    if len(leaves) == 1:
        return leaves[0]
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    return hashlib.sha256(b"\x01" + naive_root(leaves[:k]) + naive_root(leaves[k:])).digest()


def test_the_empty_tree_is_the_hash_of_nothing():
    assert root([]) == EMPTY_ROOT == Frontier().root() == naive_root([])
    assert EMPTY_ROOT.hex() == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


@pytest.mark.parametrize("size", range(1, 9))
def test_published_roots(size):
    frontier = Frontier()
    for leaf in LEAVES[:size]:
        frontier = frontier.with_leaf(leaf)
    assert root(LEAVES[:size]).hex() == frontier.root().hex() == ROOTS[size - 1]


@pytest.mark.parametrize(
    ("index", "size", "proof"),
    [
        (0, 1, []),
        (0, 8, [H1, H23, H4567]),
        (5, 8, [H4, H67, H0123]),
        (2, 3, [H01]),
        (1, 5, [H0, H23, H4]),
    ],
)
def test_published_inclusion_proofs(index, size, proof):
    assert hexes(inclusion_proof(LEAVES[:size], index)) == proof
    assert verify_inclusion(
        LEAVES[index], index, size, list(map(bytes.fromhex, proof)), bytes.fromhex(ROOTS[size - 1])
    )


@pytest.mark.parametrize(
    ("old", "new", "proof"),
    [(1, 1, []), (1, 8, [H1, H23, H4567]), (6, 8, [H45, H67, H0123]), (2, 5, [H23, H4])],
)
def test_published_consistency_proofs(old, new, proof):
    assert hexes(consistency_proof(LEAVES[:new], old)) == proof
    roots = bytes.fromhex(ROOTS[old - 1]), bytes.fromhex(ROOTS[new - 1])
    assert verify_consistency(old, new, *roots, list(map(bytes.fromhex, proof)))


@settings(deadline=None)
@given(leaf_lists)
def test_the_root_is_that_of_the_recursive_definition(leaves):
    frontier = Frontier()
    for leaf in leaves:
        frontier = frontier.with_leaf(leaf)
    assert root(leaves) == frontier.root() == naive_root(leaves)
    assert Frontier.decode(frontier.encode()) == frontier


@settings(deadline=None)
@given(leaf_lists, st.data())
def test_an_inclusion_proof_shows_its_leaf_and_nothing_else(leaves, data):
    index = data.draw(st.integers(0, len(leaves) - 1))
    size, leaf, expected = len(leaves), leaves[index], root(leaves)
    proof = inclusion_proof(leaves, index)
    assert verify_inclusion(leaf, index, size, proof, expected)
    assert not verify_inclusion(leaf_hash(b"other"), index, size, proof, expected)
    assert not verify_inclusion(leaf, index, size, proof, leaf_hash(b"other"))
    assert not verify_inclusion(leaf, index, size, [*proof, leaf], expected)
    assert not verify_inclusion(leaf, size, size, proof, expected)
    assert not verify_inclusion(leaf, -1, size, proof, expected)
    if proof:
        assert not verify_inclusion(leaf, index, size, proof[:-1], expected)
        at = data.draw(st.integers(0, len(proof) - 1))
        bent = [*proof[:at], leaf_hash(b"bent"), *proof[at + 1 :]]
        assert not verify_inclusion(leaf, index, size, bent, expected)


@settings(deadline=None)
@given(leaf_lists, st.data())
def test_a_consistency_proof_shows_an_earlier_tree_and_nothing_else(leaves, data):
    old = data.draw(st.integers(1, len(leaves)))
    size, old_root, new_root = len(leaves), root(leaves[:old]), root(leaves)
    proof = consistency_proof(leaves, old)
    assert verify_consistency(old, size, old_root, new_root, proof)
    assert not verify_consistency(old, size, leaf_hash(b"other"), new_root, proof)
    assert not verify_consistency(old, size, old_root, leaf_hash(b"other"), proof)
    assert not verify_consistency(old, size, old_root, new_root, [*proof, new_root])
    assert not verify_consistency(0, size, old_root, new_root, proof)
    assert not verify_consistency(size + 1, size, old_root, new_root, proof)
    if proof:
        assert not verify_consistency(old, size, old_root, new_root, proof[:-1])


@settings(deadline=None)
@given(
    st.integers(-2, 2**70),
    st.integers(-2, 2**70),
    st.lists(st.binary(min_size=32, max_size=32), max_size=70),
)
def test_nonsense_proofs_get_an_answer(first, second, proof):
    assert not verify_inclusion(bytes(32), first, second, proof, b"")
    assert not verify_consistency(first, second, b"x", b"y", proof)


def test_a_node_does_not_pass_for_a_leaf():
    # Without the two prefixes an inner node would be a leaf of a smaller tree with the same root.
    left, right = LEAVES[:2]
    assert leaf_hash(left + right) != node_hash(left, right)
    assert leaf_hash(b"\x01" + left + right) != node_hash(left, right)


def test_an_inner_node_is_not_proved_to_be_a_leaf():
    inner, proof = bytes.fromhex(H0123), [bytes.fromhex(H4567)]
    expected = bytes.fromhex(ROOTS[7])
    assert node_hash(inner, *proof) == expected
    assert not verify_inclusion(inner, 0, 8, proof, expected)
    assert not verify_consistency(4, 16, inner, expected, proof)


@pytest.mark.parametrize("index", [-1, 8])
def test_no_proof_of_a_leaf_that_is_not_there(index):
    with pytest.raises(ValueError, match="no leaf"):
        inclusion_proof(LEAVES, index)


@pytest.mark.parametrize("old", [0, 9])
def test_no_proof_of_a_tree_that_never_was(old):
    with pytest.raises(ValueError, match="comes before"):
        consistency_proof(LEAVES, old)


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_other_bytes_are_no_frontier(data):
    try:
        frontier = Frontier.decode(data)
    except ValueError:
        return
    assert frontier.encode() == data


def test_a_frontier_has_one_peak_for_each_bit():
    good = Frontier(2, (bytes(32),)).encode()
    assert Frontier.decode(good).size == 2
    for bad in (Frontier(3, (bytes(32),)), Frontier(2, (bytes(31),)), Frontier(-1, ())):
        with pytest.raises(ValueError, match="frontier"):
            Frontier.decode(bad.encode())
