"""The parts of a study that is split, in the vault and in the store.

Everything here waits for disks: call it in a worker. Each step may be repeated, and gives the same.
"""

import contextlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from node.exchange.store.errors import StudyErased, StudyUnknown
from node.exchange.store.index import InstanceFacts, InstanceSource, StudyIndex
from node.exchange.store.store import StudyStore
from node.gateway import series
from node.gateway.series import Described
from node.imaging import description
from node.imaging.manifest import Instance, Manifest, regrouped
from node.imaging.vault import Vault
from node.imaging.vault_parts import Split
from node.imaging.vault_rows import State, VaultStudy
from node.ledger.contracts.vocabulary import instance_bucket, size_bucket
from node.ledger.queries.studies import StudySummary
from node.ledger.transaction import Operation

FORM_NEEDED = "the patient's signed form is needed: --form or --form-digest"


class SplitRefused(Exception):
    """The study cannot be split, or not so; nothing was changed. The text says why."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What a person asks for."""

    series: Sequence[str]  # to be set apart; see `series.chosen`
    form_digest: bytes | None  # 32 bytes, of the patient's signed form
    version: int | None = None  # whose list the numbers are from; None: the newest, unchecked
    erase: bool = False  # the study that was split


class Parting:
    """Plans, packs and drops the parts of studies."""

    def __init__(self, store: StudyStore, vault: Vault) -> None:
        self._store, self._vault = store, vault

    def plan(self, study: StudySummary, wish: Wish) -> Split:
        """Return the new split of a study into the series that are wished apart and the rest.

        Raises `SplitRefused`, `SeriesRefused`, and what vault and store do.
        """
        index, words = self._index(study.id), wish.series
        if wish.version not in (None, index.version):
            raise SplitRefused(f"the study has version {index.version} now: list its series again")
        self._require_whole(study, index)
        series.chosen(series.listed(index), words)
        if wish.form_digest is None:
            raise SplitRefused(FORM_NEEDED)
        return self._planned(index, words)

    def plan_again(self, study_id: bytes, words: Sequence[str]) -> Split:
        """Return a split that was planned before. Raises `VaultError` if with other series."""
        return self._planned(self._index(study_id), words)

    def require_apart(self, split: Split, words: Sequence[str]) -> None:
        """Raise `SplitRefused` unless what `words` name was set apart by a split that is done.

        Of a study that is destroyed already nobody can tell any more.
        """
        try:
            index = self._index(split.source.study_id)
        except SplitRefused:
            return
        _, apart = series.chosen(series.listed(index), words)
        parts = (self._vault.part_of(series.study_uid(index), each) for each in apart)
        if any(part is not None and part.study_id == split.rest.study_id for part in parts):
            rest = split.rest.study_id.hex()
            raise SplitRefused(f"the study was split by other series; the rest is {rest}")

    def _planned(self, index: StudyIndex, words: Sequence[str]) -> Split:
        rest, apart = series.chosen(series.listed(index), words)
        return self._vault.plan_split(index.study_id, series.study_uid(index), rest, apart)

    def _index(self, study_id: bytes) -> StudyIndex:
        try:
            if self._store.is_complete(study_id):
                return self._store.index(study_id)
        except (StudyUnknown, StudyErased) as error:
            raise SplitRefused("the study is not in the store here") from error
        raise SplitRefused(
            "chunks of the study are missing in the store: see radledger store scrub"
        )

    def _require_whole(self, study: StudySummary, index: StudyIndex) -> Manifest:
        """Return the newest manifest. Raises `SplitRefused` unless ledger, vault and store have the
        same version, whole."""
        versions = [v for v in self._vault.versions(study.id) if v.state is State.FINAL]
        if not versions or versions[-1].manifest.root != study.root:
            raise SplitRefused("the vault does not have the version that is on the ledger")
        named = {each.sop_uid: each.record.file for each in versions[-1].manifest.instances}
        held = {each.facts.sop_instance_uid: each.facts.digest for each in index.instances}
        if named != held:
            raise SplitRefused("the store does not hold every instance of the version registered")
        return versions[-1].manifest

    def transaction(self, split: Split) -> bytes | None:
        """Return the transaction that was signed for the split, None before that."""
        latest = self._vault.latest(split.apart.study_id)
        return None if latest is None else latest.transaction

    def manifests(self, study: StudySummary, split: Split) -> tuple[Manifest, Manifest]:
        """Return the first versions of both parts, which the vault keeps from then on."""
        index = self._index(study.id)
        source = self._require_whole(study, index)
        uid = series.study_uid(index)
        of_series = {each.facts.sop_instance_uid: each.facts.series_uid for each in index.instances}
        is_apart = {
            each: self._vault.is_apart(study.id, uid, each) for each in set(of_series.values())
        }
        groups: tuple[list[Instance], list[Instance]] = ([], [])
        for instance in source.instances:
            groups[is_apart[of_series[instance.sop_uid]]].append(instance)
        rest, apart = groups
        return self._prepared(split.rest, rest), self._prepared(split.apart, apart)

    def _prepared(self, part: VaultStudy, instances: Sequence[Instance]) -> Manifest:
        known = self._vault.latest(part.study_id)
        if known is not None:
            return known.manifest
        manifest = regrouped(part.study_id, part.salt, instances)
        self._vault.put_prepared(manifest)
        return manifest

    def pack(self, study_id: bytes, manifests: Sequence[Manifest]) -> None:
        """Store both parts, each under a new key, in the order of its manifest."""
        index = self._index(study_id)
        for manifest in manifests:
            sources = [self._source(index, each.sop_uid) for each in manifest.instances]
            self._store.put(manifest.study_id, manifest.version, sources)

    def _source(self, index: StudyIndex, sop_uid: str) -> InstanceSource:
        ordinal = index.ordinal_of(sop_uid)
        if ordinal is None:
            raise SplitRefused("the store does not hold every instance of the version registered")
        read = partial(self._store.read, index.study_id, ordinal, index.version)
        return InstanceSource(index.instances[ordinal].facts, lambda: _Stored(read()))

    def registrations(
        self, study: StudySummary, manifests: tuple[Manifest, Manifest]
    ) -> tuple[Operation, Operation]:
        """Return what registers the rest and what is set apart."""
        index = self._index(study.id)
        facts = {each.facts.sop_instance_uid: each.facts for each in index.instances}
        rest, apart = (_registration(study, manifest, facts) for manifest in manifests)
        return rest, apart

    def drop(self, split: Split) -> None:
        """Undo what was prepared; first what is in the store, since the vault says what that is."""
        for part in (split.rest, split.apart):
            with contextlib.suppress(StudyUnknown):
                self._store.abandon(part.study_id)
        self._vault.drop_split(split.source.study_id)


class _Stored(io.RawIOBase):
    """An instance that lies in the store, as a stream."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces, self._left = pieces, memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, target: Any) -> int:
        view = memoryview(target).cast("B")
        while not self._left:
            try:
                self._left = memoryview(next(self._pieces))
            except StopIteration:
                return 0
        count = min(len(view), len(self._left))
        view[:count], self._left = self._left[:count], self._left[count:]
        return count


def _registration(
    study: StudySummary, manifest: Manifest, facts: dict[str, InstanceFacts]
) -> Operation:
    described = [Described(facts[each.sop_uid]) for each in manifest.instances]
    words = description.modality_of(described), description.region_of(described)
    buckets = instance_bucket(len(manifest.instances)), size_bucket(manifest.size)
    place = manifest.study_id, study.subject_id, manifest.root
    return Operation("study.register", (*place, *words, *buckets))
