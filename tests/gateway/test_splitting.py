"""A patient excludes a series: the study is split, and nobody is given what was set apart."""

import json
import secrets
from types import SimpleNamespace

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

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
from node.gateway.parting import SplitRefused
from node.gateway.series import SeriesRefused
from node.ledger.transaction import Operation
from node.studies import register
from tests.cli.test_documents import documented, section
from tests.gateway.flow_world import CLIENT, until_async, world
from tests.gateway.splitting_world import (
    FORM,
    HEAD,
    PSYCH,
    new_study,
    of_series,
    split,
    with_command,
    write,
)
from tests.gateway.test_flow_command import told
from tests.privacy.site_world import gateway_of, quick, web


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
        config = with_command(alpha)
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
