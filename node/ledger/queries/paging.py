"""Pages cut out of secondary indexes, and cursors that belong to one question.

A list goes newest first in the order of its ordinals, which nothing that happens later changes. So
the next page goes on below the last row seen, whatever blocks have come in between. A cursor
carries that row and a digest of the question; it means nothing to another question.
"""

import base64
import binascii
import hashlib
import heapq
from collections.abc import Callable, Iterator
from itertools import islice
from typing import TypeAlias, TypeVar

from consensus.wire import NotCanonical, Value, pack, unpack
from node.ledger.limits import HEIGHT_MAX
from node.ledger.transaction import INSTITUTION
from storage import schema
from storage.chain import ChainStore

CURSOR_CHARACTERS_MAX = 128
ROWS_MAX = 2_000  # index rows looked at for one page

_CURSOR_VERSION = 1
_CHUNK_FIRST = 16
_CHUNK_MAX = 512
_AFTER_ROWS = b"\xff"

Row: TypeAlias = tuple[bytes, bytes]  # (ordinal, value of the index row)
Answer = TypeVar("Answer")


class BadQuery(ValueError):
    """The question has no meaning; the sentence names the field and what it may be."""


def question(name: str, *fields: Value) -> bytes:
    """Return 8 bytes that tell questions apart."""
    return hashlib.sha256(pack((name, *fields))).digest()[:8]


def encode_cursor(asked: bytes, position: bytes) -> str:
    """Return the cursor that goes on after `position` for the question `asked`."""
    row = pack((_CURSOR_VERSION, asked, position))
    return base64.urlsafe_b64encode(row).decode().rstrip("=")


def decode_cursor(asked: bytes, cursor: str | None) -> bytes | None:
    """Return the position after which the page begins; None for the first. Raises `BadQuery`."""
    if cursor is None:
        return None
    wrong = BadQuery("cursor must be the next_cursor of a page of this same question")
    if type(cursor) is not str or len(cursor) > CURSOR_CHARACTERS_MAX or not cursor.isascii():
        raise wrong
    try:
        row = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        version, of_question, position = unpack(row)  # type: ignore[misc,str-unpack]
    except (binascii.Error, NotCanonical, TypeError, ValueError) as error:
        raise wrong from error
    if (version, of_question) != (_CURSOR_VERSION, asked) or type(position) is not bytes:
        raise wrong
    return position


def newest_first(
    chain: ChainStore, name: str, prefixes: list[tuple[bytes, ...]], below: bytes | None
) -> Iterator[Row]:
    """Yield the rows under all `prefixes`, merged, whose ordinals (their last part) are under
    `below`; read in growing chunks."""
    streams = [_descend(chain, name, prefix, below) for prefix in prefixes]
    return streams[0] if len(streams) == 1 else heapq.merge(*streams, reverse=True)


def first_parts(chain: ChainStore, name: str) -> list[bytes]:
    """Return the distinct first parts of an index, at the cost of one seek for each."""
    found: list[bytes] = []
    after = None
    while rows := chain.scan_index(name, after=after, limit=1):
        found.append(rows[0].parts[0])
        after = schema.encode_parts((found[-1], _AFTER_ROWS))
    return found


def cut_page(
    rows: Iterator[Row], limit: int, read: Callable[[bytes], Answer | None], rows_max: int
) -> tuple[list[Answer], bytes | None]:
    """Return up to `limit` answers that `read` gives for the rows' values, None being left out,
    and the ordinal below which the next page begins; None when nothing is left."""
    found: list[Answer] = []
    last = b""
    for ordinal, value in islice(rows, rows_max):
        last = ordinal
        answer = read(value)
        if answer is not None:
            found.append(answer)
            if len(found) == limit:
                break
    return found, last if next(rows, None) is not None else None


def next_cursor(asked: bytes, last: bytes | None) -> str | None:
    """Return the cursor of the next page, or None when `cut_page` left nothing."""
    return None if last is None else encode_cursor(asked, last)


def check_limit(limit: int, highest: int) -> None:
    """Raise `BadQuery` unless `limit` is an integer from 1 to `highest`."""
    if type(limit) is not int or not 1 <= limit <= highest:
        raise BadQuery(f"limit must be an integer from 1 to {highest}")


def check_word(name: str, value: str | None, words: frozenset[str]) -> None:
    """Raise `BadQuery` unless `value` is None or one of `words`."""
    if value is not None and (type(value) is not str or value not in words):
        raise BadQuery(f"{name} must be one of {', '.join(sorted(words))}")


def check_institution(name: str, value: str | None) -> None:
    """Raise `BadQuery` unless `value` is None or has the form of an institution's name."""
    if value is not None and (type(value) is not str or not INSTITUTION.fullmatch(value)):
        raise BadQuery(f"{name} must be the name of an institution: a-z, 0-9 and '-'")


def check_id(name: str, value: bytes | None, size: int = 16) -> None:
    """Raise `BadQuery` unless `value` is None or `size` bytes."""
    if value is not None and (type(value) is not bytes or len(value) != size):
        raise BadQuery(f"{name} must be {size} bytes")


def check_height(name: str, value: int | None) -> None:
    """Raise `BadQuery` unless `value` is None or a height."""
    if value is not None and (type(value) is not int or not 0 <= value <= HEIGHT_MAX):
        raise BadQuery(f"{name} must be an integer from 0 to {HEIGHT_MAX}")


def _descend(
    chain: ChainStore, name: str, prefix: tuple[bytes, ...], below: bytes | None
) -> Iterator[Row]:
    after = None if below is None else schema.encode_parts((*prefix, below))
    chunk = _CHUNK_FIRST
    while True:
        rows = chain.scan_index(name, prefix, after=after, reverse=True, limit=chunk)
        for row in rows:
            yield row.parts[-1], row.value
        if len(rows) < chunk:
            return
        after = rows[-1].cursor
        chunk = min(chunk * 4, _CHUNK_MAX)
