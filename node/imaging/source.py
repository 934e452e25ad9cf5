"""A file's bytes, opened safely: regular files only, bounded, inflated within reason."""

import errno
import hashlib
import os
import stat
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, cast

from node.imaging.errors import NOT_NOW, UnreadableInstance
from node.imaging.limits import CHUNK_BYTES, Limits

PREAMBLE_BYTES = 132
_PREFIX = b"DICM"
# Trouble of this machine, not of the file: nobody's image is to be refused for it.
_PASSING = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM}
)


@dataclass(frozen=True, slots=True)
class Source:
    """An open file and the digest F of its bytes."""

    name: str
    stream: BinaryIO  # seekable
    size: int  # bytes
    digest: bytes  # 32 bytes, SHA-256


@contextmanager
def open_source(path: Path, limits: Limits) -> Iterator[Source]:
    """Yield the DICOM file at `path`, hashed.

    Small files are read at once. A longer one is hashed in chunks and read again; that it did not
    change meanwhile is checked at the end. Raises `UnreadableInstance`.
    """
    name = str(path)
    try:
        # Without O_NONBLOCK a named pipe would hold us for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise _unreadable(name, error) from error
    except ValueError as error:
        raise UnreadableInstance(name, "unreadable", "no possible file name") from error
    try:
        with open(descriptor, "rb") as stream:
            before = os.fstat(descriptor)
            _check_form(name, before, limits)
            yield _hashed(name, stream, before.st_size, limits)
            after = os.fstat(descriptor)
    except OSError as error:
        raise _unreadable(name, error) from error
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise UnreadableInstance(name, "changed", "the file changed while it was read")


def _unreadable(name: str, error: OSError) -> UnreadableInstance:
    code = NOT_NOW if error.errno in _PASSING else "unreadable"
    return UnreadableInstance(name, code, f"cannot be read: {error.strerror or 'system error'}")


def _check_form(name: str, status: os.stat_result, limits: Limits) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise UnreadableInstance(name, "foreign", "not a regular file")
    if not status.st_size:
        raise UnreadableInstance(name, "empty", "the file is empty")
    if status.st_size > limits.file_bytes_max:
        size = f"{status.st_size} bytes, the limit is {limits.file_bytes_max}"
        raise UnreadableInstance(name, "too_large", size)


def _hashed(name: str, stream: BinaryIO, size: int, limits: Limits) -> Source:
    head = stream.read(PREAMBLE_BYTES)
    if head[128:] != _PREFIX:
        reason = "not a DICOM file: no DICM prefix after a preamble of 128 bytes (PS3.10 §7.1)"
        raise UnreadableInstance(name, "foreign", reason)
    if size <= limits.whole_bytes_max:
        data = head + stream.read(size)  # no more: the buffer is allocated up front
        return Source(name, BytesIO(data), len(data), hashlib.sha256(data).digest())
    running = hashlib.sha256(head)
    read = len(head)
    while chunk := stream.read(CHUNK_BYTES):
        running.update(chunk)
        read += len(chunk)
    return Source(name, stream, read, running.digest())


@contextmanager
def inflated(source: Source, limits: Limits) -> Iterator[tuple[BinaryIO, int]]:
    """Yield what the rest of `source` inflates to, and its size (PS3.5 A.5).

    Memory is bounded by `limits.spool_bytes`; what is longer lies in a file without a name. Raises
    `UnreadableInstance` for a bomb, a truncated or a broken stream, and with `NOT_NOW` where there
    is no room for that file.
    """
    start = source.stream.tell()
    allowed = min(
        limits.inflated_bytes_max,
        max(limits.inflated_free_bytes, (source.size - start) * limits.inflation_ratio_max),
    )
    with tempfile.SpooledTemporaryFile(max_size=limits.spool_bytes) as spool:
        size = 0
        for piece in _inflate(source):
            size += len(piece)
            if size > allowed:
                reason = f"{source.size} bytes inflate to more than {allowed}"
                raise UnreadableInstance(source.name, "bomb", reason)
            try:
                spool.write(piece)
            except OSError as error:
                reason = "there is no room to inflate it"
                raise UnreadableInstance(source.name, NOT_NOW, reason) from error
        spool.seek(0)
        yield cast(BinaryIO, spool), size


def _inflate(source: Source) -> Iterator[bytes]:
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        while not inflater.eof:
            data = inflater.unconsumed_tail or source.stream.read(CHUNK_BYTES)
            if not data:
                raise UnreadableInstance(
                    source.name, "truncated", "the deflated data set breaks off"
                )
            yield inflater.decompress(data, CHUNK_BYTES)
    except zlib.error as error:
        reason = "the deflated data set is damaged"
        raise UnreadableInstance(source.name, "malformed", reason) from error
