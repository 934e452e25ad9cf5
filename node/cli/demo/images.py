"""The third part of the demo: images go from one hospital's scanner to another hospital's PACS.

East and west run gateways beside their nodes. What is said to them is said by DICOM, or by
commands that anybody could type.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from node.cli.demo.equipment import PACS, Pacs, same_pixels, send, sop_instance_uid
from node.cli.demo.gateways import MASTER_KEY, GatewayProcess, configure
from node.cli.demo.stage import Stage, Step
from node.cli.demo.terminal import Typist
from node.testnet.layout import free_ports

CUSTODIAN, GRANTEE = "east", "west"
ASKED = ("--purpose", "TREAT", "--uses", "3")
_POLL_S = 0.1
_WAIT_S = "40"  # for a grant and a key


@dataclass(slots=True)
class Images:
    """The study of `files` is taken at east, and read at west."""

    folder: Path
    stage: Stage
    typist: Typist
    files: Sequence[Path]
    pacs: Pacs = field(default_factory=Pacs)
    gateways: dict[str, GatewayProcess] = field(default_factory=dict)
    _study: str = ""
    _subject: str = ""
    _consent: str = ""
    _requests: list[str] = field(default_factory=list)

    async def open(self) -> None:
        """Start both gateways and the PACS: their keys are proved meanwhile. Raises
        `StepFailed`."""
        title = f"{CUSTODIAN} and {GRANTEE} open gateways; {GRANTEE} has a PACS"
        async with self.stage.step(title) as step:
            names = (CUSTODIAN, GRANTEE)
            *exchanges, pacs = free_ports(len(names) + 1)
            await asyncio.to_thread(self.pacs.start, pacs, self.files)
            ports = dict(zip(names, exchanges, strict=True))
            for name in names:
                home = self.folder / name
                await self._run(step, name, "store", "keygen", str(home / MASTER_KEY), alone=True)
                others = {other: port for other, port in ports.items() if other != name}
                configure(home, ports[name], pacs, others)
                self.gateways[name] = GatewayProcess(name, home)
            await asyncio.gather(*(gateway.start() for gateway in self.gateways.values()))
            for name, gateway in self.gateways.items():
                step.note(f"{name}$ radledger gateway start (process {gateway.pid})")

    async def exchange(self) -> dict[str, object]:
        """Go through all steps and return what belongs into the summary. Raises `StepFailed`."""
        await self._receive()
        await self._agree()
        await self._find()
        await self._fetch()
        await self._deliver()
        await self._withdraw()
        await self._erase()
        await asyncio.gather(*(gateway.stop() for gateway in self.gateways.values()))
        await self._stop_pacs()
        return {"exchanged": len(self.files)}

    async def close(self) -> None:
        """End both gateways and the PACS."""
        await asyncio.gather(*(gateway.kill() for gateway in self.gateways.values()))
        await self._stop_pacs()

    async def _stop_pacs(self) -> None:
        await asyncio.to_thread(self.pacs.stop)

    async def _receive(self) -> None:
        count = len(self.files)
        title = f"a scanner sends {count} images to {CUSTODIAN} by C-STORE: registered by itself"
        async with self.stage.step(title) as step:
            before = await self._registered(step)
            await asyncio.to_thread(send, self.files, self.gateways[CUSTODIAN].port)
            new: dict[str, Any] = {}

            async def is_new() -> bool:
                new.update(await self._registered(step))
                return len(new) > len(before)

            await _until(is_new)
            self._study = next(study for study in new if study not in before)
            self._subject = new[self._study]["subject_id"]
            step.note(f"study {self._study}, custodian {CUSTODIAN}; encrypted in its store")

    async def _agree(self) -> None:
        title = f"{CUSTODIAN} publishes a policy, and records a consent that was signed on paper"
        async with self.stage.step(title) as step:
            await self._run(step, CUSTODIAN, "policy", "publish", "second-opinion")
            form = self._signed("consent.pdf")
            grant = ("consent", "grant", self._subject, "--to", GRANTEE, "--form", form)
            given = await self._run(step, CUSTODIAN, *grant)
            self._consent = given["consent_id"]
            doctor = str(self.typist.key(GRANTEE, "doctor"))
            await self._run(step, GRANTEE, "member", "keygen", doctor)
            card = f"{doctor}.card.json"
            await self._run(step, GRANTEE, "member", "add", card, "--role", "clinician")

    async def _find(self) -> None:
        title = f"{GRANTEE} asks the other hospitals, and finds it"
        async with self.stage.step(title) as step:
            find = ("study", "find", "--modality", "CT")
            found: dict[str, Any] = {}

            async def is_found() -> bool:
                answer = await self._run(step, GRANTEE, *find, quiet=True)
                found.update({each["study_id"]: each for each in answer["studies"]})
                return self._study in found

            await _until(is_found)
            step.note(f"{GRANTEE}$ radledger {' '.join(find)}")
            seen = found[self._study]
            told = ", ".join(f"{name} {'/'.join(v)}" for name, v in sorted(seen["told"].items()))
            step.note(f"{CUSTODIAN} would grant it, and tells: {told}")

    async def _fetch(self) -> None:
        title = f"a doctor at {GRANTEE} asks: granted by rule, fetched, verified"
        async with self.stage.step(title) as step:
            await self._ask(step)
            fetch = ("study", "fetch", self._requests[0], "--wait", _WAIT_S)
            received = (await self._run(step, GRANTEE, *fetch))["received"]
            step.expect_fields(received, {"instances": len(self.files)})
            step.note(
                f"{received['bytes_fetched']} bytes of ciphertext came; every file is the "
                "registered one"
            )

    async def _ask(self, step: Step) -> None:
        ask = ("access", "request", self._study, *ASKED)
        asked = await self._run(step, GRANTEE, *ask, by="doctor")
        granted = {"state": "granted", "decided_by": "rule", "permitted": True}
        step.expect_fields(asked["request"], granted)
        self._requests.append(asked["request"]["id"])

    async def _deliver(self) -> None:
        title = f"{GRANTEE}'s PACS gets the images by C-STORE, read back by C-GET"
        async with self.stage.step(title) as step:
            deliver = ("study", "deliver", self._study, "--to", PACS)
            done = (await self._run(step, GRANTEE, *deliver))["progress"]
            count = len(self.files)
            step.expect_fields(done, {"verified": count, "refused": 0, "altered": 0})
            kept = [self.pacs.kept.get(sop_instance_uid(file)) for file in self.files]
            same = sum(map(same_pixels, self.files, kept))
            step.expect(same == count, f"{count} images with the scanner's pixels", same)
            step.note(f"{count} verified by reading back; pixel for pixel what the scanner sent")

    async def _withdraw(self) -> None:
        title = "the consent is withdrawn: a grant that was not fetched gives nothing"
        async with self.stage.step(title) as step:
            await self._ask(step)
            second = self._requests[1]

            async def is_delivered() -> bool:
                shown = await self._run(step, GRANTEE, "access", "show", second, quiet=True)
                return bool(shown["state"] == "delivered")

            await _until(is_delivered)
            step.note(f"the study's key is delivered to {GRANTEE} a second time")
            form = self._signed("withdrawal.pdf")
            withdraw = ("consent", "withdraw", self._subject, self._consent, "--form", form)
            await self._run(step, CUSTODIAN, *withdraw)
            for request in (second, self._requests[0]):
                fetch = ("study", "fetch", request, "--to", str(self.folder / "images"))
                refused = await self._run(step, GRANTEE, *fetch, status=1)
                step.expect_fields(refused["error"], {"code": "consent_missing"})
            step.note("the next fetch, and the one before: consent_missing")

    async def _erase(self) -> None:
        title = f"{CUSTODIAN} erases the study; {GRANTEE} destroys its copy and attests"
        async with self.stage.step(title) as step:
            erase = ("study", "erase", self._study, "--reason", "subject_request")
            await self._run(step, CUSTODIAN, *erase)
            wanted = {"study_erased", "study_erasure_attested"}
            seen: set[str] = set()

            async def is_attested() -> bool:
                trail = await self._run(step, GRANTEE, "audit", "trail", self._study, quiet=True)
                seen.update(entry["name"] for entry in trail["entries"])
                return wanted <= seen and not await asyncio.to_thread(self._blobs)

            await _until(is_attested)
            for name in self.gateways:
                used = await self._run(step, name, "store", "usage")
                step.expect_fields(used, {"studies": 0, "chunks": 0})
            step.note("neither store has a key, an index or a chunk of it")

    def _signed(self, name: str) -> str:
        """Return the file of a form that the patient has signed."""
        form = self.folder / name
        form.write_bytes(b"signed on paper")
        return str(form)

    def _blobs(self) -> list[Path]:
        folders = [self.folder / name / "studies" for name in self.gateways]
        return [
            path
            for folder in folders
            for kind in ("chunks", "index")
            for path in (folder / kind).rglob("*")
            if path.is_file()
        ]

    async def _registered(self, step: Step) -> dict[str, Any]:
        """Return the custodian's studies by id."""
        search = ("study", "search", "--custodian", CUSTODIAN)
        page = await self._run(step, GRANTEE, *search, quiet=True)
        return {study["id"]: study for study in page["studies"]}

    async def _run(
        self, step: Step, hospital: str, *words: str, alone: bool = False, **options: Any
    ) -> Any:
        """Type a command at a hospital; `alone`, it needs no config."""
        if alone:
            return await self.typist.run(step, "", *words, who=hospital, **options)
        return await self.typist.run(step, hospital, *words, **options)


async def _until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Return once the condition holds; the step's time bounds it."""
    while not await condition():  # noqa: ASYNC110 - other processes tell us no other way
        await asyncio.sleep(_POLL_S)
