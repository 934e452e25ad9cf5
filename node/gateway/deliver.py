"""Delivery of studies to the local PACS: sent, read back, verified by K and P, taken up again.

An instance counts as delivered when what the PACS gives back is the same image by the commitment's
own rules, not when the PACS says success: some answer success and keep another copy of that SOP
Instance UID. How far each has come is on disk, so after a restart of either side only what is
missing is sent.
"""

import asyncio
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from node.gateway.closing import retry_after
from node.gateway.deliveries import Deliveries, DeliveriesUnusable, Delivery, Stage, State
from node.gateway.holdings import HeldInstance, HeldStudy, Holdings, Withheld
from node.gateway.index import SpoolError
from node.gateway.spool import Read
from node.gateway.ways import NotOffered, Unreachable, Way
from node.imaging.errors import NOT_NOW, UnreadableInstance
from node.imaging.limits import LIMITS
from node.imaging.manifest import instance_of
from node.imaging.reader import read_instance
from node.imaging.verify import INTACT, Verdict, compare

log = logging.getLogger(__name__)

ATTEMPTS_MAX = 200  # some sixteen hours
PIECE_BYTES = 1 << 20
POLL_SECONDS = 2.0
UNUSABLE_SECONDS = 60.0  # until the file of deliveries is tried again
_AT_END = frozenset({Stage.VERIFIED, Stage.FOUND, Stage.ALTERED})
_WITHHELD = "withheld"
# The image is the one that was sent; the PACS may have left private elements out.
_DELIVERED = INTACT | {Verdict.PRIVATE}


class UnknownStudy(LookupError):
    """There is no such study here, or no such PACS."""


@dataclass(frozen=True, slots=True)
class Given:
    """What a delivery has given out, for the audit trail. The UID identifies."""

    target: str
    study_uid: str
    instances: int
    code: str  # "" if all is well


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a delivery has come."""

    state: State
    instances: int
    verified: int
    found: int  # listed by the PACS, which gives nothing back to compare
    sent: int
    refused: int
    altered: int
    reason: str


class Deliverer:
    """Delivers to the PACS by the ways that each has, in the order of preference. Blocking."""

    def __init__(
        self,
        deliveries: Deliveries,
        holdings: Holdings,
        targets: Mapping[str, Sequence[Way]],
        folder: Path,
        *,
        audit: Callable[[Given], None],
        as_of: Callable[[], int | None] | None = None,
        may_begin: Callable[[Given], bool] = lambda given: True,
        read: Read = read_instance,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        """`folder` takes one instance at a time while it is compared; it is made for us alone.

        `as_of` has what may be given out looked at anew, and returns the number of the last such
        look, None while nothing is known. What is withheld has to be so by two looks: after a
        start, or without its node, a gateway knows of no grant. Without `as_of` one is enough.
        `may_begin` is asked before each attempt that sends: with False it waits. `read` parses
        what other hospitals and the PACS sent, elsewhere than here.
        """
        self._as_of = as_of
        self._withheld: dict[int, int] = {}  # by which look a delivery was withheld first
        self._deliveries, self._holdings, self._targets = deliveries, holdings, targets
        self._may_begin, self._read = may_begin, read
        self._folder, self._audit, self._now_ms = folder, audit, now_ms
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def submit(self, study_uid: str, target: str) -> int:
        """Begin to deliver a study; return the delivery's number. Raises `UnknownStudy`."""
        study = self._holdings.study(study_uid)
        if study is None:
            raise UnknownStudy("there is no such study here")
        if target not in self._targets:
            raise UnknownStudy("there is no PACS of that name in the config")
        uids = [instance.sop_uid for instance in study.instances]
        return self._deliveries.add(target, study_uid, uids, self._now_ms())

    def has_begun(self, study_uid: str, target: str) -> bool:
        """Return whether this study, as it is now, was ever submitted for this PACS."""
        study = self._holdings.study(study_uid)
        if study is None:
            return False
        uids = [instance.sop_uid for instance in study.instances]
        return self._deliveries.find(target, study_uid, uids) is not None

    async def run(self, poll_seconds: float = POLL_SECONDS) -> None:
        """Take up deliveries as they become due, until cancelled."""
        while True:
            pause_s = poll_seconds
            try:
                await asyncio.to_thread(self.run_once)
            except DeliveriesUnusable as error:
                log.error("deliveries wait: %s", error)
                pause_s = UNUSABLE_SECONDS
            await asyncio.sleep(pause_s)

    def run_once(self) -> int:
        """Take up every delivery that is due; return how many came to their end.

        Raises `DeliveriesUnusable`; whatever else goes wrong makes that delivery wait.
        """
        now = self._now_ms()
        due = [delivery for delivery in self._deliveries.waiting() if delivery.due_ms <= now]
        return sum(self._attempt(delivery) for delivery in due)

    def progress(self, number: int) -> Progress:
        """Return how far a delivery has come. Raises `UnknownStudy`."""
        delivery = self._deliveries.get(number)
        if delivery is None:
            raise UnknownStudy("there is no such delivery")
        stages = [stage for stage, _ in self._deliveries.stages(number).values()]
        return Progress(
            delivery.state,
            len(delivery.sop_uids),
            stages.count(Stage.VERIFIED),
            stages.count(Stage.FOUND),
            stages.count(Stage.SENT),
            stages.count(Stage.REFUSED),
            stages.count(Stage.ALTERED),
            delivery.reason,
        )

    def _attempt(self, delivery: Delivery) -> bool:
        ways = self._targets.get(delivery.target, ())
        try:
            study = self._holdings.study(delivery.study_uid)
        except Withheld:
            study = None
        except Exception as error:  # noqa: BLE001 - the boundary: see `run_once`
            return self._later(delivery, _reason(error))
        if study is None:
            return self._withhold(delivery)
        parts = self._deliveries, delivery, study, self._holdings, self._folder
        attempt = _Attempt(*parts, self._read)
        if attempt.lacks_some:
            return self._withhold(delivery)
        given = Given(delivery.target, delivery.study_uid, 0, "")
        if attempt.has_left and not self._may_begin(given):
            return self._later(delivery, "it cannot be audited now")
        try:
            attempt.send(ways)
            attempt.verify(ways)
        except Withheld:
            return self._withhold(delivery, attempt.given)
        except DeliveriesUnusable:
            self._tell_given(delivery, attempt.given)  # what was sent is known here alone
            raise
        except Exception as error:  # noqa: BLE001 - the boundary: see `run_once`
            return self._later(delivery, _reason(error), attempt.given)
        return self._settle(delivery, attempt.given)

    def _withhold(self, delivery: Delivery, given: int = 0) -> bool:
        look = None if self._as_of is None else self._as_of()
        first = None if look is None else self._withheld.setdefault(delivery.number, look)
        if self._as_of is None or (look is not None and look != first):
            return self._end(delivery, State.FAILED, _WITHHELD, given)
        return self._later(delivery, _WITHHELD, given)

    def _settle(self, delivery: Delivery, given: int) -> bool:
        stages = self._deliveries.stages(delivery.number)
        reasons = [reason for stage, reason in stages.values() if stage is Stage.ALTERED]
        if reasons:
            return self._end(delivery, State.FAILED, f"altered: {reasons[0]}", given)
        at_end = sum(stage in _AT_END for stage, _ in stages.values())
        if at_end == len(delivery.sop_uids):
            return self._end(delivery, State.DONE, "", given)
        refused = [reason for stage, reason in stages.values() if stage is Stage.REFUSED]
        missing = len(delivery.sop_uids) - at_end
        why = f"refused: {refused[0]}" if refused else "not in the PACS after it was sent"
        return self._later(delivery, f"{missing} instances: {why}", given)

    def _end(self, delivery: Delivery, state: State, reason: str, given: int = 0) -> bool:
        self._deliveries.end(delivery.number, state, reason)
        self._withheld.pop(delivery.number, None)
        log.info(
            "delivery ended number=%d target=%s state=%s reason=%s",
            delivery.number,
            delivery.target,
            state.value,
            reason,
        )
        code = reason.partition(":")[0]
        self._audit(Given(delivery.target, delivery.study_uid, given, code))
        return True

    def _later(self, delivery: Delivery, reason: str, given: int = 0) -> bool:
        if delivery.attempts + 1 >= ATTEMPTS_MAX:
            return self._end(delivery, State.FAILED, reason, given)
        if reason != _WITHHELD:
            self._withheld.pop(delivery.number, None)
        delay_ms = retry_after(delivery.attempts)
        self._deliveries.later(delivery.number, self._now_ms() + delay_ms, reason)
        log.warning(
            "delivery waits number=%d target=%s attempts=%d retry_ms=%d reason=%s",
            delivery.number,
            delivery.target,
            delivery.attempts + 1,
            delay_ms,
            reason,
        )
        self._tell_given(delivery, given)
        return False

    def _tell_given(self, delivery: Delivery, given: int) -> None:
        if given:
            self._audit(Given(delivery.target, delivery.study_uid, given, "waits"))


class _Attempt:
    """One attempt at one delivery."""

    def __init__(
        self,
        deliveries: Deliveries,
        delivery: Delivery,
        study: HeldStudy,
        holdings: Holdings,
        folder: Path,
        read: Read,
    ) -> None:
        self._deliveries, self._number = deliveries, delivery.number
        self._holdings, self._folder, self._parse = holdings, folder, read
        self._places = {uid: place for place, uid in enumerate(delivery.sop_uids)}
        self._instances = [i for i in study.instances if i.sop_uid in self._places]
        # What was to be delivered may not be ours to give any more.
        self.lacks_some = len(self._instances) != len(self._places)
        self.given = 0

    @property
    def has_left(self) -> bool:
        """Whether something is still to be sent."""
        stages = self._stages()
        return any(stages.get(uid) in (None, Stage.REFUSED) for uid in self._places)

    def send(self, ways: Iterable[Way]) -> None:
        """Send what the PACS has not taken yet: by the first way, what it refuses by the next."""
        unreachable: Unreachable | None = None
        for way in ways:
            stages = self._stages()
            left = [i for i in self._instances if i.sop_uid not in stages]
            left += [i for i in self._instances if stages.get(i.sop_uid) is Stage.REFUSED]
            if not left:
                return
            try:
                way.send(left, self._read, self._sent)
                unreachable = None
            except Unreachable as error:
                unreachable = error
        if unreachable is not None:
            raise unreachable

    def verify(self, ways: Sequence[Way]) -> None:
        """Read back what the PACS has taken, by the first way that it offers."""
        unreachable: Unreachable | None = None
        for way in ways:
            unread = self._in_stage(Stage.SENT)
            if not unread:
                return
            try:
                way.fetch(unread, self._folder, self._fetched)
                return
            except NotOffered:
                continue
            except Unreachable as error:
                unreachable = error
        if unreachable is not None:
            raise unreachable
        self._look_up(ways)

    def _look_up(self, ways: Iterable[Way]) -> None:
        """Where nothing is given back, see whether the PACS lists it at least."""
        for way in ways:
            unread = self._in_stage(Stage.SENT)
            if not unread:
                return
            try:
                listed = way.lists(unread)
            except NotOffered:
                continue
            for instance in unread:
                stage = Stage.FOUND if instance.sop_uid in listed else None
                self._mark(instance, stage, "the PACS gives nothing back to compare")
            return

    def _in_stage(self, stage: Stage) -> list[HeldInstance]:
        stages = self._stages()
        return [i for i in self._instances if stages.get(i.sop_uid) is stage]

    def _stages(self) -> dict[str, Stage]:
        known = self._deliveries.stages(self._number)
        return {uid: known[place][0] for uid, place in self._places.items() if place in known}

    def _mark(self, instance: HeldInstance, stage: Stage | None, reason: str = "") -> None:
        self._deliveries.mark(self._number, self._places[instance.sop_uid], stage, reason)

    def _read(self, instance: HeldInstance) -> Iterator[bytes]:
        with closing(self._holdings.open(instance)) as stream:
            while piece := stream.read(PIECE_BYTES):
                yield piece

    def _sent(self, instance: HeldInstance, code: str) -> None:
        self.given += not code
        self._mark(instance, Stage.REFUSED if code else Stage.SENT, code)

    def _fetched(self, instance: HeldInstance, path: Path | None) -> None:
        if path is None:
            self._mark(instance, None)  # it said success, and has it not: send it again
            return
        with self._own(instance) as own:
            verdict, sentence = same_image(own, path, self._parse)
        if verdict in _DELIVERED:
            self._mark(instance, Stage.VERIFIED, verdict.value)
        elif verdict is Verdict.UNDECIDED:
            self._mark(instance, Stage.FOUND, sentence)
        else:
            self._mark(instance, Stage.ALTERED, sentence)

    @contextmanager
    def _own(self, instance: HeldInstance) -> Iterator[Path]:
        descriptor, name = tempfile.mkstemp(dir=self._folder)
        try:
            with os.fdopen(descriptor, "wb") as file:
                for piece in self._read(instance):
                    file.write(piece)
            yield Path(name)
        finally:
            Path(name).unlink(missing_ok=True)


def _reason(error: Exception) -> str:
    """Return why a delivery waits; what is a bug of ours is named by its type, and logged."""
    if isinstance(error, Unreachable):
        return str(error)
    name = type(error).__name__
    if isinstance(error, OSError | SpoolError):
        return f"the store or the disk fails: {name}"
    log.error("a delivery ran into a bug error=%s", name)
    return f"internal: {name}"


def same_image(own: Path, theirs: Path, read: Read) -> tuple[Verdict, str]:
    """Return what has become of the instance `own` in `theirs`, and that in words."""
    known = read(own, LIMITS)
    if isinstance(known, UnreadableInstance):
        return Verdict.UNDECIDED, f"our own copy cannot be compared: {known.reason}"
    given = read(theirs, LIMITS)
    if isinstance(given, UnreadableInstance):
        verdict = Verdict.UNDECIDED if given.code == NOT_NOW else Verdict.ALTERED
        return verdict, given.reason
    report = compare(instance_of(known), given)
    return report.verdict, report.sentence
