"""`make interop`: the gateway against other makers' tools, in a network of loopback alone.

Every module `check_*.py` beside this one has NAME, PACKAGES (Debian's, each with a command, or a
file's pattern, that shows whether it is there) and `run(work)`, which returns lines to print and
raises AssertionError; `prepare()`, if there is one, fetches what Debian does not have, and raises
AssertionError too.
What is missing is installed where we may (`apt-get install`, as root); else it is said, and the
exit status is 2. Only checks that were named as arguments run, if any were.

Orthanc listens on all addresses, so everything runs in a network namespace of its own (`unshare`),
in which there is nothing but loopback.
"""

import fcntl
import importlib
import os
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

INSTALL_SECONDS = 600
FOLDER = Path(__file__).parent
OWN_NETWORK = "RADLEDGER_INTEROP_NETWORK"
_SIOCSIFFLAGS, _IFF_UP_RUNNING = 0x8914, 0x41


def main(arguments: list[str]) -> int:
    """Run the checks; return the exit status."""
    names = sorted(path.stem for path in FOLDER.glob("check_*.py"))
    chosen = [name for name in names if not arguments or name.removeprefix("check_") in arguments]
    checks = [importlib.import_module(f"{__package__}.{name}") for name in chosen]
    if OWN_NETWORK in os.environ:
        raise_loopback()
        return max([run(check) for check in checks], default=0)
    missing = missing_packages(checks)
    if missing and not install(missing):
        packages = " ".join(sorted(missing))
        print(f"interop: missing {packages}; as root:", file=sys.stderr)
        print(f"  apt-get install --no-install-recommends {packages}", file=sys.stderr)
        return 2
    try:
        for check in checks:
            getattr(check, "prepare", lambda: None)()
    except AssertionError as error:
        print(f"interop: {error}", file=sys.stderr)
        return 2
    return in_own_network(arguments)


def in_own_network(arguments: list[str]) -> int:
    """Run this program again where there is only loopback; return its exit status."""
    enter = ["unshare", "--map-root-user", "--net", "--"]
    tried = shutil.which("unshare") and subprocess.run(
        [*enter, "true"], check=False, capture_output=True
    )
    if not tried or tried.returncode != 0:
        print(
            "interop: needs a network namespace (unshare --net), so that Orthanc", file=sys.stderr
        )
        print("  listens on loopback only; this system does not let us have one", file=sys.stderr)
        return 2
    command = [*enter, sys.executable, "-m", __package__, *arguments]
    environment = os.environ | {OWN_NETWORK: "1"}
    return subprocess.run(command, check=False, env=environment).returncode


def raise_loopback() -> None:
    """Bring loopback up, which is down in a new network."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = struct.pack("16sh14x", b"lo", _IFF_UP_RUNNING)
        fcntl.ioctl(control, _SIOCSIFFLAGS, request)


def run(check) -> int:
    """Run one check in a folder of its own; return 1 if it fails."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="radledger-interop-") as work:
        try:
            lines = check.run(Path(work))
        except AssertionError as error:
            print(f"FAILED  {check.NAME}: {error}")
            return 1
    print(f"well    {check.NAME} ({time.monotonic() - began:.1f} s)")
    for line in lines:
        print(f"        {line}")
    return 0


def missing_packages(checks) -> set[str]:
    """Return Debian's packages of which a command, or a file, is not there."""
    wanted = {item for check in checks for item in getattr(check, "PACKAGES", {}).items()}
    return {package for package, command in wanted if not is_there(command)}


def is_there(command: str) -> bool:
    """Whether a command, or a file that an absolute pattern names, is installed."""
    if command.startswith("/"):
        return any(Path("/").glob(command.lstrip("/")))
    return shutil.which(command) is not None


def install(packages: set[str]) -> bool:
    """Install with apt-get if this user may; return whether they are there."""
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        return False
    # A package that starts a server at once would listen on all addresses.
    policy = Path("/usr/sbin/policy-rc.d")
    is_ours = not policy.exists()
    if is_ours:
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    command = ["apt-get", "install", "-y", "-q", "--no-install-recommends", *sorted(packages)]
    try:
        for each in (["apt-get", "update", "-q"], command):
            done = subprocess.run(
                each, check=False, timeout=INSTALL_SECONDS, env=environment, capture_output=True
            )
    except (OSError, subprocess.TimeoutExpired):
        return False
    finally:
        if is_ours:
            policy.unlink()
    return done.returncode == 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
