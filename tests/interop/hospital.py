"""A consortium of node and gateway processes, run by the command line alone."""

import json
import signal
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.interop.tools import free_port, until

TITLE = "RADLEDGER"
_COMMAND = [sys.executable, "-m", "node.cli"]


class Hospital:
    """One institution: its config, its commands, and its gateway's process."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.name = folder, folder.name
        self.config = folder / "node.toml"
        self.dicom, self.exchange, self.web = free_port(), free_port(), free_port()
        self.gateway: subprocess.Popen | None = None

    def tell(self, *words, status: int = 0) -> dict:
        """Run a command to its end; return the document that it prints."""
        return told(*words, "--config", self.config, status=status)

    def configure(self, peers: list[dict], others: list["Hospital"], **gateway) -> None:
        """Write the tables [gateway], [store] and [exchange] into the config."""
        key = self.folder / "master"
        told("store", "keygen", key, as_json=False)
        exchange = gateway.pop("exchange", {})
        lines = ["", "[gateway]", 'spool_dir = "spool"', f"listen_port = {self.dicom}"]
        lines += [f"{name} = {json.dumps(value)}" for name, value in gateway.items()]
        lines += ["[gateway.limits]", "disk_reserve_bytes = 1048576"]
        lines += ["[gateway.web]", f"port = {self.web}", 'token_file = "web.token"']
        for peer in peers:
            lines += ["[[gateway.peers]]"]
            lines += [f"{name} = {json.dumps(value)}" for name, value in peer.items()]
        lines += ["[store]", 'folder = "studies"', 'key_file = "studies.keys"']
        lines += ['master_key_file = "master"', "[exchange]", 'folder = "exchange"']
        lines += ['listen_host = "127.0.0.1"', f"listen_port = {self.exchange}"]
        lines += [f"{name} = {json.dumps(value)}" for name, value in exchange.items()]
        for other in others:
            lines += ["[[exchange.peers]]", f'institution = "{other.name}"']
            lines += ['host = "127.0.0.1"', f"port = {other.exchange}"]
        self.config.write_text("\n".join([self.config.read_text(), *lines, ""]))
        token = self.folder / "web.token"
        token.write_text("t" * 43)
        token.chmod(0o600)

    @property
    def web_url(self) -> str:
        return f"http://127.0.0.1:{self.web}/dicom-web"

    def start(self) -> None:
        """Start the gateway and return once it listens."""
        with (self.folder / "gateway.log").open("ab") as log:
            self.gateway = subprocess.Popen(
                [*_COMMAND, "gateway", "start", str(self.config), "--announce"],
                stdout=subprocess.PIPE,
                stderr=log,
            )
        assert self.gateway.stdout.readline(), f"{self.name}: {self.last_words()}"

    def end(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End the gateway, by SIGKILL as a power cut would."""
        if self.gateway is not None:
            self.gateway.send_signal(number)
            status = self.gateway.wait(60)
            self.gateway.stdout.close()
            self.gateway = None
            assert number is signal.SIGKILL or status == 0, f"{self.name}: {self.last_words()}"

    def last_words(self) -> str:
        return " | ".join((self.folder / "gateway.log").read_text().splitlines()[-5:])

    def happened(self) -> list[tuple[str, str, str]]:
        """Return kind, source and code of the gateway's last events."""
        events = self.tell("gateway", "status")["events"]
        return [(event["kind"], event["source"], event["code"]) for event in events]


def told(*words, status: int = 0, as_json: bool = True):
    """Run a command of the command line to its end; return the document that it prints."""
    arguments = [*map(str, words), *(["--json"] if as_json else [])]
    done = subprocess.run(
        [*_COMMAND, *arguments], check=False, capture_output=True, text=True, timeout=180
    )
    said = " ".join(arguments)
    assert done.returncode == status, f"{said}: {done.returncode} {done.stdout} {done.stderr}"
    return json.loads(done.stdout) if as_json else done.stdout


@contextmanager
def consortium(folder: Path, nodes: int = 4):
    """Yield its hospitals, whose nodes run; at the end nodes and gateways are stopped."""
    shown = told("testnet", "up", "--nodes", nodes, "--folder", folder)
    hospitals = [Hospital(Path(node["config"]).parent) for node in shown["nodes"]]
    with ExitStack() as opened:
        opened.callback(told, "testnet", "down", "--folder", folder)
        for hospital in hospitals:
            opened.callback(hospital.end, signal.SIGKILL)
        yield hospitals
        for hospital in hospitals:
            hospital.end()


def processes_of(hospital: Hospital) -> int:
    """Return how many processes the gateway has besides its own."""
    if hospital.gateway is None:
        return 0
    children = Path(f"/proc/{hospital.gateway.pid}/task/{hospital.gateway.pid}/children")
    return len(children.read_text().split())


def wait_for(found, seconds: float = 60, what: str = "it"):
    """Return what `found()` returns once that is something."""
    last = []

    def is_so() -> bool:
        last[:] = [found()]
        return bool(last[0])

    until(is_so, seconds, what)
    return last[0]
