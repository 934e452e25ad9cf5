"""Search in a large state: questions of every kind that the RPC takes, each on a snapshot."""

import random
import time

from node.ledger.limits import Limits
from node.ledger.queries import Queries, StudyPage, StudyQuery, search
from storage.chain import ChainStore
from storage.kv import KeyValueStore

QUESTIONS = 500
PAGE = 50
MODALITIES = ("CT", "MR", "US", "CR", "DX", "MG", "PT", "XA", "OPT")
REGIONS = ("head", "chest", "abdomen", "breast", "spine", "lower_limb", "unknown")
RETIRED_OF_1000 = 3


def measure(
    store: KeyValueStore, custodians: list[str], subjects: list[bytes], height: int
) -> dict[str, float]:
    """Return milliseconds per page over first pages and following ones, and how many were cut."""
    dice = random.Random(7)
    took, cut = [], 0
    for _ in range(QUESTIONS):
        question = _question(dice, custodians, subjects, height)
        page, seconds = _ask(store, question)
        took.append(seconds)
        cut += len(page.studies) < PAGE and page.next_cursor is not None
        if page.next_cursor is not None and dice.random() < 0.3:
            following = StudyQuery(**_fields(question) | {"cursor": page.next_cursor})
            took.append(_ask(store, following)[1])
    took.sort()
    return {
        "search_pages": len(took),
        "search_pages_cut": cut,
        "search_p50_ms": round(1000 * took[len(took) // 2], 2),
        "search_p99_ms": round(1000 * took[int(0.99 * len(took))], 2),
        "search_max_ms": round(1000 * took[-1], 2),
    }


def _ask(store: KeyValueStore, question: StudyQuery) -> tuple[StudyPage, float]:
    began = time.perf_counter()
    snapshot = store.snapshot()
    try:
        chain = ChainStore(snapshot)
        Queries(chain, Limits())
        page = search(chain, question)
    finally:
        snapshot.close()
    return page, time.perf_counter() - began


def _question(
    dice: random.Random, custodians: list[str], subjects: list[bytes], height: int
) -> StudyQuery:
    low = dice.randrange(height) if dice.random() < 0.3 else None
    return StudyQuery(
        custodian=dice.choice(custodians) if dice.random() < 0.4 else None,
        subject_id=dice.choice(subjects) if dice.random() < 0.2 else None,
        modality=dice.choice(MODALITIES) if dice.random() < 0.5 else None,
        region=dice.choice(REGIONS) if dice.random() < 0.4 else None,
        status=dice.choice(["active", "active", "retired"]) if dice.random() < 0.4 else None,
        height_from=low,
        height_to=None if low is None else dice.randrange(low, height + 1),
        limit=PAGE,
    )


def _fields(question: StudyQuery) -> dict[str, object]:
    return {name: getattr(question, name) for name in StudyQuery.__dataclass_fields__}
