"""Turns what can go wrong into clear sentences and an exit status, never a traceback.

1: something was found to be wrong (a verification, a refused transaction); 2: wrong usage or
settings; 3: the node, the database or the network could not do it; 4: a bug of this program.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.text import Text

from node.cli.output import printable
from node.config import ConfigError
from node.imaging.errors import VaultError, WrongPassphrase
from node.keys import KeyFileError
from node.ledger.errors import InvalidGenesis, Refused
from node.provision import InvalidCard
from node.rpc.codec import NotAnAnswer
from node.rpc.errors import ConnectionLost, NotAuthorized, RpcError
from storage.errors import StorageError

WRONG, USAGE, UNABLE, UNEXPECTED = 1, 2, 3, 4
INTERRUPTED = 130  # 128 + SIGINT, as shells say it

errors = Console(stderr=True, highlight=False)


class Failure(Exception):
    """A command's own finding: exit with `status`, after these lines."""

    def __init__(self, status: int, *lines: str) -> None:
        super().__init__(*lines)
        self.status = status
        self.lines = lines


@contextmanager
def explained(as_json: bool = False) -> Iterator[None]:
    """Say what a failure means for the person at the terminal, and exit.

    With `as_json` the same goes to standard output too, as {"error": {"status", "lines"}}.
    """
    try:
        yield
    except BrokenPipeError:
        raise  # whoever read our output has gone; typer ends quietly
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    except Exception as error:
        meaning = meaning_of(error)
        if meaning is None:
            raise
        status, lines = meaning
        report(*lines)
        if as_json:
            print(json.dumps({"error": {"status": status, "lines": lines}}, indent=2))
        raise typer.Exit(status) from None


def report(*lines: str) -> None:
    """Print lines on standard error, whatever characters they hold."""
    for line in lines:
        text = Text.assemble(("radledger: ", "bold red"), printable(line))
        errors.print(text, soft_wrap=True)


def meaning_of(error: Exception) -> tuple[int, list[str]] | None:
    """Return the exit status and sentences for what can be expected to fail, None for a bug."""
    match error:
        case Failure():
            return error.status, list(error.lines)
        case InvalidGenesis():
            return USAGE, ["the genesis cannot be used:", *error.problems]
        case ConfigError():
            return USAGE, ["the config cannot be used:", *str(error).splitlines()]
        case KeyFileError() | InvalidCard() | WrongPassphrase():
            return USAGE, [_sentence(error)]
        case NotAuthorized():
            return USAGE, [f"{error}: is rpc.token_file the token of the node that runs there?"]
        case Refused():
            return WRONG, [f"refused ({error.code}): {error.sentence}"]
        case RpcError(code="invalid_params" | "method_not_found"):
            return USAGE, [str(error)]
        case ConnectionLost():
            return UNABLE, [f"{error}: does the node run? `radledger start` runs it"]
        case NotAnAnswer():
            return UNABLE, [f"the node answers in another form than this program knows: {error}"]
        case TimeoutError() if not str(error):
            return UNABLE, ["it took too long"]
        case RpcError() | VaultError() | StorageError() | OSError():
            return UNABLE, [_sentence(error)]
        case ExceptionGroup():
            return _meaning_of_group(error)
    return None


def _meaning_of_group(group: ExceptionGroup[Exception]) -> tuple[int, list[str]] | None:
    meanings = [meaning_of(error) for error in group.exceptions]
    known = [meaning for meaning in meanings if meaning is not None]
    if len(known) < len(meanings):
        return None
    lines = dict.fromkeys(line for _, lines in known for line in lines)
    return max(status for status, _ in known), list(lines)


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error) or type(error).__name__
