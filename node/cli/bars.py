"""Progress bars on standard error, where somebody watches."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)


@contextmanager
def file_progress(what: str, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """Yield what is told how many files are done, and how many there are."""
    errors = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    disable = quiet or not errors.is_terminal  # where nobody watches, a bar is noise in a log
    with Progress(*columns, console=errors, transient=True, disable=disable) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


@contextmanager
def byte_progress(what: str, total: int, quiet: bool) -> Iterator[Callable[[int], None]]:
    """Yield what is told how many bytes of `total` are done; shows rate and time left."""
    errors = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    disable = quiet or not errors.is_terminal
    with Progress(*columns, console=errors, transient=True, disable=disable) as progress:
        task = progress.add_task(what, total=total)
        yield lambda done: progress.update(task, completed=done)
