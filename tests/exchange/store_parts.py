"""Studies, stores and faults for the tests of the store."""

import hashlib
import random
import secrets
import threading
from io import BytesIO
from pathlib import Path

from node.exchange.store.blobs import BlobStore, open_folder
from node.exchange.store.catalog import open_catalog
from node.exchange.store.errors import BlobsUnavailable
from node.exchange.store.index import InstanceFacts, InstanceSource
from node.exchange.store.master import MasterFile, create_master_file
from node.exchange.store.store import StudyStore

STUDY = bytes(range(16))
OTHER = bytes(range(1, 17))


def source(number: int, data: bytes, **changes) -> InstanceSource:
    fields = {
        "sop_instance_uid": f"1.2.840.99.{number}",
        "sop_class_uid": "1.2.840.10008.5.1.4.1.1.2",
        "series_uid": "1.2.840.98.1",
        "transfer_syntax": "1.2.840.10008.1.2.1",
        "size": len(data),
        "digest": hashlib.sha256(data).digest(),
        "attributes": ((0x0020000D, "1.2.840.97.1"), (0x00200013, str(number))),
    }
    return InstanceSource(InstanceFacts(**(fields | changes)), lambda: BytesIO(data))


def noise(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


def study(sizes=(5_000, 12_345, 1, 4_096, 900)) -> list[bytes]:
    return [noise(size, seed) for seed, size in enumerate(sizes)]


def sources(contents: list[bytes]) -> list[InstanceSource]:
    return [source(number, data) for number, data in enumerate(contents)]


def master(folder: Path) -> MasterFile:
    path = folder / "master.key"
    if not path.exists():
        create_master_file(path)
    return MasterFile(path)


def new_store(folder: Path, blobs: BlobStore | None = None, **options) -> StudyStore:
    blobs = blobs or open_folder(folder / "blobs")
    catalog = open_catalog(folder / "keys.db", master(folder))
    return StudyStore(blobs, catalog, **options)


def content(store: StudyStore, ordinal: int, version=None, study_id: bytes = STUDY) -> bytes:
    return b"".join(store.read(study_id, ordinal, version))


def contents(store: StudyStore, version=None, study_id: bytes = STUDY) -> list[bytes]:
    count = len(store.index(study_id, version).instances)
    return [content(store, ordinal, version, study_id) for ordinal in range(count)]


def random_id() -> bytes:
    return secrets.token_bytes(16)


class PowerLoss(BaseException):
    """The program dies here."""


class Dying(BlobStore):
    """A place of blobs at whose nth change the program dies, before, after or in the middle."""

    def __init__(self, inner: BlobStore) -> None:
        self.inner, self.left, self.moment = inner, None, "before"
        self._lock = threading.Lock()  # one change at a time, and none after the last

    def __str__(self) -> str:
        return "dying"

    def _change(self, act, name: str, *data):
        with self._lock:
            if self.left is None:
                return act(name, *data)
            self.left -= 1
            if self.left > 0:
                return act(name, *data)
            if self.left < 0:
                raise PowerLoss
            if self.moment == "torn" and data:
                act(name, bytes(data[0])[: len(data[0]) // 2])
            elif self.moment == "after":
                act(name, *data)
            raise PowerLoss

    @property
    def writers(self):
        return self.inner.writers

    def create(self, name, data):
        return self._change(self.inner.create, name, data)

    def replace(self, name, data):
        return self._change(self.inner.replace, name, data)

    def delete(self, name):
        return self._change(self.inner.delete, name)

    def read(self, name):
        return self.inner.read(name)

    def size(self, name):
        return self.inner.size(name)

    def list(self, prefix=""):
        return self.inner.list(prefix)

    def free_bytes(self):
        return self.inner.free_bytes()

    def remove_unfinished(self, before_ms):
        return self.inner.remove_unfinished(before_ms)


class Offline(Dying):
    """A place that can be cut off."""

    def __init__(self, inner: BlobStore) -> None:
        super().__init__(inner)
        self.is_off = False

    def _change(self, act, name, *data):
        if self.is_off:
            raise BlobsUnavailable("offline")
        return act(name, *data)

    def read(self, name):
        if self.is_off:
            raise BlobsUnavailable("offline")
        return self.inner.read(name)
