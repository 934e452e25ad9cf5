"""Outcomes of dry runs: kept for a while, never beyond what may change them."""

import asyncio
from types import SimpleNamespace

import pytest

from node.exchange.transfer.errors import LedgerUnavailable
from node.gateway import trials as trials_module
from node.gateway.ledger_events import LedgerEvents
from node.gateway.trials import AT_ONCE, Trials
from node.rpc.errors import ConnectionLost
from tests.exchange.federation_parts import question
from tests.gateway.flow_world import until

STUDY = b"s" * 16


class Node:
    """The RPC client as far as it is used."""

    def __init__(self):
        self.outcome = "granted"
        self.asked = []
        self.gate = None
        self.failure = None

    async def policy_try(self, asked):
        self.asked.append(asked)
        if self.gate is not None:
            await self.gate.wait()
        if self.failure is not None:
            raise self.failure
        return SimpleNamespace(outcome=self.outcome)


@pytest.fixture
def node():
    return Node()


@pytest.fixture
def trials(node):
    return Trials(SimpleNamespace(client=node))


async def test_the_same_is_asked_once_and_another_question_is_another(node, trials):
    for _ in range(3):
        assert await trials.outcome(STUDY, "beta", question()) == "granted"
    assert len(node.asked) == 1
    await trials.outcome(STUDY, "gamma", question())
    await trials.outcome(STUDY, "beta", question(purpose="HRESCH"))
    await trials.outcome(STUDY, "beta", question(deidentified=True))
    await trials.outcome(b"t" * 16, "beta", question())
    assert len(node.asked) == 5


@pytest.mark.parametrize("name", ["consent_withdrawn", "policy_retired", "access_revoked"])
async def test_an_event_that_may_change_it_ends_an_outcome(node, trials, name):
    events = LedgerEvents(node)
    trials.attach(events)
    await trials.outcome(STUDY, "beta", question())
    node.outcome = "denied"
    for heard in events._heard[name]:
        heard(None)
    assert await trials.outcome(STUDY, "beta", question()) == "denied"


async def test_an_answer_from_before_a_change_is_not_kept(node, trials):
    node.gate = asyncio.Event()
    asking = asyncio.create_task(trials.outcome(STUDY, "beta", question()))
    await until(lambda: node.asked)
    trials.forget()
    node.gate.set()
    assert await asking == "granted"
    node.outcome = "denied"
    assert await trials.outcome(STUDY, "beta", question()) == "denied"


async def test_an_outcome_is_kept_for_seconds_only(node, trials, monkeypatch):
    await trials.outcome(STUDY, "beta", question())
    monkeypatch.setattr(trials_module, "FRESH_S", 0.0)
    await trials.outcome(STUDY, "beta", question())
    assert len(node.asked) == 2


async def test_few_are_under_way_at_a_time(node, trials):
    node.gate = asyncio.Event()
    tasks = [
        asyncio.create_task(trials.outcome(bytes([number]) * 16, "beta", question()))
        for number in range(3 * AT_ONCE)
    ]
    await until(lambda: len(node.asked) == AT_ONCE)
    node.gate.set()
    await asyncio.gather(*tasks)
    assert len(node.asked) == 3 * AT_ONCE


async def test_a_node_that_cannot_be_asked_permits_nothing(node, trials):
    node.failure = ConnectionLost("gone")
    with pytest.raises(LedgerUnavailable):
        await trials.outcome(STUDY, "beta", question())
    node.failure = None
    assert await trials.outcome(STUDY, "beta", question()) == "granted"
