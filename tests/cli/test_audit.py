"""`audit`: trails, and logs that are anchored, checked, and never anchored twice."""

import os
from datetime import UTC, datetime

import pytest

from node.gateway.audit.evidence import (
    Evidence,
    commitment,
    evidence_file,
    load_evidence,
    save_evidence,
)
from tests.cli.conftest import asked, run

_clock = iter(range(1, 10_000))


@pytest.fixture
def log(west, tmp_path):
    """Make logs whose last changes ascend, over all tests of this file."""

    def make(text="one\ntwo\nthree\n"):
        number = next(_clock)
        file = tmp_path / f"audit-{number}.log"
        file.write_text(text)
        begin = os.stat(west).st_mtime_ns + 10**9
        os.utime(file, ns=(begin, begin + number * 10**6))
        return file

    return make


@pytest.fixture
def west(net):
    return net.node("west").folder / "node.toml"


def test_a_trail_names_every_event_and_who_caused_it(shared, north, doctor):
    study, _ = shared()
    doctor.asked("access", "break-glass", study, "--reason", "urgent_care")
    trail = asked("audit", "trail", study, "-c", doctor.config)
    assert [entry["name"] for entry in trail["entries"]] == [
        "access_break_glass",
        "study_registered",
    ]
    first, second = trail["entries"]
    assert (first["institution"], second["institution"]) == ("south", "north")
    assert first["member_key"] == doctor.public_key
    page = asked("audit", "trail", study, "--limit", 1, "-c", doctor.config)
    rest = asked("audit", "trail", study, "--cursor", page["next_cursor"], "-c", doctor.config)
    assert page["entries"] + rest["entries"] == trail["entries"]
    assert "urgent_care" in run("audit", "trail", study, "-c", doctor.config).words


def test_the_trail_of_an_unknown_study_is_exit_status_1(north):
    assert run("audit", "trail", "ab" * 16, "-c", north).status == 1


def test_logs_are_anchored_in_order_once_and_checked(log, west, north):
    files = [log(), log("")]
    first, second = asked("audit", "anchor", *files, "-c", west)["anchored"]
    assert (first["outcome"], first["records"], second["records"]) == ("anchored", 3, 0)
    assert second["sequence"] == first["sequence"] + 1
    again = asked("audit", "anchor", *files, log(), "-c", west)["anchored"]
    assert [each["outcome"] for each in again] == ["unchanged", "unchanged", "anchored"]
    assert again[0]["height"] == first["height"]
    listed = asked("audit", "anchors", "west", "-c", west)["anchors"]
    assert listed[2]["root"] == first["root"]
    assert listed[1]["previous_root"] == first["root"]
    assert listed[1]["from_ms"] == listed[2]["to_ms"]
    assert asked("audit", "check", *files, "-c", west)["is_intact"]
    assert "complete and unchanged" in run("audit", "check", files[0], "-c", west).words


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("one\ntwo\nthreE\n", "a record was changed"),
        ("one\ntwo\n", "holds 2 records, and 3 were anchored"),
        ("two\none\nthree\n", "a record was changed"),
    ],
)
def test_a_log_that_was_touched_is_found(text, told, log, west):
    file = log()
    asked("audit", "anchor", file, "-c", west)
    file.write_text(text)
    answer = run("audit", "check", file, "-c", west)
    assert answer.status == 1
    assert told in answer.words


def test_the_root_is_salted_and_the_salt_is_private(log, west):
    file, same = log(), log()
    anchored = asked("audit", "anchor", file, same, "-c", west)["anchored"]
    assert anchored[0]["root"] != anchored[1]["root"]
    assert evidence_file(file).stat().st_mode & 0o077 == 0
    assert commitment(file, bytes(32)) != commitment(file, bytes(31) + b"1")


def test_anchoring_goes_on_where_it_was_killed(log, west):
    """The evidence was written, and its transaction never sent: the salt is kept."""
    file, other = log(), log()
    save_evidence(file, Evidence("west", 10**6, 0, 1, 3, "00" * 32, None, "ab" * 32))
    save_evidence(other, Evidence("north", 1, 0, 1, 3, "00" * 32, None, "cd" * 32))
    done = asked("audit", "anchor", file, other, "-c", west)["anchored"]
    assert [each["outcome"] for each in done] == ["anchored", "anchored"]
    assert load_evidence(file).salt == "ab" * 32
    assert asked("audit", "check", file, other, "-c", west)["is_intact"]


def test_times_out_of_order_are_a_sentence(log, west):
    earlier, later = log(), log()
    asked("audit", "anchor", later, "-c", west)
    answer = run("audit", "anchor", earlier, "-c", west)
    assert answer.status == 2
    assert "before its period begins" in answer.words
    both = run("audit", "anchor", earlier, later, "--to", "2026-01-01", "-c", west)
    assert both.status == 2


def test_a_log_that_was_never_anchored_is_said_so(log, west):
    answer = run("audit", "check", log(), "-c", west)
    assert answer.status == 1
    assert "was never anchored" in answer.words


def test_a_damaged_evidence_is_a_sentence(log, west):
    file = log()
    for content in (b"", b"{}", b"[]", b'{"version": 9, "salt": "00"}'):
        evidence_file(file).write_bytes(content)
        evidence_file(file).chmod(0o600)
        answer = run("audit", "anchor", file, "-c", west)
        assert answer.status == 2
        assert "anchor.json" in answer.words


def test_the_first_period_begins_when_it_is_told(north, tmp_path):
    file = tmp_path / "first.log"
    file.write_text("x\n")
    at = ("--from", "2020-01-01", "--to", "2020-01-02")
    asked("audit", "anchor", file, *at, "-c", north)
    (anchor,) = asked("audit", "anchors", "-c", north)["anchors"]
    assert anchor["from_ms"] == datetime(2020, 1, 1, tzinfo=UTC).timestamp() * 1000
