"""Messages as they travel: encoded, decoded and authenticated by the production code.

Each distinct byte string is decoded and verified once for the whole network, because every
recipient that knows the same validator sets would come to the same result.
"""

from consensus.authentication import signatures_of
from consensus.errors import InvalidMessage
from consensus.messages import Message, decode
from consensus.validators import ValidatorSchedule
from tests.simulation.keys import Keyring

_LETTERS_MAX = 20_000


class Letter:
    """One message on the wire."""

    __slots__ = ("authentic", "message")

    def __init__(self, message: Message | None) -> None:
        self.message = message  # None: undecodable
        self.authentic: dict[int, bool] = {}  # by how many validator sets the reader knows


class Letters:
    """Opens what the network carries."""

    def __init__(self, chain_id: bytes, keys: Keyring) -> None:
        self._chain_id = chain_id
        self._keys = keys
        self._opened: dict[bytes, Letter] = {}

    def open(self, data: bytes) -> Letter:
        """Return the letter that `data` encodes."""
        letter = self._opened.get(data)
        if letter is None:
            try:
                letter = Letter(decode(data))
            except InvalidMessage:
                letter = Letter(None)
            if len(self._opened) >= _LETTERS_MAX:
                self._opened.clear()
            self._opened[data] = letter
        return letter

    def is_authentic(self, letter: Letter, schedule: ValidatorSchedule) -> bool:
        """Tell whether every signature of the letter holds, nested ones too, as far as one can tell
        who knows the sets of `schedule`."""
        known = len(schedule.sets())
        found = letter.authentic.get(known)
        if found is None:
            found = letter.message is not None and self.verify(letter.message, schedule)
            letter.authentic[known] = found
        return found

    def verify(self, message: Message, schedule: ValidatorSchedule) -> bool:
        """Tell whether `message` is well formed and every signature in it holds."""
        try:
            checks = signatures_of(message, schedule, self._chain_id)
        except InvalidMessage:
            return False
        return self._keys.verify(checks)
