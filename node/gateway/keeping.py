"""A registered version of a study goes into the encrypted store."""

import io
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

from node.exchange.store.errors import StudyUnknown, VersionUnknown
from node.exchange.store.index import InstanceFacts, InstanceSource, StudyIndex, file_source
from node.gateway.web.attributes import (
    SERIES_INSTANCE,
    SOP_CLASS,
    read_attributes,
)
from node.imaging.commitment import TRANSFER_SYNTAX, meta_elements
from node.imaging.manifest import Instance, Manifest
from node.imaging.source import Source

log = logging.getLogger(__name__)


class Store(Protocol):
    """What we need of the store of studies."""

    def put(self, study_id: bytes, version: int, instances: Iterator[InstanceSource]) -> object: ...

    def index(self, study_id: bytes, version: int | None = None) -> StudyIndex: ...


class Keeper:
    """Puts versions into a store. Its methods wait for disks: call them in a worker."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def keep(self, manifest: Manifest, files: Mapping[str, Path]) -> None:
        """Store a version: what is new from `files`, by SOP Instance UID, the rest as it was.

        The same again after a crash changes nothing. Raises what the store raises.
        """
        before = self._before(manifest)
        sources = _sources(manifest, files, before)
        self._store.put(manifest.study_id, manifest.version, sources)

    def _before(self, manifest: Manifest) -> dict[str, InstanceFacts]:
        if manifest.version == 1:
            return {}
        try:
            index = self._store.index(manifest.study_id)
        except (StudyUnknown, VersionUnknown):
            return {}
        return {each.facts.sop_instance_uid: each.facts for each in index.instances}


def _sources(
    manifest: Manifest, files: Mapping[str, Path], before: Mapping[str, InstanceFacts]
) -> Iterator[InstanceSource]:
    """Yield the version's instances in the manifest's order, which numbers them."""
    absent = 0
    for instance in manifest.instances:
        if instance.sop_uid in files:
            path = files[instance.sop_uid]
            yield file_source(facts_of(instance, path), path)
        elif instance.sop_uid in before:
            yield InstanceSource(before[instance.sop_uid], _is_stored)
        else:
            absent += 1  # registered by hand, from files that never came through the gateway
    if absent:
        log.warning("a version is stored without %d instances that never came here", absent)


def facts_of(instance: Instance, path: Path) -> InstanceFacts:
    """Return what the store's index says of the instance in the file at `path`.

    Raises `Failed` and `UnreadableInstance` for what was never accepted.
    """
    record = instance.record
    with open(path, "rb") as stream:
        attributes = read_attributes(stream)
        meta = meta_elements(Source(path.name, stream, record.size, record.file))
    texts = dict(attributes)
    return InstanceFacts(
        instance.sop_uid,
        texts[SOP_CLASS],
        texts[SERIES_INSTANCE],
        meta[TRANSFER_SYNTAX],
        record.size,
        record.file,
        attributes,
    )


def _is_stored() -> io.BufferedIOBase:
    raise LookupError("the instance of an earlier version is not read again")
