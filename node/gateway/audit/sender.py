"""Sends the trail to the repository: strictly in order, through outages, at least once.

    trail -> reader -> message -> connection, and `sent.json` says from where to go on

A record counts as sent once the other side's TCP has acknowledged its bytes and the connection has
stood for `settle_seconds` after that. When a connection breaks, all that does not count is sent
again on the next one, in order; a repository tells repetitions by `sequenceId`. What a repository
loses after that time cannot be seen from here: the gap shows at the repository, and
`radledger gateway audit resend` sends again from any record. Memory is bounded: records are read
from the disk as they are sent, and of what was sent only numbers are kept.
"""

import asyncio
import logging
import ssl
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from node.gateway.audit import sent
from node.gateway.audit.connection import Connection, Repository, client_context
from node.gateway.audit.errors import TrailUnusable
from node.gateway.audit.message import Site
from node.gateway.audit.reader import Reader, first_here, last_here
from node.gateway.audit.sent import Sent
from node.gateway.audit.syslog import frame

log = logging.getLogger(__name__)

BATCH = 64  # records at a time
UNSETTLED_MAX = 4_096  # batches that were sent and do not count yet
POLL_SECONDS = 0.5
SETTLE_SECONDS = 5.0
FIRST_DELAY_SECONDS, LAST_DELAY_SECONDS = 1.0, 60.0
RESEND = "resend"  # a file with the number from which to send again


class _Batch(NamedTuple):
    last: int
    taken_s: float | None  # when the other side's TCP had all of it


class Sender:
    """Sends while `run` lasts. Its `turn` waits for disks and the network."""

    def __init__(
        self,
        folder: Path,
        repository: Repository,
        site: Site,
        *,
        settle_seconds: float = SETTLE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        """Raises `OSError` for TLS files that cannot be used."""
        self._folder, self._repository, self._site = folder, repository, site
        self._settle_seconds, self._clock, self._now_ms = settle_seconds, clock, now_ms
        self._context = client_context(repository)
        self._connection: Connection | None = None
        self._reader: Reader | None = None
        self._unsettled: deque[_Batch] = deque()
        self._sent = sent.load(folder).seq
        self._delay_s = FIRST_DELAY_SECONDS
        self._connected_s = 0.0
        self._is_out = False

    @property
    def sent(self) -> int:
        """The last record that counts as sent."""
        return self._sent

    @property
    def is_connected(self) -> bool:
        """Whether a connection stands."""
        return self._connection is not None

    async def run(self, poll_seconds: float = POLL_SECONDS) -> None:
        """Send until cancelled."""
        try:
            while True:
                delay_s = await asyncio.to_thread(self.turn, poll_seconds)
                await asyncio.sleep(delay_s)
        finally:
            if self._connection is not None:
                self._connection.abort()

    def turn(self, poll_seconds: float = POLL_SECONDS) -> float:
        """Do one step; return for how many seconds there is nothing to do."""
        try:
            self._obey()
            if self._connection is None:
                self._connect()
            is_more = self._send()
            self._settle()
        except TrailUnusable as error:
            self._break_off()
            log.error("audit records are not sent: %s", error)
            return self._wait()
        except OSError as error:
            self._break_off()
            if not self._is_out:
                self._is_out = True
                log.error("the audit repository cannot be reached: %s", _reason(error))
            return self._wait()
        return 0.0 if is_more else poll_seconds

    def _connect(self) -> None:
        self._pass_over_what_is_gone()
        place = self._repository
        self._connection = Connection(self._context, place.host, place.port)
        self._unsettled.clear()
        self._reader = Reader(self._folder, self._sent + 1)
        self._connected_s = self._clock()

    def _pass_over_what_is_gone(self) -> None:
        """Go on at the first record that is here: what is behind must not be held up for ever."""
        first = first_here(self._folder)
        if self._sent + 1 < first:
            log.error(
                "audit records are gone that were to be sent first=%d last=%d",
                self._sent + 1,
                first - 1,
            )
            self._note(first - 1)

    def _send(self) -> bool:
        """Send what there is, up to a batch; return whether there may be more."""
        connection, reader = self._connection, self._reader
        if connection is None or reader is None:
            return False
        connection.require_open()
        if len(self._unsettled) >= UNSETTLED_MAX:
            return False
        lines = reader.read(BATCH)
        for line in lines:
            connection.send(frame(line, self._site))
        if lines:
            self._unsettled.append(_Batch(lines[-1].record.seq, None))
        return len(lines) == BATCH

    def _settle(self) -> None:
        """See which of what was sent counts by now, and note it."""
        connection = self._connection
        if connection is None:
            return
        if connection.unacknowledged() == 0:
            # Looked at after the bytes: a peer that is gone acknowledges nothing.
            connection.require_open()
            now_s = self._clock()
            self._is_well(now_s)
            self._unsettled = deque(
                _Batch(each.last, now_s if each.taken_s is None else each.taken_s)
                for each in self._unsettled
            )
        settled = 0
        limit_s = self._clock() - self._settle_seconds
        while self._unsettled and (taken_s := self._unsettled[0].taken_s) is not None:
            if taken_s > limit_s:
                break
            settled = self._unsettled.popleft().last
        if settled:
            self._note(settled)

    def _is_well(self, now_s: float) -> None:
        """Take an outage to be over once a connection has stood for a while: with TLS 1.3 a
        repository refuses our certificate after the handshake."""
        if now_s - self._connected_s < self._settle_seconds:
            return
        self._delay_s = FIRST_DELAY_SECONDS
        if self._is_out:
            self._is_out = False
            log.warning("the audit repository is back record=%d", self._sent)

    def _note(self, seq: int) -> None:
        sent.save(self._folder, Sent(seq, self._now_ms()))
        self._sent = seq

    def _obey(self) -> None:
        """Send again from where an operator asks for it, or from the first record that is here.

        A number beyond the record to come is a slip: to obey would leave out all before it.
        """
        path = self._folder / RESEND
        try:
            seq = int(path.read_text("ascii"))
        except FileNotFoundError:
            return
        except ValueError:
            seq = 1
        if seq > last_here(self._folder) + 1:
            log.error("audit records are not sent again: there is no record %d yet", seq)
        else:
            self._break_off()
            seq = max(seq, first_here(self._folder))
            self._note(seq - 1)
            log.warning("audit records are sent again from record=%d", seq)
        path.unlink(missing_ok=True)

    def _break_off(self) -> None:
        if self._connection is not None:
            self._connection.close()
        if self._reader is not None:
            self._reader.close()
        self._connection = self._reader = None
        self._unsettled.clear()

    def _wait(self) -> float:
        delay_s, self._delay_s = self._delay_s, min(2 * self._delay_s, LAST_DELAY_SECONDS)
        return delay_s


def _reason(error: OSError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {error.verify_message}"
    return error.strerror or str(error) or type(error).__name__
