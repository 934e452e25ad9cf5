"""What a run shows to others and leaves behind, gathered where it comes out."""

import re
import ssl
from contextlib import contextmanager

import aiohttp

from storage.leveldb import open_leveldb

_REQUEST_LINE = re.compile(rb"(?:GET|POST|PUT|HEAD|DELETE) (\S+) HTTP/1\.[01]")


class Evidence:
    """Bytes by the place where they were seen."""

    def __init__(self):
        self.seen = {}

    def add(self, where, data):
        if isinstance(data, str):
            data = data.encode()
        self.seen.setdefault(where, bytearray()).extend(data + b"\n")

    def add_wire(self, wire):
        """Add what was said between hospitals, and the URLs in it on their own."""
        self.add("messages", bytes(wire))
        self.add("urls", b"\n".join(_REQUEST_LINE.findall(bytes(wire))))

    def add_chain(self, folder):
        """Add all rows of a stopped node: blocks, receipts, state, indexes."""
        store = open_leveldb(folder)
        try:
            for key, value in store.iterate(b"", b"\xff" * 64):
                self.add("chain", key + b"\n" + value)
        finally:
            store.close()

    def add_files(self, where, folder, is_exempt=lambda path: False):
        """Add the names and contents of all files below a folder."""
        for path in sorted(folder.rglob("*")):
            if path.is_file() and not is_exempt(path.relative_to(folder)):
                self.add(where, str(path.relative_to(folder)))
                self.add(where, path.read_bytes())

    async def add_metrics(self, node):
        """Add a node's page of metrics."""
        headers = {"Authorization": f"Bearer {node.rpc_token}"}
        async with (
            aiohttp.ClientSession(headers=headers) as session,
            session.get(f"{node.rpc_url}/metrics") as page,
        ):
            assert page.status == 200
            self.add("metrics", await page.read())

    def leaks(self, search):
        """Return what `search(where, data)` finds anywhere."""
        return [leak for where, data in self.seen.items() for leak in search(where, bytes(data))]


@contextmanager
def tapped(monkeypatch):
    """Yield what is said over TLS from now on, both sides of every connection, in clear.

    That is all there is between hospitals: nodes and exchanges speak mutual TLS and nothing else.
    """
    heard = bytearray()

    class Tap(ssl.SSLObject):
        """Hears at the application's side of TLS."""

        def read(self, len=1024, buffer=None):
            found = super().read(len, buffer) if buffer is not None else super().read(len)
            heard.extend(memoryview(buffer)[:found] if buffer is not None else found)
            return found

        def write(self, data):
            sent = super().write(data)
            heard.extend(memoryview(data)[:sent])
            return sent

    with monkeypatch.context() as patch:
        patch.setattr(ssl.SSLContext, "sslobject_class", Tap)
        yield heard
