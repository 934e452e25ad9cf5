"""The whole story of sharing, played on processes by the command `radledger` alone.

Four hospitals; a patient who allows and takes back, a clinician elsewhere who asks, is granted, is
stopped and breaks the glass, a data protection officer who reviews; a fifth hospital that is voted
in; and proofs of it all that hold when every node is gone.
"""

import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest

from node.cli.demo.material import shipped_studies
from node.provision import CONFIG, GENESIS
from node.testnet.layout import free_ports

RADLEDGER = (sys.executable, "-m", "node.cli")
HEIGHTS_TO_CHANGE = 64


def radledger(*arguments, config=None, status=0):
    """Run a command with --json as a process of its own, and return its answer."""
    at = () if config is None else ("--config", config)
    words = [*RADLEDGER, *map(str, (*arguments, *at)), "--json"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == status, (arguments, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    return json.loads(done.stdout)


def at_once(do, each):
    """Do the same for each, side by side: most of a command's time is its start."""
    with ThreadPoolExecutor() as pool:
        return list(pool.map(do, each))


class Hospital:
    """A folder with a config, and the people who sign there."""

    def __init__(self, folder):
        self.folder = folder
        self.config = folder / CONFIG
        self.node = None  # its process, if it was started here

    def start(self):
        with (self.folder / "node.log").open("wb") as log:
            self.node = subprocess.Popen([*RADLEDGER, "start", self.config], stderr=log)

    def stop(self):
        self.node.send_signal(signal.SIGTERM)
        assert self.node.wait(timeout=30) == 0

    def __call__(self, *arguments, key=None, status=0):
        signed = () if key is None else ("--key", self.folder / f"{key}.pem")
        return radledger(*arguments, *signed, config=self.config, status=status)

    def code(self, *arguments, key=None):
        return self(*arguments, key=key, status=1)["error"]["code"]

    def enrol(self, name, *roles):
        """Make a person's key, and let the hospital add it; return its public key."""
        file = self.folder / f"{name}.pem"
        made = radledger("member", "keygen", file, config=self.config)
        wanted = [part for role in roles for part in ("--role", role)]
        added = self("member", "add", made["card"], *wanted)
        assert added["member"]["roles"] == sorted(roles)
        return made["public_key"]


@pytest.fixture
def consortium(tmp_path):
    folder = tmp_path / "net"
    answer = radledger("testnet", "up", "--folder", folder, "--nodes", 4)
    assert all(node["readiness"]["is_ready"] for node in answer["nodes"])
    yield folder
    subprocess.run([*RADLEDGER, "testnet", "down", "--folder", folder], check=False)


@pytest.fixture
def newcomer(tmp_path, consortium):
    """Hill has keys, an application and a config, and its node runs; nobody knows it yet."""
    folder = tmp_path / "hill"
    made = radledger("keygen", "hill", "--folder", folder, "--display-name", "Hill Clinic")
    genesis = consortium / GENESIS
    applied = radledger("gov", "application", "--folder", folder, "--genesis", genesis)
    assert applied["node_key"] == made["node_key"]
    listen, rpc = free_ports(2)
    peers = [
        part
        for name in ("north", "south", "east", "west")
        for part in ("--peer", f"{name}={_listens(consortium / name)}")
    ]
    radledger(
        "init", "--candidate", "--folder", folder, "--genesis", genesis,
        "--listen", f"127.0.0.1:{listen}", "--rpc-port", rpc, *peers,
    )  # fmt: skip
    hill = Hospital(folder)
    hill.start()
    yield hill
    hill.node.kill()
    hill.node.wait()


def _listens(folder):
    text = (folder / CONFIG).read_text()
    (port,) = [line.split("=")[1].strip() for line in text.splitlines() if "listen_port" in line]
    return f"127.0.0.1:{port}"


def test_the_whole_story(consortium, newcomer, tmp_path):
    north, south = Hospital(consortium / "north"), Hospital(consortium / "south")
    people = [
        (north, "officer", "data_protection_officer"),
        (north, "patient", "patient"),
        (south, "doctor", "clinician"),
    ]
    _, patient, _ = at_once(lambda person: person[0].enrol(*person[1:]), people)

    study, subject = registers(north)
    publishes(north, study)
    request = shares(north, south, study, subject, patient)
    breaks_the_glass(north, south, study, subject)
    audited(north, study)
    hospitals = [north, south, Hospital(consortium / "east")]
    takes_in(hospitals, newcomer, tmp_path)
    proofs = proves(newcomer, study, subject, request, tmp_path)

    newcomer.stop()
    radledger("testnet", "down", "--folder", consortium)
    assert not any(node["is_running"] for node in _nodes(consortium))
    verifies_offline(proofs, consortium / GENESIS, tmp_path)


def registers(north):
    files = shipped_studies()[0].files
    (done,) = north("study", "register", *files)["studies"]
    assert done["outcome"] == "registered"
    shown = north("study", "show", done["study_id"])["summary"]
    return done["study_id"], shown["subject_id"]


def publishes(north, study):
    question = ("policy", "try", study, "--by", "south", "--purpose", "TREAT", "--uses", 3)
    drafted = north(*question, "--draft", "second-opinion")
    assert (drafted["outcome"], drafted["rule"]) == ("waiting_consent", "north/second-opinion")
    done = north("policy", "publish", "second-opinion", key="officer")
    assert [rule["name"] for rule in done["policies"]["own"]] == ["second-opinion"]


def shares(north, south, study, subject, patient):
    ask = ("access", "request", study, "--purpose", "TREAT", "--uses", 3)
    waiting = south(*ask, key="doctor")
    assert waiting["request"]["state"] == "waiting_consent"
    assert waiting["next"]["institutions"] == ["north"]
    assert waiting["next"]["command"].startswith(f"radledger consent grant {subject}")

    north("consent", "bind", subject, "--patient", patient)
    consent = north("consent", "grant", subject, "--to", "south", key="patient")
    assert consent["consent"]["rules"][0]["by"] == "patient"
    # What waited is granted by the consent itself, and a new request at once: nobody decides.
    first, second = waiting["request"]["id"], south(*ask, key="doctor")["request"]
    assert north("access", "show", first)["state"] == "granted"
    assert (second["state"], second["decided_by"]) == ("granted", "rule")
    assert second["rule"] == "north/second-opinion"

    request = second["id"]
    wrapped = north.folder / "wrapped-key"
    wrapped.write_bytes(os.urandom(120))
    assert (
        north("access", "deliver", request, "--wrapped", wrapped)["request"]["state"] == "delivered"
    )
    assert south("access", "receive", request, key="doctor")["request"]["state"] == "received"
    used = south("access", "use", request, key="doctor")
    assert (used["request"]["uses"], used["request"]["uses_left"]) == (1, 2)

    north("consent", "withdraw", subject, consent["consent_id"], key="patient")
    assert south.code("access", "use", request, key="doctor") == "consent_missing"
    north("consent", "restrict", subject, "--to", "south", key="patient")
    denied = south(*ask, key="doctor", status=1)
    assert (denied["request"]["state"], denied["request"]["rule"]) == ("denied", "consent")
    return request


def breaks_the_glass(north, south, study, subject):
    emergency = ("access", "break-glass", study, "--reason", "unconscious")
    taken = south(*emergency, key="doctor")["request"]
    assert (taken["state"], taken["break_glass"], taken["permitted"]) == ("granted", True, True)
    unreviewed = ("access", "list", "--custodian", "north", "--unreviewed")
    assert [r["id"] for r in north(*unreviewed)["requests"]] == [taken["id"]]
    review = ("access", "review", taken["id"], "--finding", "justified")
    assert north(*review, key="officer")["request"]["finding"] == "justified"


def audited(north, study):
    trail = north("audit", "trail", study)["entries"]
    assert [entry["name"] for entry in reversed(trail)] == [
        "study_registered",
        "access_requested",
        "access_waiting",
        "access_granted",
        "access_requested",
        "access_granted",
        "access_delivered",
        "access_received",
        "access_used",
        "access_requested",
        "access_denied",
        "access_break_glass",
        "access_reviewed",
    ]
    heights = [entry["height"] for entry in trail]
    assert all(later >= earlier for later, earlier in pairwise(heights))


def takes_in(hospitals, hill, tmp_path):
    north, *others = hospitals
    application = hill.folder / "application.json"
    added = decides(north, others, "institution-add", application)
    assert added["state"] == "executed"
    trial = north("gov", "try", "validator-add", application)
    assert (trial["n"], trial["f"], trial["quorum"], trial["added"]) == (5, 1, 4, ["hill"])
    planned = decides(north, others, "validator-add", application)
    start = planned["activation_height"]
    assert start == planned["ended_height"] + HEIGHTS_TO_CHANGE
    anchored = north("audit", "anchor", *logs(north, tmp_path))["anchored"]
    assert anchored[-1]["height"] >= start
    # Hill has followed all along, and now it votes.
    caught_up(hill, anchored[-1]["height"])
    block = hill("block", start)
    assert block["is_sealed"]
    assert block["seals"]["quorum"] == 4  # of five, as the node proves from the genesis on
    status = hill("status")
    assert status["status"]["is_validator"]
    assert [v["institution"] for v in status["validators"]] == [
        "north", "south", "east", "west", "hill",
    ]  # fmt: skip


def decides(proposer, others, *action):
    """Propose, gather a quorum's votes, execute; return the proposal as it is then."""
    made = proposer("gov", "propose", *action)
    proposal = made["proposal"]["id"]
    assert made["next"]["code"] == "vote"
    at_once(lambda hospital: hospital("gov", "vote", proposal, "--approve"), others)
    return proposer("gov", "execute", proposal)["proposal"]


def logs(north, tmp_path):
    """A backlog of daily logs: each becomes an anchor, and each anchor a height."""
    files = []
    now = os.stat(north.config).st_mtime_ns + 10**9
    for number in range(HEIGHTS_TO_CHANGE + 2):
        file = tmp_path / f"audit-{number:03d}.log"
        file.write_text(f"record {number}\nanother\n")
        os.utime(file, ns=(now, now + number * 10**6))
        files.append(file)
    return files


def caught_up(hospital, height):
    """Return once its node has executed `height`."""
    answer = subprocess.run(
        [*RADLEDGER, "events", "--from", str(height), "--to", str(height), "-c", hospital.config],
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert answer.returncode == 0, answer.stderr


def proves(hill, study, subject, request, tmp_path):
    """Let the new hospital make proofs of what happened before it came."""
    asked = {
        "study": (study,),
        "grant": (request,),
        "consent": ("north", subject),
        "absence": ("asked", study, "west"),
    }
    files = {kind: tmp_path / f"{kind}.proof" for kind in asked}
    at_once(lambda kind: hill("proof", "make", kind, *asked[kind], "--output", files[kind]), asked)
    return files


def verifies_offline(proofs, genesis, tmp_path):
    raw = bytearray(proofs["grant"].read_bytes())
    raw[len(raw) // 2] ^= 1
    forged = tmp_path / "forged.proof"
    forged.write_bytes(raw)
    status = dict.fromkeys(proofs.values(), 0) | {forged: 1}
    found = at_once(
        lambda file: radledger("proof", "verify", file, "--genesis", genesis, status=status[file]),
        status,
    )
    *shown, refused = found
    assert "proves nothing" in refused["error"]["lines"][0]
    assert [row["is_there"] for each in shown for row in each["rows"]] == [True, True, True, False]
    for each in shown:
        # Sealed by the set that the vote made: hill is one of five, and four are a quorum.
        assert each["is_proved"]
        assert len(each["sealed_by"]) >= each["quorum"] == 4
        assert each["validators"] == 5
        assert len(each["validator_changes"]) == 1


def _nodes(consortium):
    return radledger("testnet", "status", "--folder", consortium, status=1)["nodes"]
