"""Retrieve (WADO-RS, PS3.18 §10.4): what is answered, piece by piece. No HTTP, no sockets.

Everything that can be refused is found out before the first byte goes out; what fails later breaks
the answer off, so that a client never takes half of a study for the whole.
"""

import asyncio
import secrets
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import Executor
from contextlib import AbstractContextManager, aclosing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, BinaryIO, NamedTuple, TypeVar

import orjson

from node.config.model import WebLimits
from node.gateway.holdings import HeldInstance, Holdings
from node.gateway.web import media, metadata
from node.gateway.web.errors import Problem, not_acceptable, not_found
from node.gateway.web.fence import Decoder
from node.gateway.web.files import Failed, Opened, open_instance
from node.gateway.web.frames import Layout, layout_of, stored_frame
from node.gateway.web.media import AS_STORED, EXPLICIT, FRAME_TYPES, OCTETS, Form
from node.gateway.web.render import FORMATS
from node.gateway.web.single import single_frame
from node.imaging.syntax import syntax_of

T = TypeVar("T")
_PIECE_BYTES = 1 << 20


@dataclass(slots=True)
class Answer:
    """A body in pieces, and its type; `size` if it is known beforehand."""

    content_type: str
    pieces: AsyncGenerator[bytes, None]
    size: int | None = None


@dataclass(slots=True)
class Part:
    """One part of a multipart answer, or the whole of a plain one."""

    content_type: str
    size: int | None
    pieces: AsyncGenerator[bytes, None]


class Retriever:
    """Makes answers out of holdings; `pool` has the threads that read."""

    def __init__(
        self, holdings: Holdings, pool: Executor, decoder: Decoder, limits: WebLimits
    ) -> None:
        self._holdings, self._pool = holdings, pool
        self._decoder, self._limits = decoder, limits

    # Instances

    async def instances(self, instances: Sequence[HeldInstance], forms: list[Form]) -> Answer:
        """Return the objects in the first form that all of them can be given in."""
        for form in forms:
            if len(instances) > 1 and not form.multipart:
                continue
            if all(self._can_give(instance, form.syntax) for instance in instances):
                break
        else:
            raise not_acceptable("ask for transfer-syntax=* to get the objects as they are stored")
        first = await self._instance_part(instances[0], form.syntax)
        if not form.multipart:
            return Answer(first.content_type, first.pieces, first.size)

        async def parts() -> AsyncGenerator[Part, None]:
            yield first
            for instance in instances[1:]:
                yield await self._instance_part(instance, form.syntax)

        return _multipart(media.DICOM, parts())

    def _can_give(self, instance: HeldInstance, syntax: str) -> bool:
        if syntax in (AS_STORED, instance.syntax):
            return True
        return syntax == EXPLICIT and instance.size <= self._limits.transcode_bytes_max

    async def _instance_part(self, instance: HeldInstance, syntax: str) -> Part:
        if syntax in (AS_STORED, instance.syntax):
            kind = f"{media.DICOM}; transfer-syntax={instance.syntax}"
            return Part(kind, instance.size, await self._stored_bytes(instance))
        file = b"".join([piece async for piece in await self._stored_bytes(instance)])
        try:
            whole = await self._decoder.call("transcode", file)
        except Failed as error:
            raise not_acceptable(
                f"{error.sentence}; transfer-syntax=* gives it as stored"
            ) from None
        return Part(f"{media.DICOM}; transfer-syntax={syntax}", len(whole), _one(whole))

    async def _stored_bytes(self, instance: HeldInstance) -> AsyncGenerator[bytes, None]:
        """Return the file in pieces; the first is read at once, so that a refusal comes in time."""
        stream, first = await self._run(_begin, self._holdings, instance)

        async def pieces() -> AsyncGenerator[bytes, None]:
            piece = first
            try:
                while piece:
                    yield piece
                    piece = await self._run(stream.read, _PIECE_BYTES)
            finally:
                stream.close()

        return pieces()

    # Metadata and bulk data

    async def metadata(
        self, instances: Sequence[HeldInstance], url_of: Callable[[HeldInstance], str]
    ) -> Answer:
        """Return a JSON array with the header of each instance."""
        first = await self._metadata(instances[0], url_of)

        async def pieces() -> AsyncGenerator[bytes, None]:
            yield b"[" + first
            for instance in instances[1:]:
                yield b"," + await self._metadata(instance, url_of)
            yield b"]"

        return Answer(media.DICOM_JSON, pieces())

    async def _metadata(
        self, instance: HeldInstance, url_of: Callable[[HeldInstance], str]
    ) -> bytes:
        def make(opened: Opened) -> bytes:
            return orjson.dumps(metadata.to_json(opened, url_of(instance)))

        return await self._read(instance, make)

    async def bulk(
        self, instance: HeldInstance, path: str, ranges: list[media.MediaType]
    ) -> Answer:
        """Return the value at `path`; pixels as all frames in the form they are stored in."""
        if not metadata.is_bulk_path(path):
            raise not_found("value")
        if path.upper() in ("7FE00008", "7FE00009", "7FE00010"):
            layout = await self._read(instance, layout_of, deep=False)
            return await self.frames(instance, range(1, layout.frames + 1), _as_stored(ranges))

        def take(opened: Opened) -> bytes | None:
            return metadata.find_bulk(opened, path.upper(), self._limits.transcode_bytes_max)

        value = await self._read(instance, take)
        if value is None:
            raise not_found("value")
        for wanted in ranges:
            inner = wanted.parameters.get("type", OCTETS)
            if wanted.name in (media.MULTIPART, "multipart/*", "*/*") and inner in (OCTETS, "*/*"):
                return _multipart(OCTETS, _of([Part(OCTETS, len(value), _one(value))]))
            if wanted.name in (OCTETS, "application/*"):
                return Answer(OCTETS, _one(value), len(value))
        raise not_acceptable(f"what there is: {OCTETS}, plain or multipart")

    # Frames

    async def frames(
        self, instance: HeldInstance, numbers: Sequence[int], forms: list[Form]
    ) -> Answer:
        """Return frames in the first form that they can be given in."""
        form = _frame_form(instance.syntax, len(numbers), forms)
        get = self._decoded_frame if form.is_decoded else self._stored_frame
        header = f"{form.media}; transfer-syntax={form.syntax}"
        first = await get(instance, numbers[0], max(numbers))
        if not form.multipart:
            return Answer(header, _one(first), len(first))

        async def parts() -> AsyncGenerator[Part, None]:
            yield Part(header, len(first), _one(first))
            for number in numbers[1:]:
                frame = await get(instance, number, number)
                yield Part(header, len(frame), _one(frame))

        return _multipart(form.media, parts())

    async def _stored_frame(self, instance: HeldInstance, number: int, last: int) -> bytes:
        """Return one frame of an image that has a frame `last`, too, or raise `Problem`."""

        def take(opened: Opened) -> bytes:
            layout = _layout_with(opened, last)
            return stored_frame(opened, layout, number, self._limits.frame_bytes_max)

        return await self._read(instance, take, deep=False)

    async def _decoded_frame(self, instance: HeldInstance, number: int, last: int) -> bytes:
        return await self._decode("native", instance, number, last, {})

    async def _decode(
        self,
        operation: str,
        instance: HeldInstance,
        number: int,
        last: int,
        wishes: dict[str, Any],
    ) -> bytes:
        def take(opened: Opened) -> bytes:
            layout = _layout_with(opened, last)
            return single_frame(opened, layout, number, self._limits.frame_bytes_max)

        file = await self._read(instance, take)
        try:
            return await self._decoder.call(operation, file, wishes)
        except Failed as error:
            raise not_acceptable(error.sentence) from None

    async def picture(
        self, instance: HeldInstance, number: int | None, wishes: dict[str, Any]
    ) -> Answer:
        """Return a frame as a picture; without a number the first."""
        chosen = 1 if number is None else number
        image = await self._decode("picture", instance, chosen, chosen, wishes)
        return Answer(wishes["media"], _one(image), len(image))

    # Threads

    async def _read(
        self, instance: HeldInstance, make: Callable[[Opened], T], deep: bool = True
    ) -> T:
        """Return what `make` makes of an instance, in a thread; raises `Problem`."""
        try:
            return await self._run(_with_opened, self._holdings, instance, make, deep)
        except Failed as error:
            status = {"none": 406, "limit": 413}.get(error.code, 500)
            raise Problem(status, error.code, error.sentence) from None

    async def _run(self, function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *arguments)


class _FrameForm(NamedTuple):
    media: str
    syntax: str  # in which they are given
    is_decoded: bool
    multipart: bool


def _frame_form(stored: str, count: int, forms: list[Form]) -> _FrameForm:
    """Return the first form in which `count` frames stored in a syntax can be given, or 406."""
    known = syntax_of(stored)
    is_native = known is not None and not known.encapsulated
    kind = OCTETS if is_native else FRAME_TYPES.get(stored, OCTETS)
    # Native frames of any syntax are given in little-endian order, which is the explicit one's.
    given = EXPLICIT if is_native else stored
    for form in forms:
        if count > 1 and not form.multipart:
            continue
        # Compressed octets, too: OHIF asks for octets in any syntax, and reads the part's head.
        fits = form.media in ("", OCTETS, kind, f"{kind.partition('/')[0]}/*")
        if form.syntax in (AS_STORED, stored, given) and fits:
            return _FrameForm(kind, given, False, form.multipart)
        if form.syntax == EXPLICIT and form.media in ("", OCTETS, "application/*"):
            return _FrameForm(OCTETS, EXPLICIT, True, form.multipart)
    raise not_acceptable(f"the frames are stored in {stored}, as {kind}")


def _layout_with(opened: Opened, number: int) -> Layout:
    """Return how the frames are described; raises `Failed`, `Problem` if there is no such one."""
    layout = layout_of(opened)
    if not 1 <= number <= layout.frames:
        raise not_found("frame")
    return layout


def _begin(holdings: Holdings, instance: HeldInstance) -> tuple[BinaryIO, bytes]:
    stream = holdings.open(instance)
    try:
        return stream, stream.read(_PIECE_BYTES)
    except BaseException:
        stream.close()
        raise


def _with_opened(
    holdings: Holdings, instance: HeldInstance, make: Callable[[Opened], T], deep: bool
) -> T:
    stream: BinaryIO
    with holdings.open(instance) as stream:
        opening: AbstractContextManager[Opened] = open_instance(stream, instance.size, deep)
        with opening as opened:
            return make(opened)


def _as_stored(ranges: list[media.MediaType]) -> list[Form]:
    """Return forms for pixels as bulk data: as stored where nothing else is asked for."""
    as_stored = partial(replace, syntax=AS_STORED)
    return [
        form if form.media or "transfer-syntax" in wanted.parameters else as_stored(form)
        for wanted in ranges
        for form in media.frame_forms([wanted])
    ]


def picture_types() -> tuple[str, ...]:
    """Return the media types of pictures, the default first."""
    return tuple(FORMATS)


async def _one(data: bytes) -> AsyncGenerator[bytes, None]:
    yield data


async def _of(parts: Sequence[Part]) -> AsyncGenerator[Part, None]:
    for part in parts:
        yield part


def _multipart(kind: str, parts: AsyncGenerator[Part, None]) -> Answer:
    # Random, for bytes of an instance must not be able to contain it.
    boundary = secrets.token_hex(16)

    async def pieces() -> AsyncGenerator[bytes, None]:
        start = b""
        async with aclosing(parts):
            async for part in parts:
                length = "" if part.size is None else f"Content-Length: {part.size}\r\n"
                head = f"--{boundary}\r\nContent-Type: {part.content_type}\r\n{length}\r\n"
                yield start + head.encode()
                async with aclosing(part.pieces):
                    async for piece in part.pieces:
                        yield piece
                start = b"\r\n"
        yield start + f"--{boundary}--\r\n".encode()

    return Answer(f'{media.MULTIPART}; type="{kind}"; boundary={boundary}', pieces())
