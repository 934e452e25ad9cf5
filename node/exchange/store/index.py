"""What a stored version of a study holds, and where: instances, and the chunks they lie in.

Plain form (canonical msgpack): (1, study id, version, instances, chunks)

    instance   (SOP instance UID, SOP class UID, series UID, transfer syntax, size, F, attributes,
               first chunk, offset); attributes ((tag, text), ...) in the order of their tags
    chunk      (digest, stored bytes, plain bytes, version, position, final)

An instance begins at `offset` of its first chunk and goes on in the chunks that follow in the list.
Chunks of earlier versions stand in it too, where their instances were kept. It names the patient's
instances, so it leaves this process only sealed (`sealing.py`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from io import BufferedIOBase, RawIOBase
from pathlib import Path
from typing import TypeAlias

from consensus.wire import NotCanonical, Value, pack, unpack
from node.exchange.store.errors import InvalidIndex
from node.exchange.store.sealing import CHUNK_BYTES, STORED_BYTES_MAX, Place

ID_BYTES, DIGEST_BYTES = 16, 32
INSTANCES_MAX, CHUNKS_MAX, VERSION_MAX = 100_000, 4_000_000, 65_535
ATTRIBUTES_MAX, ATTRIBUTE_CHARACTERS_MAX = 64, 1_024
_UID_CHARACTERS_MAX = 64
_SIZE_MAX = 2**44
_FORMAT = 1

Stream: TypeAlias = RawIOBase | BufferedIOBase


@dataclass(frozen=True, slots=True)
class InstanceFacts:
    """What is known of an instance without its bytes."""

    sop_instance_uid: str
    sop_class_uid: str
    series_uid: str
    transfer_syntax: str
    size: int  # bytes as received
    digest: bytes  # F: SHA-256 of these bytes
    attributes: tuple[tuple[int, str], ...] = ()  # 0xGGGGEEEE, ascending; what searches need


@dataclass(frozen=True, slots=True)
class InstanceSource:
    """An instance to be stored; `open` is called when its turn comes, if at all.

    `is_checked` spares hashing it once more: the caller has just compared these bytes with F, and
    they lie where nobody else can write.
    """

    facts: InstanceFacts
    open: Callable[[], Stream]
    is_checked: bool = False


@dataclass(frozen=True, slots=True)
class IndexedInstance:
    """An instance and where it begins."""

    facts: InstanceFacts
    first_chunk: int  # in the index's list
    offset: int  # bytes, in that chunk's plaintext


@dataclass(frozen=True, slots=True)
class ChunkEntry:
    """One chunk: what it is called, how long it is, and where it belongs."""

    digest: bytes  # 32 bytes, SHA-256 of the sealed chunk
    stored_bytes: int
    plain_bytes: int
    version: int
    position: int
    final: bool

    def place(self, study_id: bytes) -> Place:
        """Return what the chunk is bound to."""
        return Place(study_id, self.version, self.position, self.final)


@dataclass(frozen=True)
class StudyIndex:
    """One version of one study."""

    study_id: bytes  # 16 bytes
    version: int
    instances: tuple[IndexedInstance, ...]
    chunks: tuple[ChunkEntry, ...]

    @property
    def size(self) -> int:
        """Bytes of all instances as received."""
        return sum(instance.facts.size for instance in self.instances)

    @property
    def stored_bytes(self) -> int:
        """Bytes of all chunks as stored."""
        return sum(chunk.stored_bytes for chunk in self.chunks)

    def span(self, ordinal: int) -> range:
        """Return the places in `chunks` over which an instance extends."""
        instance = self.instances[ordinal]
        end, rest = instance.first_chunk, instance.offset + instance.facts.size
        while rest > 0:
            rest -= self.chunks[end].plain_bytes
            end += 1
        return range(instance.first_chunk, end)

    def ordinal_of(self, sop_instance_uid: str) -> int | None:
        """Return the place of an instance in `instances`, None if it is not there."""
        return self._ordinals.get(sop_instance_uid)

    @cached_property
    def _ordinals(self) -> dict[str, int]:
        return {each.facts.sop_instance_uid: at for at, each in enumerate(self.instances)}


def file_source(facts: InstanceFacts, path: Path, *, is_checked: bool = False) -> InstanceSource:
    """Return the source of an instance that lies in a file."""
    return InstanceSource(facts, lambda: open(path, "rb", buffering=0), is_checked)


def encode_index(index: StudyIndex) -> bytes:
    """Return the index's bytes. Raises `InvalidIndex` for one that `decode_index` would refuse."""
    _check(index)
    instances = tuple(_instance_fields(each) for each in index.instances)
    chunks = tuple(
        (c.digest, c.stored_bytes, c.plain_bytes, c.version, c.position, c.final)
        for c in index.chunks
    )
    return pack((_FORMAT, index.study_id, index.version, instances, chunks))


def decode_index(data: bytes) -> StudyIndex:
    """Return the index in `data`, with every place in it checked. Raises `InvalidIndex`."""
    try:
        value = unpack(data)
    except NotCanonical as error:
        raise InvalidIndex(f"no index: {error}") from error
    match value:
        case (1, bytes(study_id), int(version), tuple(instances), tuple(chunks)):
            index = StudyIndex(
                study_id,
                version,
                tuple(_instance(each) for each in instances),
                tuple(_chunk(each) for each in chunks),
            )
        case _:
            raise InvalidIndex("no index, or one of a newer program")
    _check(index)
    return index


def check_all_facts(instances: Sequence[InstanceFacts]) -> None:
    """Raise `InvalidIndex` unless one index may hold `instances`."""
    if not 0 < len(instances) <= INSTANCES_MAX:
        raise InvalidIndex(f"a version has 1 to {INSTANCES_MAX} instances, not {len(instances)}")
    for facts in instances:
        _check_facts(facts)
    if len({facts.sop_instance_uid for facts in instances}) < len(instances):
        raise InvalidIndex("two instances have one SOP Instance UID")


def _check_facts(facts: InstanceFacts) -> None:
    uids = (facts.sop_instance_uid, facts.sop_class_uid, facts.series_uid, facts.transfer_syntax)
    if not all(type(uid) is str and len(uid) <= _UID_CHARACTERS_MAX for uid in uids):
        raise InvalidIndex(f"a UID has more than {_UID_CHARACTERS_MAX} characters")
    if not facts.sop_instance_uid:
        raise InvalidIndex("an instance has no SOP Instance UID")
    if not _is_int(facts.size, 1, _SIZE_MAX) or len(facts.digest) != DIGEST_BYTES:
        raise InvalidIndex("an instance's size or digest cannot be")
    if len(facts.attributes) > ATTRIBUTES_MAX:
        raise InvalidIndex(f"an instance has more than {ATTRIBUTES_MAX} attributes")
    last = -1
    for tag, text in facts.attributes:
        if not _is_int(tag, last + 1, 0xFFFFFFFF) or len(text) > ATTRIBUTE_CHARACTERS_MAX:
            raise InvalidIndex("attributes are out of order or too long")
        last = tag


def _check(index: StudyIndex) -> None:
    if len(index.study_id) != ID_BYTES or not _is_int(index.version, 1, VERSION_MAX):
        raise InvalidIndex("the study id or version cannot be")
    if len(index.chunks) > CHUNKS_MAX:
        raise InvalidIndex(f"a version has at most {CHUNKS_MAX} chunks")
    check_all_facts([each.facts for each in index.instances])
    _check_chunks(index)
    ends = [0]
    for chunk in index.chunks:
        ends.append(ends[-1] + chunk.plain_bytes)
    for each in index.instances:
        if not _is_int(each.first_chunk, 0, len(index.chunks) - 1):
            raise InvalidIndex("an instance begins in no chunk")
        if not _is_int(each.offset, 0, index.chunks[each.first_chunk].plain_bytes - 1):
            raise InvalidIndex("an instance begins outside its chunk")
        if ends[each.first_chunk] + each.offset + each.facts.size > ends[-1]:
            raise InvalidIndex("an instance goes beyond the last chunk")


def _check_chunks(index: StudyIndex) -> None:
    last = (0, -1)
    for chunk in index.chunks:
        sizes = (
            len(chunk.digest) == DIGEST_BYTES
            and _is_int(chunk.stored_bytes, 1, STORED_BYTES_MAX)
            and _is_int(chunk.plain_bytes, 1, CHUNK_BYTES)
            and _is_int(chunk.position, 0, CHUNKS_MAX)
            and _is_int(chunk.version, 1, index.version)
        )
        if not sizes or (chunk.version, chunk.position) <= last:
            raise InvalidIndex("the chunks' sizes or order cannot be")
        last = (chunk.version, chunk.position)
    if len({chunk.digest for chunk in index.chunks}) < len(index.chunks):
        raise InvalidIndex("two chunks have one digest")


def _instance_fields(each: IndexedInstance) -> tuple[object, ...]:
    facts = each.facts
    uids = (facts.sop_instance_uid, facts.sop_class_uid, facts.series_uid, facts.transfer_syntax)
    rest = (facts.size, facts.digest, facts.attributes)
    return (*uids, *rest, each.first_chunk, each.offset)


def _instance(value: Value) -> IndexedInstance:
    match value:
        case (
            str(uid),
            str(sop_class),
            str(series),
            str(syntax),
            int(size),
            bytes(digest),
            tuple(attributes),
            int(first_chunk),
            int(offset),
        ):
            pairs = tuple(_attribute(each) for each in attributes)
            facts = InstanceFacts(uid, sop_class, series, syntax, size, digest, pairs)
            return IndexedInstance(facts, first_chunk, offset)
    raise InvalidIndex("an instance in the index is not as it must be")


def _attribute(value: Value) -> tuple[int, str]:
    match value:
        case (int(tag), str(text)):
            return tag, text
    raise InvalidIndex("an attribute in the index is not as it must be")


def _chunk(value: Value) -> ChunkEntry:
    match value:
        case (bytes(digest), int(stored), int(plain), int(version), int(position), bool(final)):
            return ChunkEntry(digest, stored, plain, version, position, final)
    raise InvalidIndex("a chunk in the index is not as it must be")


def _is_int(value: object, least: int, most: int) -> bool:
    return type(value) is int and least <= value <= most
