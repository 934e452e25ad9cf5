"""What readers see: studies, transactions, blocks, events, and search page by page."""

import base64
import itertools
import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consensus.messages import SealCertificate
from consensus.wire import pack, unpack
from node.ledger import queries
from node.ledger.block import encode_certificate
from node.ledger.queries import BadQuery, Queries, StudyQuery, StudyVersion, studies
from storage import schema
from storage.chain import ChainStore
from storage.errors import CorruptRecord
from storage.kv import WriteBatch
from tests.ledger.harness import (
    AACHEN,
    GENESIS,
    Chain,
    digest,
    identity,
    register,
    transaction,
)


def study_id(label):
    return identity(("study", label))


def derive(label, source, kind="segmentation"):
    model = ("vendor/model", "1.0", digest("weights"))
    return (
        "study.derive",
        study_id(label),
        study_id(source),
        digest(("root", label, 1)),
        kind,
        *model,
        "SEG",
        "chest",
        0,
        0,
    )


def amend(label, version):
    roots = [digest(("root", label, each)) for each in (version - 1, version)]
    return ("study.amend", study_id(label), version, *roots, version, 9)


def retire(label):
    return ("study.retire", study_id(label), "quality")


def reader(chain):
    return Queries(ChainStore(chain.store.snapshot()), GENESIS.limits)


@pytest.fixture
def chain():
    return Chain()


def test_a_study_shows_custody_versions_derived_objects_and_heights(chain):
    chain.add(transaction(register("a")))
    chain.add(transaction(amend("a", 2)), transaction(derive("d1", "a"), derive("d2", "a")))
    chain.add(transaction(retire("a")))
    view = reader(chain).study(study_id("a"))
    summary = view.summary
    assert (summary.custodian, summary.status, summary.retire_reason) == (
        "charite",
        "retired",
        "quality",
    )
    assert (summary.registered_height, summary.changed_height, summary.version) == (1, 3, 2)
    roots = [digest(("root", "a", version)) for version in (1, 2)]
    assert view.versions == (
        StudyVersion(2, roots[1], roots[0], 2, 9, 2),
        StudyVersion(1, roots[0], None, 5, 8, 1),
    )
    assert (view.derived, view.derived_truncated) == ((study_id("d2"), study_id("d1")), False)
    derived = reader(chain).study(study_id("d1")).summary
    assert (derived.derivation.source, derived.derivation.kind) == (study_id("a"), "segmentation")
    assert derived.subject_id == summary.subject_id


def test_the_lists_of_a_study_are_bounded(chain, monkeypatch):
    monkeypatch.setattr(studies, "VERSIONS_MAX", 2)
    monkeypatch.setattr(studies, "DERIVED_MAX", 2)
    chain.add(transaction(register("a"), amend("a", 2), amend("a", 3)))
    chain.add(transaction(*(derive(f"d{i}", "a") for i in range(3))))
    view = reader(chain).study(study_id("a"))
    assert [version.version for version in view.versions] == [3, 2]
    assert view.derived == (study_id("d2"), study_id("d1"))
    assert view.derived_truncated


def test_a_transaction_shows_where_it_is_and_what_came_of_it(chain):
    good, failed = transaction(register("a")), transaction(retire("a"), retire("a"))
    block = chain.add(good, failed)
    first, second = reader(chain).transaction(good.id), reader(chain).transaction(failed.id)
    assert (first.height, first.position, first.transaction) == (1, 0, good)
    assert (first.receipt.code, first.time_ms) == ("ok", block.header.time_ms)
    assert first.header_digest == block.header_digest
    assert (second.position, second.receipt.code, second.receipt.operation) == (
        1,
        "study_retired",
        1,
    )


def test_a_replay_does_not_hide_the_first_execution(chain):
    good = transaction(register("a"))
    chain.add(good)
    chain.add(good)
    assert reader(chain).transaction(good.id).height == 1
    assert [r.code for r in reader(chain).block(2).receipts] == ["replayed"]


def test_a_block_shows_header_batch_receipts_and_seals(chain):
    asked = transaction(register("a"))
    executed = chain.add(asked)
    view = reader(chain).block(1)
    assert (view.header, view.header_digest) == (executed.header, executed.header_digest)
    assert (view.batch.transactions, view.receipts) == ((asked.digest,), executed.receipts)
    assert view.certificate is None
    certificate = SealCertificate(1, executed.header_digest, ((0, bytes(64)), (1, bytes(64))))
    out = WriteBatch()
    chain.chain.put_certificate(out, 1, encode_certificate(certificate))
    chain.store.write(out, sync=False)
    assert reader(chain).block(1).certificate == certificate


def test_genesis_and_null_blocks_have_no_batch(chain):
    chain.add_null()
    for height in (0, 1):
        view = reader(chain).block(height)
        assert (view.header.height, view.batch, view.receipts) == (height, None, ())


def test_events_come_in_order_with_their_transaction(chain):
    one, failed, two = (
        transaction(register("a"), register("b")),
        transaction(register("c"), register("a")),
        transaction(retire("a")),
    )
    chain.add(one, failed, two)
    seen = [(e.position, e.transaction_id, e.event.name) for e in reader(chain).events(1)]
    assert seen == [
        (0, one.id, "study_registered"),
        (0, one.id, "study_registered"),
        (2, two.id, "study_retired"),
    ]
    assert reader(chain).events(0) == []


def test_what_is_not_there_is_none(chain):
    view = reader(chain)
    assert view.study(bytes(16)) is None
    assert view.transaction(bytes(32)) is None
    assert view.block(1) is None
    assert view.events(1) is None


@pytest.mark.parametrize("table", [schema.PAYLOAD, schema.RECEIPTS])
def test_a_block_with_missing_parts_is_reported(chain, table):
    asked = transaction(register("a"))
    chain.add(asked)
    damage = WriteBatch()
    for key, _ in chain.store.iterate(table, schema.after_prefix(table)):
        damage.delete(key)
    chain.store.write(damage, sync=False)
    with pytest.raises(CorruptRecord):
        reader(chain).transaction(asked.id)
    with pytest.raises(CorruptRecord):
        reader(chain).block(1)


CUSTODIANS = {"charite": {}, "ukaachen": {"institution": "ukaachen", "key": AACHEN}}
SUBJECTS = [identity(("subject", each)) for each in range(3)]


@pytest.fixture(scope="module")
def consortium():
    """A chain of 20 blocks with 300 studies, and the summaries of all, newest first."""
    chain = Chain()
    choose = random.Random(7)
    labels = []
    for height in range(1, 21):
        batch = []
        for position in range(5):
            custodian = choose.choice(list(CUSTODIANS))
            new = [(height, position, each) for each in range(3)]
            labels += new
            operations = [
                register(
                    label,
                    subject_id=choose.choice(SUBJECTS),
                    modality=choose.choice(["CT", "MR", "US"]),
                    region=choose.choice(["chest", "head"]),
                )
                for label in new
            ]
            if choose.random() < 0.4:
                operations.append(retire(choose.choice(new)))
            batch.append(transaction(*operations, **CUSTODIANS[custodian]))
        assert set(chain.codes(*batch)) == {"ok"}
    view = reader(chain)
    return chain, [view.study(study_id(label)).summary for label in reversed(labels)]


def pages(chain, query):
    """Follow the cursors to the end; return the pages."""
    found = []
    while True:
        page = queries.search(chain.chain, query)
        found.append(page.studies)
        if page.next_cursor is None:
            return found
        query = replace(query, cursor=page.next_cursor)


def expected(studies, query):
    low = query.height_from or 0
    high = 10**9 if query.height_to is None else query.height_to
    facets = ("custodian", "subject_id", "modality", "region", "status")
    asked = {name: getattr(query, name) for name in facets if getattr(query, name) is not None}
    return [
        study
        for study in studies
        if asked.items() <= {name: getattr(study, name) for name in facets}.items()
        and low <= study.registered_height <= high
    ]


FACETS = [
    StudyQuery(custodian=c, subject_id=s, modality=m, region=r, status=t)
    for c, s, m, r, t in itertools.product(
        [None, "charite"], [None, SUBJECTS[1]], [None, "MR"], [None, "head"],
        [None, "active", "retired"],
    )
]  # fmt: skip


@pytest.mark.parametrize("limit", [1, 7, 200])
def test_every_question_is_answered_whole_newest_first(consortium, limit):
    chain, known = consortium
    for query in FACETS:
        found = pages(chain, replace(query, limit=limit))
        assert all(len(page) <= limit for page in found)
        assert list(itertools.chain(*found)) == expected(known, query)


@pytest.mark.parametrize(
    ("low", "high"), [(None, 5), (5, None), (5, 9), (7, 7), (20, 20), (0, 0), (21, None)]
)
def test_heights_bound_the_answer_on_both_sides(consortium, low, high):
    chain, known = consortium
    for query in FACETS[::5]:
        query = replace(query, height_from=low, height_to=high, limit=3)
        assert list(itertools.chain(*pages(chain, query))) == expected(known, query)


def test_the_last_full_page_has_no_next_one(consortium):
    chain, known = consortium
    retired = [s for s in known if s.status == "retired"]
    page = queries.search(chain.chain, StudyQuery(status="retired", limit=len(retired)))
    assert (list(page.studies), page.next_cursor) == (retired, None)


def test_the_work_for_one_page_is_bounded_and_the_search_still_ends(consortium, monkeypatch):
    chain, known = consortium
    read, decode = [], studies.study_contract.decode_study
    monkeypatch.setattr(studies, "ROWS_MAX", 10)
    monkeypatch.setattr(
        studies.study_contract, "decode_study", lambda row: read.append(row) or decode(row)
    )
    query = StudyQuery(custodian="charite", subject_id=SUBJECTS[0], status="retired", limit=50)
    found = pages(chain, query)
    assert list(itertools.chain(*found)) == expected(known, query)
    assert len(read) <= 10 * len(found)
    assert len(found) > 2


def test_pages_stay_as_they_were_while_blocks_arrive():
    chain = Chain()
    for height in range(6):
        chain.add(*(transaction(register((height, each))) for each in range(4)))
    query = StudyQuery(custodian="charite", limit=5)
    before = [s.id for s in itertools.chain(*pages(chain, query))]
    seen, arriving = [], itertools.count()
    while True:
        page = queries.search(chain.chain, query)
        seen += [study.id for study in page.studies]
        chain.add(transaction(register(("late", next(arriving)))))
        oldest = [s for s in before if s not in seen][-1:]
        labels = {study_id((h, e)): (h, e) for h in range(6) for e in range(4)}
        chain.add(*(transaction(retire(labels[each])) for each in oldest))
        if page.next_cursor is None:
            break
        query = replace(query, cursor=page.next_cursor)
    assert seen == before


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"custodian": "Charité"}, "custodian"),
        ({"custodian": ""}, "custodian"),
        ({"custodian": 5}, "custodian"),
        ({"subject_id": b"short"}, "subject_id"),
        ({"subject_id": "0" * 16}, "subject_id"),
        ({"modality": "ct"}, "modality"),
        ({"region": "left lung"}, "region"),
        ({"status": "gone"}, "status"),
        ({"status": ["active"]}, "status"),
        ({"height_from": -1}, "height_from"),
        ({"height_to": 2**53 + 1}, "height_to"),
        ({"height_to": True}, "height_to"),
        ({"height_from": 5, "height_to": 4}, "height_from"),
        ({"limit": 0}, "limit"),
        ({"limit": 201}, "limit"),
        ({"limit": "50"}, "limit"),
        ({"cursor": ""}, "cursor"),
        ({"cursor": "ü"}, "cursor"),
        ({"cursor": b"AA"}, "cursor"),
        ({"cursor": "A" * 129}, "cursor"),
    ],
)
def test_a_question_without_meaning_says_which_field(consortium, change, named):
    chain, _ = consortium
    with pytest.raises(BadQuery, match=f"^{named} must"):
        queries.search(chain.chain, replace(StudyQuery(), **change))


def test_a_cursor_belongs_to_its_question(consortium):
    chain, _ = consortium
    query = StudyQuery(modality="CT", limit=2)
    cursor = queries.search(chain.chain, query).next_cursor
    queries.search(chain.chain, replace(query, cursor=cursor, limit=9))
    with pytest.raises(BadQuery, match="cursor"):
        queries.search(chain.chain, replace(query, cursor=cursor, modality="MR"))


@pytest.mark.parametrize("ordinal", [5, None, "x", (b"x",), b"x" * 200])
def test_a_forged_cursor_is_refused(consortium, ordinal):
    chain, _ = consortium
    query = StudyQuery(limit=2)
    good = queries.search(chain.chain, query).next_cursor
    version, question, _ = unpack(base64.urlsafe_b64decode(good + "=" * (-len(good) % 4)))
    forged = base64.urlsafe_b64encode(pack((version, question, ordinal))).decode().rstrip("=")
    with pytest.raises(BadQuery, match="cursor"):
        queries.search(chain.chain, replace(query, cursor=forged))


@given(st.text(max_size=60) | st.text("ABCDEFabcdef0123456789-_=", max_size=60), st.data())
def test_any_cursor_is_taken_or_refused(consortium, text, data):
    chain, _ = consortium
    good = queries.search(chain.chain, StudyQuery(limit=1)).next_cursor
    at = data.draw(st.integers(0, len(good)))
    for cursor in (text, good[:at] + text[:2] + good[at + 1 :], good[:at]):
        try:
            queries.search(chain.chain, StudyQuery(limit=1, cursor=cursor))
        except BadQuery:
            continue


def test_a_study_shows_that_it_was_erased_offered_or_classified(chain):
    chain.add(transaction(*(register(each) for each in "abcd")))
    erase = ("study.erase", study_id("a"), "subject_request")
    offer = ("study.offer", study_id("b"), "ukaachen")
    classify = ("study.classify", study_id("c"), "V")
    codes = chain.codes(
        *(transaction(each) for each in (erase, offer, classify)),
        transaction(retire("d")),
    )
    assert codes == ["ok"] * 4

    def found(**asked):
        return [study.id for study in queries.search(chain.chain, StudyQuery(**asked)).studies]

    assert found(status="erased") == [study_id("a")]
    assert found(status="retired") == [study_id("d")]
    assert found(status="active") == [study_id("c"), study_id("b")]
    assert found(offered_to="ukaachen") == [study_id("b")]
    assert found(offered_to="charite") == []
    view = reader(chain)
    assert view.study(study_id("a")).summary.erased_height == 2
    assert view.study(study_id("b")).summary.offered_to == "ukaachen"
    assert view.study(study_id("c")).summary.confidentiality == "V"
