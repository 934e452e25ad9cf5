"""A study's manifest: the commitments to all its instances, under one salted root.

    r_i   = HKDF-SHA256(study salt, info = "radledger/leaf/1" | index of i)
    leaf  = H(0x00 | r_i | record)                  record: rules, form, K, P, F, X, size
    tree  = RFC 6962 over the leaves in the order of their indexes
    root  = H("radledger/manifest/1" | study id, version, previous root, instance count, tree)

An index is eight random bytes, drawn once for an instance and kept in later versions, so the order
says nothing about UIDs. Without the salt nobody can recompute a leaf, not even who holds the image;
with r_i alone one instance can be proved and the others stay hidden.

The manifest is private: it names instances, and is kept in the vault and sent to grantees only
encrypted. Its bytes are made and read by `manifest_codec`.
"""

import hashlib
import secrets
from collections.abc import Iterable
from dataclasses import astuple, dataclass, replace
from functools import cached_property

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from consensus.wire import pack
from node.imaging import commitment
from node.imaging.commitment import PREFIX_BYTES, Commitment, CommittedFile, Elements
from node.imaging.errors import InvalidManifest, require
from node.ledger import merkle

ID_BYTES = 16
SALT_BYTES = 32
DIGEST_BYTES = 32
INDEX_BYTES = 8
VERSION_MAX = 65_535
INSTANCES_MAX = 100_000
_LABEL_CHARACTERS_MAX = 12
_ROOT_TAG = b"radledger/manifest/1"
_LEAF_TAG = b"radledger/leaf/1"


@dataclass(frozen=True, slots=True)
class Record:
    """What a leaf commits to."""

    rules: int
    form: int  # pixels.Form
    core: bytes  # K, 32 bytes
    pixels: bytes  # P, 32 bytes, or empty if there are none
    file: bytes  # F, 32 bytes
    private: bytes  # X, 32 bytes
    size: int  # bytes as received

    def leaf(self, blinding: bytes) -> bytes:
        """Return the leaf hash under the instance's 32 bytes r_i."""
        return merkle.leaf_hash(blinding + pack(astuple(self)))


@dataclass(frozen=True, slots=True)
class Instance:
    """One instance: its record, and the private facts to find it again and to name a change."""

    index: bytes  # 8 random bytes
    record: Record
    sop_uid: str
    series_number: str
    instance_number: str
    core: Elements
    private: Elements
    imported: Elements
    frames: bytes  # 8 bytes of each frame's digest; empty if there is only one

    @property
    def label(self) -> str:
        """Words for a person that identify no patient, e.g. "series 2, image 14"; maybe empty."""
        words = (("series", self.series_number), ("image", self.instance_number))
        return ", ".join(f"{word} {number}" for word, number in words if number)


@dataclass(frozen=True)
class Manifest:
    """One version of one study; `instances` stand in the order of their indexes."""

    study_id: bytes  # 16 random bytes
    version: int  # from 1
    previous_root: bytes | None  # 32 bytes; None for version 1
    salt: bytes  # 32 random bytes, the study's
    instances: tuple[Instance, ...]

    @cached_property
    def root(self) -> bytes:
        """The 32 bytes that go on the chain."""
        return _bind(self, len(self.instances), merkle.root(self._leaves))

    @property
    def size(self) -> int:
        """Bytes of all instances as received."""
        return sum(instance.record.size for instance in self.instances)

    def by_uid(self) -> dict[str, Instance]:
        """Return the instances by SOP Instance UID."""
        return {instance.sop_uid: instance for instance in self.instances}

    def instance_proof(self, position: int) -> "InstanceProof":
        """Return what proves the instance at `position`, and nothing of any other, to a holder of
        the root. Raises ValueError if there is none."""
        path = merkle.inclusion_proof(self._leaves, position)
        instance = self.instances[position]
        return InstanceProof(
            self.study_id,
            self.version,
            self.previous_root,
            len(self.instances),
            position,
            tuple(path),
            merkle.root(self._leaves),
            blinding(self.salt, instance.index),
            instance.record,
        )

    @cached_property
    def _leaves(self) -> list[bytes]:
        return [i.record.leaf(blinding(self.salt, i.index)) for i in self.instances]


@dataclass(frozen=True, slots=True)
class InstanceProof:
    """One instance's record and its way to the root."""

    study_id: bytes
    version: int
    previous_root: bytes | None
    count: int
    position: int
    path: tuple[bytes, ...]
    tree: bytes  # 32 bytes, the head to which `path` leads
    blinding: bytes  # r_i, 32 bytes
    record: Record


def verify_instance(proof: InstanceProof, root: bytes) -> Record:
    """Return the record that `proof` shows under `root`. Raises `InvalidManifest` if none."""
    leaf = proof.record.leaf(proof.blinding)
    included = merkle.verify_inclusion(leaf, proof.position, proof.count, proof.path, proof.tree)
    if not included or _bind(proof, proof.count, proof.tree) != root:
        raise InvalidManifest("the proof does not lead to the registered root")
    return proof.record


def blinding(salt: bytes, index: bytes) -> bytes:
    """Return r_i, 32 bytes, of the instance with `index` (RFC 5869)."""
    return HKDF(SHA256(), 32, salt=None, info=_LEAF_TAG + index).derive(salt)


def first_version(study_id: bytes, salt: bytes, files: Iterable[CommittedFile]) -> Manifest:
    """Return version 1 of a new study."""
    return _assemble(study_id, 1, None, salt, [instance_of(read) for read in files])


def next_version(previous: Manifest, files: Iterable[CommittedFile]) -> Manifest:
    """Return the version that follows `previous`: its instances, with `files` added or, under a
    SOP Instance UID that it has, put in their place."""
    instances = previous.by_uid() | {i.sop_uid: i for i in map(instance_of, files)}
    version = previous.version + 1
    return _assemble(
        previous.study_id, version, previous.root, previous.salt, list(instances.values())
    )


def regrouped(study_id: bytes, salt: bytes, instances: Iterable[Instance]) -> Manifest:
    """Return version 1 of a new study, of instances that another study has.

    They are drawn new indexes: nothing of the other one's order or leaves comes along.
    """
    drawn = [replace(each, index=secrets.token_bytes(INDEX_BYTES)) for each in instances]
    return _assemble(study_id, 1, None, salt, drawn)


def _assemble(
    study_id: bytes, version: int, previous: bytes | None, salt: bytes, instances: list[Instance]
) -> Manifest:
    require(len(study_id) == ID_BYTES and len(salt) == SALT_BYTES, "ids and salts have their size")
    require(0 < len(instances) <= INSTANCES_MAX, "a study has 1 to INSTANCES_MAX instances")
    require(0 < version <= VERSION_MAX, "a version is within its bounds")
    instances.sort(key=lambda instance: instance.index)
    indexes = {instance.index for instance in instances}
    require(len(indexes) == len(instances), "random indexes differ")
    return Manifest(study_id, version, previous, salt, tuple(instances))


def instance_of(read: CommittedFile) -> Instance:
    """Return `read` as an instance under a new random index."""
    known = read.commitment
    frames = known.pixels.chosen.frames
    count = len(frames) // DIGEST_BYTES
    short = (frames[at : at + PREFIX_BYTES] for at in range(0, len(frames), DIGEST_BYTES))
    return Instance(
        secrets.token_bytes(INDEX_BYTES),
        record_of(known),
        read.text(commitment.SOP_INSTANCE),
        clean_label(read.text(commitment.SERIES_NUMBER)),
        clean_label(read.text(commitment.INSTANCE_NUMBER)),
        known.core_elements,
        known.private_elements,
        known.import_elements,
        b"".join(short) if count > 1 else b"",
    )


def record_of(known: Commitment) -> Record:
    """Return the record of a file's commitment."""
    pixels = known.pixels.chosen
    return Record(
        known.rules,
        pixels.form.value,
        known.core,
        pixels.digest,
        known.file,
        known.private,
        known.size,
    )


def clean_label(text: str) -> str:
    """Return `text` if it is a number and so identifies nobody, else ""."""
    fits = text.isascii() and text.isdigit() and len(text) <= _LABEL_CHARACTERS_MAX
    return text if fits else ""


def _bind(head: Manifest | InstanceProof, count: int, tree: bytes) -> bytes:
    bound = pack((head.study_id, head.version, head.previous_root, count, tree))
    return hashlib.sha256(_ROOT_TAG + bound).digest()
