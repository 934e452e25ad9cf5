"""Manifests: what the root binds, proofs of one instance, and a decoder that takes one encoding."""

import hashlib
import hmac
import secrets
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consensus.wire import pack, unpack
from node.imaging import manifest_codec
from node.imaging.commitment import commit_file
from node.imaging.errors import InvalidManifest
from node.imaging.manifest import (
    INSTANCES_MAX,
    Manifest,
    blinding,
    first_version,
    next_version,
    record_of,
    verify_instance,
)
from node.ledger import merkle
from tests.imaging import dicom

FILES = [commit_file(path) for path in sorted(dicom.CT_FOLDER.rglob("*"))[2:] if path.is_file()]
STUDY = hashlib.sha256(b"study").digest()[:16]
SALT = hashlib.sha256(b"salt").digest()
KNOWN = first_version(STUDY, SALT, FILES)
ENCODED = manifest_codec.encode(KNOWN)


def test_the_manifest_has_every_instance_once_in_the_order_of_random_indexes():
    assert len(KNOWN.instances) == len(FILES) > 5
    indexes = [instance.index for instance in KNOWN.instances]
    assert indexes == sorted(indexes)
    again = first_version(STUDY, SALT, FILES)
    assert [i.sop_uid for i in again.instances] != [i.sop_uid for i in KNOWN.instances]
    assert {i.sop_uid for i in again.instances} == {i.sop_uid for i in KNOWN.instances}


def test_a_leaf_is_made_as_it_is_specified():
    instance = KNOWN.instances[0]
    prk = hmac.digest(bytes(32), SALT, "sha256")  # RFC 5869 §2.2, without salt
    r = hmac.digest(prk, b"radledger/leaf/1" + instance.index + b"\1", "sha256")
    assert blinding(SALT, instance.index) == r
    record = instance.record
    fields = (
        record.rules,
        record.form,
        record.core,
        record.pixels,
        record.file,
        record.private,
        record.size,
    )
    leaf = hashlib.sha256(b"\0" + r + pack(fields)).digest()
    assert record.leaf(r) == leaf


def test_the_root_binds_the_study_the_version_the_previous_root_and_the_salt():
    roots = {
        KNOWN.root,
        replace(KNOWN, study_id=bytes(16)).root,
        replace(KNOWN, version=2).root,
        replace(KNOWN, previous_root=bytes(32)).root,
        replace(KNOWN, salt=bytes(32)).root,
        replace(KNOWN, instances=KNOWN.instances[1:]).root,
        replace(KNOWN, instances=KNOWN.instances[::-1]).root,
    }
    assert len(roots) == 7


def test_the_root_is_reproducible():
    """A root that changed would orphan everything that is registered."""
    instance = replace(KNOWN.instances[0], index=bytes(8))
    record = replace(
        instance.record, core=b"K" * 32, pixels=b"P" * 32, file=b"F" * 32, private=b"X" * 32, size=9
    )
    fixed = Manifest(bytes(16), 1, None, bytes(32), (replace(instance, record=record),))
    leaf = merkle.leaf_hash(
        blinding(bytes(32), bytes(8)) + pack((1, 1, b"K" * 32, b"P" * 32, b"F" * 32, b"X" * 32, 9))
    )
    bound = pack((bytes(16), 1, None, 1, leaf))
    assert fixed.root == hashlib.sha256(b"radledger/manifest/1" + bound).digest()
    assert fixed.root.hex() == GOLDEN_ROOT


GOLDEN_ROOT = "5160905da0e570fa20ea57aa52fc7b434f72da900ab64d339292b7083efcbafd"


@pytest.mark.parametrize("position", range(len(KNOWN.instances)))
def test_one_instance_is_proved_alone(position):
    proof = KNOWN.instance_proof(position)
    decoded = manifest_codec.decode_proof(manifest_codec.encode_proof(proof))
    assert decoded == proof
    assert verify_instance(decoded, KNOWN.root) == KNOWN.instances[position].record


def test_a_proof_shows_nothing_of_the_other_instances():
    encoded = manifest_codec.encode_proof(KNOWN.instance_proof(0))
    for other in KNOWN.instances[1:]:
        assert blinding(SALT, other.index) not in encoded
        assert other.record.file not in encoded
        assert other.record.core not in encoded
    assert SALT not in encoded


def test_a_proof_with_anything_changed_is_refused():
    proof = KNOWN.instance_proof(2)
    wrong = [
        replace(proof, study_id=bytes(16)),
        replace(proof, version=2, previous_root=bytes(32)),
        replace(proof, count=proof.count + 1),
        replace(proof, position=1),
        replace(proof, path=proof.path[:-1]),
        replace(proof, path=(*proof.path, bytes(32))),
        replace(proof, tree=bytes(32)),
        replace(proof, blinding=bytes(32)),
        replace(proof, record=KNOWN.instances[0].record),
    ]
    for changed in wrong:
        with pytest.raises(InvalidManifest):
            verify_instance(changed, KNOWN.root)
    with pytest.raises(InvalidManifest):
        verify_instance(proof, bytes(32))
    with pytest.raises(ValueError, match="no leaf"):
        KNOWN.instance_proof(len(KNOWN.instances))


def test_the_next_version_keeps_indexes_and_links_to_the_one_before():
    first = first_version(STUDY, SALT, FILES[:4])
    second = next_version(first, FILES[4:])
    assert (second.version, second.previous_root) == (2, first.root)
    old = {i.sop_uid: i for i in first.instances}
    assert all(i == old.get(i.sop_uid, i) for i in second.instances)
    assert len(second.instances) == len(FILES)


def test_a_replaced_instance_gets_another_index():
    """Its r_i must not be that of the content before, or proving one would reveal the other."""
    second = next_version(KNOWN, FILES[:1])
    before, after = KNOWN.by_uid(), second.by_uid()
    changed = {uid for uid in before if before[uid].index != after[uid].index}
    assert changed == {FILES[0].text(0x00080018)}


def test_without_the_salt_a_holder_of_the_images_cannot_find_the_root():
    guess = first_version(STUDY, secrets.token_bytes(32), FILES)
    indexed = tuple(
        replace(i, record=record_of(f.commitment))
        for i, f in zip(KNOWN.instances, FILES, strict=True)
    )
    assert replace(guess, instances=indexed).root != KNOWN.root
    for read in FILES:
        for digest in (read.commitment.file, read.commitment.core, read.commitment.private):
            assert digest != KNOWN.root


def test_decoding_inverts_encoding():
    assert manifest_codec.decode(ENCODED) == KNOWN
    assert manifest_codec.decode(ENCODED).root == KNOWN.root
    second = next_version(KNOWN, [commit_file(dicom.FILES / "SC_rgb_rle_2frame.dcm")])
    assert manifest_codec.decode(manifest_codec.encode(second)) == second


def test_elements_that_all_instances_share_stand_once():
    """A series of 500 slices must not cost a megabyte of names."""
    series = first_version(STUDY, SALT, FILES[-5:])
    rows = sum(len(part.rows) for i in series.instances for part in (i.core, i.private, i.imported))
    assert rows > 10_000
    assert len(manifest_codec.encode(series)) < rows / 2


def changed(path, value):
    """Return the encoding with the value at `path` replaced."""

    def put(node, path):
        if not path:
            return value
        head, *rest = path
        return (*node[:head], put(node[head], rest), *node[head + 1 :])

    return pack(put(unpack(ENCODED), path))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ([0], 2),
        ([0], 0),
        ([1], b"short"),
        ([2], 0),
        ([2], 2),
        ([2], True),
        ([3], bytes(32)),
        ([4], bytes(31)),
        ([5], ()),
        ([5, 0], bytes(13)),
        ([5, 0], bytes(24)),
        ([6], ()),
        ([6, 0, 0], b"\xff" * 8),
        ([6, 0, 1, 0], 2),
        ([6, 0, 1, 1], 9),
        ([6, 0, 1, 2], bytes(33)),
        ([6, 0, 1, 3], b""),
        ([6, 0, 1, 6], -1),
        ([6, 0, 2], ""),
        ([6, 0, 2], "1" * 65),
        ([6, 0, 3], "Miller"),
        ([6, 0, 8], b"odd"),
        ([6, 0], ()),
        ([6], "text"),
        ([], ()),
        ([], 7),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(path, value):
    with pytest.raises(InvalidManifest):
        manifest_codec.decode(changed(path, value))


def test_a_newer_manifest_says_both_versions():
    with pytest.raises(InvalidManifest, match=r"format 2; this program knows 1"):
        manifest_codec.decode(changed([0], 2))
    with pytest.raises(InvalidManifest, match=r"rules 2; this program knows 1"):
        manifest_codec.decode(changed([6, 0, 1, 0], 2))


def test_the_same_instance_twice_in_a_manifest_is_refused():
    twice = replace(KNOWN.instances[1], index=b"\xff" * 8)
    wrong = replace(KNOWN, instances=(*KNOWN.instances, twice))
    with pytest.raises(InvalidManifest, match="list of instances"):
        manifest_codec.decode(manifest_codec.encode(wrong))


def test_oversized_input_is_refused_before_it_is_decoded(monkeypatch):
    monkeypatch.setattr(manifest_codec, "MANIFEST_BYTES_MAX", len(ENCODED) - 1)
    with pytest.raises(InvalidManifest, match="at most"):
        manifest_codec.decode(ENCODED)
    with pytest.raises(InvalidManifest, match="at most"):
        manifest_codec.decode_proof(bytes(5_000))
    assert INSTANCES_MAX >= 10_000


def test_a_few_bytes_do_not_become_many(monkeypatch):
    """Common elements stand once, whatever the number of instances."""
    expanded = len(KNOWN.instances) * sum(map(len, unpack(ENCODED)[5]))
    assert manifest_codec.decode(ENCODED, expanded_bytes_max=expanded) == KNOWN
    monkeypatch.setattr(manifest_codec, "_instance", lambda *_: pytest.fail("it is expanded"))
    with pytest.raises(InvalidManifest, match="would take more than"):
        manifest_codec.decode(ENCODED, expanded_bytes_max=expanded - 1)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_mutated_truncated_and_random_manifests_are_refused_or_canonical(data):
    proof = manifest_codec.encode_proof(KNOWN.instance_proof(1))
    source = data.draw(st.sampled_from([ENCODED, proof]))
    kind = data.draw(st.sampled_from(["mutate", "truncate", "random"]))
    if kind == "mutate":
        at = data.draw(st.integers(0, len(source) - 1))
        patch = data.draw(st.binary(min_size=1, max_size=4))
        source = source[:at] + patch + source[at + len(patch) :]
    elif kind == "truncate":
        source = source[: data.draw(st.integers(0, len(source) - 1))]
    else:
        source = data.draw(st.binary(max_size=200))
    for decode, encode in (
        (manifest_codec.decode, manifest_codec.encode),
        (manifest_codec.decode_proof, manifest_codec.encode_proof),
    ):
        try:
            assert encode(decode(source)) == source
        except InvalidManifest:
            continue
