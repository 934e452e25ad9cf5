"""Proof files: what they prove, on whose word, and everything that must not pass for a proof."""

import json
from dataclasses import replace

import pytest

from consensus.wire import pack
from node.ledger import genesis_file, merkle
from node.ledger.block import Header, Receipt
from node.ledger.genesis import Genesis
from node.ledger.proofs import format as proof_format
from node.ledger.proofs.describe import describe
from node.ledger.proofs.format import Change, Executed, History, Parents, Sealed, State
from node.ledger.proofs.opening import open_instance, open_manifest
from node.ledger.proofs.verify import verify
from storage.errors import InvalidProof
from tests.ledger.second_verifier import Genesis as SecondGenesis
from tests.ledger.second_verifier import Invalid
from tests.ledger.second_verifier import verify as verify_again
from tests.vectors.make_proofs import (
    BLINDINGS,
    FENCE,
    GENESIS,
    LEAVES,
    PATH,
    RECORDS,
    REQUEST,
    ROOT,
    SPECIFICATION,
    STUDY,
    SUBJECT,
    TREE,
    World,
    document,
    instance,
    key,
    node,
    proofs,
    worked,
    world,
)

WORLD = world()
PROOFS = proofs(WORLD)
SECOND = SecondGenesis(genesis_file.to_json(GENESIS))


def refused(proof, genesis=GENESIS):
    """Return why `proof` proves nothing; the second verifier must agree."""
    with pytest.raises(InvalidProof) as caught:
        verify(proof, genesis)
    if genesis is GENESIS:
        with pytest.raises(Invalid):
            verify_again(proof, SECOND)
    return str(caught.value)


def changed(name, **fields):
    """The proof `name` with other fields in its part, its trust, or both."""
    file = proof_format.decode(PROOFS[name])
    trust = {each: fields.pop(each) for each in ("changes", "anchor", "lineage") if each in fields}
    part = fields.pop("part", file.part)
    part = replace(part, **fields) if fields else part
    return proof_format.encode(replace(file, part=part, trust=replace(file.trust, **trust)))


def part_of(name):
    return proof_format.decode(PROOFS[name]).part


def trust_of(name):
    return proof_format.decode(PROOFS[name]).trust


def sealed(height, encoded=None, senders=None):
    """A header of the chain, or another one, with seals."""
    encoded = WORLD.node.chain.header(height) if encoded is None else encoded
    return Sealed(encoded, WORLD.sealed_header(height, encoded, senders).seals)


def header(height):
    return WORLD.node.chain.header(height)


def test_the_vectors_are_as_they_were():
    assert json.loads(PATH.read_text()) == json.loads(json.dumps(document()))
    text = SPECIFICATION.read_text()
    first = PROOFS["time"]
    assert f"{FENCE}{worked(first)}\n```" in text


@pytest.mark.parametrize("vector", json.loads(PATH.read_text())["proofs"], ids=lambda v: v["name"])
def test_a_verifier_written_from_the_specification_agrees(vector):
    proved = verify_again(bytes.fromhex(vector["file"]), SECOND)
    assert proved == {name: vector[name] for name in proved}


@pytest.mark.parametrize("name", PROOFS)
def test_every_kind_verifies_and_encodes_back(name):
    assert proof_format.encode(proof_format.decode(PROOFS[name])) == PROOFS[name]
    proved = verify(PROOFS[name], GENESIS)
    assert proved.kind == part_of(name).kind
    assert len(proved.sealed_by) == proved.validators.quorum == 3


def test_what_is_proved_is_what_the_chain_holds():
    get = WORLD.node.chain.state_value
    grant = verify(PROOFS["grant"], GENESIS)
    assert grant.rows == ((b"request/" + REQUEST, get(b"request/" + REQUEST)),)
    assert grant.header == grant.anchor == WORLD.node.executor.head
    assert verify(PROOFS["no consent"], GENESIS).rows == ((b"consent/east/" + SUBJECT, None),)
    absence = verify(PROOFS["absence"], GENESIS)
    assert absence.rows == ((b"asked/" + STUDY + b"south", None),)
    used = verify(PROOFS["access"], GENESIS)
    assert used.transaction.id == WORLD.ids[2] == used.receipt.transaction_id
    assert [event.name for event in used.receipt.events] == ["access_used"]
    assert verify(PROOFS["time, of the genesis"], GENESIS).header.height == 0
    opened = verify(PROOFS["instance"], GENESIS)
    assert (opened.records, opened.is_whole) == ((RECORDS[3],), False)
    assert (opened.registered.study_id, opened.registered.root) == (STUDY, ROOT)
    whole = verify(PROOFS["manifest"], GENESIS)
    assert (whole.records, whole.is_whole) == (RECORDS, True)


def test_changes_of_validators_are_followed():
    proved = verify(PROOFS["study"], GENESIS)
    assert proved.changes == (68, 132)
    names = [validator.institution for validator in proved.validators.validators]
    assert names == ["north", "south", "west", "lake"]
    assert verify(PROOFS["transaction"], GENESIS).changes == ()


def test_a_genesis_of_another_chain_is_told():
    other = replace(GENESIS, name="other")
    assert "compare which network" in refused(PROOFS["time"], other)


def test_a_genesis_with_other_validators_trusts_nobody_else():
    assert isinstance(GENESIS, Genesis)
    forged = replace(
        GENESIS, validators=tuple(node(v.institution, " 2") for v in GENESIS.validators)
    )
    file = proof_format.decode(PROOFS["time"])
    claimed = proof_format.encode(replace(file, chain_id=forged.chain_id))
    assert "another chain" in refused(claimed, forged)


# Seals.


def test_a_quorum_of_seals_is_needed_no_more_and_no_less():
    for senders in ((), (0, 1), (0, 1, 2, 3)):
        proof = changed("time", anchor=sealed(1, senders=senders))
        assert f"{len(senders)} signers instead of 3" in refused(proof)
    assert verify(changed("time", anchor=sealed(1, senders=(1, 2, 3))), GENESIS)


def test_seals_of_one_validator_count_once():
    first, second, _ = sealed(1).seals
    for seals in ((first, first, second), (second, first, sealed(1).seals[2])):
        assert "not distinct and ascending" in refused(
            changed("time", anchor=Sealed(header(1), seals))
        )


def test_a_seal_must_be_its_validators_own_over_this_very_header():
    seals = sealed(1).seals
    borrowed = ((0, seals[1][1]), *seals[1:])
    assert "does not verify" in refused(changed("time", anchor=Sealed(header(1), borrowed)))
    others = sealed(2).seals
    assert "does not verify" in refused(changed("time", anchor=Sealed(header(1), others)))
    outside = (*seals[:2], (4, seals[2][1]))
    assert "no validator has index 4" in refused(changed("time", anchor=Sealed(header(1), outside)))


def test_a_seal_by_a_key_that_is_none_of_theirs_is_nothing():
    stranger = key("mallory").sign(b"anything")
    seals = (*sealed(1).seals[:2], (2, stranger))
    assert "does not verify" in refused(changed("time", anchor=Sealed(header(1), seals)))


def test_nobody_seals_height_zero_so_nothing_rests_on_it_alone():
    forged = replace(Header.decode(header(0)), state_root=bytes(32)).encode()
    for encoded in (header(0), forged):
        assert "height 0" in refused(changed("time", anchor=Sealed(encoded, ())))
        assert "height 0" in refused(changed("time", anchor=sealed(0, encoded, (0, 1, 2))))


def test_a_header_of_another_chain_is_refused_whoever_sealed_it():
    foreign = replace(Header.decode(header(1)), chain_id=bytes(32)).encode()
    assert "another chain" in refused(changed("time", anchor=sealed(1, foreign)))
    assert "header" in refused(changed("time", anchor=sealed(1, b"\x90")))


def test_a_header_names_those_who_seal_it():
    other = replace(Header.decode(header(1)), validators_digest=bytes(32)).encode()
    assert "has other validators" in refused(changed("time", anchor=sealed(1, other)))


# Changes of validators.


def test_no_change_can_be_left_out_or_put_in():
    first, second = trust_of("study").changes
    for changes in ((), (first,), (second,), (second, first), (first, first, second)):
        refused(changed("study", changes=changes))
    refused(changed("transaction", changes=(first,)))


def test_those_who_follow_are_named_by_those_who_reign():
    first, second = trust_of("study").changes
    usurper = ("mallory", key("mallory").public_key().public_bytes_raw())
    for members in (
        first.members[::-1],
        (*first.members[:-1], usurper),
        first.members[:-1],
        (*first.members, first.members[0]),
        (),
        tuple((v.institution, v.public_key) for v in GENESIS.validators),
    ):
        refused(changed("study", changes=(Change(first.last, members), second)))


def test_only_the_last_height_of_a_reign_hands_over():
    first, second = trust_of("study").changes
    for height in (66, 4):
        early = Change(sealed(height), first.members)
        assert "not those that its header names" in refused(
            changed("study", changes=(early, second))
        )


def test_a_change_that_changes_nothing_is_refused():
    members = tuple((v.institution, v.public_key) for v in GENESIS.validators)
    idle = Change(sealed(5), members)
    assert "no validator changes" in refused(changed("transaction", changes=(idle,)))


def test_new_validators_cannot_seal_what_lay_before_them():
    # South, west and others are in both sets; a set speaks of its own reign alone.
    changes = trust_of("study").changes
    assert "not one that these validators seal" in refused(
        changed("time", changes=changes, anchor=sealed(67))
    )


# Lineage.


def test_parents_must_be_linked_without_a_gap():
    for headers in ((header(132),), (header(133), header(131)), (header(134),), (), (b"",)):
        refused(changed("time, under the next height", lineage=Parents(headers)))
    longer = Parents(tuple(header(height) for height in range(133, 100, -1)))
    assert verify(changed("time", **_under_head(longer)), GENESIS).header.height == 101


def _under_head(lineage):
    trust = trust_of("study")
    return {"changes": trust.changes, "anchor": trust.anchor, "lineage": lineage}


def test_any_earlier_header_is_proved_by_the_history():
    digests = [Header.decode(header(height)).digest for height in range(134)]
    leaves = [merkle.leaf_hash(digest) for digest in digests]
    for height in (0, 1, 64, 67, 132, 133):
        path = tuple(merkle.inclusion_proof(leaves, height))
        proof = changed("time", **_under_head(History(header(height), path)))
        assert verify(proof, GENESIS).header.height == height
        wrong = History(header(height + 1), path)
        assert "not in the history" in refused(changed("time", **_under_head(wrong)))
        shorter = History(header(height), path[:-1])
        assert "not in the history" in refused(changed("time", **_under_head(shorter)))


# Statements about the state.


def test_a_row_is_proved_with_its_value_only():
    (key_, value), proof = part_of("grant").rows[0], part_of("grant").proofs[0]
    for row in ((key_, value + b"\0"), (key_, b""), (key_, None), (key_ + b"\0", value)):
        assert "state root" in refused(changed("grant", rows=(row,)))
    absent = part_of("absence")
    for row in ((absent.rows[0][0], b""), (b"asked/" + STUDY + b"east", None)):
        refused(changed("absence", rows=(row,)))
    for damaged in (proof + b"\0", proof[:-1], b""):
        refused(changed("grant", proofs=(damaged,)))


def test_a_proof_for_the_state_of_another_height_does_not_hold():
    earlier = {"changes": (), "anchor": sealed(4)}
    assert "state root" in refused(changed("grant", **earlier))


def test_rows_and_proofs_belong_together():
    part = part_of("version")
    for rows, shown in (
        (part.rows[::-1], part.proofs[::-1]),
        (part.rows, part.proofs[::-1]),
        (part.rows, part.proofs[:1]),
        ((part.rows[0], part.rows[0]), (part.proofs[0],) * 2),
        ((), ()),
    ):
        refused(changed("version", rows=rows, proofs=shown))


# Statements about instances.


def test_every_instance_can_be_opened_and_only_as_it_is():
    version = PROOFS["version"]
    for position in range(len(LEAVES)):
        proof = instance(version, position)
        assert verify(proof, GENESIS).records == (RECORDS[position],)
    opened = part_of("instance")
    for fields in (
        {"record": RECORDS[2]},
        {"blinding": BLINDINGS[2]},
        {"position": 2},
        {"count": 6},
        {"count": 4},
        {"tree": LEAVES[3]},
        {"path": opened.path[:-1]},
    ):
        refused(changed("instance", **fields))


def test_a_manifest_is_opened_whole_and_in_order():
    for records, blindings in (
        (RECORDS[:-1], BLINDINGS[:-1]),
        (RECORDS[::-1], BLINDINGS[::-1]),
        (RECORDS, BLINDINGS[:-1]),
        ((*RECORDS, RECORDS[0]), (*BLINDINGS, BLINDINGS[0])),
        ((), ()),
    ):
        refused(changed("manifest", records=records, blindings=blindings))


def test_an_inner_node_does_not_pass_for_an_instance():
    left = merkle.node_hash(LEAVES[0], LEAVES[1])
    path = (merkle.node_hash(LEAVES[2], LEAVES[3]), LEAVES[4])
    proof = open_instance(
        PROOFS["version"], LEAVES[1], LEAVES[0], position=0, count=5, path=path, tree=TREE
    )
    assert merkle.root([left, path[0]]) == merkle.root(LEAVES[:4])
    assert "not in the manifest" in refused(proof)


def test_instances_need_the_rows_of_one_study():
    good = part_of("version")
    study, consent = part_of("study"), part_of("consent")
    for state in (
        study,
        State((good.rows[0],), (good.proofs[0],)),
        State((*consent.rows, *study.rows), (*consent.proofs, *study.proofs)),
    ):
        refused(changed("instance", state=state))
        refused(changed("manifest", state=state))


def test_the_study_shown_is_the_one_that_has_the_version():
    made, other = World(), bytes(range(200, 216))
    for study_id, root in ((STUDY, ROOT), (other, bytes(range(100, 132)))):
        made.add(made.signed(("study.register", study_id, SUBJECT, root, "CT", "head", 3, 4)))
    right, wrong = (made.proof("version", study_id, ROOT) for study_id in (STUDY, other))
    assert verify(instance(right, 0), GENESIS).registered.study_id == STUDY
    assert "two different studies" in refused(instance(wrong, 0))
    assert "two different studies" in refused(open_manifest(wrong, RECORDS, BLINDINGS))


def test_only_a_statement_about_the_state_can_be_opened():
    with pytest.raises(ValueError, match="under a proof of their version"):
        open_manifest(PROOFS["time"], RECORDS, BLINDINGS)
    with pytest.raises(InvalidProof):
        open_manifest(b"", RECORDS, BLINDINGS)


# Statements about transactions.


def test_a_transaction_is_proved_with_its_own_receipt():
    part = part_of("access")
    others = [WORLD.node.chain.receipt(2, position) for position in (0, 2)]
    for receipt in (*others, Receipt(WORLD.ids[2], "expired").encode(), b""):
        refused(changed("access", receipt=receipt))
    # The receipt of the neighbour by its own path, beside the transaction's path.
    first = changed("access", receipt=others[0], receipt_path=part.receipt_path)
    assert "receipt" in refused(first)


def test_the_paths_of_transaction_and_receipt_show_one_place():
    part = part_of("access")
    for fields in (
        {"sides": part.sides ^ 1},
        {"sides": part.sides | 1 << len(part.path)},
        {"path": part.path[:-1]},
        {"path": part.path[:-1], "receipt_path": part.receipt_path[:-1]},
        {"path": part.receipt_path, "receipt_path": part.path},
    ):
        refused(changed("access", **fields))


def alone(body, receipt):
    """The proof of a block with this one transaction and receipt, were a quorum to seal it."""
    roots = {
        "transactions_root": merkle.leaf_hash(body),
        "receipts_root": merkle.leaf_hash(receipt),
    }
    lone = replace(Header.decode(header(1)), **roots).encode()
    part = Executed(body, receipt, 0, (), ())
    return changed("transaction", part=part, anchor=sealed(1, lone))


def test_a_transaction_nobody_signed_is_none():
    part = part_of("transaction")
    assert verify(alone(part.body, part.receipt), GENESIS).transaction.id == WORLD.ids[0]
    forged = part.body[:-64] + bytes(64)
    assert "signature of the transaction" in refused(alone(forged, part.receipt))


def test_a_receipt_names_its_transaction():
    part, other = part_of("transaction"), part_of("access")
    assert "receipt is that of another" in refused(alone(part.body, other.receipt))


# Form.


def test_the_words_say_what_is_proved():
    def words(name):
        return " ".join(describe(verify(PROOFS[name], GENESIS)).sentences)

    assert "custodian north, CT, head" in words("study")
    assert "permitted to east for TREAT" in words("consent")
    assert "nothing is recorded of the consent of east's subject" in words("no consent")
    assert "granted, decided by rule (north/treatment)" in words("grant")
    assert "from height 4 to 503" in words("grant")
    assert "south never asked for study" in words("absence")
    assert "access_used" in words("access")
    assert "consists of the 5 instances" in words("manifest")
    assert "reached height 1" in words("time")


def test_a_file_of_a_later_format_is_told_from_a_damaged_one():
    from_later = pack((proof_format.MAGIC, 2, bytes(32)))
    assert "format 2; this program knows format 1" in refused(from_later)
    assert "not a RadLedger proof file" in refused(pack(("something", 1)))
    assert "not canonical msgpack" in refused(b"\xc1")
    assert "at most" in refused(bytes(proof_format.FILE_BYTES_MAX + 1))


def test_an_unknown_kind_of_statement_is_refused_with_those_known():
    file = PROOFS["time"].replace(b"\xa4time", b"\xa4tome")
    known = "time, state, instance, manifest, transaction"
    assert known in refused(proof_format.with_digest(file))
    assert "damaged" in refused(file)
