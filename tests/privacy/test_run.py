"""Requirement 11 over a whole run: received, found, granted, fetched, delivered, erased."""

import asyncio
import logging
from functools import partial
from types import SimpleNamespace

import pydicom
import pytest

from node import keys
from node.gateway.deliveries import State
from node.gateway.outcomes import Accepted
from node.imaging import vault_keys
from node.testnet.testnet import Testnet
from tests.gateway import dimse
from tests.gateway.flow_world import CONSENSUS, World, confirmed, until, until_async
from tests.gateway.test_flow_command import configure, told
from tests.privacy.evidence import Evidence, tapped
from tests.privacy.needles import needles_of, search
from tests.privacy.patient import write_study
from tests.privacy.site_world import gateway_of, pacs_running, quick, web


@pytest.fixture(autouse=True)
def quick_keys(monkeypatch):
    monkeypatch.setattr(keys, "_SCRYPT_N", 2)
    monkeypatch.setattr(vault_keys, "_ITERATIONS", 1)
    monkeypatch.setattr(vault_keys, "_MEMORY_KIB", 64)
    quick(monkeypatch)


class Run:
    """What happens, and the evidence of it."""

    def __init__(self, folder):
        self.evidence = Evidence()
        self.paths = write_study(folder / "images")
        self.other = self._changed(folder)
        self.uids = {str(pydicom.dcmread(path).SOPInstanceUID) for path in self.paths}
        self.study_uid = str(pydicom.dcmread(self.paths[0]).StudyInstanceUID)
        self.study_id = self.request_id = b""

    def _changed(self, folder):
        """Write another image under the UID of the first, and a file that breaks off."""
        ds = pydicom.dcmread(self.paths[0])
        ds.PixelData = bytes(len(ds.PixelData))
        ds.save_as(folder / "images" / "other.dcm")
        broken = folder / "images" / "broken.dcm"
        broken.write_bytes(self.paths[1].read_bytes()[:-999])
        return [folder / "images" / "other.dcm", broken]

    async def receive(self, alpha, gateway):
        sent = partial(dimse.send, gateway.front.port)
        assert await asyncio.to_thread(sent, self.paths) == [0, 0, 0]
        await until(lambda: list(alpha.store.studies()) and gateway.spool.usage().files == 0)
        (self.study_id,) = alpha.store.studies()
        # The same UID with another image, and a file that breaks off: both are put aside.
        refused = await asyncio.to_thread(sent, [*self.other, self.paths[2]])
        assert refused == [0xC000, 0xC000, 0]
        for path in (
            "/studies?PatientName=Zyxquorn*",
            f"/studies/{self.study_uid}/metadata",
            f"/studies/{self.study_uid}.9/series",
        ):
            await web(gateway, path)

    async def share(self, alpha, beta, config):
        rule = 'request.purpose == "TREAT"'
        await alpha.submit("policy.publish", "treatment", "permit", "not_objected", rule)
        await confirmed(beta)

        async def is_found():
            found = await told("find", "--word", "contrast", "-c", config)
            return [row["study_id"] for row in found["studies"]] == [self.study_id.hex()]

        await until_async(is_found)
        await told("find", "--count", "--by", "age", "-c", config)
        self.request_id = await beta.ask(SimpleNamespace(id=self.study_id))

    async def contradict(self, gateway):
        """A modality of the grantee sends another image under a UID that came from elsewhere."""
        with self.other[0].open("rb") as stream:
            outcome = gateway.spool.accept(dimse.SENDER, stream)
        assert not isinstance(outcome, Accepted)
        await until(lambda: not gateway.spool.foreign.notices())

    async def take_back(self, alpha, beta, config):
        client = await alpha.net.client(alpha.index)
        subject = (await client.study(self.study_id)).summary.subject_id
        await alpha.submit("consent.opt_out", subject, bytes(range(32)))
        refused = await told("fetch", self.request_id.hex(), "--to", "x", "-c", config, status=1)
        self.evidence.add("errors", str(refused))

    async def erase(self, alpha, beta):
        await alpha.submit("study.erase", self.study_id, "subject_request")
        await until(lambda: not list(alpha.store.studies()) + list(beta.store.studies()))

    def add_gateway(self, gateway):
        events = gateway.spool.index.last_events(1_000)
        self.evidence.add("errors", "\n".join(map(str, events)))
        self.evidence.add("errors", "\n".join(map(str, gateway.spool.asides())))


def _in_quarantine(path):
    return "quarantine" in path.parts  # as received: the operator looks at it


async def test_nothing_that_identifies_anybody_leaves_the_gateway(
    tmp_path, monkeypatch, caplog, capfd
):
    caplog.set_level(logging.DEBUG)
    run = Run(tmp_path)
    evidence = run.evidence
    with tapped(monkeypatch) as wire:
        async with (
            Testnet(validators=3, consensus=CONSENSUS, folder=tmp_path / "net") as net,
            pacs_running() as pacs,
        ):
            world = World(net, tmp_path)
            alpha, beta = world.alpha, world.beta
            config = configure(beta)
            async with gateway_of(alpha) as first, gateway_of(beta, pacs) as second:
                await run.receive(alpha, first)
                await run.share(alpha, beta, config)
                await until(lambda: set(pacs.kept) == run.uids)
                await until(lambda: second.deliverer.progress(1).state is State.DONE)
                await run.contradict(second)
                for hospital in (alpha, beta):
                    await asyncio.to_thread(
                        evidence.add_files, "files", hospital.folder, _in_quarantine
                    )
                await run.take_back(alpha, beta, config)
                await run.erase(alpha, beta)
                run.add_gateway(first)
                run.add_gateway(second)
            for index in range(3):
                await evidence.add_metrics(net.node(index))
            folders = [each.data_dir for each in net.layout.configs]
        evidence.add_wire(wire)
        for folder in folders:
            evidence.add_chain(folder)
    evidence.add("logs", caplog.text)
    evidence.add("logs", "".join(capfd.readouterr()))
    _all_was_seen(evidence, run)
    needles = needles_of([*run.paths, *run.other])
    assert len(needles) > 1_000
    assert evidence.leaks(partial(search, needles)) == []


def _all_was_seen(evidence, run):
    """A scan of nothing finds nothing: each place holds what must be there."""
    seen = evidence.seen
    assert run.study_id in seen["chain"]
    assert run.study_id in seen["messages"]
    assert b"study_erased" in seen["chain"]
    for path in (b"/v1/find", b"/v1/conflict", b"/v1/"):
        assert path in seen["urls"]
    assert b"conflict" in seen["errors"]
    assert b"consent_refused" in seen["errors"]
    for words in (
        b"key delivered",
        b"instance refused source=MODALITY",
        b"study version kept",
        b"delivery ended",
    ):
        assert words in seen["logs"], words
    assert b"radledger_height" in seen["metrics"]
    for name in (b"spool/index.db", b"foreign.db", b"deliveries.db", b"catalogue.db", b"keys.db"):
        assert name in seen["files"], name
