"""Answers questions of other hospitals from this hospital's catalogue, as its policies permit.

    question -> studies that match -> each tried against policy and consent -> told, or counted

A study is looked at by the ledger's own rules as they are at that moment: what a request would not
be granted is neither told nor counted. Which studies those are is asked in an order that says
nothing, and as long as the time for an answer lasts.
"""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from node.exchange.federation import matching
from node.exchange.federation.answer import Answer, FoundStudy
from node.exchange.federation.fields import Field
from node.exchange.federation.matching import Entry
from node.exchange.federation.ports import Policies
from node.exchange.federation.question import Kind, Question

GRANTED, ASKABLE = "granted", "waiting_person"
_AT_ONCE = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What this hospital answers about; the defaults tell little more than the chain does."""

    fields: frozenset[Field] = frozenset({Field.MODALITY, Field.REGION, Field.YEAR})
    counts: bool = True
    askable: bool = False  # tell of what a person would have to decide, too
    least: int = 5  # patients; fewer are not counted
    studies_max: int = 200  # in one answer
    examined_max: int = 5_000  # studies tried against policy for one question
    answer_ms: int = 8_000  # for the whole of it


class NotOffered(Exception):
    """This hospital does not answer such questions."""


class Answering:
    """Answers from the entries of a catalogue."""

    def __init__(
        self, entries: Callable[[], Iterable[Entry]], policies: Policies, offer: Offer
    ) -> None:
        """`entries` returns this hospital's own studies, and no others; called in threads."""
        self._entries, self._policies, self.offer = entries, policies, offer

    async def answer(self, institution: str, question: Question) -> Answer:
        """Return what `institution` may know. Raises `NotOffered`, `LedgerUnavailable`."""
        offer = self.offer
        if question.kind is Kind.COUNT and not offer.counts:
            raise NotOffered
        offered = tuple(field for field in Field if field in offer.fields)
        missing = matching.unoffered(question, offer.fields)
        if missing:
            return Answer(kind=question.kind, offered=offered, unoffered=missing)
        matching_entries = await asyncio.to_thread(self._matching, question)
        is_count = question.kind is Kind.COUNT
        enough = None if is_count else min(question.limit, offer.studies_max)
        search = _Search(self._policies, institution, question, offer)
        found, is_complete = await search.run(matching_entries, enough)
        if is_count:
            return await asyncio.to_thread(self._counted, question, offered, found, is_complete)
        studies = tuple(
            FoundStudy(entry.study_id, outcome, matching.told(question, entry.facts, offer.fields))
            for entry, outcome in found
        )
        return Answer(kind=Kind.FIND, offered=offered, is_complete=is_complete, studies=studies)

    def _matching(self, question: Question) -> list[Entry]:
        """Return what matches; it may take a while, and wait for the catalogue's lock."""
        fields = self.offer.fields
        return [e for e in self._entries() if matching.matches(question, e.facts, fields)]

    def _counted(
        self,
        question: Question,
        offered: tuple[Field, ...],
        found: list[tuple[Entry, str]],
        is_complete: bool,
    ) -> Answer:
        least = self.offer.least
        entries = [entry for entry, _ in found]
        counts = matching.count(question, entries, self.offer.fields, least)
        return Answer(
            kind=Kind.COUNT,
            offered=offered,
            is_complete=is_complete and not counts.is_cut,
            least=least,
            total=counts.total,
            tallies=counts.tallies,
        )


class _Search:
    """Tries studies against policy, some at a time."""

    def __init__(
        self, policies: Policies, institution: str, question: Question, offer: Offer
    ) -> None:
        self._policies, self._institution = policies, institution
        self._question, self._offer = question, offer

    async def run(
        self, entries: list[Entry], enough: int | None
    ) -> tuple[list[tuple[Entry, str]], bool]:
        """Return what may be told, with its outcome, and whether that is all there is."""
        loop = asyncio.get_running_loop()
        end_s = loop.time() + self._offer.answer_ms / 1000
        examined = entries[: self._offer.examined_max]
        found: list[tuple[Entry, str]] = []
        for at in range(0, len(examined), _AT_ONCE):
            if loop.time() > end_s:
                return found, False
            batch = examined[at : at + _AT_ONCE]
            outcomes = await asyncio.gather(*map(self._outcome, batch))
            for entry, outcome in zip(batch, outcomes, strict=True):
                if outcome == GRANTED or (outcome == ASKABLE and self._offer.askable):
                    if enough is not None and len(found) == enough:
                        return found, False
                    found.append((entry, outcome))
        return found, len(examined) == len(entries)

    async def _outcome(self, entry: Entry) -> str:
        return await self._policies.outcome(entry.study_id, self._institution, self._question)
