"""Telling systemd how far a program is (sd_notify(3))."""

import os
import socket


def notify(state: str) -> None:
    """Send `state`, as "READY=1"; without a socket in the environment nothing happens."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    name = "\0" + address[1:] if address.startswith("@") else address
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.connect(name)
        channel.sendall(state.encode())
