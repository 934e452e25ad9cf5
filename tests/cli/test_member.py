"""`member` and `institution`: keys, cards, roles, and who may sign."""

import json

import pytest

from node import keys
from node.cli.cards import MemberCard
from node.cli.signing import PASSPHRASE_VARIABLE
from node.provision import GENESIS
from tests.cli.conftest import asked, enrol, run


def test_a_key_is_made_without_a_node_and_its_card_proves_possession(net, tmp_path):
    key = tmp_path / "doctor.pem"
    genesis = net.layout.folder / GENESIS
    made = asked("member", "keygen", key, "--institution", "south", "--genesis", genesis)
    assert made["institution"] == "south"
    opened = keys.load(key, (tmp_path / "doctor.pem.passphrase").read_bytes().strip())
    assert keys.public_bytes(opened).hex() == made["public_key"]
    private = [path for path in tmp_path.iterdir() if not path.name.endswith(".card.json")]
    assert all(path.stat().st_mode & 0o077 == 0 for path in private)
    words = run("member", "keygen", key, "--institution", "south", "--genesis", genesis).words
    assert "never overwritten" in words


def test_keygen_needs_both_or_neither(tmp_path, north):
    answer = run("member", "keygen", tmp_path / "k", "--institution", "south", "-c", north)
    assert answer.status == 2
    assert "belong together" in answer.words


def test_roles_change_and_members_are_suspended_and_resumed(north):
    person = enrol(north, "changing", "researcher")
    roles = ("member", "roles", person.public_key, "--role", "clinician", "--role", "auditor")
    assert asked(*roles, "-c", north)["member"]["roles"] == ["auditor", "clinician"]
    assert not asked("member", "suspend", person.public_key, "-c", north)["member"]["acts"]
    assert person.code("policy", "retire", "any") == "member_suspended"
    assert asked("member", "resume", person.public_key, "-c", north)["member"]["acts"]


def test_a_rotated_key_goes_on_for_the_overlap(north, tmp_path):
    person = enrol(north, "old", "auditor")
    new = asked("member", "keygen", tmp_path / "new.pem", "-c", north)
    rotate = ("member", "rotate", person.public_key, new["card"], "--overlap", 50)
    done = asked(*rotate, "-c", north)
    assert done["member"]["public_key"] == new["public_key"]
    assert done["member"]["roles"] == ["auditor"]
    members = asked("member", "list", "-c", north)["members"]
    (old,) = [each for each in members if each["public_key"] == person.public_key]
    assert old["until_height"] == done["transaction"]["height"] + 50


def test_the_last_administrator_stays(south):
    listed = asked("member", "list", "-c", south)["members"]
    (administrator,) = [each for each in listed if "administrator" in each["roles"]]
    answer = run("member", "suspend", administrator["public_key"], "-c", south)
    assert answer.status == 1
    assert "what to do: add another administrator first" in answer.words


def test_a_card_of_another_hospital_chain_or_hand_is_refused(net, north, south, tmp_path):
    made = asked("member", "keygen", tmp_path / "k.pem", "-c", south)
    answer = run("member", "add", made["card"], "--role", "auditor", "-c", north)
    assert answer.status == 2
    assert "was made for south, but this is north" in answer.words
    card = tmp_path / "k.pem.card.json"
    value = json.loads(card.read_text())
    forged = value | {"public_key": keys.public_bytes(keys.generate()).hex()}
    for changed, status, words in (
        (value | {"chain_id": "11" * 32}, 2, "another chain"),
        (forged, 1, "possession_unproven"),
        (value | {"kind": "application"}, 2, "or it is damaged"),
    ):
        card.write_text(json.dumps(changed))
        answer = run("member", "add", card, "--role", "auditor", "-c", south)
        assert answer.status == status
        assert words in answer.words


def test_cards_are_read_as_they_were_written(tmp_path):
    card = MemberCard.make(keys.generate(), bytes(32), "north")
    card.save(tmp_path / "card")
    assert MemberCard.load(tmp_path / "card") == card


def test_a_key_opens_by_the_environment_too(north, monkeypatch):
    person = enrol(north, "environment", "auditor")
    beside = person.key.with_name(person.key.name + ".passphrase")
    passphrase = beside.read_text().strip()
    beside.unlink()
    monkeypatch.setenv(PASSPHRASE_VARIABLE, "wrong, wrong, wrong")
    answer = run("policy", "retire", "any", "-c", north, "--key", person.key)
    assert answer.status == 2
    assert "the passphrase is wrong" in answer.words
    monkeypatch.setenv(PASSPHRASE_VARIABLE, passphrase)
    assert person.code("policy", "retire", "any") == "role_missing"


def test_members_are_listed_page_by_page(north):
    enrol(north, "listed", "auditor")
    page = asked("member", "list", "--limit", 1, "-c", north)
    rest = asked("member", "list", "--cursor", page["next_cursor"], "-c", north)
    keys_seen = [each["public_key"] for each in page["members"] + rest["members"]]
    assert keys_seen == sorted(set(keys_seen))
    assert "There may be more" in run("member", "list", "--limit", 1, "-c", north).words


def test_institutions_are_shown(north):
    listed = asked("institution", "list", "-c", north)["institutions"]
    assert {"north", "south", "east", "west"} <= {each["name"] for each in listed}
    shown = asked("institution", "show", "-c", north)
    assert shown["institution"]["name"] == "north"
    assert shown["keys"] == []
    assert "votes" in run("institution", "show", "west", "-c", north).words
    assert run("institution", "show", "nowhere", "-c", north).status == 1


@pytest.mark.parametrize("role", ["boss", "", "Patient"])
def test_a_role_that_is_none_is_answered_with_all(role, north):
    answer = run("member", "roles", "ab" * 32, "--role", role, "-c", north)
    assert answer.status == 2
    assert "data_protection_officer" in answer.words
