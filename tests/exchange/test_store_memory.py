"""Storing and reading need the same memory, whatever the size of a study."""

from tests.bench.store import peak_mib


def test_memory_is_flat_in_the_size_of_a_study():
    small, large = peak_mib(32), peak_mib(320)
    assert large < small + 32
    assert large < 400
