"""Questions, facts and answers for the tests of federated search."""

import secrets

from hypothesis import strategies as st

from node.exchange.federation.answer import OUTCOMES, Answer, Counted, FoundStudy, Tally
from node.exchange.federation.fields import AGE_BANDS, UNCOUNTED, Field, make_facts
from node.exchange.federation.matching import Entry
from node.exchange.federation.question import Condition, Kind, Question
from node.ledger.contracts.vocabulary import PURPOSES

VALUES = {
    Field.MODALITY: ["CT", "MR", "US"],
    Field.REGION: ["head", "chest"],
    Field.YEAR: ["2023", "2024"],
    Field.MONTH: ["2023-12", "2024-01"],
    Field.AGE: list(AGE_BANDS),
    Field.SEX: ["F", "M", "O"],
    Field.BODY_PART: ["BRAIN", "LUNG"],
    Field.WORD: ["contrast", "größe"],
    Field.MANUFACTURER: ["GE MEDICAL SYSTEMS"],
    Field.MODEL: ["LightSpeed Pro 16", "Ingenia 3.0T"],
}


def question(**changes):
    return Question(**({"purpose": "TREAT", "role": "clinician"} | changes))


def entry(subject=None, study=None, **values):
    facts = make_facts({Field(name): list(words) for name, words in values.items()})
    return Entry(study or secrets.token_bytes(16), subject or secrets.token_bytes(16), facts)


def values_of(field):
    return st.lists(st.sampled_from(VALUES[field]), min_size=1, max_size=3, unique=True).map(
        lambda found: tuple(sorted(found))
    )


conditions = st.sampled_from(list(Field)).flatmap(
    lambda field: values_of(field).map(lambda values: Condition(field, values))
)
months = st.none() | st.integers(1_900 * 12, 2_199 * 12 + 11)
countable = [field for field in Field if field not in UNCOUNTED]
questions = st.sampled_from(list(Kind)).flatmap(
    lambda kind: st.builds(
        Question,
        kind=st.just(kind),
        purpose=st.sampled_from(sorted(PURPOSES)),
        role=st.sampled_from(["clinician", "researcher", "gateway"]),
        deidentified=st.booleans(),
        ethics_digest=st.none() | st.binary(min_size=32, max_size=32),
        conditions=st.lists(conditions, max_size=4).map(tuple),
        since=months,
        until=months,
        fields=st.lists(
            st.sampled_from(countable if kind is Kind.COUNT else list(Field)), unique=True
        ).map(tuple),
        limit=st.integers(1, 1_000),
    )
)
told = st.lists(st.sampled_from(list(Field)), unique=True, max_size=4).flatmap(
    lambda fields: st.fixed_dictionaries({field: values_of(field) for field in fields})
)
found_studies = st.lists(
    st.builds(FoundStudy, st.binary(min_size=16, max_size=16), st.sampled_from(OUTCOMES), told),
    max_size=4,
    unique_by=lambda study: study.study_id,
).map(tuple)
fields = st.lists(st.sampled_from(list(Field)), unique=True).map(tuple)
tallies = st.lists(st.sampled_from(countable), unique=True, max_size=3).flatmap(
    lambda chosen: st.tuples(
        *(
            values_of(field).map(
                lambda values, field=field: Tally(
                    field, tuple(Counted(value, 5 * len(value), 5) for value in values)
                )
            )
            for field in chosen
        )
    )
)
answers = st.one_of(
    st.builds(
        Answer,
        kind=st.just(Kind.FIND),
        offered=fields,
        unoffered=fields,
        is_complete=st.booleans(),
        studies=found_studies,
    ),
    st.builds(
        Answer,
        kind=st.just(Kind.COUNT),
        offered=fields,
        unoffered=fields,
        is_complete=st.booleans(),
        least=st.integers(0, 1_000),
        total=st.none() | st.tuples(st.integers(0, 10**6), st.integers(0, 10**6)),
        tallies=tallies,
    ),
)
