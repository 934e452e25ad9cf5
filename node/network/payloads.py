"""The payloads that this room defines: bounded, strict, one byte string per value.

HELLO and GOODBYE are canonical msgpack. Their first elements never change their meaning, so that
any two versions can tell each other what they are. The rest is fixed-width integers, 32-byte
digests and lists of byte strings, which have one encoding by construction; unlike nested arrays
they cannot make a decoder build millions of objects out of one frame.

Every decoder raises `InvalidFrame` and nothing else.
"""

import re
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from consensus.wire import NotCanonical, pack, unpack
from node.network.errors import Incompatible, InvalidFrame, Reason
from node.network.frames import PAYLOAD_BYTES_MAX, WIRE_VERSION, Kind

MAGIC = b"radledger"
DIGEST_BYTES = 32
DIGESTS_MAX = PAYLOAD_BYTES_MAX[Kind.ANNOUNCE] // DIGEST_BYTES
TRANSACTIONS_MAX = 8192  # in one frame
BLOCKS_MAX = 1024  # in one frame
HEIGHT_MAX = 2**53
NUMBER_MAX = 2**32 - 1
SENTENCE_MAX = 300  # characters of a GOODBYE

_HOST = re.compile(r"[A-Za-z0-9.:%_-]{0,253}\Z")
_SENTENCE = re.compile(rf"[ -~]{{0,{SENTENCE_MAX}}}\Z")
_AGENT = re.compile(r"[ -~]{0,64}\Z")
_COUNT = struct.Struct(">I")
_STATUS = struct.Struct(">QQ")
_FETCH_BLOCKS = struct.Struct(">IQQ")
_BLOCKS = struct.Struct(">IQ")
_SEALED = struct.Struct(">Q")


class Role(StrEnum):
    """What a node is to the network."""

    VALIDATOR = "validator"
    OBSERVER = "observer"


@dataclass(frozen=True, slots=True)
class Hello:
    """The first frame both ways."""

    protocol_version: int
    chain_id: bytes  # 32 bytes
    role: Role
    height: int  # highest sealed block that the sender can hand out
    listen_host: str = ""  # where the sender accepts connections, as it sees itself; may be empty
    listen_port: int = 0
    agent: str = ""  # software name and version, printable ASCII


@dataclass(frozen=True, slots=True)
class Goodbye:
    """Why the sender ends the connection; `code` may be one that this version does not know."""

    code: int
    sentence: str


@dataclass(frozen=True, slots=True)
class Status:
    height: int  # highest sealed block that the sender can hand out
    view: int


@dataclass(frozen=True, slots=True)
class FetchBlocks:
    request_id: int  # chosen by the asker, echoed in the answer
    first: int
    last: int  # inclusive


@dataclass(frozen=True, slots=True)
class Blocks:
    request_id: int
    first: int  # height of the first block; the others follow without a gap
    blocks: tuple[bytes, ...]  # may be fewer than asked for, or none


def encode_hello(hello: Hello) -> bytes:
    """Return the payload of HELLO."""
    return pack(
        (
            MAGIC,
            WIRE_VERSION,
            hello.protocol_version,
            hello.chain_id,
            str(hello.role),
            hello.height,
            hello.listen_host,
            hello.listen_port,
            hello.agent,
        )
    )


def decode_hello(payload: bytes, own: Hello) -> Hello:
    """Return the peer's HELLO when it speaks our versions and belongs to our chain.

    Raises `InvalidFrame` for what is no HELLO, `Incompatible` for one of another version (the
    sentence names both) or chain.
    """
    value = _unpack(payload)
    if not isinstance(value, tuple) or len(value) < 3 or value[0] != MAGIC:
        raise InvalidFrame("HELLO does not begin with RadLedger's magic")
    wire, protocol = value[1], value[2]
    if not _is_number(wire) or not _is_number(protocol):
        raise InvalidFrame("HELLO has no version numbers")
    if (wire, protocol) != (WIRE_VERSION, own.protocol_version):
        raise Incompatible(
            Reason.VERSION,
            f"this node speaks wire version {WIRE_VERSION} and protocol version "
            f"{own.protocol_version}, the other wire version {wire} and protocol version "
            f"{protocol}; upgrade the older one",
        )
    if len(value) != 9:
        raise InvalidFrame(f"HELLO has {len(value)} fields, not 9")
    chain_id, role, height, host, port, agent = value[3:]
    if not isinstance(chain_id, bytes) or len(chain_id) != DIGEST_BYTES:
        raise InvalidFrame("HELLO has no chain id of 32 bytes")
    if chain_id != own.chain_id:
        raise Incompatible(
            Reason.CHAIN,
            f"this node is on chain {own.chain_id.hex()[:16]}, the other on "
            f"{chain_id.hex()[:16]}; compare the genesis files",
        )
    if role not in ("validator", "observer"):
        raise InvalidFrame("HELLO names no known role")
    if not _is_number(height, HEIGHT_MAX) or not _is_number(port, 65_535):
        raise InvalidFrame("HELLO has a height or port out of range")
    if not isinstance(host, str) or not _HOST.match(host):
        raise InvalidFrame("HELLO has no valid host")
    if not isinstance(agent, str) or not _AGENT.match(agent):
        raise InvalidFrame("HELLO has no printable agent")
    return Hello(own.protocol_version, chain_id, Role(str(role)), height, host, port, agent)


def encode_goodbye(reason: Reason, sentence: str) -> bytes:
    """Return the payload of GOODBYE; an over-long sentence is cut."""
    printable = "".join(c if " " <= c <= "~" else "?" for c in sentence[:SENTENCE_MAX])
    return pack((int(reason), printable))


def decode_goodbye(payload: bytes) -> Goodbye:
    """Return the peer's farewell; its sentence is printable ASCII, safe for a log."""
    match _unpack(payload):
        case (int(code), str(sentence)) if _is_number(code) and _SENTENCE.match(sentence):
            return Goodbye(code, sentence)
    raise InvalidFrame("GOODBYE is not a code and a printable sentence")


def encode_status(status: Status) -> bytes:
    """Return the payload of STATUS."""
    return _STATUS.pack(status.height, status.view)


def decode_status(payload: bytes) -> Status:
    """Return the peer's height and view."""
    height, view = _fixed(_STATUS, payload, "STATUS")
    return Status(_bounded(height, "STATUS"), _bounded(view, "STATUS"))


def encode_digests(digests: Sequence[bytes]) -> bytes:
    """Return the payload of ANNOUNCE or FETCH_TRANSACTIONS: 1 to `DIGESTS_MAX` digests."""
    return b"".join(digests)


def decode_digests(payload: bytes) -> list[bytes]:
    """Return the digests, in order and without repetition."""
    if not payload or len(payload) % DIGEST_BYTES:
        raise InvalidFrame(f"{len(payload)} bytes are no list of 32-byte digests")
    digests = [payload[i : i + DIGEST_BYTES] for i in range(0, len(payload), DIGEST_BYTES)]
    if len(digests) > DIGESTS_MAX:
        raise InvalidFrame(f"{len(digests)} digests; at most {DIGESTS_MAX}")
    if len(set(digests)) != len(digests):
        raise InvalidFrame("a digest is listed twice")
    return digests


def encode_transactions(bodies: Sequence[bytes]) -> bytes:
    """Return the payload of TRANSACTIONS: 1 to `TRANSACTIONS_MAX` encoded transactions."""
    return _join(bodies)


def decode_transactions(payload: bytes) -> list[bytes]:
    """Return the encoded transactions, none of them empty; what is in them is not looked at."""
    bodies = _split(payload, 0, TRANSACTIONS_MAX, "TRANSACTIONS")
    if not bodies:
        raise InvalidFrame("TRANSACTIONS is empty")
    return bodies


def encode_fetch_blocks(request: FetchBlocks) -> bytes:
    """Return the payload of FETCH_BLOCKS."""
    return _FETCH_BLOCKS.pack(request.request_id, request.first, request.last)


def decode_fetch_blocks(payload: bytes) -> FetchBlocks:
    """Return the request; its range is not empty and starts above genesis."""
    request_id, first, last = _fixed(_FETCH_BLOCKS, payload, "FETCH_BLOCKS")
    if not 1 <= first <= last <= HEIGHT_MAX:
        raise InvalidFrame(f"FETCH_BLOCKS asks for {first} to {last}")
    return FetchBlocks(request_id, first, last)


def encode_blocks(answer: Blocks) -> bytes:
    """Return the payload of BLOCKS."""
    return _BLOCKS.pack(answer.request_id, answer.first) + _join(answer.blocks)


def decode_blocks(payload: bytes) -> Blocks:
    """Return the answer; none of its blocks is empty, what is in them is not looked at."""
    if len(payload) < _BLOCKS.size:
        raise InvalidFrame("BLOCKS is too short")
    request_id, first = _BLOCKS.unpack_from(payload)
    blocks = _split(payload, _BLOCKS.size, BLOCKS_MAX, "BLOCKS")
    return Blocks(request_id, _bounded(first, "BLOCKS"), tuple(blocks))


def encode_sealed(height: int, block: bytes) -> bytes:
    """Return the payload of SEALED: one block with its certificate."""
    return _SEALED.pack(height) + block


def decode_sealed(payload: bytes) -> tuple[int, bytes]:
    """Return the height that the sender claims, and the block."""
    if len(payload) <= _SEALED.size:
        raise InvalidFrame("SEALED is too short")
    return _bounded(_SEALED.unpack_from(payload)[0], "SEALED"), payload[_SEALED.size :]


def _join(items: Sequence[bytes]) -> bytes:
    """A 4-byte count, a 4-byte length for each item, the items."""
    return b"".join((struct.pack(f">{len(items) + 1}I", len(items), *map(len, items)), *items))


def _split(payload: bytes, start: int, items_max: int, name: str) -> list[bytes]:
    if len(payload) < start + _COUNT.size:
        raise InvalidFrame(f"{name} is too short")
    (count,) = _COUNT.unpack_from(payload, start)
    position = start + _COUNT.size * (count + 1)
    if count > items_max or position > len(payload):
        raise InvalidFrame(f"{name} announces {count} items in {len(payload)} bytes")
    lengths: Iterable[int] = struct.unpack_from(f">{count}I", payload, start + _COUNT.size)
    items = []
    for length in lengths:
        items.append(payload[position : position + length])
        position += length
    if position != len(payload) or not all(items):
        raise InvalidFrame(f"{name} has items that are empty, cut or followed by other bytes")
    return items


def _unpack(payload: bytes) -> object:
    try:
        return unpack(payload)
    except (NotCanonical, RecursionError, ValueError) as error:
        raise InvalidFrame(f"not canonical: {type(error).__name__}") from error


def _fixed(form: struct.Struct, payload: bytes, name: str) -> tuple[int, ...]:
    if len(payload) != form.size:
        raise InvalidFrame(f"{name} of {len(payload)} bytes, not {form.size}")
    return form.unpack(payload)


def _is_number(value: object, largest: int = NUMBER_MAX) -> bool:
    return type(value) is int and 0 <= value <= largest


def _bounded(value: int, name: str) -> int:
    if value > HEIGHT_MAX:
        raise InvalidFrame(f"{name} has a height or view out of range")
    return value
