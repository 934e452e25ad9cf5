"""What readers ask of the ledger, one module for each topic, and the answers.

Everything is read through one `ChainStore`; hand in one on a snapshot and all answers are of one
moment. Every answer is bounded, and its cost does not grow with the chain.
"""

from node.ledger.queries.blocks import BlockView, EventView, Queries, TransactionView
from node.ledger.queries.paging import BadQuery
from node.ledger.queries.studies import (
    LIMIT_MAX,
    StudyPage,
    StudyQuery,
    StudySummary,
    StudyVersion,
    StudyView,
    search,
)

__all__ = [
    "LIMIT_MAX",
    "BadQuery",
    "BlockView",
    "EventView",
    "Queries",
    "StudyPage",
    "StudyQuery",
    "StudySummary",
    "StudyVersion",
    "StudyView",
    "TransactionView",
    "search",
]
