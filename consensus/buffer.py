"""Messages of later views or heights, kept within bounds until they apply."""

from consensus.messages import Commit, Prepare, PrePrepare, Seal

Future = PrePrepare | Prepare | Commit | Seal


class Buffer:
    """At most `limit` messages of each sender; the oldest make room for newer ones.

    A sender can push out only its own messages. What is lost here is sent again by its sender.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._by_sender: dict[int, dict[tuple[type, int, int], Future]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._by_sender.values()))

    def __bool__(self) -> bool:
        return bool(self._by_sender)

    def __contains__(self, message: Future) -> bool:
        return _key(message) in self._by_sender.get(message.sender, ())

    def add(self, message: Future) -> None:
        """Keep `message` unless one of its kind, view and height is kept already."""
        kept = self._by_sender.setdefault(message.sender, {})
        kept.setdefault(_key(message), message)
        if len(kept) > self._limit:
            del kept[next(iter(kept))]

    def release(self, view: int, low: int, high: int) -> list[Future]:
        """Remove and return what applies up to `view` and `high`; drop what is at or below `low`.

        In the order of senders, and for each sender in the order of arrival.
        """
        released: list[Future] = []
        for sender in sorted(self._by_sender):
            kept = self._by_sender[sender]
            due = [key for key in kept if key[2] <= low or (key[1] <= view and key[2] <= high)]
            released += [message for key in due if (message := kept.pop(key)).height > low]
            if not kept:
                del self._by_sender[sender]
        return released


def _key(message: Future) -> tuple[type, int, int]:
    view = -1 if isinstance(message, Seal) else message.view  # a seal belongs to every view
    return type(message), view, message.height
