"""Damage that is damage whatever was there before."""


def last_byte_changed(data: bytes) -> bytes:
    """Return the bytes with another last one."""
    return data[:-1] + bytes([data[-1] ^ 1])
