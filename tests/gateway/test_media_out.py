"""Studies onto a medium with a DICOMDIR, and back from it."""

import json
import re
from dataclasses import replace

import pydicom
import pytest
from pydicom.filereader import read_file_meta_info
from pydicom.fileset import FileSet

from node.gateway.audit.segments import segments
from node.gateway.media_out import MediaUnwritable, write_media
from node.imaging.errors import UnreadableInstance
from node.imaging.media import read_media
from node.imaging.reader import read_instance
from tests.exchange.store_parts import new_store
from tests.gateway.flow_world import confirmed, world
from tests.gateway.test_flow_command import configure, told
from tests.gateway.web.test_store_holdings import ONE, source
from tests.imaging import dicom, vendor


def written(tmp_path, paths, name="disc"):
    """Store files as one study and write it; return what was said, and the folder."""
    store = new_store(tmp_path)
    store.put(ONE, 1, [in_its_syntax(source(path), path) for path in paths])
    return write_media(store, ONE, None, tmp_path / name, lambda done: None), tmp_path / name


def in_its_syntax(made, path):
    syntax = str(read_file_meta_info(path).TransferSyntaxUID)
    return replace(made, facts=replace(made.facts, transfer_syntax=syntax))


def series():
    return sorted(path for path in dicom.CT_FOLDER.rglob("*") if path.is_file())


def test_a_study_becomes_a_file_set_of_its_very_files(tmp_path):
    said, folder = written(tmp_path, series())
    media = read_media(folder / "DICOMDIR")
    assert (said.instances, len(media.files), media.missing) == (7, 7, ())
    assert {p.read_bytes() for p in media.files} == {p.read_bytes() for p in series()}
    for path in folder.rglob("*"):
        assert re.fullmatch(r"[A-Z0-9_]{1,8}(\.TXT)?", path.name), path  # PS3.10 §8.5
    found = FileSet(folder / "DICOMDIR")
    assert {e.SOPInstanceUID for e in found} == {
        pydicom.dcmread(p).SOPInstanceUID for p in series()
    }
    assert b"DICOMDIR" in (folder / "README.TXT").read_bytes()
    assert [path.name for path in tmp_path.glob(".*.new")] == []


@pytest.mark.parametrize("kind", ["wheel", "vendor"])
def test_every_kind_of_instance_has_a_place_in_the_directory(tmp_path, kind):
    if kind == "vendor":
        paths = list(vendor.generate(tmp_path / "vendor").values())
    else:
        distinct = {}
        for path in dicom.instances():
            distinct.setdefault(pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID, path)
        paths = list(distinct.values())
    said, folder = written(tmp_path, paths)
    media = read_media(folder / "DICOMDIR")
    assert said.instances == len(media.files) == len(paths)
    assert sorted(p.read_bytes() for p in media.files) == sorted(p.read_bytes() for p in paths)
    assert not any(isinstance(read_instance(p), UnreadableInstance) for p in media.files)
    assert said.other_syntax > 5


def test_a_folder_with_something_in_it_is_left_alone(tmp_path):
    (tmp_path / "disc").mkdir()
    (tmp_path / "disc" / "mine").write_text("keep")
    with pytest.raises(MediaUnwritable, match="not empty"):
        written(tmp_path, series())
    assert [path.name for path in (tmp_path / "disc").iterdir()] == ["mine"]


async def test_media_of_a_granted_study_count_as_uses(tmp_path):
    async with world(tmp_path) as all_:
        alpha, beta = all_.alpha, all_.beta
        own, config = with_gateway(alpha), with_gateway(beta)
        async with alpha.serving(), beta.serving():
            await confirmed(beta)
        study = await alpha.keep(instances=3)
        request_id = await beta.ask(study, uses=2)
        async with alpha.serving():
            fetch = ("fetch", request_id.hex(), "-c", config, "--wait", 30)
            assert (await told(*fetch, "--media", status=2))["error"]
            await told(*fetch, "--to", tmp_path / "one", "--media")
        assert (await beta.request(request_id)).uses == 1
        exported = ("export", study.id.hex(), "-c", config, "--to")
        done = await told(*exported, tmp_path / "two")
        assert done["written"]["instances"] == 3
        assert (await beta.request(request_id)).uses == 2
        refused = await told(*exported, tmp_path / "three", status=1)
        assert refused["error"]["code"] == "uses_spent"
        assert not (tmp_path / "three").exists()
        wanted = {path.read_bytes() for path in study.files.values()}
        for name in ("one", "two"):
            media = read_media(tmp_path / name / "DICOMDIR")
            assert {path.read_bytes() for path in media.files} == wanted
        # Its own studies a hospital writes without asking anybody.
        await told("export", study.id.hex(), "-c", own, "--to", tmp_path / "own")
        assert len(read_media(tmp_path / "own" / "DICOMDIR").files) == 3
        by_grant = {"request": request_id.hex(), "studies": [study.id.hex()], "instances": 3}
        by_hand = by_grant | {"request": ""}
        assert recorded(beta) == [
            ("fetched", by_grant),
            ("exported", by_grant),
            ("exported", by_hand),
        ]
        assert recorded(alpha) == [("exported", by_hand)]


def with_gateway(hospital):
    """Configure a hospital whose gateway has an audit trail."""
    config = configure(hospital)
    with config.open("a") as file:
        file.write(f'[gateway]\nspool_dir = "{hospital.folder}/spool"\n')
    return config


def recorded(hospital):
    """Return what commands left in a hospital's audit trail: kinds, and what they are about."""
    lines = [
        json.loads(line)
        for segment in segments(hospital.folder / "spool" / "audit")
        for line in segment.path.read_bytes().splitlines()
    ]
    names = ("request", "studies", "instances")
    return [
        (line["kind"], {name: line.get(name, "") for name in names})
        for line in lines
        if line["kind"] in ("fetched", "exported")
    ]
