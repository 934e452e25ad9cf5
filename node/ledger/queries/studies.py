"""Studies: one whole, and search page by page, newest registration first.

A page is cut out of the one index that fits the question best; the rest of the question filters.
Every answer is bounded, and its cost does not grow with the chain. Reads the disk, so call it in a
worker thread; hand in a `ChainStore` on a snapshot and all answers are of one moment.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from node.ledger.contracts import study as study_contract
from node.ledger.contracts.base import ordinal_floor, ordinal_height
from node.ledger.contracts.study import Derivation, Study
from node.ledger.contracts.vocabulary import MODALITIES, REGIONS
from node.ledger.limits import HEIGHT_MAX
from node.ledger.queries import paging
from node.ledger.queries.paging import BadQuery, Row
from storage.chain import ChainStore
from storage.errors import CorruptRecord

VERSIONS_MAX = 200  # shown with one study, newest first
DERIVED_MAX = 200  # shown with one study, newest first
LIMIT_MAX = 200  # studies on one page
ROWS_MAX = paging.ROWS_MAX

_STATUS = frozenset({"active", "retired", "erased"})


@dataclass(frozen=True, slots=True)
class StudySummary:
    """One study as a list shows it."""

    id: bytes  # 16 bytes
    custodian: str
    subject_id: bytes  # 16 bytes
    modality: str
    region: str
    status: str  # "active", "retired" or "erased"
    retire_reason: str | None
    version: int
    root: bytes  # 32 bytes
    instance_bucket: int
    size_bucket: int
    registered_height: int
    changed_height: int
    derivation: Derivation | None
    confidentiality: str = "N"  # HL7 v3: "N" normal, "R" restricted, "V" very restricted
    offered_to: str | None = None  # the institution that may take over custody
    erased_height: int | None = None  # custodian's key and salt were destroyed


@dataclass(frozen=True, slots=True)
class StudyVersion:
    """One version of a study."""

    version: int
    root: bytes
    previous_root: bytes | None
    instance_bucket: int
    size_bucket: int
    height: int


@dataclass(frozen=True, slots=True)
class StudyView:
    """One study whole. A list that was cut off says so."""

    summary: StudySummary
    versions: tuple[StudyVersion, ...]  # newest first, at most VERSIONS_MAX
    derived: tuple[bytes, ...]  # ids of studies derived from it, newest first, at most DERIVED_MAX
    derived_truncated: bool


@dataclass(frozen=True, slots=True)
class StudyQuery:
    """Which studies; None leaves a field open. Heights are of registration, both inclusive."""

    custodian: str | None = None
    subject_id: bytes | None = None
    modality: str | None = None
    region: str | None = None
    status: str | None = None  # "active", "retired" or "erased"
    height_from: int | None = None
    height_to: int | None = None
    limit: int = 50
    cursor: str | None = None  # `StudyPage.next_cursor` of the same question
    offered_to: str | None = None  # institution that may take over custody


@dataclass(frozen=True, slots=True)
class StudyPage:
    """Part of the answer. It can be short, even empty, and still have a next one: the work for one
    page is bounded. The answer is complete when `next_cursor` is None."""

    studies: tuple[StudySummary, ...]  # newest registration first
    next_cursor: str | None


def find_study(chain: ChainStore, study_id: bytes) -> StudyView | None:
    """Return the study with this id (16 bytes), or None. Raises `CorruptRecord`."""
    stored = stored_study(chain, study_id)
    if stored is None:
        return None
    rows = chain.scan_index(
        study_contract.INDEX_DERIVED, (study_id,), reverse=True, limit=DERIVED_MAX + 1
    )
    derived = tuple([row.value for row in rows])
    return StudyView(
        _summary(study_id, stored),
        _versions(chain, stored.root),
        derived[:DERIVED_MAX],
        len(derived) > DERIVED_MAX,
    )


def search(chain: ChainStore, query: StudyQuery) -> StudyPage:
    """Return the page of `query` that its cursor asks for. Raises `BadQuery`, `CorruptRecord`."""
    _check(query)
    asked = _question(query)
    rows = _rows(chain, query, paging.decode_cursor(asked, query.cursor))

    described = [
        None if each is None else each.encode()
        for each in (query.custodian, query.modality, query.region)
    ]

    def read(row: bytes) -> StudySummary | None:
        study_id, description = study_contract.read_listing(row)
        if not all(map(_fits, described, description)):
            return None
        stored = stored_study(chain, study_id)
        if stored is None:
            raise CorruptRecord("an index names a study that the state does not hold")
        return _summary(study_id, stored) if _matches(query, stored) else None

    found, last = paging.cut_page(rows, query.limit, read, ROWS_MAX)
    return StudyPage(tuple(found), paging.next_cursor(asked, last))


def stored_study(chain: ChainStore, study_id: bytes) -> Study | None:
    """Return the study's record, or None. Raises `CorruptRecord`."""
    row = chain.state_value(study_contract.study_key(study_id))
    return None if row is None else study_contract.decode_study(row)


def _check(query: StudyQuery) -> None:
    paging.check_institution("custodian", query.custodian)
    paging.check_id("subject_id", query.subject_id)
    paging.check_word("modality", query.modality, MODALITIES)
    paging.check_word("region", query.region, REGIONS)
    paging.check_word("status", query.status, _STATUS)
    paging.check_institution("offered_to", query.offered_to)
    paging.check_height("height_from", query.height_from)
    paging.check_height("height_to", query.height_to)
    if (query.height_from or 0) > (HEIGHT_MAX if query.height_to is None else query.height_to):
        raise BadQuery("height_from must not be above height_to")
    paging.check_limit(query.limit, LIMIT_MAX)


def _question(query: StudyQuery) -> bytes:
    return paging.question(
        "studies",
        query.custodian,
        query.subject_id,
        query.modality,
        query.region,
        query.status,
        query.height_from,
        query.height_to,
        query.offered_to,
    )


def _rows(chain: ChainStore, query: StudyQuery, below: bytes | None) -> Iterator[Row]:
    """Yield the rows of the best index, newest first, within the heights and below the cursor."""
    if below is None and query.height_to is not None:
        below = ordinal_floor(query.height_to + 1)
    name, prefixes = _plan(chain, query)
    lowest = ordinal_floor(query.height_from or 0)
    for row in paging.newest_first(chain, name, prefixes, below):
        if row[0] < lowest:
            return
        yield row


def _plan(chain: ChainStore, query: StudyQuery) -> tuple[str, list[tuple[bytes, ...]]]:
    """Return the index to read and the prefixes whose rows, merged, hold every match."""
    modality = None if query.modality is None else query.modality.encode()
    region = None if query.region is None else query.region.encode()
    if query.offered_to is not None:
        return study_contract.INDEX_OFFERED, [(query.offered_to.encode(),)]
    if query.subject_id is not None:
        return study_contract.INDEX_SUBJECT, [(query.subject_id,)]
    if query.status == "erased":
        return study_contract.INDEX_ERASED, [()]
    if query.status == "retired":
        return study_contract.INDEX_RETIRED, [()]
    if modality and region:
        return study_contract.INDEX_KIND, [(modality, region)]
    if query.custodian is not None:
        return study_contract.INDEX_CUSTODIAN, [(query.custodian.encode(),)]
    if modality:
        return study_contract.INDEX_KIND, [(modality, each.encode()) for each in sorted(REGIONS)]
    if region:
        return study_contract.INDEX_KIND, [(each.encode(), region) for each in sorted(MODALITIES)]
    return study_contract.INDEX_CUSTODIAN, [
        (each,) for each in paging.first_parts(chain, study_contract.INDEX_CUSTODIAN)
    ]


def _fits(asked: bytes | None, has: bytes) -> bool:
    return asked is None or asked == has


def _matches(query: StudyQuery, stored: Study) -> bool:
    """Return whether `stored` is asked for, heights aside: the scan keeps to those."""
    return (
        query.custodian in (None, stored.custodian)
        and query.subject_id in (None, stored.subject_id)
        and query.modality in (None, stored.modality)
        and query.region in (None, stored.region)
        and query.status in (None, _status(stored))
        and query.offered_to in (None, stored.offered_to)
    )


def _status(stored: Study) -> str:
    if stored.erased_height is not None:
        return "erased"
    return "active" if stored.retired is None else "retired"


def _summary(study_id: bytes, stored: Study) -> StudySummary:
    return StudySummary(
        id=study_id,
        custodian=stored.custodian,
        subject_id=stored.subject_id,
        modality=stored.modality,
        region=stored.region,
        status=_status(stored),
        retire_reason=stored.retired,
        version=stored.version,
        root=stored.root,
        instance_bucket=stored.instance_bucket,
        size_bucket=stored.size_bucket,
        registered_height=ordinal_height(stored.ordinal),
        changed_height=stored.changed_height,
        derivation=stored.derivation,
        confidentiality=stored.confidentiality,
        offered_to=stored.offered_to,
        erased_height=stored.erased_height,
    )


def _versions(chain: ChainStore, newest_root: bytes) -> tuple[StudyVersion, ...]:
    versions: list[StudyVersion] = []
    root: bytes | None = newest_root
    while root is not None and len(versions) < VERSIONS_MAX:
        row = chain.state_value(study_contract.root_key(root))
        if row is None:
            raise CorruptRecord("a study names a version that the state does not hold")
        stored = study_contract.decode_version(row)
        versions.append(
            StudyVersion(
                stored.version,
                root,
                stored.previous_root,
                stored.instance_bucket,
                stored.size_bucket,
                stored.height,
            )
        )
        root = stored.previous_root
    return tuple(versions)
