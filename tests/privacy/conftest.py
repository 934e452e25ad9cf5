"""Keys that open quickly, in every test here."""

import pytest

from node import keys
from node.exchange import encryption_keys
from node.imaging import vault_keys
from tests.privacy.site_world import quick


@pytest.fixture(autouse=True)
def quick_keys(monkeypatch):
    monkeypatch.setattr(keys, "_SCRYPT_N", 2)
    monkeypatch.setattr(vault_keys, "_ITERATIONS", 1)
    monkeypatch.setattr(vault_keys, "_MEMORY_KIB", 64)
    monkeypatch.setattr(encryption_keys, "_COSTS", encryption_keys._COSTS_LEAST)
    quick(monkeypatch)
