"""Late instances make the next version: what the version before holds is not stored twice."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from node.exchange.store.index import (
    ChunkEntry,
    IndexedInstance,
    InstanceSource,
    StudyIndex,
)
from node.exchange.store.pack import Packed


class Split(NamedTuple):
    """Which sources lie in the version before, and which are to be stored."""

    kept: Mapping[int, int]  # place among the sources -> ordinal in the version before
    fresh: list[InstanceSource]


def split(
    sources: Sequence[InstanceSource], previous: StudyIndex | None, missing: set[bytes]
) -> Split:
    """Sort `sources`; an instance counts as held only if all its chunks are here."""
    kept: dict[int, int] = {}
    fresh = []
    for at, source in enumerate(sources):
        ordinal = previous.ordinal_of(source.facts.sop_instance_uid) if previous else None
        if previous and ordinal is not None and _is_held(source, previous, ordinal, missing):
            kept[at] = ordinal
        else:
            fresh.append(source)
    return Split(kept, fresh)


def merge(
    study_id: bytes,
    version: int,
    sources: Sequence[InstanceSource],
    previous: StudyIndex | None,
    kept: Mapping[int, int],
    packed: Packed,
) -> StudyIndex:
    """Return the index of all `sources`: first the chunks still needed, then the new ones."""
    old: list[ChunkEntry] = []
    moved: dict[int, int] = {}
    if previous is not None:
        needed = sorted({at for ordinal in kept.values() for at in previous.span(ordinal)})
        moved = {at: new for new, at in enumerate(needed)}
        old = [previous.chunks[at] for at in needed]
    fresh = iter(packed.instances)
    instances = []
    for at, source in enumerate(sources):
        if previous is not None and at in kept:
            before = previous.instances[kept[at]]
            place = IndexedInstance(source.facts, moved[before.first_chunk], before.offset)
        else:
            new = next(fresh)
            place = IndexedInstance(new.facts, len(old) + new.first_chunk, new.offset)
        instances.append(place)
    return StudyIndex(study_id, version, tuple(instances), (*old, *packed.chunks))


def _is_held(
    source: InstanceSource, previous: StudyIndex, ordinal: int, missing: set[bytes]
) -> bool:
    held = previous.instances[ordinal].facts
    same = (held.digest, held.size) == (source.facts.digest, source.facts.size)
    return same and all(previous.chunks[at].digest not in missing for at in previous.span(ordinal))
