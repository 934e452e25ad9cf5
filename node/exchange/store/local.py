"""Writing files of a local folder: once, whole, durable, and past the page cache.

A store writes what it will not read soon. With O_DIRECT (Linux) the bytes go to the disk from the
caller's whole pages, or from such a buffer of the thread, which spares a copy and leaves the cache
to those who read; a file system without it gets ordinary writes.
"""

import ctypes
import errno
import fcntl
import mmap
import os
import secrets
import threading
from contextlib import suppress
from pathlib import Path
from typing import TypeAlias

from node.exchange.pages import page_buffer

Data: TypeAlias = bytes | bytearray | memoryview

STAGING = "#"  # stands, with digits after it, in the name of a file that is not finished
_PAGE = mmap.PAGESIZE
_DIRECT_BYTES_MIN = 256 * 1024
_SCRATCH_BYTES = 4 * 2**20
_NOT_DIRECT = frozenset({errno.EINVAL, errno.EOPNOTSUPP})


class _Scratch(threading.local):
    """One buffer of whole pages a thread."""

    def __init__(self) -> None:
        self.buffer = page_buffer(_SCRATCH_BYTES)


_scratch = _Scratch()


def create_file(path: Path, data: Data) -> bool:
    """Write a new file, durable on return; False if it exists, which is left as it is.

    After a power failure within the call the file may be there and torn: for content that is
    checked against its name. Raises `OSError`.
    """
    staging = _staging(path)
    descriptor = _open_new(staging)
    try:
        try:
            _write(descriptor, data)
            os.link(staging, path)
        except FileExistsError:
            return False
        finally:
            staging.unlink(missing_ok=True)
        # Names first: then one commit of a journal holds all of it, and the folder's finds it done.
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    sync_folder(path.parent)
    return True


def replace_file(path: Path, data: Data) -> None:
    """Write a file in the place of any before; a reader, or a crash, sees one or the other whole.

    Raises `OSError`.
    """
    staging = _staging(path)
    descriptor = _open_new(staging)
    try:
        try:
            _write(descriptor, data)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        staging.replace(path)
    except BaseException:
        staging.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def make_folders(folder: Path, root: Path) -> None:
    """Make `folder` below `root`, durable on return. Raises `OSError`."""
    if folder == root or folder.is_dir():
        return
    make_folders(folder.parent, root)
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable. Raises `OSError`."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _staging(path: Path) -> Path:
    return path.with_name(f"{path.name}{STAGING}{secrets.randbelow(10**18)}")


def _open_new(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)


def _write(descriptor: int, data: Data) -> None:
    size = len(data)
    pages = size // _PAGE * _PAGE if _DIRECT_BYTES_MIN <= size <= _SCRATCH_BYTES else 0
    # First what is left of a page at the end: a file cut to it afterwards is read for that.
    _write_plainly(descriptor, memoryview(data)[pages:], pages)
    if pages and not _write_directly(descriptor, data, pages):
        _write_plainly(descriptor, memoryview(data)[:pages], 0)


def _write_plainly(descriptor: int, view: memoryview, start: int) -> None:
    while view:
        count = os.pwrite(descriptor, view, start)
        view, start = view[count:], start + count


def _write_directly(descriptor: int, data: Data, size: int) -> bool:
    """Write the first `size` bytes, whole pages; False if this file system does not write so."""
    direct: int = getattr(os, "O_DIRECT", 0)
    if not direct:
        return False
    view = memoryview(data)[:size]
    if not _is_aligned(view):
        _scratch.buffer[:size] = view
        view = memoryview(_scratch.buffer)[:size]
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | direct)
        return os.pwrite(descriptor, view, 0) == size
    except OSError as error:
        if error.errno not in _NOT_DIRECT:
            raise
        return False
    finally:
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags)


def _is_aligned(view: memoryview) -> bool:
    """Whether the bytes begin with a page; of those that nobody may write it is not known."""
    if view.readonly:
        return False
    return ctypes.addressof(ctypes.c_char.from_buffer(view)) % _PAGE == 0
