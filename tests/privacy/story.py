"""What is done with the study in a run: received, shared, contradicted, withdrawn, erased."""

import asyncio
from functools import partial
from types import SimpleNamespace

import pydicom

from node.gateway.outcomes import Accepted
from tests.gateway import dimse
from tests.gateway.flow_world import confirmed, until, until_async
from tests.gateway.test_flow_command import told
from tests.privacy.evidence import Evidence
from tests.privacy.patient import write_study
from tests.privacy.site_world import web


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
