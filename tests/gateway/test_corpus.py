"""Every file that pydicom ships: instances go in, are registered, stored, come out and verify.

Every other one is refused in words and kept aside.

Some of the files are one instance in several encodings, so they are spread over a few hospitals,
each with a spool, a vault and a store of its own, all on one ledger.
"""

import asyncio
import json
from collections import Counter
from contextlib import asynccontextmanager

import aiohttp
import pydicom
import pynetdicom
import pytest

from node.config import DicomPeer, GatewayConfig, GatewayLimits, StoreConfig
from node.config.model import WebConfig
from node.exchange.store.opening import open_store
from node.gateway.daemon import Gateway, Parts
from node.imaging import vault_keys
from node.imaging.vault import create_vault
from node.imaging.verify import StudyStatus, Verdict
from node.keys import save_secret
from node.studies import Signer, verify
from tests.gateway import dimse
from tests.gateway.dimse import SENDER, in_thread
from tests.gateway.test_dimse_out import Receiver, data_set, get, identifier, kinds_of
from tests.gateway.web.conftest import TOKEN
from tests.gateway.web.test_retrieve import AS_STORED, parts_of
from tests.gateway.web.test_stow import KIND, message
from tests.imaging import dicom, vendor

GROUP = 60  # files on one association, which has 128 presentation contexts at most


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(vault_keys, "_ITERATIONS", 1)
    monkeypatch.setattr(pynetdicom._config, "STORE_RECV_CHUNKED_DATASET", False)


class Site:
    """One hospital's gateway and what it is made of."""

    def __init__(self, gateway, vault, client, http, folder):
        self.gateway, self.vault, self.client = gateway, vault, client
        self.http, self.folder = http, folder

    async def ask(self, method, path, **options):
        headers = {"Authorization": f"Bearer {TOKEN}"} | options.pop("headers", {})
        url = self.gateway.web.url + path
        async with self.http.request(method, url, headers=headers, **options) as response:
            return response.status, response.headers, await response.read()

    async def post(self, paths):
        """Send files by STOW-RS; return the answer."""
        body = message(path.read_bytes() for path in paths)
        status, _, answer = await self.ask(
            "POST", "/studies", data=body, headers={"Content-Type": KIND}
        )
        return status, json.loads(answer)

    async def send(self, paths):
        """Send files by C-STORE; return the statuses."""
        groups = [paths[at : at + GROUP] for at in range(0, len(paths), GROUP)]
        port = self.gateway.front.port
        return [s for group in groups for s in await in_thread(dimse.send, port, group)]

    async def kept(self, studies):
        """Wait until so many studies are registered, stored and listed."""
        self.gateway.spool.signal()
        async with asyncio.timeout(120):
            while len(self.gateway.holdings.studies()) < studies or self.waiting():
                await asyncio.sleep(0.02)

    def waiting(self):
        return self.gateway.spool.usage().files

    async def retrieved(self, study_uid):
        """Return the files of a study by WADO-RS, as they are stored."""
        _, headers, body = await self.ask(
            "GET", f"/studies/{study_uid}", headers={"Accept": AS_STORED}
        )
        return [data for _, data in parts_of(headers, body)]

    async def got(self, study_uid, paths):
        """Return the data sets of a study by C-GET."""
        receiver = Receiver()
        port, asked = self.gateway.front.port, identifier("STUDY", StudyInstanceUID=study_uid)
        answers = await in_thread(get, port, asked, kinds_of(paths), receiver)
        assert answers[-1][0].Status == 0
        return list(receiver.taken.values())

    async def verified(self, paths):
        """Return the report over files."""
        return await verify(paths, self.client, self.vault)


@asynccontextmanager
async def hospital(net, folder):
    folder.mkdir()
    client = await net.client(0)
    for name, content in (("token", TOKEN.encode()), ("master", b"ab" * 32)):
        save_secret(folder / name, content)
    config = GatewayConfig(
        spool_dir=folder / "spool",
        listen_port=0,
        peers=(DicomPeer(ae_title=SENDER),),
        quiet_ms=3_600_000,
        limits=GatewayLimits(disk_reserve_bytes=2**20),
        web=WebConfig(token_file=folder / "token", port=0),
    )
    kept = StoreConfig(
        key_file=folder / "keys", folder=folder / "store", master_key_file=folder / "master"
    )
    signer = Signer(net.member_key(0), net.layout.configs[0].institution, net.genesis.chain_id)
    store = open_store(kept)
    try:
        with create_vault(folder / "vault.db", "correct horse") as vault:
            gateway = Gateway(Parts(config, client, vault, signer, store))
            async with gateway.running(), aiohttp.ClientSession() as http:
                yield Site(gateway, vault, client, http, folder)
    finally:
        store.close()


def rounds(paths):
    """Spread files so that no part holds one SOP Instance UID twice."""
    parts = []
    for path, head in heads_of(paths).items():
        part = next((part for part in parts if head.SOPInstanceUID not in part), None)
        if part is None:
            parts.append(part := {})
        part[head.SOPInstanceUID] = path
    return [list(part.values()) for part in parts]


def heads_of(paths):
    return {path: pydicom.dcmread(path, stop_before_pixels=True) for path in paths}


def is_announced(head):
    """Whether the file meta information names the instance that the data set is."""
    return head.file_meta.get("MediaStorageSOPInstanceUID") == head.SOPInstanceUID


def test_every_file_of_the_wheel_is_in_one_of_the_lists():
    taken, refused = dicom.instances(), dicom.refused()
    assert sorted(taken + refused) == dicom.wheel()
    assert len(taken) > 150
    names = Counter(path.name for path in refused)
    listed = dicom.DAMAGED.keys() | dicom.NO_STUDY
    assert listed <= names.keys()


async def test_every_file_that_is_no_instance_is_refused_in_words_and_kept(testnet, tmp_path):
    refused = dicom.refused()
    good = dicom.FILES / "CT_small.dcm"
    async with testnet(validators=1) as net, hospital(net, tmp_path / "a") as site:
        status, answer = await site.post([*refused, good])
        assert status == 202
        assert len(answer["0008119A"]["Value"]) == len(refused)
        spool = site.gateway.spool
        asides = spool.asides()
        quarantine = spool.folder / "quarantine"
        aside = Counter((a.code, (quarantine / a.name).read_bytes()) for a in asides)
        assert aside == Counter((dicom.refusal_code(p), p.read_bytes()) for p in refused)
        for each in asides:
            assert len(each.reason.split()) >= 3, each.code  # a sentence, not a code
        await site.kept(1)  # and it goes on
        report = await site.verified([good])
        assert report.intact


async def test_every_instance_of_the_wheel_goes_in_comes_out_and_verifies(testnet, tmp_path):
    paths = [*dicom.instances(), *vendor.generate(tmp_path / "vendor").values()]
    parts = rounds(paths)
    assert sum(map(len, parts)) == len(paths)
    async with testnet(validators=1) as net:
        await net.client(0)  # one for all
        done = [
            round_trip(net, tmp_path / f"hospital {number}", part)
            for number, part in enumerate(parts)
        ]
        verdicts = [each for part in await asyncio.gather(*done) for each in part]
    # By STOW-RS a file stays what it is; C-STORE leaves the file meta information to the receiver.
    assert {word for _, word in verdicts} == {"same file", "same image, re-encoded"}
    assert len(verdicts) == len(paths)


async def test_names_in_every_character_set_are_shown_as_they_are_written(testnet, tmp_path):
    made = vendor.generate(tmp_path / "vendor")
    paths = {name: made[name] for name in vendor.CHARACTER_SETS}
    async with testnet(validators=1) as net, hospital(net, tmp_path / "a") as site:
        assert (await site.post(paths.values()))[0] == 200
        await site.kept(len(paths))
        for name, (_, patient) in vendor.CHARACTER_SETS.items():
            uid = heads_of([paths[name]])[paths[name]].StudyInstanceUID
            _, _, body = await site.ask("GET", f"/studies?StudyInstanceUID={uid}")
            (shown,) = json.loads(body)
            groups = shown["00100010"]["Value"][0]
            words = ("Alphabetic", "Ideographic", "Phonetic")
            assert "=".join(groups[word] for word in words if word in groups) == patient


async def round_trip(net, folder, paths):
    """Take the files through one hospital; return what `verify` says of the originals."""
    heads = heads_of(paths)
    sent = [path for path in paths if is_announced(heads[path])]
    posted = [path for path in paths if path not in sent]
    studies = {}
    for path, head in heads.items():
        studies.setdefault(str(head.StudyInstanceUID), []).append(path)
    async with hospital(net, folder) as site:
        assert set(await site.send(sent)) <= {0}
        if posted:
            assert (await site.post(posted))[0] == 200
        assert site.gateway.spool.asides() == []
        await site.kept(len(studies))
        out = folder / "out"
        out.mkdir()
        for uid, members in studies.items():
            stored = await site.retrieved(uid)
            for number, data in enumerate(stored):
                (out / f"{uid} {number}").write_bytes(data)
            wanted = sorted(data_set(path) for path in members)
            files = [path for path in out.iterdir() if path.name.startswith(f"{uid} ")]
            assert sorted(map(data_set, files)) == wanted
            assert {p.read_bytes() for p in members if p in posted} <= set(stored)
            # A message is of even length: what is deflated is padded to it (PS3.5 A.5).
            got = await site.got(uid, members)
            assert sorted(got) == sorted(data + b"\0" * (len(data) % 2) for data in wanted)
        returned = await site.verified([out])
        assert returned.intact
        for study in returned.studies:
            assert study.status is StudyStatus.INTACT
            assert study.count(Verdict.SAME_FILE) == len(study.instances)
        report = await site.verified(paths)
        assert report.intact
        return [(one.name, one.sentence) for s in report.studies for one in s.instances]
