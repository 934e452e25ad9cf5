"""The registry contract, rule by rule: members, their keys, and encryption keys."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consensus.wire import pack
from node.ledger import accounts
from node.ledger.contracts import registry
from node.ledger.contracts.possession import POSSESSION_TAG, possession_message
from node.ledger.errors import REFUSALS, Refused, Rejected
from node.ledger.parameters import encode_parameter, parameter_key
from storage.errors import CorruptRecord
from tests.ledger.consortium import KINDS, World, possession, public
from tests.ledger.harness import digest, identity

ADMIN = public("a admin")
NEW, OTHER = public("new"), public("other")
KEY_ID = identity("key id")
X25519 = digest("x25519")
HYBRID = digest("hybrid") * 38
ANSWER = digest("answer")
SEALED = digest("sealed") * 35
SMALL_ORDER = bytes.fromhex("01" + "00" * 31)


@pytest.fixture
def world():
    return World()


def member(world, key, institution="a"):
    return accounts.find_member(world.get, institution, key)


def administrators(world, institution="a"):
    return accounts.find_institution(world.get, institution).administrators


def add(world, label="new", roles=("clinician",), **changes):
    return world.apply(
        "registry.member_add", public(label), roles, possession("a", label), **changes
    )


def held_key(world, institution="a"):
    return registry.encryption_key(world.get, institution, KEY_ID)


def publish(world, **changes):
    return world.apply("registry.key_publish", KEY_ID, "x25519", X25519, **changes)


def challenge(world, answer=ANSWER, **changes):
    asked = ("a", KEY_ID, SEALED, registry.challenge_digest(answer))
    return world.apply("registry.key_challenge", *asked, **({"by": "b"} | changes))


# Members


def test_a_new_member_acts_with_its_roles(world):
    events = add(world, roles=("gateway", "clinician"))
    assert events == [("registry_member_added", "a", NEW, "clinician", "gateway")]
    assert accounts.member_roles(world.get, "a", NEW, 7) == {"clinician", "gateway"}
    assert accounts.member_roles(world.get, "b", NEW, 7) is None
    assert world.state.index_changes() == [(accounts.INDEX_MEMBER, (b"a", NEW), b"")]


def test_a_key_is_one_member_once(world):
    add(world)
    again = (NEW, ("auditor",), possession("a", "new"))
    assert world.code("registry.member_add", *again) == "member_exists"


def test_possession_is_signed_over_chain_institution_and_key():
    assert possession_message(b"c" * 32, "st-mary", b"k" * 32) == (
        b"radledger/possession/1" + b"c" * 32 + b"st-mary" + b"k" * 32
    )
    assert POSSESSION_TAG == b"radledger/possession/1"


@pytest.mark.parametrize(
    "signature",
    [
        bytes(64),
        possession("b", "new"),  # for another institution
        possession("a", "other"),  # by another key
        possession("a", "new", digest("another chain")),
    ],
)
def test_a_key_whose_possession_is_not_proved_is_not_taken(world, signature):
    asked = (NEW, ("clinician",), signature)
    assert world.code("registry.member_add", *asked) == "possession_unproven"
    rotate = (ADMIN, NEW, signature, 5)
    assert world.code("registry.member_rotate", *rotate) == "possession_unproven"


def test_roles_are_replaced_whole(world):
    add(world)
    events = world.apply("registry.member_set_roles", NEW, ("researcher", "auditor"))
    assert events == [("registry_member_roles_set", "a", NEW, "auditor", "researcher")]
    assert member(world, NEW).roles == ("auditor", "researcher")


def test_a_suspended_member_is_stopped_until_it_is_resumed(world):
    add(world)
    assert world.apply("registry.member_suspend", NEW) == [("registry_member_suspended", "a", NEW)]
    assert accounts.member_roles(world.get, "a", NEW, 7) is None
    assert world.code("registry.member_suspend", NEW) == "member_suspended"
    assert world.apply("registry.member_resume", NEW) == [("registry_member_resumed", "a", NEW)]
    assert accounts.member_roles(world.get, "a", NEW, 7) == {"clinician"}
    assert world.code("registry.member_resume", NEW) == "member_active"


def test_a_rotated_key_acts_on_for_the_overlap_together_with_its_successor(world):
    add(world)
    events = world.apply("registry.member_rotate", NEW, OTHER, possession("a", "other"), 5)
    assert events == [("registry_member_rotated", "a", NEW, OTHER, 12)]
    assert accounts.member_roles(world.get, "a", NEW, 12) == {"clinician"}
    assert accounts.member_roles(world.get, "a", NEW, 13) is None
    assert accounts.member_roles(world.get, "a", OTHER, 7) == {"clinician"}
    assert accounts.member_roles(world.get, "a", OTHER, 10**9) == {"clinician"}
    assert world.state.index_changes()[-1] == (accounts.INDEX_MEMBER, (b"a", OTHER), b"")


def test_a_rotated_key_takes_no_change_but_suspension_and_never_returns(world):
    add(world)
    world.apply("registry.member_rotate", NEW, OTHER, possession("a", "other"), 5)
    third = possession("a", "third")
    assert world.code("registry.member_rotate", NEW, public("third"), third, 1) == "member_rotated"
    assert world.code("registry.member_set_roles", NEW, ("auditor",)) == "member_rotated"
    assert world.code("registry.member_resume", NEW) == "member_rotated"
    again = (NEW, ("clinician",), possession("a", "new"))
    assert world.code("registry.member_add", *again) == "member_exists"
    world.apply("registry.member_suspend", NEW)
    assert accounts.member_roles(world.get, "a", NEW, 8) is None
    assert world.code("registry.member_resume", NEW) == "member_rotated"


def test_a_key_is_not_rotated_to_one_that_is_a_member(world):
    add(world)
    same = (NEW, NEW, possession("a", "new"), 1)
    assert world.code("registry.member_rotate", *same) == "member_exists"
    admin = (NEW, ADMIN, possession("a", "a admin"), 1)
    assert world.code("registry.member_rotate", *admin) == "member_exists"


def test_a_suspended_key_is_not_rotated(world):
    add(world)
    world.apply("registry.member_suspend", NEW)
    asked = (NEW, OTHER, possession("a", "other"), 0)
    assert world.code("registry.member_rotate", *asked) == "member_suspended"


def test_the_overlap_is_bounded_by_a_parameter(world):
    world.state.put(parameter_key("key_overlap_heights_max"), encode_parameter(10))
    asked = (ADMIN, NEW, possession("a", "new"))
    assert world.code("registry.member_rotate", *asked, 11) == "overlap_over_limit"
    assert world.code("registry.member_rotate", *asked, 10) == "ok"


@pytest.mark.parametrize(
    ("name", "rest"),
    [
        ("registry.member_set_roles", (("auditor",),)),
        ("registry.member_suspend", ()),
        ("registry.member_resume", ()),
        ("registry.member_rotate", (OTHER, possession("a", "other"), 1)),
    ],
)
@pytest.mark.parametrize("key", [NEW, public("b admin")])
def test_only_the_senders_own_members_are_kept(world, name, rest, key):
    assert world.code(name, key, *rest) == "member_unknown"


# The last administrator


def test_the_last_administrator_keeps_acting(world):
    assert world.code("registry.member_suspend", ADMIN) == "last_administrator"
    assert world.code("registry.member_set_roles", ADMIN, ("gateway",)) == "last_administrator"
    world.apply("registry.member_set_roles", ADMIN, ("gateway", "administrator"))
    assert administrators(world) == 1


def test_with_two_administrators_one_can_go(world):
    add(world, roles=("administrator",))
    assert administrators(world) == 2
    world.apply("registry.member_suspend", ADMIN)
    assert administrators(world) == 1
    assert world.code("registry.member_suspend", NEW) == "last_administrator"
    world.apply("registry.member_resume", ADMIN)
    world.apply("registry.member_set_roles", NEW, ("clinician",))
    assert administrators(world) == 1
    assert world.code("registry.member_suspend", ADMIN) == "last_administrator"


def test_an_administrators_key_that_was_rotated_out_does_not_count(world):
    world.apply("registry.member_rotate", ADMIN, NEW, possession("a", "new"), 100)
    assert administrators(world) == 1
    assert world.code("registry.member_suspend", NEW) == "last_administrator"
    world.apply("registry.member_suspend", ADMIN)
    assert administrators(world) == 1


LABELS = ("a admin", "m1", "m2", "m3")
ROLES = (("administrator",), ("clinician",), ("administrator", "gateway"))
STEPS = st.one_of(
    st.tuples(st.just("member_add"), st.sampled_from(LABELS), st.sampled_from(ROLES)),
    st.tuples(st.just("member_set_roles"), st.sampled_from(LABELS), st.sampled_from(ROLES)),
    st.tuples(st.sampled_from(["member_suspend", "member_resume"]), st.sampled_from(LABELS)),
    st.tuples(st.just("member_rotate"), st.sampled_from(LABELS), st.sampled_from(LABELS)),
)


@given(st.lists(STEPS, max_size=12))
def test_an_institution_always_has_an_administrator_that_lasts(steps):
    world = World()
    for verb, label, *rest in steps:
        arguments = [public(label), *rest]
        if verb == "member_add":
            arguments.append(possession("a", label))
        if verb == "member_rotate":
            (other,) = rest
            arguments[1:] = [public(other), possession("a", other), 3]
        world.code(f"registry.{verb}", *arguments)
        members = [member(world, public(each)) for each in LABELS]
        lasting = [each for each in members if each is not None and each.administers]
        assert len(lasting) == administrators(world) >= 1


# Encryption keys


def test_a_key_is_usable_once_another_institution_saw_it_opened(world):
    assert publish(world) == [("registry_key_published", "a", KEY_ID, "x25519")]
    assert held_key(world) == registry.EncryptionKey(1, "x25519", X25519, 7, None, None, None)
    assert not held_key(world).usable
    assert challenge(world) == [("registry_key_challenged", "a", KEY_ID, "b")]
    assert not held_key(world).usable
    confirmed = world.apply("registry.key_confirm", KEY_ID, ANSWER, height=9)
    assert confirmed == [("registry_key_confirmed", "a", KEY_ID)]
    assert held_key(world).usable
    assert held_key(world).confirmed_height == 9
    retired = world.apply("registry.key_retire", KEY_ID, height=11)
    assert retired == [("registry_key_retired", "a", KEY_ID)]
    assert not held_key(world).usable
    assert held_key(world).retired_height == 11


def test_a_key_is_listed_under_its_institution(world):
    publish(world)
    ((name, parts, value),) = world.state.index_changes()
    assert (name, parts[0], value) == (registry.INDEX_ENCRYPTION_KEY, b"a", KEY_ID)


def test_the_answer_is_checked_by_its_tagged_digest(world):
    tagged = hashlib.sha256(b"radledger/key-challenge/1" + ANSWER).digest()
    assert registry.challenge_digest(ANSWER) == tagged
    publish(world)
    assert world.code("registry.key_confirm", KEY_ID, ANSWER) == "challenge_missing"
    challenge(world)
    assert world.code("registry.key_confirm", KEY_ID, digest("guess")) == "challenge_unmet"


def test_a_later_challenge_takes_the_place_of_the_earlier(world):
    publish(world)
    challenge(world)
    challenge(world, digest("second"), by="x")
    assert world.code("registry.key_confirm", KEY_ID, ANSWER) == "challenge_unmet"
    assert world.code("registry.key_confirm", KEY_ID, digest("second")) == "ok"


def test_no_institution_challenges_itself_or_answers_for_another(world):
    publish(world)
    asked = ("a", KEY_ID, SEALED, registry.challenge_digest(ANSWER))
    assert world.code("registry.key_challenge", *asked, by="a") == "own_key"
    challenge(world)
    assert world.code("registry.key_confirm", KEY_ID, ANSWER, by="b") == "key_unknown"


def test_a_confirmed_key_needs_no_challenge(world):
    publish(world)
    challenge(world)
    world.apply("registry.key_confirm", KEY_ID, ANSWER)
    asked = ("a", KEY_ID, SEALED, registry.challenge_digest(ANSWER))
    assert world.code("registry.key_challenge", *asked, by="b") == "key_confirmed"
    assert world.code("registry.key_confirm", KEY_ID, ANSWER) == "key_confirmed"


def test_a_retired_key_is_closed(world):
    publish(world)
    world.apply("registry.key_retire", KEY_ID)
    asked = ("a", KEY_ID, SEALED, registry.challenge_digest(ANSWER))
    assert world.code("registry.key_challenge", *asked, by="b") == "key_retired"
    assert world.code("registry.key_confirm", KEY_ID, ANSWER) == "key_retired"
    assert world.code("registry.key_retire", KEY_ID) == "key_retired"
    assert world.code("registry.key_publish", KEY_ID, "x25519", X25519) == "key_exists"


def test_an_unknown_key_is_named_as_such(world):
    asked = ("a", KEY_ID, SEALED, registry.challenge_digest(ANSWER))
    assert world.code("registry.key_challenge", *asked, by="b") == "key_unknown"
    assert world.code("registry.key_confirm", KEY_ID, ANSWER) == "key_unknown"
    assert world.code("registry.key_retire", KEY_ID) == "key_unknown"


def test_two_institutions_may_use_one_key_id(world):
    publish(world)
    publish(world, by="b")
    assert held_key(world, "a") == held_key(world, "b")


# Roles and forms


@pytest.mark.parametrize("kind", registry.KINDS, ids=lambda kind: kind.name)
def test_members_are_kept_by_administrators_and_keys_by_the_gateway_too(kind):
    of_members = kind.name.startswith("registry.member")
    assert kind.roles == ({"administrator"} if of_members else {"administrator", "gateway"})


GOOD = {
    "member_add": (NEW, ("clinician",), possession("a", "new")),
    "member_set_roles": (NEW, ("clinician",)),
    "member_suspend": (NEW,),
    "member_resume": (NEW,),
    "member_rotate": (NEW, OTHER, possession("a", "other"), 5),
    "key_publish": (KEY_ID, "x25519-mlkem768", HYBRID),
    "key_challenge": ("a", KEY_ID, SEALED, digest("d")),
    "key_confirm": (KEY_ID, ANSWER),
    "key_retire": (KEY_ID,),
}


def parse(verb, arguments):
    return KINDS[f"registry.{verb}"].parse(tuple(arguments))


@pytest.mark.parametrize("verb", GOOD)
def test_the_good_form_is_taken(verb):
    assert parse(verb, GOOD[verb]) is not None
    assert len(GOOD) == len(registry.KINDS)


@pytest.mark.parametrize("verb", GOOD)
def test_another_number_of_arguments_is_refused(verb):
    for arguments in (GOOD[verb][:-1], (*GOOD[verb], 0)):
        with pytest.raises(Refused, match="arguments are needed"):
            parse(verb, arguments)


@pytest.mark.parametrize(
    ("verb", "position", "value"),
    [
        ("member_add", 0, NEW[:31]),
        ("member_add", 0, SMALL_ORDER),
        ("member_add", 1, ()),
        ("member_add", 1, "clinician"),
        ("member_add", 1, ("surgeon",)),
        ("member_add", 1, ("clinician", "clinician")),
        ("member_add", 1, ("clinician", "patient")),
        ("member_add", 2, bytes(63)),
        ("member_set_roles", 1, ("patient", "administrator")),
        ("member_set_roles", 1, (5,)),
        ("member_suspend", 0, SMALL_ORDER),
        ("member_rotate", 1, bytes(33)),
        ("member_rotate", 2, "x" * 64),
        ("member_rotate", 3, -1),
        ("member_rotate", 3, True),
        ("member_rotate", 3, 10**9),
        ("key_publish", 0, b"MRN-000123456789"),
        ("key_publish", 1, "rsa"),
        ("key_publish", 1, "x25519"),
        ("key_publish", 2, HYBRID[:-1]),
        ("key_challenge", 0, "Dr. Meier"),
        ("key_challenge", 2, bytes(1_401)),
        ("key_challenge", 2, bytes(32)),
        ("key_challenge", 2, "text"),
        ("key_challenge", 3, bytes(32)),
        ("key_confirm", 1, b"Meier^Hans^^^^^^^^^^^^^^^^^^^^^^"),
        ("key_retire", 0, bytes(16)),
    ],
)
def test_what_is_not_of_the_form_is_refused(verb, position, value):
    arguments = list(GOOD[verb])
    arguments[position] = value
    with pytest.raises(Refused) as refused:
        parse(verb, arguments)
    assert refused.value.code == "operation_invalid"


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-1, 2**40)
    | st.binary(max_size=64)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4).map(tuple),
    max_leaves=6,
)


@given(st.sampled_from(sorted(GOOD)), st.data())
def test_no_argument_does_more_than_be_refused(verb, data):
    arguments = [
        data.draw(st.just(value) | VALUES | st.sampled_from(["patient", "x25519"]))
        for value in GOOD[verb]
    ]
    code = "ok"
    try:
        World().apply(f"registry.{verb}", *arguments)
    except (Refused, Rejected) as refused:
        code = refused.code
    assert code in {"ok"} | REFUSALS.keys() | registry.REJECTIONS.keys()


@given(
    st.binary(max_size=60)
    | st.sampled_from([(), (1,), (2, "x", b"", 1, None, None, None), (1, 2, 3, 4, 5, 6, 7, 8)]).map(
        pack
    )
)
def test_a_damaged_key_is_reported_as_such(row):
    with pytest.raises(CorruptRecord):
        registry.decode_encryption_key(row)
