"""`radledger gateway start` as it runs in a hospital, with dicomweb-client and DCMTK's tools."""

import warnings
from io import BytesIO
from pathlib import Path

import pydicom
from dicomweb_client.api import DICOMwebClient
from dicomweb_client.session_utils import create_session
from PIL import Image

from tests.gateway.test_scp import data_set
from tests.interop.check_retrieval import uid
from tests.interop.hospital import TITLE, Hospital, consortium, wait_for
from tests.interop.series import head_ct
from tests.interop.tools import call, free_port

NAME = "gateway: dicomweb-client, findscu, getscu and movescu against the running gateway"
PACKAGES = {"dcmtk": "getscu"}


def run(work: Path) -> list[str]:
    """Check, and return what was found."""
    move_port = free_port()
    peers = [
        {"ae_title": "FINDSCU"},
        {"ae_title": "GETSCU"},
        {"ae_title": "MOVESCU", "host": "127.0.0.1", "port": move_port},
    ]
    with consortium(work / "net", nodes=1) as (hospital,):
        hospital.configure(peers, [], quiet_ms=200)
        hospital.start()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            lines = _dicomweb(hospital)
        return [*lines, *_dcmtk(hospital, work, move_port)]


def registered(hospital: Hospital) -> str:
    """Return the id of the one study once it is registered and stored."""

    def kept():
        is_empty = hospital.tell("gateway", "status")["usage"]["files"] == 0
        return hospital.tell("study", "search")["studies"] if is_empty else None

    (summary,) = wait_for(kept, 120, "the registration")
    return str(summary["id"])


def _dicomweb(hospital: Hospital) -> list[str]:
    session = create_session()
    session.headers["Authorization"] = "Bearer " + "t" * 43
    client = DICOMwebClient(hospital.web_url, session=session)
    client.set_http_retry_params(retry=False)
    paths = head_ct()
    stored = client.store_instances([pydicom.dcmread(path) for path in paths])
    assert len(stored.ReferencedSOPSequence) == len(paths), "STOW-RS did not take all"
    registered(hospital)
    study, first = uid(paths[0]), pydicom.dcmread(paths[0])
    place = study, first.SeriesInstanceUID
    one = *place, first.SOPInstanceUID
    filters = {"StudyInstanceUID": study}

    def listed():
        return client.search_for_studies(search_filters=filters)

    (row,) = wait_for(listed, 60, "the study in QIDO-RS")
    assert row["00201208"]["Value"] == [len(paths)], row["00201208"]
    series = client.search_for_series(study)
    assert len(client.search_for_instances(study)) == len(paths)
    whole = client.retrieve_study(study, media_types=(("application/dicom", "*"),))
    assert {each.SOPInstanceUID for each in whole} == {uid(p, "SOPInstanceUID") for p in paths}
    some = client.retrieve_series(*place)
    assert len(some) == sum(uid(p, "SeriesInstanceUID") == place[1] for p in paths)
    single = client.retrieve_instance(*one)
    assert single.PixelData == first.PixelData, "other pixels came back"
    metadata = client.retrieve_study_metadata(study)
    assert len(metadata) == len(paths)
    assert client.retrieve_instance_frames(*one, [1]) == [first.PixelData]
    image = client.retrieve_instance_rendered(*one, media_types=("image/png",))
    with Image.open(BytesIO(image)) as shown:
        assert shown.size == (first.Columns, first.Rows), shown.size
    return [
        f"dicomweb-client: stored {len(paths)}; found study, {len(series)} series, {len(paths)} "
        f"instances; got study, series, instance, metadata, frame; rendered {shown.size}"
    ]


def _dcmtk(hospital: Hospital, work: Path, move_port: int) -> list[str]:
    paths = head_ct()
    study = uid(paths[0])
    counts = []
    for name, *options in (
        ("findscu", "-X"),
        ("getscu", "+B", "+xi"),
        ("movescu", "+B", "-aem", "MOVESCU", "+P", move_port),
    ):
        folder = work / name
        folder.mkdir()
        keys = ("-k", "QueryRetrieveLevel=STUDY", "-k", f"StudyInstanceUID={study}")
        place = ("-aet", name.upper(), "-aec", TITLE, "127.0.0.1", hospital.dicom)
        done = call(name, "-v", "-S", "-od", folder, *keys, *options, *place, folder=folder)
        assert done.returncode == 0, f"{name}: {done.stderr}"
        counts.append(len([path for path in folder.iterdir() if path.is_file()]))
    assert counts == [1, len(paths), len(paths)], counts
    pixels = sorted(pydicom.dcmread(path).PixelData for path in paths)
    for name in ("getscu", "movescu"):
        back = sorted(pydicom.dcmread(path).PixelData for path in (work / name).iterdir())
        assert back == pixels, f"{name}: other pixels"
    moved = sum(
        data_set(path) in {data_set(p) for p in paths} for path in (work / "movescu").iterdir()
    )
    return [f"DCMTK: found 1 study, got and moved {counts[1]}, {moved} byte for byte, all pixels"]
