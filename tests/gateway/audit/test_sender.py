"""The sender: strictly in order, through outages, restarts and kills, nothing missing."""

import asyncio
import subprocess
import sys
from itertools import pairwise

import pytest

from node.gateway.audit import sent
from node.gateway.audit.acts import Act
from node.gateway.audit.connection import Repository as Place
from node.gateway.audit.errors import TrailUnusable
from node.gateway.audit.reader import Reader
from node.gateway.audit.segments import segments
from node.gateway.audit.sender import BATCH, LAST_DELAY_SECONDS, RESEND, Sender
from tests.gateway.audit.conftest import SITE, records


def fill(trail, count):
    for _ in range(count):
        last = trail.append(Act("refused", code="x"))
    return last


def exhaust(sender):
    """Let the sender send until there is nothing more for now."""
    while sender.turn() == 0.0:
        pass


def distinct(sequences):
    """Return the numbers without repetitions, in the order in which they first came."""
    return list(dict.fromkeys(sequences))


def settle(sender, ticks, last):
    """Turn until the other side's system has everything and the time has passed."""
    while sender.sent < last:
        sender.turn()
        ticks.now_s += 3.0


def test_everything_arrives_in_order_over_mutual_tls(trail, make_sender, repository):
    last = fill(trail, 3 * BATCH)
    sender = make_sender()
    exhaust(sender)
    repository.wait(lambda: len(repository.messages) == last)
    assert repository.sequences() == list(range(1, last + 1))
    assert repository.connections == 1
    assert repository.messages[0].kind == "trail_began"


def test_what_comes_later_is_sent_later(trail, make_sender, repository):
    sender = make_sender()
    assert sender.turn() > 0
    trail.append(Act("started"))
    assert sender.turn() > 0
    repository.wait(lambda: len(repository.messages) == 2)


def test_an_outage_loses_nothing_and_keeps_the_order(trail, make_sender, repository, ticks):
    fill(trail, 10)
    sender = make_sender()
    exhaust(sender)
    settle(sender, ticks, 11)
    repository.stop()
    last = fill(trail, 100)
    while sender.is_connected:  # until the reset has come
        sender.turn()
    delays = [sender.turn() for _ in range(7)]
    assert delays[-1] == LAST_DELAY_SECONDS  # it waits longer and longer, up to a bound
    assert delays == sorted(delays)
    repository.start()
    exhaust(sender)
    repository.wait(lambda: len(distinct(repository.sequences())) == last)
    assert distinct(repository.sequences()) == list(range(1, last + 1))


def test_what_a_dying_repository_took_and_lost_is_sent_again(trail, make_sender, repository, ticks):
    """Its system acknowledged the bytes, the program never wrote them: nobody tells us."""
    repository.forgets_after = 5
    last = fill(trail, 20)
    sender = make_sender()
    exhaust(sender)
    ticks.now_s += 4.0  # not long enough to count
    sender.turn()
    repository.wait(lambda: len(repository.messages) == 5)
    repository.stop()
    assert sender.sent == 0
    repository.forgets_after = None
    repository.start()
    while sender.turn() != 0.5:
        pass
    repository.wait(lambda: repository.sequences()[-1] == last)
    assert distinct(repository.sequences()) == list(range(1, last + 1))
    repeated = repository.sequences()[5:]
    assert repeated == list(range(1, last + 1))  # in order again, from what did not count


def test_a_record_counts_once_taken_and_the_connection_stood(trail, make_sender, ticks, folder):
    last = fill(trail, 5)
    sender = make_sender()
    exhaust(sender)
    while sender._connection.unacknowledged():
        pass
    sender.turn()
    assert sent.load(folder).seq == 0
    ticks.now_s += 5.0
    sender.turn()
    assert sent.load(folder).seq == last == sender.sent


def test_a_restart_goes_on_where_it_was_known_to_be(trail, make_sender, repository, ticks):
    fill(trail, 5)
    first = make_sender()
    exhaust(first)
    settle(first, ticks, 6)
    first._break_off()
    trail.append(Act("started"))
    exhaust(make_sender())
    repository.wait(lambda: len(repository.messages) == 7)
    assert repository.sequences() == list(range(1, 8))


def test_a_repository_that_takes_nothing_is_left(trail, make_sender, repository, monkeypatch):
    monkeypatch.setattr("node.gateway.audit.connection.SEND_SECONDS", 0.2)
    sender = make_sender()
    exhaust(sender)
    monkeypatch.setattr(
        type(sender._connection), "send", lambda self, data: (_ for _ in ()).throw(TimeoutError)
    )
    trail.append(Act("started"))
    assert sender.turn() >= 1.0
    assert not sender.is_connected


@pytest.mark.parametrize(("name", "server"), [("stranger", "repository"), ("gateway", "stranger")])
def test_both_sides_must_be_trusted(trail, make_sender, repository, ticks, caplog, name, server):
    """With TLS 1.3 a refusal of our certificate comes after the handshake: nothing counts."""
    fill(trail, 5)
    sender = make_sender(name, server)
    for _ in range(20):
        refused = repository.refused
        sender.turn()
        if sender.is_connected:  # until the refusal is on its way
            repository.wait(lambda before=refused: repository.refused > before)
        ticks.now_s += 1.0
    repository.wait(lambda: repository.refused >= 1)
    assert repository.messages == []
    assert sender.sent == 0
    assert caplog.text.count("cannot be reached") == 1


def test_a_server_known_by_authority_must_have_the_name(folder, trail, repository, identities):
    own = identities["gateway"]
    files = own.certificate, own.key
    trust = identities["repository"].certificate  # an authority, but not for 127.0.0.1
    place = Place("127.0.0.1", repository.port, *files, trust_file=trust)
    sender = Sender(folder, place, SITE)
    assert sender.turn() >= 1.0
    assert repository.messages == []


def test_a_gap_in_the_trail_is_not_sent_over(trail, make_sender, repository, folder, caplog):
    fill(trail, 5)
    path = segments(folder)[0].path
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:1] + lines[2:]))
    sender = make_sender()
    assert sender.turn() > 0
    assert "record 3 of the audit trail stands for 2" in caplog.text
    assert repository.messages == []
    with Reader(folder, 1) as reader, pytest.raises(TrailUnusable):
        reader.read(10)


def test_a_gap_at_the_repository_is_seen_by_its_numbers_and_hashes(
    trail, make_sender, repository, folder
):
    fill(trail, 5)
    exhaust(make_sender())
    repository.wait(lambda: len(repository.messages) == 6)
    del repository.messages[3]
    assert repository.sequences() == [1, 2, 3, 5, 6]
    digests = [
        {
            each.get("type"): each.get("value")
            for each in message.root.iter("ParticipantObjectDetail")
        }
        for message in repository.messages
    ]
    broken = [later["before"] != earlier["sha256"] for earlier, later in pairwise(digests)]
    assert broken == [False, False, True, False]


def test_an_operator_has_records_sent_again(trail, make_sender, repository, ticks, folder):
    fill(trail, 9)
    sender = make_sender()
    exhaust(sender)
    settle(sender, ticks, 10)
    (folder / RESEND).write_text("7")
    exhaust(sender)
    repository.wait(lambda: len(repository.messages) == 14)
    assert repository.sequences() == [*range(1, 11), 7, 8, 9, 10]
    assert not (folder / RESEND).exists()


@pytest.mark.parametrize(("asked", "first"), [("2000", 11), ("0", 1), ("no number", 1)])
def test_a_number_without_a_record_does_not_end_the_sending(
    trail, make_sender, repository, ticks, folder, asked, first
):
    fill(trail, 9)
    sender = make_sender()
    exhaust(sender)
    settle(sender, ticks, 10)
    (folder / RESEND).write_text(asked)
    last = fill(trail, 5)
    exhaust(sender)
    repository.wait(lambda: repository.sequences()[-1] == last)
    assert not (folder / RESEND).exists()
    assert repository.sequences() == [*range(1, 11), *range(first, last + 1)]


def test_records_that_are_gone_are_told_once_and_passed_over(
    trail, make_sender, repository, ticks, folder, caplog
):
    last = fill(trail, 60)
    gone = segments(folder)[:3]
    first = segments(folder)[3].first
    for each in gone:
        each.path.unlink()
    repository.stop()
    sender = make_sender()
    sender.turn()
    sender.turn()
    repository.start()
    exhaust(sender)
    repository.wait(lambda: repository.sequences()[-1:] == [last])
    assert repository.sequences() == list(range(first, last + 1))
    told = f"audit records are gone that were to be sent first=1 last={first - 1}"
    assert caplog.text.count(told) == 1
    settle(sender, ticks, last)
    (folder / RESEND).write_text("1")
    exhaust(sender)
    repository.wait(lambda: len(repository.messages) == 2 * (last - first + 1))
    assert distinct(repository.sequences()) == list(range(first, last + 1))
    assert caplog.text.count("are gone") == 1


def test_the_sender_holds_little_of_a_long_trail(trail, make_sender, repository, monkeypatch):
    last = fill(trail, 10 * BATCH)
    sender = make_sender()
    read = []
    real = Reader.read

    def watched(reader, count):
        found = real(reader, count)
        read.append(len(found))
        return found

    monkeypatch.setattr(Reader, "read", watched)
    exhaust(sender)
    assert max(read) == BATCH
    repository.wait(lambda: len(repository.messages) == last)


async def test_it_runs_beside_others_and_ends_when_it_is_cancelled(trail, make_sender, repository):
    sender = make_sender()
    running = asyncio.create_task(sender.run(poll_seconds=0.01))
    last = await asyncio.to_thread(fill, trail, 200)
    await asyncio.to_thread(repository.wait, lambda: len(repository.messages) == last)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert repository.sequences() == list(range(1, last + 1))


KILLED = """
import os, sys
from pathlib import Path
from node.gateway.audit import sender as module
from node.gateway.audit.connection import Connection, Repository
from node.gateway.audit.message import Site
folder, port, certificate, key, server, step = sys.argv[1:]
calls = 0
def dies(real):
    def call(*arguments):
        global calls
        if calls == int(step):
            os.kill(os.getpid(), 9)
        calls += 1
        return real(*arguments)
    return call
Connection.send = dies(Connection.send)
real_save = dies(module.sent.save)
def save(*arguments):
    real_save(*arguments)
    if step == "999":
        os.kill(os.getpid(), 9)
module.sent.save = save
place = Repository("127.0.0.1", int(port), Path(certificate), Path(key), None, Path(server))
sender = module.Sender(Path(folder), place, Site("north", "RADLEDGER"), settle_seconds=0.0)
while True:
    sender.turn()
"""


def test_kills_at_any_step_lose_nothing_and_keep_the_order(
    trail, make_sender, repository, identities, folder
):
    own, server = identities["gateway"], identities["repository"]
    for step in (0, 1, 7, "before it is noted", 25, 999, 3, 999):
        last = fill(trail, 20)
        if step == "before it is noted":
            step = last - sent.load(folder).seq
        files = map(str, (own.certificate, own.key, server.certificate))
        arguments = [sys.executable, "-c", KILLED, str(folder), str(repository.port), *files]
        done = subprocess.run([*arguments, str(step)], check=False, timeout=60)
        assert done.returncode == -9
    exhaust(make_sender())
    repository.wait(lambda: repository.sequences()[-1:] == [last])
    came = repository.sequences()
    assert distinct(came) == list(range(1, last + 1))
    # Whatever came again came in order, from a record that did not count yet.
    assert all(b == a + 1 or b <= a for a, b in pairwise(came))
    assert len(records(folder)) == last
    assert sent.load(folder).seq == last
