"""How the fenced process that speaks DICOM comes by what it may give out: by asking, bit by bit.

The store and its keys stay with the parent. The child has one control socket; for each query or
retrieval it makes a socket pair and sends one end over. On that, the parent answers one search, or
selects instances and gives out their bytes, and at the end records what was given and to whom, from
what it has sent itself.

Frame: length (4, big-endian), msgpack list [kind, ...]. Requests: ["find", who, level, keys],
["select", who, destination, level, keys], ["read", number, ["go"]...]; answers: ["row", ...],
["end"], ["instances", ...], ["data", bytes], ["no", code, sentence].
"""

import logging
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, BinaryIO

import msgpack

from node.gateway import query
from node.gateway.dataset_bytes import skip_meta
from node.gateway.holdings import HeldInstance, Holdings, Withheld
from node.gateway.query import Bounds, InvalidIdentifier, Level, TooBroad

log = logging.getLogger(__name__)

REQUEST_BYTES_MAX = 4 << 20  # the UIDs of 65,535 instances
ANSWER_BYTES_MAX = 32 << 20  # 65,535 selected instances
PIECE_BYTES = 1 << 20
CONNECTIONS_MAX = 32
IDLE_SECONDS = 600.0  # a peer may take a large instance slowly
_HEAD = struct.Struct(">I")


class Action(Enum):
    """What was tried."""

    SEARCH = "search"
    RETRIEVE = "retrieve"


@dataclass(frozen=True, slots=True)
class DimseAccess:
    """One query or retrieval and its outcome. UIDs identify: keep them out of logs."""

    action: Action
    calling: str  # AE title
    destination: str  # AE title of a C-MOVE, else ""
    code: str  # why it was refused or cut short, or ""
    instances: int  # given out whole
    study_uids: tuple[str, ...] = field(default=(), repr=False)


class Refusal(Exception):
    """The parent refuses: `code` is invalid, too_broad, withheld, unreadable, not_recorded or
    broken."""

    def __init__(self, code: str, sentence: str) -> None:
        super().__init__(sentence)
        self.code, self.sentence = code, sentence


@dataclass(frozen=True, slots=True)
class Selected:
    """One instance that may be read, by its place in the selection."""

    number: int
    sop_class: str
    sop_uid: str = field(repr=False)
    syntax: str
    size: int


class Lender:
    """The parent's side. `on_access` is called in threads, once for each query or retrieval;
    `may_give` before the first instance of a retrieval goes out: with False none does."""

    def __init__(
        self,
        holdings: Holdings,
        on_access: Callable[[DimseAccess], None],
        bounds: Bounds | None = None,
        may_give: Callable[[DimseAccess], bool] = lambda _: True,
    ) -> None:
        self._holdings, self._on_access, self._may_give = holdings, on_access, may_give
        self._bounds = bounds or Bounds()
        self._turns = threading.BoundedSemaphore(CONNECTIONS_MAX)

    def attach(self, control: socket.socket) -> None:
        """Serve a child until it closes its end of `control`, in threads of our own."""
        arguments = (control,)
        threading.Thread(target=self._listen, args=arguments, name="lender", daemon=True).start()

    def _listen(self, control: socket.socket) -> None:
        control.setblocking(True)
        with control:
            while True:
                try:
                    message, descriptors, _, _ = socket.recv_fds(control, 16, 1)
                except OSError:
                    return
                if not message:
                    return
                for descriptor in descriptors:
                    self._begin(socket.socket(fileno=descriptor))

    def _begin(self, connection: socket.socket) -> None:
        if not self._turns.acquire(blocking=False):
            connection.close()
            return
        try:
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()
        except RuntimeError:  # no thread can be had now
            self._turns.release()
            connection.close()

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection:
                connection.settimeout(IDLE_SECONDS)
                given = self._bounds, self._on_access, self._may_give
                _Turn(connection, self._holdings, *given).run()
        except (OSError, EOFError):
            log.debug("a query or retrieval was broken off")
        finally:
            self._turns.release()


class _Turn:
    """One connection: one search, or one selection and its reads."""

    def __init__(
        self,
        connection: socket.socket,
        holdings: Holdings,
        bounds: Bounds,
        on_access: Callable[[DimseAccess], None],
        may_give: Callable[[DimseAccess], bool],
    ) -> None:
        self._connection, self._holdings, self._bounds = connection, holdings, bounds
        self._on_access, self._may_give = on_access, may_give
        self._action, self._calling, self._destination = Action.SEARCH, "", ""
        self._chosen: list[HeldInstance] = []
        self._given = 0
        self._code = "broken_off"

    def run(self) -> None:
        request = _receive(self._connection, REQUEST_BYTES_MAX)
        try:
            match request:
                case ["find", str(calling), str(level), list(keys)]:
                    self._calling = calling
                    self._find(Level(level), _pairs(keys))
                case ["select", str(calling), str(destination), str(level), list(keys)]:
                    self._action = Action.RETRIEVE
                    self._calling, self._destination = calling, destination
                    self._select(Level(level), _pairs(keys))
                case _:
                    raise ValueError("no request")
        except InvalidIdentifier as error:
            self._refuse("invalid", str(error))
        except TooBroad as error:
            self._refuse("too_broad", str(error))
        except ValueError:
            self._refuse("invalid", "no request that we know")
        finally:
            self._record()

    def _find(self, level: Level, keys: list[tuple[int, str]]) -> None:
        rows = query.find(level, keys, self._holdings, self._bounds)
        while True:
            try:
                found = next(rows, None)
            except OSError:
                self._refuse("unreadable", "the store cannot be read now")
                return
            if found is None:
                break
            _send(self._connection, ["row", [[tag, list(v)] for tag, v in found.items()]])
        _send(self._connection, ["end"])
        self._code = ""

    def _select(self, level: Level, keys: list[tuple[int, str]]) -> None:
        try:
            self._chosen = query.select(level, keys, self._holdings)
        except OSError:
            self._refuse("unreadable", "the store cannot be read now")
            return
        if self._chosen and not self._may_give(self._access()):
            self._refuse("not_recorded", "it cannot be audited now, so nothing is given")
            return
        rows = [[i.sop_class, i.sop_uid, i.syntax, i.size] for i in self._chosen]
        _send(self._connection, ["instances", rows])
        while True:
            match _receive(self._connection, REQUEST_BYTES_MAX):
                case ["read", int(number)] if 0 <= number < len(self._chosen):
                    self._give(self._chosen[number])
                case ["done", str(code)]:
                    self._code = code[:32]
                    return
                case _:
                    raise ValueError("no request")

    def _give(self, instance: HeldInstance) -> None:
        try:
            stream = self._holdings.open(instance)
        except Withheld:
            _send(self._connection, ["no", "withheld", "it may not be shown any more"])
            return
        except OSError:
            _send(self._connection, ["no", "unreadable", "the store cannot read it"])
            return
        with closing(stream):
            while piece := self._piece(stream):
                if piece[0] == "no":
                    _send(self._connection, piece)
                    return
                _send(self._connection, piece)
        self._given += 1
        _send(self._connection, ["end"])

    def _piece(self, stream: BinaryIO) -> list[Any]:
        """Return the next piece of the data set; reading starts after the meta information."""
        try:
            if stream.tell() == 0:
                skip_meta(stream)
            data = stream.read(PIECE_BYTES)
        except (OSError, ValueError):
            return ["no", "unreadable", "the store cannot read it"]
        return ["data", data] if data else []

    def _refuse(self, code: str, sentence: str) -> None:
        self._code = code
        _send(self._connection, ["no", code, sentence])

    def _record(self) -> None:
        self._on_access(self._access())

    def _access(self) -> DimseAccess:
        studies = tuple(dict.fromkeys(instance.study_uid for instance in self._chosen))
        return DimseAccess(
            self._action, self._calling, self._destination, self._code, self._given, studies
        )


class Borrower:
    """The child's side; thread-safe."""

    def __init__(self, control: socket.socket) -> None:
        self._control, self._lock = control, threading.Lock()

    def find(
        self, calling: str, level: Level, keys: Sequence[tuple[int, str]]
    ) -> Iterator[dict[int, tuple[str, ...]]]:
        """Yield what answers a query. Raises `Refusal`."""
        with self._connect() as connection:
            _tell(connection, ["find", calling, level.value, [list(key) for key in keys]])
            while True:
                match _answer(connection):
                    case ["row", list(row)]:
                        yield {tag: tuple(values) for tag, values in row}
                    case _:
                        return

    def select(
        self, calling: str, destination: str, level: Level, keys: Sequence[tuple[int, str]]
    ) -> "Loan":
        """Return the instances that a retrieval asks for. Raises `Refusal`."""
        connection = self._connect()
        try:
            asked = ["select", calling, destination, level.value, [list(key) for key in keys]]
            _tell(connection, asked)
            rows = _answer(connection)[1]
        except BaseException:
            connection.close()
            raise
        return Loan(connection, [Selected(number, *row) for number, row in enumerate(rows)])

    def _connect(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        try:
            with theirs, self._lock:
                socket.send_fds(self._control, [b"new"], [theirs.fileno()])
        except OSError as error:
            ours.close()
            raise Refusal("broken", "the store cannot be asked now") from error
        ours.settimeout(IDLE_SECONDS)
        return ours


class Loan:
    """A selection; close it with what became of it."""

    def __init__(self, connection: socket.socket, instances: list[Selected]) -> None:
        self._connection, self.instances = connection, instances
        self._is_reading = False

    def read(self, instance: Selected) -> Iterator[bytes]:
        """Yield the data set in pieces. Raises `Refusal`."""
        while self._is_reading:  # the last one was not wanted to its end
            self._next()
        _tell(self._connection, ["read", instance.number])
        self._is_reading = True
        while piece := self._next():
            yield piece

    def _next(self) -> bytes:
        self._is_reading, answer = False, _answer(self._connection)
        self._is_reading = answer[0] == "data"
        return bytes(answer[1]) if self._is_reading else b""

    def close(self, code: str) -> None:
        """Say what became of the retrieval ("" if all is well), which is then recorded."""
        with self._connection, suppress(OSError):
            _send(self._connection, ["done", code])


def _pairs(keys: list[Any]) -> list[tuple[int, str]]:
    pairs = []
    for key in keys:
        match key:
            case [int(tag), str(text)]:
                pairs.append((tag, text))
            case _:
                raise ValueError("no keys")
    return pairs


def _tell(connection: socket.socket, message: list[Any]) -> None:
    try:
        _send(connection, message)
    except OSError as error:
        raise Refusal("broken", "the store cannot be asked now") from error


def _answer(connection: socket.socket) -> list[Any]:
    try:
        answer = _receive(connection, ANSWER_BYTES_MAX)
    except (OSError, EOFError, ValueError) as error:
        raise Refusal("broken", "the store does not answer") from error
    if answer[0] == "no":
        raise Refusal(answer[1], answer[2])
    return answer


def _send(connection: socket.socket, message: list[Any]) -> None:
    data = msgpack.packb(message)
    connection.sendall(_HEAD.pack(len(data)) + data)


def _receive(connection: socket.socket, bytes_max: int) -> list[Any]:
    """Return the next frame. Raises `EOFError`, `OSError`, and `ValueError` for what is none."""
    (length,) = _HEAD.unpack(_exactly(connection, _HEAD.size))
    if length > bytes_max:
        raise ValueError("a frame is too long")
    try:
        message = msgpack.unpackb(_exactly(connection, length), strict_map_key=True)
    except (msgpack.UnpackException, UnicodeDecodeError, RecursionError) as error:
        raise ValueError("no frame") from error
    if not isinstance(message, list) or not message:
        raise ValueError("no frame")
    return message


def _exactly(connection: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        piece = connection.recv(min(count - len(data), PIECE_BYTES))
        if not piece:
            raise EOFError
        data += piece
    return bytes(data)
