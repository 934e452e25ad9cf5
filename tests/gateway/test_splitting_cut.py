"""A split that is refused, or cut off at any step, goes on or leaves everything as it was."""

import asyncio
import secrets
import signal
import sys

import pytest

from node.gateway.parting import SplitRefused, Wish
from node.gateway.splitting import SplitPending
from node.imaging.vault import open_vault
from node.ledger.contracts.consent import RULES_MAX
from node.ledger.errors import Refused
from node.ledger.transaction import Operation
from node.studies import register
from tests.gateway.flow_world import world
from tests.gateway.splitting_world import (
    FORM,
    HEAD,
    PSYCH,
    cut_off,
    new_study,
    of_series,
    split,
    splitting,
    submitting,
    with_command,
    write,
)
from tests.gateway.test_flow_command import told


async def test_a_refusal_that_comes_meanwhile_goes_along(tmp_path, monkeypatch):
    async with world(tmp_path) as all_:
        alpha = all_.alpha
        _, study = await new_study(alpha, tmp_path)
        await cut_off(monkeypatch, alpha, study, submitting)
        about = (secrets.token_bytes(16), study.subject_id, study.id)
        await alpha.submit("consent.restrict", *about, all_.gamma.name, (), None, FORM)
        done = await split(alpha, study)
        view = await (await alpha.net.client(alpha.index)).consent(alpha.name, study.subject_id)
        refused = [each.study_id for each in view.rules if each.recipient == all_.gamma.name]
        assert refused == [study.id, done.rest, done.apart]


@pytest.mark.parametrize("code", ["duplicate", "transaction_expired"])
async def test_a_refusal_of_what_took_place_already_does_not_undo_it(tmp_path, monkeypatch, code):
    async with world(tmp_path) as all_:
        alpha = all_.alpha
        _, study = await new_study(alpha, tmp_path)
        await cut_off(monkeypatch, alpha, study, submitting, after=True)
        async with alpha.acting() as acting:

            async def refuse(_):
                raise Refused(code, "not again")

            with monkeypatch.context() as patched:
                patched.setattr(acting.client, "submit", refuse)
                done = await splitting(alpha, acting).split(study.id, Wish([PSYCH], FORM))
        assert alpha.vault.split_of(study.id).is_done
        assert alpha.bytes_of(done.apart) == of_series(study, PSYCH)


CUTS = {
    "before it is planned": (lambda h, s: (h.vault, "plan_split"), {}),
    "planned": (lambda h, s: (h.vault, "plan_split"), {"after": True}),
    "one part prepared": (lambda h, s: (h.vault, "put_prepared"), {"call": 2}),
    "both prepared": (lambda h, s: (h.store, "put"), {}),
    "one part stored": (lambda h, s: (h.store, "put"), {"call": 2}),
    "both stored": (lambda h, s: (h.vault, "submit_split"), {}),
    "signed": (submitting, {}),
    "sent": (submitting, {"after": True}),
    "final": (lambda h, s: (h.vault, "finish_split"), {}),
    "in the vault": (lambda h, s: (h.vault, "finish_split"), {"after": True}),
    "before grants end": (lambda h, s: (s, "_end"), {}),
    "a grant ended": (lambda h, s: (s, "_end"), {"after": True}),
    "before the old is destroyed": (lambda h, s: (h.store, "erase"), {}),
    "destroyed": (lambda h, s: (h.store, "erase"), {"after": True}),
    "erased on the ledger": (lambda h, s: (h.vault, "delete_study"), {}),
}


async def test_a_split_that_is_cut_off_at_any_step_goes_on(tmp_path, monkeypatch):
    async with world(tmp_path) as all_, all_.beta.serving():
        alpha, beta = all_.alpha, all_.beta
        client = await alpha.net.client(alpha.index)
        for name, (place, how) in CUTS.items():
            _, study = await new_study(alpha, tmp_path)
            request_id = await beta.ask(study)
            await cut_off(monkeypatch, alpha, study, place, erase=True, **how)
            alpha.vault.close()
            alpha.vault = open_vault(alpha.folder / "vault.db", "passphrase")
            alpha.open_store()
            done = await split(alpha, study, erase=True)
            assert done.is_erased, name
            assert alpha.bytes_of(done.rest) == of_series(study, HEAD), name
            assert alpha.bytes_of(done.apart) == of_series(study, PSYCH), name
            assert study.id not in set(alpha.store.studies()), name
            view = await client.consent(alpha.name, study.subject_id)
            assert [(r.study_id, r.effect) for r in view.rules] == [(done.apart, "deny")], name
            assert (await alpha.request(request_id)).state == "revoked", name
            for study_id in (done.rest, done.apart):
                root = (await client.study(study_id)).summary.root
                assert alpha.vault.latest(study_id).manifest.root == root, name
            assert alpha.vault.unfinished() == [], name
            assert alpha.vault.versions(study.id) == [], name
        # Nothing is left of parts that were begun: two a study.
        assert len(set(alpha.store.studies())) == 2 * len(CUTS)


async def test_what_the_ledger_refuses_leaves_everything_as_it_was(tmp_path):
    async with world(tmp_path) as all_:
        alpha = all_.alpha
        uid, study = await new_study(alpha, tmp_path)
        about = (study.subject_id, None, None, (), None, FORM)
        rules = [
            Operation("consent.grant", (secrets.token_bytes(16), *about)) for _ in range(RULES_MAX)
        ]
        assert (await alpha.net.submit(alpha.index, rules)).code == "ok"
        with pytest.raises(SplitRefused, match="consent_full; everything is as it was"):
            await split(alpha, study)
        assert list(alpha.store.studies()) == [study.id]
        assert alpha.vault.split_of(study.id) is None
        client = await alpha.net.client(alpha.index)
        late = [write(tmp_path, uid, PSYCH, 9)]
        (taken,) = (await register(late, client, alpha.vault, alpha.signer)).studies
        assert taken.prepared.manifest.study_id == study.id


async def test_what_the_node_refuses_is_undone_unless_it_may_succeed_later(tmp_path, monkeypatch):
    async with world(tmp_path) as all_:
        alpha = all_.alpha
        _, study = await new_study(alpha, tmp_path)
        wish = Wish([PSYCH], FORM)
        async with alpha.acting() as acting:
            refusals = [Refused("busy", "later"), Refused("transaction_expired", "too late")]

            async def refuse(_):
                raise refusals.pop(0)

            with monkeypatch.context() as patched:
                patched.setattr(acting.client, "submit", refuse)
                with pytest.raises(SplitPending):
                    await splitting(alpha, acting).split(study.id, wish)
                signed = [version.transaction for version in alpha.vault.unfinished()]
                assert len(signed) == 2
                assert len(set(signed)) == 1
                with pytest.raises(SplitRefused, match="everything is as it was"):
                    await splitting(alpha, acting).split(study.id, wish)
        assert list(alpha.store.studies()) == [study.id]
        assert alpha.vault.unfinished() == []
        done = await split(alpha, study)
        assert alpha.bytes_of(done.apart) == of_series(study, PSYCH)


async def test_a_study_that_is_erased_while_it_is_split_leaves_nothing(tmp_path, monkeypatch):
    async with world(tmp_path) as all_:
        alpha = all_.alpha
        _, study = await new_study(alpha, tmp_path)
        await cut_off(monkeypatch, alpha, study, submitting)
        await alpha.submit("study.erase", study.id, "subject_request")
        alpha.store.erase(study.id)
        alpha.vault.delete_study(study.id)  # as a running gateway does
        with pytest.raises(SplitRefused, match="study_erased"):
            await split(alpha, study)
        assert list(alpha.store.studies()) == []
        assert alpha.vault.unfinished() == []
        with pytest.raises(SplitRefused, match="erased"):
            await split(alpha, study)


KILLED = """
import os, signal, sys
from {module} import {owner}
def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)
{owner}.{name} = die
from node.cli.study import app
app()
"""


KILLS = [
    ("node.exchange.store.store", "StudyStore", "_add_version"),
    ("node.imaging.vault", "Vault", "submit_split"),
    ("node.imaging.vault", "Vault", "finish_split"),
    ("node.imaging.vault", "Vault", "delete_study"),
]


async def test_the_command_goes_on_after_each_kill(tmp_path):
    async with world(tmp_path) as all_:
        alpha = all_.alpha
        config = with_command(alpha)
        _, study = await new_study(alpha, tmp_path)
        words = ["split", study.id.hex(), "-c", config, "--series", PSYCH, "--erase-old"]
        words += ["--form-digest", FORM.hex()]
        for module, owner, name in KILLS:
            code = KILLED.format(module=module, owner=owner, name=name)
            command = [sys.executable, "-c", code, *map(str, words)]
            process = await asyncio.create_subprocess_exec(*command)
            assert await process.wait() == -signal.SIGKILL, name
        done = (await told("study", *words))["split"]
        rest, apart = bytes.fromhex(done["rest"]), bytes.fromhex(done["apart"])
        assert alpha.bytes_of(rest) == of_series(study, HEAD)
        assert alpha.bytes_of(apart) == of_series(study, PSYCH)
        assert set(alpha.store.studies()) == {rest, apart}
        assert alpha.vault.unfinished() == []
        client = await alpha.net.client(alpha.index)
        view = await client.consent(alpha.name, study.subject_id)
        assert [(rule.study_id, rule.effect) for rule in view.rules] == [(apart, "deny")]
