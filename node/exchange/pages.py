"""Buffers of whole pages, which the system hands to a disk or fills from a socket as they are."""

import mmap
from contextlib import suppress


def page_buffer(size: int) -> mmap.mmap:
    """Return `size` bytes of zeros, of large pages where the system has them.

    A disk takes a large page as one piece, a small one as one of a thousand: writing past the page
    cache is a third faster from large ones. Nothing is taken of the memory before it is used.
    """
    # Not shared with other processes: of such memory the system makes each page singly.
    buffer = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    advice: int | None = getattr(mmap, "MADV_HUGEPAGE", None)
    if advice is not None:
        with suppress(OSError):  # a system that was built without
            buffer.madvise(advice)
    return buffer
