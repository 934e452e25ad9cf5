"""Proofs out of a node's store: state of one moment, seals of a later one."""

import subprocess
import sys

import pytest

from consensus.wire import pack
from node.ledger import accounts
from node.ledger.contracts import access_record, study
from node.ledger.contracts.consent.record import Consent, Rule, consent_key
from node.ledger.proofs import make as making
from node.ledger.proofs.describe import describe, read_row
from node.ledger.proofs.format import History, Parents, decode
from node.ledger.proofs.make import CannotProve, NotSealedYet, draft, finish, make
from node.ledger.proofs.questions import BadRequest, read_request
from node.ledger.proofs.verify import verify
from storage.chain import ChainStore
from storage.errors import CorruptRecord
from storage.kv import WriteBatch
from storage.memory import MemoryStore
from tests.vectors.make_proofs import (
    GENESIS,
    REQUEST,
    ROOT,
    SPECIFICATION,
    STUDY,
    SUBJECT,
    World,
    digest,
)


@pytest.fixture
def world():
    """Height 1: a study. 2: a row. All sealed."""
    made = World()
    made.add(made.signed(("study.register", STUDY, SUBJECT, ROOT, "CT", "head", 3, 4)))
    made.add(made.signed(("test.put", b"a", b"1")))
    return made


def question(kind, *words):
    return read_request(kind, [w.hex() if isinstance(w, bytes) else str(w) for w in words])


def lineage(proof):
    return decode(proof).trust.lineage


def forget(world, *heights):
    out = WriteBatch()
    for height in heights:
        out.delete(b"C" + height.to_bytes(8, "big"))
    world.node.store.write(out, sync=False)


def test_the_head_is_not_proved_before_it_is_sealed(world):
    world.add(world.signed(("test.put", b"a", b"2")), is_sealed=False)
    with pytest.raises(NotSealedYet, match="height 3"):
        world.proof("state", "key", b"a")
    world.put_certificate(world.seal(3))
    assert verify(world.proof("state", "key", b"a"), GENESIS).rows == ((b"a", b"2"),)


def test_a_draft_waits_for_seals_while_the_chain_goes_on(world):
    world.add(world.signed(("test.put", b"a", b"2")), is_sealed=False)
    before = world.node.store.snapshot()
    drafted = draft(before, GENESIS, question("state", "key", b"a"))
    assert drafted.height == 3
    assert finish(before, GENESIS, drafted) is None
    world.add(world.signed(("test.put", b"a", b"3")), is_sealed=False)
    assert finish(world.node.store, GENESIS, drafted) is None
    world.add(world.signed(("test.put", b"a", b"4")))
    proof = finish(world.node.store, GENESIS, drafted)
    proved = verify(proof, GENESIS)
    assert (proved.rows, proved.header.height, proved.anchor.height) == (((b"a", b"2"),), 3, 5)
    assert isinstance(lineage(proof), Parents)
    world.put_certificate(world.seal(3))
    assert lineage(finish(world.node.store, GENESIS, drafted)) is None


def test_a_height_far_below_any_seals_is_proved_by_the_history(world, monkeypatch):
    monkeypatch.setattr(making, "SEARCH_HEIGHTS", 4)
    for _ in range(20):
        world.add()
    forget(world, *range(1, 20))
    for height in (0, 1, 2, 9, 15):
        proof = world.proof("time", height)
        assert isinstance(lineage(proof), History)
        proved = verify(proof, GENESIS)
        assert (proved.header.height, proved.anchor.height) == (height, 22)
    near = world.proof("time", 18)
    assert isinstance(lineage(near), Parents)
    assert verify(near, GENESIS).anchor.height == 20


def test_one_certificate_far_away_is_found_from_the_head(world, monkeypatch):
    monkeypatch.setattr(making, "SEARCH_HEIGHTS", 4)
    for _ in range(10):
        world.add(is_sealed=False)
    forget(world, 1, 2)
    with pytest.raises(NotSealedYet):
        world.proof("time", 1)
    world.put_certificate(world.seal(10))
    assert verify(world.proof("time", 1), GENESIS).anchor.height == 10


def test_a_change_without_the_seals_that_hand_over_is_told(world):
    world.add(world.signed(("test.plan", ("north", "east", "south", "west", "lake"))))
    world.add_until(70)
    assert verify(world.proof("time", 70), GENESIS).changes == (67,)
    assert verify(world.proof("time", 67), GENESIS).changes == (67,)
    assert verify(world.proof("time", 66), GENESIS).changes == ()
    forget(world, 66)
    with pytest.raises(CorruptRecord, match=r"seals of height 66.*ask another node"):
        world.proof("time", 70)


def test_a_transaction_is_proved_at_its_height_wherever_the_head_is(world):
    for _ in range(5):
        world.add()
    proved = verify(world.proof("transaction", world.ids[0]), GENESIS)
    assert (proved.header.height, proved.transaction.id) == (1, world.ids[0])


def test_every_place_in_blocks_of_every_size_is_proved():
    made = World()
    for size in range(1, 10):
        made.add(*[made.signed(("test.put", bytes((size, n)), b"")) for n in range(size)])
    for transaction_id in made.ids:
        proof = made.proof("transaction", transaction_id)
        assert verify(proof, GENESIS).transaction.id == transaction_id


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("study", digest("other")[:16]), "there is no such study; `absence` proves that"),
        (("version", STUDY, digest("other")), "no such version"),
        (("absence", "study", STUDY), "it is there"),
        (("transaction", digest("other")), "no transaction with this id"),
        (("time", 3), "has not reached this height; the last one is 2"),
    ],
)
def test_what_is_not_so_cannot_be_proved(world, words, sentence):
    with pytest.raises(CannotProve, match=sentence):
        world.proof(*words)


def test_an_access_is_a_transaction_about_access(world):
    with pytest.raises(CannotProve, match=r"about study\.register only"):
        world.proof("access", world.ids[0])
    world.add(world.signed(("access.use", REQUEST, STUDY)))
    proved = verify(world.proof("access", world.ids[-1]), GENESIS)
    assert proved.receipt.events[0].name == "access_used"


def test_a_node_without_a_block_proves_nothing():
    with pytest.raises(CannotProve, match="no block yet"):
        make(MemoryStore(), GENESIS, question("time", 0))


def test_a_damaged_store_is_told():
    made = World()
    made.add(made.signed(("test.put", b"a", b"1")))
    chain = ChainStore(made.node.store)
    out = WriteBatch()
    chain.delete_payload(out, 1, chain.payload_digest(1))
    made.node.store.write(out, sync=False)
    with pytest.raises(CorruptRecord, match="height 1 are missing"):
        made.proof("transaction", made.ids[0])


@pytest.mark.parametrize(
    ("kind", "words", "sentence"),
    [
        ("everything", (), "kind of a proof is one of time, study"),
        ("time", (), "0 words after time; it is: time HEIGHT"),
        ("time", ("-1",), "HEIGHT must be a height from 0"),
        ("study", ("zz",), "STUDY must be 32 hexadecimal digits"),
        ("consent", ("North", "00" * 16), "short name of an institution"),
        ("absence", (), "absence needs a subject: one of study, root"),
        ("state", ("planet",), "the subject must be one of study, root"),
        ("state", ("key", ""), "1 to 1024 bytes"),
    ],
)
def test_a_question_without_meaning_is_answered_with_what_it_may_be(kind, words, sentence):
    with pytest.raises(BadRequest, match=sentence):
        read_request(kind, words)


def test_the_keys_are_those_of_the_contracts():
    assert question("study", STUDY).keys == (study.study_key(STUDY),)
    assert question("version", STUDY, ROOT).keys == (study.root_key(ROOT), study.study_key(STUDY))
    assert question("consent", "north", SUBJECT).keys == (consent_key("north", SUBJECT),)
    assert question("grant", REQUEST).keys == (access_record.request_key(REQUEST),)
    asked = question("absence", "asked", STUDY, "north")
    assert asked.keys == (access_record.asked_key(STUDY, "north"),)
    assert asked.is_there is False


def test_rows_are_told_in_words(world):
    key = GENESIS.institutions[0].members[0].public_key
    asked = pack(access_record.Asked(access_record.RECORD_FORMAT, 2, REQUEST))
    world.add(world.signed(("test.put", access_record.asked_key(STUDY, "east"), asked)))
    for words, sentence in (
        (("asked", STUDY, "east"), f"east asked for study {STUDY.hex()}: 2 requests so far"),
        (("institution", "north"), "institution north is active"),
        (("institution", "nobody"), "there is no institution nobody"),
        (("member", "north", key), f"with key {key.hex()} is active: clinician, gateway"),
        (("member", "north", bytes(32)), f"north has no member with key {bytes(32).hex()}"),
        (("root", ROOT), f"version 1 of study {STUDY.hex()} has the root"),
        (("root", bytes(32)), "no version of a study has the root"),
        (("request", REQUEST), f"request {REQUEST.hex()} was never made"),
        (("study", bytes(16)), f"study {bytes(16).hex()} is not registered"),
        (("key", b"a"), "the state holds 31 under key 61"),
        (("key", b"b"), "the state holds nothing under key 62"),
    ):
        proved = verify(world.proof("state", *words), GENESIS)
        assert sentence in " ".join(describe(proved).sentences)


def test_a_record_of_a_format_that_is_not_known_is_shown_as_it_is():
    for key in (b"study/" + STUDY, b"consent/north/" + SUBJECT, b"request/" + REQUEST, b"x/y"):
        for value in (pack((99, "later")), b"\xff\xff", b""):
            shown = read_row((key, value))
            assert (shown.subject, value.hex() in shown.sentences[0]) == ("key", True)
    for key in (b"study/short", b"consent/x", b"member/x", b"asked/x", b"request/", b"root/"):
        assert read_row((key, None)).sentences == (
            f"the state holds nothing under key {key.hex()}",
        )


def test_the_specification_names_every_field_of_a_record():
    text = SPECIFICATION.read_text()
    for beginning, kind in (
        ('| `"root/"', study.Version),
        ('| `"study/"', study.Study),
        ('| `"consent/"', Consent),
        ("| a rule in it", Rule),
        ('| `"request/"', access_record.Request),
        ('| `"asked/"', access_record.Asked),
        ('| `"institution/"', accounts.Institution),
        ('| `"member/"', accounts.Member),
    ):
        (line,) = [each for each in text.splitlines() if each.startswith(beginning)]
        listed = line.rsplit(" | ", 1)[1].split(";")[0].split(", ")
        assert len(listed) == len(kind._fields), line
        first, *words = [name.replace("_", " ") for name in kind._fields]
        assert first == "format" or listed[0].startswith(first)
        found = [each.split(" (")[0].rstrip(" ?|") for each in listed[1:]]
        assert [f in w or w in f for w, f in zip(words, found, strict=True)].count(False) == 0, line


def test_verifying_loads_nothing_of_a_node():
    program = (
        "import sys, node.ledger.proofs.verify, node.ledger.proofs.describe\n"
        "print(*sorted(sys.modules))"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    loaded = run.stdout.split()
    foreign = ("plyvel", "aiohttp", "pydicom", "cel", "node.daemon", "node.network", "node.rpc")
    assert not [name for name in loaded if name.startswith(foreign)]
