"""The local PACS by DICOMweb: STOW-RS to it, WADO-RS and QIDO-RS from it (PS3.18 §10)."""

import json
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from pathlib import Path
from ssl import SSLContext, SSLEOFError, SSLError
from typing import IO, Any
from urllib.parse import urlsplit

from node.gateway.holdings import HeldInstance
from node.gateway.tls import handshake_sentence
from node.gateway.ways import NotOffered, OnFetched, OnSent, Read, Unreachable

TIMEOUT_SECONDS = 60.0
READ_BACK_BYTES_MAX = 8 << 30  # one instance
BATCH_BYTES_MAX, BATCH_PARTS_MAX = 64 << 20, 64
ANSWER_BYTES_MAX = 16 << 20
_PIECE_BYTES = 1 << 20
_CUT = (BrokenPipeError, ConnectionResetError, SSLEOFError)
_PART_HEAD_BYTES_MAX = 16 << 10
_STORED, _FAILED, _REASON = "00081199", "00081198", "00081197"
_SOP_UID_OF_REFERENCE, _SOP_UID = "00081155", "00080018"
_STOW_ANSWERS = (200, 202, 409)
_NOT_OFFERED = (404, 405, 406, 501)


class WebPacs:
    """A PACS with a DICOMweb server."""

    def __init__(
        self, url: str, headers: Mapping[str, str] | None = None, tls: SSLContext | None = None
    ) -> None:
        """`url` is the server's root, as "https://pacs.hospital.example/dicom-web"; `headers` go
        with every request, as the one that authorises. Raises `ValueError` for another url."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("not the URL of a DICOMweb server")
        if parts.scheme == "https" and tls is None:
            raise ValueError("https needs a TLS context")
        self._host, self._port, self._root = parts.hostname, parts.port, parts.path.rstrip("/")
        self._headers = dict(headers or {})
        self._tls = tls if parts.scheme == "https" else None

    def send(self, instances: Sequence[HeldInstance], read: Read, on_sent: OnSent) -> None:
        """See `Way`. Some instances at a time, streamed."""
        for batch in _batches(instances):
            answer = self._store(batch, read)
            stored = set(_references(answer, _STORED))
            failed = _references(answer, _FAILED)
            for instance in batch:
                if instance.sop_uid in stored and instance.sop_uid not in failed:
                    on_sent(instance, "")
                else:
                    on_sent(instance, f"status_{failed.get(instance.sop_uid, 0x0110):04x}")

    def _store(self, batch: Sequence[HeldInstance], read: Read) -> Any:
        boundary = secrets.token_hex(16)
        head = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
        tail = f"--{boundary}--\r\n".encode()

        def body() -> Iterator[bytes]:
            for instance in batch:
                yield head
                yield from read(instance)
                yield b"\r\n"
            yield tail

        length = sum(len(head) + instance.size + 2 for instance in batch) + len(tail)
        headers = {
            "Content-Type": f'multipart/related; type="application/dicom"; boundary={boundary}',
            "Content-Length": str(length),
            "Accept": "application/dicom+json",
        }
        path = f"/studies/{batch[0].study_uid}"
        with self._asked("POST", path, headers, body()) as answer:
            if answer.status in _STOW_ANSWERS:
                return _json(answer)
            raise Unreachable(f"STOW-RS is answered with {answer.status}")

    def fetch(self, instances: Sequence[HeldInstance], folder: Path, on_fetched: OnFetched) -> None:
        """See `Way`. Each instance as the PACS keeps it."""
        target = folder / "fetched.dcm"
        accept = 'multipart/related; type="application/dicom"; transfer-syntax=*'
        try:
            for number, instance in enumerate(instances):
                path = (
                    f"/studies/{instance.study_uid}/series/{instance.series_uid}"
                    f"/instances/{instance.sop_uid}"
                )
                with self._asked("GET", path, {"Accept": accept}) as answer:
                    found = answer.status == 200
                    if found:
                        _save_part(answer, target)
                    elif answer.status not in (404, 410):
                        code = answer.status
                        kind = NotOffered if code in _NOT_OFFERED and not number else Unreachable
                        raise kind(f"WADO-RS is answered with {code}")
                on_fetched(instance, target if found else None)
        finally:
            target.unlink(missing_ok=True)

    def lists(self, instances: Sequence[HeldInstance]) -> frozenset[str]:
        """See `Way`."""
        found: set[str] = set()
        for study_uid in dict.fromkeys(instance.study_uid for instance in instances):
            headers = {"Accept": "application/dicom+json"}
            with self._asked("GET", f"/studies/{study_uid}/instances", headers) as answer:
                if answer.status in _NOT_OFFERED:
                    raise NotOffered(f"QIDO-RS is answered with {answer.status}")
                if answer.status not in (200, 204):
                    raise Unreachable(f"QIDO-RS is answered with {answer.status}")
                rows = _json(answer) if answer.status == 200 else []
            for row in rows if isinstance(rows, list) else []:
                found.update(_values(row, _SOP_UID))
        return frozenset(found)

    def answers(self) -> str:
        """Return why the server does not answer a search, or ""."""
        headers = {"Accept": "application/dicom+json"}
        try:
            with self._asked("GET", "/studies?limit=1", headers) as answer:
                status = answer.status
        except Unreachable as error:
            return f"DICOMweb: {error}"
        return "" if status in (200, 204) else f"DICOMweb: a search is answered with {status}"

    @contextmanager
    def _asked(
        self, method: str, path: str, headers: Mapping[str, str], body: Any = None
    ) -> Iterator[HTTPResponse]:
        connection = self._connection()
        try:
            everything = {**self._headers, **headers}
            connection.request(method, self._root + path, body, everything, encode_chunked=False)
            yield connection.getresponse()
        except (OSError, HTTPException) as error:
            raise Unreachable(
                f"{method} fails: {_sentence(error, is_tls=self._tls is not None)}"
            ) from error
        finally:
            connection.close()

    def _connection(self) -> HTTPConnection:
        if self._tls is None:
            return HTTPConnection(self._host, self._port, timeout=TIMEOUT_SECONDS)
        return HTTPSConnection(self._host, self._port, timeout=TIMEOUT_SECONDS, context=self._tls)


def _sentence(error: Exception, *, is_tls: bool) -> str:
    if is_tls and isinstance(error, _CUT):
        # With TLS 1.3 a server refuses our certificate when we write already, and may not say so.
        return "the connection ends before an answer: does the server take our certificate?"
    return handshake_sentence(error) if isinstance(error, SSLError) else type(error).__name__


def _batches(instances: Sequence[HeldInstance]) -> Iterator[list[HeldInstance]]:
    batch: list[HeldInstance] = []
    size = 0
    for instance in instances:
        if batch and (len(batch) >= BATCH_PARTS_MAX or size + instance.size > BATCH_BYTES_MAX):
            yield batch
            batch, size = [], 0
        batch.append(instance)
        size += instance.size
    if batch:
        yield batch


def _json(answer: HTTPResponse) -> Any:
    data = answer.read(ANSWER_BYTES_MAX + 1)
    try:
        if len(data) > ANSWER_BYTES_MAX:
            raise ValueError
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Unreachable("the answer is no DICOM JSON") from error


def _references(answer: Any, sequence: str) -> dict[str, int]:
    """Return the instances in a sequence of a STOW answer, with the reason of a failure."""
    found = {}
    if isinstance(answer, list):
        answer = answer[0] if answer else {}
    for item in _values(answer, sequence):
        reasons = _values(item, _REASON)
        reason = reasons[0] if reasons and isinstance(reasons[0], int) else 0x0110
        for uid in _values(item, _SOP_UID_OF_REFERENCE):
            found[str(uid)] = reason
    return found


def _values(item: Any, tag: str) -> list[Any]:
    element = item.get(tag) if isinstance(item, dict) else None
    values = element.get("Value") if isinstance(element, dict) else None
    return values if isinstance(values, list) else []


def _save_part(answer: HTTPResponse, target: Path) -> None:
    """Write the one part of a multipart answer to `target`, or all of a plain one."""
    kind = answer.headers.get_content_type()
    boundary = answer.headers.get_param("boundary")
    with target.open("w+b") as file:
        if kind != "multipart/related":
            _save(answer, file)
            return
        if not isinstance(boundary, str) or not boundary:
            raise Unreachable("WADO-RS is answered without a boundary")
        _skip_part_head(answer)
        _save(answer, file)
        end = b"\r\n--" + boundary.encode("latin-1") + b"--"
        size = file.seek(0, 2)
        start = max(0, size - len(end) - 1_024)
        file.seek(start)
        at = file.read().rfind(end)
        if at < 0:
            raise Unreachable("WADO-RS is answered with a part that does not end")
        file.truncate(start + at)


def _save(answer: HTTPResponse, file: IO[bytes]) -> None:
    left = READ_BACK_BYTES_MAX
    while piece := answer.read(_PIECE_BYTES):
        left -= len(piece)
        if left < 0:
            raise Unreachable(f"WADO-RS gives more than {READ_BACK_BYTES_MAX} bytes of an instance")
        file.write(piece)


def _skip_part_head(answer: HTTPResponse) -> None:
    read = 0
    has_begun = False
    while line := answer.readline(_PART_HEAD_BYTES_MAX):
        read += len(line)
        if read > _PART_HEAD_BYTES_MAX:
            break
        if line.startswith(b"--"):
            has_begun = True
        elif has_begun and line in (b"\r\n", b"\n"):
            return
    raise Unreachable("WADO-RS is answered with no part")
