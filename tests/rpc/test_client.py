"""The typed client against a real server over a fake node."""

import asyncio
import contextlib
import hashlib
from dataclasses import replace

import pytest

from consensus.wire import pack
from node import keys
from node.ledger.block import Batch, Header, Receipt
from node.ledger.errors import Refused
from node.ledger.queries import BlockView, StudyPage, StudyQuery, TransactionView
from node.ledger.queries.access_views import (
    ConsentView,
    PoliciesView,
    PolicyDraft,
    PolicyQuestion,
    PolicyTrial,
    RequestPage,
    RequestQuery,
    RequestView,
)
from node.ledger.queries.audit_views import AnchorPage, ProofFile, TrailPage
from node.ledger.queries.member_views import (
    EncryptionKeyPage,
    InstitutionPage,
    InstitutionView,
    MemberPage,
    ParameterView,
    ProposalPage,
    ProposalTrial,
    ProposalView,
)
from node.ledger.queries.paging import BadQuery
from node.ledger.transaction import Operation, sign_transaction
from node.rpc import subscription as subscription_module
from node.rpc.client import Client
from node.rpc.codec import NotAnAnswer
from node.rpc.errors import ConnectionLost, NotAuthorized, RpcError
from node.rpc.service import Submitted
from tests.rpc.conftest import TOKEN, FakeService, eventually
from tests.rpc.samples import sample


def transaction():
    private = keys.generate()
    return sign_transaction(
        keys.signer(private),
        keys.public_bytes(private),
        chain_id=b"\x07" * 32,
        institution="north",
        valid_until=9,
        operations=[Operation("study.retire", (b"\xff" * 16, "error"))],
    )


async def take(stream, count):
    async with asyncio.timeout(20):
        return [(await anext(stream)).height for _ in range(count)]


async def test_each_method_returns_the_dataclass_that_the_service_gave(node):
    service = node.service
    async with node.client() as client:
        assert await client.head() == service.head()
        assert await client.status() == service.status()
        assert await client.validators() == service.validators()
        assert await client.peers() == service.peers()
        assert await client.readiness() == service.readiness()
        assert await client.study(b"\x01" * 16) is None
        assert await client.transaction(b"\x01" * 32) is None
        assert await client.block() is None


async def test_a_submission_says_how_far_it_came(node):
    async with node.client() as client:
        signed = transaction()
        assert await client.submit(signed, wait="accepted") == Submitted(
            hashlib.sha256(signed.raw).digest(), "accepted"
        )
        final = await client.submit(b"raw bytes", timeout_s=1.5)
        assert (final.state, final.height, final.position, final.code) == ("final", 7, 0, "ok")
    assert node.service.submitted == [signed.raw, b"raw bytes"]


async def test_errors_are_the_exceptions_of_the_servers_side(node):
    async with node.client() as client:
        with pytest.raises(Refused) as refused:
            await client.submit(b"refuse this")
        assert refused.value.code == "quota_exceeded"
        assert refused.value.sentence == "north has 100 waiting"
        with pytest.raises(TimeoutError, match="may still become final"):
            await client.submit(b"late")
        with pytest.raises(RpcError) as internal:
            await client.submit(b"bug")
        assert (internal.value.number, internal.value.code) == (-32603, "internal")
        with pytest.raises(RpcError, match="modality"):
            await client.search(StudyQuery(modality="XX"))


async def test_a_query_arrives_as_it_was_asked(node):
    query = StudyQuery(subject_id=b"\x05" * 16, modality="CT", height_to=9, limit=7)
    async with node.client() as client:
        assert await client.search(query) == StudyPage((), None)
        assert await client.search(StudyQuery()) == StudyPage((), None)
    assert node.service.queries == [query, StudyQuery()]


async def test_a_transaction_comes_back_exactly_arguments_included(node):
    signed = transaction()
    view = TransactionView(4, 0, 99, b"\x01" * 32, signed, Receipt(signed.id))
    node.service.answers["transaction"] = view
    async with node.client() as client:
        assert await client.transaction(signed.id) == view


async def test_a_block_comes_back(node):
    header = Header(b"\x01" * 32, 7, 1_000, *[bytes([i]) * 32 for i in range(7)])
    batch = Batch(5, (b"\x09" * 32,))
    block = BlockView(header, header.digest, batch, (Receipt(b"\x08" * 32),), None)
    node.service.answers["block"] = block
    async with node.client() as client:
        assert await client.block(7) == block
    assert node.service.queries == [7]


QUESTION = PolicyQuestion(
    *(b"\x01" * 16, "south", "clinician", "TREAT", 10, 3, True, b"\x02" * 32, 99),
    (PolicyDraft("night", "permit", "required", "block.hour >= 20"),),
)
REQUESTS = RequestQuery("south", "north", b"\x01" * 16, "granted", True, 9, "next")
CALLS = [
    ("consent", ("north", b"\x01" * 16), ConsentView, None),
    ("policies", ("north",), PoliciesView, None),
    ("policies", (), PoliciesView, (None,)),
    ("policy_try", (QUESTION,), PolicyTrial, None),
    ("request", (b"\x01" * 16,), RequestView, None),
    ("requests", (REQUESTS,), RequestPage, None),
    ("requests", (RequestQuery(),), RequestPage, None),
    ("institution", ("north",), InstitutionView, None),
    ("institutions", (), InstitutionPage, (50, None)),
    ("members", ("north",), MemberPage, ("north", 50, None)),
    ("encryption_keys", ("north",), EncryptionKeyPage, ("north", 50, None)),
    ("audit_trail", (b"\x01" * 16,), TrailPage, (b"\x01" * 16, 50, None)),
    ("anchors", ("north",), AnchorPage, ("north", 50, None)),
    ("proposal_try", ("validator_add", ("north", b"\x01", 5)), ProposalTrial, None),
    ("proof", ("time", ["7"]), ProofFile, ("time", ("7",))),
    ("proof", ("time",), ProofFile, ("time", ())),
]


@pytest.mark.parametrize(("method", "arguments", "kind", "arrives"), CALLS)
async def test_a_question_arrives_as_asked_and_its_answer_comes_back(
    node, method, arguments, kind, arrives
):
    expected = node.service.answers[method] = sample(kind)
    async with node.client() as client:
        assert await getattr(client, method)(*arguments) == expected
    assert node.service.asked == [(method, *(arguments if arrives is None else arrives))]


@pytest.mark.parametrize(
    ("method", "kind"),
    [
        ("institutions", InstitutionPage),
        ("members", MemberPage),
        ("encryption_keys", EncryptionKeyPage),
        ("anchors", AnchorPage),
    ],
)
async def test_a_page_is_asked_for_by_its_limit_and_cursor(node, method, kind):
    node.service.answers[method] = sample(kind)
    whose = () if method == "institutions" else ("north",)
    async with node.client() as client:
        await getattr(client, method)(*whose, limit=7, cursor="next")
    assert node.service.asked == [(method, *whose, 7, "next")]


async def test_a_proposal_comes_back_with_its_arguments_exactly(node):
    arguments = ("zurich", b"\x05" * 32, 7, (None, True))
    encoded = pack(arguments)
    view = replace(sample(ProposalView), arguments=arguments, encoded_arguments=encoded)
    node.service.answers = {"proposal": view, "proposals": ProposalPage((view, view), "next")}
    async with node.client() as client:
        assert await client.proposal(b"\x01" * 16) == view
        assert (await client.proposals("open", limit=2)).proposals == (view, view)
        assert node.service.asked[1] == ("proposals", "open", 2, None)
        for broken in (b"\xc1", pack(5)):
            node.service.answers["proposal"] = replace(view, encoded_arguments=broken)
            with pytest.raises(NotAnAnswer, match="encoded_arguments"):
                await client.proposal(b"\x01" * 16)


async def test_what_is_not_there_is_none_and_parameters_are_a_list(node):
    node.service.answers["parameters"] = (sample(ParameterView),)
    async with node.client() as client:
        assert await client.consent("north", b"\x01" * 16) is None
        assert await client.request(b"\x01" * 16) is None
        assert await client.institution("north") is None
        assert await client.proposal(b"\x01" * 16) is None
        assert await client.parameters() == (sample(ParameterView),)


async def test_a_refusal_of_a_read_is_the_exception_of_the_servers_side(node):
    node.service.answers["proof"] = Refused("cannot_prove", "it is there")
    node.service.answers["requests"] = BadQuery("state must be one of granted")
    async with node.client() as client:
        with pytest.raises(Refused, match="it is there"):
            await client.proof("absence", ["study"])
        with pytest.raises(RpcError, match="state must be") as refused:
            await client.requests(RequestQuery(state="lost"))
        assert refused.value.code == "invalid_params"


async def test_submit_many_gives_one_outcome_each_in_order(node):
    raws = [b"refuse" if i % 10 == 3 else b"tx %d" % i for i in range(500)]
    async with node.client(in_flight_max=32) as client:
        outcomes = await client.submit_many(raws)
    assert len(outcomes) == 500
    for raw, outcome in zip(raws, outcomes, strict=True):
        if raw == b"refuse":
            assert isinstance(outcome, Refused)
        else:
            assert outcome.id == hashlib.sha256(raw).digest()
    assert node.service.submitted == raws


async def test_no_more_calls_are_on_the_way_than_allowed(node):
    node.service.gate = asyncio.Event()
    async with node.client(in_flight_max=3) as client:
        calls = [asyncio.create_task(client.submit(b"%d" % i)) for i in range(10)]
        await eventually(lambda: len(node.service.submitted) == 3)
        for _ in range(50):
            await asyncio.sleep(0)
        assert len(node.service.submitted) == 3
        node.service.gate.set()
        await asyncio.gather(*calls)
    assert len(node.service.submitted) == 10


async def test_calls_that_are_given_up_free_their_place(node):
    node.service.gate = asyncio.Event()
    async with node.client(in_flight_max=1) as client:
        given_up = asyncio.create_task(client.submit(b"a"))
        await eventually(lambda: len(node.service.submitted) == 1)
        given_up.cancel()
        node.service.gate.set()
        assert (await client.submit(b"b")).state == "final"


async def test_a_wrong_token_is_said_at_once(node):
    with pytest.raises(NotAuthorized, match="refused the token"):
        async with Client(node.url, "w" * 43):
            pass


async def test_a_node_that_is_not_there_is_said_at_once(serve):
    node = await serve()
    await node.server.close()
    with pytest.raises(ConnectionLost, match="cannot connect to http://127"):
        async with node.client():
            pass
    with pytest.raises(ConnectionLost):
        await node.client().head()


async def test_calls_in_flight_fail_clearly_and_the_next_one_works_again(serve):
    node = await serve()
    node.service.gate = asyncio.Event()
    async with node.client(in_flight_max=1) as client:
        pending = asyncio.create_task(client.submit(b"a"))
        await node.service.entered.wait()
        await node.server.close()
        with pytest.raises(ConnectionLost, match="broke before the answer came"):
            await pending
        again = await serve(port=node.server.port)
        assert (await client.submit(b"b")).state == "final"
        assert again.service.submitted == [b"b"]


async def test_a_call_while_the_node_is_away_gives_up_after_the_time(serve):
    node = await serve()
    async with node.client(connect_timeout_s=0.05) as client:
        await node.server.close()
        with contextlib.suppress(ConnectionLost):
            while True:
                await client.head()
        with pytest.raises(ConnectionLost, match="cannot be reached"):
            await client.head()
        [outcome] = await client.submit_many([b"a"])
        assert isinstance(outcome, ConnectionLost)


async def test_a_new_token_at_the_node_ends_the_client(serve, monkeypatch):
    node = await serve()
    async with node.client() as client:
        stream = client.events()
        waiting = asyncio.create_task(anext(stream))
        await eventually(lambda: node.metrics.rpc_subscriptions._value.get() == 1)
        await node.server.close()
        monkeypatch.setattr("tests.rpc.conftest.TOKEN", "n" * 43)
        await serve(port=node.server.port)
        with pytest.raises(NotAuthorized):
            await waiting
        with pytest.raises(NotAuthorized):
            await client.head()


async def test_closing_fails_what_is_under_way(node):
    node.service.gate = asyncio.Event()
    client = node.client()
    async with client:
        call = asyncio.create_task(client.submit(b"a"))
        events = asyncio.create_task(anext(client.events()))
        await node.service.entered.wait()
        await eventually(lambda: node.metrics.rpc_subscriptions._value.get() == 1)
    for task in (call, events):
        with pytest.raises(ConnectionLost, match="closed"):
            await task
    with pytest.raises(ConnectionLost, match="closed"):
        await client.head()


async def test_events_are_typed_and_filtered(node):
    node.service.add_block("a")
    expected = node.service.add_block("b", "a")
    async with node.client() as client:
        stream = client.events(from_height=1, names=["b"])
        block = await anext(stream)
        assert block.height == 2
        [event] = block.events
        assert event.event.name == "b"
        assert event.transaction_id == expected.events[0].transaction_id
        assert event.event.fields == ("ab", "CT", 7)
        await stream.aclose()
        await eventually(lambda: node.metrics.rpc_subscriptions._value.get() == 0)


async def test_events_go_on_across_restarts_without_gap_or_repetition(serve):
    service = FakeService()
    node = await serve(service=service)
    for _ in range(3):
        service.add_block("a")
    async with node.client() as client:
        stream = client.events(from_height=1)
        assert await take(stream, 3) == [1, 2, 3]
        for _ in range(3):
            await node.server.close()
            service.add_block("a")
            node = await serve(port=node.server.port, service=service)
            service.add_block("a")
            seen = await take(stream, 2)
            assert seen == [service.feed.height - 1, service.feed.height]


async def test_blocks_that_came_before_a_break_are_read_first(serve):
    service = FakeService()
    node = await serve(service=service)
    async with node.client() as client:
        stream = client.events(from_height=1)
        service.add_block()
        assert await take(stream, 1) == [1]
        for _ in range(5):
            service.add_block()
        await client.head()  # behind the events on the socket, or near them
        await node.server.close()
        node = await serve(port=node.server.port, service=service)
        assert await take(stream, 5) == [2, 3, 4, 5, 6]


async def test_a_slow_reader_gets_everything_and_holds_up_nothing(node, monkeypatch):
    monkeypatch.setattr(subscription_module, "BUFFERED_BLOCKS_MAX", 4)
    for _ in range(60):
        node.service.add_block("a")
    async with node.client() as client:
        stream = client.events(from_height=1)
        assert await take(stream, 1) == [1]
        await eventually(lambda: node.metrics.rpc_subscriptions._value.get() == 0)
        assert (await client.submit(b"a")).state == "final"
        assert await take(stream, 59) == list(range(2, 61))


async def test_a_height_that_is_not_kept_is_refused(node):
    node.service.feed.skip_to(9)
    async with node.client() as client:
        with pytest.raises(Refused, match="height 2 is not kept"):
            await anext(client.events(from_height=2))
        assert (await client.head()).height == 9


async def test_a_subscription_given_up_before_its_answer_is_ended_at_the_node(node):
    async with node.client() as client:
        events = asyncio.create_task(anext(client.events()))
        await asyncio.sleep(0)
        events.cancel()
        await asyncio.gather(events, return_exceptions=True)
        await client.head()
        await eventually(lambda: node.metrics.rpc_subscriptions._value.get() == 0)


async def test_many_subscriptions_on_one_socket(node):
    async with node.client() as client:
        streams = [client.events(from_height=1) for _ in range(10)]
        for _ in range(5):
            node.service.add_block("a")
        for stream in streams:
            assert await take(stream, 5) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("garbage", ["{", "[]", "5", '{"id": 1}', '{"method": "event"}', '"x"'])
async def test_an_answer_that_is_none_breaks_the_connection_not_the_client(
    node, monkeypatch, garbage
):
    monkeypatch.setattr(
        "node.rpc.dispatch.jsonrpc.result_bytes", lambda identifier, result: garbage.encode()
    )
    async with node.client() as client:
        with pytest.raises(ConnectionLost):
            await client.head()
        monkeypatch.undo()
        assert (await client.head()).height == 0


def test_the_token_is_in_no_repr():
    assert TOKEN not in repr(Client("http://127.0.0.1:1", TOKEN).__dict__)
