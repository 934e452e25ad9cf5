"""Signatures that cost a microsecond: a keyed hash, checked by one who knows every secret.

Who lacks a secret cannot sign for it, and one changed bit of what was signed makes the check fail;
that is all that consensus asks of Ed25519.
"""

from collections.abc import Callable, Iterable
from hashlib import blake2b

from consensus.authentication import SignatureCheck


class Keyring:
    """The keys of all validators of one simulated network."""

    def __init__(self, seed: int, count: int) -> None:
        self._secrets = [
            blake2b(b"%d/%d" % (seed, i), digest_size=32).digest() for i in range(count)
        ]
        self.public = [blake2b(secret, digest_size=32).digest() for secret in self._secrets]
        self._secret_of = dict(zip(self.public, self._secrets, strict=True))

    def signer(self, index: int) -> Callable[[bytes], bytes]:
        """Return the function that signs as validator `index`: 64 bytes."""
        secret = self._secrets[index]
        return lambda data: blake2b(data, key=secret, digest_size=64).digest()

    def verify(self, checks: Iterable[SignatureCheck]) -> bool:
        """Tell whether every one of `checks` holds."""
        for check in checks:
            secret = self._secret_of.get(check.public_key)
            if secret is None:
                return False
            if blake2b(check.signed, key=secret, digest_size=64).digest() != check.signature:
                return False
        return True
