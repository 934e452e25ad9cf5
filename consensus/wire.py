"""Canonical msgpack: one value, one byte string.

Every byte string that is hashed or signed anywhere in RadLedger is made by `pack` and read by
`unpack`. Values are None, bool, int (64 bits), bytes, str and tuples of these; there are no maps,
floats or extension types, because those have more than one encoding of what a reader would call
one value. `unpack` refuses what `pack` would not have written, so a digest names exactly one value.
"""

from typing import TypeAlias

import msgpack

Value: TypeAlias = bool | int | bytes | str | tuple["Value", ...] | None

DEPTH_MAX = 16
_BUFFER_BYTES = 512  # at first; it grows
_PLAIN = frozenset({type(None), bool, int, bytes, str})


class NotCanonical(ValueError):
    """The bytes are not the one encoding of any value that the protocol knows."""


def pack(value: object) -> bytes:
    """Return the canonical encoding of `value`; tuples and lists alike become arrays."""
    # One for each call. For an iterator over a named tuple the interpreter may collect garbage, and
    # in that run finalisers, callbacks, and other threads, which pack as well.
    encoded: bytes = msgpack.Packer(use_bin_type=True, buf_size=_BUFFER_BYTES).pack(value)
    return encoded


def unpack(data: bytes) -> Value:
    """Return the value that `data` encodes, with arrays as tuples.

    The caller bounds `len(data)` first; nothing here allocates more than a small multiple of it.
    Raises `NotCanonical` for anything that `pack` would not have produced byte for byte.
    """
    try:
        value: Value = msgpack.unpackb(
            data, use_list=False, raw=False, max_map_len=0, max_ext_len=0, strict_map_key=True
        )
        # Floats, empty maps and over-long integers all survive decoding; none survives these.
        canonical = _is_plain(value, DEPTH_MAX) and pack(value) == data
    except (ValueError, msgpack.UnpackException, RecursionError) as error:
        raise NotCanonical(f"not msgpack: {type(error).__name__}") from error
    if not canonical:
        raise NotCanonical("not the canonical encoding")
    return value


def _is_plain(value: object, depth: int) -> bool:
    if type(value) is not tuple:
        return type(value) in _PLAIN
    # One bound for all, not the interpreter's stack: nodes must agree on what is readable.
    if depth == 0:
        return False
    for item in value:
        kind = type(item)
        if kind not in _PLAIN and not (kind is tuple and _is_plain(item, depth - 1)):
            return False
    return True
