"""The second part of the demo: a study is shared, by commands that anybody could type.

Its end, a fifth hospital and proofs without any node, is the end of the demo.
"""

import asyncio
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from node.cli.demo.stage import Stage, Step
from node.cli.demo.terminal import Typist, height_in
from node.cli.output import cell
from node.config import load_config
from node.ledger.membership import CHANGE_DELAY
from node.provision import CONFIG, GENESIS
from node.testnet.layout import LOOPBACK, free_ports
from node.testnet.processes import NodeProcess, ProcessTestnet

NEWCOMER = "hill"
ASKED = ("--purpose", "TREAT", "--uses", "3")


@dataclass(slots=True)
class Sharing:
    """North shares a study with south in the consortium of `net`, and hill comes in."""

    folder: Path
    net: ProcessTestnet
    stage: Stage
    typist: Typist
    study: str  # id, in hexadecimal
    newcomer: NodeProcess | None = None
    _subject: str = ""
    _request: str = ""
    _consent: str = ""
    _patient: str = ""
    _activation: int = 0
    _height: int = 0
    _proofs: dict[str, Path] = field(default_factory=dict)

    async def share(self) -> None:
        """Consent, policy, request, withdrawal, emergency. Raises `StepFailed`."""
        await self._enrol()
        await self._publish()
        await self._ask()
        await self._consent_given()
        await self._hand_over()
        await self._take_back()
        await self._refuse()
        await self._break_glass()
        await self._audit()

    async def enlarge(self) -> dict[str, object]:
        """A fifth hospital, and proofs; return what belongs into the summary. Every node is stopped
        then. Raises `StepFailed`."""
        await self._apply()
        await self._vote()
        await self._activate()
        await self._prove()
        await self._verify_offline()
        return {"height": self._height, "voted_in": NEWCOMER, "proofs": len(self._proofs)}

    async def close(self) -> None:
        """End the newcomer's node."""
        if self.newcomer is not None:
            await self.newcomer.kill()

    async def _enrol(self) -> None:
        title = "people get keys: an officer and a patient at north, a doctor at south"
        async with self.stage.step(title) as step:
            people = (
                ("north", "officer", "data_protection_officer"),
                ("north", "patient", "patient"),
                ("south", "doctor", "clinician"),
            )
            for hospital, name, role in people:
                key = self.typist.key(hospital, name)
                await self.typist.run(step, hospital, "member", "keygen", str(key))
                card = f"{key}.card.json"
                added = await self.typist.run(step, hospital, "member", "add", card, "--role", role)
                if name == "patient":
                    self._patient = added["member"]["public_key"]
            shown = await self.typist.run(step, "north", "study", "show", self.study, quiet=True)
            self._subject = shown["summary"]["subject_id"]

    async def _publish(self) -> None:
        async with self.stage.step("north's officer publishes a policy, tried before") as step:
            asked = ("policy", "try", self.study, "--by", "south", *ASKED)
            tried = await self.typist.run(step, "north", *asked, "--draft", "second-opinion")
            step.expect_fields(tried, {"outcome": "waiting_consent"})
            published = await self.typist.run(
                step, "north", "policy", "publish", "second-opinion", by="officer"
            )
            step.note(f"second-opinion counts from height {height_in(published) + 1} on")

    async def _ask(self) -> None:
        async with self.stage.step("a doctor at south asks: it waits for the patient") as step:
            asked = await self.typist.run(
                step, "south", "access", "request", self.study, *ASKED, by="doctor"
            )
            self._request = asked["request"]["id"]
            step.expect_fields(asked["request"], {"state": "waiting_consent"})
            step.note(f"next: {asked['next']['sentence']}")

    async def _consent_given(self) -> None:
        title = "the patient consents with a key: granted by rule, nobody decides"
        async with self.stage.step(title) as step:
            bind = ("consent", "bind", self._subject, "--patient", self._patient)
            await self.typist.run(step, "north", *bind)
            grant = ("consent", "grant", self._subject, "--to", "south")
            given = await self.typist.run(step, "north", *grant, by="patient")
            self._consent = given["consent_id"]
            request = await self._shown(step, "north")
            granted = {"state": "granted", "decided_by": "rule", "permitted": True}
            step.expect_fields(request, granted)
            step.note(f"granted by {request['rule']} up to height {request['expires_height'] - 1}")

    async def _hand_over(self) -> None:
        async with self.stage.step("north delivers the key, south receives and uses") as step:
            wrapped = self.folder / "wrapped-key"
            wrapped.write_bytes(os.urandom(120))
            deliver = ("access", "deliver", self._request, "--wrapped", str(wrapped))
            await self.typist.run(step, "north", *deliver)
            await self.typist.run(step, "south", "access", "receive", self._request, by="doctor")
            used = await self.typist.run(step, "south", "access", "use", self._request, by="doctor")
            step.expect_fields(used["request"], {"state": "received", "uses": 1, "uses_left": 2})

    async def _take_back(self) -> None:
        async with self.stage.step("the patient takes it back: the next use is refused") as step:
            withdraw = ("consent", "withdraw", self._subject, self._consent)
            done = await self.typist.run(step, "north", *withdraw, by="patient")
            use = ("access", "use", self._request)
            refused = await self.typist.run(step, "south", *use, by="doctor", status=1)
            step.expect_fields(refused["error"], {"code": "consent_missing"})
            step.note(f"from height {height_in(done) + 1} on, everywhere: consent_missing")

    async def _refuse(self) -> None:
        async with self.stage.step("the patient refuses south: a new request is denied") as step:
            refuse = ("consent", "restrict", self._subject, "--to", "south")
            await self.typist.run(step, "north", *refuse, by="patient")
            ask = ("access", "request", self.study, *ASKED)
            denied = await self.typist.run(step, "south", *ask, by="doctor", status=1)
            step.expect_fields(denied["request"], {"state": "denied", "rule": "consent"})

    async def _break_glass(self) -> None:
        title = "an emergency: the doctor breaks the glass, the officer reviews"
        async with self.stage.step(title) as step:
            emergency = ("access", "break-glass", self.study, "--reason", "unconscious")
            taken = (await self.typist.run(step, "south", *emergency, by="doctor"))["request"]
            step.expect_fields(taken, {"state": "granted", "permitted": True, "finding": None})
            listing = ("access", "list", "--custodian", "north", "--unreviewed")
            found = await self.typist.run(step, "north", *listing)
            step.expect(
                [each["id"] for each in found["requests"]] == [taken["id"]],
                "this access, to be reviewed",
                found["requests"],
            )
            review = ("access", "review", taken["id"], "--finding", "justified")
            reviewed = await self.typist.run(step, "north", *review, by="officer")
            step.expect_fields(reviewed["request"], {"finding": "justified"})

    async def _audit(self) -> None:
        async with self.stage.step("the audit trail has all of it") as step:
            trail = await self.typist.run(step, "west", "audit", "trail", self.study)
            names = [entry["name"] for entry in reversed(trail["entries"])]
            wanted = {
                "study_registered", "access_waiting", "access_granted", "access_delivered",
                "access_received", "access_used", "access_denied", "access_break_glass",
                "access_reviewed",
            }  # fmt: skip
            step.expect(wanted <= set(names), cell(tuple(sorted(wanted))), cell(tuple(names)))
            step.note(f"{len(names)} events: {', '.join(names)}")

    async def _apply(self) -> None:
        title = f"{NEWCOMER} makes keys and an application, and starts a node"
        async with self.stage.step(title) as step:
            home, genesis = self.folder / NEWCOMER, str(self.folder / GENESIS)
            await self.typist.run(step, "", "keygen", NEWCOMER, "--folder", str(home), who=NEWCOMER)
            apply = ("gov", "application", "--folder", str(home), "--genesis", genesis)
            await self.typist.run(step, "", *apply, who=NEWCOMER)
            listen, rpc = free_ports(2)
            config = ["--listen", f"{LOOPBACK}:{listen}", "--rpc-port", str(rpc)]
            for node in self.net.nodes:
                address = f"{LOOPBACK}:{node.config.network.listen_port}"
                config += ["--peer", f"{node.name}={address}"]
            init = ("init", "--candidate", "--folder", str(home), "--genesis", genesis)
            await self.typist.run(step, "", *init, *config, quiet=True)
            self.newcomer = NodeProcess(load_config(home / CONFIG), home)
            await self.newcomer.start()
            step.note(f"process {self.newcomer.pid}; the others do not know its key yet")

    async def _vote(self) -> None:
        async with self.stage.step(f"the consortium takes {NEWCOMER} in by two votes") as step:
            application = str(self.folder / NEWCOMER / "application.json")
            await self._decide(step, "institution-add", application)
            trial = await self.typist.run(step, "north", "gov", "try", "validator-add", application)
            step.expect_fields(trial, {"n": 5, "f": 1, "quorum": 4, "problem": None})
            step.note(f"after it: N = 5, quorum 4; live now: {', '.join(trial['live'])}")
            decided = await self._decide(step, "validator-add", application)
            self._activation = decided["activation_height"]
            step.note(f"it votes from height {self._activation} on, {CHANGE_DELAY} heights later")

    async def _decide(self, step: Step, *action: str) -> dict[str, Any]:
        made = await self.typist.run(step, "north", "gov", "propose", *action)
        proposal = made["proposal"]["id"]
        for hospital in ("south", "east"):
            await self.typist.run(step, hospital, "gov", "vote", proposal, "--approve")
        passed = await self.typist.run(step, "north", "gov", "show", proposal, quiet=True)
        step.expect_fields(passed, {"state": "passed"})
        done = await self.typist.run(step, "north", "gov", "execute", proposal)
        step.expect_fields(done["proposal"], {"state": "executed"})
        found: dict[str, Any] = done["proposal"]
        return found

    async def _activate(self) -> None:
        title = f"north anchors {CHANGE_DELAY + 2} audit logs; {NEWCOMER} follows, and votes"
        async with self.stage.step(title) as step:
            logs = await asyncio.to_thread(self._logs)
            done = (await self.typist.run(step, "north", "audit", "anchor", *logs))["anchored"]
            last = done[-1]["height"]
            step.expect(last >= self._activation, f"{self._activation} or above", last)
            await self.typist.caught_up(NEWCOMER, last)
            status = await self.typist.run(step, NEWCOMER, "status")
            step.expect_fields(status["status"], {"is_validator": True})
            self._height = status["status"]["height"]
            voters = [validator["institution"] for validator in status["validators"]]
            step.note(f"height {self._height}, voters: {', '.join(voters)}")

    async def _prove(self) -> None:
        async with self.stage.step(f"{NEWCOMER} makes proofs of what was before it") as step:
            asked = {
                "grant": (self._request,),
                "consent": ("north", self._subject),
                "absence": ("asked", self.study, "west"),
            }
            for kind, words in asked.items():
                self._proofs[kind] = file = self.folder / f"{kind}.proof"
                make = ("proof", "make", kind, *words, "--output", str(file))
                made = await self.typist.run(step, NEWCOMER, *make)
                step.note(f"{made['bytes']} bytes: {' '.join(made['statement'])}")

    async def _verify_offline(self) -> None:
        title = "every node is stopped: the proofs still hold, a forged one does not"
        async with self.stage.step(title) as step:
            await asyncio.gather(self.net.stop(), self._newcomer().stop())
            genesis = str(self.folder / GENESIS)
            for file in self._proofs.values():
                verify = ("proof", "verify", str(file), "--genesis", genesis)
                held = await self.typist.run(step, "", *verify, who="auditor")
                step.expect_fields(held, {"is_proved": True, "quorum": 4})
            step.note(f"sealed by {', '.join(held['sealed_by'])}")
            forged = self.folder / "forged.proof"
            await asyncio.to_thread(_forge, file, forged)
            verify = ("proof", "verify", str(forged), "--genesis", genesis)
            await self.typist.run(step, "", *verify, who="auditor", status=1)
            step.note("the last one has one bit changed, and proves nothing")

    async def _shown(self, step: Step, hospital: str) -> Any:
        return await self.typist.run(step, hospital, "access", "show", self._request, quiet=True)

    def _newcomer(self) -> NodeProcess:
        if self.newcomer is None:
            raise RuntimeError("the newcomer has no node yet")
        return self.newcomer

    def _logs(self) -> list[str]:
        """Write a backlog of logs: each becomes an anchor, and each anchor a height."""
        config = self.folder / "north" / CONFIG
        begin = config.stat().st_mtime_ns + 10**9
        files = []
        for number in range(CHANGE_DELAY + 2):
            file = self.folder / f"audit-{number:03d}.log"
            file.write_text(f"record {number}\n")
            os.utime(file, ns=(begin, begin + number * 10**6))
            files.append(str(file))
        return files


def _forge(file: Path, forged: Path) -> None:
    """Copy a proof with one bit changed in the middle."""
    shutil.copyfile(file, forged)
    raw = bytearray(forged.read_bytes())
    raw[len(raw) // 2] ^= 1
    forged.write_bytes(raw)
