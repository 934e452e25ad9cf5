"""What replication needs of the transport."""

from collections.abc import Iterable
from typing import Protocol

from node.network.frames import Kind
from node.network.send_queue import Priority


class Links(Protocol):
    """Frames to peers, and word of their misbehaviour."""

    def send(self, key: bytes, kind: Kind, payload: bytes, priority: Priority) -> bool:
        """Queue a frame to one peer."""
        ...

    def broadcast(
        self, keys: Iterable[bytes], kind: Kind, payload: bytes, priority: Priority
    ) -> int:
        """Queue a frame to several peers."""
        ...

    def punish(self, key: bytes, points: float, reason: str) -> None:
        """Count a peer's misbehaviour."""
        ...
