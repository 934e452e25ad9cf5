"""The addresses of what can be retrieved, and how each is answered."""

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor

from aiohttp import web

from node.gateway.holdings import HeldInstance, HeldStudy, Holdings
from node.gateway.web import attributes as tags
from node.gateway.web import media
from node.gateway.web.errors import Problem, not_found
from node.gateway.web.frames import parse_frame_list
from node.gateway.web.media import MediaType, frame_forms, instance_forms, parse_accept
from node.gateway.web.wado import Answer, Retriever, picture_types
from node.gateway.web.wishes import read_wishes

ROOT = "/dicom-web"
_UID = re.compile(r"[0-9]+(?:\.[0-9]+)*")
_STUDY = "/studies/{study}"
_SERIES = _STUDY + "/series/{series}"
_INSTANCE = _SERIES + "/instances/{instance}"
_FRAME = _INSTANCE + "/frames/{frames}"

Make = Callable[[web.Request, str], Awaitable[tuple[Answer, int]]]


def study_of(match: Mapping[str, str]) -> str:
    """Return the Study Instance UID of a path, "" without one."""
    return _uid(match, "study") if "study" in match else ""


def search_fixed(match: Mapping[str, str]) -> dict[int, str]:
    """Return the keys that the path of a search fixes."""
    names = {"study": tags.STUDY_INSTANCE, "series": tags.SERIES_INSTANCE}
    return {tag: _uid(match, name) for name, tag in names.items() if name in match}


def _uid(match: Mapping[str, str], name: str) -> str:
    uid = match[name]
    if len(uid) > 64 or not _UID.fullmatch(uid):
        raise Problem(400, "bad_uid", f"the {name} in the path is not a UID")
    return uid


class Resources:
    """Finds what a path names and has it retrieved."""

    def __init__(self, holdings: Holdings, retriever: Retriever, pool: Executor) -> None:
        self._holdings, self._retriever, self._pool = holdings, retriever, pool

    def routes(self) -> Iterator[tuple[str, Make]]:
        """Yield each path below the root, and what answers it."""
        for path in (_STUDY, _SERIES, _INSTANCE):
            yield path, self._instances
            yield f"{path}/metadata", self._metadata
            yield f"{path}/thumbnail", self._thumbnail
        yield f"{_INSTANCE}/rendered", self._rendered
        yield f"{_INSTANCE}/bulkdata/{{path:.+}}", self._bulk
        yield _FRAME, self._frames
        yield f"{_FRAME}/rendered", self._rendered
        yield f"{_FRAME}/thumbnail", self._thumbnail

    async def _instances(self, request: web.Request, root: str) -> tuple[Answer, int]:
        instances = await self._find(request)
        forms = instance_forms(_accepted(request))
        return await self._retriever.instances(instances, forms), len(instances)

    async def _metadata(self, request: web.Request, root: str) -> tuple[Answer, int]:
        instances = await self._find(request)
        kind = media.accepts(_accepted(request), media.DICOM_JSON, media.JSON)

        def url_of(instance: HeldInstance) -> str:
            series = f"{root}/studies/{instance.study_uid}/series/{instance.series_uid}"
            return f"{series}/instances/{instance.sop_uid}"

        answer = await self._retriever.metadata(instances, url_of)
        answer.content_type = kind
        return answer, len(instances)

    async def _bulk(self, request: web.Request, root: str) -> tuple[Answer, int]:
        (instance,) = await self._find(request)
        path = request.match_info["path"]
        return await self._retriever.bulk(instance, path, _accepted(request)), 1

    async def _frames(self, request: web.Request, root: str) -> tuple[Answer, int]:
        (instance,) = await self._find(request)
        forms = frame_forms(_accepted(request))
        return await self._retriever.frames(instance, _frame_list(request), forms), 1

    async def _rendered(self, request: web.Request, root: str) -> tuple[Answer, int]:
        (instance,) = await self._find(request)
        return await self._picture(request, instance, thumbnail=False), 1

    async def _thumbnail(self, request: web.Request, root: str) -> tuple[Answer, int]:
        instances = await self._find(request)
        images = [i for i in instances if tags.ROWS in i.attributes] or instances
        # The middle of a series shows more of a patient than its first slice.
        return await self._picture(request, images[len(images) // 2], thumbnail=True), 1

    async def _picture(
        self, request: web.Request, instance: HeldInstance, thumbnail: bool
    ) -> Answer:
        kind = media.accepts(_accepted(request), *picture_types())
        wishes = read_wishes(request.query.items(), kind, thumbnail)
        number = None
        if "frames" in request.match_info:
            numbers = _frame_list(request)
            if len(numbers) != 1:
                raise Problem(400, "bad_frames", "one frame at a time is shown as a picture")
            number = numbers[0]
        return await self._retriever.picture(instance, number, wishes)

    async def _find(self, request: web.Request) -> Sequence[HeldInstance]:
        """Return what the path names, at least one instance; raises `Problem` 404."""
        match = request.match_info
        loop = asyncio.get_running_loop()
        study = await loop.run_in_executor(self._pool, self._holdings.study, study_of(match))
        if study is None:
            raise not_found("study")
        return _below(study, match)


def _below(study: HeldStudy, match: Mapping[str, str]) -> Sequence[HeldInstance]:
    if "series" not in match:
        return study.instances
    series = study.series.get(_uid(match, "series"))
    if series is None:
        raise not_found("series")
    if "instance" not in match:
        return series
    instance = study.by_uid.get(_uid(match, "instance"))
    if instance is None or instance.series_uid != match["series"]:
        raise not_found("instance")
    return [instance]


def _accepted(request: web.Request) -> list[MediaType]:
    # A page that only has a link says what it accepts in the query (PS3.18 §8.3.3.1).
    named = request.query.get("accept", "")
    return parse_accept(named or request.headers.get("Accept", ""))


def _frame_list(request: web.Request) -> list[int]:
    try:
        return parse_frame_list(request.match_info["frames"])
    except ValueError:
        raise Problem(400, "bad_frames", "frames are numbers from 1, separated by commas") from None
