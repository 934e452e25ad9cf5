"""The genesis: one chain id for its bytes and its file, and every problem of a file at once."""

import json
import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consensus.wire import pack, unpack
from node.ledger import genesis_file
from node.ledger.errors import InvalidGenesis
from node.ledger.genesis import Genesis
from node.ledger.limits import LIMIT_BOUNDS, LIMIT_NAMES, Limits
from tests.vectors import make

GENESIS = make.genesis()
SMALL_ORDER = bytes.fromhex("01" + "00" * 31)


def document():
    return json.loads(genesis_file.to_json(GENESIS))


def problems_of(content):
    if not isinstance(content, bytes):
        content = json.dumps(content).encode()
    with pytest.raises(InvalidGenesis) as invalid:
        genesis_file.from_json(content)
    return invalid.value.problems


def test_the_golden_vector_holds():
    golden = json.loads(make.PATH.read_text())["genesis"]
    assert make.document()["genesis"] == golden
    again = Genesis.decode(bytes.fromhex(golden["encoding"]))
    assert again == GENESIS
    assert again.chain_id.hex() == golden["chain_id"]


def test_the_file_says_the_same_as_the_bytes(tmp_path):
    path = tmp_path / "genesis.json"
    genesis_file.save(GENESIS, path)
    assert genesis_file.load(path) == GENESIS
    assert genesis_file.load(path).chain_id == GENESIS.chain_id
    genesis_file.save(GENESIS, path)
    assert [each.name for each in tmp_path.iterdir()] == ["genesis.json"]


def test_the_order_of_roles_in_the_file_does_not_matter():
    changed = document()
    changed["institutions"][0]["members"][1]["roles"].reverse()
    assert genesis_file.from_json(json.dumps(changed).encode()).chain_id == GENESIS.chain_id


def test_a_country_that_is_not_stated_is_zz():
    assert [each.country for each in GENESIS.institutions] == ["CH", "NO", "ZZ"]
    assert [each["country"] for each in document()["institutions"]] == ["CH", "NO", "ZZ"]
    changed = document()
    del changed["institutions"][2]["country"]
    assert problems_of(changed) == ["institutions[2].country: is missing"]


@pytest.mark.parametrize(
    "other",
    [
        replace(GENESIS, name="other"),
        replace(
            GENESIS,
            institutions=(
                replace(GENESIS.institutions[0], country="DE"),
                *GENESIS.institutions[1:],
            ),
        ),
        replace(GENESIS, time_ms=GENESIS.time_ms + 1),
        replace(GENESIS, limits=Limits(operations_max=255)),
        replace(GENESIS, institutions=GENESIS.institutions[::-1]),
        replace(GENESIS, validators=GENESIS.validators[::-1]),
        replace(GENESIS, observers=()),
    ],
)
def test_everything_in_it_names_the_chain(other):
    assert other.problems() == []
    assert other.chain_id != GENESIS.chain_id


def test_the_validator_set_keeps_the_order():
    validators = GENESIS.validator_set()
    assert [v.institution for v in validators.validators] == ["st-anna", "north"]
    assert validators.index_of(make.public("node 1")) == 1
    assert validators.index_of(make.public("node 2")) is None


def with_member(**changes):
    first, *rest = GENESIS.institutions
    member = replace(first.members[0], **changes)
    return replace(
        GENESIS, institutions=(replace(first, members=(member, *first.members[1:])), *rest)
    )


def with_validator(**changes):
    first, *rest = GENESIS.validators
    return replace(GENESIS, validators=(replace(first, **changes), *rest))


def with_institution(**changes):
    return replace(
        GENESIS,
        institutions=(*GENESIS.institutions[:2], replace(GENESIS.institutions[2], **changes)),
    )


@pytest.mark.parametrize(
    ("genesis", "place"),
    [
        (replace(GENESIS, name="Upper"), "name"),
        (replace(GENESIS, name=""), "name"),
        (replace(GENESIS, time_ms=0), "time_ms"),
        (replace(GENESIS, protocol_version=2), "protocol_version"),
        (replace(GENESIS, limits=Limits(operations_max=0)), "parameters.operations_max"),
        (
            replace(GENESIS, limits=Limits(batch_bytes_max=2_000)),
            "parameters.batch_bytes_max",
        ),
        (replace(GENESIS, validators=()), "validators"),
        (with_institution(name="University"), "institutions[2].name"),
        (with_institution(name="consortium"), "institutions[2].name"),
        (with_institution(name="st-anna"), "institutions[2].name"),
        (with_institution(display_name=""), "institutions[2].display_name"),
        (with_institution(display_name="a\x1b[2J"), "institutions[2].display_name"),
        (with_institution(country="ch"), "institutions[2].country"),
        (with_institution(country="CHE"), "institutions[2].country"),
        (with_member(public_key=bytes(31)), "institutions[0].members[0].public_key"),
        (with_member(public_key=SMALL_ORDER), "institutions[0].members[0].public_key"),
        (with_member(public_key=make.public("n")), "institutions[1].members[0].public_key"),
        (with_member(roles=()), "institutions[0].members[0].roles"),
        (with_member(roles=("surgeon",)), "institutions[0].members[0].roles"),
        (with_member(roles=("auditor", "auditor")), "institutions[0].members[0].roles"),
        (with_validator(institution="nowhere"), "validators[0].institution"),
        (with_validator(institution="north"), "validators[1].institution"),
        (with_validator(certificate=b""), "validators[0].certificate"),
        (with_validator(certificate=make.certificate("node 1")), "validators[0].certificate"),
        (with_validator(certificate=bytes(4_097)), "validators[0].certificate: has more than"),
        (replace(GENESIS, observers=GENESIS.validators[:1]), "observers[0].public_key"),
    ],
)
def test_a_broken_rule_is_reported_with_its_place(genesis, place):
    assert place.split(":")[0] in [each for each, _ in genesis.problems()]
    for read in (
        lambda: genesis_file.from_json(genesis_file.to_json(genesis).encode()),
        lambda: Genesis.decode(genesis.encode()),
    ):
        with pytest.raises(InvalidGenesis, match=re.escape(place)):
            read()


def test_a_name_that_is_no_unicode_text_is_refused():
    broken = document()
    broken["institutions"][0]["display_name"] = "\ud800"
    assert problems_of(broken) == [
        "institutions[0].display_name: must be 1 to 128 printable characters"
    ]


def test_roles_have_one_order_in_the_bytes():
    with pytest.raises(InvalidGenesis, match="roles"):
        Genesis.decode(with_member(roles=("gateway", "auditor")).encode())


def test_one_institution_has_one_vote():
    twice = replace(GENESIS.validators[1], institution="st-anna")
    genesis = replace(GENESIS, validators=(GENESIS.validators[0], twice))
    assert genesis.problems() == [
        ("validators[1].institution", "is the same as validators[0].institution")
    ]


def test_every_problem_of_a_file_is_reported_once_and_together():
    broken = document()
    broken["format"] = "something"
    broken["surprise"] = 1
    del broken["time_ms"]
    broken["parameters"]["operations_max"] = "many"
    broken["institutions"][0]["members"][0] = {"public_key": "zz", "roles": [5]}
    broken["institutions"][1] = "north"
    broken["validators"][0]["certificate"] = "%%%"
    broken["observers"] = {}
    found = problems_of(broken)
    places = [problem.split(":")[0] for problem in found]
    assert sorted(places) == sorted(set(places))
    assert {
        "format",
        "surprise",
        "time_ms",
        "parameters.operations_max",
        "institutions[0].members[0].public_key",
        "institutions[0].members[0].roles[0]",
        "institutions[1]",
        "validators[0].certificate",
        "observers",
    } <= set(places)


def test_no_parameter_has_a_default_in_the_file():
    for name in LIMIT_NAMES:
        less = document()
        del less["parameters"][name]
        assert problems_of(less) == [f"parameters.{name}: is missing"]


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "line 1, column 1"),
        (b'{"format": }', "line 1, column 12"),
        (b"\xff", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"1" * 10_000, "not JSON"),
        (b'{"a": 1, "a": 2}', "twice"),
        (b"[]", "the file: must be an object"),
        (b"null", "the file: must be an object"),
        (b" " * (genesis_file.FILE_BYTES_MAX + 1), "more than"),
    ],
)
def test_what_is_no_genesis_file_is_named(content, word):
    assert any(word in problem for problem in problems_of(content))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InvalidGenesis, match="No such file"):
        genesis_file.load(tmp_path / "genesis.json")
    with pytest.raises(InvalidGenesis, match="directory"):
        genesis_file.load(tmp_path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.floats(allow_nan=False),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*document(), "members", "roles"]), inner, max_size=5)
    ),
    max_leaves=10,
)


@settings(deadline=None)
@given(JSON, st.sampled_from(list(document())))
def test_any_json_in_any_place_gets_an_answer(value, key):
    changed = document() | {key: value}
    try:
        genesis_file.from_json(json.dumps(changed).encode())
    except InvalidGenesis as invalid:
        assert invalid.problems  # noqa: PT017


@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
@settings(deadline=None)
@given(st.data())
def test_damaged_bytes_are_refused_or_another_chain(data):
    good = GENESIS.encode()
    kind = data.draw(st.sampled_from(["random", "cut", "longer", "flipped"]))
    if kind == "random":
        bad = data.draw(st.binary(max_size=300))
    elif kind == "cut":
        bad = good[: data.draw(st.integers(0, len(good) - 1))]
    elif kind == "longer":
        bad = good + data.draw(st.binary(min_size=1, max_size=9))
    else:
        at = data.draw(st.integers(0, len(good) - 1))
        bad = good[:at] + bytes([good[at] ^ data.draw(st.integers(1, 255))]) + good[at + 1 :]
    try:
        genesis = Genesis.decode(bad)
    except InvalidGenesis:
        return
    assert kind == "flipped"
    assert genesis.encode() == bad
    assert genesis.chain_id != GENESIS.chain_id


@pytest.mark.parametrize("position", range(8))
@pytest.mark.parametrize(
    "value", [None, True, -1, b"x", "x", (), ((),), (1, 2), (("a", "b", "c"),)]
)
def test_a_wrong_field_is_refused(position, value):
    fields = list(unpack(GENESIS.encode()))
    fields[position] = value
    harmless = [(1, "x"), (7, ())]  # another name, no observers
    if (position, value) in harmless:
        assert Genesis.decode(pack(fields)).chain_id != GENESIS.chain_id
    else:
        with pytest.raises(InvalidGenesis):
            Genesis.decode(pack(fields))


def test_another_version_is_refused_with_both_versions_named():
    with pytest.raises(InvalidGenesis, match="version 3; this program knows version 2"):
        Genesis.decode(pack((3, "whatever")))


def test_the_defaults_are_within_the_bounds():
    assert Limits().problems() == []
    assert set(LIMIT_BOUNDS) == set(LIMIT_NAMES)
