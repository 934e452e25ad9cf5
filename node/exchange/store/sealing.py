"""Chunks and indexes under a study's key: AES-256-GCM (NIST SP 800-38D), bound to their place.

    chunk    format 1 (1) | method (1) | nonce (12) | ciphertext | tag (16)
             associated: "radledger/chunk/1", study id, version, position, final, method, size
    index    format 1 (1) | version (2, big-endian) | plain bytes (4, big-endian) | nonce (12)
             | ciphertext of the zstd-compressed index | tag (16)
             associated: "radledger/index/1", study id, version, plain bytes

A chunk that was reordered, replayed from another version or study, or taken for the last one opens
nowhere. Nonces are random: a version may be packed again after a crash, with other bytes, and a
counter would then repeat. A key seals far fewer than the 2^32 chunks that random nonces allow.
"""

import mmap
import secrets
from typing import NamedTuple, TypeAlias

import zstandard
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from consensus.wire import pack
from node.exchange.store.compression import compress, expand
from node.exchange.store.errors import Damaged, InvalidIndex

Data: TypeAlias = bytes | bytearray | memoryview
Buffer: TypeAlias = bytearray | mmap.mmap

KEY_BYTES = 32
NONCE_BYTES, TAG_BYTES = 12, 16
_FORMAT = 1
_HEAD_BYTES = 2 + NONCE_BYTES
_INDEX_HEAD_BYTES = 7
CHUNK_OVERHEAD_BYTES = _HEAD_BYTES + TAG_BYTES
# What does not compress fills whole pages of a disk: past the cache a part of one costs a read.
STORED_BYTES_MAX = 4 * 2**20
CHUNK_BYTES = STORED_BYTES_MAX - CHUNK_OVERHEAD_BYTES  # of plaintext; the last of a put has less
INDEX_BYTES_MAX = 64 * 2**20  # decoded: 100,000 instances of 600 bytes
_INDEX_LEVEL = 3


class Place(NamedTuple):
    """Where a chunk belongs."""

    study_id: bytes  # 16 bytes
    version: int  # in whose put it was packed
    position: int  # among the chunks of that put, from 0
    final: bool  # the last of that put

    def bound(self, method: int, plain_bytes: int) -> bytes:
        """Return what the chunk's tag covers besides the chunk."""
        return pack(("radledger/chunk/1", *self, method, plain_bytes))


def new_key() -> bytes:
    """Return 32 random bytes: a study's key."""
    return secrets.token_bytes(KEY_BYTES)


def seal_chunk(
    cipher: AESGCM, place: Place, plain: Data, level: int | None, buffer: Buffer
) -> memoryview:
    """Return the chunk of `plain`, compressed at zstd's `level` where it pays; None: never.

    It lies in `buffer`, of `STORED_BYTES_MAX` bytes or more: allocating 4 MiB anew for every chunk
    costs more than the cipher.
    """
    method, packed = compress(plain, level)
    nonce = secrets.token_bytes(NONCE_BYTES)
    sealed = memoryview(buffer)[: _HEAD_BYTES + len(packed) + TAG_BYTES]
    sealed[0], sealed[1], sealed[2:_HEAD_BYTES] = _FORMAT, method, nonce
    cipher.encrypt_into(nonce, packed, place.bound(method, len(plain)), sealed[_HEAD_BYTES:])
    return sealed


def open_chunk(cipher: AESGCM, place: Place, sealed: Data, plain_bytes: int) -> bytes:
    """Return the `plain_bytes` bytes of a chunk.

    Raises `Damaged` unless it was sealed under this key for this place and size.
    """
    view = memoryview(sealed)
    if not CHUNK_OVERHEAD_BYTES <= len(view) <= STORED_BYTES_MAX or view[0] != _FORMAT:
        raise Damaged("these bytes are no chunk")
    method, nonce = view[1], view[2:_HEAD_BYTES]
    try:
        packed = cipher.decrypt(nonce, view[_HEAD_BYTES:], place.bound(method, plain_bytes))
    except InvalidTag:
        raise Damaged(
            f"chunk {place.position} of version {place.version} is not what was sealed there"
        ) from None
    return expand(method, packed, plain_bytes)


def seal_index(key: bytes, study_id: bytes, version: int, plain: bytes) -> bytes:
    """Return the sealed index of a study's version."""
    nonce = secrets.token_bytes(NONCE_BYTES)
    packed = zstandard.ZstdCompressor(level=_INDEX_LEVEL).compress(plain)
    bound = _index_bound(study_id, version, len(plain))
    head = bytes([_FORMAT]) + version.to_bytes(2, "big") + len(plain).to_bytes(4, "big")
    return head + nonce + AESGCM(key).encrypt(nonce, packed, bound)


def open_index(key: bytes, study_id: bytes, sealed: bytes) -> tuple[int, bytes]:
    """Return the version and the plain bytes of a sealed index.

    Raises `InvalidIndex` unless it was sealed under `key` for this study.
    """
    least = _INDEX_HEAD_BYTES + NONCE_BYTES + TAG_BYTES
    if not least <= len(sealed) <= INDEX_BYTES_MAX or sealed[0] != _FORMAT:
        raise InvalidIndex("these bytes are no sealed index")
    version, size = int.from_bytes(sealed[1:3], "big"), int.from_bytes(sealed[3:7], "big")
    if size > INDEX_BYTES_MAX:
        raise InvalidIndex(f"the index has {size} bytes, the limit is {INDEX_BYTES_MAX}")
    nonce, body = sealed[_INDEX_HEAD_BYTES : least - TAG_BYTES], sealed[least - TAG_BYTES :]
    try:
        packed = AESGCM(key).decrypt(nonce, body, _index_bound(study_id, version, size))
        if zstandard.frame_content_size(packed) != size:
            raise InvalidIndex("the index does not expand to its size")
        return version, zstandard.ZstdDecompressor().decompress(packed)
    except InvalidTag:
        raise InvalidIndex("the index is not of this study, or not under this key") from None
    except zstandard.ZstdError as error:
        raise InvalidIndex("the index does not expand") from error


def _index_bound(study_id: bytes, version: int, size: int) -> bytes:
    return pack(("radledger/index/1", study_id, version, size))
