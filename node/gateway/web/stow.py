"""Store (STOW-RS, PS3.18 §10.5): parts streamed one after another into the spool.

An instance is answered as stored only after the spool has made it durable. One that is refused
fails alone, with the reason code of PS3.18 table 10.5.3-2 or PS3.7 annex C.
"""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from node.config.model import WebLimits
from node.gateway.index import SpoolError
from node.gateway.outcomes import Accepted, Conflict, Duplicate, Outcome, Refused
from node.gateway.web import media
from node.gateway.web.errors import Problem
from node.gateway.web.media import parse_media_type
from node.gateway.web.multipart import (
    InvalidMultipart,
    MultipartParser,
    PartBegin,
    PartData,
    PartEnd,
    check_boundary,
)
from node.gateway.web.uploads import PartStream

SOURCE = "stow"
OUT_OF_RESOURCES, NOT_THE_STUDY, NOT_UNDERSTOOD = 0xA700, 0xA900, 0xC000
DUPLICATE_INSTANCE, PROCESSING_FAILURE, UNKNOWN_SYNTAX = 0x0111, 0x0110, 0xC122
_REASONS = {
    "no_room": OUT_OF_RESOURCES,
    "other_study": NOT_THE_STUDY,
    "mismatch": NOT_THE_STUDY,
    "unknown_syntax": UNKNOWN_SYNTAX,
    "spool": PROCESSING_FAILURE,
    "unreadable": PROCESSING_FAILURE,
    "changed": PROCESSING_FAILURE,
}
_RETRY_AFTER_S = 30
_PENDING_MAX = 4  # parts of one request that are being made durable

log = logging.getLogger(__name__)
Json = dict[str, Any]


class Inbox(Protocol):
    """The spool, as far as it is needed here. Called in threads."""

    def accept(self, source: str, stream: Any, study_uid: str | None = None) -> Outcome: ...
    def room(self) -> Refused | None: ...


@dataclass(slots=True)
class Stored:
    """What became of one request's instances, in their order."""

    outcomes: list[Outcome] = field(default_factory=list)
    foreign_parts: int = 0  # of another media type
    broken: str = ""  # why the rest of the message could not be read

    @property
    def failures(self) -> int:
        refused = sum(isinstance(outcome, Refused) for outcome in self.outcomes)
        return refused + self.foreign_parts + bool(self.broken)

    @property
    def successes(self) -> int:
        return sum(not isinstance(outcome, Refused) for outcome in self.outcomes)

    @property
    def status(self) -> int:
        """200 all stored, 202 some, 409 none (PS3.18 table 10.5.3-1), 503 if only room lacks."""
        if not self.failures:
            return 200
        if self.successes:
            return 202
        lacking = [o for o in self.outcomes if isinstance(o, Refused) and o.code == "no_room"]
        return 503 if lacking and len(lacking) == self.failures else 409


async def receive(
    content_type: str,
    body: AsyncIterator[bytes],
    study_uid: str | None,
    inbox: Inbox,
    pool: Executor,
    limits: WebLimits,
) -> Stored:
    """Take all parts of a request. Raises `Problem` if nothing of it can be understood."""
    parser, is_single = _reader(content_type, limits)
    loop = asyncio.get_running_loop()
    refused = await loop.run_in_executor(pool, inbox.room)
    if refused is not None:
        raise Problem(503, refused.code, refused.reason, _RETRY_AFTER_S)
    stored = Stored()
    taker = _Taker(stored, partial(loop.run_in_executor, pool), inbox, study_uid)
    try:
        if is_single:
            await taker.begin({"content-type": media.DICOM})
        async for piece in body:
            for event in [PartData(piece)] if parser is None else parser.feed(piece):
                match event:
                    case PartBegin(headers):
                        await taker.begin(headers)
                    case PartData(data):
                        await taker.write(data)
                    case PartEnd():
                        taker.end()
        if parser is None:
            taker.end()
        else:
            parser.finish()
        await taker.finish()
    except InvalidMultipart as error:
        await taker.break_off()
        if not stored.outcomes:
            raise Problem(400, "bad_multipart", str(error)) from None
        stored.broken = str(error)
    except BaseException:
        await taker.break_off()
        raise
    if not (stored.outcomes or stored.foreign_parts):
        raise Problem(400, "no_instances", "the message has no part")
    return stored


def _reader(content_type: str, limits: WebLimits) -> tuple[MultipartParser | None, bool]:
    try:
        kind = parse_media_type(content_type)
    except ValueError:
        raise Problem(415, "unsupported_media_type", _WANTED) from None
    if kind.name == media.DICOM:
        return None, True
    inner = kind.parameters.get("type", media.DICOM).lower()
    if kind.name != media.MULTIPART or inner != media.DICOM:
        raise Problem(415, "unsupported_media_type", _WANTED)
    try:
        boundary = check_boundary(kind.parameters.get("boundary"))
    except InvalidMultipart as error:
        raise Problem(400, "bad_multipart", str(error)) from None
    return MultipartParser(boundary, limits.part_header_bytes_max, limits.upload_parts_max), False


_WANTED = f'send {media.MULTIPART}; type="{media.DICOM}"; boundary=..., or {media.DICOM}'


class _Taker:
    """Hands parts to the spool, each in a thread; the next is read while the last are made durable.

    Only the last one can wait for the sender, so the others always come to an end.
    """

    def __init__(self, stored: Stored, run: Any, inbox: Inbox, study_uid: str | None) -> None:
        self._stored, self._run, self._inbox, self._study_uid = stored, run, inbox, study_uid
        self._stream: PartStream | None = None
        self._pending: deque[asyncio.Future[Outcome]] = deque()

    async def begin(self, headers: dict[str, str]) -> None:
        try:
            kind = parse_media_type(headers.get("content-type", media.DICOM)).name
        except ValueError:
            kind = ""
        if kind != media.DICOM or headers.get("content-encoding", "identity") != "identity":
            self._stored.foreign_parts += 1
            return
        await self._settle(_PENDING_MAX - 1)
        self._stream = PartStream()
        self._pending.append(self._run(_accept, self._inbox, self._stream, self._study_uid))

    async def write(self, data: bytes) -> None:
        if self._stream is not None:
            await self._stream.write(data)

    def end(self) -> None:
        """The part is whole."""
        if self._stream is not None:
            self._stream.finish()
            self._stream = None

    async def finish(self) -> None:
        """Wait for all that is under way."""
        await self._settle(0)

    async def break_off(self) -> None:
        """Leave the part that is not whole; wait for the others."""
        stream, self._stream = self._stream, None
        if stream is not None:
            unfinished = self._pending.pop()
            stream.break_off()
            await asyncio.wait([unfinished])
            unfinished.exception()  # the same failure once more
        await self._settle(0)

    async def _settle(self, left: int) -> None:
        while len(self._pending) > left:
            outcome = self._pending[0]
            await asyncio.wait([outcome])
            self._pending.popleft()
            self._stored.outcomes.append(outcome.result())


def _accept(inbox: Inbox, stream: PartStream, study_uid: str | None) -> Outcome:
    try:
        return inbox.accept(SOURCE, stream, study_uid)
    except SpoolError as error:
        log.error("an upload could not be spooled: %s", error)
        return Refused(code="spool", reason="the gateway cannot write its spool")
    finally:
        stream.done()


def response(stored: Stored, root: str) -> Json:
    """Return the Store Instances Response Module (PS3.18 table I.2-1) in DICOM JSON."""
    failed: list[Json] = []
    referenced: list[Json] = []
    others: list[Json] = []
    studies: set[str] = set()
    for outcome in stored.outcomes:
        match outcome:
            case Refused():
                (failed if outcome.sop_uid else others).append(_failure(outcome))
            case Accepted() | Duplicate():
                studies.add(outcome.study_uid)
                url = f"{root}/studies/{outcome.study_uid}/series/{outcome.series_uid}"
                place = _element("UR", f"{url}/instances/{outcome.sop_uid}")
                referenced.append({**_reference(outcome), "00081190": place})
    unread = stored.foreign_parts + bool(stored.broken)
    others += [{"00081197": _element("US", NOT_UNDERSTOOD)}] * unread
    body: Json = {}
    if len(studies) == 1:
        body["00081190"] = _element("UR", f"{root}/studies/{studies.pop()}")
    for tag, items in (("00081198", failed), ("00081199", referenced), ("0008119A", others)):
        if items:
            body[tag] = {"vr": "SQ", "Value": items}
    return body


def _failure(refused: Refused) -> Json:
    default = DUPLICATE_INSTANCE if isinstance(refused, Conflict) else NOT_UNDERSTOOD
    code = default if isinstance(refused, Conflict) else _REASONS.get(refused.code, default)
    reason = {"00081197": _element("US", code)}
    return {**_reference(refused), **reason} if refused.sop_uid else reason


def _reference(outcome: Outcome) -> Json:
    return {
        "00081150": _element("UI", outcome.sop_class),
        "00081155": _element("UI", outcome.sop_uid),
    }


def _element(vr: str, value: str | int) -> Json:
    return {"vr": vr, "Value": [value]}
