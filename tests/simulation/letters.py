"""Messages as they travel: encoded, decoded and authenticated by the production code.

Each distinct byte string is decoded and verified once for the whole network, because every
recipient would come to the same result.
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
        self.authentic: bool | None = None  # None: not looked at yet


class Letters:
    """Opens what the network carries."""

    def __init__(self, schedule: ValidatorSchedule, chain_id: bytes, keys: Keyring) -> None:
        self._schedule = schedule
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

    def is_authentic(self, letter: Letter) -> bool:
        """Tell whether every signature of the letter holds, nested ones too."""
        if letter.authentic is None:
            letter.authentic = letter.message is not None and self.verify(letter.message)
        return letter.authentic

    def verify(self, message: Message) -> bool:
        """Tell whether `message` is well formed and every signature in it holds."""
        try:
            checks = signatures_of(message, self._schedule, self._chain_id)
        except InvalidMessage:
            return False
        return self._keys.verify(checks)
