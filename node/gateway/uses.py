"""Uses of a grant, each counted once: one file a use, with the signed transaction that counts it.

The file is durable before the transaction is sent, and the same bytes are sent again after a crash:
they execute once or never. It stays afterwards, as the note that this use was counted.
"""

import asyncio
import contextlib
import os
from pathlib import Path

from node.exchange.transfer.errors import NotPermitted
from node.gateway.acting import Acting
from node.ledger.block import OK
from node.ledger.errors import Refused
from node.ledger.limits import LIMIT_BOUNDS, Limits
from node.ledger.transaction import decode_transaction

TOKEN_BYTES_MAX = 32
_BYTES_MAX = 4_096
_WIDEST = Limits(**{name: high for name, (_, high) in LIMIT_BOUNDS.items()})
# The transaction can never execute any more; whether it did, only its receipt says.
_SPENT = frozenset({"expired", "replayed"})


class Uses:
    """The uses of this hospital's grants."""

    def __init__(self, folder: Path, acting: Acting) -> None:
        """Create the folder if need be. Raises `OSError`."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder, self._acting = folder, acting

    async def count(self, request_id: bytes, token: bytes) -> None:
        """Count the use named `token`, if it was not counted before.

        Raises `NotPermitted` with the contract's code, and what `Client.submit` raises.
        """
        if not 0 < len(token) <= TOKEN_BYTES_MAX:
            raise ValueError(f"a use's token has 1 to {TOKEN_BYTES_MAX} bytes")
        path = self._folder / f"{request_id.hex()}-{token.hex()}.use"
        raw = await asyncio.to_thread(_read, path)
        if raw is not None and await self._is_counted(raw):
            return
        if raw is None:
            _, raw = await self._acting.signed("access.use", (request_id,))
            await asyncio.to_thread(_write, path, raw)
        try:
            submitted = await self._acting.client.submit(raw)
        except Refused as refused:
            if await self._is_counted(raw):
                return
            if refused.permanent or refused.code in _SPENT:
                await asyncio.to_thread(_remove, path)
            raise
        if submitted.code != OK:
            await asyncio.to_thread(_remove, path)
            raise NotPermitted(str(submitted.code))

    async def _is_counted(self, raw: bytes) -> bool:
        try:
            transaction_id = decode_transaction(raw, _WIDEST).id
        except Refused:
            return False  # torn; it was never sent
        view = await self._acting.client.transaction(transaction_id)
        return view is not None and view.receipt.code == OK


def _read(path: Path) -> bytes | None:
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        return file.read(_BYTES_MAX)
    return None


def _write(path: Path, raw: bytes) -> None:
    new = path.with_suffix(".new")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:
        file.write(raw)
        file.flush()
        os.fsync(descriptor)
    new.replace(path)
    _sync(path.parent)


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)
    _sync(path.parent)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
