"""The durable intake: an instance is acknowledged once its file and its row are on the disk.

    spool/index.db, index.key   what is known of the files (`index.py`); the key of its HMACs
    spool/foreign.db            what came from other hospitals (`foreign.py`)
    spool/incoming/NAME         being received; nobody was promised anything
    spool/instances/xx/NAME     accepted; the exact bytes as received
    spool/quarantine/NAME       refused, with the reason in the index
    spool/lock                  held by the gateway that owns the folder

Names are random and nothing in clear identifies a patient but the files themselves, which only
their owner can read and which go when their study is registered and stored. The order in `_admit`
is the promise: file synced, checked, moved, folder synced, row committed, and only then the answer.
A crash before the row leaves a file that `recover` removes: its sender was told nothing.
"""

import fcntl
import hashlib
import hmac
import logging
import os
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, TypeAlias

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from consensus.wire import pack
from node.gateway.arrivals import Arrivals
from node.gateway.audit.acts import Act
from node.gateway.audit.errors import TrailUnusable
from node.gateway.audit.notes import noted
from node.gateway.audit.trail import Trail
from node.gateway.closing import RULES, Rules
from node.gateway.foreign import Foreign
from node.gateway.index import (
    Arrival,
    Aside,
    Event,
    Gathering,
    Index,
    SpooledFile,
    SpoolError,
    Usage,
    Verdict,
)
from node.gateway.outcomes import Accepted, Claimed, Conflict, Duplicate, Outcome, Refused
from node.gateway.spool_files import load_key, make_folders, private, sync_file
from node.imaging import commitment
from node.imaging.commitment import CommittedFile
from node.imaging.errors import NOT_NOW, UnreadableInstance
from node.imaging.limits import LIMITS, Limits
from node.imaging.reader import read_instance

log = logging.getLogger(__name__)

COPY_BYTES = 1 << 20
DISK_FULL = "the disk is full; try again later"
READERS = 2  # instances that are parsed at once: memory is bounded by this, not by the senders
_NONCE_BYTES = 12

Read: TypeAlias = Callable[[Path, Limits], CommittedFile | UnreadableInstance]
Uids: TypeAlias = tuple[str, str, str, str]  # SOP instance, SOP class, study, series


class Stream(Protocol):
    """Where an instance's bytes come from."""

    def read(self, count: int, /) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Quota:
    """What the spool may hold."""

    instance_bytes_max: int = 8 << 30
    bytes_max: int = 100 << 30
    instances_max: int = 500_000
    quarantine_bytes_max: int = 10 << 30
    disk_reserve_bytes: int = 2 << 30  # free space that is never used


class Spool:
    """An open spool. Safe to use from several threads, and from several processes."""

    def __init__(
        self,
        folder: Path,
        quota: Quota = Quota(),
        rules: Rules = RULES,
        limits: Limits = LIMITS,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        trail: Trail | None = None,
        read: Read = read_instance,
    ) -> None:
        """Open the spool in `folder`, made if it is not there. What comes and what is refused is
        recorded in `trail`. `read` parses what strangers sent: elsewhere than here, unless this
        process is fenced itself. Raises `SpoolError`."""
        self.folder = folder
        self._trail, self._arrivals, self._read = trail, Arrivals(), read
        self.incoming = folder / "incoming"
        self._quota, self._rules, self._limits, self._now_ms = quota, rules, limits, now_ms
        self._readers = threading.BoundedSemaphore(READERS)
        self._lock_descriptor: int | None = None
        try:
            make_folders(folder)
            self._key = load_key(folder / "index.key")
        except OSError as error:
            raise SpoolError(f"{folder} cannot be used: {error.strerror}") from error
        self._seal = AESGCM(hmac.digest(self._key, b"radledger/spool/seal", "sha256"))
        self.index = Index(folder / "index.db")
        self.foreign = Foreign(folder / "foreign.db")

    def close(self) -> None:
        """Close the index and give up the folder."""
        self.index.close()
        self.foreign.close()
        if self._lock_descriptor is not None:
            os.close(self._lock_descriptor)
            self._lock_descriptor = None

    def recover(self) -> None:
        """Own the folder and put it in order; call it before anybody else uses the spool.

        Removes files that were never acknowledged, and reports acknowledged ones that are gone.
        Raises `SpoolError` while another gateway owns it.
        """
        descriptor = os.open(self.folder / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise SpoolError(f"{self.folder} is used by another gateway; stop it first") from error
        self._lock_descriptor = descriptor
        shutil.rmtree(self.incoming)
        self.incoming.mkdir(mode=0o700)
        expected = set(self.index.names())
        present = {path.name: path for path in (self.folder / "instances").glob("*/*")}
        for name in present.keys() - expected:
            present[name].unlink(missing_ok=True)
        lost = sorted(expected - present.keys())
        if lost:
            log.error("files of acknowledged instances are gone count=%d", len(lost))
            self.note("lost", "spool", str(len(lost)))
            self.index.drop(lost)
        kept = {aside.name for aside in self.index.asides()}
        for path in (self.folder / "quarantine").iterdir():
            if path.name not in kept:
                path.unlink(missing_ok=True)

    def room(self, size: int = 0) -> Refused | None:
        """Return the refusal that anything of `size` bytes would meet now, or None."""
        used = self.index.usage()
        if used.files >= self._quota.instances_max:
            reason = f"{used.files} instances wait to be registered; try again later"
        elif used.bytes + size > self._quota.bytes_max:
            reason = f"{used.bytes} bytes wait to be registered; try again later"
        elif self.lacks_disk(size):
            reason = DISK_FULL
        else:
            return None
        return Refused(code="no_room", reason=reason)

    def lacks_disk(self, size: int = 0) -> bool:
        """Whether `size` bytes more would leave less of the disk free than the reserve."""
        return shutil.disk_usage(self.folder).free - size < self._quota.disk_reserve_bytes

    def accept(
        self,
        source: str,
        stream: Stream,
        study_uid: str | None = None,
        claimed: Claimed | None = None,
    ) -> Outcome:
        """Take one instance, to the end of `stream`; it is durable when this returns `Accepted`.

        `source` tells an operator where it came from. With `study_uid`, an instance of another
        study is refused and nothing of it is kept. Waits for the disk: call it from a worker.
        Raises what `stream.read` raises, and `SpoolError`; then nothing was taken.
        """
        if refused := self.room():
            return self._turned_away(source, refused)
        path = self.incoming / secrets.token_hex(16)
        try:
            refused = self._receive(path, stream)
        except OSError as error:
            path.unlink(missing_ok=True)
            if error.filename == str(path):
                raise SpoolError(f"the spool cannot be written: {error.strerror}") from error
            raise
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        if refused is not None:
            path.unlink(missing_ok=True)
            return self._turned_away(source, refused)
        return self.accept_file(source, path, study_uid, claimed)

    def accept_file(
        self,
        source: str,
        path: Path,
        study_uid: str | None = None,
        claimed: Claimed | None = None,
    ) -> Outcome:
        """Take the instance in `path`, a file in `incoming` that is the spool's from now on."""
        try:
            size = path.stat().st_size
            if refused := self.room(size):
                return self._turned_away(source, refused)
            with self._readers:
                read = self._read(path, self._limits)
            if isinstance(read, UnreadableInstance):
                if read.code == NOT_NOW:
                    refused = Refused(code="no_room", reason=read.reason)
                    return self._turned_away(source, refused)
                refused = Refused(code=read.code, reason=read.reason)
                return self._set_aside(source, path, size, refused)
            return self._admit(source, path, size, read, study_uid, claimed)
        except OSError as error:
            raise SpoolError(f"the spool cannot be written: {error.strerror}") from error
        finally:
            path.unlink(missing_ok=True)

    def take(self, study: bytes) -> list[Path]:
        """Return the files of the study's next version; the same ones until `finish`."""
        return [self._place(file.name) for file in self.index.take(study)]

    def taken(self, study: bytes, sop_uids: Sequence[str]) -> dict[str, Path]:
        """Return which of these instances are among those taken, and in what files."""
        names = self.index.taken(study)
        known = ((uid, names.get(self.lookup("sop", uid))) for uid in sop_uids)
        return {uid: self._place(name) for uid, name in known if name is not None}

    def finish(self, study: bytes) -> None:
        """Forget the files that were taken, since they are registered and stored elsewhere."""
        self._remove(self.index.finish(study))

    def dispute(self, path: Path, code: str, reason: str) -> None:
        """Put an accepted file into quarantine after all: it is not what was registered.

        Raises `SpoolError` if there is no room for it: it was acknowledged, and may not be lost.
        """
        size = path.stat().st_size
        conflict = Conflict(code=code, reason=reason)
        if not self._set_aside("registered", path, size, conflict, keep=True).is_kept:
            raise SpoolError("the quarantine has no room for an accepted file")
        self.index.drop([path.name])
        path.unlink(missing_ok=True)

    def forget(self, study_uid: str) -> None:
        """Remove everything of a study that is erased, but what is in quarantine."""
        self._remove(self.index.forget(self.lookup("study", study_uid)))

    def holds(self, sop_uids: Sequence[str]) -> list[bool]:
        """Return for each instance whether it was accepted and no other copy contradicts it.

        An instance with a conflict is not vouched for: who asks may hold the copy that was refused.
        """
        lookups = [self.lookup("sop", uid) for uid in sop_uids]
        found = self.index.holds(lookups)
        return [lookup in found for lookup in lookups]

    def signal(self, sop_uids: Sequence[str] | None = None) -> None:
        """Say that the studies of these instances, or all studies, are complete."""
        if sop_uids is None:
            self.index.signal()
        else:
            self.index.signal([self.lookup("sop", uid) for uid in sop_uids])

    def gatherings(self) -> list[Gathering]:
        """Return the studies of which something waits or is taken."""
        return self.index.gatherings()

    def usage(self) -> Usage:
        """Return how much is here."""
        return self.index.usage()

    def asides(self) -> list[Aside]:
        """Return what is in quarantine."""
        return self.index.asides()

    def discard(self, name: str) -> None:
        """Remove one file from quarantine for good."""
        self.index.release(name)
        (self.folder / "quarantine" / name).unlink(missing_ok=True)

    def note(self, kind: str, source: str, code: str, *, is_audited: bool = False) -> None:
        """Keep an event for operators and, unless that is done already, for auditors."""
        if self._trail is not None and not is_audited:
            self._trail.tell(noted(kind, source, code))
        self.index.note(Event(self._now_ms(), kind, source, code))

    def lookup(self, kind: str, *parts: str) -> bytes:
        """Return the 32 bytes under which the index knows something."""
        return hmac.digest(self._key, pack((kind, *parts)), "sha256")

    def seal(self, plain: bytes) -> bytes:
        """Return `plain` encrypted, for a row that names instances."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return nonce + self._seal.encrypt(nonce, plain, None)

    def unseal(self, sealed: bytes) -> bytes:
        """Return what was sealed. Raises `SpoolError`."""
        try:
            return self._seal.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], None)
        except InvalidTag as error:
            raise SpoolError("a row of the spool fails its check") from error

    def _receive(self, path: Path, stream: Stream) -> Refused | None:
        size = 0
        with open(path, "xb", opener=private) as file:
            while piece := stream.read(COPY_BYTES):
                size += len(piece)
                if size > self._quota.instance_bytes_max:
                    limit = self._quota.instance_bytes_max
                    return Refused(code="too_large", reason=f"has more than {limit} bytes")
                if self.lacks_disk(len(piece)):
                    return Refused(code="no_room", reason=DISK_FULL)
                try:
                    file.write(piece)
                except OSError as error:
                    error.filename = str(path)
                    raise
        return None

    def _admit(
        self,
        source: str,
        path: Path,
        size: int,
        read: CommittedFile,
        study_uid: str | None,
        claimed: Claimed | None,
    ) -> Outcome:
        uids = _uids(read)
        if study_uid is not None and uids[2] != study_uid:
            reason = "is of another study than the one asked for"
            return self._turned_away(source, Refused(*uids, code="other_study", reason=reason))
        if claimed is not None and claimed != Claimed(uids[1], uids[0]):
            reason = "is of another SOP class or instance than announced (PS3.4 B.2.3)"
            refused = Refused(*uids, code="mismatch", reason=reason)
            return self._set_aside(source, path, size, refused)
        arrival = self._arrival(read, size, uids)
        agrees = self.foreign.compare(arrival.sop, read.commitment.rules, arrival.content)
        if agrees:
            return Duplicate(*uids)  # and no promise to keep it: `holds` does not vouch for it
        if agrees is False:
            reason = "came from another hospital with other content; both are kept"
            conflict = Conflict(*uids, code="conflict_elsewhere", reason=reason)
            return self._set_aside(source, path, size, conflict)
        if self._is_unaudited(source, arrival.study):
            reason = "it cannot be audited now; try again later"
            return self._turned_away(source, Refused(*uids, code="no_room", reason=reason))
        target = self._place(arrival.name)
        os.rename(path, target)
        sync_file(target)
        try:
            verdict, known = self.index.record(arrival)
        except SpoolError:
            target.unlink(missing_ok=True)
            raise
        if verdict is Verdict.NEW:
            return Accepted(*uids)
        try:
            return self._not_new(source, target, size, verdict, known, uids)
        finally:
            target.unlink(missing_ok=True)

    def _not_new(
        self,
        source: str,
        path: Path,
        size: int,
        verdict: Verdict,
        known: str,
        uids: Uids,
    ) -> Outcome:
        if verdict is Verdict.KNOWN:
            return Duplicate(*uids)
        if verdict is Verdict.FULL:
            reason = "its study waits with as many instances as one may have; try again later"
            return self._turned_away(source, Refused(*uids, code="no_room", reason=reason))
        if verdict is Verdict.OTHER_PATIENT:
            reason = "names another patient than the other instances of its study"
            refused = Refused(*uids, code="other_patient", reason=reason)
            return self._set_aside(source, path, size, refused)
        self._keep_first(self._place(known))
        reason = "an instance of this UID is here with other content; both are kept"
        conflict = Conflict(*uids, code="conflict", reason=reason)
        return self._set_aside(source, path, size, conflict, keep=True)

    def content(self, rules: int, core: bytes, pixels: bytes, private: bytes) -> bytes:
        """Return the 32 bytes that stand for K, P and X of an instance."""
        digest = hashlib.sha256(pack((rules, core, pixels, private))).digest()
        return hmac.digest(self._key, b"C" + digest, "sha256")

    def _arrival(self, read: CommittedFile, size: int, uids: Uids) -> Arrival:
        known = read.commitment
        patient = read.text(commitment.PATIENT_ID), read.text(commitment.PATIENT_ISSUER)
        return Arrival(
            self.lookup("sop", uids[0]),
            self.lookup("study", uids[2]),
            self.lookup("patient", *patient),
            secrets.token_hex(16),
            size,
            hmac.digest(self._key, b"F" + known.file, "sha256"),
            self.content(known.rules, known.core, known.pixels.chosen.digest, known.private),
            self._now_ms(),
            self._rules.draw_delay(),
        )

    def _keep_first(self, path: Path) -> None:
        """Keep the copy that a later one contradicts, beyond its registration."""
        try:
            size = path.stat().st_size
            first = Refused(code="conflict_first", reason="a later copy has other content")
            self._set_aside("spool", path, size, first, keep=True)
        except FileNotFoundError:
            return  # it is in the store already

    def _set_aside(
        self, source: str, path: Path, size: int, refused: Refused, *, keep: bool = False
    ) -> Refused:
        """Put a file into quarantine, where there is room for it; `keep` leaves `path` as well."""
        name = secrets.token_hex(16)
        row = Aside(name, refused.code, refused.reason, source, size, self._now_ms())
        target = self.folder / "quarantine" / name
        os.link(path, target)
        sync_file(target)
        is_kept = self.index.set_aside(row, self._quota.quarantine_bytes_max)
        if not is_kept:
            target.unlink(missing_ok=True)
        if not keep:
            path.unlink(missing_ok=True)
        kind = "conflict" if isinstance(refused, Conflict) else "refused"
        self.note(kind, source, refused.code)
        log.warning("instance %s source=%s code=%s kept=%s", kind, source, refused.code, is_kept)
        return replace(refused, is_kept=is_kept)

    def _is_unaudited(self, source: str, study: bytes) -> bool:
        """Record that a sender begins to send a study; if that fails nothing of it is taken."""
        if self._trail is None or not self._arrivals.is_new(source, study, self._now_ms()):
            return False
        try:
            self._trail.append(Act("receiving", who=source, arriving=reference(study)))
        except TrailUnusable as error:
            self._arrivals.forget(source, study)
            log.error("nothing is taken, since it cannot be audited: %s", error)
            return True
        return False

    def _turned_away(self, source: str, refused: Refused) -> Refused:
        self.note("refused", source, refused.code)
        log.warning("instance refused source=%s code=%s", source, refused.code)
        return refused

    def _remove(self, files: Sequence[SpooledFile]) -> None:
        for file in files:
            self._place(file.name).unlink(missing_ok=True)

    def _place(self, name: str) -> Path:
        return self.folder / "instances" / name[:2] / name


def reference(study: bytes) -> str:
    """Return by what logs and records name a study that has no id on the ledger yet."""
    return study.hex()[:12]


@contextmanager
def opened(folder: Path, quota: Quota = Quota(), rules: Rules = RULES) -> Iterator[Spool]:
    """Yield the spool in `folder`, closed at the end. Raises `SpoolError`."""
    spool = Spool(folder, quota, rules)
    try:
        yield spool
    finally:
        spool.close()


def _uids(read: CommittedFile) -> Uids:
    return (
        read.text(commitment.SOP_INSTANCE),
        read.text(commitment.SOP_CLASS),
        read.text(commitment.STUDY_INSTANCE),
        read.text(commitment.SERIES_INSTANCE),
    )
