from contextlib import ExitStack

import pytest

from storage.leveldb import open_leveldb
from storage.memory import MemoryStore


@pytest.fixture(params=["memory", "leveldb"])
def new_store(request, tmp_path):
    """Return a function that makes an empty store of one kind."""
    with ExitStack() as stores:

        def make():
            if request.param == "memory":
                store = MemoryStore()
            else:
                store = open_leveldb(tmp_path / f"store{len(list(tmp_path.iterdir()))}")
            stores.callback(store.close)
            return store

        yield make


@pytest.fixture
def store(new_store):
    return new_store()
