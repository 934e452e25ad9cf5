"""What travels first and what is kept on disk: one encoding each, bounded, damage noticed."""

import contextlib
import os
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consensus.wire import pack, unpack
from node.exchange.hpke import WrapContext
from node.exchange.transfer import offer as offers
from node.exchange.transfer.errors import InvalidOffer, InvalidRecord
from node.exchange.transfer.offer import Delivery, Offer
from node.exchange.transfer.ports import Chunk, SealedStudy
from node.exchange.transfer.state import Deliveries, Transfer, Transfers

deliveries = st.builds(
    Delivery,
    st.binary(min_size=16, max_size=16),
    st.binary(min_size=16, max_size=16),
    st.integers(1, offers.VERSION_MAX),
    st.binary(min_size=32, max_size=32),
    st.binary(min_size=1, max_size=200),
    st.binary(max_size=50),
)
chunks = st.lists(
    st.builds(Chunk, st.binary(min_size=32, max_size=32), st.integers(1, offers.CHUNK_BYTES_MAX)),
    max_size=5,
    unique_by=lambda chunk: chunk.digest,
).map(tuple)
some_offers = st.builds(Offer, deliveries, st.binary(max_size=50), chunks)
DELIVERY = Delivery(b"\xa1" * 16, b"\xb1" * 16, 1, b"\xd1" * 32, b"wrapped", b"manifest")
OFFER = Offer(DELIVERY, b"index", (Chunk(b"\x01" * 32, 5), Chunk(b"\x02" * 32, 6)))
CONTEXT = WrapContext(
    b"\xc1" * 32, b"\xa1" * 16, b"\xb1" * 16, 1, b"\xd1" * 32, "ukaachen", "charite", b"\xe1" * 16
)


@given(some_offers)
def test_an_offer_is_read_as_it_was_written(offer):
    assert offers.decode_offer(offers.encode_offer(offer)) == offer
    assert offers.decode_delivery(offers.encode_delivery(offer.delivery)) == offer.delivery


@given(some_offers, st.data())
def test_damage_gives_the_documented_error_or_another_whole_offer(offer, data):
    encoded = offers.encode_offer(offer)
    at = data.draw(st.integers(0, len(encoded) - 1))
    flipped = bytearray(encoded)
    flipped[at] ^= data.draw(st.integers(1, 255))
    for damaged in (bytes(flipped), encoded[:at], encoded + b"\0", data.draw(st.binary())):
        for decode, encode in (
            (offers.decode_offer, offers.encode_offer),
            (offers.decode_delivery, offers.encode_delivery),
        ):
            with contextlib.suppress(InvalidOffer):
                assert encode(decode(damaged)) == damaged


def changed(place, value, inner=None):
    fields = list(unpack(offers.encode_offer(OFFER)))
    if inner is None:
        fields[place] = value
    else:
        fields[1] = (*fields[1][:inner], value, *fields[1][inner + 1 :])
    return pack(tuple(fields))


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (changed(0, 2), "upgrade"),
        (changed(0, True), "not as it must be"),
        (changed(2, bytes(offers.INDEX_BYTES_MAX + 1)), "not as it must be"),
        (changed(3, bytes(35)), "cut"),
        (changed(3, (b"\x01" * 32 + b"\0\0\0\5") * 2), "twice"),
        (changed(3, b"\x01" * 32 + bytes(4)), "no bytes"),
        (changed(3, b"\x01" * 32 + b"\xff" * 4), "more than"),
        (changed(3, bytes(36 * (offers.CHUNKS_MAX + 1))), "more than 1000000"),
        (changed(1, True, inner=0), "not as it must be"),
        (changed(1, True, inner=3), "not as it must be"),
        (changed(1, 0, inner=3), "not as it must be"),
        (changed(1, bytes(15), inner=1), "not as it must be"),
        (changed(1, b"", inner=5), "not as it must be"),
        (changed(1, bytes(offers.WRAPPED_BYTES_MAX + 1), inner=5), "not as it must be"),
        (b"", "cannot be read"),
        (bytes(offers.OFFER_BYTES_MAX + 1), "at most"),
    ],
)
def test_what_an_offer_may_not_be(data, told):
    with pytest.raises(InvalidOffer, match=told):
        offers.decode_offer(data)


def test_an_offer_is_of_the_version_that_was_delivered():
    study = SealedStudy(2, b"index", OFFER.chunks)
    with pytest.raises(InvalidOffer, match="not the one"):
        offers.make_offer(DELIVERY, study)
    assert offers.make_offer(DELIVERY, replace(study, version=1)) == OFFER


@pytest.mark.parametrize("name", ["chain_id", "request_id", "study_id", "version", "root"])
def test_a_manifest_opens_with_the_study_key_and_for_its_request_only(name):
    key = os.urandom(32)
    sealed = offers.seal_manifest(CONTEXT, key, b"manifest with its salt")
    assert offers.open_manifest(CONTEXT, key, sealed) == b"manifest with its salt"
    assert b"salt" not in sealed
    value = getattr(CONTEXT, name)
    other = replace(CONTEXT, **{name: 2 if name == "version" else b"\0" + value[1:]})
    for context, secret, text in (
        (other, key, sealed),
        (CONTEXT, os.urandom(32), sealed),
        (CONTEXT, key, sealed[:-1]),
        (CONTEXT, key, b""),
    ):
        with pytest.raises(InvalidOffer, match="does not open"):
            offers.open_manifest(context, secret, text)


def test_a_key_is_wrapped_once(tmp_path):
    kept = Deliveries(tmp_path)
    assert kept.put(DELIVERY) == DELIVERY
    again = Deliveries(tmp_path)
    assert again.put(replace(DELIVERY, wrapped=b"another text of the same key")) == DELIVERY
    assert list(again.requests()) == [DELIVERY.request_id]
    again.forget(DELIVERY.request_id)
    again.forget(DELIVERY.request_id)
    assert again.get(DELIVERY.request_id) is None


def test_a_transfer_survives_with_its_liars(tmp_path):
    transfers = Transfers(tmp_path)
    transfers.save(Transfer(OFFER).with_liar("gamma").with_liar("gamma").with_liar("delta"))
    kept = Transfers(tmp_path).get(DELIVERY.request_id)
    assert kept == Transfer(OFFER, ("delta", "gamma"))
    assert list(transfers.requests()) == [DELIVERY.request_id]
    transfers.forget(DELIVERY.request_id)
    assert transfers.get(DELIVERY.request_id) is None


def test_a_torn_write_leaves_what_was_there(tmp_path):
    transfers = Transfers(tmp_path)
    transfers.save(Transfer(OFFER))
    (tmp_path / f"{DELIVERY.request_id.hex()}.transfer.new").write_bytes(b"half")
    again = Transfers(tmp_path)
    assert again.get(DELIVERY.request_id) == Transfer(OFFER)
    assert [path.suffix for path in tmp_path.iterdir()] == [".transfer"]


@pytest.mark.parametrize("content", [b"", b"half", pack((2, b"", ())), pack((1, b"", ()))])
def test_a_damaged_record_is_named(tmp_path, content):
    (tmp_path / f"{DELIVERY.request_id.hex()}.transfer").write_bytes(content)
    (tmp_path / f"{DELIVERY.request_id.hex()}.delivery").write_bytes(content)
    for kept in (Transfers(tmp_path), Deliveries(tmp_path)):
        with pytest.raises(InvalidRecord, match=DELIVERY.request_id.hex()):
            kept.get(DELIVERY.request_id)


def test_files_are_private_and_named_by_request_only(tmp_path):
    Deliveries(tmp_path / "kept").put(DELIVERY)
    (path,) = (tmp_path / "kept").iterdir()
    assert path.stat().st_mode & 0o077 == 0
    assert path.parent.stat().st_mode & 0o077 == 0
    with pytest.raises(ValueError, match="16 bytes"):
        Deliveries(tmp_path).get(b"../../etc/shadow2")
