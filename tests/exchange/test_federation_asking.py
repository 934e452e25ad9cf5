"""Answers by policy, and questions over mutual TLS: who is heard, who is believed, at what cost."""

import asyncio
import secrets
from contextlib import asynccontextmanager

import pytest

from node.exchange.federation import asking
from node.exchange.federation.answer import Answer, FoundStudy, encode_answer
from node.exchange.federation.answering import Answering, NotOffered, Offer
from node.exchange.federation.fields import Field
from node.exchange.federation.ports import Inquiry
from node.exchange.federation.question import Condition, Kind, encode_question
from node.exchange.federation.route import find_post
from node.exchange.transfer.errors import LedgerUnavailable
from node.exchange.transfer.holders import HolderLied, Link
from node.exchange.transfer.limits import ServerLimits
from node.exchange.transfer.posts import Post
from node.exchange.transfer.server import ExchangeServer
from tests.exchange.federation_parts import entry, question
from tests.exchange.transfer_world import QUICK, World, connect, get, until

OPEN = asyncio.Event()
WANTED = question(fields=(Field.MODALITY, Field.AGE), limit=100)


class Policies:
    """What is permitted, by hand."""

    def __init__(self, **outcomes):
        self.outcomes = outcomes
        self.asked = []
        self.gate = None
        self.failure = None

    async def outcome(self, study_id, institution, asked):
        self.asked.append((study_id, institution, asked))
        if self.failure is not None:
            raise self.failure
        if self.gate is not None:
            await self.gate.wait()
        return self.outcomes.get(study_id.decode(), "denied")


def named(name, **values):
    return entry(study=name.encode().ljust(16), **({"modality": ["CT"], "age": ["40-49"]} | values))


def key(name):
    return name.ljust(16)


def answering(entries, policies, **offer):
    return Answering(lambda: entries, policies, Offer(**offer))


def names(answer):
    return sorted(study.study_id.decode().strip() for study in answer.studies)


async def test_only_what_would_be_granted_is_told_and_only_of_offered_fields():
    policies = Policies(**{key("mine"): "granted", key("asks"): "waiting_person"})
    policies.outcomes |= {key("consent"): "waiting_consent", key("odd"): "rejected"}
    entries = [named(name) for name in ("mine", "asks", "consent", "odd", "denied")]
    answer = await answering(entries, policies).answer("beta", WANTED)
    assert names(answer) == ["mine"]
    assert answer.studies[0].told == {Field.MODALITY: ("CT",)}  # not the age: it is not offered
    assert answer.is_complete
    assert {institution for _, institution, _ in policies.asked} == {"beta"}
    with_people = answering(entries, policies, askable=True)
    assert names(await with_people.answer("beta", WANTED)) == ["asks", "mine"]


async def test_a_condition_on_what_is_not_offered_is_answered_without_a_look():
    policies = Policies(**{key("mine"): "granted"})
    asked = question(conditions=(Condition(Field.AGE, ("40-49",)),))
    answer = await answering([named("mine")], policies).answer("beta", asked)
    assert (answer.unoffered, answer.studies, policies.asked) == ((Field.AGE,), (), [])


async def test_counts_are_of_what_would_be_granted():
    policies = Policies(**{key(str(number)): "granted" for number in range(6)})
    entries = [named(str(number)) for number in range(12)]
    asked = question(kind=Kind.COUNT, fields=(Field.MODALITY,))
    answer = await answering(entries, policies).answer("beta", asked)
    assert answer.total == (5, 5)
    assert answer.least == 5
    policies.outcomes = dict(list(policies.outcomes.items())[:4])
    answer = await answering(entries, policies).answer("beta", asked)
    assert (answer.total, answer.tallies) == (None, ())
    with pytest.raises(NotOffered):
        await answering(entries, policies, counts=False).answer("beta", asked)


async def test_bounds_of_one_answer_are_told():
    policies = Policies(**{key(str(number)): "granted" for number in range(40)})
    entries = [named(str(number)) for number in range(40)]
    answer = await answering(entries, policies, studies_max=7).answer("beta", WANTED)
    assert (len(answer.studies), answer.is_complete) == (7, False)
    policies.asked.clear()
    answer = await answering(entries, policies, examined_max=20).answer("beta", WANTED)
    assert (len(policies.asked), answer.is_complete) == (20, False)
    answer = await answering(entries, policies, answer_ms=0).answer("beta", WANTED)
    assert not answer.is_complete
    answer = await answering(entries, policies).answer("beta", WANTED)
    assert (len(answer.studies), answer.is_complete) == (40, True)


class Federation:
    """`World` with hospitals that answer questions."""

    def __init__(self, folder):
        self.world = World(folder, count=1, size=10)
        self.custodians = {}
        self.events = []

    def answers(self, name, *studies, **offer):
        policies = Policies(**{key(study): "granted" for study in studies})
        self.custodians |= {key(study).encode(): name for study in studies}
        made = answering([named(study) for study in studies], policies, **offer)
        return find_post(lambda: made, self.events.append, per_minute=60)

    @asynccontextmanager
    async def serving(self, _limits=None, **posts):
        try:
            for name, post in posts.items():
                hospital = self.world.hospitals[name]
                hospital.server = ExchangeServer(
                    hospital.contexts,
                    self.world.keys.get,
                    self.world.ledger,
                    hospital.chunks,
                    limits=ServerLimits(**(_limits or {})),
                    report=hospital.events.append,
                    posts=(post,) if post is not None else (),
                )
                await hospital.server.start("127.0.0.1")
            yield self
        finally:
            for name in posts:
                await self.world.hospitals[name].server.close()

    def holder(self, name):
        return self.world.hospitals[name].holder

    async def ask(self, *names, asked=WANTED, timeout_s=10.0, who="beta"):
        async def custodian_of(study_id):
            return self.custodians.get(study_id)

        holders = [self.holder(name) for name in names]
        identity = self.world.hospitals[who].identity
        return await asking.ask(identity, asked, holders, custodian_of, timeout_s=timeout_s)


@pytest.fixture
def federation(tmp_path):
    return Federation(tmp_path)


async def test_everybody_is_asked_and_every_answer_is_an_event(federation):
    alpha = federation.answers("alpha", "a1", "a2")
    gamma = federation.answers("gamma", "g1")
    async with federation.serving(alpha=alpha, gamma=gamma):
        found = await federation.ask("alpha", "gamma")
    assert {name: names(answer) for name, answer in found.answers.items()} == {
        "alpha": ["a1", "a2"],
        "gamma": ["g1"],
    }
    assert found.silent == {}
    told = sorted((event.told, event.institution, event.purpose) for event in federation.events)
    assert told == [(1, "beta", "TREAT"), (2, "beta", "TREAT")]
    assert {event.kind for event in federation.events} == {Inquiry.ANSWERED}


async def slow(institution, body):
    await OPEN.wait()
    return b""


async def garbage(institution, body):
    return secrets.token_bytes(100)


async def endless(institution, body):
    return bytes(5 << 20)


def post(respond):
    return Post(path=asking.FIND_PATH, respond=respond, body_bytes_max=10_000, per_minute=60)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (post(slow), "no answer within"),
        (post(garbage), "no answer"),
        (post(endless), "larger than any"),
        (None, "does not answer searches"),
    ],
)
async def test_one_who_fails_is_named_and_spoils_nothing(federation, bad, reason):
    alpha = federation.answers("alpha", "a1")
    patience = 0.5 if bad is not None and bad.respond is slow else 10.0
    async with federation.serving(alpha=alpha, gamma=bad):
        found = await federation.ask("alpha", "gamma", timeout_s=patience)
        OPEN.set()
    assert names(found.answers["alpha"]) == ["a1"]
    assert list(found.silent) == ["gamma"]
    assert reason in found.silent["gamma"]


async def test_no_more_is_read_than_an_answer_may_have(federation):
    async with federation.serving(alpha=post(endless)):
        link = Link(federation.holder("alpha"), federation.world.beta.identity, QUICK)
        with pytest.raises(HolderLied):
            await link.post(asking.FIND_PATH, b"", 1_000)
        await link.close()


async def test_nobody_there_is_named_too(federation):
    async with federation.serving(alpha=federation.answers("alpha", "a1")):
        holder = federation.holder("alpha")
    federation.holder = lambda name: holder
    found = await federation.ask("alpha")
    assert "connection failed" in found.silent["alpha"]


async def test_who_tells_of_anothers_study_is_not_believed_at_all(federation):
    alpha = federation.answers("alpha", "a1")
    theirs = FoundStudy(key("a1").encode(), "granted", {})
    own = FoundStudy(key("g1").encode(), "granted", {})
    federation.custodians[own.study_id] = "gamma"

    async def lies(institution, body):
        return encode_answer(Answer(kind=Kind.FIND, offered=(), studies=(own, theirs)))

    async with federation.serving(alpha=alpha, gamma=post(lies)):
        found = await federation.ask("alpha", "gamma")
    assert list(found.answers) == ["alpha"]
    assert "not its own" in found.silent["gamma"]


async def test_what_this_hospitals_ledger_does_not_know_yet_is_left_away(federation):
    alpha = federation.answers("alpha", "a1", "new")
    del federation.custodians[key("new").encode()]
    async with federation.serving(alpha=alpha):
        found = await federation.ask("alpha")
    assert names(found.answers["alpha"]) == ["a1"]
    assert not found.answers["alpha"].is_complete


async def test_strangers_get_no_answer(federation):
    async with federation.serving(alpha=federation.answers("alpha", "a1")):
        found = await federation.ask("alpha", who="delta")
        assert list(found.silent) == ["alpha"]
        status, _, _ = await get(federation.world.beta, federation.world.alpha, asking.FIND_PATH)
        assert status == 405
    assert federation.events == []


async def posted(federation, body, headers=""):
    reader, writer = await connect(federation.world.alpha, federation.world.beta.contexts.client)
    try:
        head = f"POST {asking.FIND_PATH} HTTP/1.1\r\nHost: x\r\n{headers}"
        head += f"Content-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        async with asyncio.timeout(20):
            line = await reader.readline()
            return int(line.split()[1]), await reader.read(4_096)
    finally:
        writer.transport.abort()


async def test_what_is_no_question_is_refused_and_audited(federation):
    async with federation.serving(alpha=federation.answers("alpha", "a1")):
        assert (await posted(federation, b"\x00" * 100))[0] == 400
        assert (await posted(federation, bytes(1 << 20)))[0] == 413
    codes = [event.code for event in federation.world.alpha.events]
    assert codes == ["question_invalid", "request_too_large"]
    assert federation.events == []


async def test_a_body_that_never_comes_costs_one_connection_for_a_while(federation):
    limits = {"stall_timeout_ms": 200}
    async with federation.serving(limits, alpha=federation.answers("alpha", "a1")):
        reader, writer = await connect(
            federation.world.alpha, federation.world.beta.contexts.client
        )
        head = f"POST {asking.FIND_PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n"
        writer.write(head.encode())
        async with asyncio.timeout(20):
            assert b"request_too_slow" in await reader.read()
        writer.transport.abort()
    assert [event.code for event in federation.world.alpha.events] == ["request_too_slow"]


async def test_too_many_questions_a_minute_are_refused(federation):
    made = federation.answers("alpha", "a1")
    few = Post(
        path=made.path, respond=made.respond, body_bytes_max=made.body_bytes_max, per_minute=3
    )
    async with federation.serving(alpha=few):
        results = [await federation.ask("alpha") for _ in range(4)]
    assert [bool(found.answers) for found in results] == [True, True, True, False]
    assert "too often" in results[-1].silent["alpha"]


async def test_only_some_questions_of_one_hospital_are_answered_at_once(federation):
    gate = asyncio.Event()
    arrived = []

    async def waits(institution, body):
        arrived.append(institution)
        await gate.wait()
        return encode_answer(Answer(kind=Kind.FIND, offered=()))

    async with federation.serving(alpha=post(waits)):
        first = [asyncio.create_task(federation.ask("alpha")) for _ in range(2)]
        await until(lambda: len(arrived) == 2)
        third = await federation.ask("alpha")
        other = asyncio.create_task(federation.ask("alpha", who="gamma"))
        await until(lambda: len(arrived) == 3)
        gate.set()
        answered = await asyncio.gather(*first, other)
    assert all(found.answers for found in answered)
    assert "already" in third.silent["alpha"]


async def test_when_the_ledger_cannot_be_asked_nothing_is_told(federation):
    policies = Policies(**{key("a1"): "granted"})
    policies.failure = LedgerUnavailable("down")
    made = answering([named("a1")], policies)
    async with federation.serving(
        alpha=find_post(lambda: made, federation.events.append, per_minute=60)
    ):
        found = await federation.ask("alpha")
    assert "cannot ask the ledger" in found.silent["alpha"]
    assert federation.events == []


async def test_a_hospital_that_does_not_answer_searches_says_so(federation):
    silent = find_post(lambda: None, federation.events.append, per_minute=60)
    async with federation.serving(alpha=silent):
        found = await federation.ask("alpha")
        status, _ = await posted(federation, encode_question(WANTED))
    assert "does not answer" in found.silent["alpha"]
    assert status == 403
