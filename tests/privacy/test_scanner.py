"""The scan itself: every kind of leak, planted where it would happen, is found."""

import base64
import hashlib
import logging
import os
from functools import partial

import pydicom
import pytest

from node import keys
from node.exchange.transfer.holders import HolderRefused, Link
from node.exchange.transfer.limits import ClientLimits
from node.testnet.testnet import Testnet
from tests.gateway.flow_world import CONSENSUS, World, until
from tests.privacy.evidence import Evidence, tapped
from tests.privacy.needles import needles_of, search
from tests.privacy.patient import write_study

log = logging.getLogger("node.gateway.planted")


@pytest.fixture
def paths(tmp_path):
    return write_study(tmp_path / "images", instances=1)


@pytest.fixture
def instance(paths):
    return pydicom.dcmread(paths[0])


def forms_found(paths, data):
    return {(leak.what, leak.form) for leak in search(needles_of(paths), "", data)}


@pytest.mark.parametrize(
    ("form", "write"),
    [
        ("utf-8", str.encode),
        ("utf-8", lambda text: text.upper().encode()),
        ("utf-16-le", lambda text: text.encode("utf-16-le")),
        ("utf-16-be", lambda text: text.encode("utf-16-be")),
        ("hex of utf-8", lambda text: text.encode().hex().encode()),
        ("hex of utf-8", lambda text: text.encode().hex().upper().encode()),
        *(
            ("base64 of utf-8", lambda text, pad=pad: base64.b64encode(b"~" * pad + text.encode()))
            for pad in range(3)
        ),
        ("base64 of utf-8", lambda text: base64.urlsafe_b64encode(text.encode())),
        ("base64 of utf-16-le", lambda text: base64.b64encode(text.encode("utf-16-le"))),
    ],
)
def test_a_value_is_found_in_every_form(form, write, paths, instance):
    for name in ("PatientID", "PatientBirthDate", "StudyInstanceUID", "StudyTime", "StationName"):
        written = b"before " + write(str(instance[name].value)) + b" after"
        assert (name, form) in forms_found(paths, written)


@pytest.mark.parametrize("part", ["Zyxquorn", "wilhelmafrieda", "Vorgstrulm", "Ottergrundweg"])
def test_a_part_of_a_name_or_text_is_found(part, paths):
    assert forms_found(paths, f"somebody called {part}".encode())


@pytest.mark.parametrize("algorithm", ["sha256", "sha1", "md5"])
def test_unsalted_digests_are_found(algorithm, paths, instance):
    raw = paths[0].read_bytes()
    uid = str(instance.SOPInstanceUID).encode()
    padded = uid + b"\0" * (len(uid) % 2)
    contents = {
        "file": raw,
        "pixels": instance.PixelData,
        "SOPInstanceUID text": uid,
        "PatientID text": str(instance.PatientID).encode(),
        "PatientName text": str(instance.PatientName).encode(),
    }
    if padded != uid:
        contents["SOPInstanceUID padded"] = padded
    for what, content in contents.items():
        digest = hashlib.new(algorithm, content).digest()
        for form, written in (
            (algorithm, digest),
            (f"hex of {algorithm}", digest.hex().upper().encode()),
            (f"base64 of {algorithm}", base64.b64encode(b"?" + digest)),
        ):
            assert (what, form) in forms_found(paths, b"x" + written + b"y")


def test_the_data_set_without_its_meta_information_is_known_by_its_digest(paths):
    raw = paths[0].read_bytes()
    begin = raw.index(b"\x08\x00\x16\x00UI")  # the first element of this data set
    digest = hashlib.sha256(raw[begin:]).digest()
    assert ("data set", "sha256") in forms_found(paths, digest)


def test_what_is_random_is_no_leak(paths):
    assert forms_found(paths, os.urandom(2**20) + os.urandom(2**19).hex().encode()) == set()


async def test_every_place_is_searched(tmp_path, monkeypatch, caplog, capfd, paths, instance):
    """One leak at each place, of a kind of its own, in a run of real nodes and an exchange."""
    monkeypatch.setattr(keys, "_SCRYPT_N", 2)
    caplog.set_level(logging.DEBUG)
    evidence = Evidence()
    with tapped(monkeypatch) as wire:
        async with Testnet(validators=3, consensus=CONSENSUS, folder=tmp_path / "net") as net:
            world = World(net, tmp_path)
            await _leak_on_the_chain(world.alpha, paths)
            async with world.alpha.serving(), world.beta.serving() as exchange:
                await until(lambda: world.alpha.exchange.directory.keys)
                holder = exchange.directory.holder(world.alpha.name)
                await _leak_in_a_url(holder, world.beta.identity, str(instance.SOPInstanceUID))
            _leak_in_logs(instance)
            net.node(0).metrics.rpc_rejected.inc(str(instance.AccessionNumber))
            planted = world.alpha.folder / "exchange" / "planted.db"
            planted.write_bytes(b"\0" + hashlib.sha1(instance.PixelData).digest())
            evidence.add_files("files", world.alpha.folder)
            await evidence.add_metrics(net.node(0))
            folder = net.layout.configs[2].data_dir
        evidence.add_wire(wire)
        evidence.add_chain(folder)
    evidence.add("logs", caplog.text)
    evidence.add("logs", "".join(capfd.readouterr()))
    leaks = evidence.leaks(partial(search, needles_of(paths)))
    assert {(leak.where, leak.what, leak.form) for leak in leaks} >= {
        ("chain", "file", "sha256"),
        ("messages", "file", "sha256"),  # gossiped, and in the primary's proposal
        ("messages", "SOPInstanceUID", "utf-8"),
        ("urls", "SOPInstanceUID", "utf-8"),
        ("logs", "StudyInstanceUID", "utf-8"),
        ("logs", "PatientName", "utf-8"),
        ("logs", "InstitutionName", "utf-8"),
        ("metrics", "AccessionNumber", "utf-8"),
        ("files", "pixels", "sha1"),
    }


async def _leak_on_the_chain(hospital, paths):
    """A form's digest is any 32 bytes to the ledger: here those of an image."""
    study = await hospital.keep(instances=1)
    digest = hashlib.sha256(paths[0].read_bytes()).digest()
    await hospital.submit("consent.opt_out", study.subject_id, digest)


async def _leak_in_a_url(holder, identity, uid):
    link = Link(holder, identity, ClientLimits())
    try:
        with pytest.raises(HolderRefused):
            await link.post(f"/v1/find?instance={uid}", b"", 64)
    finally:
        await link.close()


def _leak_in_logs(instance):
    log.debug("instance received uid=%s", instance.StudyInstanceUID)
    try:
        raise ValueError(f"bad value {instance.PatientName}")
    except ValueError:
        log.exception("a failure that quotes what failed")
    os.write(2, f"a child process prints {instance.InstitutionName}\n".encode())
