"""Canonical msgpack, whoever else packs at the same time."""

import gc
from typing import NamedTuple

import pytest

from consensus.wire import pack, unpack


class Pair(NamedTuple):
    left: object
    right: object


@pytest.fixture
def interrupted():
    """Let every allocation collect garbage, and every collection pack something else."""
    threshold, packed = gc.get_threshold(), []

    def interrupt(phase, info):
        packed.append(pack(("another", (phase,))))

    gc.callbacks.append(interrupt)
    gc.set_threshold(1)
    try:
        yield packed
    finally:
        gc.set_threshold(*threshold)
        gc.callbacks.remove(interrupt)


def test_packing_stands_being_interrupted_by_packing(interrupted):
    """A collection runs finalisers and lets other threads go on, in the middle of a value."""
    value = Pair(1, Pair(b"2", Pair("3", Pair(None, (4, 5)))))
    garbage = []
    for _ in range(100):
        garbage.append([])
        encoded = pack(value)
        assert unpack(encoded) == (1, (b"2", ("3", (None, (4, 5)))))
    assert len(interrupted) > 100
