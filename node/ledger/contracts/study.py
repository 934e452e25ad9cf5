"""Studies: registered, amended into new versions, classified, derived from one another, retired.

How a study changes its custodian is in `study_transfer`, how it is erased in `study_erasure`.

State, all values canonical msgpack and led by the record format:

    "study/" + study id (16)   -> Study
    "root/" + root (32)        -> Version; finds a second registration of one commitment, and is the
                                  version chain: each names the root before it

A root is a salted Merkle root over the study's manifest and is bound to the study's id, version and
previous root by whoever computes it (imaging); here it is an opaque commitment, used once for ever.

Index rows, for queries only. `ordinal` is that of the registration: all lists have one order,
newest last, whatever happens to a study later, so a reader who pages misses and repeats nothing.
(One whose custodian changes moves from list to list, and keeps its place in the order.)

    study_custodian (custodian, ordinal)            -> listing
    study_subject   (subject id, ordinal)           -> listing
    study_kind      (modality, region, ordinal)     -> listing
    study_retired   (ordinal)                       -> listing
    study_erased    (ordinal)                       -> listing
    study_offered   (institution, ordinal)          -> listing
    study_derived   (source study id, ordinal)      -> study id

A listing is the study id and "custodian/modality/region", so that a search which filters by these
passes over a row without reading the study.
"""

from typing import NamedTuple

from consensus.wire import NotCanonical, Value, pack, unpack
from node.ledger.contracts import forms
from node.ledger.contracts.base import Context, OperationKind
from node.ledger.contracts.vocabulary import (
    CONFIDENTIALITY,
    DERIVATION_KINDS,
    INSTANCE_BUCKET_MAX,
    MODALITIES,
    REGIONS,
    RETIRE_REASONS,
    SIZE_BUCKET_MAX,
)
from node.ledger.errors import Refused, Rejected
from storage.errors import CorruptRecord

STUDY_FORMAT = 2
VERSION_FORMAT = 1
VERSION_MAX = 65_535
STUDY_ROLES = frozenset({"administrator", "clinician", "gateway"})
CLASSIFY_ROLES = STUDY_ROLES | {"data_protection_officer"}

REJECTIONS = {
    "study_unknown": "no study with this id is registered",
    "study_exists": "a study with this id is registered already; ids are used once",
    "study_retired": "the study is retired; it takes no change",
    "study_erased": "the study is erased; all that can follow is an attestation of that",
    "source_unknown": "no study with the source's id is registered",
    "source_retired": "the source is retired; nothing new is derived from it",
    "source_erased": "the source is erased; nothing new is derived from it",
    "not_custodian": "the sender's institution is not the custodian of the study or source",
    "root_exists": "a version with this root is registered already; roots are used once",
    "version_conflict": "an amendment's version is the current one plus one",
    "root_conflict": "an amendment names the current root as the previous one",
}

INDEX_CUSTODIAN = "study_custodian"
INDEX_SUBJECT = "study_subject"
INDEX_KIND = "study_kind"
INDEX_RETIRED = "study_retired"
INDEX_ERASED = "study_erased"
INDEX_DERIVED = "study_derived"
INDEX_OFFERED = "study_offered"


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
    confidentiality: str = "N"  # of CONFIDENTIALITY; what policies ask for
    offered_to: str | None = None  # the institution that may become its custodian
    erased_height: int | None = None  # never without a reason in `retired`


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


class Classify(NamedTuple):
    study_id: bytes
    confidentiality: str


def study_key(study_id: bytes) -> bytes:
    """Return the state key of a study."""
    return b"study/" + study_id


def root_key(root: bytes) -> bytes:
    """Return the state key of a version."""
    return b"root/" + root


def listing(study_id: bytes, study: Study) -> bytes:
    """Return the value of an index row about a study."""
    return study_id + f"{study.custodian}/{study.modality}/{study.region}".encode()


def read_listing(row: bytes) -> tuple[bytes, list[bytes]]:
    """Return the study id, and custodian, modality and region, of an index row."""
    return row[: forms.ID_BYTES], row[forms.ID_BYTES :].split(b"/")


def decode_study(row: bytes) -> Study:
    """Return the stored study. Raises `CorruptRecord`."""
    try:
        study = Study(*_fields(row, STUDY_FORMAT, len(Study._fields)))  # type: ignore[arg-type]
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
        return Version(*_fields(row, VERSION_FORMAT, len(Version._fields)))  # type: ignore[arg-type]
    except (NotCanonical, TypeError, ValueError) as error:
        raise CorruptRecord("the state holds a version record that cannot be read") from error


def _fields(row: bytes, record_format: int, count: int) -> tuple[Value, ...]:
    value = unpack(row)
    if type(value) is not tuple or len(value) != count or value[0] != record_format:
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


def parse_classify(arguments: tuple[Value, ...]) -> Classify:
    """(study id, confidentiality)"""
    study_id, confidentiality = forms.fields(arguments, 2)
    return Classify(
        forms.random_id(study_id, "study_id"),
        forms.word(confidentiality, CONFIDENTIALITY, "confidentiality"),
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
    source = own_study(context, asked.derivation.source, "source")
    _require_new(context, asked.study_id, asked.root)
    ordinal = _create(context, asked, source.subject_id, asked.derivation)
    context.index(INDEX_DERIVED, (asked.derivation.source, ordinal), asked.study_id)
    context.emit(
        "study_derived",
        asked.study_id,
        asked.derivation.source,
        asked.derivation.kind,
        about=asked.derivation.source,
    )


def amend(context: Context, asked: Amend) -> None:
    """Let a new root succeed the study's current one, which `asked` must name."""
    study = own_study(context, asked.study_id)
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
    )
    put_study(context, asked.study_id, changed)
    _put_version(context, asked.study_id, asked.version, study.root, asked)
    context.emit("study_amended", asked.study_id, asked.version, asked.root, about=asked.study_id)


def retire(context: Context, asked: Retire) -> None:
    """Close a study for good: it stays provable, and takes no amendment or derivation."""
    study = own_study(context, asked.study_id)
    closed = close_study(context, asked.study_id, study, asked.reason)
    put_study(context, asked.study_id, closed)
    context.emit("study_retired", asked.study_id, asked.reason, about=asked.study_id)


def classify(context: Context, asked: Classify) -> None:
    """Set how confidential the study is; policies may tell one level from another."""
    study = own_study(context, asked.study_id)
    put_study(context, asked.study_id, study._replace(confidentiality=asked.confidentiality))
    context.emit("study_classified", asked.study_id, asked.confidentiality, about=asked.study_id)


def existing_study(context: Context, study_id: bytes, role: str = "study") -> Study:
    """Return a study, or raise `Rejected` with `role`_unknown."""
    row = context.state.get(study_key(study_id))
    if row is None:
        raise Rejected(f"{role}_unknown")
    return decode_study(row)


def own_study(context: Context, study_id: bytes, role: str = "study") -> Study:
    """Return a study that its custodian, who must be the sender's institution, may still change.

    Raises `Rejected` with `role`_unknown, not_custodian, `role`_erased or `role`_retired.
    """
    study = existing_study(context, study_id, role)
    if study.custodian != context.institution:
        raise Rejected("not_custodian")
    if study.erased_height is not None:
        raise Rejected(f"{role}_erased")
    if study.retired is not None:
        raise Rejected(f"{role}_retired")
    return study


def close_study(context: Context, study_id: bytes, study: Study, reason: str) -> Study:
    """Return the study as retired, and list it so; an open offer ends."""
    context.index(INDEX_RETIRED, (study.ordinal,), listing(study_id, study))
    return without_offer(context, study)._replace(retired=reason)


def without_offer(context: Context, study: Study) -> Study:
    """Return the study offered to nobody, and unlist the offer if there was one."""
    if study.offered_to is None:
        return study
    context.unindex(INDEX_OFFERED, (study.offered_to.encode(), study.ordinal))
    return study._replace(offered_to=None)


def list_study(context: Context, study_id: bytes, study: Study) -> None:
    """Put a study on the lists of its custodian and its subject, and of its kind."""
    row = listing(study_id, study)
    context.index(INDEX_CUSTODIAN, (study.custodian.encode(), study.ordinal), row)
    context.index(INDEX_SUBJECT, (study.subject_id, study.ordinal), row)
    kind = study.modality.encode(), study.region.encode()
    context.index(INDEX_KIND, (*kind, study.ordinal), row)


def put_study(context: Context, study_id: bytes, changed: Study) -> None:
    """Store a study that changes at this height."""
    context.state.put(study_key(study_id), pack(changed._replace(changed_height=context.height)))


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
        STUDY_FORMAT,
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
    list_study(context, study_id, study)
    return ordinal


def _put_version(
    context: Context,
    study_id: bytes,
    version: int,
    previous_root: bytes | None,
    asked: Register | Derive | Amend,
) -> None:
    row = Version(
        VERSION_FORMAT,
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
    OperationKind("study.classify", CLASSIFY_ROLES, parse_classify, classify),
)
