"""Registering: the vault first, then the chain; at every interruption, the same bytes again.

`Chain` is a fake of the node's RPC: it executes what it is given, or fails as it was told to.
"""

import asyncio
import threading
from types import SimpleNamespace
from uuid import uuid4

import numpy as np
import pytest

from node import keys, studies
from node.imaging import vault_keys
from node.imaging.register import Action
from node.imaging.vault import State, create_vault
from node.imaging.verify import StudyStatus
from node.ledger.errors import Refused
from node.ledger.limits import Limits
from node.ledger.transaction import decode_transaction
from node.rpc.errors import ConnectionLost
from node.rpc.service import Submitted
from node.studies import Signer, register, verify
from tests.imaging import dicom

CHAIN_ID = b"c" * 32


@pytest.fixture
def vault(tmp_path, monkeypatch):
    monkeypatch.setattr(vault_keys, "_ITERATIONS", 1)
    monkeypatch.setattr(vault_keys, "_MEMORY_KIB", 64)
    with create_vault(tmp_path / "vault.db", "correct horse") as opened:
        yield opened


@pytest.fixture
def signer():
    return Signer(keys.generate(), "north", CHAIN_ID)


@pytest.fixture
def new_study(tmp_path):
    def make(instances=2):
        root = f"2.25.{uuid4().int}"
        folder = tmp_path / root
        folder.mkdir()
        for number in range(instances):
            pixels = np.full((2, 2), number, "<u2")
            dicom.minimal(folder / f"{number}", sop=f"{root}.{number}", study=root, pixels=pixels)
        return folder

    return make


class Chain:
    """What a client sees of a chain. `answers` are given, in order, before it does its work."""

    def __init__(self):
        self.height = 1
        self.roots = {}  # study id -> [(root, height)]
        self.sent = []
        self.answers = []
        self.on_submit = lambda raw: None
        self.under_way = self.most_under_way = 0

    async def before_answer(self):
        """Nothing holds an answer back, unless a test says so."""

    async def head(self):
        return SimpleNamespace(height=self.height)

    async def submit(self, raw, wait="final", timeout_s=None):
        self.sent.append(raw)
        self.on_submit(raw)
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        await self.before_answer()
        self.under_way -= 1
        answer = self.answers.pop(0) if self.answers else None
        if isinstance(answer, Exception):
            raise answer
        transaction = decode_transaction(raw, Limits())
        if isinstance(answer, str):
            return Submitted(transaction.id, "final", self.height, 0, answer, 0)
        self.execute(transaction)
        if wait == "accepted":
            return Submitted(transaction.id, "accepted")
        return Submitted(transaction.id, "final", self.height, 0, "ok")

    def execute(self, transaction):
        self.height += 1
        for operation in transaction.operations:
            place = 2 if operation.name == "study.register" else 3
            study = self.roots.setdefault(operation.arguments[0], [])
            study.append((operation.arguments[place], self.height))

    async def study(self, study_id):
        roots = self.roots.get(study_id)
        if not roots:
            return None
        versions = [SimpleNamespace(root=root, height=height) for root, height in roots]
        return SimpleNamespace(versions=versions, summary=SimpleNamespace(root=roots[-1][0]))


@pytest.fixture
def chain():
    return Chain()


def state_of(vault, registration):
    return vault.latest(registration.prepared.manifest.study_id).state


async def test_the_vault_knows_the_transaction_before_it_is_sent(chain, vault, signer, new_study):
    seen = []
    chain.on_submit = lambda raw: seen.append([v.transaction for v in vault.unfinished()])
    result = await register([new_study()], chain, vault, signer)
    assert result.is_done
    assert seen == [[chain.sent[0]]]
    assert state_of(vault, result.studies[0]) is State.FINAL
    assert result.studies[0].waited_ms > 0


async def test_registering_again_sends_nothing(chain, vault, signer, new_study):
    folder = new_study()
    await register([folder], chain, vault, signer)
    again = await register([folder], chain, vault, signer)
    assert again.is_done
    assert again.studies[0].prepared.action is Action.NOTHING
    assert len(chain.sent) == 1


@pytest.mark.parametrize(
    "failure", [TimeoutError(), Refused("busy", "later"), Refused("mempool_full", "later")]
)
async def test_what_may_still_succeed_is_sent_again_byte_for_byte(
    failure, chain, vault, signer, new_study
):
    folder = new_study()
    chain.answers = [failure]
    first = await register([folder], chain, vault, signer)
    assert first.studies[0].is_pending
    assert not first.is_done
    assert state_of(vault, first.studies[0]) is State.SUBMITTED
    second = await register([folder], chain, vault, signer)
    assert second.is_done
    assert chain.sent[0] == chain.sent[1]
    assert state_of(vault, second.studies[0]) is State.FINAL


async def test_a_lost_connection_ends_the_call_and_the_next_one_resumes(
    chain, vault, signer, new_study
):
    folder = new_study()
    chain.answers = [ConnectionLost("gone")]
    with pytest.raises(ConnectionLost):
        await register([folder], chain, vault, signer)
    result = await register([folder], chain, vault, signer)
    assert result.is_done
    assert chain.sent[0] == chain.sent[1]


async def test_a_leftover_that_can_no_longer_execute_is_signed_anew_at_once(
    chain, vault, signer, new_study
):
    folder = new_study()
    chain.answers = [TimeoutError(), Refused("expired", "too late")]
    await register([folder], chain, vault, signer)
    result = await register([folder], chain, vault, signer)
    assert result.is_done
    assert chain.sent[1] == chain.sent[0]
    assert chain.sent[2] != chain.sent[0]


async def test_a_leftover_that_was_executed_long_ago_is_found_by_its_root(
    chain, vault, signer, new_study
):
    folder = new_study()
    chain.answers = [TimeoutError(), Refused("expired", "its id is forgotten")]
    await register([folder], chain, vault, signer)
    chain.execute(decode_transaction(chain.sent[0], Limits()))
    result = await register([folder], chain, vault, signer)
    assert result.is_done
    assert result.studies[0].submitted.height == chain.height
    assert len(chain.sent) == 2
    assert state_of(vault, result.studies[0]) is State.FINAL


async def test_a_second_transaction_that_comes_too_late_is_no_failure(
    chain, vault, signer, new_study
):
    folder = new_study()
    chain.answers = [Refused("expired", "it left the mempool")]
    refused = await register([folder], chain, vault, signer)
    assert refused.studies[0].refusal
    # Another node still had the first one, and it is ordered after all; the second then fails.
    chain.execute(decode_transaction(chain.sent[0], Limits()))
    chain.answers = ["study_exists"]
    result = await register([folder], chain, vault, signer)
    assert result.is_done
    assert state_of(vault, result.studies[0]) is State.FINAL


async def test_what_a_contract_refuses_may_be_tried_again(chain, vault, signer, new_study):
    folder = new_study()
    chain.answers = ["not_custodian"]
    first = await register([folder], chain, vault, signer)
    assert first.studies[0].refusal == "refused by the contract: not_custodian"
    assert not first.is_done
    assert state_of(vault, first.studies[0]) is State.PREPARED
    assert (await register([folder], chain, vault, signer)).is_done
    assert chain.sent[0] != chain.sent[1]


async def test_late_files_follow_a_leftover_in_the_same_call(chain, vault, signer, new_study):
    folder = new_study(3)
    late = (folder / "2").rename(folder.parent / "late")
    chain.answers = [TimeoutError()]
    await register([folder], chain, vault, signer)
    late.rename(folder / "2")
    result = await register([folder], chain, vault, signer)
    assert result.is_done
    assert result.studies[0].prepared.manifest.version == 2
    assert len(result.studies[0].prepared.manifest.instances) == 3


async def test_to_be_accepted_is_enough_when_no_more_was_asked(chain, vault, signer, new_study):
    result = await register([new_study()], chain, vault, signer, wait="accepted")
    assert result.is_done
    assert state_of(vault, result.studies[0]) is State.SUBMITTED


async def test_many_studies_are_under_way_at_once_but_not_all(
    chain, vault, signer, new_study, monkeypatch
):
    monkeypatch.setattr(studies, "IN_FLIGHT_MAX", 3)
    waiting = []
    folders = [new_study(1) for _ in range(8)]

    async def hold_back():
        while chain.under_way < 3 and len(chain.sent) < len(folders):
            await asyncio.to_thread(vault.unfinished)
        for _ in range(20):  # whoever could come as well does so meanwhile
            await asyncio.to_thread(vault.unfinished)

    chain.before_answer = hold_back
    result = await register(folders, chain, vault, signer, on_settled=waiting.append)
    assert result.is_done
    assert len(result.studies) == 8
    assert chain.most_under_way == 3
    assert waiting == list(range(7, -1, -1))


async def test_one_bad_study_does_not_keep_the_others_back(chain, vault, signer, new_study):
    chain.answers = ["root_exists"]
    result = await register([new_study(), new_study()], chain, vault, signer)
    assert sorted(study.is_done for study in result.studies) == [False, True]


async def test_nothing_to_register_is_not_done(chain, vault, signer, tmp_path):
    (tmp_path / "note").write_text("no image")
    result = await register([tmp_path / "note"], chain, vault, signer)
    assert (result.studies, result.is_done) == ((), False)


async def test_whoever_gives_up_is_not_kept_waiting_for_all_files(chain, vault, signer, new_study):
    read, go_on = threading.Event(), threading.Event()
    steps = []

    def progress(step):
        steps.append(step)
        read.set()
        go_on.wait(10)

    task = asyncio.create_task(register([new_study(5)], chain, vault, signer, progress=progress))
    await asyncio.to_thread(read.wait, 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    go_on.set()
    await asyncio.get_running_loop().shutdown_default_executor()
    assert len(steps) == 1
    assert chain.sent == []


async def test_verification_rests_on_the_root_on_the_chain(chain, vault, signer, new_study):
    folder = new_study()
    await register([folder], chain, vault, signer)
    assert (await verify([folder], chain, vault)).intact
    (study_id,) = chain.roots
    chain.roots[study_id] = [(b"x" * 32, 2)]
    report = await verify([folder], chain, vault)
    assert report.studies[0].status is StudyStatus.WRONG_MANIFEST
    chain.roots.clear()
    report = await verify([folder], chain, vault)
    assert report.studies[0].status is StudyStatus.NOT_REGISTERED
