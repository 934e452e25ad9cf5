"""The trail: every record durable, in sequence, linked; bounded, and never silently incomplete."""

import multiprocessing
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from node.gateway.audit import sent
from node.gateway.audit import trail as trail_module
from node.gateway.audit.acts import KINDS, Act, Outcome
from node.gateway.audit.chain import verify
from node.gateway.audit.errors import TrailFull, TrailUnusable
from node.gateway.audit.record import LINE_BYTES_MAX, decode, encode
from node.gateway.audit.segments import segments
from node.gateway.audit.sent import Sent
from node.gateway.audit.trail import RESERVE_BYTES, Trail, TrailLimits
from tests.gateway.audit.conftest import SMALL, kinds, records

BOUND = RESERVE_BYTES * 4


def fill(trail, count, kind="refused"):
    return [trail.append(Act(kind, who=f"PEER{number}")) for number in range(count)]


def test_records_are_numbered_linked_and_found_again(open_trail, folder):
    trail = open_trail()
    assert fill(trail, 3) == [2, 3, 4]
    trail.close()
    assert open_trail().append(Act("started")) == 5
    assert kinds(folder) == ["trail_began", "refused", "refused", "refused", "started"]
    report = verify(folder)
    assert (report.first, report.last, report.records, report.problems) == (1, 5, 5, None)
    assert len(report.trail) == 32


def test_a_record_is_on_the_disk_before_append_returns(trail, monkeypatch):
    synced = []
    real = os.fdatasync

    def fdatasync(descriptor):
        synced.append(os.fstat(descriptor).st_size)
        real(descriptor)

    monkeypatch.setattr(trail_module.os, "fdatasync", fdatasync)
    trail.append(Act("started"))
    assert synced[-1] == segments(trail.folder)[-1].path.stat().st_size


def test_many_threads_and_processes_write_one_sequence(open_trail, folder):
    trail = open_trail()
    start = multiprocessing.get_context("fork")
    others = [start.Process(target=write_elsewhere, args=(folder, 40)) for _ in range(3)]
    for each in others:
        each.start()
    with ThreadPoolExecutor(8) as pool:
        numbers = list(pool.map(lambda _: trail.append(Act("started")), range(80)))
    for each in others:
        each.join(30)
        assert each.exitcode == 0
    assert len(set(numbers)) == 80
    report = verify(folder)
    assert (report.records, report.problems) == (1 + 80 + 120, None)
    assert len(segments(folder)) > 5


def write_elsewhere(folder, count):
    trail = Trail(folder, SMALL)
    for _ in range(count):
        trail.append(Act("refused"))


CRASH = """
import os, sys
from pathlib import Path
from node.gateway.audit import trail as module
from node.gateway.audit.acts import Act
trail = module.Trail(Path(sys.argv[1]), module.TrailLimits(segment_bytes_max=600))
step, calls = int(sys.argv[2]), 0
def dies(real):
    def call(*arguments, **options):
        global calls
        calls += 1
        if calls > step:
            os.kill(os.getpid(), 9)
        return real(*arguments, **options)
    return call
for name in ("pwrite", "fdatasync", "fsync", "fchmod", "open", "close"):
    setattr(module.os, name, dies(getattr(os, name)))
for _ in range(5):
    number = trail.append(Act("refused"))
    os.write(1, b"%d\\n" % number)
"""


@pytest.mark.parametrize("step", range(0, 36, 3))
def test_a_kill_at_any_step_loses_no_record_and_breaks_no_link(open_trail, folder, step):
    arguments = [sys.executable, "-c", CRASH, str(folder), str(step)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    told = [int(line) for line in done.stdout.split()]
    assert (done.returncode == -9) == (len(told) < 5), done.stderr
    trail = open_trail()
    trail.append(Act("started"))
    report = verify(folder)
    assert report.problems is None
    found = records(folder)
    assert [record.seq for record in found] == list(range(1, len(found) + 1))
    assert set(told) <= {record.seq for record in found if record.kind == "refused"}


def test_what_a_power_cut_left_of_a_line_goes(open_trail, folder):
    open_trail().close()
    path = segments(folder)[-1].path
    with path.open("ab") as file:
        file.write(b'{"before":"abc","kin')
    trail = open_trail()
    assert trail.append(Act("started")) == 2
    assert verify(folder).problems is None


def test_a_damaged_end_is_said_and_not_mended(open_trail, folder):
    open_trail().close()
    path = segments(folder)[-1].path
    path.write_bytes(b"rubbish\n")
    with pytest.raises(TrailUnusable, match="ends with"):
        open_trail()
    assert path.read_bytes() == b"rubbish\n"


def test_a_disk_that_fails_leaves_no_half_record_and_the_loss_is_recorded(
    trail, folder, monkeypatch, caplog
):
    real, failing = os.pwrite, [True]

    def pwrite(descriptor, data, offset):
        if failing:
            real(descriptor, data[:10], offset)
            raise OSError(28, "No space left on device")
        return real(descriptor, data, offset)

    monkeypatch.setattr(trail_module.os, "pwrite", pwrite)
    assert not trail.tell(Act("refused"))
    assert not trail.tell(Act("refused"))
    with pytest.raises(TrailUnusable, match="No space left"):
        trail.append(Act("started"))
    assert [r.levelname for r in caplog.records] == ["ERROR"]  # loud, and not once for each
    failing.clear()
    trail.append(Act("started"))
    assert kinds(folder) == ["trail_began", "trail_resumed", "started"]
    resumed = records(folder)[1]
    assert (resumed.text("code"), resumed.outcome) == ("at least 2 were not recorded", 12)
    assert verify(folder).problems is None


def test_a_full_trail_says_so_in_its_last_record_and_takes_nothing(open_trail, folder, caplog):
    trail = open_trail(TrailLimits(BOUND, 20_000))
    with pytest.raises(TrailFull, match="bytes_max"):
        fill(trail, 10_000)
    assert not trail.tell(Act("refused"))
    assert kinds(folder)[-1] == "trail_full"
    assert kinds(folder).count("trail_full") == 1
    assert "acts are not audited" in caplog.text
    assert sum(each.path.stat().st_size for each in segments(folder)) <= BOUND
    assert verify(folder).full == 1
    # Another process, later, with more room: it says that there was a loss.
    trail.close()
    open_trail(TrailLimits(2 * BOUND, 20_000)).append(Act("started"))
    assert kinds(folder)[-2:] == ["trail_resumed", "started"]


def test_only_what_the_repository_has_makes_room_and_a_record_says_which(open_trail, folder):
    trail = open_trail(TrailLimits(BOUND, 20_000))
    with pytest.raises(TrailFull):
        fill(trail, 10_000)
    past = segments(folder)[3].first
    sent.save(folder, Sent(past - 2, 1))  # the last of the third segment is not there yet
    fill(trail, 200)
    first = segments(folder)[0].first
    assert 1 < first < past
    report = verify(folder)
    assert report.problems is None
    assert (report.first, report.trimmed_to) == (first, first - 1)
    assert sum(each.path.stat().st_size for each in segments(folder)) <= BOUND
    with pytest.raises(TrailFull):
        fill(trail, 10_000)
    assert segments(folder)[0].first < past


def test_segments_are_closed_and_the_next_goes_on(trail, folder):
    fill(trail, 30)
    *closed, last = segments(folder)
    assert closed
    assert all(each.is_closed for each in closed)
    assert not last.is_closed
    path = trail.close_segment()
    assert path == last.path
    assert trail.close_segment() is None  # nothing in it
    trail.append(Act("started"))
    assert verify(folder).problems is None


def test_a_segment_that_another_process_closed_is_left(open_trail, folder):
    first, second = open_trail(), open_trail()
    first.append(Act("started"))
    second.close_segment()
    first.append(Act("stopped"))
    second.append(Act("started"))
    assert verify(folder).problems is None
    assert [each.first for each in segments(folder)] == [1, 3]


def test_what_peers_send_neither_forges_nor_fills_a_record(trail, folder):
    trail.append(Act("refused", who='X"}\n{"seq":9', where="\xff" * 10_000, code="\x00\u2028"))
    record = records(folder)[-1]
    assert record.text("who") == 'X"}?{"seq":9'
    assert len(record.text("where")) == 128
    assert verify(folder).problems is None


def test_the_largest_act_fits_its_line():
    act = Act(
        "trail_resumed",
        Outcome.MAJOR,
        *("\\" * 500 for _ in range(4)),
        request=bytes(16),
        studies=tuple(bytes([n]) * 16 for n in range(200)),
        arriving="x" * 500,
        study_uids=tuple("1." + str(n) * 62 for n in range(200)),
        size=2**60,
    )
    line = encode(2**53, "f" * 64, 2**50, act)
    assert len(line) < LINE_BYTES_MAX
    assert decode(line).number("unnamed") == 168
    assert decode(line).kind in KINDS
