"""The real command, in this process, against real nodes in processes of their own."""

import asyncio
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest
from typer.testing import CliRunner

from node import keys
from node.cli.main import app
from node.imaging import vault_keys
from node.provision import CONFIG
from node.testnet.processes import ProcessTestnet
from tests.imaging import dicom

RADLEDGER = (sys.executable, "-m", "node.cli")


@dataclass(frozen=True)
class Answer:
    """What a command said."""

    status: int
    out: str
    err: str

    def json(self):
        return json.loads(self.out)

    @property
    def words(self):
        """All that was said, in one line: tables and boxes break sentences."""
        return re.sub(r"[\s│╭╮╰╯─]+", " ", self.out + " " + self.err)


def run(*arguments, stdin=None, env=None):
    """Run the command; no traceback may ever be seen."""
    result = CliRunner().invoke(app, [str(a) for a in arguments], input=stdin, env=env)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    answer = Answer(result.exit_code, result.stdout, result.stderr)
    assert "Traceback" not in answer.out + answer.err
    return answer


def asked(*arguments, status=0, **options):
    """Run a command with --json, expect its exit status and return the document."""
    answer = run(*arguments, "--json", **options)
    assert answer.status == status, answer
    return answer.json()


def executed(config_file, height):
    """Return once the node has executed `height`: a quorum may have sealed it without this one."""
    answer = run("events", "--from", height, "--to", height, "-c", config_file)
    assert answer.status == 0


@pytest.fixture(scope="package", autouse=True)
def quick_passphrases():
    """Keys and vaults that open at once; what they cost in earnest is tested where they live."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(keys, "_SCRYPT_N", 2)
        patched.setattr(vault_keys, "_ITERATIONS", 1)
        patched.setattr(vault_keys, "_MEMORY_KIB", 64)
        yield


@pytest.fixture(autouse=True)
def no_config_of_the_machine(monkeypatch):
    monkeypatch.delenv("RADLEDGER_CONFIG", raising=False)
    monkeypatch.setenv("COLUMNS", "300")


@pytest.fixture(scope="package")
def net(tmp_path_factory, quick_passphrases):
    """Four hospitals for all tests of this room; each test registers studies of its own."""
    testnet = ProcessTestnet(tmp_path_factory.mktemp("net"))

    async def begin():
        await testnet.start()
        await testnet.wait_ready()

    asyncio.run(begin())
    yield testnet
    asyncio.run(testnet.kill())


@pytest.fixture
def north(net) -> Path:
    """The config of the first hospital."""
    return net.node("north").folder / CONFIG


@pytest.fixture
def south(net) -> Path:
    return net.node("south").folder / CONFIG


@pytest.fixture
def new_study(tmp_path):
    """Make a folder with a study that nobody has seen."""

    def make(instances=2, *, patient=None, **elements):
        root = f"2.25.{uuid4().int}"
        folder = tmp_path / root[-8:]
        folder.mkdir()
        for number in range(instances):
            dicom.minimal(
                folder / f"{number}.dcm",
                sop=f"{root}.{number}",
                study=root,
                pixels=np.full((4, 4), number, "<u2"),
                PatientID=patient or root[-12:],
                **{"Modality": "CT", "BodyPartExamined": "HEAD", **elements},
            )
        return folder

    return make


@dataclass(frozen=True)
class Person:
    """A member with a key of its own."""

    config: Path
    key: Path
    public_key: str

    def asked(self, *arguments, status=0):
        return asked(*arguments, "--key", self.key, "-c", self.config, status=status)

    def code(self, *arguments):
        """Return the code with which a command is refused."""
        return self.asked(*arguments, status=1)["error"]["code"]


def enrol(config_file, name, *roles):
    """Make a person's key and let the hospital of `config_file` add it."""
    key = config_file.parent / f"{name}.pem"
    made = asked("member", "keygen", key, "-c", config_file)
    wanted = [part for role in roles for part in ("--role", role)]
    asked("member", "add", made["card"], *wanted, "-c", config_file)
    return Person(config_file, key, made["public_key"])


@pytest.fixture(scope="package")
def officer(net):
    """North's data protection officer."""
    return enrol(net.node("north").folder / CONFIG, "officer", "data_protection_officer")


@pytest.fixture(scope="package")
def patient(net):
    """A patient of north's."""
    return enrol(net.node("north").folder / CONFIG, "patient", "patient")


@pytest.fixture(scope="package")
def doctor(net):
    """A clinician of south's."""
    return enrol(net.node("south").folder / CONFIG, "doctor", "clinician")


@pytest.fixture
def shared(new_study, north, south):
    """Register a new study at north; return its id and subject, known at south, too."""

    def make():
        (study,) = asked("study", "register", new_study(), "-c", north)["studies"]
        executed(south, study["height"])
        view = asked("study", "show", study["study_id"], "-c", north)
        return study["study_id"], view["summary"]["subject_id"]

    return make


def python(*arguments, env=None):
    """Run the interpreter as a process of its own, and wait for it."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        env=os.environ | (env or {}),
        capture_output=True,
        text=True,
        check=False,
    )


def started(*arguments):
    """Start the command as a process of its own, without waiting for it."""
    return subprocess.Popen(
        [*RADLEDGER, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
