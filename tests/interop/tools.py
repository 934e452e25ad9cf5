"""Other makers' programs, started on loopback and ended again."""

import json
import os
import shutil
import subprocess
import time
import urllib.request
from contextlib import contextmanager

from node.testnet.layout import free_ports

# pynetdicom's scripts have the names of DCMTK's: call the system's by their full names.
_GIVEN: set[int] = set()
_SYSTEM = "/usr/bin:/usr/sbin:/usr/local/bin"


def program(name: str) -> str:
    """Return the full name of a system program."""
    found = shutil.which(name, path=_SYSTEM)
    assert found is not None, f"{name} is not installed"
    return found


def call(
    name: str, *arguments: object, seconds: float = 120, folder=None
) -> subprocess.CompletedProcess:
    """Run a system program to its end, in `folder`, with its output."""
    return subprocess.run(
        [program(name), *map(str, arguments)],
        check=False,
        capture_output=True,
        text=True,
        timeout=seconds,
        cwd=folder,
        env={**os.environ, "TCP_NODELAY": "1"},
    )


def free_port() -> int:
    """Return a port that nobody listens on now, another one each time; no outgoing connection takes
    it either."""
    while True:
        (port,) = free_ports(1)
        if port not in _GIVEN:
            _GIVEN.add(port)
            return port


def until(is_so, seconds: float = 60, what: str = "it") -> None:
    """Wait until `is_so()`."""
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, f"{what} did not happen within {seconds:.0f} s"
        time.sleep(0.1)


class Orthanc:
    """A running Orthanc."""

    def __init__(self, http: int, dicom: int, title: str, process: subprocess.Popen) -> None:
        self.http, self.dicom, self.title, self.process = http, dicom, title, process

    def get(self, path: str):
        """Return what its REST interface answers."""
        return self._ask(path)

    def post(self, path: str, content: bytes):
        """Post to its REST interface."""
        return self._ask(path, content)

    def _ask(self, path: str, content: bytes | None = None):
        url = f"http://127.0.0.1:{self.http}{path}"
        with urllib.request.urlopen(urllib.request.Request(url, content), timeout=60) as answer:
            data = answer.read()
        kind = answer.headers.get("Content-Type", "")
        return json.loads(data) if kind.startswith("application/json") else data


@contextmanager
def orthanc(folder, title, peers, ports=None, **more):
    """Yield an Orthanc that knows `peers`: name -> (AE title, port), all on loopback.

    The same folder and ports (of HTTP and DICOM) again are the same one, restarted; `more` are
    settings.
    Orthanc listens for DICOM on all addresses, whatever it is told; here there is only loopback.
    """
    folder.mkdir(parents=True, exist_ok=True)
    http, dicom = ports or (free_port(), free_port())
    settings = {
        "Name": title,
        "StorageDirectory": str(folder / "db"),
        "IndexDirectory": str(folder / "db"),
        "HttpPort": http,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "DicomAet": title,
        "DicomPort": dicom,
        "DicomCheckCalledAet": True,
        "DicomCheckModalityHost": True,
        "DicomAlwaysAllowEcho": False,
        "DicomAlwaysAllowStore": False,
        "DicomModalities": {
            name: {"AET": aet, "Host": "127.0.0.1", "Port": port, "AllowStorageCommitment": True}
            for name, (aet, port) in peers.items()
        },
        "MaximumPduLength": 131_072,
        "Plugins": [],
        **more,
    }
    config = folder / "orthanc.json"
    config.write_text(json.dumps(settings))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [program("Orthanc"), str(config)],
            stdout=log,
            stderr=log,
            env={**os.environ, "TCP_NODELAY": "1"},
        )
        server = Orthanc(http, dicom, title, process)
        try:
            until(lambda: answers(server), what="Orthanc's start")
            yield server
        finally:
            process.terminate()
            process.wait(30)


def answers(server: Orthanc) -> bool:
    """Whether Orthanc's REST interface is up."""
    try:
        server.get("/system")
    except OSError:
        return False
    return True
