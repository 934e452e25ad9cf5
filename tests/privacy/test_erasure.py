"""Requirement 12: after an erasure not even who holds the original images finds the study."""

import asyncio
import logging
import sqlite3
from dataclasses import replace
from hashlib import sha256

from node.imaging.commitment import commit_file
from node.imaging.manifest import blinding
from node.testnet.testnet import Testnet
from tests.gateway.flow_world import CONSENSUS, World, until, until_async
from tests.gateway.test_flow_command import configure
from tests.privacy.evidence import Evidence, tapped
from tests.privacy.site_world import gateway_of
from tests.privacy.story import Run


def rows_of(path):
    """Return every byte string of an sqlite file that is long enough to mean something."""
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as database:
        tables = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        for (table,) in tables:
            for row in database.execute(f"SELECT * FROM {table}"):
                yield from (
                    (table, value) for value in row if isinstance(value, bytes) and len(value) > 31
                )


def copies(hospital, run):
    """Return what a hospital has on disk that holds the study's key or salt, sealed, by name."""
    found = {"study key row": hospital.store._catalog.study(run.study_id).sealed}
    found |= {f"vault {table} {n}": row for n, (table, row) in enumerate(vault_rows(hospital))}
    for path in (hospital.folder / "exchange").rglob("*"):
        if path.is_file() and path.parent.name in ("deliveries", "received", "transfers"):
            found[f"{path.parent.name} of {hospital.name}"] = path.read_bytes()[-200:]
    catalogue = hospital.folder / "exchange" / "catalogue.db"
    rows = dict.fromkeys(row for _, row in rows_of(catalogue) if len(row) > 60)
    return found | {f"catalogue {n}": row for n, row in enumerate(rows)}


def vault_rows(hospital):
    return [
        (table, row[-64:])
        for table, row in rows_of(hospital.folder / "vault.db")
        if table in ("studies", "versions") and len(row) > 60
    ]


def left(hospital, texts):
    """Return where one of the texts still is, freed pages and logs of databases included."""
    return [
        (what, str(path.relative_to(hospital.folder)))
        for path in hospital.folder.rglob("*")
        if path.is_file()
        for what, text in texts.items()
        if text in path.read_bytes()
    ]


async def test_nothing_leads_from_the_images_to_an_erased_study(
    tmp_path, monkeypatch, caplog, capfd
):
    caplog.set_level(logging.DEBUG)
    run, evidence = Run(tmp_path), Evidence()
    with tapped(monkeypatch) as wire:
        async with Testnet(validators=3, consensus=CONSENSUS, folder=tmp_path / "net") as net:
            world = World(net, tmp_path)
            alpha, beta = world.alpha, world.beta
            config = configure(beta)
            async with gateway_of(alpha) as first, gateway_of(beta, fetches=True):
                await run.receive(alpha, first)
                await run.share(alpha, beta, config)
                await until(lambda: run.study_id in list(beta.store.studies()))
                await until_async(lambda: _is_received(beta, run.request_id))
                secrets = await asyncio.to_thread(_secrets, run, alpha)
                kept = {each.name: copies(each, run) for each in (alpha, beta)}
                await run.erase(alpha, beta)
                await until_async(lambda: _is_attested(alpha, run.study_id))
                manifest = secrets.pop("manifest")
                texts = {name: text for each in kept.values() for name, text in each.items()}
                for hospital in (alpha, beta):
                    await until(lambda each=hospital: left(each, texts | secrets) == [])
            folders = [each.data_dir for each in net.layout.configs]
        evidence.add_wire(wire)
        for folder in folders:
            evidence.add_chain(folder)
    evidence.add("logs", caplog.text)
    evidence.add("logs", "".join(capfd.readouterr()))
    _secrets_were_kept(kept, alpha, beta)
    _nothing_is_recomputed(evidence, run, manifest)
    for where, seen in evidence.seen.items():
        for name, text in secrets.items():
            assert text not in seen, (name, where)
            assert text.hex().encode() not in seen.lower(), (name, where)


def _secrets(run, alpha):
    """Return what must be gone, in clear: whoever has it finds the study again."""
    kept = alpha.vault.find_study(run.study_uid)
    (version,) = alpha.vault.versions(run.study_id)
    key = alpha.store.key(run.study_id)
    return {"salt": kept.salt, "study key": key, "manifest": version.manifest}


def _secrets_were_kept(kept, alpha, beta):
    """The search for copies would find them: there were some of each kind."""
    kinds = {name.split()[0] for name in kept[alpha.name]}
    assert kinds == {"study", "vault", "deliveries", "catalogue"}
    assert {name.split()[0] for name in kept[beta.name]} == {"study", "received"}


def _nothing_is_recomputed(evidence, run, manifest):
    """The attacker has the images, the chain, and even what was random of every instance but
    the salt: no root and no leaf that can be computed from that is anywhere."""
    chain = bytes(evidence.seen["chain"])
    assert manifest.root in chain  # it is there for ever
    assert replace(manifest, salt=manifest.salt).root == manifest.root  # and the salt leads to it
    guesses = [
        bytes(32),
        run.study_id * 2,
        run.study_id + bytes(16),
        manifest.root,
        *(sha256(text).digest() for text in (run.study_id, run.study_uid.encode(), b"")),
    ]
    computed = {}
    for salt in guesses:
        guessed = replace(manifest, salt=salt)
        computed[f"root under {salt.hex()}"] = guessed.root
        for instance in guessed.instances:
            leaf = instance.record.leaf(blinding(salt, instance.index))
            computed[f"leaf under {salt.hex()} {instance.index.hex()}"] = leaf
    for number, path in enumerate(run.paths):
        known = commit_file(path).commitment
        for name in ("file", "core", "private"):
            computed[f"{name} of {number}"] = getattr(known, name)
        computed[f"pixels of {number}"] = known.pixels.chosen.digest
    assert len(computed) == len(guesses) * 4 + 3 * 4
    for where, seen in evidence.seen.items():
        found = [name for name, digest in computed.items() if digest in seen]
        assert found == [], where


async def _is_received(hospital, request_id):
    request = await hospital.request(request_id)
    return request is not None and request.state == "received"


async def _is_attested(hospital, study_id):
    client = await hospital.net.client(hospital.index)
    return "study_erasure_attested" in str(await client.audit_trail(study_id))
