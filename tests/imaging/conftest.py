"""Fixtures of the imaging tests."""

import pytest

from node.imaging import pixels, vault_keys
from node.imaging.vault import create_vault

PASSPHRASE = "correct horse battery staple"


@pytest.fixture(autouse=True)
def quick_passphrases(monkeypatch):
    """Argon2id as cheap as it goes; its real cost is in the header and needs no test."""
    monkeypatch.setattr(vault_keys, "_ITERATIONS", 1)
    monkeypatch.setattr(vault_keys, "_MEMORY_KIB", 64)


@pytest.fixture
def vault(tmp_path):
    with create_vault(tmp_path / "vault.db", PASSPHRASE) as opened:
        yield opened


@pytest.fixture
def no_decoders(monkeypatch):
    """As if no pixel decoder were installed, whatever is."""

    def none(uid):
        raise NotImplementedError(uid)

    monkeypatch.setattr(pixels, "get_decoder", none)
