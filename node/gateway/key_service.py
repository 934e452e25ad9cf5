"""This hospital's encryption keys on the ledger, and the proof that all keys there have owners.

A key is made, kept on disk, then published: one that is on the ledger always opens. Another
hospital challenges it, the owner answers, and from then on study keys are wrapped to it. Every
gateway challenges new keys of others, each after a delay by its rank for that key, so that as a
rule one does and the others find it done; a challenge that is not met in time is followed by
another one, so a bad challenger holds up nobody for long.
"""

import asyncio
import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from node.exchange import encryption_keys, hpke
from node.exchange.encryption_keys import DecryptionKey
from node.exchange.hpke import CannotOpen, Challenge
from node.gateway.acting import Acting
from node.gateway.backlog import Backlog
from node.gateway.ledger_events import LedgerEvents, id_in, word_in
from node.ledger.block import OK
from node.ledger.queries.blocks import EventView
from node.ledger.queries.member_views import EncryptionKeyView

log = logging.getLogger(__name__)

STEP_S = 5.0  # between the challenges of one rank and the next
PATIENCE_S = 120.0  # for the owner to meet a challenge


class KeyRefused(Exception):
    """The ledger refused a change of this institution's keys; `code` says why."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


class _Theirs(NamedTuple):
    """A key of another hospital, to be challenged."""

    institution: str
    key_id: bytes


class _Ours(NamedTuple):
    """A challenge of one of our keys, to be met."""

    key_id: bytes
    transaction_id: bytes


class _All(NamedTuple):
    """Everything that is on the ledger, to be looked at."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How long to leave others their turn."""

    step_s: float = STEP_S
    patience_s: float = PATIENCE_S


class KeyService:
    """Publishes, answers and challenges; `keys` are the secrets of this hospital."""

    def __init__(
        self,
        acting: Acting,
        folder: Path,
        passphrase: bytes,
        *,
        pace: Pace | None = None,
        stretch: bool = True,
    ) -> None:
        """`stretch` as in `encryption_keys.save`."""
        self._acting, self._folder, self._passphrase = acting, folder, passphrase
        self._pace, self._stretch = pace or Pace(), stretch
        self._keys: dict[bytes, DecryptionKey] = {}
        self._tried: set[_Theirs] = set()
        self._names: list[str] = []  # of active institutions, when last looked
        self._answered: dict[bytes, bytes] = {}  # the last challenge heard of, by key id
        self.backlog: Backlog[_Theirs | _Ours | _All] = Backlog("keys", self._work)

    @property
    def keys(self) -> Mapping[bytes, DecryptionKey]:
        """The keys whose secrets are here, by id; retired ones too."""
        return self._keys

    async def open(self) -> None:
        """Read the keys from disk. Raises `KeyFileError`, `OSError`."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._keys = await asyncio.to_thread(
            encryption_keys.load_all, self._folder, self._passphrase
        )

    def attach(self, events: LedgerEvents) -> None:
        """Hear of keys and challenges."""
        events.on(self._published, "registry_key_published")
        events.on(self._challenged, "registry_key_challenged")
        events.on_start(lambda: self.backlog.add(_All()))

    async def publish(self, kem: str = hpke.HYBRID) -> bytes:
        """Make a key, keep it, publish it; return its id. Raises `KeyRefused`, `KeyFileError`."""
        key = encryption_keys.generate(kem)
        await asyncio.to_thread(self._save, key)
        self._keys[key.key_id] = key
        await self._publish(key)
        return key.key_id

    async def retire(self, key_id: bytes) -> None:
        """Close a key for good; its file stays, to open what was wrapped to it.

        Raises `KeyRefused`.
        """
        submitted = await self._acting.submit("registry.key_retire", (key_id,))
        if submitted.code != OK:
            raise KeyRefused(str(submitted.code))

    async def ensure(self) -> None:
        """See that this hospital has a key on the ledger which is not retired and opens here.

        A key that was kept and, after a crash, not published, is published now.
        """
        published: dict[bytes, EncryptionKeyView] = {}
        async for view in self._acting.encryption_keys(self._acting.institution):
            published[view.key_id] = view
            if view.key_id not in self._keys and view.state != "retired":
                log.warning("a published key has no file here key=%s", view.key_id.hex())
        for key_id in self._keys.keys() - published.keys():
            await self._publish(self._keys[key_id])
        alive = any(
            key_id not in published or published[key_id].state != "retired" for key_id in self._keys
        )
        if not alive:
            await self.publish()

    async def answer(self, key_id: bytes, transaction_id: bytes) -> bool:
        """Meet the challenge in that transaction; return whether nothing is left to be done."""
        if key_id not in self._keys:
            await self.open()  # a command may have made it meanwhile
        key = self._keys.get(key_id)
        own = self._acting.institution
        view = await self._acting.encryption_key(own, key_id)
        if key is None or view is None or view.state != "challenged":
            return True
        asked = await self._challenge_in(transaction_id, key_id)
        if asked is None:
            log.error("a challenge cannot be found key=%s", key_id.hex())
            return True
        try:
            plain = key.answer(self._acting.chain_id, own, asked)
        except CannotOpen as error:
            # Whoever sealed it made it so; another hospital's challenge will follow.
            log.warning("a challenge does not open key=%s: %s", key_id.hex(), error)
            return True
        submitted = await self._acting.submit("registry.key_confirm", (key_id, plain))
        log.info("challenge answered key=%s code=%s", key_id.hex(), submitted.code)
        return True

    async def challenge(self, institution: str, key_id: bytes) -> bool:
        """Challenge another hospital's key; return whether nothing is left to be done."""
        view = await self._acting.encryption_key(institution, key_id)
        if view is None or view.state in ("confirmed", "retired"):
            self._tried.discard(_Theirs(institution, key_id))
            return True
        theirs = _Theirs(institution, key_id)
        if view.state == "challenged" and theirs not in self._tried:
            self._tried.add(theirs)  # by somebody else: it is our turn if nothing comes of that
            self.backlog.add(theirs, self._pace.patience_s)
            return True
        try:
            place = self._acting.chain_id, institution, key_id
            asked = hpke.challenge(*place, view.kem, view.public_key)
        except ValueError as error:  # what others publish must not stop us
            log.warning("a published key is no key institution=%s: %s", institution, error)
            return True
        arguments = (institution, key_id, asked.sealed, asked.digest)
        submitted = await self._acting.submit("registry.key_challenge", arguments)
        log.info("key challenged institution=%s code=%s", institution, submitted.code)
        self._tried.add(theirs)
        self.backlog.add(theirs, self._pace.patience_s)
        return True

    async def _work(self, item: "_Theirs | _Ours | _All") -> bool:
        match item:
            case _Theirs(institution, key_id):
                return await self.challenge(institution, key_id)
            case _Ours(key_id, transaction_id):
                if self._answered.get(key_id) != transaction_id:
                    return True  # a later challenge took its place
                return await self.answer(key_id, transaction_id)
            case _:
                try:
                    await self._look_around()
                except KeyRefused as error:
                    log.error("no key can be published: the ledger says %s", error.code)
                    return False
                return True

    async def _look_around(self) -> None:
        self._names = [each.name for each in await self._acting.institutions() if each.is_active]
        await self.ensure()
        for name in self._names:
            async for view in self._acting.encryption_keys(name):
                if view.state in ("confirmed", "retired"):
                    continue
                if name != self._acting.institution:
                    delay_s = self._rank(view.key_id, name) * self._pace.step_s
                    self.backlog.add(_Theirs(name, view.key_id), delay_s)
                elif view.state == "challenged":
                    await self._find_challenge(view)

    def _published(self, view: EventView) -> None:
        institution, key_id = word_in(view, 0), id_in(view, 1)
        if institution != self._acting.institution:
            delay_s = self._rank(key_id, institution) * self._pace.step_s
            self.backlog.add(_Theirs(institution, key_id), delay_s)

    def _challenged(self, view: EventView) -> None:
        institution, key_id = word_in(view, 0), id_in(view, 1)
        if institution == self._acting.institution:
            self._answered[key_id] = view.transaction_id
            self.backlog.add(_Ours(key_id, view.transaction_id))

    def _rank(self, key_id: bytes, owner: str) -> int:
        """Return this hospital's place among those who may challenge a key, different for each
        key, so that no one has all the work."""
        others = sorted(
            (name for name in self._names if name != owner),
            key=lambda name: hashlib.sha256(key_id + name.encode()).digest(),
        )
        own = self._acting.institution
        return others.index(own) if own in others else len(others)

    async def _find_challenge(self, view: EncryptionKeyView) -> None:
        """Find the last challenge of one of our keys that came while this process did not run."""
        head = await self._acting.client.head()
        found: bytes | None = None
        events = self._acting.client.events(view.published_height)
        try:
            async for block in events:
                for each in block.events:
                    if each.event.name == "registry_key_challenged" and (
                        (word_in(each, 0), id_in(each, 1))
                        == (self._acting.institution, view.key_id)
                    ):
                        found = each.transaction_id
                if block.height >= head.height:
                    break
        finally:
            await events.aclose()
        if found is not None:
            self._answered.setdefault(view.key_id, found)
            self.backlog.add(_Ours(view.key_id, self._answered[view.key_id]))

    async def _challenge_in(self, transaction_id: bytes, key_id: bytes) -> Challenge | None:
        """Return the challenge of a key in a transaction, whose encoding keeps its types."""
        view = await self._acting.client.transaction(transaction_id)
        found: Challenge | None = None
        for operation in view.transaction.operations if view is not None else ():
            match operation.name, operation.arguments:
                case "registry.key_challenge", (
                    self._acting.institution,
                    bytes(asked),
                    bytes(sealed),
                    bytes(digest),
                ) if asked == key_id:
                    found = Challenge(sealed, digest)
        return found

    async def _publish(self, key: DecryptionKey) -> None:
        arguments = (key.key_id, key.kem, key.public_key)
        submitted = await self._acting.submit("registry.key_publish", arguments)
        if submitted.code not in (OK, "key_exists"):
            raise KeyRefused(str(submitted.code))
        log.info("key published key=%s kem=%s", key.key_id.hex(), key.kem)

    def _save(self, key: DecryptionKey) -> None:
        path = self._folder / encryption_keys.file_name(key.key_id)
        encryption_keys.save(key, path, self._passphrase, stretch=self._stretch)
