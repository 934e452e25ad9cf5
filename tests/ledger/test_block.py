"""Batches, headers, receipts and blocks: canonical bytes, and parts that belong together."""

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consensus.messages import SealCertificate
from consensus.wire import pack, unpack
from node.ledger.block import (
    SEALS_MAX,
    Batch,
    Block,
    Event,
    Header,
    Receipt,
    block_bytes_max,
    block_time,
    check_block,
    check_payload,
    decode_certificate,
    encode_certificate,
    receipts_root,
    transactions_root,
)
from node.ledger.errors import InvalidBlock
from node.ledger.limits import Limits
from node.ledger.merkle import EMPTY_ROOT, inclusion_proof, leaf_hash, verify_inclusion
from tests.vectors import make

LIMITS = Limits()
PARENT, BLOCK = make.block()
DECODERS = {
    "batch": (lambda data: Batch.decode(data, LIMITS), BLOCK.batch.encode()),
    "header": (Header.decode, BLOCK.header.encode()),
    "receipt": (Receipt.decode, make.receipts()[0].encode()),
    "failed receipt": (Receipt.decode, make.receipts()[1].encode()),
    "certificate": (decode_certificate, encode_certificate(BLOCK.certificate)),
    "block": (lambda data: Block.decode(data, LIMITS), BLOCK.encode()),
}


def encode(name, value):
    return encode_certificate(value) if name == "certificate" else value.encode()


@pytest.mark.parametrize("name", DECODERS)
def test_decode_inverts_encode(name):
    decode, data = DECODERS[name]
    assert encode(name, decode(data)) == data


@pytest.mark.parametrize("name", DECODERS)
@settings(deadline=None)
@given(data=st.data())
def test_damaged_bytes_are_refused_or_another_value(name, data):
    decode, good = DECODERS[name]
    kind = data.draw(st.sampled_from(["random", "cut", "longer", "flipped"]))
    if kind == "random":
        bad = data.draw(st.binary(max_size=400))
    elif kind == "cut":
        bad = good[: data.draw(st.integers(0, len(good) - 1))]
    elif kind == "longer":
        bad = good + data.draw(st.binary(min_size=1, max_size=9))
    else:
        at = data.draw(st.integers(0, len(good) - 1))
        bad = good[:at] + bytes([good[at] ^ data.draw(st.integers(1, 255))]) + good[at + 1 :]
    try:
        value = decode(bad)
    except InvalidBlock:
        return
    assert kind == "flipped"
    assert encode(name, value) == bad != good


@pytest.mark.parametrize("name", DECODERS)
@settings(deadline=None)
@given(
    value=st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-1, 3)
        | st.binary(max_size=33)
        | st.text(max_size=3),
        lambda inner: st.lists(inner, max_size=11).map(tuple),
        max_leaves=15,
    )
)
def test_any_other_value_is_refused(name, value):
    decode, _ = DECODERS[name]
    with pytest.raises(InvalidBlock):
        decode(pack(value))


@pytest.mark.parametrize("name", ["batch", "header", "block"])
def test_another_version_is_refused_with_both_versions_named(name):
    decode, good = DECODERS[name]
    with pytest.raises(InvalidBlock, match="version 2; this node knows version 1"):
        decode(pack((2, *unpack(good)[1:])))


def test_a_batch_is_bounded_distinct_and_not_empty():
    digests = tuple(bytes([i]) * 32 for i in range(3))
    assert Batch.decode(Batch(5, digests).encode(), Limits(batch_transactions_max=3))
    for bad, limits in [
        (Batch(5, digests), Limits(batch_transactions_max=2)),
        (Batch(5, ()), LIMITS),
        (Batch(5, (*digests, digests[0])), LIMITS),
        (Batch(5, (bytes(31),)), LIMITS),
        (Batch(0, digests), LIMITS),
        (Batch(2**53 + 1, digests), LIMITS),
    ]:
        with pytest.raises(InvalidBlock, match="batch"):
            Batch.decode(bad.encode(), limits)


def test_the_time_of_a_block_always_increases():
    assert block_time(100, Batch(200, (bytes(32),))) == 200
    assert block_time(100, Batch(100, (bytes(32),))) == 101
    assert block_time(100, Batch(5, (bytes(32),))) == 101
    assert block_time(100, None) == 101


@pytest.mark.parametrize(
    "bad",
    [
        Receipt(bytes(31)),
        Receipt(bytes(32), "Bad Code"),
        Receipt(bytes(32), ""),
        Receipt(bytes(32), "x" * 65),
        Receipt(bytes(32), "failed", -1),
        Receipt(bytes(32), "failed", True),
        Receipt(bytes(32), "failed", 0, "has spaces"),
        Receipt(bytes(32), "failed", 0, "", (Event("a.b", 0, ()),)),
        Receipt(bytes(32), "ok", 0),
        Receipt(bytes(32), "ok", None, "rule"),
        Receipt(bytes(32), "ok", None, "", (Event("A", 0, ()),)),
        Receipt(bytes(32), "ok", None, "", (Event("a.b", True, ()),)),
    ],
)
def test_a_receipt_says_one_thing_or_is_refused(bad):
    with pytest.raises(InvalidBlock, match="receipt"):
        Receipt.decode(bad.encode())


def test_roots_prove_single_transactions_and_receipts():
    encoded = [receipt.encode() for receipt in make.receipts()]
    leaves = [leaf_hash(each) for each in encoded]
    assert verify_inclusion(leaves[1], 1, 2, inclusion_proof(leaves, 1), receipts_root(encoded))
    digests = BLOCK.batch.transactions
    raw = make.transactions()[0].raw
    proof = inclusion_proof(digests, 0)
    assert verify_inclusion(leaf_hash(raw), 0, 2, proof, transactions_root(BLOCK.batch))
    assert transactions_root(None) == receipts_root([]) == EMPTY_ROOT


def test_a_whole_block_belongs_together():
    # Without a certificate it is good below a later block that has one.
    for block in (BLOCK, replace(BLOCK, certificate=None)):
        check_block(block, PARENT, LIMITS)
        assert Block.decode(block.encode(), LIMITS) == block


def sealed(header):
    """The block with another header that its certificate is about."""
    return replace(
        BLOCK, header=header, certificate=replace(BLOCK.certificate, header=header.digest)
    )


HEADER = BLOCK.header


@pytest.mark.parametrize(
    ("block", "word"),
    [
        (sealed(replace(HEADER, chain_id=bytes(32))), "chain"),
        (
            replace(
                sealed(replace(HEADER, height=2)),
                certificate=SealCertificate(2, replace(HEADER, height=2).digest, ()),
            ),
            "height",
        ),
        (sealed(replace(HEADER, parent=bytes(32))), "parent"),
        (sealed(replace(HEADER, time_ms=HEADER.time_ms + 1)), "time"),
        (sealed(replace(HEADER, validators_digest=bytes(32))), "validator set"),
        (sealed(replace(HEADER, transactions_root=bytes(32))), "transaction root"),
        (replace(BLOCK, header=replace(HEADER, state_root=bytes(32))), "certificate"),
        (replace(BLOCK, certificate=replace(BLOCK.certificate, height=2)), "certificate"),
        (replace(BLOCK, bodies=BLOCK.bodies[::-1]), "body 0"),
        (replace(BLOCK, bodies=BLOCK.bodies[:1]), "one body for each"),
        (replace(BLOCK, bodies=(*BLOCK.bodies, b"")), "one body for each"),
        (replace(BLOCK, bodies=(BLOCK.bodies[0], BLOCK.bodies[1] + b"x")), "body 1"),
        (replace(BLOCK, batch=None), "time"),
        (
            replace(BLOCK, batch=Batch(BLOCK.batch.time_ms, BLOCK.batch.transactions[::-1])),
            "body 0",
        ),
        (replace(BLOCK, batch=replace(BLOCK.batch, time_ms=BLOCK.batch.time_ms + 5)), "time"),
    ],
)
def test_a_block_of_foreign_parts_is_refused(block, word):
    with pytest.raises(InvalidBlock, match=word):
        check_block(block, PARENT, LIMITS)


def test_a_null_block_has_neither_batch_nor_bodies():
    header = replace(HEADER, time_ms=PARENT.time_ms + 1, transactions_root=EMPTY_ROOT)
    null = replace(sealed(header), batch=None, bodies=())
    check_block(null, PARENT, LIMITS)
    assert Block.decode(null.encode(), LIMITS) == null
    with pytest.raises(InvalidBlock, match="one body for each"):
        check_block(replace(null, bodies=BLOCK.bodies[:1]), PARENT, LIMITS)


def test_the_bodies_of_a_batch_are_bounded_together():
    size = sum(map(len, BLOCK.bodies))
    check_payload(BLOCK.batch, BLOCK.bodies, Limits(batch_bytes_max=size))
    with pytest.raises(InvalidBlock, match="bytes"):
        check_payload(BLOCK.batch, BLOCK.bodies, Limits(batch_bytes_max=size - 1))


def test_the_largest_block_is_within_the_bound_and_more_is_refused_unread():
    limits = Limits(
        transaction_bytes_max=1_024, batch_transactions_max=100, batch_bytes_max=102_400
    )
    bodies = tuple(bytes([i]) * 1_024 for i in range(100))
    batch = Batch(2**53, tuple(map(leaf_hash, bodies)))
    seals = tuple((i, bytes(64)) for i in range(SEALS_MAX))
    largest = Block(HEADER, batch, bodies, SealCertificate(2**53, bytes(32), seals))
    assert len(largest.encode()) <= block_bytes_max(limits)
    assert Block.decode(largest.encode(), limits) == largest
    with pytest.raises(InvalidBlock, match="at most"):
        Block.decode(bytes(block_bytes_max(limits) + 1), limits)


@pytest.mark.parametrize(
    "seals",
    [
        ((1, bytes(64)), (0, bytes(64))),
        ((0, bytes(64)), (0, bytes(64))),
        ((0, bytes(63)),),
        ((-1, bytes(64)),),
        ((True, bytes(64)),),
        ((0,),),
        tuple((i, bytes(64)) for i in range(SEALS_MAX + 1)),
    ],
)
def test_a_certificate_has_one_seal_of_each_sender_in_order(seals):
    with pytest.raises(InvalidBlock, match="certificate"):
        decode_certificate(pack((1, bytes(32), seals)))


@pytest.mark.parametrize("part", ["batch", "headers", "receipts", "certificate", "block"])
def test_the_golden_vectors_hold(part):
    assert json.loads(json.dumps(make.document()[part])) == json.loads(make.PATH.read_text())[part]
