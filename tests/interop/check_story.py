"""The whole story between two hospitals, each with Orthanc as its PACS, by commands alone.

Orthanc of A sends a study; B finds it, asks, is granted by policy and consent, fetches; Orthanc of
B holds it; read back from there it is the registered image; consent is withdrawn, and nothing more
is given. Once undisturbed, and once with B's gateway killed while it fetches and while it delivers.
"""

import json
import shutil
import signal
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.interop.check_retrieval import post
from tests.interop.hospital import TITLE, Hospital, consortium, told, wait_for
from tests.interop.series import head_ct
from tests.interop.tools import Orthanc, free_port, orthanc

NAME = "story: from the PACS of one hospital to the PACS of another, and what the ledger says"
PACKAGES = {"orthanc": "Orthanc"}
SLOW_BYTES_PER_S = 1_500_000


_TRAIL = (
    "study_registered",
    "access_requested",
    "access_granted",
    "access_delivered",
    "access_received",
    "access_used",
)


@dataclass(frozen=True)
class World:
    """Two hospitals of four, with their PACS."""

    a: Hospital
    b: Hospital
    pacs_a: Orthanc
    pacs_b: Orthanc
    genesis: Path
    work: Path


def run(work: Path) -> list[str]:
    """Check, and return what was found."""
    lines = []
    for name, play in (("undisturbed", _undisturbed), ("killed", _killed)):
        with _world(work / name, is_slow=play is _killed) as world:
            lines += [f"{name}:", *(f"  {line}" for line in play(world))]
        # Two of these may be more than a small disk holds.
        shutil.rmtree(work / name)
    return lines


@contextmanager
def _world(folder: Path, *, is_slow: bool):
    folder.mkdir()
    with ExitStack() as opened:
        a, b, *_ = opened.enter_context(consortium(folder / "net"))
        pacs = []
        for hospital in (a, b):
            title = f"{hospital.name.upper()}PACS"
            ports = free_port(), free_port()
            peer = {"ae_title": title, "host": "127.0.0.1", "port": ports[1]}
            peers = {"gateway": (TITLE, hospital.dicom)}
            arguments = folder / title, title, peers, ports
            pacs.append(opened.enter_context(orthanc(*arguments)))
            other = b if hospital is a else a
            if hospital is a:
                exchange = {"rate_bytes_per_second": SLOW_BYTES_PER_S} if is_slow else {}
            else:
                peer["takes_fetched"] = True
                exchange = {"fetch_at_once": is_slow}
            hospital.configure([peer], [other], quiet_ms=1_000, exchange=exchange)
        for hospital in (a, b):
            hospital.start()
        yield World(a, b, *pacs, folder / "net" / "genesis.json", folder)


def _undisturbed(world: World) -> list[str]:
    a, b = world.a, world.b
    study, subject, lines = _registered_and_found(world)
    request, key = _granted(world, study, uses=3)
    received = b.tell("study", "fetch", request, "--wait", 60)["received"]
    assert received["root"] == a.tell("study", "show", study)["versions"][0]["root"], received
    lines.append(
        f"{b.name} fetched {received['instances']} instances, {received['bytes']} bytes as "
        f"{received['bytes_fetched']} encrypted, equal to the root on the ledger"
    )
    lines += [*_arrived(world, study), *_again_by_hand(world, study, request)]
    lines += _refused_after_withdrawal(world, study, subject, request, key)
    return [*lines, *_told_by_the_ledger(world, study, request)]


def _killed(world: World) -> list[str]:
    b = world.b
    study, subject, lines = _registered_and_found(world)
    chunks = b.folder / "studies" / "chunks"
    request, key = _granted(world, study, uses=1)
    # Whole chunks lie under their digests.
    some = wait_for(lambda: len(_whole(chunks)), 60, "the first chunk")
    b.end(signal.SIGKILL)
    kept = {path.name: path.stat().st_mtime_ns for path in _whole(chunks)}
    state = b.tell("access", "show", request)["state"]
    assert state == "delivered", f"the fetch was over when it was killed: {state}"
    b.start()
    held = wait_for(lambda: _count(world.pacs_b), 120, "the first instance in the PACS")
    b.end(signal.SIGKILL)
    events = [event for event in b.happened() if event[0] == "delivered"]
    b.start()
    lines.append(
        f"{b.name}'s gateway killed with {some} chunks fetched, and again with {held} instances "
        f"in the PACS{'' if events else ', none of them reported as delivered'}"
    )
    lines += _arrived(world, study)
    again = {path.name: path.stat().st_mtime_ns for path in _whole(chunks)}
    assert kept.items() <= again.items(), "a chunk that was there is another one now"
    lines.append(f"of {len(again)} chunks {len(kept)} were kept over the first kill")
    lines += _refused_after_withdrawal(world, study, subject, request, key)
    lines += _told_by_the_ledger(world, study, request)
    uses = b.tell("access", "show", request)["uses"]
    assert uses == 1, f"{uses} uses were counted for one PACS"
    return lines


def _registered_and_found(world: World) -> tuple[str, str, list[str]]:
    """A's PACS sends; A consents and publishes; B finds. Return study, subject and lines."""
    a, b = world.a, world.b
    paths = head_ct()
    for path in paths:
        world.pacs_a.post("/instances", path.read_bytes())
    (found,) = world.pacs_a.get("/studies")
    post(world.pacs_a, "/modalities/gateway/store", {"Resources": [found]})
    a.tell("gateway", "register-now")

    def kept():
        is_empty = a.tell("gateway", "status")["usage"]["files"] == 0
        return a.tell("study", "search")["studies"] if is_empty else None

    (summary,) = wait_for(kept, 120, "the registration")
    study, subject = summary["id"], summary["subject_id"]
    rule = 'request.purpose == "TREAT"'
    words = ("--name", "treatment", "--effect", "permit", "--consent", "required")
    a.tell("policy", "publish", *words, "--condition", rule)
    (world.work / "form").write_text("signed")
    terms = ("--to", b.name, "--purpose", "TREAT", "--form", world.work / "form")
    nothing = b.tell("study", "find", "--modality", "CT", "--at", a.name)["studies"]
    assert nothing == [], "found without consent"
    a.tell("consent", "grant", subject, *terms)

    def found_there():
        return b.tell("study", "find", "--modality", "CT", "--at", a.name)["studies"]

    (row,) = wait_for(found_there, 60, "the finding")
    assert (row["study_id"], row["outcome"]) == (study, "granted"), row
    lines = [
        f"{a.name}: {len(paths)} instances from Orthanc registered as study {study[:8]}…",
        f"{b.name} finds it: {' '.join(f'{k}={v[0]}' for k, v in row['told'].items())}, "
        f"would be {row['outcome']}; without consent it found nothing",
    ]
    return study, subject, lines


def _granted(world: World, study: str, uses: int) -> tuple[str, Path]:
    """A clinician of B asks; return the request's id and the clinician's key."""
    b = world.b
    key = world.work / "clinician.pem"
    card = b.tell("member", "keygen", key)["card"]
    b.tell("member", "add", card, "--role", "clinician")
    terms = ("--purpose", "TREAT", "--key", key, "--uses", uses)
    request = b.tell("access", "request", study, *terms)["request"]
    assert (request["state"], request["decided_by"]) == ("granted", "rule"), request
    assert request["rule"].endswith("treatment"), request
    return request["id"], key


def _arrived(world: World, study: str) -> list[str]:
    """B's PACS holds the study; read back from there, it is what A registered."""
    a, b, pacs = world.a, world.b, world.pacs_b
    count = len(head_ct())
    title = pacs.title

    def delivered():
        return ("delivered", title, f"delivered {count}") in b.happened() or (
            _count(pacs) == count and any(e[:2] == ("delivered", title) for e in b.happened())
        )

    wait_for(delivered, 120, f"the delivery to {title}")
    instances = pacs.get("/instances")
    assert len(instances) == count, f"{title} has {len(instances)} of {count}"
    folder = world.work / "back"
    folder.mkdir(exist_ok=True)
    for name in instances:
        (folder / f"{name}.dcm").write_bytes(pacs.get(f"/instances/{name}/file"))
    report = a.tell("study", "verify", folder)
    assert report["intact"], report
    (checked,) = report["studies"]
    assert checked["study_id"] == study, checked
    sentences = sorted({_sentence(each) for each in checked["instances"]})
    return [f"{title} holds all {count}; read back from it, `study verify` says: {sentences}"]


def _again_by_hand(world: World, study: str, request: str) -> list[str]:
    b, title = world.b, world.pacs_b.title
    done = b.tell("study", "deliver", study, "--to", title)["progress"]
    count = len(head_ct())
    assert (done["state"], done["verified"]) == ("done", count), done
    uses = b.tell("access", "show", request)["uses"]
    assert uses == 1, f"{uses} uses were counted for one PACS"
    return [f"`study deliver --to {title}`: {count} verified; still one use counted"]


def _refused_after_withdrawal(
    world: World, study: str, subject: str, request: str, key: Path
) -> list[str]:
    a, b = world.a, world.b
    (rule,) = a.tell("consent", "show", subject)["rules"]
    uses = b.tell("access", "show", request)["uses_max"]
    form = world.work / "form"
    a.tell("consent", "withdraw", subject, rule["consent_id"], "--form", form)
    terms = ("--purpose", "TREAT", "--key", key)
    second = b.tell("access", "request", study, *terms)["request"]
    assert second["state"] == "waiting_consent", second
    refusal = b.tell("study", "fetch", second["id"], status=3)["error"]["lines"][0]
    first = b.tell("study", "fetch", request, status=1)["error"]
    assert first["code"] == ("uses_spent" if uses == 1 else "consent_missing"), first
    after = b.tell("study", "deliver", study, "--to", world.pacs_b.title, status=1)
    assert after["progress"]["reason"] == "withheld", after
    return [
        f"consent withdrawn; asked again: {second['state']}, by the rule {second['rule']}",
        f"fetch of that: {refusal}",
        f"fetch by the first grant: {first['lines'][0]}",
        f"delivery once more: {after['progress']['reason']}",
    ]


def _told_by_the_ledger(world: World, study: str, request: str) -> list[str]:
    b = world.b
    trail = [entry["name"] for entry in b.tell("audit", "trail", study)["entries"]][::-1]
    assert trail[:6] == list(_TRAIL), trail
    end = b.tell("status")["status"]["height"]
    told_by = told("events", "--from", 1, "--to", end, "--json", "-c", b.config, as_json=False)
    lines = []
    for block in map(json.loads, told_by.splitlines()):
        names = [each["event"]["name"] for each in block["events"]]
        lines += [f"height {block['height']:>3}  {', '.join(names)}"]
    proof = world.work / "grant.proof"
    b.tell("proof", "make", "grant", request, "--output", proof)
    proved = told("proof", "verify", proof, "--genesis", world.genesis)
    assert proved["is_proved"], proved
    return ["the ledger:", *lines, f"proved offline: {' '.join(proved['statement'])}"]


def _sentence(instance: dict) -> str:
    return ": ".join([instance["verdict"], *instance["details"]])


def _count(pacs: Orthanc) -> int:
    return int(pacs.get("/statistics")["CountInstances"])


def _whole(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if len(path.name) == 64]
