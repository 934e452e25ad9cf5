"""Identity keys, passphrases and tokens on disk."""

import base64
import os

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from node import keys
from node.keys import (
    KeyFileError,
    PassphraseEnvironment,
    PassphraseFile,
    PassphrasePrompt,
)

PASSPHRASE = b"correct horse battery"
# RFC 8032 §7.1, test 2: secret key, public key, message, signature.
SECRET = bytes.fromhex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb")
PUBLIC = bytes.fromhex("3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c")
SIGNATURE = bytes.fromhex(
    "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
    "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("keys") / "node.key.pem"
    keys.save(Ed25519PrivateKey.from_private_bytes(SECRET), path, PASSPHRASE)
    return path


def write(path, content, mode=0o600):
    path.write_bytes(content)
    path.chmod(mode)
    return path


def test_a_saved_key_signs_as_rfc_8032_says(saved):
    private = keys.load(saved, PASSPHRASE)
    assert keys.public_bytes(private) == PUBLIC
    assert keys.signer(private)(b"\x72") == SIGNATURE


def test_new_keys_differ_and_verify():
    first, second = keys.generate(), keys.generate()
    assert keys.public_bytes(first) != keys.public_bytes(second)
    Ed25519PublicKey.from_public_bytes(keys.public_bytes(first)).verify(
        keys.signer(first)(b"m"), b"m"
    )


def test_the_file_is_the_owners_alone_and_hides_the_key(saved):
    assert saved.stat().st_mode & 0o777 == 0o600
    content = saved.read_bytes()
    head, _, pem_block = content.partition(b"\n")
    assert head == b"Public-Key: " + PUBLIC.hex().encode()
    assert pem_block.startswith(b"-----BEGIN ENCRYPTED PRIVATE KEY-----\n")
    assert SECRET not in content
    assert all(len(line) <= 64 for line in pem_block.splitlines())


def test_a_wide_umask_makes_no_wide_file(tmp_path):
    before = os.umask(0)
    try:
        keys.create_token(tmp_path / "token")
    finally:
        os.umask(before)
    assert (tmp_path / "token").stat().st_mode & 0o777 == 0o600


def test_the_passphrase_is_stretched_with_scrypt(saved):
    der = base64.b64decode(b"".join(saved.read_bytes().splitlines()[2:-1]))
    assert bytes.fromhex("2b06010401da47040b") in der  # RFC 7914 §7: id-scrypt
    assert bytes.fromhex("02024000" + "020108" + "020105") in der  # N=2^14, r=8, p=5


def test_nothing_is_ever_overwritten(saved, tmp_path):
    before = saved.read_bytes()
    with pytest.raises(KeyFileError, match="never overwritten"):
        keys.save(keys.generate(), saved, PASSPHRASE)
    assert saved.read_bytes() == before
    keys.create_token(tmp_path / "token")
    with pytest.raises(KeyFileError, match="never overwritten"):
        keys.create_token(tmp_path / "token")
    os.symlink(tmp_path / "elsewhere", tmp_path / "link")
    with pytest.raises(KeyFileError, match="never overwritten"):
        keys.save_secret(tmp_path / "link", b"x")
    assert not (tmp_path / "elsewhere").exists()


def test_a_folder_that_is_not_there_is_said(tmp_path):
    with pytest.raises(KeyFileError, match="cannot be created: No such file"):
        keys.save(keys.generate(), tmp_path / "no" / "key", PASSPHRASE)


def test_a_short_passphrase_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(KeyFileError, match="fewer than 8 bytes"):
        keys.save(keys.generate(), tmp_path / "key", b"1234567")
    assert not (tmp_path / "key").exists()


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(KeyFileError, match="cannot be written: No space left"):
        keys.save_secret(tmp_path / "secret", b"x")
    assert not (tmp_path / "secret").exists()


def pem(private, encryption):
    return private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption
    )


def test_each_way_in_which_a_key_cannot_be_read_is_told_apart(saved, tmp_path):
    good = saved.read_bytes()
    encrypted = serialization.BestAvailableEncryption(PASSPHRASE)
    other = pem(ec.generate_private_key(ec.SECP256R1()), encrypted)
    plain = pem(keys.generate(), serialization.NoEncryption())
    private_folder = tmp_path / "folder"
    private_folder.mkdir(0o700)
    damaged = good[:350] + (b"A" if good[350:351] != b"A" else b"B") + good[351:]
    swapped = b"Public-Key: " + b"00" * 32 + good[good.index(b"\n") :]
    wrong = {
        "passphrase is wrong, or the file is damaged": write(tmp_path / "a", damaged),
        "is damaged: the key inside is not the one it names": write(tmp_path / "s", swapped),
        "key of another kind": write(tmp_path / "b", other),
        "not an encrypted PKCS#8 PEM key": write(tmp_path / "c", plain),
        r"open to others \(mode 0640\): run `chmod 600`": write(tmp_path / "d", good, 0o640),
        r"open to others \(mode 0602\)": write(tmp_path / "e", good, 0o602),
        "cannot be read: No such file": tmp_path / "f",
        "is not a plain file": private_folder,
        "is larger than": write(tmp_path / "g", good + b" " * keys.SECRET_BYTES_MAX),
    }
    for sentence, path in wrong.items():
        with pytest.raises(KeyFileError, match=sentence) as refused:
            keys.load(path, PASSPHRASE)
        assert str(path) in str(refused.value)
    with pytest.raises(KeyFileError, match="passphrase is wrong"):
        keys.load(saved, b"wrong passphrase")
    with pytest.raises(KeyFileError, match="passphrase is wrong"):
        keys.load(saved, b"")


def test_a_pipe_in_the_files_place_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(KeyFileError, match="is not a plain file"):
        keys.read_private_file(tmp_path / "pipe")


def test_keys_of_the_packages_own_writer_are_read_too(tmp_path):
    private = keys.generate()
    path = write(tmp_path / "k", pem(private, serialization.BestAvailableEncryption(PASSPHRASE)))
    assert keys.public_bytes(keys.load(path, PASSPHRASE)) == keys.public_bytes(private)


def test_passphrase_sources(tmp_path, monkeypatch):
    path = write(tmp_path / "p", b" with spaces \r\n")
    assert keys.read_passphrase(PassphraseFile(path)) == b" with spaces "
    monkeypatch.setenv("RADLEDGER_TEST", "p\u00e4ss")
    assert keys.read_passphrase(PassphraseEnvironment("RADLEDGER_TEST")) == "päss".encode()
    asked = []
    assert keys.read_passphrase(PassphrasePrompt("Key: "), lambda t: asked.append(t) or "x") == b"x"
    assert asked == ["Key: "]


def test_passphrase_sources_that_give_none(tmp_path):
    with pytest.raises(KeyFileError, match="gave no passphrase"):
        keys.read_passphrase(PassphraseFile(write(tmp_path / "p", b"\n")))
    with pytest.raises(KeyFileError, match="open to others"):
        keys.read_passphrase(PassphraseFile(write(tmp_path / "q", b"x\n", 0o644)))
    with pytest.raises(KeyFileError, match="environment variable NO_SUCH gave no passphrase"):
        keys.read_passphrase(PassphraseEnvironment("NO_SUCH"))
    with pytest.raises(KeyFileError, match="the prompt gave no passphrase"):
        keys.read_passphrase(PassphrasePrompt(), lambda text: "")
    answers = iter(["one", "two"])
    with pytest.raises(KeyFileError, match="differ"):
        keys.read_passphrase(PassphrasePrompt(confirm=True), lambda text: next(answers))

    def closed(text):
        raise EOFError

    with pytest.raises(KeyFileError, match="no terminal"):
        keys.read_passphrase(PassphrasePrompt(), closed)


def test_tokens_are_random_and_read_back(tmp_path):
    token = keys.create_token(tmp_path / "a")
    assert keys.load_token(tmp_path / "a") == token
    assert len(token) == 43
    assert keys.create_token(tmp_path / "b") != token
    (tmp_path / "a").chmod(0o604)
    with pytest.raises(KeyFileError, match="open to others"):
        keys.load_token(tmp_path / "a")


@pytest.mark.parametrize("content", [b"", b"short", b"x" * 31, b"x" * 40 + b" y", b"\xff" * 40])
def test_what_is_no_token_is_refused_without_showing_it(tmp_path, content):
    with pytest.raises(KeyFileError, match="holds no token") as refused:
        keys.load_token(write(tmp_path / "t", content))
    assert "xxx" not in str(refused.value)


def test_secrets_are_in_no_message_or_repr(saved, tmp_path):
    private = keys.load(saved, PASSPHRASE)
    with pytest.raises(KeyFileError) as refused:
        keys.load(saved, b"SECRET passphrase")
    shown = [repr(private), repr(keys.signer(private)), str(refused.value), repr(refused.value)]
    assert not any("SECRET" in text or SECRET.hex() in text for text in shown)


# The head holds scrypt's cost, which a mutation could raise to minutes; the rest is fair game.
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_mutated_and_truncated_keys_give_only_the_documented_error(saved, tmp_path, data):
    content = bytearray(saved.read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 30))]
    else:
        position = data.draw(st.integers(content.index(b"BEGIN") + 190, len(content) - 40))
        content[position] ^= data.draw(st.integers(1, 255))
    path = write(tmp_path / "mutated", bytes(content))
    try:
        private = keys.load(path, PASSPHRASE)
    except KeyFileError:
        return
    assert keys.public_bytes(private) == PUBLIC  # e.g. a line break that base64 does not mind


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200))
def test_random_bytes_give_only_the_documented_error(tmp_path, content):
    framed = b"-----BEGIN ENCRYPTED PRIVATE KEY-----\n" + content
    for candidate in (content, framed, framed + b"\n-----END ENCRYPTED PRIVATE KEY-----\n"):
        path = write(tmp_path / "random", candidate)
        with pytest.raises(KeyFileError):
            keys.load(path, PASSPHRASE)
