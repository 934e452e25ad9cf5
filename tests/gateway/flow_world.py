"""Hospitals with everything: real nodes on loopback, stores on disk, exchanges that speak TLS."""

import asyncio
import os
import secrets
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from uuid import uuid4

import numpy as np
import pydicom

from node import provision
from node.config import ConsensusConfig
from node.exchange.store.blobs import open_folder
from node.exchange.store.catalog import open_catalog
from node.exchange.store.master import MasterFile, create_master_file
from node.exchange.store.store import StudyStore
from node.exchange.transfer.limits import ClientLimits, ServerLimits
from node.gateway.acting import Acting
from node.gateway.custodian import manifests_of
from node.gateway.directory import Place
from node.gateway.exchange import Belongings, Exchange, ExchangeSettings
from node.gateway.exchange_opening import identity_of
from node.gateway.keeping import Keeper
from node.gateway.key_service import Pace
from node.imaging.vault import create_vault
from node.ledger.transaction import Operation
from node.rpc.client import Client
from node.studies import Signer, register
from node.testnet.layout import free_ports
from node.testnet.testnet import Testnet
from tests.imaging import dicom

PATIENCE_S = 30.0
HOST = "127.0.0.1"  # the only loopback address that every system has
CONSENSUS = ConsensusConfig(view_timeout_ms=1_500, resend_interval_ms=300)
PACE = Pace(step_s=0.05, patience_s=1.0)
CLIENT = ClientLimits(
    connect_timeout_ms=3_000,
    stall_timeout_ms=5_000,
    backoff_min_ms=10,
    backoff_max_ms=100,
    attempts_max=8,  # as in earnest: on a busy machine one moment fails several in a row
)


@dataclass(frozen=True)
class Study:
    """A study that is registered and stored."""

    id: bytes
    subject_id: bytes
    root: bytes
    files: dict  # path by SOP Instance UID


class Hospital:
    """One institution: its node's index, its store, vault and exchange."""

    def __init__(self, net, index, folder, port, places):
        self.net, self.index, self.port = net, index, port
        self.config = net.layout.configs[index]
        self.name = self.config.institution
        self.folder = folder / self.name
        self.folder.mkdir()
        create_master_file(self.folder / "master")
        self.vault = create_vault(self.folder / "vault.db", "passphrase")
        self.places = tuple(place for place in places if place.institution != self.name)
        self.signer = Signer(net.member_key(index), self.name, net.genesis.chain_id)
        self.passphrase = provision.passphrase_of(self.config.key)
        self.identity = identity_of(self.config, self.passphrase)
        self.store = None
        self.exchange = None
        self.happened = []
        self.received = []
        self.mended = []
        self.admitted = []
        self.inquired = []
        self.open_store()

    def open_store(self):
        if self.store is not None:
            self.store.close()
        catalog = open_catalog(self.folder / "keys.db", MasterFile(self.folder / "master"))
        self.store = StudyStore(open_folder(self.folder / "blobs"), catalog, compression="off")

    @asynccontextmanager
    async def acting(self):
        node = self.net.node(self.index)
        async with Client(node.rpc_url, node.rpc_token) as client:
            yield Acting(client, self.signer)

    def settings(self, **changes):
        server = ServerLimits(**changes.pop("server", {}))
        settings = ExchangeSettings(
            folder=self.folder / "exchange",
            host=HOST,
            port=self.port,
            places=self.places,
            server=server,
            client=CLIENT,
            pace=PACE,
        )
        return replace(settings, **changes)

    def make(self, acting, **changes):
        manifests = manifests_of(self.vault)
        given = Belongings(
            acting, self.store, manifests, self.identity, self.net.genesis, self.passphrase
        )
        return Exchange(
            given,
            self.settings(**changes),
            report=self.happened.append,
            admit=self.admit,
            on_received=self.received.append,
            on_mended=self.mended.append,
            on_inquiry=self.inquired.append,
            stretch=False,
        )

    async def admit(self, event):
        self.admitted.append(event)
        return True

    @asynccontextmanager
    async def serving(self, **changes):
        """Run the exchange, as the gateway's process does."""
        async with self.acting() as acting:
            exchange = self.make(acting, **changes)
            async with exchange.running():
                self.exchange = exchange
                yield exchange

    async def submit(self, name, *arguments):
        done = await self.net.submit(self.index, [Operation(name, arguments)])
        assert done.code == "ok", (name, done)
        await self.net.wait_height(done.height)  # at the others, too
        return done

    async def request(self, request_id):
        return await (await self.net.client(self.index)).request(request_id)

    async def keep(self, *, instances=4, side=64):
        """Register a study of random images and put it into the store."""
        uid = f"2.25.{uuid4().int}"
        folder = self.folder / secrets.token_hex(4)
        folder.mkdir()
        paths = [
            dicom.minimal(
                folder / f"{number}.dcm",
                sop=f"{uid}.{number}",
                study=uid,
                pixels=np.frombuffer(os.urandom(2 * side * side), "<u2").reshape(side, side),
                PatientID=uid[-10:],
                Modality="CT",
            )
            for number in range(instances)
        ]
        return await self.keep_files(paths)

    async def keep_files(self, paths):
        client = await self.net.client(self.index)
        done = await register(paths, client, self.vault, self.signer)
        (registration,) = done.studies
        assert registration.is_done, registration
        manifest = registration.prepared.manifest
        await asyncio.to_thread(Keeper(self.store).keep, manifest, by_uid(paths))
        study = await client.study(manifest.study_id)
        files = by_uid(paths)
        return Study(manifest.study_id, study.summary.subject_id, manifest.root, files)

    async def ask(self, study, *, uses=2, key_id=None, heights=10_000, deidentified=False):
        """Ask for access; return the request's id."""
        client = await self.net.client(self.index)
        await until_async(lambda: _known(client, study.id))
        request_id = secrets.token_bytes(16)
        words = (request_id, study.id, "gateway", "TREAT", heights, uses, deidentified)
        await self.submit("access.request", *words, None, key_id)
        return request_id

    def bytes_of(self, study_id):
        """Return the bytes of every instance in the store, by SOP Instance UID."""
        index = self.store.index(study_id)
        return {
            each.facts.sop_instance_uid: b"".join(self.store.read(study_id, ordinal))
            for ordinal, each in enumerate(index.instances)
        }


class World:
    """Three hospitals; the first grants treatment to everybody who asks."""

    def __init__(self, net, folder):
        ports = list(free_ports(len(net.layout.configs)))
        places = [
            Place(config.institution, HOST, port)
            for config, port in zip(net.layout.configs, ports, strict=True)
        ]
        self.net = net
        self.hospitals = [
            Hospital(net, index, folder, port, places) for index, port in enumerate(ports)
        ]
        self.alpha, self.beta, self.gamma = self.hospitals

    async def reach(self, height, *hospitals):
        await self.net.wait_height(height, [each.index for each in hospitals] or None)


@asynccontextmanager
async def world(folder):
    async with Testnet(validators=3, consensus=CONSENSUS) as net:
        made = World(net, folder)
        rule = 'request.purpose == "TREAT"'
        await made.alpha.submit("policy.publish", "treatment", "permit", "not_objected", rule)
        yield made


async def _known(client, study_id):
    return await client.study(study_id) is not None


async def until(condition):
    """Wait for what must happen; the only clock is the patience of a test that has failed."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.005)


async def until_async(condition):
    async with asyncio.timeout(PATIENCE_S):
        while not await condition():
            await asyncio.sleep(0.01)


async def delivered(hospital, request_id):
    """Wait until a hospital's node knows that the key was delivered."""

    async def is_delivered():
        view = await hospital.request(request_id)
        return view is not None and view.state == "delivered"

    await until_async(is_delivered)


async def confirmed(hospital, count=1):
    """Wait until a hospital has that many confirmed keys."""
    client = await hospital.net.client(hospital.index)

    async def are_confirmed():
        page = await client.encryption_keys(hospital.name)
        return sum(key.state == "confirmed" for key in page.keys) >= count

    await until_async(are_confirmed)


def by_uid(paths):
    return {str(pydicom.dcmread(path).SOPInstanceUID): path for path in paths}
