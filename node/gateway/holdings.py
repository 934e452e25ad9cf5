"""What this hospital can show: studies that it holds or was granted, and the bytes of them.

`Holdings` is all that the DICOMweb server, and whatever else answers searches, knows of the store.
Its methods wait for disks: they are called in threads, several at once.
"""

import copy
import io
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, BinaryIO, Protocol, cast

from node.exchange.store.errors import StoreError, StudyErased, StudyUnknown
from node.exchange.store.index import InstanceFacts, StudyIndex
from node.gateway.web import attributes as tags
from node.gateway.web.attributes import Attributes, Values, first, from_pairs

log = logging.getLogger(__name__)

_STUDIES_KEPT = 64  # studies whose instances stay in memory
BLOCK_BYTES = 4 * 2**20


class Withheld(Exception):
    """A study may no longer be shown: a grant ended, or the study was erased."""


@dataclass(frozen=True, slots=True)
class HeldInstance:
    """One instance, and where its holder finds it."""

    study_uid: str = field(repr=False)
    series_uid: str = field(repr=False)
    sop_uid: str = field(repr=False)
    sop_class: str
    syntax: str  # transfer syntax UID as stored
    size: int  # bytes of the file
    attributes: Attributes = field(repr=False)
    place: Any = field(repr=False)  # the holder's own


@dataclass(frozen=True)
class HeldStudy:
    """One study with its instances, in the order of series and instance numbers."""

    uid: str = field(repr=False)
    instances: tuple[HeldInstance, ...]

    @cached_property
    def series(self) -> dict[str, tuple[HeldInstance, ...]]:
        """The instances by Series Instance UID."""
        found: dict[str, list[HeldInstance]] = {}
        for instance in self.instances:
            found.setdefault(instance.series_uid, []).append(instance)
        return {uid: tuple(instances) for uid, instances in found.items()}

    @cached_property
    def by_uid(self) -> dict[str, HeldInstance]:
        """The instances by SOP Instance UID."""
        return {instance.sop_uid: instance for instance in self.instances}

    @cached_property
    def attributes(self) -> Attributes:
        """What describes the study as a whole, the counts of PS3.4 C.3.4 with it."""
        found = _common(self.instances, tags.STUDY_TAGS)
        found[tags.MODALITIES_IN_STUDY] = _distinct(self.instances, tags.MODALITY)
        found[tags.CLASSES_IN_STUDY] = _distinct(self.instances, tags.SOP_CLASS)
        found[tags.STUDY_SERIES] = (str(len(self.series)),)
        found[tags.STUDY_INSTANCES] = (str(len(self.instances)),)
        return found

    def series_attributes(self, uid: str) -> Attributes:
        """What describes one series as a whole."""
        instances = self.series[uid]
        found = _common(instances, tags.SERIES_TAGS)
        found[tags.SERIES_INSTANCES] = (str(len(instances)),)
        return found


@dataclass(frozen=True, slots=True)
class StudyRow:
    """A study as lists of studies show it."""

    uid: str = field(repr=False)
    attributes: Attributes = field(repr=False)


class Holdings(Protocol):
    """Studies that may be shown to this hospital's own systems."""

    def studies(self) -> Sequence[StudyRow]:
        """Return all studies, the latest study date first."""

    def study(self, uid: str) -> HeldStudy | None:
        """Return the latest version of a study, None if there is none that may be shown.

        Raises `Withheld` and `OSError` as `open` does.
        """

    def open(self, instance: HeldInstance) -> BinaryIO:
        """Return the exact bytes of an instance as a file that can seek; the caller closes it.

        Raises `Withheld` if it may not be shown any more, `OSError` if it cannot be read.
        """


def make_study(uid: str, instances: Iterable[HeldInstance]) -> HeldStudy:
    """Return the study of `instances`, in order, each SOP Instance UID once (the first)."""
    distinct: dict[str, HeldInstance] = {}
    for instance in instances:
        distinct.setdefault(instance.sop_uid, instance)
    return HeldStudy(uid, tuple(sorted(distinct.values(), key=_position)))


def in_order(rows: Iterable[StudyRow]) -> list[StudyRow]:
    """Return `rows`, the latest first, and always in the same order."""
    ordered = sorted(rows, key=lambda row: row.uid)
    ordered.sort(key=lambda row: _moment(row.attributes), reverse=True)
    return ordered


def _moment(attributes: Attributes) -> tuple[str, str]:
    return first(attributes, tags.STUDY_DATE), first(attributes, tags.STUDY_TIME)


def _position(instance: HeldInstance) -> tuple[int, str, int, str]:
    series = _number(instance.attributes, tags.SERIES_NUMBER)
    number = _number(instance.attributes, tags.INSTANCE_NUMBER)
    return series, instance.series_uid, number, instance.sop_uid


def _number(attributes: Attributes, tag: int) -> int:
    try:
        return int(first(attributes, tag))
    except ValueError:
        return 0


def _common(instances: Sequence[HeldInstance], wanted: frozenset[int]) -> dict[int, Values]:
    """Return each of the wanted attributes as the first instance that has it says."""
    found: dict[int, Values] = {}
    for instance in instances:
        for tag in wanted - found.keys():
            if tag in instance.attributes:
                found[tag] = instance.attributes[tag]
    return found


def _distinct(instances: Sequence[HeldInstance], tag: int) -> Values:
    return tuple(sorted({first(i.attributes, tag) for i in instances} - {""})) or ("",)


class Store(Protocol):
    """What `StoreHoldings` needs of `node.exchange.store.store.StudyStore`."""

    def studies(self) -> Iterator[bytes]: ...
    def index(self, study_id: bytes, version: int | None = None) -> StudyIndex: ...
    def is_complete(self, study_id: bytes, version: int | None = None) -> bool: ...
    def read_range(
        self, study_id: bytes, ordinal: int, start: int, stop: int, version: int | None = None
    ) -> Iterator[bytes]: ...


class StoreHoldings:
    """`Holdings` over the encrypted store.

    A list of all studies, about a kilobyte each, is in memory, for nothing searchable lies on disk
    in clear. `refresh` brings it up to date; `add` and `remove` do so for one study. Thread-safe.
    """

    def __init__(self, store: Store, may_show: Callable[[bytes], bool] = lambda _: True) -> None:
        """`may_show` tells whether a study (id, 16 bytes) is this hospital's or still granted."""
        self._store, self._may_show = store, may_show
        self._lock = threading.Lock()
        self._listed: dict[bytes, StudyRow] = {}
        self._kept: OrderedDict[bytes, HeldStudy] = OrderedDict()
        self._joined: dict[str, tuple[frozenset[bytes], StudyRow]] = {}

    def judged_by(self, may_show: Callable[[bytes], bool]) -> "StoreHoldings":
        """Return the same holdings under another rule of what may be given out."""
        other = copy.copy(self)
        other._may_show = may_show
        return other

    def refresh(self) -> int:
        """Read the indices of all studies; return how many there are. Slow: seconds a thousand."""
        ids = list(self._store.studies())
        for study_id in ids:
            self.add(study_id)
        for study_id in self._listed.keys() - set(ids):
            self.remove(study_id)
        return len(ids)

    def add(self, study_id: bytes) -> str | None:
        """List a study that was stored, in its latest version; return its Study Instance UID.

        One still incomplete is left out.
        """
        try:
            if not self._store.is_complete(study_id):
                return None
            index = self._store.index(study_id)
        except StudyUnknown:
            return None
        except StoreError as error:
            log.error("a study cannot be listed: its index is %s", type(error).__name__)
            return None
        if not index.instances:
            return None
        study = _study_of(index)
        with self._lock:
            self._listed[study_id] = StudyRow(study.uid, study.attributes)
            self._kept.pop(study_id, None)
            self._joined.pop(study.uid, None)
        return study.uid

    def remove(self, study_id: bytes) -> str | None:
        """Forget a study that was erased or is withheld for good; return its UID if it was listed.

        Other parts of a study with that UID stay.
        """
        with self._lock:
            row = self._listed.pop(study_id, None)
            self._kept.pop(study_id, None)
            if row is not None:
                self._joined.pop(row.uid, None)
        return None if row is None else row.uid

    def ids_of(self, uid: str) -> list[bytes]:
        """Return the ids on the ledger of what is listed under a Study Instance UID."""
        with self._lock:
            return [study_id for study_id, row in self._listed.items() if row.uid == uid]

    def studies(self) -> Sequence[StudyRow]:
        with self._lock:
            listed = list(self._listed.items())
        parts: dict[str, dict[bytes, StudyRow]] = {}
        for study_id, row in listed:
            if self._may_show(study_id):
                parts.setdefault(row.uid, {})[study_id] = row
        return in_order(self._row(uid, rows) for uid, rows in parts.items())

    def _row(self, uid: str, rows: dict[bytes, StudyRow]) -> StudyRow:
        """Return the row of a study whose parts that may be shown are `rows`."""
        if len(rows) == 1:
            return next(iter(rows.values()))
        shown = frozenset(rows)
        with self._lock:
            known = self._joined.get(uid)
        if known is not None and known[0] == shown:
            return known[1]
        try:
            found = [self._load(study_id) for study_id in rows]
        except (Withheld, OSError):  # told by who asks for the study itself
            return next(iter(rows.values()))
        row = StudyRow(uid, _joined(uid, found).attributes)
        with self._lock:
            self._joined[uid] = shown, row
        return row

    def study(self, uid: str) -> HeldStudy | None:
        with self._lock:
            ids = [study_id for study_id, row in self._listed.items() if row.uid == uid]
        found = [self._load(study_id) for study_id in ids if self._may_show(study_id)]
        if len(found) < 2:
            return found[0] if found else None
        return _joined(uid, found)

    def open(self, instance: HeldInstance) -> BinaryIO:
        study_id, version, ordinal = cast(tuple[bytes, int, int], instance.place)
        if not self._may_show(study_id):
            raise Withheld

        def read(start: int, stop: int) -> bytes:
            with _explained():
                return b"".join(self._store.read_range(study_id, ordinal, start, stop, version))

        return io.BufferedReader(_Blocks(read, instance.size), 64 * 2**10)

    def _load(self, study_id: bytes) -> HeldStudy:
        with self._lock:
            kept = self._kept.get(study_id)
            if kept is not None:
                self._kept.move_to_end(study_id)
                return kept
        with _explained():
            study = _study_of(self._store.index(study_id))
        with self._lock:
            self._kept[study_id] = study
            while len(self._kept) > _STUDIES_KEPT:
                self._kept.popitem(last=False)
        return study


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except (StudyErased, StudyUnknown) as error:
        raise Withheld from error
    except StoreError as error:
        raise OSError(f"the store cannot read it: {type(error).__name__}") from error


class _Blocks(io.RawIOBase):
    """A file that can seek, over reads of ranges; the last block is kept."""

    def __init__(self, read: Callable[[int, int], bytes], size: int) -> None:
        self._read_range, self._size, self._at = read, size, 0
        self._block, self._start = b"", 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, target: Any) -> int:
        view = memoryview(target).cast("B")
        if self._at >= self._size or not len(view):
            return 0
        if not self._start <= self._at < self._start + len(self._block):
            self._start = self._at - self._at % BLOCK_BYTES
            stop = min(self._start + BLOCK_BYTES, self._size)
            self._block = self._read_range(self._start, stop)
            if len(self._block) != stop - self._start:
                raise OSError("the store gave fewer bytes than the instance has")
        offset = self._at - self._start
        data = self._block[offset : offset + len(view)]
        view[: len(data)] = data
        self._at += len(data)
        return len(data)


def _joined(uid: str, parts: Iterable[HeldStudy]) -> HeldStudy:
    """Return one study by its UID, which is in parts: of several hospitals, or series apart."""
    return make_study(uid, (instance for part in parts for instance in part.instances))


def _study_of(index: StudyIndex) -> HeldStudy:
    instances = [_held(index, ordinal, one.facts) for ordinal, one in enumerate(index.instances)]
    return make_study(instances[0].study_uid, instances)


def _held(index: StudyIndex, ordinal: int, facts: InstanceFacts) -> HeldInstance:
    attributes = from_pairs(facts.attributes)
    return HeldInstance(
        first(attributes, tags.STUDY_INSTANCE),
        facts.series_uid,
        facts.sop_instance_uid,
        facts.sop_class_uid,
        facts.transfer_syntax,
        facts.size,
        attributes,
        (index.study_id, index.version, ordinal),
    )
