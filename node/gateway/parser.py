"""The process that parses what strangers sent, behind `node.gateway.fence`.

A request is msgpack [operation, limits, paths]: the operation is read or media, the limits are the
fields of `Limits` in their order. There is one answer for each path, in order (`readings`).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple
from pathlib import Path

import msgpack

from node.gateway import readings
from node.gateway.fence import serve
from node.imaging.errors import UnreadableInstance
from node.imaging.limits import Limits
from node.imaging.media import Media, read_media
from node.imaging.reader import read_instance

READ, MEDIA = "read", "media"
_TEXT = "surrogateescape"  # as `os.fsdecode` writes names that are not UTF-8


def question(operation: str, limits: Limits, paths: Sequence[Path]) -> bytes:
    """Return the request to read these files."""
    plain = [operation, astuple(limits), [str(path) for path in paths]]
    encoded: bytes = msgpack.packb(plain, unicode_errors=_TEXT)
    return encoded


def answers(request: bytes) -> Iterator[bytes]:
    """Yield what is found in each file."""
    operation, limits, paths = msgpack.unpackb(request, unicode_errors=_TEXT)
    read = _OPERATIONS[operation]
    for path in paths:
        yield readings.encode(read(Path(path), Limits(*limits)))


def _media(directory: Path, limits: Limits) -> Media | UnreadableInstance:
    try:
        return read_media(directory, limits)
    except UnreadableInstance as refused:
        return refused


_OPERATIONS: dict[str, Callable[[Path, Limits], readings.Reading | Media]] = {
    READ: read_instance,
    MEDIA: _media,
}


if __name__ == "__main__":
    serve(answers)
