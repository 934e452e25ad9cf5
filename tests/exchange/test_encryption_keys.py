"""Encryption keys on disk: sealed, private, never overwritten, and damage is noticed."""

import base64
import contextlib
import stat

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from consensus.wire import pack, unpack
from node.exchange import encryption_keys, hpke
from node.keys import KeyFileError

PASSPHRASE = b"correct horse"
BOTH = pytest.mark.parametrize("kem", [hpke.X25519, hpke.HYBRID])


def saved(folder, kem=hpke.HYBRID):
    key = encryption_keys.generate(kem)
    path = folder / encryption_keys.file_name(key.key_id)
    encryption_keys.save(key, path, PASSPHRASE, stretch=False)
    return key, path


@BOTH
def test_what_is_saved_is_loaded(tmp_path, kem):
    key, path = saved(tmp_path, kem)
    assert encryption_keys.load(path, PASSPHRASE) == key
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert key.secret not in path.read_bytes()
    assert key.secret.hex() not in repr(key)


def test_the_default_is_stretched_and_hybrid(tmp_path):
    key = encryption_keys.generate()
    path = tmp_path / "one.key"
    encryption_keys.save(key, path, PASSPHRASE)
    body = path.read_bytes().split(b"-----")[2]
    assert unpack(base64.b64decode(body.replace(b"\n", b"")))[4:8] == ("argon2id", 3, 4, 65_536)
    assert encryption_keys.load(path, PASSPHRASE).kem == "x25519-mlkem768"


def test_a_folder_gives_every_key_by_its_id(tmp_path):
    keys = [saved(tmp_path, kem)[0] for kem in (hpke.X25519, hpke.HYBRID, hpke.HYBRID)]
    assert encryption_keys.load_all(tmp_path, PASSPHRASE) == {key.key_id: key for key in keys}


def test_a_key_is_never_overwritten(tmp_path):
    key, path = saved(tmp_path)
    with pytest.raises(KeyFileError, match="never overwritten"):
        encryption_keys.save(encryption_keys.generate(), path, PASSPHRASE, stretch=False)
    assert encryption_keys.load(path, PASSPHRASE) == key


def test_what_is_wrong_is_said(tmp_path):
    key, path = saved(tmp_path)
    with pytest.raises(KeyFileError, match="passphrase is wrong"):
        encryption_keys.load(path, b"another one")
    with pytest.raises(KeyFileError, match="longer"):
        encryption_keys.save(key, tmp_path / "short.key", b"short")
    path.chmod(0o640)
    with pytest.raises(KeyFileError, match="chmod 600"):
        encryption_keys.load(path, PASSPHRASE)
    other = tmp_path / "other.key"
    other.touch(0o600)
    with pytest.raises(KeyFileError, match="not an encryption key"):
        encryption_keys.load(other, PASSPHRASE)


def rewritten(path, change):
    """The same file with its fields changed; nobody without the passphrase could do more."""
    head, _, body, *_ = path.read_bytes().split(b"-----")
    fields = list(unpack(base64.b64decode(body.replace(b"\n", b""))))
    change(fields)
    label = b"-----BEGIN RADLEDGER ENCRYPTION KEY-----\n"
    end = b"\n-----END RADLEDGER ENCRYPTION KEY-----\n"
    path.write_bytes(head + label + base64.b64encode(pack(fields)) + end)


@pytest.mark.parametrize(
    ("place", "value", "told"),
    [
        (0, 2, "upgrade"),
        (1, "rsa", "damaged"),
        (2, b"\x07" * 16, "damaged"),  # not the id that stands in clear
        (3, b"\x07" * 1_216, "does not open"),  # another public key under the same secret
        (5, 1 << 40, "damaged"),  # a cost that nobody could pay
        (7, 1 << 40, "damaged"),
        (7, 1, "damaged"),
        (9, b"", "damaged"),
        (10, b"", "damaged"),
    ],
)
def test_a_changed_field_is_noticed(tmp_path, place, value, told):
    _, path = saved(tmp_path)
    rewritten(path, lambda fields: fields.__setitem__(place, value))
    with pytest.raises(KeyFileError, match=told):
        encryption_keys.load(path, PASSPHRASE)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(data=st.data())
def test_no_damage_gives_a_key_or_another_error(tmp_path, data):
    if not (path := tmp_path / "one.key").exists():
        encryption_keys.save(encryption_keys.generate(hpke.X25519), path, PASSPHRASE, stretch=False)
    content = path.read_bytes()
    at = data.draw(st.integers(0, len(content) - 1))
    mutated = data.draw(
        st.sampled_from(
            [content[:at], content[:at] + b"\xff" + content[at + 1 :], content[at:], b""]
        )
    )
    broken = tmp_path / "broken.key"
    broken.touch(0o600)
    broken.write_bytes(mutated)
    key = encryption_keys.load(path, PASSPHRASE)
    with contextlib.suppress(KeyFileError):
        assert encryption_keys.load(broken, PASSPHRASE) == key  # only a line break was hit
