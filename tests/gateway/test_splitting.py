"""A patient excludes a series: the study is split, and nobody is given what was set apart."""

import asyncio
import json
import secrets
import signal
import sys
from types import SimpleNamespace
from uuid import uuid4

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from node import keys
from node.exchange.store.errors import Damaged, StudyErased
from node.exchange.store.sealing import open_chunk
from node.exchange.transfer.errors import NotPermitted
from node.exchange.transfer.holders import HolderRefused, Link, NotHeld
from node.exchange.transfer.limits import SharedPace
from node.exchange.transfer.line import Partial
from node.exchange.transfer.ports import Chunk
from node.exchange.transfer.state import Deliveries
from node.gateway.exchange import DELIVERIES
from node.gateway.keeping import Keeper
from node.gateway.parting import SplitRefused, Wish
from node.gateway.series import SeriesRefused
from node.gateway.splitting import SplitPending, Splitting
from node.imaging.vault import create_vault, open_vault
from node.ledger.contracts.consent import RULES_MAX
from node.ledger.errors import Refused
from node.ledger.transaction import Operation
from node.studies import register
from tests.cli.test_documents import documented, section
from tests.gateway.flow_world import CLIENT, until_async, world
from tests.gateway.test_flow_command import configure, told
from tests.imaging import dicom
from tests.privacy.site_world import gateway_of, quick, web

FORM = bytes(range(32))
HEAD, PSYCH = "1", "2"


@pytest.fixture(autouse=True)
def quick_keys(monkeypatch):
    monkeypatch.setattr(keys, "_SCRYPT_N", 2)


def write(folder, uid, series, number):
    sop = f"{uid}.{series}.{number}"
    pixels = np.frombuffer(secrets.token_bytes(2 * 32 * 32), "<u2").reshape(32, 32)
    elements = {"PatientID": uid[-10:], "Modality": "MR", "SeriesNumber": series}
    place = {"sop": sop, "study": uid, "SeriesInstanceUID": f"{uid}.{series}"}
    return dicom.minimal(folder / sop[-40:], pixels=pixels, **place, **elements)


async def new_study(hospital, folder):
    """Register and store a study of two series, two instances each."""
    uid = f"2.25.{uuid4().int}"
    paths = [write(folder, uid, series, n) for series in (HEAD, PSYCH) for n in (1, 2)]
    return uid, await hospital.keep_files(paths)


def of_series(study, series):
    """Return the bytes of the files of a series, by SOP Instance UID."""
    files = study.files.items()
    return {uid: path.read_bytes() for uid, path in files if uid.split(".")[-2] == series}


def splitting(hospital, acting):
    kept = [Deliveries(hospital.folder / "exchange" / DELIVERIES)]
    return Splitting(acting, hospital.store, hospital.vault, kept)


async def split(hospital, study, series=PSYCH, *, erase=False, form=FORM):
    async with hospital.acting() as acting:
        done = await splitting(hospital, acting).split(study.id, Wish([series], form, erase=erase))
    await hospital.net.wait_height(hospital.net.node(hospital.index).height)
    return done


def part(study, study_id):
    return SimpleNamespace(id=study_id, subject_id=study.subject_id)


def sealed_chunks(hospital, study_id):
    """Return (place, ciphertext, plain size) of every chunk of a study."""
    index = hospital.store.index(study_id)
    return [
        (each.place(study_id), hospital.store.ciphertext(each.digest), each.plain_bytes)
        for each in index.chunks
    ]


async def may_fetch(hospital, custodian, request_id, digest, size):
    """Whether a chunk comes from the custodian under a request of the hospital."""
    holder = hospital.exchange.directory.holder(custodian.name)
    link = Link(holder, hospital.identity, CLIENT)
    partial = Partial(Chunk(digest, size), memoryview(bytearray(size)))
    try:
        await link.stream(partial, request_id, SharedPace(10**9), lambda: False)
    except (HolderRefused, NotHeld):
        return False
    finally:
        await link.close()
    return not partial.room


async def test_a_series_that_the_patient_excludes_is_given_to_nobody(tmp_path):
    async with world(tmp_path) as all_, all_.alpha.serving(), all_.beta.serving() as exchange:
        alpha, beta = all_.alpha, all_.beta
        _, study = await new_study(alpha, tmp_path)
        done = await split(alpha, study)
        # The rest comes whole, and is what the ledger says.
        request_id = await beta.ask(part(study, done.rest))
        received = await exchange.requester.fetch(request_id, wait_s=30)
        assert beta.bytes_of(done.rest) == of_series(study, HEAD)
        view = await (await beta.net.client(beta.index)).study(done.rest)
        assert (received.root, received.absent) == (view.summary.root, 0)
        assert exchange.requester.manifest(request_id).root == view.summary.root
        # What was set apart is refused by the patient's rule, and the old study is closed.
        refused = await beta.request(await beta.ask(part(study, done.apart)))
        assert (refused.state, refused.rule, refused.permitted) == ("denied", "consent", False)
        operation = (secrets.token_bytes(16), study.id, "gateway", "TREAT", 100, 1, False)
        asked = Operation("access.request", (*operation, None, None))
        assert (await beta.net.submit(beta.index, [asked])).code == "study_retired"
        # No chunk of it can be fetched, or opened with the key that came.
        chunks = alpha.store.index(done.apart).chunks
        digests = {each.digest for each in chunks}
        rest = alpha.store.index(done.rest).chunks
        old = {each.digest for each in alpha.store.index(study.id).chunks}
        assert not digests & {each.digest for each in rest}
        assert not old & (digests | {each.digest for each in rest})
        for each in chunks:
            assert not await may_fetch(beta, alpha, request_id, each.digest, each.stored_bytes)
        assert await may_fetch(beta, alpha, request_id, rest[0].digest, rest[0].stored_bytes)
        key = AESGCM(beta.store.key(done.rest))
        for study_id in (done.apart, study.id):
            for place, ciphertext, plain_bytes in sealed_chunks(alpha, study_id):
                with pytest.raises(Damaged):
                    open_chunk(key, place, ciphertext, plain_bytes)
        assert open_chunk(key, *sealed_chunks(alpha, done.rest)[0])
        # At home all of it is there, under the key of its own.
        assert alpha.bytes_of(done.apart) == of_series(study, PSYCH)


async def test_grants_of_a_study_that_is_split_end_and_consent_goes_along(tmp_path):
    async with world(tmp_path) as all_, all_.alpha.serving(), all_.beta.serving() as exchange:
        alpha, beta = all_.alpha, all_.beta
        _, study = await new_study(alpha, tmp_path)
        about = (study.subject_id, study.id)
        await alpha.submit(
            "consent.restrict", bytes([1] * 16), *about, all_.gamma.name, (), None, FORM
        )
        await alpha.submit("consent.grant", bytes([2] * 16), *about, None, ("TREAT",), None, FORM)
        await alpha.submit("study.classify", study.id, "R")
        request_id = await beta.ask(study)
        await exchange.requester.fetch(request_id, wait_s=30)
        waiting = secrets.token_bytes(16)
        words = (waiting, study.id, "gateway", "CAREMGT", 100, 1, False, None, None)
        await beta.submit("access.request", *words)
        assert (await alpha.request(waiting)).state == "waiting_person"
        done = await split(alpha, study)
        assert done.ended == 2
        assert (await alpha.request(waiting)).state == "denied"
        await until_async(lambda: _is(beta, request_id, "revoked"))
        with pytest.raises(NotPermitted, match="request_revoked"):
            await exchange.requester.use(request_id, b"view")
        client = await alpha.net.client(alpha.index)
        rules = (await client.consent(alpha.name, study.subject_id)).rules
        said = {
            (rule.study_id, rule.effect, rule.recipient, rule.purposes)
            for rule in rules
            if rule.study_id != study.id
        }
        assert said == {
            (done.apart, "deny", None, ()),
            (done.apart, "deny", all_.gamma.name, ()),
            (done.rest, "deny", all_.gamma.name, ()),
            (done.rest, "permit", None, ("TREAT",)),
        }
        for study_id in (done.rest, done.apart):
            summary = (await client.study(study_id)).summary
            assert (summary.confidentiality, summary.modality) == ("R", "MR")
        old = (await client.study(study.id)).summary
        assert (old.status, old.retire_reason) == ("retired", "superseded")
        # Again: nothing is done twice.
        again = await split(alpha, study)
        assert (again.rest, again.apart, again.ended) == (done.rest, done.apart, 0)
        assert len((await client.consent(alpha.name, study.subject_id)).rules) == len(rules)
        # What the patient takes back stays so, however often the command runs.
        given = next(
            each for each in rules if each.study_id == done.rest and each.recipient is None
        )
        await alpha.submit("consent.withdraw", study.subject_id, given.consent_id, FORM)
        await split(alpha, study)
        view = await client.consent(alpha.name, study.subject_id)
        assert [
            each.effect
            for each in view.rules
            if each.study_id == done.rest and each.state == "in_force"
        ] == ["deny"]
        with pytest.raises(SplitRefused, match="by other series; the rest is"):
            await split(alpha, study, HEAD)


async def test_the_old_study_is_erased_with_the_keys_that_were_wrapped(tmp_path):
    async with world(tmp_path) as all_:
        alpha, beta = all_.alpha, all_.beta
        _, study = await new_study(alpha, tmp_path)
        async with alpha.serving(), beta.serving() as exchange:
            request_id = await beta.ask(study)
            await exchange.requester.fetch(request_id, wait_s=30)
        wrapped = Deliveries(alpha.folder / "exchange" / DELIVERIES)
        assert list(wrapped.requests()) == [request_id]
        done = await split(alpha, study, erase=True)
        assert done.is_erased
        assert list(wrapped.requests()) == []
        with pytest.raises(StudyErased):
            alpha.store.key(study.id)
        assert alpha.vault.split_of(study.id) is None
        # Who received it has it until it destroys it, and says so on the ledger.
        assert beta.bytes_of(study.id).keys() == study.files.keys()
        async with beta.serving():
            await until_async(lambda: _has_attested(alpha, study.id, beta.name))
        assert study.id not in set(beta.store.studies())


async def _has_attested(hospital, study_id, name):
    client = await hospital.net.client(hospital.index)
    trail = await client.audit_trail(study_id)
    return any(e.name == "study_erasure_attested" and name in e.fields for e in trail.entries)


async def test_running_gateways_show_what_may_be_shown_as_one_study(tmp_path, monkeypatch):
    quick(monkeypatch)
    async with (
        world(tmp_path) as all_,
        gateway_of(all_.alpha) as home,
        gateway_of(all_.beta, fetches=True) as abroad,
    ):
        alpha, beta = all_.alpha, all_.beta
        uid, study = await new_study(alpha, tmp_path)
        both = {f"{uid}.{series}" for series in (HEAD, PSYCH)}
        await beta.ask(study)
        await until_async(lambda: _shows(abroad, uid, both))
        done = await split(alpha, study)
        await until_async(lambda: _shows(abroad, uid, set()))
        await beta.ask(part(study, done.rest))
        await until_async(lambda: _shows(abroad, uid, {f"{uid}.{HEAD}"}))
        await until_async(lambda: _shows(home, uid, both))
        await split(alpha, study, erase=True)
        await until_async(lambda: _has_attested(alpha, study.id, beta.name))
        await until_async(lambda: _lists(home, {done.rest, done.apart}))
        await until_async(lambda: _lists(abroad, {done.rest}))
        (row,) = json.loads((await web(home, "/studies"))[1])
        assert [row[tag]["Value"] for tag in ("00201206", "00201208")] == [[2], [4]]
        (row,) = json.loads((await web(abroad, "/studies"))[1])
        assert [row[tag]["Value"] for tag in ("00201206", "00201208")] == [[1], [2]]
        withheld = f"/studies/{uid}/series/{uid}.{PSYCH}/metadata"
        assert [(await web(each, withheld))[0] for each in (home, abroad)] == [200, 404]


async def _lists(gateway, study_ids):
    return set(gateway.holdings._listed) == study_ids


async def _shows(gateway, uid, series):
    status, body = await web(gateway, f"/studies/{uid}/series")
    found = json.loads(body) if status == 200 else []
    return {each["0020000E"]["Value"][0] for each in found} == series


async def test_a_refusal_that_comes_meanwhile_goes_along(tmp_path, monkeypatch):
    async with world(tmp_path) as all_:
        alpha = all_.alpha
        _, study = await new_study(alpha, tmp_path)
        async with alpha.acting() as acting:
            cutting = splitting(alpha, acting)
            with monkeypatch.context() as patched:
                cut_at(patched, (acting.client, "submit"))
                with pytest.raises(Cut):
                    await cutting.split(study.id, Wish([PSYCH], FORM))
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
        async with alpha.acting() as acting:
            cutting = splitting(alpha, acting)
            with monkeypatch.context() as patched:
                cut_at(patched, (acting.client, "submit"), after=True)
                with pytest.raises(Cut):
                    await cutting.split(study.id, Wish([PSYCH], FORM))

            async def refuse(_):
                raise Refused(code, "not again")

            with monkeypatch.context() as patched:
                patched.setattr(acting.client, "submit", refuse)
                done = await cutting.split(study.id, Wish([PSYCH], FORM))
        assert alpha.vault.split_of(study.id).is_done
        assert alpha.bytes_of(done.apart) == of_series(study, PSYCH)


async def _is(hospital, request_id, state):
    return (await hospital.request(request_id)).state == state


async def test_what_comes_late_goes_to_the_part_that_has_its_series(tmp_path):
    async with world(tmp_path) as all_:
        alpha = all_.alpha
        uid, study = await new_study(alpha, tmp_path)
        done = await split(alpha, study)
        late = [write(tmp_path, uid, series, 9) for series in (HEAD, PSYCH, "3")]
        client = await alpha.net.client(alpha.index)
        for registration in (await register(late, client, alpha.vault, alpha.signer)).studies:
            assert registration.is_done
            files = {path.name: path for path in late}
            named = {
                instance.sop_uid: files[instance.sop_uid[-40:]]
                for instance in registration.prepared.manifest.instances
                if instance.sop_uid[-40:] in files
            }
            Keeper(alpha.store).keep(registration.prepared.manifest, named)
        held = {study_id: alpha.bytes_of(study_id).keys() for study_id in (done.rest, done.apart)}
        assert {sop.split(".")[-2] for sop in held[done.rest]} == {HEAD, "3"}
        assert {sop.split(".")[-2] for sop in held[done.apart]} == {PSYCH}
        assert (len(held[done.rest]), len(held[done.apart])) == (4, 3)
        assert alpha.store.versions(study.id) == [1]


class Cut(BaseException):
    """The process ends here."""


def cut_at(patched, place, *, after=False, call=1):
    """Let the `call`th call of `place` (an object and a name) be the last thing that is done."""
    owner, name = place
    real, count = getattr(owner, name), 0

    def wrapped(*arguments, **named):
        nonlocal count
        count += 1
        if count == call and not after:
            raise Cut
        result = real(*arguments, **named)
        if count == call and not asyncio.iscoroutine(result):
            raise Cut
        return _then_cut(result) if count == call else result

    patched.setattr(owner, name, wrapped)


async def _then_cut(result):
    await result
    raise Cut


CUTS = {
    "before it is planned": (lambda h, s: (h.vault, "plan_split"), {}),
    "planned": (lambda h, s: (h.vault, "plan_split"), {"after": True}),
    "one part prepared": (lambda h, s: (h.vault, "put_prepared"), {"call": 2}),
    "both prepared": (lambda h, s: (h.store, "put"), {}),
    "one part stored": (lambda h, s: (h.store, "put"), {"call": 2}),
    "both stored": (lambda h, s: (h.vault, "submit_split"), {}),
    "signed": (lambda h, s: (s._acting.client, "submit"), {}),
    "sent": (lambda h, s: (s._acting.client, "submit"), {"after": True}),
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
            async with alpha.acting() as acting:
                cutting = splitting(alpha, acting)
                with monkeypatch.context() as patched:
                    cut_at(patched, place(alpha, cutting), **how)
                    with pytest.raises(Cut):
                        await cutting.split(study.id, Wish([PSYCH], FORM, erase=True))
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
        async with alpha.acting() as acting:
            cutting = splitting(alpha, acting)
            with monkeypatch.context() as patched:
                cut_at(patched, (acting.client.__class__, "submit"))
                with pytest.raises(Cut):
                    await cutting.split(study.id, Wish([PSYCH], FORM))
        await alpha.submit("study.erase", study.id, "subject_request")
        alpha.store.erase(study.id)
        alpha.vault.delete_study(study.id)  # as a running gateway does
        with pytest.raises(SplitRefused, match="study_erased"):
            await split(alpha, study)
        assert list(alpha.store.studies()) == []
        assert alpha.vault.unfinished() == []
        with pytest.raises(SplitRefused, match="erased"):
            await split(alpha, study)


async def test_what_cannot_be_split_is_said(tmp_path):
    async with world(tmp_path) as all_:
        alpha, beta = all_.alpha, all_.beta
        _, study = await new_study(alpha, tmp_path)
        one = await alpha.keep(instances=1)
        for series, words in [("3", "no series 3"), ("1.2.3", "no such series; it has 2")]:
            with pytest.raises(SeriesRefused, match=words):
                await split(alpha, study, series)
        with pytest.raises(SeriesRefused, match="nothing would be left"):
            await split(alpha, one, "1")
        with pytest.raises(SplitRefused, match="signed form"):
            await split(alpha, study, form=None)
        with pytest.raises(SplitRefused, match="custodian"):
            await split(beta, study)


async def test_the_command_lists_series_without_uids_and_splits(tmp_path):
    async with world(tmp_path) as all_:
        alpha = all_.alpha
        config = configure(alpha)
        with_node = alpha.config.data_dir.parent / "vault.db"
        alpha.vault = create_vault(with_node, alpha.passphrase.decode())
        uid, study = await new_study(alpha, tmp_path)
        named = ("split", study.id.hex(), "-c", config)
        listed = await told("study", *named)
        rows = [{"number": n, "series_number": str(n), "instances": 2} for n in (1, 2)]
        assert [{key: each[key] for key in rows[0]} for each in listed["series"]] == rows
        assert uid not in json.dumps(listed)
        assert listed.keys() == documented("study split")
        refused = await told("study", *named, "--series", PSYCH, status=1)
        assert "form" in refused["error"]["lines"][0]
        refused = await told("study", *named, "--series", "7", status=2)
        assert "no series 7" in refused["error"]["lines"][0]
        refused = await told("study", *named, "--series", PSYCH, "--version", 2, status=1)
        assert "has version 1 now" in refused["error"]["lines"][0]
        form = tmp_path / "form"
        form.write_text("I do not want the second series to be shared.")
        signed = (*named, "--series", f"{uid}.{PSYCH}", "--form", form, "--version", 1)
        done = (await told("study", *signed))["split"]
        again = (await told("study", *named, "--series", PSYCH, "--erase-old"))["split"]
        assert (again["rest"], again["apart"]) == (done["rest"], done["apart"])
        described = section("study split").partition("Each of")[2]
        assert all(f"`{name}`" in described for name in (*listed["series"][0], *done))
        assert (done["is_erased"], again["is_erased"]) == (False, True)
        assert alpha.bytes_of(bytes.fromhex(done["apart"])) == of_series(study, PSYCH)
        refused = await told("study", *named, "--series", PSYCH, status=1)
        assert refused["error"]["lines"] == ["the study is erased"]


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
        config = configure(alpha)
        path = alpha.config.data_dir.parent / "vault.db"
        alpha.vault = create_vault(path, alpha.passphrase.decode())
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
