"""Errors of the RPC room, for both ends of the wire."""


class RpcError(Exception):
    """A call failed for a reason that is neither a refusal nor a time-out.

    `number` is the JSON-RPC error code, `code` a stable word to branch on, `sentence` for people.
    """

    def __init__(self, number: int, code: str, sentence: str) -> None:
        super().__init__(number, code, sentence)
        self.number = number
        self.code = code
        self.sentence = sentence

    def __str__(self) -> str:
        return f"{self.code}: {self.sentence}"


class ConnectionLost(Exception):
    """The connection to the node broke or could not be made.

    A submission that was under way may or may not have been accepted: ask `transaction(id)`, or
    submit the same bytes again, which can never execute twice.
    """


class NotAuthorized(Exception):
    """The node refused the token; connecting again cannot help."""
