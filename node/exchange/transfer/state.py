"""What outlives a crash: deliveries on the custodian's side, transfers on the receiver's.

One small file each, in a folder of its own, replaced as a whole and durable on return. Every call
waits for the disk: make it in a thread. Which chunks have arrived is not noted here: the store,
which takes only whole and verified ones, knows it better than any note.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from consensus.wire import NotCanonical, pack, unpack
from node.exchange.transfer.errors import InvalidOffer, InvalidRecord
from node.exchange.transfer.offer import (
    ID_BYTES,
    OFFER_BYTES_MAX,
    Delivery,
    Offer,
    decode_delivery,
    decode_offer,
    encode_delivery,
    encode_offer,
)

FORMAT = 1
LIARS_MAX = 64


class Deliveries:
    """The keys that this hospital wrapped, by request.

    A key is wrapped once: HPKE gives another text each time, and only one digest stands on the
    chain. So `put` comes before `access.deliver`, and after a crash `get` gives what was put.
    """

    def __init__(self, folder: Path) -> None:
        """Create the folder if need be. Raises `OSError`."""
        self._files = _Folder(folder, ".delivery")

    def put(self, delivery: Delivery) -> Delivery:
        """Keep a delivery; return it, or the one that is kept of this request already.

        Raises `OSError`, or `InvalidRecord` for a kept one that is damaged.
        """
        kept = self.get(delivery.request_id)
        if kept is None:
            self._files.write(delivery.request_id, encode_delivery(delivery))
        return kept or delivery

    def get(self, request_id: bytes) -> Delivery | None:
        """Return the delivery of a request, or None. Raises `InvalidRecord`."""
        data = self._files.read(request_id)
        if data is None:
            return None
        try:
            return decode_delivery(data)
        except InvalidOffer as error:
            raise InvalidRecord(f"{self._files.path(request_id)}: {error}") from error

    def forget(self, request_id: bytes) -> None:
        """Remove a delivery, when its request is over or the study was erased."""
        self._files.remove(request_id)

    def forget_study(self, study_id: bytes) -> None:
        """Remove all deliveries of a study: what is wrapped in them opens it and its salt."""
        for request_id in list(self.of_study(study_id)):
            self.forget(request_id)

    def of_study(self, study_id: bytes) -> Iterator[bytes]:
        """Yield the ids of the requests that have a delivery of a study. Reads all of them."""
        for request_id in self.requests():
            with contextlib.suppress(InvalidRecord):
                delivery = self.get(request_id)
                if delivery is not None and delivery.study_id == study_id:
                    yield request_id

    def requests(self) -> Iterator[bytes]:
        """Yield the ids of all requests with a delivery."""
        return self._files.ids()


@dataclass(frozen=True, slots=True)
class Transfer:
    """A transfer that has begun and is not taken over yet."""

    offer: Offer
    liars: tuple[str, ...] = ()  # institutions that served a chunk with another digest

    def with_liar(self, institution: str) -> "Transfer":
        """Return the transfer that never asks this holder again."""
        return replace(self, liars=tuple(sorted({*self.liars, institution})[:LIARS_MAX]))


class Transfers:
    """The transfers of this hospital that are under way, by request: (format, offer, liars)."""

    def __init__(self, folder: Path) -> None:
        """Create the folder if need be. Raises `OSError`."""
        self._files = _Folder(folder, ".transfer")

    def save(self, transfer: Transfer) -> None:
        """Keep it, in place of what was kept of this request. Raises `OSError`."""
        data = pack((FORMAT, encode_offer(transfer.offer), transfer.liars))
        self._files.write(transfer.offer.delivery.request_id, data)

    def get(self, request_id: bytes) -> Transfer | None:
        """Return the transfer of a request, or None. Raises `InvalidRecord`; `forget` helps, since
        the custodian makes the offer again."""
        data = self._files.read(request_id)
        if data is None:
            return None
        path = self._files.path(request_id)
        try:
            match unpack(data):
                case (1, bytes(offer), tuple(liars)) if len(liars) <= LIARS_MAX:
                    return Transfer(decode_offer(offer), tuple(map(str, liars)))
                case _:
                    raise InvalidRecord(f"{path} is not as it must be")
        except (NotCanonical, InvalidOffer) as error:
            raise InvalidRecord(f"{path} cannot be read: {error}") from error

    def forget(self, request_id: bytes) -> None:
        """Remove what is kept: the study is taken over, or nobody wants it any more."""
        self._files.remove(request_id)

    def forget_study(self, study_id: bytes) -> None:
        """Remove all transfers of a study: their offers hold its key, wrapped to this hospital."""
        for request_id in list(self.of_study(study_id)):
            self.forget(request_id)

    def of_study(self, study_id: bytes) -> Iterator[bytes]:
        """Yield the ids of the requests by which a study is being fetched. Reads all of them."""
        for request_id in self.requests():
            with contextlib.suppress(InvalidRecord):
                transfer = self.get(request_id)
                if transfer is not None and transfer.offer.delivery.study_id == study_id:
                    yield request_id

    def holds(self, request_id: bytes) -> bool:
        """Return whether something is kept of a request, be it readable or not."""
        return self._files.path(request_id).exists()

    def requests(self) -> Iterator[bytes]:
        """Yield the ids of all requests whose transfer is under way."""
        return self._files.ids()


class _Folder:
    """Files named by request; one is there whole or not at all."""

    def __init__(self, folder: Path, suffix: str) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder, self._suffix = folder, suffix
        for torn in folder.glob(f"*{suffix}.new"):
            torn.unlink(missing_ok=True)

    def path(self, request_id: bytes) -> Path:
        if len(request_id) != ID_BYTES:
            raise ValueError(f"a request's id has {ID_BYTES} bytes")
        return self._folder / (request_id.hex() + self._suffix)

    def write(self, request_id: bytes, data: bytes) -> None:
        path = self.path(request_id)
        new = path.with_name(path.name + ".new")
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        new.replace(path)
        self._sync()

    def read(self, request_id: bytes) -> bytes | None:
        path = self.path(request_id)
        try:
            if path.stat().st_size > 2 * OFFER_BYTES_MAX:
                raise InvalidRecord(f"{path} is larger than anything that is written there")
            return path.read_bytes()
        except FileNotFoundError:
            return None

    def remove(self, request_id: bytes) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.path(request_id).unlink()
            self._sync()

    def ids(self) -> Iterator[bytes]:
        for path in sorted(self._folder.glob(f"*{self._suffix}")):
            with contextlib.suppress(ValueError):
                yield bytes.fromhex(path.name.removesuffix(self._suffix))

    def _sync(self) -> None:
        descriptor = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
