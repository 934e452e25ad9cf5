"""What the parsing process hands back, as plain values: msgpack, checked when it is taken.

That process has parsed what a stranger sent, and may be the stranger's by then. It can lie about
the file, as the file itself can; it can hand back nothing that runs or that leads anywhere.
"""

from pathlib import Path
from typing import Any

import msgpack

from node.imaging.commitment import ROW_BYTES, Commitment, CommittedFile, Elements
from node.imaging.errors import UnreadableInstance
from node.imaging.media import Media
from node.imaging.pixels import Form, PixelDigest, Pixels
from node.imaging.reader import check_uids

ANSWER_BYTES_MAX = 64 << 20  # 500,000 frames in two forms are 32 MB of digests
_DIGEST_BYTES = 32
_CODE_CHARACTERS, _REASON_CHARACTERS = 32, 500
_READ, _REFUSED, _MEDIA = "read", "refused", "media"
_TEXT = "surrogatepass"  # names on a disk need not be UTF-8

Reading = CommittedFile | UnreadableInstance


class NoReading(ValueError):
    """The bytes are no reading."""


def encode(found: Reading | Media) -> bytes:
    """Return the bytes of what was found in one file."""
    match found:
        case UnreadableInstance():
            plain: list[Any] = [_REFUSED, found.code, found.reason]
        case Media():
            files = [str(path) for path in found.files]
            plain = [_MEDIA, files, list(found.missing), list(found.outside)]
        case CommittedFile():
            plain = [_READ, _plain(found.commitment), list(found.facts.items())]
    encoded: bytes = msgpack.packb(plain, unicode_errors=_TEXT)
    return encoded


def decode_reading(data: bytes, name: str) -> Reading:
    """Return what was found in the file `name`. Raises `NoReading`."""
    match _unpacked(data):
        case [str() as kind, list() as values, list() as facts] if kind == _READ:
            found = CommittedFile(name, _commitment(values), dict(map(_fact, facts)))
            try:
                check_uids(found)
            except UnreadableInstance as refused:
                return refused
            return found
        case [str() as kind, str() as code, str() as reason] if kind == _REFUSED:
            return _refused(name, code, reason)
    raise NoReading("no reading of a file")


def decode_media(data: bytes, name: str) -> Media | UnreadableInstance:
    """Return what the DICOMDIR `name` was found to name. Raises `NoReading`."""
    match _unpacked(data):
        case [str() as kind, list() as files, list() as missing, list() as outside] if (
            kind == _MEDIA and all(isinstance(each, str) for each in (*files, *missing, *outside))
        ):
            paths = tuple(map(Path, files))
            below = Path(name).parent
            if any(".." in path.parts or not path.is_relative_to(below) for path in paths):
                raise NoReading("a file outside of the medium")
            return Media(paths, tuple(missing), tuple(outside))
        case [str() as kind, str() as code, str() as reason] if kind == _REFUSED:
            return _refused(name, code, reason)
    raise NoReading("no reading of a DICOMDIR")


def _unpacked(data: bytes) -> Any:
    try:
        return msgpack.unpackb(data, unicode_errors=_TEXT)
    except (ValueError, msgpack.UnpackException) as error:
        raise NoReading("no msgpack") from error


def _refused(name: str, code: str, reason: str) -> UnreadableInstance:
    is_word = code.isascii() and code.replace("_", "").isalpha() and len(code) <= _CODE_CHARACTERS
    if not (is_word and reason.isprintable() and len(reason) <= _REASON_CHARACTERS):
        raise NoReading("no refusal")
    return UnreadableInstance(name, code, reason)


def _plain(of: Commitment) -> list[Any]:
    pixels = [
        None if each is None else [each.form.value, each.digest, each.frames]
        for each in (of.pixels.samples, of.pixels.payload)
    ]
    elements = [each.rows for each in (of.core_elements, of.private_elements, of.import_elements)]
    return [of.rules, of.size, of.file, of.core, of.private, pixels, elements]


def _commitment(plain: Any) -> Commitment:
    match plain:
        case [
            int() as rules,
            int() as size,
            bytes() as file,
            bytes() as core,
            bytes() as private,
            [samples, payload],
            [bytes() as core_rows, bytes() as private_rows, bytes() as import_rows],
        ]:
            rows = core_rows, private_rows, import_rows
            are_digests = all(len(each) == _DIGEST_BYTES for each in (file, core, private))
            if not are_digests or any(len(each) % ROW_BYTES for each in rows) or size < 0:
                raise NoReading("a digest of another length")
            pixels = Pixels(_pixels(samples), _pixels(payload))
            return Commitment(rules, size, file, core, pixels, private, *map(Elements, rows))
    raise NoReading("no commitment")


def _pixels(plain: Any) -> PixelDigest | None:
    match plain:
        case None:
            return None
        case [int() as form, bytes() as digest, bytes() as frames]:
            if len(digest) not in (0, _DIGEST_BYTES) or len(frames) % _DIGEST_BYTES:
                raise NoReading("a digest of another length")
            try:
                return PixelDigest(Form(form), digest, frames)
            except ValueError as error:
                raise NoReading("no form of pixels") from error
    raise NoReading("no digest of pixels")


def _fact(plain: Any) -> tuple[int, str | bytes]:
    match plain:
        case [int() as tag, str() | bytes() as value]:
            return tag, value
    raise NoReading("no fact")
