"""Requirement 11 over a whole run: received, found, granted, fetched, delivered, erased."""

import asyncio
import logging
from functools import partial

from node.gateway.deliveries import State
from node.testnet.testnet import Testnet
from tests.gateway.flow_world import CONSENSUS, World, until
from tests.gateway.test_flow_command import configure
from tests.privacy.evidence import tapped
from tests.privacy.needles import needles_of, search
from tests.privacy.site_world import gateway_of, pacs_running
from tests.privacy.story import Run


def _in_quarantine(path):
    return "quarantine" in path.parts  # as received: the operator looks at it


async def test_nothing_that_identifies_anybody_leaves_the_gateway(
    tmp_path, monkeypatch, caplog, capfd
):
    caplog.set_level(logging.DEBUG)
    run = Run(tmp_path)
    evidence = run.evidence
    with tapped(monkeypatch) as wire:
        async with (
            Testnet(validators=3, consensus=CONSENSUS, folder=tmp_path / "net") as net,
            pacs_running() as pacs,
        ):
            world = World(net, tmp_path)
            alpha, beta = world.alpha, world.beta
            config = configure(beta)
            async with gateway_of(alpha) as first, gateway_of(beta, pacs) as second:
                await run.receive(alpha, first)
                await run.share(alpha, beta, config)
                await until(lambda: set(pacs.kept) == run.uids)
                await until(lambda: second.deliverer.progress(1).state is State.DONE)
                await run.contradict(second)
                for hospital in (alpha, beta):
                    await asyncio.to_thread(
                        evidence.add_files, "files", hospital.folder, _in_quarantine
                    )
                await run.take_back(alpha, beta, config)
                await run.erase(alpha, beta)
                run.add_gateway(first)
                run.add_gateway(second)
            for index in range(3):
                await evidence.add_metrics(net.node(index))
            folders = [each.data_dir for each in net.layout.configs]
        evidence.add_wire(wire)
        for folder in folders:
            evidence.add_chain(folder)
    evidence.add("logs", caplog.text)
    evidence.add("logs", "".join(capfd.readouterr()))
    _all_was_seen(evidence, run)
    needles = needles_of([*run.paths, *run.other])
    assert len(needles) > 1_000
    assert evidence.leaks(partial(search, needles)) == []


def _all_was_seen(evidence, run):
    """A scan of nothing finds nothing: each place holds what must be there."""
    seen = evidence.seen
    assert run.study_id in seen["chain"]
    assert run.study_id in seen["messages"]
    assert b"study_erased" in seen["chain"]
    for path in (b"/v1/find", b"/v1/conflict", b"/v1/"):
        assert path in seen["urls"]
    assert b"conflict" in seen["errors"]
    assert b"consent_refused" in seen["errors"]
    for words in (
        b"key delivered",
        b"instance refused source=MODALITY",
        b"study version kept",
        b"delivery ended",
    ):
        assert words in seen["logs"], words
    assert b"radledger_height" in seen["metrics"]
    for name in (b"spool/index.db", b"foreign.db", b"deliveries.db", b"catalogue.db", b"keys.db"):
        assert name in seen["files"], name
