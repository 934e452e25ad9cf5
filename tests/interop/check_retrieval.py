"""DCMTK and Orthanc find, move and get from the gateway; the gateway delivers to Orthanc."""

import asyncio
import json
import threading
import time
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pydicom

from node.gateway.deliver import Deliverer
from node.gateway.deliveries import Deliveries, State
from node.gateway.dialing import Peer
from node.gateway.link import Lender
from node.gateway.pacs import DimsePacs
from node.gateway.webpacs import WebPacs
from tests.gateway.dimse import TITLE, opened_door
from tests.gateway.pacs import Scrambling
from tests.gateway.test_scp import data_set, sendable
from tests.gateway.web.folder import FolderHoldings
from tests.interop.series import head_ct
from tests.interop.tools import call, free_port, orthanc

NAME = "retrieval: findscu, movescu, getscu and Orthanc ask the gateway; delivery to Orthanc"
PACKAGES = {"dcmtk": "getscu", "orthanc": "Orthanc", "orthanc-dicomweb": "Orthanc"}
PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
# Orthanc 1.10.1 refuses it with C000, whoever sends.
_REFUSED = {"rtdose_rle.dcm"}


def run(work: Path) -> list[str]:
    """Check, and return what was found."""
    return [
        *asyncio.run(_dcmtk(work)),
        *asyncio.run(_orthanc(work)),
        *_deliveries(work),
    ]


def uid(path: Path, name: str = "StudyInstanceUID") -> str:
    return str(pydicom.dcmread(path, stop_before_pixels=True)[name].value)


@asynccontextmanager
async def gateway(folder, paths, peers):
    """Yield the port of a gateway that holds `paths`, and its audit records."""
    accesses = []
    lender = Lender(FolderHoldings(paths), accesses.append)
    async with opened_door(folder, peers=peers, lender=lender) as door:
        yield door.port, accesses


async def _dcmtk(work: Path) -> list[str]:
    paths = head_ct()
    study, series = uid(paths[0]), uid(paths[0], "SeriesInstanceUID")
    move_port = free_port()
    peers = [Peer("FINDSCU"), Peer("GETSCU"), Peer("MOVESCU", "127.0.0.1", move_port)]
    expected = {data_set(path) for path in paths}
    async with gateway(work / "dcmtk", paths, peers) as (port, accesses):

        async def ask(name, *options, level="STUDY"):
            folder = work / f"{name}-{level}"
            folder.mkdir()
            keys = [f"QueryRetrieveLevel={level}", f"StudyInstanceUID={study}"]
            if level != "STUDY":
                keys.append(f"SeriesInstanceUID={series}")
            if level == "IMAGE":
                keys.append("SOPInstanceUID")
            flags = [flag for key in keys for flag in ("-k", key)]
            place = ("-aet", name.upper(), "-aec", TITLE, "127.0.0.1", port)
            # With +B movescu forgets its -od and writes where it runs.
            arguments = ("-v", "-S", "-od", folder, *flags, *options, *place)
            done = await asyncio.to_thread(call, name, *arguments, folder=folder)
            assert done.returncode == 0, f"{name}: {done.stderr}"
            return sorted(path for path in folder.iterdir() if path.is_file())

        found = [
            len(await ask("findscu", "-X", level=each)) for each in ("STUDY", "SERIES", "IMAGE")
        ]
        assert found == [1, len({uid(p, "SeriesInstanceUID") for p in paths}), found[2]], found
        assert found[2] == sum(uid(p, "SeriesInstanceUID") == series for p in paths), found
        # +xi: DCMTK's getscu proposes only one transfer syntax for each class.
        options = ("+B",) if _syntaxes(paths) == {"1.2.840.10008.1.2.1"} else ("+B", "+xi")
        got = await ask("getscu", *options)
        assert {data_set(path) for path in got} == expected, "getscu: bytes changed on the way"
        moved = await ask("movescu", "+B", "-aem", "MOVESCU", "+P", move_port)
        assert {data_set(path) for path in moved} == expected, "movescu: bytes changed on the way"
    assert sum(access.instances for access in accesses) == 2 * len(paths), accesses
    return [f"DCMTK: found {found}, got and moved {len(paths)} instances, byte for byte"]


def _syntaxes(paths):
    return {
        str(pydicom.dcmread(p, stop_before_pixels=True).file_meta.TransferSyntaxUID) for p in paths
    }


async def _orthanc(work: Path) -> list[str]:
    paths = head_ct()
    ports = free_port(), free_port()
    async with gateway(work / "query", paths, [Peer("ORTHANC", "127.0.0.1", ports[1])]) as (
        port,
        accesses,
    ):
        with orthanc(work / "orthanc-query", "ORTHANC", {"gateway": (TITLE, port)}, ports) as pacs:
            asked = {"Level": "Study", "Query": {"StudyInstanceUID": uid(paths[0])}}
            query = await asyncio.to_thread(post, pacs, "/modalities/gateway/query", asked)
            answers = await asyncio.to_thread(pacs.get, f"/queries/{query['ID']}/answers")
            assert len(answers) == 1, answers
            retrieve = f"/queries/{query['ID']}/retrieve"
            await asyncio.to_thread(post, pacs, retrieve, {"TargetAet": "ORTHANC"})
            held = await asyncio.to_thread(pacs.get, "/instances")
    assert len(held) == len(paths), f"Orthanc has {len(held)} of {len(paths)}"
    assert accesses[-1].destination == "ORTHANC", accesses
    return [f"Orthanc: found the study and had all {len(paths)} instances moved to it"]


def post(pacs, path, content):
    return pacs.post(path, json.dumps(content).encode())


@contextmanager
def delivering(folder, holdings, ways, clock):
    """Yield a deliverer of `holdings`."""
    folder.mkdir()
    deliveries = Deliveries(folder / "deliveries", Scrambling())
    try:
        yield Deliverer(
            deliveries,
            holdings,
            {"pacs": ways},
            folder / "work",
            audit=lambda given: None,
            now_ms=lambda: clock[0],
        )
    finally:
        deliveries.close()


class _Halting(FolderHoldings):
    """Holdings that halt when so many instances have been opened."""

    def __init__(self, paths, count):
        super().__init__(paths)
        self._count = count
        self.has_begun, self.may_go_on = threading.Event(), threading.Event()

    def open(self, instance):
        if self.opened == self._count:
            self.has_begun.set()
            assert self.may_go_on.wait(120)
        return super().open(instance)


def _deliveries(work: Path) -> list[str]:
    return [_corpus(work), _restart(work), *_web(work)]


def _corpus(work: Path) -> str:
    """Deliver every readable file of the corpus that has all its UIDs."""
    paths = [*head_ct(), *(path for path in sendable() if path.name not in _REFUSED)]
    ports = free_port(), free_port()
    clock = [0]
    way = DimsePacs(Peer("ORTHANC", "127.0.0.1", ports[1]), TITLE)
    peers = {"gateway": (TITLE, free_port())}
    with (
        orthanc(work / "orthanc-corpus", "ORTHANC", peers, ports) as pacs,
        delivering(work / "corpus", FolderHoldings(paths), [way], clock) as deliverer,
    ):
        began = time.monotonic()
        numbers = [deliverer.submit(s, "pacs") for s in sorted({uid(path) for path in paths})]
        deliverer.run_once()
        seconds = time.monotonic() - began
        ends = [deliverer.progress(number) for number in numbers]
        held = len(pacs.get("/instances"))
    left = {end.reason for end in ends if end.state is not State.DONE}
    total = sum(end.instances for end in ends)
    verified, found = sum(end.verified for end in ends), sum(end.found for end in ends)
    assert not left, f"{left}; {verified} of {total} verified"
    assert verified + found == total == held, (verified, found, total, held)
    rate = total / seconds
    return (
        f"delivery by C-STORE: {total} instances of {len(ends)} studies in {seconds:.1f} s "
        f"({rate:.0f}/s sent and read back), {verified} verified by K and P, {found} listed only"
    )


def _restart(work: Path) -> str:
    """Orthanc goes down in the middle and comes back."""
    paths = head_ct()
    ports = free_port(), free_port()
    clock = [0]
    way = DimsePacs(Peer("ORTHANC", "127.0.0.1", ports[1]), TITLE)
    arguments = work / "orthanc-restart", "ORTHANC", {"gateway": (TITLE, free_port())}, ports
    holdings = _Halting(paths, len(paths) // 3)
    with delivering(work / "restart", holdings, [way], clock) as deliverer:
        number = deliverer.submit(uid(paths[0]), "pacs")
        with orthanc(*arguments) as pacs:
            thread = threading.Thread(target=deliverer.run_once)
            thread.start()
            assert holdings.has_begun.wait(60), "nothing is sent"
            pacs.process.kill()  # it would wait for our association to end
        holdings.may_go_on.set()
        thread.join()
        before = deliverer.progress(number)
        assert before.state is State.WAITING, before
        with orthanc(*arguments) as pacs:
            clock[0] += 3_600_000
            deliverer.run_once()
            after = deliverer.progress(number)
            held = len(pacs.get("/instances"))
    assert (after.state, after.verified, held) == (State.DONE, len(paths), len(paths)), after
    return f"delivery with a restart: {before.sent} sent before, all {held} verified after"


def _web(work: Path) -> list[str]:
    """Deliver by STOW-RS where C-STORE is refused, and read back by WADO-RS."""
    if not PLUGIN.exists():
        return ["delivery by STOW-RS: not tried, Orthanc's plugin is not installed"]
    paths = head_ct()
    ports = free_port(), free_port()
    ways = [
        DimsePacs(Peer("ORTHANC", "127.0.0.1", free_port()), TITLE),  # nobody is there
        WebPacs(f"http://127.0.0.1:{ports[0]}/dicom-web"),
    ]
    peers = {"gateway": (TITLE, free_port())}
    with (
        orthanc(work / "orthanc-web", "ORTHANC", peers, ports, Plugins=[str(PLUGIN)]) as pacs,
        delivering(work / "web", FolderHoldings(paths), ways, [0]) as deliverer,
    ):
        number = deliverer.submit(uid(paths[0]), "pacs")
        deliverer.run_once()
        end = deliverer.progress(number)
        held = len(pacs.get("/instances"))
    assert (end.state, end.verified, held) == (State.DONE, len(paths), len(paths)), end
    return [f"delivery by STOW-RS: all {held} verified by WADO-RS"]
