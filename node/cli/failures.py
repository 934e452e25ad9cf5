"""Turns what can go wrong into one clear sentence and an exit status, never a traceback.

1: something was found to be wrong (a verification, a refused transaction); 2: wrong usage or
settings; 3: the node, the database or the network could not do it.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console

from node.config import ConfigError
from node.daemon import StartRefused
from node.keys import KeyFileError
from node.ledger.errors import InvalidGenesis, Refused
from node.network.errors import ListenFailed
from node.provision import InvalidCard
from storage.errors import StorageError

errors = Console(stderr=True, highlight=False)


@contextmanager
def explained() -> Iterator[None]:
    """Print what a failure means for the person at the terminal, and exit."""
    try:
        yield
    except InvalidGenesis as error:
        _end(2, "the genesis cannot be used:", *error.problems)
    except ConfigError as error:
        _end(2, "the config cannot be used:", *str(error).splitlines())
    except (KeyFileError, InvalidCard, StartRefused) as error:
        _end(2, str(error))
    except Refused as error:
        _end(1, f"refused ({error.code}): {error.sentence}")
    except (StorageError, ListenFailed, OSError, TimeoutError) as error:
        _end(3, str(error) or type(error).__name__)


def _end(status: int, *lines: str) -> None:
    for line in lines:
        errors.print(f"[red]radledger:[/red] {line}", markup=True)
    raise typer.Exit(status)
