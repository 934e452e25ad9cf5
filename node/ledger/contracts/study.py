"""Studies: registered, amended into new versions, derived from one another, retired.

State, all values canonical msgpack and led by the record format:

    "study/" + study id (16)   -> Study
    "root/" + root (32)        -> Version; finds a second registration of one commitment, and is the
                                  version chain: each names the root before it

A root is a salted Merkle root over the study's manifest and is bound to the study's id, version and
previous root by whoever computes it (imaging); here it is an opaque commitment, used once for ever.

Index rows, for queries only. `ordinal` is that of the registration: all lists have one order,
newest last, whatever happens to a study later, so a reader who pages misses and repeats nothing.

    study_custodian (custodian, ordinal)            -> study id
    study_subject   (subject id, ordinal)           -> study id
    study_kind      (modality, region, ordinal)     -> study id
    study_retired   (ordinal)                       -> study id
    study_derived   (source study id, ordinal)      -> study id
"""

from typing import NamedTuple

from consensus.wire import NotCanonical, Value, pack, unpack
from node.ledger.contracts import forms
from node.ledger.contracts.base import Context, OperationKind
from node.ledger.contracts.vocabulary import (
    DERIVATION_KINDS,
    INSTANCE_BUCKET_MAX,
    MODALITIES,
    REGIONS,
    RETIRE_REASONS,
    SIZE_BUCKET_MAX,
)
from node.ledger.errors import Refused, Rejected
from storage.errors import CorruptRecord

RECORD_FORMAT = 1
VERSION_MAX = 65_535
STUDY_ROLES = frozenset({"administrator", "clinician", "gateway"})

REJECTIONS = {
    "study_unknown": "no study with this id is registered",
    "study_exists": "a study with this id is registered already; ids are used once",
    "study_retired": "the study is retired; it takes no change",
    "source_unknown": "no study with the source's id is registered",
    "source_retired": "the source is retired; nothing new is derived from it",
    "not_custodian": "the sender's institution is not the custodian of the study or source",
    "root_exists": "a version with this root is registered already; roots are used once",
    "version_conflict": "an amendment's version is the current one plus one",
    "root_conflict": "an amendment names the current root as the previous one",
}

INDEX_CUSTODIAN = "study_custodian"
INDEX_SUBJECT = "study_subject"
INDEX_KIND = "study_kind"
INDEX_RETIRED = "study_retired"
INDEX_DERIVED = "study_derived"


class Model(NamedTuple):
    """The program that made a derived object."""

    name: str
    version: str
    digest: bytes  # 32 bytes, over the model's weights or code


class Derivation(NamedTuple):
    """Where a derived object comes from."""

    kind: str
    source: bytes  # study id
    model: Model | None


class Study(NamedTuple):
    """The current state of one study, as stored."""

    format: int
    custodian: str
    subject_id: bytes
    modality: str
    region: str
    version: int
    root: bytes
    instance_bucket: int
    size_bucket: int
    ordinal: bytes  # of the registration
    changed_height: int
    retired: str | None  # the reason
    derivation: Derivation | None


class Version(NamedTuple):
    """One version of one study, as stored."""

    format: int
    study_id: bytes
    version: int
    previous_root: bytes | None
    instance_bucket: int
    size_bucket: int
    height: int


class Register(NamedTuple):
    study_id: bytes
    subject_id: bytes
    root: bytes
    modality: str
    region: str
    instance_bucket: int
    size_bucket: int


class Amend(NamedTuple):
    study_id: bytes
    version: int
    previous_root: bytes
    root: bytes
    instance_bucket: int
    size_bucket: int


class Derive(NamedTuple):
    study_id: bytes
    derivation: Derivation
    root: bytes
    modality: str
    region: str
    instance_bucket: int
    size_bucket: int


class Retire(NamedTuple):
    study_id: bytes
    reason: str


def study_key(study_id: bytes) -> bytes:
    """Return the state key of a study."""
    return b"study/" + study_id


def root_key(root: bytes) -> bytes:
    """Return the state key of a version."""
    return b"root/" + root


def decode_study(row: bytes) -> Study:
    """Return the stored study. Raises `CorruptRecord`."""
    try:
        study = Study(*_fields(row, len(Study._fields)))  # type: ignore[arg-type]
        if study.derivation is None:
            return study
        kind, source, model = study.derivation
        return study._replace(
            derivation=Derivation(kind, source, None if model is None else Model(*model))
        )
    except (NotCanonical, TypeError, ValueError) as error:
        raise CorruptRecord("the state holds a study record that cannot be read") from error


def decode_version(row: bytes) -> Version:
    """Return the stored version. Raises `CorruptRecord`."""
    try:
        return Version(*_fields(row, len(Version._fields)))  # type: ignore[arg-type]
    except (NotCanonical, TypeError, ValueError) as error:
        raise CorruptRecord("the state holds a version record that cannot be read") from error


def _fields(row: bytes, count: int) -> tuple[Value, ...]:
    value = unpack(row)
    if type(value) is not tuple or len(value) != count or value[0] != RECORD_FORMAT:
        raise ValueError("another record format")
    return value


def parse_register(arguments: tuple[Value, ...]) -> Register:
    """(study id, subject id, root, modality, region, instance bucket, size bucket)"""
    study_id, subject_id, root, modality, region, instances, size = forms.fields(arguments, 7)
    return Register(
        forms.random_id(study_id, "study_id"),
        forms.random_id(subject_id, "subject_id"),
        forms.digest(root, "root"),
        *_description(modality, region, instances, size),
    )


def parse_amend(arguments: tuple[Value, ...]) -> Amend:
    """(study id, new version, previous root, root, instance bucket, size bucket)"""
    study_id, version, previous_root, root, instances, size = forms.fields(arguments, 6)
    return Amend(
        forms.random_id(study_id, "study_id"),
        forms.integer(version, 2, VERSION_MAX, "version"),
        forms.digest(previous_root, "previous_root"),
        forms.digest(root, "root"),
        forms.integer(instances, 0, INSTANCE_BUCKET_MAX, "instance_bucket"),
        forms.integer(size, 0, SIZE_BUCKET_MAX, "size_bucket"),
    )


def parse_derive(arguments: tuple[Value, ...]) -> Derive:
    """(study id, source study id, root, kind, model name, model version, model digest, modality,
    region, instance bucket, size bucket); the three of the model are all given or all None."""
    study_id, source, root, kind, *model, modality, region, instances, size = forms.fields(
        arguments, 11
    )
    kind = forms.word(kind, DERIVATION_KINDS, "kind")
    source = forms.random_id(source, "source_study_id")
    return Derive(
        forms.random_id(study_id, "study_id"),
        Derivation(kind, source, _model(kind, *model)),
        forms.digest(root, "root"),
        *_description(modality, region, instances, size),
    )


def parse_retire(arguments: tuple[Value, ...]) -> Retire:
    """(study id, reason)"""
    study_id, reason = forms.fields(arguments, 2)
    return Retire(
        forms.random_id(study_id, "study_id"), forms.word(reason, RETIRE_REASONS, "reason")
    )


def _description(
    modality: Value, region: Value, instances: Value, size: Value
) -> tuple[str, str, int, int]:
    return (
        forms.word(modality, MODALITIES, "modality"),
        forms.word(region, REGIONS, "region"),
        forms.integer(instances, 0, INSTANCE_BUCKET_MAX, "instance_bucket"),
        forms.integer(size, 0, SIZE_BUCKET_MAX, "size_bucket"),
    )


def _model(kind: str, name: Value, version: Value, model_digest: Value) -> Model | None:
    if name is None and version is None and model_digest is None:
        if kind == "ai_result":
            raise Refused("operation_invalid", "an ai_result must name its model")
        return None
    return Model(
        forms.model_name(name, "model_name"),
        forms.model_version(version, "model_version"),
        forms.digest(model_digest, "model_digest"),
    )


def register(context: Context, asked: Register) -> None:
    """Make the sender's institution custodian of a new study at version 1."""
    _require_new(context, asked.study_id, asked.root)
    _create(context, asked, asked.subject_id, None)
    context.emit(
        "study_registered", asked.study_id, context.institution, asked.modality, asked.region
    )


def derive(context: Context, asked: Derive) -> None:
    """Register an object made out of a study; the subject is the source's."""
    source = _own_study(context, asked.derivation.source, "source")
    _require_new(context, asked.study_id, asked.root)
    ordinal = _create(context, asked, source.subject_id, asked.derivation)
    context.index(INDEX_DERIVED, (asked.derivation.source, ordinal), asked.study_id)
    context.emit("study_derived", asked.study_id, asked.derivation.source, asked.derivation.kind)


def amend(context: Context, asked: Amend) -> None:
    """Let a new root succeed the study's current one, which `asked` must name."""
    study = _own_study(context, asked.study_id, "study")
    if asked.version != study.version + 1:
        raise Rejected("version_conflict")
    if asked.previous_root != study.root:
        raise Rejected("root_conflict")
    _require_new_root(context, asked.root)
    changed = study._replace(
        version=asked.version,
        root=asked.root,
        instance_bucket=asked.instance_bucket,
        size_bucket=asked.size_bucket,
        changed_height=context.height,
    )
    context.state.put(study_key(asked.study_id), pack(changed))
    _put_version(context, asked.study_id, asked.version, study.root, asked)
    context.emit("study_amended", asked.study_id, asked.version, asked.root)


def retire(context: Context, asked: Retire) -> None:
    """Close a study for good: it stays provable, and takes no amendment or derivation."""
    study = _own_study(context, asked.study_id, "study")
    changed = study._replace(retired=asked.reason, changed_height=context.height)
    context.state.put(study_key(asked.study_id), pack(changed))
    context.index(INDEX_RETIRED, (study.ordinal,), asked.study_id)
    context.emit("study_retired", asked.study_id, asked.reason)


def _own_study(context: Context, study_id: bytes, role: str) -> Study:
    row = context.state.get(study_key(study_id))
    if row is None:
        raise Rejected(f"{role}_unknown")
    study = decode_study(row)
    if study.custodian != context.institution:
        raise Rejected("not_custodian")
    if study.retired is not None:
        raise Rejected(f"{role}_retired")
    return study


def _require_new(context: Context, study_id: bytes, root: bytes) -> None:
    if context.state.get(study_key(study_id)) is not None:
        raise Rejected("study_exists")
    _require_new_root(context, root)


def _require_new_root(context: Context, root: bytes) -> None:
    if context.state.get(root_key(root)) is not None:
        raise Rejected("root_exists")


def _create(
    context: Context,
    asked: Register | Derive,
    subject_id: bytes,
    derivation: Derivation | None,
) -> bytes:
    ordinal = context.ordinal()
    study = Study(
        RECORD_FORMAT,
        context.institution,
        subject_id,
        asked.modality,
        asked.region,
        1,
        asked.root,
        asked.instance_bucket,
        asked.size_bucket,
        ordinal,
        context.height,
        None,
        derivation,
    )
    study_id = asked.study_id
    context.state.put(study_key(study_id), pack(study))
    _put_version(context, study_id, 1, None, asked)
    context.index(INDEX_CUSTODIAN, (context.institution.encode(), ordinal), study_id)
    context.index(INDEX_SUBJECT, (subject_id, ordinal), study_id)
    context.index(INDEX_KIND, (asked.modality.encode(), asked.region.encode(), ordinal), study_id)
    return ordinal


def _put_version(
    context: Context,
    study_id: bytes,
    version: int,
    previous_root: bytes | None,
    asked: Register | Derive | Amend,
) -> None:
    row = Version(
        RECORD_FORMAT,
        study_id,
        version,
        previous_root,
        asked.instance_bucket,
        asked.size_bucket,
        context.height,
    )
    context.state.put(root_key(asked.root), pack(row))


KINDS = (
    OperationKind("study.register", STUDY_ROLES, parse_register, register),
    OperationKind("study.amend", STUDY_ROLES, parse_amend, amend),
    OperationKind("study.derive", STUDY_ROLES, parse_derive, derive),
    OperationKind("study.retire", STUDY_ROLES, parse_retire, retire),
)
