"""Fixtures of the gateway's tests: a spool with a clock that tests turn."""

import pytest

from node import keys
from node.gateway.closing import Rules
from node.gateway.spool import Quota, Spool
from node.imaging import vault_keys

RULES = Rules(quiet_ms=1_000, age_ms_max=60_000)
QUOTA = Quota(disk_reserve_bytes=1)


@pytest.fixture(autouse=True)
def quick_passphrases(monkeypatch):
    """Argon2id and scrypt as cheap as they go."""
    monkeypatch.setattr(keys, "_SCRYPT_N", 2)
    monkeypatch.setattr(vault_keys, "_ITERATIONS", 1)
    monkeypatch.setattr(vault_keys, "_MEMORY_KIB", 64)


class Clock:
    """Milliseconds since 1970 that pass when a test says so."""

    def __init__(self):
        self.now_ms = 1_700_000_000_000

    def __call__(self):
        return self.now_ms

    def pass_ms(self, count):
        self.now_ms += count


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def open_spool(tmp_path, clock):
    """Return a function that opens the spool in the test's folder, again and again."""
    spools = []

    def make(quota=QUOTA, **options):
        spool = Spool(tmp_path / "spool", quota, RULES, now_ms=clock, **options)
        spools.append(spool)
        return spool

    yield make
    for spool in spools:
        spool.close()


@pytest.fixture
def spool(open_spool):
    opened = open_spool()
    opened.recover()
    return opened
