"""Multipart messages (RFC 2046 §5.1, RFC 2387), read in pieces of any size and bounded memory.

`MultipartParser` does no IO: it is fed bytes and returns events. It holds at most a delimiter, or
the header of one part, whatever the message's size. The boundary must be announced in the request;
that it stands inside a part cannot be told from a new part, as always with multipart.
"""

import re
from dataclasses import dataclass
from enum import Enum, auto

_BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,\-./:=? ]{0,69}[0-9A-Za-z'()+_,\-./:=?]")
_PREAMBLE_BYTES_MAX = 4_096
_PADDING_BYTES_MAX = 256  # white space between a delimiter and its line's end


class InvalidMultipart(ValueError):
    """The message is not multipart, or is larger in some way than allowed."""


@dataclass(frozen=True, slots=True)
class PartBegin:
    """A part begins; its header's names are in lower case."""

    headers: dict[str, str]


@dataclass(frozen=True, slots=True)
class PartData:
    """Bytes of the part that began last."""

    data: bytes


@dataclass(frozen=True, slots=True)
class PartEnd:
    """The part is whole."""


Event = PartBegin | PartData | PartEnd


class _State(Enum):
    PREAMBLE = auto()
    DELIMITER = auto()  # after "--boundary": the rest of its line
    HEADER = auto()
    BODY = auto()
    EPILOGUE = auto()


def check_boundary(boundary: str | None) -> bytes:
    """Return the boundary as bytes, or raise `InvalidMultipart` (RFC 2046 §5.1.1)."""
    if boundary is None or not _BOUNDARY.fullmatch(boundary):
        raise InvalidMultipart("the Content-Type names no boundary of 1 to 70 allowed characters")
    return boundary.encode("ascii")


class MultipartParser:
    """Splits one message. Raises `InvalidMultipart` from `feed` and `finish`, nothing else."""

    def __init__(self, boundary: bytes, header_bytes_max: int, parts_max: int) -> None:
        self._delimiter = b"\r\n--" + boundary
        self._header_bytes_max, self._parts_max = header_bytes_max, parts_max
        self._state = _State.PREAMBLE
        # The first delimiter needs no line end before it; this one stands for the start.
        self._buffer = bytearray(b"\r\n")
        self._preamble = 0
        self._skip = 0  # bytes before the body that are still in the buffer
        self._error: InvalidMultipart | None = None
        self.parts = 0

    def feed(self, data: bytes) -> list[Event]:
        """Return what `data` completes, in order.

        What was whole before an error is returned first; the next call raises.
        """
        if self._error is not None:
            raise self._error
        self._buffer += data
        events: list[Event] = []
        try:
            while self._step(events):
                pass
        except InvalidMultipart as error:
            if not events:
                raise
            self._error = error
        return events

    def finish(self) -> None:
        """Tell that the message ends; raises unless the closing delimiter was seen."""
        if self._error is not None:
            raise self._error
        if self._state is _State.PREAMBLE:
            raise InvalidMultipart("no part begins with the boundary of the Content-Type")
        if self._state is not _State.EPILOGUE:
            raise InvalidMultipart("the message ends before its closing boundary")

    def _step(self, events: list[Event]) -> bool:
        """Take one step; False when more bytes are needed."""
        match self._state:
            case _State.PREAMBLE:
                return self._skip_preamble()
            case _State.DELIMITER:
                return self._after_delimiter()
            case _State.HEADER:
                return self._header(events)
            case _State.BODY:
                return self._body(events)
            case _State.EPILOGUE:
                self._buffer.clear()
                return False

    def _skip_preamble(self) -> bool:
        at = self._buffer.find(self._delimiter)
        dropped = at if at >= 0 else max(0, len(self._buffer) - len(self._delimiter) + 1)
        self._preamble += dropped
        if self._preamble > _PREAMBLE_BYTES_MAX:
            raise InvalidMultipart("no part begins with the boundary of the Content-Type")
        del self._buffer[:dropped]
        if at < 0:
            return False
        del self._buffer[: len(self._delimiter)]
        self._state = _State.DELIMITER
        return True

    def _after_delimiter(self) -> bool:
        if self._buffer[:2] == b"--":
            self._state = _State.EPILOGUE
            return True
        end = self._buffer.find(b"\r\n")
        if end < 0 and len(self._buffer) <= _PADDING_BYTES_MAX:
            return False
        if end < 0 or end > _PADDING_BYTES_MAX or self._buffer[:end].strip(b" \t"):
            raise InvalidMultipart("a boundary is followed by something else than a line's end")
        del self._buffer[:end]  # the line's end stays: an empty header is then one empty line
        self._state = _State.HEADER
        return True

    def _header(self, events: list[Event]) -> bool:
        end = self._buffer.find(b"\r\n\r\n")
        if (end if end >= 0 else len(self._buffer)) > self._header_bytes_max:
            raise InvalidMultipart(f"a part's header exceeds {self._header_bytes_max} bytes")
        if end < 0:
            return False
        self.parts += 1
        if self.parts > self._parts_max:
            raise InvalidMultipart(f"more than {self._parts_max} parts in one message")
        events.append(PartBegin(_parse_header(bytes(self._buffer[:end]))))
        # One line's end is left, since a delimiter may follow an empty body at once.
        del self._buffer[: end + 2]
        self._state = _State.BODY
        self._skip = 2
        return True

    def _body(self, events: list[Event]) -> bool:
        at = self._buffer.find(self._delimiter)
        known = at if at >= 0 else len(self._buffer) - len(self._delimiter) + 1
        if known > self._skip:
            events.append(PartData(bytes(memoryview(self._buffer)[self._skip : known])))
        if known > 0:
            del self._buffer[:known]
            self._skip = max(0, self._skip - known)
        if at < 0:
            return False
        del self._buffer[: len(self._delimiter)]
        events.append(PartEnd())
        self._state = _State.DELIMITER
        return True


def _parse_header(lines: bytes) -> dict[str, str]:
    headers: dict[str, str] = {}
    for line in lines.split(b"\r\n"):
        if not line:
            continue
        name, colon, value = line.partition(b":")
        if not colon or not name.strip() or name[:1] in b" \t":
            raise InvalidMultipart("a part's header has a line that is no header field")
        headers[name.strip().decode("latin-1").lower()] = value.strip().decode("latin-1")
    return headers
