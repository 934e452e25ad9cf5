"""Canonical msgpack: one value, one byte string.

Every byte string that is hashed or signed anywhere in RadLedger is made by `pack` and read by
`unpack`. Values are None, bool, int (64 bits), bytes, str and tuples of these; there are no maps,
floats or extension types, because those have more than one encoding of what a reader would call
one value. `unpack` refuses what `pack` would not have written, so a digest names exactly one value.
"""

from typing import TypeAlias, Union

import msgpack

Value: TypeAlias = Union[None, bool, int, bytes, str, tuple["Value", ...]]


class NotCanonical(ValueError):
    """The bytes are not the one encoding of any value that the protocol knows."""


def pack(value: object) -> bytes:
    """Return the canonical encoding of `value`; tuples and lists alike become arrays."""
    encoded: bytes = msgpack.packb(value, use_bin_type=True)
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
    except (ValueError, msgpack.UnpackException, RecursionError) as error:
        raise NotCanonical(f"not msgpack: {type(error).__name__}") from error
    # Floats, empty maps and over-long integers all survive decoding; none survives this.
    if pack(value) != data or _has_foreign(value):
        raise NotCanonical("not the canonical encoding")
    return value


def _has_foreign(value: object) -> bool:
    kind = type(value)
    if kind is tuple:
        return any(map(_has_foreign, value))  # type: ignore[call-overload]
    return kind not in _PLAIN


_PLAIN = frozenset({type(None), bool, int, bytes, str})
