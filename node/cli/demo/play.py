"""What happens in the demo, step by step, and what has to hold. `sharing` is the second part
and `images` the third."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from node.cli.context import Desk
from node.cli.demo.images import Images
from node.cli.demo.material import Series, alter_pixel, copy_of, shipped_studies
from node.cli.demo.sharing import Sharing
from node.cli.demo.stage import Stage, Step
from node.cli.demo.terminal import Terminal, Typist
from node.cli.registrar import opened, vault_of
from node.cli.seals import Seals, sealed_by
from node.cli.testnet import NodeState, states_of
from node.imaging.verify import StudyStatus, Verdict
from node.ledger.block import OK
from node.ledger.genesis import Genesis
from node.ledger.queries import BlockView, StudyQuery
from node.rpc.client import Client
from node.studies import Registration, register, verify
from node.testnet.processes import NodeProcess, ProcessTestnet

HOSPITALS = 4
STUDIES = 4
_POLL_S = 0.01


@dataclass(frozen=True, slots=True)
class Registered:
    """A study on the chain, and who put it there."""

    custodian: str
    study_id: bytes
    height: int
    series: Series


class Play:
    """Four hospitals in `folder`."""

    def __init__(self, folder: Path, stage: Stage) -> None:
        self._folder = folder
        self._stage = stage
        self._registered: list[Registered] = []
        self._terminal = Terminal()
        self._sharing: Sharing | None = None
        self._images: Images | None = None
        self.net: ProcessTestnet | None = None

    async def perform(self) -> dict[str, object]:
        """Go through all steps and return the summary. Raises `StepFailed`."""
        self._terminal.warm_up()
        first, second, third, fourth = await self._find_material()
        await self._found_consortium()
        await self._start_nodes()
        await self._register(first, "north")
        await self._register(second, "south")
        await self._search()
        await self._verify(first)
        await self._alter(first)
        dead, view = await self._lose_primary(third)
        await self._bring_back(dead)
        states = await self._compare()
        study = self._registered[0].study_id.hex()
        typist = Typist(self._folder, self._terminal)
        self._sharing = Sharing(self._folder, self._nodes(), self._stage, typist, study)
        self._images = Images(self._folder, self._stage, typist, fourth.files)
        await self._images.open()
        await self._sharing.share()
        exchanged = await self._images.exchange()
        enlarged = await self._sharing.enlarge()
        return self._summary(dead, view, states) | exchanged | enlarged

    async def close(self) -> None:
        """End all processes."""
        if self._images is not None:
            await self._images.close()
        if self._sharing is not None:
            await self._sharing.close()
        if self.net is not None:
            await self.net.kill()

    async def _find_material(self) -> list[Series]:
        async with self._stage.step("find the DICOM series that come with pydicom") as step:
            studies = await asyncio.to_thread(shipped_studies)
            found = [series.text for series in studies]
            wanted = f"{STUDIES} studies of several images each"
            step.expect(len(studies) >= STUDIES, wanted, found or "none")
            for series in studies[:STUDIES]:
                step.note(series.text)
            return studies[:STUDIES]

    async def _found_consortium(self) -> None:
        async with self._stage.step(
            "four hospitals make keys, cards, one genesis, configs"
        ) as step:
            self.net = await asyncio.to_thread(ProcessTestnet, self._folder, HOSPITALS)
            genesis = self._genesis()
            validators = genesis.validator_set()
            step.note(f"chain id {genesis.chain_id.hex()}")
            step.note(f"N = {validators.n}, f = {validators.f}, quorum {validators.quorum}")

    async def _start_nodes(self) -> None:
        async with self._stage.step("four node processes start and meet over mutual TLS") as step:
            await self._nodes().start()
            await self._nodes().wait_ready()
            pids = ", ".join(f"{node.name} {node.pid}" for node in self._nodes().nodes)
            step.note(f"processes: {pids}")

    async def _register(self, series: Series, name: str) -> None:
        title = f"{name} registers its {series.modality} study of {len(series.files)} instances"
        async with self._stage.step(title) as step:
            registration = await self._submit(step, series, name)
            await self._show_seals(step, registration, name)

    async def _search(self) -> None:
        wanted = self._registered[0]
        async with self._stage.step("west finds north's study by search") as step:
            async with self._desk("west").client() as client:
                await _reach(client, wanted.height)
                page = await client.search(StudyQuery(modality=wanted.series.modality))
                seen = [(study.custodian, study.id) for study in page.studies]
                expected = (wanted.custodian, wanted.study_id)
                step.expect(expected in seen, f"{expected}", seen)
            step.note(f"study {wanted.study_id.hex()}, custodian {wanted.custodian}")

    async def _verify(self, series: Series) -> None:
        async with self._stage.step("north verifies its files against the chain") as step:
            desk = self._desk("north")
            async with desk.client() as client:
                with vault_of(desk) as vault:
                    report = await verify(series.files, client, vault)
            study = report.studies[0]
            same = study.count(Verdict.SAME_FILE)
            seen = f"{study.status.value}, {same} of {len(series.files)} the same file"
            intact = report.intact and same == len(series.files)
            step.expect(intact, "intact, all the same file", seen)
            step.note(seen)

    async def _alter(self, series: Series) -> None:
        async with self._stage.step(
            "one bit of one pixel in a copy is flipped: verify sees it"
        ) as step:
            copies = await asyncio.to_thread(copy_of, series, self._folder / "copy")
            victim = copies[len(copies) // 2]
            place = await asyncio.to_thread(alter_pixel, victim)
            desk = self._desk("north")
            async with desk.client() as client:
                with vault_of(desk) as vault:
                    report = await verify(copies, client, vault)
            study = report.studies[0]
            altered = [i for i in study.instances if i.verdict is Verdict.ALTERED]
            sentences = [f"{Path(i.name).name} ({i.label}): {i.sentence}" for i in altered]
            step.expect(
                study.status is StudyStatus.ALTERED
                and [i.name for i in altered] == [str(victim)]
                and all("pixels" in detail for i in altered for detail in i.details)
                and study.count(Verdict.SAME_FILE) == len(copies) - 1,
                f"altered: the pixels of {victim.name} and nothing else",
                f"{study.status.value}: {sentences}",
            )
            step.note(f"byte {place} of {victim.name}")
            step.note(f"{study.status.value}: {sentences[0]}; the others are the same file")

    async def _lose_primary(self, series: Series) -> tuple[str, int]:
        async with self._desk("east").client() as client:
            before = await client.status()
        dead = before.primary
        # Whoever is not the primary, and holds no vault open yet.
        actor = next(name for name in ("east", "west") if name != dead)
        title = f"{dead}, the primary, is killed (-9); {actor} registers a study all the same"
        async with self._stage.step(title) as step:
            began = time.monotonic()
            await self._nodes().node(dead).kill()
            async with self._desk(actor).client() as client:
                watching = asyncio.create_task(_next_view(client, before.view))
                try:
                    registration = await self._submit(step, series, actor)
                    await watching
                finally:
                    watching.cancel()
                seconds = time.monotonic() - began
                after = await client.status()
            seals = await self._show_seals(step, registration, actor)
            step.expect(after.view > before.view, f"a view above {before.view}", after.view)
            step.expect(dead not in seals.institutions, f"no seal of {dead}", seals.institutions)
            step.note(f"view {before.view} -> {after.view}, primary {dead} -> {after.primary}")
            step.note(f"from the kill to finality under the new primary: {seconds:.2f} s")
            return dead, after.view

    async def _bring_back(self, dead: str) -> None:
        async with self._stage.step(f"{dead} comes back and catches up") as step:
            node = self._nodes().node(dead)
            await node.start()
            began = time.monotonic()
            other = next(n for n in self._nodes().nodes if n.name != dead)
            async with other.client() as living:
                wanted = await living.head()
            async with node.client() as client:
                digest = await _digest_at(client, wanted.height)
                step.expect(digest == wanted.digest, wanted.digest.hex(), digest.hex())
                missed = self._registered[-1]
                view = await client.study(missed.study_id)
                step.expect(view is not None, "the study that it missed", "no such study")
            caught_up = time.monotonic() - began
            await self._nodes().wait_ready()
            step.note(
                f"height {wanted.height}, header {digest.hex()[:16]}..., as the others, "
                f"{caught_up:.2f} s after it listened"
            )

    async def _compare(self) -> list[NodeState]:
        async with self._stage.step("all four agree") as step:
            nodes = self._nodes().nodes
            height = max(await asyncio.gather(*map(_height, nodes)))
            blocks = await asyncio.gather(*(_block_at(node, height) for node in nodes))
            digests = {block.header_digest for block in blocks}
            step.expect(len(digests) == 1, "one header", [digest.hex() for digest in digests])
            states = await states_of(nodes)
            ready = [s.institution for s in states if s.readiness and s.readiness.is_ready]
            step.expect(len(ready) == HOSPITALS, "four nodes that are ready", ready)
            step.note(f"height {height}, header {blocks[0].header_digest.hex()}")
            step.note(f"state root {blocks[0].header.state_root.hex()}")
            return states

    async def _submit(self, step: Step, series: Series, name: str) -> Registration:
        desk = self._desk(name)
        async with desk.client() as client, opened(desk) as (vault, signer):
            result = await register(series.files, client, vault, signer)
        step.expect(len(result.studies) == 1, "one study", len(result.studies))
        registration = result.studies[0]
        submitted, manifest = registration.submitted, registration.prepared.manifest
        if submitted is None or manifest is None or submitted.height is None:
            step.fail("a final transaction", registration.refusal)
        step.expect(submitted.code == OK, OK, f"{submitted.code} {registration.refusal}")
        step.expect(
            len(manifest.instances) == len(series.files),
            f"{len(series.files)} instances",
            len(manifest.instances),
        )
        self._registered.append(Registered(name, manifest.study_id, submitted.height, series))
        step.note(
            f"study {manifest.study_id.hex()} final at height {submitted.height}, "
            f"{registration.waited_ms:.0f} ms after it was sent"
        )
        return registration

    async def _show_seals(self, step: Step, registration: Registration, name: str) -> Seals:
        height = registration.submitted.height if registration.submitted else None
        async with self._desk(name).client() as client:
            block = await _sealed_block(client, height)
        seals = sealed_by(block, self._genesis())
        step.expect(seals.is_sealed, f"{seals.quorum} valid seals", seals)
        step.note(f"sealed by {', '.join(seals.institutions)}: signatures checked")
        return seals

    def _summary(self, dead: str, view: int, states: Sequence[NodeState]) -> dict[str, object]:
        status = states[0].status
        return {
            "hospitals": HOSPITALS,
            "studies": len(self._registered),
            "instances": sum(len(entry.series.files) for entry in self._registered),
            "height": status.height if status is not None else None,
            "view": view,
            "killed": dead,
        }

    def _nodes(self) -> ProcessTestnet:
        if self.net is None:
            raise RuntimeError("the consortium is not founded yet")
        return self.net

    def _genesis(self) -> Genesis:
        return self._desk("north").genesis()

    def _desk(self, name: str) -> Desk:
        return Desk(self._nodes().node(name).config)


async def _reach(client: Client, height: int) -> None:
    while True:
        if (await client.head()).height >= height:
            return
        await asyncio.sleep(_POLL_S)


async def _digest_at(client: Client, height: int) -> bytes:
    await _reach(client, height)
    block = await client.block(height)
    return b"" if block is None else block.header_digest


async def _sealed_block(client: Client, height: int | None) -> BlockView:
    while True:
        block = await client.block(height)
        if block is not None and block.certificate is not None:
            return block
        await asyncio.sleep(_POLL_S)


async def _next_view(client: Client, view: int) -> None:
    while True:
        if (await client.status()).view > view:
            return
        await asyncio.sleep(_POLL_S)


async def _height(node: NodeProcess) -> int:
    async with node.client() as client:
        return (await client.head()).height


async def _block_at(node: NodeProcess, height: int) -> BlockView:
    async with node.client() as client:
        await _reach(client, height)
        return await _sealed_block(client, height)
