"""The parts of the exchange by themselves, with a ledger by hand or a real one."""

import asyncio
import secrets
from types import SimpleNamespace

import pytest

from node.exchange import encryption_keys, hpke
from node.exchange.transfer.errors import LedgerUnavailable, NotPermitted
from node.exchange.transfer.ports import Custody, Permit
from node.gateway.backlog import Backlog, retry_after_s
from node.gateway.directory import Directory, Place
from node.gateway.permits import LedgerPermits
from node.ledger.queries.member_views import InstitutionView
from node.network.errors import CertificateRefused
from node.network.tls import TrustedContexts
from node.rpc.errors import ConnectionLost
from tests.gateway.flow_world import confirmed, until, world
from tests.network.harness import make_identities

REQUEST = bytes(range(16))
VIEW = SimpleNamespace(
    id=REQUEST, study_id=bytes(16), institution="beta", wrapped_digest=None, permitted=True
)


class Ledger:
    """A node's client that answers what a test sets, when the test lets it."""

    def __init__(self):
        self.answer = VIEW
        self.asked = 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def study(self, study_id):
        return await self.request(study_id)

    async def request(self, request_id):
        self.asked += 1
        answer = self.answer
        await self.gate.wait()
        if isinstance(answer, Exception):
            raise answer
        return answer


class Events:
    """The event pump, by hand."""

    def on(self, heard, *names):
        self.heard, self.names = heard, names

    def on_start(self, listener):
        self.began = listener


@pytest.fixture
async def permits():
    refused = []
    made = LedgerPermits(
        Ledger(), lambda request_id, code: refused.append((request_id, code)), 60_000
    )
    made.attach(Events())
    made.refused = refused
    return made


async def test_many_questions_at_a_time_are_one(permits):
    answers = await asyncio.gather(*(permits.permit(REQUEST) for _ in range(50)))
    assert {answer.institution for answer in answers} == {"beta"}
    assert permits._client.asked == 1


async def test_an_event_makes_old_answers_worthless_and_tells_who_is_refused(permits):
    await permits.permit(REQUEST)
    permits._client.answer = replace_view(permitted=False, refusal="consent_refused")
    permits._heed(None)
    await until(lambda: permits.refused)
    assert permits.refused == [(REQUEST, "consent_refused")]
    with pytest.raises(NotPermitted, match="consent_refused"):
        await permits.permit(REQUEST)


async def test_an_answer_that_was_on_its_way_when_the_event_came_is_not_kept(permits):
    ledger = permits._client
    ledger.gate.clear()
    asking = asyncio.create_task(permits.permit(REQUEST))
    await until(lambda: ledger.asked == 1)
    ledger.answer = replace_view(permitted=False, refusal="request_revoked")
    permits._heed(None)
    ledger.gate.set()
    await asking  # it was permitted when it was asked; whoever runs is cut all the same
    await until(lambda: permits.refused == [(REQUEST, "request_revoked")])
    with pytest.raises(NotPermitted):
        await permits.permit(REQUEST)


async def test_nothing_is_permitted_while_the_node_is_away(permits):
    permits._client.answer = ConnectionLost("away")
    with pytest.raises(LedgerUnavailable):
        await permits.permit(REQUEST)
    permits._client.answer = VIEW
    assert (await permits.permit(REQUEST)).study_id == bytes(16)
    permits._client.answer = ConnectionLost("away")
    permits._heed(None)
    await until(lambda: permits.refused == [(REQUEST, "ledger_unavailable")])


def study_of(custodian, status="active"):
    summary = SimpleNamespace(id=REQUEST, custodian=custodian, status=status)
    return SimpleNamespace(summary=summary)


async def test_custody_is_the_custodians_until_it_goes_over_or_the_study_is_erased(permits):
    ledger, ground = permits._client, Custody(REQUEST)
    ledger.answer = study_of("alpha")
    permit = await permits.permit(ground)
    assert permit == Permit(None, REQUEST, "alpha", None)
    permits._heed(None)
    await until(lambda: ledger.asked == 2)
    await permits.permit(ground)
    assert permits.refused == []  # nothing about custody has changed
    ledger.answer = study_of("gamma")
    permits._heed(None)
    await until(lambda: permits.refused == [(ground, "not_custodian")])
    ledger.answer = study_of("gamma", "erased")
    permits._heed(None)
    await until(lambda: permits.refused[1:] == [(ground, "study_erased")])
    with pytest.raises(NotPermitted, match="study_erased"):
        await permits.permit(ground)
    ledger.answer = None
    with pytest.raises(NotPermitted, match="study_unknown"):
        await permits.permit(Custody(bytes(16)))


async def test_made_up_requests_do_not_fill_the_memory(permits, monkeypatch):
    monkeypatch.setattr("node.gateway.permits.REMEMBERED_MAX", 8)
    permits._client.answer = None
    for number in range(100):
        with pytest.raises(NotPermitted, match="request_unknown"):
            await permits.permit(number.to_bytes(16))
    assert len(permits._known) <= 8


def replace_view(**changes):
    return SimpleNamespace(**(vars(VIEW) | changes))


async def test_a_backlog_tries_again_and_misses_nothing_that_is_added_meanwhile():
    done, fails = [], {"a": 1}
    again = asyncio.Event()

    async def work(item):
        if fails.get(item, 0):
            fails[item] -= 1
            raise TimeoutError
        done.append(item)
        if item == "b" and not again.is_set():
            again.set()
            backlog.add("b")
        return True

    backlog = Backlog("test", work, at_once=2)
    backlog.add("a")
    backlog.add("b")
    backlog.add("c", delay_s=0.01)
    running = asyncio.create_task(backlog.run())
    await until(lambda: sorted(done) == ["a", "b", "b", "c"])
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert len(backlog) == 0
    assert retry_after_s(0) < retry_after_s(3) <= retry_after_s(60) == 60


def institution(name, *, is_active=True, observers=()):
    return InstitutionView(name, name, "ZZ", is_active, 1, True, None, None, observers)


class Registry:
    """What a directory asks of the ledger."""

    institution = "own"

    def __init__(self, institutions, validators):
        self._institutions = institutions
        self.client = SimpleNamespace(validators=self._validators)
        self.validators = validators

    async def institutions(self):
        return self._institutions

    async def _validators(self):
        return self.validators


def node(person):
    return SimpleNamespace(
        institution=person.name, public_key=person.key, certificate=person.certificate
    )


async def test_who_is_who_comes_from_the_ledger_and_where_from_the_config():
    own, alpha, beta, late = make_identities("own", "alpha", "beta", "late")
    genesis = SimpleNamespace(validators=(node(own), node(alpha)), observers=(node(beta),))
    places = [
        Place("own", "h", 1),
        Place("alpha", "h", 2),
        Place("beta", "h", 3),
        Place("late", "h", 4, late.certificate),
    ]
    directory = Directory(genesis, places, "own")
    assert directory.holder("alpha") is None
    everybody = [
        institution("own"),
        institution("alpha"),
        institution("beta", observers=(beta.key,)),
        institution("late"),
    ]
    await directory.refresh(Registry(everybody, [node(own), node(alpha)]))
    assert [directory.institution_of(p.key) for p in (own, alpha, beta, late)] == [
        None,
        "alpha",
        "beta",
        "late",
    ]
    holder = directory.holder("beta")
    assert (holder.port, holder.certificates) == (3, (beta.certificate,))
    contexts = TrustedContexts(own.private_key, own.certificate)
    assert directory.apply(contexts, ()) == ()
    trusted = directory.keys
    # Alpha rotated to a key whose certificate is not known here; beta is suspended.
    everybody[2] = institution("beta", is_active=False, observers=(beta.key,))
    rotated = SimpleNamespace(institution="alpha", public_key=secrets.token_bytes(32))
    await directory.refresh(Registry(everybody, [node(own), rotated]))
    assert directory.keys == (late.key,)
    assert set(directory.apply(contexts, trusted)) == {alpha.key, beta.key}
    assert directory.holder("alpha") is None


def test_a_card_that_is_none_is_refused():
    genesis = SimpleNamespace(validators=(), observers=())
    with pytest.raises(CertificateRefused):
        Directory(genesis, [Place("late", "h", 4, b"none")], "own")


async def test_a_key_that_was_kept_and_not_published_is_published_at_the_next_start(tmp_path):
    async with world(tmp_path) as all_:
        beta = all_.beta
        key = encryption_keys.generate(hpke.X25519)
        folder = beta.folder / "exchange" / "keys"
        folder.mkdir(parents=True)
        path = folder / encryption_keys.file_name(key.key_id)
        encryption_keys.save(key, path, beta.passphrase, stretch=False)
        async with all_.gamma.serving(), beta.serving():
            await confirmed(beta)
        page = await (await all_.net.client(beta.index)).encryption_keys(beta.name)
        assert [each.key_id for each in page.keys] == [key.key_id]


async def test_a_challenge_that_came_while_nobody_ran_is_answered(tmp_path):
    async with world(tmp_path) as all_:
        alpha, beta = all_.alpha, all_.beta
        async with beta.acting() as acting:
            service = beta.make(acting).keys
            await service.open()
            key_id = await service.publish()
        await all_.reach(all_.net.node(beta.index).height)
        async with alpha.acting() as acting:
            await alpha.make(acting).keys.challenge(beta.name, key_id)
        async with beta.serving():  # alone: it has nothing but the chain
            await confirmed(beta)


async def test_a_bad_challenge_is_followed_by_another_ones(tmp_path):
    async with world(tmp_path) as all_:
        alpha, beta = all_.alpha, all_.beta
        async with beta.serving():
            client = await all_.net.client(beta.index)

            async def state():
                page = await client.encryption_keys(beta.name)
                return page.keys[0].state if page.keys else None

            while await state() != "published":
                await asyncio.sleep(0.01)
            (view,) = (await client.encryption_keys(beta.name)).keys
            await all_.reach(all_.net.node(beta.index).height)
            bad = hpke.challenge(bytes(32), beta.name, view.key_id, view.kem, view.public_key)
            await alpha.submit(
                "registry.key_challenge", beta.name, view.key_id, bad.sealed, bad.digest
            )
            async with all_.gamma.serving():
                await confirmed(beta)


async def test_a_published_key_that_is_none_stops_nobody(tmp_path):
    async with world(tmp_path) as all_:
        alpha, beta, gamma = all_.hospitals
        await gamma.submit("registry.key_publish", secrets.token_bytes(16), "x25519", bytes(32))
        async with alpha.serving(), beta.serving():
            await confirmed(alpha)
            await confirmed(beta)
        page = await (await all_.net.client(0)).encryption_keys(gamma.name)
        assert page.keys[0].state == "published"
