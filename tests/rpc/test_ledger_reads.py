"""Questions to the ledger through client, server and the node's own service, over a real chain."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from consensus.messages import SealCertificate
from node.ledger.block import encode_certificate
from node.ledger.errors import Refused
from node.ledger.queries.access_views import PolicyQuestion, RequestQuery
from node.ledger.queries.studies import StudyQuery
from node.rpc.errors import RpcError
from node.service import About, Service
from storage.kv import WriteBatch
from tests.ledger.harness import digest, identity
from tests.ledger.query_world import (
    ASKER,
    CUSTODIAN,
    FOURTH,
    GENESIS,
    NAMES,
    THIRD,
    World,
    node_key,
)
from tests.rpc.conftest import eventually

STUDY = identity(("study", "a"))
SUBJECT = identity(("subject", "a"))


@pytest.fixture
def world():
    made = World()
    made.study()
    made.publish("treatment")
    made.grant()
    made.ask()
    return made


@pytest.fixture
def service(world):
    """The node's service; of the other parts of a node only what questions touch."""
    with ThreadPoolExecutor(1) as readers:
        yield Service(
            about=About(CUSTODIAN, node_key(CUSTODIAN), "0", GENESIS),
            store=world.store,
            chain=SimpleNamespace(height=world.height),
            replica=None,
            mempool=None,
            admission=None,
            transport=SimpleNamespace(connected={node_key(ASKER): None}),
            catch_up=SimpleNamespace(stable_height=0),
            readers=readers,
            halted=lambda: None,
            is_listed=lambda: True,
        )


@pytest.fixture
async def client(serve, service):
    node = await serve(service=service)
    async with node.client() as connected:
        yield connected


def seal(world, service):
    """Let the head be stable, as when a quorum's seals have come."""
    head = world.executor.head
    certificate = SealCertificate(head.height, head.digest, ((0, bytes(64)), (1, bytes(64))))
    out = WriteBatch()
    world.chain.put_certificate(out, head.height, encode_certificate(certificate))
    world.store.write(out, sync=False)
    service.block_stable(certificate)


async def test_a_program_reads_the_story_of_a_study(client, world):
    view = await client.study(STUDY)
    assert (view.summary.confidentiality, view.summary.erased_height) == ("N", None)
    consent = await client.consent(CUSTODIAN, SUBJECT)
    assert [rule.state for rule in consent.rules] == ["in_force"]
    assert [rule.name for rule in (await client.policies(CUSTODIAN)).own] == ["treatment"]
    [request] = (await client.requests(RequestQuery(institution=ASKER))).requests
    assert request == await client.request(identity(("request", "r")))
    assert (request.state, request.permitted) == ("granted", True)
    names = [entry.name for entry in (await client.audit_trail(STUDY)).entries]
    assert names == ["access_granted", "access_requested", "study_registered"]


async def test_a_program_tries_a_request_before_making_it(client):
    question = PolicyQuestion(STUDY, THIRD, "clinician", "TREAT", 10, 1)
    trial = await client.policy_try(question)
    assert (trial.outcome, trial.rule, trial.question) == (
        "granted",
        f"{CUSTODIAN}/treatment",
        question,
    )


async def test_a_program_reads_who_takes_part(client):
    page = await client.institutions(limit=3)
    rest = await client.institutions(limit=3, cursor=page.next_cursor)
    assert [each.name for each in (*page.institutions, *rest.institutions)] == sorted(NAMES)
    assert (await client.institution(THIRD)).is_validator
    assert len((await client.members(ASKER)).members) == 7
    assert (await client.encryption_keys(ASKER)).keys == ()
    assert (await client.anchors(ASKER)).anchors == ()
    assert {each.name for each in await client.parameters()} >= {"break_glass_heights"}


async def test_a_program_tries_and_reads_a_proposal(client, world):
    trial = await client.proposal_try("validator_remove", (FOURTH,))
    assert (trial.n, trial.quorum, trial.live) == (3, 2, (CUSTODIAN, ASKER))
    with pytest.raises(Refused) as refused:
        await client.proposal_try("validator_remove", ())
    assert refused.value.code == "operation_invalid"
    proposal = world.govern("out", "validator_remove", FOURTH)
    view = await client.proposal(proposal)
    assert (view.arguments, view.state) == ((FOURTH,), "passed")
    assert (await client.proposals("passed")).proposals == (view,)
    assert (await client.proposals("expired")).proposals == ()


async def test_a_proof_waits_until_its_height_is_sealed(client, world, service):
    asking = asyncio.create_task(client.proof("study", [STUDY.hex()]))
    await eventually(lambda: service._waiters._sealed)
    assert not asking.done()
    seal(world, service)
    made = await asking
    assert (made.kind, made.height) == ("study", world.height)
    assert b"radledger-proof" in made.proof
    assert (await client.proof("time", ["2"])).height == 2


async def test_what_cannot_be_proved_is_refused_with_the_reason(client):
    with pytest.raises(Refused) as refused:
        await client.proof("study", [digest("none")[:16].hex()])
    assert refused.value.code == "cannot_prove"
    with pytest.raises(RpcError, match="kind of a proof") as wrong:
        await client.proof("miracle")
    assert wrong.value.code == "invalid_params"


@pytest.mark.parametrize(
    ("ask", "named"),
    [
        (lambda client: client.requests(RequestQuery(state="lost")), "state"),
        (lambda client: client.consent("Charité", SUBJECT), "institution"),
        (lambda client: client.proposals("failed"), "state"),
        (lambda client: client.institutions(cursor="AA"), "cursor"),
        (lambda client: client.search(StudyQuery(offered_to="!")), "offered_to"),
    ],
)
async def test_a_senseless_question_names_the_field(client, ask, named):
    with pytest.raises(RpcError, match=named) as refused:
        await ask(client)
    assert refused.value.code == "invalid_params"


async def test_an_institution_finds_what_it_was_offered(client, world):
    world.study("b")
    world.send(CUSTODIAN, "administrator", ("study.offer", STUDY, THIRD))
    [found] = (await client.search(StudyQuery(offered_to=THIRD))).studies
    assert (found.id, found.offered_to) == (STUDY, THIRD)
    assert (await client.search(StudyQuery(offered_to=FOURTH))).studies == ()
