"""`demo`: every step holds; one that does not is told; nothing is left behind."""

import asyncio
import json
import os
import re
import signal
import time
from contextlib import asynccontextmanager, suppress
from types import SimpleNamespace

import psutil
import pytest

from node.cli.demo import material, play, terminal
from node.cli.demo.stage import Stage, StepFailed
from node.cli.output import console
from tests.cli.conftest import python, run, started
from tests.imaging import dicom

PATIENCE_S = 10.0


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """Where the demo puts its folder."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


def test_every_step_holds_and_nothing_is_left(temporary):
    done = python("-m", "node.cli", "demo", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    answer = json.loads(done.stdout)
    assert answer["is_ok"]
    assert [step["is_ok"] for step in answer["steps"]] == [True] * 33
    notes = "\n".join(note for step in answer["steps"] for note in step["notes"])
    for words in (
        "N = 4, f = 1, quorum 3",
        "ms after it was sent",
        "signatures checked",
        "intact, 11 of 11 the same file",
        "altered: pixels",
        "from the kill to finality under the new primary",
        "state root",
        "granted by north/second-opinion",
        "everywhere: consent_missing",
        "access_break_glass, access_reviewed",
        "east would grant it, and tells: modality CT",
        "every file is the registered one",
        "4 verified by reading back; pixel for pixel what the scanner sent",
        "the next fetch, and the one before: consent_missing",
        "neither store has a key, an index or a chunk of it",
        "N = 5, quorum 4; live now: north, south, east, west",
        "voters: north, south, east, west, hill",
        "west never asked for study",
        "one bit changed, and proves nothing",
    ):
        assert words in notes
    assert answer["summary"]["studies"] == 3
    assert answer["summary"]["exchanged"] == 4
    assert answer["summary"]["view"] >= 1
    assert list(temporary.iterdir()) == []


@pytest.fixture
def heard():
    """Let the signals be heard in what is started: whoever runs the tests may ignore them."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    for number, handler in before.items():
        if handler is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("heard")
@pytest.mark.parametrize(
    ("number", "when"),
    [
        (signal.SIGINT, "genesis"),
        (signal.SIGTERM, "genesis"),
        (signal.SIGHUP, "genesis"),
        (signal.SIGTERM, "west$ radledger gateway start"),
    ],
)
def test_nothing_is_left_when_it_is_interrupted(number, when, temporary):
    demo = started("demo")
    lines = [demo.stdout.readline()]
    while when not in lines[-1]:
        assert demo.poll() is None
        lines.append(demo.stdout.readline())
    demo.send_signal(number)
    demo.communicate()
    assert demo.returncode == 128 + number
    assert list(temporary.iterdir()) == []
    groups = set(map(int, re.findall(r"gateway start \(process ([0-9]+)\)", "".join(lines))))
    assert len(groups) == (2 if "gateway" in when else 0)
    deadline = time.monotonic() + PATIENCE_S
    while alive_in(groups):  # what was killed may take a moment to go
        assert time.monotonic() < deadline, alive_in(groups)


def alive_in(groups):
    """Return the processes that run in one of the groups, those that they started included."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, ProcessLookupError):
            is_member = os.getpgid(process.pid) in groups
            if is_member and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def test_a_step_that_does_not_hold_says_what_was_expected_and_seen(temporary, monkeypatch):
    monkeypatch.setattr(play, "shipped_studies", lambda: material.shipped_studies()[:1])
    answer = run("demo")
    assert answer.status == 1
    assert "expected: 4 studies of several images each" in answer.words
    assert "seen: ['MR study" in answer.words
    assert "0 of 1 steps held" in answer.words
    assert list(temporary.iterdir()) == []


def test_a_folder_that_is_not_empty_is_left_alone(tmp_path):
    (tmp_path / "mine").write_text("mine")
    answer = run("demo", "--folder", tmp_path)
    assert answer.status == 2
    assert "not an empty folder" in answer.words
    assert (tmp_path / "mine").read_text() == "mine"


@pytest.fixture
def stage():
    return Stage(console(), quiet=False)


class Behind:
    """Nodes of two hospitals, and commands: north's executes a height when asked."""

    def __init__(self, height):
        self.height, self.typed_at = height, []

    def open(self, config_file):
        return self

    @asynccontextmanager
    async def client(self):
        yield self

    async def head(self):
        self.height += 1
        return SimpleNamespace(height=self.height)

    async def run(self, words, status=0):
        self.typed_at.append((words[0], self.height))
        return {"transaction": {"height": 9}} if words[0] == "change" else {}


async def test_what_a_hospital_did_is_waited_for_at_the_next_one(stage, monkeypatch, tmp_path):
    behind = Behind(height=5)
    monkeypatch.setattr(terminal, "Desk", behind)
    typist = terminal.Typist(tmp_path, behind)
    async with stage.step("a step") as step:
        await typist.run(step, "south", "change")
        await typist.run(step, "south", "look")
        await typist.run(step, "north", "list")
        await typist.run(step, "north", "show")
    assert behind.typed_at == [("change", 5), ("look", 5), ("list", 9), ("show", 9)]


async def test_a_failure_inside_a_step_is_shown_as_what_was_seen(stage, capsys):
    with pytest.raises(StepFailed):
        async with stage.step("a step"):
            raise OSError("the disk is full")
    (step,) = stage.steps
    assert (step.is_ok, step.expected, step.seen) == (False, "no failure", "the disk is full")
    assert "the disk is full" in capsys.readouterr().out


async def test_a_step_that_takes_too_long_fails(stage, monkeypatch):
    monkeypatch.setattr("node.cli.demo.stage.STEP_TIMEOUT_S", 0.0)
    with pytest.raises(StepFailed):
        async with stage.step("a step"):
            await asyncio.Event().wait()
    assert stage.steps[0].expected == "to be done within 0 s"


def test_shipped_studies_are_images_of_different_modalities():
    first, second, third, *_ = material.shipped_studies()
    assert len({first.modality, second.modality, third.modality}) == 3
    assert all(len(series.files) > 1 for series in (first, second, third))


def test_altering_a_pixel_changes_one_bit(tmp_path):
    file = dicom.minimal(tmp_path / "a.dcm")
    before = file.read_bytes()
    place = material.alter_pixel(file)
    after = file.read_bytes()
    different = [i for i in range(len(before)) if before[i] != after[i]]
    assert different == [place]
    assert before[place] ^ after[place] == 1
