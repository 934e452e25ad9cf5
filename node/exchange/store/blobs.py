"""Where the ciphertext lies: a local folder, any S3-compatible service, or memory.

    chunks/ab/abcdef...      one sealed chunk; the name is the SHA-256 of its bytes
    index/STUDYID/VERSION    one sealed index; five digits of version
    store.id                 32 hexadecimal digits: to which key file these blobs belong

A blob is written once and is durable when the call returns: on a local folder the file and every
folder above it are synced; a service answers only for what it keeps. Nothing here knows a key.
"""

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple, TypeAlias

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import LocalStore, MemoryStore, ObjectStore, S3Store

from node.exchange.store.errors import BlobsUnavailable, Damaged, StoreFull
from node.exchange.store.local import (
    STAGING,
    create_file,
    make_folders,
    replace_file,
    sync_folder,
)

CHUNKS, INDEXES, STORE_ID = "chunks", "index", "store.id"
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_RETRIES = 5
Data: TypeAlias = bytes | bytearray | memoryview


class Blob(NamedTuple):
    """One blob as a listing shows it."""

    name: str
    size: int  # bytes
    modified_ms: int  # since 1970


def chunk_name(digest: bytes) -> str:
    """Return where the chunk with that digest lies."""
    text = digest.hex()
    return f"{CHUNKS}/{text[:2]}/{text}"


def index_name(study_id: bytes, version: int) -> str:
    """Return where the index of a study's version lies."""
    return f"{INDEXES}/{study_id.hex()}/{version:05d}"


class BlobStore:
    """Named byte strings. Safe to use from several threads and processes."""

    def __init__(self, place: ObjectStore, folder: Path | None, text: str) -> None:
        self._place, self._folder, self._text = place, folder, text

    def __str__(self) -> str:
        return self._text

    @property
    def writers(self) -> int:
        """How many blobs to write at once: two keep a disk busy, a service is far away."""
        return 4 if self._folder is None else 2

    def create(self, name: str, data: Data) -> bool:
        """Write a new blob; False if there is one of that name, which stays as it is."""
        with self._translated(name):
            if self._folder is not None:
                return create_file(_made(self._folder, name), data)
            try:
                # A copy: the caller's buffer changes while obstore may still hold it.
                obstore.put(self._place, name, bytes(data), mode="create")
            except AlreadyExistsError:
                return False
        return True

    def replace(self, name: str, data: Data) -> None:
        """Write a blob in the place of any that has its name; readers see one or the other."""
        with self._translated(name):
            if self._folder is not None:
                replace_file(_made(self._folder, name), data)
            else:
                obstore.put(self._place, name, bytes(data), use_multipart=False)

    def read(self, name: str) -> bytes | None:
        """Return a blob's bytes, None if there is none of that name."""
        with self._translated(name):
            try:
                return bytes(obstore.get(self._place, name).bytes())
            except FileNotFoundError:
                return None

    def size(self, name: str) -> int | None:
        """Return a blob's length, None if there is none of that name."""
        with self._translated(name):
            try:
                return obstore.head(self._place, name)["size"]
            except FileNotFoundError:
                return None

    def delete(self, name: str) -> None:
        """Remove a blob, if it is there."""
        with self._translated(name):
            try:
                obstore.delete(self._place, name)
            except FileNotFoundError:
                return
            if self._folder is not None:
                sync_folder((self._folder / name).parent)

    def list(self, prefix: str = "") -> Iterator[Blob]:
        """Yield all blobs whose names begin with the folder `prefix`, in no order."""
        with self._translated(prefix):
            for batch in obstore.list(self._place, prefix or None, chunk_size=1_000):
                for meta in batch:
                    modified_ms = int(meta["last_modified"].timestamp() * 1000)
                    yield Blob(meta["path"], meta["size"], modified_ms)

    def free_bytes(self) -> int | None:
        """Return what the disk below has left, None where nobody can tell."""
        return None if self._folder is None else shutil.disk_usage(self._folder).free

    def remove_unfinished(self, before_ms: int) -> int:
        """Delete what writers that died before `before_ms` left half written; return how many.

        Services and memory have no such leftovers.
        """
        if self._folder is None:
            return 0
        found = [
            path
            for path in self._folder.rglob(f"*{STAGING}*")
            if path.is_file() and path.stat().st_mtime_ns // 1_000_000 < before_ms
        ]
        for path in found:
            path.unlink(missing_ok=True)
        return len(found)

    @contextmanager
    def _translated(self, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in _FULL:
                raise StoreFull(f"the disk under {self._text} is full: make room") from error
            reason = error.strerror or "system error"
            raise BlobsUnavailable(f"{self._text}: {name}: {reason}") from error
        except BaseError as error:
            if _says_full(str(error)):
                raise StoreFull(f"the disk under {self._text} is full: make room") from error
            reason = str(error).partition("\n")[0][:300]
            raise BlobsUnavailable(f"{self._text}: {name}: {reason}") from error


def open_folder(folder: Path) -> BlobStore:
    """Return the store in a local folder, which is made, for its owner only, if it is missing.

    Raises `BlobsUnavailable`.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = folder.resolve(strict=True)
        if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, "no permission to read and write")
        _fan_out(folder / CHUNKS)
        return BlobStore(LocalStore(folder), folder, str(folder))
    except OSError as error:
        reason = error.strerror or "system error"
        raise BlobsUnavailable(f"the store's folder {folder}: {reason}") from error


def open_service(url: str, endpoint: str | None = None, region: str = "us-east-1") -> BlobStore:
    """Return the store in a bucket, `s3://bucket/prefix`, of AWS or of the service at `endpoint`.

    Credentials come from the environment or the machine's role, as AWS's own tools find them. Plain
    HTTP is used only where `endpoint` says so. Raises `BlobsUnavailable`.
    """
    try:
        place = S3Store.from_url(
            url,
            config={"region": region}
            if endpoint is None
            else {"region": region, "endpoint": endpoint},
            # "create" depends on it: without, one blob could replace another unseen.
            conditional_put="etag",
            client_options={
                "allow_http": (endpoint or "").startswith("http://"),
                "timeout": timedelta(minutes=2),
                "connect_timeout": timedelta(seconds=10),
            },
            retry_config={"max_retries": _RETRIES, "retry_timeout": timedelta(minutes=3)},
        )
    except (BaseError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise BlobsUnavailable(f"the store's address {url}: {reason}") from error
    return BlobStore(place, None, url)


def open_memory() -> BlobStore:
    """Return a store that is gone with the program: for tests."""
    return BlobStore(MemoryStore(), None, "memory")


def read_chunk(blobs: BlobStore, digest: bytes) -> bytes | None:
    """Return the chunk's bytes, None if there is none. Raises `Damaged` if they are not its own."""
    data = blobs.read(chunk_name(digest))
    if data is not None and hashlib.sha256(data).digest() != digest:
        raise Damaged(f"chunk {digest.hex()} is rotten in {blobs}")
    return data


def write_chunk(blobs: BlobStore, digest: bytes, data: Data) -> None:
    """Write the chunk, durable on return; `data` must be what `digest` names.

    A blob of its name may be there: of the same bytes, from an interrupted call, or rotten.
    """
    if blobs.create(chunk_name(digest), data):
        return
    present = blobs.read(chunk_name(digest))
    if present is None or hashlib.sha256(present).digest() != digest:
        blobs.replace(chunk_name(digest), data)


def _made(folder: Path, name: str) -> Path:
    path = folder / name
    make_folders(path.parent, folder)
    return path


def _fan_out(chunks: Path) -> None:
    """Make the 256 folders of chunks at once, durable on return: one by one each costs a sync."""
    names = {f"{first:02x}" for first in range(256)}
    chunks.mkdir(mode=0o700, exist_ok=True)
    missing = names.difference(os.listdir(chunks))
    for name in missing:
        (chunks / name).mkdir(mode=0o700, exist_ok=True)
    if missing:
        sync_folder(chunks)
        sync_folder(chunks.parent)


def _says_full(text: str) -> bool:
    return any(f"os error {code}" in text for code in _FULL)
