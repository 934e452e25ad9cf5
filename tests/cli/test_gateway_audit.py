"""`gateway audit`: the trail is proved whole, anchored, checked against its anchors, sent again."""

import json
from contextlib import closing

import pytest

from node.gateway.audit.acts import Act
from node.gateway.audit.evidence import evidence_file, leaves_file
from node.gateway.audit.record import link
from node.gateway.audit.segments import segments
from node.gateway.audit.trail import Trail, TrailLimits
from tests.cli.conftest import asked, run
from tests.cli.test_documents import documented

LIMITS = TrailLimits(segment_bytes_max=1_000)


@pytest.fixture
def east(net, tmp_path):
    """A hospital's config with a gateway, whose trail holds 20 records in some files."""
    plain = net.node("east").folder / "node.toml"
    config = plain.with_name(f"{tmp_path.name}.toml")
    config.write_text(f'{plain.read_text()}\n[gateway]\nspool_dir = "{tmp_path / "spool"}"\n')
    fill(tmp_path, 19)
    return config


def fill(tmp_path, count):
    with closing(Trail(tmp_path / "spool" / "audit", LIMITS)) as trail:
        for number in range(count):
            trail.append(Act("refused", who=f"PEER{number}"))


def rewrite(folder, edit):
    """Change records, and write every link anew, as one with all rights on the disk could."""
    before = "0" * 64
    for segment in segments(folder):
        kept = []
        for line in segment.path.read_bytes().splitlines():
            value = edit(json.loads(line))
            if value is None:
                continue
            value["before"] = before
            line = json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
            before = link(line)
            kept.append(line + b"\n")
        segment.path.chmod(0o600)
        segment.path.write_bytes(b"".join(kept))


def test_a_trail_is_anchored_file_by_file_and_verified(east, tmp_path):
    folder = tmp_path / "spool" / "audit"
    assert asked("gateway", "audit", "verify", "-c", east)["anchors"] == 0
    done = asked("gateway", "audit", "anchor", "-c", east)["anchored"]
    assert {each["outcome"] for each in done} == {"anchored"}
    assert sum(each["records"] for each in done) == 20
    fill(tmp_path, 3)
    again = asked("gateway", "audit", "anchor", "-c", east)["anchored"]
    assert [each["records"] for each in again] == [3]
    assert asked("gateway", "audit", "anchor", "-c", east)["anchored"] == []
    verified = asked("gateway", "audit", "verify", "-c", east)
    assert verified["is_whole"]
    assert (verified["records"], verified["anchors"]) == (23, len(done) + 1)
    assert "agree with" in run("gateway", "audit", "verify", "-c", east).words
    shown = asked("gateway", "audit", "status", "-c", east)
    assert (shown["last"], shown["sent"], shown["waiting"]) == (23, 0, 23)
    assert shown["anchored"] == len(done) + 1
    assert set(shown) == documented("gateway audit status")
    assert set(verified) == documented("gateway audit verify")
    # What `radledger audit` knows of logs holds for the trail's files, too.
    files = [each.path for each in segments(folder)][:-1]
    assert asked("audit", "check", *files, "-c", east)["is_intact"]


def test_what_the_links_do_not_show_the_anchors_do_and_the_record_is_named(east, tmp_path):
    folder = tmp_path / "spool" / "audit"
    asked("gateway", "audit", "anchor", "-c", east)
    second = segments(folder)[1]

    def innocent(value):
        return {**value, "who": "INNOCENT"} if value["seq"] == second.first + 2 else value

    rewrite(folder, innocent)
    assert asked("gateway", "audit", "verify", "--offline", "-c", east)["is_whole"]
    answer = asked("gateway", "audit", "verify", "-c", east, status=1)
    named = f"{second.path.name}: a record was changed since it was anchored: line 3 is the first"
    assert answer["problems"][0].startswith(named)
    # All later files hold other links since.
    assert len(answer["problems"]) == len(segments(folder)) - 2


def test_records_cut_off_at_the_end_of_an_anchored_file_are_found(east, tmp_path):
    folder = tmp_path / "spool" / "audit"
    asked("gateway", "audit", "anchor", "-c", east)
    *_, last, empty = segments(folder)
    empty.path.unlink()
    lines = last.path.read_bytes().splitlines(keepends=True)
    last.path.chmod(0o600)
    last.path.write_bytes(b"".join(lines[:-1]))
    answer = asked("gateway", "audit", "verify", "-c", east, status=1)
    assert f"holds {len(lines) - 1} records, and {len(lines)} were anchored" in str(answer)


def test_leaves_that_were_changed_with_the_records_are_not_believed(east, tmp_path):
    folder = tmp_path / "spool" / "audit"
    asked("gateway", "audit", "anchor", "-c", east)
    rewrite(folder, lambda value: {**value, "time_ms": 1})
    first = segments(folder)[0].path
    data = leaves_file(first).read_bytes()
    leaves_file(first).write_bytes(bytes(32) + data[32:])
    answer = asked("gateway", "audit", "verify", "-c", east, status=1)
    assert f"{first.name}: a record was changed since it was anchored" in answer["problems"]


def test_a_broken_trail_is_not_anchored(east, tmp_path):
    folder = tmp_path / "spool" / "audit"
    path = segments(folder)[0].path
    path.chmod(0o600)
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    answer = run("gateway", "audit", "anchor", "-c", east)
    assert answer.status == 1
    assert "not whole" in answer.words
    assert not evidence_file(path).exists()
    assert "missing" in run("gateway", "audit", "verify", "-c", east).words


def test_anchoring_goes_on_where_it_was_interrupted(east, tmp_path):
    """The anchor came on the ledger, and the command was killed before it kept the leaves."""
    folder = tmp_path / "spool" / "audit"
    done = asked("gateway", "audit", "anchor", "-c", east)["anchored"]
    first = segments(folder)[0].path
    leaves_file(first).unlink()
    again = asked("gateway", "audit", "anchor", "-c", east)["anchored"]
    assert [(each["outcome"], each["sequence"]) for each in again] == [
        ("unchanged", done[0]["sequence"])
    ]
    assert leaves_file(first).exists()


@pytest.fixture
def name_repository(east):
    """Return a function that gives the config a repository."""
    files = "".join(
        f'{name} = "x.pem"\n' for name in ("certificate_file", "key_file", "trust_file")
    )

    def name():
        with east.open("a") as file:
            file.write(f'[gateway.audit]\nhost = "repository.example"\n{files}')

    return name


def test_sending_again_needs_a_repository(east, tmp_path, name_repository):
    answer = run("gateway", "audit", "resend", "--from", 7, "-c", east)
    assert answer.status == 2
    assert "names no repository" in answer.words
    name_repository()
    assert asked("gateway", "audit", "resend", "--from", 7, "-c", east) == {"first": 7}
    assert (tmp_path / "spool" / "audit" / "resend").read_text() == "7"


def test_only_records_that_are_here_are_sent_again(east, tmp_path, name_repository):
    name_repository()
    folder = tmp_path / "spool" / "audit"
    answer = run("gateway", "audit", "resend", "--from", 22, "-c", east)
    assert answer.status == 2
    assert "the last one is 20" in answer.words
    assert not (folder / "resend").exists()
    assert asked("gateway", "audit", "resend", "--from", 21, "-c", east) == {"first": 21}
    segments(folder)[0].path.unlink()
    first = segments(folder)[0].first
    answer = run("gateway", "audit", "resend", "--from", 1, "-c", east)
    assert f"Records up to {first - 1} are not here any more." in answer.words
    assert (folder / "resend").read_text() == str(first)


def test_a_repository_needs_certificates_on_both_sides(east):
    with east.open("a") as file:
        file.write('[gateway.audit]\nhost = "repository.example"\n')
    answer = run("gateway", "audit", "status", "-c", east)
    assert answer.status == 2
    for name in ("certificate_file", "key_file", "trust_file"):
        assert name in answer.words


def test_without_a_trail_a_sentence_says_so(net):
    answer = run("gateway", "audit", "status", "-c", net.node("east").folder / "node.toml")
    assert answer.status == 2
    assert "no [gateway]" in answer.words
