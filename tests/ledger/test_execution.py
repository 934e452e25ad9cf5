"""Blocks: strictly in order, whole, and never stopped by what a transaction holds."""

import pytest

from consensus.errors import InvariantViolation
from consensus.messages import NULL_DIGEST
from consensus.validators import ValidatorSchedule, ValidatorSet
from consensus.wire import pack
from node.ledger import accounts, execution, merkle
from node.ledger.block import Batch, Header, Receipt, receipts_root
from node.ledger.contracts import table
from node.ledger.contracts.base import OperationKind
from node.ledger.errors import REFUSALS, Rejected
from node.ledger.execution import FRONTIER, Executor, refusal
from node.ledger.genesis import Genesis
from node.ledger.state import StateView
from storage import schema
from storage.chain import ChainStore
from storage.errors import CorruptRecord, StorageError
from storage.kv import WriteBatch
from storage.memory import MemoryStore
from storage.state import StateTree
from tests.ledger.harness import (
    AACHEN,
    GENESIS,
    READER,
    Chain,
    digest,
    identity,
    register,
    transaction,
)


@pytest.fixture
def chain():
    return Chain()


@pytest.fixture
def operations(monkeypatch):
    """Lets a test add operations of its own to the table."""
    added = dict(table.OPERATIONS)
    monkeypatch.setattr("node.ledger.execution.OPERATIONS", added)

    def add(name, apply, roles=("gateway",)):
        added[name] = OperationKind(name, frozenset(roles), lambda arguments: arguments, apply)

    return add


def retire(label):
    return ("study.retire", identity(("study", label)), "other")


def test_genesis_block_holds_the_accounts_and_nothing_else(chain):
    head = chain.executor.head
    assert (head.height, head.time_ms, head.parent) == (0, GENESIS.time_ms, bytes(32))
    assert head.chain_id == GENESIS.chain_id
    assert head.transactions_root == head.receipts_root == head.history_root == merkle.EMPTY_ROOT
    assert head.state_root == chain.tree.root != StateTree(MemoryStore()).root
    get = chain.chain.state_value
    assert accounts.member_roles(get, "charite", READER, 1) == {"auditor", "researcher"}
    assert (chain.chain.head(), chain.chain.receipts(0)) == (0, [])


def test_a_block_is_complete_and_every_row_of_it_is_written(chain):
    parent = chain.executor.head
    first, second = transaction(register("a")), transaction(register("a"))
    executed = chain.add(first, second)
    header = executed.header
    assert (header.height, header.parent) == (1, parent.digest)
    assert header.transactions_root == merkle.root([first.digest, second.digest])
    assert header.history_root == merkle.root([merkle.leaf_hash(parent.digest)])
    assert header.validators_digest == GENESIS.validator_set().digest
    stored = chain.chain
    assert Header.decode(stored.header(1)) == header
    assert stored.height_of(executed.header_digest) == 1
    batch, bodies = stored.payload(1, stored.payload_digest(1))
    assert (stored.payload_digest(1), bodies) == (
        executed.payload_digest,
        [first.raw, second.raw],
    )
    assert Batch.decode(batch, GENESIS.limits).digest == executed.payload_digest
    receipts = stored.receipts(1)
    assert header.receipts_root == receipts_root(receipts)
    assert [Receipt.decode(row) for row in receipts] == list(executed.receipts)
    assert [r.code for r in executed.receipts] == ["ok", "study_exists"]
    assert [stored.transaction(t.id) for t in (first, second)] == [(1, 0), (1, 1)]
    assert header.state_root == chain.tree.root != parent.state_root


def test_what_can_be_undone_is_forgotten_after_each_transaction(chain, monkeypatch):
    """Else a block that rewrites a large row as often as it can would hold it as often."""
    undoable = []

    class Watched(StateView):
        def put(self, key, value):
            super().put(key, value)
            undoable.append(len(self._undo))

    monkeypatch.setattr(execution, "StateView", Watched)
    chain.add(*(transaction(register(("s", number))) for number in range(20)))
    chain.add(transaction(register("a")), transaction(register("a")), transaction(register("b")))
    assert len(undoable) > 20
    assert max(undoable) < 10


def test_events_name_their_operation(chain):
    executed = chain.add(transaction(register("a"), register("b"), retire("a")))
    assert [(e.name, e.operation) for e in executed.receipts[0].events] == [
        ("study_registered", 0),
        ("study_registered", 1),
        ("study_retired", 2),
    ]


def test_a_null_block_moves_on_and_changes_nothing(chain):
    parent = chain.add(transaction(register("a"))).header
    executed = chain.add_null()
    header = executed.header
    assert (header.height, header.time_ms) == (2, parent.time_ms + 1)
    assert header.transactions_root == header.receipts_root == merkle.EMPTY_ROOT
    assert (header.state_root, executed.payload_digest) == (parent.state_root, NULL_DIGEST)
    assert chain.codes(transaction(register("b"))) == ["ok"]


@pytest.mark.parametrize(("offset", "expected"), [(5_000, 5_000), (1, 1), (0, 1), (-60_000, 1)])
def test_block_time_always_increases(chain, offset, expected):
    parent = chain.add(transaction(register("a"))).header
    carried = chain.add(transaction(register("b")), time_ms=parent.time_ms + offset)
    assert carried.header.time_ms == parent.time_ms + expected


def test_the_history_tree_covers_every_earlier_header(chain):
    digests = [chain.executor.head.digest]
    for height in range(1, 10):
        executed = chain.add_null() if height % 3 == 0 else chain.add(transaction(register(height)))
        assert executed.header.history_root == merkle.root(
            [merkle.leaf_hash(each) for each in digests]
        )
        digests.append(executed.header_digest)
        if height == 5:
            chain.reopen()


def test_operations_of_a_transaction_are_all_or_none(chain):
    before = chain.executor.head
    executed = chain.add(
        transaction(register("a"), register("b"), register("a", root=digest("other")))
    )
    receipt = executed.receipts[0]
    assert (receipt.code, receipt.operation, receipt.events) == ("study_exists", 2, ())
    assert executed.header.state_root == before.state_root
    assert chain.chain.scan_index("study_custodian", (b"charite",), limit=10) == []
    assert chain.codes(transaction(register("b"))) == ["ok"]


def test_a_failure_undoes_its_own_transaction_only(chain):
    codes = chain.codes(
        transaction(register("a")),
        transaction(register("b"), retire("a"), retire("a")),
        transaction(register("b")),
    )
    assert codes == ["ok", "study_retired", "ok"]
    assert chain.codes(transaction(retire("a"))) == ["ok"]


def test_operations_see_those_before_them_in_the_transaction_and_the_block(chain):
    amend = (
        "study.amend",
        identity(("study", "a")),
        2,
        digest(("root", "a", 1)),
        digest("a2"),
        5,
        8,
    )
    assert chain.codes(transaction(register("a"), amend), transaction(retire("a"))) == ["ok", "ok"]


FUTURE = GENESIS.limits.validity_heights_max
OTHER_CHAIN = Genesis("other", 1, GENESIS.institutions, GENESIS.validators)


@pytest.mark.parametrize(
    ("change", "operation", "code", "index"),
    [
        ({"valid_until": 1}, register("x"), "expired", None),
        ({"valid_until": 2}, register("x"), "ok", None),
        ({"valid_until": 2 + FUTURE}, register("x"), "ok", None),
        ({"valid_until": 3 + FUTURE}, register("x"), "valid_too_long", None),
        ({"genesis": OTHER_CHAIN}, register("x"), "wrong_chain", None),
        ({"institution": "nowhere"}, register("x"), "institution_unknown", None),
        ({"institution": "ukaachen"}, register("x"), "member_unknown", None),
        ({"key": digest("stranger")}, register("x"), "member_unknown", None),
        ({"key": AACHEN}, register("x"), "member_unknown", None),
        ({"key": READER}, register("x"), "role_missing", 0),
        ({"institution": "ukaachen", "key": AACHEN}, register("x"), "ok", None),
        ({}, ("study.forge", 1), "operation_unknown", 0),
        ({}, ("study.register", 1), "operation_invalid", 0),
        ({}, register("x", modality="Thorax of J. Doe"), "operation_invalid", 0),
        ({}, register("known"), "study_exists", 0),
    ],
)
def test_what_cannot_be_carried_out_gets_a_failed_receipt(chain, change, operation, code, index):
    before = chain.add(transaction(register("known"))).header
    asked = transaction(operation, **change)
    early = refusal(chain.chain, asked, 2, GENESIS.limits)
    executed = chain.add(asked)
    receipt = executed.receipts[0]
    assert (receipt.code, receipt.operation) == (code, index)
    assert (executed.header.state_root == before.state_root) == (code != "ok")
    assert chain.chain.transaction(asked.id) == (2, 0)
    # Decoding sees the chain id and contracts their own rules; admission foretells all else.
    if code in REFUSALS and code != "wrong_chain":
        assert early.code == code
        assert index is None or f"operation {index}: " in early.sentence
    else:
        assert early is None
    assert refusal(chain.chain, asked, 2, GENESIS.limits).code == "replayed"


@pytest.mark.parametrize(
    ("key", "row", "code"),
    [
        (
            accounts.institution_key("charite"),
            pack(accounts.new_institution("Charité", "DE", 0, active=False)),
            "institution_suspended",
        ),
        (
            accounts.member_key("charite", READER),
            pack(accounts.new_member(["gateway"], active=False)),
            "member_suspended",
        ),
    ],
)
def test_a_suspended_sender_is_refused(chain, operations, key, row, code):
    operations("test.suspend", lambda context, _: context.state.put(key, row))
    codes = chain.codes(transaction(("test.suspend",)), transaction(register("a"), key=READER))
    assert codes == ["ok", code]


def test_a_transaction_executes_once_whatever_became_of_it(chain):
    good, failed = transaction(register("a")), transaction(retire("unknown"))
    assert chain.codes(good, failed) == ["ok", "study_unknown"]
    chain.add(transaction(register("unknown")))
    assert chain.codes(good, failed) == ["replayed", "replayed"]
    chain.reopen()
    assert chain.codes(failed) == ["replayed"]
    assert [chain.chain.transaction(t.id) for t in (good, failed)] == [(1, 0), (1, 1)]


def test_a_second_encoding_of_one_transaction_in_a_block_is_a_replay(chain):
    """Two signatures over the same bytes give two digests and one id."""
    first = transaction(register("a"), salt="same")
    raw = first.raw[:-64] + bytes([1]) * 64
    second = type(first)(
        **{name: getattr(first, name) for name in first.__slots__}
        | {"raw": raw, "digest": merkle.leaf_hash(raw)}
    )
    assert chain.codes(first, second) == ["ok", "replayed"]
    assert chain.chain.transaction(first.id) == (1, 0)


def test_heights_are_executed_strictly_in_order(chain):
    for height in (0, 2):
        with pytest.raises(InvariantViolation, match="does not follow"):
            chain.executor.execute(height, None, (), WriteBatch())


def test_bodies_must_be_those_that_the_batch_names(chain):
    one, two = transaction(register("a")), transaction(register("b"))
    batch = Batch(chain.executor.head.time_ms + 1, (one.digest, two.digest))
    for bodies in [(one,), (two, one), (one, two, two), ()]:
        with pytest.raises(InvariantViolation, match="bodies"):
            chain.executor.execute(1, batch, bodies, WriteBatch())
    with pytest.raises(InvariantViolation, match="bodies"):
        chain.executor.execute(1, None, (one,), WriteBatch())


def test_a_block_waits_for_the_one_before_to_be_adopted_or_discarded(chain):
    executed = chain.execute([transaction(register("a"))])
    with pytest.raises(InvariantViolation, match="neither adopted nor discarded"):
        chain.execute([transaction(register("b"))])
    chain.executor.discard()
    with pytest.raises(InvariantViolation, match="executed last"):
        chain.executor.adopt(executed)
    assert chain.executor.head.height == 0
    assert chain.codes(transaction(register("a"))) == ["ok"]


def test_initialising_twice_is_an_invariant_violation(chain):
    with pytest.raises(InvariantViolation, match="already"):
        chain.executor.initialise(WriteBatch())


def test_nothing_can_be_executed_before_genesis():
    store = MemoryStore()
    executor = Executor(
        ChainStore(store),
        StateTree(store),
        GENESIS,
        ValidatorSchedule(GENESIS.validator_set()),
    )
    assert not executor.is_initialised
    with pytest.raises(InvariantViolation, match="no genesis"):
        executor.execute(1, None, (), WriteBatch())


def test_a_fault_in_a_contract_halts_the_node(chain, operations):
    operations("test.fault", lambda context, _: {}["secret"])
    with pytest.raises(InvariantViolation, match=r"test\.fault \(height 1, transaction 1, operat"):
        chain.execute([transaction(register("a")), transaction(register("b"), ("test.fault",))])


def test_damaged_state_halts_the_node_as_such(chain, operations):
    chain.add(transaction(register("a")))
    damage = WriteBatch()
    chain.chain.put_state(damage, b"study/" + identity(("study", "a")), b"\xc1")
    chain.store.write(damage, sync=False)
    with pytest.raises(CorruptRecord):
        chain.execute([transaction(retire("a"))])


def test_a_contract_that_writes_before_it_refuses_is_undone_too(chain, operations):
    def careless(context, _):
        context.state.put(b"study/half", b"done")
        context.index("study_custodian", (b"charite", b"x"), b"y")
        context.emit("test_event")
        raise Rejected("too_late", "test.order")

    operations("test.careless", careless)
    before = chain.executor.head.state_root
    executed = chain.add(transaction(("test.careless",)))
    assert executed.receipts[0] == Receipt(
        executed.transactions[0].id, "too_late", 0, "test.order", ()
    )
    assert executed.header.state_root == before
    assert chain.chain.state_value(b"study/half") is None


def test_a_restart_goes_on_from_the_head(chain):
    chain.add(transaction(register("a")))
    head = chain.executor.head
    chain.reopen()
    assert chain.executor.head == head
    assert chain.codes(transaction(register("a")), transaction(register("b"))) == [
        "study_exists",
        "ok",
    ]


def test_headers_announce_the_set_that_seals_the_next_height(chain):
    first, second = GENESIS.validator_set(), ValidatorSet(GENESIS.validator_set().validators[:1])
    chain.schedule.plan(3, second)
    seen = [chain.add_null().header for _ in range(3)]
    assert [each.validators_digest for each in seen] == [
        first.digest,
        first.digest,
        second.digest,
    ]
    assert [each.next_validators_digest for each in seen] == [
        first.digest,
        second.digest,
        second.digest,
    ]


def test_the_database_of_another_chain_is_refused(chain):
    chain.genesis = OTHER_CHAIN
    with pytest.raises(StorageError, match="holds chain"):
        chain.reopen()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (schema.META + FRONTIER.encode(), None),
        (schema.META + FRONTIER.encode(), b"\x00"),
        (schema.META + FRONTIER.encode(), merkle.Frontier().encode()),
        (schema.BLOCK + schema.height_bytes(1), None),
        (schema.BLOCK + schema.height_bytes(1), bytes(32) + b"junk"),
        (schema.BLOCK + schema.height_bytes(0), bytes(32) + b"junk"),
    ],
)
def test_a_damaged_head_stops_the_start(chain, key, value):
    chain.add(transaction(register("a")))
    damage = WriteBatch()
    damage.delete(key) if value is None else damage.put(key, value)
    chain.store.write(damage, sync=False)
    with pytest.raises(CorruptRecord):
        chain.reopen()


def test_a_state_that_is_not_the_heads_stops_the_start(chain):
    out = WriteBatch()
    chain.tree.update({b"study/forged": b"x"}, out)
    chain.store.write(out, sync=False)
    with pytest.raises(CorruptRecord, match="not that of its head"):
        chain.reopen()
