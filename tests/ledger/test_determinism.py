"""The same blocks give the same headers: on any store, in any process, after any crash."""

import os
import random
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consensus.errors import InvariantViolation
from node.ledger import accounts, membership
from node.ledger.queries import Queries
from storage.kv import WriteBatch
from storage.leveldb import open_leveldb
from tests.ledger.harness import (
    AACHEN,
    GATEWAY,
    GENESIS,
    READER,
    Chain,
    digest,
    identity,
    register,
    transaction,
)

SENDERS = [("charite", GATEWAY), ("ukaachen", AACHEN), ("charite", READER), ("nowhere", GATEWAY)]


def root_of(number, version):
    return digest(("root", number, version))


def random_operation(choose):
    """An operation over few ids and roots, so that rules are met and broken alike."""
    number, other = choose.randrange(6), choose.randrange(6)
    study = identity(("study", number))
    version = choose.randint(2, 3)
    previous, root = root_of(number, version - 1), root_of(number, version)
    if choose.random() < 0.3:
        previous, root = (root_of(other, choose.randint(1, 3)) for _ in range(2))
    match choose.randrange(8):
        case 0 | 1:
            first = root_of(choose.choice([number, number, other]), 1)
            return register(0, study_id=study, root=first)
        case 2:
            report = ("report", None, None, None, "SR", "chest", 0, 0)
            return ("study.derive", study, identity(("study", other)), previous, *report)
        case 3:
            return ("study.retire", study, "other")
    return ("study.amend", study, version, previous, root, 1, 1)


def random_blocks(seed, count=12):
    """Lists of transactions, None for a null block; alike for alike seeds, in any process."""
    choose = random.Random(seed)
    blocks, made = [], []
    for number in range(count):
        if choose.random() < 0.15:
            blocks.append(None)
            continue
        block = []
        for position in range(choose.randint(1, 4)):
            if made and choose.random() < 0.1:
                again = choose.choice(made)
                if again not in block:
                    block.append(again)
                continue
            institution, key = choose.choices(SENDERS, (12, 4, 1, 1))[0]
            operations = [random_operation(choose) for _ in range(choose.choice((1, 1, 1, 2, 3)))]
            valid_until = choose.choices((1_000, 3, 10**6), (20, 1, 1))[0]
            made.append(
                transaction(
                    *operations,
                    institution=institution,
                    key=key,
                    valid_until=valid_until,
                    salt=(seed, number, position),
                )
            )
            block.append(made[-1])
        blocks.append(block or None)
    return blocks


def headers(chain, blocks):
    """Add all blocks; return the header digests."""
    return [
        (chain.add_null() if block is None else chain.add(*block)).header_digest.hex()
        for block in blocks
    ]


def test_memory_and_leveldb_agree(tmp_path):
    store = open_leveldb(tmp_path / "db")
    try:
        assert headers(Chain(store), random_blocks(1, 30)) == headers(Chain(), random_blocks(1, 30))
    finally:
        store.close()


def test_a_process_with_another_hash_seed_agrees():
    program = (
        "from tests.ledger.test_determinism import Chain, headers, random_blocks\n"
        "print(*headers(Chain(), random_blocks(5, 20)))"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", program],
            cwd=Path(__file__).parents[2],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        for seed in ("1", "2")
    ]
    assert runs[0] == runs[1] == headers(Chain(), random_blocks(5, 20))


def test_a_restart_between_any_two_blocks_changes_nothing():
    chain, restarted = Chain(), Chain()
    for block in random_blocks(2, 25):
        restarted.reopen()
        assert headers(chain, [block]) == headers(restarted, [block])


def test_a_crash_before_the_durable_write_leads_to_the_same_block():
    calm, crashing = Chain(), Chain()
    for number, block in enumerate(random_blocks(3, 25)):
        lost = crashing.execute(block, out=WriteBatch())
        if number % 2:
            crashing.reopen()
        else:
            crashing.executor.discard()
        again = crashing.add_null() if block is None else crashing.add(*block)
        assert again.header == lost.header
        assert [again.header_digest.hex()] == headers(calm, [block])


def test_a_crash_after_the_durable_write_goes_on_above_it():
    chain = Chain()
    out = WriteBatch()
    executed = chain.execute([transaction(register("a"))], out=out)
    chain.store.write(out, sync=False)
    chain.reopen()
    assert chain.executor.head == executed.header
    with pytest.raises(InvariantViolation):
        chain.executor.execute(1, None, (), WriteBatch())


@dataclass
class Model:
    """The rules of the study contract, said again as plainly as possible."""

    studies: dict[bytes, dict] = field(default_factory=dict)
    roots: set[bytes] = field(default_factory=set)
    seen: set[bytes] = field(default_factory=set)

    def run(self, height, asked):
        """Return the code of one transaction."""
        if asked.id in self.seen:
            return "replayed"
        self.seen.add(asked.id)
        if asked.valid_until < height:
            return "expired"
        if asked.valid_until > height + GENESIS.limits.validity_heights_max:
            return "valid_too_long"
        if asked.institution == "nowhere":
            return "institution_unknown"
        if asked.member_key == READER:
            return "role_missing"
        before = {key: dict(row) for key, row in self.studies.items()}, set(self.roots)
        for operation in asked.operations:
            code = getattr(self, operation.name.split(".")[1])(
                asked.institution, *operation.arguments
            )
            if code:
                self.studies, self.roots = before
                return code
        return "ok"

    def register(self, sender, study, subject, root, *_):
        return self._new(sender, study, root, subject)

    def derive(self, sender, study, source, root, *_):
        return self._problem(sender, source, "source") or self._new(
            sender, study, root, self.studies[source]["subject"]
        )

    def amend(self, sender, study, version, previous, root, *_):
        problem = self._problem(sender, study, "study")
        if problem:
            return problem
        row = self.studies[study]
        if version != row["version"] + 1:
            return "version_conflict"
        if previous != row["root"]:
            return "root_conflict"
        if root in self.roots:
            return "root_exists"
        self.roots.add(root)
        row.update(version=version, root=root)
        return None

    def retire(self, sender, study, reason):
        problem = self._problem(sender, study, "study")
        if not problem:
            self.studies[study]["retired"] = reason
        return problem

    def _problem(self, sender, study, role):
        if study not in self.studies:
            return f"{role}_unknown"
        if self.studies[study]["custodian"] != sender:
            return "not_custodian"
        return f"{role}_retired" if self.studies[study]["retired"] else None

    def _new(self, sender, study, root, subject):
        if study in self.studies:
            return "study_exists"
        if root in self.roots:
            return "root_exists"
        self.roots.add(root)
        self.studies[study] = {
            "custodian": sender,
            "subject": subject,
            "version": 1,
            "root": root,
            "retired": None,
        }
        return None


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32))
def test_random_transactions_agree_with_the_model(seed):
    chain, model = Chain(), Model()
    for height, block in enumerate(random_blocks(seed, 20), start=1):
        if block is None:
            chain.add_null()
            continue
        codes = [receipt.code for receipt in chain.add(*block).receipts]
        assert codes == [model.run(height, asked) for asked in block]
    view = Queries(chain.chain, GENESIS.limits)
    for number in range(6):
        study = identity(("study", number))
        stored, row = view.study(study), model.studies.get(study)
        assert (stored is None) == (row is None)
        if stored is not None:
            summary = stored.summary
            assert (summary.custodian, summary.subject_id, summary.version, summary.root) == (
                row["custodian"],
                row["subject"],
                row["version"],
                row["root"],
            )
            assert summary.retire_reason == row["retired"]
            assert [each.version for each in stored.versions] == list(range(row["version"], 0, -1))
    began_with = len(accounts.genesis_state(GENESIS)) + len(membership.genesis_rows(GENESIS))
    assert chain.tree.key_count == len(model.studies) + len(model.roots) + began_with


def test_the_model_is_put_to_every_test():
    """Random sequences that never meet a rule would prove nothing."""
    seen, versions = set(), set()
    for seed in range(40):
        chain = Chain()
        for block in random_blocks(seed, 20):
            executed = chain.add_null() if block is None else chain.add(*block)
            seen.update(receipt.code for receipt in executed.receipts)
        view = Queries(chain.chain, GENESIS.limits)
        found = [view.study(identity(("study", number))) for number in range(6)]
        versions.update(each.summary.version for each in found if each)
    assert versions >= {1, 2, 3}
    assert seen >= {
        "ok",
        "replayed",
        "expired",
        "valid_too_long",
        "institution_unknown",
        "role_missing",
        "study_exists",
        "root_exists",
        "study_unknown",
        "source_unknown",
        "not_custodian",
        "study_retired",
        "source_retired",
        "version_conflict",
        "root_conflict",
    }
