"""The bytes of a manifest and of an instance's proof: canonical, versioned, bounded.

Canonical msgpack. A manifest is (format, study id, version, previous root or nil, salt, common
elements, instances); the short element digests that all instances share, most of them in a series,
stand once in the common elements. A proof is (format, and its fields in order).
"""

from collections.abc import Iterable, Sequence
from dataclasses import astuple
from itertools import pairwise

from consensus.wire import NotCanonical, Value, pack, unpack
from node.imaging.commitment import PREFIX_BYTES, ROW_BYTES, Elements
from node.imaging.errors import InvalidManifest
from node.imaging.manifest import (
    DIGEST_BYTES,
    ID_BYTES,
    INDEX_BYTES,
    INSTANCES_MAX,
    VERSION_MAX,
    Instance,
    InstanceProof,
    Manifest,
    Record,
    clean_label,
)
from node.imaging.pixels import Form
from node.imaging.rules import RULES_VERSION

FORMAT = 1
MANIFEST_BYTES_MAX = 512 << 20
EXPANDED_BYTES_MAX = 512 << 20  # of all elements, the common ones once for each instance
PROOF_BYTES_MAX = 4_096
_SIZE_MAX = 1 << 50
_PATH_MAX = 64
_UID_CHARACTERS_MAX = 64
_FORMS = frozenset(form.value for form in Form)

_Rows = frozenset[bytes]


def encode(manifest: Manifest) -> bytes:
    """Return the canonical bytes of `manifest`."""
    common = _common(manifest.instances)
    return pack(
        (
            FORMAT,
            manifest.study_id,
            manifest.version,
            manifest.previous_root,
            manifest.salt,
            tuple(map(_join, common)),
            tuple(_plain(instance, common) for instance in manifest.instances),
        )
    )


def decode(data: bytes, *, expanded_bytes_max: int = EXPANDED_BYTES_MAX) -> Manifest:
    """Return the manifest that `data` encodes.

    `expanded_bytes_max` bounds what a few bytes can become: common elements stand once in `data`,
    and once for each instance in the manifest. Raises `InvalidManifest` for anything but the one
    encoding of a consistent manifest.
    """
    if len(data) > MANIFEST_BYTES_MAX:
        raise InvalidManifest(f"a manifest has at most {MANIFEST_BYTES_MAX} bytes")
    study_id, version, previous, salt, common, instances = _versioned(data, 6)
    shared = [_rows(rows) for rows in _array(common, 3, 3)]
    listed = _array(instances, 1, INSTANCES_MAX)
    if len(listed) * sum(map(len, shared)) > expanded_bytes_max:
        raise InvalidManifest(f"its elements would take more than {expanded_bytes_max} bytes")
    manifest = Manifest(
        *_head(study_id, version, previous),
        _bytes(salt, DIGEST_BYTES, "salt"),
        tuple(_instance(value, shared) for value in listed),
    )
    indexes = (instance.index for instance in manifest.instances)
    _check(all(a < b for a, b in pairwise(indexes)), "order of instances")
    _check(len(manifest.by_uid()) == len(manifest.instances), "list of instances")
    _check(encode(manifest) == data, "choice of common elements")
    return manifest


def encode_proof(proof: InstanceProof) -> bytes:
    """Return the canonical bytes of `proof`."""
    return pack((FORMAT, *astuple(proof)))


def decode_proof(data: bytes) -> InstanceProof:
    """Return the proof that `data` encodes, not yet verified. Raises `InvalidManifest`."""
    if len(data) > PROOF_BYTES_MAX:
        raise InvalidManifest(f"a proof has at most {PROOF_BYTES_MAX} bytes")
    study_id, version, previous, count, position, path, tree, blind, record = _versioned(data, 9)
    return InstanceProof(
        *_head(study_id, version, previous),
        _integer(count, 1, INSTANCES_MAX, "count"),
        _integer(position, 0, INSTANCES_MAX - 1, "position"),
        tuple(_bytes(node, DIGEST_BYTES, "path") for node in _array(path, 0, _PATH_MAX)),
        _bytes(tree, DIGEST_BYTES, "tree head"),
        _bytes(blind, DIGEST_BYTES, "blinding"),
        _record(record),
    )


def _common(instances: Sequence[Instance]) -> list[_Rows]:
    """Return the rows that every instance has, for core, private and imported elements."""
    common = [_split(rows) for rows in _parts(instances[0])]
    for instance in instances[1:]:
        # One after another: sets of all of them at once take a hundred times what the bytes do.
        parts = zip(common, _parts(instance), strict=True)
        common = [each & _split(rows) for each, rows in parts]
    return common


def _parts(instance: Instance) -> tuple[bytes, bytes, bytes]:
    return instance.core.rows, instance.private.rows, instance.imported.rows


def _split(rows: bytes) -> _Rows:
    return frozenset(rows[at : at + ROW_BYTES] for at in range(0, len(rows), ROW_BYTES))


def _join(rows: Iterable[bytes]) -> bytes:
    return b"".join(sorted(rows))


def _plain(instance: Instance, common: Sequence[_Rows]) -> tuple[object, ...]:
    own = (_join(_split(p) - c) for p, c in zip(_parts(instance), common, strict=True))
    return (
        instance.index,
        astuple(instance.record),
        instance.sop_uid,
        instance.series_number,
        instance.instance_number,
        *own,
        instance.frames,
    )


def _head(study_id: Value, version: Value, previous: Value) -> tuple[bytes, int, bytes | None]:
    number = _integer(version, 1, VERSION_MAX, "version")
    _check((previous is None) == (number == 1), "previous root")
    root = None if previous is None else _bytes(previous, DIGEST_BYTES, "previous root")
    return _bytes(study_id, ID_BYTES, "study id"), number, root


def _instance(value: Value, common: Sequence[bytes]) -> Instance:
    index, record, uid, series, number, core, private, imported, frames = _array(value, 9, 9)
    _check(type(frames) is bytes and len(frames) % PREFIX_BYTES == 0, "list of frames")
    parts = zip((core, private, imported), common, strict=True)
    merged = [Elements(_merge(_rows(own), shared)) for own, shared in parts]
    return Instance(
        _bytes(index, INDEX_BYTES, "index"),
        _record(record),
        _text(uid, _UID_CHARACTERS_MAX),
        clean_label(_text(series)),
        clean_label(_text(number)),
        merged[0],
        merged[1],
        merged[2],
        frames if type(frames) is bytes else b"",
    )


def _merge(own: bytes, shared: bytes) -> bytes:
    return _rows(_join(_split(own) | _split(shared)))


def _rows(value: Value) -> bytes:
    """Return `value` if it is rows of short digests, each tag once, ascending."""
    if type(value) is not bytes or len(value) % ROW_BYTES:
        raise InvalidManifest("the list of elements is not as it must be")
    tags = (value[at : at + 4] for at in range(0, len(value), ROW_BYTES))
    _check(all(a < b for a, b in pairwise(tags)), "order of elements")
    return value


def _record(value: Value) -> Record:
    rules, form, core, pixels, file, private, size = _array(value, 7, 7)
    if type(rules) is not int or rules != RULES_VERSION:
        made = rules if type(rules) is int else "unknown"
        raise InvalidManifest(f"made by rules {made}; this program knows {RULES_VERSION}")
    form = _integer(form, 0, max(_FORMS), "form of the pixels")
    return Record(
        rules,
        form,
        _bytes(core, DIGEST_BYTES, "digest of the core"),
        _bytes(pixels, DIGEST_BYTES if form != Form.NONE.value else 0, "digest of the pixels"),
        _bytes(file, DIGEST_BYTES, "digest of the file"),
        _bytes(private, DIGEST_BYTES, "digest of the private elements"),
        _integer(size, 1, _SIZE_MAX, "size"),
    )


def _versioned(data: bytes, count: int) -> tuple[Value, ...]:
    try:
        value = unpack(data)
    except (NotCanonical, RecursionError) as error:
        raise InvalidManifest(str(error)) from error
    if type(value) is not tuple or not value or type(value[0]) is not int:
        raise InvalidManifest("neither a manifest nor a proof")
    if value[0] > FORMAT:
        raise InvalidManifest(f"format {value[0]}; this program knows {FORMAT}")
    _check(value[0] == FORMAT, "format")
    return _array(value[1:], count, count)


def _array(value: Value, low: int, high: int) -> tuple[Value, ...]:
    if type(value) is not tuple or not low <= len(value) <= high:
        raise InvalidManifest(f"an array does not have {low} to {high} fields")
    return value


def _bytes(value: Value, length: int, what: str) -> bytes:
    if type(value) is not bytes or len(value) != length:
        raise InvalidManifest(f"the {what} does not have {length} bytes")
    return value


def _integer(value: Value, low: int, high: int, what: str) -> int:
    if type(value) is not int or not low <= value <= high:
        raise InvalidManifest(f"the {what} is not from {low} to {high}")
    return value


def _text(value: Value, characters_max: int | None = None) -> str:
    if type(value) is not str or (characters_max and not 0 < len(value) <= characters_max):
        raise InvalidManifest("a text is missing or too long")
    return value


def _check(condition: bool, what: str) -> None:
    if not condition:
        raise InvalidManifest(f"the {what} is not as it must be")
