"""The one Ed25519 verifier of a network: RFC 8032, by the cryptography package (OpenSSL).

Nodes that disagree about one signature split the chain, so the edge cases belong to the protocol
version and tests pin each of them:

- A public key that is not canonical (y >= p) or of small order verifies nothing. This rule is ours:
  with a key of small order one signature fits many messages.
- S >= L is refused, and so is an R that is not the canonical encoding: R is compared as bytes.
- The equation is the one without the cofactor: [S]B = R + [k]A. A key with a small-order part
  besides its prime-order part is accepted when this holds.
- A key or signature of the wrong length, or a key that is no point, verifies nothing.
"""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import TypeAlias

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

# (public key, signed bytes, signature)
Check: TypeAlias = tuple[bytes, bytes, bytes]

KEYS_MAX = 16_384  # parsed keys kept; a consortium has fewer members that sign
SLICE_MIN = 16  # fewer checks than this are not worth another thread's wake-up

_P = 2**255 - 19
_D = -121665 * pow(121666, -1, _P) % _P
# The y coordinates of the eight points of small order (orders 1, 2, 4, 4, 8, 8, 8, 8).
_Y8 = 0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7
_SMALL_ORDER_Y = frozenset({0, 1, _P - 1, _Y8, _P - _Y8})


def is_sound_key(public_key: bytes) -> bool:
    """Return whether `public_key` is a canonical point of the curve and not of small order.

    For keys that are about to be registered; checks of signatures need not ask.
    """
    return _parsed(public_key) is not None and _is_point(public_key)


def is_valid(public_key: bytes, signed: bytes, signature: bytes) -> bool:
    """Return whether `signature` (64 bytes) is that of `public_key` (32 bytes) over `signed`."""
    key = _parsed(public_key)
    if key is None:
        return False
    try:
        key.verify(signature, signed)
    except InvalidSignature:
        return False
    return True


def verify_all(checks: Sequence[Check]) -> list[bool]:
    """Return the verdict on each check, in order. About 0.1 ms each: not for the event loop."""
    return [is_valid(public_key, signed, signature) for public_key, signed, signature in checks]


class SignatureVerifier:
    """Checks signatures in worker threads of its own; the package releases the GIL meanwhile."""

    def __init__(self, threads: int) -> None:
        if threads < 1:
            raise ValueError("a verifier needs at least one thread")
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="verify")

    async def verify(self, checks: Sequence[Check]) -> list[bool]:
        """Return the verdict on each check, in order; large groups are split over the threads.

        How much may wait is the caller's bound. Raises RuntimeError after `close`.
        """
        if not checks:
            return []
        loop = asyncio.get_running_loop()
        slices = min(self._threads, -(-len(checks) // SLICE_MIN))
        size = -(-len(checks) // slices)
        parts = await asyncio.gather(
            *(
                loop.run_in_executor(self._pool, verify_all, checks[start : start + size])
                for start in range(0, len(checks), size)
            )
        )
        return [verdict for part in parts for verdict in part]

    def close(self) -> None:
        """Let the threads end once their present work is done; what waits is cancelled."""
        self._pool.shutdown(wait=True, cancel_futures=True)


def _is_point(public_key: bytes) -> bool:
    """Return whether x² = (y² - 1) / (d y² + 1) has a root (RFC 8032 §5.1.3)."""
    y = int.from_bytes(public_key, "little") & (2**255 - 1)
    square = (y * y - 1) * pow(_D * y * y + 1, -1, _P)
    return pow(square, (_P - 1) // 2, _P) <= 1


@lru_cache(maxsize=KEYS_MAX)
def _parsed(public_key: bytes) -> Ed25519PublicKey | None:
    y = int.from_bytes(public_key, "little") & (2**255 - 1)
    if len(public_key) != 32 or y >= _P or y in _SMALL_ORDER_Y:
        return None
    try:
        return Ed25519PublicKey.from_public_bytes(public_key)
    except ValueError:
        return None
