"""What strangers sent is read behind a fence: a file that ends its process costs itself alone."""

import os
import resource
import signal
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import msgpack
import numpy as np
import psutil
import pytest

from node.gateway import parsing as parsing_module
from node.gateway import readings
from node.gateway.index import SpoolError
from node.gateway.outcomes import Refused
from node.gateway.parsing import DIED, HUNG, Parsing, Patience
from node.gateway.readings import NoReading, decode_media, decode_reading
from node.gateway.spool import Quota
from node.gateway.watch import Watch
from node.imaging.errors import NOT_NOW, UnreadableInstance
from node.imaging.limits import LIMITS
from node.imaging.media import read_media
from node.imaging.reader import read_instance
from tests.gateway.planted_parser import ABORTS, EATS, HANGS, LACKS
from tests.imaging import dicom

PLANTED = "tests.gateway.planted_parser"
READ = partial(read_instance, limits=LIMITS)
CODES = {ABORTS: DIED, EATS: DIED, HANGS: HUNG}
MEMORY_BYTES = 400 << 20


@pytest.fixture
def planted(monkeypatch):
    monkeypatch.setattr(parsing_module, "MODULE", PLANTED)


@pytest.fixture
def make():
    made = []

    def parsing(**options):
        made.append(Parsing(MEMORY_BYTES, **options))
        return made[-1]

    yield parsing
    for each in made:
        each.close()


def image(path, rows, number=1, study="1.2.3"):
    """Write a compressed image that the planted decoder knows by its rows."""
    pixels = np.full((rows, 8), number, "<u2")
    plain = dicom.minimal(path, sop=f"{study}.{rows}.{number}", study=study, pixels=pixels)
    return dicom.rle(plain, path)


def workers(parsing):
    return [slot.worker.process.pid for slot in parsing._slots if slot.worker is not None]


def test_it_finds_what_is_found_without_a_fence(make, tmp_path):
    (tmp_path / "text").write_text("no image")
    files = [*map(Path, dicom.readable()), tmp_path / "text", tmp_path / "nothing"]
    direct = [read_instance(path) for path in files]
    found = list(make().map(READ, files))
    assert [_plain(each) for each in found] == [_plain(each) for each in direct]
    assert {type(each) for each in found} == {type(each) for each in direct}


def _plain(found):
    is_refused = isinstance(found, UnreadableInstance)
    return (found.name, found.code, found.reason) if is_refused else found


@pytest.mark.parametrize("rows", CODES)
def test_a_file_that_ends_its_process_is_refused_once_and_the_others_are_read(
    planted, make, tmp_path, rows
):
    files = [image(tmp_path / f"{n:02}.dcm", rows if n == 5 else 8, n) for n in range(40)]
    parsing = make(patience=Patience(2.0))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = list(parsing.map(READ, files))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    refused = [n for n, each in enumerate(found) if isinstance(each, UnreadableInstance)]
    assert (refused, found[5].code) == ([5], CODES[rows])
    assert [each for n, each in enumerate(found) if n != 5] == [
        read_instance(path) for n, path in enumerate(files) if n != 5
    ]
    assert grown * 1024 < MEMORY_BYTES // 4  # what was eaten, was eaten elsewhere
    running = workers(parsing)
    assert parsing.read(files[5]).code == CODES[rows]  # it is known, and not tried again
    assert parsing.read(files[6]) == read_instance(files[6])
    assert set(workers(parsing)) <= set(running)
    image(files[5], 8, 5)
    assert parsing.read(files[5]) == read_instance(files[5])  # now it is another


def test_trouble_of_the_machine_is_not_the_files(planted, make, tmp_path):
    files = [image(tmp_path / f"{n}.dcm", rows, n) for n, rows in enumerate((8, LACKS, 8))]
    parsing = make()
    assert parsing.read(files[1]).code == NOT_NOW
    with pytest.raises(SpoolError, match="cannot be read now"):
        list(parsing.map(READ, files))
    assert parsing.read(files[2]) == read_instance(files[2])


def test_a_process_that_is_killed_from_outside_costs_no_file(make, tmp_path):
    path = image(tmp_path / "a.dcm", 8)
    parsing = make(workers=1)
    expected = parsing.read(path)
    (pid,) = workers(parsing)
    os.kill(pid, signal.SIGKILL)  # between two files
    assert parsing.read(path) == expected
    (pid,) = workers(parsing)
    os.kill(pid, signal.SIGSTOP)  # in the middle of one
    found = []
    reading = threading.Thread(target=lambda: found.append(parsing.read(path)))
    reading.start()
    while not parsing._free.empty():
        pass
    os.kill(pid, signal.SIGKILL)
    reading.join()
    assert found == [expected]


def test_at_the_end_of_the_gateway_no_file_is_blamed(planted, make, tmp_path):
    files = [image(tmp_path / f"{n}.dcm", HANGS, n) for n in range(6)]
    parsing = make()
    told = []

    def read(work):
        with pytest.raises(SpoolError) as ended:
            work()
        told.append(str(ended.value))

    works = [lambda: parsing.read(files[0]), lambda: list(parsing.map(READ, files))]
    threads = [threading.Thread(target=read, args=[work]) for work in works]
    for thread in threads:
        thread.start()
    while len(workers(parsing)) < 2:
        pass
    parsing.close()
    for thread in threads:
        thread.join()
    assert len(told) == 2
    with pytest.raises(SpoolError):
        parsing.read(files[1])


def test_without_room_for_a_process_no_file_is_blamed(tmp_path):
    parsing = Parsing(60 << 20)
    with pytest.raises(SpoolError, match="no file can be read"):
        parsing.read(image(tmp_path / "a.dcm", 8))
    parsing.close()


def test_the_kernel_holds_a_process_to_its_limits(make, tmp_path):
    parsing = make()
    parsing.read(image(tmp_path / "a.dcm", 8))
    (pid,) = workers(parsing)
    process = psutil.Process(pid)
    assert process.rlimit(psutil.RLIMIT_DATA) == (MEMORY_BYTES, MEMORY_BYTES)
    assert max(process.rlimit(psutil.RLIMIT_AS)) <= MEMORY_BYTES + (2 << 30)
    assert process.rlimit(psutil.RLIMIT_CORE) == (0, 0)


def test_no_secret_of_ours_is_in_its_environment(make, tmp_path, monkeypatch):
    monkeypatch.setenv("RADLEDGER_PASSPHRASE", "secret")
    parsing = make()
    parsing.read(image(tmp_path / "a.dcm", 8))
    (pid,) = workers(parsing)
    assert "RADLEDGER_PASSPHRASE" not in psutil.Process(pid).environ()


def test_a_process_ends_with_its_parent_even_in_the_middle(tmp_path):
    path = image(tmp_path / "a.dcm", HANGS)
    code = (
        "import threading\n"
        "from pathlib import Path\n"
        "from node.gateway import fence, parsing\n"
        f"parsing.MODULE, fence._ORPHAN_S = {PLANTED!r}, 0.2\n"
        "made = parsing.Parsing(patience=parsing.Patience(0.3))\n"
        "made._slots[0].ready(1), made._slots[1].ready(1)\n"
        "print(*(slot.worker.process.pid for slot in made._slots), flush=True)\n"
        "answer = fence.Worker.answer\n"
        "def told(*arguments):\n"
        "    print('asked', flush=True)\n"
        "    return answer(*arguments)\n"
        "fence.Worker.answer = told\n"
        f"threading.Thread(target=made.read, args=[Path({str(path)!r})]).start()\n"
        "threading.Event().wait()\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    pids = [int(word) for word in parent.stdout.readline().split()]
    children = [psutil.Process(pid) for pid in pids]
    parent.stdout.readline()
    parent.kill()
    parent.wait()
    parent.stdout.close()
    gone, alive = psutil.wait_procs(children, timeout=30)
    assert (len(gone), alive) == (2, [])


def test_a_medium_is_read_behind_the_fence_too(make, tmp_path):
    (tmp_path / "DICOMDIR").write_bytes(b"no DICOMDIR")
    with pytest.raises(UnreadableInstance) as refused:
        make().media(tmp_path / "DICOMDIR")
    assert refused.value.code == "foreign"
    shipped = dicom.FILES / "dicomdirtests" / "DICOMDIR"
    assert make().media(shipped) == read_media(shipped)


def test_only_one_function_runs_behind_the_fence(make, tmp_path):
    more = partial(read_instance, limits=LIMITS, more=1)
    for function in (len, partial(os.unlink, limits=LIMITS), more):
        with pytest.raises(ValueError, match="behind the fence"):
            list(make().map(function, [tmp_path]))


def test_a_folder_is_not_tried_again_with_a_file_that_ends_its_process(
    planted, make, open_spool, tmp_path
):
    spool = open_spool(Quota(disk_reserve_bytes=1, quarantine_bytes_max=1))  # keeps nothing
    parsing = make()
    spool._read = parsing.read
    folder = tmp_path / "watch"
    folder.mkdir()
    image(folder / "a.dcm", ABORTS)
    image(folder / "b.dcm", 8)
    watch = Watch(folder, spool, parsing.media)
    assert [watch.step() for _ in range(4)] == [0, 1, 0, 0]
    refused = [event for _, event in spool.index.last_events(20) if event.kind == "refused"]
    assert [event.code for event in refused] == [DIED]
    image(folder / "a.dcm", 8, 2)
    assert [watch.step() for _ in range(2)] == [0, 1]


# What a process hands back that is a stranger's by then


GOOD = read_instance(Path(dicom.readable()[0]))


def changed(*place, to):
    """Return a reading in which one value is another."""
    plain = msgpack.unpackb(readings.encode(GOOD))
    inner = plain
    for step in place[:-1]:
        inner = inner[step]
    inner[place[-1]] = to
    return msgpack.packb(plain)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        b"\x93",
        msgpack.packb(None),
        msgpack.packb(["read"]),
        msgpack.packb(["refused", "bad code", "reason"]),
        msgpack.packb(["refused", "code", "a\nline of the log"]),
        msgpack.packb(["refused", "code", "x" * 501]),
        changed(1, 0, to="1"),
        changed(1, 1, to=-1),
        changed(1, 2, to=b"short"),
        changed(1, 5, to=[None]),
        changed(1, 5, 0, to=[99, bytes(32), b""]),
        changed(1, 6, 0, to=b"x"),
        changed(2, to=[[1, 2]]),
        changed(2, to=[[[], "x"]]),
    ],
)
def test_an_answer_that_is_none_is_no_reading(data):
    with pytest.raises(NoReading):
        decode_reading(data, "a")


def test_a_uid_that_leads_anywhere_is_refused_on_this_side_too():
    facts = msgpack.unpackb(readings.encode(GOOD))[2]
    bad = [[tag, "../../etc" if tag == 0x0020000D else value] for tag, value in facts]
    assert decode_reading(changed(2, to=bad), "a").code == "bad_uid"


@pytest.mark.parametrize("path", ["/etc/passwd", "/medium/../etc/passwd", "files/a"])
def test_a_medium_names_no_file_outside(path):
    with pytest.raises(NoReading):
        decode_media(msgpack.packb(["media", [path], [], []]), "/medium/DICOMDIR")


def test_what_is_refused_says_so(planted, make, open_spool, tmp_path):
    spool = open_spool(Quota(disk_reserve_bytes=1))
    spool._read = make().read
    with image(tmp_path / "a.dcm", ABORTS).open("rb") as stream:
        outcome = spool.accept("stow", stream)
    assert isinstance(outcome, Refused)
    assert (outcome.code, outcome.is_kept) == (DIED, True)
    assert [aside.code for aside in spool.asides()] == [DIED]
