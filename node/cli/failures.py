"""Turns what can go wrong into clear sentences and an exit status, never a traceback.

1: something was found to be wrong (a verification, a refused transaction); 2: wrong usage or
settings; 3: the node, the database or the network could not do it; 4: a bug of this program.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module

import typer
from rich.console import Console
from rich.text import Text

from node.cli.output import printable
from node.ledger.errors import Refused

WRONG, USAGE, UNABLE, UNEXPECTED = 1, 2, 3, 4
INTERRUPTED = 130  # 128 + SIGINT, as shells say it

errors = Console(stderr=True, highlight=False)


class Failure(Exception):
    """A command's own finding: exit with `status`, after these lines.

    `code` is that of a refusal, for programs.
    """

    def __init__(self, status: int, *lines: str, code: str | None = None) -> None:
        super().__init__(*lines)
        self.status = status
        self.lines = lines
        self.code = code


@contextmanager
def explained(as_json: bool = False) -> Iterator[None]:
    """Say what a failure means for the person at the terminal, and exit.

    With `as_json` the same goes to standard output too, as {"error": {"status", "lines", "code"}}.
    """
    try:
        yield
    except BrokenPipeError:
        raise  # whoever read our output has gone; typer ends quietly
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    except Exception as error:
        meaning = _meaning_of(error)
        if meaning is None:
            raise
        status, lines = meaning
        report(*lines)
        if as_json:
            told = {"status": status, "lines": lines, "code": _code(error)}
            print(json.dumps({"error": told}, indent=2))
        raise typer.Exit(status) from None


def report(*lines: str) -> None:
    """Print lines on standard error, whatever characters they hold."""
    for line in lines:
        text = Text.assemble(("radledger: ", "bold red"), printable(line))
        errors.print(text, soft_wrap=True)


def _meaning_of(error: Exception) -> tuple[int, list[str]] | None:
    if isinstance(error, Failure):
        return error.status, list(error.lines)
    # What knows the errors of all rooms loads all rooms; a command that goes well needs none.
    found: tuple[int, list[str]] | None = import_module("node.cli.meanings").meaning_of(error)
    return found


def _code(error: Exception) -> str | None:
    return error.code if isinstance(error, Failure | Refused) else None
