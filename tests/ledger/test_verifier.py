"""The one verifier of a network: RFC 8032, and every edge case on which libraries differ.

A failure here after an upgrade of the cryptography package means that old and new nodes could
disagree about a signature: that is a new protocol version, not a new expectation.
"""

import asyncio
import hashlib

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from node.ledger.verifier import SignatureVerifier, is_sound_key, is_valid, verify_all

P = 2**255 - 19
L = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, -1, P) % P
IDENTITY = (0, 1)

# RFC 8032 §7.1: secret key, public key, message, signature.
RFC_8032 = [
    (
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555"
        "fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
    ),
    (
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da0"
        "85ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
    ),
    (
        "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac1"
        "8ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
    ),
    (
        "833fe62409237b9d62ec77587520911e9a759cec1d19755b7da901b96dca3d42",
        "ec172b93ad5e563bf4932c70e1245034c35467ef2efd4d64ebf819683467e2bf",
        "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a"
        "2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f",
        "dc2a4459e7369633a52b1bf277839a00201009a3efbf3ecb69bea2186c26b5890"
        "9351fc9ac90b3ecfdfbc7c66431e0303dca179c138ac17ad9bef1177331a704",
    ),
]


def add(first, second):
    """Add two points (RFC 8032 §5.1.4, affine)."""
    (x1, y1), (x2, y2) = first, second
    product = D * x1 * x2 * y1 * y2
    x = (x1 * y2 + x2 * y1) * pow(1 + product, -1, P)
    y = (y1 * y2 + x1 * x2) * pow(1 - product, -1, P)
    return x % P, y % P


def multiply(scalar, point):
    result = IDENTITY
    while scalar:
        if scalar & 1:
            result = add(result, point)
        point = add(point, point)
        scalar >>= 1
    return result


def with_y(y):
    """Return the point with this y and an even x, or None."""
    square = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    x = pow(square, (P + 3) // 8, P)
    if x * x % P != square:
        x = x * pow(2, (P - 1) // 4, P) % P
    if x * x % P != square:
        return None
    return (P - x if x & 1 else x), y


def compress(point):
    return (point[1] | (point[0] & 1) << 255).to_bytes(32, "little")


BASE = with_y(4 * pow(5, -1, P) % P)


def small_order_points():
    """All eight points of the torsion group: multiples of L times any point of full order."""
    for y in range(2, 99):
        point = with_y(y)
        if point is not None:
            torsion = multiply(L, point)
            multiples = {multiply(i, torsion) for i in range(8)}
            if len(multiples) == 8:
                return sorted(multiples)
    raise AssertionError


def challenge(r, public_key, message):
    return int.from_bytes(hashlib.sha512(r + public_key + message).digest(), "little") % L


def library_accepts(public_key, message, signature):
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, message)
    except InvalidSignature:
        return False
    return True


@pytest.mark.parametrize(("secret", "public", "message", "signature"), RFC_8032)
def test_rfc_8032(secret, public, message, signature):
    key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(secret))
    public_key = key.public_key().public_bytes_raw()
    assert public_key.hex() == public
    message, signature = bytes.fromhex(message), bytes.fromhex(signature)
    assert key.sign(message) == signature
    assert is_sound_key(public_key)
    assert is_valid(public_key, message, signature)
    assert not is_valid(public_key, message + b"\x00", signature)
    for at in range(64):
        bent = signature[:at] + bytes([signature[at] ^ 1]) + signature[at + 1 :]
        assert not is_valid(public_key, message, bent)


@pytest.fixture(scope="module")
def signed():
    key = Ed25519PrivateKey.from_private_bytes(bytes(32))
    return key.public_key().public_bytes_raw(), b"message", key.sign(b"message")


@pytest.mark.parametrize("multiple", [1, 2, 7])
def test_a_second_s_for_one_signature_is_refused(signed, multiple):
    public_key, message, signature = signed
    s = int.from_bytes(signature[32:], "little") + multiple * L
    assert not is_valid(public_key, message, signature[:32] + s.to_bytes(32, "little"))


@pytest.mark.parametrize("size", [0, 32, 63, 65, 128])
def test_a_signature_of_another_length_is_refused(signed, size):
    public_key, message, signature = signed
    assert not is_valid(public_key, message, (signature * 2)[:size])


@pytest.mark.parametrize("size", [0, 31, 33, 64])
def test_a_key_of_another_length_is_refused(signed, size):
    public_key, message, signature = signed
    assert not is_valid((public_key * 2)[:size], message, signature)
    assert not is_sound_key((public_key * 2)[:size])


def test_a_key_that_is_no_point_is_refused(signed):
    _, message, signature = signed
    no_points = [y.to_bytes(32, "little") for y in range(2, 40) if with_y(y) is None]
    assert len(no_points) > 10
    for key in no_points:
        assert not is_valid(key, message, signature)
        assert not is_sound_key(key)
    points = [y.to_bytes(32, "little") for y in range(2, 40) if with_y(y) is not None]
    assert all(map(is_sound_key, points))


def test_a_key_of_small_order_is_refused_although_the_library_accepts_it():
    # With S = 0 and R = identity, every message whose challenge the order divides is "signed".
    accepted = 0
    for point in small_order_points():
        key = compress(point)
        assert not is_sound_key(key)
        for i in range(32):
            message = bytes([i])
            signature = compress(IDENTITY) + bytes(32)
            accepted += library_accepts(key, message, signature)
            assert not is_valid(key, message, signature)
    assert accepted > 32


@pytest.mark.parametrize("excess", range(19))
@pytest.mark.parametrize("sign", [0, 1 << 255])
def test_a_key_that_is_not_canonical_is_refused(excess, sign):
    # y and y + p name one point; only y < p may be written.
    key = (P + excess | sign).to_bytes(32, "little")
    assert not is_sound_key(key)
    assert not is_valid(key, b"", compress(IDENTITY) + bytes(32))


def test_an_r_that_is_not_canonical_is_refused():
    secret = 12345
    key = compress(multiply(secret, BASE))
    for r, expected in ((compress(IDENTITY), True), ((P + 1).to_bytes(32, "little"), False)):
        s = challenge(r, key, b"m") * secret % L
        assert is_valid(key, b"m", r + s.to_bytes(32, "little")) is expected


def test_the_equation_has_no_cofactor():
    # A key with a part of order 8: with the cofactor every one of these would be accepted.
    secret, nonce = 12345, 67890
    torsion = next(p for p in small_order_points() if multiply(4, p) != IDENTITY)
    key = compress(add(multiply(secret, BASE), torsion))
    r = compress(multiply(nonce, BASE))
    verdicts = set()
    for i in range(40):
        message = bytes([i])
        k = challenge(r, key, message)
        s = (nonce + k * secret) % L
        verdict = is_valid(key, message, r + s.to_bytes(32, "little"))
        assert verdict is (k % 8 == 0)
        verdicts.add(verdict)
    assert verdicts == {True, False}


async def test_verdicts_come_in_order_from_any_number_of_threads():
    keys = [Ed25519PrivateKey.from_private_bytes(bytes([i]) * 32) for i in range(5)]
    checks, expected = [], []
    for i in range(100):
        key, message = keys[i % 5], b"%d" % i
        signature = key.sign(message if i % 3 else b"something else")
        checks.append((key.public_key().public_bytes_raw(), message, signature))
        expected.append(bool(i % 3))
    assert verify_all(checks) == expected
    for threads in (1, 3):
        verifier = SignatureVerifier(threads)
        try:
            for count in (0, 1, 15, 16, 17, 33, 100):
                assert await verifier.verify(checks[:count]) == expected[:count]
            both = await asyncio.gather(verifier.verify(checks[:40]), verifier.verify(checks[40:]))
            assert both[0] + both[1] == expected
        finally:
            verifier.close()


async def test_a_closed_verifier_says_so():
    verifier = SignatureVerifier(1)
    verifier.close()
    with pytest.raises(RuntimeError):
        await verifier.verify([(bytes(32), b"", bytes(64))])


def test_a_verifier_without_threads_is_no_verifier():
    with pytest.raises(ValueError, match="thread"):
        SignatureVerifier(0)
