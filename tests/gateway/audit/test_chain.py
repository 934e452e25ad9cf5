"""A removed, changed, moved or inserted record is found, and named."""

import json

import pytest

from node.gateway.audit.acts import Act
from node.gateway.audit.chain import verify
from node.gateway.audit.record import link
from node.gateway.audit.segments import segments


@pytest.fixture
def whole(trail, folder):
    """Fill a trail of 20 records; return a function that changes its lines, across its files."""
    for number in range(19):
        trail.append(Act("refused", who=f"PEER{number}"))
    trail.close()
    assert verify(folder).problems is None
    assert len(segments(folder)) > 2

    def change(edit):
        for segment in segments(folder):
            lines = segment.path.read_bytes().splitlines()
            kept = [line for old in lines for line in edit(json.loads(old)["seq"], old)]
            segment.path.chmod(0o600)
            segment.path.write_bytes(b"".join(line + b"\n" for line in kept))
        return verify(folder).problems

    return change


def changed(line, **values):
    value = {**json.loads(line), **values}
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def test_a_removed_record_is_named(whole):
    assert whole(lambda seq, line: [] if seq == 7 else [line]) == ["record 7 is missing"]


def test_removed_records_are_named_together(whole):
    problems = whole(lambda seq, line: [] if 3 <= seq <= 5 else [line])
    assert problems == ["records 3 to 5 are missing"]


def test_a_changed_record_is_named(whole):
    problems = whole(lambda seq, line: [changed(line, who="INNOCENT") if seq == 7 else line])
    assert problems == ["record 7 was changed: record 8 names another hash"]


def test_a_changed_time_is_no_less_a_change(whole):
    problems = whole(lambda seq, line: [changed(line, time_ms=1) if seq == 7 else line])
    assert problems == ["record 7 was changed: record 8 names another hash"]


def test_a_record_that_was_put_in_is_named(whole):
    problems = whole(lambda seq, line: [line, changed(line, who="X")] if seq == 7 else [line])
    assert len(problems) == 1
    assert "record 7 was put in, or moved, after 7" in problems[0]


def test_records_that_changed_places_are_named(whole):
    kept = []

    def swap(seq, line):
        if seq == 3:
            kept.append(line)
            return []
        return [line, *kept] if seq == 4 else [line]

    problems = whole(swap)
    assert problems[0] == "record 3 is missing"
    assert "record 3 was put in, or moved, after 4" in problems[1]


def test_a_line_that_is_no_record_is_named(whole):
    problems = whole(lambda seq, line: [line.replace(b":", b": ") if seq == 7 else line])
    assert len(problems) == 1
    assert "where 7 was" in problems[0]


def test_a_removed_file_is_named(whole, folder):
    second, third = segments(folder)[1:3]
    second.path.unlink()
    missing = f"records {second.first} to {third.first - 1} are missing"
    assert verify(folder).problems == [missing]


def test_a_removed_beginning_is_named(whole, folder):
    first, second = segments(folder)[:2]
    first.path.unlink()
    assert verify(folder).problems == [
        f"records 1 to {second.first - 1} are missing, and no record says why"
    ]


def test_a_trail_that_was_written_anew_is_whole_by_itself(whole, folder):
    """Whoever can write all later records anew is caught by the anchors only: see `test_cli`."""
    before = ["0" * 64]

    def forge(seq, line):
        line = changed(line, before=before[0], **({"who": "INNOCENT"} if seq == 7 else {}))
        before[0] = link(line)
        return [line]

    assert whole(forge) is None
