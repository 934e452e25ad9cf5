"""The tables of the chain: methods that append rows to a `WriteBatch`, and methods that read.

Nothing is written here. The caller hands the batch of a block to `store.write(batch, sync=True)`
once, so a block with its receipts, transactions, state and index is there whole or not at all.
Encoded values come from the rooms above and go back to them byte for byte.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from storage import schema
from storage.kv import Reader, WriteBatch

SCAN_MAX = 10_000  # rows that one `scan_index` returns at most


class IndexRow(NamedTuple):
    """A row of a secondary index; `cursor` is where a scan goes on after it."""

    parts: tuple[bytes, ...]
    value: bytes
    cursor: bytes


class ChainStore:
    """Typed access to the rows of the chain.

    `reader` is the store, or a snapshot of it when several reads must be of one moment. Every
    reading method raises `CorruptRecord` for a row that does not have the form of its table, and
    every method ValueError for heights, positions and digests that no row can have.
    """

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._get = reader.get

    def put_payload(
        self,
        batch: WriteBatch,
        height: int,
        digest: bytes,
        batch_bytes: bytes,
        bodies: Sequence[bytes],
    ) -> None:
        """Append an ordered batch and its bodies: a candidate for `height`, and later its body."""
        batch.put(_payload_key(height, digest), schema.encode_strings([batch_bytes, *bodies]))

    def payload(self, height: int, digest: bytes) -> tuple[bytes, list[bytes]] | None:
        """Return (batch, bodies in order), or None when that payload is not stored."""
        row = self._get(_payload_key(height, digest))
        if row is None:
            return None
        strings = schema.decode_strings(row, f"a payload of height {height}")
        if not strings:
            raise schema.damaged(f"an empty payload of height {height}")
        return strings[0], strings[1:]

    def body(self, height: int, digest: bytes, position: int) -> bytes | None:
        """Return one body of a payload without building the others, or None."""
        row = self._get(_payload_key(height, digest))
        if row is None or position < 0:
            return None
        return schema.decode_string(row, position + 1, f"a payload of height {height}")

    def delete_payload(self, batch: WriteBatch, height: int, digest: bytes) -> None:
        """Append the removal of a payload; one that is not there is no error."""
        batch.delete(_payload_key(height, digest))

    def payload_digests(self, height: int) -> list[bytes]:
        """Return the digests of all payloads stored for `height`, ascending."""
        prefix = schema.PAYLOAD + schema.height_bytes(height)
        rows = self._reader.iterate(prefix, schema.after_prefix(prefix))
        return [key[len(prefix) :] for key, _ in rows]

    def put_block(
        self,
        batch: WriteBatch,
        height: int,
        header_bytes: bytes,
        header_digest: bytes,
        payload_digest: bytes,
        receipts: Sequence[bytes],
    ) -> None:
        """Append an executed block and make it the head. Heights are handed in ascending."""
        at = schema.height_bytes(height)
        batch.put(schema.BLOCK + at, schema.digest_bytes(payload_digest) + header_bytes)
        batch.put(schema.HEADER_HEIGHT + schema.digest_bytes(header_digest), at)
        batch.put(schema.RECEIPTS + at, schema.encode_strings(receipts))
        batch.put(schema.HEAD, at)

    def header(self, height: int) -> bytes | None:
        """Return the encoded header of an executed block, or None."""
        row = self._block(height)
        return None if row is None else row[32:]

    def payload_digest(self, height: int) -> bytes | None:
        """Return the digest of the payload that was executed at `height`, or None."""
        row = self._block(height)
        return None if row is None else row[:32]

    def height_of(self, header_digest: bytes) -> int | None:
        """Return the height of the executed block with this header, or None."""
        row = self._get(schema.HEADER_HEIGHT + schema.digest_bytes(header_digest))
        return None if row is None else schema.read_height(row, "a header's height")

    def receipts(self, height: int) -> list[bytes] | None:
        """Return the receipts of an executed block in order, or None."""
        row = self._get(schema.RECEIPTS + schema.height_bytes(height))
        return None if row is None else schema.decode_strings(row, f"receipts of height {height}")

    def receipt(self, height: int, position: int) -> bytes | None:
        """Return one receipt without building the others, or None."""
        row = self._get(schema.RECEIPTS + schema.height_bytes(height))
        if row is None:
            return None
        return schema.decode_string(row, position, f"receipts of height {height}")

    def head(self) -> int | None:
        """Return the height of the last executed block, or None before genesis."""
        row = self._get(schema.HEAD)
        return None if row is None else schema.read_height(row, "the height of the head")

    def put_certificate(self, batch: WriteBatch, height: int, certificate_bytes: bytes) -> None:
        """Append the certificate that makes `height` stable."""
        batch.put(schema.CERTIFICATE + schema.height_bytes(height), certificate_bytes)

    def certificate(self, height: int) -> bytes | None:
        """Return the certificate of `height`, or None while there is none."""
        return self._get(schema.CERTIFICATE + schema.height_bytes(height))

    def put_transaction(self, batch: WriteBatch, id: bytes, height: int, position: int) -> None:
        """Append where the transaction with this id (32 bytes) was executed."""
        place = schema.place_bytes(height, position)
        batch.put(schema.TRANSACTION + schema.digest_bytes(id), place)

    def transaction(self, id: bytes) -> tuple[int, int] | None:
        """Return (height, position in the block) of an executed transaction, or None."""
        row = self._get(schema.TRANSACTION + schema.digest_bytes(id))
        return None if row is None else schema.read_place(row)

    def put_wal(self, batch: WriteBatch, key: bytes, value: bytes) -> None:
        """Append a row of consensus' write-ahead log; an equal key is overwritten."""
        batch.put(schema.WAL + key, value)

    def delete_wal(self, batch: WriteBatch, key: bytes) -> None:
        """Append the removal of a write-ahead row; one that is not there is no error."""
        batch.delete(schema.WAL + key)

    def wal(self) -> dict[bytes, bytes]:
        """Return all write-ahead rows in the order of their keys."""
        rows = self._reader.iterate(schema.WAL, schema.after_prefix(schema.WAL))
        return {key[1:]: value for key, value in rows}

    def put_state(self, batch: WriteBatch, key: bytes, value: bytes) -> None:
        """Append a state value. The authenticated tree over it is `storage.state`."""
        batch.put(schema.STATE + key, value)

    def delete_state(self, batch: WriteBatch, key: bytes) -> None:
        """Append the removal of a state value; one that is not there is no error."""
        batch.delete(schema.STATE + key)

    def state_value(self, key: bytes) -> bytes | None:
        """Return the value of a state key, or None."""
        return self._get(schema.STATE + key)

    def put_index(
        self, batch: WriteBatch, name: str, parts: Sequence[bytes], value: bytes = b""
    ) -> None:
        """Append a row of the secondary index `name`; integers in `parts` are big-endian."""
        batch.put(_index_prefix(name) + schema.encode_parts(parts), value)

    def delete_index(self, batch: WriteBatch, name: str, parts: Sequence[bytes]) -> None:
        """Append the removal of an index row; one that is not there is no error."""
        batch.delete(_index_prefix(name) + schema.encode_parts(parts))

    def scan_index(
        self,
        name: str,
        prefix_parts: Sequence[bytes] = (),
        *,
        after: bytes | None = None,
        reverse: bool = False,
        limit: int,
    ) -> list[IndexRow]:
        """Return up to `limit` rows whose first parts are `prefix_parts`, in the parts' order.

        `after` is the cursor of the last row already seen: the scan goes on past it, downwards
        with `reverse`. The row that it names need not exist any more. Raises ValueError for a
        limit outside 1..SCAN_MAX and for a cursor that is none of this scan.
        """
        if not 1 <= limit <= SCAN_MAX:
            raise ValueError(f"a scan returns 1 to {SCAN_MAX} rows, not {limit}")
        table = _index_prefix(name)
        prefix = schema.encode_parts(prefix_parts)
        start, stop = table + prefix, schema.after_prefix(table + prefix)
        if after is not None:
            _check_cursor(after, prefix)
            start, stop = (start, table + after) if reverse else (table + after + b"\x00", stop)
        rows = []
        for key, value in self._reader.iterate(start, stop, reverse=reverse):
            cursor = key[len(table) :]
            rows.append(IndexRow(_read_parts(cursor, name), value, cursor))
            if len(rows) == limit:
                break
        return rows

    def put_meta(self, batch: WriteBatch, name: str, value: bytes) -> None:
        """Append a small named value."""
        batch.put(schema.META + name.encode(), value)

    def meta(self, name: str) -> bytes | None:
        """Return a small named value, or None."""
        return self._get(schema.META + name.encode())

    def _block(self, height: int) -> bytes | None:
        row = self._get(schema.BLOCK + schema.height_bytes(height))
        if row is not None and len(row) < 32:
            raise schema.damaged(f"the block of height {height}")
        return row


def _payload_key(height: int, digest: bytes) -> bytes:
    return schema.PAYLOAD + schema.height_bytes(height) + schema.digest_bytes(digest)


@lru_cache(maxsize=256)
def _index_prefix(name: str) -> bytes:
    return schema.INDEX + schema.encode_parts((name.encode(),))


def _check_cursor(cursor: bytes, prefix: bytes) -> None:
    try:
        schema.decode_parts(cursor)
    except ValueError as error:
        raise ValueError(f"this is no cursor of a scan: {error}") from error
    if not cursor.startswith(prefix):
        raise ValueError("the cursor belongs to another scan")


def _read_parts(encoded: bytes, name: str) -> tuple[bytes, ...]:
    try:
        return schema.decode_parts(encoded)
    except ValueError as error:
        raise schema.damaged(f"a row of the index {name}") from error
