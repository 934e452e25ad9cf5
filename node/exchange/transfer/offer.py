"""What a custodian hands to the institution that was granted access, and how it is kept.

Canonical msgpack:

    delivery  (format, request id (16), study id (16), version, root (32), wrapped key,
               sealed manifest)
    offer     (format, delivery, index ciphertext, chunk rows)

A chunk row is the digest (32 bytes) and the size (4, big-endian). The manifest, with the salt that
turns it into the root on the chain, is sealed under a key that HKDF makes of the study key, so only
who can unwrap that key can read it: nonce (12) || AES-256-GCM.
"""

import secrets
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from consensus.wire import NotCanonical, Value, pack, unpack
from node.exchange.hpke import WrapContext, wrapped_digest
from node.exchange.transfer.errors import InvalidOffer
from node.exchange.transfer.ports import Chunk, SealedStudy

FORMAT = 1
ID_BYTES, DIGEST_BYTES = 16, 32
WRAPPED_BYTES_MAX = 2_048
MANIFEST_BYTES_MAX = 64 << 20
INDEX_BYTES_MAX = 64 << 20
OFFER_BYTES_MAX = 192 << 20
CHUNK_BYTES_MAX = 5 << 20  # the store's 4 MiB, and what sealing adds
CHUNKS_MAX = 1_000_000  # 4 TB
VERSION_MAX = 1 << 31

_ROW_BYTES = DIGEST_BYTES + 4
_NONCE_BYTES = 12
_MANIFEST_TAG = b"radledger/manifest/1"


@dataclass(frozen=True, slots=True)
class Delivery:
    """A study key as it was wrapped once, with the manifest that proves the images."""

    request_id: bytes  # 16 bytes
    study_id: bytes  # 16 bytes
    version: int
    root: bytes  # 32 bytes, of that version
    wrapped: bytes  # enc || ct; its SHA-256 stands on the chain
    manifest: bytes  # sealed, or empty when it comes another way


@dataclass(frozen=True, slots=True)
class Offer:
    """All that a receiver needs before the first chunk."""

    delivery: Delivery
    index: bytes  # ciphertext
    chunks: tuple[Chunk, ...]

    @property
    def bytes_total(self) -> int:
        """Bytes of all chunks."""
        return sum(chunk.size for chunk in self.chunks)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the receiver knows from the ledger, by which it judges an offer."""

    request_id: bytes
    study_id: bytes
    wrapped_digest: bytes  # of the key as delivered
    roots: tuple[tuple[int, bytes], ...]  # (version, root) of the study's versions
    bytes_max: int  # of ciphertext that the receiver has room for


def make_offer(delivery: Delivery, study: SealedStudy) -> Offer:
    """Return the offer of a stored version. Raises `InvalidOffer` if it is another version."""
    if study.version != delivery.version:
        raise InvalidOffer("the stored version is not the one that was delivered")
    return Offer(delivery, study.index, study.chunks)


def require_wanted(offer: Offer, wanted: Wanted) -> None:
    """Raise `InvalidOffer` unless the offer is of what the ledger says."""
    delivery = offer.delivery
    if (delivery.request_id, delivery.study_id) != (wanted.request_id, wanted.study_id):
        raise InvalidOffer("it is of another request or study")
    if wrapped_digest(delivery.wrapped) != wanted.wrapped_digest:
        raise InvalidOffer("the wrapped key is not the one whose digest is on the ledger")
    if (delivery.version, delivery.root) not in wanted.roots:
        raise InvalidOffer("its version and root are not on the ledger")
    if offer.bytes_total > wanted.bytes_max:
        raise InvalidOffer(
            f"the study has {offer.bytes_total} bytes; there is room for {wanted.bytes_max}"
        )


def encode_delivery(delivery: Delivery) -> bytes:
    """Return the canonical bytes."""
    return pack(_delivery_fields(delivery))


def decode_delivery(data: bytes) -> Delivery:
    """Return the delivery. Raises `InvalidOffer`."""
    return _delivery(_unpack(data))


def encode_offer(offer: Offer) -> bytes:
    """Return the canonical bytes; for a large study in a thread."""
    rows = b"".join(chunk.digest + chunk.size.to_bytes(4, "big") for chunk in offer.chunks)
    return pack((FORMAT, _delivery_fields(offer.delivery), offer.index, rows))


def decode_offer(data: bytes) -> Offer:
    """Return the offer. Raises `InvalidOffer`: damaged, over a limit, or a chunk named twice."""
    match _unpack(data):
        case (1, tuple(fields), bytes(index), bytes(rows)) if len(index) <= INDEX_BYTES_MAX:
            return Offer(_delivery(fields), index, _chunks(rows))
        case _:
            raise InvalidOffer("the offer is not as it must be")


def seal_manifest(context: WrapContext, study_key: bytes, manifest: bytes) -> bytes:
    """Return the manifest, readable only with the study key and for this request."""
    if len(manifest) > MANIFEST_BYTES_MAX - 64:
        raise ValueError(f"a manifest that travels has at most {MANIFEST_BYTES_MAX - 64} bytes")
    nonce = secrets.token_bytes(_NONCE_BYTES)
    return nonce + _manifest_cipher(study_key).encrypt(nonce, manifest, _manifest_place(context))


def open_manifest(context: WrapContext, study_key: bytes, sealed: bytes) -> bytes:
    """Return the manifest. Raises `InvalidOffer` if it was sealed for something else."""
    nonce, rest = sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:]
    try:
        return _manifest_cipher(study_key).decrypt(nonce, rest, _manifest_place(context))
    except (InvalidTag, ValueError) as error:
        raise InvalidOffer("the manifest does not open with the study's key") from error


def _manifest_cipher(study_key: bytes) -> AESGCM:
    return AESGCM(HKDF(SHA256(), 32, salt=None, info=_MANIFEST_TAG).derive(study_key))


def _manifest_place(context: WrapContext) -> bytes:
    parts = (context.chain_id, context.request_id, context.study_id, context.version, context.root)
    return _MANIFEST_TAG + pack(parts)


def _unpack(data: bytes) -> Value:
    if len(data) > OFFER_BYTES_MAX:
        raise InvalidOffer(f"{len(data)} bytes; at most {OFFER_BYTES_MAX}")
    try:
        value = unpack(data)
    except NotCanonical as error:
        raise InvalidOffer("the offer cannot be read") from error
    if type(value) is not tuple or not value or type(value[0]) is not int:
        raise InvalidOffer("the offer is not as it must be")
    if value[0] > FORMAT:
        raise InvalidOffer(f"format {value[0]}; this program knows {FORMAT}: upgrade it")
    return value


def _delivery_fields(delivery: Delivery) -> tuple[Value, ...]:
    return (
        FORMAT,
        delivery.request_id,
        delivery.study_id,
        delivery.version,
        delivery.root,
        delivery.wrapped,
        delivery.manifest,
    )


def _delivery(value: Value) -> Delivery:
    if type(value) is tuple and value and type(value[0]) is not int:
        raise InvalidOffer("the delivery is not as it must be")  # True is 1 to a pattern
    match value:
        case (
            1,
            bytes(request_id),
            bytes(study_id),
            int(version),
            bytes(root),
            bytes(wrapped),
            bytes(manifest),
        ) if (
            (len(request_id), len(study_id), len(root)) == (ID_BYTES, ID_BYTES, DIGEST_BYTES)
            and type(version) is int  # a bool is one too
            and 0 < version <= VERSION_MAX
            and 0 < len(wrapped) <= WRAPPED_BYTES_MAX
            and len(manifest) <= MANIFEST_BYTES_MAX
        ):
            return Delivery(request_id, study_id, version, root, wrapped, manifest)
        case _:
            raise InvalidOffer("the delivery is not as it must be")


def _chunks(rows: bytes) -> tuple[Chunk, ...]:
    count, rest = divmod(len(rows), _ROW_BYTES)
    if rest or count > CHUNKS_MAX:
        raise InvalidOffer(f"the list of chunks is cut, or has more than {CHUNKS_MAX}")
    chunks = tuple(
        Chunk(
            rows[at : at + DIGEST_BYTES], int.from_bytes(rows[at + DIGEST_BYTES : at + _ROW_BYTES])
        )
        for at in range(0, len(rows), _ROW_BYTES)
    )
    if any(not 0 < chunk.size <= CHUNK_BYTES_MAX for chunk in chunks):
        raise InvalidOffer(f"a chunk has no bytes, or more than {CHUNK_BYTES_MAX}")
    if len({chunk.digest for chunk in chunks}) != count:
        raise InvalidOffer("a chunk is named twice")
    return chunks
