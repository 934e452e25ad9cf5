"""No byte of a proof file can be changed unnoticed, and nothing but `InvalidProof` comes of it."""

import random
from functools import lru_cache
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consensus.wire import pack, unpack
from node.ledger import merkle
from node.ledger.block import Header
from node.ledger.proofs import verify as verification
from node.ledger.proofs.format import MAGIC, decode, encode, with_digest
from node.ledger.proofs.make import climb
from node.ledger.proofs.questions import KINDS, SUBJECTS, BadRequest, read_request
from node.ledger.proofs.verify import verify
from node.ledger.verifier import is_valid
from storage.errors import InvalidProof
from tests.ledger.second_verifier import Invalid
from tests.ledger.second_verifier import verify as verify_again
from tests.ledger.test_proofs import PROOFS, SECOND, WORLD
from tests.vectors.make_proofs import GENESIS

SMALL = PROOFS["time"]
MASKS = (1, 2, 4, 8, 16, 32, 64, 128, 255, 0x55)


@pytest.fixture(autouse=True, scope="module")
def signatures_are_checked_once():
    """The same signature over the same bytes is asked for tens of thousands of times here."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(verification, "is_valid", lru_cache(65_536)(is_valid))
        yield


def proves(data):
    """Whether `data` verifies; any other exception than `InvalidProof` fails the test."""
    try:
        verify(data, GENESIS)
    except InvalidProof:
        return False
    return True


def lies(data):
    """Whether `data`, with its digest made anew, verifies and states what is not so.

    Of one place that is empty more than one key is absent, and without its lineage a proof of time
    is one of the sealed header; whatever else verifies must be the file that it was.
    """
    data = with_digest(data)
    if data in PROOFS.values() or not proves(data):
        return False
    proved = verify(data, GENESIS)
    if proved.kind == "time":
        stored = WORLD.node.chain.header(proved.header.height)
        return stored is None or Header.decode(stored) != proved.header
    rows = proved.rows
    get = WORLD.node.chain.state_value
    return not rows or any(value is not None or get(key) is not None for key, value in rows)


def proves_again(data):
    """The same by the second verifier."""
    try:
        verify_again(data, SECOND)
    except Invalid:
        return False
    return True


def mutated(data, at, mask):
    return data[:at] + bytes((data[at] ^ mask,)) + data[at + 1 :]


def test_no_byte_of_a_small_file_can_be_changed():
    assert proves(SMALL)
    survivors = [
        (at, mask) for at in range(len(SMALL)) for mask in MASKS if proves(mutated(SMALL, at, mask))
    ]
    assert survivors == []
    assert not any(lies(mutated(SMALL, at, mask)) for at in range(len(SMALL)) for mask in MASKS)


@pytest.mark.parametrize("name", PROOFS)
def test_no_byte_of_any_kind_of_file_can_be_changed(name):
    data, chosen = PROOFS[name], random.Random(name)
    masks = [chosen.randrange(1, 256) for _ in data]
    assert [at for at, mask in enumerate(masks) if proves(mutated(data, at, mask))] == []


@pytest.mark.parametrize("name", PROOFS)
def test_no_byte_can_be_changed_into_a_lie_by_who_makes_the_digest_anew(name):
    data, chosen = PROOFS[name], random.Random(name)
    masks = [1 << chosen.randrange(8) for _ in data]
    assert [at for at, mask in enumerate(masks) if lies(mutated(data, at, mask))] == []
    assert [at for at in range(len(data)) if lies(mutated(data, at, 0xFF))] == []


@pytest.mark.parametrize("name", PROOFS)
def test_a_file_is_whole_or_nothing(name):
    data = PROOFS[name]
    assert not any(proves(data[:length]) for length in range(len(data)))
    for more in (b"\0", b"\xc0", data):
        assert not proves(data + more)
        assert not proves(more + data)
    assert not any(proves(data[:at] + data[at + 1 :]) for at in range(len(data)))


def test_parts_of_two_good_files_make_no_third():
    """Statement and details of one file with the headers of another."""
    files = [unpack(data) for data in PROOFS.values() if b"\xa4time" not in data[:64]]
    head = WORLD.node.executor.head
    mixed = 0
    for (*begin, first, _), (*_, second, _) in product(files, files):
        joined = with_digest(pack((*begin, (*second[:3], first[3]), bytes(32))))
        if joined not in PROOFS.values() and proves(joined):
            assert verify(joined, GENESIS).header.state_root == head.state_root
            assert begin[3][0] != "transaction"
        else:
            mixed += 1
    assert mixed > 50


def leaves_of(value, path=()):
    """Every place in a decoded file, and what stands there."""
    yield path, value
    if isinstance(value, tuple):
        for index, each in enumerate(value):
            yield from leaves_of(each, (*path, index))


def put(value, path, new):
    if not path:
        return new
    return (*value[: path[0]], put(value[path[0]], path[1:], new), *value[path[0] + 1 :])


PLACES = {name: list(leaves_of(unpack(data))) for name, data in PROOFS.items()}
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.binary(max_size=70)
    | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=4).map(tuple),
    max_leaves=8,
)


@settings(max_examples=600, deadline=None)
@given(st.data())
def test_no_part_can_be_another_value(data):
    name = data.draw(st.sampled_from(sorted(PROOFS)))
    path, old = data.draw(st.sampled_from(PLACES[name]))
    new = data.draw(values)
    changed = pack(put(unpack(PROOFS[name]), path, new))
    assert changed == PROOFS[name] or not proves(changed)
    assert not lies(changed), (path, old, new)
    assert proves(with_digest(changed)) == proves_again(with_digest(changed))


@pytest.mark.parametrize("name", ["time, under the history", "time, under the next height"])
def test_a_proof_of_time_without_its_lineage_is_one_of_the_sealed_header(name):
    alone = with_digest(pack(put(unpack(PROOFS[name]), (4, 2), None)))
    proved = verify(alone, GENESIS)
    assert proved.header == proved.anchor != verify(PROOFS[name], GENESIS).header
    assert not lies(alone)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=400) | values.map(pack))
def test_anything_else_is_no_proof(data):
    assert not proves(data)


@settings(max_examples=300, deadline=None)
@given(values, values)
def test_a_file_with_the_right_beginning_is_no_proof(statement, evidence):
    data = pack((MAGIC, 1, GENESIS.chain_id, statement, evidence, bytes(32)))
    assert not proves(with_digest(data))


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(PROOFS)), st.data())
def test_what_decodes_encodes_to_the_same_bytes(name, data):
    at = data.draw(st.integers(0, len(PROOFS[name]) - 1))
    changed = with_digest(mutated(PROOFS[name], at, data.draw(st.integers(1, 255))))
    try:
        file = decode(changed)
    except InvalidProof:
        return
    assert encode(file) == changed


@given(st.integers(1, 70), st.data())
def test_the_way_up_from_any_leaf_leads_to_the_root(size, data):
    leaves = [merkle.leaf_hash(bytes((number,))) for number in range(size)]
    position = data.draw(st.integers(0, size - 1))
    sides, path = climb(leaves, position)
    computed = leaves[position]
    for beside in path:
        pair = (beside, computed) if sides & 1 else (computed, beside)
        computed, sides = merkle.node_hash(*pair), sides >> 1
    assert (computed, sides) == (merkle.root(leaves), 0)


@given(
    st.sampled_from([*KINDS, "", "everything"]),
    st.lists(
        st.sampled_from([*SUBJECTS, "north", "00" * 16, "ff" * 32, "7", "-1", "٣", "zz"])
        | st.text(max_size=40),
        max_size=4,
    ),
)
def test_a_question_is_understood_or_answered_with_a_sentence(kind, words):
    try:
        request = read_request(kind, words)
    except BadRequest:
        return
    there = (request.height is not None, request.transaction_id is not None, bool(request.keys))
    assert sum(there) == 1
