"""The overlay gives each transaction all or nothing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consensus.errors import InvariantViolation
from node.ledger.state import StateView

KEYS = st.sampled_from([b"a", b"b", b"c", b"d"])
VALUES = st.one_of(st.none(), st.binary(max_size=2))
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("set"), KEYS, VALUES),
        st.tuples(st.just("index"), KEYS, VALUES),
        st.tuples(st.just("checkpoint")),
        st.tuples(st.just("rollback"), st.integers(0, 5)),
    ),
    max_size=40,
)


def view_over(base: dict[bytes, bytes]) -> StateView:
    return StateView(dict(base).get)


def write(view: StateView, key: bytes, value: bytes | None) -> None:
    if value is None:
        view.delete(key)
    else:
        view.put(key, value)


@given(st.dictionaries(KEYS, st.binary(max_size=2)), STEPS)
def test_any_nesting_of_savepoints_agrees_with_whole_copies(base, steps):
    view = view_over(base)
    model, rows = dict(base), []
    saved = []
    for step in steps:
        match step:
            case "set", key, value:
                write(view, key, value)
                model.pop(key, None) if value is None else model.update({key: value})
            case "index", key, value:
                view.index("name", (key,), value)
                rows.append(("name", (key,), value))
            case ("checkpoint",):
                saved.append((view.checkpoint(), dict(model), list(rows)))
            case "rollback", depth if depth < len(saved):
                del saved[depth + 1 :]
                savepoint, model_then, rows_then = saved[depth]
                view.rollback(savepoint)
                model, rows = dict(model_then), list(rows_then)
        assert {key: view.get(key) for key in (b"a", b"b", b"c", b"d")} == {
            key: model.get(key) for key in (b"a", b"b", b"c", b"d")
        }
    assert view.index_changes() == rows
    assert view.changes() == {
        key: model.get(key) for key in base | model if base.get(key) != model.get(key)
    }


def test_the_state_below_is_read_once_per_key_and_never_written():
    reads = []
    view = StateView(lambda key: reads.append(key) or b"old")
    assert [view.get(b"k"), view.get(b"k")] == [b"old", b"old"]
    view.put(b"k", b"new")
    assert (view.get(b"k"), reads) == (b"new", [b"k"])


@pytest.mark.parametrize("blind", [True, False])
def test_a_value_set_back_to_what_it_was_is_no_change(blind):
    view = view_over({b"k": b"same"})
    if not blind:
        view.get(b"k")
    view.put(b"k", b"other")
    view.put(b"k", b"same")
    view.put(b"new", b"value")
    view.delete(b"new")
    view.delete(b"never there")
    assert view.changes() == {}


def test_a_savepoint_that_was_undone_is_an_invariant_violation():
    view = view_over({})
    outer = view.checkpoint()
    view.put(b"k", b"v")
    inner = view.checkpoint()
    view.rollback(outer)
    with pytest.raises(InvariantViolation):
        view.rollback(inner)
