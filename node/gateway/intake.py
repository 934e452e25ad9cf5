"""From the spool to the chain and the store; every step can be cut off and is gone on with.

A study that is due is *taken*: its instances are the next version's, whatever comes meanwhile. They
are registered (`node.studies`, which sends the same transaction again after a crash), then stored,
and only then do their files go. What differs from what was registered earlier goes to quarantine.
While the chain or the store lags, studies wait, files stay, and the spool's quota turns senders
away before anything is lost.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from node.gateway import closing
from node.gateway.closing import Rules
from node.gateway.index import Gathering, SpoolError
from node.gateway.spool import Spool, reference
from node.imaging.errors import UnreadableInstance
from node.imaging.manifest import Manifest
from node.studies import Registration, Registrations

log = logging.getLogger(__name__)

AT_ONCE_MAX = 4  # studies that are registered at the same time
POLL_SECONDS = 1.0

Register = Callable[[Sequence[Path]], Awaitable[Registrations]]


class Keeps(Protocol):
    """What puts registered versions into the store."""

    def keep(self, manifest: Manifest, files: dict[str, Path]) -> None: ...


@dataclass(frozen=True, slots=True)
class Kept:
    """A version that is on the chain, and in the store if there is one."""

    study_id: bytes  # 16 bytes
    version: int
    instances: int
    study: bytes  # under which the spool's index knows it, 32 bytes


class Intake:
    """Registers and stores what the spool gathers."""

    def __init__(
        self,
        spool: Spool,
        rules: Rules,
        register: Register,
        keeper: Keeps | None,
        passing: tuple[type[Exception], ...],
        *,
        on_kept: Callable[[Kept], None] = lambda kept: None,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        """`passing` are the errors after which trying again later may help, and whose text may be
        shown: of the connection to the node, of the store."""
        self._spool, self._rules = spool, rules
        self._register, self._keeper, self._passing = register, keeper, passing
        self._on_kept, self._now_ms = on_kept, now_ms

    async def run(self, poll_seconds: float = POLL_SECONDS) -> None:
        """Take up studies as they become due, until cancelled."""
        while True:
            try:
                await self.step()
            except SpoolError as error:
                log.error("the spool cannot be read: %s", error)
            await asyncio.sleep(poll_seconds)

    async def step(self) -> int:
        """Take up every study that is due now; return how many were brought to their end."""
        gatherings = await asyncio.to_thread(self._spool.gatherings)
        now = self._now_ms()
        due = [study for study in gatherings if closing.is_due(study, self._rules, now)]
        turns = asyncio.Semaphore(AT_ONCE_MAX)
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._in_turn(turns, study)) for study in due]
        return sum(task.result() for task in tasks)

    async def _in_turn(self, turns: asyncio.Semaphore, study: Gathering) -> bool:
        async with turns:
            try:
                return await self._bring(study)
            except self._passing as error:
                await self._defer(study, f"{type(error).__name__}: {error}")
            except Exception as error:  # noqa: BLE001 - one study must not end the intake of all
                # Only the name of its kind: a library's text may quote a patient's.
                await self._defer(study, type(error).__name__)
        return False

    async def _bring(self, study: Gathering) -> bool:
        paths = await asyncio.to_thread(self._spool.take, study.study)
        if not paths:
            await asyncio.to_thread(self._spool.finish, study.study)
            return False
        done = await self._register(paths)
        await asyncio.to_thread(self._dispute, done)
        for registration in done.studies:
            manifest = registration.prepared.manifest
            if not registration.is_done or manifest is None:
                await self._defer(study, _why(registration))
                return False
            await self._keep(study, manifest)
        await asyncio.to_thread(self._spool.finish, study.study)
        return bool(done.studies)

    async def _keep(self, study: Gathering, manifest: Manifest) -> None:
        if self._keeper is not None:
            await asyncio.to_thread(self._store, self._keeper, study, manifest)
        instances = len(manifest.instances)
        self._on_kept(Kept(manifest.study_id, manifest.version, instances, study.study))
        log.info(
            "study version kept study=%s version=%d instances=%d",
            manifest.study_id.hex(),
            manifest.version,
            len(manifest.instances),
        )

    def _store(self, keeper: Keeps, study: Gathering, manifest: Manifest) -> None:
        uids = [instance.sop_uid for instance in manifest.instances]
        keeper.keep(manifest, self._spool.taken(study.study, uids))

    def _dispute(self, done: Registrations) -> None:
        """Put aside what is not what it was when it was registered or accepted."""
        for registration in done.studies:
            for name in registration.prepared.changed:
                self._put_aside(name, "conflict", "differs from what was registered earlier")
            for conflict in registration.prepared.conflicts:
                for name in conflict.names:
                    self._put_aside(name, "conflict", "several files of other content")
        for unreadable in done.preparation.unreadable:
            self._put_unreadable_aside(unreadable)

    def _put_unreadable_aside(self, unreadable: UnreadableInstance) -> None:
        self._put_aside(unreadable.name, unreadable.code, unreadable.reason)

    def _put_aside(self, name: str, code: str, reason: str) -> None:
        path = Path(name)
        if path.exists():  # it may have been put aside before a crash
            self._spool.dispute(path, code, reason)

    async def _defer(self, study: Gathering, reason: str) -> None:
        delay_ms = closing.retry_after(study.attempts)
        log.warning(
            "study waits ref=%s attempts=%d retry_ms=%d reason=%s",
            reference(study.study),
            study.attempts + 1,
            delay_ms,
            reason,
        )
        index = self._spool.index
        try:
            await asyncio.to_thread(index.defer, study.study, self._now_ms() + delay_ms, reason)
        except SpoolError as error:
            log.error("the study is tried again at once: %s", error)


def _why(registration: Registration) -> str:
    return registration.refusal or "not registered"
