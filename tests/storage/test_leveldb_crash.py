"""kill -9 of a writing process: what was acknowledged is there, and no batch by halves."""

import random
import subprocess
import sys

from storage.leveldb import open_leveldb
from tests.storage.tools import contents

WRITER = """
import random, sys
from pathlib import Path
from storage.kv import WriteBatch
from storage.leveldb import open_leveldb

store = open_leveldb(Path(sys.argv[1]))
number = int(sys.argv[2])
while True:
    number += 1
    batch = WriteBatch()
    for part in range(8):
        batch.put(b"%d/%d" % (part, number), b"v" * (number * 37 % 3000))
    batch.put(b"last", b"%d" % number)
    store.write(batch, sync=True)
    sys.stdout.write(f"{number}\\n")
    sys.stdout.flush()
"""


def test_acknowledged_batches_survive_kill_minus_nine_again_and_again(tmp_path):
    folder = tmp_path / "ledger"
    acknowledged = 0
    chance = random.Random(3)
    for _ in range(6):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(folder), str(acknowledged)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(chance.randrange(1, 200)):
            acknowledged = int(writer.stdout.readline())
        writer.kill()
        rest, _ = writer.communicate()
        acknowledged = max([acknowledged, *map(int, rest.split("\n")[:-1])])
        store = open_leveldb(folder, create=False)
        rows = contents(store)
        last = int(rows.pop(b"last"))
        store.close()
        # The batch after the last acknowledged one may have made it, as a whole.
        assert last in (acknowledged, acknowledged + 1)
        acknowledged = last
        assert rows == {
            b"%d/%d" % (part, number): b"v" * (number * 37 % 3000)
            for part in range(8)
            for number in range(1, last + 1)
        }


def test_the_lock_of_a_killed_process_is_gone(tmp_path):
    folder = tmp_path / "ledger"
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(folder), "0"], stdout=subprocess.PIPE, text=True
    )
    writer.stdout.readline()
    writer.kill()
    writer.communicate()
    store = open_leveldb(folder, create=False)
    assert int(store.get(b"last")) >= 1
    store.close()
